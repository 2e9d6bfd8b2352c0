//! A backlog that is read by SQL, in pieces: `COPY (SELECT … FROM pg_logical_slot_get_binary_changes(…))`.
//!
//! A walsender spends a system call or more on each change; COPY fills a buffer before it sends. What comes are the same
//! messages of the same plugin, whole transactions in commit order, so they are told as the stream's frames are.
//!
//! - **Not the task's slot is read, but a temporary copy of it**, which belongs to this connection alone and ends with it.
//!   Nobody else can move it, so a piece begins exactly where the one before ended (I5), and the task's own slot moves
//!   only by [`Backlog::acknowledge`], which says what is durable (I3).
//! - **Between two pieces** the task's slot is advanced, and the end of the piece is told as a keepalive: there every
//!   transaction that committed before has been sent.
//! - **A piece is bounded** in WAL, and in time by the server: it decodes a piece whole before it sends the first byte, and
//!   keeps it in a temporary file. A transaction that is too large for that fails the piece, and is the walsender's.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::stream::{bad_length, server_error};
use super::{
    ERROR_RESPONSE, Frame, ReplicationConnection, ReplicationError, StartOptions, literal, plugin_options,
};
use crate::change::{Lsn, Timestamp};

const COPY_DATA: u8 = b'd';
const READY_FOR_QUERY: u8 = b'Z';

/// The most WAL that a piece covers. Each one begins with decoding once more what lies between the slot's `restart_lsn`,
/// which moves every 15 s of the time in which the backlog was written, and its place; and it takes a temporary file.
const PIECE: u64 = 256 << 20;
/// A piece covers as many times the WAL that is left to the walsender, if that is less.
const PIECE_IN_RESTS: u64 = 4;
/// Where so much WAL is decoded once more for each piece, a walsender, which does it once, is quicker.
const LONGEST_WAY_BACK: u64 = 2 * PIECE;
/// How long the server may take for a piece, or for moving the slot.
const STATEMENT_TIMEOUT: &str = "30s";
/// Longest time in which nothing comes; the server ends what takes longer than [`STATEMENT_TIMEOUT`].
const SILENCE: Duration = Duration::from_secs(60);

/// What is read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The task's slot.
    pub slot: String,
    /// What to ask of the output plugin. Nothing is streamed.
    pub options: StartOptions,
    /// With no more WAL than this to read, in bytes, the rest is the walsender's.
    pub rest: u64,
}

impl Reading {
    fn piece(&self) -> u64 {
        self.rest.saturating_mul(PIECE_IN_RESTS).clamp(1, PIECE)
    }
}

/// A backlog being read.
pub struct Backlog {
    state: State,
    reading: Reading,
    /// Durable with us up to here.
    durable: Lsn,
    /// The end of a piece, which is to be told.
    piece_end: Option<Lsn>,
    /// When the present piece was asked for.
    piece_began: Timestamp,
    /// When something came last.
    heard: Instant,
}

enum State {
    /// Commands between two pieces. A call that is cancelled leaves them running.
    Turning(BoxFuture<'static, Result<Turned, ReplicationError>>),
    /// A piece is coming.
    Piece(ReplicationConnection),
    /// The rest is the walsender's.
    Read(ReplicationConnection),
    /// It has failed, or the connection was taken.
    Over,
}

struct Turned {
    connection: ReplicationConnection,
    /// The end of the piece before.
    end: Lsn,
    /// Whether another one comes.
    more: bool,
}

impl Backlog {
    /// Begins to read where the task's slot stands, once that has been moved to `durable`. Without a backlog, or where the
    /// server does not let it be read, gives the connection back as it was.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn begin(
        mut connection: ReplicationConnection,
        reading: Reading,
        durable: Lsn,
    ) -> Result<Begun, ReplicationError> {
        let copied = match make_copy(&mut connection, &reading, durable).await {
            Err(ReplicationError::Server(error)) if error.severity != "FATAL" => {
                tracing::warn!(%error, "the backlog cannot be read by SQL; the walsender sends it");
                None
            }
            copied => copied?,
        };
        let Some(from) = copied else {
            end_copy(&mut connection).await?;
            return Ok(Begun::Nothing(connection));
        };
        let turn = turn(connection, reading.clone(), durable).boxed();
        let backlog = Backlog {
            state: State::Turning(turn),
            reading,
            durable,
            piece_end: None,
            piece_began: Timestamp::now(),
            heard: Instant::now(),
        };
        Ok(Begun::Backlog { backlog, from })
    }

    /// Returns once a frame is here, or the backlog has been read. May be cancelled.
    pub async fn fill(&mut self) -> Result<(), ReplicationError> {
        match &mut self.state {
            State::Turning(turn) => {
                let turned = turn.await;
                self.state = State::Over;
                let Turned { connection, end, more } = turned?;
                self.piece_end = Some(end);
                self.piece_began = Timestamp::now();
                self.heard = Instant::now();
                self.state = if more { State::Piece(connection) } else { State::Read(connection) };
                Ok(())
            }
            State::Piece(connection) => {
                while !connection
                    .wire
                    .has_message()
                    .map_err(|e| bad_length(e, self.reading.options.limits))?
                {
                    let filled = timeout_at(self.heard + SILENCE, connection.wire.fill()).await;
                    if filled.map_err(|_| ReplicationError::TimedOut(SILENCE))?? == 0 {
                        return Err(ReplicationError::Closed);
                    }
                    self.heard = Instant::now();
                }
                Ok(())
            }
            State::Read(_) | State::Over => Ok(()),
        }
    }

    /// The next buffered frame; `None` when [`Self::fill`] must bring more, or nothing more comes.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        if let Some(end) = self.piece_end.take() {
            // An answer is asked for, so that the slot moves also where a piece holds nothing for us.
            return Ok(Some(Frame::Keepalive { end, sent: self.piece_began, reply_requested: true }));
        }
        let limits = self.reading.options.limits;
        let (start, place) = loop {
            let State::Piece(connection) = &mut self.state else { return Ok(None) };
            let message = connection.wire.next_message().map_err(|e| bad_length(e, limits))?;
            let Some((tag, place)) = message else { return Ok(None) };
            match tag {
                COPY_DATA => {
                    if let Some((lsn, body)) = copied_row(connection.wire.content(place.clone()))? {
                        break (lsn, place.end - body..place.end);
                    }
                }
                ERROR_RESPONSE => return Err(server_error(connection.wire.content(place))),
                READY_FOR_QUERY => {
                    if let State::Piece(connection) = std::mem::replace(&mut self.state, State::Over) {
                        let turn = turn(connection, self.reading.clone(), self.durable);
                        self.state = State::Turning(turn.boxed());
                    }
                }
                // The beginning and the end of the copy, and what may come at any time.
                b'H' | b'c' | b'C' | b'N' | b'S' | b'A' => {}
                other => {
                    return Err(ReplicationError::Protocol(format!("message type {other:#04x} in a copy")));
                }
            }
        };
        let State::Piece(connection) = &self.state else { return Ok(None) };
        let body = connection.wire.content(place);
        Ok(Some(Frame::Data { start, server_end: start, sent: self.piece_began, body }))
    }

    /// Everything up to here is durable: the task's slot is advanced to it before the next piece.
    pub fn acknowledge(&mut self, durable: Lsn) {
        self.durable = self.durable.max(durable);
    }

    /// The connection, once all has been read and told.
    pub fn take_connection(&mut self) -> Option<ReplicationConnection> {
        if self.piece_end.is_some() || !matches!(self.state, State::Read(_)) {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Read(connection) => Some(connection),
            _ => None,
        }
    }

    /// Whether an error would come again, so that the walsender must go on instead.
    pub fn is_to_blame_for(error: &ReplicationError) -> bool {
        match error {
            // Operator intervention but for a cancelled statement: the server stops, or somebody ended our session.
            ReplicationError::Server(error) => !error.code.starts_with("57P"),
            ReplicationError::Io(_)
            | ReplicationError::Closed
            | ReplicationError::Ended
            | ReplicationError::TimedOut(_) => false,
            _ => true,
        }
    }
}

/// How a backlog begins.
pub enum Begun {
    /// There is one.
    Backlog {
        /// It.
        backlog: Backlog,
        /// Where it begins.
        from: Lsn,
    },
    /// There is none that could be read.
    Nothing(ReplicationConnection),
}

/// Advances the task's slot and copies it, if it is far behind. Gives the copy's place.
async fn make_copy(
    connection: &mut ReplicationConnection,
    reading: &Reading,
    durable: Lsn,
) -> Result<Option<Lsn>, ReplicationError> {
    let slot = literal(&reading.slot)?;
    connection.query(&format!("SET statement_timeout = '{STATEMENT_TIMEOUT}'")).await?;
    advance(connection, reading, durable).await?;
    let (_, pays) = look(connection, &slot, reading).await?;
    if !pays {
        return Ok(None);
    }
    let copy = format!("SELECT pg_copy_logical_replication_slot({slot}, {COPY_NAME}, true)");
    connection.query(&copy).await?;
    let (from, _) = look(connection, COPY_NAME, reading).await?;
    Ok(Some(from))
}

/// The copy's name, which no other session's has.
const COPY_NAME: &str = "'millrace_catch_up_' || pg_backend_pid()";

/// What lies between two pieces: the slot is advanced to what is durable, and the next piece is asked for.
async fn turn(
    mut connection: ReplicationConnection,
    reading: Reading,
    durable: Lsn,
) -> Result<Turned, ReplicationError> {
    advance(&mut connection, &reading, durable).await?;
    let (end, more) = look(&mut connection, COPY_NAME, &reading).await?;
    if more {
        let options: Result<Vec<_>, _> = plugin_options(&reading.options)?
            .into_iter()
            .map(|(name, value)| {
                Ok::<_, ReplicationError>(format!("{}, {}", literal(name)?, literal(&value)?))
            })
            .collect();
        let (upto, options) = (Lsn(end.0.saturating_add(reading.piece())), options?.join(", "));
        let piece = format!(
            "COPY (SELECT lsn, data FROM pg_logical_slot_get_binary_changes({COPY_NAME}, '{upto}', NULL, {options})) \
             TO STDOUT (FORMAT binary)"
        );
        connection.send_query(&piece).await?;
        connection.wire.set_largest_message(reading.options.limits.largest_message);
    } else {
        end_copy(&mut connection).await?;
    }
    Ok(Turned { connection, end, more })
}

async fn advance(
    connection: &mut ReplicationConnection,
    reading: &Reading,
    durable: Lsn,
) -> Result<(), ReplicationError> {
    let slot = literal(&reading.slot)?;
    connection.query(&format!("SELECT pg_replication_slot_advance({slot}, '{durable}')")).await.map(drop)
}

/// Where a slot stands, and whether so much lies before it that reading it by pieces pays.
async fn look(
    connection: &mut ReplicationConnection,
    slot: &str,
    reading: &Reading,
) -> Result<(Lsn, bool), ReplicationError> {
    let sql = format!(
        "SELECT confirmed_flush_lsn, restart_lsn, pg_current_wal_flush_lsn() FROM pg_replication_slots \
         WHERE slot_name = {slot}"
    );
    let row = connection.one_row(&sql).await?;
    match (row.lsn(0), row.lsn(1), row.lsn(2)) {
        (Some(confirmed), Some(restart), Some(end)) => {
            let pays = confirmed.bytes_since(restart) <= LONGEST_WAY_BACK;
            Ok((confirmed, end.bytes_since(confirmed) > reading.rest && pays))
        }
        _ => Err(ReplicationError::Protocol("a slot without a place".to_owned())),
    }
}

/// Drops the copy, if there is one, and what was set for reading.
async fn end_copy(connection: &mut ReplicationConnection) -> Result<(), ReplicationError> {
    let drop_copy = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {COPY_NAME}"
    );
    connection.query(&drop_copy).await?;
    connection.query("SET statement_timeout = 0").await.map(drop)
}

/// What stands before the first row of a binary copy: a signature, flags and the length of an extension, both zero.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// The LSN of a row of two columns, and how many bytes at its end are the message; `None` for what is no row.
fn copied_row(content: &[u8]) -> Result<Option<(Lsn, usize)>, ReplicationError> {
    let row = content.strip_prefix(COPY_HEADER).unwrap_or(content);
    let unreadable = || ReplicationError::Protocol("a row of a copy that cannot be read".to_owned());
    match row {
        [] | [0xff, 0xff] => Ok(None),
        [0, 2, 0, 0, 0, 8, rest @ ..] => {
            let (lsn, rest) = rest.split_first_chunk::<8>().ok_or_else(unreadable)?;
            let (length, body) = rest.split_first_chunk::<4>().ok_or_else(unreadable)?;
            match usize::try_from(u32::from_be_bytes(*length)) {
                Ok(length) if length == body.len() => Ok(Some((Lsn(u64::from_be_bytes(*lsn)), length))),
                _ => Err(unreadable()),
            }
        }
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(lsn: u64, body: &[u8]) -> Vec<u8> {
        let mut row = vec![0, 2, 0, 0, 0, 8];
        row.extend(lsn.to_be_bytes());
        row.extend((body.len() as u32).to_be_bytes());
        row.extend(body);
        row
    }

    #[test]
    fn rows_of_a_copy_are_told_from_its_beginning_and_its_end() {
        assert_eq!(copied_row(&row(7, b"B...")).unwrap(), Some((Lsn(7), 4)));
        let first = [COPY_HEADER, &row(8, b"")].concat();
        assert_eq!(copied_row(&first).unwrap(), Some((Lsn(8), 0)));
        for nothing in [&b"\xff\xff"[..], COPY_HEADER, &[COPY_HEADER, b"\xff\xff"].concat()] {
            assert_eq!(copied_row(nothing).unwrap(), None);
        }
        let null = [&[0, 2, 0, 0, 0, 8][..], &[0; 8], &[0xff; 4]].concat();
        assert!(copied_row(&null).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_of_rows_panic_or_give_more_than_there_is(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            cut in 0usize..64,
        ) {
            let _ = copied_row(&bytes);
            let whole = row(1, &bytes);
            if let Ok(Some((_, length))) = copied_row(whole.get(..cut).unwrap_or(&whole)) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
