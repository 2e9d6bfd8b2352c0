//! Kafka's rules for classic groups, one a test, with a virtual clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Group, Settings, State};
use crate::group::member::{
    Answer, Identity, Join, JoinRefused, Joined, Kind, Protocol, Sync, Synced, Token,
};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_secs(3);

/// A group, its clock, and the answers that its requests got.
struct Bench {
    group: Group,
    now: Duration,
    tokens: u64,
    answers: Vec<(Token, Answer)>,
}

fn bench(delay: Duration) -> Bench {
    let settings = Settings { initial_rebalance_delay: delay, max_size: 3 };
    Bench {
        group: Group::new(Arc::new(settings), Duration::ZERO),
        now: Duration::ZERO,
        tokens: 0,
        answers: Vec::new(),
    }
}

fn join(id: &str, protocols: &[&str]) -> Join {
    let protocol =
        |name: &&str| Protocol { name: (*name).into(), metadata: Bytes::from(format!("{id}:{name}")) };
    Join {
        kind: Kind::Client,
        member_id: "".into(),
        new_member_id: id.into(),
        instance_id: None,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
        protocol_type: "consumer".into(),
        protocols: protocols.iter().map(protocol).collect(),
        requires_known_id: false,
        can_skip_assignment: true,
    }
}

fn again(id: &str, protocols: &[&str]) -> Join {
    Join { member_id: id.into(), new_member_id: format!("{id}-new").into(), ..join(id, protocols) }
}

fn instance(instance: &str, new_id: &str) -> Join {
    let protocols = join(instance, &["range"]).protocols;
    Join { instance_id: Some(instance.into()), protocols, ..join(new_id, &["range"]) }
}

fn who(id: &str) -> Identity<'_> {
    Identity { member_id: id, instance_id: None }
}

impl Bench {
    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    fn join(&mut self, join: &Join) -> Token {
        let token = self.token();
        self.group.join(self.now, join, token);
        token
    }

    fn sync(&mut self, id: &str, generation: i32, assignments: &[(&str, &str)]) -> Token {
        let token = self.token();
        let part = |(id, part): &(&str, &str)| ((*id).into(), Bytes::from((*part).to_owned()));
        let sync = Sync {
            member_id: id.into(),
            instance_id: None,
            generation,
            protocol_type: None,
            protocol: None,
            assignments: assignments.iter().map(part).collect(),
        };
        self.group.sync(self.now, sync, token);
        token
    }

    /// Lets time pass as the timer task does: deadline by deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.group.tick(self.now);
        }
        self.now = end;
    }

    fn answer(&mut self, token: Token) -> Option<Answer> {
        self.answers.extend(self.group.take_answers());
        let at = self.answers.iter().position(|(answered, _)| *answered == token)?;
        Some(self.answers.remove(at).1)
    }

    fn joined(&mut self, token: Token) -> Joined {
        match self.answer(token) {
            Some(Answer::Join(Ok(joined))) => joined,
            other => panic!("not joined: {other:?}"),
        }
    }

    fn refused(&mut self, token: Token) -> JoinRefused {
        match self.answer(token) {
            Some(Answer::Join(Err(refused))) => refused,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn synced(&mut self, token: Token) -> Result<Synced, ResponseError> {
        match self.answer(token) {
            Some(Answer::Sync(answer)) => answer,
            other => panic!("no answer to a sync: {other:?}"),
        }
    }

    fn part(&mut self, token: Token) -> Bytes {
        self.synced(token).unwrap().assignment
    }

    fn heartbeat(&mut self, id: &str, generation: i32) -> Result<(), ResponseError> {
        self.group.heartbeat(self.now, who(id), generation)
    }

    fn leave(&mut self, id: &str) -> Result<(), ResponseError> {
        self.group.leave(self.now, &[who(id)]).unwrap().remove(0)
    }
}

/// A stable group of `a`, who leads, and `b`, in generation 2.
fn stable() -> Bench {
    let mut bench = bench(Duration::ZERO);
    let a = bench.join(&join("a", &["range"]));
    assert_eq!(bench.joined(a).generation, 1);
    bench.sync("a", 1, &[("a", "all")]);
    let b = bench.join(&join("b", &["range"]));
    let a = bench.join(&again("a", &["range"]));
    assert_eq!((bench.joined(a).generation, bench.joined(b).generation), (2, 2));
    let (b, a) = (bench.sync("b", 2, &[]), bench.sync("a", 2, &[("a", "first"), ("b", "second")]));
    assert_eq!((bench.part(a), bench.part(b)), (Bytes::from("first"), Bytes::from("second")));
    assert_eq!(bench.group.state(), State::Stable);
    bench
}

/// A stable group of static members `one` (id `a`, who leads) and `two` (id `b`), in generation 1.
fn stable_static() -> Bench {
    let mut bench = bench(DELAY);
    let (a, b) = (bench.join(&instance("one", "a")), bench.join(&instance("two", "b")));
    bench.pass(2 * DELAY);
    assert_eq!(&*bench.joined(a).leader, "a");
    bench.joined(b);
    bench.sync("b", 1, &[]);
    bench.sync("a", 1, &[("a", "first"), ("b", "second")]);
    assert_eq!(bench.group.state(), State::Stable);
    bench
}

#[test]
fn a_new_group_waits_for_more_members_and_again_while_they_come() {
    let mut bench = bench(DELAY);
    let a = bench.join(&join("a", &["range"]));
    bench.pass(DELAY - Duration::from_millis(1));
    let b = bench.join(&join("b", &["range"]));
    bench.pass(DELAY);
    assert!(bench.answer(a).is_none(), "a newcomer is worth another round");
    bench.pass(DELAY);
    let (a, b) = (bench.joined(a), bench.joined(b));
    assert_eq!((a.generation, b.generation), (1, 1));
    assert_eq!(a.members.len(), 2, "the leader sees all");
    assert!(b.members.is_empty(), "the others see none");
    assert_eq!((&*a.leader, &*b.leader), ("a", "a"));
}

#[test]
fn the_first_rebalance_is_put_off_no_further_than_the_rebalance_timeout() {
    let mut bench = bench(DELAY);
    bench.group.settings = Arc::new(Settings { initial_rebalance_delay: DELAY, max_size: 100 });
    let first = bench.join(&Join { rebalance_timeout: Duration::from_secs(7), ..join("m0", &["range"]) });
    let mut waited = Duration::ZERO;
    for n in 1.. {
        bench.pass(Duration::from_secs(1));
        waited += Duration::from_secs(1);
        if bench.group.state() != State::PreparingRebalance {
            break;
        }
        bench.join(&Join { rebalance_timeout: Duration::from_secs(7), ..join(&format!("m{n}"), &["range"]) });
    }
    assert_eq!(waited, Duration::from_secs(7));
    assert_eq!(bench.joined(first).members.len(), 7);
}

#[test]
fn a_new_member_gets_an_id_and_comes_back_with_it() {
    let mut bench = bench(Duration::ZERO);
    let token = bench.join(&Join { requires_known_id: true, ..join("a", &["range"]) });
    let refused = bench.refused(token);
    assert_eq!((refused.error, &*refused.member_id), (ResponseError::MemberIdRequired, "a"));
    assert_eq!(bench.group.member_count(), 0);
    let token = bench.join(&Join { requires_known_id: true, ..again("a", &["range"]) });
    assert_eq!(&*bench.joined(token).member_id, "a");
}

#[test]
fn an_id_that_nobody_comes_back_with_is_forgotten() {
    let mut bench = bench(Duration::ZERO);
    bench.join(&Join { requires_known_id: true, ..join("a", &["range"]) });
    assert!(!bench.group.is_unused());
    bench.pass(SESSION);
    assert!(bench.group.is_unused());
    let token = bench.join(&again("a", &["range"]));
    assert_eq!(bench.refused(token).error, ResponseError::UnknownMemberId);
}

#[test]
fn a_rebalance_waits_for_all_members_but_no_longer_than_their_rebalance_timeout() {
    let mut bench = stable();
    let c = bench.join(&join("c", &["range"]));
    let b = bench.join(&again("b", &["range"]));
    assert_eq!(bench.heartbeat("a", 2), Err(ResponseError::RebalanceInProgress));
    for _ in 0..12 {
        bench.pass(SESSION / 2);
        // Alive, but not back: heartbeats alone do not keep a member in.
        let _ = bench.heartbeat("a", 2);
    }
    let (b, c) = (bench.joined(b), bench.joined(c));
    assert_eq!((b.generation, &*b.leader, &*c.leader), (3, "b", "b"));
    assert_eq!(bench.heartbeat("a", 3), Err(ResponseError::UnknownMemberId));
}

#[test]
fn the_protocol_that_most_prefer_among_those_that_all_can_do_is_chosen() {
    let mut bench = bench(DELAY);
    let tokens = [
        bench.join(&join("a", &["mine", "range", "sticky"])),
        bench.join(&join("b", &["sticky", "range"])),
        bench.join(&join("c", &["sticky", "range"])),
    ];
    bench.pass(3 * DELAY);
    for token in tokens {
        assert_eq!(&*bench.joined(token).protocol, "sticky");
    }
}

#[test]
fn who_shares_no_protocol_with_the_others_is_kept_out() {
    let mut bench = stable();
    let none = bench.join(&join("c", &["sticky"]));
    let other_type = bench.join(&Join { protocol_type: "connect".into(), ..join("d", &["range"]) });
    for token in [none, other_type] {
        assert_eq!(bench.refused(token).error, ResponseError::InconsistentGroupProtocol);
    }
    assert_eq!(bench.group.state(), State::Stable);
    let mut empty = super::tests::bench(Duration::ZERO);
    let token = empty.join(&join("a", &[]));
    assert_eq!(empty.refused(token).error, ResponseError::InconsistentGroupProtocol);
}

#[test]
fn a_member_without_a_sign_of_life_is_removed_and_the_others_share_out_anew() {
    let mut bench = stable();
    bench.pass(SESSION / 2);
    bench.heartbeat("a", 2).unwrap();
    bench.pass(SESSION / 2);
    assert_eq!(bench.heartbeat("a", 2), Err(ResponseError::RebalanceInProgress));
    assert_eq!(bench.heartbeat("b", 2), Err(ResponseError::UnknownMemberId));
    let a = bench.join(&again("a", &["range"]));
    assert_eq!(bench.joined(a).generation, 3);
}

#[test]
fn a_group_that_loses_its_last_member_is_empty_and_keeps_counting() {
    let mut bench = stable();
    bench.leave("a").unwrap();
    bench.leave("b").unwrap();
    assert_eq!((bench.group.state(), bench.group.member_count()), (State::Empty, 0));
    assert_eq!(bench.leave("b"), Err(ResponseError::UnknownMemberId));
    let before = bench.group.generation();
    let c = bench.join(&join("c", &["sticky"]));
    assert!(bench.joined(c).generation > before);
}

#[test]
fn a_wrong_generation_and_a_wrong_member_are_told_apart() {
    let mut bench = stable();
    assert_eq!(bench.heartbeat("a", 1), Err(ResponseError::IllegalGeneration));
    assert_eq!(bench.heartbeat("x", 2), Err(ResponseError::UnknownMemberId));
    let (old, unknown) = (bench.sync("a", 1, &[]), bench.sync("x", 2, &[]));
    assert_eq!(bench.synced(old), Err(ResponseError::IllegalGeneration));
    assert_eq!(bench.synced(unknown), Err(ResponseError::UnknownMemberId));
    let token = bench.token();
    let sync = Sync {
        member_id: "a".into(),
        instance_id: None,
        generation: 2,
        protocol_type: None,
        protocol: Some("sticky".into()),
        assignments: Vec::new(),
    };
    bench.group.sync(bench.now, sync, token);
    assert_eq!(bench.synced(token), Err(ResponseError::InconsistentGroupProtocol));
}

#[test]
fn followers_wait_for_the_leader_and_are_told_when_the_group_starts_over() {
    let mut bench = bench(DELAY);
    let (a, b) = (bench.join(&join("a", &["range"])), bench.join(&join("b", &["range"])));
    bench.pass(2 * DELAY);
    bench.joined(a);
    bench.joined(b);
    let parked = bench.sync("b", 1, &[]);
    assert!(bench.answer(parked).is_none());
    bench.join(&join("c", &["range"]));
    assert_eq!(bench.synced(parked), Err(ResponseError::RebalanceInProgress));
}

#[test]
fn a_leader_that_does_not_share_out_in_time_is_removed() {
    let mut bench = bench(DELAY);
    let (a, b) = (bench.join(&join("a", &["range"])), bench.join(&join("b", &["range"])));
    bench.pass(2 * DELAY);
    bench.joined(a);
    bench.joined(b);
    let parked = bench.sync("b", 1, &[]);
    for _ in 0..13 {
        bench.pass(SESSION / 2);
        let _ = bench.heartbeat("a", 1);
    }
    assert_eq!(bench.synced(parked), Err(ResponseError::RebalanceInProgress));
    assert_eq!(bench.heartbeat("a", 1), Err(ResponseError::UnknownMemberId));
    let b = bench.join(&again("b", &["range"]));
    assert_eq!(&*bench.joined(b).leader, "b");
}

#[test]
fn a_leader_that_joins_again_starts_a_rebalance_and_a_follower_does_not() {
    let mut bench = stable();
    let b = bench.join(&again("b", &["range"]));
    let told = bench.joined(b);
    assert_eq!((told.generation, bench.group.state()), (2, State::Stable));
    let b = bench.sync("b", 2, &[]);
    assert_eq!(bench.part(b), Bytes::from("second"));
    let a = bench.join(&again("a", &["range"]));
    assert!(bench.answer(a).is_none());
    assert_eq!(bench.group.state(), State::PreparingRebalance);
}

#[test]
fn while_a_group_shares_out_anew_its_members_are_shown_with_what_they_had() {
    let mut bench = stable();
    bench.join(&join("c", &["range"]));
    assert_eq!(bench.group.state(), State::PreparingRebalance);
    let shown: Vec<_> =
        bench.group.describe().members.into_iter().map(|m| (m.assignment, m.metadata)).collect();
    let expected = ["first", "second", ""].map(|part| (Bytes::from(part), Bytes::new()));
    assert_eq!(shown, expected);
}

#[test]
fn a_follower_with_another_subscription_starts_a_rebalance() {
    let mut bench = stable();
    bench.join(&again("b", &["range", "sticky"]));
    assert_eq!(bench.group.state(), State::PreparingRebalance);
}

#[test]
fn a_lost_answer_to_a_join_is_given_again() {
    let mut bench = bench(Duration::ZERO);
    let a = bench.join(&join("a", &["range"]));
    let first = bench.joined(a);
    let a = bench.join(&again("a", &["range"]));
    assert_eq!(bench.joined(a), first);
}

#[test]
fn a_group_has_no_more_members_than_it_may() {
    let mut bench = stable();
    bench.join(&join("c", &["range"]));
    bench.join(&again("a", &["range"]));
    bench.join(&again("b", &["range"]));
    assert_eq!(bench.group.state(), State::CompletingRebalance);
    let d = bench.join(&join("d", &["range"]));
    assert_eq!(bench.refused(d).error, ResponseError::GroupMaxSizeReached);
    assert_eq!(bench.group.member_count(), 3);
}

#[test]
fn a_restarted_static_member_gets_its_place_back_without_a_rebalance() {
    let mut bench = stable_static();
    let b = bench.join(&instance("two", "b2"));
    let joined = bench.joined(b);
    assert_eq!((joined.generation, &*joined.leader, joined.skip_assignment), (1, "a", false));
    assert_eq!(bench.group.state(), State::Stable);
    let b = bench.sync("b2", 1, &[]);
    assert_eq!(bench.part(b), Bytes::from("second"));
    let former = Identity { member_id: "b", instance_id: Some("two") };
    assert_eq!(bench.group.heartbeat(bench.now, former, 1), Err(ResponseError::FencedInstanceId));
}

#[test]
fn a_restarted_static_leader_is_told_to_leave_the_assignment_alone() {
    let mut bench = stable_static();
    let a = bench.join(&instance("one", "a2"));
    let joined = bench.joined(a);
    assert_eq!((&*joined.leader, joined.skip_assignment, joined.members.len()), ("a2", true, 2));
    // An older client would share out: it is made to believe that another leads.
    let a = bench.join(&Join { can_skip_assignment: false, ..instance("one", "a3") });
    let joined = bench.joined(a);
    assert_eq!((&*joined.leader, joined.skip_assignment, joined.members.len()), ("a2", false, 0));
    assert_eq!(bench.group.state(), State::Stable);
}

#[test]
fn two_with_the_same_instance_id_fence_each_other() {
    let mut bench = bench(DELAY);
    let first = bench.join(&instance("one", "a"));
    let second = bench.join(&instance("one", "b"));
    assert_eq!(bench.refused(first).error, ResponseError::FencedInstanceId);
    bench.pass(2 * DELAY);
    assert_eq!(&*bench.joined(second).member_id, "b");
    let stolen = Join { member_id: "a".into(), ..instance("one", "c") };
    let stolen = bench.join(&stolen);
    assert_eq!(bench.refused(stolen).error, ResponseError::FencedInstanceId);
}

#[test]
fn a_static_member_that_is_away_keeps_its_place_for_its_session() {
    let mut bench = stable_static();
    let a = Join { member_id: "a".into(), ..instance("one", "x") };
    let a = bench.join(&a);
    assert!(bench.answer(a).is_none(), "b may still come back");
    bench.pass(SESSION);
    assert_eq!(bench.joined(a).members.len(), 1);
}

#[test]
fn an_administrator_can_remove_a_static_member_by_its_instance() {
    let mut bench = stable_static();
    let by_instance = Identity { member_id: "", instance_id: Some("two") };
    let wrong = Identity { member_id: "x", instance_id: Some("one") };
    let nobody = Identity { member_id: "", instance_id: Some("three") };
    let left = bench.group.leave(bench.now, &[by_instance, wrong, nobody]).unwrap();
    assert_eq!(left, [Ok(()), Err(ResponseError::FencedInstanceId), Err(ResponseError::UnknownMemberId)]);
    assert_eq!(bench.group.state(), State::PreparingRebalance);
}

#[test]
fn commits_are_accepted_from_members_of_the_generation_only() {
    let mut bench = stable();
    let now = bench.now;
    let mut commit = |id, generation| bench.group.validate_commit(now, who(id), generation);
    assert_eq!(commit("a", 2), Ok(()));
    assert_eq!(commit("a", 1), Err(ResponseError::IllegalGeneration));
    assert_eq!(commit("x", 2), Err(ResponseError::UnknownMemberId));
    assert_eq!(commit("", -1), Err(ResponseError::UnknownMemberId));
    let c = bench.join(&join("c", &["range"]));
    assert_eq!(bench.group.state(), State::PreparingRebalance);
    assert_eq!(
        bench.group.validate_commit(now, who("a"), 2),
        Ok(()),
        "the last word before giving up its part"
    );
    bench.leave("a").unwrap();
    bench.leave("b").unwrap();
    assert_eq!(bench.joined(c).generation, 3);
    assert_eq!(bench.group.validate_commit(now, who("c"), 3), Err(ResponseError::RebalanceInProgress));
    bench.leave("c").unwrap();
    assert_eq!(bench.group.validate_commit(now, who(""), -1), Ok(()), "nobody is in, so anybody may");
}

#[test]
fn a_waiting_request_whose_connection_closed_leaves_nothing_behind() {
    let mut bench = stable();
    // It never learned its id: nobody can come back with it.
    let c = bench.join(&join("c", &["range"]));
    bench.group.cancel(bench.now, c);
    assert_eq!(bench.group.member_count(), 2);
    // This one can come back, for as long as its session lasts.
    let a = bench.join(&again("a", &["range"]));
    bench.group.cancel(bench.now, a);
    let b = bench.join(&again("b", &["range"]));
    assert!(bench.answer(b).is_none());
    bench.pass(SESSION);
    assert_eq!(&*bench.joined(b).leader, "b");
    assert!(bench.answer(a).is_none() && bench.answer(c).is_none());
}

#[test]
fn a_second_request_of_a_member_answers_the_first() {
    let mut bench = bench(DELAY);
    let join = join("a", &["range"]);
    let first = bench.join(&join);
    let second = bench.join(&again("a", &["range"]));
    assert_eq!(bench.refused(first).error, ResponseError::RebalanceInProgress);
    bench.pass(2 * DELAY);
    bench.joined(second);
}

#[test]
fn a_dying_group_answers_all_who_wait_and_refuses_the_rest() {
    let mut bench = bench(DELAY);
    let a = bench.join(&join("a", &["range"]));
    bench.group.kill(ResponseError::CoordinatorNotAvailable);
    assert_eq!(bench.refused(a).error, ResponseError::CoordinatorNotAvailable);
    assert_eq!(bench.heartbeat("a", 1), Err(ResponseError::CoordinatorNotAvailable));
    let b = bench.join(&join("b", &["range"]));
    assert_eq!(bench.refused(b).error, ResponseError::CoordinatorNotAvailable);
    assert_eq!(bench.group.next_deadline(), None);
}

#[test]
fn static_members_that_ask_for_no_time_to_rejoin_do_not_make_the_clock_spin() {
    let mut bench = bench(Duration::ZERO);
    let zero = Join { rebalance_timeout: Duration::ZERO, ..instance("one", "a") };
    let a = bench.join(&zero);
    bench.joined(a);
    bench.sync("a", 1, &[]);
    let b = bench.join(&Join { rebalance_timeout: Duration::ZERO, ..instance("two", "b") });
    bench.group.cancel(bench.now, b);
    bench.group.tick(bench.now);
    assert!(bench.group.next_deadline().is_none_or(|next| next > bench.now));
    bench.pass(2 * SESSION);
    assert!(bench.group.is_unused());
}

// -- Virtual members -------------------------------------------------------------------------------------------------

const OFFERED: [&str; 3] = ["cooperative-sticky", "range", "roundrobin"];

/// A virtual member asks to join; again, when it is in already.
fn subscriber(id: &str, is_member: bool, keeps_partitions: bool) -> Join {
    let join = if is_member { again(id, &OFFERED) } else { join(id, &OFFERED) };
    // What it owns is in its metadata, so that no two are equal.
    let metadata = |name: &&str| Protocol {
        name: (*name).into(),
        metadata: Bytes::from(format!("{id}:{is_member}:{keeps_partitions}")),
    };
    Join {
        kind: Kind::Virtual { keeps_partitions },
        protocols: OFFERED.iter().map(metadata).collect(),
        ..join
    }
}

/// A stable group that the virtual member `v`, who leads, has for itself, in generation 1.
fn subscribed() -> Bench {
    let mut bench = bench(DELAY);
    let v = bench.join(&subscriber("v", false, false));
    assert_eq!(
        (bench.joined(v).generation, bench.group.state()),
        (1, State::CompletingRebalance),
        "no delay"
    );
    bench.sync("v", 1, &[("v", "all")]);
    bench
}

#[test]
fn a_client_leads_a_group_as_soon_as_it_has_joined_and_a_virtual_member_again_when_it_has_left() {
    let mut bench = subscribed();
    let (z, v) = (bench.join(&join("z", &["cooperative-sticky"])), bench.join(&subscriber("v", true, true)));
    let (z, v) = (bench.joined(z), bench.joined(v));
    assert_eq!((&*z.leader, &*v.leader), ("z", "z"));
    assert_eq!((z.members.len(), v.members.len()), (2, 0));
    bench.sync("z", 2, &[]);
    bench.leave("z").unwrap();
    let v = bench.join(&subscriber("v", true, true));
    let v = bench.joined(v);
    assert_eq!((&*v.leader, v.members.len(), v.generation), ("v", 1, 3));
}

#[test]
fn a_client_that_leads_leads_on_when_others_come() {
    let mut bench = subscribed();
    let (z, _) = (bench.join(&join("z", &["cooperative-sticky"])), bench.join(&subscriber("v", true, true)));
    assert_eq!(&*bench.joined(z).leader, "z");
    let a = bench.join(&join("a", &["cooperative-sticky"]));
    bench.join(&again("z", &["cooperative-sticky"]));
    bench.join(&subscriber("v", true, true));
    assert_eq!(&*bench.joined(a).leader, "z");
}

#[test]
fn virtual_members_give_up_their_partitions_before_a_generation_that_is_not_cooperative() {
    let mut bench = subscribed();
    let (z, v) = (bench.join(&join("z", &["range"])), bench.join(&subscriber("v", true, true)));
    assert_eq!(bench.refused(v).error, ResponseError::RebalanceInProgress);
    assert!(bench.answer(z).is_none(), "the client waits for it");
    // It has a whole rebalance timeout for that, as long as it sends heartbeats.
    for _ in 0..6 {
        bench.pass(SESSION - Duration::from_secs(1));
        assert_eq!(bench.heartbeat("v", 1), Err(ResponseError::RebalanceInProgress));
    }
    let v = bench.join(&subscriber("v", true, false));
    let (z, v) = (bench.joined(z), bench.joined(v));
    assert_eq!((&*z.protocol, &*v.protocol, &*v.leader), ("range", "range", "z"));
}
