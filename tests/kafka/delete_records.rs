//! DeleteRecords: what is deleted, what is refused, and that consumers see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::LogReader;
use millrace::log::topics::Topics;

use crate::memory_log::{MemoryLog, one};
use crate::support::{Client, Server};

const OUT_OF_RANGE: i16 = ResponseError::OffsetOutOfRange.code();
const UNKNOWN: i16 = ResponseError::UnknownTopicOrPartition.code();

/// A broker with `orders`: ten records in partition 0, one in 1, none in 2.
async fn orders() -> (Server, Arc<MemoryLog>) {
    let (log, topic) = MemoryLog::with_topic("orders", 3);
    let topics = Topics::default();
    topics.insert(topic);
    (0..10).for_each(|_| log.commit(&[one(0)]));
    log.commit(&[one(1)]);
    (Server::start(topics, Limits::default()).await, log)
}

fn name(name: &str) -> TopicName {
    TopicName(StrBytes::from(name.to_owned()))
}

fn topic(topic: &str, partitions: &[(i32, i64)]) -> DeleteRecordsTopic {
    let partitions = partitions.iter().map(|(index, offset)| {
        DeleteRecordsPartition::default().with_partition_index(*index).with_offset(*offset)
    });
    DeleteRecordsTopic::default().with_name(name(topic)).with_partitions(partitions.collect())
}

/// Topic and partition, with the new start and the error.
type Answers = BTreeMap<(String, i32), (i64, i16)>;

async fn delete(client: &mut Client, version: i16, topics: Vec<DeleteRecordsTopic>) -> Answers {
    let request = DeleteRecordsRequest::default().with_topics(topics).with_timeout_ms(1_000);
    let mut answers = Answers::new();
    for topic in client.call(version, &request).await.topics {
        for partition in topic.partitions {
            let key = (topic.name.to_string(), partition.partition_index);
            let answer = (partition.low_watermark, partition.error_code);
            assert_eq!(answers.insert(key, answer), None, "answered twice");
        }
    }
    answers
}

#[tokio::test]
async fn every_partition_is_answered_with_its_new_start_or_why_not_in_every_version() {
    for version in 0..=2 {
        let (server, _log) = orders().await;
        let mut client = server.client().await;
        let answers = delete(
            &mut client,
            version,
            vec![
                topic("orders", &[(0, 4), (1, 2), (2, 0), (3, 0), (-1, 0)]),
                topic("nothing", &[(0, 0)]),
                topic("", &[(0, 0)]),
            ],
        )
        .await;
        let expected = [
            (("", 0), (-1, UNKNOWN)),
            (("nothing", 0), (-1, UNKNOWN)),
            (("orders", -1), (-1, UNKNOWN)),
            (("orders", 0), (4, 0)),
            (("orders", 1), (-1, OUT_OF_RANGE)),
            (("orders", 2), (0, 0)),
            (("orders", 3), (-1, UNKNOWN)),
        ];
        let expected = expected.map(|((topic, index), answer)| ((topic.to_owned(), index), answer));
        assert!(answers.iter().eq(expected.iter().map(|(key, answer)| (key, answer))), "{answers:?}");
        for (below, answer) in
            [(2, (4, 0)), (11, (-1, OUT_OF_RANGE)), (-2, (-1, OUT_OF_RANGE)), (-1, (10, 0)), (10, (10, 0))]
        {
            let answers = delete(&mut client, version, vec![topic("orders", &[(0, below)])]).await;
            assert_eq!(answers[&("orders".to_owned(), 0)], answer, "below {below}");
        }
        assert!(delete(&mut client, version, Vec::new()).await.is_empty());
    }
}

#[tokio::test]
async fn of_a_partition_that_is_named_twice_the_last_offset_counts() {
    let (server, _log) = orders().await;
    let mut client = server.client().await;
    let twice = vec![topic("orders", &[(0, 9), (0, 3)]), topic("orders", &[(0, 5), (1, -1)])];
    let answers = delete(&mut client, 2, twice).await;
    let expected = [(("orders".to_owned(), 0), (5, 0)), (("orders".to_owned(), 1), (1, 0))];
    assert_eq!(answers, expected.into());
}

#[tokio::test]
async fn consumers_see_no_deleted_record() {
    let (server, _log) = orders().await;
    let mut client = server.client().await;
    delete(&mut client, 2, vec![topic("orders", &[(0, 7)])]).await;
    for (from, expected) in [(6, (OUT_OF_RANGE, 0)), (7, (0, 300)), (10, (0, 0))] {
        let partition = FetchPartition::default().with_fetch_offset(from).with_partition_max_bytes(1 << 20);
        let wanted = FetchTopic::default().with_topic(name("orders")).with_partitions(vec![partition]);
        let request = FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![wanted]);
        let answer = &client.call(12, &request).await.responses[0].partitions[0];
        let bytes = answer.records.as_ref().map_or(0, |records| records.len());
        assert_eq!((answer.error_code, bytes), expected, "from {from} on");
    }
    let earliest = ListOffsetsTopic::default()
        .with_name(name("orders"))
        .with_partitions(vec![ListOffsetsPartition::default().with_timestamp(-2)]);
    let listed = client.call(7, &ListOffsetsRequest::default().with_topics(vec![earliest])).await;
    assert_eq!(listed.topics[0].partitions[0].offset, 7);
}

#[tokio::test]
async fn of_a_topic_that_is_deleted_meanwhile_the_other_partitions_are_answered() {
    let (server, log) = orders().await;
    log.forget(1);
    let answers =
        delete(&mut server.client().await, 1, vec![topic("orders", &[(0, 1), (1, 1), (2, 0)])]).await;
    assert_eq!(answers.into_values().collect::<Vec<_>>(), [(1, 0), (-1, UNKNOWN), (0, 0)]);
}

#[tokio::test]
async fn where_the_broker_listens_beyond_its_machine_nobody_deletes_or_changes_settings() {
    use millrace::kafka::topic_settings::RETENTION_MS;
    let (log, its_topic) = MemoryLog::with_topic("orders", 1);
    let topics = Topics::default();
    topics.insert(its_topic);
    log.commit(&[one(0)]);
    let server = Server::start_everywhere(topics).await;
    let mut client = server.client().await;
    let refused = ResponseError::TopicAuthorizationFailed.code();
    let answers = delete(&mut client, 2, vec![topic("orders", &[(0, -1)])]).await;
    assert_eq!(answers[&("orders".to_owned(), 0)], (-1, refused));

    let config = incremental_alter_configs_request::AlterableConfig::default()
        .with_name(StrBytes::from_static_str(RETENTION_MS))
        .with_value(Some(StrBytes::from_static_str("0")));
    let resource = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(StrBytes::from_static_str("orders"))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(client.call(1, &request).await.responses[0].error_code, refused);
    let resource = alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(StrBytes::from_static_str("orders"));
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(client.call(2, &request).await.responses[0].error_code, refused);
    assert_eq!(log.retention(), Default::default());

    // What a client is told that it may do: DELETE and ALTER_CONFIGS are only for those on the machine.
    let mut may = Vec::new();
    for server in [server, orders().await.0] {
        let request = MetadataRequest::default().with_include_topic_authorized_operations(true);
        let topics = server.client().await.call(12, &request.with_topics(None)).await.topics;
        may.push(topics[0].topic_authorized_operations);
    }
    let read = 1 << 3 | 1 << 8 | 1 << 10;
    assert_eq!(may, [read, read | 1 << 6 | 1 << 11]);
}
