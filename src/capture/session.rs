//! A session: one replication connection, from finding the place to go on to the error or stop that ends it.
//!
//! The loop takes frames while a group commit is on its way, so that a group is everything that was decoded during the
//! last fsync. Reading pauses only when a commit is on its way and the next group has grown to its limit.

mod attach;
mod reading;
mod types;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::attach::Attached;
use self::reading::{Arrived, Reading};
use super::CaptureError;
use super::Start;
use super::form::{Form, Forms, Next};
use super::pipeline::{Pipeline, Step};
use super::progress::Progress;
use super::relations::Relation;
use super::shapes::Arrival;
use super::snapshot_requests::SnapshotRequests;
use super::spool::{Spool, messages};
use super::text_rows::Question;
use super::watcher::{self, Report};
use crate::change::{Gap, Lsn, Timestamp};
use crate::log::{Committed, LogError, LogWriter, SourcePosition, Ticket};
use crate::postgres::catalog::TrackedTable;
use crate::postgres::connect::Control;
use crate::postgres::objects::Objects;
use crate::postgres::publication::SourceOptions;
use crate::postgres::replication::{Backlog, Feed, Frame, ReplicationConnection, ReplicationError, Status};
use crate::postgres::snapshot::ReadOptions;
use crate::postgres::source::SourceConfig;
use crate::postgres::{binary, slot};
use crate::state::Store;

/// A group stops growing here while the one before it is being written, in bytes of uncompressed records.
const GROUP_LIMIT: usize = 8 << 20;
/// While a backlog is drained, a group is not closed before it has this size …
const DRAIN_GROUP: usize = 4 << 20;
/// … or this age: few large groups cost the disk and the consumers less than many small ones.
const DRAIN_AGE: Duration = Duration::from_millis(50);
/// How often a busy source hears of our progress at most.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);
/// How often it hears of us at least, if it has no less patience.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often an idle position is made durable at most, unless the server asks.
const IDLE_COMMIT_INTERVAL: Duration = Duration::from_secs(10);
/// A log that takes longer than this for one group has stalled: the connection is given up, the slot keeps the WAL.
const LOG_STALL: Duration = Duration::from_secs(10);
/// So many bytes of a large group make its log a second longer.
const LOG_LEAST_RATE: usize = 10 << 20;
/// How long the source's catalog may take to tell a table's shape: meanwhile nothing else happens in the session.
const CATALOG_WAIT: Duration = Duration::from_secs(20);
/// So many failed attempts to decode the same place tell that it will never be decoded.
const DECODE_ATTEMPTS: u32 = 3;
/// A source further ahead than this is a backlog, in bytes of WAL.
const BACKLOG: u64 = 1 << 20;

/// How a task captures.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The task's name; slot and publications are named after it.
    pub task: String,
    /// The source.
    pub source: SourceConfig,
    /// How tables are published.
    pub publish: SourceOptions,
    /// The tables to track; may change while the task runs.
    pub objects: Arc<watch::Sender<Objects>>,
    /// Snapshots that are asked for while it runs.
    pub snapshots: Arc<SnapshotRequests>,
    /// What it begins with, when it has no log yet.
    pub start: Start,
    /// How existing rows are read.
    pub read: ReadOptions,
    /// Take over a slot that exists without our state.
    pub adopt_slot: bool,
    /// Go on behind a gap with a new slot.
    pub accept_gap: bool,
    /// How often to write a heartbeat at the source; `None` for never.
    pub heartbeat: Option<Duration>,
    /// Warn when our slot makes the source keep more WAL than this, in bytes.
    pub wal_limit: u64,
    /// Have new tables join in their creating transaction, where our role may.
    pub join_at_creation: bool,
    /// A session that begins with a backlog of more WAL than this, in bytes, reads it by SQL; `None` for never.
    pub catch_up: Option<u64>,
}

impl CaptureOptions {
    /// The replication slot's name.
    pub fn slot(&self) -> String {
        slot::slot_name(&self.task)
    }
}

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Nothing yet, or nothing any more.
    Stopped,
    /// Changes arrive, and the rows that the task starts with are being read.
    Snapshotting,
    /// Changes flow.
    Running,
}

/// One task's capture: outlives its sessions.
pub struct Capture<W> {
    options: CaptureOptions,
    pipeline: Pipeline<W>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    flow: watch::Sender<Flow>,
    /// Outlives a session whose log has stalled: the next one begins with its end.
    flight: Option<Flight>,
    /// Where the publications were last seen, when one of them has been found dropped.
    unpublished_since: Option<Lsn>,
    forms: Forms,
    undecodable: Option<Undecodable>,
    /// The last transaction of the log when one followed that is to be sent when it has committed, and not before.
    whole_behind: Option<Option<Lsn>>,
}

/// What the server could not decode.
struct Undecodable {
    reason: String,
    /// The last transaction that the log had then.
    last_commit: Option<Lsn>,
    attempts: u32,
}

impl Undecodable {
    /// Why the slot is no use any more, when that is certain.
    fn verdict(&self) -> Option<String> {
        (self.attempts >= DECODE_ATTEMPTS).then(|| self.reason.clone())
    }
}

/// What the log is working on.
enum Flight {
    Commit { ticket: Ticket<Committed>, carries: Carries, work: Work },
    Flush { ticket: Ticket<()>, work: Work },
}

/// How long the log may take.
#[derive(Debug, Clone, Copy)]
struct Work {
    since: Instant,
    patience: Duration,
}

impl Work {
    /// With so many bytes.
    fn of(bytes: usize) -> Self {
        let patience = LOG_STALL + Duration::from_secs((bytes / LOG_LEAST_RATE) as u64);
        Work { since: Instant::now(), patience }
    }
}

/// What a commit makes known when it is durable.
#[derive(Default)]
struct Carries {
    commit_time: Option<Timestamp>,
    answers: Vec<oneshot::Sender<()>>,
}

/// A session's own state.
struct Session<'a, W> {
    capture: &'a mut Capture<W>,
    stop: &'a CancellationToken,
    control: Control,
    /// How often the source hears of us at least.
    keepalive: Duration,
    /// Start of the group being built.
    group_since: Option<Instant>,
    draining: bool,
    received: Lsn,
    durable: SourcePosition,
    acknowledged: Lsn,
    last_status: Instant,
    last_idle_commit: Instant,
    /// The server waits to hear that what it has sent is durable.
    reply_wanted: bool,
    /// Gap events that wait for the end of the open transaction.
    gaps: Vec<Gap>,
    /// Tables that are to be held from then on.
    holds: Vec<TrackedTable>,
    /// Who wants to know when that is durable.
    answers: Vec<oneshot::Sender<()>>,
    reading: Reading,
    /// Whether it is time to ask again what composite types are made of.
    types_due: bool,
    /// What they were when they were last asked about.
    types_stamp: Option<i64>,
    /// They were altered before this.
    types_altered: Option<Lsn>,
    /// Asking is to take little of the session's time.
    types_rest_until: Instant,
}

impl<W: LogWriter> Capture<W> {
    /// A capture over `pipeline`, and what its sessions do.
    pub fn new(
        options: CaptureOptions,
        pipeline: Pipeline<W>,
        store: Arc<Store>,
        progress: Arc<Progress>,
    ) -> (Self, watch::Receiver<Flow>) {
        let (flow, receiver) = watch::channel(Flow::Stopped);
        (
            Capture {
                options,
                pipeline,
                store,
                progress,
                flow,
                flight: None,
                unpublished_since: None,
                forms: Forms::default(),
                undecodable: None,
                whole_behind: None,
            },
            receiver,
        )
    }

    /// Runs one session until it is told to stop, or until an error; several, where values have to be asked for in
    /// another form.
    ///
    /// # Errors
    /// Whatever ended it; [`CaptureError::trouble`] says what follows.
    pub async fn session(&mut self, stop: &CancellationToken) -> Result<(), CaptureError> {
        let ended = loop {
            let ended = self.attach_and_pump(stop).await;
            self.progress.end_reading(None);
            let Err(error) = ended else { break Ok(()) };
            if let Err(error) = self.change_form(error) {
                break Err(error);
            }
        };
        self.flow.send_replace(Flow::Stopped);
        ended
    }

    /// Decides on the form of the next session, when that is what the last one ended for.
    fn change_form(&mut self, error: CaptureError) -> Result<(), CaptureError> {
        let task = &self.options.task;
        let last_commit = self.pipeline.position().last_commit;
        let reason = match &error {
            CaptureError::ReadWhole => {
                info!(task, reason = %error, "reading transactions when they have committed");
                self.whole_behind = Some(last_commit);
                return Ok(());
            }
            CaptureError::TextAgain => {
                info!(task, "the server sends text again");
                return Ok(());
            }
            CaptureError::Replication(ReplicationError::Server(reason)) => reason,
            _ => return Err(error),
        };
        if reason.is_undecodable() {
            // It may be decodable once it has committed: a table that was altered in a savepoint that was rolled back, and
            // then again.
            self.whole_behind = Some(last_commit);
            let before = self.undecodable.take().filter(|before| before.last_commit == last_commit);
            let attempts = before.map_or(1, |before| before.attempts + 1);
            self.undecodable = Some(Undecodable { reason: reason.to_string(), last_commit, attempts });
        }
        match self.forms.after(reason, last_commit) {
            None => Err(error),
            Some(Next::Try(form)) => {
                info!(task, %reason, ?form, "the server cannot send a row; asking for it in another form");
                Ok(())
            }
            Some(Next::Stuck) => {
                let (commit, table) = self.pipeline.place();
                Err(CaptureError::Unsendable {
                    slot: self.options.slot(),
                    table,
                    change: reason.change(),
                    skip_to: commit.map(|commit| Lsn(commit.0.saturating_add(1))),
                    reason: reason.to_string(),
                })
            }
        }
    }

    /// Says what the session does.
    fn tell_flow(&self) {
        let is_starting = self.pipeline.jobs().iter().any(|job| job.is_start);
        let flow = if is_starting { Flow::Snapshotting } else { Flow::Running };
        self.flow.send_if_modified(|known| std::mem::replace(known, flow) != flow);
    }

    async fn attach_and_pump(&mut self, stop: &CancellationToken) -> Result<(), CaptureError> {
        let Some(attached) = stop.run_until_cancelled(self.connect_and_attach()).await else {
            return Ok(());
        };
        let Attached { server, control, mut feed, durable, keepalive } = attached?;
        let (reports, mut inbox) = mpsc::channel(64);
        let watcher = watcher::spawn(self.options.clone(), server.clone(), self.store.clone(), reports);
        self.tell_flow();
        info!(task = self.options.task, from = %durable.acked_through, "capturing");
        let now = Instant::now();
        let mut session = Session {
            capture: self,
            stop,
            control,
            keepalive,
            group_since: None,
            draining: false,
            received: durable.acked_through,
            durable,
            // The slot may be behind what is durable: the last session had no time to say so.
            acknowledged: Lsn::ZERO,
            last_status: now,
            last_idle_commit: now,
            reply_wanted: false,
            gaps: Vec::new(),
            holds: Vec::new(),
            answers: Vec::new(),
            reading: Reading::new(server),
            types_due: false,
            types_stamp: None,
            types_altered: None,
            types_rest_until: now,
        };
        let ended = session.pump(&mut feed, &mut inbox).await;
        watcher.stop().await;
        session.reading.stop().await;
        match ended {
            Ok(()) => {
                session.capture.pipeline.write_last_watermark()?;
                session.settle().await?;
                session.acknowledge(&mut feed);
                if timeout(Duration::from_secs(2), feed.stop()).await.is_err() {
                    debug!("the source did not answer the end of the stream in time");
                }
                Ok(())
            }
            // The log has dropped what it had not committed, or is still at work; the next session begins with that.
            Err(error @ (CaptureError::Log(_) | CaptureError::LogStalled)) => Err(error),
            Err(error @ CaptureError::TextAgain) => {
                session.settle().await?;
                session.acknowledge(&mut feed);
                // In order, so that the next session finds the slot free.
                feed.stop().await;
                Err(error)
            }
            // Whole transactions that have arrived are kept, and no commit may be on its way when the next session asks
            // where to go on: both would otherwise be sent and written a second time.
            Err(error) => {
                session.may_leave_backlog_alone(&feed, &error);
                drop(feed);
                session.settle().await?;
                Err(error)
            }
        }
    }

    /// Brings the pipeline in line with the log, and makes sure that the log can be written before the source is asked
    /// for more.
    async fn restart_from_log(&mut self) -> Result<(), CaptureError> {
        if self.flight.is_some() {
            self.land().await?;
        }
        let durable = self.pipeline.writer().resume();
        // After a failed write there is no group; otherwise it was decoded while the log was stalled, and is whole.
        let group = self.pipeline.writer().has_group().then(|| self.pipeline.position());
        if let Some(durable) = durable {
            let position = group.unwrap_or(durable);
            self.pipeline.restart(position);
            self.commit(position).await?;
            self.progress.durable(position.acked_through, None);
        }
        Ok(())
    }

    /// Makes everything up to the last boundary durable together with `position`.
    async fn commit(&mut self, position: SourcePosition) -> Result<(), CaptureError> {
        self.start_commit(position, Carries::default());
        self.land().await.map(drop)
    }

    fn start_commit(&mut self, position: SourcePosition, carries: Carries) {
        let work = Work::of(self.pipeline.writer().buffered());
        let ticket = self.pipeline.writer().commit(position);
        self.flight = Some(Flight::Commit { ticket, carries, work });
    }

    fn start_flush(&mut self) {
        let work = Work::of(self.pipeline.writer().buffered());
        let ticket = self.pipeline.writer().flush();
        self.flight = Some(Flight::Flush { ticket, work });
    }

    /// Writes what is buffered of a large transaction.
    async fn flush(&mut self) -> Result<(), CaptureError> {
        self.start_flush();
        self.land().await.map(drop)
    }

    /// Waits for the log, which may not take longer than it needs.
    async fn land(&mut self) -> Result<Landed, CaptureError> {
        let patience = match &self.flight {
            Some(Flight::Commit { work, .. } | Flight::Flush { work, .. }) => work.patience,
            None => LOG_STALL,
        };
        let landed = timeout(patience, land(&mut self.flight)).await;
        landed.map_err(|_| CaptureError::LogStalled)?.map_err(CaptureError::Log)
    }
}

impl<W: LogWriter> Session<'_, W> {
    async fn pump(
        &mut self,
        feed: &mut Feed,
        inbox: &mut mpsc::Receiver<Report>,
    ) -> Result<(), CaptureError> {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(connection) = feed.take_connection() {
                let started = self.stop.run_until_cancelled(self.leave_backlog(connection));
                let Some(stream) = started.await else { return Ok(()) };
                *feed = stream?;
            }
            self.start_flight()?;
            self.look_after_existing(feed).await?;
            self.renew_types().await?;
            let room =
                self.capture.flight.is_none() || self.capture.pipeline.writer().buffered() < GROUP_LIMIT;
            let may_take = room && !self.capture.pipeline.in_transaction();
            let close_group = self.group_since.map(|since| since + DRAIN_AGE);
            // What comes seldom first: a backlog keeps the stream ready all the time.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                landed = land(&mut self.capture.flight) => self.landed(landed?, feed),
                _ = ticks.tick() => {
                    self.look_at_log()?;
                    self.tick(feed);
                    if !self.capture.pipeline.jobs().is_empty() {
                        self.reading.look();
                    }
                }
                Some(report) = inbox.recv() => self.take_report(report, feed)?,
                arrived = self.reading.next(feed, room, may_take), if room => match arrived? {
                    Arrived::Frames => self.drain(feed).await?,
                    Arrived::Read(job, read) => self.take_read(job, read, feed).await?,
                },
                () = sleep_until(close_group.unwrap_or_else(Instant::now)),
                    if self.capture.flight.is_none() && close_group.is_some() => {}
            }
        }
    }

    /// The backlog has been read by SQL: from here on a walsender sends the changes.
    async fn leave_backlog(&mut self, connection: ReplicationConnection) -> Result<Feed, CaptureError> {
        self.settle().await?;
        let pipeline = &self.capture.pipeline;
        let from = pipeline.idle_position().unwrap_or(pipeline.position()).acked_through;
        let durable = self.durable.acked_through;
        info!(task = self.capture.options.task, %from, "the backlog is read; the walsender goes on");
        self.draining = false;
        let stream = self.capture.start(&self.control, connection, from, durable).await?;
        Ok(Feed::Stream(stream))
    }

    /// What has failed in reading a backlog by SQL is not tried again, unless it was the connection.
    fn may_leave_backlog_alone(&mut self, feed: &Feed, error: &CaptureError) {
        let CaptureError::Replication(cause) = error else { return };
        if matches!(feed, Feed::Backlog(_)) && Backlog::is_to_blame_for(cause) {
            warn!(
                task = self.capture.options.task,
                error = %cause,
                "the backlog cannot be read by SQL; the walsender sends it"
            );
            self.capture.options.catch_up = None;
        }
    }

    /// Gives the log its next work, when it has none and there is some.
    fn start_flight(&mut self) -> Result<(), CaptureError> {
        if self.capture.flight.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        let pipeline = &mut self.capture.pipeline;
        if !pipeline.in_transaction() {
            for gap in self.gaps.drain(..) {
                pipeline.gap(&gap)?;
            }
            if !self.holds.is_empty() {
                pipeline.hold(&std::mem::take(&mut self.holds), false)?;
            }
            pipeline.write_own_events()?;
        }
        let buffered = pipeline.writer().buffered();
        // A gap of which no output keeps an event is told all the same.
        let is_told = self.gaps.is_empty() && self.holds.is_empty() && !self.answers.is_empty();
        if pipeline.writer().has_group() || is_told {
            let since = *self.group_since.get_or_insert(now);
            if self.draining && buffered < DRAIN_GROUP && now < since + DRAIN_AGE {
                return Ok(());
            }
            self.group_since = None;
            self.commit_group();
        } else if buffered >= GROUP_LIMIT {
            // A transaction that did not fit: its first pieces go beyond the high watermark.
            self.capture.start_flush();
        } else if let Some(position) = pipeline.idle_position()
            && (self.reply_wanted || now >= self.last_idle_commit + IDLE_COMMIT_INTERVAL)
        {
            self.last_idle_commit = now;
            pipeline.set_position(position);
            self.capture.start_commit(position, Carries::default());
        }
        Ok(())
    }

    fn commit_group(&mut self) {
        let pipeline = &mut self.capture.pipeline;
        let (position, commit_time) = (pipeline.position(), pipeline.last_commit_time());
        let answers = if self.all_is_told() { std::mem::take(&mut self.answers) } else { Vec::new() };
        self.capture.start_commit(position, Carries { commit_time, answers });
    }

    /// Whether nothing waits for the end of the open transaction.
    fn all_is_told(&self) -> bool {
        self.gaps.is_empty() && self.holds.is_empty()
    }

    /// A commit is durable: everybody hears of it.
    fn committed(&mut self, committed: &Committed, carries: Carries) {
        self.durable = committed.position;
        self.capture.progress.durable(committed.position.acked_through, carries.commit_time);
        for answer in carries.answers {
            // The watcher may have gone; it will announce again.
            let _ = answer.send(());
        }
    }

    fn landed(&mut self, landed: Landed, feed: &mut Feed) {
        let Landed::Commit(committed, carries) = landed else { return };
        self.committed(&committed, carries);
        let due = self.last_status + STATUS_INTERVAL;
        if self.reply_wanted || !self.draining || Instant::now() >= due {
            self.acknowledge(feed);
        }
    }

    /// Takes all frames that have arrived, as far as there is room and until told to stop.
    async fn drain(&mut self, feed: &mut Feed) -> Result<(), CaptureError> {
        let mut bytes = 0;
        loop {
            if self.capture.pipeline.writer().buffered() >= GROUP_LIMIT || self.stop.is_cancelled() {
                break;
            }
            let wants_turn = self.types_due || self.reading.wants_turn();
            if wants_turn && !self.capture.pipeline.in_transaction() {
                break;
            }
            let step = match feed.next_frame()? {
                None => break,
                Some(Frame::Data { start, body, .. }) => {
                    bytes += body.len() as u64;
                    self.received = self.received.max(start);
                    let mut step = self.capture.pipeline.message(start, body)?;
                    while let Step::Ask(questions) = step {
                        self.ask(questions).await?;
                        step = self.capture.pipeline.message(start, body)?;
                    }
                    step
                }
                Some(Frame::Keepalive { end, reply_requested, .. }) => {
                    self.received = self.received.max(end);
                    self.capture.pipeline.keepalive(end);
                    if reply_requested {
                        self.reply_wanted = true;
                        self.acknowledge(feed);
                    }
                    Step::Done
                }
            };
            match step {
                Step::Done => {}
                Step::Shape(relation, arrival) => self.shape(relation, arrival).await?,
                Step::Spill(xid) => self.capture.pipeline.spools.spill(xid).await?,
                Step::Replay { spool, end_lsn } => self.replay(feed, spool, end_lsn).await?,
                Step::Ask(_) => {}
            }
        }
        self.capture.progress.received(self.received, bytes);
        Ok(())
    }

    /// Asks the server for the text of values that have come in binary form.
    async fn ask(&mut self, questions: Vec<Question>) -> Result<(), CaptureError> {
        for question in questions {
            let text = binary::ask_text(&self.control, question.type_oid, &question.value);
            let text = timeout(CATALOG_WAIT, text).await.map_err(query("render a value in time"))??;
            self.capture.pipeline.answer(question, text);
        }
        Ok(())
    }

    async fn shape(&mut self, relation: Relation, arrival: Arrival) -> Result<(), CaptureError> {
        let shape = timeout(CATALOG_WAIT, relation.resolve(&self.control))
            .await
            .map_err(query("read a table's columns in time"))?
            .map_err(query("read a table's columns"))?;
        debug!(table = format!("{}.{}", shape.schema, shape.name), "shape");
        self.capture.pipeline.set_shape(arrival, Arc::new(shape));
        Ok(())
    }

    /// Takes a streamed transaction from its spool. A large one is a group of its own, appended in pieces. One that the
    /// log has already is read too: the server will not send again the shapes that it told there.
    async fn replay(&mut self, feed: &mut Feed, spool: Spool, end_lsn: Lsn) -> Result<(), CaptureError> {
        let large = !spool.is_in_memory();
        if large {
            self.settle().await?;
        }
        let mut reader = spool.into_reader();
        let mut recycled = Vec::new();
        loop {
            let (next, chunk) = reader.chunk(recycled).await?;
            let Some(chunk) = chunk else { break };
            for (lsn, body) in messages(&chunk) {
                let mut step = self.capture.pipeline.replayed(lsn, body, next.spool())?;
                while let Step::Ask(questions) = step {
                    self.ask(questions).await?;
                    step = self.capture.pipeline.replayed(lsn, body, next.spool())?;
                }
                match step {
                    Step::Shape(relation, arrival) => self.shape(relation, arrival).await?,
                    Step::Done => {}
                    other => {
                        return Err(CaptureError::Protocol(format!(
                            "{other:?} inside a streamed transaction"
                        )));
                    }
                }
            }
            if large && self.capture.pipeline.writer().buffered() >= GROUP_LIMIT {
                self.capture.flush().await?;
            }
            self.tick(feed);
            if self.stop.is_cancelled() {
                // It stays open, and so out of the log; the server sends it again.
                return Ok(());
            }
            (reader, recycled) = (next, chunk);
        }
        self.capture.pipeline.commit(end_lsn)
    }

    /// Makes everything up to the last boundary durable, and waits for it.
    async fn settle(&mut self) -> Result<(), CaptureError> {
        while self.capture.flight.is_some() || self.capture.pipeline.writer().has_group() {
            if self.capture.flight.is_none() {
                self.commit_group();
            }
            if let Landed::Commit(committed, carries) = self.capture.land().await? {
                self.committed(&committed, carries);
            }
        }
        self.group_since = None;
        Ok(())
    }

    fn take_report(&mut self, report: Report, feed: &mut Feed) -> Result<(), CaptureError> {
        match report {
            Report::Source { lsn, retained, slot_lost } => {
                self.capture.progress.source(lsn, retained);
                self.types_due = Instant::now() >= self.types_rest_until
                    && !self.capture.pipeline.composite_shapes().is_empty();
                let restart = Lsn(lsn.0.saturating_sub(retained));
                if slot_lost.is_none()
                    && !self.capture.pipeline.in_transaction()
                    && self.capture.forms.reads_from(restart)
                {
                    return Err(CaptureError::TextAgain);
                }
                let draining = lsn.bytes_since(self.received) > BACKLOG;
                if draining != self.draining {
                    self.draining = draining;
                    feed.set_draining(draining);
                }
                if let Some(reason) = slot_lost {
                    warn!(
                        task = self.capture.options.task,
                        reason, "the source has given up our replication slot"
                    );
                }
            }
            Report::Joined { gaps, durable } => {
                self.gaps.extend(gaps);
                self.answers.push(durable);
            }
            Report::Hold { tables, durable } => {
                // They join only when they are held.
                self.reading.will_join(&tables);
                self.holds.extend(tables);
                self.answers.push(durable);
            }
            Report::Captured(tables) => {
                self.capture.progress.set_captured(tables);
                self.reading.have_joined();
            }
            Report::Shortfalls(tables) => self.capture.progress.set_tables(tables),
            Report::Elsewhere(error) => return Err(error.into()),
            Report::PublicationDropped { name, since } => {
                self.capture.unpublished_since = since;
                return Err(CaptureError::PublicationDropped { name });
            }
        }
        Ok(())
    }

    /// Ends the session when the log has stalled.
    fn look_at_log(&self) -> Result<(), CaptureError> {
        match &self.capture.flight {
            Some(Flight::Commit { work, .. } | Flight::Flush { work, .. })
                if work.since.elapsed() >= work.patience =>
            {
                Err(CaptureError::LogStalled)
            }
            _ => Ok(()),
        }
    }

    /// Lets the source hear of us when it is time.
    fn tick(&mut self, feed: &mut Feed) {
        let behind = self.acknowledged < self.durable.acked_through;
        if behind || self.last_status.elapsed() >= self.keepalive {
            self.acknowledge(feed);
        }
        feed.try_flush();
    }

    /// Tells the source what is durable.
    fn acknowledge(&mut self, feed: &mut Feed) {
        let durable = self.durable.acked_through;
        self.last_status = Instant::now();
        self.acknowledged = durable;
        if self.capture.pipeline.idle_position().is_none() {
            self.reply_wanted = false;
        }
        let written = self.received.max(durable);
        feed.queue_status(Status { written, flushed: durable, applied: durable, reply: false });
        feed.try_flush();
    }
}

enum Landed {
    Commit(Committed, Carries),
    Flush,
}

/// Waits for the log's answer, and takes the flight when it has come; for ever when there is none.
async fn land(flight: &mut Option<Flight>) -> Result<Landed, LogError> {
    let landed = match flight {
        None => std::future::pending().await,
        Some(Flight::Commit { ticket, carries, .. }) => {
            ticket.await.map(|committed| Landed::Commit(committed, std::mem::take(carries)))
        }
        Some(Flight::Flush { ticket, .. }) => ticket.await.map(|()| Landed::Flush),
    };
    *flight = None;
    landed
}

/// An error of a query, with what it was for.
fn query<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> CaptureError {
    move |source| CaptureError::Query { what, source: Box::new(source) }
}
