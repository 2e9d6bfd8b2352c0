//! The topics there are, as the groups see them whose partitions the broker shares out: names, ids and numbers of
//! partitions, and which names match the regular expressions that members have subscribed to.
//!
//! A picture of [`Topics`] that changes only when the coordinator says so, so that a state machine that is given it sees
//! the same topics throughout an input.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::log::topics::{TopicId, Topics};

/// Memory that the program of a regular expression may take.
const MAX_PROGRAM: usize = 16 << 10;

/// Topics and what is known of them.
#[derive(Debug, Default)]
pub struct Catalog {
    ids: HashMap<Arc<str>, TopicId>,
    topics: HashMap<TopicId, Known>,
    /// What matches a regular expression.
    matches: HashMap<Arc<str>, Matches>,
    /// How often it has been renewed.
    version: u64,
}

#[derive(Debug)]
struct Matches {
    topics: Vec<TopicId>,
    /// The version of the catalog whose topics they are among, or perhaps later ones.
    version: u64,
}

#[derive(Debug)]
struct Known {
    name: Arc<str>,
    partitions: i32,
}

impl Catalog {
    /// The topics that there are now.
    pub fn new(topics: &Topics) -> Catalog {
        let all = topics.all();
        Catalog::of(all.iter().map(|topic| (&*topic.name, topic.id, topic.partitions.len())))
    }

    /// These topics: name, id and number of partitions.
    pub(super) fn of<'a>(topics: impl IntoIterator<Item = (&'a str, TopicId, usize)>) -> Catalog {
        let mut catalog = Catalog::default();
        for (name, id, partitions) in topics {
            let name: Arc<str> = name.into();
            catalog.ids.insert(name.clone(), id);
            let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
            catalog.topics.insert(id, Known { name, partitions });
        }
        catalog
    }

    /// The id of a topic.
    pub fn id(&self, name: &str) -> Option<TopicId> {
        self.ids.get(name).copied()
    }

    /// The name of a topic.
    pub fn name(&self, id: TopicId) -> Option<&Arc<str>> {
        self.topics.get(&id).map(|known| &known.name)
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, id: TopicId) -> Option<i32> {
        self.topics.get(&id).map(|known| known.partitions)
    }

    /// The topics whose names match a pattern, as far as it has been [added](Self::add).
    pub fn matching(&self, pattern: &str) -> &[TopicId] {
        self.matches.get(pattern).map(|matches| &*matches.topics).unwrap_or_default()
    }

    /// Changes whenever it is [renewed](Self::renew).
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether it is known which of its topics match the pattern.
    pub fn knows(&self, pattern: &str) -> bool {
        self.matches.get(pattern).is_some_and(|matches| matches.version == self.version)
    }

    /// Takes note of what matches a pattern among the topics that there are now.
    pub fn add(&mut self, pattern: Arc<str>, topics: Vec<TopicId>) {
        self.matches.insert(pattern, Matches { topics, version: self.version });
    }

    /// How many patterns it knows, and how many topics match them together.
    pub fn pattern_counts(&self) -> (usize, usize) {
        (self.matches.len(), self.matches.values().map(|matches| matches.topics.len()).sum())
    }

    /// Forgets the other patterns.
    pub fn retain(&mut self, patterns: &BTreeSet<Arc<str>>) {
        self.matches.retain(|pattern, _| patterns.contains(pattern));
    }

    /// Looks at the topics that there are now; what matches a pattern stays as it is, but is not [known](Self::knows).
    pub fn renew(&mut self, topics: &Topics) {
        let matches = std::mem::take(&mut self.matches);
        *self = Catalog { matches, version: self.version + 1, ..Catalog::new(topics) };
    }
}

/// Reads a pattern that the whole of a name has to match; `None` where it is none, or too large a one.
///
/// The syntax is that of RE2, which Apache Kafka's broker uses, except for `\C` (a single byte), `\Q…\E` (quoting) and
/// `\p{…}` (classes of Unicode: names are of ASCII).
pub fn pattern(text: &str) -> Option<Regex> {
    let build = |text: &str| RegexBuilder::new(text).unicode(false).size_limit(MAX_PROGRAM).build();
    // Alone first, so that it cannot close the parenthesis that goes around it.
    build(text).ok()?;
    build(&format!(r"\A(?:{text})\z")).ok()
}

/// The topics there are whose names match a pattern.
pub fn find(pattern: &Regex, topics: &Topics) -> Vec<TopicId> {
    topics
        .all()
        .iter()
        .filter(|topic| pattern.is_match(topic.name.as_bytes()))
        .map(|topic| topic.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_to_match_the_whole_of_a_name() {
        let names = ["a.b", "a.bc", "xa.b", "a"];
        let find = |text: &str| -> Vec<&str> {
            let pattern = pattern(text).unwrap();
            names.into_iter().filter(|name| pattern.is_match(name.as_bytes())).collect()
        };
        assert_eq!(find(r"a\.b"), ["a.b"]);
        assert_eq!(find(r"a\.b|a"), ["a.b", "a"]);
        assert_eq!(find("a.*"), ["a.b", "a.bc", "a"]);
        assert_eq!(find(r"\w"), ["a"]);
        assert!(find("").is_empty());
    }

    #[test]
    fn what_is_no_pattern_or_too_large_a_one_is_refused() {
        for text in ["(", "a)(b", "[", r"\p{Nope}", "(?:a{1000}){1000}", "(?x)a #"] {
            assert!(pattern(text).is_none(), "{text}");
        }
    }
}
