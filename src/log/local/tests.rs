//! The local log under the conformance suite, and what is its own: corruption, retention, errors of the disk.

use std::path::Path;
use std::sync::Arc;

use super::{LocalLog, LocalReader, LocalWriter, Options};
use crate::log::conformance::{self, Log};

/// Options that make every mechanism work hard: tiny segments, tiny batches.
fn small(directory: &Path) -> Options {
    Options {
        segment_bytes: 4096,
        max_batch_bytes: 600,
        tail_cache_bytes: 4096,
        ..Options::new(directory, "test")
    }
}

struct InDirectory {
    _directory: tempfile::TempDir,
    options: Options,
}

impl InDirectory {
    fn new(options: impl Fn(&Path) -> Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        InDirectory { options: options(&directory.path().join("log")), _directory: directory }
    }
}

impl Log for InDirectory {
    type Writer = LocalWriter;
    type Reader = LocalReader;

    fn open(&self) -> (LocalWriter, Arc<LocalReader>) {
        let (writer, reader, _) = LocalLog::open(self.options.clone()).unwrap();
        (writer, reader)
    }
}

#[tokio::test]
async fn the_contract_holds_on_real_files() {
    conformance::check(|| InDirectory::new(|directory| Options::new(directory, "test"))).await;
}

#[tokio::test]
async fn the_contract_holds_with_tiny_segments_and_no_cache() {
    conformance::check(|| InDirectory::new(|directory| Options { tail_cache_bytes: 0, ..small(directory) }))
        .await;
}
