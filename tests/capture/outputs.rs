//! Several outputs of one task: the same changes, each in its own topics, and events of other kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use millrace::proto::{Change, change};
use millrace_test_support::{PostgresOptions, Record, read_raw_topic, read_topic};
use prost::Message;
use serde_json::Value;

use crate::stage::Stage;

/// What a record says, by its place: whatever the output, a place and a value say the same.
fn by_place(records: &[Record]) -> BTreeMap<(u64, u64), Vec<Value>> {
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for record in records {
        let mut value = record.value.clone().unwrap_or_default();
        // The output's own name, and when it was processed.
        if let Some(source) = value.get_mut("source") {
            source["name"].take();
        }
        for time in ["ts_ms", "ts_us", "ts_ns"] {
            if let Some(time) = value.get_mut(time) {
                time.take();
            }
        }
        places.entry(record.position()).or_default().push(value);
    }
    places
}

// I1, I2
#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_task_hold_the_same_changes_whatever_their_layout() {
    let setup = "CREATE TABLE plain (id int PRIMARY KEY, n int);
         CREATE SCHEMA events; CREATE TABLE events.x (id int PRIMARY KEY, n int);
         CREATE TABLE \"Odd.Name \u{e4}\" (id int PRIMARY KEY, n int);";
    let outputs = r#"{},
        {"name":"wide","partitions":4,"codec":"zstd","events":{"transaction":"topic"}},
        {"name":"each","layout":"table","partitions":2,"codec":"none","events":{"transaction":"inline"}},
        {"name":"typed","format":"protobuf"}"#;
    let options = PostgresOptions::default().setting("logical_decoding_work_mem", "64kB");
    let stage = Stage::with_outputs(options, setup, outputs).await;
    let topics = ["each.events", "t", "t.events", "typed", "wide", "wide.events", "wide.transaction"];
    assert_eq!(stage.topics().await, topics);
    stage
        .run_each(&[
            "INSERT INTO plain SELECT g, 0 FROM generate_series(1, 10) g",
            "BEGIN; INSERT INTO events.x VALUES (1, 1); UPDATE plain SET n = 1 WHERE id < 4; \
             UPDATE plain SET id = 99 WHERE id = 10; COMMIT",
            "INSERT INTO \"Odd.Name \u{e4}\" VALUES (1, 1)",
            "ALTER TABLE \"Odd.Name \u{e4}\" RENAME TO even",
            "INSERT INTO even VALUES (2, 2)",
            // Streamed while it runs, and partly rolled back.
            "BEGIN; INSERT INTO plain SELECT g, 0 FROM generate_series(1000, 4000) g; SAVEPOINT s; \
             INSERT INTO plain SELECT g, 0 FROM generate_series(5000, 8000) g; ROLLBACK TO s; \
             INSERT INTO events.x VALUES (2, 2); COMMIT",
            "TRUNCATE events.x",
            "DROP TABLE even; CREATE TABLE even (id int PRIMARY KEY, other text)",
        ])
        .await;

    let one = by_place(&stage.topic("t").await);
    assert_eq!(one.len(), 10 + 5 + 1 + 1 + 3002 + 1);
    let wide = stage.topic("wide").await;
    assert!(by_place(&wide) == one, "the one with four partitions differs");

    let mut typed = BTreeSet::new();
    for record in read_raw_topic(&stage.millrace.bootstrap(), "typed").await {
        let change = Change::decode(record.value.as_deref().unwrap()).unwrap();
        // Among them also our own mark, and a gap for the table that came last.
        if let Some(change::Event::Row(_) | change::Event::Truncate(_)) = change.event {
            let position = change.position.unwrap();
            typed.insert((position.commit_lsn, position.ordinal));
        }
    }
    assert!(typed.iter().eq(one.keys()), "the one in protobuf differs");

    let tables =
        ["each.events.x", "each.public.Odd_x2EName_x20_xC3_xA4", "each.public.even", "each.public.plain"];
    let topics = stage.topics().await;
    let of_tables: Vec<_> = topics.iter().filter(|topic| topic.matches('.').count() == 2).collect();
    assert_eq!(of_tables, tables);
    let mut each = Vec::new();
    let mut marks = BTreeMap::<_, Vec<_>>::new();
    for topic in tables {
        for record in read_topic(&stage.millrace.bootstrap(), topic).await {
            match record.value.as_ref().and_then(|value| value["status"].as_str()) {
                Some(status) => {
                    let transaction = marks.entry(record.key.as_ref().unwrap()["id"].to_string());
                    transaction.or_default().push((topic, record.partition, status.to_owned()));
                }
                None => each.push(record),
            }
        }
    }
    assert!(by_place(&each) == one, "the one with a topic for each table differs");

    // Each transaction has its two marks once in every partition that it touched …
    let transactions = stage.topic("wide.transaction").await;
    assert_eq!(transactions.len(), 2 * 6);
    assert_eq!(marks.len(), 6);
    for places in marks.values_mut() {
        places.sort();
        let pairs = places.chunks(2).all(|pair| {
            pair.len() == 2
                && (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)
                && (pair[0].2.as_str(), pair[1].2.as_str()) == ("BEGIN", "END")
        });
        assert!(pairs, "{places:?}");
    }
    // … and the totals are those of the whole.
    let ends = transactions.iter().filter_map(|record| record.value.as_ref());
    let ends: Vec<_> = ends.filter(|mark| mark["status"] == "END").collect();
    let counts: Vec<_> = ends.iter().map(|end| end["event_count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [10, 6, 1, 1, 3002, 1], "a changed key is a deletion and a creation");
    let large = serde_json::json!([
        {"data_collection": "public.plain", "event_count": 3001},
        {"data_collection": "events.x", "event_count": 1},
    ]);
    assert_eq!(ends[4]["data_collections"], large);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_added_later_starts_at_the_next_group() {
    let setup = "CREATE TABLE a (id int PRIMARY KEY)";
    let mut stage = Stage::with_outputs(PostgresOptions::default(), setup, "{}").await;
    stage.run("INSERT INTO a VALUES (1)").await;
    stage.caught_up().await;
    stage.redefine(r#"{},{"name":"late","layout":"table"}"#).await;
    stage.run("INSERT INTO a VALUES (2)").await;
    let ids = |records: Vec<Record>| -> Vec<_> {
        records.iter().map(|record| record.value.as_ref().unwrap()["after"]["id"].as_i64().unwrap()).collect()
    };
    assert_eq!(ids(stage.topic("late.public.a").await), [2]);
    assert_eq!(ids(stage.topic("t").await), [1, 2]);
    stage.millrace.restart().await;
    stage.run("INSERT INTO a VALUES (3)").await;
    assert_eq!(ids(stage.topic("late.public.a").await), [2, 3]);
    assert_eq!(ids(stage.topic("t").await), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn up_gives_each_table_a_topic_when_told_so() {
    let args = ["--layout", "table", "--partitions", "2"];
    let setup = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)";
    let stage = Stage::start(PostgresOptions::default(), setup, &args).await;
    assert!(stage.millrace.output().contains("--include 't\\..*'"), "{}", stage.millrace.output());
    stage.run("INSERT INTO a SELECT generate_series(1, 20)").await;
    assert_eq!(stage.topics().await, ["t.events", "t.public.a"]);
    let records = stage.topic("t.public.a").await;
    assert_eq!(records.len(), 20);
    assert!(records.iter().any(|record| record.partition == 0) && records.iter().any(|r| r.partition == 1));
}

/// Memory of the process that is in use, in MiB.
fn resident(stage: &Stage) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.millrace.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_tables_have_topics_within_the_memory_budget() {
    const TABLES: usize = 5_000;
    let make = format!(
        "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP
           EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, name text, at timestamptz, n numeric(12,2))', i);
           IF i % 500 = 0 THEN COMMIT; END IF;
         END LOOP; END $$"
    );
    let outputs = r#"{"layout":"table","events":{"watermark":"inline"}}"#;
    let mut stage = Stage::with_outputs(PostgresOptions::default(), &make, outputs).await;
    let idle = resident(&stage);
    let insert = |id: usize| {
        format!(
            "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP
               EXECUTE format('INSERT INTO t%s VALUES ({id}, ''x'', now(), 1.5)', i);
             END LOOP; END $$"
        )
    };
    let started = Instant::now();
    stage.run(&insert(1)).await;
    stage.caught_up().await;
    println!("every table's first event after {:?}", started.elapsed());
    assert_eq!(stage.topics().await.len(), TABLES + 1);
    for id in 2..5 {
        stage.run(&insert(id)).await;
    }
    stage.caught_up().await;
    let busy = resident(&stage);
    println!("{idle} MiB idle, {busy} MiB with all topics");
    assert!(busy < idle + 100, "{busy} MiB, {idle} MiB before");

    stage.millrace.restart().await;
    stage.run(&insert(5)).await;
    stage.caught_up().await;
    let again = resident(&stage);
    println!("{again} MiB after a restart");
    assert!(again < idle + 100, "{again} MiB after a restart, {idle} MiB before");
    for table in [1, TABLES / 2, TABLES] {
        let records = stage.topic(&format!("t.public.t{table}")).await;
        let rows = records.iter().filter_map(|record| record.value.as_ref()?["after"]["id"].as_i64());
        assert_eq!(rows.collect::<Vec<_>>(), [1, 2, 3, 4, 5], "table {table}");
    }
}

/// A late table is told to nobody here; the next one must not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn tables_join_one_after_the_other_where_no_output_keeps_gaps() {
    let outputs = r#"{"events":{"gap":"off","message":"off"}}"#;
    let setup = "CREATE TABLE a (id int PRIMARY KEY)";
    let stage = Stage::with_outputs(PostgresOptions::default(), setup, outputs).await;
    for table in ["b", "c", "d"] {
        stage.run(&format!("CREATE TABLE {table} (id int PRIMARY KEY)")).await;
        let published =
            format!("SELECT count(*)::text FROM pg_publication_tables WHERE tablename = '{table}'");
        let deadline = Instant::now() + Duration::from_secs(30);
        while stage.ask(&published).await == "0" {
            assert!(Instant::now() < deadline, "table {table} did not join");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    stage.run("INSERT INTO d VALUES (1)").await;
    let records = wait_for(&stage, "t", "row", |record| record.value.is_some()).await;
    assert_eq!(records[0].value.as_ref().unwrap()["source"]["table"], "d");
}

/// Reads a topic until it has such a record.
async fn wait_for(stage: &Stage, topic: &str, what: &str, is: impl Fn(&Record) -> bool) -> Vec<Record> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let records = read_topic(&stage.millrace.bootstrap(), topic).await;
        if records.iter().any(&is) {
            return records;
        }
        assert!(Instant::now() < deadline, "no {what} in {topic}: {records:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_has_heartbeats_and_its_last_transaction_a_watermark() {
    let outputs = r#"{"events":{"heartbeat":"topic","watermark":"inline","message":"off"}}"#;
    let setup = "CREATE TABLE a (id int PRIMARY KEY)";
    let mut stage = Stage::with_outputs(PostgresOptions::default(), setup, outputs).await;
    let is = |kind: &'static str| {
        move |record: &Record| record.headers == [("millrace.event".to_owned(), kind.to_owned())]
    };
    let beats = wait_for(&stage, "t.events", "heartbeat", is("heartbeat")).await;
    assert_eq!(beats[0].key.as_ref().unwrap()["serverName"], "t");
    // Two in a row, so that one of them is within a second of the watermark before.
    stage.run("INSERT INTO a VALUES (1)").await;
    stage.run("INSERT INTO a VALUES (2)").await;
    let is_of_second = |record: &Record| record.offset > 1 && is("watermark")(record);
    let records = wait_for(&stage, "t", "watermark behind both", is_of_second).await;
    let last = records.last().unwrap();
    let inserts: Vec<_> = records.iter().filter(|record| !is("watermark")(record)).collect();
    assert_eq!(inserts.len(), 2);
    let covered = last.value.as_ref().unwrap()["commit_lsn"].as_str().unwrap();
    assert_eq!(millrace_test_support::parse_lsn(covered), inserts[1].position().0);
    assert_eq!(last.timestamp, inserts[1].timestamp);

    // What the source never sent is not waited for when it sends again.
    stage.millrace.restart().await;
    stage.run("INSERT INTO a VALUES (3)").await;
    let records = wait_for(&stage, "t", "third row", |record| record.offset as usize >= records.len()).await;
    let ids: Vec<_> =
        records.iter().filter(|record| !is("watermark")(record)).map(Record::position).collect();
    assert!(ids.len() == 3 && ids.is_sorted(), "{records:?}");
}
