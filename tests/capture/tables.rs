//! Tables that come, go and change while Millrace runs.

use std::time::{Duration, Instant};

use millrace_test_support::PostgresOptions;
use serde_json::{Value, json};

use crate::stage::{Stage, expect, rows};

/// What was written before a table joined is read, and nothing of it comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_later_joins_within_seconds_with_the_rows_that_it_has() {
    let stage = Stage::start(PostgresOptions::default(), "CREATE SCHEMA sales", &[]).await;
    let made = Instant::now();
    stage.run("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1); CREATE TABLE sales.far (id int)").await;
    stage.read("later", 1).await;
    let joined = made.elapsed();
    assert!(joined < Duration::from_secs(20), "joined after {joined:?}");
    stage.read("far", 1).await;
    // A transaction that is open while its table joins.
    stage.run("CREATE TABLE open (id int PRIMARY KEY)").await;
    let writer = stage.postgres.client().await;
    writer.batch_execute("BEGIN; INSERT INTO open VALUES (1)").await.unwrap();
    while stage.ask("SELECT count(*)::text FROM pg_publication_rel WHERE prrelid = 'open'::regclass").await
        == "0"
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.batch_execute("INSERT INTO open VALUES (2); COMMIT").await.unwrap();
    stage.read("open", 1).await;
    // A table made from a query.
    stage.run("CREATE TABLE copied AS SELECT 7 AS id; ALTER TABLE copied ADD PRIMARY KEY (id)").await;
    stage.read("copied", 1).await;
    stage
        .run_each(&[
            "INSERT INTO later VALUES (2)",
            "UPDATE later SET id = 3 WHERE id = 1",
            "INSERT INTO sales.far VALUES (5)",
            "UPDATE copied SET id = 8",
        ])
        .await;
    let records = stage.records().await;
    let before = records.len();
    expect(
        &records,
        &[
            r#"later {"id":1} r null {"id":1} millrace.phase=snapshot"#,
            r#"open {"id":1} r null {"id":1} millrace.phase=snapshot"#,
            r#"open {"id":2} r null {"id":2} millrace.phase=snapshot"#,
            r#"copied {"id":7} r null {"id":7} millrace.phase=snapshot"#,
            r#"later {"id":2} c null {"id":2}"#,
            r#"later {"id":1} d {"id":1} null __debezium.newkey={"id":3}"#,
            r#"{"id":1} tombstone __debezium.newkey={"id":3}"#,
            r#"later {"id":3} c null {"id":3} __debezium.oldkey={"id":1}"#,
            r#"far - c null {"id":5}"#,
            r#"copied {"id":7} d {"id":7} null __debezium.newkey={"id":8}"#,
            r#"{"id":7} tombstone __debezium.newkey={"id":8}"#,
            r#"copied {"id":8} c null {"id":8} __debezium.oldkey={"id":7}"#,
        ],
    );

    // Dropped and made anew under the same name it is another table.
    stage.run("DROP TABLE later; CREATE TABLE later (name text PRIMARY KEY)").await;
    stage.read("later", 2).await;
    stage.run("INSERT INTO later VALUES ('new')").await;
    expect(&stage.records().await[before..], &[r#"later {"name":"new"} c null {"name":"new"}"#]);
    let events = stage.events().await;
    assert!(events.iter().all(|event| event.value.as_ref().unwrap()["type"] == "snapshot"), "{events:?}");
    assert_eq!(events.len(), 10, "a beginning and an end for each joining: {events:?}");
}

/// What is written while a table stands in no publication is in no stream: its rows are read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_took_out_comes_back_with_the_rows_that_it_has() {
    let stage = Stage::start(PostgresOptions::default(), "CREATE TABLE t (id int PRIMARY KEY)", &[]).await;
    stage.run("INSERT INTO t VALUES (1)").await;
    // In one transaction, so that no poll comes between.
    stage.run("BEGIN; ALTER PUBLICATION millrace_t DROP TABLE t; INSERT INTO t VALUES (2); COMMIT").await;
    stage.read("t", 1).await;
    stage.run("INSERT INTO t VALUES (3)").await;
    let records = stage.records().await;
    let told = |id: i64| rows(&records, "t").iter().any(|row| row["id"] == id);
    assert!((1..=3).all(told), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_gains_or_loses_its_key_goes_on_and_both_are_told() {
    let stage =
        Stage::start(PostgresOptions::default(), "CREATE TABLE keyless (id int NOT NULL, note text)", &[])
            .await;
    assert_eq!(stage.insert_only(), ["keyless"]);
    stage
        .run_each(&["INSERT INTO keyless VALUES (1, 'a')", "ALTER TABLE keyless ADD PRIMARY KEY (id)"])
        .await;
    assert_eq!(stage.gap("keyless", 1).await, "table_gained_identity");
    stage
        .run_each(&["UPDATE keyless SET note = 'b'", "ALTER TABLE keyless DROP CONSTRAINT keyless_pkey"])
        .await;
    assert_eq!(stage.gap("keyless", 2).await, "table_lost_identity");
    assert_eq!(stage.insert_only(), ["keyless"]);
    stage.run_each(&["UPDATE keyless SET note = 'c'", "INSERT INTO keyless VALUES (2, 'd')"]).await;
    expect(
        &stage.records().await,
        &[
            r#"keyless - c null {"id":1,"note":"a"}"#,
            r#"keyless {"id":1} u null {"id":1,"note":"b"}"#,
            r#"keyless - c null {"id":2,"note":"d"}"#,
        ],
    );
}

/// Each row has the columns that its table had when it was written.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_has_the_shape_of_its_time() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE SCHEMA elsewhere; CREATE TYPE mood AS ENUM ('sad');
         CREATE DOMAIN small AS int;
         CREATE TABLE dropped (id small PRIMARY KEY, was small);
         CREATE TABLE t (id int PRIMARY KEY, a text, b int); CREATE TABLE other (id int PRIMARY KEY)",
        &[],
    )
    .await;
    stage
        .run_each(&[
            // The catalog knows nothing of it any more, perhaps before it is read.
            "INSERT INTO dropped VALUES (1, 2)",
            "ALTER TABLE dropped RENAME COLUMN was TO is_now",
            "INSERT INTO dropped VALUES (2, 3)",
            "DROP TABLE dropped",
            "INSERT INTO t VALUES (1, 'a', 2)",
            "ALTER TABLE t ADD COLUMN c int DEFAULT 7",
            "INSERT INTO t VALUES (2, 'a', 2)",
            "ALTER TABLE t RENAME COLUMN a TO renamed",
            "INSERT INTO t VALUES (3, 'a', 2)",
            "ALTER TABLE t ALTER COLUMN b TYPE text USING 'text ' || b",
            "INSERT INTO t VALUES (4, 'a', 'b')",
            "ALTER TABLE t DROP COLUMN c",
            "INSERT INTO t VALUES (5, 'a', 'b')",
            // Made and rolled back within a transaction that writes before, between and after.
            "BEGIN; INSERT INTO t VALUES (6, 'a', 'b'); SAVEPOINT s; ALTER TABLE t ADD COLUMN gone int;
             INSERT INTO t VALUES (7, 'a', 'b', 1); ROLLBACK TO s; INSERT INTO t VALUES (8, 'a', 'b');
             ALTER TABLE t ADD COLUMN kept mood; ALTER TYPE mood RENAME VALUE 'sad' TO 'glad';
             INSERT INTO t VALUES (9, 'a', 'b', 'glad'); COMMIT",
            "ALTER TYPE mood ADD VALUE 'new'",
            "INSERT INTO t VALUES (10, 'a', 'b', 'new')",
            "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (renamed, id)",
            "INSERT INTO t VALUES (11, 'a', 'b')",
            "ALTER TABLE t RENAME TO u",
            "INSERT INTO u VALUES (12, 'a', 'b')",
            "ALTER TABLE u SET SCHEMA elsewhere",
            "INSERT INTO elsewhere.u VALUES (13, 'a', 'b')",
            "ALTER SCHEMA elsewhere RENAME TO renamed",
            "INSERT INTO renamed.u VALUES (14, 'a', 'b')",
            "TRUNCATE renamed.u, other",
        ])
        .await;
    let records = stage.records().await;
    expect(
        &records,
        &[
            r#"dropped {"id":1} c null {"id":1,"was":2}"#,
            r#"dropped {"id":2} c null {"id":2,"is_now":3}"#,
            r#"t {"id":1} c null {"a":"a","b":2,"id":1}"#,
            r#"t {"id":2} c null {"a":"a","b":2,"c":7,"id":2}"#,
            r#"t {"id":3} c null {"b":2,"c":7,"id":3,"renamed":"a"}"#,
            r#"t {"id":4} c null {"b":"b","c":7,"id":4,"renamed":"a"}"#,
            r#"t {"id":5} c null {"b":"b","id":5,"renamed":"a"}"#,
            r#"t {"id":6} c null {"b":"b","id":6,"renamed":"a"}"#,
            r#"t {"id":8} c null {"b":"b","id":8,"renamed":"a"}"#,
            r#"t {"id":9} c null {"b":"b","id":9,"kept":"glad","renamed":"a"}"#,
            r#"t {"id":10} c null {"b":"b","id":10,"kept":"new","renamed":"a"}"#,
            r#"t {"renamed":"a","id":11} c null {"b":"b","id":11,"kept":null,"renamed":"a"}"#,
            r#"u {"renamed":"a","id":12} c null {"b":"b","id":12,"kept":null,"renamed":"a"}"#,
            r#"u {"renamed":"a","id":13} c null {"b":"b","id":13,"kept":null,"renamed":"a"}"#,
            r#"u {"renamed":"a","id":14} c null {"b":"b","id":14,"kept":null,"renamed":"a"}"#,
            r#"u - t null null"#,
            r#"other - t null null"#,
        ],
    );
    let schemas: Vec<&Value> =
        records[12..16].iter().map(|record| &record.value.as_ref().unwrap()["source"]["schema"]).collect();
    // Older servers send a schema's new name only when something else about the table has changed, or they have
    // forgotten what they sent.
    let old_name_is_right = stage.postgres.major() < 18 && schemas[2] == "elsewhere";
    assert!(old_name_is_right || schemas[2] == "renamed", "{schemas:?}");
    assert_eq!([schemas[0], schemas[1], schemas[3]], ["public", "elsewhere", "renamed"]);
}

/// The same in a transaction that is sent while it runs, so that aborted parts and their shapes come too.
#[tokio::test(flavor = "multi_thread")]
async fn shapes_changed_inside_a_streamed_transaction_hold_from_there_on() {
    let stage = Stage::streaming("CREATE TABLE t (id int PRIMARY KEY, pad text)", &[]).await;
    let fill = |first: u32, columns: &str, values: &str| {
        format!(
            "INSERT INTO t (id, pad{columns}) SELECT n, repeat('x', 100){values}
             FROM generate_series({first}, {}) n;",
            first + 999
        )
    };
    stage.run("BEGIN").await;
    stage
        .run_each(&[
            &fill(0, "", ""),
            "ALTER TABLE t ADD COLUMN first int",
            &fill(1000, ", first", ", 1"),
            "SAVEPOINT s; ALTER TABLE t ADD COLUMN aborted int; ALTER TABLE t RENAME COLUMN first TO wrong",
            &fill(2000, ", wrong, aborted", ", 2, 2"),
            "ROLLBACK TO s",
            &fill(3000, ", first", ", 3"),
            "SAVEPOINT s2; ALTER TABLE t ADD COLUMN second int",
            &fill(4000, ", second", ", 4"),
            "RELEASE s2",
            "COMMIT",
        ])
        .await;
    // A streamed transaction that changed the shape and was rolled back as a whole leaves no trace.
    stage.run("BEGIN").await;
    stage.run_each(&["ALTER TABLE t ADD COLUMN never int", &fill(5000, ", never", ", 5"), "ROLLBACK"]).await;
    stage.run("INSERT INTO t (id, second) VALUES (6000, 6)").await;
    let records = stage.records().await;
    assert_eq!(records.len(), 4001);
    let mut ids = (0..2000).chain(3000..5000).chain([6000]);
    for row in rows(&records, "t") {
        let id = ids.next().unwrap();
        let columns: Vec<_> = row.as_object().unwrap().iter().filter(|(name, _)| *name != "pad").collect();
        let expected = match id {
            0..1000 => json!({"id": id}),
            1000..3000 => json!({"id": id, "first": 1}),
            3000..4000 => json!({"id": id, "first": 3}),
            4000..5000 => json!({"id": id, "first": null, "second": 4}),
            _ => json!({"id": id, "first": null, "second": 6}),
        };
        assert!(columns.into_iter().eq(expected.as_object().unwrap().iter()), "row {id} is {row}");
    }
}

/// What the server said of a table inside a transaction that commits late is older than what it has said since.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_does_not_bring_back_a_shape_that_is_gone() {
    let stage = Stage::streaming(
        "CREATE TABLE t (id int PRIMARY KEY, pad text); CREATE TABLE other (id int PRIMARY KEY, pad text);
         CREATE SCHEMA before; CREATE TABLE before.moved (id int PRIMARY KEY, pad text)",
        &[],
    )
    .await;
    let client = stage.postgres.client().await;
    let elsewhere = async |sql: &str| client.batch_execute(sql).await.unwrap();
    let fill = |table: &str, first: u32| {
        format!(
            "INSERT INTO {table} SELECT n, repeat('x', 100) FROM generate_series({first}, {}) n",
            first + 999
        )
    };
    stage.run("BEGIN").await;
    stage
        .run_each(&[
            &fill("other", 0),
            "SAVEPOINT s; ALTER TABLE t RENAME COLUMN pad TO wrong; ALTER TABLE t ADD COLUMN aborted int",
            &fill("t", 0),
            "ROLLBACK TO s",
            &fill("before.moved", 0),
        ])
        .await;
    elsewhere("ALTER SCHEMA before RENAME TO after").await;
    elsewhere("INSERT INTO after.moved VALUES (5001, 'x')").await;
    elsewhere("INSERT INTO t VALUES (1, 'x')").await;
    stage.run_each(&[&fill("other", 1000), "COMMIT"]).await;
    elsewhere("INSERT INTO t VALUES (2, 'y')").await;
    elsewhere("INSERT INTO after.moved VALUES (5002, 'y')").await;
    let records = stage.records().await;
    let last = &records[records.len() - 2..];
    expect(
        last,
        &[r#"t {"id":2} c null {"id":2,"pad":"y"}"#, r#"moved {"id":5002} c null {"id":5002,"pad":"y"}"#],
    );
    assert_eq!(last[1].value.as_ref().unwrap()["source"]["schema"], "after");
    assert_eq!(records.len(), 3004);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_name_that_postgres_allows_arrives_as_it_is() {
    let long = "n".repeat(63);
    let tables = [
        ("Odd Schema.x", "wei\"rd.tab'le"),
        ("Odd Schema.x", "größe 世界 😀"),
        ("ünï", "back\\slash\ttab"),
        ("select", "table"),
        (long.as_str(), long.as_str()),
        ("public", "{\"json\": 1}"),
        ("public", "100%; DROP TABLE x; --"),
    ];
    let columns = ["id", "a.b", "a\"b", "a'b", " ", "select", "é", "\\", "__op", "a,b", "new\nline"];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut setup = String::new();
    for schema in tables.map(|(schema, _)| schema) {
        setup.push_str(&format!("CREATE SCHEMA IF NOT EXISTS {};", quoted(schema)));
    }
    let list = columns.map(|column| format!("{} text NOT NULL", quoted(column))).join(", ");
    let mut late = String::new();
    for (number, (schema, table)) in tables.iter().enumerate() {
        let keys = format!("PRIMARY KEY ({}, {})", quoted(columns[2]), quoted(columns[0]));
        let create = format!("CREATE TABLE {}.{} ({list}, {keys});", quoted(schema), quoted(table));
        // Every other table joins later, by its name.
        if number % 2 == 0 { &mut setup } else { &mut late }.push_str(&create);
    }
    setup.push_str("CREATE TABLE nothing (); ALTER TABLE nothing REPLICA IDENTITY FULL;");
    let stage = Stage::start(PostgresOptions::default(), &setup, &[]).await;
    stage.run(&late).await;
    for (_, table) in tables.iter().skip(1).step_by(2) {
        stage.read(table, 1).await;
    }
    let values = (0..columns.len()).map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
    for (schema, table) in tables {
        let name = format!("{}.{}", quoted(schema), quoted(table));
        stage
            .run_each(&[
                &format!("INSERT INTO {name} VALUES ({values})"),
                &format!("UPDATE {name} SET {} = 'u'", quoted(columns[1])),
            ])
            .await;
    }
    stage.run("INSERT INTO nothing DEFAULT VALUES").await;
    let records = stage.records().await;
    assert_eq!(records.len(), 2 * tables.len() + 1);
    for ((schema, table), pair) in tables.iter().zip(records.chunks(2)) {
        for record in pair {
            let event = record.value.as_ref().unwrap();
            assert_eq!(
                (event["source"]["schema"].as_str(), event["source"]["table"].as_str()),
                (Some(*schema), Some(*table))
            );
            assert_eq!(record.key, Some(json!({ columns[2]: "2", columns[0]: "0" })));
            for (number, column) in columns.iter().enumerate().filter(|(number, _)| *number != 1) {
                assert_eq!(event["after"][column], number.to_string());
            }
        }
    }
    expect(&records[2 * tables.len()..], &["nothing - c null {}"]);
}
