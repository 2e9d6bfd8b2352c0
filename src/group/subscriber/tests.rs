//! Subscribers in a group, alone and with a client that speaks as Kafka's do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::time::timeout;

use super::{Change, GroupError, Membership, Subscription, TopicPartition};
use crate::group::classic::State;
use crate::group::consumer::{self, Heartbeat};
use crate::group::consumer_protocol::{self, Parts};
use crate::group::coordinator::tests::{House, house, quick};
use crate::group::member::{Identity, Join, Joined, Kind, Protocol, Sync};
use crate::group::{CommitEntry, Options};

const PATIENCE: Duration = Duration::from_secs(20);

fn subscription(topics: &[&str]) -> Subscription {
    Subscription {
        group: "g".into(),
        client_id: "grpc".into(),
        client_host: "/127.0.0.1".into(),
        topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(60),
    }
}

fn subscriber(house: &House) -> Membership {
    Membership::new(house.groups.clone(), subscription(&["orders"]))
}

async fn next(membership: &mut Membership) -> Change {
    timeout(PATIENCE, membership.next()).await.expect("nothing changes").unwrap()
}

fn partitions(numbers: &[i32]) -> BTreeSet<TopicPartition> {
    numbers.iter().map(|number| TopicPartition { topic: "orders".into(), partition: *number }).collect()
}

fn assigned(numbers: &[i32]) -> Change {
    Change::Assigned { added: partitions(numbers) }
}

fn revoked(numbers: &[i32]) -> Change {
    Change::Revoked { partitions: partitions(numbers) }
}

fn commit(partition: i32, offset: i64) -> Vec<CommitEntry> {
    vec![CommitEntry { topic: "orders".into(), partition, offset, leader_epoch: -1, metadata: "".into() }]
}

/// A JoinGroup of a Kafka client that offers one strategy.
fn client(strategy: &str, member_id: &str, topics: &[&str], owned: &[i32]) -> Join {
    let own = consumer_protocol::Subscription {
        topics: topics.to_vec(),
        owned: Parts::from([("orders", owned.to_vec())]),
        generation: 1,
    };
    Join {
        kind: Kind::Client,
        member_id: member_id.into(),
        new_member_id: "".into(),
        instance_id: None,
        client_id: "kafka".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(60),
        protocol_type: "consumer".into(),
        protocols: vec![Protocol { name: strategy.into(), metadata: own.encode().unwrap() }],
        requires_known_id: false,
        can_skip_assignment: false,
    }
}

/// The SyncGroup of a leader.
fn sync(joined: &Joined, parts: &[(&str, Bytes)]) -> Sync {
    Sync {
        member_id: joined.member_id.clone(),
        instance_id: None,
        generation: joined.generation,
        protocol_type: None,
        protocol: None,
        assignments: parts.iter().map(|(id, part)| (Arc::from(*id), part.clone())).collect(),
    }
}

fn part(numbers: &[i32]) -> Bytes {
    consumer_protocol::encode_assignment(&Parts::from([("orders", numbers.to_vec())])).unwrap()
}

fn subscribers_id(joined: &Joined) -> &str {
    &joined.members.iter().find(|member| *member.member_id != *joined.member_id).unwrap().member_id
}

#[tokio::test]
async fn subscribers_share_out_among_themselves_without_delay_and_hand_over_in_two_steps() {
    // The first generation of Kafka clients would wait for three seconds.
    let house = house(Options::default()).await;
    let mut one = subscriber(&house);
    let asked = std::time::Instant::now();
    assert_eq!(next(&mut one).await, assigned(&[0, 1]));
    assert!(asked.elapsed() < Duration::from_secs(2));

    let mut two = subscriber(&house);
    let (first, second) = tokio::join!(next(&mut one), next(&mut two));
    assert_eq!((first, second), (assigned(&[]), assigned(&[])), "what has an owner goes to nobody");
    assert_eq!(next(&mut one).await, revoked(&[1]));
    assert_eq!(one.held(), &partitions(&[0, 1]));
    // It may commit what it is asked to release, and keeps it for as long as it likes.
    assert_eq!(one.commit(commit(1, 7)).await, Ok(vec![Ok(())]));
    let both = async { tokio::join!(one.next(), two.next()) };
    assert!(timeout(Duration::from_millis(300), both).await.is_err());
    one.release();
    assert_eq!(one.commit(commit(1, 8)).await, Ok(vec![Err(ResponseError::RebalanceInProgress)]));
    let (first, second) = tokio::join!(next(&mut one), next(&mut two));
    assert_eq!((first, second), (assigned(&[]), assigned(&[1])));
    let partition = TopicPartition { topic: "orders".into(), partition: 1 };
    assert_eq!(two.committed(&partition).unwrap().offset, 7);
    assert_eq!(two.commit(commit(1, 9)).await, Ok(vec![Ok(())]));
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_dropped_subscriber_is_gone_at_once() {
    let house = house(quick()).await;
    let (mut one, mut two) = (subscriber(&house), subscriber(&house));
    assert_eq!(next(&mut one).await, assigned(&[0, 1]));
    tokio::join!(next(&mut one), next(&mut two));
    assert_eq!(next(&mut one).await, revoked(&[1]));
    one.release();
    tokio::join!(next(&mut one), next(&mut two));
    drop(one);
    assert_eq!(next(&mut two).await, assigned(&[0]));
    // Also one that has not heard whether it is in.
    let mut three = subscriber(&house);
    assert!(timeout(Duration::from_millis(50), three.next()).await.is_err());
    drop(three);
    next(&mut two).await;
    assert_eq!(two.held(), &partitions(&[0, 1]));
    drop(two);
    assert_eq!(house.groups.describe("g").unwrap().state, State::Empty);
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_subscriber_goes_on_while_its_group_becomes_a_consumer_group_and_a_classic_one_again() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    assert_eq!(next(&mut one).await, assigned(&[0, 1]));
    let beat = |epoch| Heartbeat {
        member_id: "new".into(),
        epoch,
        rebalance_timeout: Some(Duration::from_secs(10)),
        names: Some(["orders".into()].into()),
        owned: (epoch == 0).then(consumer::Parts::new),
        ..Heartbeat::default()
    };
    let joined = house.groups.consumer_heartbeat("g", &beat(0)).await.unwrap();
    assert_eq!(joined.assignment, Some(consumer::Parts::new()));
    // It is told at once, and gives up what goes to the other.
    assert_eq!(next(&mut one).await, assigned(&[]));
    assert_eq!(next(&mut one).await, revoked(&[1]));
    assert_eq!(one.commit(commit(1, 6)).await, Ok(vec![Ok(())]));
    let held = house.groups.consumer_heartbeat("g", &beat(joined.epoch)).await.unwrap();
    assert_eq!(held.assignment, None, "it has not released it");
    one.release();
    assert_eq!(next(&mut one).await, assigned(&[]));
    let given = house.groups.consumer_heartbeat("g", &beat(joined.epoch)).await.unwrap().assignment.unwrap();
    assert_eq!(given.into_values().collect::<Vec<_>>(), [BTreeSet::from([1])]);
    assert_eq!(one.held(), &partitions(&[0]));

    house.groups.consumer_heartbeat("g", &beat(consumer::LEAVE)).await.unwrap();
    assert_eq!(next(&mut one).await, assigned(&[1]));
    assert_eq!(house.groups.list()[0].kind, "classic");
    assert_eq!(one.commit(commit(0, 7)).await, Ok(vec![Ok(())]));
    drop(one);
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_kafka_client_leads_from_the_generation_in_which_it_joins() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    let (joined, leads) =
        tokio::join!(house.groups.join("g", client("cooperative-sticky", "", &["orders"], &[])), async {
            assert!(
                timeout(Duration::from_millis(300), one.next()).await.is_err(),
                "it waits for the leader"
            );
        });
    let () = leads;
    let joined = joined.unwrap();
    assert_eq!(joined.leader, joined.member_id);
    // The leader reads what the subscriber owns, where old and new clients look for it.
    let id = subscribers_id(&joined);
    let of_subscriber = joined.members.iter().find(|member| *member.member_id == *id).unwrap();
    let read = consumer_protocol::Subscription::decode(&of_subscriber.metadata).unwrap();
    assert_eq!((read.owned, read.generation), (Parts::from([("orders", vec![0, 1])]), 1));

    house.groups.sync("g", sync(&joined, &[(id, part(&[1]))])).await.unwrap();
    assert_eq!(next(&mut one).await, assigned(&[]));
    assert_eq!(next(&mut one).await, revoked(&[0]));
    // Administrators see both.
    let described = house.groups.describe("g").unwrap();
    let mut members: Vec<_> =
        described.members.iter().map(|member| (&*member.client_id, &*member.client_host)).collect();
    members.sort_unstable();
    assert_eq!(members, [("grpc", "/127.0.0.1"), ("kafka", "/127.0.0.1")]);
    // When the client has gone, the broker shares out.
    let who = Identity { member_id: &joined.member_id, instance_id: None };
    house.groups.leave("g", &[who]).unwrap();
    one.release();
    assert_eq!(next(&mut one).await, assigned(&[0]));
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_commit_between_join_and_sync_waits_for_the_leader() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    let mut joining = Box::pin(house.groups.join("g", client("cooperative-sticky", "", &["orders"], &[])));
    let joined = tokio::select! {
        joined = &mut joining => joined.unwrap(),
        change = one.next() => panic!("{change:?}"),
    };
    let id = subscribers_id(&joined);
    let parts = [(id, part(&[1]))];
    let lead = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        house.groups.sync("g", sync(&joined, &parts)).await.unwrap();
    };
    let ((), answer) = tokio::join!(lead, one.commit(commit(0, 5)));
    assert_eq!(answer, Ok(vec![Ok(())]), "it has lost the partition, and has not released it");
    assert_eq!(next(&mut one).await, assigned(&[]));
    assert_eq!(next(&mut one).await, revoked(&[0]));
    house.groups.shutdown().await;
}

#[tokio::test]
async fn for_a_client_that_only_knows_range_subscribers_give_up_everything_first() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    let mut joining = Box::pin(house.groups.join("g", client("range", "", &["orders"], &[])));
    let joined = async {
        tokio::select! {
            change = next(&mut one) => change,
            _ = &mut joining => panic!("the client is in before the subscriber has given up its partitions"),
        }
    };
    assert_eq!(joined.await, revoked(&[0, 1]));
    assert_eq!(one.commit(commit(0, 5)).await, Ok(vec![Ok(())]), "until it is released it is its own");
    one.release();
    let lead = async {
        let joined = joining.await.unwrap();
        assert_eq!((&*joined.protocol, &joined.leader), ("range", &joined.member_id));
        let id = subscribers_id(&joined);
        house.groups.sync("g", sync(&joined, &[(id, part(&[1]))])).await.unwrap();
        joined
    };
    let (joined, change) = tokio::join!(lead, next(&mut one));
    assert_eq!(change, assigned(&[1]));
    // The next rebalance asks for it before anything else.
    let mut joining = Box::pin(house.groups.join("g", client("range", &joined.member_id, &["orders"], &[])));
    tokio::select! {
        change = next(&mut one) => assert_eq!(change, revoked(&[1])),
        _ = &mut joining => panic!("the client is in before the subscriber has given up its partitions"),
    }
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_rebalance_within_a_rebalance_loses_nothing() {
    let house = house(quick()).await;
    let quick = Subscription { session_timeout: Duration::from_secs(3), ..subscription(&["orders"]) };
    let mut one = Membership::new(house.groups.clone(), quick);
    next(&mut one).await;
    let both = |member_id: &str| {
        let mut join = client("cooperative-sticky", member_id, &["orders"], &[]);
        join.protocols.extend(client("range", "", &["orders"], &[]).protocols);
        join
    };
    let mut joining = Box::pin(house.groups.join("g", both("")));
    let first = tokio::select! {
        joined = &mut joining => joined.unwrap(),
        change = one.next() => panic!("{change:?}"),
    };
    // The subscriber waits for the leader, which never shares out: before that somebody comes who only knows range.
    let mut second = Box::pin(house.groups.join("g", client("range", "", &["orders"], &[])));
    let mut again = Box::pin(house.groups.join("g", both(&first.member_id)));
    tokio::select! {
        // In this order: without the second there would be nothing to give up.
        biased;
        _ = &mut second => panic!("it is in before the subscriber has given up its partitions"),
        _ = &mut again => panic!("it is in before the subscriber has given up its partitions"),
        change = next(&mut one) => assert_eq!(change, revoked(&[0, 1])),
    }
    assert_eq!(one.commit(commit(0, 5)).await, Ok(vec![Ok(())]));
    assert!(timeout(Duration::from_secs(4), one.next()).await.is_err(), "its heartbeats are accepted");
    one.release();
    let (second, again, ()) = tokio::join!(second, again, async {
        assert!(timeout(Duration::from_millis(200), one.next()).await.is_err(), "it waits for the leader");
    });
    assert_eq!((&*second.unwrap().protocol, again.unwrap().generation), ("range", 3));
    house.groups.shutdown().await;
}

#[tokio::test]
async fn what_a_leader_gives_is_not_trusted() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    for nonsense in [
        part(&[-1, 0, 2, i32::MAX]),
        Bytes::from_static(b"\0\x01\x7f\xff\xff\xff"),
        Bytes::from_static(b"\0\x01\0\0\0\x01\0\x05other\0\0\0\x01\0\0\0\0"),
        Bytes::new(),
    ] {
        let mut joining =
            Box::pin(house.groups.join("g", client("cooperative-sticky", "", &["orders"], &[])));
        let joined = tokio::select! {
            joined = &mut joining => joined.unwrap(),
            change = one.next() => panic!("{change:?}"),
        };
        let id = subscribers_id(&joined);
        house.groups.sync("g", sync(&joined, &[(id, nonsense.clone())])).await.unwrap();
        assert_eq!(next(&mut one).await, assigned(&[]));
        let Change::Revoked { partitions } = next(&mut one).await else {
            panic!("{nonsense:?} was believed")
        };
        assert!(partitions.iter().any(|partition| partition.partition == 1), "{nonsense:?}");
        one.release();
        house.groups.leave("g", &[Identity { member_id: &joined.member_id, instance_id: None }]).unwrap();
        next(&mut one).await;
        assert_eq!(one.held().len(), 2);
    }
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_member_that_was_removed_has_lost_its_partitions_and_joins_anew() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    let id = house.groups.describe("g").unwrap().members[0].member_id.clone();
    house.groups.leave("g", &[Identity { member_id: &id, instance_id: None }]).unwrap();
    let late = one.commit(commit(0, 5)).await;
    assert_eq!(late, Err(GroupError::Rebalancing { group: "g".into() }));
    assert_eq!(next(&mut one).await, Change::Lost { partitions: partitions(&[0, 1]) });
    assert_eq!(one.held(), &partitions(&[]));
    assert_eq!(next(&mut one).await, assigned(&[0, 1]));
    assert_eq!(one.commit(commit(0, 5)).await, Ok(vec![Ok(())]));
    house.groups.shutdown().await;
}

#[tokio::test]
async fn topics_that_come_later_are_shared_out_when_they_are_there() {
    let mut house = house(quick()).await;
    let mut one = Membership::new(house.groups.clone(), subscription(&["later", "latest", "orders"]));
    assert_eq!(next(&mut one).await, assigned(&[0, 1]));
    house.add_topic("other", 1).await;
    assert!(timeout(Duration::from_millis(400), one.next()).await.is_err(), "nobody asked for it");
    house.add_topic("later", 1).await;
    house.add_topic("latest", 1).await;
    let new = |topic: &str| TopicPartition { topic: topic.into(), partition: 0 };
    assert_eq!(next(&mut one).await, Change::Assigned { added: [new("later"), new("latest")].into() });
    house.topics.remove(house.topics.by_name("later").unwrap().id);
    assert_eq!(next(&mut one).await, assigned(&[]));
    assert_eq!(next(&mut one).await, Change::Revoked { partitions: [new("later")].into() });
    house.groups.shutdown().await;
}

#[tokio::test]
async fn a_group_that_cannot_take_a_subscriber_says_why() {
    let house = house(quick()).await;
    let long = "x".repeat(40_000);
    let refused = async |subscription| {
        timeout(PATIENCE, Membership::new(house.groups.clone(), subscription).next())
            .await
            .unwrap()
            .unwrap_err()
    };
    for invalid in [
        Subscription { group: "".into(), ..subscription(&["orders"]) },
        Subscription { session_timeout: Duration::ZERO, ..subscription(&["orders"]) },
        subscription(&[&long]),
    ] {
        assert!(matches!(refused(invalid).await, GroupError::Invalid { .. }));
    }
    let sticky = Join { new_member_id: "k".into(), ..client("sticky", "", &["orders"], &[]) };
    house.groups.join("g", sticky).await.unwrap();
    assert_eq!(refused(subscription(&["orders"])).await, GroupError::Incompatible { group: "g".into() });
    assert_eq!(house.groups.describe("g").unwrap().members.len(), 1);
    house.groups.shutdown().await;
    assert_eq!(refused(subscription(&["orders"])).await, GroupError::Stopping);
}

#[tokio::test]
async fn a_stopping_broker_ends_memberships() {
    let house = house(quick()).await;
    let mut one = subscriber(&house);
    next(&mut one).await;
    house.groups.shutdown().await;
    assert_eq!(timeout(PATIENCE, one.next()).await.unwrap(), Err(GroupError::Stopping));
}
