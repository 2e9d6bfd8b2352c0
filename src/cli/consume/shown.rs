//! What a person is shown of a record, whatever its format.

use super::{change, debezium};
use crate::proto::{CHANGE_MEDIA_TYPE, Record, record::Content};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Insert,
    Update,
    Delete,
    Read,
    Truncate,
    /// The record of a deletion that has no value.
    Tombstone,
    /// Anything that is not about a table's rows.
    Notice(&'static str),
}

/// A value, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Value(String),
    Null,
    Unsent,
}

/// A column that has changed, or whose change is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Absent when it was not sent, or there was none.
    pub(super) old: Option<Cell>,
    /// Absent when the row is gone.
    pub(super) new: Option<Cell>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) action: Action,
    /// What it is about: a table, mostly.
    pub(super) subject: String,
    pub(super) key: Vec<(String, Cell)>,
    pub(super) columns: Vec<Column>,
    /// What else there is to say.
    pub(super) notes: Vec<String>,
}

impl Shown {
    pub(super) fn notice(kind: &'static str, subject: impl Into<String>, notes: Vec<String>) -> Self {
        let action = Action::Notice(kind);
        Shown { action, subject: subject.into(), key: Vec::new(), columns: Vec::new(), notes }
    }

    /// The mark before a table's existing rows, or behind them.
    pub(super) fn snapshot(stage: &str, table: String, epoch: u32, rows: Option<u64>) -> Self {
        let note = match rows {
            Some(rows) => format!("{stage} of attempt {epoch}, {rows} rows"),
            None => format!("{stage} of attempt {epoch}"),
        };
        Shown::notice("snapshot", table, vec![note])
    }
}

/// Reads a record whose values are of this media type. What cannot be read is shown as it is.
pub(super) fn read(media_type: &str, record: &Record) -> Shown {
    let value: &[u8] = match &record.content {
        Some(Content::Value(value)) => value,
        Some(Content::Change(_)) => &[],
        None => {
            let key = record.key.as_deref().unwrap_or_default();
            return Shown {
                action: Action::Tombstone,
                key: debezium::key(key),
                ..Shown::notice("", "", Vec::new())
            };
        }
    };
    let key = record.key.as_deref();
    let read = if media_type == CHANGE_MEDIA_TYPE {
        change::read(key, value)
    } else {
        debezium::read(key, record, value)
    };
    read.unwrap_or_else(|| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Shown::notice("record", key.map(text).unwrap_or_default(), vec![text(value)])
    })
}

/// The columns of a change that are worth showing: those of the key only when they have changed, others only when they
/// have, or when that is not known. `before` and `after` are the rows as far as they were sent.
pub(super) fn changed_columns(
    key: &[(String, Cell)],
    before: Option<Vec<(String, Cell)>>,
    after: Option<Vec<(String, Cell)>>,
) -> Vec<Column> {
    let is_key = |name: &str| key.iter().any(|(column, _)| column == name);
    let mut before = before.unwrap_or_default();
    let Some(after) = after else {
        let gone = before.into_iter().filter(|(name, _)| !is_key(name));
        return gone.map(|(name, old)| Column { name, old: Some(old), new: None }).collect();
    };
    let columns = after.into_iter().map(|(name, new)| {
        let old = before.iter().position(|(column, _)| *column == name).map(|at| before.swap_remove(at).1);
        Column { name, old, new: Some(new) }
    });
    columns
        .filter(|column| if column.old.is_some() { column.old != column.new } else { !is_key(&column.name) })
        .collect()
}
