//! A throwaway Apache Kafka broker as its own start script would run it, and the copying of batches into it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{CreateTopicsRequest, ProduceRequest, ProduceResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use tokio::process::Command;

use super::BenchError;
use super::connection::Connection;
use super::fetch::client::until_listening;
use super::postgres_server::free_port;
use super::process::Process;
use super::site::TASK;

/// Heap and garbage collector as `kafka-server-start.sh` and `kafka-run-class.sh` set them.
const JAVA: &[&str] = &[
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
];
/// A batch that Kafka accepts by default.
const BATCH_BYTES: usize = 1_048_588;
/// How long it may take until a new topic has its leader.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// A running broker. Dropping it ends it.
#[derive(Debug)]
pub(super) struct ApacheKafka {
    pub(super) process: Process,
    pub(super) port: u16,
    /// Where its topics are.
    data: PathBuf,
}

impl ApacheKafka {
    /// Starts a broker in `work`, with the jars in `libraries`, that takes batches of up to `largest_batch` bytes. All
    /// else is left at its default.
    pub(super) async fn start(
        work: &Path,
        libraries: &Path,
        largest_batch: usize,
    ) -> Result<Self, BenchError> {
        if !libraries.is_dir() {
            return Err(BenchError::NoKafka { looked: libraries.to_owned() });
        }
        let directory = work.join("apache-kafka");
        let data = directory.join("data");
        let properties = directory.join("server.properties");
        let (port, controller) = (free_port()?, free_port()?);
        let settings = [
            "process.roles=broker,controller".to_owned(),
            "node.id=0".to_owned(),
            format!("controller.quorum.voters=0@127.0.0.1:{controller}"),
            "controller.listener.names=CONTROLLER".to_owned(),
            format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
            format!("log.dirs={}", data.display()),
            format!("message.max.bytes={}", largest_batch.max(BATCH_BYTES)),
        ];
        fs::create_dir(&directory)
            .and_then(|()| fs::write(&properties, settings.join("\n")))
            .map_err(BenchError::io(format!("prepare {}", directory.display())))?;

        let mut format = java(libraries, "kafka.tools.StorageTool");
        // The cluster's id is 16 bytes in base64.
        format.args(["format", "--cluster-id", "bWlsbHJhY2UtYmVuY2gxMg", "--config"]).arg(&properties);
        let output = format.output().await.map_err(BenchError::io("run java"))?;
        if !output.status.success() {
            return Err(BenchError::Ended {
                name: "Apache Kafka's storage tool",
                status: output.status.to_string(),
                log: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            });
        }

        let mut broker = java(libraries, "kafka.Kafka");
        broker.arg(&properties);
        let log = work.join("apache-kafka.log");
        let mut process = Process::start("Apache Kafka", broker, log, libc::SIGTERM)?;
        tokio::select! {
            listening = until_listening(port) => listening?,
            error = process.ended() => return Err(error),
        }
        Ok(ApacheKafka { process, port, data })
    }

    /// Makes the task's topic and produces these batches to it, which it must store as they are.
    pub(super) async fn fill(&self, batches: &[Bytes]) -> Result<(), BenchError> {
        let mut client = Connection::open(self.port).await?;
        let topic =
            CreatableTopic::default().with_name(name()).with_num_partitions(1).with_replication_factor(1);
        let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
        let created = client.call(4, &create).await?;
        for topic in &created.topics {
            accepted(topic.error_code, topic.error_message.as_ref())?;
        }
        let leader_by = Instant::now() + LEADER_WITHIN;
        for batch in batches {
            let partition = PartitionProduceData::default().with_records(Some(as_produced(batch)));
            let topic = TopicProduceData::default().with_name(name()).with_partition_data(vec![partition]);
            let produce =
                ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic]);
            let mut produced = client.call(8, &produce).await?;
            while leaderless(&produced) && Instant::now() < leader_by {
                tokio::time::sleep(Duration::from_millis(20)).await;
                produced = client.call(8, &produce).await?;
            }
            for partition in partitions(&produced) {
                accepted(partition.error_code, partition.error_message.as_ref())?;
            }
        }
        let expected = batches.iter().map(|batch| batch.len() as u64).sum();
        let found = self.stored_bytes().map_err(BenchError::io("look at Apache Kafka's log"))?;
        match found == expected {
            true => Ok(()),
            false => Err(BenchError::Unlike { expected, found }),
        }
    }

    /// Size of the topic's segments.
    fn stored_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.data.join(format!("{TASK}-0")))? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    }
}

fn partitions(produced: &ProduceResponse) -> impl Iterator<Item = &PartitionProduceResponse> {
    produced.responses.iter().flat_map(|topic| &topic.partition_responses)
}

/// Whether it has been asked before it has learnt that it leads the new topic.
fn leaderless(produced: &ProduceResponse) -> bool {
    let errors = [ResponseError::NotLeaderOrFollower, ResponseError::UnknownTopicOrPartition];
    partitions(produced).any(|partition| errors.iter().any(|error| error.code() == partition.error_code))
}

/// The batch as a producer has it, who does not know its offset, which no checksum covers.
fn as_produced(batch: &Bytes) -> Bytes {
    let mut produced = BytesMut::zeroed(size_of::<i64>());
    produced.extend_from_slice(batch.get(size_of::<i64>()..).unwrap_or_default());
    produced.freeze()
}

fn java(libraries: &Path, class: &str) -> Command {
    let mut java = Command::new("java");
    java.args(JAVA).arg("-cp").arg(libraries.join("*")).arg(class);
    java
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str(TASK))
}

fn accepted(error: i16, message: Option<&StrBytes>) -> Result<(), BenchError> {
    match ResponseError::try_from_code(error) {
        None => Ok(()),
        Some(error) => {
            let said = format!("{error}: {}", message.map_or("", |message| message.as_str()));
            Err(BenchError::Unreadable { name: "Apache Kafka broker", said })
        }
    }
}
