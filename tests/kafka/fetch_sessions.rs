//! Fetch sessions (KIP-227): what a client need not say again, and is not told again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::{Topic, TopicId, Topics};
use tokio::time::Instant;
use uuid::Uuid;

use crate::memory_log::{Append, MemoryLog, one};
use crate::support::Server;

const MIB: i32 = 1 << 20;
const FOREVER: i32 = 60_000;

struct Broker {
    server: Server,
    topics: Topics,
    topic: Topic,
    log: Arc<MemoryLog>,
}

async fn broker(partitions: u32) -> Broker {
    let (log, topic) = MemoryLog::with_topic("orders", partitions);
    let topics = Topics::default();
    topics.insert(topic.clone());
    let server = Server::start(topics.clone(), Limits::default()).await;
    Broker { server, topics, topic, log }
}

/// A request of a session that asks for these partitions of `orders` from these offsets on.
fn asks(version: i16, session: i32, epoch: i32, wanted: &[(i32, i64)]) -> FetchRequest {
    let partition = |(index, from): &(i32, i64)| {
        FetchPartition::default()
            .with_partition(*index)
            .with_fetch_offset(*from)
            .with_partition_max_bytes(MIB)
    };
    let mut topic = FetchTopic::default().with_partitions(wanted.iter().map(partition).collect());
    match version {
        13.. => topic.topic_id = Uuid::from_u128(77),
        _ => topic.topic = TopicName(StrBytes::from_static_str("orders")),
    }
    let topics = if wanted.is_empty() { vec![] } else { vec![topic] };
    FetchRequest::default()
        .with_min_bytes(1)
        .with_max_bytes(50 * MIB)
        .with_session_id(session)
        .with_session_epoch(epoch)
        .with_topics(topics)
}

fn forget(request: FetchRequest, version: i16, partitions: Vec<i32>) -> FetchRequest {
    let mut topic = ForgottenTopic::default().with_partitions(partitions);
    match version {
        13.. => topic.topic_id = Uuid::from_u128(77),
        _ => topic.topic = TopicName(StrBytes::from_static_str("orders")),
    }
    request.with_forgotten_topics_data(vec![topic])
}

/// Number, error, high watermark and bytes of each partition in an answer.
fn told(response: &FetchResponse) -> Vec<(i32, i16, i64, usize)> {
    let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
    partitions
        .map(|one| {
            let records = one.records.as_ref().expect("records are never null").len();
            (one.partition_index, one.error_code, one.high_watermark, records)
        })
        .collect()
}

#[tokio::test]
async fn a_client_says_and_is_told_only_what_changes_whichever_connection_it_uses() {
    for version in 7..=18 {
        let Broker { server, log, .. } = &broker(4).await;
        log.commit(&[one(1)]);
        let mut client = server.client().await;
        let all = [(0, 0), (1, 0), (2, 0)];
        let first = client.call(version, &asks(version, 0, 0, &all)).await;
        let id = first.session_id;
        assert!(id > 0);
        assert_eq!(told(&first), [(0, 0, 0, 0), (1, 0, 1, 100), (2, 0, 0, 0)], "version {version}");

        let moved = client.call(version, &asks(version, id, 1, &[(1, 1)])).await;
        assert_eq!((moved.error_code, moved.session_id, told(&moved)), (0, id, vec![]));

        // Partition 0 gets a record, 3 is added, and 2 is not asked for any more.
        log.commit(&[one(0), one(2)]);
        let mut other = server.client().await;
        let request = forget(asks(version, id, 2, &[(3, 0)]), version, vec![2]);
        assert_eq!(told(&other.call(version, &request).await), [(0, 0, 1, 100), (3, 0, 0, 0)]);

        // The start moves.
        log.expire(1, 1);
        let response = client.call(version, &asks(version, id, 3, &[(0, 1)])).await;
        assert_eq!(told(&response), [(1, 0, 1, 0)]);
        let response = client.call(version, &asks(version, id, 4, &[])).await;
        assert_eq!(told(&response), []);
    }
}

#[tokio::test]
async fn a_session_that_is_not_as_the_client_believes_is_an_error() {
    let Broker { server, .. } = &broker(2).await;
    let mut client = server.client().await;
    let all = [(0, 0), (1, 0)];
    let mut refused = async |version, id, epoch| {
        let response = client.call(version, &asks(version, id, epoch, &[])).await;
        assert!(response.responses.is_empty());
        (response.error_code, response.session_id)
    };
    assert_eq!(refused(12, 0, 1).await, (70, 0));
    assert_eq!(refused(12, 4711, 1).await, (70, 0));
    let mut other = server.client().await;
    let id = other.call(12, &asks(12, 0, 0, &all)).await.session_id;
    assert_eq!(refused(12, id, 2).await, (71, 0));
    assert_eq!(refused(13, id, 1).await, (106, 0));
    assert_eq!(refused(12, id, 1).await, (0, id));
    assert_eq!(refused(12, id, 1).await, (71, 0));
    // A full request ends the session, and makes another, or none.
    let next = other.call(12, &asks(12, id, 0, &all)).await.session_id;
    assert!(next != id && next > 0);
    assert_eq!(refused(12, id, 2).await, (70, 0));
    assert_eq!(other.call(12, &asks(12, next, -1, &all)).await.session_id, 0);
    assert_eq!(refused(12, next, 1).await, (70, 0));
    // So does the loss of the last partition.
    let id = other.call(13, &asks(13, 0, 0, &all)).await.session_id;
    let empty = forget(asks(13, id, 1, &[]), 13, vec![0, 1]);
    assert_eq!(other.call(13, &empty).await.session_id, 0);
    assert_eq!(refused(13, id, 2).await, (70, 0));
}

#[tokio::test]
async fn a_session_waits_for_records_and_is_told_of_their_partition_alone() {
    let Broker { server, log, .. } = &broker(3).await;
    let mut client = server.client().await;
    let all = [(0, 0), (1, 0), (2, 0)];
    let id = client.call(13, &asks(13, 0, 0, &all)).await.session_id;
    let began = Instant::now();
    let nothing = client.call(13, &asks(13, id, 1, &[]).with_max_wait_ms(300)).await;
    assert!(told(&nothing).is_empty() && began.elapsed() >= Duration::from_millis(300));

    let parked = client.request(13, &asks(13, id, 2, &[]).with_max_wait_ms(FOREVER)).await;
    while log.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.reads.load(Ordering::Relaxed), 0);
    log.commit(&[one(1)]);
    let response = client.answer::<FetchRequest>(13, parked).await;
    assert_eq!(told(&response), [(1, 0, 1, 100)]);
}

#[tokio::test]
async fn an_error_is_told_each_time_and_its_end_too() {
    let Broker { server, log, .. } = &broker(2).await;
    let mut client = server.client().await;
    log.commit(&[one(0)]);
    let id = client.call(13, &asks(13, 0, 0, &[(0, 1), (1, 5)])).await.session_id;
    for epoch in 1..3 {
        let failed = client.call(13, &asks(13, id, epoch, &[]).with_max_wait_ms(FOREVER)).await;
        assert_eq!(told(&failed), [(1, 1, -1, 0)]);
    }
    let mended = client.call(13, &asks(13, id, 3, &[(1, 0)])).await;
    assert_eq!(told(&mended), [(1, 0, 0, 0)]);
    assert_eq!(told(&client.call(13, &asks(13, id, 4, &[])).await), []);
}

#[tokio::test]
async fn a_topic_made_anew_is_another_one_to_a_session_that_knows_the_first_by_its_id() {
    let broker = broker(1).await;
    let mut client = broker.server.client().await;
    let by_id = client.call(13, &asks(13, 0, 0, &[(0, 0)])).await.session_id;
    let by_name = client.call(12, &asks(12, 0, 0, &[(0, 0)])).await.session_id;
    broker.topics.remove(broker.topic.id);
    let again = MemoryLog::with_topic("orders", 1).0;
    again.commit(&[one(0)]);
    broker.topics.insert(Topic { id: TopicId(78), log: again, ..broker.topic });
    for epoch in 1..3 {
        let gone = client.call(13, &asks(13, by_id, epoch, &[])).await;
        assert_eq!(told(&gone), [(0, 100, -1, 0)]);
        assert_eq!(gone.responses[0].topic_id, Uuid::from_u128(77));
    }
    assert_eq!(told(&client.call(12, &asks(12, by_name, 1, &[])).await), [(0, 0, 1, 100)]);
}

#[tokio::test]
async fn partitions_take_turns_where_an_answer_has_room_for_one() {
    let Broker { server, log, .. } = &broker(3).await;
    for _ in 0..4 {
        log.commit(&[0, 1, 2].map(|partition| Append { size: 1000, ..one(partition) }));
    }
    let mut client = server.client().await;
    let first = client.call(13, &asks(13, 0, 0, &[(0, 0), (1, 0), (2, 0)]).with_max_bytes(1000)).await;
    let id = first.session_id;
    let mut offsets = [0; 3];
    let mut turns = Vec::new();
    let mut response = first;
    for epoch in 1..12 {
        let mut changed = Vec::new();
        for (index, _, _, records) in told(&response) {
            if records > 0 {
                offsets[index as usize] += 1;
                turns.push(index);
                changed.push((index, offsets[index as usize]));
            }
        }
        assert_eq!(changed.len(), 1);
        response = client.call(13, &asks(13, id, epoch, &changed).with_max_bytes(1000)).await;
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]);
}

#[tokio::test]
async fn a_request_that_another_of_its_session_overtakes_is_answered_at_once_with_an_error() {
    let Broker { server, log, .. } = &broker(1).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    let id = client.call(12, &asks(12, 0, 0, &[(0, 0)])).await.session_id;
    let parked = client.request(12, &asks(12, id, 1, &[]).with_max_wait_ms(FOREVER)).await;
    while log.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    other.call(12, &asks(12, id, 2, &[])).await;
    let late = client.answer::<FetchRequest>(12, parked).await;
    assert_eq!((late.error_code, late.session_id, late.responses.len()), (71, id, 0));
    // So does a full request that ends the session.
    let parked = client.request(12, &asks(12, id, 3, &[]).with_max_wait_ms(FOREVER)).await;
    while log.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    let next = other.call(12, &asks(12, id, 0, &[(0, 0)])).await.session_id;
    assert_eq!(client.answer::<FetchRequest>(12, parked).await.error_code, 71);
    log.commit(&[one(0)]);
    assert_eq!(told(&other.call(12, &asks(12, next, 1, &[])).await), [(0, 0, 1, 100)]);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_its_session_usable() {
    let Broker { server, log, .. } = &broker(1).await;
    let mut client = server.client().await;
    let id = client.call(12, &asks(12, 0, 0, &[(0, 0)])).await.session_id;
    client.request(12, &asks(12, id, 1, &[]).with_max_wait_ms(FOREVER)).await;
    while log.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
    log.commit(&[one(0)]);
    // Only the client knows whether it was answered; this one goes on.
    let mut client = server.client().await;
    assert_eq!(told(&client.call(12, &asks(12, id, 2, &[])).await), [(0, 0, 1, 100)]);
}
