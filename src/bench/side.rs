//! The two sides of the comparison: each a process that reads a slot, with something that says when all rows have
//! arrived where that side takes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::task::JoinHandle;

use super::BenchError;
use super::bare_reader::BareRead;
use super::consumer::{Consumer, count};
use super::postgres_server::free_port;
use super::process::Process;
use super::site::{Site, TASK};

/// Who drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A reader that keeps nothing.
    Bare,
    /// Millrace, with a consumer attached.
    Millrace,
}

impl Way {
    /// The slot that it reads.
    pub(super) fn slot(self) -> &'static str {
        match self {
            Way::Bare => "millrace_bench_bare",
            Way::Millrace => "millrace_bench",
        }
    }
}

/// A running side. Dropping it ends its process.
#[derive(Debug)]
pub(super) struct Side {
    arrival: Arrival,
    process: Process,
    /// Where it writes.
    directory: PathBuf,
}

#[derive(Debug)]
enum Arrival {
    /// The reader says on its standard output what it has read.
    Told(Lines<BufReader<ChildStdout>>),
    /// The consumer has counted.
    Consumed(Consumer<u64>),
}

/// All rows have arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    /// How many there are.
    pub(super) rows: u64,
    /// What the bare reader has counted besides.
    pub(super) read: Option<BareRead>,
}

impl Side {
    /// Starts a process that reads the slot of `way`, and expects `rows` from it. Millrace gets more `flags`.
    pub(super) fn start(way: Way, site: &Site, rows: u64, flags: &[String]) -> Result<Self, BenchError> {
        let directory = site.data();
        match way {
            Way::Bare => {
                let command = site.bare_reader(way.slot(), rows)?;
                let log = site.directory().join("bare-reader.log");
                let (process, stdout) = Process::start_piped("the bare reader", command, log, libc::SIGTERM)?;
                let arrival = Arrival::Told(BufReader::new(stdout).lines());
                Ok(Side { arrival, process, directory })
            }
            Way::Millrace => {
                let port = free_port()?;
                let mut command = site.up(port, &directory)?;
                command.args(flags);
                let log = site.directory().join("millrace.log");
                let process = Process::start("millrace up", command, log, libc::SIGTERM)?;
                let arrival = Arrival::Consumed(Consumer::attach(port, 1, count(rows))?);
                Ok(Side { arrival, process, directory })
            }
        }
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// Runs `work`, unless the process ends meanwhile.
    pub(super) async fn alive<T>(
        &mut self,
        work: impl Future<Output = Result<T, BenchError>>,
    ) -> Result<T, BenchError> {
        tokio::select! {
            done = work => done,
            error = self.process.ended() => Err(error),
        }
    }

    /// Returns when all rows have arrived.
    pub(super) async fn all_rows(&mut self, within: Duration) -> Result<Arrived, BenchError> {
        let arrival = async {
            match &mut self.arrival {
                Arrival::Told(lines) => {
                    let read = told(lines).await?;
                    Ok(Arrived { rows: read.rows, read: Some(read) })
                }
                Arrival::Consumed(consumer) => Ok(Arrived { rows: consumer.done().await?, read: None }),
            }
        };
        tokio::select! {
            arrived = tokio::time::timeout(within, arrival) => match arrived {
                Ok(Err(BenchError::Unreadable { said, .. })) if said.is_empty() => Err(self.process.ended().await),
                Ok(arrived) => arrived,
                Err(_) => {
                    let log = self.process.log_end();
                    Err(BenchError::Stalled { what: self.process.name(), after: within, log })
                }
            },
            error = self.process.ended() => Err(error),
        }
    }

    /// Watches for the first bytes that it writes from now on.
    pub(super) fn watch_disk(&self) -> DiskWatch {
        DiskWatch::start(self.directory.join("tasks").join(TASK))
    }
}

/// What a bare reader says at the end.
pub(super) async fn told(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<BareRead, BenchError> {
    let line = lines.next_line().await.map_err(BenchError::io("hear from the bare reader"))?;
    let said = line.unwrap_or_default();
    serde_json::from_str(&said).map_err(|_| BenchError::Unreadable { name: "bare reader", said })
}

/// More than the log writes while nothing happens.
const FIRST_BYTES: u64 = 4096;

/// Notes when a directory begins to grow. Dropping it ends the watch.
#[derive(Debug)]
pub(super) struct DiskWatch {
    stop: Arc<AtomicBool>,
    watching: JoinHandle<Option<Instant>>,
}

impl DiskWatch {
    fn start(directory: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let before = size(&directory);
        let watching = tokio::task::spawn_blocking(move || {
            while !stopped.load(Ordering::Relaxed) {
                if size(&directory) >= before + FIRST_BYTES {
                    return Some(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            None
        });
        DiskWatch { stop, watching }
    }

    /// When it began to grow, if it did.
    pub(super) async fn grown_at(mut self) -> Option<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.watching).await.ok().flatten()
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Bytes of all files below `directory`; what vanishes meanwhile does not count.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_begins_to_grow_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("spool");
        std::fs::create_dir(&below).unwrap();
        let watch = DiskWatch::start(directory.path().to_owned());
        std::fs::write(below.join("a"), [0; FIRST_BYTES as usize]).unwrap();
        while !watch.watching.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(watch.grown_at().await.is_some());
    }
}
