//! Real clients read a real log: librdkafka by `assign()`, and kcat.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::change::Lsn;
use millrace::kafka::connection::Limits;
use millrace::log::local::{LocalLog, LocalReader, LocalWriter, Options};
use millrace::log::record_batch::{BatchHeader, Codec};
use millrace::log::topics::{Announcer, Topics};
use millrace::log::{Header, LogReader, LogWriter, PartitionId, Record, SourcePosition};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::support::{PATIENCE, Server};

/// Timestamp of the first record; each later one of a partition is a second later.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// A log on disk, served.
struct Broker {
    server: Server,
    writer: LocalWriter,
    reader: Arc<LocalReader>,
    partitions: Vec<PartitionId>,
    /// Records in each partition.
    written: Vec<i64>,
    directory: Arc<TempDir>,
}

impl Broker {
    async fn start(partitions: u32) -> Broker {
        Broker::start_with(partitions, Codec::Lz4).await
    }

    async fn start_with(partitions: u32, codec: Codec) -> Broker {
        let directory = Arc::new(TempDir::new().unwrap());
        let options = Options::new(directory.path(), "test");
        Broker::open(directory, options, codec, vec![0; partitions as usize]).await
    }

    async fn open(directory: Arc<TempDir>, options: Options, codec: Codec, written: Vec<i64>) -> Broker {
        let opened = tokio::task::spawn_blocking(move || LocalLog::open(options)).await.unwrap();
        let (mut writer, reader, _) = opened.unwrap();
        let partitions = writer.create_topic("orders", written.len() as u32, codec).unwrap();
        writer.flush().await.unwrap();
        let topics = Topics::default();
        Announcer::new(topics.clone(), reader.clone());
        let server = Server::start(topics, Limits::default()).await;
        Broker { server, writer, reader, partitions, written, directory }
    }

    /// Stops and starts again on the same files.
    async fn restart(self) -> Broker {
        let Broker { mut server, writer, written, directory, .. } = self;
        server.shutdown.cancel();
        (&mut server.served).await.unwrap();
        tokio::task::spawn_blocking(move || drop(writer)).await.unwrap();
        let options = Options::new(directory.path(), "test");
        Broker::open(directory, options, Codec::Lz4, written).await
    }

    /// Appends `records` of `size` bytes to every partition, in one commit.
    async fn write(&mut self, records: usize, size: usize) {
        let mut value = Vec::new();
        for index in 0..self.partitions.len() {
            for _ in 0..records {
                let number = self.written[index];
                value.clear();
                value.extend_from_slice(expected_value(index as i32, number).as_bytes());
                // Text that compresses about as well as rows do.
                while value.len() < size {
                    let seed = (value.len() as i64).wrapping_mul(number + 1).to_string();
                    value.extend_from_slice(seed.as_bytes());
                    value.extend_from_slice(b" the quick brown fox");
                }
                let record = Record {
                    timestamp: EPOCH_MS + number * 1000,
                    key: Some(&number.to_be_bytes()),
                    value: Some(&value),
                    headers: &[Header { name: "op", value: Some(b"c") }],
                };
                self.writer.append(self.partitions[index], &record).unwrap();
                self.written[index] += 1;
            }
        }
        self.writer.boundary();
        let position = SourcePosition {
            last_commit: Some(Lsn(1)),
            end_lsn: Lsn(2),
            last_record_end: Lsn(2),
            acked_through: Lsn(2),
            timeline: 1,
            system_identifier: 1,
            slot_generation: 1,
        };
        self.writer.commit(position).await.unwrap();
    }

    fn address(&self) -> String {
        self.server.address.to_string()
    }
}

fn expected_value(partition: i32, number: i64) -> String {
    format!("{partition}/{number} ")
}

fn consumer(address: &str, from: &[Offset]) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from.iter().enumerate() {
        assignment.add_partition_offset("orders", partition as i32, *offset).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    consumer
}

/// Reads `count` records, checks that each is the next of its partition, and gives where each partition began.
fn read(consumer: &BaseConsumer, count: usize) -> HashMap<i32, i64> {
    let (mut first, mut next) = (HashMap::new(), HashMap::new());
    for read in 0..count {
        let message =
            consumer.poll(PATIENCE).unwrap_or_else(|| panic!("only {read} of {count} records came")).unwrap();
        let (partition, offset) = (message.partition(), message.offset());
        let expected = next.entry(partition).or_insert(offset);
        assert_eq!(offset, *expected, "partition {partition}");
        *expected += 1;
        first.entry(partition).or_insert(offset);
        assert_eq!(message.key().unwrap(), offset.to_be_bytes());
        assert!(message.payload().unwrap().starts_with(expected_value(partition, offset).as_bytes()));
        assert_eq!(message.timestamp().to_millis(), Some(EPOCH_MS + offset * 1000));
        let header = message.headers().unwrap().get(0);
        assert_eq!((header.key, header.value), ("op", Some(&b"c"[..])));
    }
    first
}

/// Runs what blocks, as librdkafka's poll does, beside the runtime.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_partitions_are_read_from_the_beginning_and_on() {
    let mut broker = Broker::start(4).await;
    for _ in 0..5 {
        broker.write(2_000, 300).await;
    }
    let address = broker.address();
    let consumer = blocking(move || {
        let consumer = consumer(&address, &[Offset::Beginning; 4]);
        assert_eq!(read(&consumer, 40_000), (0..4).map(|partition| (partition, 0)).collect());
        consumer
    })
    .await;
    // What comes later reaches the consumer, which waits by now.
    for round in 0..20 {
        broker.write(1, 300).await;
        if round % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    blocking(move || read(&consumer, 80)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_transactions_are_read_whole_while_and_after_they_are_merged() {
    let directory = Arc::new(TempDir::new().unwrap());
    let options = Options { segment_bytes: 64 << 10, ..Options::new(directory.path(), "test") };
    let mut broker = Broker::open(directory.clone(), options, Codec::Lz4, vec![0; 2]).await;
    for _ in 0..500 {
        broker.write(1, 300).await;
    }
    let read_all = |from: i64| {
        let address = broker.address();
        blocking(move || {
            let consumer = consumer(&address, &[Offset::Offset(from), Offset::Beginning]);
            assert_eq!(read(&consumer, 1_000 - from as usize), HashMap::from([(0, from), (1, 0)]));
        })
    };
    read_all(0).await;
    let merged = || {
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".merged.index")).count()
    };
    let started = Instant::now();
    while merged() < 4 {
        assert!(started.elapsed() < PATIENCE, "{} segments are merged", merged());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for from in [0, 1, 77] {
        read_all(from).await;
    }
    let snapshot = broker.reader.snapshot();
    let fetched =
        broker.reader.fetch(&snapshot, broker.partitions[0], millrace::log::Offset(0), 1).await.unwrap();
    let first = BatchHeader::check(&fetched.batches[0]).unwrap();
    assert!(first.records > 50, "{} records are in one batch", first.records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_starts_at_an_offset_a_time_or_the_end() {
    let mut broker = Broker::start(2).await;
    broker.write(1_000, 300).await;
    broker.write(1_000, 300).await;
    let address = broker.address();
    let at_end = blocking(move || {
        // The middle of a batch.
        let from = consumer(&address, &[Offset::Offset(1_234), Offset::Offset(999)]);
        assert_eq!(read(&from, 766 + 1_001), HashMap::from([(0, 1_234), (1, 999)]));

        let mut times = TopicPartitionList::new();
        times.add_partition_offset("orders", 0, Offset::Offset(EPOCH_MS + 500_000)).unwrap();
        times.add_partition_offset("orders", 1, Offset::Offset(EPOCH_MS + 1_500_001)).unwrap();
        let found = from.offsets_for_times(times, PATIENCE).unwrap();
        let offsets: Vec<_> = found.elements().iter().map(|element| element.offset()).collect();
        assert_eq!(offsets, [Offset::Offset(500), Offset::Offset(1_501)]);
        let from_times = consumer(&address, &offsets);
        assert_eq!(read(&from_times, 1_500 + 499), HashMap::from([(0, 500), (1, 1_501)]));

        let metadata = from.fetch_metadata(None, PATIENCE).unwrap();
        assert_eq!(metadata.topics()[0].partitions().len(), 2);
        assert_eq!(from.fetch_watermarks("orders", 0, PATIENCE).unwrap(), (0, 2_000));
        let at_end = consumer(&address, &[Offset::End; 2]);
        assert!(at_end.poll(Duration::from_millis(500)).is_none());
        at_end
    })
    .await;
    // The client asks for the end of a partition when it comes to it, perhaps after the first of these writes.
    let at_end = Arc::new(at_end);
    let mut seen = HashMap::new();
    let started = Instant::now();
    while seen.len() < 2 && started.elapsed() < PATIENCE {
        broker.write(1, 300).await;
        let at_end = at_end.clone();
        let next = move || at_end.poll(Duration::from_millis(200)).map(|message| place(&message.unwrap()));
        if let Some((partition, offset)) = blocking(next).await {
            seen.entry(partition).or_insert(offset);
        }
    }
    assert!(seen.len() == 2 && seen.values().all(|offset| *offset >= 2_000), "{seen:?}");
}

fn place(message: &impl Message) -> (i32, i64) {
    (message.partition(), message.offset())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_larger_than_every_default_limit_of_the_client_are_read() {
    let mut broker = Broker::start(2).await;
    broker.write(3, 3 << 20).await;
    broker.write(100, 50_000).await;
    let address = broker.address();
    blocking(move || read(&consumer(&address, &[Offset::Beginning; 2]), 206)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_there_again_after_a_restart() {
    // I4
    let mut broker = Broker::start(2).await;
    broker.write(500, 300).await;
    let mut broker = broker.restart().await;
    broker.write(500, 300).await;
    let address = broker.address();
    blocking(move || read(&consumer(&address, &[Offset::Beginning; 2]), 2_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_compressed_with_zstd_is_read() {
    let mut broker = Broker::start_with(2, Codec::Zstd).await;
    broker.write(2_000, 300).await;
    let snapshot = broker.reader.snapshot();
    let fetched =
        broker.reader.fetch(&snapshot, broker.partitions[1], millrace::log::Offset(0), 1).await.unwrap();
    assert_eq!(BatchHeader::check(&fetched.batches[0]).unwrap().codec, Codec::Zstd);
    // From here on the topic's batches are compressed with something else.
    broker.writer.create_topic("orders", 2, Codec::Lz4).unwrap();
    broker.write(500, 300).await;
    let address = broker.address();
    blocking(move || read(&consumer(&address, &[Offset::Beginning; 2]), 5_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_lists_topics_and_reads_them() {
    let mut broker = Broker::start(3).await;
    broker.write(100, 200).await;
    let kcat = async |arguments: &'static [&'static str]| {
        let address = broker.address();
        let run = move || {
            // Cargo's library path would give it the librdkafka of the tests above instead of its own.
            let mut command = Command::new("kcat");
            command.env_remove("LD_LIBRARY_PATH").args(["-b", &address]).args(arguments).output()
        };
        let output = blocking(run).await.expect("kcat is installed (apt-get install kcat)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = kcat(&["-L"]).await;
    assert!(list.contains("topic \"orders\" with 3 partitions"), "{list}");
    assert!(list.contains(&format!("broker 0 at {}", broker.address())), "{list}");
    let read = kcat(&["-C", "-t", "orders", "-e", "-q", "-f", "%p/%o %s\n"]).await;
    let mut lines = 0;
    for line in read.lines() {
        let (place, value) = line.split_once(' ').unwrap();
        assert!(value.starts_with(place), "{line}");
        lines += 1;
    }
    assert_eq!(lines, 300);
    let tail = kcat(&["-C", "-t", "orders", "-p", "1", "-o", "-5", "-e", "-q", "-f", "%o "]).await;
    assert_eq!(tail, "95 96 97 98 99 ");
    let since =
        kcat(&["-C", "-t", "orders", "-p", "1", "-o", "s@1700000098000", "-e", "-q", "-f", "%o "]).await;
    assert_eq!(since, "98 99 ");
}
