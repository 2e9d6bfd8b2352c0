//! How a task's tables are published: under which name partitions are, which rows and columns of a table, and whether
//! changes that another server replicated into the source count.
//!
//! [`arrange`] makes of this and of the catalog what each table is published as. Two rules stand behind it. PostgreSQL
//! refuses a user's UPDATE where it could not publish the old row as filter or column list want it: such a table is
//! published insert-only instead (I7). And what one publication says of a table, the other may not contradict: filters
//! are joined by OR, and different column lists end the stream.

use std::collections::{HashMap, HashSet};
use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::postgres::catalog::TrackedTable;
use crate::postgres::objects::Pattern;
use crate::postgres::sql::quoted;

/// Under which name a partition's changes are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitions {
    /// Its own.
    #[default]
    Leaf,
    /// That of the partitioned table at the top.
    Root,
}

/// Which changes count, by where they were made. Tells nothing apart below PostgreSQL 16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// All.
    #[default]
    Any,
    /// Those that the source's own users made, and not what was replicated into it.
    None,
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Partitions::Leaf => "leaf",
            Partitions::Root => "root",
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Any => "any",
            Origin::None => "none",
        })
    }
}

/// How a task's tables are published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceOptions {
    /// Under which name partitions are told.
    pub partitions_as: Partitions,
    /// Which changes count.
    pub origin: Origin,
    /// What is told of single tables. Of several entries that mean a table the first counts.
    pub table_options: Vec<TableOptions>,
}

/// What is told of the tables that a pattern means. It means the partitions of a partitioned table, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableOptions {
    /// The tables.
    pub name: Pattern,
    /// Only rows for which this SQL condition holds.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Only these columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
}

/// Options that cannot be meant, or that a server does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Neither filter nor columns.
    #[error("table {0} has neither where nor columns; write one of them, or leave the table out")]
    Nothing(String),
    /// An empty condition, or one that cannot be sent.
    #[error("table {0} has no condition in where; write one, such as region = 'eu'")]
    Filter(String),
    /// No columns, or one twice.
    #[error(
        "table {0} has no list of different names in columns; write each column once, such as [\"id\", \"total\"]"
    )]
    Columns(String),
    /// More than anybody writes.
    #[error("there are more than {MAX_TABLES} tables with filters or columns; use * to say it with fewer")]
    TooMany,
    /// The server is too old.
    #[error(
        "{what} needs PostgreSQL {needs} or later, and the source is {has}; leave it out, or upgrade the source"
    )]
    Server {
        /// What was asked for.
        what: &'static str,
        /// The first version that has it.
        needs: u32,
        /// The source's.
        has: u32,
    },
}

/// The most entries of [`SourceOptions::table_options`].
const MAX_TABLES: usize = 1_000;

impl SourceOptions {
    /// Makes sure that they can be meant.
    ///
    /// # Errors
    /// The first thing that cannot.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.table_options.len() > MAX_TABLES {
            return Err(OptionsError::TooMany);
        }
        for TableOptions { name, filter, columns } in &self.table_options {
            let name = || name.to_string();
            if filter.is_none() && columns.is_none() {
                return Err(OptionsError::Nothing(name()));
            }
            if filter.as_ref().is_some_and(|text| text.trim().is_empty() || text.contains('\0')) {
                return Err(OptionsError::Filter(name()));
            }
            let is_list = |columns: &Vec<String>| {
                let different: HashSet<&String> = columns.iter().collect();
                !columns.is_empty()
                    && different.len() == columns.len()
                    && columns.iter().all(|column| !column.is_empty() && !column.contains('\0'))
            };
            if !columns.as_ref().is_none_or(is_list) {
                return Err(OptionsError::Columns(name()));
            }
        }
        Ok(())
    }

    /// Makes sure that a server of this `server_version_num` can do it.
    ///
    /// # Errors
    /// The first thing that it cannot.
    pub fn check_server(&self, version_num: u32) -> Result<(), OptionsError> {
        let asked = [
            (self.table_options.iter().any(|table| table.filter.is_some()), "a filter of rows (where)", 15),
            (self.table_options.iter().any(|table| table.columns.is_some()), "a list of columns", 15),
            (self.origin == Origin::None, "origin none", 16),
        ];
        let has = version_num / 10_000;
        match asked.into_iter().find(|&(is_asked, _, needs)| is_asked && has < needs) {
            Some((_, what, needs)) => Err(OptionsError::Server { what, needs, has }),
            None => Ok(()),
        }
    }

    /// In what `wanted` differs from this, which is saved; a sentence each.
    pub fn differences(&self, wanted: &SourceOptions) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differs = |setting: &str, saved: String, wanted: String| {
            if saved != wanted {
                differences.push(format!("{setting} is {saved}, not {wanted}"));
            }
        };
        differs("partitions_as", self.partitions_as.to_string(), wanted.partitions_as.to_string());
        differs("origin", self.origin.to_string(), wanted.origin.to_string());
        let list = |options: &SourceOptions| {
            let list = options.table_options.iter().map(TableOptions::to_string).collect::<Vec<_>>();
            if list.is_empty() { "empty".to_owned() } else { list.join(", ") }
        };
        differs("table_options", list(self), list(wanted));
        differences
    }

    /// The entries that mean none of these tables.
    pub fn unmatched(&self, tables: &[TrackedTable]) -> Vec<String> {
        let means =
            |options: &TableOptions, table: &TrackedTable| options.name.matches(&table.schema, &table.name);
        let idle = |options: &&TableOptions| !tables.iter().any(|table| means(options, table));
        self.table_options.iter().filter(idle).map(|options| options.name.to_string()).collect()
    }

    /// What is said of a table.
    fn of(&self, table: &TrackedTable) -> Option<&TableOptions> {
        let means =
            |options: &&TableOptions| table.names().any(|(schema, name)| options.name.matches(schema, name));
        self.table_options.iter().find(means)
    }
}

impl fmt::Display for TableOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(columns) = &self.columns {
            write!(f, " ({})", names(columns))?;
        }
        if let Some(filter) = &self.filter {
            write!(f, " where {filter}")?;
        }
        Ok(())
    }
}

/// How a table is published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Published {
    /// Its updates and deletes, too.
    pub updates: bool,
    /// Only rows for which this condition holds.
    pub filter: Option<String>,
    /// Only these columns, sorted.
    pub columns: Option<Vec<String>>,
    /// Why a table with rows is published insert-only.
    pub weakness: Option<Weakness>,
}

impl Published {
    /// Whether it waits for the server to tell which columns its filter looks at.
    pub(super) fn is_undecided(&self) -> bool {
        self.filter.is_some() && !self.updates && self.weakness.is_none()
    }
}

/// Why the updates and deletes of a table are not published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Weakness {
    /// Nothing tells its old rows.
    NoIdentity,
    /// Its replica identity holds a generated column, which the server does not send.
    GeneratedIdentity,
    /// It is told under the name of a partitioned table whose old rows are told by other columns.
    UnlikeRoot {
        /// That table.
        root: String,
    },
    /// Columns of its replica identity are not listed.
    Columns(Vec<String>),
    /// Its filter looks at columns that old rows do not tell.
    Filter(Vec<String>),
    /// The filter of the partitioned table under whose name it is told looks at columns that are not of its primary key,
    /// or one of the partitions has another replica identity.
    RootFilter {
        /// That table.
        root: String,
    },
}

impl Weakness {
    /// What mends it.
    pub fn remedy(&self, table: &TrackedTable) -> String {
        match self {
            Weakness::NoIdentity => {
                format!("give it a primary key, or run: ALTER TABLE {table} REPLICA IDENTITY FULL;")
            }
            Weakness::GeneratedIdentity => format!(
                "give it a primary key without generated columns, or, before PostgreSQL 18, run: \
                 ALTER TABLE {table} REPLICA IDENTITY FULL;"
            ),
            Weakness::Filter(_) => format!("run: ALTER TABLE {table} REPLICA IDENTITY FULL;"),
            Weakness::UnlikeRoot { root } => {
                format!("give {table} and {root} the same primary key and REPLICA IDENTITY")
            }
            Weakness::Columns(missing) => format!("add {} to its columns", names(missing)),
            Weakness::RootFilter { root } => {
                format!(
                    "filter {root} by columns of its primary key, and give all its partitions REPLICA IDENTITY DEFAULT"
                )
            }
        }
    }
}

/// Completes "because …".
impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Weakness::NoIdentity => f.write_str("old rows cannot be told without a replica identity"),
            Weakness::GeneratedIdentity => {
                f.write_str("its replica identity holds a generated column, which the server does not send")
            }
            Weakness::UnlikeRoot { root } => {
                write!(f, "it is told as {root}, which has another replica identity")
            }
            Weakness::Columns(missing) => {
                write!(f, "its columns leave out {} of its replica identity", names(missing))
            }
            Weakness::Filter(beyond) => {
                write!(f, "its filter uses {}, which its replica identity does not hold", names(beyond))
            }
            Weakness::RootFilter { root } => {
                write!(f, "the filter of {root} would make updates in one of its partitions fail")
            }
        }
    }
}

fn names(columns: &[String]) -> String {
    columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
}

/// Names of `wanted` that are not among `there`.
fn missing(wanted: &[String], there: &[String]) -> Vec<String> {
    wanted.iter().filter(|name| !there.contains(name)).cloned().collect()
}

/// Which columns filters look at, by the table's OID: the server tells once a table is listed with its filter.
pub(super) type FilterColumns = HashMap<u32, Vec<String>>;

/// Says of each table how it is published, and leaves out those that may not be listed.
pub(super) fn arrange(
    options: &SourceOptions,
    tables: &[TrackedTable],
    known: &FilterColumns,
) -> Vec<TrackedTable> {
    let mut tables = tables.to_vec();
    let by_root = options.partitions_as == Partitions::Root;
    // The topmost that is tracked: a partition may be, without the tables above it.
    let partitioned: HashMap<u32, TrackedTable> =
        tables.iter().filter(|table| table.partitioned).map(|table| (table.oid, table.clone())).collect();
    let root_of = |table: &TrackedTable| {
        let mut above = table.ancestors.iter().rev().filter_map(|above| partitioned.get(&above.oid));
        above.next().filter(|_| by_root)
    };
    for table in &mut tables {
        let root = root_of(table);
        let said = options.of(root.unwrap_or(table));
        let columns = said.and_then(|said| said.columns.clone()).map(|mut columns| {
            columns.sort_unstable();
            columns
        });
        let filter = said.and_then(|said| said.filter.clone());
        let unlike_root = root.filter(|root| root.identity != table.identity);
        let unlisted = columns.as_ref().map(|columns| missing(&table.identity, columns));
        let beyond =
            filter.as_ref().map(|_| known.get(&table.oid).map(|used| missing(used, &table.identity)));
        let weakness = match (unlike_root, unlisted, &beyond) {
            _ if !table.usable_identity => Some(if table.generated_identity {
                Weakness::GeneratedIdentity
            } else {
                Weakness::NoIdentity
            }),
            (Some(root), ..) => Some(Weakness::UnlikeRoot { root: root.to_string() }),
            (_, Some(missing), _) if !missing.is_empty() => Some(Weakness::Columns(missing)),
            (.., Some(Some(beyond))) if !beyond.is_empty() => Some(Weakness::Filter(beyond.clone())),
            _ => None,
        };
        let is_known = beyond.is_none_or(|beyond| beyond.is_some());
        let updates = weakness.is_none() && is_known && !table.partitioned;
        table.published =
            Published { updates, filter, columns, weakness: weakness.filter(|_| !table.partitioned) };
    }
    match by_root {
        true => arrange_filtered_trees(&mut tables, known, &partitioned),
        false => leave_out_trees_with_options(&mut tables),
    }
    tables
}

/// A partitioned table that is listed publishes all its partitions, without their filters and with all their columns.
fn leave_out_trees_with_options(tables: &mut Vec<TrackedTable>) {
    let narrowed =
        |table: &&TrackedTable| table.published.filter.is_some() || table.published.columns.is_some();
    let below: HashSet<u32> = tables
        .iter()
        .filter(narrowed)
        .flat_map(|table| table.ancestors.iter().map(|above| above.oid).chain([table.oid]))
        .collect();
    tables.retain(|table| !table.partitioned || !below.contains(&table.oid));
}

/// Under the root's name the root's filter counts, for inserts and for updates alike only when one publication has it for
/// both. That publication then makes users' updates fail in a partition whose old rows do not tell what the filter looks
/// at; a partition that is made later has the root's primary key.
fn arrange_filtered_trees(
    tables: &mut [TrackedTable],
    known: &FilterColumns,
    partitioned: &HashMap<u32, TrackedTable>,
) {
    let root = |table: &TrackedTable| {
        let mut above = table.ancestors.iter().rev().map(|above| above.oid).chain([table.oid]);
        above.find(|oid| partitioned.contains_key(oid))
    };
    let mut trees: HashMap<u32, bool> = HashMap::new();
    for table in tables.iter().filter(|table| table.published.filter.is_some()) {
        let Some(root) = root(table) else { continue };
        let fits = match table.partitioned {
            // A partition is told by the root's filter, whatever its own columns are.
            false => table.published.weakness.is_none(),
            true => {
                let used = known.get(&table.oid);
                table.default_identity && used.is_some_and(|used| missing(used, &table.identity).is_empty())
            }
        };
        *trees.entry(root).or_insert(true) &= fits;
    }
    for table in tables {
        let Some((root, fits)) = root(table).and_then(|root| Some((root, *trees.get(&root)?))) else {
            continue;
        };
        table.published.updates = fits && (table.partitioned || table.published.updates);
        if !fits && !table.partitioned && known.contains_key(&root) {
            let root = partitioned.get(&root).map(TrackedTable::to_string).unwrap_or_default();
            table.published.weakness.get_or_insert(Weakness::RootFilter { root });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::TableName;
    use proptest::prelude::*;

    const COLUMNS: [&str; 3] = ["a", "b", "c"];

    fn columns() -> impl Strategy<Value = Vec<String>> {
        prop::sample::subsequence(COLUMNS.to_vec(), 1..=3)
            .prop_map(|columns| columns.into_iter().map(str::to_owned).collect())
    }

    /// A root, partitions of it, one of them with a partition of its own, and a table by itself.
    fn tables() -> impl Strategy<Value = Vec<TrackedTable>> {
        let above: [&[u32]; 6] = [&[], &[0], &[0], &[0], &[3, 0], &[]];
        let name = |oid: u32| TableName { oid, schema: "s".to_owned(), name: format!("t{oid}") };
        let table = move |(oid, (usable_identity, identity, default_identity))| TrackedTable {
            oid,
            schema: "s".to_owned(),
            name: format!("t{oid}"),
            partitioned: oid == 0 || oid == 3,
            usable_identity,
            default_identity,
            identity: if usable_identity { identity } else { Vec::new() },
            ancestors: above[oid as usize].iter().map(|&oid| name(oid)).collect(),
            ..TrackedTable::default()
        };
        let facts = prop::collection::vec((any::<bool>(), columns(), any::<bool>()), 6);
        facts.prop_map(move |facts| (0..).zip(facts).map(table).collect())
    }

    fn options() -> impl Strategy<Value = SourceOptions> {
        let entry =
            (0u32..6, any::<bool>(), prop::option::of(columns())).prop_map(|(oid, filtered, columns)| {
                TableOptions {
                    name: format!("s.t{oid}").parse().unwrap(),
                    filter: (filtered || columns.is_none()).then(|| "a > 1".to_owned()),
                    columns,
                }
            });
        (any::<bool>(), prop::collection::vec(entry, 0..4)).prop_map(|(by_root, table_options)| {
            SourceOptions {
                partitions_as: if by_root { Partitions::Root } else { Partitions::Leaf },
                origin: Origin::Any,
                table_options,
            }
        })
    }

    proptest! {
        /// What PostgreSQL would refuse a user's UPDATE for, or end the stream for.
        #[test]
        fn nothing_is_published_that_would_make_an_update_fail_or_pass_by_a_filter(
            tables in tables(), options in options(),
            known in prop::collection::hash_map(0u32..6, columns(), 0..6),
        ) {
            prop_assert_eq!(options.check(), Ok(()));
            let arranged = arrange(&options, &tables, &known);
            let by_root = options.partitions_as == Partitions::Root;
            let narrowed = |table: &TrackedTable| {
                table.published.filter.is_some() || table.published.columns.is_some()
            };
            for table in &arranged {
                let Published { updates, filter, columns, weakness } = &table.published;
                let below = |other: &&TrackedTable| other.ancestors.iter().any(|above| above.oid == table.oid);
                if *updates && !table.partitioned {
                    prop_assert!(table.usable_identity && weakness.is_none());
                    prop_assert!(columns.as_ref().is_none_or(|listed| missing(&table.identity, listed).is_empty()));
                    let used = known.get(&table.oid);
                    let is_covered = used.is_some_and(|used| missing(used, &table.identity).is_empty());
                    prop_assert!(filter.is_none() || is_covered);
                }
                if table.partitioned {
                    prop_assert!(weakness.is_none() && (!updates || filter.is_some() && by_root));
                    prop_assert!(by_root || !narrowed(table));
                    prop_assert!(by_root || !arranged.iter().filter(below).any(narrowed));
                    let sound = |below: &TrackedTable| below.partitioned || below.published.weakness.is_none();
                    prop_assert!(!updates || arranged.iter().filter(below).all(sound));
                }
                if by_root && (1..=4).contains(&table.oid) {
                    let root = &arranged[0].published;
                    prop_assert_eq!((&root.filter, &root.columns), (filter, columns));
                    prop_assert!(!updates || table.partitioned || table.identity == arranged[0].identity);
                    prop_assert!(!updates || root.filter.is_none() || root.updates);
                }
            }
            let leaves = |tables: &[TrackedTable]| tables.iter().filter(|table| !table.partitioned).count();
            prop_assert_eq!(leaves(&arranged), leaves(&tables));
        }
    }

    #[test]
    fn options_are_read_as_they_are_saved_and_what_cannot_be_meant_is_refused() {
        let json = r#"{"partitions_as":"root","origin":"none",
            "table_options":[{"name":"public.o","where":"a > 1"},{"name":"s.*","columns":["a","b"]}]}"#;
        let options: SourceOptions = serde_json::from_str(json).unwrap();
        assert_eq!(options.check(), Ok(()));
        let again = serde_json::from_str(&serde_json::to_string(&options).unwrap()).unwrap();
        assert_eq!(options, again);
        assert_eq!(options.differences(&again), [] as [String; 0]);
        assert_eq!(
            SourceOptions::default().differences(&options),
            [
                "partitions_as is leaf, not root",
                "origin is any, not none",
                "table_options is empty, not public.o where a > 1, s.* (\"a\", \"b\")"
            ]
        );
        for wrong in
            [r#"{"name":"a.b"}"#, r#"{"name":"a.b","where":" "}"#, r#"{"name":"a.b","columns":["c","c"]}"#]
        {
            let options: SourceOptions =
                serde_json::from_str(&format!(r#"{{"table_options":[{wrong}]}}"#)).unwrap();
            assert!(options.check().is_err(), "{wrong}");
        }
        for (version, needs) in [(140_018, Some(15)), (150_018, Some(16)), (160_001, None)] {
            let found = match options.check_server(version) {
                Err(OptionsError::Server { needs, .. }) => Some(needs),
                other => other.map(|()| None).unwrap(),
            };
            assert_eq!(found, needs, "{version}");
        }
    }
}
