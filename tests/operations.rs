//! What operators watch is there, and the page that explains it is complete.

#![allow(clippy::expect_used, reason = "what fails here is the test")]

use std::collections::{BTreeMap, BTreeSet};

use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const PAGE: &str = include_str!("../docs/operations.md");
const ALERTS: &str = include_str!("../deploy/prometheus/alerts.yaml");
const DASHBOARD: &str = include_str!("../deploy/grafana/millrace.json");
/// The labels that Prometheus adds.
const TARGET: [&str; 2] = ["instance", "job"];

/// The metrics of a broker that has captured ten changes, of which the group `auditors` has committed four.
async fn scrape() -> String {
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
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_explained_and_every_explained_metric_is_there() {
    let metrics = scrape().await;
    let served: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let explained: BTreeSet<&str> = PAGE
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|code| code.split('{').next().unwrap_or(code))
        .filter(|code| is_ours(code) && !code.contains('<'))
        .collect();
    assert_eq!(served, explained, "docs/operations.md (right) and /metrics (left) differ");

    assert_eq!(value(&metrics, r#"millrace_task_changes_total{task="shop"}"#), 10.0);
    assert_eq!(value(&metrics, r#"millrace_task_state{task="shop",state="running"}"#), 1.0);
    assert_eq!(value(&metrics, r#"millrace_group_lag{group="auditors",topic="shop",partition="0"}"#), 6.0);
    assert!(value(&metrics, r#"millrace_log_fsync_seconds_count{task="shop"}"#) >= 1.0);
    assert!(metrics.contains(r#"millrace_log_fsync_seconds_bucket{task="shop",le="0.01"}"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_ask_for_metrics_labels_and_states_that_exist() {
    let metrics = scrape().await;
    let mut series = BTreeMap::<&str, BTreeSet<&str>>::new();
    for line in metrics.lines().filter(|line| !line.is_empty()) {
        let line = line.strip_prefix("# TYPE ").unwrap_or(line);
        let name = line.split(['{', ' ']).next().unwrap_or(line);
        series.entry(name).or_default().extend(matchers(&line[name.len()..]).map(|(label, _)| label));
    }
    let states: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("millrace_task_state{"))
        .filter_map(|line| line.split("state=\"").nth(1)?.split('"').next())
        .collect();

    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("a dashboard");
    let mut texts = vec![ALERTS];
    collect_texts(&dashboard, &mut texts);
    let mut used = BTreeSet::new();
    for text in texts {
        for (name, rest) in words(text).filter(|(word, _)| is_ours(word)) {
            let labels = series.get(name).unwrap_or_else(|| panic!("there is no metric {name}: {text}"));
            used.insert(name);
            for (label, value) in matchers(rest) {
                assert!(labels.contains(label) || TARGET.contains(&label), "{name} has no label {label}");
                if label == "state" {
                    assert!(value.split('|').all(|state| states.contains(state)), "{name}: no state {value}");
                }
            }
        }
        for label in labels_named_in(text) {
            let known = series.values().any(|labels| labels.contains(label));
            assert!(known || TARGET.contains(&label), "no metric has the label {label}: {text}");
        }
    }
    assert!(used.len() > 20, "only these were found: {used:?}");
}

/// Whether a name is one of our metrics: ours by name, or one that every process has.
fn is_ours(name: &str) -> bool {
    name.starts_with("millrace_") || name.starts_with("process_")
}

/// All strings of a JSON value.
fn collect_texts<'a>(value: &'a serde_json::Value, texts: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => texts.push(text),
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

/// Words, each with what follows it.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(is_letter)?..];
        let (word, after) = rest.split_at(rest.find(|c| !is_letter(c)).unwrap_or(rest.len()));
        rest = after;
        Some((word, after))
    })
}

/// The labels and values in the braces that a text begins with.
fn matchers(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside = text.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
    inside.split(',').filter_map(|matcher| {
        let (label, value) = matcher.trim().split_once('=')?;
        Some((label, value.trim_start_matches('~').trim_matches('"')))
    })
}

/// The labels by which queries group and match, and which texts show.
fn labels_named_in(text: &str) -> impl Iterator<Item = &str> {
    let groups = ["by (", "on ("].into_iter().flat_map(|start| text.split(start).skip(1));
    let grouped = groups.filter_map(|rest| rest.split(')').next()).flat_map(|labels| labels.split(", "));
    let shown = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    let shown = shown.map(|name| name.trim().trim_start_matches("$labels."));
    grouped.chain(shown.filter(|name| !name.starts_with("$value"))).filter(|label| *label != "le")
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
