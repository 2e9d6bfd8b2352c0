//! `kafka.unsafe_produce`: topics that clients make and write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use millrace::kafka::connection::Limits;
use millrace::log::topics::{Topic, Topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;

use crate::memory_log::MemoryLog;
use crate::support::{Client, PATIENCE, Server};
use crate::writable::Writable;

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
    let asked = |text| metadata_request::MetadataRequestTopic::default().with_name(Some(name(text)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked("new"), asked("not a name")]));
    let forbidden = request.clone().with_allow_auto_topic_creation(false);
    let errors = |response: MetadataResponse| -> Vec<_> {
        response.topics.iter().map(|topic| (topic.error_code, topic.partitions.len())).collect()
    };
    assert_eq!(errors(client.call(13, &forbidden).await), [(3, 0), (17, 0)]);
    assert_eq!(errors(client.call(13, &request).await), [(0, 4), (17, 0)]);
    assert_eq!(errors(client.call(13, &forbidden).await), [(0, 4), (17, 0)]);
    let operations = forbidden.with_include_topic_authorized_operations(true);
    // Read, write, create, delete, alter, describe, and describe and alter its configuration.
    let all = [3, 4, 5, 6, 7, 8, 10, 11].into_iter().fold(0, |bits, operation| bits | 1 << operation);
    assert_eq!(client.call(13, &operations).await.topics[0].topic_authorized_operations, all);
}

fn name(text: &'static str) -> TopicName {
    TopicName(StrBytes::from_static_str(text))
}

/// Who sends a batch: id, epoch and first sequence number.
pub type Sequence = (i64, i16, i32);
const NOBODY: Sequence = (-1, -1, -1);

/// A batch of records with these timestamps.
pub fn batch((producer_id, producer_epoch, sequence): Sequence, timestamps: &[i64]) -> BytesMut {
    let records = timestamps.iter().zip(0..).map(|(timestamp, n)| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id,
        producer_epoch,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(n),
        sequence: sequence.wrapping_add(n),
        timestamp: *timestamp,
        key: None,
        value: Some(Bytes::from(format!("record {n}"))),
        headers: Default::default(),
    });
    let records: Vec<Record> = records.collect();
    let mut batch = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut batch, &records, &options).unwrap();
    batch
}

/// Makes the checksum right again.
fn seal(mut batch: BytesMut) -> BytesMut {
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// A request for one partition.
pub fn write(version: i16, topic: &Topic, partition: i32, batch: impl Into<Bytes>) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch.into()));
    let topic_data = TopicProduceData::default().with_partition_data(vec![data]);
    let topic_data = match version {
        13.. => topic_data.with_topic_id(uuid::Uuid::from_u128(topic.id.0)),
        _ => topic_data.with_name(TopicName(StrBytes::from_string(topic.name.clone()))),
    };
    ProduceRequest::default().with_transactional_id(None).with_acks(-1).with_topic_data(vec![topic_data])
}

pub async fn send(client: &mut Client, version: i16, request: &ProduceRequest) -> PartitionProduceResponse {
    let response = client.call(version, request).await;
    response.responses[0].partition_responses[0].clone()
}

pub async fn made(broker: &Writable, client: &mut Client, text: &'static str) -> Arc<Topic> {
    let asked = metadata_request::MetadataRequestTopic::default().with_name(Some(name(text)));
    client.call(12, &MetadataRequest::default().with_topics(Some(vec![asked]))).await;
    broker.topics.by_name(text).unwrap()
}

#[tokio::test]
async fn every_version_of_produce_writes_and_is_answered_with_offsets() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    for version in 3..=13 {
        let answer = send(&mut client, version, &write(version, &topic, 2, batch(NOBODY, &[1, 2]))).await;
        assert_eq!((answer.error_code, answer.index), (0, 2), "version {version}");
        assert_eq!(answer.base_offset, i64::from(version - 3) * 2);
        assert_eq!(
            (answer.log_append_time_ms, answer.log_start_offset),
            (-1, if version >= 5 { 0 } else { -1 })
        );
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_as_kafka_refuses_it() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let right = || batch(NOBODY, &[1]);
    let changed = |at: usize, byte: u8| {
        let mut batch = right();
        batch[at] = byte;
        batch
    };
    let mut flipped = right();
    *flipped.last_mut().unwrap() ^= 1;
    let mut two = right();
    two.extend_from_slice(&right());
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let cases = [
        (flipped, ResponseError::CorruptMessage),
        (changed(16, 1), ResponseError::InvalidRecord),
        (changed(16, 9), ResponseError::CorruptMessage),
        (changed(7, 5), ResponseError::InvalidRecord),
        (seal(changed(26, 7)), ResponseError::InvalidRecord),
        (seal(changed(22, 5)), ResponseError::UnsupportedCompressionType),
        (seal(changed(22, 1)), ResponseError::InvalidRecord),
        (seal(changed(22, 1 << 5)), ResponseError::InvalidRecord),
        (seal(changed(22, 1 << 4)), ResponseError::TransactionalIdAuthorizationFailed),
        (batch(NOBODY, &[soon + 7_200_000]), ResponseError::InvalidTimestamp),
        (batch((1, 0, -5), &[1]), ResponseError::InvalidRecord),
        (two, ResponseError::InvalidRecord),
        (BytesMut::new(), ResponseError::InvalidRecord),
        (right().split_to(40), ResponseError::InvalidRecord),
        (batch(NOBODY, &vec![1; 80_000]), ResponseError::MessageTooLarge),
    ];
    for (n, (batch, error)) in cases.into_iter().enumerate() {
        let answer = send(&mut client, 11, &write(11, &topic, 0, batch)).await;
        assert_eq!((answer.error_code, answer.base_offset), (error.code(), -1), "case {n}");
        assert!(answer.error_message.is_some_and(|message| !message.is_empty()));
        assert_eq!(answer.record_errors.len(), usize::from(error == ResponseError::InvalidTimestamp));
    }
    let zstd = || write(6, &topic, 0, seal(changed(22, 4)));
    let answer = send(&mut client, 6, &zstd()).await;
    assert_eq!(answer.error_code, ResponseError::UnsupportedCompressionType.code());
    let answer = send(&mut client, 11, &write(11, &topic, 4, right())).await;
    assert_eq!(answer.error_code, ResponseError::UnknownTopicOrPartition.code());
    let gone = Topic { name: "gone".into(), id: millrace::log::topics::TopicId(5), ..(*topic).clone() };
    let answer = send(&mut client, 12, &write(12, &gone, 0, right())).await;
    assert_eq!(answer.error_code, ResponseError::UnknownTopicOrPartition.code());
    let answer = send(&mut client, 13, &write(13, &gone, 0, right())).await;
    assert_eq!(answer.error_code, ResponseError::UnknownTopicId.code());
    let answer = send(&mut client, 11, &write(11, &topic, 0, right()).with_acks(2)).await;
    assert_eq!(answer.error_code, ResponseError::InvalidRequiredAcks.code());
    let transactional = Some(TransactionalId(StrBytes::from_static_str("t")));
    let answer =
        send(&mut client, 11, &write(11, &topic, 0, right()).with_transactional_id(transactional)).await;
    assert_eq!(answer.error_code, ResponseError::TransactionalIdAuthorizationFailed.code());

    // Nothing of all that has left a trace.
    assert_eq!(send(&mut client, 11, &write(11, &topic, 0, right())).await.base_offset, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_tasks_stay_read_only() {
    let broker = Writable::start().await;
    let (_log, captured) = MemoryLog::with_topic("captured", 1);
    broker.topics.insert(captured.clone());
    let mut client = broker.server.client().await;
    for version in 3..=13 {
        let answer = send(&mut client, version, &write(version, &captured, 0, batch(NOBODY, &[1]))).await;
        assert_eq!(answer.error_code, ResponseError::TopicAuthorizationFailed.code());
        let message = answer.error_message.map(|message| message.to_string());
        assert_eq!(message.is_some_and(|message| message.contains("read-only")), version >= 8);
    }
    // Whether it would be idempotent or not.
    for idempotent in ["true", "false"] {
        let producer: FutureProducer =
            broker.config().set("enable.idempotence", idempotent).create().unwrap();
        let record = FutureRecord::<(), str>::to("captured").payload("x");
        let (error, _) = producer.send(record, PATIENCE).await.unwrap_err();
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::TopicAuthorizationFailed));
    }
}

#[tokio::test]
async fn with_acks_0_nothing_is_answered_and_an_error_closes_the_connection() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let silent = write(9, &topic, 0, batch(NOBODY, &[1, 2, 3])).with_acks(0);
    client.request(9, &silent).await;
    // The next answer is that of the next request.
    let answer = send(&mut client, 9, &write(9, &topic, 0, batch(NOBODY, &[4]))).await;
    assert_eq!((answer.error_code, answer.base_offset), (0, 3));
    client.request(9, &write(9, &topic, 9, batch(NOBODY, &[1])).with_acks(0)).await;
    client.closed().await;
}

#[tokio::test]
async fn a_request_may_be_as_large_as_kafka_allows_and_no_larger() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let timestamps = vec![1; 40_000];
    let partitions = (0..12).map(|n| {
        let batch = batch(NOBODY, &timestamps).freeze();
        PartitionProduceData::default().with_index(n % 4).with_records(Some(batch))
    });
    let mut request = write(9, &topic, 0, Bytes::new());
    request.topic_data[0].partition_data = partitions.collect();
    let response = client.call(9, &request).await;
    for (n, answer) in response.responses[0].partition_responses.iter().enumerate() {
        assert_eq!((answer.error_code, answer.base_offset), (0, (n as i64 / 4) * 40_000));
    }
    client.send(&(100 * 1024 * 1024 + 1i32).to_be_bytes()).await;
    client.closed().await;
}

// I8. A request of a few kilobytes may stand for gigabytes.
#[tokio::test]
async fn what_a_request_is_decompressed_to_is_bounded() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let record = |n| Record {
        value: Some(Bytes::from(vec![0; 20 << 20])),
        offset: n,
        // Sequence numbers that do not rise would make two batches.
        sequence: n as i32 - 1,
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        timestamp: 1,
        key: None,
        headers: Default::default(),
    };
    let records = [record(0), record(1)];
    let mut bomb = BytesMut::new();
    let zstd = |plain: &mut BytesMut, out: &mut BytesMut, _| {
        out.extend_from_slice(&zstd::encode_all(&plain[..], 1)?);
        Ok(())
    };
    let options = RecordEncodeOptions { version: 2, compression: Compression::Zstd };
    RecordBatchEncoder::encode_with_custom_compression(&mut bomb, &records, &options, Some(zstd)).unwrap();
    assert!(bomb.len() < 10_000);
    let bomb = bomb.freeze();
    let mut request = write(9, &topic, 0, bomb.clone());
    request.topic_data[0].partition_data = (0..4)
        .map(|n| PartitionProduceData::default().with_index(n).with_records(Some(bomb.clone())))
        .collect();
    let response = client.call(9, &request).await;
    let answers = response.responses[0].partition_responses.iter();
    let too_large = ResponseError::MessageTooLarge.code();
    assert_eq!(answers.map(|answer| answer.error_code).collect::<Vec<_>>(), [0, 0, 0, too_large]);
}

#[tokio::test]
async fn an_idempotent_producer_writes_each_batch_once_and_in_order() {
    let broker = Writable::start().await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let mut ids = Vec::new();
    for version in 0..=5 {
        let asked = InitProducerIdRequest::default().with_transactional_id(None);
        let answer = client.call(version, &asked).await;
        assert_eq!((answer.error_code, answer.producer_epoch), (0, 0));
        assert!(answer.producer_id.0 >= 0 && !ids.contains(&answer.producer_id.0));
        ids.push(answer.producer_id.0);
    }
    let id = ids[0];
    let mut sent = async |sequence: i32, epoch: i16, records: usize| {
        let batch = batch((id, epoch, sequence), &vec![1; records]);
        let answer = send(&mut client, 11, &write(11, &topic, 1, batch)).await;
        (answer.error_code, answer.base_offset)
    };
    assert_eq!(sent(0, 0, 3).await, (0, 0));
    assert_eq!(sent(3, 0, 2).await, (0, 3));
    assert_eq!(sent(0, 0, 3).await, (0, 0));
    assert_eq!(sent(3, 0, 2).await, (0, 3));
    assert_eq!(sent(6, 0, 1).await, (ResponseError::OutOfOrderSequenceNumber.code(), -1));
    assert_eq!(sent(4, 1, 1).await, (ResponseError::OutOfOrderSequenceNumber.code(), -1));
    assert_eq!(sent(0, 1, 1).await, (0, 5));
    assert_eq!(sent(5, 0, 1).await, (ResponseError::InvalidProducerEpoch.code(), -1));
    assert_eq!(sent(1, 1, 1).await, (0, 6));
}

#[tokio::test]
async fn an_id_is_given_on_every_broker_and_for_a_transaction_on_none() {
    let server = Server::start(Topics::default(), Limits::default()).await;
    let mut client = server.client().await;
    for version in 0..=5 {
        let asked = InitProducerIdRequest::default().with_transactional_id(None);
        assert_eq!(client.call(version, &asked).await.error_code, 0);
        for (id, error) in
            [("t", ResponseError::TransactionalIdAuthorizationFailed), ("", ResponseError::InvalidRequest)]
        {
            let asked = InitProducerIdRequest::default()
                .with_transactional_id(Some(TransactionalId(StrBytes::from_static_str(id))));
            let answer = client.call(version, &asked).await;
            assert_eq!((answer.error_code, answer.producer_id.0), (error.code(), -1));
        }
    }
    let half = InitProducerIdRequest::default().with_transactional_id(None).with_producer_id(7.into());
    assert_eq!(client.call(4, &half).await.error_code, ResponseError::InvalidRequest.code());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_librdkafka_keeps_its_order() {
    let broker = Writable::start().await;
    let producer: FutureProducer = broker
        .config()
        .set("enable.idempotence", "true")
        .set("batch.num.messages", "7")
        .set("partitioner", "murmur2_random")
        .create()
        .unwrap();
    let sends = (0..1_000).map(|n| {
        let (key, payload) = ((n % 5).to_string(), n.to_string());
        let record = FutureRecord::to("ordered").key(&key).payload(&payload);
        producer.send_result(record).map_err(|(error, _)| error).unwrap()
    });
    for sent in sends.collect::<Vec<_>>() {
        sent.await.unwrap().unwrap();
    }
    let mut all = Vec::new();
    for messages in read(&broker, "ordered", 1_000).await.into_values() {
        let numbers: Vec<u32> = messages
            .iter()
            .map(|message| std::str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap())
            .collect();
        assert!(numbers.is_sorted());
        all.extend(numbers);
    }
    all.sort_unstable();
    assert_eq!(all, (0..1_000).collect::<Vec<_>>());
}
