//! The backlogs that are read: a data directory each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::log_of;
use crate::bench::BenchError;
use crate::bench::site::TASK;
use crate::log::local::files::{File, Open};
use crate::log::local::{BATCH_LIMIT, Files, LocalLog, LocalReader, LocalWriter, Options, RealFiles};
use crate::log::record_batch::{BatchHeader, Codec};
use crate::log::{Header, LogReader, LogWriter, Offset, PartitionId, Record};

/// The task has one topic of one partition.
const PARTITION: PartitionId = PartitionId(0);
/// How much is read at once.
const READ: usize = 4 << 20;
/// Segments of the backlog that is merged.
const SEGMENT: u64 = 8 << 20;

/// A backlog.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) name: &'static str,
    /// The data directory.
    pub(super) data: PathBuf,
    pub(super) records: u64,
    /// Bytes and number of its batches.
    pub(super) bytes: u64,
    pub(super) batches: u64,
}

impl Backlog {
    /// What `data` holds, which must be so many records.
    pub(super) async fn of(name: &'static str, data: PathBuf, records: u64) -> Result<Self, BenchError> {
        let batches = batches(&log_of(&data)).await?;
        let count = |batch: &Bytes| BatchHeader::parse(batch).map_or(0, |header| header.records as u64);
        let found: u64 = batches.iter().map(count).sum();
        if found != records {
            return Err(BenchError::WrongCount { name: "the log", expected: records, found });
        }
        let bytes = batches.iter().map(|batch| batch.len() as u64).sum();
        Ok(Backlog { name, data, records, bytes, batches: batches.len() as u64 })
    }

    /// Makes a copy of the data directory `from` in which the first `records` records were committed one by one, and
    /// have been merged.
    pub(super) async fn write_singly(
        name: &'static str,
        from: &Path,
        data: PathBuf,
        records: u64,
    ) -> Result<Self, BenchError> {
        let copied = copy_without_log(from, &data);
        copied.map_err(BenchError::io(format!("copy {} to {}", from.display(), data.display())))?;
        let (source, reader) = open(Options::new(log_of(from), TASK)).await?;
        let position = source.resume().ok_or(BenchError::WrongCount { name, expected: records, found: 0 })?;
        let options = Options {
            segment_bytes: SEGMENT,
            files: Arc::new(Unsynced),
            ..Options::new(log_of(&data), TASK)
        };
        let (mut writer, _) = open(options).await?;
        let partition = writer.create_topic(TASK, 1, Codec::default())?.first().copied().unwrap_or(PARTITION);
        let (mut next, mut left) = (Offset(0), records);
        let snapshot = reader.snapshot();
        while left > 0 {
            let fetched = reader.fetch(&snapshot, PARTITION, next, READ).await?;
            if fetched.is_empty() {
                return Err(BenchError::WrongCount { name, expected: records, found: records - left });
            }
            for batch in &fetched.batches {
                left = copy_records(batch, &mut writer, partition, position, left).await?;
                next = BatchHeader::parse(batch).map_or(next, |header| header.end_offset());
            }
        }
        while writer.unmerged() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        writer.close().await;
        source.close().await;
        Backlog::of(name, data, records).await
    }
}

/// Commits the records of a batch one by one, `left` of them at most. Gives how many are left then.
async fn copy_records(
    batch: &Bytes,
    writer: &mut LocalWriter,
    partition: PartitionId,
    position: crate::log::SourcePosition,
    mut left: u64,
) -> Result<u64, BenchError> {
    let unreadable = |error: crate::log::record_batch::BatchError| BenchError::Unreadable {
        name: "log",
        said: error.to_string(),
    };
    let header = BatchHeader::parse(batch).map_err(unreadable)?;
    let mut records = header.records(batch, BATCH_LIMIT).map_err(unreadable)?;
    while left > 0
        && let Some(record) = records.next_record().map_err(unreadable)?
    {
        let headers: Vec<_> = record.headers().collect::<Result<_, _>>().map_err(unreadable)?;
        let headers: Vec<_> = headers.iter().map(|(name, value)| Header { name, value: *value }).collect();
        let copy =
            Record { timestamp: record.timestamp, key: record.key, value: record.value, headers: &headers };
        writer.append(partition, &copy)?;
        writer.boundary();
        writer.commit(position).await?;
        left -= 1;
    }
    Ok(left)
}

/// All batches of a log's one partition.
pub(super) async fn batches(log: &Path) -> Result<Vec<Bytes>, BenchError> {
    let (writer, reader) = open(Options { merge_batch_bytes: 0, ..Options::new(log, TASK) }).await?;
    let snapshot = reader.snapshot();
    let end = snapshot.range(PARTITION).unwrap_or_default().end;
    let (mut all, mut next) = (Vec::new(), Offset(0));
    while next < end {
        let fetched = reader.fetch(&snapshot, PARTITION, next, READ).await?;
        next = fetched
            .batches
            .last()
            .and_then(|batch| BatchHeader::parse(batch).ok())
            .map_or(end, |last| last.end_offset());
        all.extend(fetched.batches);
    }
    writer.close().await;
    Ok(all)
}

async fn open(options: Options) -> Result<(LocalWriter, Arc<LocalReader>), BenchError> {
    let opened = tokio::task::spawn_blocking(move || LocalLog::open(options)).await;
    let (writer, reader, _) = opened.map_err(|_| BenchError::Interrupted)??;
    Ok((writer, reader))
}

fn copy_without_log(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if !entry.file_type()?.is_dir() {
            std::fs::copy(&from, &to)?;
        } else if entry.file_name() != "log" {
            copy_without_log(&from, &to)?;
        }
    }
    Ok(())
}

/// The operating system's files, but nothing is waited for until it is on the disk.
#[derive(Debug)]
struct Unsynced;

impl Files for Unsynced {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealFiles.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFiles.list(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(UnsyncedFile(RealFiles.open(path, how)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFiles.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealFiles.unlink(path)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct UnsyncedFile(Arc<dyn File>);

impl File for UnsyncedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_exact_at(&self, into: &mut [u8], position: u64) -> io::Result<()> {
        self.0.read_exact_at(into, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
