//! Every committed change stands in the log once, in commit order, whatever is killed (I1, I2, I4, I5).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::ListOffsetsTopicResponse;
use kafka_protocol::messages::{
    ApiKey, BrokerId, ListOffsetsRequest, ListOffsetsResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use millrace::postgres::source::SourceConfig;
use millrace::state::{DataDir, Store};
use millrace_test_support::{
    Millrace, MillraceOptions, Postgres, PostgresOptions, Random, Record, parse_lsn, read_topic, seed,
};
use tokio_postgres::Client;

async fn make_tables(client: &Client) {
    client
        .batch_execute(
            "CREATE TABLE ledger (id bigint PRIMARY KEY, tx bigint NOT NULL, note text);
             CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, note text);
             INSERT INTO account SELECT g, 0, NULL FROM generate_series(1, 20) g;",
        )
        .await
        .unwrap();
}

/// Writes transactions until told to stop: inserts, updates, deletes, savepoints, rollbacks, a large one now and then.
async fn write(postgres: Arc<Postgres>, seed: u64, ids: Arc<AtomicI64>, stop: Arc<AtomicBool>, large: u64) {
    let mut random = Random::new(seed, 0);
    let mut client = postgres.client().await;
    while !stop.load(Relaxed) {
        settle(Duration::from_millis(random.below(20))).await;
        let tx = ids.fetch_add(1, Relaxed);
        let Ok(transaction) = client.transaction().await else { return };
        let rows = if random.below(200) == 0 { large } else { 1 + random.below(10) };
        let first = ids.fetch_add(rows as i64, Relaxed);
        let insert = format!(
            "INSERT INTO ledger SELECT g, {tx}, repeat('x', (g % 50)::int) FROM generate_series({first}, {}) g",
            first + rows as i64 - 1
        );
        transaction.batch_execute(&insert).await.unwrap();
        let (account, amount) = (1 + random.below(20), random.below(1000));
        let update = match random.below(4) {
            0 => format!("DELETE FROM account WHERE id = {account}"),
            1 => format!(
                "INSERT INTO account VALUES ({account}, {amount}) ON CONFLICT (id) DO UPDATE SET balance = excluded.balance"
            ),
            _ => format!("UPDATE account SET balance = balance + {amount} WHERE id = {account}"),
        };
        transaction.batch_execute(&update).await.unwrap();
        if random.below(3) == 0 {
            let lost = ids.fetch_add(1, Relaxed);
            let savepoint = format!(
                "SAVEPOINT s; INSERT INTO ledger VALUES ({lost}, {tx}, 'rolled back'); ROLLBACK TO SAVEPOINT s"
            );
            transaction.batch_execute(&savepoint).await.unwrap();
        }
        match random.below(10) {
            0 => transaction.rollback().await.unwrap(),
            _ => transaction.commit().await.unwrap(),
        }
    }
}

/// Compares the topic with the source, row by row.
async fn compare(client: &Client, records: &[Record]) {
    let mut last: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
    let mut ledger: BTreeMap<i64, i64> = BTreeMap::new();
    let mut account: BTreeMap<i64, i64> = BTreeMap::new();
    for record in records {
        let Some(event) = &record.value else { continue };
        let position = record.position();
        if let Some(before) = last.insert(record.partition, position) {
            assert!(
                before < position,
                "repeated or out of order: {before:?} then {position:?} in {record:?}"
            );
        }
        let table = event["source"]["table"].as_str().unwrap();
        let operation = event["op"].as_str().unwrap();
        let row = if operation == "d" { &event["before"] } else { &event["after"] };
        let id = row["id"].as_i64().unwrap();
        match (table, operation) {
            ("ledger", "c") => {
                assert!(ledger.insert(id, row["tx"].as_i64().unwrap()).is_none(), "row {id} came twice");
            }
            ("account", "d") => assert!(account.remove(&id).is_some(), "deleted row {id} was never seen"),
            ("account", _) => drop(account.insert(id, row["balance"].as_i64().unwrap())),
            other => panic!("unexpected {other:?}"),
        }
    }
    let query = async |sql: &str| -> BTreeMap<i64, i64> {
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let source = query("SELECT id, tx FROM ledger").await;
    let missing: Vec<_> = source.keys().filter(|id| !ledger.contains_key(id)).take(10).collect();
    let invented: Vec<_> = ledger.keys().filter(|id| !source.contains_key(id)).take(10).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing {missing:?}, invented {invented:?}");
    assert!(ledger == source);
    assert!(account == query("SELECT id::int8, balance FROM account").await, "accounts differ");
}

/// Waits until everything committed so far is durable in the log, and reads the topic.
async fn read_all(millrace: &Millrace, client: &Client, topic: &str) -> Vec<Record> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    millrace.wait_durable(row.get(0)).await;
    read_topic(&millrace.bootstrap(), topic).await
}

struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(postgres: &Arc<Postgres>, seed: u64, ids: &Arc<AtomicI64>, large: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..3)
            .map(|n| tokio::spawn(write(postgres.clone(), seed + n, ids.clone(), stop.clone(), large)))
            .collect();
        Load { stop, writers }
    }

    async fn stop(self) {
        self.stop.store(true, Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
    }
}

async fn settle(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A server that streams all but the smallest transactions, with empty tables.
async fn streaming_source() -> (Arc<Postgres>, Client) {
    let options = PostgresOptions::default().setting("logical_decoding_work_mem", "64kB");
    let postgres = Arc::new(Postgres::start(options).await);
    let client = postgres.client().await;
    make_tables(&client).await;
    client.batch_execute("TRUNCATE account").await.unwrap();
    (postgres, client)
}

/// SIGKILL at random moments under load, again and again; every third round inside a large streamed transaction.
#[tokio::test(flavor = "multi_thread")]
async fn sigkill_at_any_moment_neither_loses_nor_repeats_a_change() {
    let rounds: u64 = std::env::var("MILLRACE_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    let seed = seed();
    let mut random = Random::new(seed, 0);
    let (postgres, client) = streaming_source().await;
    let data = tempfile::tempdir().unwrap();
    let arguments = ["--task", "kills", "--partitions", "4", "--partition-by", "table"];
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &arguments).await;
    let ids = Arc::new(AtomicI64::new(1));
    let load = Load::start(&postgres, seed, &ids, 3_000);
    let deadline = Instant::now() + Duration::from_secs(240);
    for round in 0..rounds {
        settle(Duration::from_millis(random.below(400))).await;
        if round % 3 == 2 {
            let (first, postgres) = (ids.fetch_add(10_000, Relaxed), postgres.clone());
            let large = tokio::spawn(async move {
                let insert = format!(
                    "INSERT INTO ledger SELECT g, 0, 'large' FROM generate_series({first}, {}) g",
                    first + 9_999
                );
                postgres.client().await.batch_execute(&insert).await.unwrap();
            });
            settle(Duration::from_millis(random.below(300))).await;
            millrace.kill9();
            large.await.unwrap();
        } else {
            millrace.kill9();
        }
        // Sometimes it is killed again before it is ready.
        millrace.spawn_again();
        if random.below(3) > 0 {
            millrace.wait_ready().await;
        }
        assert!(Instant::now() < deadline, "too slow: round {round}");
    }
    load.stop().await;
    millrace.wait_ready().await;
    compare(&client, &read_all(&millrace, &client, "kills").await).await;
    no_gap(&millrace, "kills").await;
}

/// The source crashes and comes back under load; its walsender is killed in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_source_neither_loses_nor_repeats_a_change() {
    let seed = seed();
    let mut random = Random::new(seed, 0);
    // Commits must survive the source's crash, or the source itself would lose them.
    let mut postgres = Postgres::start(PostgresOptions::default().setting("fsync", "on")).await;
    make_tables(&postgres.client().await).await;
    postgres.client().await.batch_execute("TRUNCATE account").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "crashes"]).await;
    let ids = Arc::new(AtomicI64::new(1));
    for _ in 0..5 {
        let shared = Arc::new(postgres);
        let load = Load::start(&shared, seed + random.below(1000), &ids, 500);
        settle(Duration::from_millis(300)).await;
        let client = shared.client().await;
        client
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'",
            )
            .await
            .unwrap();
        settle(Duration::from_millis(random.below(700))).await;
        load.stop().await;
        drop(client);
        postgres = Arc::into_inner(shared).unwrap();
        postgres.restart_immediate().await;
    }
    let client = postgres.client().await;
    compare(&client, &read_all(&millrace, &client, "crashes").await).await;
    no_gap(&millrace, "crashes").await;
}

/// Outputs of one task, of different layouts, partitions and codecs, through many SIGKILLs: they hold the same changes,
/// and who asks in one request never sees one of them ahead of another (I1, I2).
#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_task_are_one_through_every_kill() {
    let seed = seed();
    let mut random = Random::new(seed, 0);
    let (postgres, client) = streaming_source().await;
    let data = tempfile::tempdir().unwrap();
    {
        let source = SourceConfig::parse(&postgres.unix_url()).unwrap().display();
        let outputs = r#"{},{"name":"each","layout":"table"},{"name":"wide","partitions":3,"codec":"zstd",
            "events":{"transaction":"topic","watermark":"topic","heartbeat":"topic"}}"#;
        let definition = format!(r#"{{"name":"one","source":"{source}","outputs":[{outputs}]}}"#);
        let store = Store::open(&DataDir::open(data.path()).unwrap()).unwrap();
        store.add_task("one", &definition, "created", "", 0).unwrap();
    }
    let mut millrace = Millrace::start(MillraceOptions::serve(data.path())).await;
    let ids = Arc::new(AtomicI64::new(1));
    let load = Load::start(&postgres, seed, &ids, 3_000);
    let observed = Arc::new(AtomicBool::new(false));
    let observer = tokio::task::spawn_blocking({
        let (address, stop) = (millrace.bootstrap(), observed.clone());
        move || observe(&address, &stop)
    });
    for _ in 0..20 {
        settle(Duration::from_millis(100 + random.below(500))).await;
        millrace.kill9();
        millrace.spawn_again();
        if random.below(3) > 0 {
            millrace.wait_ready().await;
        }
    }
    load.stop().await;
    millrace.wait_ready().await;
    let one = read_all(&millrace, &client, "one").await;
    compare(&client, &one).await;
    observed.store(true, Relaxed);
    let (views, moves) = observer.await.unwrap();
    println!("{views} views, {moves} of them further than the one before");
    assert!(moves > 5, "only {moves} of {views} views saw something new");

    let said = |records: &[Record]| {
        let mut said: Vec<_> = records
            .iter()
            .map(|record| {
                let event = record.value.as_ref();
                (
                    record.position(),
                    event.map(|event| format!("{} {} {}", event["op"], event["before"], event["after"])),
                )
            })
            .collect();
        said.sort();
        said
    };
    let one = said(&one);
    assert!(one == said(&read_topic(&millrace.bootstrap(), "wide").await), "output wide differs");
    let mut each = read_topic(&millrace.bootstrap(), "each.public.ledger").await;
    each.extend(read_topic(&millrace.bootstrap(), "each.public.account").await);
    assert!(one == said(&each), "output each differs");
    no_gap(&millrace, "one").await;
    compare_marks(&millrace, &one).await;
}

/// Marks around transactions tell of these events and no others, and watermarks only go forward.
async fn compare_marks(millrace: &Millrace, events: &[((u64, u64), Option<String>)]) {
    let mut counted = BTreeMap::<u64, u64>::new();
    for (position, _) in events.iter().filter(|(_, event)| event.is_some()) {
        *counted.entry(position.0).or_default() += 1;
    }
    let marks = read_topic(&millrace.bootstrap(), "wide.transaction").await;
    let mark = |record: &Record, status: &str| {
        let mark = record.value.as_ref().unwrap();
        assert_eq!(mark["status"], status);
        (record.position().0, mark["event_count"].as_u64())
    };
    let mut ended = BTreeMap::new();
    for pair in marks.chunks(2) {
        let [begin, end] = pair else { panic!("a mark without its other: {pair:?}") };
        let (lsn, count) = mark(end, "END");
        assert_eq!(mark(begin, "BEGIN"), (lsn, None));
        assert!(ended.insert(lsn, count.unwrap()).is_none(), "marked twice: {end:?}");
    }
    assert!(ended == counted, "the marks tell of other transactions");
    let said = read_topic(&millrace.bootstrap(), "wide.events").await;
    let watermarks = said.iter().filter_map(|record| record.value.as_ref()?["commit_lsn"].as_str());
    let watermarks: Vec<_> = watermarks.map(parse_lsn).collect();
    assert!(
        watermarks.len() > 2 && watermarks.is_sorted_by(|before, after| before < after),
        "{watermarks:?}"
    );
    assert!(watermarks.iter().all(|lsn| counted.contains_key(lsn)), "{watermarks:?}");
}

/// Asks for the high watermarks of all three outputs in one request, again and again: as they hold the same records, the
/// sums are equal. Gives how often it asked, and how often it saw something new.
fn observe(address: &str, stop: &AtomicBool) -> (u64, u64) {
    let topics = [("one", 1), ("wide", 3), ("each.public.ledger", 1), ("each.public.account", 1)];
    let (mut views, mut moves, mut last) = (0, 0, 0);
    while !stop.load(Relaxed) {
        // It is killed all the time.
        let Ok(mut stream) = TcpStream::connect(address) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nodelay(true).unwrap();
        while let (false, Ok(ends)) = (stop.load(Relaxed), high_watermarks(&mut stream, &topics)) {
            std::thread::sleep(Duration::from_millis(1));
            // A table's topic may not be there yet.
            let Some(ends) = ends else { continue };
            let [one, wide, ledger, account] = ends[..] else { panic!("{ends:?}") };
            assert!(one == wide && one == ledger + account, "outputs are apart: {ends:?}");
            views += 1;
            moves += u64::from(one > last);
            last = one;
        }
    }
    (views, moves)
}

/// The sum of each topic's high watermarks, from one ListOffsets request; `None` when one of them is not there yet.
fn high_watermarks(stream: &mut TcpStream, topics: &[(&'static str, i32)]) -> io::Result<Option<Vec<i64>>> {
    const VERSION: i16 = 5;
    let name = |name| TopicName(StrBytes::from_static_str(name));
    let asked = topics.iter().map(|(topic, partitions)| {
        let partition =
            |index| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(-1);
        ListOffsetsTopic::default()
            .with_name(name(topic))
            .with_partitions((0..*partitions).map(partition).collect())
    });
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(asked.collect());
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::ListOffsets as i16)
        .with_request_api_version(VERSION);
    let mut frame = BytesMut::from(&[0; 4][..]);
    header.encode(&mut frame, ApiKey::ListOffsets.request_header_version(VERSION)).unwrap();
    request.encode(&mut frame, VERSION).unwrap();
    let size = frame.len() as i32 - 4;
    frame[..4].copy_from_slice(&size.to_be_bytes());
    stream.write_all(&frame)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut body = BytesMut::zeroed(i32::from_be_bytes(size) as usize);
    stream.read_exact(&mut body)?;
    let mut body = body.freeze();
    ResponseHeader::decode(&mut body, ApiKey::ListOffsets.response_header_version(VERSION)).unwrap();
    let response = ListOffsetsResponse::decode(&mut body, VERSION).unwrap();
    let end = |topic: &ListOffsetsTopicResponse| -> Option<i64> {
        let ends = topic.partitions.iter().map(|found| (found.error_code == 0).then_some(found.offset));
        ends.sum()
    };
    Ok(response.topics.iter().map(end).collect())
}

async fn no_gap(millrace: &Millrace, task: &str) {
    let events = read_topic(&millrace.bootstrap(), &format!("{task}.events")).await;
    assert!(events.is_empty(), "no gap is reported where none is: {events:?}");
}

/// How often Millrace has begun to read a backlog by SQL.
fn catch_ups(millrace: &Millrace) -> usize {
    millrace.output().matches("reading the backlog by SQL").count()
}

/// A few MiB of WAL in transactions of all sizes, while nobody reads.
async fn write_backlog(client: &Client, ids: &AtomicI64) {
    for rows in [9_000, 1, 300, 30, 12_000, 2_000, 5, 15_000, 100, 5_000] {
        let first = ids.fetch_add(rows, Relaxed);
        let insert = format!(
            "INSERT INTO ledger SELECT g, 0, repeat('y', 40) FROM generate_series({first}, {}) g",
            first + rows - 1
        );
        client.batch_execute(&insert).await.unwrap();
    }
}

/// Backlogs that are read by SQL and not from a walsender, interrupted in every way.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_is_read_by_sql_loses_and_repeats_nothing_whatever_interrupts_it() {
    let seed = seed();
    let mut random = Random::new(seed, 0);
    let (postgres, client) = streaming_source().await;
    let data = tempfile::tempdir().unwrap();
    let arguments = ["--task", "behind", "--partitions", "3", "--experimental-catch-up-mb", "1"];
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &arguments).await;
    let ids = Arc::new(AtomicI64::new(1));
    let load = Load::start(&postgres, seed, &ids, 3_000);
    for round in 0..5 {
        millrace.kill9();
        write_backlog(&client, &ids).await;
        let before = catch_ups(&millrace);
        millrace.spawn_again();
        let deadline = Instant::now() + Duration::from_secs(30);
        while catch_ups(&millrace) == before {
            assert!(Instant::now() < deadline, "it does not read the backlog by SQL:\n{}", millrace.output());
            settle(Duration::from_millis(2)).await;
        }
        settle(Duration::from_millis(random.below(400))).await;
        match round % 4 {
            0 => {
                millrace.sigterm();
                assert!(millrace.wait().await.success());
                millrace.spawn_again();
            }
            1 => {
                let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE temporary";
                client.batch_execute(end).await.unwrap();
            }
            2 => millrace.wait_ready().await,
            _ => {}
        }
    }
    load.stop().await;
    millrace.wait_ready().await;
    compare(&client, &read_all(&millrace, &client, "behind").await).await;
    no_gap(&millrace, "behind").await;
    let slots =
        client.query("SELECT slot_name::text FROM pg_replication_slots WHERE temporary", &[]).await.unwrap();
    assert!(slots.is_empty(), "a copy of the slot is left: {slots:?}");
    assert!(millrace.output().contains("the backlog is read; the walsender goes on"));
    assert!(!millrace.output().contains("cannot be read by SQL"), "{}", millrace.output());
}

/// Where the server has no slot to spare, or no room for a piece, the walsender sends the backlog.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_cannot_be_read_by_sql_comes_from_the_walsender() {
    for (setting, value) in [("max_replication_slots", "1"), ("temp_file_limit", "1MB")] {
        let options = PostgresOptions::default().setting(setting, value).setting("work_mem", "64kB");
        let postgres = Arc::new(Postgres::start(options).await);
        let client = postgres.client().await;
        make_tables(&client).await;
        client.batch_execute("TRUNCATE account").await.unwrap();
        let data = tempfile::tempdir().unwrap();
        let arguments = ["--task", "short", "--experimental-catch-up-mb", "1"];
        let mut millrace = Millrace::up(data.path(), &postgres.url(), &arguments).await;
        millrace.kill9();
        write_backlog(&client, &AtomicI64::new(1)).await;
        millrace.spawn_again();
        millrace.wait_ready().await;
        compare(&client, &read_all(&millrace, &client, "short").await).await;
        no_gap(&millrace, "short").await;
        assert!(millrace.output().contains("cannot be read by SQL"), "{}", millrace.output());
    }
}
