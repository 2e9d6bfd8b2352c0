//! Little-endian fields, as all of the log's own files have them; and the source position, which two of them share.

use crate::change::Lsn;
use crate::log::SourcePosition;

/// Takes fields off the front of some bytes. `None` once they do not suffice.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// A count of things of at least `each` bytes, which must be able to follow.
    pub fn count(&mut self, each: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count.checked_mul(each)? <= self.0.len()).then_some(count)
    }

    pub fn position(&mut self) -> Option<SourcePosition> {
        let last_commit = match self.u8()? {
            0 => None,
            _ => Some(()),
        };
        let lsn = Lsn(self.u64()?);
        Some(SourcePosition {
            last_commit: last_commit.map(|()| lsn),
            end_lsn: Lsn(self.u64()?),
            last_record_end: Lsn(self.u64()?),
            acked_through: Lsn(self.u64()?),
            timeline: self.u32()?,
            system_identifier: self.u64()?,
            slot_generation: self.u32()?,
        })
    }
}

/// Appends a field.
pub trait Put {
    fn put(&mut self, field: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    fn position(&mut self, position: &SourcePosition) {
        self.u8(position.last_commit.is_some().into());
        self.u64(position.last_commit.unwrap_or(Lsn::ZERO).0);
        self.u64(position.end_lsn.0);
        self.u64(position.last_record_end.0);
        self.u64(position.acked_through.0);
        self.u32(position.timeline);
        self.u64(position.system_identifier);
        self.u32(position.slot_generation);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, field: &[u8]) {
        self.extend_from_slice(field);
    }
}
