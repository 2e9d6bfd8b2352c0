//! `--from`: where reading begins.

use std::str::FromStr;

use super::time;
use crate::proto::{self, PartitionOffset, Topic, start};

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Earliest,
    Latest,
    /// In every partition.
    Offset(i64),
    /// Milliseconds since 1970.
    Time(i64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(From::Earliest),
            "latest" => Ok(From::Latest),
            digits if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map(From::Offset).map_err(|_| "no offset is that large".to_owned())
            }
            _ => time::parse(text)
                .map(|micros| From::Time(micros.div_euclid(1000)))
                .ok_or("use earliest, latest, an offset, or a time like 2026-03-01T12:00:00Z".to_owned()),
        }
    }
}

impl From {
    /// The same for the broker.
    pub(super) fn start(self, topic: &Topic) -> proto::Start {
        let from = match self {
            From::Earliest => start::From::Earliest(start::Earliest {}),
            From::Latest => start::From::Latest(start::Latest {}),
            From::Time(time_ms) => start::From::TimeMs(time_ms),
            From::Offset(offset) => {
                let of_partition = |partition| PartitionOffset {
                    topic: topic.name.clone(),
                    partition,
                    offset,
                    metadata: String::new(),
                };
                let offsets = (0..topic.partitions.len() as u32).map(of_partition).collect();
                start::From::Offsets(start::Offsets { offsets })
            }
        };
        proto::Start { from: Some(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_word_an_offset_or_a_time() {
        for (text, from) in [
            ("earliest", Some(From::Earliest)),
            ("latest", Some(From::Latest)),
            ("0", Some(From::Offset(0))),
            ("1700000000000", Some(From::Offset(1_700_000_000_000))),
            ("2026-01-01T00:00:00Z", Some(From::Time(1_767_225_600_000))),
            ("2026-01-01 01:00:00.5+01:00", Some(From::Time(1_767_225_600_500))),
            ("99999999999999999999", None),
            ("-1", None),
            ("", None),
            ("2026-01-01", None),
            ("yesterday", None),
        ] {
            assert_eq!(text.parse().ok(), from, "{text}");
        }
    }
}
