//! What these tests have in common: a start that is refused, a sight that is waited for, the rows that a topic holds.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_test_support::{Millrace, MillraceOptions, Record, parse_lsn, read_topic};
use serde_json::Value;
use tokio_postgres::Client;

/// Runs a `millrace up` that must end by itself, and gives its exit code and all that it printed.
pub async fn refused(options: MillraceOptions) -> (i32, String) {
    let mut millrace = Millrace::spawn(options);
    let status = millrace.wait().await;
    (status.code().expect("an exit code"), millrace.output())
}

/// The output holds each of these.
pub fn says(output: &str, parts: &[&str]) {
    for part in parts {
        assert!(output.contains(part), "'{part}' is not in:\n{output}");
    }
}

/// Asks until the answer is yes.
pub async fn until(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !ask().await {
        assert!(Instant::now() < deadline, "within {limit:?} it was never so that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until everything that is committed is durable in the log.
pub async fn caught_up(millrace: &Millrace, client: &Client) {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    millrace.wait_durable(row.get(0)).await;
}

/// The `id`s of the rows that a topic holds, in its order; all must be inserts.
pub async fn inserted(millrace: &Millrace, topic: &str) -> Vec<i64> {
    let records = read_topic(&millrace.bootstrap(), topic).await;
    let id = |record: &Record| {
        let event = record.value.as_ref().expect("an insert");
        assert_eq!(event["op"], "c", "{event}");
        event["after"]["id"].as_i64().expect("an id")
    };
    records.iter().map(id).collect()
}

/// The gap events of a task.
pub async fn gaps(millrace: &Millrace, task: &str) -> Vec<Value> {
    let records = read_topic(&millrace.bootstrap(), &format!("{task}.events")).await;
    let events: Vec<Value> = records.into_iter().filter_map(|record| record.value).collect();
    assert!(events.iter().all(|event| event["type"] == "gap"), "{events:?}");
    events
}

/// Where a slot has been acknowledged up to.
pub async fn confirmed(client: &Client, slot: &str) -> u64 {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_one(sql, &[&slot]).await.unwrap();
    parse_lsn(row.get(0))
}

/// A file system in memory, unmounted when dropped.
pub struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one; `None` where we may not.
    pub fn mount(options: &str) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = mount(&["-t", "tmpfs", "-o", options, "none"], directory.path());
        if !mounted {
            println!("not tested: a file system cannot be mounted here; run this as root");
        }
        mounted.then_some(SmallDisk { directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Changes its options, its size for example.
    pub fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], self.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], directory: &Path) -> bool {
    let mut command = Command::new("mount");
    let output = command.args(arguments).arg(directory).output();
    output.is_ok_and(|output| output.status.success())
}
