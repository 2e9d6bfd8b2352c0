//! Groups of librdkafka's consumers and of subscribers inside the broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::group::Coordinator;
use millrace::group::subscriber::{Change, Membership, Subscription};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::groups::{Broker, PARTITIONS, assigned, blocking};
use crate::support::PATIENCE;

/// A librdkafka consumer with one strategy.
fn consumer(broker: &Broker, strategy: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.server.address.to_string())
        .set("group.id", "mixed")
        .set("partition.assignment.strategy", strategy)
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "200")
        .create()
        .unwrap();
    consumer.subscribe(&["orders"]).unwrap();
    consumer
}

/// A subscriber that releases at once what it is asked for. Aborted, it is gone.
struct Subscriber {
    held: watch::Receiver<BTreeSet<i32>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    fn join(groups: Arc<Coordinator>) -> Subscriber {
        let subscription = Subscription {
            group: "mixed".into(),
            client_id: "subscriber".into(),
            client_host: "/127.0.0.1".into(),
            topics: ["orders".into()].into(),
            session_timeout: Duration::from_secs(6),
            rebalance_timeout: Duration::from_secs(30),
        };
        let mut membership = Membership::new(groups, subscription);
        let (has, held) = watch::channel(BTreeSet::new());
        let task = tokio::spawn(async move {
            loop {
                if let Change::Revoked { .. } = membership.next().await.unwrap() {
                    membership.release();
                }
                has.send_replace(membership.held().iter().map(|held| held.partition).collect());
            }
        });
        Subscriber { held, task }
    }
}

/// Polls the consumers until all members together have all partitions, each so many, and none two.
fn balance(consumers: &[&BaseConsumer], subscribers: &[&Subscriber], expected: &[usize]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for consumer in consumers {
            consumer.poll(Duration::from_millis(20)).transpose().unwrap();
        }
        let consumed = consumers.iter().map(|consumer| assigned(consumer));
        let subscribed = subscribers.iter().map(|subscriber| subscriber.held.borrow().clone());
        let parts: Vec<BTreeSet<i32>> = consumed.chain(subscribed).collect();
        let mut sizes: Vec<usize> = parts.iter().map(BTreeSet::len).collect();
        sizes.sort_unstable();
        let all: BTreeSet<i32> = parts.iter().flatten().copied().collect();
        if sizes == expected && all.len() == PARTITIONS as usize {
            return;
        }
        assert!(Instant::now() < deadline, "still {parts:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Members of both kinds come and go, in both directions.
async fn come_and_go(strategy: &'static str) {
    let broker = Broker::start().await;
    let groups = broker.server.groups.clone();
    let one = Subscriber::join(groups.clone());
    let client = consumer(&broker, strategy);
    let (one, client) = blocking(move || {
        balance(&[&client], &[&one], &[2, 2]);
        (one, client)
    })
    .await;
    assert_eq!(&*groups.describe("mixed").unwrap().protocol, strategy);
    let two = Subscriber::join(groups.clone());
    let other = consumer(&broker, strategy);
    let (one, two, client, other) = blocking(move || {
        balance(&[&client, &other], &[&one, &two], &[1, 1, 1, 1]);
        (one, two, client, other)
    })
    .await;
    let gone = one;
    gone.task.abort();
    let (two, client, other) = blocking(move || {
        balance(&[&client, &other], &[&two], &[1, 1, 2]);
        (two, client, other)
    })
    .await;
    // With the clients goes whoever led.
    let two = blocking(move || {
        drop(other);
        balance(&[&client], &[&two], &[2, 2]);
        drop(client);
        balance(&[], &[&two], &[4]);
        two
    })
    .await;
    assert_eq!(&*groups.describe("mixed").unwrap().protocol, "cooperative-sticky");
    two.task.abort();
    groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_and_clients_share_all_partitions_by_range() {
    come_and_go("range").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_and_clients_share_all_partitions_by_roundrobin() {
    come_and_go("roundrobin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_and_clients_share_all_partitions_by_cooperative_sticky() {
    come_and_go("cooperative-sticky").await;
}
