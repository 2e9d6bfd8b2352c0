//! The topics there are, as the groups see them whose partitions the broker shares out: names, ids and numbers of
//! partitions, and which names match the regular expressions that members have subscribed to.
//!
//! A picture of [`Topics`] that changes only when the coordinator says so, so that a state machine that is given it sees
//! the same topics throughout an input.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::log::topics::{TopicId, Topics};

/// Memory that the program of a regular expression may take.
const MAX_PROGRAM: usize = 256 << 10;

/// Topics and what is known of them.
#[derive(Debug, Default)]
pub struct Catalog {
    by_name: HashMap<Arc<str>, (TopicId, i32)>,
    names: HashMap<TopicId, Arc<str>>,
    /// By regular expression.
    matches: HashMap<Arc<str>, Arc<BTreeSet<Arc<str>>>>,
}

impl Catalog {
    /// The topics that there are now.
    pub fn new(topics: &Topics) -> Catalog {
        let all = topics.all();
        let each = all.iter().map(|topic| (&*topic.name, topic.id, topic.partitions.len()));
        Catalog::of(each)
    }

    /// These topics: name, id and number of partitions.
    pub(super) fn of<'a>(topics: impl IntoIterator<Item = (&'a str, TopicId, usize)>) -> Catalog {
        let mut catalog = Catalog::default();
        for (name, id, partitions) in topics {
            let name: Arc<str> = name.into();
            catalog.by_name.insert(name.clone(), (id, i32::try_from(partitions).unwrap_or(i32::MAX)));
            catalog.names.insert(id, name);
        }
        catalog
    }

    /// The id of a topic, and how many partitions it has.
    pub fn topic(&self, name: &str) -> Option<(TopicId, i32)> {
        self.by_name.get(name).copied()
    }

    /// The name of a topic.
    pub fn name(&self, id: TopicId) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    /// The names that match a pattern, as far as it has been [added](Self::add).
    pub fn matching(&self, pattern: &str) -> impl Iterator<Item = &Arc<str>> {
        self.matches.get(pattern).into_iter().flat_map(|names| names.iter())
    }

    /// Whether it is known what matches the pattern.
    pub fn knows(&self, pattern: &str) -> bool {
        self.matches.contains_key(pattern)
    }

    /// Takes note of what matches a pattern.
    pub fn add(&mut self, pattern: Arc<str>, names: Arc<BTreeSet<Arc<str>>>) {
        self.matches.insert(pattern, names);
    }

    /// Forgets the other patterns.
    pub fn retain(&mut self, patterns: &BTreeSet<Arc<str>>) {
        self.matches.retain(|pattern, _| patterns.contains(pattern));
    }

    /// How many patterns it knows.
    pub fn pattern_count(&self) -> usize {
        self.matches.len()
    }

    /// Takes over from the picture before what matches these patterns, which came up while this one was made.
    pub fn take_over(&mut self, before: Catalog, patterns: &BTreeSet<Arc<str>>) {
        for (pattern, names) in before.matches {
            if patterns.contains(&pattern) {
                self.matches.entry(pattern).or_insert(names);
            }
        }
    }
}

/// Reads a pattern that the whole of a name has to match; `None` where it is none, or too large a one.
///
/// The syntax is that of RE2, which Apache Kafka's broker uses, except for `\C` (a single byte) and `\Q…\E` (quoting).
pub fn pattern(text: &str) -> Option<Regex> {
    let build =
        |text: &str| RegexBuilder::new(text).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).build();
    // Alone first, so that it cannot close the parenthesis that goes around it.
    build(text).ok()?;
    build(&format!(r"\A(?:{text})\z")).ok()
}

/// The names of the topics there are that match a pattern.
pub fn find(pattern: &Regex, topics: &Topics) -> BTreeSet<Arc<str>> {
    let all = topics.all();
    all.iter().filter(|topic| pattern.is_match(&topic.name)).map(|topic| topic.name.as_str().into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_to_match_the_whole_of_a_name() {
        let names = ["a.b", "a.bc", "xa.b", "a"];
        let find = |text: &str| -> Vec<&str> {
            let pattern = pattern(text).unwrap();
            names.into_iter().filter(|name| pattern.is_match(name)).collect()
        };
        assert_eq!(find(r"a\.b"), ["a.b"]);
        assert_eq!(find(r"a\.b|a"), ["a.b", "a"]);
        assert_eq!(find("a.*"), ["a.b", "a.bc", "a"]);
        assert!(find("").is_empty());
    }

    #[test]
    fn what_is_no_pattern_or_too_large_a_one_is_refused() {
        for text in ["(", "a)(b", "[", r"\p{Nope}", "(?:a{1000}){1000}", "(?x)a #"] {
            assert!(pattern(text).is_none(), "{text}");
        }
    }
}
