//! A consumer group of one or several kinds of clients.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::client::{Client, Commit, Member, Troupe, python};
use crate::ledger::Offsets;
use crate::stage::{PARTITIONS, Stage, TOPIC};

pub const NAME: &str = "readers";

pub struct Group {
    /// Who joins, in turn.
    clients: Vec<Client>,
    commit: Commit,
    troupe: Troupe,
    /// Those who are in the group now.
    present: Vec<usize>,
    repeats_judged: usize,
    records_before_newest: usize,
}

impl Group {
    pub fn new(clients: &[Client], commit: Commit) -> Group {
        Group {
            clients: clients.to_vec(),
            commit,
            troupe: Troupe::default(),
            present: Vec::new(),
            repeats_judged: 0,
            records_before_newest: 0,
        }
    }

    pub fn join(&mut self, stage: &Stage) -> usize {
        self.join_as(None, stage)
    }

    /// Under an instance id, as a static member.
    pub fn join_as(&mut self, instance: Option<&str>, stage: &Stage) -> usize {
        self.records_before_newest = self.troupe.ledger.records().count();
        let client = self.clients[self.troupe.members().len() % self.clients.len()];
        let member = self.troupe.add(client.join_as(instance, stage, NAME, self.commit));
        self.present.push(member);
        member
    }

    /// Waits until the members share all partitions, each has one, and together they have received everything; then
    /// checks that it is right.
    pub fn settle(&mut self, stage: &Stage) {
        let truth = stage.truth();
        self.share_out();
        self.troupe.until("the members have received everything", |troupe| troupe.ledger.has_all(&truth));
        self.troupe.ledger.assert_whole(&truth);
    }

    /// Waits until the members share all partitions and each has one.
    pub fn share_out(&mut self) {
        let present = self.present.clone();
        self.troupe.until("the members share all partitions", |troupe| {
            let shares: Vec<_> = present.iter().map(|m| troupe.member(*m).assigned()).collect();
            let together: BTreeSet<_> = shares.iter().copied().flatten().collect();
            let apart = shares.iter().map(|s| s.len()).sum::<usize>() == together.len();
            let all_have_some = shares.iter().all(|s| !s.is_empty());
            together.len() == PARTITIONS && apart && all_have_some
        });
    }

    /// From now on members join with this client.
    pub fn change_client(&mut self, client: Client) {
        self.clients = vec![client];
    }

    /// One member leaves properly.
    pub fn leave_one(&mut self, member: usize) {
        self.troupe.member_mut(member).leave();
        self.present.retain(|m| *m != member);
        self.troupe.hear();
    }

    pub fn member(&self, index: usize) -> &Member {
        self.troupe.member(index)
    }

    /// Waits until a member has ended by itself, and has said why.
    pub fn until_ended_with(&mut self, member: usize, why: &str) {
        self.troupe.until(&format!("a member ends with {why}"), |troupe| {
            troupe.member(member).last_words().iter().any(|line| line.contains(why))
        });
        self.troupe.member_mut(member).end();
        self.present.retain(|m| *m != member);
    }

    /// Kills a member, after which what it has said is known.
    pub fn crash(&mut self, member: usize) {
        self.troupe.member_mut(member).crash();
        self.present.retain(|m| *m != member);
    }

    /// All members leave properly.
    pub fn leave(&mut self) {
        for member in self.present.clone() {
            self.leave_one(member);
        }
    }

    pub fn committed(&self, stage: &Stage) -> Offsets {
        committed(stage, NAME)
    }

    /// `CLASSIC` or `CONSUMER`, as the broker lists it.
    pub fn kind(&self, stage: &Stage) -> String {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/group_type.py");
        let output = python().args([program, &stage.bootstrap(), NAME]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// With the commits that were answered to any member: none of them may be forgotten (I6).
    pub fn raise_by_answered_commits(&mut self, mut floor: Offsets) -> Offsets {
        self.troupe.hear();
        for member in self.troupe.members() {
            for (partition, offset) in member.committed() {
                let known = floor.entry(*partition).or_insert(*offset);
                *known = (*known).max(*offset);
            }
        }
        floor
    }

    pub fn assert_not_below(&self, stage: &Stage, floor: &Offsets) {
        let committed = self.committed(stage);
        for (partition, offset) in floor {
            assert!(
                committed.get(partition) >= Some(offset),
                "partition {partition}: a commit of {offset} was answered, and now {committed:?} is known"
            );
        }
    }

    /// What came twice since the last call lies at or beyond what was committed; with no floor, nothing came twice.
    pub fn assert_repeats_only_beyond(&mut self, floor: &Offsets) {
        let repeats = &self.troupe.ledger.repeats()[self.repeats_judged..];
        for record in repeats {
            let explained = floor.get(&record.partition).is_some_and(|committed| record.offset >= *committed);
            assert!(explained, "{record:?} came again, though the group had committed {floor:?}");
        }
        self.repeats_judged = self.troupe.ledger.repeats().len();
    }

    /// The member that joined last found nothing but so many new events.
    pub fn assert_newest_member_saw_only(&self, events: usize) {
        assert_eq!(self.troupe.ledger.records().count() - self.records_before_newest, events);
    }
}

/// A group's committed offsets, as the broker tells them.
pub fn committed(stage: &Stage, group: &str) -> Offsets {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stage.bootstrap())
        .set("group.id", group)
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(TOPIC, 0, PARTITIONS as i32 - 1);
    // A coordinator may ask to be tried again; what it may not do is to answer with less than it has answered.
    let committed = (0..20)
        .find_map(|_| {
            let answer = consumer.committed_offsets(partitions.clone(), Duration::from_secs(10));
            answer.inspect_err(|_| std::thread::sleep(Duration::from_millis(500))).ok()
        })
        .unwrap_or_else(|| panic!("the broker does not tell the committed offsets"));
    committed
        .elements()
        .iter()
        .filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?)))
        .collect()
}
