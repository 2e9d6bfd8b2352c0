//! kafka-get-offsets and kafka-delete-records.

use crate::stage::{PARTITIONS, ROWS, Stage, TOPIC};
use crate::tool::run;

#[test]
fn offsets_are_told_for_every_point_in_time() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let offsets = |time: &str| -> Vec<usize> {
        let args = ["--bootstrap-server", &bootstrap, "--topic", TOPIC, "--time", time];
        let printed = run("org.apache.kafka.tools.GetOffsetShell", &args);
        let lines = printed.text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let partitions = lines.enumerate().map(|(partition, columns)| {
            assert_eq!(columns[..2], [TOPIC, &partition.to_string()]);
            columns[2].parse().unwrap()
        });
        partitions.collect()
    };
    let ends = offsets("latest");
    assert_eq!((ends.len(), ends.iter().sum::<usize>()), (PARTITIONS, ROWS));
    assert_eq!(offsets("earliest"), [0; PARTITIONS]);
    assert_eq!(offsets("earliest-local"), [0; PARTITIONS]);
    assert_eq!(offsets("0"), [0; PARTITIONS]);
    // The first of those that have the largest time.
    let newest = offsets("max-timestamp");
    assert_eq!(newest.len(), PARTITIONS);
    assert!(newest.iter().zip(&ends).all(|(newest, end)| newest < end), "{newest:?} {ends:?}");
    // Nothing lies in a remote store, and nothing is younger than that.
    assert!(offsets("latest-tiered").is_empty());
    assert!(offsets("4102444800000").is_empty());
}

#[test]
fn records_that_are_deleted_are_gone() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let plan = tempfile::NamedTempFile::new().unwrap();
    let offsets = [(0, 2), (1, -1), (2, 1_000_000)];
    let partitions = offsets.map(|(partition, offset)| {
        format!(r#"{{"topic":"{TOPIC}","partition":{partition},"offset":{offset}}}"#)
    });
    std::fs::write(plan.path(), format!(r#"{{"version":1,"partitions":[{}]}}"#, partitions.join(",")))
        .unwrap();
    let plan = plan.path().to_str().unwrap();
    let args = ["--bootstrap-server", &bootstrap, "--offset-json-file", plan];
    let printed = run("org.apache.kafka.tools.DeleteRecordsCommand", &args);
    printed.assert_has_line("partition: shop-0\tlow_watermark: 2");
    printed.assert_has("partition: shop-1\tlow_watermark: ");
    printed.assert_has("partition: shop-2\terror: org.apache.kafka.common.errors.OffsetOutOfRangeException");

    let args = ["--bootstrap-server", &bootstrap, "--topic", TOPIC, "--time", "earliest"];
    let printed = run("org.apache.kafka.tools.GetOffsetShell", &args);
    printed.assert_has_line("shop:0:2");
    printed.assert_has_line("shop:2:0");
    assert!(!printed.text.contains("shop:1:0"), "{printed:#?}");
}
