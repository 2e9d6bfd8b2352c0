//! Where a measurement takes place: the source with its publications and slots, and a directory for everything else.
//!
//! pgoutput decodes with the catalog as it was when a change was written, so publications have to be there before the
//! backlog is. The backlog stands behind one slot that nobody reads; each drain gets a copy of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::BenchError;
use super::postgres_server::PostgresServer;
use super::process::Usage;
use super::work_dir::WorkDir;
use super::workload::Workload;
use crate::change::Lsn;
use crate::postgres::connect::{self, Control};
use crate::postgres::source::{ChannelBinding, Host, RootCert, SourceConfig, SslMode, SslNegotiation};
use crate::postgres::{catalog, publication};

/// The task that Millrace is measured with.
pub(super) const TASK: &str = "bench";
/// The slot that holds the backlog.
pub(super) const BACKLOG_SLOT: &str = "millrace_bench_backlog";

const POLL: Duration = Duration::from_millis(2);
/// How long a process may take to start reading, a slot to become free, or an acknowledgement to arrive.
const SOON: Duration = Duration::from_secs(60);

/// A source that is ready, and a directory.
#[derive(Debug)]
pub(super) struct Site {
    control: Control,
    source: SourceConfig,
    server: Option<PostgresServer>,
    // Dropped last, when nobody writes there any more.
    work: WorkDir,
}

impl Site {
    /// Makes the table, the publications and the backlog's slot at the source, which has to be empty.
    pub(super) async fn open(
        work: WorkDir,
        server: Option<PostgresServer>,
        source: SourceConfig,
        workload: Workload,
    ) -> Result<Self, BenchError> {
        let control = connect::connect(&source).await?;
        let site = Site { control, source, server, work };
        let control = &site.control;
        if let Some(table) = site.tables().await?.first() {
            return Err(BenchError::NotEmpty { found: format!("table {}.{}", table.schema, table.name) });
        }
        workload.prepare(control).await?;
        let tables = site.tables().await?;
        publication::ensure(control, TASK, &tables).await?;
        site.create_slot(BACKLOG_SLOT).await?;
        Ok(site)
    }

    /// Removes what was made at a source that is not ours.
    pub(super) async fn close(self) {
        if self.server.is_some() {
            return;
        }
        if let Err(error) = self.clean_up().await {
            eprintln!("something may be left in the source: {error}");
        }
    }

    async fn clean_up(&self) -> Result<(), BenchError> {
        let slots = [BACKLOG_SLOT, "millrace_bench", "millrace_bench_bare"];
        for slot in slots {
            self.drop_slot(slot).await?;
        }
        publication::drop(&self.control, TASK).await?;
        Workload::remove(&self.control).await
    }

    async fn tables(&self) -> Result<Vec<catalog::TrackedTable>, BenchError> {
        Ok(catalog::tracked_tables(&self.control).await?)
    }

    /// The session for everything that is not measured.
    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) fn directory(&self) -> &Path {
        self.work.path()
    }

    /// This very binary, told how to reach the source by its environment, so that no password is in its arguments, and
    /// with no setting of ours.
    pub(super) fn millrace(&self) -> Result<Command, BenchError> {
        let program: PathBuf = std::env::current_exe().map_err(BenchError::io("find this binary"))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("MILLRACE_")) {
                command.env_remove(name);
            }
        }
        let source = &self.source;
        if let Some(password) = &source.password {
            command.env("PGPASSWORD", password.expose());
        }
        command.env(
            "PGSSLMODE",
            match source.sslmode {
                SslMode::Disable => "disable",
                SslMode::Allow => "allow",
                SslMode::Prefer => "prefer",
                SslMode::Require => "require",
                SslMode::VerifyCa => "verify-ca",
                SslMode::VerifyFull => "verify-full",
            },
        );
        command.env(
            "PGSSLNEGOTIATION",
            match source.sslnegotiation {
                SslNegotiation::Postgres => "postgres",
                SslNegotiation::Direct => "direct",
            },
        );
        command.env(
            "PGCHANNELBINDING",
            match source.channel_binding {
                ChannelBinding::Disable => "disable",
                ChannelBinding::Prefer => "prefer",
                ChannelBinding::Require => "require",
            },
        );
        match &source.sslrootcert {
            Some(RootCert::System) => command.env("PGSSLROOTCERT", "system"),
            Some(RootCert::File(path)) => command.env("PGSSLROOTCERT", path),
            None => &mut command,
        };
        if let (Some(certificate), Some(key)) = (&source.sslcert, &source.sslkey) {
            command.env("PGSSLCERT", certificate).env("PGSSLKEY", key);
        }
        Ok(command)
    }

    /// Where the source is.
    pub(super) fn host(&self) -> &Host {
        &self.source.host
    }

    /// Whether the server was started for this.
    pub(super) fn server_is_ours(&self) -> bool {
        self.server.is_some()
    }

    /// The source's URL without its password.
    pub(super) fn url(&self) -> String {
        self.source.display()
    }

    /// A slot that starts here and now.
    pub(super) async fn create_slot(&self, slot: &str) -> Result<(), BenchError> {
        let sql = "SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
        self.control
            .execute(sql, &[&slot])
            .await
            .map(drop)
            .map_err(BenchError::sql("make a replication slot"))
    }

    /// A copy of the backlog's slot: the same changes, once more.
    pub(super) async fn copy_backlog(&self, slot: &str) -> Result<(), BenchError> {
        let sql = "SELECT pg_copy_logical_replication_slot($1::text::name, $2::text::name)";
        self.control
            .execute(sql, &[&BACKLOG_SLOT, &slot])
            .await
            .map(drop)
            .map_err(BenchError::sql("copy the replication slot"))
    }

    /// Drops a slot, if it is there, as soon as nobody uses it.
    pub(super) async fn drop_slot(&self, slot: &str) -> Result<(), BenchError> {
        self.until(slot, "a replication slot to become free", |state| state.pid.is_none()).await?;
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1::text::name";
        self.control
            .execute(sql, &[&slot])
            .await
            .map(drop)
            .map_err(BenchError::sql("drop a replication slot"))
    }

    /// Returns when somebody reads from the slot, with the walsender that serves it.
    pub(super) async fn until_read(&self, slot: &str) -> Result<u32, BenchError> {
        let state = self.until(slot, "starting to read", |state| state.pid.is_some()).await?;
        Ok(state.pid.unwrap_or_default())
    }

    /// Returns when the slot is acknowledged to `lsn` or further, with the walsender that serves it.
    pub(super) async fn until_confirmed(&self, slot: &str, lsn: Lsn) -> Result<Option<u32>, BenchError> {
        let state =
            self.until(slot, "the acknowledgement of the last transaction", |state| state.confirmed >= lsn);
        Ok(state.await?.pid)
    }

    /// Looks at a slot until it is as wanted. One that does not exist is free.
    async fn until(
        &self,
        slot: &str,
        what: &'static str,
        wanted: impl Fn(&SlotState) -> bool,
    ) -> Result<SlotState, BenchError> {
        let sql = "SELECT active_pid, coalesce(confirmed_flush_lsn, '0/0')::text FROM pg_replication_slots WHERE slot_name = $1::text::name";
        let statement =
            self.control.prepare(sql).await.map_err(BenchError::sql("look at a replication slot"))?;
        let looking = async {
            loop {
                let row = self.control.query_opt(&statement, &[&slot]).await;
                let state = match row.map_err(BenchError::sql("look at a replication slot"))? {
                    None => SlotState::default(),
                    Some(row) => SlotState {
                        pid: row.get::<_, Option<i32>>(0).map(i32::cast_unsigned),
                        confirmed: row.get::<_, &str>(1).parse().unwrap_or_default(),
                    },
                };
                if wanted(&state) {
                    return Ok(state);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(SOON, looking).await {
            Ok(found) => found,
            Err(_) => Err(BenchError::Stalled { what, after: SOON, log: String::new() }),
        }
    }

    /// What a walsender has used; known where the server is ours and so on this machine.
    pub(super) fn walsender_usage(&self, pid: u32) -> Result<Option<Usage>, BenchError> {
        match (&self.server, Usage::of(pid)) {
            (None, _) => Ok(None),
            (Some(_), Ok(usage)) => Ok(Some(usage)),
            (Some(_), Err(source)) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            (Some(_), Err(source)) => Err(BenchError::io("read what the walsender has used")(source)),
        }
    }
}

/// The publications of [`TASK`].
pub(super) fn publications() -> [String; 2] {
    [publication::full_name(TASK), publication::insert_only_name(TASK)]
}

/// What `pg_replication_slots` says of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct SlotState {
    pid: Option<u32>,
    confirmed: Lsn,
}
