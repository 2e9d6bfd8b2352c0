//! DescribeTopicPartitions, key 75, version 0: topics with their partitions, page by page, for administration tools.
//!
//! An answer holds as many partitions as the request's limit, at most 2,000, and a cursor to go on from. A cursor whose
//! partition is negative, or whose topic is not among those asked for, makes it INVALID_REQUEST for all of them. As Apache
//! Kafka; eligible leader replicas are empty, as there is no other replica (null, which the protocol allows, ends Java's
//! administration client in a NullPointerException).

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_topic_partitions_request::Cursor as RequestCursor;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::{
    ApiKey, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
};

use super::metadata::{TOPIC_OPERATIONS, operations};
use super::{text, to_uuid};
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};
use crate::log::topics::{Topic, is_topic_name};

/// DescribeTopicPartitions.
pub static API: Api =
    Api { key: ApiKey::DescribeTopicPartitions, versions: (0, 0), flexible_from: 0, shape: SHAPE, handle };

const TOPIC: &[Field] = &[Field::new(STRING, 0)];
const CURSOR: &[Field] = &[Field::new(STRING, 0), Field::new(I32, 0)];
const SHAPE: &[Field] =
    &[Field::new(Kind::Structs(TOPIC), 0), Field::new(I32, 0), Field::new(Kind::NullableStruct(CURSOR), 0)];

const MAX_PARTITIONS: usize = 2_000;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: DescribeTopicPartitionsRequest = request.decode()?;
    let topics = &request.broker.topics;
    let mut names: Vec<String> = match asked.topics.is_empty() {
        true => topics.all().iter().map(|topic| topic.name.clone()).collect(),
        false => asked.topics.iter().map(|topic| topic.name.to_string()).collect(),
    };
    names.sort_unstable();
    names.dedup();
    if asked.cursor.as_ref().is_some_and(|cursor| !may_follow(cursor, &names, asked.topics.is_empty())) {
        let refused = asked.topics.into_iter().map(|topic| {
            DescribeTopicPartitionsResponseTopic::default()
                .with_error_code(ResponseError::InvalidRequest.code())
                .with_name(Some(topic.name))
        });
        let response = DescribeTopicPartitionsResponse::default().with_topics(refused.collect());
        return Reply::encode(&response, request.version);
    }
    // A cursor names the first partition that is still wanted.
    let (after, mut first) = match &asked.cursor {
        Some(cursor) => (cursor.topic_name.as_str(), usize::try_from(cursor.partition_index).unwrap_or(0)),
        None => ("", 0),
    };
    let mut left = usize::try_from(asked.response_partition_limit).unwrap_or(0).clamp(1, MAX_PARTITIONS);
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names.iter().filter(|name| name.as_str() >= after) {
        if name != after {
            first = 0;
        }
        if left == 0 {
            response.next_cursor = Some(cursor(name, 0));
            break;
        }
        let Some(topic) = topics.by_name(name) else {
            response.topics.push(unknown(name));
            continue;
        };
        let last = topic.partitions.len().min(first.saturating_add(left));
        response.topics.push(describe(&request.broker, &topic, first..last));
        if last < topic.partitions.len() {
            response.next_cursor = Some(cursor(name, last as i32));
            break;
        }
        left -= last.saturating_sub(first);
    }
    Reply::encode(&response, request.version)
}

/// Whether a client may go on from a cursor. Where it asks for all topics, that of the cursor may have gone meanwhile.
fn may_follow(cursor: &RequestCursor, names: &[String], all: bool) -> bool {
    cursor.partition_index >= 0 && (all || names.iter().any(|name| **name == **cursor.topic_name))
}

fn cursor(topic: &str, partition: i32) -> Cursor {
    Cursor::default().with_topic_name(TopicName(text(topic))).with_partition_index(partition)
}

fn unknown(name: &str) -> DescribeTopicPartitionsResponseTopic {
    let error = match is_topic_name(name) {
        true => ResponseError::UnknownTopicOrPartition,
        false => ResponseError::InvalidTopicException,
    };
    DescribeTopicPartitionsResponseTopic::default()
        .with_error_code(error.code())
        .with_name(Some(TopicName(text(name))))
        .with_topic_authorized_operations(TOPIC_OPERATIONS)
}

fn describe(
    broker: &Broker,
    topic: &Topic,
    partitions: std::ops::Range<usize>,
) -> DescribeTopicPartitionsResponseTopic {
    let leader_epoch = topic.log.leader_epoch();
    let partitions = partitions.map(|index| {
        DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(index as i32)
            .with_leader_id(NODE_ID.into())
            .with_leader_epoch(leader_epoch)
            .with_replica_nodes(vec![NODE_ID.into()])
            .with_isr_nodes(vec![NODE_ID.into()])
            .with_eligible_leader_replicas(Some(Vec::new()))
            .with_last_known_elr(Some(Vec::new()))
    });
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(TopicName(text(&topic.name))))
        .with_topic_id(to_uuid(topic.id))
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(operations(broker, topic))
}
