//! What a reader sees of the logs: one snapshot of each log it touches, all of it answered from those (I1).

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::topics::Topic;
use super::{LogReader, PartitionId, PartitionRange, Snapshot};

/// So many may wait for a log and look at each commit.
const CALM: usize = 16;
/// For each beyond that, so much more lies at least between one look and the next.
const PACE: Duration = Duration::from_micros(500);
/// But not more than this.
const MAX_PACE: Duration = Duration::from_millis(100);

/// The logs that a reader touches, each with one snapshot.
pub struct View {
    logs: Vec<Seen>,
    /// When the last snapshots were taken.
    looked: Instant,
}

struct Seen {
    log: Arc<dyn LogReader>,
    snapshot: Arc<Snapshot>,
}

impl Default for View {
    fn default() -> Self {
        View { logs: Vec::new(), looked: Instant::now() }
    }
}

/// A partition of interest: where it lies in the reader's [`View`].
#[derive(Debug, Clone, Copy)]
pub struct Place {
    log: usize,
    /// Its number in the log.
    pub partition: PartitionId,
}

impl View {
    /// Takes partition `index` of `topic` into the view; `None` where the topic has no such partition.
    pub fn find(&mut self, topic: &Topic, index: usize) -> Option<Place> {
        let partition = *topic.partitions.get(index)?;
        let log = self.logs.iter().position(|seen| Arc::ptr_eq(&seen.log, &topic.log)).unwrap_or_else(|| {
            let snapshot = topic.log.snapshot();
            self.logs.push(Seen { log: topic.log.clone(), snapshot });
            self.logs.len() - 1
        });
        Some(Place { log, partition })
    }

    /// The log of a place, and the snapshot that the reader sees of it.
    pub fn at(&self, place: Place) -> (&Arc<dyn LogReader>, &Arc<Snapshot>) {
        let seen = &self.logs[place.log];
        (&seen.log, &seen.snapshot)
    }

    /// Whether the topic of a place has been deleted.
    pub fn is_gone(&self, place: Place) -> bool {
        self.logs[place.log].snapshot.range(place.partition).is_none()
    }

    /// What of a partition is readable: nothing where it is gone.
    pub fn range(&self, place: Place) -> PartitionRange {
        self.logs[place.log].snapshot.range(place.partition).unwrap_or_default()
    }

    /// Waits until a log has committed something after the snapshots, or a topic of it is deleted, and takes a new
    /// snapshot of each. Where many wait for the same log, each looks only so often, and sleeps through the commits
    /// between: to be woken, and to answer a client, costs much more than the record that it is about. Who has waited
    /// longer than that already looks at once. Cancel-safe.
    pub async fn changed(&mut self) {
        // Only while it waits is a reader one of those who wait.
        let mut watches: Vec<_> = self.logs.iter().map(|seen| seen.log.watch()).collect();
        let crowd = self.logs.iter().map(|seen| seen.log.watchers()).max().unwrap_or(0);
        let due = self.looked + pace(crowd);
        if Instant::now() < due {
            sleep_until(due).await;
        }
        // What was committed between the snapshots and the subscription wakes nobody.
        while !self.refresh() {
            any_changed(&mut watches).await;
        }
    }

    /// Takes a new snapshot of each log, and says whether any is another.
    pub fn refresh(&mut self) -> bool {
        self.looked = Instant::now();
        let mut moved = false;
        for seen in &mut self.logs {
            let snapshot = seen.log.snapshot();
            moved |= !Arc::ptr_eq(&snapshot, &seen.snapshot);
            seen.snapshot = snapshot;
        }
        moved
    }
}

/// How much time lies at least between two looks of one reader, where so many wait.
fn pace(crowd: usize) -> Duration {
    (PACE * crowd.saturating_sub(CALM).min(1_000) as u32).min(MAX_PACE)
}

async fn any_changed(watches: &mut [watch::Receiver<Arc<Snapshot>>]) {
    let changes = watches.iter_mut().map(|watch| {
        Box::pin(async {
            if watch.changed().await.is_err() {
                // The log has been closed; nothing more comes of it.
                pending::<()>().await;
            }
        })
    });
    let changes: Vec<_> = changes.collect();
    match changes.is_empty() {
        true => pending().await,
        false => drop(select_all(changes).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_look_at_each_commit_and_each_of_many_only_so_often() {
        assert_eq!((pace(0), pace(16)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(pace(100), Duration::from_millis(42));
        assert_eq!(pace(usize::MAX), Duration::from_millis(100));
        // What ten consumers have together at a hundred commits a second, a hundred have at most three times.
        assert!(100.0 / pace(100).as_secs_f64() < 3.0 * 1_000.0);
    }
}
