//! The coordinator's side of committed offsets: who may commit what, and how far groups are behind.

use std::collections::HashMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;

use super::{Coordinator, Entry, check_group_id, unix_ms};
use crate::group::member::Identity;
use crate::group::protocol::Group;
use crate::log::topics::Topic;
use crate::state::{Committed, OffsetEntry};

/// Who commits offsets.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The member, if it is one.
    pub who: Identity<'a>,
    /// The generation or epoch that it is in, or -1.
    pub generation: i32,
    /// Whether the request has errors that speak of epochs (OffsetCommit from version 9 on).
    pub knows_epochs: bool,
}

/// An offset to commit.
#[derive(Debug, Clone)]
pub struct CommitEntry {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number in the topic.
    pub partition: i32,
    /// The next record that the group wants.
    pub offset: i64,
    /// Leader epoch of the last record consumed, or -1.
    pub leader_epoch: i32,
    /// Whatever the consumer wants to remember with it.
    pub metadata: Arc<str>,
}

/// How far a group is behind in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLag {
    /// The group.
    pub group: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number in the topic.
    pub partition: i32,
    /// The offset that it has committed.
    pub committed: i64,
    /// The end of the partition.
    pub high_watermark: i64,
    /// Records between the two.
    pub lag: i64,
}

impl Coordinator {
    /// OffsetCommit. What is answered with `Ok` is durable (I6).
    ///
    /// # Errors
    /// What Kafka answers for the whole request; the inner errors are those of single entries, in order.
    pub async fn commit(
        &self,
        group: &str,
        by: Commit<'_>,
        entries: Vec<CommitEntry>,
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        let Commit { who, generation, knows_epochs } = by;
        check_group_id(group)?;
        // The permit comes before the check of the generation, so that commits are written in the order in which they
        // were found to be in order: one of an old generation never overwrites one of a newer.
        let permit = self.offsets.permit().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let commit_time = unix_ms();
        let mut answers = Vec::with_capacity(entries.len());
        let mut accepted = Vec::with_capacity(entries.len());
        let mut partitions = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.check_commit(group, &entry) {
                Ok(topic) => {
                    partitions.push((topic.id, entry.partition));
                    accepted.push(OffsetEntry {
                        topic: entry.topic,
                        partition: entry.partition,
                        committed: Committed {
                            offset: entry.offset,
                            leader_epoch: entry.leader_epoch,
                            metadata: entry.metadata,
                            commit_time,
                            topic_id: Some(topic.id),
                        },
                    });
                    answers.push(Ok(()));
                }
                Err(error) => answers.push(Err(error)),
            }
        }
        let commits = accepted.len() as u64;
        let write = {
            let mut groups = self.lock();
            let now = self.now();
            if groups.closed {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            match groups.by_id.get_mut(group) {
                Some(Entry { group: Group::Consumer(group), .. })
                    if !knows_epochs && group.has(who.member_id) =>
                {
                    return Err(ResponseError::UnsupportedVersion);
                }
                Some(entry) => entry.group.validate_commit(now, who, generation, &partitions)?,
                None if generation >= 0 && (knows_epochs || self.offsets.has_group(group)) => {
                    return Err(ResponseError::UnknownMemberId);
                }
                None if generation >= 0 => return Err(ResponseError::IllegalGeneration),
                None => {}
            }
            if accepted.is_empty() {
                return Ok(answers);
            }
            if !self.offsets.has_group(group) && self.offsets.group_count() >= self.options.max_groups {
                tracing::warn!(group, "a commit was refused: there are as many groups as there may be");
                return Err(ResponseError::PolicyViolation);
            }
            permit.commit(group, generation >= 0, accepted)
        };
        match write.await {
            Ok(()) => metrics::counter!("millrace_group_commits_total").increment(commits),
            // Logged where it happened. Clients try again.
            Err(_) => {
                for answer in &mut answers {
                    *answer = answer.and(Err(ResponseError::CoordinatorNotAvailable));
                }
            }
        }
        Ok(answers)
    }

    fn check_commit(&self, group: &str, entry: &CommitEntry) -> Result<Arc<Topic>, ResponseError> {
        let topic = self.topics.by_name(&entry.topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        if !usize::try_from(entry.partition).is_ok_and(|partition| partition < topic.partitions.len()) {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        if entry.metadata.len() > self.options.max_offset_metadata {
            return Err(ResponseError::OffsetMetadataTooLarge);
        }
        if entry.offset < 0 {
            return Err(ResponseError::InvalidRequest);
        }
        if !self.offsets.has_room_for(group, &entry.topic, entry.partition, entry.metadata.len()) {
            tracing::warn!(
                group,
                "a commit was refused: there are as many committed offsets as there may be"
            );
            return Err(ResponseError::PolicyViolation);
        }
        Ok(topic)
    }

    /// The committed offset of a group in a partition. One that was committed for an earlier topic of the same name
    /// means nothing for the one that there is now.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        self.offsets.committed(group, topic, partition).filter(|committed| self.is_current(topic, committed))
    }

    /// All committed offsets of a group, by topic and partition.
    pub fn all_committed(&self, group: &str) -> Vec<OffsetEntry> {
        let mut entries = self.offsets.all_committed(group);
        entries.retain(|entry| self.is_current(&entry.topic, &entry.committed));
        entries
    }

    fn is_current(&self, topic: &str, committed: &Committed) -> bool {
        match (self.topics.by_name(topic), committed.topic_id) {
            (Some(topic), Some(id)) => topic.id == id,
            _ => true,
        }
    }

    /// OffsetDelete: one answer for each partition, in order.
    ///
    /// # Errors
    /// What Kafka answers for the whole request.
    pub async fn delete_offsets(
        &self,
        group: &str,
        partitions: Vec<(Arc<str>, i32)>,
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        check_group_id(group)?;
        let permit = self.offsets.permit().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let (answers, write) = {
            let groups = self.lock();
            let entry = groups.by_id.get(group);
            if entry.is_none() && !self.offsets.has_group(group) {
                return Err(ResponseError::GroupIdNotFound);
            }
            let mut subscribed: HashMap<&str, bool> = HashMap::new();
            for (topic, _) in &partitions {
                if !subscribed.contains_key(&**topic) {
                    let is = entry.map(|entry| entry.group.is_subscribed_to(topic, &groups.catalog));
                    subscribed.insert(topic, is.transpose()?.unwrap_or(false));
                }
            }
            let answer = |topic: &str| match subscribed.get(topic) {
                Some(true) => Err(ResponseError::GroupSubscribedToTopic),
                _ => Ok(()),
            };
            let answers: Vec<_> = partitions.iter().map(|(topic, _)| answer(topic)).collect();
            let deletable =
                partitions.into_iter().zip(&answers).filter(|(_, a)| a.is_ok()).map(|(p, _)| p).collect();
            (answers, permit.delete_partitions(group, deletable))
        };
        write.await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        Ok(answers)
    }

    /// Forgets what any group has committed for a topic, because it has been deleted; not for one that has been made under
    /// its name since.
    ///
    /// # Errors
    /// Offsets cannot be written.
    pub async fn forget_topic(&self, topic: &Topic) -> Result<(), ResponseError> {
        for group in self.offsets.groups() {
            let mut committed = self.offsets.all_committed(&group);
            committed.retain(|entry| {
                *entry.topic == *topic.name && entry.committed.topic_id.is_none_or(|id| id == topic.id)
            });
            if committed.is_empty() {
                continue;
            }
            let partitions = committed.into_iter().map(|entry| (entry.topic, entry.partition)).collect();
            let permit = self.offsets.permit().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            let write = permit.delete_partitions(&group, partitions);
            write.await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        }
        Ok(())
    }

    /// DeleteGroups, for one group.
    ///
    /// # Errors
    /// What Kafka answers: above all `NON_EMPTY_GROUP`.
    pub async fn delete(&self, group: &str) -> Result<(), ResponseError> {
        let permit = self.offsets.permit().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let write = {
            let mut groups = self.lock();
            match groups.by_id.get(group) {
                Some(entry) if !entry.group.is_unused() => return Err(ResponseError::NonEmptyGroup),
                None if !self.offsets.has_group(group) => return Err(ResponseError::GroupIdNotFound),
                _ => {}
            }
            groups.forget(group);
            permit.delete_group(group)
        };
        write.await.map_err(|_| ResponseError::CoordinatorNotAvailable)
    }

    /// How far each group is behind, for every partition that it has committed an offset for.
    pub fn lags(&self) -> Vec<GroupLag> {
        let mut lags = Vec::new();
        let topics: HashMap<String, _> = self
            .topics
            .all()
            .into_iter()
            .map(|topic| (topic.name.clone(), (topic.log.snapshot(), topic)))
            .collect();
        for group in self.offsets.groups() {
            for OffsetEntry { topic: name, partition, committed } in self.offsets.all_committed(&group) {
                let Some((snapshot, topic)) = topics.get(&*name) else { continue };
                let number = usize::try_from(partition).ok().and_then(|index| topic.partitions.get(index));
                let Some(range) = number.and_then(|number| snapshot.range(*number)) else { continue };
                if committed.topic_id.is_some_and(|id| id != topic.id) {
                    continue;
                }
                lags.push(GroupLag {
                    group: group.clone(),
                    topic: name,
                    partition,
                    committed: committed.offset,
                    high_watermark: range.end.0,
                    lag: range.end.0.saturating_sub(committed.offset).max(0),
                });
            }
        }
        lags
    }
}
