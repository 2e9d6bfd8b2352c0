//! The reader of existing rows by itself: what it tells is what a server has, whatever happens to it and to the tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use millrace::change::{TableShape, Value};
use millrace::postgres::objects::Objects;
use millrace::postgres::server::Server;
use millrace::postgres::snapshot::{
    CopiedRows, CopyRows, Part, Read, ReadFrom, ReadOptions, Reader, Visibility, Wanted,
};
use millrace::postgres::source::SourceConfig;
use millrace::postgres::{binary, catalog, connect, publication};
use millrace_test_support::{Postgres, PostgresOptions};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::oversized::{TOO_LARGE_FOR_TEXT as LARGE, TURN};
use crate::stage::{TASK, run};
use crate::types::{CASES, MADE_TYPES};

/// A row's values as text, a large one as it is; none for null.
pub type Values = Vec<Option<Vec<u8>>>;

pub fn values(rows: &mut CopiedRows) -> Vec<Values> {
    let mut all = Vec::new();
    while let Some(row) = rows.next_row().unwrap() {
        let value = |value| match value {
            Value::Null => None,
            Value::Text(text) => Some(text.to_vec()),
            Value::Binary(large) if large.len() >= LARGE => Some(large.to_vec()),
            Value::Binary(bytes) => {
                let mut text = Vec::new();
                binary::write_text(&mut text, Type::BYTEA.oid(), bytes).unwrap();
                Some(text)
            }
            Value::Unsent => panic!("a value is missing"),
        };
        all.push(row.values().map(value).collect());
    }
    all
}

/// A table as it has been told.
pub struct Told {
    pub epoch: u32,
    pub shape: Arc<TableShape>,
    pub shared: Option<Visibility>,
    pub stamp: String,
    /// Rows with what the snapshot that they were read under sees.
    pub rows: Vec<(Values, Visibility)>,
    through: Option<Vec<String>>,
    /// What holds behind the last row.
    tail: Option<Visibility>,
    pub ended: bool,
    pub refused: Option<String>,
}

/// A server, and a reader on it.
pub struct Reading {
    pub postgres: Postgres,
    pub client: Client,
    pub tables: BTreeMap<u32, Told>,
    pub gone: Vec<u32>,
    chunks: u64,
}

impl Reading {
    pub async fn start(setup: &str) -> Reading {
        Reading::start_on(PostgresOptions::default(), setup).await
    }

    pub async fn start_on(options: PostgresOptions, setup: &str) -> Reading {
        let postgres = Postgres::start(options).await;
        let client = postgres.client().await;
        run(&client, setup).await;
        let control = connect::connect(&SourceConfig::parse(&postgres.url()).unwrap()).await.unwrap();
        let tables = catalog::tracked_tables(&control, &Objects::default()).await.unwrap();
        publication::ensure(&control, TASK, &Default::default(), &tables).await.unwrap();
        Reading { postgres, client, tables: BTreeMap::new(), gone: Vec::new(), chunks: 0 }
    }

    pub async fn oid(&self, table: &str) -> u32 {
        self.client.query_one("SELECT $1::text::regclass::oid", &[&table]).await.unwrap().get(0)
    }

    pub async fn wanted(&self, table: &str, epoch: u32, from: ReadFrom) -> Wanted {
        Wanted { oid: self.oid(table).await, epoch, from }
    }

    pub async fn spawn(
        &self,
        url: &str,
        options: ReadOptions,
        wanted: Vec<Wanted>,
    ) -> (Reader, mpsc::Receiver<Read>) {
        let (out, reads) = mpsc::channel(1);
        let source = SourceConfig::parse(url).unwrap();
        let server = Server::of(&self.client).await.unwrap();
        (Reader::spawn(source, server, TASK, options, wanted, out), reads)
    }

    /// Reads these tables to their ends, and does something after each chunk.
    pub async fn read(
        &mut self,
        options: ReadOptions,
        wanted: Vec<Wanted>,
        then: impl AsyncFnMut(&Client, u64),
    ) {
        self.read_as(&self.postgres.url(), options, wanted, then).await;
    }

    /// The same, by this URL.
    pub async fn read_as(
        &mut self,
        url: &str,
        options: ReadOptions,
        wanted: Vec<Wanted>,
        mut then: impl AsyncFnMut(&Client, u64),
    ) {
        let (reader, mut reads) = self.spawn(url, options, wanted).await;
        while let Some(read) = reads.recv().await {
            if self.take(read) {
                then(&self.client, self.chunks).await;
            }
        }
        let totals = reader.progress().totals();
        assert_eq!((totals.tables_done, totals.fraction), (totals.tables, 1.0));
        reader.stop().await;
    }

    /// Whether it was a chunk.
    fn take(&mut self, read: Read) -> bool {
        match read {
            Read::Begin { oid, epoch, shape, visibility, stamp } => {
                let known = self.tables.remove(&oid);
                let (rows, through) = match known {
                    Some(known) if known.epoch == epoch && visibility.is_none() => {
                        (known.rows, known.through)
                    }
                    known => {
                        assert!(known.is_none_or(|known| known.epoch < epoch));
                        (Vec::new(), None)
                    }
                };
                let told = Told {
                    epoch,
                    shape,
                    tail: visibility.clone(),
                    shared: visibility,
                    stamp,
                    rows,
                    through,
                    ended: false,
                    refused: None,
                };
                self.tables.insert(oid, told);
                false
            }
            Read::Rows { oid, epoch, part, mut rows, count, .. } => {
                let table = self.tables.get_mut(&oid).unwrap();
                assert!(table.epoch == epoch && !table.ended);
                let visibility = match part {
                    Part::Shared => table.shared.clone().unwrap(),
                    Part::Keys { through, visibility } => {
                        assert!(table.shared.is_none());
                        table.through = through;
                        table.tail = Some(visibility.clone());
                        visibility
                    }
                };
                let rows = values(&mut rows);
                assert_eq!(rows.len() as u64, count);
                table.rows.extend(rows.into_iter().map(|row| (row, visibility.clone())));
                self.chunks += 1;
                true
            }
            Read::End { oid, epoch } => {
                let table = self.tables.get_mut(&oid).unwrap();
                assert!(table.epoch == epoch && !table.ended);
                table.ended = true;
                false
            }
            Read::Refused { oid, reason } => {
                self.tables.get_mut(&oid).unwrap().refused = Some(reason);
                false
            }
            Read::Gone { oid } => {
                self.gone.push(oid);
                false
            }
            Read::Elsewhere(error) => panic!("{error}"),
        }
    }

    pub async fn told(&self, table: &str) -> &Told {
        &self.tables[&self.oid(table).await]
    }

    /// Compares what was told of a table with what the server has.
    pub async fn expect_whole(&self, table: &str) {
        let told = self.told(table).await;
        assert!(told.ended, "{table}");
        self.expect_rows(table, told.rows.iter().map(|(row, _)| row.clone()).collect()).await;
    }

    /// Compares a table's rows, or their first columns, with what the server has.
    async fn expect_rows(&self, table: &str, mut read: Vec<Values>) {
        let all = self.told(table).await.shape.columns.len();
        let count = read.first().map_or(all, Vec::len);
        let columns = self.told(table).await.shape.columns.iter().take(count);
        let columns: Vec<_> = columns.map(|column| format!("\"{}\"", column.name)).collect();
        let copy = format!("COPY (SELECT {} FROM ONLY {table}) TO STDOUT", columns.join(", "));
        let stream = self.client.copy_out(&copy).await.unwrap();
        let lines: Vec<_> = stream.map_ok(|line| line.to_vec()).try_collect().await.unwrap();
        let mut there = values(&mut CopiedRows::Text(CopyRows::new(lines.concat(), count)));
        there.sort();
        read.sort();
        assert_eq!(read.len(), there.len(), "{table}");
        assert!(read == there, "{table}");
    }
}

pub fn slow() -> ReadOptions {
    ReadOptions { bytes_per_second: Some(800_000), ..ReadOptions::default() }
}

const BIG: &str = "INSERT INTO big SELECT i, repeat(i::text, 20) FROM generate_series(1, 12000) i;";

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_every_kind_of_table_is_read_once() {
    let tables = [
        "keyed",
        "keyless",
        "\"Odd \"\" name\"",
        "empty",
        "no_columns",
        "wide",
        "generated",
        "dropped",
        "part_1",
        "by_index",
    ];
    let mut reading = Reading::start(
        r#"CREATE TABLE keyed (b int, v text, a int, PRIMARY KEY (a, b));
           INSERT INTO keyed SELECT i % 7, E'a\tb\\\n\r' || i, i FROM generate_series(1, 50000) i;
           DELETE FROM keyed WHERE a BETWEEN 1000 AND 30000;
           CREATE TABLE keyless (v text, n numeric); INSERT INTO keyless SELECT NULL, i / 3.0 FROM generate_series(1, 3000) i;
           CREATE TABLE "Odd "" name" ("a b" int PRIMARY KEY, "C" text[]);
           INSERT INTO "Odd "" name" VALUES (1, '{a,NULL,"\\N"}'), (2, NULL);
           CREATE TABLE empty (id int PRIMARY KEY);
           CREATE TABLE no_columns (); INSERT INTO no_columns DEFAULT VALUES; INSERT INTO no_columns DEFAULT VALUES;
           CREATE TABLE wide (id int PRIMARY KEY, v text); ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
           INSERT INTO wide SELECT i, repeat(i::text, 4000000) FROM generate_series(10, 29) i;
           INSERT INTO wide SELECT 1, repeat('x', 70000000);
           CREATE TABLE generated (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED);
           INSERT INTO generated SELECT generate_series(1, 10);
           CREATE TABLE dropped (id int PRIMARY KEY, gone int, v text); INSERT INTO dropped VALUES (1, 2, 'x');
           ALTER TABLE dropped DROP COLUMN gone;
           CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
           CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); INSERT INTO parts VALUES (5);
           CREATE TABLE by_index (a text NOT NULL, b int); CREATE UNIQUE INDEX by_i ON by_index (a);
           ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_i; INSERT INTO by_index VALUES ('x', 1);"#,
    )
    .await;
    for from in [ReadFrom::Start, ReadFrom::FirstKey] {
        let mut wanted = vec![reading.wanted("parts", 1, from.clone()).await];
        for table in tables {
            wanted.push(reading.wanted(table, 1, from.clone()).await);
        }
        wanted.push(Wanted { oid: 1, epoch: 1, from: from.clone() });
        reading.tables.clear();
        reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
        assert_eq!(std::mem::take(&mut reading.gone), [1, reading.oid("parts").await]);
        for table in tables {
            reading.expect_whole(table).await;
            let told = reading.told(table).await;
            let has_key = !["keyless", "no_columns"].contains(&table);
            assert_eq!(told.shared.is_none(), from == ReadFrom::FirstKey && has_key, "{table}");
            assert_eq!(
                told.shape.key.len(),
                if table == "keyed" { 2 } else { usize::from(has_key) },
                "{table}"
            );
        }
        let has_generated = reading.told("generated").await.shape.columns.len() == 2;
        assert_eq!(has_generated, reading.postgres.major() >= 18);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_large_for_text_is_read_in_binary_form_and_one_that_goes_in_neither_is_named() {
    let _turn = TURN.lock().await;
    let (mut columns, mut values) = (String::new(), String::new());
    for (number, case) in CASES.iter().enumerate() {
        columns += &format!("v{number} {}, ", case.type_name);
        values += &format!("({})::{}, ", case.values[0], case.type_name);
    }
    // Its key is one by whose text the order would be another, and has the name of what text is made with.
    let setup = format!(
        "{MADE_TYPES} {} CREATE TABLE big (\"case\" int PRIMARY KEY, {columns} content bytea, more bytea);
         INSERT INTO big (\"case\") VALUES (11);
         INSERT INTO big SELECT 10, {values} convert_to(repeat('x', {LARGE}), 'UTF8');
         INSERT INTO big SELECT 9, {values} '\\x00ff'; ANALYZE big;",
        crate::quick_compression!()
    );
    let mut reading = Reading::start(&setup).await;
    let wanted = vec![reading.wanted("big", 1, ReadFrom::FirstKey).await];
    reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
    let told = reading.tables.values_mut().next().unwrap();
    assert!(told.ended, "{:?}", told.refused);
    let mut rows: Vec<Values> = told.rows.drain(..).map(|(row, _)| row).collect();
    let keys: Vec<_> = rows.iter().map(|row| row[0].as_deref().unwrap()).collect();
    assert_eq!(keys, [&b"9"[..], b"10", b"11"]);
    let contents: Vec<_> = rows.iter_mut().map(|row| row.split_off(row.len() - 2)[0].take()).collect();
    let [Some(small), Some(large), None] = &contents[..] else { panic!("{} contents", contents.len()) };
    assert_eq!(small, b"\\x00ff");
    assert!(*large == vec![b'x'; LARGE]);
    reading.expect_rows("big", rows).await;

    run(&reading.client, "UPDATE big SET more = content WHERE \"case\" = 10").await;
    reading.tables.clear();
    let wanted = vec![reading.wanted("big", 1, ReadFrom::Start).await];
    reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
    let reason = reading.told("big").await.refused.as_ref().unwrap();
    for part in
        ["\"public\".\"big\": the row at ctid (", "neither", "in column \"", "task snapshot t public.big"]
    {
        assert!(reason.contains(part), "{part} is missing: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_that_a_snapshot_sees_are_exactly_those_that_are_read_under_it() {
    let mut reading = Reading::start(
        "CREATE TABLE written (id bigserial PRIMARY KEY, xid xid8 DEFAULT pg_current_xact_id(), pad text DEFAULT repeat('x', 500));
         INSERT INTO written SELECT FROM generate_series(1, 3000);",
    )
    .await;
    let mut writers = Vec::new();
    for number in 0..4 {
        let client = reading.postgres.client().await;
        writers.push(tokio::spawn(async move {
            for turn in 0.. {
                let end = if turn % 5 == 0 { "ROLLBACK" } else { "COMMIT" };
                let sql = format!(
                    "BEGIN; INSERT INTO written DEFAULT VALUES; SELECT pg_sleep({}); \
                     SAVEPOINT s; INSERT INTO written DEFAULT VALUES; ROLLBACK TO s; \
                     INSERT INTO written SELECT FROM generate_series(1, 3); {end}",
                    0.003 * f64::from(number)
                );
                client.batch_execute(&sql).await.unwrap();
            }
        }));
    }
    let slow = ReadOptions { bytes_per_second: Some(600_000), ..ReadOptions::default() };
    for from in [ReadFrom::Start, ReadFrom::FirstKey] {
        reading.tables.clear();
        let wanted = vec![reading.wanted("written", 1, from.clone()).await];
        reading.read(slow.clone(), wanted, async |_, _| {}).await;
        let there = reading.client.query("SELECT id, xid::text FROM written", &[]).await.unwrap();
        let xids: BTreeMap<i64, u64> =
            there.iter().map(|row| (row.get(0), row.get::<_, String>(1).parse().unwrap())).collect();
        let told = reading.told("written").await;
        let id = |row: &Values| -> i64 { str::from_utf8(row[0].as_ref().unwrap()).unwrap().parse().unwrap() };
        let read: BTreeMap<i64, &Visibility> = told.rows.iter().map(|(row, sees)| (id(row), sees)).collect();
        assert_eq!(read.len(), told.rows.len(), "no row twice");
        assert!(read.iter().all(|(id, visibility)| visibility.sees(xids[id] as u32)));
        let (mut unseen, mut bounds) = (0, read.iter().peekable());
        for (id, xid) in &xids {
            // A row that was not read lies in the chunk of the next one that was, or in the last.
            while bounds.peek().is_some_and(|(read, _)| *read < id) {
                bounds.next();
            }
            let chunk = bounds.peek().map_or(told.tail.as_ref().unwrap(), |(_, sees)| **sees);
            if !read.contains_key(id) {
                assert!(!chunk.sees(*xid as u32), "row {id} of {xid} is seen by {chunk:?}");
                unseen += 1;
            }
        }
        assert!(unseen > 0, "somebody wrote meanwhile");
    }
    for writer in writers {
        writer.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_behind_its_last_key_and_begins_anew_where_it_cannot() {
    let setup = format!(
        "CREATE TABLE big (id int PRIMARY KEY, v text); {BIG} CREATE TABLE keyless (v text);
         INSERT INTO keyless SELECT repeat(i::text, 20) FROM generate_series(1, 12000) i;"
    );
    let mut reading = Reading::start(&setup).await;
    let end_snapshot =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'
                        AND query LIKE 'SET idle_in_transaction%' AND pid <> pg_backend_pid()";
    // The shared snapshot is lost.
    let mut wanted = vec![reading.wanted("big", 1, ReadFrom::Start).await];
    wanted.push(reading.wanted("keyless", 1, ReadFrom::Start).await);
    let disturb = async |client: &Client, chunks: u64| {
        if chunks == 2 {
            run(client, end_snapshot).await;
        }
    };
    reading.read(slow(), wanted, disturb).await;
    let (big, keyless) = (reading.told("big").await, reading.told("keyless").await);
    assert_eq!((big.epoch, big.shared.is_none()), (2, true));
    assert_eq!((keyless.epoch, keyless.shared.is_some()), (2, true));
    reading.expect_whole("big").await;
    reading.expect_whole("keyless").await;

    // The reader stops, and another goes on.
    reading.tables.clear();
    let wanted = vec![reading.wanted("big", 3, ReadFrom::FirstKey).await];
    let (reader, mut reads) = reading.spawn(&reading.postgres.url(), slow(), wanted).await;
    let before = reading.chunks;
    while reading.chunks < before + 3 {
        let read = reads.recv().await.unwrap();
        reading.take(read);
    }
    reader.stop().await;
    // And the server restarts meanwhile.
    reading.postgres.restart_immediate().await;
    reading.client = reading.postgres.client().await;
    let told = reading.told("big").await;
    let from = ReadFrom::After { key: told.through.clone().unwrap(), stamp: told.stamp.clone() };
    let known = told.rows.len();
    let wanted = vec![reading.wanted("big", 3, from.clone()).await];
    reading.read(slow(), wanted, async |_, _| {}).await;
    let told = reading.told("big").await;
    assert!(told.epoch == 3 && known < told.rows.len());
    reading.expect_whole("big").await;

    // Another table has the name since.
    run(&reading.client, "ALTER TABLE big RENAME TO old; CREATE TABLE big (id int PRIMARY KEY, v text);")
        .await;
    let wanted = vec![reading.wanted("old", 3, from).await];
    reading.read(ReadOptions::default(), wanted, async |_, _| {}).await;
    assert_eq!(reading.told("old").await.epoch, 4);
    reading.expect_whole("old").await;

    // The snapshot becomes too old.
    let options = ReadOptions { max_age: Duration::from_millis(500), ..slow() };
    let mut wanted = vec![reading.wanted("old", 5, ReadFrom::Start).await];
    wanted.push(reading.wanted("keyless", 5, ReadFrom::Start).await);
    reading.read(options, wanted, async |_, _| {}).await;
    let (old, keyless) = (reading.told("old").await, reading.told("keyless").await);
    assert!(old.epoch > 5 && old.shared.is_none());
    reading.expect_whole("old").await;
    // It begins when the other is through, under a snapshot of its own, which lasts no longer.
    assert!(
        keyless.refused.as_ref().is_some_and(|reason| reason.contains("snapshot.max_age_minutes")),
        "{:?}",
        keyless.refused
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_changed_while_it_is_read_is_read_anew_and_nobody_waits_for_a_reader() {
    for (sql, epoch) in [
        ("TRUNCATE big; INSERT INTO big VALUES (1, 'new')", 2),
        ("ALTER TABLE big ALTER id TYPE bigint", 2),
        ("VACUUM FULL big", 2),
        ("ALTER TABLE big ADD COLUMN added int DEFAULT 7", 2),
        ("ALTER TABLE big RENAME TO renamed; ALTER TABLE other RENAME TO big", 2),
        ("ALTER TABLE big DROP CONSTRAINT big_pkey", 2),
        ("ALTER TABLE big SET (fillfactor = 50); UPDATE big SET v = 'u' WHERE id = 1; ANALYZE big", 1),
        ("DROP TABLE big", 0),
    ] {
        let setup = format!(
            "CREATE TABLE big (id int PRIMARY KEY, v text); {BIG} CREATE TABLE other (id int PRIMARY KEY, v text);"
        );
        let mut reading = Reading::start(&setup).await;
        let oid = reading.oid("big").await;
        let wanted = vec![reading.wanted("big", 1, ReadFrom::Start).await];
        let disturb = async |client: &Client, chunks: u64| {
            if chunks == 2 {
                for statement in sql.split("; ") {
                    let waited = std::time::Instant::now();
                    run(client, statement).await;
                    assert!(waited.elapsed() < Duration::from_secs(5), "{statement} waited for the reader");
                }
            }
        };
        reading.read(slow(), wanted, disturb).await;
        if epoch == 0 {
            assert_eq!(reading.gone, [oid]);
            continue;
        }
        assert_eq!(reading.tables[&oid].epoch, epoch, "{sql}");
        let name: String =
            reading.client.query_one("SELECT $1::oid::regclass::text", &[&oid]).await.unwrap().get(0);
        if epoch == 2 {
            reading.expect_whole(&name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_is_told_with_what_to_run_and_a_locked_table_is_waited_for() {
    let mut reading = Reading::start(
        "CREATE TABLE denied (id int PRIMARY KEY); CREATE TABLE secured (id int PRIMARY KEY); CREATE TABLE locked (id int);
         INSERT INTO denied VALUES (1); INSERT INTO secured VALUES (1); INSERT INTO locked VALUES (1);
         ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
         CREATE ROLE reader LOGIN PASSWORD 'secret'; GRANT SELECT ON secured, locked TO reader;
         CREATE TABLE forced (id int PRIMARY KEY); INSERT INTO forced VALUES (1);
         ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, OWNER TO reader;",
    )
    .await;
    let locker = reading.postgres.client().await;
    run(&locker, "BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE").await;
    let mut wanted = Vec::new();
    for table in ["denied", "secured", "forced", "locked"] {
        // As of one that was begun before: it is not waited for its writers.
        wanted.push(reading.wanted(table, 1, ReadFrom::FirstKey).await);
    }
    let url = reading.postgres.url_for("reader", "secret", "postgres");
    let (reader, mut reads) = reading.spawn(&url, ReadOptions::default(), wanted).await;
    let mut locker = Some(locker);
    while let Some(read) = reads.recv().await {
        reading.take(read);
        let refused = reading.tables.values().filter(|table| table.refused.is_some()).count();
        if refused == 3 && locker.is_some() {
            // Somebody who looks for what waits there and ends it does not end the reading.
            let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
                          WHERE usename = 'reader' AND wait_event_type = 'Lock'";
            while reading.client.query_one(cancel, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                sleep(Duration::from_millis(20)).await;
            }
            sleep(Duration::from_millis(100)).await;
            drop(locker.take());
        }
        if refused == 1 && locker.is_some() {
            assert!(reading.told("locked").await.rows.is_empty());
        }
    }
    reader.stop().await;
    let refused = reading.told("denied").await.refused.clone().unwrap();
    assert!(refused.contains("GRANT SELECT ON \"public\".\"denied\" TO \"reader\";"), "{refused}");
    // Its owner, too, where it asks for that.
    for table in ["secured", "forced"] {
        let told = reading.told(table).await;
        let refused = told.refused.as_ref().unwrap();
        assert!(told.rows.is_empty() && refused.contains("ALTER ROLE \"reader\" BYPASSRLS;"), "{refused}");
    }
    reading.expect_whole("locked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_rows_are_all_told_is_not_told_again_when_its_round_ends_early() {
    let mut reading = Reading::start(
        "CREATE TABLE told (id int); CREATE TABLE locked (id int);
         INSERT INTO told SELECT generate_series(1, 100); INSERT INTO locked VALUES (1);",
    )
    .await;
    let locker = reading.postgres.client().await;
    run(&locker, "BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE").await;
    let mut wanted = Vec::new();
    for table in ["told", "locked"] {
        wanted.push(reading.wanted(table, 1, ReadFrom::FirstKey).await);
    }
    let (reader, mut reads) = reading.spawn(&reading.postgres.url(), ReadOptions::default(), wanted).await;
    for _ in 0..2 {
        let begin = reads.recv().await.unwrap();
        assert!(!reading.take(begin));
    }
    // Its rows have the channel's only place: who tells its end waits.
    while reader.progress().tables().values().all(|table| table.fraction < 1.0) {
        sleep(Duration::from_millis(20)).await;
    }
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE query LIKE '%pg_relation_filenode%' AND pid <> pg_backend_pid()";
    assert_eq!(reading.client.query_one(end, &[]).await.unwrap().get::<_, i64>(0), 1);
    // The other worker gets the lock, and cannot see whether the table is as it was.
    drop(locker);
    sleep(Duration::from_secs(1)).await;
    while let Some(read) = reads.recv().await {
        reading.take(read);
    }
    reader.stop().await;
    assert_eq!((reading.told("told").await.epoch, reading.told("locked").await.epoch), (1, 2));
    for table in ["told", "locked"] {
        reading.expect_whole(table).await;
    }
}

/// A commit that nobody waits for, and a rollback, are seen before they are in the WAL on disk. Were they lost after their
/// effects have been told, others would be given their numbers, and be taken for what the snapshot has seen.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_been_told_is_not_lost_when_the_server_crashes() {
    for from in [ReadFrom::Start, ReadFrom::FirstKey] {
        let options = PostgresOptions::default().setting("wal_writer_delay", "10s");
        let setup = "CREATE TABLE written (id int PRIMARY KEY); INSERT INTO written VALUES (1);
                     ALTER ROLE postgres SET synchronous_commit = off;";
        let mut reading = Reading::start_on(options, setup).await;
        let client = reading.postgres.client().await;
        // The writer of the WAL has rested, and wakes for the first.
        run(&client, "INSERT INTO written VALUES (2)").await;
        sleep(Duration::from_millis(500)).await;
        run(&client, "INSERT INTO written VALUES (3)").await;
        run(&client, "BEGIN; INSERT INTO written VALUES (4); ROLLBACK").await;

        let wanted = vec![reading.wanted("written", 1, from.clone()).await];
        let (reader, mut reads) =
            reading.spawn(&reading.postgres.url(), ReadOptions::default(), wanted).await;
        while let Some(read) = reads.recv().await {
            if reading.take(read) {
                reading.postgres.stop_immediate().await;
                break;
            }
        }
        reader.stop().await;
        reading.postgres.start_again().await;
        reading.client = reading.postgres.client().await;
        let told = reading.told("written").await;
        assert_eq!(told.rows.len(), 3);
        let there = "SELECT count(*), pg_current_xact_id()::text FROM written";
        let there = reading.client.query_one(there, &[]).await.unwrap();
        assert_eq!(there.get::<_, i64>(0), 3, "a row that was told is lost ({from:?})");
        let next: u64 = there.get::<_, String>(1).parse().unwrap();
        assert!(!told.rows[0].1.sees(next as u32), "{next} is seen before it is given ({from:?})");
    }
}

/// After a failover the address may lead to the new primary, or still to a standby, while the stream has the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_takes_nothing_from_another_server_than_the_streams() {
    let mut reading =
        Reading::start("CREATE TABLE written (id int PRIMARY KEY); INSERT INTO written VALUES (1)").await;
    let standby = reading.postgres.standby(&[]).await;
    reading.client = reading.postgres.client().await;
    for is_promoted in [false, true] {
        if is_promoted {
            standby.promote().await;
        }
        for from in [ReadFrom::Start, ReadFrom::FirstKey] {
            let wanted = vec![reading.wanted("written", 1, from).await];
            let (reader, mut reads) = reading.spawn(&standby.url(), ReadOptions::default(), wanted).await;
            match reads.recv().await.unwrap() {
                Read::Elsewhere(error) => assert!(error.to_string().contains("leads to another server")),
                other => panic!("{other:?}"),
            }
            assert!(reads.recv().await.is_none());
            reader.stop().await;
        }
    }
}
