//! Numbers: from PostgreSQL's text to what Debezium writes.
//!
//! A decimal is written as Kafka Connect's `Decimal`: the digits without the point as one integer, in big-endian two's
//! complement of the fewest bytes, in base64. A function gives `None` when the text is not of its type.

use super::json;
use crate::format::text::money;

/// An integer, as PostgreSQL prints it.
pub(super) fn integer(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    out.extend_from_slice(text);
    Some(())
}

/// A floating-point number, in the form that Java gives it. Not a number and the infinities are strings.
pub(super) fn float(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    if is_special(text) {
        json::string(out, text);
        return Some(());
    }
    let (sign, unsigned) = split_sign(text);
    let (mantissa, exponent) = match unsigned.iter().position(|&byte| byte == b'e') {
        Some(at) => (unsigned.get(..at)?, parse_exponent(unsigned.get(at + 1..)?)?),
        None => (unsigned, 0),
    };
    let (whole, decimals) = split_point(mantissa)?;

    // Significant digits, and the power of ten of the first of them.
    let mut digits = [0; 40];
    let mut len = 0;
    let mut leading_zeros = 0;
    for &digit in whole.iter().chain(decimals) {
        if len == 0 && digit == b'0' {
            leading_zeros += 1;
        } else {
            *digits.get_mut(len)? = digit;
            len += 1;
        }
    }
    let digits = digits.get(..len)?;
    let kept = digits.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    let digits = digits.get(..kept)?;
    out.extend_from_slice(sign);
    let [first, others @ ..] = digits else {
        out.extend_from_slice(b"0.0");
        return Some(());
    };
    let power = exponent + whole.len() as i64 - leading_zeros - 1;
    match power {
        0..7 => {
            let places = power as usize + 1;
            let (before, after) = digits.split_at_checked(places).unwrap_or((digits, b""));
            out.extend_from_slice(before);
            out.resize(out.len() + places - before.len(), b'0');
            out.push(b'.');
            out.extend_from_slice(if after.is_empty() { b"0" } else { after });
        }
        -3..0 => {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + (-power - 1) as usize, b'0');
            out.extend_from_slice(digits);
        }
        _ => {
            out.extend_from_slice(&[*first, b'.']);
            out.extend_from_slice(if others.is_empty() { b"0" } else { others });
            out.push(b'E');
            json::integer(out, power);
        }
    }
    Some(())
}

/// A `numeric(p,s)` as `Decimal` of scale `scale`. Not a number, which has no such form, is the string `"NaN"`.
pub(super) fn decimal(out: &mut Vec<u8>, text: &[u8], scale: i32) -> Option<()> {
    if is_special(text) {
        json::string(out, text);
        return Some(());
    }
    let (sign, unsigned) = split_sign(text);
    let (whole, decimals) = split_point(unsigned)?;
    let wanted = usize::try_from(scale).unwrap_or(0);
    let (decimals, dropped) = decimals.split_at_checked(wanted).unwrap_or((decimals, b""));
    let (whole, cut) =
        whole.split_at(whole.len().saturating_sub(usize::try_from(-i64::from(scale)).unwrap_or(0)));
    if !dropped.iter().chain(cut).all(|&digit| digit == b'0') {
        return None;
    }
    out.push(b'"');
    unscaled(out, !sign.is_empty(), whole, decimals, wanted - decimals.len());
    out.push(b'"');
    Some(())
}

/// A `numeric` without declared scale as `VariableScaleDecimal`, of the least scale that is not negative. What is not
/// a number, or infinite, is a string.
pub(super) fn variable_scale_decimal(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    if is_special(text) {
        json::string(out, text);
        return Some(());
    }
    let (sign, unsigned) = split_sign(text);
    let (whole, decimals) = split_point(unsigned)?;
    let scale = decimals.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    out.extend_from_slice(b"{\"scale\":");
    json::integer(out, scale as i64);
    out.extend_from_slice(b",\"value\":\"");
    unscaled(out, !sign.is_empty(), whole, decimals.get(..scale)?, 0);
    out.extend_from_slice(b"\"}");
    Some(())
}

/// `money` as `Decimal` of scale 2, or of as many decimals as the currency has, where these are more.
pub(super) fn money(out: &mut Vec<u8>, text: &[u8], decimals: u8) -> Option<()> {
    let zeros = 2_u32.saturating_sub(decimals.into());
    out.push(b'"');
    two_complement(out, i128::from(money::units(text)?) * 10_i128.pow(zeros));
    out.push(b'"');
    Some(())
}

fn is_special(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// The sign, `-` or nothing, and the rest.
fn split_sign(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(usize::from(text.first() == Some(&b'-')))
}

/// The digits before and after the point; `None` when there are none or other characters.
#[inline]
fn split_point(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let point = text.iter().position(|&byte| byte == b'.');
    let (whole, decimals) = match point {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &text[..0]),
    };
    let are_digits = whole.iter().chain(decimals).all(u8::is_ascii_digit);
    (are_digits && !(whole.is_empty() && decimals.is_empty())).then_some((whole, decimals))
}

/// `+05`, `-324`
fn parse_exponent(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    let (sign, digits) = split_sign(digits);
    if !(1..=4).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let magnitude = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Some(if sign.is_empty() { magnitude } else { -magnitude })
}

/// Most digits that an `i128` holds whatever they are.
const I128_DIGITS: usize = 38;

/// Appends the integer of these digits, followed by so many zeros, in two's complement and base64.
fn unscaled(out: &mut Vec<u8>, is_negative: bool, whole: &[u8], decimals: &[u8], zeros: usize) {
    let len = whole.len() + decimals.len() + zeros;
    let digits = whole.iter().chain(decimals).map(|digit| digit - b'0').chain(std::iter::repeat_n(0, zeros));
    if len > I128_DIGITS {
        return json::base64(out, &big_two_complement(is_negative, digits));
    }
    let magnitude = if len <= 18 {
        i128::from(digits.fold(0_i64, |value, digit| value * 10 + i64::from(digit)))
    } else {
        digits.fold(0_i128, |value, digit| value * 10 + i128::from(digit))
    };
    two_complement(out, if is_negative { -magnitude } else { magnitude });
}

/// Appends the fewest bytes that hold an integer, big-endian, in base64.
#[inline]
fn two_complement(out: &mut Vec<u8>, value: i128) {
    let magnitude_bits = i128::BITS - (if value < 0 { !value } else { value }).leading_zeros();
    let len = magnitude_bits as usize / 8 + 1;
    let bytes = value.to_be_bytes();
    json::base64(out, bytes.get(bytes.len().saturating_sub(len)..).unwrap_or_default());
}

/// Big-endian two's complement of an integer of any length, in the fewest bytes.
#[cold]
fn big_two_complement(is_negative: bool, digits: impl Iterator<Item = u8>) -> Vec<u8> {
    const CHUNK: u32 = 18;
    let mut limbs: Vec<u64> = Vec::new();
    let mut multiply_add = |factor: u64, addend: u64| {
        let mut carry = u128::from(addend);
        for limb in &mut limbs {
            let product = u128::from(*limb) * u128::from(factor) + carry;
            *limb = product as u64;
            carry = product >> 64;
        }
        if carry > 0 {
            limbs.push(carry as u64);
        }
    };
    let (mut chunk, mut width) = (0, 0);
    for digit in digits {
        chunk = chunk * 10 + u64::from(digit);
        width += 1;
        if width == CHUNK {
            multiply_add(10_u64.pow(CHUNK), chunk);
            (chunk, width) = (0, 0);
        }
    }
    multiply_add(10_u64.pow(width), chunk);

    let mut bytes: Vec<u8> = limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect();
    bytes.push(0);
    if is_negative {
        let mut carry = true;
        for byte in &mut bytes {
            let (sum, overflow) = (!*byte).overflowing_add(u8::from(carry));
            *byte = sum;
            carry = overflow;
        }
    }
    // A leading byte is needless when the next one's first bit says the same.
    while let [.., next, last] = *bytes.as_slice() {
        let sign = if next & 0x80 == 0 { 0 } else { 0xFF };
        if last != sign {
            break;
        }
        bytes.pop();
    }
    bytes.reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::debezium_json::tests::written;
    use proptest::prelude::*;

    /// Bytes of base64, bit by bit.
    fn decode_base64(text: &str) -> Vec<u8> {
        const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits: Vec<bool> = text
            .trim_end_matches('=')
            .chars()
            .flat_map(|c| {
                let six = ALPHABET.find(c).unwrap();
                (0..6).rev().map(move |bit| six >> bit & 1 == 1)
            })
            .collect();
        bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit))).collect()
    }

    /// The decimal integer in two's complement bytes: sign and digits, by repeated division by ten.
    fn decode_integer(bytes: &[u8]) -> String {
        let is_negative = bytes[0] >= 0x80;
        let mut magnitude = bytes.to_vec();
        if is_negative {
            magnitude.iter_mut().for_each(|byte| *byte = !*byte);
            for byte in magnitude.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
        let mut digits = Vec::new();
        while magnitude.iter().any(|&byte| byte != 0) {
            let mut remainder = 0_u32;
            for byte in &mut magnitude {
                let value = remainder << 8 | u32::from(*byte);
                *byte = (value / 10) as u8;
                remainder = value % 10;
            }
            digits.push(char::from_digit(remainder, 10).unwrap());
        }
        if digits.is_empty() {
            digits.push('0');
        }
        let sign = if is_negative { "-" } else { "" };
        format!("{sign}{}", digits.iter().rev().collect::<String>())
    }

    #[test]
    fn decimals_are_those_of_kafka_connect() {
        for (text, scale, base64) in [
            ("0.00", 2, "AA=="),
            ("1.00", 2, "ZA=="),
            ("1.27", 2, "fw=="),
            ("1.28", 2, "AIA="),
            ("-1.28", 2, "gA=="),
            ("-1.29", 2, "/38="),
            ("123.45", 2, "MDk="),
            ("-0.01", 2, "/w=="),
            ("1.1", 3, "BEw="),
            ("12300", -2, "ew=="),
        ] {
            let json = written(|out| decimal(out, text.as_bytes(), scale));
            assert_eq!(json, Some(format!("\"{base64}\"")), "{text}");
        }
        assert_eq!(written(|out| decimal(out, b"NaN", 2)).as_deref(), Some("\"NaN\""));
        assert_eq!(written(|out| decimal(out, b"1.234", 2)), None, "a digit would be lost");
    }

    #[test]
    fn decimals_without_scale_carry_the_least_scale() {
        for (text, json) in [
            ("0", r#"{"scale":0,"value":"AA=="}"#),
            ("0.000", r#"{"scale":0,"value":"AA=="}"#),
            ("1.10", r#"{"scale":1,"value":"Cw=="}"#),
            ("100", r#"{"scale":0,"value":"ZA=="}"#),
            ("-3.14", r#"{"scale":2,"value":"/sY="}"#),
            ("Infinity", r#""Infinity""#),
        ] {
            assert_eq!(
                written(|out| variable_scale_decimal(out, text.as_bytes())).as_deref(),
                Some(json),
                "{text}"
            );
        }
    }

    #[test]
    fn money_has_two_decimals_or_those_of_its_currency() {
        for (text, decimals, scaled) in [
            ("$1,234.56", 2, "123456"),
            ("-$0.05", 2, "-5"),
            ("$12.34", 0, "123400"),
            ("-$12.34", 3, "-1234"),
            ("-$92,233,720,368,547,758.08", 0, "-922337203685477580800"),
        ] {
            let json = written(|out| money(out, text.as_bytes(), decimals)).unwrap();
            assert_eq!(decode_integer(&decode_base64(json.trim_matches('"'))), scaled, "{text}");
        }
    }

    #[test]
    fn floats_look_as_in_java() {
        for (text, java) in [
            ("0", "0.0"),
            ("-0", "-0.0"),
            ("5", "5.0"),
            ("3.3", "3.3"),
            ("-100", "-100.0"),
            ("1234567.5", "1234567.5"),
            ("9999999", "9999999.0"),
            ("10000000", "1.0E7"),
            ("12345678.9", "1.23456789E7"),
            ("0.001", "0.001"),
            ("0.0001", "1.0E-4"),
            ("1e+20", "1.0E20"),
            ("1.5e-07", "1.5E-7"),
            ("4.94065645841247e-324", "4.94065645841247E-324"),
            ("1.7976931348623157e+308", "1.7976931348623157E308"),
            ("NaN", "\"NaN\""),
            ("-Infinity", "\"-Infinity\""),
        ] {
            assert_eq!(written(|out| float(out, text.as_bytes())).as_deref(), Some(java), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for text in ["", "-", ".", "1.2.3", "1e", "1e+", "0x10", " 1", "1 ", "--1", "nan"] {
            let text = text.as_bytes();
            assert_eq!(written(|out| integer(out, text)), None);
            assert_eq!(written(|out| float(out, text)), None);
            assert_eq!(written(|out| decimal(out, text, 2)), None);
            assert_eq!(written(|out| variable_scale_decimal(out, text)), None);
        }
    }

    proptest! {
        #[test]
        fn decimals_of_any_length_decode_to_their_digits(text in "-?[1-9][0-9]{0,90}\\.[0-9]{3}") {
            let json = written(|out| decimal(out, text.as_bytes(), 3)).unwrap();
            let bytes = decode_base64(json.trim_matches('"'));
            prop_assert_eq!(decode_integer(&bytes), text.replace('.', ""));
            let is_minimal = match bytes[..] {
                [0, next, ..] => next >= 0x80,
                [0xFF, next, ..] => next < 0x80,
                _ => true,
            };
            prop_assert!(is_minimal, "{bytes:?}");
        }

        #[test]
        fn the_short_and_the_long_way_agree(value in any::<i64>()) {
            let digits = value.unsigned_abs().to_string();
            let long = big_two_complement(value < 0, digits.bytes().map(|digit| digit - b'0'));
            let mut short = Vec::new();
            unscaled(&mut short, value < 0, digits.as_bytes(), b"", 0);
            prop_assert_eq!(decode_base64(std::str::from_utf8(&short).unwrap()), long);
        }

        #[test]
        fn floats_keep_their_value(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            let json = written(|out| float(out, format!("{value:e}").replace("e", "e+").replace("+-", "-").as_bytes()));
            prop_assert_eq!(json.unwrap().parse::<f64>().unwrap(), value);
        }
    }
}
