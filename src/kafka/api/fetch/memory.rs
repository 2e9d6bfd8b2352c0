//! The memory that a broker has for record bytes on their way to all of its clients.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory for record bytes on their way to clients, in KiB.
const ANSWERS_KIB: usize = 256 * 1024;

/// The memory that a broker has for record bytes on their way to all of its clients.
#[derive(Debug, Clone)]
pub struct FetchMemory(Arc<Semaphore>);

impl Default for FetchMemory {
    fn default() -> Self {
        FetchMemory(Arc::new(Semaphore::new(ANSWERS_KIB)))
    }
}

impl FetchMemory {
    /// Takes memory for an answer; `None` when it is spent. Waiting for it would let clients that do not read stop
    /// others.
    pub(super) fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        self.0.clone().try_acquire_many_owned(kib).ok()
    }

    /// Waits for memory, or for all of it where that is less.
    pub(super) async fn wait_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = bytes.div_ceil(1024).min(ANSWERS_KIB) as u32;
        self.0.clone().acquire_many_owned(kib).await.ok()
    }
}
