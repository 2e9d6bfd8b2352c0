//! The replication connection: a walsender's commands, and then its stream.
//!
//! tokio-postgres has no replication mode, so this is our own, thin: login (`auth`), a handful of simple queries here,
//! and [`ReplicationStream`] once START_REPLICATION has turned the connection into a stream in both directions.

mod auth;
mod backlog;
mod buffer;
mod copy;
mod drain;
mod feed;
mod stream;
mod wire;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator;

pub use self::backlog::{Backlog, Begun, Reading};
pub use self::copy::{CopyConnection, CopyError};
pub use self::feed::Feed;
pub use self::stream::{Frame, ReplicationStream, Status, StreamLimits};
use self::wire::Wire;
use super::connect::{ConnectError, SESSION, newer_settings, reach, server_version_num};
use super::password;
use super::publication::Origin;
use super::server::{self, Server};
use super::server_error::{ServerError, sqlstate};
use super::source::{Secret, SourceConfig};
use super::timeline::{HistoryError, IdentifySystem, TimelineHistory};
use super::transport::Transport;
use crate::change::Lsn;

const COPY_BOTH_RESPONSE: u8 = b'W';
const ERROR_RESPONSE: u8 = b'E';

/// A replication connection that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The server reported an error.
    #[error("the server reports: {0}")]
    Server(Box<ServerError>),
    /// The connection broke.
    #[error("the replication connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection without a word.
    #[error("the server closed the replication connection; see its log")]
    Closed,
    /// The server ended the stream in order, as at a shutdown.
    #[error("the server ended the stream")]
    Ended,
    /// Nothing came for too long, although an answer was asked for.
    #[error("nothing came from the server for {} s, although an answer was asked for", .0.as_secs())]
    TimedOut(Duration),
    /// A message beyond the limit.
    #[error(
        "a message of {length} bytes, and the limit is {limit}; raise the limit, or exclude the table with so large a row"
    )]
    TooLarge {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// What came is not the replication protocol.
    #[error("unexpected answer of the server: {0}")]
    Protocol(String),
    /// A text in the WAL that its database's encoding does not give a meaning.
    #[error(
        "the source cannot send a text as UTF-8: {0}; that is what the WAL holds, so correcting the row does not help: \
         drop the replication slot and start once with --accept-gap, and correct the row"
    )]
    Untranslatable(Box<ServerError>),
    /// Not a name that a slot can have.
    #[error("'{0}' cannot be a slot's name; use 1 to 63 lower-case letters, digits and underscores")]
    SlotName(String),
    /// The timeline history cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl From<ServerError> for ReplicationError {
    fn from(error: ServerError) -> Self {
        match error.is(sqlstate::UNTRANSLATABLE_CHARACTER) {
            true => ReplicationError::Untranslatable(Box::new(error)),
            false => ReplicationError::Server(Box::new(error)),
        }
    }
}

impl ReplicationError {
    /// The server's error, if it is one.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            ReplicationError::Server(error) | ReplicationError::Untranslatable(error) => Some(error),
            _ => None,
        }
    }

    /// Whether a new connection may help although nobody changes anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            ReplicationError::Io(_)
            | ReplicationError::Closed
            | ReplicationError::Ended
            | ReplicationError::TimedOut(_) => true,
            ReplicationError::Server(error) => error.is_transient(),
            ReplicationError::TooLarge { .. }
            | ReplicationError::Untranslatable(_)
            | ReplicationError::Protocol(_)
            | ReplicationError::SlotName(_)
            | ReplicationError::History(_) => false,
        }
    }
}

/// How long a new slot lives, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotLife {
    /// As long as the connection that makes it.
    Temporary,
    /// Until it is dropped.
    Permanent,
    /// Until it is dropped, and on standbys that synchronize slots too (17 and later, not on a standby).
    Failover,
}

/// What becomes of the snapshot at a new slot's consistent point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Nothing.
    None,
    /// Other sessions may import it while this connection does nothing else.
    Export,
    /// This connection's open transaction uses it.
    Use,
}

/// A new slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Changes of transactions that commit from here on are sent.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot.
    pub snapshot_name: Option<String>,
}

/// What START_REPLICATION asks of pgoutput.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOptions {
    /// Protocol version; see [`super::pgoutput::protocol_for`].
    pub protocol: u32,
    /// Publications whose tables are sent.
    pub publications: Vec<String>,
    /// Send large transactions while they run (protocol 2 and later).
    pub streaming: bool,
    /// Send logical messages.
    pub messages: bool,
    /// Which changes to send, by where they were made.
    pub origin: Origin,
    /// Send values in binary form.
    pub binary: bool,
    /// Limits of the stream.
    pub limits: StreamLimits,
}

/// Makes the server stream a transaction as soon as it exceeds 16 MiB: what it holds until then costs its memory and
/// delays us. A server that is set to less keeps its setting.
const STREAM_EARLY: &str = "SELECT set_config('logical_decoding_work_mem', '16MB', false) FROM pg_settings \
     WHERE name = 'logical_decoding_work_mem' AND setting::int8 > 16384";

/// Switched off, the server would hold the slot for hours for a connection that has died.
const LIMIT_SILENCE: &str = "SELECT set_config('wal_sender_timeout', '60s', false) FROM pg_settings \
     WHERE name = 'wal_sender_timeout' AND setting = '0'";

/// A replication connection that takes commands.
#[derive(Debug)]
pub struct ReplicationConnection {
    wire: Wire,
    server_version: u32,
    wal_sender_timeout: Option<Duration>,
}

impl ReplicationConnection {
    /// Connects and logs in.
    pub async fn connect(config: &SourceConfig) -> Result<Self, ConnectError> {
        let password = password::find(config).await?;
        let login = |transport| start_session(transport, config, password.clone()).boxed();
        reach(config, login).await.map_err(|error| match error {
            ConnectError::Server(server) if server.is(sqlstate::INSUFFICIENT_PRIVILEGE) => {
                ConnectError::NoReplication { user: config.user.clone(), server }
            }
            other => other,
        })
    }

    /// The server's version as `server_version_num` has it, for example 150018.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// After how long a silent client is disconnected; `None` for never.
    pub fn wal_sender_timeout(&self) -> Option<Duration> {
        self.wal_sender_timeout
    }

    /// Which cluster and timeline this is, and how far.
    pub async fn identify_system(&mut self) -> Result<IdentifySystem, ReplicationError> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        let number = |index: usize| row.text(index).and_then(|text| text.parse::<u64>().ok());
        let timeline = number(1).and_then(|timeline| u32::try_from(timeline).ok());
        match (number(0), timeline, row.lsn(2)) {
            (Some(system_identifier), Some(timeline), Some(xlogpos)) => {
                let dbname = row.text(3).map(str::to_owned);
                Ok(IdentifySystem { system_identifier, timeline, xlogpos, dbname })
            }
            _ => Err(ReplicationError::Protocol("IDENTIFY_SYSTEM's row cannot be read".to_owned())),
        }
    }

    /// Which server this is.
    ///
    /// # Errors
    /// When the connection breaks or the server refuses.
    pub async fn server(&mut self) -> Result<Server, ReplicationError> {
        let row = self.one_row(server::SQL).await?;
        let told = row
            .text(0)
            .ok_or_else(|| ReplicationError::Protocol("a server that started at no time".to_owned()))?;
        Ok(Server::new(told.to_owned()))
    }

    /// The ancestors of a timeline. Timeline 1 has none and no file to read.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory, ReplicationError> {
        if timeline <= 1 {
            return Ok(TimelineHistory::default());
        }
        let row = self.one_row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = row.text(1);
        let content = content
            .ok_or_else(|| ReplicationError::Protocol("a timeline history without content".to_owned()))?;
        Ok(TimelineHistory::parse(content)?)
    }

    /// Creates a logical slot for pgoutput. Waits for the transactions that run now.
    pub async fn create_slot(
        &mut self,
        name: &str,
        life: SlotLife,
        snapshot: Snapshot,
    ) -> Result<CreatedSlot, ReplicationError> {
        let temporary = if life == SlotLife::Temporary { " TEMPORARY" } else { "" };
        let name = slot_name(name)?;
        let option = match (snapshot, self.server_version >= 150_000) {
            (Snapshot::None, true) => "SNAPSHOT 'nothing'",
            (Snapshot::Export, true) => "SNAPSHOT 'export'",
            (Snapshot::Use, true) => "SNAPSHOT 'use'",
            (Snapshot::None, false) => "NOEXPORT_SNAPSHOT",
            (Snapshot::Export, false) => "EXPORT_SNAPSHOT",
            (Snapshot::Use, false) => "USE_SNAPSHOT",
        };
        let option = match (life, self.server_version >= 150_000) {
            (SlotLife::Failover, _) => format!("({option}, FAILOVER)"),
            (_, true) => format!("({option})"),
            (_, false) => option.to_owned(),
        };
        let command = format!("CREATE_REPLICATION_SLOT {name}{temporary} LOGICAL pgoutput {option}");
        let row = self.one_row(&command).await?;
        let snapshot_name = row.text(2).filter(|text| !text.is_empty()).map(str::to_owned);
        match row.lsn(1) {
            Some(consistent_point) => Ok(CreatedSlot { consistent_point, snapshot_name }),
            None => Err(ReplicationError::Protocol("a new slot without consistent point".to_owned())),
        }
    }

    /// Has standbys synchronize a slot that nobody uses (17 and later).
    pub async fn let_slot_fail_over(&mut self, name: &str) -> Result<(), ReplicationError> {
        let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER)", slot_name(name)?);
        self.query(&command).await.map(drop)
    }

    /// Drops a slot that nobody uses.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        let command = format!("DROP_REPLICATION_SLOT {}", slot_name(name)?);
        self.query(&command).await.map(drop)
    }

    /// Starts to stream from `lsn`, or from the slot's confirmed position if that is higher.
    pub async fn start(
        mut self,
        slot: &str,
        lsn: Lsn,
        options: &StartOptions,
    ) -> Result<ReplicationStream, ReplicationError> {
        let command = start_command(slot, lsn, options)?;
        if options.streaming {
            self.query(STREAM_EARLY).await?;
        }
        self.send_query(&command).await?;
        loop {
            let (tag, mut bytes) = self.wire.receive_raw().await?;
            match tag {
                COPY_BOTH_RESPONSE => break,
                _ => match Message::parse(&mut bytes)? {
                    Some(Message::ErrorResponse(body)) => {
                        return Err(ServerError::from_fields(body.fields()).into());
                    }
                    Some(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                    _ => {
                        return Err(ReplicationError::Protocol(
                            "START_REPLICATION starts no stream".to_owned(),
                        ));
                    }
                },
            }
        }
        let (transport, buffer) = self.wire.into_parts();
        Ok(ReplicationStream::new(transport, buffer, options.limits))
    }

    async fn send_query(&mut self, command: &str) -> Result<(), ReplicationError> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message)?;
        Ok(self.wire.send(&message).await?)
    }

    /// Runs a simple query and gives its rows; an error of the server leaves the connection usable.
    async fn query(&mut self, command: &str) -> Result<Vec<TextRow>, ReplicationError> {
        self.send_query(command).await?;
        let mut rows = Vec::new();
        let mut failure: Option<ServerError> = None;
        loop {
            let message = match (self.wire.receive().await, failure) {
                // A fatal error is followed by the end of the connection, and says more than that.
                (Err(_), Some(error)) => return Err(error.into()),
                (Err(error), None) => return Err(error.into()),
                (Ok(message), known) => {
                    failure = known;
                    message
                }
            };
            match message {
                Message::DataRow(body) => {
                    let mut fields = Vec::new();
                    let mut ranges = body.ranges();
                    while let Some(range) = ranges.next()? {
                        let bytes = range.and_then(|range| body.buffer().get(range));
                        fields.push(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
                    }
                    rows.push(TextRow(fields));
                }
                Message::ErrorResponse(body) => failure = Some(ServerError::from_fields(body.fields())),
                Message::ReadyForQuery(_) => break,
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse
                | Message::ParameterStatus(_) => {}
                _ => {
                    return Err(ReplicationError::Protocol(format!(
                        "a message that does not answer {command}"
                    )));
                }
            }
        }
        match failure {
            None => Ok(rows),
            Some(error) => Err(error.into()),
        }
    }

    async fn one_row(&mut self, command: &str) -> Result<TextRow, ReplicationError> {
        let row = self.query(command).await?.into_iter().next();
        row.ok_or_else(|| ReplicationError::Protocol(format!("no row in answer to {command}")))
    }
}

/// A row of a simple query.
#[derive(Debug)]
struct TextRow(Vec<Option<String>>);

impl TextRow {
    fn text(&self, index: usize) -> Option<&str> {
        self.0.get(index)?.as_deref()
    }

    fn lsn(&self, index: usize) -> Option<Lsn> {
        self.text(index)?.parse().ok()
    }
}

async fn start_session(
    transport: Transport,
    config: &SourceConfig,
    password: Option<Secret>,
) -> Result<ReplicationConnection, ConnectError> {
    // Making a slot waits for running transactions by their locks, however long they run.
    let settings = [("replication", "database"), ("lock_timeout", "0")];
    let LoggedIn { wire, server_version, unknown_encoding } =
        log_in(transport, config, password, &settings).await?;
    let mut connection = ReplicationConnection { wire, server_version, wal_sender_timeout: None };
    connection.settle(unknown_encoding).await.map_err(|error| match error {
        ReplicationError::Server(server) => ConnectError::from_server(*server, config),
        ReplicationError::Io(io) => ConnectError::Io(io),
        other => ConnectError::Protocol(other.to_string()),
    })?;
    Ok(connection)
}

/// A session that takes statements.
struct LoggedIn {
    wire: Wire,
    server_version: u32,
    /// The database has texts that nobody knows the encoding of.
    unknown_encoding: bool,
}

/// The server would check that what it cannot convert is UTF-8, and fail at the first text that is not.
const AS_IT_IS: &str = "SET client_encoding = 'SQL_ASCII'";

/// Begins a session with these settings and the pinned ones.
async fn log_in(
    transport: Transport,
    config: &SourceConfig,
    password: Option<Secret>,
    settings: &[(&str, &str)],
) -> Result<LoggedIn, ConnectError> {
    let mut wire = Wire::new(transport);
    let mut parameters = vec![
        ("user", config.user.as_str()),
        ("database", config.dbname.as_str()),
        ("application_name", config.application_name.as_str()),
    ];
    parameters.extend(settings);
    parameters.extend(SESSION);
    if let Some(options) = &config.options {
        parameters.push(("options", options));
    }
    let mut message = BytesMut::new();
    frontend::startup_message(parameters, &mut message)?;
    wire.send(&message).await?;
    auth::log_in(&mut wire, config, password.as_ref()).await?;
    let (mut server_version, mut unknown_encoding) = (0, false);
    loop {
        match wire.receive().await? {
            Message::ParameterStatus(body) if body.name()? == "server_version" => {
                server_version = server_version_num(body.value()?);
            }
            Message::ParameterStatus(body) if body.name()? == "server_encoding" => {
                unknown_encoding = body.value()? == "SQL_ASCII";
            }
            Message::ParameterStatus(_) | Message::BackendKeyData(_) => {}
            Message::ReadyForQuery(_) => break,
            Message::ErrorResponse(body) => {
                return Err(ConnectError::from_server(ServerError::from_fields(body.fields()), config));
            }
            _ => return Err(ConnectError::Protocol("a message that does not belong to a login".to_owned())),
        }
    }
    Ok(LoggedIn { wire, server_version, unknown_encoding })
}

impl ReplicationConnection {
    /// Settings that the startup message cannot carry, and what the server expects of us.
    async fn settle(&mut self, unknown_encoding: bool) -> Result<(), ReplicationError> {
        if unknown_encoding {
            self.query(AS_IT_IS).await?;
        }
        let newer = newer_settings(self.server_version);
        if !newer.is_empty() {
            self.query(&newer).await?;
        }
        self.query(LIMIT_SILENCE).await?;
        let row = self.one_row("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").await?;
        let millis = row.text(0).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        self.wal_sender_timeout = (millis > 0).then(|| Duration::from_millis(millis));
        Ok(())
    }
}

fn start_command(slot: &str, lsn: Lsn, options: &StartOptions) -> Result<String, ReplicationError> {
    let plugin_options: Result<Vec<_>, _> = plugin_options(options)?
        .into_iter()
        .map(|(name, value)| literal(&value).map(|value| format!("{name} {value}")))
        .collect();
    let (slot, plugin_options) = (slot_name(slot)?, plugin_options?.join(", "));
    Ok(format!("START_REPLICATION SLOT {slot} LOGICAL {lsn} ({plugin_options})"))
}

/// What the output plugin is told.
fn plugin_options(options: &StartOptions) -> Result<Vec<(&'static str, String)>, ReplicationError> {
    let publications: Result<Vec<_>, _> = options.publications.iter().map(|name| identifier(name)).collect();
    let mut told =
        vec![("proto_version", options.protocol.to_string()), ("publication_names", publications?.join(","))];
    for (name, wanted, value) in [
        ("streaming", options.streaming, "on"),
        ("messages", options.messages, "true"),
        ("origin", options.origin == Origin::None, "none"),
        ("binary", options.binary, "true"),
    ] {
        if wanted {
            told.push((name, value.to_owned()));
        }
    }
    Ok(told)
}

/// A slot's name, quoted because it may look like a number. The replication grammar cannot write others than those that
/// slots may have.
fn slot_name(name: &str) -> Result<String, ReplicationError> {
    let fits = (1..=63).contains(&name.len());
    if fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        Ok(format!("\"{name}\""))
    } else {
        Err(ReplicationError::SlotName(name.to_owned()))
    }
}

/// A name in double quotes.
fn identifier(name: &str) -> Result<String, ReplicationError> {
    quote(name, '"')
}

/// A text in single quotes; the replication grammar knows no escapes but the doubled quote.
fn literal(text: &str) -> Result<String, ReplicationError> {
    quote(text, '\'')
}

fn quote(text: &str, with: char) -> Result<String, ReplicationError> {
    if text.contains('\0') {
        return Err(ReplicationError::Protocol("a name with a zero byte".to_owned()));
    }
    let doubled = format!("{with}{with}");
    Ok(format!("{with}{}{with}", text.replace(with, &doubled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_so_that_they_stay_names() {
        let options = StartOptions {
            protocol: 3,
            publications: vec!["plain".to_owned(), "it's".to_owned(), "a\"b,c".to_owned()],
            streaming: true,
            messages: true,
            origin: Origin::None,
            binary: false,
            limits: StreamLimits::default(),
        };
        assert_eq!(
            start_command("millrace_x", Lsn(0x16_0000_00FF), &options).unwrap(),
            "START_REPLICATION SLOT \"millrace_x\" LOGICAL 16/FF (proto_version '3', publication_names \
             '\"plain\",\"it''s\",\"a\"\"b,c\"', streaming 'on', messages 'true', origin 'none')"
        );
        for name in ["", "A", "a\"b", "a b", "a\0b"] {
            assert!(matches!(start_command(name, Lsn(0), &options), Err(ReplicationError::SlotName(_))));
        }
    }
}
