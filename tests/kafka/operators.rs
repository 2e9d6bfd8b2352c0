//! What operators change with Kafka's tools, on the whole path: PostgreSQL, a broker that is killed, and its files.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace_test_support::{Millrace, Postgres, PostgresOptions};
use tempfile::TempDir;
use tokio_postgres::Client as Sql;

use crate::support::{Client, PATIENCE};

const TASK: &str = "shop";
const KEEPS_ALL: &[&str] =
    &["--task", TASK, "--codec", "none", "--segment-mb", "1", "--retention-hours", "0"];
/// Rows of a transaction, of a kilobyte and more each.
const ROWS: i64 = 500;

struct Stage {
    _postgres: Postgres,
    sql: Sql,
    millrace: Millrace,
    data: TempDir,
    rows: i64,
}

fn name() -> StrBytes {
    StrBytes::from_static_str(TASK)
}

impl Stage {
    /// A broker with some megabytes in the log of a task.
    async fn start() -> Stage {
        let postgres = Postgres::start(PostgresOptions::default()).await;
        let sql = postgres.client().await;
        sql.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, text text)").await.unwrap();
        let data = TempDir::new().unwrap();
        let millrace = Millrace::up(data.path(), &postgres.url(), KEEPS_ALL).await;
        let mut stage = Stage { _postgres: postgres, sql, millrace, data, rows: 0 };
        for _ in 0..8 {
            stage.insert().await;
        }
        stage
    }

    async fn insert(&mut self) {
        let insert =
            "INSERT INTO t SELECT id, repeat('x', 1000) FROM generate_series($1::bigint, $2::bigint) id";
        self.sql.execute(insert, &[&self.rows, &(self.rows + ROWS - 1)]).await.unwrap();
        self.rows += ROWS;
        let lsn = self.sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        self.millrace.wait_durable(lsn.get(0)).await;
    }

    async fn kill_and_restart(&mut self) {
        self.millrace.kill9();
        self.millrace.restart().await;
    }

    async fn client(&self) -> Client {
        Client::connect(self.millrace.bootstrap()).await
    }

    /// The first offset that there is, and the end.
    async fn range(&self) -> (i64, i64) {
        let mut range = Vec::new();
        for sentinel in [-2, -1] {
            let partition = ListOffsetsPartition::default().with_timestamp(sentinel);
            let topic =
                ListOffsetsTopic::default().with_name(TopicName(name())).with_partitions(vec![partition]);
            let request = ListOffsetsRequest::default().with_topics(vec![topic]);
            range.push(self.client().await.call(7, &request).await.topics[0].partitions[0].offset);
        }
        (range[0], range[1])
    }

    async fn set_retention_bytes(&self, value: &'static str) {
        let config = AlterableConfig::default()
            .with_name(StrBytes::from_static_str("retention.bytes"))
            .with_value(Some(StrBytes::from_static_str(value)));
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(name())
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let answer = self.client().await.call(1, &request).await.responses.remove(0);
        assert_eq!((answer.error_code, answer.error_message), (0, None));
    }

    async fn retention_bytes(&self) -> String {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(name())
            .with_configuration_keys(Some(vec![StrBytes::from_static_str("retention.bytes")]));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let config = self.client().await.call(4, &request).await.results.remove(0).configs.remove(0);
        config.value.unwrap().to_string()
    }

    /// The segments of the task's log, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.data.path().join("tasks").join(TASK).join("log")).unwrap();
        let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "segment");
        let mut segments: Vec<_> =
            files.map(|file| file.unwrap().path()).filter(|path| is_segment(path)).collect();
        segments.sort();
        segments
    }

    /// Waits until the first of these segments are gone, as they are looked after behind commits.
    async fn wait_until_gone(&self, segments: &[PathBuf]) {
        let started = Instant::now();
        while segments.iter().any(|segment| segment.exists()) {
            assert!(started.elapsed() < PATIENCE, "{segments:?} do not go");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_was_set_removes_segments_and_outlives_a_kill() {
    let mut stage = Stage::start().await;
    let before = stage.segments();
    assert!(before.len() >= 4 && stage.range().await.0 == 0, "{before:?}");
    stage.set_retention_bytes("1500000").await;
    stage.insert().await;
    stage.wait_until_gone(&before[..2]).await;
    let (start, end) = stage.range().await;
    assert!(start > 0 && end == stage.rows, "{start} to {end}");

    stage.kill_and_restart().await;
    assert_eq!((stage.range().await.1, stage.retention_bytes().await.as_str()), (end, "1500000"));
    let kept = stage.segments();
    for _ in 0..4 {
        stage.insert().await;
    }
    stage.wait_until_gone(&kept[..1]).await;
    assert!(stage.range().await.0 > start);

    stage.set_retention_bytes("-1").await;
    stage.kill_and_restart().await;
    assert_eq!(stage.retention_bytes().await, "-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_deleted_stay_deleted_after_a_kill_and_give_their_space_back() {
    let mut stage = Stage::start().await;
    let before = stage.segments();
    let below = 5 * ROWS + 7;
    let partition = DeleteRecordsPartition::default().with_offset(below);
    let topic = DeleteRecordsTopic::default().with_name(TopicName(name())).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]);
    let answer = stage.client().await.call(2, &request).await.topics.remove(0).partitions.remove(0);
    assert_eq!((answer.error_code, answer.low_watermark), (0, below));
    let end = stage.rows;

    stage.kill_and_restart().await;
    assert_eq!(stage.range().await, (below, end));
    stage.wait_until_gone(&before[..2]).await;
    stage.insert().await;
    assert_eq!(stage.range().await, (below, end + ROWS));
}
