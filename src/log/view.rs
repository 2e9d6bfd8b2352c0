//! What a reader sees of the logs: one snapshot of each log it touches, all of it answered from those (I1).

use std::sync::Arc;

use futures_util::future::select_all;
use tokio::sync::watch;

use super::topics::Topic;
use super::{LogReader, PartitionId, PartitionRange, Snapshot};

/// The logs that a reader touches, each with one snapshot.
#[derive(Default)]
pub struct View {
    logs: Vec<Seen>,
}

struct Seen {
    log: Arc<dyn LogReader>,
    snapshot: Arc<Snapshot>,
    /// `None` until the reader waits.
    watch: Option<watch::Receiver<Arc<Snapshot>>>,
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
            self.logs.push(Seen { log: topic.log.clone(), snapshot, watch: None });
            self.logs.len() - 1
        });
        Some(Place { log, partition })
    }

    /// The log of a place, and the snapshot that the reader sees of it.
    pub fn at(&self, place: Place) -> (&Arc<dyn LogReader>, &Arc<Snapshot>) {
        let seen = &self.logs[place.log];
        (&seen.log, &seen.snapshot)
    }

    /// What of a partition is readable.
    pub fn range(&self, place: Place) -> PartitionRange {
        self.logs[place.log].snapshot.range(place.partition).unwrap_or_default()
    }

    /// Waits until a log has committed something after the snapshots, and takes a new snapshot of each. Cancel-safe.
    pub async fn changed(&mut self) {
        let mut subscribed = false;
        for seen in &mut self.logs {
            if seen.watch.is_none() {
                seen.watch = Some(seen.log.watch());
                subscribed = true;
            }
        }
        // What was committed between the first snapshot and the subscription woke nobody.
        if subscribed && self.refresh() {
            return;
        }
        loop {
            self.wait().await;
            if self.refresh() {
                return;
            }
        }
    }

    async fn wait(&mut self) {
        let changes = self.logs.iter_mut().filter_map(|seen| seen.watch.as_mut()).map(|watch| {
            Box::pin(async {
                if watch.changed().await.is_err() {
                    // The log has been closed; nothing more comes of it.
                    std::future::pending::<()>().await;
                }
            })
        });
        let changes: Vec<_> = changes.collect();
        match changes.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(changes).await),
        }
    }

    /// How many requests a commit of one of the logs wakes, at most.
    pub fn crowd(&self) -> usize {
        self.logs.iter().map(|seen| seen.log.watchers()).max().unwrap_or(0)
    }

    /// Takes a new snapshot of each log, and says whether any is another.
    pub fn refresh(&mut self) -> bool {
        let mut moved = false;
        for seen in &mut self.logs {
            if let Some(watch) = &mut seen.watch {
                watch.mark_unchanged();
            }
            let snapshot = seen.log.snapshot();
            moved |= !Arc::ptr_eq(&snapshot, &seen.snapshot);
            seen.snapshot = snapshot;
        }
        moved
    }
}
