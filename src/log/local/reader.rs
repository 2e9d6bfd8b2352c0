//! The reader: looks places up in the views and takes the bytes from the tail cache, or else from the files.
//!
//! Lookups and the tail cache are in memory, behind locks that are held for no I/O; files are read on the blocking pool.
//! Every entry read from a file is checked against its checksum before it is handed out (I8).

use std::sync::atomic::Ordering;
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use super::BATCH_LIMIT;
use super::entry::BATCH_AT;
use super::index::{self, IndexEntry};
use super::segment::{Form, Segment, corrupt};
use super::shared::Shared;
use super::thread::Message;
use super::views::{Loaded, Lookup, Place, Views, Want};
use crate::log::record_batch::{BatchError, BatchHeader, RecordView};
use crate::log::topics::TopicList;
use crate::log::{Fetched, LogError, LogReader, Offset, PartitionId, PartitionRange, Retention, Snapshot};

/// Batches of a partition with at most this much of others between them are read at once.
const MAX_GAP: u64 = 32 * 1024;
/// But not more than this.
const MAX_READ: u64 = 4 << 20;

/// Reads a local log.
#[derive(Debug)]
pub struct LocalReader {
    shared: Arc<Shared>,
}

impl LocalReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        LocalReader { shared }
    }

    /// Whether the log still takes records: false once an error other than lack of space has stopped its writer.
    pub fn is_writable(&self) -> bool {
        !self.shared.poisoned.load(Ordering::Acquire)
    }

    fn range(&self, snapshot: &Snapshot, partition: PartitionId) -> Result<PartitionRange, LogError> {
        snapshot.range(partition).ok_or(LogError::UnknownPartition(partition))
    }

    /// What retention, or who has deleted it, has taken meanwhile.
    fn gone(&self, partition: PartitionId, offset: Offset) -> LogError {
        match self.shared.snapshot().range(partition) {
            Some(range) => LogError::OutOfRange { offset, start: range.start, end: range.end },
            None => LogError::UnknownPartition(partition),
        }
    }

    /// Asks the views, and loads the index entries that they need.
    async fn lookup<T>(
        &self,
        partition: PartitionId,
        offset: Offset,
        ask: impl Fn(&Views, Loaded<'_>) -> Lookup<T>,
    ) -> Result<T, LogError> {
        // What was loaded is kept here too, should the cache be too small for it.
        let mut fresh: Vec<(Arc<Segment>, Arc<[IndexEntry]>)> = Vec::new();
        loop {
            let answer = {
                let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
                let mut cache = self.shared.indexes.lock().unwrap_or_else(PoisonError::into_inner);
                let mut loaded = |segment: &Segment, partition| match fresh
                    .iter()
                    .find(|(fresh, _)| std::ptr::eq(&**fresh, segment))
                {
                    Some((_, entries)) => Some(entries.clone()),
                    None => cache.get(segment, partition),
                };
                ask(&views, &mut loaded)
            };
            let needed = match answer {
                Lookup::Found(found) => return Ok(found),
                Lookup::Needs(needed) => needed,
            };
            let (files, segment) = (self.shared.files.clone(), needed.segment.clone());
            let loaded = blocking(move || index::load(&*files, &segment, needed.slot)).await;
            let entries = match loaded {
                Ok(entries) => entries,
                Err(_) if self.shared.is_removed(needed.segment.sequence) => {
                    return Err(self.gone(partition, offset));
                }
                // A merge has put another file in its place meanwhile.
                Err(_) if !self.is_in_force(&needed.segment, partition) => continue,
                Err(error) => return Err(error),
            };
            let mut cache = self.shared.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            cache.insert(&needed.segment, partition, entries.clone());
            fresh.push((needed.segment, entries));
        }
    }

    fn is_in_force(&self, segment: &Arc<Segment>, partition: PartitionId) -> bool {
        let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
        views.is_in_force(segment, partition)
    }

    /// The batches at `places`, from memory where they all are there.
    async fn read(&self, places: Vec<Place>, from: Offset) -> Result<Vec<Bytes>, LogError> {
        let Some(first) = places.first().map(|place| (place.segment.sequence, place.partition)) else {
            return Ok(Vec::new());
        };
        let cached: Option<Vec<Bytes>> = {
            let tail = self.shared.tail.lock().unwrap_or_else(PoisonError::into_inner);
            let batch = |place: &Place| {
                let entry = &place.entry;
                if place.segment.form == Form::Merged {
                    return None;
                }
                let at = u64::from(entry.position) + BATCH_AT as u64;
                tail.get(place.segment.sequence, at, entry.len as usize - BATCH_AT)
            };
            places.iter().map(batch).collect()
        };
        if let Some(batches) = cached {
            return Ok(batches);
        }
        match blocking(move || read_places(&places)).await {
            Err(_) if self.shared.is_removed(first.0) => Err(self.gone(first.1, from)),
            read => read,
        }
    }

    /// The first record in a range that has `timestamp`, or a later one.
    async fn first_at(
        &self,
        partition: PartitionId,
        range: PartitionRange,
        timestamp: i64,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        let mut from = range.start;
        while from < range.end {
            let want = Want::Timestamp(timestamp);
            let places = self
                .lookup(partition, from, |views, loaded| {
                    views.places(partition, from, range.end, want, loaded)
                })
                .await?;
            let Some(place) = places.first().cloned() else { break };
            let batch = self.read(places, from).await?.pop().unwrap_or_default();
            let scan = move || {
                let is_wanted =
                    |record: &RecordView<'_>| record.offset >= from && record.timestamp >= timestamp;
                let found = scan(&place, &batch, is_wanted, |first, _| first)?;
                Ok((found, BatchHeader::parse(&batch).map_or(range.end, |header| header.end_offset())))
            };
            let (found, end) = blocking(scan).await?;
            if found.is_some() {
                return Ok(found);
            }
            // Those that the batch has lie below the start.
            from = end.max(Offset(from.0 + 1));
        }
        Ok(None)
    }

    /// The largest timestamp in the batch that a range begins inside of, if it does, within the range.
    async fn max_timestamp_in_cut_batch(
        &self,
        partition: PartitionId,
        PartitionRange { start, end }: PartitionRange,
    ) -> Result<Option<i64>, LogError> {
        let mut places = self
            .lookup(partition, start, |views, loaded| {
                views.places(partition, start, end, Want::Bytes(0), loaded)
            })
            .await?;
        places.retain(|place| place.entry.base < start.0);
        let Some(place) = places.first().cloned() else { return Ok(None) };
        let batch = self.read(places, start).await?.pop().unwrap_or_default();
        let later = |max: (Offset, i64), record: (Offset, i64)| if record.1 > max.1 { record } else { max };
        let max = blocking(move || scan(&place, &batch, |record| record.offset >= start, later)).await?;
        Ok(max.map(|(_, timestamp)| timestamp))
    }
}

impl LogReader for LocalReader {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot()
    }

    fn topics(&self) -> watch::Receiver<TopicList> {
        self.shared.topics.subscribe()
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshot.subscribe()
    }

    fn watchers(&self) -> usize {
        self.shared.snapshot.receiver_count()
    }

    fn leader_epoch(&self) -> i32 {
        self.shared.leader_epoch
    }

    fn fetch<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Fetched, LogError>> {
        Box::pin(async move {
            let range = self.range(snapshot, partition)?;
            if from < range.start || from > range.end {
                return Err(LogError::OutOfRange { offset: from, start: range.start, end: range.end });
            }
            if from == range.end {
                return Ok(Fetched::default());
            }
            let want = Want::Bytes(max_bytes);
            let places = self
                .lookup(partition, from, |views, loaded| {
                    views.places(partition, from, range.end, want, loaded)
                })
                .await?;
            if places.is_empty() {
                return Err(self.gone(partition, from));
            }
            Ok(Fetched { batches: self.read(places, from).await? })
        })
    }

    fn find_by_time<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
        timestamp: i64,
    ) -> BoxFuture<'a, Result<Option<(Offset, i64)>, LogError>> {
        Box::pin(async move {
            let range = self.range(snapshot, partition)?;
            self.first_at(partition, range, timestamp).await
        })
    }

    fn max_timestamp<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        partition: PartitionId,
    ) -> BoxFuture<'a, Result<Option<(Offset, i64)>, LogError>> {
        Box::pin(async move {
            let range = self.range(snapshot, partition)?;
            let max = self
                .lookup(partition, range.start, |views, loaded| {
                    views.max_timestamp(partition, range.start, range.end, loaded)
                })
                .await?;
            match max.max(self.max_timestamp_in_cut_batch(partition, range).await?) {
                Some(timestamp) => self.first_at(partition, range, timestamp).await,
                None => Ok(None),
            }
        })
    }

    fn delete_records(
        &self,
        below: Vec<(PartitionId, Offset)>,
    ) -> BoxFuture<'_, Result<Vec<Offset>, LogError>> {
        Box::pin(async move {
            let turn = self.shared.one_request.clone().acquire_owned().await;
            let _turn = turn.map_err(|_| LogError::Stopped)?;
            let (answer, answered) = oneshot::channel();
            let message = Message::DeleteRecords { below, answer, _turn };
            let sent = match &*self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(requests) => requests.try_send(message),
                None => Err(TrySendError::Disconnected(message)),
            };
            // There is room for one request beside the writer's.
            sent.map_err(|_| LogError::Stopped)?;
            answered.await.unwrap_or(Err(LogError::Stopped))
        })
    }

    fn retention(&self) -> Retention {
        *self.shared.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_retention(&self, retention: Retention) {
        *self.shared.retention.lock().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    fn partition_bytes(&self, partition: PartitionId) -> u64 {
        self.shared.views.read().unwrap_or_else(PoisonError::into_inner).bytes(partition)
    }

    fn total_bytes(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }
}

/// Runs something that blocks where that is allowed.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    // It fails only when it panics or the runtime is shutting down.
    tokio::task::spawn_blocking(run).await.unwrap_or(Err(LogError::Stopped))
}

fn read_places(places: &[Place]) -> Result<Vec<Bytes>, LogError> {
    let mut batches = Vec::with_capacity(places.len());
    let mut rest = places;
    while let Some(first) = rest.first() {
        let start = u64::from(first.entry.position);
        let mut end = start;
        let together = rest.iter().take_while(|place| {
            let (at, len) = (u64::from(place.entry.position), u64::from(place.entry.len));
            let near = place.segment.sequence == first.segment.sequence
                && at >= end
                && at - end <= MAX_GAP
                && (end == start || at + len - start <= MAX_READ);
            if near {
                end = at + len;
            }
            near
        });
        let (now, later) = rest.split_at(together.count().max(1));
        let bytes = Bytes::from(first.segment.read(start, (end - start) as usize)?);
        for place in now {
            let from = (u64::from(place.entry.position) - start) as usize;
            let entry = bytes.slice(from..from + place.entry.len as usize);
            place.segment.check_batch(place.partition, &place.entry, &entry)?;
            batches.push(entry.slice(BATCH_AT..));
        }
        rest = later;
    }
    Ok(batches)
}

/// Goes through the records of a batch: puts those that are wanted together, with offset and timestamp each.
fn scan(
    place: &Place,
    batch: &[u8],
    is_wanted: impl Fn(&RecordView<'_>) -> bool,
    fold: impl Fn((Offset, i64), (Offset, i64)) -> (Offset, i64),
) -> Result<Option<(Offset, i64)>, LogError> {
    let bad =
        |error: BatchError| corrupt(&place.segment.path, place.entry.position.into(), error.to_string());
    let header = BatchHeader::parse(batch).map_err(bad)?;
    let mut records = header.records(batch, BATCH_LIMIT).map_err(bad)?;
    let mut result = None;
    while let Some(record) = records.next_record().map_err(bad)? {
        if is_wanted(&record) {
            let found = (record.offset, record.timestamp);
            result = Some(result.map_or(found, |result| fold(result, found)));
        }
    }
    Ok(result)
}
