//! Which tables a task tracks.

use std::time::{Duration, Instant};

use millrace_test_support::PostgresOptions;
use serde_json::json;

use crate::stage::{Stage, rows};

impl Stage {
    /// Waits until exactly these tables are published, `schema.name` by name.
    async fn published(&self, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let published = self
                .ask(
                    "SELECT coalesce(string_agg(prrelid::regclass::text, ' ' ORDER BY prrelid::regclass::text), '')
                     FROM pg_publication_rel",
                )
                .await;
            if published == expected {
                return;
            }
            assert!(Instant::now() < deadline, "published: {published}, not {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_tracks_the_tables_that_its_patterns_mean_also_when_they_are_made_renamed_or_attached_later() {
    let setup = r#"
        CREATE SCHEMA sales; CREATE SCHEMA "odd.one"; CREATE SCHEMA elsewhere;
        CREATE TABLE sales.orders (id int PRIMARY KEY); CREATE TABLE sales.tmp_1 (id int PRIMARY KEY);
        CREATE TABLE "odd.one"."A*" (id int PRIMARY KEY); CREATE TABLE "odd.one"."AB" (id int PRIMARY KEY);
        CREATE TABLE elsewhere.other (id int PRIMARY KEY);
        CREATE TABLE sales.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE elsewhere.part_1 PARTITION OF sales.parts FOR VALUES FROM (0) TO (10);
        CREATE VIEW public.v AS SELECT 1 AS id; CREATE UNLOGGED TABLE public.u (id int);"#;
    let patterns = [
        "--tables",
        "sales.*",
        "--tables",
        "\"odd.one\".\"A*\"",
        "--tables",
        "public.?",
        "--tables",
        "new_*.*",
        "--exclude",
        "*.tmp_*",
    ];
    let mut stage = Stage::start(PostgresOptions::default(), setup, &patterns).await;
    let at_first = r#""odd.one"."A*" elsewhere.part_1 sales.orders sales.parts"#;
    stage.published(at_first).await;
    let unmatched = [
        "public.? means only what cannot be captured: \"public\".\"u\" (an unlogged table), \"public\".\"v\" (a view)",
        "new_*.* means no table; a table of that name joins when it is made",
    ];
    assert_eq!(stage.task()["unmatched"], json!(unmatched));
    assert!(stage.millrace.output().contains(&format!("warning  tables: {}", unmatched.join("; "))));

    stage
        .run_each(&[
            "INSERT INTO sales.orders VALUES (1)",
            "INSERT INTO sales.tmp_1 VALUES (2)",
            r#"INSERT INTO "odd.one"."A*" VALUES (3)"#,
            r#"INSERT INTO "odd.one"."AB" VALUES (4)"#,
            "INSERT INTO elsewhere.other VALUES (5)",
            "INSERT INTO sales.parts VALUES (6)",
        ])
        .await;
    let records = stage.records().await;
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(rows(&records, "orders"), [&json!({"id": 1})]);
    assert_eq!(rows(&records, "A*"), [&json!({"id": 3})]);
    assert_eq!(rows(&records, "part_1"), [&json!({"id": 6})]);

    // A new schema, a table renamed into the selection and one out of it, a partition attached and one detached.
    stage
        .run_each(&[
            "CREATE SCHEMA new_one; CREATE TABLE new_one.t (id int PRIMARY KEY)",
            "ALTER TABLE sales.tmp_1 RENAME TO kept",
            "ALTER TABLE sales.orders RENAME TO tmp_orders",
            "ALTER TABLE sales.parts DETACH PARTITION elsewhere.part_1",
            "ALTER TABLE sales.parts ATTACH PARTITION elsewhere.other FOR VALUES FROM (0) TO (10)",
        ])
        .await;
    stage.published(r#""odd.one"."A*" elsewhere.other new_one.t sales.kept sales.parts"#).await;
    stage.caught_up().await;
    let before = stage.records().await.len();
    stage
        .run_each(&[
            "INSERT INTO new_one.t VALUES (11)",
            "INSERT INTO sales.kept VALUES (12)",
            "INSERT INTO sales.tmp_orders VALUES (13)",
            "INSERT INTO elsewhere.part_1 VALUES (9)",
            "INSERT INTO sales.parts VALUES (8)",
        ])
        .await;
    let records = stage.records().await.split_off(before);
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(rows(&records, "t"), [&json!({"id": 11})]);
    assert_eq!(rows(&records, "kept"), [&json!({"id": 12})]);
    assert_eq!(rows(&records, "other"), [&json!({"id": 8})]);

    // What is said at a later start changes nothing, and what differs is named.
    stage.millrace.add_args(&["--tables", "public.*", "--start", "snapshot"]);
    stage.millrace.restart().await;
    let output = stage.millrace.output();
    for part in [
        "--tables is sales.*, \"odd.one\".\"A*\", public.?, new_*.*, not sales.*, \"odd.one\".\"A*\", public.?, new_*.*, \
         public.*;",
        "--start is now, not snapshot;",
    ] {
        assert!(output.contains(part), "{part} is not in\n{output}");
    }
    assert!(!output.contains("--exclude is"), "{output}");
    stage.published(r#""odd.one"."A*" elsewhere.other new_one.t sales.kept sales.parts"#).await;
}
