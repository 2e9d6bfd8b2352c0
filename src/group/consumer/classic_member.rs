//! Members of the classic protocol in a consumer group: JoinGroup, SyncGroup, Heartbeat and LeaveGroup.
//!
//! Nobody leads, and nothing waits for others: a member that joins is led towards its target as by a heartbeat, where what
//! its subscription says that it owns is what it has not given up. One that keeps its partitions while it joins again is
//! first told to give up what it is not to have, and joins once more when it has; one that gives up all of them first gets
//! its part at once. The generation that it is told is its epoch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::Group;
use super::member::{Classic, Heartbeat, Member, Parts, Progress};
use super::migration::parts_by_name;
use crate::group::catalog::Catalog;
use crate::group::consumer_protocol::{self, PROTOCOL_TYPE, Subscription};
use crate::group::member::{Answer, Identity, Join, JoinRefused, Joined, Sync, Synced, Token};

impl Group {
    /// A member asks to be in. Answered under `token`, at once.
    pub fn join(&mut self, now: Duration, catalog: &Catalog, join: &Join, token: Token) {
        let answer = self.try_join(now, catalog, join);
        self.answers.push((token, Answer::Join(answer)));
    }

    fn try_join(&mut self, now: Duration, catalog: &Catalog, join: &Join) -> Result<Joined, JoinRefused> {
        let refuse = |error| JoinRefused { error, member_id: join.member_id.clone() };
        let fresh = join.member_id.is_empty();
        if self.members.len() >= self.settings.max_size
            && (fresh || !self.members.contains_key(&join.member_id))
        {
            return Err(JoinRefused { error: ResponseError::GroupMaxSizeReached, member_id: "".into() });
        }
        // All protocols carry the same subscription.
        let first = join.protocols.first().filter(|_| self.supports(join));
        let (Some(first), Some(subscription)) =
            (first, first.and_then(|first| Subscription::decode(&first.metadata)))
        else {
            return Err(refuse(ResponseError::InconsistentGroupProtocol));
        };
        let id = if fresh { &join.new_member_id } else { &join.member_id };
        if fresh && join.instance_id.is_none() && join.requires_known_id {
            return Err(JoinRefused { error: ResponseError::MemberIdRequired, member_id: id.clone() });
        }
        // The ids that members are told to come back with are not kept. One that has partitions has been in, was removed,
        // and does not know it: they may be others' by now.
        if !fresh && !self.members.contains_key(id) && !subscription.owned.is_empty() {
            return Err(refuse(ResponseError::UnknownMemberId));
        }
        let comes = self.admit_classic(join, id, fresh).map_err(refuse)?;
        let beat = Heartbeat {
            instance_id: join.instance_id.clone(),
            rebalance_timeout: Some(join.rebalance_timeout),
            names: Some(subscription.topics.iter().map(|name| Arc::from(*name)).collect()),
            pattern: Some("".into()),
            client_id: join.client_id.clone(),
            client_host: join.client_host.clone(),
            ..Heartbeat::default()
        };
        let mut changes = false;
        if let Some(member) = self.members.get_mut(id) {
            changes = member.update(&beat);
            member.classic = Some(Classic {
                kind: join.kind,
                session_timeout: join.session_timeout,
                protocols: join.protocols.clone(),
            });
            member.measure();
            member.session_deadline = now.saturating_add(join.session_timeout);
            // Until then it has to ask for its part.
            member.deadline = Some(now.saturating_add(join.rebalance_timeout));
        }
        if comes || changes {
            self.share_out(catalog);
        }
        let mut owned = Parts::new();
        for (name, partitions) in subscription.owned {
            if let Some(topic) = catalog.id(name) {
                owned.entry(topic).or_default().extend(partitions);
            }
        }
        self.reconcile(now, id, Some(&owned));
        Ok(Joined {
            member_id: id.clone(),
            generation: self.members.get(id).map_or(self.epoch, |member| member.epoch),
            protocol_type: PROTOCOL_TYPE.into(),
            protocol: first.name.clone(),
            leader: "".into(),
            members: Vec::new(),
            skip_assignment: false,
        })
    }

    /// Whether the joining member can do a protocol that all others of the classic protocol can, as the group may become
    /// a classic one again.
    fn supports(&self, join: &Join) -> bool {
        let all_can = |name: &str| {
            let mut others = self.members.values().filter_map(|member| member.classic.as_ref());
            others.all(|other| other.protocols.iter().any(|theirs| *theirs.name == *name))
        };
        &*join.protocol_type == PROTOCOL_TYPE && join.protocols.iter().any(|own| all_can(&own.name))
    }

    /// Finds the member that joins, or makes it. Whether it is new.
    fn admit_classic(&mut self, join: &Join, id: &Arc<str>, fresh: bool) -> Result<bool, ResponseError> {
        if let Some(instance) = &join.instance_id {
            match self.static_members.get(instance).cloned() {
                Some(known) if fresh => {
                    self.rename(&known, id);
                    return Ok(false);
                }
                Some(known) if known != *id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
                None if !fresh => return Err(ResponseError::UnknownMemberId),
                None => self.name(instance, id),
            }
        }
        let comes = !self.members.contains_key(id);
        self.members.entry(id.clone()).or_insert_with(Member::new);
        Ok(comes)
    }

    /// A member asks for its part. Answered under `token`, at once.
    pub fn sync(&mut self, now: Duration, catalog: &Catalog, sync: &Sync, token: Token) {
        let answer = self.try_sync(now, catalog, sync);
        self.answers.push((token, Answer::Sync(answer)));
    }

    fn try_sync(&mut self, now: Duration, catalog: &Catalog, sync: &Sync) -> Result<Synced, ResponseError> {
        let who = Identity { member_id: &sync.member_id, instance_id: sync.instance_id.as_deref() };
        let epoch = self.epoch;
        let (member, classic) = self.classic_member(who, sync.generation)?;
        let protocol = classic.protocols.first().map(|first| first.name.clone()).unwrap_or_default();
        let other_type = sync.protocol_type.as_deref().is_some_and(|named| named != PROTOCOL_TYPE);
        let other_protocol = sync.protocol.as_ref().is_some_and(|named| *named != protocol);
        if other_type || other_protocol {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        // One that has something to give up joins again anyway.
        if member.epoch < epoch && member.progress != Progress::Unrevoked {
            member.has_to_rejoin(now);
            return Err(ResponseError::RebalanceInProgress);
        }
        member.session_deadline = now.saturating_add(classic.session_timeout);
        member.deadline = None;
        let names = parts_by_name(&member.assigned, catalog);
        let names = names.iter().map(|(name, partitions)| (&**name, partitions.clone())).collect();
        Ok(Synced {
            protocol_type: PROTOCOL_TYPE.into(),
            protocol,
            assignment: consumer_protocol::encode_assignment(&names).unwrap_or_default(),
        })
    }

    /// A member of the classic protocol says that it is alive.
    ///
    /// # Errors
    /// What Kafka answers: above all `REBALANCE_IN_PROGRESS`, upon which the member joins again.
    pub fn classic_heartbeat(
        &mut self,
        now: Duration,
        who: Identity<'_>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        let id = self.identify(who)?;
        let waits = self.waits_for_others(&id);
        let epoch = self.epoch;
        let (member, classic) = self.classic_member(who, generation)?;
        member.session_deadline = now.saturating_add(classic.session_timeout);
        let released = member.progress == Progress::Unreleased && !waits;
        if member.epoch < epoch || member.progress == Progress::Unrevoked || released {
            member.has_to_rejoin(now);
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(())
    }

    /// Members go; one answer each, in order.
    pub fn leave(
        &mut self,
        now: Duration,
        catalog: &Catalog,
        members: &[Identity<'_>],
    ) -> Vec<Result<(), ResponseError>> {
        let mut gone = BTreeSet::new();
        let mut answers = Vec::with_capacity(members.len());
        for who in members {
            let id = who.find_leaving(&self.static_members, &self.members);
            let id = id.and_then(|id| gone.insert(id).then_some(()).ok_or(ResponseError::UnknownMemberId));
            answers.push(id);
        }
        self.remove(now, catalog, gone.into_iter().collect());
        answers
    }

    /// The member of the classic protocol that a request comes from, in the generation that it names.
    fn classic_member(
        &mut self,
        who: Identity<'_>,
        generation: i32,
    ) -> Result<(&mut Member, Classic), ResponseError> {
        let id = self.identify(who)?;
        let member = self.members.get_mut(&id).ok_or(ResponseError::UnknownMemberId)?;
        let classic = member.classic.clone().ok_or(ResponseError::UnknownMemberId)?;
        if member.epoch != generation {
            return Err(ResponseError::IllegalGeneration);
        }
        Ok((member, classic))
    }
}

impl Member {
    /// It has been told to join again, for which it has its rebalance timeout.
    pub fn has_to_rejoin(&mut self, now: Duration) {
        self.deadline.get_or_insert(now.saturating_add(self.rebalance_timeout));
    }
}
