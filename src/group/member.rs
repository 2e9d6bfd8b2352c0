//! A member of a classic group, and what members and the coordinator say to each other.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;

/// Memory that a member takes besides what its client decides on: its ids and its places in maps.
pub(super) const MEMBER_SIZE: usize = 512;

/// Names a waiting request, so that its answer finds it. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A way of sharing out partitions that a member can do, with what it says about itself in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Its name, such as `range`.
    pub name: Arc<str>,
    /// The member's subscription; opaque to the broker.
    pub metadata: Bytes,
}

impl Protocol {
    /// Memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.metadata.len()
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} B)", self.name, self.metadata.len())
    }
}

/// What a member is to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Kafka client.
    Client,
    /// A subscriber inside the broker, which leads only where no client can.
    Virtual {
        /// It has not given up its partitions, so the protocol must be a cooperative one.
        keeps_partitions: bool,
    },
}

/// A JoinGroup request.
#[derive(Debug, Clone)]
pub struct Join {
    /// What the member is.
    pub kind: Kind,
    /// The id that the member has, empty when it has none yet.
    pub member_id: Arc<str>,
    /// The id that it gets if it needs a new one; empty for a random one.
    pub new_member_id: Arc<str>,
    /// Set for a static member (KIP-345).
    pub instance_id: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// Where it came from.
    pub client_host: Arc<str>,
    /// Without a heartbeat for so long it is taken for dead.
    pub session_timeout: Duration,
    /// How long it may take to rejoin a rebalance.
    pub rebalance_timeout: Duration,
    /// `consumer` for consumers.
    pub protocol_type: Arc<str>,
    /// In the order in which the member prefers them.
    pub protocols: Vec<Protocol>,
    /// Whether the member comes back with its id before it counts (KIP-394, version 4).
    pub requires_known_id: bool,
    /// Whether a leader can be told to leave the assignment as it is (version 9).
    pub can_skip_assignment: bool,
}

/// A SyncGroup request.
#[derive(Debug, Clone)]
pub struct Sync {
    /// Who asks.
    pub member_id: Arc<str>,
    /// Set for a static member.
    pub instance_id: Option<Arc<str>>,
    /// The generation that it has joined.
    pub generation: i32,
    /// The protocol type that it was told (version 5).
    pub protocol_type: Option<Arc<str>>,
    /// The protocol that it was told (version 5).
    pub protocol: Option<Arc<str>>,
    /// From the leader: what each member gets.
    pub assignments: Vec<(Arc<str>, Bytes)>,
}

/// Who a request says it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The member id, or empty.
    pub member_id: &'a str,
    /// Set for a static member.
    pub instance_id: Option<&'a str>,
}

impl Identity<'_> {
    /// The member among these that it names. `static_members` are instance ids with their members' ids.
    pub(super) fn find<M>(
        self,
        static_members: &HashMap<Arc<str>, Arc<str>>,
        members: &BTreeMap<Arc<str>, M>,
    ) -> Result<Arc<str>, ResponseError> {
        if let Some(instance) = self.instance_id {
            match static_members.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(id) if **id != *self.member_id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        let found = members.get_key_value(self.member_id);
        found.map(|(id, _)| id.clone()).ok_or(ResponseError::UnknownMemberId)
    }

    /// The member among these that is to go.
    pub(super) fn find_leaving<M>(
        self,
        static_members: &HashMap<Arc<str>, Arc<str>>,
        members: &BTreeMap<Arc<str>, M>,
    ) -> Result<Arc<str>, ResponseError> {
        match self.instance_id {
            // An administrator names the instance alone.
            Some(instance) if self.member_id.is_empty() => {
                static_members.get(instance).cloned().ok_or(ResponseError::UnknownMemberId)
            }
            _ => self.find(static_members, members),
        }
    }
}

/// The answer to a waiting request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To a JoinGroup.
    Join(Result<Joined, JoinRefused>),
    /// To a SyncGroup.
    Sync(Result<Synced, ResponseError>),
}

/// A member is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id.
    pub member_id: Arc<str>,
    /// The generation that it is in.
    pub generation: i32,
    /// The group's protocol type.
    pub protocol_type: Arc<str>,
    /// The protocol chosen by votes.
    pub protocol: Arc<str>,
    /// Who shares out the partitions.
    pub leader: Arc<str>,
    /// Only for the leader: all members and their subscriptions.
    pub members: Vec<Subscribed>,
    /// The leader may keep the assignment that there is.
    pub skip_assignment: bool,
}

/// A member is not in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRefused {
    /// Why.
    pub error: ResponseError,
    /// The id to come back with, for `MEMBER_ID_REQUIRED`; else the one that was given.
    pub member_id: Arc<str>,
}

/// What the leader learns about a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// Its id.
    pub member_id: Arc<str>,
    /// Set for a static member.
    pub instance_id: Option<Arc<str>>,
    /// Its metadata in the chosen protocol.
    pub metadata: Bytes,
}

/// A member's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// The group's protocol type.
    pub protocol_type: Arc<str>,
    /// The protocol.
    pub protocol: Arc<str>,
    /// What the leader gave it; opaque to the broker.
    pub assignment: Bytes,
}

/// What a member waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    Nothing,
    Join(Token),
    Sync(Token),
}

/// A member as its group knows it.
#[derive(Debug)]
pub(super) struct Member {
    pub kind: Kind,
    pub instance_id: Option<Arc<str>>,
    pub client_id: Arc<str>,
    pub client_host: Arc<str>,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocols: Vec<Protocol>,
    pub assignment: Bytes,
    pub waiting: Waiting,
    /// When it is taken for dead, unless it waits: a waiting request is a sign of life.
    pub session_deadline: Duration,
    /// Whether it has asked for its assignment in this generation.
    pub synced: bool,
    /// It was never told its id, so nobody can come back with it once its request is gone.
    pub anonymous: bool,
}

impl Member {
    pub(super) fn new(join: &Join) -> Member {
        Member {
            kind: join.kind,
            instance_id: join.instance_id.clone(),
            client_id: join.client_id.clone(),
            client_host: join.client_host.clone(),
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: join.protocols.clone(),
            assignment: Bytes::new(),
            waiting: Waiting::Nothing,
            session_deadline: Duration::MAX,
            synced: false,
            anonymous: join.member_id.is_empty() && join.instance_id.is_none(),
        }
    }

    /// Takes over what a later JoinGroup says.
    pub(super) fn update(&mut self, join: &Join) {
        self.kind = join.kind;
        self.client_id = join.client_id.clone();
        self.client_host = join.client_host.clone();
        self.session_timeout = join.session_timeout;
        self.rebalance_timeout = join.rebalance_timeout;
        self.protocols = join.protocols.clone();
    }

    pub(super) fn awaits_join(&self) -> bool {
        matches!(self.waiting, Waiting::Join(_))
    }

    pub(super) fn is_client(&self) -> bool {
        self.kind == Kind::Client
    }

    /// Whether it has joined with partitions that only a cooperative protocol leaves it.
    pub(super) fn keeps_partitions(&self) -> bool {
        self.kind == Kind::Virtual { keeps_partitions: true }
    }

    pub(super) fn heard(&mut self, now: Duration) {
        self.session_deadline = now.saturating_add(self.session_timeout);
    }

    pub(super) fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|own| &*own.name == protocol)
    }

    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let own = self.protocols.iter().find(|own| &*own.name == protocol);
        own.map(|own| own.metadata.clone()).unwrap_or_default()
    }

    /// Memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        let protocols: usize = self.protocols.iter().map(Protocol::size).sum();
        MEMBER_SIZE + self.client_id.len() + protocols + self.assignment.len()
    }
}
