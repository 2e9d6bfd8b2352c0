//! DeleteTopics, key 20, versions 1–6: takes topics away, with their records and committed offsets. Refused without
//! `kafka.unsafe_produce`, as topics belong to tasks.
//!
//! * 1 adds the throttle time, 3 tells that deletion is disabled; 4 is flexible, 5 adds an error message, 6 names topics by
//!   id too.
//!
//! Unlike in Apache Kafka a topic of a task stays with it: POLICY_VIOLATION. Only with `kafka.unsafe_produce`, for tests,
//! are there [topics that clients make](crate::produce), and those they may delete. The answer comes when the topic is
//! gone, so the timeout has no meaning.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{ApiKey, DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use uuid::Uuid;

use super::create_topics::Refusal;
use super::{from_uuid, text, to_uuid};
use crate::kafka::shape::{Field, I32, Kind, STRING, UUID};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};
use crate::log::LogError;
use crate::log::topics::Topic;
use crate::produce::TopicError;

/// DeleteTopics.
pub static API: Api =
    Api { key: ApiKey::DeleteTopics, versions: (1, 6), flexible_from: 4, shape: SHAPE, handle };

const TOPIC: &[Field] = &[Field::new(STRING, 6), Field::new(UUID, 6)];
const SHAPE: &[Field] =
    &[Field::new(Kind::Structs(TOPIC), 6), Field::new(Kind::Array(&STRING), 1).until(5), Field::new(I32, 1)];

const BELONGS_TO_TASK: &str = "the topic belongs to a task and stays with it; log.retention_hours and log.retention_mb say what of it is kept";

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: DeleteTopicsRequest = request.decode()?;
    let broker = &request.broker;
    let by_name = |name| DeleteTopicState::default().with_name(Some(name));
    let states: Vec<DeleteTopicState> =
        asked.topics.into_iter().chain(asked.topic_names.into_iter().map(by_name)).collect();
    let found: Vec<_> = states.iter().map(|state| find(broker, state)).collect();
    // A topic may be named by its name and by its id.
    let mut named: HashMap<&str, usize> = HashMap::new();
    for topic in found.iter().flatten() {
        *named.entry(&topic.name).or_default() += 1;
    }
    let mut results = Vec::new();
    for (state, found) in states.iter().zip(&found) {
        let name = found.as_ref().map_or(state.name.clone(), |topic| Some(TopicName(text(&topic.name))));
        let id = found.as_ref().map_or(state.topic_id, |topic| to_uuid(topic.id));
        let deleted = match found {
            Err(refusal) => Err(refusal.clone()),
            Ok(topic) if named.get(topic.name.as_str()) != Some(&1) => {
                Err((ResponseError::InvalidRequest, "the topic is named more than once".to_owned()))
            }
            Ok(topic) => delete(broker, topic).await,
        };
        let mut result = DeletableTopicResult::default().with_name(name);
        if request.version >= 6 {
            result.topic_id = id;
        }
        if let Err((error, message)) = deleted {
            result.error_code = error.code();
            result.error_message = (request.version >= 5).then(|| text(&message));
        }
        results.push(result);
    }
    Reply::encode(&DeleteTopicsResponse::default().with_responses(results), request.version)
}

fn find(broker: &Broker, asked: &DeleteTopicState) -> Result<Arc<Topic>, Refusal> {
    let invalid = |message: &str| Err((ResponseError::InvalidRequest, message.to_owned()));
    let (topic, error) = match (&asked.name, asked.topic_id) {
        (Some(_), id) if id != Uuid::nil() => {
            return invalid("a topic is named by its name or by its id, not by both");
        }
        (Some(name), _) => (broker.topics.by_name(name), ResponseError::UnknownTopicOrPartition),
        (None, id) if id == Uuid::nil() => return invalid("neither a name nor an id is given"),
        (None, id) => (broker.topics.by_id(from_uuid(id)), ResponseError::UnknownTopicId),
    };
    topic.ok_or_else(|| (error, "there is no such topic".to_owned()))
}

async fn delete(broker: &Broker, topic: &Arc<Topic>) -> Result<(), Refusal> {
    let Some(ours) = broker.client_topics.as_ref().filter(|ours| ours.has(topic)) else {
        return Err((ResponseError::PolicyViolation, BELONGS_TO_TASK.to_owned()));
    };
    ours.delete(topic.clone()).await.map_err(|error| {
        let code = match &error {
            TopicError::Log(LogError::UnknownTopic(_)) => ResponseError::UnknownTopicOrPartition,
            _ => ResponseError::KafkaStorageError,
        };
        (code, error.to_string())
    })?;
    if let Err(error) = broker.groups.forget_topic(topic).await {
        // They mean nothing for a new topic of the name, which has another id.
        tracing::warn!(topic = topic.name, ?error, "what groups had committed for a deleted topic stays");
    }
    Ok(())
}
