//! The partitions that a Fetch request or a session is about, in the order in which they are served.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use uuid::Uuid;

use super::answer::Partition;

/// First version in which topics are named by their id.
pub const TOPIC_IDS: i16 = 13;

/// A topic as the request names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TopicKey {
    /// By its name.
    Name(Arc<str>),
    /// By its id.
    Id(Uuid),
}

impl TopicKey {
    /// Names are copied: a slice would keep the whole request in memory.
    fn new(version: i16, name: &str, id: Uuid) -> TopicKey {
        match version {
            TOPIC_IDS.. => TopicKey::Id(id),
            _ => TopicKey::Name(name.into()),
        }
    }
}

/// What a client wants of a partition, and what it was last told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its place in the order.
    pub slot: u64,
    /// Its topic.
    pub topic: TopicKey,
    /// Its number in the topic.
    pub index: i32,
    /// The first record wanted.
    pub from: i64,
    /// Bytes of records that the client takes at most.
    pub max_bytes: usize,
    /// The leader epoch that the client knows, or -1.
    pub leader_epoch: i32,
    /// The epoch of the record before `from`, or -1.
    pub last_fetched_epoch: i32,
    /// The high watermark in the last answer that had one.
    pub told_end: Option<i64>,
    /// The log's start in the last answer that had one.
    pub told_start: Option<i64>,
}

impl Wanted {
    fn new(topic: TopicKey, slot: u64, asked: &FetchPartition) -> Wanted {
        Wanted {
            slot,
            topic,
            index: asked.partition,
            from: asked.fetch_offset,
            max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0),
            leader_epoch: asked.current_leader_epoch,
            last_fetched_epoch: asked.last_fetched_epoch,
            told_end: None,
            told_start: None,
        }
    }

    /// Whether an answer says anything that the client does not know.
    pub fn is_news(&self, partition: &Partition, records: usize) -> bool {
        records > 0
            || partition.error.is_some()
            || partition.diverging.is_some()
            || self.told_end != Some(partition.high_watermark.0)
            || self.told_start != Some(partition.log_start.0)
    }
}

/// What a request asks for, as it stands in it.
pub fn wanted(version: i16, topics: &[FetchTopic]) -> Vec<Wanted> {
    let mut all = Vec::with_capacity(topics.iter().map(|topic| topic.partitions.len()).sum());
    for topic in topics {
        let key = TopicKey::new(version, &topic.topic, topic.topic_id);
        for partition in &topic.partitions {
            all.push(Wanted::new(key.clone(), all.len() as u64, partition));
        }
    }
    all
}

/// What a client is told of a partition.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Its place in the order.
    pub slot: u64,
    /// The high watermark; `None` with an error, so that the partition is told again when the error is gone.
    pub end: Option<i64>,
    /// The log's start; `None` with an error.
    pub start: Option<i64>,
    /// Whether there were records, after which others come first.
    pub records: bool,
}

/// The partitions of a session.
#[derive(Debug, Default)]
pub struct Table {
    order: BTreeMap<u64, Wanted>,
    slots: HashMap<(TopicKey, i32), u64>,
    next: u64,
    names: usize,
}

impl Table {
    /// So much memory a partition takes, about, without its topic's name.
    const PARTITION: usize = 256;

    /// The partitions of a full request, each once.
    pub fn new(wanted: Vec<Wanted>) -> Table {
        let mut table = Table::default();
        for wanted in wanted {
            table.set(wanted);
        }
        table
    }

    /// Adds and changes what a request asks for, then takes away what it forgets.
    pub fn update(&mut self, version: i16, topics: &[FetchTopic], forgotten: &[ForgottenTopic]) {
        for wanted in wanted(version, topics) {
            self.set(wanted);
        }
        for topic in forgotten {
            let key = TopicKey::new(version, &topic.topic, topic.topic_id);
            for partition in &topic.partitions {
                self.forget(&key, *partition);
            }
        }
    }

    /// A partition that is there keeps its place, and what its client was told of it.
    fn set(&mut self, wanted: Wanted) {
        let key = (wanted.topic.clone(), wanted.index);
        if let Some(known) = self.slots.get(&key).and_then(|slot| self.order.get_mut(slot)) {
            let Wanted { slot, told_end, told_start, .. } = *known;
            *known = Wanted { slot, told_end, told_start, ..wanted };
            return;
        }
        self.names += name_length(&key.0);
        let slot = self.next;
        self.next += 1;
        self.slots.insert(key, slot);
        self.order.insert(slot, Wanted { slot, ..wanted });
    }

    fn forget(&mut self, topic: &TopicKey, index: i32) {
        if let Some(slot) = self.slots.remove(&(topic.clone(), index)) {
            self.names -= name_length(topic);
            self.order.remove(&slot);
        }
    }

    /// Remembers what the client has been told. Partitions that had records go behind the others, so that those come
    /// first in the next answer.
    pub fn tell(&mut self, told: &[Told]) {
        for told in told {
            let Some(wanted) = self.order.get_mut(&told.slot) else { continue };
            wanted.told_end = told.end;
            wanted.told_start = told.start;
            if told.records
                && let Some(wanted) = self.order.remove(&told.slot)
            {
                let slot = self.next;
                self.next += 1;
                self.slots.insert((wanted.topic.clone(), wanted.index), slot);
                self.order.insert(slot, Wanted { slot, ..wanted });
            }
        }
    }

    /// All partitions, in order.
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut all = Vec::with_capacity(self.order.len());
        all.extend(self.order.values().cloned());
        all
    }

    /// How many partitions there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.len() * Table::PARTITION + self.names
    }
}

fn name_length(topic: &TopicKey) -> usize {
    match topic {
        TopicKey::Name(name) => name.len(),
        TopicKey::Id(_) => 0,
    }
}
