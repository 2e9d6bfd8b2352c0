//! What comes out, byte for byte, for each kind of event.

use proptest::prelude::*;

use super::*;
use crate::change::{
    Gap, Heartbeat, Lsn, Phase, ReplicaIdentity, SnapshotMark, SnapshotStage, TableShape, TransactionTotals,
    Value, Watermark,
};
use crate::format::test_rows::{OwnedRow, TRANSACTION, customers, row_change, text};
use crate::log::LogError;

/// What a function writes of a value; `None` where it refuses.
pub(super) fn written(write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<String> {
    let mut out = Vec::new();
    write(&mut out)?;
    Some(String::from_utf8(out).unwrap())
}

/// What a function writes of a value in PostgreSQL's text form.
pub(super) fn written_of(write: fn(&mut Vec<u8>, &[u8]) -> Option<()>, text: &str) -> Option<String> {
    written(|out| write(out, text.as_bytes()))
}

/// A record, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    timestamp: i64,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, String)>,
}

#[derive(Default)]
struct Collected(Vec<Sent>);

impl Sink for Collected {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.0.push(Sent {
            timestamp: record.timestamp,
            key: record.key.map(text),
            value: record.value.map(text),
            headers: record
                .headers
                .iter()
                .map(|header| (header.name.to_owned(), text(header.value.unwrap())))
                .collect(),
        });
        Ok(())
    }
}

const NOW: Timestamp = Timestamp(1_767_225_600_200_001);

const HEARTBEAT: Heartbeat = Heartbeat { time: NOW, processed: Lsn(0x16B_3778) };

const WATERMARK: Watermark =
    Watermark { commit_lsn: TRANSACTION.commit_lsn, commit_time: TRANSACTION.commit_time };

/// `customers`'s source block in [`TRANSACTION`].
const SOURCE: &str = concat!(
    r#""source":{"version":"0.1.0","connector":"postgresql","name":"shop","ts_ms":1767225600123,"#,
    r#""snapshot":"false","db":"shop_db","sequence":"[\"23801856\",\"23803624\"]","#,
    r#""ts_us":1767225600123456,"ts_ns":1767225600123456000,"schema":"public","table":"customers","#,
    r#""txId":556,"lsn":23803624,"xmin":null,"origin":null,"origin_lsn":null}"#
);

fn envelope(before: &str, after: &str, op: &str) -> Option<String> {
    Some(format!(
        r#"{{"before":{before},"after":{after},{SOURCE},"transaction":null,"op":"{op}","ts_ms":1767225600200,"ts_us":1767225600200001,"ts_ns":1767225600200001000}}"#
    ))
}

fn format() -> DebeziumJson {
    DebeziumJson::new(DebeziumOptions {
        version: "0.1.0".to_owned(),
        ..DebeziumOptions::new("shop", "shop_db")
    })
}

fn encode(format: &mut DebeziumJson, change: Change<'_>) -> Vec<Sent> {
    let event = Event { transaction: &TRANSACTION, ordinal: 12, lsn: Lsn(0x16B_36E8), change };
    let mut sink = Collected::default();
    format.encode_at(&event, &mut sink, || NOW).unwrap();
    sink.0
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A record of `customers` as it should be.
fn sent(key: Option<&str>, value: Option<String>, more_headers: &[(&str, &str)]) -> Sent {
    let position = [("millrace.position", "0/16B3748:12")];
    Sent {
        timestamp: 1_767_225_600_123,
        key: key.map(str::to_owned),
        value,
        headers: headers(&[&position[..], more_headers].concat()),
    }
}

#[test]
fn an_insert_is_a_create_event() {
    let table = customers(ReplicaIdentity::Default);
    let after = OwnedRow::new(&[text("1"), text("Anna \"A\""), Value::Null]);
    let change = row_change(Operation::Insert, &table, None, Some(after.as_row()));
    assert_eq!(
        encode(&mut format(), change),
        [sent(
            Some(r#"{"id":1}"#),
            envelope("null", r#"{"id":1,"name":"Anna \"A\"","photo":null}"#, "c"),
            &[]
        )]
    );
}

#[test]
fn an_update_with_the_default_identity_has_no_before() {
    let table = customers(ReplicaIdentity::Default);
    let after = OwnedRow::new(&[text("1"), text("Anne"), Value::Unsent]);
    let change = row_change(Operation::Update, &table, None, Some(after.as_row()));
    assert_eq!(
        encode(&mut format(), change),
        [sent(
            Some(r#"{"id":1}"#),
            envelope(
                "null",
                r#"{"id":1,"name":"Anne","photo":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}"#,
                "u"
            ),
            &[("millrace.unavailable", "photo")]
        )]
    );
}

#[test]
fn an_update_with_the_full_identity_fills_what_was_not_sent_from_the_old_row() {
    let table = customers(ReplicaIdentity::Full);
    let before = OwnedRow::new(&[text("1"), text("Anna"), text("\\x01")]);
    let after = OwnedRow::new(&[text("1"), text("Anne"), Value::Unsent]);
    let change =
        row_change(Operation::Update, &table, Some(Before::Full(before.as_row())), Some(after.as_row()));
    assert_eq!(
        encode(&mut format(), change),
        [sent(
            Some(r#"{"id":1}"#),
            envelope(
                r#"{"id":1,"name":"Anna","photo":"AQ=="}"#,
                r#"{"id":1,"name":"Anne","photo":"AQ=="}"#,
                "u"
            ),
            &[]
        )]
    );
}

#[test]
fn a_delete_is_followed_by_a_tombstone_and_shows_only_what_was_sent() {
    let table = customers(ReplicaIdentity::Default);
    let before = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let change = row_change(Operation::Delete, &table, Some(Before::Key(before.as_row())), None);
    let key = Some(r#"{"id":1}"#);
    assert_eq!(
        encode(&mut format(), change),
        [sent(key, envelope(r#"{"id":1}"#, "null", "d"), &[]), sent(key, None, &[])]
    );
}

#[test]
fn a_changed_key_is_a_delete_a_tombstone_and_a_create() {
    let table = customers(ReplicaIdentity::Default);
    let before = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let after = OwnedRow::new(&[text("2"), text("Anna"), Value::Unsent]);
    let change =
        row_change(Operation::Update, &table, Some(Before::Key(before.as_row())), Some(after.as_row()));
    let (old, new) = (r#"{"id":1}"#, r#"{"id":2}"#);
    let created = r#"{"id":2,"name":"Anna","photo":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}"#;
    assert_eq!(
        encode(&mut format(), change),
        [
            sent(Some(old), envelope(old, "null", "d"), &[("__debezium.newkey", new)]),
            sent(Some(old), None, &[("__debezium.newkey", new)]),
            sent(
                Some(new),
                envelope("null", created, "c"),
                &[("__debezium.oldkey", old), ("millrace.unavailable", "photo")]
            ),
        ]
    );
}

#[test]
fn an_old_row_with_the_same_key_is_a_plain_update() {
    let table = customers(ReplicaIdentity::Default);
    let before = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let after = OwnedRow::new(&[Value::Unsent, text("Anna"), Value::Null]);
    let change =
        row_change(Operation::Update, &table, Some(Before::Key(before.as_row())), Some(after.as_row()));
    assert_eq!(
        encode(&mut format(), change),
        [sent(
            Some(r#"{"id":1}"#),
            envelope(r#"{"id":1}"#, r#"{"id":1,"name":"Anna","photo":null}"#, "u"),
            &[]
        )]
    );
}

#[test]
fn a_truncate_has_no_key_and_no_rows() {
    let table = customers(ReplicaIdentity::Default);
    assert_eq!(
        encode(&mut format(), Change::Truncate { table: &table }),
        [sent(None, envelope("null", "null", "t"), &[])]
    );
}

#[test]
fn a_table_without_key_has_records_without_key_and_no_tombstones() {
    let table = TableShape { key: Vec::new(), ..customers(ReplicaIdentity::Full) };
    let before = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let change = row_change(Operation::Delete, &table, Some(Before::Full(before.as_row())), None);
    assert_eq!(
        encode(&mut format(), change),
        [sent(None, envelope(r#"{"id":1,"name":"Anna","photo":null}"#, "null", "d"), &[])]
    );
}

#[test]
fn the_key_follows_a_replica_identity_that_leaves_out_the_primary_key() {
    let mut table = customers(ReplicaIdentity::Index);
    table.columns[0].identity = false;
    table.columns[1].identity = true;
    let row = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let inserted = encode(&mut format(), row_change(Operation::Insert, &table, None, Some(row.as_row())));
    let before = OwnedRow::new(&[Value::Null, text("Anna"), Value::Null]);
    let deleted = encode(
        &mut format(),
        row_change(Operation::Delete, &table, Some(Before::Key(before.as_row())), None),
    );
    assert_eq!(inserted[0].key.as_deref(), Some(r#"{"name":"Anna"}"#));
    assert_eq!(deleted[0].key, inserted[0].key);
    assert_eq!(deleted[0].value, envelope(r#"{"name":"Anna"}"#, "null", "d"));
}

#[test]
fn tombstones_can_be_left_out() {
    let table = customers(ReplicaIdentity::Default);
    let before = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let mut format =
        DebeziumJson::new(DebeziumOptions { tombstones: false, ..DebeziumOptions::new("shop", "shop_db") });
    let change = row_change(Operation::Delete, &table, Some(Before::Key(before.as_row())), None);
    assert_eq!(encode(&mut format, change).len(), 1);
}

#[test]
fn a_message_is_an_event_with_its_content_in_base64() {
    let change = Change::Message { transactional: true, prefix: "app", content: b"foobar" };
    let source = SOURCE.replace("\"public\"", "\"\"").replace("\"customers\"", "\"\"");
    let value = format!(
        r#"{{"op":"m","ts_ms":1767225600200,{source},"transaction":null,"message":{{"prefix":"app","content":"Zm9vYmFy"}}}}"#
    );
    assert_eq!(
        encode(&mut format(), change),
        [Sent {
            timestamp: 1_767_225_600_123,
            key: Some(r#"{"prefix":"app"}"#.to_owned()),
            value: Some(value),
            headers: headers(&[("millrace.position", "0/16B3748:12"), ("millrace.event", "message")]),
        }]
    );
}

#[test]
fn a_gap_is_an_event_that_says_so() {
    let gap = Gap {
        cause: "table_joined_late",
        table: Some(("public".to_owned(), "customers".to_owned())),
        from: None,
        to: Lsn(0x16B_3748),
        detail: "rows written before may be missing".to_owned(),
    };
    let value = concat!(
        r#"{"type":"gap","cause":"table_joined_late","table":{"schema":"public","table":"customers"},"#,
        r#""from":null,"to":"0/16B3748","detail":"rows written before may be missing","#,
        r#""position":"0/16B3748:12","ts_ms":1767225600200}"#
    );
    assert_eq!(
        encode(&mut format(), Change::Gap(&gap)),
        [Sent {
            timestamp: 1_767_225_600_123,
            key: None,
            value: Some(value.to_owned()),
            headers: headers(&[("millrace.position", "0/16B3748:12"), ("millrace.event", "gap")]),
        }]
    );
}

#[test]
fn heartbeats_and_marks_have_debeziums_form_and_a_watermark_ours() {
    let totals = TransactionTotals {
        changes: 3,
        tables: vec![("s1".into(), "a".into(), 2), ("s\"2".into(), "b".into(), 1)],
    };
    let begin =
        SnapshotMark { schema: "public".into(), table: "t".into(), epoch: 1, stage: SnapshotStage::Begin };
    let end = SnapshotMark { stage: SnapshotStage::End { rows: 7 }, ..begin.clone() };
    let id = Some(r#"{"id":"556:23803720"}"#);
    let cases = [
        (
            Change::Begin,
            id,
            r#"{"status":"BEGIN","id":"556:23803720","event_count":null,"data_collections":null,"ts_ms":1767225600123}"#,
            "begin",
        ),
        (
            Change::End(&totals),
            id,
            concat!(
                r#"{"status":"END","id":"556:23803720","event_count":3,"data_collections":["#,
                r#"{"data_collection":"s1.a","event_count":2},{"data_collection":"s\"2.b","event_count":1}],"#,
                r#""ts_ms":1767225600123}"#
            ),
            "end",
        ),
        (
            Change::Heartbeat(HEARTBEAT),
            Some(r#"{"serverName":"shop"}"#),
            r#"{"ts_ms":1767225600200}"#,
            "heartbeat",
        ),
        (
            Change::Snapshot(&begin),
            None,
            r#"{"type":"snapshot","stage":"begin","schema":"public","table":"t","epoch":1,"ts_ms":1767225600200}"#,
            "snapshot",
        ),
        (
            Change::Snapshot(&end),
            None,
            r#"{"type":"snapshot","stage":"end","schema":"public","table":"t","epoch":1,"rows":7,"ts_ms":1767225600200}"#,
            "snapshot",
        ),
        (
            Change::Watermark(WATERMARK),
            None,
            r#"{"type":"watermark","commit_lsn":"0/16B3748","commit_ts_ms":1767225600123,"ts_ms":1767225600200}"#,
            "watermark",
        ),
    ];
    for (change, key, value, kind) in cases {
        let has_place = matches!(change, Change::Begin | Change::End(_));
        let position = has_place.then_some(("millrace.position", "0/16B3748:12"));
        let names: Vec<_> = position.into_iter().chain([("millrace.event", kind)]).collect();
        let sent = Sent {
            timestamp: 1_767_225_600_123,
            key: key.map(str::to_owned),
            value: Some(value.to_owned()),
            headers: headers(&names),
        };
        assert_eq!(encode(&mut format(), change), [sent], "{kind}");
    }
}

#[test]
fn a_table_that_changes_its_shape_is_prepared_anew() {
    let mut table = customers(ReplicaIdentity::Default);
    let mut format = format();
    let row = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let first = encode(&mut format, row_change(Operation::Insert, &table, None, Some(row.as_row())));
    table.columns[1].name = "full_name".to_owned();
    let second = encode(&mut format, row_change(Operation::Insert, &table, None, Some(row.as_row())));
    assert_eq!(
        second[0].value,
        first[0].value.as_ref().map(|value| value.replace("\"name\":\"Anna", "\"full_name\":\"Anna"))
    );
}

#[test]
fn a_row_that_was_read_and_a_change_that_was_held_say_so() {
    let table = customers(ReplicaIdentity::Default);
    let row = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    for (operation, phase, op, snapshot, header) in [
        (Operation::Read, Phase::Snapshot, "r", "true", "snapshot"),
        (Operation::Insert, Phase::Catchup, "c", "false", "catchup"),
    ] {
        let transaction = Transaction { phase, ..TRANSACTION };
        let change = row_change(operation, &table, None, Some(row.as_row()));
        let event = Event { transaction: &transaction, ordinal: 12, lsn: Lsn(0x16B_36E8), change };
        let mut sink = Collected::default();
        format().encode_at(&event, &mut sink, || NOW).unwrap();
        let value = envelope("null", r#"{"id":1,"name":"Anna","photo":null}"#, op).unwrap();
        let value = value.replace(r#""snapshot":"false""#, &format!(r#""snapshot":"{snapshot}""#));
        assert_eq!(sink.0, [sent(Some(r#"{"id":1}"#), Some(value), &[("millrace.phase", header)])]);
    }
}

#[test]
fn a_position_unknown_to_debezium_is_null() {
    let table = customers(ReplicaIdentity::Default);
    let row = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let transaction = Transaction { xid: 0, previous_commit_lsn: Lsn::ZERO, ..TRANSACTION };
    let change = row_change(Operation::Insert, &table, None, Some(row.as_row()));
    let event = Event { transaction: &transaction, ordinal: u64::MAX, lsn: Lsn(u64::MAX), change };
    let mut sink = Collected::default();
    format().encode(&event, &mut sink).unwrap();
    let value: serde_json::Value = serde_json::from_str(sink.0[0].value.as_ref().unwrap()).unwrap();
    assert_eq!(value["source"]["sequence"], r#"[null,"18446744073709551615"]"#);
    assert_eq!(value["source"]["txId"], serde_json::Value::Null);
    assert_eq!(sink.0[0].headers[0].1, "0/16B3748:18446744073709551615");
}

#[test]
fn a_value_that_is_not_of_its_type_is_named() {
    let table = customers(ReplicaIdentity::Default);
    let row = OwnedRow::new(&[text("one"), text("Anna"), Value::Null]);
    let change = row_change(Operation::Insert, &table, None, Some(row.as_row()));
    let event = Event { transaction: &TRANSACTION, ordinal: 0, lsn: Lsn(1), change };
    let error = format().encode(&event, &mut Collected::default()).unwrap_err();
    assert_eq!(error.to_string(), "column id of public.customers has a value that is not a valid integer");
}

#[test]
fn a_key_that_was_not_sent_is_an_error_and_never_a_placeholder() {
    let table = customers(ReplicaIdentity::Default);
    let row = OwnedRow::new(&[Value::Unsent, text("Anna"), Value::Null]);
    let change = row_change(Operation::Update, &table, None, Some(row.as_row()));
    let event = Event { transaction: &TRANSACTION, ordinal: 0, lsn: Lsn(1), change };
    let mut sink = Collected::default();
    assert!(matches!(format().encode(&event, &mut sink), Err(FormatError::KeyUnsent { .. })));
    assert!(sink.0.is_empty());
}

#[test]
fn a_table_without_columns_is_an_empty_object() {
    let table = TableShape { columns: Vec::new(), key: Vec::new(), ..customers(ReplicaIdentity::Full) };
    let row = OwnedRow::new(&[]);
    let change = row_change(Operation::Insert, &table, None, Some(row.as_row()));
    assert_eq!(encode(&mut format(), change), [sent(None, envelope("null", "{}", "c"), &[])]);
}

/// One of each event, as `docs/formats/debezium-json.md` shows them.
fn examples() -> Vec<Sent> {
    let mut format = format();
    let table = customers(ReplicaIdentity::Default);
    let full_table = customers(ReplicaIdentity::Full);
    let key = |id| OwnedRow::new(&[text(id), Value::Null, Value::Null]);
    let inserted = OwnedRow::new(&[text("1"), text("Anna"), text("\\x01")]);
    let updated = OwnedRow::new(&[text("1"), text("Anne"), Value::Unsent]);
    let moved = OwnedRow::new(&[text("2"), text("Anne"), Value::Unsent]);
    let gap = Gap {
        cause: "table_joined_late",
        table: Some(("public".to_owned(), "customers".to_owned())),
        from: None,
        to: Lsn(0x16B_3748),
        detail: "rows written before this position may be missing".to_owned(),
    };
    let totals = TransactionTotals {
        changes: 3,
        tables: vec![("public".into(), "customers".into(), 2), ("public".into(), "orders".into(), 1)],
    };
    let end_of_snapshot = SnapshotMark {
        schema: "public".to_owned(),
        table: "customers".to_owned(),
        epoch: 1,
        stage: SnapshotStage::End { rows: 2_000_000 },
    };
    let old = key("1");
    let old_key = Some(Before::Key(old.as_row()));
    let changes = [
        row_change(Operation::Insert, &table, None, Some(inserted.as_row())),
        row_change(Operation::Update, &table, None, Some(updated.as_row())),
        row_change(
            Operation::Update,
            &full_table,
            Some(Before::Full(inserted.as_row())),
            Some(updated.as_row()),
        ),
        row_change(Operation::Delete, &table, old_key, None),
        row_change(Operation::Update, &table, old_key, Some(moved.as_row())),
        Change::Truncate { table: &table },
        Change::Message { transactional: true, prefix: "app", content: b"foobar" },
        Change::Gap(&gap),
        Change::Heartbeat(HEARTBEAT),
        Change::Begin,
        Change::End(&totals),
        Change::Watermark(WATERMARK),
        Change::Snapshot(&end_of_snapshot),
    ];
    changes.into_iter().flat_map(|change| encode(&mut format, change)).collect()
}

#[test]
fn the_documentation_shows_what_is_produced() {
    let page = include_str!("../../../docs/formats/debezium-json.md");
    let shown: Vec<serde_json::Value> = page
        .split("```json\n")
        .skip(1)
        .map(|rest| serde_json::from_str(rest.split("```").next().unwrap()).unwrap())
        .collect();
    let produced: Vec<serde_json::Value> = examples()
        .iter()
        .filter_map(|sent| sent.value.as_deref())
        .map(|value| serde_json::from_str(value).unwrap())
        .collect();
    assert_eq!(shown, produced);
}

proptest! {
    #[test]
    fn any_row_reads_back_from_the_event(
        id in any::<i32>(),
        name in any::<Option<String>>(),
        column_name in any::<String>(),
    ) {
        let mut table = customers(ReplicaIdentity::Default);
        table.columns[1].name = format!("x{column_name}");
        let id_text = id.to_string();
        let name_value = name.as_deref().map_or(Value::Null, text);
        let row = OwnedRow::new(&[text(&id_text), name_value, Value::Null]);
        let sent = encode(&mut format(), row_change(Operation::Insert, &table, None, Some(row.as_row())));
        let value: serde_json::Value = serde_json::from_str(sent[0].value.as_ref().unwrap()).unwrap();
        prop_assert_eq!(&value["after"]["id"], &serde_json::json!(id));
        prop_assert_eq!(&value["after"][&table.columns[1].name], &serde_json::json!(name));
        prop_assert_eq!(&value["source"]["table"], "customers");
    }
}
