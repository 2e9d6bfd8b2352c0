//! What clients learn of topics and offsets.

use std::sync::Arc;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::{Topic, TopicId, Topics};
use uuid::Uuid;

use crate::memory_log::{Append, EPOCH, MemoryLog, one};
use crate::support::Server;

/// A broker with `orders` (3 partitions, id 77) and `events` (1 partition, id 78) in one log.
async fn server() -> (Server, Arc<MemoryLog>) {
    let (log, orders) = MemoryLog::with_topic("orders", 3);
    let topics = Topics::default();
    let partitions = vec![millrace::log::PartitionId(3)];
    topics.insert(Topic { name: "events".into(), id: TopicId(78), partitions, log: log.clone() });
    topics.insert(orders);
    (Server::start(topics, Limits::default()).await, log)
}

fn name(text: &'static str) -> TopicName {
    TopicName(StrBytes::from_static_str(text))
}

fn named(text: &'static str) -> MetadataRequestTopic {
    MetadataRequestTopic::default().with_name(Some(name(text)))
}

#[tokio::test]
async fn metadata_names_all_topics_or_those_asked_for_in_every_version() {
    let (server, _log) = server().await;
    let mut client = server.client().await;
    for version in 0..=13 {
        let all = MetadataRequest::default().with_topics((version == 0).then(Vec::new));
        let response = client.call(version, &all).await;
        let names: Vec<_> =
            response.topics.iter().map(|topic| topic.name.as_ref().unwrap().as_str()).collect();
        assert_eq!(names, ["events", "orders"], "version {version}");
        let orders = &response.topics[1];
        assert_eq!(orders.partitions.len(), 3);
        assert!(orders.partitions.iter().all(|partition| partition.leader_id == 0));
        assert_eq!(orders.partitions[2].leader_epoch, if version >= 7 { EPOCH } else { -1 });
        assert_eq!(orders.topic_id.as_u128(), if version >= 10 { 77 } else { 0 });
        assert_eq!(response.brokers[0].port, i32::from(server.address.port()));

        let some = MetadataRequest::default().with_topics(Some(vec![
            named("orders"),
            named("nothing"),
            named("not a name"),
            named("orders"),
        ]));
        let response = client.call(version, &some).await;
        let errors: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!(errors, [0, 3, 17], "version {version}");
    }
    for version in 1..=13 {
        let none = MetadataRequest::default().with_topics(Some(Vec::new()));
        assert!(client.call(version, &none).await.topics.is_empty());
    }
}

#[tokio::test]
async fn metadata_finds_topics_by_id_where_the_version_allows_it() {
    let (server, _log) = server().await;
    let mut client = server.client().await;
    let by_id = |id| MetadataRequestTopic::default().with_name(None).with_topic_id(Uuid::from_u128(id));
    let request = MetadataRequest::default().with_topics(Some(vec![by_id(77), by_id(1)]));
    for version in 12..=13 {
        let response = client.call(version, &request).await;
        assert_eq!(response.topics[0].name, Some(name("orders")));
        assert_eq!((response.topics[1].error_code, &response.topics[1].name), (100, &None));
        assert_eq!(response.topics[1].topic_id.as_u128(), 1);
    }
    // One id makes it a request by id.
    let both = vec![named("events").with_topic_id(Uuid::from_u128(77)), named("events")];
    let response = client.call(12, &MetadataRequest::default().with_topics(Some(both))).await;
    assert_eq!((response.topics.len(), &response.topics[0].name), (1, &Some(name("orders"))));
    for version in 10..=11 {
        let asked = vec![named("orders").with_topic_id(Uuid::from_u128(77)), named("events")];
        let response = client.call(version, &MetadataRequest::default().with_topics(Some(asked))).await;
        let errors: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!((errors, response.brokers.len()), (vec![42, 42], 0));
    }
}

#[tokio::test]
async fn a_partition_that_is_named_twice_is_refused_once() {
    let (server, _log) = server().await;
    let mut client = server.client().await;
    let asked = |index| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(-1);
    let topic =
        |partitions| ListOffsetsTopic::default().with_name(name("orders")).with_partitions(partitions);
    let topics = vec![topic(vec![asked(0), asked(1), asked(0)]), topic(vec![asked(2), asked(1)])];
    let response = client.call(5, &ListOffsetsRequest::default().with_topics(topics)).await;
    let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    let found: Vec<_> = partitions.map(|partition| (partition.error_code, partition.offset)).collect();
    assert_eq!(found, [(42, -1), (42, -1), (0, 0)]);
}

#[tokio::test]
async fn offsets_are_listed_by_sentinel_and_by_time() {
    let (server, log) = server().await;
    let at = |timestamp| Append { timestamp, records: 10, ..one(0) };
    log.commit(&[at(1000), at(3000), at(2000)]);
    log.expire(0, 10);
    let mut client = server.client().await;
    let ask = async |client: &mut crate::support::Client, version: i16, partition: i32, timestamp: i64| {
        let asked = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default().with_name(name("orders")).with_partitions(vec![asked]);
        let request = ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]);
        let response = client.call(version, &request).await;
        let partition = response.topics[0].partitions[0].clone();
        if partition.offset >= 0 && version >= 4 {
            assert_eq!(partition.leader_epoch, EPOCH);
        }
        (partition.error_code, partition.offset, partition.timestamp)
    };
    for version in 1..=10 {
        assert_eq!(ask(&mut client, version, 0, -1).await, (0, 30, -1));
        assert_eq!(ask(&mut client, version, 0, -2).await, (0, 10, -1));
        let max = if version >= 7 { (0, 10, 3000) } else { (35, -1, -1) };
        assert_eq!(ask(&mut client, version, 0, -3).await, max);
        let local = if version >= 8 { (0, 10, -1) } else { (35, -1, -1) };
        assert_eq!(ask(&mut client, version, 0, -4).await, local);
        let tiered = if version >= 9 { (0, -1, -1) } else { (35, -1, -1) };
        assert_eq!(ask(&mut client, version, 0, -5).await, tiered);
        assert_eq!(ask(&mut client, version, 0, 0).await, (0, 10, 3000));
        assert_eq!(ask(&mut client, version, 0, 3001).await, (0, -1, -1));
        assert_eq!(ask(&mut client, version, 1, 0).await, (0, -1, -1));
        assert_eq!(ask(&mut client, version, 1, -1).await, (0, 0, -1));
        assert_eq!(ask(&mut client, version, 3, -1).await, (3, -1, -1));
        // What the version does not have comes before what the broker does not have.
        assert_eq!(ask(&mut client, version, 3, -6).await, (35, -1, -1));
    }
}

#[tokio::test]
async fn epochs_end_where_the_log_ends_or_begins() {
    let (server, log) = server().await;
    log.commit(&[Append { records: 10, ..one(0) }]);
    log.expire(0, 4);
    let mut client = server.client().await;
    let asked = |current, epoch| {
        OffsetForLeaderPartition::default().with_current_leader_epoch(current).with_leader_epoch(epoch)
    };
    for version in 2..=4 {
        let topic = OffsetForLeaderTopic::default().with_topic(name("orders")).with_partitions(vec![
            asked(EPOCH, EPOCH),
            asked(-1, EPOCH - 1),
            asked(-1, EPOCH + 1),
            asked(EPOCH - 1, EPOCH),
            asked(EPOCH + 1, EPOCH),
        ]);
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let response = client.call(version, &request).await;
        let ends: Vec<_> = response.topics[0]
            .partitions
            .iter()
            .map(|end| (end.error_code, end.leader_epoch, end.end_offset))
            .collect();
        let expected = [(0, EPOCH, 10), (0, EPOCH - 1, 4), (0, -1, -1), (74, -1, -1), (75, -1, -1)];
        assert_eq!(ends, expected);
    }
}

#[tokio::test]
async fn tools_can_describe_the_cluster_and_its_settings() {
    let (server, _log) = server().await;
    let mut client = server.client().await;
    for version in 0..=2 {
        let response = client.call(version, &DescribeClusterRequest::default()).await;
        assert_eq!(response.cluster_id.as_str(), "test-cluster");
        assert_eq!(response.brokers[0].port, i32::from(server.address.port()));
    }
    for version in 1..=2 {
        let of = |endpoints| DescribeClusterRequest::default().with_endpoint_type(endpoints);
        assert_eq!(client.call(version, &of(2)).await.error_code, 114);
        assert_eq!(client.call(version, &of(3)).await.error_code, 115);
    }

    let resource = |kind, name| {
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(StrBytes::from_static_str(name))
            .with_configuration_keys(None)
    };
    for version in 1..=4 {
        let one_key = resource(2, "orders")
            .with_configuration_keys(Some(vec![StrBytes::from_static_str("cleanup.policy")]));
        let resources =
            vec![one_key, resource(4, "0"), resource(2, "nothing"), resource(4, "1"), resource(8, "")];
        let response =
            client.call(version, &DescribeConfigsRequest::default().with_resources(resources)).await;
        let errors: Vec<_> = response.results.iter().map(|result| result.error_code).collect();
        assert_eq!(errors, [0, 0, 3, 42, 42]);
        assert_eq!(response.results[0].configs.len(), 1);
        assert_eq!(response.results[0].configs[0].value.as_deref(), Some("delete"));
    }
}

#[tokio::test]
async fn topics_are_described_page_by_page() {
    let (server, _log) = server().await;
    let mut client = server.client().await;
    let mut seen = Vec::new();
    let mut request = DescribeTopicPartitionsRequest::default().with_response_partition_limit(2);
    loop {
        let response = client.call(0, &request).await;
        for topic in &response.topics {
            let name = topic.name.as_ref().unwrap().to_string();
            seen.extend(topic.partitions.iter().map(|partition| (name.clone(), partition.partition_index)));
        }
        let Some(next) = response.next_cursor else { break };
        let cursor =
            Cursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index);
        request = request.with_cursor(Some(cursor));
    }
    let expected = [("events", 0), ("orders", 0), ("orders", 1), ("orders", 2)];
    assert_eq!(seen, expected.map(|(name, index)| (name.to_owned(), index)));

    let asked = vec![TopicRequest::default().with_name(name("nothing"))];
    let request =
        DescribeTopicPartitionsRequest::default().with_topics(asked).with_response_partition_limit(10);
    let unknown = &client.call(0, &request).await.topics[0];
    assert_eq!(unknown.error_code, 3);
    assert!(unknown.topic_authorized_operations > 0);
}
