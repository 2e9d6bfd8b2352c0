//! Dates, times and intervals.
//!
//! PostgreSQL prints the proleptic Gregorian calendar with a ` BC` suffix; there is no year 0. Everything is computed on
//! days and microseconds since 1970.

/// Microseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
/// Microseconds of a day.
pub(crate) const DAY: i64 = 24 * HOUR;

/// A value of a type that knows infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extended<T> {
    Finite(T),
    Infinity,
    MinusInfinity,
}

impl<T> Extended<T> {
    /// Reads the infinities, and all else with `finite`.
    #[inline]
    fn read<'a>(text: &'a [u8], finite: impl FnOnce(&'a [u8]) -> Option<T>) -> Option<Self> {
        match text {
            b"infinity" => Some(Extended::Infinity),
            b"-infinity" => Some(Extended::MinusInfinity),
            _ => finite(text).map(Extended::Finite),
        }
    }
}

/// A moment: days since 1970-01-01, and microseconds of that day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) days: i64,
    /// Below [`DAY`], or all of it: `24:00:00`.
    pub(crate) micros: i64,
}

/// An interval, as PostgreSQL keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interval {
    pub(crate) months: i64,
    pub(crate) days: i64,
    pub(crate) micros: i64,
}

/// `1998-12-31`: days since 1970.
pub(crate) fn date(text: &[u8]) -> Option<Extended<i64>> {
    Extended::read(text, |text| {
        let (text, bc) = strip_bc(text);
        let (days, rest) = parse_date(text, bc)?;
        rest.is_empty().then_some(days)
    })
}

/// `23:59:59[.123456]`: microseconds since midnight; `24:00:00` is a whole day.
pub(crate) fn time(text: &[u8]) -> Option<i64> {
    let (micros, rest) = parse_time(text)?;
    rest.is_empty().then_some(micros)
}

/// `23:59:59[.123456]+02`: microseconds since midnight at that zone, and the zone's offset.
pub(crate) fn time_with_zone(text: &[u8]) -> Option<(i64, i64)> {
    let (micros, rest) = parse_time(text)?;
    Some((micros, parse_offset(rest)?))
}

/// `1998-12-31 23:59:59[.123456]`
#[inline]
pub(crate) fn timestamp(text: &[u8]) -> Option<Extended<Moment>> {
    Extended::read(text, |text| {
        let (text, bc) = strip_bc(text);
        let (moment, rest) = parse_timestamp(text, bc)?;
        rest.is_empty().then_some(moment)
    })
}

/// `1998-12-31 23:59:59[.123456]+02`, moved to UTC.
#[inline]
pub(crate) fn timestamp_with_zone(text: &[u8]) -> Option<Extended<Moment>> {
    Extended::read(text, |text| {
        let (text, bc) = strip_bc(text);
        let (Moment { days, micros }, rest) = parse_timestamp(text, bc)?;
        let micros = micros - parse_offset(rest)?;
        Some(Moment { days: days + micros.div_euclid(DAY), micros: micros.rem_euclid(DAY) })
    })
}

/// `1 year 2 mons -3 days +04:05:06.789`, any part absent.
pub(crate) fn interval(text: &[u8]) -> Option<Extended<Interval>> {
    Extended::read(text, parse_interval)
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

/// `1998-12-31 23:59:59[.123456]…`, and the rest.
fn parse_timestamp(text: &[u8], bc: bool) -> Option<(Moment, &[u8])> {
    let (days, rest) = parse_date(text, bc)?;
    let (micros, rest) = parse_time(rest.strip_prefix(b" ")?)?;
    Some((Moment { days, micros }, rest))
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

fn parse_interval(text: &[u8]) -> Option<Interval> {
    let mut interval = Interval::default();
    let mut words = text.split(|&byte| byte == b' ');
    while let Some(word) = words.next() {
        let (sign, digits) = match word {
            [b'-', digits @ ..] => (-1, digits),
            [b'+', digits @ ..] => (1, digits),
            digits => (1, digits),
        };
        let (count, rest) = number(digits, 1, 10)?;
        if let Some(minutes) = rest.strip_prefix(b":") {
            let (minute, rest) = number(minutes, 2, 2)?;
            let (second, rest) = number(rest.strip_prefix(b":")?, 2, 2)?;
            let (fraction, rest) = parse_fraction(rest)?;
            if !rest.is_empty() {
                return None;
            }
            // The least of 64 bits has no positive counterpart.
            let micros = i128::from(count) * i128::from(HOUR)
                + i128::from(minute * MINUTE + second * SECOND + fraction);
            interval.micros = i64::try_from(sign * micros).ok()?;
        } else {
            let count = sign as i64 * count;
            match words.next()? {
                _ if !rest.is_empty() => return None,
                b"year" | b"years" => interval.months += 12 * count,
                b"mon" | b"mons" => interval.months += count,
                b"day" | b"days" => interval.days += count,
                _ => return None,
            }
        }
    }
    Some(interval)
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
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
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

    #[test]
    fn an_interval_keeps_its_parts() {
        let interval_of = |months, days, micros| Some(Extended::Finite(Interval { months, days, micros }));
        for (text, expected) in [
            ("1 year 2 mons -3 days +04:05:06.78", interval_of(14, -3, 14_706_780_000)),
            ("-1 years -2 mons +3 days -04:05:06", interval_of(-14, 3, -14_706_000_000)),
            ("-2562047788:00:54.775808", interval_of(0, 0, i64::MIN)),
            ("2562047788:00:54.775808", None),
            ("infinity", Some(Extended::Infinity)),
        ] {
            assert_eq!(interval(text.as_bytes()), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_calendar_is_its_own_inverse(days in -2_500_000_000_i64..2_500_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
