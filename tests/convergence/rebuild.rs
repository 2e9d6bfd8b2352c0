//! Tables made again from what an output's topics hold, and nothing else.
//!
//! What is checked on the way: positions rise in every partition, a row is inserted only where none is, changed and
//! deleted only where one is, and a value that was not sent is that of a row that is there. When the existing rows of a
//! table follow, all that was told of it before is void.

use std::collections::{BTreeMap, BTreeSet};

use millrace::proto::value::Kind;
use millrace::proto::{self, Operation, change};
use millrace_test_support::{RawRecord, parse_lsn};
use prost::Message;
use serde_json::Value;

/// A row: its values by the names of their columns.
pub type Row = BTreeMap<String, Value>;
/// A place in the source: commit LSN and ordinal.
pub type Position = (u64, u64);
/// A row as it was sent: without the values that were not.
type SentRow = BTreeMap<String, Option<Value>>;

/// What an output's topics tell.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The rows of every table.
    pub tables: BTreeMap<String, Vec<Row>>,
    /// Table and position of every change.
    pub changes: BTreeSet<(Position, String)>,
}

/// What a record tells.
#[derive(Debug)]
enum Said {
    Change(Told),
    /// The existing rows of this table follow.
    Begin(String),
    /// Nothing of a table.
    Nothing,
}

/// What a record tells of a table.
#[derive(Debug)]
struct Told {
    position: Position,
    /// Its place among the records of one change.
    part: u8,
    /// How often the existing rows of its table have been announced.
    reading: u32,
    /// Whether it came as the source committed it.
    is_streamed: bool,
    table: String,
    key: Option<Row>,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A new row.
    Insert(SentRow),
    /// A row has changed, and had another key before if one is named.
    Update { old_key: Option<Row>, before: Option<Row>, after: SentRow },
    /// A row is gone.
    Delete { before: Option<Row> },
    /// All rows are gone.
    Truncate,
    /// Part of a change that another record tells whole.
    Repeated,
}

/// Makes the tables again from the records of topics in format `debezium-json`.
pub fn from_debezium(topics: &[Vec<RawRecord>]) -> Result<Rebuilt, String> {
    rebuild(topics, told_by_debezium)
}

/// Makes the tables again from the records of topics in format `protobuf`.
pub fn from_protobuf(topics: &[Vec<RawRecord>]) -> Result<Rebuilt, String> {
    rebuild(topics, told_by_protobuf)
}

fn rebuild(
    topics: &[Vec<RawRecord>],
    tell: impl Fn(&RawRecord) -> Result<Said, String>,
) -> Result<Rebuilt, String> {
    let (mut all, mut latest) = (Vec::new(), BTreeMap::<String, u32>::new());
    for topic in topics {
        // By partition and table; what the source streams rises in the partition as a whole.
        let mut readings = BTreeMap::<(i32, String), u32>::new();
        let (mut last_of_table, mut last_streamed) = (BTreeMap::new(), BTreeMap::new());
        for record in topic {
            let wrong = |why: String| format!("{why}, in {}", shown(record));
            let mut told = match tell(record).map_err(wrong)? {
                Said::Nothing => continue,
                Said::Begin(table) => {
                    *readings.entry((record.partition, table)).or_default() += 1;
                    continue;
                }
                Said::Change(told) => told,
            };
            let of_table = (record.partition, told.table.clone());
            told.reading = readings.get(&of_table).copied().unwrap_or(0);
            let place = (told.position, told.part);
            let before = last_of_table.insert(of_table, (told.reading, place));
            let streamed_before = match told.is_streamed {
                true => last_streamed.insert(record.partition, place),
                false => None,
            };
            if before >= Some((told.reading, place)) || streamed_before >= Some(place) {
                return Err(format!("{before:x?} or {streamed_before:x?} stands before {}", shown(record)));
            }
            all.push((told, record));
        }
        for ((_, table), reading) in readings {
            let known = latest.entry(table).or_default();
            *known = reading.max(*known);
        }
    }
    // Partitions have no order among each other but that of positions.
    all.sort_by_key(|(told, _)| (told.reading, told.position, told.part));
    let mut tables = BTreeMap::<String, Table>::new();
    let mut changes = BTreeSet::new();
    for (told, record) in all {
        let first = match told.what {
            What::Repeated => true,
            _ => changes.insert((told.position, told.table.clone())),
        };
        // Every partition of a table has its truncates.
        if matches!(told.what, What::Truncate) && !first {
            continue;
        }
        if !first {
            return Err(format!("the change came twice: {}", shown(record)));
        }
        let table = tables.entry(told.table).or_default();
        if table.reading < told.reading {
            *table = Table { reading: told.reading, ..Table::default() };
        }
        table.apply(told.key, told.what).map_err(|why| format!("{why}: {}", shown(record)))?;
    }
    // What was read last may be no rows at all.
    tables.retain(|name, table| latest.get(name).is_none_or(|latest| table.reading == *latest));
    let tables = tables.into_iter().map(|(name, table)| (name, table.into_rows())).collect();
    Ok(Rebuilt { tables, changes })
}

/// The rows of a table: by key, or as many as there are where it has none.
#[derive(Debug, Default)]
struct Table {
    reading: u32,
    keyed: BTreeMap<String, Row>,
    without_key: BTreeMap<String, Vec<Row>>,
}

impl Table {
    fn apply(&mut self, key: Option<Row>, what: What) -> Result<(), String> {
        match (what, key) {
            (What::Repeated, _) => {}
            (What::Truncate, _) => *self = Table { reading: self.reading, ..Table::default() },
            (What::Insert(row), Some(key)) => {
                let row = complete(row, None)?;
                if self.keyed.insert(text(&key), row).is_some() {
                    return Err("a row is inserted where one is".to_owned());
                }
            }
            (What::Update { old_key, after, .. }, Some(key)) => {
                let old_key = old_key.unwrap_or_else(|| key.clone());
                let Some(old) = self.keyed.remove(&text(&old_key)) else {
                    return Err("a row is changed where none is".to_owned());
                };
                let row = complete(after, Some(&old))?;
                if self.keyed.insert(text(&key), row).is_some() {
                    return Err("a row gets the key of another".to_owned());
                }
            }
            (What::Delete { .. }, Some(key)) => {
                if self.keyed.remove(&text(&key)).is_none() {
                    return Err("a row is deleted where none is".to_owned());
                }
            }
            (What::Insert(row), None) => self.add(complete(row, None)?),
            (What::Update { before: Some(before), after, .. }, None) => {
                let old = self.take(&before)?;
                self.add(complete(after, Some(&old))?);
            }
            (What::Delete { before: Some(before) }, None) => drop(self.take(&before)?),
            (what, None) => return Err(format!("{what:?} says not of which row")),
        }
        Ok(())
    }

    fn add(&mut self, row: Row) {
        self.without_key.entry(text(&row)).or_default().push(row);
    }

    fn take(&mut self, row: &Row) -> Result<Row, String> {
        let same = self.without_key.get_mut(&text(row));
        same.and_then(Vec::pop).ok_or_else(|| "a row is changed or deleted where none is".to_owned())
    }

    fn into_rows(self) -> Vec<Row> {
        self.keyed.into_values().chain(self.without_key.into_values().flatten()).collect()
    }
}

/// The row with the values that were not sent, as they were before.
fn complete(sent: SentRow, old: Option<&Row>) -> Result<Row, String> {
    let value = |(name, value): (String, Option<Value>)| {
        let value = value.or_else(|| old?.get(&name).cloned());
        value.map(|value| (name.clone(), value)).ok_or(format!("{name} was not sent, and was never there"))
    };
    sent.into_iter().map(value).collect()
}

/// A row as a text by which it can be found.
pub fn text(row: &Row) -> String {
    serde_json::to_string(row).unwrap()
}

fn shown(record: &RawRecord) -> String {
    let text = |bytes: &Option<Vec<u8>>| {
        let text = bytes.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        text.unwrap_or("-".to_owned()).chars().take(1_500).collect::<String>()
    };
    format!(
        "partition {} offset {} {:?} key {} value {}",
        record.partition,
        record.offset,
        record.headers,
        text(&record.key),
        text(&record.value)
    )
}

fn header<'a>(record: &'a RawRecord, name: &str) -> Option<&'a str> {
    record.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

fn position(record: &RawRecord) -> Result<Position, String> {
    let text = header(record, "millrace.position").ok_or("no position")?;
    let (lsn, ordinal) = text.rsplit_once(':').ok_or("no ordinal in the position")?;
    Ok((parse_lsn(lsn), ordinal.parse().map_err(|_| "no ordinal in the position")?))
}

fn told_by_debezium(record: &RawRecord) -> Result<Said, String> {
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(|error| error.to_string());
    let row = |value: &Value| -> Option<Row> { serde_json::from_value(value.clone()).ok() };
    let key_of = |text: &str| read(text.as_bytes()).map(|key| row(&key));
    let Some(value) = &record.value else { return Ok(Said::Nothing) };
    let event = read(value)?;
    match header(record, "millrace.event") {
        Some("snapshot") if event["stage"] == "begin" => {
            return Ok(Said::Begin(event["table"].as_str().ok_or("no table")?.to_owned()));
        }
        Some(_) => return Ok(Said::Nothing),
        None => {}
    }
    let table = event["source"]["table"].as_str().ok_or("no table")?.to_owned();
    let unsent: BTreeSet<&str> =
        header(record, "millrace.unavailable").into_iter().flat_map(|names| names.split(',')).collect();
    let sent = |row: Row| -> SentRow {
        let value = |(name, value): (String, Value)| {
            let value = (!unsent.contains(name.as_str())).then_some(value);
            (name, value)
        };
        row.into_iter().map(value).collect()
    };
    let (before, after) = (row(&event["before"]), row(&event["after"]));
    let after = after.map(sent).ok_or("no new row");
    let (part, what) = match event["op"].as_str().ok_or("no operation")? {
        "c" => match header(record, "__debezium.oldkey") {
            Some(old_key) => (1, What::Update { old_key: key_of(old_key)?, before, after: after? }),
            None => (0, What::Insert(after?)),
        },
        "r" => (0, What::Insert(after?)),
        "u" => (0, What::Update { old_key: None, before, after: after? }),
        "d" if header(record, "__debezium.newkey").is_some() => (0, What::Repeated),
        "d" => (0, What::Delete { before }),
        "t" => (0, What::Truncate),
        other => return Err(format!("operation {other}")),
    };
    let key = record.key.as_deref().map(read).transpose()?.and_then(|key| row(&key));
    let is_streamed = header(record, "millrace.phase").is_none();
    let position = position(record)?;
    Ok(Said::Change(Told { position, part, reading: 0, is_streamed, table, key, what }))
}

fn told_by_protobuf(record: &RawRecord) -> Result<Said, String> {
    let change = proto::Change::decode(record.value.as_deref().ok_or("no value")?);
    let change = change.map_err(|error| error.to_string())?;
    let place = change.position.map(|position| (position.commit_lsn, position.ordinal));
    let is_streamed = change.phase() == proto::Phase::Stream;
    let told = |part, table: Option<proto::Table>, key, what| -> Result<Said, String> {
        let (position, table) = (place.ok_or("no position")?, table.ok_or("no table")?.name);
        Ok(Said::Change(Told { position, part, reading: 0, is_streamed, table, key, what }))
    };
    match change.event {
        Some(change::Event::Snapshot(mark)) if mark.stage() == proto::SnapshotStage::Begin => {
            Ok(Said::Begin(mark.table))
        }
        Some(change::Event::Truncate(truncate)) => told(0, truncate.table, None, What::Truncate),
        Some(change::Event::Row(row)) => {
            let key = record.key.as_deref().map(proto::Key::decode).transpose();
            let key = key.map_err(|error| error.to_string())?;
            let key = key.map(|key| complete(columns(&key.columns)?, None)).transpose()?;
            let old_key = row.before.as_ref().map(|before| {
                let of_key: Vec<_> = before.columns.iter().filter(|column| column.key).cloned().collect();
                complete(columns(&of_key)?, None)
            });
            let (old_key, operation) = (old_key.transpose()?.filter(|key| !key.is_empty()), row.operation());
            let before = row.before.map(|before| columns(&before.columns)).transpose()?;
            let before = before.map(|before| complete(before, None)).transpose()?;
            let after = || columns(&row.after.as_ref().ok_or("no new row")?.columns);
            match operation {
                Operation::Insert | Operation::Read => told(0, row.table, key, What::Insert(after()?)),
                Operation::Update => {
                    let what = What::Update { old_key, before, after: after()? };
                    told(0, row.table, key, what)
                }
                Operation::Delete if row.moved_to.is_some() => told(1, row.table, key, What::Repeated),
                Operation::Delete => told(0, row.table, key, What::Delete { before }),
                other => Err(format!("{other:?}")),
            }
        }
        _ => Ok(Said::Nothing),
    }
}

fn columns(columns: &[proto::Column]) -> Result<SentRow, String> {
    let column = |column: &proto::Column| {
        let kind = column.value.as_ref().and_then(|value| value.kind.as_ref()).ok_or("no value")?;
        let value = match kind {
            Kind::Unsent(_) => None,
            Kind::Null(_) => Some(Value::Null),
            Kind::BoolValue(value) => Some((*value).into()),
            Kind::IntValue(value) => Some((*value).into()),
            Kind::TextValue(value) => Some(value.as_str().into()),
            other => return Err(format!("{other:?} is of no type in these tables")),
        };
        Ok((column.name.clone(), value))
    };
    columns.iter().map(column).collect()
}

/// The checks see every record that is lost, comes twice or comes elsewhere.
#[test]
fn a_history_that_is_not_exact_is_seen() {
    let record = |offset: i64, key: Option<&str>, value: &str, headers: &[(&str, &str)]| RawRecord {
        partition: 0,
        offset,
        timestamp: 0,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let event = |table: &str, op: &str, before: &str, after: &str| {
        format!(r#"{{"before":{before},"after":{after},"source":{{"table":"{table}"}},"op":"{op}"}}"#)
    };
    let at = |place: &'static str| ("millrace.position", place);
    let (one, two) = (r#"{"id":1}"#, r#"{"id":2}"#);
    let unsent = ("millrace.unavailable", "big");
    let bag = r#"{"n":1}"#;
    let history = [
        record(0, Some(one), &event("t", "c", "null", r#"{"id":1,"big":"x"}"#), &[at("0/A:0")]),
        record(1, Some(one), &event("t", "u", "null", r#"{"id":1,"big":"?"}"#), &[at("0/A:1"), unsent]),
        record(2, Some(one), &event("t", "d", one, "null"), &[at("0/B:0"), ("__debezium.newkey", two)]),
        record(
            3,
            Some(two),
            &event("t", "c", "null", r#"{"id":2,"big":"?"}"#),
            &[at("0/B:0"), ("__debezium.oldkey", one), unsent],
        ),
        record(4, None, &event("bag", "c", "null", bag), &[at("0/C:0")]),
        record(5, None, &event("bag", "c", "null", bag), &[at("0/C:1")]),
        record(6, None, &event("bag", "d", bag, "null"), &[at("0/C:2")]),
        record(7, Some(one), &event("t", "c", "null", r#"{"id":1,"big":null}"#), &[at("0/D:0")]),
    ];
    let rows = |records: &[RawRecord]| from_debezium(&[records.to_vec()]).map(|rebuilt| rebuilt.tables);
    let whole = rows(&history).unwrap();
    let shown = |table: &str| whole[table].iter().map(text).collect::<Vec<_>>();
    assert_eq!(shown("t"), [r#"{"big":null,"id":1}"#, r#"{"big":"x","id":2}"#]);
    assert_eq!(shown("bag"), [bag]);
    let begin = r#"{"type":"snapshot","stage":"begin","table":"t"}"#;
    let begin = record(8, None, begin, &[("millrace.event", "snapshot")]);
    let read_again = rows(&[history.to_vec(), vec![begin]].concat()).unwrap();
    assert_eq!(read_again.keys().collect::<Vec<_>>(), ["bag"], "there are no rows of the other any more");
    for at in 0..history.len() {
        let mut twice = history.to_vec();
        twice.insert(at, history[at].clone());
        assert!(rows(&twice).is_err(), "{at} twice");
        // The deletion of a row that only changes its key tells nothing that its creation does not.
        if at != 2 {
            let mut lost = history.to_vec();
            lost.remove(at);
            let changes = from_debezium(&[lost]).map(|rebuilt| rebuilt.changes.len());
            assert!(changes.is_err() || changes == Ok(history.len() - 2), "{at} lost");
        }
        if at > 0 {
            let mut swapped = history.to_vec();
            swapped.swap(at - 1, at);
            assert!(rows(&swapped).is_err(), "{at} before the one before it");
        }
    }
}
