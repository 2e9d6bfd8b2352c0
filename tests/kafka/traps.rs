//! What has bitten those who wrote brokers before: each trap has a test, by its number. These are elsewhere:
//!
//! * 1 (in part) and 14: `hostile::unknown_apis_and_versions_close_and_a_future_api_versions_is_told_ours`
//! * 3: every read of records in `fetch` and `fetch_sessions`, errors included
//! * 4: `fetch::an_offset_inside_a_batch_gets_the_whole_batch`,
//!   `fetch::the_first_batch_comes_however_large_and_later_ones_only_where_they_fit`,
//!   `fetch_sessions::partitions_take_turns_where_an_answer_has_room_for_one`
//! * 5: `fetch::less_than_min_bytes_is_waited_for`, `fetch::without_data_an_answer_comes_after_max_wait_and_not_before`,
//!   `fetch::errors_say_what_is_wrong_and_do_not_wait`, `fetch::closing_drops_a_parked_request`,
//!   `fetch::a_parked_request_is_answered_when_its_topic_is_deleted_or_made_anew`
//! * 6: `fetch_sessions`
//! * 7 (in part): `apis::metadata_finds_topics_by_id_where_the_version_allows_it`
//! * 9: `apis::offsets_are_listed_by_sentinel_and_by_time`
//! * 10: `src/group/classic/tests.rs`
//! * 11: `commits_are_accepted_from_members_of_the_generation_only` there,
//!   `groups::offsets_are_committed_fetched_and_deleted_in_every_version`
//! * 12: `consumer_groups`, and `src/group/consumer`
//! * 15: `hostile::ten_thousand_requests_at_once_are_answered_in_order`,
//!   `fetch::requests_behind_a_parked_one_are_answered_after_it`, `fetch::closing_drops_a_parked_request`
//! * 16: `versions::every_api_is_answered_in_every_version_that_is_advertised`
//! * 18: `src/log/record_batch`
//! * 20 (in part): `hostile::an_idle_client_is_let_go`
//! * 21 in test mode: `produce::a_topic_is_made_only_where_the_request_allows_it`
//! * 23 (in part): `apis::topics_are_described_page_by_page`

use std::time::Duration;

use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::Topics;
use uuid::Uuid;

use crate::groups::Broker;
use crate::memory_log::{MemoryLog, one};
use crate::support::Server;

const INVALID_REQUEST: i16 = 42;

fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn orders() -> TopicName {
    TopicName(s("orders"))
}

/// A broker with `orders`, of one record in its first partition.
async fn server(partitions: u32) -> (Server, Topics) {
    let (log, topic) = MemoryLog::with_topic("orders", partitions);
    log.commit(&[one(0)]);
    let topics = Topics::default();
    topics.insert(topic);
    (Server::start(topics.clone(), Limits::default()).await, topics)
}

fn hello(name: &str, version: &str) -> ApiVersionsRequest {
    ApiVersionsRequest::default().with_client_software_name(s(name)).with_client_software_version(s(version))
}

/// 1
#[tokio::test]
async fn api_versions_has_the_old_header_takes_an_old_client_id_and_checks_names() {
    let (server, _) = server(1).await;
    let mut client = server.client().await;
    for version in [3, 4] {
        // Key, version, correlation id, a client id with a length of two bytes, no tagged fields; name, version, none.
        let body = [0, 18, 0, version, 0, 0, 0, 7, 0, 1, b'c', 0, 2, b'n', 2, b'1', 0];
        let mut request = (body.len() as i32).to_be_bytes().to_vec();
        request.extend_from_slice(&body);
        client.send(&request).await;
        let answer = client.frame().await.unwrap();
        // Without tagged fields in the header the error follows the correlation id.
        assert_eq!(answer[..6], [0, 0, 0, 7, 0, 0]);
        assert_eq!(usize::from(answer[6]), millrace::kafka::api::ALL.len() + 1);
    }
    for (name, software_version) in [("", "1"), ("a b", "1"), ("-a", "1"), ("a", "1-"), ("a", "ö")] {
        for version in [3, 4] {
            let refused = client.call(version, &hello(name, software_version)).await;
            assert_eq!((refused.error_code, refused.api_keys.len()), (INVALID_REQUEST, 0), "{name}");
        }
    }
}

/// 1 and 13
#[tokio::test]
async fn the_feature_of_consumer_groups_is_finalized_and_old_clients_see_none_that_begins_at_0() {
    let (server, _) = server(1).await;
    let mut client = server.client().await;
    for version in [3, 4] {
        let answer = client.call(version, &hello("a", "1")).await;
        assert!(answer.finalized_features_epoch >= 0);
        let level = |name: &str| {
            let found = answer.finalized_features.iter().find(|feature| *feature.name == *name);
            found.map(|feature| (feature.min_version_level, feature.max_version_level))
        };
        assert_eq!(level("group.version"), Some((1, 1)));
        assert!(level("metadata.version").is_some());
        // KAFKA-17011
        let first = answer.supported_features.iter().map(|feature| feature.min_version).min();
        assert!(first.is_some_and(|first| version >= 4 || first > 0));
    }
}

/// 2 and 19
#[tokio::test]
async fn what_librdkafka_derives_its_features_from_is_advertised_and_telemetry_is_not() {
    let (server, _) = server(1).await;
    let served = server.client().await.call(3, &hello("a", "1")).await.api_keys;
    let range = |key: ApiKey| {
        let found = served.iter().find(|api| api.api_key == key as i16);
        found.map(|api| (api.min_version, api.max_version))
    };
    // Message format 2, throttling and zstd need these versions of both.
    assert!(range(ApiKey::Produce).is_some_and(|(min, max)| min <= 3 && max >= 7));
    assert!(range(ApiKey::Fetch).is_some_and(|(min, max)| min <= 4 && max >= 10));
    for key in 8..=14 {
        let key = ApiKey::try_from(key).unwrap();
        assert!(range(key).is_some(), "{key:?}");
    }
    // Sarama before 2025 does not negotiate: it speaks what Kafka 2.8 does.
    for (key, least) in [(ApiKey::Metadata, 10), (ApiKey::JoinGroup, 7), (ApiKey::OffsetCommit, 8)] {
        assert!(range(key).is_some_and(|(_, max)| max >= least), "{key:?}");
    }
    assert_eq!(range(ApiKey::GetTelemetrySubscriptions), None);
    assert_eq!(range(ApiKey::PushTelemetry), None);
}

fn fetch(id: Uuid, partition: FetchPartition) -> FetchRequest {
    let partition = partition.with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic_id(id).with_partitions(vec![partition]);
    FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![topic])
}

/// 7
#[tokio::test]
async fn a_topics_id_is_the_same_everywhere_and_over_a_restart() {
    let broker = Broker::start().await;
    let id = async |broker: &Broker| {
        let mut client = broker.server.client().await;
        let metadata = client.call(12, &MetadataRequest::default().with_topics(None)).await;
        let described = client.call(0, &DescribeTopicPartitionsRequest::default()).await;
        let id = metadata.topics[0].topic_id;
        assert!(!id.is_nil());
        assert_eq!(described.topics[0].topic_id, id);
        let mut fetched = async |id| client.call(13, &fetch(id, FetchPartition::default())).await.responses;
        let (here, elsewhere) = (fetched(id).await, fetched(Uuid::from_u128(1)).await);
        assert_eq!((here[0].partitions[0].error_code, elsewhere[0].partitions[0].error_code), (0, 100));
        id
    };
    let before = id(&broker).await;
    let broker = broker.restart().await;
    assert_eq!(id(&broker).await, before);
    broker.server.groups.shutdown().await;
}

/// 8
#[tokio::test]
async fn the_leader_epoch_is_the_same_in_all_answers_and_in_the_batches() {
    let mut broker = Broker::start().await;
    broker.write(1).await;
    let mut client = broker.server.client().await;
    let metadata = client.call(12, &MetadataRequest::default().with_topics(None)).await;
    let topic = &metadata.topics[0];
    let epoch = topic.partitions[0].leader_epoch;
    assert!(epoch >= 0 && topic.partitions.iter().all(|partition| partition.leader_epoch == epoch));

    let described = client.call(0, &DescribeTopicPartitionsRequest::default()).await;
    assert!(described.topics[0].partitions.iter().all(|partition| partition.leader_epoch == epoch));

    for timestamp in [-1, -2, -3, 0] {
        let asked =
            ListOffsetsPartition::default().with_timestamp(timestamp).with_current_leader_epoch(epoch);
        let asked = ListOffsetsTopic::default().with_name(orders()).with_partitions(vec![asked]);
        let listed = client.call(10, &ListOffsetsRequest::default().with_topics(vec![asked])).await;
        let partition = &listed.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.leader_epoch), (0, epoch), "{timestamp}");
    }

    let asked = OffsetForLeaderPartition::default().with_leader_epoch(epoch).with_current_leader_epoch(epoch);
    let asked = OffsetForLeaderTopic::default().with_topic(orders()).with_partitions(vec![asked]);
    let ends = client.call(4, &OffsetForLeaderEpochRequest::default().with_topics(vec![asked])).await;
    let end = &ends.topics[0].partitions[0];
    assert_eq!((end.error_code, end.leader_epoch, end.end_offset), (0, epoch, 1));

    let partition = FetchPartition::default().with_current_leader_epoch(epoch);
    let fetched = client.call(13, &fetch(topic.topic_id, partition)).await;
    let records = fetched.responses[0].partitions[0].records.clone().unwrap();
    assert_eq!(records[12..16], epoch.to_be_bytes());
    broker.server.groups.shutdown().await;
}

/// 17
#[tokio::test]
async fn every_answer_names_the_broker_in_the_same_way_and_by_a_literal_address() {
    let (server, _) = server(1).await;
    let mut client = server.client().await;
    let here = ("127.0.0.1".to_owned(), i32::from(server.address.port()));
    for version in 0..=13 {
        let brokers = client.call(version, &MetadataRequest::default()).await.brokers;
        assert_eq!((brokers[0].host.to_string(), brokers[0].port), here);
    }
    for version in 0..=2 {
        let brokers = client.call(version, &DescribeClusterRequest::default()).await.brokers;
        assert_eq!((brokers[0].host.to_string(), brokers[0].port), here);
    }
    for version in 0..=3 {
        let found = client.call(version, &FindCoordinatorRequest::default().with_key(s("g"))).await;
        assert_eq!((found.host.to_string(), found.port), here);
    }
    for version in 4..=6 {
        let asked = FindCoordinatorRequest::default().with_coordinator_keys(vec![s("g")]);
        let found = client.call(version, &asked).await.coordinators;
        assert_eq!((found[0].host.to_string(), found[0].port), here);
    }
}

/// 20
#[tokio::test]
async fn idle_connections_outlive_the_clients_own_limit_and_are_watched_by_tcp() {
    // Clients close after nine minutes what they do not use.
    assert!(Limits::default().idle_time >= Duration::from_secs(10 * 60));
    let (server, _) = server(1).await;
    let mut client = server.client().await;
    client.call(0, &ApiVersionsRequest::default()).await;
    const KEEPALIVE: &str = "02";
    let port = format!(":{:04X}", server.address.port());
    // Until the acknowledgement of the last answer has come there is another timer.
    let kept = async {
        loop {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let ours = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let mut timers = ours
                .filter(|fields| fields[1].ends_with(&port) && fields[3] == "01")
                .map(|fields| fields[5].starts_with(KEEPALIVE));
            if timers.next() == Some(true) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, kept).await.expect("no keepalive timer");
}

/// 21
#[tokio::test]
async fn asking_for_a_topic_does_not_make_it_whatever_the_client_allows() {
    let (server, topics) = server(1).await;
    let mut client = server.client().await;
    for version in 4..=13 {
        let asked = MetadataRequestTopic::default().with_name(Some(TopicName(s("nothing"))));
        let request =
            MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(true);
        // Retriable: a client that subscribes before there is the table finds it later.
        assert_eq!(client.call(version, &request).await.topics[0].error_code, 3);
    }
    assert_eq!(topics.all().len(), 1);
}

/// 22
#[tokio::test]
async fn a_client_in_a_rack_is_sent_to_no_other_replica() {
    let (server, _) = server(1).await;
    let mut client = server.client().await;
    for version in 11..=18 {
        let mut request = fetch(Uuid::from_u128(77), FetchPartition::default()).with_rack_id(s("rack"));
        if version < 13 {
            request.topics[0].topic_id = Uuid::nil();
            request.topics[0].topic = orders();
        }
        let answer = client.call(version, &request).await;
        let partition = &answer.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.preferred_read_replica.0), (0, -1));
        assert!(partition.records.as_ref().is_some_and(|records| !records.is_empty()));
    }
    let metadata = client.call(13, &MetadataRequest::default()).await;
    assert_eq!(metadata.brokers[0].rack, None);
}

/// 23
#[tokio::test]
async fn eligible_leaders_are_none_and_pages_have_limits_and_cursors() {
    let (server, _) = server(2_100).await;
    let mut client = server.client().await;
    let ask = |limit, cursor: Option<(&str, i32)>| {
        let cursor = cursor.map(|(topic, partition)| {
            Cursor::default().with_topic_name(TopicName(s(topic))).with_partition_index(partition)
        });
        DescribeTopicPartitionsRequest::default().with_response_partition_limit(limit).with_cursor(cursor)
    };
    for (limit, page) in [(i32::MAX, 2_000), (2_001, 2_000), (7, 7), (0, 1), (-5, 1)] {
        let answer = client.call(0, &ask(limit, None)).await;
        let partitions = &answer.topics[0].partitions;
        assert_eq!(partitions.len(), page);
        // Java's administration client fails over null, which the protocol allows.
        let none = |list: &Option<Vec<BrokerId>>| list.as_ref().is_some_and(Vec::is_empty);
        let without =
            |partition: &describe_topic_partitions_response::DescribeTopicPartitionsResponsePartition| {
                none(&partition.eligible_leader_replicas) && none(&partition.last_known_elr)
            };
        assert!(partitions.iter().all(without));
        let next = answer.next_cursor.unwrap();
        assert_eq!((next.topic_name, next.partition_index), (orders(), page as i32));
    }
    let rest = client.call(0, &ask(i32::MAX, Some(("orders", 2_000)))).await;
    assert_eq!((rest.topics[0].partitions.len(), rest.next_cursor), (100, None));

    let orders_only = vec![TopicRequest::default().with_name(orders())];
    for cursor in [("orders", -1), ("else", 0)] {
        let request = ask(10, Some(cursor)).with_topics(orders_only.clone());
        let refused = client.call(0, &request).await;
        assert_eq!((refused.topics[0].error_code, refused.topics[0].partitions.len()), (INVALID_REQUEST, 0));
    }
    // A topic that is not there is no partition.
    let both =
        ["nothing", "orders"].map(|name| TopicRequest::default().with_name(TopicName(s(name)))).to_vec();
    let page = client.call(0, &ask(1, None).with_topics(both)).await;
    let counts: Vec<_> = page.topics.iter().map(|topic| (topic.error_code, topic.partitions.len())).collect();
    assert_eq!(counts, [(3, 0), (0, 1)]);
    // Where all topics are wanted, that of the cursor may have gone meanwhile.
    let others = client.call(0, &ask(10, Some(("else", 3)))).await;
    assert_eq!((others.topics[0].error_code, others.topics[0].partitions.len()), (0, 10));
}
