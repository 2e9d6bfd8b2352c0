//! Settings of the broker and of groups under Kafka's names: those that mean something here, with the value that holds.
//!
//! All come from how the broker was started, and none can be changed while it runs. What topics have without settings of
//! their own is in [`topic_settings`](super::topic_settings).

use std::time::Duration;

use super::topic_settings::Kind;
use super::{Broker, NODE_ID};
use crate::produce::DEFAULT_PARTITIONS;

/// A setting of the broker.
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What Apache Kafka has without configuration, where it has anything.
    pub default: Option<&'static str>,
    /// What it says here, for people.
    pub about: &'static str,
    /// The value that holds.
    pub value: fn(&Broker) -> String,
}

/// A setting that groups have.
pub struct OfGroups {
    /// Its name.
    pub name: &'static str,
    /// The broker's setting that it comes from.
    pub broker_name: &'static str,
}

/// All settings of groups: those of members of the consumer protocol.
pub static OF_GROUPS: &[OfGroups] = &[
    OfGroups { name: "consumer.heartbeat.interval.ms", broker_name: "group.consumer.heartbeat.interval.ms" },
    OfGroups { name: "consumer.session.timeout.ms", broker_name: "group.consumer.session.timeout.ms" },
];

const fn setting(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    value: fn(&Broker) -> String,
    about: &'static str,
) -> Definition {
    Definition { name, kind, default, about, value }
}

/// All settings of the broker, by name.
#[rustfmt::skip]
pub static ALL: &[Definition] = {
    use Kind::{Boolean, Int, List, Long, Text};
    &[
        setting("advertised.listeners", List, None, listener,
            "Where clients are told to connect; kafka.advertise of the configuration."),
        setting("auto.create.topics.enable", Boolean, Some("true"), clients_make_topics,
            "Topics are made by tasks; by clients only in test mode."),
        setting("broker.id", Int, Some("-1"), |_| NODE_ID.to_string(),
            "There is one broker."),
        setting("connections.max.idle.ms", Long, Some("600000"), |broker| ms(broker.limits.idle_time),
            "A connection without any request is closed after this time."),
        setting("default.replication.factor", Int, Some("1"), |_| one(),
            "There is one replica of each partition."),
        setting("delete.topic.enable", Boolean, Some("true"), clients_make_topics,
            "Topics belong to tasks; clients delete their own in test mode."),
        setting("group.consumer.assignors", List, Some("uniform,range"), |_| "uniform,range".to_owned(),
            "How partitions are shared out in groups of the consumer protocol."),
        setting("group.consumer.heartbeat.interval.ms", Int, Some("5000"),
            |broker| ms(broker.groups.options().consumer_heartbeat_interval),
            "How often members of the consumer protocol send heartbeats."),
        setting("group.consumer.max.size", Int, Some("2147483647"), max_group_size,
            "Members of one group."),
        setting("group.consumer.migration.policy", Text, Some("bidirectional"), |_| "bidirectional".to_owned(),
            "Groups go from the classic to the consumer protocol and back as their members do."),
        setting("group.consumer.session.timeout.ms", Int, Some("45000"),
            |broker| ms(broker.groups.options().consumer_session_timeout),
            "Without a heartbeat for this time a member of the consumer protocol is taken for dead."),
        setting("group.initial.rebalance.delay.ms", Int, Some("3000"),
            |broker| ms(broker.groups.options().initial_rebalance_delay),
            "How long a new group waits for more members; group.initial_delay_ms of the configuration."),
        setting("group.max.session.timeout.ms", Int, Some("1800000"),
            |broker| ms(broker.groups.options().max_session_timeout),
            "The longest session timeout that a member may ask for."),
        setting("group.max.size", Int, Some("2147483647"), max_group_size,
            "Members of one group."),
        setting("group.min.session.timeout.ms", Int, Some("6000"),
            |broker| ms(broker.groups.options().min_session_timeout),
            "The shortest session timeout that a member may ask for."),
        // Apache Kafka 4 has it no more, but consoles tell the version by it.
        setting("inter.broker.protocol.version", Text, None, |_| "4.3-IV0".to_owned(),
            "The release of Apache Kafka whose APIs are served."),
        setting("listeners", List, Some("PLAINTEXT://:9092"), listener,
            "Where clients are told to connect; kafka.listen and kafka.advertise of the configuration."),
        setting("log.dirs", List, None, |broker| broker.data_dir.to_string_lossy().into_owned(),
            "Where everything is kept; data_dir of the configuration."),
        setting("max.connections", Int, Some("2147483647"), |broker| broker.limits.connections.to_string(),
            "Connections at a time; more are closed at once."),
        setting("node.id", Int, None, |_| NODE_ID.to_string(),
            "There is one broker."),
        setting("num.partitions", Int, Some("1"),
            |broker| if broker.client_topics.is_some() { DEFAULT_PARTITIONS.to_string() } else { one() },
            "Partitions of topics that nobody has given a number of them."),
        setting("offset.metadata.max.bytes", Int, Some("4096"),
            |broker| broker.groups.options().max_offset_metadata.to_string(),
            "Size of the text that a consumer may commit with an offset."),
        setting("offsets.retention.check.interval.ms", Long, Some("600000"),
            |broker| ms(broker.groups.options().retention_check),
            "How often offsets are looked through for those whose time is over."),
        setting("offsets.retention.minutes", Int, Some("10080"),
            |broker| (broker.groups.options().offset_retention.as_secs() / 60).min(i32::MAX as u64).to_string(),
            "How long offsets are kept after their group has lost its last member."),
        setting("process.roles", List, None, |_| "broker,controller".to_owned(),
            "The one broker is its own controller."),
        setting("socket.request.max.bytes", Int, Some("104857600"),
            |broker| broker.limits.request_bytes.to_string(),
            "Size of a request; a larger one closes its connection."),
    ]
};

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Definition> {
    ALL.iter().find(|definition| definition.name == name)
}

fn listener(broker: &Broker) -> String {
    let host = &broker.advertised_host;
    match host.contains(':') {
        true => format!("PLAINTEXT://[{host}]:{}", broker.advertised_port),
        false => format!("PLAINTEXT://{host}:{}", broker.advertised_port),
    }
}

fn clients_make_topics(broker: &Broker) -> String {
    broker.client_topics.is_some().to_string()
}

fn max_group_size(broker: &Broker) -> String {
    broker.groups.options().max_group_size.to_string()
}

fn one() -> String {
    1.to_string()
}

fn ms(time: Duration) -> String {
    time.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_there_once() {
        assert!(ALL.is_sorted_by(|a, b| a.name < b.name));
        let topics = super::super::topic_settings::ALL.iter().filter_map(|setting| setting.broker_name);
        assert_eq!(topics.filter(|name| find(name).is_some()).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn what_groups_have_the_broker_has() {
        assert!(OF_GROUPS.iter().all(|setting| find(setting.broker_name).is_some()));
    }
}
