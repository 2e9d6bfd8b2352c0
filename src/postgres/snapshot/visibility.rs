//! Which transactions a snapshot sees.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What `pg_current_snapshot()` says (PostgreSQL manual, "Transaction ID and Snapshot Information Functions"), without
/// what makes no difference: equal ones see the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visibility {
    /// Every transaction from here on had not ended, and the one before had.
    xmax: u64,
    /// Those below that had not ended, in rising order.
    in_progress: Vec<u64>,
}

impl Visibility {
    /// Whether it sees what the transaction with this number has committed. The stream's numbers have 32 bits: the one
    /// meant is the nearest to the snapshot.
    pub fn sees(&self, xid: u32) -> bool {
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        let xid = self.xmax.saturating_add_signed(distance.into());
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }
}

/// No snapshot in the server's text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a snapshot as pg_current_snapshot() gives it")]
pub struct ParseVisibilityError(String);

impl FromStr for Visibility {
    type Err = ParseVisibilityError;

    /// Reads `xmin:xmax:xip,xip,…`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let mut fields = text.splitn(3, ':');
            // The oldest that had not ended, which the list says too.
            fields.next()?.parse::<u64>().ok()?;
            let mut xmax: u64 = fields.next()?.parse().ok()?;
            let list = fields.next()?.split(',').filter(|xid| !xid.is_empty());
            let mut in_progress = list.map(|xid| xid.parse().ok()).collect::<Option<Vec<u64>>>()?;
            in_progress.sort_unstable();
            while in_progress.pop_if(|last| xmax.checked_sub(1) == Some(*last)).is_some() {
                xmax -= 1;
            }
            Some(Visibility { xmax, in_progress })
        };
        read().ok_or_else(|| ParseVisibilityError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_ended_is_seen_also_when_the_numbers_have_gone_round() {
        let epoch = 3u64 << 32;
        for base in [1000, epoch + 1000, epoch] {
            let text = format!("{}:{}:{},{}", base + 10, base + 20, base + 10, base + 15);
            let visibility: Visibility = text.parse().unwrap();
            let sees = |offset: i64| visibility.sees(base.wrapping_add_signed(offset) as u32);
            for (offset, expected) in [
                (-500, true),
                (9, true),
                (10, false),
                (11, true),
                (15, false),
                (19, true),
                (20, false),
                (900, false),
            ] {
                assert_eq!(sees(offset), expected, "{base} {offset}");
            }
        }
    }

    #[test]
    fn those_that_see_the_same_are_equal() {
        let read = |text: &str| text.parse::<Visibility>().unwrap();
        assert_eq!(read("10:20:15"), read("15:20:15"));
        assert_eq!(read("15:20:15,18,19"), read("15:18:15"));
        assert_ne!(read("10:20:15"), read("10:20:16"));
        assert_eq!(read("0:1:0"), read("0:0:"));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:2:3,,x"] {
            assert!(text.parse::<Visibility>().is_err(), "{text}");
        }
        assert!("10:20:".parse::<Visibility>().unwrap().sees(19));
    }
}
