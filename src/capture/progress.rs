//! How far a task is: numbers that the pipeline writes and that metrics, health and the summary line read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::change::{Lsn, Timestamp};
use crate::postgres::snapshot::ReadProgress;

/// Counters and positions of one task. Written once a group or a read, never once a row.
#[derive(Debug, Default)]
pub struct Progress {
    received_lsn: AtomicU64,
    decoded_lsn: AtomicU64,
    durable_lsn: AtomicU64,
    source_lsn: AtomicU64,
    durable_commit_time: AtomicU64,
    transactions: AtomicU64,
    changes: AtomicU64,
    records: AtomicU64,
    bytes_received: AtomicU64,
    retained_wal: AtomicU64,
    reconnects: AtomicU64,
    tables: Mutex<Shortfalls>,
    captured: Mutex<Arc<[CapturedTable]>>,
    reading: Mutex<BTreeMap<u64, Arc<ReadProgress>>>,
}

/// A table whose changes are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedTable {
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// Schemas and names of the partitioned tables above it.
    pub above: Vec<(String, String)>,
    /// Schema and name of the one among them as which it is told; `None` where it is told as itself.
    pub told_as: Option<(String, String)>,
    /// Whether only inserts and truncates are.
    pub insert_only: bool,
    /// What to run so that its rows can be read; `None` where they can.
    pub unreadable: Option<String>,
}

/// Tables that are captured less than whole, one sentence each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shortfalls {
    /// Tables that cannot be captured, with the reason and the SQL that mends it.
    pub not_captured: Vec<String>,
    /// Tables of which only inserts and truncates are captured, with the SQL that mends it.
    pub insert_only: Vec<String>,
    /// What the task's objects mean and cannot be captured, with the reason.
    pub refused: Vec<String>,
    /// Patterns of the task's objects that select no table, and why.
    pub unmatched: Vec<String>,
}

/// [`Progress`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressView {
    /// End of the WAL that has arrived.
    pub received_lsn: Lsn,
    /// End of the last transaction decoded.
    pub decoded_lsn: Lsn,
    /// End of the last transaction that is durable here.
    pub durable_lsn: Lsn,
    /// Where the source writes.
    pub source_lsn: Lsn,
    /// Commit time of the last durable transaction.
    pub durable_commit_time: Timestamp,
    /// Transactions captured since the start of the process.
    pub transactions: u64,
    /// Row changes and other source events captured since the start of the process.
    pub changes: u64,
    /// Records made of them.
    pub records: u64,
    /// Bytes of replication messages received.
    pub bytes_received: u64,
    /// WAL that our slot makes the source keep, in bytes.
    pub retained_wal: u64,
    /// How often the connection to the source was made anew.
    pub reconnects: u64,
    /// Tables that are captured less than whole.
    pub tables: Shortfalls,
}

impl ProgressView {
    /// How far the durable log is behind the source, in bytes of WAL.
    pub fn lag_bytes(&self) -> u64 {
        self.source_lsn.bytes_since(self.durable_lsn)
    }

    /// How old the last durable transaction is, in seconds, while the source is ahead of it; 0 when nothing is waiting.
    pub fn lag_seconds(&self, now: Timestamp) -> f64 {
        if self.lag_bytes() == 0 || self.durable_commit_time.0 == 0 {
            return 0.0;
        }
        (now.0.saturating_sub(self.durable_commit_time.0)).max(0) as f64 / 1e6
    }
}

impl Progress {
    /// WAL up to here has arrived, in this many bytes of messages.
    pub fn received(&self, lsn: Lsn, bytes: u64) {
        self.received_lsn.fetch_max(lsn.0, Relaxed);
        self.bytes_received.fetch_add(bytes, Relaxed);
    }

    /// A transaction has been decoded.
    pub fn decoded(&self, end: Lsn, changes: u64, records: u64) {
        self.decoded_lsn.store(end.0, Relaxed);
        self.changes.fetch_add(changes, Relaxed);
        self.records.fetch_add(records, Relaxed);
        self.transactions.fetch_add(u64::from(changes > 0), Relaxed);
    }

    /// Everything up to here is durable.
    pub fn durable(&self, end: Lsn, commit_time: Option<Timestamp>) {
        self.durable_lsn.store(end.0, Relaxed);
        if let Some(time) = commit_time {
            self.durable_commit_time.store(time.0 as u64, Relaxed);
        }
    }

    /// What the source said of itself and of our slot.
    pub fn source(&self, lsn: Lsn, retained_wal: u64) {
        self.source_lsn.store(lsn.0, Relaxed);
        self.retained_wal.store(retained_wal, Relaxed);
    }

    /// The connection is made anew.
    pub fn reconnecting(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }

    /// Which tables are captured less than whole.
    pub fn set_tables(&self, tables: Shortfalls) {
        *self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = tables;
    }

    /// Which tables are captured.
    pub fn set_captured(&self, tables: Arc<[CapturedTable]>) {
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = tables;
    }

    /// The tables that are captured, by name.
    pub fn captured(&self) -> Arc<[CapturedTable]> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The existing rows of tables are being read by a job.
    pub fn begin_reading(&self, job: u64, progress: Arc<ReadProgress>) {
        self.lock_reading().insert(job, progress);
    }

    /// They are no more; of all jobs, when none is named.
    pub fn end_reading(&self, job: Option<u64>) {
        self.lock_reading().retain(|number, _| job.is_some_and(|job| *number != job));
    }

    /// How far the reading of existing rows is, for each job.
    pub fn reading(&self) -> Vec<Arc<ReadProgress>> {
        self.lock_reading().values().cloned().collect()
    }

    fn lock_reading(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ReadProgress>>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers now.
    pub fn view(&self) -> ProgressView {
        let durable = self.durable_lsn.load(Relaxed);
        ProgressView {
            received_lsn: Lsn(self.received_lsn.load(Relaxed)),
            decoded_lsn: Lsn(self.decoded_lsn.load(Relaxed)),
            durable_lsn: Lsn(durable),
            source_lsn: Lsn(self.source_lsn.load(Relaxed).max(durable)),
            durable_commit_time: Timestamp(self.durable_commit_time.load(Relaxed) as i64),
            transactions: self.transactions.load(Relaxed),
            changes: self.changes.load(Relaxed),
            records: self.records.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            retained_wal: self.retained_wal.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            tables: self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone(),
        }
    }
}
