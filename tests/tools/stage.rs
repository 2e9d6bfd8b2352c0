//! A PostgreSQL with orders, and Millrace following it.

use millrace_test_support::{Millrace, Postgres, PostgresOptions};

pub const TOPIC: &str = "shop";
/// The topic of events that are no changes.
pub const EVENTS: &str = "shop.events";
pub const PARTITIONS: usize = 3;
/// Rows, each a transaction, each a record.
pub const ROWS: usize = 60;

// In the order in which they end.
pub struct Stage {
    millrace: Millrace,
    session: tokio_postgres::Client,
    _postgres: Postgres,
    data_dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    /// All rows have been committed, and can be read.
    pub fn start() -> Stage {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let data_dir = tempfile::tempdir().unwrap();
        let (postgres, session, millrace) = runtime.block_on(async {
            let postgres = Postgres::start(PostgresOptions::default()).await;
            let session = postgres.client().await;
            session.batch_execute("CREATE TABLE orders (id int PRIMARY KEY, note text)").await.unwrap();
            let partitions = PARTITIONS.to_string();
            let args = ["--task", TOPIC, "--partitions", &partitions, "--partition-by", "key"];
            let millrace = Millrace::up(data_dir.path(), &postgres.url(), &args).await;
            (postgres, session, millrace)
        });
        let stage = Stage { millrace, session, _postgres: postgres, data_dir, runtime };
        stage.insert(0);
        stage
    }

    /// Inserts as many rows as there are at first, with other keys.
    pub fn insert(&self, first: usize) {
        self.runtime.block_on(async {
            for id in first..first + ROWS {
                let insert = "INSERT INTO orders VALUES ($1, 'note')";
                self.session.execute(insert, &[&i32::try_from(id).unwrap()]).await.unwrap();
            }
            let row = self.session.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
            self.millrace.wait_durable(row.get(0)).await;
        });
    }

    pub fn bootstrap(&self) -> String {
        self.millrace.bootstrap()
    }

    pub fn port(&self) -> u16 {
        self.millrace.kafka_port()
    }

    pub fn data_dir(&self) -> &std::path::Path {
        self.data_dir.path()
    }
}
