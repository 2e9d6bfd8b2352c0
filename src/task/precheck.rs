//! A task that has never run passes the checks of its source first, however long that takes: what fails there is mended by
//! people, and other tasks go on meanwhile.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::lifecycle::State;
use super::supervisor::Task;
use crate::postgres::connect;
use crate::postgres::precheck::{self, PrecheckOptions};
use crate::postgres::source::SourceConfig;

/// How long to wait between two attempts.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the checks need to know beside the task.
#[derive(Debug, Clone)]
pub struct Checks {
    /// The source.
    pub source: SourceConfig,
    /// Take over a slot that exists without our state.
    pub adopt_slot: bool,
}

/// Waits until the checks pass; `false` when it is stopped before.
pub(super) async fn pass(task: &Task, checks: &Checks, stop: &CancellationToken) -> bool {
    loop {
        task.become_state(State::Prechecking, "").await;
        let Some(failed) = stop.run_until_cancelled(check(task, checks)).await else {
            // Not paused: it would count as checked when the broker starts again.
            return false;
        };
        let Some(reason) = failed else {
            task.become_state(State::Ready, "").await;
            return true;
        };
        warn!(task = task.definition.name, reason, "the source cannot be captured yet; looking again");
        task.become_state(State::PrecheckFailed, &reason).await;
        if stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
            return false;
        }
    }
}

/// What fails, with what mends it.
async fn check(task: &Task, checks: &Checks) -> Option<String> {
    let control = match connect::connect(&checks.source).await {
        Ok(control) => control,
        Err(error) => return Some(error.to_string()),
    };
    let options = PrecheckOptions {
        task: task.definition.name.clone(),
        objects: task.objects.borrow().clone(),
        publish: task.definition.publish.clone(),
        slot_may_exist: checks.adopt_slot,
    };
    match precheck::run(&control, &options).await {
        Ok(report) => {
            let failures = report.failures().map(|check| match &check.remedy {
                Some(remedy) => format!("{}: {}; {remedy}", check.name, check.detail),
                None => format!("{}: {}", check.name, check.detail),
            });
            Some(failures.collect::<Vec<_>>().join("; ")).filter(|reason| !reason.is_empty())
        }
        Err(error) => Some(error.to_string()),
    }
}
