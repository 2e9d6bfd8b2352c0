//! The writer's half that lives with its caller: collects records in builders, one a partition, and hands them over.
//!
//! Handing over is a message on a bounded channel. Batches that have been handed over are **pending** until a commit
//! covers them; both sides count them from the last commit on, in order, so that a boundary or an abort is just a
//! number. In a builder a boundary is a mark, set only in the builders that were touched since the boundary before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::shared::Shared;
use super::thread::{Message, Task};
use super::{Options, TopicInfo};
use crate::log::record_batch::{BatchBuilder, Mark};
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
    /// For each partition the place of its newest builder in `pieces`.
    newest: Vec<u32>,
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

#[derive(Debug)]
struct Piece {
    partition: PartitionId,
    builder: BatchBuilder,
    /// The last boundary.
    mark: Mark,
    touched: bool,
}

const NONE: u32 = u32::MAX;

impl LocalWriter {
    pub(super) fn new(
        options: &Options,
        shared: Arc<Shared>,
        messages: SyncSender<Message>,
        thread: JoinHandle<()>,
    ) -> Self {
        let partitions = shared.topics().iter().map(|topic| topic.partitions.len()).sum();
        LocalWriter {
            shared,
            messages: Some(messages),
            thread: Some(thread),
            max_batch_bytes: options.max_batch_bytes,
            max_record_bytes: options.max_record_bytes,
            pieces: Vec::new(),
            newest: vec![NONE; partitions],
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

    /// The log's topics.
    pub fn topics(&self) -> Vec<TopicInfo> {
        self.shared.topics()
    }

    /// Ends the log's thread when it has done what it was asked to, without blocking the runtime.
    pub async fn close(self) {
        // Fails only when the runtime is shutting down, and then the drop has run.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
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
        if let Some(newest) = self.newest.get_mut(partition.0 as usize) {
            *newest = piece;
        }
    }

    /// The builder that takes the partition's next record.
    fn piece(&mut self, partition: PartitionId) -> Result<u32, LogError> {
        let newest = *self.newest.get(partition.0 as usize).ok_or(LogError::UnknownPartition(partition))?;
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
    fn take_group(&mut self) -> Vec<(PartitionId, BatchBuilder)> {
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
                group.push((piece.partition, piece.builder));
            }
        }
        // In order, so that the newest builder of a partition is the one that is found.
        for index in 0..self.pieces.len() {
            self.set_newest(self.pieces[index].partition, index as u32);
        }
        group
    }

    fn send<T>(
        &mut self,
        pieces: Vec<(PartitionId, BatchBuilder)>,
        task: impl FnOnce(Answer<T>) -> Task,
    ) -> Ticket<T> {
        let (answer, ticket) = Ticket::new();
        let message = Message { failures: self.cleared, keep: self.keep.take(), pieces, task: task(answer) };
        // A message that cannot be sent drops its answer, which the ticket reports as a closed log. It can only be full
        // when the caller does not keep to one ticket at a time.
        let Some(messages) = &self.messages else { return ticket };
        if let Err(TrySendError::Full(_)) = messages.try_send(message) {
            tracing::error!("a log writer has more than one ticket outstanding; it stops");
            self.messages = None;
        }
        ticket
    }
}

type Answer<T> = oneshot::Sender<Result<T, LogError>>;

impl LogWriter for LocalWriter {
    fn resume(&self) -> Option<SourcePosition> {
        // In this order: a failure after the position was read is not acknowledged by this call.
        self.acknowledged.store(self.shared.failures.load(Ordering::Acquire), Ordering::Release);
        *self.shared.position.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn create_topic<'a>(
        &'a mut self,
        name: &'a str,
        partitions: u32,
    ) -> BoxFuture<'a, Result<Vec<PartitionId>, LogError>> {
        Box::pin(async move {
            self.in_step();
            let keep = self.keep.take();
            let ticket = self.send(Vec::new(), |answer| Task::CreateTopic {
                name: name.to_owned(),
                partitions,
                answer,
            });
            self.keep = keep;
            let ids = ticket.await?;
            let known = ids.iter().map(|id| id.0 as usize + 1).max().unwrap_or(0);
            if self.newest.len() < known {
                self.newest.resize(known, NONE);
            }
            Ok(ids)
        })
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
            pieces.push((piece.partition, piece.builder));
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
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
