//! Where an output's records go: its topics, and which of their partitions.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::oversized::Oversized;
use super::topic_name;
use crate::change::{Change, Gap, SnapshotMark};
use crate::format::partitioner::{PartitionBy, table_hash};
use crate::log::record_batch::Codec;
use crate::log::topics::TopicInfo;
use crate::log::{LogError, LogWriter, PartitionId, Record};

/// Which topics an output's changes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All in one topic, named as the output
    #[default]
    Task,
    /// A topic for each table, `<output>.<schema>.<table>`, made when the table first has an event
    Table,
}

/// What becomes of events that are not changes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// They stand among the changes, in every partition that they concern
    Inline,
    /// They have a topic of their own
    Topic,
    /// They are left out
    Off,
}

/// Something for each kind of event that is not a change of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events<T = Policy> {
    /// Changes may be missing.
    #[serde(default)]
    pub gap: T,
    /// Applications' logical messages.
    #[serde(default)]
    pub message: T,
    /// The task is alive.
    #[serde(default)]
    pub heartbeat: T,
    /// How far a partition is complete.
    #[serde(default)]
    pub watermark: T,
    /// Begin and end of transactions.
    #[serde(default)]
    pub transaction: T,
    /// Begin and end of a table's existing rows.
    #[serde(default)]
    pub snapshot: T,
}

impl Events {
    /// What becomes of this event; changes of tables stand among the changes.
    fn of(&self, change: &Change<'_>) -> Policy {
        match change {
            Change::Row { .. } | Change::Truncate { .. } => Policy::Inline,
            Change::Gap(_) => self.gap,
            Change::Snapshot(_) => self.snapshot,
            Change::Message { .. } => self.message,
            Change::Heartbeat(_) => self.heartbeat,
            Change::Watermark(_) => self.watermark,
            Change::Begin | Change::End(_) => self.transaction,
        }
    }
}

/// How an output spreads its records.
#[derive(Debug, Clone)]
pub struct Routing {
    /// The output's name, which its topics are named after.
    pub output: String,
    /// Which topics its changes are in.
    pub layout: Layout,
    /// Partitions of each of these topics.
    pub partitions: u32,
    /// How records are spread over them.
    pub by: PartitionBy,
    /// How batches are compressed.
    pub codec: Codec,
    /// What becomes of other events.
    pub events: Events,
    /// What becomes of changes whose records are too large.
    pub oversized: Oversized,
}

/// An output's partitions.
#[derive(Debug)]
pub(super) struct Routes {
    routing: Routing,
    /// Every partition with changes of tables.
    changes: BTreeSet<PartitionId>,
    /// In layout `task`: the partitions of the topic.
    topic: Arc<[PartitionId]>,
    events: Option<PartitionId>,
    transaction: Option<PartitionId>,
}

impl Routes {
    /// Finds the output's topics among those of the log, and makes those that it always has.
    pub(super) fn open<W: LogWriter>(
        routing: Routing,
        topics: &[Arc<TopicInfo>],
        writer: &mut W,
    ) -> Result<Self, LogError> {
        let mut routes = Routes {
            changes: BTreeSet::new(),
            topic: Arc::default(),
            events: None,
            transaction: None,
            routing,
        };
        let Routing { output, layout, partitions, codec, events, .. } = &routes.routing;
        match layout {
            Layout::Task => {
                routes.topic = writer.create_topic(output, *partitions, *codec)?.into();
                routes.changes.extend(routes.topic.iter());
            }
            Layout::Table => {
                for topic in topics.iter().filter(|topic| topic_name::is_of_table(output, &topic.name)) {
                    // Tells the codec, which merges need also where no change comes.
                    let known = writer.create_topic(&topic.name, topic.partitions.len() as u32, *codec)?;
                    routes.changes.extend(known);
                }
            }
        }
        let Events { gap, message, heartbeat, watermark, transaction, snapshot } = *events;
        let events = routes.side_topic_name("events");
        let has_events = topics.iter().any(|topic| topic.name == events);
        if has_events || [gap, message, heartbeat, watermark, snapshot].contains(&Policy::Topic) {
            routes.events(writer)?;
        }
        if transaction == Policy::Topic {
            routes.transaction = Some(routes.side_topic("transaction", writer)?);
        }
        Ok(routes)
    }

    pub(super) fn output(&self) -> &str {
        &self.routing.output
    }

    pub(super) fn policies(&self) -> Events {
        self.routing.events
    }

    /// The partition of begin and end marks, if they have a topic of their own.
    pub(super) fn transaction(&self) -> Option<PartitionId> {
        self.transaction
    }

    /// Where a table's records go; makes its topic where it has none.
    pub(super) fn of_table<W: LogWriter>(
        &mut self,
        schema: &str,
        table: &str,
        writer: &mut W,
    ) -> Result<TableRoute, LogError> {
        let Routing { output, layout, partitions, by, codec, .. } = &self.routing;
        let partitions = match layout {
            Layout::Task => self.topic.clone(),
            Layout::Table => {
                let name = topic_name::of_table(output, schema, table);
                let made = writer.create_topic(&name, *partitions, *codec)?;
                self.changes.extend(&made);
                made.into()
            }
        };
        Ok(TableRoute { partitions, by: *by, hash: table_hash(schema, table) })
    }

    /// The partitions in which an event stands that is not a change of a table.
    pub(super) fn of_event<W: LogWriter>(
        &mut self,
        change: &Change<'_>,
        writer: &mut W,
    ) -> Result<Vec<PartitionId>, LogError> {
        match (self.routing.events.of(change), change) {
            (Policy::Off, _) => Ok(Vec::new()),
            (Policy::Topic, _) => Ok(vec![self.events(writer)?]),
            (Policy::Inline, Change::Gap(Gap { table: Some((schema, table)), .. })) => {
                Ok(self.of_table(schema, table, writer)?.all().to_vec())
            }
            (Policy::Inline, Change::Snapshot(SnapshotMark { schema, table, .. })) => {
                Ok(self.of_table(schema, table, writer)?.all().to_vec())
            }
            (Policy::Inline, Change::Heartbeat(_) | Change::Watermark(_)) => Ok(self.all()),
            // In layout `table` no table may have had an event, and what was missing must still be told (I5).
            (Policy::Inline, _) if self.changes.is_empty() => Ok(vec![self.events(writer)?]),
            (Policy::Inline, _) => Ok(self.all()),
        }
    }

    fn all(&self) -> Vec<PartitionId> {
        self.changes.iter().copied().collect()
    }

    /// The partition for events that have no other.
    pub(super) fn events<W: LogWriter>(&mut self, writer: &mut W) -> Result<PartitionId, LogError> {
        if let Some(events) = self.events {
            return Ok(events);
        }
        let events = self.side_topic("events", writer)?;
        Ok(*self.events.insert(events))
    }

    /// The one partition of a topic of the output for something else than changes of tables.
    fn side_topic<W: LogWriter>(&self, kind: &str, writer: &mut W) -> Result<PartitionId, LogError> {
        let made = writer.create_topic(&self.side_topic_name(kind), 1, self.routing.codec)?;
        made.first().copied().ok_or(LogError::Stopped)
    }

    fn side_topic_name(&self, kind: &str) -> String {
        format!("{}.{kind}", self.routing.output)
    }
}

/// Where the records of one table go.
#[derive(Debug, Clone)]
pub(super) struct TableRoute {
    partitions: Arc<[PartitionId]>,
    by: PartitionBy,
    hash: u32,
}

impl TableRoute {
    /// The partition of a record.
    #[inline]
    pub(super) fn of_record(&self, record: &Record<'_>) -> Result<PartitionId, LogError> {
        let chosen = self.by.partition(self.hash, record.key, self.partitions.len() as u32);
        self.partitions.get(chosen as usize).copied().ok_or(LogError::UnknownPartition(PartitionId(chosen)))
    }

    /// Every partition that the table may have records in.
    fn all(&self) -> &[PartitionId] {
        if self.by == PartitionBy::Key {
            return &self.partitions;
        }
        let home = self.by.partition(self.hash, None, self.partitions.len() as u32) as usize;
        self.partitions.get(home..=home).unwrap_or_default()
    }
}
