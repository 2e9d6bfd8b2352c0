//! `millrace bench fetch`: how fast a stored backlog is served, and what tailing consumers cost.
//!
//! Two backlogs of the same records: `loaded`, as `millrace up` wrote it while it drained the source, and `single`, as one
//! transaction after the other would have written it, a commit for each record, and merged since. Each is read by a
//! librdkafka and by a Java consumer (a) from a bare server, which has the very same batches in memory and does nothing but
//! send them, and (b) from `millrace up`; in turn. The ratio of a round is rate (b) ÷ rate (a).
//!
//! - **The clock** runs from the first record in the consumer's hands to the last.
//! - **CPU time** is that of the server while a consumer reads. A GB is 10^9 bytes of batches as they are stored and sent.
//! - `single` is written through the log's own writer, with an fsync that does nothing: a commit for each of so many records
//!   would else take longer than anybody waits. Its segments are small, so that nearly all of it is sealed and merged.
//!
//! `--kafka-libs` compares with Apache Kafka's broker instead ([`beside_kafka`]).
//!
//! `--tailing` measures the broker's CPU time while rows are committed one by one at a steady rate and ten consumers, or a
//! hundred, have each of them at once.

mod backlog;
pub(super) mod bare_server;
mod beside_kafka;
pub(super) mod client;
mod report;
mod tailing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::ArgPredicate::IsPresent;

use self::backlog::Backlog;
use self::client::Client;
use self::client::until_listening;
use self::report::{Fetched, Measured, Report};
use super::postgres_server::free_port;
use super::process::Process;
use super::side::{Side, Way};
use super::site::{Site, SiteArguments};
use super::workload::Workload;
use super::{BenchError, print};

/// Of the rows, so many are in the backlog of single transactions.
const SINGLES: u64 = 4;
/// A backlog that takes longer has stalled.
const WITHIN: Duration = Duration::from_secs(600);

/// `millrace bench fetch`
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// How many rows are in the backlog that was written under load; a quarter of them in the other
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(4..=100_000_000))]
    rows: u64,
    /// How many times each is read, or how many times each number of consumers tails; 7 beside Apache Kafka
    #[arg(long, default_value_t = 5, default_value_if("kafka_libs", IsPresent, "7"), value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The folder with the Java consumer, which `make java` builds; without it librdkafka reads alone
    #[arg(long, value_name = "DIR", default_value = "tests/clients/java/target")]
    java: PathBuf,
    /// Compare with Apache Kafka's broker instead: the directory of its jars, which `make apache-kafka` fetches
    #[arg(long, value_name = "DIR")]
    kafka_libs: Option<PathBuf>,
    /// Measure tailing consumers instead
    #[arg(long, conflicts_with = "kafka_libs")]
    tailing: bool,
    /// Tailing: transactions a second, of one row each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Tailing: how long each round lasts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    #[command(flatten)]
    site: SiteArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Fetch {
    /// Measures and prints.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        if self.tailing {
            let measure =
                async |site: &Site| tailing::measure(site, self.rounds, self.rate, self.seconds).await;
            let report = self.site.measure(Workload::Orders, measure).await?;
            print(self.json, report.json(), &report);
        } else if let Some(libraries) = &self.kafka_libs {
            let client = Client::librdkafka()?;
            let measure = async |site: &Site| {
                let backlog = self.write_backlog(site).await?;
                let report = beside_kafka::measure(site, libraries, &client, backlog, self.rounds).await;
                site.drop_slot(Way::Millrace.slot()).await?;
                report
            };
            let report = self.site.measure(Workload::Orders, measure).await?;
            print(self.json, report.json(), &report);
        } else {
            let clients = Client::all(&self.java)?;
            let measure = async |site: &Site| self.measure(site, &clients).await;
            let report = self.site.measure(Workload::Orders, measure).await?;
            print(self.json, report.json(), &report);
        }
        Ok(())
    }

    /// The backlog that `millrace up` writes while it drains the source.
    async fn write_backlog(&self, site: &Site) -> Result<Backlog, BenchError> {
        eprintln!("writing {} rows, and draining them", self.rows);
        let inside_last = Workload::Orders.write(site.control(), self.rows).await?;
        let slot = Way::Millrace.slot();
        site.copy_backlog(slot).await?;
        let mut side = Side::start(Way::Millrace, site, self.rows, &[])?;
        side.all_rows(WITHIN).await?;
        side.alive(site.until_confirmed(slot, inside_last)).await?;
        drop(side);
        Backlog::of("loaded", site.data(), self.rows).await
    }

    async fn measure(&self, site: &Site, clients: &[Client]) -> Result<Report, BenchError> {
        let loaded = self.write_backlog(site).await?;
        let single = site.directory().join("single");
        eprintln!("writing {} of them again, one by one", self.rows / SINGLES);
        let backlogs =
            [loaded, Backlog::write_singly("single", &site.data(), single, self.rows / SINGLES).await?];
        let mut report = Report::new(&backlogs, clients, self.rounds);
        for round in 1..=self.rounds {
            for (nth, backlog) in backlogs.iter().enumerate() {
                // Each goes first as often as the other, so that a drift of the machine favours none.
                let (bare, ours) = if round % 2 == 1 {
                    let bare = self.serve(site, Way::Bare, backlog, clients).await?;
                    (bare, self.serve(site, Way::Millrace, backlog, clients).await?)
                } else {
                    let ours = self.serve(site, Way::Millrace, backlog, clients).await?;
                    (self.serve(site, Way::Bare, backlog, clients).await?, ours)
                };
                for (client, (bare, ours)) in bare.into_iter().zip(ours).enumerate() {
                    let (name, kind) = (&backlog.name, clients[client].name());
                    let ratio = bare.seconds / ours.seconds;
                    eprintln!("round {round}, {name}, {kind}: ratio {ratio:.3}");
                    report.add(nth, client, Measured { bare, ours });
                }
            }
        }
        site.drop_slot(Way::Millrace.slot()).await?;
        Ok(report)
    }

    /// Starts a server for a backlog, and lets each client read it.
    async fn serve(
        &self,
        site: &Site,
        way: Way,
        backlog: &Backlog,
        clients: &[Client],
    ) -> Result<Vec<Fetched>, BenchError> {
        let port = free_port()?;
        let (name, command) = match way {
            Way::Bare => ("the bare server", site.bare_server(port, &log_of(&backlog.data))?),
            Way::Millrace => ("millrace up", site.up(port, &backlog.data)?),
        };
        let log = site.directory().join("server.log");
        let mut server = Process::start(name, command, log, libc::SIGTERM)?;
        let mut all = Vec::new();
        for client in clients {
            all.push(read(&mut server, port, client, backlog.records).await?);
        }
        Ok(all)
    }
}

/// Lets a client read a backlog from a server that starts, or has started.
async fn read(server: &mut Process, port: u16, client: &Client, records: u64) -> Result<Fetched, BenchError> {
    let reading = async {
        until_listening(port).await?;
        let before = server.usage()?.cpu;
        let read = client.read(port, records).await?;
        let cpu = server.usage()?.cpu.saturating_sub(before);
        Ok(Fetched { seconds: read.seconds, bytes: read.bytes, cpu })
    };
    match tokio::time::timeout(WITHIN, reading).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(server.why(error).await),
        Err(_) => Err(BenchError::Stalled { what: server.name(), after: WITHIN, log: server.log_end() }),
    }
}

/// Where the task's log is in a data directory.
fn log_of(data: &Path) -> PathBuf {
    data.join("tasks").join(super::site::TASK).join("log")
}
