//! `millrace bench groups`: what connections and consumer groups cost the broker, and how soon it answers them.
//!
//! One broker, with a topic of many partitions, is measured in turn:
//!
//! - **Memory** of groups with one member each, on connections that are counted before; then of idle connections, each of
//!   which has asked for the API versions as every client does. In this order nothing that was freed is used again.
//! - **Commits**: a few groups commit offsets of many partitions at once, one request after the other, as fast as they are
//!   answered; an answer means fsynced.
//! - **A commit during ingest**: ten partitions, at a steady pace, while the source is written to as fast as it can.
//! - **Heartbeats under fetch load**: every group's, once a second, while as many readers as the machine has cores read all
//!   partitions from the start, again and again, and look at nothing.
//!
//! Clients, source and broker share the machine, and times are as a client sees them: also the clients' own waiting for a
//! core is in them.

mod report;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiVersionsRequest, FetchRequest, GroupId, HeartbeatRequest, JoinGroupRequest, OffsetCommitRequest,
    SyncGroupRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::report::{Report, Times};
use super::connection::Connection;
use super::fetch::client::until_listening;
use super::postgres_server::free_port;
use super::process::Process;
use super::side::Way;
use super::site::{Site, SiteArguments, TASK};
use super::workload::Workload;
use super::{BenchError, print};
use crate::broker::raise_open_files;

/// Connections that are opened or joined at the same time.
const AT_ONCE: usize = 64;
/// Who commits as fast as it can, and what at once.
const COMMITTERS: usize = 16;
const COMMITTED_AT_ONCE: usize = 100;
/// Partitions in a commit whose time is measured, and the time between two of them.
const COMMITTED_BY_MEMBER: usize = 10;
const COMMIT_EVERY: Duration = Duration::from_millis(5);
/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(2);
const WITHIN: Duration = Duration::from_secs(300);
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// `millrace bench groups`
#[derive(Debug, Args)]
pub(super) struct Groups {
    /// How many idle connections are opened
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    connections: u32,
    /// How many groups are made, of one member each
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    groups: u32,
    /// How many partitions the topic has
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(100..=10_000))]
    partitions: u32,
    /// How many rows are written to the source
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    rows: u64,
    /// How long commits and heartbeats are measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    #[command(flatten)]
    site: SiteArguments,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Groups {
    /// Measures and prints.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        // The other end of each connection is ours.
        raise_open_files();
        let report =
            self.site.measure(Workload::Orders, async |site: &Site| self.measure(site).await).await?;
        print(self.json, report.json(), &report);
        Ok(())
    }

    async fn measure(&self, site: &Site) -> Result<Report, BenchError> {
        let slot = Way::Millrace.slot();
        site.create_slot(slot).await?;
        let port = free_port()?;
        let mut up = site.up(port, &site.data())?;
        up.args(["--partition-by", "key", "--partitions"]).arg(self.partitions.to_string());
        let log = site.directory().join("millrace.log");
        let mut up = Process::start("millrace up", up, log, libc::SIGTERM)?;
        let measured = async {
            site.until_read(slot).await?;
            until_listening(port).await?;
            self.phases(site, port, &up).await
        };
        let measured = match timeout(WITHIN + Duration::from_secs(self.seconds.into()) * 2, measured).await {
            Ok(measured) => measured,
            Err(_) => Err(BenchError::Stalled { what: "measuring groups", after: WITHIN, log: up.log_end() }),
        };
        let measured = match measured {
            Ok(measured) => measured,
            Err(error) => return Err(up.why(error).await),
        };
        drop(up);
        site.drop_slot(slot).await?;
        Ok(measured)
    }

    async fn phases(&self, site: &Site, port: u16, up: &Process) -> Result<Report, BenchError> {
        let memory = async || {
            sleep(SETTLE).await;
            Ok::<_, BenchError>(up.usage()?.memory)
        };
        let each =
            |before: u64, after: u64, count: u32| after.saturating_sub(before) as f64 / f64::from(count);

        eprintln!("making {} groups", self.groups);
        let members = all(0..self.groups, |_| connect(port)).await?;
        let before = memory().await?;
        let members = all(members.into_iter().enumerate(), |(number, connection)| {
            Member::join(connection, format!("bench-{number}"))
        })
        .await?;
        let bytes_per_group = each(before, memory().await?, self.groups);

        eprintln!("opening {} connections", self.connections);
        let before = memory().await?;
        let idle = all(0..self.connections, |_| connect(port)).await?;
        let bytes_per_connection = each(before, memory().await?, self.connections);
        drop(idle);

        eprintln!("committing for {} s", self.seconds);
        let period = Duration::from_secs(self.seconds.into());
        let started = Instant::now();
        let until = started + period;
        let partitions = self.partitions as usize;
        let committed = all(0..COMMITTERS, |number| async move {
            let mut connection = connect(port).await?;
            let group = group(&format!("committer-{number}"));
            let (mut commits, mut times) = (0, Vec::new());
            while Instant::now() < until {
                let asked = Instant::now();
                commit(
                    &mut connection,
                    &group,
                    None,
                    commits * COMMITTED_AT_ONCE,
                    COMMITTED_AT_ONCE,
                    partitions,
                )
                .await?;
                times.push(asked.elapsed());
                commits += 1;
            }
            Ok((commits, times))
        })
        .await?;
        let commits: usize = committed.iter().map(|(commits, _)| commits).sum();
        let commits_per_s = (commits * COMMITTED_AT_ONCE) as f64 / started.elapsed().as_secs_f64();
        let commit_times = committed.into_iter().flat_map(|(_, times)| times).collect();

        eprintln!("writing {} rows, and committing meanwhile", self.rows);
        let (members, ingest_times) = self.commit_during_ingest(site, members, partitions).await?;

        eprintln!("beating for {} s under fetch load", self.seconds);
        let (beats, fetched) = self.beat_under_load(port, members).await?;
        let usage = up.usage()?;
        Ok(Report {
            connections: self.connections,
            groups: self.groups,
            partitions: self.partitions,
            rows: self.rows,
            bytes_per_connection,
            bytes_per_group,
            commits_per_s,
            commit: Times::of(commit_times),
            commit_during_ingest: Times::of(ingest_times),
            heartbeat_under_load: Times::of(beats),
            fetched_mb_per_s: fetched as f64 / 1e6 / period.as_secs_f64(),
            memory_mb: usage.memory as f64 / 1e6,
        })
    }

    async fn commit_during_ingest(
        &self,
        site: &Site,
        mut members: Vec<Member>,
        partitions: usize,
    ) -> Result<(Vec<Member>, Vec<Duration>), BenchError> {
        let drained = async {
            let inside_last = Workload::Orders.write(site.control(), self.rows).await?;
            site.until_confirmed(Way::Millrace.slot(), inside_last).await
        };
        tokio::pin!(drained);
        let mut due = interval(COMMIT_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut times = Vec::new();
        loop {
            tokio::select! {
                drained = &mut drained => {
                    drained?;
                    return Ok((members, times));
                }
                _ = due.tick() => {}
            }
            let number = times.len() % members.len();
            let Some(member) = members.get_mut(number) else { continue };
            let asked = Instant::now();
            let from = times.len() * COMMITTED_BY_MEMBER;
            let Member { connection, group, member, generation } = member;
            let committing =
                commit(connection, group, Some((member, *generation)), from, COMMITTED_BY_MEMBER, partitions);
            // The writing goes on meanwhile.
            tokio::select! {
                committed = committing => committed?,
                drained = &mut drained => {
                    drained?;
                    return Ok((members, times));
                }
            }
            times.push(asked.elapsed());
        }
    }

    async fn beat_under_load(
        &self,
        port: u16,
        members: Vec<Member>,
    ) -> Result<(Vec<Duration>, usize), BenchError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let until = Instant::now() + Duration::from_secs(self.seconds.into());
        let partitions = self.partitions as i32;
        let mut readers = JoinSet::new();
        for _ in 0..cores {
            readers.spawn(read_again_and_again(port, partitions, until));
        }
        let beats = members.into_iter().enumerate().map(|(number, mut member)| async move {
            // Spread over the period, as members that started at different times are.
            sleep(HEARTBEAT_EVERY.mul_f64((number % 997) as f64 / 997.0)).await;
            let mut due = interval(HEARTBEAT_EVERY);
            let mut times = Vec::new();
            while Instant::now() < until {
                due.tick().await;
                let asked = Instant::now();
                member.beat().await?;
                times.push(asked.elapsed());
            }
            Ok::<_, BenchError>(times)
        });
        let beats = futures_util::future::try_join_all(beats).await?;
        let mut fetched = 0;
        while let Some(bytes) = readers.join_next().await {
            fetched += bytes.map_err(|_| BenchError::Interrupted)?.map_err(BenchError::io("fetch"))?;
        }
        Ok((beats.concat(), fetched))
    }
}

/// Does something for each of many, a few at a time.
async fn all<I, T, F>(many: impl IntoIterator<Item = I>, one: impl Fn(I) -> F) -> Result<Vec<T>, BenchError>
where
    F: Future<Output = Result<T, BenchError>>,
{
    use futures_util::stream::{StreamExt, TryStreamExt, iter};
    iter(many).map(one).buffer_unordered(AT_ONCE).try_collect().await
}

/// A connection that has said what every client says first.
async fn connect(port: u16) -> Result<Connection, BenchError> {
    let mut connection = Connection::open(port).await?;
    connection.call(0, &ApiVersionsRequest::default()).await?;
    Ok(connection)
}

/// The one member of a group.
struct Member {
    connection: Connection,
    group: GroupId,
    member: StrBytes,
    generation: i32,
}

impl Member {
    async fn join(mut connection: Connection, name: String) -> Result<Member, BenchError> {
        let group = group(&name);
        // A subscription to the topic, version 0.
        let mut metadata = b"\x00\x00\x00\x00\x00\x01".to_vec();
        metadata.extend_from_slice(&(TASK.len() as u16).to_be_bytes());
        metadata.extend_from_slice(TASK.as_bytes());
        metadata.extend_from_slice(&[0xFF; 4]);
        let range =
            JoinGroupRequestProtocol::default().with_name(range()).with_metadata(Bytes::from(metadata));
        let join = JoinGroupRequest::default()
            .with_group_id(group.clone())
            .with_session_timeout_ms(600_000)
            .with_rebalance_timeout_ms(60_000)
            .with_protocol_type(StrBytes::from_static_str("consumer"))
            .with_protocols(vec![range]);
        let joined = connection.call(3, &join).await?;
        accepted(joined.error_code)?;
        let part = SyncGroupRequestAssignment::default().with_member_id(joined.member_id.clone());
        let sync = SyncGroupRequest::default()
            .with_group_id(group.clone())
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_assignments(vec![part]);
        accepted(connection.call(2, &sync).await?.error_code)?;
        Ok(Member { connection, group, member: joined.member_id, generation: joined.generation_id })
    }

    async fn beat(&mut self) -> Result<(), BenchError> {
        let beat = HeartbeatRequest::default()
            .with_group_id(self.group.clone())
            .with_generation_id(self.generation)
            .with_member_id(self.member.clone());
        accepted(self.connection.call(2, &beat).await?.error_code)
    }
}

/// Commits the offset `from` for so many partitions, by a member or, where there is none, from outside.
async fn commit(
    connection: &mut Connection,
    group: &GroupId,
    member: Option<(&StrBytes, i32)>,
    from: usize,
    count: usize,
    partitions: usize,
) -> Result<(), BenchError> {
    let offsets = (0..count).map(|nth| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(((from + nth) % partitions) as i32)
            .with_committed_offset(from as i64)
    });
    let topic = OffsetCommitRequestTopic::default().with_name(topic()).with_partitions(offsets.collect());
    let (member, generation) = member.map_or((StrBytes::default(), -1), |(id, number)| (id.clone(), number));
    let commit = OffsetCommitRequest::default()
        .with_group_id(group.clone())
        .with_member_id(member)
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![topic]);
    let answer = connection.call(5, &commit).await?;
    answer.topics.iter().flat_map(|topic| &topic.partitions).try_for_each(|part| accepted(part.error_code))
}

/// Reads all partitions from the start, up to a megabyte of each, again and again. Gives how many bytes came.
async fn read_again_and_again(port: u16, partitions: i32, until: Instant) -> io::Result<usize> {
    let mut connection = Connection::open(port).await.map_err(io::Error::other)?;
    let all = (0..partitions).map(|partition| {
        FetchPartition::default().with_partition(partition).with_partition_max_bytes(1 << 20)
    });
    let topic = FetchTopic::default().with_topic(topic()).with_partitions(all.collect());
    let fetch = FetchRequest::default().with_min_bytes(1).with_max_bytes(50 << 20).with_topics(vec![topic]);
    let mut bytes = 0;
    while Instant::now() < until {
        bytes += connection.exchange(11, &fetch).await?.len();
    }
    Ok(bytes)
}

fn accepted(error: i16) -> Result<(), BenchError> {
    match ResponseError::try_from_code(error) {
        None => Ok(()),
        Some(error) => Err(BenchError::Unreadable { name: "broker", said: error.to_string() }),
    }
}

fn group(name: &str) -> GroupId {
    GroupId(StrBytes::from_string(name.to_owned()))
}

fn topic() -> TopicName {
    TopicName(StrBytes::from_static_str(TASK))
}

fn range() -> StrBytes {
    StrBytes::from_static_str("range")
}
