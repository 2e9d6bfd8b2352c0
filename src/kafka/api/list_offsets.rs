//! ListOffsets, key 2, versions 1–10: a partition's first and last offset, and offsets by time.
//!
//! * 2 adds the isolation level and the throttle time, 4 leader epochs; 6 is flexible.
//! * Instead of a time a request may give -1 (the high watermark), -2 (the start), from 7 on -3 (the record with the
//!   largest timestamp), from 8 on -4 (the start of what is on local disk), from 9 on -5 (the end of what is in tiered
//!   storage). 10 adds a timeout.
//!
//! A sentinel that the version does not have is UNSUPPORTED_VERSION, and a partition that is named more than once is
//! INVALID_REQUEST, once. As Apache Kafka without tiered storage: -4 is the start, -5 finds nothing. There are no
//! transactional records, so both isolation levels see the high watermark. All partitions of a log are answered from one
//! snapshot (I1).

use std::collections::{HashMap, HashSet};

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ApiKey, ListOffsetsRequest, ListOffsetsResponse, TopicName};

use super::storage_error;
use crate::kafka::shape::{Field, I8, I32, I64, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};
use crate::log::Offset;
use crate::log::topics::Topic;
use crate::log::view::View;

/// ListOffsets.
pub static API: Api =
    Api { key: ApiKey::ListOffsets, versions: (1, 10), flexible_from: 6, shape: SHAPE, handle };

const PARTITION: &[Field] = &[Field::new(I32, 1), Field::new(I32, 4), Field::new(I64, 1)];
const TOPIC: &[Field] = &[Field::new(STRING, 1), Field::new(Kind::Structs(PARTITION), 1)];
const SHAPE: &[Field] =
    &[Field::new(I32, 1), Field::new(I8, 2), Field::new(Kind::Structs(TOPIC), 1), Field::new(I32, 10)];

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: ListOffsetsRequest = request.decode()?;
    let mut repeated = repeated(&asked.topics);
    let mut view = View::default();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let found = request.broker.topics.by_name(&topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            let response =
                ListOffsetsPartitionResponse::default().with_partition_index(partition.partition_index);
            let listed = match repeated.get_mut(&(topic.name.clone(), partition.partition_index)) {
                Some(told) if *told => continue,
                Some(told) => {
                    *told = true;
                    Err(ResponseError::InvalidRequest)
                }
                None => list(&mut view, found.as_deref(), partition, request.version).await,
            };
            partitions.push(match listed {
                Ok(Some(place)) => response
                    .with_offset(place.offset.0)
                    .with_timestamp(place.timestamp)
                    .with_leader_epoch(place.leader_epoch),
                Ok(None) => response,
                Err(error) => response.with_error_code(error.code()),
            });
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    Reply::encode(&ListOffsetsResponse::default().with_topics(topics), request.version)
}

/// The partitions that are named more than once, none of which the client has been told of.
fn repeated(topics: &[ListOffsetsTopic]) -> HashMap<(TopicName, i32), bool> {
    let mut seen = HashSet::new();
    let each = topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| (topic.name.clone(), partition.partition_index))
    });
    each.filter(|place| !seen.insert(place.clone())).map(|place| (place, false)).collect()
}

/// The first version with a sentinel; `None` for what is none.
fn since(timestamp: i64) -> Option<i16> {
    match timestamp {
        LATEST | EARLIEST => Some(1),
        MAX_TIMESTAMP => Some(7),
        EARLIEST_LOCAL => Some(8),
        LATEST_TIERED => Some(9),
        _ => None,
    }
}

/// A place that was found.
struct Found {
    offset: Offset,
    /// -1 where no record was looked at.
    timestamp: i64,
    leader_epoch: i32,
}

async fn list(
    view: &mut View,
    topic: Option<&Topic>,
    asked: &ListOffsetsPartition,
    version: i16,
) -> Result<Option<Found>, ResponseError> {
    if asked.timestamp < 0 && since(asked.timestamp).is_none_or(|since| version < since) {
        return Err(ResponseError::UnsupportedVersion);
    }
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let place = super::place(view, topic, asked.partition_index, asked.current_leader_epoch)?;
    let (log, snapshot) = view.at(place);
    let range = snapshot.range(place.partition).unwrap_or_default();
    let found = match asked.timestamp {
        LATEST => Some((range.end, -1)),
        EARLIEST | EARLIEST_LOCAL => Some((range.start, -1)),
        LATEST_TIERED => None,
        _ if range.start == range.end => None,
        MAX_TIMESTAMP => log
            .max_timestamp(snapshot, place.partition)
            .await
            .map_err(|error| storage_error(&topic.name, &error))?,
        timestamp => log
            .find_by_time(snapshot, place.partition, timestamp)
            .await
            .map_err(|error| storage_error(&topic.name, &error))?,
    };
    let leader_epoch = if version >= 4 { log.leader_epoch() } else { -1 };
    Ok(found.map(|(offset, timestamp)| Found { offset, timestamp, leader_epoch }))
}
