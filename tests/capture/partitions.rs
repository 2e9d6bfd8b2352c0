//! How records are spread over partitions, and found by time.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace::format::partitioner::{murmur2, to_positive};
use millrace_test_support::{Millrace, PostgresOptions, read_topic};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::stage::{Stage, TASK};

#[tokio::test(flavor = "multi_thread")]
async fn records_go_where_the_java_client_would_put_them_or_stay_with_their_table() {
    let setup = "CREATE TABLE orders (id int PRIMARY KEY, n int);
         CREATE TABLE lines (o int, l int, n int, PRIMARY KEY (o, l));
         CREATE TABLE keyless (n int);
         CREATE SCHEMA other; CREATE TABLE other.orders (id int PRIMARY KEY, n int);";
    let args = ["--partitions", "4", "--partition-by", "key"];
    let stage = Stage::start(PostgresOptions::default(), setup, &args).await;
    let data = tempfile::tempdir().unwrap();
    let by_table = Millrace::up(
        data.path(),
        &stage.postgres.url(),
        &["--task", "tables", "--partitions", "4", "--partition-by", "table"],
    )
    .await;
    stage
        .run_each(&[
            "INSERT INTO orders SELECT g, 0 FROM generate_series(1, 50) g",
            "INSERT INTO lines SELECT g, g + 1, 0 FROM generate_series(1, 50) g",
            "INSERT INTO keyless SELECT g FROM generate_series(1, 20) g",
            "INSERT INTO other.orders SELECT g, 0 FROM generate_series(1, 20) g",
            "UPDATE orders SET n = n + 1",
            "UPDATE orders SET n = n + 1 WHERE id % 2 = 0",
            "UPDATE orders SET id = id + 1000 WHERE id <= 5",
            "DELETE FROM orders WHERE id > 40",
        ])
        .await;
    let records = stage.records().await;
    let mut used = [0; 4];
    let mut keyless = Vec::new();
    let mut by_key: BTreeMap<&[u8], Vec<(u64, u64)>> = BTreeMap::new();
    for record in &records {
        used[record.partition as usize] += 1;
        match &record.raw_key {
            Some(key) => {
                assert_eq!(record.partition as u32, to_positive(murmur2(key)) % 4, "{record:?}");
                by_key.entry(key).or_default().push(record.position());
            }
            None => keyless.push(record.partition),
        }
    }
    assert!(used.iter().all(|count| *count > 20), "{used:?}");
    assert!(keyless.len() == 20 && keyless.iter().all(|partition| *partition == keyless[0]), "{keyless:?}");
    assert!(by_key.values().all(|positions| positions.is_sorted()), "a key's changes are in order");

    let mark = stage.ask("SELECT pg_logical_emit_message(true, 'test.mark', '')::text").await;
    by_table.wait_durable(&mark).await;
    let records_by_table = read_topic(&by_table.bootstrap(), "tables").await;
    assert_eq!(records_by_table.len(), records.len());
    let mut partitions: BTreeMap<String, i32> = BTreeMap::new();
    for record in &records_by_table {
        let Some(event) = &record.value else { continue };
        let table = format!("{}.{}", event["source"]["schema"], event["source"]["table"]);
        let partition = *partitions.entry(table).or_insert(record.partition);
        assert_eq!(partition, record.partition, "a table stays in its partition");
    }
    assert!(partitions.values().collect::<std::collections::BTreeSet<_>>().len() > 1, "{partitions:?}");
}

/// A record's timestamp is the time of the commit, and a consumer that starts at a time starts at the right record.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_finds_the_first_record_committed_then() {
    let options = PostgresOptions::default().setting("track_commit_timestamp", "on");
    let stage = Stage::start(options, "CREATE TABLE ticks (id int PRIMARY KEY)", &[]).await;
    for id in 0..30 {
        stage.run(&format!("INSERT INTO ticks VALUES ({id})")).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    // Begun early, committed late: the time of the commit counts.
    let late = stage.postgres.client().await;
    late.batch_execute("BEGIN; INSERT INTO ticks VALUES (100)").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stage.run("INSERT INTO ticks VALUES (30)").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    late.batch_execute("COMMIT").await.unwrap();

    let records = stage.records().await;
    let query =
        "SELECT id, floor(extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000)::bigint FROM ticks";
    let committed: BTreeMap<i32, i64> =
        stage.client.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(records.len(), 32);
    for record in &records {
        let event = record.value.as_ref().unwrap();
        let id = event["after"]["id"].as_i64().unwrap() as i32;
        assert_eq!(record.timestamp, committed[&id], "row {id}");
        assert_eq!(event["source"]["ts_ms"].as_i64(), Some(record.timestamp));
    }
    assert_eq!(records[31].value.as_ref().unwrap()["after"]["id"], 100);

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stage.millrace.bootstrap())
        .set("group.id", "by-time")
        .create()
        .unwrap();
    let find = |time: i64| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(TASK, 0, Offset::Offset(time)).unwrap();
        let found = consumer.offsets_for_times(asked, Duration::from_secs(20)).unwrap();
        found.elements()[0].offset()
    };
    tokio::task::block_in_place(|| {
        for time in
            records.iter().flat_map(|record| [record.timestamp - 1, record.timestamp, record.timestamp + 1])
        {
            let expected = records.iter().find(|record| record.timestamp >= time);
            let expected = expected.map_or(Offset::End, |record| Offset::Offset(record.offset));
            assert_eq!(find(time), expected, "at {time}");
        }
        assert_eq!(find(0), Offset::Offset(0));
    });
}
