//! Subscribe: a stream of records, with credit and acknowledgements.
//!
//! ```text
//!   requests ──> Session::run ──> outbox ──> channel of one ──> Responses ──> HTTP/2
//!                 │  │   ▲                                        owns the task: dropped, it ends it
//!                 │  │   └── one read at a time, of what credit allows
//!                 │  └────── the place in the group, which is left when it is dropped
//!                 └───────── commits (I6)
//! ```
//!
//! One task serves one stream, and owns all that the stream has. It is a task of its own because it has to go on while the
//! client does not read: a member of a group that is not heard of loses its partitions.

mod credit;
mod cursors;
mod outbox;
mod session;
mod start;

use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use self::session::Session;
use super::records::{Reader, Room};
use super::{Broker, status};
use crate::http::CloseConnection;
use crate::proto::subscribe_request::Request;
use crate::proto::subscribe_response::Response;
use crate::proto::{SubscribeRequest, SubscribeResponse};

/// From the stream's beginning to its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// A number that has not changed yet is 0, not absent.
pub fn register_metrics() {
    Metrics::new().subscribers.set(0.0);
}

struct Metrics {
    subscribers: Gauge,
    records: Counter,
    bytes: Counter,
}

impl Metrics {
    fn new() -> Self {
        let metrics = Metrics {
            subscribers: gauge!("millrace_grpc_subscribers"),
            records: counter!("millrace_grpc_records_sent_total"),
            bytes: counter!("millrace_grpc_record_bytes_sent_total"),
        };
        metrics.records.increment(0);
        metrics.bytes.increment(0);
        metrics
    }
}

/// A subscriber that is counted.
struct Counted(Metrics);

impl Counted {
    fn new() -> Self {
        let metrics = Metrics::new();
        metrics.subscribers.increment(1.0);
        Counted(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.subscribers.decrement(1.0);
    }
}

/// A message on its way, with what it holds of the memory for large records.
struct Outgoing {
    response: Result<SubscribeResponse, Status>,
    room: Option<Room>,
}

impl From<Response> for Outgoing {
    fn from(response: Response) -> Self {
        Outgoing { response: Ok(SubscribeResponse { response: Some(response) }), room: None }
    }
}

/// The server's side of a stream.
pub struct Responses {
    outgoing: mpsc::Receiver<Outgoing>,
    /// Of the message that was taken last: it has been written when the next one is asked for.
    room: Option<Room>,
    _task: AbortOnDropHandle<()>,
}

impl Stream for Responses {
    type Item = Result<SubscribeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.room = None;
        self.outgoing.poll_recv(cx).map(|next| {
            let next = next?;
            self.room = next.room;
            Some(next.response)
        })
    }
}

/// The other end of a stream.
pub struct Client {
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// When it gives up.
    pub deadline: Option<Instant>,
    /// Closes its connection.
    pub close: CloseConnection,
}

/// Starts a stream.
pub fn start(
    broker: Broker,
    reader: Reader,
    requests: Streaming<SubscribeRequest>,
    client: Client,
) -> Responses {
    let (responses, outgoing) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let stop = broker.stop.clone();
        let ended = tokio::select! {
            ended = serve(broker, reader, requests, &client, &responses) => ended,
            () = stop.cancelled() => Err(status::stopping()),
            () = at(client.deadline) => Err(Status::deadline_exceeded("the stream's deadline is over: subscribe again")),
        };
        if let Err(status) = ended {
            // Who has gone does not hear it.
            let _ = responses.send(Outgoing { response: Err(status), room: None }).await;
        }
    });
    Responses { outgoing, room: None, _task: AbortOnDropHandle::new(task) }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn serve(
    broker: Broker,
    reader: Reader,
    mut requests: Streaming<SubscribeRequest>,
    client: &Client,
    responses: &mpsc::Sender<Outgoing>,
) -> Result<(), Status> {
    let first = timeout(FIRST_MESSAGE, requests.message()).await;
    let first = first.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no subscription within {FIRST_MESSAGE:?}; send one as first message"
        ))
    })??;
    let Some(SubscribeRequest { request: Some(Request::Subscription(asked)) }) = first else {
        return Err(Status::invalid_argument("the first message has to be a subscription"));
    };
    let mut session = Session::open(broker, reader, asked, client.peer).await?;
    session.run(&mut requests, &client.close, responses).await
}
