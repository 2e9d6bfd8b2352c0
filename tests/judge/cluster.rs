//! ApiVersions, Metadata, DescribeCluster, DescribeTopicPartitions, FindCoordinator: what a client asks first.

use std::sync::Arc;

use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, DescribeClusterRequest, DescribeTopicPartitionsRequest,
    FindCoordinatorRequest, MetadataRequest, MetadataResponse,
};
use uuid::Uuid;

use crate::pair::{Court, Pair};
use crate::seed::{metadata, text, topic};

pub async fn judge(court: &Arc<Court>) {
    let mut pair = court.pair();
    api_versions(&mut pair).await;
    topics(&mut pair).await;
    cluster(&mut pair).await;
    topic_partitions(&mut pair).await;
    coordinators(&mut pair).await;
}

async fn api_versions(pair: &mut Pair) {
    for version in pair.court.versions(ApiKey::ApiVersions) {
        let named = |name: &'static str, software_version: &'static str| {
            move |_: &_| match version {
                3.. => ApiVersionsRequest::default()
                    .with_client_software_name(text(name))
                    .with_client_software_version(text(software_version)),
                _ => ApiVersionsRequest::default(),
            }
        };
        // What one of them does not serve cannot be compared; what we lack of Kafka is in docs/compatibility.md.
        let served: Vec<i16> = pair.court.served().map(|(key, _)| key).collect();
        let common = |answer: &mut ApiVersionsResponse| {
            answer.api_keys.retain(|api| served.contains(&api.api_key));
            answer.api_keys.sort_by_key(|api| api.api_key);
        };
        pair.call_tidied("plain", version, named("judge", "1.0"), common).await;
        for (name, software_version) in [("", "1.0"), ("judge", ""), ("-judge", "1.0"), ("judge", "1.0!")] {
            let situation = format!("software '{name}' '{software_version}'");
            if version >= 3 {
                pair.call(&situation, version, named(name, software_version)).await;
            }
        }
    }
}

/// Topics that tests beside this one make, and Kafka's own.
fn only_ours(answer: &mut MetadataResponse) {
    let seeded = |name: &str| ["seed", "sizes", "times", "empty"].contains(&name);
    answer.topics.retain(|topic| topic.name.as_ref().is_none_or(|name| seeded(name)));
}

async fn topics(pair: &mut Pair) {
    for version in pair.court.versions(ApiKey::Metadata) {
        // Before version 4 a topic that is asked for is made.
        let asked = |names: &[&str]| {
            let topics =
                names.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic(name))));
            let request = MetadataRequest::default().with_topics(Some(topics.collect()));
            if version >= 4 { request.with_allow_auto_topic_creation(false) } else { request }
        };
        pair.call("a topic", version, |_| asked(&["seed"])).await;
        pair.call("several topics, one twice", version, |_| asked(&["seed", "empty", "seed"])).await;
        pair.call("names that no topic may have", version, |_| asked(&["no name!", "", ".."])).await;
        pair.call("a name that is too long", version, |_| asked(&[&"x".repeat(250)])).await;
        let none = match version {
            0 => None,
            _ => Some(Vec::new()),
        };
        let all = |_: &_| MetadataRequest::default().with_topics(none.clone().filter(|_| false));
        if version >= 1 {
            pair.call("no topic", version, |_| MetadataRequest::default().with_topics(none.clone())).await;
            pair.call_tidied("all topics", version, all, only_ours).await;
        } else {
            pair.call_tidied("all topics", version, |_| asked(&[]), only_ours).await;
        }
        if version >= 4 {
            pair.call("an unknown topic", version, |_| asked(&["unknown"])).await;
        }
        if version >= 8 {
            let allowed = |_: &_| metadata("seed").with_include_topic_authorized_operations(true);
            pair.call("what one may do with a topic", version, allowed).await;
        }
        if (8..=10).contains(&version) {
            let allowed = |_: &_| metadata("seed").with_include_cluster_authorized_operations(true);
            pair.call("what one may do with the cluster", version, allowed).await;
        }
        if version >= 10 {
            let by = |name: Option<&str>, id: Uuid| {
                let wanted = MetadataRequestTopic::default().with_topic_id(id).with_name(name.map(topic));
                MetadataRequest::default()
                    .with_topics(Some(vec![wanted]))
                    .with_allow_auto_topic_creation(false)
            };
            pair.call("a topic by id", version, |names| by(None, names.topic_id("seed"))).await;
            pair.call("an unknown id", version, |_| by(None, Uuid::from_u128(7))).await;
            pair.call("a name and an id", version, |names| by(Some("seed"), names.topic_id("seed"))).await;
            pair.call("a name and another topic's id", version, |names| {
                by(Some("seed"), names.topic_id("empty"))
            })
            .await;
            pair.call("neither name nor id", version, |_| by(None, Uuid::nil())).await;
        }
        pair.call("a topic is made by asking", version, |_| {
            let wanted = MetadataRequestTopic::default().with_name(Some(topic(&format!("asked-{version}"))));
            let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
            if version >= 4 { request.with_allow_auto_topic_creation(true) } else { request }
        })
        .await;
    }
}

async fn cluster(pair: &mut Pair) {
    for version in pair.court.versions(ApiKey::DescribeCluster) {
        let plain = DescribeClusterRequest::default;
        pair.call("plain", version, |_| plain()).await;
        let allowed = |_: &_| plain().with_include_cluster_authorized_operations(true);
        pair.call("what one may do", version, allowed).await;
        if version >= 1 {
            pair.call("controllers", version, |_| plain().with_endpoint_type(2)).await;
            pair.call("endpoints of an unknown kind", version, |_| plain().with_endpoint_type(9)).await;
        }
        if version >= 2 {
            pair.call("fenced brokers too", version, |_| plain().with_include_fenced_brokers(true)).await;
        }
    }
}

async fn topic_partitions(pair: &mut Pair) {
    for version in pair.court.versions(ApiKey::DescribeTopicPartitions) {
        let of = |names: &[&str], limit: i32| {
            let topics = names.iter().map(|name| TopicRequest::default().with_name(topic(name)));
            DescribeTopicPartitionsRequest::default()
                .with_topics(topics.collect())
                .with_response_partition_limit(limit)
        };
        pair.call("a topic", version, |_| of(&["seed"], 100)).await;
        pair.call("several topics", version, |_| {
            of(&["times", "seed", "unknown", "bad name!", "empty"], 100)
        })
        .await;
        pair.call("a topic twice", version, |_| of(&["seed", "seed"], 100)).await;
        pair.call("one partition at most", version, |_| of(&["seed", "sizes"], 1)).await;
        pair.call("three partitions at most", version, |_| of(&["seed", "sizes"], 3)).await;
        pair.call("no partition at most", version, |_| of(&["seed"], 0)).await;
        pair.call("fewer than none", version, |_| of(&["seed"], -1)).await;
        let from = |name: &str, partition: i32| {
            Some(Cursor::default().with_topic_name(topic(name)).with_partition_index(partition))
        };
        for (name, partition) in
            [("seed", 1), ("seed", 9), ("seed", -1), ("sizes", 0), ("sizf", 0), ("zzz", 0)]
        {
            let situation = format!("from {name} {partition}");
            let request = |_: &_| of(&["seed", "sizes", "times"], 100).with_cursor(from(name, partition));
            pair.call(&situation, version, request).await;
        }
    }
}

async fn coordinators(pair: &mut Pair) {
    for version in pair.court.versions(ApiKey::FindCoordinator) {
        let of = |key: &str, kind: i8| {
            let request = match version {
                4.. => {
                    FindCoordinatorRequest::default().with_coordinator_keys(vec![text(key), text("another")])
                }
                _ => FindCoordinatorRequest::default().with_key(text(key)),
            };
            if version >= 1 { request.with_key_type(kind) } else { request }
        };
        // Kafka makes its topic of offsets when it is asked for the first time.
        for _ in 0..100 {
            let found = pair
                .call_tidied("before", version, |_| of("group", 0), |answer| *answer = <_>::default())
                .await;
            let ready = found.is_some_and(|found| {
                found.kafka.error_code == 0 && found.kafka.coordinators.iter().all(|one| one.error_code == 0)
            });
            if ready {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        pair.call("a group", version, |_| of("group", 0)).await;
        pair.call("a group without a name", version, |_| of("", 0)).await;
        if version >= 1 {
            for kind in [3, -1] {
                pair.call(&format!("a key of kind {kind}"), version, |_| of("group", kind)).await;
            }
        }
        if version >= 6 {
            pair.call("a share group's key", version, |_| of("group:AAAAAAAAAAAAAAAAAAAAAA:0", 2)).await;
            pair.call("a malformed share group's key", version, |_| of("group", 2)).await;
        }
    }
}
