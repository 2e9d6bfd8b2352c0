//! A SQL session for COPY: what the server sends goes from the socket's buffer to the caller's, and nowhere else.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::time::timeout;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::buffer::BadLength;
use super::stream::LARGEST_MESSAGE;
use super::wire::{Wire, invalid};
use super::{AS_IT_IS, ERROR_RESPONSE, LoggedIn, log_in};
use crate::postgres::connect::{ConnectError, newer_settings, reach};
use crate::postgres::password;
use crate::postgres::server::{self, Server};
use crate::postgres::server_error::ServerError;
use crate::postgres::source::SourceConfig;

const COPY_DATA: u8 = b'd';
const DATA_ROW: u8 = b'D';
const READY_FOR_QUERY: u8 = b'Z';

/// A statement that says nothing for so long counts as lost.
const SILENCE: Duration = Duration::from_secs(60);

/// What is no row may have so much, whatever the limit.
const LEAST_LIMIT: usize = 8 << 20;

/// I7: who has locked a table waits for nobody, and we wait no longer than this.
const LOCK_TIMEOUT: &str = "50ms";

/// A session that reads rows by COPY. Dropping it ends the session.
#[derive(Debug)]
pub struct CopyConnection {
    wire: Wire,
}

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The server refused; the session goes on, its transaction does not.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The session is lost.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// More than wanted; the session is useless, because the rest would still come.
    #[error("more than {0} bytes")]
    TooMuch(usize),
}

impl CopyConnection {
    /// Opens a session that sees all rows of a table or fails, and never waits long for a lock.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses us.
    pub async fn connect(config: &SourceConfig) -> Result<Self, ConnectError> {
        let password = password::find(config).await?;
        // Parallel workers would be taken from the users.
        const SETTINGS: &[(&str, &str)] =
            &[("lock_timeout", LOCK_TIMEOUT), ("max_parallel_workers_per_gather", "0")];
        let login = |transport| {
            let password = password.clone();
            async move { log_in(transport, config, password, SETTINGS).await }.boxed()
        };
        let LoggedIn { wire, server_version, unknown_encoding } = reach(config, login).await?;
        let mut connection = CopyConnection { wire };
        let mut settings = newer_settings(server_version);
        if unknown_encoding {
            settings = format!("{AS_IT_IS}; {settings}");
        }
        if !settings.is_empty() {
            connection.run(&settings, &mut Vec::new(), 0).await.map_err(|error| match error {
                CopyError::Server(server) => ConnectError::from_server(*server, config),
                CopyError::Io(error) => ConnectError::Io(error),
                CopyError::TooMuch(_) => ConnectError::Protocol("rows that nobody asked for".to_owned()),
            })?;
        }
        Ok(connection)
    }

    /// Which server this is.
    ///
    /// # Errors
    /// When the server refuses or the connection breaks.
    pub async fn server(&mut self) -> Result<Server, CopyError> {
        let told = self.run(server::SQL, &mut Vec::new(), 0).await?;
        Ok(Server::new(told.unwrap_or_default()))
    }

    /// Runs statements in one message. What a COPY among them sends is appended to `lines`, at most `limit` bytes. Gives
    /// the first value of the first row of others.
    ///
    /// # Errors
    /// When the server refuses, the connection breaks, or there is more than `limit`.
    pub async fn run(
        &mut self,
        statements: &str,
        lines: &mut Vec<u8>,
        limit: usize,
    ) -> Result<Option<String>, CopyError> {
        let take = |line: &[u8]| {
            if lines.len() + line.len() > limit {
                return Err(CopyError::TooMuch(limit));
            }
            lines.extend_from_slice(line);
            Ok(())
        };
        // A row that is too much by itself is not even read.
        self.exchange(statements, limit.clamp(LEAST_LIMIT, LARGEST_MESSAGE), take).await
    }

    /// As [`Self::run`], with each row of COPY given to `take`.
    ///
    /// # Errors
    /// When the server refuses, the connection breaks, or `take` says so.
    pub async fn run_each(
        &mut self,
        statements: &str,
        take: impl FnMut(&[u8]) -> Result<(), CopyError>,
    ) -> Result<Option<String>, CopyError> {
        self.exchange(statements, LARGEST_MESSAGE, take).await
    }

    async fn exchange(
        &mut self,
        statements: &str,
        largest_message: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), CopyError>,
    ) -> Result<Option<String>, CopyError> {
        self.wire.set_largest_message(largest_message);
        let mut message = BytesMut::new();
        frontend::query(statements, &mut message)?;
        self.wire.send(&message).await?;
        let (mut first, mut failure) = (None, None);
        loop {
            let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
            let (tag, place) = match self.wire.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => match timeout(SILENCE, self.wire.fill()).await.map_err(silent).flatten() {
                    Ok(1..) => continue,
                    // A fatal error is followed by the end of the connection, and says more than that.
                    ended => {
                        let error = ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                        return Err(failure.map_or(CopyError::Io(error), CopyError::Server));
                    }
                },
                Err(BadLength::TooLarge(_)) if largest_message < LARGEST_MESSAGE => {
                    return Err(CopyError::TooMuch(largest_message));
                }
                Err(error) => return Err(CopyError::Io(invalid(error))),
            };
            match tag {
                COPY_DATA => take(self.wire.content(place))?,
                DATA_ROW if first.is_none() => {
                    let mut bytes = self.wire.with_header(tag, place);
                    if let Some(Message::DataRow(row)) = Message::parse(&mut bytes)? {
                        let value = row.ranges().next()?.flatten().and_then(|range| row.buffer().get(range));
                        first = value.map(|value| String::from_utf8_lossy(value).into_owned());
                    }
                }
                ERROR_RESPONSE => {
                    let mut bytes = self.wire.with_header(tag, place);
                    if let Some(Message::ErrorResponse(body)) = Message::parse(&mut bytes)? {
                        failure = Some(Box::new(ServerError::from_fields(body.fields())));
                    }
                }
                READY_FOR_QUERY => return failure.map_or(Ok(first), |error| Err(CopyError::Server(error))),
                _ => {}
            }
        }
    }
}
