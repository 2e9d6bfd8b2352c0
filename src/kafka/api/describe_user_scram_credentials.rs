//! DescribeUserScramCredentials, key 50, version 0: whose passwords are known. Nobody's: there are no accounts.

use std::collections::HashMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_user_scram_credentials_response::DescribeUserScramCredentialsResult;
use kafka_protocol::messages::{
    ApiKey, DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{Field, Kind, STRING};
use crate::kafka::{Api, Request};

/// DescribeUserScramCredentials.
pub static API: Api = Api {
    key: ApiKey::DescribeUserScramCredentials,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(Kind::Structs(USER), 0)],
    handle: |request| at_once(request, answer),
};

const USER: &[Field] = &[Field::new(STRING, 0)];

fn answer(_: &Request, asked: DescribeUserScramCredentialsRequest) -> DescribeUserScramCredentialsResponse {
    let mut times_named: HashMap<StrBytes, usize> = HashMap::new();
    for user in asked.users.unwrap_or_default() {
        *times_named.entry(user.name).or_default() += 1;
    }
    let results = times_named.into_iter().map(|(user, times)| {
        let (error, message) = match times {
            1 => (ResponseError::ResourceNotFound, "there is no such user"),
            _ => (ResponseError::DuplicateResource, "a user is named twice in one request"),
        };
        DescribeUserScramCredentialsResult::default()
            .with_user(user)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    });
    DescribeUserScramCredentialsResponse::default()
        .with_error_message(Some(StrBytes::default()))
        .with_results(results.collect())
}
