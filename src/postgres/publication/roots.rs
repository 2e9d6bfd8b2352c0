//! Under which name the changes of partitions come, and so the rows that they have.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Client;

use super::options::Partitions;
use crate::postgres::catalog::TrackedTable;
use crate::postgres::sql::SqlError;

/// The partitioned tables that are published, and whether their partitions are told under their names.
#[derive(Debug)]
pub struct Roots {
    by_root: bool,
    partitioned: HashMap<u32, TrackedTable>,
}

impl Roots {
    /// Those among the tables that are published.
    pub fn of<'t>(
        partitions: Partitions,
        published: impl Iterator<Item = &'t TrackedTable> + Clone,
    ) -> Roots {
        let by_root = partitions == Partitions::Root;
        let partitioned = published.clone().filter(|table| by_root && table.partitioned);
        let partitioned = partitioned.map(|table| (table.oid, table.clone())).collect();
        let mut roots = Roots { by_root, partitioned };
        for table in published {
            let root = roots.told_as(table);
            if let (Some(root), Some(sql)) = (roots.partitioned.get_mut(&root), &table.unreadable) {
                root.unreadable.get_or_insert_with(|| sql.clone());
            }
        }
        roots
    }

    /// OID of the table under whose name a table's changes come: the topmost above it that is published, or its own.
    pub fn told_as(&self, table: &TrackedTable) -> u32 {
        let mut above = table.ancestors.iter().rev().map(|above| above.oid);
        above.find(|oid| self.partitioned.contains_key(oid)).unwrap_or(table.oid)
    }

    /// Whether rows are told under a table's own name.
    pub fn has_rows(&self, table: &TrackedTable) -> bool {
        match table.partitioned {
            true => self.by_root && self.told_as(table) == table.oid,
            false => self.told_as(table) == table.oid || !self.by_root,
        }
    }

    /// The tables, as the stream names them, that have the rows of these.
    pub fn with_rows<'t>(&self, tables: impl Iterator<Item = &'t TrackedTable>) -> Vec<TrackedTable> {
        let tables = tables.filter(|table| self.by_root || !table.partitioned);
        let named = tables.map(|table| self.partitioned.get(&self.told_as(table)).unwrap_or(table));
        let named: BTreeMap<u32, &TrackedTable> = named.map(|table| (table.oid, table)).collect();
        named.into_values().cloned().collect()
    }
}

/// Whether anything has been written into a table since it was made, as far as can be told; `None` while somebody has it
/// locked.
///
/// # Errors
/// The server cannot be asked.
pub async fn was_written(client: &Client, oid: u32) -> Result<Option<bool>, SqlError> {
    // Even a row that is rolled back makes the file larger. What makes it smaller again, or another, leaves its traces.
    const SQL: &str = "
        SELECT coalesce(pg_relation_size(c.oid) > 0 OR c.reltuples >= 0 OR pg_relation_filenode(c.oid) <> c.oid, true)
        FROM pg_class c WHERE c.oid = $1";
    match client
        .query_opt(SQL, &[&oid])
        .await
        .map_err(|error| SqlError::new("see whether a partition is new", error))
    {
        Ok(row) => Ok(row.map(|row| row.try_get(0).unwrap_or(true))),
        Err(error) if error.is_transient() && error.sqlstate.is_some() => Ok(None),
        Err(error) => Err(error),
    }
}
