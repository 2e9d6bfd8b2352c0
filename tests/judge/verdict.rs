//! What differs, and whether it may.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;

use kafka_protocol::messages::ApiKey;

use crate::differences::{DIFFERENCES, Difference};
use crate::fields::{Fields, pattern};

/// So many situations are named in which a fault shows.
const SHOWN: usize = 6;

/// What a broker did with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answer(Fields),
    /// It hung up, or said nothing for longer than anybody waits.
    Nothing(&'static str),
    /// It said what cannot be read.
    Unreadable(String),
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Verdict {
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// By API, field, and what both have there.
    faults: BTreeMap<(String, String, String, String), Fault>,
    used: BTreeSet<usize>,
    /// What both have answered.
    judged: BTreeSet<(i16, i16)>,
    compared: usize,
}

#[derive(Debug)]
struct Fault {
    /// Situations, and the versions in which it shows there.
    seen: BTreeMap<String, BTreeSet<i16>>,
    /// One of them.
    request: String,
    path: String,
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub api: ApiKey,
    pub version: i16,
    pub situation: String,
    pub request: String,
}

impl Verdict {
    /// Compares two answers.
    pub fn compare(&self, asked: &Asked, kafka: &Outcome, ours: &Outcome) {
        if let (Outcome::Answer(kafka), Outcome::Answer(ours)) = (kafka, ours) {
            let mut found = self.found.lock().unwrap();
            found.judged.insert((asked.api as i16, asked.version));
            found.compared += kafka.len();
            drop(found);
            let mut missing: Vec<&str> = Vec::new();
            let paths: BTreeSet<&String> = kafka.keys().chain(ours.keys()).collect();
            for path in paths {
                let inside =
                    |element: &&str| path.strip_prefix(*element).is_some_and(|rest| !rest.is_empty());
                if missing.iter().any(inside) {
                    continue;
                }
                if kafka.contains_key(path) != ours.contains_key(path) && path.ends_with(']') {
                    missing.push(path);
                    self.field(asked, path, element(kafka, path), element(ours, path));
                } else {
                    let text = |fields: &Fields| fields.get(path).map_or("absent", |value| value).to_owned();
                    self.field(asked, path, text(kafka), text(ours));
                }
            }
        } else {
            self.field(asked, "answer", outcome(kafka), outcome(ours));
        }
    }

    /// Compares one thing.
    pub fn field(&self, asked: &Asked, path: &str, kafka: String, ours: String) {
        if kafka == ours {
            return;
        }
        let mut found = self.found.lock().unwrap();
        let justified = |difference: &Difference| {
            difference.api.is_none_or(|api| api == asked.api)
                && asked.situation.contains(difference.situation)
                && (difference.field == path
                    || difference.field == pattern(path)
                    || difference.field.strip_prefix('*').is_some_and(|end| path.ends_with(end)))
        };
        if let Some(entry) = DIFFERENCES.iter().position(justified) {
            found.used.insert(entry);
            return;
        }
        let key = (format!("{:?}", asked.api), pattern(path), kafka, ours);
        let fault = found.faults.entry(key).or_insert_with(|| Fault {
            seen: BTreeMap::new(),
            request: asked.request.clone(),
            path: path.to_owned(),
        });
        fault.seen.entry(asked.situation.clone()).or_default().insert(asked.version);
    }

    /// What is wrong: differences that nothing justifies, justifications of nothing, and what was never asked of what both
    /// serve. `None` when nothing is.
    pub fn sentence(&self, served: &BTreeSet<(i16, i16)>) -> Option<String> {
        let found = self.found.lock().unwrap();
        println!(
            "{} fields compared in answers to {} versions of APIs; {} of {} differences used",
            found.compared,
            found.judged.len(),
            found.used.len(),
            DIFFERENCES.len()
        );
        let mut text = String::new();
        for ((api, _, kafka, ours), Fault { seen, request, path }) in &found.faults {
            writeln!(text, "\n{api} {path}: Kafka {kafka}, ours {ours}\n  {request}").unwrap();
            for (situation, versions) in seen.iter().take(SHOWN) {
                writeln!(text, "    {situation} (v{})", ranges(versions)).unwrap();
            }
            if seen.len() > SHOWN {
                writeln!(text, "    and {} more", seen.len() - SHOWN).unwrap();
            }
        }
        for (_, unused) in DIFFERENCES.iter().enumerate().filter(|(entry, _)| !found.used.contains(entry)) {
            writeln!(text, "unused: {unused:?}").unwrap();
        }
        let mut forgotten: BTreeMap<i16, BTreeSet<i16>> = BTreeMap::new();
        for (key, version) in served.difference(&found.judged) {
            forgotten.entry(*key).or_default().insert(*version);
        }
        for (key, versions) in forgotten {
            writeln!(text, "never compared: {:?} v{}", ApiKey::try_from(key), ranges(&versions)).unwrap();
        }
        (!text.is_empty()).then_some(text)
    }
}

/// An element of a list with all its fields.
fn element(fields: &Fields, path: &str) -> String {
    let inside = |(name, value): (&String, &String)| Some(format!("{} {value}", name.strip_prefix(path)?));
    let inside: Vec<_> = fields.iter().filter_map(inside).collect();
    if inside.is_empty() { "absent".to_owned() } else { inside.join(", ") }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answer(fields) => {
            let errors = fields.iter().filter(|(path, _)| path.ends_with("error_code"));
            let errors: Vec<_> = errors.map(|(path, code)| format!("{path} {code}")).collect();
            format!("an answer ({})", errors.join(", "))
        }
        Outcome::Nothing(what) => (*what).to_owned(),
        Outcome::Unreadable(why) => format!("unreadable: {why}"),
    }
}

/// `4-11, 13` of a set of numbers.
fn ranges(versions: &BTreeSet<i16>) -> String {
    let mut ranges: Vec<(i16, i16)> = Vec::new();
    for version in versions {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *version => *last = *version,
            _ => ranges.push((*version, *version)),
        }
    }
    let shown = |(first, last): (i16, i16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(shown).collect::<Vec<_>>().join(", ")
}
