//! What Redpanda Console asks of a broker, by the library that it is made with.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::FRANZ_GO;
use crate::client::{Commit, PATIENCE, go};
use crate::compatibility::Verdict;
use crate::group::{Group, NAME};
use crate::stage::{PARTITIONS, Stage, TOPIC};

#[test]
#[ignore = "make test-all"]
fn the_pages_of_redpanda_console_are_right_and_their_buttons_work() {
    let _verdict = Verdict::of(FRANZ_GO, "asks and does what Redpanda Console does");
    let stage = Stage::start();
    stage.write(20);
    let mut group = Group::new(&[FRANZ_GO], Commit::Sync);
    group.join(&stage);
    group.join(&stage);
    group.settle(&stage);

    // The last commit may be on its way.
    let deadline = Instant::now() + PATIENCE;
    let pages = loop {
        let pages = console("look", &stage);
        if pages["group"]["lag"] == 0 || Instant::now() > deadline {
            break pages;
        }
        std::thread::sleep(Duration::from_millis(200));
    };

    let cluster = &pages["cluster"];
    assert_eq!(cluster["brokers"], 1, "{cluster}");
    assert_eq!(
        cluster["controller"],
        cluster["settings"]["broker.id"].as_str().unwrap().parse::<i64>().unwrap()
    );
    assert_eq!(
        cluster["unlike 4.1"],
        Value::Null,
        "the newest versions of what is served are those of one release"
    );
    assert_eq!(
        (&cluster["moving"], &cluster["quotas"], &cluster["users"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(cluster["rules"], "SECURITY_DISABLED");

    let topic = &pages["topic"];
    let events: i64 = stage.truth().values().map(|n| n + 1).sum();
    assert_eq!(topic["partitions"], PARTITIONS, "{topic}");
    assert_eq!(topic["replicas"], 1, "{topic}");
    assert_eq!(topic["settings"]["cleanup.policy"], "delete", "{topic}");
    assert_eq!(sum(&topic["next"]) - sum(&topic["first"]), events, "{topic}");
    for (partition, newest) in topic["newest"].as_object().unwrap() {
        assert!(newest.as_i64() < topic["next"][partition].as_i64(), "{topic}");
    }
    assert!(topic["bytes"].as_i64() > Some(0), "{topic}");

    let looked = &pages["group"];
    assert_eq!(looked["listed"], json!([NAME]));
    assert_eq!((&looked["state"], &looked["protocol"]), (&json!("Stable"), &json!("cooperative-sticky")));
    let mut held: Vec<i64> = looked["members"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|member| member.as_array().unwrap())
        .map(|partition| partition.as_i64().unwrap())
        .collect();
    held.sort_unstable();
    assert_eq!(held, (0..PARTITIONS as i64).collect::<Vec<_>>(), "{looked}");
    assert_eq!(looked["lag"], 0, "{looked}");

    group.leave();
    let edited = &console("edit", &stage)["edited"];
    assert_eq!(edited["rewound"], events, "{edited}");
    assert_eq!((&edited["remembered"], &edited["listed"]), (&json!(false), &json!(false)), "{edited}");
    assert_eq!(edited["next"], topic["next"], "{edited}");
    assert_eq!(edited["first"]["0"], edited["next"]["0"], "the records of partition 0 are deleted: {edited}");
    assert_eq!(edited["first"]["1"], topic["first"]["1"], "{edited}");
    for button in ["making", "deleting", "enlarging"] {
        assert_eq!(edited[button], "POLICY_VIOLATION", "{button}: {edited}");
    }
}

fn console(what: &str, stage: &Stage) -> Map<String, Value> {
    let output = go().args(["console", what, &stage.bootstrap(), TOPIC, NAME]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().flat_map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap()).collect()
}

fn sum(offsets: &Value) -> i64 {
    offsets.as_object().unwrap().values().map(|offset| offset.as_i64().unwrap()).sum()
}
