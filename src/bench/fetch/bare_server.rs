//! `millrace bench bare-server`: the least that serves a backlog. It has the batches of one log in memory, knows one topic
//! of one partition, and answers the four requests that a consumer needs; anything else ends the connection.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Args;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::backlog::batches;
use crate::bench::BenchError;
use crate::bench::site::TASK;
use crate::log::record_batch::BatchHeader;

/// All versions without compact fields. Those that are not answered are there because librdkafka takes a broker without them
/// for an old one.
const VERSIONS: [(ApiKey, i16, i16); 12] = [
    (ApiKey::Produce, 0, 8),
    (ApiKey::OffsetCommit, 1, 7),
    (ApiKey::OffsetFetch, 1, 5),
    (ApiKey::FindCoordinator, 0, 2),
    (ApiKey::JoinGroup, 0, 5),
    (ApiKey::Heartbeat, 0, 3),
    (ApiKey::LeaveGroup, 0, 2),
    (ApiKey::SyncGroup, 0, 3),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 5),
    (ApiKey::Metadata, 0, 8),
    (ApiKey::ApiVersions, 0, 3),
];
/// A request is never larger.
const MAX_REQUEST: usize = 1 << 20;
const MAX_SLICES: usize = 1024;

/// `millrace bench bare-server`
#[derive(Debug, Args)]
pub(in crate::bench) struct BareServer {
    /// The directory of the log
    directory: PathBuf,
    /// The port to listen on
    #[arg(long)]
    port: u16,
}

/// What is served.
struct Served {
    port: u16,
    batches: Vec<Bytes>,
    /// The offset after each batch.
    ends: Vec<i64>,
}

impl BareServer {
    /// Serves until it is killed.
    pub(in crate::bench) async fn run(self) -> Result<(), BenchError> {
        let batches = batches(&self.directory).await?;
        let end = |batch: &Bytes| BatchHeader::parse(batch).map_or(0, |header| header.end_offset().0);
        let ends = batches.iter().map(end).collect();
        let served = Arc::new(Served { port: self.port, batches, ends });
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await;
        let listener = listener.map_err(BenchError::io("listen"))?;
        loop {
            let (stream, _) = listener.accept().await.map_err(BenchError::io("accept a connection"))?;
            let served = served.clone();
            // Ends with its client, or with this process.
            tokio::spawn(async move { served.connection(stream).await });
        }
    }
}

impl Served {
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let size = stream.read_u32().await? as usize;
            if size > MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut request = vec![0; size];
            stream.read_exact(&mut request).await?;
            let mut request = Bytes::from(request);
            let (Ok(key), Ok(version), Ok(correlation)) =
                (request.try_get_i16(), request.try_get_i16(), request.try_get_i32())
            else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let client = request.try_get_i16().map_err(io::Error::other)?.max(0) as usize;
            request.try_advance(client)?;
            let (head, records) = match ApiKey::try_from(key) {
                Ok(ApiKey::Fetch) => self.fetch(version, &mut request).await?,
                Ok(ApiKey::ListOffsets) => (self.offsets(version, &mut request)?, &[][..]),
                Ok(ApiKey::Metadata) => (self.metadata(version)?, &[][..]),
                Ok(ApiKey::ApiVersions) => (versions(version)?, &[][..]),
                _ => return Err(io::ErrorKind::Unsupported.into()),
            };
            send(&mut stream, correlation, &head, records).await?;
        }
    }

    /// The answer up to its records, and those.
    async fn fetch(&self, version: i16, request: &mut Bytes) -> io::Result<(Bytes, &[Bytes])> {
        let (offset, max_bytes) = wanted(version, request).map_err(io::Error::other)?;
        let first = self.ends.partition_point(|end| *end <= offset);
        let rest = self.batches.get(first..).unwrap_or(&[]);
        if rest.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut bytes = 0;
        let fit = rest.iter().take_while(|batch| {
            bytes += batch.len();
            bytes <= max_bytes
        });
        let count = fit.count().max(1).min(rest.len());
        let records = &rest[..count];
        let end = self.ends.last().copied().unwrap_or_default();
        let mut head = BytesMut::new();
        head.put_i32(0);
        if version >= 7 {
            head.put_i16(0);
            head.put_i32(0);
        }
        head.put_i32(1);
        head.put_i16(TASK.len() as i16);
        head.put_slice(TASK.as_bytes());
        head.put_i32(1);
        head.put_i32(0);
        head.put_i16(0);
        head.put_i64(end);
        head.put_i64(end);
        if version >= 5 {
            head.put_i64(0);
        }
        head.put_i32(-1);
        if version >= 11 {
            head.put_i32(-1);
        }
        head.put_i32(records.iter().map(Bytes::len).sum::<usize>() as i32);
        Ok((head.freeze(), records))
    }

    fn offsets(&self, version: i16, request: &mut Bytes) -> io::Result<Bytes> {
        let asked = ListOffsetsRequest::decode(request, version).map_err(io::Error::other)?;
        let asked = asked.topics.first().and_then(|topic| topic.partitions.first());
        let latest = asked.is_some_and(|asked| asked.timestamp == -1);
        let offset = if latest { self.ends.last().copied().unwrap_or_default() } else { 0 };
        let partition = ListOffsetsPartitionResponse::default().with_offset(offset);
        let topic = ListOffsetsTopicResponse::default().with_name(name()).with_partitions(vec![partition]);
        encode(&ListOffsetsResponse::default().with_topics(vec![topic]), version)
    }

    fn metadata(&self, version: i16) -> io::Result<Bytes> {
        let broker = MetadataResponseBroker::default()
            .with_host(StrBytes::from_static_str("127.0.0.1"))
            .with_port(self.port.into());
        let partition = MetadataResponsePartition::default()
            .with_replica_nodes(vec![0.into()])
            .with_isr_nodes(vec![0.into()])
            .with_leader_epoch(0);
        let topic = MetadataResponseTopic::default().with_name(Some(name())).with_partitions(vec![partition]);
        let response = MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic]);
        encode(&response, version)
    }
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str(TASK))
}

fn versions(version: i16) -> io::Result<Bytes> {
    let range = |(key, min, max): &(ApiKey, i16, i16)| {
        ApiVersion::default().with_api_key(*key as i16).with_min_version(*min).with_max_version(*max)
    };
    let response = ApiVersionsResponse::default().with_api_keys(VERSIONS.iter().map(range).collect());
    match version {
        ..=3 => encode(&response, version),
        // A newer client asks again, with a version that is offered.
        _ => encode(&response.with_error_code(ResponseError::UnsupportedVersion.code()), 0),
    }
}

fn encode(response: &impl Encodable, version: i16) -> io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    response.encode(&mut bytes, version).map_err(io::Error::other)?;
    Ok(bytes.freeze())
}

/// The offset and the size that a Fetch asks for, of its first partition.
fn wanted(version: i16, request: &mut Bytes) -> Result<(i64, usize), bytes::TryGetError> {
    // Replica, longest wait and fewest bytes.
    request.try_advance(12)?;
    let max_bytes = request.try_get_i32()?;
    // Isolation, and session.
    request.try_advance(if version >= 7 { 9 } else { 1 })?;
    if request.try_get_i32()? == 0 {
        return Ok((i64::MAX, 0));
    }
    let name = request.try_get_i16()?.max(0) as usize;
    // The name, how many partitions, the partition, and its leader epoch.
    request.try_advance(name + if version >= 9 { 12 } else { 8 })?;
    let offset = request.try_get_i64()?;
    request.try_advance(if version >= 5 { 8 } else { 0 })?;
    Ok((offset, request.try_get_i32()?.min(max_bytes).max(0) as usize))
}

async fn send(stream: &mut TcpStream, correlation: i32, head: &Bytes, records: &[Bytes]) -> io::Result<()> {
    let size = 4 + head.len() + records.iter().map(Bytes::len).sum::<usize>();
    let mut first = [0; 8];
    first[..4].copy_from_slice(&(size as i32).to_be_bytes());
    first[4..].copy_from_slice(&correlation.to_be_bytes());
    let mut slices = vec![IoSlice::new(&first), IoSlice::new(head)];
    slices.extend(records.iter().map(|batch| IoSlice::new(batch)));
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = stream.write_vectored(&rest[..rest.len().min(MAX_SLICES)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

trait TryAdvance {
    fn try_advance(&mut self, count: usize) -> Result<(), bytes::TryGetError>;
}

impl TryAdvance for Bytes {
    fn try_advance(&mut self, count: usize) -> Result<(), bytes::TryGetError> {
        match count <= self.len() {
            true => {
                self.advance(count);
                Ok(())
            }
            false => Err(bytes::TryGetError { requested: count, available: self.len() }),
        }
    }
}
