//! OffsetForLeaderEpoch, key 23, versions 2–4: where an epoch ends, by which clients notice that a log was cut.
//!
//! * 2 adds the client's current epoch and the throttle time, 3 the replica id; 4 is flexible.
//!
//! A log has one epoch, which rises when the log is made anew. So the current epoch ends at the high watermark, an
//! older one where the log begins, and of a newer one nothing is known. librdkafka speaks version 2, Java 3 and up.

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{ApiKey, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};
use crate::log::topics::Topic;
use crate::log::view::View;
use crate::log::{Offset, PartitionRange};

/// OffsetForLeaderEpoch.
pub static API: Api =
    Api { key: ApiKey::OffsetForLeaderEpoch, versions: (2, 4), flexible_from: 4, shape: SHAPE, handle };

const PARTITION: &[Field] = &[Field::new(I32, 2), Field::new(I32, 2), Field::new(I32, 2)];
const TOPIC: &[Field] = &[Field::new(STRING, 2), Field::new(Kind::Structs(PARTITION), 2)];
const SHAPE: &[Field] = &[Field::new(I32, 3), Field::new(Kind::Structs(TOPIC), 2)];

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: OffsetForLeaderEpochRequest = request.decode()?;
    let mut view = View::default();
    let topics = asked.topics.into_iter().map(|topic| {
        let found = request.broker.topics.by_name(&topic.topic);
        let partitions = topic.partitions.iter().map(|partition| {
            let response = EpochEndOffset::default().with_partition(partition.partition);
            match end_of(&mut view, found.as_deref(), partition) {
                Ok((epoch, offset)) => response.with_leader_epoch(epoch).with_end_offset(offset),
                Err(error) => response.with_error_code(error.code()),
            }
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    let topics = topics.collect();
    Reply::encode(&OffsetForLeaderEpochResponse::default().with_topics(topics), request.version)
}

/// The epoch and its end offset; both -1 where nothing is known of it.
fn end_of(
    view: &mut View,
    topic: Option<&Topic>,
    asked: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ResponseError> {
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let place = super::place(view, topic, asked.partition, asked.current_leader_epoch)?;
    let (log, snapshot) = view.at(place);
    let range = snapshot.range(place.partition).unwrap_or_default();
    let end = end_of_epoch(log.leader_epoch(), range, asked.leader_epoch);
    Ok(end.map_or((-1, -1), |(epoch, end)| (epoch, end.0)))
}

/// The end of `epoch` in a log of epoch `current`; `None` for one from the future.
pub(super) fn end_of_epoch(current: i32, range: PartitionRange, epoch: i32) -> Option<(i32, Offset)> {
    match epoch {
        0.. if epoch == current => Some((epoch, range.end)),
        0.. if epoch < current => Some((epoch, range.start)),
        _ => None,
    }
}
