//! Output formats: pure functions from a change to the records that stand for it.
//!
//! A format is given one [`Event`] at a time and hands finished records to a [`Sink`]; it knows no socket, no file, no
//! task and no topic. What it hands over is borrowed from its own scratch space, so that a change costs no allocation.

pub mod debezium_json;
mod digits;
pub mod headers;
mod oid;
pub mod partitioner;
pub mod protobuf;
mod row_images;
mod tables;
#[cfg(test)]
mod test_rows;
pub(crate) mod text;

use serde::{Deserialize, Serialize};

use self::debezium_json::{DebeziumJson, DebeziumOptions};
use self::protobuf::Protobuf;
use crate::change::Event;
use crate::log::{LogError, Record};
use crate::proto::CHANGE_MEDIA_TYPE;

pub(crate) use self::row_images::record_key;

/// The formats by the names that users give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FormatName {
    /// Debezium's change events as JSON, without schemas
    #[default]
    DebeziumJson,
    /// `millrace.v1.Change` messages, typed
    Protobuf,
}

impl FormatName {
    /// Whether its readers take events that are not changes among the changes; otherwise those have a topic of their own,
    /// unless a person says something else.
    pub fn takes_events_inline(self) -> bool {
        match self {
            FormatName::DebeziumJson => false,
            FormatName::Protobuf => true,
        }
    }

    /// The format for an output of that name, of this database.
    pub fn make(self, output: &str, database: &str) -> Box<dyn Format> {
        match self {
            FormatName::DebeziumJson => Box::new(DebeziumJson::new(DebeziumOptions::new(output, database))),
            FormatName::Protobuf => Box::new(Protobuf::default()),
        }
    }

    /// The media type of its values.
    pub fn media_type(self) -> &'static str {
        match self {
            FormatName::DebeziumJson => "application/json",
            FormatName::Protobuf => CHANGE_MEDIA_TYPE,
        }
    }
}

/// Takes the records of an event. Where they go is the sink's business.
pub trait Sink {
    /// Takes one record.
    ///
    /// # Errors
    /// What the log says of it.
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError>;
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
    /// Not even without its other columns a record fits the log.
    #[error(
        "the key ({key}) of {schema}.{table} cannot be left out of a record, which has {size} bytes without the columns \
         that can, over the limit of {limit}; start millrace with a larger --max-record-mb"
    )]
    KeyTooLarge {
        /// Schema name.
        schema: String,
        /// Table name.
        table: String,
        /// Names of the key's columns.
        key: String,
        /// The record's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
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
