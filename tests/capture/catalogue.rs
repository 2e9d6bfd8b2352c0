//! The catalogue of types: every type that a column can have is delivered in both formats, and the server agrees.
//!
//! Whatever a server's `pg_type` lists, and whatever the extensions bring that are installed, gets a column and values.
//! What was delivered is made into SQL again, and the server compares it with what it holds. A type that this file has
//! no values for fails the test.

use std::collections::{BTreeMap, HashMap};

use millrace::proto::{self, value::Kind};
use millrace_test_support::{Postgres, PostgresOptions, read_raw_topic};
use prost::Message;
use serde_json::Value;
use tokio_postgres::Client;

use crate::stage::{Stage, TASK, run};
use crate::types::{base64, decimal_text};

/// Extensions that bring types, as far as the server has them.
const EXTENSIONS: [&str; 12] = [
    "hstore",
    "citext",
    "ltree",
    "isn",
    "cube",
    "seg",
    "lo",
    "intarray",
    "pg_trgm",
    "btree_gist",
    "postgis",
    "vector",
];

/// Types of users: of each kind, in and over one another, and with odd names.
const USERS_TYPES: &str = r#"
    CREATE SCHEMA "odd schema";
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy "quoted"', '{,}', 'NULL', '');
    CREATE TYPE "odd schema"."enum ""of"" 'odd' (name), []{}" AS ENUM ('x');
    CREATE DOMAIN price AS numeric(8,2);
    CREATE DOMAIN list_price AS price CHECK (value > 0);
    CREATE DOMAIN moods AS mood[];
    CREATE TYPE nothing AS ();
    CREATE TYPE point3 AS (x int, "y ""quoted"" 'odd' \ (name), {}" text, z numeric);
    CREATE TYPE nested AS (p point3, ps point3[], mood mood, prices list_price[], moods moods, b bytea, t timestamptz);
    CREATE TYPE twice AS (first nested, second nested[]);
    CREATE DOMAIN place AS point3;
    CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
    CREATE TABLE parent (id int PRIMARY KEY, gone int, mood mood, tags text[]);
    ALTER TABLE parent DROP gone;
    CREATE TABLE sampled (a int DEFAULT 7, b int);
    INSERT INTO sampled SELECT n / 10, n / 20 FROM generate_series(1, 200) n;
    CREATE STATISTICS sample (ndistinct, dependencies, mcv) ON a, b FROM sampled;
    ANALYZE sampled;"#;

/// SQL of values, by the name of a type. The forms that lose something in Debezium's JSON (a numeric's scale, bounds,
/// leading zeros of bits, an interval's months) are for other tests.
const VALUES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("bytea", &[r"'\x00ff5c'", r"'\x'"]),
    ("char", &["'a'", r"'\\'", "''"]),
    ("name", &["'pg_class'", r#"'"'"#]),
    ("int8", &["'-9223372036854775808'", "9223372036854775807"]),
    ("int2", &["-32768", "32767"]),
    ("int2vector", &["'1 -2 3'", "''"]),
    ("int4", &["'-2147483648'", "2147483647"]),
    ("regproc", &["'now'", "0"]),
    (
        "text",
        &[r#"E'\\ "quoted" {(,)} \n\t\x01 ü 世界 😀'"#, "''", "'NULL'", "'__debezium_unavailable_value'"],
    ),
    ("oid", &["4294967295", "0"]),
    ("tid", &["'(4294967295,65535)'"]),
    ("xid", &["'4294967295'"]),
    ("cid", &["'4294967295'"]),
    ("oidvector", &["'1 4294967295'", "''"]),
    ("json", &[r#"'{"a" :  1, "a":[2, null], "ü":"\u00e9\ud83d\ude00"}'"#, "'null'"]),
    ("xml", &["'<a b=\"c\">d&amp;</a>'", "'text only'"]),
    ("pg_node_tree", &["(SELECT adbin FROM pg_attrdef WHERE adrelid = 'sampled'::regclass)"]),
    ("pg_ndistinct", &["(SELECT stxdndistinct FROM pg_statistic_ext_data LIMIT 1)"]),
    ("pg_dependencies", &["(SELECT stxddependencies FROM pg_statistic_ext_data LIMIT 1)"]),
    ("pg_mcv_list", &["(SELECT stxdmcv FROM pg_statistic_ext_data LIMIT 1)"]),
    ("pg_brin_bloom_summary", &["NULL"]),
    ("pg_brin_minmax_multi_summary", &["NULL"]),
    ("gtsvector", &["NULL"]),
    ("xid8", &["'18446744073709551615'"]),
    ("point", &["'(1.5,-2)'", "'(Infinity,NaN)'", "'(1e-300,1e300)'"]),
    ("lseg", &["'[(1.5,-2),(3,4)]'"]),
    ("path", &["'[(1.5,-2),(3,4)]'", "'((1,2),(3,4))'"]),
    ("box", &["'(3,4),(1.5,-2)'", "'(0,0),(0,0)'"]),
    ("polygon", &["'((1,2),(3,4),(5,6))'"]),
    ("line", &["'{1,-2,3.5}'"]),
    ("circle", &["'<(1,2),3.5>'"]),
    ("float4", &["1.5", "'NaN'", "'-Infinity'", "'1e-45'", "'3.4028235e38'"]),
    ("float8", &["0.1", "'NaN'", "'Infinity'", "'5e-324'", "'-0'"]),
    ("money", &["'-92233720368547758.08'", "'12.34'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("inet", &["'10.0.0.1/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'", "'::/0'"]),
    ("aclitem", &["'postgres=r*w/postgres'", "'=X/postgres'"]),
    ("bpchar", &["'ab  '", "''"]),
    ("varchar", &["'ab  '", "''"]),
    (
        "date",
        &["'2026-11-22'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'", "'12026-01-01'"],
    ),
    ("time", &["'24:00:00'", "'23:59:59.999999'"]),
    (
        "timestamp",
        &["'2026-11-22 08:30:00.123456'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12026-01-01'"],
    ),
    ("timestamptz", &["'2026-11-22 08:30:00.123456Z'", "'infinity'", "'-infinity'"]),
    ("interval", &["'04:05:06.789'", "'-00:00:00.000001'"]),
    ("timetz", &["'24:00:00Z'", "'08:30:00.123456Z'"]),
    ("bit", &["B'1010101010'", "B'1'"]),
    ("varbit", &["B'1010101010'", "B''"]),
    ("numeric", &["1.5", "'NaN'", "repeat('9', 1000)", "'1e-1000'", "'Infinity'"]),
    ("refcursor", &["'a cursor'"]),
    ("regprocedure", &["'abs(integer)'", "0"]),
    ("regoper", &["'||/'", "0"]),
    ("regoperator", &["'+(integer,integer)'", "0"]),
    ("regclass", &["'pg_class'", "0"]),
    ("regcollation", &["'\"C\"'", "0"]),
    ("regtype", &["'integer[]'", "0"]),
    ("regrole", &["'postgres'", "0"]),
    ("regnamespace", &["'\"odd schema\"'", "0"]),
    ("regdatabase", &["'postgres'", "0"]),
    ("regconfig", &["'english'"]),
    ("regdictionary", &["'simple'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("pg_lsn", &["'FFFFFFFF/FFFFFFFF'"]),
    ("tsvector", &["'a:1A fat:2 ''odd '''' \\\\ name'':3'", "''"]),
    ("tsquery", &["'fat & (rat | !cat:*)'"]),
    ("jsonb", &[r#"'{"b": 1e400, "a": "\"\n"}'"#, "'null'"]),
    ("jsonpath", &["'$.\"a\"[*] ? (@ > 1)'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("int4range", &["'[1,10)'", "'empty'", "'(,)'"]),
    ("int8range", &["'[1,10)'", "'empty'"]),
    ("numrange", &["'[1.50,NaN]'"]),
    ("tsrange", &["'[2026-01-01,infinity]'"]),
    ("tstzrange", &["'[2026-01-01Z,infinity)'"]),
    ("daterange", &["'[2026-01-01,)'"]),
    ("textrange", &[r#"textrange('"a,', '[(b\)]')"#]),
    ("int4multirange", &["'{[1,10),[20,30)}'", "'{}'"]),
    ("int8multirange", &["'{[1,10)}'"]),
    ("nummultirange", &["'{[1.50,NaN]}'"]),
    ("tsmultirange", &["'{[2026-01-01,infinity]}'"]),
    ("tstzmultirange", &["'{[2026-01-01Z,infinity)}'"]),
    ("datemultirange", &["'{[2026-01-01,)}'"]),
    ("textmultirange", &["'{[a,b],[c,\"d e\"]}'"]),
    // The information schema's domains.
    ("cardinal_number", &["0", "2147483647"]),
    ("yes_or_no", &["'YES'"]),
    // Domains of the test.
    ("price", &["123456.78"]),
    ("list_price", &["0.07"]),
    // Extensions.
    ("hstore", &[r#"'a=>1, "b c"=>NULL, "\"q\\"=>"\\,=>"'"#, "''"]),
    ("ghstore", &["NULL"]),
    ("citext", &["'MiXed'"]),
    ("ltree", &["'Top.Science.Astronomy'", "''"]),
    ("lquery", &["'*.Science{1,2}.!a|b'"]),
    ("ltxtquery", &["'Europe & Russia*@ & !Transportation'"]),
    ("ltree_gist", &["NULL"]),
    ("ean13", &["'978-0-393-04002-9'"]),
    ("isbn13", &["'978-0-393-04002-9'"]),
    ("ismn13", &["ismn13('M-2306-7133-0'::ismn)"]),
    ("issn13", &["issn13('1436-4522'::issn)"]),
    ("isbn", &["'0-393-04002-X'"]),
    ("ismn", &["'M-2306-7133-0'"]),
    ("issn", &["'1436-4522'"]),
    ("upc", &["'012345678905'"]),
    ("cube", &["'(1,2),(3,4)'", "'(0)'"]),
    ("seg", &["'1.5 .. 2'", "'~6.5'"]),
    ("query_int", &["'1&(2|!3)'"]),
    ("intbig_gkey", &["NULL"]),
    ("gtrgm", &["NULL"]),
    ("gbtreekey2", &["NULL"]),
    ("gbtreekey4", &["NULL"]),
    ("gbtreekey8", &["NULL"]),
    ("gbtreekey16", &["NULL"]),
    ("gbtreekey32", &["NULL"]),
    ("gbtreekey_var", &["NULL"]),
    ("geometry", &["'POINT(1 2)'", "'SRID=4326;POLYGON Z((0 0 1,0 1 1,1 1 1,0 0 1))'", "'POINT EMPTY'"]),
    ("geography", &["'SRID=4326;LINESTRING(1 2,3 4)'"]),
    ("box2d", &["'BOX(1 2,3 4)'"]),
    ("box3d", &["'BOX3D(1 2 3,4 5 6)'"]),
    ("spheroid", &["'SPHEROID[\"WGS 84\",6378137,298.257223563]'"]),
    ("box2df", &["NULL"]),
    ("gidx", &["NULL"]),
    ("vector", &["'[1,2.5,-3e-10]'"]),
    ("halfvec", &["'[1,2.5]'"]),
    ("sparsevec", &["'{1:1.5,3:2}/5'", "'{}/3'"]),
];

/// Types whose text the server prints, but does not read.
const WITHOUT_INPUT: [&str; 4] = ["pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"];

/// A row of `pg_type`, with what it refers to.
struct Type {
    oid: u32,
    /// Its name alone.
    name: String,
    /// Its name with its schema's, quoted.
    qualified: String,
    kind: u8,
    base: u32,
    element: Option<u32>,
    attributes: Vec<(String, u32)>,
    labels: Vec<String>,
}

pub struct Catalogue(HashMap<u32, Type>);

impl Catalogue {
    pub async fn read(client: &Client) -> Catalogue {
        let rows = client
            .query(
                "SELECT t.oid, t.typname::text, format('%I.%I', n.nspname, t.typname), t.typtype, t.typbasetype, e.oid,
                        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = t.typrelid
                              AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
                        ARRAY(SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid
                              AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
                        ARRAY(SELECT l.enumlabel::text FROM pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder)
                 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
                      LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
                 WHERE t.typtype <> 'p' AND t.typisdefined",
                &[],
            )
            .await
            .unwrap();
        let read = |row: &tokio_postgres::Row| {
            let oid = row.get(0);
            let attributes =
                row.get::<_, Vec<String>>(6).into_iter().zip(row.get::<_, Vec<u32>>(7)).collect();
            let described = Type {
                oid,
                name: row.get(1),
                qualified: row.get(2),
                kind: row.get::<_, i8>(3) as u8,
                base: row.get(4),
                element: row.get(5),
                attributes,
                labels: row.get(8),
            };
            (oid, described)
        };
        Catalogue(rows.iter().map(read).collect())
    }

    fn get(&self, oid: u32) -> &Type {
        self.0.get(&oid).unwrap_or_else(|| panic!("no type {oid}"))
    }

    /// Below all domains.
    fn base(&self, oid: u32) -> &Type {
        let mut found = self.get(oid);
        while found.kind == b'd' {
            found = self.get(found.base);
        }
        found
    }

    /// SQL of values of a type; the name of the type that none are known of.
    fn values(&self, oid: u32) -> Result<Vec<String>, String> {
        let of = self.get(oid);
        let cast = |sql: &str| format!("({sql})::{}", of.qualified);
        if let Some((_, values)) = VALUES.iter().find(|(name, _)| *name == of.name) {
            return Ok(values.iter().map(|sql| cast(sql)).collect());
        }
        match (of.kind, of.element) {
            (b'd', _) => Ok(self.values(of.base)?.iter().map(|sql| cast(sql)).collect()),
            (b'e', _) => Ok(of.labels.iter().map(|label| cast(&quoted(label))).collect()),
            (b'c', _) => {
                let parts = of.attributes.iter().map(|(_, oid)| self.part(*oid));
                let parts = parts.collect::<Result<Vec<_>, _>>()?.join(", ");
                let nulls = vec!["NULL"; of.attributes.len()].join(", ");
                Ok(vec![cast(&format!("ROW({parts})")), cast(&format!("ROW({nulls})"))])
            }
            (_, Some(element)) => {
                let (one, other) = (self.part(element)?, self.last_part(element)?);
                Ok(vec![
                    cast(&format!("ARRAY[{one}, NULL, {other}]")),
                    cast(&format!("ARRAY[[{one}, NULL], [{other}, {one}]]")),
                    cast(&format!("'[-1:0]=' || (ARRAY[{one}, {other}]::{})::text", of.qualified)),
                    // The last one, which may become a part of another, has no bounds.
                    cast("'{}'"),
                ])
            }
            _ => Err(of.qualified.clone()),
        }
    }

    /// SQL of a value in an array or a composite.
    fn part(&self, oid: u32) -> Result<String, String> {
        self.values(oid).map(|values| self.readable(oid, values.first()))
    }

    fn last_part(&self, oid: u32) -> Result<String, String> {
        self.values(oid).map(|values| self.readable(oid, values.last()))
    }

    /// The value, or a null where its text could not be read back.
    fn readable(&self, oid: u32, value: Option<&String>) -> String {
        let of = self.base(oid);
        let value = value.filter(|_| !WITHOUT_INPUT.contains(&of.name.as_str()));
        value.cloned().unwrap_or_else(|| format!("NULL::{}", self.get(oid).qualified))
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The days and the rest apart: PostgreSQL multiplies intervals in floating point.
fn since_1970(micros: i64, kind: &str) -> String {
    let (days, micros) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    format!("({kind} '1970-01-01 00:00:00Z' + {days} * interval '1 day' + {micros} * interval '1 us')")
}

fn since_midnight(micros: i64) -> String {
    match micros {
        86_400_000_000 => "'24:00:00'".to_owned(),
        _ => format!("(time '00:00' + {micros} * interval '1 us')"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SQL of what was delivered as Debezium's JSON.
fn from_json(catalogue: &Catalogue, oid: u32, value: &Value) -> String {
    let of = catalogue.base(oid);
    let cast = |sql: String| format!("({sql})::{}", catalogue.get(oid).qualified);
    let string =
        || value.as_str().unwrap_or_else(|| panic!("{}: {value} is no string", of.qualified)).to_owned();
    let integer = || value.as_i64().unwrap_or_else(|| panic!("{}: {value} is no integer", of.qualified));
    let decimal = |value: &str, scale: i64| match value {
        "NaN" | "Infinity" | "-Infinity" => quoted(value),
        _ => decimal_text(value, scale),
    };
    if value.is_null() {
        return cast("NULL".to_owned());
    }
    if let Some(element) = of.element {
        return cast(array_of_json(catalogue, element, value, &of.qualified));
    }
    if of.kind == b'c' {
        let object = value.as_object().unwrap_or_else(|| panic!("{}: {value} is no object", of.qualified));
        let names: Vec<&String> = of.attributes.iter().map(|(name, _)| name).collect();
        assert_eq!(object.len(), names.len(), "{value}");
        let parts = of.attributes.iter().map(|(name, oid)| from_json(catalogue, *oid, &object[name]));
        return cast(format!("ROW({})", parts.collect::<Vec<_>>().join(", ")));
    }
    cast(match of.name.as_str() {
        "bool" => value.as_bool().unwrap().to_string(),
        "int2" | "int4" | "int8" | "oid" => quoted(&integer().to_string()),
        "float4" | "float8" => quoted(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        "numeric" => match value.as_object() {
            Some(parts) => decimal(parts["value"].as_str().unwrap(), parts["scale"].as_i64().unwrap()),
            // A domain here has two decimals.
            None => decimal(&string(), 2),
        },
        "money" => format!("({})::numeric", decimal(&string(), 2)),
        "bytea" => format!("'\\x{}'", hex(&base64(&string()))),
        "date" => match integer() {
            -2_147_472_692 => "'infinity'".to_owned(),
            -2_147_472_691 => "'-infinity'".to_owned(),
            days => format!("date '1970-01-01' + ({days})"),
        },
        "time" => since_midnight(integer()),
        "timestamp" => match integer() {
            9_223_372_036_825_200_000 => "'infinity'".to_owned(),
            -9_223_372_036_832_400_000 => "'-infinity'".to_owned(),
            micros => since_1970(micros, "timestamp"),
        },
        "interval" => format!("{} * interval '1 us'", integer()),
        "bit" | "varbit" => {
            let bits: String = base64(&string()).iter().rev().map(|byte| format!("{byte:08b}")).collect();
            format!("B'{}'", bits.trim_start_matches('0'))
        }
        "point" => {
            let coordinate = |name: &str| value[name].as_str().map_or(value[name].to_string(), str::to_owned);
            format!("'({},{})'", coordinate("x"), coordinate("y"))
        }
        "hstore" => {
            let pairs: BTreeMap<String, Option<String>> = serde_json::from_str(&string()).unwrap();
            let value = |text: &Option<String>| text.as_deref().map_or("NULL".to_owned(), quoted);
            let keys: Vec<_> = pairs.keys().map(|key| quoted(key)).collect();
            let values: Vec<_> = pairs.values().map(value).collect();
            format!("hstore(ARRAY[{}]::text[], ARRAY[{}]::text[])", keys.join(","), values.join(","))
        }
        "geometry" | "geography" => format!("'{}'", hex(&base64(value["wkb"].as_str().unwrap()))),
        "vector" | "halfvec" => quoted(&value.to_string()),
        "sparsevec" => {
            let pairs = value["vector"].as_array().unwrap().iter();
            let pairs: Vec<_> = pairs.map(|pair| format!("{}:{}", pair[0], pair[1])).collect();
            format!("'{{{}}}/{}'", pairs.join(","), value["dimensions"])
        }
        _ => quoted(&string()),
    })
}

/// An array, whose dimensions are nested; lower bounds are not told.
fn array_of_json(catalogue: &Catalogue, element: u32, value: &Value, qualified: &str) -> String {
    let is_array = catalogue.base(element).element.is_some();
    let elements = value.as_array().unwrap_or_else(|| panic!("{qualified}: {value} is no array"));
    if elements.is_empty() {
        return "'{}'".to_owned();
    }
    // An array in an array is a dimension, except where elements are arrays or vectors themselves.
    let depth = |value: &Value| {
        std::iter::successors(Some(value), |value| value.as_array()?.iter().find(|value| value.is_array()))
            .count()
    };
    let of_element = if is_array || is_vector(catalogue, element) { 1 } else { 0 };
    let parts: Vec<String> = elements
        .iter()
        .map(|value| match value {
            Value::Array(_) if depth(value) > of_element => {
                array_of_json(catalogue, element, value, qualified)
            }
            value => from_json(catalogue, element, value),
        })
        .collect();
    format!("ARRAY[{}]", parts.join(", "))
}

fn is_vector(catalogue: &Catalogue, oid: u32) -> bool {
    ["vector", "halfvec"].contains(&catalogue.base(oid).name.as_str())
}

/// SQL of what was delivered as protobuf.
pub fn from_proto(catalogue: &Catalogue, oid: u32, value: &proto::Value) -> String {
    let of = catalogue.base(oid);
    let sql = match value.kind.as_ref().unwrap() {
        Kind::Null(_) => "NULL".to_owned(),
        Kind::BoolValue(value) => value.to_string(),
        Kind::IntValue(value) => quoted(&value.to_string()),
        Kind::FloatValue(value) => quoted(&format!("{value:e}").replace("inf", "Infinity")),
        Kind::DoubleValue(value) => quoted(&format!("{value:e}").replace("inf", "Infinity")),
        Kind::NumericValue(text) | Kind::TextValue(text) | Kind::JsonValue(text) => quoted(text),
        Kind::BytesValue(bytes) => format!("'\\x{}'", hex(bytes)),
        Kind::UuidValue(bytes) => quoted(&hex(bytes)),
        Kind::DateDays(days) => format!("(date '1970-01-01' + ({days}))"),
        Kind::TimeUs(micros) => since_midnight(*micros),
        Kind::TimestampUs(micros) => since_1970(*micros, "timestamp"),
        Kind::TimestamptzUs(micros) => since_1970(*micros, "timestamptz"),
        Kind::IntervalValue(proto::Interval { months, days, micros }) => {
            let (sign, seconds) = (if *micros < 0 { "-" } else { "" }, micros.unsigned_abs() / 1_000_000);
            let (minutes, micros) = (seconds / 60, micros.unsigned_abs() % 1_000_000);
            let clock = format!("{}:{}:{}.{micros:06}", minutes / 60, minutes % 60, seconds % 60);
            format!("'{months} mons {days} days {sign}{clock}'")
        }
        Kind::Infinity(sign) if *sign == i32::from(proto::Infinity::Positive) => "'infinity'".to_owned(),
        Kind::Infinity(_) => "'-infinity'".to_owned(),
        Kind::CompositeValue(row) => {
            let names: Vec<&String> = row.columns.iter().map(|column| &column.name).collect();
            assert_eq!(names, of.attributes.iter().map(|(name, _)| name).collect::<Vec<_>>());
            let part = |(column, (_, oid)): (&proto::Column, &(String, u32))| {
                from_proto(catalogue, *oid, column.value.as_ref().unwrap())
            };
            let parts: Vec<_> = row.columns.iter().zip(&of.attributes).map(part).collect();
            format!("ROW({})", parts.join(", "))
        }
        Kind::ArrayValue(array) => {
            let element = of.element.unwrap_or_else(|| panic!("{} is no array", of.qualified));
            assert_eq!(array.element_type_oid, element);
            let elements: Vec<_> =
                array.elements.iter().map(|value| from_proto(catalogue, element, value)).collect();
            array_of_proto(array, &elements, &of.qualified)
        }
        other => panic!("{other:?} has no SQL"),
    };
    format!("({sql})::{}", catalogue.get(oid).qualified)
}

fn array_of_proto(array: &proto::Array, elements: &[String], qualified: &str) -> String {
    let Some((_, outer)) = array.lengths.split_last() else { return "'{}'".to_owned() };
    // From the innermost dimension outwards.
    let mut parts = elements.to_vec();
    for length in array.lengths.iter().skip(1).rev() {
        parts = parts.chunks(*length as usize).map(|chunk| format!("[{}]", chunk.join(", "))).collect();
    }
    assert_eq!(parts.len(), array.lengths[0] as usize, "{outer:?}");
    let sql = format!("ARRAY[{}]", parts.join(", "));
    if array.lower_bounds.is_empty() {
        return sql;
    }
    let bounds = array.lower_bounds.iter().zip(&array.lengths);
    let bounds: String = bounds
        .map(|(lower, length)| format!("[{lower}:{}]", i64::from(*lower) + i64::from(*length) - 1))
        .collect();
    format!("'{bounds}=' || ({sql}::{qualified})::text")
}

/// A table with a column for each of some types.
struct Table {
    name: String,
    types: Vec<u32>,
}

impl Table {
    fn column(place: usize) -> String {
        format!("c{place}")
    }
}

/// SQL that is true when a column holds this; `delivered` has the text where the type is one that the server only prints.
fn is_held(
    catalogue: &Catalogue,
    oid: u32,
    column: &str,
    delivered: &str,
    text: Option<&str>,
    bounds: bool,
) -> String {
    let printed_only = WITHOUT_INPUT.contains(&catalogue.base(oid).name.as_str());
    let delivered = match text {
        Some(text) if printed_only => quoted(text),
        _ => delivered.to_owned(),
    };
    let held = if bounds || catalogue.base(oid).element.is_none() {
        format!("format('%L', {column})")
    } else {
        format!(r"regexp_replace(format('%L', {column}), '^(E?)''\[[-0-9:\[\]]+\]=', '\1''')")
    };
    format!("{held} = format('%L', {delivered})")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_that_a_column_can_have_is_delivered_as_the_server_holds_it() {
    let outputs =
        format!(r#"{{"name":"{TASK}","format":"debezium-json"}},{{"name":"proto","format":"protobuf"}}"#);
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let connected = postgres.client().await;
    let client = &connected;
    run(client, USERS_TYPES).await;
    run(client, "SET timezone = 'UTC'").await;
    for extension in EXTENSIONS {
        let available = "SELECT count(*) FROM pg_available_extensions WHERE name = $1";
        if client.query_one(available, &[&extension]).await.unwrap().get::<_, i64>(0) == 1 {
            run(client, &format!("CREATE EXTENSION {extension}")).await;
        } else {
            println!("not tested: this server has no extension {extension}");
        }
    }
    let catalogue = Catalogue::read(client).await;
    let mut types: Vec<u32> = Vec::new();
    let mut all: Vec<&Type> = catalogue.0.values().collect();
    all.sort_by_key(|of| of.oid);
    for of in all {
        let probe = format!("CREATE TEMP TABLE probe (c {}); DROP TABLE probe", of.qualified);
        match client.batch_execute(&probe).await {
            Ok(()) => types.push(of.oid),
            Err(error) => {
                let message = error.as_db_error().unwrap().message();
                assert!(message.contains("pseudo-type"), "{}: {message}", of.qualified);
            }
        }
    }

    let values: Vec<_> = types.iter().map(|&oid| catalogue.values(oid)).collect();
    let unknown: Vec<_> = values.iter().filter_map(|values| values.as_ref().err()).collect();
    assert!(unknown.is_empty(), "this test has no values for {unknown:?}");
    let values: HashMap<u32, Vec<String>> =
        types.iter().copied().zip(values.into_iter().map(Result::unwrap)).collect();

    let tables: Vec<Table> = types
        .chunks(40)
        .enumerate()
        .map(|(number, types)| Table { name: format!("types_{number}"), types: types.to_vec() })
        .collect();
    for table in &tables {
        let columns = table
            .types
            .iter()
            .enumerate()
            .map(|(place, oid)| format!(", {} {}", Table::column(place), catalogue.get(*oid).qualified));
        let columns: String = columns.collect();
        run(client, &format!("CREATE TABLE {} (id int PRIMARY KEY{columns})", table.name)).await;
    }
    let stage = Stage::over(postgres, connected, &outputs).await;
    let client = &stage.client;
    for table in &tables {
        let rows = table.types.iter().map(|oid| values[oid].len()).max().unwrap();
        for row in 0..=rows {
            let value = |oid: &u32| values[oid].get(row).cloned().unwrap_or("NULL".to_owned());
            let values: Vec<String> = table.types.iter().map(value).collect();
            run(client, &format!("INSERT INTO {} VALUES ({row}, {})", table.name, values.join(", "))).await;
        }
    }

    let records = stage.records().await;
    let mut delivered: Vec<(&Table, i64, Vec<String>)> = Vec::new();
    let by_name: HashMap<&str, &Table> = tables.iter().map(|table| (table.name.as_str(), table)).collect();
    for record in &records {
        let event = record.value.as_ref().unwrap();
        let table = by_name[event["source"]["table"].as_str().unwrap()];
        let row = &event["after"];
        let conditions = table.types.iter().enumerate().map(|(place, &oid)| {
            let column = Table::column(place);
            let value = &row[&column];
            let printed_only = WITHOUT_INPUT.contains(&catalogue.base(oid).name.as_str());
            let sql = if printed_only { "NULL".to_owned() } else { from_json(&catalogue, oid, value) };
            is_held(&catalogue, oid, &column, &sql, value.as_str(), false)
        });
        delivered.push((table, row["id"].as_i64().unwrap(), conditions.collect()));
    }
    let as_json = delivered.len();
    for record in read_raw_topic(&stage.millrace.bootstrap(), "proto").await {
        let change = proto::Change::decode(record.value.as_deref().unwrap()).unwrap();
        let Some(proto::change::Event::Row(change)) = change.event else { continue };
        let table = by_name[change.table.unwrap().name.as_str()];
        let columns = change.after.unwrap().columns;
        let Some(Kind::IntValue(id)) = columns[0].value.as_ref().unwrap().kind else { panic!("{columns:?}") };
        let conditions = table.types.iter().zip(&columns[1..]).map(|(&oid, column)| {
            let value = column.value.as_ref().unwrap();
            let printed_only = WITHOUT_INPUT.contains(&catalogue.base(oid).name.as_str());
            let sql = if printed_only { "NULL".to_owned() } else { from_proto(&catalogue, oid, value) };
            let text = match value.kind.as_ref().unwrap() {
                Kind::TextValue(text) => Some(text.as_str()),
                _ => None,
            };
            is_held(&catalogue, oid, &column.name, &sql, text, true)
        });
        delivered.push((table, id, conditions.collect()));
    }
    let inserted: usize = {
        let rows = |table: &Table| table.types.iter().map(|oid| values[oid].len()).max().unwrap() + 1;
        tables.iter().map(rows).sum()
    };
    assert_eq!((as_json, delivered.len()), (inserted, 2 * inserted));

    let mut wrong = Vec::new();
    for (place, (table, id, conditions)) in delivered.iter().enumerate() {
        let format = if place < as_json { "debezium-json" } else { "protobuf" };
        // All at once first: one by one only where something is wrong.
        let all = format!("SELECT {} FROM {} WHERE id = {id}", conditions.join(" AND "), table.name);
        if client.query_one(&all, &[]).await.is_ok_and(|row| row.get::<_, Option<bool>>(0) == Some(true)) {
            continue;
        }
        for (&oid, condition) in table.types.iter().zip(conditions) {
            let query = format!("SELECT {condition} FROM {} WHERE id = {id}", table.name);
            let complaint = match client.query_one(&query, &[]).await {
                Ok(row) if row.get::<_, Option<bool>>(0) == Some(true) => continue,
                Ok(_) => String::new(),
                Err(error) => format!("{:?}", error.as_db_error().map(|error| error.message())),
            };
            let query: String = query.chars().take(400).collect();
            wrong.push(format!("{format}: {}: {complaint} {query}", catalogue.get(oid).qualified));
        }
    }
    assert!(wrong.is_empty(), "{} values differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} types, {inserted} rows in each format", types.len());
}
