//! Which tables are captured so far that nothing more has to be told of what was missing of them: saved, so that each gap is
//! told once, and each table that appears is read once.

use std::collections::BTreeMap;

use crate::postgres::catalog::TrackedTable;
use crate::postgres::publication::Roots;
use crate::state::{StateError, Store};

/// The saved fact that holds them: OIDs, with a sign behind those of which only inserts are captured, and the OID of the
/// table as which it is told where that is another.
const ANNOUNCED: &str = "announced_tables";

/// How much of a table is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Inserts and truncates, for want of a usable replica identity.
    Inserts,
    /// Everything.
    Full,
}

impl Extent {
    /// What is captured of a table that is where it belongs.
    pub fn of(table: &TrackedTable) -> Self {
        if table.published.updates { Extent::Full } else { Extent::Inserts }
    }
}

/// What consumers know of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// How much of it is captured.
    pub extent: Extent,
    /// OID of the table as which it is told.
    pub told_as: u32,
}

impl Announcement {
    /// What there is to know of a table that is where it belongs.
    pub fn of(table: &TrackedTable, roots: &Roots) -> Self {
        Announcement { extent: Extent::of(table), told_as: roots.told_as(table) }
    }
}

/// By OID, the tables that are captured since the slot was made, whose rows have been read since, or whose gap event is
/// durable.
pub type Announced = BTreeMap<u32, Announcement>;

/// Those that are saved. Blocking.
///
/// # Errors
/// [`StateError`]
pub fn announced_tables(store: &Store, task: &str) -> Result<Announced, StateError> {
    let saved = store.fact(task, ANNOUNCED)?.unwrap_or_default();
    let read = |entry: &str| {
        let (table, told_as) =
            entry.split_once('@').map_or((entry, None), |(table, root)| (table, Some(root)));
        let (oid, extent) = match table.strip_suffix('-') {
            Some(oid) => (oid.parse().ok()?, Extent::Inserts),
            None => (table.parse().ok()?, Extent::Full),
        };
        let told_as = told_as.map_or(Some(oid), |root| root.parse().ok())?;
        Some((oid, Announcement { extent, told_as }))
    };
    Ok(saved.split(' ').filter_map(read).collect())
}

/// Saves them. Blocking.
///
/// # Errors
/// [`StateError`]
pub fn set_announced_tables(store: &Store, task: &str, tables: &Announced) -> Result<(), StateError> {
    let write = |(oid, announcement): (&u32, &Announcement)| {
        let sign = if announcement.extent == Extent::Inserts { "-" } else { "" };
        match announcement.told_as == *oid {
            true => format!("{oid}{sign}"),
            false => format!("{oid}{sign}@{}", announcement.told_as),
        }
    };
    store.set_fact(task, ANNOUNCED, &tables.iter().map(write).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DataDir;

    #[test]
    fn what_is_announced_is_remembered_with_its_extent_and_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&DataDir::open(directory.path()).unwrap()).unwrap();
        store.add_task("t", "{}", "created", "", 0).unwrap();
        assert_eq!(announced_tables(&store, "t").unwrap(), Announced::new());
        let of = |extent, told_as| Announcement { extent, told_as };
        let announced = Announced::from([
            (16_384, of(Extent::Full, 16_384)),
            (16_390, of(Extent::Full, 16_384)),
            (16_391, of(Extent::Inserts, 16_384)),
            (u32::MAX, of(Extent::Inserts, u32::MAX)),
        ]);
        set_announced_tables(&store, "t", &announced).unwrap();
        assert_eq!(announced_tables(&store, "t").unwrap(), announced);
    }
}
