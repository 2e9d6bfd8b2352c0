//! The local log under the conformance suite, and what is its own: corruption, retention, errors of the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::sim::{Random, SimFiles};
use super::{LocalLog, LocalReader, LocalWriter, Options};
use crate::log::conformance::{self, Log, position, put, read_all};
use crate::log::record_batch::{BatchHeader, Codec};
use crate::log::{LogError, LogReader, LogWriter, Offset, PartitionId, Retention};

/// Options that make every mechanism work hard: tiny segments, tiny batches. What is written stays as it is.
fn small(directory: &Path) -> Options {
    Options {
        segment_bytes: 4096,
        max_batch_bytes: 600,
        tail_cache_bytes: 4096,
        merge_batch_bytes: 0,
        ..Options::new(directory, "test")
    }
}

pub(super) struct InDirectory {
    _directory: tempfile::TempDir,
    pub(super) options: Options,
}

impl InDirectory {
    pub(super) fn new(options: impl Fn(&Path) -> Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        InDirectory { options: options(&directory.path().join("log")), _directory: directory }
    }
}

impl Log for InDirectory {
    type Writer = LocalWriter;
    type Reader = LocalReader;

    fn merges(&self) -> bool {
        self.options.merge_batch_bytes > 0
    }

    fn open(&self) -> (LocalWriter, Arc<LocalReader>) {
        let (writer, reader, _) = LocalLog::open(self.options.clone()).unwrap();
        (writer, reader)
    }
}

#[tokio::test]
async fn the_contract_holds_on_real_files() {
    let as_written = |directory: &Path| Options { merge_batch_bytes: 0, ..Options::new(directory, "test") };
    conformance::check(|| InDirectory::new(as_written)).await;
}

#[tokio::test]
async fn the_contract_holds_with_tiny_segments_and_no_cache() {
    conformance::check(|| InDirectory::new(|directory| Options { tail_cache_bytes: 0, ..small(directory) }))
        .await;
}

#[tokio::test]
async fn the_contract_holds_while_tiny_segments_are_merged() {
    let merging = |directory: &Path| Options { merge_batch_bytes: 1 << 20, ..small(directory) };
    conformance::check(|| InDirectory::new(merging)).await;
}

/// The contents of a log: what each partition holds, or the first error met.
async fn contents(options: &Options) -> Result<Vec<Vec<(i64, Vec<u8>)>>, LogError> {
    let (_writer, reader, topics) = LocalLog::open(options.clone())?;
    let mut all = Vec::new();
    for partition in topics.iter().flat_map(|topic| &topic.partitions) {
        let start = reader.snapshot().range(*partition).unwrap().start;
        all.push(read_all(&*reader, *partition, start, 1 << 20).await?);
    }
    Ok(all)
}

/// Commits `count` groups of a few records in two partitions.
async fn fill(writer: &mut LocalWriter, numbers: std::ops::Range<u64>) {
    let ids = writer.create_topic("t", 2, Codec::Lz4).unwrap();
    for n in numbers {
        for m in 0..4 {
            put(writer, ids[m % 2], n as i64, format!("{n}.{m} ").repeat(20).as_bytes());
        }
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
}

fn copy_of(directory: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(super) fn files_in(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(suffix));
    paths.sort();
    paths
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn is_corrupt<T>(result: &Result<T, LogError>, path: &Path) -> bool {
    matches!(result, Err(LogError::Corrupt { path: named, .. }) if Path::new(named) == path)
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_found_or_harmless_and_never_served() {
    let log = InDirectory::new(small);
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..25).await;
    writer.close().await;
    let directory = &log.options.directory;
    let expected = contents(&log.options).await.unwrap();
    assert!(files_in(directory, ".index").len() >= 2, "there are sealed segments");

    let scratch = tempfile::tempdir().unwrap();
    let mut found = 0;
    for path in files_in(directory, "") {
        let len = std::fs::metadata(&path).unwrap().len() as usize;
        for at in (0..len).step_by(len / 40 + 1) {
            let copy = scratch.path().join("copy");
            copy_of(directory, &copy);
            change(&copy.join(path.file_name().unwrap()), |bytes| bytes[at] ^= 0x10);
            match contents(&Options { directory: copy.clone(), ..log.options.clone() }).await {
                Ok(read) => assert_eq!(read, expected, "byte {at} of {}", path.display()),
                Err(LogError::Corrupt { .. } | LogError::Version { .. }) => found += 1,
                Err(error) => panic!("byte {at} of {}: {error}", path.display()),
            }
            std::fs::remove_dir_all(copy).unwrap();
        }
    }
    assert!(found > 100, "only {found} were found");
}

#[tokio::test]
async fn a_sealed_segment_that_is_shorter_or_missing_is_refused() {
    let log = InDirectory::new(small);
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..15).await;
    writer.close().await;
    let sealed = files_in(&log.options.directory, ".segment")[0].clone();
    let whole = std::fs::read(&sealed).unwrap();
    change(&sealed, |bytes| bytes.truncate(whole.len() - 1));
    assert!(is_corrupt(&contents(&log.options).await, &sealed));
    std::fs::remove_file(&sealed).unwrap();
    assert!(is_corrupt(&contents(&log.options).await, &sealed));
    std::fs::write(&sealed, &whole).unwrap();
    contents(&log.options).await.unwrap();

    let index = files_in(&log.options.directory, ".index")[0].clone();
    std::fs::remove_file(&index).unwrap();
    assert!(is_corrupt(&contents(&log.options).await, &index));
}

#[tokio::test]
async fn a_missing_checkpoint_is_refused() {
    let log = InDirectory::new(small);
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..3).await;
    writer.close().await;
    let checkpoint = log.options.directory.join("checkpoint");
    std::fs::remove_file(&checkpoint).unwrap();
    assert!(is_corrupt(&contents(&log.options).await, &checkpoint));
}

#[tokio::test]
async fn a_log_that_lost_its_end_after_a_clean_close_is_refused() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..5).await;
    writer.close().await;
    let segment = files_in(&log.options.directory, ".segment")[0].clone();
    change(&segment, |bytes| bytes.truncate(bytes.len() - 1));
    assert!(is_corrupt(&contents(&log.options).await, &segment));
}

#[tokio::test]
async fn an_unfinished_tail_is_cut_and_a_damaged_middle_is_refused() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, reader) = log.open();
    let mut lens = Vec::new();
    let segment = |directory: &Path| files_in(directory, ".segment")[0].clone();
    for n in 1..6 {
        fill(&mut writer, n..n + 1).await;
        lens.push(std::fs::metadata(segment(&log.options.directory)).unwrap().len() as usize);
    }
    let scratch = tempfile::tempdir().unwrap();
    // As after a SIGKILL: copied while the log is open.
    let damaged = async |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let directory = scratch.path().join(name);
        copy_of(&log.options.directory, &directory);
        change(&segment(&directory), damage);
        let options = Options { directory: directory.clone(), ..log.options.clone() };
        (contents(&options).await.map(|all| all[0].len()), segment(&directory))
    };
    let (whole, _) = damaged("garbage behind", &|bytes| bytes.extend([0xAB; 1000])).await;
    assert_eq!(whole.unwrap(), 10);
    let (zeros, _) = damaged("zeros behind", &|bytes| bytes.extend([0; 5000])).await;
    assert_eq!(zeros.unwrap(), 10);
    let (shorter, _) = damaged("shorter", &|bytes| bytes.truncate(lens[4] - 1)).await;
    assert_eq!(shorter.unwrap(), 8);
    let (torn, _) = damaged("torn last group", &|bytes| bytes[lens[3] + 30] ^= 1).await;
    assert_eq!(torn.unwrap(), 8);
    for group in [1, 2, 3] {
        let (refused, segment) =
            damaged(&format!("group {group}"), &|bytes| bytes[lens[group - 1] + 30] ^= 1).await;
        let Err(LogError::Corrupt { path, offset, detail }) = refused else { panic!("{refused:?}") };
        assert_eq!((Path::new(&path), offset), (&*segment, lens[group - 1] as u64), "{detail}");
    }
    drop((writer, reader));
}

/// Two attempts at the same group leave pages of the same length; a crash may mix them.
#[tokio::test]
async fn pages_of_two_attempts_at_a_group_do_not_make_a_group() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..2).await;
    writer.close().await;
    let start = std::fs::read(&files_in(&log.options.directory, ".segment")[0]).unwrap().len();
    let scratch = tempfile::tempdir().unwrap();
    let attempt = async |first: &[u8]| {
        let directory = scratch.path().join(std::str::from_utf8(first).unwrap());
        copy_of(&log.options.directory, &directory);
        let (mut writer, _, topics) =
            LocalLog::open(Options { directory: directory.clone(), ..log.options.clone() }).unwrap();
        put(&mut writer, topics[0].partitions[0], 1, first);
        put(&mut writer, topics[0].partitions[1], 1, b"second");
        writer.boundary();
        writer.commit(position(2)).await.unwrap();
        std::fs::read(&files_in(&directory, ".segment")[0]).unwrap()
    };
    let (one, two) = (attempt(b"first").await, attempt(b"other").await);
    assert_eq!(one.len(), two.len());
    let length = u32::from_le_bytes(one[start..start + 4].try_into().unwrap()) as usize;
    let second = start + 8 + length;
    let mixed = [&one[..second], &two[second..]].concat();
    for (bytes, records) in [(&one, 3), (&two, 3), (&mixed, 2)] {
        std::fs::write(&files_in(&log.options.directory, ".segment")[0], bytes).unwrap();
        let copy = scratch.path().join("copy");
        copy_of(&log.options.directory, &copy);
        let all = contents(&Options { directory: copy.clone(), ..log.options.clone() }).await.unwrap();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [records, records]);
        std::fs::remove_dir_all(copy).unwrap();
    }
}

#[tokio::test]
async fn files_of_a_newer_version_are_refused() {
    let log = InDirectory::new(small);
    let (mut writer, _) = log.open();
    fill(&mut writer, 1..3).await;
    writer.close().await;
    for (name, header) in [("checkpoint", None), (".segment", Some(36))] {
        let path = files_in(&log.options.directory, name)[0].clone();
        let whole = std::fs::read(&path).unwrap();
        change(&path, |bytes| {
            bytes[8] = 9;
            let end = header.unwrap_or(bytes.len() - 4);
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        });
        let refused = contents(&log.options).await;
        let supported = if name == "checkpoint" { 3 } else { 1 };
        let is_refused =
            matches!(refused, Err(LogError::Version { found: 9, supported: s, .. }) if s == supported);
        assert!(is_refused, "{refused:?}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[tokio::test]
async fn files_of_older_versions_are_read() {
    const HEAD: usize = 8 + 4 + 8 + 8 + 4;
    const ROW: usize = 4 + 4 + 8 + 8 + 4;
    let log = InDirectory::new(small);
    let (mut writer, reader) = log.open();
    fill(&mut writer, 1..25).await;
    let a = reader.topics().borrow()[0].partitions[0];
    let bytes = reader.partition_bytes(a);
    writer.close().await;
    let expected = contents(&log.options).await.unwrap();
    let crc = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
    change(&log.options.directory.join("checkpoint"), |bytes| {
        let end = bytes.len() - 4;
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = crc(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum);
    });
    let indexes = files_in(&log.options.directory, ".index");
    assert!(indexes.len() >= 2);
    for index in indexes {
        // Rows without the size of the batches.
        change(&index, |bytes| {
            let rows = u32::from_le_bytes(*bytes[..HEAD].last_chunk().unwrap()) as usize;
            let mut old = bytes[..HEAD].to_vec();
            old[8..12].copy_from_slice(&1u32.to_le_bytes());
            let (table, rest) = bytes[HEAD..].split_at(rows * (ROW + 8));
            table.chunks_exact(ROW + 8).for_each(|row| old.extend_from_slice(&row[..ROW]));
            let sum = crc(&old);
            old.extend_from_slice(&sum);
            old.extend_from_slice(&rest[4..]);
            *bytes = old;
        });
    }
    let (_writer, reader) = log.open();
    assert_eq!(reader.partition_bytes(a), bytes);
    drop((_writer, reader));
    assert_eq!(contents(&log.options).await.unwrap(), expected);
}

#[tokio::test]
async fn segments_of_which_all_records_were_deleted_are_removed_whatever_the_retention() {
    let log = InDirectory::new(small);
    let (mut writer, reader) = log.open();
    fill(&mut writer, 1..40).await;
    let [a, b] = reader.topics().borrow()[0].partitions[..] else { panic!() };
    let segments = || files_in(&log.options.directory, ".segment").len();
    let before = segments();
    assert!(before > 4);
    // Something of the first segment can still be read.
    reader.delete_records(vec![(a, Offset(i64::MAX))]).await.unwrap();
    writer.settle().await.unwrap();
    assert_eq!(segments(), before);
    reader.delete_records(vec![(b, Offset(40))]).await.unwrap();
    writer.settle().await.unwrap();
    let left = segments();
    assert!(1 < left && left < before, "{left} of {before}");
    assert_eq!(read_all(&*reader, b, Offset(40), 1_000).await.unwrap().len(), 38);
    // The records of the active segment too, once it is sealed.
    reader.delete_records(vec![(b, Offset(i64::MAX))]).await.unwrap();
    writer.delete_topic("t").unwrap();
    let kept = writer.create_topic("kept", 1, Codec::None).unwrap()[0];
    for n in 40..44 {
        put(&mut writer, kept, 1, &[7; 5_000]);
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    writer.settle().await.unwrap();
    let oldest = &files_in(&log.options.directory, ".segment")[0];
    assert!(std::fs::read(oldest).unwrap().windows(8).any(|bytes| bytes == [7; 8]), "only 'kept' is left");
    drop((writer, reader));
    let (_writer, reader) = log.open();
    assert_eq!(read_all(&*reader, kept, Offset(0), 1 << 20).await.unwrap().len(), 4);
}

#[tokio::test]
async fn deleted_records_stay_deleted_when_retention_or_a_merge_comes_by() {
    let mut log = InDirectory::new(small);
    log.options.merge_batch_bytes = 1 << 20;
    let (mut writer, reader) = log.open();
    fill(&mut writer, 1..40).await;
    let [a, b] = reader.topics().borrow()[0].partitions[..] else { panic!() };
    reader.delete_records(vec![(a, Offset(61))]).await.unwrap();
    while writer.settle().await.is_ok() && writer.unmerged() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let expected: Vec<i64> = (61..78).collect();
    let offsets = async || {
        let read = read_all(&*reader, a, Offset(61), 1_000).await.unwrap();
        read.into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    assert_eq!(offsets().await, expected);
    reader.set_retention(Retention { bytes: Some(1), age: None });
    writer.commit(position(40)).await.unwrap();
    writer.settle().await.unwrap();
    let snapshot = reader.snapshot();
    assert!(snapshot.range(b).unwrap().start.0 > 0, "retention has come by");
    assert!(snapshot.range(a).unwrap().start >= Offset(61));
}

#[tokio::test]
async fn the_shortest_age_does_not_seal_a_segment_with_every_commit() {
    let mut log = InDirectory::new(|directory| Options::new(directory, "test"));
    log.options.retention.age = Some(Duration::ZERO);
    let (mut writer, _reader) = log.open();
    let started = std::time::Instant::now();
    let mut newest = String::new();
    let mut sealed = 0;
    for n in 1..50 {
        fill(&mut writer, n..n + 1).await;
        writer.settle().await.unwrap();
        let path = files_in(&log.options.directory, ".segment").pop().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        sealed += u64::from(name != newest);
        newest = name;
    }
    let seconds = started.elapsed().as_secs();
    assert!(sealed <= 2 + seconds, "{sealed} segments in {seconds} s");
}

#[tokio::test]
async fn retention_by_size_removes_whole_old_segments_and_keeps_the_rest_readable() {
    let mut log = InDirectory::new(small);
    log.options.retention.bytes = Some(12_000);
    let (mut writer, reader) = log.open();
    fill(&mut writer, 1..2).await;
    let old = reader.snapshot();
    fill(&mut writer, 2..60).await;
    let a = reader.topics().borrow()[0].partitions[0];
    writer.close().await;

    let on_disk: u64 = files_in(&log.options.directory, ".segment")
        .iter()
        .map(|path| std::fs::metadata(path).unwrap().len())
        .sum();
    assert!((8_000..25_000).contains(&on_disk), "{on_disk} bytes are left");
    let range = reader.snapshot().range(a).unwrap();
    assert!(range.start.0 > 0 && range.end.0 == 118, "{range:?}");
    assert_eq!(read_all(&*reader, a, range.start, 1000).await.unwrap().len() as i64, 118 - range.start.0);
    let gone = reader.fetch(&old, a, Offset(0), 1000).await;
    assert!(matches!(gone, Err(LogError::OutOfRange { start, .. }) if start == range.start), "{gone:?}");

    let (_writer, reader) = log.open();
    assert_eq!(reader.snapshot().range(a), Some(range));
}

#[tokio::test]
async fn retention_by_age_removes_what_is_old_even_if_nothing_follows() {
    let mut log = InDirectory::new(small);
    log.options.retention.age = Some(Duration::from_millis(20));
    let (mut writer, reader) = log.open();
    fill(&mut writer, 1..10).await;
    let a = reader.topics().borrow()[0].partitions[0];
    let mut commits = 10;
    while reader.snapshot().range(a).unwrap().start < Offset(18) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        writer.commit(position(commits)).await.unwrap();
        commits += 1;
    }
    assert_eq!(reader.snapshot().range(a).unwrap().end, Offset(18));
    fill(&mut writer, commits..commits + 1).await;
    assert_eq!(reader.snapshot().range(a).unwrap().end, Offset(20));
}

fn simulated() -> (SimFiles, Options) {
    let files = SimFiles::default();
    let options = Options { files: Arc::new(files.clone()), ..Options::new("/log", "test") };
    (files, options)
}

#[tokio::test]
async fn a_full_disk_stops_the_log_until_there_is_space_and_loses_nothing_committed() {
    let (files, options) = simulated();
    let (mut writer, reader, _) = LocalLog::open(options.clone()).unwrap();
    fill(&mut writer, 1..4).await;
    let a = reader.topics().borrow()[0].partitions[0];
    files.set_space(Some(50));
    put(&mut writer, a, 1, &[1; 500]);
    writer.boundary();
    let refused = writer.commit(position(4)).await;
    assert!(
        matches!(refused, Err(ref error @ LogError::NoSpace { .. }) if error.is_retryable()),
        "{refused:?}"
    );
    // What is appended before the caller starts over belongs to what was lost.
    put(&mut writer, a, 1, b"lost");
    assert_eq!(writer.resume(), Some(position(3)));
    assert_eq!((writer.has_group(), reader.snapshot().range(a).unwrap().end), (false, Offset(6)));
    assert!(writer.commit(position(4)).await.is_err(), "there is still no space");
    assert_eq!(writer.resume(), Some(position(3)));
    assert_eq!(read_all(&*reader, a, Offset(0), 1 << 20).await.unwrap().len(), 6);

    files.set_space(None);
    fill(&mut writer, 4..6).await;
    let expected = read_all(&*reader, a, Offset(0), 1 << 20).await.unwrap();
    assert_eq!(expected.len(), 10);
    files.crash(&mut Random(1));
    drop(writer);
    assert_eq!(contents(&options).await.unwrap()[0], expected);
}

#[tokio::test]
async fn a_seal_that_fails_for_lack_of_space_leaves_no_segment_behind_however_often_it_is_tried() {
    let (files, options) = simulated();
    let options = Options { merge_batch_bytes: 0, segment_bytes: 4096, ..options };
    let (mut writer, reader, _) = LocalLog::open(options.clone()).unwrap();
    fill(&mut writer, 1..3).await;
    let a = writer.create_topic("t", 2, Codec::None).unwrap()[0];
    put(&mut writer, a, 1, &[1; 5_000]);
    writer.boundary();
    let segments = || {
        let names = options.files.list(&options.directory).unwrap();
        names.iter().filter(|name| name.ends_with(".segment")).count()
    };
    let mut most = 0;
    // At some time there is space for a commit, an index and a new segment, and not yet for the checkpoint.
    for space in (300..1_500).step_by(40) {
        files.set_space(Some(space + if writer.has_group() { 5_000 } else { 0 }));
        writer.commit(position(space)).await.unwrap();
        writer.settle().await.unwrap();
        most = most.max(segments());
    }
    assert_eq!(most, 2);
    files.set_space(None);
    writer.commit(position(2_000)).await.unwrap();
    writer.settle().await.unwrap();
    assert_eq!(segments(), 2);
    let expected = read_all(&*reader, a, Offset(0), 1 << 20).await.unwrap();
    drop(writer);
    assert_eq!(contents(&options).await.unwrap()[0], expected);
}

#[tokio::test]
async fn a_failed_fsync_stops_the_writer_for_good_while_durable_data_stays_readable() {
    let (files, options) = simulated();
    let (mut writer, reader, _) = LocalLog::open(options.clone()).unwrap();
    fill(&mut writer, 1..4).await;
    let a = reader.topics().borrow()[0].partitions[0];
    files.fail_sync_after(0);
    put(&mut writer, a, 1, b"lost");
    writer.boundary();
    let refused = writer.commit(position(4)).await;
    assert!(matches!(refused, Err(LogError::Io { operation: "fsync", .. })), "{refused:?}");
    assert_eq!(writer.resume(), Some(position(3)));
    assert!(!reader.is_writable());
    put(&mut writer, a, 1, b"refused");
    writer.boundary();
    assert!(writer.commit(position(4)).await.is_err());
    assert_eq!(read_all(&*reader, a, Offset(0), 1 << 20).await.unwrap().len(), 6);
    drop(writer);
    assert_eq!(contents(&options).await.unwrap()[0].len(), 6);
}

#[tokio::test]
async fn ten_thousand_partitions_share_one_log() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, reader) = log.open();
    let ids = writer.create_topic("wide", 10_000, Codec::Lz4).unwrap();
    for n in 1..3 {
        ids.iter().for_each(|id| put(&mut writer, *id, 1, b"value"));
        writer.boundary();
        writer.commit(position(n)).await.unwrap();
    }
    drop((writer, reader));
    let (_writer, reader) = log.open();
    for id in [ids[0], ids[5_000], ids[9_999]] {
        assert_eq!(read_all(&*reader, id, Offset(0), 1 << 20).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_log_takes_no_more_topics_than_it_can_bear() {
    let (_files, options) = simulated();
    let (mut writer, _reader, _) = LocalLog::open(options).unwrap();
    writer.create_topic("wide", 99_998, Codec::Lz4).unwrap();
    let refused = writer.create_topic("shop.public.orders", 3, Codec::Lz4);
    let Err(error @ LogError::InvalidTopic { .. }) = refused else { panic!("{refused:?}") };
    assert!(!error.is_retryable());
    let told = error.to_string();
    assert!(
        told.contains("shop.public.orders") && told.contains("100000") && told.contains("new task"),
        "{told}"
    );
    writer.create_topic("small", 2, Codec::Lz4).unwrap();
    writer.create_topic("small", 2, Codec::Lz4).unwrap();
    writer.create_topic("last", 1, Codec::Lz4).unwrap_err();
}

#[tokio::test]
async fn thousands_of_new_topics_in_one_group_cost_one_checkpoint() {
    let (files, options) = simulated();
    let (mut writer, reader, _) = LocalLog::open(options.clone()).unwrap();
    fill(&mut writer, 1..2).await;
    let renames = files.renames();
    for n in 0..5_000 {
        let ids = writer.create_topic(&format!("shop.public.table_{n}"), 1, Codec::Lz4).unwrap();
        put(&mut writer, ids[0], 1, b"value");
    }
    writer.boundary();
    writer.commit(position(2)).await.unwrap();
    writer.commit(position(3)).await.unwrap();
    assert_eq!(files.renames() - renames, 1);
    assert_eq!(reader.topics().borrow().len(), 5_001);
    files.crash(&mut Random(1));
    drop(writer);
    let all = contents(&options).await.unwrap();
    assert!(all.len() == 5_002 && all[2..].iter().all(|records| records.len() == 1));
}

#[tokio::test]
async fn topics_made_while_the_disk_is_full_keep_their_partitions() {
    let (files, options) = simulated();
    let (mut writer, reader, _) = LocalLog::open(options.clone()).unwrap();
    fill(&mut writer, 1..3).await;
    files.set_space(Some(0));
    let a = writer.create_topic("a", 2, Codec::Lz4).unwrap()[1];
    put(&mut writer, a, 1, b"lost");
    writer.boundary();
    let ticket = writer.commit(position(3));
    // Made before the writer learns of the failure that its group is lost to.
    let b = writer.create_topic("b", 1, Codec::Lz4).unwrap()[0];
    put(&mut writer, b, 1, b"lost");
    assert!(matches!(ticket.await, Err(LogError::NoSpace { .. })));
    let refused = writer.flush().await;
    assert!(matches!(refused, Err(LogError::NoSpace { .. })), "{refused:?}");
    assert_eq!(writer.resume(), Some(position(2)));
    assert_eq!((reader.topics().borrow().len(), reader.snapshot().range(a)), (1, None));

    files.set_space(None);
    let c = writer.create_topic("c", 1, Codec::Lz4).unwrap()[0];
    for (partition, value) in [(a, b"a"), (b, b"b"), (c, b"c")] {
        put(&mut writer, partition, 1, value);
    }
    writer.boundary();
    writer.commit(position(3)).await.unwrap();
    drop(writer);
    files.crash(&mut Random(1));
    let (_, reader, topics) = LocalLog::open(options).unwrap();
    assert_eq!(topics.iter().map(|topic| &*topic.name).collect::<Vec<_>>(), ["t", "a", "b", "c"]);
    assert_eq!((topics[1].partitions[1], topics[2].partitions[0], topics[3].partitions[0]), (a, b, c));
    for (partition, value) in [(a, b"a"), (b, b"b"), (c, b"c")] {
        let all = read_all(&*reader, partition, Offset(0), 1 << 20).await.unwrap();
        assert_eq!(all, [(0, value.to_vec())]);
    }
}

#[tokio::test]
async fn each_topic_has_its_codec() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, reader) = log.open();
    let codecs = [Codec::None, Codec::Zstd, Codec::Lz4];
    let make =
        |writer: &mut LocalWriter, n: usize, codec| writer.create_topic(&n.to_string(), 1, codec).unwrap()[0];
    for round in 0..3 {
        for n in 0..3 {
            let id = make(&mut writer, n, codecs[(n + round) % 3]);
            put(&mut writer, id, 1, &[7; 5_000]);
        }
        writer.boundary();
        writer.commit(position(round as u64 + 1)).await.unwrap();
    }
    for n in 0..3 {
        let partition = make(&mut writer, n, Codec::None);
        let fetched = reader.fetch(&reader.snapshot(), partition, Offset(0), usize::MAX).await.unwrap();
        let used = fetched.batches.iter().map(|batch| BatchHeader::check(batch).unwrap().codec);
        assert!(used.eq((0..3).map(|round| codecs[(n + round) % 3])));
    }
}

#[tokio::test]
async fn topic_ids_last() {
    let log = InDirectory::new(|directory| Options::new(directory, "test"));
    let (mut writer, reader) = log.open();
    writer.create_topic("a", 1, Codec::Lz4).unwrap();
    writer.create_topic("b", 2, Codec::Lz4).unwrap();
    writer.flush().await.unwrap();
    let topics = reader.topics().borrow().clone();
    assert_ne!(topics[0].id, topics[1].id);
    writer.close().await;
    let (_writer, _reader, reopened) = LocalLog::open(log.options.clone()).unwrap();
    assert_eq!(reopened, topics);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_beside_a_busy_writer_see_whole_transactions_only() {
    readers_beside_a_busy_writer(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_beside_a_busy_writer_and_merges_see_whole_transactions_only() {
    readers_beside_a_busy_writer(1 << 20).await;
}

/// Every transaction puts one record into each partition, so all ends must always be equal.
async fn readers_beside_a_busy_writer(merge_batch_bytes: usize) {
    const TRANSACTIONS: i64 = 900;
    let mut log = InDirectory::new(small);
    log.options.retention.bytes = Some(40_000);
    log.options.merge_batch_bytes = merge_batch_bytes;
    let (mut writer, reader) = log.open();
    let ids = writer.create_topic("t", 3, Codec::Lz4).unwrap();
    writer.flush().await.unwrap();
    let follow = |partition: PartitionId| {
        let (reader, ids) = (reader.clone(), ids.clone());
        async move {
            let (mut next, mut watch) = (Offset(0), reader.watch());
            while next.0 < TRANSACTIONS {
                let snapshot = watch.borrow_and_update().clone();
                let ends: Vec<_> = ids.iter().map(|id| snapshot.range(*id).unwrap().end).collect();
                assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
                match reader.fetch(&snapshot, partition, next, 3_000).await {
                    Ok(fetched) if fetched.is_empty() => watch.changed().await.unwrap(),
                    Ok(fetched) => {
                        for batch in &fetched.batches {
                            let header = BatchHeader::check(batch).unwrap();
                            assert!(header.end_offset() <= ends[0], "a batch goes beyond the snapshot");
                            let mut records = header.records(batch, 1 << 20).unwrap();
                            while let Some(record) = records.next_record().unwrap() {
                                let value: i64 =
                                    std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
                                assert_eq!(value, record.offset.0);
                            }
                            next = header.end_offset();
                        }
                    }
                    // Retention was faster than this reader.
                    Err(LogError::OutOfRange { start, .. }) if start > next => next = start,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let readers: Vec<_> = ids.iter().map(|partition| tokio::spawn(follow(*partition))).collect();
    for n in 0..TRANSACTIONS {
        ids.iter().for_each(|id| put(&mut writer, *id, n, n.to_string().as_bytes()));
        writer.boundary();
        if n % 3 == 0 || n == TRANSACTIONS - 1 {
            writer.commit(position(n as u64 + 1)).await.unwrap();
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
}
