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
use crate::log::topics::{TopicInfo, TopicList};
use crate::log::{LogReader, LogWriter, PartitionId, Retention};

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}

type Group = Vec<(PartitionId, Vec<u8>)>;

/// What the log must hold.
#[derive(Default)]
struct Model {
    /// The last commit that was answered or seen.
    commit: u64,
    position: u64,
    records: BTreeMap<PartitionId, Vec<Vec<u8>>>,
    topics: TopicList,
    /// Topics made since, in order: they may be durable or not, without holes.
    made: Vec<(String, Vec<PartitionId>)>,
    /// The group that was being committed: as a whole it may be there or not.
    in_flight: Option<(u64, Group)>,
    /// Transactions since the last commit, up to the boundary; and after it.
    group: Group,
    open: Group,
    starts: BTreeMap<PartitionId, i64>,
}

impl Model {
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
        self.model.made.clear();
        self.check_contents(reader).await
    }

    /// The topics of before must be there, and behind them none but the first of those that have been made since.
    fn see_topics(&mut self, found: &[Arc<TopicInfo>]) -> Result<(), String> {
        let known = self.model.topics.len();
        ensure!(found.starts_with(&self.model.topics), "topics are missing or different: {found:?}");
        let new = found[known..].iter().map(|topic| (topic.name.clone(), topic.partitions.clone()));
        let new: Vec<_> = new.collect();
        ensure!(self.model.made.starts_with(&new), "{new:?} was made, not {:?}", self.model.made);
        self.model.made.drain(..new.len());
        self.model.topics = found.to_vec();
        Ok(())
    }

    async fn check_contents(&mut self, reader: &LocalReader) -> Result<(), String> {
        let snapshot = reader.snapshot();
        for partition in self.model.records.keys() {
            ensure!(snapshot.range(*partition).is_some(), "{partition:?} has lost its topic");
        }
        for topic in &self.model.topics {
            for partition in &topic.partitions {
                let range = snapshot.range(*partition).ok_or(format!("{partition:?} is missing"))?;
                let expected = self.model.records.get(partition).map_or(&[][..], |records| records);
                let end = range.end.0;
                ensure!(end == expected.len() as i64, "{partition:?} ends at {end}, not {}", expected.len());
                let start = self.model.starts.entry(*partition).or_default();
                ensure!(range.start.0 >= *start, "{partition:?} starts at {} after {start}", range.start);
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
        let known = self.model.topics.iter().map(|topic| &topic.partitions);
        let made = self.model.made.iter().map(|(_, partitions)| partitions);
        let partitions: Vec<PartitionId> = known.chain(made).flatten().copied().collect();
        let act = if partitions.is_empty() { 0 } else { self.random.below(60) };
        match act {
            0..=2 => self.create_topic(writer)?,
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
                ensure!(self.model.made.is_empty(), "a flush has not shown {:?}", self.model.made);
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
        if self.model.topics.len() + self.model.made.len() > 6 {
            return Ok(());
        }
        let name = format!("topic-{}", self.counter);
        let count = 1 + self.random.below(3);
        let codec = [Codec::None, Codec::Lz4, Codec::Zstd][self.random.below(3)];
        let made = writer.create_topic(&name, count as u32, codec).map_err(|error| error.to_string())?;
        ensure!(made.len() == count, "{} partitions instead of {count}", made.len());
        self.model.made.push((name, made));
        Ok(())
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
        let made = self.model.made.len();
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
                let topics = self.model.topics.len() + made;
                self.see_topics(&reader.topics().borrow())?;
                let seen = self.model.topics.len();
                ensure!(seen == topics, "{seen} topics are visible when there should be {topics}");
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
