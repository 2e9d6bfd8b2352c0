//! What the log's thread shares with the writer and the readers.
//!
//! The thread alone changes it, but for the retention. The snapshot is changed last, after the views have what it makes
//! visible.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Semaphore, watch};

use super::files::Files;
use super::index::IndexCache;
use super::tail::TailCache;
use super::thread::Message;
use super::views::Views;
use crate::log::record_batch::Codec;
use crate::log::topics::TopicList;
use crate::log::{Retention, Snapshot, SourcePosition};

/// Buffers kept for builders, and the largest that is kept.
const POOLED: usize = 16;
const MAX_POOLED_LEN: usize = 1 << 20;

#[derive(Debug)]
pub struct Shared {
    pub name: String,
    pub files: Arc<dyn Files>,
    pub leader_epoch: i32,
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    pub views: RwLock<Views>,
    pub tail: Mutex<TailCache>,
    pub indexes: Mutex<IndexCache>,
    /// How often everything since the last commit has been lost.
    pub failures: AtomicU64,
    /// Whether the writer has been stopped for good.
    pub poisoned: AtomicBool,
    /// Segments up to this number have been removed.
    pub removed: AtomicU64,
    /// How the batches of each partition are compressed, as far as the writer has been told.
    pub codecs: Mutex<Vec<Codec>>,
    /// Sealed segments that may still be merged.
    pub unmerged: AtomicUsize,
    pub position: Mutex<Option<SourcePosition>>,
    /// What is kept.
    pub retention: Mutex<Retention>,
    /// Bytes in all segments.
    pub size: AtomicU64,
    /// Where readers ask the thread for something, one at a time. `None` once the writer is gone.
    pub requests: Mutex<Option<SyncSender<Message>>>,
    pub one_request: Arc<Semaphore>,
    /// Those that are durable; their partitions are in the snapshot.
    pub topics: watch::Sender<TopicList>,
    /// Buffers to be used again for builders.
    pub buffers: Mutex<Vec<Vec<u8>>>,
}

impl Shared {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    pub fn is_removed(&self, sequence: u64) -> bool {
        sequence <= self.removed.load(Ordering::Acquire)
    }

    pub fn take_buffer(&self) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub fn give_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < POOLED && buffer.capacity() <= MAX_POOLED_LEN {
            buffers.push(buffer);
        }
    }
}
