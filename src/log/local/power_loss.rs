//! Random histories on a disk that loses its power, fills up or fails, and what must hold after each recovery.
//!
//! `MILLRACE_SIM_SEED` repeats one history, `MILLRACE_SIM_ROUNDS` says how many are run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::sim::{Random, SimFiles};
use super::{LocalLog, LocalReader, LocalWriter, Options};
use crate::log::conformance::{position, put, read_all};
use crate::log::record_batch::Codec;
use crate::log::topics::{HIDDEN, TopicInfo, TopicList, is_hidden};
use crate::log::{LogReader, LogWriter, Offset, PartitionId, Retention};

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}

type Group = Vec<(PartitionId, Vec<u8>)>;

/// A topic as the writer knows it.
type Named = (String, Vec<PartitionId>);

/// What has become of a topic, which readers may or may not have been shown.
#[derive(Clone, Debug)]
enum Change {
    Made(Named),
    Grown(Named),
    Deleted(String),
}

impl Change {
    fn apply(self, topics: &mut Vec<Named>) {
        match self {
            Change::Made(topic) => topics.push(topic),
            Change::Grown((name, partitions)) => {
                topics
                    .iter_mut()
                    .filter(|topic| topic.0 == name)
                    .for_each(|topic| topic.1 = partitions.clone());
            }
            Change::Deleted(name) => topics.retain(|topic| topic.0 != name),
        }
    }
}

/// What the log must hold.
#[derive(Default)]
struct Model {
    /// The last commit that was answered or seen.
    commit: u64,
    position: u64,
    records: BTreeMap<PartitionId, Vec<Vec<u8>>>,
    topics: TopicList,
    /// What has become of them since, in order: the first of it may be durable or not, without holes.
    changes: Vec<Change>,
    /// The group that was being committed: as a whole it may be there or not.
    in_flight: Option<(u64, Group)>,
    /// Transactions since the last commit, up to the boundary; and after it.
    group: Group,
    open: Group,
    /// What is known of the starts; and up to where somebody has asked for records to be deleted.
    starts: BTreeMap<PartitionId, i64>,
    asked_below: BTreeMap<PartitionId, i64>,
}

impl Model {
    /// The topics as the writer knows them.
    fn writers_topics(&self) -> Vec<Named> {
        let mut topics = named(&self.topics);
        self.changes.iter().for_each(|change| change.clone().apply(&mut topics));
        topics
    }

    fn apply(&mut self, position: u64, group: Group) {
        self.commit += 1;
        self.position = position;
        for (partition, value) in group {
            self.records.entry(partition).or_default().push(value);
        }
    }

    fn forget_uncommitted(&mut self) {
        self.group.clear();
        self.open.clear();
        self.in_flight = None;
    }
}

fn named(topics: &[Arc<TopicInfo>]) -> Vec<Named> {
    topics.iter().map(|topic| (topic.name.clone(), topic.partitions.clone())).collect()
}

struct History {
    random: Random,
    files: SimFiles,
    options: Options,
    model: Model,
    /// Makes every value and position different.
    counter: u64,
}

impl History {
    fn new(seed: u64, files: SimFiles) -> Self {
        let mut random = Random(seed);
        let options = Options {
            segment_bytes: 4096 + random.below(12_000) as u64,
            max_batch_bytes: 200 + random.below(2_000),
            tail_cache_bytes: [0, 3_000, 1 << 20][random.below(3)],
            merge_batch_bytes: [0, 1_000, 8_000, 1 << 20][random.below(4)],
            retention: Retention { bytes: random.one_in(3).then_some(20_000), age: None },
            files: Arc::new(files.clone()),
            ..Options::new("/log", "sim")
        };
        History { random, files, options, model: Model::default(), counter: 0 }
    }

    async fn run(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.random.below(6) {
            if self.random.one_in(4) {
                self.files.fail_sync_after(self.random.below(40) as u64);
            }
            if !self.random.one_in(5) {
                let operations = if self.random.one_in(3) { 30 } else { 200 };
                self.files.power_off_after(self.random.below(operations) as u64);
            }
            self.live().await?;
            if self.random.one_in(4) { self.files.kill() } else { self.files.crash(&mut self.random) }
        }
        // And once more without any trouble.
        self.live().await
    }

    /// From an opening to the next trouble.
    async fn live(&mut self) -> Result<(), String> {
        let opened = LocalLog::open(self.options.clone());
        let (mut writer, reader, topics) = match opened {
            Ok(opened) => opened,
            Err(_) if self.files.is_off() => return Ok(()),
            Err(error) if error.to_string().contains("the disk says no") => return Ok(()),
            Err(error) => return Err(format!("the log does not open: {error}")),
        };
        let found = reader.snapshot().commit();
        settle(&mut writer).await;
        self.check_recovered(found, &writer, &reader, topics).await?;
        for _ in 0..self.random.below(120) {
            if !self.step(&mut writer, &reader).await? {
                break;
            }
        }
        // What a client has seen must be there for ever, whether or not the commit was answered.
        let seen = reader.snapshot().commit();
        if let Some((position, group)) = self.model.in_flight.take_if(|_| seen > self.model.commit) {
            self.model.apply(position, group);
        }
        ensure!(seen == self.model.commit, "commit {seen} is visible, not {}", self.model.commit);
        if self.random.one_in(3) {
            self.check_contents(&reader).await?;
        }
        drop(writer);
        Ok(())
    }

    async fn check_recovered(
        &mut self,
        found: u64,
        writer: &LocalWriter,
        reader: &LocalReader,
        topics: TopicList,
    ) -> Result<(), String> {
        ensure!(
            found >= self.model.commit,
            "recovered commit {found}, but {} was answered",
            self.model.commit
        );
        if found > self.model.commit {
            let Some((position, group)) = self.model.in_flight.take() else {
                return Err(format!("recovered commit {found}, which was never asked for"));
            };
            self.model.apply(position, group);
        }
        ensure!(found == self.model.commit, "recovered commit {found} instead of {}", self.model.commit);
        self.model.forget_uncommitted();
        let resume = writer.resume();
        let expected = (found > 0).then(|| position(self.model.position));
        ensure!(resume == expected, "resumes at {resume:?} instead of {expected:?}");
        self.see_topics(&topics)?;
        // What no commit or flush has made durable is gone for good.
        self.model.changes.clear();
        self.check_contents(reader).await
    }

    /// The topics must be those of before with the first of what has become of them since.
    fn see_topics(&mut self, found: &[Arc<TopicInfo>]) -> Result<(), String> {
        let (mut expected, mut seen) = (named(&self.model.topics), None);
        for shown in 0..=self.model.changes.len() {
            if expected == named(found) {
                seen = Some(shown);
            }
            let next = self.model.changes.get(shown).cloned();
            next.into_iter().for_each(|change| change.apply(&mut expected));
        }
        let Some(seen) = seen else {
            return Err(format!(
                "{found:?} is neither {:?} nor on the way to {expected:?}",
                self.model.topics
            ));
        };
        for before in &self.model.topics {
            let now = found.iter().find(|topic| topic.partitions.first() == before.partitions.first());
            ensure!(now.is_none_or(|now| now.id == before.id), "{before:?} has got another id");
        }
        self.model.changes.drain(..seen);
        self.model.topics = found.to_vec();
        Ok(())
    }

    async fn check_contents(&mut self, reader: &LocalReader) -> Result<(), String> {
        // What a failed commit has shown of them stays.
        self.see_topics(&reader.topics().borrow())?;
        let snapshot = reader.snapshot();
        let known: Vec<_> = self.model.topics.iter().flat_map(|topic| &topic.partitions).collect();
        for partition in self.model.records.keys() {
            let is_there = snapshot.range(*partition).is_some();
            ensure!(
                is_there == known.contains(&partition),
                "{partition:?} has lost its topic, or is left of one"
            );
        }
        for topic in &self.model.topics {
            for partition in &topic.partitions {
                let range = snapshot.range(*partition).ok_or(format!("{partition:?} is missing"))?;
                let expected = self.model.records.get(partition).map_or(&[][..], |records| records);
                let end = range.end.0;
                ensure!(end == expected.len() as i64, "{partition:?} ends at {end}, not {}", expected.len());
                let start = self.model.starts.entry(*partition).or_default();
                ensure!(range.start.0 >= *start, "{partition:?} starts at {} after {start}", range.start);
                let asked = self.model.asked_below.get(partition).copied().unwrap_or_default();
                let is_bounded = self.options.retention.bytes.is_none() || is_hidden(&topic.name);
                ensure!(!is_bounded || range.start.0 <= asked, "{partition:?} starts behind {asked}");
                *start = range.start.0;
                let max_bytes = 1 + self.random.below(5_000);
                let read = read_all(reader, *partition, range.start, max_bytes).await;
                let found = read.map_err(|error| format!("{partition:?} is not readable: {error}"))?;
                let kept = (range.start.0..).zip(expected.iter().skip(range.start.0 as usize).cloned());
                ensure!(found.into_iter().eq(kept), "{partition:?} has other records");
            }
        }
        Ok(())
    }

    /// One random act; `false` when the log has stopped.
    async fn step(&mut self, writer: &mut LocalWriter, reader: &LocalReader) -> Result<bool, String> {
        let topics = self.model.writers_topics();
        let partitions: Vec<PartitionId> =
            topics.into_iter().flat_map(|(_, partitions)| partitions).collect();
        let act = if partitions.is_empty() { 0 } else { self.random.below(66) };
        match act {
            0..=2 => self.create_topic(writer)?,
            60 => self.delete_topic(writer)?,
            61 => self.add_partition(writer)?,
            62..=65 => return self.delete_records(writer, reader).await,
            3..=25 => {
                for _ in 0..1 + self.random.below(8) {
                    self.append(writer, &partitions);
                }
            }
            26..=37 => {
                writer.boundary();
                let open = std::mem::take(&mut self.model.open);
                self.model.group.extend(open);
            }
            38..=40 => {
                writer.abort();
                self.model.open.clear();
            }
            41..=45 => {
                let ticket = writer.flush();
                if let Err(error) = ticket.await {
                    return self.failed(writer, error.is_retryable()).await;
                }
                self.see_topics(&reader.topics().borrow())?;
                ensure!(self.model.changes.is_empty(), "a flush has not shown {:?}", self.model.changes);
                return Ok(settle(writer).await);
            }
            46 => self.files.set_space(Some(self.random.below(6_000) as u64)),
            47 => self.files.set_space(None),
            48 => self.check_contents(reader).await?,
            _ => return self.commit(writer, reader, &partitions).await,
        }
        Ok(true)
    }

    fn append(&mut self, writer: &mut LocalWriter, partitions: &[PartitionId]) {
        self.counter += 1;
        let partition = partitions[self.random.below(partitions.len())];
        let len = if self.random.one_in(20) { self.random.below(9_000) } else { self.random.below(300) };
        let mut value = format!("{} ", self.counter).into_bytes();
        value.extend((0..len).map(|n| if n % 3 == 0 { b'x' } else { self.random.next() as u8 }));
        put(writer, partition, self.counter as i64, &value);
        self.model.open.push((partition, value));
    }

    fn create_topic(&mut self, writer: &mut LocalWriter) -> Result<(), String> {
        self.counter += 1;
        let topics = self.model.writers_topics();
        if topics.len() > 6 {
            return Ok(());
        }
        // A name that may have been free before.
        let prefix = if self.random.one_in(3) { HIDDEN } else { "topic-" };
        let free =
            (0..).map(|n| format!("{prefix}{n}")).find(|name| topics.iter().all(|topic| topic.0 != *name));
        let name = free.unwrap_or_default();
        let count = 1 + self.random.below(3);
        let codec = [Codec::None, Codec::Lz4, Codec::Zstd][self.random.below(3)];
        let made = writer.create_topic(&name, count as u32, codec).map_err(|error| error.to_string())?;
        ensure!(made.len() == count, "{} partitions instead of {count}", made.len());
        self.model.changes.push(Change::Made((name, made)));
        Ok(())
    }

    fn add_partition(&mut self, writer: &mut LocalWriter) -> Result<(), String> {
        let mut topics = self.model.writers_topics();
        let (name, partitions) = topics.swap_remove(self.random.below(topics.len()));
        if partitions.len() > 4 {
            return Ok(());
        }
        let grown = writer.add_partitions(&name, partitions.len() as u32 + 1);
        let grown = grown.map_err(|error| error.to_string())?;
        ensure!(grown.starts_with(&partitions) && grown.len() == partitions.len() + 1, "{grown:?}");
        self.model.changes.push(Change::Grown((name, grown)));
        Ok(())
    }

    fn delete_topic(&mut self, writer: &mut LocalWriter) -> Result<(), String> {
        let mut topics = self.model.writers_topics();
        let (name, _) = topics.swap_remove(self.random.below(topics.len()));
        writer.delete_topic(&name).map_err(|error| error.to_string())?;
        self.model.changes.push(Change::Deleted(name));
        Ok(())
    }

    async fn delete_records(
        &mut self,
        writer: &mut LocalWriter,
        reader: &LocalReader,
    ) -> Result<bool, String> {
        let snapshot = reader.snapshot();
        let known = self.model.topics.iter().flat_map(|topic| &topic.partitions).copied();
        let known: Vec<_> = known.collect();
        let mut below = Vec::new();
        for partition in known {
            let Some(range) = snapshot.range(partition).filter(|_| self.random.one_in(2)) else { continue };
            let offset = range.start.0 + self.random.below((range.end.0 - range.start.0) as usize + 1) as i64;
            let asked = self.model.asked_below.entry(partition).or_default();
            *asked = offset.max(*asked);
            below.push((partition, Offset(offset)));
        }
        drop(snapshot);
        match reader.delete_records(below.clone()).await {
            Ok(starts) => {
                for ((partition, offset), start) in below.iter().zip(starts) {
                    let known = self.model.starts.entry(*partition).or_default();
                    ensure!(start >= *offset, "{partition:?} starts at {start}, not {offset}");
                    *known = start.0.max(*known);
                }
                Ok(settle(writer).await)
            }
            Err(error) if error.is_retryable() => Ok(settle(writer).await),
            Err(_) => Ok(false),
        }
    }

    async fn commit(
        &mut self,
        writer: &mut LocalWriter,
        reader: &LocalReader,
        partitions: &[PartitionId],
    ) -> Result<bool, String> {
        self.counter += 1;
        let number = self.counter;
        let group = std::mem::take(&mut self.model.group);
        ensure!(writer.has_group() || group.is_empty(), "the writer knows of no group");
        let expected = self.model.writers_topics();
        let ticket = writer.commit(position(number));
        self.model.in_flight = Some((number, group));
        if self.random.one_in(2) {
            self.append(writer, partitions);
            if self.random.one_in(3) {
                writer.abort();
                self.model.open.clear();
            }
            if self.random.one_in(8) {
                self.create_topic(writer)?;
            }
        }
        match ticket.await {
            Ok(committed) => {
                let Some((position, group)) = self.model.in_flight.take() else { return Ok(true) };
                self.model.apply(position, group);
                let commit = self.model.commit;
                ensure!(committed.number == commit, "commit {} instead of {commit}", committed.number);
                let visible = reader.snapshot().commit();
                ensure!(visible == commit, "commit {visible} is visible when {commit} is answered");
                self.see_topics(&reader.topics().borrow())?;
                let seen = named(&self.model.topics);
                ensure!(seen == expected, "{seen:?} is visible when it should be {expected:?}");
                Ok(settle(writer).await)
            }
            Err(error) => self.failed(writer, error.is_retryable()).await,
        }
    }

    async fn failed(&mut self, writer: &mut LocalWriter, retryable: bool) -> Result<bool, String> {
        if !retryable {
            return Ok(false);
        }
        // Lack of space: the group is gone for good, and the same writer goes on from the last commit.
        self.model.forget_uncommitted();
        let expected = (self.model.commit > 0).then(|| position(self.model.position));
        let resume = writer.resume();
        ensure!(resume == expected, "resumes at {resume:?} instead of {expected:?} after lack of space");
        if self.random.one_in(2) {
            self.files.set_space(None);
        }
        Ok(settle(writer).await)
    }
}

/// Waits until the log's thread has looked after its segments and merged what there was, so that a seed always gives the
/// same history. `false` when the log has stopped.
async fn settle(writer: &mut LocalWriter) -> bool {
    while writer.settle().await.is_ok() {
        if writer.unmerged() == 0 {
            return true;
        }
        // In peace: it looks after its merges when it has nothing else to do.
        while writer.unmerged() > 0 {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
    false
}

fn histories(first_seed: u64, count: u64, files: impl Fn() -> SimFiles) -> Result<(), (u64, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for seed in first_seed..first_seed + count {
        let mut history = History::new(seed, files());
        runtime.block_on(history.run()).map_err(|violation| (seed, violation))?;
    }
    Ok(())
}

#[test]
fn what_was_answered_or_seen_survives_the_loss_of_power() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("MILLRACE_SIM_SEED") {
        Some(seed) => (seed, number("MILLRACE_SIM_ROUNDS").unwrap_or(1)),
        None => (1, number("MILLRACE_SIM_ROUNDS").unwrap_or(300)),
    };
    if let Err((seed, violation)) = histories(first, count, SimFiles::default) {
        panic!("{violation}\nrepeat it with MILLRACE_SIM_SEED={seed}");
    }
}

#[test]
fn a_disk_that_lies_about_fsync_is_found_out() {
    assert!(histories(1, 40, SimFiles::lying).is_err(), "the checker does not see lost data");
}

#[test]
fn the_contract_holds_on_simulated_files() {
    struct Simulated(SimFiles);
    impl crate::log::conformance::Log for Simulated {
        type Writer = LocalWriter;
        type Reader = LocalReader;
        fn open(&self) -> (LocalWriter, Arc<LocalReader>) {
            // The process before is gone.
            self.0.kill();
            let files = Arc::new(self.0.clone());
            let options = Options {
                files,
                segment_bytes: 4096,
                merge_batch_bytes: 0,
                ..Options::new(Path::new("/log"), "sim")
            };
            let (writer, reader, _) = LocalLog::open(options).unwrap();
            (writer, reader)
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(crate::log::conformance::check(|| Simulated(SimFiles::default())));
}
