//! `millrace bench`: what this machine can do, measured side by side with the least that could do the same work.
//!
//! A figure alone says more about the machine than about Millrace, so every measurement runs both ways in turn, on the
//! same data and through the same transport, and its result is a ratio. Everything that is measured is a process of its
//! own ([`process`]), started from this binary, so that CPU time and memory are exactly its own.

mod apache_kafka;
mod bare_copy;
mod bare_reader;
mod connection;
mod consumer;
mod fetch;
mod groups;
mod ingest;
mod latency;
mod postgres_server;
mod process;
mod report;
mod side;
mod site;
mod snapshot;
mod work_dir;
mod workload;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

pub use self::fetch::client::{Read, consume};
use crate::log::LogError;
use crate::postgres::connect::ConnectError;
use crate::postgres::publication::PublicationError;
use crate::postgres::replication::ReplicationError;
use crate::postgres::source::SourceError;
use crate::postgres::sql::SqlError;

/// `millrace bench`
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Drain a backlog from PostgreSQL into the log and on to a consumer, against a reader that keeps nothing
    Ingest(ingest::Ingest),
    /// From a commit at the source until a consumer has the record, against a reader that keeps nothing
    Latency(latency::Latency),
    /// Read a stored backlog, against a server that has the same batches in memory or against Apache Kafka; or what
    /// tailing consumers cost
    Fetch(fetch::Fetch),
    /// What connections and consumer groups cost, and how soon they are answered
    Groups(groups::Groups),
    /// Read the rows of a table into the log, against COPY that keeps nothing
    Snapshot(snapshot::Snapshot),
    /// The COPY that `snapshot` compares with
    #[command(hide = true)]
    BareCopy(bare_copy::BareCopy),
    /// The server that `fetch` compares with
    #[command(hide = true)]
    BareServer(fetch::bare_server::BareServer),
    /// The reader that the others compare with
    #[command(hide = true)]
    BareReader(bare_reader::BareReader),
}

impl Bench {
    /// Measures, and prints what it found.
    ///
    /// # Errors
    /// Whatever kept it from measuring; nothing that it started is left behind.
    pub async fn run(self) -> Result<(), BenchError> {
        match self.measurement {
            Measurement::Ingest(ingest) => ingest.run().await,
            Measurement::Latency(latency) => latency.run().await,
            Measurement::Fetch(fetch) => fetch.run().await,
            Measurement::Groups(groups) => groups.run().await,
            Measurement::Snapshot(snapshot) => snapshot.run().await,
            Measurement::BareCopy(copy) => copy.run().await,
            Measurement::BareServer(server) => server.run().await,
            Measurement::BareReader(reader) => reader.run().await,
        }
    }
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A file, directory or process.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no PostgreSQL server to start.
    #[error(
        "no PostgreSQL server is installed where it was looked for ({looked}); install one (apt-get install postgresql), name its directory with --postgres-bin, or give --source"
    )]
    NoPostgres {
        /// The places.
        looked: String,
    },
    /// PostgreSQL refuses to run as root.
    #[error(
        "PostgreSQL does not run as root, and there is no user 'postgres' to run it as; make one, run as another user, or give --source"
    )]
    NoPostgresUser,
    /// There is no Apache Kafka to start.
    #[error("Apache Kafka's jars are not in {}; `make apache-kafka` fetches them", .looked.display())]
    NoKafka {
        /// The directory that was named.
        looked: PathBuf,
    },
    /// The librdkafka consumer has not been built.
    #[error(
        "there is no librdkafka consumer beside this binary, {}; `cargo build --release --features bench` builds both", .looked.display()
    )]
    NoConsumer {
        /// Where it should be.
        looked: PathBuf,
    },
    /// Apache Kafka has rewritten what it was given.
    #[error(
        "Apache Kafka stored {found} bytes of batches that have {expected}, so that they are not the same"
    )]
    Unlike {
        /// What was sent.
        expected: u64,
        /// What it stored.
        found: u64,
    },
    /// The source is not a connection string.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The replication connection failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The source refused a statement.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The publications could not be made.
    #[error(transparent)]
    Publication(#[from] PublicationError),
    /// The source holds something already.
    #[error("the database has {found} already; give --source a database that was made for this and is empty")]
    NotEmpty {
        /// What was found.
        found: String,
    },
    /// A process of ours ended by itself.
    #[error("{name} ended: {status}\n{log}")]
    Ended {
        /// Which.
        name: &'static str,
        /// How.
        status: String,
        /// The end of what it said.
        log: String,
    },
    /// Something did not come in time.
    #[error("{what} took longer than {} s\n{log}", .after.as_secs())]
    Stalled {
        /// What.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// The end of what the process in question said.
        log: String,
    },
    /// The source saw another connection than the one whose work is counted.
    #[error("{name} reconnected while it was measured; see {}", .log.display())]
    Reconnected {
        /// Which process.
        name: &'static str,
        /// Its output.
        log: PathBuf,
    },
    /// Rows were lost or repeated.
    #[error("{name} delivered {found} rows of {expected}")]
    WrongCount {
        /// Which process.
        name: &'static str,
        /// What should have come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A process said something that cannot be read.
    #[error("the {name} said '{said}'")]
    Unreadable {
        /// Which process.
        name: &'static str,
        /// What it said.
        said: String,
    },
    /// A log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The Kafka consumer failed.
    #[error("the consumer failed: {0}")]
    Consumer(#[from] rdkafka::error::KafkaError),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        let what = what.into();
        move |source| BenchError::Io { what, source }
    }

    fn sql(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> BenchError {
        move |source| SqlError::new(doing, source).into()
    }
}

/// Prints a report, as one JSON object where that is asked for.
fn print(as_json: bool, json: String, report: &impl std::fmt::Display) {
    if as_json { println!("{json}") } else { println!("{report}") }
}
