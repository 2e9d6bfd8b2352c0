//! One file per API; [`ALL`] is the one table of them.

pub mod api_versions;
pub mod delete_groups;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod describe_topic_partitions;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_groups;
pub mod list_offsets;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod sync_group;
#[cfg(test)]
mod tests;

use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::Api;
use super::request::Preamble;
use crate::log::LogError;
use crate::log::topics::{Topic, TopicId};
use crate::log::view::{Place, View};

/// Every API that this broker serves. ApiVersions, dispatch and the documentation's table come from here.
pub static ALL: &[&Api] = &[
    &produce::API,
    &init_producer_id::API,
    &fetch::API,
    &list_offsets::API,
    &metadata::API,
    &api_versions::API,
    &offset_for_leader_epoch::API,
    &describe_configs::API,
    &describe_cluster::API,
    &describe_topic_partitions::API,
    &find_coordinator::API,
    &join_group::API,
    &sync_group::API,
    &heartbeat::API,
    &leave_group::API,
    &offset_commit::API,
    &offset_fetch::API,
    &describe_groups::API,
    &list_groups::API,
    &delete_groups::API,
    &offset_delete::API,
];

/// The API that a request asks for, if its version is served.
pub(super) fn find(preamble: Preamble) -> Option<&'static Api> {
    let (first, last) = (|api: &Api| api.versions.0, |api: &Api| api.versions.1);
    let serves = |api: &Api| preamble.version >= first(api) && preamble.version <= last(api);
    ALL.iter().copied().find(|api| api.key as i16 == preamble.key && serves(api))
}

/// A topic's id as the protocol crate has it.
fn to_uuid(id: TopicId) -> Uuid {
    Uuid::from_u128(id.0)
}

/// A topic's id, from the protocol crate's.
fn from_uuid(id: Uuid) -> TopicId {
    TopicId(id.as_u128())
}

/// A string as the protocol crate has it.
fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Finds partition `index` of `topic` and checks the leader epoch that the client has of it (-1: none).
fn place(view: &mut View, topic: &Topic, index: i32, epoch: i32) -> Result<Place, ResponseError> {
    let place = usize::try_from(index).ok().and_then(|index| view.find(topic, index));
    let place = place.filter(|place| !view.is_gone(*place)).ok_or(ResponseError::UnknownTopicOrPartition)?;
    match topic.log.leader_epoch() {
        current if epoch >= 0 && epoch < current => Err(ResponseError::FencedLeaderEpoch),
        current if epoch > current => Err(ResponseError::UnknownLeaderEpoch),
        _ => Ok(place),
    }
}

/// What a client is told of an error in the log, which goes to our own log where it is ours to mend.
fn storage_error(topic: &str, error: &LogError) -> ResponseError {
    match error {
        LogError::OutOfRange { .. } => ResponseError::OffsetOutOfRange,
        LogError::UnknownPartition(_) => ResponseError::UnknownTopicOrPartition,
        error => {
            tracing::error!(topic, %error, "cannot read a topic's log");
            ResponseError::KafkaStorageError
        }
    }
}
