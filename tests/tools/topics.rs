//! kafka-topics.

use crate::stage::{EVENTS, PARTITIONS, Stage, TOPIC};
use crate::tool::{Printed, TOPICS, refused, run};

#[test]
fn topics_are_listed_and_described() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let topics =
        |args: &[&str]| -> Printed { run(TOPICS, &[&["--bootstrap-server", &bootstrap], args].concat()) };

    assert_eq!(topics(&["--list"]).rows(), [[TOPIC], [EVENTS]]);
    let printed = topics(&["--describe", "--topic", TOPIC]);
    printed.assert_has(&format!("PartitionCount: {PARTITIONS}\tReplicationFactor: 1"));
    for partition in 0..PARTITIONS {
        printed.assert_has(&format!("Partition: {partition}\tLeader: 0\tReplicas: 0\tIsr: 0"));
    }
    for trouble in ["under-replicated", "unavailable", "under-min-isr", "at-min-isr"] {
        let printed = topics(&["--describe", &format!("--{trouble}-partitions")]);
        // One replica of each is as few as there may be.
        assert_eq!(printed.text.is_empty(), trouble != "at-min-isr", "{printed:#?}");
    }
}

#[test]
fn topics_belong_to_tasks_and_clients_are_told_so() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    for (what, message) in [
        (&["--create", "--topic", "new"][..], "topics belong to tasks and are not made by clients"),
        (&["--alter", "--topic", TOPIC, "--partitions", "9"], "is fixed for the life of a task's topic"),
        (&["--delete", "--topic", TOPIC], "the topic belongs to a task and stays with it"),
    ] {
        refused(TOPICS, &[&["--bootstrap-server", &bootstrap], what].concat()).assert_has(message);
    }
    let printed = run(TOPICS, &["--bootstrap-server", &bootstrap, "--list"]);
    assert_eq!(printed.rows(), [[TOPIC], [EVENTS]]);
}
