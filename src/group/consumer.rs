//! A consumer group: Kafka's rebalance protocol of KIP-848 as a pure state machine. The broker shares out the partitions,
//! and leads each member to its part on its own.
//!
//! No I/O and no clock of its own, as [`classic`](super::classic): every input carries `now` and, where topics matter, the
//! [`Catalog`]. Every request is answered at once.
//!
//! ```text
//!   a member comes, goes or wants other topics;       epoch + 1: new targets        each heartbeat brings its member
//!   a topic comes, goes or grows              ──────► for all members       ──────► nearer to its target (reconcile)
//!
//!                        ┌──────────── it has something that is not in its target: it is told to give it up
//!                        ▼
//!   Stable ──────► Unrevoked ── given up, or nothing to give up: next epoch ──► Stable, with all of its target, or
//!     ▲ ▲                                                                       Unreleased, with what others do not hold
//!     │ └─────────────────────────── the others have given it up ◄────────────────────┘
//!     └ next epoch
//! ```
//!
//! Invariants:
//! * A partition has at most one owner: who has been given it and has not yet said that it has given it up, or been
//!   removed. It is given to nobody else before (`owners`).
//! * The group's epoch and every member's only grow; a member's is never ahead of the group's.
//! * Targets are those of the group's epoch, share out every partition that somebody wants, and nothing else.
//!
//! A member of the classic protocol is led the same way: told `REBALANCE_IN_PROGRESS` it joins again, which says what it
//! still owns, and is answered with what it may have. When no others are left the group becomes a classic one
//! ([`protocol`](super::protocol)).
//!
//! Where this differs from Apache Kafka: targets are made at once, so that no group is ever seen `Assigning` (Kafka 4.3
//! waits for up to a second between two). Members live in memory, so one of a group that there is not is told
//! `UNKNOWN_MEMBER_ID`, upon which it joins again, and not `GROUP_ID_NOT_FOUND`, which ends it.
//! So is one of the classic protocol that joins again with partitions after it was removed; Kafka takes it in, and it reads
//! what may be another's until it is told its part.

mod assignor;
mod classic_member;
mod heartbeat;
pub(in crate::group) mod member;
mod migration;
mod reconcile;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use self::member::{Held, Member, Progress};
use super::catalog::Catalog;
use super::member::{Answer, Identity, Token};
use crate::log::topics::TopicId;

pub use assignor::Assignor;
pub use member::{AWAY, Beat, Heartbeat, JOIN, LEAVE, Parts, Refused};

/// Memory that it takes to know who has a partition, about.
const OWNER_SIZE: usize = 96;

/// Bounds and times that all groups share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Without a heartbeat for so long a member is taken for dead.
    pub session_timeout: Duration,
    /// Members that a group may have.
    pub max_size: usize,
}

/// What a group is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No members.
    Empty,
    /// Members are on their way to their targets.
    Reconciling,
    /// Everybody has its target.
    Stable,
}

impl State {
    /// Kafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::Reconciling => "Reconciling",
            State::Stable => "Stable",
        }
    }
}

/// A group.
#[derive(Debug)]
pub struct Group {
    settings: Arc<Settings>,
    /// The epoch of members, subscriptions and topics, and of the targets made for them.
    epoch: i32,
    members: BTreeMap<Arc<str>, Member>,
    /// Instance id to member id.
    static_members: HashMap<Arc<str>, Arc<str>>,
    /// Who has which partition.
    owners: HashMap<(TopicId, i32), Arc<str>>,
    /// How often a partition has been given up.
    releases: u64,
    /// The topics that were shared out, with their numbers of partitions.
    shared_out: BTreeMap<TopicId, i32>,
    assignor: Assignor,
    empty_since: Duration,
    answers: Vec<(Token, Answer)>,
}

/// A group as ConsumerGroupDescribe shows it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its state.
    pub state: State,
    /// Its epoch, and that of its targets.
    pub epoch: i32,
    /// How partitions are shared out.
    pub assignor: Assignor,
    /// Its members.
    pub members: Vec<MemberDescription>,
}

/// A member as ConsumerGroupDescribe shows it.
#[derive(Debug, Clone)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: Arc<str>,
    /// Set for a static member.
    pub instance_id: Option<Arc<str>>,
    /// Where it is.
    pub rack_id: Option<Arc<str>>,
    /// Its epoch.
    pub epoch: i32,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// Where it came from.
    pub client_host: Arc<str>,
    /// The topics that it wants by name.
    pub names: BTreeSet<Arc<str>>,
    /// The pattern of the names of others that it wants.
    pub pattern: Option<Arc<str>>,
    /// The partitions that it has, those among them that it is to give up.
    pub assignment: Parts,
    /// The partitions that it is meant to have.
    pub target: Parts,
    /// Whether it speaks the classic protocol.
    pub is_classic: bool,
}

impl Group {
    /// A group without members.
    pub fn new(settings: Arc<Settings>, now: Duration) -> Group {
        Group {
            settings,
            epoch: 0,
            members: BTreeMap::new(),
            static_members: HashMap::new(),
            owners: HashMap::new(),
            releases: 0,
            shared_out: BTreeMap::new(),
            assignor: Assignor::Uniform,
            empty_since: now,
            answers: Vec::new(),
        }
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match self.members.values().all(|member| member.is_reconciled(self.epoch)) {
            _ if self.members.is_empty() => State::Empty,
            true => State::Stable,
            false => State::Reconciling,
        }
    }

    /// Its epoch; 0 before the first member.
    pub fn epoch(&self) -> i32 {
        self.epoch
    }

    /// Changes whenever there may be news for a member of the classic protocol.
    pub fn news(&self) -> (i32, u64) {
        (self.epoch, self.releases)
    }

    /// How many members it has.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Whether it has a member of the consumer protocol with that id.
    pub fn has(&self, member_id: &str) -> bool {
        self.members.get(member_id).is_some_and(|member| member.classic.is_none())
    }

    /// When it last became empty.
    pub fn empty_since(&self) -> Duration {
        self.empty_since
    }

    /// Memory that its members take.
    pub fn size(&self) -> usize {
        let members: usize = self.members.values().map(|member| member.size).sum();
        members + self.owners.len() * OWNER_SIZE
    }

    /// The answers that have become due.
    pub fn take_answers(&mut self) -> Vec<(Token, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// The moment at which [`tick`](Self::tick) has something to do, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let each = |member: &Member| member.session_deadline.min(member.deadline.unwrap_or(Duration::MAX));
        self.members.values().map(each).min()
    }

    /// Lets time pass: members that are over their time are removed.
    pub fn tick(&mut self, now: Duration, catalog: &Catalog) {
        let over = |member: &Member| {
            member.session_deadline <= now || member.deadline.is_some_and(|deadline| deadline <= now)
        };
        let dead = self.members.iter().filter(|(_, member)| over(member)).map(|(id, _)| id.clone()).collect();
        self.remove(now, catalog, dead);
    }

    /// Takes note of topics that have come, gone or grown.
    pub fn topics_changed(&mut self, catalog: &Catalog) {
        if self.wanted(catalog) != self.shared_out {
            self.share_out(catalog);
        }
    }

    /// The patterns that members have subscribed to.
    pub fn patterns(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.values().filter_map(|member| member.pattern.as_ref())
    }

    /// Whether it has a member with that id, which has subscribed to another pattern or to none.
    pub fn changes_pattern(&self, member_id: &str, pattern: &str) -> bool {
        self.members.get(member_id).is_some_and(|member| member.pattern.as_deref() != Some(pattern))
    }

    /// Whether a member has subscribed to the topic.
    pub fn is_subscribed_to(&self, topic: &str, catalog: &Catalog) -> bool {
        let by_name = self.members.values().any(|member| member.names.contains(topic));
        let id = catalog.id(topic);
        by_name || self.patterns().any(|pattern| id.is_some_and(|id| catalog.matching(pattern).contains(&id)))
    }

    /// The group as ConsumerGroupDescribe shows it.
    pub fn describe(&self) -> Description {
        let member = |(id, member): (&Arc<str>, &Member)| MemberDescription {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            rack_id: member.rack_id.clone(),
            epoch: member.epoch,
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            names: member.names.clone(),
            pattern: member.pattern.clone(),
            assignment: collected(member.held()),
            target: member.target.clone(),
            is_classic: member.classic.is_some(),
        };
        Description {
            state: self.state(),
            epoch: self.epoch,
            assignor: self.assignor,
            members: self.members.iter().map(member).collect(),
        }
    }

    // -- Commits -----------------------------------------------------------------------------------------------------

    /// Whether a commit of offsets of these partitions is in order. As in Apache Kafka 4.3 (KIP-1251) one of an earlier
    /// epoch is, as long as its member has had each of the partitions ever since.
    ///
    /// # Errors
    /// What Kafka answers to the whole commit.
    pub fn validate_commit(
        &self,
        who: Identity<'_>,
        epoch: i32,
        partitions: &[(TopicId, i32)],
    ) -> Result<(), ResponseError> {
        if epoch < 0 && self.members.is_empty() {
            // A consumer that assigns its partitions itself, or an administrator.
            return Ok(());
        }
        let member = self.members.get(who.member_id).ok_or(ResponseError::UnknownMemberId)?;
        let had_since = |(topic, partition): &(TopicId, i32)| {
            member.held_since(*topic, *partition).is_some_and(|since| since <= epoch)
        };
        if epoch == member.epoch || epoch < member.epoch && partitions.iter().all(had_since) {
            return Ok(());
        }
        Err(member.wrong_epoch())
    }

    /// Whether offsets may be read for a member that names itself.
    ///
    /// # Errors
    /// What Kafka answers for the group.
    pub fn validate_fetch(&self, member_id: &str, epoch: i32) -> Result<(), ResponseError> {
        match self.members.get(member_id) {
            None => Err(ResponseError::UnknownMemberId),
            Some(member) if member.epoch != epoch => Err(member.wrong_epoch()),
            Some(_) => Ok(()),
        }
    }

    // -- Inside ------------------------------------------------------------------------------------------------------

    /// The topics that members want and that there are.
    fn wanted(&self, catalog: &Catalog) -> BTreeMap<TopicId, i32> {
        let mut subscriptions = BTreeSet::new();
        let mut wanted = BTreeMap::new();
        for member in self.members.values() {
            if subscriptions.insert((&member.names, &member.pattern)) {
                wanted.extend(member.topics(catalog));
            }
        }
        wanted
    }

    /// Begins the next epoch: makes targets for all members.
    fn share_out(&mut self, catalog: &Catalog) {
        self.epoch = self.epoch.saturating_add(1);
        self.assignor = self.preferred_assignor();
        let mut classes = BTreeMap::new();
        let mut wants = Vec::new();
        let mut all = BTreeMap::new();
        // Static members first, each by its name, the others by their ids.
        let mut order: Vec<(&Arc<str>, &Member)> = self.members.iter().collect();
        order.sort_by_key(|(id, member)| (member.instance_id.is_none(), member.instance_id.as_ref(), *id));
        let mut members = Vec::with_capacity(order.len());
        for (_, member) in &order {
            let class = *classes.entry((&member.names, &member.pattern)).or_insert_with(|| {
                let topics = member.topics(catalog);
                wants.push(topics.keys().copied().collect());
                all.extend(topics);
                wants.len() - 1
            });
            members.push((class, &member.target));
        }
        let shares = self.assignor.share_out(&all, &wants, &members);
        let ids: Vec<Arc<str>> = order.into_iter().map(|(id, _)| id.clone()).collect();
        for (id, share) in ids.into_iter().zip(shares) {
            if let Some(member) = self.members.get_mut(&id) {
                member.target = share;
                member.measure();
            }
        }
        self.shared_out = all;
    }

    /// The one that most members who care prefer.
    fn preferred_assignor(&self) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for assignor in self.members.values().filter_map(|member| member.assignor) {
            *votes.entry(assignor).or_default() += 1;
        }
        votes.into_iter().rev().max_by_key(|(_, votes)| *votes).map_or(Assignor::Uniform, |(most, _)| most)
    }

    /// Removes members, and shares out what they had.
    fn remove(&mut self, now: Duration, catalog: &Catalog, ids: Vec<Arc<str>>) {
        let mut removed = false;
        for id in ids {
            self.hold(&id, Held::new(), Held::new());
            let Some(member) = self.members.remove(&id) else { continue };
            removed = true;
            if let Some(instance) = member.instance_id
                && self.static_members.get(&instance) == Some(&id)
            {
                self.static_members.remove(&instance);
            }
        }
        if removed && self.members.is_empty() {
            self.empty_since = now;
        }
        // One that is left to members of the classic protocol goes on as a classic one, in which they join again.
        if removed && !self.is_left_to_classic_members() {
            self.share_out(catalog);
        }
    }

    /// The member that a request of the classic protocol comes from.
    fn identify(&self, who: Identity<'_>) -> Result<Arc<str>, ResponseError> {
        who.find(&self.static_members, &self.members)
    }
}

impl Member {
    /// What it is told of an epoch that it is not in.
    fn wrong_epoch(&self) -> ResponseError {
        match self.classic {
            Some(_) => ResponseError::IllegalGeneration,
            None => ResponseError::StaleMemberEpoch,
        }
    }
}

/// Partitions by their topics.
fn collected(partitions: impl Iterator<Item = (TopicId, i32)>) -> Parts {
    let mut parts = Parts::new();
    for (topic, partition) in partitions {
        parts.entry(topic).or_default().insert(partition);
    }
    parts
}
