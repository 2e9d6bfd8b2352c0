//! What tools ask of a cluster: topics made and deleted, settings, log directories, and much that one broker has none of.

use std::sync::Arc;

use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Request, StrBytes};
use uuid::Uuid;

use crate::pair::{Court, Names, Pair};
use crate::seed::{make, text, topic};

pub async fn judge(court: &Arc<Court>) {
    let mut pair = court.pair();
    topics(&mut pair).await;
    records(&mut pair).await;
    settings(&mut pair).await;
    logs(&mut pair).await;
    access(&mut pair).await;
    quotas_and_users(&mut pair).await;
    producers(&mut pair).await;
    replicas(&mut pair).await;
    cluster(&mut pair).await;
}

/// Asks in every version that both serve.
async fn each<R>(pair: &mut Pair, situation: &str, request: impl Fn(i16, &Names) -> R)
where
    R: Request + std::fmt::Debug,
    R::Response: Clone + std::fmt::Debug,
{
    for version in pair.court.versions(ApiKey::try_from(R::KEY).unwrap()) {
        pair.call(situation, version, |names| request(version, names)).await;
    }
}

async fn topics(pair: &mut Pair) {
    use create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig};
    let of = |name: &str, partitions: i32, replicas: i16| {
        CreatableTopic::default()
            .with_name(topic(name))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
    };
    let request = |topics: Vec<CreatableTopic>| {
        CreateTopicsRequest::default().with_topics(topics).with_timeout_ms(10_000)
    };
    let ids = |answer: &mut CreateTopicsResponse| {
        for topic in &mut answer.topics {
            // New ones are all different; whether there is one is what counts.
            topic.topic_id = Uuid::from_u128(u128::from(!topic.topic_id.is_nil()));
            topic.configs = topic.configs.take().map(|_| Vec::new());
        }
    };
    for version in pair.court.versions(ApiKey::CreateTopics) {
        let name = format!("created-{version}");
        let validate = |_: &Names| request(vec![of(&name, 2, 1)]).with_validate_only(true);
        pair.call_tidied("validated only", version, validate, ids).await;
        pair.call_tidied("created", version, |_| request(vec![of(&name, 2, 1)]), ids).await;
        pair.call_tidied("created again", version, |_| request(vec![of(&name, 2, 1)]), ids).await;
        let doubled = format!("doubled-{version}");
        let twice = |_: &Names| request(vec![of(&doubled, 2, 1), of(&doubled, 2, 1)]);
        pair.call_tidied("twice in a request", version, twice, ids).await;
        for (situation, name, partitions, replicas) in [
            ("no partitions", "wrong", 0, 1),
            ("fewer than no partitions", "wrong", -2, 1),
            ("no replicas", "wrong", 1, 0),
            ("more replicas than brokers", "wrong", 1, 3),
            ("no name", "", 1, 1),
            ("a wrong name", "no name!", 1, 1),
            ("a dot", ".", 1, 1),
            ("too many partitions", "wrong", 2_000_000, 1),
        ] {
            pair.call_tidied(situation, version, |_| request(vec![of(name, partitions, replicas)]), ids)
                .await;
        }
        let long = "x".repeat(250);
        pair.call_tidied("a long name", version, |_| request(vec![of(&long, 1, 1)]), ids).await;
        if version >= 4 {
            let name = format!("defaults-{version}");
            pair.call_tidied("defaults", version, |_| request(vec![of(&name, -1, -1)]), ids).await;
        }
        let assignment = |index: i32, broker: i32| {
            CreatableReplicaAssignment::default()
                .with_partition_index(index)
                .with_broker_ids(vec![broker.into()])
        };
        for (situation, partitions, broker) in
            [("assigned", -1, 0), ("assigned to an unknown broker", -1, 7), ("assigned and counted", 1, 0)]
        {
            let name = format!("assigned-{version}-{partitions}-{broker}");
            let assigned = of(&name, partitions, -1).with_assignments(vec![assignment(0, broker)]);
            pair.call_tidied(situation, version, |_| request(vec![assigned.clone()]), ids).await;
        }
        for (name, value) in [("retention.ms", "1000"), ("retention.ms", "soon"), ("nonsense", "1")] {
            let config = CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)));
            let new = of(&format!("set-{version}-{value}"), 1, 1).with_configs(vec![config]);
            let situation = format!("with {name} {value}");
            pair.call_tidied(&situation, version, |_| request(vec![new.clone()]), ids).await;
        }
        pair.call_tidied("nothing created", version, |_| request(vec![]), ids).await;
    }

    use create_partitions_request::CreatePartitionsTopic;
    if !pair.court.versions(ApiKey::CreatePartitions).is_empty() {
        make(pair, "growing-wider").await;
    }
    let wider = |name: &str, count: i32| {
        let topic =
            CreatePartitionsTopic::default().with_name(topic(name)).with_count(count).with_assignments(None);
        CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000)
    };
    each(pair, "as many partitions as there are", |version, _| {
        wider("growing-wider", 4 + i32::from(version))
    })
    .await;
    each(pair, "one more", |version, _| wider("growing-wider", 5 + i32::from(version))).await;
    each(pair, "fewer", |_, _| wider("growing-wider", 2)).await;
    each(pair, "none", |_, _| wider("growing-wider", 0)).await;
    each(pair, "of an unknown topic", |_, _| wider("unknown", 9)).await;
    each(pair, "validated only", |_, _| wider("growing-wider", 90).with_validate_only(true)).await;

    use delete_topics_request::DeleteTopicState;
    let by_name = |version: i16, names: &[&str]| {
        let request = DeleteTopicsRequest::default().with_timeout_ms(10_000);
        match version {
            6.. => {
                let state = |name: &&str| DeleteTopicState::default().with_name(Some(topic(name)));
                request.with_topics(names.iter().map(state).collect())
            }
            _ => request.with_topic_names(names.iter().map(|name| topic(name)).collect()),
        }
    };
    for version in pair.court.versions(ApiKey::DeleteTopics) {
        let name = format!("deleted-{version}");
        make(pair, &name).await;
        let tidy = |answer: &mut DeleteTopicsResponse| {
            for topic in &mut answer.responses {
                topic.topic_id = Uuid::from_u128(u128::from(!topic.topic_id.is_nil()));
            }
        };
        pair.call_tidied("deleted", version, |_| by_name(version, &[&name]), tidy).await;
        pair.call_tidied("deleted again", version, |_| by_name(version, &[&name]), tidy).await;
        pair.call_tidied("unknown topics", version, |_| by_name(version, &["unknown", "no name!"]), tidy)
            .await;
        pair.call_tidied("no topics", version, |_| by_name(version, &[]), tidy).await;
        if version >= 6 {
            let by_id = |id: Uuid, name: Option<&str>| {
                let state = DeleteTopicState::default().with_name(name.map(topic)).with_topic_id(id);
                DeleteTopicsRequest::default().with_topics(vec![state]).with_timeout_ms(10_000)
            };
            let name = format!("deleted-by-id-{version}");
            make(pair, &name).await;
            let both = |names: &Names| by_id(names.topic_id(&name), Some(&name));
            pair.call_tidied("by name and id", version, both, tidy).await;
            pair.call_tidied("by id", version, |names| by_id(names.topic_id(&name), None), tidy).await;
            pair.call_tidied("by an unknown id", version, |_| by_id(Uuid::from_u128(9), None), tidy).await;
            pair.call_tidied("by nothing", version, |_| by_id(Uuid::nil(), None), tidy).await;
        }
    }
}

async fn records(pair: &mut Pair) {
    use delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
    if pair.court.versions(ApiKey::DeleteRecords).is_empty() {
        return;
    }
    make(pair, "shortened").await;
    for _ in 0..12 {
        let records = crate::records::batch(&[1_000], 20);
        pair.call("more records", 9, |_| crate::seed::produce("shortened", 0, records.clone())).await;
    }
    let before = |name: &str, partition: i32, offset: i64| {
        let partition = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(offset);
        let of = DeleteRecordsTopic::default().with_name(topic(name)).with_partitions(vec![partition]);
        DeleteRecordsRequest::default().with_topics(vec![of]).with_timeout_ms(10_000)
    };
    each(pair, "some records", |version, _| before("shortened", 0, 2 + i64::from(version))).await;
    each(pair, "records that are gone", |_, _| before("shortened", 0, 1)).await;
    each(pair, "beyond the end", |_, _| before("shortened", 0, 100)).await;
    each(pair, "a negative offset", |_, _| before("shortened", 0, -5)).await;
    each(pair, "an unknown partition", |_, _| before("shortened", 9, 1)).await;
    each(pair, "an unknown topic", |_, _| before("unknown", 0, 1)).await;
    each(pair, "all records", |_, _| before("shortened", 0, -1)).await;
}

async fn settings(pair: &mut Pair) {
    use describe_configs_request::DescribeConfigsResource;
    const TOPIC: i8 = 2;
    const BROKER: i8 = 4;
    let of = |kind: i8, name: &str, keys: Option<&[&str]>| {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
            .with_configuration_keys(keys.map(|keys| keys.iter().map(|key| text(key)).collect()));
        DescribeConfigsRequest::default().with_resources(vec![resource])
    };
    let keys: Option<&[&str]> = Some(&["cleanup.policy", "nonsense"]);
    each(pair, "a setting of a topic", |_, _| of(TOPIC, "seed", keys)).await;
    each(pair, "with synonyms", |_, _| of(TOPIC, "seed", keys).with_include_synonyms(true)).await;
    each(pair, "no setting", |_, _| of(TOPIC, "seed", Some(&[]))).await;
    each(pair, "an unknown topic", |_, _| of(TOPIC, "unknown", keys)).await;
    each(pair, "a wrong name", |_, _| of(TOPIC, "no name!", keys)).await;
    each(pair, "a topic without a name", |_, _| of(TOPIC, "", keys)).await;
    each(pair, "another broker", |_, _| of(BROKER, "7", keys)).await;
    each(pair, "a broker that is no number", |_, _| of(BROKER, "one", keys)).await;
    each(pair, "an unknown kind", |_, _| of(99, "seed", keys)).await;

    use alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let set = |kind: i8, name: &str, key: &str, value: Option<&str>| {
        let config = AlterableConfig::default().with_name(text(key)).with_value(value.map(text));
        let resource = AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
            .with_configs(vec![config]);
        AlterConfigsRequest::default().with_resources(vec![resource]).with_validate_only(true)
    };
    each(pair, "an unknown setting", |_, _| set(TOPIC, "seed", "nonsense", Some("1"))).await;
    each(pair, "a wrong value", |_, _| set(TOPIC, "seed", "retention.ms", Some("soon"))).await;
    each(pair, "no value", |_, _| set(TOPIC, "seed", "retention.ms", None)).await;
    each(pair, "an unknown topic", |_, _| set(TOPIC, "unknown", "retention.ms", Some("1"))).await;
    each(pair, "an unknown kind", |_, _| set(99, "seed", "retention.ms", Some("1"))).await;

    use incremental_alter_configs_request as incremental;
    let change = |kind: i8, name: &str, key: &str, operation: i8, value: Option<&str>| {
        let config = incremental::AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(operation)
            .with_value(value.map(text));
        let resource = incremental::AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
            .with_configs(vec![config]);
        IncrementalAlterConfigsRequest::default().with_resources(vec![resource]).with_validate_only(true)
    };
    each(pair, "an unknown setting", |_, _| change(TOPIC, "seed", "nonsense", 0, Some("1"))).await;
    each(pair, "a wrong value", |_, _| change(TOPIC, "seed", "retention.ms", 0, Some("soon"))).await;
    each(pair, "no value", |_, _| change(TOPIC, "seed", "retention.ms", 0, None)).await;
    each(pair, "an unknown operation", |_, _| change(TOPIC, "seed", "retention.ms", 9, Some("1"))).await;
    each(pair, "appending to a number", |_, _| change(TOPIC, "seed", "retention.ms", 2, Some("1"))).await;
    each(pair, "an unknown topic", |_, _| change(TOPIC, "unknown", "retention.ms", 0, Some("1"))).await;
    each(pair, "an unknown kind", |_, _| change(99, "seed", "retention.ms", 0, Some("1"))).await;

    for version in pair.court.versions(ApiKey::ListConfigResources) {
        let of = |kinds: &[i8]| {
            let request = ListConfigResourcesRequest::default();
            if version >= 1 { request.with_resource_types(kinds.to_vec()) } else { request }
        };
        for kinds in [&[16_i8][..], &[BROKER], &[8], &[99]] {
            pair.call(&format!("of kinds {kinds:?}"), version, |_| of(kinds)).await;
        }
    }
}

async fn logs(pair: &mut Pair) {
    use describe_log_dirs_request::DescribableLogDirTopic;
    let tidy = |answer: &mut DescribeLogDirsResponse| {
        for directory in &mut answer.results {
            directory.log_dir = text("directory");
            directory.total_bytes = directory.total_bytes.min(1);
            directory.usable_bytes = directory.usable_bytes.min(1);
            let partitions = directory.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
            // Batches may be cut otherwise.
            partitions.for_each(|partition| partition.partition_size = partition.partition_size.min(1));
        }
    };
    let of = |name: &str, partitions: &[i32]| {
        let of =
            DescribableLogDirTopic::default().with_topic(topic(name)).with_partitions(partitions.to_vec());
        DescribeLogDirsRequest::default().with_topics(Some(vec![of]))
    };
    for version in pair.court.versions(ApiKey::DescribeLogDirs) {
        pair.call_tidied("a topic", version, |_| of("seed", &[0, 1, 9]), tidy).await;
        pair.call_tidied("an empty topic", version, |_| of("empty", &[0]), tidy).await;
        pair.call_tidied("an unknown topic", version, |_| of("unknown", &[0]), tidy).await;
        let nothing = |_: &Names| DescribeLogDirsRequest::default().with_topics(Some(Vec::new()));
        pair.call_tidied("nothing", version, nothing, tidy).await;
    }
}

async fn access(pair: &mut Pair) {
    const ANY: i8 = 1;
    let any = DescribeAclsRequest::default()
        .with_resource_type_filter(ANY)
        .with_pattern_type_filter(ANY)
        .with_operation(ANY)
        .with_permission_type(ANY);
    each(pair, "all", |_, _| any.clone()).await;
    let creation = create_acls_request::AclCreation::default()
        .with_resource_type(2)
        .with_resource_name(text("seed"))
        .with_resource_pattern_type(3)
        .with_principal(text("User:somebody"))
        .with_host(text("*"))
        .with_operation(3)
        .with_permission_type(3);
    each(pair, "one", |_, _| CreateAclsRequest::default().with_creations(vec![creation.clone()])).await;
    let filter = delete_acls_request::DeleteAclsFilter::default()
        .with_resource_type_filter(ANY)
        .with_pattern_type_filter(ANY)
        .with_operation(ANY)
        .with_permission_type(ANY);
    each(pair, "all", |_, _| DeleteAclsRequest::default().with_filters(vec![filter.clone()])).await;
}

async fn quotas_and_users(pair: &mut Pair) {
    use describe_client_quotas_request::ComponentData;
    let of = |kind: &str, matching: i8, name: Option<&str>| {
        let component = ComponentData::default()
            .with_entity_type(text(kind))
            .with_match_type(matching)
            .with_match(name.map(text));
        DescribeClientQuotasRequest::default().with_components(vec![component])
    };
    each(pair, "all", |_, _| DescribeClientQuotasRequest::default()).await;
    each(pair, "of a user", |_, _| of("user", 0, Some("somebody"))).await;
    each(pair, "of any client", |_, _| of("client-id", 2, None)).await;
    each(pair, "of an unknown kind", |_, _| of("nonsense", 2, None)).await;
    each(pair, "matched somehow", |_, _| of("user", 9, None)).await;
    use alter_client_quotas_request::{EntityData, EntryData, OpData};
    let entity =
        EntityData::default().with_entity_type(text("user")).with_entity_name(Some(text("somebody")));
    let limit = OpData::default().with_key(text("producer_byte_rate")).with_value(1_000.0);
    let entry = EntryData::default().with_entity(vec![entity]).with_ops(vec![limit]);
    let limited = AlterClientQuotasRequest::default().with_entries(vec![entry]).with_validate_only(true);
    each(pair, "of a user", |_, _| limited.clone()).await;
    let users = |names: &[&str]| {
        let user =
            |name: &&str| describe_user_scram_credentials_request::UserName::default().with_name(text(name));
        DescribeUserScramCredentialsRequest::default().with_users(Some(names.iter().map(user).collect()))
    };
    each(pair, "all", |_, _| DescribeUserScramCredentialsRequest::default().with_users(None)).await;
    each(pair, "a user", |_, _| users(&["somebody"])).await;
    each(pair, "a user twice", |_, _| users(&["somebody", "somebody"])).await;
    let gone = alter_user_scram_credentials_request::ScramCredentialDeletion::default()
        .with_name(text("somebody"))
        .with_mechanism(1);
    let delete = AlterUserScramCredentialsRequest::default().with_deletions(vec![gone]);
    each(pair, "an unknown user is deleted", |_, _| delete.clone()).await;
}

async fn producers(pair: &mut Pair) {
    use describe_producers_request::TopicRequest;
    let of = |name: &str, partitions: &[i32]| {
        let of = TopicRequest::default().with_name(topic(name)).with_partition_indexes(partitions.to_vec());
        DescribeProducersRequest::default().with_topics(vec![of])
    };
    each(pair, "a topic", |_, _| of("seed", &[0, 1, 9])).await;
    each(pair, "an unknown topic", |_, _| of("unknown", &[0])).await;
    each(pair, "a wrong name", |_, _| of("no name!", &[0])).await;
    let transactions = |names: &[&str]| {
        let ids = names.iter().map(|name| TransactionalId(text(name))).collect();
        DescribeTransactionsRequest::default().with_transactional_ids(ids)
    };
    each(pair, "unknown transactions", |_, _| transactions(&["one", "two"])).await;
    each(pair, "a transaction without a name", |_, _| transactions(&[""])).await;
    each(pair, "all", |_, _| ListTransactionsRequest::default()).await;
    for state in ["Ongoing", "nonsense"] {
        let request = ListTransactionsRequest::default().with_state_filters(vec![text(state)]);
        each(pair, &format!("in state {state}"), |_, _| request.clone()).await;
    }
}

async fn replicas(pair: &mut Pair) {
    let elect = |version: i16, kind: i8, name: &str, partitions: &[i32]| {
        let of = elect_leaders_request::TopicPartitions::default()
            .with_topic(topic(name))
            .with_partitions(partitions.to_vec());
        let request =
            ElectLeadersRequest::default().with_topic_partitions(Some(vec![of])).with_timeout_ms(5_000);
        if version >= 1 { request.with_election_type(kind) } else { request }
    };
    each(pair, "the preferred leader", |version, _| elect(version, 0, "seed", &[0, 9])).await;
    each(pair, "an unclean leader", |version, _| elect(version, 1, "seed", &[0])).await;
    each(pair, "of an unknown topic", |version, _| elect(version, 0, "unknown", &[0])).await;

    use list_partition_reassignments_request::ListPartitionReassignmentsTopics;
    let of = |name: &str| {
        let of = ListPartitionReassignmentsTopics::default()
            .with_name(topic(name))
            .with_partition_indexes(vec![0, 9]);
        ListPartitionReassignmentsRequest::default().with_topics(Some(vec![of])).with_timeout_ms(5_000)
    };
    each(pair, "all", |_, _| of("seed").with_topics(None)).await;
    each(pair, "a topic", |_, _| of("seed")).await;
    each(pair, "an unknown topic", |_, _| of("unknown")).await;

    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let to = |name: &str, partition: i32, brokers: Option<&[i32]>| {
        let partition = ReassignablePartition::default()
            .with_partition_index(partition)
            .with_replicas(brokers.map(|brokers| brokers.iter().map(|id| BrokerId(*id)).collect()));
        let of = ReassignableTopic::default().with_name(topic(name)).with_partitions(vec![partition]);
        AlterPartitionReassignmentsRequest::default().with_topics(vec![of]).with_timeout_ms(5_000)
    };
    each(pair, "where it is", |_, _| to("seed", 0, Some(&[0]))).await;
    each(pair, "to an unknown broker", |_, _| to("seed", 0, Some(&[7]))).await;
    each(pair, "of an unknown partition", |_, _| to("seed", 9, Some(&[0]))).await;
    each(pair, "of an unknown topic", |_, _| to("unknown", 0, Some(&[0]))).await;
    each(pair, "cancelled", |_, _| to("seed", 0, None)).await;

    use alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
    let of = AlterReplicaLogDirTopic::default().with_name(topic("seed")).with_partitions(vec![0, 9]);
    let directory = AlterReplicaLogDir::default().with_path(text("/nowhere")).with_topics(vec![of]);
    each(pair, "elsewhere", |_, _| AlterReplicaLogDirsRequest::default().with_dirs(vec![directory.clone()]))
        .await;
}

async fn cluster(pair: &mut Pair) {
    use describe_quorum_request::{PartitionData, TopicData};
    let of = |name: &str, partition: i32| {
        let partition = PartitionData::default().with_partition_index(partition);
        let of = TopicData::default().with_topic_name(topic(name)).with_partitions(vec![partition]);
        DescribeQuorumRequest::default().with_topics(vec![of])
    };
    let tidy = |answer: &mut DescribeQuorumResponse| {
        let partitions = answer.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
        for partition in partitions {
            partition.high_watermark = partition.high_watermark.min(0);
            partition.leader_epoch = partition.leader_epoch.min(0);
            for voter in &mut partition.current_voters {
                voter.log_end_offset = voter.log_end_offset.min(0);
                voter.last_fetch_timestamp = voter.last_fetch_timestamp.min(0);
                voter.last_caught_up_timestamp = voter.last_caught_up_timestamp.min(0);
                voter.replica_directory_id = Uuid::nil();
            }
        }
        for listener in answer.nodes.iter_mut().flat_map(|node| &mut node.listeners) {
            listener.port = 0;
        }
    };
    for version in pair.court.versions(ApiKey::DescribeQuorum) {
        pair.call_tidied("the metadata", version, |_| of("__cluster_metadata", 0), tidy).await;
        pair.call_tidied("an unknown partition", version, |_| of("__cluster_metadata", 9), tidy).await;
        pair.call_tidied("another topic", version, |_| of("seed", 0), tidy).await;
    }
    let feature = |name: &str, level: i16| {
        let update = update_features_request::FeatureUpdateKey::default()
            .with_feature(StrBytes::from_string(name.to_owned()))
            .with_max_version_level(level);
        UpdateFeaturesRequest::default().with_feature_updates(vec![update]).with_timeout_ms(5_000)
    };
    each(pair, "an unknown feature", |_, _| feature("nonsense", 1)).await;
    each(pair, "a level that is too high", |_, _| feature("group.version", 99)).await;
    each(pair, "an unknown broker", |_, _| UnregisterBrokerRequest::default().with_broker_id(BrokerId(99)))
        .await;
}
