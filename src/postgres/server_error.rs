//! An error as the server reports it, and the SQLSTATE codes that callers tell apart.

use std::fmt;

use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::fallible_iterator::FallibleIterator;

use crate::change::Lsn;

/// SQLSTATE codes that mean something to us.
pub mod sqlstate {
    /// Wrong password.
    pub const INVALID_PASSWORD: &str = "28P01";
    /// No `pg_hba.conf` entry, role unknown, or login not allowed.
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// Database does not exist.
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    /// No privilege.
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// No connection or no WAL sender free.
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// A limit of the configuration: no free slot.
    pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
    /// Lock not free in time.
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// A value that a parameter cannot have; a snapshot that nobody has exported.
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    /// Something is too large: a string buffer beyond 1 GiB.
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
    /// Slot in use.
    pub const OBJECT_IN_USE: &str = "55006";
    /// The server is not in the state asked for: `wal_level`, a slot that lost its WAL.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    /// Slot or publication does not exist.
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// A character that the other encoding does not have.
    pub const UNTRANSLATABLE_CHARACTER: &str = "22P05";
    /// A function does not exist; a type's output function, for example.
    pub const UNDEFINED_FUNCTION: &str = "42883";
    /// Slot or publication exists.
    pub const DUPLICATE_OBJECT: &str = "42710";
    /// Somebody has cancelled the statement, or it ran into a time limit.
    pub const QUERY_CANCELED: &str = "57014";
    /// The server has removed what the snapshot sees; up to version 16.
    pub const SNAPSHOT_TOO_OLD: &str = "72000";
    /// The server is shutting down.
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// Another server process crashed.
    pub const CRASH_SHUTDOWN: &str = "57P02";
    /// The server is starting up, shutting down or recovering.
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// Internal error.
    pub const INTERNAL_ERROR: &str = "XX000";
}

/// What the server said went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// SQLSTATE; see [`sqlstate`].
    pub code: String,
    /// What happened.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// In the middle of what it happened. Translated; not part of what is displayed.
    pub context: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse; what cannot be read stays empty.
    pub(super) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let mut error = ServerError::default();
        let mut plain_severity = None;
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' => error.severity = text,
                // Not translated, unlike 'S'.
                b'V' => plain_severity = Some(text),
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'W' => error.context = Some(text),
                _ => {}
            }
        }
        if let Some(severity) = plain_severity {
            error.severity = severity;
        }
        error
    }

    /// Whether the SQLSTATE is `code`.
    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// Whether the same request may succeed later without anybody's doing: the server is short of something or going
    /// down or up, a connection broke, or somebody cancelled it.
    pub fn is_transient(&self) -> bool {
        // 08 connection, 40 rollback, 53 resources, 57P operator intervention, 58 system.
        let class = self.code.get(..2).unwrap_or_default();
        matches!(class, "08" | "40" | "53" | "58")
            || self.code.starts_with("57P0")
            || self.is(sqlstate::OBJECT_IN_USE)
            || self.is(sqlstate::LOCK_NOT_AVAILABLE)
            || self.is(sqlstate::QUERY_CANCELED)
    }

    /// A value or row that is too long for the server to send in the form that was asked for.
    pub fn is_value_too_large(&self) -> bool {
        self.is(sqlstate::INTERNAL_ERROR) && self.message.starts_with("invalid memory alloc request size")
            || self.is(sqlstate::PROGRAM_LIMIT_EXCEEDED)
    }

    /// A value of a type that has no binary form: it goes in text form. The message is translated; but what else is
    /// undefined on the way of a row?
    pub fn is_type_without_binary_form(&self) -> bool {
        self.is(sqlstate::UNDEFINED_FUNCTION)
    }

    /// The slot's decoder lacks a change of the catalog, and will lack it at every attempt. PostgreSQL forgets those that are
    /// committed while a slot begins to be made (`snapbuild.c`: commits before `SNAPBUILD_FULL_SNAPSHOT`).
    pub fn is_undecodable(&self) -> bool {
        self.is(sqlstate::INTERNAL_ERROR) && self.message.starts_with("could not map filen")
    }

    /// Of which WAL record an output plugin could not make a message. Whatever the language, the context ends with it.
    pub fn change(&self) -> Option<Lsn> {
        let words = self.context.as_deref()?.split(|c: char| !c.is_ascii_hexdigit() && c != '/');
        words.filter(|word| word.contains('/')).find_map(|word| word.parse().ok())
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            context: error.where_().map(str::to_owned),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}
