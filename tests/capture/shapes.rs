//! Tables of odd shapes, and types that change under them.

use std::time::Duration;

use millrace_test_support::PostgresOptions;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::stage::{Stage, TASK, expect, rows};

/// As many columns as a table can have.
const COLUMNS: usize = 1600;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_1600_columns_is_captured() {
    let columns =
        |of: &str| (1..=COLUMNS).map(|n| of.replace('N', &n.to_string())).collect::<Vec<_>>().join(", ");
    let setup = format!(
        "CREATE TABLE wide ({}); ALTER TABLE wide REPLICA IDENTITY FULL;
         CREATE TABLE empty (); ALTER TABLE empty REPLICA IDENTITY FULL;",
        columns("cN int")
    );
    let stage = Stage::start(PostgresOptions::default(), &setup, &[]).await;
    stage
        .run_each(&[
            &format!("INSERT INTO wide VALUES ({})", columns("N")),
            "UPDATE wide SET c1600 = NULL",
            "DELETE FROM wide",
            "INSERT INTO empty DEFAULT VALUES",
            "ALTER TABLE empty ADD first int",
            "INSERT INTO empty VALUES (1)",
        ])
        .await;
    let records = stage.records().await;
    let events: Vec<&Value> = records.iter().map(|record| record.value.as_ref().unwrap()).collect();
    assert!(records.iter().all(|record| record.raw_key.is_none()), "neither table has a key");
    let row: serde_json::Map<String, Value> = (1..=COLUMNS).map(|n| (format!("c{n}"), json!(n))).collect();
    let mut changed = row.clone();
    changed.insert("c1600".to_owned(), Value::Null);
    let (row, changed) = (Value::Object(row), Value::Object(changed));
    assert_eq!(events[0]["after"], row);
    assert_eq!((&events[1]["before"], &events[1]["after"]), (&row, &changed));
    assert_eq!((&events[2]["before"], &events[2]["after"]), (&changed, &Value::Null));
    expect(&records[3..], &["empty - c null {}", "empty - c null {\"first\":1}"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_change_while_their_tables_stay_do_not_stop_the_task() {
    let stage = Stage::start(
        PostgresOptions::default(),
        "CREATE TYPE mood AS ENUM ('sad', 'happy');
         CREATE TYPE part AS (x int, y text);
         CREATE DOMAIN small AS int CHECK (value < 10);
         CREATE TABLE t (id int PRIMARY KEY, mood mood, moods mood[], part part, small small)",
        &[],
    )
    .await;
    stage.run("INSERT INTO t VALUES (1, 'sad', '{sad,NULL}', '(1,a)', 9)").await;
    // The catalog tells how types are now.
    stage.caught_up().await;
    stage
        .run_each(&[
            "ALTER TYPE mood ADD VALUE 'so so' BEFORE 'happy'",
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
            "ALTER DOMAIN small DROP CONSTRAINT small_check",
            "ALTER TYPE part ADD ATTRIBUTE z numeric(4,2)",
            "INSERT INTO t VALUES (2, 'so so', '{blue,\"so so\"}', '(2,b,1.50)', 10)",
        ])
        .await;
    let records = stage.records().await;
    let found = rows(&records, "t");
    let first =
        json!({"id": 1, "mood": "sad", "moods": ["sad", null], "part": {"x": 1, "y": "a"}, "small": 9});
    assert_eq!(*found[0], first);
    // The server does not say that the composite was altered: until the next poll it is text.
    let part = json!({"x": 2, "y": "b", "z": "AJY="});
    let is_either = |found: &Value| *found == part || *found == "(2,b,1.50)";
    assert!(is_either(&found[1]["part"]), "{:?}", found[1]);
    let second =
        json!({"id": 2, "mood": "so so", "moods": ["blue", "so so"], "part": found[1]["part"], "small": 10});
    assert_eq!(*found[1], second);
    let last_is = async |wanted: Value| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            stage.run("UPDATE t SET small = 11 WHERE id = 2").await;
            let records = stage.records().await;
            let found = &rows(&records, "t").last().unwrap()["part"];
            if *found == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{found}");
            sleep(Duration::from_millis(100)).await;
        }
    };
    last_is(part.clone()).await;
    stage.run("ALTER TYPE part RENAME ATTRIBUTE y TO \"the y\"; ALTER TYPE part DROP ATTRIBUTE z").await;
    last_is(json!({"x": 2, "the y": "b"})).await;
}

/// What is not a plain number or text in a key: inserts, updates, deletes and tombstones agree on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_be_of_any_type_that_has_an_order() {
    let keys = [
        ("mood", "'happy'", "'sad'", r#""happy""#),
        ("part", "'(1,a)'", "'(1,)'", r#"{"x":1,"y":"a"}"#),
        ("mood[]", "'{happy,sad}'", "'{}'", r#"["happy","sad"]"#),
        ("numeric", "'NaN'", "'1.50'", r#""NaN""#),
        ("numeric", "'-Infinity'", "'1.50'", r#""-Infinity""#),
        ("timestamp", "'-infinity'", "'2026-01-01'", "-9223372036832400000"),
        ("small", "9", "8", "9"),
        ("int4range", "'[1,5)'", "'empty'", r#""[1,5)""#),
        ("bytea", r"'\x00ff'", r"'\x'", r#""AP8=""#),
    ];
    let mut setup = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE part AS (x int, y text);
         CREATE DOMAIN small AS int CHECK (value < 10);"
        .to_owned();
    for (number, (type_name, ..)) in keys.iter().enumerate() {
        setup.push_str(&format!("CREATE TABLE k{number} (k {type_name} PRIMARY KEY, n int);"));
    }
    let stage = Stage::start(PostgresOptions::default(), &setup, &[]).await;
    for (number, (_, key, other, _)) in keys.iter().enumerate() {
        stage
            .run_each(&[
                &format!("INSERT INTO k{number} VALUES ({key}, 1)"),
                &format!("UPDATE k{number} SET n = 2"),
                &format!("UPDATE k{number} SET k = {other}"),
                &format!("DELETE FROM k{number}"),
            ])
            .await;
    }
    let records = stage.topic(TASK).await;
    assert_eq!(records.len(), keys.len() * 7);
    for ((type_name, .., key), records) in keys.iter().zip(records.chunks(7)) {
        let of_key = |index: usize| std::str::from_utf8(records[index].raw_key.as_deref().unwrap()).unwrap();
        let key = format!("{{\"k\":{key}}}");
        // Insert, update, deletion of the old key and its tombstone; creation of the new key, its deletion and tombstone.
        for index in 0..4 {
            assert_eq!(of_key(index), key, "{type_name}");
        }
        let other = of_key(4);
        assert!(other != key && of_key(5) == other && of_key(6) == other, "{type_name}: {other}");
        assert!(records[3].value.is_none() && records[6].value.is_none(), "{type_name}");
    }
}
