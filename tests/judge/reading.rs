//! Fetch: what is read, how much of it, and when.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::fetch_response::FetchableTopicResponse;
use kafka_protocol::messages::{ApiKey, FetchRequest, FetchResponse};
use uuid::Uuid;

use crate::pair::{Court, Names, Pair};
use crate::records::{batch, shown};
use crate::seed::{make, produce, topic};

/// A partition to read, from an offset.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    topic: &'static str,
    partition: i32,
    offset: i64,
    max_bytes: i32,
    epoch: i32,
}

fn from(topic: &'static str, partition: i32, offset: i64) -> Wanted {
    Wanted { topic, partition, offset, max_bytes: 1 << 20, epoch: -1 }
}

pub async fn judge(court: &Arc<Court>) {
    let mut pair = court.pair();
    make(&mut pair, "growing").await;
    for version in court.versions(ApiKey::Fetch) {
        places(&mut pair, version).await;
        limits(&mut pair, version).await;
        moments(&mut pair, version).await;
        if version >= 7 {
            sessions(&mut pair, version).await;
        }
        if version >= 13 {
            ids(&mut pair, version).await;
        }
    }
}

/// A request outside of any session that waits for nothing.
fn fetch(names: &Names, version: i16, wanted: &[Wanted]) -> FetchRequest {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for wanted in wanted {
        let id = if version >= 13 { names.topic_id(wanted.topic) } else { Uuid::nil() };
        let name = if version >= 13 { topic("") } else { topic(wanted.topic) };
        let mut partition = FetchPartition::default()
            .with_partition(wanted.partition)
            .with_fetch_offset(wanted.offset)
            .with_partition_max_bytes(wanted.max_bytes);
        if version >= 9 {
            partition.current_leader_epoch = wanted.epoch;
        }
        match topics.iter_mut().find(|topic| topic.topic == name && topic.topic_id == id) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(
                FetchTopic::default().with_topic(name).with_topic_id(id).with_partitions(vec![partition]),
            ),
        }
    }
    let request = FetchRequest::default()
        .with_max_wait_ms(0)
        .with_min_bytes(0)
        .with_max_bytes(50 << 20)
        .with_topics(topics);
    match version {
        7.. => request.with_session_epoch(-1),
        _ => request,
    }
}

/// Shows records instead of batches, and each topic once: Kafka has errors in entries of their own.
fn decoded(answer: &mut FetchResponse) {
    let mut topics: Vec<FetchableTopicResponse> = Vec::new();
    for mut topic in std::mem::take(&mut answer.responses) {
        for partition in &mut topic.partitions {
            partition.records = partition.records.as_ref().map(|records| Bytes::from(shown(records)));
        }
        let same = |known: &&mut FetchableTopicResponse| {
            known.topic == topic.topic && known.topic_id == topic.topic_id
        };
        match topics.iter_mut().find(same) {
            Some(known) => known.partitions.append(&mut topic.partitions),
            None => topics.push(topic),
        }
    }
    answer.responses = topics;
}

async fn ask(pair: &mut Pair, situation: &str, version: i16, request: impl Fn(&Names) -> FetchRequest) {
    pair.call_tidied(situation, version, request, decoded).await;
}

async fn places(pair: &mut Pair, version: i16) {
    for offset in [0, 1, 2, 3, 4, 6, 8, 10, 11, 12, 1_000, -1] {
        let situation = format!("from offset {offset}");
        ask(pair, &situation, version, |names| fetch(names, version, &[from("seed", 0, offset)])).await;
    }
    ask(pair, "an empty partition", version, |names| fetch(names, version, &[from("empty", 0, 0)])).await;
    ask(pair, "an unknown partition", version, |names| fetch(names, version, &[from("seed", 7, 0)])).await;
    ask(pair, "a negative partition", version, |names| fetch(names, version, &[from("seed", -1, 0)])).await;
    if version < 13 {
        ask(pair, "an unknown topic", version, |names| fetch(names, version, &[from("unknown", 0, 0)])).await;
    }
    ask(pair, "nothing", version, |names| fetch(names, version, &[])).await;
    let mixed = [from("seed", 1, 0), from("empty", 0, 5), from("seed", 0, 9), from("seed", 9, 0)];
    ask(pair, "several partitions, some wrong", version, |names| fetch(names, version, &mixed)).await;
    let twice = [from("seed", 0, 9), from("seed", 0, 3)];
    ask(pair, "a partition twice", version, |names| fetch(names, version, &twice)).await;
    let committed = |names: &Names| fetch(names, version, &[from("seed", 0, 9)]).with_isolation_level(1);
    ask(pair, "committed records", version, committed).await;
    let unknown = |names: &Names| fetch(names, version, &[from("seed", 0, 9)]).with_isolation_level(5);
    ask(pair, "an unknown isolation level", version, unknown).await;
    if version >= 9 {
        for epoch in [0, 1, 9] {
            let situation = format!("leader epoch {epoch}");
            let wanted = Wanted { epoch, ..from("seed", 0, 9) };
            ask(pair, &situation, version, |names| fetch(names, version, &[wanted])).await;
        }
    }
    if version >= 12 {
        for (epoch, offset) in [(0, 9), (0, 11), (5, 9)] {
            let request = |names: &Names| {
                let mut request = fetch(names, version, &[from("seed", 0, offset)]);
                request.topics[0].partitions[0].last_fetched_epoch = epoch;
                request
            };
            ask(pair, &format!("last fetched epoch {epoch} at {offset}"), version, request).await;
        }
    }
}

async fn limits(pair: &mut Pair, version: i16) {
    for max_bytes in [0, 1, 100, 1_000, 100_000, 200_500, 203_000, 1 << 20] {
        let wanted = Wanted { max_bytes, ..from("sizes", 0, 0) };
        let situation = format!("{max_bytes} bytes of a partition");
        ask(pair, &situation, version, |names| fetch(names, version, &[wanted])).await;
        let situation = format!("{max_bytes} bytes of a partition, a large batch first");
        let wanted = Wanted { offset: 1, ..wanted };
        ask(pair, &situation, version, |names| fetch(names, version, &[wanted])).await;
        let situation = format!("{max_bytes} bytes of two partitions");
        let both = [from("sizes", 0, 1), from("sizes", 1, 0)];
        let request = |names: &Names| fetch(names, version, &both).with_max_bytes(max_bytes);
        ask(pair, &situation, version, request).await;
        let situation = format!("{max_bytes} bytes of each of two partitions");
        let both = [Wanted { max_bytes, ..from("sizes", 0, 1) }, Wanted { max_bytes, ..from("sizes", 1, 1) }];
        ask(pair, &situation, version, |names| fetch(names, version, &both)).await;
    }
    let behind_empty = [from("empty", 0, 0), from("sizes", 0, 1)];
    let request = |names: &Names| fetch(names, version, &behind_empty).with_max_bytes(10);
    ask(pair, "a large batch behind an empty partition", version, request).await;
}

async fn moments(pair: &mut Pair, version: i16) {
    let end = pair
        .call_tidied(
            "the end",
            version,
            |names| fetch(names, version, &[from("growing", 0, 0)]),
            |answer| *answer = FetchResponse::default(),
        )
        .await;
    let Some(end) = end else { return };
    let end = end.kafka.responses[0].partitions[0].high_watermark;
    let mut writer = pair.court.pair();
    let patient = |min_bytes: i32, wanted: Vec<Wanted>| {
        move |names: &Names| fetch(names, version, &wanted).with_max_wait_ms(6_000).with_min_bytes(min_bytes)
    };
    let pending = pair.send("waits for a record", version, patient(1, vec![from("growing", 0, end)])).await;
    pair.waits(&pending).await;
    append(&mut writer).await;
    pair.receive(pending, decoded).await;

    let wanted = vec![from("growing", 0, end + 1)];
    let pending = pair.send("waits for 300 bytes", version, patient(300, wanted)).await;
    append(&mut writer).await;
    pair.waits(&pending).await;
    append(&mut writer).await;
    pair.receive(pending, decoded).await;

    for (situation, min_bytes, wanted) in [
        ("does not wait when there is enough", 1, vec![from("growing", 0, 0), from("empty", 0, 0)]),
        ("does not wait for an unknown partition", 1, vec![from("empty", 0, 0), from("seed", 8, 0)]),
        ("does not wait for an offset out of range", 1, vec![from("empty", 0, 0), from("seed", 0, 99)]),
        ("does not wait for no bytes", 0, vec![from("empty", 0, 0)]),
        ("does not wait for nothing", 1, vec![]),
    ] {
        let pending = pair.send(situation, version, patient(min_bytes, wanted)).await;
        pair.waits(&pending).await;
        pair.receive(pending, decoded).await;
    }
    let soon = |names: &Names| {
        fetch(names, version, &[from("empty", 0, 0)]).with_max_wait_ms(1_000).with_min_bytes(1)
    };
    let pending = pair.send("waits a while in vain", version, soon).await;
    pair.waits(&pending).await;
    pair.receive(pending, decoded).await;
    let negative =
        |names: &Names| fetch(names, version, &[from("empty", 0, 0)]).with_max_wait_ms(-1).with_min_bytes(1);
    let pending = pair.send("a negative wait", version, negative).await;
    pair.waits(&pending).await;
    pair.receive(pending, decoded).await;
}

async fn append(writer: &mut Pair) {
    writer.call("one more record", 9, |_| produce("growing", 0, batch(&[7_000], 100))).await;
}

/// The id that the answer gives is that of the session from now on.
async fn opened(pair: &mut Pair, situation: &str, version: i16, request: impl Fn(&Names) -> FetchRequest) {
    let pending = pair.send(situation, version, request).await;
    pair.receive_named(pending, decoded, "session", |answer| answer.session_id.to_string()).await;
}

async fn sessions(pair: &mut Pair, version: i16) {
    let court = pair.court.clone();
    let session = |epoch: i32, wanted: Vec<Wanted>| {
        move |names: &Names| {
            let request = fetch(names, version, &wanted);
            request.with_session_id(names.number("session")).with_session_epoch(epoch)
        }
    };
    let unknown = |names: &Names| session(1, vec![])(names).with_session_id(12_345);
    ask(pair, "a session that nobody opened", version, unknown).await;
    let unknown = |names: &Names| session(0, vec![from("seed", 0, 9)])(names).with_session_id(12_345);
    opened(pair, "a session with an id is opened", version, unknown).await;
    court.forget("session");
    let both = vec![from("seed", 0, 9), from("empty", 0, 0)];
    opened(pair, "opening a session", version, session(0, both)).await;
    ask(pair, "the session goes on", version, session(1, vec![])).await;
    ask(pair, "an epoch twice", version, session(1, vec![])).await;
    ask(pair, "an epoch too far", version, session(7, vec![])).await;
    ask(pair, "another offset", version, session(2, vec![from("seed", 0, 3)])).await;
    ask(pair, "a further partition", version, session(3, vec![from("seed", 1, 0)])).await;
    ask(pair, "an unknown partition joins", version, session(4, vec![from("seed", 8, 0)])).await;
    ask(pair, "an unknown partition stays", version, session(5, vec![])).await;
    let forget = |names: &Names| {
        let forgotten = ForgottenTopic::default().with_partitions(vec![8, 0]);
        let forgotten = match version {
            13.. => forgotten.with_topic_id(names.topic_id("seed")),
            _ => forgotten.with_topic(topic("seed")),
        };
        session(6, vec![])(names).with_forgotten_topics_data(vec![forgotten])
    };
    ask(pair, "partitions are forgotten", version, forget).await;
    ask(pair, "what is left", version, session(7, vec![])).await;
    ask(pair, "offsets move in a session", version, session(8, vec![from("empty", 0, 3)])).await;
    ask(pair, "an error stays in a session", version, session(9, vec![])).await;
    ask(pair, "closing the session", version, session(-1, vec![from("seed", 0, 9)])).await;
    ask(pair, "a closed session", version, session(10, vec![])).await;
    court.forget("session");
    opened(pair, "opening an empty session", version, session(0, vec![])).await;
    ask(pair, "an empty session goes on", version, session(1, vec![])).await;
    court.forget("session");
}

async fn ids(pair: &mut Pair, version: i16) {
    let unknown = |names: &Names| {
        let mut request = fetch(names, version, &[from("seed", 0, 9), from("seed", 1, 0)]);
        request.topics[0].topic_id = Uuid::from_u128(5);
        request
    };
    ask(pair, "an unknown topic id", version, unknown).await;
    let mixed = |names: &Names| {
        let mut request = fetch(names, version, &[from("seed", 0, 9), from("empty", 0, 0)]);
        request.topics[0].topic_id = Uuid::from_u128(5);
        request
    };
    ask(pair, "an unknown topic id beside a known one", version, mixed).await;
    let nil = |names: &Names| {
        let mut request = fetch(names, version, &[from("seed", 0, 9)]);
        request.topics[0].topic_id = Uuid::nil();
        request
    };
    ask(pair, "no topic id", version, nil).await;
}
