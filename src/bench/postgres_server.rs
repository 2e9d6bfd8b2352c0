//! A throwaway PostgreSQL server, tuned so that what is measured is its walsender and not its disk.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::BenchError;
use super::process::Process;
use super::site::Transport;
use super::work_dir::random_hex;
use crate::postgres::connect::{self, ConnectError};
use crate::postgres::source::{Secret, SourceConfig};

const DEBIAN: &str = "/usr/lib/postgresql";
const START_WITHIN: Duration = Duration::from_secs(60);

/// The disk's noise is kept out of the source (`fsync`, checkpoints); everything else is as a server would have it.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "wal_level=logical",
    "max_wal_senders=20",
    "max_replication_slots=20",
    "fsync=off",
    "synchronous_commit=off",
    "shared_buffers=512MB",
    "max_wal_size=64GB",
    "checkpoint_timeout=1d",
    "autovacuum=off",
    "wal_sender_timeout=60s",
    "unix_socket_permissions=0700",
    "logging_collector=off",
    "jit=off",
    "lc_messages=C",
    "timezone=UTC",
];

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub(super) struct PostgresServer {
    _process: Process,
    directory: PathBuf,
    port: u16,
    password: Secret,
}

impl PostgresServer {
    /// Makes and starts a server in `work`, with the programs in `programs`, or the newest that are installed.
    pub(super) async fn start(work: &Path, programs: Option<&Path>) -> Result<Self, BenchError> {
        let programs = find_programs(programs).await?;
        let user = server_user()?;
        let directory = work.join("postgres");
        let data = directory.join("data");
        let password = Secret::new(random_hex()?);
        let password_file = directory.join("password");
        fs::create_dir(&directory)
            .and_then(|()| fs::write(&password_file, password.expose()))
            .and_then(|()| fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)))
            .and_then(|()| match user {
                Some((uid, gid)) => chown(&password_file, Some(uid), Some(gid))
                    .and_then(|()| chown(&directory, Some(uid), Some(gid))),
                None => Ok(()),
            })
            .map_err(BenchError::io(format!("prepare {}", directory.display())))?;

        let mut initdb = command(&programs.join("initdb"), &directory, user);
        initdb.arg("--pgdata").arg(&data).arg("--pwfile").arg(&password_file);
        initdb.args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        let output = initdb.output().await.map_err(BenchError::io("run initdb"))?;
        if !output.status.success() {
            return Err(BenchError::Ended {
                name: "initdb",
                status: output.status.to_string(),
                log: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }

        let port = free_port()?;
        let mut server = command(&programs.join("postgres"), &directory, user);
        server.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        server.arg("-c").arg(format!("unix_socket_directories={}", directory.display()));
        for setting in SETTINGS {
            server.arg("-c").arg(setting);
        }
        // An immediate shutdown: there is nothing worth saving.
        let process = Process::start("postgres", server, work.join("postgres.log"), libc::SIGQUIT)?;
        let mut server = PostgresServer { _process: process, directory, port, password };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Its database, by `transport`.
    pub(super) fn source(&self, transport: Transport) -> Result<SourceConfig, BenchError> {
        let port = self.port;
        let mut source = SourceConfig::parse(&match transport {
            Transport::Tcp => format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable"),
            Transport::Unix => format!(
                "host='{}' port={port} user=postgres dbname=postgres sslmode=disable",
                self.directory.display()
            ),
        })?;
        source.password = Some(self.password.clone());
        Ok(source)
    }

    async fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        let source = self.source(Transport::Tcp)?;
        let deadline = Instant::now() + START_WITHIN;
        let ready = async {
            loop {
                match connect::connect(&source).await {
                    Ok(_) => return Ok(()),
                    Err(ConnectError::Refused { .. } | ConnectError::NotReady(_))
                        if Instant::now() < deadline =>
                    {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::select! {
            ready = ready => ready,
            error = self._process.ended() => Err(error),
        }
    }
}

/// A command that runs as the server's user.
fn command(program: &Path, directory: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The directory of `initdb` and `postgres`.
async fn find_programs(named: Option<&Path>) -> Result<PathBuf, BenchError> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(named) = named {
        places.push(named.to_owned());
    } else {
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await {
            places.push(String::from_utf8_lossy(&output.stdout).trim().into());
        }
        let mut versions: Vec<u32> = fs::read_dir(DEBIAN)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        places.extend(versions.iter().map(|version| Path::new(DEBIAN).join(version.to_string()).join("bin")));
    }
    let complete = |place: &&PathBuf| place.join("initdb").is_file() && place.join("postgres").is_file();
    match places.iter().find(complete) {
        Some(place) => Ok(place.clone()),
        None => {
            let mut looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            if looked.is_empty() {
                looked.push(format!("pg_config --bindir, {DEBIAN}"));
            }
            Err(BenchError::NoPostgres { looked: looked.join(", ") })
        }
    }
}

/// User and group `postgres` when we are root; `None` when the server can run as we do.
fn server_user() -> Result<Option<(u32, u32)>, BenchError> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(BenchError::io("read /etc/passwd"))?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.map(Some).ok_or(BenchError::NoPostgresUser)
}

/// A port of 127.0.0.1 that nobody uses now.
pub(super) fn free_port() -> Result<u16, BenchError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(BenchError::io("find a free port"))
}
