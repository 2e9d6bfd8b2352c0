//! What operators watch is there, and the page that explains it is complete.

#![allow(clippy::expect_used, reason = "what fails here is the test")]

use std::collections::BTreeSet;

use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const PAGE: &str = include_str!("../docs/operations.md");

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_explained_and_every_explained_metric_is_there() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let session = postgres.client().await;
    session.batch_execute("CREATE TABLE events (id int PRIMARY KEY)").await.expect("a table");
    let data_dir = tempfile::tempdir().expect("a data directory");
    let options = MillraceOptions::new(data_dir.path(), &postgres.url()).args(&["--task", "shop"]);
    let millrace = Millrace::start(options.env("MILLRACE_ALLOW_PLAINTEXT", "1")).await;
    session.batch_execute("INSERT INTO events SELECT generate_series(1, 10)").await.expect("rows");
    let lsn = session.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position");
    millrace.wait_durable(lsn.get(0)).await;
    let bootstrap = millrace.bootstrap();
    tokio::task::spawn_blocking(move || commit(&bootstrap, "shop", 4)).await.expect("commits");

    let (status, metrics) = millrace.get("/metrics").expect("an answer");
    assert_eq!(status, 200);
    let served: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let explained: BTreeSet<&str> = PAGE
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|code| code.split('{').next().unwrap_or(code))
        .filter(|code| code.starts_with("millrace_") && !code.contains('<'))
        .collect();
    assert_eq!(served, explained, "docs/operations.md (right) and /metrics (left) differ");

    assert_eq!(value(&metrics, r#"millrace_task_changes_total{task="shop"}"#), 10.0);
    assert_eq!(value(&metrics, r#"millrace_task_state{task="shop",state="running"}"#), 1.0);
    assert_eq!(value(&metrics, r#"millrace_group_lag{group="auditors",topic="shop",partition="0"}"#), 6.0);
    assert!(value(&metrics, r#"millrace_log_fsync_seconds_count{task="shop"}"#) >= 1.0);
    assert!(metrics.contains(r#"millrace_log_fsync_seconds_bucket{task="shop",le="0.01"}"#), "{metrics}");
}

/// Commits an offset of partition 0 for the group `auditors`.
fn commit(bootstrap: &str, topic: &str, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "auditors")
        .create()
        .expect("a consumer");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
    consumer.commit(&offsets, CommitMode::Sync).expect("a commit");
}

/// The value of a line of the metrics page.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().expect("a number")
}
