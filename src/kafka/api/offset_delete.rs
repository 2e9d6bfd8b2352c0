//! OffsetDelete, key 47, version 0: forgets a group's offsets in some partitions.
//!
//! Topics that the group's members have subscribed to are kept: `GROUP_SUBSCRIBED_TO_TOPIC`. A partition that there
//! is not, and for which nothing is committed, is `UNKNOWN_TOPIC_OR_PARTITION`; unlike in Apache Kafka committed offsets
//! may outlive their topic, and can be deleted.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{ApiKey, OffsetDeleteRequest, OffsetDeleteResponse};

use super::has_partition;
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// OffsetDelete.
pub static API: Api = Api {
    key: ApiKey::OffsetDelete,
    versions: (0, 0),
    flexible_from: i16::MAX,
    shape: &[
        Field::new(STRING, 0),
        Field::new(
            Kind::Structs(&[Field::new(STRING, 0), Field::new(Kind::Structs(&[Field::new(I32, 0)]), 0)]),
            0,
        ),
    ],
    handle: |request| Box::pin(handle(request)),
};

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: OffsetDeleteRequest = request.decode()?;
    let mut partitions = Vec::new();
    for topic in &asked.topics {
        let name: Arc<str> = (&*topic.name.0).into();
        partitions.extend(topic.partitions.iter().map(|partition| (name.clone(), partition.partition_index)));
    }
    let (group, broker) = (&asked.group_id.0, &request.broker);
    let known = partitions.iter().map(|(topic, partition)| {
        has_partition(broker, topic, *partition)
            || broker.groups.committed(group, topic, *partition).is_some()
    });
    let known: Vec<bool> = known.collect();
    let deleted = broker.groups.delete_offsets(group, partitions).await;
    let mut answer = OffsetDeleteResponse::default();
    match deleted {
        Err(error) => answer.error_code = error.code(),
        Ok(deleted) => {
            let unknown = Err(ResponseError::UnknownTopicOrPartition);
            let mut each =
                deleted.into_iter().zip(known).map(|(one, known)| if known { one } else { unknown });
            for topic in asked.topics {
                let partitions = topic.partitions.iter().map(|partition| {
                    let error = each.next().and_then(Result::err).map_or(0, |error| error.code());
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(error)
                });
                let partitions = partitions.collect();
                answer.topics.push(
                    OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(partitions),
                );
            }
        }
    }
    Reply::encode(&answer, request.version)
}
