//! Dates, times and intervals, in the styles that our sessions set: ISO and postgres, with the time zone UTC.

use std::io::Write as _;

use super::take;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Days since 2000.
pub(super) fn date(out: &mut Vec<u8>, value: &[u8]) -> Option<()> {
    match i32::from_be_bytes(value.try_into().ok()?) {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        days => {
            let era = calendar(out, days.into());
            out.extend_from_slice(era);
        }
    }
    Some(())
}

/// Microseconds since midnight.
pub(super) fn time(out: &mut Vec<u8>, value: &[u8]) -> Option<()> {
    clock(out, i64::from_be_bytes(value.try_into().ok()?).try_into().ok()?);
    Some(())
}

/// Microseconds since midnight, and the zone in seconds west of Greenwich.
pub(super) fn time_with_zone(out: &mut Vec<u8>, mut value: &[u8]) -> Option<()> {
    let micros = i64::from_be_bytes(take(&mut value)?);
    let zone = i32::from_be_bytes(value.try_into().ok()?);
    clock(out, micros.try_into().ok()?);
    let seconds = zone.unsigned_abs();
    let _ = write!(out, "{}{:02}", if zone <= 0 { '+' } else { '-' }, seconds / 3600);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    if minutes != 0 || seconds != 0 {
        let _ = write!(out, ":{minutes:02}");
    }
    if seconds != 0 {
        let _ = write!(out, ":{seconds:02}");
    }
    Some(())
}

/// Microseconds since 2000.
pub(super) fn timestamp(out: &mut Vec<u8>, value: &[u8], zone: &str) -> Option<()> {
    match i64::from_be_bytes(value.try_into().ok()?) {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        micros => {
            let era = calendar(out, micros.div_euclid(DAY));
            out.push(b' ');
            clock(out, micros.rem_euclid(DAY).unsigned_abs());
            out.extend_from_slice(zone.as_bytes());
            out.extend_from_slice(era);
        }
    }
    Some(())
}

/// Microseconds, days and months.
pub(super) fn interval(out: &mut Vec<u8>, mut value: &[u8]) -> Option<()> {
    let micros = i64::from_be_bytes(take(&mut value)?);
    let days = i32::from_be_bytes(take(&mut value)?);
    let months = i32::from_be_bytes(value.try_into().ok()?);
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => out.extend_from_slice(b"infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => out.extend_from_slice(b"-infinity"),
        _ => {
            let start = out.len();
            // What comes behind a negative part has a sign in any case.
            let mut is_behind_negative = false;
            for (part, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
                if part != 0 {
                    let space = if out.len() > start { " " } else { "" };
                    let sign = if is_behind_negative && part > 0 { "+" } else { "" };
                    let plural = if part == 1 { "" } else { "s" };
                    let _ = write!(out, "{space}{sign}{part} {unit}{plural}");
                    is_behind_negative = part < 0;
                }
            }
            if micros != 0 || out.len() == start {
                if out.len() > start {
                    out.push(b' ');
                }
                match micros {
                    ..0 => out.push(b'-'),
                    _ if is_behind_negative => out.push(b'+'),
                    _ => {}
                }
                clock(out, micros.unsigned_abs());
            }
        }
    }
    Some(())
}

/// Appends year, month and day of a day that is counted from 2000-01-01, and gives what names the era, behind the rest.
fn calendar(out: &mut Vec<u8>, days: i64) -> &'static [u8] {
    // In cycles of 400 years, whose years begin in March so that the leap day is a year's last.
    const CYCLE: i64 = 146_097;
    let since = days + 730_425;
    let (cycle, day) = (since.div_euclid(CYCLE), since.rem_euclid(CYCLE));
    let year_of_cycle = (day - day / 1_460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day_of_year = day - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    let (year, era) = if year > 0 { (year, &b""[..]) } else { (1 - year, &b" BC"[..]) };
    let _ = write!(out, "{year:04}-{month:02}-{day_of_month:02}");
    era
}

/// Appends hours, minutes and seconds.
fn clock(out: &mut Vec<u8>, micros: u64) {
    let second = SECOND.unsigned_abs();
    let (seconds, fraction) = (micros / second, micros % second);
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let text = format!(".{fraction:06}");
        out.extend_from_slice(text.trim_end_matches('0').as_bytes());
    }
}
