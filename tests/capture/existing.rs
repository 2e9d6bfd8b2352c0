//! Existing rows through the whole broker: tables that are rebuilt from the topic alone equal the source, whatever is
//! written and killed while their rows are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use millrace::postgres::source::SourceConfig;
use millrace::state::{DataDir, Store};
use millrace_test_support::{
    Millrace, MillraceOptions, Postgres, PostgresOptions, Random, Record, read_topic, seed,
};
use serde_json::Value;
use tokio_postgres::Client;

use crate::stage::{TASK, run};

/// Tables with a key of one column, of two of which one has a collation of its own, without a key, and without rows.
const SETUP: &str = "
    CREATE TABLE one (id int PRIMARY KEY, v bigint NOT NULL, pad text);
    CREATE TABLE two (a text COLLATE \"C\", b bigint, v bigint NOT NULL, PRIMARY KEY (a, b));
    CREATE TABLE bare (id int, v bigint NOT NULL);
    ALTER TABLE bare REPLICA IDENTITY FULL;
    CREATE TABLE nothing (id int PRIMARY KEY, v bigint NOT NULL);
    INSERT INTO one SELECT g, 0, repeat('x', 100) FROM generate_series(1, 60000) g;
    INSERT INTO two SELECT chr(65 + g % 57) || g % 300, g / 8, 0 FROM generate_series(1, 30000) g;
    INSERT INTO bare SELECT g, 0 FROM generate_series(1, 20000) g;";

/// Writes until told to stop.
async fn write(client: Client, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = Random::new(seed, 0);
    while !stop.load(Relaxed) {
        let mut sql = String::from("BEGIN;");
        for _ in 0..1 + random.below(6) {
            let (id, v) = (random.below(60_000) + 1, random.below(1 << 40) + 1);
            sql += &match random.below(12) {
                0 => format!("DELETE FROM one WHERE id = {id};"),
                1 => format!(
                    "UPDATE one SET id = {}, v = {v} WHERE id = {id} AND NOT EXISTS (SELECT FROM one WHERE id = {});",
                    id + 70_000,
                    id + 70_000
                ),
                2..=4 => format!("UPDATE one SET v = {v} WHERE id = {id};"),
                5 => format!(
                    "INSERT INTO one VALUES ({id}, {v}) ON CONFLICT (id) DO UPDATE SET v = excluded.v;"
                ),
                6 => format!("UPDATE two SET v = {v} WHERE a = chr({}) || '{}';", 65 + id % 57, id % 300),
                7 => format!("DELETE FROM two WHERE a = chr({}) || '{}';", 65 + id % 57, id % 300),
                8 => format!("INSERT INTO two VALUES ('a''\\{id}', {v}, 1) ON CONFLICT DO NOTHING;"),
                9 => format!("UPDATE bare SET v = {v} WHERE id = {};", id % 20_000),
                10 => format!(
                    "INSERT INTO bare VALUES ({id}, {v}); DELETE FROM bare WHERE id = {};",
                    id % 20_000
                ),
                _ => format!(
                    "INSERT INTO nothing VALUES ({id}, {v}) ON CONFLICT (id) DO UPDATE SET v = excluded.v;"
                ),
            };
        }
        sql += if random.below(10) == 0 { "ROLLBACK;" } else { "COMMIT;" };
        // Two that wait for each other are none of our business.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(random.below(4))).await;
    }
}

/// A row as one text; equal rows of a table without a key are counted.
fn text(row: &Value, columns: &[&str]) -> String {
    columns.iter().map(|column| format!("{}|", row[column])).collect()
}

type Tables = BTreeMap<String, BTreeMap<String, i64>>;

/// What the topic says the tables are. Each change must fit what is there.
fn rebuilt(records: &[Record]) -> Tables {
    let mut tables = Tables::new();
    let mut places = BTreeSet::new();
    for record in records {
        let Some(event) = &record.value else { continue };
        if event["type"] == "snapshot" {
            if event["stage"] == "begin" {
                tables.remove(event["table"].as_str().unwrap());
            }
            continue;
        }
        let name = event["source"]["table"].as_str().unwrap();
        let op = event["op"].as_str().unwrap();
        if op != "r" {
            let place = (record.position(), name.to_owned(), op.to_owned());
            assert!(places.insert(place), "{record:?} is repeated");
        }
        let (columns, key): (&[&str], &[&str]) = match name {
            "one" | "nothing" => (&["id", "v"], &["id"]),
            "two" => (&["a", "b", "v"], &["a", "b"]),
            _ => (&["id", "v"], &["id", "v"]),
        };
        let rows = tables.entry(name.to_owned()).or_default();
        let before = if event["before"].is_null() { &event["after"] } else { &event["before"] };
        if matches!(op, "u" | "d") {
            let before = text(before, key);
            let found = rows.range(before.clone()..).next().map(|(row, _)| row.clone());
            let found = found.filter(|row| row.starts_with(&before));
            let Some(found) = found else { panic!("{record:?} changes a row that is not there") };
            let count = rows.get_mut(&found).unwrap();
            *count -= 1;
            if *count == 0 {
                rows.remove(&found);
            }
        }
        if op != "d" {
            let count = rows.entry(text(&event["after"], columns)).or_default();
            *count += 1;
            assert!(name == "bare" || *count == 1, "{record:?} is there already");
        }
    }
    tables.retain(|_, rows| !rows.is_empty());
    tables
}

/// What they are.
async fn there(client: &Client) -> Tables {
    let mut tables = Tables::new();
    for (name, columns) in [("one", "id, v"), ("two", "a, b, v"), ("bare", "id, v"), ("nothing", "id, v")] {
        let sql = format!("SELECT to_jsonb(t)::text FROM (SELECT {columns} FROM {name}) t");
        let names: Vec<_> = columns.split(", ").collect();
        for row in client.query(&sql, &[]).await.unwrap() {
            let row: Value = serde_json::from_str(row.get(0)).unwrap();
            *tables.entry(name.to_owned()).or_default().entry(text(&row, &names)).or_default() += 1;
        }
    }
    tables.retain(|_, rows| !rows.is_empty());
    tables
}

/// Saves a task that starts with the rows that there are.
pub fn define(data: &std::path::Path, postgres: &Postgres) {
    let source = SourceConfig::parse(&postgres.unix_url()).unwrap().display();
    let definition = format!(
        r#"{{"name":"{TASK}","source":"{source}","start":"snapshot","outputs":[{{"events":{{"snapshot":"inline"}}}}]}}"#
    );
    let store = Store::open(&DataDir::open(data).unwrap()).unwrap();
    store.add_task(TASK, &definition, "created", "", 0).unwrap();
}

/// Waits until the log says that the rows of so many tables have been read.
pub async fn ends(millrace: &Millrace, count: usize) -> Vec<Record> {
    for _ in 0..600 {
        let records = read_topic(&millrace.bootstrap(), TASK).await;
        let is_end = |record: &&Record| record.value.as_ref().is_some_and(|event| event["stage"] == "end");
        if records.iter().filter(is_end).count() == count {
            return records;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the rows of {count} tables have not been read: {}", millrace.output());
}

/// All that is in the topic once everything committed has arrived.
pub async fn caught_up(millrace: &Millrace, client: &Client) -> Vec<Record> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    millrace.wait_durable(row.get(0)).await;
    read_topic(&millrace.bootstrap(), TASK).await
}

// I1, I2
#[tokio::test]
async fn a_task_that_starts_with_its_rows_has_each_row_and_each_change_once_whatever_is_killed() {
    let seed = seed();
    let mut random = Random::new(seed, 0);
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    run(&client, SETUP).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in 1..3 {
        let writer = write(postgres.client().await, seed * 31 + number, stop.clone());
        writers.push(tokio::spawn(writer));
    }
    let data = tempfile::tempdir().unwrap();
    define(data.path(), &postgres);
    let mut millrace = Millrace::start(MillraceOptions::serve(data.path())).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
        millrace.kill9();
        millrace.spawn_again();
        millrace.wait_ready().await;
    }
    let records = ends(&millrace, 4).await;
    // What has been told of the tables is complete while they are written to.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let all = caught_up(&millrace, &client).await;
    let begin = |record: &&Record| record.value.as_ref().is_some_and(|event| event["stage"] == "begin");
    let begun = all.iter().filter(begin).count();
    let catchup = |record: &&Record| record.headers.iter().any(|(_, value)| value == "catchup");
    let caught = all.iter().filter(catchup).count();
    println!("rows of 4 tables were begun {begun} times, {caught} changes followed them");
    assert!(begun >= 4 && caught > 0, "{begun} {caught}");
    assert!(all.len() >= records.len());
    let (rebuilt, there) = (rebuilt(&all), there(&client).await);
    for (name, rows) in &there {
        let rebuilt = &rebuilt[name];
        let missing: Vec<_> =
            rows.iter().filter(|(row, count)| rebuilt.get(*row) != Some(count)).take(5).collect();
        let invented: Vec<_> = rebuilt.keys().filter(|row| !rows.contains_key(*row)).take(5).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{name}: missing {missing:?}, invented {invented:?}"
        );
    }
    assert_eq!(rebuilt.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    assert_eq!(millrace.task().unwrap()["state"], "running");
}
