//! The configuration file, from the command line to what runs.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_test_support::{Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions, read_topic};

/// Runs a command that must end by itself, and gives its exit code and all that it printed.
async fn ended(options: MillraceOptions) -> (i32, String) {
    let mut millrace = Millrace::spawn(options);
    let status = millrace.wait().await;
    (status.code().unwrap(), millrace.output())
}

/// A configuration file in a directory.
fn written(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("millrace.toml");
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_ok_or_all_that_is_wrong_with_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = written(directory.path(), "[log]\nsegment_mb = 1\n[kafka]\nlisten = \"127.0.0.1:1\"\n");
    let name = file.to_str().unwrap();
    let check = || MillraceOptions::config("check", &data).args(&["--config", name]);
    assert_eq!(ended(check()).await, (0, "ok\n".to_owned()));
    let show =
        MillraceOptions::config("show", &data).env("MILLRACE_CONFIG", name).env("MILLRACE_LOG_CODEC", "zstd");
    let (code, shown) = ended(show).await;
    assert_eq!(code, 0);
    for line in [
        format!("data_dir = \"{}\"  # --data-dir", data.display()),
        format!("segment_mb = 1  # {name}:2:14"),
        "codec = \"zstd\"  # MILLRACE_LOG_CODEC".to_owned(),
        "retention_hours = 168  # default".to_owned(),
        "# advertise is not set".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }

    written(directory.path(), "[log]\nsegment_mb = 0\ncolour = 1\n");
    let (code, output) = ended(check().env("MILLRACE_LOG_CODEC", "gzip")).await;
    assert_eq!(code, 2);
    let expected = format!(
        "millrace: the settings cannot be used; nothing was started\n\
         {name}:2:14: log.segment_mb: 0 does not fit; write a whole number of MiB from 1 to 2048\n\
         {name}:3:1: log.colour: there is no such setting; there are log.codec, log.segment_mb, log.max_record_mb, \
         log.retention_mb, log.retention_hours\n\
         MILLRACE_LOG_CODEC: \"gzip\" does not fit; write \"none\", \"lz4\" or \"zstd\"\n"
    );
    assert_eq!(output, expected);

    fs::remove_file(&file).unwrap();
    let (code, output) = ended(check()).await;
    assert_eq!(code, 2);
    assert!(output.contains(&format!("cannot read the settings in {name}: No such file")), "{output}");
    assert!(!data.exists(), "a check leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_starts_nothing_and_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = written(directory.path(), "[kafka]\nlisten = 9092\n");
    let arguments = ["--config", file.to_str().unwrap()];
    for options in
        [MillraceOptions::serve(&data), MillraceOptions::new(&data, "postgres://nobody@127.0.0.1:1/nothing")]
    {
        let (code, output) = ended(options.args(&arguments)).await;
        assert_eq!(code, 2, "{output}");
        assert!(output.contains("kafka.listen: 9092 does not fit; write an address and a port"), "{output}");
        assert!(!data.exists());
    }
}

/// Waits until each topic holds that many records.
async fn holds(millrace: &Millrace, topics: &[(&str, usize)]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for (topic, count) in topics {
        loop {
            let records = read_topic(&millrace.bootstrap(), topic).await;
            if records.len() == *count {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{topic} has {}, not {count}:\n{}",
                records.len(),
                millrace.output()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_makes_the_tasks_and_outputs_of_its_file_adds_outputs_and_refuses_other_changes() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let shop = postgres.client().await;
    shop.batch_execute("CREATE DATABASE stock").await.unwrap();
    let stock = postgres.client_for(&postgres.url_for("postgres", PASSWORD, "stock")).await;
    for client in [&shop, &stock] {
        client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let secret = directory.path().join("password");
    fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
    let source = |database: &str| {
        format!(
            "source = \"postgres://postgres@127.0.0.1:{}/{database}\"\npassword_file = \"{}\"\n",
            postgres.port(),
            secret.display()
        )
    };
    let (at_shop, at_stock) = (source("postgres"), source("stock"));
    let outputs = r#"
        [[tasks.outputs]]
        [[tasks.outputs]]
        name = "shop_wide"
        partitions = 3
        [[tasks.outputs]]
        name = "tables"
        layout = "table"
        codec = "zstd"
        events = { gap = "off", message = "inline" }
    "#;
    let both = format!("[[tasks]]\nname = \"shop\"\n{at_shop}{outputs}\n[[tasks]]\n{at_stock}");
    let file = written(directory.path(), &both);
    let options = || MillraceOptions::serve(&data).args(&["--config", file.to_str().unwrap()]);

    let mut millrace = Millrace::start(options()).await;
    for client in [&shop, &stock] {
        client.batch_execute("INSERT INTO t SELECT generate_series(1, 5)").await.unwrap();
    }
    holds(&millrace, &[("shop", 5), ("shop_wide", 5), ("tables.public.t", 5), ("stock", 5)]).await;
    let metrics = millrace.get("/metrics").unwrap().1;
    assert!(!metrics.contains(PASSWORD) && !millrace.output().contains(PASSWORD));
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    // An output more, and a task less: that one goes on as it is saved.
    let more =
        format!("[[tasks]]\nname = \"shop\"\n{at_shop}{outputs}\n[[tasks.outputs]]\nname = \"late\"\n");
    written(directory.path(), &more);
    millrace.restart().await;
    for client in [&shop, &stock] {
        client.batch_execute("INSERT INTO t SELECT generate_series(6, 7)").await.unwrap();
    }
    holds(&millrace, &[("shop", 7), ("shop_wide", 7), ("tables.public.t", 7), ("late", 2), ("stock", 7)])
        .await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    // The file as it was at first lacks an output by now; and it asks for other partitions, and another database.
    let other = both
        .replace("partitions = 3", "partitions = 4")
        .replace("[[tasks]]\nsource", "[[tasks]]\nname = \"stock\"\nsource");
    let (first, second) = other.rsplit_once("/stock").unwrap();
    written(directory.path(), &format!("{first}/elsewhere{second}"));
    let (code, output) = ended(options()).await;
    assert_eq!(code, 3, "{output}");
    for part in [
        "nothing was changed",
        "task shop: output shop_wide: partitions is 3, not 4",
        "task shop: output late is there, and not wanted",
        "task stock captures database 'stock'",
    ] {
        assert!(output.contains(part), "'{part}' is not in:\n{output}");
    }
    written(directory.path(), &more);
    millrace.restart().await;
    holds(&millrace, &[("shop", 7), ("shop_wide", 7), ("late", 2), ("stock", 7)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_source_fails_its_checks_waits_for_that_and_the_others_go_on() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let shop = postgres.client().await;
    let role = format!("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE weak LOGIN PASSWORD '{PASSWORD}'");
    shop.batch_execute(&role).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let secret = directory.path().join("password");
    fs::write(&secret, PASSWORD).unwrap();
    let task = |name: &str, user: &str| {
        let url = postgres.url_for(user, PASSWORD, "postgres").replace(&format!(":{PASSWORD}"), "");
        format!(
            "[[tasks]]\nname = \"{name}\"\nsource = \"{url}\"\npassword_file = \"{}\"\n",
            secret.display()
        )
    };
    let file = written(directory.path(), &(task("weak", "weak") + &task("strong", "postgres")));
    let options = MillraceOptions::serve(&data).args(&["--config", file.to_str().unwrap()]);
    let mut millrace = Millrace::spawn(options);
    let state = async |millrace: &Millrace, task: &str, state: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = millrace.get(&format!("/api/v1/tasks/{task}")).map(|(_, body)| body);
            if answer.as_ref().is_some_and(|body| body.contains(&format!("\"state\":\"{state}\""))) {
                return answer.unwrap();
            }
            assert!(Instant::now() < deadline, "{task} is not {state}: {answer:?}\n{}", millrace.output());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waiting = state(&millrace, "weak", "precheck_failed").await;
    assert!(waiting.contains("run as a superuser: ALTER ROLE \\\"weak\\\" REPLICATION;"), "{waiting}");
    state(&millrace, "strong", "running").await;
    shop.batch_execute("INSERT INTO t VALUES (1), (2)").await.unwrap();
    holds(&millrace, &[("strong", 2)]).await;

    // After a restart too it is checked before anything is made.
    millrace.kill9();
    millrace.spawn_again();
    state(&millrace, "weak", "precheck_failed").await;
    let mend =
        "ALTER ROLE weak REPLICATION; GRANT CREATE ON DATABASE postgres TO weak; ALTER TABLE t OWNER TO weak";
    shop.batch_execute(mend).await.unwrap();
    state(&millrace, "weak", "running").await;
    shop.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    holds(&millrace, &[("strong", 3), ("weak", 1)]).await;
}
