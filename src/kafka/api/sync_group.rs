//! SyncGroup, key 14, versions 0–5: a member asks for its part, the leader brings everybody's.
//!
//! * 1: throttle time. 2: as 1. 3: `group.instance.id`. 4: flexible. 5: protocol type and name.
//!
//! A follower's answer waits for the leader; the request is taken back when its connection closes. From version 5 on a
//! request without protocol type and name is INCONSISTENT_GROUP_PROTOCOL.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, SyncGroupRequest, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;

use crate::group::member::Sync;
use crate::kafka::shape::{BYTES, Field, I32, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// SyncGroup.
pub static API: Api = Api {
    key: ApiKey::SyncGroup,
    versions: (0, 5),
    flexible_from: 4,
    shape: &[
        Field::new(STRING, 0),
        Field::new(I32, 0),
        Field::new(STRING, 0),
        Field::new(STRING, 3),
        Field::new(STRING, 5),
        Field::new(STRING, 5),
        Field::new(Kind::Structs(&[Field::new(STRING, 0), Field::new(BYTES, 0)]), 0),
    ],
    handle: |request| Box::pin(handle(request)),
};

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: SyncGroupRequest = request.decode()?;
    // Copies: slices of the request would keep all of it in memory for as long as the generation lasts.
    let part = |given: &Bytes| Bytes::copy_from_slice(given);
    let sync = Sync {
        member_id: (&*asked.member_id).into(),
        instance_id: asked.group_instance_id.as_deref().map(Into::into),
        generation: asked.generation_id,
        protocol_type: asked.protocol_type.as_deref().map(Into::into),
        protocol: asked.protocol_name.as_deref().map(Into::into),
        assignments: asked
            .assignments
            .iter()
            .map(|a| ((&*a.member_id).into(), part(&a.assignment)))
            .collect(),
    };
    let group = asked.group_id.0;
    let named = asked.protocol_type.is_some() && asked.protocol_name.is_some();
    let synced = match request.version >= 5 && !named {
        true => Err(ResponseError::InconsistentGroupProtocol),
        false => request.broker.groups.sync(&group, sync).await,
    };
    let answer = match synced {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(versioned(&synced.protocol_type, request.version))
            .with_protocol_name(versioned(&synced.protocol, request.version))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default()
            .with_error_code(error.code())
            .with_protocol_type(None)
            .with_protocol_name(None),
    };
    Reply::encode(&answer, request.version)
}

fn versioned(text: &str, version: i16) -> Option<StrBytes> {
    (version >= 5).then(|| super::text(text))
}
