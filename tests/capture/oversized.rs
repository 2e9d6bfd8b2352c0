//! Rows that the server cannot send as text, and records that the log does not take.

use std::time::{Duration, Instant};

use millrace::postgres::binary::{ask_text, write_text};
use millrace::postgres::connect;
use millrace::postgres::source::SourceConfig;
use millrace_test_support::{Postgres, PostgresOptions};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio_postgres::types::{FromSql, Type};

use crate::stage::{Stage, rows, run};
use crate::types::{CASES, Case, MADE_TYPES};

/// A value as the server sends it in binary form.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Types that we read ourselves, with the length of their binary form.
const READ_BY_US: [(Type, usize); 13] = [
    (Type::BOOL, 1),
    (Type::INT2, 2),
    (Type::INT4, 4),
    (Type::INT8, 8),
    (Type::OID, 4),
    (Type::FLOAT4, 4),
    (Type::FLOAT8, 8),
    (Type::UUID, 16),
    (Type::DATE, 4),
    (Type::TIME, 8),
    (Type::TIMESTAMP, 8),
    (Type::TIMESTAMPTZ, 8),
    (Type::INTERVAL, 16),
];

fn ours(type_oid: u32, value: &[u8]) -> Option<String> {
    let mut text = Vec::new();
    write_text(&mut text, type_oid, value)?;
    Some(String::from_utf8(text).unwrap())
}

/// The server is the oracle: of the same binary value it makes the same text.
#[tokio::test(flavor = "multi_thread")]
async fn the_text_that_we_make_of_binary_values_is_the_servers() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    run(&postgres.client().await, MADE_TYPES).await;
    let control = connect::connect(&SourceConfig::parse(&postgres.url()).unwrap()).await.unwrap();
    run(&control, "SET search_path = pg_catalog, public").await;

    // Values of every kind, and arrays of them.
    let mut literals: Vec<(String, String)> = Vec::new();
    for case in CASES {
        for value in case.values {
            literals.push((case.type_name.to_owned(), format!("({value})::{}", case.type_name)));
            if case.has_array() {
                let array = format!("ARRAY[[NULL, x], [x, x]]::{}[]", case.type_name);
                literals.push((
                    format!("{}[]", case.type_name),
                    format!("(SELECT {array} FROM (SELECT ({value})::{} AS x) s)", case.type_name),
                ));
            }
        }
    }
    for (of_type, value) in [
        ("text[]", r#"'[-1:0][2:3]={{"a b","NULL"},{null,"\"\\{}"}}'::text[]"#),
        ("text[]", "'{}'::text[]"),
        ("text[]", "ARRAY['', 'null', E'\\t', 'a,b', 'ü']"),
        ("int4[]", "'{{{1},{2}},{{3},{4}}}'::int4[]"),
        ("interval", "'-1 mons +3 days -04:05:06.07'"),
        ("interval", "'1 year -1 day'"),
        ("numeric", "'-0.000000000000000000001'"),
        ("numeric", "1e1000 + 1e-1000"),
        ("numeric", "'10000.00010000'"),
        ("timetz", "'24:00:00-15:59:59'"),
        ("timestamptz", "'0044-03-15 BC'"),
        ("date", "'99999-12-31'"),
    ] {
        literals.push((of_type.to_owned(), format!("({value})::{of_type}")));
    }
    let mut asked = 0;
    for (of_type, value) in &literals {
        let sql = format!("SELECT v, format('%s', v), pg_typeof(v)::oid FROM (SELECT {value} AS v) s");
        let row = control.query_one(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let (Raw(raw), text): (Raw, String) = (row.get(0), row.get(1));
        let base = row.columns()[0].type_().oid();
        match ours(base, &raw) {
            Some(ours) => assert_eq!(ours, text, "{of_type} {value}"),
            None => {
                asked += 1;
                let answer = ask_text(&control, base, &raw).await.unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), text, "{of_type} {value}");
            }
        }
    }
    assert!(asked < literals.len() / 2, "{asked} of {} were asked", literals.len());

    // Any bits at all.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (of_type, length) in READ_BY_US {
        let mut refused = 0;
        for round in 0..200 {
            // Small numbers too, of either sign.
            let shift = if round % 2 == 0 { 0 } else { random() % 64 };
            let mut value = Vec::new();
            while value.len() < length {
                let number = (random() as i64) >> shift;
                value.extend_from_slice(&number.to_be_bytes()[8 - 8.min(length - value.len())..]);
            }
            if of_type == Type::BOOL {
                value[0] &= 1;
            }
            match (ours(of_type.oid(), &value), ask_text(&control, of_type.oid(), &value).await) {
                (Some(ours), Ok(text)) => {
                    assert_eq!(ours.as_bytes(), text, "{of_type} {value:?}: {ours}, seed {seed}");
                }
                (None, Ok(_)) if [Type::FLOAT4, Type::FLOAT8].contains(&of_type) => {}
                (None, Ok(text)) => panic!("{of_type} {value:?}: {text:?}, seed {seed}"),
                // Out of the type's range, or the server would not have sent it.
                (_, Err(_)) => refused += 1,
            }
        }
        assert!(refused < 180, "{of_type}: {refused} refused, seed {seed}");
    }

    // Digits that are half-way to the next number.
    let half_way = 1e23f64.to_be_bytes();
    assert_eq!(ours(Type::FLOAT8.oid(), &half_way), None);
    let text = ask_text(&control, Type::FLOAT8.oid(), &half_way).await.unwrap();
    assert_eq!(text, b"9.999999999999999e+22");

    // A label that has been renamed since.
    let mood: u32 = control.query_one("SELECT 'mood'::regtype::oid", &[]).await.unwrap().get(0);
    assert_eq!(ask_text(&control, mood, b"furious").await.unwrap(), b"furious");
    assert!(ask_text(&control, Type::INT4.oid(), b"x").await.is_err());
}

/// A table for a row that the server can send as binary alone, and one for what comes before and behind it.
pub const SETUP: &str = concat!(
    crate::quick_compression!(),
    "CREATE TABLE other (id int PRIMARY KEY);
     CREATE TABLE big (id int PRIMARY KEY, note text, content bytea);"
);
/// Twice this in hexadecimal digits is more than the server can put into one message.
pub const TOO_LARGE_FOR_TEXT: usize = 540_000_000;

pub fn insert_big(id: u32) -> String {
    format!("INSERT INTO big VALUES ({id}, 'n{id}', convert_to(repeat('x', {TOO_LARGE_FOR_TEXT}), 'UTF8'));")
}

/// A server needs some GB for such a row, so these tests take turns.
pub static TURN: Mutex<()> = Mutex::const_new(());

pub async fn wait_output(stage: &Stage, text: &str, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while stage.millrace.output().matches(text).count() < count {
        assert!(Instant::now() < deadline, "{text}: {}", stage.millrace.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub const ASKS_IN_ANOTHER_FORM: &str = "asking for it in another form";
const TEXT_AGAIN: &str = "the server sends text again";

/// Ids in the order in which they came.
pub fn ids(rows: &[&Value]) -> Vec<i64> {
    rows.iter().map(|row| row["id"].as_i64().unwrap()).collect()
}

/// Some types that we read ourselves, and some that the server is asked of; all of them in `make test-large`.
const SOME_TYPES: [&str; 6] = ["int", "text", "bytea", "numeric", "inet", "mood"];

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_large_for_text_comes_as_binary_and_all_else_as_ever() {
    let some: Vec<&Case> = CASES.iter().filter(|case| SOME_TYPES.contains(&case.type_name)).collect();
    assert_eq!(some.len(), SOME_TYPES.len());
    a_large_row_among_others(&some).await;
}

/// A row too large for text, and rows of these types, in the same transaction and others.
pub async fn a_large_row_among_others(cases: &[&Case]) {
    let _turn = TURN.lock().await;
    let mut setup = SETUP.to_owned() + MADE_TYPES;
    let mut insert = String::new();
    for (number, case) in cases.iter().enumerate() {
        setup.push_str(&format!(
            "CREATE TABLE type_{number} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v {0}, a {0}[]);
             ALTER TABLE type_{number} REPLICA IDENTITY FULL;",
            case.type_name
        ));
        for value in case.values {
            let array = if case.has_array() { "ARRAY[x, NULL]" } else { "NULL" };
            insert.push_str(&format!(
                "INSERT INTO type_{number} (v, a) SELECT x, {array} FROM (SELECT ({value})::{} AS x) s;",
                case.type_name
            ));
        }
        insert.push_str(&format!("DELETE FROM type_{number};"));
    }
    let outputs = r#"{"oversized":"placeholder"},{"name":"p","format":"protobuf","oversized":"placeholder"}"#;
    // The large transaction is streamed.
    let options = PostgresOptions::default().setting("logical_decoding_work_mem", "64kB");
    let mut stage = Stage::with_outputs(options, &setup, outputs).await;
    stage.run("INSERT INTO other VALUES (1)").await;
    stage.run(&insert).await;
    stage.run("INSERT INTO other VALUES (2)").await;
    stage.caught_up().await;

    // In one transaction with the large row, and behind it.
    stage.run(&format!("BEGIN; INSERT INTO other VALUES (3); {} {insert} COMMIT", insert_big(1))).await;
    stage.run_each(&["INSERT INTO other VALUES (4)", &insert, "INSERT INTO other VALUES (5)"]).await;
    wait_output(&stage, ASKS_IN_ANOTHER_FORM, 1).await;
    // Nothing of it is saved: it begins with text again, and ends the same.
    stage.millrace.kill9();
    stage.millrace.restart().await;
    let records = stage.records().await;
    assert_eq!(ids(&rows(&records, "other")), [1, 2, 3, 4, 5]);
    assert_eq!(ids(&rows(&records, "big")), [1]);
    for (number, case) in cases.iter().enumerate() {
        let table = format!("type_{number}");
        let of_table: Vec<(&Value, &Value)> = records
            .iter()
            .filter_map(|record| record.value.as_ref())
            .filter(|event| event["source"]["table"] == *table)
            .map(|event| (&event["before"], &event["after"]))
            .collect();
        let (text, binary) = of_table.split_at(2 * case.values.len());
        assert_eq!(binary.len(), 2 * text.len(), "{}", case.type_name);
        for ((before, after), place) in binary.iter().zip(0..) {
            let of_text = text[place % text.len()];
            for (name, binary, text) in [("before", before, of_text.0), ("after", after, of_text.1)] {
                for column in ["v", "a"] {
                    assert_eq!(binary[column], text[column], "{} {name} {column}", case.type_name);
                }
            }
        }
    }
    // What was left out is named.
    let is_big = |event: &Value| event["source"]["table"] == "big";
    let big = records.iter().find(|record| record.value.as_ref().is_some_and(is_big)).unwrap();
    let after = &big.value.as_ref().unwrap()["after"];
    assert_eq!((&after["note"], after["content"].as_str().unwrap().len()), (&"n1".into(), 40));
    for name in ["millrace.unavailable", "millrace.oversized"] {
        assert!(big.headers.contains(&(name.to_owned(), "content".to_owned())), "{:?}", big.headers);
    }

    // The server reads on from behind the row once it has written where that is possible.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !stage.millrace.output().contains(TEXT_AGAIN) {
        stage.run("CHECKPOINT").await;
        stage.run("INSERT INTO other SELECT max(id) + 1 FROM other").await;
        assert!(Instant::now() < deadline, "{}", stage.millrace.output());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.run("INSERT INTO other VALUES (1000000)").await;
    let records = stage.records().await;
    let ids = ids(&rows(&records, "other"));
    assert_eq!(ids[..ids.len() - 1], (1..ids.len() as i64).collect::<Vec<_>>()[..]);
    assert_eq!(ids.last(), Some(&1_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_goes_in_neither_form_fails_the_task_and_can_be_gone_over() {
    let _turn = TURN.lock().await;
    let setup = format!("{SETUP} CREATE TABLE rights (id int PRIMARY KEY, list aclitem[])");
    let mut stage =
        Stage::with_outputs(PostgresOptions::default(), &setup, r#"{"oversized":"placeholder"}"#).await;
    stage.run("INSERT INTO other VALUES (1)").await;
    stage
        .run(&format!(
            "BEGIN; INSERT INTO other VALUES (2); INSERT INTO rights VALUES (1, '{{}}'); {} COMMIT",
            insert_big(1)
        ))
        .await;
    stage.run_each(&["INSERT INTO other VALUES (3)", "INSERT INTO rights VALUES (2, '{=r/postgres}')"]).await;
    let reason = stage.millrace.wait_state("failed").await;
    let skip = reason.split_once("SELECT ").unwrap().1.split_once(", then").unwrap().0;
    assert!(skip.starts_with("pg_replication_slot_advance('millrace_t', '"), "{reason}");
    assert!(reason.contains("neither as text nor as binary"), "{reason}");
    assert!(reason.contains("of public."), "{reason}");

    // As the message says.
    stage.run(&format!("SELECT {skip}")).await;
    stage.millrace.sigterm();
    assert!(stage.millrace.wait().await.success());
    stage.millrace.add_args(&["--accept-gap"]);
    stage.millrace.restart().await;
    let records = stage.records().await;
    assert_eq!(ids(&rows(&records, "other")), [1, 3]);
    assert_eq!(ids(&rows(&records, "rights")), [2]);
    let gaps = stage.events().await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0].value.as_ref().unwrap()["cause"], "slot_ahead");
}
