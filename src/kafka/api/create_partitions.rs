//! CreatePartitions, key 37, versions 0–3: gives topics more partitions. Refused without `kafka.unsafe_produce`, as their number is
//! fixed.
//!
//! * 1: as 0. 2: flexible. 3: throttling.
//!
//! Unlike in Apache Kafka the number of a task's topic is fixed for its life, so that a key stays in its partition:
//! POLICY_VIOLATION. Only with `kafka.unsafe_produce`, for tests, are there [topics that clients make](crate::produce),
//! and those may get more. The answer comes when the partitions are there, so the timeout has no meaning.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{ApiKey, CreatePartitionsRequest, CreatePartitionsResponse};

use super::create_topics::{Refusal, check_replicas};
use super::text;
use crate::kafka::shape::{BOOL, Field, I32, Kind, STRING};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};
use crate::log::LogError;
use crate::produce::TopicError;

/// CreatePartitions.
pub static API: Api =
    Api { key: ApiKey::CreatePartitions, versions: (0, 3), flexible_from: 2, shape: SHAPE, handle };

const ASSIGNMENT: &[Field] = &[Field::new(Kind::Array(&I32), 0)];
const TOPIC: &[Field] =
    &[Field::new(STRING, 0), Field::new(I32, 0), Field::new(Kind::Structs(ASSIGNMENT), 0)];
const SHAPE: &[Field] = &[Field::new(Kind::Structs(TOPIC), 0), Field::new(I32, 0), Field::new(BOOL, 0)];

const FIXED: &str = "the number of partitions is fixed for the life of a task's topic, so that a key stays in its \
     partition; give the task another output, with as many `partitions` as you want, and move to its topic";

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: CreatePartitionsRequest = request.decode()?;
    let mut named: HashMap<&str, usize> = HashMap::new();
    for topic in &asked.topics {
        *named.entry(&topic.name).or_default() += 1;
    }
    let mut results = Vec::new();
    for topic in &asked.topics {
        let added = match named.remove(topic.name.as_str()) {
            Some(1) => add(&request.broker, topic, asked.validate_only).await,
            Some(_) => Err((ResponseError::InvalidRequest, "the topic is named more than once".to_owned())),
            // It has been answered.
            None => continue,
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match added {
            Ok(()) => result.with_error_message(None),
            Err((error, message)) => {
                result.with_error_code(error.code()).with_error_message(Some(text(&message)))
            }
        });
    }
    Reply::encode(&CreatePartitionsResponse::default().with_results(results), request.version)
}

async fn add(broker: &Broker, asked: &CreatePartitionsTopic, validate_only: bool) -> Result<(), Refusal> {
    let Some(topic) = broker.topics.by_name(&asked.name) else {
        return Err((ResponseError::UnknownTopicOrPartition, "there is no such topic".to_owned()));
    };
    let Some(ours) = broker.client_topics.as_ref().filter(|ours| ours.has(&topic)) else {
        return Err((ResponseError::PolicyViolation, FIXED.to_owned()));
    };
    let existing = topic.partitions.len();
    let total = usize::try_from(asked.count).unwrap_or(0);
    if total <= existing {
        let message = format!("the topic has {existing} partitions, and {} would not be more", asked.count);
        return Err((ResponseError::InvalidPartitions, message));
    }
    if let Some(assignments) = &asked.assignments {
        if assignments.len() != total - existing {
            let message = format!(
                "replicas are assigned to {} partitions, where {} are added",
                assignments.len(),
                total - existing
            );
            return Err((ResponseError::InvalidReplicaAssignment, message));
        }
        for assignment in assignments {
            check_replicas(&assignment.broker_ids)?;
        }
    }
    if validate_only {
        return Ok(());
    }
    ours.add_partitions(topic, total as u32).await.map_err(|error| {
        let code = match &error {
            TopicError::Log(LogError::UnknownTopic(_)) => ResponseError::UnknownTopicOrPartition,
            TopicError::Log(LogError::FewerPartitions { .. } | LogError::InvalidTopic { .. }) => {
                ResponseError::InvalidPartitions
            }
            _ => ResponseError::KafkaStorageError,
        };
        (code, error.to_string())
    })
}
