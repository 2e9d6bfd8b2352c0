//! What is sent is what was allowed, and a subscriber that does not read costs only itself.

use std::time::Duration;

use millrace::proto::Subscription;

use crate::stage::{Stage, Subscriber, credit, everything, id, size};

fn nothing_yet() -> Subscription {
    Subscription { credit: None, ..everything() }
}

#[tokio::test(flavor = "multi_thread")]
async fn not_one_record_more_is_sent_than_was_granted() {
    let stage = Stage::start(&["--partitions", "3", "--partition-by", "key"]).await;
    stage.insert(1..=5_000, 100).await;
    let mut stream = stage.subscribe(nothing_yet()).await;
    stream.assigned().await;
    stream.quiet().await;
    for records in [1, 2, 999, 1_000, 1_500] {
        stream.grant(records, 1 << 30);
        stream.take(records as usize).await;
        stream.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_granted_exactly_but_for_the_one_record_that_would_wait_for_ever() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=500, 100).await;
    let mut stream = stage.subscribe(nothing_yet()).await;
    stream.assigned().await;
    stream.grant(u64::MAX, 0);
    stream.quiet().await;
    let mut left = 0i64;
    let mut seen = 0;
    for bytes in [1, 1, 5_000, 20_000, 333, 70_000] {
        stream.grant(0, bytes);
        left += bytes as i64;
        while left > 0 {
            let records = stream.records().await;
            let sizes: Vec<_> = records.records.iter().map(size).collect();
            assert_eq!(records.bytes, sizes.iter().sum::<u64>());
            assert!(records.bytes as i64 <= left || sizes.len() == 1, "{sizes:?} with {left} left");
            left -= records.bytes as i64;
            seen += sizes.len();
        }
        stream.quiet().await;
    }
    assert!(seen < 500, "the credit was meant to end first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_stream_ends_when_its_credit_is_used() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=50, 10).await;
    let some = Subscription { credit: Some(credit(60, 1 << 20)), ..everything() };
    let mut stream = stage.subscribe(some).await;
    stream.half_close();
    stream.assigned().await;
    stream.take(50).await;
    stage.insert(51..=100, 10).await;
    assert!(stream.take(10).await.iter().map(id).eq(51..=60));
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_takes_little_memory_and_stops_nobody() {
    const ROWS: i64 = 24_000;
    let stage = Stage::start(&[]).await;
    for round in 0..6 {
        stage.insert(round * ROWS / 6 + 1..=(round + 1) * ROWS / 6, 2_000).await;
    }
    let before = resident(&stage);
    let mut stuck = Vec::new();
    for _ in 0..30 {
        stuck.push(stage.subscribe(everything()).await);
    }
    stage.wait_metric("millrace_grpc_subscribers", 30.0).await;
    let mut reader: Subscriber = stage.subscribe(everything()).await;
    reader.assigned().await;
    let mut next = 1;
    while next <= ROWS {
        for record in reader.records().await.records {
            assert_eq!(id(&record), next);
            next += 1;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let each = (resident(&stage).saturating_sub(before)) / stuck.len() as u64;
    assert!(each < 6 << 20, "{each} bytes for a subscriber that does not read");
    drop(stuck);
    drop(reader);
    stage.wait_metric("millrace_grpc_subscribers", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_large_record_unread_is_let_go_and_who_reads_it_is_not() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=3, 6 << 20).await;
    let mut reader = stage.subscribe(everything()).await;
    reader.assigned().await;
    assert!(reader.take(3).await.iter().map(id).eq(1..=3));
    let stuck = stage.subscribe(everything()).await;
    // For who has asked for one record only, nothing comes after it.
    let modest = stage.subscribe(Subscription { credit: Some(credit(1, 1)), ..everything() }).await;
    stage.wait_metric("millrace_grpc_subscribers", 3.0).await;
    tokio::time::sleep(Duration::from_secs(32)).await;
    assert_eq!(stage.metric("millrace_grpc_subscribers"), 3.0, "they have more time than that");
    tokio::time::sleep(Duration::from_secs(6)).await;
    stage.wait_metric("millrace_grpc_subscribers", 1.0).await;
    drop((stuck, modest));
    stage.insert(4..=4, 10).await;
    assert!(reader.take(1).await.iter().map(id).eq(4..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pauses_after_a_large_record_leaves_room_for_others() {
    let stage = Stage::start(&[]).await;
    // Both records are read at once, as the large one is small where it is stored.
    let large = "INSERT INTO t VALUES (1, repeat('x', 20 << 20))";
    stage.client.batch_execute(large).await.unwrap();
    stage.insert(2..=2, 10).await;
    let mut paused = Vec::new();
    for _ in 0..14 {
        let mut stream = stage.subscribe(Subscription { credit: Some(credit(1, 1)), ..everything() }).await;
        stream.assigned().await;
        stream.take(1).await;
        paused.push(stream);
    }
    let mut reader = stage.subscribe(everything()).await;
    reader.assigned().await;
    reader.take(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_does_not_keep_the_log_from_merging() {
    let stage = Stage::start(&["--codec", "none", "--segment-mb", "1"]).await;
    stage.insert(1..=1, 10).await;
    let mut paused = stage.subscribe(nothing_yet()).await;
    paused.assigned().await;
    for id in 2..=120 {
        stage.insert(id..=id, 20_000).await;
    }
    stage.wait_metric("millrace_log_unmerged_segments{task=\"shop\"}", 0.0).await;
    assert!(stage.metric("millrace_log_merged_segments_total{task=\"shop\"}") > 0.0);
    paused.grant(120, 1 << 30);
    assert!(paused.take(120).await.iter().map(id).eq(1..=120));
}

/// Memory of the broker, in bytes.
pub fn resident(stage: &Stage) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.millrace.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
