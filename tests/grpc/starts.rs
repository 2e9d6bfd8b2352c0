//! Where a stream begins, and where it goes on.

use std::collections::BTreeSet;

use millrace::proto::change::Event;
use millrace::proto::start::{Committed, Earliest, From, Latest, Offsets};
use millrace::proto::{
    CHANGE_MEDIA_TYPE, Change, CommitRequest, ListTopicsRequest, PartitionRange, Start, Subscription,
    TopicSelection, record::Content,
};
use millrace_test_support::read_topic;
use prost::Message;
use tonic::Code;

use crate::stage::{Stage, TOPIC, everything, id, offset};

/// Keeps little.
const RETENTION: &[&str] = &["--codec", "none", "--segment-mb", "1", "--retention-mb", "1"];

fn from(from: From) -> Subscription {
    Subscription { start: Some(Start { from: Some(from) }), ..everything() }
}

/// One partition, chosen by the subscriber, whose offsets it commits for a group.
fn outsider() -> Subscription {
    let one = TopicSelection { topic: TOPIC.to_owned(), partitions: vec![0] };
    Subscription { topics: vec![one], group: "auditors".to_owned(), ..everything() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told_to() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=10, 10).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    stage.insert(11..=20, 10).await;
    let middle = read_topic(&stage.millrace.bootstrap(), TOPIC).await[0].timestamp + 1;
    let starts = [
        (everything(), 0),
        (from(From::Earliest(Earliest {})), 0),
        (from(From::Latest(Latest {})), 20),
        (from(From::TimeMs(middle)), 10),
        (from(From::TimeMs(i64::MAX)), 20),
        (from(From::Offsets(Offsets { offsets: vec![offset(0, 15)] })), 15),
    ];
    let mut streams = Vec::new();
    for (subscription, first) in starts {
        let mut stream = stage.subscribe(subscription).await;
        let assigned = stream.assigned().await.partitions;
        assert_eq!(assigned.len(), 1);
        assert_eq!((assigned[0].offset, assigned[0].high_watermark), (first, 20));
        streams.push((stream, first));
    }
    // What comes later is pushed to all of them.
    stage.insert(21..=30, 10).await;
    for (mut stream, first) in streams {
        let records = stream.take(30 - first as usize).await;
        assert!(records.iter().map(|record| record.offset).eq(first..30));
        assert!(records.iter().map(id).eq(first + 1..=30));
    }

    let refusals = [
        (from(From::Committed(Committed {})), Code::FailedPrecondition),
        (from(From::Offsets(Offsets::default())), Code::InvalidArgument),
        (from(From::Offsets(Offsets { offsets: vec![offset(0, 31)] })), Code::OutOfRange),
        (Subscription { topics: Vec::new(), ..everything() }, Code::InvalidArgument),
        (Subscription { decode: true, ..everything() }, Code::FailedPrecondition),
        (Subscription { revoke_timeout_ms: Some(u32::MAX), ..everything() }, Code::InvalidArgument),
    ];
    for (subscription, code) in refusals {
        let ended = stage.subscribe(subscription.clone()).await.ended().await;
        assert_eq!(ended.code(), code, "{subscription:?}: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_not_read_again_after_a_kill() {
    let mut stage = Stage::start(&[]).await;
    stage.insert(1..=100, 10).await;
    let mut stream = stage.subscribe(outsider()).await;
    stream.assigned().await;
    stream.take(100).await;
    let answer = stream.acknowledge(7, vec![offset(0, 40)]).await;
    assert!(answer.results.iter().all(|result| result.error.is_none()), "{answer:?}");
    stage.millrace.kill9();
    assert_ne!(stream.ended().await.code(), Code::Ok);
    stage.millrace.restart().await;

    let committed = Subscription { start: from(From::Committed(Committed {})).start, ..outsider() };
    let mut stream = stage.subscribe(committed).await;
    assert_eq!(stream.assigned().await.partitions[0].offset, 40);
    assert!(stream.take(60).await.iter().map(id).eq(41..=100));
    // Neither what is not read here, nor what was not sent.
    let answer =
        stream.acknowledge(8, vec![offset(1, 1), offset(0, 101), offset(0, -1), offset(0, 100)]).await;
    let codes: Vec<_> =
        answer.results.iter().map(|result| result.error.as_ref().map(|error| error.code)).collect();
    let (unheld, invalid) = (Code::FailedPrecondition as i32, Code::InvalidArgument as i32);
    assert_eq!(codes, [Some(unheld), Some(invalid), Some(invalid), None]);
    let mut again = stage.subscribe(outsider()).await;
    assert_eq!(again.assigned().await.partitions[0].offset, 100);
}

/// What the topic's first partition holds.
async fn held(stage: &Stage) -> PartitionRange {
    let topics = stage.grpc().await.list_topics(ListTopicsRequest::default()).await;
    topics.unwrap().into_inner().topics[0].partitions[0]
}

/// Inserts until retention has taken the first records, and gives what there is then. It may take more afterwards: it
/// comes behind the commits.
async fn outlive_retention(stage: &Stage) -> PartitionRange {
    for round in 1..20 {
        stage.insert(round * 1_000..=round * 1_000 + 999, 1_000).await;
        let held = held(stage).await;
        if held.start > 0 {
            return held;
        }
    }
    panic!("retention took nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_offset_is_gone_goes_on_only_where_that_is_asked_for() {
    let stage = Stage::start(RETENTION).await;
    stage.insert(1..=10, 10).await;
    let commit = CommitRequest { group: "auditors".to_owned(), offsets: vec![offset(0, 5)] };
    stage.grpc().await.commit(commit).await.unwrap();
    let kept = outlive_retention(&stage).await;
    let member = |start| Subscription { group: "auditors".to_owned(), start, ..everything() };
    for start in [None, from(From::Latest(Latest {})).start] {
        let ended = stage.subscribe(member(start)).await.ended().await;
        assert_eq!(ended.code(), Code::OutOfRange);
        assert!(ended.message().contains("start earliest given by name"), "{ended}");
    }
    let mut stream = stage.subscribe(member(from(From::Earliest(Earliest {})).start)).await;
    let began = stream.assigned().await.partitions[0].offset;
    assert!((kept.start..=held(&stage).await.start).contains(&began), "{began}");
    assert_eq!(stream.records().await.records[0].offset, began);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_takes_from_under_a_stream_is_not_skipped_in_silence() {
    let stage = Stage::start(RETENTION).await;
    stage.insert(1..=10, 10).await;
    let mut stream = stage.subscribe(Subscription { credit: None, ..everything() }).await;
    assert_eq!(stream.assigned().await.partitions[0].offset, 0);
    let kept = outlive_retention(&stage).await;
    stream.grant(1, 1_000_000);
    let ended = stream.ended().await;
    assert_eq!(ended.code(), Code::OutOfRange);
    let told = held(&stage).await;
    let is_told = |start| ended.message().contains(&format!("holds {start} to {}", told.high_watermark));
    assert!((kept.start..=told.start).any(is_told), "{ended}");
    let mut again = stage.subscribe(everything()).await;
    let began = again.assigned().await.partitions[0].offset;
    assert!((told.start..=held(&stage).await.start).contains(&began), "{began}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_format_protobuf_come_decoded_when_asked_for() {
    let stage = Stage::start(&["--format", "protobuf"]).await;
    stage.insert(1..=10, 10).await;
    let mut grpc = stage.grpc().await;
    let topics = grpc.list_topics(ListTopicsRequest::default()).await.unwrap().into_inner().topics;
    assert!(topics.iter().all(|topic| topic.decodable && topic.content_type == CHANGE_MEDIA_TYPE));
    let mut encoded = stage.subscribe(everything()).await;
    let mut decoded = stage.subscribe(Subscription { decode: true, ..everything() }).await;
    encoded.assigned().await;
    decoded.assigned().await;
    for (encoded, decoded) in encoded.take(10).await.into_iter().zip(decoded.take(10).await) {
        let Some(Content::Value(value)) = encoded.content else { panic!("no bytes: {encoded:?}") };
        let Some(Content::Change(change)) = decoded.content else { panic!("no change: {decoded:?}") };
        assert_eq!(Change::decode(value).unwrap(), change);
        assert!(matches!(change.event, Some(Event::Row(_))), "{change:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_several_topics_come_whole_and_in_order() {
    let stage = Stage::start(&["--partitions", "8", "--partition-by", "key"]).await;
    let mut stream = stage.subscribe(everything()).await;
    assert_eq!(stream.assigned().await.partitions.len(), 8);
    let mut ids = BTreeSet::new();
    let mut next = [0; 8];
    for round in 0..5 {
        stage.insert(round * 3_000 + 1..=(round + 1) * 3_000, 50).await;
        while ids.len() < (round as usize + 1) * 3_000 {
            let records = stream.records().await;
            let next = &mut next[records.partition as usize];
            for record in &records.records {
                assert_eq!(record.offset, *next);
                *next += 1;
                assert!(ids.insert(id(record)));
            }
            assert!(*next <= records.high_watermark);
        }
    }
}
