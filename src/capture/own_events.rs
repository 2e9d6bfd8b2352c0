//! When Millrace speaks of itself: heartbeats and watermarks.
//!
//! Neither has a place in the source. They are written between transactions into the group that is being built, so that a
//! watermark is never seen before what it covers (I1), and they move no position: after a crash nothing looks for them,
//! and none is ever held for a repetition.

use std::time::{Duration, Instant};

use super::output::Output;
use super::routing::Policy;
use crate::change::{Lsn, Watermark};

/// How often a heartbeat is written.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How often a watermark is written to a partition at most.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(1);

/// What is due.
#[derive(Debug)]
pub(super) struct OwnEvents {
    /// When the next heartbeat is due; `None` where no output has them.
    heartbeat: Option<Instant>,
    /// When the next watermark is; likewise.
    watermark: Option<Instant>,
    /// How far the outputs are, where no watermark says so yet.
    uncovered: Option<Watermark>,
}

impl OwnEvents {
    pub(super) fn of(outputs: &[Output]) -> Self {
        let mut policies = outputs.iter().map(Output::policies);
        let now = Instant::now();
        OwnEvents {
            heartbeat: policies.clone().any(|events| events.heartbeat != Policy::Off).then_some(now),
            watermark: policies.any(|events| events.watermark != Policy::Off).then_some(now),
            uncovered: None,
        }
    }

    pub(super) fn are_off(&self) -> bool {
        self.heartbeat.is_none() && self.watermark.is_none()
    }

    /// The outputs have come this far.
    pub(super) fn moved(&mut self, to: Watermark) {
        self.uncovered = Some(to);
    }

    /// The log ends behind this commit: whatever came after it has been dropped.
    pub(super) fn abort(&mut self, last_commit: Option<Lsn>) {
        self.uncovered = self.uncovered.filter(|to| Some(to.commit_lsn) == last_commit);
    }

    /// Whether a heartbeat is due; if so, it is taken as written.
    pub(super) fn take_heartbeat(&mut self, now: Instant) -> bool {
        let due = self.heartbeat.is_some_and(|at| at <= now);
        if due {
            self.heartbeat = Some(now + HEARTBEAT_INTERVAL);
        }
        due
    }

    /// The watermark that is due, taken as written.
    pub(super) fn take_watermark(&mut self, now: Instant) -> Option<Watermark> {
        if self.watermark.is_none_or(|at| at > now) {
            return None;
        }
        let watermark = self.uncovered.take()?;
        self.watermark = Some(now + WATERMARK_INTERVAL);
        Some(watermark)
    }

    /// The watermark that would be due sometime, taken as written.
    pub(super) fn take_last_watermark(&mut self) -> Option<Watermark> {
        self.watermark?;
        self.uncovered.take()
    }
}
