//! Dates and times: from PostgreSQL's ISO text to what Debezium writes.
//!
//! PostgreSQL prints the proleptic Gregorian calendar with a ` BC` suffix (there is no year 0); Java's ISO forms have a
//! year 0 and signs. Everything is computed on days and microseconds since 1970. A function gives `None` when the
//! text is not of its type.

use super::json;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// A twelfth of 365.25 days.
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
    let days = match text {
        b"infinity" => DATE_INFINITY,
        b"-infinity" => DATE_MINUS_INFINITY,
        _ => {
            let (text, bc) = strip_bc(text);
            let (days, rest) = parse_date(text, bc)?;
            if !rest.is_empty() {
                return None;
            }
            days
        }
    };
    json::integer(out, days);
    Some(())
}

/// Time since midnight; `24:00:00` is a whole day.
pub(super) fn time(out: &mut Vec<u8>, text: &[u8], unit: Unit) -> Option<()> {
    let (micros, rest) = parse_time(text)?;
    if !rest.is_empty() {
        return None;
    }
    json::integer(out, unit.of(micros));
    Some(())
}

/// Time of day at UTC, as a string with as many fractional digits as needed.
pub(super) fn time_with_zone(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let (local, rest) = parse_time(text)?;
    let offset = parse_offset(rest)?;
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
    let time = match text {
        b"infinity" => unit.of(TIMESTAMP_INFINITY),
        b"-infinity" => unit.of(TIMESTAMP_MINUS_INFINITY),
        _ => {
            let (text, bc) = strip_bc(text);
            let (days, micros, rest) = parse_timestamp(text, bc)?;
            if !rest.is_empty() {
                return None;
            }
            days.saturating_mul(unit.of(DAY)).saturating_add(unit.of(micros))
        }
    };
    json::integer(out, time);
    Some(())
}

/// A moment at UTC, as a string with exactly `digits` fractional digits (with 0, as many as needed).
pub(super) fn timestamp_with_zone(out: &mut Vec<u8>, text: &[u8], digits: usize) -> Option<()> {
    if matches!(text, b"infinity" | b"-infinity") {
        json::string(out, text);
        return Some(());
    }
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
    let (text, bc) = strip_bc(text);
    let (days, micros, rest) = parse_timestamp(text, bc)?;
    let micros = micros - parse_offset(rest)?;
    let (year, month, day) = civil_from_days(days + micros.div_euclid(DAY));
    out.push(b'"');
    match year {
        10_000.. => out.push(b'+'),
        ..0 => out.push(b'-'),
        _ => {}
    }
    let width = if year.abs() > 9999 { json::Digits::new(year.unsigned_abs()).as_bytes().len() } else { 4 };
    json::padded(out, year.unsigned_abs(), width);
    out.push(b'-');
    json::padded(out, month as u64, 2);
    out.push(b'-');
    json::padded(out, day as u64, 2);
    out.push(b'T');
    let of_day = micros.rem_euclid(DAY);
    clock(out, of_day);
    fraction(out, of_day % SECOND, Some(digits).filter(|&digits| digits > 0));
    out.extend_from_slice(b"Z\"");
    Some(())
}

/// Microseconds, a month counted as a twelfth of 365.25 days. Clamped to 64 bits.
pub(super) fn interval(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let micros = match text {
        b"infinity" => i64::MAX,
        b"-infinity" => i64::MIN,
        _ => parse_interval(text)?,
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

fn strip_bc(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// `1998-12-31…`: days since 1970, and the rest of the text.
fn parse_date(text: &[u8], bc: bool) -> Option<(i64, &[u8])> {
    let (year, rest) = number(text, 4, 7)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?, 2, 2)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?, 2, 2)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if bc { 1 - year } else { year };
    Some((days_from_civil(year, month, day), rest))
}

/// `23:59:59[.123456]…`: microseconds since midnight, and the rest.
fn parse_time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hour, rest) = number(text, 2, 2)?;
    let (minute, rest) = number(rest.strip_prefix(b":")?, 2, 2)?;
    let (second, rest) = number(rest.strip_prefix(b":")?, 2, 2)?;
    if hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    let (micros, rest) = parse_fraction(rest)?;
    Some((hour * HOUR + minute * MINUTE + second * SECOND + micros, rest))
}

/// `[.123456]…`
fn parse_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(decimals) = text.strip_prefix(b".") else { return Some((0, text)) };
    let (digits, rest) = number(decimals, 1, 6)?;
    let width = decimals.len() - rest.len();
    Some(((width..6).fold(digits, |micros, _| micros * 10), rest))
}

/// `1998-12-31 23:59:59[.123456]…`: days since 1970, microseconds since midnight, and the rest.
fn parse_timestamp(text: &[u8], bc: bool) -> Option<(i64, i64, &[u8])> {
    let (days, rest) = parse_date(text, bc)?;
    let (micros, rest) = parse_time(rest.strip_prefix(b" ")?)?;
    Some((days, micros, rest))
}

/// `+02`, `-03:30` or `+00:19:32`, in microseconds; the whole text.
fn parse_offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, mut rest) = number(rest, 2, 2)?;
    let mut micros = hours * HOUR;
    for unit in [MINUTE, SECOND] {
        if let Some(more) = rest.strip_prefix(b":") {
            let (count, after) = number(more, 2, 2)?;
            micros += count * unit;
            rest = after;
        }
    }
    rest.is_empty().then_some(sign * micros)
}

/// PostgreSQL's own style: `1 year 2 mons -3 days +04:05:06.789`, any part absent.
fn parse_interval(text: &[u8]) -> Option<i64> {
    let mut micros: i128 = 0;
    let mut words = text.split(|&byte| byte == b' ');
    while let Some(word) = words.next() {
        let (sign, digits) = match word {
            [b'-', digits @ ..] => (-1, digits),
            [b'+', digits @ ..] => (1, digits),
            digits => (1, digits),
        };
        let (count, rest) = number(digits, 1, 10)?;
        let amount = if let Some(minutes) = rest.strip_prefix(b":") {
            let (minute, rest) = number(minutes, 2, 2)?;
            let (second, rest) = number(rest.strip_prefix(b":")?, 2, 2)?;
            let (fraction, rest) = parse_fraction(rest)?;
            if !rest.is_empty() {
                return None;
            }
            i128::from(count) * i128::from(HOUR) + i128::from(minute * MINUTE + second * SECOND + fraction)
        } else {
            let unit = match words.next()? {
                _ if !rest.is_empty() => return None,
                b"year" | b"years" => 12 * MONTH,
                b"mon" | b"mons" => MONTH,
                b"day" | b"days" => DAY,
                _ => return None,
            };
            i128::from(count) * i128::from(unit)
        };
        micros += sign * amount;
    }
    Some(micros.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

/// A number of `least` to `most` digits, and what follows it.
#[inline]
fn number(text: &[u8], least: usize, most: usize) -> Option<(i64, &[u8])> {
    let mut value = 0;
    let mut width = 0;
    for &byte in text.iter().take(most) {
        if !byte.is_ascii_digit() {
            break;
        }
        value = value * 10 + i64::from(byte - b'0');
        width += 1;
    }
    (width >= least).then(|| (value, text.get(width..).unwrap_or_default()))
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

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar. Years begin in March, so that a leap day ends
/// them and a 400-year era always has 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`]: year, month, day.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<String> {
        let mut out = Vec::new();
        write(&mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

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
        fn the_calendar_is_its_own_inverse(days in -2_500_000_000_i64..2_500_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }

        #[test]
        fn the_short_way_for_utc_agrees_with_the_long_one(
            days in -700_000_i64..2_900_000, micros in 0..DAY, digits in 1_usize..=6,
        ) {
            let (year, month, day) = civil_from_days(days);
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
