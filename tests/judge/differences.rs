//! Where Millrace differs from Apache Kafka on purpose. Whatever else differs is a fault of ours.

use kafka_protocol::messages::ApiKey::{self, *};

/// A difference that is meant.
#[derive(Debug)]
pub struct Difference {
    /// Of one API, or of all.
    pub api: Option<ApiKey>,
    /// Part of the situation's name; empty for all.
    pub situation: &'static str,
    /// The field, with or without the names of elements, or its end behind a `*`.
    pub field: &'static str,
    /// Why it is meant.
    pub _why: &'static str,
}

/// All of them. One that no answer shows any more fails the test.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "api_keys[].max_version",
        _why: "the protocol crate is of Kafka 4.1: it has OffsetCommit and OffsetFetch up to 9, ListOffsets up to 10",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "*features[share.version]",
        _why: "there are no share groups",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "*features[streams.version]",
        _why: "there are no streams groups",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "*features[transaction.version]",
        _why: "there are no transactions",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "*features[eligible.leader.replicas.version]",
        _why: "one broker has no replicas",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "*features[kraft.version]",
        _why: "one broker has no quorum",
    },
    Difference {
        api: Some(ApiVersions),
        situation: "",
        field: "finalized_features_epoch",
        _why: "features never change here",
    },
    Difference {
        api: None,
        situation: "",
        field: "*error_message",
        _why: "ours say in our own words what failed and what to do",
    },
    Difference {
        api: None,
        situation: "",
        field: "topics[].topic_authorized_operations",
        _why: "topics are written by tasks: nobody may alter or delete them",
    },
    Difference {
        api: None,
        situation: "",
        field: "cluster_authorized_operations",
        _why: "there is nothing in a cluster of one that a client may alter",
    },
    Difference {
        api: None,
        situation: "",
        field: "groups[].authorized_operations",
        _why: "groups have no settings of their own",
    },
    Difference {
        api: Some(Metadata),
        situation: "a topic is made by asking",
        field: "*",
        _why: "Kafka answers before it has made the topic; ours is there",
    },
    Difference {
        api: Some(Metadata),
        situation: "neither name nor id",
        field: "*",
        _why: "Kafka fails; ours refuses that topic by name",
    },
    Difference {
        api: Some(FindCoordinator),
        situation: "share group's key",
        field: "coordinators[].error_code",
        _why: "there are no share groups",
    },
    Difference {
        api: Some(DescribeQuorum),
        situation: "the metadata",
        field: "*listeners[CONTROLLER]",
        _why: "the controller has no listener of its own",
    },
    Difference {
        api: Some(DescribeTransactions),
        situation: "",
        field: "transaction_states[].error_code",
        _why: "Kafka has not made its topic of transactions yet, and says to look elsewhere; there are none",
    },
    Difference {
        api: Some(ListConfigResources),
        situation: "of kinds [8]",
        field: "config_resources[]",
        _why: "loggers of the broker have no settings here",
    },
    Difference {
        api: Some(DescribeConfigs),
        situation: "",
        field: "results[].configs[].value",
        _why: "the log is of another kind, and so are its settings",
    },
    Difference {
        api: Some(DescribeConfigs),
        situation: "",
        field: "results[].configs[].config_source",
        _why: "what is set is our own default",
    },
    Difference {
        api: Some(DescribeConfigs),
        situation: "",
        field: "results[].configs[].read_only",
        _why: "what would not have an effect cannot be set",
    },
    Difference {
        api: Some(CreateTopics),
        situation: "validated only",
        field: "topics[]",
        _why: "an id belongs to a topic that there is: a validation gives none",
    },
    Difference {
        api: Some(CreateTopics),
        situation: "too many partitions",
        field: "topics[].error_code",
        _why: "our limit is one of topics, not a policy",
    },
    Difference {
        api: Some(DescribeGroups),
        situation: "when the leader has left",
        field: "groups[].members[].member_assignment",
        _why: "what a member had is kept until a leader says otherwise: its group may move to the other protocol",
    },
    Difference {
        api: Some(DescribeGroups),
        situation: "with one left",
        field: "groups[].members[].member_assignment",
        _why: "the same",
    },
    Difference {
        api: Some(DescribeGroups),
        situation: "after mistakes",
        field: "groups[].group_state",
        _why: "a join that was refused leaves no group behind",
    },
    Difference {
        api: Some(DescribeGroups),
        situation: "after mistakes",
        field: "groups[].error_code",
        _why: "the same",
    },
    Difference {
        api: Some(Fetch),
        situation: "an unknown isolation level",
        field: "*",
        _why: "there is one level: what is there is committed",
    },
    Difference { api: Some(ListOffsets), situation: "isolation level 9", field: "*", _why: "the same" },
    Difference {
        api: Some(Fetch),
        situation: "a partition twice",
        field: "*",
        _why: "each is answered, in place of the last alone",
    },
    Difference {
        api: Some(Fetch),
        situation: "200500 bytes of two partitions",
        field: "responses[].partitions[].records",
        _why: "Kafka spends what is left on the part of a batch, we on a whole one of another partition",
    },
    Difference {
        api: Some(ListOffsets),
        situation: "nothing",
        field: "topics[]",
        _why: "a topic of which nothing is asked is named all the same",
    },
    Difference { api: Some(OffsetDelete), situation: "of no group", field: "topics[]", _why: "the same" },
    Difference {
        api: Some(OffsetCommit),
        situation: "a negative offset",
        field: "*",
        _why: "there is nothing to go on from: it is refused",
    },
    Difference {
        api: Some(OffsetCommit),
        situation: "an unknown group",
        field: "*",
        _why: "a member that a restart has made unknown joins again; what Kafka says would end it",
    },
    Difference {
        api: Some(ConsumerGroupHeartbeat),
        situation: "unknown group",
        field: "error_code",
        _why: "the same",
    },
    Difference {
        api: Some(ConsumerGroupHeartbeat),
        situation: "an empty subscription",
        field: "member_epoch",
        _why: "a group that nobody has joined yet has an epoch in Kafka",
    },
    Difference {
        api: Some(ConsumerGroupHeartbeat),
        situation: "the second joins anew",
        field: "member_epoch",
        _why: "another assignor assigns anew at once",
    },
    Difference {
        api: Some(ConsumerGroupDescribe),
        situation: "told after that",
        field: "*epoch",
        _why: "the same",
    },
    Difference {
        api: Some(ConsumerGroupDescribe),
        situation: "told empty",
        field: "groups[].assignment_epoch",
        _why: "Kafka leaves the last assignment when nobody is there to assign to",
    },
    Difference {
        api: Some(ConsumerGroupDescribe),
        situation: "told after its static member has left",
        field: "groups[].assignment_epoch",
        _why: "the same",
    },
    Difference {
        api: Some(IncrementalAlterConfigs),
        situation: "an unknown operation",
        field: "responses[].error_code",
        _why: "Kafka fails; the request is what is wrong",
    },
    Difference {
        api: Some(AlterClientQuotas),
        situation: "",
        field: "entries[].error_code",
        _why: "there are no quotas",
    },
    Difference {
        api: Some(Produce),
        situation: "an unknown producer",
        field: "*log_append_time_ms",
        _why: "a batch that is sent again is answered with no time",
    },
    Difference {
        api: Some(OffsetFetch),
        situation: "offsets of several groups",
        field: "groups[]",
        _why: "a group is answered once, so that a short request has no long answer",
    },
    Difference {
        api: Some(ConsumerGroupDescribe),
        situation: "a group told of twice",
        field: "groups[]",
        _why: "the same",
    },
    Difference {
        api: Some(OffsetForLeaderEpoch),
        situation: "epoch -5",
        field: "*",
        _why: "no epoch is below 0",
    },
    Difference {
        api: Some(Produce),
        situation: "in a transaction",
        field: "*",
        _why: "there are no transactions",
    },
    Difference {
        api: Some(Produce),
        situation: "an unknown codec",
        field: "*error_code",
        _why: "a codec that Kafka does not have is named, not an unknown error",
    },
    Difference {
        api: Some(Produce),
        situation: "",
        field: "responses[].partition_responses[].log_start_offset",
        _why: "an answer that refuses tells no start",
    },
];
