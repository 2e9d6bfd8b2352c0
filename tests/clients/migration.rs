//! A group whose members change their protocol one after the other, while there is work.

use crate::client::{Client, Commit, Protocol};
use crate::compatibility::Verdict;
use crate::group::Group;
use crate::stage::Stage;

#[test]
fn java_members_go_over_to_the_consumer_protocol_and_back_one_by_one_and_lose_nothing() {
    a_group_goes_over_and_back(Client::Java);
}

#[test]
fn librdkafka_members_go_over_to_the_consumer_protocol_and_back_one_by_one_and_lose_nothing() {
    a_group_goes_over_and_back(Client::Librdkafka);
}

fn a_group_goes_over_and_back(client: fn(Protocol) -> Client) {
    let _verdict = Verdict::of(client(Protocol::Consumer), "change of protocol and back");
    let stage = Stage::start();
    stage.write(40);
    let mut group = Group::new(&[client(Protocol::Classic)], Commit::Sync);
    let mut members = [group.join(&stage), group.join(&stage), group.join(&stage)];
    group.settle(&stage);

    for (protocol, kind) in [(Protocol::Consumer, "CONSUMER"), (Protocol::Classic, "CLASSIC")] {
        group.change_client(client(protocol));
        for member in &mut members {
            let floor = group.committed(&stage);
            stage.write_throughout(|| {
                group.leave_one(*member);
                *member = group.join(&stage);
                group.share_out();
            });
            group.settle(&stage);
            group.assert_repeats_only_beyond(&floor);
        }
        assert_eq!(group.kind(&stage), kind);
    }
}
