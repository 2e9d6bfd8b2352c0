//! A member of a consumer group, and what members and the coordinator say to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::Assignor;
use crate::group::catalog::Catalog;
use crate::group::member::{Kind, MEMBER_SIZE, Protocol};
use crate::log::topics::TopicId;

/// Partitions by topic.
pub type Parts = BTreeMap<TopicId, BTreeSet<i32>>;

/// Partitions by topic, each with the epoch in which the member got it.
pub(super) type Held = BTreeMap<TopicId, BTreeMap<i32, i32>>;

/// Memory that a partition takes in a member, about.
const PARTITION_SIZE: usize = 32;
/// Memory that a topic with partitions takes in a member besides, about: most of it is room for more of them.
const TOPIC_SIZE: usize = 160;

/// Epoch of a heartbeat with which a member joins.
pub const JOIN: i32 = 0;
/// Epoch of a heartbeat with which a member leaves.
pub const LEAVE: i32 = -1;
/// Epoch of a heartbeat with which a static member goes away for a while.
pub const AWAY: i32 = -2;

/// A ConsumerGroupHeartbeat request. What is `None` has not changed.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat {
    /// The member's id.
    pub member_id: Arc<str>,
    /// The epoch that the member is in, or one of [`JOIN`], [`LEAVE`] and [`AWAY`].
    pub epoch: i32,
    /// Set for a static member.
    pub instance_id: Option<Arc<str>>,
    /// Where the member is.
    pub rack_id: Option<Arc<str>>,
    /// How long it may take to give partitions up.
    pub rebalance_timeout: Option<Duration>,
    /// The topics that it wants.
    pub names: Option<BTreeSet<Arc<str>>>,
    /// A pattern of the names of topics that it wants; an empty one for none.
    pub pattern: Option<Arc<str>>,
    /// How it wants partitions to be shared out.
    pub assignor: Option<Assignor>,
    /// The partitions that it has.
    pub owned: Option<Parts>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// Where it came from.
    pub client_host: Arc<str>,
}

impl Heartbeat {
    /// Whether it says all that there is to say of a member, which then wants to be told all.
    pub(super) fn is_full(&self) -> bool {
        let says_all = self.rebalance_timeout.is_some() && self.is_subscribing() && self.owned.is_some();
        self.epoch == JOIN || says_all
    }

    /// Whether it may make us keep more than before.
    pub(in crate::group) fn is_subscribing(&self) -> bool {
        self.names.is_some() || self.pattern.is_some()
    }

    /// Memory that the member would take, about.
    pub(in crate::group) fn size(&self) -> usize {
        let names = self.names.iter().flatten().map(|name| name_size(name)).sum::<usize>();
        MEMBER_SIZE + self.client_id.len() + names + self.pattern.as_ref().map_or(0, |pattern| pattern.len())
    }
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The epoch that the member is in now.
    pub epoch: i32,
    /// The partitions that it is to have, where they are news to it.
    pub assignment: Option<Parts>,
}

/// Why a heartbeat is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What Kafka answers.
    pub error: ResponseError,
    /// For the person who reads the client's log.
    pub message: &'static str,
}

impl Refused {
    /// With a message of what is wrong, and what to change.
    pub fn new(error: ResponseError, message: &'static str) -> Refused {
        Refused { error, message }
    }
}

/// How far a member has come on its way to the partitions that it is meant to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has them.
    Stable,
    /// It has some to give up first.
    Unrevoked,
    /// It waits for some that others have not given up.
    Unreleased,
}

/// What a member that speaks the classic protocol needs besides.
#[derive(Debug, Clone)]
pub(super) struct Classic {
    pub kind: Kind,
    pub session_timeout: Duration,
    /// In the order in which it prefers them, at least one.
    pub protocols: Vec<Protocol>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub instance_id: Option<Arc<str>>,
    pub rack_id: Option<Arc<str>>,
    pub client_id: Arc<str>,
    pub client_host: Arc<str>,
    pub rebalance_timeout: Duration,
    pub names: BTreeSet<Arc<str>>,
    pub pattern: Option<Arc<str>>,
    pub assignor: Option<Assignor>,
    pub epoch: i32,
    /// An answer may have got lost, so a member may still be in the epoch before.
    pub previous_epoch: i32,
    pub progress: Progress,
    /// What it has been given, and has not been told to give up.
    pub assigned: Held,
    /// What it has been told to give up, and has not.
    pub revoking: Held,
    /// What it is meant to have.
    pub target: Parts,
    pub session_deadline: Duration,
    /// Until when it has to have given up partitions; by the classic protocol: joined again, or asked for its part.
    pub deadline: Option<Duration>,
    /// Set where it speaks the classic protocol.
    pub classic: Option<Classic>,
    /// Memory that it takes, as last [measured](Self::measure).
    pub size: usize,
}

impl Member {
    pub fn new() -> Member {
        Member {
            instance_id: None,
            rack_id: None,
            client_id: "".into(),
            client_host: "".into(),
            rebalance_timeout: Duration::ZERO,
            names: BTreeSet::new(),
            pattern: None,
            assignor: None,
            epoch: 0,
            previous_epoch: 0,
            progress: Progress::Stable,
            assigned: Held::new(),
            revoking: Held::new(),
            target: Parts::new(),
            session_deadline: Duration::MAX,
            deadline: None,
            classic: None,
            size: MEMBER_SIZE,
        }
    }

    /// The same for another process, which has yet to join.
    pub fn replaced(self) -> Member {
        Member { epoch: 0, previous_epoch: 0, ..self }
    }

    /// Takes over what a heartbeat says. Whether this changes what should be shared out.
    pub fn update(&mut self, beat: &Heartbeat) -> bool {
        let mut changed = false;
        if let Some(names) = &beat.names
            && self.names != *names
        {
            self.names = names.clone();
            changed = true;
        }
        if let Some(pattern) = &beat.pattern {
            let pattern = Some(pattern.clone()).filter(|pattern| !pattern.is_empty());
            changed |= self.pattern != pattern;
            self.pattern = pattern;
        }
        if beat.assignor.is_some() {
            changed |= self.assignor != beat.assignor;
            self.assignor = beat.assignor;
        }
        if beat.rack_id.is_some() {
            self.rack_id = beat.rack_id.clone();
        }
        if beat.instance_id.is_some() {
            self.instance_id = beat.instance_id.clone();
        }
        if let Some(timeout) = beat.rebalance_timeout {
            self.rebalance_timeout = timeout;
        }
        let resizes = changed || self.classic.is_some() || self.client_id.len() != beat.client_id.len();
        self.client_id = beat.client_id.clone();
        self.client_host = beat.client_host.clone();
        self.classic = None;
        if resizes {
            self.measure();
        }
        changed
    }

    /// The topics that it wants and that there are.
    pub fn topics(&self, catalog: &Catalog) -> BTreeMap<TopicId, i32> {
        let matching = self.pattern.iter().flat_map(|pattern| catalog.matching(pattern)).copied();
        let ids = self.names.iter().filter_map(|name| catalog.id(name)).chain(matching);
        ids.filter_map(|id| Some((id, catalog.partitions(id)?))).collect()
    }

    pub fn is_reconciled(&self, epoch: i32) -> bool {
        self.progress == Progress::Stable && self.epoch == epoch
    }

    pub fn enter(&mut self, epoch: i32) {
        self.previous_epoch = self.epoch;
        self.epoch = epoch;
    }

    /// The epoch in which it got a partition that it has.
    pub fn held_since(&self, topic: TopicId, partition: i32) -> Option<i32> {
        let since = |held: &Held| held.get(&topic).and_then(|partitions| partitions.get(&partition)).copied();
        since(&self.assigned).or_else(|| since(&self.revoking))
    }

    /// All that it has.
    pub fn held(&self) -> impl Iterator<Item = (TopicId, i32)> {
        each(&self.assigned).chain(each(&self.revoking))
    }

    /// Takes note of the memory that it takes.
    pub fn measure(&mut self) {
        self.size = self.measured();
    }

    /// Memory that it takes, about.
    pub fn measured(&self) -> usize {
        let names: usize = self.names.iter().map(|name| name_size(name)).sum();
        let protocols: usize =
            self.classic.iter().flat_map(|classic| &classic.protocols).map(Protocol::size).sum();
        let topics = self.assigned.values().chain(self.revoking.values()).map(BTreeMap::len);
        let topics = topics.chain(self.target.values().map(BTreeSet::len));
        let parts: usize = topics.map(|partitions| TOPIC_SIZE + partitions * PARTITION_SIZE).sum();
        let pattern = self.pattern.as_ref().map_or(0, |pattern| pattern.len());
        MEMBER_SIZE + self.client_id.len() + names + pattern + protocols + parts
    }
}

/// Memory that a topic's name takes in a subscription.
pub(super) fn name_size(name: &str) -> usize {
    name.len() + 48
}

fn each(held: &Held) -> impl Iterator<Item = (TopicId, i32)> {
    held.iter().flat_map(|(topic, partitions)| partitions.keys().map(|partition| (*topic, *partition)))
}

/// Partitions without their epochs.
pub(super) fn parts(held: &Held) -> Parts {
    let each = held.iter().filter(|(_, partitions)| !partitions.is_empty());
    each.map(|(topic, partitions)| (*topic, partitions.keys().copied().collect())).collect()
}

/// Whether a member that reports what it owns still has one of these. One that does not say keeps them.
pub(super) fn still_owns(owned: Option<&Parts>, held: &Held) -> bool {
    let has = |(topic, partition): (TopicId, i32)| {
        owned.is_none_or(|owned| owned.get(&topic).is_some_and(|own| own.contains(&partition)))
    };
    each(held).any(has)
}
