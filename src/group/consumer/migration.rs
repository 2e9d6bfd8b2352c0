//! How a classic group becomes a consumer group and back, while its members go on.
//!
//! Up, when the first member of the consumer protocol comes: the members keep what they have, and learn by their next
//! heartbeat that they have to join again. Down, when only members of the classic protocol are left: they join again, and
//! share out as before. What they have meanwhile is theirs in both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::member::{Classic, Held, Member, Progress, name_size, parts};
use super::{Group, Settings};
use crate::group::catalog::Catalog;
use crate::group::classic::{self, Migrant};
use crate::group::consumer_protocol::{self, PROTOCOL_TYPE, Subscription};
use crate::group::member::Join;

impl Group {
    /// Memory that the members of a classic group would take besides if it became a consumer group, about: what they say
    /// in few bytes takes many.
    pub fn upgrade_size(from: &classic::Group) -> usize {
        let topics = |metadata: &Bytes| -> usize {
            let names = consumer_protocol::topics(metadata).unwrap_or_default();
            names.into_iter().map(name_size).sum()
        };
        from.subscriptions().map(topics).sum()
    }

    /// Makes a consumer group of a classic one. `None` where its members do not say in Kafka's form what they want; the
    /// group is as before then.
    pub fn upgrade(
        now: Duration,
        from: &mut classic::Group,
        settings: Arc<Settings>,
        catalog: &Catalog,
    ) -> Option<Group> {
        if &**from.protocol_type() != PROTOCOL_TYPE {
            return None;
        }
        let migrants = from.migrants(now);
        let mut group = Group::new(settings, now);
        group.epoch = from.generation();
        for Migrant { join, session_deadline, assignment } in &migrants {
            let subscription = Subscription::decode(&join.protocols.first()?.metadata)?;
            let member = Member {
                instance_id: join.instance_id.clone(),
                client_id: join.client_id.clone(),
                client_host: join.client_host.clone(),
                rebalance_timeout: join.rebalance_timeout,
                names: subscription.topics.iter().map(|name| Arc::from(*name)).collect(),
                epoch: group.epoch,
                previous_epoch: group.epoch,
                session_deadline: *session_deadline,
                classic: Some(Classic {
                    kind: join.kind,
                    session_timeout: join.session_timeout,
                    protocols: join.protocols.clone(),
                }),
                ..Member::new()
            };
            if let Some(instance) = &join.instance_id {
                group.static_members.insert(instance.clone(), join.member_id.clone());
            }
            group.members.insert(join.member_id.clone(), member);
            let assigned = group.unowned(&consumer_protocol::decode_assignment(assignment)?, catalog);
            if let Some(member) = group.members.get_mut(&join.member_id) {
                member.target = parts(&assigned);
            }
            group.hold(&join.member_id, assigned, Held::new());
        }
        // What a member had when it joined and was not given again goes to nobody before it has joined once more.
        for Migrant { join, .. } in &migrants {
            let id = &join.member_id;
            let subscription = Subscription::decode(&join.protocols.first()?.metadata)?;
            let revoking = group.unowned(&subscription.owned, catalog);
            if let Some(member) = group.members.get_mut(id).filter(|_| !revoking.is_empty()) {
                member.progress = Progress::Unrevoked;
                let assigned = member.assigned.clone();
                group.hold(id, assigned, revoking);
            }
        }
        from.dismiss();
        group.answers = from.take_answers();
        Some(group)
    }

    /// Of these partitions those that there are and that nobody has.
    fn unowned(&self, named: &consumer_protocol::Parts<'_>, catalog: &Catalog) -> Held {
        let mut unowned = Held::new();
        for (name, partitions) in named {
            let Some(topic) = catalog.id(name) else { continue };
            let count = catalog.partitions(topic).unwrap_or(0);
            for partition in partitions.iter().copied().filter(|partition| (0..count).contains(partition)) {
                if !self.owners.contains_key(&(topic, partition)) {
                    unowned.entry(topic).or_default().insert(partition, self.epoch);
                }
            }
        }
        unowned
    }

    /// Whether only members of the classic protocol are left.
    pub fn is_left_to_classic_members(&self) -> bool {
        !self.members.is_empty() && self.members.values().all(|member| member.classic.is_some())
    }

    /// Makes a classic group of one that is left to members of the classic protocol. They have to join again.
    pub fn downgrade(
        &mut self,
        now: Duration,
        settings: Arc<classic::Settings>,
        catalog: &Catalog,
    ) -> classic::Group {
        let mut migrants = Vec::new();
        for (id, member) in std::mem::take(&mut self.members) {
            let Some(Classic { kind, session_timeout, protocols }) = member.classic else { continue };
            let names = parts_by_name(&member.assigned, catalog);
            let names = names.iter().map(|(name, partitions)| (&**name, partitions.clone())).collect();
            let join = Join {
                kind,
                member_id: id,
                new_member_id: "".into(),
                instance_id: member.instance_id,
                client_id: member.client_id,
                client_host: member.client_host,
                session_timeout,
                rebalance_timeout: member.rebalance_timeout,
                protocol_type: PROTOCOL_TYPE.into(),
                protocols,
                requires_known_id: false,
                can_skip_assignment: false,
            };
            let assignment = consumer_protocol::encode_assignment(&names).unwrap_or_default();
            migrants.push(Migrant { join, session_deadline: member.session_deadline, assignment });
        }
        classic::Group::of(now, settings, self.epoch, migrants, self.take_answers())
    }
}

/// Partitions by the names of their topics, of those that there are.
pub(super) fn parts_by_name(held: &Held, catalog: &Catalog) -> BTreeMap<Arc<str>, Vec<i32>> {
    let each = held.iter().filter(|(_, partitions)| !partitions.is_empty());
    each.filter_map(|(topic, partitions)| {
        Some((catalog.name(*topic)?.clone(), partitions.keys().copied().collect()))
    })
    .collect()
}
