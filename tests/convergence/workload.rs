//! What a busy application does to a database, at random: transactions at once, savepoints, rollbacks, key changes,
//! truncates, two-phase commits, wide and large rows, new tables.
//!
//! Every committed transaction leaves its number in table `ledger`. What it does follows from the seed alone; what
//! becomes of it, from the others and from the moment at which its connection is lost.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_test_support::Random;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

/// How many of them write at once.
const WRITERS: u64 = 4;
/// Rows of a table are chosen among so many, so that they meet.
const IDS: u64 = 120;
/// Columns of table `wide`, beside those of every table.
const WIDE_COLUMNS: usize = 120;
/// Rows of a large transaction: more than `logical_decoding_work_mem` holds.
const LARGE: u64 = 1_500;

/// Rows of tables `pair` and `whole` that take long to read, each beside a large value; some of them are changed like others.
pub const FILL: &str = "
    INSERT INTO pair SELECT 'left', g, g, 'x', repeat(md5(g::text), 80) FROM generate_series(1001, 1800) g;
    INSERT INTO whole SELECT g, g, 'x', repeat(md5(g::text), 80) FROM generate_series(1001, 1800) g;";
/// The numbers of those rows.
const FILLED: (u64, u64) = (1001, 800);

/// Tables that are there from the beginning, all with columns `id`, `n`, `note` and `big`.
pub const TABLES: [&str; 7] = ["plain", "pair", "whole", "bag", "indexed", "wide", "bulk"];

/// Statements that make the tables.
pub fn schema() -> String {
    const COLUMNS: &str = "n bigint, note text, big text";
    let wide: String = (0..WIDE_COLUMNS)
        .map(|column| format!(", c{column} {}", ["int", "text", "boolean", "bigint"][column % 4]))
        .collect();
    let mut sql = format!(
        "CREATE TABLE ledger (id bigint PRIMARY KEY, writer bigint NOT NULL);
         CREATE TABLE plain (id bigint PRIMARY KEY, {COLUMNS});
         CREATE TABLE pair (side text DEFAULT 'left', id bigint, {COLUMNS}, PRIMARY KEY (side, id));
         CREATE TABLE whole (id bigint PRIMARY KEY, {COLUMNS});
         ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE bag (id bigint, {COLUMNS});
         ALTER TABLE bag REPLICA IDENTITY FULL;
         CREATE TABLE indexed ({COLUMNS}, id bigint NOT NULL UNIQUE);
         ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_id_key;
         CREATE TABLE wide (id bigint PRIMARY KEY, {COLUMNS} {wide});
         CREATE TABLE bulk (id bigint PRIMARY KEY, {COLUMNS});"
    );
    for table in TABLES {
        // Kept out of line as it is, so that a change of another column leaves it unsent.
        sql.push_str(&format!("ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;"));
    }
    sql
}

/// What all writers know.
#[derive(Debug, Default)]
pub struct Shared {
    /// Numbers for transactions and rows.
    next: AtomicI64,
    /// Transactions whose commit was answered.
    committed: Mutex<Vec<i64>>,
    /// Tables made while running.
    made: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Shared {
    /// The numbers of all transactions whose commit was answered.
    pub fn committed(&self) -> Vec<i64> {
        self.committed.lock().unwrap().clone()
    }

    /// Waits until so many commits were answered.
    pub async fn until_committed(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.committed.lock().unwrap().len() < count {
            assert!(Instant::now() < deadline, "nobody writes");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The source has lost what it has lost.
    pub fn forget(&self) {
        self.committed.lock().unwrap().clear();
        self.made.lock().unwrap().clear();
    }
}

/// The writers at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts writers that connect by `url`, again and again if they must.
    pub fn start(url: &str, shared: &Arc<Shared>, seed: u64, part: u64) -> Self {
        shared.stop.store(false, Relaxed);
        let start = |number| {
            let writer = Writer {
                number,
                url: url.to_owned(),
                random: Random::new(seed, part * WRITERS + number + 1),
                shared: shared.clone(),
            };
            tokio::spawn(writer.run())
        };
        Load { shared: shared.clone(), writers: (0..WRITERS).map(start).collect() }
    }

    /// Ends them.
    pub async fn stop(self) {
        self.shared.stop.store(true, Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
    }
}

/// Connects, also when the server is just starting; `None` when it never does.
pub async fn connect(url: &str, give_up: impl Fn() -> bool) -> Option<Client> {
    while !give_up() {
        if let Ok((client, connection)) = tokio_postgres::connect(url, NoTls).await {
            tokio::spawn(connection);
            return Some(client);
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}

struct Writer {
    number: u64,
    url: String,
    random: Random,
    shared: Arc<Shared>,
}

/// How a transaction ends.
enum End {
    Commit,
    Rollback,
    /// In two phases.
    Prepared,
}

impl Writer {
    async fn run(mut self) {
        let stopped = |shared: &Shared| shared.stop.load(Relaxed);
        while let Some(client) = connect(&self.url, || stopped(&self.shared)).await {
            // Waiting for each other must not last; what fails is rolled back.
            let settings = "SET lock_timeout = '300ms'; SET deadlock_timeout = '50ms'";
            let settled = client.batch_execute(settings).await.is_ok() && self.end_prepared(&client).await;
            while settled && !client.is_closed() {
                if stopped(&self.shared) {
                    return;
                }
                sleep(Duration::from_millis(self.random.below(12))).await;
                if self.transaction(&client).await.is_err() && !client.is_closed() {
                    // It may be the rollback that ends the connection.
                    let _ = client.batch_execute("ROLLBACK").await;
                }
            }
        }
    }

    /// Ends what was prepared when the connection was lost, as a transaction manager would.
    async fn end_prepared(&self, client: &Client) -> bool {
        let sql = format!(
            "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE gid LIKE 'writer-{}-%'",
            self.number
        );
        let Ok(rows) = client.query(&sql, &[]).await else { return false };
        for row in rows {
            if client.batch_execute(row.get(0)).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn transaction(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let number = self.shared.next.fetch_add(1, Relaxed);
        if self.random.once_in(60) {
            return self.make_table(client, number).await;
        }
        let end = match self.random.below(40) {
            0..=3 => End::Rollback,
            4 => End::Prepared,
            _ => End::Commit,
        };
        client.batch_execute("BEGIN").await?;
        let ledger = format!("INSERT INTO ledger VALUES ({number}, {})", self.number);
        let ledger_first = self.random.once_in(2);
        if ledger_first {
            client.batch_execute(&ledger).await?;
        }
        let mut savepoints = 0;
        for _ in 0..1 + self.random.below(8) {
            savepoints = self.savepoint(client, savepoints).await?;
            let statement = self.statement();
            client.batch_execute(&statement).await?;
            if self.random.once_in(6) {
                sleep(Duration::from_millis(self.random.below(20))).await;
            }
        }
        if !ledger_first {
            if savepoints > 0 && self.random.once_in(2) {
                client.batch_execute("ROLLBACK TO s1").await?;
            }
            client.batch_execute(&ledger).await?;
        }
        match end {
            End::Rollback => return client.batch_execute("ROLLBACK").await,
            End::Commit => client.batch_execute("COMMIT").await?,
            End::Prepared => {
                let name = format!("writer-{}-{number}", self.number);
                client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await?;
                sleep(Duration::from_millis(self.random.below(60))).await;
                client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await?;
            }
        }
        self.shared.committed.lock().unwrap().push(number);
        Ok(())
    }

    /// Sets a savepoint, goes back to one or lets one go, now and then. Gives how many there are.
    async fn savepoint(&mut self, client: &Client, open: u64) -> Result<u64, tokio_postgres::Error> {
        let (statement, open) = match self.random.below(10) {
            0..=2 => (format!("SAVEPOINT s{}", open + 1), open + 1),
            3 if open > 0 => {
                let to = 1 + self.random.below(open);
                (format!("ROLLBACK TO s{to}"), to)
            }
            4 if open > 0 => (format!("RELEASE s{open}"), open - 1),
            _ => return Ok(open),
        };
        client.batch_execute(&statement).await?;
        Ok(open)
    }

    /// A table like `plain`, with rows or without, which other writers find.
    async fn make_table(&mut self, client: &Client, number: i64) -> Result<(), tokio_postgres::Error> {
        let name = format!("made_{number}");
        let make = format!(
            "CREATE TABLE {name} (LIKE plain INCLUDING ALL);
             ALTER TABLE {name} REPLICA IDENTITY {};
             INSERT INTO {name} SELECT * FROM plain WHERE id % {} = 1",
            self.random.of(&["DEFAULT", "FULL"]),
            1 + self.random.below(3)
        );
        client.batch_execute(&make).await?;
        self.shared.made.lock().unwrap().push(name);
        Ok(())
    }

    fn statement(&mut self) -> String {
        let table = match self.random.below(8) {
            0 => self.made_table(),
            _ => self.random.of(&TABLES).to_owned(),
        };
        if table == "bulk" {
            return self.bulk();
        }
        let (id, other) = match ["pair", "whole"].contains(&table.as_str()) && self.random.once_in(2) {
            true => (FILLED.0 + self.random.below(FILLED.1), FILLED.0 + self.random.below(FILLED.1)),
            false => (1 + self.random.below(IDS), 1 + self.random.below(IDS)),
        };
        let (n, note, big) = (self.random.below(1_000_000), self.note(), self.big());
        let has_key = table != "bag";
        match self.random.below(100) {
            0..=29 => {
                let conflict = match has_key {
                    false => String::new(),
                    true if self.random.once_in(3) => "ON CONFLICT DO NOTHING".to_owned(),
                    true => {
                        let key = if table == "pair" { "side, id" } else { "id" };
                        format!("ON CONFLICT ({key}) DO UPDATE SET n = excluded.n, note = excluded.note")
                    }
                };
                format!("INSERT INTO {table} (id, n, note, big) VALUES ({id}, {n}, {note}, {big}) {conflict}")
            }
            30..=49 => format!("UPDATE {table} SET n = {n} WHERE id = {id}"),
            50..=54 => format!("UPDATE {table} SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 9"),
            55..=62 => format!("UPDATE {table} SET big = {big}, note = {note} WHERE id = {id}"),
            63..=64 if table == "wide" => {
                let set: Vec<_> =
                    (0..WIDE_COLUMNS / 4).map(|at| format!("c{} = {n} + {at}", at * 4)).collect();
                format!("UPDATE wide SET {} WHERE id = {id}", set.join(", "))
            }
            63..=74 => self.key_change(&table, id, other),
            75..=88 => format!("DELETE FROM {table} WHERE id = {id}"),
            89..=90 => format!("DELETE FROM {table} WHERE id BETWEEN {id} AND {id} + 20"),
            91..=96 => format!(
                "INSERT INTO {table} (id, n, note) SELECT g, g * {n}, {note} FROM generate_series({id}, {id} + 30) g {}",
                if has_key { "ON CONFLICT DO NOTHING" } else { "" }
            ),
            97 => format!("SELECT pg_logical_emit_message({}, 'app', {note})", self.random.once_in(2)),
            98 => format!("SELECT FROM {table} WHERE id = {id} FOR UPDATE"),
            _ => {
                let also = self.random.of(&["", ", bulk", ", whole, bag"]);
                let also = if also.contains(&table) { "" } else { also };
                format!("TRUNCATE {table}{also}")
            }
        }
    }

    fn key_change(&mut self, table: &str, id: u64, to: u64) -> String {
        let more = self.random.of(&["", ", n = n - 1", ", big = repeat('k', 3000)"]);
        match table {
            "pair" => format!(
                "UPDATE pair SET side = 'right' {more} WHERE id = {id} AND side = 'left'
                   AND NOT EXISTS (SELECT FROM pair WHERE id = {id} AND side = 'right')"
            ),
            _ => format!(
                "UPDATE {table} SET id = {to} {more} WHERE id = {id} AND NOT EXISTS (SELECT FROM {table} WHERE id = {to})"
            ),
        }
    }

    /// Many rows at once, with numbers of their own, or many of them gone.
    fn bulk(&mut self) -> String {
        let rows = if self.random.once_in(16) { LARGE } else { 1 + self.random.below(30) };
        match self.random.below(20) {
            0 => format!("DELETE FROM bulk WHERE id % 7 = {}", self.random.below(7)),
            1 => format!("UPDATE bulk SET n = n + 1 WHERE id % 31 = {}", self.random.below(31)),
            _ => {
                let first = self.shared.next.fetch_add(rows as i64, Relaxed);
                format!(
                    "INSERT INTO bulk SELECT g, g, repeat('x', (g % 90)::int) FROM generate_series({first}, {}) g",
                    first + rows as i64 - 1
                )
            }
        }
    }

    fn note(&mut self) -> &'static str {
        self.random.of(&[
            "NULL",
            "''",
            "'it''s \"quoted\" \\ \t'",
            "'Grüße, 水車 🜂'",
            "'{\"a\": [1, null]}'",
            "'x'",
        ])
    }

    /// Null, small enough to stay in the row, or large enough to be kept out of line.
    fn big(&mut self) -> String {
        match self.random.below(6) {
            0 => "NULL".to_owned(),
            1 => "'small'".to_owned(),
            _ => format!("repeat(md5('{}'), {})", self.random.below(1000), 80 + self.random.below(300)),
        }
    }

    /// One of the tables that were made last; `plain` while there is none.
    fn made_table(&mut self) -> String {
        let made = self.shared.made.lock().unwrap().clone();
        let newest = made.len().saturating_sub(4);
        let choice = self.random.below(4) as usize;
        made.get(newest + choice).cloned().unwrap_or("plain".to_owned())
    }
}
