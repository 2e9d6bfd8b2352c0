//! ElectLeaders, key 43, versions 0–2: a partition gets its preferred leader, or any that there is.
//!
//! * 1 adds the kind of election and an error for the whole answer; 2 is flexible.
//!
//! There is one broker, which leads everything: ELECTION_NOT_NEEDED. Asked for all partitions it answers, as Apache Kafka
//! does, with all topics and none of the partitions that need nothing.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::{ApiKey, ElectLeadersRequest, ElectLeadersResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::{at_once, has_partition, text};
use crate::kafka::shape::{Field, I8, I32, Kind, STRING};
use crate::kafka::{Api, Broker, Request};

/// ElectLeaders.
pub static API: Api = Api {
    key: ApiKey::ElectLeaders,
    versions: (0, 2),
    flexible_from: 2,
    shape: &[Field::new(I8, 1), Field::new(Kind::Structs(TOPIC), 0), Field::new(I32, 0)],
    handle: |request| at_once(request, answer),
};

const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Array(&I32), 0)];

/// The last kind of election: 0 is of the preferred leader, 1 of one that may have missed something.
const UNCLEAN: i8 = 1;

fn answer(request: &Request, asked: ElectLeadersRequest) -> ElectLeadersResponse {
    if !(0..=UNCLEAN).contains(&asked.election_type) {
        return ElectLeadersResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    let broker = &request.broker;
    let results = match asked.topic_partitions {
        Some(topics) => topics.into_iter().map(|topic| elect(broker, topic)).collect(),
        None => {
            let untouched = |name: &str| ReplicaElectionResult::default().with_topic(TopicName(text(name)));
            broker.topics.all().iter().map(|topic| untouched(&topic.name)).collect()
        }
    };
    ElectLeadersResponse::default().with_replica_election_results(results)
}

fn elect(broker: &Broker, asked: TopicPartitions) -> ReplicaElectionResult {
    let partition = |index: &i32| {
        let (error, message) = match has_partition(broker, &asked.topic, *index) {
            true => (ResponseError::ElectionNotNeeded, "the one broker leads every partition"),
            false => (ResponseError::UnknownTopicOrPartition, "there is no such partition"),
        };
        PartitionResult::default()
            .with_partition_id(*index)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    };
    ReplicaElectionResult::default()
        .with_partition_result(asked.partitions.iter().map(partition).collect())
        .with_topic(asked.topic)
}
