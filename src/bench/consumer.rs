//! The consumer at the end of the way: librdkafka with its own defaults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use super::BenchError;
use super::site::TASK;

const POLL: Duration = Duration::from_millis(100);
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// A consumer that is attached, on a thread of its own, and will tell `T`. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    done: Option<oneshot::Receiver<Result<T, BenchError>>>,
}

/// The task's topic as it comes in.
pub(super) struct Incoming {
    consumer: BaseConsumer,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Consumer<T> {
    /// Reads the first `partitions` of the task's topic from their start, as `consume` will; it ends with `None` when
    /// the records do.
    pub(super) fn attach(
        port: u16,
        partitions: u32,
        consume: impl FnOnce(&Incoming) -> Result<Option<T>, BenchError> + Send + 'static,
    ) -> Result<Self, BenchError> {
        let incoming = Incoming::open(port, partitions)?;
        let stop = incoming.stop.clone();
        let (tell, done) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("consumer".to_owned())
            .spawn(move || {
                if let Some(outcome) = consume(&incoming).transpose() {
                    // Nobody waits any more when the measurement was interrupted.
                    let _ = tell.send(outcome);
                }
            })
            .map_err(BenchError::io("start the consumer's thread"))?;
        Ok(Consumer { stop, thread: Some(thread), done: Some(done) })
    }

    /// Returns when it has all that it wants.
    pub(super) async fn done(&mut self) -> Result<T, BenchError> {
        match self.done.take() {
            Some(done) => done.await.unwrap_or(Err(BenchError::Interrupted)),
            None => Err(BenchError::Interrupted),
        }
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told of whatever went wrong.
            let _ = thread.join();
        }
    }
}

impl Incoming {
    /// The first `partitions` of the task's topic from their start.
    pub(super) fn open(port: u16, partitions: u32) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", format!("127.0.0.1:{port}"))
            .set("group.id", "millrace-bench")
            .set("enable.auto.commit", "false")
            // It may be started before the broker listens.
            .set("reconnect.backoff.max.ms", "100")
            // Otherwise it rests for a second whenever its queue is full, which is longer than a whole read may take.
            .set("fetch.queue.backoff.ms", "0")
            .create()?;
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions as i32 {
            assigned.add_partition_offset(TASK, partition, Offset::Offset(0))?;
        }
        consumer.assign(&assigned)?;
        Ok(Incoming { consumer, stop: Arc::default() })
    }

    /// The next record; `None` when told to stop.
    pub(super) fn next(&self) -> Result<Option<BorrowedMessage<'_>>, BenchError> {
        while !self.stop.load(Ordering::Relaxed) {
            match self.consumer.poll(POLL) {
                Some(Ok(record)) => return Ok(Some(record)),
                Some(Err(error)) if may_pass(&error) => {}
                Some(Err(error)) => return Err(error.into()),
                None => {}
            }
        }
        Ok(None)
    }
}

/// Counts until there were `records`, and gives how many partition 0 has.
pub(super) fn count(records: u64) -> impl FnOnce(&Incoming) -> Result<Option<u64>, BenchError> {
    move |incoming| {
        for _ in 0..records {
            if incoming.next()?.is_none() {
                return Ok(None);
            }
        }
        let (first, next) = incoming.consumer.fetch_watermarks(TASK, 0, ASK_WITHIN)?;
        Ok(Some(u64::try_from(next - first).unwrap_or_default()))
    }
}

/// Whether it may be that the broker has not started yet.
fn may_pass(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}
