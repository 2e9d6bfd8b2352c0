//! What is known of a changed row: its two images put together.

use super::FormatError;
use crate::change::{Before, ReplicaIdentity, Row, TableShape, Value};

/// The old and the new row, as far as the server sent them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowImages<'a> {
    pub(super) shape: &'a TableShape,
    pub(super) before: Option<Before<'a>>,
    pub(super) after: Option<Row<'a>>,
}

impl<'a> RowImages<'a> {
    /// The value of a column in the old row. What the server does not send of an old row is unsent, not null.
    pub(super) fn old_value(&self, index: usize) -> Value<'a> {
        match self.before {
            Some(Before::Full(row)) => row.get(index),
            Some(Before::Key(row)) if is_identity(self.shape, index) => row.get(index),
            _ => Value::Unsent,
        }
    }

    /// The value of a column in the new row. One that was not sent because it did not change is in the old row, if that
    /// was sent whole.
    #[inline]
    pub(super) fn new_value(&self, index: usize) -> Value<'a> {
        match self.after.map(|row| row.get(index)) {
            None | Some(Value::Unsent) => self.old_value(index),
            Some(value) => value,
        }
    }

    /// Whether the old row tells the old key, whose columns are `key`.
    pub(super) fn old_row_has_key(&self, key: &[usize]) -> bool {
        key.iter().all(|&index| self.old_value(index) != Value::Unsent)
    }

    /// Whether the old row tells that the key, whose columns are `key`, was another.
    pub(super) fn key_has_changed(&self, key: &[usize]) -> bool {
        self.before.is_some()
            && self.old_row_has_key(key)
            && key.iter().any(|&index| self.old_value(index) != self.new_value(index))
    }

    #[cold]
    pub(super) fn invalid(&self, index: usize, expected: &'static str) -> FormatError {
        let (schema, table, column) = self.names(index);
        FormatError::Value { schema, table, column, expected }
    }

    #[cold]
    pub(super) fn key_unsent(&self, index: usize) -> FormatError {
        let (schema, table, column) = self.names(index);
        FormatError::KeyUnsent { schema, table, column }
    }

    /// Schema, table and column, for an error.
    fn names(&self, index: usize) -> (String, String, String) {
        let column = self.shape.columns.get(index).map(|column| column.name.clone()).unwrap_or_default();
        (self.shape.schema.clone(), self.shape.name.clone(), column)
    }
}

/// Whether a column is part of the replica identity.
fn is_identity(shape: &TableShape, index: usize) -> bool {
    shape.columns.get(index).is_some_and(|column| column.identity)
}

/// Indexes of the columns of the record key, so that inserts, updates and deletes of a row agree on it: the shape's key,
/// except where an old row would not carry that because the replica identity is another index.
pub(crate) fn record_key(shape: &TableShape) -> Vec<usize> {
    if shape.identity == ReplicaIdentity::Index && !shape.key.iter().all(|&index| is_identity(shape, index)) {
        (0..shape.columns.len()).filter(|&index| is_identity(shape, index)).collect()
    } else {
        shape.key.iter().copied().filter(|&index| index < shape.columns.len()).collect()
    }
}
