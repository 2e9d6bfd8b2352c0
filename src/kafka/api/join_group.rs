//! JoinGroup, key 11, versions 0–9: a member asks to be in its group's next generation.
//!
//! * 1: rebalance timeout apart from the session timeout. 2: throttle time. 3: as 2. 4: a new member gets its id by
//!   `MEMBER_ID_REQUIRED` and comes back with it (KIP-394). 5: `group.instance.id`, static members (KIP-345).
//!   6: flexible. 7: protocol type in the answer. 8: reason. 9: `skip_assignment` (KIP-814).
//!
//! The answer waits until the generation is made; the request is taken back when its connection closes.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{ApiKey, JoinGroupRequest, JoinGroupResponse};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::group::member::{Join, JoinRefused, Joined, Kind as MemberKind, Protocol};
use crate::kafka::shape::{BYTES, Field, I32, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// JoinGroup.
pub static API: Api = Api {
    key: ApiKey::JoinGroup,
    versions: (0, 9),
    flexible_from: 6,
    shape: &[
        Field::new(STRING, 0),
        Field::new(I32, 0),
        Field::new(I32, 1),
        Field::new(STRING, 0),
        Field::new(STRING, 5),
        Field::new(STRING, 0),
        Field::new(Kind::Structs(&[Field::new(STRING, 0), Field::new(BYTES, 0)]), 0),
        Field::new(STRING, 8),
    ],
    handle: |request| Box::pin(handle(request)),
};

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: JoinGroupRequest = request.decode()?;
    let session_timeout = milliseconds(asked.session_timeout_ms);
    let rebalance_timeout = match request.version {
        0 => session_timeout,
        _ => milliseconds(asked.rebalance_timeout_ms),
    };
    // Copies: slices of the request would keep all of it in memory for as long as the member is in.
    let protocols = asked.protocols.iter().map(|protocol| Protocol {
        name: (&*protocol.name).into(),
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    });
    let join = Join {
        kind: MemberKind::Client,
        member_id: (&*asked.member_id).into(),
        new_member_id: "".into(),
        instance_id: asked.group_instance_id.as_deref().map(Into::into),
        client_id: request.client_id.as_deref().unwrap_or_default().into(),
        client_host: format!("/{}", request.peer.ip()).into(),
        session_timeout,
        rebalance_timeout,
        protocol_type: (&*asked.protocol_type).into(),
        protocols: protocols.collect(),
        requires_known_id: request.version >= 4,
        can_skip_assignment: request.version >= 9,
    };
    let group = asked.group_id.0;
    let answer = match request.broker.groups.join(&group, join).await {
        Ok(joined) => admitted(joined, request.version),
        Err(refused) => refusal(refused, request.version),
    };
    Reply::encode(&answer, request.version)
}

fn admitted(joined: Joined, version: i16) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|member| {
        JoinGroupResponseMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(member.instance_id.filter(|_| version >= 5).map(|id| text(&id)))
            .with_metadata(member.metadata)
    });
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type((version >= 7).then(|| text(&joined.protocol_type)))
        .with_protocol_name(Some(text(&joined.protocol)))
        .with_leader(text(&joined.leader))
        .with_skip_assignment(joined.skip_assignment)
        .with_member_id(text(&joined.member_id))
        .with_members(members.collect())
}

fn refusal(refused: JoinRefused, version: i16) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(refused.error.code())
        .with_generation_id(-1)
        // Older versions have no null here.
        .with_protocol_name((version < 7).then(StrBytes::default))
        .with_member_id(text(&refused.member_id))
}

fn milliseconds(given: i32) -> Duration {
    Duration::from_millis(u64::try_from(given).unwrap_or(0))
}
