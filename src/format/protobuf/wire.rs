//! Writes the protobuf wire format into a byte buffer.
//!
//! How long a nested message is, which is written first, is known last. [`nested`] leaves as many bytes for it as the
//! expected length takes, and moves the message in the rare case that this was wrong. So lengths have the fewest bytes
//! that they can have, as with any other encoder.

/// How a field's value is encoded.
#[derive(Debug, Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    LengthDelimited = 2,
    Fixed32 = 5,
}

/// Appends an unsigned number, seven bits a byte, the lowest first.
#[inline]
pub(super) fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes that [`varint`] appends.
#[inline]
pub(super) fn varint_len(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// A signed number as an unsigned one, those near 0 small.
#[inline]
pub(super) fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

#[inline]
fn tag(out: &mut Vec<u8>, field: u32, wire_type: WireType) {
    varint(out, u64::from(field << 3 | wire_type as u32));
}

/// Appends a field of type `uint64`, `uint32`, `bool`, an enum or, without a sign, `int64`.
#[inline]
pub(super) fn unsigned(out: &mut Vec<u8>, field: u32, number: u64) {
    tag(out, field, WireType::Varint);
    varint(out, number);
}

/// Appends a field of type `sint64` or `sint32`.
#[inline]
pub(super) fn signed(out: &mut Vec<u8>, field: u32, number: i64) {
    unsigned(out, field, zigzag(number));
}

/// Appends a field of type `fixed64`, `sfixed64` or `double`.
#[inline]
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, bytes: [u8; 8]) {
    tag(out, field, WireType::Fixed64);
    out.extend_from_slice(&bytes);
}

/// Appends a field of type `float`.
#[inline]
pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, bytes: [u8; 4]) {
    tag(out, field, WireType::Fixed32);
    out.extend_from_slice(&bytes);
}

/// Appends a field of type `bytes` or `string`, or a message that is encoded already.
#[inline]
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    tag(out, field, WireType::LengthDelimited);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Length of a field of that many bytes, where the field's number is below 16.
#[inline]
pub(super) fn bytes_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Appends a message that `write` writes, or anything else whose length comes first.
#[inline]
pub(super) fn nested<R>(
    out: &mut Vec<u8>,
    field: u32,
    expected_len: usize,
    write: impl FnOnce(&mut Vec<u8>) -> R,
) -> R {
    tag(out, field, WireType::LengthDelimited);
    let start = out.len();
    let reserved = varint_len(expected_len as u64);
    out.resize(start + reserved, 0);
    let result = write(out);
    let len = out.len() - start - reserved;
    let needed = varint_len(len as u64);
    if needed != reserved {
        move_tail(out, start + reserved, start + needed);
    }
    let mut rest = len;
    for byte in &mut out[start..start + needed] {
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    out[start + needed - 1] &= 0x7F;
    result
}

/// Moves what begins at `from` so that it begins at `to`.
#[cold]
fn move_tail(out: &mut Vec<u8>, from: usize, to: usize) {
    let end = out.len();
    if to > from {
        out.resize(end + to - from, 0);
    }
    out.copy_within(from..end, to);
    out.truncate(end - from + to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out);
        out.split_off(6)
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_prost(bits in 0_u32..64, number in any::<u64>(), field in 1_u32..100_000) {
            let number = number >> bits;
            let mut expected = Vec::new();
            prost::encoding::uint64::encode(field, &number, &mut expected);
            prop_assert_eq!(written(|out| unsigned(out, field, number)), expected);
            prop_assert_eq!(written(|out| varint(out, number)).len(), varint_len(number));
            let mut expected = Vec::new();
            prost::encoding::sint64::encode(field, &(number as i64), &mut expected);
            prop_assert_eq!(written(|out| signed(out, field, number as i64)), expected);
        }

        #[test]
        fn a_nested_message_is_the_same_whatever_length_was_expected(
            len in prop_oneof![0_usize..300, 16_300_usize..16_500], expected_len in 0_usize..3_000_000, field in 1_u32..100,
        ) {
            let message: Vec<u8> = (0..len).map(|place| place as u8).collect();
            let expected = written(|out| bytes(out, field, &message));
            prop_assert_eq!(written(|out| nested(out, field, expected_len, |out| out.extend(&message))), expected);
        }
    }
}
