//! The reader: rounds, each of which reads what is left under one shared snapshot and, where a table has been begun
//! before, by chunks in key order.
//!
//! A round ends early when the shared snapshot is lost or has become too old. What has been told stays told; the next
//! round begins anew with the tables that are not finished.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::progress::{ReadProgress, ReadState};
use super::round::Round;
use super::table::{self, Table};
use super::{Read, ReadFrom, Visibility, Wanted};
use crate::postgres::connect::{self, ConnectError, Control};
use crate::postgres::publication;
use crate::postgres::server::Server;
use crate::postgres::server_error::ServerError;
use crate::postgres::source::SourceConfig;
use crate::postgres::sql::SqlError;

/// How long to wait before a round that follows trouble, or that found nothing to do yet.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How long tables that can be read wait for others, so that all that are asked for at once share one snapshot.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a person is told who is waited for.
const WAIT_WARNING: Duration = Duration::from_secs(60);

/// How to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// Connections that read at the same time.
    pub connections: usize,
    /// How fast to read at most.
    pub bytes_per_second: Option<u64>,
    /// How long the shared snapshot is held at most: as long as it is, VACUUM cannot remove what was deleted since.
    pub max_age: Duration,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { connections: 2, bytes_per_second: None, max_age: Duration::from_secs(3600) }
    }
}

/// A running reader. It ends by itself when everything has been told.
#[derive(Debug)]
pub struct Reader {
    stop: CancellationToken,
    task: JoinHandle<()>,
    progress: Arc<ReadProgress>,
}

impl Reader {
    /// Starts to read tables of a task and tells `out` about it. A table is begun as soon as it is published and every
    /// transaction has ended that may have written to it before. Nothing is read but from `server`, whose stream it is.
    pub fn spawn(
        source: SourceConfig,
        server: Server,
        task: &str,
        options: ReadOptions,
        wanted: Vec<Wanted>,
        out: mpsc::Sender<Read>,
    ) -> Reader {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let progress = Arc::new(ReadProgress::default());
        for table in &wanted {
            progress.table(table.oid, |_| ());
        }
        let pending = wanted.into_iter().map(|table| (table.oid, Pending::new(table))).collect();
        let reading = Reading {
            source,
            server,
            task: task.to_owned(),
            options,
            progress: progress.clone(),
            out,
            pending: Mutex::new(pending),
        };
        let task = tokio::spawn(async move {
            stopped.run_until_cancelled(reading.run()).await;
        });
        Reader { stop, task, progress }
    }

    /// How far it is.
    pub fn progress(&self) -> &Arc<ReadProgress> {
        &self.progress
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            warn!(%error, "the reader of existing rows ended badly");
        }
    }
}

/// What ends a round early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("the server's snapshot cannot be read: {0}")]
    Visibility(#[from] super::visibility::ParseVisibilityError),
    /// Nobody listens any more.
    #[error("nobody takes the rows")]
    Closed,
}

/// A table that is not finished.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) epoch: u32,
    pub(super) from: ReadFrom,
    /// What the table was like when this reader told its beginning under this epoch.
    pub(super) begun: Option<String>,
    /// Transactions that wrote to it when it was first seen published and that have not ended since.
    writers: Option<HashSet<String>>,
    /// Since when nobody has been told what it waits for; `None` while it does not wait.
    untold_since: Option<Instant>,
}

impl Pending {
    fn new(wanted: Wanted) -> Self {
        // Who has begun with it before has waited before.
        let writers = (wanted.from != ReadFrom::Start).then(HashSet::new);
        Pending { epoch: wanted.epoch, from: wanted.from, begun: None, writers, untold_since: None }
    }

    /// It cannot be read now. Whether it is time to tell a person.
    fn waits(&mut self) -> bool {
        let now = Instant::now();
        let since = *self.untold_since.get_or_insert(now);
        let is_due = now.duration_since(since) >= WAIT_WARNING;
        if is_due {
            self.untold_since = Some(now);
        }
        is_due
    }

    /// Begins anew.
    pub(super) fn again(&mut self, from: ReadFrom) {
        self.epoch += 1;
        self.from = from;
        self.begun = None;
    }
}

pub(super) struct Reading {
    pub(super) source: SourceConfig,
    pub(super) server: Server,
    pub(super) task: String,
    pub(super) options: ReadOptions,
    pub(super) progress: Arc<ReadProgress>,
    pub(super) out: mpsc::Sender<Read>,
    pending: Mutex<BTreeMap<u32, Pending>>,
}

impl Reading {
    async fn run(self) {
        while !self.pending().is_empty() {
            match self.round().await {
                Ok(()) => {}
                Err(RoundError::Closed) => return,
                Err(RoundError::Connect(error @ ConnectError::Elsewhere { .. })) => {
                    // Who does not hear of it has ended itself.
                    let _ = self.tell(Read::Elsewhere(error)).await;
                    return;
                }
                Err(error) => {
                    warn!(task = self.task, %error, "cannot read existing rows; trying again");
                    sleep(PAUSE).await;
                }
            }
        }
        info!(task = self.task, "all existing rows that were asked for have been read");
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, BTreeMap<u32, Pending>> {
        self.pending.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) async fn tell(&self, read: Read) -> Result<(), RoundError> {
        self.out.send(read).await.map_err(|_| RoundError::Closed)
    }

    /// A table cannot be read now: a person is told where that lasts.
    pub(super) fn waits(&self, table: &Table, error: &ServerError) {
        if self.pending().get_mut(&table.oid).is_some_and(Pending::waits) {
            warn!(task = self.task, table = table.name(), %error, "a table cannot be read for now; trying again and again");
        }
    }

    /// Some of a table has been read.
    pub(super) fn waits_no_more(&self, oid: u32) {
        if let Some(pending) = self.pending().get_mut(&oid) {
            pending.untold_since = None;
        }
    }

    /// Nothing more is to be told of a table.
    pub(super) async fn finish(&self, oid: u32, last: Read) -> Result<(), RoundError> {
        let state = if matches!(last, Read::Refused { .. }) { ReadState::Refused } else { ReadState::Done };
        if let Read::Refused { reason, .. } = &last {
            warn!(task = self.task, reason, "the existing rows of a table cannot be read");
        }
        self.tell(last).await?;
        self.pending().remove(&oid);
        self.progress.table(oid, |table| table.state = state);
        Ok(())
    }

    async fn round(&self) -> Result<(), RoundError> {
        if self.server.is_standby() {
            return self.refuse_standby().await;
        }
        let control = connect::connect_to(&self.server, &self.source).await?;
        let mut ready = self.ready(&control).await?;
        let patience = Instant::now() + PATIENCE;
        while ready.len() < self.pending().len() && Instant::now() < patience {
            sleep(PAUSE / 10).await;
            ready = self.ready(&control).await?;
        }
        let tables = table::tables(&control, &self.task, &ready).await?;
        if tables.is_empty() {
            sleep(PAUSE).await;
            return Ok(());
        }
        let (mut shared, mut keyed) = (Vec::new(), Vec::new());
        for (oid, table) in tables {
            let place = |progress: &mut super::progress::TableProgress| {
                (progress.table, progress.size) = (table.name(), table.bytes);
                progress.estimated_rows = table.estimated_rows;
            };
            self.progress.table(oid, place);
            let Some(pending) = self.way(oid, &table) else { continue };
            match &pending.from {
                ReadFrom::Start => shared.push((table, pending)),
                _ => keyed.push((table, pending)),
            }
        }
        Round::read(self, control, shared, keyed).await
    }

    /// Decides how a table is read in this round.
    fn way(&self, oid: u32, table: &Table) -> Option<Pending> {
        let mut all = self.pending();
        let pending = all.get_mut(&oid)?;
        let is_another = pending.begun.as_ref().is_some_and(|stamp| *stamp != table.stamp);
        if is_another {
            pending.again(if pending.from == ReadFrom::Start { ReadFrom::Start } else { ReadFrom::FirstKey });
        }
        match &pending.from {
            ReadFrom::After { stamp, .. } if *stamp == table.stamp && table.has_key() => {}
            ReadFrom::After { .. } if table.has_key() => pending.again(ReadFrom::FirstKey),
            ReadFrom::After { .. } => pending.again(ReadFrom::Start),
            ReadFrom::FirstKey if !table.has_key() => pending.from = ReadFrom::Start,
            ReadFrom::FirstKey | ReadFrom::Start => {}
        }
        Some(pending.clone())
    }

    /// The tables that can be read now: those that are published, and to which nobody writes any more who did so before.
    async fn ready(&self, control: &Control) -> Result<Vec<u32>, RoundError> {
        let oids: Vec<u32> = self.pending().keys().copied().collect();
        let exist = table::stamps(control, &self.task, &oids, None).await?;
        for oid in oids.iter().filter(|oid| !exist.contains_key(oid)) {
            self.finish(*oid, Read::Gone { oid: *oid }).await?;
        }
        let listed = publication::listed(control, &self.task).await?;
        let oids: Vec<u32> =
            oids.into_iter().filter(|oid| exist.contains_key(oid) && listed.contains(oid)).collect();
        let writers = table::writers(control, &oids).await?;
        let mut all = self.pending();
        let is_ready = |oid: &u32| {
            let Some(pending) = all.get_mut(oid) else { return false };
            let now = writers.get(oid).cloned().unwrap_or_default();
            let waits_for = match &pending.writers {
                None => now,
                Some(before) => before.intersection(&now).cloned().collect(),
            };
            let is_ready = waits_for.is_empty();
            if !is_ready && pending.waits() {
                warn!(
                    task = self.task,
                    table = oid,
                    transactions = waits_for.len(),
                    "waiting to read a table's rows until transactions end that wrote to it before; \
                     see pg_locks and pg_stat_activity"
                );
            }
            pending.writers = Some(waits_for);
            is_ready
        };
        Ok(oids.into_iter().filter(is_ready).collect())
    }

    async fn refuse_standby(&self) -> Result<(), RoundError> {
        let oids: Vec<u32> = self.pending().keys().copied().collect();
        for oid in oids {
            // There pg_current_snapshot() does not list the transactions that run.
            let reason = "the source is a standby, where it cannot be told which transactions a snapshot sees; \
                          read the rows from the primary";
            self.finish(oid, Read::Refused { oid, reason: reason.to_owned() }).await?;
        }
        Ok(())
    }
}

/// A transaction whose snapshot others use, for as long as this lives.
pub(super) struct SharedSnapshot {
    control: Control,
    pub(super) name: String,
    pub(super) visibility: Visibility,
    since: Instant,
    /// How long it may be used.
    pub(super) max_age: Duration,
}

impl SharedSnapshot {
    pub(super) async fn take(
        server: &Server,
        source: &SourceConfig,
        max_age: Duration,
    ) -> Result<Self, RoundError> {
        // In seconds; -1 is for ever. Versions from 17 on have no such thing.
        const SQL: &str = "
            SELECT pg_export_snapshot(), pg_current_snapshot()::text,
                   extract(epoch FROM nullif(current_setting('old_snapshot_threshold', true), '-1')::interval)::int8";
        let failed = |error| SqlError::new("export a snapshot", error);
        let control = connect::connect_to(server, source).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        control.batch_execute(begin).await.map_err(failed)?;
        let row = control.query_one(SQL, &[]).await.map_err(failed)?;
        let name = row.try_get(0).map_err(failed)?;
        let visibility = row.try_get::<_, String>(1).map_err(failed)?.parse()?;
        // What a snapshot sees may be removed after that, and who has imported it is not told so.
        let kept: Option<i64> = row.try_get(2).map_err(failed)?;
        let kept = kept.and_then(|seconds| u64::try_from(seconds).ok());
        let kept = kept.map_or(max_age, |seconds| Duration::from_secs((seconds / 2).max(2)));
        let max_age = max_age.min(kept);
        // The server ends it also when we are stuck, or cut off.
        let since = Instant::now();
        let most = i32::try_from(max_age.as_millis()).unwrap_or(i32::MAX);
        let limit = format!("SET idle_in_transaction_session_timeout = {most}");
        control.batch_execute(&limit).await.map_err(failed)?;
        Ok(SharedSnapshot { control, name, visibility, since, max_age })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.control.is_closed()
    }

    pub(super) fn is_too_old(&self) -> bool {
        self.since.elapsed() >= self.max_age
    }
}
