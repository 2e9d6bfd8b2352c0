//! The connection to a source, against a real PostgreSQL that these tests start: every way in, every refusal, and what
//! the stream carries. `MILLRACE_TEST_PG` chooses the major version, 15 unless said otherwise.

// Clippy's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use millrace::change::{Before, Lsn, Row, Timestamp, Value};
use millrace::postgres::connect::{ConnectError, Control, connect};
use millrace::postgres::pgoutput::{Cells, Message, parse, protocol_for};
use millrace::postgres::publication::Origin;
use millrace::postgres::replication::{
    Frame, ReplicationConnection, ReplicationStream, SlotLife, Snapshot, StartOptions, Status, StreamLimits,
};
use millrace::postgres::server_error::sqlstate;
use millrace::postgres::source::SourceConfig;
use millrace::postgres::tls::TlsError;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL with TLS, a role for each way to log in, and tiny memory for decoding. Stopped when the last test that
/// uses it ends.
struct Server {
    directory: TempDir,
    process: Child,
    port: u16,
}

fn major() -> u32 {
    std::env::var("MILLRACE_TEST_PG").map_or(15, |major| major.parse().expect("a major version"))
}

static RUNNING: Mutex<Weak<Server>> = Mutex::new(Weak::new());

impl Server {
    fn get() -> Arc<Server> {
        let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        running.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start());
            *running = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Server {
        let directory = tempfile::tempdir().unwrap();
        let (root, data) = (directory.path(), directory.path().join("data"));
        let account = Account::that_may_run_postgres();
        write_certificates(root);
        account.own(root);
        let mut initdb = account.command("initdb", root);
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root_text = root.display();
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{root_text}'\n\
             wal_level = logical\nfsync = off\nmax_wal_senders = 30\nmax_replication_slots = 30\n\
             logical_decoding_work_mem = '64kB'\nssl = on\nssl_cert_file = '{root_text}/server.crt'\n\
             ssl_key_file = '{root_text}/server.key'\nssl_ca_file = '{root_text}/ca.crt'\n\
             datestyle = 'German, DMY'\nintervalstyle = 'iso_8601'\nbytea_output = 'escape'\ntimezone = 'Asia/Tokyo'\n\
             statement_timeout = '30s'\nidle_session_timeout = '30s'\n"
        );
        std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        std::fs::write(
            data.join("pg_hba.conf"),
            "local all postgres trust\nlocal all scram scram-sha-256\nlocal all reader trust\nhost all postgres 127.0.0.1/32 trust\n\
             host all scram 127.0.0.1/32 scram-sha-256\nhost all md5 127.0.0.1/32 md5\n\
             host all clear 127.0.0.1/32 password\nhostssl all only_tls 127.0.0.1/32 scram-sha-256\n\
             hostnossl all only_plain 127.0.0.1/32 scram-sha-256\nhostssl all cert 127.0.0.1/32 cert\n",
        )
        .unwrap();
        account.own(&data.join("postgresql.auto.conf"));
        account.own(&data.join("pg_hba.conf"));
        let log = std::fs::File::create(root.join("log")).unwrap();
        let process = account
            .command("postgres", root)
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { directory, process, port };
        server.sql(
            "postgres",
            "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'p@ss/w:rd %';
             CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pw'; CREATE ROLE only_tls LOGIN REPLICATION PASSWORD 'pw';
             CREATE ROLE only_plain LOGIN REPLICATION PASSWORD 'pw'; CREATE ROLE cert LOGIN REPLICATION;
             CREATE ROLE reader LOGIN;
             SET password_encryption = md5; CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'pw';",
        );
        server
    }

    /// Runs statements with psql, which is no code of ours; waits for the server to be there.
    fn sql(&self, dbname: &str, statements: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = Command::new("psql")
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", dbname, "-c", statements])
                .arg("-h")
                .arg(self.directory.path())
                .args(["-p", &self.port.to_string()])
                .env("PGOPTIONS", "-c client_min_messages=error")
                .output()
                .unwrap();
            if output.status.success() {
                return;
            }
            // 2: no connection yet.
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(2) && Instant::now() < deadline, "{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tcp(&self, user: &str, rest: &str) -> SourceConfig {
        SourceConfig::parse(&format!("postgres://{user}@127.0.0.1:{}/{rest}", self.port)).unwrap()
    }

    fn unix(&self, user: &str, dbname: &str) -> SourceConfig {
        let directory = self.directory.path().display();
        SourceConfig::parse(&format!("postgres://{user}@/{dbname}?host={directory}&port={}", self.port))
            .unwrap()
    }

    /// A database of its own for a test.
    fn database(&self, name: &str, statements: &str) -> SourceConfig {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.sql(name, statements);
        self.unix("postgres", name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: signals a child that has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.process.id() as libc::pid_t, libc::SIGQUIT) };
        let _ = self.process.wait();
    }
}

/// PostgreSQL refuses to run as root; then it runs as `postgres`.
struct Account(Option<(u32, u32)>);

impl Account {
    fn that_may_run_postgres() -> Account {
        // SAFETY: no arguments, no failure.
        if unsafe { libc::geteuid() } != 0 {
            return Account(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("an account 'postgres'");
        let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
        Account(Some((ids.next().unwrap(), ids.next().unwrap())))
    }

    fn command(&self, program: &str, directory: &Path) -> Command {
        let major = major();
        let places = ["/usr/lib/postgresql", "/var/cache/millrace/postgres"];
        let mut programs = places.iter().map(|place| Path::new(place).join(format!("{major}/bin/{program}")));
        let mut command =
            Command::new(programs.find(|path| path.is_file()).expect("PostgreSQL is installed"));
        command.current_dir(directory);
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }

    fn own(&self, path: &Path) {
        if let Some((user, group)) = self.0 {
            chown(path, Some(user), Some(group)).unwrap();
            if path.is_dir() {
                std::fs::read_dir(path).unwrap().for_each(|entry| self.own(&entry.unwrap().path()));
            }
        }
    }
}

/// An authority with a server's and a client's certificate, and another authority that signed nothing.
fn write_certificates(directory: &Path) {
    let authority = || {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), Issuer::new(params, key))
    };
    let (ca, issuer) = authority();
    let (other, _) = authority();
    let write = |name: &str, pem: String| {
        let path = directory.join(name);
        std::fs::write(&path, pem).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("ca.crt", ca.pem());
    write("other.crt", other.pem());
    for (file, name, common_name) in [("server", "localhost", "server"), ("client", "client", "cert")] {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        write(&format!("{file}.crt"), params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
}

/// Both kinds of connection.
async fn both(config: &SourceConfig) -> Result<(Control, ReplicationConnection), ConnectError> {
    Ok((connect(config).await?, ReplicationConnection::connect(config).await?))
}

#[tokio::test]
async fn every_way_in_is_found_by_both_kinds_of_connection() {
    let server = Server::get();
    let scram = "scram:p%40ss%2Fw%3Ard%20%25";
    let ca = server.file("ca.crt");
    let (ca, cert, key) = (ca.display(), server.file("client.crt"), server.file("client.key"));
    let mut configs = vec![
        server.unix("postgres", "postgres"),
        server.unix(scram, "postgres"),
        server.tcp("postgres", "postgres?sslmode=disable"),
        server.tcp(scram, "postgres?sslmode=disable"),
        server.tcp(scram, "postgres"),
        server.tcp(scram, "postgres?sslmode=require&channel_binding=require"),
        server.tcp(scram, "postgres?sslmode=require&channel_binding=disable"),
        server.tcp("md5:pw", "postgres?sslmode=disable"),
        server.tcp("clear:pw", "postgres?sslmode=disable"),
        // Let in by TLS only, and without TLS only: both modes find the way that works.
        server.tcp("only_tls:pw", "postgres?sslmode=allow"),
        server.tcp("only_plain:pw", "postgres?sslmode=prefer"),
        server.tcp("only_tls:pw", &format!("postgres?sslmode=verify-ca&sslrootcert={ca}")),
        server.tcp(
            "cert",
            &format!("postgres?sslmode=require&sslcert={}&sslkey={}", cert.display(), key.display()),
        ),
    ];
    let by_name = format!(
        "postgres://only_tls:pw@localhost:{}/postgres?sslmode=verify-full&sslrootcert={ca}&channel_binding=require",
        server.port
    );
    configs.push(SourceConfig::parse(&by_name).unwrap());
    if major() >= 17 {
        configs.push(SourceConfig::parse(&format!("{by_name}&sslnegotiation=direct")).unwrap());
    }
    for config in configs {
        let (control, mut replication) = both(&config).await.unwrap_or_else(|e| panic!("{config}: {e}"));
        let row =
            control.query_one("SELECT current_user::text, current_setting('DateStyle')", &[]).await.unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (config.user.as_str(), "ISO, YMD"));
        let system = replication.identify_system().await.unwrap();
        assert_eq!((system.dbname.as_deref(), system.timeline), (Some("postgres"), 1));
        assert!(system.xlogpos > Lsn::ZERO && system.system_identifier > 0);
        assert_eq!(control.server_version() / 10_000, major());
        assert_eq!(replication.server_version(), control.server_version());
        assert_eq!(replication.wal_sender_timeout(), Some(Duration::from_secs(60)));
    }
}

#[tokio::test]
async fn every_refusal_says_what_is_wrong_and_shows_no_password() {
    let server = Server::get();
    let other = server.file("other.crt");
    let verify = |rest: &str| server.tcp("only_tls:hunter2", &format!("postgres?{rest}"));
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let parse = |url: &str| SourceConfig::parse(url).unwrap();
    type Expected = fn(&ConnectError) -> bool;
    let cases: [(SourceConfig, bool, Expected); 12] = [
        (server.tcp("scram:hunter2", "postgres"), false, |e| matches!(e, ConnectError::WrongPassword { .. })),
        (server.tcp("md5:hunter2", "postgres"), false, |e| matches!(e, ConnectError::WrongPassword { .. })),
        (server.tcp("scram", "postgres?passfile=/nonexistent"), false, |e| {
            matches!(e, ConnectError::NoPassword { .. })
        }),
        (server.unix("postgres", "absent"), false, |e| matches!(e, ConnectError::UnknownDatabase { .. })),
        (server.tcp("nobody", "postgres"), false, |e| matches!(e, ConnectError::NotAllowed { .. })),
        (parse(&format!("postgres://u@127.0.0.1:{closed_port}/d")), true, |e| {
            matches!(e, ConnectError::Refused { .. })
        }),
        (parse("postgres://u@no-such-host.invalid/d"), true, |e| {
            matches!(e, ConnectError::HostNotFound { .. })
        }),
        (parse("postgres://u@/d?host=/nonexistent"), true, |e| matches!(e, ConnectError::Socket { .. })),
        (verify("sslmode=verify-full&sslrootcert=/nonexistent"), false, |e| {
            matches!(e, ConnectError::Tls { source: TlsError::File { .. }, .. })
        }),
        (verify(&format!("sslmode=verify-ca&sslrootcert={}", other.display())), false, |e| {
            matches!(e, ConnectError::Tls { source: TlsError::Certificate(_), .. })
        }),
        // The certificate is for "localhost".
        (
            verify(&format!("sslmode=verify-full&sslrootcert={}", server.file("ca.crt").display())),
            false,
            |e| matches!(e, ConnectError::Tls { source: TlsError::Certificate(_), .. }),
        ),
        (server.tcp("clear:hunter2", "postgres?sslmode=require&channel_binding=require"), false, |e| {
            matches!(e, ConnectError::Authentication(_))
        }),
    ];
    for (config, retryable, expected) in cases {
        let errors = [
            connect(&config).await.map(drop).unwrap_err(),
            ReplicationConnection::connect(&config).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(expected(&error), "{config}: {error:?}");
            assert_eq!(error.is_retryable(), retryable, "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
    let reader = server.unix("reader", "postgres");
    connect(&reader).await.unwrap();
    let error = ReplicationConnection::connect(&reader).await.map(drop).unwrap_err();
    assert!(matches!(error, ConnectError::NoReplication { .. }) && !error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_slot_is_made_refused_twice_used_once_and_dropped() {
    let server = Server::get();
    let config = server.database("slots", "CREATE PUBLICATION p FOR ALL TABLES");
    let mut first = ReplicationConnection::connect(&config).await.unwrap();
    let mut second = ReplicationConnection::connect(&config).await.unwrap();
    let created = first.create_slot("slots_a", SlotLife::Permanent, Snapshot::None).await.unwrap();
    assert!(created.consistent_point > Lsn::ZERO && created.snapshot_name.is_none());
    let code = |result: Result<(), millrace::postgres::replication::ReplicationError>| {
        result.unwrap_err().server().map(|server| server.code.clone()).unwrap_or_default()
    };
    // After an error the connection is usable.
    assert_eq!(
        code(first.create_slot("slots_a", SlotLife::Permanent, Snapshot::None).await.map(drop)),
        sqlstate::DUPLICATE_OBJECT
    );
    assert_eq!(code(first.drop_slot("1absent").await), sqlstate::UNDEFINED_OBJECT);
    let exported = first.create_slot("slots_b", SlotLife::Temporary, Snapshot::Export).await.unwrap();
    assert!(exported.snapshot_name.is_some());
    let stream = first.start("slots_a", Lsn::ZERO, &options(major() * 10_000)).await.unwrap();
    assert_eq!(code(second.drop_slot("slots_a").await), sqlstate::OBJECT_IN_USE);
    let third = ReplicationConnection::connect(&config).await.unwrap();
    let in_use = third.start("slots_a", Lsn::ZERO, &options(major() * 10_000)).await.map(drop).unwrap_err();
    assert!(
        in_use.is_retryable() && in_use.server().is_some_and(|e| e.is(sqlstate::OBJECT_IN_USE)),
        "{in_use}"
    );
    stream.stop().await;
    second.drop_slot("slots_a").await.expect("after an orderly stop the slot is free");
}

fn options(server_version: u32) -> StartOptions {
    StartOptions {
        protocol: protocol_for(server_version),
        publications: vec!["p".to_owned()],
        streaming: true,
        messages: true,
        origin: Origin::Any,
        binary: false,
        limits: StreamLimits::default(),
    }
}

/// A stream with what is needed to read it.
struct Changes {
    stream: ReplicationStream,
    cells: Cells,
    in_stream: bool,
}

impl Changes {
    /// Creates a slot of the database's name and streams from it.
    async fn of(config: &SourceConfig, adjust: impl Fn(&mut StartOptions)) -> Changes {
        let mut connection = ReplicationConnection::connect(config).await.unwrap();
        let created =
            connection.create_slot(&config.dbname, SlotLife::Temporary, Snapshot::None).await.unwrap();
        let mut options = options(connection.server_version());
        adjust(&mut options);
        let stream = connection.start(&config.dbname, created.consistent_point, &options).await.unwrap();
        Changes { stream, cells: Cells::default(), in_stream: false }
    }

    /// Reads until `end` says that a message was the last, giving each message to it.
    async fn read(&mut self, mut end: impl FnMut(&Message<'_>) -> bool) {
        let reading = async {
            loop {
                while let Some(frame) = self.stream.next_frame().unwrap() {
                    let Frame::Data { body, start, server_end, .. } = frame else { continue };
                    assert!(start <= server_end);
                    let message = parse(body, self.in_stream, &mut self.cells).unwrap();
                    match message {
                        Message::StreamStart { .. } => self.in_stream = true,
                        Message::StreamStop => self.in_stream = false,
                        _ => {}
                    }
                    if end(&message) {
                        return;
                    }
                }
                self.stream.fill().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the stream ended too early");
    }

    /// Descriptions of all messages up to and with the logical message "end".
    async fn until_end(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        self.read(|message| {
            all.push(describe(message));
            matches!(message, Message::LogicalMessage { prefix: "end", .. })
        })
        .await;
        all
    }
}

fn describe(message: &Message<'_>) -> String {
    let row = |row: &Row<'_>| {
        let mut text = String::new();
        for value in row.values() {
            match value {
                Value::Null => text.push_str(" null"),
                Value::Unsent => text.push_str(" unsent"),
                Value::Text(bytes) if bytes.len() > 1000 => {
                    write!(text, " {}x{}", char::from(bytes[0]), bytes.len()).unwrap()
                }
                Value::Text(bytes) => write!(text, " {}", String::from_utf8_lossy(bytes)).unwrap(),
                Value::Binary(bytes) => write!(text, " {bytes:02x?}").unwrap(),
            }
        }
        text
    };
    let before = |old: &Before<'_>| match old {
        Before::Key(old) => format!(" key{}", row(old)),
        Before::Full(old) => format!(" full{}", row(old)),
    };
    match message {
        Message::Begin { final_lsn, xid, .. } => {
            assert!(*final_lsn > Lsn::ZERO && *xid > 0);
            "begin".to_owned()
        }
        Message::Commit { commit_lsn, end_lsn, commit_time } => {
            assert!(commit_lsn < end_lsn);
            assert!((Timestamp::now().0 - commit_time.0).abs() < 600_000_000);
            "commit".to_owned()
        }
        Message::Relation { schema, name, identity, columns, .. } => {
            let columns: Vec<_> = columns
                .iter()
                .map(|c| if c.identity { format!("{}*", c.name) } else { c.name.to_owned() })
                .collect();
            format!("relation {schema}.{name} {identity:?} {}", columns.join(","))
        }
        Message::Insert { new, .. } => format!("insert{}", row(new)),
        Message::Update { old, new, .. } => {
            format!("update{} to{}", old.as_ref().map(before).unwrap_or_default(), row(new))
        }
        Message::Delete { old, .. } => format!("delete{}", before(old)),
        Message::Truncate { relations, cascade, restart_identity, .. } => {
            format!("truncate {} {cascade} {restart_identity}", relations.len())
        }
        Message::LogicalMessage { prefix, content, transactional, .. } => {
            format!("message {prefix} {transactional} {}", String::from_utf8_lossy(content))
        }
        Message::Type { schema, name, .. } => format!("type {schema}.{name}"),
        other => format!("{other:?}"),
    }
}

const END: &str = "SELECT pg_logical_emit_message(false, 'end', '')";

#[tokio::test]
async fn every_kind_of_change_comes_as_postgres_made_it() {
    let server = Server::get();
    let config = server.database(
        "changes",
        "CREATE TABLE t (id int PRIMARY KEY, small text, big text, at timestamptz);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE full_row (id int, big text); ALTER TABLE full_row REPLICA IDENTITY FULL;
         ALTER TABLE full_row ALTER big SET STORAGE EXTERNAL;
         CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE typed (id int PRIMARY KEY, m mood, i interval, b bytea, d date);
         CREATE PUBLICATION p FOR ALL TABLES;",
    );
    let mut changes = Changes::of(&config, |_| {}).await;
    let big = "b".repeat(9000);
    server.sql(
        "changes",
        &format!(
            "INSERT INTO t VALUES (1, 'a', '{big}', '2026-01-02 03:04:05.678901+00'), (2, NULL, '', NULL);
             UPDATE t SET small = 'b' WHERE id = 1; UPDATE t SET id = 3 WHERE id = 2; DELETE FROM t WHERE id = 3;
             SELECT pg_logical_emit_message(true, 'app', 'hello');"
        ),
    );
    let big_full = "y".repeat(9000);
    server.sql(
        "changes",
        &format!(
            "INSERT INTO full_row VALUES (1, '{big_full}'); UPDATE full_row SET id = 2; DELETE FROM full_row;
             INSERT INTO typed VALUES (1, 'glad', '1 day 2 hours', '\\x00ff', '2026-12-31');
             TRUNCATE t, full_row, typed RESTART IDENTITY CASCADE;"
        ),
    );
    server.sql("changes", END);
    let expected = [
        "begin",
        "relation public.t Default id*,small,big,at",
        "insert 1 a bx9000 2026-01-02 03:04:05.678901+00",
        "insert 2 null  null",
        "update to 1 b unsent 2026-01-02 03:04:05.678901+00",
        "update key 2 null null null to 3 null  null",
        "delete key 3 null null null",
        "message app true hello",
        "commit",
        "begin",
        "relation public.full_row Full id*,big*",
        "insert 1 yx9000",
        "update full 1 yx9000 to 2 unsent",
        "delete full 2 yx9000",
        "type public.mood",
        "relation public.typed Default id*,m,i,b,d",
        "insert 1 glad 1 day 02:00:00 \\x00ff 2026-12-31",
        // A truncate changes the catalog, so the shapes come again.
        "relation public.t Default id*,small,big,at",
        "relation public.full_row Full id*,big*",
        "type public.mood",
        "relation public.typed Default id*,m,i,b,d",
        "truncate 3 true true",
        "commit",
        "message end false ",
    ];
    assert_eq!(changes.until_end().await, expected);
    changes.stream.stop().await;
}

#[tokio::test]
async fn values_come_in_binary_form_when_asked_for() {
    let server = Server::get();
    let config =
        server.database("binary_form", "CREATE TABLE t (id int); CREATE PUBLICATION p FOR ALL TABLES;");
    let mut changes = Changes::of(&config, |options| options.binary = true).await;
    server.sql("binary_form", "INSERT INTO t VALUES (258);");
    server.sql("binary_form", END);
    assert!(changes.until_end().await.contains(&"insert [00, 00, 01, 02]".to_owned()));
}

#[tokio::test]
async fn a_large_transaction_streams_while_it_runs_and_its_aborted_part_is_named() {
    let server = Server::get();
    let config =
        server.database("streamed", "CREATE TABLE t (id int, v text); CREATE PUBLICATION p FOR ALL TABLES;");
    let mut changes = Changes::of(&config, |_| {}).await;
    server.sql(
        "streamed",
        "BEGIN; INSERT INTO t SELECT n, repeat('a', 200) FROM generate_series(1, 3000) n; SAVEPOINT s;
         INSERT INTO t SELECT n, repeat('b', 200) FROM generate_series(1, 3000) n; ROLLBACK TO s;
         INSERT INTO t SELECT n, repeat('c', 200) FROM generate_series(1, 3000) n; COMMIT;",
    );
    let (mut rows, mut aborted, mut segments, mut tops) = (Vec::new(), Vec::new(), 0, Vec::new());
    changes
        .read(|message| {
            match message {
                Message::StreamStart { xid, first_segment } => {
                    assert_eq!(*first_segment, segments == 0);
                    segments += 1;
                    tops.push(*xid);
                }
                Message::Insert { xid, .. } => rows.push(xid.expect("an id inside a stream")),
                Message::StreamAbort { xid, sub_xid, abort } => {
                    assert!(xid != sub_xid && abort.is_none());
                    aborted.push(*sub_xid);
                }
                Message::StreamCommit { xid, commit_lsn, end_lsn, .. } => {
                    assert!(commit_lsn < end_lsn);
                    assert!(tops.iter().all(|top| top == xid));
                    return true;
                }
                _ => {}
            }
            false
        })
        .await;
    assert!(segments > 1);
    assert_eq!(rows.iter().filter(|xid| !aborted.contains(xid)).count(), 6000);
}

#[tokio::test]
async fn a_row_of_twenty_megabytes_comes_whole_over_every_transport() {
    let server = Server::get();
    let unix = server.database(
        "huge",
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR ALL TABLES;",
    );
    for (number, config) in
        [unix, server.tcp("postgres", "huge?sslmode=disable"), server.tcp("postgres", "huge?sslmode=require")]
            .into_iter()
            .enumerate()
    {
        let mut changes = Changes::of(&config, |_| {}).await;
        changes.stream.set_draining(number == 1);
        server.sql("huge", &format!("INSERT INTO t VALUES ({number}, repeat('z', 20 << 20));"));
        let mut length = 0;
        changes
            .read(|message| match message {
                Message::Insert { new, .. } => {
                    if let Value::Text(bytes) = new.get(1) {
                        assert!(bytes.iter().all(|b| *b == b'z'));
                        length = bytes.len();
                    }
                    false
                }
                Message::Commit { .. } | Message::StreamCommit { .. } => true,
                _ => false,
            })
            .await;
        assert_eq!(length, 20 << 20);
        changes.stream.stop().await;
    }
}

#[tokio::test]
async fn a_backlog_is_drained_whole_over_every_transport() {
    let server = Server::get();
    let unix = server.database("backlog", "CREATE TABLE t (id int); CREATE PUBLICATION p FOR ALL TABLES;");
    for config in [
        unix,
        server.tcp("postgres", "backlog?sslmode=disable"),
        server.tcp("postgres", "backlog?sslmode=require"),
    ] {
        let mut changes = Changes::of(&config, |options| options.streaming = false).await;
        changes.stream.set_draining(true);
        server.sql("backlog", "INSERT INTO t SELECT generate_series(1, 50000);");
        let mut next = 1;
        changes
            .read(|message| {
                if let Message::Insert { new, .. } = message {
                    assert_eq!(new.get(0), Value::Text(next.to_string().as_bytes()));
                    next += 1;
                }
                matches!(message, Message::Commit { .. })
            })
            .await;
        assert_eq!(next, 50_001);
        changes.stream.stop().await;
    }
}

#[tokio::test]
async fn an_acknowledged_position_becomes_the_slots_and_a_question_is_answered() {
    let server = Server::get();
    let config =
        server.database("acknowledged", "CREATE TABLE t (id int); CREATE PUBLICATION p FOR ALL TABLES;");
    let mut changes = Changes::of(&config, |_| {}).await;
    server.sql("acknowledged", "INSERT INTO t VALUES (1);");
    let mut end = Lsn::ZERO;
    changes
        .read(|message| {
            if let Message::Commit { end_lsn, .. } = message {
                end = *end_lsn;
            }
            end > Lsn::ZERO
        })
        .await;
    changes.stream.queue_status(Status { written: end, flushed: end, applied: end, reply: true });
    changes.stream.try_flush();
    let answered = async {
        loop {
            while let Some(frame) = changes.stream.next_frame().unwrap() {
                if let Frame::Keepalive { end: sent, .. } = frame {
                    return sent;
                }
            }
            changes.stream.fill().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(PATIENCE, answered).await.unwrap() >= end);
    let control = connect(&config).await.unwrap();
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'acknowledged'";
    // The server sends keepalives unasked, too: one may have come before it had our answer.
    let confirmed = async {
        while control.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse::<Lsn>().unwrap() != end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, confirmed).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_walsender_is_an_error_that_may_be_retried() {
    let server = Server::get();
    let config = server.database("ended", "CREATE PUBLICATION p FOR ALL TABLES;");
    let mut changes = Changes::of(&config, |_| {}).await;
    server.sql(
        "ended",
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'ended'",
    );
    let error = loop {
        match changes.stream.next_frame() {
            Ok(Some(_)) => {}
            Ok(None) => match changes.stream.fill().await {
                Ok(()) => {}
                Err(error) => break error,
            },
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable(), "{error}");
    assert!(error.server().is_some_and(|server| server.is(sqlstate::ADMIN_SHUTDOWN)), "{error}");
}
