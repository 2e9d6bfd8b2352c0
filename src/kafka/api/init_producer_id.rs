//! InitProducerId, key 22, versions 0–5: an id for an idempotent producer.
//!
//! * 1: as 0. 2: flexible. 3: the id and epoch that the producer has had. 4: tells an old epoch from a fenced one. 5: as 4.
//!
//! It is answered on every broker, also where no client may write: most producers ask for an id first, and stop with an
//! error that tells nobody anything when they cannot have one. Given one they go on, and Produce says what is the matter.
//!
//! As in Apache Kafka, every request is answered with a new id and epoch 0, whatever the producer had before. Unlike there,
//! ids are drawn at random, so nothing needs to be kept for them to be unique; and there are no transactions: a
//! transactional id is answered with TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which no client tries again.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use crate::kafka::shape::{Field, I16, I32, I64, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// InitProducerId.
pub static API: Api = Api {
    key: ApiKey::InitProducerId,
    versions: (0, 5),
    flexible_from: 2,
    shape: &[Field::new(STRING, 0), Field::new(I32, 0), Field::new(I64, 3), Field::new(I16, 3)],
    handle: |request| Box::pin(async move { handle(request) }),
};

/// Ids are below this, so that every client language has a number for them.
const MAX_ID: u64 = 1 << 52;
/// No id, or no epoch.
const NONE: i16 = -1;

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: InitProducerIdRequest = request.decode()?;
    let response = match producer_id(&asked) {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(ProducerId(id)),
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id(ProducerId(NONE.into()))
            .with_producer_epoch(NONE),
    };
    Reply::encode(&response, request.version)
}

fn producer_id(asked: &InitProducerIdRequest) -> Result<i64, ResponseError> {
    match &asked.transactional_id {
        Some(id) if id.is_empty() => return Err(ResponseError::InvalidRequest),
        Some(_) => return Err(ResponseError::TransactionalIdAuthorizationFailed),
        None => {}
    }
    if (asked.producer_id.0 == i64::from(NONE)) != (asked.producer_epoch == NONE) {
        return Err(ResponseError::InvalidRequest);
    }
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|error| {
        tracing::error!(%error, "no random number for a producer's id");
        ResponseError::UnknownServerError
    })?;
    Ok((u64::from_le_bytes(id) % MAX_ID) as i64)
}
