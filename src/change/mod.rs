//! The vocabulary: what a change is, independent of how PostgreSQL sends it and of how a consumer reads it.
//!
//! Nothing here does I/O and nothing here imports another module of ours. Everything that a hot path touches is
//! borrowed: a [`Row`] is a view of bytes that lie in the replication connection's read buffer or in a spool page.

mod lsn;
mod row;
mod table;
mod types;

pub use lsn::{Lsn, ParseLsnError, Position, Timestamp};
pub use row::{Cell, CellKind, Row, Value};
pub use table::{Column, ReplicaIdentity, TableShape};
pub use types::{Attribute, DataType, ExtensionType, TypeForm};

/// The committed transaction that a change belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Transaction id; 0 for a non-transactional logical message, which is a transaction of its own.
    pub xid: u32,
    /// LSN of the commit record: the first half of every [`Position`] in it.
    pub commit_lsn: Lsn,
    /// LSN just past the commit record: what may be acknowledged once the transaction is durable.
    pub end_lsn: Lsn,
    /// When the source committed it.
    pub commit_time: Timestamp,
    /// Commit LSN of the transaction before this one in the stream; [`Lsn::ZERO`] when unknown.
    pub previous_commit_lsn: Lsn,
    /// On which way its changes come into the log.
    pub phase: Phase,
}

/// On which way a change comes into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// As the source committed it.
    #[default]
    Stream,
    /// Its table's existing rows are being read: it is one of them, and no transaction of the source.
    Snapshot,
    /// It was held while its table's existing rows were being read, and follows them at its own position.
    Catchup,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// A row was there when its table's existing rows were read.
    Read,
}

/// The row as it was before an update or a delete, as far as the table's replica identity gives it.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// Only the columns of the replica identity; the others are *not sent*, although the wire shows null.
    Key(Row<'a>),
    /// The whole row (`REPLICA IDENTITY FULL`).
    Full(Row<'a>),
}

/// One event, borrowed from where it was read.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// A row was inserted, updated or deleted.
    Row {
        /// What happened.
        operation: Operation,
        /// Shape of the table when the row was written.
        table: &'a TableShape,
        /// The old row, where the server sent one.
        before: Option<Before<'a>>,
        /// The new row; absent on delete.
        after: Option<Row<'a>>,
    },
    /// A table was truncated; one event per table.
    Truncate {
        /// The table.
        table: &'a TableShape,
    },
    /// A logical message of an application (`pg_logical_emit_message`).
    Message {
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Its prefix.
        prefix: &'a str,
        /// Its content, any bytes.
        content: &'a [u8],
    },
    /// The existing rows of a table follow, or have ended. Made by Millrace.
    Snapshot(&'a SnapshotMark),
    /// Changes may be missing here, and what is known about them (I5). Made by Millrace, marked as such.
    Gap(&'a Gap),
    /// The task is alive. Made by Millrace.
    Heartbeat(Heartbeat),
    /// In a partition everything up to here stands before this. Made by Millrace.
    Watermark(Watermark),
    /// A transaction with changes in this output begins.
    Begin,
    /// A transaction with changes in this output has ended.
    End(&'a TransactionTotals),
}

/// Where the existing rows of a table begin or end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMark {
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub table: String,
    /// Which attempt it is, from 1: rows that were read under a lower one are void.
    pub epoch: u32,
    /// Begin or end.
    pub stage: SnapshotStage,
}

/// See [`SnapshotMark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStage {
    /// Rows follow.
    Begin,
    /// All rows have been read: from here on the table is as complete as any other.
    End {
        /// How many there were under this epoch.
        rows: u64,
    },
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// When.
    pub time: Timestamp,
    /// Everything that the source had below this has been processed.
    pub processed: Lsn,
}

/// How far a partition is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// Commit LSN of the last transaction whose changes stand before it.
    pub commit_lsn: Lsn,
    /// When the source committed that.
    pub commit_time: Timestamp,
}

/// What a transaction has left in one output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransactionTotals {
    /// Its changes over all tables.
    pub changes: u64,
    /// Changes by table (`schema`, `name`), in the order in which the tables were first changed.
    pub tables: Vec<(String, String, u64)>,
}

/// Why changes may be missing, and between which positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Cause in a few words, stable enough to match on: `table_joined_late`, `slot_lost`, ...
    pub cause: &'static str,
    /// The table concerned (`schema`, `name`), or `None` for all of the task.
    pub table: Option<(String, String)>,
    /// First position that may be missing, where known.
    pub from: Option<Lsn>,
    /// Changes from this position on are complete, as far as `detail` does not say otherwise.
    pub to: Lsn,
    /// A sentence for a person: what may be missing and what to do about it.
    pub detail: String,
}

/// One event with its place.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Its transaction.
    pub transaction: &'a Transaction,
    /// Its number among the transaction's tracked changes, from 0.
    pub ordinal: u64,
    /// LSN of the WAL record that made it (equal for several rows of one multi-insert).
    pub lsn: Lsn,
    /// What happened.
    pub change: Change<'a>,
}

impl Event<'_> {
    /// The event's place in the source.
    pub fn position(&self) -> Position {
        Position { commit_lsn: self.transaction.commit_lsn, ordinal: self.ordinal }
    }
}
