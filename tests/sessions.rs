//! What a session must take and must not take, told by cases that a random load seldom meets (I2, I5).

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use millrace_test_support::{
    Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions, Record, read_topic,
};
use tokio_postgres::Client;

/// Waits until everything committed so far is durable in the log, and gives the `id`s of the rows in the topic.
async fn ids(millrace: &Millrace, client: &Client, topic: &str) -> Vec<i64> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    millrace.wait_durable(row.get(0)).await;
    let records = read_topic(&millrace.bootstrap(), topic).await;
    records.iter().filter_map(|record| record.value.as_ref()?["after"]["id"].as_i64()).collect()
}

fn gaps(records: &[Record]) -> Vec<(String, String)> {
    let text = |record: &Record, field: &str| record.value.as_ref()?[field].as_str().map(str::to_owned);
    records.iter().filter_map(|record| Some((text(record, "cause")?, text(record, "to")?))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_sent_at_once_hides_no_transaction_around_it() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "around"]).await;
    for id in 0..10 {
        let transaction = format!(
            "BEGIN; INSERT INTO t VALUES ({id}); SELECT pg_logical_emit_message(false, 'app', 'hi'); COMMIT"
        );
        client.batch_execute(&transaction).await.unwrap();
    }
    assert_eq!(ids(&millrace, &client, "around").await, Vec::from_iter(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_accepted_gap_a_restored_cluster_with_lower_lsns_is_captured_whole() {
    // Copies of one cluster, as after a restore: what the first has written the second never had.
    let (old, new) = (
        Postgres::start(PostgresOptions::default()).await,
        Postgres::start(PostgresOptions::default()).await,
    );
    let client = old.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    for _ in 0..5 {
        client
            .batch_execute("INSERT INTO t VALUES (1); DELETE FROM t; SELECT pg_switch_wal()")
            .await
            .unwrap();
    }
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &old.url(), &["--task", "moved"]).await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(ids(&millrace, &client, "moved").await, [1]);
    millrace.kill9();

    let client = new.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let options = MillraceOptions::new(data.path(), &new.url()).args(&["--task", "moved"]);
    let mut refused = Millrace::spawn(options.clone());
    refused.wait_state("failed").await;
    refused.kill9();
    let millrace = Millrace::start(options.args(&["--accept-gap"])).await;
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(ids(&millrace, &client, "moved").await, [1, 2]);
    let gaps = gaps(&read_topic(&millrace.bootstrap(), "moved.events").await);
    let causes: Vec<_> = gaps.iter().map(|(cause, _)| cause.as_str()).collect();
    assert_eq!(
        causes,
        ["timeline_diverged", "timeline_diverged"],
        "once when it was found, once when it was accepted"
    );
    let reached = "SELECT bool_and(confirmed_flush_lsn >= $1::text::pg_lsn) FROM pg_replication_slots";
    let reached = client.query_one(reached, &[&gaps[1].1]).await.unwrap();
    assert!(reached.get::<_, bool>(0), "the gap ends where the new slot begins: {gaps:?}");
    // It was accepted once: the next is not.
    millrace.wait_state("running").await;
    let drop_slot = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots;
                     SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE active_pid IS NULL";
    while client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get::<_, i64>(0)
        > 0
    {
        // It may come back between the two.
        let _ = client.batch_execute(drop_slot).await;
    }
    millrace.wait_state("failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_joins_late_is_read_only_when_those_who_wrote_to_it_before_have_ended() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let (client, mut writer) = (postgres.client().await, postgres.client().await);
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "late"]).await;
    client.batch_execute("CREATE TABLE late (id int PRIMARY KEY)").await.unwrap();
    let open = writer.transaction().await.unwrap();
    // The first row may come before the table joins, the last does not.
    open.batch_execute("INSERT INTO late VALUES (1)").await.unwrap();
    let joined = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'";
    while client.query_one(joined, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    open.batch_execute("INSERT INTO late VALUES (2)").await.unwrap();
    // Read before they have ended, the first row would be nowhere: the stream does not have it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    open.commit().await.unwrap();
    client.batch_execute("INSERT INTO late VALUES (3)").await.unwrap();
    let (mut found, committed) = (Vec::new(), Instant::now());
    while found.len() < 3 {
        assert!(committed.elapsed() < Duration::from_secs(60), "{found:?}\n{}", millrace.output());
        found = ids(&millrace, &client, "late").await;
    }
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3]);
    assert_eq!(gaps(&read_topic(&millrace.bootstrap(), "late.events").await), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_inside_a_large_transaction_ends_in_time_and_the_next_start_takes_it_whole() {
    const ROWS: i64 = 60_000;
    // A source with little patience, too: it wants to hear of us while a transaction is read back.
    let options = PostgresOptions::default()
        .setting("logical_decoding_work_mem", "64kB")
        .setting("wal_sender_timeout", "1500ms");
    let postgres = Postgres::start(options).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, note text)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "stopped"]).await;
    let insert = format!("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, {ROWS}) g");
    client.batch_execute(&insert).await.unwrap();
    for wait in [50, 250, 500] {
        // Once while it arrives or is read back, and again while it comes anew.
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let asked = Instant::now();
        millrace.sigterm();
        assert!(millrace.wait().await.success(), "{}", millrace.output());
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}:\n{}", asked.elapsed(), millrace.output());
        millrace.spawn_again();
        millrace.wait_ready().await;
    }
    assert_eq!(ids(&millrace, &client, "stopped").await, Vec::from_iter(1..=ROWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_goes_on_with_every_task_of_a_data_directory() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    for task in ["first", "second"] {
        Millrace::up(data.path(), &postgres.url(), &["--task", task]).await.kill9();
    }
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let options = MillraceOptions::serve(data.path()).env("PGPASSWORD", PASSWORD);
    let mut millrace = Millrace::start(options).await;
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    for topic in ["first", "second"] {
        while ids(&millrace, &client, topic).await != [1, 2] {
            assert!(Instant::now() < deadline, "{topic} does not go on:\n{}", millrace.output());
        }
    }
    millrace.sigterm();
    assert_eq!(millrace.wait().await.code(), Some(0));
}
