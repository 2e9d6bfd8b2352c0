//! The coordinator's side of the consumer protocol: heartbeats, what the broker knows of topics, and views.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::{Coordinator, Groups, MAX_ID, check_group_id, check_member, identity};
use crate::group::catalog::{self, Catalog};
use crate::group::consumer;
use crate::group::consumer::{Beat, Description, Heartbeat, JOIN, Parts, Refused};
use crate::group::protocol::Group;
use crate::log::topics::TopicId;

/// Bytes of a pattern of topics' names.
const MAX_PATTERN: usize = 4096;
/// Different patterns that all groups together may subscribe to: each is held against every topic.
const MAX_PATTERNS: usize = 1_000;

/// A consumer group with the names of the topics that its members have.
#[derive(Debug, Clone)]
pub struct Described {
    /// The group.
    pub group: Description,
    /// The names of the topics in it that there are.
    pub names: Vec<(TopicId, Arc<str>)>,
}

impl Coordinator {
    /// ConsumerGroupHeartbeat.
    ///
    /// # Errors
    /// What Kafka answers.
    pub fn consumer_heartbeat(&self, group: &str, beat: &Heartbeat) -> Result<Beat, Refused> {
        let refused = |error| Refused::new(error, "");
        check_group_id(group).map_err(refused)?;
        check_member(identity(&beat.member_id, beat.instance_id.as_deref())).map_err(refused)?;
        self.check_heartbeat(beat)?;
        let mut groups = self.learn(beat.pattern.as_ref())?;
        if groups.closed {
            return Err(refused(ResponseError::CoordinatorNotAvailable));
        }
        let now = self.now();
        if beat.epoch == JOIN || beat.is_subscribing() {
            if groups.bytes.saturating_add(beat.size()) > self.options.max_bytes {
                tracing::warn!(
                    group,
                    "the members of all groups together have reached their limit on memory"
                );
                let message = "the members of all groups together have reached the broker's limit on memory";
                return Err(Refused::new(ResponseError::GroupMaxSizeReached, message));
            }
            if beat.epoch == JOIN && !groups.by_id.contains_key(group) {
                let full = "there are as many groups as there may be";
                self.make_room_for(&mut groups, group).map_err(|error| Refused::new(error, full))?;
                let new = consumer::Group::new(self.settings.consumer.clone(), now);
                groups.add(group, Group::Consumer(new));
            }
        }
        let input =
            |group: &mut Group, catalog: &Catalog| group.heartbeat(now, &self.settings, catalog, beat);
        let message =
            "there is no such group, perhaps as the broker has been restarted: the member must join again";
        self.drive(&mut groups, group, input)
            .unwrap_or(Err(Refused::new(ResponseError::UnknownMemberId, message)))
    }

    /// How often members are to send heartbeats.
    pub fn heartbeat_interval(&self) -> Duration {
        self.options.consumer_heartbeat_interval
    }

    /// Whether what a heartbeat brings is within bounds.
    fn check_heartbeat(&self, beat: &Heartbeat) -> Result<(), Refused> {
        let long = |text: &Option<Arc<str>>, most: usize| text.as_ref().is_some_and(|text| text.len() > most);
        if beat.size() > self.options.max_member_bytes
            || long(&beat.rack_id, MAX_ID)
            || long(&beat.pattern, MAX_PATTERN)
        {
            let message = "the subscription is too large: subscribe to fewer topics, or by a shorter pattern";
            return Err(Refused::new(ResponseError::InvalidRequest, message));
        }
        Ok(())
    }

    /// Sees to it that it is known what matches a pattern, which is found out without the lock that it then gives.
    fn learn(&self, pattern: Option<&Arc<str>>) -> Result<MutexGuard<'_, Groups>, Refused> {
        let groups = self.lock();
        let Some(pattern) = pattern.filter(|text| !text.is_empty() && !groups.catalog.knows(text)) else {
            return Ok(groups);
        };
        drop(groups);
        let compiled = catalog::pattern(pattern).ok_or(Refused::new(
            ResponseError::InvalidRegularExpression,
            "SubscribedTopicRegex is not a regular expression of the syntax of RE2, or too large a one",
        ))?;
        let names = catalog::find(&compiled, &self.topics);
        let mut groups = self.lock();
        if groups.catalog.pattern_count() >= MAX_PATTERNS {
            let used = groups.patterns();
            groups.catalog.retain(&used);
        }
        if groups.catalog.pattern_count() >= MAX_PATTERNS {
            let message = "the groups have subscribed to as many different patterns as there may be";
            return Err(Refused::new(ResponseError::InvalidRequest, message));
        }
        groups.catalog.add(pattern.clone(), Arc::new(names));
        Ok(groups)
    }

    /// Takes a new picture of the topics, and shows it to the groups that share them out.
    pub(super) async fn look_at_topics(&self) {
        let patterns = self.lock().patterns();
        let topics = self.topics.clone();
        let look = move || {
            let mut catalog = Catalog::new(&topics);
            for pattern in patterns {
                let compiled = catalog::pattern(&pattern);
                let names = compiled.map(|compiled| catalog::find(&compiled, &topics)).unwrap_or_default();
                catalog.add(pattern, Arc::new(names));
            }
            catalog
        };
        // Many patterns and topics take a while.
        let Ok(mut catalog) = tokio::task::spawn_blocking(look).await else { return };
        let mut groups = self.lock();
        let before = std::mem::take(&mut groups.catalog);
        catalog.take_over(before, &groups.patterns());
        groups.catalog = catalog;
        let ids: Vec<Arc<str>> = groups.by_id.keys().cloned().collect();
        for id in ids {
            self.drive(&mut groups, &id, |group, catalog| group.topics_changed(catalog));
        }
    }

    /// Whether offsets may be read for a member that names itself.
    ///
    /// # Errors
    /// What Kafka answers for the group.
    pub fn validate_fetch(&self, group: &str, member_id: &str, epoch: i32) -> Result<(), ResponseError> {
        match self.lock().by_id.get(group).map(|entry| &entry.group) {
            Some(Group::Consumer(group)) => group.validate_fetch(member_id, epoch),
            _ => Ok(()),
        }
    }

    /// A consumer group as ConsumerGroupDescribe shows it; `None` where there is none.
    pub fn describe_consumers(&self, group: &str) -> Option<Described> {
        let groups = self.lock();
        let Some(Group::Consumer(group)) = groups.by_id.get(group).map(|entry| &entry.group) else {
            return None;
        };
        let group = group.describe();
        let parts = group.members.iter().flat_map(|member| [&member.assignment, &member.target]);
        let ids: BTreeSet<TopicId> = parts.flat_map(Parts::keys).copied().collect();
        let name = |id: TopicId| Some((id, groups.catalog.name(id)?.clone()));
        let names = ids.into_iter().filter_map(name).collect();
        Some(Described { group, names })
    }
}

impl Groups {
    /// The patterns that members have subscribed to.
    fn patterns(&self) -> BTreeSet<Arc<str>> {
        let consumers = self.by_id.values().filter_map(|entry| match &entry.group {
            Group::Consumer(group) => Some(group),
            Group::Classic(_) => None,
        });
        consumers.flat_map(|group| group.patterns().cloned()).collect()
    }
}
