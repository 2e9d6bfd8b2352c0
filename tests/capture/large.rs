//! Rows of half a gigabyte up to a gigabyte: each test takes minutes and gigabytes of memory (`make test-large`).

use std::time::{Duration, Instant};

use millrace_test_support::PostgresOptions;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::oversized::{
    ASKS_IN_ANOTHER_FORM, SETUP, TURN, a_large_row_among_others, ids, insert_big, wait_output,
};
use crate::stage::{Stage, rows, run};
use crate::types::CASES;

/// The most memory that a process has had, in MiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// The values of a topic, by a librdkafka that takes answers as large as it can.
async fn large_values(stage: &Stage, topic: &'static str, count: usize) -> Vec<Vec<u8>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stage.millrace.bootstrap())
        .set("group.id", "large")
        .set("receive.message.max.bytes", "2147483647")
        .create()
        .unwrap();
    let read = move || {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        let mut values = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(180);
        while values.len() < count {
            match consumer.poll(Duration::from_secs(1)) {
                Some(message) => values.push(message.unwrap().payload().unwrap().to_vec()),
                None => assert!(Instant::now() < deadline, "{} of {count} records", values.len()),
            }
        }
        values
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// What a user with such rows has who raises the limits of broker and client.
async fn reaches_a_client_whole(format: &str, type_name: &str, size: usize, is_there_before: bool) {
    let _turn = TURN.lock().await;
    let content = match type_name {
        "bytea" => format!("convert_to(repeat('x', {size}), 'UTF8')"),
        _ => format!("repeat('x', {size})"),
    };
    let inserts = [(1, "'a'"), (2, &content), (3, "'b'")]
        .map(|(id, content)| format!("INSERT INTO big VALUES ({id}, {content});"));
    let mut setup = format!(
        "{} CREATE TABLE big (id int PRIMARY KEY, content {type_name});",
        crate::quick_compression!()
    );
    let mut args = vec!["--format", format, "--codec", "none", "--max-record-mb", "1400"];
    if is_there_before {
        setup += &inserts.concat();
        args.extend(["--start", "snapshot"]);
    }
    let stage = Stage::start(PostgresOptions::default(), &setup, &args).await;
    let deadline = Instant::now() + Duration::from_secs(300);
    // While a record is made it may not answer in time.
    while stage.millrace.task().is_none_or(|task| task["state"] != "running") {
        assert!(Instant::now() < deadline, "{}", stage.millrace.output());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !is_there_before {
        stage.run_each(&inserts.each_ref().map(String::as_str)).await;
    }
    stage.caught_up().await;
    let (ours, pid) = (peak(stage.millrace.pid()), stage.millrace.pid());
    let mut values = large_values(&stage, "t", 3).await;
    // Existing rows come in any order.
    values.sort_by_key(Vec::len);
    println!(
        "{format} {type_name}, there before: {is_there_before}: {} MiB, {ours} MiB of memory, {} with the client's",
        size >> 20,
        peak(pid)
    );
    let large = &values[2];
    assert!(values[1].len() < 10_000);
    let (piece, length): (&[u8], _) = match (format, type_name) {
        ("debezium-json", "bytea") => (b"eHh4", size / 3 * 4),
        _ => (b"xxxx", size),
    };
    assert!(large.len() > length && large.len() < length + 10_000, "{}", large.len());
    let pieces = piece.repeat(1 << 18);
    let start = large.windows(pieces.len()).position(|window| *window == *pieces).unwrap();
    let mut chunks = large[start..start + length].chunks(pieces.len());
    assert!(chunks.all(|chunk| *chunk == pieces[..chunk.len()]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 3 GB of memory"]
async fn a_bytea_of_half_a_gigabyte_reaches_a_client_whole_in_both_formats() {
    reaches_a_client_whole("protobuf", "bytea", 560_000_000, false).await;
    reaches_a_client_whole("debezium-json", "bytea", 560_000_001, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 5 GB of memory"]
async fn rows_of_nearly_a_gigabyte_reach_a_client_whole() {
    reaches_a_client_whole("protobuf", "bytea", 1_000_000_000, false).await;
    reaches_a_client_whole("debezium-json", "text", 1_000_000_000, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 5 GB of memory"]
async fn existing_rows_of_700_mb_and_nearly_a_gigabyte_reach_a_client_whole() {
    reaches_a_client_whole("protobuf", "text", 700_000_000, true).await;
    reaches_a_client_whole("protobuf", "bytea", 1_000_000_000, true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 3 GB of memory"]
async fn rows_of_every_type_are_the_same_beside_a_row_too_large_for_text() {
    a_large_row_among_others(&CASES.iter().collect::<Vec<_>>()).await;
}

/// With its old row a change has twice the size.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 3 GB of memory"]
async fn an_update_of_more_than_a_gigabyte_with_its_old_row_fails_the_task_and_is_not_tried_for_ever() {
    let _turn = TURN.lock().await;
    let setup = format!("{SETUP} ALTER TABLE big REPLICA IDENTITY FULL; {}", insert_big(1));
    let stage = Stage::start(PostgresOptions::default(), &setup, &[]).await;
    stage.run("INSERT INTO other VALUES (1)").await;
    stage.run("UPDATE big SET content = content || 'y'").await;
    let reason = stage.millrace.wait_state("failed").await;
    for part in ["neither as text nor as binary", "public.big", "SELECT pg_replication_slot_advance("] {
        assert!(reason.contains(part), "{part} is missing: {reason}");
    }
    assert_eq!(stage.millrace.output().matches(ASKS_IN_ANOTHER_FORM).count(), 1);
}

/// Streamed while it runs, the large row is met before its transaction has ended, and others commit meanwhile.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes 3 GB of memory"]
async fn a_row_too_large_for_text_in_a_streamed_transaction_waits_for_its_end() {
    let _turn = TURN.lock().await;
    let options = PostgresOptions::default().setting("logical_decoding_work_mem", "64kB");
    let stage = Stage::with_outputs(options, SETUP, r#"{"oversized":"placeholder"}"#).await;
    let writer = stage.postgres.client().await;
    run(&writer, &format!("BEGIN; INSERT INTO other SELECT generate_series(100, 3000); {}", insert_big(1)))
        .await;
    stage.run("INSERT INTO other VALUES (1)").await;
    wait_output(&stage, ASKS_IN_ANOTHER_FORM, 1).await;
    stage.run("INSERT INTO other VALUES (2)").await;
    stage.caught_up().await;
    run(&writer, "COMMIT").await;
    stage.run("INSERT INTO other VALUES (3)").await;
    let records = stage.records().await;
    let expected: Vec<i64> = [1, 2].into_iter().chain(100..=3000).chain([3]).collect();
    assert_eq!(ids(&rows(&records, "other")), expected);
    assert_eq!(ids(&rows(&records, "big")), [1]);
}
