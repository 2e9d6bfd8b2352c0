//! Finding what a request wants among the topics, and reading it within the request's limits.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Partition, is_unknown};
use super::table::{Told, TopicKey, Wanted};
use crate::kafka::Broker;
use crate::kafka::api::offset_for_leader_epoch::end_of_epoch;
use crate::kafka::api::{from_uuid, place, storage_error};
use crate::log::topics::{Topic, Topics};
use crate::log::view::{Place, View};
use crate::log::{Fetched, Offset};

/// Record bytes in one answer when the memory for answers is spent by clients that do not read theirs.
const SMALL_ANSWER: usize = 64 * 1024;
/// A first batch that is over its limit waits for memory from this size on; smaller ones are given at once, so that
/// clients that do not read theirs stop nobody.
const LARGE_BATCH: usize = 1024 * 1024;
/// Reads without use in one answer (a batch that does not fit, an error), after which it reads no more. The partitions
/// of which a client got nothing come first in its next request, or session.
const MAX_MISSES: usize = 16;

/// What a request wants, found among the topics.
pub struct Fetch<'a> {
    broker: &'a Broker,
    version: i16,
    max_bytes: usize,
    /// Whether the client is told what is new only.
    news_only: bool,
    pub view: View,
    pub wanted: Vec<Wanted>,
    /// For each of what is wanted.
    places: Vec<Seen>,
    /// Whether a partition was there when it was first looked for, and is no longer.
    lost: bool,
}

/// Where a partition is, and its high watermark when it was last looked at.
struct Seen {
    place: Result<Place, ResponseError>,
    end: Option<Offset>,
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

/// What was read: to be answered, or thrown away to wait for more.
pub struct Read {
    /// The partitions to be told, each with its place among what is wanted, and its batches.
    pub partitions: Vec<(usize, Partition, Fetched)>,
    /// What of it is told to a session.
    pub told: Vec<Told>,
    /// Bytes of records.
    pub bytes: usize,
    /// Whether it must not wait for more bytes.
    pub at_once: bool,
    /// The memory for its records.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl<'a> Fetch<'a> {
    pub fn new(
        broker: &'a Broker,
        version: i16,
        max_bytes: usize,
        news_only: bool,
        wanted: Vec<Wanted>,
    ) -> Fetch<'a> {
        let places = Vec::with_capacity(wanted.len());
        let mut fetch = Fetch {
            broker,
            version,
            max_bytes,
            news_only,
            view: View::default(),
            wanted,
            places,
            lost: false,
        };
        fetch.find();
        fetch
    }

    /// Looks up each partition, again when topics were made or deleted.
    pub fn find(&mut self) {
        let before = std::mem::take(&mut self.places);
        // Partitions of a topic mostly stand side by side.
        let mut last: Option<(&TopicKey, Result<Arc<Topic>, ResponseError>)> = None;
        for wanted in &self.wanted {
            let found = match &mut last {
                Some((topic, found)) if *topic == &wanted.topic => found,
                last => &mut last.insert((&wanted.topic, find(&self.broker.topics, &wanted.topic))).1,
            };
            let place = match found {
                Ok(topic) => place(&mut self.view, topic, wanted.index, wanted.leader_epoch),
                Err(error) => Err(*error),
            };
            self.places.push(Seen { place, end: None });
        }
        let mut pairs = before.iter().zip(&self.places);
        self.lost |= pairs.any(|(before, now)| before.place.is_ok() && now.place.is_err());
    }

    /// Whether there is any partition that can be waited for.
    pub fn may_wait(&self) -> bool {
        self.places.iter().any(|seen| seen.place.is_ok())
    }

    /// Whether there is anything to answer that was not there at the last look. Reads ranges, no bytes.
    pub fn look(&mut self) -> bool {
        let mut news = false;
        for (wanted, seen) in self.wanted.iter().zip(&mut self.places) {
            let place = match seen.place {
                Ok(place) => place,
                Err(error) => {
                    news |= !is_unknown(error);
                    continue;
                }
            };
            self.lost |= self.view.is_gone(place);
            let range = self.view.range(place);
            let moved = seen.end.replace(range.end) != Some(range.end);
            let nothing = wanted.from == range.end.0 && wanted.last_fetched_epoch < 0;
            news |= (moved && !nothing) || wanted.from < range.start.0;
        }
        news || self.lost
    }

    /// Reads what there is, within the limits.
    pub async fn read(&self) -> Read {
        let memory = &self.broker.fetch_memory;
        let mut reserved = memory.reserve(self.expected());
        let mut first = reserved.as_ref().map_or(0, |permit| permit.num_permits() * 1024).max(LARGE_BATCH);
        let mut budget = self.max_bytes.min(if reserved.is_some() { usize::MAX } else { SMALL_ANSWER });
        loop {
            match self.read_within(reserved, budget, first).await {
                Ok(read) => return read,
                Err(TooLarge(bytes)) => {
                    // What was reserved has been given back: who waits holds nothing that another waits for.
                    reserved = memory.wait_for(bytes).await;
                    (budget, first) = (self.max_bytes.min(bytes), usize::MAX);
                }
            }
        }
    }

    /// Reads into memory that has been reserved up to `budget`, unless the first batch is larger than `first`.
    async fn read_within(
        &self,
        permit: Option<OwnedSemaphorePermit>,
        budget: usize,
        first: usize,
    ) -> Result<Read, TooLarge> {
        let mut spent = Spent { budget, first, bytes: 0, misses: 0 };
        // There may be more than there was memory for.
        let at_once = budget < self.max_bytes || self.lost;
        let mut read = Read { partitions: Vec::new(), told: Vec::new(), bytes: 0, at_once, permit };
        // Those that there are not come last.
        let mut unknown = Vec::new();
        for (at, (wanted, seen)) in self.wanted.iter().zip(&self.places).enumerate() {
            let (partition, fetched) = match self.partition(wanted, seen, &mut spent).await {
                Ok(partition) => partition,
                Err(Unread::TooLarge(bytes)) => return Err(TooLarge(bytes)),
                Err(Unread::Answer(error)) => (self.failed(wanted, error), Fetched::default()),
            };
            let bytes = fetched.len();
            spent.bytes += bytes;
            let is_unknown = partition.error.is_some_and(is_unknown);
            read.at_once |= (partition.error.is_some() && !is_unknown) || partition.diverging.is_some();
            if self.news_only && !wanted.is_news(&partition, bytes) {
                continue;
            }
            let known = |offset: Offset| partition.error.is_none().then_some(offset.0);
            let (end, start) = (known(partition.high_watermark), known(partition.log_start));
            read.told.push(Told { slot: wanted.slot, end, start, records: bytes > 0 });
            let partitions = if is_unknown { &mut unknown } else { &mut read.partitions };
            partitions.push((at, partition, fetched));
        }
        read.partitions.append(&mut unknown);
        read.bytes = spent.bytes;
        if let Some(permit) = &mut read.permit {
            let spare = permit.num_permits().saturating_sub(spent.bytes.div_ceil(1024));
            drop(permit.split(spare));
        }
        Ok(read)
    }

    /// So many bytes can come of a read; more only by a first batch that is over its limit.
    fn expected(&self) -> usize {
        let mut expected = 0usize;
        for (wanted, seen) in self.wanted.iter().zip(&self.places) {
            let Ok(place) = seen.place else { continue };
            if wanted.from < self.view.range(place).end.0 {
                expected = expected.saturating_add(wanted.max_bytes.max(1));
            }
        }
        expected.min(self.max_bytes)
    }

    async fn partition(
        &self,
        wanted: &Wanted,
        seen: &Seen,
        spent: &mut Spent,
    ) -> Result<(Partition, Fetched), Unread> {
        let place = seen.place?;
        let (log, snapshot) = self.view.at(place);
        let range = snapshot.range(place.partition).ok_or(match self.version {
            13.. => ResponseError::UnknownTopicId,
            _ => ResponseError::UnknownTopicOrPartition,
        })?;
        let from = Offset(wanted.from);
        let mut partition = Partition::read(wanted.index, range.start, range.end);
        if wanted.last_fetched_epoch >= 0 && from >= range.start {
            let known = end_of_epoch(log.leader_epoch(), range, wanted.last_fetched_epoch);
            let (epoch, end) = known.ok_or(ResponseError::OffsetOutOfRange)?;
            if end < from {
                partition.diverging = Some((epoch, end));
                return Ok((partition, Fetched::default()));
            }
        }
        if from < range.start || from > range.end {
            return Err(ResponseError::OffsetOutOfRange.into());
        }
        let Some(limit) = spent.left(wanted.max_bytes).filter(|_| from < range.end) else {
            return Ok((partition, Fetched::default()));
        };
        let fetched = log.fetch(snapshot, place.partition, from, limit).await.map_err(|error| {
            spent.misses += 1;
            storage_error(&self.name(wanted), &error)
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

    fn failed(&self, wanted: &Wanted, error: ResponseError) -> Partition {
        let mut failed = Partition::failed(wanted.index, error);
        if error == ResponseError::FencedLeaderEpoch {
            let topic = find(&self.broker.topics, &wanted.topic).ok();
            failed.leader_epoch = topic.map(|topic| topic.log.leader_epoch());
        }
        failed
    }

    fn name(&self, wanted: &Wanted) -> String {
        match find(&self.broker.topics, &wanted.topic) {
            Ok(topic) => topic.name.clone(),
            Err(_) => "unknown".to_owned(),
        }
    }
}

fn find(topics: &Topics, topic: &TopicKey) -> Result<Arc<Topic>, ResponseError> {
    match topic {
        TopicKey::Id(id) => topics.by_id(from_uuid(*id)).ok_or(ResponseError::UnknownTopicId),
        TopicKey::Name(name) => topics.by_name(name).ok_or(ResponseError::UnknownTopicOrPartition),
    }
}

/// Whether a stored batch is compressed with zstd, which clients know from version 10 on.
fn is_zstd(batch: &bytes::Bytes) -> bool {
    const ATTRIBUTES: usize = 22;
    batch.get(ATTRIBUTES).is_some_and(|attributes| attributes & 0b111 == 4)
}
