//! The replication slot: never made anew quietly (I5), and never a leftover that nobody may touch.

use std::time::{Duration, Instant};

use millrace::state::{DataDir, Intent, Store};
use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions, parse_lsn, read_topic};
use tokio_postgres::Client;

use crate::stage::{caught_up, confirmed, gaps, inserted, refused, says, until};

async fn start() -> (Postgres, Client, tempfile::TempDir) {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    (postgres, client, tempfile::tempdir().unwrap())
}

async fn insert(client: &Client, id: i64) {
    client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
}

async fn make_slot(client: &Client, name: &str) {
    let sql = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_our_state_is_refused_and_adopted_when_told_to() {
    let (postgres, client, data) = start().await;
    make_slot(&client, "millrace_shop").await;
    let before = confirmed(&client, "millrace_shop").await;
    insert(&client, 1).await;
    let (code, output) =
        refused(MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", "shop"])).await;
    assert_eq!(code, 1, "{output}");
    says(
        &output,
        &["'millrace_shop' exists", "--adopt-slot", "SELECT pg_drop_replication_slot('millrace_shop');"],
    );
    assert_eq!(confirmed(&client, "millrace_shop").await, before, "a refused slot is left alone");

    // A slot older than the publications cannot give what came before them, and says so.
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--adopt-slot"]).await;
    insert(&client, 2).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [2]);
    let gaps = gaps(&millrace, "shop").await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0]["cause"], "slot_older_than_publications");
    assert_eq!(parse_lsn(gaps[0]["from"].as_str().unwrap()), before);
}

/// The data directory is lost, slot and publications are there: adopted, it goes on where it was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_slot_of_ours_goes_on_where_it_stood() {
    let (postgres, client, lost) = start().await;
    let mut first = Millrace::up(lost.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1).await;
    caught_up(&first, &client).await;
    first.sigterm();
    assert!(first.wait().await.success());
    insert(&client, 2).await;
    client.batch_execute("CREATE TABLE late (id bigint PRIMARY KEY)").await.unwrap();

    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--adopt-slot"]).await;
    insert(&client, 3).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [2, 3]);
    // The table that has joined only now is read, and told to be complete.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let records = read_topic(&millrace.bootstrap(), "shop.events").await;
        let mut events = records.iter().filter_map(|record| record.value.as_ref());
        if events.any(|event| event["stage"] == "end") {
            assert!(
                records.iter().all(|record| record.value.as_ref().unwrap()["table"] == "late"),
                "{records:?}"
            );
            break;
        }
        assert!(Instant::now() < deadline, "{records:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_reads_is_waited_for_and_its_reader_named() {
    let (postgres, client, data) = start().await;
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    // Another Millrace that was given the same slot.
    let thief = tempfile::tempdir().unwrap();
    let mut other = Millrace::up(thief.path(), &postgres.url(), &["--task", "shop", "--adopt-slot"]).await;

    millrace.spawn_again();
    let reason = millrace.wait_state("retrying").await;
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'millrace_shop'";
    let pid: i32 = client.query_one(sql, &[]).await.unwrap().get(0);
    let next_step = format!("SELECT pg_terminate_backend({pid})");
    says(&reason, &["millrace_shop is in use", &next_step]);
    let (status, body) = millrace.get("/health/ready").unwrap();
    assert_eq!(status, 503);
    says(&body, &["shop retrying", "is in use"]);

    // What the other has taken is missing here: said, and not passed over (I5).
    insert(&client, 1).await;
    caught_up(&other, &client).await;
    other.sigterm();
    assert!(other.wait().await.success());
    let reason = millrace.wait_state("failed").await;
    says(&reason, &["slot_ahead", "somebody else", "--accept-gap"]);
    assert_eq!(inserted(&millrace, "shop").await, [0; 0]);
    assert_eq!(gaps(&millrace, "shop").await[0]["cause"], "slot_ahead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_while_we_run_fails_the_task_until_the_gap_is_accepted() {
    let (postgres, client, data) = start().await;
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1).await;
    caught_up(&millrace, &client).await;
    client
        .batch_execute(
            "DO $$ BEGIN
               LOOP
                 PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
                 BEGIN
                   PERFORM pg_drop_replication_slot('millrace_shop');
                   EXIT;
                 EXCEPTION WHEN object_in_use THEN PERFORM pg_sleep(0.001);
                 END;
               END LOOP;
             END $$",
        )
        .await
        .unwrap();
    let reason = millrace.wait_state("failed").await;
    says(&reason, &["slot was dropped", "are lost to this task", "--accept-gap"]);
    insert(&client, 2).await;
    assert_eq!(inserted(&millrace, "shop").await, [1], "what is durable stays served");
    let count = async || client.query("SELECT FROM pg_replication_slots", &[]).await.unwrap().len();

    // Not made anew, not by a restart either, and reported once.
    millrace.kill9();
    millrace.spawn_again();
    millrace.wait_state("failed").await;
    assert_eq!(count().await, 0, "a slot is never made anew quietly");
    let reported = gaps(&millrace, "shop").await;
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0]["cause"], "slot_missing");
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--accept-gap"]).await;
    assert_eq!(count().await, 1);
    insert(&client, 3).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [1, 3]);
    let accepted = gaps(&millrace, "shop").await;
    let (from, to) = (&accepted.last().unwrap()["from"], &accepted.last().unwrap()["to"]);
    assert!(
        parse_lsn(from.as_str().unwrap()) < parse_lsn(to.as_str().unwrap()),
        "the gap has an end: {accepted:?}"
    );
}

/// While the task is stopped the source writes more than `max_slot_wal_keep_size` and gives the slot up.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_source_gave_up_fails_the_task_until_the_gap_is_accepted() {
    let postgres = Postgres::start(PostgresOptions::default().setting("max_slot_wal_keep_size", "1MB")).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1).await;
    caught_up(&millrace, &client).await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    for statement in ["INSERT INTO t VALUES (2)", "SELECT pg_switch_wal()", "INSERT INTO t VALUES (3)"] {
        client.batch_execute(statement).await.unwrap();
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
    client.batch_execute("CHECKPOINT").await.unwrap();
    millrace.spawn_again();
    let reason = millrace.wait_state("failed").await;
    says(&reason, &["has given up the replication slot", "are lost to this task", "--accept-gap"]);
    assert_eq!(gaps(&millrace, "shop").await[0]["cause"], "slot_lost");
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--accept-gap"]).await;
    insert(&client, 4).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [1, 4]);
}

/// Without the publication the server fails on the next change, or from version 18 on leaves out every change.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_dropped_while_we_run_fails_the_task_until_the_gap_is_accepted() {
    let (postgres, client, data) = start().await;
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1).await;
    caught_up(&millrace, &client).await;
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let dropped = parse_lsn(row.get(0));
    client.batch_execute("DROP PUBLICATION millrace_shop").await.unwrap();
    insert(&client, 2).await;
    let reason = millrace.wait_state("failed").await;
    says(&reason, &["publication millrace_shop was dropped", "--accept-gap"]);
    let reported = gaps(&millrace, "shop").await;
    assert_eq!((reported.len(), &reported[0]["cause"]), (1, &"publication_missing".into()));
    assert!(parse_lsn(reported[0]["from"].as_str().unwrap()) <= dropped, "{reported:?}");
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--accept-gap"]).await;
    insert(&client, 3).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [1, 3]);
}

/// A snapshot of the source is restored, with the slot as it was then: the log holds what the source has lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_source_fails_the_task_until_the_gap_is_accepted() {
    let (mut postgres, client, data) = start().await;
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1).await;
    caught_up(&millrace, &client).await;
    drop(client);
    postgres.stop_fast().await;
    let copy = tempfile::tempdir().unwrap();
    let copied = |from: &std::path::Path, to: &std::path::Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    copied(&postgres.data_dir(), &copy.path().join("data"));
    postgres.start_again().await;
    let client = postgres.client().await;
    client.batch_execute("INSERT INTO t SELECT g FROM generate_series(2, 5000) g").await.unwrap();
    caught_up(&millrace, &client).await;
    millrace.kill9();
    drop(client);
    postgres.stop_immediate().await;
    std::fs::remove_dir_all(postgres.data_dir()).unwrap();
    copied(&copy.path().join("data"), &postgres.data_dir());
    postgres.start_again().await;

    let client = postgres.client().await;
    millrace.spawn_again();
    let reason = millrace.wait_state("failed").await;
    says(&reason, &["timeline_diverged", "--accept-gap"]);
    assert_eq!(gaps(&millrace, "shop").await[0]["cause"], "timeline_diverged");
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop", "--accept-gap"]).await;
    insert(&client, 2).await;
    caught_up(&millrace, &client).await;
    let ids = inserted(&millrace, "shop").await;
    assert!(ids.into_iter().eq((1..=5_000).chain([2])), "what was captured stays, what follows is captured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_creation_was_cut_short_is_made_again() {
    let (postgres, client, data) = start().await;
    make_slot(&client, "millrace_shop").await;
    let leftover = confirmed(&client, "millrace_shop").await;
    insert(&client, 1).await;
    let system: String = client
        .query_one("SELECT system_identifier::text FROM pg_control_system()", &[])
        .await
        .unwrap()
        .get(0);
    {
        let directory = DataDir::open(data.path()).unwrap();
        let store = Store::open(&directory).unwrap();
        let source = millrace::postgres::source::SourceConfig::parse(&postgres.url()).unwrap().display();
        let definition = format!(
            r#"{{"name":"shop","source":"{source}","format":"debezium-json","partitions":1,"partition_by":"none"}}"#
        );
        store.add_task("shop", &definition, "created", "", 0).unwrap();
        let intent = Intent {
            slot: "millrace_shop".into(),
            system_identifier: system.parse().unwrap(),
            generation: 1,
        };
        store.set_intent("shop", &intent).unwrap();
    }
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    assert!(confirmed(&client, "millrace_shop").await > leftover, "it is a new slot");
    insert(&client, 2).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [2]);
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);
}

/// SIGKILL while the server still makes the slot, for which it waits until transactions that are open have ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_the_slot_waits_for_an_open_transaction_is_made_good_when_it_ends() {
    let (postgres, client, data) = start().await;
    let writer = postgres.client().await;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let mut millrace =
        Millrace::spawn(MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", "shop"]));
    // Only in its wait for the lock does a walsender not see that its client has gone: before that it ends, and takes
    // the slot away.
    until("the making of the slot waits for the transaction", Duration::from_secs(30), async || {
        let sql =
            "SELECT FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'";
        !client.query(sql, &[]).await.unwrap().is_empty()
    })
    .await;
    millrace.kill9();
    millrace.spawn_again();
    says(&millrace.wait_state("retrying").await, &["millrace_shop is in use", "pg_terminate_backend"]);
    writer.batch_execute("COMMIT").await.unwrap();
    millrace.wait_state("running").await;
    insert(&client, 2).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await.last(), Some(&2));
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);

    // Told to stop while it waits for another, it does not wait.
    let other = tempfile::tempdir().unwrap();
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    let mut waiting =
        Millrace::spawn(MillraceOptions::new(other.path(), &postgres.url()).args(&["--task", "other"]));
    until("the other slot is being made", Duration::from_secs(30), async || {
        let sql = "SELECT FROM pg_replication_slots WHERE slot_name = 'millrace_other' AND active";
        !client.query(sql, &[]).await.unwrap().is_empty()
    })
    .await;
    waiting.wait_state("starting").await;
    waiting.sigterm();
    assert_eq!(waiting.wait().await.code(), Some(0), "{}", waiting.output());
}

/// Has a slot made in the one way that leaves it without a table (`slot_undecodable`), and the task started for that.
async fn undecodable(start: &str) -> (Postgres, Client, tempfile::TempDir, Millrace) {
    let (postgres, client, data) = self::start().await;
    let [oldest, older, writer] = [postgres.client().await, postgres.client().await, postgres.client().await];
    oldest.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let args = ["--task", "shop", "--start", start];
    let millrace = Millrace::spawn(MillraceOptions::new(data.path(), &postgres.url()).args(&args));
    let waits_for = async |transaction: &Client| {
        let pid: i32 = transaction.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let sql = "SELECT FROM pg_stat_activity WHERE backend_type = 'walsender' AND $1 = ANY (pg_blocking_pids(pid))";
        until("the making of the slot waits for the transaction", Duration::from_secs(30), async || {
            !client.query(sql, &[&pid]).await.unwrap().is_empty()
        })
        .await;
    };
    waits_for(&oldest).await;
    older.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    // This commit is forgotten, and counts as open while an older transaction is.
    client.batch_execute("CREATE TABLE late (id bigint PRIMARY KEY)").await.unwrap();
    oldest.batch_execute("COMMIT").await.unwrap();
    waits_for(&older).await;
    writer.batch_execute("BEGIN; INSERT INTO late VALUES (1)").await.unwrap();
    older.batch_execute("COMMIT").await.unwrap();
    until("the slot is made", Duration::from_secs(30), async || {
        let sql = "SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL";
        !client.query(sql, &[]).await.unwrap().is_empty()
    })
    .await;
    writer.batch_execute("COMMIT").await.unwrap();
    (postgres, client, data, millrace)
}

/// No attempt can ever succeed: it is said, and a person decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_cannot_decode_is_reported() {
    let (_postgres, client, _data, mut millrace) = undecodable("now").await;
    says(&millrace.wait_state("failed").await, &["slot_undecodable", "could not map file", "--accept-gap"]);
    millrace.sigterm();
    assert_eq!(millrace.wait().await.code(), Some(0), "{}", millrace.output());
    millrace.add_args(&["--accept-gap"]);
    millrace.spawn_again();
    millrace.wait_state("running").await;
    insert(&client, 2).await;
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [2]);
    let gaps = gaps(&millrace, "shop").await;
    assert!(gaps.iter().all(|gap| gap["cause"] == "slot_undecodable"), "{gaps:?}");
    assert_eq!(gaps.len(), 2, "one when it was found, one to where the new slot begins: {gaps:?}");
}

/// What the task starts with has not been told yet, so nothing is lost with the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_decoded_is_made_anew_while_existing_rows_are_read() {
    let (_postgres, client, _data, millrace) = undecodable("snapshot").await;
    millrace.wait_state("running").await;
    client.batch_execute("INSERT INTO late VALUES (2)").await.unwrap();
    caught_up(&millrace, &client).await;
    let records = read_topic(&millrace.bootstrap(), "shop").await;
    let told = |record: &millrace_test_support::Record| {
        let event = record.value.as_ref()?;
        let id = event["after"]["id"].as_i64()?;
        Some((event["op"].as_str()?.to_owned(), id))
    };
    let told: Vec<_> = records.iter().filter_map(told).collect();
    assert_eq!(told, [("r".to_owned(), 1), ("c".to_owned(), 2)]);
    let events = read_topic(&millrace.bootstrap(), "shop.events").await;
    let types: Vec<_> = events.iter().filter_map(|event| event.value.as_ref()?["type"].as_str()).collect();
    assert!(types.iter().all(|kind| *kind == "snapshot"), "nothing is missing: {events:?}");
}

/// SIGKILL somewhere in the first second: the next start comes up by itself and misses nothing from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_the_first_start_leaves_nothing_that_the_next_stumbles_over() {
    let (postgres, client, _) = start().await;
    let mut expected = Vec::new();
    for round in 0..8 {
        let data = tempfile::tempdir().unwrap();
        let task = format!("k{round}");
        let options = MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", &task]);
        let mut millrace = Millrace::spawn(options);
        if round % 2 == 0 {
            // Each of these is the moment in which the slot has just appeared.
            let sql = "SELECT FROM pg_replication_slots WHERE slot_name = $1";
            let slot = format!("millrace_{task}");
            until("the slot is there", Duration::from_secs(30), async || {
                !client.query(sql, &[&slot]).await.unwrap().is_empty()
            })
            .await;
        } else {
            tokio::time::sleep(Duration::from_millis(100 * round)).await;
        }
        millrace.restart().await;
        insert(&client, round as i64).await;
        expected.push(round as i64);
        caught_up(&millrace, &client).await;
        assert_eq!(inserted(&millrace, &task).await, expected[round as usize..]);
        assert_eq!(gaps(&millrace, &task).await.len(), 0);
        millrace.sigterm();
        assert!(millrace.wait().await.success());
    }
}
