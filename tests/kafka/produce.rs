//! `kafka.unsafe_produce`: topics that clients make and write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::*;
use millrace::kafka::connection::Limits;
use millrace::log::local::Options;
use millrace::log::record_batch::Codec;
use millrace::log::topics::Topics;
use millrace::produce::ClientTopics;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, Server};

/// A broker whose topics clients write.
struct Writable {
    server: Server,
    topics: Topics,
    writer: JoinHandle<()>,
    directory: Arc<TempDir>,
}

impl Writable {
    async fn start() -> Writable {
        Writable::open(Arc::new(TempDir::new().unwrap())).await
    }

    async fn open(directory: Arc<TempDir>) -> Writable {
        let topics = Topics::default();
        let options = Options::new(directory.path(), "produced");
        let (ours, writer) = ClientTopics::open(options, Codec::Lz4, topics.clone()).await.unwrap();
        let writer = tokio::spawn(writer);
        let limits = Limits { request_bytes: millrace::produce::MAX_REQUEST_BYTES, ..Limits::default() };
        let server = Server::start_writable(topics.clone(), limits, ours).await;
        Writable { server, topics, writer, directory }
    }

    /// Stops and starts again on the same files.
    async fn restart(self) -> Writable {
        let Writable { mut server, writer, directory, .. } = self;
        server.shutdown.cancel();
        (&mut server.served).await.unwrap();
        writer.await.unwrap();
        Writable::open(directory).await
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.server.address.to_string());
        config
    }
}

/// Reads so many records from the beginning of a topic, by partition.
async fn read(
    broker: &Writable,
    topic: &str,
    count: usize,
) -> HashMap<i32, Vec<rdkafka::message::OwnedMessage>> {
    let consumer: BaseConsumer =
        broker.config().set("group.id", "reader").set("auto.offset.reset", "earliest").create().unwrap();
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        consumer.subscribe(&[&topic]).unwrap();
        let mut read: HashMap<i32, Vec<_>> = HashMap::new();
        let started = Instant::now();
        while read.values().map(Vec::len).sum::<usize>() < count {
            assert!(started.elapsed() < PATIENCE, "records are missing");
            if let Some(message) = consumer.poll(Duration::from_millis(100)) {
                let message = message.unwrap().detach();
                read.entry(message.partition()).or_default().push(message);
            }
        }
        for (partition, messages) in &read {
            let (start, end) = consumer.fetch_watermarks(&topic, *partition, PATIENCE).unwrap();
            assert_eq!((start, end), (0, messages.len() as i64));
        }
        read
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_writes_with_every_codec_it_has_and_reads_what_it_wrote() {
    let broker = Writable::start().await;
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let producer: FutureProducer = broker
            .config()
            .set("compression.codec", codec)
            .set("enable.idempotence", "false")
            .set("linger.ms", "50")
            .create()
            .unwrap();
        let value = format!("{codec} {}", "the quick brown fox ".repeat(50));
        let sends = (0..40).map(|n| {
            let headers = OwnedHeaders::new()
                .insert(Header { key: "codec", value: Some(codec) })
                .insert(Header { key: "null", value: None::<&[u8]> });
            let record = FutureRecord::to("made-on-demand")
                .partition(n % 4)
                .timestamp(1_700_000_000_000 + i64::from(n))
                .key(codec)
                .payload(&value)
                .headers(headers);
            producer.send_result(record).map_err(|(error, _)| error).unwrap()
        });
        for sent in sends.collect::<Vec<_>>() {
            sent.await.unwrap().unwrap();
        }
    }
    let broker = broker.restart().await;
    assert_eq!(broker.topics.by_name("made-on-demand").unwrap().partitions.len(), 4);
    let read = read(&broker, "made-on-demand", 200).await;
    for (partition, messages) in read {
        assert_eq!(messages.len(), 50);
        for (offset, message) in messages.iter().enumerate() {
            assert_eq!(message.offset(), offset as i64);
            let codec = codecs[offset / 10];
            assert_eq!(message.key(), Some(codec.as_bytes()));
            assert!(message.payload().unwrap().starts_with(codec.as_bytes()));
            let n = i64::from(partition) + 4 * (offset as i64 % 10);
            assert_eq!(message.timestamp().to_millis(), Some(1_700_000_000_000 + n));
            let headers = message.headers().unwrap();
            assert_eq!(headers.get(0).value, Some(codec.as_bytes()));
            assert_eq!((headers.get(1).key, headers.get(1).value), ("null", None));
        }
    }
}

#[tokio::test]
async fn a_topic_is_made_only_where_the_request_allows_it() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let asked = |name: &'static str| {
        metadata_request::MetadataRequestTopic::default()
            .with_name(Some(TopicName(kafka_protocol::protocol::StrBytes::from_static_str(name))))
    };
    let request = MetadataRequest::default().with_topics(Some(vec![asked("new"), asked("not a name")]));
    let forbidden = request.clone().with_allow_auto_topic_creation(false);
    let errors = |response: MetadataResponse| -> Vec<_> {
        response.topics.iter().map(|topic| (topic.error_code, topic.partitions.len())).collect()
    };
    assert_eq!(errors(client.call(13, &forbidden).await), [(3, 0), (17, 0)]);
    assert_eq!(errors(client.call(13, &request).await), [(0, 4), (17, 0)]);
    assert_eq!(errors(client.call(13, &forbidden).await), [(0, 4), (17, 0)]);
}
