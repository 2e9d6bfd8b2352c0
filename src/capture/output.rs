//! One output of a task: its format, and the partitions that its records go to.

use std::collections::HashMap;
use std::sync::Arc;

use super::CaptureError;
use crate::change::{Change, Event, TableShape};
use crate::format::partitioner::{PartitionBy, table_hash};
use crate::format::{Format, Sink};
use crate::log::{LogError, LogWriter, PartitionId, Record};

/// Which partitions an output writes to.
#[derive(Debug, Clone)]
pub struct Routes {
    /// The partitions of the output's topic.
    pub changes: Arc<[PartitionId]>,
    /// The partition for events that are not changes.
    pub events: PartitionId,
    /// How records are spread.
    pub by: PartitionBy,
}

/// One output of a task.
pub struct Output {
    name: String,
    format: Box<dyn Format>,
    routes: Routes,
    tables: Vec<TableRoute>,
    /// The place in `tables` of a table, by OID.
    by_oid: HashMap<u32, usize>,
    /// The table whose rows are arriving.
    current: usize,
}

/// Where the records of one table go.
#[derive(Debug, Clone)]
struct TableRoute {
    shape: Arc<TableShape>,
    partitions: Arc<[PartitionId]>,
    by: PartitionBy,
    hash: u32,
}

impl Output {
    /// An output that has written nothing yet.
    pub fn new(name: impl Into<String>, format: Box<dyn Format>, routes: Routes) -> Self {
        Output { name: name.into(), format, routes, tables: Vec::new(), by_oid: HashMap::new(), current: 0 }
    }

    /// Changes of this table follow.
    pub fn enter(&mut self, table: &Arc<TableShape>) {
        self.current = *self.by_oid.entry(table.oid).or_insert(self.tables.len());
        match self.tables.get_mut(self.current) {
            Some(route) if route.is_for(table) => {}
            Some(route) => *route = self.routes.of_table(table),
            None => self.tables.push(self.routes.of_table(table)),
        }
    }

    /// Writes a change of the table that was [entered](Self::enter), and gives the number of records that it made.
    ///
    /// # Errors
    /// [`CaptureError::Change`].
    #[inline]
    pub fn change<W: LogWriter>(&mut self, writer: &mut W, event: &Event<'_>) -> Result<u64, CaptureError> {
        let Some(route) = self.tables.get(self.current) else { return Ok(0) };
        let mut sink = TableSink { writer, route, records: 0 };
        let encoded = self.format.encode(event, &mut sink);
        let records = sink.records;
        encoded.map(|()| records).map_err(|source| self.refused(event, source))
    }

    /// Writes an event that is not a change of a table, and gives the number of records that it made.
    ///
    /// # Errors
    /// [`CaptureError::Change`].
    pub fn event<W: LogWriter>(&mut self, writer: &mut W, event: &Event<'_>) -> Result<u64, CaptureError> {
        let mut sink = EventSink { writer, partition: self.routes.events, records: 0 };
        let encoded = self.format.encode(event, &mut sink);
        let records = sink.records;
        encoded.map(|()| records).map_err(|source| self.refused(event, source))
    }

    #[cold]
    fn refused(&self, event: &Event<'_>, source: crate::format::FormatError) -> CaptureError {
        CaptureError::Change {
            position: event.position(),
            table: match event.change {
                Change::Row { table, .. } | Change::Truncate { table } => {
                    Some(format!("{}.{}", table.schema, table.name))
                }
                _ => None,
            },
            output: self.name.clone(),
            source: Box::new(source),
        }
    }
}

impl Routes {
    fn of_table(&self, table: &Arc<TableShape>) -> TableRoute {
        TableRoute {
            shape: table.clone(),
            partitions: self.changes.clone(),
            by: self.by,
            hash: table_hash(&table.schema, &table.name),
        }
    }
}

impl TableRoute {
    /// Whether the table still has the name that this was made for.
    fn is_for(&self, table: &Arc<TableShape>) -> bool {
        Arc::ptr_eq(&self.shape, table)
            || (self.shape.name == table.name && self.shape.schema == table.schema)
    }
}

/// Sends the records of a table's change to their partitions.
struct TableSink<'a, W> {
    writer: &'a mut W,
    route: &'a TableRoute,
    records: u64,
}

impl<W: LogWriter> Sink for TableSink<'_, W> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let TableRoute { partitions, by, hash, .. } = self.route;
        let chosen = by.partition(*hash, record.key, partitions.len() as u32);
        let partition = partitions.get(chosen as usize).copied();
        self.records += 1;
        self.writer.append(partition.ok_or(LogError::UnknownPartition(PartitionId(chosen)))?, record)
    }
}

/// Sends the records of an event to a partition.
struct EventSink<'a, W> {
    writer: &'a mut W,
    partition: PartitionId,
    records: u64,
}

impl<W: LogWriter> Sink for EventSink<'_, W> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        self.records += 1;
        self.writer.append(self.partition, record)
    }
}
