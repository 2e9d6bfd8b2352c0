//! Kafka Connect, which copies the topic into a file with the connector that comes with it.
//!
//! The file has the changes alone. Where a change stands in the log is looked up, to judge what came twice.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Protocol, Start, Troupe, java_with};
use crate::compatibility::Verdict;
use crate::group::committed;
use crate::ledger::Offsets;
use crate::read;
use crate::stage::{Stage, TOPIC};

/// Of `make apache-kafka`.
const LIBRARIES: [&str; 2] =
    [concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apache-kafka/target/lib"), "console"];
/// Connect's name for the group of a sink called `file`.
const GROUP: &str = "connect-file";

#[test]
#[ignore = "make test-all"]
fn connect_copies_a_topic_into_a_file_and_loses_nothing_through_crashes_on_both_sides() {
    let version = java_with(&LIBRARIES).args(["ClientStory", "version"]).output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let _verdict = Verdict::of_program("Kafka Connect", "Java", version.trim(), "sink into a file");

    let mut stage = Stage::start();
    let mut sink = Sink::new(&stage);
    sink.start();
    stage.write(40);
    sink.settle(&stage);
    sink.assert_repeats_only_beyond(&stage, None);

    let floor = sink.committed(&stage);
    stage.write(20);
    sink.crash();
    stage.write(20);
    sink.start();
    sink.settle(&stage);
    sink.assert_repeats_only_beyond(&stage, Some(&floor));

    let floor = sink.committed(&stage);
    stage.write(20);
    stage.kill_broker();
    stage.write(20);
    stage.restart_broker();
    stage.write(20);
    sink.settle(&stage);
    sink.assert_repeats_only_beyond(&stage, Some(&floor));
}

struct Sink {
    directory: TempDir,
    troupe: Troupe,
    /// What has been judged already.
    copied: Vec<(i64, i64)>,
}

impl Sink {
    fn new(stage: &Stage) -> Sink {
        let directory = tempfile::tempdir().unwrap();
        let place = |name| directory.path().join(name).display().to_string();
        let worker = format!(
            "bootstrap.servers={}
            listeners=http://127.0.0.1:0
            plugin.discovery=service_load
            key.converter=org.apache.kafka.connect.storage.StringConverter
            value.converter=org.apache.kafka.connect.storage.StringConverter
            offset.storage.file.filename={}
            offset.flush.interval.ms=500
            consumer.session.timeout.ms=6000
            consumer.heartbeat.interval.ms=500
            consumer.max.poll.records=20",
            stage.bootstrap(),
            place("offsets"),
        );
        let sink = format!(
            "name=file\nconnector.class=FileStreamSink\ntasks.max=1\ntopics={TOPIC}\nfile={}",
            place("copy")
        );
        fs::write(directory.path().join("worker.properties"), worker).unwrap();
        fs::write(directory.path().join("sink.properties"), sink).unwrap();
        Sink { directory, troupe: Troupe::default(), copied: Vec::new() }
    }

    fn start(&mut self) {
        let mut command = java_with(&LIBRARIES);
        command.current_dir(self.directory.path());
        command.args([
            "org.apache.kafka.connect.cli.ConnectStandalone",
            "worker.properties",
            "sink.properties",
        ]);
        self.troupe.add_program(&mut command);
    }

    fn crash(&mut self) {
        let newest = self.troupe.members().len() - 1;
        self.troupe.member_mut(newest).crash();
        // It may have died within a line, which is then followed by a new one.
        let copy = OpenOptions::new().append(true).create(true).open(self.copy());
        writeln!(copy.unwrap()).unwrap();
    }

    fn copy(&self) -> PathBuf {
        self.directory.path().join("copy")
    }

    /// The counters and their values, as they stand in the file.
    fn changes(&self) -> Vec<(i64, i64)> {
        let change = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some((event["after"]["id"].as_i64()?, event["after"]["n"].as_i64()?))
        };
        fs::read_to_string(self.copy()).unwrap_or_default().lines().filter_map(change).collect()
    }

    fn settle(&mut self, stage: &Stage) {
        let truth = stage.truth();
        let mut troupe = std::mem::take(&mut self.troupe);
        troupe.until("the newest changes are in the file", |_| {
            let newest = self.changes().into_iter().fold(BTreeMap::new(), |mut newest, (id, n)| {
                newest.entry(id).and_modify(|known: &mut i64| *known = n.max(*known)).or_insert(n);
                newest
            });
            newest == truth
        });
        self.troupe = troupe;
    }

    /// Waits until there is a commit: Connect makes them when it likes.
    fn committed(&mut self, stage: &Stage) -> Offsets {
        self.troupe.until("the sink has committed", |_| !committed(stage, GROUP).is_empty());
        committed(stage, GROUP)
    }

    /// Of each counter there are all changes, each for the first time in order; and what came twice since the last call
    /// lies at or beyond what was committed; with no floor, nothing came twice.
    fn assert_repeats_only_beyond(&mut self, stage: &Stage, floor: Option<&Offsets>) {
        let log = read(Client::Librdkafka(Protocol::Classic), stage, Start::Beginning, |_| {});
        let places: BTreeMap<_, _> = log.records().map(|r| ((r.id, r.n), (r.partition, r.offset))).collect();
        let mut next = BTreeMap::new();
        let changes = self.changes();
        for (index, (id, n)) in changes.iter().enumerate() {
            let next = next.entry(*id).or_insert(0);
            if n == next {
                *next += 1;
                continue;
            }
            assert!(n < next, "counter {id} went from {} to {n}", *next - 1);
            let (partition, offset) = places[&(*id, *n)];
            let explained =
                floor.is_some_and(|floor| floor.get(&partition).is_none_or(|committed| offset >= *committed));
            assert!(
                index < self.copied.len() || explained,
                "{n} of counter {id}, at {partition}/{offset}, came again, though {floor:?} was committed"
            );
        }
        assert!(changes.starts_with(&self.copied));
        self.copied = changes;
    }
}
