//! kafka-topics.

use crate::stage::{EVENTS, PARTITIONS, Stage, TOPIC};
use crate::tool::{Printed, TOPICS, run};

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
