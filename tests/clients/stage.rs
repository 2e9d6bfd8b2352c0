//! A PostgreSQL with counters, and Millrace following it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use millrace_test_support::{Millrace, Postgres, PostgresOptions};
use tokio::runtime::Runtime;

use crate::ledger::Truth;

pub const TOPIC: &str = "shop";
pub const PARTITIONS: usize = 4;
/// Each transaction of [`Stage::write`] updates so many counters.
pub const ROWS_A_TRANSACTION: usize = (COUNTERS / SETS) as usize;

const COUNTERS: i32 = 40;
/// Counters with the same remainder change together.
const SETS: i32 = 8;

// In the order in which they end.
pub struct Stage {
    millrace: Millrace,
    session: tokio_postgres::Client,
    _postgres: Postgres,
    _data_dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Stage {
    /// All counters are there, with their first event, value 0.
    pub fn start() -> Stage {
        Self::with_sessions_of(Duration::from_secs(6))
    }

    /// With another time after which a member of the consumer protocol is missed.
    pub fn with_sessions_of(session_timeout: Duration) -> Stage {
        let runtime = Runtime::new().unwrap();
        let data_dir = tempfile::tempdir().unwrap();
        let (postgres, session, millrace) = runtime.block_on(async {
            let postgres = Postgres::start(PostgresOptions::default()).await;
            let session = postgres.client().await;
            session
                .batch_execute("CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL)")
                .await
                .unwrap();
            let partitions = PARTITIONS.to_string();
            let session_timeout = session_timeout.as_millis().to_string();
            let args = [
                ["--task", TOPIC],
                ["--partitions", &partitions],
                ["--partition-by", "key"],
                ["--group-consumer-session-timeout-ms", &session_timeout],
            ];
            let millrace = Millrace::up(data_dir.path(), &postgres.url(), args.as_flattened()).await;
            let insert = "INSERT INTO counters SELECT id, 0 FROM generate_series(1, $1) id";
            session.execute(insert, &[&COUNTERS]).await.unwrap();
            (postgres, session, millrace)
        });
        Stage { millrace, session, _postgres: postgres, _data_dir: data_dir, runtime }
    }

    pub fn bootstrap(&self) -> String {
        self.millrace.bootstrap()
    }

    /// Where gRPC is.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.millrace.http_port())
    }

    /// Commits transactions all the time that something takes.
    pub fn write_throughout<T>(&self, something: impl FnOnce() -> T) -> T {
        /// Also when it panics.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    self.write(SETS);
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let _done = Done(&done);
            something()
        })
    }

    /// Commits so many transactions, with or without a broker to see them.
    pub fn write(&self, transactions: i32) {
        self.runtime.block_on(async {
            let update = "UPDATE counters SET n = n + 1 WHERE id % $1 = $2";
            for transaction in 0..transactions {
                self.session.execute(update, &[&SETS, &(transaction % SETS)]).await.unwrap();
            }
        });
    }

    /// What the source has.
    pub fn truth(&self) -> Truth {
        let rows =
            self.runtime.block_on(self.session.query("SELECT id::bigint, n::bigint FROM counters", &[]));
        rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub fn kill_broker(&mut self) {
        self.millrace.kill9();
    }

    pub fn restart_broker(&mut self) {
        self.runtime.block_on(self.millrace.restart());
    }
}
