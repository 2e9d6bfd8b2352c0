//! An answer as a flat list of fields, made from its `Debug` form: every message of the protocol crate has one, whole and
//! regular, so that one reader serves them all and no field is forgotten. Elements of lists go by their names, not by their
//! places: Kafka itself answers in an order of its own.

use std::collections::{BTreeMap, BTreeSet};

/// Fields by their path: `topics[seed].partitions[0].error_code`.
pub type Fields = BTreeMap<String, String>;

/// What names an element of a list, in this order. An element without any has its place.
const NAMES: &[&str] = &[
    "name",
    "topic",
    "topic_name",
    "topic_id",
    "group_id",
    "member_id",
    "group_instance_id",
    "node_id",
    "broker_id",
    "api_key",
    "resource_type",
    "resource_name",
    "key",
    "user",
    "partition_index",
    "partition_id",
    "partition",
];

#[derive(Debug)]
enum Value {
    One(String),
    Fields(Vec<(String, Value)>),
    List(Vec<Value>),
}

/// The fields of `message`, a value in its pretty `Debug` form, with each value as `rename` has it.
pub fn fields(message: &str, rename: &dyn Fn(&str) -> String) -> Fields {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    let value = read(first, &mut lines, rename);
    let mut fields = Fields::new();
    flatten("", &value, &mut fields);
    fields
}

/// Reads the value that begins with `start` and, if that opens something, goes on in `lines`.
fn read<'a>(
    start: &str,
    lines: &mut impl Iterator<Item = &'a str>,
    rename: &dyn Fn(&str) -> String,
) -> Value {
    let start = start.trim().trim_end_matches(',');
    if start.ends_with('{') {
        let mut fields = Vec::new();
        while let Some(line) = lines.next().map(str::trim).filter(|line| !line.starts_with('}')) {
            let (name, rest) = line.split_once(": ").expect("a field");
            fields.push((name.to_owned(), read(rest, lines, rename)));
        }
        Value::Fields(fields)
    } else if start.ends_with('[') {
        let mut list = Vec::new();
        while let Some(line) = lines.next().map(str::trim).filter(|line| !line.starts_with(']')) {
            list.push(read(line, lines, rename));
        }
        Value::List(list)
    } else if start.ends_with('(') {
        // `Some(…)`, or a name for a plain value: what is in it counts.
        let inner = lines.next().expect("a value");
        let value = read(inner, lines, rename);
        lines.next();
        value
    } else if start == "[]" {
        Value::List(Vec::new())
    } else {
        Value::One(rename(start))
    }
}

fn flatten(path: &str, value: &Value, fields: &mut Fields) {
    match value {
        Value::One(value) => {
            fields.insert(path.to_owned(), value.clone());
        }
        Value::Fields(inner) => {
            for (name, value) in inner {
                let separator = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{separator}{name}"), value, fields);
            }
        }
        Value::List(list) => {
            let mut names = BTreeSet::new();
            for (place, element) in list.iter().enumerate() {
                let mut name = name(element).unwrap_or_else(|| place.to_string());
                while !names.insert(name.clone()) {
                    name.push('\'');
                }
                let path = format!("{path}[{name}]");
                if matches!(element, Value::Fields(_)) {
                    fields.insert(path.clone(), "there".to_owned());
                }
                flatten(&path, element, fields);
            }
        }
    }
}

/// What an element is called, which tells it from its neighbours.
fn name(element: &Value) -> Option<String> {
    let Value::Fields(fields) = element else { return None };
    let named = |wanted: &&str| {
        let (_, value) = fields.iter().find(|(name, _)| name == wanted)?;
        match value {
            Value::One(text) if !matches!(text.as_str(), "\"\"" | "None" | NIL) => {
                Some(text.trim_matches('"').to_owned())
            }
            _ => None,
        }
    };
    let names: Vec<_> = NAMES.iter().filter_map(named).collect();
    (!names.is_empty()).then(|| names.join("/"))
}

const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// A path without the names of elements: `topics[].partitions[].error_code`.
pub fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    let mut depth = 0;
    for letter in path.chars() {
        depth -= i32::from(letter == ']');
        if depth == 0 {
            pattern.push(letter);
        }
        depth += i32::from(letter == '[');
    }
    pattern
}
