//! Keeps a task going: runs sessions one after the other, waits between them, and knows when to give up.
//!
//! How long trouble is borne depends on its kind ([`Trouble`]): a source that is away for the connection retry time, a
//! full disk for ever (it resumes by itself), anything else for a short time; what retrying cannot help fails at once.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::definition::TaskDefinition;
use super::lifecycle::{Lifecycle, State};
use super::precheck::{self, Checks};
use crate::capture::Trouble;
use crate::capture::progress::Progress;
use crate::capture::session::{Capture, CaptureOptions, Flow};
use crate::capture::snapshot_requests::SnapshotRequests;
use crate::log::LogWriter;
use crate::postgres::objects::{Objects, ObjectsError};
use crate::state::{StateError, Store};

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// A session that was running for this long has done well: the next trouble starts counting anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// How long a task may take to stop: a log that stalls is given up twice on the way.
const STOP_WITHIN: Duration = Duration::from_secs(25);

/// How long trouble is borne.
#[derive(Debug, Clone, Copy)]
pub struct RetryTimes {
    /// A source that cannot be reached.
    pub connection: Duration,
    /// Any other trouble that may pass.
    pub other: Duration,
}

impl Default for RetryTimes {
    fn default() -> Self {
        RetryTimes { connection: Duration::from_secs(720 * 60), other: Duration::from_secs(10 * 60) }
    }
}

/// A task as the rest of the broker sees it.
#[derive(Debug)]
pub struct Task {
    /// What it is to do; its objects as they were at the start.
    pub definition: TaskDefinition,
    /// The tables that it tracks.
    pub objects: Arc<watch::Sender<Objects>>,
    /// Snapshots that are asked for.
    pub snapshots: Arc<SnapshotRequests>,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// The saved state, where every move is recorded.
    store: Arc<Store>,
    /// Taken while its definition is changed and saved, by threads that may block.
    changing: Mutex<()>,
}

/// A change of a task that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be meant.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// It cannot be saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be written down.
    #[error("cannot save the task: {0}")]
    Unsaved(String),
}

impl Task {
    /// A task that has not been started, and will capture like this.
    pub fn new(definition: TaskDefinition, capture: &CaptureOptions, store: Arc<Store>) -> Self {
        Task {
            definition,
            objects: capture.objects.clone(),
            snapshots: capture.snapshots.clone(),
            lifecycle: Lifecycle::default(),
            progress: Arc::default(),
            store,
            changing: Mutex::default(),
        }
    }

    /// Tracks what `change` makes of the present tables, from the next poll of the source on. Durable when this returns.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then.
    pub async fn change_objects(
        self: Arc<Self>,
        change: impl FnOnce(&Objects) -> Result<Objects, ObjectsError> + Send + 'static,
    ) -> Result<(), ChangeError> {
        let save = move || {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let objects = change(&self.objects.borrow())?;
            let task = TaskDefinition { objects: objects.clone(), ..self.definition.clone() };
            let json =
                serde_json::to_string(&task).map_err(|error| ChangeError::Unsaved(error.to_string()))?;
            self.store.define_task(&task.name, &json)?;
            info!(task = task.name, %objects, "tracks other tables");
            self.objects.send_replace(objects);
            Ok(())
        };
        tokio::task::spawn_blocking(save).await.map_err(|error| ChangeError::Unsaved(error.to_string()))?
    }

    /// Moves to another state and records it.
    pub async fn become_state(&self, state: State, reason: &str) {
        let Some(status) = self.lifecycle.become_state(state, reason) else { return };
        let (store, name) = (self.store.clone(), self.definition.name.clone());
        let saved = tokio::task::spawn_blocking(move || {
            store.move_task(&name, status.state.name(), &status.reason, status.since.millis())
        });
        if let Ok(Err(error)) = saved.await {
            warn!(task = self.definition.name, %error, "the task's state could not be saved");
        }
    }
}

/// A running supervisor.
pub struct Supervisor {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts sessions of `capture` for `task`; after `checks`, where there are some.
    pub fn start<W: LogWriter>(
        task: Arc<Task>,
        mut capture: Capture<W>,
        flow: watch::Receiver<Flow>,
        retry: RetryTimes,
        checks: Option<Checks>,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let supervised = async {
                let passed = match &checks {
                    Some(checks) => precheck::pass(&task, checks, &stopped).await,
                    None => true,
                };
                if passed {
                    supervise(&task, &mut capture, flow, retry, stopped).await;
                }
            };
            if AssertUnwindSafe(supervised).catch_unwind().await.is_err() {
                // The panic hook has told where.
                task.become_state(State::Failed, "a fault in millrace; please report what its log says")
                    .await;
            }
            // Waits for the log's thread, which may be writing.
            if let Err(error) = tokio::task::spawn_blocking(move || drop(capture)).await {
                error!(task = task.definition.name, %error, "the log was not closed");
            }
        });
        Supervisor { stop, task }
    }

    /// Ends the session in order: the group in flight is written and acknowledged. A disk that does not answer is waited
    /// for only so long.
    pub async fn stop(self) {
        self.stop.cancel();
        match timeout(STOP_WITHIN, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "a task ended badly"),
            Err(_) => error!("a task did not end in time; what is durable is kept"),
        }
    }
}

async fn supervise<W: LogWriter>(
    task: &Task,
    capture: &mut Capture<W>,
    mut flow: watch::Receiver<Flow>,
    retry: RetryTimes,
    stop: CancellationToken,
) {
    let name = task.definition.name.as_str();
    let mut patience = Patience::default();
    loop {
        task.become_state(State::Starting, "").await;
        let mut running_since = None;
        let ended = {
            let session = capture.session(&stop);
            tokio::pin!(session);
            loop {
                tokio::select! {
                    ended = &mut session => break ended,
                    Ok(()) = flow.changed() => {
                        let state = match *flow.borrow_and_update() {
                            Flow::Stopped => continue,
                            Flow::Snapshotting => State::Snapshotting,
                            Flow::Running => State::Running,
                        };
                        running_since.get_or_insert_with(Instant::now);
                        task.become_state(state, "").await;
                    }
                }
            }
        };
        let error = match ended {
            Ok(()) => {
                task.become_state(State::Paused, "the broker is stopping").await;
                return;
            }
            Err(error) => error,
        };
        if running_since.is_some_and(|since| since.elapsed() >= HEALTHY_AFTER) {
            patience = Patience::default();
        }
        let Some(wait) = patience.wait(error.trouble(), Instant::now(), retry) else {
            error!(task = name, %error, "the task has failed");
            task.become_state(State::Failed, &error.to_string()).await;
            return;
        };
        warn!(task = name, %error, retry_in_ms = wait.as_millis() as u64, "in trouble; trying again");
        task.become_state(State::Retrying, &error.to_string()).await;
        task.progress.reconnecting();
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            info!(task = name, "stopped while waiting to try again");
            task.become_state(State::Paused, "the broker is stopping").await;
            return;
        }
    }
}

/// How long trouble has lasted, each kind for itself: an hour without the source says nothing about how long the row
/// that then fails has been tried.
#[derive(Debug, Default)]
struct Patience {
    source_since: Option<Instant>,
    task_since: Option<Instant>,
    waits: u32,
}

impl Patience {
    /// How long to wait before the next attempt; `None` when it is enough.
    fn wait(&mut self, kind: Trouble, now: Instant, retry: RetryTimes) -> Option<Duration> {
        let lasts = |since: &mut Option<Instant>| now.duration_since(*since.get_or_insert(now));
        let enough = match kind {
            Trouble::Source => lasts(&mut self.source_since) >= retry.connection,
            Trouble::Task => lasts(&mut self.task_since) >= retry.other,
            Trouble::Disk => false,
            Trouble::Final => true,
        };
        let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.waits)).min(LONGEST_WAIT);
        self.waits = self.waits.saturating_add(1);
        (!enough).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_trouble_is_borne_for_its_own_time() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        let mut wait = |kind, minute: u64| {
            patience.wait(kind, start + Duration::from_secs(minute * 60), RetryTimes::default())
        };
        assert_eq!(wait(Trouble::Source, 0), Some(FIRST_WAIT));
        assert_eq!(wait(Trouble::Source, 0), Some(FIRST_WAIT * 2));
        assert_eq!(wait(Trouble::Source, 600), Some(FIRST_WAIT * 4));
        // The source is back, and now something else is wrong; the slot's old connection in between changes nothing.
        assert!(wait(Trouble::Task, 601).is_some());
        assert!(wait(Trouble::Source, 605).is_some());
        assert!(wait(Trouble::Task, 610).is_some());
        assert_eq!(wait(Trouble::Task, 611), None);
        assert_eq!(wait(Trouble::Source, 720), None);
        for day in 0..100 {
            assert!(wait(Trouble::Disk, day * 1440).is_some_and(|wait| wait <= LONGEST_WAIT));
        }
        assert_eq!(wait(Trouble::Final, 0), None);
    }
}
