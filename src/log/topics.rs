//! The topics that this broker serves, over all tasks: which log and which of its partitions stand behind a name.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Arc, RwLock};

use tokio::sync::watch;

use super::{LogReader, PartitionId};

/// A topic's name is at most this long, in bytes.
pub const MAX_NAME: usize = 249;

/// A topic's id, stable over restarts (Kafka KIP-516).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u128);

impl TopicId {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn draw() -> io::Result<TopicId> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        Ok(TopicId(u128::from_le_bytes(id)))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A topic as its log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its id, drawn when it was made.
    pub id: TopicId,
    /// Partition `n` of the topic is `partitions[n]` of the log.
    pub partitions: Vec<PartitionId>,
}

/// The topics of a log, in the order in which they were made.
pub type TopicList = Vec<Arc<TopicInfo>>;

/// What the names of hidden topics begin with. No output can be named so, and clients may not name a topic so.
pub const HIDDEN: &str = "__millrace-";

/// Whether a topic is hidden: no front end shows or serves it, and retention spares what it holds. It is there for who
/// writes the log, and goes when they delete it.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

/// Whether clients may name a topic so: the name is one in Kafka, and none of ours.
pub fn is_topic_name(name: &str) -> bool {
    is_kafka_name(name) && !is_hidden(name)
}

/// Whether Kafka allows the name for a topic.
pub fn is_kafka_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME && name.bytes().all(allowed)
}

/// A topic: a name for some partitions of a log.
#[derive(Clone)]
pub struct Topic {
    /// Its name as clients use it.
    pub name: String,
    /// Its id.
    pub id: TopicId,
    /// Partition `n` of the topic is `partitions[n]` of the log.
    pub partitions: Vec<PartitionId>,
    /// The log behind it.
    pub log: Arc<dyn LogReader>,
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({} {} x{})", self.name, self.id, self.partitions.len())
    }
}

/// Shows a log's topics to the broker's clients, as they come and go, but for those that are hidden.
pub struct Announcer {
    topics: Topics,
    log: Arc<dyn LogReader>,
    list: watch::Receiver<TopicList>,
    announced: TopicList,
}

impl Announcer {
    /// Shows the topics that the log has.
    pub fn new(topics: Topics, log: Arc<dyn LogReader>) -> Self {
        let list = log.topics();
        let mut announcer = Announcer { topics, log, list, announced: Vec::new() };
        announcer.announce();
        announcer
    }

    /// Shows what changes. Ends when the log has been closed.
    pub async fn run(mut self) {
        while self.list.changed().await.is_ok() {
            self.announce();
        }
    }

    /// Shows what has changed since. Both lists are in the order in which topics were made.
    pub fn announce(&mut self) {
        let mut list = self.list.borrow_and_update().clone();
        list.retain(|info| !is_hidden(&info.name));
        let mut before = self.announced.iter().peekable();
        for info in &list {
            while let Some(deleted) = before.next_if(|before| before.id != info.id) {
                self.topics.remove(deleted.id);
            }
            if before.next().is_some_and(|before| Arc::ptr_eq(before, info)) {
                continue;
            }
            self.topics.insert(Topic {
                name: info.name.clone(),
                id: info.id,
                partitions: info.partitions.clone(),
                log: self.log.clone(),
            });
        }
        before.for_each(|deleted| self.topics.remove(deleted.id));
        self.announced = list;
    }
}

/// All topics of the broker. Cheap to clone; all clones are the same directory.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    inner: Arc<RwLock<Inner>>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: HashMap<TopicId, Arc<Topic>>,
}

impl Topics {
    /// Adds a topic, or replaces the one of that name.
    pub fn insert(&self, topic: Topic) {
        let topic = Arc::new(topic);
        let mut inner = self.inner.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(old) = inner.by_name.insert(topic.name.clone(), topic.clone()) {
            inner.by_id.remove(&old.id);
        }
        inner.by_id.insert(topic.id, topic);
        self.changed.send_replace(());
    }

    /// Takes a topic away, if it is there.
    pub fn remove(&self, id: TopicId) {
        let mut inner = self.inner.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(old) = inner.by_id.remove(&id) else { return };
        inner.by_name.remove(&old.name);
        self.changed.send_replace(());
    }

    /// Wakes who waits on it when topics are added, replaced or taken away.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The topic of that name.
    pub fn by_name(&self, name: &str) -> Option<Arc<Topic>> {
        self.read().by_name.get(name).cloned()
    }

    /// The topic with that id.
    pub fn by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.read().by_id.get(&id).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Topic>> {
        self.read().by_name.values().cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogWriter;
    use crate::log::local::{LocalLog, Options};
    use crate::log::record_batch::Codec;

    #[tokio::test]
    async fn topics_are_shown_grow_and_go_as_their_log_says_and_no_others_do() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, reader, _) = LocalLog::open(Options::new(directory.path(), "test")).unwrap();
        let topics = Topics::default();
        for name in ["a", "b", "c", "d"] {
            writer.create_topic(name, 1, Codec::None).unwrap();
        }
        writer.flush().await.unwrap();
        let mut announcer = Announcer::new(topics.clone(), reader.clone());
        let foreign =
            Topic { id: TopicId(7), name: "z".into(), ..Topic::clone(&topics.by_name("a").unwrap()) };
        topics.insert(foreign);
        let shown = || -> Vec<_> {
            topics.all().iter().map(|topic| (topic.name.clone(), topic.id, topic.partitions.len())).collect()
        };
        let before = shown();
        assert_eq!(before.len(), 5);

        writer.delete_topic("b").unwrap();
        writer.delete_topic("d").unwrap();
        writer.create_topic("b", 3, Codec::None).unwrap();
        writer.add_partitions("c", 2).unwrap();
        writer.create_topic(&format!("{HIDDEN}x"), 1, Codec::None).unwrap();
        writer.create_topic("e", 1, Codec::None).unwrap();
        writer.flush().await.unwrap();
        assert_eq!(shown(), before);
        announcer.announce();
        let after = shown();
        let named: Vec<_> = after.iter().map(|(name, _, partitions)| (&**name, *partitions)).collect();
        assert_eq!(named, [("a", 1), ("b", 3), ("c", 2), ("e", 1), ("z", 1)]);
        assert_eq!((after[0].1, after[2].1), (before[0].1, before[2].1));
        assert_ne!(after[1].1, before[1].1);
        for (name, id, _) in before.iter().filter(|topic| topic.0 == "b" || topic.0 == "d") {
            assert!(topics.by_id(*id).is_none(), "the old {name} is still there");
        }
        assert!(after.iter().all(|(name, id, _)| topics.by_id(*id).is_some_and(|topic| topic.name == *name)));
        let hidden = reader.topics().borrow().iter().find(|info| is_hidden(&info.name)).map(|info| info.id);
        assert!(hidden.is_some_and(|id| topics.by_id(id).is_none()) && !is_topic_name(HIDDEN));
    }
}
