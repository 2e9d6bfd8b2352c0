//! Speaking SQL to a source: what a failed statement tells, and how names are quoted.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

/// A statement on the control connection failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {reason}{}", code(.sqlstate))]
pub struct SqlError {
    /// What the statement was for, as it stands after "cannot".
    pub doing: String,
    /// The server's words, or what happened to the connection.
    pub reason: String,
    /// The server's code; `None` when it was not the server that failed it.
    pub sqlstate: Option<SqlState>,
    #[source]
    source: tokio_postgres::Error,
}

fn code(sqlstate: &Option<SqlState>) -> String {
    sqlstate.as_ref().map(|state| format!(" (SQLSTATE {})", state.code())).unwrap_or_default()
}

impl SqlError {
    /// `doing` completes the sentence "cannot …".
    pub fn new(doing: impl Into<String>, source: tokio_postgres::Error) -> Self {
        let reason = match source.as_db_error() {
            Some(error) => match (error.detail(), error.hint()) {
                (None, None) => error.message().to_owned(),
                (Some(detail), None) => format!("{}; {detail}", error.message()),
                (None, Some(hint)) => format!("{}; {hint}", error.message()),
                (Some(detail), Some(hint)) => format!("{}; {detail}; {hint}", error.message()),
            },
            None => match std::error::Error::source(&source) {
                Some(cause) => format!("{source}: {cause}"),
                None => source.to_string(),
            },
        };
        SqlError { doing: doing.into(), reason, sqlstate: source.code().cloned(), source }
    }

    /// Whether the same statement may succeed later with nothing changed by hand: the connection broke, the server
    /// stops or starts, lacks resources, or had to choose a victim.
    pub fn is_transient(&self) -> bool {
        let Some(state) = &self.sqlstate else { return true };
        let code = state.code();
        matches!(code.get(..2), Some("08" | "40" | "53" | "58"))
            || [SqlState::LOCK_NOT_AVAILABLE, SqlState::OBJECT_IN_USE].contains(state)
            || matches!(code, "57P01" | "57P02" | "57P03" | "57014")
    }

    /// Whether the server refused the role.
    pub fn is_permission(&self) -> bool {
        self.sqlstate == Some(SqlState::INSUFFICIENT_PRIVILEGE)
    }
}

/// A schema-qualified name, quoted.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", escape_identifier(schema), escape_identifier(name))
}

/// A name, quoted.
pub fn quoted(name: &str) -> String {
    escape_identifier(name)
}
