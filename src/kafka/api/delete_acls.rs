//! DeleteAcls, key 31, versions 1–3: refused with SECURITY_DISABLED, as there are no access rules.
//!
//! * 2 is flexible; 3 adds resources of the type user.
//!
//! As Apache Kafka without an authorizer.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::messages::{ApiKey, DeleteAclsRequest, DeleteAclsResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use super::describe_acls::{NO_RULES, RULE};
use crate::kafka::shape::{Field, Kind};
use crate::kafka::{Api, Request};

/// DeleteAcls.
pub static API: Api = Api {
    key: ApiKey::DeleteAcls,
    versions: (1, 3),
    flexible_from: 2,
    shape: &[Field::new(Kind::Structs(RULE), 1)],
    handle: |request| at_once(request, answer),
};

fn answer(_: &Request, asked: DeleteAclsRequest) -> DeleteAclsResponse {
    let refused = DeleteAclsFilterResult::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(StrBytes::from_static_str(NO_RULES)));
    DeleteAclsResponse::default().with_filter_results(vec![refused; asked.filters.len()])
}
