//! One output of a task: its format, where its records go, and the marks around its transactions.

use std::collections::HashMap;
use std::sync::Arc;

use super::CaptureError;
use super::marks::{Counted, Marks};
use super::oversized::{OVERSIZED_HEADER, Oversized, Shrunk};
use super::routing::{Events, Policy, Routes, Routing, TableRoute};
use crate::change::{Change, Event, Phase, TableShape, Transaction};
use crate::format::{Format, FormatError, Sink};
use crate::log::topics::TopicInfo;
use crate::log::{Header, LogError, LogWriter, PartitionId, Record};

/// A message whose copies would together be larger than this, in bytes, goes to the topic of events in their place.
const MAX_COPIES: usize = 64 << 20;

/// One output of a task.
pub struct Output {
    format: Box<dyn Format>,
    routes: Routes,
    tables: Vec<Table>,
    /// The place in `tables` of a table, by OID.
    by_oid: HashMap<u32, usize>,
    /// The table whose rows are arriving.
    current: usize,
    marks: Option<Marks>,
    oversized: Oversized,
}

/// A table that has had changes.
struct Table {
    shape: Arc<TableShape>,
    route: TableRoute,
    counted: Counted,
}

impl Output {
    /// An output that writes to these topics of the log, and makes those that it always has.
    ///
    /// # Errors
    /// [`LogError::PartitionCount`]; [`LogError::InvalidTopic`].
    pub fn open<W: LogWriter>(
        format: Box<dyn Format>,
        routing: Routing,
        topics: &[Arc<TopicInfo>],
        writer: &mut W,
    ) -> Result<Self, LogError> {
        let oversized = routing.oversized;
        let routes = Routes::open(routing, topics, writer)?;
        let marks = match routes.policies().transaction {
            Policy::Off => None,
            Policy::Inline | Policy::Topic => Some(Marks::new(routes.transaction())),
        };
        Ok(Output {
            format,
            routes,
            tables: Vec::new(),
            by_oid: HashMap::new(),
            current: 0,
            marks,
            oversized,
        })
    }

    /// What becomes of events that are not changes of tables.
    pub(super) fn policies(&self) -> Events {
        self.routes.policies()
    }

    /// Forgets the open transaction, which has left the log's buffers.
    pub(super) fn abort(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.abort();
        }
    }

    /// Changes of this table follow.
    pub(super) fn enter<W: LogWriter>(
        &mut self,
        shape: &Arc<TableShape>,
        writer: &mut W,
    ) -> Result<(), LogError> {
        self.current = *self.by_oid.entry(shape.oid).or_insert(self.tables.len());
        match self.tables.get_mut(self.current) {
            Some(table) if table.has_name_of(shape) => {}
            known => {
                let route = self.routes.of_table(&shape.schema, &shape.name, writer)?;
                let table = Table { shape: shape.clone(), route, counted: Counted::default() };
                match known {
                    Some(known) => *known = table,
                    None => self.tables.push(table),
                }
            }
        }
        Ok(())
    }

    /// Writes a change of the table that was [entered](Self::enter), and gives the number of records that it made.
    #[inline]
    pub(super) fn change<W: LogWriter>(
        &mut self,
        writer: &mut W,
        event: &Event<'_>,
    ) -> Result<u64, CaptureError> {
        let Some(table) = self.tables.get_mut(self.current) else { return Ok(0) };
        // Rows that are read are no transaction of the source.
        let mut marks = self.marks.as_mut().filter(|_| event.transaction.phase != Phase::Snapshot);
        let begun = match &mut marks {
            Some(marks) => marks.begin(&mut *self.format, event.transaction),
            None => Ok(()),
        };
        let shrunk = match self.oversized {
            Oversized::Fail => Ok(None),
            Oversized::Placeholder => Shrunk::of(event, &mut *self.format, writer.max_record_bytes()),
        };
        let shrunk = match begun.and(shrunk) {
            Ok(shrunk) => shrunk,
            Err(source) => return Err(self.refused(event, source)),
        };
        let mut sink = TableSink {
            writer,
            route: &table.route,
            marks: marks.as_deref_mut(),
            left_out: shrunk.as_ref().map(|shrunk| shrunk.names.as_bytes()),
            records: 0,
            events: 0,
        };
        let encoded = match &shrunk {
            None => self.format.encode(event, &mut sink),
            Some(shrunk) => self.format.encode(&shrunk.event(event), &mut sink),
        };
        let (records, events) = (sink.records, sink.events);
        if let Some(marks) = marks {
            marks.count(&mut table.counted, &table.shape, events);
        }
        encoded.map(|()| records).map_err(|source| self.refused(event, source))
    }

    /// Writes an event that is not a change of a table, and gives the number of records that it made.
    pub(super) fn event<W: LogWriter>(
        &mut self,
        writer: &mut W,
        event: &Event<'_>,
    ) -> Result<u64, CaptureError> {
        let mut partitions = self.routes.of_event(&event.change, writer)?;
        if let Change::Message { content, .. } = event.change
            && content.len().saturating_mul(partitions.len()) > MAX_COPIES
        {
            partitions = vec![self.routes.events(writer)?];
        }
        self.copy(writer, event, &partitions)
    }

    /// Ends the open transaction, and gives the number of records that its end mark made. `changes` is the number of
    /// its changes.
    pub(super) fn end<W: LogWriter>(
        &mut self,
        writer: &mut W,
        transaction: &Transaction,
        changes: u64,
    ) -> Result<u64, CaptureError> {
        let Some((totals, partitions)) = self.marks.as_mut().and_then(Marks::end) else { return Ok(0) };
        let event = Event {
            transaction,
            ordinal: changes,
            lsn: transaction.commit_lsn,
            change: Change::End(&totals),
        };
        self.copy(writer, &event, &partitions)
    }

    /// Writes the same records to each of these partitions.
    fn copy<W: LogWriter>(
        &mut self,
        writer: &mut W,
        event: &Event<'_>,
        partitions: &[PartitionId],
    ) -> Result<u64, CaptureError> {
        if partitions.is_empty() {
            return Ok(0);
        }
        let mut sink = CopySink { writer, partitions, records: 0 };
        let encoded = self.format.encode(event, &mut sink);
        let records = sink.records;
        encoded.map(|()| records).map_err(|source| self.refused(event, source))
    }

    #[cold]
    fn refused(&self, event: &Event<'_>, source: FormatError) -> CaptureError {
        CaptureError::Change {
            position: event.position(),
            table: match event.change {
                Change::Row { table, .. } | Change::Truncate { table } => {
                    Some(format!("{}.{}", table.schema, table.name))
                }
                _ => None,
            },
            output: self.routes.output().to_owned(),
            source: Box::new(source),
        }
    }
}

impl Table {
    fn has_name_of(&self, shape: &Arc<TableShape>) -> bool {
        Arc::ptr_eq(&self.shape, shape)
            || (self.shape.name == shape.name && self.shape.schema == shape.schema)
    }
}

/// Sends the records of a table's change to their partitions.
struct TableSink<'a, W> {
    writer: &'a mut W,
    route: &'a TableRoute,
    marks: Option<&'a mut Marks>,
    /// Names of the columns that its records lack because they would have been too large.
    left_out: Option<&'a [u8]>,
    records: u64,
    /// Those with a value: a tombstone is no event.
    events: u64,
}

impl<W: LogWriter> Sink for TableSink<'_, W> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let partition = self.route.of_record(record)?;
        if let Some(marks) = &mut self.marks {
            self.records += marks.before(partition, self.writer)?;
        }
        self.records += 1;
        self.events += u64::from(record.value.is_some());
        match self.left_out.filter(|_| record.value.is_some()) {
            None => self.writer.append(partition, record),
            Some(names) => {
                let oversized = Header { name: OVERSIZED_HEADER, value: Some(names) };
                let headers = [record.headers, &[oversized]].concat();
                self.writer.append(partition, &Record { headers: &headers, ..*record })
            }
        }
    }
}

/// Sends each record to several partitions.
struct CopySink<'a, W> {
    writer: &'a mut W,
    partitions: &'a [PartitionId],
    records: u64,
}

impl<W: LogWriter> Sink for CopySink<'_, W> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        for partition in self.partitions {
            self.writer.append(*partition, record)?;
        }
        self.records += self.partitions.len() as u64;
        Ok(())
    }
}
