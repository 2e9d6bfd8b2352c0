//! What a request sees of the logs: one snapshot of each log it touches, all of it answered from those (I1).

use std::sync::Arc;

use futures_util::future::select_all;
use kafka_protocol::ResponseError;
use tokio::sync::watch;

use crate::log::topics::Topic;
use crate::log::{LogReader, PartitionId, Snapshot};

/// The logs that a request touches, each with one snapshot.
#[derive(Default)]
pub struct View {
    logs: Vec<Seen>,
}

struct Seen {
    log: Arc<dyn LogReader>,
    snapshot: Arc<Snapshot>,
    /// `None` until the request waits, and when the log has been closed.
    watch: Option<watch::Receiver<Arc<Snapshot>>>,
}

/// A partition that a request names: where it lies in the request's [`View`].
#[derive(Debug, Clone, Copy)]
pub struct Place {
    log: usize,
    /// Its number in the log.
    pub partition: PartitionId,
}

impl View {
    /// Finds partition `index` of `topic` and checks the leader epoch that the client has of it (-1: none).
    pub fn find(&mut self, topic: &Topic, index: i32, epoch: i32) -> Result<Place, ResponseError> {
        let partition = usize::try_from(index).ok().and_then(|index| topic.partitions.get(index));
        let partition = *partition.ok_or(ResponseError::UnknownTopicOrPartition)?;
        match topic.log.leader_epoch() {
            current if epoch >= 0 && epoch < current => return Err(ResponseError::FencedLeaderEpoch),
            current if epoch > current => return Err(ResponseError::UnknownLeaderEpoch),
            _ => {}
        }
        let log = self.logs.iter().position(|seen| Arc::ptr_eq(&seen.log, &topic.log)).unwrap_or_else(|| {
            let snapshot = topic.log.snapshot();
            self.logs.push(Seen { log: topic.log.clone(), snapshot, watch: None });
            self.logs.len() - 1
        });
        Ok(Place { log, partition })
    }

    /// The log of a place, and the snapshot that the request sees of it.
    pub fn at(&self, place: Place) -> (&dyn LogReader, &Snapshot) {
        let seen = &self.logs[place.log];
        (&*seen.log, &seen.snapshot)
    }

    /// Waits until a log has committed something after the snapshots, and takes a new snapshot of each.
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

    fn refresh(&mut self) -> bool {
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
