//! What a client allows to be sent, and has not been sent yet.

use crate::grpc::records::Limits;
use crate::grpc::{MAX_MESSAGE_BYTES, MAX_MESSAGE_RECORDS};
use crate::proto;

/// Records and bytes. The bytes are below zero after a record that was larger than what was left of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    records: u64,
    bytes: i64,
}

impl Credit {
    /// Adds what the client gives.
    pub fn grant(&mut self, granted: proto::Credit) {
        self.records = self.records.saturating_add(granted.records);
        self.bytes = self.bytes.saturating_add(i64::try_from(granted.bytes).unwrap_or(i64::MAX));
    }

    /// Whether anything may be sent: the next record, however large.
    pub fn is_open(&self) -> bool {
        self.records > 0 && self.bytes > 0
    }

    /// What the next message may hold.
    pub fn limits(&self, decode: bool) -> Limits {
        Limits {
            records: usize::try_from(self.records).unwrap_or(usize::MAX).min(MAX_MESSAGE_RECORDS),
            bytes: u64::try_from(self.bytes).unwrap_or(0).min(MAX_MESSAGE_BYTES),
            decode,
        }
    }

    /// Takes off what is sent.
    pub fn take(&mut self, records: usize, bytes: u64) {
        self.records = self.records.saturating_sub(records as u64);
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(records: u64, bytes: u64) -> Credit {
        let mut credit = Credit::default();
        credit.grant(proto::Credit { records, bytes });
        credit
    }

    #[test]
    fn nothing_is_sent_until_both_are_granted() {
        assert!(!credit(0, 0).is_open());
        assert!(!credit(1, 0).is_open());
        assert!(!credit(0, 1).is_open());
        assert!(credit(1, 1).is_open());
    }

    #[test]
    fn a_record_larger_than_the_credit_is_paid_off_by_later_grants() {
        let mut credit = credit(5, 10);
        credit.take(1, 25);
        credit.grant(proto::Credit { records: 0, bytes: 15 });
        assert!(!credit.is_open());
        credit.grant(proto::Credit { records: 0, bytes: 1 });
        assert!(credit.is_open());
        assert_eq!(credit.limits(false).bytes, 1);
    }

    #[test]
    fn grants_without_end_mean_no_limit_but_that_of_a_message() {
        let mut credit = credit(u64::MAX, u64::MAX);
        credit.grant(proto::Credit { records: u64::MAX, bytes: u64::MAX });
        assert_eq!(credit.limits(false).records, MAX_MESSAGE_RECORDS);
        assert_eq!(credit.limits(false).bytes, MAX_MESSAGE_BYTES);
    }
}
