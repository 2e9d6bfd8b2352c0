//! Reads topics with librdkafka, as a user's consumer would.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

/// How long a broker may take to hand out what it has.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record as it is.
#[derive(Debug, Clone)]
pub struct RawRecord {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; absent in a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

/// A record with its JSON parsed.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds.
    pub timestamp: i64,
    /// Its key, parsed.
    pub key: Option<Value>,
    /// Its key, byte for byte.
    pub raw_key: Option<Vec<u8>>,
    /// Its value, parsed; absent in a tombstone.
    pub value: Option<Value>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// Its place in the source: commit LSN and ordinal.
    pub fn position(&self) -> (u64, u64) {
        let header =
            self.headers.iter().find(|(name, _)| name == "millrace.position").expect("a position header");
        let (lsn, ordinal) = header.1.rsplit_once(':').expect("LSN:ordinal");
        (parse_lsn(lsn), ordinal.parse().expect("an ordinal"))
    }
}

/// The number that an LSN's text stands for.
pub fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let half = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    half(high) << 32 | half(low)
}

/// Everything that is in a topic now, partition by partition, in offset order, with keys and values as JSON.
pub async fn read_topic(bootstrap: &str, topic: &str) -> Vec<Record> {
    let parse = |bytes: &[u8]| serde_json::from_slice(bytes).expect("JSON");
    let records = read_raw_topic(bootstrap, topic).await.into_iter().map(|record| Record {
        partition: record.partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.as_deref().map(parse),
        raw_key: record.key,
        value: record.value.as_deref().map(parse),
        headers: record.headers,
    });
    records.collect()
}

/// Everything that is in a topic now, partition by partition, in offset order.
pub async fn read_raw_topic(bootstrap: &str, topic: &str) -> Vec<RawRecord> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_topic_blocking(&bootstrap, &topic))
        .await
        .expect("reads the topic")
}

fn read_topic_blocking(bootstrap: &str, topic: &str) -> Vec<RawRecord> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "test-reader")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .set("enable.partition.eof", "false")
        .create()
        .expect("a consumer");
    let deadline = Instant::now() + PATIENCE;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let partitions: Vec<i32> =
        metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    assert!(!partitions.is_empty(), "topic {topic} does not exist");
    let mut assignment = TopicPartitionList::new();
    let mut open = Vec::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("watermarks");
        if low < high {
            assignment.add_partition_offset(topic, partition, Offset::Offset(low)).expect("an offset");
            open.push((partition, high));
        }
    }
    consumer.assign(&assignment).expect("assigns");
    let mut records = Vec::new();
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "topic {topic} could not be read to its end: {open:?} left");
        let Some(message) = consumer.poll(Duration::from_millis(500)) else { continue };
        let message = message.expect("a record");
        let (partition, offset) = (message.partition(), message.offset());
        if let Some(at) = open.iter().position(|(open, end)| *open == partition && offset + 1 >= *end) {
            open.swap_remove(at);
        }
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        records.push(RawRecord {
            partition,
            offset,
            timestamp: message.timestamp().to_millis().expect("a timestamp"),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|header| {
                    (
                        header.key.to_owned(),
                        String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned(),
                    )
                })
                .collect(),
        });
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    for pair in records.windows(2) {
        assert!(
            pair[0].partition != pair[1].partition || pair[0].offset < pair[1].offset,
            "an offset came twice"
        );
    }
    records
}
