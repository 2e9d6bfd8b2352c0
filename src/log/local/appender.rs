//! The end of the log: appends entries to segments, and cuts what must not stay.
//!
//! Entries collect in a buffer and are written in large pieces. All of this is beyond the last commit, and so invisible,
//! until the thread says otherwise.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::entry::{self, CommitEntry};
use super::files::{File, Open, failed};
use super::index::IndexEntry;
use super::segment::{self, Form, Segment};
use super::shared::Shared;
use crate::log::record_batch::{BatchBuilder, Codec, Compressor};
use crate::log::{LogError, Offset, PartitionId};

/// The buffer is written when it has reached this.
const WRITE: usize = 1 << 20;
/// A segment has at most this many batches, which bounds the index in memory.
const MAX_BATCHES: usize = 1 << 20;

/// A segment that is not sealed.
#[derive(Debug)]
pub struct OpenSegment {
    pub segment: Arc<Segment>,
    pub file: Arc<dyn File>,
    /// What has been written of it.
    pub len: u64,
    pub batches: usize,
    pub first_append: i64,
    pub last_append: i64,
    /// Whether something was written since the last fsync.
    pub unsynced: bool,
}

/// Records to append, as one batch.
#[derive(Debug)]
pub struct Closed {
    pub partition: PartitionId,
    pub codec: Codec,
    pub builder: BatchBuilder,
}

/// A place between two entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub sequence: u64,
    pub position: u64,
}

/// A batch that no commit has covered yet.
#[derive(Debug)]
pub struct Pending {
    pub partition: PartitionId,
    pub segment: Arc<Segment>,
    pub entry: IndexEntry,
    /// The offset after its last record.
    pub end: i64,
    /// The chain before it.
    pub chain: u32,
}

impl Pending {
    fn place(&self) -> Place {
        Place { sequence: self.segment.sequence, position: self.entry.position.into() }
    }
}

/// The last commit, and where the log goes on behind it.
#[derive(Debug, Clone, Copy)]
pub struct LastCommit {
    pub number: u64,
    pub place: Place,
    pub chain: u32,
    /// Whether batches that it did not cover lie before it.
    pub loose: bool,
}

#[derive(Debug)]
pub struct Appender {
    pub directory: PathBuf,
    pub log_id: u128,
    pub segment_bytes: u64,
    pub leader_epoch: i32,
    /// Segments that are not sealed, oldest first; the last is written to. Never empty.
    pub open: Vec<OpenSegment>,
    pub last: LastCommit,
    pub pending: Vec<Pending>,
    /// For each partition the offset of the next record, pending batches counted.
    pub ends: Vec<i64>,
    pub chain: u32,
    /// Whether loose batches before the last commit have still to be discarded.
    pub owes_discard: bool,
    out: Vec<u8>,
    compressor: Compressor,
    /// Bytes written, for the metrics.
    pub written: u64,
}

/// The state that recovery hands over.
#[derive(Debug)]
pub struct End {
    pub open: Vec<OpenSegment>,
    pub last: LastCommit,
    pub ends: Vec<i64>,
}

impl Appender {
    pub fn new(options: &super::Options, log_id: u128, leader_epoch: i32, end: End) -> Self {
        Appender {
            directory: options.directory.clone(),
            log_id,
            segment_bytes: options.segment_bytes,
            leader_epoch,
            chain: end.last.chain,
            owes_discard: end.last.loose,
            open: end.open,
            last: end.last,
            pending: Vec::new(),
            ends: end.ends,
            out: Vec::new(),
            compressor: Compressor::default(),
            written: 0,
        }
    }

    fn active(&mut self) -> Result<&mut OpenSegment, LogError> {
        self.open.last_mut().ok_or(LogError::Stopped)
    }

    /// Where the next entry goes.
    fn place(&self) -> Place {
        let (sequence, len) = self.open.last().map_or((0, 0), |open| (open.segment.sequence, open.len));
        Place { sequence, position: len + self.out.len() as u64 }
    }

    /// Appends a batch.
    pub fn batch(&mut self, shared: &Shared, closed: &Closed) -> Result<(), LogError> {
        let Closed { partition, codec, ref builder } = *closed;
        self.settle(shared)?;
        let index = partition.0 as usize;
        let base = *self.ends.get(index).ok_or(LogError::UnknownPartition(partition))?;
        if self.out.len() >= WRITE {
            self.write(shared)?;
        }
        let batches = self.active()?.batches;
        if batches > 0 && (self.place().position >= self.segment_bytes || batches >= MAX_BATCHES) {
            self.write(shared)?;
            self.roll(shared)?;
        }
        let place = self.place();
        let active = self.open.last_mut().ok_or(LogError::Stopped)?;
        active.batches += 1;
        let segment = active.segment.clone();
        let start = entry::begin_batch(&mut self.out, partition);
        builder.close(Offset(base), self.leader_epoch, codec, &mut self.compressor, &mut self.out);
        let crc = entry::finish(&mut self.out, start, segment.seal, place.position);
        let end = base + i64::from(builder.count());
        self.pending.push(Pending {
            partition,
            segment,
            entry: IndexEntry {
                base,
                max_timestamp: builder.max_timestamp(),
                position: place.position as u32,
                len: (self.out.len() - start) as u32,
            },
            end,
            chain: self.chain,
        });
        self.ends[index] = end;
        self.chain = entry::chain(self.chain, crc);
        Ok(())
    }

    /// Appends a commit of the first `covered` pending batches and writes everything; `commit` lacks its chain.
    pub fn commit(&mut self, shared: &Shared, mut commit: CommitEntry) -> Result<(), LogError> {
        self.settle(shared)?;
        commit.chain = self.chain;
        let (place, appended) = (self.place(), commit.appended);
        let active = self.active()?;
        let seal = active.segment.seal;
        active.last_append = appended;
        if active.first_append == 0 {
            active.first_append = appended;
        }
        let start = entry::put_commit(&mut self.out, &commit);
        let crc = entry::finish(&mut self.out, start, seal, place.position);
        self.chain = entry::chain(self.chain, crc);
        self.write(shared)
    }

    /// Writes the discard that is still owed, before anything else is appended.
    fn settle(&mut self, shared: &Shared) -> Result<(), LogError> {
        if self.owes_discard {
            self.discard(shared, 0)?;
        }
        Ok(())
    }

    fn discard(&mut self, shared: &Shared, keep: usize) -> Result<(), LogError> {
        self.owes_discard = false;
        let position = self.place().position;
        let seal = self.active()?.segment.seal;
        let start = entry::put_discard(&mut self.out, keep as u32);
        let crc = entry::finish(&mut self.out, start, seal, position);
        self.chain = entry::chain(self.chain, crc);
        self.write(shared)
    }

    /// Writes what is buffered.
    pub fn write(&mut self, shared: &Shared) -> Result<(), LogError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let Some(active) = self.open.last_mut() else { return Err(LogError::Stopped) };
        active.unsynced = true;
        let written = active.file.write_all_at(&self.out, active.len);
        written.map_err(|error| failed("write", &active.segment.path, error))?;
        let mut tail = shared.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.push(active.segment.sequence, active.len, &self.out);
        active.len += self.out.len() as u64;
        self.written += self.out.len() as u64;
        self.out.clear();
        // A group of one huge batch should not hold its memory for ever.
        self.out.shrink_to(4 * WRITE);
        Ok(())
    }

    /// Makes everything written durable.
    pub fn sync(&mut self) -> Result<(), LogError> {
        for open in self.open.iter_mut().filter(|open| open.unsynced) {
            open.file.sync().map_err(|error| failed("fsync", &open.segment.path, error))?;
            open.unsynced = false;
        }
        Ok(())
    }

    /// Goes on in a new segment, whose name and header are durable.
    pub fn roll(&mut self, shared: &Shared) -> Result<(), LogError> {
        debug_assert!(self.out.is_empty());
        let sequence = self.active()?.segment.sequence + 1;
        self.open.push(create(shared, &self.directory, self.log_id, sequence)?);
        Ok(())
    }

    /// Takes back a roll behind the last commit.
    pub fn unroll(&mut self, shared: &Shared) -> Result<(), LogError> {
        debug_assert!(self.out.is_empty() && self.pending.is_empty());
        self.cut(shared, self.last.place)
    }

    /// Drops all but the first `keep` pending batches: off the files where no commit stands behind them.
    pub fn abort(&mut self, shared: &Shared, keep: usize) -> Result<(), LogError> {
        debug_assert!(self.out.is_empty());
        let Some(first) = self.pending.get(keep) else { return Ok(()) };
        let (place, chain) = (first.place(), first.chain);
        if place >= self.last.place {
            self.cut(shared, place)?;
            self.chain = chain;
            self.forget(keep);
            return Ok(());
        }
        self.cut(shared, self.last.place)?;
        self.chain = self.last.chain;
        self.forget(keep);
        self.discard(shared, keep)
    }

    /// Everything since the last commit is gone: cuts the log to it, through a new descriptor, since the old one's
    /// errors may have been reported already.
    pub fn restore(&mut self, shared: &Shared) -> Result<(), LogError> {
        self.out.clear();
        self.forget(0);
        self.chain = self.last.chain;
        self.owes_discard = self.last.loose;
        let last = self.last.place.sequence;
        for open in self.open.iter_mut().filter(|open| open.segment.sequence <= last) {
            let path = &open.segment.path;
            open.file = shared.files.open(path, Open::Write).map_err(|error| failed("open", path, error))?;
        }
        self.cut(shared, self.last.place)?;
        self.sync()
    }

    fn forget(&mut self, keep: usize) {
        for dropped in self.pending.drain(keep.min(self.pending.len())..).rev() {
            if let Some(end) = self.ends.get_mut(dropped.partition.0 as usize) {
                *end = dropped.entry.base;
            }
        }
    }

    /// Cuts the files at `place`.
    fn cut(&mut self, shared: &Shared, place: Place) -> Result<(), LogError> {
        shared.tail.lock().unwrap_or_else(PoisonError::into_inner).cut(place.sequence, place.position);
        let mut unlinked = false;
        while let Some(open) = self.open.pop_if(|open| open.segment.sequence > place.sequence) {
            let path = &open.segment.path;
            match shared.files.unlink(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let failure = failed("remove", path, error);
                    self.open.push(open);
                    return Err(failure);
                }
                _ => unlinked = true,
            }
        }
        let active = self.active()?;
        active.unsynced = true;
        active.len = place.position;
        let truncated = active.file.truncate(place.position);
        truncated.map_err(|error| failed("truncate", &active.segment.path, error))?;
        if unlinked {
            let synced = shared.files.sync_dir(&self.directory);
            synced.map_err(|error| failed("fsync", &self.directory, error))?;
        }
        Ok(())
    }
}

/// Makes a segment, durable with its name.
pub fn create(
    shared: &Shared,
    directory: &std::path::Path,
    log_id: u128,
    sequence: u64,
) -> Result<OpenSegment, LogError> {
    let segment = Segment::new(&shared.files, directory, log_id, sequence, Form::Written);
    create_file(&*shared.files, directory, log_id, segment)
}

/// As [`create`], before there is anything shared.
pub fn create_file(
    files: &dyn super::Files,
    directory: &std::path::Path,
    log_id: u128,
    segment: Segment,
) -> Result<OpenSegment, LogError> {
    let header = segment::header(log_id, segment.sequence);
    let write = || {
        let file = files.open(&segment.path, Open::Create)?;
        file.write_all_at(&header, 0)?;
        file.sync()?;
        files.sync_dir(directory)?;
        Ok(file)
    };
    match write() {
        Ok(file) => Ok(OpenSegment {
            segment: Arc::new(segment),
            file,
            len: header.len() as u64,
            batches: 0,
            first_append: 0,
            last_append: 0,
            unsynced: false,
        }),
        Err(error) => {
            // Best effort: a leftover is removed at the next start.
            let _ = files.unlink(&segment.path);
            Err(failed("create", &segment.path, error))
        }
    }
}
