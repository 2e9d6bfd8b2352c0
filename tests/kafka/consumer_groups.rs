//! Consumer groups (KIP-848) by their requests, and beside classic ones.

use std::time::{Duration, Instant};

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Encodable, StrBytes};
use kafka_protocol::{ResponseError, messages};
use uuid::Uuid;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;

use crate::groups::{Broker, PARTITIONS, balance, blocking, member, offsets, read};
use crate::support::{Client, PATIENCE};

fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group(name: &str) -> messages::GroupId {
    GroupId(s(name))
}

fn orders() -> TopicName {
    TopicName(s("orders"))
}

/// The id of the topic `orders`.
async fn topic_id(client: &mut Client) -> Uuid {
    client.call(12, &MetadataRequest::default().with_topics(None)).await.topics[0].topic_id
}

fn join(name: &str, member: &str) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(name))
        .with_member_id(s(member))
        .with_rebalance_timeout_ms(10_000)
        .with_subscribed_topic_names(Some(vec![orders()]))
        .with_topic_partitions(Some(vec![]))
}

fn stay(name: &str, member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(name))
        .with_member_id(s(member))
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1)
}

fn owning(
    request: ConsumerGroupHeartbeatRequest,
    topic: Uuid,
    partitions: &[i32],
) -> ConsumerGroupHeartbeatRequest {
    let owned = TopicPartitions::default().with_topic_id(topic).with_partitions(partitions.to_vec());
    request.with_topic_partitions(Some(vec![owned]))
}

/// What a member is told that it has; `None` where nothing is news.
fn told(answer: &ConsumerGroupHeartbeatResponse) -> (i16, i32, Option<Vec<i32>>) {
    let parts = answer.assignment.as_ref().map(|assignment| {
        assignment.topic_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect()
    });
    (answer.error_code, answer.member_epoch, parts)
}

async fn state(client: &mut Client, name: &str) -> consumer_group_describe_response::DescribedGroup {
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group(name)]);
    client.call(1, &request).await.groups.remove(0)
}

#[tokio::test]
async fn a_member_gets_a_partition_only_when_the_other_has_given_it_up() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let topic = topic_id(&mut client).await;
    for version in 0..=1i16 {
        let name = format!("v{version}");
        // The client names itself from version 1 on.
        let one = client.call(version, &join(&name, if version == 0 { "" } else { "one" })).await;
        let id = one.member_id.clone().unwrap();
        assert_eq!((told(&one), one.heartbeat_interval_ms), ((0, 1, Some(vec![0, 1, 2, 3])), 200));
        assert_eq!(told(&client.call(version, &stay(&name, &id, 1)).await), (0, 1, None));

        let two = client.call(version, &join(&name, "two")).await;
        assert_eq!(told(&two), (0, 2, Some(vec![])));
        // It is told what to keep, and is in its old epoch for as long as it has the others.
        assert_eq!(told(&client.call(version, &stay(&name, &id, 1)).await), (0, 1, Some(vec![0, 1])));
        assert_eq!(told(&client.call(version, &stay(&name, &id, 1)).await), (0, 1, None));
        assert_eq!(told(&client.call(version, &stay(&name, "two", 2)).await), (0, 2, None));
        let described = state(&mut client, &name).await;
        assert_eq!(
            (&*described.group_state, described.group_epoch, described.assignment_epoch),
            ("Reconciling", 2, 2)
        );
        let one = owning(stay(&name, &id, 1), topic, &[0, 1]);
        assert_eq!(told(&client.call(version, &one).await), (0, 2, None));
        assert_eq!(told(&client.call(version, &stay(&name, "two", 2)).await), (0, 2, Some(vec![2, 3])));

        let described = state(&mut client, &name).await;
        assert_eq!((&*described.group_state, &*described.assignor_name), ("Stable", "uniform"));
        let two = &described.members.iter().find(|member| *member.member_id == *"two").unwrap();
        assert_eq!((two.member_epoch, two.member_type, &*two.client_id), (2, 1, "test"));
        assert_eq!((&two.subscribed_topic_names, &two.assignment), (&vec![orders()], &two.target_assignment));
        assert_eq!(two.assignment.topic_partitions[0].topic_name, orders());

        // Who goes leaves its part to the other.
        assert_eq!(told(&client.call(version, &stay(&name, "two", -1)).await), (0, -1, None));
        let one = client.call(version, &stay(&name, &id, 2)).await;
        assert_eq!(told(&one), (0, 3, Some((0..PARTITIONS as i32).collect())));
    }
    broker.server.groups.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_in_a_heartbeat_is_said() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let topic = topic_id(&mut client).await;
    client.call(1, &join("g", "one")).await;
    let invalid = ResponseError::InvalidRequest;
    let fenced = ResponseError::FencedMemberEpoch;
    let cases = [
        (join("g", ""), invalid),
        (join("", "m"), invalid),
        (join("g", "m").with_rebalance_timeout_ms(-1), invalid),
        (join("g", "m").with_topic_partitions(None), invalid),
        (owning(join("g", "m"), topic, &[1]), invalid),
        (join("g", "m").with_subscribed_topic_names(None), invalid),
        (join("g", "m").with_instance_id(Some(s(""))), invalid),
        (join("g", "m").with_rack_id(Some(s(""))), invalid),
        (stay("g", "one", -2), invalid),
        (stay("g", "one", -3), invalid),
        (join("g", "m").with_server_assignor(Some(s("sticky"))), ResponseError::UnsupportedAssignor),
        (join("g", "m").with_subscribed_topic_regex(Some(s("("))), ResponseError::InvalidRegularExpression),
        (stay("g", "nobody", 1), ResponseError::UnknownMemberId),
        (stay("none", "nobody", 1), ResponseError::UnknownMemberId),
        (stay("g", "one", 2), fenced),
        (stay("g", "one", 1).with_instance_id(Some(s("i"))), ResponseError::UnknownMemberId),
    ];
    for (request, error) in cases {
        let answer = client.call(1, &request).await;
        assert_eq!(answer.error_code, error.code(), "{request:?}");
        assert!(answer.error_message.is_some_and(|message| !message.is_empty()), "{request:?}");
        assert_eq!((answer.member_id, answer.member_epoch, answer.assignment), (None, 0, None));
    }
    assert_eq!(state(&mut client, "g").await.members.len(), 1);
    assert_eq!(state(&mut client, "none").await.error_code, ResponseError::GroupIdNotFound.code());
    broker.server.groups.shutdown().await;
}

#[tokio::test]
async fn commits_and_reads_of_offsets_are_checked_against_the_members_epoch() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let topic = topic_id(&mut client).await;
    client.call(1, &join("g", "one")).await;
    let commit = |member: &str, epoch, partitions: &[i32]| {
        let partition = |index: &i32| {
            OffsetCommitRequestPartition::default().with_partition_index(*index).with_committed_offset(7)
        };
        let topic = OffsetCommitRequestTopic::default()
            .with_name(orders())
            .with_partitions(partitions.iter().map(partition).collect());
        OffsetCommitRequest::default()
            .with_group_id(group("g"))
            .with_member_id(s(member))
            .with_generation_id_or_member_epoch(epoch)
            .with_topics(vec![topic])
    };
    let error = |answer: OffsetCommitResponse| answer.topics[0].partitions[0].error_code;
    assert_eq!(error(client.call(9, &commit("one", 1, &[0, 3])).await), 0);
    assert_eq!(error(client.call(9, &commit("one", 2, &[0])).await), ResponseError::StaleMemberEpoch.code());
    assert_eq!(error(client.call(9, &commit("two", 1, &[0])).await), ResponseError::UnknownMemberId.code());
    assert_eq!(error(client.call(9, &commit("", -1, &[0])).await), ResponseError::UnknownMemberId.code());
    assert_eq!(
        error(client.call(8, &commit("one", 1, &[0])).await),
        ResponseError::UnsupportedVersion.code()
    );

    // In the next epoch it keeps two, for which a commit of the epoch before is as good.
    client.call(1, &join("g", "two")).await;
    client.call(1, &stay("g", "one", 1)).await;
    assert_eq!(error(client.call(9, &commit("one", 1, &[3])).await), 0, "while it gives it up");
    client.call(1, &owning(stay("g", "one", 1), topic, &[0, 1])).await;
    client.call(1, &stay("g", "two", 2)).await;
    assert_eq!(error(client.call(9, &commit("one", 1, &[0, 1])).await), 0);
    assert_eq!(
        error(client.call(9, &commit("one", 1, &[0, 3])).await),
        ResponseError::StaleMemberEpoch.code()
    );
    assert_eq!(error(client.call(9, &commit("two", 1, &[3])).await), ResponseError::StaleMemberEpoch.code());

    let fetch = |member: Option<&str>, epoch| {
        let topic = OffsetFetchRequestTopics::default().with_name(orders()).with_partition_indexes(vec![0]);
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(group("g"))
            .with_member_id(member.map(s))
            .with_member_epoch(epoch)
            .with_topics(Some(vec![topic]));
        OffsetFetchRequest::default().with_groups(vec![asked])
    };
    let found = |answer: OffsetFetchResponse| {
        let group = &answer.groups[0];
        (group.error_code, group.topics.first().map(|topic| topic.partitions[0].committed_offset))
    };
    assert_eq!(found(client.call(9, &fetch(None, -1)).await), (0, Some(7)));
    assert_eq!(found(client.call(9, &fetch(Some("one"), 2)).await), (0, Some(7)));
    let stale = ResponseError::StaleMemberEpoch.code();
    assert_eq!(found(client.call(9, &fetch(Some("one"), 1)).await), (stale, None));
    let unknown = ResponseError::UnknownMemberId.code();
    assert_eq!(found(client.call(9, &fetch(Some("nobody"), 1)).await), (unknown, None));

    let partition = OffsetDeleteRequestPartition::default().with_partition_index(0);
    let topic = OffsetDeleteRequestTopic::default().with_name(orders()).with_partitions(vec![partition]);
    let delete = OffsetDeleteRequest::default().with_group_id(group("g")).with_topics(vec![topic]);
    let answer = client.call(0, &delete).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, ResponseError::GroupSubscribedToTopic.code());
    let delete = DeleteGroupsRequest::default().with_groups_names(vec![group("g")]);
    assert_eq!(client.call(2, &delete).await.results[0].error_code, ResponseError::NonEmptyGroup.code());
    for member in ["one", "two"] {
        client.call(1, &stay("g", member, -1)).await;
    }
    assert_eq!(&*state(&mut client, "g").await.group_state, "Empty");
    assert_eq!(error(client.call(9, &commit("", -1, &[0])).await), 0);
    assert_eq!(client.call(2, &delete).await.results[0].error_code, 0);
    broker.server.groups.shutdown().await;
}

#[tokio::test]
async fn groups_of_both_protocols_are_listed_and_described_as_what_they_are() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    client.call(1, &join("new", "one")).await;
    let old = classic_join("old", "");
    assert_eq!(client.call(3, &old).await.error_code, 0);
    let list = |states: &[&str], types: &[&str]| {
        let all = |names: &[&str]| names.iter().map(|name| s(name)).collect();
        ListGroupsRequest::default().with_states_filter(all(states)).with_types_filter(all(types))
    };
    let names = |answer: ListGroupsResponse| -> Vec<String> {
        answer
            .groups
            .iter()
            .map(|g| format!("{} {} {} {}", *g.group_id, g.group_type, g.protocol_type, g.group_state))
            .collect()
    };
    let (new, old) = ("new consumer consumer Stable", "old classic consumer CompletingRebalance");
    assert_eq!(names(client.call(5, &list(&[], &[])).await), [new, old]);
    assert_eq!(names(client.call(5, &list(&[], &["Consumer"])).await), [new]);
    assert_eq!(names(client.call(5, &list(&[], &["classic"])).await), [old]);
    assert_eq!(names(client.call(5, &list(&["stable"], &[])).await), [new]);
    assert_eq!(
        names(client.call(5, &list(&[" completingrebalance "], &["classic", "consumer"])).await),
        [old]
    );
    assert!(names(client.call(5, &list(&["Assigning"], &[])).await).is_empty());

    let request = DescribeGroupsRequest::default().with_groups(vec![group("new"), group("old")]);
    let described = client.call(6, &request).await.groups;
    assert_eq!(
        (described[0].error_code, &*described[0].group_state),
        (ResponseError::GroupIdNotFound.code(), "Dead")
    );
    assert_eq!((described[1].error_code, &*described[1].group_state), (0, "CompletingRebalance"));
    let described = client.call(5, &request).await.groups;
    assert_eq!((described[0].error_code, &*described[0].group_state), (0, "Dead"));
    assert_eq!(state(&mut client, "old").await.error_code, ResponseError::GroupIdNotFound.code());
    broker.server.groups.shutdown().await;
}

/// A JoinGroup request whose member offers `range` and wants `orders`.
fn classic_join(name: &str, member: &str) -> JoinGroupRequest {
    let subscription = ConsumerProtocolSubscription::default().with_topics(vec![s("orders")]);
    let mut metadata = vec![0, 1];
    subscription.encode(&mut metadata, 1).unwrap();
    let protocol = JoinGroupRequestProtocol::default().with_name(s("range")).with_metadata(metadata.into());
    JoinGroupRequest::default()
        .with_group_id(group(name))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(s(member))
        .with_protocol_type(s("consumer"))
        .with_protocols(vec![protocol])
}

fn classic_sync(name: &str, member: &StrBytes, generation: i32) -> SyncGroupRequest {
    SyncGroupRequest::default()
        .with_group_id(group(name))
        .with_generation_id(generation)
        .with_member_id(member.clone())
}

fn classic_heartbeat(name: &str, member: &StrBytes, generation: i32) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group(name))
        .with_generation_id(generation)
        .with_member_id(member.clone())
}

/// The partitions in an assignment of one topic.
fn partitions(assignment: &[u8]) -> Vec<i32> {
    use kafka_protocol::protocol::Decodable;
    let mut rest = bytes::Bytes::copy_from_slice(&assignment[2..]);
    let decoded = ConsumerProtocolAssignment::decode(&mut rest, 1).unwrap();
    decoded.assigned_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect()
}

#[tokio::test]
async fn a_classic_group_becomes_a_consumer_group_and_a_classic_one_again_under_its_members() {
    use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let joined = client.call(3, &classic_join("g", "")).await;
    let member = joined.member_id;
    let mut all = vec![0, 1];
    let part = consumer_protocol_assignment::TopicPartition::default()
        .with_topic(orders())
        .with_partitions(vec![0, 1, 2, 3]);
    ConsumerProtocolAssignment::default().with_assigned_partitions(vec![part]).encode(&mut all, 1).unwrap();
    let part =
        SyncGroupRequestAssignment::default().with_member_id(member.clone()).with_assignment(all.into());
    let sync = classic_sync("g", &member, 1).with_assignments(vec![part]);
    assert_eq!(partitions(&client.call(3, &sync).await.assignment), [0, 1, 2, 3]);

    // One of the consumer protocol comes, and gets nothing as long as the other has all.
    let new = client.call(1, &join("g", "new")).await;
    assert_eq!(told(&new), (0, 2, Some(vec![])));
    let described = state(&mut client, "g").await;
    assert_eq!((&*described.group_state, described.members.len()), ("Reconciling", 2));
    let rebalance = ResponseError::RebalanceInProgress.code();
    assert_eq!(client.call(3, &classic_heartbeat("g", &member, 1)).await.error_code, rebalance);
    assert_eq!(told(&client.call(1, &stay("g", "new", 2)).await), (0, 2, None));
    // It has given up all before it joins again, and gets back what it is to keep.
    let joined = client.call(3, &classic_join("g", &member)).await;
    assert_eq!((joined.error_code, joined.generation_id, &joined.member_id), (0, 2, &member));
    assert_eq!((joined.protocol_name, joined.members.len()), (Some(s("range")), 0));
    let synced = client.call(3, &classic_sync("g", &member, 2)).await;
    assert_eq!((synced.error_code, partitions(&synced.assignment)), (0, vec![0, 1]));
    assert_eq!(client.call(3, &classic_heartbeat("g", &member, 2)).await.error_code, 0);
    assert_eq!(told(&client.call(1, &stay("g", "new", 2)).await), (0, 2, Some(vec![2, 3])));
    let described = state(&mut client, "g").await;
    let kinds: Vec<i8> = described.members.iter().map(|one| one.member_type).collect();
    assert_eq!((&*described.group_state, kinds.iter().sum::<i8>()), ("Stable", 1));

    // The last of the consumer protocol goes.
    assert_eq!(told(&client.call(1, &stay("g", "new", -1)).await), (0, -1, None));
    assert_eq!(state(&mut client, "g").await.error_code, ResponseError::GroupIdNotFound.code());
    assert_eq!(client.call(3, &classic_heartbeat("g", &member, 2)).await.error_code, rebalance);
    let joined = client.call(3, &classic_join("g", &member)).await;
    assert_eq!((joined.error_code, joined.generation_id, &joined.leader), (0, 3, &member));
    assert_eq!(joined.members.len(), 1);

    // An empty group becomes whichever is asked for.
    let leave = LeaveGroupRequest::default()
        .with_group_id(group("g"))
        .with_members(vec![MemberIdentity::default().with_member_id(member)]);
    assert_eq!(client.call(3, &leave).await.error_code, 0);
    assert_eq!(told(&client.call(1, &join("g", "new")).await), (0, 1, Some(vec![0, 1, 2, 3])));
    client.call(1, &stay("g", "new", -1)).await;
    let joined = client.call(3, &classic_join("g", "")).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    broker.server.groups.shutdown().await;
}

// -- librdkafka -------------------------------------------------------------------------------------------------------

/// A librdkafka consumer of the new protocol, subscribed to a name or, with `^`, to a pattern.
fn consumer(broker: &Broker, group: &str, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.server.address.to_string())
        .set("group.id", group)
        .set("group.protocol", "consumer")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("reconnect.backoff.max.ms", "200")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    consumer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn librdkafkas_consumers_share_all_partitions_and_go_on_where_they_committed() {
    let mut broker = Broker::start().await;
    broker.write(100).await;
    let one = consumer(&broker, "g", "orders");
    let (two, three) = (consumer(&broker, "g", "orders"), consumer(&broker, "g", "^ord.*"));
    blocking(move || {
        balance(&[&one, &two, &three], &[1, 1, 2]);
        drop(three);
        balance(&[&one, &two], &[2, 2]);
        drop(two);
        balance(&[&one], &[4]);
    })
    .await;
    let one = consumer(&broker, "h", "orders");
    blocking(move || {
        assert_eq!(read(&one, 100), offsets(0));
        one.commit_consumer_state(CommitMode::Sync).unwrap();
    })
    .await;
    broker.write(10).await;
    let one = consumer(&broker, "h", "orders");
    let one = blocking(move || {
        assert_eq!(read(&one, 10), offsets(100), "goes on where the first stopped");
        one.commit_consumer_state(CommitMode::Sync).unwrap();
        one
    })
    .await;
    // It goes on through a restart of the broker, which has forgotten it.
    let mut broker = broker.restart().await;
    broker.write(10).await;
    blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        let mut next = offsets(110);
        while next != offsets(120) {
            assert!(Instant::now() < deadline, "only up to {next:?} after the restart");
            // Errors of the connection are what this is about.
            if let Some(Ok(message)) = one.poll(Duration::from_millis(100)) {
                let next = next.get_mut(&message.partition()).unwrap();
                assert_eq!(message.offset(), *next);
                *next += 1;
            }
        }
        balance(&[&one], &[4]);
    })
    .await;
    broker.server.groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn librdkafkas_consumers_move_from_the_classic_protocol_to_the_new_one_and_back_one_by_one() {
    let broker = Broker::start().await;
    let groups = broker.server.groups.clone();
    let address = broker.server.address;
    let kind = move || groups.list()[0].kind;
    let broker = blocking(move || {
        let (one, two) = (member(address, "g"), member(address, "g"));
        balance(&[&one, &two], &[2, 2]);
        assert_eq!(kind(), "classic");
        drop(one);
        let one = consumer(&broker, "g", "orders");
        balance(&[&one, &two], &[2, 2]);
        assert_eq!(kind(), "consumer");
        drop(two);
        let two = consumer(&broker, "g", "orders");
        balance(&[&one, &two], &[2, 2]);
        drop(one);
        let one = member(address, "g");
        balance(&[&one, &two], &[2, 2]);
        assert_eq!(kind(), "consumer");
        drop(two);
        let two = member(address, "g");
        balance(&[&one, &two], &[2, 2]);
        assert_eq!(kind(), "classic");
        drop((one, two));
        broker
    })
    .await;
    broker.server.groups.shutdown().await;
}
