//! Keys of every kind: reading on behind a key, and telling on which side of a key another one lies, follow the server's
//! own order.

use futures_util::TryStreamExt;
use millrace::change::Value;
use millrace::postgres::connect;
use millrace::postgres::snapshot::keys::{self, Question};
use millrace::postgres::snapshot::{CopiedRows, CopyRows, ReadFrom, ReadOptions};
use millrace::postgres::source::SourceConfig;

use crate::reading::{self, Reading, Values};
use crate::stage::run;

/// Types and collations of which the tables below have keys.
const TYPES: &str = r#"
    CREATE SCHEMA "Odd ""Schema";
    CREATE COLLATION "Odd ""Schema"."any case" (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE COLLATION german (provider = icu, locale = 'de');
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); ALTER TYPE mood ADD VALUE 'angry' BEFORE 'ok'; COMMIT;
    CREATE TYPE "Odd ""Schema"."Pair of" AS (n numeric, t text);
    CREATE TYPE words AS RANGE (subtype = text, collation = "C");
    CREATE DOMAIN word AS text COLLATE german; CREATE DOMAIN short AS word;"#;

/// Name, columns, key, rows.
const TABLES: &[(&str, &str, &str, &str)] = &[
    (
        "any_case",
        r#"k text COLLATE "Odd ""Schema"."any case""#,
        "k",
        "('b'), ('A'), ('É'), ('a b'), ('C'), ('é x')",
    ),
    ("of_locale", "k text COLLATE german", "k", "('Z'), ('ä b'), ('Ab'), ('a'), ('-c'), ('A'), ('aC')"),
    ("of_bytes", r#"k text COLLATE "C""#, "k", "('Z'), ('ä b'), ('Ab'), ('a'), ('-c'), ('A'), ('aC')"),
    ("of_database", "k text", "k", r"('Z'), (''), (E'\t\n\\'), ('''a'), ('\N'), ('ä'), ('a'), ('A')"),
    ("cut", "k varchar(3)", "k", "('abc'), (''), ('b'), ('ab ')"),
    ("blanks", "k char(5)", "k", "('b '), (''), ('a b'), ('a'), ('abcde')"),
    ("letter", r#"k "char""#, "k", "('b'), (''), ('a')"),
    ("named", "k name", "k", "('b'), (''), ('A')"),
    ("exact", "k numeric", "k", "('NaN'), ('-Infinity'), (1.50), ('Infinity'), (0), (1e30), (-1e-30)"),
    ("double", "k float8", "k", "('NaN'), ('-inf'), (0.1), ('inf'), ('-0'), (1e-300), (0.30000000000000004)"),
    ("single", "k real", "k", "('NaN'), ('-inf'), (0.1), ('inf'), ('-0'), (1e-40)"),
    (
        "moment",
        "k timestamptz",
        "k",
        "('infinity'), ('-infinity'), ('2026-01-01 00:00:00.000001+02'), ('4000-01-01 BC')",
    ),
    ("day", "k date", "k", "('infinity'), ('-infinity'), ('2026-01-01'), ('4000-01-01 BC'), ('20000-01-01')"),
    ("clock", "k timetz", "k", "('24:00+00'), ('00:00+05'), ('00:00-05'), ('12:00:00.5+00')"),
    (
        "span",
        "k interval",
        "k",
        "('1 mon'), ('29 days'), ('31 days'), ('-1 day'), ('800:00'), ('1 mon -00:00:01')",
    ),
    (
        "unique_id",
        "k uuid",
        "k",
        "('ff000000-0000-0000-0000-000000000000'), ('00000000-0000-0000-0000-000000000001')",
    ),
    ("raw", "k bytea", "k", r"('\x'), ('\x00'), ('\xff'), ('\x5c5c'), ('\x27')"),
    ("felt", "k mood", "k", "('happy'), ('sad'), ('angry'), ('ok')"),
    ("true_false", "k boolean", "k", "(true), (false)"),
    ("address", "k inet", "k", "('::1'), ('10.0.0.1/8'), ('10.0.0.1'), ('10.0.0.0/8')"),
    ("network", "k cidr", "k", "('::/0'), ('10.0.0.0/8'), ('10.0.0.0/16')"),
    ("range", "k int4range", "k", "('empty'), ('(,)'), ('[1,5)'), ('[1,)'), ('(,1)')"),
    ("text_range", "k words", "k", r#"('empty'), ('(,)'), ('["a\"",b]'), ('[B,)')"#),
    ("ranges", "k int4multirange", "k", "('{}'), ('{(,)}'), ('{[1,5),[7,8)}'), ('{[1,2)}')"),
    ("price", "k money", "k", "(-1234567.89), (0), (12.34)"),
    ("bits", "k bit(5)", "k", "(B'10101'), (B'00000'), (B'11111')"),
    ("some_bits", "k varbit", "k", "(B'1'), (B''), (B'10')"),
    ("json", "k jsonb", "k", r#"('{"a": 1}'), ('[]'), ('"x"'), ('null'), ('1')"#),
    ("list", "k text[]", "k", r#"('{}'), ('{a,NULL}'), ('{"a,b","\""}'), ('[0:1]={a,b}')"#),
    ("lexemes", "k tsvector", "k", r"('a:1A b'), (''), ('''a b'':2')"),
    ("place", "k pg_lsn", "k", "('FF/0'), ('0/1'), ('1/0')"),
    ("number", "k oid", "k", "(4294967295), (0), (2147483648)"),
    ("pair", r#"k "Odd ""Schema"."Pair of""#, "k", r#"('(1.0,"a"",b")'), ('(NaN,)'), ('(0.5,B)')"#),
    ("of_domain", "k short", "k", "('ä'), ('bad'), ('B'), ('a')"),
    (
        "mixed",
        r#"v int, day date, "k "" 'x" text COLLATE "Odd ""Schema"."any case", m mood, n numeric"#,
        r#""k "" 'x", n, m, day"#,
        "(1, 'infinity', 'a', 'ok', 1), (2, '2026-01-01', 'a', 'sad', 1.00), (3, 'infinity', 'A', 'ok', 'NaN'), \
         (4, '-infinity', 'B', 'happy', -1), (5, '2026-01-01', 'b', 'sad', -1), (6, '2026-01-01', 'B', 'happy', -1)",
    ),
    (r#""Odd "" 'Table""#, r#""k "" 'x" text"#, r#""k "" 'x""#, "('b'), ('a')"),
];

/// The lines of a table's key columns, or of all, in the order of the key.
async fn lines(reading: &Reading, columns: &str, table: &str, key: &str) -> Vec<Vec<u8>> {
    let copy = format!("COPY (SELECT {columns} FROM {table} ORDER BY {key}) TO STDOUT");
    let stream = reading.client.copy_out(&copy).await.unwrap();
    stream.map_ok(|line| line.to_vec()).try_collect().await.unwrap()
}

/// The row of a line.
fn row_of(line: Vec<u8>) -> Vec<Values> {
    let columns = line.split(|byte| *byte == b'\t').count();
    reading::values(&mut CopiedRows::Text(CopyRows::new(line, columns)))
}

/// A key in text form.
fn key_values(line: &[u8], columns: usize) -> Vec<String> {
    let mut rows = CopyRows::new(line.to_vec(), columns);
    let row = rows.next_row().unwrap().unwrap();
    let text = |value| match value {
        Value::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    row.values().map(text).collect()
}

/// What is compared are texts: whatever the type, the server that reads them finds the order of its index.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_type_and_collation_are_gone_on_behind_in_the_order_of_their_index() {
    let mut setup = TYPES.to_owned();
    let mut tables = TABLES.to_vec();
    let citext = [
        ("no_case", "k more.citext", "k", "('b'), ('A'), ('C'), ('a c'), ('ab')"),
        ("path", "k more.ltree", "k", "('b'), ('a.b'), ('a'), ('a_')"),
    ];
    tables.extend(citext);
    setup += "CREATE SCHEMA more; CREATE EXTENSION citext SCHEMA more; CREATE EXTENSION ltree SCHEMA more;";
    for (table, columns, key, rows) in &tables {
        setup += &format!(
            "CREATE TABLE {table} ({columns}, PRIMARY KEY ({key})); INSERT INTO {table} VALUES {rows};"
        );
    }
    setup += r#"CREATE TABLE two_schemas (a more.citext, b int, PRIMARY KEY (a, b)); INSERT INTO two_schemas VALUES ('A', 1), ('a', 2), ('B', 1);
        CREATE TABLE by_index (k text COLLATE "Odd ""Schema"."any case" NOT NULL); CREATE UNIQUE INDEX i ON by_index (k COLLATE "C");
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX i; INSERT INTO by_index VALUES ('A'), ('a'), ('B');"#;
    setup += "ALTER DOMAIN word ADD CHECK (value <> 'bad') NOT VALID;";
    let mut reading = Reading::start(&setup).await;

    let mut wanted = Vec::new();
    let mut in_order = Vec::new();
    for (table, _, key, _) in &tables {
        wanted.push(reading.wanted(table, 1, ReadFrom::FirstKey).await);
        let all = lines(&reading, "*", table, key).await;
        let all: Vec<Values> = all.into_iter().flat_map(row_of).collect();
        let keys = lines(&reading, key, table, key).await;
        let columns = key.split(", ").count();
        let keys: Vec<_> = keys.iter().map(|line| key_values(line, columns)).collect();
        in_order.push((all, keys));
    }
    reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
    let (mut stamps, mut names) = (Vec::new(), Vec::new());
    for ((table, ..), (all, _)) in tables.iter().zip(&in_order) {
        let told = reading.told(table).await;
        let read: Vec<_> = told.rows.iter().map(|(line, _)| line.clone()).collect();
        assert!(told.ended && told.epoch == 1 && read == *all, "{table} {:?}", told.refused);
        stamps.push(told.stamp.clone());
        let key = told.shape.key.iter().map(|&index| told.shape.columns[index].name.clone());
        names.push(key.collect::<Vec<_>>());
    }

    // Behind the first key of each, behind the second, and so on.
    let most = in_order.iter().map(|(all, _)| all.len()).max().unwrap();
    for behind in 1..=most {
        let mut wanted = Vec::new();
        for (((table, ..), (_, keys)), stamp) in tables.iter().zip(&in_order).zip(&stamps) {
            if let Some(key) = keys.get(behind - 1) {
                let from = ReadFrom::After { key: key.clone(), stamp: stamp.clone() };
                wanted.push(reading.wanted(table, 1, from).await);
            }
        }
        reading.tables.clear();
        reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
        for ((table, ..), (all, keys)) in tables.iter().zip(&in_order) {
            if all.len() < behind {
                continue;
            }
            let told = reading.told(table).await;
            let read: Vec<_> = told.rows.iter().map(|(line, _)| line.clone()).collect();
            let key = &keys[behind - 1];
            assert!(told.ended && told.epoch == 1, "{table} behind {key:?}: {:?}", told.refused);
            assert!(read == all[behind..], "{table} behind {key:?}");
        }
    }

    // Two operators would compare these two columns; rows that are equal to ORDER BY may lie in one chunk and the next.
    for table in ["two_schemas", "by_index"] {
        let stamp = String::new();
        let from = ReadFrom::After { key: vec!["A".to_owned()], stamp };
        let wanted = vec![reading.wanted(table, 1, from).await];
        reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
        let told = reading.told(table).await;
        assert!(told.ended && told.rows.len() == 3 && told.shared.is_some(), "{table}");
    }

    // And what is held follows the same order.
    let control = connect::connect(&SourceConfig::parse(&reading.postgres.url()).unwrap()).await.unwrap();
    for (((table, ..), (_, keys)), columns) in tables.iter().zip(&in_order).zip(&names) {
        let oid = reading.oid(table).await;
        let mut questions = Vec::new();
        for key in keys {
            questions.extend(keys.iter().map(|bound| Question { key: key.clone(), bound: bound.clone() }));
        }
        let answers = keys::are_behind(&control, oid, columns, &questions).await.unwrap().unwrap();
        let expected: Vec<_> =
            (0..keys.len()).flat_map(|key| (0..keys.len()).map(move |bound| key > bound)).collect();
        assert!(answers == expected, "{table} {keys:?} {answers:?}");
    }
    // A label that is no more.
    run(&reading.client, "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'").await;
    let felt = tables.iter().position(|(table, ..)| *table == "felt").unwrap();
    let key = vec!["ok".to_owned()];
    let question = Question { key: vec!["sad".to_owned()], bound: key.clone() };
    let oid = reading.oid("felt").await;
    assert_eq!(keys::are_behind(&control, oid, &names[felt], &[question]).await.unwrap(), None);
    let from = ReadFrom::After { key, stamp: stamps[felt].clone() };
    let wanted = vec![reading.wanted("felt", 1, from).await];
    reading.tables.clear();
    reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
    reading.expect_whole("felt").await;
}
