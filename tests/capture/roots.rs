//! Partitioned tables that are told as one: their existing rows, and those of partitions that come later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use millrace_test_support::{PostgresOptions, Random, Record, seed};
use tokio_postgres::Client;

use crate::publishing::version;
use crate::stage::{Stage, TASK};

/// Two trees, with a key and without one. A partition has its columns in another order, the trees have lost columns, and
/// one partition has partitions of its own.
const SETUP: &str = "
    CREATE TABLE keyed (lost int, id int, region text, v bigint NOT NULL, pad text, PRIMARY KEY (id, region))
        PARTITION BY LIST (region);
    CREATE TABLE keyed_eu PARTITION OF keyed FOR VALUES IN ('eu');
    CREATE TABLE keyed_us (pad text, mine int, v bigint NOT NULL, region text NOT NULL, lost int, id int NOT NULL);
    ALTER TABLE keyed_us DROP COLUMN mine;
    ALTER TABLE keyed ATTACH PARTITION keyed_us FOR VALUES IN ('us');
    CREATE TABLE keyed_rest PARTITION OF keyed DEFAULT PARTITION BY HASH (id);
    CREATE TABLE keyed_0 PARTITION OF keyed_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE keyed_1 PARTITION OF keyed_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    ALTER TABLE keyed DROP COLUMN lost;
    CREATE TABLE bare (id int, region text, v bigint NOT NULL, pad text) PARTITION BY LIST (region);
    CREATE TABLE bare_eu PARTITION OF bare FOR VALUES IN ('eu');
    CREATE TABLE bare_rest (v bigint NOT NULL, pad text, id int, region text);
    ALTER TABLE bare ATTACH PARTITION bare_rest DEFAULT;
    ALTER TABLE bare REPLICA IDENTITY FULL;
    ALTER TABLE bare_eu REPLICA IDENTITY FULL;
    ALTER TABLE bare_rest REPLICA IDENTITY FULL;
    INSERT INTO keyed SELECT g, (ARRAY['eu', 'us', 'jp', 'cn'])[1 + g % 4], 0, repeat('x', 100)
        FROM generate_series(1, 30000) g;
    INSERT INTO bare SELECT g, (ARRAY['eu', 'us'])[1 + g % 2], 0, repeat('x', 100) FROM generate_series(1, 10000) g;";

/// Moves rows between partitions, and changes them otherwise, until told to stop.
async fn write(client: Client, seed: u64, kinds: u64, stop: Arc<AtomicBool>) {
    let mut random = Random::new(seed, 0);
    while !stop.load(Relaxed) {
        let mut sql = String::from("BEGIN;");
        for _ in 0..1 + random.below(6) {
            let (id, v) = (random.below(30_000) + 1, random.below(1 << 40) + 1);
            let region = ["eu", "us", "jp", "cn", "fr"][random.below(5) as usize];
            let free = format!("NOT EXISTS (SELECT FROM keyed WHERE id = {id} AND region = '{region}')");
            sql += &match random.below(kinds) {
                0 => format!("DELETE FROM keyed WHERE id = {id};"),
                1..=4 => format!(
                    "UPDATE keyed SET region = '{region}', v = {v} WHERE id = {id} AND region <> '{region}' AND {free};"
                ),
                5 => format!("UPDATE keyed SET v = {v} WHERE id = {id};"),
                6 => format!(
                    "INSERT INTO keyed VALUES ({id}, '{region}', {v})
                         ON CONFLICT (id, region) DO UPDATE SET v = excluded.v;"
                ),
                7 => format!("UPDATE bare SET region = '{region}' WHERE id = {};", id % 10_000),
                8 => format!("UPDATE bare SET v = {v} WHERE id = {};", id % 10_000),
                _ => format!(
                    "INSERT INTO bare VALUES ({id}, '{region}', {v}); DELETE FROM bare WHERE id = {};",
                    id % 10_000
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

/// Rows as texts, with how often each is there, by table.
type Tables = BTreeMap<String, BTreeMap<String, i64>>;

/// What the topic says the tables are. Unless they are `torn`, each change must fit what is there.
fn rebuilt(records: &[Record], is_torn: bool) -> Tables {
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
        let (name, op) = (event["source"]["table"].as_str().unwrap(), event["op"].as_str().unwrap());
        let place = (record.position(), name.to_owned(), op.to_owned());
        assert!(op == "r" || places.insert(place), "{record:?} is repeated");
        let rows = tables.entry(name.to_owned()).or_default();
        let text = |row: &serde_json::Value, columns: &[&str]| {
            columns.iter().map(|column| format!("{}|", row[column])).collect::<String>()
        };
        let key: &[&str] = if name == "bare" { &["id", "region", "v"] } else { &["id", "region"] };
        if matches!(op, "u" | "d") {
            let old = if event["before"].is_null() { &event["after"] } else { &event["before"] };
            let old = text(old, key);
            let found = rows.range(old.clone()..).next().map(|(row, _)| row.clone());
            match found.filter(|row| row.starts_with(&old)) {
                Some(row) => {
                    let count = rows.get_mut(&row).unwrap();
                    *count -= 1;
                    if *count == 0 {
                        rows.remove(&row);
                    }
                }
                None => assert!(is_torn, "{record:?} changes a row that is not there"),
            }
        }
        if op != "d" {
            let count = rows.entry(text(&event["after"], &["id", "region", "v"])).or_default();
            *count += 1;
            assert!(is_torn || name == "bare" || *count == 1, "{record:?} is there already");
        }
    }
    tables
}

/// What they are.
async fn there(client: &Client, names: &[&str]) -> Tables {
    let mut tables = Tables::new();
    for name in names {
        let sql = format!(
            "SELECT concat(id, '|', to_json(region), '|', v, '|'), count(*) FROM {name} GROUP BY id, region, v"
        );
        let rows = client.query(&sql, &[]).await.unwrap();
        tables.insert((*name).to_owned(), rows.iter().map(|row| (row.get(0), row.get(1))).collect());
    }
    tables
}

fn expect_same(rebuilt: &Tables, there: &Tables) {
    assert_eq!(rebuilt.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    for (name, rows) in there {
        let rebuilt = &rebuilt[name];
        let missing: Vec<_> =
            rows.iter().filter(|(row, count)| rebuilt.get(*row) != Some(count)).take(5).collect();
        let invented: Vec<_> = rebuilt.keys().filter(|row| !rows.contains_key(*row)).take(5).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{name}: missing {missing:?}, invented {invented:?}"
        );
    }
}

/// A task that starts with the rows that there are, and tells partitions as the table at the top.
const TASK_BY_ROOT: &str = r#""start":"snapshot","outputs":[{"events":{"snapshot":"inline"}}],
    "publish":{"partitions_as":"root"}"#;

/// How many snapshot events of this stage there are.
fn marks(records: &[Record], stage: &str) -> usize {
    let is_one = |record: &&Record| record.value.as_ref().is_some_and(|event| event["stage"] == stage);
    records.iter().filter(is_one).count()
}

// I1, I2
#[tokio::test]
async fn trees_that_are_told_as_one_table_have_each_row_and_each_change_once_whatever_is_moved_and_killed() {
    let seed = seed();
    for options in [Some(PostgresOptions::default()), version(18)].into_iter().flatten() {
        let mut random = Random::new(seed, 0);
        let mut stage = Stage::with_task(options, SETUP, TASK_BY_ROOT).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for number in 1..3 {
            let seed = seed.wrapping_mul(31) + number;
            writers.push(tokio::spawn(write(stage.postgres.client().await, seed, 10, stop.clone())));
        }
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
            stage.millrace.kill9();
            stage.millrace.spawn_again();
            stage.millrace.wait_ready().await;
        }
        until_read(&stage, 2).await;
        // What has been told of the tables is complete while they are written to.
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let all = stage.topic(TASK).await;
        let catchup = |record: &&Record| record.headers.iter().any(|(_, value)| value == "catchup");
        let caught = all.iter().filter(catchup).count();
        println!("rows of 2 trees were begun {} times, {caught} changes followed them", marks(&all, "begin"));
        assert!(marks(&all, "begin") >= 2 && caught > 0);
        expect_same(&rebuilt(&all, false), &there(&stage.client, &["bare", "keyed"]).await);
        assert_eq!(stage.task()["state"], "running");
    }
}

/// A tree, tables that come to be partitions of it, and two that PostgreSQL does not publish.
const GROWING: &str = "
    CREATE TABLE keyed (id int, region text, v bigint NOT NULL, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE keyed_eu PARTITION OF keyed FOR VALUES IN ('eu');
    CREATE UNLOGGED TABLE keyed_off PARTITION OF keyed FOR VALUES IN ('off');
    CREATE TABLE bare (id int, region text, v bigint NOT NULL) PARTITION BY LIST (region);
    CREATE TABLE bare_eu PARTITION OF bare FOR VALUES IN ('eu');
    CREATE FOREIGN DATA WRAPPER nowhere;
    CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
    ALTER TABLE bare REPLICA IDENTITY FULL;
    ALTER TABLE bare_eu REPLICA IDENTITY FULL;
    CREATE FOREIGN TABLE bare_far PARTITION OF bare FOR VALUES IN ('far') SERVER far;
    CREATE TABLE known (v bigint NOT NULL, region text, id int, PRIMARY KEY (id, region));
    INSERT INTO known VALUES (1, 'us', 1), (2, 'us', 2);
    INSERT INTO keyed SELECT g, 'eu', 0 FROM generate_series(1, 100) g;
    INSERT INTO keyed VALUES (1, 'off', 0);
    INSERT INTO bare SELECT g, 'eu', 0 FROM generate_series(1, 100) g;";

/// What earlier versions have made for the event trigger.
const JOINED_OF_BEFORE: &str = "
    CREATE SCHEMA millrace;
    CREATE TABLE millrace.joined (task text, oid oid, is_full boolean NOT NULL, PRIMARY KEY (task, oid));";

/// Waits until the topic says what the trees are, and those that were begun so often have ended.
async fn until_same(stage: &Stage, begun_so_far: usize) {
    const SENT: [&str; 2] = ["keyed WHERE region <> 'off'", "bare_eu"];
    let mut last = String::new();
    for _ in 0..300 {
        let records = stage.topic(TASK).await;
        let told = rebuilt(&records, true);
        let sent = there(&stage.client, &SENT).await;
        let is_same = told.get("keyed") == sent.get(SENT[0]) && told.get("bare") == sent.get(SENT[1]);
        if is_same && marks(&records, "begin") == begun_so_far && marks(&records, "end") == begun_so_far {
            return;
        }
        let known = |rows: Option<&BTreeMap<String, i64>>| rows.map_or(0, BTreeMap::len);
        let counts = [told.get("keyed"), sent.get(SENT[0]), told.get("bare"), sent.get(SENT[1])].map(known);
        last = format!("{} begun, {counts:?}", marks(&records, "begin"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{}\n{last}", stage.millrace.output());
}

/// Waits until so many trees have been read.
async fn until_read(stage: &Stage, count: usize) {
    for _ in 0..300 {
        if marks(&stage.topic(TASK).await, "end") == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not {count} trees have been read: {}", stage.millrace.output());
}

/// Rows that a partition had before it was one are read, and nothing is where it has none that are not told.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_later_are_told_whole_and_asked_for_by_the_name_of_their_tree() {
    for options in [Some(PostgresOptions::default()), version(18)].into_iter().flatten() {
        let stage = Stage::with_task(options, GROWING, TASK_BY_ROOT).await;
        until_same(&stage, 3).await;
        let refused = stage.names("refused", 2).await;
        assert!(refused[0].contains("bare_far") && refused[1].contains("keyed_off"), "{refused:?}");

        stage.run("CREATE TABLE keyed_fr PARTITION OF keyed FOR VALUES IN ('fr')").await;
        stage.told_as_one(&["keyed_fr"]).await;
        stage
            .run_each(&["INSERT INTO keyed VALUES (0, 'fr', 1)", "UPDATE keyed SET v = 2 WHERE id = 0"])
            .await;
        until_same(&stage, 3).await;

        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(stage.postgres.client().await, 7, 7, stop.clone()));
        stage
            .run(
                "CREATE TABLE keyed_jp PARTITION OF keyed FOR VALUES IN ('jp'); INSERT INTO keyed_jp VALUES (1, 'jp', 1), (2, 'jp', 1);
                 UPDATE keyed SET v = 2 WHERE region = 'jp'; DELETE FROM keyed WHERE id = 1 AND region = 'jp'",
            )
            .await;
        until_read(&stage, 4).await;
        stage.run("ALTER TABLE keyed ATTACH PARTITION known FOR VALUES IN ('us')").await;
        until_read(&stage, 5).await;
        stop.store(true, Relaxed);
        writer.await.unwrap();
        until_same(&stage, 5).await;

        let (code, said) = stage.task_command(&["snapshot", TASK, "public.known"]).await;
        assert!(code == 3 && said.contains("ask for public.keyed"), "{code} {said}");
        // What is detached has its own name from here on, with the rows that it has, and what was told of it stays told.
        stage.run_each(&["ALTER TABLE keyed DETACH PARTITION keyed_fr", "UPDATE keyed_fr SET v = 3"]).await;
        until_read(&stage, 6).await;
        let told = rebuilt(&stage.topic(TASK).await, true);
        assert_eq!(told["keyed_fr"], there(&stage.client, &["keyed_fr"]).await["keyed_fr"]);
        assert!(told["keyed"].keys().any(|row| row.contains("\"fr\"")));
        assert_eq!(stage.task_command(&["snapshot", TASK, "public.keyed"]).await.0, 0);
        until_same(&stage, 7).await;
        let gaps: Vec<_> = stage.events().await;
        let gaps: Vec<_> =
            gaps.iter().filter(|event| event.value.as_ref().unwrap()["type"] == "gap").collect();
        assert!(gaps.is_empty(), "{gaps:?}");
    }
}

/// A poll sees only that it is a partition: of that other attachment, or of the name before, it knows nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_partition_while_it_is_none_is_not_missed_between_two_polls() {
    for options in [Some(PostgresOptions::default()), version(18)].into_iter().flatten() {
        let setup = format!("{GROWING}{JOINED_OF_BEFORE}");
        let mut stage = Stage::with_task_and(options, &setup, TASK_BY_ROOT, &["--join-at-creation"]).await;
        until_same(&stage, 3).await;
        stage.told_as_one(&["keyed_eu"]).await;
        // Joined in their creating transaction: as a partition, under its own name, and first the one and then the other.
        stage.run("CREATE TABLE keyed_fr PARTITION OF keyed FOR VALUES IN ('fr'); INSERT INTO keyed VALUES (1, 'fr', 1)").await;
        stage.told_as_one(&["keyed_fr"]).await;
        until_same(&stage, 3).await;
        stage
            .run(
                "CREATE TABLE keyed_jp (LIKE keyed INCLUDING ALL); INSERT INTO keyed_jp VALUES (1, 'jp', 1), (2, 'jp', 1);
                 ALTER TABLE keyed ATTACH PARTITION keyed_jp FOR VALUES IN ('jp')",
            )
            .await;
        until_same(&stage, 4).await;
        stage
            .run(
                "CREATE TABLE keyed_cn PARTITION OF keyed FOR VALUES IN ('cn'); INSERT INTO keyed VALUES (1, 'cn', 1);
                 ALTER TABLE keyed DETACH PARTITION keyed_cn",
            )
            .await;
        until_read(&stage, 5).await;
        let own = there(&stage.client, &["keyed_cn"]).await;
        assert_eq!(rebuilt(&stage.topic(TASK).await, true)["keyed_cn"], own["keyed_cn"]);
        stage.run("ALTER TABLE keyed ATTACH PARTITION keyed_cn FOR VALUES IN ('cn')").await;
        until_same(&stage, 6).await;

        let change = [
            "ALTER TABLE keyed DETACH PARTITION keyed_eu",
            "INSERT INTO keyed_eu SELECT max(id) + 1, 'eu', 0 FROM keyed_eu; DELETE FROM keyed_eu WHERE id < 10;
             UPDATE keyed_eu SET v = v + 1",
            "ALTER TABLE keyed ATTACH PARTITION keyed_eu FOR VALUES IN ('eu')",
        ];
        stage.run(&change.join(";")).await;
        until_same(&stage, 7).await;
        stage.millrace.kill9();
        stage.run_each(&change).await;
        stage.millrace.spawn_again();
        stage.millrace.wait_ready().await;
        until_same(&stage, 8).await;
        // An attachment is the same one when its row is frozen or copied, and after a restart.
        stage.millrace.kill9();
        stage.run_each(&["VACUUM FREEZE pg_inherits", "VACUUM FULL pg_inherits"]).await;
        stage.millrace.spawn_again();
        stage.millrace.wait_ready().await;
        stage.run("CREATE TABLE keyed_kr PARTITION OF keyed FOR VALUES IN ('kr')").await;
        stage.told_as_one(&["keyed_kr", "keyed_eu"]).await;
        until_same(&stage, 8).await;
    }
}

/// Where partitions are told by their own names, also where a filter keeps the table above them out of the publications.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_partitioned_table_reads_all_its_partitions() {
    let setup = "CREATE TABLE orders (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (0) TO (10);
         CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (10) TO (20);
         INSERT INTO orders VALUES (1), (2), (11);";
    for (options, expected) in [
        ("", ["orders_1 1", "orders_1 2", "orders_2 11"].as_slice()),
        (r#"{"name":"public.orders","where":"id > 1"}"#, &["orders_1 2", "orders_2 11"]),
    ] {
        if !options.is_empty() && PostgresOptions::default().version() < 15 {
            continue;
        }
        let task = format!(r#""outputs":[],"publish":{{"table_options":[{options}]}}"#);
        let stage = Stage::with_task(PostgresOptions::default(), setup, &task).await;
        while stage.task_command(&["snapshot", TASK, "public.orders"]).await.0 != 0 {
            // The first poll has yet to say what is captured.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stage.read("orders_1", 1).await;
        stage.read("orders_2", 1).await;
        let records = stage.records().await;
        let read = records.iter().filter_map(|record| record.value.as_ref());
        let row = |event: &serde_json::Value| {
            format!("{} {}", event["source"]["table"].as_str().unwrap(), event["after"]["id"])
        };
        let mut read: Vec<_> = read.filter(|event| event["op"] == "r").map(row).collect();
        read.sort();
        assert_eq!(read, expected);
    }
}
