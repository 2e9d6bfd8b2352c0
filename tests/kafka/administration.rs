//! What administration tools are answered, in every version: what one broker of Apache Kafka 4.3 answers where nothing is
//! replicated, limited or secured.

use kafka_protocol::messages::alter_client_quotas_request::{EntityData, EntryData};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
use kafka_protocol::messages::describe_client_quotas_request::ComponentData;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::describe_user_scram_credentials_request::UserName;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use millrace::kafka::connection::Limits;
use millrace::log::topics::Topics;

use crate::memory_log::{Append, MemoryLog, one};
use crate::support::Server;

fn s(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn name(text: &'static str) -> TopicName {
    TopicName(s(text))
}

/// A broker with `orders`, of 3 partitions.
async fn server() -> Server {
    let (_log, orders) = MemoryLog::with_topic("orders", 3);
    let topics = Topics::default();
    topics.insert(orders);
    Server::start(topics, Limits::default()).await
}

#[tokio::test]
async fn a_partition_may_be_assigned_to_the_one_broker_and_to_no_other() {
    let server = server().await;
    let mut client = server.client().await;
    let assign = |index, replicas: Option<&[i32]>| {
        let replicas = replicas.map(|replicas| replicas.iter().map(|id| BrokerId(*id)).collect());
        ReassignablePartition::default().with_partition_index(index).with_replicas(replicas)
    };
    let orders = vec![
        assign(0, Some(&[0])),
        assign(1, None),
        assign(2, Some(&[1])),
        assign(2, Some(&[0, 0])),
        assign(2, Some(&[])),
        assign(3, Some(&[0])),
        assign(-1, None),
    ];
    let topic =
        |text, partitions| ReassignableTopic::default().with_name(name(text)).with_partitions(partitions);
    let request = AlterPartitionReassignmentsRequest::default()
        .with_topics(vec![topic("orders", orders), topic("nothing", vec![assign(0, Some(&[0]))])]);
    for version in 0..=1 {
        let response = client.call(version, &request).await;
        let errors = |topic: usize| {
            response.responses[topic].partitions.iter().map(|p| p.error_code).collect::<Vec<_>>()
        };
        assert_eq!((response.error_code, errors(0), errors(1)), (0, vec![0, 85, 39, 39, 39, 3, 3], vec![3]));
    }

    let asked = ListPartitionReassignmentsTopics::default()
        .with_name(name("orders"))
        .with_partition_indexes(vec![0, 1, 2]);
    for topics in [None, Some(vec![asked])] {
        let request = ListPartitionReassignmentsRequest::default().with_topics(topics);
        let response = client.call(0, &request).await;
        assert_eq!((response.error_code, response.topics.len()), (0, 0));
    }
}

#[tokio::test]
async fn no_partition_needs_another_leader() {
    let server = server().await;
    let mut client = server.client().await;
    let asked =
        |text, partitions| TopicPartitions::default().with_topic(name(text)).with_partitions(partitions);
    let some = vec![asked("orders", vec![0, 9]), asked("nothing", vec![0])];
    for version in 0..=2 {
        let request = ElectLeadersRequest::default().with_topic_partitions(Some(some.clone()));
        let request = if version >= 1 { request.with_election_type(1) } else { request };
        let response = client.call(version, &request).await;
        let errors = response.replica_election_results.iter().map(|topic| {
            topic.partition_result.iter().map(|partition| partition.error_code).collect::<Vec<_>>()
        });
        assert_eq!(errors.collect::<Vec<_>>(), [vec![84, 3], vec![3]]);

        let all = ElectLeadersRequest::default().with_topic_partitions(None);
        let results = client.call(version, &all).await.replica_election_results;
        assert_eq!(
            (results.len(), &results[0].topic, results[0].partition_result.len()),
            (1, &name("orders"), 0)
        );
    }
    let unheard_of = ElectLeadersRequest::default().with_election_type(2).with_topic_partitions(None);
    assert_eq!(client.call(2, &unheard_of).await.error_code, 42);
}

#[tokio::test]
async fn there_is_one_directory_for_replicas() {
    let server = server().await;
    let mut client = server.client().await;
    let topic = |text| AlterReplicaLogDirTopic::default().with_name(name(text)).with_partitions(vec![0]);
    let topics = vec![topic("orders"), topic("nothing")];
    let here = StrBytes::from_string(std::env::temp_dir().to_string_lossy().into_owned());
    let dirs = [here, s("/elsewhere")]
        .map(|path| AlterReplicaLogDir::default().with_path(path).with_topics(topics.clone()));
    let request = AlterReplicaLogDirsRequest::default().with_dirs(dirs.to_vec());
    for version in 1..=2 {
        let results = client.call(version, &request).await.results;
        let errors: Vec<_> = results.iter().map(|topic| topic.partitions[0].error_code).collect();
        assert_eq!(errors, [0, 3, 57, 57]);
    }
}

#[tokio::test]
async fn partitions_are_told_with_their_size_and_the_directory_with_its_room() {
    let (log, orders) = MemoryLog::with_topic("orders", 3);
    log.commit(&[Append { size: 700, ..one(1) }, Append { size: 300, ..one(1) }]);
    let topics = Topics::default();
    topics.insert(orders);
    let server = Server::start(topics, Limits::default()).await;
    let mut client = server.client().await;

    let named = |text, partitions| {
        DescribableLogDirTopic::default().with_topic(name(text)).with_partitions(partitions)
    };
    let some = vec![named("orders", vec![1, 9]), named("nothing", vec![0]), named("orders", vec![2, 1, -1])];
    for version in 1..=4 {
        for (asked, expected) in [
            (None, vec![(0, 0), (1, 1000), (2, 0)]),
            (Some(vec![]), vec![]),
            (Some(some.clone()), vec![(1, 1000), (2, 0)]),
        ] {
            let response = client.call(version, &DescribeLogDirsRequest::default().with_topics(asked)).await;
            let [directory] = response.results.as_slice() else { panic!("{response:?}") };
            assert_eq!(*directory.log_dir, *std::env::temp_dir().to_string_lossy());
            let room = (directory.total_bytes > 0, directory.usable_bytes > 0);
            assert_eq!(room, (version >= 4, version >= 4), "version {version}");
            assert_eq!(directory.topics.len(), usize::from(!expected.is_empty()));
            let partitions = directory.topics.iter().flat_map(|topic| &topic.partitions);
            let sizes: Vec<_> = partitions.map(|p| (p.partition_index, p.partition_size)).collect();
            assert_eq!(sizes, expected);
        }
    }
}

#[tokio::test]
async fn nobody_produces_and_there_are_no_transactions() {
    let server = server().await;
    let mut client = server.client().await;
    let asked = |text, partitions| {
        describe_producers_request::TopicRequest::default()
            .with_name(name(text))
            .with_partition_indexes(partitions)
    };
    let request = DescribeProducersRequest::default()
        .with_topics(vec![asked("orders", vec![0, 9]), asked("nothing", vec![0])]);
    let topics = client.call(0, &request).await.topics;
    let errors = topics.iter().map(|topic| topic.partitions.iter().map(|p| p.error_code).collect::<Vec<_>>());
    assert_eq!(errors.collect::<Vec<_>>(), [vec![0, 3], vec![3]]);
    assert!(topics[0].partitions[0].active_producers.is_empty());

    let ids = vec![TransactionalId(s("transaction")), TransactionalId(s(""))];
    let request = DescribeTransactionsRequest::default().with_transactional_ids(ids);
    let states = client.call(0, &request).await.transaction_states;
    assert_eq!(states.iter().map(|state| state.error_code).collect::<Vec<_>>(), [105, 42]);

    for version in 0..=2 {
        let request =
            ListTransactionsRequest::default().with_state_filters(vec![s("Ongoing"), s("Nonsense")]);
        let response = client.call(version, &request).await;
        assert_eq!((response.error_code, response.transaction_states.len()), (0, 0));
        assert_eq!(response.unknown_state_filters, [s("Nonsense")]);
    }
    let request = ListTransactionsRequest::default().with_transactional_id_pattern(Some(s("(")));
    assert_eq!(client.call(2, &request).await.error_code, 128);
}

#[tokio::test]
async fn the_broker_is_the_only_voter() {
    let server = server().await;
    let mut client = server.client().await;
    let ask = |text, partitions: &[i32]| {
        let partitions =
            partitions.iter().map(|index| PartitionData::default().with_partition_index(*index)).collect();
        let topic = TopicData::default().with_topic_name(name(text)).with_partitions(partitions);
        DescribeQuorumRequest::default().with_topics(vec![topic])
    };
    for version in 0..=2 {
        let response = client.call(version, &ask("__cluster_metadata", &[0])).await;
        let quorum = &response.topics[0].partitions[0];
        let voters: Vec<_> = quorum.current_voters.iter().map(|voter| voter.replica_id.0).collect();
        assert_eq!((response.error_code, quorum.error_code, quorum.leader_id.0, voters), (0, 0, 0, vec![0]));
        assert_eq!(quorum.current_voters[0].last_caught_up_timestamp > 0, version >= 1);
        assert_eq!(response.nodes.len(), usize::from(version >= 2));

        for other in [ask("orders", &[0]), ask("__cluster_metadata", &[0, 1])] {
            let topics = client.call(version, &other).await.topics;
            assert!(topics[0].partitions.iter().all(|partition| partition.error_code == 3));
        }
    }
}

#[tokio::test]
async fn features_are_those_of_the_release_and_the_broker_cannot_be_taken_away() {
    let server = server().await;
    let mut client = server.client().await;
    let update = FeatureUpdateKey::default().with_feature(s("group.version")).with_max_version_level(2);
    let request = UpdateFeaturesRequest::default().with_feature_updates(vec![update]);
    for version in 0..=2 {
        assert_eq!(client.call(version, &request).await.error_code, 95);
        assert_eq!(client.call(version, &UpdateFeaturesRequest::default()).await.error_code, 0);
    }
    for (broker, error) in [(0, 44), (1, 102)] {
        let request = UnregisterBrokerRequest::default().with_broker_id(BrokerId(broker));
        assert_eq!(client.call(0, &request).await.error_code, error);
    }
}

#[tokio::test]
async fn there_are_no_quotas() {
    let server = server().await;
    let mut client = server.client().await;
    for version in 0..=1 {
        let of = |kind| {
            let component = ComponentData::default().with_entity_type(s(kind)).with_match_type(2);
            DescribeClientQuotasRequest::default().with_components(vec![component])
        };
        let response = client.call(version, &of("user")).await;
        assert_eq!((response.error_code, response.entries), (0, Some(vec![])));
        let response = client.call(version, &of("nonsense")).await;
        assert_eq!((response.error_code, response.entries), (35, None));

        let user = EntityData::default().with_entity_type(s("user")).with_entity_name(Some(s("ann")));
        let entry = EntryData::default().with_entity(vec![user]);
        let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
        let entries = client.call(version, &request).await.entries;
        assert_eq!((entries[0].error_code, &entries[0].entity[0].entity_name), (44, &Some(s("ann"))));
    }
}

#[tokio::test]
async fn there_are_no_accounts_and_no_access_rules() {
    let server = server().await;
    let mut client = server.client().await;
    let user = |text| UserName::default().with_name(s(text));
    for (users, errors) in [
        (None, vec![]),
        (Some(vec![]), vec![]),
        (Some(vec![user("ann")]), vec![91]),
        (Some(vec![user("ann"), user("ann")]), vec![92]),
    ] {
        let request = DescribeUserScramCredentialsRequest::default().with_users(users);
        let response = client.call(0, &request).await;
        assert_eq!(response.results.iter().map(|user| user.error_code).collect::<Vec<_>>(), errors);
        assert_eq!(response.error_code, 0);
    }
    let request = AlterUserScramCredentialsRequest::default()
        .with_deletions(vec![ScramCredentialDeletion::default().with_name(s("ann"))])
        .with_upsertions(vec![ScramCredentialUpsertion::default().with_name(s("bob"))]);
    let results = client.call(0, &request).await.results;
    let errors: Vec<_> = results.iter().map(|user| (user.user.as_str(), user.error_code)).collect();
    assert_eq!(errors, [("ann", 91), ("bob", 44)]);

    const LITERAL: i8 = 3;
    for version in 1..=3 {
        let request = DescribeAclsRequest::default().with_pattern_type_filter(LITERAL);
        assert_eq!(client.call(version, &request).await.error_code, 54);
        let rule = AclCreation::default().with_resource_pattern_type(LITERAL);
        let request = CreateAclsRequest::default().with_creations(vec![rule]);
        assert_eq!(client.call(version, &request).await.results[0].error_code, 54);
        let filter = DeleteAclsFilter::default().with_pattern_type_filter(LITERAL);
        let request = DeleteAclsRequest::default().with_filters(vec![filter]);
        assert_eq!(client.call(version, &request).await.filter_results[0].error_code, 54);
    }
}

#[tokio::test]
async fn settings_can_be_asked_for_of_the_broker_and_of_topics() {
    let server = server().await;
    let mut client = server.client().await;
    assert!(client.call(0, &ListConfigResourcesRequest::default()).await.config_resources.is_empty());
    let all = vec![(4, s("0")), (2, s("orders"))];
    for (types, expected) in [
        (vec![], all),
        (vec![2], vec![(2, s("orders"))]),
        (vec![4, 8], vec![(4, s("0"))]),
        (vec![16, 32], vec![]),
    ] {
        let request = ListConfigResourcesRequest::default().with_resource_types(types);
        let resources = client.call(1, &request).await.config_resources;
        let found: Vec<_> = resources.into_iter().map(|r| (r.resource_type, r.resource_name)).collect();
        assert_eq!(found, expected);
    }
    let request = ListConfigResourcesRequest::default().with_resource_types(vec![2, 64]);
    let response = client.call(1, &request).await;
    assert_eq!((response.error_code, response.config_resources.len()), (35, 0));
}

#[tokio::test]
async fn settings_are_told_of_what_has_any_with_where_they_come_from() {
    const TOPIC: i8 = 2;
    const BROKER: i8 = 4;
    const LOGGER: i8 = 8;
    const METRICS: i8 = 16;
    const GROUP: i8 = 32;
    const STATIC_BROKER_CONFIG: i8 = 4;
    const DEFAULT_CONFIG: i8 = 5;
    let server = server().await;
    let mut client = server.client().await;
    let resource = |kind, name| {
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(s(name))
            .with_configuration_keys(None)
    };
    for version in 1..=4 {
        // Settings, or an error.
        let asked = [
            (TOPIC, "orders", Ok(33)),
            (TOPIC, "nothing", Err(3)),
            (TOPIC, "no name", Err(17)),
            (BROKER, "", Ok(0)),
            (BROKER, "1", Err(42)),
            (BROKER, "x", Err(42)),
            (LOGGER, "0", Ok(0)),
            (LOGGER, "1", Err(42)),
            (METRICS, "subscription", Ok(0)),
            (GROUP, "readers", Ok(2)),
            (GROUP, "", Err(42)),
            (99, "orders", Err(42)),
        ];
        let resources = asked.iter().map(|(kind, name, _)| resource(*kind, *name)).collect();
        let request = DescribeConfigsRequest::default().with_resources(resources);
        let results = client.call(version, &request).await.results;
        for ((kind, name, expected), result) in asked.into_iter().zip(results) {
            let found = match result.error_code {
                0 => Ok(result.configs.len()),
                error => Err(error),
            };
            assert_eq!(found, expected, "{kind} {name:?} in version {version}");
        }

        let request = DescribeConfigsRequest::default()
            .with_resources(vec![
                resource(BROKER, "0"),
                resource(TOPIC, "orders"),
                resource(GROUP, "readers"),
            ])
            .with_include_synonyms(true)
            .with_include_documentation(version >= 3);
        let results = client.call(version, &request).await.results;
        let found = |result: usize, name: &str| {
            let found = results[result].configs.iter().find(|config| *config.name == *name);
            let config = found.unwrap_or_else(|| panic!("{name}: {results:#?}"));
            let is_explained = config.documentation.as_ref().is_some_and(|text| !text.is_empty());
            assert_eq!(is_explained, version >= 3);
            assert_eq!(config.config_type != 0, version >= 3);
            let synonyms = config.synonyms.iter().map(|synonym| {
                (synonym.name.to_string(), synonym.value.as_ref().unwrap().to_string(), synonym.source)
            });
            (config.value.as_ref().unwrap().to_string(), config.config_source, synonyms.collect::<Vec<_>>())
        };
        let synonym = |name: &str, value: &str, source| (name.to_owned(), value.to_owned(), source);

        let listener = format!("PLAINTEXT://{}", server.address);
        let told = vec![synonym("advertised.listeners", &listener, STATIC_BROKER_CONFIG)];
        assert_eq!(found(0, "advertised.listeners"), (listener, STATIC_BROKER_CONFIG, told));
        let told = vec![
            synonym("delete.topic.enable", "false", STATIC_BROKER_CONFIG),
            synonym("delete.topic.enable", "true", DEFAULT_CONFIG),
        ];
        assert_eq!(found(0, "delete.topic.enable"), ("false".to_owned(), STATIC_BROKER_CONFIG, told));
        // What a topic has from the broker, both tell.
        let told = vec![synonym("log.cleanup.policy", "delete", DEFAULT_CONFIG)];
        assert_eq!(found(0, "log.cleanup.policy"), ("delete".to_owned(), DEFAULT_CONFIG, told.clone()));
        assert_eq!(found(1, "cleanup.policy"), ("delete".to_owned(), DEFAULT_CONFIG, told));
        // And what a group has.
        let told = vec![synonym("group.consumer.session.timeout.ms", "45000", DEFAULT_CONFIG)];
        assert_eq!(found(2, "consumer.session.timeout.ms"), ("45000".to_owned(), DEFAULT_CONFIG, told));
    }
}
