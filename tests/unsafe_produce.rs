//! `kafka.unsafe_produce`, from the command line to what is on disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millrace_test_support::{Millrace, MillraceOptions, read_raw_topic};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

const PARTITIONS: usize = 4;

fn options(data: &Path) -> MillraceOptions {
    MillraceOptions::serve(data).args(&["--kafka-unsafe-produce"])
}

fn producer(millrace: &Millrace) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", millrace.bootstrap());
    // Longer than the broker is away.
    config.set("message.timeout.ms", "60000").set("enable.idempotence", "true").set("linger.ms", "1");
    config.create().unwrap()
}

/// What was acknowledged with `acks=-1`, by partition: offset and value of each record.
type Acknowledged = BTreeMap<(i32, i64), String>;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_sigkill_where_it_was_said_to_be() {
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::start(options(data.path())).await;
    let mut acknowledged = Acknowledged::new();
    for round in 0..3 {
        let producer = producer(&millrace);
        let (sent, mut answers) = tokio::sync::mpsc::channel(500);
        let writing = tokio::spawn(async move {
            for n in 0.. {
                let value = format!("{round}/{n}");
                let record =
                    FutureRecord::<(), _>::to("killed").partition((n % PARTITIONS) as i32).payload(&value);
                let Ok(delivery) = producer.send_result(record) else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                if sent.send((value.clone(), delivery)).await.is_err() {
                    break;
                }
            }
        });
        // Killed in the middle of it: thousands are on their way.
        for n in 0..5_000 {
            let (value, delivery) = answers.recv().await.unwrap();
            let delivery = delivery.await.unwrap().unwrap();
            acknowledged.insert((delivery.partition, delivery.offset), value);
            if n == 4_999 {
                millrace.kill9();
            }
        }
        drop(answers);
        writing.await.unwrap();
        millrace.spawn_again();
        millrace.wait_ready().await;
    }
    assert_eq!(acknowledged.len(), 15_000, "an offset was given twice");
    let records = read_raw_topic(&millrace.bootstrap(), "killed").await;
    let there: BTreeMap<(i32, i64), String> = records
        .into_iter()
        .map(|record| ((record.partition, record.offset), String::from_utf8(record.value.unwrap()).unwrap()))
        .collect();
    for (place, value) in &acknowledged {
        assert_eq!(there.get(place), Some(value), "{place:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_warns_at_start_and_needs_no_task() {
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::start(options(data.path())).await;
    assert!(millrace.output().contains("kafka.unsafe_produce is on"));
    assert!(!millrace.output().contains("there is no task"));
    millrace.sigterm();
    assert!(millrace.wait().await.success());
}
