//! Amounts of `money`, in the text form of the locale `C`: `-$1,234.56`.

/// The number that PostgreSQL keeps: of the currency's smallest units, however many of them the locale `C` takes for a
/// whole.
pub(in crate::format) fn units(text: &[u8]) -> Option<i64> {
    let (is_negative, unsigned) = match text.strip_prefix(b"-") {
        Some(unsigned) => (true, unsigned),
        None => (false, text),
    };
    let digits = unsigned.strip_prefix(b"$")?;
    let mut units = 0_i64;
    for digit in digits.iter().filter(|byte| !matches!(byte, b',' | b'.')) {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        // Below zero there is room for one more.
        units = units.checked_mul(10)?.checked_sub(digit)?;
    }
    if is_negative { Some(units) } else { units.checked_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_nothing_else() {
        for (text, number) in [
            ("$0.00", Some(0)),
            ("$1,234.56", Some(123_456)),
            ("-$0.05", Some(-5)),
            ("$92,233,720,368,547,758.07", Some(i64::MAX)),
            ("-$92,233,720,368,547,758.08", Some(i64::MIN)),
            ("$92,233,720,368,547,758.08", None),
            ("1.234,50 €", None),
            ("($12.00)", None),
            ("", None),
        ] {
            assert_eq!(units(text.as_bytes()), number, "{text}");
        }
    }
}
