//! kafka-consumer-groups and kafka-groups.

use crate::stage::{PARTITIONS, ROWS, Stage, TOPIC};
use crate::tool::{CONSOLE_CONSUMER, CONSUMER_GROUPS, Printed, Running, run};

const GROUP: &str = "readers";

struct Groups {
    stage: Stage,
    bootstrap: String,
}

impl Groups {
    /// A group that has read everything, and that nobody is in.
    fn start() -> Groups {
        let stage = Stage::start();
        let bootstrap = stage.bootstrap();
        let all = ROWS.to_string();
        run(
            CONSOLE_CONSUMER,
            &[
                "--bootstrap-server",
                &bootstrap,
                "--topic",
                TOPIC,
                "--from-beginning",
                "--max-messages",
                &all,
                "--group",
                GROUP,
            ],
        );
        Groups { stage, bootstrap }
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Printed {
        run(CONSUMER_GROUPS, &[&["--bootstrap-server", &self.bootstrap], args].concat())
    }

    /// Partitions with a commit: committed offset, end, lag.
    fn offsets(&self) -> Vec<(i64, i64, i64)> {
        let printed = self.run(&["--describe", "--group", GROUP, "--offsets"]);
        let numbers = |column| {
            let of_topic = printed.column(GROUP, column).into_iter();
            of_topic.map(|number| number.parse().unwrap()).collect::<Vec<i64>>()
        };
        let (committed, ends, lags) = (numbers("CURRENT-OFFSET"), numbers("LOG-END-OFFSET"), numbers("LAG"));
        let partitions = numbers("PARTITION");
        let mut offsets: Vec<_> = partitions.iter().zip(committed).zip(ends).zip(lags).collect();
        offsets.sort_unstable();
        offsets.into_iter().map(|(((_, committed), end), lag)| (committed, end, lag)).collect()
    }

    /// Resets all partitions, and says where to, by partition.
    fn reset(&self, how: &[&str]) -> Vec<i64> {
        let scope = ["--reset-offsets", "--group", GROUP, "--topic", TOPIC, "--execute"];
        let printed = self.run(&[&scope, how].concat());
        let mut partitions: Vec<_> =
            printed.column(GROUP, "PARTITION").into_iter().zip(printed.column(GROUP, "NEW-OFFSET")).collect();
        partitions.sort_unstable();
        partitions.into_iter().map(|(_, offset)| offset.parse().unwrap()).collect()
    }
}

#[test]
fn an_empty_group_is_listed_described_and_reset_in_every_way_and_deleted() {
    let groups = Groups::start();
    groups.run(&["--list"]).assert_has_line(GROUP);
    assert_eq!(groups.run(&["--list", "--state"]).column(GROUP, "STATE"), ["Empty"]);
    assert_eq!(groups.run(&["--list", "--type"]).column(GROUP, "TYPE"), ["Classic"]);
    let printed = groups.run(&["--describe", "--group", GROUP, "--state"]);
    assert_eq!(printed.column(GROUP, "STATE"), ["Empty"]);
    assert_eq!(printed.column(GROUP, "#MEMBERS"), ["0"]);
    assert_eq!(printed.column(GROUP, "COORDINATOR"), [&groups.bootstrap]);

    let offsets = groups.offsets();
    assert_eq!(offsets.len(), PARTITIONS);
    assert!(offsets.iter().all(|(committed, end, lag)| committed == end && *lag == 0), "{offsets:?}");
    let ends: Vec<i64> = offsets.iter().map(|(_, end, _)| *end).collect();
    assert_eq!(ends.iter().sum::<i64>(), ROWS as i64);

    assert_eq!(groups.reset(&["--to-earliest"]), [0; PARTITIONS]);
    assert_eq!(groups.offsets(), ends.iter().map(|end| (0, *end, *end)).collect::<Vec<_>>());
    assert_eq!(groups.reset(&["--to-latest"]), *ends);
    assert_eq!(groups.reset(&["--shift-by", "-2"]), ends.iter().map(|end| end - 2).collect::<Vec<_>>());
    assert_eq!(groups.reset(&["--to-current"]), ends.iter().map(|end| end - 2).collect::<Vec<_>>());
    assert_eq!(groups.reset(&["--to-offset", "1"]), [1; PARTITIONS]);
    assert_eq!(groups.reset(&["--by-duration", "PT1H"]), [0; PARTITIONS]);
    assert_eq!(groups.reset(&["--to-datetime", "2100-01-01T00:00:00.000"]), *ends);
    let plan = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(plan.path(), format!("{TOPIC},0,1\n{TOPIC},2,0\n")).unwrap();
    let path = plan.path().to_str().unwrap();
    let from_file = groups.run(&["--reset-offsets", "--group", GROUP, "--from-file", path, "--execute"]);
    assert_eq!(from_file.column(GROUP, "NEW-OFFSET").len(), 2);
    let committed: Vec<i64> = groups.offsets().iter().map(|(committed, ..)| *committed).collect();
    assert_eq!(committed, [1, ends[1], 0]);

    let one = format!("{TOPIC}:1");
    let printed = groups.run(&["--delete-offsets", "--group", GROUP, "--topic", &one]);
    assert_eq!(printed.column(TOPIC, "STATUS"), ["Successful"]);
    let printed = groups.run(&["--describe", "--group", GROUP, "--offsets"]);
    assert_eq!(printed.column(GROUP, "PARTITION").len(), PARTITIONS - 1);
    groups.run(&["--delete", "--group", GROUP]).assert_has("('readers') was successful");
    assert!(!groups.run(&["--list"]).text.contains(GROUP));
}

#[test]
fn a_group_with_a_member_shows_it_and_cannot_be_reset_or_deleted() {
    let groups = Groups::start();
    let member = ["--bootstrap-server", &groups.bootstrap, "--topic", TOPIC, "--group", GROUP];
    let mut member = Running::start(CONSOLE_CONSUMER, &member);
    groups.stage.insert(ROWS);
    member.wait_for_lines(ROWS);

    let printed = groups.run(&["--describe", "--group", GROUP, "--members", "--verbose"]);
    assert_eq!(printed.column(GROUP, "#PARTITIONS"), [PARTITIONS.to_string()]);
    assert_eq!(printed.column(GROUP, "CLIENT-ID"), ["console-consumer"]);
    assert_eq!(printed.column(GROUP, "HOST"), ["/127.0.0.1"]);
    assert_eq!(printed.column(GROUP, "CURRENT-ASSIGNMENT"), [format!("{TOPIC}:0,1,2")]);
    let printed = groups.run(&["--describe", "--group", GROUP, "--state"]);
    assert_eq!(printed.column(GROUP, "STATE"), ["Stable"]);
    let printed = run(
        "org.apache.kafka.tools.GroupsCommand",
        &["--bootstrap-server", &groups.bootstrap, "--list", "--consumer"],
    );
    assert_eq!(printed.column(GROUP, "PROTOCOL"), ["consumer"]);

    let reset = ["--reset-offsets", "--group", GROUP, "--topic", TOPIC, "--to-earliest", "--execute"];
    groups.run(&reset).assert_has("if the group 'readers' is inactive, but the current state is Stable");
    groups.run(&["--delete", "--group", GROUP]).assert_has("GroupNotEmptyException");
}

#[test]
fn a_group_of_the_consumer_protocol_shows_its_member_with_its_epochs() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let mut member = Running::start(
        CONSOLE_CONSUMER,
        &[
            "--bootstrap-server",
            &bootstrap,
            "--topic",
            TOPIC,
            "--group",
            GROUP,
            "--from-beginning",
            "--command-property",
            "group.protocol=consumer",
        ],
    );
    member.wait_for_lines(ROWS);
    let groups = Groups { stage, bootstrap };
    assert_eq!(groups.run(&["--list", "--type"]).column(GROUP, "TYPE"), ["Consumer"]);
    let printed = groups.run(&["--describe", "--group", GROUP, "--members", "--verbose"]);
    assert_eq!(printed.column(GROUP, "#PARTITIONS"), [PARTITIONS.to_string()]);
    assert_eq!(printed.column(GROUP, "CURRENT-ASSIGNMENT"), [format!("{TOPIC}:0,1,2")]);
    assert_eq!(printed.column(GROUP, "TARGET-ASSIGNMENT"), printed.column(GROUP, "CURRENT-ASSIGNMENT"));
    assert_eq!(printed.column(GROUP, "CURRENT-EPOCH"), printed.column(GROUP, "TARGET-EPOCH"));
    let printed = groups.run(&["--describe", "--group", GROUP, "--state"]);
    assert_eq!(printed.column(GROUP, "STATE"), ["Stable"]);
    assert_eq!(printed.column(GROUP, "ASSIGNMENT-STRATEGY"), ["uniform"]);
}
