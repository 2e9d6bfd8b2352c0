//! The contract of [`LogWriter`](super::LogWriter) and [`LogReader`](super::LogReader) as tests that every
//! implementation runs.
//!
//! An implementation gives a [`Log`]: a place in which one log can be opened, closed by dropping its writer, and opened
//! again.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::record_batch::{BatchHeader, Codec};
use super::topics::HIDDEN;
use super::{
    LogError, LogReader, LogWriter, Offset, PartitionId, PartitionRange, Record, Retention, SourcePosition,
};
use crate::change::Lsn;

/// A log that can be opened again and again.
pub trait Log {
    /// Its writer.
    type Writer: LogWriter;
    /// Its reader.
    type Reader: LogReader;
    /// Whether small batches are merged behind the scenes, so that only the records stay what they were.
    fn merges(&self) -> bool {
        false
    }
    /// Opens it; the writer of before has been dropped.
    fn open(&self) -> (Self::Writer, Arc<Self::Reader>);
}

/// Runs all checks, each on a new log.
pub async fn check<L: Log>(new: impl Fn() -> L) {
    run("a_new_log_is_empty", a_new_log_is_empty(new())).await;
    run("topics_are_made_once", topics_are_made_once(new())).await;
    run("topics_are_shown_by_the_next_commit_or_flush", topics_are_shown_by_the_next_commit_or_flush(new()))
        .await;
    run("a_deleted_topic_is_gone_with_its_records_and_its_name_free", a_deleted_topic_is_gone(new())).await;
    run("a_topic_deleted_in_its_first_group_is_never_seen", a_topic_deleted_at_once_is_never_seen(new()))
        .await;
    run("partitions_are_added_behind_those_that_there_are", partitions_are_added(new())).await;
    run("deleted_records_are_gone_for_good", deleted_records_are_gone_for_good(new())).await;
    run("deleted_records_are_not_found_by_time", deleted_records_are_not_found_by_time(new())).await;
    run("retention_may_be_changed", retention_may_be_changed(new())).await;
    run("what_a_hidden_topic_holds_is_spared_until_it_is_deleted", a_hidden_topic_is_spared(new())).await;
    run("a_log_knows_how_large_its_partitions_are", a_log_knows_its_size(new())).await;
    run("a_group_is_seen_whole_and_only_when_committed", a_group_is_seen_whole(new())).await;
    run("what_follows_the_boundary_stays_for_the_next_group", what_follows_the_boundary_stays(new())).await;
    run("an_abort_takes_back_to_the_boundary", an_abort_takes_back_to_the_boundary(new())).await;
    run("an_abort_takes_back_what_was_flushed", an_abort_takes_back_what_was_flushed(new())).await;
    run("commits_pass_a_transaction_in_flight", commits_pass_a_transaction_in_flight(new())).await;
    run("records_may_follow_before_the_ticket_is_answered", records_may_follow_a_ticket(new())).await;
    run("a_position_only_commit_wakes_nobody", a_position_only_commit_wakes_nobody(new())).await;
    run("an_older_snapshot_sees_no_later_commit", an_older_snapshot_sees_no_later_commit(new())).await;
    run("a_fetch_gives_whole_batches_within_its_limit", a_fetch_gives_whole_batches(new())).await;
    run("offsets_outside_the_log_are_refused", offsets_outside_the_log_are_refused(new())).await;
    run("records_are_found_by_time", records_are_found_by_time(new())).await;
    run("unknown_partitions_and_large_records_are_refused", unknown_and_large_are_refused(new())).await;
    run("a_reopened_log_is_the_same", a_reopened_log_is_the_same(new())).await;
}

async fn run(name: &str, check: impl Future<Output = ()>) {
    println!("  {name}");
    check.await;
}

/// A position that tells commits apart.
pub fn position(n: u64) -> SourcePosition {
    SourcePosition {
        last_commit: (n > 0).then_some(Lsn(n)),
        end_lsn: Lsn(n + 1),
        last_record_end: Lsn(n + 1),
        acked_through: Lsn(n + 1),
        timeline: 1,
        system_identifier: 42,
        slot_generation: 1,
    }
}

/// Appends a record with the time and value given.
pub fn put(writer: &mut impl LogWriter, partition: PartitionId, timestamp: i64, value: &[u8]) {
    let record = Record { timestamp, key: Some(b"k"), value: Some(value), headers: &[] };
    writer.append(partition, &record).unwrap();
}

/// Offsets and values of all records that a reader gives from `from` on, some bytes at a time.
pub async fn read_all(
    reader: &impl LogReader,
    partition: PartitionId,
    from: Offset,
    max_bytes: usize,
) -> Result<Vec<(i64, Vec<u8>)>, LogError> {
    let snapshot = reader.snapshot();
    let mut all = Vec::new();
    let mut next = from;
    loop {
        let fetched = reader.fetch(&snapshot, partition, next, max_bytes).await?;
        if fetched.is_empty() {
            return Ok(all);
        }
        // The first batch may begin before what was asked for: it may be a larger one than at the fetch before.
        let wanted = next;
        for (place, batch) in fetched.batches.iter().enumerate() {
            let records = records(batch);
            next = Offset(records.last().unwrap().0 + 1);
            all.extend(records.into_iter().filter(|record| place > 0 || record.0 >= wanted.0));
        }
    }
}

fn records(batch: &Bytes) -> Vec<(i64, Vec<u8>)> {
    let header = BatchHeader::check(batch).unwrap();
    assert_eq!(header.len, batch.len());
    let mut records = header.records(batch, 1 << 28).unwrap();
    let mut all = Vec::new();
    while let Some(record) = records.next_record().unwrap() {
        all.push((record.offset.0, record.value.unwrap().to_vec()));
    }
    assert_eq!(all.len(), header.records as usize);
    all
}

async fn values(reader: &impl LogReader, partition: PartitionId) -> Vec<String> {
    let all = read_all(reader, partition, Offset(0), 1 << 20).await.unwrap();
    assert!(
        all.iter().enumerate().all(|(n, (offset, _))| n as i64 == *offset),
        "offsets have holes: {all:?}"
    );
    all.into_iter().map(|(_, value)| String::from_utf8(value).unwrap()).collect()
}

fn range(reader: &impl LogReader, partition: PartitionId) -> (i64, i64) {
    let PartitionRange { start, end } = reader.snapshot().range(partition).unwrap();
    (start.0, end.0)
}

async fn two_partitions(writer: &mut impl LogWriter) -> (PartitionId, PartitionId) {
    let ids = writer.create_topic("t", 2, Codec::Lz4).unwrap();
    writer.flush().await.unwrap();
    (ids[0], ids[1])
}

async fn a_new_log_is_empty(log: impl Log) {
    let (mut writer, reader) = log.open();
    assert_eq!(writer.resume(), None);
    assert!(!writer.has_group());
    assert_eq!(writer.buffered(), 0);
    assert_eq!(reader.snapshot().commit(), 0);
    assert_eq!(reader.snapshot().range(PartitionId(0)), None);
    let (a, _) = two_partitions(&mut writer).await;
    assert_eq!(range(&*reader, a), (0, 0));
    assert!(values(&*reader, a).await.is_empty());
}

async fn topics_are_made_once(log: impl Log) {
    let (mut writer, reader) = log.open();
    let ids = writer.create_topic("a", 3, Codec::Lz4).unwrap();
    let more = writer.create_topic("b", 1, Codec::None).unwrap();
    assert_eq!(writer.create_topic("a", 3, Codec::None).unwrap(), ids);
    assert!(!ids.contains(&more[0]));
    let refused = writer.create_topic("a", 4, Codec::Lz4);
    assert!(matches!(refused, Err(LogError::PartitionCount { existing: 3, asked: 4, .. })), "{refused:?}");
    for (name, partitions) in [("", 1), (".", 1), ("a/b", 1), (&*"x".repeat(250), 1), ("none", 0)] {
        let refused = writer.create_topic(name, partitions, Codec::Lz4);
        assert!(matches!(refused, Err(LogError::InvalidTopic { .. })), "{refused:?}");
    }
    writer.flush().await.unwrap();
    drop((writer, reader));
    let (mut writer, reader) = log.open();
    assert_eq!(range(&*reader, ids[2]), (0, 0));
    assert_eq!(topics(&*reader), [("a".to_owned(), ids.clone()), ("b".to_owned(), more)]);
    assert_eq!(writer.create_topic("a", 3, Codec::Lz4).unwrap(), ids);
}

async fn topics_are_shown_by_the_next_commit_or_flush(log: impl Log) {
    let (mut writer, reader) = log.open();
    let mut watch = reader.topics();
    let a = writer.create_topic("a", 1, Codec::Lz4).unwrap();
    assert_eq!((reader.snapshot().range(a[0]), watch.has_changed().unwrap()), (None, false));
    writer.flush().await.unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!((watch.borrow_and_update().len(), range(&*reader, a[0])), (1, (0, 0)));
    // Made for a transaction that is aborted, and while a commit is under way.
    let b = writer.create_topic("b", 1, Codec::Lz4).unwrap();
    put(&mut writer, b[0], 1, b"never");
    writer.abort();
    let ticket = writer.commit(position(1));
    let c = writer.create_topic("c", 2, Codec::Lz4).unwrap();
    put(&mut writer, c[1], 1, b"one");
    writer.boundary();
    ticket.await.unwrap();
    assert_eq!((reader.snapshot().range(c[1]), range(&*reader, b[0])), (None, (0, 0)));
    let committed = writer.commit(position(2)).await.unwrap();
    assert_eq!(committed.snapshot.range(c[1]).unwrap().end, Offset(1));
    assert_eq!(watch.borrow_and_update().len(), 3);
    let expected = [("a".to_owned(), a), ("b".to_owned(), b), ("c".to_owned(), c.clone())];
    assert_eq!(topics(&*reader), expected);
    drop((writer, reader));
    let (_writer, reader) = log.open();
    assert_eq!(topics(&*reader), expected);
    assert_eq!(values(&*reader, c[1]).await, ["one"]);
}

fn topics(reader: &impl LogReader) -> Vec<(String, Vec<PartitionId>)> {
    reader.topics().borrow().iter().map(|topic| (topic.name.clone(), topic.partitions.clone())).collect()
}

async fn a_deleted_topic_is_gone(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    let other = writer.create_topic("other", 1, Codec::Lz4).unwrap()[0];
    for partition in [a, b, other] {
        put(&mut writer, partition, 1, b"one");
    }
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    let id = reader.topics().borrow()[0].id;
    let (mut parked, mut topics_watch) = (reader.watch(), reader.topics());
    parked.mark_unchanged();
    topics_watch.mark_unchanged();
    // In the group that is open when its topic is deleted.
    put(&mut writer, a, 2, b"late");
    put(&mut writer, other, 2, b"two");
    writer.boundary();
    writer.delete_topic("t").unwrap();
    let refused = writer.delete_topic("t");
    assert!(matches!(refused, Err(LogError::UnknownTopic(ref name)) if name == "t"), "{refused:?}");
    let record = Record { timestamp: 1, key: None, value: None, headers: &[] };
    let refused = writer.append(a, &record);
    assert!(matches!(refused, Err(LogError::UnknownPartition(gone)) if gone == a), "{refused:?}");
    assert_eq!(
        (values(&*reader, a).await, topics_watch.has_changed().unwrap()),
        (vec!["one".to_owned()], false)
    );
    let old = reader.snapshot();
    writer.commit(position(2)).await.unwrap();

    assert!(parked.has_changed().unwrap() && topics_watch.has_changed().unwrap());
    assert_eq!(topics(&*reader), [("other".to_owned(), vec![other])]);
    assert_eq!((reader.snapshot().range(a), reader.partition_bytes(a)), (None, 0));
    assert_eq!(values(&*reader, other).await, ["one", "two"]);
    for snapshot in [&old, &reader.snapshot()] {
        let gone = reader.fetch(snapshot, a, Offset(0), 1 << 20).await;
        assert!(matches!(gone, Err(LogError::UnknownPartition(gone)) if gone == a), "{gone:?}");
    }

    let again = writer.create_topic("t", 1, Codec::None).unwrap()[0];
    assert!(![a, b, other].contains(&again));
    put(&mut writer, again, 3, b"anew");
    writer.boundary();
    writer.commit(position(3)).await.unwrap();
    for reopened in [false, true] {
        let reader = if reopened {
            drop(writer);
            let opened = log.open();
            writer = opened.0;
            opened.1
        } else {
            reader.clone()
        };
        assert_eq!(topics(&*reader), [("other".to_owned(), vec![other]), ("t".to_owned(), vec![again])]);
        assert_ne!(reader.topics().borrow()[1].id, id);
        assert_eq!((reader.snapshot().range(a), reader.snapshot().range(b)), (None, None));
        assert_eq!(values(&*reader, again).await, ["anew"]);
        assert_eq!(values(&*reader, other).await, ["one", "two"]);
        assert!(writer.append(b, &record).is_err());
    }
    assert!(!writer.create_topic("new", 1, Codec::None).unwrap().contains(&b));
}

async fn a_topic_deleted_at_once_is_never_seen(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    let mut watch = reader.topics();
    let gone = writer.create_topic("gone", 1, Codec::Lz4).unwrap()[0];
    put(&mut writer, gone, 1, b"never");
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    writer.delete_topic("gone").unwrap();
    let again = writer.create_topic("gone", 1, Codec::Lz4).unwrap()[0];
    put(&mut writer, again, 1, b"two");
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    assert_eq!(watch.borrow_and_update().len(), 2);
    assert_eq!(reader.snapshot().range(gone), None);
    drop((writer, reader));
    let (_writer, reader) = log.open();
    assert_eq!(reader.snapshot().range(gone), None);
    assert_eq!(
        (values(&*reader, a).await, values(&*reader, again).await),
        (vec!["one".into()], vec!["two".into()])
    );
}

async fn partitions_are_added(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    writer.create_topic("other", 1, Codec::Lz4).unwrap();
    put(&mut writer, b, 1, b"one");
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    let id = reader.topics().borrow()[0].id;
    let refused = writer.add_partitions("unknown", 3);
    assert!(matches!(refused, Err(LogError::UnknownTopic(_))), "{refused:?}");
    let refused = writer.add_partitions("t", 1);
    assert!(matches!(refused, Err(LogError::FewerPartitions { existing: 2, asked: 1, .. })), "{refused:?}");
    let refused = writer.add_partitions("t", u32::MAX);
    assert!(matches!(refused, Err(LogError::InvalidTopic { .. })), "{refused:?}");
    assert_eq!(writer.add_partitions("t", 2).unwrap(), [a, b]);

    let all = writer.add_partitions("t", 4).unwrap();
    assert_eq!((&all[..2], all.len()), (&[a, b][..], 4));
    assert_eq!(writer.create_topic("t", 4, Codec::Lz4).unwrap(), all);
    put(&mut writer, all[3], 1, b"two");
    writer.boundary();
    assert_eq!((reader.snapshot().range(all[3]), topics(&*reader)[0].1.len()), (None, 2));
    writer.commit(position(2)).await.unwrap();
    drop(writer);
    for reader in [reader, log.open().1] {
        assert_eq!((reader.topics().borrow()[0].id, &topics(&*reader)[0].1), (id, &all));
        assert_eq!((range(&*reader, all[2]), range(&*reader, all[3])), ((0, 0), (0, 1)));
        assert_eq!(values(&*reader, b).await, ["one"]);
    }
}

async fn deleted_records_are_gone_for_good(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    for n in 0..10 {
        for m in 0..3 {
            put(&mut writer, a, 1, format!("{}", 3 * n + m).repeat(100).as_bytes());
        }
        writer.boundary();
        writer.commit(position(n + 1)).await.unwrap();
    }
    let mut watch = reader.watch();
    watch.mark_unchanged();
    let below = |a_to, b_to| vec![(a, Offset(a_to)), (b, Offset(b_to))];
    assert_eq!(reader.delete_records(below(7, 5)).await.unwrap(), [Offset(7), Offset(0)]);
    assert!(!watch.has_changed().unwrap(), "nothing has come that anybody waits for");
    assert_eq!((range(&*reader, a), range(&*reader, b)), ((7, 30), (0, 0)));
    assert_eq!(reader.snapshot().commit(), 10);
    // Lower than the start leaves it.
    assert_eq!(reader.delete_records(below(3, -1)).await.unwrap(), [Offset(7), Offset(0)]);
    let unknown = reader.delete_records(vec![(a, Offset(9)), (PartitionId(7), Offset(1))]).await;
    assert!(matches!(unknown, Err(LogError::UnknownPartition(PartitionId(7)))), "{unknown:?}");
    assert_eq!(range(&*reader, a), (7, 30));
    let gone = reader.fetch(&reader.snapshot(), a, Offset(6), 1 << 20).await;
    assert!(matches!(gone, Err(LogError::OutOfRange { start: Offset(7), .. })), "{gone:?}");
    let kept = |all: Vec<(i64, Vec<u8>)>| all.into_iter().map(|(offset, _)| offset).collect::<Vec<_>>();
    assert_eq!(kept(read_all(&*reader, a, Offset(7), 1).await.unwrap()), (7..30).collect::<Vec<_>>());

    drop((writer, reader));
    let (mut writer, reader) = log.open();
    assert_eq!(range(&*reader, a), (7, 30));
    // All of them, and what follows begins behind them.
    assert_eq!(reader.delete_records(below(i64::MAX, 0)).await.unwrap(), [Offset(30), Offset(0)]);
    assert_eq!(range(&*reader, a), (30, 30));
    assert_eq!(reader.max_timestamp(&reader.snapshot(), a).await.unwrap(), None);
    put(&mut writer, a, 1, b"more");
    writer.boundary();
    writer.commit(position(11)).await.unwrap();
    assert_eq!(range(&*reader, a), (30, 31));
    drop((writer, reader));
    let (writer, reader) = log.open();
    assert_eq!(range(&*reader, a), (30, 31));
    assert_eq!(read_all(&*reader, a, Offset(30), 1).await.unwrap(), [(30, b"more".to_vec())]);
    drop(writer);
    let closed = reader.delete_records(below(31, 0)).await;
    assert!(matches!(closed, Err(LogError::Stopped)), "{closed:?}");
}

async fn deleted_records_are_not_found_by_time(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    for (n, times) in (1..).zip([[50, 10, 20], [15, 90, 17], [40, 5, 40]]) {
        times.iter().for_each(|time| put(&mut writer, a, *time, b"x"));
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    let expect = async |start, times: &[(i64, Option<(i64, i64)>)], max: (i64, i64)| {
        reader.delete_records(vec![(a, Offset(start))]).await.unwrap();
        let snapshot = reader.snapshot();
        for (time, expected) in times {
            let found = reader.find_by_time(&snapshot, a, *time).await.unwrap();
            assert_eq!(found.map(|(offset, time)| (offset.0, time)), *expected, "{time} from {start} on");
        }
        let found = reader.max_timestamp(&snapshot, a).await.unwrap();
        assert_eq!(found.map(|(offset, time)| (offset.0, time)), Some(max), "from {start} on");
    };
    expect(0, &[(20, Some((0, 50))), (60, Some((4, 90)))], (4, 90)).await;
    expect(1, &[(20, Some((2, 20))), (0, Some((1, 10))), (60, Some((4, 90)))], (4, 90)).await;
    expect(5, &[(10, Some((5, 17))), (20, Some((6, 40))), (60, None)], (6, 40)).await;
    expect(7, &[(10, Some((8, 40))), (0, Some((7, 5))), (41, None)], (8, 40)).await;
}

async fn retention_may_be_changed(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    let kept = Retention { bytes: Some(1), age: Some(Duration::from_millis(1)) };
    reader.set_retention(kept);
    assert_eq!(reader.retention(), kept);
    let started = Instant::now();
    for n in 1.. {
        put(&mut writer, a, 1, &[7; 500]);
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
        if range(&*reader, a).0 > 0 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "nothing is removed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    reader.set_retention(Retention::default());
    assert_eq!(reader.retention(), Retention::default());
}

async fn a_hidden_topic_is_spared(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    let name = format!("{HIDDEN}x");
    let hidden = writer.create_topic(&name, 1, Codec::Lz4).unwrap()[0];
    reader.set_retention(Retention { bytes: Some(1), age: Some(Duration::from_millis(1)) });
    put(&mut writer, hidden, 1, b"held");
    let mut number = 0;
    for _ in 0..60 {
        number += 1;
        put(&mut writer, a, 1, &[7; 500]);
        writer.boundary();
        writer.commit(position(number)).await.unwrap();
    }
    assert_eq!((range(&*reader, a), range(&*reader, hidden)), ((0, 60), (0, 1)));
    drop((writer, reader));
    let (mut writer, reader) = log.open();
    reader.set_retention(Retention { bytes: Some(1), age: Some(Duration::from_millis(1)) });
    assert_eq!(values(&*reader, hidden).await, ["held"]);
    writer.delete_topic(&name).unwrap();
    let started = Instant::now();
    while range(&*reader, a).0 == 0 {
        number += 1;
        put(&mut writer, a, 1, &[7; 500]);
        writer.boundary();
        writer.commit(position(number)).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(60), "nothing is removed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn a_log_knows_its_size(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    for n in 0..10 {
        put(&mut writer, a, 1, &[n as u8; 700]);
        writer.boundary();
        writer.commit(position(n + 1)).await.unwrap();
    }
    drop(writer);
    for reader in [reader, log.open().1] {
        let fetched = reader.fetch(&reader.snapshot(), a, Offset(0), usize::MAX).await.unwrap();
        assert_eq!((reader.partition_bytes(a), reader.partition_bytes(b)), (fetched.len() as u64, 0));
        assert_eq!(reader.partition_bytes(PartitionId(99)), 0);
        assert!(reader.total_bytes() > fetched.len() as u64, "{}", reader.total_bytes());
    }
}

async fn a_group_is_seen_whole(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    let mut watch = reader.watch();
    watch.mark_unchanged();
    put(&mut writer, a, 1, b"one");
    put(&mut writer, b, 1, b"two");
    put(&mut writer, a, 1, b"three");
    assert!(writer.buffered() > 0 && !writer.has_group());
    writer.boundary();
    assert!(writer.has_group());
    assert_eq!(range(&*reader, a), (0, 0));
    let committed = writer.commit(position(1)).await.unwrap();
    assert_eq!((committed.number, committed.position), (1, position(1)));
    assert!(!writer.has_group() && writer.buffered() == 0);
    assert_eq!(committed.snapshot.range(a).unwrap().end, Offset(2));
    assert!(watch.has_changed().unwrap());
    assert_eq!(range(&*reader, b), (0, 1));
    assert_eq!(values(&*reader, a).await, ["one", "three"]);
    assert_eq!(values(&*reader, b).await, ["two"]);
    assert_eq!(writer.resume(), Some(position(1)));
}

async fn what_follows_the_boundary_stays(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    put(&mut writer, a, 2, b"two");
    put(&mut writer, b, 2, b"three");
    writer.commit(position(1)).await.unwrap();
    assert!(writer.buffered() > 0 && !writer.has_group());
    assert_eq!(values(&*reader, a).await, ["one"]);
    assert_eq!(range(&*reader, b), (0, 0));
    put(&mut writer, a, 2, b"four");
    writer.boundary();
    writer.commit(position(2)).await.unwrap();
    assert_eq!(values(&*reader, a).await, ["one", "two", "four"]);
    assert_eq!(values(&*reader, b).await, ["three"]);
}

async fn an_abort_takes_back_to_the_boundary(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    put(&mut writer, a, 2, b"never");
    put(&mut writer, b, 2, b"never");
    let ticket = writer.commit(position(1));
    // The abort concerns only what is after the boundary, whatever is still being written.
    writer.abort();
    assert_eq!(writer.buffered(), 0);
    ticket.await.unwrap();
    put(&mut writer, a, 3, b"two");
    writer.boundary();
    put(&mut writer, a, 3, b"never");
    writer.abort();
    writer.boundary();
    writer.commit(position(2)).await.unwrap();
    assert_eq!(values(&*reader, a).await, ["one", "two"]);
    assert_eq!(range(&*reader, b), (0, 0));
}

async fn an_abort_takes_back_what_was_flushed(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    put(&mut writer, a, 2, b"never");
    writer.flush().await.unwrap();
    assert_eq!((writer.buffered(), range(&*reader, a)), (0, (0, 0)));
    put(&mut writer, b, 2, b"never");
    let ticket = writer.flush();
    writer.abort();
    ticket.await.unwrap();
    put(&mut writer, a, 3, b"two");
    writer.boundary();
    put(&mut writer, b, 3, b"never");
    writer.flush().await.unwrap();
    writer.abort();
    writer.commit(position(2)).await.unwrap();
    assert_eq!(values(&*reader, a).await, ["one", "two"]);
    assert_eq!(range(&*reader, b), (0, 0));
    drop((writer, reader));
    let (_writer, reader) = log.open();
    assert_eq!(values(&*reader, a).await, ["one", "two"]);
}

async fn commits_pass_a_transaction_in_flight(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    put(&mut writer, a, 2, b"big 1");
    writer.flush().await.unwrap();
    put(&mut writer, b, 2, b"big 2");
    writer.commit(position(1)).await.unwrap();
    assert_eq!((values(&*reader, a).await, range(&*reader, b)), (vec!["one".to_owned()], (0, 0)));
    writer.flush().await.unwrap();
    writer.commit(position(2)).await.unwrap();
    assert_eq!(range(&*reader, a), (0, 1));
    put(&mut writer, a, 2, b"big 3");
    writer.boundary();
    assert!(writer.has_group());
    put(&mut writer, a, 3, b"never");
    writer.flush().await.unwrap();
    writer.commit(position(3)).await.unwrap();
    assert_eq!(values(&*reader, a).await, ["one", "big 1", "big 3"]);
    assert_eq!(values(&*reader, b).await, ["big 2"]);
    // What lies before the commit can no longer be cut off, and still never happened.
    writer.abort();
    put(&mut writer, a, 3, b"two");
    writer.boundary();
    writer.commit(position(4)).await.unwrap();
    put(&mut writer, a, 3, b"never");
    writer.flush().await.unwrap();
    writer.commit(position(5)).await.unwrap();
    drop((writer, reader));
    let (mut writer, reader) = log.open();
    assert_eq!(writer.resume(), Some(position(5)));
    assert_eq!(values(&*reader, a).await, ["one", "big 1", "big 3", "two"]);
    put(&mut writer, a, 3, b"three");
    writer.boundary();
    writer.commit(position(6)).await.unwrap();
    drop((writer, reader));
    let (_writer, reader) = log.open();
    assert_eq!(values(&*reader, a).await, ["one", "big 1", "big 3", "two", "three"]);
}

async fn records_may_follow_a_ticket(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    let mut expected = Vec::new();
    for n in 1..50u64 {
        let value = format!("{n}").repeat(n as usize);
        put(&mut writer, a, 1, value.as_bytes());
        expected.push(value);
        writer.boundary();
        let ticket = writer.commit(position(n));
        let more = format!("more {n}");
        put(&mut writer, a, 1, more.as_bytes());
        expected.push(more);
        let committed = ticket.await.unwrap();
        assert_eq!(committed.snapshot.range(a).unwrap().end, Offset(2 * n as i64 - 1));
    }
    writer.boundary();
    writer.commit(position(50)).await.unwrap();
    assert_eq!(values(&*reader, a).await, expected);
}

async fn a_position_only_commit_wakes_nobody(log: impl Log) {
    let (mut writer, reader) = log.open();
    two_partitions(&mut writer).await;
    let mut watch = reader.watch();
    watch.mark_unchanged();
    let committed = writer.commit(position(0)).await.unwrap();
    assert_eq!((committed.number, reader.snapshot().commit()), (1, 1));
    assert!(!watch.has_changed().unwrap());
    assert_eq!(writer.resume(), Some(position(0)));
    drop((writer, reader));
    assert_eq!(log.open().0.resume(), Some(position(0)));
}

async fn an_older_snapshot_sees_no_later_commit(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    let old = reader.snapshot();
    put(&mut writer, a, 2, b"two");
    writer.boundary();
    writer.commit(position(2)).await.unwrap();
    let fetched = reader.fetch(&old, a, Offset(0), 1 << 20).await.unwrap();
    assert_eq!(fetched.batches.len(), 1);
    assert!(reader.fetch(&old, a, Offset(1), 1 << 20).await.unwrap().is_empty());
    assert_eq!(reader.find_by_time(&old, a, 2).await.unwrap(), None);
    assert_eq!(reader.max_timestamp(&old, a).await.unwrap(), Some((Offset(0), 1)));
}

async fn a_fetch_gives_whole_batches(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    for n in 0..10u64 {
        for m in 0..3 {
            put(&mut writer, a, 1, format!("{n}.{m}").as_bytes());
            put(&mut writer, b, 1, &[7; 500]);
        }
        writer.boundary();
        writer.commit(position(n + 1)).await.unwrap();
    }
    let snapshot = reader.snapshot();
    let middle = reader.fetch(&snapshot, a, Offset(4), 1).await.unwrap();
    assert_eq!(middle.batches.len(), 1);
    assert!(
        records(&middle.batches[0]).iter().any(|(offset, _)| *offset == 4),
        "the batch that has it, whole"
    );
    if !log.merges() {
        let all = reader.fetch(&snapshot, a, Offset(0), usize::MAX).await.unwrap();
        assert_eq!(all.batches.len(), 10);
        assert_eq!(middle.batches, [all.batches[1].clone()]);
        let two = reader.fetch(&snapshot, a, Offset(3), 2 * all.batches[1].len()).await.unwrap();
        assert_eq!(two.batches, all.batches[1..3]);
    }
    for max_bytes in [1, 200, 5000, 1 << 20] {
        assert_eq!(read_all(&*reader, a, Offset(0), max_bytes).await.unwrap().len(), 30);
        assert_eq!(read_all(&*reader, b, Offset(7), max_bytes).await.unwrap().len(), 23);
    }
}

async fn offsets_outside_the_log_are_refused(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    put(&mut writer, a, 1, b"one");
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    let snapshot = reader.snapshot();
    assert!(reader.fetch(&snapshot, a, Offset(1), 1).await.unwrap().is_empty());
    for offset in [-1, 2, i64::MAX, i64::MIN] {
        let refused = reader.fetch(&snapshot, a, Offset(offset), 1).await;
        assert!(matches!(refused, Err(LogError::OutOfRange { end: Offset(1), .. })), "{refused:?}");
    }
    let refused = reader.fetch(&snapshot, PartitionId(9), Offset(0), 1).await;
    assert!(matches!(refused, Err(LogError::UnknownPartition(PartitionId(9)))), "{refused:?}");
}

async fn records_are_found_by_time(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    // Commit times need not rise.
    let times = [[10, 30, 20], [15, 16, 17], [40, 5, 40]];
    for (n, times) in (1..).zip(times) {
        times.iter().for_each(|time| put(&mut writer, a, *time, b"x"));
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    let flat: Vec<i64> = times.into_iter().flatten().collect();
    for reader in [reader.clone(), {
        drop((writer, reader));
        log.open().1
    }] {
        let snapshot = reader.snapshot();
        for asked in [i64::MIN, 0, 5, 10, 11, 20, 30, 31, 40, 41, i64::MAX] {
            let expected = flat.iter().position(|time| *time >= asked).map(|n| (Offset(n as i64), flat[n]));
            assert_eq!(reader.find_by_time(&snapshot, a, asked).await.unwrap(), expected, "at {asked}");
        }
        assert_eq!(reader.max_timestamp(&snapshot, a).await.unwrap(), Some((Offset(6), 40)));
        assert_eq!(reader.find_by_time(&snapshot, b, 0).await.unwrap(), None);
        assert_eq!(reader.max_timestamp(&snapshot, b).await.unwrap(), None);
    }
}

async fn unknown_and_large_are_refused(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, _) = two_partitions(&mut writer).await;
    let record = |value| Record { timestamp: 1, key: None, value: Some(value), headers: &[] };
    let refused = writer.append(PartitionId(7), &record(b""));
    assert!(matches!(refused, Err(LogError::UnknownPartition(PartitionId(7)))), "{refused:?}");
    let large = vec![0; (64 << 20) + 1];
    let refused = writer.append(a, &record(&large));
    assert!(matches!(refused, Err(LogError::RecordTooLarge { .. })), "{refused:?}");
    let record = Record { timestamp: 1, key: None, value: None, headers: &[] };
    writer.append(a, &record).unwrap();
    writer.boundary();
    writer.commit(position(1)).await.unwrap();
    assert_eq!(range(&*reader, a), (0, 1));
}

async fn a_reopened_log_is_the_same(log: impl Log) {
    let (mut writer, reader) = log.open();
    let (a, b) = two_partitions(&mut writer).await;
    let epoch = reader.leader_epoch();
    for n in 1..20 {
        put(&mut writer, a, 1, format!("{n}").repeat(300).as_bytes());
        if n % 3 == 0 {
            put(&mut writer, b, 1, b"b");
        }
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    put(&mut writer, a, 1, b"never committed");
    writer.boundary();
    writer.flush().await.unwrap();
    let (snapshot, mut batches, mut all) = (reader.snapshot(), Vec::new(), Vec::new());
    for partition in [a, b] {
        all.push(values(&*reader, partition).await);
        batches.push(reader.fetch(&snapshot, partition, Offset(0), usize::MAX).await.unwrap().batches);
    }
    drop((writer, reader));
    for _ in 0..2 {
        let (writer, reader) = log.open();
        assert_eq!(writer.resume(), Some(position(19)));
        assert_eq!(reader.leader_epoch(), epoch);
        assert_eq!(reader.snapshot().commit(), 19);
        for (partition, expected) in [a, b].into_iter().zip(&all) {
            assert_eq!(&values(&*reader, partition).await, expected);
        }
        if log.merges() {
            continue;
        }
        for (partition, expected) in [a, b].into_iter().zip(&batches) {
            let fetched = reader.fetch(&reader.snapshot(), partition, Offset(0), usize::MAX).await.unwrap();
            assert_eq!(&fetched.batches, expected);
        }
    }
}
