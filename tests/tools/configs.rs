//! kafka-configs.

use crate::stage::{Stage, TOPIC};
use crate::tool::{CONFIGS, refused, run};

#[test]
fn quotas_and_accounts_are_none_and_cannot_be_made() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let describe =
        |kind| run(CONFIGS, &["--bootstrap-server", &bootstrap, "--describe", "--entity-type", kind]);
    for kind in ["users", "clients", "ips", "client-metrics", "groups"] {
        assert_eq!(describe(kind).text, "", "{kind}");
    }
    for (setting, message) in [
        ("producer_byte_rate=5", "this broker has no quotas"),
        ("SCRAM-SHA-256=[password=secret]", "this broker keeps no accounts"),
    ] {
        let args = ["--bootstrap-server", &bootstrap, "--alter", "--entity-type", "users"];
        let args = [&args[..], &["--entity-name", "ann", "--add-config", setting]].concat();
        refused(CONFIGS, &args).assert_has(message);
    }
}

#[test]
fn settings_are_described() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let describe =
        |args: &[&str]| run(CONFIGS, &[&["--bootstrap-server", &bootstrap, "--describe"], args].concat());

    let topic = describe(&["--entity-type", "topics", "--entity-name", TOPIC, "--all"]);
    topic.assert_has_line("All configs for topic shop are:");
    topic.assert_has_line(
        "retention.ms=604800000 sensitive=false synonyms={DEFAULT_CONFIG:log.retention.ms=604800000}",
    );
    topic.assert_has_line(
        "cleanup.policy=delete sensitive=false synonyms={DEFAULT_CONFIG:log.cleanup.policy=delete}",
    );
    let changed = describe(&["--entity-type", "topics", "--entity-name", TOPIC]);
    // Those that differ from Apache Kafka's are not the topic's own.
    assert_eq!(changed.text, "Dynamic configs for topic shop are:\n");

    let broker = describe(&["--entity-type", "brokers", "--entity-name", "0", "--all"]);
    broker.assert_has_line(
        "group.initial.rebalance.delay.ms=3000 sensitive=false \
         synonyms={DEFAULT_CONFIG:group.initial.rebalance.delay.ms=3000}",
    );
    broker.assert_has(&format!("advertised.listeners=PLAINTEXT://{bootstrap} "));
    let brokers = describe(&["--entity-type", "brokers", "--entity-default"]);
    assert_eq!(brokers.text, "Default configs for brokers in the cluster are:\n");
    let group = describe(&["--entity-type", "groups", "--entity-name", "readers", "--all"]);
    group.assert_has("consumer.session.timeout.ms=45000 ");
    let loggers = describe(&["--entity-type", "broker-loggers", "--entity-name", "0"]);
    assert_eq!(loggers.text, "Dynamic configs for broker-logger 0 are:\n");
}

#[test]
fn retention_can_be_changed_and_what_is_fixed_is_refused_by_name() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let of_topic = ["--bootstrap-server", &bootstrap, "--entity-type", "topics", "--entity-name", TOPIC];
    let alter = |change: &[&str]| run(CONFIGS, &[&of_topic[..], &["--alter"], change].concat());
    let changed = || run(CONFIGS, &[&of_topic[..], &["--describe"]].concat());

    alter(&["--add-config", "retention.ms=86400000"])
        .assert_has_line("Completed updating config for topic shop.");
    changed().assert_has_line(
        "retention.ms=86400000 sensitive=false synonyms={DYNAMIC_TOPIC_CONFIG:retention.ms=86400000, \
         DEFAULT_CONFIG:log.retention.ms=604800000}",
    );
    alter(&["--delete-config", "retention.ms"]);
    assert_eq!(changed().text, "Dynamic configs for topic shop are:\n");
    let compact = ["--alter", "--add-config", "cleanup.policy=compact"];
    refused(CONFIGS, &[&of_topic[..], &compact].concat()).assert_has("cleanup.policy");
}
