//! Random histories of a source with a held table, over a real log, against a model of the source.
//!
//! `MILLRACE_SIM_SEED` repeats one history, `MILLRACE_SIM_ROUNDS` says how many are run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::capture::output::Output;
use crate::capture::pipeline::Step;
use crate::capture::spool::Spools;
use crate::change::{Column, ReplicaIdentity, TypeForm};
use crate::log::local::{LocalLog, LocalReader, LocalWriter, Options};
use crate::log::record_batch::BatchHeader;
use crate::log::{LogReader, Offset, PartitionId};
use crate::postgres::snapshot::{CopyRows, ReadFrom, Visibility};
use crate::task::TaskDefinition;

/// The table that is read while its changes are held, and one that is not.
const HELD: u32 = 1;
const PLAIN: u32 = 2;

/// What stands for a value that was not sent.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// As the simulation of the log draws them.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A value that each change sends, and one that is sent only when it is another.
type Values = (u64, u64);
type Rows = BTreeMap<(u32, i64), Values>;

#[derive(Debug, Clone, PartialEq)]
enum Act {
    Insert {
        oid: u32,
        id: i64,
        v: u64,
    },
    /// To another key, or to the same.
    Update {
        oid: u32,
        id: i64,
        to: i64,
        was: Values,
        values: Values,
    },
    Delete {
        oid: u32,
        id: i64,
        was: Values,
    },
    Truncate {
        oids: Vec<u32>,
    },
}

impl Act {
    fn apply(&self, rows: &mut Rows) {
        match self {
            Act::Insert { oid, id, v } => assert_eq!(rows.insert((*oid, *id), (*v, *v)), None, "{self:?}"),
            Act::Update { oid, id, to, was, values } => {
                assert_eq!(rows.remove(&(*oid, *id)), Some(*was), "{self:?}");
                assert_eq!(rows.insert((*oid, *to), *values), None, "{self:?}");
            }
            Act::Delete { oid, id, was } => {
                assert_eq!(rows.remove(&(*oid, *id)), Some(*was), "{self:?}");
            }
            Act::Truncate { oids } => rows.retain(|(oid, _), _| !oids.contains(oid)),
        }
    }

    fn keys(&self) -> Vec<(u32, Option<i64>)> {
        match self {
            Act::Insert { oid, id, .. } | Act::Delete { oid, id, .. } => vec![(*oid, Some(*id))],
            Act::Update { oid, id, to, .. } => vec![(*oid, Some(*id)), (*oid, Some(*to))],
            Act::Truncate { oids } => oids.iter().map(|oid| (*oid, None)).collect(),
        }
    }
}

#[derive(Debug, Clone)]
struct Committed {
    /// With its epoch.
    xid: u64,
    commit_lsn: u64,
    acts: Vec<Act>,
    streamed: bool,
}

/// The source: its transactions in commit order.
struct Source {
    transactions: Vec<Committed>,
    rows: Rows,
    /// Transactions have numbers in the order in which they begin.
    open: Vec<u64>,
    next_xid: u64,
    counter: u64,
}

impl Source {
    fn commit(&mut self, random: &mut Random) {
        while self.open.len() < 3 {
            self.open.push(self.next_xid);
            self.next_xid += 1;
        }
        let xid = self.open.remove(random.below(3));
        let mut acts = Vec::new();
        for _ in 0..1 + random.below(4) {
            self.counter += 1;
            // There is always room for keys behind the last.
            let span = 12 + self.transactions.len() / 4;
            let (oid, id, v) = (1 + random.below(2) as u32, random.below(span) as i64, self.counter);
            let mut places = (0..span).cycle().skip(random.below(span)).take(span).map(|to| to as i64);
            let free = places.find(|to| !self.rows.contains_key(&(oid, *to)));
            let act = match (self.rows.get(&(oid, id)), random.below(12)) {
                (None, _) => Act::Insert { oid, id, v },
                (Some(&was), 0..=3) => Act::Delete { oid, id, was },
                (_, 11) if random.one_in(4) => {
                    Act::Truncate { oids: if random.one_in(2) { vec![oid] } else { vec![HELD, PLAIN] } }
                }
                (Some(&was), choice) => {
                    let values = (v, if random.one_in(2) { was.1 } else { v });
                    let to = free.filter(|_| choice <= 7).unwrap_or(id);
                    Act::Update { oid, id, to, was, values }
                }
            };
            act.apply(&mut self.rows);
            acts.push(act);
        }
        let commit_lsn = 1000 + 100 * self.transactions.len() as u64;
        self.transactions.push(Committed { xid, commit_lsn, acts, streamed: random.one_in(4) });
    }

    /// A snapshot taken now: the rows of the held table that it sees, and which transactions those are of. The last to
    /// have committed may not be visible yet, unless one that is has changed the same rows.
    fn snapshot(&self, random: &mut Random, settled: usize) -> (Rows, Visibility) {
        let mut hidden: BTreeSet<u64> = BTreeSet::new();
        let mut touched = BTreeSet::new();
        for transaction in self.transactions.iter().skip(settled).rev().take(3) {
            let keys: Vec<_> = transaction.acts.iter().flat_map(Act::keys).collect();
            let meets = keys.iter().any(|(oid, id)| {
                touched.iter().any(|(other, key): &(u32, Option<i64>)| {
                    other == oid && (key == id || key.is_none() || id.is_none())
                })
            });
            if !meets && random.one_in(2) {
                hidden.insert(transaction.xid);
            } else {
                touched.extend(keys);
            }
        }
        let mut rows = Rows::new();
        let seen = self.transactions.iter().filter(|transaction| !hidden.contains(&transaction.xid));
        seen.flat_map(|transaction| &transaction.acts).for_each(|act| act.apply(&mut rows));
        rows.retain(|(oid, _), _| *oid == HELD);
        let in_progress: BTreeSet<u64> = hidden.iter().chain(&self.open).copied().collect();
        let first = in_progress.first().copied().unwrap_or(self.next_xid);
        let listed: Vec<_> = in_progress.iter().map(u64::to_string).collect();
        (rows, format!("{first}:{}:{}", self.next_xid, listed.join(",")).parse().unwrap())
    }
}

fn shape(oid: u32, identity: ReplicaIdentity) -> TableShape {
    let column = |name: &str, type_oid, is_key| Column {
        name: name.into(),
        type_oid,
        base_oid: type_oid,
        type_modifier: -1,
        form: TypeForm::Plain,
        identity: is_key || identity == ReplicaIdentity::Full,
    };
    TableShape {
        oid,
        schema: "s".into(),
        name: format!("t{oid}"),
        identity,
        columns: vec![column("id", 20, true), column("v", 20, false), column("big", 25, false)],
        key: vec![0],
    }
}

fn tracked(oid: u32) -> TrackedTable {
    TrackedTable {
        oid,
        schema: "s".into(),
        name: format!("t{oid}"),
        partitioned: false,
        usable_identity: true,
        owned_by_us: true,
        owner: "o".into(),
        ..TrackedTable::default()
    }
}

fn tuple(values: &[Option<String>]) -> Vec<u8> {
    let mut out = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(text) => {
                out.push(b't');
                out.extend((text.len() as u32).to_be_bytes());
                out.extend(text.as_bytes());
            }
            None => out.push(b'n'),
        }
    }
    out
}

/// What is sent of a row that an update or a delete meets, with the letter before it.
fn old(identity: ReplicaIdentity, id: i64, was: Values) -> Vec<u8> {
    let id = Some(id.to_string());
    match identity {
        ReplicaIdentity::Full => {
            [b"O".as_slice(), &tuple(&[id, Some(was.0.to_string()), Some(was.1.to_string())])].concat()
        }
        _ => [b"K".as_slice(), &tuple(&[id, None, None])].concat(),
    }
}

fn message(act: &Act, identity: ReplicaIdentity, xid: Option<u32>) -> Vec<u8> {
    let number = |n: &dyn std::fmt::Display| Some(n.to_string());
    let xid = xid.map(u32::to_be_bytes).map_or(Vec::new(), |xid| xid.to_vec());
    match act {
        Act::Insert { oid, id, v } => {
            let row = tuple(&[number(id), number(v), number(v)]);
            [b"I".as_slice(), &xid, &oid.to_be_bytes(), b"N", &row].concat()
        }
        Act::Update { oid, id, to, was, values } => {
            let old = match identity == ReplicaIdentity::Full || id != to {
                true => old(identity, *id, *was),
                false => Vec::new(),
            };
            let mut new = tuple(&[number(to), number(&values.0), number(&values.1)]);
            if was.1 == values.1 {
                new = tuple(&[number(to), number(&values.0), None]);
                *new.last_mut().unwrap() = b'u';
            }
            [b"U".as_slice(), &xid, &oid.to_be_bytes(), &old, b"N", &new].concat()
        }
        Act::Delete { oid, id, was } => {
            [b"D".as_slice(), &xid, &oid.to_be_bytes(), &old(identity, *id, *was)].concat()
        }
        Act::Truncate { oids } => {
            let oids_bytes: Vec<u8> = oids.iter().flat_map(|oid| oid.to_be_bytes()).collect();
            [b"T".as_slice(), &xid, &(oids.len() as u32).to_be_bytes(), &[0], &oids_bytes].concat()
        }
    }
}

/// A reader that is under way.
struct Reader {
    wanted: Wanted,
    has_begun: bool,
    /// Under a shared snapshot, what is left to tell.
    shared: Option<(Vec<(i64, Values)>, Visibility)>,
    after: Option<i64>,
    /// In key order: the highest key there was before the first part of this reader, and what the snapshot saw that found it.
    end: Option<(Option<i64>, Visibility)>,
    /// What the table's file was like: a truncate makes another.
    stamp: usize,
}

struct History<'a> {
    random: Random,
    directory: &'a Path,
    source: Source,
    /// Of both tables.
    identity: ReplicaIdentity,
    pipeline: Pipeline<LocalWriter>,
    log: Arc<LocalReader>,
    /// Transactions that the stream has brought, on this connection.
    streamed: usize,
    /// Transactions whose visibility is settled: nothing is read before they are.
    settled: usize,
    reader: Option<Reader>,
    barriers: BTreeMap<u64, u64>,
    /// What the jobs have been told to read at least once.
    releases: usize,
    agains: usize,
}

fn open(directory: &Path) -> (Pipeline<LocalWriter>, Arc<LocalReader>) {
    let options = Options { segment_bytes: 8192, ..Options::new(directory.join("log"), "t") };
    let (mut writer, log, topics) = LocalLog::open(options).unwrap();
    let json = r#"{"name":"t","source":"s","outputs":[{"events":{"gap":"inline","snapshot":"inline","transaction":"topic"}}]}"#;
    let task: TaskDefinition = serde_json::from_str(json).unwrap();
    let output = &task.outputs[0];
    let format = output.format.make(&output.name, "db");
    let output = Output::open(format, output.routing(Codec::Lz4), &topics, &mut writer).unwrap();
    let spools = Spools::open(&directory.join("spool")).unwrap();
    (Pipeline::new(writer, log.clone(), vec![output], spools, Arc::default()), log)
}

impl<'a> History<'a> {
    fn new(seed: u64, directory: &'a Path) -> Self {
        let (pipeline, log) = open(directory);
        let mut random = Random(seed);
        let next_xid = if random.one_in(4) { u64::from(u32::MAX) - 20 } else { 700 };
        let source =
            Source { transactions: Vec::new(), rows: Rows::new(), open: Vec::new(), next_xid, counter: 0 };
        History {
            random,
            directory,
            source,
            identity: if seed.is_multiple_of(3) { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
            pipeline,
            log,
            streamed: 0,
            settled: 0,
            reader: None,
            barriers: BTreeMap::new(),
            releases: 0,
            agains: 0,
        }
    }

    async fn run(&mut self) {
        self.connect().await;
        for _ in 0..self.random.below(6) {
            self.source.commit(&mut self.random);
        }
        for _ in 0..30 + self.random.below(120) {
            self.step().await;
        }
        if self.releases == 0 && self.pipeline.jobs().is_empty() {
            self.hold();
        }
        // To the end.
        while self.streamed < self.source.transactions.len() || !self.pipeline.jobs().is_empty() {
            self.deliver(false);
            self.read();
            self.look_after().await;
        }
        self.commit().await;
        self.check().await;
    }

    async fn step(&mut self) {
        match self.random.below(20) {
            0..=5 => self.source.commit(&mut self.random),
            6..=9 => self.deliver(false),
            10 | 11 => self.commit().await,
            12 if self.random.one_in(3) => {
                // In the middle of a transaction, or between two.
                if self.random.one_in(2) {
                    self.deliver(true);
                }
                self.restart().await;
            }
            13 if self.random.one_in(3) => self.hold(),
            14..=17 => self.read(),
            _ => self.look_after().await,
        }
    }

    /// A new connection, after whatever became of the one before.
    async fn connect(&mut self) {
        self.pipeline.recall().await.unwrap();
        let position = self.pipeline.writer().resume();
        let position = position.unwrap_or_else(|| self.pipeline.position());
        self.pipeline.restart(position);
        for oid in [HELD, PLAIN] {
            let arrival = self.pipeline.rows.shapes.read();
            self.pipeline.set_shape(arrival, Arc::new(shape(oid, self.identity)));
        }
        let last = position.last_commit.map_or(0, |last| last.0);
        let known = self.source.transactions.iter().filter(|one| one.commit_lsn <= last).count();
        // Some that the log has come again.
        self.streamed = known.saturating_sub(self.random.below(3));
        self.settled = self.settled.max(known);
        self.barriers.clear();
        self.reader = None;
    }

    async fn restart(&mut self) {
        if self.random.one_in(2) {
            // The process is killed: what no commit has made durable is gone.
            let nowhere = self.directory.join("nowhere");
            let other = open(&nowhere);
            drop(std::mem::replace(&mut self.pipeline, other.0));
            (self.pipeline, self.log) = open(self.directory);
        } else if self.random.one_in(2) {
            // The connection breaks: whole transactions are kept.
            self.pipeline.drop_open();
            self.commit().await;
        } else {
            let position = self.pipeline.position();
            self.pipeline.restart(position);
            self.commit().await;
        }
        self.connect().await;
    }

    async fn commit(&mut self) {
        let position = self.pipeline.position();
        self.pipeline.writer().commit(position).await.unwrap();
        if self.random.one_in(3) {
            self.pipeline.clear_released_when_durable().await;
        }
    }

    fn hold(&mut self) {
        // Whoever wants a table's rows again while they are read gets them anew.
        self.pipeline.hold(&[tracked(HELD)], false).unwrap();
        // The reader is begun anew, and waits for every transaction that has been delivered.
        self.settled = self.source.transactions.len();
        self.reader = None;
    }

    /// The stream brings a transaction, or the first part of one.
    fn deliver(&mut self, cut: bool) {
        let Some(transaction) = self.source.transactions.get(self.streamed).cloned() else { return };
        let Committed { xid, commit_lsn, acts, streamed } = transaction;
        let (xid, identity) = (xid as u32, self.identity);
        let mut take = |body: &[u8]| self.pipeline.message(Lsn(commit_lsn - 1), body).unwrap();
        if streamed {
            take(&[b"S".as_slice(), &xid.to_be_bytes(), &[1]].concat());
            for act in &acts {
                take(&message(act, identity, Some(xid)));
            }
            take(b"E");
            if cut {
                return;
            }
            let places = [commit_lsn.to_be_bytes(), (commit_lsn + 50).to_be_bytes(), [0; 8]].concat();
            let step = take(&[b"c".as_slice(), &xid.to_be_bytes(), &[0], &places].concat());
            let Step::Replay { spool, end_lsn } = step else { panic!("{step:?}") };
            for oid in [HELD, PLAIN] {
                let arrival = self.pipeline.rows.shapes.read();
                self.pipeline.set_shape(arrival, Arc::new(shape(oid, identity)));
            }
            for act in &acts {
                let step = self
                    .pipeline
                    .replayed(Lsn(commit_lsn - 1), &message(act, identity, Some(xid)), &spool)
                    .unwrap();
                assert!(matches!(step, Step::Done));
            }
            self.pipeline.commit(end_lsn).unwrap();
        } else {
            take(&[b"B".as_slice(), &commit_lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()].concat());
            for act in &acts {
                take(&message(act, identity, None));
            }
            if cut {
                return;
            }
            let end = (commit_lsn + 50).to_be_bytes();
            take(&[b"C\0".as_slice(), &commit_lsn.to_be_bytes(), &end, &[0; 8]].concat());
        }
        self.streamed += 1;
    }

    /// The reader tells something.
    fn read(&mut self) {
        let holds = |job: &&Job| job.tables[&HELD].stage != Stage::Moved;
        let Some(job) = self.pipeline.jobs().iter().find(holds) else { return };
        let number = job.place.number;
        let truncates = self.source.transactions.iter().flat_map(|one| &one.acts);
        let truncated = |act: &&Act| matches!(act, Act::Truncate { oids } if oids.contains(&HELD));
        let stamp = truncates.filter(truncated).count();
        let (random, source) = (&mut self.random, &self.source);
        let wanted = self.pipeline.wanted(number).into_iter().next();
        let Some(reader) = self.reader.as_mut() else {
            let Some(wanted) = wanted else { return };
            let after = match &wanted.from {
                ReadFrom::After { key, .. } => Some(key[0].parse().unwrap()),
                _ => None,
            };
            self.reader = Some(Reader { wanted, has_begun: false, shared: None, after, end: None, stamp });
            return;
        };
        let (oid, epoch) = (reader.wanted.oid, reader.wanted.epoch);
        let lines = |rows: &[(i64, Values)]| -> Vec<u8> {
            rows.iter().flat_map(|(id, (v, big))| format!("{id}\t{v}\t{big}\n").into_bytes()).collect()
        };
        if !reader.has_begun {
            reader.has_begun = true;
            // A table may have lost its key, and by key is how the most can go wrong.
            let shared = match &reader.wanted.from {
                ReadFrom::Start => random.one_in(2),
                ReadFrom::FirstKey => random.one_in(5),
                ReadFrom::After { .. } => false,
            };
            let begun = shared.then(|| source.snapshot(random, self.settled));
            let visibility = begun.as_ref().map(|(_, visibility)| visibility.clone());
            reader.shared = begun.map(|(rows, visibility)| {
                (rows.into_iter().map(|((_, id), values)| (id, values)).collect(), visibility)
            });
            let stamp = String::new();
            let begin =
                Read::Begin { oid, epoch, shape: Arc::new(shape(oid, self.identity)), visibility, stamp };
            assert!(self.pipeline.take(number, begin).unwrap().is_none());
            return;
        }
        let (part, rows, is_last) = match &mut reader.shared {
            Some((rows, _)) if rows.is_empty() => {
                self.reader = None;
                assert!(self.pipeline.take(number, Read::End { oid, epoch }).unwrap().is_none());
                return;
            }
            Some((rows, _)) => {
                let count = (1 + random.below(4)).min(rows.len());
                (Part::Shared, rows.drain(..count).collect::<Vec<_>>(), false)
            }
            None => {
                let last = reader.end.clone().filter(|(last, _)| last.is_none() || *last == reader.after);
                if let Some((_, visibility)) = last {
                    // Of what is behind the highest key nothing is read: this part is as old as the search for that.
                    (Part::Keys { through: None, visibility }, Vec::new(), true)
                } else {
                    // A reader looks at the file before each part; one may slip through between two connections.
                    if stamp != reader.stamp && !random.one_in(3) {
                        reader.wanted.epoch += 1;
                        (reader.after, reader.has_begun, reader.stamp) = (None, false, stamp);
                        (reader.wanted.from, reader.end) = (ReadFrom::FirstKey, None);
                        return;
                    }
                    let (rows, visibility) = source.snapshot(random, self.settled);
                    // Later snapshots see no less.
                    self.settled = source.transactions.len();
                    let behind = rows.into_iter().map(|((_, id), values)| (id, values));
                    let mut behind: Vec<_> =
                        behind.filter(|(id, _)| reader.after.is_none_or(|after| *id > after)).collect();
                    let Some((last, _)) = &reader.end else {
                        reader.end = Some((behind.last().map(|(id, _)| *id), visibility));
                        return;
                    };
                    behind.retain(|(id, _)| *id <= last.unwrap());
                    let count = 1 + random.below(4);
                    reader.after = if behind.len() < count { *last } else { Some(behind[count - 1].0) };
                    behind.truncate(count);
                    let through = reader.after.map(|id| vec![id.to_string()]);
                    (Part::Keys { through, visibility }, behind, false)
                }
            }
        };
        let count = rows.len() as u64;
        let copied = CopiedRows::Text(CopyRows::new(lines(&rows), shape(oid, self.identity).columns.len()));
        let read = Read::Rows { oid, epoch, part, rows: copied, count, turn: None };
        if is_last {
            self.reader = None;
        }
        if let Some(mut part) = self.pipeline.take(number, read).unwrap() {
            while self.pipeline.take_rows(&mut part).unwrap() {}
        }
    }

    /// What the session does between transactions: a barrier, and then the release.
    async fn look_after(&mut self) {
        let count = self.pipeline.jobs().len().max(1);
        let Some(job) = self.pipeline.jobs().get(self.random.below(count)) else { return };
        let number = job.place.number;
        if !job.is_read() {
            self.barriers.remove(&number);
            return;
        }
        let now = self.source.transactions.last().map_or(0, |last| last.commit_lsn + 50);
        let barrier = *self.barriers.entry(number).or_insert(now);
        if self.pipeline.processed().0 < barrier {
            return;
        }
        self.commit().await;
        let mut release = self.pipeline.begin_release(number).unwrap();
        loop {
            let mut window = match release.next().await.unwrap() {
                Next::Window(window) => window,
                Next::End => break,
                Next::Again(oid) => {
                    self.agains += 1;
                    self.pipeline.drop_open();
                    self.pipeline.hold_again(Some(oid)).unwrap();
                    self.reader = None;
                    self.settled = self.source.transactions.len();
                    return;
                }
            };
            for (oid, questions) in std::mem::take(&mut window.questions) {
                assert_eq!(release.key_of(oid), ["id"]);
                let number = |key: &[String]| key[0].parse::<i64>().unwrap();
                let behind = questions.iter().map(|asked| number(&asked.key) > number(&asked.bound));
                window.answer(oid, behind.collect());
            }
            self.pipeline.catch_up(&mut release, &window).unwrap();
            if self.random.one_in(4) {
                self.pipeline.writer().flush().await.unwrap();
            }
            if self.random.one_in(8) {
                // Stopped in the middle.
                self.pipeline.drop_open();
                return;
            }
        }
        self.pipeline.end_release(release).unwrap();
        self.releases += 1;
        self.barriers.remove(&number);
    }

    /// Rebuilds the tables from the log alone. Each change must fit what is there, and stand at its place.
    async fn check(&mut self) {
        let topics = self.log.topics().borrow().clone();
        let partition = topics.iter().find(|topic| topic.name == "t").unwrap().partitions[0];
        let mut rows = Rows::new();
        // A change of the key is told as a delete and an insert, of which the one has what the other does not send.
        let mut moved = None;
        let mut places = BTreeSet::new();
        let mut last = BTreeMap::new();
        let snapshot = self.log.snapshot();
        let mut next = Offset(0);
        while next < snapshot.range(partition).unwrap().end {
            let fetched = self.log.fetch(&snapshot, partition, next, 1 << 20).await.unwrap();
            for batch in &fetched.batches {
                let header = BatchHeader::check(batch).unwrap();
                next = header.end_offset();
                let mut records = header.records(batch, 1 << 26).unwrap();
                while let Some(record) = records.next_record().unwrap() {
                    let Some(value) = record.value else { continue };
                    let header = |name: &str| {
                        let found = record.headers().map(Result::unwrap).find(|(known, _)| *known == name);
                        found
                            .and_then(|(_, value)| value)
                            .map(|value| String::from_utf8(value.to_vec()).unwrap())
                    };
                    let value: serde_json::Value = serde_json::from_slice(value).unwrap();
                    if value["type"] == "snapshot" {
                        // What was read before is void, and what was known of the table.
                        if value["stage"] == "begin" {
                            rows.retain(|(oid, _), _| *oid != HELD);
                        }
                        continue;
                    }
                    let oid: u32 = value["source"]["table"].as_str().unwrap()[1..].parse().unwrap();
                    let number = |image: &str, field: &str| value[image][field].as_i64().unwrap();
                    let phase = header("millrace.phase");
                    let op = value["op"].as_str().unwrap();
                    let place = header("millrace.position").unwrap();
                    let (lsn, ordinal) = place.split_once(':').unwrap();
                    let ordinal: u64 = ordinal.parse().unwrap();
                    if op != "r" {
                        // A change of the key is two records at one place.
                        let place = (oid, lsn.parse::<Lsn>().unwrap(), ordinal, op.to_owned());
                        assert!(places.insert(place.clone()), "{place:?} stands twice");
                        let before = last.insert((oid, phase.clone()), (place.1, place.2));
                        assert!(
                            before.is_none_or(|before| before <= (place.1, place.2)),
                            "{place:?} out of order"
                        );
                    }
                    let at = (oid, lsn.to_owned(), ordinal);
                    let place = format!("{phase:?} {value}");
                    let row = |known: Option<Values>| {
                        let big = value["after"]["big"].as_str().unwrap();
                        let big = match big == UNAVAILABLE {
                            true => {
                                known.unwrap_or_else(|| panic!("what is not sent is not there: {place}")).1
                            }
                            false => big.parse().unwrap(),
                        };
                        (number("after", "v") as u64, big)
                    };
                    match op {
                        "r" | "c" => {
                            let was = moved.take().filter(|(from, _)| *from == at).map(|(_, was)| was);
                            let key = (oid, number("after", "id"));
                            assert_eq!(rows.insert(key, row(was)), None, "{place}");
                        }
                        "u" => {
                            let key = (oid, number("after", "id"));
                            let known = rows.get(&key).copied();
                            assert!(rows.insert(key, row(known)).is_some(), "{place}");
                        }
                        "d" => {
                            let was = rows.remove(&(oid, number("before", "id")));
                            moved = Some((at, was.unwrap_or_else(|| panic!("{place}"))));
                        }
                        "t" => rows.retain(|(known, _), _| *known != oid),
                        other => panic!("{other}"),
                    }
                }
            }
        }
        assert_eq!(rows, self.source.rows);
    }
}

impl Pipeline<LocalWriter> {
    /// As a session does when its release is durable.
    async fn clear_released_when_durable(&mut self) {
        self.clear_released().await.unwrap();
    }
}

// I1, I2
#[tokio::test]
async fn rows_and_what_they_lack_are_told_once_whatever_interrupts() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("MILLRACE_SIM_SEED").unwrap_or(1);
    let alone = number("MILLRACE_SIM_SEED").is_some();
    let count = number("MILLRACE_SIM_ROUNDS").unwrap_or(if alone { 1 } else { 60 });
    let (mut releases, mut agains) = (0, 0);
    for seed in first..first + count {
        println!("MILLRACE_SIM_SEED={seed}");
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::new(seed, directory.path());
        history.run().await;
        releases += history.releases;
        agains += history.agains;
    }
    println!("{releases} releases, {agains} tables read again");
    assert!(alone || releases as u64 >= count, "{releases}");
}

// I2
#[test]
fn parts_that_see_the_same_are_one_and_every_change_belongs_where_it_did() {
    const XIDS: u32 = 30;
    for seed in 1..300 {
        let mut random = Random(seed);
        // Each part sees what the one before did, or more.
        let (mut ended, mut parts) = (BTreeSet::new(), Vec::new());
        let mut seen = |random: &mut Random| -> Visibility {
            if random.one_in(2) {
                ended.insert(random.below(XIDS as usize) as u64);
            }
            let open: Vec<_> = (0..XIDS.into()).filter(|xid| !ended.contains(xid)).collect();
            let listed: Vec<_> = open.iter().map(u64::to_string).collect();
            format!("{}:{XIDS}:{}", open[0], listed.join(",")).parse().unwrap()
        };
        let end = seen(&mut random);
        for key in 0..1 + random.below(12) {
            parts.push((Some(vec![(key + 10).to_string()]), seen(&mut random)));
        }
        parts.push((None, end));
        let mut job = Job::new(Place { number: 1, marks: PartitionId(0), changes: PartitionId(1) });
        let (schema, table, key) = ("s".to_owned(), "t".to_owned(), vec!["id".to_owned()]);
        job.apply(&Mark::Hold { oid: HELD, schema, table, epoch: 1, lsn: 7, rows: 0, start: false });
        job.apply(&Mark::Begin { oid: HELD, epoch: 1, key, visibility: None, stamp: String::new() });
        for (through, visibility) in &parts {
            let part = Part::Keys { through: through.clone(), visibility: visibility.clone() };
            job.apply(&Mark::Rows { oid: HELD, epoch: 1, part, rows: 1, bytes: 1 });
        }
        let Stage::Read(contents) = &job.tables[&HELD].stage else { panic!("{job:?}") };
        let mut different: Vec<_> = parts[..parts.len() - 1].iter().map(|(_, seen)| seen).collect();
        different.dedup();
        assert_eq!(contents.chunks.len(), different.len() + 1, "seed {seed}");
        let told = Told::Rows(contents.clone());
        for (key, xid) in (10..24).flat_map(|key| (0..XIDS).map(move |xid| (key.to_string(), xid))) {
            let holds = |(through, _): &&(Option<Vec<String>>, Visibility)| {
                through.as_ref().is_none_or(|through| key <= through[0])
            };
            let lacks = !parts.iter().find(holds).unwrap().1.sees(xid);
            let body = [b"I", &HELD.to_be_bytes()[..], b"N", &tuple(&[Some(key.clone()), None])].concat();
            let transaction = Transaction { xid, ..read_under(Lsn(1)) };
            let shape = Arc::new(shape(HELD, ReplicaIdentity::Default));
            let change = Assembled { transaction, shape, lsn: Lsn(1), ordinal: 0, in_stream: false, body };
            let (mut cells, mut questions, mut window) = (Cells::default(), Vec::new(), Window::default());
            let message = pgoutput::parse(&change.body, false, &mut cells).unwrap();
            let (old, new) = judge(Some(&told), &change, &message, &mut questions).unwrap();
            window.answer(HELD, questions.iter().map(|asked| asked.key > asked.bound).collect());
            let wanted = window.wanted(&Held { change, old, new });
            assert_eq!(wanted.is_some(), lacks, "key {key}, transaction {xid}, seed {seed}");
        }
    }
}

// I2
#[test]
fn a_row_that_comes_back_over_what_was_read_is_told_whole_or_read_again() {
    // The old key lies in a part that sees the update, and the new one in one that does not.
    let part =
        |bound: Option<&str>, seen: &str| (bound.map(|key| vec![key.to_owned()]), seen.parse().unwrap());
    let contents = Contents {
        key: vec!["id".into()],
        stamp: String::new(),
        visibility: None,
        chunks: vec![part(Some("5"), "10:10:"), part(Some("9"), "30:30:"), part(None, "10:10:")],
        rows: 0,
    };
    let told = Told::Rows(contents);
    let update = |old: &[u8], v: &[u8]| {
        let new = [&2u16.to_be_bytes()[..], b"t\0\0\0\x013", v].concat();
        [b"U", &HELD.to_be_bytes()[..], old, b"N", &new].concat()
    };
    let full = [b"O", &tuple(&[Some("7".into()), Some("42".into())])[..]].concat();
    let key = [b"K", &tuple(&[Some("7".into()), None])[..]].concat();
    let judged = |body: &[u8], identity| {
        let mut shape = shape(HELD, ReplicaIdentity::Default);
        shape.columns[1].identity = identity;
        let transaction = Transaction { xid: 20, ..read_under(Lsn(1)) };
        let (shape, body) = (Arc::new(shape), body.to_vec());
        let change = Assembled { transaction, shape, lsn: Lsn(1), ordinal: 0, in_stream: false, body };
        let (mut cells, mut whole, mut questions) = (Cells::default(), Vec::new(), Vec::new());
        let message = pgoutput::parse(&change.body, false, &mut cells).unwrap();
        let (old, new) = judge(Some(&told), &change, &message, &mut questions)?;
        let mut window = Window::default();
        window.answer(HELD, questions.iter().map(|asked| asked.key > asked.bound).collect());
        let held = Held { change, old, new };
        let half = window.wanted(&held);
        assert_eq!(half, Some(Half::New), "{old:?} {new:?}");
        let message = pgoutput::parse(&held.change.body, false, &mut cells).unwrap();
        let told = change_of(message, half.unwrap(), &held.change.shape, &mut whole).unwrap();
        let TableChange::Row { operation: Operation::Insert, before: None, after: Some(row) } = told else {
            panic!("another change");
        };
        let text = |value: Value<'_>| match value {
            Value::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        Some(row.values().map(text).collect::<Vec<_>>())
    };
    let whole = |v: &str| Some(vec!["3".to_owned(), v.to_owned()]);
    assert_eq!(judged(&update(&key, b"t\0\0\0\x028!"), false), whole("8!"));
    assert_eq!(judged(&update(&full, b"t\0\0\0\x028!"), true), whole("8!"));
    assert_eq!(judged(&update(&full, b"u"), true), whole("42"));
    // What looks like a null in a key is no value.
    assert_eq!(judged(&update(&key, b"u"), false), None);
}
