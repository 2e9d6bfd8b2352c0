//! Merged segments: the same records in larger batches, whatever happens on the way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use crate::log::conformance::{position, put};
use crate::log::local::files::Open;
use crate::log::local::segment::{Form, Named, Segment, named};
use crate::log::local::sim::{Random, SimFiles};
use crate::log::local::tests::{InDirectory, files_in};
use crate::log::local::{Files, LocalLog, LocalReader, LocalWriter, Options, index};
use crate::log::record_batch::{BatchHeader, Codec};
use crate::log::{Header, LogReader, LogWriter, Offset, PartitionId, Record};

type Owned = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

/// Small batches in small segments, which stay as they are written.
fn unmerged(files: &SimFiles) -> Options {
    Options {
        segment_bytes: 16 << 10,
        max_batch_bytes: 3000,
        tail_cache_bytes: 0,
        merge_batch_bytes: 0,
        files: Arc::new(files.clone()),
        ..Options::new("/log", "merge")
    }
}

fn merging(files: &SimFiles) -> Options {
    Options { merge_batch_bytes: 64 << 10, ..unmerged(files) }
}

/// Waits until everything that is to be merged has been.
async fn merged(writer: &mut LocalWriter) {
    writer.settle().await.unwrap();
    let end = async {
        while writer.unmerged() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the merges end");
}

/// The forms of the segments that are there, with an index each, but for the active one.
fn forms(files: &dyn Files, directory: &Path) -> Vec<Form> {
    let names = files.list(directory).unwrap();
    let indexes = names.iter().filter_map(|name| match named(name) {
        Some(Named::Index(sequence, form)) => Some((sequence, form)),
        _ => None,
    });
    let mut indexes: Vec<_> = indexes.collect();
    indexes.sort_by_key(|(sequence, _)| *sequence);
    assert!(indexes.is_sorted_by(|a, b| a.0 < b.0), "a segment is there twice: {names:?}");
    indexes.into_iter().map(|(_, form)| form).collect()
}

/// Whether at least every second one is merged: a group that fills a segment leaves a short one behind it, in which no
/// batch has a neighbour.
fn mostly_merged(files: &dyn Files, directory: &Path) -> bool {
    let forms = forms(files, directory);
    let merged = forms.iter().filter(|form| **form == Form::Merged).count();
    merged > 0 && merged * 2 + 1 >= forms.len()
}

/// Transactions of random records in three partitions, each its own commit.
async fn fill(writer: &mut LocalWriter, random: &mut Random, codec: Codec, commits: std::ops::Range<u64>) {
    let ids = writer.create_topic("t", 3, codec).unwrap();
    for n in commits {
        for _ in 0..1 + random.below(4) {
            let partition = ids[if random.one_in(2) { 0 } else { random.below(3) }];
            let len = if random.one_in(30) { random.below(9_000) } else { random.below(200) };
            let value: Vec<u8> =
                (0..len).map(|at| if at % 2 == 0 { b'v' } else { random.next() as u8 }).collect();
            let header = format!("h{}", random.below(9));
            let headers = [Header { name: &header, value: Some(b"x") }, Header { name: "", value: None }];
            let record = Record {
                timestamp: 1_000 + n as i64 * 10 - random.below(500) as i64,
                key: (!random.one_in(4)).then_some(header.as_bytes()),
                value: (!random.one_in(9)).then_some(&value[..]),
                headers: &headers[..random.below(3)],
            };
            writer.append(partition, &record).unwrap();
        }
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
}

/// All there is of a partition's records, read some bytes at a time, and the sizes of the batches' records.
async fn records(reader: &LocalReader, partition: PartitionId, max_bytes: usize) -> (Vec<Owned>, Vec<usize>) {
    let snapshot = reader.snapshot();
    let (mut all, mut sizes, mut next) = (Vec::new(), Vec::new(), Offset(0));
    loop {
        let fetched = reader.fetch(&snapshot, partition, next, max_bytes).await.unwrap();
        let Some(last) = fetched.batches.last() else { return (all, sizes) };
        for batch in &fetched.batches {
            let header = BatchHeader::check(batch).unwrap();
            let mut records = header.records(batch, 1 << 26).unwrap();
            sizes.push(records.payload().len());
            let mut max_timestamp = i64::MIN;
            while let Some(record) = records.next_record().unwrap() {
                let headers = record.headers().map(|header| {
                    let (name, value) = header.unwrap();
                    (name.to_owned(), value.map(<[u8]>::to_vec))
                });
                let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                let (key, value) = (bytes(record.key), bytes(record.value));
                max_timestamp = max_timestamp.max(record.timestamp);
                // In the middle of a batch that has been merged since.
                if record.offset < next {
                    continue;
                }
                all.push((record.offset.0, record.timestamp, key, value, headers.collect()));
            }
            assert_eq!(header.max_timestamp, max_timestamp);
        }
        next = BatchHeader::parse(last).unwrap().end_offset();
    }
}

/// The records of three partitions, and what the time index says of them.
async fn everything(reader: &LocalReader) -> (Vec<Vec<Owned>>, Vec<Option<(Offset, i64)>>) {
    let (mut all, mut found) = (Vec::new(), Vec::new());
    for partition in (0..3).map(PartitionId) {
        all.push(records(reader, partition, 10_000).await.0);
        let snapshot = reader.snapshot();
        found.push(reader.max_timestamp(&snapshot, partition).await.unwrap());
        for timestamp in (0..4_000).step_by(61) {
            found.push(reader.find_by_time(&snapshot, partition, timestamp).await.unwrap());
        }
    }
    (all, found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn merged_segments_have_the_same_records(seed in any::<u64>(), max_bytes in 1..200_000usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut random, files) = (Random(seed), SimFiles::default());
            // Batches of several codecs, merged with the partition's.
            for (codec, commits) in [(Codec::Lz4, 1..70), (Codec::None, 70..140), (Codec::Zstd, 140..200)] {
                let (mut writer, _reader, _) = LocalLog::open(unmerged(&files)).unwrap();
                fill(&mut writer, &mut random, codec, commits).await;
            }
            let (writer, reader, _) = LocalLog::open(unmerged(&files)).unwrap();
            let before = everything(&reader).await;
            drop(writer);
            for codec in [Codec::None, Codec::Lz4] {
                let (mut writer, reader, _) = LocalLog::open(merging(&files)).unwrap();
                writer.create_topic("t", 3, codec).unwrap();
                merged(&mut writer).await;
                assert!(everything(&reader).await == before, "records or times differ");
                assert!(records(&reader, PartitionId(0), max_bytes).await.0 == before.0[0]);
                for (at, record) in before.0[0].iter().enumerate().step_by(37) {
                    let snapshot = reader.snapshot();
                    let fetched =
                        reader.fetch(&snapshot, PartitionId(0), Offset(at as i64), 1).await.unwrap();
                    let header = BatchHeader::check(&fetched.batches[0]).unwrap();
                    assert!((header.base_offset.0..header.end_offset().0).contains(&record.0));
                }
                assert!(mostly_merged(&files, Path::new("/log")));
                drop(writer);
            }
        });
    }
}

#[tokio::test]
async fn small_batches_become_large_ones_that_lie_together() {
    let files = SimFiles::default();
    let options =
        |merge_batch_bytes| Options { segment_bytes: 400 << 10, merge_batch_bytes, ..unmerged(&files) };
    let (mut writer, reader, _) = LocalLog::open(options(0)).unwrap();
    fill(&mut writer, &mut Random(1), Codec::Lz4, 1..2_000).await;
    let (_, small) = records(&reader, PartitionId(0), 1 << 20).await;
    drop(writer);
    let (mut writer, reader, _) = LocalLog::open(options(32 << 10)).unwrap();
    merged(&mut writer).await;
    let (_, sizes) = records(&reader, PartitionId(0), 1 << 20).await;
    assert!(small.len() > 500, "{} batches before", small.len());
    let segment = files.list(Path::new("/log")).unwrap().into_iter().find_map(|name| match named(&name) {
        Some(Named::Segment(sequence, Form::Merged)) => Some(sequence),
        _ => None,
    });
    let log_id = reader_log_id(&files);
    let segment = Segment::new(
        &(Arc::new(files.clone()) as Arc<dyn Files>),
        Path::new("/log"),
        log_id,
        segment.unwrap(),
        Form::Merged,
    );
    let len = segment.file().unwrap().size().unwrap();
    let mut end = crate::log::local::segment::HEADER_LEN as u32;
    for row in index::read(&files, &segment, len).unwrap() {
        let entries = index::load(&files, &segment, row.slot).unwrap();
        for (n, entry) in entries.iter().enumerate() {
            // One that is large by itself may cut its neighbour short.
            let next = entries.get(n + 1).map_or(u32::MAX / 2, |next| next.len);
            assert_eq!(entry.position, end, "an entry of partition {} lies apart", row.partition.0);
            end += entry.len;
            assert!(entry.len <= (32 << 10) + 9_500, "{} bytes", entry.len);
            assert!(entry.len + next >= 8 << 10, "{} and {next} bytes", entry.len);
        }
    }
    assert_eq!(u64::from(end), len);
    assert!(sizes.iter().filter(|size| **size >= 8 << 10).count() * 2 > 10, "{sizes:?}");
}

/// From a segment's header.
fn reader_log_id(files: &SimFiles) -> u128 {
    crate::log::local::checkpoint::Checkpoint::read(files, Path::new("/log")).unwrap().unwrap().log_id
}

#[tokio::test]
async fn after_a_restart_batches_are_merged_with_the_codec_that_the_writer_is_told() {
    let files = SimFiles::default();
    let (mut writer, _reader, _) = LocalLog::open(unmerged(&files)).unwrap();
    let id = writer.create_topic("t", 1, Codec::None).unwrap()[0];
    for n in 1..300 {
        put(&mut writer, id, 1, &[7; 100]);
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    drop(writer);
    let (mut writer, reader, _) = LocalLog::open(merging(&files)).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    writer.create_topic("t", 1, Codec::None).unwrap();
    merged(&mut writer).await;
    assert!(mostly_merged(&files, Path::new("/log")));
    let fetched = reader.fetch(&reader.snapshot(), id, Offset(0), usize::MAX).await.unwrap();
    let codecs = fetched.batches.iter().map(|batch| BatchHeader::check(batch).unwrap().codec);
    assert!(codecs.eq(fetched.batches.iter().map(|_| Codec::None)));
}

#[tokio::test]
async fn a_merged_batch_is_with_its_header_within_the_limit() {
    let files = SimFiles::default();
    let options = Options { segment_bytes: 256 << 10, ..merging(&files) };
    let (mut writer, reader, _) = LocalLog::open(options).unwrap();
    let id = writer.create_topic("t", 1, Codec::None).unwrap()[0];
    for n in 1..2_500 {
        // Far apart, so that each record's timestamp takes more bytes in a larger batch.
        put(&mut writer, id, n as i64 * 1_000_000_000, &[7; 60]);
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    merged(&mut writer).await;
    let fetched = reader.fetch(&reader.snapshot(), id, Offset(0), usize::MAX).await.unwrap();
    let largest = fetched.batches.iter().map(|batch| batch.len()).max().unwrap();
    assert!((60 << 10..=64 << 10).contains(&largest), "{largest} bytes");
}

#[tokio::test]
async fn segments_of_large_batches_are_left_alone() {
    let files = SimFiles::default();
    let options = Options { merge_batch_bytes: 4096, ..unmerged(&files) };
    let (mut writer, _reader, _) = LocalLog::open(options).unwrap();
    let ids = writer.create_topic("t", 3, Codec::None).unwrap();
    for n in 1..200 {
        put(&mut writer, ids[n as usize % 3], 1, &[7; 300]);
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    merged(&mut writer).await;
    let forms = forms(&files, Path::new("/log"));
    assert!(forms.len() > 2 && forms.iter().all(|form| *form == Form::Written), "{forms:?}");
}

#[tokio::test]
async fn a_request_that_began_before_sees_nothing_of_later_commits_in_a_merged_batch() {
    let files = SimFiles::default();
    let (mut writer, reader, _) = LocalLog::open(merging(&files)).unwrap();
    let mut random = Random(3);
    fill(&mut writer, &mut random, Codec::Lz4, 1..6).await;
    let old = reader.snapshot();
    let end = old.range(PartitionId(0)).unwrap().end;
    let newest = reader.max_timestamp(&old, PartitionId(0)).await.unwrap();
    // It may be superseded first by one with the same records.
    writer.commit(position(6)).await.unwrap();
    fill(&mut writer, &mut random, Codec::Lz4, 7..200).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(writer.unmerged() > 0, "the merge waits");
    let fetched = reader.fetch(&old, PartitionId(0), Offset(0), 1 << 20).await.unwrap();
    assert_eq!(BatchHeader::parse(fetched.batches.last().unwrap()).unwrap().end_offset(), end);
    assert_eq!(reader.max_timestamp(&old, PartitionId(0)).await.unwrap(), newest);
    drop(old);
    merged(&mut writer).await;
    assert!(forms(&files, Path::new("/log")).contains(&Form::Merged));
}

#[tokio::test]
async fn a_full_disk_ends_a_merge_and_the_segment_stays_as_it_was() {
    let files = SimFiles::default();
    let (mut writer, reader, _) = LocalLog::open(unmerged(&files)).unwrap();
    fill(&mut writer, &mut Random(4), Codec::Lz4, 1..300).await;
    let before = everything(&reader).await;
    drop(writer);
    files.set_space(Some(3_000));
    let (mut writer, reader, _) = LocalLog::open(merging(&files)).unwrap();
    merged(&mut writer).await;
    let written = forms(&files, Path::new("/log"));
    assert!(written.iter().all(|form| *form == Form::Written), "{written:?}");
    assert!(files.list(Path::new("/log")).unwrap().iter().all(|name| !name.contains("merged")));
    assert!(everything(&reader).await == before);
    // Its space has been given back, and the log goes on.
    put(&mut writer, PartitionId(0), 1, &[1; 500]);
    writer.boundary();
    writer.commit(position(300)).await.unwrap();
    drop(writer);
    files.set_space(None);
    let (mut writer, _reader, _) = LocalLog::open(merging(&files)).unwrap();
    merged(&mut writer).await;
    assert!(mostly_merged(&files, Path::new("/log")), "merged at the next start");
}

#[tokio::test]
async fn a_full_disk_gets_back_the_space_of_a_merge_that_waits_to_be_installed() {
    let files = SimFiles::default();
    let (mut writer, reader, _) = LocalLog::open(merging(&files)).unwrap();
    let mut random = Random(8);
    fill(&mut writer, &mut random, Codec::Lz4, 1..6).await;
    let held = reader.snapshot();
    fill(&mut writer, &mut random, Codec::Lz4, 6..200).await;
    // A merge is made on a thread of its own, its index last, and waits for the reader.
    let is_made = || {
        files.list(Path::new("/log")).unwrap().iter().any(|name| {
            let path = Path::new("/log").join(name);
            matches!(named(name), Some(Named::Index(_, Form::Merged)))
                && files.open(&path, Open::Read).is_ok_and(|file| file.size().unwrap() > 0)
        })
    };
    while !is_made() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    files.set_space(Some(0));
    let is_written = async {
        loop {
            put(&mut writer, PartitionId(0), 1, &[1; 500]);
            writer.boundary();
            if writer.commit(position(200)).await.is_ok() {
                break;
            }
            // It was not handed over yet, or is given up by now.
            writer.resume();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_written).await.expect("the space is given back");
    drop(held);
}

#[tokio::test]
async fn whichever_file_is_not_in_force_is_removed_at_start() {
    let log = InDirectory::new(|directory| Options {
        files: Arc::new(crate::log::local::RealFiles),
        directory: directory.to_owned(),
        ..unmerged(&SimFiles::default())
    });
    let directory = &log.options.directory;
    let merging = Options { merge_batch_bytes: 64 << 10, ..log.options.clone() };
    let (mut writer, reader, _) = LocalLog::open(log.options.clone()).unwrap();
    fill(&mut writer, &mut Random(5), Codec::Lz4, 1..300).await;
    let before = everything(&reader).await;
    writer.close().await;
    let copy = |from: &[(std::path::PathBuf, Vec<u8>)]| {
        from.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    };
    let all = |suffix: &str| -> Vec<(std::path::PathBuf, Vec<u8>)> {
        files_in(directory, suffix)
            .into_iter()
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect()
    };
    let written: Vec<_> = all("").into_iter().filter(|(path, _)| !path.ends_with("checkpoint")).collect();
    let checkpoint = all("checkpoint");
    {
        let (mut writer, _reader, _) = LocalLog::open(merging.clone()).unwrap();
        merged(&mut writer).await;
        writer.close().await;
    }
    let merged_files: Vec<_> =
        all("").into_iter().filter(|(path, _)| path.to_str().unwrap().contains("merged")).collect();
    assert!(merged_files.len() > 4);

    // As after a crash between the checkpoint and the removal of the written files.
    copy(&written);
    {
        let (writer, reader, _) = LocalLog::open(log.options.clone()).unwrap();
        assert!(everything(&reader).await == before);
        assert!(mostly_merged(&crate::log::local::RealFiles, directory));
        writer.close().await;
    }
    // As after a crash before the checkpoint.
    copy(&written);
    copy(&checkpoint);
    let (_writer, reader, _) = LocalLog::open(log.options.clone()).unwrap();
    assert!(everything(&reader).await == before);
    assert!(forms(&crate::log::local::RealFiles, directory).iter().all(|form| *form == Form::Written));
}

#[tokio::test]
async fn a_damaged_segment_is_not_merged() {
    let files = SimFiles::default();
    let (mut writer, reader, _) = LocalLog::open(unmerged(&files)).unwrap();
    fill(&mut writer, &mut Random(6), Codec::Lz4, 1..300).await;
    drop((writer, reader));
    let damaged =
        files.list(Path::new("/log")).unwrap().into_iter().find(|name| name.ends_with(".segment")).unwrap();
    let file = files.open(&Path::new("/log").join(damaged), crate::log::local::files::Open::Write).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5_000).unwrap();
    let (mut writer, _reader, _) = LocalLog::open(merging(&files)).unwrap();
    merged(&mut writer).await;
    let forms = forms(&files, Path::new("/log"));
    assert_eq!(forms[0], Form::Written);
    assert!(forms.contains(&Form::Merged), "{forms:?}");
}

/// Readers take turns from the start while segments change their files under them.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_go_on_while_segments_are_merged() {
    let log = InDirectory::new(|directory| Options {
        files: Arc::new(crate::log::local::RealFiles),
        directory: directory.to_owned(),
        ..unmerged(&SimFiles::default())
    });
    let (mut writer, reader, _) = LocalLog::open(log.options.clone()).unwrap();
    fill(&mut writer, &mut Random(7), Codec::Lz4, 1..1_500).await;
    let before = everything(&reader).await;
    writer.close().await;
    let merging = Options { merge_batch_bytes: 64 << 10, ..log.options.clone() };
    let (mut writer, reader, _) = LocalLog::open(merging).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let read = |max_bytes| {
        let (reader, before, done) = (reader.clone(), before.0.clone(), done.clone());
        tokio::spawn(async move {
            let mut rounds = 0;
            while rounds < 2 || !done.load(Ordering::Relaxed) {
                for (partition, expected) in (0..3).map(PartitionId).zip(&before) {
                    assert!(&records(&reader, partition, max_bytes).await.0 == expected);
                }
                rounds += 1;
            }
        })
    };
    let readings = [read(2_000), read(1 << 20)];
    merged(&mut writer).await;
    done.store(true, Ordering::Relaxed);
    for reading in readings {
        reading.await.unwrap();
    }
    writer.close().await;
    assert!(mostly_merged(&crate::log::local::RealFiles, &log.options.directory));
}
