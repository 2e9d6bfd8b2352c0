//! What a pipeline makes of messages, without a server: places, marks, and what becomes of each kind of event.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::change::{Column, ReplicaIdentity, TypeForm};
use crate::log::local::{LocalLog, LocalReader, LocalWriter, Options};
use crate::log::record_batch::{BatchHeader, Codec};
use crate::log::{LogReader, Offset};
use crate::task::TaskDefinition;

/// A pipeline over a log in a directory, with one output called `t` that has these settings.
fn pipeline_with(directory: &Path, output: &str) -> (Pipeline<LocalWriter>, Arc<LocalReader>) {
    pipeline_over(Options::new(directory.join("log"), "t"), &directory.join("spool"), output)
}

/// Likewise, over this log.
fn pipeline_over(log: Options, spool: &Path, output: &str) -> (Pipeline<LocalWriter>, Arc<LocalReader>) {
    let (mut writer, reader, ..) = LocalLog::open(log).unwrap();
    let json = format!(r#"{{"name":"t","source":"s","outputs":[{{{output}}}]}}"#);
    let task: TaskDefinition = serde_json::from_str(&json).unwrap();
    let topics = reader.topics().borrow().clone();
    let mut outputs = Vec::new();
    for output in &task.outputs {
        let format = output.format.make(&output.name, "db");
        outputs.push(Output::open(format, output.routing(Codec::None), &topics, &mut writer).unwrap());
    }
    let spools = Spools::open(spool).unwrap();
    let mut pipeline = Pipeline::new(writer, reader.clone(), outputs, spools, Arc::default());
    for (oid, name) in [(1, "a"), (2, "b"), (3, "c")] {
        rename(&mut pipeline, oid, name);
    }
    (pipeline, reader)
}

fn pipeline(directory: &Path) -> Pipeline<LocalWriter> {
    pipeline_with(directory, "").0
}

/// The table of that OID, a key and nothing else, is called so from here on.
fn rename(pipeline: &mut Pipeline<LocalWriter>, oid: u32, name: &str) {
    let id = Column {
        name: "id".into(),
        type_oid: 23,
        base_oid: 23,
        type_modifier: -1,
        form: TypeForm::Plain,
        identity: true,
    };
    let shape = TableShape {
        oid,
        schema: "s".into(),
        name: name.into(),
        identity: ReplicaIdentity::Default,
        columns: vec![id],
        key: vec![0],
    };
    let arrival = pipeline.rows.shapes.read();
    pipeline.set_shape(arrival, Arc::new(shape));
}

fn insert(oid: u32, id: u32) -> Vec<u8> {
    let id = id.to_string();
    let len = (id.len() as u32).to_be_bytes();
    [b"I".as_slice(), &oid.to_be_bytes(), b"N", &1u16.to_be_bytes(), b"t", &len, id.as_bytes()].concat()
}

/// A transaction that inserts these rows, each `(table, id)`.
fn transaction(pipeline: &mut Pipeline<LocalWriter>, commit_lsn: u64, rows: &[(u32, u32)]) {
    taken(pipeline, commit_lsn, &begin(commit_lsn));
    for &(oid, id) in rows {
        taken(pipeline, commit_lsn - 1, &insert(oid, id));
    }
    taken(pipeline, commit_lsn, &commit(commit_lsn, commit_lsn + 1));
}

/// Commits, and gives every record that can be seen, a list for each partition: `<table>.<id>` or the kind of event.
async fn committed(
    pipeline: &mut Pipeline<LocalWriter>,
    reader: &LocalReader,
) -> BTreeMap<String, Vec<String>> {
    let position = pipeline.position();
    pipeline.writer().commit(position).await.unwrap();
    let snapshot = reader.snapshot();
    let mut found = BTreeMap::new();
    let topics = reader.topics().borrow().clone();
    for topic in topics {
        for (number, partition) in topic.partitions.iter().enumerate() {
            let fetched = reader.fetch(&snapshot, *partition, Offset(0), 1 << 20).await.unwrap();
            let mut lines = Vec::new();
            for batch in &fetched.batches {
                let header = BatchHeader::check(batch).unwrap();
                let mut records = header.records(batch, 1 << 20).unwrap();
                while let Some(record) = records.next_record().unwrap() {
                    lines.push(line(record.value.unwrap()));
                }
            }
            found.insert(format!("{}/{number}", topic.name), lines);
        }
    }
    found
}

fn line(value: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(value).unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    match (&value["op"], &value["type"], &value["status"]) {
        (op, ..) if op == "c" => {
            format!("{}.{}", value["source"]["table"].as_str().unwrap(), value["after"]["id"])
        }
        (op, ..) if op == "m" => "message".into(),
        (_, _, status) if status == "END" => format!("END {}", value["event_count"]),
        (_, kind, status) => text(kind).or(text(status)).unwrap_or("heartbeat".into()),
    }
}

/// The lists as one text: the partitions that have records, in the order of their names.
fn shown(found: &BTreeMap<String, Vec<String>>) -> String {
    let with_records = found.iter().filter(|(_, lines)| !lines.is_empty());
    let parts: Vec<_> = with_records.map(|(name, lines)| format!("{name}: {}", lines.join(" "))).collect();
    parts.join("; ")
}

fn begin(final_lsn: u64) -> Vec<u8> {
    [b"B".as_slice(), &final_lsn.to_be_bytes(), &[0; 8], &7u32.to_be_bytes()].concat()
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    [b"C\0".as_slice(), &commit_lsn.to_be_bytes(), &end_lsn.to_be_bytes(), &[0; 8]].concat()
}

fn logical_message(transactional: bool, lsn: u64) -> Vec<u8> {
    let flags = [u8::from(transactional)];
    [b"M".as_slice(), &flags, &lsn.to_be_bytes(), b"app\0", &2u32.to_be_bytes(), b"hi"].concat()
}

fn taken(pipeline: &mut Pipeline<LocalWriter>, lsn: u64, body: &[u8]) -> u64 {
    assert!(matches!(pipeline.message(Lsn(lsn), body).unwrap(), Step::Done));
    pipeline.progress.view().records
}

// I2. A message's LSN is the end of its WAL record, where the next record may begin.
#[tokio::test]
async fn a_transaction_that_commits_right_behind_a_message_is_no_duplicate_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(directory.path());
    let transaction =
        |commit_lsn, end| [begin(commit_lsn), logical_message(true, 50), commit(commit_lsn, end)];
    let take = |pipeline: &mut Pipeline<LocalWriter>, commit_lsn, end| {
        transaction(commit_lsn, end).iter().map(|body| taken(pipeline, commit_lsn, body)).last()
    };
    assert_eq!(take(&mut pipeline, 80, 100), Some(1));
    assert_eq!(taken(&mut pipeline, 120, &logical_message(false, 120)), 2);
    assert_eq!(take(&mut pipeline, 120, 140), Some(3));
    assert_eq!(pipeline.position().end_lsn, Lsn(140));
    // Sent again, none of the three is taken again.
    assert_eq!(take(&mut pipeline, 80, 100), Some(3));
    assert_eq!(taken(&mut pipeline, 120, &logical_message(false, 120)), 3);
    assert_eq!(take(&mut pipeline, 120, 140), Some(3));
}

// I1, I3
#[tokio::test]
async fn what_an_unfinished_transaction_leaves_behind_is_gone_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(directory.path());
    let position = SourcePosition { acked_through: Lsn(40), ..pipeline.position() };
    pipeline.restart(position);
    taken(&mut pipeline, 80, &begin(80));
    taken(&mut pipeline, 50, &logical_message(true, 50));
    pipeline.keepalive(Lsn(90));
    assert_eq!(pipeline.idle_position(), None, "inside a transaction nothing is idle");
    pipeline.restart(position);
    // An empty transaction leaves no record, and no position that a commit would be needed for.
    taken(&mut pipeline, 80, &begin(80));
    taken(&mut pipeline, 80, &commit(80, 100));
    assert!(!pipeline.writer().has_group());
    assert_eq!((pipeline.position(), pipeline.progress.view().records), (position, 0));
    assert_eq!(pipeline.idle_position().map(|idle| idle.acked_through), Some(Lsn(100)));
}

/// A message, a gap of one table, a gap of all, a heartbeat and a watermark behind a transaction over two tables.
async fn one_of_each(settings: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    transaction(&mut pipeline, 80, &[(1, 10), (1, 11), (2, 20)]);
    taken(&mut pipeline, 100, &logical_message(false, 100));
    let gap = |table: Option<&str>| Gap {
        cause: "test",
        table: table.map(|table| ("s".to_owned(), table.to_owned())),
        from: None,
        to: Lsn(100),
        detail: String::new(),
    };
    pipeline.gap(&gap(Some("b"))).unwrap();
    pipeline.gap(&gap(None)).unwrap();
    shown(&committed(&mut pipeline, &reader).await)
}

#[tokio::test]
async fn each_kind_of_event_goes_where_its_policy_says() {
    for (settings, expected) in [
        ("", "t.events/0: message gap gap; t/0: a.10 a.11 b.20"),
        (r#""events":{"gap":"off","message":"off"}"#, "t/0: a.10 a.11 b.20"),
        (r#""events":{"gap":"inline","message":"off"}"#, "t/0: a.10 a.11 b.20 gap gap"),
        (
            r#""events":{"gap":"inline","message":"inline","heartbeat":"inline","watermark":"inline"}"#,
            "t/0: a.10 a.11 b.20 heartbeat watermark message gap gap",
        ),
        (
            r#""events":{"heartbeat":"topic","watermark":"topic","transaction":"topic"}"#,
            "t.events/0: heartbeat watermark message gap gap; t.transaction/0: BEGIN END 3; t/0: a.10 a.11 b.20",
        ),
        (
            r#""events":{"gap":"off","message":"off","transaction":"inline"}"#,
            "t/0: BEGIN a.10 a.11 b.20 END 3",
        ),
    ] {
        assert_eq!(one_of_each(settings).await, expected, "{settings}");
    }
}

#[tokio::test]
async fn an_inline_event_is_copied_to_the_partitions_that_it_concerns() {
    let inline =
        r#""events":{"gap":"inline","message":"inline","watermark":"inline","transaction":"inline"}"#;
    for (settings, expected) in [
        // By table: a table's gap is in its partition alone.
        (
            r#""partitions":3,"partition_by":"table""#,
            "t/0: BEGIN b.20 END 3 watermark message gap gap; t/1: watermark message gap; \
             t/2: BEGIN a.10 a.11 END 3 watermark message gap",
        ),
        // By key a table may be anywhere.
        (
            r#""partitions":3,"partition_by":"key""#,
            "t/0: BEGIN b.20 END 3 watermark message gap gap; t/1: BEGIN a.10 a.11 END 3 watermark message gap gap; \
             t/2: watermark message gap gap",
        ),
        (
            r#""layout":"table""#,
            "t.s.a/0: BEGIN a.10 a.11 END 3 watermark message gap; \
             t.s.b/0: BEGIN b.20 END 3 watermark message gap gap",
        ),
    ] {
        assert_eq!(one_of_each(&format!("{settings},{inline}")).await, expected, "{settings}");
    }
}

// I5
#[tokio::test]
async fn a_gap_is_told_where_no_table_has_a_topic_yet() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""layout":"table","events":{"gap":"inline","message":"off","snapshot":"off"}"#;
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    let gap = |table| Gap { cause: "test", table, from: None, to: Lsn(9), detail: String::new() };
    pipeline.gap(&gap(None)).unwrap();
    pipeline.gap(&gap(Some(("s".into(), "late".into())))).unwrap();
    pipeline.gap(&gap(None)).unwrap();
    let found = committed(&mut pipeline, &reader).await;
    assert_eq!(shown(&found), "t.events/0: gap; t.s.late/0: gap gap");
}

#[tokio::test]
async fn topics_of_tables_follow_their_names_and_are_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""layout":"table","events":{"gap":"inline","message":"off","snapshot":"off"}"#;
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    assert_eq!(committed(&mut pipeline, &reader).await.len(), 0, "no table has had an event");
    transaction(&mut pipeline, 80, &[(1, 1), (2, 2), (1, 3)]);
    rename(&mut pipeline, 1, "x.y");
    transaction(&mut pipeline, 90, &[(1, 4), (2, 5)]);
    // Another table takes the name that has become free.
    rename(&mut pipeline, 3, "a");
    transaction(&mut pipeline, 100, &[(3, 6)]);
    let expected = "t.s.a/0: a.1 a.3 a.6; t.s.b/0: b.2 b.5; t.s.x_x2Ey/0: x.y.4";
    assert_eq!(shown(&committed(&mut pipeline, &reader).await), expected);
    drop((pipeline, reader));
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    let position = SourcePosition { last_commit: Some(Lsn(100)), ..pipeline.position() };
    pipeline.restart(position);
    for (oid, name) in [(1, "a"), (2, "b")] {
        rename(&mut pipeline, oid, name);
    }
    pipeline.gap(&Gap { cause: "test", table: None, from: None, to: Lsn(9), detail: String::new() }).unwrap();
    transaction(&mut pipeline, 110, &[(1, 7)]);
    let expected = "t.s.a/0: a.1 a.3 a.6 gap a.7; t.s.b/0: b.2 b.5 gap; t.s.x_x2Ey/0: x.y.4 gap";
    assert_eq!(shown(&committed(&mut pipeline, &reader).await), expected);
}

#[tokio::test]
async fn a_message_too_large_to_be_copied_everywhere_stands_once() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""partitions":9000,"partition_by":"key","events":{"gap":"off","message":"inline"}"#;
    let (mut pipeline, _reader) = pipeline_with(directory.path(), settings);
    let message = |length: u32| {
        let head = [b"M\0".as_slice(), &9u64.to_be_bytes(), b"app\0", &length.to_be_bytes()].concat();
        [head, vec![0; length as usize]].concat()
    };
    assert_eq!(taken(&mut pipeline, 100, &message(100)), 9000);
    assert_eq!(taken(&mut pipeline, 200, &message(10_000)), 9001);
}

// I1
#[tokio::test]
async fn marks_of_a_transaction_that_is_sent_again_stand_once() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""events":{"transaction":"topic"}"#;
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    let position = pipeline.position();
    taken(&mut pipeline, 80, &begin(80));
    taken(&mut pipeline, 79, &insert(1, 10));
    pipeline.restart(position);
    for (oid, name) in [(1, "a"), (2, "b")] {
        rename(&mut pipeline, oid, name);
    }
    // Without changes there are no marks; with them, also a table that is renamed on the way is counted once.
    transaction(&mut pipeline, 70, &[]);
    taken(&mut pipeline, 80, &begin(80));
    taken(&mut pipeline, 79, &insert(1, 10));
    rename(&mut pipeline, 1, "z");
    taken(&mut pipeline, 79, &insert(1, 11));
    rename(&mut pipeline, 1, "a");
    taken(&mut pipeline, 79, &insert(1, 12));
    taken(&mut pipeline, 80, &commit(80, 81));
    transaction(&mut pipeline, 80, &[(1, 10)]);
    let found = committed(&mut pipeline, &reader).await;
    assert_eq!(shown(&found), "t.transaction/0: BEGIN END 3; t/0: a.10 z.11 a.12");
}

// I1, I2
#[tokio::test]
async fn a_watermark_follows_what_it_covers_and_nothing_of_our_own_moves_the_position() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""events":{"heartbeat":"inline","watermark":"inline"}"#;
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    pipeline.write_own_events().unwrap();
    let position = pipeline.position();
    assert_eq!(shown(&committed(&mut pipeline, &reader).await), "t/0: heartbeat");
    assert_eq!((position.last_commit, position.last_record_end), (None, Lsn::ZERO));

    transaction(&mut pipeline, 80, &[(1, 1)]);
    transaction(&mut pipeline, 90, &[(1, 2)]);
    let found = committed(&mut pipeline, &reader).await;
    assert_eq!(shown(&found), "t/0: heartbeat a.1 watermark a.2", "at most one a second");
    std::thread::sleep(Duration::from_millis(1_010));
    // While a transaction is open it would stand among its changes.
    taken(&mut pipeline, 100, &begin(100));
    taken(&mut pipeline, 99, &insert(1, 3));
    pipeline.write_own_events().unwrap();
    taken(&mut pipeline, 100, &commit(100, 101));
    let found = committed(&mut pipeline, &reader).await;
    assert_eq!(shown(&found), "t/0: heartbeat a.1 watermark a.2 a.3 watermark");

    // Idle: what no watermark covers yet gets one, and no other follows.
    transaction(&mut pipeline, 110, &[(1, 4)]);
    std::thread::sleep(Duration::from_millis(1_010));
    pipeline.write_own_events().unwrap();
    std::thread::sleep(Duration::from_millis(1_010));
    pipeline.write_own_events().unwrap();
    let position = pipeline.position();
    let found = committed(&mut pipeline, &reader).await;
    assert_eq!(shown(&found), "t/0: heartbeat a.1 watermark a.2 a.3 watermark a.4 watermark");
    assert_eq!((position.last_commit, position.last_record_end), (Some(Lsn(110)), Lsn(111)));
}

// How far the outputs are is not known any more after a restart.
#[tokio::test]
async fn before_a_stop_what_no_watermark_covers_yet_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""events":{"watermark":"inline"}"#;
    let (mut pipeline, reader) = pipeline_with(directory.path(), settings);
    transaction(&mut pipeline, 80, &[(1, 1)]);
    transaction(&mut pipeline, 90, &[(1, 2)]);
    pipeline.write_last_watermark().unwrap();
    pipeline.write_last_watermark().unwrap();
    assert_eq!(shown(&committed(&mut pipeline, &reader).await), "t/0: a.1 watermark a.2 watermark");
    let (mut pipeline, reader) = pipeline_with(&directory.path().join("off"), "");
    transaction(&mut pipeline, 80, &[(1, 1)]);
    pipeline.write_last_watermark().unwrap();
    assert_eq!(shown(&committed(&mut pipeline, &reader).await), "t/0: a.1");
}

// I3: in layout `table` a heartbeat has no partition before the first table has one.
#[tokio::test]
async fn a_heartbeat_that_stands_nowhere_leaves_the_idle_position_to_be_committed() {
    let idle_after = |events: &str| {
        let directory = tempfile::tempdir().unwrap();
        let settings = format!(r#""layout":"table","events":{{"heartbeat":"{events}"}}"#);
        let (mut pipeline, _reader) = pipeline_with(directory.path(), &settings);
        pipeline.keepalive(Lsn(500));
        pipeline.write_own_events().unwrap();
        let acked_through = pipeline.position().acked_through;
        (pipeline.idle_position().map(|position| position.acked_through), acked_through)
    };
    assert_eq!(idle_after("inline"), (Some(Lsn(500)), Lsn::ZERO));
    assert_eq!(idle_after("topic"), (None, Lsn(500)), "the heartbeat's group carries it");
}

// A merge may take up what was sealed before the restart, while no change comes for the table.
#[tokio::test]
async fn the_topics_of_tables_keep_their_codec_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let settings = r#""layout":"table""#;
    let (mut pipeline, _reader) = pipeline_with(directory.path(), settings);
    for n in 1..100 {
        transaction(&mut pipeline, n * 10, &[(1, 1)]);
        let position = pipeline.position();
        pipeline.writer().commit(position).await.unwrap();
    }
    drop(pipeline);
    // All that there is makes a full segment, which is sealed and then merged.
    let log = Options { segment_bytes: 4096, ..Options::new(directory.path().join("log"), "t") };
    let (mut pipeline, reader) = pipeline_over(log, &directory.path().join("spool"), settings);
    pipeline.writer().flush().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while pipeline.writer().unmerged() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let topics = reader.topics().borrow().clone();
    let partition = topics.iter().find(|topic| topic.name == "t.s.a").unwrap().partitions[0];
    let fetched = reader.fetch(&reader.snapshot(), partition, Offset(0), usize::MAX).await.unwrap();
    let codecs: Vec<_> =
        fetched.batches.iter().map(|batch| BatchHeader::check(batch).unwrap().codec).collect();
    assert_eq!(codecs, [Codec::None]);
}
