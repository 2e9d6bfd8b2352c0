//! Which database to read, as whom, and how to reach it: a connection string with libpq's meaning and defaults.
//!
//! Parsing touches no file. What lies in files (passwords, certificates) is read when a connection is made, so that a
//! rotated password is seen at the next reconnect.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dsn;

/// Where Debian's libpq looks for the server when no host is named.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const DEFAULT_PORT: u16 = 5432;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A password or key: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address.
    Tcp(String),
    /// A directory that holds the server's unix socket.
    Unix(PathBuf),
}

/// Whether and how to encrypt, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Plaintext first; TLS if the server refuses that.
    Allow,
    /// TLS if the server offers it, else plaintext. No verification.
    Prefer,
    /// Always TLS; the certificate is verified only if `sslrootcert` is given.
    Require,
    /// Always TLS, with a certificate of a trusted authority.
    VerifyCa,
    /// Always TLS, with a certificate of a trusted authority for this very host.
    VerifyFull,
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    /// PostgreSQL's SSLRequest first.
    Postgres,
    /// At once (server 17 and later).
    Direct,
}

/// Whether SCRAM is bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where both sides can.
    Prefer,
    /// Always, or no connection.
    Require,
}

/// Which certificate authorities are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// Those of the operating system (`sslrootcert=system`).
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// A source database. Shows no secret in `Debug` or `Display`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceConfig {
    /// Where the server listens.
    pub host: Host,
    /// Its port; part of the socket's name for a unix socket.
    pub port: u16,
    /// The role to connect as.
    pub user: String,
    /// The password as written in the connection string; other places are looked at when connecting.
    pub password: Option<Secret>,
    /// A file whose content is the password, without its last line end.
    pub password_file: Option<PathBuf>,
    /// libpq's password file (`passfile`, `PGPASSFILE`, `~/.pgpass`).
    pub passfile: Option<PathBuf>,
    /// The database.
    pub dbname: String,
    /// Encryption.
    pub sslmode: SslMode,
    /// Trusted authorities, where named.
    pub sslrootcert: Option<RootCert>,
    /// Client certificate chain (PEM).
    pub sslcert: Option<PathBuf>,
    /// Key of the client certificate (PEM, unencrypted).
    pub sslkey: Option<PathBuf>,
    /// How TLS begins.
    pub sslnegotiation: SslNegotiation,
    /// Whether SCRAM is bound to the TLS channel.
    pub channel_binding: ChannelBinding,
    /// Limit for reaching the server and logging in.
    pub connect_timeout: Duration,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// Further server options (`-c name=value`), as in libpq.
    pub options: Option<String>,
    /// The parameters that were named for all this, beside the parts of a URL, the password and its file.
    named: Vec<(&'static str, String)>,
}

/// A connection string that cannot be used. No variant carries a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Neither a URL nor key=value pairs.
    #[error("not a connection string; write postgres://user@host/database or 'host=… user=… dbname=…'")]
    NotAConnectionString,
    /// A URL of something else.
    #[error("scheme '{0}' is not PostgreSQL's; write postgres://user@host/database")]
    Scheme(String),
    /// Part of the URL cannot be read.
    #[error(
        "the {part} part of the URL cannot be read; write special characters as %xx (for example @ as %40, / as %2F, % as %25)"
    )]
    Part {
        /// Which part.
        part: &'static str,
    },
    /// Several hosts were named.
    #[error("several hosts are named; name the one that is the primary")]
    SeveralHosts,
    /// The key=value form cannot be read.
    #[error("the connection string cannot be read as key=value pairs; write 'host=… user=… dbname=…'")]
    KeyValue,
    /// A quoted value does not end.
    #[error("the value of '{0}' does not end; close the quote, or write a backslash as \\\\")]
    Unterminated(String),
    /// Not a parameter that we know.
    #[error("parameter '{0}' of the connection string is not known; check its spelling or leave it out")]
    UnknownParameter(String),
    /// A parameter of libpq that is not supported.
    #[error("parameter '{0}' of the connection string is not supported; {1}")]
    Unsupported(String, &'static str),
    /// A value that does not fit its parameter.
    #[error("'{value}' is not a value for {parameter}; use {expected}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What was written.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// Two settings contradict each other.
    #[error("{0} cannot be used with {1}; {2}")]
    Contradiction(String, String, &'static str),
    /// No user.
    #[error("no user is named; write postgres://USER@host/database or set PGUSER")]
    NoUser,
}

impl SourceConfig {
    /// Reads a `postgres://` URL or a `key=value` string; what it leaves open comes from libpq's environment variables
    /// and defaults.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        Self::parse_with(text, &|name| std::env::var(name).ok())
    }

    fn parse_with(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        let settings = Settings::read(text, env)?;
        let host = match settings.get("host") {
            Some(host) if host.contains(',') => return Err(SourceError::SeveralHosts),
            Some(host) if host.starts_with('/') => Host::Unix(host.into()),
            Some(host) => Host::Tcp(host.to_owned()),
            None if Path::new(DEFAULT_SOCKET_DIRECTORY).is_dir() => {
                Host::Unix(DEFAULT_SOCKET_DIRECTORY.into())
            }
            None => Host::Tcp("localhost".to_owned()),
        };
        let user = match settings.get("user") {
            Some(user) => user.to_owned(),
            None => {
                env("USER").or_else(|| env("LOGNAME")).filter(|u| !u.is_empty()).ok_or(SourceError::NoUser)?
            }
        };
        let dbname = settings.get("dbname").unwrap_or(&user).to_owned();
        let sslrootcert = settings.get("sslrootcert").map(|value| match value {
            "system" => RootCert::System,
            path => RootCert::File(path.into()),
        });
        let default_mode =
            if sslrootcert == Some(RootCert::System) { SslMode::VerifyFull } else { SslMode::Prefer };
        let sslmode = settings.one_of(
            "sslmode",
            SSL_MODES,
            "disable, allow, prefer, require, verify-ca or verify-full",
        )?;
        let sslmode = sslmode.unwrap_or(default_mode);
        if sslrootcert == Some(RootCert::System) && sslmode != SslMode::VerifyFull {
            let mode = settings.get("sslmode").unwrap_or_default();
            return Err(SourceError::Contradiction(
                "sslrootcert=system".to_owned(),
                format!("sslmode={mode}"),
                "use sslmode=verify-full, because public authorities sign certificates for anybody",
            ));
        }
        let sslnegotiation = settings.one_of("sslnegotiation", SSL_NEGOTIATIONS, "postgres or direct")?;
        let sslnegotiation = sslnegotiation.unwrap_or(SslNegotiation::Postgres);
        if sslnegotiation == SslNegotiation::Direct && sslmode < SslMode::Require {
            return Err(SourceError::Contradiction(
                "sslnegotiation=direct".to_owned(),
                "an sslmode that allows plaintext".to_owned(),
                "use sslmode=require or stronger",
            ));
        }
        let sslcert: Option<PathBuf> = settings.get("sslcert").map(Into::into);
        let sslkey: Option<PathBuf> = settings.get("sslkey").map(Into::into);
        match (&sslcert, &sslkey) {
            (Some(_), None) => {
                return Err(SourceError::Contradiction(
                    "sslcert".into(),
                    "no sslkey".into(),
                    "name the key's file",
                ));
            }
            (None, Some(_)) => {
                let next = "name the certificate's file";
                return Err(SourceError::Contradiction("sslkey".into(), "no sslcert".into(), next));
            }
            _ => {}
        }
        Ok(SourceConfig {
            host,
            port: settings
                .number("port", 1..=65535, "a port from 1 to 65535")?
                .unwrap_or(u64::from(DEFAULT_PORT)) as u16,
            user,
            password: settings.get("password").map(Secret::new),
            password_file: settings.get("password_file").map(Into::into),
            passfile: settings
                .get("passfile")
                .map(Into::into)
                .or_else(|| env("HOME").map(|home| Path::new(&home).join(".pgpass"))),
            dbname,
            sslmode,
            sslrootcert,
            sslcert,
            sslkey,
            sslnegotiation,
            channel_binding: settings
                .one_of("channel_binding", CHANNEL_BINDINGS, "disable, prefer or require")?
                .unwrap_or(ChannelBinding::Prefer),
            connect_timeout: match settings.number("connect_timeout", 0..=3600, "seconds from 1 to 3600")? {
                // libpq's 0 means for ever; a limit is always wanted here.
                None | Some(0) => DEFAULT_CONNECT_TIMEOUT,
                Some(seconds) => Duration::from_secs(seconds),
            },
            application_name: settings.get("application_name").unwrap_or("millrace").to_owned(),
            options: settings.get("options").map(str::to_owned),
            named: settings.0.into_iter().filter(|(name, _)| !IN_URL.contains(name)).collect(),
        })
    }

    /// The source as a URL without its password, with every parameter that was named.
    pub fn display(&self) -> String {
        self.to_string()
    }

    /// Where it listens: `host:port`, or the socket's path.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(_) => self.socket_path().unwrap_or_default().display().to_string(),
        }
    }

    /// Path of the unix socket, if it is one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Host::Tcp(_) => None,
        }
    }
}

impl fmt::Display for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, dbname) = (encode(&self.user, ""), encode(&self.dbname, ""));
        let mut query: Vec<(&str, String)> = Vec::new();
        match &self.host {
            Host::Tcp(_) => write!(f, "postgres://{user}@{}/{dbname}", self.address())?,
            Host::Unix(directory) => {
                write!(f, "postgres://{user}@/{dbname}")?;
                query.push(("host", directory.display().to_string()));
                query.push(("port", self.port.to_string()));
            }
        }
        query.extend(self.password_file.iter().map(|path| ("password_file", path.display().to_string())));
        query.extend(self.named.iter().cloned());
        for (at, (name, value)) in query.iter().enumerate() {
            write!(f, "{}{name}={}", if at == 0 { '?' } else { '&' }, encode(value, "/"))?;
        }
        Ok(())
    }
}

/// Text as a part of a URL; `plain` are characters that mean nothing in that part.
fn encode(text: &str, plain: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other if plain.as_bytes().contains(&other) => out.push(char::from(other)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// Parameters that have another place in [`SourceConfig::display`], or none.
const IN_URL: &[&str] = &["host", "port", "user", "dbname", "password", "password_file"];
const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const SSL_NEGOTIATIONS: &[(&str, SslNegotiation)] =
    &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)];
const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

/// Every parameter that means something here, with libpq's environment variable for it. Passwords are not taken from
/// the environment here: `PGPASSWORD` has its place in the order in which passwords are looked up.
const PARAMETERS: &[(&str, Option<&str>)] = &[
    ("host", Some("PGHOST")),
    ("port", Some("PGPORT")),
    ("user", Some("PGUSER")),
    ("password", None),
    ("password_file", None),
    ("passfile", Some("PGPASSFILE")),
    ("dbname", Some("PGDATABASE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("application_name", Some("PGAPPNAME")),
    ("options", None),
];

/// Parameters of libpq that change nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "gssdelegation",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "replication",
    "sslcertmode",
    "sslcompression",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Parameters of libpq that would change something, so that ignoring them would surprise.
const NOT_SUPPORTED: &[(&str, &str)] = &[
    ("hostaddr", "give the address as host"),
    ("service", "give host, user and dbname"),
    ("requirepeer", "leave it out"),
    ("require_auth", "use channel_binding=require or sslmode=verify-full"),
    ("sslcrl", "leave it out"),
    ("sslcrldir", "leave it out"),
    ("sslpassword", "decrypt the key: openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW"),
    ("ssl_min_protocol_version", "TLS 1.2 and 1.3 are used"),
    ("ssl_max_protocol_version", "TLS 1.2 and 1.3 are used"),
];

struct Settings(Vec<(&'static str, String)>);

impl Settings {
    fn read(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for (key, value) in dsn::split(text)? {
            if let Some((name, _)) = PARAMETERS.iter().find(|(name, _)| *name == key) {
                // A later value wins, as in libpq; an empty one means the default.
                found.retain(|(known, _)| known != name);
                found.push((name, value));
            } else if let Some((_, next)) = NOT_SUPPORTED.iter().find(|(name, _)| *name == key) {
                return Err(SourceError::Unsupported(key, next));
            } else if !WITHOUT_EFFECT.contains(&key.as_str()) {
                return Err(SourceError::UnknownParameter(key));
            }
        }
        for (name, variable) in PARAMETERS {
            if !found.iter().any(|(known, _)| known == name)
                && let Some(value) = variable.and_then(env)
            {
                found.push((name, value));
            }
        }
        found.retain(|(_, value)| !value.is_empty());
        Ok(Settings(found))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    fn one_of<T: Copy>(
        &self,
        parameter: &'static str,
        values: &[(&str, T)],
        expected: &'static str,
    ) -> Result<Option<T>, SourceError> {
        let Some(written) = self.get(parameter) else { return Ok(None) };
        match values.iter().find(|(name, _)| *name == written) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(SourceError::Value { parameter, value: written.to_owned(), expected }),
        }
    }

    fn number(
        &self,
        parameter: &'static str,
        range: std::ops::RangeInclusive<u64>,
        expected: &'static str,
    ) -> Result<Option<u64>, SourceError> {
        let Some(written) = self.get(parameter) else { return Ok(None) };
        match written.parse::<u64>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(SourceError::Value { parameter, value: written.to_owned(), expected }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SourceConfig, SourceError> {
        SourceConfig::parse_with(text, &|name| (name == "USER").then(|| "me".to_owned()))
    }

    #[test]
    fn what_is_left_open_comes_from_libpqs_defaults() {
        let config = parse("postgres://h").unwrap();
        assert_eq!((config.user.as_str(), config.dbname.as_str(), config.port), ("me", "me", 5432));
        assert_eq!(config.sslmode, SslMode::Prefer);
        let env = |name: &str| match name {
            "PGUSER" => Some("eve".to_owned()),
            "PGPORT" => Some("7".to_owned()),
            "PGHOST" => Some("/sock".to_owned()),
            "PGPASSWORD" => Some("hunter2".to_owned()),
            _ => None,
        };
        let config = SourceConfig::parse_with("postgres:///d", &env).unwrap();
        assert_eq!(config.socket_path().unwrap(), Path::new("/sock/.s.PGSQL.7"));
        assert_eq!((config.user.as_str(), config.dbname.as_str()), ("eve", "d"));
        assert_eq!(config.password, None);
    }

    #[test]
    fn a_unix_socket_is_named_by_a_directory() {
        for text in [
            "postgres:///d?host=/run/pg&port=5433",
            "postgres://%2Frun%2Fpg:5433/d",
            "host=/run/pg port=5433 dbname=d",
        ] {
            let config = parse(text).unwrap();
            assert_eq!(config.address(), "/run/pg/.s.PGSQL.5433", "{text}");
        }
    }

    #[test]
    fn no_form_of_display_shows_the_password() {
        let config = parse("postgres://me:hunter2@h:1/d b").unwrap();
        assert!(!format!("{config:?} {config}").contains("hunter2"));
        assert_eq!(config.display(), "postgres://me@h:1/d%20b");
        assert_eq!(config.password.unwrap().expose(), "hunter2");
    }

    #[test]
    fn what_is_displayed_and_saved_reaches_the_source_as_safely_as_what_was_written() {
        for text in [
            "postgres://me@h:1/d",
            "postgres://a%40b:pw@[::1]/d%2Fe?sslmode=verify-full&sslrootcert=/ca&sslcert=/c%26d&sslkey=/k",
            "postgres:///d?host=/run/p g&sslnegotiation=postgres&channel_binding=require",
            "host=h password_file=/run/secret options='-c x=1 -c y=%' passfile=/p connect_timeout=3",
        ] {
            let mut written = parse(text).unwrap();
            let saved = parse(&written.display()).unwrap();
            written.password = None;
            assert_eq!(saved, written, "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (text, part) in [
            ("postgres://h/d?sslmode=maybe", "maybe"),
            ("postgres://h:0/d", "port"),
            ("postgres://h:99999/d", "port"),
            ("postgres://h/d?sslrootcert=system&sslmode=require", "verify-full"),
            ("postgres://h/d?sslnegotiation=direct", "sslmode=require"),
            ("postgres://h/d?sslcert=/c", "sslkey"),
            ("postgres://h/d?sslmod=require", "sslmod"),
            ("postgres://h/d?hostaddr=1.2.3.4", "hostaddr"),
            ("host=a,b dbname=d", "several hosts"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(parse("postgres://h/d?sslrootcert=system").unwrap().sslmode, SslMode::VerifyFull);
    }
}
