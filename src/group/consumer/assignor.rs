//! How the broker shares out partitions in a consumer group: Kafka's `uniform` and `range`.
//!
//! `range` gives every subscriber of a topic a run of its partitions, the first ones one more where they do not divide.
//! `uniform` follows Kafka's contract by an algorithm of its own:
//!
//! * **Sticky**: a member keeps what it was to have unless another has at least two partitions fewer.
//! * **Balanced**: no partition could go to a subscriber of its topic that has two partitions fewer than its owner. With
//!   equal subscriptions this means that nobody has two more than another.
//!
//! Members with equal subscriptions are looked at as one class, so that with few different subscriptions the work grows with
//! the partitions and not with topics times members. Where every member has another long list of topics it does grow with
//! their product: each partition that is given changes its member's place in the audience of every topic that it wants.
//! Equal input gives equal output.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Parts;
use crate::log::topics::TopicId;

/// A way of sharing out partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// Balanced over all topics, and sticky. What a group uses whose members ask for nothing.
    Uniform,
    /// By topic, in runs.
    Range,
}

impl Assignor {
    /// Kafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Assignor> {
        [Assignor::Uniform, Assignor::Range].into_iter().find(|assignor| assignor.name() == name)
    }

    /// Shares out topics with these numbers of partitions. `members` come in the order in which they are served; each
    /// names its class and what it was to have before, each class the topics that its members want.
    pub(super) fn share_out(
        self,
        topics: &BTreeMap<TopicId, i32>,
        classes: &[BTreeSet<TopicId>],
        members: &[(usize, &Parts)],
    ) -> Vec<Parts> {
        match self {
            Assignor::Uniform => Uniform::new(topics, classes, members).share_out(),
            Assignor::Range => range(topics, classes, members),
        }
    }
}

fn range(
    topics: &BTreeMap<TopicId, i32>,
    classes: &[BTreeSet<TopicId>],
    members: &[(usize, &Parts)],
) -> Vec<Parts> {
    let mut shares = vec![Parts::new(); members.len()];
    for (topic, partitions) in topics {
        let wants: Vec<bool> = classes.iter().map(|class| class.contains(topic)).collect();
        let sharers: Vec<usize> = (0..members.len()).filter(|member| wants[members[*member].0]).collect();
        let (mut first, mut left) = (0, *partitions);
        for (position, member) in sharers.iter().enumerate() {
            let sharers = (sharers.len() - position) as i32;
            // Rounded up, so that the first ones get what does not divide.
            let share = (left + sharers - 1) / sharers;
            if share > 0 {
                shares[*member].insert(*topic, (first..first + share).collect());
            }
            first += share;
            left -= share;
        }
    }
    shares
}

/// Topics that the same classes want.
#[derive(Default)]
struct Audience {
    /// What each member has of them.
    held: HashMap<usize, Vec<(TopicId, i32)>>,
    vacant: Vec<(TopicId, i32)>,
    /// All who want them, by how many partitions they have.
    takers: BTreeSet<(usize, usize)>,
    /// Those of them who have one.
    givers: BTreeSet<(usize, usize)>,
}

struct Uniform {
    audiences: Vec<Audience>,
    /// Which audiences a class is in.
    of_class: Vec<Vec<usize>>,
    class: Vec<usize>,
    loads: Vec<usize>,
}

impl Uniform {
    fn new(
        topics: &BTreeMap<TopicId, i32>,
        classes: &[BTreeSet<TopicId>],
        members: &[(usize, &Parts)],
    ) -> Uniform {
        let mut by_classes: BTreeMap<Vec<usize>, Vec<(TopicId, i32)>> = BTreeMap::new();
        for (topic, count) in topics {
            let wanting: Vec<usize> =
                (0..classes.len()).filter(|class| classes[*class].contains(topic)).collect();
            if !wanting.is_empty() {
                by_classes.entry(wanting).or_default().push((*topic, *count));
            }
        }
        // Those whom few want first: who wants others too can still be given these.
        let mut audiences: Vec<_> = by_classes.into_iter().collect();
        audiences.sort_by_key(|(wanting, _)| wanting.len());
        let mut uniform = Uniform {
            audiences: Vec::with_capacity(audiences.len()),
            of_class: vec![Vec::new(); classes.len()],
            class: members.iter().map(|(class, _)| *class).collect(),
            loads: vec![0; members.len()],
        };
        let mut in_class = vec![Vec::new(); classes.len()];
        for (member, (class, _)) in members.iter().enumerate() {
            in_class[*class].push(member);
        }
        let mut audience_of = HashMap::new();
        for (index, (wanting, topics)) in audiences.iter().enumerate() {
            let takers = wanting.iter().flat_map(|class| &in_class[*class]);
            let takers = takers.map(|member| (0, *member)).collect();
            uniform.audiences.push(Audience { takers, ..Audience::default() });
            audience_of.extend(topics.iter().map(|(topic, count)| (*topic, (index, *count))));
            for class in wanting {
                uniform.of_class[*class].push(index);
            }
        }
        let mut taken = BTreeSet::new();
        for (member, (class, before)) in members.iter().enumerate() {
            let before = before.iter().filter(|(topic, _)| classes[*class].contains(topic));
            for (topic, partitions) in before {
                let Some((audience, count)) = audience_of.get(topic).copied() else { continue };
                for partition in partitions.range(0..count) {
                    if taken.insert((*topic, *partition)) {
                        uniform.give(audience, member, (*topic, *partition));
                    }
                }
            }
        }
        for (index, (_, topics)) in audiences.iter().enumerate() {
            let all =
                topics.iter().flat_map(|(topic, count)| (0..*count).map(|partition| (*topic, partition)));
            uniform.audiences[index].vacant = all.filter(|partition| !taken.contains(partition)).collect();
        }
        uniform
    }

    fn share_out(mut self) -> Vec<Parts> {
        for index in 0..self.audiences.len() {
            for partition in std::mem::take(&mut self.audiences[index].vacant) {
                if let Some((_, member)) = self.audiences[index].takers.first().copied() {
                    self.give(index, member, partition);
                }
            }
        }
        // The sum of the squares of what they have falls with every move, so this ends.
        while (0..self.audiences.len()).any(|index| self.balance(index)) {}
        let mut shares = vec![Parts::new(); self.loads.len()];
        for (member, held) in self.audiences.into_iter().flat_map(|audience| audience.held) {
            for (topic, partition) in held {
                shares[member].entry(topic).or_default().insert(partition);
            }
        }
        shares
    }

    /// Moves partitions of an audience until nobody has two more than another. Whether any has moved.
    fn balance(&mut self, index: usize) -> bool {
        let mut moved = false;
        loop {
            let audience = &mut self.audiences[index];
            let (Some((most, giver)), Some((least, taker))) =
                (audience.givers.last().copied(), audience.takers.first().copied())
            else {
                return moved;
            };
            if most < least + 2 {
                return moved;
            }
            // The last is what it has got most recently, if anything.
            let Some(partition) = audience.held.get_mut(&giver).and_then(Vec::pop) else { return moved };
            if audience.held.get(&giver).is_none_or(Vec::is_empty) {
                audience.givers.remove(&(most, giver));
            }
            self.set_load(giver, most - 1);
            self.give(index, taker, partition);
            moved = true;
        }
    }

    fn give(&mut self, audience: usize, member: usize, partition: (TopicId, i32)) {
        let load = self.loads[member];
        let audience = &mut self.audiences[audience];
        audience.held.entry(member).or_default().push(partition);
        audience.givers.insert((load, member));
        self.set_load(member, load + 1);
    }

    fn set_load(&mut self, member: usize, load: usize) {
        let old = std::mem::replace(&mut self.loads[member], load);
        for index in &self.of_class[self.class[member]] {
            let audience = &mut self.audiences[*index];
            audience.takers.remove(&(old, member));
            audience.takers.insert((load, member));
            if audience.givers.remove(&(old, member)) {
                audience.givers.insert((load, member));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Classes = Vec<BTreeSet<TopicId>>;

    fn owners(
        topics: &BTreeMap<TopicId, i32>,
        classes: &Classes,
        class: &[usize],
        shares: &[Parts],
    ) -> BTreeMap<(TopicId, i32), usize> {
        let mut owners = BTreeMap::new();
        for (member, parts) in shares.iter().enumerate() {
            for (topic, partitions) in parts {
                assert!(classes[class[member]].contains(topic), "{member} does not want {topic}");
                for partition in partitions {
                    assert!((0..topics[topic]).contains(partition));
                    assert_eq!(owners.insert((*topic, *partition), member), None, "given twice");
                }
            }
        }
        let wanted = |topic: &TopicId| class.iter().any(|class| classes[*class].contains(topic));
        let all: i32 = topics.iter().filter(|(topic, _)| wanted(topic)).map(|(_, count)| count).sum();
        assert_eq!(owners.len(), all as usize, "something is left over");
        owners
    }

    fn load(parts: &Parts) -> usize {
        parts.values().map(BTreeSet::len).sum()
    }

    fn inputs() -> impl Strategy<Value = (BTreeMap<TopicId, i32>, Classes, Vec<usize>, Vec<Parts>)> {
        let topic = (0..5u128).prop_map(TopicId);
        let topics = prop::collection::btree_map(topic.clone(), 0..12i32, 0..5);
        let classes = prop::collection::vec(prop::collection::btree_set(topic.clone(), 0..5), 1..4);
        let before = prop::collection::btree_map(topic, prop::collection::btree_set(-1..13i32, 0..8), 0..4);
        let members = prop::collection::vec((any::<prop::sample::Index>(), before), 0..8);
        (topics, classes, members).prop_map(|(topics, classes, members)| {
            let class = members.iter().map(|(index, _)| index.index(classes.len())).collect();
            (topics, classes, class, members.into_iter().map(|(_, before)| before).collect())
        })
    }

    proptest! {
        #[test]
        fn every_wanted_partition_has_one_owner_who_wants_it((topics, classes, class, before) in inputs()) {
            for assignor in [Assignor::Uniform, Assignor::Range] {
                let members: Vec<_> = class.iter().copied().zip(&before).collect();
                let shares = assignor.share_out(&topics, &classes, &members);
                owners(&topics, &classes, &class, &shares);
                prop_assert_eq!(&shares, &assignor.share_out(&topics, &classes, &members));
            }
        }

        #[test]
        fn uniform_is_balanced_and_then_moves_nothing((topics, classes, class, before) in inputs()) {
            let members: Vec<_> = class.iter().copied().zip(&before).collect();
            let shares = Assignor::Uniform.share_out(&topics, &classes, &members);
            for ((topic, _), owner) in owners(&topics, &classes, &class, &shares) {
                for (other, parts) in shares.iter().enumerate() {
                    let could = classes[class[other]].contains(&topic);
                    prop_assert!(!could || load(&shares[owner]) <= load(parts) + 1);
                }
            }
            let members: Vec<_> = class.iter().copied().zip(&shares).collect();
            prop_assert_eq!(&shares, &Assignor::Uniform.share_out(&topics, &classes, &members));
        }

        #[test]
        fn who_comes_or_goes_moves_no_more_partitions_than_balance_asks_for(
            count in 1..60i32,
            before in 1..7usize,
            after in 1..7usize,
        ) {
            let topics = BTreeMap::from([(TopicId(1), count)]);
            let classes = vec![BTreeSet::from([TopicId(1)])];
            let nothing = Parts::new();
            let old = Assignor::Uniform.share_out(&topics, &classes, &vec![(0, &nothing); before]);
            let members: Vec<_> = (0..after).map(|member| (0, old.get(member).unwrap_or(&nothing))).collect();
            let new = Assignor::Uniform.share_out(&topics, &classes, &members);
            for (old, new) in old.iter().zip(&new) {
                let kept = old.get(&TopicId(1)).into_iter().flatten().filter(|p| new.get(&TopicId(1)).is_some_and(|new| new.contains(p))).count();
                prop_assert_eq!(kept, load(old).min(load(new)));
            }
        }
    }

    #[test]
    fn range_gives_runs_and_the_first_ones_what_does_not_divide() {
        let topics = BTreeMap::from([(TopicId(1), 5), (TopicId(2), 1)]);
        let classes = vec![BTreeSet::from([TopicId(1), TopicId(2)]), BTreeSet::from([TopicId(1)])];
        let nothing = Parts::new();
        let shares = Assignor::Range.share_out(&topics, &classes, &[(1, &nothing), (0, &nothing)]);
        assert_eq!(shares[0], Parts::from([(TopicId(1), [0, 1, 2].into())]));
        assert_eq!(shares[1], Parts::from([(TopicId(1), [3, 4].into()), (TopicId(2), [0].into())]));
    }
}
