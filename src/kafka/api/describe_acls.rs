//! DescribeAcls, key 29, versions 1–3: who may do what. SECURITY_DISABLED, as there are no access rules.
//!
//! * 2 is flexible; 3 adds resources of the type user.
//!
//! As Apache Kafka without an authorizer.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, DescribeAclsRequest, DescribeAclsResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{Field, I8, STRING};
use crate::kafka::{Api, Request};

/// DescribeAcls.
pub static API: Api = Api {
    key: ApiKey::DescribeAcls,
    versions: (1, 3),
    flexible_from: 2,
    shape: RULE,
    handle: |request| at_once(request, answer),
};

/// A rule, or a filter for rules: type, name and pattern of the resource, principal, host, operation, permission.
pub(super) const RULE: &[Field] = &[
    Field::new(I8, 1),
    Field::new(STRING, 1),
    Field::new(I8, 1),
    Field::new(STRING, 1),
    Field::new(STRING, 1),
    Field::new(I8, 1),
    Field::new(I8, 1),
];

/// What is said of rules as long as there are none.
pub(super) const NO_RULES: &str = "this broker has no access rules";

fn answer(_: &Request, _: DescribeAclsRequest) -> DescribeAclsResponse {
    DescribeAclsResponse::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(StrBytes::from_static_str(NO_RULES)))
}
