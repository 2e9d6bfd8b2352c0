//! How a session begins: from what log, state and source say to a stream at the right place.
//!
//! What follows from the facts is decided in [`resume`](crate::capture::resume); here they are gathered, and the
//! decision is carried out in an order that survives a crash between any two steps.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::{Capture, Form, KEEPALIVE_INTERVAL, Undecodable, query};
use crate::capture::announced::{Announcement, set_announced_tables};
use crate::capture::resume::{Facts, Plan, SlotFacts, plan};
use crate::capture::{CaptureError, Start, watcher};
use crate::change::{Gap, Lsn};
use crate::log::{LogWriter, SourcePosition};
use crate::postgres::catalog::TrackedTable;
use crate::postgres::connect::{self, Control};
use crate::postgres::publication::{self, PublicationError, PublicationState, Reconciled, Roots};
use crate::postgres::replication::{
    Backlog, Begun, Feed, Reading, ReplicationConnection, ReplicationStream, SlotLife, Snapshot,
    StartOptions, StreamLimits,
};
use crate::postgres::server::Server;
use crate::postgres::slot::{self, SlotError, SlotState, SlotTrouble};
use crate::postgres::timeline::{self, IdentifySystem, OurPosition, TimelineDecision, TimelineHistory};
use crate::postgres::{catalog, pgoutput, relations};
use crate::state::{Intent, StateError, Store};

/// The saved fact that holds the last gap reported, so that each is written once.
const LAST_GAP: &str = "last_gap";
/// The saved fact that holds the generation of a slot that cannot be decoded, and why.
const UNDECODABLE: &str = "undecodable_slot";

/// What a session begins with.
pub(super) struct Attached {
    pub(super) server: Server,
    pub(super) control: Control,
    pub(super) feed: Feed,
    pub(super) durable: SourcePosition,
    pub(super) keepalive: Duration,
}

impl<W: LogWriter> Capture<W> {
    /// Connects, and finds the place to go on from.
    pub(super) async fn connect_and_attach(&mut self) -> Result<Attached, CaptureError> {
        self.restart_from_log().await?;
        self.pipeline.recall().await?;
        let mut replication = ReplicationConnection::connect(&self.options.source).await?;
        let server = replication.server().await?;
        let control = connect::connect_to(&server, &self.options.source).await?;
        let patience = replication.wal_sender_timeout().map_or(KEEPALIVE_INTERVAL, |timeout| timeout / 3);
        let (feed, durable) = self.attach(&control, replication).await?;
        Ok(Attached { server, control, feed, durable, keepalive: patience.min(KEEPALIVE_INTERVAL) })
    }

    /// Finds the place to go on from and starts the stream there, making publications and slot where there are none.
    async fn attach(
        &mut self,
        control: &Control,
        mut replication: ReplicationConnection,
    ) -> Result<(Feed, SourcePosition), CaptureError> {
        let server = catalog::server_info(control).await.map_err(query("read the server's settings"))?;
        if server.version_num < 140_000 {
            return Err(CaptureError::Unfit(format!(
                "the source is PostgreSQL {}, which cannot stream logical changes as needed; millrace needs 14 or later",
                server.version_num / 10_000
            )));
        }
        if let Err(error) = self.options.publish.check_server(server.version_num) {
            return Err(CaptureError::Unfit(error.to_string()));
        }
        let system = replication.identify_system().await?;
        let slot_name = self.options.slot();
        let found =
            slot::slot_state(control, &slot_name).await.map_err(query("look at the replication slot"))?;
        // A slot that somebody else made, or an older Millrace, is to follow the primary too.
        let fails_over = server.version_num >= 170_000 && !server.in_recovery;
        let stays_behind = found.as_ref().is_some_and(|slot| !slot.failover);
        let position = self.pipeline.writer().resume();
        // What is missing on a standby may be on its primary, which the task belongs to.
        if server.in_recovery && found.is_none() && position.is_some() {
            return Err(CaptureError::NoSlotOnStandby { slot: slot_name });
        }
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
            undecodable: match &position {
                Some(position) => self.undecodable(position.slot_generation).await?,
                None => None,
            },
            is_starting: self.pipeline.jobs().iter().any(|job| job.is_start),
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
            Plan::Create { drop_leftover, after, generation, starts } => {
                let (tables, published) = self.make_publications(control).await?;
                self.announce(&tables, &published.reconciled, &[]).await?;
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
                let life = if fails_over { SlotLife::Failover } else { SlotLife::Permanent };
                let made = replication.create_slot(&slot_name, life, Snapshot::None).await?;
                if let Some(gap) = after {
                    // What is missing reaches to where the new slot begins.
                    self.pipeline.gap(&Gap { to: made.consistent_point, ..gap })?;
                }
                let held = match starts {
                    true => self.held_at_start(&tables, &published.reconciled),
                    false => Vec::new(),
                };
                self.undecodable = None;
                self.first_commit(made.consistent_point, &system, generation, held).await?
            }
            Plan::Adopt { from } => self.adopt_slot(control, from, &system).await?,
            Plan::Skip { gap, position } => {
                self.write_gap(&gap).await?;
                let position = self.follow_timeline(position, &timeline).await?;
                let position = SourcePosition { acked_through: gap.to, ..position };
                // What was held of tables until now is not complete behind a gap.
                self.pipeline.hold_again(None)?;
                self.commit(position).await?;
                position
            }
            Plan::Resume(position) => {
                if facts.intent.is_some() {
                    self.store_call(|store, task| store.clear_intent(task)).await?;
                }
                self.follow_timeline(position, &timeline).await?
            }
        };
        if fails_over && stays_behind {
            replication.let_slot_fail_over(&slot_name).await?;
        }
        // A person has spoken of the gap that there was at the start, not of those to come.
        self.options.accept_gap = false;
        self.unpublished_since = None;
        self.pipeline.restart(position);
        self.progress.durable(position.acked_through, None);
        self.pipeline.set_binary(self.forms.form() == Form::Binary);
        // Values as large as these do not fit an answer of SQL either.
        if let Some(rest) = self.options.catch_up.filter(|_| self.forms.is_at_ease()) {
            let options = StartOptions { streaming: false, ..self.start_options(server.version_num) };
            let reading = Reading { slot: slot_name, options, rest };
            match Backlog::begin(replication, reading, position.acked_through).await? {
                Begun::Nothing(connection) => replication = connection,
                Begun::Backlog { backlog, from } => {
                    self.refuse_slot_ahead(from, position.acked_through).await?;
                    info!(task = self.options.task, %from, "reading the backlog by SQL");
                    return Ok((Feed::Backlog(backlog), position));
                }
            }
        }
        let from = position.acked_through;
        let stream = self.start(control, replication, from, from).await?;
        Ok((Feed::Stream(stream), position))
    }

    /// Starts the walsender's stream behind `from`, of which everything up to `durable` is in the log.
    pub(super) async fn start(
        &mut self,
        control: &Control,
        replication: ReplicationConnection,
        from: Lsn,
        durable: Lsn,
    ) -> Result<ReplicationStream, CaptureError> {
        let slot_name = self.options.slot();
        let options = self.start_options(control.server_version());
        let stream = replication.start(&slot_name, from, &options).await?;
        // The server starts at the slot's position when that is further than ours, and says nothing.
        let started =
            slot::slot_state(control, &slot_name).await.map_err(query("look at the replication slot"))?;
        if let Some(confirmed) = started.and_then(|slot| slot.confirmed_flush_lsn) {
            self.refuse_slot_ahead(confirmed, durable).await?;
        }
        Ok(stream)
    }

    fn start_options(&self, server_version: u32) -> StartOptions {
        StartOptions {
            protocol: pgoutput::protocol_for(server_version),
            publications: vec![
                publication::full_name(&self.options.task),
                publication::insert_only_name(&self.options.task),
            ],
            streaming: self.whole_behind != Some(self.pipeline.position().last_commit),
            messages: true,
            origin: self.options.publish.origin,
            binary: self.forms.form() == Form::Binary,
            limits: StreamLimits::default(),
        }
    }

    /// A slot that stands beyond what is durable here was read by somebody else.
    async fn refuse_slot_ahead(&mut self, confirmed: Lsn, durable: Lsn) -> Result<(), CaptureError> {
        if confirmed <= durable {
            return Ok(());
        }
        let gap = Gap {
            cause: "slot_ahead",
            table: None,
            from: Some(durable),
            to: confirmed,
            detail: format!(
                "the replication slot moved to {confirmed} while the log ends at {durable}: somebody else reads from it"
            ),
        };
        Err(self.report_gap(gap).await)
    }

    /// A publication that is gone, and since when it may have been.
    async fn unpublished(
        &mut self,
        control: &Control,
        position: &SourcePosition,
    ) -> Result<Option<(String, Lsn)>, CaptureError> {
        let missing = match publication::missing(control, &self.options.task, &self.options.publish).await {
            // The watcher tells what is wrong with it.
            Err(PublicationError::Unusable { .. }) => return Ok(None),
            missing => missing.map_err(query("look at the publications"))?,
        };
        let since = self.unpublished_since.unwrap_or(Lsn(u64::MAX)).min(position.acked_through);
        Ok(missing.into_iter().next().map(|name| (name, since)))
    }

    /// Why the slot of this generation cannot be decoded, if that has become certain.
    async fn undecodable(&mut self, generation: u32) -> Result<Option<String>, CaptureError> {
        if let Some(reason) = self.undecodable.as_ref().and_then(Undecodable::verdict) {
            // Whoever accepts the gap does so in another process.
            let saved = format!("{generation} {reason}");
            self.store_call(move |store, task| store.set_fact(task, UNDECODABLE, &saved)).await?;
            return Ok(Some(reason));
        }
        let saved = self.store_call(|store, task| store.fact(task, UNDECODABLE)).await?;
        let (of, reason) = saved.as_deref().and_then(|saved| saved.split_once(' ')).unzip();
        Ok(reason.filter(|_| of == Some(&generation.to_string())).map(str::to_owned))
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
        let (tables, made) = self.make_publications(control).await?;
        let done = &made.reconciled;
        if made.created {
            let published =
                catalog::source_position(control).await.map_err(query("read the end of the WAL"))?;
            let from = confirmed.max(published);
            self.announce(&tables, done, &[]).await?;
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
            let held = self.held_at_start(&tables, done);
            return self.first_commit(from, system, 1, held).await;
        }
        // Tables that have joined only now are left to the watcher, which has their rows read.
        let late: Vec<u32> = done.added.iter().map(|joined| joined.table.oid).collect();
        self.announce(&tables, done, &late).await?;
        let held = self.held_at_start(&tables, done);
        self.first_commit(confirmed, system, 1, held).await
    }

    async fn make_publications(
        &mut self,
        control: &Control,
    ) -> Result<(Vec<TrackedTable>, PublicationState), CaptureError> {
        let objects = self.options.objects.borrow().clone();
        let tracked = catalog::tracked_tables(control, &objects).await.map_err(query("list the tables"))?;
        let state = publication::ensure(control, &self.options.task, &self.options.publish, &tracked)
            .await
            .map_err(query("make the publications"))?;
        let tables = state.reconciled.tables.clone();
        let refused =
            relations::refused(control, &objects).await.map_err(query("list what cannot be captured"))?;
        let unmatched =
            catalog::unmatched(control, &objects, &tables).await.map_err(query("list the tables"))?;
        self.progress.set_tables(watcher::shortfalls(&tables, &state.reconciled, &refused, unmatched));
        Ok((tables, state))
    }

    /// Saves which tables need no gap event: those that are captured, but for those to be told of `later`.
    async fn announce(
        &mut self,
        tables: &[TrackedTable],
        done: &Reconciled,
        later: &[u32],
    ) -> Result<(), CaptureError> {
        let roots = self.roots(tables, done);
        let is_told = |oid| !watcher::is_left_out(done, oid) && !later.contains(&oid);
        let told = tables.iter().filter(|table| is_told(table.oid));
        let announced = told.map(|table| (table.oid, Announcement::of(table, &roots))).collect();
        self.store_call(move |store, task| set_announced_tables(store, task, &announced)).await
    }

    fn roots(&self, tables: &[TrackedTable], done: &Reconciled) -> Roots {
        let published = tables.iter().filter(|table| !watcher::is_left_out(done, table.oid));
        Roots::of(self.options.publish.partitions_as, published)
    }

    /// The tables whose existing rows a task begins with: of those that are captured, all or none.
    fn held_at_start(&self, tables: &[TrackedTable], done: &Reconciled) -> Vec<TrackedTable> {
        let is_wanted = self.options.start == Start::Snapshot;
        let held = tables.iter().filter(|table| is_wanted && !watcher::is_left_out(done, table.oid));
        self.roots(tables, done).with_rows(held)
    }

    /// Writes where a new slot starts, before anything is read from it, and that these tables are held. It sends nothing
    /// that the log has, and commit LSNs from before it may be those of another cluster.
    async fn first_commit(
        &mut self,
        from: Lsn,
        system: &IdentifySystem,
        slot_generation: u32,
        held: Vec<TrackedTable>,
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
        self.pipeline.restart(position);
        // What was held of tables until now is not complete behind a gap, and may be of another history.
        self.pipeline.hold_anew()?;
        if !held.is_empty() {
            self.pipeline.hold(&held, true)?;
        }
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
        // What was read of tables may have been lost with the old timeline, and the new one has lower positions.
        self.pipeline.restart(position);
        self.pipeline.hold_anew()?;
        self.commit(position).await?;
        Ok(position)
    }

    /// Writes a gap event, once for each gap, and makes it an error.
    async fn report_gap(&mut self, gap: Gap) -> CaptureError {
        match self.write_gap(&gap).await {
            Ok(()) => CaptureError::Gap { gap: Arc::new(gap) },
            Err(error) => error,
        }
    }

    async fn write_gap(&mut self, gap: &Gap) -> Result<(), CaptureError> {
        let text = format!("{} {} {:?} {}", gap.cause, gap.detail, gap.from, gap.to);
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
