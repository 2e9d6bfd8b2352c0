//! A request as a handler sees it: decoded header, checked but undecoded body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use kafka_protocol::protocol::Decodable;

use super::{Api, Broker, shape};

/// What every request begins with, whatever its API and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The API's key.
    pub key: i16,
    /// The version that the request is written in.
    pub version: i16,
    /// The request's number on its connection.
    pub correlation_id: i32,
}

impl Preamble {
    /// Takes it off the front of a frame.
    ///
    /// # Errors
    /// [`RequestError::Malformed`] when the frame is too short.
    pub fn take(frame: &mut Bytes) -> Result<Preamble, RequestError> {
        let short = |_| RequestError::Malformed("a frame shorter than a request header".into());
        Ok(Preamble {
            key: frame.try_get_i16().map_err(short)?,
            version: frame.try_get_i16().map_err(short)?,
            correlation_id: frame.try_get_i32().map_err(short)?,
        })
    }
}

/// Takes the rest of the request header off the front of a frame: the client id, and tagged fields in a flexible
/// version. The client id is never compact, so that any broker can read it.
///
/// # Errors
/// [`RequestError::Malformed`].
pub fn take_client_id(frame: &mut Bytes, flexible: bool) -> Result<Option<String>, RequestError> {
    let malformed = |what: &str| RequestError::Malformed(what.into());
    let length = frame.try_get_i16().map_err(|_| malformed("a frame shorter than a request header"))?;
    let client_id = match usize::try_from(length) {
        Ok(length) if length <= frame.len() => {
            let bytes = frame.split_to(length);
            Some(str::from_utf8(&bytes).map_err(|_| malformed("a client id that is not UTF-8"))?.to_owned())
        }
        Err(_) if length == -1 => None,
        _ => return Err(malformed("a client id longer than its frame")),
    };
    let left = shape::skip(frame, &[], 0, flexible)?.len();
    frame.advance(frame.len() - left);
    Ok(client_id)
}

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
    /// The client asked for something that is answered by closing the connection.
    #[error("refused: {0}")]
    Refused(&'static str),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_client_id_is_read_the_same_way_in_old_and_flexible_headers() {
        let mut old = Bytes::from_static(b"\x00\x04kcatBODY");
        assert_eq!(take_client_id(&mut old, false).unwrap().as_deref(), Some("kcat"));
        assert_eq!(old, "BODY");
        let mut flexible = Bytes::from_static(b"\x00\x04kcat\x01\x07\x02xxBODY");
        assert_eq!(take_client_id(&mut flexible, true).unwrap().as_deref(), Some("kcat"));
        assert_eq!(flexible, "BODY");
        let mut null = Bytes::from_static(b"\xFF\xFFBODY");
        assert_eq!(take_client_id(&mut null, false).unwrap(), None);
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(bytes: Vec<u8>, flexible: bool) {
            let mut frame = Bytes::from(bytes);
            if Preamble::take(&mut frame).is_ok() {
                let _ = take_client_id(&mut frame, flexible);
            }
        }
    }
}
