//! A classic consumer group: Kafka's rebalance protocol as a pure state machine.
//!
//! No I/O and no clock of its own: every input carries `now` (time since the coordinator was opened), and answers to
//! waiting requests pile up until [`Group::take_answers`]. Whoever drives it calls [`Group::tick`] no later than
//! [`Group::next_deadline`], and [`Group::cancel`] when a waiting request's connection has gone.
//!
//! ```text
//!            first member joins                all (or the time) are in          leader syncs
//!   Empty ─────────────────────► Preparing ───────────────────► Completing ─────────────────────► Stable
//!     ▲                          Rebalance ◄─────────────────── Rebalance                           │
//!     │ nobody is left            │   ▲        a member comes,                                      │
//!     └───────────────────────────┘   │        goes or changes                                      │
//!                                     └─────────────────────────────────────────────────────────────┘
//!   every state ──► Dead (deleted, or the broker stops)
//! ```
//!
//! Invariants:
//! * The generation only grows. It grows when the join phase ends, and names the members that were in at that moment.
//! * In every generation one member leads, and each member gets its part from that leader or is told to rejoin.
//! * At most one request of a member waits. When another comes, or the member is removed, the first is answered.
//!
//! * A virtual member leads only a generation that no Kafka client has joined. It keeps its partitions through a
//!   rebalance only into a generation whose protocol is cooperative.
//!
//! Where this differs from Apache Kafka: a waiting request whose connection closed stops counting as a sign of life at
//! once (Kafka keeps such a member until a rebalance or a five-minute timer ends it). A group that only virtual
//! members have come to does not wait for more, as they share out anew within moments.

mod join;
mod migration;
#[cfg(test)]
mod simulation;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::assignor;
use super::member::{Answer, Identity, JoinRefused, Joined, Member, Subscribed, Synced, Token, Waiting};

pub(super) use migration::Migrant;

/// What a group is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No members. Committed offsets may be there.
    Empty,
    /// Members are being gathered for the next generation.
    PreparingRebalance,
    /// All are in; the leader's assignment is awaited.
    CompletingRebalance,
    /// Everybody has, or can fetch, its part.
    Stable,
    /// Gone; whoever still holds it looks it up again.
    Dead,
}

impl State {
    /// Kafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
            State::Dead => "Dead",
        }
    }

    /// The table of moves.
    fn moves(self) -> &'static [State] {
        match self {
            State::Empty => &[State::PreparingRebalance, State::Dead],
            State::PreparingRebalance => &[State::Empty, State::CompletingRebalance, State::Dead],
            State::CompletingRebalance => &[State::Stable, State::PreparingRebalance, State::Dead],
            State::Stable => &[State::PreparingRebalance, State::Dead],
            State::Dead => &[],
        }
    }
}

/// Bounds and times that all groups share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a new group waits for more members before its first generation.
    pub initial_rebalance_delay: Duration,
    /// Members that a group may have.
    pub max_size: usize,
}

/// The first rebalance of an empty group waits for more members in rounds.
#[derive(Debug, Clone, Copy)]
struct InitialDelay {
    /// What is left of the rebalance timeout after this round.
    remaining: Duration,
    /// Whether a member came during this round, which is worth another one.
    newcomer: bool,
}

/// A group.
#[derive(Debug)]
pub struct Group {
    settings: Arc<Settings>,
    state: State,
    /// When it last became empty.
    empty_since: Duration,
    generation: i32,
    protocol_type: Arc<str>,
    protocol: Option<Arc<str>>,
    leader: Option<Arc<str>>,
    members: BTreeMap<Arc<str>, Member>,
    /// Instance id to member id.
    static_members: HashMap<Arc<str>, Arc<str>>,
    /// Ids given out by `MEMBER_ID_REQUIRED`, with the time until which they may come back.
    pending: BTreeMap<Arc<str>, Duration>,
    /// End of the join phase, later of the sync phase.
    deadline: Option<Duration>,
    initial_delay: Option<InitialDelay>,
    answers: Vec<(Token, Answer)>,
}

/// A group as DescribeGroups shows it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its state.
    pub state: State,
    /// `consumer` for consumers; empty where no member ever joined.
    pub protocol_type: Arc<str>,
    /// The protocol in use, when stable.
    pub protocol: Arc<str>,
    /// Its members.
    pub members: Vec<MemberDescription>,
}

/// A member as DescribeGroups shows it.
#[derive(Debug, Clone)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: Arc<str>,
    /// Set for a static member.
    pub instance_id: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// Where it came from.
    pub client_host: Arc<str>,
    /// Its subscription, when stable.
    pub metadata: Bytes,
    /// Its part, as the leader last gave it.
    pub assignment: Bytes,
}

impl Group {
    /// A group without members.
    pub fn new(settings: Arc<Settings>, now: Duration) -> Group {
        Group {
            settings,
            state: State::Empty,
            empty_since: now,
            generation: 0,
            protocol_type: "".into(),
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: HashMap::new(),
            pending: BTreeMap::new(),
            deadline: None,
            initial_delay: None,
            answers: Vec::new(),
        }
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// Which generation it is in; 0 before the first.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// How many members it has.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Whether it has neither members nor anyone about to become one.
    pub fn is_unused(&self) -> bool {
        self.state == State::Empty && self.pending.is_empty()
    }

    /// When it last became empty.
    pub fn empty_since(&self) -> Duration {
        self.empty_since
    }

    /// Memory that its members' subscriptions and assignments take.
    pub fn size(&self) -> usize {
        self.members.values().map(Member::size).sum()
    }

    /// The answers that have become due, each for another waiting request.
    pub fn take_answers(&mut self) -> Vec<(Token, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// The moment at which [`tick`](Self::tick) has something to do, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let sessions =
            self.members.values().filter(|m| m.waiting == Waiting::Nothing).map(|m| m.session_deadline);
        sessions.chain(self.pending.values().copied()).chain(self.deadline).min()
    }

    /// Lets time pass: members, pending ids and phases that are over their time end.
    pub fn tick(&mut self, now: Duration) {
        let late: Vec<Arc<str>> =
            self.pending.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.pending.remove(&id);
            self.maybe_complete_join(now);
        }
        let dead: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, m)| m.waiting == Waiting::Nothing && m.session_deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &dead {
            self.remove_member(id);
        }
        if !dead.is_empty() {
            self.after_removal(now);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            match self.state {
                State::PreparingRebalance => self.join_time_is_up(now),
                State::CompletingRebalance | State::Stable => self.sync_time_is_up(now),
                State::Empty | State::Dead => self.deadline = None,
            }
        }
    }

    /// Forgets a waiting request whose connection has gone. The member has its session timeout to come back.
    pub fn cancel(&mut self, now: Duration, token: Token) {
        let waits = |m: &Member| m.waiting == Waiting::Join(token) || m.waiting == Waiting::Sync(token);
        let Some((id, member)) = self.members.iter_mut().find(|(_, m)| waits(m)) else {
            return;
        };
        member.waiting = Waiting::Nothing;
        member.heard(now);
        if member.anonymous {
            let id = id.clone();
            self.remove_member(&id);
            self.after_removal(now);
        }
    }

    /// Ends the group. Whoever waits is told `error`.
    pub fn kill(&mut self, error: ResponseError) {
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            self.refuse_waiting(&id, error);
        }
        self.members.clear();
        self.static_members.clear();
        self.pending.clear();
        self.deadline = None;
        self.leader = None;
        self.transition(State::Dead);
    }

    /// The group as DescribeGroups shows it.
    pub fn describe(&self) -> Description {
        let protocol = self.protocol.clone().filter(|_| self.state == State::Stable);
        let members = self
            .members
            .iter()
            .map(|(id, member)| MemberDescription {
                member_id: id.clone(),
                instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                metadata: protocol.as_deref().map(|name| member.metadata(name)).unwrap_or_default(),
                assignment: member.assignment.clone(),
            })
            .collect();
        Description {
            state: self.state,
            protocol_type: self.protocol_type.clone(),
            protocol: protocol.unwrap_or_default(),
            members,
        }
    }

    /// The group's protocol type; empty where no member ever joined.
    pub fn protocol_type(&self) -> &Arc<str> {
        &self.protocol_type
    }

    /// The subscriptions of all members, in whatever protocol they prefer.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Bytes> {
        self.members.values().flat_map(|m| m.protocols.iter().map(|protocol| &protocol.metadata))
    }

    // -- Phases ------------------------------------------------------------------------------------------------------

    fn transition(&mut self, next: State) {
        debug_assert!(self.state.moves().contains(&next), "illegal move from {:?} to {next:?}", self.state);
        self.state = next;
    }

    /// Starts gathering members.
    fn prepare_rebalance(&mut self, now: Duration) {
        if self.state == State::CompletingRebalance {
            let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
            for id in ids {
                if self.members.get(&id).is_some_and(|m| matches!(m.waiting, Waiting::Sync(_))) {
                    self.refuse_waiting(&id, ResponseError::RebalanceInProgress);
                    self.heard(&id, now);
                }
            }
        }
        let delayed =
            !self.settings.initial_rebalance_delay.is_zero() && self.members.values().any(Member::is_client);
        let first = self.state == State::Empty && delayed;
        self.transition(State::PreparingRebalance);
        if first {
            let delay = self.settings.initial_rebalance_delay;
            let remaining = self.rebalance_timeout().saturating_sub(delay);
            self.initial_delay = Some(InitialDelay { remaining, newcomer: false });
            self.deadline = Some(now.saturating_add(delay));
        } else {
            self.deadline = Some(now.saturating_add(self.rebalance_timeout()));
            self.maybe_complete_join(now);
        }
    }

    /// Ends the join phase when nobody is missing.
    fn maybe_complete_join(&mut self, now: Duration) {
        let everybody = self.pending.is_empty() && self.members.values().all(Member::awaits_join);
        if self.state == State::PreparingRebalance && self.initial_delay.is_none() && everybody {
            self.complete_join(now);
        }
    }

    fn join_time_is_up(&mut self, now: Duration) {
        match self.initial_delay {
            Some(InitialDelay { remaining, newcomer: true }) if !remaining.is_zero() => {
                let delay = self.settings.initial_rebalance_delay.min(remaining);
                self.deadline = Some(now.saturating_add(delay));
                self.initial_delay =
                    Some(InitialDelay { remaining: remaining.saturating_sub(delay), newcomer: false });
            }
            _ => self.complete_join(now),
        }
    }

    /// Makes the next generation of those who are in.
    fn complete_join(&mut self, now: Duration) {
        self.initial_delay = None;
        let missing: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, m)| !m.awaits_join() && m.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in missing {
            self.remove_member(&id);
        }
        if !self.members.is_empty() && !self.elect_leader() {
            // Only static members are left and none is back: their session timeouts decide. A client that asks for no
            // time at all must not make this spin.
            self.deadline = Some(now.saturating_add(self.rebalance_timeout().max(Duration::from_secs(1))));
            return;
        }
        if self.sends_back_who_keeps_partitions(now) {
            self.deadline = Some(now.saturating_add(self.rebalance_timeout()));
            return;
        }
        self.generation = self.generation.saturating_add(1);
        let (Some(leader), Some(protocol)) = (self.leader.clone(), self.select_protocol()) else {
            self.protocol = None;
            self.deadline = None;
            self.empty_since = now;
            self.transition(State::Empty);
            return;
        };
        self.protocol = Some(protocol);
        self.transition(State::CompletingRebalance);
        self.deadline = Some(now.saturating_add(self.rebalance_timeout()));
        for (id, member) in &mut self.members {
            member.synced = false;
            if member.awaits_join() {
                member.anonymous = false;
            } else {
                // A static member that is away keeps its place, and is not waited for in the sync phase.
                member.synced = true;
            }
            debug_assert!(
                member.awaits_join() || member.instance_id.is_some(),
                "{id} is in without having joined"
            );
        }
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id, *id == *leader);
            self.answer_join(&id, Ok(joined), now);
        }
    }

    /// Where the protocol will not be a cooperative one, virtual members that still have partitions cannot be in before
    /// they have given them up. They are told to rejoin, which they do without. Whether there are any.
    fn sends_back_who_keeps_partitions(&mut self, now: Duration) -> bool {
        if self.select_protocol().is_none_or(|protocol| assignor::is_cooperative(&protocol)) {
            return false;
        }
        let keep = |(id, member): (&Arc<str>, &Member)| member.keeps_partitions().then(|| id.clone());
        let ids: Vec<Arc<str>> = self.members.iter().filter_map(keep).collect();
        for id in &ids {
            self.refuse_waiting(id, ResponseError::RebalanceInProgress);
            self.heard(id, now);
        }
        !ids.is_empty()
    }

    /// Makes sure that the leader is one of those who are in, and a Kafka client if one is. Whether there is one.
    fn elect_leader(&mut self) -> bool {
        let joined = self.members.iter().filter(|(_, member)| member.awaits_join());
        let best = joined.min_by_key(|(id, member)| (!member.is_client(), self.leader.as_ref() != Some(*id)));
        let Some((id, _)) = best else { return false };
        self.leader = Some(id.clone());
        true
    }

    /// The protocol that all members can do and most prefer; among equals the one that the leader prefers.
    fn select_protocol(&self) -> Option<Arc<str>> {
        let leader = self.members.get(self.leader.as_ref()?)?;
        let common: Vec<&Arc<str>> = leader
            .protocols
            .iter()
            .map(|protocol| &protocol.name)
            .filter(|name| self.members.values().all(|member| member.supports(name)))
            .collect();
        let mut votes = vec![0usize; common.len()];
        for member in self.members.values() {
            let preferred =
                member.protocols.iter().find_map(|own| common.iter().position(|name| **name == own.name));
            if let Some(vote) = preferred.and_then(|index| votes.get_mut(index)) {
                *vote += 1;
            }
        }
        let mut best: Option<(usize, &Arc<str>)> = None;
        for (count, name) in votes.into_iter().zip(common) {
            if best.is_none_or(|(most, _)| count > most) {
                best = Some((count, name));
            }
        }
        best.map(|(_, name)| name.clone())
    }

    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|m| m.rebalance_timeout).max().unwrap_or_default()
    }

    // -- Members and their waiting requests --------------------------------------------------------------------------

    fn heard(&mut self, id: &str, now: Duration) {
        if let Some(member) = self.members.get_mut(id) {
            member.heard(now);
        }
    }

    /// What a member of this generation is told.
    fn joined(&self, id: &Arc<str>, with_members: bool) -> Joined {
        Joined {
            member_id: id.clone(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            members: if with_members { self.subscribed() } else { Vec::new() },
            skip_assignment: false,
        }
    }

    fn subscribed(&self) -> Vec<Subscribed> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let each = |(id, member): (&Arc<str>, &Member)| Subscribed {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(protocol),
        };
        self.members.iter().map(each).collect()
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment,
        }
    }

    /// Lets a member's request wait. An earlier one of the same member has been given up by it and is answered.
    fn park(&mut self, id: &Arc<str>, waiting: Waiting) {
        self.refuse_waiting(id, ResponseError::RebalanceInProgress);
        if let Some(member) = self.members.get_mut(id) {
            member.waiting = waiting;
        }
    }

    /// Answers a member's waiting JoinGroup, if there is one, and starts its session anew.
    fn answer_join(&mut self, id: &Arc<str>, answer: Result<Joined, JoinRefused>, now: Duration) {
        if let Some(member) = self.members.get_mut(id)
            && let Waiting::Join(token) = member.waiting
        {
            member.waiting = Waiting::Nothing;
            member.heard(now);
            self.answers.push((token, Answer::Join(answer)));
        }
    }

    /// Answers whatever a member waits for with an error.
    fn refuse_waiting(&mut self, id: &Arc<str>, error: ResponseError) {
        if let Some(member) = self.members.get_mut(id) {
            match std::mem::replace(&mut member.waiting, Waiting::Nothing) {
                Waiting::Nothing => {}
                Waiting::Join(token) => {
                    let refused = JoinRefused { error, member_id: id.clone() };
                    self.answers.push((token, Answer::Join(Err(refused))));
                }
                Waiting::Sync(token) => self.answers.push((token, Answer::Sync(Err(error)))),
            }
        }
    }

    /// Takes a member out. The caller calls [`after_removal`](Self::after_removal), once for all that it takes out.
    fn remove_member(&mut self, id: &Arc<str>) {
        self.refuse_waiting(id, ResponseError::UnknownMemberId);
        let Some(member) = self.members.remove(id) else {
            return;
        };
        if let Some(instance) = member.instance_id
            && self.static_members.get(&instance) == Some(id)
        {
            self.static_members.remove(&instance);
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// A group that has lost a member shares out anew; one that was waiting for it need not wait any more.
    fn after_removal(&mut self, now: Duration) {
        match self.state {
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(now),
            State::PreparingRebalance => self.maybe_complete_join(now),
            State::Empty | State::Dead => {}
        }
    }

    /// The member that a request comes from.
    fn identify(&self, who: Identity<'_>) -> Result<Arc<str>, ResponseError> {
        who.find(&self.static_members, &self.members)
    }
}
