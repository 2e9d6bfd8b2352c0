//! Random members that crash, stall, come back and lie, against what must hold for every history.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use proptest::prelude::*;

use super::{Group, Settings, State};
use crate::group::member::{Answer, Identity, Join, Kind, Member, Protocol, Sync, Token};

/// What may happen next. Members are numbers; what they do depends on what they believe.
#[derive(Debug, Clone)]
enum Event {
    /// Joins, with the id it has, if any; even numbers are static, two others are virtual, a third of the rest need a
    /// known id.
    Join(usize, u8),
    /// Asks for its part; a leader brings everybody's.
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Commit(usize),
    /// Its connection closes: what it waits for is cancelled.
    Disconnect(usize),
    /// Forgets its id, as after a restart.
    Crash(usize),
    /// Names a generation or member that it is not.
    Lie(usize, i32),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let member = 0..6usize;
    prop_oneof![
        8 => (member.clone(), 0..3u8).prop_map(|(m, p)| Event::Join(m, p)),
        8 => member.clone().prop_map(Event::Sync),
        4 => member.clone().prop_map(Event::Heartbeat),
        1 => member.clone().prop_map(Event::Leave),
        2 => member.clone().prop_map(Event::Commit),
        2 => member.clone().prop_map(Event::Disconnect),
        1 => member.clone().prop_map(Event::Crash),
        1 => (member, -2..5i32).prop_map(|(m, g)| Event::Lie(m, g)),
        6 => (1..4_000u64).prop_map(Event::Pass),
    ]
}

/// Which of the six are virtual members.
const VIRTUAL: [usize; 2] = [3, 5];

/// What a member believes.
#[derive(Debug, Default, Clone)]
struct Client {
    id: Arc<str>,
    generation: i32,
    leads: Option<Vec<Arc<str>>>,
    waits: Option<Token>,
}

struct World {
    group: Group,
    now: Duration,
    clients: Vec<Client>,
    next: u64,
    /// Requests that are neither answered nor cancelled, and whose they are.
    open: BTreeMap<Token, usize>,
    closed: BTreeSet<Token>,
    generation: i32,
    /// Who leads each generation.
    leaders: HashMap<i32, Arc<str>>,
    /// What the leader of a generation gave to whom.
    given: HashMap<(i32, Arc<str>), Bytes>,
    removed: BTreeSet<Arc<str>>,
}

impl World {
    fn new(delay: u64) -> World {
        let settings = Settings { initial_rebalance_delay: Duration::from_millis(delay), max_size: 5 };
        World {
            group: Group::new(Arc::new(settings), Duration::ZERO),
            now: Duration::ZERO,
            clients: vec![Client::default(); 6],
            next: 0,
            open: BTreeMap::new(),
            closed: BTreeSet::new(),
            generation: 0,
            leaders: HashMap::new(),
            given: HashMap::new(),
            removed: BTreeSet::new(),
        }
    }

    fn request(&mut self, client: usize) -> Token {
        self.next += 1;
        let token = Token(self.next);
        self.open.insert(token, client);
        self.clients[client].waits = Some(token);
        token
    }

    fn step(&mut self, event: Event) {
        let before: BTreeSet<Arc<str>> = self.group.members.keys().cloned().collect();
        match event {
            Event::Join(client, protocols) => {
                self.next += 1;
                let new_member_id: Arc<str> = format!("m{}", self.next).into();
                let token = self.request(client);
                let name = |name: &&str| Protocol { name: (*name).into(), metadata: Bytes::new() };
                let offered: &[&str] =
                    [&["range"][..], &["cooperative-sticky", "range"], &["odd"]][usize::from(protocols)];
                let (kind, offered) = match VIRTUAL.contains(&client) {
                    true => (
                        Kind::Virtual { keeps_partitions: protocols == 0 },
                        &["cooperative-sticky", "range"][..],
                    ),
                    false => (Kind::Client, offered),
                };
                let join = Join {
                    kind,
                    member_id: self.clients[client].id.clone(),
                    new_member_id,
                    instance_id: client.is_multiple_of(2).then(|| format!("i{client}").into()),
                    client_id: "c".into(),
                    client_host: "h".into(),
                    session_timeout: Duration::from_millis(2_000 + 500 * client as u64),
                    rebalance_timeout: Duration::from_millis(1_000 * client as u64),
                    protocol_type: "consumer".into(),
                    protocols: offered.iter().map(name).collect(),
                    requires_known_id: client.is_multiple_of(3) && kind == Kind::Client,
                    can_skip_assignment: client.is_multiple_of(4),
                };
                self.group.join(self.now, &join, token);
            }
            Event::Sync(client) => {
                let token = self.request(client);
                let Client { id, generation, leads, .. } = self.clients[client].clone();
                let part = |id: &Arc<str>| (id.clone(), Bytes::from(format!("{generation}/{id}")));
                let assignments: Vec<_> = leads.iter().flatten().map(part).collect();
                let was = self.group.state();
                self.group.sync(self.now, self.sync_of(&id, client, generation, assignments.clone()), token);
                if was == State::CompletingRebalance && self.group.state() == State::Stable {
                    assert_eq!(self.leaders.get(&generation), Some(&id), "only the leader shares out");
                    self.given.extend(assignments.into_iter().map(|(id, part)| ((generation, id), part)));
                }
            }
            Event::Heartbeat(client) => {
                let Client { id, generation, .. } = self.clients[client].clone();
                let alive = self.group.heartbeat(self.now, self.who(&id, client).borrow(), generation);
                self.check_removed(&id, alive);
            }
            Event::Commit(client) => {
                let Client { id, generation, .. } = self.clients[client].clone();
                let accepted =
                    self.group.validate_commit(self.now, self.who(&id, client).borrow(), generation);
                if accepted.is_ok() && generation >= 0 && !id.is_empty() {
                    assert_eq!(generation, self.group.generation(), "a commit of another generation");
                }
                self.check_removed(&id, accepted);
            }
            Event::Leave(client) => {
                let id = self.clients[client].id.clone();
                let who = self.who(&id, client);
                let _ = self.group.leave(self.now, &[who.borrow()]);
            }
            Event::Disconnect(client) => {
                if let Some(token) = self.clients[client].waits.take() {
                    self.open.remove(&token);
                    self.closed.insert(token);
                    self.group.cancel(self.now, token);
                }
            }
            Event::Crash(client) => {
                self.step(Event::Disconnect(client));
                self.clients[client] = Client::default();
            }
            Event::Lie(client, generation) => {
                let id = self.clients[client].id.clone();
                let _ = self.group.heartbeat(
                    self.now,
                    Identity { member_id: "liar", instance_id: None },
                    generation,
                );
                let _ = self.group.heartbeat(
                    self.now,
                    Identity { member_id: &id, instance_id: Some("i0") },
                    generation,
                );
                let token = self.request(client);
                let sync = self.sync_of(&id, client, generation, vec![("liar".into(), Bytes::new())]);
                if self.leaders.get(&generation) != Some(&id) {
                    self.group.sync(self.now, sync, token);
                } else {
                    self.open.remove(&token);
                    self.clients[client].waits = None;
                }
            }
            Event::Pass(ms) => {
                let end = self.now + Duration::from_millis(ms);
                let mut ticks = 0;
                while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
                    self.now = self.now.max(next);
                    self.group.tick(self.now);
                    ticks += 1;
                    assert!(ticks < 1_000, "the clock spins");
                }
                self.now = end;
            }
        }
        let after: BTreeSet<Arc<str>> = self.group.members.keys().cloned().collect();
        self.removed.extend(before.difference(&after).cloned());
        self.hear();
        self.check();
    }

    fn who(&self, id: &str, client: usize) -> Owned {
        Owned { id: id.into(), instance: client.is_multiple_of(2).then(|| format!("i{client}")) }
    }

    fn sync_of(
        &self,
        id: &Arc<str>,
        client: usize,
        generation: i32,
        assignments: Vec<(Arc<str>, Bytes)>,
    ) -> Sync {
        Sync {
            member_id: id.clone(),
            instance_id: client.is_multiple_of(2).then(|| format!("i{client}").into()),
            generation,
            protocol_type: None,
            protocol: None,
            assignments,
        }
    }

    fn check_removed(&self, id: &Arc<str>, answer: Result<(), ResponseError>) {
        if self.removed.contains(id) {
            let refused =
                matches!(answer, Err(ResponseError::UnknownMemberId | ResponseError::FencedInstanceId));
            assert!(refused, "{id} was removed, and is told {answer:?}");
        }
    }

    /// Gives the answers to those who wait for them.
    fn hear(&mut self) {
        for (token, answer) in self.group.take_answers() {
            assert!(!self.closed.contains(&token), "{token:?} is answered though it is closed");
            let client = self.open.remove(&token).expect("answered twice");
            self.closed.insert(token);
            if self.clients[client].waits == Some(token) {
                self.clients[client].waits = None;
            }
            match answer {
                Answer::Join(Ok(joined)) => {
                    if joined.leader == joined.member_id {
                        let leader = self.leaders.entry(joined.generation).or_insert(joined.leader.clone());
                        // A static leader that restarted leads on under another id.
                        if joined.skip_assignment {
                            *leader = joined.leader.clone();
                        }
                        assert_eq!(*leader, joined.leader, "two leaders in generation {}", joined.generation);
                        self.clients[client].leads =
                            Some(joined.members.iter().map(|m| m.member_id.clone()).collect());
                    } else {
                        assert!(joined.members.is_empty(), "only the leader sees the members");
                        self.clients[client].leads = None;
                    }
                    self.clients[client].id = joined.member_id;
                    self.clients[client].generation = joined.generation;
                }
                Answer::Join(Err(refused)) => match refused.error {
                    ResponseError::MemberIdRequired => self.clients[client].id = refused.member_id,
                    ResponseError::UnknownMemberId | ResponseError::FencedInstanceId => {
                        self.clients[client] =
                            Client { waits: self.clients[client].waits, ..Client::default() };
                    }
                    _ => {}
                },
                Answer::Sync(Ok(synced)) => {
                    let Client { id, generation, .. } = &self.clients[client];
                    if let Some(given) = self.given.get(&(*generation, id.clone())) {
                        assert_eq!(synced.assignment, *given, "{id} got another's part in {generation}");
                    }
                }
                Answer::Sync(Err(_)) => {}
            }
        }
    }

    fn check(&mut self) {
        assert!(self.group.generation() >= self.generation, "the generation went back");
        self.generation = self.group.generation();
        let waiting: BTreeSet<Token> = self
            .group
            .members
            .values()
            .filter_map(|member| match member.waiting {
                super::Waiting::Nothing => None,
                super::Waiting::Join(token) | super::Waiting::Sync(token) => Some(token),
            })
            .collect();
        let open: BTreeSet<Token> = self.open.keys().copied().collect();
        assert_eq!(waiting, open, "a request was lost, or waits for ever");
        let members = &self.group.members;
        match self.group.state() {
            State::Empty => assert!(members.is_empty()),
            State::CompletingRebalance | State::Stable => {
                let leader = self.group.leader.as_ref().expect("a leader");
                assert!(members.contains_key(leader), "the leader is no member");
                let protocol = self.group.protocol.as_deref().expect("a protocol");
                assert!(members.values().all(|member| member.supports(protocol)));
                let keeps = members.values().any(Member::keeps_partitions);
                assert!(!keeps || protocol == "cooperative-sticky", "partitions are kept under {protocol}");
                // Static clients may be away.
                let in_person = |member: &Member| member.is_client() && member.instance_id.is_none();
                assert!(
                    members[leader].is_client() || !members.values().any(in_person),
                    "a virtual member leads clients"
                );
            }
            State::PreparingRebalance | State::Dead => {}
        }
        for (instance, id) in &self.group.static_members {
            assert_eq!(members[id].instance_id.as_ref(), Some(instance));
        }
        // Whatever state it is in, time alone brings it on.
        assert!(members.is_empty() || self.group.next_deadline().is_some() || open.len() == members.len());
    }
}

struct Owned {
    id: String,
    instance: Option<String>,
}

impl Owned {
    fn borrow(&self) -> Identity<'_> {
        Identity { member_id: &self.id, instance_id: self.instance.as_deref() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_history_of_members_breaks_a_group(
        delay in prop_oneof![Just(0u64), Just(700)],
        events in prop::collection::vec(event(), 1..150),
    ) {
        let mut world = World::new(delay);
        for event in events {
            world.step(event);
        }
        // When everybody falls silent, the group empties, and every request that waits is answered.
        for client in 0..6 {
            world.step(Event::Disconnect(client));
        }
        let open: Vec<Token> = world.open.keys().copied().collect();
        for token in open {
            world.open.remove(&token);
            world.closed.insert(token);
            world.group.cancel(world.now, token);
        }
        world.step(Event::Pass(120_000));
        prop_assert!(world.group.is_unused(), "{:?}", world.group);
    }
}
