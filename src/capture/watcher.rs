//! Beside the stream: polls the source over a connection of its own, keeps the publications in step with the tables,
//! sends heartbeats, and reports what the session has to know. Trouble here never ends a session; it is tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::announced::{Announced, Announcement, Extent, announced_tables, set_announced_tables};
use super::progress::{CapturedTable, Shortfalls};
use super::session::CaptureOptions;
use crate::change::{Gap, Lsn};
use crate::postgres::catalog::{self, Fingerprint, TrackedTable};
use crate::postgres::connect::{self, ConnectError, Control};
use crate::postgres::heartbeat;
use crate::postgres::objects::{Objects, ObjectsChange};
use crate::postgres::publication::creation::{self, JoinedAtCreation};
use crate::postgres::publication::{self, Joined, NotCaptured, PublicationError, Reconciled, Roots};
use crate::postgres::relations::{self, Refused};
use crate::postgres::server::Server;
use crate::postgres::slot::{self, SlotTrouble};
use crate::state::Store;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often to try again with tables that cannot be captured.
const LOOK_AGAIN_INTERVAL: Duration = Duration::from_secs(60);
/// How long a table that was held and then found locked is left alone at most. Each hold is a job of its own.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// How often a person is told that the source keeps too much WAL.
const WAL_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// What the watcher has seen.
#[derive(Debug)]
pub enum Report {
    /// Where the source writes, and what our slot makes it keep.
    Source {
        /// End of the source's WAL.
        lsn: Lsn,
        /// Bytes of WAL kept for our slot.
        retained: u64,
        /// Why the slot can no longer deliver, if it cannot.
        slot_lost: Option<String>,
    },
    /// Tables are about to join a publication, or their rows are wanted: from the commit on that answers, their changes are
    /// held until the rows that there are have been read.
    Hold {
        /// The tables.
        tables: Vec<TrackedTable>,
        /// Answered when that is durable.
        durable: oneshot::Sender<()>,
    },
    /// Tables have changed publication, or joined one unread; a gap event for each says from where on it is complete.
    Joined {
        /// The events.
        gaps: Vec<Gap>,
        /// Answered when they are durable.
        durable: oneshot::Sender<()>,
    },
    /// The address leads to another server than the stream's.
    Elsewhere(ConnectError),
    /// Tables that are captured.
    Captured(Arc<[CapturedTable]>),
    /// Tables that are captured less than whole.
    Shortfalls(Shortfalls),
    /// A publication is gone: the server fails on the next change, or from version 18 on leaves changes out.
    PublicationDropped {
        /// Its name.
        name: String,
        /// Changes before this are not concerned, where that is known.
        since: Option<Lsn>,
    },
}

/// A running watcher.
pub struct Watcher {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Stops it and waits until it has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            warn!(%error, "the watcher ended badly");
        }
    }
}

/// Starts a watcher of `server` that reports to `reports`.
pub fn spawn(
    options: CaptureOptions,
    server: Server,
    store: Arc<Store>,
    reports: mpsc::Sender<Report>,
) -> Watcher {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        stopped.run_until_cancelled(watch(options, server, store, reports)).await;
    });
    Watcher { stop, task }
}

async fn watch(options: CaptureOptions, server: Server, store: Arc<Store>, reports: mpsc::Sender<Report>) {
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let control = match connect::connect_to(&server, &options.source).await {
            Ok(control) => control,
            Err(error @ ConnectError::Elsewhere { .. }) => {
                // The session ends by it, or has ended.
                let _ = reports.send(Report::Elsewhere(error)).await;
                return;
            }
            Err(error) => {
                warn!(task = options.task, %error, "cannot watch the source; trying again");
                continue;
            }
        };
        let mut poll = Poll {
            options: &options,
            store: &store,
            control,
            fingerprint: None,
            look_again: None,
            unsettled: BTreeMap::new(),
            resting: BTreeMap::new(),
            last_heartbeat: None,
            last_wal_warning: None,
            published: None,
            creation: None,
        };
        loop {
            match poll.once(&reports).await {
                Ok(()) => {}
                Err(error) => {
                    warn!(task = options.task, error = %error, "a poll of the source failed; trying again");
                    break;
                }
            }
            if reports.is_closed() {
                return;
            }
            ticks.tick().await;
        }
    }
}

struct Poll<'a> {
    options: &'a CaptureOptions,
    store: &'a Arc<Store>,
    control: Control,
    /// The tables and publications as of the last reconciliation that had nothing left to do, and what was selected.
    fingerprint: Option<(Fingerprint, Objects)>,
    /// When to look although the fingerprint is the same: a right that is granted to us does not show in it.
    look_again: Option<Instant>,
    /// Tables that joined while somebody wrote to them, and the transactions that must have ended before it can be said
    /// from where on they are complete.
    unsettled: BTreeMap<u32, u64>,
    /// Tables that were held and could not join because somebody had them locked: until when they are left alone, and how
    /// long that is. The session has let go of them, so the next attempt must hold them again.
    resting: BTreeMap<u32, (Instant, Duration)>,
    last_heartbeat: Option<Instant>,
    last_wal_warning: Option<Instant>,
    /// Where the source was before the publications were last seen.
    published: Option<Lsn>,
    /// What the event trigger for new tables was last told to select, and whether it is there.
    creation: Option<(Objects, bool)>,
}

/// Partitions that have come to be told as another table, and are not empty since they were made.
#[derive(Default)]
struct Arrived {
    /// They have been written to.
    written: HashSet<u32>,
    /// Somebody has them locked: the next poll looks again.
    locked: HashSet<u32>,
}

type PollError = Box<dyn std::error::Error + Send + Sync>;

impl Poll<'_> {
    async fn once(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), PollError> {
        let lsn = catalog::source_position(&self.control).await?;
        let state = slot::slot_state(&self.control, &self.options.slot()).await?;
        let retained = state.as_ref().map_or(0, |state| state.retained_bytes);
        let warned_lately = self.last_wal_warning.is_some_and(|last| last.elapsed() < WAL_WARNING_INTERVAL);
        if retained > self.options.wal_limit && !warned_lately {
            self.last_wal_warning = Some(Instant::now());
            warn!(
                task = self.options.task,
                retained,
                limit = self.options.wal_limit,
                "the source keeps more WAL for this task than --wal-limit-mb; see that millrace keeps up"
            );
        }
        let slot_lost = match &state {
            Some(state) => match state.trouble(&self.options.source.dbname) {
                Some(SlotTrouble::Lost { reason }) => Some(reason),
                _ => None,
            },
            None => Some("it was dropped".to_owned()),
        };
        reports.send(Report::Source { lsn, retained, slot_lost }).await?;
        self.begin_snapshots(reports).await?;
        self.reconcile(reports).await?;
        self.published = Some(lsn);
        self.heartbeat().await
    }

    /// Brings the publications in step with the tables, and has a gap event written for each table that joins late.
    async fn reconcile(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), PollError> {
        let objects = self.options.objects.borrow().clone();
        let fingerprint =
            (catalog::fingerprint(&self.control, self.control.server_version()).await?, objects);
        let objects = &fingerprint.1;
        let known = self.fingerprint.as_ref() == Some(&fingerprint);
        let due = self.look_again.is_some_and(|at| Instant::now() >= at);
        if known && !due && !self.is_first_settled().await? {
            return Ok(());
        }
        let trigger = self.keep_creation_trigger(objects).await;
        let listed = publication::listed(&self.control, &self.options.task).await?;
        let before = catalog::source_position(&self.control).await?;
        let tracked = catalog::tracked_tables(&self.control, objects).await?;
        let unmatched = catalog::unmatched(&self.control, objects, &tracked).await?;
        let refused = relations::refused(&self.control, objects).await?;
        let now = Instant::now();
        let rests = |table: &TrackedTable| {
            let rests = |oid| self.resting.get(&oid).is_some_and(|(until, _)| *until > now);
            // A partition that joined before the table that it is told as would be told under another name for a while.
            let mut above = table.ancestors.iter().map(|above| above.oid);
            !listed.contains(&table.oid) && (rests(table.oid) || above.any(rests))
        };
        let (resting, tracked): (Vec<_>, Vec<_>) = tracked.into_iter().partition(rests);
        let saved = self.announced().await?;
        let whole =
            if trigger { creation::joined(&self.control, &self.options.task).await? } else { Vec::new() };
        // What is in no publication any more has missed changes, whoever took it out, and a crash of ours may have kept that
        // from being saved: it joins like a new table (I5).
        let still_listed = saved.iter().filter(|(oid, _)| listed.contains(oid));
        let still_listed = still_listed.map(|(oid, announcement)| (*oid, *announcement));
        let may_join = |table: &&TrackedTable| table.owned_by_us || listed.contains(&table.oid);
        let roots = Roots::of(self.options.publish.partitions_as, tracked.iter().filter(may_join));
        let announced: Announced =
            whole_ones(&tracked, &whole, &roots).into_iter().chain(still_listed).collect();
        let is_late = |table: &&TrackedTable| {
            let present = Announcement::of(table, &roots);
            let is_known = announced.get(&table.oid).is_some_and(|before| before.is_of(&present));
            !is_known && may_join(table) && present.told_as == table.oid
        };
        let late = roots.with_rows(tracked.iter().filter(is_late));
        let mut earlier = Reconciled::default();
        if !late.is_empty() {
            // Users' statements may be failing for want of a move, which does not wait for the log (I7).
            let is_known = |table: &&TrackedTable| listed.contains(&table.oid);
            let known: Vec<TrackedTable> = tracked.iter().filter(is_known).cloned().collect();
            earlier = self.publish(reports, &known, &listed).await?;
        }
        let mut held = hold(reports, late).await?;
        let done = self.publish(reports, &tracked, &listed).await?.after(earlier);
        let tables = &done.tables;
        let captured: Vec<&TrackedTable> =
            tables.iter().filter(|table| !is_left_out(&done, table.oid)).collect();
        let has_arrived = |table: &&TrackedTable| {
            let present = Announcement::of(table, &roots);
            let is_known = announced.get(&table.oid).is_some_and(|before| before.is_of(&present));
            let is_part = present.told_as != table.oid;
            !table.partitioned && is_part && !is_known && !held.contains(&present.told_as)
        };
        let arrived = self.look_at_parts(captured.iter().copied().filter(has_arrived)).await?;
        let written = tracked.iter().filter(|table| arrived.written.contains(&table.oid));
        held.extend(hold(reports, roots.with_rows(written)).await?);
        let resting = resting.iter().map(|table| table.oid).collect();
        self.let_rest(resting, done.busy.iter().map(|table| table.oid).filter(|oid| held.contains(oid)));
        let waits = !done.not_captured.is_empty() || self.creation.is_none();
        self.look_again = waits.then(|| Instant::now() + LOOK_AGAIN_INTERVAL);
        reports.send(Report::Shortfalls(shortfalls(tables, &done, &refused, unmatched))).await?;
        reports.send(Report::Captured(captured_tables(&captured, &roots))).await?;
        let mut now_announced = Announced::new();
        let mut gaps = Vec::new();
        for table in &done.moved_to_insert_only {
            let to = catalog::source_position(&self.control).await?;
            gaps.push(match is_left_out(&done, table.oid) {
                true => left_publication(table, before, to),
                false => lost_identity(table, before, to),
            });
        }
        for table in tables {
            let before = announced.get(&table.oid).copied();
            let present = Announcement::of(table, &roots);
            let is_part = present.told_as != table.oid;
            let known = before.filter(|before| before.is_of(&present));
            let is_new_part = is_part && known.is_none() && !arrived.written.contains(&table.oid);
            let told = known.is_some_and(|known| known.extent >= present.extent)
                || is_new_part
                || held.contains(&present.told_as)
                || !roots.has_rows(table);
            let now = if is_left_out(&done, table.oid) || arrived.locked.contains(&table.oid) {
                before
            } else if told {
                Some(present)
            } else if let Some(from) = self.complete_from(&done, table.oid).await? {
                gaps.push(late_gap(table, known.map(|known| known.extent), from));
                Some(present)
            } else {
                before
            };
            now_announced.extend(now.map(|now| (table.oid, now)));
        }
        if !gaps.is_empty() {
            for gap in &gaps {
                info!(task = self.options.task, "{}", gap.detail);
            }
            let (durable, written) = oneshot::channel();
            reports.send(Report::Joined { gaps, durable }).await?;
            // A table counts as announced only when its gap event is durable; a crash before that announces it again.
            written.await?;
        }
        self.unsettled.retain(|oid, _| now_announced.get(oid) == announced.get(oid));
        if now_announced != saved {
            self.announce(now_announced).await?;
        }
        if !whole.is_empty() {
            // One that was made after the tables were read is the next poll's.
            let removed = done.removed.iter().map(|table| table.oid);
            let seen: Vec<u32> = tables.iter().map(|table| table.oid).chain(removed).collect();
            creation::forget(&self.control, &self.options.task, &seen).await?;
        }
        // Our own changes to the publications move the fingerprint: the next poll takes the settled one.
        let unchanged =
            done.added.is_empty() && done.moved_to_full.is_empty() && done.moved_to_insert_only.is_empty();
        let is_settled =
            done.busy.is_empty() && self.resting.is_empty() && arrived.locked.is_empty() && unchanged;
        self.fingerprint = is_settled.then_some(fingerprint);
        Ok(())
    }

    /// Looks at partitions that have come to be told as another table, whether that lacks something of them: rows that were
    /// written before, and updates from before the partition joined.
    async fn look_at_parts(&self, tables: impl Iterator<Item = &TrackedTable>) -> Result<Arrived, PollError> {
        let mut arrived = Arrived::default();
        for table in tables {
            match publication::was_written(&self.control, table.oid).await? {
                Some(true) => arrived.written.insert(table.oid),
                Some(false) => false,
                None => arrived.locked.insert(table.oid),
            };
        }
        Ok(arrived)
    }

    /// Leaves tables alone that were `locked` when they were to join, the longer the more often; others than these and
    /// those that are `resting` are forgotten.
    fn let_rest(&mut self, resting: BTreeSet<u32>, locked: impl Iterator<Item = u32>) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.resting);
        for oid in locked {
            let rest = before.get(&oid).map_or(POLL_INTERVAL, |(_, rest)| (*rest * 2).min(LONGEST_REST));
            self.resting.insert(oid, (now + rest, rest));
        }
        self.resting.extend(before.into_iter().filter(|(oid, _)| resting.contains(oid)));
    }

    /// Has the event trigger for new tables select these objects, or be gone. Whether it is there.
    async fn keep_creation_trigger(&mut self, objects: &Objects) -> bool {
        let CaptureOptions { task, publish, join_at_creation: wanted, .. } = self.options;
        let wanted = *wanted;
        if let Some((kept_for, is_there)) = &self.creation
            && kept_for == objects
        {
            return *is_there;
        }
        match creation::keep(&self.control, task, wanted, objects, publish).await {
            Ok(is_there) => {
                self.creation = Some((objects.clone(), is_there));
                is_there
            }
            Err(error) => {
                warn!(task, %error, "new tables join when a poll sees them; trying again later");
                // Not kept: what was in the way may pass.
                self.creation = None;
                false
            }
        }
    }

    /// Puts exactly these tables into the publications.
    async fn publish(
        &self,
        reports: &mpsc::Sender<Report>,
        tables: &[TrackedTable],
        listed: &HashSet<u32>,
    ) -> Result<Reconciled, PollError> {
        let CaptureOptions { task, publish, .. } = self.options;
        let done = publication::reconcile(&self.control, task, publish, tables, listed).await;
        if let Err(PublicationError::Missing(name)) = &done {
            let report = Report::PublicationDropped { name: name.clone(), since: self.published };
            reports.send(report).await?;
        }
        Ok(done?)
    }

    /// Has the changes of the tables held of which somebody wants a snapshot. The reader takes it from there.
    async fn begin_snapshots(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), PollError> {
        let wanted = self.options.snapshots.wanted();
        if wanted.is_empty() {
            return Ok(());
        }
        let meant =
            ObjectsChange { include: Some(wanted.clone()), exclude: None }.apply(&Objects::default())?;
        let objects = self.options.objects.borrow().clone();
        let mut tables = catalog::tracked_tables(&self.control, &objects).await?;
        let listed = publication::listed(&self.control, &self.options.task).await?;
        tables.retain(|table| listed.contains(&table.oid));
        let roots = Roots::of(self.options.publish.partitions_as, tables.iter());
        let is_meant = |table: &&TrackedTable| meant.select(table.names());
        let tables = roots.with_rows(tables.iter().filter(is_meant));
        for table in &tables {
            if let Some(sql) = &table.unreadable {
                warn!(task = self.options.task, %table, "a snapshot is wanted of what cannot be read; run: {sql}");
            }
        }
        let held = hold(reports, tables).await?;
        info!(task = self.options.task, tables = held.len(), "the rows of tables are read, as was asked for");
        // The session begins to read when it hears that everything is published.
        self.fingerprint = None;
        Ok(self.options.snapshots.clone().done(wanted).await?)
    }

    /// From where on a table is complete that has joined a publication, or gained in one; `None` while transactions that
    /// wrote to it before are open: what they wrote is missing, whenever they commit (I5).
    async fn complete_from(&mut self, done: &Reconciled, oid: u32) -> Result<Option<Lsn>, PollError> {
        let joined = done.added.iter().chain(&done.moved_to_full).find(|joined| joined.table.oid == oid);
        let open_until = match (joined, self.unsettled.get(&oid)) {
            (Some(Joined { open_until: None, complete_from, .. }), _) => return Ok(Some(*complete_from)),
            (Some(Joined { open_until: Some(open), .. }), _) | (None, Some(open)) => *open,
            // It joined before a crash that the event did not survive.
            (None, None) => publication::open_now(&self.control).await?,
        };
        let settled = publication::settled(&self.control, open_until).await?;
        if settled.is_none() {
            self.unsettled.insert(oid, open_until);
        }
        Ok(settled)
    }

    /// Whether something can be said now about one of the tables that it could not be said about before.
    async fn is_first_settled(&self) -> Result<bool, PollError> {
        match self.unsettled.values().min() {
            Some(&open_until) => Ok(publication::settled(&self.control, open_until).await?.is_some()),
            None => Ok(false),
        }
    }

    async fn heartbeat(&mut self) -> Result<(), PollError> {
        let Some(every) = self.options.heartbeat else { return Ok(()) };
        let now = Instant::now();
        if self.last_heartbeat.is_none_or(|last| now >= last + every) {
            heartbeat::send(&self.control, &self.options.task).await?;
            self.last_heartbeat = Some(now);
        }
        Ok(())
    }

    async fn announced(&self) -> Result<Announced, PollError> {
        let (store, task) = (self.store.clone(), self.options.task.clone());
        Ok(tokio::task::spawn_blocking(move || announced_tables(&store, &task)).await??)
    }

    async fn announce(&self, tables: Announced) -> Result<(), PollError> {
        let (store, task) = (self.store.clone(), self.options.task.clone());
        Ok(tokio::task::spawn_blocking(move || set_announced_tables(&store, &task, &tables)).await??)
    }
}

/// Has the changes of those of these tables held whose rows can be read, and gives the tables that are.
async fn hold(
    reports: &mpsc::Sender<Report>,
    mut tables: Vec<TrackedTable>,
) -> Result<BTreeSet<u32>, PollError> {
    tables.retain(|table| table.unreadable.is_none());
    if tables.is_empty() {
        return Ok(BTreeSet::new());
    }
    let oids: BTreeSet<u32> = tables.iter().map(|table| table.oid).collect();
    let (durable, held) = oneshot::channel();
    reports.send(Report::Hold { tables, durable }).await?;
    held.await?;
    Ok(oids)
}

/// What is announced of the tables that lack nothing because they joined in their creating transaction, and are told as
/// they were then.
fn whole_ones(tracked: &[TrackedTable], whole: &[JoinedAtCreation], roots: &Roots) -> Announced {
    let tracked: HashMap<u32, &TrackedTable> = tracked.iter().map(|table| (table.oid, table)).collect();
    let announcement = |joined: &JoinedAtCreation| {
        let extent = if joined.full { Extent::Full } else { Extent::Inserts };
        let present = Announcement::of(tracked.get(&joined.oid)?, roots);
        (joined.attachment == present.attachment).then_some((joined.oid, Announcement { extent, ..present }))
    };
    whole.iter().filter_map(announcement).collect()
}

/// Whether a table is not captured, or only so far as its state allows.
pub fn is_left_out(done: &Reconciled, oid: u32) -> bool {
    done.busy.iter().any(|table| table.oid == oid)
        || done.not_captured.iter().any(|left| left.table.oid == oid)
}

/// What people are told of the tables that are captured.
fn captured_tables(captured: &[&TrackedTable], roots: &Roots) -> Arc<[CapturedTable]> {
    let names: HashMap<u32, (String, String)> =
        captured.iter().map(|table| (table.oid, (table.schema.clone(), table.name.clone()))).collect();
    let table = |table: &&TrackedTable| CapturedTable {
        schema: table.schema.clone(),
        name: table.name.clone(),
        above: table.ancestors.iter().map(|above| (above.schema.clone(), above.name.clone())).collect(),
        told_as: names.get(&roots.told_as(table)).filter(|_| roots.told_as(table) != table.oid).cloned(),
        insert_only: Extent::of(table) == Extent::Inserts && !table.partitioned,
        unreadable: table.unreadable.clone(),
    };
    captured.iter().map(table).collect()
}

/// The tables that are captured less than whole, in a sentence each.
pub fn shortfalls(
    tables: &[TrackedTable],
    done: &Reconciled,
    refused: &[Refused],
    unmatched: Vec<String>,
) -> Shortfalls {
    let is_left_out =
        |table: &&TrackedTable| done.not_captured.iter().any(|left| left.table.oid == table.oid);
    let weak = tables.iter().filter(|table| !is_left_out(table));
    Shortfalls {
        not_captured: done.not_captured.iter().map(not_captured).collect(),
        insert_only: weak.filter_map(insert_only).collect(),
        refused: refused.iter().map(|refused| format!("{refused}; {}", refused.remedy())).collect(),
        unmatched,
    }
}

fn not_captured(left: &NotCaptured) -> String {
    format!("{}: {}; run: {}", left.table, left.reason, left.sql)
}

fn insert_only(table: &TrackedTable) -> Option<String> {
    let weakness = table.published.weakness.as_ref()?;
    let remedy = weakness.remedy(table);
    Some(format!("{table}: only inserts and truncates are captured, because {weakness}; {remedy}"))
}

/// The event for a table of which nothing was captured before, or only its inserts.
fn late_gap(table: &TrackedTable, before: Option<Extent>, to: Lsn) -> Gap {
    let (schema, name) = (&table.schema, &table.name);
    let (cause, detail) = match before {
        None => (
            "table_joined_late",
            format!(
                "table {schema}.{name} has joined and is complete from {to} on; what was written into it before may be \
                 missing{}",
                table
                    .unreadable
                    .iter()
                    .map(|sql| format!("; so that its rows can be read, run: {sql}"))
                    .collect::<String>()
            ),
        ),
        Some(_) => (
            "table_gained_identity",
            format!(
                "table {schema}.{name} has a usable replica identity and is complete from {to} on; updates and deletes made before may be missing"
            ),
        ),
    };
    Gap { cause, table: Some((schema.clone(), name.clone())), from: None, to, detail }
}

fn lost_identity(table: &TrackedTable, from: Lsn, to: Lsn) -> Gap {
    let (schema, name) = (&table.schema, &table.name);
    Gap {
        cause: "table_lost_identity",
        table: Some((schema.clone(), name.clone())),
        from: Some(from),
        to,
        detail: format!(
            "table {schema}.{name} has lost its replica identity; its updates and deletes from {from} on are not included \
             until it has one again"
        ),
    }
}

/// The event for a table that had to leave the publication for updates and could not join the other one.
fn left_publication(table: &TrackedTable, from: Lsn, to: Lsn) -> Gap {
    let (schema, name) = (&table.schema, &table.name);
    Gap {
        cause: "table_left",
        table: Some((schema.clone(), name.clone())),
        from: Some(from),
        to,
        detail: format!(
            "table {schema}.{name} has lost its replica identity and cannot be published without one; its changes from {from} \
             on may be missing until it joins again"
        ),
    }
}
