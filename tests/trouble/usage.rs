//! Wrong usage: exit code 2; what does not fit the saved task; and secrets, which appear nowhere (I9).

use std::fs;
use std::path::Path;

use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions};

use crate::stage::{caught_up, inserted, refused, says};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_ends_with_2_and_shows_no_password() {
    let data = tempfile::tempdir().unwrap();
    let url = "postgres://u:hunter2@h/d";
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("mysql://u:hunter2@h/d", &[], &["scheme 'mysql'", "postgres://user@host/database"]),
        ("postgres://u:hun%ter2@h/d", &[], &["write special characters as %xx"]),
        ("postgres://u:hunter2@h/d?sslmode=maybe", &[], &["sslmode", "verify-full"]),
        ("postgres://u:hunter2@h/d?tcp=1", &[], &["parameter 'tcp'"]),
        (url, &["--task", "Not A Name"], &["--task", "use 1 to 40 of a-z, 0-9 and _"]),
        (url, &["--partitions", "0"], &["--partitions"]),
        (url, &["--partitions", "4", "--partition-by", "none"], &["--partition-by none means one partition"]),
        (url, &["--format", "avro"], &["--format", "debezium-json"]),
        (url, &["--oversized", "cut"], &["--oversized", "placeholder"]),
        (url, &["--kafka-advertise", "nowhere"], &["--kafka-advertise", "HOST:PORT"]),
        (url, &["--log", "=="], &["--log"]),
        (url, &["--no-such-flag"], &["--no-such-flag"]),
    ];
    for (url, arguments, parts) in cases {
        let (code, output) = refused(MillraceOptions::new(data.path(), url).args(arguments)).await;
        assert_eq!(code, 2, "{url} {arguments:?}: {output}");
        says(&output, parts);
        assert!(!output.contains("hunter2") && !output.contains("ter2"), "{output}");
    }
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0, "wrong usage leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_that_differ_from_the_saved_task_are_named_and_change_nothing() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    client.batch_execute("CREATE DATABASE other").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut first = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    first.sigterm();
    assert!(first.wait().await.success());

    let mut arguments = vec!["--task", "shop", "--partitions", "4", "--partition-by", "table"];
    arguments.extend(["--layout", "table", "--oversized", "placeholder"]);
    let mut millrace = Millrace::up(data.path(), &postgres.unix_url(), &arguments).await;
    says(
        &millrace.output(),
        &[
            "task shop is kept as it is: --partitions is 1, not 4",
            "task shop is kept as it is: --partition-by is none, not table",
            "task shop is kept as it is: --layout is task, not table",
            "task shop is kept as it is: --oversized is fail, not placeholder; change it in the file of `millrace serve`",
            "task shop was made for postgres://postgres@127.0.0.1",
        ],
    );
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    caught_up(&millrace, &client).await;
    assert_eq!(inserted(&millrace, "shop").await, [1]);
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    // What is not on the command line does not differ; and tasks that this command leaves alone are named.
    let mut wide = Millrace::up(data.path(), &postgres.url(), &["--task", "wide", "--partitions", "4"]).await;
    says(
        &wide.output(),
        &["task shop of this data directory is neither captured nor served", "`millrace serve`"],
    );
    wide.sigterm();
    assert!(wide.wait().await.success());
    let mut wide = Millrace::up(data.path(), &postgres.url(), &["--task", "wide"]).await;
    assert!(!wide.output().contains("is kept as it is"), "{}", wide.output());
    wide.sigterm();
    assert!(wide.wait().await.success());

    // Another database is another task's business: refused, and nothing there or here has changed.
    let other = postgres.url().replace("/postgres", "/other");
    let (code, output) = refused(MillraceOptions::new(data.path(), &other).args(&["--task", "shop"])).await;
    assert_eq!(code, 3, "{output}");
    says(&output, &["task shop captures database 'postgres'", "not 'other'", "--task"]);
    let slots = client.query("SELECT slot_name::text FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(slots.len(), 2);
}

/// Every file below a directory that holds these bytes.
fn files_with(directory: &Path, secret: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, secret, found);
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(secret.len()).any(|part| part == secret)) {
            found.push(path.display().to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_appears_in_no_output_page_or_file() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    let secret = "s3cret-Pa55word";
    client.batch_execute(&format!("CREATE ROLE owner SUPERUSER LOGIN PASSWORD '{secret}'")).await.unwrap();
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let by_url = postgres.url_for("owner", secret, "postgres");
    let by_environment = by_url.replace(&format!(":{secret}"), "");
    let arguments = ["--log", "debug"];
    let options = [
        MillraceOptions::new(data.path(), &by_url).args(&arguments).args(&["--task", "a"]),
        MillraceOptions::new(other.path(), &by_environment)
            .args(&arguments)
            .args(&["--task", "b"])
            .env("PGPASSWORD", secret),
    ];
    for (options, data) in options.into_iter().zip([data.path(), other.path()]) {
        let mut millrace = Millrace::start(options).await;
        // An error that has the connection's settings at hand.
        client.batch_execute("ALTER ROLE owner PASSWORD 'another'").await.unwrap();
        client
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE usename = 'owner'",
            )
            .await
            .unwrap();
        let reason = millrace.wait_state("retrying").await;
        let pages = ["/api/v1/tasks", "/metrics", "/health/ready"].map(|path| millrace.get(path).unwrap().1);
        client.batch_execute(&format!("ALTER ROLE owner PASSWORD '{secret}'")).await.unwrap();
        millrace.wait_state("running").await;
        millrace.sigterm();
        assert!(millrace.wait().await.success());
        for text in pages.iter().chain([&reason, &millrace.output()]) {
            assert!(!text.contains(secret), "{text}");
        }
        let mut found = Vec::new();
        files_with(data, secret.as_bytes(), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
