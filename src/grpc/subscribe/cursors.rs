//! Where a subscriber is in each of its partitions, and which of them is read next.
//!
//! A **round** gives each partition one turn, all of them from one snapshot of each log (I1). The next round takes new
//! snapshots, so that a backlog in one partition does not hold up what is new in the others. Who cannot read holds none, as
//! a log merges nothing while an old one is held.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::group::subscriber::TopicPartition;
use crate::grpc::records::Source;
use crate::log::Offset;
use crate::log::topics::Topic;
use crate::log::view::{Place, View};

/// A place in a partition.
pub struct Cursor {
    topic: Arc<Topic>,
    /// In the view, where there is one.
    place: Place,
    /// The next record to send.
    pub next: Offset,
    /// Records below are acknowledged, or were before it began.
    pub acknowledged: Offset,
    /// It goes to another member; nothing more is sent of it.
    pub revoked: bool,
}

/// All of a subscriber's places.
#[derive(Default)]
pub struct Cursors {
    /// `None` while nothing is read.
    view: Option<View>,
    cursors: BTreeMap<TopicPartition, Cursor>,
    /// Who had the last turn.
    last: Option<TopicPartition>,
}

/// The records to read next.
pub struct Wanted {
    /// The partition.
    pub partition: TopicPartition,
    /// The same as of the round's snapshot.
    pub source: Source,
    /// From this record on.
    pub from: Offset,
}

impl Cursors {
    /// Adds a partition of `topic`, to be read from `next` on. One that the topic does not have is left out.
    pub fn add(&mut self, partition: TopicPartition, topic: Arc<Topic>, next: Offset) {
        let Some(place) = self.look().0.find(&topic, partition.partition as usize) else { return };
        let cursor = Cursor { topic, place, next, acknowledged: next, revoked: false };
        self.cursors.insert(partition, cursor);
    }

    /// Takes partitions away.
    pub fn remove(&mut self, partitions: &BTreeSet<TopicPartition>) {
        self.cursors.retain(|partition, _| !partitions.contains(partition));
        // Logs without a partition of ours need not wake us any more.
        self.rest();
    }

    /// Holds no snapshots until there is something to read again.
    pub fn rest(&mut self) {
        self.view = None;
    }

    fn look(&mut self) -> (&mut View, &BTreeMap<TopicPartition, Cursor>) {
        let cursors = &mut self.cursors;
        let view = self.view.get_or_insert_with(|| {
            let mut view = View::default();
            for (partition, cursor) in cursors.iter_mut() {
                if let Some(place) = view.find(&cursor.topic, partition.partition as usize) {
                    cursor.place = place;
                }
            }
            view
        });
        (view, cursors)
    }

    /// The place in a partition, if it is one of ours.
    pub fn get_mut(&mut self, partition: &TopicPartition) -> Option<&mut Cursor> {
        self.cursors.get_mut(partition)
    }

    /// Those that go to other members.
    pub fn revoked(&self) -> impl Iterator<Item = (&TopicPartition, &Cursor)> {
        self.cursors.iter().filter(|(_, cursor)| cursor.revoked)
    }

    /// Gives the next partition that has something its turn; `None` when none has.
    pub fn turn(&mut self) -> Option<Wanted> {
        let after = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.find(after).or_else(|| {
            self.look().0.refresh();
            self.find(Bound::Unbounded)
        })?;
        self.last = Some(next.clone());
        self.wanted(next)
    }

    fn find(&mut self, after: Bound<TopicPartition>) -> Option<TopicPartition> {
        let (view, cursors) = self.look();
        let mut others = cursors.range((after, Bound::Unbounded));
        // Of one that is gone the next read says so.
        let has_more = |cursor: &Cursor| {
            let is_read = cursor.next < view.range(cursor.place).end || view.is_gone(cursor.place);
            is_read && !cursor.revoked
        };
        others.find(|(_, cursor)| has_more(cursor)).map(|(partition, _)| partition.clone())
    }

    /// The same partition's turn goes on.
    pub fn wanted(&mut self, partition: TopicPartition) -> Option<Wanted> {
        let (view, cursors) = self.look();
        let cursor = cursors.get(&partition).filter(|cursor| !cursor.revoked)?;
        let (log, snapshot) = view.at(cursor.place);
        let source = Source {
            topic: cursor.topic.clone(),
            index: partition.partition as u32,
            log: log.clone(),
            snapshot: snapshot.clone(),
            partition: cursor.place.partition,
        };
        Some(Wanted { partition, source, from: cursor.next })
    }

    /// Waits until a log of ours has something new. Cancel-safe.
    pub async fn changed(&mut self) {
        self.look().0.changed().await;
    }
}
