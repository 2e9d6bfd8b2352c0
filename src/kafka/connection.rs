//! The listener and the connection loop.
//!
//! ```text
//!  serve ── accept ──> a task per connection:  frame ─> header ─> api.handle ─> vectored write ─┐
//!    └─ owns them all                            ↑  (meanwhile the socket is read on, bounded)   │
//!                                                └───────────────────────────────────────────────┘
//! ```
//!
//! A connection has one request in hand and at most one answer in memory: answers go out in order, and a client that
//! sends much or reads nothing is held up by TCP and costs itself. While a request is in hand the socket is read on, so
//! that a close is seen at once and drops what is parked. Whatever is not a Kafka request closes the connection (I8).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::api::{self, api_versions};
use super::frame::{CHUNK, Frames, LARGE};
use super::request::{Preamble, take_client_id};
use super::{Api, Broker, Reply, Request, RequestError};

/// What a client may take of us.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Size of the first request on a connection, before it has shown that it speaks Kafka.
    pub first_request_bytes: usize,
    /// Size of every other request.
    pub request_bytes: usize,
    /// Size of all requests over 64 KiB together that are being read or answered; further ones wait for their turn.
    pub large_requests_bytes: usize,
    /// Size of all answers over 64 KiB together that clients have not yet taken, but for those to Fetch, which have
    /// memory of their own. A connection whose answer has no room is closed.
    pub large_answers_bytes: usize,
    /// Time from a request's first byte to its last, and from connecting to the first request.
    pub request_time: Duration,
    /// Time without any request. Clients close idle connections after 9 minutes by themselves.
    pub idle_time: Duration,
    /// Time for which a client may take nothing of an answer.
    pub write_stall: Duration,
    /// Time that a request in hand is given when the broker stops.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 16_000,
            first_request_bytes: 64 * 1024,
            request_bytes: 1024 * 1024,
            large_requests_bytes: 256 * 1024 * 1024,
            large_answers_bytes: 64 * 1024 * 1024,
            request_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(15 * 60),
            write_stall: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(1),
        }
    }
}

/// A large request takes room in steps of so many bytes, as it comes.
const ROOM_STEP: usize = 64 * 1024;
/// Slices in one vectored write; the kernel's limit.
const MAX_SLICES: usize = 1024;

/// Serves Kafka clients until `shutdown`, and returns when the last connection has ended.
pub async fn serve(listener: TcpListener, broker: Arc<Broker>, shutdown: CancellationToken) {
    let limits = broker.limits;
    let large_requests = Arc::new(Semaphore::new(limits.large_requests_bytes.min(Semaphore::MAX_PERMITS)));
    let large_answers = Semaphore::new(limits.large_answers_bytes.min(Semaphore::MAX_PERMITS));
    let server = Arc::new(Server { broker, limits, large_requests, large_answers, metrics: Metrics::new() });
    // Dropping the set aborts what is in it, so no connection outlives this future.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {
                server.metrics.connections.set(connections.len() as f64);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, peer)) if connections.len() >= limits.connections => {
                tracing::warn!(%peer, limit = limits.connections, "too many kafka connections, closing a new one");
            }
            Ok((stream, peer)) => {
                connections.spawn(server.clone().connection(stream, peer, shutdown.clone()));
                server.metrics.connections.set(connections.len() as f64);
            }
            Err(error) => {
                // Out of file descriptors, most likely; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a kafka connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.shutdown_grace, ended).await.is_err() {
        // Parked requests, and clients that do not take their answer.
        connections.shutdown().await;
    }
    server.metrics.connections.set(0.0);
}

/// Why a connection ended other than by the client's or our own wish.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no complete request within {0:?}")]
    SlowRequest(Duration),
    #[error("other clients' large requests leave no room for another")]
    Crowded,
    #[error("answers that other clients have not taken leave no room for another large one")]
    Untaken,
    #[error("nothing of an answer taken within {0:?}")]
    SlowReader(Duration),
}

struct Server {
    broker: Arc<Broker>,
    limits: Limits,
    /// Bytes that large requests may still take.
    large_requests: Arc<Semaphore>,
    /// Bytes that large answers may still take.
    large_answers: Semaphore,
    metrics: Metrics,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        shutdown: CancellationToken,
    ) {
        let mut client = Client { peer, software: None, seen: false };
        if let Err(closed) = self.serve_client(&mut stream, &mut client, &shutdown).await {
            let software = client.software.as_deref().unwrap_or("unknown");
            match closed {
                Closed::Io(error) => tracing::debug!(%peer, software, %error, "kafka connection lost"),
                refused => tracing::warn!(%peer, software, reason = %refused, "closing a kafka connection"),
            }
        }
    }

    async fn serve_client(
        &self,
        stream: &mut TcpStream,
        client: &mut Client,
        shutdown: &CancellationToken,
    ) -> Result<(), Closed> {
        stream.set_nodelay(true)?;
        SockRef::from(&*stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
        let (mut reader, mut writer) = stream.split();
        let mut frames = Frames::default();
        loop {
            let frame = tokio::select! {
                frame = self.next_frame(&mut frames, &mut reader, client.seen) => frame?,
                () = shutdown.cancelled() => return Ok(()),
            };
            // The room is given back when the request has been answered.
            let Some((mut frame, _room)) = frame else { return Ok(()) };
            let preamble = Preamble::take(&mut frame)?;
            let Some(api) = api::find(preamble) else {
                // Before it knows our versions a client can only guess that of ApiVersions.
                if preamble.key == ApiKey::ApiVersions as i16 {
                    let reply = api_versions::unsupported_version()?;
                    self.write(&mut writer, preamble.correlation_id, false, &reply).await?;
                    client.seen = true;
                    continue;
                }
                return Err(RequestError::Unsupported { key: preamble.key, version: preamble.version }.into());
            };
            let flexible = preamble.version >= api.flexible_from;
            let request = Request {
                api,
                version: preamble.version,
                correlation_id: preamble.correlation_id,
                client_id: take_client_id(&mut frame, flexible)?,
                peer: client.peer,
                body: frame,
                broker: self.broker.clone(),
            };
            client.learn(&request);
            let started = Instant::now();
            let reply = tokio::select! {
                biased;
                reply = (api.handle)(&request) => reply,
                ended = read_ahead(&mut frames, &mut reader) => return Ok(ended?),
            };
            self.metrics.count(api, reply.is_err(), started.elapsed());
            drop(request);
            let reply = reply?;
            if reply.0.is_empty() {
                continue;
            }
            // Waiting for room would keep the answer in memory meanwhile.
            let size = reply.0.iter().map(|piece| piece.len()).sum::<usize>();
            let _room = match size > LARGE && !matches!(api.key, ApiKey::Fetch) {
                true => {
                    let permits = u32::try_from(size).unwrap_or(u32::MAX);
                    Some(self.large_answers.try_acquire_many(permits).map_err(|_| Closed::Untaken)?)
                }
                false => None,
            };
            // ApiVersions answers with the old header always: the client may not know yet what we speak.
            let tagged_header = flexible && !matches!(api.key, ApiKey::ApiVersions);
            self.write(&mut writer, preamble.correlation_id, tagged_header, &reply).await?;
        }
    }

    /// The next request's bytes, with the room that a large one takes; `None` when the client has closed, or been idle
    /// for too long.
    async fn next_frame(
        &self,
        frames: &mut Frames,
        reader: &mut (impl AsyncRead + Unpin),
        seen: bool,
    ) -> Result<Option<(Bytes, Option<OwnedSemaphorePermit>)>, Closed> {
        let limits = &self.limits;
        let size = if seen { limits.request_bytes } else { limits.first_request_bytes };
        if seen && frames.len() == 0 {
            let Ok(read) = timeout(limits.idle_time, frames.fill(reader)).await else { return Ok(None) };
            if read? == 0 {
                return Ok(None);
            }
        }
        let deadline = Instant::now() + limits.request_time;
        let mut room = None;
        loop {
            if let Some(frame) = frames.next(size)? {
                return Ok(Some((frame, room)));
            }
            if frames.announced().is_some_and(|size| size > LARGE) {
                let granted = timeout_at(deadline, self.make_room(&mut room, frames)).await;
                granted.map_err(|_| Closed::Crowded)?;
            }
            let read = timeout_at(deadline, frames.fill(reader))
                .await
                .map_err(|_| Closed::SlowRequest(limits.request_time))?;
            if read? == 0 {
                return Ok(None);
            }
        }
    }

    /// Takes room for what a large request has sent and is to send next, not for what it has announced: that costs a
    /// client nothing.
    async fn make_room(&self, room: &mut Option<OwnedSemaphorePermit>, frames: &Frames) {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if frames.len() + CHUNK <= held.max(LARGE) {
            return;
        }
        let wanted = (held + ROOM_STEP).max(frames.len() + CHUNK).min(self.limits.large_requests_bytes);
        let more = u32::try_from(wanted.saturating_sub(held)).unwrap_or(u32::MAX);
        let Ok(more) = self.large_requests.clone().acquire_many_owned(more).await else { return };
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
        }
    }

    async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        correlation_id: i32,
        tagged_header: bool,
        reply: &Reply,
    ) -> Result<(), Closed> {
        let mut header = [0; 9];
        let header = if tagged_header { &mut header[..] } else { &mut header[..8] };
        let size = header.len() - 4 + reply.0.iter().map(|piece| piece.len()).sum::<usize>();
        let size =
            i32::try_from(size).map_err(|_| RequestError::Encode(format!("{size} bytes in one answer")))?;
        header[..4].copy_from_slice(&size.to_be_bytes());
        header[4..8].copy_from_slice(&correlation_id.to_be_bytes());

        let mut slices = Vec::with_capacity(1 + reply.0.len());
        slices.push(IoSlice::new(header));
        slices.extend(reply.0.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)));
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let next = &rest[..rest.len().min(MAX_SLICES)];
            let written = timeout(self.limits.write_stall, writer.write_vectored(next))
                .await
                .map_err(|_| Closed::SlowReader(self.limits.write_stall))??;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            IoSlice::advance_slices(&mut rest, written);
            self.metrics.bytes_sent.increment(written as u64);
        }
        Ok(())
    }
}

/// What is known of the client at the other end.
struct Client {
    peer: SocketAddr,
    /// Name and version of its library, from ApiVersions.
    software: Option<String>,
    /// Whether it has sent a request that is one.
    seen: bool,
}

impl Client {
    fn learn(&mut self, request: &Request) {
        self.seen = true;
        if matches!(request.api.key, ApiKey::ApiVersions)
            && let Some(software) = api_versions::client_software(request)
        {
            self.software = Some(software);
        }
    }
}

/// Reads on, up to a bound, until the client closes.
async fn read_ahead(frames: &mut Frames, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    while frames.len() < LARGE {
        if frames.fill(reader).await? == 0 {
            return Ok(());
        }
    }
    std::future::pending().await
}

/// The listener's metrics, looked up once.
struct Metrics {
    connections: Gauge,
    bytes_sent: Counter,
    apis: Vec<(i16, ApiMetrics)>,
}

struct ApiMetrics {
    requests: Counter,
    errors: Counter,
    seconds: Histogram,
}

impl Metrics {
    fn new() -> Self {
        let of_api = |api: &&Api| {
            let name = format!("{:?}", api.key);
            let metrics = ApiMetrics {
                requests: counter!("millrace_kafka_requests_total", "api" => name.clone()),
                errors: counter!("millrace_kafka_request_errors_total", "api" => name.clone()),
                seconds: histogram!("millrace_kafka_request_seconds", "api" => name),
            };
            (api.key as i16, metrics)
        };
        Metrics {
            connections: gauge!("millrace_kafka_connections"),
            bytes_sent: counter!("millrace_kafka_bytes_sent_total"),
            apis: api::ALL.iter().map(of_api).collect(),
        }
    }

    fn count(&self, api: &Api, failed: bool, took: Duration) {
        let key = api.key as i16;
        let Some((_, metrics)) = self.apis.iter().find(|(known, _)| *known == key) else { return };
        metrics.requests.increment(1);
        metrics.errors.increment(u64::from(failed));
        metrics.seconds.record(took);
    }
}
