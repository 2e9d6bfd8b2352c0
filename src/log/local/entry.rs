//! What a segment is made of: entries, each with length and checksum.
//!
//! ```text
//! length u32 │ crc u32 │ kind u8 │ ...          `length` counts from `kind` on
//!   batch    partition u32, then the record batch as clients receive it
//!   commit   number, chain, how many batches it covers, time, source position, the new ends
//!   discard  how many of the batches that no commit has covered yet are kept
//! ```
//!
//! A commit covers the *first* so many of the batches that are not covered yet; mostly all of them, but a transaction
//! that is still being appended may already lie before it. A discard drops such batches when their transaction is
//! aborted and they can no longer be cut off, because a commit stands behind them.
//!
//! A merged segment has batches only; see `merge.rs`.
//!
//! Two things make old bytes, which a crash can bring back, unable to pass for new ones. An entry's checksum starts from
//! its [`Seal`]: the log's id, the segment's number, whether it is merged, and the position in it. And a commit carries the **chain**, a running
//! checksum over the checksums of all entries before it: it is valid only behind precisely those.

use super::wire::{Fields, Put};
use crate::log::{Offset, PartitionId, SourcePosition};

/// Length and checksum.
pub const PREFIX: usize = 8;
/// Where the record batch begins in a batch entry.
pub const BATCH_AT: usize = PREFIX + 1 + 4;
/// No entry is longer: a batch is far below this, and so is a commit of every partition that there may be.
pub const MAX_LEN: usize = i32::MAX as usize;

const BATCH: u8 = 1;
const COMMIT: u8 = 2;
const DISCARD: u8 = 3;

/// What the checksums of a segment's entries start from.
#[derive(Debug, Clone, Copy)]
pub struct Seal(u32);

impl Seal {
    pub fn new(log_id: u128, sequence: u64) -> Self {
        Seal(crc32c::crc32c_append(crc32c::crc32c(&log_id.to_le_bytes()), &sequence.to_le_bytes()))
    }

    /// Of the file in which the segment's batches are merged.
    pub fn new_merged(log_id: u128, sequence: u64) -> Self {
        Seal(crc32c::crc32c_append(Seal::new(log_id, sequence).0, b"merged"))
    }

    fn checksum(self, position: u64, length: u32, body: &[u8]) -> u32 {
        let mut head = [0; 12];
        head[..8].copy_from_slice(&position.to_le_bytes());
        head[8..].copy_from_slice(&length.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &head), body)
    }
}

/// The chain after an entry with checksum `crc`.
pub fn chain(before: u32, crc: u32) -> u32 {
    crc32c::crc32c_append(before, &crc.to_le_bytes())
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitEntry {
    pub number: u64,
    /// The chain before this entry.
    pub chain: u32,
    /// How many of the batches not covered yet it covers, from the first.
    pub covered: u32,
    /// When it was written, in milliseconds since 1970.
    pub appended: i64,
    pub position: SourcePosition,
    /// The new high watermark of every partition touched.
    pub ends: Vec<(PartitionId, Offset)>,
}

/// An entry, read.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Batch { partition: PartitionId, batch: &'a [u8] },
    Commit(CommitEntry),
    Discard { keep: u32 },
}

/// Begins a batch entry; the record batch is appended next. Gives the entry's start, for [`finish`].
pub fn begin_batch(out: &mut Vec<u8>, partition: PartitionId) -> usize {
    let start = begin(out, BATCH);
    out.u32(partition.0);
    start
}

/// Appends a commit without its checksum; for [`finish`].
pub fn put_commit(out: &mut Vec<u8>, commit: &CommitEntry) -> usize {
    let start = begin(out, COMMIT);
    out.u64(commit.number);
    out.u32(commit.chain);
    out.u32(commit.covered);
    out.i64(commit.appended);
    Put::position(out, &commit.position);
    out.u32(commit.ends.len() as u32);
    for (partition, end) in &commit.ends {
        out.u32(partition.0);
        out.i64(end.0);
    }
    start
}

/// Appends a discard without its checksum; for [`finish`].
pub fn put_discard(out: &mut Vec<u8>, keep: u32) -> usize {
    let start = begin(out, DISCARD);
    out.u32(keep);
    start
}

fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    out.push(kind);
    start
}

/// Puts length and checksum into the entry from `start` to the end of `out`, which will stand at `position`. Gives the
/// checksum.
pub fn finish(out: &mut [u8], start: usize, seal: Seal, position: u64) -> u32 {
    let (prefix, body) = out[start..].split_at_mut(PREFIX);
    let length = body.len() as u32;
    let crc = seal.checksum(position, length, body);
    prefix[..4].copy_from_slice(&length.to_le_bytes());
    prefix[4..].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Length of the whole entry that `prefix` begins, if it can be one.
pub fn whole_len(prefix: &[u8]) -> Option<usize> {
    let length = Fields(prefix).u32()? as usize;
    (1..=MAX_LEN).contains(&length).then_some(PREFIX + length)
}

/// Checks and reads the one entry that `bytes` must be, at `position`; gives its checksum with it.
pub fn read(bytes: &[u8], seal: Seal, position: u64) -> Option<(u32, Entry<'_>)> {
    let mut fields = Fields(bytes);
    let (length, crc) = (fields.u32()?, fields.u32()?);
    let body = fields.0;
    if body.len() != length as usize || seal.checksum(position, length, body) != crc {
        return None;
    }
    let entry = match fields.u8()? {
        BATCH => Entry::Batch { partition: PartitionId(fields.u32()?), batch: fields.0 },
        COMMIT => Entry::Commit(commit(&mut fields)?),
        DISCARD => Entry::Discard { keep: fields.u32()? },
        _ => return None,
    };
    Some((crc, entry))
}

fn commit(fields: &mut Fields<'_>) -> Option<CommitEntry> {
    let mut commit = CommitEntry {
        number: fields.u64()?,
        chain: fields.u32()?,
        covered: fields.u32()?,
        appended: fields.i64()?,
        position: fields.position()?,
        ends: Vec::new(),
    };
    let count = fields.count(12)?;
    commit.ends.reserve(count);
    for _ in 0..count {
        commit.ends.push((PartitionId(fields.u32()?), Offset(fields.i64()?)));
    }
    Some(commit)
}

/// Whether the entry that begins `bytes` looks like a commit later than `number`; its checksum decides.
pub fn may_be_commit_after(bytes: &[u8], number: u64) -> bool {
    let mut fields = Fields(bytes);
    let head = (fields.u32(), fields.u32(), fields.u8(), fields.u64());
    matches!(head, (Some(_), Some(_), Some(COMMIT), Some(found)) if found > number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::conformance::position;
    use proptest::prelude::*;

    fn commit(ends: Vec<(u32, i64)>) -> CommitEntry {
        let ends = ends.into_iter().map(|(partition, end)| (PartitionId(partition), Offset(end))).collect();
        CommitEntry { number: 7, chain: 9, covered: 3, appended: 11, position: position(5), ends }
    }

    proptest! {
        #[test]
        fn a_commit_is_read_as_it_was_written(ends in proptest::collection::vec(any::<(u32, i64)>(), 0..20), at in any::<u64>()) {
            let (seal, commit) = (Seal::new(1, 2), commit(ends));
            let mut out = vec![1, 2, 3];
            let start = put_commit(&mut out, &commit);
            let crc = finish(&mut out, start, seal, at);
            prop_assert_eq!(whole_len(&out[start..]), Some(out.len() - start));
            prop_assert!(may_be_commit_after(&out[start..], 6) && !may_be_commit_after(&out[start..], 7));
            prop_assert_eq!(read(&out[start..], seal, at), Some((crc, Entry::Commit(commit))));
            // Elsewhere, or in another segment or log, it is nothing.
            prop_assert_eq!(read(&out[start..], seal, at.wrapping_add(1)), None);
            prop_assert_eq!(read(&out[start..], Seal::new(1, 3), at), None);
            prop_assert_eq!(read(&out[start..], Seal::new(2, 2), at), None);
        }

        #[test]
        fn garbage_is_no_entry(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..5u8) {
            // With a right checksum, so that the content is looked at.
            bytes.splice(0..0, [0; PREFIX].into_iter().chain([kind]));
            finish(&mut bytes, 0, Seal::new(1, 2), 3);
            let _ = read(&bytes, Seal::new(1, 2), 3);
            let _ = read(&bytes[..bytes.len() / 2], Seal::new(1, 2), 3);
        }
    }
}
