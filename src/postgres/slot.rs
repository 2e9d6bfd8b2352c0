//! The task's replication slot as the server sees it: whether it is there and ours to use, and how much WAL it keeps.

use std::fmt;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::sql::SqlError;
use crate::change::Lsn;

/// The output plugin that Millrace reads.
pub const PLUGIN: &str = "pgoutput";

/// Name of a task's slot.
pub fn slot_name(task: &str) -> String {
    format!("millrace_{task}")
}

/// How much of the WAL that a slot needs is still there (`wal_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond `max_wal_size`, kept for the slot.
    Extended,
    /// Beyond `max_slot_wal_keep_size`: the next checkpoint may remove it, and the slot is lost.
    Unreserved,
    /// Gone.
    Lost,
}

impl WalStatus {
    /// PostgreSQL's word.
    pub fn as_str(self) -> &'static str {
        match self {
            WalStatus::Reserved => "reserved",
            WalStatus::Extended => "extended",
            WalStatus::Unreserved => "unreserved",
            WalStatus::Lost => "lost",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [WalStatus::Reserved, WalStatus::Extended, WalStatus::Unreserved, WalStatus::Lost]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A row of `pg_replication_slots`. What a server version does not tell is `None` or false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database; `None` for a physical slot.
    pub database: Option<String>,
    /// Whether it goes away with the session that made it.
    pub temporary: bool,
    /// Whether somebody reads from it now.
    pub active: bool,
    /// Process of the walsender that reads from it.
    pub active_pid: Option<i32>,
    /// Oldest WAL that it keeps.
    pub restart_lsn: Option<Lsn>,
    /// Up to where its reader has acknowledged.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// How much of what it needs is still there.
    pub wal_status: Option<WalStatus>,
    /// Bytes of WAL that can still be written before the slot may be lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that it keeps now.
    pub retained_bytes: u64,
    /// Why the server gave it up (17 and later).
    pub invalidation_reason: Option<String>,
    /// Whether recovery conflicted with it (16 and later).
    pub conflicting: bool,
    /// Whether it is copied to standbys (17 and later).
    pub failover: bool,
    /// Whether this is a standby's copy of its primary's slot (17 and later).
    pub synced: bool,
}

/// Reads the slot's state; `None` when it does not exist.
pub async fn slot_state(client: &Client, name: &str) -> Result<Option<SlotState>, SqlError> {
    // By way of JSON, a column that this version lacks reads as null. A promoted standby still calls its slots synced.
    const SQL: &str = "
        SELECT s.plugin::text, s.database::text, s.temporary, s.active, s.active_pid,
               s.restart_lsn, s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size,
               greatest(0, pg_wal_lsn_diff(
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                   s.restart_lsn))::int8,
               to_jsonb(s)->>'invalidation_reason', (to_jsonb(s)->>'conflicting')::bool,
               (to_jsonb(s)->>'failover')::bool, (to_jsonb(s)->>'synced')::bool AND pg_is_in_recovery()
        FROM pg_replication_slots s WHERE s.slot_name = $1::text";
    let failed = |error| SqlError::new(format!("read the state of slot '{name}'"), error);
    let row = client.query_opt(SQL, &[&name]).await.map_err(failed)?;
    row.as_ref().map(read_state).transpose().map_err(failed)
}

fn read_state(row: &Row) -> Result<SlotState, tokio_postgres::Error> {
    let lsn =
        |column: usize| row.try_get::<_, Option<PgLsn>>(column).map(|lsn| lsn.map(|lsn| Lsn(lsn.into())));
    let flag = |column: usize| row.try_get::<_, Option<bool>>(column).map(|flag| flag.unwrap_or(false));
    Ok(SlotState {
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        temporary: row.try_get(2)?,
        active: row.try_get(3)?,
        active_pid: row.try_get(4)?,
        restart_lsn: lsn(5)?,
        confirmed_flush_lsn: lsn(6)?,
        wal_status: row.try_get::<_, Option<String>>(7)?.as_deref().and_then(WalStatus::parse),
        safe_wal_size: row.try_get(8)?,
        retained_bytes: row.try_get::<_, Option<i64>>(9)?.unwrap_or(0).max(0) as u64,
        invalidation_reason: row.try_get(10)?,
        conflicting: flag(11)?,
        failover: flag(12)?,
        synced: flag(13)?,
    })
}

/// Why a slot cannot be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotTrouble {
    /// It does not exist.
    Missing,
    /// The server has given it up: WAL that it needs is gone.
    Lost {
        /// In the server's words.
        reason: String,
    },
    /// Somebody else reads from it.
    InUse {
        /// Process of the walsender.
        pid: i32,
        /// What the reader calls itself.
        application: String,
        /// Where the reader comes from.
        client: String,
    },
    /// It is a physical slot, or of another output plugin.
    WrongPlugin {
        /// The plugin, if it is a logical slot.
        plugin: Option<String>,
    },
    /// It belongs to another database of the server.
    WrongDatabase {
        /// The slot's database.
        database: String,
        /// The task's database.
        expected: String,
    },
    /// It is a standby's copy of a primary's slot, which can be read only once the standby is promoted.
    Synced,
}

impl SlotTrouble {
    /// Whether it may pass with nothing changed by hand: another reader may go away, a standby may be promoted.
    pub fn is_transient(&self) -> bool {
        matches!(self, SlotTrouble::InUse { .. } | SlotTrouble::Synced)
    }
}

/// A slot that should be read from cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The slot is not as it must be.
    #[error("{}", Explained(.name, .trouble))]
    Trouble {
        /// The slot.
        name: String,
        /// What is wrong with it.
        trouble: SlotTrouble,
    },
}

impl SlotError {
    /// Whether trying again later may help with nothing changed by hand.
    pub fn is_transient(&self) -> bool {
        match self {
            SlotError::Sql(error) => error.is_transient(),
            SlotError::Trouble { trouble, .. } => trouble.is_transient(),
        }
    }
}

/// The sentence for a person.
struct Explained<'a>(&'a str, &'a SlotTrouble);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explained(name, trouble) = self;
        let drop = format!("SELECT pg_drop_replication_slot({});", escape_literal(name));
        match trouble {
            SlotTrouble::Missing => write!(
                f,
                "replication slot '{name}' does not exist: it was dropped, or left behind at a failover; changes since \
                 its last acknowledged position are lost to this task: release the task and start it anew"
            ),
            SlotTrouble::Lost { reason } => write!(
                f,
                "replication slot '{name}' is lost ({reason}): the server has removed WAL that it needs; release the \
                 task and start it anew, after: {drop} and raise max_slot_wal_keep_size to keep more WAL"
            ),
            SlotTrouble::InUse { pid, application, client } => write!(
                f,
                "replication slot '{name}' is in use by process {pid} ('{application}' from {client}); stop that \
                 reader, or run: SELECT pg_terminate_backend({pid});"
            ),
            SlotTrouble::WrongPlugin { plugin: Some(plugin) } => write!(
                f,
                "replication slot '{name}' is of output plugin '{plugin}', not {PLUGIN}: something else made it; name \
                 the task otherwise, or drop the slot if nobody needs it: {drop}"
            ),
            SlotTrouble::WrongPlugin { plugin: None } => write!(
                f,
                "replication slot '{name}' is a physical slot: something else made it; name the task otherwise, or \
                 drop the slot if nobody needs it: {drop}"
            ),
            SlotTrouble::WrongDatabase { database, expected } => write!(
                f,
                "replication slot '{name}' belongs to database '{database}', and the task to '{expected}'; name the \
                 task otherwise, or drop the slot if nobody needs it, in its database: {drop}"
            ),
            SlotTrouble::Synced => write!(
                f,
                "replication slot '{name}' is this standby's copy of its primary's slot and cannot be read before the \
                 standby is promoted; connect to the primary"
            ),
        }
    }
}

impl SlotState {
    /// What keeps a task of `database` from reading it, but for who else does.
    pub fn trouble(&self, database: &str) -> Option<SlotTrouble> {
        if self.plugin.as_deref() != Some(PLUGIN) {
            return Some(SlotTrouble::WrongPlugin { plugin: self.plugin.clone() });
        }
        match &self.database {
            Some(own) if own != database => {
                return Some(SlotTrouble::WrongDatabase {
                    database: own.clone(),
                    expected: database.to_owned(),
                });
            }
            _ => {}
        }
        if self.wal_status == Some(WalStatus::Lost) || self.invalidation_reason.is_some() || self.conflicting
        {
            let reason = self.invalidation_reason.clone().unwrap_or_else(|| match self.conflicting {
                true => "recovery conflict".to_owned(),
                false => "wal_status is lost".to_owned(),
            });
            return Some(SlotTrouble::Lost { reason });
        }
        self.synced.then_some(SlotTrouble::Synced)
    }
}

/// The slot's state, if a task of `database` can start to read from it now.
pub async fn check(client: &Client, name: &str, database: &str) -> Result<SlotState, SlotError> {
    let trouble = |trouble| SlotError::Trouble { name: name.to_owned(), trouble };
    let Some(state) = slot_state(client, name).await? else {
        return Err(trouble(SlotTrouble::Missing));
    };
    if let Some(found) = state.trouble(database) {
        return Err(trouble(found));
    }
    match state.active_pid {
        Some(pid) => Err(trouble(reader(client, pid).await?)),
        None => Ok(state),
    }
}

/// Who reads from a slot.
async fn reader(client: &Client, pid: i32) -> Result<SlotTrouble, SqlError> {
    const SQL: &str = "
        SELECT coalesce(nullif(application_name, ''), 'unnamed'),
               coalesce(host(client_addr) || ':' || client_port, 'a unix socket')
        FROM pg_stat_activity WHERE pid = $1";
    let failed = |error| SqlError::new("read who uses the replication slot", error);
    let row = client.query_opt(SQL, &[&pid]).await.map_err(failed)?;
    let (application, client) = match &row {
        Some(row) => (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?),
        None => ("unknown".to_owned(), "unknown".to_owned()),
    };
    Ok(SlotTrouble::InUse { pid, application, client })
}

/// Drops the slot unless somebody reads from it. True when it is gone, false when it is in use.
///
/// For a slot that has delivered nothing, and for releasing a task: what it keeps is then lost to the task.
pub async fn drop_if_inactive(client: &Client, name: &str) -> Result<bool, SqlError> {
    const SQL: &str = "
        SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE slot_name = $1::text AND NOT active";
    // OBJECT_IN_USE and UNDEFINED_OBJECT: somebody was quicker between the look and the drop.
    match client.execute(SQL, &[&name]).await {
        Err(error) if !matches!(error.code().map(|state| state.code()), Some("55006" | "42704")) => {
            Err(SqlError::new(format!("drop replication slot '{name}'"), error))
        }
        _ => Ok(slot_state(client, name).await?.is_none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> SlotState {
        SlotState {
            plugin: Some(PLUGIN.to_owned()),
            database: Some("shop".to_owned()),
            temporary: false,
            active: false,
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            confirmed_flush_lsn: Some(Lsn(2)),
            wal_status: Some(WalStatus::Reserved),
            safe_wal_size: None,
            retained_bytes: 0,
            invalidation_reason: None,
            conflicting: false,
            failover: false,
            synced: false,
        }
    }

    #[test]
    fn every_way_in_which_a_server_gives_a_slot_up_is_lost() {
        assert_eq!(healthy().trouble("shop"), None);
        let lost = |state: SlotState| matches!(state.trouble("shop"), Some(SlotTrouble::Lost { .. }));
        assert!(lost(SlotState { wal_status: Some(WalStatus::Lost), ..healthy() }));
        assert!(lost(SlotState { conflicting: true, ..healthy() }));
        assert!(lost(SlotState { invalidation_reason: Some("idle_timeout".to_owned()), ..healthy() }));
        assert!(!lost(SlotState { wal_status: Some(WalStatus::Unreserved), ..healthy() }));
    }

    #[test]
    fn every_trouble_names_the_slot_and_the_next_step() {
        let troubles = [
            SlotTrouble::Missing,
            SlotTrouble::Lost { reason: "wal_removed".to_owned() },
            SlotTrouble::InUse { pid: 7, application: "x".to_owned(), client: "y".to_owned() },
            SlotTrouble::WrongPlugin { plugin: None },
            SlotTrouble::WrongDatabase { database: "a".to_owned(), expected: "b".to_owned() },
        ];
        for trouble in troubles {
            let text = SlotError::Trouble { name: "millrace_t".to_owned(), trouble }.to_string();
            assert!(text.contains("'millrace_t'") && text.contains(';'), "{text}");
        }
    }
}
