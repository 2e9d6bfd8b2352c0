//! Every API in every version that is served: a client that speaks it is answered in it.

use std::fmt::Debug;

use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Message, Request};
use millrace::kafka::Api;
use millrace::kafka::api::ALL;
use millrace::kafka::connection::Limits;
use millrace::log::topics::Topics;

use crate::memory_log::MemoryLog;
use crate::support::Server;

/// Goes through all versions of an API with a request that has as little in it as can be.
async fn every_version<R>(server: &Server, api: &Api, request: R)
where
    R: Request,
    R::Response: Debug,
{
    // As Apache Kafka does it: nothing older than KIP-896 has left, and the newest that client and broker know.
    let (asked, answered) = (R::VERSIONS, <R::Response as Message>::VERSIONS);
    let known = (asked.min.max(answered.min), asked.max.min(answered.max));
    assert_eq!(api.versions, known, "{:?}", api.key);
    let mut client = server.client().await;
    for version in api.versions.0..=api.versions.1 {
        let answer = format!("{:?}", client.call(version, &request).await);
        // Trap 16: a client keeps still for as long as it is told to.
        let still = answer.contains("throttle_time_ms: ") && !answer.contains("throttle_time_ms: 0,");
        assert!(!still, "{:?} {version}: {answer}", api.key);
    }
}

/// A line an API: its key, and the type of its request.
macro_rules! requests {
    ($server:expr, $api:expr, $($key:ident: $request:expr,)*) => {
        match $api.key {
            $(ApiKey::$key => every_version($server, $api, $request).await,)*
            other => panic!("no request for {other:?} here yet; add a line"),
        }
    };
}

#[tokio::test]
async fn every_api_is_answered_in_every_version_that_is_advertised() {
    let (_log, topic) = MemoryLog::with_topic("orders", 1);
    let topics = Topics::default();
    topics.insert(topic);
    let server = Server::start(topics, Limits::default()).await;
    for api in ALL {
        requests!(
            &server, api,
            // With acks=0 there is no answer.
            Produce: ProduceRequest::default().with_acks(-1),
            Fetch: FetchRequest::default(),
            ListOffsets: ListOffsetsRequest::default(),
            Metadata: MetadataRequest::default(),
            OffsetCommit: OffsetCommitRequest::default(),
            OffsetFetch: OffsetFetchRequest::default(),
            FindCoordinator: FindCoordinatorRequest::default(),
            JoinGroup: JoinGroupRequest::default(),
            Heartbeat: HeartbeatRequest::default(),
            LeaveGroup: LeaveGroupRequest::default(),
            SyncGroup: SyncGroupRequest::default(),
            DescribeGroups: DescribeGroupsRequest::default(),
            ListGroups: ListGroupsRequest::default(),
            ApiVersions: ApiVersionsRequest::default(),
            CreateTopics: CreateTopicsRequest::default(),
            DeleteTopics: DeleteTopicsRequest::default(),
            DeleteRecords: DeleteRecordsRequest::default(),
            InitProducerId: InitProducerIdRequest::default(),
            OffsetForLeaderEpoch: OffsetForLeaderEpochRequest::default(),
            AddPartitionsToTxn: AddPartitionsToTxnRequest::default(),
            AddOffsetsToTxn: AddOffsetsToTxnRequest::default(),
            EndTxn: EndTxnRequest::default(),
            TxnOffsetCommit: TxnOffsetCommitRequest::default(),
            CreateAcls: CreateAclsRequest::default(),
            DeleteAcls: DeleteAclsRequest::default(),
            DescribeAcls: DescribeAclsRequest::default(),
            DescribeConfigs: DescribeConfigsRequest::default(),
            AlterConfigs: AlterConfigsRequest::default(),
            AlterReplicaLogDirs: AlterReplicaLogDirsRequest::default(),
            DescribeLogDirs: DescribeLogDirsRequest::default(),
            CreatePartitions: CreatePartitionsRequest::default(),
            DeleteGroups: DeleteGroupsRequest::default(),
            ElectLeaders: ElectLeadersRequest::default(),
            IncrementalAlterConfigs: IncrementalAlterConfigsRequest::default(),
            AlterPartitionReassignments: AlterPartitionReassignmentsRequest::default(),
            ListPartitionReassignments: ListPartitionReassignmentsRequest::default(),
            OffsetDelete: OffsetDeleteRequest::default(),
            DescribeClientQuotas: DescribeClientQuotasRequest::default(),
            AlterClientQuotas: AlterClientQuotasRequest::default(),
            AlterUserScramCredentials: AlterUserScramCredentialsRequest::default(),
            DescribeUserScramCredentials: DescribeUserScramCredentialsRequest::default(),
            DescribeQuorum: DescribeQuorumRequest::default(),
            UpdateFeatures: UpdateFeaturesRequest::default(),
            UnregisterBroker: UnregisterBrokerRequest::default(),
            DescribeCluster: DescribeClusterRequest::default(),
            DescribeProducers: DescribeProducersRequest::default(),
            DescribeTransactions: DescribeTransactionsRequest::default(),
            ListTransactions: ListTransactionsRequest::default(),
            ConsumerGroupHeartbeat: ConsumerGroupHeartbeatRequest::default(),
            ConsumerGroupDescribe: ConsumerGroupDescribeRequest::default(),
            ListConfigResources: ListConfigResourcesRequest::default(),
            DescribeTopicPartitions: DescribeTopicPartitionsRequest::default(),
        );
    }
}
