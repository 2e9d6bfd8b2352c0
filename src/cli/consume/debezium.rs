//! Records in format `debezium-json`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::shown::{Action, Cell, Shown, changed_columns};
use crate::format::debezium_json::UNAVAILABLE_HEADER;
use crate::format::headers::EVENT_HEADER;
use crate::proto::Record;

/// An event of a row or of a message.
#[derive(Deserialize)]
struct Event {
    op: String,
    before: Option<Columns>,
    after: Option<Columns>,
    source: Table,
    message: Option<LogicalMessage>,
}

#[derive(Deserialize)]
struct Gap {
    cause: String,
    table: Option<Table>,
    from: Option<String>,
    to: String,
    detail: String,
}

#[derive(Deserialize)]
struct Watermark {
    commit_lsn: String,
}

/// The beginning or the end of a transaction.
#[derive(Deserialize)]
struct Mark {
    id: String,
    data_collections: Option<Vec<TableChanges>>,
}

#[derive(Deserialize)]
struct TableChanges {
    data_collection: String,
    event_count: u64,
}

#[derive(Deserialize)]
struct Table {
    schema: String,
    table: String,
}

#[derive(Deserialize)]
struct LogicalMessage {
    prefix: String,
    content: String,
}

#[derive(Deserialize)]
struct Snapshot {
    stage: String,
    #[serde(flatten)]
    table: Table,
    epoch: u32,
    rows: Option<u64>,
}

/// A row's columns in their order.
struct Columns(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// Reads a record; `None` when it is no event of this format.
pub(super) fn read(key: Option<&[u8]>, record: &Record, value: &[u8]) -> Option<Shown> {
    match header(record, EVENT_HEADER) {
        b"gap" => {
            let gap: Gap = serde_json::from_slice(value).ok()?;
            let subject = gap.table.map_or("all tables".to_owned(), name);
            let extent = format!("{}, from {} to {}", gap.cause, gap.from.as_deref().unwrap_or("?"), gap.to);
            Some(Shown::notice("gap", subject, vec![extent, gap.detail]))
        }
        b"snapshot" => {
            let mark: Snapshot = serde_json::from_slice(value).ok()?;
            Some(Shown::snapshot(&mark.stage, name(mark.table), mark.epoch, mark.rows))
        }
        b"heartbeat" => Some(Shown::notice("heartbeat", "", Vec::new())),
        b"watermark" => {
            let watermark: Watermark = serde_json::from_slice(value).ok()?;
            Some(Shown::notice("watermark", "", vec![format!("complete up to {}", watermark.commit_lsn)]))
        }
        b"begin" => read_mark("begin", value),
        b"end" => read_mark("end", value),
        _ => read_change(key, record, value),
    }
}

fn read_mark(kind: &'static str, value: &[u8]) -> Option<Shown> {
    let mark: Mark = serde_json::from_slice(value).ok()?;
    let tables = mark.data_collections.unwrap_or_default().into_iter();
    let notes = tables.map(|of| format!("{}: {}", of.data_collection, of.event_count));
    Some(Shown::notice(kind, mark.id, notes.collect()))
}

fn read_change(key: Option<&[u8]>, record: &Record, value: &[u8]) -> Option<Shown> {
    let event: Event = serde_json::from_slice(value).ok()?;
    let action = match event.op.as_str() {
        "c" => Action::Insert,
        "u" => Action::Update,
        "d" => Action::Delete,
        "r" => Action::Read,
        "t" => Action::Truncate,
        "m" => {
            let message = event.message?;
            return Some(Shown::notice("message", message.prefix, vec![message.content]));
        }
        _ => return None,
    };
    let key = key.map(self::key).unwrap_or_default();
    let unsent: Vec<&[u8]> = header(record, UNAVAILABLE_HEADER).split(|&byte| byte == b',').collect();
    let row = |columns: Columns| {
        let cell = |(name, value): (String, Value)| {
            let is_unsent = unsent.contains(&name.as_bytes());
            (name, if is_unsent { Cell::Unsent } else { cell(&value) })
        };
        columns.0.into_iter().map(cell).collect()
    };
    Some(Shown {
        action,
        subject: name(event.source),
        columns: changed_columns(&key, event.before.map(row), event.after.map(row)),
        key,
        notes: Vec::new(),
    })
}

/// The value of a header; empty when there is none.
fn header<'a>(record: &'a Record, name: &str) -> &'a [u8] {
    let header = record.headers.iter().find(|header| header.name == name);
    header.and_then(|header| header.value.as_deref()).unwrap_or_default()
}

/// The columns of a record's key.
pub(super) fn key(key: &[u8]) -> Vec<(String, Cell)> {
    let columns = serde_json::from_slice::<Columns>(key).map_or(Vec::new(), |columns| columns.0);
    columns.into_iter().map(|(name, value)| (name, cell(&value))).collect()
}

fn name(table: Table) -> String {
    format!("{}.{}", table.schema, table.table)
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        value => Cell::Value(value.to_string()),
    }
}
