//! Committed offsets: OffsetCommit, OffsetFetch and OffsetDelete, in every state of a group.

use std::sync::Arc;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    ApiKey, OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, TopicName,
};

use crate::groups::{A, B, Story, Who, group};
use crate::pair::{Court, Names};
use crate::seed::{text, topic};

const C: Who = Who { name: "committer", instance: None };
const STATIC: Who = Who { name: "static committer", instance: Some("committing") };
const NOBODY: Who = Who { name: "nobody", instance: None };

pub async fn judge(court: &Arc<Court>) {
    for version in court.versions(ApiKey::OffsetCommit) {
        // From 10 topics go by their ids.
        let mut story = Story::new(court, version, "commits");
        from_outside(&mut story).await;
        from_members(&mut story).await;
        fetched(&mut story).await;
    }
    for version in court.versions(ApiKey::OffsetFetch) {
        let mut story = Story::new(court, version, "fetches");
        from_outside(&mut story).await;
        fetched(&mut story).await;
    }
    deleted(&mut Story::new(court, 5, "deletes")).await;
}

type At<'a> = (&'a str, i32, i64, Option<&'a str>);

impl Story {
    async fn commits(&mut self, situation: &str, who: Option<Who>, generation: i32, offsets: &[At<'_>]) {
        let version = self.version(ApiKey::OffsetCommit);
        let group = group(&self.group);
        let member = who.map(|who| self.name(who));
        let request = |names: &Names| {
            let mut topics: Vec<OffsetCommitRequestTopic> = Vec::new();
            for (name, partition, offset, metadata) in offsets {
                let mut partition = OffsetCommitRequestPartition::default()
                    .with_partition_index(*partition)
                    .with_committed_offset(*offset)
                    .with_committed_metadata(metadata.map(text));
                if version >= 6 {
                    partition.committed_leader_epoch = 0;
                }
                match topics.iter_mut().find(|known| known.name.as_str() == *name) {
                    Some(known) => known.partitions.push(partition),
                    None => topics.push(
                        OffsetCommitRequestTopic::default()
                            .with_name(topic(name))
                            .with_partitions(vec![partition]),
                    ),
                }
            }
            let mut request = OffsetCommitRequest::default()
                .with_group_id(group.clone())
                .with_generation_id_or_member_epoch(generation)
                .with_member_id(member.as_ref().map_or_else(|| text(""), |member| names.get(member)))
                .with_topics(topics);
            if version >= 7 {
                request.group_instance_id = who.and_then(|who| who.instance).map(text);
            }
            request
        };
        self.pair.call(situation, version, request).await;
    }

    /// What is committed for these topics; `None` asks for all.
    async fn asks(&mut self, situation: &str, topics: Option<&[(&str, &[i32])]>) {
        let version = self.version(ApiKey::OffsetFetch);
        let request = |_: &Names| offsets_of(version, &self.group, topics);
        self.pair.call(situation, version, request).await;
    }

    async fn forgets(&mut self, situation: &str, name: &str, partitions: &[i32]) {
        let partition = |index: &i32| OffsetDeleteRequestPartition::default().with_partition_index(*index);
        let of = OffsetDeleteRequestTopic::default()
            .with_name(topic(name))
            .with_partitions(partitions.iter().map(partition).collect());
        let request = OffsetDeleteRequest::default().with_group_id(group(&self.group)).with_topics(vec![of]);
        self.pair.call(situation, 0, |_| request.clone()).await;
    }
}

fn offsets_of(version: i16, name: &str, topics: Option<&[(&str, &[i32])]>) -> OffsetFetchRequest {
    let of = |(name, partitions): &(&str, &[i32])| (topic(name), partitions.to_vec());
    let topics: Option<Vec<(TopicName, Vec<i32>)>> = topics.map(|topics| topics.iter().map(of).collect());
    if version >= 8 {
        let of = |(name, partitions): (TopicName, Vec<i32>)| {
            OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(partitions)
        };
        let topics = topics.map(|topics| topics.into_iter().map(of).collect());
        let wanted = OffsetFetchRequestGroup::default().with_group_id(group(name)).with_topics(topics);
        return OffsetFetchRequest::default().with_groups(vec![wanted]);
    }
    let of = |(name, partitions): (TopicName, Vec<i32>)| {
        OffsetFetchRequestTopic::default().with_name(name).with_partition_indexes(partitions)
    };
    let topics = topics.map(|topics| topics.into_iter().map(of).collect());
    OffsetFetchRequest::default().with_group_id(group(name)).with_topics(topics)
}

/// Commits of clients that are members of nothing.
async fn from_outside(story: &mut Story) {
    story.asks("offsets of an unknown group", Some(&[("seed", &[0, 1])])).await;
    story.commits("a member of an unknown group", Some(NOBODY), 1, &[("seed", 0, 1, None)]).await;
    story.commits("a generation of an unknown group", None, 3, &[("seed", 0, 1, None)]).await;
    story.commits("nothing", None, -1, &[]).await;
    story.commits("from outside", None, -1, &[("seed", 0, 5, Some("noted")), ("seed", 1, 0, None)]).await;
    story.commits("a lower offset", None, -1, &[("seed", 0, 2, Some(""))]).await;
    story.commits("beyond the end", None, -1, &[("seed", 1, 1_000_000, Some("far"))]).await;
    let mut negative = story.other();
    negative.group.push_str("-negative");
    negative.commits("a negative offset", None, -1, &[("seed", 2, -1, None)]).await;
    let wrong = [("unknown", 0, 1, None), ("seed", 9, 1, None), ("seed", -1, 1, None), ("empty", 0, 4, None)];
    story.commits("unknown topics and partitions", None, -1, &wrong).await;
    let long = "x".repeat(4_096);
    story.commits("the longest note", None, -1, &[("seed", 0, 3, Some(&long))]).await;
    let longer = "x".repeat(4_097);
    story
        .commits("a note that is too long", None, -1, &[("seed", 0, 4, Some(&longer)), ("empty", 1, 4, None)])
        .await;
    story.commits("a member of an empty group", Some(NOBODY), -1, &[("seed", 0, 1, None)]).await;
    story.commits("a generation of an empty group", None, 0, &[("seed", 0, 1, None)]).await;
}

/// Commits of members, right and wrong, in each state.
async fn from_members(story: &mut Story) {
    let at: &[At<'_>] = &[("seed", 0, 7, Some("member"))];
    story.enters(C, &["range"]).await;
    story.commits("before the sync", Some(C), 1, at).await;
    story.commits("before the sync, of a former generation", Some(C), 0, at).await;
    story.commits("before the sync, of nobody", Some(NOBODY), 1, at).await;
    story.commits("before the sync, from outside", None, -1, at).await;
    story.syncs("the leader's sync", C, 1, &[(C, b"all")]).await;
    story.commits("stable", Some(C), 1, at).await;
    story.commits("stable, of a former generation", Some(C), 0, at).await;
    story.commits("stable, of a later generation", Some(C), 2, at).await;
    story.commits("stable, of no generation", Some(C), -1, at).await;
    story.commits("stable, of nobody", Some(NOBODY), 1, at).await;
    story.commits("stable, from outside", None, -1, at).await;
    story.asks("stable", Some(&[("seed", &[0])])).await;

    let mut second = story.other();
    let version = second.pair.court.versions(ApiKey::JoinGroup);
    second.version = *version.end();
    let knocked = second.knocks("a second joins without an id", B, &["range"]).await;
    drop(knocked);
    let entering = second.pair.send("a second joins", second.version, second.join(B, true, &["range"])).await;
    second.pair.waits(&entering).await;
    story.commits("preparing", Some(C), 1, at).await;
    story.commits("preparing, of a former generation", Some(C), 0, at).await;
    story.commits("preparing, of who joins", Some(B), 1, at).await;
    story.joins("the leader joins again", C, &["range"]).await;
    second.pair.receive(entering, |_| {}).await;
    story.commits("completing", Some(C), 2, at).await;
    story.commits("completing, of a former generation", Some(C), 1, at).await;
    story.leaves("the leader leaves", &[C]).await;
    second.leaves("the second leaves", &[B]).await;
    story.commits("of who has left", Some(C), 2, at).await;
    story.commits("from outside when all have left", None, -1, at).await;

    if story.version(ApiKey::OffsetCommit) >= 7 {
        story.version = story.version.max(5);
        story.enters(STATIC, &["range"]).await;
        story.syncs("the static leader's sync", STATIC, 4, &[(STATIC, b"all")]).await;
        for generation in [3, 4, 5] {
            let situation = format!("of a static member in generation {generation}");
            story.commits(&situation, Some(STATIC), generation, at).await;
        }
        let wrong = Who { name: "nobody", ..STATIC };
        story.commits("of a static member with a wrong id", Some(wrong), 4, at).await;
        let unknown = Who { instance: Some("unknown"), ..STATIC };
        story.commits("of an unknown instance", Some(unknown), 4, at).await;
        story.leaves("the static leader leaves", &[STATIC]).await;
    }
}

async fn fetched(story: &mut Story) {
    story.asks("committed offsets", Some(&[("seed", &[0, 1, 2, 3, 9, -1]), ("empty", &[0, 1])])).await;
    story.asks("offsets of an unknown topic", Some(&[("unknown", &[0, 1])])).await;
    story.asks("offsets of no partition", Some(&[("seed", &[])])).await;
    story.asks("offsets of no topic", Some(&[])).await;
    let version = story.version(ApiKey::OffsetFetch);
    if version >= 2 {
        story.asks("all offsets", None).await;
    }
    if version >= 7 {
        let stable = |_: &Names| offsets_of(version, &story.group, None).with_require_stable(true);
        story.pair.call("stable offsets", version, stable).await;
    }
    let nowhere = |_: &Names| offsets_of(version, "", Some(&[("seed", &[0])]));
    story.pair.call("offsets of no group", version, nowhere).await;
    if version >= 8 {
        let several = |_: &Names| {
            let mut request = offsets_of(version, &story.group, None);
            request.groups.extend(offsets_of(version, "nowhere", Some(&[("seed", &[0])])).groups);
            request.groups.extend(offsets_of(version, &story.group, Some(&[("seed", &[1])])).groups);
            request
        };
        story.pair.call("offsets of several groups", version, several).await;
    }
    if version >= 9 {
        for (situation, member, epoch) in
            [("for a member of an older kind", Some("nobody"), 1), ("for nobody in particular", None, -1)]
        {
            let request = |_: &Names| {
                let mut request = offsets_of(version, &story.group, None);
                request.groups[0].member_id = member.map(text);
                request.groups[0].member_epoch = epoch;
                request
            };
            story.pair.call(situation, version, request).await;
        }
    }
}

async fn deleted(story: &mut Story) {
    story.forgets("of an unknown group", "seed", &[0]).await;
    let at: &[At<'_>] = &[("seed", 0, 7, None), ("seed", 1, 1, None), ("empty", 0, 2, None)];
    story.commits("before they are deleted", None, -1, at).await;
    story.forgets("of an empty group", "empty", &[0, 1, 9]).await;
    story.forgets("of an unknown topic", "unknown", &[0]).await;
    story.enters(A, &["range"]).await;
    story.syncs("the leader's sync", A, 1, &[(A, b"all")]).await;
    story.forgets("of a topic that is subscribed", "seed", &[0]).await;
    story.forgets("of a topic that is not", "empty", &[0]).await;
    story.leaves("the leader leaves", &[A]).await;
    story.forgets("when all have left", "seed", &[0]).await;
    story.asks("what is left", None).await;
    story.forgets("of no group", "seed", &[]).await;
}
