//! The consumers that read a backlog, each a process that prints what it has read.
//!
//! librdkafka allocates on the thread that receives what the application's thread frees. With glibc's allocator the two then
//! wait for each other at its lock, the more the sooner the server answers, so that the figure would tell of that lock.
//! `millrace-bench-consumer` therefore has an allocator made for memory that another thread frees, and is a binary of its
//! own because the servers that are measured keep the one that is shipped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::bench::BenchError;
use crate::bench::consumer::Incoming;
use crate::bench::site::TASK;

/// The librdkafka consumer's binary.
const LIBRDKAFKA: &str = "millrace-bench-consumer";
/// How long a server may take until it listens.
const LISTEN_WITHIN: Duration = Duration::from_secs(120);

/// A kind of consumer.
#[derive(Debug)]
pub(super) enum Client {
    /// librdkafka: its binary.
    Librdkafka(PathBuf),
    /// The Java client: the folder with its classes.
    Java(PathBuf),
}

/// A backlog that was read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Read {
    /// Of keys and values.
    pub(super) bytes: u64,
    /// From the first record to the last.
    pub(super) seconds: f64,
}

impl Client {
    /// Those that are there.
    pub(super) fn all(java: &Path) -> Result<Vec<Client>, BenchError> {
        let mut all = vec![Client::librdkafka()?];
        if java.join("classes/FetchBench.class").is_file() {
            all.push(Client::Java(java.to_owned()));
        } else {
            eprintln!("there is no Java consumer in {}; `make java` builds it", java.display());
        }
        Ok(all)
    }

    /// librdkafka, whose binary lies beside this one.
    pub(super) fn librdkafka() -> Result<Client, BenchError> {
        let this = std::env::current_exe().map_err(BenchError::io("find this binary"))?;
        let consumer = this.with_file_name(LIBRDKAFKA);
        if !consumer.is_file() {
            return Err(BenchError::NoConsumer { looked: consumer });
        }
        Ok(Client::Librdkafka(consumer))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Client::Librdkafka(_) => "librdkafka",
            Client::Java(_) => "java",
        }
    }

    /// Reads so many records from the topic's start.
    pub(super) async fn read(&self, port: u16, records: u64) -> Result<Read, BenchError> {
        let (name, mut command) = match self {
            Client::Librdkafka(consumer) => {
                let mut command = Command::new(consumer);
                command.arg(port.to_string());
                ("the librdkafka consumer", command)
            }
            Client::Java(folder) => {
                let class_path = format!("{0}/classes:{0}/lib/*", folder.display());
                let mut command = Command::new("java");
                command.args(["-cp", &class_path, "FetchBench", &format!("127.0.0.1:{port}"), TASK]);
                ("the Java consumer", command)
            }
        };
        command.arg(records.to_string()).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(BenchError::io(format!("run {name}")))?;
        serde_json::from_slice(&output.stdout).map_err(|_| BenchError::Ended {
            name,
            status: output.status.to_string(),
            log: [output.stdout, output.stderr]
                .map(|said| String::from_utf8_lossy(&said).into_owned())
                .concat(),
        })
    }
}

/// What `millrace-bench-consumer` does: reads so many records of the measured topic with librdkafka, from its start.
///
/// # Errors
/// What librdkafka says when it cannot go on.
pub fn consume(port: u16, records: u64) -> Result<Read, BenchError> {
    let incoming = Incoming::open(port, 1)?;
    let (mut bytes, mut started) = (0, None);
    for _ in 0..records {
        let record = incoming.next()?.ok_or(BenchError::Interrupted)?;
        started.get_or_insert_with(Instant::now);
        bytes += (record.key_len() + record.payload_len()) as u64;
    }
    let seconds = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    Ok(Read { bytes, seconds })
}

/// Returns when the port is listened on.
pub(in crate::bench) async fn until_listening(port: u16) -> Result<(), BenchError> {
    let listening = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let what = "the server's start";
    let in_time = tokio::time::timeout(LISTEN_WITHIN, listening).await;
    in_time.map_err(|_| BenchError::Stalled { what, after: LISTEN_WITHIN, log: String::new() })
}
