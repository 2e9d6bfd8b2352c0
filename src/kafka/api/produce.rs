//! Produce, key 0, versions 3–13: refused. Topics are written by their task alone.
//!
//! * 5 adds the log's start to the answer, 8 an error message, 10 the current leader; 9 is flexible, 13 names topics by
//!   id.
//!
//! It is advertised because librdkafka derives its Fetch version from it and reads nothing from a broker without it.
//! Every partition is answered with TOPIC_AUTHORIZATION_FAILED, which clients do not retry, and from version 8 on with a
//! message. With `acks=0` there is no answer to carry the error; the connection is closed instead, as Apache Kafka does.

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ApiKey, ProduceRequest, ProduceResponse};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::shape::{BYTES, Field, I16, I32, Kind, STRING, UUID};
use crate::kafka::{Api, Reply, Request, RequestError};

/// Produce.
pub static API: Api = Api { key: ApiKey::Produce, versions: (3, 13), flexible_from: 9, shape: SHAPE, handle };

const PARTITION: &[Field] = &[Field::new(I32, 3), Field::new(BYTES, 3)];
const TOPIC: &[Field] =
    &[Field::new(STRING, 3).until(12), Field::new(UUID, 13), Field::new(Kind::Structs(PARTITION), 3)];
const SHAPE: &[Field] =
    &[Field::new(STRING, 3), Field::new(I16, 3), Field::new(I32, 3), Field::new(Kind::Structs(TOPIC), 3)];

const MESSAGE: &str =
    "topics are read-only here: Millrace writes them from the changes of their source database";

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: ProduceRequest = request.decode()?;
    if asked.acks == 0 {
        return Err(RequestError::Refused("a write with acks=0 to a read-only topic"));
    }
    let refused = |index: i32| {
        let mut partition = PartitionProduceResponse::default()
            .with_index(index)
            .with_error_code(ResponseError::TopicAuthorizationFailed.code())
            .with_base_offset(-1);
        if request.version >= 8 {
            partition.error_message = Some(StrBytes::from_static_str(MESSAGE));
        }
        partition
    };
    let topics = asked.topic_data.into_iter().map(|topic| {
        let partitions = topic.partition_data.iter().map(|partition| refused(partition.index)).collect();
        TopicProduceResponse::default()
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
            .with_partition_responses(partitions)
    });
    Reply::encode(&ProduceResponse::default().with_responses(topics.collect()), request.version)
}
