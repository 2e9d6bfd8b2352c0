//! A row as it came from the server: a run of bytes and the place of each value in it.

/// How a column's value was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellKind {
    /// SQL NULL.
    Null,
    /// An unchanged TOASTed value that the server did not send. Not a null.
    Unsent,
    /// PostgreSQL's text form.
    Text,
    /// PostgreSQL's binary form.
    Binary,
    /// PostgreSQL's text form, in the row's second run of bytes.
    MadeText,
}

/// Where one value lies in the row's bytes.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// How the value was sent.
    pub kind: CellKind,
    /// First byte, from the start of the row's bytes.
    pub start: u32,
    /// Length in bytes; 0 for a null or unsent value.
    pub len: u32,
}

/// One column's value, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Not sent by the server (unchanged TOAST).
    Unsent,
    /// PostgreSQL's text form. The session's encoding is UTF-8, but that is checked where it matters.
    Text(&'a [u8]),
    /// PostgreSQL's binary form. Rows that are given to a format have it of a `bytea` alone.
    Binary(&'a [u8]),
}

/// A row's values in column order.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    data: &'a [u8],
    /// Text that we have made of binary values.
    made: &'a [u8],
    cells: &'a [Cell],
}

impl<'a> Row<'a> {
    /// A row whose `cells` point into `data`. A cell that points outside reads as unsent.
    pub fn new(data: &'a [u8], cells: &'a [Cell]) -> Self {
        Row { data, made: &[], cells }
    }

    /// The same row with other `cells`, some of which point into `made`.
    pub fn with_made_text<'b>(self, made: &'b [u8], cells: &'b [Cell]) -> Row<'b>
    where
        'a: 'b,
    {
        Row { data: self.data, made, cells }
    }

    /// The same row with other `cells`.
    pub fn with_cells<'b>(self, cells: &'b [Cell]) -> Row<'b>
    where
        'a: 'b,
    {
        Row { cells, ..self }
    }

    /// Bytes that it lies in, those of a change's other row among them.
    pub fn size(&self) -> usize {
        self.data.len() + self.made.len()
    }

    /// Where the values lie.
    pub fn cells(&self) -> &'a [Cell] {
        self.cells
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether the row has no columns.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value of column `index`; a column that the row does not have is unsent.
    #[inline]
    pub fn get(&self, index: usize) -> Value<'a> {
        let Some(cell) = self.cells.get(index) else { return Value::Unsent };
        let start = cell.start as usize;
        let bytes = if cell.kind == CellKind::MadeText { self.made } else { self.data };
        match (cell.kind, bytes.get(start..start + cell.len as usize)) {
            (CellKind::Null, _) => Value::Null,
            (CellKind::Text | CellKind::MadeText, Some(bytes)) => Value::Text(bytes),
            (CellKind::Binary, Some(bytes)) => Value::Binary(bytes),
            (CellKind::Unsent, _) | (_, None) => Value::Unsent,
        }
    }

    /// The values in column order.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.cells.len()).map(|index| self.get(index))
    }
}
