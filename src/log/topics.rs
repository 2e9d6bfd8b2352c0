//! The topics that this broker serves, over all tasks: which log and which of its partitions stand behind a name.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, RwLock};

use super::{LogReader, PartitionId};

/// A topic's id, stable over restarts (Kafka KIP-516).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u128);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
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

/// All topics of the broker. Cheap to clone; all clones are the same directory.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    inner: Arc<RwLock<Inner>>,
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
    }

    /// Takes a topic away.
    pub fn remove(&self, name: &str) {
        let mut inner = self.inner.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(old) = inner.by_name.remove(name) {
            inner.by_id.remove(&old.id);
        }
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
