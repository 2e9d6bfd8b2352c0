//! Protobuf: each event as a `millrace.v1.Change`, its record's key as a `millrace.v1.Key` (`proto/millrace/v1`).
//!
//! Rows are encoded by hand, into buffers that are kept: a record is a run of fragments that were encoded once, for the
//! table or for the transaction, with the row's values between them, so that a row costs no allocation. The bytes are
//! those that prost gives. Whatever is not a row is rare and left to prost. `docs/formats/protobuf.md` is the page for
//! users.

mod prepared;
mod values;
mod wire;

use self::prepared::{Table, TransactionParts};
use super::headers::{EVENT_HEADER, POSITION_HEADER};
use super::row_images::RowImages;
use super::tables::Tables;
use super::{Format, FormatError, Sink};
use crate::change::{
    Before, Change, Event, Gap, Operation, Row, SnapshotMark, SnapshotStage, Transaction, TransactionTotals,
    Value,
};
use crate::log::{Header, Record};
use crate::proto::{self, change};

/// Buffers that grew beyond this are given back after the record.
const KEPT_CAPACITY: usize = 1 << 20;

/// Fields of `millrace.v1.Change`.
mod change_field {
    pub(super) const LSN: u32 = 3;
    pub(super) const ROW: u32 = 10;
    pub(super) const TRUNCATE: u32 = 11;
}

/// Fields of `millrace.v1.RowChange`.
mod row_field {
    pub(super) const OPERATION: u32 = 1;
    pub(super) const TABLE: u32 = 2;
    pub(super) const BEFORE: u32 = 3;
    pub(super) const AFTER: u32 = 4;
    pub(super) const MOVED_TO: u32 = 5;
}

/// The format.
#[derive(Debug, Default)]
pub struct Protobuf {
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
    /// Length of the value before: what the next one's is expected to be.
    last_len: usize,
}

impl Scratch {
    fn clear(&mut self) {
        self.last_len = self.value.len();
        for buffer in [&mut self.value, &mut self.key, &mut self.old_key, &mut self.position] {
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

impl Format for Protobuf {
    fn encode(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), FormatError> {
        let encoded = self.encode_change(event, sink);
        self.scratch.shrink();
        encoded
    }
}

impl Protobuf {
    fn encode_change(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), FormatError> {
        if self.transaction.as_ref() != Some(event.transaction) {
            self.parts.prepare(event.transaction);
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
                    images: RowImages { shape: table, before, after },
                };
                encoder.encode(operation, &mut self.scratch, sink)
            }
            Change::Truncate { table } => {
                let encoder = RowEncoder {
                    event,
                    table: self.tables.get(table),
                    parts: &self.parts,
                    images: RowImages { shape: table, before: None, after: None },
                };
                encoder.write_truncate(&mut self.scratch);
                encoder.send(&self.scratch, None, sink)
            }
            Change::Message { transactional, prefix, content } => {
                let message = proto::LogicalMessage {
                    prefix: prefix.to_owned(),
                    content: content.to_owned(),
                    transactional,
                };
                self.encode_event(event, "message", true, change::Event::Message(message), sink)
            }
            Change::Snapshot(mark) => self.encode_event(
                event,
                "snapshot",
                false,
                change::Event::Snapshot(snapshot_message(mark)),
                sink,
            ),
            Change::Gap(gap) => {
                self.encode_event(event, "gap", false, change::Event::Gap(gap_message(gap)), sink)
            }
            Change::Heartbeat(heartbeat) => {
                let message =
                    proto::Heartbeat { time_us: heartbeat.time.0, processed_lsn: heartbeat.processed.0 };
                self.encode_event(event, "heartbeat", false, change::Event::Heartbeat(message), sink)
            }
            Change::Watermark(watermark) => {
                let message = proto::Watermark {
                    commit_lsn: watermark.commit_lsn.0,
                    commit_time_us: watermark.commit_time.0,
                };
                self.encode_event(event, "watermark", false, change::Event::Watermark(message), sink)
            }
            Change::Begin => self.encode_event(
                event,
                "begin",
                true,
                change::Event::Begin(proto::TransactionBegin {}),
                sink,
            ),
            Change::End(totals) => {
                self.encode_event(event, "end", true, change::Event::End(end_message(totals)), sink)
            }
        }
    }
}

impl Protobuf {
    /// Encodes what is not a change of a table. `has_place` tells whether it stands for something in the source.
    fn encode_event(
        &mut self,
        event: &Event<'_>,
        kind: &str,
        has_place: bool,
        message: change::Event,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let Scratch { value, position, .. } = &mut self.scratch;
        if has_place {
            self.parts.write(value, event.ordinal);
            write_lsn(value, event);
        }
        message.encode(value);
        let headers = [
            Header { name: EVENT_HEADER, value: Some(kind.as_bytes()) },
            Header { name: POSITION_HEADER, value: Some(position) },
        ];
        let record = Record {
            timestamp: event.transaction.commit_time.millis(),
            key: None,
            value: Some(value),
            headers: if has_place { &headers } else { &headers[..1] },
        };
        sink.record(&record)?;
        Ok(())
    }
}

fn write_lsn(out: &mut Vec<u8>, event: &Event<'_>) {
    if event.lsn.0 != 0 {
        wire::unsigned(out, change_field::LSN, event.lsn.0);
    }
}

fn snapshot_message(mark: &SnapshotMark) -> proto::Snapshot {
    let (stage, rows) = match mark.stage {
        SnapshotStage::Begin => (proto::SnapshotStage::Begin, 0),
        SnapshotStage::End { rows } => (proto::SnapshotStage::End, rows),
    };
    proto::Snapshot {
        schema: mark.schema.clone(),
        table: mark.table.clone(),
        epoch: mark.epoch,
        stage: stage.into(),
        rows,
    }
}

fn gap_message(gap: &Gap) -> proto::Gap {
    let table =
        gap.table.clone().map(|(schema, name)| proto::Table { schema, name, ..proto::Table::default() });
    proto::Gap {
        cause: gap.cause.to_owned(),
        table,
        from_lsn: gap.from.map(|lsn| lsn.0),
        to_lsn: gap.to.0,
        detail: gap.detail.clone(),
    }
}

fn end_message(totals: &TransactionTotals) -> proto::TransactionEnd {
    let of_table = |(schema, name, changes): &(String, String, u64)| proto::TableChanges {
        schema: schema.clone(),
        name: name.clone(),
        changes: *changes,
    };
    proto::TransactionEnd { changes: totals.changes, tables: totals.tables.iter().map(of_table).collect() }
}

/// Encodes one change of a table.
struct RowEncoder<'a> {
    event: &'a Event<'a>,
    table: &'a Table,
    parts: &'a TransactionParts,
    images: RowImages<'a>,
}

impl<'a> RowEncoder<'a> {
    fn encode(
        &self,
        operation: Operation,
        scratch: &mut Scratch,
        sink: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let RowImages { before, after, .. } = self.images;
        match operation {
            Operation::Insert | Operation::Read => {
                let operation = match operation {
                    Operation::Read => proto::Operation::Read,
                    _ => proto::Operation::Insert,
                };
                self.write_key(&mut scratch.key, |index| self.images.new_value(index))?;
                self.write_row_change(scratch, operation, None, after, None)?;
                self.send(scratch, self.key(&scratch.key), sink)
            }
            Operation::Update => {
                self.write_key(&mut scratch.key, |index| self.images.new_value(index))?;
                self.write_row_change(scratch, proto::Operation::Update, before, after, None)?;
                self.send(scratch, self.key(&scratch.key), sink)?;
                if self.images.key_has_changed(&self.table.key) {
                    self.encode_move(scratch, sink)
                } else {
                    Ok(())
                }
            }
            Operation::Delete => {
                let has_key = self.images.old_row_has_key(&self.table.key);
                if has_key {
                    self.write_key(&mut scratch.key, |index| self.images.old_value(index))?;
                }
                self.write_row_change(scratch, proto::Operation::Delete, before, None, None)?;
                self.send(scratch, self.key(&scratch.key).filter(|_| has_key), sink)
            }
        }
    }

    /// The old key's share in an update that changes the key. Its deletion comes after the update: who applies both by
    /// key still has the old row when the new one comes, with its values that the server did not send.
    #[cold]
    fn encode_move(&self, scratch: &mut Scratch, sink: &mut dyn Sink) -> Result<(), FormatError> {
        self.write_key(&mut scratch.old_key, |index| self.images.old_value(index))?;
        let new_key = std::mem::take(&mut scratch.key);
        self.write_row_change(scratch, proto::Operation::Delete, self.images.before, None, Some(&new_key))?;
        scratch.key = new_key;
        self.send(scratch, Some(&scratch.old_key), sink)
    }

    /// The key, if the table has one.
    fn key<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        (!self.table.key.is_empty()).then_some(key)
    }

    /// Writes the key of the row whose values `value` gives.
    #[inline]
    fn write_key(&self, out: &mut Vec<u8>, value: impl Fn(usize) -> Value<'a>) -> Result<(), FormatError> {
        out.extend_from_slice(&self.table.key_head);
        for &index in &self.table.key {
            let value = value(index);
            if value == Value::Unsent {
                return Err(self.images.key_unsent(index));
            }
            let Some(column) = self.table.columns.get(index) else { continue };
            self.write_column(out, 3, index, column, &column.key_label, value)?;
        }
        Ok(())
    }

    #[inline]
    fn write_row_change(
        &self,
        scratch: &mut Scratch,
        operation: proto::Operation,
        before: Option<Before<'a>>,
        after: Option<Row<'a>>,
        moved_to: Option<&[u8]>,
    ) -> Result<(), FormatError> {
        let expected_len = scratch.last_len;
        let out = &mut scratch.value;
        out.clear();
        self.parts.write(out, self.event.ordinal);
        write_lsn(out, self.event);
        wire::nested(out, change_field::ROW, expected_len, |out| {
            wire::unsigned(out, row_field::OPERATION, operation as u64);
            wire::bytes(out, row_field::TABLE, &self.table.message);
            if before.is_some() {
                let is_sent = |index: usize| match before {
                    Some(Before::Key(_)) => {
                        self.table.columns.get(index).is_some_and(|column| column.is_identity)
                    }
                    _ => true,
                };
                wire::nested(out, row_field::BEFORE, expected_len, |out| {
                    self.write_columns(out, is_sent, |index| self.images.old_value(index))
                })?;
            }
            if after.is_some() {
                wire::nested(out, row_field::AFTER, expected_len, |out| {
                    self.write_columns(out, |_| true, |index| self.images.new_value(index))
                })?;
            }
            if let Some(key) = moved_to {
                wire::bytes(out, row_field::MOVED_TO, key);
            }
            Ok(())
        })
    }

    fn write_truncate(&self, scratch: &mut Scratch) {
        let out = &mut scratch.value;
        self.parts.write(out, self.event.ordinal);
        write_lsn(out, self.event);
        wire::nested(out, change_field::TRUNCATE, 0, |out| wire::bytes(out, 1, &self.table.message));
    }

    #[inline]
    fn write_columns(
        &self,
        out: &mut Vec<u8>,
        is_sent: impl Fn(usize) -> bool,
        value: impl Fn(usize) -> Value<'a>,
    ) -> Result<(), FormatError> {
        for (index, column) in self.table.columns.iter().enumerate() {
            if is_sent(index) {
                self.write_column(out, 1, index, column, &column.label, value(index))?;
            }
        }
        Ok(())
    }

    /// Writes a field that is a `millrace.v1.Column`.
    #[inline]
    fn write_column(
        &self,
        out: &mut Vec<u8>,
        field: u32,
        index: usize,
        column: &prepared::Column,
        label: &[u8],
        value: Value<'a>,
    ) -> Result<(), FormatError> {
        column
            .kind
            .write_column(out, field, label, value)
            .ok_or_else(|| self.images.invalid(index, column.kind.expected()))
    }

    #[inline]
    fn send(&self, scratch: &Scratch, key: Option<&[u8]>, sink: &mut dyn Sink) -> Result<(), FormatError> {
        let record = Record {
            timestamp: self.event.transaction.commit_time.millis(),
            key,
            value: Some(&scratch.value),
            headers: &[Header { name: POSITION_HEADER, value: Some(&scratch.position) }],
        };
        sink.record(&record)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
