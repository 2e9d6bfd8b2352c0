//! What comes out for each kind of event, as prost reads it.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::change::{
    Attribute, Column, DataType, Heartbeat, Lsn, Phase, ReplicaIdentity, SnapshotMark, SnapshotStage,
    TableShape, Timestamp, TypeForm, Watermark,
};
use crate::format::test_rows::{OwnedRow, TRANSACTION, column, customers, form_of, row_change, text};
use crate::format::text::time::{DAY, civil_from_days};
use crate::log::LogError;
use crate::proto::value::Kind;

/// A record, owned and decoded.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    key: Option<proto::Key>,
    change: proto::Change,
    headers: Vec<(String, String)>,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Collected(Vec<Sent>);

impl Sink for Collected {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        assert_eq!(record.timestamp, TRANSACTION.commit_time.millis());
        let bytes = record.value.unwrap().to_vec();
        let change = proto::Change::decode(&bytes[..]).unwrap();
        assert_eq!(change.encode_to_vec(), bytes, "prost encodes the same bytes");
        let key = record.key.map(|bytes| {
            let key = proto::Key::decode(bytes).unwrap();
            assert_eq!(key.encode_to_vec(), bytes);
            key
        });
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers =
            record.headers.iter().map(|header| (header.name.to_owned(), text(header.value.unwrap())));
        self.0.push(Sent { key, change, headers: headers.collect(), bytes });
        Ok(())
    }
}

fn try_encode(format: &mut Protobuf, change: Change<'_>) -> Result<Vec<Sent>, FormatError> {
    let event = Event { transaction: &TRANSACTION, ordinal: 12, lsn: Lsn(0x16B_36E8), change };
    let mut sink = Collected::default();
    format.encode(&event, &mut sink)?;
    Ok(sink.0)
}

fn encode(change: Change<'_>) -> Vec<Sent> {
    try_encode(&mut Protobuf::default(), change).unwrap()
}

fn row(sent: &Sent) -> &proto::RowChange {
    match &sent.change.event {
        Some(change::Event::Row(row)) => row,
        other => panic!("{other:?} is no row"),
    }
}

/// A row's columns as name and value.
fn values(row: Option<&proto::Row>) -> Option<Vec<(&str, Kind)>> {
    let value = |column: &proto::Column| column.value.clone().unwrap().kind.unwrap();
    Some(row?.columns.iter().map(|column| (column.name.as_str(), value(column))).collect())
}

fn before(sent: &Sent) -> Option<Vec<(&str, Kind)>> {
    values(row(sent).before.as_ref())
}

fn after(sent: &Sent) -> Option<Vec<(&str, Kind)>> {
    values(row(sent).after.as_ref())
}

/// The key of `customers`.
fn key(id: i64) -> proto::Key {
    let value = proto::Value { kind: Some(Kind::IntValue(id)) };
    proto::Key {
        schema: "public".to_owned(),
        table: "customers".to_owned(),
        columns: vec![proto::Column {
            name: "id".to_owned(),
            value: Some(value),
            ..proto::Column::default()
        }],
    }
}

fn text_value(text: &str) -> Kind {
    Kind::TextValue(text.to_owned())
}

const NULL: Kind = Kind::Null(proto::Null {});
const UNSENT: Kind = Kind::Unsent(proto::Unsent {});

#[test]
fn an_insert_names_its_table_and_columns_place_and_transaction() {
    let table = customers(ReplicaIdentity::Default);
    let new = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let sent = encode(row_change(Operation::Insert, &table, None, Some(new.as_row())));
    let column = |name: &str, type_oid, key, kind| proto::Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: None,
        key,
        value: Some(proto::Value { kind: Some(kind) }),
    };
    let columns = vec![
        column("id", 23, true, Kind::IntValue(1)),
        column("name", 25, false, text_value("Anna")),
        column("photo", 17, false, NULL),
    ];
    let expected = proto::Change {
        position: Some(proto::Position { commit_lsn: 0x16B_3748, ordinal: 12 }),
        transaction: Some(proto::Transaction {
            xid: 556,
            commit_time_us: 1_767_225_600_123_456,
            previous_commit_lsn: 0x16B_3000,
        }),
        lsn: 0x16B_36E8,
        phase: proto::Phase::Stream.into(),
        event: Some(change::Event::Row(proto::RowChange {
            operation: proto::Operation::Insert.into(),
            table: Some(proto::Table {
                schema: "public".to_owned(),
                name: "customers".to_owned(),
                oid: 16_384,
                shape_version: prepared::shape_version(&table, &[0]),
            }),
            before: None,
            after: Some(proto::Row { columns }),
            moved_to: None,
        })),
    };
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].change, expected);
    assert_eq!(sent[0].key, Some(key(1)));
    assert_eq!(sent[0].headers, [("millrace.position".to_owned(), "0/16B3748:12".to_owned())]);
}

#[test]
fn a_value_that_was_not_sent_is_no_null() {
    let table = customers(ReplicaIdentity::Default);
    let new = OwnedRow::new(&[text("1"), Value::Null, Value::Unsent]);
    let sent = encode(row_change(Operation::Update, &table, None, Some(new.as_row())));
    assert_eq!(before(&sent[0]), None);
    assert_eq!(after(&sent[0]).unwrap(), [("id", Kind::IntValue(1)), ("name", NULL), ("photo", UNSENT)]);
}

#[test]
fn an_update_with_the_full_identity_fills_what_was_not_sent_from_the_old_row() {
    let table = customers(ReplicaIdentity::Full);
    let old = OwnedRow::new(&[text("1"), text("Anna"), text("\\x01")]);
    let new = OwnedRow::new(&[text("1"), text("Anne"), Value::Unsent]);
    let change = row_change(Operation::Update, &table, Some(Before::Full(old.as_row())), Some(new.as_row()));
    let sent = encode(change);
    let photo = ("photo", Kind::BytesValue(vec![1]));
    let id = ("id", Kind::IntValue(1));
    assert_eq!(sent.len(), 1);
    assert_eq!(before(&sent[0]).unwrap(), [id.clone(), ("name", text_value("Anna")), photo.clone()]);
    assert_eq!(after(&sent[0]).unwrap(), [id, ("name", text_value("Anne")), photo]);
}

#[test]
fn a_delete_has_the_columns_that_were_sent_and_no_tombstone() {
    let table = customers(ReplicaIdentity::Default);
    let old = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let sent = encode(row_change(Operation::Delete, &table, Some(Before::Key(old.as_row())), None));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].key, Some(key(1)));
    assert_eq!(row(&sent[0]).operation(), proto::Operation::Delete);
    assert_eq!((before(&sent[0]).unwrap(), after(&sent[0])), (vec![("id", Kind::IntValue(1))], None));
    assert_eq!(row(&sent[0]).moved_to, None);
}

#[test]
fn a_changed_key_is_an_update_under_the_new_key_and_then_a_delete_under_the_old_one() {
    let table = customers(ReplicaIdentity::Default);
    let old = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let new = OwnedRow::new(&[text("2"), text("Anna"), Value::Unsent]);
    let sent =
        encode(row_change(Operation::Update, &table, Some(Before::Key(old.as_row())), Some(new.as_row())));
    let [update, delete] = &sent[..] else { panic!("{sent:?}") };
    let old_columns = vec![("id", Kind::IntValue(1))];
    assert_eq!((&update.key, row(update).operation()), (&Some(key(2)), proto::Operation::Update));
    assert_eq!(before(update).unwrap(), old_columns);
    assert_eq!(
        after(update).unwrap(),
        [("id", Kind::IntValue(2)), ("name", text_value("Anna")), ("photo", UNSENT)]
    );
    assert_eq!(row(update).moved_to, None);
    assert_eq!((&delete.key, row(delete).operation()), (&Some(key(1)), proto::Operation::Delete));
    assert_eq!((before(delete).unwrap(), after(delete)), (old_columns, None));
    assert_eq!(row(delete).moved_to, Some(key(2)));
    assert_eq!(update.change.position, delete.change.position);
    assert_eq!(update.headers, delete.headers);
}

#[test]
fn an_old_row_with_the_same_key_is_a_plain_update() {
    let table = customers(ReplicaIdentity::Full);
    let old = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let change = row_change(Operation::Update, &table, Some(Before::Full(old.as_row())), Some(old.as_row()));
    assert_eq!(encode(change).len(), 1);
}

#[test]
fn a_table_without_key_has_records_without_key() {
    let table = TableShape { key: Vec::new(), ..customers(ReplicaIdentity::Full) };
    let old = OwnedRow::new(&[text("1"), text("Anna"), Value::Null]);
    let old = Some(Before::Full(old.as_row()));
    for change in [row_change(Operation::Delete, &table, old, None), Change::Truncate { table: &table }] {
        let sent = encode(change);
        assert_eq!((sent.len(), &sent[0].key), (1, &None));
    }
}

#[test]
fn a_key_is_the_same_whatever_the_declared_type_of_its_column() {
    let key_of = |base_oid, type_modifier| {
        let mut table = customers(ReplicaIdentity::Default);
        table.columns[0] = Column { type_modifier, ..column("id", base_oid, true) };
        let new = OwnedRow::new(&[text("7"), Value::Null, Value::Null]);
        encode(row_change(Operation::Insert, &table, None, Some(new.as_row())))[0].key.clone()
    };
    assert_eq!(key_of(23, -1), key_of(20, -1));
    assert_eq!(key_of(1043, 14), key_of(25, -1));
}

#[test]
fn a_type_modifier_is_told_where_there_is_one() {
    let mut table = customers(ReplicaIdentity::Default);
    table.columns[1] = Column { type_modifier: (12 << 16 | 2) + 4, ..column("price", 1700, false) };
    let new = OwnedRow::new(&[text("1"), text("1.50"), Value::Null]);
    let sent = encode(row_change(Operation::Insert, &table, None, Some(new.as_row())));
    let columns = &row(&sent[0]).after.as_ref().unwrap().columns;
    assert_eq!((columns[0].type_modifier, columns[1].type_modifier), (None, Some(786_438)));
}

#[test]
fn what_is_no_row_change_has_no_key_and_says_what_it_is() {
    let table = customers(ReplicaIdentity::Default);
    let gap = Gap {
        cause: "table_joined_late",
        table: Some(("public".to_owned(), "customers".to_owned())),
        from: None,
        to: Lsn(0x16B_3748),
        detail: "rows written before may be missing".to_owned(),
    };
    let snapshot = SnapshotMark {
        schema: "public".to_owned(),
        table: "customers".to_owned(),
        epoch: 2,
        stage: SnapshotStage::End { rows: 7 },
    };
    let totals =
        TransactionTotals { changes: 3, tables: vec![("public".to_owned(), "customers".to_owned(), 3)] };
    let heartbeat = Heartbeat { time: Timestamp(5), processed: Lsn(7) };
    let watermark = Watermark { commit_lsn: Lsn(8), commit_time: Timestamp(9) };
    let table_message = proto::Table {
        schema: "public".to_owned(),
        name: "customers".to_owned(),
        oid: 16_384,
        shape_version: prepared::shape_version(&table, &[0]),
    };
    let gap_table = proto::Table { oid: 0, shape_version: 0, ..table_message.clone() };
    for (change, kind, has_place, expected) in [
        (
            Change::Truncate { table: &table },
            None,
            true,
            change::Event::Truncate(proto::Truncate { table: Some(table_message) }),
        ),
        (
            Change::Message { transactional: true, prefix: "app", content: b"\xFF" },
            Some("message"),
            true,
            change::Event::Message(proto::LogicalMessage {
                prefix: "app".to_owned(),
                content: vec![0xFF],
                transactional: true,
            }),
        ),
        (
            Change::Gap(&gap),
            Some("gap"),
            false,
            change::Event::Gap(proto::Gap {
                cause: "table_joined_late".to_owned(),
                table: Some(gap_table),
                from_lsn: None,
                to_lsn: 0x16B_3748,
                detail: "rows written before may be missing".to_owned(),
            }),
        ),
        (
            Change::Snapshot(&snapshot),
            Some("snapshot"),
            false,
            change::Event::Snapshot(proto::Snapshot {
                schema: "public".to_owned(),
                table: "customers".to_owned(),
                epoch: 2,
                stage: proto::SnapshotStage::End.into(),
                rows: 7,
            }),
        ),
        (
            Change::Heartbeat(heartbeat),
            Some("heartbeat"),
            false,
            change::Event::Heartbeat(proto::Heartbeat { time_us: 5, processed_lsn: 7 }),
        ),
        (
            Change::Watermark(watermark),
            Some("watermark"),
            false,
            change::Event::Watermark(proto::Watermark { commit_lsn: 8, commit_time_us: 9 }),
        ),
        (Change::Begin, Some("begin"), true, change::Event::Begin(proto::TransactionBegin {})),
        (
            Change::End(&totals),
            Some("end"),
            true,
            change::Event::End(proto::TransactionEnd {
                changes: 3,
                tables: vec![proto::TableChanges {
                    schema: "public".to_owned(),
                    name: "customers".to_owned(),
                    changes: 3,
                }],
            }),
        ),
    ] {
        let sent = encode(change);
        assert_eq!(sent.len(), 1);
        let Sent { key, change, headers, .. } = &sent[0];
        assert_eq!((key, change.event.as_ref()), (&None, Some(&expected)));
        assert_eq!(
            [change.position.is_some(), change.transaction.is_some(), change.lsn != 0],
            [has_place; 3]
        );
        let header =
            |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        assert_eq!(header("millrace.event"), kind);
        assert_eq!(header("millrace.position"), has_place.then_some("0/16B3748:12"));
    }
}

#[test]
fn a_place_at_zero_is_still_a_place() {
    let event = Event { transaction: &TRANSACTION, ordinal: 0, lsn: Lsn::ZERO, change: Change::Begin };
    let mut sink = Collected::default();
    Protobuf::default().encode(&event, &mut sink).unwrap();
    assert_eq!(
        sink.0[0].change.position,
        Some(proto::Position { commit_lsn: TRANSACTION.commit_lsn.0, ordinal: 0 })
    );
}

#[test]
fn a_value_that_is_not_of_its_type_is_named() {
    let table = customers(ReplicaIdentity::Default);
    let new = OwnedRow::new(&[text("one"), text("Anna"), Value::Null]);
    let change = row_change(Operation::Insert, &table, None, Some(new.as_row()));
    let error = try_encode(&mut Protobuf::default(), change).unwrap_err();
    assert_eq!(error.to_string(), "column id of public.customers has a value that is not a valid integer");
}

#[test]
fn a_key_that_was_not_sent_is_an_error() {
    let table = customers(ReplicaIdentity::Default);
    let new = OwnedRow::new(&[Value::Unsent, text("Anna"), Value::Null]);
    let change = row_change(Operation::Update, &table, None, Some(new.as_row()));
    let error = try_encode(&mut Protobuf::default(), change);
    assert!(matches!(error, Err(FormatError::KeyUnsent { .. })));
}

#[test]
fn a_shape_version_is_of_what_readers_see_and_stays_as_it_is() {
    let table = customers(ReplicaIdentity::Default);
    let version = |table: &TableShape| prepared::shape_version(table, &table.key);
    assert_eq!(version(&table), 15_060_241_788_138_450_402, "what consumers may have kept");
    for same in [TableShape { oid: 5, ..table.clone() }, customers(ReplicaIdentity::Full)] {
        assert_eq!(version(&same), version(&table));
    }
    let mut others = vec![
        TableShape { schema: "other".to_owned(), ..table.clone() },
        TableShape { name: "other".to_owned(), ..table.clone() },
        TableShape { key: vec![1], ..table.clone() },
        TableShape { key: Vec::new(), ..table.clone() },
    ];
    let changes: [fn(&mut Vec<Column>); 5] = [
        |columns| columns[1].name.push('x'),
        |columns| columns[1].type_oid = 16_500,
        |columns| columns[1].type_modifier = 14,
        |columns| columns.swap(1, 2),
        |columns| columns.truncate(2),
    ];
    for change in changes {
        let mut other = table.clone();
        change(&mut other.columns);
        others.push(other);
    }
    let mut versions: Vec<u64> = others.iter().chain([&table]).map(version).collect();
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), others.len() + 1);
}

/// The bytes of one of each record: what is stored must be readable for ever.
#[test]
fn the_bytes_stay_as_they_are() {
    let table = customers(ReplicaIdentity::Default);
    let old = OwnedRow::new(&[text("1"), Value::Null, Value::Null]);
    let new = OwnedRow::new(&[text("2"), text("Anna"), Value::Unsent]);
    let update = row_change(Operation::Update, &table, Some(Before::Key(old.as_row())), Some(new.as_row()));
    let totals =
        TransactionTotals { changes: 1, tables: vec![("public".to_owned(), "customers".to_owned(), 1)] };
    let message = Change::Message { transactional: true, prefix: "app", content: b"foobar" };
    let hex = |sent: &Sent| {
        let key = sent.key.as_ref().map(|key| key.encode_to_vec()).unwrap_or_default();
        [key, sent.bytes.clone()]
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let found: Vec<[String; 2]> =
        [update, message, Change::End(&totals)].into_iter().flat_map(encode).map(|sent| hex(&sent)).collect();
    assert_eq!(
        found,
        [
            [
                "0a067075626c69631209637573746f6d6572731a080a0269642a022004",
                concat!(
                    "0a0708c8eeac0b100c121108ac0410c0c488b184e991031880e0ac0b18e8edac0b5265080212200a06707562",
                    "6c69631209637573746f6d6572731880800121e26d7c1d1dba00d11a0e0a0c0a026964101720012a02200222",
                    "2f0a0c0a026964101720012a0220040a100a046e616d6510192a064204416e6e610a0d0a0570686f746f1011",
                    "2a021200",
                ),
            ],
            [
                "0a067075626c69631209637573746f6d6572731a080a0269642a022002",
                concat!(
                    "0a0708c8eeac0b100c121108ac0410c0c488b184e991031880e0ac0b18e8edac0b5253080312200a06707562",
                    "6c69631209637573746f6d6572731880800121e26d7c1d1dba00d11a0e0a0c0a026964101720012a0220022a",
                    "1d0a067075626c69631209637573746f6d6572731a080a0269642a022004",
                ),
            ],
            [
                "",
                concat!(
                    "0a0708c8eeac0b100c121108ac0410c0c488b184e991031880e0ac0b18e8edac0b620f0a036170701206666f",
                    "6f6261721801",
                ),
            ],
            [
                "",
                concat!(
                    "0a0708c8eeac0b100c121108ac0410c0c488b184e991031880e0ac0b18e8edac0b8a0119080112150a067075",
                    "626c69631209637573746f6d6572731801",
                ),
            ],
        ]
    );
}

/// Each type's text, and the value that it becomes.
#[test]
fn every_type_has_its_kind_of_value() {
    let micros = |micros| Kind::TimestampUs(micros);
    let array = |element_type_oid, lengths: &[u32], lower_bounds: &[i32], elements: Vec<Kind>| {
        Kind::ArrayValue(proto::Array {
            elements: elements.into_iter().map(|kind| proto::Value { kind: Some(kind) }).collect(),
            element_type_oid,
            lengths: lengths.to_vec(),
            lower_bounds: lower_bounds.to_vec(),
        })
    };
    let interval = |months, days, micros| Kind::IntervalValue(proto::Interval { months, days, micros });
    let infinity = |infinity: proto::Infinity| Kind::Infinity(infinity.into());
    let ints = |ints: &[i64]| ints.iter().map(|&int| Kind::IntValue(int)).collect::<Vec<_>>();
    let uuid = (*b"\xa0\xee\xbc\x99\x9c\x0b\x4e\xf8\xbb\x6d\x6b\xb9\xbd\x38\x0a\x11").to_vec();
    for (oid, given, expected) in [
        (16, "t", Kind::BoolValue(true)),
        (16, "f", Kind::BoolValue(false)),
        (21, "-32768", Kind::IntValue(-32_768)),
        (20, "-9223372036854775808", Kind::IntValue(i64::MIN)),
        (20, "9223372036854775807", Kind::IntValue(i64::MAX)),
        (26, "4294967295", Kind::IntValue(4_294_967_295)),
        (700, "3.3", Kind::FloatValue(3.3)),
        (700, "-Infinity", Kind::FloatValue(f32::NEG_INFINITY)),
        (701, "1e+20", Kind::DoubleValue(1e20)),
        (701, "5e-324", Kind::DoubleValue(5e-324)),
        (1700, "-123.450", Kind::NumericValue("-123.450".to_owned())),
        (1700, "NaN", Kind::NumericValue("NaN".to_owned())),
        (1700, "-Infinity", Kind::NumericValue("-Infinity".to_owned())),
        (25, "", text_value("")),
        (1042, "ab  ", text_value("ab  ")),
        (17, "\\x", Kind::BytesValue(Vec::new())),
        (17, "\\x00fF", Kind::BytesValue(vec![0, 0xFF])),
        (17, "fo\\157\\\\", Kind::BytesValue(b"foo\\".to_vec())),
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", Kind::UuidValue(uuid.clone())),
        (114, "{\"a\" :  1}", Kind::JsonValue("{\"a\" :  1}".to_owned())),
        (3802, "null", Kind::JsonValue("null".to_owned())),
        (1082, "1969-12-31", Kind::DateDays(-1)),
        (1082, "5874897-12-31", Kind::DateDays(2_145_042_905)),
        (1082, "infinity", infinity(proto::Infinity::Positive)),
        (1083, "24:00:00", Kind::TimeUs(86_400_000_000)),
        (1266, "13:51:30+02", text_value("13:51:30+02")),
        (1114, "1970-01-01 00:00:00", micros(0)),
        (1114, "0001-12-31 23:59:59 BC", micros(-62_135_596_801_000_000)),
        (1114, "-infinity", infinity(proto::Infinity::Negative)),
        (1114, "294276-12-31 23:59:59.999999", text_value("294276-12-31 23:59:59.999999")),
        (1184, "1970-01-01 01:30:00.5+02", Kind::TimestamptzUs(-1_799_500_000)),
        (1184, "294276-12-31 23:59:59+00", text_value("294276-12-31 23:59:59+00")),
        (1186, "1 year 2 mons -3 days +04:05:06.78", interval(14, -3, 14_706_780_000)),
        (1186, "00:00:00", interval(0, 0, 0)),
        (1186, "-infinity", infinity(proto::Infinity::Negative)),
        (1560, "0011", text_value("0011")),
        (869, "10.0.0.1/8", text_value("10.0.0.1/8")),
        (790, "-$1,234.05", Kind::NumericValue("-1234.05".to_owned())),
        (600, "(1,2)", text_value("(1,2)")),
        (16_500, "happy", text_value("happy")),
        (1007, "{}", array(23, &[], &[], vec![])),
        (1007, "{1,NULL,-3}", array(23, &[3], &[], vec![Kind::IntValue(1), NULL, Kind::IntValue(-3)])),
        (1016, "{{1,2,3},{4,5,6}}", array(20, &[2, 3], &[], ints(&[1, 2, 3, 4, 5, 6]))),
        (1007, "[0:0][-5:-4]={{1,2}}", array(23, &[1, 2], &[0, -5], ints(&[1, 2]))),
        (1009, r#"{"a\"b","NULL",c}"#, array(25, &[3], &[], ["a\"b", "NULL", "c"].map(text_value).to_vec())),
        (2951, "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", array(2950, &[1], &[], vec![Kind::UuidValue(uuid)])),
        (1185, "{infinity}", array(1184, &[1], &[], vec![infinity(proto::Infinity::Positive)])),
        (
            1020,
            "{(1,2),(3,4);(5,6),(7,8)}",
            array(603, &[2], &[], ["(1,2),(3,4)", "(5,6),(7,8)"].map(text_value).to_vec()),
        ),
    ] {
        assert_eq!(value_of(oid, text(given)), Some(expected), "{oid} {given}");
    }
}

/// What a value of a type becomes; `None` when it is refused.
fn value_of(base_oid: u32, value: Value<'_>) -> Option<Kind> {
    let mut out = Vec::new();
    values::Kind::of(base_oid, &form_of(base_oid)).write(&mut out, value)?;
    let message = proto::Value::decode(&out[..]).unwrap();
    assert_eq!(message.encode_to_vec(), out);
    message.kind
}

#[test]
fn a_composite_has_its_attributes_or_is_its_text_when_it_was_altered_meanwhile() {
    let attribute = |name: &str, oid| Attribute {
        name: name.to_owned(),
        type_oid: oid,
        data_type: DataType { oid, type_modifier: -1, form: form_of(oid) },
    };
    let form = TypeForm::Composite([attribute("i", 23), attribute("a", 1009)].into());
    let value_of = |given: &str| {
        let mut out = Vec::new();
        values::Kind::of(16_500, &form).write(&mut out, text(given)).unwrap();
        let message = proto::Value::decode(&out[..]).unwrap();
        assert_eq!(message.encode_to_vec(), out);
        message.kind.unwrap()
    };
    let Kind::CompositeValue(row) = value_of(r#"(7,"{a,""b c""}")"#) else { panic!("no composite") };
    let columns: Vec<_> =
        row.columns.iter().map(|column| (column.name.as_str(), column.value.clone())).collect();
    let Some(proto::Value { kind: Some(Kind::ArrayValue(array)) }) = &columns[1].1 else {
        panic!("{columns:?}")
    };
    assert_eq!(columns[0], ("i", Some(proto::Value { kind: Some(Kind::IntValue(7)) })));
    assert_eq!(array.elements.len(), 2);
    for altered in ["(7)", "(7,{},1)", "(x,{})", "7"] {
        assert_eq!(value_of(altered), text_value(altered));
    }
}

#[test]
fn what_is_not_of_its_type_is_refused() {
    for (oid, given) in [
        (16, "true"),
        (20, ""),
        (20, "-"),
        (20, "1.5"),
        (20, "9223372036854775808"),
        (701, "x"),
        (1700, "1.2.3"),
        (1700, "."),
        (1700, "1e5"),
        (17, "\\x0"),
        (2950, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g"),
        (2950, "a0eebc9--9c0b-4ef8-bb6d-6bb9bd380a11"),
        (1082, "22/11/2026"),
        (1114, "2026-01-01"),
        (1186, "P1Y"),
        (1007, "{1,x}"),
        (1007, "{{1},{2,3}}"),
        (1007, "{1,{2}}"),
        (1007, "[1:1]={{1}}"),
        (1007, "[x]={1}"),
    ] {
        assert_eq!(value_of(oid, text(given)), None, "{oid} {given}");
    }
}

#[test]
fn text_that_is_not_utf8_comes_as_it_is() {
    for oid in [25, 114, 16_500] {
        assert_eq!(value_of(oid, Value::Text(b"a\xFF")), Some(Kind::RawTextValue(b"a\xFF".to_vec())));
    }
}

#[test]
fn binary_values_of_bytea_alone_are_taken() {
    assert_eq!(value_of(17, Value::Binary(b"foob")), Some(Kind::BytesValue(b"foob".to_vec())));
    for other in [25, 114, 1700] {
        assert_eq!(value_of(other, Value::Binary(b"foob")), None);
    }
}

/// A column's type, the text that a server sends, and what it should become; no text for null, no value for unsent.
fn any_cell() -> impl Strategy<Value = (u32, Option<String>, Kind)> {
    let date = |days: i64| {
        let (year, month, day) = civil_from_days(days);
        format!("{year:04}-{month:02}-{day:02}")
    };
    let clock = |micros: i64| {
        let seconds = micros / 1_000_000;
        format!(
            "{:02}:{:02}:{:02}.{:06}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            micros % 1_000_000
        )
    };
    let days = -700_000_i64..2_900_000;
    prop_oneof![
        Just((25, None, NULL)),
        any::<bool>().prop_map(|bool| (
            16,
            Some(if bool { "t" } else { "f" }.to_owned()),
            Kind::BoolValue(bool)
        )),
        any::<i64>().prop_map(|int| (20, Some(int.to_string()), Kind::IntValue(int))),
        any::<f32>().prop_map(|float| (700, Some(format!("{float:e}")), Kind::FloatValue(float))),
        any::<f64>().prop_map(|float| (701, Some(format!("{float:e}")), Kind::DoubleValue(float))),
        "-?[0-9]{1,40}(\\.[0-9]{1,40})?".prop_map(|text| (
            1700,
            Some(text.clone()),
            Kind::NumericValue(text)
        )),
        ".{0,200}".prop_map(|text| (25, Some(text.clone()), Kind::TextValue(text))),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (17, Some(format!("\\x{hex}")), Kind::BytesValue(bytes))
        }),
        days.clone().prop_map(move |days| (1082, Some(date(days)), Kind::DateDays(days as i32))),
        (0..DAY).prop_map(move |micros| (1083, Some(clock(micros)), Kind::TimeUs(micros))),
        (days, 0..DAY).prop_map(move |(days, micros)| {
            let text = format!("{} {}+00", date(days), clock(micros));
            (1184, Some(text), Kind::TimestamptzUs(days * DAY + micros))
        }),
        proptest::collection::vec(any::<Option<i32>>(), 1..50).prop_map(|elements| {
            let texts: Vec<String> =
                elements.iter().map(|int| int.map_or("NULL".to_owned(), |int| int.to_string())).collect();
            let kind = |int: &Option<i32>| proto::Value {
                kind: Some(int.map_or(NULL, |int| Kind::IntValue(int.into()))),
            };
            let array = proto::Array {
                elements: elements.iter().map(kind).collect(),
                element_type_oid: 23,
                lengths: vec![elements.len() as u32],
                lower_bounds: Vec::new(),
            };
            (1007, Some(format!("{{{}}}", texts.join(","))), Kind::ArrayValue(array))
        }),
    ]
}

proptest! {
    #[test]
    fn any_row_reads_back_from_the_record(
        cells in proptest::collection::vec((any::<String>(), any_cell()), 0..12), ordinal in any::<u64>(), lsn in any::<u64>(),
    ) {
        let columns: Vec<Column> = cells.iter().map(|(name, (oid, ..))| column(name, *oid, true)).collect();
        let table = TableShape { columns, key: Vec::new(), ..customers(ReplicaIdentity::Full) };
        let given: Vec<Value<'_>> =
            cells.iter().map(|(_, (_, given, _))| given.as_deref().map_or(Value::Null, text)).collect();
        let new = OwnedRow::new(&given);
        let change = row_change(Operation::Update, &table, Some(Before::Full(new.as_row())), Some(new.as_row()));
        let event = Event { transaction: &TRANSACTION, ordinal, lsn: Lsn(lsn), change };
        let mut sink = Collected::default();
        let mut format = Protobuf::default();
        // Twice, with and without a record before from which to expect a length.
        for _ in 0..2 {
            format.encode(&event, &mut sink).unwrap();
        }
        for sent in &sink.0 {
            let expected: Vec<(&str, Kind)> =
                cells.iter().map(|(name, (.., kind))| (name.as_str(), kind.clone())).collect();
            prop_assert_eq!(before(sent), Some(expected.clone()));
            prop_assert_eq!(after(sent), Some(expected));
            prop_assert_eq!(sent.change.lsn, lsn);
            prop_assert_eq!(&sent.change.position, &Some(proto::Position { commit_lsn: TRANSACTION.commit_lsn.0, ordinal }));
        }
    }

    #[test]
    fn no_value_makes_the_encoder_panic_or_leaves_bytes_that_prost_does_not_read(
        text in prop_oneof![any::<Vec<u8>>(), "[\\[{}\",\\\\1aNUL=:-]{0,20}".prop_map(String::into_bytes)],
        oid in proptest::sample::select(vec![16, 17, 20, 25, 700, 1082, 1083, 1114, 1184, 1186, 1700, 2950, 1007, 1009]),
    ) {
        value_of(oid, Value::Text(&text));
    }
}

#[test]
fn a_row_that_was_read_and_a_change_that_was_held_say_so() {
    let table = customers(ReplicaIdentity::Default);
    let row = OwnedRow::new(&[text("1"), text("Anna"), crate::change::Value::Null]);
    for (operation, phase, expected) in [
        (Operation::Read, Phase::Snapshot, (proto::Operation::Read, proto::Phase::Snapshot)),
        (Operation::Insert, Phase::Catchup, (proto::Operation::Insert, proto::Phase::Catchup)),
    ] {
        let transaction = Transaction { phase, ..TRANSACTION };
        let change = row_change(operation, &table, None, Some(row.as_row()));
        let event = Event { transaction: &transaction, ordinal: 0, lsn: Lsn::ZERO, change };
        let mut sink = Collected::default();
        Protobuf::default().encode(&event, &mut sink).unwrap();
        let sent = &sink.0[0];
        assert_eq!((self::row(sent).operation(), sent.change.phase()), expected);
    }
}
