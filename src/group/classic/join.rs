//! JoinGroup: how members come in, come back, and are kept out.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::{Group, State};
use crate::group::member::{Answer, Identity, Join, JoinRefused, Joined, Member, Token, Waiting};

impl Group {
    /// A member asks to be in the next generation. Answered under `token`, at once or when the join phase ends.
    pub fn join(&mut self, now: Duration, join: &Join, token: Token) {
        if let Err(refused) = self.try_join(now, join, token) {
            self.answers.push((token, Answer::Join(Err(refused))));
        }
    }

    fn try_join(&mut self, now: Duration, join: &Join, token: Token) -> Result<(), JoinRefused> {
        let refuse = |error| JoinRefused { error, member_id: join.member_id.clone() };
        if self.state == State::Dead {
            return Err(refuse(ResponseError::CoordinatorNotAvailable));
        }
        if !self.has_room_for(join) {
            if self.members.contains_key(&join.member_id) {
                self.remove_member(&join.member_id);
                self.after_removal(now);
            }
            return Err(JoinRefused { error: ResponseError::GroupMaxSizeReached, member_id: "".into() });
        }
        if !self.supports(join) {
            return Err(refuse(ResponseError::InconsistentGroupProtocol));
        }
        if join.member_id.is_empty() {
            return self.join_without_id(now, join, token);
        }
        if self.pending.contains_key(&join.member_id) {
            if join.instance_id.is_some() {
                // Static members are never given a pending id.
                return Err(refuse(ResponseError::UnknownMemberId));
            }
            self.add_member(now, &join.member_id, join, token);
            return Ok(());
        }
        let who = Identity { member_id: &join.member_id, instance_id: join.instance_id.as_deref() };
        let id = self.identify(who).map_err(refuse)?;
        let unchanged = self.members.get(&id).is_some_and(|member| member.protocols == join.protocols);
        let leads = self.leader.as_ref() == Some(&id);
        match self.state {
            // It has perhaps not got the answer to its first JoinGroup.
            State::CompletingRebalance if unchanged => self.answer_again(now, &id, leads, token),
            // A leader that joins again asks for a new assignment; a follower only wants to know where it is.
            State::Stable if unchanged && !leads => self.answer_again(now, &id, false, token),
            State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                self.rejoin(now, &id, join, token);
            }
            State::Empty | State::Dead => return Err(refuse(ResponseError::UnknownMemberId)),
        }
        Ok(())
    }

    fn join_without_id(&mut self, now: Duration, join: &Join, token: Token) -> Result<(), JoinRefused> {
        let id = &join.new_member_id;
        if let Some(instance) = &join.instance_id {
            match self.static_members.get(instance).cloned() {
                Some(old) => self.replace_static_member(now, &old, join, token),
                None => self.add_member(now, id, join, token),
            }
            return Ok(());
        }
        if join.requires_known_id {
            if self.pending.len() >= self.settings.max_size {
                return Err(JoinRefused { error: ResponseError::GroupMaxSizeReached, member_id: "".into() });
            }
            self.pending.insert(id.clone(), now.saturating_add(join.session_timeout));
            return Err(JoinRefused { error: ResponseError::MemberIdRequired, member_id: id.clone() });
        }
        self.add_member(now, id, join, token);
        Ok(())
    }

    /// While members are gathered those who are back count, so that a group that has outgrown its limit shrinks to it.
    fn has_room_for(&self, join: &Join) -> bool {
        let replaced =
            join.instance_id.as_ref().is_some_and(|instance| self.static_members.contains_key(instance));
        let known = self.members.get(&join.member_id);
        match self.state {
            State::Empty | State::Dead => true,
            State::PreparingRebalance => {
                let back = self.members.values().filter(|member| member.awaits_join()).count();
                known.is_some_and(Member::awaits_join) || back < self.settings.max_size
            }
            State::CompletingRebalance | State::Stable => {
                replaced || known.is_some() || self.members.len() < self.settings.max_size
            }
        }
    }

    /// Whether the joining member can do a protocol that all others can.
    fn supports(&self, join: &Join) -> bool {
        if self.members.is_empty() {
            return !join.protocol_type.is_empty() && !join.protocols.is_empty();
        }
        join.protocol_type == self.protocol_type
            && join.protocols.iter().any(|own| self.members.values().all(|member| member.supports(&own.name)))
    }

    fn add_member(&mut self, now: Duration, id: &Arc<str>, join: &Join, token: Token) {
        self.pending.remove(id);
        if let Some(initial) = &mut self.initial_delay {
            initial.newcomer = true;
        }
        if self.members.is_empty() {
            self.protocol_type = join.protocol_type.clone();
        }
        if let Some(instance) = &join.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        self.members.insert(id.clone(), Member::new(join));
        self.park(id, Waiting::Join(token));
        self.rebalance_or_complete(now);
    }

    fn rejoin(&mut self, now: Duration, id: &Arc<str>, join: &Join, token: Token) {
        self.park(id, Waiting::Join(token));
        if let Some(member) = self.members.get_mut(id) {
            member.update(join);
        }
        self.rebalance_or_complete(now);
    }

    fn rebalance_or_complete(&mut self, now: Duration) {
        match self.state {
            State::Empty | State::CompletingRebalance | State::Stable => self.prepare_rebalance(now),
            State::PreparingRebalance => self.maybe_complete_join(now),
            State::Dead => {}
        }
    }

    /// Tells a member once more what it should know of the current generation.
    fn answer_again(&mut self, now: Duration, id: &Arc<str>, with_members: bool, token: Token) {
        self.heard(id, now);
        let joined = self.joined(id, with_members);
        self.answers.push((token, Answer::Join(Ok(joined))));
    }

    /// A static member has restarted: it takes the place, and the assignment, of its former self.
    fn replace_static_member(&mut self, now: Duration, old: &Arc<str>, join: &Join, token: Token) {
        let id = join.new_member_id.clone();
        self.refuse_waiting(old, ResponseError::FencedInstanceId);
        let Some(mut member) = self.members.remove(old) else {
            return self.add_member(now, &id, join, token);
        };
        member.update(join);
        member.heard(now);
        self.members.insert(id.clone(), member);
        if let Some(instance) = &join.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        let old_leader = self.leader.clone();
        let leads = self.leader.as_ref() == Some(old);
        if leads {
            self.leader = Some(id.clone());
        }
        match self.state {
            // Nothing changes for the others, so they are left alone. A leader must not share out anew, as a stable
            // group would not hear of it: it is told so, or, where it could not understand that, that another leads.
            State::Stable if self.select_protocol() == self.protocol => {
                let skip = leads && join.can_skip_assignment;
                let mut joined = Joined { skip_assignment: skip, ..self.joined(&id, skip) };
                if !join.can_skip_assignment {
                    joined.leader = old_leader.unwrap_or_default();
                }
                self.answers.push((token, Answer::Join(Ok(joined))));
            }
            // Otherwise all rejoin: the leader may already know the old id.
            _ => {
                self.park(&id, Waiting::Join(token));
                self.rebalance_or_complete(now);
            }
        }
    }
}
