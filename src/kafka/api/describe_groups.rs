//! DescribeGroups, key 15, versions 0–6: a group's state and members.
//!
//! * 1: throttle time. 2: as 1. 3: authorized operations. 4: `group.instance.id`. 5: flexible. 6: error message, and
//!   `GROUP_ID_NOT_FOUND` for a group that there is not (before: state `Dead`).
//!
//! For a consumer group (KIP-848) the answer is that there is none: ConsumerGroupDescribe shows it.

use std::collections::HashSet;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{ApiKey, DescribeGroupsRequest, DescribeGroupsResponse, GroupId};

use super::text;
use crate::group::classic::{MemberDescription, State};
use crate::kafka::shape::{BOOL, Field, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// DescribeGroups.
pub static API: Api = Api {
    key: ApiKey::DescribeGroups,
    versions: (0, 6),
    flexible_from: 5,
    shape: &[Field::new(Kind::Array(&STRING), 0), Field::new(BOOL, 3)],
    handle: |request| Box::pin(async move { handle(request) }),
};

/// Bits of Kafka's operations READ, DELETE and DESCRIBE: without accounts everybody may do all that a group knows.
pub(super) const ALL_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8;
/// Kafka's "was not asked".
pub(super) const OPERATIONS_NOT_ASKED: i32 = i32::MIN;

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: DescribeGroupsRequest = request.decode()?;
    let operations = if asked.include_authorized_operations { ALL_OPERATIONS } else { OPERATIONS_NOT_ASKED };
    // Each group once: a short request must not ask for a big one a thousand times.
    let mut seen = HashSet::new();
    let groups: Vec<GroupId> = asked.groups.into_iter().filter(|group| seen.insert(group.clone())).collect();
    let each = |group: GroupId| {
        let described = describe(request, group);
        match described.error_code {
            0 => described.with_authorized_operations(operations),
            _ => described,
        }
    };
    let answer = DescribeGroupsResponse::default().with_groups(groups.into_iter().map(each).collect());
    Reply::encode(&answer, request.version)
}

fn describe(request: &Request, group: GroupId) -> DescribedGroup {
    let Some(found) = request.broker.groups.describe(&group.0) else {
        let unknown =
            DescribedGroup::default().with_group_id(group).with_group_state(text(State::Dead.name()));
        if request.version < 6 {
            return unknown;
        }
        return unknown.with_error_code(ResponseError::GroupIdNotFound.code()).with_error_message(Some(
            text("there is no classic group of that name, and none of its offsets are kept"),
        ));
    };
    let member = |member: MemberDescription| {
        DescribedGroupMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(member.instance_id.filter(|_| request.version >= 4).map(|id| text(&id)))
            .with_client_id(text(&member.client_id))
            .with_client_host(text(&member.client_host))
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    };
    DescribedGroup::default()
        .with_group_id(group)
        .with_group_state(text(found.state.name()))
        .with_protocol_type(text(&found.protocol_type))
        .with_protocol_data(text(&found.protocol))
        .with_members(found.members.into_iter().map(member).collect())
}
