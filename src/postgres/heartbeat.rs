//! The heartbeat: now and then a logical message in a transaction of its own, so that a slot advances past WAL that
//! other databases write while its own is idle.
//!
//! It needs no table and no privilege on one. It is transactional, so that the slot sees a commit, up to which it can be
//! acknowledged like any other. On a standby nothing can be written; there it is off.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::sql::SqlError;
use crate::change::Lsn;

/// Prefix of the heartbeat's message. `capture` leaves messages with it out of the log.
pub const PREFIX: &str = "millrace.heartbeat";

/// Gives all that transactions have done until now to the WAL on disk, with the numbers that they were given: a crash
/// would otherwise take back commits that nobody waited for, although they can be seen, and give their numbers to others.
pub async fn flush(client: &Client, task: &str) -> Result<(), SqlError> {
    // A commit is flushed with all that stands before it. Standbys are not waited for.
    const SQL: &str = "SELECT pg_logical_emit_message(
                           set_config('synchronous_commit', 'local', true) IS NOT NULL, $1::text, $2::text)";
    let failed = |error| SqlError::new("have the WAL written to disk", error);
    client.query_one(SQL, &[&PREFIX, &task]).await.map_err(failed).map(drop)
}

/// Sends one heartbeat for the task, and returns where its message stands; `None` on a standby.
pub async fn send(client: &Client, task: &str) -> Result<Option<Lsn>, SqlError> {
    // The setting is for this statement's transaction alone: a heartbeat is not worth waiting for an fsync or a
    // synchronous standby.
    const SQL: &str = "
        SELECT CASE WHEN pg_is_in_recovery() THEN NULL
                    ELSE pg_logical_emit_message(
                        set_config('synchronous_commit', 'off', true) IS NOT NULL, $1::text, $2::text) END";
    let failed = |error| SqlError::new("send a heartbeat", error);
    let row = client.query_one(SQL, &[&PREFIX, &task]).await.map_err(failed)?;
    Ok(row.try_get::<_, Option<PgLsn>>(0).map_err(failed)?.map(|lsn| Lsn(lsn.into())))
}
