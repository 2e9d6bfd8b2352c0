//! The states of a task. Every move is recorded with its time and reason.

use std::fmt;

use tokio::sync::watch;

use crate::change::Timestamp;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Defined, nothing done yet.
    Created,
    /// The checks are running.
    Prechecking,
    /// A check failed.
    PrecheckFailed,
    /// May be started.
    Ready,
    /// Connecting, finding or making the slot.
    Starting,
    /// The rows that the task starts with are being read, and the changes since then kept.
    Snapshotting,
    /// Changes flow.
    Running,
    /// In trouble that may pass; tries again.
    Retrying,
    /// Stopped by a person.
    Paused,
    /// In trouble that needs a person.
    Failed,
}

impl State {
    /// The state's name, as users see it.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Prechecking => "prechecking",
            State::PrecheckFailed => "precheck_failed",
            State::Ready => "ready",
            State::Starting => "starting",
            State::Snapshotting => "snapshotting",
            State::Running => "running",
            State::Retrying => "retrying",
            State::Paused => "paused",
            State::Failed => "failed",
        }
    }

    /// Whether changes arrive and are kept.
    pub fn is_capturing(self) -> bool {
        matches!(self, State::Snapshotting | State::Running)
    }

    /// Every state there is.
    pub const ALL: [State; 10] = [
        State::Created,
        State::Prechecking,
        State::PrecheckFailed,
        State::Ready,
        State::Starting,
        State::Snapshotting,
        State::Running,
        State::Retrying,
        State::Paused,
        State::Failed,
    ];

    /// Whether a task may go from here to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        match self {
            Created => matches!(next, Prechecking | Starting),
            Prechecking => matches!(next, PrecheckFailed | Ready | Paused),
            PrecheckFailed => matches!(next, Prechecking),
            Ready => matches!(next, Starting | Prechecking | Paused),
            Starting => matches!(next, Snapshotting | Running | Retrying | Failed | Paused),
            Snapshotting => matches!(next, Running | Retrying | Failed | Paused),
            Running => matches!(next, Retrying | Failed | Paused),
            Retrying => matches!(next, Starting | Failed | Paused),
            Paused | Failed => matches!(next, Starting | Prechecking),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A task's state with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Why, in a sentence; empty where there is nothing to say.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// The current status of a task, shared between its supervisor and those who ask.
#[derive(Debug)]
pub struct Lifecycle(watch::Sender<Status>);

impl Default for Lifecycle {
    fn default() -> Self {
        let (status, _) =
            watch::channel(Status { state: State::Created, reason: String::new(), since: Timestamp::now() });
        Lifecycle(status)
    }
}

impl Lifecycle {
    /// The status now.
    pub fn status(&self) -> Status {
        self.0.borrow().clone()
    }

    /// The status from now on.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Moves to another state. `None` when that move is not one of the table's.
    pub fn become_state(&self, state: State, reason: &str) -> Option<Status> {
        let mut moved = None;
        self.0.send_if_modified(|status| {
            if !status.state.may_become(state) {
                return false;
            }
            *status = Status { state, reason: reason.to_owned(), since: Timestamp::now() };
            moved = Some(status.clone());
            true
        });
        debug_assert!(moved.is_some(), "task cannot go from {} to {state}", self.status().state);
        moved
    }
}
