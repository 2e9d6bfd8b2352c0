//! Partitions as views of the one physical log: for each the runs of batches that it has in the segments, in order.
//!
//! Only committed batches are here. The entries of a segment that is not sealed are in memory; a sealed segment's are in
//! its index file, and are handed in by the reader when a lookup asks for them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::index::{IndexEntry, Row, Slot};
use super::segment::Segment;
use crate::log::{Offset, PartitionId, Snapshot};

/// What a partition has in one segment.
#[derive(Debug)]
struct Run {
    segment: Arc<Segment>,
    first: i64,
    max_timestamp: i64,
    /// Size of its record batches.
    bytes: u64,
    entries: Entries,
}

#[derive(Debug)]
enum Entries {
    Memory(Vec<IndexEntry>),
    File(Slot),
}

/// All views.
#[derive(Debug, Default)]
pub struct Views {
    partitions: Vec<VecDeque<Run>>,
}

/// A batch to read.
#[derive(Debug, Clone)]
pub struct Place {
    pub segment: Arc<Segment>,
    pub partition: PartitionId,
    pub entry: IndexEntry,
}

/// Entries that a lookup needs and that are in an index file.
#[derive(Debug, Clone)]
pub struct Needed {
    pub segment: Arc<Segment>,
    pub slot: Slot,
}

/// What a lookup gives: the answer, or what it needs first.
#[derive(Debug)]
pub enum Lookup<T> {
    Found(T),
    Needs(Needed),
}

/// Gives a sealed segment's entries for a partition, if they are loaded.
pub type Loaded<'a> = &'a mut dyn FnMut(&Segment, PartitionId) -> Option<Arc<[IndexEntry]>>;

/// What [`Views::places`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Batches of this many bytes together, and always the first.
    Bytes(usize),
    /// The first batch with a record at or after this timestamp.
    Timestamp(i64),
}

/// What a partition has in a segment.
fn run_in(runs: &VecDeque<Run>, sequence: u64) -> Option<&Run> {
    runs.binary_search_by_key(&sequence, |run| run.segment.sequence).ok().and_then(|at| runs.get(at))
}

impl Views {
    /// Adds a committed batch behind those that its partition has.
    pub fn push(&mut self, partition: PartitionId, segment: &Arc<Segment>, entry: IndexEntry) {
        let runs = self.runs_mut(partition);
        if let Some(last) = runs.back_mut()
            && last.segment.sequence == segment.sequence
            && let Entries::Memory(entries) = &mut last.entries
        {
            entries.push(entry);
            last.max_timestamp = last.max_timestamp.max(entry.max_timestamp);
            last.bytes += entry.batch_len();
            return;
        }
        runs.push_back(Run {
            segment: segment.clone(),
            first: entry.base,
            max_timestamp: entry.max_timestamp,
            bytes: entry.batch_len(),
            entries: Entries::Memory(vec![entry]),
        });
    }

    /// Adds a sealed segment behind those that there are.
    pub fn push_sealed(&mut self, segment: &Arc<Segment>, rows: &[Row]) {
        for row in rows {
            self.runs_mut(row.partition).push_back(Run {
                segment: segment.clone(),
                first: row.first,
                max_timestamp: row.max_timestamp,
                bytes: row.bytes,
                entries: Entries::File(row.slot),
            });
        }
    }

    fn runs_mut(&mut self, partition: PartitionId) -> &mut VecDeque<Run> {
        let index = partition.0 as usize;
        if self.partitions.len() <= index {
            self.partitions.resize_with(index + 1, VecDeque::new);
        }
        &mut self.partitions[index]
    }

    /// The entries in memory of a segment that is not sealed, for its index file.
    pub fn entries_of(&self, sequence: u64) -> Vec<(PartitionId, &[IndexEntry])> {
        let mut all = Vec::new();
        for (index, runs) in self.partitions.iter().enumerate() {
            if let Some(Run { entries: Entries::Memory(entries), .. }) = run_in(runs, sequence) {
                all.push((PartitionId(index as u32), entries.as_slice()));
            }
        }
        all
    }

    /// The segment has been sealed: its entries are in its index file from now on.
    pub fn seal(&mut self, sequence: u64, rows: &[Row]) {
        for row in rows {
            let runs = self.runs_mut(row.partition);
            if let Ok(found) = runs.binary_search_by_key(&sequence, |run| run.segment.sequence) {
                runs[found].entries = Entries::File(row.slot);
            }
        }
    }

    /// How many partitions have batches in a sealed segment, and how many batches they have there.
    pub fn counts(&self, sequence: u64) -> (usize, usize) {
        let runs = self.partitions.iter().filter_map(|runs| run_in(runs, sequence));
        let counts = runs.map(|run| match &run.entries {
            Entries::Memory(entries) => entries.len(),
            Entries::File(slot) => slot.count as usize,
        });
        counts.fold((0, 0), |(partitions, batches), count| (partitions + 1, batches + count))
    }

    /// A segment in which some partition has batches.
    pub fn segment(&self, sequence: u64) -> Option<Arc<Segment>> {
        self.partitions.iter().find_map(|runs| run_in(runs, sequence)).map(|run| run.segment.clone())
    }

    /// Whether what `partition` has in a segment is looked up in this file of it.
    pub fn is_in_force(&self, segment: &Arc<Segment>, partition: PartitionId) -> bool {
        let runs = self.partitions.get(partition.0 as usize);
        let run = runs.and_then(|runs| run_in(runs, segment.sequence));
        run.is_some_and(|run| Arc::ptr_eq(&run.segment, segment))
    }

    /// Another file takes the place of a sealed segment; `rows` is the table of its index.
    pub fn replace(&mut self, segment: &Arc<Segment>, rows: &[Row]) {
        for row in rows {
            let runs = self.runs_mut(row.partition);
            if let Ok(found) = runs.binary_search_by_key(&segment.sequence, |run| run.segment.sequence) {
                let run = &mut runs[found];
                debug_assert_eq!((run.first, run.max_timestamp), (row.first, row.max_timestamp));
                run.segment = segment.clone();
                run.bytes = row.bytes;
                run.entries = Entries::File(row.slot);
            }
        }
    }

    /// Forgets a partition, of which nothing is read any more.
    pub fn forget(&mut self, partition: PartitionId) {
        if let Some(runs) = self.partitions.get_mut(partition.0 as usize) {
            *runs = VecDeque::new();
        }
    }

    /// Size of a partition's record batches.
    pub fn bytes(&self, partition: PartitionId) -> u64 {
        let runs = self.partitions.get(partition.0 as usize);
        runs.map_or(0, |runs| runs.iter().map(|run| run.bytes).sum())
    }

    /// The oldest segment in which some partition has readable records.
    pub fn oldest_readable(&self, snapshot: &Snapshot) -> Option<u64> {
        (0..self.partitions.len() as u32)
            .filter_map(|index| self.oldest_of(PartitionId(index), snapshot))
            .min()
    }

    /// The oldest segment in which a partition has readable records.
    pub fn oldest_of(&self, partition: PartitionId, snapshot: &Snapshot) -> Option<u64> {
        let runs = self.partitions.get(partition.0 as usize)?;
        let range = snapshot.range(partition).filter(|range| range.start < range.end)?;
        let containing = runs.partition_point(|run| run.first <= range.start.0).saturating_sub(1);
        runs.get(containing).map(|run| run.segment.sequence)
    }

    /// First offsets of partitions when the segments up to `sequence` are gone, where that changes them; `None` for a
    /// partition that has nothing left.
    pub fn starts_without(&self, sequence: u64) -> Vec<(PartitionId, Option<Offset>)> {
        let start = |(index, runs): (usize, &VecDeque<Run>)| {
            let gone = runs.partition_point(|run| run.segment.sequence <= sequence);
            let start = runs.get(gone).map(|run| Offset(run.first));
            (gone > 0).then_some((PartitionId(index as u32), start))
        };
        self.partitions.iter().enumerate().filter_map(start).collect()
    }

    /// Forgets the segments up to `sequence`.
    pub fn remove_through(&mut self, sequence: u64) {
        for runs in &mut self.partitions {
            while runs.front().is_some_and(|run| run.segment.sequence <= sequence) {
                runs.pop_front();
            }
        }
    }

    /// Places of batches of `partition` from the one that contains `from` on, below `end`. Empty where there is none:
    /// either none is wanted, or retention has taken it.
    pub fn places(
        &self,
        partition: PartitionId,
        from: Offset,
        end: Offset,
        want: Want,
        loaded: Loaded<'_>,
    ) -> Lookup<Vec<Place>> {
        let mut places = Vec::new();
        let mut size = 0;
        let Some(runs) = self.partitions.get(partition.0 as usize) else { return Lookup::Found(places) };
        let containing = runs.partition_point(|run| run.first <= from.0).checked_sub(1);
        if containing.is_none() && matches!(want, Want::Bytes(_)) {
            return Lookup::Found(places);
        }
        for run in runs.range(containing.unwrap_or(0)..) {
            if run.first >= end.0 {
                break;
            }
            if matches!(want, Want::Timestamp(timestamp) if run.max_timestamp < timestamp) {
                continue;
            }
            let file;
            let entries = match &run.entries {
                Entries::Memory(entries) => entries.as_slice(),
                Entries::File(slot) => match loaded(&run.segment, partition) {
                    Some(entries) => {
                        file = entries;
                        &file[..]
                    }
                    None => return Lookup::Needs(Needed { segment: run.segment.clone(), slot: *slot }),
                },
            };
            let first = entries.partition_point(|entry| entry.base <= from.0).saturating_sub(1);
            for entry in &entries[first.min(entries.len())..] {
                if entry.base >= end.0 {
                    return Lookup::Found(places);
                }
                let place = || Place { segment: run.segment.clone(), partition, entry: *entry };
                match want {
                    Want::Timestamp(timestamp) if entry.max_timestamp < timestamp => continue,
                    Want::Timestamp(_) => return Lookup::Found(vec![place()]),
                    Want::Bytes(max) => {
                        size += entry.batch_len() as usize;
                        if size > max && !places.is_empty() {
                            return Lookup::Found(places);
                        }
                        places.push(place());
                    }
                }
            }
        }
        Lookup::Found(places)
    }

    /// The largest timestamp of the batches of `partition` that begin in a range.
    pub fn max_timestamp(
        &self,
        partition: PartitionId,
        from: Offset,
        end: Offset,
        loaded: Loaded<'_>,
    ) -> Lookup<Option<i64>> {
        let Some(runs) = self.partitions.get(partition.0 as usize) else { return Lookup::Found(None) };
        let containing = runs.partition_point(|run| run.first <= from.0).saturating_sub(1);
        let below = runs.partition_point(|run| run.first < end.0);
        let mut max = None;
        for (index, run) in runs.iter().enumerate().take(below).skip(containing) {
            // Only the last may reach beyond the end, where the snapshot is older than the views.
            if run.first >= from.0 && index + 1 < below {
                max = max.max(Some(run.max_timestamp));
                continue;
            }
            let file;
            let entries = match &run.entries {
                Entries::Memory(entries) => entries.as_slice(),
                Entries::File(slot) => match loaded(&run.segment, partition) {
                    Some(entries) => {
                        file = entries;
                        &file[..]
                    }
                    None => return Lookup::Needs(Needed { segment: run.segment.clone(), slot: *slot }),
                },
            };
            let in_range = entries.iter().filter(|entry| (from.0..end.0).contains(&entry.base));
            max = max.max(in_range.map(|entry| entry.max_timestamp).max());
        }
        Lookup::Found(max)
    }
}
