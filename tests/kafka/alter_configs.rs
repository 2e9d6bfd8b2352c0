//! AlterConfigs and IncrementalAlterConfigs: which settings can be changed, and what the others are answered.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError::{
    InvalidConfig, InvalidRequest, InvalidTopicException, PolicyViolation, UnknownTopicOrPartition,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::{ResponseError, messages};
use millrace::kafka::connection::Limits;
use millrace::log::topics::{Topic, TopicId, Topics};
use millrace::log::{LogReader, Retention};

use crate::memory_log::MemoryLog;
use crate::support::{Client, Server};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A broker with `orders` and `events`, two topics of one task.
async fn server() -> (Server, Arc<MemoryLog>) {
    let (log, orders) = MemoryLog::with_topic("orders", 1);
    let topics = Topics::default();
    topics.insert(Topic { name: "events".into(), id: TopicId(78), ..orders.clone() });
    topics.insert(orders);
    (Server::start(topics, Limits::default()).await, log)
}

fn s(text: &str) -> StrBytes {
    StrBytes::from(text.to_owned())
}

/// A setting, what is done to it, and with which value.
type Change<'a> = (&'a str, i8, Option<&'a str>);
/// Kind and name of a resource, and what changes of it.
type Resource<'a> = (i8, &'a str, &'a [Change<'a>]);
/// Error and message of each resource.
type Answers = Vec<(i16, Option<String>)>;

async fn alter(client: &mut Client, version: i16, validate_only: bool, all: &[Resource<'_>]) -> Answers {
    use messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let resource = |(kind, name, changes): &Resource<'_>| {
        let config = |(name, operation, value): &Change<'_>| {
            AlterableConfig::default()
                .with_name(s(name))
                .with_config_operation(*operation)
                .with_value(value.map(s))
        };
        AlterConfigsResource::default()
            .with_resource_type(*kind)
            .with_resource_name(s(name))
            .with_configs(changes.iter().map(config).collect())
    };
    let request = IncrementalAlterConfigsRequest::default()
        .with_resources(all.iter().map(resource).collect())
        .with_validate_only(validate_only);
    let responses = client.call(version, &request).await.responses;
    let named = responses.iter().map(|response| (response.resource_type, &*response.resource_name));
    assert!(named.eq(all.iter().map(|(kind, name, _)| (*kind, *name))));
    responses
        .into_iter()
        .map(|response| (response.error_code, response.error_message.map(|message| message.to_string())))
        .collect()
}

/// The answer to one change of a topic's setting.
async fn alter_one(client: &mut Client, change: Change<'_>) -> (i16, String) {
    let (error, message) = alter(client, 1, false, &[(TOPIC, "orders", &[change])]).await.remove(0);
    (error, message.unwrap_or_default())
}

/// Replaces all settings of `orders`.
async fn replace(client: &mut Client, version: i16, configs: &[(&str, Option<&str>)]) -> (i16, String) {
    use messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config = |(name, value): &(&str, Option<&str>)| {
        AlterableConfig::default().with_name(s(name)).with_value(value.map(s))
    };
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(s("orders"))
        .with_configs(configs.iter().map(config).collect());
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    let response = client.call(version, &request).await.responses.remove(0);
    (response.error_code, response.error_message.map_or(String::new(), |message| message.to_string()))
}

/// Value, origin and whether it can only be read, of a topic's setting.
async fn described(client: &mut Client, topic: &str, name: &str) -> (String, i8, bool) {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(s(topic))
        .with_configuration_keys(Some(vec![s(name)]));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let config = client.call(4, &request).await.results.remove(0).configs.remove(0);
    (config.value.unwrap().to_string(), config.config_source, config.read_only)
}

#[tokio::test]
async fn retention_is_set_for_all_topics_of_a_task_and_taken_back() {
    for version in 0..=1 {
        let (server, log) = server().await;
        let mut client = server.client().await;
        let changes = [("retention.ms", SET, Some(" 5000 ")), ("retention.bytes", SET, Some("1000000"))];
        let answers = alter(&mut client, version, true, &[(TOPIC, "orders", &changes)]).await;
        assert_eq!((answers, log.retention()), (vec![(0, None)], Retention::default()), "only checked");
        let answers = alter(&mut client, version, false, &[(TOPIC, "orders", &changes)]).await;
        assert_eq!(answers, [(0, None)]);
        let set = Retention { bytes: Some(1_000_000), age: Some(Duration::from_secs(5)) };
        assert_eq!(log.retention(), set);
        for topic in ["orders", "events"] {
            assert_eq!(described(&mut client, topic, "retention.ms").await, ("5000".into(), 1, false));
            assert_eq!(described(&mut client, topic, "retention.bytes").await, ("1000000".into(), 1, false));
        }
        let changes = [("retention.ms", DELETE, None), ("retention.bytes", SET, Some("-1"))];
        assert_eq!(alter(&mut client, version, false, &[(TOPIC, "events", &changes)]).await, [(0, None)]);
        assert_eq!(log.retention(), Retention { bytes: None, age: Some(WEEK) });
        assert_eq!(described(&mut client, "orders", "retention.ms").await, ("604800000".into(), 5, false));
        assert_eq!(described(&mut client, "orders", "retention.bytes").await, ("-1".into(), 1, false));
    }
}

#[tokio::test]
async fn what_the_old_request_does_not_name_goes_back_to_what_the_broker_has() {
    for version in 0..=2 {
        let (server, log) = server().await;
        let mut client = server.client().await;
        let both = [("retention.ms", Some("-1")), ("retention.bytes", Some("7000"))];
        assert_eq!(replace(&mut client, version, &both).await, (0, String::new()));
        assert_eq!(log.retention(), Retention { bytes: Some(7_000), age: None });
        // A tool that sends back what it has read.
        let one = [("cleanup.policy", Some("delete")), ("retention.ms", Some("9"))];
        assert_eq!(replace(&mut client, version, &one).await, (0, String::new()));
        assert_eq!(log.retention(), Retention { bytes: None, age: Some(Duration::from_millis(9)) });
        let refused = replace(&mut client, version, &[("retention.ms", None)]).await;
        assert_eq!(refused.0, InvalidRequest.code());
        assert_eq!(
            replace(&mut client, version, &[("segment.ms", Some("5"))]).await.0,
            PolicyViolation.code()
        );
        assert_eq!(replace(&mut client, version, &[]).await, (0, String::new()));
        assert_eq!(log.retention(), Retention { bytes: None, age: Some(WEEK) });
    }
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_by_name_and_what_is_so_already_is_taken() {
    let (server, log) = server().await;
    let mut client = server.client().await;
    for change in [
        ("cleanup.policy", SET, Some("delete")),
        ("cleanup.policy", SET, Some(" delete ,")),
        ("cleanup.policy", APPEND, Some("delete")),
        ("cleanup.policy", SUBTRACT, Some("compact")),
        ("message.timestamp.type", SET, Some("CreateTime")),
        ("min.insync.replicas", SET, Some("1")),
        ("compression.type", DELETE, None),
        ("no.such", DELETE, Some("")),
    ] {
        assert_eq!(alter_one(&mut client, change).await, (0, String::new()), "{change:?}");
    }
    let number = "Not a number of type LONG";
    for (change, error, said) in [
        (
            ("cleanup.policy", SET, Some("compact")),
            PolicyViolation,
            "cleanup.policy of topic orders is 'delete'",
        ),
        (("cleanup.policy", APPEND, Some("compact")), PolicyViolation, "cleanup.policy"),
        (("cleanup.policy", SUBTRACT, Some("delete")), PolicyViolation, "cleanup.policy"),
        (("max.message.bytes", SET, Some("5")), PolicyViolation, "log.max_record_mb"),
        (("min.insync.replicas", SET, Some("2")), PolicyViolation, "one replica"),
        (("no.such", SET, Some("1")), InvalidConfig, "Unknown topic config name: no.such"),
        (("retention.ms", SET, Some("soon")), InvalidConfig, number),
        (("retention.ms", SET, Some("")), InvalidConfig, number),
        (("retention.bytes", SET, Some("99999999999999999999")), InvalidConfig, number),
        (("retention.ms", SET, Some("-2")), InvalidConfig, "Value must be at least -1"),
        (("retention.ms", APPEND, Some("5")), InvalidConfig, "is no list"),
        (("retention.ms", SET, None), InvalidRequest, "Null value not supported for : retention.ms"),
        (("retention.ms", 9, Some("5")), InvalidRequest, "no operation 9"),
    ] {
        let (code, message) = alter_one(&mut client, change).await;
        assert_eq!(code, error.code(), "{change:?}: {message}");
        assert!(message.contains(said), "{change:?}: {message}");
    }
    // Of a resource everything is changed or nothing.
    let half = [("retention.ms", SET, Some("5")), ("no.such", SET, Some("5"))];
    assert_eq!(alter(&mut client, 1, false, &[(TOPIC, "orders", &half)]).await[0].0, InvalidConfig.code());
    let twice = [("retention.ms", SET, Some("5")), ("retention.ms", SET, Some("6"))];
    assert_eq!(alter(&mut client, 1, false, &[(TOPIC, "orders", &twice)]).await[0].0, InvalidRequest.code());
    assert_eq!(log.retention(), Retention::default());
    // What the client has said is not told again at any length.
    let (_, message) = alter_one(&mut client, (&"x".repeat(30_000), SET, Some("1"))).await;
    assert!(message.len() <= 1_000);
}

#[tokio::test]
async fn each_resource_is_answered_for_itself() {
    let (server, log) = server().await;
    let mut client = server.client().await;
    let five: &[Change<'_>] = &[("retention.ms", SET, Some("5"))];
    let broker: &[Change<'_>] = &[("log.retention.ms", SET, Some("5"))];
    let reset: &[Change<'_>] = &[("log.retention.ms", DELETE, None)];
    let cases: [(Resource<'_>, Option<ResponseError>); 15] = [
        ((TOPIC, "orders", five), None),
        ((TOPIC, "none", five), Some(UnknownTopicOrPartition)),
        ((TOPIC, "a/b", five), Some(InvalidTopicException)),
        ((TOPIC, "", five), Some(InvalidRequest)),
        ((TOPIC, "events", five), Some(InvalidRequest)),
        ((TOPIC, "events", five), Some(InvalidRequest)),
        ((BROKER, "0", broker), Some(InvalidRequest)),
        ((BROKER, "", reset), None),
        ((BROKER, "1", reset), Some(InvalidRequest)),
        ((8, "0", &[("kafka", SET, Some("INFO"))]), Some(InvalidConfig)),
        ((16, "c", &[("interval.ms", SET, Some("5"))]), Some(InvalidRequest)),
        ((32, "g", &[("consumer.session.timeout.ms", SET, Some("50000"))]), Some(InvalidConfig)),
        ((32, "", &[]), Some(InvalidRequest)),
        ((77, "orders", five), Some(InvalidRequest)),
        ((0, "orders", &[]), Some(InvalidRequest)),
    ];
    let asked: Vec<_> = cases.iter().map(|(resource, _)| *resource).collect();
    let answers = alter(&mut client, 1, false, &asked).await;
    for ((resource, error), (code, message)) in cases.iter().zip(&answers) {
        assert_eq!(*code, error.map_or(0, |error| error.code()), "{resource:?}: {message:?}");
        assert_eq!(message.is_some(), error.is_some());
    }
    assert!(answers[6].1.as_ref().unwrap().contains("log.retention.ms: the broker's settings"));
    assert_eq!(log.retention().age, Some(Duration::from_millis(5)));
}
