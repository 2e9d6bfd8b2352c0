//! A session's share in reading existing rows: it keeps a reader for each job that is not done, takes what they tell
//! between transactions, and releases what was held when the stream has come far enough.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{CATALOG_WAIT, GROUP_LIMIT, Session, query};
use crate::capture::CaptureError;
use crate::capture::pipeline::existing::Next;
use crate::capture::session::CaptureOptions;
use crate::change::Lsn;
use crate::log::LogWriter;
use crate::postgres::catalog::TrackedTable;
use crate::postgres::connect::Control;
use crate::postgres::replication::{Feed, ReplicationError};
use crate::postgres::server::Server;
use crate::postgres::snapshot::{Read, ReadProgress, Reader, Wanted, keys};
use crate::postgres::{catalog, heartbeat, publication};

/// How many parts of a job may wait to be taken.
const WAITING_PARTS: usize = 2;
/// How long to wait before a reader that has failed is followed by another, at first and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The readers of a session.
pub(super) struct Reading {
    /// The stream's.
    server: Server,
    /// By job.
    readers: BTreeMap<u64, Running>,
    /// Readers whose tables are to be read again: what they tell is not heard any more.
    void: Vec<Reader>,
    /// Jobs whose reader has ended too early: when the next one may begin, and how long was waited for that.
    failed: BTreeMap<u64, (Instant, Duration)>,
    /// Jobs that are read: they are done when everything that the source had below this has been taken.
    barriers: BTreeMap<u64, Lsn>,
    /// The stream has as much time for itself as the last part took.
    stream_first_until: Instant,
    /// Whether it is time to look after the jobs.
    is_due: bool,
    /// Whether the watcher has put every table that is held into the publications, or has left it out.
    is_published: bool,
    /// Whether partitioned tables are being published: who sees some of their partitions published would not wait for those
    /// who write to the others.
    trees_join: bool,
}

struct Running {
    reader: Reader,
    inbox: mpsc::Receiver<Read>,
}

/// What has arrived.
pub(super) enum Arrived {
    /// Frames of the stream.
    Frames,
    /// Something of the reader of a job.
    Read(u64, Read),
}

impl Reading {
    pub(super) fn new(server: Server) -> Self {
        Reading {
            server,
            readers: BTreeMap::new(),
            void: Vec::new(),
            failed: BTreeMap::new(),
            barriers: BTreeMap::new(),
            stream_first_until: Instant::now(),
            is_due: false,
            is_published: false,
            trees_join: false,
        }
    }

    /// It is time to look after the jobs, at the end of the open transaction.
    pub(super) fn look(&mut self) {
        self.is_due = true;
    }

    /// These tables are held, and will be put into the publications.
    pub(super) fn will_join(&mut self, tables: &[TrackedTable]) {
        self.is_published = false;
        self.trees_join |= tables.iter().any(|table| table.partitioned);
    }

    /// What is held has been put into the publications, or has been left out.
    pub(super) fn have_joined(&mut self) {
        (self.is_published, self.trees_join) = (true, false);
    }

    /// Whether the stream is to stop at the next end of a transaction: under load hardly anything else ends there.
    pub(super) fn wants_turn(&self) -> bool {
        let has_read = || self.readers.values().any(|running| !running.inbox.is_empty());
        self.is_due || has_read() && Instant::now() >= self.stream_first_until
    }

    /// Waits for the stream, if there is `room`, and for the readers, if what they tell `may` be taken. Cancel-safe.
    pub(super) async fn next(
        &mut self,
        feed: &mut Feed,
        room: bool,
        may: bool,
    ) -> Result<Arrived, ReplicationError> {
        let stream_first = Instant::now() < self.stream_first_until;
        let readers = &mut self.readers;
        let read = poll_fn(|context| {
            for (job, running) in readers.iter_mut() {
                // One that has ended tells nothing more.
                if let Poll::Ready(Some(read)) = running.inbox.poll_recv(context) {
                    return Poll::Ready((*job, read));
                }
            }
            Poll::Pending
        });
        if stream_first {
            tokio::select! {
                biased;
                filled = feed.fill(), if room => filled.map(|_| Arrived::Frames),
                (job, read) = read, if may => Ok(Arrived::Read(job, read)),
                else => pending().await,
            }
        } else {
            tokio::select! {
                biased;
                (job, read) = read, if may => Ok(Arrived::Read(job, read)),
                filled = feed.fill(), if room => filled.map(|_| Arrived::Frames),
                else => pending().await,
            }
        }
    }

    /// Some tables of a job are to be read again: whatever its reader still has to tell may be too old for that.
    pub(super) fn void(&mut self, job: u64) {
        self.barriers.remove(&job);
        self.void.extend(self.readers.remove(&job).map(|running| running.reader));
    }

    /// Ends all readers.
    pub(super) async fn stop(&mut self) {
        let running = std::mem::take(&mut self.readers).into_values().map(|running| running.reader);
        self.void.extend(running);
        self.stop_void().await;
    }

    async fn stop_void(&mut self) {
        for reader in std::mem::take(&mut self.void) {
            reader.stop().await;
        }
    }

    fn start(&mut self, job: u64, options: &CaptureOptions, wanted: Vec<Wanted>) -> Arc<ReadProgress> {
        let (out, inbox) = mpsc::channel(WAITING_PARTS);
        let (source, server) = (options.source.clone(), self.server.clone());
        let reader = Reader::spawn(source, server, &options.task, options.read.clone(), wanted, out);
        let progress = reader.progress().clone();
        self.readers.insert(job, Running { reader, inbox });
        progress
    }
}

impl<W: LogWriter> Session<'_, W> {
    /// Sees that each job that is not done has a reader, and that those are released that can be. Between transactions.
    pub(super) async fn look_after_existing(&mut self, feed: &mut Feed) -> Result<(), CaptureError> {
        if !self.reading.is_due || self.capture.pipeline.in_transaction() {
            return Ok(());
        }
        self.reading.is_due = false;
        self.reading.stop_void().await;
        if std::mem::take(&mut self.reading.is_published) {
            self.leave_unpublished().await?;
        }
        let jobs = self.capture.pipeline.jobs().iter();
        let jobs: Vec<_> = jobs.map(|job| (job.place.number, job.is_read())).collect();
        for (job, is_read) in jobs {
            match is_read {
                true => self.release_if_due(job, feed).await?,
                false => self.keep_reading(job).await,
            }
        }
        Ok(())
    }

    /// Waits no longer for tables that nobody publishes: they may have been taken out of what the task tracks.
    async fn leave_unpublished(&mut self) -> Result<(), CaptureError> {
        let listed = timeout(CATALOG_WAIT, publication::listed(&self.control, &self.capture.options.task))
            .await
            .map_err(query("see what is published in time"))?
            .map_err(query("see what is published"))?;
        let left: Vec<u32> = self.capture.pipeline.unread().filter(|oid| !listed.contains(oid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        // Of one that is gone the reader tells: what was done to it until then is not void.
        let left = timeout(CATALOG_WAIT, catalog::existing(&self.control, &left))
            .await
            .map_err(query("see which tables there are in time"))?
            .map_err(query("see which tables there are"))?;
        self.capture.pipeline.leave(&left)
    }

    /// Sees that a job has a reader.
    async fn keep_reading(&mut self, job: u64) {
        let reading = &mut self.reading;
        if let Some(running) = reading.readers.get(&job) {
            if !running.inbox.is_closed() || !running.inbox.is_empty() {
                return;
            }
            let waited = reading.failed.get(&job).map_or(Duration::ZERO, |(_, waited)| *waited);
            let wait = (waited * 2).clamp(AGAIN_AFTER.0, AGAIN_AFTER.1);
            reading.failed.insert(job, (Instant::now() + wait, wait));
            reading.void(job);
            reading.stop_void().await;
            warn!(
                task = self.capture.options.task,
                retry_in_ms = wait.as_millis() as u64,
                "the reading of existing rows was interrupted; going on with it"
            );
        }
        let may_begin = reading.failed.get(&job).is_none_or(|(at, _)| Instant::now() >= *at);
        if may_begin && !reading.trees_join {
            let wanted = self.capture.pipeline.wanted(job);
            let progress = reading.start(job, &self.capture.options, wanted);
            self.capture.progress.begin_reading(job, progress);
        }
    }

    /// Takes what a reader tells.
    pub(super) async fn take_read(
        &mut self,
        job: u64,
        read: Read,
        feed: &mut Feed,
    ) -> Result<(), CaptureError> {
        let started = Instant::now();
        if let Some(mut part) = self.capture.pipeline.take(job, read)? {
            self.reading.failed.remove(&job);
            while self.capture.pipeline.take_rows(&mut part)? {
                self.make_room().await?;
                self.tick(feed);
                if self.stop.is_cancelled() {
                    self.capture.pipeline.drop_open();
                    return Ok(());
                }
                tokio::task::yield_now().await;
            }
        }
        self.reading.stream_first_until = Instant::now() + started.elapsed();
        self.reading.look();
        Ok(())
    }

    /// Writes what is buffered beyond the high watermark, where that is much.
    async fn make_room(&mut self) -> Result<(), CaptureError> {
        if self.capture.pipeline.writer().buffered() >= GROUP_LIMIT {
            self.settle().await?;
            self.capture.flush().await?;
        }
        Ok(())
    }

    /// Releases a job that has been read, when every transaction that a snapshot may have seen has arrived.
    async fn release_if_due(&mut self, job: u64, feed: &mut Feed) -> Result<(), CaptureError> {
        if let Some(running) = self.reading.readers.remove(&job) {
            running.reader.stop().await;
            self.capture.progress.end_reading(Some(job));
        }
        let barrier = match self.reading.barriers.get(&job) {
            Some(barrier) => *barrier,
            None => {
                let barrier = barrier(&self.control, &self.capture.options.task).await?;
                *self.reading.barriers.entry(job).or_insert(barrier)
            }
        };
        if self.capture.pipeline.processed() < barrier {
            return Ok(());
        }
        self.reading.barriers.remove(&job);
        self.release(job, feed).await
    }

    async fn release(&mut self, job: u64, feed: &mut Feed) -> Result<(), CaptureError> {
        self.settle().await?;
        let Some(mut release) = self.capture.pipeline.begin_release(job) else { return Ok(()) };
        loop {
            let mut window = match release.next().await? {
                Next::Window(window) => window,
                Next::End => break,
                Next::Again(oid) => return self.read_again(job, oid),
            };
            for (oid, questions) in std::mem::take(&mut window.questions) {
                let asked = keys::are_behind(&self.control, oid, release.key_of(oid), &questions);
                let answered = timeout(CATALOG_WAIT, asked)
                    .await
                    .map_err(query("compare keys in time"))?
                    .map_err(query("compare keys"))?;
                match answered {
                    Some(answers) => window.answer(oid, answers),
                    None => return self.read_again(job, oid),
                }
            }
            self.capture.pipeline.catch_up(&mut release, &window)?;
            self.make_room().await?;
            self.tick(feed);
            if self.stop.is_cancelled() {
                self.capture.pipeline.drop_open();
                return Ok(());
            }
        }
        self.capture.pipeline.end_release(release)?;
        self.settle().await?;
        self.capture.pipeline.clear_released().await?;
        self.capture.tell_flow();
        info!(
            task = self.capture.options.task,
            "existing rows have been read, and what was held has followed them"
        );
        Ok(())
    }

    /// What was read of a table does not fit what was held: it is read again, and the job is released later.
    fn read_again(&mut self, job: u64, oid: u32) -> Result<(), CaptureError> {
        info!(
            task = self.capture.options.task,
            table = oid,
            "a table was changed while its rows were read; reading it again"
        );
        self.capture.pipeline.drop_open();
        self.capture.pipeline.hold_again(Some(oid))?;
        self.reading.void(job);
        Ok(())
    }
}

/// A place in the WAL behind the commit of every transaction that can be seen now, and which the stream will reach.
async fn barrier(control: &Control, task: &str) -> Result<Lsn, CaptureError> {
    let sent = async {
        // On an idle source nothing else may follow; on a standby nothing can be written.
        match heartbeat::send(control, task).await? {
            Some(lsn) => Ok(lsn),
            None => catalog::source_position(control).await,
        }
    };
    timeout(CATALOG_WAIT, sent)
        .await
        .map_err(query("read the end of the WAL in time"))?
        .map_err(query("read the end of the WAL"))
}
