//! A log in memory: exact batches and commits, failures on demand, and a count of reads. What only a test can ask for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use millrace::log::topics::{Topic, TopicId, TopicList};
use millrace::log::{Fetched, LogError, LogReader, Offset, PartitionId, PartitionRange, Retention, Snapshot};
use tokio::sync::watch;

/// The leader epoch of its partitions.
pub const EPOCH: i32 = 3;

#[derive(Default)]
pub struct MemoryLog {
    snapshot: watch::Sender<Arc<Snapshot>>,
    batches: Mutex<HashMap<PartitionId, Vec<Batch>>>,
    topics: watch::Sender<TopicList>,
    retention: Mutex<Retention>,
    /// Answers reads with an error.
    pub broken: AtomicBool,
    /// How often bytes have been read.
    pub reads: AtomicUsize,
}

#[derive(Clone)]
struct Batch {
    base: i64,
    end: i64,
    timestamp: i64,
    bytes: Bytes,
}

/// A batch to append: so many records and bytes, all of one time.
#[derive(Clone, Copy)]
pub struct Append {
    pub partition: u32,
    pub records: i64,
    pub size: usize,
    pub timestamp: i64,
    pub codec: u8,
}

/// A batch of one record in 100 bytes.
pub fn one(partition: u32) -> Append {
    Append { partition, records: 1, size: 100, timestamp: 0, codec: 0 }
}

impl MemoryLog {
    /// A log with an empty topic of so many partitions.
    pub fn with_topic(name: &str, partitions: u32) -> (Arc<MemoryLog>, Topic) {
        let log = Arc::new(MemoryLog::default());
        let partitions: Vec<_> = (0..partitions).map(PartitionId).collect();
        let empty = partitions.iter().map(|partition| (*partition, PartitionRange::default()));
        log.snapshot.send_modify(|snapshot| *snapshot = Arc::new(snapshot.with(0, empty)));
        let topic = Topic { name: name.into(), id: TopicId(77), partitions, log: log.clone() };
        (log, topic)
    }

    /// Appends batches and makes them visible in one commit.
    pub fn commit(&self, appends: &[Append]) {
        let mut batches = self.batches.lock().unwrap();
        let before = self.snapshot();
        let mut ranges = HashMap::new();
        for append in appends {
            let partition = PartitionId(append.partition);
            let range =
                ranges.entry(partition).or_insert_with(|| before.range(partition).unwrap_or_default());
            let base = range.end.0;
            range.end = Offset(base + append.records);
            batches.entry(partition).or_default().push(Batch {
                base,
                end: range.end.0,
                timestamp: append.timestamp,
                bytes: bytes(base, append),
            });
        }
        drop(batches);
        self.snapshot.send_replace(Arc::new(before.with(before.commit() + 1, ranges)));
    }

    /// Moves a partition's start, as retention does.
    pub fn expire(&self, partition: u32, start: i64) {
        let before = self.snapshot();
        let partition = PartitionId(partition);
        let range = PartitionRange { start: Offset(start), ..before.range(partition).unwrap_or_default() };
        self.snapshot.send_replace(Arc::new(before.with(before.commit() + 1, [(partition, range)])));
    }

    /// Takes a partition away, as the deletion of its topic does.
    pub fn forget(&self, partition: u32) {
        let next = self.snapshot().without([PartitionId(partition)]);
        self.snapshot.send_replace(Arc::new(next));
    }

    /// How many wait for a commit.
    pub fn waiting(&self) -> usize {
        self.snapshot.receiver_count()
    }

    fn batches(
        &self,
        snapshot: &Snapshot,
        partition: PartitionId,
    ) -> Result<(PartitionRange, Vec<Batch>), LogError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(LogError::Stopped);
        }
        let range = snapshot.range(partition).ok_or(LogError::UnknownPartition(partition))?;
        let batches = self.batches.lock().unwrap().get(&partition).cloned().unwrap_or_default();
        let seen = |batch: &Batch| batch.base < range.end.0 && batch.end > range.start.0;
        Ok((range, batches.into_iter().filter(seen).collect()))
    }

    fn find(&self, snapshot: &Snapshot, partition: PartitionId, from: i64) -> FoundByTime {
        let (_, batches) = self.batches(snapshot, partition)?;
        let found = batches.iter().find(|batch| batch.timestamp >= from);
        Ok(found.map(|batch| (Offset(batch.base), batch.timestamp)))
    }
}

type FoundByTime = Result<Option<(Offset, i64)>, LogError>;

/// Looks like a batch as far as a broker looks.
fn bytes(base: i64, append: &Append) -> Bytes {
    let mut bytes = BytesMut::with_capacity(append.size);
    bytes.put_i64(base);
    bytes.put_i32(append.size as i32 - 12);
    bytes.put_i32(EPOCH);
    bytes.put_u8(2);
    bytes.put_u32(0);
    bytes.put_i16(append.codec.into());
    bytes.put_bytes(append.partition as u8, append.size - bytes.len());
    bytes.freeze()
}

impl LogReader for MemoryLog {
    fn name(&self) -> &str {
        "memory"
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    fn topics(&self) -> watch::Receiver<TopicList> {
        self.topics.subscribe()
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    fn watchers(&self) -> usize {
        self.waiting()
    }

    fn leader_epoch(&self) -> i32 {
        EPOCH
    }

    fn fetch<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Fetched, LogError>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let (range, batches) = self.batches(snapshot, partition)?;
            if from < range.start || from > range.end {
                return Err(LogError::OutOfRange { offset: from, start: range.start, end: range.end });
            }
            let mut fetched = Fetched::default();
            for batch in batches.into_iter().filter(|batch| batch.end > from.0) {
                if !fetched.is_empty() && fetched.len() + batch.bytes.len() > max_bytes {
                    break;
                }
                fetched.batches.push(batch.bytes);
            }
            Ok(fetched)
        })
    }

    fn find_by_time<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        timestamp: i64,
    ) -> BoxFuture<'a, FoundByTime> {
        Box::pin(async move { self.find(snapshot, partition, timestamp) })
    }

    fn max_timestamp<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
    ) -> BoxFuture<'a, FoundByTime> {
        Box::pin(async move {
            let (_, batches) = self.batches(snapshot, partition)?;
            match batches.iter().map(|batch| batch.timestamp).max() {
                Some(max) => self.find(snapshot, partition, max),
                None => Ok(None),
            }
        })
    }

    fn delete_records(
        &self,
        below: Vec<(PartitionId, Offset)>,
    ) -> BoxFuture<'_, Result<Vec<Offset>, LogError>> {
        Box::pin(async move {
            let mut starts = Vec::new();
            for (partition, offset) in below {
                let range = self.snapshot().range(partition).ok_or(LogError::UnknownPartition(partition))?;
                starts.push(offset.min(range.end).max(range.start));
                self.expire(partition.0, starts[starts.len() - 1].0);
            }
            Ok(starts)
        })
    }

    fn retention(&self) -> Retention {
        *self.retention.lock().unwrap()
    }

    fn set_retention(&self, retention: Retention) {
        *self.retention.lock().unwrap() = retention;
    }

    fn partition_bytes(&self, partition: PartitionId) -> u64 {
        let batches = self.batches.lock().unwrap();
        batches
            .get(&partition)
            .map_or(0, |batches| batches.iter().map(|batch| batch.bytes.len() as u64).sum())
    }

    fn total_bytes(&self) -> u64 {
        self.batches.lock().unwrap().values().flatten().map(|batch| batch.bytes.len() as u64).sum()
    }
}
