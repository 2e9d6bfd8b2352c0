//! A source behind a proxy, a Millrace with an output in each format, and the comparison of both.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::postgres::source::SourceConfig;
use millrace::state::{DataDir, Store};
use millrace_test_support::{
    Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions, Proxy, Random, RawRecord, read_raw_topic,
    read_topic,
};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tokio_postgres::Client;

use crate::rebuild::{Position, Rebuilt, Row, from_debezium, from_protobuf, text};
use crate::workload::{FILL, Load, Shared, connect, schema};

/// The task, and its output in Debezium JSON, with all tables in one topic.
const TASK: &str = "t";
/// Its slot.
pub const SLOT: &str = "millrace_t";
/// Its output in Protobuf, with a topic for each table.
const EACH: &str = "each";

/// How long the workload runs: long enough to meet something, unless asked for more.
pub fn run_time() -> Duration {
    let seconds = std::env::var("MILLRACE_TEST_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Settings of a source that streams all but the smallest transactions and soon misses a client that is cut off.
pub fn options() -> PostgresOptions {
    PostgresOptions::default()
        .setting("logical_decoding_work_mem", "64kB")
        .setting("max_prepared_transactions", "20")
        .setting("wal_sender_timeout", "2s")
}

/// The same for the newest version; `None` where it cannot be had.
pub fn newest() -> Option<PostgresOptions> {
    const NEWEST: u32 = 18;
    let fetched = Command::new("deploy/fetch-postgres.sh").arg(NEWEST.to_string()).output();
    if fetched.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(options().major(NEWEST));
    }
    println!("not tested: PostgreSQL {NEWEST} cannot be fetched: {fetched:?}");
    None
}

/// What a task begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Begin {
    /// Nothing.
    Empty,
    /// The rows that there are, while they are written to.
    Rows,
    /// So many of them, read so slowly, that much happens meanwhile.
    ManyRows,
}

impl Begin {
    /// Any of them.
    pub fn any(seed: u64) -> Begin {
        match Random::new(seed, 1 << 34).below(3) {
            0 => Begin::Empty,
            1 => Begin::Rows,
            _ => Begin::ManyRows,
        }
    }
}

/// A server, the proxy before it, and Millrace.
pub struct Stage {
    pub seed: u64,
    pub postgres: Postgres,
    pub proxy: Proxy,
    pub millrace: Millrace,
    pub shared: Arc<Shared>,
    data: tempfile::TempDir,
}

impl Stage {
    /// Makes the tables on a fresh server, and starts Millrace with settings that follow from the seed.
    pub async fn start(postgres: Postgres, seed: u64, begin: Begin) -> Stage {
        let client = postgres.client().await;
        client.batch_execute(&schema()).await.unwrap();
        if begin == Begin::ManyRows {
            client.batch_execute(FILL).await.unwrap();
        }
        let (shared, mut random) = (Arc::<Shared>::default(), Random::new(seed, 0));
        let load = match begin {
            Begin::Empty => None,
            Begin::Rows | Begin::ManyRows => {
                let load = Load::start(&postgres.url(), &shared, seed, 1 << 20);
                shared.until_committed(100).await;
                Some(load)
            }
        };
        let proxy = Proxy::to(postgres.port());
        let data = tempfile::tempdir().unwrap();
        let source = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
        let source = SourceConfig::parse(&source).unwrap().display();
        let spread = |random: &mut Random| match random.below(3) {
            0 => r#""partitions":1"#,
            1 => r#""partitions":3,"partition_by":"key""#,
            _ => r#""partitions":2,"partition_by":"table""#,
        };
        let start = if load.is_some() { "snapshot" } else { "now" };
        let (all, each) = (spread(&mut random), spread(&mut random));
        let definition = format!(
            r#"{{"name":"{TASK}","source":"{source}","start":"{start}","outputs":[
                {{"events":{{"snapshot":"inline"}},{all}}},
                {{"name":"{EACH}","format":"protobuf","layout":"table",{each}}}]}}"#
        );
        {
            let store = Store::open(&DataDir::open(data.path()).unwrap()).unwrap();
            store.add_task(TASK, &definition, "created", "", 0).unwrap();
        }
        let mut options = MillraceOptions::serve(data.path()).env("PGPASSWORD", PASSWORD);
        if random.below(3) == 0 {
            options = options.args(&["--experimental-catch-up-mb", "1"]);
        }
        if begin == Begin::ManyRows {
            options = options.args(&["--snapshot-limit-mb-per-second", "1"]);
        }
        let millrace = Millrace::start(options).await;
        if let Some(load) = load {
            load.stop().await;
        }
        Stage { seed, postgres, proxy, millrace, shared, data }
    }

    /// Waits until Millrace is ready, and says who was in the way when it never is.
    pub async fn until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.millrace.get("/health/ready").is_none_or(|(status, _)| status != 200) {
            if Instant::now() > deadline {
                panic!("never ready; in the source:\n{}\n{}", self.activity().await, self.report());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the source's processes do.
    async fn activity(&self) -> String {
        const SQL: &str = "SELECT coalesce(json_agg(a), '[]')::text FROM (
            SELECT a.pid, backend_type, state, wait_event_type, wait_event, pg_blocking_pids(a.pid) AS blocked_by,
                   xact_start, state_change, left(query, 100) AS query, slot_name, restart_lsn, confirmed_flush_lsn
            FROM pg_stat_activity a LEFT JOIN pg_replication_slots s ON s.active_pid = a.pid
            WHERE backend_type IN ('client backend', 'walsender')) a";
        let client = connect(&self.postgres.url(), || false).await.unwrap();
        client.query_one(SQL, &[]).await.unwrap().get(0)
    }

    /// Compares what the topics tell with what the source holds. Nobody may be writing.
    pub async fn compare(&mut self) {
        self.until_ready().await;
        let client = connect(&self.postgres.url(), || false).await.unwrap();
        settle(&client).await;
        let mark = "SELECT pg_logical_emit_message(true, 'test.mark', '')::text";
        let mark: String = client.query_one(mark, &[]).await.unwrap().get(0);
        self.millrace.wait_durable(&mark).await;
        // Rows of a table that has just joined may still be on their way.
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(difference) = self.difference(&client).await {
            let may_pass = matches!(difference, Difference::Rows(_)) && Instant::now() < deadline;
            assert!(may_pass, "{difference:?}\n{}", self.report());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks for the rows of a table that is captured already.
    pub fn ask_for_rows(&self, table: &str) {
        let token = std::fs::read_to_string(self.data.path().join("admin-token")).unwrap();
        let headers = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
        let (path, body) =
            (format!("/api/v1/tasks/{TASK}/snapshots"), format!(r#"{{"tables":["public.{table}"]}}"#));
        // It may be busy starting, and not know its tables yet.
        let _ = self.millrace.request("POST", &path, &headers, &body);
    }

    /// What a person needs who looks for the reason of a failure.
    pub fn report(&self) -> String {
        format!(
            "MILLRACE_TEST_SEED={} repeats it, with PostgreSQL {}\n{}",
            self.seed,
            self.postgres.major(),
            self.millrace.output()
        )
    }

    async fn difference(&self, client: &Client) -> Result<(), Difference> {
        let source = tables(client).await;
        let committed: BTreeSet<i64> = self.shared.committed().into_iter().collect();
        let ledger: BTreeSet<i64> = source["ledger"].iter().filter_map(|row| row["id"].as_i64()).collect();
        if let Some(lost) = committed.difference(&ledger).next() {
            return Err(Difference::Broken(format!("the source itself has lost transaction {lost}")));
        }
        let all = from_debezium(&[read_raw_topic(&self.millrace.bootstrap(), TASK).await]);
        let all = all.map_err(Difference::Broken)?;
        let each = from_protobuf(&self.topics_of(EACH).await).map_err(Difference::Broken)?;
        for (output, rebuilt) in [(TASK, &all), (EACH, &each)] {
            for (table, rows) in &source {
                same_rows(rebuilt.tables.get(table).map_or(&[][..], Vec::as_slice), rows)
                    .map_err(|why| Difference::Rows(format!("output {output}, table {table}: {why}")))?;
            }
        }
        same_changes(&all, &each).map_err(Difference::Rows)?;
        println!("{} tables and {} changes are the same", source.len(), all.changes.len());
        Ok(())
    }

    /// All topics of the tables of an output.
    async fn topics_of(&self, output: &str) -> Vec<Vec<RawRecord>> {
        let (bootstrap, prefix) = (self.millrace.bootstrap(), format!("{output}."));
        let list = move || {
            let consumer: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(20)).unwrap();
            let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
            names.filter(|name| name.starts_with(&prefix)).collect::<Vec<_>>()
        };
        let names = tokio::task::spawn_blocking(list).await.unwrap();
        let mut topics = Vec::new();
        for name in names {
            topics.push(read_raw_topic(&self.millrace.bootstrap(), &name).await);
        }
        topics
    }

    /// Waits until all existing rows of a table are told.
    pub async fn until_read(&self, table: &str) {
        let is_end = |event: &Value| event["stage"] == "end" && event["table"] == table;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let records = read_topic(&self.millrace.bootstrap(), TASK).await;
            if records.iter().filter_map(|record| record.value.as_ref()).any(is_end) {
                return;
            }
            assert!(Instant::now() < deadline, "{table} is never read:\n{}", self.report());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The gap events of the task.
    pub async fn gaps(&self) -> Vec<Value> {
        let records = read_topic(&self.millrace.bootstrap(), &format!("{TASK}.events")).await;
        let events = records.into_iter().filter_map(|record| record.value);
        events.filter(|event| event["type"] == "gap").collect()
    }
}

/// What is not as it should be.
#[derive(Debug)]
#[expect(dead_code, reason = "what they say is shown in a panic")]
enum Difference {
    /// Other rows than the source's or the other output's, which may become the same: the outputs are read one by one.
    Rows(String),
    /// What can never be right.
    Broken(String),
}

/// Waits until everybody has ended what they began, and ends what was prepared.
pub async fn settle(client: &Client) {
    let prepared = "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts";
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for row in client.query(prepared, &[]).await.unwrap() {
            client.batch_execute(row.get(0)).await.unwrap();
        }
        if client.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "somebody still writes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The rows of all tables of the source.
async fn tables(client: &Client) -> BTreeMap<String, Vec<Row>> {
    let names =
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    let mut tables = BTreeMap::new();
    for name in client.query(names, &[]).await.unwrap() {
        let name: String = name.get(0);
        let rows = client.query(&format!("SELECT to_jsonb(t)::text FROM {name} t"), &[]).await.unwrap();
        let rows = rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect();
        tables.insert(name, rows);
    }
    tables
}

/// The same rows, each as often.
fn same_rows(rebuilt: &[Row], source: &[Row]) -> Result<(), String> {
    let count = |rows: &[Row]| {
        let mut counted = BTreeMap::<String, usize>::new();
        rows.iter().for_each(|row| *counted.entry(text(row)).or_default() += 1);
        counted
    };
    let (rebuilt, source) = (count(rebuilt), count(source));
    let only_in = |one: &BTreeMap<String, usize>, other: &BTreeMap<String, usize>| {
        let more = one.iter().filter(|(row, count)| other.get(*row) != Some(count));
        more.take(3).map(|(row, _)| row.chars().take(300).collect::<String>()).collect::<Vec<_>>()
    };
    match rebuilt == source {
        true => Ok(()),
        false => Err(format!(
            "only in the source {:#?}, only in the topics {:#?}",
            only_in(&source, &rebuilt),
            only_in(&rebuilt, &source)
        )),
    }
}

/// The same changes at the same positions in both outputs.
fn same_changes(one: &Rebuilt, other: &Rebuilt) -> Result<(), String> {
    let difference: Vec<&(Position, String)> =
        one.changes.symmetric_difference(&other.changes).take(3).collect();
    match difference.is_empty() {
        true => Ok(()),
        false => Err(format!("only in one of the outputs: {difference:x?}")),
    }
}
