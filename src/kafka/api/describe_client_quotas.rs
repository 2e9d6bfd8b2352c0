//! DescribeClientQuotas, key 48, versions 0–1: what users and clients may take. Nobody is limited.
//!
//! * 1 is flexible.
//!
//! A kind of entity that Kafka does not have is UNSUPPORTED_VERSION, and an unknown way to match INVALID_REQUEST, as there.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, DescribeClientQuotasRequest, DescribeClientQuotasResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{BOOL, Field, I8, Kind, STRING};
use crate::kafka::{Api, Request};

/// DescribeClientQuotas.
pub static API: Api = Api {
    key: ApiKey::DescribeClientQuotas,
    versions: (0, 1),
    flexible_from: 1,
    shape: &[Field::new(Kind::Structs(COMPONENT), 0), Field::new(BOOL, 0)],
    handle: |request| at_once(request, answer),
};

const COMPONENT: &[Field] = &[Field::new(STRING, 0), Field::new(I8, 0), Field::new(STRING, 0)];

/// How an entity's name is matched: exactly, as the default, or any.
const MATCH_TYPES: std::ops::RangeInclusive<i8> = 0..=2;

fn answer(_: &Request, asked: DescribeClientQuotasRequest) -> DescribeClientQuotasResponse {
    let refused = |error: ResponseError, message| {
        DescribeClientQuotasResponse::default()
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
            .with_entries(None)
    };
    let known = |kind: &str| matches!(kind, "user" | "client-id" | "ip");
    if !asked.components.iter().all(|component| known(&component.entity_type)) {
        return refused(ResponseError::UnsupportedVersion, "quotas are of user, client-id or ip");
    }
    if !asked.components.iter().all(|component| MATCH_TYPES.contains(&component.match_type)) {
        return refused(ResponseError::InvalidRequest, "MatchType must be 0, 1 or 2");
    }
    DescribeClientQuotasResponse::default()
        .with_error_message(Some(StrBytes::default()))
        .with_entries(Some(Vec::new()))
}
