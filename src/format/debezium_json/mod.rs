//! Debezium JSON: the events of Debezium's PostgreSQL connector, as its `JsonConverter` writes them without schemas.
//!
//! The target is byte compatibility: names, order and forms are Debezium's, also where one might choose otherwise. What
//! differs is listed in `docs/formats/debezium-json.md`. A record is a run of fragments that were written once, for the
//! table or for the transaction, with the row's values between them; all of it goes into buffers that are kept, so
//! that a row costs no allocation.

mod array;
mod composite;
mod events;
mod extensions;
mod geometry;
mod json;
mod numeric;
mod prepared;
mod time;
mod values;

use self::prepared::{Table, TransactionParts};
use super::headers::{self, PHASE_HEADER, POSITION_HEADER};
use super::row_images::RowImages;
use super::tables::Tables;
use super::{Format, FormatError, Sink};
use crate::change::{Before, Change, Event, Operation, Row, Timestamp, Transaction, Value};
use crate::log::{Header, Record};

/// Header of records with values that the server did not send: the names of their columns, separated by commas.
pub const UNAVAILABLE_HEADER: &str = "millrace.unavailable";

/// Debezium's header on a deletion that stands for a changed key: the new key.
const NEW_KEY_HEADER: &str = "__debezium.newkey";
/// Debezium's header on a creation that stands for a changed key: the old key.
const OLD_KEY_HEADER: &str = "__debezium.oldkey";

/// Buffers that grew beyond this are given back after the record.
const KEPT_CAPACITY: usize = 1 << 20;

/// What the records of an output say of themselves.
#[derive(Debug, Clone)]
pub struct DebeziumOptions {
    /// `source.name`, Debezium's `topic.prefix`: the output's name.
    pub topic_prefix: String,
    /// `source.db`: name of the database.
    pub database: String,
    /// `source.version`.
    pub version: String,
    /// Whether a deletion is followed by a tombstone (`tombstones.on.delete`).
    pub tombstones: bool,
}

impl DebeziumOptions {
    /// Debezium's defaults, and this program's version.
    pub fn new(topic_prefix: impl Into<String>, database: impl Into<String>) -> Self {
        DebeziumOptions {
            topic_prefix: topic_prefix.into(),
            database: database.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tombstones: true,
        }
    }
}

/// The format.
#[derive(Debug)]
pub struct DebeziumJson {
    topic_prefix: String,
    tombstones: bool,
    /// `"source":{…,"ts_ms":`
    source_head: Vec<u8>,
    /// `,"db":"…"`
    source_database: Vec<u8>,
    /// The part of a source block that names a table, for events without one.
    no_names: Vec<u8>,
    tables: Tables<Table>,
    transaction: Option<Transaction>,
    parts: TransactionParts,
    scratch: Scratch,
}

/// The parts of a record in the making.
#[derive(Debug, Default)]
struct Scratch {
    value: Vec<u8>,
    key: Vec<u8>,
    old_key: Vec<u8>,
    position: Vec<u8>,
    unavailable: Vec<u8>,
}

impl Scratch {
    fn clear(&mut self) {
        for buffer in
            [&mut self.value, &mut self.key, &mut self.old_key, &mut self.position, &mut self.unavailable]
        {
            buffer.clear();
        }
    }

    /// Gives back what a large record has needed.
    fn shrink(&mut self) {
        for buffer in [&mut self.value, &mut self.key, &mut self.old_key] {
            if buffer.capacity() > KEPT_CAPACITY {
                *buffer = Vec::new();
            }
        }
    }
}

impl DebeziumJson {
    /// The format with these options.
    pub fn new(options: DebeziumOptions) -> Self {
        let mut source_head = b"\"source\":{\"version\":".to_vec();
        json::string(&mut source_head, options.version.as_bytes());
        source_head.extend_from_slice(b",\"connector\":\"postgresql\",\"name\":");
        json::string(&mut source_head, options.topic_prefix.as_bytes());
        source_head.extend_from_slice(b",\"ts_ms\":");
        let mut source_database = b",\"db\":".to_vec();
        json::string(&mut source_database, options.database.as_bytes());
        DebeziumJson {
            topic_prefix: options.topic_prefix,
            tombstones: options.tombstones,
            source_head,
            source_database,
            no_names: prepared::source_names("", ""),
            tables: Tables::default(),
            transaction: None,
            parts: TransactionParts::default(),
            scratch: Scratch::default(),
        }
    }

    /// As [`Format::encode`], with the time of processing that a new transaction takes.
    fn encode_at(
        &mut self,
        event: &Event<'_>,
        sink: &mut dyn Sink,
        now: impl FnOnce() -> Timestamp,
    ) -> Result<(), FormatError> {
        if self.transaction.as_ref() != Some(event.transaction) {
            self.parts.prepare(event.transaction, now(), &self.source_head, &self.source_database);
            self.transaction = Some(*event.transaction);
        }
        self.scratch.clear();
        self.parts.position.write(&mut self.scratch.position, event.ordinal);
        match event.change {
            Change::Row { operation, table, before, after } => {
                let encoder = RowEncoder {
                    event,
                    table: self.tables.get(table),
                    parts: &self.parts,
                    tombstones: self.tombstones,
                    images: RowImages { shape: table, before, after },
                };
                encoder.encode(operation, &mut self.scratch, sink)
            }
            Change::Truncate { table } => {
                let encoder = RowEncoder {
                    event,
                    table: self.tables.get(table),
                    parts: &self.parts,
                    tombstones: self.tombstones,
                    images: RowImages { shape: table, before: None, after: None },
                };
                encoder.write_value(&mut self.scratch, b't', None, None)?;
                encoder.send(&self.scratch, None, Some(&self.scratch.value), None, sink)
            }
            Change::Message { prefix, content, .. } => self.encode_message(event, prefix, content, sink),
            Change::Snapshot(mark) => self.encode_snapshot(event, mark, sink),
            Change::Gap(gap) => self.encode_gap(event, gap, sink),
            Change::Heartbeat(heartbeat) => self.encode_heartbeat(event, heartbeat, sink),
            Change::Watermark(watermark) => self.encode_watermark(event, watermark, sink),
            Change::Begin => self.encode_begin(event, sink),
            Change::End(totals) => self.encode_end(event, totals, sink),
        }
    }
}

impl Format for DebeziumJson {
    fn encode(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), FormatError> {
        let encoded = self.encode_at(event, sink, Timestamp::now);
        self.scratch.shrink();
        encoded
    }
}

/// Encodes one change of a table.
struct RowEncoder<'a> {
    event: &'a Event<'a>,
    table: &'a Table,
    parts: &'a TransactionParts,
    tombstones: bool,
    images: RowImages<'a>,
}

impl<'a> RowEncoder<'a> {
    fn encode(
        &self,
        operation: Operation,
        scratch: &mut Scratch,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        match operation {
            Operation::Insert | Operation::Read => {
                let op = if operation == Operation::Read { b'r' } else { b'c' };
                let has_key = self.write_key(&mut scratch.key, |index| self.images.new_value(index))?;
                self.write_value(scratch, op, None, self.images.after)?;
                self.send(scratch, has_key.then_some(&scratch.key), Some(&scratch.value), None, sink)
            }
            Operation::Update if self.images.key_has_changed(&self.table.key) => {
                self.encode_key_change(scratch, sink)
            }
            Operation::Update => {
                let has_key = self.write_key(&mut scratch.key, |index| self.images.new_value(index))?;
                self.write_value(scratch, b'u', self.images.before, self.images.after)?;
                self.send(scratch, has_key.then_some(&scratch.key), Some(&scratch.value), None, sink)
            }
            Operation::Delete => {
                let has_key = self.images.old_row_has_key(&self.table.key)
                    && self.write_key(&mut scratch.key, |index| self.images.old_value(index))?;
                self.write_value(scratch, b'd', self.images.before, None)?;
                let key = has_key.then_some(&scratch.key);
                self.send(scratch, key, Some(&scratch.value), None, sink)?;
                self.send_tombstone(scratch, key, None, sink)
            }
        }
    }

    /// An update that changes the key is a deletion of the old one and a creation of the new one.
    fn encode_key_change(&self, scratch: &mut Scratch, sink: &mut dyn Sink) -> Result<(), FormatError> {
        self.write_key(&mut scratch.old_key, |index| self.images.old_value(index))?;
        self.write_key(&mut scratch.key, |index| self.images.new_value(index))?;

        self.write_value(scratch, b'd', self.images.before, None)?;
        let new_key = Header { name: NEW_KEY_HEADER, value: Some(&scratch.key) };
        self.send(scratch, Some(&scratch.old_key), Some(&scratch.value), Some(new_key), sink)?;
        self.send_tombstone(scratch, Some(&scratch.old_key), Some(new_key), sink)?;

        self.write_value(scratch, b'c', None, self.images.after)?;
        let old_key = Header { name: OLD_KEY_HEADER, value: Some(&scratch.old_key) };
        self.send(scratch, Some(&scratch.key), Some(&scratch.value), Some(old_key), sink)
    }

    /// Writes the key of the row whose values `value` gives; `false` when the table has none.
    #[inline]
    fn write_key(&self, out: &mut Vec<u8>, value: impl Fn(usize) -> Value<'a>) -> Result<bool, FormatError> {
        for &index in &self.table.key {
            let value = value(index);
            if value == Value::Unsent {
                return Err(self.images.key_unsent(index));
            }
            self.write_column(out, index, value)?;
        }
        self.close_object(out, 0);
        Ok(!self.table.key.is_empty())
    }

    /// Writes the envelope, and the names of the columns in it that were not sent.
    #[inline]
    fn write_value(
        &self,
        scratch: &mut Scratch,
        op: u8,
        before: Option<Before<'a>>,
        after: Option<Row<'a>>,
    ) -> Result<(), FormatError> {
        let Scratch { value: out, unavailable, .. } = scratch;
        out.clear();
        unavailable.clear();
        out.extend_from_slice(b"{\"before\":");
        let start = out.len();
        match before {
            None => out.extend_from_slice(b"null"),
            Some(Before::Key(row)) => {
                for (index, column) in self.table.columns.iter().enumerate() {
                    if column.is_identity {
                        self.write_image_column(out, unavailable, index, row.get(index))?;
                    }
                }
                self.close_object(out, start);
            }
            Some(Before::Full(row)) => {
                for index in 0..self.table.columns.len() {
                    self.write_image_column(out, unavailable, index, row.get(index))?;
                }
                self.close_object(out, start);
            }
        }
        out.extend_from_slice(b",\"after\":");
        let start = out.len();
        if after.is_some() {
            for index in 0..self.table.columns.len() {
                self.write_image_column(out, unavailable, index, self.images.new_value(index))?;
            }
            self.close_object(out, start);
        } else {
            out.extend_from_slice(b"null");
        }
        out.push(b',');
        self.parts.write_source(out, &self.table.source_names, self.event.lsn);
        self.parts.write_end(out, op);
        Ok(())
    }

    #[inline]
    fn write_image_column(
        &self,
        out: &mut Vec<u8>,
        unavailable: &mut Vec<u8>,
        index: usize,
        value: Value<'a>,
    ) -> Result<(), FormatError> {
        if value == Value::Unsent {
            if !unavailable.is_empty() {
                unavailable.push(b',');
            }
            unavailable
                .extend(self.table.shape.columns.get(index).map_or(&[][..], |column| column.name.as_bytes()));
        }
        self.write_column(out, index, value)
    }

    /// Writes `,"name":value`; the first comma of an object becomes its brace when the object is closed.
    #[inline]
    fn write_column(&self, out: &mut Vec<u8>, index: usize, value: Value<'a>) -> Result<(), FormatError> {
        let Some(column) = self.table.columns.get(index) else { return Ok(()) };
        out.extend_from_slice(&column.label);
        match column.rendering.write(out, value) {
            Some(()) => Ok(()),
            None => Err(self.images.invalid(index, column.rendering.expected())),
        }
    }

    /// Makes an object of the columns written since `start`.
    #[inline]
    fn close_object(&self, out: &mut Vec<u8>, start: usize) {
        match out.get_mut(start) {
            Some(comma) => *comma = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
    }

    /// The record that lets a log be compacted, with the key and headers of the deletion before it.
    fn send_tombstone(
        &self,
        scratch: &Scratch,
        key: Option<&Vec<u8>>,
        debezium: Option<Header<'_>>,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        if self.tombstones && key.is_some() { self.send(scratch, key, None, debezium, sink) } else { Ok(()) }
    }

    #[inline]
    fn send(
        &self,
        scratch: &Scratch,
        key: Option<&Vec<u8>>,
        value: Option<&Vec<u8>>,
        debezium: Option<Header<'_>>,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let position = Header { name: POSITION_HEADER, value: Some(&scratch.position) };
        let mut headers = [position; 4];
        let mut count = 1;
        let unavailable = Header { name: UNAVAILABLE_HEADER, value: Some(&scratch.unavailable) };
        let has_unavailable = value.is_some() && !scratch.unavailable.is_empty();
        let phase = headers::phase(self.event.transaction.phase)
            .map(|phase| Header { name: PHASE_HEADER, value: Some(phase.as_bytes()) });
        for header in debezium.into_iter().chain(has_unavailable.then_some(unavailable)).chain(phase) {
            headers[count] = header;
            count += 1;
        }
        let record = Record {
            timestamp: self.event.transaction.commit_time.millis(),
            key: key.map(Vec::as_slice),
            value: value.map(Vec::as_slice),
            headers: &headers[..count],
        };
        sink.record(&record)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
