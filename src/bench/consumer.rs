//! The consumer at the end of the way: librdkafka with its own defaults, on a thread of its own, counting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use super::BenchError;

const PARTITION: i32 = 0;
const POLL: Duration = Duration::from_millis(100);
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// A consumer that is attached. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Consumer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    done: Option<oneshot::Receiver<Result<u64, BenchError>>>,
}

impl Consumer {
    /// Reads partition 0 of `topic` from its start until there were `records`.
    pub(super) fn attach(port: u16, topic: &'static str, records: u64) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", format!("127.0.0.1:{port}"))
            .set("group.id", "millrace-bench")
            .set("enable.auto.commit", "false")
            // It is started before the broker listens.
            .set("reconnect.backoff.max.ms", "100")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic, PARTITION, Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, done) = oneshot::channel();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("consumer".to_owned())
            .spawn(move || {
                if let Some(outcome) = consume(&consumer, topic, records, &stopped).transpose() {
                    // Nobody waits any more when the measurement was interrupted.
                    let _ = tell.send(outcome);
                }
            })
            .map_err(BenchError::io("start the consumer's thread"))?;
        Ok(Consumer { stop, thread: Some(thread), done: Some(done) })
    }

    /// Returns when all records have come, with how many the partition has.
    pub(super) async fn all(&mut self) -> Result<u64, BenchError> {
        match self.done.take() {
            Some(done) => done.await.unwrap_or(Err(BenchError::Interrupted)),
            None => Err(BenchError::Interrupted),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told of whatever went wrong.
            let _ = thread.join();
        }
    }
}

/// Counts until there were `records`, and gives how many the partition has; `None` when stopped before.
fn consume(
    consumer: &BaseConsumer,
    topic: &str,
    records: u64,
    stop: &AtomicBool,
) -> Result<Option<u64>, BenchError> {
    let mut seen = 0;
    while seen < records {
        match consumer.poll(POLL) {
            Some(Ok(_)) => seen += 1,
            Some(Err(error)) if may_pass(&error) => {}
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    let (first, next) = consumer.fetch_watermarks(topic, PARTITION, ASK_WITHIN)?;
    Ok(Some(u64::try_from(next - first).unwrap_or_default()))
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
