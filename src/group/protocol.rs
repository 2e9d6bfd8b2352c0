//! A group of either protocol, which becomes one of the other when its members ask for that.
//!
//! ```text
//!                     a member of the consumer protocol comes
//!   classic::Group ────────────────────────────────────────────► consumer::Group
//!        ▲                                                              │
//!        └──────────────────────────────────────────────────────────────┘
//!          only members of the classic protocol are left, or the first of one that is empty
//! ```

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::catalog::Catalog;
use super::consumer::{Beat, Heartbeat, JOIN, Refused};
use super::consumer_protocol::{self, PROTOCOL_TYPE};
use super::member::{Answer, Identity, Join, Sync, Token};
use super::{classic, consumer};
use crate::log::topics::TopicId;

/// Bounds and times that all groups share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Those of groups of the classic protocol.
    pub classic: Arc<classic::Settings>,
    /// Those of groups of the consumer protocol.
    pub consumer: Arc<consumer::Settings>,
}

/// A group.
#[derive(Debug)]
pub enum Group {
    /// Its members share out partitions among themselves.
    Classic(classic::Group),
    /// The broker shares them out.
    Consumer(consumer::Group),
}

/// What members may want to hear of before their next heartbeat, when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Of a classic group.
    Classic(classic::State),
    /// Of a consumer group.
    Consumer((i32, u64)),
}

impl Group {
    /// Which protocol it has, as Kafka names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Group::Classic(_) => "classic",
            Group::Consumer(_) => "consumer",
        }
    }

    /// Kafka's name of its state.
    pub fn state(&self) -> &'static str {
        match self {
            Group::Classic(group) => group.state().name(),
            Group::Consumer(group) => group.state().name(),
        }
    }

    /// What its members say that they are; empty where none ever joined.
    pub fn protocol_type(&self) -> Arc<str> {
        match self {
            Group::Classic(group) => group.protocol_type().clone(),
            Group::Consumer(_) => PROTOCOL_TYPE.into(),
        }
    }

    /// Changes when members should be told.
    pub fn news(&self) -> News {
        match self {
            Group::Classic(group) => News::Classic(group.state()),
            Group::Consumer(group) => News::Consumer(group.news()),
        }
    }

    /// How many members it has.
    pub fn member_count(&self) -> usize {
        match self {
            Group::Classic(group) => group.member_count(),
            Group::Consumer(group) => group.member_count(),
        }
    }

    /// Whether it has neither members nor anyone about to become one.
    pub fn is_unused(&self) -> bool {
        match self {
            Group::Classic(group) => group.is_unused(),
            Group::Consumer(group) => group.member_count() == 0,
        }
    }

    /// Whether it never had a member.
    pub fn is_new(&self) -> bool {
        match self {
            Group::Classic(group) => group.generation() == 0,
            Group::Consumer(group) => group.epoch() == 0,
        }
    }

    /// When it last became empty.
    pub fn empty_since(&self) -> Duration {
        match self {
            Group::Classic(group) => group.empty_since(),
            Group::Consumer(group) => group.empty_since(),
        }
    }

    /// Memory that its members take.
    pub fn size(&self) -> usize {
        match self {
            Group::Classic(group) => group.size(),
            Group::Consumer(group) => group.size(),
        }
    }

    /// The answers that have become due, each for another waiting request.
    pub fn take_answers(&mut self) -> Vec<(Token, Answer)> {
        match self {
            Group::Classic(group) => group.take_answers(),
            Group::Consumer(group) => group.take_answers(),
        }
    }

    /// When [`tick`](Self::tick) has something to do, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self {
            Group::Classic(group) => group.next_deadline(),
            Group::Consumer(group) => group.next_deadline(),
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Duration, settings: &Settings, catalog: &Catalog) {
        match self {
            Group::Classic(group) => group.tick(now),
            Group::Consumer(group) => group.tick(now, catalog),
        }
        self.settle(now, settings, catalog);
    }

    /// Forgets a waiting request whose connection has gone.
    pub fn cancel(&mut self, now: Duration, token: Token) {
        match self {
            Group::Classic(group) => group.cancel(now, token),
            // Nothing waits.
            Group::Consumer(_) => {}
        }
    }

    /// Ends the group. Whoever waits is told `error`.
    pub fn kill(&mut self, error: ResponseError) {
        match self {
            Group::Classic(group) => group.kill(error),
            Group::Consumer(_) => {}
        }
    }

    /// ConsumerGroupHeartbeat.
    ///
    /// # Errors
    /// What Kafka answers.
    pub fn heartbeat(
        &mut self,
        now: Duration,
        settings: &Settings,
        catalog: &Catalog,
        beat: &Heartbeat,
    ) -> Result<Beat, Refused> {
        if let Group::Classic(group) = self {
            if beat.epoch != JOIN {
                return Err(Refused::new(
                    ResponseError::UnknownMemberId,
                    "the group has no such member: it must join again",
                ));
            }
            if group.member_count() >= settings.consumer.max_size {
                return Err(Refused::new(
                    ResponseError::GroupMaxSizeReached,
                    "the group has as many members as it may have",
                ));
            }
            let upgraded = match group.member_count() == 0 {
                true => Some(consumer::Group::new(settings.consumer.clone(), now)),
                false => consumer::Group::upgrade(now, group, settings.consumer.clone(), catalog),
            };
            let not_one =
                "the group's members do not speak Kafka's protocol of consumers: take another group";
            *self = Group::Consumer(upgraded.ok_or(Refused::new(ResponseError::GroupIdNotFound, not_one))?);
        }
        let Group::Consumer(group) = self else {
            return Err(Refused::new(ResponseError::GroupIdNotFound, "this is not a consumer group"));
        };
        let answer = group.heartbeat(now, catalog, beat);
        self.settle(now, settings, catalog);
        answer
    }

    /// Takes note of topics that have come, gone or grown.
    pub fn topics_changed(&mut self, catalog: &Catalog) {
        if let Group::Consumer(group) = self {
            group.topics_changed(catalog);
        }
    }

    /// JoinGroup.
    pub fn join(&mut self, now: Duration, settings: &Settings, catalog: &Catalog, join: &Join, token: Token) {
        if let Group::Consumer(group) = self
            && group.member_count() == 0
        {
            *self = Group::Classic(classic::Group::new(settings.classic.clone(), now));
        }
        match self {
            Group::Classic(group) => group.join(now, join, token),
            Group::Consumer(group) => group.join(now, catalog, join, token),
        }
        self.settle(now, settings, catalog);
    }

    /// SyncGroup.
    pub fn sync(&mut self, now: Duration, catalog: &Catalog, sync: Sync, token: Token) {
        match self {
            Group::Classic(group) => group.sync(now, sync, token),
            Group::Consumer(group) => group.sync(now, catalog, &sync, token),
        }
    }

    /// Heartbeat.
    ///
    /// # Errors
    /// What Kafka answers.
    pub fn classic_heartbeat(
        &mut self,
        now: Duration,
        who: Identity<'_>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        match self {
            Group::Classic(group) => group.heartbeat(now, who, generation),
            Group::Consumer(group) => group.classic_heartbeat(now, who, generation),
        }
    }

    /// LeaveGroup.
    ///
    /// # Errors
    /// What Kafka answers for the whole request.
    pub fn leave(
        &mut self,
        now: Duration,
        settings: &Settings,
        catalog: &Catalog,
        members: &[Identity<'_>],
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        let answers = match self {
            Group::Classic(group) => group.leave(now, members),
            Group::Consumer(group) => Ok(group.leave(now, catalog, members)),
        };
        self.settle(now, settings, catalog);
        answers
    }

    /// Whether a commit of offsets of these partitions is in order.
    ///
    /// # Errors
    /// What Kafka answers to the whole commit.
    pub fn validate_commit(
        &mut self,
        now: Duration,
        who: Identity<'_>,
        generation: i32,
        partitions: &[(TopicId, i32)],
    ) -> Result<(), ResponseError> {
        match self {
            Group::Classic(group) => group.validate_commit(now, who, generation),
            Group::Consumer(group) => group.validate_commit(who, generation, partitions),
        }
    }

    /// Whether a member has subscribed to the topic.
    ///
    /// # Errors
    /// `NON_EMPTY_GROUP` where its members do not say what they have subscribed to.
    pub fn is_subscribed_to(&self, topic: &str, catalog: &Catalog) -> Result<bool, ResponseError> {
        let group = match self {
            Group::Consumer(group) => return Ok(group.is_subscribed_to(topic, catalog)),
            Group::Classic(group) if group.member_count() == 0 => return Ok(false),
            Group::Classic(group) => group,
        };
        if &**group.protocol_type() != PROTOCOL_TYPE {
            return Err(ResponseError::NonEmptyGroup);
        }
        for metadata in group.subscriptions() {
            let subscribed = consumer_protocol::topics(metadata).ok_or(ResponseError::NonEmptyGroup)?;
            if subscribed.contains(&topic) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Becomes a classic group where only members of that protocol are left.
    fn settle(&mut self, now: Duration, settings: &Settings, catalog: &Catalog) {
        if let Group::Consumer(group) = self
            && group.is_left_to_classic_members()
        {
            *self = Group::Classic(group.downgrade(now, settings.classic.clone(), catalog));
        }
    }
}
