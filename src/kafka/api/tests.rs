//! The shapes of all APIs against the protocol crate: what it writes passes the check, and what passes the check it
//! reads to the same end. A shape that leaves a field out, or has it in other versions, fails here.

mod administration;
mod compatibility;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use proptest::prelude::*;
use uuid::Uuid;

use super::ALL;
use crate::kafka::Api;
use crate::kafka::shape::skip;

fn s(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn encode(message: &impl Encodable, version: i16) -> Bytes {
    let mut body = BytesMut::new();
    message.encode(&mut body, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    body.freeze()
}

/// Decodes a request and gives what it left.
fn decode_as<T: Decodable>(mut body: Bytes, version: i16) -> Result<Bytes, String> {
    T::decode(&mut body, version).map(|_| body).map_err(|error| error.to_string())
}

fn decode(key: ApiKey, body: Bytes, version: i16) -> Result<Bytes, String> {
    match key {
        ApiKey::Produce => decode_as::<ProduceRequest>(body, version),
        ApiKey::InitProducerId => decode_as::<InitProducerIdRequest>(body, version),
        ApiKey::CreateTopics => decode_as::<CreateTopicsRequest>(body, version),
        ApiKey::DeleteTopics => decode_as::<DeleteTopicsRequest>(body, version),
        ApiKey::CreatePartitions => decode_as::<CreatePartitionsRequest>(body, version),
        ApiKey::Fetch => decode_as::<FetchRequest>(body, version),
        ApiKey::ListOffsets => decode_as::<ListOffsetsRequest>(body, version),
        ApiKey::Metadata => decode_as::<MetadataRequest>(body, version),
        ApiKey::OffsetCommit => decode_as::<OffsetCommitRequest>(body, version),
        ApiKey::OffsetFetch => decode_as::<OffsetFetchRequest>(body, version),
        ApiKey::FindCoordinator => decode_as::<FindCoordinatorRequest>(body, version),
        ApiKey::JoinGroup => decode_as::<JoinGroupRequest>(body, version),
        ApiKey::Heartbeat => decode_as::<HeartbeatRequest>(body, version),
        ApiKey::LeaveGroup => decode_as::<LeaveGroupRequest>(body, version),
        ApiKey::SyncGroup => decode_as::<SyncGroupRequest>(body, version),
        ApiKey::DescribeGroups => decode_as::<DescribeGroupsRequest>(body, version),
        ApiKey::ListGroups => decode_as::<ListGroupsRequest>(body, version),
        ApiKey::ApiVersions => decode_as::<ApiVersionsRequest>(body, version),
        ApiKey::OffsetForLeaderEpoch => decode_as::<OffsetForLeaderEpochRequest>(body, version),
        ApiKey::DescribeConfigs => decode_as::<DescribeConfigsRequest>(body, version),
        ApiKey::DeleteGroups => decode_as::<DeleteGroupsRequest>(body, version),
        ApiKey::OffsetDelete => decode_as::<OffsetDeleteRequest>(body, version),
        ApiKey::DescribeCluster => decode_as::<DescribeClusterRequest>(body, version),
        ApiKey::DescribeTopicPartitions => decode_as::<DescribeTopicPartitionsRequest>(body, version),
        ApiKey::ConsumerGroupHeartbeat => decode_as::<ConsumerGroupHeartbeatRequest>(body, version),
        ApiKey::ConsumerGroupDescribe => decode_as::<ConsumerGroupDescribeRequest>(body, version),
        other => administration::decode(other, body, version),
    }
}

/// A request with as little in it as can be, and one with every field and two of each element.
fn examples(key: ApiKey, v: i16) -> [Bytes; 2] {
    let topic = || TopicName(s("orders"));
    let group = || GroupId(s("group"));
    let twice = |name: &str| vec![name.to_owned(), format!("{name}-2")].into_iter().map(StrBytes::from);
    match key {
        ApiKey::Produce => {
            use produce_request::{PartitionProduceData, TopicProduceData};
            let partition = PartitionProduceData::default().with_records(Some(Bytes::from_static(&[1; 300])));
            let mut data =
                TopicProduceData::default().with_partition_data(vec![partition.clone(), partition]);
            match v {
                13.. => data.topic_id = Uuid::from_u128(5),
                _ => data.name = topic(),
            }
            let full = ProduceRequest::default()
                .with_transactional_id(Some(TransactionalId(s("t"))))
                .with_acks(-1)
                .with_topic_data(vec![data.clone(), data]);
            [encode(&ProduceRequest::default(), v), encode(&full, v)]
        }
        ApiKey::InitProducerId => {
            let mut full =
                InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(s("t"))));
            if v >= 3 {
                full.producer_id = 7.into();
                full.producer_epoch = 1;
            }
            [encode(&InitProducerIdRequest::default(), v), encode(&full, v)]
        }
        ApiKey::CreateTopics => {
            use create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig};
            let assigned = CreatableReplicaAssignment::default().with_broker_ids(vec![0.into(), 1.into()]);
            let config =
                CreatableTopicConfig::default().with_name(s("retention.ms")).with_value(Some(s("1")));
            let made = CreatableTopic::default()
                .with_name(topic())
                .with_assignments(vec![assigned.clone(), assigned])
                .with_configs(vec![config.clone(), config]);
            let full = CreateTopicsRequest::default().with_topics(vec![made.clone(), made]);
            [encode(&CreateTopicsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DeleteTopics => {
            use delete_topics_request::DeleteTopicState;
            let full = DeleteTopicsRequest::default();
            let full = match v {
                6.. => {
                    let state = DeleteTopicState::default().with_name(Some(topic()));
                    full.with_topics(vec![state.clone(), state.with_name(None).with_topic_id(Uuid::max())])
                }
                _ => full.with_topic_names(vec![topic(), topic()]),
            };
            [encode(&DeleteTopicsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::CreatePartitions => {
            use create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
            let assigned = CreatePartitionsAssignment::default().with_broker_ids(vec![0.into(), 1.into()]);
            let asked = CreatePartitionsTopic::default()
                .with_name(topic())
                .with_count(7)
                .with_assignments(Some(vec![assigned.clone(), assigned]));
            let full = CreatePartitionsRequest::default().with_topics(vec![asked.clone(), asked]);
            [encode(&CreatePartitionsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::Fetch => {
            use fetch_request::{FetchPartition, FetchTopic, ForgottenTopic, ReplicaState};
            let mut partition =
                FetchPartition::default().with_fetch_offset(7).with_partition_max_bytes(1 << 20);
            if v >= 17 {
                partition.replica_directory_id = Uuid::from_u128(9);
            }
            if v >= 18 {
                partition.high_watermark = 5;
            }
            let mut asked = FetchTopic::default().with_partitions(vec![partition.clone(), partition]);
            let mut forgotten = ForgottenTopic::default().with_partitions(vec![1, 2]);
            let mut full = FetchRequest::default().with_max_wait_ms(500).with_min_bytes(1);
            match v {
                13.. => {
                    asked.topic_id = Uuid::from_u128(5);
                    forgotten.topic_id = Uuid::from_u128(6);
                }
                _ => {
                    asked.topic = topic();
                    forgotten.topic = topic();
                }
            }
            full.topics = vec![asked.clone(), asked];
            if v >= 7 {
                full.forgotten_topics_data = vec![forgotten.clone(), forgotten];
            }
            if v >= 11 {
                full.rack_id = s("rack");
            }
            if v >= 12 {
                full.cluster_id = Some(s("cluster"));
            }
            if v >= 15 {
                full.replica_state = ReplicaState::default().with_replica_id(3.into()).with_replica_epoch(4);
            }
            [encode(&FetchRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ListOffsets => {
            use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
            let partition = ListOffsetsPartition::default().with_timestamp(-1);
            let asked = ListOffsetsTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition.clone(), partition]);
            let full = ListOffsetsRequest::default().with_topics(vec![asked.clone(), asked]);
            [encode(&ListOffsetsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::Metadata => {
            use metadata_request::MetadataRequestTopic;
            let mut asked = MetadataRequestTopic::default().with_name(Some(topic()));
            if v >= 10 {
                asked.topic_id = Uuid::from_u128(5);
            }
            let full = MetadataRequest::default().with_topics(Some(vec![asked.clone(), asked]));
            [encode(&MetadataRequest::default().with_topics((v == 0).then(Vec::new)), v), encode(&full, v)]
        }
        ApiKey::OffsetCommit => {
            use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
            let partition = OffsetCommitRequestPartition::default().with_committed_metadata(Some(s("m")));
            let asked = OffsetCommitRequestTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition.clone(), partition]);
            let mut full = OffsetCommitRequest::default()
                .with_group_id(group())
                .with_member_id(s("m"))
                .with_topics(vec![asked.clone(), asked]);
            if v >= 7 {
                full.group_instance_id = Some(s("i"));
            }
            [encode(&OffsetCommitRequest::default(), v), encode(&full, v)]
        }
        ApiKey::OffsetFetch => {
            use offset_fetch_request::*;
            let mut full = OffsetFetchRequest::default();
            if v >= 8 {
                let asked =
                    OffsetFetchRequestTopics::default().with_name(topic()).with_partition_indexes(vec![1, 2]);
                let mut of_group = OffsetFetchRequestGroup::default()
                    .with_group_id(group())
                    .with_topics(Some(vec![asked.clone(), asked]));
                if v >= 9 {
                    of_group.member_id = Some(s("m"));
                }
                full.groups = vec![of_group.clone(), of_group];
            } else {
                let asked =
                    OffsetFetchRequestTopic::default().with_name(topic()).with_partition_indexes(vec![1, 2]);
                full.group_id = group();
                full.topics = Some(vec![asked.clone(), asked]);
            }
            [encode(&OffsetFetchRequest::default(), v), encode(&full, v)]
        }
        ApiKey::FindCoordinator => {
            let full = match v {
                4.. => FindCoordinatorRequest::default().with_coordinator_keys(twice("group").collect()),
                _ => FindCoordinatorRequest::default().with_key(s("group")),
            };
            [encode(&FindCoordinatorRequest::default(), v), encode(&full, v)]
        }
        ApiKey::JoinGroup => {
            use join_group_request::JoinGroupRequestProtocol;
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(s("range"))
                .with_metadata(Bytes::from_static(&[1; 50]));
            let mut full = JoinGroupRequest::default()
                .with_group_id(group())
                .with_member_id(s("m"))
                .with_protocol_type(s("consumer"))
                .with_protocols(vec![protocol.clone(), protocol]);
            if v >= 5 {
                full.group_instance_id = Some(s("i"));
            }
            if v >= 8 {
                full.reason = Some(s("why"));
            }
            [encode(&JoinGroupRequest::default(), v), encode(&full, v)]
        }
        ApiKey::Heartbeat => {
            let mut full = HeartbeatRequest::default().with_group_id(group()).with_member_id(s("m"));
            if v >= 3 {
                full.group_instance_id = Some(s("i"));
            }
            [encode(&HeartbeatRequest::default(), v), encode(&full, v)]
        }
        ApiKey::LeaveGroup => {
            use leave_group_request::MemberIdentity;
            let mut member =
                MemberIdentity::default().with_member_id(s("m")).with_group_instance_id(Some(s("i")));
            if v >= 5 {
                member.reason = Some(s("why"));
            }
            let full = match v {
                3.. => LeaveGroupRequest::default().with_members(vec![member.clone(), member]),
                _ => LeaveGroupRequest::default().with_member_id(s("m")),
            };
            [encode(&LeaveGroupRequest::default(), v), encode(&full.with_group_id(group()), v)]
        }
        ApiKey::SyncGroup => {
            use sync_group_request::SyncGroupRequestAssignment;
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(s("m"))
                .with_assignment(Bytes::from_static(&[1; 50]));
            let mut full = SyncGroupRequest::default()
                .with_group_id(group())
                .with_member_id(s("m"))
                .with_assignments(vec![assignment.clone(), assignment]);
            if v >= 3 {
                full.group_instance_id = Some(s("i"));
            }
            if v >= 5 {
                full.protocol_type = Some(s("consumer"));
                full.protocol_name = Some(s("range"));
            }
            [encode(&SyncGroupRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeGroups => {
            let full = DescribeGroupsRequest::default().with_groups(vec![group(), group()]);
            [encode(&DescribeGroupsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ListGroups => {
            let mut full = ListGroupsRequest::default();
            if v >= 4 {
                full.states_filter = twice("Stable").collect();
            }
            if v >= 5 {
                full.types_filter = twice("classic").collect();
            }
            [encode(&ListGroupsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ApiVersions => {
            let full = ApiVersionsRequest::default()
                .with_client_software_name(s("client"))
                .with_client_software_version(s("1.0"));
            let full = if v >= 3 { full } else { ApiVersionsRequest::default() };
            [encode(&ApiVersionsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::OffsetForLeaderEpoch => {
            use offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
            let partition = OffsetForLeaderPartition::default().with_leader_epoch(1);
            let asked = OffsetForLeaderTopic::default()
                .with_topic(topic())
                .with_partitions(vec![partition.clone(), partition]);
            let full = OffsetForLeaderEpochRequest::default().with_topics(vec![asked.clone(), asked]);
            let least = OffsetForLeaderEpochRequest::default();
            [encode(&least, v), encode(&full, v)]
        }
        ApiKey::DescribeConfigs => {
            use describe_configs_request::DescribeConfigsResource;
            let resource = DescribeConfigsResource::default()
                .with_resource_name(s("orders"))
                .with_configuration_keys(Some(twice("key").collect()));
            let full = DescribeConfigsRequest::default().with_resources(vec![resource.clone(), resource]);
            [encode(&DescribeConfigsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DeleteGroups => {
            let full = DeleteGroupsRequest::default().with_groups_names(vec![group(), group()]);
            [encode(&DeleteGroupsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::OffsetDelete => {
            use offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
            let partition = OffsetDeleteRequestPartition::default().with_partition_index(7);
            let topic = OffsetDeleteRequestTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition.clone(), partition]);
            let full =
                OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![topic.clone(), topic]);
            [encode(&OffsetDeleteRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ConsumerGroupHeartbeat => {
            use consumer_group_heartbeat_request::TopicPartitions;
            let owned =
                TopicPartitions::default().with_topic_id(Uuid::from_u128(5)).with_partitions(vec![1, 2]);
            let mut full = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group())
                .with_member_id(s("member"))
                .with_instance_id(Some(s("instance")))
                .with_rack_id(Some(s("rack")))
                .with_subscribed_topic_names(Some(vec![topic(), topic()]))
                .with_server_assignor(Some(s("uniform")))
                .with_topic_partitions(Some(vec![owned.clone(), owned]));
            if v >= 1 {
                full.subscribed_topic_regex = Some(s("o.*"));
            }
            [encode(&ConsumerGroupHeartbeatRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ConsumerGroupDescribe => {
            let full = ConsumerGroupDescribeRequest::default()
                .with_group_ids(twice("group").map(GroupId).collect())
                .with_include_authorized_operations(true);
            [encode(&ConsumerGroupDescribeRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeCluster => {
            let full = DescribeClusterRequest::default().with_include_cluster_authorized_operations(true);
            [encode(&DescribeClusterRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeTopicPartitions => {
            use describe_topic_partitions_request::{Cursor, TopicRequest};
            let asked = TopicRequest::default().with_name(topic());
            let full = DescribeTopicPartitionsRequest::default()
                .with_topics(vec![asked.clone(), asked])
                .with_cursor(Some(Cursor::default().with_topic_name(topic())));
            [encode(&DescribeTopicPartitionsRequest::default(), v), encode(&full, v)]
        }
        other => administration::examples(other, v),
    }
}

/// What the check leaves of a body.
fn checks(api: &Api, body: &[u8], version: i16) -> Option<Vec<u8>> {
    skip(body, api.shape, version, version >= api.flexible_from).ok().map(<[u8]>::to_vec)
}

#[test]
fn what_the_protocol_crate_writes_passes_the_check_in_every_version_and_no_cut_of_it_does() {
    for api in ALL {
        for version in api.versions.0..=api.versions.1 {
            for body in examples(api.key, version) {
                assert_eq!(checks(api, &body, version), Some(vec![]), "{:?} {version}: {body:02x?}", api.key);
                assert_eq!(decode(api.key, body.clone(), version), Ok(Bytes::new()));
                for end in 0..body.len() {
                    assert_eq!(checks(api, &body[..end], version), None, "{:?} {version} at {end}", api.key);
                }
            }
        }
    }
}

#[test]
fn headers_are_flexible_where_the_protocol_says_so() {
    for api in ALL {
        for version in api.versions.0..=api.versions.1 {
            let expected = if version >= api.flexible_from { 2 } else { 1 };
            assert_eq!(api.key.request_header_version(version), expected, "{:?} {version}", api.key);
        }
    }
}

#[test]
fn a_key_is_registered_once() {
    let mut keys: Vec<i16> = ALL.iter().map(|api| api.key as i16).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), ALL.len());
}

fn any_api() -> impl Strategy<Value = (&'static Api, i16)> {
    proptest::sample::select(ALL).prop_flat_map(|api| (Just(api), api.versions.0..=api.versions.1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn bytes_that_pass_the_check_are_read_to_the_same_end_or_refused(
        (api, version) in any_api(),
        full: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let [least, most] = examples(api.key, version);
        let mut body = if full { most } else { least }.to_vec();
        if !body.is_empty() {
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        if let Some(left) = checks(api, &body, version)
            && let Ok(also_left) = decode(api.key, body.into(), version)
        {
            prop_assert_eq!(left, also_left, "{:?} {}", api.key, version);
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic((api, version) in any_api(), body: Vec<u8>) {
        if checks(api, &body, version).is_some() {
            let _ = decode(api.key, body.into(), version);
        }
    }
}
