//! The one task that writes the log of client-made topics.
//!
//! It takes all jobs that wait, brings them into one commit, and answers them when that is durable and shown. When a
//! commit fails all of it is gone, so every job in it is answered with the error, and what is known of producers is as
//! it was before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

use super::sequences::{Sequences, Verdict};
use super::{Append, AppendError, Appended, MAX_BATCH_BYTES, TopicError};
use crate::change::Lsn;
use crate::log::local::{LocalReader, LocalWriter};
use crate::log::record_batch::{BatchError, Codec, ProducedBatch, ProducedError, ProducerLimits};
use crate::log::topics::{Announcer, Topic, Topics};
use crate::log::{
    Header, LogError, LogReader, LogWriter, Offset, PartitionId, PartitionRange, Record, SourcePosition,
};

/// A group is closed when this many bytes of records wait for the commit.
const GROUP_BYTES: usize = 32 << 20;
/// The most that a batch may have when decompressed. Kafka has no such limit.
const MAX_RECORDS_BYTES: usize = 64 << 20;
/// The most that the batches of one request may have together when decompressed: so much is buffered at once, with a
/// group before it.
const MAX_REQUEST_RECORDS_BYTES: usize = 128 << 20;
/// How far ahead of our clock a timestamp may be: the default of Kafka's `message.timestamp.after.max.ms`.
const MAX_AHEAD_MS: i64 = 3_600_000;
/// Pairs of a producer and a partition that are remembered, at about 200 bytes.
const MAX_SEQUENCES: usize = 100_000;
/// What a log needs to say of its source. This one has none.
const NO_SOURCE: SourcePosition = SourcePosition {
    last_commit: None,
    end_lsn: Lsn(0),
    last_record_end: Lsn(0),
    acked_through: Lsn(0),
    timeline: 0,
    system_identifier: 0,
    slot_generation: 0,
};

/// Something to do, and where its answer goes.
#[derive(Debug)]
pub(super) enum Job {
    Append { batches: Vec<Append>, answer: oneshot::Sender<Vec<Result<Appended, AppendError>>> },
    Create { name: String, partitions: u32, answer: oneshot::Sender<Result<(), TopicError>> },
    Delete { topic: Arc<Topic>, answer: oneshot::Sender<Result<(), TopicError>> },
    AddPartitions { topic: Arc<Topic>, total: u32, answer: oneshot::Sender<Result<(), TopicError>> },
}

/// An answer that waits for the commit.
enum Waiting {
    Append(Vec<Result<Appended, AppendError>>, oneshot::Sender<Vec<Result<Appended, AppendError>>>),
    Topic(oneshot::Sender<Result<(), TopicError>>),
}

pub(super) struct Writer {
    log: LocalWriter,
    reader: Arc<LocalReader>,
    topics: Topics,
    announcer: Announcer,
    codec: Codec,
    sequences: Sequences,
    group: Group,
    /// Topics were changed in a group that failed, which the log has done: the next commit makes it durable and shown.
    owes_topics: bool,
}

/// What the next commit brings.
#[derive(Default)]
struct Group {
    waiting: Vec<Waiting>,
    /// Where the partitions that it touches begin, and will end.
    ranges: HashMap<PartitionId, PartitionRange>,
    /// Whether it changes topics. Nothing comes behind that, so that whatever follows finds what there is then.
    changes_topics: bool,
}

impl Writer {
    pub(super) fn new(log: LocalWriter, reader: Arc<LocalReader>, topics: Topics, codec: Codec) -> Self {
        Writer {
            announcer: Announcer::new(topics.clone(), reader.clone()),
            sequences: Sequences::new(MAX_SEQUENCES),
            group: Group::default(),
            owes_topics: false,
            log,
            reader,
            topics,
            codec,
        }
    }

    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            self.take(job).await;
            while self.log.buffered() < GROUP_BYTES
                && !self.group.changes_topics
                && let Ok(job) = jobs.try_recv()
            {
                self.take(job).await;
            }
            // Who waits for it has been told.
            let _ = self.commit().await;
        }
        self.log.close().await;
    }

    async fn take(&mut self, job: Job) {
        match job {
            Job::Append { batches, answer } => {
                let limits = ProducerLimits {
                    batch_bytes: MAX_BATCH_BYTES,
                    records_bytes: MAX_RECORDS_BYTES,
                    latest: unix_ms().saturating_add(MAX_AHEAD_MS),
                };
                let room = self.log.buffered() + MAX_REQUEST_RECORDS_BYTES;
                let mut answers = Vec::with_capacity(batches.len());
                for append in &batches {
                    answers.push(self.append(append, &limits, room));
                    // A batch may take milliseconds.
                    tokio::task::yield_now().await;
                }
                self.group.waiting.push(Waiting::Append(answers, answer));
            }
            Job::Create { name, partitions, answer } => {
                let created = self.settle_topics().await.and_then(|()| self.create(&name, partitions));
                self.topics_changed(created, answer);
            }
            Job::Delete { topic, answer } => {
                let deleted = self.settle_topics().await.and_then(|()| self.delete(&topic));
                self.topics_changed(deleted, answer);
            }
            Job::AddPartitions { topic, total, answer } => {
                let added = self.settle_topics().await.and_then(|()| self.add_partitions(&topic, total));
                self.topics_changed(added, answer);
            }
        }
    }

    fn topics_changed(
        &mut self,
        changed: Result<(), TopicError>,
        answer: oneshot::Sender<Result<(), TopicError>>,
    ) {
        match changed {
            Ok(()) => {
                self.group.changes_topics = true;
                self.group.waiting.push(Waiting::Topic(answer));
            }
            // Who does not wait any more has closed its connection.
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Appends a batch, if not more than `room` is buffered then.
    fn append(
        &mut self,
        append: &Append,
        limits: &ProducerLimits,
        room: usize,
    ) -> Result<Appended, AppendError> {
        let partition = append.partition;
        let batch = ProducedBatch::check(&append.batch, limits)?;
        if self.log.buffered() + batch.len() > room {
            let what = "records, together with those before it in the request,";
            return Err(ProducedError::TooLarge { what, limit: MAX_REQUEST_RECORDS_BYTES }.into());
        }
        let mut range = match self.group.ranges.get(&partition) {
            Some(range) => *range,
            None => {
                let range = self.reader.snapshot().range(partition);
                range.ok_or(LogError::UnknownPartition(partition))?
            }
        };
        let log_start = range.start.0;
        if let Some(producer) = &batch.producer
            && let Verdict::Duplicate(offset) = self.sequences.check(partition, producer)?
        {
            debug!(producer = producer.id, offset, "a batch was sent again");
            return Ok(Appended { offset, log_start });
        }
        if let Err(error) = self.append_records(partition, &batch) {
            self.log.abort();
            return Err(error);
        }
        self.log.boundary();
        let offset = range.end.0;
        range.end = Offset(offset + i64::from(batch.count));
        self.group.ranges.insert(partition, range);
        if let Some(producer) = &batch.producer {
            self.sequences.appended(partition, producer, offset);
        }
        Ok(Appended { offset, log_start })
    }

    fn append_records(&mut self, partition: PartitionId, batch: &ProducedBatch) -> Result<(), AppendError> {
        let checked = |error: BatchError| ProducedError::Invalid(error.to_string());
        let mut records = batch.records();
        while let Some(record) = records.next_record().map_err(checked)? {
            let mut headers = Vec::new();
            for header in record.headers() {
                let (name, value) = header.map_err(checked)?;
                headers.push(Header { name, value });
            }
            let (timestamp, key, value) = (record.timestamp, record.key, record.value);
            self.log.append(partition, &Record { timestamp, key, value, headers: &headers })?;
        }
        Ok(())
    }

    /// Shows topics as the log has them, so that what is asked next is judged by that.
    async fn settle_topics(&mut self) -> Result<(), TopicError> {
        match self.owes_topics {
            true => Ok(self.commit().await?),
            false => Ok(()),
        }
    }

    fn create(&mut self, name: &str, partitions: u32) -> Result<(), TopicError> {
        if self.topics.by_name(name).is_some() {
            return Err(TopicError::Exists(name.to_owned()));
        }
        self.log.create_topic(name, partitions, self.codec)?;
        Ok(())
    }

    fn delete(&mut self, topic: &Topic) -> Result<(), TopicError> {
        let topic = self.current(topic)?;
        self.log.delete_topic(&topic.name)?;
        self.sequences.forget(&topic.partitions);
        Ok(())
    }

    fn add_partitions(&mut self, topic: &Topic, total: u32) -> Result<(), TopicError> {
        let topic = self.current(topic)?;
        self.log.add_partitions(&topic.name, total)?;
        Ok(())
    }

    /// The topic as it is now, if it is still there: its name may be another's.
    fn current(&self, topic: &Topic) -> Result<Arc<Topic>, LogError> {
        self.topics.by_id(topic.id).ok_or_else(|| LogError::UnknownTopic(topic.name.clone()))
    }

    /// Makes the group durable and visible, and answers its jobs.
    async fn commit(&mut self) -> Result<(), LogError> {
        let group = std::mem::take(&mut self.group);
        self.owes_topics |= group.changes_topics;
        let changes = self.log.has_group() || self.owes_topics;
        let committed = if changes { self.log.commit(NO_SOURCE).await.map(drop) } else { Ok(()) };
        match &committed {
            // Whoever is answered finds the topic that he has made.
            Ok(()) => {
                self.sequences.commit();
                if std::mem::take(&mut self.owes_topics) {
                    self.announcer.announce();
                }
            }
            Err(error) => {
                error!(%error, "what clients wrote could not be kept");
                self.log.resume();
                self.sequences.abort();
            }
        }
        for waiting in group.waiting {
            match waiting {
                Waiting::Append(mut answers, to) => {
                    if let Err(error) = &committed {
                        answers.iter_mut().for_each(|answer| *answer = Err(error.clone().into()));
                    }
                    let _ = to.send(answers);
                }
                Waiting::Topic(to) => drop(to.send(committed.clone().map_err(TopicError::from))),
            }
        }
        committed
    }
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
