//! One task's pipeline, from the replication stream to the log.
//!
//! # What is acknowledged when
//!
//! Three positions matter, and each follows the one before:
//!
//! 1. **decoded**: a transaction's last message has been taken and its records lie in the writer's buffers. Nothing of
//!    this survives a crash, and the source does not know of it.
//! 2. **durable**: the group that the transaction belongs to has been committed: its batches and a commit entry with
//!    the transaction's commit LSN are fsynced. At that moment consumers see it, and not before (I1, I4).
//! 3. **acknowledged**: the slot has been told. Never ahead of durable, and not later than a tenth of a second after
//!    it, whatever consumers do (I3).
//!
//! Positions that only keepalives, empty transactions and heartbeats reach are written as position-only commits before
//! they are acknowledged, so that after any restart a slot that stands beyond `acked_through` means exactly one thing:
//! somebody else moved it, and changes are missing ([`resume`], I5).
//!
//! # What happens at each kind of restart
//!
//! * *The connection breaks*: what was appended after the last transaction boundary is dropped, spools too; what lies
//!   between the last commit and the boundary is dropped with it. The source sends it all again.
//! * *The process dies*: recovery cuts the log to its last commit; the rest is the same.
//! * *The server sends a transaction that the log has*: its commit LSN is at or below the last commit's; it is read
//!   past (I2).
//! * *The server was replaced* (failover, restore): system identifier, timeline and slot are compared at every
//!   connect, before anything is read.
//!
//! # Who owns what
//!
//! [`session::Capture`] is one task that owns the stream, the pipeline and the writer. A [`watcher`] beside it polls the
//! source over a connection of its own (new tables, the slot, lag, heartbeats) and reports over a bounded channel.

mod announced;
mod existing;
mod form;
mod marks;
pub mod output;
pub mod oversized;
mod own_events;
pub mod pipeline;
pub mod progress;
mod relations;
pub mod resume;
pub mod routing;
pub mod session;
mod shapes;
pub mod snapshot_requests;
pub mod spool;
mod text_rows;
mod topic_name;
mod watcher;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::{Gap, Lsn, Position};
use crate::format::FormatError;
use crate::log::LogError;
use crate::postgres::connect::ConnectError;
use crate::postgres::pgoutput::DecodeError;
use crate::postgres::publication::PublicationError;
use crate::postgres::replication::ReplicationError;
use crate::postgres::slot::SlotError;
use crate::postgres::sql::SqlError;
use crate::postgres::timeline::Divergence;
use crate::state::StateError;

/// What a new task begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The changes from now on
    #[default]
    Now,
    /// The rows that there are, then their changes
    Snapshot,
}

impl Start {
    /// Its name, as users give it.
    pub fn name(self) -> &'static str {
        match self {
            Start::Now => "now",
            Start::Snapshot => "snapshot",
        }
    }
}

/// What ended a session.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The source cannot be reached or refuses us.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The replication connection failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// A query on the control connection failed.
    #[error("cannot {what} at the source: {source}")]
    Query {
        /// What was asked.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The task's saved state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log takes too long.
    #[error(
        "the log has not finished a write for 10 s; the connection to the source is given up until it does, see whether the disk is overloaded"
    )]
    LogStalled,
    /// The spool failed.
    #[error(
        "cannot keep a large transaction on disk: {0}; free space in the data directory, the task resumes by itself"
    )]
    Spool(#[from] io::Error),
    /// A message that we cannot read.
    #[error("cannot read a replication message: {0}; please report this with the server's version")]
    Decode(#[from] DecodeError),
    /// Messages in an order that makes no sense.
    #[error("the replication stream broke its protocol: {0}")]
    Protocol(String),
    /// A row of a table whose shape was not sent.
    #[error("a change at {lsn} names table {oid}, whose shape the server has not sent")]
    UnknownTable {
        /// The table.
        oid: u32,
        /// Where.
        lsn: Lsn,
    },
    /// Changes that are held cannot be read back, or make no sense.
    #[error(
        "the changes that are held while existing rows are read cannot be read back: {detail}; please report this"
    )]
    Held {
        /// What is wrong.
        detail: String,
    },
    /// A change that cannot be rendered or kept.
    #[error("cannot capture the change at {position}{} for output {output}: {source}", table.as_ref().map(|t| format!(" of {t}")).unwrap_or_default())]
    Change {
        /// Its place.
        position: Position,
        /// Its table.
        table: Option<String>,
        /// The output that cannot take it.
        output: String,
        /// Why.
        #[source]
        source: Box<FormatError>,
    },
    /// Changes are missing, or may be. Goes on only when a person says so.
    #[error(
        "{} ({}); to go on from now, with a gap event in the log, start once with --accept-gap",
        gap.detail, gap.cause
    )]
    Gap {
        /// What is known about it.
        gap: Arc<Gap>,
    },
    /// A publication of the task is gone; what that means is decided when the next session begins.
    #[error("publication {name} was dropped")]
    PublicationDropped {
        /// The publication.
        name: String,
    },
    /// Our slot is used by another connection.
    #[error(
        "replication slot {slot} is in use by server process {pid}; if that is not an old connection about to end, stop the other user or run SELECT pg_terminate_backend({pid})"
    )]
    SlotBusy {
        /// The slot.
        slot: String,
        /// The server process.
        pid: i32,
    },
    /// Our slot cannot be read from.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A slot that nothing says is ours.
    #[error(
        "replication slot {slot} exists already, but this data directory knows nothing of it; drop it with SELECT pg_drop_replication_slot('{slot}'), choose another --task, or take it over with --adopt-slot"
    )]
    SlotUnowned {
        /// The slot.
        slot: String,
    },
    /// The source is a standby that has not received what the log holds already.
    #[error("the source is a standby, and not yet where the log is: {0}")]
    StandbyBehind(Divergence),
    /// The source is a standby, which knows nothing of our slot.
    #[error(
        "the source is a standby and has no replication slot {slot}; connect to the primary, or wait until this one is promoted"
    )]
    NoSlotOnStandby {
        /// The slot.
        slot: String,
    },
    /// A change that the server can send neither as text nor as binary.
    #[error(
        "the server can send a change{} neither as text nor as binary ({reason}): a row with its old image may take 1 GB, and half of that where a bytea goes as text. Go on without its transaction: SELECT pg_replication_slot_advance('{slot}', {}), then start once with --accept-gap, which leaves a gap event in the log",
        place_of(.table, .change), skip_to.map_or("pg_current_wal_lsn()".to_owned(), |lsn| format!("'{lsn}'"))
    )]
    Unsendable {
        /// The slot.
        slot: String,
        /// The table, as far as the messages before it tell.
        table: Option<String>,
        /// Its place in the WAL.
        change: Option<Lsn>,
        /// Just behind where its transaction committed.
        skip_to: Option<Lsn>,
        /// The server's words.
        reason: String,
    },
    /// The server can send text again.
    #[error("the row that had to be sent as binary is behind us")]
    TextAgain,
    /// What was rolled back of a transaction is known only where it is sent when it has committed.
    #[error("a streamed transaction has logical messages, and savepoints that were rolled back")]
    ReadWhole,
    /// A value that came as binary and has no text form.
    #[error("cannot render a value that came in binary form: {0}")]
    Render(#[from] SqlError),
    /// The source is not fit for a task.
    #[error("{0}")]
    Unfit(String),
}

impl CaptureError {
    /// What kind of trouble it is, which decides how long it is retried.
    pub fn trouble(&self) -> Trouble {
        match self {
            CaptureError::Connect(error) if error.is_retryable() => Trouble::Source,
            CaptureError::Replication(error) if error.is_retryable() => Trouble::Source,
            CaptureError::Slot(error) if error.is_transient() => Trouble::Source,
            CaptureError::Query { source, .. } if may_pass(&**source) => Trouble::Source,
            CaptureError::Render(error) if error.is_transient() => Trouble::Source,
            CaptureError::SlotBusy { .. }
            | CaptureError::StandbyBehind(_)
            | CaptureError::NoSlotOnStandby { .. } => Trouble::Source,
            CaptureError::Log(error) if error.is_retryable() => Trouble::Disk,
            CaptureError::LogStalled => Trouble::Disk,
            CaptureError::State(error) if error.is_lack_of_space() => Trouble::Disk,
            CaptureError::Spool(error) if is_lack_of_space(error) => Trouble::Disk,
            // The same row would come again and again.
            CaptureError::Change { source, .. }
                if matches!(
                    **source,
                    FormatError::Log(LogError::RecordTooLarge { .. }) | FormatError::KeyTooLarge { .. }
                ) =>
            {
                Trouble::Final
            }
            CaptureError::Gap { .. }
            | CaptureError::SlotUnowned { .. }
            | CaptureError::Unsendable { .. }
            | CaptureError::Slot(_)
            | CaptureError::Unfit(_)
            | CaptureError::Log(_) => Trouble::Final,
            _ => Trouble::Task,
        }
    }
}

fn place_of(table: &Option<String>, change: &Option<Lsn>) -> String {
    let table = table.as_ref().map(|table| format!(" of {table}")).unwrap_or_default();
    let change = change.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
    table + &change
}

/// Whether a query may succeed later with nothing changed by hand.
fn may_pass(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_sql = error.downcast_ref().map(SqlError::is_transient);
    let of_publication = error.downcast_ref().map(PublicationError::is_transient);
    of_sql.or(of_publication).unwrap_or(true)
}

fn is_lack_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How an error is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The source is away: retried for the connection retry time.
    Source,
    /// Our disk is full: retried until there is space.
    Disk,
    /// Something in the task: retried for a short time, then failed.
    Task,
    /// Retrying cannot help.
    Final,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_was_refused_is_not_tried_for_as_long_as_one_that_was_not_answered() {
        let failed = |source| CaptureError::Query { what: "look", source }.trouble();
        let refused = PublicationError::MayNotCreate { database: "d".into(), user: "u".into() };
        assert_eq!(failed(Box::new(refused)), Trouble::Task);
        assert_eq!(failed(Box::new(io::Error::from(io::ErrorKind::TimedOut))), Trouble::Source);
    }
}
