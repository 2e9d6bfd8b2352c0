//! The log's thread: takes groups from the writer, makes them durable, then visible, then answers.
//!
//! The order in [`LogThread::commit`] is the heart of the promises: write, fsync, views, snapshot, answer. Sealing and
//! retention come after the answer, so that nobody waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::Options;
use super::appender::{Appender, Closed, LastCommit, Place};
use super::checkpoint::{Base, Checkpoint, PartitionState};
use super::entry::CommitEntry;
use super::index::IndexCache;
use super::merging::Merging;
use super::recovery::Recovered;
use super::shared::Shared;
use super::tail::TailCache;
use crate::log::topics::TopicInfo;
use crate::log::{Committed, LogError, Offset, PartitionId, PartitionRange, Snapshot, SourcePosition};

/// How much of the sealed segments' indexes is kept in memory.
const INDEX_CACHE: usize = 16 << 20;

/// How often an idle log looks after its segments.
const IDLE: Duration = Duration::from_secs(10);

/// What the thread is asked for.
pub enum Message {
    /// The writer hands over.
    Write(Write),
    /// A reader raises the starts of partitions.
    DeleteRecords {
        below: Vec<(PartitionId, Offset)>,
        answer: Answer<Vec<Offset>>,
        /// Given back when it is done.
        _turn: OwnedSemaphorePermit,
    },
}

/// What the writer sends.
pub struct Write {
    /// The failures that the writer knows of; a message that crossed one is refused.
    pub failures: u64,
    /// How many of the pending batches are kept, where an abort has dropped some.
    pub keep: Option<usize>,
    /// What has become of the topics since the message before; taken in whatever becomes of the rest.
    pub topics: Vec<TopicChange>,
    /// Batches to append, in order.
    pub pieces: Vec<Closed>,
    pub task: Task,
}

/// What becomes of a topic.
#[derive(Debug, Clone)]
pub enum TopicChange {
    Made(Arc<TopicInfo>),
    /// It has got partitions.
    Grown(Arc<TopicInfo>),
    Deleted(Arc<TopicInfo>),
}

/// What to do then.
pub enum Task {
    Flush(Answer<()>),
    /// Commit the first `covered` pending batches.
    Commit {
        covered: usize,
        position: SourcePosition,
        answer: Answer<Committed>,
    },
    /// Nothing, when everything before it is done.
    #[cfg(test)]
    Settle(Answer<()>),
}

pub type Answer<T> = oneshot::Sender<Result<T, LogError>>;

pub struct LogThread {
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) checkpoint: Checkpoint,
    pub(super) appender: Appender,
    pub(super) merging: Merging,
    /// Whether there may be sealed segments of which nothing can be read any more.
    pub(super) is_freed: bool,
    /// Whether the last look at old segments kept some for a hidden topic alone.
    pub(super) retention_is_held_up: bool,
    /// Changes of topics that are not shown yet.
    unshown: Vec<TopicChange>,
    /// The error that everything since the last commit was lost to.
    lost_to: Option<LogError>,
    pub(super) metrics: Metrics,
}

impl LogThread {
    pub fn new(options: Options, recovered: Recovered, requests: SyncSender<Message>) -> Self {
        let Recovered { checkpoint, end, views, snapshot, position } = recovered;
        let shared = Arc::new(Shared {
            name: options.name.clone(),
            files: options.files.clone(),
            leader_epoch: checkpoint.leader_epoch,
            snapshot: watch::Sender::new(Arc::new(snapshot)),
            views: RwLock::new(views),
            tail: Mutex::new(TailCache::new(options.tail_cache_bytes)),
            indexes: Mutex::new(IndexCache::new(INDEX_CACHE)),
            failures: 0.into(),
            poisoned: false.into(),
            removed: 0.into(),
            codecs: Mutex::default(),
            unmerged: 0.into(),
            position: Mutex::new(position),
            retention: Mutex::new(options.retention),
            size: 0.into(),
            requests: Mutex::new(Some(requests)),
            one_request: Arc::new(Semaphore::new(1)),
            topics: watch::Sender::new(checkpoint.topics.clone()),
            buffers: Mutex::new(Vec::new()),
        });
        let appender = Appender::new(&options, checkpoint.log_id, checkpoint.leader_epoch, end);
        let metrics = Metrics::new(&options.name);
        let thread = LogThread {
            options,
            shared,
            checkpoint,
            appender,
            merging: Merging::default(),
            is_freed: true,
            retention_is_held_up: false,
            unshown: Vec::new(),
            lost_to: None,
            metrics,
        };
        thread.note_size();
        thread
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Works until the writer is gone.
    pub fn run(mut self, inbox: &Receiver<Message>) {
        self.look_after_segments();
        self.go_on_merging();
        let mut looked = Instant::now();
        loop {
            let wait = self.merging.wait().unwrap_or(IDLE).min(IDLE.saturating_sub(looked.elapsed()));
            let is_due = match inbox.recv_timeout(wait) {
                Ok(Message::Write(write)) => {
                    let is_commit = matches!(write.task, Task::Commit { .. });
                    self.handle(write);
                    self.merging.allow();
                    is_commit
                }
                Ok(Message::DeleteRecords { below, answer, _turn }) => {
                    // The caller may have stopped waiting.
                    let _ = answer.send(self.delete_records(&below));
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if is_due || looked.elapsed() >= IDLE {
                self.look_after_segments();
                looked = Instant::now();
            }
            self.go_on_merging();
        }
        self.stop_merging();
        self.close();
    }

    fn handle(&mut self, write: Write) {
        let Write { failures, keep, topics, pieces, task } = write;
        self.take_in(topics);
        if failures != self.shared.failures.load(Ordering::Acquire) || self.is_poisoned() {
            task.refuse(self.lost_to());
            return;
        }
        let prepared = self.append(keep, pieces);
        match task {
            Task::Flush(answer) => {
                let flushed = prepared
                    .and_then(|()| self.save_topics())
                    .and_then(|()| self.appender.write(&self.shared));
                let result = self.lost_on_error(flushed);
                let _ = answer.send(result);
            }
            Task::Commit { covered, position, answer } => {
                let committed = prepared.and_then(|()| self.commit(covered, position));
                let result = self.lost_on_error(committed);
                // The caller may have stopped waiting.
                let _ = answer.send(result);
            }
            #[cfg(test)]
            Task::Settle(answer) => drop(answer.send(prepared)),
        }
    }

    fn append(&mut self, keep: Option<usize>, pieces: Vec<Closed>) -> Result<(), LogError> {
        if let Some(keep) = keep {
            self.appender.abort(&self.shared, keep)?;
        }
        for closed in pieces {
            self.appender.batch(&self.shared, &closed)?;
            self.shared.give_buffer(closed.builder.into_buffer());
        }
        Ok(())
    }

    fn commit(&mut self, covered: usize, position: SourcePosition) -> Result<Committed, LogError> {
        // Durable before there is a commit that needs them.
        self.save_topics()?;
        let number = self.appender.last.number + 1;
        let covered = covered.min(self.appender.pending.len());
        let touched: BTreeMap<PartitionId, Offset> = self.appender.pending[..covered]
            .iter()
            .map(|batch| (batch.partition, Offset(batch.end)))
            .collect();
        let ends: Vec<_> = touched.into_iter().collect();
        let entry = CommitEntry {
            number,
            chain: 0,
            covered: covered as u32,
            appended: now_ms(),
            position,
            ends: ends.clone(),
        };
        self.appender.commit(&self.shared, entry)?;
        let started = Instant::now();
        self.appender.sync()?;
        self.metrics.fsync.record(started.elapsed().as_secs_f64());

        // Durable. From here on nothing can fail.
        let covered: Vec<_> = self.appender.pending.drain(..covered).collect();
        let active = self
            .appender
            .open
            .last()
            .map(|open| Place { sequence: open.segment.sequence, position: open.len });
        self.appender.last = LastCommit {
            number,
            place: active.unwrap_or(self.appender.last.place),
            chain: self.appender.chain,
            loose: !self.appender.pending.is_empty(),
        };
        // Records of a topic that has been deleted meanwhile are not shown.
        let shown = self.shared.snapshot();
        {
            let mut views = self.shared.views.write().unwrap_or_else(PoisonError::into_inner);
            for batch in covered.into_iter().filter(|batch| shown.range(batch.partition).is_some()) {
                views.push(batch.partition, &batch.segment, batch.entry);
            }
        }
        *self.shared.position.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
        let moved = (!ends.is_empty()).then_some(number);
        let ends = ends.into_iter().filter_map(|(partition, end)| {
            shown.range(partition).map(|range| (partition, PartitionRange { end, ..range }))
        });
        let next = shown.with(number, ends);
        drop(shown);
        self.swap_snapshot(next, moved, moved.is_some());
        self.metrics.commits.increment(1);
        self.metrics.written.increment(std::mem::take(&mut self.appender.written));
        Ok(Committed { number, position, snapshot: self.shared.snapshot() })
    }

    /// Swaps the snapshot for another (I1). `moved` is the commit that has moved a high watermark, if one has.
    pub(super) fn swap_snapshot(&mut self, next: Snapshot, moved: Option<u64>, wake: bool) {
        let mut other = Arc::new(next);
        self.shared.snapshot.send_if_modified(|snapshot| {
            std::mem::swap(snapshot, &mut other);
            wake
        });
        self.merging.superseded(&other, moved);
    }

    /// Takes in what the writer has made of the topics. Its partition numbers go on from ours, since every message
    /// arrives here.
    fn take_in(&mut self, changes: Vec<TopicChange>) {
        for change in &changes {
            let topics = &mut self.checkpoint.topics;
            match change {
                TopicChange::Made(topic) => topics.push(topic.clone()),
                TopicChange::Grown(topic) => {
                    let before = topics.iter_mut().find(|before| before.id == topic.id);
                    before.into_iter().for_each(|before| *before = topic.clone());
                }
                TopicChange::Deleted(topic) => topics.retain(|before| before.id != topic.id),
            }
            let (TopicChange::Made(topic) | TopicChange::Grown(topic) | TopicChange::Deleted(topic)) = change;
            let numbers = topic.partitions.iter().map(|partition| partition.0 as usize + 1);
            let known = numbers.max().unwrap_or(0).max(self.checkpoint.partitions.len());
            self.checkpoint.partitions.resize(known, PartitionState::default());
            self.appender.ends.resize(known, 0);
        }
        self.unshown.extend(changes);
    }

    /// Makes the topics as they are to be durable, all at once, and then shows them. After an error the next commit or
    /// flush tries again.
    fn save_topics(&mut self) -> Result<(), LogError> {
        if self.unshown.is_empty() {
            return Ok(());
        }
        self.save(self.checkpoint.clone())?;
        let shown = self.shared.snapshot();
        let (mut made, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for change in std::mem::take(&mut self.unshown) {
            match change {
                TopicChange::Made(topic) | TopicChange::Grown(topic) => made.extend(topic.partitions.iter()),
                TopicChange::Deleted(topic) => gone.extend(topic.partitions.iter()),
            }
        }
        let new = made.difference(&gone).filter(|partition| shown.range(**partition).is_none());
        let empty = new.map(|partition| (*partition, PartitionRange::default()));
        let next = shown.without(gone.iter().copied()).with(shown.commit(), empty);
        drop(shown);
        self.swap_snapshot(next, None, !gone.is_empty());
        self.is_freed |= !gone.is_empty();
        let mut views = self.shared.views.write().unwrap_or_else(PoisonError::into_inner);
        gone.into_iter().for_each(|partition| views.forget(partition));
        drop(views);
        self.shared.topics.send_replace(self.checkpoint.topics.clone());
        Ok(())
    }

    /// Makes a new checkpoint durable and then the one in force. An error other than lack of space stops the writer.
    pub(super) fn save(&mut self, mut next: Checkpoint) -> Result<(), LogError> {
        next.durable_commit = self.appender.last.number;
        match next.write(&*self.options.files, &self.options.directory) {
            Ok(()) => {
                self.checkpoint = next;
                Ok(())
            }
            Err(error) => {
                if !error.is_retryable() {
                    self.stop_for(&error);
                }
                Err(error)
            }
        }
    }

    /// The state as a base for recovery, at the start of the active segment.
    pub(super) fn base_here(&self) -> Base {
        Base {
            sequence: self.appender.open.last().map_or(0, |open| open.segment.sequence),
            commit: self.appender.last.number,
            chain: self.appender.chain,
            position: *self.shared.position.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// When something failed, everything since the last commit is gone.
    fn lost_on_error<T>(&mut self, result: Result<T, LogError>) -> Result<T, LogError> {
        let Err(error) = &result else { return result };
        self.lost_to = Some(error.clone());
        self.shared.failures.fetch_add(1, Ordering::AcqRel);
        tracing::warn!(log = %self.options.name, %error, "a group could not be made durable; the log is cut to the last commit");
        self.give_up_merge();
        let restored = self.appender.restore(&self.shared);
        match &restored {
            Ok(()) if error.is_retryable() => {}
            Ok(()) => self.stop_for(error),
            Err(second) => self.stop_for(second),
        }
        match restored {
            Err(second) if error.is_retryable() => Err(second),
            _ => result,
        }
    }

    /// Takes no more records; what is durable stays readable.
    pub(super) fn stop_for(&mut self, error: &LogError) {
        self.lost_to = Some(error.clone());
        self.shared.failures.fetch_add(1, Ordering::AcqRel);
        if !self.shared.poisoned.swap(true, Ordering::AcqRel) {
            tracing::error!(log = %self.options.name, %error, "the log takes no more records until a restart");
        }
    }

    /// Why nothing is taken any more.
    pub(super) fn lost_to(&self) -> LogError {
        self.lost_to.clone().unwrap_or(LogError::Stopped)
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.shared.poisoned.load(Ordering::Acquire)
    }

    fn look_after_segments(&mut self) {
        // What cannot be sealed for lack of space must not keep retention from making some.
        for task in [Self::seal_if_due, Self::apply_retention] {
            if self.is_poisoned() {
                return;
            }
            if let Err(error) = task(self) {
                tracing::warn!(log = %self.options.name, %error, "cannot seal or remove segments");
                if !error.is_retryable() {
                    self.stop_for(&error);
                }
            }
        }
        self.note_size();
    }

    fn note_size(&self) {
        let size = self.size();
        self.shared.size.store(size, Ordering::Relaxed);
        self.metrics.size.set(size as f64);
    }

    fn go_on_merging(&mut self) {
        if self.is_poisoned() {
            self.stop_merging();
        } else {
            self.merge_if_due();
        }
    }

    /// Bytes in all segments.
    pub(super) fn size(&self) -> u64 {
        let sealed: u64 = self.checkpoint.sealed.iter().map(|sealed| sealed.len).sum();
        sealed + self.appender.open.iter().map(|open| open.len).sum::<u64>()
    }

    /// A clean end: drops what no commit has finished and notes how far the log goes.
    fn close(&mut self) {
        if self.is_poisoned() {
            return;
        }
        let closed = self.appender.restore(&self.shared).and_then(|()| self.save(self.checkpoint.clone()));
        if let Err(error) = closed {
            tracing::warn!(log = %self.options.name, %error, "the log was not closed cleanly; the next start recovers it");
        }
    }
}

impl Task {
    fn refuse(self, error: LogError) {
        // The caller may have stopped waiting.
        match self {
            Task::Flush(answer) => drop(answer.send(Err(error))),
            Task::Commit { answer, .. } => drop(answer.send(Err(error))),
            #[cfg(test)]
            Task::Settle(answer) => drop(answer.send(Err(error))),
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[derive(Debug)]
pub(super) struct Metrics {
    fsync: metrics::Histogram,
    written: metrics::Counter,
    commits: metrics::Counter,
    pub(super) merged: metrics::Counter,
    pub(super) unmerged: metrics::Gauge,
    size: metrics::Gauge,
}

impl Metrics {
    fn new(task: &str) -> Self {
        let task = task.to_owned();
        Metrics {
            fsync: metrics::histogram!("millrace_log_fsync_seconds", "task" => task.clone()),
            written: metrics::counter!("millrace_log_bytes_written_total", "task" => task.clone()),
            commits: metrics::counter!("millrace_log_commits_total", "task" => task.clone()),
            merged: metrics::counter!("millrace_log_merged_segments_total", "task" => task.clone()),
            unmerged: metrics::gauge!("millrace_log_unmerged_segments", "task" => task.clone()),
            size: metrics::gauge!("millrace_log_size_bytes", "task" => task),
        }
    }
}
