//! LeaveGroup, key 13, versions 0–5: members go, and the others share out anew at once.
//!
//! * 1: throttle time. 2: as 1. 3: many members in one request, static ones by their instance (KIP-345). 4: flexible.
//!   5: reason.
//!
//! A group that there is not has no members, so each of them is UNKNOWN_MEMBER_ID.

use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{ApiKey, LeaveGroupRequest, LeaveGroupResponse};

use crate::group::member::Identity;
use crate::kafka::shape::{Field, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// LeaveGroup.
pub static API: Api = Api {
    key: ApiKey::LeaveGroup,
    versions: (0, 5),
    flexible_from: 4,
    shape: &[
        Field::new(STRING, 0),
        Field::new(STRING, 0).until(2),
        Field::new(Kind::Structs(&[Field::new(STRING, 3), Field::new(STRING, 3), Field::new(STRING, 5)]), 3),
    ],
    handle: |request| Box::pin(async move { handle(request) }),
};

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: LeaveGroupRequest = request.decode()?;
    let groups = &request.broker.groups;
    let mut answer = LeaveGroupResponse::default();
    if request.version < 3 {
        let who = Identity { member_id: &asked.member_id, instance_id: None };
        let left = groups.leave(&asked.group_id.0, &[who]);
        let error = left.map(|answers| answers.into_iter().find_map(Result::err));
        answer.error_code = error.unwrap_or_else(Some).map_or(0, |error| error.code());
        return Reply::encode(&answer, request.version);
    }
    let members: Vec<Identity<'_>> = asked
        .members
        .iter()
        .map(|member| Identity {
            member_id: &member.member_id,
            instance_id: member.group_instance_id.as_deref(),
        })
        .collect();
    match groups.leave(&asked.group_id.0, &members) {
        Ok(answers) => {
            let each = asked.members.iter().zip(answers).map(|(member, left)| {
                MemberResponse::default()
                    .with_member_id(member.member_id.clone())
                    .with_group_instance_id(member.group_instance_id.clone())
                    .with_error_code(left.err().map_or(0, |error| error.code()))
            });
            answer.members = each.collect();
        }
        Err(error) => answer.error_code = error.code(),
    }
    Reply::encode(&answer, request.version)
}
