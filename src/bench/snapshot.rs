//! `millrace bench snapshot`: how close reading existing rows comes to COPY alone.
//!
//! The same table is read (a) by one `COPY … TO STDOUT` into nothing, and (b) by `millrace up --start snapshot` into its
//! log, fsync on; in turn, through the same transport. The ratio of a round is rate (b) ÷ rate (a); the result is the
//! median over the rounds. Where Millrace has several connections, so many COPYs, each of a part of the table, are
//! measured too: what the machine gives at most. The table is read once before the first round, so that its pages are in
//! the source's cache and have their hint bits.
//!
//! **The clock starts** when the source runs the first COPY, so neither side's start counts. It **ends** when the bare
//! reader has the last row, or when the task's topic ends behind the last one: it is durable and consumers see it.

use std::time::{Duration, Instant};

use clap::Args;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::bare_copy::BareCopied;
use super::postgres_server::free_port;
use super::process::Process;
use super::report::{median, rounded};
use super::side::Way;
use super::site::{Site, SiteArguments, TASK};
use super::workload::Workload;
use super::{BenchError, print};

const TABLE: &str = "public.orders";
const POLL: Duration = Duration::from_millis(2);
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// A read that is slower than this has stalled, in rows a second, after the first two minutes.
const SLOWEST: u64 = 1_000;

/// `millrace bench snapshot`
#[derive(Debug, Args)]
pub(super) struct Snapshot {
    /// How many rows
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rows: u64,
    /// How many connections Millrace reads by
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// How many times each side reads
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    site: SiteArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: u64,
    mb: f64,
    connections: u32,
    server_version: u32,
    ratio: f64,
    ratios: Vec<f64>,
    ours_rows_per_s: f64,
    bare_rows_per_s: f64,
    /// The same against as many COPYs as Millrace has connections.
    parallel_ratio: f64,
    parallel_rows_per_s: f64,
    ours_cpu_s: f64,
    ours_peak_memory_mb: f64,
}

/// One read by Millrace.
struct Ours {
    seconds: f64,
    cpu: Duration,
    peak_memory: u64,
}

impl Snapshot {
    /// Measures and prints.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        let report =
            self.site.measure(Workload::Orders, async |site: &Site| self.measure(site).await).await?;
        let json = serde_json::to_string(&report).unwrap_or_default();
        print(self.json, json, &report);
        Ok(())
    }

    async fn measure(&self, site: &Site) -> Result<Report, BenchError> {
        eprintln!("writing {} rows", self.rows);
        Workload::Orders.write(site.control(), self.rows).await?;
        let settle = format!("VACUUM (FREEZE, ANALYZE) {TABLE}");
        site.control().batch_execute(&settle).await.map_err(BenchError::sql("settle the table"))?;
        let (_, copied) = self.bare(site, 1).await?;
        let mut rounds = Vec::new();
        for round in 1..=self.rounds {
            // Each side goes first as often as the other, so that a drift of the machine favours none.
            let (bare, parallel, ours) = match round % 2 {
                1 => {
                    let (bare, parallel) = self.bare_sides(site).await?;
                    (bare, parallel, self.ours(site).await?)
                }
                _ => {
                    let ours = self.ours(site).await?;
                    let (bare, parallel) = self.bare_sides(site).await?;
                    (bare, parallel, ours)
                }
            };
            let rate = |seconds: f64| self.rows as f64 / seconds;
            eprintln!(
                "round {round}: COPY {:.0} rows/s, parallel {:.0} rows/s, millrace {:.0} rows/s, ratio {:.3}",
                rate(bare),
                rate(parallel),
                rate(ours.seconds),
                bare / ours.seconds
            );
            rounds.push((bare, parallel, ours));
        }
        let rate = |seconds: Vec<f64>| (self.rows as f64 / median(seconds.into_iter())).round();
        let ratios: Vec<f64> = rounds.iter().map(|(bare, _, ours)| bare / ours.seconds).collect();
        Ok(Report {
            rows: self.rows,
            mb: rounded(copied.bytes as f64 / 1e6),
            connections: self.connections,
            server_version: site.control().server_version(),
            ratio: rounded(median(ratios.iter().copied())),
            ratios: ratios.into_iter().map(rounded).collect(),
            ours_rows_per_s: rate(rounds.iter().map(|(_, _, ours)| ours.seconds).collect()),
            bare_rows_per_s: rate(rounds.iter().map(|(bare, ..)| *bare).collect()),
            parallel_ratio: rounded(median(rounds.iter().map(|(_, parallel, ours)| parallel / ours.seconds))),
            parallel_rows_per_s: rate(rounds.iter().map(|(_, parallel, _)| *parallel).collect()),
            ours_cpu_s: rounded(median(rounds.iter().map(|(_, _, ours)| ours.cpu.as_secs_f64()))),
            ours_peak_memory_mb: rounds.iter().map(|(_, _, ours)| ours.peak_memory).max().unwrap_or(0) as f64
                / 1e6,
        })
    }

    /// How long one COPY takes, and as many as Millrace has connections, in seconds.
    async fn bare_sides(&self, site: &Site) -> Result<(f64, f64), BenchError> {
        let (one, _) = self.bare(site, 1).await?;
        let parallel = match self.connections {
            1 => one,
            connections => self.bare(site, connections).await?.0,
        };
        Ok((one, parallel))
    }

    /// How long COPY alone takes by so many connections, in seconds.
    async fn bare(&self, site: &Site, connections: u32) -> Result<(f64, BareCopied), BenchError> {
        let command = site.bare_copy(TABLE, connections)?;
        let log = site.directory().join("bare-copy.log");
        let (_process, stdout) = Process::start_piped("the bare COPY", command, log, libc::SIGTERM)?;
        let started = first_copy(site).await?;
        let mut lines = BufReader::new(stdout).lines();
        let line = lines.next_line().await.map_err(BenchError::io("hear from the bare COPY"))?;
        let seconds = started.elapsed().as_secs_f64();
        let said = line.unwrap_or_default();
        let copied: BareCopied = serde_json::from_str(&said)
            .map_err(|_| BenchError::Unreadable { name: "bare COPY", said: said.clone() })?;
        match copied.rows == self.rows {
            true => Ok((seconds, copied)),
            false => {
                let (expected, found) = (self.rows, copied.rows);
                Err(BenchError::WrongCount { name: "the bare COPY", expected, found })
            }
        }
    }

    async fn ours(&self, site: &Site) -> Result<Ours, BenchError> {
        let port = free_port()?;
        let command = site.up_with_rows(port, &site.data(), self.connections)?;
        let log = site.directory().join("millrace.log");
        let mut process = Process::start("millrace up", command, log, libc::SIGTERM)?;
        let read = async {
            let started = first_copy(site).await?;
            let found = self.until_durable(port).await?;
            Ok((started.elapsed().as_secs_f64(), found))
        };
        let (seconds, found) = tokio::select! {
            read = read => read,
            error = process.ended() => Err(error),
        }?;
        if found != self.rows {
            return Err(BenchError::WrongCount { name: "millrace up", expected: self.rows, found });
        }
        let usage = process.usage()?;
        drop(process);
        site.drop_slot(Way::Millrace.slot()).await?;
        site.remove_data().await?;
        Ok(Ours { seconds, cpu: usage.cpu, peak_memory: usage.peak_memory })
    }

    /// Returns when the topic has all rows, with how many it has.
    async fn until_durable(&self, port: u16) -> Result<u64, BenchError> {
        let (rows, within) = (self.rows, Duration::from_secs(120 + self.rows / SLOWEST));
        let look = move || -> Result<u64, BenchError> {
            let consumer: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", format!("127.0.0.1:{port}")).create()?;
            let deadline = Instant::now() + within;
            loop {
                let end = match consumer.fetch_watermarks(TASK, 0, ASK_WITHIN) {
                    Ok((first, next)) => u64::try_from(next - first).unwrap_or_default(),
                    Err(_) => 0,
                };
                if end >= rows {
                    return Ok(end);
                }
                if Instant::now() >= deadline {
                    let what = "the rows in the topic";
                    return Err(BenchError::Stalled { what, after: within, log: String::new() });
                }
                std::thread::sleep(POLL);
            }
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.map_err(|error| BenchError::io("look at the topic")(std::io::Error::other(error)))?
    }
}

/// Returns when the source runs the first COPY.
async fn first_copy(site: &Site) -> Result<Instant, BenchError> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%COPY %' AND pid <> pg_backend_pid()";
    let failed = || BenchError::sql("see whether the source copies");
    let statement = site.control().prepare(sql).await.map_err(failed())?;
    loop {
        let row = site.control().query_one(&statement, &[]).await.map_err(failed())?;
        if row.try_get::<_, i64>(0).map_err(failed())? > 0 {
            return Ok(Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} rows, {} MB as text, {} connections", self.rows, self.mb, self.connections)?;
        writeln!(f, "COPY alone  {:>9.0} rows/s", self.bare_rows_per_s)?;
        writeln!(
            f,
            "by as many  {:>9.0} rows/s  ratio to that {:.3}",
            self.parallel_rows_per_s, self.parallel_ratio
        )?;
        writeln!(
            f,
            "millrace    {:>9.0} rows/s  {:.2} CPU s, at most {:.0} MB of memory",
            self.ours_rows_per_s, self.ours_cpu_s, self.ours_peak_memory_mb
        )?;
        write!(f, "ratio       {:.3}  (rounds: {:?})", self.ratio, self.ratios)
    }
}
