//! DescribeTransactions, key 65, version 0: how far producers' transactions are. There are none.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_transactions_response::TransactionState;
use kafka_protocol::messages::{
    ApiKey, DescribeTransactionsRequest, DescribeTransactionsResponse, TransactionalId,
};

use super::at_once;
use crate::kafka::shape::{Field, Kind, STRING};
use crate::kafka::{Api, Request};

/// DescribeTransactions.
pub static API: Api = Api {
    key: ApiKey::DescribeTransactions,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(Kind::Array(&STRING), 0)],
    handle: |request| at_once(request, answer),
};

fn answer(_: &Request, asked: DescribeTransactionsRequest) -> DescribeTransactionsResponse {
    let none = |id: TransactionalId| {
        let error = match id.is_empty() {
            true => ResponseError::InvalidRequest,
            false => ResponseError::TransactionalIdNotFound,
        };
        TransactionState::default().with_transactional_id(id).with_error_code(error.code())
    };
    let states = asked.transactional_ids.into_iter().map(none).collect();
    DescribeTransactionsResponse::default().with_transaction_states(states)
}
