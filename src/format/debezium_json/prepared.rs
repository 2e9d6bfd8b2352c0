//! What is the same for every row of a table, or for every change of a transaction, written once.

use super::json;
use super::values::Rendering;
use crate::change::{Lsn, Phase, TableShape, Timestamp, Transaction};
use crate::format::digits::Digits;
use crate::format::headers::PositionText;
use crate::format::row_images::record_key;
use crate::format::tables::Prepared;

/// A table, prepared.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) shape: TableShape,
    /// One for each of the shape's columns.
    pub(super) columns: Vec<Column>,
    /// Indexes of the columns of the record key.
    pub(super) key: Vec<usize>,
    /// `,"schema":"…","table":"…","txId":`
    pub(super) source_names: Vec<u8>,
}

/// A column, prepared.
#[derive(Debug)]
pub(super) struct Column {
    /// `,"name":`
    pub(super) label: Vec<u8>,
    pub(super) rendering: Rendering,
    pub(super) is_identity: bool,
}

impl Prepared for Table {
    fn new(shape: &TableShape) -> Self {
        let columns = shape.columns.iter().map(|column| {
            let mut label = vec![b','];
            json::string(&mut label, column.name.as_bytes());
            label.push(b':');
            Column { label, rendering: Rendering::of_column(column), is_identity: column.identity }
        });
        Table {
            columns: columns.collect(),
            key: record_key(shape),
            source_names: source_names(&shape.schema, &shape.name),
            shape: shape.clone(),
        }
    }

    fn shape(&self) -> &TableShape {
        &self.shape
    }
}

/// The part of a source block that names a table; empty names for a message.
pub(super) fn source_names(schema: &str, table: &str) -> Vec<u8> {
    let mut out = b",\"schema\":".to_vec();
    json::string(&mut out, schema.as_bytes());
    out.extend_from_slice(b",\"table\":");
    json::string(&mut out, table.as_bytes());
    out.extend_from_slice(b",\"txId\":");
    out
}

/// The parts of a source block and an envelope that are the same throughout a transaction.
#[derive(Debug, Default)]
pub(super) struct TransactionParts {
    /// `"source":{…,"sequence":"[…,\"`
    source_start: Vec<u8>,
    /// `\"]","ts_us":…,"ts_ns":…`
    source_times: Vec<u8>,
    /// `…,"lsn":`
    txid: Vec<u8>,
    /// `","ts_ms":…,"ts_us":…,"ts_ns":…}`
    processed: Vec<u8>,
    /// `,"ts_ms":…`, as a message has it
    processed_ms: Vec<u8>,
    pub(super) position: PositionText,
}

impl TransactionParts {
    /// Writes the parts anew. `source_head` is `"source":{…,"ts_ms":`, `source_database` is `,"db":…`.
    pub(super) fn prepare(
        &mut self,
        transaction: &Transaction,
        processed: Timestamp,
        source_head: &[u8],
        source_database: &[u8],
    ) {
        let commit = transaction.commit_time;
        let parts = [&mut self.source_start, &mut self.source_times, &mut self.txid, &mut self.processed];
        parts.into_iter().for_each(Vec::clear);

        let out = &mut self.source_start;
        out.extend_from_slice(source_head);
        json::integer(out, commit.millis());
        out.extend_from_slice(match transaction.phase {
            Phase::Snapshot => b",\"snapshot\":\"true\"",
            Phase::Stream | Phase::Catchup => b",\"snapshot\":\"false\"",
        });
        out.extend_from_slice(source_database);
        out.extend_from_slice(b",\"sequence\":\"[");
        if transaction.previous_commit_lsn == Lsn::ZERO {
            out.extend_from_slice(b"null");
        } else {
            out.extend_from_slice(b"\\\"");
            out.extend_from_slice(Digits::new(transaction.previous_commit_lsn.0).as_bytes());
            out.extend_from_slice(b"\\\"");
        }
        out.extend_from_slice(b",\\\"");

        let out = &mut self.source_times;
        out.extend_from_slice(b"\\\"]\",\"ts_us\":");
        micros_and_nanos(out, commit);

        let out = &mut self.txid;
        match transaction.xid {
            0 => out.extend_from_slice(b"null"),
            xid => json::integer(out, i64::from(xid)),
        }
        out.extend_from_slice(b",\"lsn\":");

        let out = &mut self.processed;
        out.extend_from_slice(b"\",\"ts_ms\":");
        json::integer(out, processed.millis());
        self.processed_ms.clear();
        self.processed_ms.extend_from_slice(out.get(1..).unwrap_or_default());
        out.extend_from_slice(b",\"ts_us\":");
        micros_and_nanos(out, processed);
        out.push(b'}');

        self.position.prepare(transaction.commit_lsn);
    }

    /// Appends `"source":{…}`.
    #[inline]
    pub(super) fn write_source(&self, out: &mut Vec<u8>, names: &[u8], lsn: Lsn) {
        let lsn = Digits::new(lsn.0);
        out.extend_from_slice(&self.source_start);
        out.extend_from_slice(lsn.as_bytes());
        out.extend_from_slice(&self.source_times);
        out.extend_from_slice(names);
        out.extend_from_slice(&self.txid);
        out.extend_from_slice(lsn.as_bytes());
        out.extend_from_slice(b",\"xmin\":null,\"origin\":null,\"origin_lsn\":null}");
    }

    /// Appends what follows the source block of a row: `,"transaction":null,"op":…}`.
    #[inline]
    pub(super) fn write_end(&self, out: &mut Vec<u8>, op: u8) {
        out.extend_from_slice(b",\"transaction\":null,\"op\":\"");
        out.push(op);
        out.extend_from_slice(&self.processed);
    }

    /// Appends `,"ts_ms":…`, the time of processing.
    pub(super) fn write_processed_ms(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.processed_ms);
    }
}

/// Appends `<microseconds>,"ts_ns":<nanoseconds>`.
fn micros_and_nanos(out: &mut Vec<u8>, time: Timestamp) {
    json::integer(out, time.0);
    out.extend_from_slice(b",\"ts_ns\":");
    json::integer(out, time.0.saturating_mul(1000));
}
