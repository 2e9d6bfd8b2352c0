//! Merges the small batches of a sealed segment, in a new file that has the same records.
//!
//! One transaction at a time makes one batch each, of a few hundred bytes; a consumer that reads a backlog of them spends
//! its time on headers. Here neighbouring batches of a partition become one, and all batches of a partition lie together,
//! so that a fetch is one read. Offsets, timestamps, and the bytes of keys, values and headers stay what they were (I4).
//!
//! The new file holds batches only: what commits say is of use to recovery alone, which never reads a sealed segment. The
//! written file is not touched. Which of the two is in force the checkpoint says, and the log's thread writes that; until
//! then, and after any error, the new file is a leftover.
//!
//! Runs on a thread of its own, beside commits. Memory: one read, one batch that is being built, one piece of output, and
//! the index of one partition.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::BATCH_LIMIT;
use super::entry;
use super::files::{File, Files, Open, failed};
use super::index::{self, IndexEntry, Row};
use super::segment::{self, Form, Segment, corrupt};
use crate::log::record_batch::{BatchBuilder, BatchError, BatchHeader, Codec, Compressor, HEADER_LEN};
use crate::log::{LogError, Offset, PartitionId};

/// Entries with at most this much of others between them are read at once.
const MAX_GAP: u64 = 4096;
/// But not more than this.
const MAX_READ: u64 = 1 << 20;
/// By how much a record may grow in a larger batch: its deltas of timestamp and offset, and its length.
const MAX_GROWTH: usize = 9 + 4 + 1;
/// The new file is written and fsynced in pieces of this size, so that a commit's fsync never waits behind more.
const PIECE: usize = 1 << 20;

/// A merge to run.
#[derive(Debug)]
pub struct Merge {
    pub files: Arc<dyn Files>,
    pub directory: PathBuf,
    pub log_id: u128,
    pub from: Arc<Segment>,
    pub from_len: u64,
    /// What the merged batches of each partition are compressed with; the default where that is not known.
    pub codecs: Vec<Codec>,
    /// Batches are merged up to this size, uncompressed and with their headers.
    pub max_batch_bytes: usize,
    /// Set by who does not want it any more.
    pub cancelled: Arc<AtomicBool>,
}

/// A merged segment: durable, and not in force yet.
#[derive(Debug)]
pub struct Merged {
    pub segment: Arc<Segment>,
    pub len: u64,
    /// The table of its index.
    pub rows: Vec<Row>,
}

/// Whether a segment of `len` bytes with so many partitions and batches has small batches that have neighbours.
pub fn is_worthwhile(len: u64, partitions: usize, batches: usize, max_batch_bytes: usize) -> bool {
    batches > partitions && len < batches as u64 * (max_batch_bytes / 16) as u64
}

impl Merge {
    /// Makes the merged segment. `None` when it was cancelled. Leaves nothing behind unless it succeeds.
    pub fn run(&self) -> Result<Option<Merged>, LogError> {
        let form = Form::Merged;
        let into = Segment::new(&self.files, &self.directory, self.log_id, self.from.sequence, form);
        let into = Arc::new(into);
        let merged = self.write(&into);
        if !matches!(merged, Ok(Some(_))) {
            for path in [&into.path, &into.index_path] {
                // It may not have come so far. What stays the next start removes.
                let _ = self.files.unlink(path);
            }
        }
        merged
    }

    fn write(&self, into: &Arc<Segment>) -> Result<Option<Merged>, LogError> {
        let rows = index::read(&*self.files, &self.from, self.from_len)?;
        let mut output = Output::create(self, into)?;
        for row in &rows {
            let entries = index::load(&*self.files, &self.from, row.slot)?;
            let mut next = row.first;
            let mut rest = &entries[..];
            while let Some(first) = rest.first() {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let (start, len, count) = together(rest);
                let bytes = self.from.read(start, len)?;
                let (now, later) = rest.split_at(count);
                for entry in now {
                    let from = (entry.position - first.position) as usize;
                    let bytes = &bytes[from..from + entry.len as usize];
                    let (header, batch) = self.from.check_batch(row.partition, entry, bytes)?;
                    if header.base_offset.0 != next {
                        let detail = "a batch does not continue its partition";
                        return Err(corrupt(&self.from.path, entry.position.into(), detail));
                    }
                    next = header.end_offset().0;
                    output.batch(row.partition, &header, batch, |error| {
                        corrupt(&self.from.path, entry.position.into(), error.to_string())
                    })?;
                }
                rest = later;
            }
            output.close_batch(row.partition)?;
        }
        output.write()?;
        let Output { written: len, index, .. } = output;
        let index: Vec<_> = index.iter().map(|(partition, entries)| (*partition, &entries[..])).collect();
        let rows = index::write(&*self.files, into, len, &index)?;
        let synced = self.files.sync_dir(&self.directory);
        synced.map_err(|error| failed("fsync", &self.directory, error))?;
        Ok(Some(Merged { segment: into.clone(), len, rows }))
    }
}

/// Start and length of what is read at once of `entries`, and how many of them it holds: neighbours, and always the first.
fn together(entries: &[IndexEntry]) -> (u64, usize, usize) {
    let start = entries.first().map_or(0, |entry| u64::from(entry.position));
    let mut end = start;
    let near = entries.iter().take_while(|entry| {
        let (at, len) = (u64::from(entry.position), u64::from(entry.len));
        let near = at >= end && at - end <= MAX_GAP && (end == start || at + len - start <= MAX_READ);
        if near {
            end = at + len;
        }
        near
    });
    let count = near.count();
    (start, (end - start) as usize, count)
}

/// The new file.
struct Output<'a> {
    merge: &'a Merge,
    into: &'a Segment,
    file: Arc<dyn File>,
    written: u64,
    /// Entries to be written.
    out: Vec<u8>,
    compressor: Compressor,
    index: Vec<(PartitionId, Vec<IndexEntry>)>,
    /// The batch that is being built, with the offset of its first record and its leader epoch.
    builder: BatchBuilder,
    base: Offset,
    leader_epoch: i32,
}

impl<'a> Output<'a> {
    fn create(merge: &'a Merge, into: &'a Segment) -> Result<Self, LogError> {
        let file = merge.files.open(&into.path, Open::Create);
        Ok(Output {
            merge,
            into,
            file: file.map_err(|error| failed("create", &into.path, error))?,
            written: 0,
            out: segment::header(merge.log_id, into.sequence),
            compressor: Compressor::default(),
            index: Vec::new(),
            builder: BatchBuilder::default(),
            base: Offset(0),
            leader_epoch: 0,
        })
    }

    /// Adds the partition's next batch.
    fn batch(
        &mut self,
        partition: PartitionId,
        header: &BatchHeader,
        batch: &[u8],
        bad: impl Fn(BatchError) -> LogError,
    ) -> Result<(), LogError> {
        let max = self.merge.max_batch_bytes;
        let large = max / 4;
        if batch.len() >= large {
            return self.copy(partition, header, batch);
        }
        let mut records = header.records(batch, BATCH_LIMIT).map_err(&bad)?;
        let most = self.builder.len() + records.payload().len() + header.records as usize * MAX_GROWTH;
        if HEADER_LEN + most > max || self.leader_epoch != header.leader_epoch {
            self.close_batch(partition)?;
        }
        if self.builder.is_empty() {
            if records.payload().len() >= large {
                return self.copy(partition, header, batch);
            }
            self.base = header.base_offset;
            self.leader_epoch = header.leader_epoch;
        }
        while let Some(record) = records.next_record().map_err(&bad)? {
            self.builder.append_again(&record);
        }
        Ok(())
    }

    /// Closes the batch that is being built, if there is one.
    fn close_batch(&mut self, partition: PartitionId) -> Result<(), LogError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let start = entry::begin_batch(&mut self.out, partition);
        let codec = self.merge.codecs.get(partition.0 as usize).copied().unwrap_or_default();
        self.builder.close(self.base, self.leader_epoch, codec, &mut self.compressor, &mut self.out);
        let max_timestamp = self.builder.max_timestamp();
        self.builder = BatchBuilder::with_buffer(std::mem::take(&mut self.builder).into_buffer());
        self.finish(partition, start, self.base, max_timestamp)
    }

    /// Takes over a batch as it is.
    fn copy(&mut self, partition: PartitionId, header: &BatchHeader, batch: &[u8]) -> Result<(), LogError> {
        self.close_batch(partition)?;
        let start = entry::begin_batch(&mut self.out, partition);
        self.out.extend_from_slice(batch);
        self.finish(partition, start, header.base_offset, header.max_timestamp)
    }

    fn finish(
        &mut self,
        partition: PartitionId,
        start: usize,
        base: Offset,
        max_timestamp: i64,
    ) -> Result<(), LogError> {
        let place = self.written + start as u64;
        let Ok(position) = u32::try_from(place) else {
            return Err(failed("merge", &self.into.path, std::io::ErrorKind::FileTooLarge.into()));
        };
        entry::finish(&mut self.out, start, self.into.seal, place);
        let len = (self.out.len() - start) as u32;
        let entry = IndexEntry { base: base.0, max_timestamp, position, len };
        match self.index.last_mut() {
            Some((last, entries)) if *last == partition => entries.push(entry),
            _ => self.index.push((partition, vec![entry])),
        }
        if self.out.len() >= PIECE { self.write() } else { Ok(()) }
    }

    /// Makes what has been built durable.
    fn write(&mut self) -> Result<(), LogError> {
        let written = self.file.write_all_at(&self.out, self.written).and_then(|()| self.file.sync());
        written.map_err(|error| failed("write", &self.into.path, error))?;
        self.written += self.out.len() as u64;
        self.out.clear();
        self.out.shrink_to(2 * PIECE);
        Ok(())
    }
}
