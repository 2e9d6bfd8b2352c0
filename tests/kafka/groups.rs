//! Consumer groups: all versions of their requests, and librdkafka's consumers that come, go, crash and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::{ResponseError, messages};
use millrace::kafka::connection::Limits;
use millrace::log::local::{LocalLog, LocalWriter, Options};
use millrace::log::record_batch::Codec;
use millrace::log::topics::{Announcer, Topics};
use millrace::log::{LogWriter, PartitionId, Record, SourcePosition};
use millrace::state::DataDir;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::support::{Client, PATIENCE, Server, coordinator};

pub const PARTITIONS: u32 = 4;

/// A broker with a topic `orders` on disk, and groups whose offsets outlive it.
pub struct Broker {
    pub server: Server,
    writer: LocalWriter,
    partitions: Vec<PartitionId>,
    data: DataDir,
    directory: Arc<TempDir>,
}

impl Broker {
    pub async fn start() -> Broker {
        Broker::open(Arc::new(TempDir::new().unwrap()), "127.0.0.1:0").await
    }

    async fn open(directory: Arc<TempDir>, address: &str) -> Broker {
        let data = DataDir::open(directory.path()).unwrap();
        let options = Options::new(data.join("log"), "test");
        let opened = tokio::task::spawn_blocking(move || LocalLog::open(options)).await.unwrap();
        let (mut writer, reader, _) = opened.unwrap();
        let partitions = writer.create_topic("orders", PARTITIONS, Codec::None).unwrap();
        writer.flush().await.unwrap();
        let topics = Topics::default();
        Announcer::new(topics.clone(), reader);
        let groups = coordinator(&data, &topics);
        let server = Server::start_at(address, topics, Limits::default(), groups).await;
        Broker { server, writer, partitions, data, directory }
    }

    /// Stops, and starts again on the same files at the same address.
    pub async fn restart(self) -> Broker {
        let Broker { mut server, writer, data, directory, .. } = self;
        let address = server.address.to_string();
        server.groups.shutdown().await;
        server.shutdown.cancel();
        (&mut server.served).await.unwrap();
        drop(server);
        tokio::task::spawn_blocking(move || drop(writer)).await.unwrap();
        drop(data);
        Broker::open(directory, &address).await
    }

    /// Appends records to every partition, in one commit.
    pub async fn write(&mut self, records: usize) {
        for partition in self.partitions.clone() {
            for _ in 0..records {
                let record = Record { timestamp: 1, key: None, value: Some(b"value"), headers: &[] };
                self.writer.append(partition, &record).unwrap();
            }
        }
        self.writer.boundary();
        let lsn = millrace::change::Lsn(1);
        let position = SourcePosition {
            last_commit: Some(lsn),
            end_lsn: lsn,
            last_record_end: lsn,
            acked_through: lsn,
            timeline: 1,
            system_identifier: 1,
            slot_generation: 1,
        };
        self.writer.commit(position).await.unwrap();
    }
}

// -- librdkafka -----------------------------------------------------------------------------------------------------

pub fn member(address: SocketAddr, group: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address.to_string())
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "2000")
        .set("heartbeat.interval.ms", "200")
        .set("max.poll.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "200")
        .create()
        .unwrap();
    consumer.subscribe(&["orders"]).unwrap();
    consumer
}

pub fn assigned(consumer: &BaseConsumer) -> BTreeSet<i32> {
    consumer.assignment().unwrap().elements().iter().map(|element| element.partition()).collect()
}

/// Polls all consumers until each has as many partitions as it should, together all of them, and none two.
pub fn balance(consumers: &[&BaseConsumer], expected: &[usize]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for consumer in consumers {
            consumer.poll(Duration::from_millis(20)).transpose().unwrap();
        }
        let parts: Vec<BTreeSet<i32>> = consumers.iter().map(|consumer| assigned(consumer)).collect();
        let mut sizes: Vec<usize> = parts.iter().map(BTreeSet::len).collect();
        sizes.sort_unstable();
        let all: BTreeSet<i32> = parts.iter().flatten().copied().collect();
        if sizes == expected && all.len() == PARTITIONS as usize {
            return;
        }
        assert!(Instant::now() < deadline, "still {parts:?}");
    }
}

/// Reads `count` records of each partition, and gives the offset of the first of each.
pub fn read(consumer: &BaseConsumer, count: usize) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    let mut missing = count * PARTITIONS as usize;
    while missing > 0 {
        assert!(Instant::now() < deadline, "{missing} records are missing");
        // Nothing comes out of a poll that dealt with a rebalance.
        if let Some(message) = consumer.poll(Duration::from_millis(100)).transpose().unwrap() {
            first.entry(message.partition()).or_insert(message.offset());
            missing -= 1;
        }
    }
    first
}

pub fn offsets(from: i64) -> BTreeMap<i32, i64> {
    (0..PARTITIONS as i32).map(|partition| (partition, from)).collect()
}

/// Runs what blocks, as librdkafka's poll does, beside the runtime.
pub async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_join_and_leave_always_share_all_partitions() {
    let broker = Broker::start().await;
    let address = broker.server.address;
    blocking(move || {
        let one = member(address, "g");
        balance(&[&one], &[4]);
        let two = member(address, "g");
        balance(&[&one, &two], &[2, 2]);
        let three = member(address, "g");
        balance(&[&one, &two, &three], &[1, 1, 2]);
        drop(three);
        balance(&[&one, &two], &[2, 2]);
        drop(one);
        balance(&[&two], &[4]);
    })
    .await;
    broker.server.groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_crashed_is_missed_after_its_session_timeout() {
    let broker = Broker::start().await;
    let address = broker.server.address;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (seen, mut sizes) = tokio::sync::mpsc::unbounded_channel();
    let polling = tokio::task::spawn_blocking(move || {
        let one = member(address, "g");
        while stopped.try_recv().is_err() {
            one.poll(Duration::from_millis(20)).transpose().unwrap();
            seen.send(assigned(&one).len()).unwrap();
        }
    });
    let mut has = async |size| {
        let wait = async { while sizes.recv().await.unwrap() != size {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    };
    has(4).await;
    // A bare client joins like a consumer, and is then silent. Its connection stays open, as that of a machine that has
    // lost its power.
    let mut ghost = broker.server.client().await;
    let metadata = Bytes::from_static(b"\0\x00\0\0\0\x01\0\x06orders\0\0\0\0");
    let protocol =
        |name| JoinGroupRequestProtocol::default().with_name(s(name)).with_metadata(metadata.clone());
    let join = join_request("g", 3, "")
        .with_session_timeout_ms(1_000)
        .with_protocols(vec![protocol("range"), protocol("roundrobin")]);
    assert_eq!(ghost.call(3, &join).await.error_code, 0);
    has(2).await;
    has(4).await;
    assert_eq!(broker.server.groups.describe("g").unwrap().members.len(), 1);
    stop.send(()).unwrap();
    polling.await.unwrap();
    broker.server.groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_resumes_where_it_committed_also_after_the_broker_was_away() {
    // I6
    let mut broker = Broker::start().await;
    broker.write(100).await;
    let consumer = member(broker.server.address, "g");
    blocking(move || {
        assert_eq!(read(&consumer, 100), offsets(0));
        consumer.commit_consumer_state(CommitMode::Sync).unwrap();
    })
    .await;

    broker.write(100).await;
    let consumer = member(broker.server.address, "g");
    let consumer = blocking(move || {
        assert_eq!(read(&consumer, 100), offsets(100), "resumes where the first member stopped");
        consumer.commit_consumer_state(CommitMode::Async).unwrap();
        // An asynchronous commit is answered before a synchronous one behind it.
        let mut again = TopicPartitionList::new();
        again.add_partition_offset("orders", 0, Offset::Offset(200)).unwrap();
        consumer.commit(&again, CommitMode::Sync).unwrap();
        consumer
    })
    .await;

    // The same consumer goes on through the restart of the broker. Its membership is gone, so it has to join again, and
    // may then read anew what it has not committed; what it has committed it never reads again, and it skips nothing.
    let mut broker = broker.restart().await;
    broker.write(100).await;
    let groups = broker.server.groups.clone();
    blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        let mut next = offsets(200);
        let done: Vec<_> = (0..4).map(|partition| (partition, 300, 0)).collect();
        let behind = || -> Vec<_> {
            groups.lags().iter().map(|lag| (lag.partition, lag.committed, lag.lag)).collect()
        };
        while behind() != done {
            assert!(Instant::now() < deadline, "only up to {next:?} after the restart");
            // Errors of the connection are what this is about.
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let next = next.get_mut(&message.partition()).unwrap();
                    assert!((200..=*next).contains(&message.offset()), "{} after {next}", message.offset());
                    *next = (*next).max(message.offset() + 1);
                }
                // A commit is refused while the consumer does not know that it has to join again.
                _ => drop(consumer.commit_consumer_state(CommitMode::Sync)),
            }
        }
        assert_eq!(next, offsets(300));
    })
    .await;
    broker.server.groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_assigns_its_partitions_itself_commits_with_a_note() {
    let broker = Broker::start().await;
    let consumer = member(broker.server.address, "alone");
    blocking(move || {
        consumer.unsubscribe();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("orders", 2, Offset::Offset(7)).unwrap();
        offsets.find_partition("orders", 2).unwrap().set_metadata("a note");
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
        let mut asked = TopicPartitionList::new();
        asked.add_partition("orders", 2);
        asked.add_partition("orders", 3);
        let found = consumer.committed_offsets(asked, PATIENCE).unwrap();
        let found = |partition| found.find_partition("orders", partition).unwrap();
        assert_eq!((found(2).offset(), found(2).metadata()), (Offset::Offset(7), "a note"));
        assert_eq!(found(3).offset(), Offset::Invalid);
    })
    .await;
    broker.server.groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_reads_in_a_group_and_reads_nothing_twice() {
    let mut broker = Broker::start().await;
    broker.write(10).await;
    assert_eq!(kcat_in_group(&broker).await, 40);
    assert_eq!(kcat_in_group(&broker).await, 0);
    broker.write(1).await;
    assert_eq!(kcat_in_group(&broker).await, 4);
    broker.server.groups.shutdown().await;
}

/// Has kcat read to the end as a member of a group, and counts what it has read.
async fn kcat_in_group(broker: &Broker) -> usize {
    let address = broker.server.address.to_string();
    let run = move || {
        // Cargo's library path would give it the librdkafka of the tests above instead of its own.
        let mut command = Command::new("kcat");
        command.env_remove("LD_LIBRARY_PATH").args(["-b", &address, "-X", "auto.offset.reset=earliest"]);
        command.args(["-e", "-q", "-f", "%p/%o\n", "-G", "kcat", "orders"]).output()
    };
    let output = blocking(run).await.expect("kcat is installed (apt-get install kcat)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().count()
}

// -- Every version ----------------------------------------------------------------------------------------------------

fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn id(group: &str) -> messages::GroupId {
    GroupId(s(group))
}

fn orders() -> TopicName {
    TopicName(s("orders"))
}

fn join_request(group: &str, version: i16, member: &str) -> JoinGroupRequest {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(s("range")).with_metadata(Bytes::from_static(b"me"));
    JoinGroupRequest::default()
        .with_group_id(id(group))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(if version >= 1 { 10_000 } else { -1 })
        .with_member_id(s(member))
        .with_protocol_type(s("consumer"))
        .with_protocols(vec![protocol])
}

#[tokio::test]
async fn join_sync_heartbeat_and_leave_work_in_every_version() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    for version in 0..=9i16 {
        let group = format!("v{version}");
        let mut joined = client.call(version, &join_request(&group, version, "")).await;
        if version >= 4 {
            assert_eq!(joined.error_code, ResponseError::MemberIdRequired.code());
            joined = client.call(version, &join_request(&group, version, &joined.member_id)).await;
        }
        assert_eq!((joined.error_code, joined.generation_id), (0, 1));
        assert_eq!((&joined.leader, joined.members.len()), (&joined.member_id, 1));
        assert_eq!(joined.members[0].metadata, "me");
        assert_eq!(joined.protocol_name, Some(s("range")));
        assert_eq!(joined.protocol_type, (version >= 7).then(|| s("consumer")));
        let member = joined.member_id;

        let sync_version = version.min(5);
        let part = SyncGroupRequestAssignment::default()
            .with_member_id(member.clone())
            .with_assignment(Bytes::from_static(b"all"));
        let mut sync = SyncGroupRequest::default()
            .with_group_id(id(&group))
            .with_generation_id(1)
            .with_member_id(member.clone())
            .with_assignments(vec![part]);
        if sync_version >= 5 {
            sync = sync.with_protocol_type(Some(s("consumer"))).with_protocol_name(Some(s("range")));
        }
        let synced = client.call(sync_version, &sync).await;
        assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all"[..]));
        let wrong = client.call(sync_version, &sync.clone().with_generation_id(9)).await;
        assert_eq!(wrong.error_code, ResponseError::IllegalGeneration.code());
        if sync_version >= 5 {
            let unnamed = client.call(sync_version, &sync.with_protocol_name(None)).await;
            assert_eq!(unnamed.error_code, ResponseError::InconsistentGroupProtocol.code());
        }

        let heartbeat_version = version.min(4);
        let heartbeat = HeartbeatRequest::default()
            .with_group_id(id(&group))
            .with_generation_id(1)
            .with_member_id(member.clone());
        assert_eq!(client.call(heartbeat_version, &heartbeat).await.error_code, 0);

        describe_and_list(&mut client, &group, version).await;

        let leave_version = version.min(5);
        let leave = LeaveGroupRequest::default().with_group_id(id(&group));
        let leave = match leave_version {
            0..=2 => leave.with_member_id(member.clone()),
            _ => leave.with_members(vec![MemberIdentity::default().with_member_id(member.clone())]),
        };
        let left = client.call(leave_version, &leave).await;
        assert_eq!((left.error_code, left.members.iter().all(|member| member.error_code == 0)), (0, true));
        let unknown = client.call(heartbeat_version, &heartbeat).await;
        assert_eq!(unknown.error_code, ResponseError::UnknownMemberId.code());

        let refused = client.call(version, &join_request(&group, version, "nobody")).await;
        assert_eq!(refused.error_code, ResponseError::UnknownMemberId.code());
    }
}

async fn describe_and_list(client: &mut Client, group: &str, version: i16) {
    let version = version.min(6);
    let request = DescribeGroupsRequest::default().with_groups(vec![id(group), id("none")]);
    let request = request.with_include_authorized_operations(version >= 3);
    let described = client.call(version, &request).await.groups;
    assert_eq!((&*described[0].group_state, described[0].members.len()), ("Stable", 1));
    assert_eq!(described[0].members[0].member_assignment, "all");
    assert_eq!(described[0].members[0].client_host, s("/127.0.0.1"));
    let unknown = if version >= 6 { ResponseError::GroupIdNotFound.code() } else { 0 };
    assert_eq!((&*described[1].group_state, described[1].error_code), ("Dead", unknown));

    let version = version.min(5);
    let mut request = ListGroupsRequest::default();
    if version >= 4 {
        request.states_filter = vec![s("stable")];
    }
    if version >= 5 {
        request.types_filter = vec![s("classic")];
    }
    let listed = client.call(version, &request).await;
    assert_eq!(listed.error_code, 0);
    assert!(listed.groups.iter().any(|listed| listed.group_id == id(group)));
    if version >= 4 {
        let none = client.call(version, &request.with_states_filter(vec![s("Dead")])).await;
        assert!(none.groups.is_empty());
    }
}

#[tokio::test]
async fn members_that_leave_are_told_one_by_one_whether_they_were_there() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let unknown = ResponseError::UnknownMemberId.code();
    for version in 0..=5i16 {
        let leave = LeaveGroupRequest::default().with_group_id(id("none"));
        let leave = match version {
            0..=2 => leave.with_member_id(s("m")),
            _ => leave.with_members(vec![MemberIdentity::default().with_member_id(s("m")); 2]),
        };
        let left = client.call(version, &leave).await;
        let each: Vec<_> = left.members.iter().map(|member| member.error_code).collect();
        let expected = if version < 3 { (unknown, vec![]) } else { (0, vec![unknown; 2]) };
        assert_eq!((left.error_code, each), expected, "version {version}");
    }
    let joined = client.call(3, &join_request("g", 3, "")).await;
    let members = [&joined.member_id, &s("other")]
        .map(|member| MemberIdentity::default().with_member_id(member.clone()));
    let leave = LeaveGroupRequest::default().with_group_id(id("g")).with_members(members.to_vec());
    let left = client.call(3, &leave).await;
    let each: Vec<_> = left.members.iter().map(|member| member.error_code).collect();
    assert_eq!((left.error_code, each), (0, vec![0, unknown]));
}

#[tokio::test]
async fn offsets_are_committed_fetched_and_deleted_in_every_version() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    for version in 2..=9i16 {
        let group = format!("v{version}");
        let partition = |index| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(index)
                .with_committed_offset(i64::from(version) + 40)
                .with_committed_leader_epoch(if version >= 6 { 3 } else { -1 })
                .with_committed_metadata(Some(s("note")))
        };
        let topic = OffsetCommitRequestTopic::default()
            .with_name(orders())
            .with_partitions(vec![partition(1), partition(99)]);
        let commit = OffsetCommitRequest::default()
            .with_group_id(id(&group))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let answers = client.call(version, &commit).await.topics.remove(0).partitions;
        let errors: Vec<_> =
            answers.iter().map(|answer| (answer.partition_index, answer.error_code)).collect();
        assert_eq!(errors, [(1, 0), (99, ResponseError::UnknownTopicOrPartition.code())]);
    }
    // What there is not is unknown, whatever is wrong with the rest.
    let partition = |index| OffsetCommitRequestPartition::default().with_partition_index(index);
    let topic = |name| OffsetCommitRequestTopic::default().with_name(name);
    let of_nobody = OffsetCommitRequest::default()
        .with_group_id(id("nobody"))
        .with_generation_id_or_member_epoch(3)
        .with_member_id(s("m"))
        .with_topics(vec![
            topic(orders()).with_partitions(vec![partition(0), partition(99)]),
            topic(TopicName(s("nothing"))).with_partitions(vec![partition(0)]),
        ]);
    let refused = client.call(8, &of_nobody).await.topics;
    let errors = refused.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    assert_eq!(errors.collect::<Vec<_>>(), [ResponseError::IllegalGeneration.code(), 3, 3]);
    // A group of which offsets are kept has no members, so that this is none of them.
    let refused = client.call(8, &of_nobody.with_group_id(id("v2"))).await.topics;
    assert_eq!(refused[0].partitions[0].error_code, ResponseError::UnknownMemberId.code());

    let group = "v9";
    for version in 1..=9i16 {
        for all in [false, true] {
            if all && version < 2 {
                continue;
            }
            let found = fetch_offsets(&mut client, version, group, all).await;
            let epoch = if version >= 5 { 3 } else { -1 };
            let mut expected = vec![(1, 49, epoch, Some(s("note")))];
            if !all {
                expected.push((2, -1, -1, Some(s(""))));
            }
            assert_eq!(found, expected, "version {version}");
        }
    }
    let partition = |index| OffsetDeleteRequestPartition::default().with_partition_index(index);
    let topic = OffsetDeleteRequestTopic::default().with_name(orders()).with_partitions(vec![partition(1)]);
    let delete = OffsetDeleteRequest::default().with_group_id(id("v2")).with_topics(vec![topic]);
    let deleted = client.call(0, &delete).await;
    assert_eq!((deleted.error_code, deleted.topics[0].partitions[0].error_code), (0, 0));
    assert!(fetch_offsets(&mut client, 9, "v2", true).await.is_empty());
    assert_eq!(client.call(0, &delete).await.error_code, ResponseError::GroupIdNotFound.code());
    let mut unknown = delete.with_group_id(id("v3"));
    unknown.topics[0].partitions.push(OffsetDeleteRequestPartition::default().with_partition_index(99));
    let deleted = client.call(0, &unknown).await.topics.remove(0).partitions;
    let errors: Vec<_> = deleted.iter().map(|partition| partition.error_code).collect();
    assert_eq!(errors, [0, ResponseError::UnknownTopicOrPartition.code()]);
    for version in 0..=2i16 {
        let group = id(&format!("v{}", version + 4));
        let groups = vec![group.clone(), id("none"), group, id("")];
        let deleted = client.call(version, &DeleteGroupsRequest::default().with_groups_names(groups)).await;
        let errors: Vec<_> = deleted.results.iter().map(|result| result.error_code).collect();
        let not_found = ResponseError::GroupIdNotFound.code();
        assert_eq!(errors, [0, not_found, not_found]);
    }
}

async fn fetch_offsets(
    client: &mut Client,
    version: i16,
    group: &str,
    all: bool,
) -> Vec<(i32, i64, i32, Option<StrBytes>)> {
    let mut request = OffsetFetchRequest::default().with_require_stable(version >= 7);
    if version < 8 {
        let topic = OffsetFetchRequestTopic::default().with_name(orders()).with_partition_indexes(vec![1, 2]);
        request = request.with_group_id(id(group)).with_topics((!all).then(|| vec![topic]));
        let topics = client.call(version, &request).await.topics;
        let each = topics.into_iter().flat_map(|topic| topic.partitions);
        return each
            .map(|p| (p.partition_index, p.committed_offset, p.committed_leader_epoch, p.metadata))
            .collect();
    }
    let topic = OffsetFetchRequestTopics::default().with_name(orders()).with_partition_indexes(vec![1, 2]);
    let asked =
        OffsetFetchRequestGroup::default().with_group_id(id(group)).with_topics((!all).then(|| vec![topic]));
    let groups = client.call(version, &request.with_groups(vec![asked])).await.groups;
    assert_eq!(groups[0].group_id, id(group));
    let each = groups.into_iter().flat_map(|group| group.topics).flat_map(|topic| topic.partitions);
    each.map(|p| (p.partition_index, p.committed_offset, p.committed_leader_epoch, p.metadata)).collect()
}

#[tokio::test]
async fn the_coordinator_of_every_group_is_this_broker() {
    let broker = Broker::start().await;
    let mut client = broker.server.client().await;
    let port = i32::from(broker.server.address.port());
    for version in 0..=6i16 {
        if version < 4 {
            let found = client.call(version, &FindCoordinatorRequest::default().with_key(s("g"))).await;
            assert_eq!((found.error_code, &*found.host, found.port), (0, "127.0.0.1", port));
            continue;
        }
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![s("g"), s("h")]);
        let found = client.call(version, &request).await.coordinators;
        let each: Vec<_> =
            found.iter().map(|one| (&*one.key, &*one.host, one.port, one.error_code)).collect();
        assert_eq!(each, [("g", "127.0.0.1", port, 0), ("h", "127.0.0.1", port, 0)]);
        let transactions = client.call(version, &request.with_key_type(1)).await.coordinators;
        assert_eq!(transactions[0].error_code, ResponseError::InvalidRequest.code());
    }
}

#[tokio::test]
async fn a_member_whose_connection_closes_while_it_joins_is_not_waited_for() {
    let broker = Broker::start().await;
    let mut first = broker.server.client().await;
    let joined = first.call(0, &join_request("g", 0, "")).await;
    let mut ghost = broker.server.client().await;
    ghost.request(0, &join_request("g", 0, "")).await;
    let members = async |count| {
        while broker.server.groups.describe("g").unwrap().members.len() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, members(2)).await.unwrap();
    drop(ghost);
    tokio::time::timeout(PATIENCE, members(1)).await.unwrap();
    let again = first.call(0, &join_request("g", 0, &joined.member_id)).await;
    assert_eq!((again.error_code, again.generation_id, again.members.len()), (0, 2, 1));
}
