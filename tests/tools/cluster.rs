//! Tools that ask about the broker, its replicas, and all that it has not.

use serde_json::Value;

use crate::stage::{PARTITIONS, Stage, TOPIC};
use crate::tool::{refused, run};

#[test]
fn the_broker_tells_what_it_is() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let ask = |tool: &str, args: &[&str]| {
        run(&format!("org.apache.kafka.tools.{tool}"), &[args, &["--bootstrap-server", &bootstrap]].concat())
    };

    let id = ask("ClusterTool", &["cluster-id"]);
    let id = id.text.trim().strip_prefix("Cluster ID: ").unwrap_or_else(|| panic!("{id:#?}")).to_owned();
    let endpoints = ask("ClusterTool", &["list-endpoints", "--include-fenced-brokers"]);
    let port = stage.port().to_string();
    assert_eq!(endpoints.rows()[1], ["0", "127.0.0.1", &port, "null", "unfenced", "broker"]);

    let versions = ask("BrokerApiVersionsCommand", &[]);
    versions.assert_has("Fetch(1): 4 to 18 [usable: 18]");
    versions.assert_has("AddPartitionsToTxn(24): UNSUPPORTED");

    let features =
        run("org.apache.kafka.tools.FeatureCommand", &["--bootstrap-server", &bootstrap, "describe"]);
    let levels =
        |feature: &str| features.rows().iter().find(|row| row[1] == feature).map(|row| row[7].to_owned());
    assert_eq!(levels("group.version").as_deref(), Some("1"), "{features:#?}");
    assert_eq!(levels("metadata.version").as_deref(), Some("4.3-IV0"), "{features:#?}");

    let quorum = ["--bootstrap-server", &bootstrap, "describe", "--status"];
    let quorum = run("org.apache.kafka.tools.MetadataQuorumCommand", &quorum);
    assert_eq!(quorum.rows()[0], ["ClusterId:", &id]);
    assert_eq!(quorum.rows()[1], ["LeaderId:", "0"]);
    let replicas = ["--bootstrap-server", &bootstrap, "describe", "--replication"];
    let replicas = run("org.apache.kafka.tools.MetadataQuorumCommand", &replicas);
    assert_eq!(replicas.column("0", "Status"), ["Leader"]);
}

#[test]
fn what_partitions_take_of_the_disk_is_told() {
    let stage = Stage::start();
    let args = ["--bootstrap-server", &stage.bootstrap(), "--describe", "--topic-list", TOPIC];
    let printed = run("org.apache.kafka.tools.LogDirsCommand", &args);
    let found: Value = serde_json::from_str(printed.text.lines().last().unwrap()).unwrap();
    let directory = &found["brokers"][0]["logDirs"][0];
    assert_eq!(directory["logDir"].as_str(), stage.data_dir().to_str());
    assert_eq!(directory["error"], Value::Null);
    let partitions = directory["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), PARTITIONS);
    assert!(partitions.iter().all(|partition| partition["size"].as_u64().unwrap() > 0), "{partitions:?}");
}

#[test]
fn there_is_nothing_to_move_elect_or_allow() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let with_bootstrap = |args: &[&str]| -> Vec<String> {
        ["--bootstrap-server", &bootstrap].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
    };
    let ask = |tool: &str, args: &[&str]| {
        let args = with_bootstrap(args);
        run(&format!("org.apache.kafka.tools.{tool}"), &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let fails = |tool: &str, args: &[&str]| {
        let args = with_bootstrap(args);
        refused(
            &format!("org.apache.kafka.tools.{tool}"),
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };

    ask("reassign.ReassignPartitionsCommand", &["--list"])
        .assert_has_line("No partition reassignments found.");
    let plan = tempfile::NamedTempFile::new().unwrap();
    let moved =
        format!(r#"{{"version":1,"partitions":[{{"topic":"{TOPIC}","partition":0,"replicas":[0]}}]}}"#);
    std::fs::write(plan.path(), moved).unwrap();
    let plan = ["--reassignment-json-file", plan.path().to_str().unwrap()];
    ask("reassign.ReassignPartitionsCommand", &[&plan[..], &["--execute"]].concat())
        .assert_has_line("Successfully started partition reassignment for shop-0");

    let all = ["--election-type", "preferred", "--all-topic-partitions"];
    assert_eq!(ask("LeaderElectionCommand", &all).text, "");
    let one = ["--election-type", "unclean", "--topic", TOPIC, "--partition", "0"];
    ask("LeaderElectionCommand", &one).assert_has_line("Valid replica already elected for partitions shop-0");

    fails("AclCommand", &["--list"]).assert_has("SecurityDisabledException: this broker has no access rules");
    assert_eq!(ask("TransactionsCommand", &["list"]).text.lines().count(), 1, "no more than a heading");
    let producers = ["describe-producers", "--topic", TOPIC, "--partition", "0"];
    assert_eq!(ask("TransactionsCommand", &producers).text.lines().count(), 1, "no more than a heading");
    assert_eq!(ask("TransactionsCommand", &["find-hanging", "--broker", "0"]).text.lines().count(), 1);
    assert_eq!(ask("ClientMetricsCommand", &["--list"]).text.trim(), "");
    assert_eq!(ask("consumer.group.ShareGroupCommand", &["--list"]).text, "");
    assert_eq!(ask("streams.StreamsGroupCommand", &["--list"]).text, "");
    fails("FeatureCommand", &["disable", "--feature", "group.version"])
        .assert_has("the features of this broker are those of its release");
}
