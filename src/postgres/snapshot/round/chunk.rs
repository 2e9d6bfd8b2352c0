//! One chunk: what is asked of the server, in which form it comes, and what follows from an error.

use std::time::Duration;

use memchr::{memchr_iter, memrchr};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{Round, Stopped};
use crate::change::{CellKind, Row, Value};
use crate::postgres::heartbeat;
use crate::postgres::replication::{CopyConnection, CopyError};
use crate::postgres::server_error::ServerError;
use crate::postgres::server_error::sqlstate::{
    self, INVALID_PARAMETER_VALUE, OBJECT_NOT_IN_PREREQUISITE_STATE, UNDEFINED_OBJECT,
};
use crate::postgres::snapshot::pace::CHUNK_LIMIT;
use crate::postgres::snapshot::reader::RoundError;
use crate::postgres::snapshot::table::{self, Table, What};
use crate::postgres::snapshot::{BinaryRows, CopiedRows, CopyRows, CopyRowsError, ReadFrom, Visibility};
use crate::postgres::sql::quoted;

/// How long a chunk's lock is kept for an answer that comes on another connection. Users' statements may wait for that
/// lock (I7), and that connection may have stalled.
const STAMPS_TIMEOUT: Duration = Duration::from_secs(2);

/// Held by the one large row of existing rows that is in memory.
static LARGE: Semaphore = Semaphore::const_new(1);

/// Which snapshot a chunk is read under.
#[derive(Clone, Copy)]
pub(super) enum Under<'a> {
    Shared(&'a str),
    Own,
}

/// Why a chunk was not read.
pub(super) enum Failed {
    /// Somebody has locked the table, or the server asks to try again.
    Busy,
    TooMuch,
    /// The server cannot send a row in the form that was asked for.
    TooLarge(Box<ServerError>),
    Stopped(Stopped),
    /// The shared snapshot is gone.
    SnapshotLost,
    /// The connection is lost, or cannot be made.
    Connection(String),
    Round(RoundError),
}

impl From<Stopped> for Failed {
    fn from(stopped: Stopped) -> Self {
        Failed::Stopped(stopped)
    }
}

impl From<CopyError> for Failed {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::TooMuch(_) => Failed::TooMuch,
            error => Failed::Connection(error.to_string()),
        }
    }
}

/// What was read.
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Where they are in binary form.
    kinds: Option<Vec<CellKind>>,
    /// How many rows it has.
    pub(super) count: u64,
    /// Of a chunk in key order.
    pub(super) visibility: Option<Visibility>,
    pub(super) time: Duration,
    /// Of a large row.
    pub(super) turn: Option<SemaphorePermit<'static>>,
}

impl Chunk {
    pub(super) fn empty() -> Self {
        let (bytes, time) = (Vec::new(), Duration::ZERO);
        Chunk { bytes, kinds: None, count: 0, visibility: None, time, turn: None }
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The key of the last row. The rows have so many columns.
    pub(super) fn last_key(&self, columns: usize, key: impl Iterator<Item = usize>) -> Option<Vec<String>> {
        let of_row = |row: Row<'_>| {
            let value = |index: usize| match row.get(index) {
                Value::Text(text) => String::from_utf8(text.to_vec()).ok(),
                _ => None,
            };
            key.map(value).collect()
        };
        match &self.kinds {
            None => {
                let whole = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
                let start = memrchr(b'\n', whole).map_or(0, |end| end + 1);
                let mut rows = CopyRows::new(whole.get(start..)?.to_vec(), columns);
                of_row(rows.next_row().ok()??)
            }
            // It is one row.
            Some(kinds) => of_row(BinaryRows::new(&self.bytes, kinds.clone()).next_row().ok()??),
        }
    }

    /// The rows of a table with so many columns.
    pub(super) fn into_rows(self, columns: usize) -> CopiedRows {
        match self.kinds {
            None => CopiedRows::Text(CopyRows::new(self.bytes, columns)),
            Some(kinds) => CopiedRows::Binary(BinaryRows::new(self.bytes, kinds)),
        }
    }
}

fn count(mut rows: BinaryRows<&Vec<u8>>) -> Result<u64, CopyRowsError> {
    let mut count = 0;
    while rows.next_row()?.is_some() {
        count += 1;
    }
    Ok(count)
}

impl Round<'_> {
    pub(super) async fn session<'c>(
        &self,
        connection: &'c mut Option<CopyConnection>,
    ) -> Result<&'c mut CopyConnection, Failed> {
        match connection {
            Some(session) => Ok(session),
            none => {
                let source = &self.reading.source;
                let made = CopyConnection::connect(source).await;
                let mut made = made.map_err(|error| Failed::Connection(error.to_string()))?;
                let reached = made.server().await?;
                let elsewhere = |error| Failed::Round(RoundError::Connect(error));
                self.reading.server.check(&reached, source).map_err(elsewhere)?;
                Ok(none.insert(made))
            }
        }
    }

    /// Reads a chunk into memory: as text or, where the server cannot send a row so, that row in binary form.
    pub(super) async fn chunk(
        &self,
        connection: &mut Option<CopyConnection>,
        table: &Table,
        under: Under<'_>,
        copy: impl Fn(What) -> String,
        is_one_row: bool,
    ) -> Result<Chunk, Failed> {
        // As text each of them may be sent, and together they may be more than there is memory.
        let turn = match is_one_row {
            true => LARGE.acquire().await.ok(),
            false => None,
        };
        let read = match self.copied(connection, table, under, &copy, What::Text, is_one_row).await {
            Err(Failed::TooLarge(_)) if !is_one_row => Err(Failed::TooMuch),
            Err(Failed::TooLarge(_)) => {
                match self.copied(connection, table, under, &copy, What::Binary, is_one_row).await {
                    Err(Failed::TooLarge(error)) => {
                        Err(self.unsendable(connection, table, under, &copy, &error).await?)
                    }
                    read => read,
                }
            }
            read => read,
        };
        let turn = turn.filter(|_| read.as_ref().is_ok_and(|chunk| chunk.bytes.len() > CHUNK_LIMIT));
        read.map(|chunk| Chunk { turn, ..chunk })
    }

    /// Copies in a transaction of its own: no lock is held while the rows go their way.
    async fn copied(
        &self,
        connection: &mut Option<CopyConnection>,
        table: &Table,
        under: Under<'_>,
        copy: impl Fn(What) -> String,
        what: What,
        is_one_row: bool,
    ) -> Result<Chunk, Failed> {
        let session = self.session(connection).await?;
        let limit = if is_one_row { usize::MAX } else { CHUNK_LIMIT };
        let began = Instant::now();
        let begin = match under {
            Under::Shared(name) => format!("SET TRANSACTION SNAPSHOT '{name}'"),
            Under::Own => "SELECT pg_current_snapshot()::text".to_owned(),
        };
        let statements = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {begin}; {}", copy(what));
        let mut bytes = Vec::new();
        let first = match session.run(&statements, &mut bytes, limit).await {
            Ok(first) => first,
            Err(CopyError::Server(error)) => {
                session.run("ROLLBACK", &mut Vec::new(), 0).await?;
                // Fewer rows are sorted in memory.
                if error.is(sqlstate::CONFIGURATION_LIMIT_EXCEEDED) && !is_one_row {
                    return Err(Failed::TooMuch);
                }
                // Asked for a snapshot whose transaction has ended, servers say the one or the other; so may a filter.
                if let Under::Shared(name) = under
                    && [INVALID_PARAMETER_VALUE, OBJECT_NOT_IN_PREREQUISITE_STATE, UNDEFINED_OBJECT]
                        .contains(&error.code.as_str())
                {
                    let take = format!(
                        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{name}'"
                    );
                    let taken = session.run(&take, &mut Vec::new(), 0).await;
                    session.run("ROLLBACK", &mut Vec::new(), 0).await?;
                    if let Err(CopyError::Server(_)) = taken {
                        return Err(Failed::SnapshotLost);
                    }
                }
                return Err(self.sort(error, table, under).await);
            }
            Err(error) => return Err(error.into()),
        };
        // While COPY's lock is held nothing about the table can change.
        let oids = [table.oid];
        let stamps = table::stamps(&self.control, &self.reading.task, &oids, Some(table.members()));
        let stamps = timeout(STAMPS_TIMEOUT, stamps).await;
        session.run("COMMIT", &mut Vec::new(), 0).await?;
        let Ok(stamps) = stamps else {
            warn!(
                task = self.reading.task,
                table = table.name(),
                "the source does not say whether a table is as it was; trying again"
            );
            return Err(Failed::Busy);
        };
        let stamps = stamps.map_err(|error| Failed::Round(error.into()))?;
        if stamps.get(&table.oid) != Some(&table.stamp) {
            return Err(Stopped::Changed(ReadFrom::Start).into());
        }
        self.reading.waits_no_more(table.oid);
        if matches!(under, Under::Own) {
            heartbeat::flush(&self.control, &self.reading.task)
                .await
                .map_err(|error| Failed::Round(error.into()))?;
        }
        let kinds = (what == What::Binary).then(|| table.binary_kinds());
        let count = match &kinds {
            None => memchr_iter(b'\n', &bytes).count() as u64,
            Some(kinds) => count(BinaryRows::new(&bytes, kinds.clone()))
                .map_err(|error| Failed::from(Stopped::Refused(format!("{}: {error}", table.name()))))?,
        };
        let visibility = first.map(|text| text.parse::<Visibility>()).transpose();
        let visibility = visibility.map_err(|error| Failed::Round(error.into()))?;
        Ok(Chunk { bytes, kinds, count, visibility, time: began.elapsed(), turn: None })
    }

    /// What to say of a row that the server cannot send at all.
    async fn unsendable(
        &self,
        connection: &mut Option<CopyConnection>,
        table: &Table,
        under: Under<'_>,
        copy: impl Fn(What) -> String,
        error: &ServerError,
    ) -> Result<Failed, Failed> {
        let chunk = self.copied(connection, table, under, copy, What::LargestColumn, true).await?;
        let mut rows = CopyRows::new(chunk.bytes, 2);
        let text = |value| match value {
            Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        // Where it is gone by now, the next attempt finds nothing to complain of.
        let Ok(Some(row)) = rows.next_row() else { return Ok(Failed::Busy) };
        let (place, column) = (text(row.get(0)), text(row.get(1)));
        Ok(Stopped::Refused(format!(
            "{table}: the row at ctid {place} can be sent neither as text nor in binary form: {error}; most of it is in \
             column {column}: make that value smaller, or leave the column out by table_options, or the table by \
             exclude; then run: millrace task snapshot {task} {}.{}",
            table.shape.schema,
            table.shape.name,
            table = table.name(),
            column = quoted(&column),
            task = self.reading.task,
        ))
        .into())
    }

    /// What is to be done about an error of the server.
    pub(super) async fn sort(&self, error: Box<ServerError>, table: &Table, under: Under<'_>) -> Failed {
        match error.code.as_str() {
            // Temporary files have a limit that one row does not fit in.
            sqlstate::CONFIGURATION_LIMIT_EXCEEDED => {
                Stopped::Refused(format!("{}: {error}; raise temp_file_limit", table.name())).into()
            }
            _ if error.is_transient() => {
                self.reading.waits(table, &error);
                Failed::Busy
            }
            _ if error.is_value_too_large() => Failed::TooLarge(error),
            sqlstate::SNAPSHOT_TOO_OLD => match under {
                Under::Shared(_) => Failed::SnapshotLost,
                // The next attempt has another.
                Under::Own => Failed::Busy,
            },
            // Table, schema, column or type are gone or are others than they were.
            "42P01" | "3F000" | "42703" | "42809" | sqlstate::UNDEFINED_OBJECT => {
                Stopped::Changed(ReadFrom::Start).into()
            }
            // A key of before that its type takes no more: a label that was renamed.
            code if code.starts_with("22") && matches!(under, Under::Own) => {
                Stopped::Changed(ReadFrom::Start).into()
            }
            sqlstate::INSUFFICIENT_PRIVILEGE => match table::right_to_read(&self.control, table).await {
                Ok(what_to_do) => Stopped::Refused(format!("{}: {error}; {what_to_do}", table.name())).into(),
                Err(error) => Failed::Round(error.into()),
            },
            _ => Stopped::Refused(format!("{}: {error}", table.name())).into(),
        }
    }
}

/// A key that is no text in UTF-8 cannot be kept: the table is read in another way.
pub(super) const NO_TEXT: Failed = Failed::Stopped(Stopped::Changed(ReadFrom::Start));
