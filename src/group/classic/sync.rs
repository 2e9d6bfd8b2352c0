//! What members of a generation do: SyncGroup, Heartbeat, LeaveGroup, and the check of an OffsetCommit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Group, State};
use crate::group::member::{Answer, Identity, Sync, Token, Waiting};

impl Group {
    /// A member asks for its part; the leader brings everybody's. Answered under `token`.
    pub fn sync(&mut self, now: Duration, sync: Sync, token: Token) {
        if let Err(error) = self.try_sync(now, sync, token) {
            self.answers.push((token, Answer::Sync(Err(error))));
        }
    }

    fn try_sync(&mut self, now: Duration, sync: Sync, token: Token) -> Result<(), ResponseError> {
        if self.state == State::Dead {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let who = Identity { member_id: &sync.member_id, instance_id: sync.instance_id.as_deref() };
        let id = self.identify(who)?;
        if sync.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let other_type = sync.protocol_type.is_some_and(|named| named != self.protocol_type);
        let other_protocol = sync.protocol.is_some_and(|named| Some(named) != self.protocol);
        if other_type || other_protocol {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.state {
            State::Empty | State::Dead => return Err(ResponseError::UnknownMemberId),
            State::PreparingRebalance => return Err(ResponseError::RebalanceInProgress),
            State::CompletingRebalance => {
                self.park(&id, Waiting::Sync(token));
                self.has_synced(&id);
                if self.leader.as_ref() == Some(&id) {
                    self.assign(now, sync.assignments);
                }
            }
            State::Stable => {
                self.has_synced(&id);
                self.heard(&id, now);
                let assignment =
                    self.members.get(&id).map(|member| member.assignment.clone()).unwrap_or_default();
                let synced = self.synced(assignment);
                self.answers.push((token, Answer::Sync(Ok(synced))));
            }
        }
        Ok(())
    }

    /// The leader has spoken: everybody gets its part, nothing where the leader forgot it.
    fn assign(&mut self, now: Duration, assignments: Vec<(Arc<str>, Bytes)>) {
        let mut assignments: HashMap<Arc<str>, Bytes> = assignments.into_iter().collect();
        self.transition(State::Stable);
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let assignment = assignments.remove(&id).unwrap_or_default();
            let synced = self.synced(assignment.clone());
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
                if let Waiting::Sync(token) = member.waiting {
                    member.waiting = Waiting::Nothing;
                    member.heard(now);
                    self.answers.push((token, Answer::Sync(Ok(synced))));
                }
            }
        }
    }

    fn has_synced(&mut self, id: &Arc<str>) {
        if let Some(member) = self.members.get_mut(id) {
            member.synced = true;
        }
        if self.members.values().all(|member| member.synced) {
            self.deadline = None;
        }
    }

    /// Members that joined and then did not ask for their part in time are out.
    pub(super) fn sync_time_is_up(&mut self, now: Duration) {
        self.deadline = None;
        let silent: Vec<Arc<str>> =
            self.members.iter().filter(|(_, member)| !member.synced).map(|(id, _)| id.clone()).collect();
        for id in &silent {
            self.remove_member(id);
        }
        if !silent.is_empty() {
            self.prepare_rebalance(now);
        }
    }

    /// A member says that it is alive.
    ///
    /// # Errors
    /// What Kafka answers: above all `REBALANCE_IN_PROGRESS`, upon which the member joins again.
    pub fn heartbeat(
        &mut self,
        now: Duration,
        who: Identity<'_>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        if self.state == State::Dead {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let id = self.identify(who)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        self.heard(&id, now);
        match self.state {
            State::Empty | State::Dead => Err(ResponseError::UnknownMemberId),
            State::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            State::CompletingRebalance | State::Stable => Ok(()),
        }
    }

    /// Members go; one answer each, in order.
    ///
    /// # Errors
    /// `COORDINATOR_NOT_AVAILABLE` for all of them when the group is gone.
    pub fn leave(
        &mut self,
        now: Duration,
        members: &[Identity<'_>],
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        if self.state == State::Dead {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let before = self.members.len();
        let answers: Vec<_> = members.iter().map(|who| self.leave_one(*who)).collect();
        if self.members.len() < before {
            self.after_removal(now);
        } else {
            // A pending id that is given back is no longer waited for.
            self.maybe_complete_join(now);
        }
        Ok(answers)
    }

    fn leave_one(&mut self, who: Identity<'_>) -> Result<(), ResponseError> {
        if who.instance_id.is_none() && self.pending.remove(who.member_id).is_some() {
            return Ok(());
        }
        let id = who.find_leaving(&self.static_members, &self.members)?;
        self.remove_member(&id);
        Ok(())
    }

    /// Whether a commit of offsets is in order. One by a member also counts as a heartbeat.
    ///
    /// # Errors
    /// What Kafka answers to the whole commit.
    pub fn validate_commit(
        &mut self,
        now: Duration,
        who: Identity<'_>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        if self.state == State::Dead {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        if generation < 0 && self.state == State::Empty {
            // A consumer that assigns its partitions itself, or an administrator.
            return Ok(());
        }
        let names_a_member = generation >= 0 || !who.member_id.is_empty() || who.instance_id.is_some();
        if !names_a_member {
            return Err(ResponseError::UnknownMemberId);
        }
        let id = self.identify(who)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        if self.state == State::CompletingRebalance {
            // It knows the new generation but not yet its part of it.
            return Err(ResponseError::RebalanceInProgress);
        }
        self.heard(&id, now);
        Ok(())
    }
}
