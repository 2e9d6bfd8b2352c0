//! Whatever a client sends or fails to do costs that client its connection and nobody else anything (I8).

use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiVersionsRequest, DescribeConfigsRequest, MetadataRequest, ProduceRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::Topics;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{PATIENCE, Server, frame};

async fn server(limits: Limits) -> Server {
    Server::start(Topics::default(), limits).await
}

/// A request of so many bytes: those after its fields are read over.
fn padded(length: usize) -> Vec<u8> {
    let mut padded = (length as i32).to_be_bytes().to_vec();
    padded.extend_from_slice(&frame(1, 12, &MetadataRequest::default())[4..]);
    padded.resize(4 + length, 0);
    padded
}

fn made_up_groups() -> DescribeConfigsRequest {
    let group = |number: usize| {
        DescribeConfigsResource::default()
            .with_resource_type(32)
            .with_resource_name(StrBytes::from_string(number.to_string()))
            .with_configuration_keys(None)
    };
    DescribeConfigsRequest::default().with_resources((0..60_000).map(group).collect())
}

async fn a_good_client_is_served(server: &Server) {
    let mut client = server.client().await;
    let hello = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("test"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    assert_eq!(client.call(3, &hello).await.error_code, 0);
    let metadata = client.call(12, &MetadataRequest::default().with_topics(None)).await;
    assert_eq!(metadata.brokers.len(), 1);
}

#[tokio::test]
async fn what_is_not_kafka_is_hung_up_on() {
    let server = server(Limits::default()).await;
    let mut garbage = vec![0; 4096];
    getrandom::fill(&mut garbage).unwrap();
    garbage[0] = 0;
    let inputs: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x07\x00\x12\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\x7f\xff",
        &garbage,
    ];
    for input in inputs {
        let mut client = server.client().await;
        client.send(input).await;
        // Garbage may look like the beginning of a request; then its end does not come.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await;
        client.closed().await;
    }
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn a_metadata_request_of_twenty_bytes_with_a_giant_count_costs_its_connection() {
    let server = server(Limits::default()).await;
    for count in [i32::MAX, 1 << 20, -2] {
        let mut client = server.client().await;
        let mut request = b"\x00\x00\x00\x10\x00\x03\x00\x01\x00\x00\x00\x01\x00\x02ab".to_vec();
        request.extend_from_slice(&count.to_be_bytes());
        assert_eq!(request.len(), 20);
        client.send(&request).await;
        client.closed().await;
    }
    let mut client = server.client().await;
    client
        .send(b"\x00\x00\x00\x11\x00\x03\x00\x09\x00\x00\x00\x01\xff\xff\x00\xff\xff\xff\xff\x0f\x00")
        .await;
    client.closed().await;
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn a_first_request_is_small_and_no_request_is_larger_than_the_limit() {
    let limits = Limits { first_request_bytes: 1000, request_bytes: 2000, ..Limits::default() };
    let server = server(limits).await;
    let mut client = server.client().await;
    client.send(&1001i32.to_be_bytes()).await;
    client.closed().await;
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    client.send(&2001i32.to_be_bytes()).await;
    client.closed().await;
    a_good_client_is_served(&server).await;
}

/// Many clients that announce much would otherwise fill the memory together.
#[tokio::test]
async fn large_requests_take_turns_for_their_memory() {
    const LARGE: usize = 100_000;
    let server = server(Limits { large_requests_bytes: LARGE * 3 / 2, ..Limits::default() }).await;
    let padded = padded(LARGE);

    let mut slow = server.client().await;
    slow.call(0, &ApiVersionsRequest::default()).await;
    slow.send(&padded[..LARGE]).await;
    sleep(Duration::from_millis(200)).await;
    let mut quick = server.client().await;
    quick.call(0, &ApiVersionsRequest::default()).await;
    quick.send(&padded).await;
    assert!(timeout(Duration::from_millis(300), quick.stream.peek(&mut [0])).await.is_err());
    // Small ones go on meanwhile.
    a_good_client_is_served(&server).await;
    drop(slow);
    assert!(quick.frame().await.is_some());
}

#[tokio::test]
async fn an_announced_request_takes_no_room_from_others_before_it_comes() {
    const LARGE: usize = 100_000;
    let server = server(Limits { large_requests_bytes: 2 * LARGE, ..Limits::default() }).await;
    let mut announcing = Vec::new();
    for _ in 0..3 {
        let mut client = server.client().await;
        client.call(0, &ApiVersionsRequest::default()).await;
        client.send(&(LARGE as i32).to_be_bytes()).await;
        announcing.push(client);
    }
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    client.send(&padded(LARGE)).await;
    assert!(client.frame().await.is_some());
}

#[tokio::test]
async fn a_large_answer_needs_room_and_gives_it_back() {
    let request = made_up_groups();
    let mut answers = Vec::new();
    for room in [1 << 20, 8 << 20] {
        let server = server(Limits { large_answers_bytes: room, ..Limits::default() }).await;
        let mut client = server.client().await;
        client.call(0, &ApiVersionsRequest::default()).await;
        for _ in 0..3 {
            client.send(&frame(1, 4, &request)).await;
            let Some(answer) = client.frame().await else { break };
            answers.push(answer.len());
        }
        a_good_client_is_served(&server).await;
    }
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().sum::<usize>() > 8 << 20);
}

#[tokio::test]
async fn made_up_groups_get_settings_up_to_a_bound() {
    let server = server(Limits::default()).await;
    let request = made_up_groups();
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    let results = client.call(4, &request).await.results;
    assert_eq!(results.len(), 60_000);
    let (settled, refused): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.error_code == 0);
    assert!(settled.iter().map(|result| result.configs.len()).sum::<usize>() <= 50_100);
    assert!(refused.iter().all(|result| result.error_code == 42 && result.configs.is_empty()));
}

#[tokio::test]
async fn half_a_request_and_a_close_leave_nothing_behind() {
    let server = server(Limits::default()).await;
    let whole = frame(1, 12, &MetadataRequest::default());
    for end in 0..whole.len() {
        let mut client = server.client().await;
        client.send(&whole[..end]).await;
    }
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn a_request_that_trickles_in_is_not_waited_for() {
    let limits = Limits { request_time: Duration::from_millis(200), ..Limits::default() };
    let server = server(limits).await;
    let started = Instant::now();
    let mut client = server.client().await;
    let request = frame(1, 12, &MetadataRequest::default());
    let mut answered = false;
    for byte in &request {
        client.send(&[*byte]).await;
        answered |= timeout(Duration::from_millis(20), client.stream.readable()).await.is_ok();
        if answered {
            break;
        }
    }
    client.closed().await;
    assert!(started.elapsed() >= limits.request_time);
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn an_idle_client_is_let_go() {
    let server = server(Limits { idle_time: Duration::from_millis(100), ..Limits::default() }).await;
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    client.closed().await;
}

#[tokio::test]
async fn ten_thousand_requests_at_once_are_answered_in_order() {
    let server = server(Limits::default()).await;
    let client = server.client().await;
    let (reader, mut writer) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        let mut all = BytesMut::new();
        for number in 0..10_000 {
            all.extend_from_slice(&frame(number, 1, &ApiVersionsRequest::default()));
        }
        tokio::io::AsyncWriteExt::write_all(&mut writer, &all).await.unwrap();
        writer
    });
    let reading = async {
        let mut reader = tokio::io::BufReader::new(reader);
        for number in 0..10_000 {
            use tokio::io::AsyncReadExt;
            let size = reader.read_i32().await.unwrap() as usize;
            let mut answer = vec![0; size];
            reader.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer[..4], i32::to_be_bytes(number));
        }
    };
    timeout(PATIENCE, reading).await.unwrap();
    sending.await.unwrap();
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go_and_holds_up_nobody() {
    let limits = Limits { write_stall: Duration::from_millis(500), ..Limits::default() };
    let server = server(limits).await;
    let mut deaf = server.client().await;
    let requests: BytesMut = (0..1000).flat_map(|n| frame(n, 1, &ApiVersionsRequest::default())).collect();
    let flood = async {
        // Ends when the broker hangs up: until then the answers fill the buffers, and then the requests do.
        while tokio::io::AsyncWriteExt::write_all(&mut deaf.stream, &requests).await.is_ok() {}
    };
    let others = async {
        for _ in 0..20 {
            a_good_client_is_served(&server).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, async { tokio::join!(flood, others) }).await.unwrap();
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let server = server(Limits { connections: 2, ..Limits::default() }).await;
    let (mut first, mut second) = (server.client().await, server.client().await);
    first.call(0, &ApiVersionsRequest::default()).await;
    second.call(0, &ApiVersionsRequest::default()).await;
    server.client().await.closed().await;
    drop(first);
    // The place is free once the broker has seen the close.
    let again = async {
        loop {
            let mut client = server.client().await;
            client.send(&frame(1, 0, &ApiVersionsRequest::default())).await;
            if client.frame().await.is_some() {
                break;
            }
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    second.call(0, &ApiVersionsRequest::default()).await;
}

#[tokio::test]
async fn unknown_apis_and_versions_close_and_a_future_api_versions_is_told_ours() {
    let server = server(Limits::default()).await;
    for unknown in
        [&frame(1, 13, &MetadataRequest::default())[..], &[0, 0, 0, 8, 0x7F, 0xFF, 0, 0, 0, 0, 0, 1]]
    {
        let mut request = unknown.to_vec();
        if request[5] == 3 {
            request[7] = 99;
        }
        let mut client = server.client().await;
        client.send(&request).await;
        client.closed().await;
    }
    let mut client = server.client().await;
    client.send(b"\x00\x00\x00\x0b\x00\x12\x00\x63\x00\x00\x00\x07\xff\xff\x00").await;
    let answer = client.frame().await.unwrap();
    assert_eq!(answer[..], [0, 0, 0, 7, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
    // The same connection goes on in a version that is served.
    client.call(0, &ApiVersionsRequest::default()).await;
    a_good_client_is_served(&server).await;
}

#[tokio::test]
async fn a_write_is_refused_with_a_reason_or_a_close() {
    let server = server(Limits::default()).await;
    let data = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("orders")))
        .with_partition_data(vec![PartitionProduceData::default().with_records(Some(vec![0; 100].into()))]);
    let write = ProduceRequest::default().with_acks(-1).with_topic_data(vec![data]);
    let mut client = server.client().await;
    for version in 3..=12 {
        let answer = client.call(version, &write).await;
        let refused = &answer.responses[0].partition_responses[0];
        assert_eq!(refused.error_code, 29);
        assert_eq!(refused.error_message.is_some(), version >= 8);
    }
    client.send(&frame(1, 9, &write.with_acks(0))).await;
    client.closed().await;
}

#[tokio::test]
async fn shutdown_ends_every_connection() {
    let mut server = server(Limits::default()).await;
    let mut idle = server.client().await;
    idle.call(0, &ApiVersionsRequest::default()).await;
    let mut half = server.client().await;
    half.send(&[0, 0]).await;
    server.shutdown.cancel();
    timeout(PATIENCE, &mut server.served).await.unwrap().unwrap();
    idle.closed().await;
    half.closed().await;
}
