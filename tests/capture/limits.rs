//! Rows that are large, and rows that are too large.

use std::time::{Duration, Instant};

use millrace_test_support::PostgresOptions;

use crate::stage::{Stage, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_20_mb_arrives_and_one_of_40_mb_stops_the_task_with_table_position_and_remedy() {
    let mut stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TABLE files (id int PRIMARY KEY, content text);
         ALTER TABLE files ALTER content SET STORAGE EXTERNAL",
        &[],
    )
    .await;
    stage.run("INSERT INTO files VALUES (1, repeat('0123456789', 2097152))").await;
    let records = stage.records().await;
    assert_eq!(rows(&records, "files")[0]["content"].as_str().unwrap().len(), 20 << 20);

    // What is committed before it is still captured, in the same breath.
    stage
        .run_each(&[
            "INSERT INTO files VALUES (2, 'before')",
            "INSERT INTO files VALUES (3, repeat('0123456789', 4194304))",
            "INSERT INTO files VALUES (4, 'after')",
        ])
        .await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let task = loop {
        let task = stage.task();
        if task["state"] == "failed" {
            break task;
        }
        assert!(Instant::now() < deadline, "{task}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let reason = task["reason"].as_str().unwrap();
    let lsn = stage.ask("SELECT pg_current_wal_lsn()::text").await;
    let high = lsn.split_once('/').unwrap().0;
    for part in ["public.files", "33554432", "--max-record-mb", &format!(" {high}/")] {
        assert!(reason.contains(part), "{part} is missing: {reason}");
    }
    let records = millrace_test_support::read_topic(&stage.millrace.bootstrap(), "t").await;
    assert_eq!(rows(&records, "files").len(), 2, "what came before it is there");

    // Restarted it fails again and says so; with the remedy it goes on where it stopped.
    stage.millrace.kill9();
    stage.millrace.add_args(&["--max-record-mb", "64"]);
    stage.millrace.restart().await;
    let records = stage.records().await;
    let sizes: Vec<usize> =
        rows(&records, "files").iter().map(|row| row["content"].as_str().unwrap().len()).collect();
    assert_eq!(sizes, [20 << 20, 6, 40 << 20, 5]);
}
