//! The log in files of our own: one physical log, of which partitions are views.
//!
//! ```text
//!  LocalWriter ──(pieces: closed builders, boundaries, positions)──> log thread ──> segment files
//!   in capture          bounded channel, one ticket at a time          │ write, fsync, then
//!                                                                      ▼
//!                         views, tail cache  <── add what is committed, then swap the snapshot, then answer
//!                                │
//!                          LocalReader (any number of clones of the Arc)
//! ```
//!
//! The directory holds `checkpoint`, numbered `.segment` files, and an `.index` file for each sealed segment. A segment
//! that is not sealed is read whole at start; see `recovery.rs`. Which entries there are, and why old bytes cannot pass
//! for new ones, is told in `entry.rs`. Of a sealed segment with small batches a second thread makes a
//! `.merged.segment` with large ones, which takes its place; see `merge.rs` and `merging.rs`.
//!
//! One thread a log does everything else that touches files for writing: it compresses, writes, fsyncs, seals, raises the
//! starts of partitions for readers who delete records, and removes what retention no longer wants. After a failed write
//! or fsync it cuts the log to the last commit whose fsync returned, through a descriptor opened anew. Lack of space
//! passes; any other error stops the writer for good, while what is durable stays readable.

mod appender;
mod checkpoint;
mod entry;
pub mod files;
mod index;
mod merge;
mod merging;
mod reader;
mod recovery;
mod retention;
mod segment;
mod shared;
mod tail;
mod thread;
mod views;
mod wire;
mod writer;

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

pub use files::{Files, RealFiles};
pub use reader::LocalReader;
pub use writer::LocalWriter;

use super::topics::TopicList;
use super::{LogError, Retention};

/// A batch is never larger than this when decompressed. Kafka counts the bytes of a batch, and of an answer with a batch,
/// in 31 bits.
pub const BATCH_LIMIT: usize = 1792 << 20;

/// What a local log is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are; made if there is none. The caller keeps other processes out.
    pub directory: PathBuf,
    /// The log's name, also in metrics and messages: the task's.
    pub name: String,
    /// Segments are sealed beyond this size; at most 2 GiB.
    pub segment_bytes: u64,
    /// A batch is closed when its records, uncompressed, reach this size; at most 256 MiB.
    pub max_batch_bytes: usize,
    /// Larger records are refused; at most 1,535 MiB.
    pub max_record_bytes: usize,
    /// Small batches of sealed segments are merged up to this size, uncompressed; not at all if 0.
    /// Batches from a quarter of it on stay as they are, and segments whose mean batch has a sixteenth of it.
    pub merge_batch_bytes: usize,
    /// How much of the newest log is kept in memory.
    pub tail_cache_bytes: usize,
    /// What is kept, in whole sealed segments.
    pub retention: Retention,
    /// The file layer.
    pub files: Arc<dyn Files>,
}

impl Options {
    /// The defaults for a log in `directory`.
    pub fn new(directory: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Options {
            directory: directory.into(),
            name: name.into(),
            segment_bytes: 256 << 20,
            max_batch_bytes: 512 << 10,
            max_record_bytes: 32 << 20,
            merge_batch_bytes: 1 << 20,
            tail_cache_bytes: 16 << 20,
            retention: Retention::default(),
            files: Arc::new(RealFiles),
        }
    }
}

/// A log of files.
#[derive(Debug)]
pub struct LocalLog;

impl LocalLog {
    /// Opens the log in a directory, or makes one, and recovers it. Blocks: run it on the blocking pool.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] and [`LogError::Version`] for files that must not be touched; I/O errors.
    pub fn open(mut options: Options) -> Result<(LocalWriter, Arc<LocalReader>, TopicList), LogError> {
        options.segment_bytes = options.segment_bytes.clamp(4096, 2 << 30);
        options.max_batch_bytes = options.max_batch_bytes.min(256 << 20);
        // A batch takes records while it is smaller than the one, and then has one more at most.
        let largest = BATCH_LIMIT - options.max_batch_bytes - 4096;
        options.max_record_bytes = options.max_record_bytes.min(largest);

        let recovered = recovery::recover(&options)?;
        let partitions = recovered.checkpoint.partitions.len();
        // One ticket of the writer and one request of a reader are outstanding at most.
        let (messages, inbox) = mpsc::sync_channel(4);
        let thread = thread::LogThread::new(options.clone(), recovered, messages.clone());
        let shared = thread.shared();
        let handle = std::thread::Builder::new()
            .name(format!("log-{}", options.name))
            .spawn(move || thread.run(&inbox))
            .map_err(|error| files::failed("start a thread for", &options.directory, error))?;
        let writer = LocalWriter::new(&options, shared.clone(), partitions, messages, handle);
        let topics = shared.topics.borrow().clone();
        Ok((writer, Arc::new(LocalReader::new(shared)), topics))
    }
}
