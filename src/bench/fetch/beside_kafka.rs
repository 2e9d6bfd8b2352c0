//! The backlog, read from Apache Kafka and from us in turn.
//!
//! Kafka is given our stored batches, byte for byte, and its defaults. Both brokers run all the time, and each has been
//! read once before the first round: pages are cached and hot code is compiled. While one is read the other is idle.

mod report;

use std::path::Path;

use self::report::Memory;
pub(super) use self::report::Report;
use super::backlog::{Backlog, batches};
use super::client::Client;
use super::report::{Fetched, Measured};
use super::{log_of, read};
use crate::bench::BenchError;
use crate::bench::apache_kafka::ApacheKafka;
use crate::bench::postgres_server::free_port;
use crate::bench::process::Process;
use crate::bench::site::Site;

pub(super) async fn measure(
    site: &Site,
    libraries: &Path,
    client: &Client,
    backlog: Backlog,
    rounds: u32,
) -> Result<Report, BenchError> {
    eprintln!("copying {} batches to Apache Kafka", backlog.batches);
    let mut theirs = fill_kafka(site, libraries, &backlog).await?;
    let port = free_port()?;
    let log = site.directory().join("server.log");
    let up = site.up(port, &backlog.data)?;
    let mut ours = Ours { process: Process::start("millrace up", up, log, libc::SIGTERM)?, port };
    let records = backlog.records;
    read_kafka(&mut theirs, client, records).await?;
    ours.read(client, records).await?;
    let mut measured = Vec::new();
    for round in 1..=rounds {
        // Each goes first as often as the other, so that a drift of the machine favours none.
        let (bare, ours) = if round % 2 == 1 {
            let bare = read_kafka(&mut theirs, client, records).await?;
            (bare, ours.read(client, records).await?)
        } else {
            let ours = ours.read(client, records).await?;
            (read_kafka(&mut theirs, client, records).await?, ours)
        };
        eprintln!("round {round}: ratio {:.3}", bare.seconds / ours.seconds);
        measured.push(Measured { bare, ours });
    }
    Ok(Report {
        backlog,
        rounds: measured,
        kafka: Memory::of(&theirs.process)?,
        ours: Memory::of(&ours.process)?,
    })
}

/// `millrace up` on the backlog's data directory.
struct Ours {
    process: Process,
    port: u16,
}

impl Ours {
    async fn read(&mut self, client: &Client, records: u64) -> Result<Fetched, BenchError> {
        read(&mut self.process, self.port, client, records).await
    }
}

async fn read_kafka(kafka: &mut ApacheKafka, client: &Client, records: u64) -> Result<Fetched, BenchError> {
    read(&mut kafka.process, kafka.port, client, records).await
}

/// A broker that has the backlog's batches.
async fn fill_kafka(site: &Site, libraries: &Path, backlog: &Backlog) -> Result<ApacheKafka, BenchError> {
    let batches = batches(&log_of(&backlog.data)).await?;
    let largest = batches.iter().map(|batch| batch.len()).max().unwrap_or_default();
    let mut kafka = ApacheKafka::start(site.directory(), libraries, largest).await?;
    match kafka.fill(&batches).await {
        Ok(()) => Ok(kafka),
        Err(error) => Err(kafka.process.why(error).await),
    }
}
