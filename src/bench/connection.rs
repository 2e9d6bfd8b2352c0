//! A connection to a broker for requests whose headers are from before tagged fields, one at a time.

use std::io;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::BenchError;

/// No answer to what is asked here is larger.
const MAX_ANSWER: usize = 64 << 20;

/// A connection.
pub(super) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects to the broker at a port of this machine.
    pub(super) async fn open(port: u16) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.map_err(BenchError::io("connect to the broker"))?;
        stream.set_nodelay(true).map_err(BenchError::io("connect to the broker"))?;
        Ok(Connection { stream })
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
    ) -> Result<R::Response, BenchError> {
        let exchanged = async {
            let mut answer = self.exchange(version, request).await?;
            let header_version = R::Response::header_version(version);
            ResponseHeader::decode(&mut answer, header_version).map_err(io::Error::other)?;
            R::Response::decode(&mut answer, version).map_err(io::Error::other)
        };
        exchanged.await.map_err(BenchError::io(format!("call {:?}", ApiKey::try_from(R::KEY))))
    }

    /// Asks, and gives the answer's bytes, header included.
    pub(super) async fn exchange<R: Request>(&mut self, version: i16, request: &R) -> io::Result<Bytes> {
        let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&[0; 4]);
        header.encode(&mut frame, R::header_version(version)).map_err(io::Error::other)?;
        request.encode(&mut frame, version).map_err(io::Error::other)?;
        let size = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        self.stream.write_all(&frame).await?;
        let size = self.stream.read_u32().await? as usize;
        if size > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; size];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer.into())
    }
}
