//! What a classic group takes along when it becomes a consumer group, and when it comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Group, Settings, State};
use crate::group::consumer_protocol::PROTOCOL_TYPE;
use crate::group::member::{Answer, Join, Member, Token, Waiting};

/// A member of a group that changes from one protocol to the other.
#[derive(Debug, Clone)]
pub(in crate::group) struct Migrant {
    /// What it has joined with, under the id that it has.
    pub join: Join,
    pub session_deadline: Duration,
    /// Its part, as a leader writes it.
    pub assignment: Bytes,
}

impl Group {
    /// The members, to go on in a consumer group. Those that were never told their id cannot.
    pub(in crate::group) fn migrants(&self, now: Duration) -> Vec<Migrant> {
        let known = self.members.iter().filter(|(_, member)| !member.anonymous);
        known
            .map(|(id, member)| {
                let waits = member.waiting != Waiting::Nothing;
                let from_now = now.saturating_add(member.session_timeout);
                Migrant {
                    join: Join {
                        kind: member.kind,
                        member_id: id.clone(),
                        new_member_id: "".into(),
                        instance_id: member.instance_id.clone(),
                        client_id: member.client_id.clone(),
                        client_host: member.client_host.clone(),
                        session_timeout: member.session_timeout,
                        rebalance_timeout: member.rebalance_timeout,
                        protocol_type: self.protocol_type.clone(),
                        protocols: member.protocols.clone(),
                        requires_known_id: false,
                        can_skip_assignment: false,
                    },
                    session_deadline: if waits { from_now } else { member.session_deadline },
                    assignment: member.assignment.clone(),
                }
            })
            .collect()
    }

    /// Tells whoever waits to join again.
    pub(in crate::group) fn dismiss(&mut self) {
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            self.refuse_waiting(&id, ResponseError::RebalanceInProgress);
        }
    }

    /// A group of members that come out of a consumer group in this epoch, and have to join again.
    pub(in crate::group) fn of(
        now: Duration,
        settings: Arc<Settings>,
        epoch: i32,
        migrants: Vec<Migrant>,
        answers: Vec<(Token, Answer)>,
    ) -> Group {
        let mut group = Group::new(settings, now);
        group.state = State::PreparingRebalance;
        group.generation = epoch;
        group.protocol_type = PROTOCOL_TYPE.into();
        group.answers = answers;
        for Migrant { join, session_deadline, assignment } in migrants {
            let id = join.member_id.clone();
            if let Some(instance) = &join.instance_id {
                group.static_members.insert(instance.clone(), id.clone());
            }
            group.leader.get_or_insert_with(|| id.clone());
            let member = Member { session_deadline, assignment, ..Member::new(&join) };
            group.members.insert(id, member);
        }
        group.deadline = Some(now.saturating_add(group.rebalance_timeout()));
        group
    }
}
