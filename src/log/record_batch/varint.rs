//! Zig-zag variable-length integers, as protocol buffers and Kafka records have them.

/// Appends `value` as a varlong; an `i32` gives the same bytes as Kafka's varint.
#[inline]
pub fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// How many bytes [`put`] appends.
#[inline]
pub fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Takes a varlong off the front of `bytes`; `None` when there is no whole one.
#[inline]
pub fn take(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// As [`take`], for a value that must fit an `i32`.
#[inline]
pub fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    take(bytes)?.try_into().ok()
}

/// Takes a length and as many bytes; a negative length is none (`Some(None)`).
#[inline]
pub fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let len = take_i32(bytes)?;
    let Ok(len) = usize::try_from(len) else { return Some(None) };
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(Some(taken))
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_varlong_round_trips_in_the_length_foretold(value in any::<i64>(), shift in 0..64u32) {
            let value = value >> shift;
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            prop_assert_eq!(take(&mut out.as_slice()), Some(value));
            prop_assert_eq!(take(&mut &out[..out.len() - 1]), None);
        }
    }
}
