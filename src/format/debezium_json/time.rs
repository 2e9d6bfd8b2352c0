//! Dates and times: what Debezium writes of them.
//!
//! PostgreSQL has no year 0, Java's ISO forms have one, and signs. A function gives `None` when the text is not of its
//! type.

use super::json;
use crate::format::digits::Digits;
use crate::format::text::time::{self as text_form, DAY, Extended, Moment, SECOND};

/// Microseconds of a twelfth of 365.25 days.
const MONTH: i64 = 2_629_800 * SECOND;

/// What Debezium writes for an infinite `date`: the days of the two dates that it uses as marks.
const DATE_INFINITY: i64 = -2_147_472_692;
const DATE_MINUS_INFINITY: i64 = -2_147_472_691;
/// What it writes for an infinite `timestamp`, in microseconds.
const TIMESTAMP_INFINITY: i64 = 9_223_372_036_825_200_000;
const TIMESTAMP_MINUS_INFINITY: i64 = -9_223_372_036_832_400_000;

/// Unit of a number of a `time` or `timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Up to three fractional digits.
    Millis,
    /// More than three.
    Micros,
}

impl Unit {
    fn of(self, micros: i64) -> i64 {
        match self {
            Unit::Millis => micros.div_euclid(1000),
            Unit::Micros => micros,
        }
    }
}

/// Days since 1970.
pub(super) fn date(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let days = match text_form::date(text)? {
        Extended::Finite(days) => days,
        Extended::Infinity => DATE_INFINITY,
        Extended::MinusInfinity => DATE_MINUS_INFINITY,
    };
    json::integer(out, days);
    Some(())
}

/// Time since midnight; `24:00:00` is a whole day.
pub(super) fn time(out: &mut Vec<u8>, text: &[u8], unit: Unit) -> Option<()> {
    json::integer(out, unit.of(text_form::time(text)?));
    Some(())
}

/// Time of day at UTC, as a string with as many fractional digits as needed.
pub(super) fn time_with_zone(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let (local, offset) = text_form::time_with_zone(text)?;
    out.push(b'"');
    if local == DAY && offset == 0 {
        out.extend_from_slice(b"24:00:00");
    } else {
        let micros = (local - offset).rem_euclid(DAY);
        clock(out, micros);
        fraction(out, micros % SECOND, None);
    }
    out.extend_from_slice(b"Z\"");
    Some(())
}

/// Time since 1970 without regard to time zones. In microseconds PostgreSQL's last years do not fit and are clamped.
pub(super) fn timestamp(out: &mut Vec<u8>, text: &[u8], unit: Unit) -> Option<()> {
    let time = match text_form::timestamp(text)? {
        Extended::Finite(Moment { days, micros }) => {
            days.saturating_mul(unit.of(DAY)).saturating_add(unit.of(micros))
        }
        Extended::Infinity => unit.of(TIMESTAMP_INFINITY),
        Extended::MinusInfinity => unit.of(TIMESTAMP_MINUS_INFINITY),
    };
    json::integer(out, time);
    Some(())
}

/// A moment at UTC, as a string with exactly `digits` fractional digits (with 0, as many as needed).
pub(super) fn timestamp_with_zone(out: &mut Vec<u8>, text: &[u8], digits: usize) -> Option<()> {
    if let Some((date, clock, decimals)) = utc_parts(text) {
        let mut buffer = *b"\"0000-00-00T00:00:00.000000Z\"";
        buffer.get_mut(1..11)?.copy_from_slice(date);
        buffer.get_mut(12..20)?.copy_from_slice(clock);
        if digits >= decimals.len() && digits > 0 {
            buffer.get_mut(21..21 + decimals.len())?.copy_from_slice(decimals);
            out.extend_from_slice(buffer.get(..21 + digits)?);
            out.extend_from_slice(b"Z\"");
            return Some(());
        }
    }
    let Extended::Finite(Moment { days, micros }) = text_form::timestamp_with_zone(text)? else {
        json::string(out, text);
        return Some(());
    };
    let (year, month, day) = text_form::civil_from_days(days);
    out.push(b'"');
    match year {
        10_000.. => out.push(b'+'),
        ..0 => out.push(b'-'),
        _ => {}
    }
    let width = if year.abs() > 9999 { Digits::new(year.unsigned_abs()).as_bytes().len() } else { 4 };
    json::padded(out, year.unsigned_abs(), width);
    out.push(b'-');
    json::padded(out, month as u64, 2);
    out.push(b'-');
    json::padded(out, day as u64, 2);
    out.push(b'T');
    clock(out, micros);
    fraction(out, micros % SECOND, Some(digits).filter(|&digits| digits > 0));
    out.extend_from_slice(b"Z\"");
    Some(())
}

/// Microseconds, a month counted as a twelfth of 365.25 days. Clamped to 64 bits.
pub(super) fn interval(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let micros = match text_form::interval(text)? {
        Extended::Finite(interval) => {
            let micros = i128::from(interval.months) * i128::from(MONTH)
                + i128::from(interval.days) * i128::from(DAY)
                + i128::from(interval.micros);
            micros.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
        }
        Extended::Infinity => i64::MAX,
        Extended::MinusInfinity => i64::MIN,
    };
    json::integer(out, micros);
    Some(())
}

/// `date`, `clock` and fraction digits of the commonest text, `2026-01-31 23:59:59[.123456]+00`.
#[inline]
fn utc_parts(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let text = text.strip_suffix(b"+00")?;
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, rest) = rest.strip_prefix(b" ")?.split_at_checked(8)?;
    let decimals = match rest {
        [] => rest,
        [b'.', decimals @ ..] if (1..=6).contains(&decimals.len()) => decimals,
        _ => return None,
    };
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *date else { return None };
    let [h1, h2, b':', n1, n2, b':', s1, s2] = *clock else { return None };
    let are_digits = [y1, y2, y3, y4, m1, m2, d1, d2, h1, h2, n1, n2, s1, s2].iter().all(u8::is_ascii_digit);
    (are_digits && decimals.iter().all(u8::is_ascii_digit)).then_some((date, clock, decimals))
}

/// `23:59:59` of a time of day in microseconds.
fn clock(out: &mut Vec<u8>, micros: i64) {
    let seconds = (micros / SECOND) as u64;
    json::padded(out, seconds / 3600, 2);
    out.push(b':');
    json::padded(out, seconds / 60 % 60, 2);
    out.push(b':');
    json::padded(out, seconds % 60, 2);
}

/// `.123456`: exactly `digits`, or as many as are needed, then perhaps none.
fn fraction(out: &mut Vec<u8>, micros: i64, digits: Option<usize>) {
    let digits = digits.unwrap_or_else(|| {
        let zeros = (1..=6).take_while(|&zeros| micros % 10_i64.pow(zeros) == 0).count();
        6 - zeros
    });
    if digits == 0 {
        return;
    }
    let shown = micros / 10_i64.pow(6_u32.saturating_sub(digits as u32));
    out.push(b'.');
    json::padded(out, shown as u64, digits);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::debezium_json::tests::written;
    use proptest::prelude::*;

    #[test]
    fn dates_are_days_since_1970() {
        for (text, days) in [
            ("1970-01-01", "0"),
            ("1969-12-31", "-1"),
            ("2000-02-29", "11016"),
            ("2026-11-22", "20779"),
            ("0001-01-01", "-719162"),
            ("0001-12-31 BC", "-719163"),
            ("5874897-12-31", "2145042905"),
            ("infinity", "-2147472692"),
            ("-infinity", "-2147472691"),
        ] {
            assert_eq!(written(|out| date(out, text.as_bytes())).as_deref(), Some(days), "{text}");
        }
    }

    #[test]
    fn times_are_counted_from_midnight() {
        for (text, micros, millis) in [
            ("00:00:00", "0", "0"),
            ("13:51:30.123", "49890123000", "49890123"),
            ("23:59:59.999999", "86399999999", "86399999"),
            ("24:00:00", "86400000000", "86400000"),
        ] {
            assert_eq!(written(|out| time(out, text.as_bytes(), Unit::Micros)).as_deref(), Some(micros));
            assert_eq!(written(|out| time(out, text.as_bytes(), Unit::Millis)).as_deref(), Some(millis));
        }
    }

    #[test]
    fn times_with_zone_are_moved_to_utc() {
        for (text, iso) in [
            ("13:51:30+02", "\"11:51:30Z\""),
            ("13:51:30.10+02", "\"11:51:30.1Z\""),
            ("23:30:00.000001-03:30", "\"03:00:00.000001Z\""),
            ("00:10:00+00:19:32", "\"23:50:28Z\""),
            ("24:00:00+00", "\"24:00:00Z\""),
        ] {
            assert_eq!(written(|out| time_with_zone(out, text.as_bytes())).as_deref(), Some(iso), "{text}");
        }
    }

    #[test]
    fn timestamps_are_counted_from_1970() {
        for (text, micros, millis) in [
            ("1970-01-01 00:00:00", "0", "0"),
            ("2016-11-04 13:51:30.123456", "1478267490123456", "1478267490123"),
            ("1969-12-31 23:59:59.999999", "-1", "-1"),
            ("0001-12-31 23:59:59 BC", "-62135596801000000", "-62135596801000"),
            ("294276-12-31 23:59:59.999999", "9223372036854775807", "9224318015999999"),
            ("infinity", "9223372036825200000", "9223372036825200"),
            ("-infinity", "-9223372036832400000", "-9223372036832400"),
        ] {
            assert_eq!(
                written(|out| timestamp(out, text.as_bytes(), Unit::Micros)).as_deref(),
                Some(micros),
                "{text}"
            );
            assert_eq!(
                written(|out| timestamp(out, text.as_bytes(), Unit::Millis)).as_deref(),
                Some(millis),
                "{text}"
            );
        }
    }

    #[test]
    fn timestamps_with_zone_are_iso_strings_at_utc() {
        for (text, digits, iso) in [
            ("2026-01-01 00:00:00+00", 6, "2026-01-01T00:00:00.000000Z"),
            ("2026-01-01 00:00:00.12+00", 6, "2026-01-01T00:00:00.120000Z"),
            ("2026-01-01 00:00:00.123+00", 3, "2026-01-01T00:00:00.123Z"),
            ("2026-01-01 00:00:00+00", 0, "2026-01-01T00:00:00Z"),
            ("2026-01-01 01:30:00.5+02", 6, "2025-12-31T23:30:00.500000Z"),
            ("2026-01-01 01:30:00-03:30", 3, "2026-01-01T05:00:00.000Z"),
            ("294276-12-31 23:59:59.999999+00", 6, "+294276-12-31T23:59:59.999999Z"),
            ("10000-01-01 00:00:00+00", 6, "+10000-01-01T00:00:00.000000Z"),
            ("0001-12-31 00:00:00+00 BC", 6, "0000-12-31T00:00:00.000000Z"),
            ("0044-03-15 12:00:00+00 BC", 6, "-0043-03-15T12:00:00.000000Z"),
            ("infinity", 6, "infinity"),
            ("-infinity", 6, "-infinity"),
        ] {
            let json = written(|out| timestamp_with_zone(out, text.as_bytes(), digits));
            assert_eq!(json, Some(format!("\"{iso}\"")), "{text}");
        }
    }

    #[test]
    fn intervals_are_microseconds_with_average_months() {
        for (text, micros) in [
            ("1 year 2 mons 3 days 04:05:06.78", "37091106780000"),
            ("00:00:00", "0"),
            ("-00:00:00.000001", "-1"),
            ("1 mon", "2629800000000"),
            ("-1 days +02:03:00", "-79020000000"),
            ("2562047788:00:54.775807", "9223372036854775807"),
        ] {
            assert_eq!(written(|out| interval(out, text.as_bytes())).as_deref(), Some(micros), "{text}");
        }
    }

    #[test]
    fn other_styles_and_noise_are_refused() {
        for text in
            ["", "22/11/2026", "2026-13-01", "2026-01-00", "2026-01-01x", "P1Y", "1 fortnight", "1", "x"]
        {
            let text = text.as_bytes();
            assert_eq!(written(|out| date(out, text)), None);
            assert_eq!(written(|out| time(out, text, Unit::Micros)), None);
            assert_eq!(written(|out| time_with_zone(out, text)), None);
            assert_eq!(written(|out| timestamp(out, text, Unit::Micros)), None);
            assert_eq!(written(|out| timestamp_with_zone(out, text, 6)), None);
            assert_eq!(written(|out| interval(out, text)), None);
        }
    }

    proptest! {
        #[test]
        fn the_short_way_for_utc_agrees_with_the_long_one(
            days in -700_000_i64..2_900_000, micros in 0..DAY, digits in 1_usize..=6,
        ) {
            let (year, month, day) = text_form::civil_from_days(days);
            let micros = micros - micros % 10_i64.pow(6 - digits as u32);
            let mut text = format!("{year:04}-{month:02}-{day:02} ").into_bytes();
            clock(&mut text, micros);
            fraction(&mut text, micros % SECOND, None);
            let long = [&text[..], b"+00:00"].concat();
            text.extend_from_slice(b"+00");
            prop_assert_eq!(
                written(|out| timestamp_with_zone(out, &text, digits)),
                written(|out| timestamp_with_zone(out, &long, digits))
            );
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<Vec<u8>>(), digits in 0_usize..=6) {
            let mut out = Vec::new();
            date(&mut out, &text);
            time(&mut out, &text, Unit::Millis);
            time_with_zone(&mut out, &text);
            timestamp(&mut out, &text, Unit::Millis);
            timestamp_with_zone(&mut out, &text, digits);
            interval(&mut out, &text);
        }
    }
}
