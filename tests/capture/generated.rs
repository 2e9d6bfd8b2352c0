//! Values of each type, made at random. A value that is delivered wrongly is in the failure's message, as SQL.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// How many for each type.
const VALUES: usize = 12;
const MICROS_OF_DAY: i64 = 86_400_000_000;

/// SQL of random values of a type that `CASES` has; none for types that have few values or whose forms are told by
/// examples.
pub fn values(type_name: &str) -> Vec<String> {
    let Some(strategy) = strategy(type_name) else { return Vec::new() };
    // Seeded by the operating system: each run tries others.
    let mut runner = TestRunner::new(ProptestConfig::default());
    (0..VALUES).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

fn strategy(type_name: &str) -> Option<BoxedStrategy<String>> {
    Some(match type_name {
        "smallint" => any::<i16>().prop_map(|n| format!("'{n}'")).boxed(),
        "int" => any::<i32>().prop_map(|n| format!("'{n}'")).boxed(),
        "bigint" => any::<i64>().prop_map(|n| format!("'{n}'")).boxed(),
        "oid" => any::<u32>().prop_map(|n| format!("'{n}'")).boxed(),
        "positive" => (1..i32::MAX).prop_map(|n| n.to_string()).boxed(),
        "real" => any::<f32>().prop_map(|n| float(format!("{n:e}"))).boxed(),
        "double precision" => any::<f64>().prop_map(|n| float(format!("{n:e}"))).boxed(),
        "numeric(12,2)" => decimal(10, 2).boxed(),
        "numeric(38,10)" => decimal(28, 10).boxed(),
        "numeric(20)" => decimal(20, 0).boxed(),
        "numeric(6,2)[]" => vec(decimal(4, 2), 0..6).prop_map(|numbers| array(&numbers)).boxed(),
        "price" => decimal(6, 2).boxed(),
        "numeric" => {
            (0..300_usize, 0..300_usize).prop_flat_map(|(whole, scale)| decimal(whole, scale)).boxed()
        }
        "money" => any::<i64>().prop_map(money).boxed(),
        "text" | "citext" => text(40).boxed(),
        "varchar(10)" => text(10).boxed(),
        "char(8)" => text(8).boxed(),
        "bytea" => bytes(300).boxed(),
        "bytea[]" => vec(bytes(20), 0..4).prop_map(|elements| array(&elements)).boxed(),
        "text[]" | "citext[]" => vec(text(10), 0..6).prop_map(|elements| array(&elements)).boxed(),
        "int[]" => int_array().boxed(),
        "date" => {
            (-2_451_507..2_145_031_948_i32).prop_map(|days| format!("(date '2000-01-01' + ({days}))")).boxed()
        }
        "time" | "time(4)" | "time(3)" | "time(0)" => (0..MICROS_OF_DAY)
            .prop_map(|micros| format!("(time '00:00' + {micros} * interval '1 us')"))
            .boxed(),
        "timetz" => (0..MICROS_OF_DAY, -57_000..57_000_i32)
            .prop_map(|(micros, zone)| format!("'{}{}'", clock(micros), offset(zone)))
            .boxed(),
        "timestamp" | "timestamp(5)" | "timestamp(3)" | "timestamp(0)" | "timestamptz" | "timestamptz(3)"
        | "timestamptz(0)" => moment().boxed(),
        "interval" => interval().boxed(),
        "uuid" => any::<u128>().prop_map(|bits| format!("'{bits:032x}'")).boxed(),
        "json" | "jsonb" => {
            text(20).prop_map(|text| format!("jsonb_build_object({text}::text, {text}::text)")).boxed()
        }
        "inet" => any::<(u32, bool)>()
            .prop_map(|(address, is_net)| {
                let [a, b, c, d] = address.to_be_bytes();
                format!("'{a}.{b}.{c}.{d}{}'", if is_net { "/9" } else { "" })
            })
            .boxed(),
        "macaddr" => any::<[u8; 6]>()
            .prop_map(|bytes| format!("'{}'", bytes.map(|byte| format!("{byte:02x}")).join(":")))
            .boxed(),
        "bit(12)" => bits(12..=12).boxed(),
        "varbit" => bits(0..=70).boxed(),
        "hstore" => vec((text(6), prop::option::of(text(6))), 0..5).prop_map(|pairs| hstore(&pairs)).boxed(),
        "int4range" => any::<(i16, u16, bool)>()
            .prop_map(|(low, len, closed)| {
                let high = i32::from(low) + i32::from(len);
                format!("'[{low},{high}{}'", if closed { ']' } else { ')' })
            })
            .boxed(),
        "tsvector" => text(30).prop_map(|text| format!("to_tsvector('simple', {text}::text)")).boxed(),
        "pg_lsn" => any::<(u32, u32)>().prop_map(|(high, low)| format!("'{high:X}/{low:X}'")).boxed(),
        _ => return None,
    })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn array(elements: &[String]) -> String {
    // A null stands among them.
    format!("ARRAY[{}]", elements.iter().map(String::as_str).chain(["NULL"]).collect::<Vec<_>>().join(", "))
}

fn float(shortest: String) -> String {
    quoted(&shortest.replace("inf", "Infinity"))
}

fn decimal(whole: usize, scale: usize) -> impl Strategy<Value = String> {
    let digits = |count: usize| {
        vec(0..10_u8, 0..=count)
            .prop_map(|digits| digits.iter().map(|digit| char::from(b'0' + digit)).collect::<String>())
    };
    (any::<bool>(), digits(whole), digits(scale)).prop_map(|(negative, whole, fraction)| {
        format!("'{}0{whole}.{fraction}0'", if negative { "-" } else { "" })
    })
}

fn money(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("'{sign}{}.{:02}'", cents.unsigned_abs() / 100, cents.unsigned_abs() % 100)
}

/// Any text without a zero byte, which PostgreSQL does not take, and often what its text forms must escape.
fn text(longest: usize) -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec!['"', '\\', '\'', '{', '}', ',', '(', ')', ' ', '\n', 'N', '=', '>']);
    let letter = prop_oneof![odd, any::<char>().prop_filter("zero", |letter| *letter != '\0')];
    vec(letter, 0..=longest).prop_map(|letters| quoted(&letters.into_iter().collect::<String>()))
}

fn bytes(longest: usize) -> impl Strategy<Value = String> {
    vec(any::<u8>(), 0..=longest).prop_map(|bytes| {
        format!("'\\x{}'::bytea", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    })
}

/// Of one to three dimensions.
fn int_array() -> impl Strategy<Value = String> {
    let lengths = (1..4_usize, 1..3_usize, 1..3_usize);
    (lengths, 1..4_usize, vec(any::<Option<i32>>(), 12)).prop_map(|((a, b, c), dimensions, numbers)| {
        let mut parts: Vec<String> = numbers
            .iter()
            .map(|number| number.map_or("NULL".to_owned(), |number| format!("'{number}'::int")))
            .collect();
        let lengths = [a, b, c];
        for length in lengths.iter().take(dimensions) {
            parts = parts.chunks_exact(*length).map(|chunk| format!("[{}]", chunk.join(","))).collect();
        }
        format!("ARRAY{}", parts[0])
    })
}

fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    format!("{:02}:{:02}:{:02}.{:06}", seconds / 3600, seconds / 60 % 60, seconds % 60, micros % 1_000_000)
}

fn offset(seconds: i32) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let seconds = seconds.abs();
    format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// From 4713 BC to the year 294275.
fn moment() -> impl Strategy<Value = String> {
    (-2_451_500..106_751_000_i32, 0..MICROS_OF_DAY).prop_map(|(days, micros)| {
        format!("(timestamp '2000-01-01' + {days} * interval '1 day' + {micros} * interval '1 us')")
    })
}

fn interval() -> impl Strategy<Value = String> {
    (any::<i16>(), any::<i32>(), any::<i64>()).prop_map(|(months, days, micros)| {
        let sign = if micros < 0 { "-" } else { "" };
        format!("'{months} mons {days} days {sign}{}'", clock(micros.unsigned_abs() as i64 / 2))
    })
}

fn bits(lengths: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = String> {
    vec(any::<bool>(), lengths).prop_map(|bits| {
        format!("B'{}'", bits.iter().map(|bit| if *bit { '1' } else { '0' }).collect::<String>())
    })
}

fn hstore(pairs: &[(String, Option<String>)]) -> String {
    let keys: Vec<_> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    let values: Vec<_> = pairs.iter().map(|(_, value)| value.as_deref().unwrap_or("NULL")).collect();
    format!("hstore(ARRAY[{}]::text[], ARRAY[{}]::text[])", keys.join(","), values.join(","))
}
