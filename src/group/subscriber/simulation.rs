//! Random subscribers and clients like Kafka's, of both protocols, that come, go, crash, stall and dawdle in one group, with a clock of their
//! own, against what must hold at every moment: no partition is read by two who are alive, and when all have calmed down,
//! each is read by one.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::lead::share_out;
use super::{Change, Membership, Subscription, TopicPartition, assigned, new_member_id};
use crate::group::consumer::{self, Heartbeat};
use crate::group::consumer_protocol::{self, Parts};
use crate::group::coordinator::tests::{House, house, quick};
use crate::group::member::{Identity, Join, Kind, Protocol, Sync};
use crate::group::{Coordinator, Options};
use crate::log::topics::Topics;

const SESSION: Duration = Duration::from_secs(6);
const REBALANCE: Duration = Duration::from_secs(20);
/// Where clients come from.
const CLIENT: &str = "/client";
const TOPICS: [&str; 3] = ["orders", "items", "people"];

/// Who takes part. A client names its strategies; it is a cooperative one where all of them are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Subscriber,
    Cooperative,
    Eager,
    /// As Java's consumer by default: `range`, or `cooperative-sticky` in the way of an eager client.
    Both,
    /// By the protocol of KIP-848, which makes a consumer group of a classic one.
    Modern,
}

impl Who {
    fn strategies(self) -> &'static [&'static str] {
        match self {
            Who::Subscriber | Who::Modern => &[],
            Who::Cooperative => &["cooperative-sticky"],
            Who::Eager => &["range"],
            Who::Both => &["range", "cooperative-sticky"],
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// Comes, with this many of the topics. One who is there already leaves first.
    Come(usize, Who, usize),
    Leave(usize),
    /// Is gone without a word, as a process that was killed. A subscriber's stream ends with its connection.
    Crash(usize),
    /// Does nothing for so long, and knows nothing of it.
    Stall(usize, Duration),
    Pass(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let member = 0..5usize;
    let who = prop_oneof![
        4 => Just(Who::Subscriber),
        2 => Just(Who::Cooperative),
        1 => Just(Who::Eager),
        1 => Just(Who::Both),
        2 => Just(Who::Modern),
    ];
    prop_oneof![
        6 => (member.clone(), who, 1..4usize).prop_map(|(member, who, topics)| Event::Come(member, who, topics)),
        1 => member.clone().prop_map(Event::Leave),
        1 => member.clone().prop_map(Event::Crash),
        1 => (member, 1..30u64).prop_map(|(member, s)| Event::Stall(member, Duration::from_secs(s))),
        6 => (0..6_000u64).prop_map(|ms| Event::Pass(Duration::from_millis(ms))),
    ]
}

/// Who reads what.
#[derive(Debug, Default)]
struct Ledger {
    readers: BTreeMap<TopicPartition, usize>,
    /// Since when members have done nothing, and until when.
    stalled: BTreeMap<usize, (Instant, Instant)>,
}

#[derive(Debug, Clone, Default)]
struct Books(Arc<Mutex<Ledger>>);

impl Books {
    fn take(&self, member: usize, partitions: &BTreeSet<TopicPartition>) {
        let mut ledger = self.0.lock().unwrap();
        for partition in partitions {
            if let Some(reader) = ledger.readers.insert(partition.clone(), member)
                && reader != member
            {
                // One who is silent for its session timeout is taken for dead. Its last heartbeat may have been some
                // time before it stalled.
                let dead = ledger.stalled.get(&reader).is_some_and(|(since, until)| {
                    let until = *until + Duration::from_millis(1);
                    until - *since >= SESSION * 2 / 3 && Instant::now() <= until
                });
                assert!(dead, "{member} is given {partition:?}, which {reader} still reads");
            }
        }
    }

    fn give_up(&self, member: usize, partitions: &BTreeSet<TopicPartition>) {
        let mut ledger = self.0.lock().unwrap();
        ledger.readers.retain(|partition, reader| *reader != member || !partitions.contains(partition));
    }

    fn is_gone(&self, member: usize) {
        let mut ledger = self.0.lock().unwrap();
        ledger.readers.retain(|_, reader| *reader != member);
        ledger.stalled.remove(&member);
    }

    async fn stall(&self, member: usize, time: Duration) {
        let (now, until) = (Instant::now(), Instant::now() + time);
        self.0.lock().unwrap().stalled.insert(member, (now, until));
        sleep_until(until).await;
    }
}

/// What a member is told to do.
enum Order {
    Stall(Duration),
    Leave,
}

/// One who takes part.
struct Player {
    number: usize,
    topics: usize,
    who: Who,
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

fn subscription(group: &str, number: usize, topics: usize) -> Subscription {
    Subscription {
        group: group.into(),
        client_id: format!("m{number}").into(),
        client_host: CLIENT.into(),
        topics: TOPICS[..topics].iter().map(|topic| Arc::from(*topic)).collect(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
    }
}

async fn subscribe(
    groups: Arc<Coordinator>,
    own: Subscription,
    number: usize,
    books: Books,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut membership = Membership::new(groups, own);
    let mut release_at: Option<(Instant, BTreeSet<TopicPartition>)> = None;
    let mut dawdled = 0;
    loop {
        let releasing = release_at.clone();
        let release = async {
            match &releasing {
                Some((at, _)) => sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Stall(time)) => books.stall(number, time).await,
                Some(Order::Leave) | None => break,
            },
            () = release => {
                if let Some((_, partitions)) = release_at.take() {
                    books.give_up(number, &partitions);
                    membership.release();
                }
            }
            change = membership.next() => {
                match change {
                    Ok(Change::Assigned { added }) => books.take(number, &added),
                    Ok(Change::Revoked { partitions }) => {
                        // It takes its time to release, now more and now less.
                        dawdled = (dawdled + 1) % 4;
                        release_at = Some((Instant::now() + Duration::from_secs(dawdled * 3), partitions));
                    }
                    Ok(Change::Lost { partitions }) => {
                        release_at = None;
                        books.give_up(number, &partitions);
                    }
                    // Its strategies and those of the clients do not go together; it asks again later.
                    Err(_) => {
                        books.is_gone(number);
                        sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    }
    drop(membership);
    books.is_gone(number);
}

/// A client as Kafka's classic consumers are.
struct Client {
    groups: Arc<Coordinator>,
    own: Subscription,
    who: Who,
    number: usize,
    books: Books,
    house: Topics,
    id: Arc<str>,
    generation: i32,
    held: BTreeSet<TopicPartition>,
}

impl Client {
    /// Joins and syncs. `None` when it has to do so again.
    async fn rebalance(&mut self) -> Option<()> {
        if self.who != Who::Cooperative {
            self.books.give_up(self.number, &self.held);
            self.held.clear();
        }
        let mut owned = Parts::new();
        for TopicPartition { topic, partition } in &self.held {
            owned.entry(topic).or_default().push(*partition);
        }
        let topics = self.own.topics.iter().map(|topic| &**topic).collect();
        let own = consumer_protocol::Subscription { topics, owned, generation: self.generation };
        let metadata = own.encode().unwrap();
        let offer = |name: &&str| Protocol { name: (*name).into(), metadata: metadata.clone() };
        let join = Join {
            kind: Kind::Client,
            member_id: self.id.clone(),
            new_member_id: "".into(),
            instance_id: None,
            client_id: self.own.client_id.clone(),
            client_host: self.own.client_host.clone(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".into(),
            protocols: self.who.strategies().iter().map(offer).collect(),
            requires_known_id: false,
            can_skip_assignment: false,
        };
        let group = self.own.group.clone();
        let joined = match self.groups.join(&group, join).await {
            Ok(joined) => joined,
            Err(_) => {
                self.lose();
                sleep(Duration::from_secs(1)).await;
                return None;
            }
        };
        self.id = joined.member_id.clone();
        let assignments: Vec<(Arc<str>, Bytes)> = match joined.leader == joined.member_id {
            true => share_out(&joined.protocol, &joined.members, &self.house).assignments,
            false => {
                let members = self.groups.describe(&group).map(|group| group.members).unwrap_or_default();
                let leader = members.iter().find(|member| member.member_id == joined.leader);
                let is_client = leader.is_none_or(|leader| &*leader.client_host == CLIENT);
                assert!(is_client, "a subscriber leads a client");
                Vec::new()
            }
        };
        let sync = Sync {
            member_id: joined.member_id,
            instance_id: None,
            generation: joined.generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        let synced = match self.groups.sync(&group, sync).await {
            Ok(synced) => synced,
            Err(ResponseError::RebalanceInProgress) => return None,
            Err(_) => {
                self.lose();
                return None;
            }
        };
        self.generation = joined.generation;
        let who = Identity { member_id: &self.id, instance_id: None };
        if self.groups.heartbeat(&group, who, self.generation) == Err(ResponseError::UnknownMemberId) {
            // It has stalled over the answer, which is outdated.
            self.lose();
            return None;
        }
        let given = assigned(&self.own, &synced.assignment, &self.house);
        let lost: BTreeSet<_> = self.held.difference(&given).cloned().collect();
        self.books.give_up(self.number, &lost);
        self.books.take(self.number, &given);
        self.held = given;
        (self.who != Who::Cooperative || lost.is_empty()).then_some(())
    }

    fn lose(&mut self) {
        self.books.give_up(self.number, &self.held);
        self.held.clear();
        self.id = "".into();
        self.generation = -1;
    }

    async fn consume(&mut self) {
        loop {
            while self.rebalance().await.is_none() {}
            loop {
                sleep(SESSION / 3).await;
                let who = Identity { member_id: &self.id, instance_id: None };
                match self.groups.heartbeat(&self.own.group, who, self.generation) {
                    Ok(()) => {}
                    Err(ResponseError::RebalanceInProgress) => break,
                    Err(_) => {
                        self.lose();
                        break;
                    }
                }
            }
        }
    }

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let books = self.books.clone();
            let number = self.number;
            // What it is about is put off while it stalls, not cancelled: its connection stays open.
            let mut consume = Box::pin(self.consume());
            let leaves = loop {
                tokio::select! {
                    () = &mut consume => {}
                    order = orders.recv() => match order {
                        Some(Order::Stall(time)) => books.stall(number, time).await,
                        Some(Order::Leave) | None => break true,
                    }
                }
            };
            drop(consume);
            if leaves {
                self.books.is_gone(self.number);
                let who = Identity { member_id: &self.id, instance_id: None };
                let _ = self.groups.leave(&self.own.group, &[who]);
                return;
            }
        }
    }
}

/// A client as Kafka's consumers of the new protocol are.
struct Modern {
    groups: Arc<Coordinator>,
    own: Subscription,
    number: usize,
    books: Books,
    topics: Topics,
    id: Arc<str>,
    epoch: i32,
    held: BTreeSet<TopicPartition>,
    /// What it is told to give up, and when it will have done that.
    releasing: Option<(Instant, BTreeSet<TopicPartition>)>,
    dawdled: u64,
}

impl Modern {
    /// Says what it has, and takes up the answer. When it has to do so again.
    async fn beat(&mut self) -> Instant {
        let mut owned = consumer::Parts::new();
        for TopicPartition { topic, partition } in &self.held {
            let topic = self.topics.by_name(topic).unwrap().id;
            owned.entry(topic).or_default().insert(*partition);
        }
        let beat = Heartbeat {
            member_id: self.id.clone(),
            epoch: self.epoch,
            rebalance_timeout: Some(REBALANCE),
            names: Some(self.own.topics.clone()),
            owned: Some(owned),
            ..Heartbeat::default()
        };
        let later = Instant::now() + SESSION / 3;
        let answer = match self.groups.consumer_heartbeat(&self.own.group, &beat).await {
            Ok(answer) => answer,
            Err(_) => {
                self.books.is_gone(self.number);
                self.held.clear();
                self.releasing = None;
                let joins = self.epoch == consumer::JOIN;
                self.epoch = consumer::JOIN;
                return if joins { later } else { Instant::now() };
            }
        };
        self.epoch = answer.epoch;
        let mut given = BTreeSet::new();
        for (topic, partitions) in answer.assignment.unwrap() {
            let topic: Arc<str> = self.topics.by_id(topic).unwrap().name.as_str().into();
            given.extend(
                partitions.into_iter().map(|partition| TopicPartition { topic: topic.clone(), partition }),
            );
        }
        let lost: BTreeSet<_> = self.held.difference(&given).cloned().collect();
        self.books.take(self.number, &given);
        self.held.extend(given);
        if lost.is_empty() {
            self.releasing = None;
            return later;
        }
        // It takes its time to release, now more and now less.
        self.dawdled = (self.dawdled + 1) % 4;
        let at = Instant::now() + Duration::from_secs(self.dawdled * 3);
        let (at, _) = self.releasing.take().unwrap_or((at, BTreeSet::new()));
        self.releasing = Some((at, lost));
        later.min(at)
    }

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            if let Some((_, lost)) = self.releasing.take_if(|(at, _)| *at <= Instant::now()) {
                self.books.give_up(self.number, &lost);
                self.held.retain(|partition| !lost.contains(partition));
            }
            let next = self.beat().await;
            tokio::select! {
                () = sleep_until(next) => {}
                order = orders.recv() => match order {
                    Some(Order::Stall(time)) => self.books.stall(self.number, time).await,
                    Some(Order::Leave) | None => break,
                }
            }
        }
        self.books.is_gone(self.number);
        let leaves = Heartbeat { member_id: self.id, epoch: consumer::LEAVE, ..Heartbeat::default() };
        let _ = self.groups.consumer_heartbeat(&self.own.group, &leaves).await;
    }
}

struct World<'a> {
    house: &'a House,
    group: String,
    books: Books,
    players: BTreeMap<usize, Player>,
}

impl World<'_> {
    async fn step(&mut self, event: Event) {
        match event {
            Event::Come(number, who, topics) => {
                Box::pin(self.step(Event::Leave(number))).await;
                let (orders, received) = mpsc::unbounded_channel();
                let groups = self.house.groups.clone();
                let mut own = subscription(&self.group, number, topics);
                let books = self.books.clone();
                let task = match who {
                    Who::Subscriber => {
                        own.client_host = "/subscriber".into();
                        tokio::spawn(subscribe(groups, own, number, books, received))
                    }
                    Who::Modern => {
                        let id = new_member_id("modern").unwrap();
                        let (topics, held) = (self.house.topics.clone(), BTreeSet::new());
                        let (epoch, releasing, dawdled) = (consumer::JOIN, None, 0);
                        let modern = Modern {
                            groups,
                            own,
                            number,
                            books,
                            topics,
                            id,
                            epoch,
                            held,
                            releasing,
                            dawdled,
                        };
                        tokio::spawn(modern.run(received))
                    }
                    who => {
                        let house = self.house.topics.clone();
                        let (id, generation, held) = ("".into(), -1, BTreeSet::new());
                        let client = Client { groups, own, who, number, books, house, id, generation, held };
                        tokio::spawn(client.run(received))
                    }
                };
                self.players.insert(number, Player { number, topics, who, orders, task });
            }
            Event::Leave(number) => {
                if let Some(player) = self.players.remove(&number) {
                    let _ = player.orders.send(Order::Leave);
                    player.task.await.unwrap();
                }
            }
            Event::Crash(number) => {
                if let Some(player) = self.players.remove(&number) {
                    self.books.is_gone(number);
                    player.task.abort();
                    if let Err(error) = player.task.await
                        && error.is_panic()
                    {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
            Event::Stall(number, time) => {
                if let Some(player) = self.players.get(&number) {
                    let _ = player.orders.send(Order::Stall(time));
                }
            }
            Event::Pass(time) => sleep(time).await,
        }
        let failed: Vec<usize> =
            self.players.values().filter(|p| p.task.is_finished()).map(|p| p.number).collect();
        for number in failed {
            self.players.remove(&number).unwrap().task.await.unwrap();
        }
    }

    /// When nobody has been disturbed for a while, every partition that somebody wants is read.
    async fn calm_down(mut self) {
        self.step(Event::Pass(Duration::from_secs(1_200))).await;
        let eager = self.players.values().any(|player| player.who == Who::Eager);
        let cooperative = self.players.values().any(|player| player.who == Who::Cooperative);
        // Clients that do not go together keep each other, or the subscribers, out.
        if !(eager && cooperative) {
            let most = self.players.values().map(|player| player.topics).max().unwrap_or(0);
            let topics = TOPICS[..most].iter().filter_map(|topic| self.house.topics.by_name(topic));
            let wanted: usize = topics.map(|topic| topic.partitions.len()).sum();
            let ledger = self.books.0.lock().unwrap();
            assert_eq!(ledger.readers.len(), wanted, "{ledger:?}");
        }
        for number in 0..5 {
            self.step(Event::Leave(number)).await;
        }
        assert!(self.books.0.lock().unwrap().readers.is_empty());
    }
}

#[test]
fn subscribers_and_clients_of_one_group_never_read_a_partition_at_once_and_always_read_all() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let house = runtime.block_on(async {
        let options = Options { consumer_session_timeout: SESSION, ..quick() };
        let mut house = house(options).await;
        house.add_topic("items", 5).await;
        house.add_topic("people", 1).await;
        house
    });
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let histories = prop::collection::vec(event(), 1..30);
    let case = Cell::new(0);
    let result = runner.run(&histories, |events| {
        case.set(case.get() + 1);
        runtime.block_on(async {
            let group = format!("g{}", case.get());
            let mut world = World { house: &house, group, books: Books::default(), players: BTreeMap::new() };
            for event in events {
                world.step(event).await;
            }
            world.calm_down().await;
        });
        Ok(())
    });
    result.unwrap();
    runtime.block_on(house.groups.shutdown());
}
