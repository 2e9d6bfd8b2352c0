//! DescribeQuorum, key 55, versions 0–2: who votes on the cluster's metadata.
//!
//! * 1 adds when a voter was last heard of; 2 messages, directories, and where voters listen.
//!
//! This broker is the only voter and the leader. Unlike Apache Kafka it has no log of metadata: its offsets are 0, and
//! there is no listener of a controller.

use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_quorum_request;
use kafka_protocol::messages::describe_quorum_response::{Node, PartitionData, ReplicaState, TopicData};
use kafka_protocol::messages::{ApiKey, DescribeQuorumRequest, DescribeQuorumResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, NODE_ID, Request};

/// DescribeQuorum.
pub static API: Api = Api {
    key: ApiKey::DescribeQuorum,
    versions: (0, 2),
    flexible_from: 0,
    shape: &[Field::new(Kind::Structs(TOPIC), 0)],
    handle: |request| at_once(request, answer),
};

const PARTITION: &[Field] = &[Field::new(I32, 0)];
const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Structs(PARTITION), 0)];

/// The one topic, of one partition, that has a quorum.
const METADATA: &str = "__cluster_metadata";

fn answer(request: &Request, asked: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let is_quorum = match asked.topics.as_slice() {
        [topic] => {
            *topic.topic_name == *METADATA
                && matches!(topic.partitions.as_slice(), [only] if only.partition_index == 0)
        }
        _ => false,
    };
    let topic = |topic: describe_quorum_request::TopicData| {
        let partition = |asked: &describe_quorum_request::PartitionData| match is_quorum {
            true => quorum(request.version),
            false => PartitionData::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(ResponseError::UnknownTopicOrPartition.code())
                .with_error_message(message("only the cluster's metadata has a quorum", request.version)),
        };
        TopicData::default()
            .with_partitions(topic.partitions.iter().map(partition).collect())
            .with_topic_name(topic.topic_name)
    };
    let response = DescribeQuorumResponse::default()
        .with_error_message(message("", request.version))
        .with_topics(asked.topics.into_iter().map(topic).collect());
    match is_quorum && request.version >= 2 {
        true => response.with_nodes(vec![Node::default().with_node_id(NODE_ID.into())]),
        false => response,
    }
}

fn quorum(version: i16) -> PartitionData {
    let mut us = ReplicaState::default().with_replica_id(NODE_ID.into());
    if version >= 1 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        us = us.with_last_fetch_timestamp(now).with_last_caught_up_timestamp(now);
    }
    PartitionData::default()
        .with_leader_id(NODE_ID.into())
        .with_error_message(message("", version))
        .with_current_voters(vec![us])
}

/// A message, where the version has any.
fn message(text: &'static str, version: i16) -> Option<StrBytes> {
    (version >= 2).then(|| StrBytes::from_static_str(text))
}
