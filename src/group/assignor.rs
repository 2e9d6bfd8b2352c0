//! How the broker shares out partitions where a virtual member leads: Kafka's `range`, `roundrobin` and
//! `cooperative-sticky`.
//!
//! `range` and `roundrobin` give what Apache Kafka's assignors give. `cooperative-sticky` follows the same contract by an
//! algorithm of its own:
//!
//! * **Sticky**: a member keeps what it owns unless another has at least two partitions fewer.
//! * **Balanced**: no partition could go to a subscriber of its topic that has two partitions fewer than its owner. With
//!   equal subscriptions this means that nobody has two more than another. Thousands of members whose subscriptions differ
//!   may take more work than [`MAX_LOOKS`]: what is not balanced by then waits for the next generation, which goes on from
//!   there.
//! * **Cooperative**: a partition that somebody else owns is given to nobody. Its owner learns that it has lost it, gives
//!   it up and rejoins, and the next generation gives it to its new owner.
//!
//! Equal input gives equal output.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::consumer_protocol::Parts;

/// How often balancing looks at a member of an audience, or at a member as a giver: about a second.
const MAX_LOOKS: usize = 50_000_000;

/// A way of sharing out partitions that the broker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    CooperativeSticky,
    Range,
    RoundRobin,
}

impl Strategy {
    /// All of them, the best first.
    pub const ALL: [Strategy; 3] = [Strategy::CooperativeSticky, Strategy::Range, Strategy::RoundRobin];

    /// Kafka's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::CooperativeSticky => "cooperative-sticky",
            Strategy::Range => "range",
            Strategy::RoundRobin => "roundrobin",
        }
    }

    pub fn by_name(name: &str) -> Option<Strategy> {
        Strategy::ALL.into_iter().find(|strategy| strategy.name() == name)
    }
}

/// Whether members keep their partitions while they rejoin under this protocol. Otherwise they give up all of them
/// before.
pub(super) fn is_cooperative(protocol: &str) -> bool {
    protocol == Strategy::CooperativeSticky.name()
}

/// A member as an assignor sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Member<'a> {
    pub id: &'a str,
    /// Set for a static member.
    pub instance_id: Option<&'a str>,
    pub topics: BTreeSet<&'a str>,
    /// What it has not given up.
    pub owned: Parts<'a>,
    /// The generation in which it got that.
    pub generation: i32,
}

/// What every member gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shares<'a> {
    /// By member, in the order in which they were given.
    pub parts: Vec<Parts<'a>>,
    /// Whether partitions wait for their owners to give them up.
    pub withheld: bool,
}

/// Shares out topics with these numbers of partitions.
pub(super) fn assign<'a>(
    strategy: Strategy,
    members: &[Member<'_>],
    topics: &BTreeMap<&'a str, i32>,
) -> Shares<'a> {
    // Kafka's order: static members first, then by id.
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|index| {
        let member = &members[*index];
        (member.instance_id.is_none(), member.instance_id, member.id)
    });
    let wants = |member: &usize, topic: &str| members[*member].topics.contains(topic);
    let subscribed: Vec<Subscribed<'a>> = topics
        .iter()
        .map(|(topic, partitions)| Subscribed {
            topic,
            partitions: *partitions,
            members: order.iter().copied().filter(|member| wants(member, topic)).collect(),
        })
        .filter(|subscribed| !subscribed.members.is_empty())
        .collect();
    let mut shares = Shares { parts: vec![Parts::new(); members.len()], withheld: false };
    match strategy {
        Strategy::Range => range(&subscribed, &mut shares),
        Strategy::RoundRobin => round_robin(&order, &subscribed, &mut shares),
        Strategy::CooperativeSticky => cooperative_sticky(members, subscribed, &mut shares),
    }
    shares
}

/// A topic and who wants it, in Kafka's order.
struct Subscribed<'a> {
    topic: &'a str,
    partitions: i32,
    members: Vec<usize>,
}

fn range<'a>(subscribed: &[Subscribed<'a>], shares: &mut Shares<'a>) {
    for Subscribed { topic, partitions, members } in subscribed {
        let (mut first, mut left) = (0, *partitions);
        for (position, member) in members.iter().enumerate() {
            let sharers = (members.len() - position) as i32;
            // Rounded up, so that the first ones get what does not divide.
            let share = (left + sharers - 1) / sharers;
            if share > 0 {
                shares.parts[*member].insert(topic, (first..first + share).collect());
            }
            first += share;
            left -= share;
        }
    }
}

fn round_robin<'a>(order: &[usize], subscribed: &[Subscribed<'a>], shares: &mut Shares<'a>) {
    let mut circle = order.iter().cycle();
    for Subscribed { topic, partitions, members } in subscribed {
        let wants: BTreeSet<usize> = members.iter().copied().collect();
        for partition in 0..*partitions {
            // Who does not want it loses its turn.
            if let Some(member) = circle.find(|member| wants.contains(member)) {
                shares.parts[*member].entry(topic).or_default().push(partition);
            }
        }
    }
}

/// Who owns a partition, by what the members say.
struct Claim {
    /// The one of the latest generation; nobody where several say so of the same.
    owner: Option<usize>,
    generation: i32,
}

fn claims<'m>(members: &'m [Member<'_>], topics: &[Subscribed<'_>]) -> HashMap<(&'m str, i32), Claim> {
    let existing: HashMap<&str, i32> = topics.iter().map(|topic| (topic.topic, topic.partitions)).collect();
    let mut claims: HashMap<(&str, i32), Claim> = HashMap::new();
    for (index, member) in members.iter().enumerate() {
        for (topic, owned) in &member.owned {
            let exists = |partition: &i32| (0..existing.get(topic).copied().unwrap_or(0)).contains(partition);
            let owned: BTreeSet<i32> = owned.iter().copied().filter(exists).collect();
            for partition in owned {
                let own = Claim { owner: Some(index), generation: member.generation };
                let claim =
                    claims.entry((topic, partition)).or_insert(Claim { owner: None, generation: i32::MIN });
                match own.generation.cmp(&claim.generation) {
                    Ordering::Greater => *claim = own,
                    Ordering::Equal => claim.owner = None,
                    Ordering::Less => {}
                }
            }
        }
    }
    claims
}

/// Topics that the same members want, and how their partitions are shared out.
#[derive(Default)]
struct Audience<'a> {
    /// What each has: first what it owns, then what it newly gets, which is first to go to others.
    held: BTreeMap<usize, Vec<(&'a str, i32)>>,
    vacant: Vec<(&'a str, i32)>,
}

impl Audience<'_> {
    /// The member with the fewest partitions.
    fn neediest(&self, loads: &[usize]) -> Option<usize> {
        self.held.keys().copied().min_by_key(|member| loads[*member])
    }
}

fn cooperative_sticky<'a>(members: &[Member<'_>], subscribed: Vec<Subscribed<'a>>, shares: &mut Shares<'a>) {
    let claims = claims(members, &subscribed);
    let mut loads = vec![0usize; members.len()];
    let mut audiences: BTreeMap<Vec<usize>, Audience<'a>> = BTreeMap::new();
    for Subscribed { topic, partitions, members } in subscribed {
        let audience = audiences.entry(members).or_insert_with_key(|members| Audience {
            held: members.iter().map(|member| (*member, Vec::new())).collect(),
            vacant: Vec::new(),
        });
        for partition in 0..partitions {
            let owner = claims.get(&(topic, partition)).and_then(|claim| claim.owner);
            match owner.and_then(|owner| Some((owner, audience.held.get_mut(&owner)?))) {
                Some((owner, held)) => {
                    held.push((topic, partition));
                    loads[owner] += 1;
                }
                None => audience.vacant.push((topic, partition)),
            }
        }
    }
    let mut audiences: Vec<Audience<'a>> = audiences.into_values().collect();
    for audience in &mut audiences {
        for partition in std::mem::take(&mut audience.vacant) {
            if let Some(member) = audience.neediest(&loads)
                && let Some(held) = audience.held.get_mut(&member)
            {
                held.push(partition);
                loads[member] += 1;
            }
        }
    }
    balance(&mut audiences, &mut loads, MAX_LOOKS);
    for (member, held) in audiences.into_iter().flat_map(|audience| audience.held) {
        for (topic, partition) in held {
            match claims.get(&(topic, partition)) {
                Some(claim) if claim.owner != Some(member) => shares.withheld = true,
                _ => shares.parts[member].entry(topic).or_default().push(partition),
            }
        }
    }
    for partitions in shares.parts.iter_mut().flat_map(Parts::values_mut) {
        partitions.sort_unstable();
    }
}

/// Moves partitions, each to somebody who has at least two fewer than who gives it, until there are no such two, or until
/// it has looked often enough. The sum of the squares of what they have falls with every move, so this ends.
fn balance(audiences: &mut [Audience<'_>], loads: &mut [usize], mut looks: usize) {
    let mut givers: Vec<usize> = (0..loads.len()).collect();
    while looks > 0 {
        looks = looks.saturating_sub(givers.len());
        givers.sort_by_key(|giver| Reverse(loads[*giver]));
        if !givers.iter().any(|giver| give_one(audiences, loads, *giver, &mut looks)) {
            return;
        }
    }
}

/// Moves one partition of a member to who needs it most, if anybody does. Whether it has.
fn give_one(audiences: &mut [Audience<'_>], loads: &mut [usize], giver: usize, looks: &mut usize) -> bool {
    *looks = looks.saturating_sub(audiences.len());
    if *looks == 0 {
        return false;
    }
    let gives = |audience: &Audience<'_>| audience.held.get(&giver).is_some_and(|held| !held.is_empty());
    let takers = audiences.iter().enumerate().filter(|(_, audience)| gives(audience));
    let takers = takers.filter_map(|(index, audience)| {
        *looks = looks.saturating_sub(audience.held.len());
        Some((index, audience.neediest(loads)?))
    });
    let Some((index, taker)) = takers.min_by_key(|(_, taker)| loads[*taker]) else { return false };
    if loads[giver] < loads[taker] + 2 {
        return false;
    }
    let held = &mut audiences[index].held;
    let Some(partition) = held.get_mut(&giver).and_then(Vec::pop) else { return false };
    held.entry(taker).or_default().push(partition);
    loads[giver] -= 1;
    loads[taker] += 1;
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::Strategy as _;

    use super::{Strategy, *};

    const TOPICS: [&str; 4] = ["a", "b", "c", "d"];
    const IDS: [&str; 7] = ["m0", "m1", "m2", "m3", "m4", "m5", "m6"];

    fn member(id: &'static str, topics: &[&'static str]) -> Member<'static> {
        Member { id, topics: topics.iter().copied().collect(), ..Member::default() }
    }

    /// What each gets, as `topic:partition,partition`.
    fn shown(shares: &Shares<'_>) -> Vec<String> {
        let one = |(topic, partitions): (&&str, &Vec<i32>)| {
            let partitions: Vec<String> = partitions.iter().map(i32::to_string).collect();
            format!("{topic}:{}", partitions.join(","))
        };
        shares.parts.iter().map(|parts| parts.iter().map(one).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn range_gives_neighbours_and_the_first_members_what_does_not_divide() {
        let static_last = Member { instance_id: Some("z"), ..member("m9", &["a"]) };
        let members = [member("m2", &["a", "b"]), member("m1", &["a"]), static_last];
        let shares = assign(Strategy::Range, &members, &BTreeMap::from([("a", 7), ("b", 2)]));
        assert_eq!(shown(&shares), ["a:5,6 b:0,1", "a:3,4", "a:0,1,2"]);
    }

    #[test]
    fn round_robin_deals_to_who_wants_the_topic() {
        // The example in the documentation of Kafka's RoundRobinAssignor.
        let members = [member("C0", &["t0"]), member("C1", &["t0", "t1"]), member("C2", &["t0", "t1", "t2"])];
        let topics = BTreeMap::from([("t0", 1), ("t1", 2), ("t2", 3)]);
        let shares = assign(Strategy::RoundRobin, &members, &topics);
        assert_eq!(shown(&shares), ["t0:0", "t1:0", "t1:1 t2:0,1,2"]);
    }

    #[test]
    fn what_somebody_owns_goes_to_nobody_before_it_is_given_up() {
        let owner =
            Member { owned: Parts::from([("a", vec![0, 1, 2, 3])]), generation: 4, ..member("m1", &["a"]) };
        let newcomer = member("m2", &["a"]);
        let topics = BTreeMap::from([("a", 4)]);
        let shares = assign(Strategy::CooperativeSticky, &[owner.clone(), newcomer.clone()], &topics);
        assert_eq!((shown(&shares), shares.withheld), (vec!["a:0,1".into(), String::new()], true));
        let owner = Member { owned: Parts::from([("a", vec![0, 1])]), generation: 5, ..owner };
        let shares = assign(Strategy::CooperativeSticky, &[owner, newcomer], &topics);
        assert_eq!((shown(&shares), shares.withheld), (vec!["a:0,1".into(), "a:2,3".into()], false));
    }

    #[test]
    fn of_two_who_say_that_they_own_a_partition_the_later_keeps_it_and_neither_when_both_are_as_late() {
        let owner = |id, generation| Member {
            owned: Parts::from([("a", vec![0])]),
            generation,
            ..member(id, &["a"])
        };
        let topics = BTreeMap::from([("a", 1)]);
        let shares = assign(Strategy::CooperativeSticky, &[owner("m1", 3), owner("m2", 4)], &topics);
        assert_eq!((shown(&shares), shares.withheld), (vec![String::new(), "a:0".into()], false));
        let shares = assign(Strategy::CooperativeSticky, &[owner("m1", 4), owner("m2", 4)], &topics);
        assert_eq!((shown(&shares), shares.withheld), (vec![String::new(), String::new()], true));
    }

    #[test]
    fn balancing_ends_when_it_has_looked_often_enough_and_loses_nothing() {
        let unbalanced = || Audience {
            held: BTreeMap::from([(0, (0..8).map(|partition| ("a", partition)).collect()), (1, Vec::new())]),
            vacant: Vec::new(),
        };
        for (looks, expected) in [(0, [8, 0]), (1, [8, 0]), (6, [7, 1]), (12, [6, 2]), (1_000, [4, 4])] {
            let (mut audiences, mut loads) = ([unbalanced()], [8, 0]);
            balance(&mut audiences, &mut loads, looks);
            assert_eq!(loads, expected, "{looks} looks");
            let held: Vec<_> = audiences[0].held.values().map(Vec::len).collect();
            assert_eq!(held, expected);
        }
    }

    /// Members with subscriptions, and with claims that may be lies.
    fn members() -> impl proptest::strategy::Strategy<Value = Vec<Member<'static>>> {
        let topics = prop::sample::subsequence(&TOPICS, 0..=4);
        let owned = prop::collection::btree_map(
            prop::sample::select(&TOPICS),
            prop::collection::vec(-1..14i32, 0..8),
            0..4,
        );
        let one = (topics, owned, -1..4i32, any::<bool>());
        prop::collection::vec(one, 1..7).prop_map(|members| {
            let each = |(index, (topics, owned, generation, is_static)): (
                usize,
                (Vec<&'static str>, _, _, bool),
            )| Member {
                id: IDS[index],
                instance_id: is_static.then_some(IDS[6 - index]),
                topics: topics.into_iter().collect(),
                owned,
                generation,
            };
            members.into_iter().enumerate().map(each).collect::<Vec<_>>()
        })
    }

    fn topics() -> impl proptest::strategy::Strategy<Value = BTreeMap<&'static str, i32>> {
        prop::collection::btree_map(prop::sample::select(&TOPICS), 0..12i32, 0..4)
    }

    /// The member that has each partition. Nobody has what he did not ask for, or what is not there, or what another has.
    fn owners<'a>(
        members: &[Member<'_>],
        topics: &BTreeMap<&'a str, i32>,
        shares: &Shares<'a>,
    ) -> BTreeMap<(&'a str, i32), usize> {
        let mut owners = BTreeMap::new();
        for (index, parts) in shares.parts.iter().enumerate() {
            for (topic, partitions) in parts {
                assert!(members[index].topics.contains(topic));
                for partition in partitions {
                    assert!((0..topics[topic]).contains(partition));
                    assert_eq!(owners.insert((*topic, *partition), index), None, "{topic} {partition} twice");
                }
            }
        }
        owners
    }

    /// Generations until nothing changes, in each of which everybody owns what he was given.
    fn settle<'a>(members: &mut [Member<'a>], topics: &BTreeMap<&'a str, i32>) -> Shares<'a> {
        for generation in 10.. {
            let shares = assign(Strategy::CooperativeSticky, members, topics);
            assert_eq!(
                shares,
                assign(Strategy::CooperativeSticky, members, topics),
                "equal input, equal output"
            );
            let settled = !shares.withheld
                && members.iter().zip(&shares.parts).all(|(member, parts)| member.owned == *parts);
            if settled {
                return shares;
            }
            assert!(generation < 14, "it does not settle: {members:?}");
            for (member, parts) in members.iter_mut().zip(&shares.parts) {
                member.owned = parts.clone();
                member.generation = generation;
            }
        }
        unreachable!()
    }

    fn all_wanted<'a>(members: &[Member<'_>], topics: &BTreeMap<&'a str, i32>) -> Vec<(&'a str, i32)> {
        let wanted =
            topics.iter().filter(|(topic, _)| members.iter().any(|member| member.topics.contains(**topic)));
        wanted.flat_map(|(topic, count)| (0..*count).map(|partition| (*topic, partition))).collect()
    }

    proptest! {
        #[test]
        fn eager_strategies_give_every_partition_to_one_subscriber(members in members(), topics in topics()) {
            for strategy in [Strategy::Range, Strategy::RoundRobin] {
                let shares = assign(strategy, &members, &topics);
                let owners: Vec<_> = owners(&members, &topics, &shares).into_keys().collect();
                prop_assert_eq!(owners, all_wanted(&members, &topics));
            }
        }

        #[test]
        fn no_partition_is_given_to_one_while_another_owns_it(members in members(), topics in topics()) {
            let shares = assign(Strategy::CooperativeSticky, &members, &topics);
            for ((topic, partition), owner) in owners(&members, &topics, &shares) {
                let claims = |member: &Member<'_>| {
                    member.owned.get(topic).is_some_and(|owned| owned.contains(&partition)).then_some(member.generation)
                };
                let own = claims(&members[owner]);
                let others = members.iter().enumerate().filter(|(index, _)| *index != owner);
                // Who lost it without knowing got it in an earlier generation.
                prop_assert!(others.filter_map(|(_, member)| claims(member)).all(|claim| own.is_some_and(|own| own > claim)));
            }
        }

        #[test]
        fn cooperative_generations_end_with_every_partition_at_one_subscriber_and_balanced(
            mut members in members(),
            topics in topics(),
        ) {
            let shares = settle(&mut members, &topics);
            let owners = owners(&members, &topics, &shares);
            prop_assert_eq!(owners.keys().copied().collect::<Vec<_>>(), all_wanted(&members, &topics));
            let load = |member: usize| shares.parts[member].values().map(Vec::len).sum::<usize>();
            for ((topic, _), owner) in owners {
                for (other, _) in members.iter().enumerate().filter(|(_, other)| other.topics.contains(topic)) {
                    prop_assert!(load(owner) <= load(other) + 1, "{shares:?}");
                }
            }
        }

        #[test]
        fn who_comes_or_goes_moves_no_more_partitions_than_balance_asks_for(
            count in 1..40i32,
            before in 1..6usize,
            after in 1..6usize,
        ) {
            let topics = BTreeMap::from([("a", count)]);
            let mut members: Vec<Member<'static>> = IDS[..before].iter().map(|id| member(id, &["a"])).collect();
            settle(&mut members, &topics);
            members.truncate(after);
            members.extend(IDS[members.len()..after].iter().map(|id| member(id, &["a"])));
            let old: Vec<Vec<i32>> = members.iter().map(|member| member.owned.get("a").cloned().unwrap_or_default()).collect();
            let shares = settle(&mut members, &topics);
            let most = usize::div_ceil(count as usize, after);
            for (old, parts) in old.iter().zip(&shares.parts) {
                let new = parts.get("a").cloned().unwrap_or_default();
                let kept = old.iter().filter(|partition| new.contains(partition)).count();
                prop_assert!(kept == old.len().min(new.len()), "{old:?} became {new:?}, at most {most}");
            }
        }
    }
}
