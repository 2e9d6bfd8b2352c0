//! Output formats: pure functions from a change to the records that stand for it.
//!
//! A format is given one [`Event`] at a time and hands finished records to a [`Sink`]; it knows no socket, no file and
//! no task. What it hands over is borrowed from its own scratch space, so that a change costs no allocation.

pub mod debezium_json;
pub mod partitioner;

use crate::change::Event;
use crate::log::{LogError, Record};

/// Where a record belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The output's own topic; the sink routes by the record's key, by `table`, or to the one partition.
    Changes {
        /// `pg_class.oid` of the table.
        table: u32,
        /// Hash of the table's name, for [`partitioner::PartitionBy::partition`].
        table_hash: u32,
    },
    /// The output's topic for events that are not changes (`<output>.events`).
    Events,
}

/// Takes the records of an output.
pub trait Sink {
    /// Takes one record.
    ///
    /// # Errors
    /// What the log says of it.
    fn record(&mut self, destination: Destination, record: &Record<'_>) -> Result<(), LogError>;
}

/// An output format.
pub trait Format: Send {
    /// Encodes one event into as many records as the format has for it (a deletion and its tombstone, say).
    ///
    /// # Errors
    /// [`FormatError`] names what cannot be rendered, or passes on the sink's error.
    fn encode(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), FormatError>;
}

/// A change that a format cannot render.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The log refused the record.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A value is not what its type says.
    #[error("column {column} of {schema}.{table} has a value that is not a valid {expected}")]
    Value {
        /// Schema name.
        schema: String,
        /// Table name.
        table: String,
        /// Column name.
        column: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A column of the key was not sent, and the old row that should have it neither.
    #[error(
        "column {column} of {schema}.{table} is part of the key and the server did not send it; \
         run ALTER TABLE {schema}.{table} REPLICA IDENTITY FULL"
    )]
    KeyUnsent {
        /// Schema name.
        schema: String,
        /// Table name.
        table: String,
        /// Column name.
        column: String,
    },
}
