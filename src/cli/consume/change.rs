//! Records in format `protobuf`.

use prost::Message;

use super::shown::{Action, Cell, Shown, changed_columns};
use super::time;
use crate::change::Lsn;
use crate::proto::change::Event;
use crate::proto::value::Kind;
use crate::proto::{self, Change, Infinity, Key, Operation, RowChange, SnapshotStage};

/// Reads a record; `None` when it is no `Change`.
pub(super) fn read(key: Option<&[u8]>, value: &[u8]) -> Option<Shown> {
    let key = key.map(Key::decode).transpose().ok()?.unwrap_or_default();
    let change = Change::decode(value).ok()?;
    let xid = change.transaction.as_ref().map(|transaction| format!("xid {}", transaction.xid));
    Some(match change.event? {
        Event::Row(row) => read_row(cells(key.columns), row),
        Event::Truncate(truncate) => Shown {
            action: Action::Truncate,
            ..Shown::notice("", table(truncate.table.as_ref()), Vec::new())
        },
        Event::Message(message) => {
            let content = match String::from_utf8(message.content) {
                Ok(text) => quoted(&text),
                Err(bytes) => hex(bytes.as_bytes()),
            };
            Shown::notice("message", message.prefix, vec![content])
        }
        Event::Gap(gap) => {
            let subject = gap.table.as_ref().map_or("all tables".to_owned(), |of| table(Some(of)));
            let from = gap.from_lsn.map_or("?".to_owned(), |from| Lsn(from).to_string());
            let extent = format!("{}, from {from} to {}", gap.cause, Lsn(gap.to_lsn));
            Shown::notice("gap", subject, vec![extent, gap.detail])
        }
        Event::Snapshot(mark) => {
            let stage = if mark.stage() == SnapshotStage::End { "end" } else { "begin" };
            let rows = (stage == "end").then_some(mark.rows);
            Shown::snapshot(stage, format!("{}.{}", mark.schema, mark.table), mark.epoch, rows)
        }
        Event::Heartbeat(heartbeat) => {
            let processed = format!("processed up to {}", Lsn(heartbeat.processed_lsn));
            Shown::notice("heartbeat", "", vec![processed])
        }
        Event::Watermark(watermark) => {
            let complete = format!("complete up to {}", Lsn(watermark.commit_lsn));
            Shown::notice("watermark", "", vec![complete])
        }
        Event::Begin(_) => Shown::notice("begin", xid.unwrap_or_default(), Vec::new()),
        Event::End(end) => {
            let notes = end.tables.iter().map(|of| format!("{}.{}: {}", of.schema, of.name, of.changes));
            Shown::notice("end", xid.unwrap_or_default(), notes.collect())
        }
        Event::Ddl(ddl) => Shown::notice("ddl", ddl.tag, vec![ddl.statement]),
    })
}

fn read_row(key: Vec<(String, Cell)>, row: RowChange) -> Shown {
    let action = match row.operation() {
        Operation::Insert => Action::Insert,
        Operation::Update => Action::Update,
        Operation::Delete => Action::Delete,
        Operation::Read => Action::Read,
        Operation::Unspecified => Action::Notice("change"),
    };
    let moved = |to: Key| {
        let columns = cells(to.columns).into_iter().map(|(name, cell)| format!("{name}={}", text(&cell)));
        format!("the row has the key {} now", columns.collect::<Vec<_>>().join(" "))
    };
    Shown {
        action,
        subject: table(row.table.as_ref()),
        columns: changed_columns(
            &key,
            row.before.map(|row| cells(row.columns)),
            row.after.map(|row| cells(row.columns)),
        ),
        key,
        notes: row.moved_to.map(moved).into_iter().collect(),
    }
}

fn table(table: Option<&proto::Table>) -> String {
    table.map(|table| format!("{}.{}", table.schema, table.name)).unwrap_or_default()
}

fn cells(columns: Vec<proto::Column>) -> Vec<(String, Cell)> {
    columns.into_iter().map(|column| (column.name, cell(column.value))).collect()
}

fn cell(value: Option<proto::Value>) -> Cell {
    match value.and_then(|value| value.kind) {
        Some(Kind::Null(_)) => Cell::Null,
        Some(Kind::Unsent(_)) => Cell::Unsent,
        Some(kind) => Cell::Value(shown(kind)),
        None => Cell::Value("(of a kind that this version does not know)".to_owned()),
    }
}

fn text(cell: &Cell) -> &str {
    match cell {
        Cell::Value(text) => text,
        Cell::Null => "null",
        Cell::Unsent => "unsent",
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("\\x{}", digits.collect::<String>())
}

fn shown(kind: Kind) -> String {
    match kind {
        Kind::Null(_) => "null".to_owned(),
        Kind::Unsent(_) => "unsent".to_owned(),
        Kind::BoolValue(value) => value.to_string(),
        Kind::IntValue(value) => value.to_string(),
        Kind::FloatValue(value) => value.to_string(),
        Kind::DoubleValue(value) => value.to_string(),
        Kind::NumericValue(text) | Kind::JsonValue(text) => text,
        Kind::TextValue(text) => quoted(&text),
        Kind::BytesValue(bytes) | Kind::RawTextValue(bytes) => hex(&bytes),
        Kind::UuidValue(bytes) => {
            uuid::Uuid::from_slice(&bytes).map_or_else(|_| hex(&bytes), |uuid| uuid.to_string())
        }
        Kind::DateDays(days) => time::date(days.into()),
        Kind::TimeUs(micros) => time::clock(micros.unsigned_abs()),
        Kind::TimestampUs(micros) => time::timestamp(micros),
        Kind::TimestamptzUs(micros) => format!("{}+00", time::timestamp(micros)),
        Kind::IntervalValue(proto::Interval { months, days, micros }) => {
            let sign = if micros < 0 { "-" } else { "" };
            format!("{months} mons {days} days {sign}{}", time::clock(micros.unsigned_abs()))
        }
        Kind::Infinity(infinity) if infinity == i32::from(Infinity::Negative) => "-infinity".to_owned(),
        Kind::Infinity(_) => "infinity".to_owned(),
        Kind::ArrayValue(array) => {
            let elements = array.elements.into_iter().map(|element| text(&cell(Some(element))).to_owned());
            format!("[{}]", elements.collect::<Vec<_>>().join(", "))
        }
        Kind::CompositeValue(row) => {
            let attributes =
                cells(row.columns).into_iter().map(|(name, cell)| format!("{name}: {}", text(&cell)));
            format!("{{{}}}", attributes.collect::<Vec<_>>().join(", "))
        }
    }
}
