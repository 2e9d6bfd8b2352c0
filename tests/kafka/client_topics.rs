//! Topics that clients make, give more partitions, and delete: with `kafka.unsafe_produce`, and refused without.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::Topics;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use uuid::Uuid;

use crate::memory_log::MemoryLog;
use crate::support::{Client, Server};
use crate::writable::Writable;

fn name(text: &str) -> TopicName {
    TopicName(StrBytes::from_string(text.to_owned()))
}

pub fn topic(text: &str, partitions: i32, replication: i16) -> CreatableTopic {
    let topic = CreatableTopic::default().with_name(name(text));
    topic.with_num_partitions(partitions).with_replication_factor(replication)
}

fn assigned(text: &str, brokers: &[&[i32]]) -> CreatableTopic {
    let assignments = brokers.iter().zip(0..).map(|(brokers, index)| {
        let brokers = brokers.iter().map(|broker| BrokerId(*broker)).collect();
        CreatableReplicaAssignment::default().with_partition_index(index).with_broker_ids(brokers)
    });
    topic(text, -1, -1).with_assignments(assignments.collect())
}

fn config(text: &str, key: &'static str, value: Option<&'static str>) -> CreatableTopic {
    let config = CreatableTopicConfig::default()
        .with_name(StrBytes::from_static_str(key))
        .with_value(value.map(StrBytes::from_static_str));
    topic(text, 1, 1).with_configs(vec![config])
}

pub async fn create(
    client: &mut Client,
    version: i16,
    topics: Vec<CreatableTopic>,
) -> Vec<create_topics_response::CreatableTopicResult> {
    client.call(version, &CreateTopicsRequest::default().with_topics(topics)).await.topics
}

pub async fn delete(client: &mut Client, version: i16, topics: &[&str]) -> Vec<(i16, Option<String>)> {
    let names = topics.iter().map(|topic| name(topic));
    let request = match version {
        6 => DeleteTopicsRequest::default()
            .with_topics(names.map(|name| DeleteTopicState::default().with_name(Some(name))).collect()),
        _ => DeleteTopicsRequest::default().with_topic_names(names.collect()),
    };
    let responses = client.call(version, &request).await.responses;
    let message = |message: StrBytes| message.to_string();
    responses.into_iter().map(|result| (result.error_code, result.error_message.map(message))).collect()
}

fn partitions(text: &str, count: i32, brokers: Option<&[&[i32]]>) -> CreatePartitionsTopic {
    let assignments = brokers.map(|brokers| {
        let each = brokers.iter().map(|brokers| {
            let brokers = brokers.iter().map(|broker| BrokerId(*broker)).collect();
            CreatePartitionsAssignment::default().with_broker_ids(brokers)
        });
        each.collect()
    });
    CreatePartitionsTopic::default().with_name(name(text)).with_count(count).with_assignments(assignments)
}

#[tokio::test]
async fn every_version_makes_a_topic_that_is_there_at_once_and_over_a_restart() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    for version in 2..=7 {
        let text = format!("made-{version}");
        let made = create(&mut client, version, vec![topic(&text, 3, 1)]).await;
        let id = broker.topics.by_name(&text).unwrap().id.0;
        assert_eq!((made[0].error_code, made[0].error_message.clone()), (0, None));
        assert_eq!(made[0].num_partitions, if version >= 5 { 3 } else { -1 });
        assert_eq!(made[0].topic_id.as_u128(), if version >= 7 { id } else { 0 });
        let again = create(&mut client, version, vec![topic(&text, 3, 1)]).await;
        assert_eq!(again[0].error_code, ResponseError::TopicAlreadyExists.code());
    }
    let broker = broker.restart().await;
    for version in 2..=7 {
        assert_eq!(broker.topics.by_name(&format!("made-{version}")).unwrap().partitions.len(), 3);
    }
}

#[tokio::test]
async fn a_topic_is_made_as_it_is_asked_for_or_refused_as_kafka_refuses_it() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let asked = [
        (topic("default", -1, -1), None),
        (assigned("by-hand", &[&[0], &[0]]), None),
        (config("with-config", "retention.ms", Some("1000")), None),
        (topic("a/b", 1, 1), Some(ResponseError::InvalidTopicException)),
        (topic("no-partition", 0, 1), Some(ResponseError::InvalidPartitions)),
        (topic("too-many", i32::MAX, 1), Some(ResponseError::InvalidPartitions)),
        (topic("two-replicas", 1, 2), Some(ResponseError::InvalidReplicationFactor)),
        (topic("no-replica", 1, 0), Some(ResponseError::InvalidReplicationFactor)),
        (assigned("elsewhere", &[&[1]]), Some(ResponseError::InvalidReplicaAssignment)),
        (assigned("nowhere", &[&[]]), Some(ResponseError::InvalidReplicaAssignment)),
        (assigned("and-count", &[&[0]]).with_num_partitions(1), Some(ResponseError::InvalidRequest)),
        (assigned("and-factor", &[&[0]]).with_replication_factor(1), Some(ResponseError::InvalidRequest)),
        (config("unknown-config", "retention.miles", Some("1")), Some(ResponseError::InvalidConfig)),
        (config("null-config", "retention.ms", None), Some(ResponseError::InvalidConfig)),
        (config("not-a-number", "retention.ms", Some("long")), Some(ResponseError::InvalidConfig)),
        (topic("twice", 1, 1), Some(ResponseError::InvalidRequest)),
    ];
    let mut topics: Vec<_> = asked.iter().map(|(topic, _)| topic.clone()).collect();
    topics.push(topic("twice", 1, 1));
    let only_asked = CreateTopicsRequest::default().with_topics(topics.clone()).with_validate_only(true);
    let would_be = client.call(7, &only_asked).await.topics;
    assert!(broker.topics.all().is_empty());
    let made = create(&mut client, 7, topics).await;
    assert_eq!(made.len(), asked.len());
    for ((asked, error), made) in asked.iter().zip(&made) {
        let expected = error.map_or(0, |error| error.code());
        assert_eq!(made.error_code, expected, "{}", asked.name.as_str());
        assert_eq!(made.error_message.is_some(), error.is_some());
    }
    // Only making it shows that a log has no room for so many partitions.
    let differing = would_be.iter().zip(&made).filter(|(would, made)| would.error_code != made.error_code);
    assert_eq!(differing.map(|(_, made)| made.name.as_str()).collect::<Vec<_>>(), ["too-many"]);
    let there = broker.topics.all();
    let there: Vec<_> = there.iter().map(|topic| (topic.name.as_str(), topic.partitions.len())).collect();
    assert_eq!(there, [("by-hand", 2), ("default", 4), ("with-config", 1)]);
    let configs = made[2].configs.as_ref().unwrap();
    let limit = configs.iter().find(|config| config.name.as_str() == "max.message.bytes").unwrap();
    assert_eq!(limit.value.as_deref(), Some("1048588"));
}

#[tokio::test]
async fn a_deleted_topic_is_gone_with_its_commits_and_its_name_is_free() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    for version in 1..=6 {
        create(&mut client, 7, vec![topic("brief", 2, 1), topic("other", 1, 1)]).await;
        for topic in ["brief", "other"] {
            commit(&mut client, topic).await;
        }
        let deleted = delete(&mut client, version, &["brief", "never"]).await;
        assert_eq!(deleted[0], (0, None));
        assert_eq!(deleted[1].0, ResponseError::UnknownTopicOrPartition.code());
        assert_eq!(deleted[1].1.is_some(), version >= 5);
        assert!(broker.topics.by_name("brief").is_none());
        let committed = broker.server.groups.all_committed("group");
        assert_eq!(committed.iter().map(|entry| &*entry.topic).collect::<Vec<_>>(), ["other"]);
    }
    create(&mut client, 7, vec![topic("brief", 2, 1)]).await;
    let id = broker.topics.by_name("brief").unwrap().id.0;
    let by_id = |id| DeleteTopicState::default().with_name(None).with_topic_id(Uuid::from_u128(id));
    let both = by_id(id).with_name(Some(name("brief")));
    let neither = DeleteTopicState::default().with_name(None);
    let request = DeleteTopicsRequest::default().with_topics(vec![both, neither, by_id(1), by_id(id)]);
    let responses = client.call(6, &request).await.responses;
    let codes: Vec<_> = responses.iter().map(|result| result.error_code).collect();
    let invalid = ResponseError::InvalidRequest.code();
    assert_eq!(codes, [invalid, invalid, ResponseError::UnknownTopicId.code(), 0]);
    assert_eq!(responses[3].name, Some(name("brief")));
    let twice = delete(&mut client, 6, &["other", "other"]).await;
    assert_eq!(twice.iter().map(|result| result.0).collect::<Vec<_>>(), [invalid, invalid]);
    let broker = broker.restart().await;
    assert_eq!(broker.topics.all().len(), 1);
}

async fn commit(client: &mut Client, topic: &str) {
    use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let topic = OffsetCommitRequestTopic::default()
        .with_name(name(topic))
        .with_partitions(vec![OffsetCommitRequestPartition::default().with_committed_offset(0)]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(StrBytes::from_static_str("group")))
        .with_topics(vec![topic]);
    let response = client.call(8, &request).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 0);
}

#[tokio::test]
async fn partitions_are_added_and_never_taken_away() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    for version in 0..=3 {
        let text = format!("grows-{version}");
        create(&mut client, 7, vec![topic(&text, 2, 1)]).await;
        let asked = [
            (partitions(&text, 5, None), None),
            (partitions("never", 5, None), Some(ResponseError::UnknownTopicOrPartition)),
        ];
        let topics = asked.iter().map(|(topic, _)| topic.clone()).collect();
        let request = CreatePartitionsRequest::default().with_topics(topics);
        client.call(version, &request.clone().with_validate_only(true)).await;
        assert_eq!(broker.topics.by_name(&text).unwrap().partitions.len(), 2);
        let results = client.call(version, &request).await.results;
        for ((_, error), result) in asked.iter().zip(&results) {
            assert_eq!(result.error_code, error.map_or(0, |error| error.code()));
            assert_eq!(result.error_message.is_some(), error.is_some());
        }
        assert_eq!(broker.topics.by_name(&text).unwrap().partitions.len(), 5);
    }
    let refused = [
        (partitions("grows-0", 5, None), ResponseError::InvalidPartitions),
        (partitions("grows-1", 4, None), ResponseError::InvalidPartitions),
        (partitions("grows-2", 7, Some(&[&[0]])), ResponseError::InvalidReplicaAssignment),
        (partitions("grows-3", 6, Some(&[&[7]])), ResponseError::InvalidReplicaAssignment),
    ];
    let topics = refused.iter().map(|(topic, _)| topic.clone()).collect();
    let results = client.call(3, &CreatePartitionsRequest::default().with_topics(topics)).await.results;
    for ((_, error), result) in refused.iter().zip(&results) {
        assert_eq!(result.error_code, error.code(), "{}", result.name.as_str());
    }
    let twice = vec![partitions("grows-0", 9, None), partitions("grows-0", 9, None)];
    let results = client.call(3, &CreatePartitionsRequest::default().with_topics(twice)).await.results;
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].error_code, ResponseError::InvalidRequest.code());
}

/// Asks for all three, and checks that each is refused with the way to do it.
async fn refuses(client: &mut Client, captured: &str, makes: bool) {
    let policy = ResponseError::PolicyViolation.code();
    for version in 2..=7 {
        let results = create(client, version, vec![topic("new", 1, 1), topic(captured, 1, 1)]).await;
        if !makes {
            assert_eq!(results[0].error_code, policy);
            assert!(results[0].error_message.as_ref().unwrap().contains("millrace up"));
        }
        assert_eq!(results[1].error_code, ResponseError::TopicAlreadyExists.code());
    }
    for version in 1..=6 {
        let results = delete(client, version, &[captured]).await;
        assert_eq!(results[0].0, policy);
        assert_eq!(results[0].1.as_ref().is_some_and(|message| message.contains("task")), version >= 5);
    }
    for version in 0..=3 {
        let request = CreatePartitionsRequest::default().with_topics(vec![partitions(captured, 9, None)]);
        let results = client.call(version, &request).await.results;
        assert_eq!(results[0].error_code, policy);
        assert!(results[0].error_message.as_ref().unwrap().contains("output"));
    }
}

#[tokio::test]
async fn topics_of_tasks_are_not_for_clients_to_change_on_any_broker() {
    let (_log, captured) = MemoryLog::with_topic("captured", 1);
    let topics = Topics::default();
    topics.insert(captured.clone());
    let server = Server::start(topics.clone(), Limits::default()).await;
    refuses(&mut server.client().await, "captured", false).await;
    assert_eq!(topics.all().len(), 1);

    let broker = Writable::start().await;
    broker.topics.insert(captured.clone());
    refuses(&mut broker.server.client().await, "captured", true).await;
    assert!(Arc::ptr_eq(&broker.topics.by_name("captured").unwrap().log, &captured.log));
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_makes_widens_and_deletes_a_topic() {
    let broker = Writable::start().await;
    let admin: AdminClient<DefaultClientContext> = broker.config().create().unwrap();
    let options = AdminOptions::new();
    let new = NewTopic::new("admin", 2, TopicReplication::Fixed(1)).set("retention.ms", "1000");
    assert_eq!(admin.create_topics([&new], &options).await.unwrap(), [Ok("admin".to_owned())]);
    let more = [NewPartitions::new("admin", 6)];
    assert_eq!(admin.create_partitions(&more, &options).await.unwrap(), [Ok("admin".to_owned())]);
    assert_eq!(broker.topics.by_name("admin").unwrap().partitions.len(), 6);
    assert_eq!(admin.delete_topics(&["admin"], &options).await.unwrap(), [Ok("admin".to_owned())]);
    assert!(broker.topics.by_name("admin").is_none());
}
