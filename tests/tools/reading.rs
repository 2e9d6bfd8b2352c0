//! Tools that read.

use serde_json::Value;

use crate::stage::{PARTITIONS, ROWS, Stage, TOPIC};
use crate::tool::{CONSOLE_CONSUMER, run};

#[test]
fn the_console_consumer_prints_every_change() {
    let stage = Stage::start();
    let all = ROWS.to_string();
    let printed = run(
        CONSOLE_CONSUMER,
        &[
            "--bootstrap-server",
            &stage.bootstrap(),
            "--topic",
            TOPIC,
            "--from-beginning",
            "--max-messages",
            &all,
            "--formatter-property",
            "print.partition=true",
            "--formatter-property",
            "print.offset=true",
        ],
    );
    let mut ids = Vec::new();
    let mut next = [0; PARTITIONS];
    for line in printed.text.lines().filter(|line| line.starts_with("Partition:")) {
        let columns: Vec<_> = line.split('\t').collect();
        let [partition, offset, value] = columns.as_slice() else { panic!("{line}") };
        let partition: usize = partition.strip_prefix("Partition:").unwrap().parse().unwrap();
        assert_eq!(*offset, format!("Offset:{}", next[partition]));
        next[partition] += 1;
        let change: Value = serde_json::from_str(value).unwrap();
        ids.push(change["after"]["id"].as_u64().unwrap());
    }
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..ROWS as u64), "{printed:#?}");
    printed.assert_has_line(&format!("Processed a total of {ROWS} messages"));
}

#[test]
fn the_consumers_for_performance_and_for_verification_read_everything() {
    let stage = Stage::start();
    let (bootstrap, all) = (stage.bootstrap(), ROWS.to_string());
    let printed = run(
        "org.apache.kafka.tools.ConsumerPerformance",
        &["--bootstrap-server", &bootstrap, "--topic", TOPIC, "--num-records", &all, "--timeout", "60000"],
    );
    // start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, …
    let figures: Vec<_> = printed.text.lines().last().unwrap().split(", ").collect();
    assert_eq!(figures[4], all, "{printed:#?}");

    let printed = run(
        "org.apache.kafka.tools.VerifiableConsumer",
        &[
            "--bootstrap-server",
            &bootstrap,
            "--topic",
            TOPIC,
            "--group-id",
            "verifiable",
            "--max-messages",
            &all,
            "--reset-policy",
            "earliest",
        ],
    );
    let said: Vec<Value> = printed.text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let named = |name: &'static str| said.iter().filter(move |event| event["name"] == name);
    let consumed: u64 = named("records_consumed").map(|event| event["count"].as_u64().unwrap()).sum();
    assert_eq!(consumed, ROWS as u64, "{printed:#?}");
    assert!(named("offsets_committed").all(|event| event["success"] == true));
    assert!(named("offsets_committed").count() > 0, "{printed:#?}");
}
