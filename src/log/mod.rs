//! A task's log: what was captured, in the form in which it is served.
//!
//! This module is the contract. [`LogWriter`] is all that `capture` sees, [`LogReader`] all that the front ends see;
//! `local` keeps the log in files of our own and is the first implementation. Nothing above this module knows files.
//!
//! ```text
//!  partition 3   ├── start ──────────── high watermark ──┤┄┄ written, not committed ┄┄┤
//!                      readable            (exclusive)          never readable
//! ```
//!
//! * A log has partitions, numbered from 0 over all its topics; a [`topics::Topic`] is a name, an id and a list of them.
//! * A writer appends records, marks transaction boundaries, and commits **groups** of whole transactions together with
//!   the place in the source that they reach. A commit is answered when everything in it is durable.
//! * The high watermarks of all partitions are one immutable [`Snapshot`] that a commit swaps as a whole (I1), after the
//!   fsync and before the commit is answered. Visible = durable (I4).
//! * After a crash [`LogWriter::resume`] gives the place of the last commit; what came after it never happened.

#[cfg(test)]
mod conformance;
pub mod local;
pub mod record_batch;
mod snapshot;
pub mod topics;
pub mod view;

pub use snapshot::{PartitionRange, Snapshot};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use self::record_batch::Codec;
use self::topics::TopicList;
use crate::change::Lsn;

/// A partition of one task's log; numbers run over all topics of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

/// A record's number in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record to append: what becomes one Kafka record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Commit time of the source transaction, in milliseconds since 1970.
    pub timestamp: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers in order.
    pub headers: &'a [Header<'a>],
}

/// A record header.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value. The formats always give one; a Kafka producer may leave it null.
    pub value: Option<&'a [u8]>,
}

/// How far a log reaches in its source; part of every commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcePosition {
    /// Commit LSN of the last transaction in the log. `None` in a fresh log.
    pub last_commit: Option<Lsn>,
    /// Where that transaction ends; in a fresh log the slot's consistent point. An inclusive start.
    pub end_lsn: Lsn,
    /// End of the last transaction that left a record other than a heartbeat.
    pub last_record_end: Lsn,
    /// What may be, and perhaps has been, acknowledged to the source's slot.
    pub acked_through: Lsn,
    /// The source's timeline.
    pub timeline: u32,
    /// The source's system identifier.
    pub system_identifier: u64,
    /// Which slot, counted from 1: a slot made anew after a gap is a new generation.
    pub slot_generation: u32,
}

/// What a group commit brought about.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The commit's number, from 1, without holes.
    pub number: u64,
    /// The position that it carried.
    pub position: SourcePosition,
    /// The high watermarks that it made visible.
    pub snapshot: Arc<Snapshot>,
}

/// How much of a log is kept: the oldest goes first, and only what is below the high watermarks. What a hidden topic
/// ([`topics::is_hidden`]) holds is spared with all that is newer, until that topic is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Remove the oldest part while the others are at least this large together.
    pub bytes: Option<u64>,
    /// Remove what was appended longer ago than this.
    pub age: Option<Duration>,
}

/// Writes a task's log. One writer a log.
///
/// The methods below buffer in memory and return at once, except where they return a [`Ticket`] or a future. At most
/// one ticket may be outstanding; records may be appended meanwhile and belong to the next group.
///
/// After an error from a ticket, everything since the last successful commit is gone: the caller reads
/// [`resume`](Self::resume) again and starts over from there (an aborted, reconnected source). When
/// [`LogError::is_retryable`] the same writer may be used again, otherwise the log must be reopened by a restart.
pub trait LogWriter: Send + 'static {
    /// The position of the last durable commit; `None` for a log that never had one.
    ///
    /// After an error from a ticket this is where the caller starts over: whatever was appended before this call is
    /// dropped, also what was appended after the error and before its ticket was read.
    fn resume(&self) -> Option<SourcePosition>;

    /// Makes a topic with its partitions, or gives the partitions of the one that there is. Returns at once; records
    /// may be appended to it at once. A new topic is durable before the group that first uses it commits, and shown to
    /// readers with the next commit or flush. No abort and no error from a ticket takes it away. `codec` is how the
    /// writer compresses this topic's batches from here on.
    ///
    /// # Errors
    /// [`LogError::PartitionCount`] when it exists with another number of partitions; [`LogError::InvalidTopic`].
    fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        codec: Codec,
    ) -> Result<Vec<PartitionId>, LogError>;

    /// Gives a topic more partitions, `total` with those that it has, and gives them all; as with a new topic for when
    /// they are durable and shown. Keys then go elsewhere, so the number of partitions of a task's topic is fixed: this is
    /// for topics that clients have made, which there are in test mode alone.
    ///
    /// # Errors
    /// [`LogError::UnknownTopic`]; [`LogError::FewerPartitions`]; [`LogError::InvalidTopic`] beyond the limit of a log.
    fn add_partitions(&mut self, name: &str, total: u32) -> Result<Vec<PartitionId>, LogError>;

    /// Takes a topic away. Returns at once; the name is free at once, for a topic with a new id and new partitions. Durable
    /// and shown to readers with the next commit or flush, as a new topic is: from then on nothing of it is fetched. What
    /// was appended to it goes the way of all old records, by retention; no partition number is used again.
    ///
    /// It is no part of that commit's group, and durable *before* it: a topic that a group makes superfluous is deleted
    /// when that group's commit has been answered.
    ///
    /// # Errors
    /// [`LogError::UnknownTopic`].
    fn delete_topic(&mut self, name: &str) -> Result<(), LogError>;

    /// Adds a record behind those that the partition has. Its bytes are copied.
    ///
    /// # Errors
    /// [`LogError::UnknownPartition`], also of a topic that has been deleted; [`LogError::RecordTooLarge`].
    fn append(&mut self, partition: PartitionId, record: &Record<'_>) -> Result<(), LogError>;

    /// The size beyond which it refuses a record, in bytes.
    fn max_record_bytes(&self) -> usize;

    /// Says that what was appended so far ends with a whole transaction.
    fn boundary(&mut self);

    /// Drops what was appended after the last boundary, also what [`flush`](Self::flush) has written of it.
    fn abort(&mut self);

    /// Bytes appended and not yet handed over by `flush` or `commit`.
    fn buffered(&self) -> usize;

    /// Whether anything lies between the last commit and the last boundary.
    fn has_group(&self) -> bool;

    /// Writes what is buffered beyond the high watermark, to bound memory in a large transaction. Makes new topics
    /// durable and visible, and no record.
    fn flush(&mut self) -> Ticket<()>;

    /// Makes everything up to the last boundary, and `position`, durable and then visible, at once. What was appended
    /// after the boundary stays for the next group. A commit without records is a position-only commit.
    fn commit(&mut self, position: SourcePosition) -> Ticket<Committed>;
}

/// The answer to a [`LogWriter::flush`] or [`LogWriter::commit`], later.
#[derive(Debug)]
pub struct Ticket<T>(oneshot::Receiver<Result<T, LogError>>);

impl<T> Ticket<T> {
    /// A ticket and the place to answer it.
    pub fn new() -> (oneshot::Sender<Result<T, LogError>>, Self) {
        let (answer, ticket) = oneshot::channel();
        (answer, Ticket(ticket))
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, LogError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(LogError::Stopped)))
    }
}

/// Reads a task's log. Shared by all front ends; never sees what is not committed.
///
/// A request takes one [`Snapshot`] and passes it to every call, so that it sees all partitions at one commit (I1).
pub trait LogReader: Send + Sync + 'static {
    /// The log's name: its task's.
    fn name(&self) -> &str;

    /// The current high watermarks.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// The log's topics, in the order in which they were made: those that are durable. A topic that has got partitions
    /// keeps its place and its id. A topic's partitions are in the snapshot before it is here; those of a topic that has
    /// been deleted are in the snapshot no more.
    fn topics(&self) -> watch::Receiver<TopicList>;

    /// Changes with every commit that moved a high watermark: the one way to learn of new data. And when a topic is
    /// deleted, so that nobody waits for it any longer.
    fn watch(&self) -> watch::Receiver<Arc<Snapshot>>;

    /// How many receivers of [`watch`](Self::watch) there are: requests that wait, and that a commit wakes.
    fn watchers(&self) -> usize;

    /// The constant leader epoch of this log's partitions.
    fn leader_epoch(&self) -> i32;

    /// Stored record batches of `partition`, from the one that contains `from` on, below the snapshot's high watermark.
    /// As many whole batches as fit into `max_bytes`, and always the first. Empty at the high watermark.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] when `from` is below the start or beyond the high watermark;
    /// [`LogError::UnknownPartition`] when its topic has been deleted; corruption; I/O errors.
    fn fetch<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Fetched, LogError>>;

    /// The first record at or after `timestamp` (ms) in offset order, with its timestamp.
    ///
    /// # Errors
    /// As `fetch`.
    fn find_by_time<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        timestamp: i64,
    ) -> BoxFuture<'a, Result<Option<(Offset, i64)>, LogError>>;

    /// The record with the largest timestamp, as ListOffsets' `-3` asks: its offset and timestamp.
    ///
    /// # Errors
    /// As `fetch`.
    fn max_timestamp<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
    ) -> BoxFuture<'a, Result<Option<(Offset, i64)>, LogError>>;

    /// Takes away the records of each partition below the offset that stands with it, at most up to the high watermark.
    /// Gives the starts: where a start is higher already, it stays. Durable before it is visible, and visible for all at
    /// once when this is answered; what nobody can read any more gives its space back by and by.
    ///
    /// # Errors
    /// [`LogError::UnknownPartition`] for any of them, and then nothing is taken away; I/O errors.
    fn delete_records(
        &self,
        below: Vec<(PartitionId, Offset)>,
    ) -> BoxFuture<'_, Result<Vec<Offset>, LogError>>;

    /// How much of the log is kept.
    fn retention(&self) -> Retention;

    /// Keeps another amount, from the next look at old segments on. Not kept over a restart: who opens a log says what
    /// it keeps.
    fn set_retention(&self, retention: Retention);

    /// Bytes of the partition's stored record batches; 0 where there is no such partition.
    fn partition_bytes(&self, partition: PartitionId) -> u64;

    /// Bytes of the whole log as it is stored, with what is not readable any more and not removed yet.
    fn total_bytes(&self) -> u64;
}

/// Whole record batches, magic 2, in offset order, as they are stored.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// One slice a batch.
    pub batches: Vec<Bytes>,
}

impl Fetched {
    /// Total size in bytes.
    pub fn len(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

/// What can go wrong in a log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The offset is not in the log, or not any more.
    #[error("offset {offset} is outside the log, which holds {start} to {end}")]
    OutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// First offset there is.
        start: Offset,
        /// The high watermark.
        end: Offset,
    },
    /// No such partition.
    #[error("the log has no partition {}", .0.0)]
    UnknownPartition(PartitionId),
    /// The topic exists with another number of partitions.
    #[error(
        "topic {topic} has {existing} partitions, not {asked}; partition numbers are fixed for a topic's life"
    )]
    PartitionCount {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        existing: u32,
        /// Partitions asked for.
        asked: u32,
    },
    /// No such topic.
    #[error("the log has no topic {0}")]
    UnknownTopic(String),
    /// A topic has more partitions than it is to have.
    #[error(
        "topic {topic} has {existing} partitions and cannot be made to have {asked}: they are never taken away"
    )]
    FewerPartitions {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        existing: u32,
        /// Partitions asked for.
        asked: u32,
    },
    /// A topic cannot be made like this.
    #[error("topic '{topic}' cannot be made: {detail}")]
    InvalidTopic {
        /// The topic.
        topic: String,
        /// Why not.
        detail: &'static str,
    },
    /// A record is over the limit.
    #[error(
        "a record of {size} bytes is over the limit of {limit} bytes; start millrace with a larger --max-record-mb, and see \
         that consumers take as much"
    )]
    RecordTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The disk is full. Resumes when there is space.
    #[error("no space left for {path}; free some or move the data directory, ingest resumes by itself")]
    NoSpace {
        /// The file.
        path: String,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another millrace process; stop it or give another --data-dir")]
    Locked {
        /// The directory.
        path: String,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "{path} is corrupt at byte {offset}: {detail}; restore the file from a backup, or move the log away and start the task anew"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// Written by a newer Millrace.
    #[error(
        "{path} has format version {found}, this millrace reads up to {supported}; use the newer millrace"
    )]
    Version {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
        /// The newest that we know.
        supported: u32,
    },
    /// Any other I/O error.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The log's thread has ended.
    #[error("the log has been closed")]
    Stopped,
}

impl LogError {
    /// Whether the same writer may try again later (only lack of space resumes by itself).
    pub fn is_retryable(&self) -> bool {
        matches!(self, LogError::NoSpace { .. })
    }
}
