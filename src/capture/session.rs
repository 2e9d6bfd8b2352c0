//! A session: one replication connection, from finding the place to go on to the error or stop that ends it.
//!
//! The loop takes frames while a group commit is on its way, so that a group is everything that was decoded during the
//! last fsync. Reading pauses only when a commit is on its way and the next group has grown to its limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::CaptureError;
use super::pipeline::{Pipeline, Step};
use super::progress::Progress;
use super::relations::Relation;
use super::resume::{Facts, Plan, SlotFacts, plan};
use super::spool::{Spool, messages};
use super::watcher::{self, Report};
use crate::change::{Gap, Lsn, Timestamp};
use crate::log::{Committed, LogError, LogWriter, SourcePosition, Ticket};
use crate::postgres::connect::{self, Control};
use crate::postgres::publication::{self, PublicationError, PublicationState};
use crate::postgres::replication::{
    Frame, ReplicationConnection, ReplicationStream, Snapshot, StartOptions, Status, StreamLimits,
};
use crate::postgres::slot::{self, SlotError, SlotState, SlotTrouble};
use crate::postgres::source::SourceConfig;
use crate::postgres::timeline::{self, IdentifySystem, OurPosition, TimelineDecision, TimelineHistory};
use crate::postgres::{catalog, pgoutput};
use crate::state::{Intent, StateError, Store};

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
/// How long the source's catalog may take to tell a table's shape: meanwhile nothing else happens in the session.
const CATALOG_WAIT: Duration = Duration::from_secs(20);
/// The saved fact that holds the last gap reported, so that each is written once.
const LAST_GAP: &str = "last_gap";
/// A source further ahead than this is a backlog, in bytes of WAL.
const BACKLOG: u64 = 1 << 20;

/// How a task captures.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The task's name; slot and publications are named after it.
    pub task: String,
    /// The source.
    pub source: SourceConfig,
    /// Take over a slot that exists without our state.
    pub adopt_slot: bool,
    /// Go on behind a gap with a new slot.
    pub accept_gap: bool,
    /// How often to write a heartbeat at the source; `None` for never.
    pub heartbeat: Option<Duration>,
    /// Warn when our slot makes the source keep more WAL than this, in bytes.
    pub wal_limit: u64,
}

impl CaptureOptions {
    /// The replication slot's name.
    pub fn slot(&self) -> String {
        slot::slot_name(&self.task)
    }
}

/// One task's capture: outlives its sessions.
pub struct Capture<W> {
    options: CaptureOptions,
    pipeline: Pipeline<W>,
    store: Arc<Store>,
    progress: Arc<Progress>,
    running: watch::Sender<bool>,
    /// Outlives a session whose log has stalled: the next one begins with its end.
    flight: Option<Flight>,
    /// Where the publications were last seen, when one of them has been found dropped.
    unpublished_since: Option<Lsn>,
}

/// What the log is working on.
enum Flight {
    Commit { ticket: Ticket<Committed>, carries: Carries, since: Instant },
    Flush { ticket: Ticket<()>, since: Instant },
}

/// What a commit makes known when it is durable.
#[derive(Default)]
struct Carries {
    commit_time: Option<Timestamp>,
    gap_answers: Vec<oneshot::Sender<()>>,
}

/// What a session begins with.
struct Attached {
    control: Control,
    stream: ReplicationStream,
    durable: SourcePosition,
    keepalive: Duration,
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
    /// Who wants to know when they are durable.
    gap_answers: Vec<oneshot::Sender<()>>,
}

impl<W: LogWriter> Capture<W> {
    /// A capture over `pipeline`. The returned watch is true while changes flow.
    pub fn new(
        options: CaptureOptions,
        pipeline: Pipeline<W>,
        store: Arc<Store>,
        progress: Arc<Progress>,
    ) -> (Self, watch::Receiver<bool>) {
        let (running, receiver) = watch::channel(false);
        (
            Capture { options, pipeline, store, progress, running, flight: None, unpublished_since: None },
            receiver,
        )
    }

    /// Runs one session until it is told to stop, or until an error.
    ///
    /// # Errors
    /// Whatever ended it; [`CaptureError::trouble`] says what follows.
    pub async fn session(&mut self, stop: &CancellationToken) -> Result<(), CaptureError> {
        let ended = self.attach_and_pump(stop).await;
        self.running.send_replace(false);
        ended
    }

    async fn attach_and_pump(&mut self, stop: &CancellationToken) -> Result<(), CaptureError> {
        let Some(attached) = stop.run_until_cancelled(self.connect_and_attach()).await else {
            return Ok(());
        };
        let Attached { control, mut stream, durable, keepalive } = attached?;
        let (reports, mut inbox) = mpsc::channel(64);
        let watcher = watcher::spawn(self.options.clone(), self.store.clone(), reports);
        self.running.send_replace(true);
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
            acknowledged: durable.acked_through,
            last_status: now,
            last_idle_commit: now,
            reply_wanted: false,
            gaps: Vec::new(),
            gap_answers: Vec::new(),
        };
        let ended = session.pump(&mut stream, &mut inbox).await;
        watcher.stop().await;
        match ended {
            Ok(()) => {
                session.settle().await?;
                session.acknowledge(&mut stream);
                if timeout(Duration::from_secs(2), stream.stop()).await.is_err() {
                    debug!("the source did not answer the end of the stream in time");
                }
                Ok(())
            }
            // The log has dropped what it had not committed, or is still at work; the next session begins with that.
            Err(error @ (CaptureError::Log(_) | CaptureError::LogStalled)) => Err(error),
            // Whole transactions that have arrived are kept, and no commit may be on its way when the next session asks
            // where to go on: both would otherwise be sent and written a second time.
            Err(error) => {
                drop(stream);
                session.settle().await?;
                Err(error)
            }
        }
    }

    async fn connect_and_attach(&mut self) -> Result<Attached, CaptureError> {
        self.restart_from_log().await?;
        let control = connect::connect(&self.options.source).await?;
        let replication = ReplicationConnection::connect(&self.options.source).await?;
        let patience = replication.wal_sender_timeout().map_or(KEEPALIVE_INTERVAL, |timeout| timeout / 3);
        let (stream, durable) = self.attach(&control, replication).await?;
        Ok(Attached { control, stream, durable, keepalive: patience.min(KEEPALIVE_INTERVAL) })
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
        if let Some(position) = group.or(durable) {
            self.pipeline.restart(position);
            self.commit(position).await?;
            self.progress.durable(position.acked_through, None);
        }
        Ok(())
    }

    /// Makes everything up to the last boundary durable together with `position`.
    async fn commit(&mut self, position: SourcePosition) -> Result<(), CaptureError> {
        let ticket = self.pipeline.writer().commit(position);
        self.flight = Some(Flight::Commit { ticket, carries: Carries::default(), since: Instant::now() });
        self.land().await.map(drop)
    }

    /// Writes what is buffered of a large transaction.
    async fn flush(&mut self) -> Result<(), CaptureError> {
        let ticket = self.pipeline.writer().flush();
        self.flight = Some(Flight::Flush { ticket, since: Instant::now() });
        self.land().await.map(drop)
    }

    /// Waits for the log, which may not take longer than [`LOG_STALL`].
    async fn land(&mut self) -> Result<Landed, CaptureError> {
        let landed = timeout(LOG_STALL, land(&mut self.flight)).await;
        landed.map_err(|_| CaptureError::LogStalled)?.map_err(CaptureError::Log)
    }

    /// Finds the place to go on from and starts the stream there, making publications and slot where there are none.
    async fn attach(
        &mut self,
        control: &Control,
        mut replication: ReplicationConnection,
    ) -> Result<(ReplicationStream, SourcePosition), CaptureError> {
        let server = catalog::server_info(control).await.map_err(query("read the server's settings"))?;
        if server.version_num < 140_000 {
            return Err(CaptureError::Unfit(format!(
                "the source is PostgreSQL {}, which cannot stream logical changes as needed; millrace needs 14 or later",
                server.version_num / 10_000
            )));
        }
        let system = replication.identify_system().await?;
        let slot_name = self.options.slot();
        let found =
            slot::slot_state(control, &slot_name).await.map_err(query("look at the replication slot"))?;
        let position = self.pipeline.writer().resume();
        let timeline = match &position {
            Some(position) => decide_timeline(&mut replication, position, &system).await?,
            None => TimelineDecision::Same,
        };
        let diverged = match &timeline {
            // A standby has its primary's history still to come.
            TimelineDecision::Diverged(divergence)
                if server.in_recovery && divergence.standby_may_catch_up() =>
            {
                return Err(CaptureError::StandbyBehind(divergence.clone()));
            }
            TimelineDecision::Diverged(divergence) => Some(divergence.to_string()),
            _ => None,
        };
        let facts = Facts {
            position,
            intent: self
                .store_call(|store, task| store.intent(task))
                .await?
                .map(|intent| intent.system_identifier),
            slot: found.map(|found| self.slot_facts(found)).transpose()?,
            system_identifier: system.system_identifier,
            diverged,
            unpublished: match &position {
                Some(position) => self.unpublished(control, position).await?,
                None => None,
            },
            adopt_slot: self.options.adopt_slot,
            accept_gap: self.options.accept_gap,
        };
        let decided = plan(&facts);
        debug!(?facts, ?decided, "compared log, state and source");
        let position = match decided {
            Plan::Busy { pid } => return Err(CaptureError::SlotBusy { slot: slot_name, pid }),
            Plan::Unowned => return Err(CaptureError::SlotUnowned { slot: slot_name }),
            Plan::Gap(gap) => return Err(self.report_gap(gap).await),
            Plan::Create { drop_leftover, after, generation } => {
                self.make_publications(control).await?;
                let intent = Intent {
                    slot: slot_name.clone(),
                    system_identifier: system.system_identifier,
                    generation,
                };
                self.store_call(move |store, task| store.set_intent(task, &intent)).await?;
                if drop_leftover {
                    replication.drop_slot(&slot_name).await?;
                }
                info!(
                    slot = slot_name,
                    "making the replication slot; waits for transactions that are open now"
                );
                let made = replication.create_slot(&slot_name, false, Snapshot::None).await?;
                if let Some(gap) = after {
                    // What is missing reaches to where the new slot begins.
                    self.pipeline.gap(&Gap { to: made.consistent_point, ..gap })?;
                }
                self.first_commit(made.consistent_point, &system, generation).await?
            }
            Plan::Adopt { from } => self.adopt_slot(control, from, &system).await?,
            Plan::Resume(position) => {
                if facts.intent.is_some() {
                    self.store_call(|store, task| store.clear_intent(task)).await?;
                }
                self.follow_timeline(position, &timeline).await?
            }
        };
        // A person has spoken of the gap that there was at the start, not of those to come.
        self.options.accept_gap = false;
        self.unpublished_since = None;
        self.pipeline.restart(position);
        self.progress.durable(position.acked_through, None);
        let start = StartOptions {
            protocol: pgoutput::protocol_for(server.version_num),
            publications: vec![
                publication::full_name(&self.options.task),
                publication::insert_only_name(&self.options.task),
            ],
            streaming: true,
            messages: true,
            binary: false,
            limits: StreamLimits::default(),
        };
        let stream = replication.start(&slot_name, position.acked_through, &start).await?;
        // The server starts at the slot's position when that is further than ours, and says nothing.
        let started =
            slot::slot_state(control, &slot_name).await.map_err(query("look at the replication slot"))?;
        if let Some(confirmed) = started.and_then(|slot| slot.confirmed_flush_lsn)
            && confirmed > position.acked_through
        {
            let gap = Gap {
                cause: "slot_ahead",
                table: None,
                from: Some(position.acked_through),
                to: confirmed,
                detail: format!(
                    "the replication slot moved to {confirmed} while the log ends at {}: somebody else reads from it",
                    position.acked_through
                ),
            };
            return Err(self.report_gap(gap).await);
        }
        Ok((stream, position))
    }

    /// A publication that is gone, and since when it may have been.
    async fn unpublished(
        &mut self,
        control: &Control,
        position: &SourcePosition,
    ) -> Result<Option<(String, Lsn)>, CaptureError> {
        let missing = match publication::missing(control, &self.options.task).await {
            // The watcher tells what is wrong with it.
            Err(PublicationError::Unusable { .. }) => return Ok(None),
            missing => missing.map_err(query("look at the publications"))?,
        };
        let since = self.unpublished_since.unwrap_or(Lsn(u64::MAX)).min(position.acked_through);
        Ok(missing.into_iter().next().map(|name| (name, since)))
    }

    fn slot_facts(&self, found: SlotState) -> Result<SlotFacts, CaptureError> {
        let lost = match found.trouble(&self.options.source.dbname) {
            None => None,
            Some(SlotTrouble::Lost { reason }) => Some(reason),
            Some(trouble) => return Err(SlotError::Trouble { name: self.options.slot(), trouble }.into()),
        };
        Ok(SlotFacts { confirmed_flush: found.confirmed_flush_lsn, active_pid: found.active_pid, lost })
    }

    /// Starts from a slot that somebody else made, as far as it can be read: a change from before its table was
    /// published never can.
    async fn adopt_slot(
        &mut self,
        control: &Control,
        confirmed: Lsn,
        system: &IdentifySystem,
    ) -> Result<SourcePosition, CaptureError> {
        let made = self.make_publications(control).await?;
        let mut from = confirmed;
        if made.created {
            let published =
                catalog::source_position(control).await.map_err(query("read the end of the WAL"))?;
            from = confirmed.max(published);
            self.pipeline.gap(&Gap {
                cause: "slot_older_than_publications",
                table: None,
                from: Some(confirmed),
                to: from,
                detail: format!(
                    "the adopted replication slot is older than the task's publications; changes committed between \
                     {confirmed} and {from} are not included"
                ),
            })?;
        } else {
            for joined in &made.reconciled.added {
                self.pipeline.gap(&watcher::late_gap(&joined.table, None, joined.complete_from))?;
            }
        }
        self.first_commit(from, system, 1).await
    }

    async fn make_publications(&mut self, control: &Control) -> Result<PublicationState, CaptureError> {
        let tables = catalog::tracked_tables(control).await.map_err(query("list the tables"))?;
        let state = publication::ensure(control, &self.options.task, &tables)
            .await
            .map_err(query("make the publications"))?;
        let done = &state.reconciled;
        self.progress.set_tables(watcher::shortfalls(&tables, done));
        // Tables that are left for later polls get a gap event when they join.
        let captured = tables.iter().filter(|table| !watcher::is_left_out(done, table.oid));
        let announced = captured.map(|table| (table.oid, watcher::Extent::of(table))).collect();
        self.store_call(move |store, task| watcher::set_announced_tables(store, task, &announced)).await?;
        Ok(state)
    }

    /// Writes where a new slot starts, before anything is read from it. It sends nothing that the log has, and commit
    /// LSNs from before it may be those of another cluster.
    async fn first_commit(
        &mut self,
        from: Lsn,
        system: &IdentifySystem,
        slot_generation: u32,
    ) -> Result<SourcePosition, CaptureError> {
        let position = SourcePosition {
            last_commit: None,
            end_lsn: from,
            last_record_end: from,
            acked_through: from,
            timeline: system.timeline,
            system_identifier: system.system_identifier,
            slot_generation,
        };
        self.commit(position).await?;
        self.store_call(|store, task| store.clear_intent(task)).await?;
        Ok(position)
    }

    /// Writes that the source goes on from here on another timeline, if it does.
    async fn follow_timeline(
        &mut self,
        position: SourcePosition,
        decision: &TimelineDecision,
    ) -> Result<SourcePosition, CaptureError> {
        let &TimelineDecision::Switch { timeline, fork } = decision else { return Ok(position) };
        warn!(task = self.options.task, timeline, %fork, "the source is on a new timeline; going on from the fork");
        let position = SourcePosition {
            last_commit: position.last_commit.map(|last| last.min(fork)),
            end_lsn: position.end_lsn.min(fork),
            acked_through: position.acked_through.min(fork),
            timeline,
            ..position
        };
        self.commit(position).await?;
        Ok(position)
    }

    /// Writes a gap event, once for each gap, and makes it an error.
    async fn report_gap(&mut self, gap: Gap) -> CaptureError {
        let text = format!("{} {} {:?} {}", gap.cause, gap.detail, gap.from, gap.to);
        match self.write_gap(&gap, text).await {
            Ok(()) => CaptureError::Gap { gap: Arc::new(gap) },
            Err(error) => error,
        }
    }

    async fn write_gap(&mut self, gap: &Gap, text: String) -> Result<(), CaptureError> {
        let known = self.store_call(|store, task| store.fact(task, LAST_GAP)).await?;
        let position = self.pipeline.writer().resume();
        if let Some(position) = position.filter(|_| known.as_deref() != Some(&text)) {
            self.pipeline.restart(position);
            self.pipeline.gap(gap)?;
            self.commit(position).await?;
            self.store_call(move |store, task| store.set_fact(task, LAST_GAP, &text)).await?;
        }
        Ok(())
    }

    async fn store_call<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&Store, &str) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, CaptureError> {
        let (store, task) = (self.store.clone(), self.options.task.clone());
        tokio::task::spawn_blocking(move || call(&store, &task))
            .await
            .map_err(|error| CaptureError::Protocol(error.to_string()))?
            .map_err(CaptureError::State)
    }
}

impl<W: LogWriter> Session<'_, W> {
    async fn pump(
        &mut self,
        stream: &mut ReplicationStream,
        inbox: &mut mpsc::Receiver<Report>,
    ) -> Result<(), CaptureError> {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_flight()?;
            let room =
                self.capture.flight.is_none() || self.capture.pipeline.writer().buffered() < GROUP_LIMIT;
            let close_group = self.group_since.map(|since| since + DRAIN_AGE);
            // What comes seldom first: a backlog keeps the stream ready all the time.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                landed = land(&mut self.capture.flight) => self.landed(landed?, stream),
                _ = ticks.tick() => {
                    self.look_at_log()?;
                    self.tick(stream);
                }
                Some(report) = inbox.recv() => self.take_report(report, stream)?,
                filled = stream.fill(), if room => {
                    filled?;
                    self.drain(stream).await?;
                }
                () = sleep_until(close_group.unwrap_or_else(Instant::now)),
                    if self.capture.flight.is_none() && close_group.is_some() => {}
            }
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
        }
        let buffered = pipeline.writer().buffered();
        if pipeline.writer().has_group() {
            let since = *self.group_since.get_or_insert(now);
            if self.draining && buffered < DRAIN_GROUP && now < since + DRAIN_AGE {
                return Ok(());
            }
            self.group_since = None;
            self.commit_group();
        } else if buffered >= GROUP_LIMIT {
            // A transaction that did not fit: its first pieces go beyond the high watermark.
            self.capture.flight = Some(Flight::Flush { ticket: pipeline.writer().flush(), since: now });
        } else if let Some(position) = pipeline.idle_position()
            && (self.reply_wanted || now >= self.last_idle_commit + IDLE_COMMIT_INTERVAL)
        {
            self.last_idle_commit = now;
            pipeline.set_position(position);
            let ticket = pipeline.writer().commit(position);
            self.capture.flight = Some(Flight::Commit { ticket, carries: Carries::default(), since: now });
        }
        Ok(())
    }

    fn commit_group(&mut self) {
        let pipeline = &mut self.capture.pipeline;
        let (position, commit_time) = (pipeline.position(), pipeline.last_commit_time());
        let gap_answers =
            if self.gaps.is_empty() { std::mem::take(&mut self.gap_answers) } else { Vec::new() };
        let ticket = pipeline.writer().commit(position);
        let carries = Carries { commit_time, gap_answers };
        self.capture.flight = Some(Flight::Commit { ticket, carries, since: Instant::now() });
    }

    /// A commit is durable: everybody hears of it.
    fn committed(&mut self, committed: &Committed, carries: Carries) {
        self.durable = committed.position;
        self.capture.progress.durable(committed.position.acked_through, carries.commit_time);
        for answer in carries.gap_answers {
            // The watcher may have gone; it will announce again.
            let _ = answer.send(());
        }
    }

    fn landed(&mut self, landed: Landed, stream: &mut ReplicationStream) {
        let Landed::Commit(committed, carries) = landed else { return };
        self.committed(&committed, carries);
        let due = self.last_status + STATUS_INTERVAL;
        if self.reply_wanted || !self.draining || Instant::now() >= due {
            self.acknowledge(stream);
        }
    }

    /// Takes all frames that have arrived, as far as there is room and until told to stop.
    async fn drain(&mut self, stream: &mut ReplicationStream) -> Result<(), CaptureError> {
        let mut bytes = 0;
        loop {
            if self.capture.pipeline.writer().buffered() >= GROUP_LIMIT || self.stop.is_cancelled() {
                break;
            }
            let step = match stream.next_frame()? {
                None => break,
                Some(Frame::Data { start, body, .. }) => {
                    bytes += body.len() as u64;
                    self.received = self.received.max(start);
                    self.capture.pipeline.message(start, body)?
                }
                Some(Frame::Keepalive { end, reply_requested, .. }) => {
                    self.received = self.received.max(end);
                    self.capture.pipeline.keepalive(end);
                    if reply_requested {
                        self.reply_wanted = true;
                        self.acknowledge(stream);
                    }
                    Step::Done
                }
            };
            match step {
                Step::Done => {}
                Step::Shape(relation) => self.shape(relation).await?,
                Step::Spill(xid) => self.capture.pipeline.spools.spill(xid).await?,
                Step::Replay { spool, end_lsn } => self.replay(stream, spool, end_lsn).await?,
            }
        }
        self.capture.progress.received(self.received, bytes);
        Ok(())
    }

    async fn shape(&mut self, relation: Relation) -> Result<(), CaptureError> {
        let shape = timeout(CATALOG_WAIT, relation.resolve(&self.control))
            .await
            .map_err(query("read a table's columns in time"))?
            .map_err(query("read a table's columns"))?;
        debug!(table = format!("{}.{}", shape.schema, shape.name), "shape");
        self.capture.pipeline.set_shape(Arc::new(shape));
        Ok(())
    }

    /// Takes a streamed transaction from its spool. A large one is a group of its own, appended in pieces. One that the
    /// log has already is read too: the server will not send again the shapes that it told there.
    async fn replay(
        &mut self,
        stream: &mut ReplicationStream,
        spool: Spool,
        end_lsn: Lsn,
    ) -> Result<(), CaptureError> {
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
                match self.capture.pipeline.replayed(lsn, body, next.spool())? {
                    Step::Shape(relation) => self.shape(relation).await?,
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
            self.tick(stream);
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

    fn take_report(&mut self, report: Report, stream: &mut ReplicationStream) -> Result<(), CaptureError> {
        match report {
            Report::Source { lsn, retained, slot_lost } => {
                self.capture.progress.source(lsn, retained);
                let draining = lsn.bytes_since(self.received) > BACKLOG;
                if draining != self.draining {
                    self.draining = draining;
                    stream.set_draining(draining);
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
                self.gap_answers.push(durable);
            }
            Report::Shortfalls(tables) => self.capture.progress.set_tables(tables),
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
            Some(Flight::Commit { since, .. } | Flight::Flush { since, .. })
                if since.elapsed() >= LOG_STALL =>
            {
                Err(CaptureError::LogStalled)
            }
            _ => Ok(()),
        }
    }

    /// Lets the source hear of us when it is time.
    fn tick(&mut self, stream: &mut ReplicationStream) {
        let behind = self.acknowledged < self.durable.acked_through;
        if behind || self.last_status.elapsed() >= self.keepalive {
            self.acknowledge(stream);
        }
        stream.try_flush();
    }

    /// Tells the source what is durable.
    fn acknowledge(&mut self, stream: &mut ReplicationStream) {
        let durable = self.durable.acked_through;
        self.last_status = Instant::now();
        self.acknowledged = durable;
        if self.capture.pipeline.idle_position().is_none() {
            self.reply_wanted = false;
        }
        let written = self.received.max(durable);
        stream.queue_status(Status { written, flushed: durable, applied: durable, reply: false });
        stream.try_flush();
    }
}

/// Compares our place with the server's timeline.
async fn decide_timeline(
    replication: &mut ReplicationConnection,
    position: &SourcePosition,
    system: &IdentifySystem,
) -> Result<TimelineDecision, CaptureError> {
    // Of another cluster no history is asked for: its own tells nothing.
    let descends =
        system.system_identifier == position.system_identifier && system.timeline != position.timeline;
    let history = match descends {
        true => replication.timeline_history(system.timeline).await?,
        false => TimelineHistory::default(),
    };
    let ours = OurPosition {
        system_identifier: position.system_identifier,
        timeline: position.timeline,
        last_commit_end: position.last_commit.map_or(Lsn::ZERO, |_| position.end_lsn),
        last_record_end: position.last_commit.map_or(Lsn::ZERO, |_| position.last_record_end),
    };
    Ok(timeline::decide(&ours, system, &history))
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
