//! Keeps a task going: runs sessions one after the other, waits between them, and knows when to give up.
//!
//! How long trouble is borne depends on its kind ([`Trouble`]): a source that is away for the connection retry time, a
//! full disk for ever (it resumes by itself), anything else for a short time; what retrying cannot help fails at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::definition::TaskDefinition;
use super::lifecycle::{Lifecycle, State};
use crate::capture::Trouble;
use crate::capture::progress::Progress;
use crate::capture::session::Capture;
use crate::log::LogWriter;
use crate::state::Store;

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// A session that ran this long has done well: the next trouble starts counting anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

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
    /// What it is to do.
    pub definition: TaskDefinition,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// The saved state, where every move is recorded.
    store: Arc<Store>,
}

impl Task {
    /// A task that has not been started.
    pub fn new(definition: TaskDefinition, store: Arc<Store>) -> Self {
        Task { definition, lifecycle: Lifecycle::default(), progress: Arc::default(), store }
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
    /// Starts sessions of `capture` for `task`.
    pub fn start<W: LogWriter>(
        task: Arc<Task>,
        capture: Capture<W>,
        running: watch::Receiver<bool>,
        retry: RetryTimes,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        Supervisor { stop, task: tokio::spawn(supervise(task, capture, running, retry, stopped)) }
    }

    /// Ends the session in order: the group in flight is written and acknowledged.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            error!(%error, "a task ended badly");
        }
    }
}

async fn supervise<W: LogWriter>(
    task: Arc<Task>,
    mut capture: Capture<W>,
    mut running: watch::Receiver<bool>,
    retry: RetryTimes,
    stop: CancellationToken,
) {
    let name = task.definition.name.as_str();
    let mut wait = FIRST_WAIT;
    let mut trouble_since: Option<Instant> = None;
    loop {
        task.become_state(State::Starting, "").await;
        let started = Instant::now();
        let ended = {
            let session = capture.session(&stop);
            tokio::pin!(session);
            let mut announced = false;
            loop {
                tokio::select! {
                    ended = &mut session => break ended,
                    Ok(()) = running.changed(), if !announced => {
                        if *running.borrow_and_update() {
                            announced = true;
                            task.become_state(State::Running, "").await;
                        }
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
        if started.elapsed() >= HEALTHY_AFTER {
            (wait, trouble_since) = (FIRST_WAIT, None);
        }
        let since = *trouble_since.get_or_insert_with(Instant::now);
        let limit = match error.trouble() {
            Trouble::Source => Some(retry.connection),
            Trouble::Task => Some(retry.other),
            Trouble::Disk => None,
            Trouble::Final => Some(Duration::ZERO),
        };
        if limit.is_some_and(|limit| since.elapsed() >= limit) {
            error!(task = name, %error, "the task has failed");
            task.become_state(State::Failed, &error.to_string()).await;
            return;
        }
        warn!(task = name, %error, retry_in_ms = wait.as_millis() as u64, "in trouble; trying again");
        task.become_state(State::Retrying, &error.to_string()).await;
        task.progress.reconnecting();
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            info!(task = name, "stopped while waiting to try again");
            task.become_state(State::Paused, "the broker is stopping").await;
            return;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
