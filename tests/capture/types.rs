//! Values: what an event says is compared with what the server holds, type by type and at the extremes.

use millrace_test_support::{Millrace, PASSWORD, Postgres, PostgresOptions, read_topic};
use serde_json::Value;

use crate::generated;
use crate::stage::{Stage, expect, rows, run};

/// A type, values of it, and how to tell that an event says the same as the server.
pub struct Case {
    pub type_name: &'static str,
    /// SQL: what the server holds in column `v`, as text.
    held: &'static str,
    same: fn(&str, &Value) -> bool,
    /// SQL expressions that are cast to the type.
    pub values: &'static [&'static str],
}

impl Case {
    /// SQL expressions that are cast to the type: the examples, and random ones.
    pub fn all_values(&self) -> Vec<String> {
        let mut values: Vec<String> = self.values.iter().map(|sql| (*sql).to_owned()).collect();
        values.extend(generated::values(self.type_name));
        values
    }

    /// Whether the test makes an array of each value: not of arrays, nor of what cannot be null.
    pub fn has_array(&self) -> bool {
        !self.type_name.ends_with("[]") && self.type_name != "list_price"
    }
}

const fn case(
    type_name: &'static str,
    held: &'static str,
    same: fn(&str, &Value) -> bool,
    values: &'static [&'static str],
) -> Case {
    Case { type_name, held, same, values }
}

/// Types that the domains, enums and composites below need.
pub const MADE_TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy "quoted"');
    CREATE TYPE point3 AS (x int, y text, z numeric);
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN price AS numeric(8,2);
    CREATE DOMAIN list_price AS price NOT NULL DEFAULT 0;
    CREATE EXTENSION hstore;
    CREATE EXTENSION citext;"#;

const TEXT: &str = "v::text";
/// Microseconds since 1970, as far as they fit into 64 bits.
const TIMESTAMP_MICROS: &str = "CASE v::text WHEN 'infinity' THEN '9223372036825200000'
    WHEN '-infinity' THEN '-9223372036832400000'
    ELSE least(trunc(extract(epoch FROM v) * 1000000), 9223372036854775807)::text END";
const TIMESTAMP_MILLIS: &str = "CASE v::text WHEN 'infinity' THEN '9223372036825200'
    WHEN '-infinity' THEN '-9223372036832400' ELSE floor(extract(epoch FROM v) * 1000)::text END";
/// ISO 8601 with a year 0 and signed years, as Java prints it; `FRACTION` stands for the digits.
const TIMESTAMPTZ: &str = "CASE WHEN NOT isfinite(v) THEN v::text ELSE
    (SELECT CASE WHEN y > 9999 THEN '+' || y WHEN y >= 0 THEN lpad(y::text, 4, '0')
                 ELSE '-' || lpad((-y)::text, 4, '0') END
     FROM (SELECT CASE WHEN p < 0 THEN p + 1 ELSE p END AS y
           FROM (SELECT extract(year FROM v AT TIME ZONE 'UTC')::int AS p) a) b)
    || to_char(v AT TIME ZONE 'UTC', '-MM-DD\"T\"HH24:MI:SSFRACTION\"Z\"') END";
/// Microseconds with months of 365.25 / 12 days, as far as they fit into 64 bits.
const INTERVAL: &str = "greatest(least(
    (extract(year FROM v) * 12 + extract(month FROM v)) * 2629800000000 + extract(day FROM v) * 86400000000
    + extract(hour FROM v) * 3600000000 + extract(minute FROM v) * 60000000 + extract(microseconds FROM v),
    9223372036854775807), -9223372036854775808)::bigint::text";
const TIMES: &[&str] =
    &["'00:00:00'", "'23:59:59.999999'", "'24:00:00'", "'12:34:56.789'", "'00:00:00.000001'"];
const TIMESTAMPS: &[&str] = &[
    "'1970-01-01 00:00:00'",
    "'1969-12-31 23:59:59.999999'",
    "'2026-11-22 08:30:00.123456'",
    "'1582-10-04 12:00:00'",
    "'0001-01-01 00:00:00'",
    "'0001-12-31 23:59:59.5 BC'",
    "'4714-11-24 00:00:00 BC'",
    "'9999-12-31 23:59:59.999999'",
    "'294276-12-31 23:59:59.4'",
    "'infinity'",
    "'-infinity'",
];

pub const CASES: &[Case] = &[
    case("boolean", TEXT, boolean, &["true", "false"]),
    case("smallint", TEXT, number, &["-32768", "32767", "0"]),
    case("int", TEXT, number, &["-2147483648", "2147483647"]),
    case("bigint", TEXT, number, &["'-9223372036854775808'", "9223372036854775807"]),
    case("oid", TEXT, number, &["0", "4294967295"]),
    case(
        "real",
        TEXT,
        real,
        &[
            "0",
            "'-0'",
            "1.5",
            "'3.4028235e38'",
            "'1.17549435e-38'",
            "'1e-45'",
            "16777216",
            "'1e10'",
            "0.001",
            "'1e-4'",
            "-1234567.8",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    case(
        "double precision",
        TEXT,
        double,
        &[
            "0",
            "'-0'",
            "0.1",
            "'1.7976931348623157e308'",
            "'5e-324'",
            "'2.2250738585072014e-308'",
            "9007199254740993",
            "'1e7'",
            "9999999.5",
            "0.001",
            "0.00099",
            "-1234567890.0987654",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    case(
        "numeric(12,2)",
        TEXT,
        decimal::<2>,
        &[
            "0",
            "123.45",
            "-123.45",
            "9999999999.99",
            "-9999999999.99",
            "0.01",
            "-0.01",
            "1.28",
            "-1.28",
            "2.55",
            "'NaN'",
        ],
    ),
    case(
        "numeric(38,10)",
        TEXT,
        decimal::<10>,
        &[
            "'9999999999999999999999999999.9999999999'",
            "'-9999999999999999999999999999.9999999999'",
            "0.0000000001",
        ],
    ),
    case(
        "numeric(20)",
        TEXT,
        decimal::<0>,
        &["18446744073709551616", "-99999999999999999999", "-128", "255"],
    ),
    case(
        "numeric",
        "trim_scale(v)::text",
        any_decimal,
        &[
            "0",
            "0.000",
            "1.10",
            "1200",
            "-0.00001",
            "'1e-1000'",
            "'1e1000'",
            "repeat('9', 10000) || '.' || repeat('7', 2000)",
            "'-' || repeat('1234567890', 100)",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    case(
        "money",
        "v::numeric::text",
        decimal::<2>,
        &["'0'", "'1.00'", "'-0.01'", "'-1234567.89'", "'92233720368547758.07'", "'-92233720368547758.08'"],
    ),
    case(
        "text",
        TEXT,
        string,
        &[
            "''",
            "'NULL'",
            "'null'",
            "'plain'",
            r#"'"quotes" and \back\slashes'"#,
            "E'line\\nfeed\\ttab\\rreturn\\x01\\x1f\\x7f'",
            "'Grüße, 世界 😀 \u{2028}'",
            r"'\x41'",
            "'{\"a\":1}'",
            "repeat('long ', 200000)",
        ],
    ),
    case("varchar(10)", TEXT, string, &["'0123456789'", "'ä'"]),
    case("char(8)", "rpad(v::text, 8)", string, &["'ab'", "''", "'12345678'"]),
    case("name", TEXT, string, &["'pg_class'"]),
    case("\"char\"", TEXT, string, &["'a'"]),
    case(
        "bytea",
        "translate(encode(v, 'base64'), E'\\n', '')",
        string,
        &[r"'\x'", r"'\x00'", r"'\x00ff10'", r"'\x5c78'", "decode(repeat('00ff1a', 100000), 'hex')"],
    ),
    case(
        "date",
        "CASE v::text WHEN 'infinity' THEN '-2147472692' WHEN '-infinity' THEN '-2147472691'
        ELSE (v - date '1970-01-01')::text END",
        number,
        &[
            "'1970-01-01'",
            "'2000-02-29'",
            "'1582-10-15'",
            "'0001-01-01'",
            "'0001-12-31 BC'",
            "'4714-11-24 BC'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    case("time", "(extract(epoch FROM v) * 1000000)::bigint::text", number, TIMES),
    case("time(4)", "(extract(epoch FROM v) * 1000000)::bigint::text", number, TIMES),
    case("time(3)", "(extract(epoch FROM v) * 1000)::bigint::text", number, TIMES),
    case("time(0)", "(extract(epoch FROM v) * 1000)::bigint::text", number, TIMES),
    case(
        "timetz",
        "CASE v::text WHEN '24:00:00+00' THEN '24:00:00Z'
        ELSE replace((v AT TIME ZONE 'UTC')::text, '+00', 'Z') END",
        string,
        &[
            "'00:00:00+00'",
            "'24:00:00+00'",
            "'12:00:00.123456-08:30'",
            "'23:59:59+15:59'",
            "'24:00:00-15:59'",
            "'24:00:00+01'",
            "'11:51:30.1+00'",
            "'00:00:00+15:59:59'",
        ],
    ),
    case("timestamp", TIMESTAMP_MICROS, number, TIMESTAMPS),
    case("timestamp(5)", TIMESTAMP_MICROS, number, TIMESTAMPS),
    case("timestamp(3)", TIMESTAMP_MILLIS, number, TIMESTAMPS),
    case("timestamp(0)", TIMESTAMP_MILLIS, number, TIMESTAMPS),
    case("timestamptz", TIMESTAMPTZ, string, TIMESTAMPS),
    case("timestamptz(3)", TIMESTAMPTZ, string, TIMESTAMPS),
    case("timestamptz(0)", TIMESTAMPTZ, string, TIMESTAMPS),
    case(
        "interval",
        INTERVAL,
        number,
        &[
            "'0'",
            "'1 year 2 months 3 days 04:05:06.789'",
            "'-00:00:00.000001'",
            "'-1 year -2 mons +3 days -04:05:06'",
            "'1 mon -1 day'",
            "'2147483647 days'",
            "'-2147483648 days'",
            "'2147483647:59:59.999999'",
            "'178000000 years'",
            "'-178000000 years'",
        ],
    ),
    case(
        "uuid",
        TEXT,
        string,
        &["'00000000-0000-0000-0000-000000000000'", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"],
    ),
    case("json", TEXT, string, &[r#"'{"a" :  1, "a":[2, null], "ü":"\u00e9"}'"#, "'null'", "'\"s\"'"]),
    case("jsonb", TEXT, string, &[r#"'{"b":1,"a":[1e400, "\\\"\n"]}'"#, "'null'", "'[]'"]),
    case("xml", TEXT, string, &["'<a b=\"c\">d</a>'"]),
    case("mood", TEXT, string, &["'sad'", "'happy \"quoted\"'"]),
    case("inet", "format('%s', v)", string, &["'10.0.0.1/8'", "'::1'"]),
    case("cidr", "text(v)", string, &["'10.0.0.0/8'", "'::/0'"]),
    case("macaddr", TEXT, string, &["'08:00:2b:01:02:03'"]),
    case("bit(1)", "(v = B'1')::text", boolean, &["B'1'", "B'0'"]),
    case(
        "bit(12)",
        TEXT,
        bits,
        &["B'000000000000'", "B'100000000001'", "B'111111111111'", "B'000011110000'"],
    ),
    case("varbit", TEXT, bits, &["B''", "B'0'", "B'1'", "B'1000000000'", "repeat('10', 900)"]),
    case("positive", TEXT, number, &["1", "2147483647"]),
    case("price", TEXT, decimal::<2>, &["123456.78", "-0.5"]),
    case("list_price", TEXT, decimal::<2>, &["0.07"]),
    case(
        "point3",
        r#"'{"x": 1, "y": "a,\"b", "z": {"scale": 1, "value": "Dw=="}}'"#,
        json,
        &["row(1, 'a,\"b', 1.50)"],
    ),
    case("hstore", "hstore_to_json(v)::text", json_string, &["'a=>1, \"b c\"=>NULL'", "''"]),
    case("citext", TEXT, string, &["'MiXed'"]),
    case(
        "point",
        r#"'{"x": 1.5, "y": -2.0, "wkb": "AQEAAAAAAAAAAAD4PwAAAAAAAADA", "srid": null}'"#,
        json,
        &["'(1.5,-2)'"],
    ),
    case("lseg", TEXT, string, &["'[(1.5,-2),(3,4)]'"]),
    case("box", TEXT, string, &["'(3,4),(1.5,-2)'"]),
    case("int4range", TEXT, string, &["'[1,10)'", "'empty'"]),
    case("int4multirange", TEXT, string, &["'{[1,3), [5,7)}'"]),
    case("tsvector", TEXT, string, &["'a:1 fat:2 cat:3'"]),
    case("nummultirange", TEXT, string, &["'{[1.5,3)}'"]),
    case("int8multirange", TEXT, string, &["'{}'"]),
    case("tsmultirange", TEXT, string, &["'{[2026-01-01,2026-01-02)}'"]),
    case("tstzmultirange", TEXT, string, &["'{[2026-01-01,infinity)}'"]),
    case("datemultirange", TEXT, string, &["'{[2026-01-01,2026-01-02)}'"]),
    case("numrange", TEXT, string, &["'(,5]'"]),
    case("tsquery", TEXT, string, &["'fat & (rat | cat)'"]),
    case("jsonpath", TEXT, string, &["'$.a[*] ? (@ > 1)'"]),
    case("pg_lsn", TEXT, string, &["'16/B374D848'"]),
    case(
        "int[]",
        "to_json(v)::text",
        json,
        &["'{}'", "'{1,NULL,-2147483648}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'"],
    ),
    case("bigint[]", "to_json(v)::text", json, &["'{9223372036854775807,-9223372036854775808}'"]),
    case("boolean[]", "to_json(v)::text", json, &["'{t,f,NULL}'"]),
    case(
        "text[]",
        "to_json(v)::text",
        json,
        &[r#"ARRAY['a', 'b c', NULL, 'NULL', '', E'"\\\\ \n{},', 'ü']"#, "'{{a,b},{c,d}}'"],
    ),
    case("uuid[]", "to_json(v)::text", json, &["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    case("jsonb[]", "to_json(v::text[])::text", json, &[r#"ARRAY['{"a": 1}', 'null']::jsonb[]"#]),
    case("numeric(6,2)[]", "array_to_string(v, ' ', 'null')", decimals, &["'{1.5,NULL,-9999.99,0}'"]),
    case(
        "date[]",
        "array_to_json(ARRAY(SELECT d - date '1970-01-01' FROM unnest(v) d))::text",
        json,
        &["'{1970-01-02,0001-01-01 BC}'"],
    ),
    case(
        "bytea[]",
        "array_to_json(ARRAY(SELECT encode(b, 'base64') FROM unnest(v) b))::text",
        json,
        &[r"ARRAY['\x00ff', '\x']::bytea[]"],
    ),
    case("mood[]", "to_json(v)::text", json, &["'{sad,\"so so\",NULL}'"]),
    case("positive[]", "to_json(v)::text", json, &["'{1,2}'", "'{{1,2},{3,4}}'"]),
    case("citext[]", "to_json(v)::text", json, &["'{MiXed,\"a,b\"}'"]),
];

fn number(held: &str, value: &Value) -> bool {
    value.as_number().is_some_and(|number| number.to_string() == held)
}

fn string(held: &str, value: &Value) -> bool {
    value.as_str() == Some(held)
}

fn boolean(held: &str, value: &Value) -> bool {
    value.as_bool().is_some_and(|value| value.to_string() == held)
}

fn json(held: &str, value: &Value) -> bool {
    serde_json::from_str::<Value>(held).unwrap() == *value
}

/// A string that holds JSON.
fn json_string(held: &str, value: &Value) -> bool {
    value.as_str().is_some_and(|value| json(held, &serde_json::from_str(value).unwrap()))
}

const SPECIAL: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

fn real(held: &str, value: &Value) -> bool {
    let same = |value: f64| (value as f32).to_bits() == held.parse::<f32>().unwrap().to_bits();
    if SPECIAL.contains(&held) {
        string(held, value)
    } else {
        value.is_f64() && value.as_f64().is_some_and(same)
    }
}

/// Up to the last bit, which the JSON parser of this test may get wrong.
fn double(held: &str, value: &Value) -> bool {
    let same = |value: f64| value.to_bits().abs_diff(held.parse::<f64>().unwrap().to_bits()) <= 1;
    if SPECIAL.contains(&held) {
        string(held, value)
    } else {
        value.is_f64() && value.as_f64().is_some_and(same)
    }
}

fn decimal<const SCALE: usize>(held: &str, value: &Value) -> bool {
    if SPECIAL.contains(&held) {
        return string(held, value);
    }
    value.as_str().is_some_and(|value| decimal_text(value, SCALE as i64) == held)
}

fn any_decimal(held: &str, value: &Value) -> bool {
    if SPECIAL.contains(&held) {
        return string(held, value);
    }
    let (Some(scale), Some(unscaled)) = (value["scale"].as_i64(), value["value"].as_str()) else {
        return false;
    };
    decimal_text(unscaled, scale) == held
}

fn decimals(held: &str, value: &Value) -> bool {
    let held: Vec<&str> = held.split(' ').collect();
    let values = value.as_array().unwrap();
    let same = |(held, value): (&&str, &Value)| match *held {
        "null" => value.is_null(),
        held => decimal::<2>(held, value),
    };
    held.len() == values.len() && held.iter().zip(values).all(same)
}

/// Little-endian bytes, without zero bytes at the end.
fn bits(held: &str, value: &Value) -> bool {
    let mut expected: Vec<u8> = held
        .as_bytes()
        .rchunks(8)
        .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0')))
        .collect();
    while expected.last() == Some(&0) {
        expected.pop();
    }
    value.as_str().is_some_and(|value| base64(value) == expected)
}

pub fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0, |bits, letter| {
            bits << 6 | ALPHABET.iter().position(|known| known == letter).unwrap() as u32
        });
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}

/// The decimal number that an unscaled big-endian two's complement integer and its scale stand for.
pub fn decimal_text(unscaled: &str, scale: i64) -> String {
    let mut bytes = base64(unscaled);
    let negative = bytes[0] >= 0x80;
    if negative {
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    // Nine decimal digits at a time.
    let mut limbs: Vec<u32> = bytes
        .rchunks(4)
        .rev()
        .map(|limb| limb.iter().fold(0, |limb, byte| limb << 8 | u32::from(*byte)))
        .collect();
    let mut groups = Vec::new();
    while !limbs.is_empty() {
        let mut rest = 0_u64;
        for limb in &mut limbs {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / 1_000_000_000) as u32;
            rest = value % 1_000_000_000;
        }
        groups.push(format!("{rest:09}"));
        let zeros = limbs.iter().take_while(|limb| **limb == 0).count();
        limbs.drain(..zeros);
    }
    groups.reverse();
    let mut digits = groups.concat().trim_start_matches('0').to_owned();
    if scale < 0 && !digits.is_empty() {
        digits.push_str(&"0".repeat(-scale as usize));
    }
    let scale = scale.max(0) as usize;
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let point = if scale > 0 { "." } else { "" };
    format!("{}{whole}{point}{fraction}", if negative { "-" } else { "" })
}

/// Whether an event has the array of a value and null as such.
fn is_array_of(array: &Value, value: &Value) -> bool {
    array
        .as_array()
        .is_some_and(|elements| elements.len() == 2 && elements[0] == *value && elements[1].is_null())
}

/// Also where database and session print things in other ways: the replication connection asks for its own.
#[tokio::test(flavor = "multi_thread")]
async fn every_value_in_the_topic_is_what_the_server_holds() {
    let mut setup = MADE_TYPES.to_owned();
    for (number, case) in CASES.iter().enumerate() {
        setup.push_str(&format!(
            "CREATE TABLE type_{number} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v {0}, a {0}[]);
             ALTER TABLE type_{number} REPLICA IDENTITY FULL;",
            case.type_name
        ));
    }
    for setting in [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        "timezone = 'America/New_York'",
        "client_encoding = 'LATIN1'",
        "xmloption = 'content'",
    ] {
        setup.push_str(&format!("ALTER DATABASE postgres SET {setting};"));
    }
    let stage = Stage::start(PostgresOptions::default(), &setup, &[]).await;
    let client = &stage.client;
    run(client, "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'").await;
    for (number, case) in CASES.iter().enumerate() {
        for value in case.all_values() {
            let array = if case.has_array() { "ARRAY[x, NULL]" } else { "NULL" };
            let insert = format!(
                "INSERT INTO type_{number} (v, a) SELECT x, {array} FROM (SELECT ({value})::{} AS x) s",
                case.type_name
            );
            run(client, &insert).await;
        }
        if case.type_name != "list_price" {
            run(client, &format!("INSERT INTO type_{number} (v) VALUES (NULL)")).await;
        }
    }
    let mut held: Vec<Vec<Option<String>>> = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let fraction = match case.type_name {
            "timestamptz(0)" => "",
            "timestamptz(3)" => ".MS",
            _ => ".US",
        };
        let shown = case.held.replace("FRACTION", fraction);
        let query =
            format!("SELECT CASE WHEN v IS NOT NULL THEN ({shown})::text END FROM type_{number} ORDER BY id");
        let rows = client.query(&query, &[]).await;
        let rows = rows.unwrap_or_else(|error| panic!("{}: {error:?}", case.type_name));
        held.push(rows.iter().map(|row| row.get(0)).collect());
        run(client, &format!("DELETE FROM type_{number}")).await;
    }

    let records = stage.records().await;
    let mut wrong = Vec::new();
    for (number, (case, held)) in CASES.iter().zip(&held).enumerate() {
        let table = format!("type_{number}");
        let of_table: Vec<&Value> = records
            .iter()
            .filter_map(|record| record.value.as_ref())
            .filter(|event| event["source"]["table"] == *table)
            .collect();
        let (inserted, deleted) = of_table.split_at(held.len());
        assert_eq!(deleted.len(), held.len(), "{}", case.type_name);
        for ((held, inserted), deleted) in held.iter().zip(inserted).zip(deleted) {
            let value = &inserted["after"]["v"];
            let same = match held {
                Some(held) => (case.same)(held, value),
                None => value.is_null() && inserted["after"].get("v").is_some(),
            };
            let short = |text: String| text.chars().take(120).collect::<String>();
            if !same {
                let held = held.clone().unwrap_or("NULL".into());
                wrong.push(format!("{}: {} is {}", case.type_name, short(held), short(value.to_string())));
            }
            let array = &inserted["after"]["a"];
            if case.has_array() && held.is_some() && !is_array_of(array, value) {
                wrong.push(format!(
                    "{}[]: {} has {}",
                    case.type_name,
                    short(array.to_string()),
                    short(value.to_string())
                ));
            }
            assert_eq!(deleted["before"], inserted["after"], "{}: the old row", case.type_name);
        }
    }
    assert!(wrong.is_empty(), "{} values differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(rows(&records, "type_0").len(), 6);
}

/// The server converts what it sends, whatever its database is encoded in.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_is_read_as_utf8() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    run(&postgres.client().await, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .await;
    let url = postgres.url_for("postgres", PASSWORD, "latin");
    let client = postgres.client_for(&url).await;
    run(&client, "CREATE TABLE \"Straße\" (\"größe\" text PRIMARY KEY)").await;
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &url, &[]).await;
    run(&client, "INSERT INTO \"Straße\" VALUES ('äöü ÿ')").await;
    let row = client.query_one("SELECT pg_logical_emit_message(true, 'ü', '')::text", &[]).await.unwrap();
    millrace.wait_durable(row.get(0)).await;
    let records = read_topic(&millrace.bootstrap(), "latin").await;
    expect(&records, &[r#"Straße {"größe":"äöü ÿ"} c null {"größe":"äöü ÿ"}"#]);
    let events = read_topic(&millrace.bootstrap(), "latin.events").await;
    assert_eq!(events[0].value.as_ref().unwrap()["message"]["prefix"], "ü");
}

/// Infinite intervals exist from PostgreSQL 17 on, a numeric's negative scale and the longest interval from 15 on,
/// generated columns are sent from 18 on.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_only_newer_servers_know_are_captured() {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    let (numeric, longest) = match postgres.major() {
        ..15 => ("numeric(12,2)", "1 day"),
        15.. => ("numeric(3,-2)", "2562047788:00:54.775807"),
    };
    run(
        &client,
        &format!(
            "CREATE TABLE newer (id int PRIMARY KEY, n {numeric}, i interval,
                                 g int GENERATED ALWAYS AS (id * 2) STORED)"
        ),
    )
    .await;
    let stage = Stage::over(postgres, client, "{}").await;
    stage.run(&format!("INSERT INTO newer VALUES (1, -12345, '{longest}')")).await;
    if stage.postgres.major() >= 17 {
        stage.run("INSERT INTO newer VALUES (2, NULL, 'infinity'), (3, NULL, '-infinity')").await;
    }
    let records = stage.records().await;
    let newer = rows(&records, "newer");
    if stage.postgres.major() >= 15 {
        assert_eq!(decimal_text(newer[0]["n"].as_str().unwrap(), -2), "-12300");
        assert_eq!(newer[0]["i"].as_i64(), Some(i64::MAX));
    }
    // Before 18 a server does not send generated columns.
    assert_eq!(newer[0].get("g").and_then(Value::as_i64), (stage.postgres.major() >= 18).then_some(2));
    if stage.postgres.major() >= 17 {
        assert_eq!((newer[1]["i"].as_i64(), newer[2]["i"].as_i64()), (Some(i64::MAX), Some(i64::MIN)));
    }
}
