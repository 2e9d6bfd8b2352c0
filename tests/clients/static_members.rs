//! Members with a `group.instance.id`, which are missed only when their session ends.

use std::time::Duration;

use crate::client::{Client, Commit, Protocol};
use crate::compatibility::Verdict;
use crate::group::Group;
use crate::stage::Stage;

#[test]
fn static_java_members_that_crash_find_their_partitions_again_and_a_duplicate_fences_them() {
    a_member_comes_back_and_is_then_fenced(Client::Java(Protocol::Classic));
}

#[test]
fn static_java_members_of_the_previous_release_find_their_partitions_again_and_a_duplicate_fences_them() {
    a_member_comes_back_and_is_then_fenced(Client::PreviousJava(Protocol::Cooperative));
}

#[test]
fn static_librdkafka_members_that_crash_find_their_partitions_again_and_a_duplicate_fences_them() {
    a_member_comes_back_and_is_then_fenced(Client::Librdkafka(Protocol::Classic));
}

fn a_member_comes_back_and_is_then_fenced(client: Client) {
    let _verdict = Verdict::of(client, "static members: in a classic group");
    let stage = Stage::start();
    stage.write(40);
    let mut group = Group::new(&[client], Commit::Sync);
    let mut members = [group.join_as(Some("one"), &stage), group.join_as(Some("two"), &stage)];
    group.settle(&stage);

    // One of the two leads the group; what holds for it holds for the other.
    for (index, instance, other) in [(0, "one", 1), (1, "two", 0)] {
        let mine = group.member(members[index]).assigned().clone();
        let undisturbed = group.member(members[other]).assignments();
        let floor = group.committed(&stage);
        stage.write(20);
        group.crash(members[index]);
        let floor = group.raise_by_answered_commits(floor);
        stage.write(20);
        members[index] = group.join_as(Some(instance), &stage);
        group.settle(&stage);
        group.assert_repeats_only_beyond(&floor);
        assert_eq!(group.member(members[index]).assigned(), &mine, "{instance} has what it had");
        assert_eq!(group.member(members[other]).assignments(), undisturbed, "the other noticed nothing");
    }

    let floor = group.committed(&stage);
    let duplicate = group.join_as(Some("two"), &stage);
    let fenced = match client {
        Client::Librdkafka(_) => "fenced by other consumer with same group.instance.id",
        _ => "FencedInstanceIdException",
    };
    group.until_ended_with(members[1], fenced);
    let floor = group.raise_by_answered_commits(floor);
    stage.write(20);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);
    assert!(!group.member(duplicate).assigned().is_empty());
}

/// Their session has not ended when they come back: they have to close properly.
#[test]
fn static_java_members_by_the_consumer_protocol_find_their_partitions_again_and_a_duplicate_is_refused() {
    a_member_comes_back_and_a_duplicate_is_refused(
        Client::Java(Protocol::Consumer),
        "UnreleasedInstanceIdException",
    );
}

#[test]
fn static_librdkafka_members_by_the_consumer_protocol_find_their_partitions_again_and_a_duplicate_is_refused()
{
    a_member_comes_back_and_a_duplicate_is_refused(
        Client::Librdkafka(Protocol::Consumer),
        "The instance ID is still used by another member in the consumer group",
    );
}

fn a_member_comes_back_and_a_duplicate_is_refused(client: Client, refusal: &str) {
    let _verdict = Verdict::of(client, "static members: by the consumer protocol");
    let stage = Stage::with_sessions_of(Duration::from_secs(30));
    stage.write(40);
    let mut group = Group::new(&[client], Commit::Sync);
    let one = group.join_as(Some("one"), &stage);
    let mut two = group.join_as(Some("two"), &stage);
    group.settle(&stage);

    let mine = group.member(two).assigned().clone();
    let undisturbed = group.member(one).assignments();
    group.leave_one(two);
    let floor = group.committed(&stage);
    stage.write(20);
    two = group.join_as(Some("two"), &stage);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);
    assert_eq!(group.member(two).assigned(), &mine, "it has what it had");
    assert_eq!(group.member(one).assignments(), undisturbed, "the other noticed nothing");

    let duplicate = group.join_as(Some("two"), &stage);
    group.until_ended_with(duplicate, refusal);
    stage.write(20);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);
    assert_eq!(group.member(two).assigned(), &mine, "it keeps what it had");
}
