//! Fetch: limits, waiting, errors, and what of a log one answer may show.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{ApiVersionsRequest, FetchRequest, FetchResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::{Topic, TopicId, Topics};
use millrace::log::view::View;
use millrace::log::{LogReader, Offset};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::memory_log::{Append, EPOCH, MemoryLog, one};
use crate::support::{Client, PATIENCE, Server};

const MIB: i32 = 1 << 20;

async fn orders(partitions: u32) -> (Server, Arc<MemoryLog>) {
    let (log, topic) = MemoryLog::with_topic("orders", partitions);
    let topics = Topics::default();
    topics.insert(topic);
    (Server::start(topics, Limits::default()).await, log)
}

fn from(partition: i32, offset: i64) -> FetchPartition {
    FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(MIB)
}

/// A request for `orders` that does not wait.
fn fetch(version: i16, partitions: Vec<FetchPartition>) -> FetchRequest {
    let mut topic = FetchTopic::default().with_partitions(partitions);
    match version {
        13.. => topic.topic_id = Uuid::from_u128(77),
        _ => topic.topic = TopicName(StrBytes::from_static_str("orders")),
    }
    FetchRequest::default().with_min_bytes(1).with_max_bytes(50 * MIB).with_topics(vec![topic])
}

fn partitions(response: &FetchResponse) -> &[PartitionData] {
    assert_eq!(response.error_code, 0);
    &response.responses[0].partitions
}

fn size(partition: &PartitionData) -> usize {
    assert_eq!(partition.error_code, 0);
    partition.records.as_ref().expect("records are never null").len()
}

/// Base offset of the first batch.
fn base(partition: &PartitionData) -> i64 {
    let records = partition.records.as_ref().unwrap();
    i64::from_be_bytes(*records.first_chunk().unwrap())
}

/// Sends a request that is parked, and waits until it is.
async fn park(client: &mut Client, log: &MemoryLog, request: &FetchRequest) -> i32 {
    let before = log.waiting();
    let id = client.request(12, request).await;
    let parked = async {
        while log.waiting() == before {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, parked).await.unwrap();
    id
}

#[tokio::test]
async fn every_version_gets_the_stored_batches() {
    let (server, log) = orders(2).await;
    log.commit(&[one(1), Append { size: 70_000, records: 5, ..one(1) }]);
    let mut client = server.client().await;
    for version in 4..=18 {
        let response = client.call(version, &fetch(version, vec![from(0, 0), from(1, 0)])).await;
        let [empty, full] = partitions(&response) else { panic!() };
        assert_eq!((size(empty), empty.high_watermark), (0, 0), "version {version}");
        assert_eq!((size(full), full.high_watermark, full.last_stable_offset), (70_100, 6, 6));
        assert_eq!(response.session_id, 0);
    }
}

#[tokio::test]
async fn an_offset_inside_a_batch_gets_the_whole_batch() {
    let (server, log) = orders(1).await;
    log.commit(&[Append { records: 10, ..one(0) }, Append { records: 10, ..one(0) }]);
    let response = server.client().await.call(12, &fetch(12, vec![from(0, 15)])).await;
    let partition = &partitions(&response)[0];
    assert_eq!((base(partition), size(partition)), (10, 100));
}

#[tokio::test]
async fn the_first_batch_comes_however_large_and_later_ones_only_where_they_fit() {
    let (server, log) = orders(4).await;
    let large = |partition| Append { size: 5000, ..one(partition) };
    log.commit(&[large(1), large(1), large(2), one(3), one(3)]);
    let limited = |partition| from(partition, 0).with_partition_max_bytes(150);
    let request = fetch(12, vec![limited(0), limited(1), limited(2), limited(3)]);
    let mut client = server.client().await;
    let sizes = |response: &FetchResponse| partitions(response).iter().map(size).collect::<Vec<_>>();
    assert_eq!(sizes(&client.call(12, &request).await), [0, 5000, 0, 100]);
    // A limit on the whole answer holds over partitions, and for the first batch neither.
    assert_eq!(sizes(&client.call(12, &request.with_max_bytes(10)).await), [0, 5000, 0, 0]);
}

#[tokio::test]
async fn without_data_an_answer_comes_after_max_wait_and_not_before() {
    let (server, _log) = orders(1).await;
    let mut client = server.client().await;
    for (wait, least) in [(0, 0), (-1, 0), (300, 300)] {
        let started = Instant::now();
        let response = client.call(12, &fetch(12, vec![from(0, 0)]).with_max_wait_ms(wait)).await;
        assert_eq!(size(&partitions(&response)[0]), 0);
        assert!(started.elapsed() >= Duration::from_millis(least));
        assert!(started.elapsed() < Duration::from_millis(least) + Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_parked_request_is_answered_by_a_commit_to_its_partition_and_reads_nothing_for_others() {
    let (server, log) = orders(2).await;
    let mut client = server.client().await;
    let request = fetch(12, vec![from(0, 0)]).with_max_wait_ms(60_000);
    let id = park(&mut client, &log, &request).await;
    for _ in 0..10 {
        log.commit(&[one(1)]);
        tokio::task::yield_now().await;
    }
    assert_eq!(log.reads.load(Ordering::Relaxed), 0);
    log.commit(&[one(0)]);
    let response: FetchResponse = client.answer::<FetchRequest>(12, id).await;
    assert_eq!(size(&partitions(&response)[0]), 100);
    assert_eq!(log.reads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn less_than_min_bytes_is_waited_for() {
    let (server, log) = orders(2).await;
    log.commit(&[one(0)]);
    let mut client = server.client().await;
    let request = fetch(12, vec![from(0, 0), from(1, 0)]).with_max_wait_ms(60_000).with_min_bytes(300);
    let id = park(&mut client, &log, &request).await;
    log.commit(&[one(1)]);
    log.commit(&[one(0), one(1)]);
    let response = client.answer::<FetchRequest>(12, id).await;
    assert_eq!(partitions(&response).iter().map(size).sum::<usize>(), 400);
    // More than may be sent is not waited for.
    let most =
        fetch(12, vec![from(0, 0)]).with_max_wait_ms(60_000).with_min_bytes(i32::MAX).with_max_bytes(50);
    assert_eq!(size(&partitions(&client.call(12, &most).await)[0]), 100);
}

#[tokio::test(start_paused = true)]
async fn each_of_many_who_wait_sleeps_through_commits_and_is_no_longer_counted_when_it_has_what_is_new() {
    let (log, topic) = MemoryLog::with_topic("orders", 1);
    let _others: Vec<_> = (0..99).map(|_| log.watch()).collect();
    let mut view = View::default();
    let place = view.find(&topic, 0).unwrap();
    let began = Instant::now();
    log.commit(&[one(0)]);
    view.changed().await;
    assert_eq!(view.range(place).end, Offset(1));
    let waited = began.elapsed().as_millis();
    assert!((42..50).contains(&waited), "{waited} ms");
    assert_eq!(log.waiting(), 99);
    // Who has waited for longer is not kept.
    tokio::time::advance(Duration::from_secs(1)).await;
    log.commit(&[one(0)]);
    let began = Instant::now();
    view.changed().await;
    assert_eq!((view.range(place).end, began.elapsed()), (Offset(2), Duration::ZERO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_transaction_over_three_partitions_is_seen_whole_or_not_at_all() {
    // I1
    let (server, log) = orders(3).await;
    let writer = tokio::spawn(async move {
        for _ in 0..2000 {
            log.commit(&[one(0), one(1), one(2)]);
            tokio::task::yield_now().await;
        }
    });
    let mut client = server.client().await;
    let mut seen = 0;
    while seen < 2000 {
        let wanted = (0..3).map(|partition| from(partition, seen)).collect();
        let response = client.call(12, &fetch(12, wanted).with_max_wait_ms(60_000)).await;
        let ends: Vec<i64> = partitions(&response).iter().map(|partition| partition.high_watermark).collect();
        assert!(ends.iter().all(|end| *end == ends[0] && *end > seen), "{ends:?}");
        let sizes: Vec<usize> = partitions(&response).iter().map(size).collect();
        assert_eq!(sizes, [(ends[0] - seen) as usize * 100; 3]);
        seen = ends[0];
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_request_parked_on_a_topic_that_is_deleted_is_told_so() {
    for (version, error) in
        [(12, ResponseError::UnknownTopicOrPartition), (18, ResponseError::UnknownTopicId)]
    {
        let (server, log) = orders(2).await;
        log.commit(&[one(1)]);
        let mut client = server.client().await;
        let wanted = vec![from(0, 0), from(1, 1)];
        let before = log.waiting();
        let id = client.request(version, &fetch(version, wanted).with_max_wait_ms(60_000)).await;
        while log.waiting() == before {
            sleep(Duration::from_millis(1)).await;
        }
        log.forget(0);
        log.forget(1);
        let response = timeout(PATIENCE, client.answer::<FetchRequest>(version, id)).await.unwrap();
        for partition in partitions(&response) {
            assert!(partition.error_code == error.code() || partition.partition_index == 1, "{partition:?}");
        }
        let gone = client.call(12, &fetch(12, vec![from(1, 1)])).await;
        assert_eq!(partitions(&gone)[0].error_code, ResponseError::UnknownTopicOrPartition.code());
    }
}

#[tokio::test]
async fn closing_drops_a_parked_request() {
    let (server, log) = orders(1).await;
    let mut client = server.client().await;
    park(&mut client, &log, &fetch(12, vec![from(0, 0)]).with_max_wait_ms(i32::MAX)).await;
    drop(client);
    let dropped = async {
        while log.waiting() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, dropped).await.unwrap();
}

#[tokio::test]
async fn requests_behind_a_parked_one_are_answered_after_it() {
    let (server, log) = orders(1).await;
    let mut client = server.client().await;
    let parked = park(&mut client, &log, &fetch(12, vec![from(0, 0)]).with_max_wait_ms(60_000)).await;
    let behind = client.request(0, &ApiVersionsRequest::default()).await;
    log.commit(&[one(0)]);
    client.answer::<FetchRequest>(12, parked).await;
    client.answer::<ApiVersionsRequest>(0, behind).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_parked_request() {
    let (mut server, log) = orders(1).await;
    let mut client = server.client().await;
    park(&mut client, &log, &fetch(12, vec![from(0, 0)]).with_max_wait_ms(i32::MAX)).await;
    server.shutdown.cancel();
    timeout(PATIENCE, &mut server.served).await.unwrap().unwrap();
    client.closed().await;
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_do_not_wait() {
    let (server, log) = orders(2).await;
    log.commit(&[one(0), one(0), one(0)]);
    log.expire(0, 1);
    let mut client = server.client().await;
    let mut wanted = vec![from(0, 0), from(0, 4), from(2, 0), from(-1, 0)];
    wanted.push(from(0, 1).with_current_leader_epoch(EPOCH - 1));
    wanted.push(from(0, 1).with_current_leader_epoch(EPOCH + 1));
    wanted.push(from(0, 1).with_current_leader_epoch(EPOCH));
    let response = client.call(12, &fetch(12, wanted).with_max_wait_ms(60_000)).await;
    let errors: Vec<i16> = partitions(&response).iter().map(|partition| partition.error_code).collect();
    assert_eq!(errors, [1, 1, 74, 75, 0, 3, 3]);

    // Partitions that there are not come last, and others are waited for.
    let began = Instant::now();
    let response = client.call(12, &fetch(12, vec![from(7, 0), from(0, 3)]).with_max_wait_ms(300)).await;
    let errors: Vec<_> =
        partitions(&response).iter().map(|one| (one.partition_index, one.error_code)).collect();
    assert_eq!(errors, [(0, 0), (7, 3)]);
    assert!(began.elapsed() >= Duration::from_millis(300));

    let mut by_name = fetch(12, vec![from(0, 0)]).with_max_wait_ms(60_000);
    by_name.topics[0].topic = TopicName(StrBytes::from_static_str("nothing"));
    assert_eq!(partitions(&client.call(12, &by_name).await)[0].error_code, 3);
    let mut by_id = fetch(13, vec![from(0, 0)]).with_max_wait_ms(60_000);
    by_id.topics[0].topic_id = Uuid::from_u128(78);
    assert_eq!(partitions(&client.call(13, &by_id).await)[0].error_code, 100);

    log.broken.store(true, Ordering::Relaxed);
    let response = client.call(12, &fetch(12, vec![from(0, 1)]).with_max_wait_ms(60_000)).await;
    assert_eq!(partitions(&response)[0].error_code, 56);
}

#[tokio::test]
async fn a_parked_request_is_answered_when_its_topic_is_deleted_or_made_anew() {
    let (log, topic) = MemoryLog::with_topic("orders", 1);
    let topics = Topics::default();
    topics.insert(topic.clone());
    let server = Server::start(topics.clone(), Limits::default()).await;
    let mut client = server.client().await;
    let request = fetch(12, vec![from(0, 0)]).with_max_wait_ms(60_000);
    let id = park(&mut client, &log, &request).await;
    // Another topic is none of its business.
    topics.insert(Topic { name: "other".into(), id: TopicId(1), ..topic.clone() });
    topics.remove(topic.id);
    let response = client.answer::<FetchRequest>(12, id).await;
    assert_eq!(partitions(&response)[0].error_code, 3);

    topics.insert(topic.clone());
    let id = park(&mut client, &log, &request).await;
    let (again, _) = MemoryLog::with_topic("orders", 1);
    again.commit(&[one(0)]);
    topics.insert(Topic { id: TopicId(78), log: again, ..topic });
    let response = client.answer::<FetchRequest>(12, id).await;
    assert_eq!(size(&partitions(&response)[0]), 100);
}

#[tokio::test]
async fn a_client_with_records_of_an_epoch_that_ended_before_is_told_where_it_ended() {
    let (server, log) = orders(1).await;
    log.commit(&[Append { records: 10, ..one(0) }]);
    log.expire(0, 4);
    let mut client = server.client().await;
    let ask = |from_offset, epoch| from(0, from_offset).with_last_fetched_epoch(epoch);
    for version in 12..=18 {
        let wanted = vec![
            ask(10, EPOCH),
            ask(4, EPOCH - 1),
            ask(5, EPOCH - 1),
            ask(11, EPOCH),
            ask(3, EPOCH - 1),
            ask(5, EPOCH + 1),
        ];
        let mut told = Vec::new();
        for wanted in wanted {
            let request = fetch(version, vec![wanted]).with_min_bytes(0);
            let response = client.call(version, &request).await;
            let partition = &partitions(&response)[0];
            let end = &partition.diverging_epoch;
            told.push((partition.error_code, end.epoch, end.end_offset));
            assert!(end.epoch < 0 || partition.records.as_ref().unwrap().is_empty());
        }
        let same = (0, -1, -1);
        let expected = [same, same, (0, EPOCH - 1, 4), (0, EPOCH, 10), (1, -1, -1), (1, -1, -1)];
        assert_eq!(told, expected, "version {version}");
        // It does not wait.
        let request = fetch(version, vec![ask(11, EPOCH)]).with_max_wait_ms(60_000);
        assert_eq!(partitions(&client.call(version, &request).await)[0].diverging_epoch.end_offset, 10);
    }
}

/// KIP-951
#[tokio::test]
async fn a_client_with_an_old_leader_epoch_is_told_the_leader() {
    let (server, _log) = orders(1).await;
    let mut client = server.client().await;
    for version in [12, 15, 16, 18] {
        let old = fetch(version, vec![from(0, 0).with_current_leader_epoch(EPOCH - 1)]);
        let response = client.call(version, &old).await;
        let leader = &partitions(&response)[0].current_leader;
        let nodes: Vec<_> = response.node_endpoints.iter().map(|node| node.port).collect();
        match version {
            16.. => {
                assert_eq!((leader.leader_id.0, leader.leader_epoch), (0, EPOCH));
                assert_eq!(nodes, [i32::from(server.address.port())]);
            }
            _ => assert_eq!((leader.leader_epoch, nodes), (-1, vec![])),
        }
    }
}

#[tokio::test]
async fn aborted_transactions_are_an_empty_list_for_those_who_ask_and_otherwise_null() {
    let (server, log) = orders(1).await;
    log.commit(&[one(0)]);
    let mut client = server.client().await;
    for version in 4..=18 {
        for (committed, offset, aborted) in
            [(0, 0, None), (1, 0, Some(0)), (1, 1, Some(0)), (0, 1, None), (1, 2, None)]
        {
            let request = fetch(version, vec![from(0, offset)]).with_isolation_level(committed);
            let response = client.call(version, &request).await;
            let partition = &partitions(&response)[0];
            assert_eq!(
                partition.aborted_transactions.as_ref().map(Vec::len),
                aborted,
                "{committed} {offset}"
            );
            assert_eq!(partition.last_stable_offset, partition.high_watermark);
            assert_eq!(partition.preferred_read_replica, -1);
        }
    }
}

#[tokio::test]
async fn zstd_is_kept_from_clients_that_cannot_read_it() {
    let (server, log) = orders(1).await;
    log.commit(&[Append { codec: 4, ..one(0) }]);
    let mut client = server.client().await;
    let old = client.call(9, &fetch(9, vec![from(0, 0)])).await;
    assert_eq!(partitions(&old)[0].error_code, 76);
    let new = client.call(10, &fetch(10, vec![from(0, 0)])).await;
    assert_eq!(size(&partitions(&new)[0]), 100);
}

#[tokio::test]
async fn a_request_for_nothing_is_answered_at_once() {
    let (server, _log) = orders(1).await;
    let request = FetchRequest::default().with_min_bytes(1).with_max_wait_ms(60_000);
    assert!(server.client().await.call(12, &request).await.responses.is_empty());
}

#[tokio::test]
async fn a_request_that_names_a_partition_ten_thousand_times_costs_few_reads() {
    let (server, log) = orders(1).await;
    log.commit(&[Append { size: 5000, ..one(0) }]);
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    let many = fetch(12, vec![from(0, 0).with_partition_max_bytes(1); 10_000]);
    let response = client.call(12, &many).await;
    assert_eq!(partitions(&response).iter().map(size).sum::<usize>(), 5000);
    assert!(log.reads.load(Ordering::Relaxed) < 20);

    log.broken.store(true, Ordering::Relaxed);
    log.reads.store(0, Ordering::Relaxed);
    client.call(12, &many).await;
    assert!(log.reads.load(Ordering::Relaxed) < 20);

    // Parked, it still wakes.
    log.broken.store(false, Ordering::Relaxed);
    let wide = fetch(12, vec![from(0, 1); 10_000]).with_max_wait_ms(60_000);
    let id = park(&mut client, &log, &wide).await;
    log.commit(&[one(0)]);
    client.answer::<FetchRequest>(12, id).await;
}

#[tokio::test]
async fn clients_that_do_not_read_their_answers_do_not_keep_others_from_theirs() {
    let (server, log) = orders(1).await;
    for _ in 0..40 {
        log.commit(&[Append { size: MIB as usize, ..one(0) }]);
    }
    let all = fetch(12, vec![from(0, 0).with_partition_max_bytes(i32::MAX)]).with_max_bytes(i32::MAX);
    let mut deaf = Vec::new();
    for _ in 0..12 {
        let mut client = server.client().await;
        client.request(12, &all).await;
        deaf.push(client);
    }
    let mut client = server.client().await;
    for offset in 0..40 {
        let response = client.call(12, &fetch(12, vec![from(0, offset)])).await;
        assert_eq!(size(&partitions(&response)[0]), MIB as usize);
    }
}

/// I8: while it waits, it occupies room that other clients' large requests wait for.
#[tokio::test]
async fn a_large_request_does_not_wait_for_long() {
    let (server, _log) = orders(1).await;
    let request = fetch(12, vec![from(0, 0); 3_000]).with_session_epoch(-1).with_max_wait_ms(i32::MAX);
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    assert_eq!(partitions(&client.call(12, &request).await).len(), 3_000);
}

/// I8: what clients leave unread is bounded, however large a single batch is.
#[tokio::test]
async fn batches_that_are_over_every_limit_wait_for_memory_and_then_come() {
    const LARGE: usize = 32 * MIB as usize;
    let (server, log) = orders(1).await;
    log.commit(&[Append { size: LARGE, ..one(0) }]);
    let request = fetch(12, vec![from(0, 0).with_partition_max_bytes(1)]);
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut client = server.client().await;
        client.request(12, &request).await;
        deaf.push(client);
    }
    let mut answered = 0;
    for client in &deaf {
        answered += usize::from(timeout(Duration::from_millis(100), client.stream.readable()).await.is_ok());
    }
    assert!(answered <= 8, "{answered} answers of 32 MiB are more than the memory for answers");
    drop(deaf);
    let response = server.client().await.call(12, &request).await;
    assert_eq!(size(&partitions(&response)[0]), LARGE);
}

#[tokio::test]
async fn who_waits_for_the_memory_of_one_batch_is_answered_with_that_batch_alone() {
    const LARGE: i32 = 32 * MIB;
    let (server, log) = orders(1).await;
    log.commit(&[one(0), one(0)].map(|batch| Append { size: LARGE as usize, ..batch }));
    let request = |max_bytes| {
        let partition = from(0, 0).with_partition_max_bytes(max_bytes);
        fetch(12, vec![partition])
            .with_max_bytes(max_bytes)
            .with_min_bytes(max_bytes)
            .with_max_wait_ms(60_000)
    };
    let mut deaf = Vec::new();
    // Of 256 MiB they leave 32.
    for max_bytes in [2 * LARGE, 2 * LARGE, 2 * LARGE, LARGE] {
        let mut client = server.client().await;
        client.request(12, &request(max_bytes)).await;
        timeout(PATIENCE, client.stream.readable()).await.unwrap().unwrap();
        deaf.push(client);
    }
    let response = server.client().await.call(12, &request(2 * LARGE)).await;
    assert_eq!(size(&partitions(&response)[0]), LARGE as usize);
}
