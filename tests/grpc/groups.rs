//! Subscribers as members of consumer groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace::proto::subscribe_request::Request;
use millrace::proto::subscribe_response::Response;
use millrace::proto::subscriber_client::SubscriberClient;
use millrace::proto::{Acknowledgement, CommitRequest, PartitionOffset, Subscription};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::stage::{PATIENCE, Stage, Subscriber, TOPIC, everything, id, offset};

const ARGS: &[&str] = &["--partitions", "8", "--partition-by", "key", "--group-initial-delay-ms", "0"];

fn member() -> Subscription {
    Subscription { group: "billing".to_owned(), ..everything() }
}

/// A member that keeps the books: what it holds, what it has seen.
struct Member {
    stream: Subscriber,
    held: BTreeSet<u32>,
    /// The next offset of each partition that records came from.
    next: BTreeMap<u32, i64>,
    /// Where each was when it was assigned.
    begun: BTreeMap<u32, i64>,
    seen: Vec<i64>,
    lost: bool,
}

impl Member {
    async fn join(stage: &Stage, subscription: Subscription) -> Member {
        let stream = stage.subscribe(subscription).await;
        Member {
            stream,
            held: BTreeSet::new(),
            next: BTreeMap::new(),
            begun: BTreeMap::new(),
            seen: Vec::new(),
            lost: false,
        }
    }

    /// Takes the next message, and acknowledges what it holds when it is asked to give something up.
    async fn step(&mut self, acknowledges: bool) {
        match self.stream.next().await.unwrap().expect("the stream goes on") {
            Response::Assigned(assigned) => {
                for partition in assigned.partitions {
                    self.next.insert(partition.partition, partition.offset);
                    self.begun.insert(partition.partition, partition.offset);
                    assert!(self.held.insert(partition.partition));
                }
            }
            Response::Revoked(revoked) => {
                self.lost |= revoked.lost;
                for partition in &revoked.partitions {
                    assert!(self.held.remove(&partition.partition));
                }
                if acknowledges {
                    let partitions = revoked.partitions.iter().map(|one| one.partition);
                    let open = partitions.filter(|partition| self.next[partition] > self.begun[partition]);
                    let offsets = open.map(|partition| self.position(partition));
                    let request = millrace::proto::Acknowledgement { id: 1, offsets: offsets.collect() };
                    self.stream.send(millrace::proto::subscribe_request::Request::Acknowledgement(request));
                }
            }
            Response::Records(records) => {
                assert!(self.held.contains(&records.partition), "records of a partition that is not held");
                for record in &records.records {
                    assert_eq!(record.offset, self.next[&records.partition]);
                    self.next.insert(records.partition, record.offset + 1);
                    self.seen.push(id(record));
                }
            }
            Response::Acknowledged(answer) => {
                assert!(answer.results.iter().all(|result| result.error.is_none()), "{answer:?}");
            }
        }
    }

    fn position(&self, partition: u32) -> PartitionOffset {
        offset(partition, self.next[&partition])
    }

    /// Goes on until it holds so many partitions.
    async fn until_held(&mut self, partitions: usize) {
        while self.held.len() != partitions {
            self.step(true).await;
        }
    }
}

/// Lets both go on until each holds so many partitions.
async fn share(one: &mut Member, other: &mut Member, partitions: usize) {
    let shared = async {
        while one.held.len() != partitions || other.held.len() != partitions {
            tokio::select! {
                () = one.step(true) => {}
                () = other.step(true) => {}
            }
        }
    };
    timeout(PATIENCE, shared).await.expect("they share the partitions");
    assert!(one.held.is_disjoint(&other.held));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_take_over_from_one_that_is_gone() {
    let stage = Stage::start(ARGS).await;
    stage.insert(1..=800, 10).await;
    let mut one = Member::join(&stage, member()).await;
    one.until_held(8).await;
    while one.seen.len() < 800 {
        one.step(true).await;
    }
    let mut other = Member::join(&stage, member()).await;
    share(&mut one, &mut other, 4).await;
    stage.insert(801..=1_600, 10).await;
    while one.seen.len() + other.seen.len() < 1_600 {
        tokio::select! {
            () = one.step(true) => {}
            () = other.step(true) => {}
        }
    }
    let seen: BTreeSet<i64> = one.seen.iter().chain(&other.seen).copied().collect();
    assert_eq!(seen.len(), 1_600, "what was acknowledged before it moved is not read again");

    // What the other has not acknowledged comes again.
    let unacknowledged = other.seen.len();
    let before = one.seen.len();
    drop(other);
    one.until_held(8).await;
    while one.seen.len() < before + unacknowledged {
        one.step(true).await;
    }
    assert_eq!(one.seen.iter().collect::<BTreeSet<_>>().len(), 1_600);
    assert!(!one.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_acknowledges_nothing_holds_nothing_up_for_long() {
    let stage = Stage::start(ARGS).await;
    stage.insert(1..=80, 10).await;
    let quick = Subscription { revoke_timeout_ms: Some(200), ..member() };
    let mut lazy = Member::join(&stage, quick).await;
    while lazy.seen.len() < 80 {
        lazy.step(false).await;
    }
    let mut other = Member::join(&stage, member()).await;
    let shared = async {
        while lazy.held.len() != 4 || other.held.len() != 4 {
            tokio::select! {
                () = lazy.step(false) => {}
                () = other.step(true) => {}
            }
        }
    };
    timeout(PATIENCE, shared).await.expect("they share the partitions");
    // Too late: they are another's.
    let theirs = *other.held.first().unwrap();
    let answer = lazy.stream.acknowledge(9, vec![lazy.position(theirs)]).await;
    assert_eq!(answer.results[0].error.as_ref().unwrap().code, Code::FailedPrecondition as i32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_reads_nothing_ends_when_its_group_has_told_it_too_much() {
    const PARTITIONS: usize = 1_000;
    let args = ["--partitions", "1000", "--partition-by", "key", "--group-initial-delay-ms", "0"];
    let stage = Stage::start(&args).await;
    let endpoint = Channel::from_shared(stage.url()).unwrap().initial_stream_window_size(1_000);
    let client = SubscriberClient::new(endpoint.connect().await.unwrap());
    let mut stuck = Subscriber::open(client, member()).await;
    stage.wait_metric("millrace_group_members", 1.0).await;
    let mut rounds = 0;
    loop {
        let mut other = Member::join(&stage, member()).await;
        while other.held.is_empty() {
            other.step(true).await;
        }
        if other.held.len() == PARTITIONS {
            break;
        }
        rounds += 1;
        assert!(rounds < 200, "it is told more and more");
        drop(other);
        // It is given all of them back.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(rounds > 30, "it had no time to read");
    assert_eq!(stuck.ended().await.code(), Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_commit_while_there_are_some() {
    let stage = Stage::start(ARGS).await;
    let mut member = Member::join(&stage, member()).await;
    member.until_held(8).await;
    let mut grpc = stage.grpc().await;
    let commit = CommitRequest { group: "billing".to_owned(), offsets: vec![offset(0, 0)] };
    let refused = grpc.commit(commit.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    drop(member);
    stage.wait_metric("millrace_group_members", 0.0).await;
    let answer = grpc.commit(commit).await.unwrap().into_inner();
    assert!(answer.results[0].error.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_half_closes_gets_its_answers_and_leaves() {
    let stage = Stage::start(ARGS).await;
    let mut stream = stage.subscribe(member()).await;
    assert_eq!(stream.assigned().await.partitions.len(), 8);
    stream.send(Request::Acknowledgement(Acknowledgement { id: 3, offsets: vec![offset(0, 0)] }));
    stream.half_close();
    let Some(Response::Acknowledged(answer)) = stream.next().await.unwrap() else { panic!("no answer") };
    assert_eq!((answer.id, &answer.results[0].error), (3, &None));
    assert!(stream.next().await.unwrap().is_none());
    stage.wait_metric("millrace_group_members", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_consumer_and_a_subscriber_share_a_group() {
    let stage = Stage::start(ARGS).await;
    let mut subscriber = Member::join(&stage, member()).await;
    subscriber.until_held(8).await;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stage.millrace.bootstrap())
        .set("group.id", "billing")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[TOPIC]).unwrap();
    let shared = async {
        while subscriber.held.len() != 4 || consumer.assignment().unwrap().count() != 4 {
            tokio::select! {
                () = subscriber.step(true) => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            let _ = consumer.poll(Duration::ZERO);
        }
    };
    timeout(PATIENCE, shared).await.expect("they share the partitions");
    let theirs: BTreeSet<u32> =
        consumer.assignment().unwrap().elements().iter().map(|element| element.partition() as u32).collect();
    assert!(theirs.is_disjoint(&subscriber.held));
    // The consumer says goodbye in a thread of its own.
    tokio::task::spawn_blocking(move || drop(consumer));
    subscriber.until_held(8).await;
}
