//! Fetch, key 1, versions 4–18: stored record batches, now or as soon as there are any.
//!
//! * 5 adds the log's start, 7 fetch sessions (KIP-227), 9 leader epochs, 10 zstd, 11 racks; 12 is flexible and adds
//!   diverging epochs, 13 names topics by id, 15 and 16 add fields for followers and moved leaders, 17 and 18 tagged
//!   fields for followers.
//!
//! An answer holds whole batches as they are stored, from the one that contains the offset on; the first batch of the
//! first partition that has one is there whatever the limits say (KIP-74). When nothing is there, or less than
//! `min_bytes`, the request is parked until a commit, an error, the end of a topic, or `max_wait`. All of an answer comes
//! from one snapshot of each log (I1): a parked request reads ranges at each commit, which is cheap, and bytes only when
//! its own moved. Where many wait for the same log, each looks only so often ([`View::changed`](crate::log::view::View)),
//! and is answered with all that was committed meanwhile.
//!
//! In a [session] a client tells and is told only what changes: partitions with records, an error, or another high
//! watermark or start than it was last told. Those of which it got records come last in the next answer.
//!
//! An error is answered at once, but that of a partition which there is not only where no other is waited for.
//!
//! As Apache Kafka, but for these: a topic that was made anew is UNKNOWN_TOPIC_ID to a request for the old one's id,
//! never INCONSISTENT_TOPIC_ID. A partition that a request without a session names twice is answered twice. A session
//! has at most 20,000 partitions, and those of all sessions take at most about 64 MiB. A parked request that the next
//! one of its session overtakes, or whose session ends, is answered at once, not when it would have been. A request
//! over 64 KiB waits a second at most. There are no transactional records, so the last stable offset is the high
//! watermark and no transaction was aborted. There is no other replica to prefer. Followers are served like consumers.

mod answer;
mod memory;
mod read;
pub mod session;
mod table;

use std::time::Duration;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, FetchRequest};
use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::memory::FetchMemory;
pub use self::session::FetchSessions;

use self::answer::{Answer, Endpoint};
use self::read::{Fetch, Read};
use self::session::{Part, Turn};
use crate::kafka::frame::LARGE;
use crate::kafka::shape::{Field, I8, I32, I64, Kind, STRING, UUID};
use crate::kafka::{Api, Reply, Request, RequestError};

/// Fetch.
pub static API: Api = Api { key: ApiKey::Fetch, versions: (4, 18), flexible_from: 12, shape: SHAPE, handle };

const PARTITION: &[Field] = &[
    Field::new(I32, 4),
    Field::new(I32, 9),
    Field::new(I64, 4),
    Field::new(I32, 12),
    Field::new(I64, 5),
    Field::new(I32, 4),
    Field::new(UUID, 17).tagged(0),
    Field::new(I64, 18).tagged(1),
];
const TOPIC: &[Field] =
    &[Field::new(STRING, 4).until(12), Field::new(UUID, 13), Field::new(Kind::Structs(PARTITION), 4)];
const FORGOTTEN: &[Field] =
    &[Field::new(STRING, 7).until(12), Field::new(UUID, 13), Field::new(Kind::Array(&I32), 7)];
const REPLICA: &[Field] = &[Field::new(I32, 15), Field::new(I64, 15)];
const SHAPE: &[Field] = &[
    Field::new(STRING, 12).tagged(0),
    Field::new(Kind::Struct(REPLICA), 15).tagged(1),
    Field::new(I32, 4).until(14),
    Field::new(I32, 4),
    Field::new(I32, 4),
    Field::new(I32, 4),
    Field::new(I8, 4),
    Field::new(I32, 7),
    Field::new(I32, 7),
    Field::new(Kind::Structs(TOPIC), 4),
    Field::new(Kind::Structs(FORGOTTEN), 7),
    Field::new(STRING, 11),
];

/// Record bytes in one answer, whatever the client allows.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long a large request waits at most: other clients' large requests may wait for its room.
const LARGE_MAX_WAIT: Duration = Duration::from_secs(1);
/// How long a request waits at least before it looks again, if it found less than `min_bytes` or is wide.
const LINGER: Duration = Duration::from_millis(5);
/// A request for more partitions is wide: looking at them at each commit would cost more than it is worth.
const WIDE: usize = 1_000;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let (broker, version) = (&*request.broker, request.version);
    let asked: FetchRequest = request.decode()?;
    let (part, wanted) = match broker.fetch_sessions.begin(Instant::now(), version, &asked) {
        Ok(begun) => begun,
        Err(error) => return Ok(Answer::new(version, Some(error), 0, 0).finish(None, None)),
    };
    let max_bytes = usize::try_from(asked.max_bytes).unwrap_or(0).min(MAX_ANSWER);
    let mut max_wait = Duration::from_millis(asked.max_wait_ms.max(0) as u64);
    if request.body.len() > LARGE {
        max_wait = max_wait.min(LARGE_MAX_WAIT);
    }
    let limits = Limits {
        min_bytes: usize::try_from(asked.min_bytes).unwrap_or(0).min(max_bytes),
        deadline: Instant::now() + max_wait,
    };
    let read_committed = asked.isolation_level == 1;
    drop(asked);
    let topics = broker.topics.watch();
    let mut fetch = Fetch::new(broker, version, max_bytes, matches!(part, Part::Next(_)), wanted);
    let read = tokio::select! {
        biased;
        read = wait(&mut fetch, topics, limits) => read,
        turn = overtaken(&part) => {
            let error = ResponseError::InvalidFetchSessionEpoch;
            return Ok(Answer::new(version, Some(error), turn.session_id(), 0).finish(None, None));
        }
    };
    let (session, error) = match part {
        Part::None => (0, None),
        Part::First { by_id, table } => {
            (broker.fetch_sessions.make(Instant::now(), by_id, table, &read.told), None)
        }
        Part::Next(turn) => (turn.session_id(), turn.end(&read.told).err()),
    };
    if error.is_some() {
        return Ok(Answer::new(version, error, session, 0).finish(None, None));
    }
    Ok(write(request, session, &fetch, read, read_committed))
}

/// Waits until another request of the same session begins, if there is a session.
async fn overtaken(part: &Part) -> &Turn {
    match part {
        Part::Next(turn) => {
            turn.overtaken().await;
            turn
        }
        _ => std::future::pending().await,
    }
}

/// How much is waited for, and until when.
struct Limits {
    min_bytes: usize,
    deadline: Instant,
}

/// Reads as soon as there is enough, or the time is up.
async fn wait(fetch: &mut Fetch<'_>, mut topics: tokio::sync::watch::Receiver<()>, limits: Limits) -> Read {
    let Limits { min_bytes, deadline } = limits;
    let mut expired = min_bytes == 0 || !fetch.may_wait();
    let mut linger = fetch.wanted.len() > WIDE;
    loop {
        let ready = fetch.look();
        expired |= Instant::now() >= deadline;
        if ready || expired {
            let read = fetch.read().await;
            if read.bytes >= min_bytes || read.at_once || expired {
                return read;
            }
            linger |= read.bytes > 0;
        }
        if linger {
            sleep_until(deadline.min(Instant::now() + LINGER)).await;
        }
        let changed = async {
            tokio::select! {
                () = fetch.view.changed() => false,
                Ok(()) = topics.changed() => true,
            }
        };
        let topics_changed = timeout_at(deadline, changed).await;
        if topics_changed != Ok(false) {
            // There may be something for which it would have looked later.
            fetch.view.refresh();
        }
        if topics_changed == Ok(true) {
            fetch.find();
        }
    }
}

/// Partitions of one topic that follow each other stand under one name.
fn write(request: &Request, session: i32, fetch: &Fetch<'_>, read: Read, read_committed: bool) -> Reply {
    let topic_of = |at: usize| fetch.wanted.get(at).map(|wanted| &wanted.topic);
    let mut runs: Vec<usize> = Vec::new();
    let mut last = None;
    for (at, ..) in &read.partitions {
        let topic = topic_of(*at);
        match runs.last_mut() {
            Some(run) if last == topic => *run += 1,
            _ => runs.push(1),
        }
        last = topic;
    }
    let mut answer = Answer::new(request.version, None, session, runs.len());
    let mut leader = None;
    let mut partitions = read.partitions.into_iter();
    for run in runs {
        for (number, (at, partition, fetched)) in partitions.by_ref().take(run).enumerate() {
            if number == 0
                && let Some(topic) = topic_of(at)
            {
                answer.topic(topic, run);
            }
            if partition.leader_epoch.is_some() {
                leader = Some(Endpoint {
                    host: &request.broker.advertised_host,
                    port: request.broker.advertised_port,
                });
            }
            answer.partition(&partition, read_committed, fetched.batches);
        }
        answer.end_topic();
    }
    answer.finish(leader, read.permit)
}
