//! Which of a database's tables a task tracks: patterns of their names.
//!
//! A pattern is `schema.table`. In both parts `*` stands for any characters and `?` for one; every other character is
//! itself, upper and lower case apart. A part in double quotes is taken as it is, with `""` for a double quote: so every
//! name can be written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longer than two names whose every character is quoted.
const MAX_PATTERN_BYTES: usize = 300;
/// Patterns of each list.
pub const MAX_PATTERNS: usize = 1_000;

/// A pattern of tables' names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    schema: Glob,
    table: Glob,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has one part.
    #[error("'{0}' names no schema; write public.{0}, or *.{0} for all schemas")]
    NoSchema(String),
    /// It cannot be read.
    #[error(
        "'{0}' is not schema.table; put a name that has a dot, a double quote, * or ? of its own in double quotes, and \
         double the quotes inside"
    )]
    Form(String),
    /// It is longer than any name.
    #[error("a pattern of tables has more than {MAX_PATTERN_BYTES} bytes; use * for a part of it")]
    TooLong,
}

impl Pattern {
    /// The pattern of every table: `*.*`.
    pub fn all() -> Self {
        let any = || Glob(vec![Token::Any]);
        Pattern { schema: any(), table: any() }
    }

    /// What schema and table are LIKE, for the server to match them.
    pub fn like(&self) -> (String, String) {
        (self.schema.like(), self.table.like())
    }

    /// Whether a table is meant.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let form = || PatternError::Form(text.to_owned());
        let (schema, rest) = Glob::read(text).ok_or_else(form)?;
        if rest.is_empty() {
            return Err(PatternError::NoSchema(text.to_owned()));
        }
        let rest = rest.strip_prefix('.').ok_or_else(form)?;
        match Glob::read(rest) {
            Some((table, "")) => Ok(Pattern { schema, table }),
            _ => Err(form()),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// One part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Any,
}

impl Glob {
    /// Reads a part, and gives what follows it.
    fn read(text: &str) -> Option<(Glob, &str)> {
        let mut tokens = Vec::new();
        let Some(quoted) = text.strip_prefix('"') else {
            let end = text.find('.').unwrap_or(text.len());
            let (part, rest) = text.split_at(end);
            for character in part.chars() {
                tokens.push(match character {
                    '"' => return None,
                    '?' => Token::One,
                    '*' => Token::Any,
                    other => Token::Literal(other),
                });
            }
            return (!tokens.is_empty()).then_some((Glob(tokens), rest));
        };
        let mut rest = quoted;
        loop {
            let (part, after) = rest.split_once('"')?;
            tokens.extend(part.chars().map(Token::Literal));
            match after.strip_prefix('"') {
                Some(more) => {
                    tokens.push(Token::Literal('"'));
                    rest = more;
                }
                None => return (!tokens.is_empty()).then_some((Glob(tokens), after)),
            }
        }
    }

    fn like(&self) -> String {
        let mut like = String::new();
        for token in &self.0 {
            match token {
                Token::Any => like.push('%'),
                Token::One => like.push('_'),
                Token::Literal(special @ ('%' | '_' | '\\')) => like.extend(['\\', *special]),
                Token::Literal(other) => like.push(*other),
            }
        }
        like
    }

    /// Goes through the name once, and back to behind the last `*` where it does not fit: at most the product of both
    /// lengths in steps.
    fn matches(&self, name: &str) -> bool {
        let mut tokens = self.0.as_slice();
        let mut rest = name.chars();
        let mut last_any = None;
        loop {
            match (tokens.split_first(), rest.clone().next()) {
                (Some((Token::Any, behind)), _) => {
                    tokens = behind;
                    last_any = Some((behind, rest.clone()));
                    continue;
                }
                (None, None) => return true,
                (Some((Token::One, behind)), Some(_)) => tokens = behind,
                (Some((Token::Literal(wanted), behind)), Some(found)) if *wanted == found => tokens = behind,
                _ => {
                    // What the last `*` stands for is longer by one.
                    let Some((behind, from)) = &mut last_any else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (tokens, rest) = (*behind, from.clone());
                    continue;
                }
            }
            rest.next();
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs_quotes = |token: &Token| matches!(token, Token::Literal('.' | '"' | '?' | '*'));
        let quote = if self.0.iter().any(needs_quotes) { "\"" } else { "" };
        f.write_str(quote)?;
        for token in &self.0 {
            match token {
                Token::Literal('"') => f.write_str("\"\"")?,
                Token::Literal(other) => write!(f, "{other}")?,
                Token::One => f.write_str("?")?,
                Token::Any => f.write_str("*")?,
            }
        }
        f.write_str(quote)
    }
}

/// What a task tracks: the tables that a pattern of `include` means and none of `exclude` does. A partition is what its
/// partitioned table is, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ObjectsChange")]
pub struct Objects {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// Lists of patterns that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectsError {
    /// Nothing is included.
    #[error("no tables are named; write *.* for the whole database")]
    Nothing,
    /// A list is too long.
    #[error("there are more than {MAX_PATTERNS} patterns of tables; use * to say it with fewer")]
    TooMany,
    /// What is to be taken away is not there.
    #[error(
        "{pattern} is none of the patterns that are tracked ({}); to leave a table out of a wider one, exclude it",
        list(.included)
    )]
    NotIncluded {
        /// What was to be taken away.
        pattern: Box<Pattern>,
        /// What is tracked.
        included: Vec<Pattern>,
    },
}

/// What is to become of [`Objects`]; a list that is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectsChange {
    /// The tables to track.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<Pattern>>,
    /// Those of them to leave out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<Pattern>>,
}

impl Default for Objects {
    fn default() -> Self {
        Objects { include: vec![Pattern::all()], exclude: Vec::new() }
    }
}

impl TryFrom<ObjectsChange> for Objects {
    type Error = ObjectsError;

    fn try_from(change: ObjectsChange) -> Result<Self, ObjectsError> {
        change.apply(&Objects::default())
    }
}

impl ObjectsChange {
    /// The objects with this change. A pattern that stands twice in a list is kept once.
    ///
    /// # Errors
    /// [`ObjectsError`]
    pub fn apply(self, objects: &Objects) -> Result<Objects, ObjectsError> {
        let include = once(self.include.unwrap_or_else(|| objects.include.clone()))?;
        let exclude = once(self.exclude.unwrap_or_else(|| objects.exclude.clone()))?;
        if include.is_empty() { Err(ObjectsError::Nothing) } else { Ok(Objects { include, exclude }) }
    }
}

/// What is to become of single patterns of [`Objects`], whatever the others are: so that two people who change them at the
/// same time both have their way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectsEdit {
    /// To be tracked from now on, and excluded no longer.
    pub add: Vec<Pattern>,
    /// Those among the tracked that are not to be any more.
    pub remove: Vec<Pattern>,
    /// To be left out, whatever includes them.
    pub exclude: Vec<Pattern>,
}

impl ObjectsEdit {
    /// The objects with this change.
    ///
    /// # Errors
    /// [`ObjectsError`]
    pub fn apply(self, objects: &Objects) -> Result<Objects, ObjectsError> {
        let Objects { mut include, mut exclude } = objects.clone();
        if let Some(pattern) = self.remove.iter().find(|pattern| !include.contains(pattern)) {
            return Err(ObjectsError::NotIncluded { pattern: Box::new(pattern.clone()), included: include });
        }
        include.retain(|pattern| !self.remove.contains(pattern));
        exclude.retain(|pattern| !self.add.contains(pattern));
        include.extend(self.add);
        exclude.extend(self.exclude);
        ObjectsChange { include: Some(include), exclude: Some(exclude) }.apply(objects)
    }
}

fn once(patterns: Vec<Pattern>) -> Result<Vec<Pattern>, ObjectsError> {
    if patterns.len() > MAX_PATTERNS {
        return Err(ObjectsError::TooMany);
    }
    let mut kept = Vec::new();
    for pattern in patterns {
        if !kept.contains(&pattern) {
            kept.push(pattern);
        }
    }
    Ok(kept)
}

impl Objects {
    /// The tables to track.
    pub fn include(&self) -> &[Pattern] {
        &self.include
    }

    /// Those of them to leave out.
    pub fn exclude(&self) -> &[Pattern] {
        &self.exclude
    }

    /// Whether a table is tracked that has these names, as schema and table: its own, and those of the partitioned tables
    /// above it.
    pub fn select<'n>(&self, names: impl Iterator<Item = (&'n str, &'n str)> + Clone) -> bool {
        let mean = |patterns: &[Pattern]| {
            names.clone().any(|(schema, table)| patterns.iter().any(|pattern| pattern.matches(schema, table)))
        };
        mean(&self.include) && !mean(&self.exclude)
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.include))?;
        if self.exclude.is_empty() { Ok(()) } else { write!(f, " without {}", list(&self.exclude)) }
    }
}

/// Patterns as a person reads them.
pub fn list(patterns: &[Pattern]) -> String {
    if patterns.is_empty() {
        return "none".to_owned();
    }
    patterns.iter().map(Pattern::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn objects(json: &str) -> Result<Objects, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pattern_means_tables_by_name() {
        for (text, schema, table, meant) in [
            ("*.*", "any", "thing", true),
            ("public.orders", "public", "orders", true),
            ("public.orders", "public", "Orders", false),
            ("public.orders", "public", "orders_old", false),
            ("public.orders*", "public", "orders_old", true),
            ("public.orders*", "public", "orders", true),
            ("*.t?", "a", "t1", true),
            ("*.t?", "a", "t", false),
            ("*.t?", "a", "t12", false),
            ("*a*b.*", "xxaxxabxb", "t", true),
            ("*a*b.*", "xxaxxabxbc", "t", false),
            ("\"od.d\".\"a\"\"b*\"", "od.d", "a\"b*", true),
            ("\"od.d\".\"a\"\"b*\"", "od.d", "a\"bc", false),
            ("Größe.??", "Größe", "éé", true),
            ("a.with space", "a", "with space", true),
        ] {
            assert_eq!(pattern(text).matches(schema, table), meant, "{text} {schema} {table}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_what_to_write() {
        let refused = |text: &str| text.parse::<Pattern>().unwrap_err().to_string();
        assert_eq!(
            refused("orders"),
            "'orders' names no schema; write public.orders, or *.orders for all schemas"
        );
        for text in ["", ".", "a.", ".a", "a.b.c", "a.\"b", "a.b\"c\"", "\"a\"b.c", "\"\".a", "a.\"\""] {
            assert!(refused(text).contains("is not schema.table"), "{text}");
        }
        assert!(refused(&format!("a.{}", "x".repeat(300))).contains("more than 300 bytes"));
    }

    #[test]
    fn what_is_excluded_is_not_selected_whatever_includes_it() {
        let objects = objects(r#"{"include":["public.*","sales.orders"],"exclude":["*.tmp_*"]}"#).unwrap();
        let select = |names: &[(&str, &str)]| objects.select(names.iter().copied());
        assert!(select(&[("public", "a")]) && select(&[("sales", "orders")]));
        assert!(!select(&[("sales", "other")]) && !select(&[("public", "tmp_1")]));
        // A partition, and its partitioned table.
        assert!(select(&[("elsewhere", "orders_1"), ("sales", "orders")]));
        assert!(!select(&[("public", "part"), ("public", "tmp_root")]));
        assert_eq!(objects.to_string(), "public.*, sales.orders without *.tmp_*");
    }

    #[test]
    fn lists_have_defaults_and_bounds() {
        assert_eq!(objects("{}"), Ok(Objects::default()));
        assert_eq!(Objects::default().to_string(), "*.*");
        assert!(objects(r#"{"include":[]}"#).unwrap_err().contains("write *.* for the whole database"));
        assert!(objects(r#"{"only":[]}"#).unwrap_err().contains("expected `include` or `exclude`"));
        assert!(objects(r#"{"include":["a"]}"#).unwrap_err().contains("write public.a"));
        let many: Vec<String> = (0..=MAX_PATTERNS).map(|number| format!("a.t{number}")).collect();
        let many = serde_json::to_string(&many).unwrap();
        assert!(objects(&format!(r#"{{"exclude":{many}}}"#)).unwrap_err().contains("use * to say it"));
        let twice = objects(r#"{"include":["a.b","a.\"b\""]}"#).unwrap();
        assert_eq!(twice.include(), [pattern("a.b")]);
        let change = ObjectsChange { exclude: Some(vec![pattern("a.c")]), ..ObjectsChange::default() };
        assert_eq!(change.apply(&twice).unwrap().to_string(), "a.b without a.c");
    }

    #[test]
    fn patterns_are_added_removed_and_excluded() {
        let start = objects(r#"{"include":["a.*","b.t"],"exclude":["a.x"]}"#).unwrap();
        let edited = |edit: &str| {
            let edit: ObjectsEdit = serde_json::from_str(edit).unwrap();
            edit.apply(&start).map(|objects| objects.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(edited(r#"{"add":["c.t","b.t"]}"#).unwrap(), "a.*, b.t, c.t without a.x");
        assert_eq!(edited(r#"{"add":["a.x"],"remove":["b.t"]}"#).unwrap(), "a.*, a.x");
        assert_eq!(edited(r#"{"exclude":["b.t"]}"#).unwrap(), "a.*, b.t without a.x, b.t");
        assert!(edited(r#"{"remove":["a.y"]}"#).unwrap_err().contains("tracked (a.*, b.t); to leave"));
        assert!(edited(r#"{"remove":["a.*","b.t"]}"#).unwrap_err().contains("*.*"));
    }

    /// The plain meaning, by trying every length that a `*` may stand for.
    fn means(tokens: &[Token], name: &[char]) -> bool {
        match (tokens.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((Token::Any, rest)), _) => (0..=name.len()).any(|length| means(rest, &name[length..])),
            (Some((Token::One, rest)), Some((_, more))) => means(rest, more),
            (Some((Token::Literal(wanted), rest)), Some((found, more))) => {
                wanted == found && means(rest, more)
            }
            _ => false,
        }
    }

    fn glob(characters: &'static str) -> impl Strategy<Value = Glob> {
        let token = prop_oneof![
            3 => prop::sample::select(characters.chars().collect::<Vec<_>>()).prop_map(Token::Literal),
            1 => Just(Token::One),
            2 => Just(Token::Any),
        ];
        prop::collection::vec(token, 1..8).prop_map(Glob)
    }

    proptest! {
        #[test]
        fn matching_means_what_is_plainly_meant(glob in glob("ab"), name in "[ab]{0,10}") {
            let characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(glob.matches(&name), means(&glob.0, &characters));
        }

        #[test]
        fn every_name_can_be_written_and_means_itself_alone(
            schema in "[a.\"*? é]{1,6}", table in "[a.\"*? é]{1,6}", other in "[a.\"*? é]{1,6}"
        ) {
            let literal = |name: &str| Glob(name.chars().map(Token::Literal).collect());
            let written = Pattern { schema: literal(&schema), table: literal(&table) };
            let read = pattern(&written.to_string());
            prop_assert_eq!(&read, &written);
            prop_assert!(read.matches(&schema, &table));
            prop_assert_eq!(read.matches(&schema, &other), other == table);
        }

        #[test]
        fn what_is_read_is_written_as_it_means(text in "[a.\"*?]{0,10}") {
            if let Ok(read) = text.parse::<Pattern>() {
                prop_assert_eq!(pattern(&read.to_string()), read);
            }
        }
    }
}
