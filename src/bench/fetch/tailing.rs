//! What consumers at the end of a topic cost the broker.
//!
//! The consumers here are the least that a consumer can be: one connection each, which asks for what follows the last
//! record as soon as it has an answer, with the defaults of a Kafka consumer, and looks at no record. A hundred real ones
//! would take the machine away from the broker that is measured.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::client::until_listening;
use super::report::{Tail, Tailing};
use crate::bench::BenchError;
use crate::bench::postgres_server::free_port;
use crate::bench::process::Process;
use crate::bench::side::Way;
use crate::bench::site::{Site, TASK};
use crate::bench::workload::{PLACE_ONE, Workload};
use crate::log::record_batch::BatchHeader;

/// The numbers of consumers that are compared.
pub(super) const CONSUMERS: [usize; 2] = [10, 100];
/// Before the clock starts, so that all connections stand.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the last record may take.
const ARRIVE_WITHIN: Duration = Duration::from_secs(30);

/// Measures both in turn.
pub(super) async fn measure(
    site: &Site,
    rounds: u32,
    rate: u32,
    seconds: u32,
) -> Result<Tailing, BenchError> {
    let mut report = Tailing { rate, seconds, rounds: Vec::new() };
    for round in 1..=rounds {
        let mut tails = [Tail::default(); 2];
        for (tail, consumers) in tails.iter_mut().zip(CONSUMERS) {
            *tail = phase(site, consumers, rate, seconds).await?;
        }
        eprintln!("round {round}: ratio {:.2}", tails[1].cpu.as_secs_f64() / tails[0].cpu.as_secs_f64());
        report.rounds.push(tails);
    }
    Ok(report)
}

async fn phase(site: &Site, consumers: usize, rate: u32, seconds: u32) -> Result<Tail, BenchError> {
    let slot = Way::Millrace.slot();
    Workload::Orders.clear(site.control()).await?;
    site.create_slot(slot).await?;
    let port = free_port()?;
    let log = site.directory().join("millrace.log");
    let mut up = Process::start("millrace up", site.up(port, &site.data())?, log, libc::SIGTERM)?;
    let measured = async {
        site.until_read(slot).await?;
        until_listening(port).await?;
        // The topic begins with what empties the table.
        let mut tails = JoinSet::new();
        let warm = WARM_UP.as_secs() * u64::from(rate);
        let total = warm + u64::from(seconds * rate);
        for _ in 0..consumers {
            tails.spawn(tail(port, total as i64));
        }
        write(site, rate, 0..warm).await?;
        let (before, started) = (up.usage()?.cpu, Instant::now());
        write(site, rate, warm..total).await?;
        let mut answers = 0;
        let all = async {
            while let Some(tail) = tails.join_next().await {
                let tail = tail.map_err(|_| BenchError::Interrupted)?;
                answers += tail.map_err(BenchError::io("read the topic's end"))?;
            }
            Ok::<_, BenchError>(())
        };
        let what = "reading the last records";
        let stalled = |_| BenchError::Stalled { what, after: ARRIVE_WITHIN, log: String::new() };
        tokio::time::timeout(ARRIVE_WITHIN, all).await.map_err(stalled)??;
        let (cpu, seconds) = (up.usage()?.cpu.saturating_sub(before), started.elapsed().as_secs_f64());
        Ok::<_, BenchError>(Tail { cpu, seconds, answers })
    };
    let measured = match measured.await {
        Ok(measured) => measured,
        Err(error) => return Err(up.why(error).await),
    };
    drop(up);
    site.drop_slot(slot).await?;
    site.remove_data().await?;
    Ok(measured)
}

/// Places the orders with these ids, one a transaction, at the rate that is asked for.
async fn write(site: &Site, rate: u32, ids: std::ops::Range<u64>) -> Result<(), BenchError> {
    let writer = site.writer().await?;
    // The bench's server answers commits before it has written them, and then the walsender sees several at once.
    let set = writer.batch_execute("SET synchronous_commit = on").await;
    set.map_err(BenchError::sql("ask for synchronous commits"))?;
    let statement = writer.prepare(PLACE_ONE).await.map_err(BenchError::sql("prepare a statement"))?;
    let mut due = interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for id in ids {
        due.tick().await;
        let written = writer.execute(&statement, &[&(id as i64)]).await;
        written.map_err(BenchError::sql("write to the table"))?;
    }
    Ok(())
}

/// Reads until so many records have come. Gives how many answers that took.
async fn tail(port: u16, records: i64) -> io::Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut next, mut answers) = (0, 0);
    while next < records {
        stream.write_all(&request(next)).await?;
        let size = stream.read_u32().await? as usize;
        let mut answer = vec![0; size];
        stream.read_exact(&mut answer).await?;
        answers += 1;
        next = next_offset(Bytes::from(answer), next).map_err(io::Error::other)?;
    }
    Ok(answers)
}

/// A Fetch of version 11 for what begins with `offset`.
fn request(offset: i64) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    out.put_i16(1);
    out.put_i16(11);
    out.put_i32(0);
    out.put_i16(-1);
    out.put_i32(-1); // replica
    out.put_i32(500); // longest wait, ms
    out.put_i32(1); // fewest bytes
    out.put_i32(50 << 20);
    out.put_i8(0);
    out.put_i32(0); // session
    out.put_i32(-1);
    out.put_i32(1);
    out.put_i16(TASK.len() as i16);
    out.put_slice(TASK.as_bytes());
    out.put_i32(1);
    out.put_i32(0);
    out.put_i32(-1); // leader epoch
    out.put_i64(offset);
    out.put_i64(-1);
    out.put_i32(1 << 20);
    out.put_i32(0); // forgotten topics
    out.put_i16(0); // rack
    let size = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&size.to_be_bytes());
    out.freeze()
}

/// The offset after the last batch of an answer; `offset` when there is none.
fn next_offset(mut answer: Bytes, offset: i64) -> Result<i64, String> {
    // Correlation id, throttle time, error, session, topics, name, partitions, index.
    let before = 4 + 4 + 2 + 4 + 4 + 2 + TASK.len() + 4 + 4;
    // Error, high watermark, last stable offset, start, aborted transactions, replica; size of the records.
    if answer.len() < before + 2 + 8 + 8 + 8 + 4 + 4 + 4 {
        return Err("an answer without a partition".to_owned());
    }
    answer.advance(before);
    match answer.get_i16() {
        0 => {}
        // The topic is made with its first record.
        3 => return Ok(offset),
        error => return Err(format!("error {error}")),
    }
    answer.advance(8 + 8 + 8 + 4 + 4 + 4);
    let mut next = offset;
    while !answer.is_empty() {
        let header = BatchHeader::parse(&answer).map_err(|error| error.to_string())?;
        next = header.end_offset().0;
        answer.advance(header.len.min(answer.len()));
    }
    Ok(next)
}
