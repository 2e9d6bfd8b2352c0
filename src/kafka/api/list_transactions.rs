//! ListTransactions, key 66, versions 0–2: producers' transactions. There are none.
//!
//! * 1 adds a filter by duration, 2 by a pattern for the transactional id.
//!
//! Filters are checked all the same: states that Kafka does not have are named in the answer, and a pattern that is none
//! is INVALID_REGULAR_EXPRESSION.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, ListTransactionsRequest, ListTransactionsResponse};
use regex::Regex;

use super::at_once;
use crate::kafka::shape::{Field, I64, Kind, STRING};
use crate::kafka::{Api, Request};

/// ListTransactions.
pub static API: Api = Api {
    key: ApiKey::ListTransactions,
    versions: (0, 2),
    flexible_from: 0,
    shape: &[
        Field::new(Kind::Array(&STRING), 0),
        Field::new(Kind::Array(&I64), 0),
        Field::new(I64, 1),
        Field::new(STRING, 2),
    ],
    handle: |request| at_once(request, answer),
};

const STATES: [&str; 8] = [
    "Empty",
    "Ongoing",
    "PrepareCommit",
    "PrepareAbort",
    "CompleteCommit",
    "CompleteAbort",
    "Dead",
    "PrepareEpochFence",
];

fn answer(_: &Request, asked: ListTransactionsRequest) -> ListTransactionsResponse {
    if asked.transactional_id_pattern.is_some_and(|pattern| Regex::new(&pattern).is_err()) {
        return ListTransactionsResponse::default()
            .with_error_code(ResponseError::InvalidRegularExpression.code());
    }
    let unknown = asked.state_filters.into_iter().filter(|state| !STATES.contains(&state.as_str()));
    ListTransactionsResponse::default().with_unknown_state_filters(unknown.collect())
}
