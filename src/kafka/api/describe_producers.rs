//! DescribeProducers, key 61, version 0: who writes to a partition. Topics are written by their task, so nobody does.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, TopicResponse};
use kafka_protocol::messages::{ApiKey, DescribeProducersRequest, DescribeProducersResponse};

use super::{at_once, has_partition};
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Request};
use crate::log::topics::is_topic_name;

/// DescribeProducers.
pub static API: Api = Api {
    key: ApiKey::DescribeProducers,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(Kind::Structs(TOPIC), 0)],
    handle: |request| at_once(request, answer),
};

const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Array(&I32), 0)];

fn answer(request: &Request, asked: DescribeProducersRequest) -> DescribeProducersResponse {
    let topic = |topic: TopicRequest| {
        let partition = |index: &i32| {
            let error = match has_partition(&request.broker, &topic.name, *index) {
                true => 0,
                false if !is_topic_name(&topic.name) => ResponseError::InvalidTopicException.code(),
                false => ResponseError::UnknownTopicOrPartition.code(),
            };
            PartitionResponse::default().with_partition_index(*index).with_error_code(error)
        };
        TopicResponse::default()
            .with_partitions(topic.partition_indexes.iter().map(partition).collect())
            .with_name(topic.name)
    };
    DescribeProducersResponse::default().with_topics(asked.topics.into_iter().map(topic).collect())
}
