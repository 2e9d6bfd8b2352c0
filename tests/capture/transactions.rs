//! Transactions: whole, in commit order, and without what was rolled back (I1, I2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use millrace_test_support::Record;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::stage::{Stage, TASK};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, tx text, pad text DEFAULT repeat('x', 100));
    CREATE TABLE b (id int PRIMARY KEY, tx text, pad text DEFAULT repeat('x', 100));";

fn insert(table: &str, tx: &str, first: u32, count: u32) -> String {
    format!("INSERT INTO {table} SELECT n, '{tx}' FROM generate_series({first}, {}) n", first + count - 1)
}

/// A transaction as the topic has it.
struct Transaction {
    name: String,
    commit_lsn: u64,
    /// Runs of rows: table and count.
    runs: Vec<(String, usize)>,
}

/// The transactions of the topic, in order: name, and runs of rows. Checks positions and ordinals.
fn transactions(records: &[Record]) -> Vec<String> {
    let mut found: Vec<Transaction> = Vec::new();
    let mut last = (0, 0);
    for record in records {
        let event = record.value.as_ref().unwrap();
        let position = record.position();
        assert!(last < position, "{last:?} then {position:?}");
        let expected = if last.0 == position.0 { last.1 + 1 } else { 0 };
        assert_eq!(position.1, expected, "ordinals count from 0 without holes");
        last = position;
        let (name, table) =
            (event["after"]["tx"].as_str().unwrap(), event["source"]["table"].as_str().unwrap());
        if found.last().is_none_or(|transaction| transaction.commit_lsn != position.0) {
            found.push(Transaction { name: name.to_owned(), commit_lsn: position.0, runs: Vec::new() });
        }
        let transaction = found.last_mut().unwrap();
        assert_eq!(transaction.name, name, "a transaction's changes stand together");
        match transaction.runs.last_mut() {
            Some((last, count)) if last == table => *count += 1,
            _ => transaction.runs.push((table.to_owned(), 1)),
        }
    }
    let text = |transaction: &Transaction| {
        let runs: Vec<String> =
            transaction.runs.iter().map(|(table, count)| format!("{table}{count}")).collect();
        format!("{}: {}", transaction.name, runs.join(" "))
    };
    found.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_stand_in_commit_order_whole_and_without_what_was_rolled_back() {
    let stage = Stage::streaming(TABLES, &[]).await;
    let other = stage.postgres.client().await;
    let third = stage.postgres.client().await;
    let in_other = async |sql: &str| other.batch_execute(sql).await.unwrap();
    let in_third = async |sql: &str| third.batch_execute(sql).await.unwrap();

    // Small, over two tables, with a savepoint rolled back.
    stage
        .run(
            "BEGIN; INSERT INTO a VALUES (1, 'small'); INSERT INTO b VALUES (1, 'small'); SAVEPOINT s;
             INSERT INTO a VALUES (2, 'small'); ROLLBACK TO s; INSERT INTO a VALUES (3, 'small'); COMMIT",
        )
        .await;
    stage.run("BEGIN; INSERT INTO a VALUES (4, 'never'); ROLLBACK").await;

    // Many rows in one WAL record.
    stage
        .run("COPY a (id, tx) FROM PROGRAM 'for id in $(seq 1001 1300); do echo \"$id\tcopied\"; done'")
        .await;

    // Two large ones that run at once, small ones between, one large one that is rolled back in the end.
    stage.run("BEGIN").await;
    in_other("BEGIN").await;
    in_third("BEGIN").await;
    for round in 0..4 {
        let first = 10_000 + round * 1_000;
        stage.run(&insert("a", "first", first, 700)).await;
        in_other(&insert("b", "second", first, 700)).await;
        in_third(&insert("a", "rolled back", first + 50_000, 700)).await;
        let between = stage.postgres.client().await;
        between.batch_execute(&insert("b", &format!("between {round}"), 100 + round, 1)).await.unwrap();
        in_other(&insert("a", "second", first + 700, 10)).await;
    }
    in_other("COMMIT").await;
    in_third("ROLLBACK").await;
    stage.run("COMMIT").await;

    // Savepoints within savepoints, each with more than fits into the server's memory.
    stage.run("BEGIN").await;
    for (number, step) in [
        "",
        "SAVEPOINT outer_one",
        "SAVEPOINT inner_one",
        "ROLLBACK TO inner_one",
        "SAVEPOINT inner_two",
        "RELEASE inner_two",
        "ROLLBACK TO outer_one",
        "SAVEPOINT outer_two",
        "SAVEPOINT inner_three",
        "RELEASE inner_three",
        "RELEASE outer_two",
    ]
    .iter()
    .enumerate()
    {
        stage.run(step).await;
        stage.run(&insert("a", "nested", 200_000 + number as u32 * 1_000, 1_000)).await;
    }
    stage.run("COMMIT").await;

    // Exceptions of PL/pgSQL are savepoints too: every tenth row of the streamed transaction fails.
    stage
        .run(
            "DO $$ BEGIN FOR n IN 300000..302999 LOOP
                 BEGIN INSERT INTO b VALUES (n, 'caught'); IF n % 10 = 0 THEN RAISE 'no'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL; END;
             END LOOP; END $$",
        )
        .await;

    // Prepared transactions exist for others when they are committed.
    stage.run("BEGIN").await;
    stage.run_each(&[&insert("a", "prepared", 400_000, 2_000), "PREPARE TRANSACTION 'large'"]).await;
    stage.run("BEGIN; INSERT INTO b VALUES (400, 'prepared small'); PREPARE TRANSACTION 'small'").await;
    stage.run("BEGIN; INSERT INTO b VALUES (401, 'never'); PREPARE TRANSACTION 'dropped'").await;
    stage.run("INSERT INTO b VALUES (402, 'after prepare')").await;
    let before = transactions(&stage.records().await);
    assert_eq!(before.last().unwrap(), "after prepare: b1");
    stage
        .run_each(&["ROLLBACK PREPARED 'dropped'", "COMMIT PREPARED 'small'", "COMMIT PREPARED 'large'"])
        .await;

    let records = stage.records().await;
    assert_eq!(
        transactions(&records),
        [
            "small: a1 b1 a1",
            "copied: a300",
            "between 0: b1",
            "between 1: b1",
            "between 2: b1",
            "between 3: b1",
            "second: b700 a10 b700 a10 b700 a10 b700 a10",
            "first: a2800",
            "nested: a6000",
            "caught: b2700",
            "after prepare: b1",
            "prepared small: b1",
            "prepared: a2000",
        ]
    );
    let nested: Vec<u64> = records
        .iter()
        .filter(|record| record.value.as_ref().unwrap()["after"]["tx"] == "nested")
        .map(|record| record.value.as_ref().unwrap()["after"]["id"].as_u64().unwrap() / 1_000 - 200)
        .collect();
    let kept: Vec<u64> = nested.chunks(1_000).map(|chunk| chunk[0]).collect();
    assert_eq!(kept, [0, 6, 7, 8, 9, 10], "the rows of savepoints that were rolled back are gone");
    assert!(stage.events().await.is_empty());
}

/// I1: of a transaction of 300,000 rows over four partitions nobody ever sees a part.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_appears_at_once_in_all_partitions() {
    const ROWS: i64 = 300_000;
    let stage = Stage::streaming(
        "CREATE TABLE many (id int PRIMARY KEY)",
        &["--partitions", "4", "--partition-by", "key"],
    )
    .await;
    stage.run("INSERT INTO many VALUES (0)").await;
    stage.caught_up().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watching = tokio::task::spawn_blocking({
        let (bootstrap, stop) = (stage.millrace.bootstrap(), stop.clone());
        move || watch_watermarks(&bootstrap, &stop)
    });
    stage.run(&format!("INSERT INTO many SELECT n FROM generate_series(1, {ROWS}) n")).await;
    stage.caught_up().await;
    stop.store(true, Relaxed);
    let rounds = watching.await.unwrap();
    let (before, after) = (rounds[0], rounds[rounds.len() - 1]);
    assert_eq!((before.iter().sum::<i64>(), after.iter().sum::<i64>()), (1, ROWS + 1));
    // Each watermark is asked for by itself: within a round those asked first may still be the old ones.
    for round in &rounds {
        let moved = round.iter().zip(&before).position(|(now, before)| now != before).unwrap_or(4);
        assert!(
            round[..moved] == before[..moved] && round[moved..] == after[moved..],
            "{before:?} {round:?} {after:?}"
        );
    }
    assert!(rounds.len() > 10, "{} looks at the watermarks", rounds.len());
}

/// The high watermarks of four partitions, again and again.
fn watch_watermarks(bootstrap: &str, stop: &AtomicBool) -> Vec<[i64; 4]> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", "watching").create().unwrap();
    let mut rounds = Vec::new();
    loop {
        let last = stop.load(Relaxed);
        let high = |partition| consumer.fetch_watermarks(TASK, partition, Duration::from_secs(20)).unwrap().1;
        rounds.push([0, 1, 2, 3].map(high));
        if last {
            return rounds;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logical_messages_are_events_and_our_own_are_not() {
    let stage = Stage::streaming(TABLES, &[]).await;
    stage
        .run_each(&[
            "SELECT pg_logical_emit_message(true, 'app', 'one')",
            "BEGIN; SELECT pg_logical_emit_message(true, 'app', 'rolled back');
             SELECT pg_logical_emit_message(false, 'app', 'two'); ROLLBACK",
            "BEGIN; SAVEPOINT s; SELECT pg_logical_emit_message(true, 'app', 'void'); ROLLBACK TO s; COMMIT",
            "SELECT pg_logical_emit_message(true, 'millrace.app', 'ours')",
            "SELECT pg_logical_emit_message(false, 'millrace.app', 'ours')",
            r"SELECT pg_logical_emit_message(true, '', '\x00ff'::bytea)",
        ])
        .await;
    // In the middle of a streamed transaction, both kinds.
    stage.run("BEGIN").await;
    stage
        .run_each(&[
            &insert("a", "large", 1, 1_000),
            "SELECT pg_logical_emit_message(true, 'app', 'three')",
            "SELECT pg_logical_emit_message(false, 'app', 'before')",
            &insert("a", "large", 1_001, 1_000),
            "COMMIT",
        ])
        .await;
    let records = stage.records().await;
    let events = stage.events().await;
    let content = |event: &Record| {
        let value = event.value.as_ref().unwrap();
        assert_eq!(value["op"], "m");
        let message = &value["message"];
        assert_eq!(event.key, Some(serde_json::json!({ "prefix": message["prefix"] })));
        assert!(event.headers.contains(&("millrace.event".to_owned(), "message".to_owned())));
        format!("{} {}", message["prefix"].as_str().unwrap(), message["content"].as_str().unwrap())
    };
    let found: Vec<String> = events.iter().map(content).collect();
    assert_eq!(found, ["app b25l", "app dHdv", " AP8=", "app YmVmb3Jl", "app dGhyZWU="]);
    let positions: Vec<_> = events.iter().map(Record::position).collect();
    assert!(positions.is_sorted(), "{positions:?}");

    // The message has its place among the rows of its transaction.
    assert_eq!(records.len(), 2_000);
    let (message, rows) = (positions[4], records.iter().map(Record::position).collect::<Vec<_>>());
    assert_eq!((rows[999].1, message.1, rows[1_000].1), (999, 1_000, 1_001));
    assert!(rows.iter().all(|position| position.0 == message.0));
}

/// The server streams a message as the whole transaction's, and tells only that a part of it was rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn logical_messages_in_rolled_back_savepoints_of_streamed_transactions_are_none() {
    let stage = Stage::streaming(TABLES, &[]).await;
    stage.run("BEGIN").await;
    stage
        .run_each(&[
            &insert("a", "large", 1, 1_000),
            "SELECT pg_logical_emit_message(true, 'app', 'one')",
            "SAVEPOINT s",
            &insert("a", "void", 1_001, 1_000),
            "SELECT pg_logical_emit_message(true, 'app', 'void')",
            &insert("a", "void", 2_001, 1_000),
            "ROLLBACK TO s",
            "SELECT pg_logical_emit_message(true, 'app', 'two')",
            &insert("a", "large", 3_001, 1_000),
            "COMMIT",
        ])
        .await;
    stage.run(&insert("a", "next", 5_000, 1)).await;
    let records = stage.records().await;
    assert_eq!(transactions_of_rows(&records), ["large 2000", "next 1"]);
    let events = stage.events().await;
    let contents: Vec<_> = events
        .iter()
        .map(|event| event.value.as_ref().unwrap()["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(contents, ["b25l", "dHdv"]);
}

/// The server fails to decode it while it runs ("could not map filenode"), and can when it has committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_transaction_that_alters_a_table_again_after_a_rollback_to_a_savepoint_is_captured() {
    let stage = Stage::streaming(TABLES, &[]).await;
    stage.run("BEGIN").await;
    stage
        .run_each(&[
            &insert("a", "large", 1, 2_000),
            "SAVEPOINT s; ALTER TABLE a ADD COLUMN b int",
            &insert("a", "void", 2_001, 2_000),
            "ROLLBACK TO s",
            &insert("a", "large", 4_001, 2_000),
            "ALTER TABLE a ADD COLUMN c int",
            &insert("a", "large", 6_001, 2_000),
            "COMMIT",
        ])
        .await;
    stage.run(&insert("a", "next", 9_000, 1)).await;
    assert_eq!(transactions_of_rows(&stage.records().await), ["large 6000", "next 1"]);
}

/// The names of transactions, and how many rows each has.
fn transactions_of_rows(records: &[Record]) -> Vec<String> {
    let name = |record: &Record| record.value.as_ref().unwrap()["after"]["tx"].as_str().unwrap().to_owned();
    let runs = records.chunk_by(|a, b| name(a) == name(b));
    runs.map(|run| format!("{} {}", name(&run[0]), run.len())).collect()
}
