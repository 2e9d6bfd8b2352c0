//! The timer task: ticks the groups whose time has come, and keeps the offset store's retention.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Coordinator, FORGET_EMPTY_AFTER, unix_ms};
use crate::state::{OffsetError, OffsetWrite};

/// When something could not be written, the next try.
const RETRY: Duration = Duration::from_secs(1);

impl Coordinator {
    /// Ticks the groups whose time has come. When to look again, if that is known.
    fn tick(&self) -> Option<Duration> {
        let mut groups = self.lock();
        let now = self.now();
        while let Some((due, _)) = groups.schedule.first()
            && *due <= now
            && let Some((_, id)) = groups.schedule.pop_first()
        {
            let Some(entry) = groups.by_id.get_mut(&id) else { continue };
            entry.scheduled = None;
            if entry.group.is_unused() && entry.group.empty_since() + FORGET_EMPTY_AFTER <= now {
                groups.forget(&id);
                continue;
            }
            self.drive(&mut groups, &id, |group, catalog| group.tick(now, &self.settings, catalog));
        }
        groups.schedule.first().map(|(due, _)| *due)
    }
}

/// The timer task.
pub(super) async fn keep_time(coordinator: Weak<Coordinator>, wake: Arc<Notify>) {
    let mut books = Books::default();
    loop {
        let until = {
            let Some(coordinator) = coordinator.upgrade() else { return };
            let next = coordinator.tick();
            if coordinator.lock().closed {
                return;
            }
            let next = books.keep(&coordinator).min(next.unwrap_or(Duration::MAX));
            coordinator.opened.checked_add(next).unwrap_or_else(|| Instant::now() + RETRY)
        };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = wake.notified() => {}
            written = books.written() => {
                let Some(coordinator) = coordinator.upgrade() else { return };
                books.settle(&coordinator, written);
            }
        }
    }
}

/// Groups that lost their last member (when), or got one again.
type Emptied = HashMap<Arc<str>, Option<i64>>;

/// What the timer task does for the offset store: tells it which groups are empty, and has it forget old offsets.
#[derive(Default)]
struct Books {
    /// Which groups are being reported.
    writing: Option<(OffsetWrite, Emptied)>,
    next_report: Duration,
    next_expiry: Duration,
}

impl Books {
    /// Starts what is due, without waiting for it. When to look again.
    fn keep(&mut self, coordinator: &Coordinator) -> Duration {
        let now = coordinator.now();
        if now >= self.next_expiry {
            // Not waited for: a failure is logged by the writer, and the next check finds the same offsets.
            let retention = coordinator.options.offset_retention;
            drop(coordinator.offsets.try_permit().map(|permit| permit.expire(unix_ms(), retention)));
            self.next_expiry = now + coordinator.options.retention_check;
        }
        let mut groups = coordinator.lock();
        if self.writing.is_some() || groups.emptied.is_empty() {
            return self.next_expiry;
        }
        if now >= self.next_report
            && let Some(permit) = coordinator.offsets.try_permit()
        {
            let emptied = std::mem::take(&mut groups.emptied);
            let list = emptied.iter().map(|(group, since)| (group.clone(), *since)).collect();
            self.writing = Some((permit.set_empty_since(list), emptied));
            return self.next_expiry;
        }
        self.next_expiry.min(now + RETRY)
    }

    async fn written(&mut self) -> Result<(), OffsetError> {
        match &mut self.writing {
            Some((write, _)) => write.await,
            None => std::future::pending().await,
        }
    }

    /// Takes note of how a report went. One that failed is made again, unless there is news of the group.
    fn settle(&mut self, coordinator: &Coordinator, written: Result<(), OffsetError>) {
        if let Some((_, reported)) = self.writing.take()
            && written.is_err()
        {
            let mut groups = coordinator.lock();
            for (group, since) in reported {
                groups.emptied.entry(group).or_insert(since);
            }
            self.next_report = coordinator.now() + RETRY;
        }
    }
}
