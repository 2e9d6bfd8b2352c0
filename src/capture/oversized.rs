//! Records that are larger than the log takes: an output may have columns left out of them until they fit.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::change::{Before, Cell, CellKind, Change, Event, Row, TableShape};
use crate::format::{Format, FormatError, Sink, record_key};
use crate::log::record_batch::BatchBuilder;
use crate::log::{LogError, Record};

/// Header of a record that lacks columns because it would have been too large: their names, separated by commas.
pub const OVERSIZED_HEADER: &str = "millrace.oversized";

/// What becomes of a change whose record is larger than the log takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Oversized {
    /// The task fails, and names it
    #[default]
    Fail,
    /// Its largest columns are left out, as ones that the server has not sent
    Placeholder,
}

/// Encoded, no value becomes longer than this many times its length in text form …
const MOST_GROWTH: usize = 8;
/// … and nothing else in a record takes more than this, in bytes.
const MOST_BESIDE: usize = 256 << 10;
/// Shorter values, in bytes, are not worth leaving out.
const LEAST: usize = 64;

/// A row change without some of its columns.
#[derive(Debug, Default)]
pub(super) struct Shrunk {
    /// Indexes of the columns that are left out.
    columns: Vec<usize>,
    /// Their names, as the header has them.
    pub(super) names: String,
    old: Vec<Cell>,
    new: Vec<Cell>,
}

impl Shrunk {
    /// What has to be left out of an event so that the records that `format` makes of it fit; nothing of most.
    pub(super) fn of(
        event: &Event<'_>,
        format: &mut dyn Format,
        limit: usize,
    ) -> Result<Option<Self>, FormatError> {
        let Change::Row { table, before, after, .. } = event.change else { return Ok(None) };
        let size = after.or(before.map(row_of)).map_or(0, |row| row.size());
        if size.saturating_mul(MOST_GROWTH).saturating_add(MOST_BESIDE) <= limit {
            return Ok(None);
        }
        let key = record_key(table);
        let mut shrunk = Shrunk::default();
        loop {
            let (largest, size) = shrunk.largest(&key, table, before, after);
            // Encoded, it can be so much smaller, but no more.
            if size / MOST_GROWTH <= limit {
                let mut scale = Scale { limit: limit.saturating_sub(shrunk.names.len()) };
                match format.encode(&shrunk.event(event), &mut scale) {
                    Err(FormatError::Log(LogError::RecordTooLarge { size, .. })) if largest.is_none() => {
                        return Err(too_large(table, &key, size, limit));
                    }
                    Err(FormatError::Log(LogError::RecordTooLarge { .. })) => {}
                    Err(error) => return Err(error),
                    Ok(()) if shrunk.columns.is_empty() => return Ok(None),
                    Ok(()) => return Ok(Some(shrunk)),
                }
            }
            shrunk.leave_out(largest.unwrap_or_default(), table, before, after);
        }
    }

    /// The column, not one of the key, whose values in both rows are the longest, and their length.
    fn largest(
        &self,
        key: &[usize],
        table: &TableShape,
        before: Option<Before<'_>>,
        after: Option<Row<'_>>,
    ) -> (Option<usize>, usize) {
        let rows = [before.map(row_of), after];
        let length = |column: usize| -> usize {
            let cells = rows.iter().flatten().filter_map(|row| row.cells().get(column));
            cells.map(|cell| cell.len as usize).sum()
        };
        let columns = 0..table.columns.len();
        let candidates = columns.filter(|column| !key.contains(column) && !self.columns.contains(column));
        let largest = candidates.map(|column| (length(column), column)).max();
        match largest.filter(|(length, _)| *length >= LEAST) {
            Some((length, column)) => (Some(column), length),
            None => (None, 0),
        }
    }

    fn leave_out(
        &mut self,
        column: usize,
        table: &TableShape,
        before: Option<Before<'_>>,
        after: Option<Row<'_>>,
    ) {
        self.columns.push(column);
        if !self.names.is_empty() {
            self.names.push(',');
        }
        self.names.push_str(table.columns.get(column).map_or("", |column| &column.name));
        for (cells, row) in [(&mut self.old, before.map(row_of)), (&mut self.new, after)] {
            cells.clear();
            cells.extend(row.iter().flat_map(|row| row.cells()).enumerate().map(|(index, cell)| {
                match self.columns.contains(&index) {
                    true => Cell { kind: CellKind::Unsent, start: 0, len: 0 },
                    false => *cell,
                }
            }));
        }
    }

    /// The event without these columns.
    pub(super) fn event<'a>(&'a self, event: &Event<'a>) -> Event<'a> {
        let Change::Row { operation, table, before, after } = event.change else { return *event };
        if self.columns.is_empty() {
            return *event;
        }
        let before = before.map(|before| match before {
            Before::Key(row) => Before::Key(row.with_cells(&self.old)),
            Before::Full(row) => Before::Full(row.with_cells(&self.old)),
        });
        let after = after.map(|row| row.with_cells(&self.new));
        Event { change: Change::Row { operation, table, before, after }, ..*event }
    }
}

fn row_of(before: Before<'_>) -> Row<'_> {
    let (Before::Key(row) | Before::Full(row)) = before;
    row
}

fn too_large(table: &TableShape, key: &[usize], size: usize, limit: usize) -> FormatError {
    let names = key.iter().filter_map(|&column| table.columns.get(column)).map(|column| column.name.as_str());
    FormatError::KeyTooLarge {
        schema: table.schema.clone(),
        table: table.name.clone(),
        key: names.collect::<Vec<_>>().join(", "),
        size,
        limit,
    }
}

/// Takes no record, but tells whether each fits.
struct Scale {
    limit: usize,
}

impl Sink for Scale {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let size = BatchBuilder::size_of(record) + OVERSIZED_HEADER.len();
        if size > self.limit { Err(LogError::RecordTooLarge { size, limit: self.limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, Lsn, Operation, Phase, ReplicaIdentity, Timestamp, Transaction, Value};
    use crate::format::FormatName;

    fn table() -> TableShape {
        let column = |name: &str, identity| Column {
            name: name.to_owned(),
            type_oid: 25,
            base_oid: 25,
            type_modifier: -1,
            form: crate::change::TypeForm::Plain,
            identity,
        };
        TableShape {
            oid: 1,
            schema: "public".to_owned(),
            name: "docs".to_owned(),
            identity: ReplicaIdentity::Full,
            columns: vec![column("id", true), column("a", true), column("b", true), column("c", true)],
            key: vec![0],
        }
    }

    /// What is left of a row whose columns have these lengths, in both formats.
    fn left(lengths: [usize; 4], limit: usize) -> Vec<Result<Option<Vec<usize>>, String>> {
        let shape = table();
        let data = vec![b'x'; lengths.iter().sum()];
        let mut start = 0;
        let cells = lengths.map(|len| {
            let cell = Cell { kind: CellKind::Text, start, len: len as u32 };
            start += len as u32;
            cell
        });
        let row = Row::new(&data, &cells);
        let transaction = Transaction {
            xid: 1,
            commit_lsn: Lsn(1),
            end_lsn: Lsn(1),
            commit_time: Timestamp(0),
            previous_commit_lsn: Lsn(0),
            phase: Phase::Stream,
        };
        let (operation, before) = (Operation::Update, Some(Before::Full(row)));
        let change = Change::Row { operation, table: &shape, before, after: Some(row) };
        let event = Event { transaction: &transaction, ordinal: 0, lsn: Lsn(1), change };
        let of_format = |name: FormatName| {
            let shrunk =
                Shrunk::of(&event, &mut *name.make("o", "d"), limit).map_err(|error| error.to_string())?;
            Ok(shrunk.map(|shrunk| {
                let Change::Row { before: Some(before), after: Some(after), .. } =
                    shrunk.event(&event).change
                else {
                    panic!("no row")
                };
                for &column in &shrunk.columns {
                    assert_eq!(
                        (row_of(before).get(column), after.get(column)),
                        (Value::Unsent, Value::Unsent)
                    );
                }
                assert_eq!(shrunk.names.split(',').count(), shrunk.columns.len());
                shrunk.columns
            }))
        };
        vec![of_format(FormatName::DebeziumJson), of_format(FormatName::Protobuf)]
    }

    #[test]
    fn the_largest_columns_go_until_the_record_fits() {
        for (lengths, columns) in [
            ([8, 100, 100, 100], None),
            ([8, 30_000, 400_000, 600_000], None),
            ([8, 30_000, 500_000, 600_000], Some(vec![3])),
            ([8, 900_000, 2_000_000, 900_000], Some(vec![2, 3])),
            ([8, 20_000_000, 20_000_000, 100], Some(vec![2, 1])),
        ] {
            for left in left(lengths, 2_100_000) {
                assert_eq!(left, Ok(columns.clone()), "{lengths:?}");
            }
        }
    }

    #[test]
    fn a_key_that_is_too_large_is_named() {
        for left in left([3_000_000, 100, 5_000_000, 10], 2_100_000) {
            let error = left.unwrap_err();
            assert!(error.contains("key (id) of public.docs"), "{error}");
        }
    }
}
