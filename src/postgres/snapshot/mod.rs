//! Reading the existing rows of tables.
//!
//! Which transactions a read sees is told by [`Visibility`], so that whoever holds the changes of the stream meanwhile knows
//! which of them are not in the rows. What was read comes in parts; a part that has been kept is never read again.

mod copy_binary;
mod copy_rows;
pub mod keys;
mod pace;
mod progress;
mod reader;
mod round;
mod table;
mod visibility;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;

pub use self::copy_binary::BinaryRows;
pub use self::copy_rows::{CopyRows, CopyRowsError};
pub use self::progress::{ReadProgress, ReadState, ReadTotals, TableProgress};
pub use self::reader::{ReadOptions, Reader};
pub use self::visibility::Visibility;
use crate::change::{Row, TableShape};
use crate::postgres::connect::ConnectError;

/// A table whose rows are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Which attempt it is, from 1.
    pub epoch: u32,
    /// How to go about it.
    pub from: ReadFrom,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// With all rows, in any order, under a snapshot that all tables share.
    Start,
    /// With the first key: an attempt before was interrupted, and this one shall be able to go on. A table without a key
    /// begins as with `Start`.
    FirstKey,
    /// Behind this key, under the same epoch.
    After {
        /// The key through which the last part went.
        key: Vec<String>,
        /// What [`Read::Begin`] said of the table. If it is no longer so, the next epoch begins.
        stamp: String,
    },
}

/// Which of a table's rows a part has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Some of those that the shared snapshot sees.
    Shared,
    /// Those behind the key of the part before, in key order, under a snapshot of its own.
    Keys {
        /// Key of the last row, in PostgreSQL's text form; `None` for all that is behind the part before.
        through: Option<Vec<String>>,
        /// What its snapshot sees.
        visibility: Visibility,
    },
}

/// Rows as COPY has sent them.
#[derive(Debug)]
pub enum CopiedRows {
    /// In text form.
    Text(CopyRows),
    /// In binary form: a row that the server cannot send as text.
    Binary(BinaryRows<Vec<u8>>),
}

impl CopiedRows {
    /// How many bytes they take.
    pub fn size(&self) -> usize {
        match self {
            CopiedRows::Text(rows) => rows.size(),
            CopiedRows::Binary(rows) => rows.size(),
        }
    }

    /// The next row; `None` behind the last.
    ///
    /// # Errors
    /// When what was sent is no row of the table.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, CopyRowsError> {
        match self {
            CopiedRows::Text(rows) => rows.next_row(),
            CopiedRows::Binary(rows) => rows.next_row(),
        }
    }
}

/// What a reader tells, table by table and part by part. Tables may take turns; a table's own messages are in order.
#[derive(Debug)]
pub enum Read {
    /// Rows of a table follow. A reader that goes on behind a key begins so too, with the epoch that it was given.
    Begin {
        /// The table.
        oid: u32,
        /// The attempt, higher than the one that was wanted when the reader had to begin anew itself.
        epoch: u32,
        /// What the rows look like.
        shape: Arc<TableShape>,
        /// What the shared snapshot sees; `None` where each part has a snapshot of its own.
        visibility: Option<Visibility>,
        /// A text that is another when the table's file, name, columns or key have become others.
        stamp: String,
    },
    /// Some rows.
    Rows {
        /// The table.
        oid: u32,
        /// The attempt.
        epoch: u32,
        /// Which rows they are.
        part: Part,
        /// The rows.
        rows: CopiedRows,
        /// How many.
        count: u64,
        /// Of a large row: until this is dropped no other one is read, so that not many are in memory at once.
        turn: Option<SemaphorePermit<'static>>,
    },
    /// All rows of a table have been told.
    End {
        /// The table.
        oid: u32,
        /// The attempt.
        epoch: u32,
    },
    /// A table's rows cannot be read; what was told of it under this epoch is not all, and nothing more follows.
    Refused {
        /// The table.
        oid: u32,
        /// Why, and what to do about it.
        reason: String,
    },
    /// There is no such table any more, or it has no rows of its own.
    Gone {
        /// The table.
        oid: u32,
    },
    /// The address leads to another server than the stream's. The reader has ended.
    Elsewhere(ConnectError),
}
