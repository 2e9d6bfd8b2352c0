//! Settings of topics under Kafka's names: the one table of them, and the values that operators have given.
//!
//! Every setting that Apache Kafka 4.3 has for topics is here, with the value that holds. Most are as they are: a topic
//! belongs to its task. Retention alone can be changed while the broker runs. A task has one log for all of its topics,
//! so what is set for one of them holds for all of them together, and each shows it. It is durable in the store before it
//! holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;

use crate::log::Retention;
use crate::log::topics::Topic;
use crate::produce::{LOG_NAME, MAX_BATCH_BYTES};
use crate::state::{StateError, Store};

/// How long records are kept, in milliseconds; -1 for ever.
pub const RETENTION_MS: &str = "retention.ms";
/// How large a task's log grows, in bytes; -1 without end.
pub const RETENTION_BYTES: &str = "retention.bytes";

/// A setting's type, with the number that it has in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean = 1,
    /// A text.
    Text = 2,
    /// A number of 32 bits.
    Int = 3,
    /// A number of 64 bits.
    Long = 5,
    /// A number with a fraction.
    Double = 6,
    /// Texts with commas between.
    List = 7,
}

/// Where a value comes from, with the number that it has in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An operator has set it for the topic's task.
    DynamicTopic = 1,
    /// The broker's own configuration, where that is not what Apache Kafka would have.
    StaticBroker = 4,
    /// It is as in Apache Kafka without configuration.
    Default = 5,
}

/// A setting that topics have.
#[derive(Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What Apache Kafka has without configuration.
    pub default: &'static str,
    /// The broker's setting that it comes from, by the name that Apache Kafka gives it.
    pub broker_name: Option<&'static str>,
    value: Value,
    /// What it says here, for people.
    pub about: &'static str,
}

/// What the broker gives a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// As Apache Kafka has it.
    Default,
    Fixed(&'static str),
    MaxRecordBytes,
    SegmentBytes,
    RetentionMs,
    RetentionBytes,
}

const fn setting(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    broker_name: Option<&'static str>,
    value: Value,
    about: &'static str,
) -> Definition {
    Definition { name, kind, default, broker_name, value, about }
}

const FOREVER: &str = "9223372036854775807";
const NOT_COMPACTED: &str = "No topic is compacted, so it changes nothing.";
const NOT_REMOTE: &str = "There is no remote storage.";
const ONE_REPLICA: &str = "There is one broker and one replica of each partition.";
const CODEC: &str = "The codec's own level is used; the codec is the task's setting.";

/// All settings of topics, by name.
#[rustfmt::skip]
pub static ALL: &[Definition] = {
    use Kind::{Boolean, Double, Int, List, Long, Text};
    use Value::{Default, Fixed, MaxRecordBytes, SegmentBytes};
    &[
        setting("cleanup.policy", List, "delete", Some("log.cleanup.policy"), Default,
            "Old records are deleted; none are compacted."),
        setting("compression.gzip.level", Int, "-1", Some("compression.gzip.level"), Default, CODEC),
        setting("compression.lz4.level", Int, "9", Some("compression.lz4.level"), Default, CODEC),
        setting("compression.type", Text, "producer", Some("compression.type"), Default,
            "Batches are compressed as the task that writes them is told, and stay so."),
        setting("compression.zstd.level", Int, "3", Some("compression.zstd.level"), Default, CODEC),
        setting("delete.retention.ms", Long, "86400000", Some("log.cleaner.delete.retention.ms"), Default,
            NOT_COMPACTED),
        setting("file.delete.delay.ms", Long, "60000", Some("log.segment.delete.delay.ms"), Fixed("0"),
            "Files of old segments are removed at once; who reads them keeps them open."),
        setting("flush.messages", Long, FOREVER, Some("log.flush.interval.messages"), Fixed("1"),
            "Everything is on disk before anybody sees it."),
        setting("flush.ms", Long, FOREVER, Some("log.flush.interval.ms"), Default,
            "No time passes before a flush: see flush.messages."),
        setting("follower.replication.throttled.replicas", List, "", None, Default, ONE_REPLICA),
        setting("index.interval.bytes", Int, "4096", Some("log.index.interval.bytes"), Fixed("0"),
            "Every batch is in the index."),
        setting("leader.replication.throttled.replicas", List, "", None, Default, ONE_REPLICA),
        setting("local.retention.bytes", Long, "-2", Some("log.local.retention.bytes"), Default, NOT_REMOTE),
        setting("local.retention.ms", Long, "-2", Some("log.local.retention.ms"), Default, NOT_REMOTE),
        setting("max.compaction.lag.ms", Long, FOREVER, Some("log.cleaner.max.compaction.lag.ms"), Default,
            NOT_COMPACTED),
        setting("max.message.bytes", Int, "1048588", Some("message.max.bytes"), MaxRecordBytes,
            "The largest record; log.max_record_mb of the broker. For what clients write in test mode, the largest batch."),
        setting("message.timestamp.after.max.ms", Long, "3600000", Some("log.message.timestamp.after.max.ms"),
            Default, "For what clients write in test mode; records of a task have the time of their commit."),
        setting("message.timestamp.before.max.ms", Long, FOREVER, Some("log.message.timestamp.before.max.ms"),
            Default, "Records may have any time of the past."),
        setting("message.timestamp.type", Text, "CreateTime", Some("log.message.timestamp.type"), Default,
            "A record's time is that of the commit in the source."),
        setting("min.cleanable.dirty.ratio", Double, "0.5", Some("log.cleaner.min.cleanable.ratio"), Default,
            NOT_COMPACTED),
        setting("min.compaction.lag.ms", Long, "0", Some("log.cleaner.min.compaction.lag.ms"), Default,
            NOT_COMPACTED),
        setting("min.insync.replicas", Int, "1", Some("min.insync.replicas"), Default, ONE_REPLICA),
        setting("preallocate", Boolean, "false", Some("log.preallocate"), Default,
            "Segment files grow as they are written."),
        setting("remote.log.copy.disable", Boolean, "false", None, Default, NOT_REMOTE),
        setting("remote.log.delete.on.disable", Boolean, "false", None, Default, NOT_REMOTE),
        setting("remote.storage.enable", Boolean, "false", None, Default, NOT_REMOTE),
        setting(RETENTION_BYTES, Long, "-1", Some("log.retention.bytes"), Value::RetentionBytes,
            "The size that the log of the topic's task is cut to, all its topics together, in whole segments; -1 for \
             no limit. Setting it sets it for all topics of the task."),
        setting(RETENTION_MS, Long, "604800000", Some("log.retention.ms"), Value::RetentionMs,
            "How long the log of the topic's task keeps records, by the time when they were captured, in whole \
             segments; -1 for ever. Setting it sets it for all topics of the task."),
        setting("segment.bytes", Int, "1073741824", Some("log.segment.bytes"), SegmentBytes,
            "Size of the segments of the task's log; log.segment_mb of the broker."),
        setting("segment.index.bytes", Int, "10485760", Some("log.index.size.max.bytes"), Default,
            "An index is as large as its segment needs."),
        setting("segment.jitter.ms", Long, "0", Some("log.roll.jitter.ms"), Default,
            "A segment is sealed when it is full or old."),
        setting("segment.ms", Long, "604800000", Some("log.roll.ms"), Fixed(FOREVER),
            "A segment is sealed when it is full, or as old as retention.ms, so that it can go."),
        setting("unclean.leader.election.enable", Boolean, "false", Some("unclean.leader.election.enable"),
            Default, ONE_REPLICA),
    ]
};

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Definition> {
    ALL.iter().find(|definition| definition.name == name)
}

impl Definition {
    /// Whether it can be changed while the broker runs.
    pub fn is_alterable(&self) -> bool {
        matches!(self.name, RETENTION_MS | RETENTION_BYTES)
    }

    /// A value for a setting that can be changed. As in Apache Kafka any negative size is no limit.
    fn parse(&self, value: &str) -> Result<i64, Refusal> {
        let refused = |detail| Refusal::Value { name: self.name, value: value.to_owned(), detail };
        match value.parse() {
            Ok(..-1) if self.name == RETENTION_MS => Err(refused("Value must be at least -1")),
            Ok(number) => Ok(number),
            Err(_) => Err(refused("Not a number of type LONG")),
        }
    }
}

/// A setting of a topic.
#[derive(Debug)]
pub struct Setting {
    /// What it is.
    pub definition: &'static Definition,
    /// The value that holds.
    pub value: String,
    /// Where that comes from.
    pub origin: Origin,
    /// The value that would hold if nobody had set another for the topic: the broker's.
    pub broker_value: String,
    /// Where the broker's comes from.
    pub broker_origin: Origin,
}

/// What the broker's configuration gives all topics.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// How much of a log is kept.
    pub retention: Retention,
    /// Size of a log's segments.
    pub segment_bytes: u64,
    /// The largest record.
    pub max_record_bytes: usize,
}

impl Defaults {
    /// Those of one log: what clients write has Kafka's own limit.
    fn of(self, log: &str) -> Defaults {
        match log {
            LOG_NAME => Defaults { max_record_bytes: MAX_BATCH_BYTES, ..self },
            _ => self,
        }
    }

    fn setting(self, definition: &'static Definition, overrides: Overrides) -> Setting {
        let number = |limit: Option<u64>| limit.map_or("-1".to_owned(), |limit| limit.to_string());
        let Defaults { retention, segment_bytes, max_record_bytes } = self;
        let broker_ms = retention.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let (broker_value, set) = match definition.value {
            Value::Default => (definition.default.to_owned(), None),
            Value::Fixed(value) => (value.to_owned(), None),
            Value::MaxRecordBytes => (max_record_bytes.to_string(), None),
            Value::SegmentBytes => (segment_bytes.to_string(), None),
            Value::RetentionMs => (number(broker_ms), overrides.retention_ms),
            Value::RetentionBytes => (number(retention.bytes), overrides.retention_bytes),
        };
        let broker_origin =
            if broker_value == definition.default { Origin::Default } else { Origin::StaticBroker };
        match set {
            Some(set) => Setting {
                definition,
                value: set.to_string(),
                origin: Origin::DynamicTopic,
                broker_value,
                broker_origin,
            },
            None => Setting {
                definition,
                value: broker_value.clone(),
                origin: broker_origin,
                broker_value,
                broker_origin,
            },
        }
    }
}

/// What operators have set for a log; -1 for no limit, `None` for as the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overrides {
    /// [`RETENTION_MS`].
    pub retention_ms: Option<i64>,
    /// [`RETENTION_BYTES`].
    pub retention_bytes: Option<i64>,
}

impl Overrides {
    fn set(&mut self, name: &str, value: Option<i64>) {
        match name {
            RETENTION_MS => self.retention_ms = value,
            RETENTION_BYTES => self.retention_bytes = value,
            // Of a Millrace that knew others.
            _ => {}
        }
    }
}

/// The settings of all topics.
#[derive(Debug, Clone)]
pub struct TopicSettings {
    store: Arc<Store>,
    defaults: Defaults,
    /// By the name of the log.
    overrides: Arc<Mutex<HashMap<String, Overrides>>>,
    /// Held through a change, so that the store, this and the logs agree whoever else changes something. Readers do not
    /// wait for the disk.
    changing: Arc<Mutex<()>>,
}

impl TopicSettings {
    /// Reads what operators have set. Blocks on the disk.
    ///
    /// # Errors
    /// Database errors.
    pub fn open(store: Arc<Store>, defaults: Defaults) -> Result<TopicSettings, StateError> {
        let mut overrides: HashMap<String, Overrides> = HashMap::new();
        for (log, name, value) in store.log_settings()? {
            overrides.entry(log).or_default().set(&name, Some(value));
        }
        let overrides = Arc::new(Mutex::new(overrides));
        Ok(TopicSettings { store, defaults, overrides, changing: Arc::default() })
    }

    /// How much is kept of the log of that name.
    pub fn retention(&self, log: &str) -> Retention {
        let overrides = self.overrides(log);
        let limit = |value: i64| u64::try_from(value).ok();
        let Retention { bytes, age } = self.defaults.retention;
        Retention {
            bytes: overrides.retention_bytes.map_or(bytes, limit),
            age: overrides.retention_ms.map_or(age, |ms| limit(ms).map(Duration::from_millis)),
        }
    }

    /// What operators have set for the log of that name.
    pub fn overrides(&self, log: &str) -> Overrides {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        overrides.get(log).copied().unwrap_or_default()
    }

    /// All settings of a topic, by name.
    pub fn of(&self, topic: &Topic) -> Vec<Setting> {
        let (log, overrides) = (topic.log.name(), self.overrides(topic.log.name()));
        ALL.iter().map(|definition| self.defaults.of(log).setting(definition, overrides)).collect()
    }

    /// The settings that topics have without any of their own, by name.
    pub fn of_broker(&self) -> Vec<Setting> {
        ALL.iter().map(|definition| self.defaults.setting(definition, Overrides::default())).collect()
    }

    /// What changes of a topic's settings come to: the settings that get another value, or none of their own.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn check(&self, topic: &Topic, changes: &[Change]) -> Result<Wanted, Refusal> {
        let overrides = self.overrides(topic.log.name());
        let mut wanted = Wanted::new();
        for Change { name, operation, value } in changes {
            let Some(definition) = find(name) else {
                if *operation == Operation::Delete {
                    continue;
                }
                return Err(Refusal::Unknown(name.clone()));
            };
            let has = self.defaults.of(topic.log.name()).setting(definition, overrides).value;
            let given = value.as_deref().unwrap_or_default().trim();
            let listed = |list: &str| -> Vec<String> {
                list.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
            };
            let value = match operation {
                Operation::Delete => {
                    if definition.is_alterable() {
                        wanted.insert(definition.name, None);
                    }
                    continue;
                }
                Operation::Append | Operation::Subtract if definition.kind != Kind::List => {
                    return Err(Refusal::NotAList(definition.name));
                }
                Operation::Append => {
                    let mut all = listed(&has);
                    all.extend(listed(given).into_iter().filter(|item| !listed(&has).contains(item)));
                    all.join(",")
                }
                Operation::Subtract => {
                    let mut all = listed(&has);
                    all.retain(|item| !listed(given).contains(item));
                    all.join(",")
                }
                Operation::Set if definition.kind == Kind::List => listed(given).join(","),
                Operation::Set => given.to_owned(),
            };
            if definition.is_alterable() {
                wanted.insert(definition.name, Some(definition.parse(&value)?));
            } else if value != has {
                let topic = topic.name.clone();
                return Err(Refusal::Fixed { topic, name: definition.name, has, about: definition.about });
            }
        }
        Ok(wanted)
    }

    /// Changes what is set for a topic's log: durable, then in force. Blocks on the disk.
    ///
    /// # Errors
    /// Database errors; then all is as it was.
    pub fn change(&self, topic: &Topic, wanted: &Wanted) -> Result<(), StateError> {
        let log = topic.log.name();
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<_> = wanted.iter().map(|(name, value)| (*name, *value)).collect();
        self.store.set_log_settings(log, &values)?;
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        let of_log = overrides.entry(log.to_owned()).or_default();
        values.into_iter().for_each(|(name, value)| of_log.set(name, value));
        drop(overrides);
        topic.log.set_retention(self.retention(log));
        Ok(())
    }
}

/// A change of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The setting's name.
    pub name: String,
    /// What is done.
    pub operation: Operation,
    /// With which value.
    pub value: Option<String>,
}

/// What is done to a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It gets a value.
    Set,
    /// It goes back to what the broker has.
    Delete,
    /// Some more is in the list.
    Append,
    /// Something is taken off the list.
    Subtract,
}

/// Settings that are changed: to a value, or back to what the broker has.
pub type Wanted = BTreeMap<&'static str, Option<i64>>;

/// Why a setting is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Apache Kafka has no such setting.
    #[error("Unknown topic config name: {0}")]
    Unknown(String),
    /// The value is none for it.
    #[error("Invalid value {value} for configuration {name}: {detail}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// It has one value.
    #[error("{0} has one value and is no list; set it")]
    NotAList(&'static str),
    /// It is as it is.
    #[error("{name} of topic {topic} is '{has}' and cannot be changed. {about}")]
    Fixed {
        /// The topic.
        topic: String,
        /// The setting.
        name: &'static str,
        /// Its value.
        has: String,
        /// What decides it.
        about: &'static str,
    },
}

impl Refusal {
    /// What clients are told.
    pub fn error(&self) -> ResponseError {
        match self {
            Refusal::Unknown(_) | Refusal::Value { .. } | Refusal::NotAList(_) => {
                ResponseError::InvalidConfig
            }
            Refusal::Fixed { .. } => ResponseError::PolicyViolation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DataDir;

    const DEFAULTS: Defaults = Defaults {
        retention: Retention { bytes: None, age: Some(Duration::from_secs(7 * 24 * 3600)) },
        segment_bytes: 1 << 20,
        max_record_bytes: 1_048_588,
    };

    fn open(directory: &std::path::Path) -> TopicSettings {
        let store = Store::open(&DataDir::open(directory).unwrap()).unwrap();
        TopicSettings::open(Arc::new(store), DEFAULTS).unwrap()
    }

    #[test]
    fn names_are_in_order_and_each_there_once() {
        assert!(ALL.is_sorted_by(|a, b| a.name < b.name));
        let alterable = ALL.iter().filter(|definition| definition.is_alterable());
        assert!(alterable.map(|definition| definition.name).eq([RETENTION_BYTES, RETENTION_MS]));
    }

    #[test]
    fn where_a_value_comes_from_is_told() {
        let told = |name, overrides| {
            let setting = DEFAULTS.setting(find(name).unwrap(), overrides);
            (setting.value, setting.origin, setting.broker_value, setting.broker_origin)
        };
        let none = Overrides::default();
        let same = |value: &str, origin| (value.to_owned(), origin, value.to_owned(), origin);
        assert_eq!(told(RETENTION_MS, none), same("604800000", Origin::Default));
        assert_eq!(told("segment.bytes", none), same("1048576", Origin::StaticBroker));
        assert_eq!(told("max.message.bytes", none), same("1048588", Origin::Default));
        let set = Overrides { retention_ms: Some(-1), retention_bytes: None };
        let (dynamic, default) = (Origin::DynamicTopic, Origin::Default);
        assert_eq!(told(RETENTION_MS, set), ("-1".into(), dynamic, "604800000".into(), default));
        assert_eq!(told(RETENTION_BYTES, set), same("-1", Origin::Default));
    }

    #[test]
    fn what_is_set_is_the_retention_of_the_log_and_of_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let settings = open(directory.path());
        let values = [(RETENTION_MS, Some(-1)), (RETENTION_BYTES, Some(5_000))];
        settings.store.set_log_settings("shop", &values).unwrap();
        drop(settings);
        let settings = open(directory.path());
        assert_eq!(settings.retention("shop"), Retention { bytes: Some(5_000), age: None });
        assert_eq!(settings.retention("other"), DEFAULTS.retention);
    }
}
