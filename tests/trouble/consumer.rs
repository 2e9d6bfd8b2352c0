//! A consumer that stops reading costs itself: others and ingest go on, and memory has a bound (I8).

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{ApiKey, FetchRequest, RequestHeader, TopicName};
use kafka_protocol::protocol::{Encodable, StrBytes};
use millrace_test_support::{Millrace, Postgres, PostgresOptions};

use crate::stage::{caught_up, inserted};

/// A Fetch of everything from the beginning, as bytes.
fn fetch(topic: &str, max_bytes: i32) -> BytesMut {
    const VERSION: i16 = 4;
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::Fetch as i16)
        .with_request_api_version(VERSION)
        .with_client_id(Some(StrBytes::from_static_str("deaf")));
    let partition = FetchPartition::default().with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default()
        .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(max_bytes).with_topics(vec![topic]);
    let mut frame = BytesMut::zeroed(4);
    header.encode(&mut frame, ApiKey::Fetch.request_header_version(VERSION)).unwrap();
    request.encode(&mut frame, VERSION).unwrap();
    let size = frame.len() as i32 - 4;
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_stop_reading_hold_up_nobody_and_memory_stays_bounded() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, pad text)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut millrace =
        Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--codec", "none"]).await;
    let insert = async |first: i64| {
        let sql = format!(
            "INSERT INTO t SELECT g, repeat('x', 20000) FROM generate_series({first}, {}) g",
            first + 999
        );
        client.batch_execute(&sql).await.unwrap();
    };
    insert(1).await;
    caught_up(&millrace, &client).await;
    let request = fetch("shop", 16 << 20);
    let mut deaf: Vec<TcpStream> = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(("127.0.0.1", millrace.kafka_port())).unwrap();
        // As many requests as the broker takes; their answers are read by nobody.
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        for _ in 0..50 {
            if stream.write_all(&request).is_err() {
                break;
            }
        }
        deaf.push(stream);
    }
    // 60 answers of 16 MiB were asked for.
    let mut peak = 0;
    for round in 1..=3 {
        insert(1 + 1_000 * round).await;
        caught_up(&millrace, &client).await;
        peak = peak.max(resident_bytes(millrace.pid()));
    }
    assert!(peak < 500 << 20, "{} MiB of memory", peak >> 20);
    assert!(inserted(&millrace, "shop").await.into_iter().eq(1..=4_000), "other consumers go on");

    let started = Instant::now();
    millrace.sigterm();
    assert_eq!(millrace.wait().await.code(), Some(0), "{}", millrace.output());
    assert!(started.elapsed() < Duration::from_secs(8), "the end took {:?}", started.elapsed());
    drop(deaf);
}
