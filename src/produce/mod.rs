//! Topics that Kafka clients make and write: `kafka.unsafe_produce`, for tests of clients and tools alone, which seed
//! their own data. Nothing of it is there when the setting is off.
//!
//! ```text
//!  Produce, CreateTopics, Metadata ──(jobs, bounded channel)──> writer task ──append, commit──> log
//!        ↑                                                          │ checks batches and sequences
//!        └────────── answers, after the commit is durable ──────────┘ shows new topics first
//! ```
//!
//! All such topics share one log of their own beside the logs of tasks, and what is written goes the same way as what is
//! captured: decoded into records, appended, and made visible by a commit that is durable before it is answered, whatever
//! `acks` the producer asks for. All that waits goes into one commit.
//!
//! The batches are the log's, not the producer's: offsets, keys, values, headers and timestamps are as they were sent,
//! while codec and boundaries of batches are ours. What is known of idempotent producers is in memory ([`sequences`]), so
//! a producer that lives on over a restart of the broker and sends the batch again whose answer it has missed may write
//! it twice.

pub mod sequences;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::log::local::{self, LocalLog, LocalReader};
use crate::log::record_batch::{Codec, ProducedError};
use crate::log::topics::{Topic, Topics};
use crate::log::{LogError, LogReader, PartitionId};

use self::sequences::SequenceError;
use self::writer::{Job, Writer};

/// The name of the log behind these topics. No task can have it.
pub const LOG_NAME: &str = "client-topics";
/// Partitions of a topic that is made on demand, or without saying how many.
pub const DEFAULT_PARTITIONS: u32 = 4;
/// The largest batch that is taken, as producers send it: Kafka's `message.max.bytes`.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024 + 12;
/// The largest request that is taken then: Kafka's `socket.request.max.bytes`.
pub const MAX_REQUEST_BYTES: usize = 100 * 1024 * 1024;
/// Requests that wait for the writer; more wait for a place.
const QUEUE: usize = 256;

/// A batch for a partition.
#[derive(Debug, Clone)]
pub struct Append {
    /// The partition.
    pub partition: PartitionId,
    /// The batch as it was sent; not yet checked.
    pub batch: Bytes,
}

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record.
    pub offset: i64,
    /// First offset of the partition.
    pub log_start: i64,
}

/// Why a batch has not been appended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// It is not right in itself.
    #[error(transparent)]
    Batch(#[from] ProducedError),
    /// It is not the next of its producer.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The log does not take it, or could not keep it.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why a topic has not been made or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TopicError {
    /// There is one of that name.
    #[error("topic '{0}' exists already")]
    Exists(String),
    /// The log does not take it, or could not keep it.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The topics that clients write. Cheap to clone; the log is closed when the last clone is gone.
#[derive(Debug, Clone)]
pub struct ClientTopics {
    jobs: mpsc::Sender<Job>,
    reader: Arc<LocalReader>,
}

impl ClientTopics {
    /// Opens the log in `directory` and shows its topics. The future is the writer's task: it must be run, and ends
    /// when the last clone of this is gone and the log has been closed.
    ///
    /// # Errors
    /// As [`LocalLog::open`].
    pub async fn open(
        options: local::Options,
        codec: Codec,
        topics: Topics,
    ) -> Result<(ClientTopics, impl Future<Output = ()> + Send + 'static), LogError> {
        let opened = tokio::task::spawn_blocking(move || LocalLog::open(options)).await;
        let (writer, reader, _) = opened.map_err(|_| LogError::Stopped)??;
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let writer = Writer::new(writer, reader.clone(), topics, codec);
        Ok((ClientTopics { jobs, reader }, writer.run(inbox)))
    }

    /// Whether a topic is one of these; the others are written by tasks.
    pub fn has(&self, topic: &Topic) -> bool {
        let ours: Arc<dyn LogReader> = self.reader.clone();
        Arc::ptr_eq(&topic.log, &ours)
    }

    /// Appends batches. Answers in their order, when what has been appended is durable.
    ///
    /// # Errors
    /// [`LogError::Stopped`] when the broker is being stopped.
    pub async fn append(&self, batches: Vec<Append>) -> Result<Vec<Result<Appended, AppendError>>, LogError> {
        self.ask(|answer| Job::Append { batches, answer }).await
    }

    /// Makes a topic. It is durable and shown to clients then.
    ///
    /// # Errors
    /// [`TopicError`].
    pub async fn create(&self, name: &str, partitions: u32) -> Result<(), TopicError> {
        let name = name.to_owned();
        self.ask(|answer| Job::Create { name, partitions, answer }).await?
    }

    /// Takes a topic away, but none that has been made under its name since. It is gone for clients then, and its name is
    /// free.
    ///
    /// # Errors
    /// [`TopicError::Log`].
    pub async fn delete(&self, topic: Arc<Topic>) -> Result<(), TopicError> {
        self.ask(|answer| Job::Delete { topic, answer }).await?
    }

    /// Gives a topic more partitions, `total` with those that it has.
    ///
    /// # Errors
    /// [`TopicError::Log`].
    pub async fn add_partitions(&self, topic: Arc<Topic>, total: u32) -> Result<(), TopicError> {
        self.ask(|answer| Job::AddPartitions { topic, total, answer }).await?
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, LogError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| LogError::Stopped)?;
        answered.await.map_err(|_| LogError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_topic_that_has_been_made_anew_is_not_taken_for_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let topics = Topics::default();
        let options = local::Options::new(directory.path(), LOG_NAME);
        let (ours, writer) = ClientTopics::open(options, Codec::None, topics.clone()).await.unwrap();
        let writer = tokio::spawn(writer);
        ours.create("a", 1).await.unwrap();
        let old = topics.by_name("a").unwrap();
        ours.delete(old.clone()).await.unwrap();
        ours.create("a", 1).await.unwrap();
        let is_unknown = |done| matches!(done, Err(TopicError::Log(LogError::UnknownTopic(_))));
        assert!(is_unknown(ours.delete(old.clone()).await));
        assert!(is_unknown(ours.add_partitions(old, 2).await));
        let new = topics.by_name("a").unwrap();
        assert_eq!(new.partitions.len(), 1);
        ours.add_partitions(new.clone(), 2).await.unwrap();
        ours.delete(new).await.unwrap();
        assert!(topics.by_name("a").is_none());
        drop(ours);
        writer.await.unwrap();
    }
}
