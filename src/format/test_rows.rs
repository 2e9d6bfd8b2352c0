//! Rows, tables and a transaction for the tests of formats.

use crate::change::{
    Before, Cell, CellKind, Change, Column, DataType, Lsn, Operation, Phase, ReplicaIdentity, Row,
    TableShape, Timestamp, Transaction, TypeForm, Value,
};

/// A row's bytes and cells.
#[derive(Default)]
pub(super) struct OwnedRow {
    data: Vec<u8>,
    cells: Vec<Cell>,
}

impl OwnedRow {
    pub(super) fn new(values: &[Value<'_>]) -> Self {
        let mut row = OwnedRow::default();
        for value in values {
            let (kind, bytes): (_, &[u8]) = match value {
                Value::Null => (CellKind::Null, b""),
                Value::Unsent => (CellKind::Unsent, b""),
                Value::Text(bytes) => (CellKind::Text, bytes),
                Value::Binary(bytes) => (CellKind::Binary, bytes),
            };
            row.cells.push(Cell { kind, start: row.data.len() as u32, len: bytes.len() as u32 });
            row.data.extend_from_slice(bytes);
        }
        row
    }

    pub(super) fn as_row(&self) -> Row<'_> {
        Row::new(&self.data, &self.cells)
    }
}

pub(super) fn text(text: &str) -> Value<'_> {
    Value::Text(text.as_bytes())
}

/// The forms of those built-in types that the tests of formats need: arrays, by their OID.
pub(super) fn form_of(oid: u32) -> TypeForm {
    let (element_oid, delimiter) = match oid {
        1007 => (23, b','),
        1009 => (25, b','),
        1016 => (20, b','),
        1020 => (603, b';'),
        1185 => (1184, b','),
        1231 => (1700, b','),
        2951 => (2950, b','),
        _ => return TypeForm::Plain,
    };
    let element = DataType { oid: element_oid, type_modifier: -1, form: TypeForm::Plain };
    TypeForm::Array { element_oid, element: element.into(), delimiter }
}

pub(super) fn column(name: &str, base_oid: u32, identity: bool) -> Column {
    Column {
        name: name.to_owned(),
        type_oid: base_oid,
        base_oid,
        type_modifier: -1,
        form: form_of(base_oid),
        identity,
    }
}

/// `CREATE TABLE customers (id int PRIMARY KEY, name text, photo bytea)`
pub(super) fn customers(identity: ReplicaIdentity) -> TableShape {
    let full = identity == ReplicaIdentity::Full;
    TableShape {
        oid: 16_384,
        schema: "public".to_owned(),
        name: "customers".to_owned(),
        identity,
        columns: vec![column("id", 23, true), column("name", 25, full), column("photo", 17, full)],
        key: vec![0],
    }
}

pub(super) const TRANSACTION: Transaction = Transaction {
    xid: 556,
    commit_lsn: Lsn(0x16B_3748),
    end_lsn: Lsn(0x16B_3778),
    commit_time: Timestamp(1_767_225_600_123_456),
    previous_commit_lsn: Lsn(0x16B_3000),
    phase: Phase::Stream,
};

pub(super) fn row_change<'a>(
    operation: Operation,
    table: &'a TableShape,
    before: Option<Before<'a>>,
    after: Option<Row<'a>>,
) -> Change<'a> {
    Change::Row { operation, table, before, after }
}
