//! What is printed of a record.

use prost::Message;

use super::json::JsonLines;
use super::pretty::Pretty;
use super::shown;
use crate::proto::change::Event;
use crate::proto::value::Kind;
use crate::proto::{self, CHANGE_MEDIA_TYPE, Header, Record, record::Content};

const JSON: &str = "application/json";

fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> Record {
    Record {
        offset: 7,
        timestamp_ms: 1_767_225_600_120,
        key: key.map(|key| key.to_vec().into()),
        headers: Vec::new(),
        content: value.map(|value| Content::Value(value.to_vec().into())),
    }
}

fn pretty(media_type: &str, record: &Record) -> String {
    let mut out = String::new();
    Pretty { colour: false }.write(&mut out, 0, record, &shown::read(media_type, record));
    out.strip_prefix("2026-01-01 00:00:00.120Z  0:7  ").unwrap().to_owned()
}

fn json(media_type: &str, record: &Record) -> String {
    let mut out = String::new();
    JsonLines::new().unwrap().write(&mut out, 0, media_type, record);
    out
}

fn columns(columns: &[(&str, Kind)]) -> Vec<proto::Column> {
    let column = |(name, kind): &(&str, Kind)| proto::Column {
        name: (*name).to_owned(),
        value: Some(proto::Value { kind: Some(kind.clone()) }),
        ..proto::Column::default()
    };
    columns.iter().map(column).collect()
}

fn text(text: &str) -> Kind {
    Kind::TextValue(text.to_owned())
}

fn key(id: i64) -> proto::Key {
    let columns = columns(&[("id", Kind::IntValue(id))]);
    proto::Key { schema: "public".to_owned(), table: "t".to_owned(), columns }
}

/// A record of a row of `public.t`.
fn row(
    operation: proto::Operation,
    before: Option<&[(&str, Kind)]>,
    after: Option<&[(&str, Kind)]>,
    moved_to: Option<proto::Key>,
) -> Record {
    let row = |of: &[(&str, Kind)]| proto::Row { columns: columns(of) };
    let table =
        proto::Table { schema: "public".to_owned(), name: "t".to_owned(), oid: 5, shape_version: u64::MAX };
    let event = Event::Row(proto::RowChange {
        operation: operation.into(),
        table: Some(table),
        before: before.map(row),
        after: after.map(row),
        moved_to,
    });
    event_record(Some(key(1)), event)
}

fn event_record(key: Option<proto::Key>, event: Event) -> Record {
    let transaction = proto::Transaction { xid: 9, ..proto::Transaction::default() };
    let change =
        proto::Change { transaction: Some(transaction), event: Some(event), ..proto::Change::default() };
    let key = key.map(|key| key.encode_to_vec());
    record(key.as_deref(), Some(&change.encode_to_vec()))
}

const ID: (&str, Kind) = ("id", Kind::IntValue(1));

#[test]
fn an_update_shows_what_has_changed() {
    let before = [ID, ("a", text("x")), ("b", Kind::BoolValue(true)), ("c", Kind::Null(proto::Null {}))];
    let after =
        [ID, ("a", text("y")), ("b", Kind::BoolValue(true)), ("c", Kind::NumericValue("1.50".into()))];
    assert_eq!(
        pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Update, Some(&before), Some(&after), None)),
        "update public.t id=1\n    a: \"x\" -> \"y\"\n    c: null -> 1.50\n"
    );
    let debezium = br#"{"before":{"id":1,"b":"x","a":1},"after":{"id":1,"b":"y","a":1},
        "source":{"schema":"public","table":"t"},"op":"u"}"#;
    assert_eq!(
        pretty(JSON, &record(Some(br#"{"id":1}"#), Some(debezium))),
        "update public.t id=1\n    b: \"x\" -> \"y\"\n"
    );
}

#[test]
fn an_update_without_its_old_row_shows_all_there_is_and_what_was_not_sent() {
    let after =
        [ID, ("a", text("y")), ("b", Kind::Unsent(proto::Unsent {})), ("c", Kind::Null(proto::Null {}))];
    let expected = "update public.t id=1\n    a: \"y\"\n    b: (unsent)\n    c: null\n";
    assert_eq!(pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Update, None, Some(&after), None)), expected);
    let debezium = br#"{"before":null,"after":{"id":1,"a":"y","b":"__debezium_unavailable_value","c":null},
        "source":{"schema":"public","table":"t"},"op":"u"}"#;
    let mut debezium = record(Some(br#"{"id":1}"#), Some(debezium));
    debezium.headers.push(Header { name: "millrace.unavailable".into(), value: Some("b".into()) });
    assert_eq!(pretty(JSON, &debezium), expected);
}

#[test]
fn a_changed_key_is_shown_from_both_sides() {
    let (old, new) = ([ID], [("id", Kind::IntValue(2)), ("a", text("x"))]);
    assert_eq!(
        pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Update, Some(&old), Some(&new), None)),
        "update public.t id=1\n    id: 1 -> 2\n    a: \"x\"\n"
    );
    assert_eq!(
        pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Delete, Some(&old), None, Some(key(2)))),
        "delete public.t id=1\n    the row has the key id=2 now\n"
    );
}

#[test]
fn a_deletion_shows_the_row_that_is_gone_and_a_tombstone_its_key() {
    let old = [ID, ("at", Kind::TimestampUs(1_767_225_600_120_000))];
    assert_eq!(
        pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Delete, Some(&old), None, None)),
        "delete public.t id=1\n    at: 2026-01-01 00:00:00.12\n"
    );
    let debezium = br#"{"before":{"id":1},"after":null,"source":{"schema":"public","table":"t"},"op":"d"}"#;
    assert_eq!(pretty(JSON, &record(Some(br#"{"id":1}"#), Some(debezium))), "delete public.t id=1\n");
    assert_eq!(pretty(JSON, &record(Some(br#"{"id":1}"#), None)), "tombstone id=1\n");
}

#[test]
fn what_is_no_row_is_a_line_of_its_own() {
    let gap = proto::Gap {
        cause: "slot_lost".to_owned(),
        table: None,
        from_lsn: Some(0x16),
        to_lsn: 0x1_0000_0020,
        detail: "why".to_owned(),
    };
    let ddl = proto::Ddl {
        tag: "ALTER TABLE".to_owned(),
        statement: "ALTER TABLE t\nADD c int".to_owned(),
        ..Default::default()
    };
    let end = proto::TransactionEnd {
        changes: 3,
        tables: vec![proto::TableChanges { schema: "public".to_owned(), name: "t".to_owned(), changes: 3 }],
    };
    for (event, expected) in [
        (Event::Gap(gap), "gap all tables\n    slot_lost, from 0/16 to 1/20\n    why\n"),
        (Event::Ddl(ddl), "ddl ALTER TABLE\n    ALTER TABLE t\\nADD c int\n"),
        (Event::Begin(proto::TransactionBegin {}), "begin xid 9\n"),
        (Event::End(end), "end xid 9\n    public.t: 3\n"),
    ] {
        assert_eq!(pretty(CHANGE_MEDIA_TYPE, &event_record(None, event)), expected);
    }
    for (kind, value, expected) in [
        (
            "gap",
            r#"{"type":"gap","cause":"slot_lost","table":{"schema":"public","table":"t"},"from":null,
                "to":"1/20","detail":"why","position":"1/20:0","ts_ms":1}"#,
            "gap public.t\n    slot_lost, from ? to 1/20\n    why\n",
        ),
        ("heartbeat", r#"{"ts_ms":1}"#, "heartbeat\n"),
        (
            "watermark",
            r#"{"type":"watermark","commit_lsn":"1/20","commit_ts_ms":1,"ts_ms":1}"#,
            "watermark\n    complete up to 1/20\n",
        ),
        (
            "begin",
            r#"{"status":"BEGIN","id":"9:32","event_count":null,"data_collections":null,"ts_ms":1}"#,
            "begin 9:32\n",
        ),
        (
            "end",
            r#"{"status":"END","id":"9:32","event_count":3,
                "data_collections":[{"data_collection":"public.t","event_count":3}],"ts_ms":1}"#,
            "end 9:32\n    public.t: 3\n",
        ),
    ] {
        let mut record = record(None, Some(value.as_bytes()));
        record.headers.push(Header { name: "millrace.event".into(), value: Some(kind.into()) });
        assert_eq!(pretty(JSON, &record), expected);
    }
}

#[test]
fn a_value_can_do_nothing_to_the_terminal() {
    let after = [
        ID,
        ("e\x1b[2J", text("\x1b]0;title\x07\u{9b}31m\r\n")),
        ("j", Kind::JsonValue("\"\u{9b}\"".into())),
    ];
    let written = pretty(CHANGE_MEDIA_TYPE, &row(proto::Operation::Insert, None, Some(&after), None));
    assert_eq!(written.lines().count(), 3);
    assert!(!written.contains(|char: char| char.is_control() && char != '\n'), "{written:?}");
    let noise = record(Some(b"\x1b[2J"), Some(b"\x1b[2J\xFF"));
    assert_eq!(pretty(JSON, &noise), "record \\u{1b}[2J\n    \\u{1b}[2J\u{FFFD}\n");
}

#[test]
fn long_values_are_cut_where_people_read_and_whole_in_json() {
    let long = "é".repeat(300);
    let after = [ID, ("a", Kind::NumericValue(long.clone()))];
    let record = row(proto::Operation::Insert, None, Some(&after), None);
    let shown = pretty(CHANGE_MEDIA_TYPE, &record);
    assert_eq!(shown, format!("insert public.t id=1\n    a: {}… 100 more\n", "é".repeat(200)));
    assert!(json(CHANGE_MEDIA_TYPE, &record).contains(&long));
}

#[test]
fn colour_tells_operations_apart() {
    let record = row(proto::Operation::Delete, Some(&[ID]), None, None);
    let mut out = String::new();
    Pretty { colour: true }.write(&mut out, 0, &record, &shown::read(CHANGE_MEDIA_TYPE, &record));
    assert!(out.contains("\x1b[31mdelete\x1b[0m"), "{out:?}");
}

#[test]
fn a_json_line_has_the_value_as_it_is() {
    let value = br#"{"z":1.0E7,"a":12345678901234567890}"#;
    assert_eq!(
        json(JSON, &record(Some(br#"{"id":1}"#), Some(value))),
        concat!(
            r#"{"partition":0,"offset":7,"timestamp":1767225600120,"#,
            r#""key":{"id":1},"value":{"z":1.0E7,"a":12345678901234567890}}"#,
            "\n"
        )
    );
    assert_eq!(
        json(JSON, &record(None, None)),
        "{\"partition\":0,\"offset\":7,\"timestamp\":1767225600120,\"key\":null,\"value\":null}\n"
    );
    let noise = json(JSON, &record(None, Some(b"a\n\"\xFF")));
    let parsed: serde_json::Value = serde_json::from_str(&noise).unwrap();
    assert_eq!((noise.lines().count(), &parsed["value"]), (1, &serde_json::json!("a\n\"\u{FFFD}")));
}

#[test]
fn a_protobuf_value_has_protobufs_own_json_form() {
    let after = [ID, ("b", Kind::BytesValue(vec![0xFF])), ("n", Kind::Null(proto::Null {}))];
    let line = json(CHANGE_MEDIA_TYPE, &row(proto::Operation::Insert, None, Some(&after), None));
    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
    let row = &parsed["value"]["row"];
    assert_eq!(row["operation"], "OPERATION_INSERT");
    assert_eq!(row["table"]["shapeVersion"], "18446744073709551615");
    assert_eq!(
        row["after"]["columns"],
        serde_json::json!([
            {"name": "id", "value": {"intValue": "1"}},
            {"name": "b", "value": {"bytesValue": "/w=="}},
            {"name": "n", "value": {"null": {}}},
        ])
    );
    assert_eq!(parsed["key"]["table"], "t");
}
