//! An answer, as pieces that go to the socket in one vectored write.

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::Encodable;

use super::RequestError;

/// The body of an answer, without length prefix and response header. Without any piece nothing is answered.
#[derive(Debug, Default, Clone)]
pub struct Reply(pub Vec<Bytes>);

impl Reply {
    /// No answer: the client has said that it does not wait for one.
    pub fn none() -> Reply {
        Reply(Vec::new())
    }

    /// An answer encoded by the protocol crate.
    ///
    /// # Errors
    /// [`RequestError::Encode`] when a field that is set does not exist in `version`.
    pub fn encode<T: Encodable>(message: &T, version: i16) -> Result<Reply, RequestError> {
        let mut body = BytesMut::new();
        message.encode(&mut body, version).map_err(|error| RequestError::Encode(error.to_string()))?;
        Ok(Reply(vec![body.freeze()]))
    }
}
