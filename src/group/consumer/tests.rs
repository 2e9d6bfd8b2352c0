//! What members of a consumer group are told, step by step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::*;
use crate::group::consumer_protocol::{self, NO_GENERATION, Subscription};
use crate::group::member::{Join, JoinRefused, Joined, Kind, Protocol, Sync, Synced};
use crate::group::{classic, protocol};

/// The topic `a`, with four partitions.
const A: TopicId = TopicId(1);
/// The topic `b`, with two partitions.
const B: TopicId = TopicId(2);

struct House {
    group: protocol::Group,
    settings: protocol::Settings,
    catalog: Catalog,
    now: Duration,
}

type Told = Result<(i32, Option<Parts>), ResponseError>;

impl House {
    fn new() -> House {
        let settings = protocol::Settings {
            classic: Arc::new(classic::Settings { initial_rebalance_delay: Duration::ZERO, max_size: 3 }),
            consumer: Arc::new(Settings { session_timeout: seconds(45), max_size: 3 }),
        };
        House {
            group: protocol::Group::Consumer(Group::new(settings.consumer.clone(), Duration::ZERO)),
            settings,
            catalog: Catalog::of([("a", A, 4), ("b", B, 2)]),
            now: Duration::ZERO,
        }
    }

    fn send(&mut self, beat: &Heartbeat) -> Told {
        let answer = self.group.heartbeat(self.now, &self.settings, &self.catalog, beat);
        answer.map(|beat| (beat.epoch, beat.assignment)).map_err(|refused| refused.error)
    }

    fn join(&mut self, id: &str, topics: &[&str]) -> Told {
        self.send(&joining(id, topics))
    }

    fn stay(&mut self, id: &str, epoch: i32) -> Told {
        self.send(&Heartbeat { member_id: id.into(), epoch, ..Heartbeat::default() })
    }

    fn own(&mut self, id: &str, epoch: i32, owned: Parts) -> Told {
        self.send(&Heartbeat { member_id: id.into(), epoch, owned: Some(owned), ..Heartbeat::default() })
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.group.tick(self.now, &self.settings, &self.catalog);
        }
        self.now = end;
    }

    fn consumers(&self) -> &Group {
        match &self.group {
            protocol::Group::Consumer(group) => group,
            protocol::Group::Classic(group) => panic!("a classic group: {group:?}"),
        }
    }

    fn classic_join(&mut self, id: &str, protocol: &str, owned: &[i32]) -> Result<Joined, JoinRefused> {
        let owned = if owned.is_empty() { Default::default() } else { [("a", owned.to_vec())].into() };
        let subscription = Subscription { topics: vec!["a"], owned, generation: NO_GENERATION };
        let protocol = Protocol { name: protocol.into(), metadata: subscription.encode().unwrap() };
        self.join_classic(id, "consumer", protocol)
    }

    fn join_classic(&mut self, id: &str, kind: &str, protocol: Protocol) -> Result<Joined, JoinRefused> {
        let join = Join {
            kind: Kind::Client,
            member_id: id.into(),
            new_member_id: "fresh".into(),
            instance_id: None,
            client_id: "c".into(),
            client_host: "h".into(),
            session_timeout: seconds(10),
            rebalance_timeout: seconds(20),
            protocol_type: kind.into(),
            protocols: vec![protocol],
            requires_known_id: false,
            can_skip_assignment: false,
        };
        self.group.join(self.now, &self.settings, &self.catalog, &join, Token(1));
        match self.group.take_answers().pop() {
            Some((Token(1), Answer::Join(answer))) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn classic_sync(&mut self, id: &str, generation: i32) -> Result<Vec<i32>, ResponseError> {
        self.sync_with(id, generation, Vec::new()).map(|synced| {
            let parts = consumer_protocol::decode_assignment(&synced.assignment).unwrap();
            parts.into_values().flatten().collect()
        })
    }

    fn sync_with(
        &mut self,
        id: &str,
        generation: i32,
        assignments: Vec<(Arc<str>, bytes::Bytes)>,
    ) -> Result<Synced, ResponseError> {
        let sync = Sync {
            member_id: id.into(),
            instance_id: None,
            generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.group.sync(self.now, &self.catalog, sync, Token(2));
        match self.group.take_answers().pop() {
            Some((Token(2), Answer::Sync(answer))) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn classic_beat(&mut self, id: &str, generation: i32) -> Result<(), ResponseError> {
        self.group.classic_heartbeat(self.now, Identity { member_id: id, instance_id: None }, generation)
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn joining(id: &str, topics: &[&str]) -> Heartbeat {
    Heartbeat {
        member_id: id.into(),
        rebalance_timeout: Some(seconds(20)),
        names: Some(topics.iter().map(|name| Arc::from(*name)).collect()),
        owned: Some(Parts::new()),
        ..Heartbeat::default()
    }
}

fn of_instance(beat: Heartbeat) -> Heartbeat {
    Heartbeat { instance_id: Some("i".into()), ..beat }
}

fn a(partitions: &[i32]) -> Parts {
    match partitions.is_empty() {
        true => Parts::new(),
        false => [(A, partitions.iter().copied().collect::<BTreeSet<i32>>())].into(),
    }
}

#[test]
fn a_member_whose_answer_got_lost_goes_on_if_it_has_no_more_than_it_should() {
    let mut house = House::new();
    house.join("one", &["a"]).unwrap();
    house.join("two", &["a"]).unwrap();
    assert_eq!(house.stay("one", 1), Ok((1, Some(a(&[0, 1])))));
    assert_eq!(house.own("one", 1, a(&[0, 1])), Ok((2, None)));
    // It has not heard of epoch 2.
    assert_eq!(house.own("one", 1, a(&[0])), Ok((2, None)));
    assert_eq!(house.own("one", 1, a(&[0, 2])), Err(ResponseError::FencedMemberEpoch));
    assert_eq!(house.stay("one", 1), Err(ResponseError::FencedMemberEpoch));
    assert_eq!(house.stay("one", 3), Err(ResponseError::FencedMemberEpoch));
    // Fenced, it joins again under its id, and gets what it had.
    assert_eq!(house.join("one", &["a"]), Ok((2, Some(a(&[0, 1])))));
}

#[test]
fn who_does_not_give_up_in_time_is_removed_and_so_is_who_is_silent() {
    let mut house = House::new();
    house.join("one", &["a"]).unwrap();
    house.join("two", &["a"]).unwrap();
    house.stay("one", 1).unwrap();
    house.pass(seconds(15));
    assert_eq!(house.stay("one", 1), Ok((1, None)), "it still has time");
    assert_eq!(house.stay("two", 2), Ok((2, None)));
    house.pass(seconds(5));
    assert_eq!(house.stay("one", 1), Err(ResponseError::UnknownMemberId));
    assert_eq!(house.stay("two", 2), Ok((3, Some(a(&[0, 1, 2, 3])))));
    house.pass(seconds(44));
    assert_eq!(house.stay("two", 3), Ok((3, None)));
    house.pass(seconds(45));
    assert_eq!(house.stay("two", 3), Err(ResponseError::UnknownMemberId));
    assert_eq!(house.consumers().state(), State::Empty);
}

#[test]
fn a_static_member_keeps_its_part_while_it_is_away_and_only_then_another_takes_its_place() {
    let mut house = House::new();
    let back = |id| of_instance(joining(id, &["a"]));
    assert_eq!(house.send(&back("one")), Ok((1, Some(a(&[0, 1, 2, 3])))));
    house.join("two", &["a"]).unwrap();
    assert_eq!(house.send(&back("again")), Err(ResponseError::UnreleasedInstanceId));
    let away =
        |id: &str| of_instance(Heartbeat { member_id: id.into(), epoch: AWAY, ..Heartbeat::default() });
    assert_eq!(house.send(&away("two")), Err(ResponseError::FencedInstanceId));
    assert_eq!(house.send(&away("one")), Ok((AWAY, None)));
    assert_eq!(house.stay("two", 2), Ok((2, None)), "what is away is still another's");
    // It has given up everything with its former self, so it gets at once what it is to keep.
    assert_eq!(house.send(&back("again")), Ok((2, Some(a(&[0, 1])))));
    assert_eq!(house.stay("two", 2), Ok((2, Some(a(&[2, 3])))));
    let former = of_instance(Heartbeat { member_id: "one".into(), epoch: 1, ..Heartbeat::default() });
    assert_eq!(house.send(&former), Err(ResponseError::FencedInstanceId));
    assert_eq!(house.consumers().epoch(), 2, "nobody else was troubled");
    assert_eq!(house.send(&away("again")), Ok((AWAY, None)));
    house.pass(seconds(40));
    assert_eq!(house.stay("two", 2), Ok((2, None)));
    house.pass(seconds(5));
    assert_eq!(house.stay("two", 2), Ok((3, Some(a(&[0, 1, 2, 3])))), "it did not come back in time");
}

#[test]
fn a_static_member_whose_answer_got_lost_joins_once_more() {
    let mut house = House::new();
    let join = of_instance(joining("one", &["a"]));
    assert_eq!(house.send(&join), Ok((1, Some(a(&[0, 1, 2, 3])))));
    assert_eq!(house.send(&join), Ok((1, Some(a(&[0, 1, 2, 3])))));
    let away = Heartbeat { epoch: AWAY, ..of_instance(joining("one", &["a"])) };
    assert_eq!(house.send(&away), Ok((AWAY, None)));
    assert_eq!(house.send(&join), Ok((1, Some(a(&[0, 1, 2, 3])))), "it comes back under its former id");
}

#[test]
fn nobody_takes_a_static_members_place_under_the_id_of_another_member() {
    let mut house = House::new();
    house.send(&of_instance(joining("one", &["a"]))).unwrap();
    house.join("two", &["a"]).unwrap();
    house.own("one", 1, a(&[0, 1])).unwrap();
    assert_eq!(house.own("one", 1, a(&[0, 1])), Ok((2, None)));
    assert_eq!(house.stay("two", 2), Ok((2, Some(a(&[2, 3])))));
    let away = Heartbeat { epoch: AWAY, ..of_instance(joining("one", &["a"])) };
    house.send(&away).unwrap();
    assert_eq!(house.send(&of_instance(joining("two", &["a"]))), Err(ResponseError::InvalidRequest));
    house.pass(seconds(44));
    house.stay("two", 2).unwrap();
    house.pass(seconds(1));
    assert_eq!(house.stay("two", 2), Ok((3, Some(a(&[0, 1, 2, 3])))), "nothing is lost");
}

#[test]
fn one_member_has_one_instance_id() {
    let mut house = House::new();
    for instance in ["i", "j", "k"] {
        let beat = Heartbeat { instance_id: Some(instance.into()), ..joining("one", &["a"]) };
        house.send(&beat).unwrap();
        let named: Vec<_> = house.consumers().static_members.iter().map(|(i, id)| (&**i, &**id)).collect();
        assert_eq!(named, [(instance, "one")]);
    }
}

#[test]
fn topics_that_come_grow_and_go_are_shared_out_to_who_wants_them() {
    let mut house = House::new();
    house.catalog.add("a|c.*".into(), vec![A]);
    let by_pattern = Heartbeat { pattern: Some("a|c.*".into()), names: None, ..joining("one", &[]) };
    assert_eq!(house.send(&by_pattern), Ok((1, Some(a(&[0, 1, 2, 3])))));
    assert_eq!(house.join("two", &["later"]), Ok((2, Some(Parts::new()))));
    house.stay("one", 1).unwrap();

    let (c, later) = (TopicId(3), TopicId(4));
    house.catalog = Catalog::of([("a", A, 5), ("b", B, 2), ("c1", c, 1), ("later", later, 1)]);
    house.catalog.add("a|c.*".into(), vec![A, c]);
    house.group.topics_changed(&house.catalog);
    let all: Parts = [(A, (0..5).collect()), (c, [0].into())].into();
    assert_eq!(house.stay("one", 2), Ok((3, Some(all))));
    assert_eq!(house.stay("two", 2), Ok((3, Some([(later, [0].into())].into()))));
    assert!(house.consumers().is_subscribed_to("c1", &house.catalog));
    assert!(!house.consumers().is_subscribed_to("b", &house.catalog));

    // What nobody wants changes nothing.
    house.catalog = Catalog::of([("a", A, 5), ("c1", c, 1), ("later", later, 1)]);
    house.catalog.add("a|c.*".into(), vec![A, c]);
    house.group.topics_changed(&house.catalog);
    assert_eq!(house.stay("one", 3), Ok((3, None)));
    // One that is gone has to be given up like any other.
    house.catalog = Catalog::of([("a", A, 5), ("later", later, 1)]);
    house.catalog.add("a|c.*".into(), vec![A]);
    house.group.topics_changed(&house.catalog);
    assert_eq!(house.stay("one", 3), Ok((3, Some(a(&[0, 1, 2, 3, 4])))));
    assert_eq!(house.own("one", 3, a(&[0, 1, 2, 3, 4])), Ok((4, None)));
}

#[test]
fn partitions_are_shared_out_as_most_who_care_want_it() {
    let mut house = House::new();
    let ranged = |id| Heartbeat { assignor: Some(Assignor::Range), ..joining(id, &["a", "b"]) };
    house.send(&ranged("one")).unwrap();
    house.join("two", &["a", "b"]).unwrap();
    assert_eq!(house.consumers().describe().assignor, Assignor::Range);
    let uniform = Heartbeat { assignor: Some(Assignor::Uniform), ..joining("three", &["a", "b"]) };
    house.send(&uniform).unwrap();
    assert_eq!(house.consumers().describe().assignor, Assignor::Uniform, "of two the first");
    house.stay("one", 1).unwrap();
    let leave = Heartbeat { member_id: "three".into(), epoch: LEAVE, ..Heartbeat::default() };
    assert_eq!(house.send(&leave), Ok((LEAVE, None)));
    assert_eq!(house.consumers().describe().assignor, Assignor::Range);
}

#[test]
fn a_full_group_takes_no_more() {
    let mut house = House::new();
    for id in ["one", "two", "three"] {
        house.join(id, &["a"]).unwrap();
    }
    assert_eq!(house.join("four", &["a"]), Err(ResponseError::GroupMaxSizeReached));
    assert_eq!(house.classic_join("", "range", &[]).unwrap_err().error, ResponseError::GroupMaxSizeReached);
    house.join("one", &["a"]).unwrap();
}

#[test]
fn a_classic_member_that_keeps_partitions_gives_up_first_and_joins_again() {
    let mut house = House::new();
    house.join("new", &["a"]).unwrap();
    let joined = house.classic_join("old", "cooperative-sticky", &[]).unwrap();
    assert_eq!((joined.generation, &*joined.protocol, &*joined.leader), (2, "cooperative-sticky", ""));
    assert_eq!(house.classic_sync("old", 2), Ok(vec![]));
    assert_eq!(house.classic_beat("old", 2), Ok(()), "it waits for the other");
    assert_eq!(house.stay("new", 1), Ok((1, Some(a(&[0, 1])))));
    assert_eq!(house.classic_beat("old", 2), Ok(()));
    assert_eq!(house.own("new", 1, a(&[0, 1])), Ok((2, None)));
    assert_eq!(house.classic_beat("old", 2), Err(ResponseError::RebalanceInProgress), "they are free");
    assert_eq!(house.classic_join("old", "cooperative-sticky", &[]).unwrap().generation, 2);
    assert_eq!(house.classic_sync("old", 2), Ok(vec![2, 3]));

    house.join("newer", &["a"]).unwrap();
    assert_eq!(house.classic_beat("old", 2), Err(ResponseError::RebalanceInProgress));
    // It joins with what it has, and is told what it keeps.
    assert_eq!(house.classic_join("old", "cooperative-sticky", &[2, 3]).unwrap().generation, 2);
    assert_eq!(house.classic_sync("old", 2), Ok(vec![2]));
    assert_eq!(house.stay("newer", 3), Ok((3, None)), "it has not given it up");
    assert_eq!(house.classic_join("old", "cooperative-sticky", &[2]).unwrap().generation, 3);
    assert_eq!(house.classic_sync("old", 3), Ok(vec![2]));
    assert_eq!(house.stay("newer", 3), Ok((3, Some(a(&[3])))));
    assert_eq!(house.classic_sync("old", 2), Err(ResponseError::IllegalGeneration));
    assert_eq!(house.classic_beat("new", 2), Err(ResponseError::UnknownMemberId), "of the other protocol");
}

#[test]
fn a_classic_member_that_does_not_come_back_in_time_is_removed() {
    let mut house = House::new();
    house.join("new", &["a"]).unwrap();
    house.classic_join("old", "range", &[]).unwrap();
    house.classic_sync("old", 2).unwrap();
    house.stay("new", 1).unwrap();
    house.own("new", 1, a(&[0, 1])).unwrap();
    for _ in 0..4 {
        assert_eq!(house.classic_beat("old", 2), Err(ResponseError::RebalanceInProgress));
        house.pass(seconds(5));
    }
    assert_eq!(house.classic_beat("old", 2), Err(ResponseError::UnknownMemberId));
    assert_eq!(house.stay("new", 2), Ok((3, Some(a(&[0, 1, 2, 3])))));
    // It may not know that it was removed, and still have what is another's.
    let back = house.classic_join("old", "range", &[2, 3]).unwrap_err();
    assert_eq!(back.error, ResponseError::UnknownMemberId);
    assert_eq!(house.classic_join("old", "range", &[]).unwrap().generation, 4);
}

#[test]
fn what_a_classic_member_has_not_given_up_goes_to_nobody_when_its_group_becomes_a_consumer_group() {
    let mut house = House::new();
    // It had all, and its leader has just taken one away, which it has to give up before it joins again.
    let joined = house.classic_join("", "cooperative-sticky", &[0, 1, 2, 3]).unwrap();
    let (id, generation) = (joined.member_id, joined.generation);
    let part = consumer_protocol::encode_assignment(&[("a", vec![0, 1, 2])].into()).unwrap();
    house.sync_with(&id, generation, vec![(id.clone(), part)]).unwrap();
    assert_eq!(house.join("new", &["a"]), Ok((2, Some(Parts::new()))));
    assert_eq!(house.stay("new", 2), Ok((2, None)));
    assert_eq!(house.classic_beat(&id, generation), Err(ResponseError::RebalanceInProgress));
    let joined = house.classic_join(&id, "cooperative-sticky", &[0, 1, 2]).unwrap();
    assert_eq!(house.classic_sync(&id, joined.generation), Ok(vec![0, 1]));
    assert_eq!(house.stay("new", 2), Ok((2, Some(a(&[3])))), "that one is free now");
    let joined = house.classic_join(&id, "cooperative-sticky", &[0, 1]).unwrap();
    assert_eq!(house.classic_sync(&id, joined.generation), Ok(vec![0, 1]));
    assert_eq!(house.stay("new", 2), Ok((2, Some(a(&[2, 3])))));
}

#[test]
fn a_group_of_something_else_than_consumers_does_not_become_a_consumer_group() {
    let mut house = House::new();
    let protocol = Protocol { name: "default".into(), metadata: bytes::Bytes::new() };
    house.join_classic("", "connect", protocol).unwrap();
    assert_eq!(house.group.kind(), "classic");
    assert_eq!(house.join("new", &["a"]), Err(ResponseError::GroupIdNotFound));
    assert_eq!(house.stay("new", 1), Err(ResponseError::UnknownMemberId));
    assert_eq!(house.group.member_count(), 1);
}
