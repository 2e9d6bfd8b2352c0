//! CreateTopics, key 19, versions 2–7: makes topics. Refused without `kafka.unsafe_produce`, as topics belong to tasks.
//!
//! * 3 and 4: as 2; 4 has -1 for the default number of partitions. 5 is flexible and adds partitions, replication factor
//!   and settings of the new topic to the answer, 6 throttling, 7 the topic's id.
//!
//! Unlike in Apache Kafka topics belong to tasks, so a new one is POLICY_VIOLATION with a message that says how to have
//! one; a topic that is there is TOPIC_ALREADY_EXISTS, on which tools rely. Only with `kafka.unsafe_produce`, for tests,
//! are there [topics that clients make](crate::produce): with four partitions by default. All of them share one log, so
//! settings of one are checked and have no effect, and the answer has those that hold. The answer comes when the topic is
//! there, so the timeout has no meaning. A name that differs from another one by `.` and `_` alone is a name like any.

use std::collections::{HashMap, HashSet};

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{ApiKey, BrokerId, CreateTopicsRequest, CreateTopicsResponse};

use super::{text, to_uuid};
use crate::kafka::shape::{self, BOOL, Field, I16, I32, STRING};
use crate::kafka::topic_settings::{self, Kind};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};
use crate::log::LogError;
use crate::log::topics::is_topic_name;
use crate::produce::{ClientTopics, DEFAULT_PARTITIONS, TopicError};

/// CreateTopics.
pub static API: Api =
    Api { key: ApiKey::CreateTopics, versions: (2, 7), flexible_from: 5, shape: SHAPE, handle };

const ASSIGNMENT: &[Field] = &[Field::new(I32, 2), Field::new(shape::Kind::Array(&I32), 2)];
const CONFIG: &[Field] = &[Field::new(STRING, 2), Field::new(STRING, 2)];
const TOPIC: &[Field] = &[
    Field::new(STRING, 2),
    Field::new(I32, 2),
    Field::new(I16, 2),
    Field::new(shape::Kind::Structs(ASSIGNMENT), 2),
    Field::new(shape::Kind::Structs(CONFIG), 2),
];
const SHAPE: &[Field] =
    &[Field::new(shape::Kind::Structs(TOPIC), 2), Field::new(I32, 2), Field::new(BOOL, 2)];

const BELONGS_TO_TASKS: &str = "topics belong to tasks and are not made by clients: capture a database with `millrace up`, \
     or name a task and its outputs below [[tasks]] in the file of `millrace serve`";

/// An error, and what to say of it.
pub(super) type Refusal = (ResponseError, String);

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: CreateTopicsRequest = request.decode()?;
    let mut named: HashMap<&str, usize> = HashMap::new();
    for topic in &asked.topics {
        *named.entry(&topic.name).or_default() += 1;
    }
    let mut results = Vec::new();
    for topic in &asked.topics {
        let result = match named.remove(topic.name.as_str()) {
            Some(1) => create(&request.broker, topic, asked.validate_only).await,
            Some(_) => Err((ResponseError::InvalidRequest, "the topic is named more than once".to_owned())),
            // It has been answered.
            None => continue,
        };
        results.push(response(&request.broker, topic, result, request.version));
    }
    Reply::encode(&CreateTopicsResponse::default().with_topics(results), request.version)
}

/// Makes a topic, or only says whether it could; gives its number of partitions.
async fn create(broker: &Broker, topic: &CreatableTopic, validate_only: bool) -> Result<u32, Refusal> {
    let name = topic.name.as_str();
    if !is_topic_name(name) {
        let message = format!(
            "'{name}' is no name for a topic: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', and not '.' or '..'"
        );
        return Err((ResponseError::InvalidTopicException, message));
    }
    if broker.topics.by_name(name).is_some() {
        return Err((ResponseError::TopicAlreadyExists, format!("topic '{name}' exists already")));
    }
    let Some(ours) = &broker.client_topics else {
        return Err((ResponseError::PolicyViolation, BELONGS_TO_TASKS.to_owned()));
    };
    let partitions = partitions(topic)?;
    check_configs(topic)?;
    if !validate_only {
        make(ours, name, partitions).await?;
    }
    Ok(partitions)
}

async fn make(ours: &ClientTopics, name: &str, partitions: u32) -> Result<(), Refusal> {
    ours.create(name, partitions).await.map_err(|error| {
        let code = match &error {
            TopicError::Exists(_) => ResponseError::TopicAlreadyExists,
            TopicError::Log(LogError::InvalidTopic { .. } | LogError::PartitionCount { .. }) => {
                ResponseError::InvalidPartitions
            }
            TopicError::Log(_) => ResponseError::KafkaStorageError,
        };
        (code, error.to_string())
    })
}

/// How many partitions the topic is to have.
fn partitions(topic: &CreatableTopic) -> Result<u32, Refusal> {
    let invalid = |message: &str| Err((ResponseError::InvalidRequest, message.to_owned()));
    if !topic.assignments.is_empty() {
        if topic.replication_factor != -1 {
            return invalid("replicas are assigned by hand, so the replication factor must be -1");
        }
        if topic.num_partitions != -1 {
            return invalid("replicas are assigned by hand, so the number of partitions must be -1");
        }
        let mut indexes = HashSet::new();
        for assignment in &topic.assignments {
            check_replicas(&assignment.broker_ids)?;
            indexes.insert(assignment.partition_index);
        }
        let count = topic.assignments.len();
        if (0..count as i32).any(|index| !indexes.contains(&index)) {
            let message = format!("replicas must be assigned once to each partition from 0 to {}", count - 1);
            return Err((ResponseError::InvalidReplicaAssignment, message));
        }
        return Ok(count as u32);
    }
    match topic.replication_factor {
        -1 | 1 => {}
        factor => {
            let message =
                format!("there is one broker, so the replication factor must be 1 or -1, not {factor}");
            return Err((ResponseError::InvalidReplicationFactor, message));
        }
    }
    match topic.num_partitions {
        -1 => Ok(DEFAULT_PARTITIONS),
        count if count > 0 => Ok(count as u32),
        count => {
            let message = format!("a topic has at least one partition, not {count}; -1 is for the default");
            Err((ResponseError::InvalidPartitions, message))
        }
    }
}

/// Whether a partition's replicas may be on these brokers: there is one.
pub(super) fn check_replicas(brokers: &[BrokerId]) -> Result<(), Refusal> {
    match brokers {
        [BrokerId(NODE_ID)] => Ok(()),
        _ => {
            let brokers: Vec<i32> = brokers.iter().map(|broker| broker.0).collect();
            let message = format!("there is one broker, {NODE_ID}, and replicas cannot be on {brokers:?}");
            Err((ResponseError::InvalidReplicaAssignment, message))
        }
    }
}

/// Whether these are settings that a topic has, with values that they can have.
fn check_configs(topic: &CreatableTopic) -> Result<(), Refusal> {
    for config in &topic.configs {
        let name = config.name.as_str();
        let invalid = |what: &str| Err((ResponseError::InvalidConfig, format!("{name}: {what}")));
        let Some(definition) = topic_settings::find(name) else {
            return invalid("topics have no such setting");
        };
        let Some(value) = config.value.as_deref() else { return invalid("it has no value") };
        let fits = match definition.kind {
            Kind::Boolean => matches!(value, "true" | "false"),
            Kind::Int => value.parse::<i32>().is_ok(),
            Kind::Long => value.parse::<i64>().is_ok(),
            Kind::Double => value.parse::<f64>().is_ok(),
            Kind::Text | Kind::List => true,
        };
        if !fits {
            return invalid(&format!("'{value}' is not of its type, {:?}", definition.kind));
        }
    }
    Ok(())
}

fn response(
    broker: &Broker,
    topic: &CreatableTopic,
    result: Result<u32, Refusal>,
    version: i16,
) -> CreatableTopicResult {
    let response = CreatableTopicResult::default().with_name(topic.name.clone());
    match result {
        Ok(_) if version < 5 => response.with_error_message(None),
        Ok(partitions) => {
            let made = broker.topics.by_name(&topic.name);
            let settings = made.as_ref().map(|made| broker.topic_settings.of(made)).unwrap_or_default();
            let configs = settings.into_iter().map(|setting| {
                CreatableTopicConfigs::default()
                    .with_name(text(setting.definition.name))
                    .with_value(Some(text(&setting.value)))
                    .with_read_only(!setting.definition.is_alterable())
                    .with_config_source(setting.origin as i8)
            });
            response
                .with_error_message(None)
                .with_topic_id(made.map(|made| to_uuid(made.id)).unwrap_or_default())
                .with_num_partitions(partitions as i32)
                .with_replication_factor(1)
                .with_configs(Some(configs.collect()))
        }
        Err((error, message)) => response
            .with_error_code(error.code())
            .with_error_message(Some(text(&message)))
            .with_num_partitions(-1)
            .with_replication_factor(-1),
    }
}
