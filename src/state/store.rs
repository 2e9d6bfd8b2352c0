//! `state.db`: the broker's identity, its tasks with every move they made, slot intents, and settings of logs.
//!
//! All methods block on the disk: async code calls them in `spawn_blocking`. What a method has returned from is durable.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::{DataDir, StateError, data_dir, sqlite};

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tasks (
        name TEXT PRIMARY KEY,
        definition TEXT NOT NULL,
        state TEXT NOT NULL,
        state_reason TEXT NOT NULL,
        state_since INTEGER NOT NULL,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE task_history (
        id INTEGER PRIMARY KEY,
        task TEXT NOT NULL REFERENCES tasks (name) ON DELETE CASCADE,
        at INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL
    );
    CREATE INDEX task_history_task ON task_history (task, id);
    CREATE TABLE intents (
        task TEXT PRIMARY KEY REFERENCES tasks (name) ON DELETE CASCADE,
        slot TEXT NOT NULL,
        system_identifier TEXT NOT NULL,
        generation INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE task_facts (
        task TEXT NOT NULL REFERENCES tasks (name) ON DELETE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (task, key)
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE log_settings (
        log TEXT NOT NULL,
        name TEXT NOT NULL,
        value INTEGER NOT NULL,
        PRIMARY KEY (log, name)
    ) WITHOUT ROWID;
",
];

/// Moves kept of each task.
const KEPT_MOVES: u32 = 1_000;

/// The broker's own store.
pub struct Store {
    path: PathBuf,
    cluster_id: String,
    db: Mutex<Connection>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

/// A task as it is stored. Its definition is the task module's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// Its name.
    pub name: String,
    /// What it captures and where to, as JSON.
    pub definition: String,
    /// Its state.
    pub state: String,
    /// Why it is in that state.
    pub state_reason: String,
    /// Since when, in milliseconds since 1970.
    pub state_since: i64,
    /// When it was made, in milliseconds since 1970.
    pub created_at: i64,
}

/// A move of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// To which state.
    pub state: String,
    /// Why.
    pub reason: String,
}

/// That a slot is about to be made: durable before the slot is, so that a crash between the two leaves no riddle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The slot's name.
    pub slot: String,
    /// The source that it is made in.
    pub system_identifier: u64,
    /// Which slot of the task, counted from 1.
    pub generation: u32,
}

impl Store {
    /// Opens the store of a data directory, or makes it.
    ///
    /// # Errors
    /// [`StateError::NewerVersion`], [`StateError::NotWritable`], [`StateError::Damaged`]; database errors.
    pub fn open(directory: &DataDir) -> Result<Store, StateError> {
        let path = directory.join("state.db");
        let db = sqlite::open(&path, MIGRATIONS)?;
        data_dir::sync_directory(directory.path())?;
        let failed = |source| StateError::Database { path: path.clone(), source };
        db.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let fresh =
            data_dir::random_hex::<16>().map_err(|e| StateError::io("make a cluster id for", &path, e))?;
        db.execute("INSERT OR IGNORE INTO meta VALUES ('cluster_id', ?1)", [fresh]).map_err(failed)?;
        let cluster_id = db
            .query_row("SELECT value FROM meta WHERE key = 'cluster_id'", [], |row| row.get(0))
            .map_err(failed)?;
        Ok(Store { path, cluster_id, db: Mutex::new(db) })
    }

    /// The broker's random identity, the same for the life of the data directory.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// All tasks, by name.
    ///
    /// # Errors
    /// Database errors.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, StateError> {
        self.query(|db| {
            let mut statement = db.prepare_cached("SELECT * FROM tasks ORDER BY name")?;
            statement.query_map([], task_row)?.collect()
        })
    }

    /// A task.
    ///
    /// # Errors
    /// Database errors.
    pub fn task(&self, name: &str) -> Result<Option<TaskRow>, StateError> {
        self.query(|db| {
            db.prepare_cached("SELECT * FROM tasks WHERE name = ?1")?.query_row([name], task_row).optional()
        })
    }

    /// Adds a task; its first state is its first move.
    ///
    /// # Errors
    /// [`StateError::TaskExists`]; database errors.
    pub fn add_task(
        &self,
        name: &str,
        definition: &str,
        state: &str,
        reason: &str,
        at: i64,
    ) -> Result<(), StateError> {
        let added = self.change(|db| {
            let added = db.execute(
                "INSERT OR IGNORE INTO tasks VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                params![name, definition, state, reason, at],
            )?;
            if added > 0 {
                record_move(db, name, state, reason, at)?;
            }
            Ok(added)
        })?;
        if added == 0 { Err(StateError::TaskExists(name.into())) } else { Ok(()) }
    }

    /// Gives a task another definition.
    ///
    /// # Errors
    /// [`StateError::NoTask`]; database errors.
    pub fn define_task(&self, name: &str, definition: &str) -> Result<(), StateError> {
        let changed = self.change(|db| {
            db.execute("UPDATE tasks SET definition = ?2 WHERE name = ?1", params![name, definition])
        })?;
        self.found(changed, name)
    }

    /// Moves a task to a state, and records the move.
    ///
    /// # Errors
    /// [`StateError::NoTask`]; database errors.
    pub fn move_task(&self, name: &str, state: &str, reason: &str, at: i64) -> Result<(), StateError> {
        let changed = self.change(|db| {
            let changed = db.execute(
                "UPDATE tasks SET state = ?2, state_reason = ?3, state_since = ?4 WHERE name = ?1",
                params![name, state, reason, at],
            )?;
            if changed > 0 {
                record_move(db, name, state, reason, at)?;
            }
            Ok(changed)
        })?;
        self.found(changed, name)
    }

    /// Forgets a task, with its history, intent and facts, and the settings of its log.
    ///
    /// # Errors
    /// [`StateError::NoTask`]; database errors.
    pub fn remove_task(&self, name: &str) -> Result<(), StateError> {
        let changed = self.change(|db| {
            db.execute("DELETE FROM log_settings WHERE log = ?1", [name])?;
            db.execute("DELETE FROM tasks WHERE name = ?1", [name])
        })?;
        self.found(changed, name)
    }

    /// The last `limit` moves of a task, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub fn history(&self, task: &str, limit: u32) -> Result<Vec<HistoryRow>, StateError> {
        self.query(|db| {
            let mut statement = db.prepare_cached(
                "SELECT at, state, reason FROM task_history WHERE task = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let row =
                |row: &Row<'_>| Ok(HistoryRow { at: row.get(0)?, state: row.get(1)?, reason: row.get(2)? });
            statement.query_map(params![task, limit], row)?.collect()
        })
    }

    /// Records that a slot is about to be made for a task. Replaces an earlier intent.
    ///
    /// # Errors
    /// Database errors, also when there is no such task.
    pub fn set_intent(&self, task: &str, intent: &Intent) -> Result<(), StateError> {
        self.change(|db| {
            db.execute(
                "INSERT OR REPLACE INTO intents VALUES (?1, ?2, ?3, ?4)",
                // As text: a system identifier uses all 64 bits, an SQLite integer has a sign.
                params![task, intent.slot, intent.system_identifier.to_string(), intent.generation],
            )
        })
        .map(drop)
    }

    /// The slot intent of a task.
    ///
    /// # Errors
    /// Database errors.
    pub fn intent(&self, task: &str) -> Result<Option<Intent>, StateError> {
        let row = self.query(|db| {
            db.prepare_cached("SELECT slot, system_identifier, generation FROM intents WHERE task = ?1")?
                .query_row([task], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))
                .optional()
        })?;
        let Some((slot, system_identifier, generation)) = row else {
            return Ok(None);
        };
        let system_identifier = system_identifier.parse().map_err(|_| StateError::Damaged {
            path: self.path.clone(),
            detail: format!("the intent of task {task} holds no system identifier"),
        })?;
        Ok(Some(Intent { slot, system_identifier, generation }))
    }

    /// Removes a task's slot intent.
    ///
    /// # Errors
    /// Database errors.
    pub fn clear_intent(&self, task: &str) -> Result<(), StateError> {
        self.change(|db| db.execute("DELETE FROM intents WHERE task = ?1", [task])).map(drop)
    }

    /// Remembers something about a task.
    ///
    /// # Errors
    /// Database errors, also when there is no such task.
    pub fn set_fact(&self, task: &str, key: &str, value: &str) -> Result<(), StateError> {
        self.change(|db| {
            db.execute("INSERT OR REPLACE INTO task_facts VALUES (?1, ?2, ?3)", params![task, key, value])
        })
        .map(drop)
    }

    /// Something remembered about a task.
    ///
    /// # Errors
    /// Database errors.
    pub fn fact(&self, task: &str, key: &str) -> Result<Option<String>, StateError> {
        self.query(|db| {
            db.prepare_cached("SELECT value FROM task_facts WHERE task = ?1 AND key = ?2")?
                .query_row([task, key], |row| row.get(0))
                .optional()
        })
    }

    /// Forgets something about a task.
    ///
    /// # Errors
    /// Database errors.
    pub fn clear_fact(&self, task: &str, key: &str) -> Result<(), StateError> {
        self.change(|db| db.execute("DELETE FROM task_facts WHERE task = ?1 AND key = ?2", [task, key]))
            .map(drop)
    }

    /// What has been set for logs: a log's name, the setting's, and its value.
    ///
    /// # Errors
    /// Database errors.
    pub fn log_settings(&self) -> Result<Vec<(String, String, i64)>, StateError> {
        self.query(|db| {
            let mut statement = db.prepare_cached("SELECT log, name, value FROM log_settings")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        })
    }

    /// Sets settings of a log, all or none, and forgets those without a value.
    ///
    /// # Errors
    /// Database errors.
    pub fn set_log_settings(&self, log: &str, settings: &[(&str, Option<i64>)]) -> Result<(), StateError> {
        self.change(|db| {
            for (name, value) in settings {
                match value {
                    Some(value) => db.execute(
                        "INSERT OR REPLACE INTO log_settings VALUES (?1, ?2, ?3)",
                        params![log, name, value],
                    )?,
                    None => db.execute(
                        "DELETE FROM log_settings WHERE log = ?1 AND name = ?2",
                        params![log, name],
                    )?,
                };
            }
            Ok(())
        })
    }

    fn found(&self, changed: usize, name: &str) -> Result<(), StateError> {
        if changed == 0 { Err(StateError::NoTask(name.into())) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic cut off was rolled back when it was dropped: the connection is sound.
        self.db.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn query<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        query(&self.lock()).map_err(|source| StateError::Database { path: self.path.clone(), source })
    }

    fn change<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let run = || {
            let mut db = self.lock();
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let answer = change(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        };
        run().map_err(|source| StateError::Database { path: self.path.clone(), source })
    }
}

fn task_row(row: &Row<'_>) -> rusqlite::Result<TaskRow> {
    Ok(TaskRow {
        name: row.get("name")?,
        definition: row.get("definition")?,
        state: row.get("state")?,
        state_reason: row.get("state_reason")?,
        state_since: row.get("state_since")?,
        created_at: row.get("created_at")?,
    })
}

fn record_move(db: &Connection, task: &str, state: &str, reason: &str, at: i64) -> rusqlite::Result<usize> {
    db.execute(
        "INSERT INTO task_history (task, at, state, reason) VALUES (?1, ?2, ?3, ?4)",
        params![task, at, state, reason],
    )?;
    // A task that retries for days must not fill the disk with its moves.
    db.execute(
        "DELETE FROM task_history WHERE task = ?1 AND id <= (
            SELECT id FROM task_history WHERE task = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        params![task, KEPT_MOVES],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, DataDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let store = Store::open(&data).unwrap();
        (dir, data, store)
    }

    #[test]
    fn the_cluster_id_stays_the_same() {
        let (_dir, data, store) = open();
        let first = store.cluster_id().to_owned();
        assert_eq!(first.len(), 32);
        drop(store);
        assert_eq!(Store::open(&data).unwrap().cluster_id(), first);
    }

    #[test]
    fn every_move_of_a_task_is_recorded_with_its_time_and_reason() {
        let (_dir, data, store) = open();
        store.add_task("shop", "{}", "created", "made by up", 10).unwrap();
        assert!(matches!(store.add_task("shop", "{}", "created", "", 11), Err(StateError::TaskExists(_))));
        store.move_task("shop", "running", "snapshot done", 20).unwrap();
        store.define_task("shop", r#"{"a":1}"#).unwrap();
        drop(store);
        let store = Store::open(&data).unwrap();
        let moves: Vec<_> =
            store.history("shop", 10).unwrap().into_iter().map(|m| (m.at, m.state, m.reason)).collect();
        let expected = [(20, "running", "snapshot done"), (10, "created", "made by up")];
        assert_eq!(moves, expected.map(|(at, state, reason)| (at, state.to_owned(), reason.to_owned())));
        let task = store.task("shop").unwrap().unwrap();
        assert_eq!((task.state.as_str(), task.state_since, task.created_at), ("running", 20, 10));
        assert_eq!(task.definition, r#"{"a":1}"#);
        assert_eq!(store.tasks().unwrap(), [task]);
        assert!(matches!(store.move_task("none", "running", "", 1), Err(StateError::NoTask(_))));
    }

    #[test]
    fn the_history_of_a_restless_task_is_bounded() {
        let (_dir, _data, store) = open();
        store.add_task("shop", "{}", "created", "", 0).unwrap();
        let fill = "INSERT INTO task_history (task, at, state, reason)
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
            SELECT 'shop', i, 'retrying', '' FROM n";
        store.change(|db| db.execute(fill, [])).unwrap();
        store.move_task("shop", "running", "", 2001).unwrap();
        let moves = store.history("shop", 5_000).unwrap();
        assert_eq!(moves.len(), KEPT_MOVES as usize);
        assert_eq!(moves[0].at, 2001);
    }

    #[test]
    fn a_removed_task_leaves_nothing_behind() {
        let (_dir, _data, store) = open();
        let intent = Intent { slot: "millrace_shop".into(), system_identifier: u64::MAX, generation: 2 };
        assert!(store.set_intent("shop", &intent).is_err());
        store.add_task("shop", "{}", "created", "", 1).unwrap();
        store.set_intent("shop", &intent).unwrap();
        store.set_fact("shop", "server_version", "15.4").unwrap();
        assert_eq!(store.intent("shop").unwrap(), Some(intent));
        assert_eq!(store.fact("shop", "server_version").unwrap().as_deref(), Some("15.4"));
        store.set_log_settings("shop", &[("retention.ms", Some(5))]).unwrap();
        store.set_log_settings("other", &[("retention.ms", Some(6))]).unwrap();
        store.remove_task("shop").unwrap();
        assert_eq!(store.log_settings().unwrap(), [("other".into(), "retention.ms".into(), 6)]);
        assert_eq!(store.intent("shop").unwrap(), None);
        assert_eq!(store.fact("shop", "server_version").unwrap(), None);
        assert!(store.history("shop", 10).unwrap().is_empty());
    }

    #[test]
    fn settings_of_a_log_last_until_they_are_taken_back() {
        let (_dir, data, store) = open();
        store
            .set_log_settings("a", &[("retention.ms", Some(-1)), ("retention.bytes", Some(i64::MAX))])
            .unwrap();
        store.set_log_settings("a", &[("retention.ms", None), ("retention.bytes", Some(7))]).unwrap();
        drop(store);
        let store = Store::open(&data).unwrap();
        assert_eq!(store.log_settings().unwrap(), [("a".into(), "retention.bytes".into(), 7)]);
    }

    #[test]
    fn an_intent_can_be_cleared_once_the_slot_is_there() {
        let (_dir, _data, store) = open();
        store.add_task("shop", "{}", "created", "", 1).unwrap();
        let intent = Intent { slot: "millrace_shop".into(), system_identifier: 7, generation: 1 };
        store.set_intent("shop", &intent).unwrap();
        store.clear_intent("shop").unwrap();
        assert_eq!(store.intent("shop").unwrap(), None);
        store.set_fact("shop", "a", "b").unwrap();
        store.clear_fact("shop", "a").unwrap();
        assert_eq!(store.fact("shop", "a").unwrap(), None);
    }
}
