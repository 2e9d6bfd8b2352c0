//! `millrace bench ingest`: how close Millrace comes to the walsender's own speed.
//!
//! The same changes are read (a) by a bare reader that looks at the first byte of each message and acknowledges, and (b)
//! by `millrace up`, fsync on, with a librdkafka consumer attached; in turn, through the same transport, each time from
//! a fresh copy of the same slot and into a fresh data directory. The ratio of a round is rate (b) ÷ rate (a); the
//! result is the median over the rounds. One drain by the bare reader before the first round warms the source's caches
//! and is not counted.
//!
//! - **The clock starts** when the walsender begins to serve the slot (`pg_replication_slots.active_pid`), so neither
//!   side's start counts. It **ends** when the last row has arrived, with the bare reader or in the hands of the
//!   consumer, and the source's slot has been acknowledged beyond it, whichever is later.
//! - **Workload `big`** is one transaction that is written while it is read: the clock starts with its first statement,
//!   and the time to the first byte is from there until the task's directory (spool and log) has grown by 4 KiB; for the
//!   bare reader, until it has the first row: before that the server has sent nothing.
//! - **CPU time** is that of the walsender, of the process that reads it from its start on, and of the consumer (all of
//!   the measuring process). **Memory** is resident memory; the peak is the highest of all rounds, and the idle value is
//!   taken in a process that has a task and a consumer and nothing to do.
//! - A round counts only if the partition holds exactly the rows that were written.

use std::time::{Duration, Instant};

use clap::Args;

use super::process::Usage;
use super::report::{Drain, Report};
use super::side::{Side, Way};
use super::site::{Site, SiteArguments};
use super::workload::Workload;
use super::{BenchError, print};
use crate::change::{Lsn, Timestamp};

/// Between starting to read and the first statement, where the source is written to meanwhile.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an idle process is watched.
const IDLE: Duration = Duration::from_secs(5);
/// A drain that is slower than this has stalled, in rows a second, after the first two minutes.
const SLOWEST: u64 = 1_000;

/// `millrace bench ingest`
#[derive(Debug, Args)]
pub(super) struct Ingest {
    /// What is written at the source
    #[arg(long, value_enum, default_value = "orders")]
    workload: Workload,
    /// How many rows; 2,000,000, or 500,000 updates
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rows: Option<u64>,
    /// How many times each side drains
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Let Millrace read the backlog by SQL down to this many MiB of WAL (experimental); 0 for never
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    experimental_catch_up_mb: u64,
    #[command(flatten)]
    site: SiteArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Ingest {
    /// Measures and prints.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        let report = self.site.measure(self.workload, async |site: &Site| self.measure(site).await).await?;
        print(self.json, report.json(), &report);
        Ok(())
    }

    async fn measure(&self, site: &Site) -> Result<Report, BenchError> {
        let rows = self.rows();
        let mut backlog = None;
        if !self.workload.is_live() {
            let started = Instant::now();
            eprintln!("writing {rows} rows in {} transactions", self.workload.transactions(rows));
            let inside_last = self.workload.write(site.control(), rows).await?;
            checkpoint(site).await?;
            eprintln!(
                "written in {:.1} s; reading them once without counting",
                started.elapsed().as_secs_f64()
            );
            backlog = Some(inside_last);
            self.drain(site, Way::Bare, backlog).await?;
        }
        let mut report = Report {
            workload: self.workload,
            transport: site.transport(),
            server_version: site.control().server_version(),
            rows,
            transactions: self.workload.transactions(rows),
            rounds: Vec::new(),
            idle_memory: 0,
        };
        for round in 1..=self.rounds {
            // Each side goes first as often as the other, so that a drift of the machine favours none.
            let (bare, ours) = if round % 2 == 1 {
                let bare = self.drain(site, Way::Bare, backlog).await?;
                (bare, self.drain(site, Way::Millrace, backlog).await?)
            } else {
                let ours = self.drain(site, Way::Millrace, backlog).await?;
                (self.drain(site, Way::Bare, backlog).await?, ours)
            };
            eprintln!(
                "round {round}: bare {:.0} rows/s, millrace {:.0} rows/s, ratio {:.3}",
                bare.rows_per_s(rows),
                ours.rows_per_s(rows),
                bare.seconds / ours.seconds
            );
            report.rounds.push((bare, ours));
        }
        report.idle_memory = self.idle(site).await?;
        Ok(report)
    }

    /// One side drains the backlog, or what is written now when there is none.
    async fn drain(&self, site: &Site, way: Way, backlog: Option<Lsn>) -> Result<Drain, BenchError> {
        let (rows, slot) = (self.rows(), way.slot());
        match backlog {
            Some(_) => site.copy_backlog(slot).await?,
            None => {
                self.workload.clear(site.control()).await?;
                site.create_slot(slot).await?;
            }
        }
        let our_cpu = our_cpu()?;
        let mut side = Side::start(way, site, rows, &self.flags())?;
        let walsender = side.alive(site.until_read(slot)).await?;
        let (mut started, mut started_at) = (Instant::now(), Timestamp::now());
        let within = Duration::from_secs(120 + rows / SLOWEST);
        let (inside_last, arrived, grown_at) = match backlog {
            Some(inside_last) => (inside_last, side.all_rows(within).await?, None),
            None => {
                side.alive(pause(SETTLE)).await?;
                let watch = side.watch_disk();
                (started, started_at) = (Instant::now(), Timestamp::now());
                let written = self.workload.write(site.control(), rows);
                let (inside_last, arrived) = tokio::try_join!(written, side.all_rows(within))?;
                (inside_last, arrived, watch.grown_at().await)
            }
        };
        let walsender_at_end = side.alive(site.until_confirmed(slot, inside_last)).await?;
        let seconds = started.elapsed().as_secs_f64();
        if walsender_at_end != Some(walsender) {
            let process = side.process();
            return Err(BenchError::Reconnected { name: process.name(), log: process.log().to_owned() });
        }
        if arrived.rows != rows {
            return Err(BenchError::WrongCount {
                name: side.process().name(),
                expected: rows,
                found: arrived.rows,
            });
        }
        let usage = side.process().usage()?;
        let walsender = site.walsender_usage(walsender)?;
        let consumer_cpu = self::our_cpu()?.saturating_sub(our_cpu);
        drop(side);
        site.drop_slot(slot).await?;
        site.remove_data().await?;
        Ok(Drain {
            seconds,
            bytes: arrived.read.as_ref().map(|read| read.bytes),
            cpu: usage.cpu,
            walsender_cpu: walsender.map(|usage| usage.cpu),
            consumer_cpu: (way == Way::Millrace).then_some(consumer_cpu),
            peak_memory: usage.peak_memory,
            first_byte: match arrived.read {
                _ if backlog.is_some() => None,
                Some(read) => Some(micros_between(started_at, Timestamp(read.first_row_at))),
                None => grown_at.map(|at| at.saturating_duration_since(started)),
            },
        })
    }

    /// Resident memory of a process with a task and a consumer, and nothing to do.
    async fn idle(&self, site: &Site) -> Result<u64, BenchError> {
        let slot = Way::Millrace.slot();
        site.create_slot(slot).await?;
        let mut side = Side::start(Way::Millrace, site, u64::MAX, &[])?;
        side.alive(site.until_read(slot)).await?;
        side.alive(pause(IDLE)).await?;
        let memory = side.process().usage()?.memory;
        drop(side);
        site.drop_slot(slot).await?;
        site.remove_data().await?;
        Ok(memory)
    }

    fn flags(&self) -> Vec<String> {
        vec![format!("--experimental-catch-up-mb={}", self.experimental_catch_up_mb)]
    }

    fn rows(&self) -> u64 {
        self.rows.unwrap_or(self.workload.default_rows())
    }
}

/// By two processes' clocks, which are one.
fn micros_between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(later.0 - earlier.0).unwrap_or_default())
}

/// Writes out what the backlog has dirtied, so that it does not happen while somebody is measured.
async fn checkpoint(site: &Site) -> Result<(), BenchError> {
    if site.server_is_ours() {
        site.control().batch_execute("CHECKPOINT").await.map_err(BenchError::sql("make a checkpoint"))?;
    }
    Ok(())
}

/// CPU time of this process, which is the consumer's.
fn our_cpu() -> Result<Duration, BenchError> {
    Usage::of(std::process::id())
        .map(|usage| usage.cpu)
        .map_err(BenchError::io("read what this process has used"))
}

async fn pause(time: Duration) -> Result<(), BenchError> {
    tokio::time::sleep(time).await;
    Ok(())
}
