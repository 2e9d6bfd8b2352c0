//! Our disk is full: ingest waits, what is durable stays served, the source is held up by nothing of ours.

use std::io::Write;
use std::time::{Duration, Instant};

use millrace_test_support::{Millrace, Postgres, PostgresOptions};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::block_in_place;
use tokio_postgres::Client;

use crate::stage::{SmallDisk, caught_up, gaps, inserted, says, until};

const SLOT_IS_FREE: &str =
    "SELECT FROM pg_replication_slots WHERE slot_name = 'millrace_shop' AND NOT active";

/// Rows that no codec makes small, `rows` of 10 kB in one transaction.
async fn insert(client: &Client, first: i64, rows: i64) {
    let sql = format!(
        "INSERT INTO t SELECT g, (SELECT string_agg(md5(g::text || n), '') FROM generate_series(1, 312) n)
         FROM generate_series({first}, {}) g",
        first + rows - 1
    );
    client.batch_execute(&sql).await.unwrap();
}

/// A task whose disk has been filled by what it captured, and the rows committed so far.
async fn filled(postgres: &Postgres, client: &Client, disk: &SmallDisk) -> (Millrace, i64) {
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, pad text)").await.unwrap();
    let millrace = Millrace::up(disk.path(), &postgres.url(), &["--task", "shop"]).await;
    insert(client, 1, 100).await;
    caught_up(&millrace, client).await;
    let mut rows = 100;
    while rows < 3_000 {
        insert(client, rows + 1, 100).await;
        rows += 100;
    }
    let reason = millrace.wait_state("retrying").await;
    says(&reason, &["no space left", disk.path().to_str().unwrap(), "free some", "resumes by itself"]);
    (millrace, rows)
}

/// Commits an offset of the topic's one partition, and waits for the answer.
fn commit(millrace: &Millrace, offset: i64) -> KafkaResult<()> {
    block_in_place(|| consumer(millrace).commit(&offsets(Offset::Offset(offset)), CommitMode::Sync))
}

/// The offset that the broker keeps.
fn committed(millrace: &Millrace) -> Offset {
    let known = block_in_place(|| {
        consumer(millrace).committed_offsets(offsets(Offset::Invalid), Duration::from_secs(20))
    });
    known.unwrap().elements()[0].offset()
}

fn consumer(millrace: &Millrace) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", millrace.bootstrap()).set("group.id", "readers");
    config.create().unwrap()
}

fn offsets(offset: Offset) -> TopicPartitionList {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("shop", 0, offset).unwrap();
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_ingest_serves_what_is_durable_and_goes_on_when_there_is_space() {
    let Some(disk) = SmallDisk::mount("size=16m") else { return };
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    let (mut millrace, rows) = filled(&postgres, &client, &disk).await;
    until("the slot is released", Duration::from_secs(30), async || {
        !client.query(SLOT_IS_FREE, &[]).await.unwrap().is_empty()
    })
    .await;
    let durable = inserted(&millrace, "shop").await;
    assert!(durable.len() >= 100 && durable.len() < rows as usize, "{} rows", durable.len());
    assert!(durable.iter().copied().eq(1..=durable.len() as i64));

    // Whether there is room for an offset or not: a commit that was answered is kept (I6).
    let answered = commit(&millrace, 42);

    // An end and a restart on the full disk serve the same.
    millrace.sigterm();
    assert!(millrace.wait().await.success(), "{}", millrace.output());
    millrace.spawn_again();
    millrace.wait_state("retrying").await;
    millrace.kill9();
    millrace.spawn_again();
    millrace.wait_state("retrying").await;
    assert_eq!(inserted(&millrace, "shop").await, durable);

    if answered.is_ok() {
        assert_eq!(committed(&millrace), Offset::Offset(42));
    }

    disk.remount("size=256m");
    millrace.wait_state("running").await;
    commit(&millrace, 43).unwrap();
    assert_eq!(committed(&millrace), Offset::Offset(43));
    insert(&client, rows + 1, 1).await;
    caught_up(&millrace, &client).await;
    assert!(inserted(&millrace, "shop").await.into_iter().eq(1..=rows + 1), "nothing is lost or repeated");
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_delays_no_shutdown_of_the_source() {
    let Some(disk) = SmallDisk::mount("size=16m") else { return };
    let mut postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    let (millrace, rows) = filled(&postgres, &client, &disk).await;
    drop(client);
    let stop = async |postgres: &mut Postgres| {
        let started = Instant::now();
        postgres.stop_fast().await;
        let took = started.elapsed();
        assert!(took < Duration::from_secs(8), "the shutdown took {took:?}");
    };
    stop(&mut postgres).await;
    disk.remount("size=64m");
    postgres.start_again().await;
    millrace.wait_state("running").await;
    caught_up(&millrace, &postgres.client().await).await;

    // Idle and connected, with no room for the position that the source's last question asks for.
    let filler = disk.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    stop(&mut postgres).await;
    drop(file);
    std::fs::remove_file(filler).unwrap();
    postgres.start_again().await;
    let client = postgres.client().await;
    millrace.wait_state("running").await;
    insert(&client, rows + 1, 1).await;
    caught_up(&millrace, &client).await;
    assert!(inserted(&millrace, "shop").await.into_iter().eq(1..=rows + 1), "nothing is lost or repeated");
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);
}
