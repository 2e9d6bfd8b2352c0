//! DeleteRecords, key 21, versions 0–2: takes the oldest records of partitions away, so that no consumer sees them any
//! more.
//!
//! * 1: as 0. 2: flexible.
//!
//! Every topic's records may be deleted, also those that a task has captured; the source does not send them again. There
//! are no accounts yet: unless the broker listens on loopback, nobody may, TOPIC_AUTHORIZATION_FAILED. An
//! offset of -1 stands for the high watermark. Answered when the new starts are durable. A partition that is named twice
//! is answered once, with the last offset, as Apache Kafka does. The space comes back when nobody can read anything of
//! the oldest segments of the task's log any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{ApiKey, DeleteRecordsRequest, DeleteRecordsResponse, TopicName};

use super::{place, storage_error};
use crate::kafka::shape::{Field, I32, I64, Kind, STRING};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};
use crate::log::view::View;
use crate::log::{LogError, LogReader, Offset, PartitionId};

/// DeleteRecords.
pub static API: Api = Api {
    key: ApiKey::DeleteRecords,
    versions: (0, 2),
    flexible_from: 2,
    shape: SHAPE,
    handle: |request| Box::pin(handle(request)),
};

const PARTITION: &[Field] = &[Field::new(I32, 0), Field::new(I64, 0)];
const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Structs(PARTITION), 0)];
const SHAPE: &[Field] = &[Field::new(Kind::Structs(TOPIC), 0), Field::new(I32, 0)];

/// Stands for the high watermark.
const END: i64 = -1;

/// The new starts of a topic's partitions.
type Starts = BTreeMap<i32, Result<Offset, ResponseError>>;

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: DeleteRecordsRequest = request.decode()?;
    let mut wanted: BTreeMap<TopicName, BTreeMap<i32, i64>> = BTreeMap::new();
    for topic in asked.topics {
        let partitions = topic.partitions.iter().map(|asked| (asked.partition_index, asked.offset));
        wanted.entry(topic.name).or_default().extend(partitions);
    }
    let topics = delete(&request.broker, &wanted).await.into_iter().map(|(name, starts)| {
        let partitions = starts.into_iter().map(|(index, start)| {
            DeleteRecordsPartitionResult::default()
                .with_partition_index(index)
                .with_low_watermark(start.map_or(-1, |start| start.0))
                .with_error_code(start.err().map_or(0, |error| error.code()))
        });
        DeleteRecordsTopicResult::default().with_name(name.clone()).with_partitions(partitions.collect())
    });
    Reply::encode(&DeleteRecordsResponse::default().with_topics(topics.collect()), request.version)
}

/// What is to be deleted in one log.
struct InLog<'a> {
    log: Arc<dyn LogReader>,
    /// Each with the topic and the number that it has there.
    partitions: Vec<(PartitionId, Offset, &'a TopicName, i32)>,
}

async fn delete<'a>(
    broker: &Broker,
    wanted: &'a BTreeMap<TopicName, BTreeMap<i32, i64>>,
) -> BTreeMap<&'a TopicName, Starts> {
    let mut view = View::default();
    let mut results: BTreeMap<&TopicName, Starts> = BTreeMap::new();
    let mut logs: Vec<InLog<'_>> = Vec::new();
    for (name, partitions) in wanted {
        let topic = broker.topics.by_name(name);
        let results = results.entry(name).or_default();
        for (index, below) in partitions {
            let found = topic.as_deref().ok_or(ResponseError::UnknownTopicOrPartition);
            let found = match broker.local_only {
                true => found,
                false => found.and(Err(ResponseError::TopicAuthorizationFailed)),
            };
            let found = found.and_then(|topic| place(&mut view, topic, *index, -1));
            let offset = found.and_then(|place| match view.range(place).end {
                end if *below == END => Ok((place, end)),
                end if (0..=end.0).contains(below) => Ok((place, Offset(*below))),
                _ => Err(ResponseError::OffsetOutOfRange),
            });
            match offset {
                Ok((place, below)) => {
                    let log = view.at(place).0;
                    let partition = (place.partition, below, name, *index);
                    match logs.iter_mut().find(|in_log| Arc::ptr_eq(&in_log.log, log)) {
                        Some(in_log) => in_log.partitions.push(partition),
                        None => logs.push(InLog { log: log.clone(), partitions: vec![partition] }),
                    }
                }
                Err(error) => drop(results.insert(*index, Err(error))),
            }
        }
    }
    for in_log in logs {
        for (name, index, start) in in_log.delete().await {
            results.entry(name).or_default().insert(index, start);
        }
    }
    results
}

impl<'a> InLog<'a> {
    async fn delete(mut self) -> Vec<(&'a TopicName, i32, Result<Offset, ResponseError>)> {
        let mut results = Vec::with_capacity(self.partitions.len());
        while !self.partitions.is_empty() {
            let below = self.partitions.iter().map(|(partition, below, ..)| (*partition, *below)).collect();
            let deleted = self.log.delete_records(below).await;
            if let Err(LogError::UnknownPartition(gone)) = deleted {
                // Its topic has been deleted meanwhile; the others are there.
                self.partitions.retain(|(partition, _, name, index)| {
                    if *partition == gone {
                        results.push((*name, *index, Err(ResponseError::UnknownTopicOrPartition)));
                    }
                    *partition != gone
                });
                continue;
            }
            let (log, partitions) = (self.log.name(), self.partitions.len());
            let starts = deleted.map_err(|error| storage_error(log, &error));
            if starts.is_ok() {
                tracing::info!(log, partitions, "records were deleted");
            }
            for (place, (_, _, name, index)) in self.partitions.drain(..).enumerate() {
                let start = starts.as_ref().map_err(|error| *error);
                let start =
                    start.and_then(|starts| starts.get(place).ok_or(ResponseError::KafkaStorageError));
                results.push((name, index, start.copied()));
            }
        }
        results
    }
}
