//! A request as a handler sees it: decoded header, checked but undecoded body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::protocol::Decodable;

use super::{Api, Broker, shape};

/// A request, its body not yet decoded.
pub struct Request {
    /// The API it asks for.
    pub api: &'static Api,
    /// The version it is written in; within the API's range.
    pub version: i16,
    /// Its number on this connection, which the answer repeats.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<String>,
    /// Where it came from.
    pub peer: SocketAddr,
    /// The body.
    pub body: Bytes,
    /// The broker.
    pub broker: Arc<Broker>,
}

impl Request {
    /// Decodes the body after its counts and lengths have been checked against its size.
    ///
    /// # Errors
    /// [`RequestError::Malformed`]: the connection is closed, as Kafka does.
    pub fn decode<T: Decodable>(&self) -> Result<T, RequestError> {
        shape::check(&self.body, self.api.shape, self.version, self.version >= self.api.flexible_from)?;
        T::decode(&mut self.body.clone(), self.version)
            .map_err(|error| RequestError::Malformed(error.to_string()))
    }
}

/// Why a request cannot be answered at all. The connection is closed; the process and other clients go on (I8).
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The bytes are not what the API's schema says.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The answer could not be encoded.
    #[error("cannot encode the answer: {0}")]
    Encode(String),
    /// No such API, or a version of it that is not served.
    #[error("unsupported api key {key} version {version}")]
    Unsupported {
        /// The key asked for.
        key: i16,
        /// The version asked for.
        version: i16,
    },
}
