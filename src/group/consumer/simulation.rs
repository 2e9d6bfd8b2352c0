//! Random members of both protocols that crash, stall, come back, lie and miss answers, and topics that come, grow and go,
//! against what must hold for every history: nobody reads what another has not given up, and in the end everything is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use proptest::prelude::*;

use super::member::{AWAY, Heartbeat, JOIN, LEAVE, Parts};
use super::{Assignor, State};
use crate::group::assignor::{self, Strategy as Sharing};
use crate::group::catalog::Catalog;
use crate::group::classic;
use crate::group::consumer_protocol::{self, NO_GENERATION, Subscription};
use crate::group::member::{Answer, Identity, Join, Joined, Kind, Protocol, Sync, Token};
use crate::group::protocol::{Group, Settings};
use crate::log::topics::TopicId;

/// What may happen next. Members are numbers; what they do depends on what they believe.
#[derive(Debug, Clone)]
enum Event {
    /// A client does what is next for it: heartbeats, joins, asks for its part.
    Proceed(usize),
    /// The same, and the answer gets lost.
    ProceedUnheard(usize),
    /// It has finished giving up what it was told to.
    GiveUp(usize),
    Leave(usize),
    /// A static member goes for a while, others for good.
    GoAway(usize),
    /// It is gone, and starts again without knowing anything.
    Crash(usize),
    /// It names an epoch that it is not in, and says that it has nothing.
    Lie(usize, i32),
    Subscribe(usize, u8),
    NewTopic(usize),
    Grow(usize),
    DropTopic(usize),
    Pass(u64),
}

const CLIENTS: usize = 6;
/// Those from here on speak the classic protocol.
const CLASSIC: usize = 3;
/// The one that is static.
const STATIC: usize = 0;

fn event() -> impl Strategy<Value = Event> {
    let client = 0..CLIENTS;
    prop_oneof![
        24 => client.clone().prop_map(Event::Proceed),
        2 => client.clone().prop_map(Event::ProceedUnheard),
        8 => client.clone().prop_map(Event::GiveUp),
        1 => client.clone().prop_map(Event::Leave),
        1 => client.clone().prop_map(Event::GoAway),
        1 => client.clone().prop_map(Event::Crash),
        1 => (client.clone(), -3..12i32).prop_map(|(client, epoch)| Event::Lie(client, epoch)),
        1 => (client, 0..4u8).prop_map(|(client, which)| Event::Subscribe(client, which)),
        1 => (0..4usize).prop_map(Event::NewTopic),
        1 => (0..4usize).prop_map(Event::Grow),
        1 => (0..4usize).prop_map(Event::DropTopic),
        3 => (1..3_000u64).prop_map(Event::Pass),
    ]
}

/// What a client believes, and does.
#[derive(Debug, Clone, Default)]
struct Client {
    id: Arc<str>,
    epoch: i32,
    joined: bool,
    /// What it was given last.
    given: Parts,
    /// What it reads.
    reads: Parts,
    /// Wants all topics, or only the first two; by name or by pattern.
    subscription: u8,
    /// By the classic protocol: what it waits for, and what it asks for next.
    waits: Option<Token>,
    asks: bool,
    /// By the cooperative way: it joins again when it has given up what it has lost.
    has_given_up: bool,
    leads: Option<Joined>,
    unheard: bool,
}

struct World {
    group: Group,
    settings: Settings,
    catalog: Catalog,
    topics: BTreeMap<String, (TopicId, usize)>,
    sharing: Sharing,
    now: Duration,
    clients: Vec<Client>,
    next: u64,
    epoch: i32,
}

impl World {
    fn new(cooperative: bool) -> World {
        let settings = Settings {
            classic: Arc::new(classic::Settings { initial_rebalance_delay: Duration::ZERO, max_size: 5 }),
            consumer: Arc::new(super::Settings { session_timeout: Duration::from_secs(10), max_size: 5 }),
        };
        let mut world = World {
            group: Group::Classic(classic::Group::new(settings.classic.clone(), Duration::ZERO)),
            settings,
            catalog: Catalog::default(),
            topics: BTreeMap::from([("t0".to_owned(), (TopicId(1), 4)), ("t1".to_owned(), (TopicId(2), 3))]),
            sharing: if cooperative { Sharing::CooperativeSticky } else { Sharing::Range },
            now: Duration::ZERO,
            clients: vec![Client::default(); CLIENTS],
            next: 10,
            epoch: 0,
        };
        world.look_at_topics();
        world
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn look_at_topics(&mut self) {
        let each = self.topics.iter().map(|(name, (id, count))| (name.as_str(), *id, *count));
        self.catalog = Catalog::of(each);
        self.catalog.add("t.*".into(), self.topics.values().map(|(id, _)| *id).collect());
        self.group.topics_changed(&self.catalog);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Proceed(client) => self.proceed(client),
            Event::ProceedUnheard(client) => {
                self.clients[client].unheard = true;
                self.proceed(client);
                self.clients[client].unheard = false;
            }
            Event::GiveUp(client) => self.give_up(client),
            Event::Leave(client) | Event::GoAway(client) if client >= CLASSIC => {
                let id = self.clients[client].id.clone();
                let who = Identity { member_id: &id, instance_id: None };
                self.start_again(client);
                let _ = self.group.leave(self.now, &self.settings, &self.catalog, &[who]);
            }
            Event::Leave(client) => self.go(client, LEAVE),
            Event::GoAway(client) => self.go(client, if client == STATIC { AWAY } else { LEAVE }),
            Event::Crash(client) => self.start_again(client),
            Event::Lie(client, epoch) if client >= CLASSIC => {
                let id = self.clients[client].id.clone();
                for who in ["liar", &id] {
                    let who = Identity { member_id: who, instance_id: None };
                    let _ = self.group.classic_heartbeat(self.now, who, epoch);
                }
            }
            Event::Lie(client, epoch) => {
                let known = self.clients[client].clone();
                // What it says that it does not have, it does not read.
                self.clients[client].reads.clear();
                let lie = Heartbeat {
                    member_id: known.id,
                    epoch,
                    instance_id: (client == STATIC).then(|| "i".into()),
                    owned: Some(Parts::new()),
                    ..Heartbeat::default()
                };
                if epoch != JOIN {
                    let _ = self.group.heartbeat(self.now, &self.settings, &self.catalog, &lie);
                }
            }
            Event::Subscribe(client, which) => self.clients[client].subscription = which,
            Event::NewTopic(number) => {
                // One of the same name would be another, which is not what this is about.
                let id = self.number();
                let name = format!("t{number}");
                if id < 5_000 && !self.topics.contains_key(&name) {
                    self.topics.insert(format!("t{number}-{id}"), (TopicId(id.into()), 2));
                }
                self.look_at_topics();
            }
            Event::Grow(number) => {
                if let Some((_, count)) = self.topics.values_mut().nth(number) {
                    *count += 1;
                }
                self.look_at_topics();
            }
            Event::DropTopic(number) => {
                if let Some(name) = self.topics.keys().nth(number + 2).cloned() {
                    self.topics.remove(&name);
                }
                self.look_at_topics();
            }
            Event::Pass(ms) => self.pass(ms),
        }
        self.hear();
        self.check();
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        let mut ticks = 0;
        while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.group.tick(self.now, &self.settings, &self.catalog);
            ticks += 1;
            assert!(ticks < 1_000, "the clock spins");
        }
        self.now = end;
    }

    /// Its connection closes, and it forgets all.
    fn start_again(&mut self, client: usize) {
        let subscription = self.clients[client].subscription;
        let before =
            std::mem::replace(&mut self.clients[client], Client { subscription, ..Client::default() });
        if let Some(token) = before.waits {
            self.group.cancel(self.now, token);
        }
    }

    fn go(&mut self, client: usize, epoch: i32) {
        let beat = Heartbeat {
            member_id: self.clients[client].id.clone(),
            epoch,
            instance_id: (client == STATIC).then(|| "i".into()),
            ..Heartbeat::default()
        };
        self.start_again(client);
        let _ = self.group.heartbeat(self.now, &self.settings, &self.catalog, &beat);
    }

    /// It stops reading what it was not given again.
    fn give_up(&mut self, client: usize) {
        let client = &mut self.clients[client];
        let count = |reads: &Parts| reads.values().map(BTreeSet::len).sum::<usize>();
        let before = count(&client.reads);
        for (topic, reads) in &mut client.reads {
            reads.retain(|partition| client.given.get(topic).is_some_and(|given| given.contains(partition)));
        }
        client.has_given_up |= count(&client.reads) < before;
    }

    fn names(&self, client: usize) -> BTreeSet<Arc<str>> {
        let wanted = if self.clients[client].subscription.is_multiple_of(2) { usize::MAX } else { 2 };
        self.topics.keys().take(wanted).map(|name| Arc::from(name.as_str())).collect()
    }

    fn proceed(&mut self, client: usize) {
        match client >= CLASSIC {
            true => self.proceed_classic(client),
            false => self.beat(client),
        }
    }

    // -- The consumer protocol -----------------------------------------------------------------------------------------

    fn beat(&mut self, client: usize) {
        if self.clients[client].id.is_empty() {
            self.clients[client].id = format!("c{}", self.number()).into();
        }
        let known = self.clients[client].clone();
        let by_pattern = known.subscription == 2;
        let beat = Heartbeat {
            member_id: known.id.clone(),
            epoch: if known.joined { known.epoch } else { JOIN },
            instance_id: (client == STATIC).then(|| "i".into()),
            rebalance_timeout: Some(Duration::from_secs(8)),
            names: Some(if by_pattern { BTreeSet::new() } else { self.names(client) }),
            pattern: Some(if by_pattern { "t.*" } else { "" }.into()),
            assignor: (client == 1 && known.subscription == 3).then_some(Assignor::Range),
            owned: Some(if known.joined { known.reads.clone() } else { Parts::new() }),
            client_id: "c".into(),
            client_host: "h".into(),
            rack_id: None,
        };
        if !known.joined {
            self.clients[client].reads.clear();
        }
        let was_consumer = matches!(self.group, Group::Consumer(_));
        let answer = self.group.heartbeat(self.now, &self.settings, &self.catalog, &beat);
        if known.unheard {
            return;
        }
        let own = &mut self.clients[client];
        match answer {
            Ok(answer) => {
                assert!(!known.joined || !was_consumer || answer.epoch >= known.epoch, "its epoch went back");
                (own.joined, own.epoch) = (true, answer.epoch);
                own.given = answer.assignment.expect("it asked for all");
                for (topic, given) in &own.given {
                    own.reads.entry(*topic).or_default().extend(given);
                }
            }
            Err(refused) => match refused.error {
                ResponseError::UnknownMemberId | ResponseError::FencedMemberEpoch => {
                    own.joined = false;
                    own.reads.clear();
                    own.given.clear();
                }
                ResponseError::FencedInstanceId | ResponseError::UnreleasedInstanceId => {
                    self.start_again(client)
                }
                ResponseError::GroupMaxSizeReached => {}
                error => panic!("{error:?} for {beat:?}"),
            },
        }
    }

    // -- The classic protocol ------------------------------------------------------------------------------------------

    fn proceed_classic(&mut self, client: usize) {
        let known = self.clients[client].clone();
        if known.waits.is_some() {
            return;
        }
        if !known.joined {
            return self.join(client);
        }
        if known.asks {
            return self.sync(client);
        }
        if self.sharing == Sharing::CooperativeSticky {
            self.give_up(client);
            if self.clients[client].has_given_up {
                return self.join(client);
            }
        }
        let who = Identity { member_id: &known.id, instance_id: None };
        match self.group.classic_heartbeat(self.now, who, known.epoch) {
            Ok(()) => {}
            Err(ResponseError::RebalanceInProgress) => {
                if self.sharing != Sharing::CooperativeSticky {
                    self.clients[client].reads.clear();
                }
                self.join(client);
            }
            Err(ResponseError::UnknownMemberId | ResponseError::IllegalGeneration) => {
                self.start_again(client)
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn join(&mut self, client: usize) {
        let token = Token(self.number());
        let new_member_id: Arc<str> = format!("c{}", self.number()).into();
        let known = &self.clients[client];
        let names = self.names(client);
        let mut owned: consumer_protocol::Parts<'_> = BTreeMap::new();
        for (topic, partitions) in &known.reads {
            if let Some(name) = self.catalog.name(*topic) {
                owned.insert(name, partitions.iter().copied().collect());
            }
        }
        let generation = if known.epoch == 0 { NO_GENERATION } else { known.epoch };
        let own = Subscription { topics: names.iter().map(|name| &**name).collect(), owned, generation };
        let join = Join {
            kind: Kind::Client,
            member_id: known.id.clone(),
            new_member_id,
            instance_id: None,
            client_id: "c".into(),
            client_host: "h".into(),
            session_timeout: Duration::from_secs(10),
            rebalance_timeout: Duration::from_secs(8),
            protocol_type: "consumer".into(),
            protocols: vec![Protocol { name: self.sharing.name().into(), metadata: own.encode().unwrap() }],
            requires_known_id: known.id.is_empty() && client == CLASSIC,
            can_skip_assignment: false,
        };
        self.clients[client].waits = Some(token);
        self.clients[client].has_given_up = false;
        self.group.join(self.now, &self.settings, &self.catalog, &join, token);
    }

    fn sync(&mut self, client: usize) {
        let token = Token(self.number());
        let known = &self.clients[client];
        let assignments = known.leads.as_ref().map(|joined| self.share_out(joined)).unwrap_or_default();
        let sync = Sync {
            member_id: known.id.clone(),
            instance_id: None,
            generation: known.epoch,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.clients[client].waits = Some(token);
        self.group.sync(self.now, &self.catalog, sync, token);
    }

    /// What a client that leads does.
    fn share_out(&self, joined: &Joined) -> Vec<(Arc<str>, bytes::Bytes)> {
        let subscriptions: Vec<_> =
            joined.members.iter().map(|member| Subscription::decode(&member.metadata).unwrap()).collect();
        let members: Vec<_> = joined
            .members
            .iter()
            .zip(subscriptions)
            .map(|(member, subscription)| assignor::Member {
                id: &member.member_id,
                instance_id: None,
                topics: subscription.topics.into_iter().collect(),
                owned: subscription.owned,
                generation: subscription.generation,
            })
            .collect();
        let topics = self.topics.iter().map(|(name, (_, count))| (name.as_str(), *count as i32)).collect();
        let shares = assignor::assign(self.sharing, &members, &topics);
        let ids = joined.members.iter().map(|member| member.member_id.clone());
        ids.zip(shares.parts.iter().map(|parts| consumer_protocol::encode_assignment(parts).unwrap()))
            .collect()
    }

    /// Gives the answers to those who wait for them.
    fn hear(&mut self) {
        for (token, answer) in self.group.take_answers() {
            let Some(client) = self.clients.iter().position(|client| client.waits == Some(token)) else {
                continue;
            };
            let own = &mut self.clients[client];
            own.waits = None;
            match answer {
                Answer::Join(Ok(joined)) => {
                    (own.id, own.epoch) = (joined.member_id.clone(), joined.generation);
                    (own.joined, own.asks) = (true, true);
                    own.leads = (joined.leader == joined.member_id).then_some(joined);
                }
                Answer::Join(Err(refused)) => match refused.error {
                    ResponseError::MemberIdRequired => own.id = refused.member_id,
                    ResponseError::RebalanceInProgress | ResponseError::GroupMaxSizeReached => {
                        own.joined = false
                    }
                    _ => self.start_again(client),
                },
                Answer::Sync(Ok(synced)) => {
                    let parts = consumer_protocol::decode_assignment(&synced.assignment).unwrap();
                    own.given = Parts::new();
                    for (name, partitions) in parts {
                        if let Some(topic) = self.catalog.id(name) {
                            own.given.entry(topic).or_default().extend(partitions);
                        }
                    }
                    for (topic, given) in &own.given {
                        own.reads.entry(*topic).or_default().extend(given);
                    }
                    own.asks = false;
                }
                Answer::Sync(Err(ResponseError::RebalanceInProgress)) => {
                    own.asks = false;
                    if self.sharing != Sharing::CooperativeSticky {
                        own.reads.clear();
                    }
                    own.joined = false;
                }
                Answer::Sync(Err(_)) => self.start_again(client),
            }
        }
    }

    // -- What must hold ------------------------------------------------------------------------------------------------

    fn is_member(&self, id: &str) -> bool {
        match &self.group {
            Group::Consumer(group) => group.members.contains_key(id),
            Group::Classic(group) => group.describe().members.iter().any(|member| *member.member_id == *id),
        }
    }

    /// Who reads what, of those whom the group has.
    fn readers(&self) -> BTreeMap<(TopicId, i32), usize> {
        let mut readers = BTreeMap::new();
        for (number, client) in
            self.clients.iter().enumerate().filter(|(_, client)| self.is_member(&client.id))
        {
            for (topic, partitions) in &client.reads {
                for partition in partitions {
                    let other = readers.insert((*topic, *partition), number);
                    assert_eq!(
                        other, None,
                        "{number} reads {topic} {partition} too: {:#?} {:#?}",
                        self.clients, self.group
                    );
                }
            }
        }
        readers
    }

    fn check(&mut self) {
        self.readers();
        let Group::Consumer(group) = &self.group else {
            self.epoch = 0;
            return;
        };
        assert!(group.epoch >= self.epoch, "the epoch went back");
        self.epoch = group.epoch;
        let mut owners = BTreeMap::new();
        let mut targets = BTreeSet::new();
        for (id, member) in &group.members {
            assert!(member.epoch <= group.epoch, "a member is ahead of its group");
            assert_eq!(member.size, member.measured());
            for partition in member.held() {
                assert_eq!(owners.insert(partition, id.clone()), None, "{partition:?} has two owners");
            }
            for (topic, partitions) in &member.target {
                for partition in partitions {
                    assert!(targets.insert((*topic, *partition)), "{topic} {partition} is meant for two");
                }
            }
        }
        let books: BTreeMap<_, _> = group.owners.iter().map(|(key, id)| (*key, id.clone())).collect();
        assert_eq!(owners, books);
        let wanted = group.wanted(&self.catalog);
        let all: BTreeSet<_> =
            wanted.iter().flat_map(|(topic, count)| (0..*count).map(|p| (*topic, p))).collect();
        assert_eq!(targets, all, "something is meant for nobody");
        for (instance, id) in &group.static_members {
            assert_eq!(group.members[id].instance_id.as_ref(), Some(instance));
        }
        assert!(group.members.is_empty() || self.group.next_deadline().is_some());
    }

    /// All do what they should, until nothing changes any more.
    fn settle(&mut self, alive: &[usize]) {
        for client in 0..CLIENTS {
            if !alive.contains(&client) {
                self.start_again(client);
            }
        }
        for _ in 0..70 {
            for client in alive {
                self.step(Event::Proceed(*client));
                self.step(Event::GiveUp(*client));
            }
            self.pass(400);
            self.hear();
            self.check();
        }
        let readers = self.readers();
        let wanted: BTreeSet<TopicId> = alive
            .iter()
            .flat_map(|client| match self.clients[*client].subscription {
                2 if *client < CLASSIC => self.catalog.matching("t.*").to_vec(),
                _ => self.names(*client).iter().filter_map(|name| self.catalog.id(name)).collect(),
            })
            .collect();
        let mut all = BTreeSet::new();
        for topic in wanted {
            all.extend((0..self.catalog.partitions(topic).unwrap()).map(|partition| (topic, partition)));
        }
        assert_eq!(
            readers.keys().copied().collect::<BTreeSet<_>>(),
            all,
            "not all is read: {:#?} {:#?}",
            self.clients,
            self.group
        );
        let consumers = alive.iter().any(|client| *client < CLASSIC);
        match &self.group {
            Group::Consumer(group) => {
                assert!(consumers, "still a consumer group");
                assert_eq!(group.state(), State::Stable);
                assert_eq!(group.members.len(), alive.len());
                let same = group.assignor == Assignor::Uniform
                    && alive.iter().all(|client| self.clients[*client].subscription == 0);
                if same {
                    let loads = alive
                        .iter()
                        .map(|client| readers.values().filter(|reader| *reader == client).count());
                    let loads: Vec<usize> = loads.collect();
                    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
                }
            }
            Group::Classic(_) => assert!(!consumers, "still a classic group"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_two_members_ever_read_a_partition_and_in_the_end_all_is_read(
        cooperative: bool,
        events in prop::collection::vec(event(), 1..150),
        alive in prop::sample::subsequence((0..CLIENTS).collect::<Vec<_>>(), 1..=5),
    ) {
        let mut world = World::new(cooperative);
        for event in events {
            world.step(event);
        }
        world.settle(&alive);
    }
}
