//! Consumer groups of KIP-848: joining, epochs, fencing, leaving, and what is told of them.

use std::sync::Arc;

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    ApiKey, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse, OffsetCommitRequest, OffsetFetchRequest,
};

use crate::groups::{A, B, Story, Who, group};
use crate::pair::{Court, Names};
use crate::seed::{text, topic};

const S: Who = Who { name: "static member", instance: Some("instance") };
const NOBODY: Who = Who { name: "nobody", instance: None };

/// Kafka's groups begin with epoch 2 and ours with 1; what counts is how they go on.
const BEFORE: &str = "epochs before the first";

pub async fn judge(court: &Arc<Court>) {
    let versions = court.versions(ApiKey::ConsumerGroupHeartbeat);
    if versions.is_empty() {
        return;
    }
    let mut first = Story::new(court, *versions.end(), "first");
    let joining = first.heartbeat(A, Said::joining());
    let joined =
        first.pair.call_tidied("the first of all", first.version, joining, |answer| answer.member_epoch = 0);
    if let Some(joined) = joined.await {
        court.learn_number(BEFORE, &joined.map(|answer| i64::from(answer.member_epoch) - 1));
    }
    for version in court.versions(ApiKey::ConsumerGroupHeartbeat) {
        alone(&mut Story::new(court, version, "consumers")).await;
        together(&mut Story::new(court, version, "shared")).await;
        unchanging(&mut Story::new(court, version, "lasting")).await;
        mistaken(&mut Story::new(court, version, "unlucky")).await;
    }
}

/// What a heartbeat says beside its group and member.
#[derive(Debug, Clone, Default)]
struct Said {
    epoch: i32,
    subscribed: Option<Vec<&'static str>>,
    regex: Option<&'static str>,
    owned: Option<Vec<(&'static str, Vec<i32>)>>,
    timeout: Option<i32>,
    assignor: Option<&'static str>,
    rack: Option<&'static str>,
}

impl Said {
    fn at(epoch: i32) -> Said {
        Said { epoch, ..Said::default() }
    }

    fn joining() -> Said {
        Said {
            epoch: 0,
            subscribed: Some(vec!["seed"]),
            owned: Some(vec![]),
            timeout: Some(60_000),
            ..Said::default()
        }
    }
}

impl Story {
    fn heartbeat(&self, who: Who, said: Said) -> impl Fn(&Names) -> ConsumerGroupHeartbeatRequest + use<> {
        let (version, group, member) = (self.version, group(&self.group), self.name(who));
        move |names| {
            let owned = |(name, partitions): &(&str, Vec<i32>)| {
                TopicPartitions::default()
                    .with_topic_id(names.topic_id(name))
                    .with_partitions(partitions.clone())
            };
            let mut request = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group.clone())
                .with_member_id(names.get(&member))
                .with_member_epoch(epoch(names, said.epoch))
                .with_instance_id(who.instance.map(text))
                .with_rack_id(said.rack.map(text))
                .with_rebalance_timeout_ms(said.timeout.unwrap_or(-1))
                .with_server_assignor(said.assignor.map(text))
                .with_topic_partitions(
                    said.owned.as_ref().map(|owned_now| owned_now.iter().map(owned).collect()),
                );
            request.subscribed_topic_names =
                said.subscribed.as_ref().map(|names| names.iter().map(|name| topic(name)).collect());
            if version >= 1 {
                request.subscribed_topic_regex = said.regex.map(text);
            }
            request
        }
    }

    async fn says(&mut self, situation: &str, who: Who, said: Said) {
        let request = self.heartbeat(who, said);
        self.pair.call_adjusted(situation, self.version, request, counted).await;
    }

    /// Joins: with an id of its own, or with one that it learns.
    async fn comes(&mut self, situation: &str, who: Who, said: Said) {
        let request = self.heartbeat(who, said);
        if self.version >= 1 {
            self.pair.call_adjusted(situation, self.version, request, counted).await;
        } else {
            let nameless = |names: &Names| request(names).with_member_id(text(""));
            let pending = self.pair.send(situation, self.version, nameless).await;
            let id = |answer: &ConsumerGroupHeartbeatResponse| {
                answer.member_id.as_ref().map(|id| id.to_string()).unwrap_or_default()
            };
            let uncounted = |answer: &mut ConsumerGroupHeartbeatResponse| answer.member_epoch = 0;
            self.pair.receive_named(pending, uncounted, &self.name(who), id).await;
        }
    }

    async fn told(&mut self, state: &str) {
        let versions = self.pair.court.versions(ApiKey::ConsumerGroupDescribe);
        let version = self.version.clamp(*versions.start(), *versions.end());
        let request = ConsumerGroupDescribeRequest::default()
            .with_group_ids(vec![group(&self.group)])
            .with_include_authorized_operations(true);
        let counted = |answer: &mut ConsumerGroupDescribeResponse, names: &Names| {
            let before: i32 = names.number(BEFORE);
            for group in answer.groups.iter_mut().filter(|group| group.group_epoch > 0) {
                group.group_epoch -= before;
                group.assignment_epoch -= before;
                for member in &mut group.members {
                    member.member_epoch = if member.member_epoch > 0 {
                        member.member_epoch - before
                    } else {
                        member.member_epoch
                    };
                    member.subscribed_topic_names.sort();
                }
            }
        };
        let situation = format!("told {state}");
        self.pair.call_adjusted(&situation, version, |_| request.clone(), counted).await;
        self.described(&format!("as a consumer group, {state}")).await;
    }

    async fn notes(&mut self, situation: &str, who: Who, at: i32) {
        for version in 8..=9 {
            let (group, member) = (group(&self.group), self.name(who));
            let request = |names: &Names| {
                let partition = OffsetCommitRequestPartition::default().with_committed_offset(3);
                let of = OffsetCommitRequestTopic::default()
                    .with_name(topic("seed"))
                    .with_partitions(vec![partition]);
                OffsetCommitRequest::default()
                    .with_group_id(group.clone())
                    .with_member_id(names.get(&member))
                    .with_generation_id_or_member_epoch(epoch(names, at))
                    .with_topics(vec![of])
            };
            self.pair.call(&format!("{situation}, committing"), version, request).await;
        }
        let (group, member) = (group(&self.group), self.name(who));
        let request = |names: &Names| {
            let wanted = OffsetFetchRequestGroup::default()
                .with_group_id(group.clone())
                .with_member_id(Some(names.get(&member)))
                .with_member_epoch(epoch(names, at))
                .with_topics(None);
            OffsetFetchRequest::default().with_groups(vec![wanted])
        };
        self.pair.call(&format!("{situation}, looking"), 9, request).await;
    }
}

/// What this side calls an epoch.
fn epoch(names: &Names, epoch: i32) -> i32 {
    if epoch > 0 { epoch + names.number::<i32>(BEFORE) } else { epoch }
}

/// Epochs as if the first were 1.
fn counted(answer: &mut ConsumerGroupHeartbeatResponse, names: &Names) {
    if answer.member_epoch > 0 {
        answer.member_epoch -= names.number::<i32>(BEFORE);
    }
}

fn all() -> Option<Vec<(&'static str, Vec<i32>)>> {
    Some(vec![("seed", vec![0, 1, 2, 3])])
}

async fn alone(story: &mut Story) {
    story.told("before it is there").await;
    story.says("an epoch in an unknown group", A, Said::at(1)).await;
    story.says("leaving an unknown group", A, Said::at(-1)).await;
    story.comes("joins", A, Said::joining()).await;
    story.told("with one").await;
    story.says("a heartbeat", A, Said { owned: all(), ..Said::at(1) }).await;
    story.says("a short heartbeat", A, Said::at(1)).await;
    story.told("stable").await;
    story.notes("in its epoch", A, 1).await;
    story.notes("in an older epoch", A, 0).await;
    story.notes("in a newer epoch", A, 2).await;
    story.notes("as nobody", NOBODY, 1).await;
    story.notes("from outside", Who { name: "", instance: None }, -1).await;
    story.says("a newer epoch", A, Said::at(5)).await;
    story.says("a heartbeat of nobody", NOBODY, Said::at(1)).await;
    story
        .says("another subscription", A, Said { subscribed: Some(vec!["empty", "times"]), ..Said::at(1) })
        .await;
    story.says("with the new epoch", A, Said { owned: Some(vec![]), ..Said::at(2) }).await;
    story.says("an epoch before the last", A, Said { owned: Some(vec![]), ..Said::at(0) }).await;
    story.told("after another subscription").await;
    story.says("an unknown topic", A, Said { subscribed: Some(vec!["unknown"]), ..Said::at(2) }).await;
    if story.version >= 1 {
        story
            .says(
                "an expression",
                A,
                Said { subscribed: Some(vec![]), regex: Some("se.d|tim.*"), ..Said::at(3) },
            )
            .await;
    }
    story.deleted("with a member it is deleted").await;
    story.says("leaves", A, Said::at(-1)).await;
    story.says("leaves twice", A, Said::at(-1)).await;
    story.told("empty").await;
    story.deleted("empty it is deleted").await;
    story.told("deleted").await;
}

async fn together(story: &mut Story) {
    // Who has which part depends on the ids of members, so both have the same.
    story.says("joins", A, Said { assignor: Some("range"), ..Said::joining() }).await;
    story.says("has all", A, Said { owned: all(), ..Said::at(1) }).await;
    story.says("a second joins", B, Said { assignor: Some("range"), ..Said::joining() }).await;
    story.told("while the first holds all").await;
    story.says("the first hears of it", A, Said::at(1)).await;
    story.says("the second waits", B, Said { owned: Some(vec![]), ..Said::at(2) }).await;
    story.told("while the first gives up").await;
    let half = Some(vec![("seed", vec![0, 1])]);
    story.says("the first has given up", A, Said { owned: half, ..Said::at(1) }).await;
    story.told("when the first has given up").await;
    story.says("the second is given them", B, Said { owned: Some(vec![]), ..Said::at(2) }).await;
    let half = Some(vec![("seed", vec![2, 3])]);
    story.says("the second has them", B, Said { owned: half, ..Said::at(2) }).await;
    story.told("with two").await;
    story.says("the first leaves", A, Said::at(-1)).await;
    story.says("the second is given the rest", B, Said::at(2)).await;
    story.says("the second has all", B, Said { owned: all(), ..Said::at(3) }).await;
    story.told("when the first has left").await;
    story.says("the second joins anew", B, Said { assignor: Some("uniform"), ..Said::joining() }).await;
    story.told("after that").await;
    story.says("the second leaves", B, Said::at(-1)).await;
}

async fn unchanging(story: &mut Story) {
    story.comes("joins", S, Said::joining()).await;
    story.says("has all", S, Said { owned: all(), ..Said::at(1) }).await;
    let other = Who { name: "the same instance", ..S };
    story.comes("the instance is taken", other, Said::joining()).await;
    story.says("goes away for a while", S, Said::at(-2)).await;
    story.told("without its static member").await;
    story.comes("a new process of the instance", other, Said::joining()).await;
    story.says("the former is fenced", S, Said { owned: all(), ..Said::at(1) }).await;
    story.says("the new has all", other, Said { owned: all(), ..Said::at(1) }).await;
    story.says("an unknown instance", Who { instance: Some("unknown"), ..other }, Said::at(1)).await;
    story.told("after a static member came back").await;
    story.says("leaves for good", other, Said::at(-1)).await;
    story.told("after its static member has left").await;
}

async fn mistaken(story: &mut Story) {
    let joining = Said::joining();
    for (situation, said) in [
        ("no subscription", Said { subscribed: None, ..joining.clone() }),
        ("an empty subscription", Said { subscribed: Some(vec![]), ..joining.clone() }),
        ("no timeout", Said { timeout: None, ..joining.clone() }),
        ("partitions at once", Said { owned: all(), ..joining.clone() }),
        ("no partitions at all", Said { owned: None, ..joining.clone() }),
        ("an unknown assignor", Said { assignor: Some("nonsense"), ..joining.clone() }),
        ("an empty rack", Said { rack: Some(""), ..joining.clone() }),
        ("an epoch below all", Said { epoch: -3, ..joining.clone() }),
        ("a malformed expression", Said { subscribed: None, regex: Some("["), ..joining.clone() }),
    ] {
        story.says(situation, A, said).await;
    }
    let version = story.version;
    let request = story.heartbeat(A, joining.clone());
    let nowhere = |names: &Names| request(names).with_group_id(group(""));
    story.pair.call("no group", version, nowhere).await;
    if version >= 1 {
        let nameless = |names: &Names| request(names).with_member_id(text(""));
        story.pair.call("no id", version, nameless).await;
    }
    let unnamed = Who { instance: Some(""), ..A };
    story.says("an empty instance", unnamed, joining.clone()).await;
    story.says("a static leave without an instance", A, Said::at(-2)).await;
    for (situation, ids) in [("no group told of", vec![""]), ("a group told of twice", vec!["gone", "gone"])]
    {
        let request =
            ConsumerGroupDescribeRequest::default().with_group_ids(ids.into_iter().map(group).collect());
        story.pair.call(situation, 0, |_| request.clone()).await;
    }
}
