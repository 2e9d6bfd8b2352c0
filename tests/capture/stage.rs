//! A PostgreSQL server with a Millrace on it, and what a user does with both.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace::postgres::source::SourceConfig;
use millrace::state::{DataDir, Store};
use millrace_test_support::{
    Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions, Record, read_topic,
};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tokio_postgres::Client;

/// Large values are compressed by LZ4, where the server was built with it: it is much quicker.
#[macro_export]
macro_rules! quick_compression {
    () => {
        "SELECT set_config('default_toast_compression', enumvals[cardinality(enumvals)], false)
         FROM pg_settings WHERE name = 'default_toast_compression';"
    };
}

/// The task's name, and so its topic's.
pub const TASK: &str = "t";
/// Prefix of the messages by which a test knows how far Millrace is.
const MARK: &str = "test.mark";

/// A server, and Millrace capturing its one database.
pub struct Stage {
    pub millrace: Millrace,
    pub client: Client,
    pub postgres: Postgres,
    data: tempfile::TempDir,
}

impl Stage {
    /// Starts a server, runs `setup` on it, and then Millrace with these arguments.
    pub async fn start(options: PostgresOptions, setup: &str, args: &[&str]) -> Stage {
        Stage::start_on(Postgres::start(options).await, "postgres", setup, args).await
    }

    /// The same, and Millrace has this role.
    pub async fn start_as(user: &str, setup: &str) -> Stage {
        Stage::start_on(Postgres::start(PostgresOptions::default()).await, user, setup, &[]).await
    }

    async fn start_on(postgres: Postgres, user: &str, setup: &str, args: &[&str]) -> Stage {
        let client = postgres.client().await;
        run(&client, setup).await;
        let data = tempfile::tempdir().unwrap();
        let url = postgres.url_for(user, PASSWORD, "postgres");
        let millrace = Millrace::up(data.path(), &url, &[&["--task", TASK], args].concat()).await;
        Stage { millrace, client, postgres, data }
    }

    /// A server on which every transaction of more than 64 kB is streamed while it runs.
    pub async fn streaming(setup: &str, args: &[&str]) -> Stage {
        let options = PostgresOptions::default()
            .setting("logical_decoding_work_mem", "64kB")
            .setting("max_prepared_transactions", "10");
        Stage::start(options, setup, args).await
    }

    /// A server, and a task with these outputs.
    pub async fn with_outputs(options: PostgresOptions, setup: &str, outputs: &str) -> Stage {
        let postgres = Postgres::start(options).await;
        let client = postgres.client().await;
        run(&client, setup).await;
        Stage::over(postgres, client, outputs).await
    }

    /// A task with these outputs on a server that is there already.
    pub async fn over(postgres: Postgres, client: Client, outputs: &str) -> Stage {
        let data = tempfile::tempdir().unwrap();
        define(data.path(), &postgres, outputs);
        let millrace = Millrace::start(MillraceOptions::serve(data.path())).await;
        Stage { millrace, client, postgres, data }
    }

    /// A server, and a task whose tables are published so.
    pub async fn with_publish(options: PostgresOptions, setup: &str, publish: &str) -> Stage {
        Stage::with_task(options, setup, &format!(r#""outputs":[],"publish":{publish}"#)).await
    }

    /// A server, and a task that is defined so, but for its name and source.
    pub async fn with_task(options: PostgresOptions, setup: &str, definition: &str) -> Stage {
        Stage::with_task_and(options, setup, definition, &[]).await
    }

    /// The same, and these arguments of Millrace.
    pub async fn with_task_and(
        options: PostgresOptions,
        setup: &str,
        definition: &str,
        args: &[&str],
    ) -> Stage {
        let postgres = Postgres::start(options).await;
        let client = postgres.client().await;
        run(&client, setup).await;
        let data = tempfile::tempdir().unwrap();
        let source = SourceConfig::parse(&postgres.unix_url()).unwrap().display();
        let definition = format!(r#"{{"name":"{TASK}","source":"{source}",{definition}}}"#);
        let store = Store::open(&DataDir::open(data.path()).unwrap()).unwrap();
        store.add_task(TASK, &definition, "created", "", 0).unwrap();
        drop(store);
        let millrace = Millrace::start(MillraceOptions::serve(data.path()).args(args)).await;
        Stage { millrace, client, postgres, data }
    }

    /// Waits until the API names something in this list of the task, and gives the list.
    pub async fn names(&self, list: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let task = self.task();
            let found: Vec<String> =
                task[list].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            if found.len() == count {
                return found;
            }
            assert!(Instant::now() < deadline, "{list} of {task}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a table stands in the publication for updates, too.
    pub async fn published_whole(&self, table: &str) {
        let sql = format!(
            "SELECT count(*)::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
             WHERE p.pubname = 'millrace_{TASK}' AND r.prrelid = '{table}'::regclass"
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ask(&sql).await == "0" {
            assert!(Instant::now() < deadline, "{table} does not join: {}", self.millrace.output());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the API names these tables as told under the name of another one.
    pub async fn told_as_one(&self, tables: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (_, body) = self.millrace.get(&format!("/api/v1/tasks/{TASK}")).unwrap();
            let task: Value = serde_json::from_str(&body).unwrap();
            let parts = task["tables"].as_array().unwrap().iter().filter(|table| !table["told_as"].is_null());
            let parts: Vec<&str> = parts.map(|table| table["name"].as_str().unwrap()).collect();
            if tables.iter().all(|table| parts.contains(table)) {
                return;
            }
            assert!(Instant::now() < deadline, "{tables:?} are not told as one: {body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops Millrace, gives the task these outputs, and starts it again.
    pub async fn redefine(&mut self, outputs: &str) {
        self.millrace.sigterm();
        assert!(self.millrace.wait().await.success());
        define(self.data.path(), &self.postgres, outputs);
        self.millrace.spawn_again();
        self.millrace.wait_ready().await;
    }

    /// Where Millrace keeps everything.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// All that is in a topic once everything committed has arrived.
    pub async fn topic(&self, topic: &str) -> Vec<Record> {
        self.caught_up().await;
        read_topic(&self.millrace.bootstrap(), topic).await
    }

    /// The names of all topics.
    pub async fn topics(&self) -> Vec<String> {
        self.caught_up().await;
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.millrace.bootstrap()).create().unwrap();
        let list = move || consumer.fetch_metadata(None, Duration::from_secs(20)).unwrap();
        let metadata = tokio::task::spawn_blocking(list).await.unwrap();
        let mut names: Vec<_> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
        names.sort();
        names
    }

    /// Runs statements; several in one text are one transaction, unless they say otherwise.
    pub async fn run(&self, sql: &str) {
        run(&self.client, sql).await;
    }

    /// Runs each statement by itself.
    pub async fn run_each(&self, statements: &[&str]) {
        for sql in statements {
            self.run(sql).await;
        }
    }

    /// What one query says, as text.
    pub async fn ask(&self, sql: &str) -> String {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until everything that has been committed is durable in the log.
    pub async fn caught_up(&self) {
        let mark = format!("SELECT pg_logical_emit_message(true, '{MARK}', '')::text");
        self.millrace.wait_durable(&self.ask(&mark).await).await;
    }

    /// All that is in the topic once everything committed has arrived.
    pub async fn records(&self) -> Vec<Record> {
        self.caught_up().await;
        read_topic(&self.millrace.bootstrap(), TASK).await
    }

    /// All that is in the topic of events, without our own marks.
    pub async fn events(&self) -> Vec<Record> {
        let mut events = read_topic(&self.millrace.bootstrap(), &format!("{TASK}.events")).await;
        events.retain(|event| event.value.as_ref().unwrap()["message"]["prefix"] != MARK);
        events
    }

    /// Waits for the `count`th gap event of a table of schema `public` and gives its cause.
    pub async fn gap(&self, table: &str, count: usize) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let events = self.events().await;
            let gaps = events.iter().filter_map(|event| event.value.as_ref());
            let mut gaps = gaps.filter(|gap| gap["type"] == "gap" && gap["table"]["table"] == table);
            if let Some(gap) = gaps.nth(count - 1) {
                return gap["cause"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "no gap event {count} for {table}: {events:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the existing rows of a table have been read for the `count`th time.
    pub async fn read(&self, table: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let events = self.events().await;
            let ends = events.iter().filter_map(|event| event.value.as_ref());
            let ends = ends.filter(|event| event["stage"] == "end" && event["table"] == table);
            if ends.count() >= count {
                return;
            }
            let output = self.millrace.output();
            assert!(Instant::now() < deadline, "{table} was not read {count} times: {events:?}\n{output}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The tables of schema `public` that the API names as captured insert-only.
    pub fn insert_only(&self) -> Vec<String> {
        let task = self.task();
        let sentences = task["insert_only"].as_array().unwrap().iter();
        let name = |sentence: &Value| {
            let (name, _) = sentence.as_str().unwrap().split_once(": ").unwrap();
            name.strip_prefix("\"public\".").unwrap().trim_matches('"').to_owned()
        };
        sentences.map(name).collect()
    }

    /// Millrace's data directory.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The task as the API shows it.
    pub fn task(&self) -> Value {
        let (_, body) = self.millrace.get("/api/v1/tasks").unwrap();
        serde_json::from_str::<Value>(&body).unwrap()[0].clone()
    }
}

/// Saves the task with these outputs.
fn define(data: &Path, postgres: &Postgres, outputs: &str) {
    let source = SourceConfig::parse(&postgres.unix_url()).unwrap().display();
    let definition = format!(r#"{{"name":"{TASK}","source":"{source}","outputs":[{outputs}]}}"#);
    let store = Store::open(&DataDir::open(data).unwrap()).unwrap();
    if store.task(TASK).unwrap().is_none() {
        store.add_task(TASK, &definition, "created", "", 0).unwrap();
    }
    store.define_task(TASK, &definition).unwrap();
}

/// Runs statements and says which failed.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{error:?}\n{}", sql.chars().take(500).collect::<String>());
    }
}

/// A record in a line: table, key, operation, row before, row after, headers.
pub fn line(record: &Record) -> String {
    let key = record.raw_key.as_deref().map_or("-", |key| std::str::from_utf8(key).unwrap());
    let mut line = match &record.value {
        None => format!("{key} tombstone"),
        Some(event) => format!(
            "{} {key} {} {} {}",
            event["source"]["table"].as_str().unwrap(),
            event["op"].as_str().unwrap(),
            event["before"],
            event["after"]
        ),
    };
    for (name, value) in record.headers.iter().filter(|(name, _)| name != "millrace.position") {
        line.push_str(&format!(" {name}={value}"));
    }
    line
}

/// Compares records with the lines that they should be.
pub fn expect(records: &[Record], lines: &[&str]) {
    let found: Vec<String> = records.iter().map(line).collect();
    assert!(found == lines, "found:\n  {}\nexpected:\n  {}", found.join("\n  "), lines.join("\n  "));
}

/// The rows of one table's events, in order.
pub fn rows<'a>(records: &'a [Record], table: &str) -> Vec<&'a Value> {
    let events = records.iter().filter_map(|record| record.value.as_ref());
    events.filter(|event| event["source"]["table"] == table).map(|event| &event["after"]).collect()
}
