//! New tables that join in the transaction that creates them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use millrace_test_support::{MillraceOptions, PostgresOptions};
use serde_json::Value;

use crate::stage::{Stage, TASK, expect, rows, run};

const ARGUMENTS: &[&str] = &["--join-at-creation", "--exclude", "*.left_out*"];

/// Waits until a count is as it should be.
async fn until(stage: &Stage, sql: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while stage.ask(sql).await != expected {
        assert!(Instant::now() < deadline, "{sql} is not {expected}:\n{}", stage.millrace.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const TRIGGERS: &str = "SELECT count(*)::text FROM pg_event_trigger WHERE evtname = 'millrace_t_join'";
/// Tables that have joined so, of which the watcher does not know yet.
const UNTOLD: &str = "SELECT count(*)::text FROM millrace.joined";

/// Waits until the watcher has nothing to do, so that it is in nobody's way.
async fn is_settled(stage: &Stage) {
    until(stage, UNTOLD, "0").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn start() -> Stage {
    let setup = "CREATE ROLE worker LOGIN; CREATE SCHEMA work AUTHORIZATION worker";
    let stage = Stage::start(PostgresOptions::default(), setup, ARGUMENTS).await;
    until(&stage, TRIGGERS, "1").await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_captured_from_the_first_row_of_its_creating_transaction_on() {
    let mut stage = start().await;
    stage
        .run_each(&[
            "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); UPDATE a SET id = 2",
            // Without a key, in a DO block, below a savepoint, and one that does not come to be.
            "DO $$ BEGIN CREATE TABLE b (id int); INSERT INTO b VALUES (1); UPDATE b SET id = 2; END $$",
            "BEGIN; SAVEPOINT s; CREATE TABLE gone (id int); INSERT INTO gone VALUES (1); ROLLBACK TO s;
             SAVEPOINT u; CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1); RELEASE u; COMMIT",
            "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (3)",
            "CREATE TABLE left_out (id int PRIMARY KEY); INSERT INTO left_out VALUES (1);
             CREATE TABLE left_out_p (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE part PARTITION OF left_out_p DEFAULT; INSERT INTO part VALUES (1)",
            "CREATE TEMPORARY TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
            // Before version 18 a generated key is not sent, and the update would fail.
            "CREATE TABLE g (v int, id int GENERATED ALWAYS AS (v) STORED PRIMARY KEY); INSERT INTO g (v) VALUES (1);
             UPDATE g SET v = v",
            "CREATE SCHEMA made CREATE TABLE d (id int PRIMARY KEY); INSERT INTO made.d VALUES (4)",
        ])
        .await;
    // Somebody who may do little, in a function, with little time and a search path that means harm.
    let worker = stage.postgres.client().await;
    run(
        &worker,
        "SET SESSION AUTHORIZATION worker;
         CREATE TABLE work.pg_class (id int PRIMARY KEY); SET search_path = work, pg_catalog; SET statement_timeout = '5s'",
    )
    .await;
    run(
        &worker,
        "CREATE FUNCTION work.make() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           CREATE TABLE work.\"It's \\ 100%\" (id int PRIMARY KEY); INSERT INTO work.\"It's \\ 100%\" VALUES (7); END $$",
    )
    .await;
    run(&worker, "SELECT work.make()").await;
    // The rows of a query are written before its table can join: the poll's.
    stage.run("CREATE TABLE queried AS SELECT 1 AS id").await;
    let expected = [
        r#"a {"id":1} c null {"id":1}"#,
        r#"a {"id":1} d {"id":1} null __debezium.newkey={"id":2}"#,
        r#"{"id":1} tombstone __debezium.newkey={"id":2}"#,
        r#"a {"id":2} c null {"id":2} __debezium.oldkey={"id":1}"#,
        r#"b - c null {"id":1}"#,
        r#"c {"id":1} c null {"id":1}"#,
        r#"p1 {"id":3} c null {"id":3}"#,
        r#"d {"id":4} c null {"id":4}"#,
        r#"It's \ 100% {"id":7} c null {"id":7}"#,
    ];
    until(&stage, "SELECT count(*)::text FROM pg_publication_rel WHERE prrelid = 'queried'::regclass", "1")
        .await;
    arrives(&stage, "queried").await;
    until(&stage, UNTOLD, "0").await;
    let mut records = stage.records().await;
    let is_other = |event: &Value| event["source"]["table"] == "queried" || event["source"]["table"] == "g";
    records.retain(|record| record.value.as_ref().is_none_or(|event| !is_other(event)));
    expect(&records, &expected);
    assert_eq!(late(&stage).await, BTreeSet::from(["queried".to_owned()]));

    // While the broker is down.
    stage.millrace.kill9();
    stage.run("CREATE TABLE e (id int PRIMARY KEY); INSERT INTO e VALUES (9)").await;
    stage.millrace.spawn_again();
    stage.millrace.wait_ready().await;
    until(&stage, UNTOLD, "0").await;
    let records = stage.records().await;
    expect(&records[records.len() - 1..], &[r#"e {"id":9} c null {"id":9}"#]);
    assert!(!late(&stage).await.contains("e"));
}

/// Tables that were read, or of which a gap event tells, because they did not join in their creating transaction.
async fn late(stage: &Stage) -> BTreeSet<String> {
    let events = stage.events().await;
    let told = events.iter().filter_map(|event| event.value.as_ref());
    let told = told.filter(|event| event["type"] == "gap" || event["type"] == "snapshot");
    let name =
        |event: &Value| event["table"]["table"].as_str().or(event["table"].as_str()).map(str::to_owned);
    told.filter_map(name).collect()
}

/// Waits until a table's one row has arrived, whichever way.
async fn arrives(stage: &Stage, table: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match rows(&stage.records().await, table).len() {
            0 => assert!(Instant::now() < deadline, "{table} is missing:\n{}", stage.millrace.output()),
            1 => return,
            more => panic!("the row of {table} came {more} times"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Who creates a table notices nothing, whatever is the matter (I7); the poll adds the table later.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_creates_a_table_neither_waits_nor_fails_for_us() {
    let stage = start().await;
    stage.run("CREATE TABLE kept (id int PRIMARY KEY)").await;
    is_settled(&stage).await;
    let create = async |name: &str| {
        let user = stage.postgres.client().await;
        run(&user, "SET statement_timeout = '5s'; SET default_transaction_isolation = 'serializable'").await;
        run(&user, &format!("CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1)")).await;
    };
    let other = stage.postgres.client().await;
    // A transaction that has created a table stays open.
    run(&other, "BEGIN; CREATE TABLE slow (id int PRIMARY KEY)").await;
    create("beside_open").await;
    run(&other, "INSERT INTO slow VALUES (1); COMMIT").await;
    arrives(&stage, "beside_open").await;
    arrives(&stage, "slow").await;
    assert_eq!(late(&stage).await, BTreeSet::from(["beside_open".to_owned()]));
    // Somebody alters the publication, or locks our table.
    for (name, lock) in [
        ("beside_altered", "ALTER PUBLICATION millrace_t DROP TABLE kept"),
        ("beside_locked", "LOCK TABLE millrace.joined"),
    ] {
        run(&other, &format!("BEGIN; {lock}")).await;
        create(name).await;
        run(&other, "ROLLBACK").await;
        arrives(&stage, name).await;
    }
    // What we need is gone.
    run(&other, "DROP TABLE millrace.joined").await;
    create("without_table").await;
    arrives(&stage, "without_table").await;
    run(&other, "DROP PUBLICATION millrace_t, millrace_t_insert_only").await;
    create("without_publication").await;
    run(&other, "DROP SCHEMA millrace CASCADE").await;
    create("without_anything").await;
}

/// It is there only as long as it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn the_event_trigger_goes_when_it_is_no_longer_wanted() {
    let mut stage = start().await;
    stage.millrace.sigterm();
    assert!(stage.millrace.wait().await.success());
    let options = MillraceOptions::new(stage.data(), &stage.postgres.url()).args(&["--task", TASK]);
    stage.millrace = millrace_test_support::Millrace::start(options).await;
    until(&stage, TRIGGERS, "0").await;
    stage.run("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)").await;
    arrives(&stage, "later").await;
    assert_eq!(late(&stage).await, BTreeSet::from(["later".to_owned()]));
}

/// Whoever may create a schema can make ours first, and prepare in it what would run with a superuser's rights.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_that_somebody_else_has_prepared_in_a_schema_of_our_name() {
    let setup = "
        CREATE ROLE worker LOGIN; CREATE SCHEMA millrace AUTHORIZATION worker;
        SET SESSION AUTHORIZATION worker;
        CREATE TABLE millrace.joined (task text, oid oid, is_full boolean, PRIMARY KEY (task, oid));
        CREATE FUNCTION millrace.harm() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN ALTER ROLE worker SUPERUSER; RETURN NEW; END $$;
        CREATE TRIGGER harm BEFORE INSERT OR DELETE ON millrace.joined EXECUTE FUNCTION millrace.harm();
        CREATE FUNCTION millrace.join_t() RETURNS event_trigger LANGUAGE plpgsql AS $$
            BEGIN ALTER ROLE worker SUPERUSER; END $$;
        RESET SESSION AUTHORIZATION";
    let stage = Stage::start(PostgresOptions::default(), setup, ARGUMENTS).await;
    stage.run("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    arrives(&stage, "a").await;
    assert_eq!(stage.ask(TRIGGERS).await, "0");
    assert_eq!(stage.ask("SELECT rolsuper::text FROM pg_roles WHERE rolname = 'worker'").await, "false");
    let output = stage.millrace.output();
    assert!(output.contains("schema millrace belongs to worker"), "{output}");
    assert!(output.contains("DROP SCHEMA millrace CASCADE"), "{output}");
    // A superuser's schema, in which somebody else has made the function.
    stage
        .run(
            "DROP SCHEMA millrace CASCADE; CREATE SCHEMA millrace; GRANT CREATE ON SCHEMA millrace TO worker;
             SET ROLE worker;
             CREATE FUNCTION millrace.join_t() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
             RESET ROLE",
        )
        .await;
    stage.run("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)").await;
    arrives(&stage, "b").await;
    assert_eq!(stage.ask(TRIGGERS).await, "0");
    // Nobody's any more: it is made without a restart.
    stage.run("DROP SCHEMA millrace CASCADE").await;
    until(&stage, TRIGGERS, "1").await;
}
