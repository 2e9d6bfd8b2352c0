//! Which tables are captured so far that nothing more has to be told of what was missing of them: saved, so that each gap is
//! told once, and each table that appears is read once.

use std::collections::BTreeMap;

use crate::postgres::catalog::TrackedTable;
use crate::postgres::publication::Roots;
use crate::state::{StateError, Store};

/// The saved fact that holds them: OIDs, with a sign behind those of which only inserts are captured, and the OID of the
/// table as which it is told where that is another, with its attachment.
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
    /// By which attachment, where that is another table; earlier versions have not saved it.
    pub attachment: Option<i64>,
}

impl Announcement {
    /// What there is to know of a table that is where it belongs.
    pub fn of(table: &TrackedTable, roots: &Roots) -> Self {
        let told_as = roots.told_as(table);
        let attachment = table.attachment.filter(|_| told_as != table.oid);
        Announcement { extent: Extent::of(table), told_as, attachment }
    }

    /// Whether consumers have all that is known of the table so, under the name that it has at `present`.
    pub fn is_of(&self, present: &Announcement) -> bool {
        let is_attached = |attachment| present.attachment == Some(attachment);
        self.told_as == present.told_as && self.attachment.is_none_or(is_attached)
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
        let (told_as, attachment) = match told_as.map(|root| root.split_once(':').unwrap_or((root, ""))) {
            None => (oid, None),
            Some((root, "")) => (root.parse().ok()?, None),
            Some((root, attachment)) => (root.parse().ok()?, Some(attachment.parse().ok()?)),
        };
        Some((oid, Announcement { extent, told_as, attachment }))
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
        match (announcement.told_as, announcement.attachment) {
            (told_as, _) if told_as == *oid => format!("{oid}{sign}"),
            (root, None) => format!("{oid}{sign}@{root}"),
            (root, Some(attachment)) => format!("{oid}{sign}@{root}:{attachment}"),
        }
    };
    store.set_fact(task, ANNOUNCED, &tables.iter().map(write).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DataDir;

    #[test]
    fn what_is_announced_is_remembered_with_its_extent_name_and_attachment() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&DataDir::open(directory.path()).unwrap()).unwrap();
        store.add_task("t", "{}", "created", "", 0).unwrap();
        assert_eq!(announced_tables(&store, "t").unwrap(), Announced::new());
        let of = |extent, told_as| Announcement { extent, told_as, attachment: None };
        let attached = |extent, attachment| Announcement { attachment, ..of(extent, 16_384) };
        let announced = Announced::from([
            (16_384, of(Extent::Full, 16_384)),
            (16_390, of(Extent::Full, 16_384)),
            (16_391, of(Extent::Inserts, 16_384)),
            (16_392, attached(Extent::Full, Some(i64::MIN))),
            (16_393, attached(Extent::Inserts, Some(7))),
            (u32::MAX, of(Extent::Inserts, u32::MAX)),
        ]);
        set_announced_tables(&store, "t", &announced).unwrap();
        assert_eq!(announced_tables(&store, "t").unwrap(), announced);
    }

    /// Where the attachment was not saved it may be any, so that no tree is read only because Millrace is another.
    #[test]
    fn another_name_and_another_attachment_are_not_what_was_told() {
        let of = |told_as, attachment| Announcement { extent: Extent::Full, told_as, attachment };
        let told = of(16_384, Some(1));
        assert!(told.is_of(&told) && of(16_384, None).is_of(&told));
        for present in [of(16_384, Some(2)), of(16_384, None), of(16_390, Some(1)), of(16_390, None)] {
            assert!(!told.is_of(&present), "{present:?}");
        }
    }
}
