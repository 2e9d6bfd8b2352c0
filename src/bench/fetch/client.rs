//! The consumers that read a backlog.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::bench::BenchError;
use crate::bench::consumer::{Consumer, Incoming};
use crate::bench::site::TASK;

/// How long a server may take until it listens.
const LISTEN_WITHIN: Duration = Duration::from_secs(120);

/// A kind of consumer.
#[derive(Debug)]
pub(super) enum Client {
    /// librdkafka, in this process.
    Librdkafka,
    /// The Java client: the folder with its classes.
    Java(PathBuf),
}

/// A backlog that was read.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Read {
    /// Of keys and values.
    pub(super) bytes: u64,
    /// From the first record to the last.
    pub(super) seconds: f64,
}

impl Client {
    /// Those that are there.
    pub(super) fn all(java: &Path) -> Vec<Client> {
        let mut all = vec![Client::Librdkafka];
        if java.join("classes/FetchBench.class").is_file() {
            all.push(Client::Java(java.to_owned()));
        } else {
            eprintln!("there is no Java consumer in {}; `make java` builds it", java.display());
        }
        all
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Client::Librdkafka => "librdkafka",
            Client::Java(_) => "java",
        }
    }

    /// Reads so many records from the topic's start.
    pub(super) async fn read(&self, port: u16, records: u64) -> Result<Read, BenchError> {
        match self {
            Client::Librdkafka => {
                let read = move |incoming: &Incoming| read_all(incoming, records);
                Consumer::attach(port, 1, read)?.done().await
            }
            Client::Java(folder) => {
                let class_path = format!("{0}/classes:{0}/lib/*", folder.display());
                let mut java = Command::new("java");
                java.args(["-cp", &class_path, "FetchBench", &format!("127.0.0.1:{port}"), TASK]);
                java.arg(records.to_string()).stdin(Stdio::null()).kill_on_drop(true);
                let output = java.output().await.map_err(BenchError::io("run java"))?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                serde_json::from_str(&said).map_err(|_| BenchError::Ended {
                    name: "the Java consumer",
                    status: output.status.to_string(),
                    log: format!("{said}{}", String::from_utf8_lossy(&output.stderr)),
                })
            }
        }
    }
}

fn read_all(incoming: &Incoming, records: u64) -> Result<Option<Read>, BenchError> {
    let (mut bytes, mut started) = (0, None);
    for _ in 0..records {
        let Some(record) = incoming.next()? else { return Ok(None) };
        started.get_or_insert_with(Instant::now);
        bytes += (record.key_len() + record.payload_len()) as u64;
    }
    Ok(started.map(|started: Instant| Read { bytes, seconds: started.elapsed().as_secs_f64() }))
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
