//! What a task is to do, as it is saved. Holds no secret: the password comes with each start (I9).

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::capture::Start;
use crate::capture::oversized::Oversized;
use crate::capture::routing::{Events, Layout, Policy, Routing};
use crate::format::FormatName;
use crate::format::partitioner::PartitionBy;
use crate::log::record_batch::Codec;
use crate::postgres::objects::Objects;
use crate::postgres::publication::{OptionsError, SourceOptions};

/// A change tracking task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct TaskDefinition {
    /// Its unique name: `[a-z0-9_]{1,40}`.
    pub name: String,
    /// The source database, without password.
    pub source: String,
    /// The tables that it tracks.
    pub objects: Objects,
    /// What it begins with.
    pub start: Start,
    /// How tables are published.
    pub publish: SourceOptions,
    /// Its outputs, at least one.
    pub outputs: Vec<OutputDefinition>,
}

/// One of a task's outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputDefinition {
    /// Its name, unique in the broker: its topics are named after it.
    pub name: String,
    /// Its format.
    pub format: FormatName,
    /// Whether all changes are in one topic, or those of each table in one.
    pub layout: Layout,
    /// Partitions of each of these topics.
    pub partitions: u32,
    /// How records are spread over them.
    pub partition_by: PartitionBy,
    /// How its batches are compressed; as the broker's setting says when absent.
    pub codec: Option<Codec>,
    /// What becomes of events that are not changes of tables.
    pub events: Events,
    /// What becomes of changes whose records are larger than the broker's limit.
    pub oversized: Oversized,
}

/// An output as a person asks for it: what they leave out has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSettings {
    /// Its name; the task's when absent.
    pub name: Option<String>,
    /// Its format; Debezium JSON when absent.
    pub format: Option<FormatName>,
    /// Whether all changes are in one topic, which is the default, or those of each table in one.
    pub layout: Option<Layout>,
    /// Partitions of each of these topics; one when absent.
    pub partitions: Option<u32>,
    /// How records are spread over them; by key when absent, if there are several.
    pub partition_by: Option<PartitionBy>,
    /// How its batches are compressed; as the broker's setting says when absent.
    pub codec: Option<Codec>,
    /// What becomes of events that are not changes of tables. When absent, gaps and messages stand among the changes, or
    /// have a topic where the format's readers would not take them, and the others are left out.
    pub events: Events<Option<Policy>>,
    /// What becomes of changes whose records are larger than the broker's limit: they fail the task when absent.
    pub oversized: Option<Oversized>,
}

/// The most partitions that a topic may have.
pub const MAX_PARTITIONS: u32 = 10_000;

/// A definition that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A task's or output's name.
    #[error("'{0}' is not a name for a task or an output: use 1 to 40 of a-z, 0-9 and _")]
    Name(String),
    /// A number of partitions.
    #[error("output {output} has partitions {partitions}; use 1 to {MAX_PARTITIONS}")]
    Partitions {
        /// The output.
        output: String,
        /// What was asked for.
        partitions: u32,
    },
    /// Several partitions of which all but one would stay empty.
    #[error(
        "output {output} has partition_by none, which means one partition, and partitions {partitions}; \
         leave out partitions, or use partition_by table or key"
    )]
    OnePartition {
        /// The output.
        output: String,
        /// What was asked for.
        partitions: u32,
    },
    /// Two outputs would write the same topics.
    #[error(
        "two outputs are named {output}, one of task {first} and one of task {second}; rename one of them"
    )]
    SameName {
        /// The output.
        output: String,
        /// A task that has it.
        first: String,
        /// Another, or the same.
        second: String,
    },
    /// How tables are to be published.
    #[error(transparent)]
    Publish(#[from] OptionsError),
    /// A saved task of both shapes.
    #[error(
        "a task has either outputs or a format, partitions and partition_by of its own; remove the latter"
    )]
    BothShapes,
}

/// A setting in which two definitions differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the setting.
    pub setting: &'static str,
    /// What is saved.
    pub saved: String,
    /// What is wanted.
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, not {}", self.setting, self.saved, self.wanted)
    }
}

/// What a wanted definition has that a saved one has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Outputs to add: they start at the next group.
    pub added: Vec<OutputDefinition>,
    /// What cannot be changed, one sentence each.
    pub differences: Vec<String>,
}

/// A task name made of a database's: lower case, everything else than letters and digits an underscore, cut at 40.
pub fn name_from_database(database: &str) -> String {
    let name: String = database
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(40)
        .collect();
    if name.is_empty() { "task".to_owned() } else { name }
}

/// Whether a text may be a task's or an output's name.
pub fn is_valid_name(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Makes sure that no two outputs of these tasks would write the same topics. Names of outputs have no dots, and all
/// topics of an output are `<output>` or `<output>.…`: so it is enough that the names differ.
///
/// # Errors
/// [`DefinitionError::SameName`].
pub fn check_output_names<'a>(
    tasks: impl IntoIterator<Item = &'a TaskDefinition>,
) -> Result<(), DefinitionError> {
    let mut owners = BTreeMap::new();
    for task in tasks {
        for output in &task.outputs {
            if let Some(first) = owners.insert(&output.name, &task.name) {
                let (first, second) = (first.clone(), task.name.clone());
                return Err(DefinitionError::SameName { output: output.name.clone(), first, second });
            }
        }
    }
    Ok(())
}

impl TaskDefinition {
    /// A task of a whole database from now on, with these outputs; with one of the default settings where there is none.
    ///
    /// # Errors
    /// The first thing in it that cannot be meant.
    pub fn new(
        name: String,
        source: String,
        mut outputs: Vec<OutputSettings>,
    ) -> Result<Self, DefinitionError> {
        if !is_valid_name(&name) {
            return Err(DefinitionError::Name(name));
        }
        if outputs.is_empty() {
            outputs.push(OutputSettings::default());
        }
        let outputs = outputs.into_iter().map(|output| output.define(&name)).collect::<Result<_, _>>()?;
        let (objects, start) = (Objects::default(), Start::default());
        let publish = SourceOptions::default();
        let task = TaskDefinition { name, source, objects, start, publish, outputs };
        check_output_names([&task])?;
        Ok(task)
    }

    /// Takes over the settings of `wanted` that may be changed while an output lives.
    pub fn take_changes(&mut self, wanted: &TaskDefinition) {
        for output in &mut self.outputs {
            if let Some(wanted) = wanted.outputs.iter().find(|wanted| wanted.name == output.name) {
                output.oversized = wanted.oversized;
            }
        }
    }

    /// What it takes to make `self`, which is saved, into `wanted`. Sources are compared as they are written; what is
    /// tracked is not looked at, because it may change at any time.
    pub fn compare(&self, wanted: &TaskDefinition) -> Comparison {
        let mut comparison = Comparison::default();
        let mut differs = |sentence| comparison.differences.push(sentence);
        for (setting, saved, wanted) in
            [("name", &self.name, &wanted.name), ("source", &self.source, &wanted.source)]
        {
            if saved != wanted {
                differs(format!("{setting} is {saved}, not {wanted}"));
            }
        }
        for difference in self.publish.differences(&wanted.publish) {
            differs(difference);
        }
        let output = |task: &TaskDefinition, name: &str| {
            task.outputs.iter().find(|output| output.name == name).cloned()
        };
        for saved in &self.outputs {
            match output(wanted, &saved.name) {
                None => differs(format!("output {} is there, and not wanted", saved.name)),
                Some(wanted) => {
                    for difference in saved.differences(&wanted.into()) {
                        differs(format!("output {}: {difference}", saved.name));
                    }
                }
            }
        }
        let added = wanted.outputs.iter().filter(|wanted| output(self, &wanted.name).is_none());
        comparison.added = added.cloned().collect();
        comparison
    }
}

impl OutputDefinition {
    /// How it spreads its records; compressed with `codec` where the definition does not say.
    pub fn routing(&self, codec: Codec) -> Routing {
        Routing {
            output: self.name.clone(),
            layout: self.layout,
            partitions: self.partitions,
            by: self.partition_by,
            codec: self.codec.unwrap_or(codec),
            events: self.events,
            oversized: self.oversized,
        }
    }

    /// The settings that are asked for, differ and cannot be changed. What nothing is said of does not differ.
    pub fn differences(&self, asked: &OutputSettings) -> Vec<Difference> {
        [
            difference("format", self.format, asked.format, name),
            difference("layout", self.layout, asked.layout, name),
            difference("partitions", self.partitions, asked.partitions, |count| count.to_string()),
            difference("partition_by", self.partition_by, asked.partition_by, name),
            difference("codec", self.codec, asked.codec.map(Some), codec_name),
            difference("events.gap", self.events.gap, asked.events.gap, name),
            difference("events.message", self.events.message, asked.events.message, name),
            difference("events.heartbeat", self.events.heartbeat, asked.events.heartbeat, name),
            difference("events.watermark", self.events.watermark, asked.events.watermark, name),
            difference("events.transaction", self.events.transaction, asked.events.transaction, name),
            difference("events.snapshot", self.events.snapshot, asked.events.snapshot, name),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A setting that is asked for and differs.
pub fn difference<T: Copy + PartialEq>(
    setting: &'static str,
    saved: T,
    asked: Option<T>,
    show: impl Fn(T) -> String,
) -> Option<Difference> {
    let asked = asked.filter(|asked| *asked != saved)?;
    Some(Difference { setting, saved: show(saved), wanted: show(asked) })
}

impl From<OutputDefinition> for OutputSettings {
    fn from(output: OutputDefinition) -> Self {
        let OutputDefinition { name, format, layout, partitions, partition_by, codec, events, oversized } =
            output;
        OutputSettings {
            name: Some(name),
            format: Some(format),
            layout: Some(layout),
            partitions: Some(partitions),
            partition_by: Some(partition_by),
            codec,
            events: Events {
                gap: Some(events.gap),
                message: Some(events.message),
                heartbeat: Some(events.heartbeat),
                watermark: Some(events.watermark),
                transaction: Some(events.transaction),
                snapshot: Some(events.snapshot),
            },
            oversized: Some(oversized),
        }
    }
}

impl OutputSettings {
    /// The output of a task that is meant.
    ///
    /// # Errors
    /// The first setting that cannot be meant.
    pub fn define(self, task: &str) -> Result<OutputDefinition, DefinitionError> {
        let output = self.name.unwrap_or_else(|| task.to_owned());
        if !is_valid_name(&output) {
            return Err(DefinitionError::Name(output));
        }
        let partitions = self.partitions.unwrap_or(1);
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(DefinitionError::Partitions { output, partitions });
        }
        let default = if partitions == 1 { PartitionBy::None } else { PartitionBy::Key };
        let partition_by = self.partition_by.unwrap_or(default);
        if partition_by == PartitionBy::None && partitions > 1 {
            return Err(DefinitionError::OnePartition { output, partitions });
        }
        let format = self.format.unwrap_or_default();
        let usual = if format.takes_events_inline() { Policy::Inline } else { Policy::Topic };
        let events = Events {
            gap: self.events.gap.unwrap_or(usual),
            message: self.events.message.unwrap_or(usual),
            heartbeat: self.events.heartbeat.unwrap_or(Policy::Off),
            watermark: self.events.watermark.unwrap_or(Policy::Off),
            transaction: self.events.transaction.unwrap_or(Policy::Off),
            snapshot: self.events.snapshot.unwrap_or(usual),
        };
        let (layout, codec) = (self.layout.unwrap_or_default(), self.codec);
        let oversized = self.oversized.unwrap_or_default();
        Ok(OutputDefinition {
            name: output,
            format,
            layout,
            partitions,
            partition_by,
            codec,
            events,
            oversized,
        })
    }
}

fn codec_name(codec: Option<Codec>) -> String {
    codec.map_or_else(|| "the broker's".to_owned(), name)
}

/// The name that users give to one of a few choices.
pub fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// A task as it may have been saved: version 0.1 gave it one output, without a name of its own, and the whole database.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    name: String,
    source: String,
    #[serde(default)]
    objects: Objects,
    #[serde(default)]
    start: Start,
    #[serde(default)]
    publish: SourceOptions,
    #[serde(default)]
    outputs: Vec<OutputSettings>,
    format: Option<FormatName>,
    partitions: Option<u32>,
    partition_by: Option<PartitionBy>,
}

impl TryFrom<Saved> for TaskDefinition {
    type Error = DefinitionError;

    fn try_from(saved: Saved) -> Result<Self, Self::Error> {
        let Saved { name, source, objects, start, publish, mut outputs, format, partitions, partition_by } =
            saved;
        publish.check()?;
        let own = OutputSettings { format, partitions, partition_by, ..OutputSettings::default() };
        if own != OutputSettings::default() {
            if !outputs.is_empty() {
                return Err(DefinitionError::BothShapes);
            }
            outputs.push(own);
        }
        Ok(TaskDefinition { objects, start, publish, ..TaskDefinition::new(name, source, outputs)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: &str) -> Result<TaskDefinition, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_made_of_any_database_name_is_valid() {
        for database in ["shop", "Shop-EU", "", "größe", &"x".repeat(63)] {
            assert!(is_valid_name(&name_from_database(database)), "{database}");
        }
    }

    #[test]
    fn a_task_that_was_saved_before_there_were_outputs_has_one_of_its_name() {
        let old = r#"{"name":"shop","source":"postgres://h/d","format":"debezium-json","partitions":4,"partition_by":"table"}"#;
        let loaded = task(old).unwrap();
        let output = OutputDefinition {
            name: "shop".to_owned(),
            format: FormatName::DebeziumJson,
            layout: Layout::Task,
            partitions: 4,
            partition_by: PartitionBy::Table,
            codec: None,
            events: Events {
                gap: Policy::Topic,
                message: Policy::Topic,
                heartbeat: Policy::Off,
                watermark: Policy::Off,
                transaction: Policy::Off,
                snapshot: Policy::Topic,
            },
            oversized: Oversized::Fail,
        };
        assert_eq!(loaded.outputs, [output]);
        assert_eq!((&loaded.objects, loaded.start), (&Objects::default(), Start::Now));
        assert_eq!(task(&serde_json::to_string(&loaded).unwrap()), Ok(loaded), "as it is saved from now on");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let loaded = task(r#"{"name":"shop","source":"s","outputs":[{},{"name":"wide","partitions":3}]}"#);
        let outputs = loaded.unwrap().outputs;
        assert_eq!((outputs[0].name.as_str(), outputs[0].partition_by), ("shop", PartitionBy::None));
        assert_eq!((outputs[1].name.as_str(), outputs[1].partition_by), ("wide", PartitionBy::Key));
        assert_eq!(task(r#"{"name":"shop","source":"s"}"#).unwrap().outputs, outputs[..1]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_change() {
        for (outputs, part) in [
            (r#"{"name":"a.b"}"#, "'a.b' is not a name"),
            (r#"{"partitions":0}"#, "use 1 to 10000"),
            (r#"{"partitions":10001}"#, "use 1 to 10000"),
            (r#"{"partitions":2,"partition_by":"none"}"#, "leave out partitions"),
            (r#"{"partition_by":"zone"}"#, "expected one of `none`, `table`, `key`"),
            (r#"{"format":"csv"}"#, "unknown variant `csv`, expected `debezium-json` or `protobuf`"),
            (
                r#"{"events":{"ddl":"topic"}}"#,
                "unknown field `ddl`, expected one of `gap`, `message`, `heartbeat`, `watermark`, `transaction`, `snapshot`",
            ),
            (r#"{"events":{"gap":"maybe"}}"#, "expected one of `inline`, `topic`, `off`"),
            (r#"{"layout":"row"}"#, "expected `task` or `table`"),
            (r#"{"oversized":"cut"}"#, "expected `fail` or `placeholder`"),
            (r#"{"codec":"gzip"}"#, "expected one of `none`, `lz4`, `zstd`"),
            (r#"{"colour":"red"}"#, "unknown field `colour`, expected one of `name`"),
            (r#"{},{"name":"shop"}"#, "two outputs are named shop"),
        ] {
            let error =
                task(&format!(r#"{{"name":"shop","source":"s","outputs":[{outputs}]}}"#)).unwrap_err();
            assert!(error.contains(part), "{outputs}: {error}");
        }
        let both = r#"{"name":"shop","source":"s","partitions":2,"outputs":[{}]}"#;
        assert!(task(both).unwrap_err().contains("either outputs or"));
        assert!(task(r#"{"name":"Shop","source":"s"}"#).unwrap_err().contains("use 1 to 40 of a-z"));
    }

    #[test]
    fn outputs_of_two_tasks_may_not_have_one_name() {
        let first = task(r#"{"name":"a","source":"s","outputs":[{"name":"x"}]}"#).unwrap();
        let second = task(r#"{"name":"b","source":"s","outputs":[{},{"name":"x"}]}"#).unwrap();
        assert_eq!(check_output_names([&first]), Ok(()));
        let (output, of_first, of_second) = ("x".to_owned(), "a".to_owned(), "b".to_owned());
        let same = DefinitionError::SameName { output, first: of_first, second: of_second };
        assert_eq!(check_output_names([&first, &second]), Err(same));
    }

    #[test]
    fn an_output_may_be_added_and_everything_else_is_named() {
        let saved = task(r#"{"name":"a","source":"s","outputs":[{},{"name":"x"}]}"#).unwrap();
        assert_eq!(saved.compare(&saved), Comparison::default());
        let more = task(r#"{"name":"a","source":"s","outputs":[{"name":"y"},{},{"name":"x"}]}"#).unwrap();
        let comparison = saved.compare(&more);
        assert_eq!((comparison.added, comparison.differences), (vec![more.outputs[0].clone()], vec![]));
        let mut changed = saved.clone();
        let placeholder =
            task(r#"{"name":"a","source":"s","outputs":[{"oversized":"placeholder"},{"name":"x"}]}"#);
        let placeholder = placeholder.unwrap();
        assert_eq!(saved.compare(&placeholder), Comparison::default());
        changed.take_changes(&placeholder);
        assert_eq!(changed, placeholder);
        let other = r#"{"partitions":4,"layout":"table","codec":"zstd","events":{"watermark":"inline"}}"#;
        let other = task(&format!(r#"{{"name":"a","source":"t","outputs":[{other}]}}"#)).unwrap();
        let differences = saved.compare(&other).differences;
        let expected = [
            "source is s, not t",
            "output a: layout is task, not table",
            "output a: partitions is 1, not 4",
            "output a: partition_by is none, not key",
            "output a: codec is the broker's, not zstd",
            "output a: events.watermark is off, not inline",
            "output x is there, and not wanted",
        ];
        assert_eq!(differences, expected);
    }
}
