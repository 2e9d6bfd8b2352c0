//! Dates and times as people write them.

use crate::format::text::time::{DAY, Extended, SECOND, civil_from_days, timestamp_with_zone};

/// `2026-03-01T12:00:00Z` and the like, with an offset in place of `Z`: microseconds since 1970.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.replacen(['T', 't'], " ", 1);
    let text = match text.strip_suffix(['Z', 'z']) {
        Some(local) => format!("{local}+00"),
        None => text,
    };
    match timestamp_with_zone(text.as_bytes())? {
        Extended::Finite(moment) => moment.days.checked_mul(DAY)?.checked_add(moment.micros),
        _ => None,
    }
}

/// `2026-03-01`
pub(super) fn date(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `12:00:07.123456`, without digits that are zero.
pub(super) fn clock(micros: u64) -> String {
    let (seconds, fraction) = (micros / SECOND as u64, micros % SECOND as u64);
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match fraction {
        0 => clock,
        _ => format!("{clock}.{fraction:06}").trim_end_matches('0').to_owned(),
    }
}

/// `2026-03-01 12:00:07.123456`
pub(super) fn timestamp(micros: i64) -> String {
    format!("{} {}", date(micros.div_euclid(DAY)), clock(micros.rem_euclid(DAY) as u64))
}

/// `2026-03-01 12:00:07.123Z`, of milliseconds.
pub(super) fn moment(millis: i64) -> String {
    let seconds = millis.div_euclid(1000).saturating_mul(SECOND);
    format!("{}.{:03}Z", timestamp(seconds), millis.rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_they_are_written() {
        for micros in [0, -1, 1_767_225_600_123_456, 1_767_225_600_500_000, -62_135_596_800_000_000] {
            assert_eq!(parse(&format!("{}Z", timestamp(micros))), Some(micros), "{}", timestamp(micros));
        }
        assert_eq!(timestamp(1_767_225_600_120_000), "2026-01-01 00:00:00.12");
        assert_eq!(moment(-1), "1969-12-31 23:59:59.999Z");
        assert_eq!(parse("infinity"), None);
    }
}
