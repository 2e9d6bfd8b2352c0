//! AlterPartitionReassignments, key 45, versions 0–1: which brokers are to hold a partition.
//!
//! * 1 says whether the number of replicas may change.
//!
//! There is one broker, so it is the one assignment that is taken; anything else is INVALID_REPLICA_ASSIGNMENT, and there
//! is never a move to cancel (NO_REASSIGNMENT_IN_PROGRESS). As a single broker of Apache Kafka.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ApiKey, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::{at_once, has_partition};
use crate::kafka::shape::{BOOL, Field, I32, Kind, STRING};
use crate::kafka::{Api, Broker, NODE_ID, Request};

/// AlterPartitionReassignments.
pub static API: Api = Api {
    key: ApiKey::AlterPartitionReassignments,
    versions: (0, 1),
    flexible_from: 0,
    shape: &[Field::new(I32, 0), Field::new(BOOL, 1), Field::new(Kind::Structs(TOPIC), 0)],
    handle: |request| at_once(request, answer),
};

const PARTITION: &[Field] = &[Field::new(I32, 0), Field::new(Kind::Array(&I32), 0)];
const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Structs(PARTITION), 0)];

fn answer(
    request: &Request,
    asked: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let topic = |topic: ReassignableTopic| {
        let partition = |asked| reassign(&request.broker, &topic.name, asked);
        ReassignableTopicResponse::default()
            .with_partitions(topic.partitions.iter().map(partition).collect())
            .with_name(topic.name)
    };
    AlterPartitionReassignmentsResponse::default()
        .with_allow_replication_factor_change(asked.allow_replication_factor_change || request.version == 0)
        .with_responses(asked.topics.into_iter().map(topic).collect())
}

fn reassign(
    broker: &Broker,
    topic: &TopicName,
    asked: &ReassignablePartition,
) -> ReassignablePartitionResponse {
    let response = ReassignablePartitionResponse::default().with_partition_index(asked.partition_index);
    let (error, message) = match asked.replicas.as_deref() {
        _ if !has_partition(broker, topic, asked.partition_index) => {
            (ResponseError::UnknownTopicOrPartition, "there is no such partition")
        }
        None => (ResponseError::NoReassignmentInProgress, "no partition is being moved"),
        Some([only]) if only.0 == NODE_ID => return response.with_error_message(None),
        Some(_) => {
            (ResponseError::InvalidReplicaAssignment, "there is one broker, number 0, which holds everything")
        }
    };
    response.with_error_code(error.code()).with_error_message(Some(StrBytes::from_static_str(message)))
}
