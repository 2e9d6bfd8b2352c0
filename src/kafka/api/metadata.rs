//! Metadata, key 3, versions 0–13: the brokers, and topics with their partitions and leaders.
//!
//! * 1 adds rack, controller, internal topics, and "no topics": null asks for all, an empty list for none. In version 0
//!   an empty list asks for all.
//! * 2 adds the cluster id, 3 the throttle time, 4 whether topics may be made on the way, 5 offline replicas,
//!   7 leader epochs, 8 authorized operations (of the cluster until 10).
//! * 9 is flexible; 10 adds topic ids to the answer, 12 asking by id, 13 an error for the whole answer.
//!
//! A request that asks by id before version 12 is INVALID_REQUEST for all its topics, and learns of no broker. From then
//! on one id makes it a request by id, and names without an id are passed over.
//!
//! Unlike Apache Kafka it never makes a topic, whatever the request allows: a topic that is not there is
//! UNKNOWN_TOPIC_OR_PARTITION, which clients retry until a task makes it. Only with `kafka.unsafe_produce` it does, and
//! answers with the topic at once, where Kafka answers with an error first. There is one broker, which leads everything.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{ApiKey, MetadataRequest, MetadataResponse, TopicName};
use uuid::Uuid;

use super::{from_uuid, text, to_uuid};
use crate::kafka::shape::{BOOL, Field, Kind, STRING, UUID};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};
use crate::log::topics::{Topic, is_topic_name};
use crate::produce::{ClientTopics, DEFAULT_PARTITIONS, LOG_NAME};

/// Metadata.
pub static API: Api =
    Api { key: ApiKey::Metadata, versions: (0, 13), flexible_from: 9, shape: SHAPE, handle };

const TOPIC: &[Field] = &[Field::new(UUID, 10), Field::new(STRING, 0)];
const SHAPE: &[Field] = &[
    Field::new(Kind::Structs(TOPIC), 0),
    Field::new(BOOL, 4),
    Field::new(BOOL, 8).until(10),
    Field::new(BOOL, 8),
];

/// Bits of READ, DESCRIBE and DESCRIBE_CONFIGS: what every client may do with a topic.
pub(super) const TOPIC_OPERATIONS: i32 = 1 << 3 | 1 << 8 | 1 << 10;
/// Bits of DELETE and ALTER_CONFIGS, which take records away: for users of the broker's machine.
const LOCAL_OPERATIONS: i32 = 1 << 6 | 1 << 11;
/// Bits of WRITE, CREATE and ALTER, which are for topics that clients make.
const WRITE_OPERATIONS: i32 = 1 << 4 | 1 << 5 | 1 << 7;
/// Bits of DESCRIBE and DESCRIBE_CONFIGS: all that a client may do with the cluster.
pub(super) const CLUSTER_OPERATIONS: i32 = 1 << 8 | 1 << 10;

/// Topics of Kafka's own, which tools look for and nobody may make by that.
const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: MetadataRequest = request.decode()?;
    let broker = &request.broker;
    if request.version < 12
        && let Some(topics) = &asked.topics
        && topics.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_nil())
    {
        let refused = topics.iter().map(|topic| {
            let name = topic.name.clone().unwrap_or_default();
            refused(ResponseError::InvalidRequest).with_name(Some(name)).with_topic_id(topic.topic_id)
        });
        let response = MetadataResponse::default().with_topics(refused.collect());
        return Reply::encode(&response, request.version);
    }
    let topics = match &asked.topics {
        Some(topics) if !(topics.is_empty() && request.version == 0) => {
            if let Some(ours) = &broker.client_topics
                && asked.allow_auto_topic_creation
            {
                make_missing(broker, ours, topics).await;
            }
            named(broker, topics)
        }
        _ => broker.topics.all().iter().map(|topic| describe(topic)).collect(),
    };
    let mut response = MetadataResponse::default()
        .with_brokers(vec![
            MetadataResponseBroker::default()
                .with_node_id(NODE_ID.into())
                .with_host(text(&broker.advertised_host))
                .with_port(broker.advertised_port.into()),
        ])
        .with_cluster_id(Some(text(&broker.cluster_id)))
        .with_controller_id(NODE_ID.into())
        .with_topics(topics);
    if asked.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    if asked.include_topic_authorized_operations {
        for topic in &mut response.topics {
            let known = topic.name.as_ref().and_then(|name| broker.topics.by_name(name));
            topic.topic_authorized_operations =
                known.map_or(TOPIC_OPERATIONS, |topic| operations(broker, &topic));
        }
    }
    Reply::encode(&response, request.version)
}

/// The topics asked for, each once however often it is named: the answer must not outgrow the request without bound.
fn named(broker: &Broker, asked: &[MetadataRequestTopic]) -> Vec<MetadataResponseTopic> {
    let mut seen = HashSet::new();
    let each = asked.iter().filter(|topic| seen.insert((&topic.name, topic.topic_id)));
    if asked.iter().any(|topic| !topic.topic_id.is_nil()) {
        let ids = each.map(|topic| topic.topic_id).filter(|id| !id.is_nil());
        let found = |id: Uuid| match broker.topics.by_id(from_uuid(id)) {
            Some(found) => describe(&found),
            None => refused(ResponseError::UnknownTopicId).with_name(None).with_topic_id(id),
        };
        return ids.map(found).collect();
    }
    let found = |topic: &MetadataRequestTopic| {
        let name = topic.name.clone().unwrap_or_default();
        match broker.topics.by_name(&name) {
            Some(found) => describe(&found),
            None if !is_topic_name(&name) => {
                refused(ResponseError::InvalidTopicException).with_name(Some(name))
            }
            None => refused(ResponseError::UnknownTopicOrPartition).with_name(Some(name)),
        }
    };
    each.map(found).collect()
}

/// Makes those of the topics that are not there. One that cannot be made is missing in the answer.
async fn make_missing(broker: &Broker, ours: &ClientTopics, asked: &[MetadataRequestTopic]) {
    for name in asked.iter().filter_map(|topic| topic.name.as_ref()) {
        if broker.topics.by_name(name).is_none()
            && is_topic_name(name)
            && !INTERNAL.contains(&name.as_str())
            && let Err(error) = ours.create(name, DEFAULT_PARTITIONS).await
        {
            tracing::warn!(topic = name.as_str(), %error, "a topic could not be made on demand");
        }
    }
}

/// What a client may do with a topic, as bits.
pub(super) fn operations(broker: &Broker, topic: &Topic) -> i32 {
    let local = if broker.local_only { LOCAL_OPERATIONS } else { 0 };
    let write = if topic.log.name() == LOG_NAME { WRITE_OPERATIONS } else { 0 };
    TOPIC_OPERATIONS | local | write
}

fn refused(error: ResponseError) -> MetadataResponseTopic {
    MetadataResponseTopic::default().with_error_code(error.code())
}

fn describe(topic: &Topic) -> MetadataResponseTopic {
    let leader_epoch = topic.log.leader_epoch();
    let partitions = (0..topic.partitions.len() as i32).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(NODE_ID.into())
            .with_leader_epoch(leader_epoch)
            .with_replica_nodes(vec![NODE_ID.into()])
            .with_isr_nodes(vec![NODE_ID.into()])
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(&topic.name))))
        .with_topic_id(to_uuid(topic.id))
        .with_partitions(partitions.collect())
}
