//! ConsumerGroupDescribe, key 69, versions 0–1: a consumer group's state and members, what they have and are to have.
//!
//! * 1: whether a member speaks the classic protocol.
//!
//! A group that is not there, or is a classic one, is GROUP_ID_NOT_FOUND, upon which tools ask by DescribeGroups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member, TopicPartitions,
};
use kafka_protocol::messages::{
    ApiKey, ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, GroupId, TopicName,
};

use super::describe_groups::{ALL_OPERATIONS, OPERATIONS_NOT_ASKED};
use super::{text, to_uuid};
use crate::group::consumer::{MemberDescription, Parts};
use crate::kafka::shape::{BOOL, Field, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};
use crate::log::topics::TopicId;

/// ConsumerGroupDescribe.
pub static API: Api = Api {
    key: ApiKey::ConsumerGroupDescribe,
    versions: (0, 1),
    flexible_from: 0,
    shape: &[Field::new(Kind::Array(&STRING), 0), Field::new(BOOL, 0)],
    handle: |request| Box::pin(async move { handle(request) }),
};

/// What kinds of members there are.
const CLASSIC_MEMBER: i8 = 0;
const CONSUMER_MEMBER: i8 = 1;

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: ConsumerGroupDescribeRequest = request.decode()?;
    let operations = if asked.include_authorized_operations { ALL_OPERATIONS } else { OPERATIONS_NOT_ASKED };
    // Each group once: a short request must not ask for a big one a thousand times.
    let mut seen = HashSet::new();
    let groups = asked.group_ids.into_iter().filter(|group| seen.insert(group.clone()));
    let groups = groups.map(|group| match describe(request, &group) {
        Ok(found) => found.with_group_id(group).with_authorized_operations(operations),
        Err((error, message)) => DescribedGroup::default()
            .with_group_id(group)
            .with_error_code(error.code())
            .with_error_message(Some(text(message))),
    });
    let answer = ConsumerGroupDescribeResponse::default().with_groups(groups.collect());
    Reply::encode(&answer, request.version)
}

fn describe(request: &Request, group: &GroupId) -> Result<DescribedGroup, (ResponseError, &'static str)> {
    if group.0.is_empty() {
        return Err((ResponseError::InvalidGroupId, "a group has a name"));
    }
    let found = request.broker.groups.describe_consumers(&group.0);
    let found = found.ok_or((ResponseError::GroupIdNotFound, "there is no consumer group of that name"))?;
    let names = found.names.into_iter().collect();
    let members = found.group.members.into_iter().map(|found| member(found, &names, request.version));
    Ok(DescribedGroup::default()
        .with_group_state(text(found.group.state.name()))
        .with_group_epoch(found.group.epoch)
        .with_assignment_epoch(found.group.epoch)
        .with_assignor_name(text(found.group.assignor.name()))
        .with_members(members.collect()))
}

fn member(found: MemberDescription, names: &HashMap<TopicId, Arc<str>>, version: i16) -> Member {
    let kind = if found.is_classic { CLASSIC_MEMBER } else { CONSUMER_MEMBER };
    let member = Member::default()
        .with_member_id(text(&found.member_id))
        .with_instance_id(found.instance_id.as_deref().map(text))
        .with_rack_id(found.rack_id.as_deref().map(text))
        .with_member_epoch(found.epoch)
        .with_client_id(text(&found.client_id))
        .with_client_host(text(&found.client_host))
        .with_subscribed_topic_names(found.names.iter().map(|name| TopicName(text(name))).collect())
        .with_subscribed_topic_regex(Some(text(found.pattern.as_deref().unwrap_or_default())))
        .with_assignment(assignment(found.assignment, names))
        .with_target_assignment(assignment(found.target, names));
    if version >= 1 { member.with_member_type(kind) } else { member }
}

/// Partitions of the topics that there still are.
fn assignment(parts: Parts, names: &HashMap<TopicId, Arc<str>>) -> Assignment {
    let each = parts.into_iter().filter_map(|(topic, partitions)| {
        let name = names.get(&topic)?;
        let own =
            TopicPartitions::default().with_topic_id(to_uuid(topic)).with_topic_name(TopicName(text(name)));
        Some(own.with_partitions(partitions.into_iter().collect()))
    });
    Assignment::default().with_topic_partitions(each.collect())
}
