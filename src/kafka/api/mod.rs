//! One file per API; [`ALL`] is the one table of them.

pub mod alter_client_quotas;
pub mod alter_configs;
pub mod alter_partition_reassignments;
pub mod alter_replica_log_dirs;
pub mod alter_user_scram_credentials;
pub mod api_versions;
pub mod consumer_group_describe;
pub mod consumer_group_heartbeat;
pub mod create_acls;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_acls;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_acls;
pub mod describe_client_quotas;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod describe_log_dirs;
pub mod describe_producers;
pub mod describe_quorum;
pub mod describe_topic_partitions;
pub mod describe_transactions;
pub mod describe_user_scram_credentials;
pub mod elect_leaders;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod incremental_alter_configs;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_config_resources;
pub mod list_groups;
pub mod list_offsets;
pub mod list_partition_reassignments;
pub mod list_transactions;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod sync_group;
#[cfg(test)]
mod tests;
pub mod unregister_broker;
pub mod update_features;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use uuid::Uuid;

use super::request::Preamble;
use super::{Api, Broker, Reply, Request, RequestError};
use crate::log::LogError;
use crate::log::topics::{Topic, TopicId};
use crate::log::view::{Place, View};

/// Every API that this broker serves. ApiVersions, dispatch and the documentation's table come from here.
pub static ALL: &[&Api] = &[
    &produce::API,
    &init_producer_id::API,
    &create_topics::API,
    &delete_topics::API,
    &create_partitions::API,
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
    &delete_records::API,
    &alter_configs::API,
    &incremental_alter_configs::API,
    &list_config_resources::API,
    &describe_log_dirs::API,
    &alter_replica_log_dirs::API,
    &elect_leaders::API,
    &alter_partition_reassignments::API,
    &list_partition_reassignments::API,
    &describe_producers::API,
    &describe_transactions::API,
    &list_transactions::API,
    &describe_quorum::API,
    &update_features::API,
    &unregister_broker::API,
    &describe_client_quotas::API,
    &alter_client_quotas::API,
    &describe_user_scram_credentials::API,
    &alter_user_scram_credentials::API,
    &describe_acls::API,
    &create_acls::API,
    &delete_acls::API,
    &consumer_group_heartbeat::API,
    &consumer_group_describe::API,
];

/// The API that a request asks for, if its version is served.
pub(super) fn find(preamble: Preamble) -> Option<&'static Api> {
    let (first, last) = (|api: &Api| api.versions.0, |api: &Api| api.versions.1);
    let serves = |api: &Api| preamble.version >= first(api) && preamble.version <= last(api);
    ALL.iter().copied().find(|api| api.key as i16 == preamble.key && serves(api))
}

/// Decodes a request and encodes the answer to it, which is there at once.
fn at_once<Q, A>(
    request: &Request,
    answer: fn(&Request, Q) -> A,
) -> BoxFuture<'_, Result<Reply, RequestError>>
where
    Q: Decodable + 'static,
    A: Encodable + 'static,
{
    Box::pin(async move { Reply::encode(&answer(request, request.decode()?), request.version) })
}

/// Whether there is such a partition.
fn has_partition(broker: &Broker, topic: &str, index: i32) -> bool {
    let index = usize::try_from(index);
    broker.topics.by_name(topic).is_some_and(|topic| index.is_ok_and(|index| index < topic.partitions.len()))
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
