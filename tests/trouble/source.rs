//! A source that cannot be captured, from the command line on: exit code, what failed, why and the next step.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace::postgres::replication::ReplicationConnection;
use millrace::postgres::source::SourceConfig;
use millrace_test_support::{Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions, free_port};

use crate::stage::{confirmed, gaps, inserted, refused, says, until};

/// `up` is refused, says all of this and leaves nothing in the data directory that a right start would stumble over.
async fn up_fails(data: &Path, url: &str, parts: &[&str]) {
    let (code, output) = refused(MillraceOptions::new(data, url)).await;
    assert_eq!(code, 1, "{output}");
    says(&output, parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_host_port_or_database_is_named_with_the_next_step() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let data = tempfile::tempdir().unwrap();
    let wrong = postgres.url_for("postgres", "not-the-password", "postgres");
    let parts = ["password authentication failed", "user 'postgres'", "check user and password"];
    up_fails(data.path(), &wrong, &parts).await;
    up_fails(
        data.path(),
        &postgres.url_for("postgres", PASSWORD, "absent"),
        &["database 'absent' does not exist", "check its name"],
    )
    .await;
    up_fails(
        data.path(),
        &postgres.url_for("stranger", PASSWORD, "postgres"),
        &["user 'stranger'", "check user and password"],
    )
    .await;
    let elsewhere = format!("postgres://postgres@127.0.0.1:{}/postgres", free_port());
    up_fails(data.path(), &elsewhere, &["refuses connections", "check that PostgreSQL runs there"]).await;
    let nowhere = "postgres://postgres@no-such-host.invalid/postgres";
    up_fails(data.path(), nowhere, &["host 'no-such-host.invalid' is not found", "check its spelling"]).await;

    let millrace = Millrace::up(data.path(), &postgres.url(), &[]).await;
    assert_eq!(
        millrace.task().unwrap()["state"],
        "running",
        "no failed start stands in the way of a right one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_free_slot_and_free_sender_says_what_to_set() {
    let options = PostgresOptions::default()
        .setting("wal_level", "replica")
        .setting("max_replication_slots", "1")
        .setting("max_wal_senders", "1");
    let postgres = Postgres::start(options).await;
    let client = postgres.client().await;
    client.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").await.unwrap();
    let config = SourceConfig::parse(&postgres.url()).unwrap();
    let _sender = ReplicationConnection::connect(&config).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let parts = [
        "wal_level is replica",
        "ALTER SYSTEM SET wal_level = logical;",
        "all 1 replication slots of the server are taken",
        "ALTER SYSTEM SET max_replication_slots = 11;",
        "all 1 WAL senders of the server are in use",
        "ALTER SYSTEM SET max_wal_senders = 11;",
        "restart the server",
        "the database cannot be captured yet",
    ];
    up_fails(data.path(), &postgres.url(), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_replication_is_told_the_statement_that_grants_it() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE ROLE reader LOGIN PASSWORD 'reading'; GRANT CREATE ON DATABASE postgres TO reader",
        )
        .await
        .unwrap();
    let data = tempfile::tempdir().unwrap();
    let url = postgres.url_for("reader", "reading", "postgres");
    up_fails(
        data.path(),
        &url,
        &["role 'reader' may not use replication", "ALTER ROLE \"reader\" REPLICATION;"],
    )
    .await;

    // What it says helps; taken away again under a running task, it is named there too.
    client.batch_execute("ALTER ROLE reader REPLICATION").await.unwrap();
    let mut millrace = Millrace::up(data.path(), &url, &[]).await;
    millrace.kill9();
    client.batch_execute("ALTER ROLE reader NOREPLICATION").await.unwrap();
    millrace.spawn_again();
    let reason = millrace.wait_state("retrying").await;
    says(&reason, &["ALTER ROLE \"reader\" REPLICATION"]);
    client.batch_execute("ALTER ROLE reader REPLICATION").await.unwrap();
    millrace.wait_state("running").await;
}

/// The oldest server that is refused, if it is there: `deploy/fetch-postgres.sh 13` brings it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_older_than_14_is_refused_by_its_version() {
    let fetched = Command::new("deploy/fetch-postgres.sh").arg("13").output();
    if !fetched.as_ref().is_ok_and(|output| output.status.success()) {
        println!("not tested: PostgreSQL 13 cannot be fetched: {fetched:?}");
        return;
    }
    let postgres = Postgres::start(PostgresOptions::default().major(13)).await;
    let data = tempfile::tempdir().unwrap();
    up_fails(
        data.path(),
        &postgres.url(),
        &["PostgreSQL 13", "upgrade the server to PostgreSQL 14 or later"],
    )
    .await;
}

/// Another database of the cluster writes, ours is idle: the slot follows (heartbeats), and a restart finds no gap.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_keeps_no_wal_and_a_kill_after_its_keepalives_is_no_gap() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    client.batch_execute("CREATE DATABASE busy").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "idle"]).await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();

    let busy = postgres.client_for(&postgres.url_for("postgres", PASSWORD, "busy")).await;
    busy.batch_execute("CREATE TABLE big AS SELECT g, repeat('x', 1000) FROM generate_series(1, 50000) g")
        .await
        .unwrap();
    let row = busy.query_one("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8", &[]).await.unwrap();
    let written = row.get::<_, i64>(0) as u64;
    until("the slot has followed the other database's WAL", Duration::from_secs(40), async || {
        confirmed(&client, "millrace_idle").await >= written
    })
    .await;
    // What is kept goes by restart_lsn, which follows the next snapshot of running transactions.
    until("the source keeps next to nothing for the slot", Duration::from_secs(60), async || {
        let sql = "SELECT (pg_current_wal_lsn() - restart_lsn)::int8 FROM pg_replication_slots";
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) < 5 << 20
    })
    .await;

    for id in 2..=3 {
        millrace.restart().await;
        client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
        crate::stage::caught_up(&millrace, &client).await;
    }
    assert_eq!(inserted(&millrace, "idle").await, [1, 2, 3]);
    assert_eq!(gaps(&millrace, "idle").await.len(), 0, "no gap is reported where none is");
}
