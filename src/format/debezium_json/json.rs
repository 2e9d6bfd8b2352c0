//! Writes JSON scalars into a byte buffer.
//!
//! Text is scanned eight bytes at a time for what JSON must escape and for what is not ASCII, so that ordinary text
//! costs a scan and a copy. UTF-8 is checked only from the first byte that is not ASCII.

use crate::format::digits::Digits;

/// `byte` in each of a word's eight places.
const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Appends `bytes` as a JSON string. What is not UTF-8 becomes U+FFFD.
pub(super) fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    escaped(out, bytes);
    out.push(b'"');
}

/// Appends `bytes` escaped as the inside of a JSON string.
pub(super) fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    let mut is_utf8 = false;
    loop {
        let (clean, tail) = rest.split_at(clean_prefix(rest, is_utf8));
        out.extend_from_slice(clean);
        let Some((&byte, after)) = tail.split_first() else { return };
        if byte >= 0x80 {
            if std::str::from_utf8(tail).is_err() {
                return escaped_lossy(out, tail);
            }
            is_utf8 = true;
            rest = tail;
        } else {
            escape(out, byte);
            rest = after;
        }
    }
}

/// As [`escaped`], for bytes that are not UTF-8 throughout.
#[cold]
fn escaped_lossy(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        escaped(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

/// Length of the prefix that may be copied as it is. Bytes beyond ASCII may be when they are known to be UTF-8.
#[inline]
fn clean_prefix(bytes: &[u8], is_utf8: bool) -> usize {
    const HIGH: u64 = repeat(0x80);
    let beyond_ascii = if is_utf8 { 0 } else { HIGH };
    let mut words = bytes.chunks_exact(8);
    let mut clean = 0;
    for word in &mut words {
        let Ok(word) = word.try_into().map(u64::from_le_bytes) else { break };
        // Each term sets the high bit of the bytes that it means. A borrow can set one too many, but only above a
        // right one, and only the lowest is used.
        let control = word.wrapping_sub(repeat(0x20)) & !word;
        let quote = word ^ repeat(b'"');
        let quote = quote.wrapping_sub(repeat(1)) & !quote;
        let backslash = word ^ repeat(b'\\');
        let backslash = backslash.wrapping_sub(repeat(1)) & !backslash;
        let special = ((control | quote | backslash) & HIGH) | (word & beyond_ascii);
        if special != 0 {
            return clean + special.trailing_zeros() as usize / 8;
        }
        clean += 8;
    }
    let special = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\' || (byte >= 0x80 && !is_utf8);
    clean + words.remainder().iter().position(special).unwrap_or(words.remainder().len())
}

/// Appends the escape for a byte that JSON does not allow in a string as it is.
fn escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0C => b'f',
        b'\r' => b'r',
        _ => {
            let hex = |nibble: u8| HEX[usize::from(nibble & 15)];
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte)]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends a number.
pub(super) fn integer(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(Digits::new(number.unsigned_abs()).as_bytes());
}

/// Appends exactly `width` digits, with leading zeros; higher digits are cut.
pub(super) fn padded(out: &mut Vec<u8>, number: u64, width: usize) {
    let digits = Digits::new(number);
    let digits = digits.as_bytes();
    for _ in digits.len()..width {
        out.push(b'0');
    }
    out.extend_from_slice(digits.get(digits.len().saturating_sub(width)..).unwrap_or_default());
}

/// Appends bytes as base64 with padding, without quotes.
pub(super) fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |bits: u32| ALPHABET[(bits & 63) as usize];
    out.reserve(bytes.len().div_ceil(3) * 4);
    let mut triples = bytes.chunks_exact(3);
    for triple in &mut triples {
        if let [a, b, c] = *triple {
            let bits = u32::from_be_bytes([0, a, b, c]);
            out.extend_from_slice(&[letter(bits >> 18), letter(bits >> 12), letter(bits >> 6), letter(bits)]);
        }
    }
    match *triples.remainder() {
        [a] => {
            let bits = u32::from_be_bytes([0, a, 0, 0]);
            out.extend_from_slice(&[letter(bits >> 18), letter(bits >> 12), b'=', b'=']);
        }
        [a, b] => {
            let bits = u32::from_be_bytes([0, a, b, 0]);
            out.extend_from_slice(&[letter(bits >> 18), letter(bits >> 12), letter(bits >> 6), b'=']);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn any_text_reads_back_as_itself(text in any::<String>()) {
            let json = written(|out| string(out, text.as_bytes()));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn text_full_of_special_characters_reads_back(text in "[\\x00-\\x22\\\\é€😀a]{0,40}") {
            let json = written(|out| string(out, text.as_bytes()));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn bytes_that_are_not_utf8_read_back_with_replacement_characters(bytes in any::<Vec<u8>>()) {
            let json = written(|out| string(out, &bytes));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn integers_are_written_as_rust_writes_them(number in any::<i64>()) {
            prop_assert_eq!(written(|out| integer(out, number)), number.to_string());
        }
    }

    #[test]
    fn control_characters_are_escaped_as_jackson_does() {
        let json = written(|out| string(out, b"\x00\x08\t\n\x0B\x0C\r\x1F\x7F\"\\/"));
        assert_eq!(json, "\"\\u0000\\b\\t\\n\\u000B\\f\\r\\u001F\x7F\\\"\\\\/\"");
    }

    #[test]
    fn base64_gives_the_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(written(|out| base64(out, bytes.as_bytes())), text);
        }
    }

    #[test]
    fn padding_is_exact() {
        assert_eq!(written(|out| padded(out, 7, 2)), "07");
        assert_eq!(written(|out| padded(out, 0, 3)), "000");
        assert_eq!(written(|out| padded(out, 2026, 4)), "2026");
    }
}
