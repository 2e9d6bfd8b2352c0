//! Where a measurement takes place: the source with its publications and slots, and a directory for everything else;
//! and the processes that are measured there.
//!
//! pgoutput decodes with the catalog as it was when a change was written, so publications have to be there before the
//! backlog is. The backlog stands behind one slot that nobody reads; each drain gets a copy of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::BenchError;
use super::postgres_server::PostgresServer;
use super::process::Usage;
use super::work_dir::WorkDir;
use super::workload::Workload;
use crate::change::Lsn;
use crate::postgres::connect::{self, Control};
use crate::postgres::objects::Objects;
use crate::postgres::publication::SourceOptions;
use crate::postgres::source::{ChannelBinding, Host, RootCert, SourceConfig, SslMode, SslNegotiation};
use crate::postgres::{catalog, publication};

/// The task that Millrace is measured with.
pub(super) const TASK: &str = "bench";
/// The slot that holds the backlog.
pub(super) const BACKLOG_SLOT: &str = "millrace_bench_backlog";

const POLL: Duration = Duration::from_millis(2);
/// How long a process may take to start reading, a slot to become free, or an acknowledgement to arrive.
const SOON: Duration = Duration::from_secs(60);

/// Where to measure.
#[derive(Debug, Args)]
pub(super) struct SiteArguments {
    /// How the server that is started for this is reached
    #[arg(long, value_enum, default_value = "tcp", conflicts_with = "source")]
    transport: Transport,
    /// An empty database to use, instead of a server that is started for this
    #[arg(long, value_name = "POSTGRES-URL")]
    source: Option<String>,
    /// Where the programs of the PostgreSQL to start are; the newest installed when absent
    #[arg(long, value_name = "DIR", conflicts_with = "source")]
    postgres_bin: Option<PathBuf>,
    /// Where to write, on the disk that is to be measured; the directory for temporary files when absent
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the directory with data and logs
    #[arg(long)]
    keep: bool,
}

/// How a server on this machine is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    /// TCP over loopback, without TLS
    Tcp,
    /// A unix socket
    Unix,
}

impl SiteArguments {
    /// Opens the site and measures there. Ends early, and cleans up, at Ctrl-C or SIGTERM.
    pub(super) async fn measure<T>(
        &self,
        workload: Workload,
        measure: impl AsyncFnOnce(&Site) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let listen = |kind| signal(kind).map_err(BenchError::io("listen for signals"));
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let interrupted = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::pin!(interrupted);
        let site = tokio::select! {
            site = self.open(workload) => site?,
            () = &mut interrupted => return Err(BenchError::Interrupted),
        };
        let outcome = tokio::select! {
            outcome = measure(&site) => outcome,
            () = &mut interrupted => Err(BenchError::Interrupted),
        };
        site.close().await;
        outcome
    }

    async fn open(&self, workload: Workload) -> Result<Site, BenchError> {
        let parent = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let work = WorkDir::make(&parent, self.keep)?;
        let (server, source) = match &self.source {
            Some(url) => (None, SourceConfig::parse(url)?),
            None => {
                eprintln!("starting a PostgreSQL server in {}", work.path().display());
                let server = PostgresServer::start(work.path(), self.postgres_bin.as_deref()).await?;
                let source = server.source(self.transport)?;
                (Some(server), source)
            }
        };
        Site::open(work, server, source, workload).await
    }
}

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
        publication::ensure(control, TASK, &SourceOptions::default(), &tables).await?;
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
        Ok(catalog::tracked_tables(&self.control, &Objects::default()).await?)
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
    fn millrace(&self) -> Result<Command, BenchError> {
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

    /// The reader that keeps nothing, which ends its counting after `rows`.
    pub(super) fn bare_reader(&self, slot: &str, rows: u64) -> Result<Command, BenchError> {
        let mut command = self.millrace()?;
        command.args(["bench", "bare-reader"]).arg(self.source.display());
        command.args(["--slot", slot]).arg("--rows").arg(rows.to_string());
        for publication in [publication::full_name(TASK), publication::insert_only_name(TASK)] {
            command.arg("--publication").arg(publication);
        }
        Ok(command)
    }

    /// `millrace up` with the task [`TASK`], whose slot is there already.
    pub(super) fn up(&self, kafka_port: u16, data: &Path) -> Result<Command, BenchError> {
        let mut command = self.millrace()?;
        command.arg("up").arg(self.source.display()).args(["--task", TASK, "--adopt-slot"]);
        command.args(["--heartbeat-seconds", "0", "--http-listen", "127.0.0.1:0"]);
        command.arg("--kafka-listen").arg(format!("127.0.0.1:{kafka_port}"));
        command.arg("--data-dir").arg(data);
        Ok(command)
    }

    /// `millrace up` with a task that starts with the rows that there are.
    pub(super) fn up_with_rows(
        &self,
        kafka_port: u16,
        data: &Path,
        connections: u32,
    ) -> Result<Command, BenchError> {
        let mut command = self.up(kafka_port, data)?;
        command.args(["--start", "snapshot", "--snapshot-connections"]).arg(connections.to_string());
        Ok(command)
    }

    /// COPY of a table by so many connections, each a part of it.
    pub(super) fn bare_copy(&self, table: &str, connections: u32) -> Result<Command, BenchError> {
        let mut command = self.millrace()?;
        command.args(["bench", "bare-copy"]).arg(self.source.display());
        command.args(["--table", table, "--connections"]).arg(connections.to_string());
        Ok(command)
    }

    /// The server that serves the log in a directory from memory.
    pub(super) fn bare_server(&self, port: u16, log: &Path) -> Result<Command, BenchError> {
        let mut command = self.millrace()?;
        command.args(["bench", "bare-server"]).arg(log).arg("--port").arg(port.to_string());
        Ok(command)
    }

    /// Another session, to write with.
    pub(super) async fn writer(&self) -> Result<Control, BenchError> {
        Ok(connect::connect(&self.source).await?)
    }

    /// How the source is reached.
    pub(super) fn transport(&self) -> Transport {
        match &self.source.host {
            Host::Tcp(_) => Transport::Tcp,
            Host::Unix(_) => Transport::Unix,
        }
    }

    /// Where `millrace up` writes.
    pub(super) fn data(&self) -> PathBuf {
        self.work.path().join("data")
    }

    /// Removes what it has written.
    pub(super) async fn remove_data(&self) -> Result<(), BenchError> {
        let directory = self.data();
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BenchError::io(format!("remove {}", directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether the server was started for this.
    pub(super) fn server_is_ours(&self) -> bool {
        self.server.is_some()
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
        // Who catches up by SQL reads a copy of the slot.
        let sql = "
            SELECT coalesce(active_pid, (SELECT max(active_pid) FROM pg_replication_slots
                                         WHERE slot_name LIKE 'millrace\\_catch\\_up\\_%')),
                   coalesce(confirmed_flush_lsn, '0/0')::text
            FROM pg_replication_slots WHERE slot_name = $1::text::name";
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

/// What `pg_replication_slots` says of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct SlotState {
    pid: Option<u32>,
    confirmed: Lsn,
}
