//! Stored batches into the records of a message, as slices of the batch where it is decompressed.
//!
//! A [`Turn`] is what was read of a partition at once: some batches, and how far into them the client's credit has come.
//! Reading and decompressing is done for a few clients at a time, and off the runtime where it takes long. What is larger
//! than usual is kept only while there is room for it among all clients (I8).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::status;
use crate::log::record_batch::{BatchError, BatchHeader, RecordView, Records};
use crate::log::topics::Topic;
use crate::log::{LogReader, Offset, PartitionId, Snapshot};
use crate::proto::{self, Change, record::Content};

/// Bytes of stored batches that are read at once, of one partition.
const READ_BYTES: usize = 256 * 1024;
/// Smaller batches are decompressed at once; larger ones where blocking is allowed.
const INLINE_BYTES: usize = 32 * 1024;
/// A batch is never larger than this when decompressed.
const BATCH_LIMIT: usize = 1792 << 20;
/// Clients that are read for at a time.
const READS: usize = 16;
/// A batch is kept open up to this size while its client gives no credit.
const MAX_STALLED_BYTES: usize = 2 * 1024 * 1024;
/// Decompressed batches of a message share [`LARGE_KIB`] from this size on.
const LARGE_BYTES: usize = 4 * 1024 * 1024;
/// Memory for large batches, for all clients.
const LARGE_KIB: usize = 256 * 1024;

/// The partition to read, as of one commit.
#[derive(Clone)]
pub struct Source {
    /// Its topic.
    pub topic: Arc<Topic>,
    /// Its number in the topic.
    pub index: u32,
    /// Its log.
    pub log: Arc<dyn LogReader>,
    /// The log at that commit.
    pub snapshot: Arc<Snapshot>,
    /// Its number in the log.
    pub partition: PartitionId,
}

/// What one message may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Sizes of the records. The first may be larger.
    pub bytes: u64,
    /// Whether values are given as [`Change`].
    pub decode: bool,
}

/// Records of one partition.
pub struct Read {
    /// In offset order, without holes. Empty only where the partition ends.
    pub records: Vec<proto::Record>,
    /// Their sizes together.
    pub bytes: u64,
    /// What is left of the turn.
    pub turn: Option<Turn>,
    /// Kept as long as the records.
    pub room: Option<Room>,
    /// Bytes that the records keep in memory.
    held: usize,
}

/// A share of the memory for large batches.
pub type Room = Arc<OwnedSemaphorePermit>;

/// Reads for all clients.
#[derive(Debug, Clone)]
pub struct Reader {
    reads: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Reader { reads: Arc::new(Semaphore::new(READS)), large: Arc::new(Semaphore::new(LARGE_KIB)) }
    }
}

impl Reader {
    /// Records from `from` on, out of what is left of a turn or read anew.
    ///
    /// # Errors
    /// `OUT_OF_RANGE`, `DATA_LOSS`, `UNAVAILABLE`.
    pub async fn read(
        &self,
        source: &Source,
        from: Offset,
        mut turn: Option<Turn>,
        limits: Limits,
    ) -> Result<Read, Status> {
        let stopping = |_| status::stopping();
        let mut room = None;
        loop {
            let place = self.reads.acquire().await.map_err(stopping)?;
            let mut next = match turn.take() {
                Some(turn) => turn,
                None => fetch(source, from).await?,
            };
            next.room = next.room.or(room.take());
            let read = match next.stored_bytes() > INLINE_BYTES {
                true => tokio::task::spawn_blocking(move || next.take(limits)).await,
                false => Ok(next.take(limits)),
            };
            let mut read =
                read.map_err(|_| status::stopping())?.map_err(|error| malformed(source, &error))?;
            let kib = read.held.div_ceil(1024).min(LARGE_KIB);
            let has = read.room.as_ref().map_or(0, |room| room.num_permits());
            if read.held < LARGE_BYTES || kib <= has {
                return Ok(read);
            }
            let kib = kib as u32;
            if let Ok(free) = self.large.clone().try_acquire_many_owned(kib) {
                read.give_room(Arc::new(free));
                return Ok(read);
            }
            // Who waits for room keeps nothing meanwhile, nor anybody from reading.
            drop((read, place));
            room = Some(Arc::new(self.large.clone().acquire_many_owned(kib).await.map_err(stopping)?));
        }
    }
}

impl Read {
    /// The turn keeps it too, but only with a batch that needs it.
    fn give_room(&mut self, room: Room) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.open_bytes() >= LARGE_BYTES) {
            turn.room = Some(room.clone());
        }
        self.room = Some(room);
    }
}

async fn fetch(source: &Source, from: Offset) -> Result<Turn, Status> {
    let fetched = source.log.fetch(&source.snapshot, source.partition, from, READ_BYTES).await;
    let fetched = fetched.map_err(|error| status::unreadable(&source.topic.name, source.index, &error))?;
    Ok(Turn { from, batches: fetched.batches.into(), open: None, next: None, room: None })
}

fn malformed(source: &Source, error: &Malformed) -> Status {
    let (topic, partition) = (&source.topic.name, source.index);
    tracing::error!(%topic, partition, %error, "cannot read for a grpc client");
    Status::data_loss(format!("{topic} [{partition}] cannot be read; the broker's log says why"))
}

/// A stored batch is not what it should be.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("a value is no change: {0}")]
    Value(#[from] prost::DecodeError),
}

/// What was read of a partition at once, and not yet sent.
pub struct Turn {
    /// Records below are skipped.
    from: Offset,
    batches: VecDeque<Bytes>,
    open: Option<Records>,
    /// A record that did not fit into the last message, with its size.
    next: Option<(proto::Record, u64)>,
    /// For the batch that is open.
    room: Option<Room>,
}

impl Turn {
    /// What of it is worth its memory while the client gives no credit: the batch that is open, which would be decompressed
    /// again for the next record, unless it is large.
    pub fn stalled(mut self) -> Option<Turn> {
        self.batches.clear();
        (self.open_bytes() <= MAX_STALLED_BYTES).then_some(self)
    }

    fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.payload().len())
    }

    fn stored_bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }

    /// Takes records until the limits are reached or nothing is left.
    fn take(mut self, limits: Limits) -> Result<Read, Malformed> {
        let (mut records, mut bytes) = (Vec::new(), 0u64);
        let mut held = self.open_bytes();
        let left = loop {
            let next = match self.next.take() {
                Some(next) => Some(next),
                None => self.next_record(limits.decode, &mut held)?,
            };
            let Some((record, size)) = next else { break false };
            if !records.is_empty() && (records.len() >= limits.records || bytes + size > limits.bytes) {
                self.next = Some((record, size));
                break true;
            }
            bytes += size;
            records.push(record);
        };
        let room = self.room.take();
        let mut read = Read { records, bytes, turn: left.then_some(self), room: None, held };
        if let Some(room) = room {
            read.give_room(room);
        }
        Ok(read)
    }

    /// The next record, and its size; adds to `held` the size of batches that are opened.
    fn next_record(
        &mut self,
        decode: bool,
        held: &mut usize,
    ) -> Result<Option<(proto::Record, u64)>, Malformed> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(batch) = self.batches.pop_front() else { return Ok(None) };
                let records = BatchHeader::parse(&batch)?.records(&batch, BATCH_LIMIT)?;
                *held += records.payload().len();
                self.open = Some(records);
                continue;
            };
            let payload = open.payload().clone();
            match open.next_record()? {
                Some(record) if record.offset < self.from => {}
                Some(record) => return Ok(Some(to_proto(&payload, &record, decode)?)),
                None => self.open = None,
            }
        }
    }
}

/// A record as slices of the batch that it lies in, and its size as credit counts it.
fn to_proto(
    payload: &Bytes,
    record: &RecordView<'_>,
    decode: bool,
) -> Result<(proto::Record, u64), Malformed> {
    let slice = |bytes: &[u8]| payload.slice_ref(bytes);
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let mut size = length(record.key) + length(record.value);
    let mut headers = Vec::new();
    for header in record.headers() {
        let (name, value) = header?;
        size += name.len() + length(value);
        headers.push(proto::Header { name: name.to_owned(), value: value.map(slice) });
    }
    let content = match record.value {
        Some(value) if decode => Some(Content::Change(Change::decode(value)?)),
        value => value.map(|value| Content::Value(slice(value))),
    };
    let record = proto::Record {
        offset: record.offset.0,
        timestamp_ms: record.timestamp,
        key: record.key.map(slice),
        content,
        headers,
    };
    Ok((record, size as u64))
}
