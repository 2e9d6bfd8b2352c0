//! Bytes in hexadecimal or escaped: `bytea` and `uuid`.

/// Gives the bytes of a `bytea`, in either of its text forms, to `visit`, in pieces whose lengths, but for the last
/// one's, are multiples of three (so that the pieces' base64 joins without padding).
pub(in crate::format) fn bytea(text: &[u8], mut visit: impl FnMut(&[u8])) -> Option<()> {
    let Some(hex) = text.strip_prefix(b"\\x") else {
        visit(&unescape(text)?);
        return Some(());
    };
    self::hex(hex, visit)
}

/// Gives the bytes of hexadecimal text to `visit`, in pieces as [`bytea`] does.
pub(in crate::format) fn hex(hex: &[u8], mut visit: impl FnMut(&[u8])) -> Option<()> {
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    let mut buffer = [0; 192];
    for piece in hex.chunks(2 * buffer.len()) {
        let mut len = 0;
        for (byte, pair) in buffer.iter_mut().zip(piece.chunks_exact(2)) {
            *byte = hex_byte(pair)?;
            len += 1;
        }
        visit(buffer.get(..len)?);
    }
    Some(())
}

/// The bytes of a `uuid`: `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`.
pub(in crate::format) fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    if text.len() != 36 || !HYPHENS.iter().all(|&place| text.get(place) == Some(&b'-')) {
        return None;
    }
    let mut bytes = [0; 16];
    let groups = text.split(|&byte| byte == b'-').flat_map(|group| group.chunks(2));
    for (byte, pair) in bytes.iter_mut().zip(groups) {
        *byte = hex_byte(pair)?;
    }
    Some(bytes)
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let [high, low] = *pair else { return None };
    Some(hex_digit(high)? << 4 | hex_digit(low)?)
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// `bytea_output = escape`: `\\` and three octal digits after a backslash, all else as it is.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [b'\\', after @ ..]) => {
                bytes.push(b'\\');
                after
            }
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                after
            }
            (b'\\', _) => return None,
            (&byte, after) => {
                bytes.push(byte);
                after
            }
        };
    }
    Some(bytes)
}
