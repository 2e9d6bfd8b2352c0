//! PostgreSQL servers. `initdb` runs once per version and its result is kept under `target/postgres`; each server
//! starts from a copy. As root the server runs as user `postgres`, because it refuses to run as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::child;
use crate::free_port;

/// Password of the superuser `postgres`, who owns everything at first. Needed over TCP, not over the unix socket.
pub const PASSWORD: &str = "millrace-test";

/// Start of the name of each server's directory; the test process's id follows.
const HOME_PREFIX: &str = "millrace-pg-";

/// How to start a server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    major: u32,
    settings: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    locales: Option<PathBuf>,
    hba: Option<String>,
}

impl Default for PostgresOptions {
    /// The version that `MILLRACE_TEST_PG` names, 15 without it; `wal_level=logical`, `fsync=off`.
    fn default() -> Self {
        let major = match std::env::var("MILLRACE_TEST_PG") {
            Ok(text) => {
                text.parse().unwrap_or_else(|_| panic!("MILLRACE_TEST_PG is '{text}': give a number like 18"))
            }
            Err(_) => 15,
        };
        PostgresOptions { major, settings: Vec::new(), files: Vec::new(), locales: None, hba: None }
    }
}

impl PostgresOptions {
    /// Another major version than the environment asks for.
    pub fn major(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// A line of `postgresql.conf`; a later one for the same name wins, ours included.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The major version.
    pub fn version(&self) -> u32 {
        self.major
    }

    /// A file in the data directory, such as a certificate or key (mode 0600).
    pub fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), contents.into()));
        self
    }

    /// The directory with the locales that the server has, instead of the system's.
    pub fn locales(mut self, directory: &Path) -> Self {
        self.locales = Some(directory.to_owned());
        self
    }

    /// All of `pg_hba.conf`, instead of trust on the unix socket and SCRAM over TCP.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }
}

/// A running (or, in between, stopped) server.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    major: u32,
    port: u16,
    programs: PathBuf,
    locales: Option<PathBuf>,
    // Dropped last: the server's files are removed when it has ended.
    home: tempfile::TempDir,
}

impl Postgres {
    /// Starts a server with one database, `postgres`, and waits until it accepts connections.
    pub async fn start(options: PostgresOptions) -> Postgres {
        let programs = programs(options.major);
        let template = template(options.major, &programs);
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(remove_what_killed_tests_left);
        let home = new_home();
        copy(&template, &home.path().join("data"));
        let server =
            Postgres { child: None, major: options.major, port: 0, programs, locales: options.locales, home };
        server.configure(&options.settings);
        for (name, contents) in &options.files {
            server.write(name, contents);
        }
        if let Some(lines) = &options.hba {
            server.write("pg_hba.conf", lines.as_bytes());
        }
        server.start_on_a_free_port().await
    }

    async fn start_on_a_free_port(mut self) -> Postgres {
        self.set("unix_socket_directories", &self.home.path().display().to_string());
        // Between finding a free port and listening on it someone else may take it.
        for _ in 0..5 {
            self.port = free_port();
            self.set("port", &self.port.to_string());
            if self.try_start().await {
                return self;
            }
        }
        panic!("postgres {} does not start:\n{}", self.major, self.log());
    }

    /// A streaming standby of it, which uses the physical slot `standby`. Stops it for the copy, and starts it again.
    pub async fn standby(&mut self, settings: &[(&str, &str)]) -> Postgres {
        let make_slot = "SELECT pg_create_physical_replication_slot('standby', true)";
        self.client().await.batch_execute(make_slot).await.expect("make the standby's slot");
        self.stop_fast().await;
        let home = new_home();
        copy(&self.data_dir(), &home.path().join("data"));
        self.start_again().await;
        // Slots are not part of a base backup.
        for slot in fs::read_dir(home.path().join("data/pg_replslot")).expect("list the slots").flatten() {
            fs::remove_dir_all(slot.path()).expect("remove a copied slot");
        }
        let standby = Postgres {
            child: None,
            major: self.major,
            port: 0,
            programs: self.programs.clone(),
            locales: self.locales.clone(),
            home,
        };
        standby.write("standby.signal", b"");
        let primary = format!(
            "host={} port={} user=postgres dbname=postgres application_name=standby",
            self.home.path().display(),
            self.port
        );
        standby.set("primary_conninfo", &primary);
        standby.set("primary_slot_name", "standby");
        standby.set("hot_standby_feedback", "on");
        for (name, value) in settings {
            standby.set(name, value);
        }
        standby.start_on_a_free_port().await
    }

    /// Makes a standby the primary, and waits until it is.
    pub async fn promote(&self) {
        let promoted = self.client().await.query_one("SELECT pg_promote(true, 60)", &[]).await;
        assert!(promoted.expect("promote the standby").get::<_, bool>(0), "not promoted:\n{}", self.log());
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Its port on 127.0.0.1, the same for all its life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of its unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.home.path()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// URL of database `postgres` for the superuser, over TCP.
    pub fn url(&self) -> String {
        self.url_for("postgres", PASSWORD, "postgres")
    }

    /// URL over TCP. The parts are used as they are.
    pub fn url_for(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// URL of database `postgres` for the superuser, over the unix socket, without a password.
    pub fn unix_url(&self) -> String {
        let directory = self.home.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{directory}:{}/postgres", self.port)
    }

    /// A session of the superuser.
    pub async fn client(&self) -> Client {
        self.client_for(&self.url()).await
    }

    /// A session by a URL of [`Postgres::url_for`].
    pub async fn client_for(&self, url: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .unwrap_or_else(|error| panic!("connect to the test's postgres: {error:?}\n{}", self.log()));
        // Ends with the client, or with the server.
        tokio::spawn(connection);
        client
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// Shutdown as an administrator does it: SIGINT, which waits until walsenders have sent everything.
    pub async fn stop_fast(&mut self) {
        self.stop(libc::SIGINT).await;
    }

    /// Shutdown without a checkpoint: SIGQUIT, recovery at the next start.
    pub async fn stop_immediate(&mut self) {
        self.stop(libc::SIGQUIT).await;
    }

    /// Starts a stopped server again, on the same port.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        assert!(self.try_start().await, "postgres {} does not start again:\n{}", self.major, self.log());
    }

    /// `pg_ctl restart -m immediate`.
    pub async fn restart_immediate(&mut self) {
        self.stop_immediate().await;
        self.start_again().await;
    }

    /// Adds a line to `postgresql.conf`; counts from the next start or reload.
    pub fn set(&self, name: &str, value: &str) {
        use std::io::Write;
        let path = self.data_dir().join("postgresql.conf");
        let mut file = fs::OpenOptions::new().append(true).open(path).expect("open postgresql.conf");
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).expect("write postgresql.conf");
    }

    /// Gives a setting another value while the server runs.
    pub async fn reset(&self, name: &str, value: &str) {
        self.set(name, value);
        let reload = self.client().await.batch_execute("SELECT pg_reload_conf()").await;
        reload.expect("reload the server's settings");
    }

    fn configure(&self, settings: &[(String, String)]) {
        let ours = [
            ("listen_addresses", "127.0.0.1"),
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("shared_buffers", "64MB"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("logging_collector", "off"),
            ("log_line_prefix", "%m [%p] %a "),
            ("timezone", "UTC"),
            ("lc_messages", "C"),
        ];
        self.write("postgresql.conf", b"");
        for (name, value) in ours {
            self.set(name, value);
        }
        for (name, value) in settings {
            self.set(name, value);
        }
    }

    fn write(&self, name: &str, contents: &[u8]) {
        let path = self.data_dir().join(name);
        fs::write(&path, contents).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        give_to_server(&path, 0o600);
    }

    async fn try_start(&mut self) -> bool {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.home.path().join("log"));
        let log = log.expect("open the server's log");
        let mut command = as_server(Command::new(self.programs.join("postgres")));
        command.arg("-D").arg(self.data_dir()).stdin(Stdio::null()).current_dir(self.home.path());
        command.stdout(log.try_clone().expect("share the server's log")).stderr(log);
        if let Some(locales) = &self.locales {
            command.env("LOCPATH", locales);
        }
        // Its own group: Ctrl-C at the terminal is for the tests, which then end it.
        command.process_group(0);
        let mut child = child::spawn(command, libc::SIGQUIT).expect("start postgres");
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if child.try_wait().expect("look at postgres").is_some() {
                return false;
            }
            if self.accepts_connections(child.id()) {
                self.child = Some(child);
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        child::end(&mut child, libc::SIGQUIT);
        false
    }

    /// `postmaster.pid` says so in its eighth line; a file of the run before has another process id.
    fn accepts_connections(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        lines.next().is_some_and(|line| line.trim() == pid.to_string())
            && lines.nth(6).is_some_and(|line| matches!(line.trim(), "ready" | "standby"))
    }

    async fn stop(&mut self, signal: libc::c_int) {
        let mut child = self.child.take().expect("the server runs");
        child::signal(&child, signal);
        if child::wait(&mut child, Duration::from_secs(60)).await.is_none() {
            child::end(&mut child, libc::SIGQUIT);
            panic!("postgres did not stop within a minute:\n{}", self.log());
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child::end(child, libc::SIGQUIT);
        }
    }
}

/// A directory for a server and what belongs to it.
fn new_home() -> tempfile::TempDir {
    let prefix = format!("{HOME_PREFIX}{}-", std::process::id());
    let home = tempfile::Builder::new().prefix(&prefix).tempdir().expect("make a temporary directory");
    give_to_server(home.path(), 0o755);
    home
}

/// A test process that was killed had no time to remove its servers' directories.
fn remove_what_killed_tests_left() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(HOME_PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test process may be at it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Where the project keeps what tests need and `cargo clean` may remove.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/postgres")
}

/// The directory with the `postgres` and `initdb` of a major version.
fn programs(major: u32) -> PathBuf {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(directory) = std::env::var_os("MILLRACE_PG_DIR") {
        places.push(PathBuf::from(directory).join(major.to_string()).join("bin"));
    }
    places.push(format!("/usr/lib/postgresql/{major}/bin").into());
    places.push(format!("/var/cache/millrace/postgres/{major}/bin").into());
    places.push(cache().join(major.to_string()).join("bin"));
    let found =
        places.iter().find(|place| place.join("postgres").is_file() && place.join("initdb").is_file());
    found.cloned().unwrap_or_else(|| {
        panic!("no postgres {major} in {places:?}: install it, or run deploy/fetch-postgres.sh {major}")
    })
}

/// A fresh cluster of this version to copy from, made by the first who needs it.
fn template(major: u32, programs: &Path) -> PathBuf {
    let kept = cache().join(format!("template-{major}"));
    if kept.is_dir() {
        return kept;
    }
    let work =
        tempfile::Builder::new().prefix("millrace-initdb-").tempdir().expect("make a temporary directory");
    give_to_server(work.path(), 0o755);
    let password = work.path().join("password");
    fs::write(&password, PASSWORD).expect("write the password file");
    give_to_server(&password, 0o600);
    let data = work.path().join("data");
    let mut initdb = as_server(Command::new(programs.join("initdb")));
    initdb.arg("-D").arg(&data).arg("--pwfile").arg(&password).current_dir(work.path());
    initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]);
    initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
    let output = initdb.output().expect("run initdb");
    assert!(output.status.success(), "initdb of {major} failed: {}", String::from_utf8_lossy(&output.stderr));

    fs::create_dir_all(cache()).expect("make target/postgres");
    let aside = tempfile::Builder::new().prefix(".template-").tempdir_in(cache()).expect("make a directory");
    copy(&data, &aside.path().join("data"));
    // Another test process may have been quicker: what is there then is as good.
    let renamed = fs::rename(aside.path().join("data"), &kept);
    assert!(renamed.is_ok() || kept.is_dir(), "keep the cluster template: {renamed:?}");
    kept
}

/// Copies a tree with owners and modes, without copying blocks where the file system can share them.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "copy {}: {status:?}", from.display());
}

/// Makes `command` run as the user that may run a server.
fn as_server(mut command: Command) -> Command {
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command.env_remove("LD_LIBRARY_PATH").env("LC_ALL", "C");
    command
}

fn give_to_server(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set a file's mode");
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).expect("give a file to the server's user");
    }
}

/// User and group `postgres` where we are root; `None` where the server can run as ourselves.
fn server_user() -> Option<(u32, u32)> {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.expect(
        "postgres refuses to run as root, and there is no user 'postgres' (apt-get install postgresql)",
    ))
}
