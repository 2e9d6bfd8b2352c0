//! `millrace consume`: what people and programs see of a topic, and how it ends.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions, free_port};
use serde_json::Value;
use tempfile::TempDir;

const TOPIC: &str = "shop";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a table `t`, and a broker that captures it into the topic `shop`.
struct Stage {
    millrace: Millrace,
    client: tokio_postgres::Client,
    _postgres: Postgres,
    _data: TempDir,
}

impl Stage {
    async fn start(args: &[&str]) -> Stage {
        let postgres = Postgres::start(PostgresOptions::default()).await;
        let client = postgres.client().await;
        client
            .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY FULL")
            .await
            .unwrap();
        let data = tempfile::tempdir().unwrap();
        let options = MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", TOPIC]).args(args);
        let millrace = Millrace::start(options).await;
        Stage { millrace, client, _postgres: postgres, _data: data }
    }

    /// Runs statements, and waits until what they changed can be read.
    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
        let row = self.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        self.millrace.wait_durable(row.get(0)).await;
    }

    fn consume(&self, args: &[&str]) -> Command {
        let endpoint = format!("http://127.0.0.1:{}", self.millrace.http_port());
        let mut command = consume(args);
        command.args(["--endpoint", &endpoint]);
        command
    }

    /// Runs it to its end.
    async fn consumed(&self, args: &[&str]) -> Output {
        output(self.consume(args)).await
    }
}

fn consume(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.arg("consume").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

/// What it says when it ends with this code.
fn refusal(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn offsets(output: &Output) -> Vec<i64> {
    assert!(output.status.success(), "{output:?}");
    let offset = |line: &String| serde_json::from_str::<Value>(line).unwrap()["offset"].as_i64().unwrap();
    lines(&output.stdout).iter().map(offset).collect()
}

async fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it has not ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_what_has_changed_in_either_format() {
    for format in ["debezium-json", "protobuf"] {
        let stage = Stage::start(&["--format", format]).await;
        stage.run("INSERT INTO t VALUES (1, 'a')").await;
        stage.run("UPDATE t SET v = 'b'").await;
        stage.run("DELETE FROM t").await;
        let max = if format == "protobuf" { "3" } else { "4" };
        let output = stage.consumed(&[TOPIC, "--max", max]).await;
        assert!(output.status.success(), "{output:?}");
        // Without the time, which is that of the commit.
        let shown: Vec<String> = lines(&output.stdout)
            .iter()
            .map(|line| line.rsplit_once("  ").map_or(line.clone(), |(_, what)| what.to_owned()))
            .collect();
        let expected = [
            "insert public.t id=1",
            "v: \"a\"",
            "update public.t id=1",
            "v: \"a\" -> \"b\"",
            "delete public.t id=1",
            "v: \"b\"",
            "tombstone id=1",
        ];
        assert_eq!(shown, expected[..if format == "protobuf" { 6 } else { 7 }], "{format}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_a_line_a_record_from_where_they_say() {
    let stage = Stage::start(&[]).await;
    stage.run("INSERT INTO t SELECT g FROM generate_series(1, 5) g").await;
    let json = |args: &[&'static str]| [&[TOPIC, "--output", "json"], args].concat();
    let all = stage.consumed(&json(&["--max", "5"])).await;
    assert_eq!(offsets(&all), [0, 1, 2, 3, 4]);
    let first: Value = serde_json::from_str(&lines(&all.stdout)[0]).unwrap();
    assert_eq!((&first["partition"], &first["key"]), (&Value::from(0), &serde_json::json!({"id": 1})));
    assert_eq!(first["value"]["after"], serde_json::json!({"id": 1, "v": null}));
    assert_eq!(offsets(&stage.consumed(&json(&["--from", "3", "--max", "1"])).await), [3]);
    let past = json(&["--from", "2020-01-01T00:00:00Z", "--max", "1"]);
    assert_eq!(offsets(&stage.consumed(&past).await), [0]);
    let mut tail = stage.consume(&json(&["--from", "latest", "--max", "1"])).spawn().unwrap();
    // It may be there at any time from now on.
    let mut id = 100;
    while tail.try_wait().unwrap().is_none() {
        stage.run(&format!("INSERT INTO t VALUES ({id})")).await;
        id += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(offsets(&tail.wait_with_output().unwrap())[0] >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_behind_what_was_printed() {
    let stage = Stage::start(&[]).await;
    stage.run("INSERT INTO t SELECT g FROM generate_series(1, 10) g").await;
    let json = [TOPIC, "--output", "json", "--group", "g", "--max"];
    assert_eq!(offsets(&stage.consumed(&[&json[..], &["3"]].concat()).await), [0, 1, 2]);
    assert_eq!(offsets(&stage.consumed(&[&json[..], &["4"]].concat()).await), [3, 4, 5, 6]);
    // The rest, by one that is interrupted: it leaves, so that the next one need not wait for it.
    let mut endless = stage.consume(&json[..5]).spawn().unwrap();
    let mut printed = BufReader::new(endless.stdout.take().unwrap()).lines();
    for offset in 7..10 {
        let line: Value = serde_json::from_str(&printed.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["offset"], offset);
    }
    // SAFETY: plain system call, for a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(endless.id() as i32, libc::SIGINT) }, 0);
    assert!(ended(&mut endless).await.success());
    stage.run("INSERT INTO t VALUES (11)").await;
    let begun = Instant::now();
    assert_eq!(offsets(&stage.consumed(&[&json[..], &["1"]].concat()).await), [10]);
    assert!(begun.elapsed() < Duration::from_secs(20), "the one before had not left");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_nobody_reads_on() {
    let stage = Stage::start(&[]).await;
    stage.run("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 5000) g").await;
    let mut child = stage.consume(&[TOPIC]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    let status = ended(&mut child).await;
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(status.success() && error.is_empty(), "{status}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_what_to_do() {
    let stage = Stage::start(&[]).await;
    let missing = refusal(&stage.consumed(&["shopp"]).await, 3);
    assert!(missing.contains("there is no topic shopp; there are: shop, shop.events"), "{missing}");
    let beyond = refusal(&stage.consumed(&[TOPIC, "--from", "99"]).await, 3);
    assert!(beyond.contains("offset 99 of shop [0] is not there"), "{beyond}");
    refusal(&stage.consumed(&[TOPIC, "--from", "yesterday"]).await, 2);
    let usage = refusal(&output(consume(&[TOPIC, "--endpoint", "db:9080"])).await, 2);
    assert!(usage.contains("is not like http://127.0.0.1:9080"), "{usage}");
    let tls = refusal(&output(consume(&[TOPIC, "--endpoint", "https://db:9080"])).await, 2);
    assert!(tls.contains("is for TLS, which this command does not speak yet"), "{tls}");
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let gone = refusal(&output(consume(&[TOPIC, "--endpoint", &nowhere])).await, 4);
    assert!(gone.contains(&format!("cannot reach millrace at {nowhere}")), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_told_apart_from_other_failures() {
    for kill in [false, true] {
        let mut stage = Stage::start(&[]).await;
        stage.run("INSERT INTO t VALUES (1)").await;
        let mut child = stage.consume(&[TOPIC]).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        if kill {
            stage.millrace.kill9();
        } else {
            stage.millrace.sigterm();
        }
        let status = ended(&mut child).await;
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(status.code(), Some(4), "{error}");
        assert!(error.contains("is there no longer"), "{error}");
    }
}
