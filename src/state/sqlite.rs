//! Opening a database of ours: durable settings, and migrations by `user_version`.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StateError;

/// Opens the database at `path`, makes it durable, and brings it to the newest schema: `migrations[n]` leads from
/// version `n` to `n + 1`.
pub(super) fn open(path: &Path, migrations: &[&str]) -> Result<Connection, StateError> {
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => {
            StateError::NotWritable { path: path.into() }
        }
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            StateError::Damaged { path: path.into(), detail: source.to_string() }
        }
        _ => StateError::Database { path: path.into(), source },
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Somebody who looks into the database can hold it up for a moment.
    db.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let supported = migrations.len() as i64;
    if found > supported {
        return Err(StateError::NewerVersion { path: path.into(), found, supported });
    }
    // The answer is the mode that is in force now.
    let mode: String =
        db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("sqlite keeps journal mode {mode}, not wal");
        return Err(StateError::Damaged { path: path.into(), detail });
    }
    db.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    for (version, migration) in migrations.iter().enumerate().skip(found.max(0) as usize) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.execute_batch(migration).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version as i64 + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(db)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_a_newer_version_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        drop(open(&path, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).unwrap());
        let refused = open(&path, &["CREATE TABLE a (x)"]).unwrap_err();
        assert!(matches!(refused, StateError::NewerVersion { found: 2, supported: 1, .. }), "{refused}");
        open(&path, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).unwrap();
    }

    #[test]
    fn what_is_committed_is_synced_and_not_only_written() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir.path().join("state.db"), &[]).unwrap();
        let synchronous: i64 = db.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!(synchronous, 2, "FULL: every commit is fsynced (I6)");
    }

    #[test]
    fn only_missing_migrations_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        drop(open(&path, &["CREATE TABLE a (x)"]).unwrap());
        let db = open(&path, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).unwrap();
        db.execute("INSERT INTO b VALUES (1)", []).unwrap();
    }

    #[test]
    fn what_is_not_a_database_is_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        std::fs::write(
            &path,
            b"not a database, but long enough to have a header of a hundred bytes or so".repeat(9),
        )
        .unwrap();
        assert!(matches!(open(&path, &[]), Err(StateError::Damaged { .. })));
    }
}
