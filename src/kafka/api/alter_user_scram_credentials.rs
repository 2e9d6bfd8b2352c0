//! AlterUserScramCredentials, key 51, version 0: refused. There are no accounts.
//!
//! A password to remove is RESOURCE_NOT_FOUND, one to keep POLICY_VIOLATION.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use kafka_protocol::messages::{AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse, ApiKey};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{BYTES, Field, I8, I32, Kind, STRING};
use crate::kafka::{Api, Request};

/// AlterUserScramCredentials.
pub static API: Api = Api {
    key: ApiKey::AlterUserScramCredentials,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(Kind::Structs(DELETION), 0), Field::new(Kind::Structs(UPSERTION), 0)],
    handle: |request| at_once(request, answer),
};

const DELETION: &[Field] = &[Field::new(STRING, 0), Field::new(I8, 0)];
const UPSERTION: &[Field] = &[
    Field::new(STRING, 0),
    Field::new(I8, 0),
    Field::new(I32, 0),
    Field::new(BYTES, 0),
    Field::new(BYTES, 0),
];

fn answer(_: &Request, asked: AlterUserScramCredentialsRequest) -> AlterUserScramCredentialsResponse {
    let refused = |user, error: ResponseError, message| {
        AlterUserScramCredentialsResult::default()
            .with_user(user)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    };
    let removed = asked.deletions.into_iter();
    let removed =
        removed.map(|one| refused(one.name, ResponseError::ResourceNotFound, "there is no such user"));
    let kept = asked.upsertions.into_iter();
    let kept =
        kept.map(|one| refused(one.name, ResponseError::PolicyViolation, "this broker keeps no accounts"));
    AlterUserScramCredentialsResponse::default().with_results(removed.chain(kept).collect())
}
