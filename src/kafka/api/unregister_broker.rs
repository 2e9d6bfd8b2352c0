//! UnregisterBroker, key 64, version 0: a broker that is gone for good is forgotten. There is one, and it is here.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, UnregisterBrokerRequest, UnregisterBrokerResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{Field, I32};
use crate::kafka::{Api, NODE_ID, Request};

/// UnregisterBroker.
pub static API: Api = Api {
    key: ApiKey::UnregisterBroker,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(I32, 0)],
    handle: |request| at_once(request, answer),
};

fn answer(_: &Request, asked: UnregisterBrokerRequest) -> UnregisterBrokerResponse {
    let (error, message) = match asked.broker_id.0 == NODE_ID {
        true => (ResponseError::PolicyViolation, "this is the only broker, and it runs"),
        false => (ResponseError::BrokerIdNotRegistered, "there is one broker, number 0"),
    };
    UnregisterBrokerResponse::default()
        .with_error_code(error.code())
        .with_error_message(Some(StrBytes::from_static_str(message)))
}
