//! `millrace consume`: what is in a topic, as it comes, over gRPC.
//!
//! ```text
//!  broker ──> records ──> printed ──> acknowledged (in a group) ──> more credit
//! ```
//!
//! A record is acknowledged when it has been written out, never before: what a reader further down the pipe did not get,
//! the group gets again.

mod change;
mod debezium;
mod from;
mod json;
mod pretty;
mod shown;
mod time;

use std::future::pending;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use self::from::From;
use self::json::JsonLines;
use self::pretty::Pretty;
use super::serve::wait_for_signal;
use super::{Exit, Failure};
use crate::proto::subscribe_request::Request;
use crate::proto::subscribe_response::Response;
use crate::proto::subscriber_client::SubscriberClient;
use crate::proto::{
    Acknowledged, Acknowledgement, Credit, ListTopicsRequest, PartitionOffset, Records, SubscribeRequest,
    SubscribeResponse, Subscription, Topic, TopicSelection,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last records may take to be printed, after a signal: a pager that was left open never takes them.
const LAST_PRINT: Duration = Duration::from_secs(2);
/// How long the last acknowledgement may take.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// What the broker may send ahead of what has been printed.
const WINDOW_RECORDS: u64 = 1_000;
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Topics that are named where the one asked for is not there.
const SHOWN_TOPICS: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// What happened, for people
    Pretty,
    /// A line a record: partition, offset, timestamp, key, value
    Json,
}

/// `millrace consume`
#[derive(Debug, Args)]
pub struct Consume {
    /// The topic
    topic: String,
    /// A consumer group: shares the topic with its other members, begins where it has committed, commits what was
    /// printed
    #[arg(long)]
    group: Option<String>,
    /// Where to begin: earliest, latest, an offset, or a time like 2026-03-01T12:00:00Z; in a group where it has
    /// committed nothing. Without it at the earliest, but never past what a group has not read
    #[arg(long, allow_hyphen_values = true)]
    from: Option<From>,
    /// Ends after so many records
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// How records are printed
    #[arg(long, value_enum, default_value = "pretty")]
    output: Output,
    /// The broker's HTTP listener, without TLS
    #[arg(long, env = "MILLRACE_ENDPOINT", default_value = "http://127.0.0.1:9080")]
    endpoint: String,
}

impl Consume {
    pub async fn run(self) -> Result<(), Failure> {
        let channel = self.connect().await?;
        // The broker bounds what it sends by credit and by its largest record.
        let mut client = SubscriberClient::new(channel).max_decoding_message_size(usize::MAX);
        let topic = self.find_topic(&mut client).await?;
        let mut session = Session::start(&self, &mut client, &topic).await?;
        let mut printer = Printer::new(self.output)?;
        let stop = CancellationToken::new();
        let stopper = async {
            wait_for_signal().await;
            stop.cancel();
            pending().await
        };
        let ended = tokio::select! {
            ended = session.run(&mut printer, &stop) => ended,
            never = stopper => never,
        };
        ended.and(session.finish().await).map_err(|stop| self.failure(stop))
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        let usage = |why| Failure::new(Exit::Usage, format!("--endpoint {} {why}", self.endpoint));
        let unlike = "is not like http://127.0.0.1:9080";
        let endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(|_| usage(unlike))?;
        match endpoint.uri().scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(usage(
                    "is for TLS, which this command does not speak yet; read the topic with a Kafka client, or with a \
                     gRPC client that does, such as grpcurl",
                ));
            }
            _ => return Err(usage(unlike)),
        }
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).http2_keep_alive_interval(LAST_ANSWER);
        endpoint.connect().await.map_err(|error| self.unreachable(innermost(&error)))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        Failure::unreachable(&self.endpoint, why)
    }

    /// The topic, or which there are.
    async fn find_topic(&self, client: &mut SubscriberClient<Channel>) -> Result<Topic, Failure> {
        let asked = ListTopicsRequest { topics: vec![self.topic.clone()], ..ListTopicsRequest::default() };
        let failure = |status| self.failure(Stop::Refused(status));
        match client.list_topics(asked).await {
            Ok(answer) => {
                let topic = answer.into_inner().topics.pop();
                topic.ok_or_else(|| Failure::new(Exit::Refused, format!("there is no topic {}", self.topic)))
            }
            Err(status) if status.code() == Code::NotFound => {
                let answer = client.list_topics(ListTopicsRequest::default()).await.map_err(failure)?;
                let topics = answer.into_inner().topics;
                let mut names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
                if names.len() > SHOWN_TOPICS {
                    names.truncate(SHOWN_TOPICS);
                    names.push("…");
                }
                let there_are = match names[..] {
                    [] => "there are none; `millrace up` makes one for a database".to_owned(),
                    _ => format!("there are: {}", names.join(", ")),
                };
                Err(Failure::new(Exit::Refused, format!("there is no topic {}; {there_are}", self.topic)))
            }
            Err(status) => Err(failure(status)),
        }
    }

    fn failure(&self, stop: Stop) -> Failure {
        let status = match stop {
            Stop::Refused(status) => status,
            Stop::Output(error) => {
                return Failure::failed(format!("cannot write to standard output: {error}"));
            }
        };
        let gone = |why: &str| {
            Failure::new(
                Exit::Unreachable,
                format!("millrace at {} is there no longer: {why}", self.endpoint),
            )
        };
        // What has a source was not said by the broker: the connection is lost.
        if let Some(lost) = std::error::Error::source(&status) {
            return gone(&innermost(lost));
        }
        match status.code() {
            Code::Unavailable => gone(status.message()),
            Code::Unimplemented => Failure::new(
                Exit::Refused,
                format!("what listens at {} is not millrace; --endpoint is its --http-listen", self.endpoint),
            ),
            Code::NotFound
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated => Failure::new(Exit::Refused, status.message()),
            code => Failure::failed(format!("{}: {code}: {}", self.endpoint, status.message())),
        }
    }
}

/// The error that says what happened, below those that say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Why nothing more comes.
enum Stop {
    /// The broker says so, or is gone.
    Refused(Status),
    /// Standard output takes nothing more.
    Output(std::io::Error),
}

impl std::convert::From<Status> for Stop {
    fn from(status: Status) -> Self {
        Stop::Refused(status)
    }
}

/// A stream of records, and what has been done with them.
struct Session {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
    in_group: bool,
    /// Records that may still be asked for; `None` without a limit.
    left_to_ask: Option<u64>,
    /// Records that were asked for and have not come.
    outstanding: u64,
    /// The last acknowledgement that was sent, and the last that was answered.
    sent: u64,
    answered: u64,
}

impl Session {
    async fn start(
        consume: &Consume,
        client: &mut SubscriberClient<Channel>,
        topic: &Topic,
    ) -> Result<Session, Failure> {
        let first = consume.max.map_or(WINDOW_RECORDS, |max| max.min(WINDOW_RECORDS));
        let subscription = Subscription {
            topics: vec![TopicSelection { topic: topic.name.clone(), partitions: Vec::new() }],
            group: consume.group.clone().unwrap_or_default(),
            start: consume.from.map(|from| from.start(topic)),
            credit: Some(Credit { records: first, bytes: WINDOW_BYTES }),
            client_id: "millrace-consume".to_owned(),
            ..Subscription::default()
        };
        let (requests, mut sent) = mpsc::channel(4);
        let send = requests.send(SubscribeRequest { request: Some(Request::Subscription(subscription)) });
        // There is room, and `sent` is there.
        let _ = send.await;
        let requests_stream = futures_util::stream::poll_fn(move |context| sent.poll_recv(context));
        let responses = client.subscribe(requests_stream).await;
        let responses = responses.map_err(|status| consume.failure(status.into()))?.into_inner();
        Ok(Session {
            requests,
            responses,
            in_group: consume.group.is_some(),
            left_to_ask: consume.max.map(|max| max - first),
            outstanding: first,
            sent: 0,
            answered: 0,
        })
    }

    /// Prints what comes, until it is enough, nobody reads on, or `stop`.
    async fn run(&mut self, printer: &mut Printer, stop: &CancellationToken) -> Result<(), Stop> {
        while self.outstanding > 0 {
            let next = tokio::select! {
                next = self.next() => next?,
                () = stop.cancelled() => return Ok(()),
            };
            match next {
                Some(Response::Records(records)) => {
                    let printed = tokio::select! {
                        printed = printer.print(&records) => printed,
                        () = async { stop.cancelled().await; sleep(LAST_PRINT).await } => return Ok(()),
                    };
                    match printed {
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                        printed => printed.map_err(Stop::Output)?,
                    }
                    self.printed(&records).await;
                }
                Some(Response::Assigned(assigned)) if self.in_group => {
                    let partitions: Vec<u32> =
                        assigned.partitions.iter().map(|partition| partition.partition).collect();
                    info!(?partitions, "assigned by the group");
                }
                Some(Response::Revoked(revoked)) => {
                    let partitions: Vec<u32> =
                        revoked.partitions.iter().map(|partition| partition.partition).collect();
                    info!(?partitions, "revoked by the group");
                }
                Some(Response::Assigned(_) | Response::Acknowledged(_)) => {}
                None => return Err(Status::unavailable("it ended the stream").into()),
            }
        }
        Ok(())
    }

    /// What the broker says next; `None` when it has ended the stream.
    async fn next(&mut self) -> Result<Option<Response>, Status> {
        while let Some(message) = self.responses.message().await? {
            if let Some(Response::Acknowledged(acknowledged)) = &message.response {
                self.acknowledged(acknowledged);
            }
            // A response that is not set is one that this version does not know.
            if message.response.is_some() {
                return Ok(message.response);
            }
        }
        Ok(None)
    }

    /// Commits records that were printed, and asks for as many more.
    async fn printed(&mut self, records: &Records) {
        let count = records.records.len() as u64;
        self.outstanding = self.outstanding.saturating_sub(count);
        if let (true, Some(last)) = (self.in_group, records.records.last()) {
            self.sent += 1;
            let offset = PartitionOffset {
                topic: records.topic.clone(),
                partition: records.partition,
                offset: last.offset + 1,
                metadata: String::new(),
            };
            self.send(Request::Acknowledgement(Acknowledgement { id: self.sent, offsets: vec![offset] }))
                .await;
        }
        let more = self.left_to_ask.map_or(count, |left| left.min(count));
        self.left_to_ask = self.left_to_ask.map(|left| left - more);
        self.outstanding += more;
        if self.outstanding > 0 {
            self.send(Request::Credit(Credit { records: more, bytes: records.bytes })).await;
        }
    }

    async fn send(&self, request: Request) {
        // When the stream has ended, its other half says why.
        let _ = self.requests.send(SubscribeRequest { request: Some(request) }).await;
    }

    fn acknowledged(&mut self, acknowledged: &Acknowledged) {
        self.answered = acknowledged.id;
        for result in &acknowledged.results {
            if let Some(error) = &result.error {
                warn!(partition = result.partition, offset = result.offset, error.message, "not committed");
            }
        }
    }

    /// Waits until what was acknowledged is committed. With the stream, the place in the group is given up.
    async fn finish(&mut self) -> Result<(), Stop> {
        let answers = async {
            while self.answered < self.sent && self.next().await?.is_some() {}
            Ok::<(), Status>(())
        };
        match timeout(LAST_ANSWER, answers).await {
            Ok(answered) => Ok(answered?),
            Err(_) => {
                Err(Status::deadline_exceeded("the last commit was not answered; it may be kept or not")
                    .into())
            }
        }
    }
}

/// Standard output, and what records look like there.
struct Printer {
    style: Style,
    text: String,
}

enum Style {
    Pretty(Pretty),
    Json(JsonLines),
}

impl Printer {
    fn new(output: Output) -> Result<Printer, Failure> {
        let style = match output {
            Output::Pretty => {
                let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                Style::Pretty(Pretty { colour: std::io::stdout().is_terminal() && !no_color })
            }
            Output::Json => Style::Json(JsonLines::new().map_err(Failure::failed)?),
        };
        Ok(Printer { style, text: String::new() })
    }

    async fn print(&mut self, records: &Records) -> std::io::Result<()> {
        self.text.clear();
        for record in &records.records {
            match &self.style {
                Style::Pretty(pretty) => {
                    let shown = shown::read(&records.content_type, record);
                    pretty.write(&mut self.text, records.partition, record, &shown);
                }
                Style::Json(lines) => {
                    lines.write(&mut self.text, records.partition, &records.content_type, record);
                }
            }
        }
        let text = std::mem::take(&mut self.text);
        // A pager takes its time.
        let written = spawn_blocking(move || {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
            Ok::<_, std::io::Error>(text)
        });
        self.text = written.await.map_err(std::io::Error::other)??;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
