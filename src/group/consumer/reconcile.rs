//! How a member is led to its target: it gives up what it is not to have, and only then gets what nobody else has.

use std::sync::Arc;
use std::time::Duration;

use super::member::still_owns;
use super::{Group, Held, Parts, Progress};
use crate::log::topics::TopicId;

impl Group {
    /// Brings a member nearer to its target. `owned` is what it says that it has, if it says so.
    /// Whether it is to have others now.
    pub(super) fn reconcile(&mut self, now: Duration, id: &Arc<str>, owned: Option<&Parts>) -> bool {
        let Some(member) = self.members.get(id) else { return false };
        let waits = member.progress == Progress::Unrevoked && still_owns(owned, &member.revoking);
        if member.is_reconciled(self.epoch) || waits {
            return false;
        }
        let (mut assigned, mut lost) = (Held::new(), Held::new());
        for (topic, partitions) in &member.assigned {
            for (partition, since) in partitions {
                let stays = member.target.get(topic).is_some_and(|target| target.contains(partition));
                let to = if stays { &mut assigned } else { &mut lost };
                to.entry(*topic).or_default().insert(*partition, *since);
            }
        }
        if still_owns(owned, &lost) {
            let deadline = now.saturating_add(member.rebalance_timeout);
            let epoch = member.epoch;
            let changes = self.hold(id, assigned, lost);
            self.proceed(id, Progress::Unrevoked, epoch, Some(deadline));
            return changes;
        }
        let mut waits = false;
        for (topic, partitions) in &member.target {
            for partition in partitions {
                if member.assigned.get(topic).is_some_and(|assigned| assigned.contains_key(partition)) {
                    continue;
                }
                match self.owners.get(&(*topic, *partition)) {
                    Some(owner) if owner != id => waits = true,
                    _ => drop(assigned.entry(*topic).or_default().insert(*partition, self.epoch)),
                }
            }
        }
        let changes = self.hold(id, assigned, Held::new());
        let progress = if waits { Progress::Unreleased } else { Progress::Stable };
        self.proceed(id, progress, self.epoch, None);
        changes
    }

    fn proceed(&mut self, id: &Arc<str>, progress: Progress, epoch: i32, deadline: Option<Duration>) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.progress = progress;
        member.enter(epoch);
        // A member of the classic protocol has a time to join again instead.
        if member.classic.is_none() {
            member.deadline = deadline;
        }
    }

    /// Sets what a member has, and keeps the books of who owns what. Whether what it is to have has changed.
    pub(super) fn hold(&mut self, id: &Arc<str>, assigned: Held, revoking: Held) -> bool {
        let Some(member) = self.members.get_mut(id) else { return false };
        let changes = member.assigned != assigned;
        let before: Vec<(TopicId, i32)> = member.held().collect();
        member.assigned = assigned;
        member.revoking = revoking;
        member.measure();
        for partition in before {
            if member.held_since(partition.0, partition.1).is_none() {
                self.owners.remove(&partition);
                self.releases += 1;
            }
        }
        for partition in member.held() {
            self.owners.insert(partition, id.clone());
        }
        changes
    }

    /// Whether something of a member's target is still another's.
    pub(super) fn waits_for_others(&self, id: &Arc<str>) -> bool {
        let Some(member) = self.members.get(id) else { return false };
        let others = |(topic, partitions): (&TopicId, &std::collections::BTreeSet<i32>)| {
            partitions
                .iter()
                .any(|partition| self.owners.get(&(*topic, *partition)).is_some_and(|owner| owner != id))
        };
        member.target.iter().any(others)
    }
}
