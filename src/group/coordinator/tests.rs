//! The coordinator with a real offset store, a real log and a real clock.

use std::future::Future;
use std::task::Poll;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::group::consumer::{Heartbeat, Parts};
use crate::group::consumer_protocol::Subscription;
use crate::group::member::{Kind, Protocol};
use crate::log::local::{LocalLog, LocalWriter};
use crate::log::record_batch::Codec;
use crate::log::topics::{Topic, TopicId};
use crate::log::{LogReader, LogWriter};
use crate::state::DataDir;

const PATIENCE: Duration = Duration::from_secs(20);

pub(in crate::group) struct House {
    pub groups: Arc<Coordinator>,
    pub topics: Topics,
    log: Arc<dyn LogReader>,
    writer: LocalWriter,
    _data: DataDir,
    _directory: TempDir,
}

impl House {
    pub async fn add_topic(&mut self, name: &str, partitions: u32) {
        let id = TopicId(self.topics.all().len() as u128 + 1);
        let partitions = self.writer.create_topic(name, partitions, Codec::None).unwrap();
        self.writer.flush().await.unwrap();
        self.topics.insert(Topic { name: name.into(), id, partitions, log: self.log.clone() });
    }
}

/// Groups over a topic `orders` with two partitions.
pub(in crate::group) async fn house(options: Options) -> House {
    let directory = TempDir::new().unwrap();
    let data = DataDir::open(directory.path()).unwrap();
    let log = crate::log::local::Options::new(directory.path().join("log"), "test");
    let (writer, reader, _) = tokio::task::spawn_blocking(|| LocalLog::open(log)).await.unwrap().unwrap();
    let topics = Topics::default();
    let groups = Coordinator::open(options, OffsetStore::open(&data).unwrap(), topics.clone());
    let mut house = House { groups, topics, log: reader, writer, _data: data, _directory: directory };
    house.add_topic("orders", 2).await;
    house
}

pub(in crate::group) fn quick() -> Options {
    Options {
        initial_rebalance_delay: Duration::ZERO,
        min_session_timeout: Duration::from_millis(50),
        ..Options::default()
    }
}

fn join(client: &str) -> Join {
    Join {
        kind: Kind::Client,
        member_id: "".into(),
        new_member_id: "".into(),
        instance_id: None,
        client_id: client.into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(10),
        protocol_type: "consumer".into(),
        protocols: vec![Protocol {
            name: "range".into(),
            metadata: Bytes::from_static(b"\0\x00\0\0\0\x01\0\x06orders\0\0\0\0"),
        }],
        requires_known_id: false,
        can_skip_assignment: false,
    }
}

fn sync(joined: &Joined, part: &'static str) -> Sync {
    Sync {
        member_id: joined.member_id.clone(),
        instance_id: None,
        generation: joined.generation,
        protocol_type: None,
        protocol: None,
        assignments: vec![(joined.member_id.clone(), Bytes::from_static(part.as_bytes()))],
    }
}

fn commit(topic: &str, partition: i32, offset: i64) -> CommitEntry {
    CommitEntry { topic: topic.into(), partition, offset, leader_epoch: 3, metadata: "m".into() }
}

const NOBODY: Identity<'_> = Identity { member_id: "", instance_id: None };

fn by(who: Identity<'_>, generation: i32) -> Commit<'_> {
    Commit { who, generation, knows_epochs: false }
}

/// Looks once at a future, so that what it does at first is done.
async fn started<F: Future + Unpin>(future: &mut F) {
    let polled =
        std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready())).await;
    assert!(!polled, "it should wait");
}

#[tokio::test]
async fn a_member_joins_syncs_and_leaves() {
    let house = house(quick()).await;
    let joined = house.groups.join("g", join("one")).await.unwrap();
    assert!(joined.member_id.starts_with("one-") && joined.member_id.len() == "one-".len() + 36);
    let synced = house.groups.sync("g", sync(&joined, "everything")).await.unwrap();
    assert_eq!(&synced.assignment[..], b"everything");
    let who = identity(&joined.member_id, None);
    house.groups.heartbeat("g", who, 1).unwrap();
    assert_eq!(house.groups.list()[0].state, "Stable");
    assert_eq!(house.groups.leave("g", &[who]), Ok(vec![Ok(())]));
    assert_eq!(house.groups.heartbeat("g", who, 1), Err(ResponseError::UnknownMemberId));
    assert_eq!(house.groups.lock().bytes, 0);
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_no_trace() {
    let house = house(Options::default()).await;
    let mut waiting = Box::pin(house.groups.join("g", join("one")));
    started(&mut waiting).await;
    assert_eq!(house.groups.lock().waiting.len(), 1);
    drop(waiting);
    let groups = house.groups.lock();
    assert!(groups.waiting.is_empty());
    assert_eq!(
        (groups.by_id.values().map(|entry| entry.group.member_count()).sum::<usize>(), groups.bytes),
        (0, 0)
    );
}

#[tokio::test]
async fn the_clock_ends_delays_and_sessions_without_being_asked() {
    let house = house(Options { initial_rebalance_delay: Duration::from_millis(30), ..quick() }).await;
    let silent = Join { session_timeout: Duration::from_millis(60), ..join("silent") };
    let (one, silent) = tokio::join!(house.groups.join("g", join("one")), house.groups.join("g", silent));
    let (one, silent) = (one.unwrap(), silent.unwrap());
    assert_eq!((one.generation, silent.generation), (1, 1));
    // It is not heard of again; the other, once the first has been missed, is alone.
    let alone = async {
        while house.groups.heartbeat("g", identity(&silent.member_id, None), 0)
            != Err(ResponseError::UnknownMemberId)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.groups.join("g", Join { member_id: one.member_id.clone(), ..join("one") }).await
    };
    let alone = tokio::time::timeout(PATIENCE, alone).await.unwrap().unwrap();
    assert_eq!(alone.members.len(), 1);
}

#[tokio::test]
async fn a_stopping_broker_tells_those_who_wait_to_look_elsewhere() {
    let house = house(Options::default()).await;
    let mut waiting = Box::pin(house.groups.join("g", join("one")));
    started(&mut waiting).await;
    house.groups.shutdown().await;
    assert_eq!(waiting.await.unwrap_err().error, ResponseError::CoordinatorNotAvailable);
    let late = house.groups.join("g", join("two")).await.unwrap_err();
    assert_eq!(late.error, ResponseError::CoordinatorNotAvailable);
    let late = house.groups.heartbeat("g", NOBODY, 1);
    assert_eq!(late, Err(ResponseError::CoordinatorNotAvailable));
    let late = house.groups.commit("g", by(NOBODY, -1), vec![commit("orders", 0, 1)]).await;
    assert_eq!(late, Err(ResponseError::CoordinatorNotAvailable));
}

#[tokio::test]
async fn each_partition_of_a_commit_has_its_own_answer() {
    let house = house(quick()).await;
    let big = CommitEntry { metadata: "x".repeat(4097).into(), ..commit("orders", 1, 1) };
    let entries = vec![commit("orders", 0, 5), commit("orders", 2, 1), commit("none", 0, 1), big];
    let answers = house.groups.commit("g", by(NOBODY, -1), entries).await.unwrap();
    let unknown = Err(ResponseError::UnknownTopicOrPartition);
    assert_eq!(answers, [Ok(()), unknown, unknown, Err(ResponseError::OffsetMetadataTooLarge)]);
    let kept = house.groups.committed("g", "orders", 0).unwrap();
    assert_eq!((kept.offset, kept.leader_epoch, &*kept.metadata), (5, 3, "m"));
    assert_eq!(house.groups.all_committed("g").len(), 1);
    assert_eq!(house.groups.describe("g").unwrap().state, classic::State::Empty);
    let lags = house.groups.lags();
    assert_eq!((lags.len(), lags[0].committed, lags[0].high_watermark, lags[0].lag), (1, 5, 0, 0));
}

#[tokio::test]
async fn only_members_commit_for_a_group_that_has_some() {
    let house = house(quick()).await;
    let joined = house.groups.join("g", join("one")).await.unwrap();
    house.groups.sync("g", sync(&joined, "")).await.unwrap();
    let entries = || vec![commit("orders", 0, 1)];
    let stranger = house.groups.commit("g", by(NOBODY, -1), entries()).await;
    assert_eq!(stranger, Err(ResponseError::UnknownMemberId));
    let who = identity(&joined.member_id, None);
    assert_eq!(house.groups.commit("g", by(who, 7), entries()).await, Err(ResponseError::IllegalGeneration));
    assert_eq!(
        house.groups.commit("other", by(who, 1), entries()).await,
        Err(ResponseError::IllegalGeneration)
    );
    assert_eq!(house.groups.commit("g", by(who, 1), entries()).await, Ok(vec![Ok(())]));
    assert_eq!(house.groups.delete("g").await, Err(ResponseError::NonEmptyGroup));
    let partitions = vec![("orders".into(), 0), ("old".into(), 0)];
    let deleted = house.groups.delete_offsets("g", partitions).await;
    assert_eq!(deleted, Ok(vec![Err(ResponseError::GroupSubscribedToTopic), Ok(())]));
    house.groups.leave("g", &[who]).unwrap();
    assert_eq!(house.groups.delete("g").await, Ok(()));
    assert_eq!(house.groups.delete("g").await, Err(ResponseError::GroupIdNotFound));
    assert!(house.groups.describe("g").is_none());
}

#[tokio::test]
async fn offsets_of_a_topic_mean_nothing_for_one_made_anew_under_its_name() {
    let house = house(quick()).await;
    house.groups.commit("g", by(NOBODY, -1), vec![commit("orders", 0, 5)]).await.unwrap();
    let old = house.topics.by_name("orders").unwrap();
    house.topics.insert(Topic { id: TopicId(2), ..Topic::clone(&old) });
    assert_eq!(house.groups.committed("g", "orders", 0), None);
    assert!(house.groups.all_committed("g").is_empty() && house.groups.lags().is_empty());
}

#[tokio::test]
async fn sizes_and_numbers_are_bounded() {
    let options = Options { max_groups: 2, max_member_bytes: 100, max_bytes: 2_100, ..quick() };
    let house = house(options).await;
    let refused = async |group: &str, join| house.groups.join(group, join).await.unwrap_err().error;
    assert_eq!(refused("", join("one")).await, ResponseError::InvalidGroupId);
    assert_eq!(refused(&"g".repeat(256), join("one")).await, ResponseError::InvalidGroupId);
    let short = Join { session_timeout: Duration::from_millis(1), ..join("one") };
    assert_eq!(refused("g", short).await, ResponseError::InvalidSessionTimeout);
    let sized = |size: usize| {
        let metadata = Bytes::from(vec![0; size]);
        Join { protocols: vec![Protocol { name: "range".into(), metadata }], ..join("one") }
    };
    assert_eq!(refused("g", sized(96)).await, ResponseError::InvalidRequest);
    // What was refused has left no groups behind.
    assert!(house.groups.list().is_empty());
    let long = house.groups.join("g", join(&"é".repeat(200))).await.unwrap();
    assert!(long.member_id.len() <= MAX_ID);
    house.groups.join("h", sized(90)).await.unwrap();
    assert_eq!(refused("i", sized(1)).await, ResponseError::PolicyViolation);
    assert_eq!(refused("h", sized(90)).await, ResponseError::GroupMaxSizeReached);
}

#[tokio::test]
async fn offsets_of_a_group_without_members_expire_and_those_of_others_do_not() {
    let retention = Duration::from_millis(1);
    let options =
        Options { offset_retention: retention, retention_check: Duration::from_millis(5), ..quick() };
    let house = house(options).await;
    let mut members = Vec::new();
    for group in ["stays", "goes"] {
        let joined = house.groups.join(group, join("one")).await.unwrap();
        house.groups.sync(group, sync(&joined, "")).await.unwrap();
        let who = identity(&joined.member_id, None);
        house.groups.commit(group, by(who, 1), vec![commit("orders", 0, 1)]).await.unwrap();
        members.push(joined.member_id);
    }
    house.groups.leave("goes", &[identity(&members[1], None)]).unwrap();
    let expired = async {
        while house.groups.committed("goes", "orders", 0).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.unwrap();
    assert!(house.groups.committed("stays", "orders", 0).is_some());
}

#[tokio::test]
async fn a_coordinator_that_is_dropped_takes_its_timer_along() {
    let house = house(quick()).await;
    let timer = house.groups.timer.lock().unwrap().take().unwrap();
    drop(house.groups);
    tokio::time::timeout(PATIENCE, timer).await.unwrap().unwrap();
}

fn subscribing(id: &str, pattern: &str) -> Heartbeat {
    Heartbeat {
        member_id: id.into(),
        rebalance_timeout: Some(Duration::from_secs(10)),
        pattern: Some(pattern.into()),
        owned: Some(Parts::new()),
        ..Heartbeat::default()
    }
}

#[tokio::test]
async fn a_pattern_finds_topics_at_once_and_those_that_come_later() {
    let options = Options { topics_settle: Duration::from_millis(1), ..quick() };
    let mut house = house(options).await;
    house.add_topic("items", 1).await;
    let counts = |parts: Parts| parts.into_values().map(|partitions| partitions.len()).collect::<Vec<_>>();
    let joined = house.groups.consumer_heartbeat("g", &subscribing("one", "i.*|later")).await.unwrap();
    assert_eq!(counts(joined.assignment.unwrap()), [1]);
    house.add_topic("later", 3).await;
    let stay = |epoch| Heartbeat { member_id: "one".into(), epoch, ..Heartbeat::default() };
    let came = async {
        loop {
            let mut beat = house.groups.consumer_heartbeat("g", &stay(joined.epoch)).await;
            if beat.is_err() {
                beat = house.groups.consumer_heartbeat("g", &stay(joined.epoch + 1)).await;
            }
            if let Some(parts) = beat.unwrap().assignment {
                return parts;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let parts = tokio::time::timeout(PATIENCE, came).await.unwrap();
    assert_eq!(counts(parts), [1, 3]);
    house.groups.shutdown().await;
}

#[tokio::test]
async fn what_members_of_the_consumer_protocol_make_us_keep_is_bounded() {
    let options = Options { max_groups: 2, max_bytes: 8 << 10, max_member_bytes: 4 << 10, ..quick() };
    let house = house(options).await;
    let refused = async |group: &str, beat: &Heartbeat| {
        house.groups.consumer_heartbeat(group, beat).await.unwrap_err().error
    };
    let long: Arc<str> = "x".repeat(5_000).into();
    let invalid = ResponseError::InvalidRequest;
    assert_eq!(refused("g", &subscribing(&long, "a")).await, invalid);
    assert_eq!(refused("g", &subscribing("one", &long)).await, invalid);
    assert_eq!(
        refused("g", &Heartbeat { rack_id: Some(long.clone()), ..subscribing("one", "a") }).await,
        invalid
    );
    let many = (0..100).map(|number| Arc::from(format!("topic-{number}"))).collect();
    assert_eq!(refused("g", &Heartbeat { names: Some(many), ..subscribing("one", "a") }).await, invalid);
    assert_eq!(refused(&long, &subscribing("one", "a")).await, ResponseError::InvalidGroupId);
    assert!(house.groups.list().is_empty(), "what was refused leaves nothing behind");

    let some: BTreeSet<Arc<str>> = (0..30).map(|number| Arc::from(format!("topic-{number}"))).collect();
    let large = |id| Heartbeat { names: Some(some.clone()), ..subscribing(id, "a") };
    house.groups.consumer_heartbeat("g", &large("one")).await.unwrap();
    house.groups.consumer_heartbeat("h", &large("one")).await.unwrap();
    assert_eq!(refused("i", &subscribing("one", "a")).await, ResponseError::PolicyViolation);
    house.groups.consumer_heartbeat("h", &large("two")).await.unwrap();
    assert_eq!(refused("h", &large("three")).await, ResponseError::GroupMaxSizeReached);
    let leave = Heartbeat { member_id: "two".into(), epoch: consumer::LEAVE, ..Heartbeat::default() };
    house.groups.consumer_heartbeat("h", &leave).await.unwrap();
    house.groups.consumer_heartbeat("h", &large("three")).await.unwrap();
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_group_does_not_become_a_consumer_group_that_would_take_too_much_memory() {
    let house = house(Options { max_bytes: 32 << 10, ..quick() }).await;
    let names = vec!["abc"; 1_000];
    let subscription = Subscription { topics: names, ..Subscription::default() };
    let metadata = subscription.encode().unwrap();
    let small = join("c");
    let large = Join { protocols: vec![Protocol { name: "range".into(), metadata }], ..join("c") };
    house.groups.join("g", large).await.unwrap();
    house.groups.join("h", small).await.unwrap();
    let upgrade = async |group| house.groups.consumer_heartbeat(group, &subscribing("one", "a")).await;
    assert_eq!(upgrade("g").await.unwrap_err().error, ResponseError::GroupMaxSizeReached);
    assert_eq!(house.groups.describe("g").unwrap().members.len(), 1, "it goes on as before");
    upgrade("h").await.unwrap();
    house.groups.shutdown().await;
}

#[tokio::test]
async fn what_matched_a_pattern_before_there_were_other_topics_is_not_taken_for_what_matches_it() {
    let mut house = house(Options { topics_settle: Duration::from_secs(3600), ..quick() }).await;
    house.add_topic("items", 1).await;
    let joined = house.groups.consumer_heartbeat("g", &subscribing("one", "i.*")).await.unwrap();
    assert_eq!(joined.assignment.unwrap().len(), 1);
    house.add_topic("issues", 1).await;
    let joined = house.groups.consumer_heartbeat("h", &subscribing("one", "i.*")).await.unwrap();
    assert_eq!(joined.assignment.unwrap().len(), 2);
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_pattern_is_not_tried_for_who_is_not_a_member() {
    let house = house(quick()).await;
    let error = async |beat: &Heartbeat| house.groups.consumer_heartbeat("g", beat).await.unwrap_err().error;
    let unknown = Heartbeat { epoch: 3, ..subscribing("one", "(") };
    assert_eq!(error(&unknown).await, ResponseError::UnknownMemberId);
    assert_eq!(error(&subscribing("one", "(")).await, ResponseError::InvalidRegularExpression);
    assert!(house.groups.list().is_empty());
    house.groups.shutdown().await;
}

#[tokio::test]
async fn the_clock_and_the_end_do_not_wait_for_patterns_that_take_long() {
    let session = Duration::from_millis(300);
    let options = Options { topics_settle: Duration::ZERO, consumer_session_timeout: session, ..quick() };
    let mut house = house(options).await;
    house.groups.consumer_heartbeat("g", &subscribing("one", "i.*")).await.unwrap();
    let turns = house.groups.finding.clone().acquire_many_owned(MAX_FINDING as u32).await.unwrap();
    house.add_topic("items", 1).await;
    let is_over = async {
        while house.groups.list().iter().any(|group| group.state != "Empty") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.groups.shutdown().await;
    };
    tokio::time::timeout(PATIENCE, is_over).await.unwrap();
    drop(turns);
}
