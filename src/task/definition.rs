//! What a task is to do, as it is saved. Holds no secret: the password comes with each start (I9).

use serde::{Deserialize, Serialize};

/// A change tracking task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDefinition {
    /// Its unique name: `[a-z0-9_]{1,40}`.
    pub name: String,
    /// The source database, without password.
    pub source: String,
    /// Output format.
    pub format: String,
    /// Partitions of the output's topic.
    pub partitions: u32,
    /// `none`, `table` or `key`.
    pub partition_by: String,
}

/// The most partitions that a topic may have.
pub const MAX_PARTITIONS: u32 = 10_000;

/// A task name made of a database's: lower case, everything else than letters and digits an underscore, cut at 40.
pub fn name_from_database(database: &str) -> String {
    let name: String = database
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(40)
        .collect();
    if name.is_empty() { "task".to_owned() } else { name }
}

/// Whether a text may be a task's name.
pub fn is_valid_name(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

impl TaskDefinition {
    /// Which flags differ between the saved definition and another, one sentence each.
    pub fn differences(&self, asked: &TaskDefinition) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, saved: &str, asked: &str| {
            if saved != asked {
                differences.push(format!("{what} is {saved}, not {asked}"));
            }
        };
        compare("--format", &self.format, &asked.format);
        compare("--partitions", &self.partitions.to_string(), &asked.partitions.to_string());
        compare("--partition-by", &self.partition_by, &asked.partition_by);
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_made_of_any_database_name_is_valid() {
        for database in ["shop", "Shop-EU", "", "größe", &"x".repeat(63)] {
            assert!(is_valid_name(&name_from_database(database)), "{database}");
        }
    }
}
