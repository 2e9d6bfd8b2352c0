//! Fetch, key 1, versions 4–18: stored record batches, now or as soon as there are any.
//!
//! * 5 adds the log's start, 7 fetch sessions, 9 leader epochs, 10 zstd, 11 racks; 12 is flexible, 13 names topics by id,
//!   15 and 16 add fields for followers and moved leaders, 17 and 18 tagged fields for followers.
//!
//! An answer holds whole batches as they are stored, from the one that contains the offset on; the first batch of the
//! first partition that has one is there whatever the limits say (KIP-74). When nothing is there, or less than
//! `min_bytes`, the request is parked until a commit, an error or `max_wait`. All of an answer comes from one snapshot
//! of each log (I1): a parked request reads ranges at each commit, which is cheap, and bytes only when its own moved.
//! Where many wait for the same log, each looks only so often ([`View::changed`]), and is answered with all that was
//! committed meanwhile.
//!
//! As Apache Kafka, but for these: sessions are refused by always answering session 0, which is allowed. There are no
//! transactional records, so the last stable offset is the high watermark and no transaction was aborted. There is no
//! other replica to prefer. Followers are served like consumers, and `last_fetched_epoch`, which only they send, is not
//! looked at.

mod answer;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::{ApiKey, FetchRequest, TopicName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::answer::{Answer, Partition};
use super::{from_uuid, storage_error};
use crate::kafka::shape::{Field, I8, I32, I64, Kind, STRING, UUID};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};
use crate::log::topics::{Topic, TopicId};
use crate::log::view::{Place, View};
use crate::log::{Fetched, Offset};

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
/// Record bytes in one answer when the memory for answers is spent by clients that do not read theirs.
const SMALL_ANSWER: usize = 64 * 1024;
/// A first batch that is over its limit waits for memory from this size on; smaller ones are given at once, so that
/// clients that do not read theirs stop nobody.
const LARGE_BATCH: usize = 1024 * 1024;
/// Memory for record bytes on their way to clients, in KiB.
const ANSWERS_KIB: usize = 256 * 1024;

/// The memory that a broker has for record bytes on their way to all of its clients.
#[derive(Debug, Clone)]
pub struct FetchMemory(Arc<Semaphore>);

impl Default for FetchMemory {
    fn default() -> Self {
        FetchMemory(Arc::new(Semaphore::new(ANSWERS_KIB)))
    }
}

impl FetchMemory {
    /// Takes memory for an answer; `None` when it is spent. Waiting for it would let clients that do not read stop
    /// others.
    fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        self.0.clone().try_acquire_many_owned(kib).ok()
    }

    /// Waits for memory, or for all of it where that is less.
    async fn wait_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = bytes.div_ceil(1024).min(ANSWERS_KIB) as u32;
        self.0.clone().acquire_many_owned(kib).await.ok()
    }
}
/// How long a request waits at least before it looks again, if it found less than `min_bytes` or is wide.
const LINGER: Duration = Duration::from_millis(5);
/// A request for more partitions is wide: looking at them at each commit would cost more than it is worth.
const WIDE: usize = 1_000;
/// Reads without use in one answer (a batch that does not fit, an error), after which it reads no more. Clients begin
/// the next request with the partitions of which they got nothing.
const MAX_MISSES: usize = 16;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: FetchRequest = request.decode()?;
    if let Some(error) = session_error(&asked) {
        return Ok(Answer::new(request.version, Some(error), 0).finish(None));
    }
    let max_bytes = usize::try_from(asked.max_bytes).unwrap_or(0).min(MAX_ANSWER);
    let min_bytes = usize::try_from(asked.min_bytes).unwrap_or(0).min(max_bytes);
    let deadline = Instant::now() + Duration::from_millis(asked.max_wait_ms.max(0) as u64);
    let read_committed = asked.isolation_level == 1;
    let mut fetch = Fetch::plan(asked, request, max_bytes, read_committed);
    let partitions = fetch.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>();
    let mut expired = min_bytes == 0 || partitions == 0;
    let mut linger = partitions > WIDE;
    loop {
        let ready = fetch.look();
        expired |= Instant::now() >= deadline;
        if ready || expired {
            let read = fetch.read().await;
            if read.bytes >= min_bytes || read.at_once || expired {
                return Ok(read.reply);
            }
            linger |= read.bytes > 0;
        }
        if linger {
            sleep_until(deadline.min(Instant::now() + LINGER)).await;
        }
        if timeout_at(deadline, fetch.view.changed()).await.is_err() {
            // There may be something for which it would have looked later.
            fetch.view.refresh();
        }
    }
}

/// Sessions are never made, so only "make one" (0) and "none" (-1) make sense.
fn session_error(asked: &FetchRequest) -> Option<ResponseError> {
    match (asked.session_id, asked.session_epoch) {
        (0, -1 | 0) => None,
        (0, _) => Some(ResponseError::InvalidFetchSessionEpoch),
        _ => Some(ResponseError::FetchSessionIdNotFound),
    }
}

/// What a request wants, found among the topics.
struct Fetch {
    memory: FetchMemory,
    version: i16,
    read_committed: bool,
    max_bytes: usize,
    view: View,
    topics: Vec<WantedTopic>,
}

struct WantedTopic {
    name: TopicName,
    id: uuid::Uuid,
    found: Option<Arc<Topic>>,
    partitions: Vec<Wanted>,
}

struct Wanted {
    index: i32,
    from: Offset,
    max_bytes: usize,
    place: Result<Place, ResponseError>,
    /// The high watermark when it was last looked at.
    seen: Option<Offset>,
}

/// What an answer has used of its limits so far.
struct Spent {
    budget: usize,
    /// How large a first batch may be that is over its limit.
    first: usize,
    bytes: usize,
    misses: usize,
}

impl Spent {
    /// What is left for a partition; `None` when nothing more is to be read.
    fn left(&self, max_bytes: usize) -> Option<usize> {
        let left = self.budget.saturating_sub(self.bytes);
        let done = (left == 0 && self.bytes > 0) || self.misses >= MAX_MISSES;
        (!done).then(|| left.min(max_bytes))
    }
}

/// A first batch of so many bytes, for which no memory is reserved.
struct TooLarge(usize);

/// Why nothing is read of a partition.
enum Unread {
    /// The client is told.
    Answer(ResponseError),
    /// Its first batch is this large, in bytes: memory is to be waited for.
    TooLarge(usize),
}

impl From<ResponseError> for Unread {
    fn from(error: ResponseError) -> Self {
        Unread::Answer(error)
    }
}

/// An answer that may be given, or thrown away to wait for more.
struct Read {
    reply: Reply,
    bytes: usize,
    /// Whether it must not wait for more bytes.
    at_once: bool,
}

impl Fetch {
    fn plan(asked: FetchRequest, request: &Request, max_bytes: usize, read_committed: bool) -> Fetch {
        let mut view = View::default();
        let mut topics = Vec::with_capacity(asked.topics.len());
        for topic in asked.topics {
            let found = find(&request.broker, request.version, &topic.topic, from_uuid(topic.topic_id));
            let mut wanted = |partition: &FetchPartition| Wanted {
                index: partition.partition,
                from: Offset(partition.fetch_offset),
                max_bytes: usize::try_from(partition.partition_max_bytes).unwrap_or(0),
                place: match &found {
                    Ok(found) => {
                        super::place(&mut view, found, partition.partition, partition.current_leader_epoch)
                    }
                    Err(error) => Err(*error),
                },
                seen: None,
            };
            let partitions = topic.partitions.iter().map(&mut wanted).collect();
            topics.push(WantedTopic { name: topic.topic, id: topic.topic_id, found: found.ok(), partitions });
        }
        let memory = request.broker.fetch_memory.clone();
        Fetch { memory, version: request.version, read_committed, max_bytes, view, topics }
    }

    /// Whether there is anything to answer that was not there at the last look. Reads ranges, no bytes.
    fn look(&mut self) -> bool {
        let mut news = false;
        for wanted in self.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            let Ok(place) = wanted.place else {
                news = true;
                continue;
            };
            news |= self.view.is_gone(place);
            let range = self.view.range(place);
            let moved = wanted.seen.replace(range.end) != Some(range.end);
            let nothing = wanted.from == range.end;
            news |= (moved && !nothing) || wanted.from < range.start;
        }
        news
    }

    /// Reads what there is, within the limits.
    async fn read(&self) -> Read {
        let mut reserved = self.memory.reserve(self.expected());
        let mut first = reserved.as_ref().map_or(0, |permit| permit.num_permits() * 1024).max(LARGE_BATCH);
        loop {
            match self.read_within(reserved, first).await {
                Ok(read) => return read,
                Err(TooLarge(bytes)) => {
                    // What was reserved has been given back: who waits holds nothing that another waits for.
                    reserved = self.memory.wait_for(bytes).await;
                    first = usize::MAX;
                }
            }
        }
    }

    /// Reads into memory that has been reserved, unless the first batch is larger than `first`.
    async fn read_within(
        &self,
        mut permit: Option<OwnedSemaphorePermit>,
        first: usize,
    ) -> Result<Read, TooLarge> {
        let mut at_once = permit.is_none();
        let budget = if permit.is_some() { self.max_bytes } else { self.max_bytes.min(SMALL_ANSWER) };
        let mut spent = Spent { budget, first, bytes: 0, misses: 0 };
        let mut answer = Answer::new(self.version, None, self.topics.len());
        for topic in &self.topics {
            answer.topic(&topic.name, topic.id, topic.partitions.len());
            for wanted in &topic.partitions {
                let (partition, fetched) = match self.partition(topic, wanted, &mut spent).await {
                    Ok(read) => read,
                    Err(Unread::TooLarge(bytes)) => return Err(TooLarge(bytes)),
                    Err(Unread::Answer(error)) => {
                        at_once = true;
                        (Partition::failed(wanted.index, error), Fetched::default())
                    }
                };
                spent.bytes += fetched.len();
                answer.partition(&partition, self.read_committed, fetched.batches);
            }
            answer.end_topic();
        }
        if let Some(permit) = &mut permit {
            let spare = permit.num_permits().saturating_sub(spent.bytes.div_ceil(1024));
            drop(permit.split(spare));
        }
        Ok(Read { reply: answer.finish(permit), bytes: spent.bytes, at_once })
    }

    /// So many bytes can come of a read; more only by a first batch that is over its limit.
    fn expected(&self) -> usize {
        let mut expected = 0usize;
        for wanted in self.topics.iter().flat_map(|topic| &topic.partitions) {
            let Ok(place) = wanted.place else { continue };
            let range = self.view.range(place);
            if wanted.from < range.end {
                expected = expected.saturating_add(wanted.max_bytes.max(1));
            }
        }
        expected.min(self.max_bytes)
    }

    async fn partition(
        &self,
        topic: &WantedTopic,
        wanted: &Wanted,
        spent: &mut Spent,
    ) -> Result<(Partition, Fetched), Unread> {
        let place = wanted.place?;
        let (log, snapshot) = self.view.at(place);
        let range = snapshot.range(place.partition).ok_or(match self.version {
            13.. => ResponseError::UnknownTopicId,
            _ => ResponseError::UnknownTopicOrPartition,
        })?;
        if wanted.from < range.start || wanted.from > range.end {
            return Err(ResponseError::OffsetOutOfRange.into());
        }
        let partition =
            Partition { index: wanted.index, error: None, high_watermark: range.end, log_start: range.start };
        let Some(limit) = spent.left(wanted.max_bytes).filter(|_| wanted.from < range.end) else {
            return Ok((partition, Fetched::default()));
        };
        let fetched = log.fetch(snapshot, place.partition, wanted.from, limit).await.map_err(|error| {
            spent.misses += 1;
            let name = topic.found.as_deref().map_or("unknown", |topic| &topic.name);
            storage_error(name, &error)
        })?;
        if self.version < 10 && fetched.batches.iter().any(is_zstd) {
            spent.misses += 1;
            return Err(ResponseError::UnsupportedCompressionType.into());
        }
        if spent.bytes == 0 && fetched.len() > limit.max(spent.first) {
            return Err(Unread::TooLarge(fetched.len()));
        }
        // The log gives one batch however large; only the first of an answer may be.
        if spent.bytes > 0 && fetched.len() > limit {
            spent.misses += 1;
            return Ok((partition, Fetched::default()));
        }
        Ok((partition, fetched))
    }
}

fn find(broker: &Broker, version: i16, name: &TopicName, id: TopicId) -> Result<Arc<Topic>, ResponseError> {
    match version {
        13.. => broker.topics.by_id(id).ok_or(ResponseError::UnknownTopicId),
        _ => broker.topics.by_name(name).ok_or(ResponseError::UnknownTopicOrPartition),
    }
}

/// Whether a stored batch is compressed with zstd, which clients know from version 10 on.
fn is_zstd(batch: &bytes::Bytes) -> bool {
    const ATTRIBUTES: usize = 22;
    batch.get(ATTRIBUTES).is_some_and(|attributes| attributes & 0b111 == 4)
}
