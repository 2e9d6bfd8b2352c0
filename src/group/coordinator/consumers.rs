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
use crate::log::topics::{TopicId, Topics};

/// Bytes of a pattern of topics' names.
const MAX_PATTERN: usize = 4096;
/// Different patterns that all groups together may subscribe to: each is held against every topic.
const MAX_PATTERNS: usize = 1_000;
/// Topics that may match them together, until there are more topics.
const MAX_MATCHES: usize = 1_000_000;

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
        let refused = |message| move |error| Refused::new(error, message);
        check_group_id(group).map_err(refused("GroupId must have 1 to 255 bytes"))?;
        let who = identity(&beat.member_id, beat.instance_id.as_deref());
        check_member(who).map_err(refused("MemberId and InstanceId must have at most 255 bytes"))?;
        self.check_heartbeat(beat)?;
        let mut groups = self.learn(beat.pattern.as_ref())?;
        if groups.closed {
            return Err(Refused::new(ResponseError::CoordinatorNotAvailable, "the broker is stopping"));
        }
        let now = self.now();
        if beat.epoch == JOIN || beat.is_subscribing() {
            // It may want what has just been made. And a classic group that becomes a consumer group names its topics:
            // whatever it has of one that is not known would go to others.
            if groups.news.has_changed().unwrap_or(false) {
                groups.take_picture(&self.topics);
            }
            let bytes = beat.size().saturating_add(groups.upgrade_size(group, beat));
            if groups.bytes.saturating_add(bytes) > self.options.max_bytes {
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
        let found = catalog::find(&compiled, &self.topics);
        let mut groups = self.lock();
        let is_full = |catalog: &Catalog| {
            let (patterns, matches) = catalog.pattern_counts();
            patterns >= MAX_PATTERNS || matches + found.len() > MAX_MATCHES
        };
        if is_full(&groups.catalog) {
            let used = groups.patterns();
            groups.catalog.retain(&used);
        }
        if is_full(&groups.catalog) {
            let message = "the groups have subscribed to as many different patterns as there may be";
            return Err(Refused::new(ResponseError::InvalidRequest, message));
        }
        groups.catalog.add(pattern.clone(), found);
        Ok(groups)
    }

    /// Takes a new picture of the topics, and shows it to the groups that share them out.
    pub(super) async fn look_at_topics(&self) {
        let patterns = self.lock().patterns();
        let topics = self.topics.clone();
        let look = move || -> Vec<(Arc<str>, Vec<TopicId>)> {
            let found =
                |pattern: &str| catalog::pattern(pattern).map(|pattern| catalog::find(&pattern, &topics));
            patterns.into_iter().filter_map(|pattern| Some((pattern.clone(), found(&pattern)?))).collect()
        };
        // Many patterns and topics take a while.
        let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
        let ids: Vec<Arc<str>> = {
            let mut groups = self.lock();
            groups.take_picture(&self.topics);
            let used = groups.patterns();
            groups.catalog.retain(&used);
            for (pattern, topics) in found {
                groups.catalog.add(pattern, topics);
            }
            groups.by_id.keys().cloned().collect()
        };
        for id in ids {
            // Anew for each, so that nobody waits for all of them.
            self.drive(&mut self.lock(), &id, |group, catalog| group.topics_changed(catalog));
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
    /// Looks at the topics that there are now. The groups hear of them a little later.
    fn take_picture(&mut self, topics: &Topics) {
        self.news.mark_unchanged();
        self.catalog.renew(topics);
    }

    /// Memory that a heartbeat makes the group's members take besides where it makes a consumer group of it.
    fn upgrade_size(&self, group: &str, beat: &Heartbeat) -> usize {
        match self.by_id.get(group).map(|entry| &entry.group) {
            Some(Group::Classic(group)) if beat.epoch == JOIN => consumer::Group::upgrade_size(group),
            _ => 0,
        }
    }

    /// The patterns that members have subscribed to.
    fn patterns(&self) -> BTreeSet<Arc<str>> {
        let consumers = self.by_id.values().filter_map(|entry| match &entry.group {
            Group::Consumer(group) => Some(group),
            Group::Classic(_) => None,
        });
        consumers.flat_map(|group| group.patterns().cloned()).collect()
    }
}
