//! The single calls.

use millrace::proto::{
    CommitRequest, CommittedRequest, FetchRequest, ListTopicsRequest, OffsetsForTimeRequest, TopicPartition,
    TopicSelection, record::Content,
};
use millrace_test_support::read_topic;
use tonic::Code;

use crate::stage::{Stage, TOPIC, id, offset, size, whole};

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_listed_with_what_their_partitions_hold() {
    let stage = Stage::start(&["--partitions", "2", "--partition-by", "key"]).await;
    stage.insert(1..=100, 10).await;
    let mut grpc = stage.grpc().await;
    let all = grpc.list_topics(ListTopicsRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = all.topics.iter().map(|topic| &*topic.name).collect();
    assert_eq!((names, all.more), (vec!["shop", "shop.events"], false));
    let shop = &all.topics[0];
    assert_eq!((shop.id.len(), &*shop.content_type, shop.decodable), (32, "application/json", false));
    assert_eq!(shop.partitions.iter().map(|range| range.high_watermark).sum::<i64>(), 100);
    assert!(shop.partitions.iter().all(|range| range.start == 0));

    let after = ListTopicsRequest { after: TOPIC.to_owned(), ..Default::default() };
    let rest = grpc.list_topics(after).await.unwrap().into_inner();
    assert_eq!(rest.topics.len(), 1);
    let missing = ListTopicsRequest { topics: vec!["shop.evnts".to_owned()], ..Default::default() };
    let refused = grpc.list_topics(missing).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("near: shop.events, shop"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_gives_what_a_kafka_consumer_gets_within_its_limits() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=2_000, 100).await;
    stage.client.batch_execute("DELETE FROM t WHERE id = 2000").await.unwrap();
    stage.caught_up().await;
    let mut grpc = stage.grpc().await;
    let ask = FetchRequest { topic: TOPIC.to_owned(), ..Default::default() };
    let all = read_topic(&stage.millrace.bootstrap(), TOPIC).await;
    let mut next = 0;
    while next < all.len() {
        let ask = FetchRequest { offset: next as i64, ..ask.clone() };
        let records = grpc.fetch(ask).await.unwrap().into_inner().records.unwrap();
        assert_eq!((records.high_watermark, &*records.content_type), (all.len() as i64, "application/json"));
        assert!(records.records.len() <= 1_000);
        for record in records.records {
            let expected = &all[next];
            assert_eq!((record.offset, record.timestamp_ms), (expected.offset, expected.timestamp));
            assert_eq!(record.key.as_deref(), expected.raw_key.as_deref());
            let value = match &record.content {
                Some(Content::Value(value)) => Some(serde_json::from_slice(value).unwrap()),
                None => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(value, expected.value, "a tombstone is one here too");
            let headers = record.headers.iter().map(|header| {
                (header.name.clone(), String::from_utf8(header.value.clone().unwrap().to_vec()).unwrap())
            });
            assert!(headers.eq(expected.headers.iter().cloned()));
            next += 1;
        }
    }
    let few = FetchRequest { offset: 5, max_records: 3, ..ask.clone() };
    let few = grpc.fetch(few).await.unwrap().into_inner().records.unwrap().records;
    assert!(few.iter().map(id).eq(6..=8));
    let limit = size(&few[0]) + size(&few[1]);
    let small = FetchRequest { offset: 5, max_bytes: limit as u32, ..ask.clone() };
    let small = grpc.fetch(small).await.unwrap().into_inner().records.unwrap();
    assert_eq!((small.records.len(), small.bytes), (2, limit));
    let tiny = FetchRequest { offset: 5, max_bytes: 1, ..ask.clone() };
    assert_eq!(grpc.fetch(tiny).await.unwrap().into_inner().records.unwrap().records.len(), 1);
    let end = FetchRequest { offset: all.len() as i64, ..ask.clone() };
    assert_eq!(grpc.fetch(end).await.unwrap().into_inner().records.unwrap().records.len(), 0);

    let beyond = grpc.fetch(FetchRequest { offset: 5_000, ..ask.clone() }).await.unwrap_err();
    assert_eq!(beyond.code(), Code::OutOfRange);
    assert!(beyond.message().contains(&format!("it holds 0 to {}", all.len())), "{beyond}");
    let elsewhere = grpc.fetch(FetchRequest { partition: 1, ..ask.clone() }).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
    let decoded = grpc.fetch(FetchRequest { decode: true, ..ask }).await.unwrap_err();
    assert_eq!(decoded.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_for_one_answer_is_left_to_subscribe() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=1, 3 << 20).await;
    let mut grpc = stage.grpc().await;
    let ask = FetchRequest { topic: TOPIC.to_owned(), ..Default::default() };
    let refused = grpc.fetch(ask).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut subscriber = stage.subscribe(crate::stage::everything()).await;
    subscriber.assigned().await;
    assert_eq!(subscriber.take(1).await.iter().map(id).sum::<i64>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offsets_survive_a_kill() {
    let mut stage = Stage::start(&["--partitions", "2"]).await;
    let mut grpc = stage.grpc().await;
    let commit = CommitRequest {
        group: "auditors".to_owned(),
        offsets: vec![
            millrace::proto::PartitionOffset { metadata: "noted".to_owned(), ..offset(1, 7) },
            offset(2, 3),
            offset(0, -1),
        ],
    };
    let results = grpc.commit(commit).await.unwrap().into_inner().results;
    let codes: Vec<_> = results.iter().map(|result| result.error.as_ref().map(|error| error.code)).collect();
    assert_eq!(codes, [None, Some(Code::NotFound as i32), Some(Code::InvalidArgument as i32)]);
    stage.millrace.restart().await;

    let mut grpc = stage.grpc().await;
    let all = CommittedRequest { group: "auditors".to_owned(), ..Default::default() };
    let kept = grpc.committed(all.clone()).await.unwrap().into_inner().offsets;
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].partition, kept[0].offset, &*kept[0].metadata), (1, 7, "noted"));
    let one = |partition| CommittedRequest {
        partitions: vec![TopicPartition { topic: TOPIC.to_owned(), partition }],
        ..all.clone()
    };
    assert_eq!(grpc.committed(one(1)).await.unwrap().into_inner().offsets, kept);
    assert_eq!(grpc.committed(one(0)).await.unwrap().into_inner().offsets, []);
    let nameless = grpc.committed(CommittedRequest::default()).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_by_time() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=10, 10).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    stage.insert(11..=20, 10).await;
    let all = read_topic(&stage.millrace.bootstrap(), TOPIC).await;
    let mut grpc = stage.grpc().await;
    for (time_ms, offset, found) in [
        (0, 0, Some(all[0].timestamp)),
        (all[0].timestamp + 1, 10, Some(all[10].timestamp)),
        (all[19].timestamp + 1, 20, None),
    ] {
        let ask = OffsetsForTimeRequest { topics: vec![whole(TOPIC)], time_ms };
        let offsets = grpc.offsets_for_time(ask).await.unwrap().into_inner().offsets;
        assert_eq!((offsets.len(), offsets[0].offset, offsets[0].timestamp_ms), (1, offset, found));
    }
    let elsewhere = TopicSelection { topic: TOPIC.to_owned(), partitions: vec![4] };
    let ask = OffsetsForTimeRequest { topics: vec![elsewhere], time_ms: 0 };
    assert_eq!(grpc.offsets_for_time(ask).await.unwrap_err().code(), Code::NotFound);
}
