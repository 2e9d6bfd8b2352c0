//! The coordinator's side of the consumer protocol: heartbeats, what the broker knows of topics, and views.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::sync::watch;

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

/// What matches a pattern among the topics of a version of the catalog, or perhaps later ones.
struct Found {
    pattern: Arc<str>,
    version: u64,
    topics: Vec<TopicId>,
}

/// How far a heartbeat has come.
enum Tried {
    Done(Beat),
    /// It has to be found what matches a pattern.
    Needs {
        pattern: Arc<str>,
        version: u64,
    },
}

impl Coordinator {
    /// ConsumerGroupHeartbeat.
    ///
    /// # Errors
    /// What Kafka answers.
    pub async fn consumer_heartbeat(&self, group: &str, beat: &Heartbeat) -> Result<Beat, Refused> {
        let refused = |message| move |error| Refused::new(error, message);
        check_group_id(group).map_err(refused("GroupId must have 1 to 255 bytes"))?;
        let who = identity(&beat.member_id, beat.instance_id.as_deref());
        check_member(who).map_err(refused("MemberId and InstanceId must have at most 255 bytes"))?;
        self.check_heartbeat(beat)?;
        let mut found = None;
        loop {
            let (pattern, version) = match self.try_heartbeat(group, beat, found.take())? {
                Tried::Done(answer) => return Ok(answer),
                Tried::Needs { pattern, version } => (pattern, version),
            };
            let topics = self.find(pattern.clone()).await.ok_or(Refused::new(
                ResponseError::InvalidRegularExpression,
                "SubscribedTopicRegex is not a regular expression of the syntax of RE2, or too large a one",
            ))?;
            found = Some(Found { pattern, version, topics });
        }
    }

    /// Gives the group a heartbeat, unless it first has to be found what matches the member's pattern.
    fn try_heartbeat(&self, group: &str, beat: &Heartbeat, found: Option<Found>) -> Result<Tried, Refused> {
        let mut groups = self.lock();
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
        }
        let is_new = beat.epoch == JOIN && !groups.by_id.contains_key(group);
        if is_new {
            let full = "there are as many groups as there may be";
            self.make_room_for(&mut groups, group).map_err(|error| Refused::new(error, full))?;
        }
        if let Some(found) = found.filter(|found| found.version == groups.catalog.version()) {
            groups.learn(found)?;
        }
        if let Some(pattern) = groups.unknown_pattern(group, beat) {
            return Ok(Tried::Needs { pattern, version: groups.catalog.version() });
        }
        if is_new {
            let new = consumer::Group::new(self.settings.consumer.clone(), now);
            groups.add(group, Group::Consumer(new));
        }
        let input =
            |group: &mut Group, catalog: &Catalog| group.heartbeat(now, &self.settings, catalog, beat);
        let message =
            "there is no such group, perhaps as the broker has been restarted: the member must join again";
        let answer = self.drive(&mut groups, group, input);
        answer.unwrap_or(Err(Refused::new(ResponseError::UnknownMemberId, message))).map(Tried::Done)
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

    /// The topics that match a pattern; `None` where it is none. Few at a time, and not where others wait: a pattern may
    /// take long over many topics.
    async fn find(&self, pattern: Arc<str>) -> Option<Vec<TopicId>> {
        let turn = self.finding.clone().acquire_owned().await.ok()?;
        let topics = self.topics.clone();
        let find = move || {
            let _turn = turn;
            Some(catalog::find(&catalog::pattern(&pattern)?, &topics))
        };
        tokio::task::spawn_blocking(find).await.ok()?
    }

    /// Takes a new picture of the topics, and shows it to the groups that share them out.
    async fn look_at_topics(&self) {
        self.lock().take_picture(&self.topics);
        loop {
            let (stale, version) = {
                let mut groups = self.lock();
                let used = groups.patterns();
                groups.catalog.retain(&used);
                let stale = used.into_iter().filter(|pattern| !groups.catalog.knows(pattern));
                (stale.collect::<Vec<_>>(), groups.catalog.version())
            };
            if stale.is_empty() {
                break;
            }
            for pattern in stale {
                let Some(topics) = self.find(pattern.clone()).await else { return };
                let mut groups = self.lock();
                if groups.catalog.version() != version {
                    break;
                }
                groups.catalog.add(pattern, topics);
            }
        }
        let ids: Vec<Arc<str>> = self.lock().by_id.keys().cloned().collect();
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

    /// The pattern that a heartbeat subscribes a member to, where it is not known what matches it.
    fn unknown_pattern(&self, group: &str, beat: &Heartbeat) -> Option<Arc<str>> {
        let pattern = beat.pattern.as_ref().filter(|pattern| !pattern.is_empty())?;
        let changes = match self.by_id.get(group).map(|entry| &entry.group) {
            Some(Group::Consumer(group)) => group.changes_pattern(&beat.member_id, pattern),
            _ => false,
        };
        let subscribes = beat.epoch == JOIN || beat.epoch > JOIN && changes;
        (subscribes && !self.catalog.knows(pattern)).then(|| pattern.clone())
    }

    /// Takes note of what matches a pattern, as far as there is room for it.
    fn learn(&mut self, found: Found) -> Result<(), Refused> {
        let is_full = |catalog: &Catalog| {
            let (patterns, matches) = catalog.pattern_counts();
            patterns >= MAX_PATTERNS || matches + found.topics.len() > MAX_MATCHES
        };
        if is_full(&self.catalog) {
            let used = self.patterns();
            self.catalog.retain(&used);
        }
        if is_full(&self.catalog) {
            let message = "the groups have subscribed to as many different patterns as there may be";
            return Err(Refused::new(ResponseError::InvalidRequest, message));
        }
        self.catalog.add(found.pattern, found.topics);
        Ok(())
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

/// The task that looks at the topics when there are others.
pub(super) async fn watch_topics(coordinator: Weak<Coordinator>, mut news: watch::Receiver<()>) {
    while news.changed().await.is_ok() {
        let Some(settle) = coordinator.upgrade().map(|coordinator| coordinator.options.topics_settle) else {
            return;
        };
        tokio::time::sleep(settle).await;
        news.mark_unchanged();
        let Some(coordinator) = coordinator.upgrade() else { return };
        coordinator.look_at_topics().await;
    }
}
