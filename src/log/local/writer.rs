//! The writer's half that lives with its caller: collects records in builders, one a partition, and hands them over.
//!
//! Handing over is a message on a bounded channel. Batches that have been handed over are **pending** until a commit
//! covers them; both sides count them from the last commit on, in order, so that a boundary or an abort is just a
//! number. In a builder a boundary is a mark, set only in the builders that were touched since the boundary before.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use super::Options;
use super::appender::Closed;
use super::files::failed;
use super::shared::Shared;
use super::thread::{Answer, Message, Task, TopicChange, Write};
use crate::log::record_batch::{BatchBuilder, Codec, Mark};
use crate::log::topics::{TopicId, TopicInfo, is_kafka_name};
use crate::log::{Committed, LogError, LogWriter, PartitionId, Record, SourcePosition, Ticket};

/// Writes a local log. Dropping it waits for its thread, which may be fsyncing: use [`close`](Self::close).
#[derive(Debug)]
pub struct LocalWriter {
    shared: Arc<Shared>,
    messages: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    max_batch_bytes: usize,
    max_record_bytes: usize,

    /// Builders since the last commit or flush, in order of their first record.
    pieces: Vec<Piece>,
    partitions: Vec<Partition>,
    /// The log's topics by name, and what has still to be handed over of their making and deleting.
    topics: HashMap<String, Arc<TopicInfo>>,
    topic_changes: Vec<TopicChange>,
    /// Builders that have grown since the last boundary.
    touched: Vec<u32>,
    buffered: usize,
    /// Whether there is something between the last commit and the last boundary.
    has_group: bool,

    /// Batches handed over since the last commit, and how many of them lie before the last boundary.
    pending: usize,
    pending_at_boundary: usize,
    /// How many of them an abort has left, where it has dropped some.
    keep: Option<usize>,

    /// Failures known to the log's thread are in `shared`; those that the caller has learned of by calling `resume`;
    /// and those after which this has been cleared.
    acknowledged: AtomicU64,
    cleared: u64,
}

/// A partition of the log.
#[derive(Debug, Clone, Copy)]
struct Partition {
    /// The place of its newest builder in `pieces`.
    newest: u32,
    codec: Codec,
    /// Whether it has a topic, which has not been deleted.
    is_live: bool,
}

impl Partition {
    const NEW: Partition = Partition { newest: NONE, codec: Codec::Lz4, is_live: true };
}

#[derive(Debug)]
struct Piece {
    partition: PartitionId,
    builder: BatchBuilder,
    /// The last boundary.
    mark: Mark,
    touched: bool,
}

const NONE: u32 = u32::MAX;
/// A log has at most this many partitions: tables of the source, which is not ours to trust, may each make some for ever.
const MAX_PARTITIONS: u32 = 100_000;

impl LocalWriter {
    pub(super) fn new(
        options: &Options,
        shared: Arc<Shared>,
        partitions: usize,
        messages: SyncSender<Message>,
        thread: JoinHandle<()>,
    ) -> Self {
        let mut partitions = vec![Partition { is_live: false, ..Partition::NEW }; partitions];
        let mut topics = HashMap::new();
        for topic in shared.topics.borrow().iter() {
            for partition in &topic.partitions {
                partitions[partition.0 as usize].is_live = true;
            }
            topics.insert(topic.name.clone(), topic.clone());
        }
        LocalWriter {
            shared,
            messages: Some(messages),
            thread: Some(thread),
            max_batch_bytes: options.max_batch_bytes,
            max_record_bytes: options.max_record_bytes,
            pieces: Vec::new(),
            partitions,
            topics,
            topic_changes: Vec::new(),
            touched: Vec::new(),
            buffered: 0,
            has_group: false,
            pending: 0,
            pending_at_boundary: 0,
            keep: None,
            acknowledged: AtomicU64::new(0),
            cleared: 0,
        }
    }

    /// Ends the log's thread when it has done what it was asked to, without blocking the runtime.
    pub async fn close(self) {
        // Fails only when the runtime is shutting down, and then the drop has run.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// How many sealed segments may still be merged.
    #[cfg(any(test, feature = "bench"))]
    pub fn unmerged(&self) -> usize {
        self.shared.unmerged.load(Ordering::Acquire)
    }

    /// Waits until the log's thread has nothing more to do. Hands nothing over.
    #[cfg(test)]
    pub async fn settle(&mut self) -> Result<(), LogError> {
        let (keep, topics) = (self.keep.take(), std::mem::take(&mut self.topic_changes));
        let ticket = self.send(Vec::new(), Task::Settle);
        (self.keep, self.topic_changes) = (keep, topics);
        ticket.await
    }

    /// Brings this in line with a failure: once the caller has called `resume` everything is dropped. Before that,
    /// whatever the caller still appends belongs to what was lost. `false` while that is so.
    fn in_step(&mut self) -> bool {
        let failures = self.shared.failures.load(Ordering::Acquire);
        let acknowledged = self.acknowledged.load(Ordering::Acquire);
        if acknowledged != self.cleared {
            self.clear();
            self.cleared = acknowledged;
        }
        failures == self.cleared
    }

    fn clear(&mut self) {
        for piece in std::mem::take(&mut self.pieces) {
            self.set_newest(piece.partition, NONE);
            self.shared.give_buffer(piece.builder.into_buffer());
        }
        self.touched.clear();
        self.buffered = 0;
        self.has_group = false;
        self.pending = 0;
        self.pending_at_boundary = 0;
        self.keep = None;
    }

    fn set_newest(&mut self, partition: PartitionId, piece: u32) {
        if let Some(partition) = self.partitions.get_mut(partition.0 as usize) {
            partition.newest = piece;
        }
    }

    /// The builder that takes the partition's next record.
    fn piece(&mut self, partition: PartitionId) -> Result<u32, LogError> {
        let known = self.partitions.get(partition.0 as usize).filter(|partition| partition.is_live);
        let known = known.ok_or(LogError::UnknownPartition(partition))?;
        let newest = known.newest;
        if let Some(piece) = self.pieces.get(newest as usize)
            && piece.builder.len() < self.max_batch_bytes
        {
            return Ok(newest);
        }
        let index = self.pieces.len() as u32;
        let builder = BatchBuilder::with_buffer(self.shared.take_buffer());
        self.pieces.push(Piece { partition, builder, mark: Mark::default(), touched: false });
        self.set_newest(partition, index);
        Ok(index)
    }

    /// Takes the pieces up to their marks, leaving what was appended after the boundary.
    fn take_group(&mut self) -> Vec<Closed> {
        self.touched.clear();
        self.buffered = 0;
        let mut group = Vec::with_capacity(self.pieces.len());
        for mut piece in std::mem::take(&mut self.pieces) {
            self.set_newest(piece.partition, NONE);
            if piece.builder.mark() != piece.mark {
                let mut tail = BatchBuilder::with_buffer(self.shared.take_buffer());
                if piece.mark.is_start() {
                    std::mem::swap(&mut tail, &mut piece.builder);
                } else {
                    piece.builder.split_off(piece.mark, &mut tail);
                }
                let index = self.pieces.len() as u32;
                self.buffered += tail.len();
                self.touched.push(index);
                self.pieces.push(Piece {
                    partition: piece.partition,
                    builder: tail,
                    mark: Mark::default(),
                    touched: true,
                });
            }
            if piece.builder.is_empty() {
                self.shared.give_buffer(piece.builder.into_buffer());
            } else {
                group.push(self.close_piece(piece));
            }
        }
        // In order, so that the newest builder of a partition is the one that is found.
        for index in 0..self.pieces.len() {
            self.set_newest(self.pieces[index].partition, index as u32);
        }
        group
    }

    fn close_piece(&self, piece: Piece) -> Closed {
        let known = self.partitions.get(piece.partition.0 as usize);
        let codec = known.map_or(Codec::default(), |partition| partition.codec);
        Closed { partition: piece.partition, codec, builder: piece.builder }
    }

    /// Takes the next partition numbers for a topic, for the log's thread to make it with the next message.
    fn new_topic(&mut self, name: &str, partitions: u32) -> Result<Vec<PartitionId>, LogError> {
        let invalid = |detail| LogError::InvalidTopic { topic: name.to_owned(), detail };
        if !is_kafka_name(name) {
            return Err(invalid(
                "its name must be 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', and not '.' or '..'",
            ));
        }
        if partitions == 0 {
            return Err(invalid("it must have a partition"));
        }
        let id = TopicId::draw().map_err(|error| failed("draw a topic id for", Path::new(name), error))?;
        let ids = self.new_partitions(name, partitions)?;
        let topic = Arc::new(TopicInfo { name: name.to_owned(), id, partitions: ids.clone() });
        self.topics.insert(name.to_owned(), topic.clone());
        self.topic_changes.push(TopicChange::Made(topic));
        Ok(ids)
    }

    /// Takes the next partition numbers.
    fn new_partitions(&mut self, topic: &str, count: u32) -> Result<Vec<PartitionId>, LogError> {
        let first = self.partitions.len() as u32;
        let end = first.saturating_add(count);
        if end > MAX_PARTITIONS {
            return Err(LogError::InvalidTopic {
                topic: topic.to_owned(),
                detail: "the topics of a task have at most 100000 partitions together, and those of tables stay when \
                         the tables are gone; make a new task, with layout `task` or fewer partitions",
            });
        }
        self.partitions.resize(end as usize, Partition::NEW);
        Ok((first..end).map(PartitionId).collect())
    }

    fn set_codec(&mut self, ids: &[PartitionId], codec: Codec) {
        let mut codecs = self.shared.codecs.lock().unwrap_or_else(PoisonError::into_inner);
        codecs.resize(self.partitions.len(), Codec::default());
        for id in ids {
            self.partitions[id.0 as usize].codec = codec;
            codecs[id.0 as usize] = codec;
        }
    }

    fn send<T>(&mut self, pieces: Vec<Closed>, task: impl FnOnce(Answer<T>) -> Task) -> Ticket<T> {
        let (answer, ticket) = Ticket::new();
        let message = Message::Write(Write {
            failures: self.cleared,
            keep: self.keep.take(),
            topics: std::mem::take(&mut self.topic_changes),
            pieces,
            task: task(answer),
        });
        // A message that cannot be sent drops its answer, which the ticket reports as a closed log. It can only be full
        // when the caller does not keep to one ticket at a time.
        let Some(messages) = &self.messages else { return ticket };
        if let Err(TrySendError::Full(_)) = messages.try_send(message) {
            tracing::error!("a log writer has more than one ticket outstanding; it stops");
            self.stop();
        }
        ticket
    }

    /// Lets the log's thread end when it has done what it was asked to.
    fn stop(&mut self) {
        self.messages = None;
        *self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl LogWriter for LocalWriter {
    fn resume(&self) -> Option<SourcePosition> {
        // In this order: a failure after the position was read is not acknowledged by this call.
        self.acknowledged.store(self.shared.failures.load(Ordering::Acquire), Ordering::Release);
        *self.shared.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        codec: Codec,
    ) -> Result<Vec<PartitionId>, LogError> {
        let ids = match self.topics.get(name).map(|topic| &topic.partitions) {
            Some(ids) if ids.len() == partitions as usize => ids.clone(),
            Some(ids) => {
                let existing = ids.len() as u32;
                return Err(LogError::PartitionCount { topic: name.to_owned(), existing, asked: partitions });
            }
            None => self.new_topic(name, partitions)?,
        };
        self.set_codec(&ids, codec);
        Ok(ids)
    }

    fn add_partitions(&mut self, name: &str, total: u32) -> Result<Vec<PartitionId>, LogError> {
        let known = self.topics.get(name).ok_or_else(|| LogError::UnknownTopic(name.to_owned()))?;
        let (topic, existing) = (known.clone(), known.partitions.len() as u32);
        let Some(missing) = total.checked_sub(existing) else {
            return Err(LogError::FewerPartitions { topic: name.to_owned(), existing, asked: total });
        };
        if missing == 0 {
            return Ok(topic.partitions.clone());
        }
        let new = self.new_partitions(name, missing)?;
        let first = topic.partitions.first().and_then(|first| self.partitions.get(first.0 as usize));
        let codec = first.map_or(Codec::default(), |partition| partition.codec);
        self.set_codec(&new, codec);
        let partitions = [&topic.partitions[..], &new].concat();
        let grown = Arc::new(TopicInfo { partitions: partitions.clone(), ..TopicInfo::clone(&topic) });
        self.topics.insert(name.to_owned(), grown.clone());
        self.topic_changes.push(TopicChange::Grown(grown));
        Ok(partitions)
    }

    fn delete_topic(&mut self, name: &str) -> Result<(), LogError> {
        let topic = self.topics.remove(name).ok_or_else(|| LogError::UnknownTopic(name.to_owned()))?;
        for id in &topic.partitions {
            self.partitions[id.0 as usize].is_live = false;
        }
        self.topic_changes.push(TopicChange::Deleted(topic));
        Ok(())
    }

    #[inline]
    fn append(&mut self, partition: PartitionId, record: &Record<'_>) -> Result<(), LogError> {
        let size = BatchBuilder::size_of(record);
        if size > self.max_record_bytes {
            return Err(LogError::RecordTooLarge { size, limit: self.max_record_bytes });
        }
        if !self.in_step() {
            return Ok(());
        }
        let index = self.piece(partition)?;
        let Some(piece) = self.pieces.get_mut(index as usize) else { return Ok(()) };
        let before = piece.builder.len();
        piece.builder.append(record);
        self.buffered += piece.builder.len() - before;
        if !piece.touched {
            piece.touched = true;
            self.touched.push(index);
        }
        Ok(())
    }

    fn max_record_bytes(&self) -> usize {
        self.max_record_bytes
    }

    fn boundary(&mut self) {
        if !self.in_step() {
            return;
        }
        self.has_group |= !self.touched.is_empty() || self.pending > self.pending_at_boundary;
        self.pending_at_boundary = self.pending;
        for index in self.touched.drain(..) {
            if let Some(piece) = self.pieces.get_mut(index as usize) {
                piece.mark = piece.builder.mark();
                piece.touched = false;
            }
        }
    }

    fn abort(&mut self) {
        if !self.in_step() {
            return;
        }
        for index in self.touched.drain(..) {
            if let Some(piece) = self.pieces.get_mut(index as usize) {
                self.buffered -= piece.builder.len() - piece.mark.len();
                piece.builder.rewind(piece.mark);
                piece.touched = false;
            }
        }
        if self.pending > self.pending_at_boundary {
            self.pending = self.pending_at_boundary;
            self.keep = Some(self.keep.map_or(self.pending, |keep| keep.min(self.pending)));
        }
    }

    fn buffered(&self) -> usize {
        self.buffered
    }

    fn has_group(&self) -> bool {
        self.has_group && self.shared.failures.load(Ordering::Acquire) == self.cleared
    }

    fn flush(&mut self) -> Ticket<()> {
        self.in_step();
        // What lies before the boundary goes first: the boundary must fall between two batches.
        let mut pieces = self.take_group();
        self.pending_at_boundary += pieces.len();
        self.touched.clear();
        self.buffered = 0;
        for piece in std::mem::take(&mut self.pieces) {
            self.set_newest(piece.partition, NONE);
            pieces.push(self.close_piece(piece));
        }
        let before = self.pending;
        self.pending = before + pieces.len();
        self.send(pieces, Task::Flush)
    }

    fn commit(&mut self, position: SourcePosition) -> Ticket<Committed> {
        self.in_step();
        let pieces = self.take_group();
        // A tail that has been flushed after the boundary excludes pieces before it.
        debug_assert!(pieces.is_empty() || self.pending == self.pending_at_boundary);
        let covered = self.pending_at_boundary + pieces.len();
        self.pending = self.pending + pieces.len() - covered;
        self.pending_at_boundary = 0;
        self.has_group = false;
        self.send(pieces, |answer| Task::Commit { covered, position, answer })
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
