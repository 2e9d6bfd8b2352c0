//! Opens a log after whatever happened to it.
//!
//! The checkpoint gives a clean place at the start of a segment. From there on every entry is read, in order. What is
//! kept ends with the last commit that is whole, has the next number, and whose chain matches everything before it; what
//! follows is an unfinished group and is cut.
//!
//! Unless it was finished once: a commit is written only after the fsync of the commit before it has returned. So when
//! number n is the last good one and a whole commit after n + 1 lies further on, then n + 1 was durable and has been
//! damaged since. That is corruption, refused with file and place, as is a log that ends before the commit that the
//! checkpoint knows to be durable.
//!
//! What is kept may be in the page cache only (after a SIGKILL), so it is fsynced before anybody sees it.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::appender::{self, End, LastCommit, OpenSegment, Place};
use super::checkpoint::{self, Base, Checkpoint};
use super::entry::{self, CommitEntry, Entry};
use super::files::{Open, failed};
use super::index::{self, IndexEntry};
use super::segment::{self, Form, HEADER_LEN, Named, Scan, Scanned, Segment, corrupt, named};
use super::views::Views;
use super::{Options, checkpoint::PartitionState};
use crate::log::record_batch::BatchHeader;
use crate::log::{LogError, Offset, PartitionId, PartitionRange, Snapshot, SourcePosition};

/// A log as recovery found it.
#[derive(Debug)]
pub struct Recovered {
    pub checkpoint: Checkpoint,
    pub end: End,
    pub views: Views,
    pub snapshot: Snapshot,
    pub position: Option<SourcePosition>,
}

/// Recovers the log in the options' directory, or makes one.
pub fn recover(options: &Options) -> Result<Recovered, LogError> {
    let (files, directory) = (&*options.files, &options.directory);
    files.create_dir(directory).map_err(|error| failed("create", directory, error))?;
    let names = files.list(directory).map_err(|error| failed("list", directory, error))?;
    if names.iter().any(|name| name == checkpoint::ASIDE) {
        remove(options, &directory.join(checkpoint::ASIDE))?;
    }
    let found = match Checkpoint::read(files, directory)? {
        Some(found) => found,
        None => create(options, &names)?,
    };

    let mut views = Views::default();
    for sealed in &found.sealed {
        let segment = Segment::new(&options.files, directory, found.log_id, sealed.sequence, sealed.form);
        let segment = Arc::new(segment);
        check_sealed_len(options, &segment, sealed.len)?;
        views.push_sealed(&segment, &index::read(files, &segment, sealed.len)?);
    }

    let mut replay = Replay {
        last: LastCommit {
            number: found.base.commit,
            place: Place { sequence: found.base.sequence, position: HEADER_LEN as u64 },
            chain: found.base.chain,
            loose: false,
        },
        position: found.base.position,
        chain: found.base.chain,
        ends: found.partitions.iter().map(|partition| partition.base_end).collect(),
        committed: found.partitions.iter().map(|partition| partition.base_end).collect(),
        pending: Vec::new(),
        views,
    };
    let mut open = read_open_segments(options, &found, &names, &mut replay)?;
    cut_unfinished(options, &found, &names, &mut open, &replay.last)?;

    let range = |(index, (state, end)): (usize, (&PartitionState, &i64))| {
        (PartitionId(index as u32), PartitionRange { start: Offset(state.start), end: Offset(*end) })
    };
    let ranges = found.partitions.iter().zip(&replay.committed).enumerate().map(range);
    let all = Snapshot::default().with(replay.last.number, ranges);
    // What a deleted topic has left in the segments goes with them.
    let live: HashSet<_> = found.topics.iter().flat_map(|topic| &topic.partitions).collect();
    let partitions = (0..found.partitions.len() as u32).map(PartitionId);
    let deleted: Vec<_> = partitions.filter(|partition| !live.contains(partition)).collect();
    deleted.iter().for_each(|partition| replay.views.forget(*partition));
    let snapshot = all.without(deleted);
    Ok(Recovered {
        end: End { open, last: replay.last, ends: replay.committed },
        checkpoint: found,
        views: replay.views,
        snapshot,
        position: replay.position,
    })
}

/// Makes an empty log: its first segment, then the checkpoint, so that a checkpoint always has its base.
fn create(options: &Options, names: &[String]) -> Result<Checkpoint, LogError> {
    let (files, directory) = (&*options.files, &options.directory);
    for name in names.iter().filter(|name| named(name).is_some()) {
        // A first start that was cut short leaves an empty first segment and nothing else.
        let path = directory.join(name);
        let len = files.open(&path, Open::Read).and_then(|file| file.size());
        if named(name) != Some(Named::Segment(1, Form::Written))
            || !len.is_ok_and(|len| len <= HEADER_LEN as u64)
        {
            return Err(corrupt(
                &directory.join(checkpoint::NAME),
                0,
                "the checkpoint is missing, but segments are there",
            ));
        }
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| failed("draw an id for", directory, io::Error::other(error.to_string())))?;
    let log_id = u128::from_le_bytes(id);
    let segment = Segment::new(&options.files, directory, log_id, 1, Form::Written);
    appender::create_file(files, directory, log_id, segment)?;
    let made = Checkpoint {
        log_id,
        leader_epoch: 0,
        durable_commit: 0,
        base: Base { sequence: 1, commit: 0, chain: 0, position: None },
        partitions: Vec::new(),
        topics: Vec::new(),
        sealed: Vec::new(),
    };
    made.write(files, directory)?;
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        files.sync_dir(parent).map_err(|error| failed("fsync", parent, error))?;
    }
    Ok(made)
}

fn check_sealed_len(options: &Options, segment: &Segment, expected: u64) -> Result<(), LogError> {
    // Not through the segment, which would keep the file open from now on.
    match options.files.open(&segment.path, Open::Read).and_then(|file| file.size()) {
        Ok(len) if len == expected => Ok(()),
        Ok(len) => {
            let detail = format!("a sealed segment has {len} bytes instead of {expected}");
            Err(corrupt(&segment.path, len.min(expected), detail))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(corrupt(&segment.path, 0, "a sealed segment is missing"))
        }
        Err(error) => Err(failed("open", &segment.path, error)),
    }
}

/// A batch that no commit has covered yet.
struct Uncovered {
    partition: PartitionId,
    segment: Arc<Segment>,
    entry: IndexEntry,
    end: i64,
}

/// The state that entries are applied to, one after the other.
struct Replay {
    last: LastCommit,
    position: Option<SourcePosition>,
    chain: u32,
    /// With the batches not covered yet.
    ends: Vec<i64>,
    /// Without them.
    committed: Vec<i64>,
    pending: Vec<Uncovered>,
    views: Views,
}

/// Why an entry cannot follow what was before it.
struct Refused {
    detail: &'static str,
    /// No crash leaves such an entry.
    impossible: bool,
}

impl From<&'static str> for Refused {
    fn from(detail: &'static str) -> Self {
        Refused { detail, impossible: false }
    }
}

impl Replay {
    /// Applies an entry, or says why it cannot follow what was before it.
    fn apply(
        &mut self,
        segment: &Arc<Segment>,
        at: u64,
        len: usize,
        crc: u32,
        entry: Entry<'_>,
    ) -> Result<Option<CommitEntry>, Refused> {
        let before = self.chain;
        self.chain = entry::chain(before, crc);
        match entry {
            Entry::Batch { partition, batch } => {
                let header = BatchHeader::check(batch).map_err(|_| "an entry holds no record batch")?;
                let end =
                    self.ends.get_mut(partition.0 as usize).ok_or("a batch is for an unknown partition")?;
                if header.base_offset.0 != *end || header.len != batch.len() {
                    return Err("a batch does not continue its partition".into());
                }
                *end = header.end_offset().0;
                let entry = IndexEntry {
                    base: header.base_offset.0,
                    max_timestamp: header.max_timestamp,
                    position: u32::try_from(at).map_err(|_| "the segment is too long")?,
                    len: len as u32,
                };
                self.pending.push(Uncovered { partition, segment: segment.clone(), entry, end: *end });
                Ok(None)
            }
            Entry::Discard { keep } => {
                let keep = keep as usize;
                if keep > self.pending.len() {
                    return Err("a discard keeps more than there is".into());
                }
                for dropped in self.pending.drain(keep..).rev() {
                    self.ends[dropped.partition.0 as usize] = dropped.entry.base;
                }
                Ok(None)
            }
            Entry::Commit(commit) => {
                if commit.number != self.last.number + 1 || commit.chain != before {
                    return Err("a commit does not belong to what is before it".into());
                }
                // Behind this chain nothing but a whole group can stand.
                self.commit(&commit).map_err(|detail| Refused { detail, impossible: true })?;
                let place = Place { sequence: segment.sequence, position: at + len as u64 };
                let loose = !self.pending.is_empty();
                self.last = LastCommit { number: commit.number, place, chain: self.chain, loose };
                self.position = Some(commit.position);
                Ok(Some(commit))
            }
        }
    }

    fn commit(&mut self, commit: &CommitEntry) -> Result<(), &'static str> {
        let covered = commit.covered as usize;
        if covered > self.pending.len() {
            return Err("a commit covers more than there is");
        }
        for batch in self.pending.drain(..covered) {
            self.views.push(batch.partition, &batch.segment, batch.entry);
            self.committed[batch.partition.0 as usize] = batch.end;
        }
        let agree = |(partition, end): &(PartitionId, Offset)| {
            self.committed.get(partition.0 as usize) == Some(&end.0)
        };
        if commit.ends.iter().all(agree) { Ok(()) } else { Err("a commit's ends are not its batches'") }
    }
}

/// Reads the segments from the base on, up to the first thing that cannot follow.
fn read_open_segments(
    options: &Options,
    found: &Checkpoint,
    names: &[String],
    replay: &mut Replay,
) -> Result<Vec<OpenSegment>, LogError> {
    let mut open: Vec<OpenSegment> = Vec::new();
    let mut bad = None;
    let mut sequence = found.base.sequence;
    while bad.is_none() {
        let segment = open_segment(options, found, sequence);
        let file = match options.files.open(&segment.path, Open::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !open.is_empty() => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(
                    &segment.path,
                    0,
                    "the segment that the checkpoint goes on in is missing",
                ));
            }
            Err(error) => return Err(failed("open", &segment.path, error)),
        };
        if !segment::check_header(&*file, &segment, found.log_id)? {
            if open.is_empty() {
                return Err(corrupt(&segment.path, 0, "the segment's header is not what was written"));
            }
            bad = Some((segment.clone(), 0, "the segment's header is not what was written"));
        }
        let mut this = OpenSegment {
            segment,
            file,
            len: HEADER_LEN as u64,
            batches: 0,
            first_append: 0,
            last_append: 0,
            unsynced: true,
        };
        if bad.is_none() {
            bad = read_segment(&mut this, replay)?.map(|(at, detail)| (this.segment.clone(), at, detail));
        }
        open.push(this);
        sequence += 1;
    }

    let next = replay.last.number + 1;
    let (from, at, detail) = match &bad {
        Some((segment, at, detail)) => (segment.sequence, *at, *detail),
        None => (sequence, HEADER_LEN as u64, "segments before this one are missing"),
    };
    let mut rest: Vec<u64> = names
        .iter()
        .filter_map(|name| match named(name) {
            Some(Named::Segment(sequence, Form::Written)) if sequence >= from => Some(sequence),
            _ => None,
        })
        .collect();
    rest.sort_unstable();
    for sequence in rest {
        let segment = open_segment(options, found, sequence);
        let file = segment.file().map_err(|error| failed("open", &segment.path, error))?;
        let start = if sequence == from { at } else { 0 };
        let later = Scan::new(&segment, &*file, start)?.find_commit_after(next)?;
        if let Some(later) = later {
            let place = bad.as_ref().map_or(&segment, |(segment, ..)| segment);
            let detail = format!("{detail}, and commit {later} stands behind it");
            return Err(corrupt(&place.path, at, detail));
        }
    }
    if replay.last.number < found.durable_commit {
        let detail = format!(
            "the log ends with commit {}, but commit {} was durable",
            replay.last.number, found.durable_commit
        );
        let place = bad.as_ref().map(|(segment, at, _)| (&segment.path, *at));
        let ends = open.last().map(|open| (&open.segment.path, open.len));
        let (path, at) = place.or(ends).unwrap_or((&options.directory, 0));
        return Err(corrupt(path, at, detail));
    }
    Ok(open)
}

fn open_segment(options: &Options, found: &Checkpoint, sequence: u64) -> Arc<Segment> {
    Arc::new(Segment::new(&options.files, &options.directory, found.log_id, sequence, Form::Written))
}

/// Applies a segment's entries; gives where and why it stopped, if before the end.
fn read_segment(
    this: &mut OpenSegment,
    replay: &mut Replay,
) -> Result<Option<(u64, &'static str)>, LogError> {
    let file = this.file.clone();
    let mut scan = Scan::new(&this.segment, &*file, HEADER_LEN as u64)?;
    loop {
        match scan.next()? {
            Scanned::End => return Ok(None),
            Scanned::Bad { position, detail } => return Ok(Some((position, detail))),
            Scanned::Entry { position, len, crc, entry } => {
                let is_batch = matches!(entry, Entry::Batch { .. });
                match replay.apply(&this.segment, position, len, crc, entry) {
                    Ok(commit) => {
                        this.len = position + len as u64;
                        this.batches += usize::from(is_batch);
                        if let Some(commit) = commit {
                            this.last_append = commit.appended;
                            this.first_append =
                                if this.first_append == 0 { commit.appended } else { this.first_append };
                        }
                    }
                    Err(Refused { detail, impossible: true }) => {
                        return Err(corrupt(&this.segment.path, position, detail));
                    }
                    Err(Refused { detail, .. }) => return Ok(Some((position, detail))),
                }
            }
        }
    }
}

/// Cuts what no commit has finished, removes files that belong to nothing, and makes the rest durable.
fn cut_unfinished(
    options: &Options,
    found: &Checkpoint,
    names: &[String],
    open: &mut Vec<OpenSegment>,
    last: &LastCommit,
) -> Result<(), LogError> {
    let directory = &options.directory;
    open.retain(|open| open.segment.sequence <= last.place.sequence);
    let base = open.first().map_or(0, |open| open.segment.sequence);
    // Of a sealed segment the file in force; the other one is from a merge that a crash has cut short.
    let is_sealed = |sequence, form| {
        let place = found.sealed.binary_search_by_key(&sequence, |sealed| sealed.sequence);
        place.is_ok_and(|place| found.sealed[place].form == form)
    };
    for name in names {
        let kept = match named(name) {
            Some(Named::Segment(sequence, form)) => {
                let is_open = form == Form::Written && (base..=last.place.sequence).contains(&sequence);
                is_open || is_sealed(sequence, form)
            }
            Some(Named::Index(sequence, form)) => is_sealed(sequence, form),
            None => true,
        };
        if !kept {
            remove(options, &directory.join(name))?;
        }
    }
    if let Some(active) = open.last_mut() {
        let path = &active.segment.path;
        active.len = last.place.position;
        let len = active.file.size().map_err(|error| failed("read the length of", path, error))?;
        if len > active.len {
            tracing::info!(path = %path.display(), bytes = len - active.len, "cut an unfinished group off the log");
            active.file.truncate(active.len).map_err(|error| failed("truncate", path, error))?;
        }
    }
    for open in open {
        open.file.sync().map_err(|error| failed("fsync", &open.segment.path, error))?;
        open.unsynced = false;
    }
    options.files.sync_dir(directory).map_err(|error| failed("fsync", directory, error))
}

fn remove(options: &Options, path: &std::path::Path) -> Result<(), LogError> {
    match options.files.unlink(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}
