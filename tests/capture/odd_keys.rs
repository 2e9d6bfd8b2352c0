//! Existing rows of tables with odd keys, whatever is written and killed while they are read by key: text that is equal in
//! any case, numbers without end, labels, blanks, and large values that do not come with a change of their key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use millrace_test_support::{
    Millrace, MillraceOptions, Postgres, PostgresOptions, Random, Record, read_topic,
};
use tokio_postgres::Client;

use crate::existing::{caught_up, define, ends};
use crate::stage::{TASK, run};

/// Tables and the columns of their keys; each has a value that no two rows share, and a large one.
const TABLES: &[(&str, &str)] =
    &[("no_case", "k"), ("any_case", "k"), ("exact", "k"), ("mixed", "m, at, b"), ("one", "k")];
const ROWS: u64 = 1500;

const SETUP: &str = r#"
    CREATE EXTENSION citext;
    CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TABLE no_case (k citext PRIMARY KEY, v bigint, large text);
    CREATE TABLE any_case (k text COLLATE any_case PRIMARY KEY, v bigint, large text);
    CREATE TABLE exact (k numeric PRIMARY KEY, v bigint, large text);
    CREATE TABLE mixed (b char(6), v bigint, m mood, at timestamptz, large text, PRIMARY KEY (m, at, b));
    CREATE TABLE one (k int PRIMARY KEY, v bigint, large text);
    ALTER TABLE one ALTER large SET STORAGE EXTERNAL;
    ALTER TABLE any_case ALTER large SET STORAGE EXTERNAL; ALTER TABLE any_case REPLICA IDENTITY FULL;"#;

/// The `n`th key of a table.
fn key(table: &str, n: u64, random: &mut Random) -> String {
    let letter = ["k", "K"][random.below(2) as usize];
    match (table, n) {
        ("no_case" | "any_case", _) => format!("'{letter}{n}'"),
        ("exact", 0) => "'NaN'".to_owned(),
        ("exact", 1) => "'-Infinity'".to_owned(),
        ("exact", 2) => "'Infinity'".to_owned(),
        // Equal, and written with more zeros or less.
        ("exact", _) => format!("{n}.5{}", ["", "0"][random.below(2) as usize]),
        ("mixed", _) => {
            let at = if n.is_multiple_of(50) {
                "infinity".to_owned()
            } else {
                format!("2026-01-01 00:{:02}:00+00", n % 60)
            };
            format!("'{}', '{at}', 'x{n}'", ["sad", "ok", "happy"][n as usize % 3])
        }
        _ => n.to_string(),
    }
}

fn large(table: &str, v: u64) -> String {
    if matches!(table, "one" | "any_case") {
        format!("repeat('{v} ', 400)")
    } else {
        format!("repeat('{v} ', 20)")
    }
}

fn insert(table: &str, columns: &str, rows: &[(String, u64)]) -> String {
    let row = |(key, v): &(String, u64)| format!("({key}, {v}, {})", large(table, *v));
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!("INSERT INTO {table} ({columns}, v, large) VALUES {} ON CONFLICT DO NOTHING;", rows.join(", "))
}

/// Writes until told to stop.
async fn write(client: Client, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = Random::new(seed, 0);
    while !stop.load(Relaxed) {
        let mut sql = String::from("BEGIN;");
        for _ in 0..1 + random.below(4) {
            let (table, columns) = TABLES[random.below(TABLES.len() as u64) as usize];
            let (n, v) = (random.below(ROWS), random.below(1 << 40) + ROWS);
            let here = format!("({columns}) = ({})", key(table, n, &mut random));
            sql += &match random.below(8) {
                0 => format!("DELETE FROM {table} WHERE {here};"),
                1 => insert(table, columns, &[(key(table, n, &mut random), v)]),
                2 | 3 => format!("UPDATE {table} SET v = {v} WHERE {here};"),
                // Another way to write the same key.
                4 => format!(
                    "UPDATE {table} SET ({columns}) = ROW({}) WHERE {here};",
                    key(table, n, &mut random)
                ),
                _ => {
                    let to = key(table, (n + random.below(ROWS)) % (ROWS + 200), &mut random);
                    format!("UPDATE {table} SET ({columns}) = ROW({to}) WHERE {here};")
                }
            };
        }
        sql += "COMMIT;";
        // A key that is taken, or two that wait for each other.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(random.below(4))).await;
    }
}

/// By table, each row's value and large value.
type Tables = BTreeMap<String, BTreeMap<i64, String>>;

/// What the topic says the tables are. Each change must fit what is there.
fn rebuilt(records: &[Record]) -> Tables {
    let mut tables: BTreeMap<String, BTreeMap<Vec<u8>, (i64, String)>> = BTreeMap::new();
    let (mut moved, mut moves_of_unsent) = (None, 0);
    for record in records {
        let Some(event) = &record.value else { continue };
        if event["type"] == "snapshot" {
            if event["stage"] == "begin" {
                tables.remove(event["table"].as_str().unwrap());
            }
            continue;
        }
        let name = event["source"]["table"].as_str().unwrap();
        let rows = tables.entry(name.to_owned()).or_default();
        let (op, key) = (event["op"].as_str().unwrap(), record.raw_key.clone().unwrap());
        let was = rows.remove(&key);
        assert_eq!(was.is_some(), matches!(op, "u" | "d"), "{op} {record:?}");
        if op == "d" {
            moved = was.map(|(_, large)| (record.position(), large));
            continue;
        }
        let after = &event["after"];
        let large = match record.headers.iter().any(|(name, _)| name == "millrace.unavailable") {
            false => after["large"].as_str().unwrap().to_owned(),
            true if op == "u" => was.unwrap().1,
            // It is that of the row that was told to be gone, at the same position.
            true => {
                let (position, large) = moved.take().unwrap();
                assert_eq!(position, record.position(), "{record:?}");
                moves_of_unsent += 1;
                large
            }
        };
        rows.insert(key, (after["v"].as_i64().unwrap(), large));
    }
    assert!(moves_of_unsent > 0, "no key of a row with an unsent value was changed");
    tables.into_iter().map(|(name, rows)| (name, rows.into_values().collect())).collect()
}

// I1, I2
#[tokio::test]
async fn rows_that_are_read_by_odd_keys_while_those_change_are_told_once_whatever_is_killed() {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("MILLRACE_TEST_SEED={seed}");
    let mut random = Random::new(seed, 0);
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    run(&client, SETUP).await;
    for (table, columns) in TABLES {
        let rows: Vec<_> = (0..ROWS).map(|n| (key(table, n, &mut random), n)).collect();
        run(&client, &insert(table, columns, &rows)).await;
    }
    run(&client, "ANALYZE").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in 1..3 {
        writers.push(tokio::spawn(write(postgres.client().await, seed * 31 + number, stop.clone())));
    }
    let data = tempfile::tempdir().unwrap();
    define(data.path(), &postgres);
    let slowly = ["--snapshot-limit-mb-per-second", "1"];
    let mut millrace = Millrace::start(MillraceOptions::serve(data.path()).args(&slowly)).await;
    let mut told = 0;
    for _ in 0..3 {
        // Whatever the machine has to do, some rows have been read since the last time.
        let before = told;
        while told < before + 100 {
            tokio::time::sleep(Duration::from_millis(100 + random.below(300))).await;
            told = read_topic(&millrace.bootstrap(), TASK).await.len();
        }
        millrace.kill9();
        millrace.spawn_again();
        millrace.wait_ready().await;
    }
    ends(&millrace, TABLES.len()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let records = caught_up(&millrace, &client).await;
    let events = records.iter().filter_map(|record| record.value.as_ref());
    let begun = events.filter(|event| event["stage"] == "begin").count();
    assert!(begun > TABLES.len(), "nothing was interrupted");
    let rebuilt = rebuilt(&records);
    for (table, _) in TABLES {
        let rows = client.query(&format!("SELECT v, large FROM {table}"), &[]).await.unwrap();
        let there: BTreeMap<i64, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let told = &rebuilt[*table];
        let missing: Vec<_> =
            there.iter().filter(|(v, large)| told.get(v) != Some(large)).map(|(v, _)| v).collect();
        let invented: Vec<_> = told.keys().filter(|v| !there.contains_key(v)).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{table}: missing {missing:?}, invented {invented:?}"
        );
    }
}
