//! OffsetCommit, key 8, versions 2–9: a group remembers how far it has come.
//!
//! * 3: throttle time. 4: as 3. 5: no retention time. 6: leader epoch. 7: `group.instance.id`. 8: flexible.
//!   9: as 8, with the errors of KIP-848, which members of the consumer protocol need (UNSUPPORTED_VERSION in others).
//!
//! A member of the consumer protocol may commit in an earlier epoch than the one that it has meanwhile been given, for
//! partitions that it has had ever since (KIP-1251, as Apache Kafka 4.3); others are STALE_MEMBER_EPOCH. Where there is no
//! group, as after a restart, a member is told UNKNOWN_MEMBER_ID in version 9 (Apache Kafka: GROUP_ID_NOT_FOUND).
//!
//! Answered when the offsets are durable (I6). A retention time in versions 2–4 is not observed: the broker's holds for
//! all. Unlike in Apache Kafka the empty group id is INVALID_GROUP_ID, and a negative offset INVALID_REQUEST. Version 10,
//! with topic ids, is not in the protocol crate.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{ApiKey, OffsetCommitRequest, OffsetCommitResponse};

use super::has_partition;
use crate::group::member::Identity;
use crate::group::{Commit, CommitEntry};
use crate::kafka::shape::{Field, I32, I64, Kind, STRING};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};

/// OffsetCommit.
pub static API: Api = Api {
    key: ApiKey::OffsetCommit,
    versions: (2, 9),
    flexible_from: 8,
    shape: &[
        Field::new(STRING, 2),
        Field::new(I32, 2),
        Field::new(STRING, 2),
        Field::new(STRING, 7),
        Field::new(I64, 2).until(4),
        Field::new(
            Kind::Structs(&[
                Field::new(STRING, 2),
                Field::new(
                    Kind::Structs(&[
                        Field::new(I32, 2),
                        Field::new(I64, 2),
                        Field::new(I32, 6),
                        Field::new(STRING, 2),
                    ]),
                    2,
                ),
            ]),
            2,
        ),
    ],
    handle: |request| Box::pin(handle(request)),
};

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: OffsetCommitRequest = request.decode()?;
    let mut entries = Vec::new();
    for topic in &asked.topics {
        let name: Arc<str> = (&*topic.name.0).into();
        entries.extend(topic.partitions.iter().map(|partition| CommitEntry {
            topic: name.clone(),
            partition: partition.partition_index,
            offset: partition.committed_offset,
            leader_epoch: partition.committed_leader_epoch,
            metadata: partition.committed_metadata.as_deref().unwrap_or_default().into(),
        }));
    }
    let who = Identity { member_id: &asked.member_id, instance_id: asked.group_instance_id.as_deref() };
    let by =
        Commit { who, generation: asked.generation_id_or_member_epoch, knows_epochs: request.version >= 9 };
    let committed = request.broker.groups.commit(&asked.group_id.0, by, entries).await;
    let answer = answer(&request.broker, &asked, committed);
    Reply::encode(&answer, request.version)
}

/// One error code for each partition, in the order of the request. One that there is not is unknown, whatever the group
/// says to the others.
fn answer(
    broker: &Broker,
    asked: &OffsetCommitRequest,
    committed: Result<Vec<Result<(), ResponseError>>, ResponseError>,
) -> OffsetCommitResponse {
    let whole = committed.as_ref().err().map_or(0, ResponseError::code);
    let mut each = committed.unwrap_or_default().into_iter();
    let topics = asked.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let error = match each.next() {
                Some(one) => one.err().map_or(0, |error| error.code()),
                None if has_partition(broker, &topic.name, partition.partition_index) => whole,
                None => ResponseError::UnknownTopicOrPartition.code(),
            };
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error)
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}
