//! `millrace bench latency`: how long after a commit at the source a Kafka consumer has the record.
//!
//! Single-row transactions are committed at a steady rate. A bare reader and `millrace up`, fsync on, with a librdkafka
//! consumer attached, each read a slot of their own, at the same time, so both meet the same transactions on the same
//! machine. A latency is the time from the moment the writing client has the answer to its COMMIT until the reader has
//! the commit message, or the consumer's `poll` has given the record; that of the bare reader may be negative, since the
//! source sends to its readers before it answers. All clocks are the machine's.
//!
//! It is measured with one partition and again with many, over which the transactions are spread by key. What comes in
//! the first seconds, while caches and connections warm up, is written and read and not counted.

mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rdkafka::message::Message as _;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::report::{Phase, Report, Spread};
use super::consumer::{Consumer, Incoming};
use super::postgres_server::free_port;
use super::process::Process;
use super::side::{Way, told};
use super::site::{Site, SiteArguments};
use super::workload::{PLACE_ONE, Workload};
use super::{BenchError, print};
use crate::change::Timestamp;

/// What is not counted, at the beginning.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long the last record may take, or the first ones until all connections stand.
const ARRIVE_WITHIN: Duration = Duration::from_secs(60);

/// `millrace bench latency`
#[derive(Debug, Args)]
pub(super) struct Latency {
    /// Transactions a second, of one row each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// How long is measured, with each number of partitions
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// How many partitions are compared with one
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    partitions: u32,
    #[command(flatten)]
    site: SiteArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Latency {
    /// Measures and prints.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        let report =
            self.site.measure(Workload::Orders, async |site: &Site| self.measure(site).await).await?;
        print(self.json, report.json(), &report);
        Ok(())
    }

    async fn measure(&self, site: &Site) -> Result<Report, BenchError> {
        let mut phases = Vec::new();
        for partitions in [1, self.partitions] {
            eprintln!("measuring {} s with {partitions} partitions", self.seconds);
            Workload::Orders.clear(site.control()).await?;
            phases.push(self.phase(site, partitions).await?);
        }
        Ok(Report {
            server_version: site.control().server_version(),
            rate: self.rate,
            seconds: self.seconds,
            phases,
        })
    }

    /// The same transactions through both.
    async fn phase(&self, site: &Site, partitions: u32) -> Result<Phase, BenchError> {
        let warm_up = WARM_UP.as_secs() as usize * self.rate as usize;
        let total = warm_up + self.seconds as usize * self.rate as usize;
        for way in [Way::Bare, Way::Millrace] {
            site.create_slot(way.slot()).await?;
        }
        let mut bare = site.bare_reader(Way::Bare.slot(), total as u64)?;
        bare.arg("--times");
        let log = |name| -> PathBuf { site.directory().join(name) };
        let (mut bare, stdout) =
            Process::start_piped("the bare reader", bare, log("bare-reader.log"), libc::SIGTERM)?;
        let port = free_port()?;
        let mut up = site.up(port, &site.data())?;
        up.args(["--partition-by", "key", "--partitions"]).arg(partitions.to_string());
        let mut up = Process::start("millrace up", up, log("millrace.log"), libc::SIGTERM)?;
        let (seen, mut has_seen) = watch::channel(0);
        let mut consumer =
            Consumer::attach(port, partitions, move |incoming| arrivals(incoming, total, &seen))?;

        let both = async {
            for way in [Way::Bare, Way::Millrace] {
                site.until_read(way.slot()).await?;
            }
            let mut committed = self.write(site, 0..warm_up).await?;
            let warm = has_seen.wait_for(|seen| *seen >= warm_up);
            in_time("reading the first records", warm).await?.map_err(|_| BenchError::Interrupted)?;
            committed.extend(self.write(site, warm_up..total).await?);
            let arrived = in_time("reading all records", consumer.done()).await??;
            let mut lines = BufReader::new(stdout).lines();
            let read = in_time("the bare reader's answer", told(&mut lines)).await??;
            Ok::<_, BenchError>((committed, read.commits_at.unwrap_or_default(), arrived))
        };
        let (committed, read, arrived) = tokio::select! {
            measured = both => measured?,
            error = bare.ended() => return Err(error),
            error = up.ended() => return Err(error),
        };
        drop((consumer, up, bare));
        for way in [Way::Bare, Way::Millrace] {
            site.drop_slot(way.slot()).await?;
        }
        site.remove_data().await?;
        let spread = |name, at: &[i64]| match at.len() == total {
            true => Ok(Spread::of(at.iter().zip(&committed).skip(warm_up).map(|(at, sent)| at - sent))),
            false => Err(BenchError::WrongCount { name, expected: total as u64, found: at.len() as u64 }),
        };
        Ok(Phase {
            partitions,
            bare: spread("the bare reader", &read)?,
            ours: spread("millrace up", &arrived)?,
        })
    }

    /// Places the orders with these ids, one a transaction, at the rate that is asked for. Gives when each was committed.
    async fn write(&self, site: &Site, ids: std::ops::Range<usize>) -> Result<Vec<i64>, BenchError> {
        let writer = site.writer().await?;
        // As a server's default is. Without it the WAL is written some time after the answer, and read only then.
        let set = writer.batch_execute("SET synchronous_commit = on").await;
        set.map_err(BenchError::sql("prepare the session"))?;
        let statement = writer.prepare(PLACE_ONE).await.map_err(BenchError::sql("prepare a statement"))?;
        let mut due = interval(Duration::from_secs(1) / self.rate);
        // A commit that takes long makes those behind it late, not fewer.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut committed = Vec::with_capacity(ids.len());
        for id in ids {
            due.tick().await;
            let written = writer.execute(&statement, &[&(id as i64)]).await;
            written.map_err(BenchError::sql("write to the table"))?;
            committed.push(Timestamp::now().0);
        }
        Ok(committed)
    }
}

/// The key of an order.
#[derive(Deserialize)]
struct Key {
    order_id: usize,
}

/// When each of the orders came, by its id, in microseconds since 1970; counts them for `seen`.
fn arrivals(
    incoming: &Incoming,
    orders: usize,
    seen: &watch::Sender<usize>,
) -> Result<Option<Vec<i64>>, BenchError> {
    let mut arrived = vec![None; orders];
    for count in 1..=orders {
        let Some(record) = incoming.next()? else { return Ok(None) };
        let now = Timestamp::now().0;
        let key = record.key().unwrap_or_default();
        let place = serde_json::from_slice(key).ok().and_then(|key: Key| arrived.get_mut(key.order_id));
        match place {
            Some(place @ None) => *place = Some(now),
            _ => {
                let said = format!("the key {}, which was not due", String::from_utf8_lossy(key));
                return Err(BenchError::Unreadable { name: "consumer", said });
            }
        }
        seen.send_replace(count);
    }
    Ok(Some(arrived.into_iter().flatten().collect()))
}

async fn in_time<T>(what: &'static str, work: impl Future<Output = T>) -> Result<T, BenchError> {
    let done = timeout(ARRIVE_WITHIN, work).await;
    done.map_err(|_| BenchError::Stalled { what, after: ARRIVE_WITHIN, log: String::new() })
}
