//! How far the reading of existing rows is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a reader has done and has to do; written once a chunk.
#[derive(Debug)]
pub struct ReadProgress {
    since: Instant,
    tables: Mutex<BTreeMap<u32, TableProgress>>,
}

/// How far one table is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableProgress {
    /// Schema and name, quoted; empty until the reader has looked at it.
    pub table: String,
    /// What happens to it.
    pub state: ReadState,
    /// Rows read under the present attempt.
    pub rows: u64,
    /// Bytes of them, as text.
    pub bytes: u64,
    /// Rows that the server expects to be there.
    pub estimated_rows: u64,
    /// What the table takes on disk.
    pub size: u64,
    /// The part of it that has been read, from 0 to 1.
    pub fraction: f64,
}

/// What happens to a table's existing rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadState {
    /// It waits for its turn, or for transactions that were open when it was asked for.
    #[default]
    Waiting,
    /// They are being read.
    Reading,
    /// They have been read, or there is no such table.
    Done,
    /// They cannot be read.
    Refused,
}

/// All tables together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadTotals {
    /// Tables.
    pub tables: u64,
    /// Tables that are not waiting nor being read any more.
    pub tables_done: u64,
    /// Rows read.
    pub rows: u64,
    /// Bytes of them, as text.
    pub bytes: u64,
    /// Rows that the server expects to be there.
    pub estimated_rows: u64,
    /// The part that has been read, from 0 to 1, by what tables take on disk.
    pub fraction: f64,
    /// How long the rest will take if it goes on like this; `None` while that cannot be told.
    pub time_left: Option<Duration>,
}

impl Default for ReadProgress {
    fn default() -> Self {
        ReadProgress { since: Instant::now(), tables: Mutex::default() }
    }
}

impl ReadProgress {
    pub(super) fn table(&self, oid: u32, change: impl FnOnce(&mut TableProgress)) {
        change(self.lock().entry(oid).or_default());
    }

    /// How far each table is, by its OID.
    pub fn tables(&self) -> BTreeMap<u32, TableProgress> {
        self.lock().clone()
    }

    /// How far all are together.
    pub fn totals(&self) -> ReadTotals {
        let tables = self.lock();
        let (mut totals, mut size, mut done) = (ReadTotals::default(), 0.0, 0.0);
        for table in tables.values() {
            totals.tables += 1;
            totals.tables_done += u64::from(table.is_done());
            totals.rows += table.rows;
            totals.bytes += table.bytes;
            totals.estimated_rows += table.estimated_rows.max(table.rows);
            let weight = table.size.max(1) as f64;
            size += weight;
            done += if table.is_done() { weight } else { weight * table.fraction };
        }
        totals.fraction = if size > 0.0 { done / size } else { 0.0 };
        let elapsed = self.since.elapsed().as_secs_f64();
        if totals.fraction > 0.0 {
            let left = elapsed * (1.0 - totals.fraction) / totals.fraction;
            totals.time_left = Duration::try_from_secs_f64(left).ok();
        }
        totals
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, TableProgress>> {
        self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl TableProgress {
    /// Whether nothing more is to be expected.
    pub fn is_done(&self) -> bool {
        matches!(self.state, ReadState::Done | ReadState::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_count_by_what_they_take_on_disk() {
        let progress = ReadProgress::default();
        assert_eq!(progress.totals(), ReadTotals::default());
        progress.table(1, |table| (table.size, table.fraction, table.rows) = (300, 0.5, 10));
        progress
            .table(2, |table| (table.size, table.state, table.estimated_rows) = (100, ReadState::Done, 7));
        let totals = progress.totals();
        assert_eq!((totals.tables, totals.tables_done, totals.rows, totals.estimated_rows), (2, 1, 10, 17));
        assert_eq!(totals.fraction, 250.0 / 400.0);
        assert!(totals.time_left.is_some());
    }
}
