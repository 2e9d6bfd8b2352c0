//! Tables whose existing rows are being read, and whose changes are held meanwhile
//! (`docs/decisions/0011-existing-rows.md`).
//!
//! Tables that are held together are a [`Job`]. Each job has a hidden topic of the log: one partition for its [`Mark`]s, one
//! for what is held ([`held`]). A mark stands in the same group as what made it true, so a job is nothing but what its
//! marks say, one after the other: while they are written, and again when they are read back after a crash, a broken
//! connection or a group that could not be kept.
//!
//! When a job is done, the records of its topic are deleted and another job may have it: partition numbers are never used
//! again, and a log has only so many.

pub mod held;
mod job;

use std::sync::Arc;

pub use self::job::{Contents, Job, Mark, Stage, Table};
use crate::log::record_batch::{BatchError, BatchHeader, Records};
use crate::log::topics::{HIDDEN, TopicInfo};
use crate::log::{LogReader, Offset, PartitionId};

use super::CaptureError;

/// A batch that we have written is never larger than this when decompressed.
const BATCH_LIMIT: usize = 512 << 20;
/// How much is read from the log at once, in bytes.
const READ: usize = 1 << 20;

/// Where a job stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 1.
    pub number: u64,
    /// The partition of its marks.
    pub marks: PartitionId,
    /// The partition of the changes that it holds.
    pub changes: PartitionId,
}

impl Place {
    /// Partitions of a job's topic.
    pub const PARTITIONS: u32 = 2;

    /// Name of the topic of the job with this number.
    pub fn topic(number: u64) -> String {
        format!("{HIDDEN}snapshot-{number}")
    }

    /// The place that this topic is, if it is one.
    pub fn of(topic: &TopicInfo) -> Option<Place> {
        let number = topic.name.strip_prefix(HIDDEN)?.strip_prefix("snapshot-")?.parse().ok()?;
        Place::with(number, &topic.partitions)
    }

    /// The place with these partitions.
    pub fn with(number: u64, partitions: &[PartitionId]) -> Option<Place> {
        let &[marks, changes] = partitions else { return None };
        Some(Place { number, marks, changes })
    }
}

/// The jobs of a task, and the places that none of them uses.
#[derive(Debug, Default)]
pub struct Existing {
    /// In no order.
    pub jobs: Vec<Job>,
    /// Places without records.
    pub free: Vec<Place>,
    /// Places of jobs that are done, whose records are to be deleted.
    pub done: Vec<Place>,
    /// The highest number that a place has.
    pub last_number: u64,
}

impl Existing {
    /// The job that holds a table, by its place among the jobs.
    pub fn holding(&self, oid: u32) -> Option<usize> {
        let holds = |job: &Job| job.tables.get(&oid).is_some_and(|table| table.stage != Stage::Moved);
        self.jobs.iter().position(holds)
    }

    /// The job with this number.
    pub fn job(&self, number: u64) -> Option<&Job> {
        self.jobs.iter().find(|job| job.place.number == number)
    }

    /// Another transaction begins.
    pub fn begin_transaction(&mut self) {
        self.jobs.iter_mut().for_each(Job::begin_transaction);
    }

    /// The shapes that the holds have are to be written again.
    pub fn restart(&mut self) {
        self.jobs.iter_mut().for_each(Job::restart);
    }

    /// What the log says.
    ///
    /// # Errors
    /// The log cannot be read, or holds what cannot be read.
    pub async fn recall(log: &Arc<dyn LogReader>) -> Result<Existing, CaptureError> {
        let topics = log.topics().borrow().clone();
        let mut existing = Existing::default();
        for place in topics.iter().filter_map(|topic| Place::of(topic)) {
            existing.last_number = existing.last_number.max(place.number);
            let mut job = Job::new(place);
            let mut is_done = false;
            let mut cursor = Cursor::new(log.clone(), place.marks);
            while let Some(mut records) = cursor.next().await? {
                while let Some(record) = records.next_record().map_err(unreadable)? {
                    let value = record.value.filter(|_| record.offset >= cursor.from).unwrap_or_default();
                    if value.is_empty() {
                        continue;
                    }
                    let mark = serde_json::from_slice(value)
                        .map_err(|error| CaptureError::Held { detail: error.to_string() })?;
                    is_done |= mark == Mark::Released;
                    job.apply(&mark);
                }
            }
            match (is_done, job.tables.is_empty()) {
                (true, _) => existing.done.push(place),
                (false, true) => existing.free.push(place),
                (false, false) => existing.jobs.push(job),
            }
        }
        Ok(existing)
    }
}

/// Reads a partition of a hidden topic, up to where it ended when the reading began.
pub struct Cursor {
    log: Arc<dyn LogReader>,
    partition: PartitionId,
    /// The next record wanted: a batch may begin before it.
    pub from: Offset,
    next: Offset,
    end: Offset,
    fetched: std::vec::IntoIter<bytes::Bytes>,
}

impl Cursor {
    /// From the partition's start on.
    pub fn new(log: Arc<dyn LogReader>, partition: PartitionId) -> Self {
        let range = log.snapshot().range(partition).unwrap_or_default();
        Cursor {
            log,
            partition,
            from: range.start,
            next: range.start,
            end: range.end,
            fetched: Vec::new().into_iter(),
        }
    }

    /// The records of the next batch; those below [`from`](Self::from) are not meant.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn next(&mut self) -> Result<Option<Records>, CaptureError> {
        loop {
            if let Some(batch) = self.fetched.next() {
                let header = BatchHeader::parse(&batch).map_err(unreadable)?;
                self.next = header.end_offset();
                return header.records(&batch, BATCH_LIMIT).map(Some).map_err(unreadable);
            }
            if self.next >= self.end {
                return Ok(None);
            }
            // A new one each time: who keeps an old snapshot keeps segments from being merged.
            let snapshot = self.log.snapshot();
            let fetched = self.log.fetch(&snapshot, self.partition, self.next, READ).await?;
            if fetched.is_empty() {
                return Err(CaptureError::Held { detail: format!("nothing stands at offset {}", self.next) });
            }
            self.fetched = fetched.batches.into_iter();
        }
    }
}

/// What is held cannot be read.
pub fn unreadable(error: BatchError) -> CaptureError {
    CaptureError::Held { detail: error.to_string() }
}
