//! What is the same for every row of a table, or for every change of a transaction, encoded once.

use prost::Message;
use sha2::{Digest, Sha256};

use super::values::Kind;
use super::wire;
use crate::change::{Phase, TableShape, Transaction};
use crate::format::headers::PositionText;
use crate::format::row_images::record_key;
use crate::format::tables::Prepared;
use crate::proto;

/// A table, prepared.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) shape: TableShape,
    /// One for each of the shape's columns.
    pub(super) columns: Vec<Column>,
    /// Indexes of the columns of the record key.
    pub(super) key: Vec<usize>,
    /// A `millrace.v1.Table`.
    pub(super) message: Vec<u8>,
    /// The fields of a `millrace.v1.Key` before its columns.
    pub(super) key_head: Vec<u8>,
}

/// A column, prepared.
#[derive(Debug)]
pub(super) struct Column {
    /// The fields of a `millrace.v1.Column` before its value.
    pub(super) label: Vec<u8>,
    /// The same in a key.
    pub(super) key_label: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) is_identity: bool,
}

impl Prepared for Table {
    fn new(shape: &TableShape) -> Self {
        let key = record_key(shape);
        let columns = shape.columns.iter().enumerate().map(|(index, column)| {
            let in_key = proto::Column { name: column.name.clone(), ..proto::Column::default() };
            let in_row = proto::Column {
                type_oid: column.type_oid,
                type_modifier: Some(column.type_modifier).filter(|&modifier| modifier != -1),
                key: key.contains(&index),
                ..in_key.clone()
            };
            Column {
                label: in_row.encode_to_vec(),
                key_label: in_key.encode_to_vec(),
                kind: Kind::of(column.base_oid, &column.form),
                is_identity: column.identity,
            }
        });
        let message = proto::Table {
            schema: shape.schema.clone(),
            name: shape.name.clone(),
            oid: shape.oid,
            shape_version: shape_version(shape, &key),
        };
        let key_head =
            proto::Key { schema: shape.schema.clone(), table: shape.name.clone(), columns: Vec::new() };
        Table {
            columns: columns.collect(),
            key,
            message: message.encode_to_vec(),
            key_head: key_head.encode_to_vec(),
            shape: shape.clone(),
        }
    }

    fn shape(&self) -> &TableShape {
        &self.shape
    }
}

/// The first eight bytes of a SHA-256, read as a little-endian number, of what a reader can see of a table's shape:
/// names, columns in order, and key. Consumers keep these numbers, so what is hashed must stay as it is.
///
/// Texts are hashed behind their lengths, numbers as four bytes, little-endian. The table's OID is not part of it (a
/// table that is restored has its shape), and nor is the replica identity, which no row shows.
pub(super) fn shape_version(shape: &TableShape, key: &[usize]) -> u64 {
    fn number(hash: &mut Sha256, number: u32) {
        hash.update(number.to_le_bytes());
    }
    fn text(hash: &mut Sha256, text: &str) {
        number(hash, text.len() as u32);
        hash.update(text);
    }
    let mut hash = Sha256::new();
    text(&mut hash, &shape.schema);
    text(&mut hash, &shape.name);
    number(&mut hash, shape.columns.len() as u32);
    for column in &shape.columns {
        text(&mut hash, &column.name);
        number(&mut hash, column.type_oid);
        number(&mut hash, column.base_oid);
        number(&mut hash, column.type_modifier as u32);
    }
    number(&mut hash, key.len() as u32);
    for &index in key {
        number(&mut hash, index as u32);
    }
    let digest = hash.finalize();
    digest.iter().take(8).rev().fold(0, |version, &byte| version << 8 | u64::from(byte))
}

/// The parts of a record that are the same throughout a transaction.
#[derive(Debug, Default)]
pub(super) struct TransactionParts {
    /// Fields `transaction` and `phase` of a `millrace.v1.Change`.
    field: Vec<u8>,
    commit_lsn: u64,
    pub(super) position: PositionText,
}

impl TransactionParts {
    pub(super) fn prepare(&mut self, transaction: &Transaction) {
        self.field.clear();
        wire::bytes(&mut self.field, 2, &message(transaction).encode_to_vec());
        if transaction.phase != Phase::Stream {
            wire::unsigned(&mut self.field, 4, phase(transaction.phase) as u64);
        }
        self.commit_lsn = transaction.commit_lsn.0;
        self.position.prepare(transaction.commit_lsn);
    }

    /// Appends the fields `position`, `transaction` and `phase` of a `millrace.v1.Change`.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>, ordinal: u64) {
        wire::nested(out, 1, 0, |out| {
            for (field, number) in [(1, self.commit_lsn), (2, ordinal)] {
                if number != 0 {
                    wire::unsigned(out, field, number);
                }
            }
        });
        out.extend_from_slice(&self.field);
    }
}

fn phase(phase: Phase) -> proto::Phase {
    match phase {
        Phase::Stream => proto::Phase::Stream,
        Phase::Snapshot => proto::Phase::Snapshot,
        Phase::Catchup => proto::Phase::Catchup,
    }
}

/// A `millrace.v1.Transaction`.
fn message(transaction: &Transaction) -> proto::Transaction {
    proto::Transaction {
        xid: transaction.xid,
        commit_time_us: transaction.commit_time.0,
        previous_commit_lsn: transaction.previous_commit_lsn.0,
    }
}
