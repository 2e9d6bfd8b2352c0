//! Records in format `debezium-json`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::shown::{Action, Cell, Shown, changed_columns};
use crate::format::debezium_json::UNAVAILABLE_HEADER;
use crate::proto::Record;

/// An event: of a row, a message, or a gap.
#[derive(Deserialize)]
struct Event {
    op: Option<String>,
    before: Option<Columns>,
    after: Option<Columns>,
    source: Option<Table>,
    message: Option<LogicalMessage>,
    #[serde(rename = "type")]
    kind: Option<String>,
    cause: Option<String>,
    table: Option<Table>,
    from: Option<String>,
    to: Option<String>,
    detail: Option<String>,
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
    let event: Event = serde_json::from_slice(value).ok()?;
    if event.kind.as_deref() == Some("gap") {
        let subject = event.table.map_or("all tables".to_owned(), name);
        let (from, to) = (event.from.unwrap_or("?".to_owned()), event.to.unwrap_or_default());
        let extent = format!("{}, from {from} to {to}", event.cause.unwrap_or_default());
        return Some(Shown::notice("gap", subject, vec![extent, event.detail.unwrap_or_default()]));
    }
    let action = match event.op?.as_str() {
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
    let unavailable = record.headers.iter().find(|header| header.name == UNAVAILABLE_HEADER);
    let unavailable = unavailable.and_then(|header| header.value.as_deref()).unwrap_or_default();
    let unsent: Vec<&[u8]> = unavailable.split(|&byte| byte == b',').collect();
    let row = |columns: Columns| {
        let cell = |(name, value): (String, Value)| {
            let is_unsent = unsent.contains(&name.as_bytes());
            (name, if is_unsent { Cell::Unsent } else { cell(&value) })
        };
        columns.0.into_iter().map(cell).collect()
    };
    Some(Shown {
        action,
        subject: event.source.map(name).unwrap_or_default(),
        columns: changed_columns(&key, event.before.map(row), event.after.map(row)),
        key,
        notes: Vec::new(),
    })
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
