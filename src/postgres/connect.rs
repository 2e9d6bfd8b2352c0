//! The SQL connection to a source (catalog, precheck, slots, publications), and why a connection cannot be made.
//!
//! tokio-postgres speaks the protocol; the socket and its encryption are ours (`transport`), so that SQL and
//! replication connections reach the server in exactly the same way and fail with the same errors.

use std::future::{Ready, ready};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::guard::{self, Guarded};
use super::password::{self, PasswordError};
use super::server::Server;
use super::server_error::{ServerError, sqlstate};
use super::source::{ChannelBinding, SourceConfig};
use super::tls::{self, TlsError};
use super::transport::{Attempt, Transport, attempts};

/// What every session is set to, whatever the role's or the database's defaults are: they would change the text of
/// values, hide rows, refuse our statements, or end a session that must live.
pub(super) const SESSION: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    // What text it has then is known; where the point belongs is asked with the types of columns.
    ("lc_monetary", "C"),
    // Of `regclass` and the like, and of expressions.
    ("search_path", "pg_catalog"),
    ("quote_all_identifiers", "off"),
    // A policy that would hide rows from us is an error, and not fewer rows.
    ("row_security", "off"),
    // Our own literals rely on it.
    ("standard_conforming_strings", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Questions about a large catalog look costly, and take some milliseconds: compiling them first takes fifty.
    ("jit", "off"),
];

/// I7: a statement of ours that meets a user's lock gives up.
const LOCK_TIMEOUT: &str = "2s";

/// Why a connection could not be made, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A password file is unusable.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The name does not resolve.
    #[error("host '{host}' is not found: {source}; check its spelling and the name server")]
    HostNotFound {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "{address} refuses connections; check that PostgreSQL runs there, its port, and listen_addresses"
    )]
    Refused {
        /// Host and port.
        address: String,
    },
    /// No way to the host.
    #[error("{address} cannot be reached: {source}; check the network and the firewall")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the network said.
        source: io::Error,
    },
    /// The unix socket cannot be used.
    #[error(
        "socket {path} cannot be used: {source}; check that PostgreSQL runs, its port and unix_socket_directories"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{address} did not answer within {} s; check host, port and firewall, or raise connect_timeout", .after.as_secs())]
    Timeout {
        /// Host and port.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// TLS could not be agreed.
    #[error("no encrypted connection to {address}: {source}")]
    Tls {
        /// Host and port.
        address: String,
        /// Why.
        source: TlsError,
    },
    /// The server wants a password and there is none.
    #[error(
        "the server asks for a password of user '{user}'; give it with password_file, PGPASSWORD or ~/.pgpass"
    )]
    NoPassword {
        /// The role.
        user: String,
    },
    /// The password is wrong.
    #[error("the server refuses the password of user '{user}': {server}; check user and password")]
    WrongPassword {
        /// The role.
        user: String,
        /// What it said.
        server: Box<ServerError>,
    },
    /// The server wants something that we do not do, or must not.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// The database does not exist.
    #[error("database '{dbname}' does not exist there; check its name (psql -l lists them)")]
    UnknownDatabase {
        /// Its name.
        dbname: String,
    },
    /// `pg_hba.conf` or the role forbids it.
    #[error(
        "the server does not let user '{user}' in: {server}; add a line for it to pg_hba.conf and reload, and check that the role exists and may log in"
    )]
    NotAllowed {
        /// The role.
        user: String,
        /// What it said.
        server: Box<ServerError>,
    },
    /// The role may not replicate.
    #[error(
        "user '{user}' may not replicate: {server}; run ALTER ROLE \"{user}\" REPLICATION (on managed services, grant the provider's replication role)"
    )]
    NoReplication {
        /// The role.
        user: String,
        /// What the server said.
        server: Box<ServerError>,
    },
    /// No free connection.
    #[error(
        "the server has no free connection: {0}; raise max_connections or max_wal_senders, or end connections that nobody uses"
    )]
    TooManyConnections(Box<ServerError>),
    /// The server is starting, stopping or recovering.
    #[error("the server does not take connections now: {0}")]
    NotReady(Box<ServerError>),
    /// Another server than that of the task's stream.
    #[error(
        "{address} now leads to another server than the one that the changes come from, after a restart or a failover; if that goes on, see that it leads to the primary alone"
    )]
    Elsewhere {
        /// Host and port.
        address: String,
    },
    /// Another error of the server.
    #[error("the server refuses the connection: {0}")]
    Server(Box<ServerError>),
    /// The connection broke.
    #[error("the connection broke while it was made: {0}; see the server's log")]
    Io(#[from] io::Error),
    /// What came back is not PostgreSQL's protocol.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// Sorts an error that the server sent while a connection to `config` was made.
    pub(super) fn from_server(server: ServerError, config: &SourceConfig) -> Self {
        let (user, server) = (config.user.clone(), Box::new(server));
        match server.code.as_str() {
            sqlstate::INVALID_PASSWORD => ConnectError::WrongPassword { user, server },
            sqlstate::INVALID_CATALOG_NAME => ConnectError::UnknownDatabase { dbname: config.dbname.clone() },
            sqlstate::INVALID_AUTHORIZATION => ConnectError::NotAllowed { user, server },
            sqlstate::TOO_MANY_CONNECTIONS => ConnectError::TooManyConnections(server),
            sqlstate::CANNOT_CONNECT_NOW | sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN => {
                ConnectError::NotReady(server)
            }
            _ => ConnectError::Server(server),
        }
    }

    fn from_client(error: &tokio_postgres::Error, config: &SourceConfig, password_known: bool) -> Self {
        if let Some(db) = error.as_db_error() {
            return ConnectError::from_server(db.into(), config);
        }
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                if io.kind() == io::ErrorKind::PermissionDenied {
                    return ConnectError::Authentication(guard::REFUSED.to_owned());
                }
                return ConnectError::Io(io::Error::new(io.kind(), io.to_string()));
            }
            if inner.to_string() == "password missing" && !password_known {
                return ConnectError::NoPassword { user: config.user.clone() };
            }
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        if error.is_closed() {
            return ConnectError::Io(io::ErrorKind::UnexpectedEof.into());
        }
        ConnectError::Authentication(text)
    }

    /// Whether trying again later may help although nobody changes anything here.
    pub fn is_retryable(&self) -> bool {
        match self {
            ConnectError::HostNotFound { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Timeout { .. }
            | ConnectError::TooManyConnections(_)
            | ConnectError::NotReady(_)
            | ConnectError::Elsewhere { .. }
            | ConnectError::Io(_) => true,
            ConnectError::Socket { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            ConnectError::Tls { source, .. } => matches!(source, TlsError::Handshake(_)),
            ConnectError::Server(server) => server.is_transient(),
            ConnectError::Password(_)
            | ConnectError::NoPassword { .. }
            | ConnectError::WrongPassword { .. }
            | ConnectError::Authentication(_)
            | ConnectError::UnknownDatabase { .. }
            | ConnectError::NotAllowed { .. }
            | ConnectError::NoReplication { .. }
            | ConnectError::Protocol(_) => false,
        }
    }

    /// Whether the other of `prefer`'s and `allow`'s two ways may be let in.
    fn other_way_may_help(&self) -> bool {
        matches!(self, ConnectError::Tls { .. } | ConnectError::NotAllowed { .. })
    }
}

/// Opens a transport in each of the ways that `config` allows and gives it to `login`, until one is let in; all within
/// the connect timeout.
pub(super) async fn reach<'a, T>(
    config: &'a SourceConfig,
    login: impl Fn(Transport) -> BoxFuture<'a, Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let tries = async {
        let ways = attempts(config);
        let tls = match ways {
            [Attempt::Plain] => None,
            _ => match tls::client_config(config).await {
                Ok(tls) => Some(tls),
                Err(source) => return Err(ConnectError::Tls { address: config.address(), source }),
            },
        };
        let mut failure = None;
        for way in ways {
            let outcome = match Transport::open(config, *way, tls.as_ref()).await {
                Ok(transport) => login(transport).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(connected) => return Ok(connected),
                Err(error) if error.other_way_may_help() => failure = failure.or(Some(error)),
                // The first refusal says more than the trouble of the second try.
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
        Err(failure.unwrap_or_else(|| ConnectError::Protocol("no way to connect is allowed".to_owned())))
    };
    match tokio::time::timeout(config.connect_timeout, tries).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ConnectError::Timeout { address: config.address(), after: config.connect_timeout }),
    }
}

/// A SQL session. Dropping it closes the connection.
#[derive(Debug)]
pub struct Control {
    client: Client,
    driver: JoinHandle<()>,
    server_version: u32,
}

impl Control {
    /// The server's version as `server_version_num` has it, for example 150018.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }
}

impl Deref for Control {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Control {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Opens a SQL session with pinned settings.
pub async fn connect(config: &SourceConfig) -> Result<Control, ConnectError> {
    let password = password::find(config).await?;
    let mut settings = tokio_postgres::Config::new();
    settings.user(&config.user).dbname(&config.dbname).application_name(&config.application_name);
    settings.channel_binding(match config.channel_binding {
        ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
        ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
        ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
    });
    if let Some(password) = &password {
        settings.password(password.expose());
    }
    if let Some(options) = &config.options {
        settings.options(options);
    }
    let has_password = password.is_some();
    let login = |transport| login(transport, settings.clone(), config, has_password).boxed();
    reach(config, login).await
}

/// As [`connect`], to this server alone.
pub async fn connect_to(server: &Server, config: &SourceConfig) -> Result<Control, ConnectError> {
    let control = connect(config).await?;
    let reached =
        Server::of(&control).await.map_err(|error| ConnectError::from_client(&error, config, true))?;
    server.check(&reached, config)?;
    Ok(control)
}

/// Logs in over a transport that is open.
async fn login(
    transport: Transport,
    mut settings: tokio_postgres::Config,
    config: &SourceConfig,
    has_password: bool,
) -> Result<Control, ConnectError> {
    match transport {
        // "Direct" makes tokio-postgres ask its TLS layer at once, which hands over what is encrypted already.
        Transport::Tls(_) => {
            settings.ssl_mode(tokio_postgres::config::SslMode::Require);
            settings.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
        }
        Transport::Tcp(_) | Transport::Unix(_) => {
            settings.ssl_mode(tokio_postgres::config::SslMode::Disable);
        }
    }
    let failed = |error| ConnectError::from_client(&error, config, has_password);
    let (client, connection) =
        settings.connect_raw(Guarded::new(transport), Encrypted).await.map_err(failed)?;
    let server_version = connection.parameter("server_version").map_or(0, server_version_num);
    let driver = tokio::spawn(async move {
        // An error also reaches every query in flight, which says it to somebody.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "sql connection ended");
        }
    });
    let control = Control { client, driver, server_version };
    control.batch_execute(&session_statements(server_version)).await.map_err(failed)?;
    Ok(control)
}

/// Hands tokio-postgres a stream that is encrypted already.
struct Encrypted;

impl tokio_postgres::tls::TlsConnect<Guarded> for Encrypted {
    type Stream = Guarded;
    type Error = io::Error;
    type Future = Ready<io::Result<Guarded>>;

    fn connect(self, stream: Guarded) -> Self::Future {
        ready(Ok(stream))
    }
}

fn session_statements(server_version: u32) -> String {
    let mut sql = String::new();
    for (name, value) in SESSION {
        sql.push_str(&format!("SET {name} = '{value}';"));
    }
    sql.push_str(&format!("SET lock_timeout = '{LOCK_TIMEOUT}';"));
    sql.push_str(&newer_settings(server_version));
    sql
}

/// Limits that only newer servers know, so that they cannot be named when the session starts.
pub(super) fn newer_settings(server_version: u32) -> String {
    let mut sql = String::new();
    if server_version >= 140_000 {
        sql.push_str("SET idle_session_timeout = 0;");
    }
    if server_version >= 170_000 {
        sql.push_str("SET transaction_timeout = 0;");
    }
    sql
}

/// `server_version` as `server_version_num` would have it: "15.18 (Debian …)" is 150018; 0 when it cannot be read.
pub(super) fn server_version_num(text: &str) -> u32 {
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse::<u32>().ok().filter(|n| *n < 10_000)
    };
    let mut parts = text.split('.');
    let major = parts.next().and_then(digits).unwrap_or(0);
    let minor = parts.next().and_then(digits).unwrap_or(0);
    let patch = parts.next().and_then(digits).unwrap_or(0);
    if major >= 10 { major * 10_000 + minor } else { major * 10_000 + minor * 100 + patch }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_version_is_read() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("18.4", 180_004),
            ("19beta1", 190_000),
            ("17devel", 170_000),
            ("9.6.24", 90_624),
            ("", 0),
            ("x", 0),
            ("99999999999", 0),
        ] {
            assert_eq!(server_version_num(text), number, "{text}");
        }
    }

    fn refused(code: &str) -> ConnectError {
        let config = SourceConfig::parse("postgres://me:hunter2@h/d").unwrap();
        let server =
            ServerError { code: code.to_owned(), message: "no".to_owned(), ..ServerError::default() };
        ConnectError::from_server(server, &config)
    }

    #[test]
    fn a_refusal_says_what_to_do_and_whether_to_try_again() {
        for (code, word, retry) in [
            (sqlstate::INVALID_PASSWORD, "password", false),
            (sqlstate::INVALID_CATALOG_NAME, "database 'd'", false),
            (sqlstate::INVALID_AUTHORIZATION, "pg_hba.conf", false),
            (sqlstate::TOO_MANY_CONNECTIONS, "max_connections", true),
            (sqlstate::CANNOT_CONNECT_NOW, "now", true),
            ("XX000", "refuses", false),
        ] {
            let error = refused(code);
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.is_retryable(), retry, "{error}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
