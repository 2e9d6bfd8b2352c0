//! Heartbeat, key 12, versions 0–4: a member says that it is alive, and learns whether it has to join again.
//!
//! * 1: throttle time. 2: as 1. 3: `group.instance.id`. 4: flexible.

use kafka_protocol::messages::{ApiKey, HeartbeatRequest, HeartbeatResponse};

use crate::group::member::Identity;
use crate::kafka::shape::{Field, I32, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// Heartbeat.
pub static API: Api = Api {
    key: ApiKey::Heartbeat,
    versions: (0, 4),
    flexible_from: 4,
    shape: &[Field::new(STRING, 0), Field::new(I32, 0), Field::new(STRING, 0), Field::new(STRING, 3)],
    handle: |request| Box::pin(async move { handle(request) }),
};

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: HeartbeatRequest = request.decode()?;
    let who = Identity { member_id: &asked.member_id, instance_id: asked.group_instance_id.as_deref() };
    let answer = match request.broker.groups.heartbeat(&asked.group_id.0, who, asked.generation_id) {
        Ok(()) => HeartbeatResponse::default(),
        Err(error) => HeartbeatResponse::default().with_error_code(error.code()),
    };
    Reply::encode(&answer, request.version)
}
