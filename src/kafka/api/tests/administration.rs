//! Examples of the requests of administration tools that say nothing of groups.

use kafka_protocol::messages::*;

use super::*;

/// What is left of a request after it has been decoded.
pub fn decode(key: ApiKey, body: Bytes, version: i16) -> Result<Bytes, String> {
    match key {
        ApiKey::DescribeAcls => decode_as::<DescribeAclsRequest>(body, version),
        ApiKey::CreateAcls => decode_as::<CreateAclsRequest>(body, version),
        ApiKey::DeleteAcls => decode_as::<DeleteAclsRequest>(body, version),
        ApiKey::AlterReplicaLogDirs => decode_as::<AlterReplicaLogDirsRequest>(body, version),
        ApiKey::DescribeLogDirs => decode_as::<DescribeLogDirsRequest>(body, version),
        ApiKey::ElectLeaders => decode_as::<ElectLeadersRequest>(body, version),
        ApiKey::AlterPartitionReassignments => decode_as::<AlterPartitionReassignmentsRequest>(body, version),
        ApiKey::ListPartitionReassignments => decode_as::<ListPartitionReassignmentsRequest>(body, version),
        ApiKey::DescribeClientQuotas => decode_as::<DescribeClientQuotasRequest>(body, version),
        ApiKey::AlterClientQuotas => decode_as::<AlterClientQuotasRequest>(body, version),
        ApiKey::DescribeUserScramCredentials => {
            decode_as::<DescribeUserScramCredentialsRequest>(body, version)
        }
        ApiKey::AlterUserScramCredentials => decode_as::<AlterUserScramCredentialsRequest>(body, version),
        ApiKey::DescribeQuorum => decode_as::<DescribeQuorumRequest>(body, version),
        ApiKey::UpdateFeatures => decode_as::<UpdateFeaturesRequest>(body, version),
        ApiKey::DescribeProducers => decode_as::<DescribeProducersRequest>(body, version),
        ApiKey::UnregisterBroker => decode_as::<UnregisterBrokerRequest>(body, version),
        ApiKey::DescribeTransactions => decode_as::<DescribeTransactionsRequest>(body, version),
        ApiKey::ListTransactions => decode_as::<ListTransactionsRequest>(body, version),
        ApiKey::ListConfigResources => decode_as::<ListConfigResourcesRequest>(body, version),
        ApiKey::DeleteRecords => decode_as::<DeleteRecordsRequest>(body, version),
        ApiKey::AlterConfigs => decode_as::<AlterConfigsRequest>(body, version),
        ApiKey::IncrementalAlterConfigs => decode_as::<IncrementalAlterConfigsRequest>(body, version),
        other => panic!("no example of {other:?} here yet; add it to `decode` and `examples`"),
    }
}

/// A request with as little in it as can be, and one with every field and two of each element.
pub fn examples(key: ApiKey, v: i16) -> [Bytes; 2] {
    let topic = || TopicName(s("orders"));
    match key {
        ApiKey::DescribeAcls => {
            let full = DescribeAclsRequest::default()
                .with_resource_name_filter(Some(s("orders")))
                .with_principal_filter(Some(s("User:ann")))
                .with_host_filter(Some(s("*")))
                .with_pattern_type_filter(3);
            let least = DescribeAclsRequest::default()
                .with_resource_name_filter(None)
                .with_principal_filter(None)
                .with_host_filter(None)
                .with_pattern_type_filter(3);
            [encode(&least, v), encode(&full, v)]
        }
        ApiKey::CreateAcls => {
            use create_acls_request::AclCreation;
            let rule = AclCreation::default()
                .with_resource_name(s("orders"))
                .with_resource_pattern_type(3)
                .with_principal(s("User:ann"))
                .with_host(s("*"));
            let full = CreateAclsRequest::default().with_creations(vec![rule.clone(), rule]);
            [encode(&CreateAclsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DeleteAcls => {
            use delete_acls_request::DeleteAclsFilter;
            let filter = DeleteAclsFilter::default()
                .with_resource_name_filter(Some(s("orders")))
                .with_pattern_type_filter(3)
                .with_principal_filter(Some(s("User:ann")))
                .with_host_filter(None);
            let full = DeleteAclsRequest::default().with_filters(vec![filter.clone(), filter]);
            [encode(&DeleteAclsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::AlterReplicaLogDirs => {
            use alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
            let asked = AlterReplicaLogDirTopic::default().with_name(topic()).with_partitions(vec![1, 2]);
            let directory =
                AlterReplicaLogDir::default().with_path(s("/data")).with_topics(vec![asked.clone(), asked]);
            let full = AlterReplicaLogDirsRequest::default().with_dirs(vec![directory.clone(), directory]);
            [encode(&AlterReplicaLogDirsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeLogDirs => {
            use describe_log_dirs_request::DescribableLogDirTopic;
            let asked = DescribableLogDirTopic::default().with_topic(topic()).with_partitions(vec![1, 2]);
            let full = DescribeLogDirsRequest::default().with_topics(Some(vec![asked.clone(), asked]));
            [encode(&DescribeLogDirsRequest::default().with_topics(None), v), encode(&full, v)]
        }
        ApiKey::ElectLeaders => {
            use elect_leaders_request::TopicPartitions;
            let asked = TopicPartitions::default().with_topic(topic()).with_partitions(vec![1, 2]);
            let full = ElectLeadersRequest::default().with_topic_partitions(Some(vec![asked.clone(), asked]));
            let full = if v >= 1 { full.with_election_type(1) } else { full };
            [encode(&ElectLeadersRequest::default().with_topic_partitions(None), v), encode(&full, v)]
        }
        ApiKey::AlterPartitionReassignments => {
            use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
            let moved = ReassignablePartition::default().with_replicas(Some(vec![0.into(), 1.into()]));
            let cancelled = ReassignablePartition::default().with_replicas(None);
            let asked =
                ReassignableTopic::default().with_name(topic()).with_partitions(vec![moved, cancelled]);
            let full = AlterPartitionReassignmentsRequest::default().with_topics(vec![asked.clone(), asked]);
            [encode(&AlterPartitionReassignmentsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ListPartitionReassignments => {
            use list_partition_reassignments_request::ListPartitionReassignmentsTopics;
            let asked = ListPartitionReassignmentsTopics::default()
                .with_name(topic())
                .with_partition_indexes(vec![1, 2]);
            let full =
                ListPartitionReassignmentsRequest::default().with_topics(Some(vec![asked.clone(), asked]));
            let least = ListPartitionReassignmentsRequest::default().with_topics(None);
            [encode(&least, v), encode(&full, v)]
        }
        ApiKey::DescribeClientQuotas => {
            use describe_client_quotas_request::ComponentData;
            let component = ComponentData::default().with_entity_type(s("user")).with_match(Some(s("ann")));
            let any = ComponentData::default().with_entity_type(s("user")).with_match_type(2);
            let full = DescribeClientQuotasRequest::default().with_components(vec![component, any]);
            [encode(&DescribeClientQuotasRequest::default(), v), encode(&full, v)]
        }
        ApiKey::AlterClientQuotas => {
            use alter_client_quotas_request::{EntityData, EntryData, OpData};
            let user = EntityData::default().with_entity_type(s("user")).with_entity_name(Some(s("ann")));
            let everybody = EntityData::default().with_entity_type(s("client-id")).with_entity_name(None);
            let change = OpData::default().with_key(s("producer_byte_rate")).with_value(1.5);
            let entry = EntryData::default()
                .with_entity(vec![user, everybody])
                .with_ops(vec![change.clone(), change]);
            let full = AlterClientQuotasRequest::default().with_entries(vec![entry.clone(), entry]);
            [encode(&AlterClientQuotasRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeUserScramCredentials => {
            use describe_user_scram_credentials_request::UserName;
            let user = UserName::default().with_name(s("ann"));
            let full =
                DescribeUserScramCredentialsRequest::default().with_users(Some(vec![user.clone(), user]));
            [encode(&DescribeUserScramCredentialsRequest::default().with_users(None), v), encode(&full, v)]
        }
        ApiKey::AlterUserScramCredentials => {
            use alter_user_scram_credentials_request::{ScramCredentialDeletion, ScramCredentialUpsertion};
            let deletion = ScramCredentialDeletion::default().with_name(s("ann")).with_mechanism(1);
            let upsertion = ScramCredentialUpsertion::default()
                .with_name(s("bob"))
                .with_mechanism(2)
                .with_salt(Bytes::from_static(&[1; 20]))
                .with_salted_password(Bytes::from_static(&[2; 32]));
            let full = AlterUserScramCredentialsRequest::default()
                .with_deletions(vec![deletion.clone(), deletion])
                .with_upsertions(vec![upsertion.clone(), upsertion]);
            [encode(&AlterUserScramCredentialsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeQuorum => {
            use describe_quorum_request::{PartitionData, TopicData};
            let partition = PartitionData::default();
            let asked = TopicData::default()
                .with_topic_name(TopicName(s("__cluster_metadata")))
                .with_partitions(vec![partition.clone(), partition]);
            let full = DescribeQuorumRequest::default().with_topics(vec![asked.clone(), asked]);
            [encode(&DescribeQuorumRequest::default(), v), encode(&full, v)]
        }
        ApiKey::UpdateFeatures => {
            use update_features_request::FeatureUpdateKey;
            let mut update =
                FeatureUpdateKey::default().with_feature(s("group.version")).with_max_version_level(1);
            match v {
                0 => update.allow_downgrade = true,
                _ => update.upgrade_type = 2,
            }
            let full = UpdateFeaturesRequest::default().with_feature_updates(vec![update.clone(), update]);
            [encode(&UpdateFeaturesRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeProducers => {
            use describe_producers_request::TopicRequest;
            let asked = TopicRequest::default().with_name(topic()).with_partition_indexes(vec![1, 2]);
            let full = DescribeProducersRequest::default().with_topics(vec![asked.clone(), asked]);
            [encode(&DescribeProducersRequest::default(), v), encode(&full, v)]
        }
        ApiKey::UnregisterBroker => {
            let full = UnregisterBrokerRequest::default().with_broker_id(7.into());
            [encode(&UnregisterBrokerRequest::default(), v), encode(&full, v)]
        }
        ApiKey::DescribeTransactions => {
            let id = || TransactionalId(s("transaction"));
            let full = DescribeTransactionsRequest::default().with_transactional_ids(vec![id(), id()]);
            [encode(&DescribeTransactionsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ListTransactions => {
            let mut full = ListTransactionsRequest::default()
                .with_state_filters(vec![s("Ongoing"), s("Dead")])
                .with_producer_id_filters(vec![1.into(), 2.into()]);
            if v >= 1 {
                full.duration_filter = 10;
            }
            if v >= 2 {
                full.transactional_id_pattern = Some(s("a.*"));
            }
            [encode(&ListTransactionsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::ListConfigResources => {
            let least = ListConfigResourcesRequest::default();
            let full = if v >= 1 { least.clone().with_resource_types(vec![2, 4]) } else { least.clone() };
            [encode(&least, v), encode(&full, v)]
        }
        ApiKey::DeleteRecords => {
            use delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
            let partition = DeleteRecordsPartition::default().with_partition_index(1).with_offset(-1);
            let of_topic = DeleteRecordsTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition.clone(), partition]);
            let full = DeleteRecordsRequest::default().with_topics(vec![of_topic.clone(), of_topic]);
            [encode(&DeleteRecordsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::AlterConfigs => {
            use alter_configs_request::{AlterConfigsResource, AlterableConfig};
            let config = AlterableConfig::default().with_name(s("retention.ms"));
            let configs = vec![config.clone().with_value(Some(s("1"))), config.with_value(None)];
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(s("orders"))
                .with_configs(configs);
            let full = AlterConfigsRequest::default()
                .with_resources(vec![resource.clone(), resource])
                .with_validate_only(true);
            [encode(&AlterConfigsRequest::default(), v), encode(&full, v)]
        }
        ApiKey::IncrementalAlterConfigs => {
            use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
            let config = AlterableConfig::default().with_name(s("retention.ms")).with_config_operation(1);
            let configs = vec![config.clone().with_value(Some(s("1"))), config.with_value(None)];
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(s("orders"))
                .with_configs(configs);
            let full = IncrementalAlterConfigsRequest::default()
                .with_resources(vec![resource.clone(), resource])
                .with_validate_only(true);
            [encode(&IncrementalAlterConfigsRequest::default(), v), encode(&full, v)]
        }
        other => panic!("no example of {other:?} here yet; add it to `decode` and `examples`"),
    }
}
