//! Commit, Committed and OffsetsForTime: a group's offsets, and offsets by time.

use tonic::Status;

use super::{Broker, request, status};
use crate::group::member::Identity;
use crate::group::subscriber::TopicPartition;
use crate::group::{Commit, CommitEntry};
use crate::log::Offset;
use crate::log::view::{Place, View};
use crate::proto::{
    CommitRequest, CommitResponse, CommitResult, CommittedRequest, CommittedResponse, Error, OffsetForTime,
    OffsetsForTimeRequest, OffsetsForTimeResponse, PartitionOffset,
};

/// Nobody in particular: what a consumer that is no member commits as.
const NOBODY: Commit<'_> =
    Commit { who: Identity { member_id: "", instance_id: None }, generation: -1, knows_epochs: false };

/// Commits for a group without members. Answered when it is durable (I6).
pub async fn commit(broker: &Broker, asked: CommitRequest) -> Result<CommitResponse, Status> {
    request::group(&asked.group)?;
    Ok(CommitResponse { results: commit_alone(broker, &asked.group, asked.offsets).await? })
}

/// The same with its answers alone.
pub async fn commit_alone(
    broker: &Broker,
    group: &str,
    offsets: Vec<PartitionOffset>,
) -> Result<Vec<CommitResult>, Status> {
    request::few(offsets.len())?;
    let entries = offsets.iter().map(|offset| entry(broker, offset)).collect();
    let answers = broker.groups.commit(group, NOBODY, entries).await;
    let answers = answers.map_err(|error| status::refused(group, error))?;
    Ok(results(offsets, answers.into_iter().map(|answer| answer.err().map(status::commit_error))))
}

/// What the coordinator commits. A partition that is too large to be one is none.
pub fn entry(broker: &Broker, offset: &PartitionOffset) -> CommitEntry {
    let topic = broker.topics.by_name(&offset.topic);
    CommitEntry {
        topic: offset.topic.as_str().into(),
        partition: i32::try_from(offset.partition).unwrap_or(-1),
        offset: offset.offset,
        leader_epoch: topic.map_or(-1, |topic| topic.log.leader_epoch()),
        metadata: offset.metadata.as_str().into(),
    }
}

/// One result for each offset.
pub fn results(
    offsets: Vec<PartitionOffset>,
    errors: impl IntoIterator<Item = Option<Error>>,
) -> Vec<CommitResult> {
    let result = |(offset, error): (PartitionOffset, Option<Error>)| CommitResult {
        topic: offset.topic,
        partition: offset.partition,
        offset: offset.offset,
        error,
    };
    offsets.into_iter().zip(errors).map(result).collect()
}

/// What a group has committed.
pub fn committed(broker: &Broker, asked: CommittedRequest) -> Result<CommittedResponse, Status> {
    request::group(&asked.group)?;
    request::few(asked.partitions.len())?;
    let offset = |topic: &str, partition: i32, committed: crate::state::Committed| PartitionOffset {
        topic: topic.to_owned(),
        partition: partition as u32,
        offset: committed.offset,
        metadata: committed.metadata.to_string(),
    };
    if asked.partitions.is_empty() {
        let all = broker.groups.all_committed(&asked.group).into_iter();
        let offsets = all.map(|entry| offset(&entry.topic, entry.partition, entry.committed)).collect();
        return Ok(CommittedResponse { offsets });
    }
    let mut offsets = Vec::new();
    for wanted in &asked.partitions {
        let topic = request::topic(&broker.topics, &wanted.topic)?;
        let partition = request::partition(&topic, wanted.partition)? as i32;
        if let Some(committed) = broker.groups.committed(&asked.group, &topic.name, partition) {
            offsets.push(offset(&topic.name, partition, committed));
        }
    }
    Ok(CommittedResponse { offsets })
}

/// Looks all up in one snapshot of each log (I1).
pub async fn offsets_for_time(
    broker: &Broker,
    asked: OffsetsForTimeRequest,
) -> Result<OffsetsForTimeResponse, Status> {
    let mut view = View::default();
    let mut offsets = Vec::new();
    for partition in request::partitions(&broker.topics, &asked.topics)? {
        let place = locate(broker, &mut view, &partition)?;
        let (offset, timestamp_ms) = at_time(&view, &partition, place, asked.time_ms).await?;
        offsets.push(OffsetForTime {
            topic: partition.topic.to_string(),
            partition: partition.partition as u32,
            offset: offset.0,
            timestamp_ms,
        });
    }
    Ok(OffsetsForTimeResponse { offsets })
}

/// Takes a partition into a view.
pub fn locate(broker: &Broker, view: &mut View, partition: &TopicPartition) -> Result<Place, Status> {
    let topic = request::topic(&broker.topics, &partition.topic)?;
    let index = request::partition(&topic, partition.partition as u32)?;
    let place = view.find(&topic, index).filter(|place| !view.is_gone(*place));
    place.ok_or_else(|| Status::not_found("there is no such partition"))
}

/// Where reading from a time on begins: the first record of then or later with its time, or the end.
pub async fn at_time(
    view: &View,
    partition: &TopicPartition,
    place: Place,
    time_ms: i64,
) -> Result<(Offset, Option<i64>), Status> {
    let (log, snapshot) = view.at(place);
    let range = view.range(place);
    if range.start == range.end {
        return Ok((range.end, None));
    }
    let found = log
        .find_by_time(snapshot, place.partition, time_ms)
        .await
        .map_err(|error| status::unreadable(&partition.topic, partition.partition as u32, &error))?;
    Ok(found.map_or((range.end, None), |(offset, timestamp)| (offset, Some(timestamp))))
}
