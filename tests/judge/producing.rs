//! Produce and InitProducerId, which seed what third-party suites read.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, InitProducerIdRequest, ProduceRequest, ProducerId, TransactionalId};
use uuid::Uuid;

use crate::pair::{Court, Names, Pair};
use crate::records::{batch, numbered_batch};
use crate::seed::{make, produce, text, topic};

pub async fn judge(court: &Arc<Court>) {
    let mut pair = court.pair();
    make(&mut pair, "written").await;
    for version in court.versions(ApiKey::Produce) {
        written(&mut pair, version).await;
    }
    for version in court.versions(ApiKey::InitProducerId) {
        producers(&mut pair, version).await;
    }
}

/// In the version's way to name the topic.
fn to(names: &Names, version: i16, name: &str, partition: i32, records: Bytes) -> ProduceRequest {
    let mut request = produce(name, partition, records);
    if version >= 13 {
        request.topic_data[0].topic_id = names.topic_id(name);
        request.topic_data[0].name = topic("");
    }
    request
}

async fn written(pair: &mut Pair, version: i16) {
    let good = batch(&[1_000, 1_001], 20);
    let sends = |records: &Bytes| {
        let records = records.clone();
        move |names: &Names| to(names, version, "written", 0, records.clone())
    };
    pair.call("a batch", version, sends(&good)).await;
    pair.call("acknowledged by the leader", version, |names| sends(&good)(names).with_acks(1)).await;
    pair.call("acknowledged by too many", version, |names| sends(&good)(names).with_acks(2)).await;
    pair.call("an unknown partition", version, |names| to(names, version, "written", 9, good.clone())).await;
    if version < 13 {
        pair.call("an unknown topic", version, |names| to(names, version, "unknown", 0, good.clone())).await;
    } else {
        let unknown = |names: &Names| {
            let mut request = sends(&good)(names);
            request.topic_data[0].topic_id = Uuid::from_u128(3);
            request
        };
        pair.call("an unknown id", version, unknown).await;
    }
    // Nothing at all is not sent: Kafka never answers that.
    pair.call("empty records", version, sends(&Bytes::new())).await;
    let two: Bytes = [&good[..], &good[..]].concat().into();
    pair.call("two batches", version, sends(&two)).await;
    for (situation, place, value) in [
        ("a base offset", 7, 1),
        ("a wrong length", 11, 1),
        ("a leader epoch", 15, 0),
        ("magic 1", 16, 1),
        ("magic 3", 16, 3),
        ("a wrong checksum", 17, 0),
        ("an unknown codec", 22, 7),
        ("a wrong last offset", 26, 7),
        ("a wrong count", 60, 9),
    ] {
        let mut wrong = BytesMut::from(&good[..]);
        wrong[place] = value;
        if place > 20 {
            let checksum = crc32c::crc32c(&wrong[21..]);
            wrong[17..21].copy_from_slice(&checksum.to_be_bytes());
        }
        pair.call(situation, version, sends(&wrong.freeze())).await;
    }
    pair.call("a batch that is cut off", version, sends(&good.slice(..good.len() - 3))).await;
    pair.call("half a header", version, sends(&good.slice(..30))).await;
    let large = batch(&[1_000], 1_100_000);
    pair.call("a batch that is too large", version, sends(&large)).await;
    let transactional = |names: &Names| {
        let request = to(names, version, "written", 2, good.clone());
        request.with_transactional_id(Some(TransactionalId(text("transaction"))))
    };
    pair.call("in a transaction", version, transactional).await;
    pair.call("nothing", version, |_| ProduceRequest::default().with_acks(1).with_timeout_ms(1_000)).await;

    if let Some(id) = pair
        .call_tidied(
            "a producer's id",
            4.min(*pair.court.versions(ApiKey::InitProducerId).end()),
            |_| InitProducerIdRequest::default().with_transaction_timeout_ms(1_000),
            |answer| answer.producer_id = ProducerId(0),
        )
        .await
    {
        pair.court.learn_number("producer", &id.map(|answer| answer.producer_id.0));
    }
    for (situation, producer, epoch, sequence) in [
        ("a producer's first batch", 0, 0, 0),
        ("a producer's second batch", 0, 0, 2),
        ("the second batch again", 0, 0, 2),
        ("the first batch again", 0, 0, 0),
        ("a sequence too far", 0, 0, 9),
        ("a sequence gone by", 0, 0, 1),
        ("an older epoch", 0, -1, 4),
        ("a newer epoch that starts in the middle", 0, 1, 5),
        ("a newer epoch", 0, 1, 0),
        ("the older epoch", 0, 0, 4),
        ("an unknown producer in the middle", 1_000, 0, 5),
        ("an unknown producer", 2_000, 0, 0),
    ] {
        let request = |names: &Names| {
            let id = names.number::<i64>("producer") + producer;
            let records = numbered_batch(&[1_000, 1_001], id, epoch, sequence);
            to(names, version, "written", 1, records)
        };
        pair.call(situation, version, request).await;
    }
}

async fn producers(pair: &mut Pair, version: i16) {
    let nameless = |answer: &mut kafka_protocol::messages::InitProducerIdResponse| {
        if answer.producer_id.0 > 0 {
            answer.producer_id = ProducerId(0);
        }
    };
    let plain = || InitProducerIdRequest::default().with_transaction_timeout_ms(1_000);
    pair.call_tidied("an idempotent producer", version, |_| plain(), nameless).await;
    let forever = |_: &Names| plain().with_transaction_timeout_ms(-1);
    pair.call_tidied("a negative timeout", version, forever, nameless).await;
    if version >= 3 {
        for (id, epoch) in [(5, 0), (-1, 3), (5, -1)] {
            let situation = format!("producer {id} in epoch {epoch}");
            let request = |_: &Names| plain().with_producer_id(ProducerId(id)).with_producer_epoch(epoch);
            pair.call_tidied(&situation, version, request, nameless).await;
        }
    }
}
