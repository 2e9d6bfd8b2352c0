//! The second judge: the same requests to Apache Kafka's own broker and to Millrace in its test mode, seeded with the same
//! records, and their answers compared field by field: `make test-all`.
//!
//! [`pair`] asks both and gives what they must call differently (members, topic ids, ports) one name; [`fields`] takes
//! answers apart; [`verdict`] keeps what differs and [`differences`] has the few differences that are meant. The other
//! modules are the questions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is the test")]

mod admin;
mod cluster;
mod commits;
mod consumer_groups;
mod differences;
mod fields;
mod groups;
mod offsets;
mod pair;
mod producing;
mod reading;
mod records;
mod seed;
mod verdict;

use std::collections::BTreeSet;

use millrace_test_support::{ApacheKafka, CLUSTER_ID, Millrace, MillraceOptions};
use pair::{Both, Court};

/// As short as both may have it: tests have no time.
const KAFKA: &[(&str, &str)] = &[
    ("num.partitions", "4"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.consumer.min.assignment.interval.ms", "0"),
    ("group.consumer.assignment.interval.ms", "0"),
    // The records are of 1970.
    ("log.retention.ms", "-1"),
];

#[tokio::test]
async fn millrace_answers_as_apache_kafka_does() {
    let kafka = ApacheKafka::start(KAFKA).await;
    let data = tempfile::tempdir().unwrap();
    let options = MillraceOptions::serve(data.path()).args(&[
        "--kafka-unsafe-produce",
        "--group-initial-delay-ms",
        "0",
    ]);
    let ours = Millrace::start(options).await;
    let court = Court::open(Both { kafka: kafka.port(), ours: ours.kafka_port() }).await;
    court.learn("cluster", &Both { kafka: CLUSTER_ID.to_owned(), ours: seed::cluster_id(&court).await });
    seed::fill(&court).await;
    cluster::judge(&court).await;
    tokio::join!(
        reading::judge(&court),
        offsets::judge(&court),
        groups::judge(&court),
        commits::judge(&court),
        consumer_groups::judge(&court),
        producing::judge(&court),
        admin::judge(&court),
    );
    let served: BTreeSet<_> = court.served().collect();
    if let Some(sentence) = court.verdict.sentence(&served) {
        panic!("{sentence}");
    }
}
