//! FindCoordinator, key 10, versions 0–6: which broker looks after a group.
//!
//! * 1: key type, throttle time, error message. 2: as 1. 3: flexible. 4: many keys in one request. 5: as 4.
//!   6: key type 2, share groups.
//!
//! There is one broker, so it looks after every group. Unlike Apache Kafka it has no transactions and no share groups:
//! asked for their coordinators it answers `INVALID_REQUEST`, as there is nothing to wait for.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{ApiKey, BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::shape::{Field, I8, Kind, STRING};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};

/// FindCoordinator.
pub static API: Api = Api {
    key: ApiKey::FindCoordinator,
    versions: (0, 6),
    flexible_from: 3,
    shape: &[Field::new(STRING, 0).until(3), Field::new(I8, 1), Field::new(Kind::Array(&STRING), 4)],
    handle: |request| Box::pin(async move { handle(request) }),
};

const GROUP: i8 = 0;

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: FindCoordinatorRequest = request.decode()?;
    let mut answer = FindCoordinatorResponse::default();
    if request.version >= 4 {
        let each = |key| coordinator(&request.broker, asked.key_type, key);
        answer.coordinators = asked.coordinator_keys.into_iter().map(each).collect();
    } else {
        let found = coordinator(&request.broker, asked.key_type, asked.key);
        answer.error_code = found.error_code;
        answer.error_message = found.error_message.filter(|_| request.version >= 1);
        answer.node_id = found.node_id;
        answer.host = found.host;
        answer.port = found.port;
    }
    Reply::encode(&answer, request.version)
}

fn coordinator(broker: &Broker, key_type: i8, key: StrBytes) -> Coordinator {
    let found = Coordinator::default().with_key(key);
    if key_type != GROUP {
        let message =
            "this broker coordinates consumer groups only; it has no transactions and no share groups";
        return found
            .with_error_code(ResponseError::InvalidRequest.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
            .with_node_id(BrokerId(-1))
            .with_port(-1);
    }
    found
        .with_node_id(BrokerId(NODE_ID))
        .with_host(StrBytes::from_string(broker.advertised_host.clone()))
        .with_port(broker.advertised_port.into())
}
