//! Rows from what `COPY … TO STDOUT (FORMAT binary)` sends (PostgreSQL manual, COPY, "Binary Format").

use super::CopyRowsError;
use crate::change::{Cell, CellKind, Row};

const SIGNATURE: [u8; 11] = *b"PGCOPY\n\xff\r\n\0";
/// Flags that say that what follows is of another layout than the one that is read here.
const CRITICAL_FLAGS: u32 = 0xFFFF_0000;
/// In place of a number of values: no row follows.
const END: u16 = 0xFFFF;
/// In place of a value's length: it is null.
const NULL: u32 = 0xFFFF_FFFF;

/// Gives the rows one by one.
#[derive(Debug)]
pub struct BinaryRows<B> {
    bytes: B,
    at: usize,
    ended: bool,
    /// Of each column, what its values are that are not null.
    kinds: Vec<CellKind>,
    cells: Vec<Cell>,
}

impl<B: AsRef<[u8]>> BinaryRows<B> {
    /// Reads the whole output of a COPY of columns whose values are of these kinds.
    pub fn new(bytes: B, kinds: Vec<CellKind>) -> Self {
        let cells = Vec::with_capacity(kinds.len());
        BinaryRows { bytes, at: 0, ended: false, kinds, cells }
    }

    /// How many bytes there are.
    pub fn size(&self) -> usize {
        self.bytes.as_ref().len()
    }

    /// The next row; `None` behind the last.
    ///
    /// # Errors
    /// When these are not the rows of such columns. Nothing can be read behind that.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, CopyRowsError> {
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        let mut rest = self.bytes.as_ref().get(self.at..).unwrap_or_default();
        if self.at == 0 {
            rest = after_header(rest).ok_or(CopyRowsError::Header)?;
        }
        let row = rest;
        let found = take(&mut rest).map(u16::from_be_bytes).ok_or(CopyRowsError::Cut)?;
        if found == END {
            return Ok(None);
        }
        if usize::from(found) != self.kinds.len() {
            return Err(CopyRowsError::Columns { found: found.into(), expected: self.kinds.len() });
        }
        self.cells.clear();
        for kind in &self.kinds {
            let length = take(&mut rest).map(u32::from_be_bytes).ok_or(CopyRowsError::Cut)?;
            let start = row.len() - rest.len();
            let (kind, len) = if length == NULL { (CellKind::Null, 0) } else { (*kind, length) };
            let start = u32::try_from(start).map_err(|_| CopyRowsError::TooLong(start))?;
            rest.split_off(..len as usize).ok_or(CopyRowsError::Cut)?;
            self.cells.push(Cell { kind, start, len });
        }
        self.at = self.bytes.as_ref().len() - rest.len();
        self.ended = false;
        Ok(Some(Row::new(row, &self.cells)))
    }
}

/// What follows the header.
fn after_header(mut bytes: &[u8]) -> Option<&[u8]> {
    let signature: [u8; SIGNATURE.len()] = take(&mut bytes)?;
    let flags = take(&mut bytes).map(u32::from_be_bytes)?;
    let extension = take(&mut bytes).map(u32::from_be_bytes)?;
    bytes.split_off(..extension as usize)?;
    (signature == SIGNATURE && flags & CRITICAL_FLAGS == 0).then_some(bytes)
}

/// Takes so many bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Value;
    use proptest::prelude::*;

    type Values = Vec<Option<Vec<u8>>>;

    fn header() -> Vec<u8> {
        [&SIGNATURE[..], &[0, 0, 0, 1, 0, 0, 0, 2], b"ex"].concat()
    }

    /// As the server writes rows.
    fn written(rows: &[Values]) -> Vec<u8> {
        let mut bytes = header();
        for row in rows {
            bytes.extend((row.len() as u16).to_be_bytes());
            for value in row {
                bytes.extend(value.as_ref().map_or(NULL, |value| value.len() as u32).to_be_bytes());
                bytes.extend(value.iter().flatten());
            }
        }
        bytes.extend(END.to_be_bytes());
        bytes
    }

    fn kinds(columns: usize) -> Vec<CellKind> {
        [CellKind::Text, CellKind::Binary].into_iter().cycle().take(columns).collect()
    }

    fn read(bytes: &[u8], columns: usize) -> Result<Vec<Values>, CopyRowsError> {
        let mut rows = BinaryRows::new(bytes, kinds(columns));
        let mut all = Vec::new();
        while let Some(row) = rows.next_row()? {
            let value = |(column, value)| match value {
                Value::Null => None,
                Value::Text(value) if column % 2 == 0 => Some(value.to_vec()),
                Value::Binary(value) if column % 2 == 1 => Some(value.to_vec()),
                other => panic!("{other:?} in column {column}"),
            };
            all.push(row.values().enumerate().map(value).collect());
        }
        Ok(all)
    }

    fn table() -> impl Strategy<Value = (usize, Vec<Values>)> {
        let value = || prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..12));
        let rows = move |columns| prop::collection::vec(prop::collection::vec(value(), columns), 0..6);
        (0usize..5).prop_flat_map(move |columns| (Just(columns), rows(columns)))
    }

    proptest! {
        #[test]
        fn what_the_server_writes_is_read_as_it_was((columns, rows) in table()) {
            prop_assert_eq!(read(&written(&rows), columns), Ok(rows));
        }

        #[test]
        fn what_is_cut_off_anywhere_is_refused((columns, rows) in table(), cut in any::<prop::sample::Index>()) {
            let bytes = written(&rows);
            let cut = bytes.get(..cut.index(bytes.len())).unwrap();
            let error = read(cut, columns).unwrap_err();
            prop_assert!(matches!(error, CopyRowsError::Cut | CopyRowsError::Header), "{}", error);
        }

        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes: Vec<u8>, has_header: bool, columns in 0usize..4) {
            let bytes = if has_header { [header(), bytes].concat() } else { bytes };
            let mut rows = BinaryRows::new(&bytes, kinds(columns));
            let mut count = 0;
            while !matches!(rows.next_row(), Ok(None)) {
                count += 1;
                prop_assert!(count <= bytes.len() + 1);
            }
        }
    }

    #[test]
    fn rows_of_others_are_refused() {
        let bytes = written(&[vec![None, None]]);
        assert_eq!(read(&bytes, 1), Err(CopyRowsError::Columns { found: 2, expected: 1 }));
        let mut bytes = written(&[]);
        // OIDs in front of rows, as old servers had them.
        bytes[SIGNATURE.len() + 1] = 1;
        assert_eq!(read(&bytes, 0), Err(CopyRowsError::Header));
    }
}
