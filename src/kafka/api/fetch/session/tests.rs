use std::collections::BTreeMap;

use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::protocol::StrBytes;
use proptest::prelude::*;

use super::*;
use crate::kafka::api::fetch::answer::Partition;
use crate::kafka::api::fetch::table::TopicKey;
use crate::log::Offset;

const TOPICS: [&str; 3] = ["a", "b", "c"];

fn name(topic: usize) -> TopicName {
    TopicName(StrBytes::from_static_str(TOPICS[topic]))
}

fn ask(topic: usize, index: i32, from: i64) -> FetchTopic {
    let partition = FetchPartition::default().with_partition(index).with_fetch_offset(from);
    FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition])
}

fn request(session: i32, epoch: i32, topics: Vec<FetchTopic>) -> FetchRequest {
    FetchRequest::default().with_session_id(session).with_session_epoch(epoch).with_topics(topics)
}

fn told(wanted: &Wanted, end: i64) -> Told {
    Told { slot: wanted.slot, end: Some(end), start: Some(0), records: false }
}

/// Makes a session of so many partitions.
fn made(sessions: &FetchSessions, now: Instant, partitions: i32) -> i32 {
    let topics = (0..partitions).map(|index| ask(0, index, 0)).collect();
    let (part, _) = sessions.begin(now, 12, &request(0, 0, topics)).unwrap();
    let Part::First { by_id, table } = part else { panic!() };
    sessions.make(now, by_id, table, &[])
}

fn next(sessions: &FetchSessions, now: Instant, id: i32, epoch: i32) -> Result<(), ResponseError> {
    sessions.begin(now, 12, &request(id, epoch, vec![])).map(drop)
}

fn find(sessions: &FetchSessions, id: i32) -> bool {
    sessions.lock().sessions.contains_key(&id)
}

#[test]
fn epochs_follow_each_other_and_1_comes_after_the_largest() {
    let (sessions, now) = (FetchSessions::default(), Instant::now());
    let id = made(&sessions, now, 1);
    assert!(id > 0);
    assert_eq!(next(&sessions, now, id, 2), Err(ResponseError::InvalidFetchSessionEpoch));
    assert_eq!(next(&sessions, now, id, 1), Ok(()));
    assert_eq!(next(&sessions, now, id, 1), Err(ResponseError::InvalidFetchSessionEpoch));
    sessions.lock().sessions[&id].session.lock().epoch = i32::MAX;
    assert_eq!(next(&sessions, now, id, i32::MAX), Ok(()));
    assert_eq!(next(&sessions, now, id, 1), Ok(()));
    assert_eq!(next(&sessions, now, id + 1, 1), Err(ResponseError::FetchSessionIdNotFound));
}

#[test]
fn topics_are_named_in_one_way_for_the_whole_of_a_session() {
    let (sessions, now) = (FetchSessions::default(), Instant::now());
    let id = made(&sessions, now, 1);
    let mixed = sessions.begin(now, 13, &request(id, 1, vec![])).map(drop);
    assert_eq!(mixed, Err(ResponseError::FetchSessionTopicIdError));
    assert_eq!(next(&sessions, now, id, 1), Ok(()));
}

#[test]
fn a_full_request_ends_the_session_that_it_speaks_of_and_so_does_the_last_partition() {
    let (sessions, now) = (FetchSessions::default(), Instant::now());
    for epoch in [0, -1] {
        let id = made(&sessions, now, 1);
        sessions.begin(now, 12, &request(id, epoch, vec![ask(0, 0, 0)])).unwrap();
        assert!(!find(&sessions, id));
    }
    let id = made(&sessions, now, 1);
    let forgotten = ForgottenTopic::default().with_topic(name(0)).with_partitions(vec![0, 7]);
    let all = request(id, 1, vec![]).with_forgotten_topics_data(vec![forgotten]);
    let (part, wanted) = sessions.begin(now, 12, &all).unwrap();
    assert!(matches!(part, Part::None) && wanted.is_empty());
    assert!(!find(&sessions, id));
    assert_eq!(sessions.lock().bytes, 0);
}

#[test]
fn the_answer_to_a_request_that_another_overtook_is_an_error() {
    let (sessions, now) = (FetchSessions::default(), Instant::now());
    let id = made(&sessions, now, 1);
    let (Part::Next(first), _) = sessions.begin(now, 12, &request(id, 1, vec![])).unwrap() else { panic!() };
    let (Part::Next(second), _) = sessions.begin(now, 12, &request(id, 2, vec![])).unwrap() else { panic!() };
    assert_eq!(first.end(&[]), Err(ResponseError::InvalidFetchSessionEpoch));
    assert_eq!(second.end(&[]), Ok(()));
}

#[test]
fn partitions_that_had_records_come_last_in_the_next_request() {
    let (sessions, now) = (FetchSessions::default(), Instant::now());
    let id = made(&sessions, now, 4);
    let (Part::Next(turn), wanted) = sessions.begin(now, 12, &request(id, 1, vec![])).unwrap() else {
        panic!()
    };
    let had: Vec<Told> = wanted[..2].iter().map(|one| Told { records: true, ..told(one, 9) }).collect();
    turn.end(&had).unwrap();
    let (_, wanted) = sessions.begin(now, 12, &request(id, 2, vec![ask(0, 0, 9)])).unwrap();
    let order: Vec<_> = wanted.iter().map(|wanted| (wanted.index, wanted.from)).collect();
    assert_eq!(order, [(2, 0), (3, 0), (0, 9), (1, 0)]);
}

#[test]
fn a_full_cache_gives_up_the_abandoned_first_and_then_small_ones_that_are_not_young() {
    let sessions = FetchSessions::with_slots(3);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let (small, large, larger) =
        (made(&sessions, at(0), 2), made(&sessions, at(0), 5), made(&sessions, at(1), 6));
    // All are young.
    assert_eq!(made(&sessions, at(60), 100), 0);
    // Two have grown up, and the small one goes for a larger one only.
    for (id, time) in [(small, 121), (large, 121), (larger, 121)] {
        next(&sessions, at(time), id, 1).unwrap();
    }
    assert_eq!(made(&sessions, at(122), 2), 0);
    let third = made(&sessions, at(122), 3);
    assert!(third > 0 && !find(&sessions, small) && find(&sessions, large) && find(&sessions, larger));
    // Of two that nobody uses any more the one goes that was left first, large as it is, and for whatever comes.
    next(&sessions, at(150), large, 2).unwrap();
    next(&sessions, at(200), third, 1).unwrap();
    assert!(made(&sessions, at(250), 1) > 0 && !find(&sessions, larger) && find(&sessions, large));
}

#[test]
fn what_all_sessions_take_is_bounded_and_so_is_one() {
    let (sessions, now) = (FetchSessions::with_slots(1_000), Instant::now());
    assert_eq!(made(&sessions, now, MAX_PARTITIONS as i32 + 1), 0);
    let mut ids = Vec::new();
    while let id @ 1.. = made(&sessions, now, 10_000) {
        ids.push(id);
    }
    assert!((10..40).contains(&ids.len()), "{} sessions of 10,000 partitions", ids.len());
    assert!(sessions.lock().bytes <= MAX_BYTES);
    // One that outgrows the room is given up; the others stay.
    let more = (0..5_000).map(|index| ask(1, index, 0)).collect();
    let grown = sessions.begin(now, 12, &request(ids[0], 1, more)).map(drop);
    assert_eq!(grown, Err(ResponseError::FetchSessionIdNotFound));
    assert!(!find(&sessions, ids[0]) && find(&sessions, ids[1]));
    assert_eq!(next(&sessions, now, ids[1], 1), Ok(()));
    // Those that nobody uses any more make room.
    let later = now + MIN_EVICTION + Duration::from_secs(1);
    assert!((0..100).all(|_| made(&sessions, later, 100) > 0));
    assert!(sessions.lock().bytes <= MAX_BYTES);
}

/// What may happen between a client and a broker.
#[derive(Debug, Clone)]
enum Step {
    /// The client wants a partition from an offset on, newly or another one than before.
    Want(usize, i32, i64),
    /// The client wants a partition no longer.
    Forget(usize, i32),
    /// The broker's partition grows, or fails.
    Grow(usize, i32, i64),
    Fail(usize, i32),
    /// The client asks, and gets its answer or not.
    Ask {
        lost: bool,
    },
    /// A request of an old epoch comes late.
    Late,
    /// The broker forgets the session.
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let (topic, index) = (0..TOPICS.len(), 0..3i32);
    prop_oneof![
        3 => (topic.clone(), index.clone(), 0..100i64).prop_map(|(t, i, from)| Step::Want(t, i, from)),
        1 => (topic.clone(), index.clone()).prop_map(|(t, i)| Step::Forget(t, i)),
        3 => (topic.clone(), index.clone(), 1..5i64).prop_map(|(t, i, by)| Step::Grow(t, i, by)),
        1 => (topic, index).prop_map(|(t, i)| Step::Fail(t, i)),
        6 => prop::bool::weighted(0.1).prop_map(|lost| Step::Ask { lost }),
        1 => Just(Step::Late),
        1 => Just(Step::Evict),
    ]
}

type Place = (usize, i32);

/// A client as KIP-227 describes it, and a broker whose partitions are high watermarks (`None`: an error).
#[derive(Default)]
struct Model {
    session: i32,
    epoch: i32,
    /// What the client wants now, and what it has said so far.
    wants: BTreeMap<Place, i64>,
    said: BTreeMap<Place, i64>,
    /// What the client was last told.
    knows: BTreeMap<Place, Option<i64>>,
    broker: BTreeMap<Place, Option<i64>>,
    /// Sessions of which no client has learned.
    orphans: usize,
}

impl Model {
    /// Goes through one request, and says whether the session went on.
    fn ask(&mut self, sessions: &FetchSessions, now: Instant, lost: bool) -> bool {
        let changed = |(place, from): &(&Place, &i64)| self.epoch == 0 || self.said.get(place) != Some(from);
        let topics = self.wants.iter().filter(changed).map(|((t, i), from)| ask(*t, *i, *from)).collect();
        let gone = self.said.keys().filter(|place| self.epoch > 0 && !self.wants.contains_key(place));
        let forgotten = gone
            .map(|(t, i)| ForgottenTopic::default().with_topic(name(*t)).with_partitions(vec![*i]))
            .collect();
        let asked = request(self.session, self.epoch, topics).with_forgotten_topics_data(forgotten);
        let (part, wanted) = match sessions.begin(now, 12, &asked) {
            Ok(begun) => begun,
            Err(error) => {
                assert_eq!(error, ResponseError::FetchSessionIdNotFound);
                self.begin_anew();
                return false;
            }
        };
        // The broker serves exactly what the client wants.
        let place = |wanted: &Wanted| match &wanted.topic {
            TopicKey::Name(name) => (TOPICS.iter().position(|t| **t == **name).unwrap(), wanted.index),
            TopicKey::Id(_) => panic!("a topic by id"),
        };
        let served: BTreeMap<Place, i64> = wanted.iter().map(|one| (place(one), one.from)).collect();
        assert_eq!(served, self.wants);
        assert_eq!(served.len(), wanted.len());

        let mut answers = Vec::new();
        let mut told = Vec::new();
        for wanted in &wanted {
            let end = *self.broker.entry(place(wanted)).or_insert(Some(0));
            let partition = match end {
                Some(end) => Partition::read(wanted.index, Offset(0), Offset(end)),
                None => Partition::failed(wanted.index, ResponseError::KafkaStorageError),
            };
            if matches!(part, Part::Next(_)) && !wanted.is_news(&partition, 0) {
                continue;
            }
            answers.push((place(wanted), end));
            told.push(Told { slot: wanted.slot, end, start: end.map(|_| 0), records: end == Some(3) });
        }
        let session = match part {
            Part::None => 0,
            Part::First { by_id, table } => sessions.make(now, by_id, table, &told),
            Part::Next(turn) => {
                turn.end(&told).unwrap();
                turn.session_id()
            }
        };
        if lost {
            self.orphans += usize::from(self.epoch == 0);
            self.begin_anew();
            return false;
        }
        if self.epoch == 0 {
            self.knows.clear();
        }
        self.knows.extend(answers);
        self.said = self.wants.clone();
        self.knows.retain(|place, _| self.wants.contains_key(place));
        self.epoch = if session == 0 { 0 } else { self.epoch + 1 };
        self.session = session;
        // What was not in the answer has not changed.
        let truth: BTreeMap<Place, Option<i64>> =
            self.wants.keys().map(|place| (*place, self.broker[place])).collect();
        assert_eq!(self.knows, truth);
        true
    }

    /// As clients do after an error: they name the old session, so that it is closed.
    fn begin_anew(&mut self) {
        self.epoch = 0;
    }
}

proptest! {
    #[test]
    fn what_a_client_believes_to_fetch_is_what_the_broker_serves(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (sessions, now) = (FetchSessions::default(), Instant::now());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Want(topic, index, from) => drop(model.wants.insert((topic, index), from)),
                Step::Forget(topic, index) => drop(model.wants.remove(&(topic, index))),
                Step::Grow(topic, index, by) => {
                    let end = model.broker.entry((topic, index)).or_insert(Some(0));
                    *end = Some(end.unwrap_or(0) + by);
                }
                Step::Fail(topic, index) => drop(model.broker.insert((topic, index), None)),
                Step::Ask { lost } => drop(model.ask(&sessions, now, lost)),
                Step::Late => {
                    if model.epoch > 1 {
                        let late = request(model.session, model.epoch - 1, vec![ask(0, 0, 77)]);
                        prop_assert!(sessions.begin(now, 12, &late).is_err());
                    }
                }
                Step::Evict => sessions.lock().remove(model.session),
            }
            // The session of which a client knows is closed by the request that begins anew.
            prop_assert!(sessions.lock().sessions.len() <= 1 + model.orphans);
        }
    }
}
