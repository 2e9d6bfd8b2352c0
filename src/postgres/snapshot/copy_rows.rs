//! Rows from the lines of `COPY … TO STDOUT` (PostgreSQL manual, COPY, "Text Format").

use memchr::memchr3;

use crate::change::{Cell, CellKind, Row};

/// Gives the rows of lines one by one. Values are unescaped where they lie.
#[derive(Debug)]
pub struct CopyRows {
    lines: Vec<u8>,
    at: usize,
    columns: usize,
    cells: Vec<Cell>,
}

/// What COPY has sent is no rows of the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyRowsError {
    /// Too few or too many values.
    #[error("a row of COPY has {found} values, and the table {expected} columns")]
    Columns {
        /// Values in the row.
        found: usize,
        /// Columns of the table.
        expected: usize,
    },
    /// A row beyond 4 GiB.
    #[error("a row of COPY has {0} bytes, which no server sends")]
    TooLong(usize),
    /// In binary form there is a header in front.
    #[error("what COPY sent does not begin as its binary form does")]
    Header,
    /// In binary form the end is told.
    #[error("what COPY sent in binary form ends inside a row")]
    Cut,
}

impl CopyRows {
    /// Reads whole lines of a table with so many columns.
    pub fn new(lines: Vec<u8>, columns: usize) -> Self {
        CopyRows { lines, at: 0, columns, cells: Vec::with_capacity(columns) }
    }

    /// How many bytes there are.
    pub fn size(&self) -> usize {
        self.lines.len()
    }

    /// The next row; `None` behind the last.
    ///
    /// # Errors
    /// When the line is no row of the table. The line after it can be read all the same.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, CopyRowsError> {
        let line = self.at;
        if line >= self.lines.len() {
            return Ok(None);
        }
        self.cells.clear();
        let (mut field, mut is_last) = (line, false);
        while !is_last {
            let value = self.unescape(field);
            let length = value.read_to - line;
            if u32::try_from(length).is_err() {
                self.at = self.lines.len();
                return Err(CopyRowsError::TooLong(length));
            }
            let (start, len) = ((field - line) as u32, (value.end - field) as u32);
            self.cells.push(Cell { kind: value.kind, start, len });
            (field, is_last) = (value.read_to + 1, value.is_last);
        }
        self.at = field;
        // A table without columns has empty lines.
        if self.columns == 0 && matches!(self.cells[..], [Cell { kind: CellKind::Text, len: 0, .. }]) {
            self.cells.clear();
        }
        if self.cells.len() != self.columns {
            return Err(CopyRowsError::Columns { found: self.cells.len(), expected: self.columns });
        }
        Ok(Some(Row::new(self.lines.get(line..).unwrap_or_default(), &self.cells)))
    }

    /// Unescapes the value that begins at `start`.
    fn unescape(&mut self, start: usize) -> Unescaped {
        if let Some([b'\\', b'N', after @ ..]) = self.lines.get(start..)
            && matches!(after, [] | [b'\t' | b'\n', ..])
        {
            let is_last = after.first() != Some(&b'\t');
            return Unescaped { kind: CellKind::Null, end: start, read_to: start + 2, is_last };
        }
        let (mut read, mut end) = (start, start);
        loop {
            let rest = self.lines.get(read..).unwrap_or_default();
            let plain = memchr3(b'\t', b'\n', b'\\', rest).unwrap_or(rest.len());
            let escape = match rest.get(plain..).unwrap_or_default() {
                [b'\\', escaped @ ..] => Some(unescaped(escaped)),
                stop => {
                    let is_last = stop.first() != Some(&b'\t');
                    self.move_down(read, end, plain);
                    let (end, read_to) = (end + plain, read + plain);
                    return Unescaped { kind: CellKind::Text, end, read_to, is_last };
                }
            };
            self.move_down(read, end, plain);
            (read, end) = (read + plain, end + plain);
            if let Some((byte, length)) = escape {
                if let Some(place) = self.lines.get_mut(end) {
                    *place = byte;
                }
                (read, end) = (read + 1 + length, end + 1);
            }
        }
    }

    /// Closes the gap that escapes have left.
    fn move_down(&mut self, from: usize, to: usize, length: usize) {
        if from != to {
            self.lines.copy_within(from..from + length, to);
        }
    }
}

struct Unescaped {
    kind: CellKind,
    /// Where the value ends.
    end: usize,
    /// Where the tab or the line end behind it is.
    read_to: usize,
    is_last: bool,
}

/// The byte that an escape stands for, given what follows its backslash, and how many bytes of that it takes.
fn unescaped(escape: &[u8]) -> (u8, usize) {
    let digits = |from: &[u8], most: usize, radix: u32| {
        let digit = |byte: &u8| char::from(*byte).to_digit(radix);
        let digits = from.iter().take(most).map_while(digit);
        digits.fold((0u8, 0), |(value, count), digit| {
            (value.wrapping_mul(radix as u8).wrapping_add(digit as u8), count + 1)
        })
    };
    match escape {
        // A backslash at the very end stands for itself.
        [] => (b'\\', 0),
        [b'b', ..] => (0x08, 1),
        [b'f', ..] => (0x0c, 1),
        [b'n', ..] => (b'\n', 1),
        [b'r', ..] => (b'\r', 1),
        [b't', ..] => (b'\t', 1),
        [b'v', ..] => (0x0b, 1),
        [b'0'..=b'7', ..] => digits(escape, 3, 8),
        [b'x', hex @ ..] => match digits(hex, 2, 16) {
            (_, 0) => (b'x', 1),
            (byte, count) => (byte, 1 + count),
        },
        [other, ..] => (*other, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Value;
    use proptest::prelude::*;

    type Values = Vec<Option<Vec<u8>>>;

    fn read(lines: &[u8], columns: usize) -> Result<Vec<Values>, CopyRowsError> {
        let mut rows = CopyRows::new(lines.to_vec(), columns);
        let mut all = Vec::new();
        while let Some(row) = rows.next_row()? {
            all.push(
                row.values()
                    .map(|value| match value {
                        Value::Null => None,
                        Value::Text(text) => Some(text.to_vec()),
                        other => panic!("{other:?}"),
                    })
                    .collect(),
            );
        }
        Ok(all)
    }

    /// As the server writes a value.
    fn escape(value: &[u8], line: &mut Vec<u8>) {
        for &byte in value {
            let letter = match byte {
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                b'\\' => b'\\',
                plain => {
                    line.push(plain);
                    continue;
                }
            };
            line.extend([b'\\', letter]);
        }
    }

    fn lines(rows: &[Values]) -> Vec<u8> {
        let mut lines = Vec::new();
        for row in rows {
            for (index, value) in row.iter().enumerate() {
                if index > 0 {
                    lines.push(b'\t');
                }
                match value {
                    None => lines.extend(b"\\N"),
                    Some(value) => escape(value, &mut lines),
                }
            }
            lines.push(b'\n');
        }
        lines
    }

    fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
        let odd = prop::sample::select(b"\\N\t\n\r\x08\x0b\x0c.x0aZ".to_vec());
        prop::option::weighted(0.8, prop::collection::vec(prop_oneof![odd, any::<u8>()], 0..12))
    }

    fn table() -> impl Strategy<Value = (usize, Vec<Values>)> {
        let rows = |columns| prop::collection::vec(prop::collection::vec(value(), columns), 0..6);
        (0usize..5).prop_flat_map(move |columns| (Just(columns), rows(columns)))
    }

    proptest! {
        #[test]
        fn what_the_server_escapes_is_read_as_it_was((columns, rows) in table()) {
            prop_assert_eq!(read(&lines(&rows), columns), Ok(rows));
        }

        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes: Vec<u8>, columns in 0usize..4) {
            let mut rows = CopyRows::new(bytes.clone(), columns);
            let mut count = 0;
            while !matches!(rows.next_row(), Ok(None)) {
                count += 1;
                prop_assert!(count <= bytes.len());
            }
        }
    }

    #[test]
    fn escapes_that_servers_do_not_write_are_read_as_the_manual_has_them() {
        let row = |text: &str| read(text.as_bytes(), 1).unwrap().remove(0).remove(0);
        for (text, value) in [
            (r"\101\7\x41\x4\xg\q\.", "A\x07A\x04xgq."),
            (r"\Na", "Na"),
            (r"a\N", "aN"),
            (r"\", r"\"),
            ("\\\nb", "\nb"),
        ] {
            assert_eq!(row(text), Some(value.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(row("\\N"), None);
    }

    #[test]
    fn a_line_with_another_number_of_values_is_refused_and_the_next_one_read() {
        let mut rows = CopyRows::new(b"a\tb\nc\n\n".to_vec(), 1);
        assert_eq!(rows.next_row().unwrap_err(), CopyRowsError::Columns { found: 2, expected: 1 });
        assert_eq!(rows.next_row().unwrap().unwrap().get(0), Value::Text(b"c"));
        assert_eq!(rows.next_row().unwrap().unwrap().get(0), Value::Text(b""));
        assert!(rows.next_row().unwrap().is_none());
    }
}
