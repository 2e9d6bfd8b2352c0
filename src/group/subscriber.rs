//! A virtual member: a subscriber inside the broker that shares a classic group with Kafka clients.
//!
//! To the group it is a member like any other: it joins, syncs, sends heartbeats and leaves by the calls that Kafka's
//! requests end in, and its subscription and assignment have Kafka's form, so that a Kafka client that leads can share out
//! partitions to it, and administrators' tools can show it. Three things are its own: it leads only where no Kafka client
//! does (the broker then shares out, see `assignor`), it hears of a rebalance at once, and it commits only for partitions
//! that it holds.
//!
//! ```text
//!              ┌────────────────── the group rebalances: cooperative, or it holds nothing ─────────────────┐
//!              ▼                                                                                           │
//!   Rejoin ──► Round (join, assign where it leads, sync) ──► Change::Assigned ──► Settled (heartbeats) ────┤
//!     ▲                                                                             │ part of it is lost,  │ holds, and the
//!     │                                                                             ▼ cooperative          ▼ protocol is not
//!     └───────────── release() ◄──────────────── Change::Revoked, still heartbeats ◄───────────────────────┘
//!
//!   removed from the group, anywhere: Change::Lost, and Rejoin as a new member
//! ```
//!
//! Everything happens inside [`Membership::next`]; there is no task beside it. What is under way stays in the membership
//! when that call is cancelled, and goes on with the next one.

mod lead;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::sync::watch;
use tokio::time::Instant;

use self::lead::Lead;
use super::assignor::{Strategy, is_cooperative};
use super::consumer_protocol::{self, NO_GENERATION, PROTOCOL_TYPE, Parts};
use super::coordinator::new_member_id;
use super::member::{Identity, Join, Kind, Protocol, Sync};
use super::{Commit, CommitEntry, Coordinator};
use crate::log::topics::{Topics, is_topic_name};
use crate::state::Committed;

const TOO_MUCH_MEMORY: &str = "subscribe to fewer topics: their names take too much memory";
/// Heartbeats per session timeout, as Kafka's clients have it.
const HEARTBEATS_PER_SESSION: u32 = 3;

/// What a subscriber joins with.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The group.
    pub group: Arc<str>,
    /// What the client calls itself.
    pub client_id: Arc<str>,
    /// Where it came from, such as `/127.0.0.1`.
    pub client_host: Arc<str>,
    /// The topics that it wants a part of. They need not be there yet.
    pub topics: BTreeSet<Arc<str>>,
    /// It is taken for dead when [`Membership::next`] has not been polled for so long.
    pub session_timeout: Duration,
    /// How long it may take to release partitions and rejoin.
    pub rebalance_timeout: Duration,
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number in the topic.
    pub partition: i32,
}

/// How a member's part has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is a new generation, perhaps with the same part. What it adds may be read and committed from now on.
    Assigned {
        /// What was not its own before.
        added: BTreeSet<TopicPartition>,
    },
    /// These go to other members as soon as this one calls [`Membership::release`]. Until then they are its own, and
    /// may be committed, but not longer than the rebalance timeout.
    Revoked {
        /// What has to be given up.
        partitions: BTreeSet<TopicPartition>,
    },
    /// The group has taken this member for dead, or was told to remove it: these may be another's already. It joins anew
    /// with the next call of [`Membership::next`].
    Lost {
        /// What it no longer has.
        partitions: BTreeSet<TopicPartition>,
    },
}

/// Why a group does without a subscriber, or does not take its commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Its commit does not count, or not any more.
    #[error("group {group} is being rebalanced: what the next assignment still holds can be committed then")]
    Rebalancing {
        /// The group.
        group: Arc<str>,
    },
    /// The group's other members share out partitions in a way that the broker does not know.
    #[error(
        "the members of group {group} agree on none of cooperative-sticky, range and roundrobin: \
         give its Kafka clients one of these as partition.assignment.strategy, or take another group"
    )]
    Incompatible {
        /// The group.
        group: Arc<str>,
    },
    /// There is no room for more.
    #[error("group {group} takes no more members: end some, or take another group")]
    Full {
        /// The group.
        group: Arc<str>,
    },
    /// The group's name, the topics or the timeouts are out of bounds.
    #[error("group {group} was refused: {reason}")]
    Invalid {
        /// The group.
        group: Arc<str>,
        /// What is wrong, and what to change.
        reason: &'static str,
    },
    /// The broker stops.
    #[error("the broker is stopping: subscribe again")]
    Stopping,
}

/// A place in a group. Dropped, it leaves the group at once.
pub struct Membership {
    coordinator: Arc<Coordinator>,
    subscription: Subscription,
    /// Its id, which it has before the group knows it.
    id: Arc<str>,
    /// Whether the group has let it in under that id.
    is_member: bool,
    /// The generation that it has joined.
    generation: i32,
    /// The generation in which it got what it holds.
    held_since: i32,
    cooperative: bool,
    held: BTreeSet<TopicPartition>,
    /// What it holds and has lost, and its caller does not know of yet.
    revoked: BTreeSet<TopicPartition>,
    /// What it holds and its caller is to release.
    releasing: BTreeSet<TopicPartition>,
    /// A change that came up during a commit.
    untold: Option<Change>,
    step: Step,
}

/// What it does next, or is about.
enum Step {
    Rejoin,
    Round(Pin<Box<dyn Future<Output = Result<Round, Refused>> + Send>>),
    Settled(Settled),
}

/// A round of the rebalance protocol that has gone well.
struct Round {
    generation: i32,
    cooperative: bool,
    assigned: BTreeSet<TopicPartition>,
    settled: Settled,
}

/// Which request of a round was refused.
enum Refused {
    Join(ResponseError),
    /// Of a generation that it has joined.
    Sync(i32, ResponseError),
}

/// What it listens to between rounds.
struct Settled {
    /// Rung when the group's state changes.
    moved: watch::Receiver<()>,
    heartbeat: Instant,
    /// Where it leads.
    lead: Option<Lead>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership({} in {} generation {})", self.id, self.subscription.group, self.generation)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // A request that waits takes itself back.
        self.step = Step::Rejoin;
        // Who is in no group leaves none.
        let _ = self.coordinator.leave(&self.subscription.group, &[self.identity()]);
    }
}

impl Membership {
    /// Makes a subscriber, which joins with the first call of [`next`](Self::next).
    pub fn new(coordinator: Arc<Coordinator>, subscription: Subscription) -> Membership {
        Membership {
            coordinator,
            subscription,
            id: "".into(),
            is_member: false,
            generation: NO_GENERATION,
            held_since: NO_GENERATION,
            cooperative: true,
            held: BTreeSet::new(),
            revoked: BTreeSet::new(),
            releasing: BTreeSet::new(),
            untold: None,
            step: Step::Rejoin,
        }
    }

    /// What it has, also while it is asked to release some of it.
    pub fn held(&self) -> &BTreeSet<TopicPartition> {
        &self.held
    }

    /// Waits until its part changes. It has to be polled all the time, also between [`Change::Revoked`] and
    /// [`release`](Self::release), as it is what keeps the member alive. Cancel-safe.
    ///
    /// # Errors
    /// Why the group does without it. It is not a member then.
    pub async fn next(&mut self) -> Result<Change, GroupError> {
        loop {
            if let Some(change) = self.untold.take() {
                return Ok(change);
            }
            if !self.revoked.is_empty() {
                self.releasing = std::mem::take(&mut self.revoked);
                if let Step::Settled(settled) = &mut self.step {
                    // It leads anew when it has rejoined.
                    settled.lead = None;
                }
                return Ok(Change::Revoked { partitions: self.releasing.clone() });
            }
            let change = match &mut self.step {
                Step::Rejoin => {
                    self.step = self.round()?;
                    None
                }
                Step::Round(round) => {
                    let outcome = round.await;
                    self.step = Step::Rejoin;
                    self.conclude(outcome)?
                }
                Step::Settled(settled) => {
                    settled.wait(self.subscription.session_timeout).await;
                    let topics = self.coordinator.topics();
                    let outdated = settled.lead.as_mut().is_some_and(|lead| lead.is_outdated(topics));
                    self.hear_from_the_group(outdated)?
                }
            };
            if let Some(change) = change {
                return Ok(change);
            }
        }
    }

    /// Gives up what the last [`Change::Revoked`] named.
    pub fn release(&mut self) {
        if self.releasing.is_empty() {
            return;
        }
        for partition in std::mem::take(&mut self.releasing) {
            self.held.remove(&partition);
        }
        self.step = Step::Rejoin;
    }

    /// Commits offsets of partitions that it holds. What is answered with `Ok` is durable (I6). Where the group has just
    /// begun a generation, waits until its leader has shared out, as commits do not count before.
    ///
    /// # Errors
    /// [`GroupError::Rebalancing`] when it has lost its place, or what [`next`](Self::next) fails with, for all; the
    /// inner errors are those of single entries, in order. A partition that it does not hold is refused with
    /// [`ResponseError::RebalanceInProgress`].
    pub async fn commit(
        &mut self,
        entries: Vec<CommitEntry>,
    ) -> Result<Vec<Result<(), ResponseError>>, GroupError> {
        loop {
            let holds = |entry: &CommitEntry| {
                self.held.contains(&TopicPartition { topic: entry.topic.clone(), partition: entry.partition })
            };
            let held: Vec<bool> = entries.iter().map(holds).collect();
            let accepted: Vec<CommitEntry> = entries
                .iter()
                .zip(&held)
                .filter(|(_, held)| **held)
                .map(|(entry, _)| entry.clone())
                .collect();
            let group = &self.subscription.group;
            let committed = match accepted.is_empty() {
                true => Ok(Vec::new()),
                false => self.coordinator.commit(group, self.committer(), accepted).await,
            };
            match (committed, &mut self.step) {
                (Ok(answers), _) => {
                    let refused = Err(ResponseError::RebalanceInProgress);
                    let mut answers = answers.into_iter();
                    let answer = |held| if held { answers.next().unwrap_or(refused) } else { refused };
                    return Ok(held.into_iter().map(answer).collect());
                }
                (
                    Err(ResponseError::IllegalGeneration | ResponseError::RebalanceInProgress),
                    Step::Round(round),
                ) => {
                    let outcome = round.await;
                    self.step = Step::Rejoin;
                    self.untold = self.conclude(outcome)?;
                }
                (Err(error), _) => return Err(self.refusal(error)),
            }
        }
    }

    /// What the group has committed for a partition.
    pub fn committed(&self, partition: &TopicPartition) -> Option<Committed> {
        self.coordinator.committed(&self.subscription.group, &partition.topic, partition.partition)
    }

    // -- Steps ----------------------------------------------------------------------------------------------------------

    fn identity(&self) -> Identity<'_> {
        Identity { member_id: &self.id, instance_id: None }
    }

    fn committer(&self) -> Commit<'_> {
        Commit { who: self.identity(), generation: self.generation, knows_epochs: false }
    }

    /// A round of the protocol: from JoinGroup to the answer to SyncGroup.
    fn round(&mut self) -> Result<Step, GroupError> {
        let group = &self.subscription.group;
        let invalid = |reason| GroupError::Invalid { group: group.clone(), reason };
        if !self.subscription.topics.iter().all(|topic| is_topic_name(topic)) {
            return Err(invalid("no topic can have one of the names"));
        }
        if !self.is_member {
            let fresh = new_member_id(&self.subscription.client_id);
            self.id = fresh.ok_or(invalid("the system has no random numbers for a member's id"))?;
        }
        let mut owned = Parts::new();
        for TopicPartition { topic, partition } in &self.held {
            owned.entry(topic).or_default().push(*partition);
        }
        let topics = self.subscription.topics.iter().map(|topic| &**topic).collect();
        let own = consumer_protocol::Subscription { topics, owned, generation: self.held_since };
        let metadata = own.encode().ok_or(invalid(TOO_MUCH_MEMORY))?;
        let offer =
            |strategy: Strategy| Protocol { name: strategy.name().into(), metadata: metadata.clone() };
        let join = Join {
            kind: Kind::Virtual { keeps_partitions: !self.held.is_empty() },
            member_id: if self.is_member { self.id.clone() } else { "".into() },
            new_member_id: self.id.clone(),
            instance_id: None,
            client_id: self.subscription.client_id.clone(),
            client_host: self.subscription.client_host.clone(),
            session_timeout: self.subscription.session_timeout,
            rebalance_timeout: self.subscription.rebalance_timeout,
            protocol_type: PROTOCOL_TYPE.into(),
            protocols: Strategy::ALL.into_iter().map(offer).collect(),
            requires_known_id: false,
            can_skip_assignment: false,
        };
        let round = Round::play(self.coordinator.clone(), self.subscription.clone(), join);
        Ok(Step::Round(Box::pin(round)))
    }

    /// Takes up what a round has brought.
    fn conclude(&mut self, outcome: Result<Round, Refused>) -> Result<Option<Change>, GroupError> {
        match outcome {
            Ok(round) => {
                self.is_member = true;
                (self.generation, self.held_since) = (round.generation, round.generation);
                // The answer may have lain here for longer than the session timeout.
                let group = &self.subscription.group;
                match self.coordinator.heartbeat(group, self.identity(), self.generation) {
                    Ok(()) | Err(ResponseError::RebalanceInProgress) => {}
                    Err(error) => return self.is_refused(error),
                }
                self.cooperative = round.cooperative;
                let added: BTreeSet<_> = round.assigned.difference(&self.held).cloned().collect();
                self.revoked = self.held.difference(&round.assigned).cloned().collect();
                self.held.extend(added.iter().cloned());
                self.step = Step::Settled(round.settled);
                Ok(Some(Change::Assigned { added }))
            }
            // The protocol will not be a cooperative one.
            Err(Refused::Join(ResponseError::RebalanceInProgress)) => {
                self.give_up();
                Ok(None)
            }
            // The next rebalance has begun before this one was over.
            Err(Refused::Sync(generation, ResponseError::RebalanceInProgress)) => {
                self.is_member = true;
                self.generation = generation;
                Ok(None)
            }
            Err(Refused::Join(error) | Refused::Sync(_, error)) => self.is_refused(error),
        }
    }

    /// Sends a heartbeat, and takes up what the group says to it. `outdated`: what it has shared out as a leader is.
    fn hear_from_the_group(&mut self, outdated: bool) -> Result<Option<Change>, GroupError> {
        let rebalance =
            match self.coordinator.heartbeat(&self.subscription.group, self.identity(), self.generation) {
                Ok(()) => outdated,
                Err(ResponseError::RebalanceInProgress) => true,
                Err(error) => return self.is_refused(error),
            };
        // What is to be released is released first.
        if rebalance && self.releasing.is_empty() {
            match self.cooperative {
                true => self.step = Step::Rejoin,
                false => self.give_up(),
            }
        }
        Ok(None)
    }

    /// Has all that it holds revoked before it rejoins.
    fn give_up(&mut self) {
        self.revoked = self.held.clone();
        self.step = match self.held.is_empty() {
            true => Step::Rejoin,
            false => Step::Settled(Settled::new(&self.coordinator, &self.subscription)),
        };
    }

    /// A request was refused for good: it is no member, or no longer.
    fn is_refused(&mut self, error: ResponseError) -> Result<Option<Change>, GroupError> {
        // Whatever the group still has of it, it is not to wait for that.
        let _ = self.coordinator.leave(&self.subscription.group, &[self.identity()]);
        self.is_member = false;
        (self.generation, self.held_since) = (NO_GENERATION, NO_GENERATION);
        self.step = Step::Rejoin;
        self.revoked.clear();
        self.releasing.clear();
        let partitions = std::mem::take(&mut self.held);
        match self.refusal(error) {
            GroupError::Rebalancing { .. } if partitions.is_empty() => Ok(None),
            GroupError::Rebalancing { .. } => Ok(Some(Change::Lost { partitions })),
            error => Err(error),
        }
    }

    /// What an answer of the group means.
    fn refusal(&self, error: ResponseError) -> GroupError {
        let group = self.subscription.group.clone();
        match error {
            ResponseError::UnknownMemberId
            | ResponseError::IllegalGeneration
            | ResponseError::RebalanceInProgress => GroupError::Rebalancing { group },
            ResponseError::InconsistentGroupProtocol => GroupError::Incompatible { group },
            ResponseError::GroupMaxSizeReached | ResponseError::PolicyViolation => GroupError::Full { group },
            ResponseError::CoordinatorNotAvailable => GroupError::Stopping,
            ResponseError::InvalidGroupId => {
                GroupError::Invalid { group, reason: "its name must have 1 to 255 bytes" }
            }
            ResponseError::InvalidSessionTimeout => {
                GroupError::Invalid { group, reason: "the session timeout is not within the broker's bounds" }
            }
            _ => GroupError::Invalid { group, reason: TOO_MUCH_MEMORY },
        }
    }
}

impl Round {
    async fn play(
        coordinator: Arc<Coordinator>,
        subscription: Subscription,
        join: Join,
    ) -> Result<Round, Refused> {
        let group = &subscription.group;
        let joined = coordinator.join(group, join).await.map_err(|refused| Refused::Join(refused.error))?;
        // It listens from before it is settled, so that nothing is missed.
        let mut settled = Settled::new(&coordinator, &subscription);
        let mut assignments = Vec::new();
        if joined.leader == joined.member_id {
            let (lead, shares) =
                Lead::share_out(&joined, &coordinator, subscription.rebalance_timeout).await?;
            (settled.lead, assignments) = (Some(lead), shares);
        }
        let sync = Sync {
            member_id: joined.member_id,
            instance_id: None,
            generation: joined.generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        let synced = coordinator.sync(group, sync).await;
        let synced = synced.map_err(|error| Refused::Sync(joined.generation, error))?;
        Ok(Round {
            generation: joined.generation,
            cooperative: is_cooperative(&synced.protocol),
            assigned: assigned(&subscription, &synced.assignment, coordinator.topics()),
            settled,
        })
    }
}

/// The partitions that an assignment gives to a subscriber. It comes from whoever leads, so what makes no sense is left
/// out.
fn assigned(subscription: &Subscription, assignment: &[u8], topics: &Topics) -> BTreeSet<TopicPartition> {
    let parts = consumer_protocol::decode_assignment(assignment);
    let mut sensible = parts.is_some();
    let mut assigned = BTreeSet::new();
    for (topic, partitions) in parts.into_iter().flatten() {
        let topic = subscription.topics.get(topic);
        let count = topic.and_then(|topic| partition_count(topics, topic)).unwrap_or(0);
        for partition in partitions {
            match topic {
                Some(topic) if (0..count).contains(&partition) => {
                    assigned.insert(TopicPartition { topic: topic.clone(), partition });
                }
                _ => sensible = false,
            }
        }
    }
    if !sensible {
        let group = &*subscription.group;
        tracing::warn!(
            group,
            "the group's leader has given a subscriber what is not there or was not asked for"
        );
    }
    assigned
}

impl Settled {
    fn new(coordinator: &Coordinator, subscription: &Subscription) -> Settled {
        Settled {
            moved: coordinator.watch(&subscription.group),
            heartbeat: Instant::now() + subscription.session_timeout / HEARTBEATS_PER_SESSION,
            lead: None,
        }
    }

    /// Waits until there is a reason to ask the group how things are.
    async fn wait(&mut self, session_timeout: Duration) {
        let lead = async {
            match &mut self.lead {
                Some(lead) => lead.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error says that the group is gone, as the group itself will say.
            _ = self.moved.changed() => {}
            () = tokio::time::sleep_until(self.heartbeat) => {}
            () = lead => {}
        }
        self.heartbeat = Instant::now() + session_timeout / HEARTBEATS_PER_SESSION;
    }
}

fn partition_count(topics: &Topics, name: &str) -> Option<i32> {
    topics.by_name(name).and_then(|topic| i32::try_from(topic.partitions.len()).ok())
}
