//! ListOffsets and OffsetForLeaderEpoch: where things are in a log.

use std::sync::Arc;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{ApiKey, BrokerId, ListOffsetsRequest, OffsetForLeaderEpochRequest};

use crate::pair::{Court, Pair};
use crate::seed::topic;

pub async fn judge(court: &Arc<Court>) {
    let mut pair = court.pair();
    for version in court.versions(ApiKey::ListOffsets) {
        by_time(&mut pair, version).await;
    }
    for version in court.versions(ApiKey::OffsetForLeaderEpoch) {
        by_epoch(&mut pair, version).await;
    }
}

async fn by_time(pair: &mut Pair, version: i16) {
    let of = |name: &str, partitions: &[(i32, i64)], epoch: i32| {
        let partition = |(index, timestamp): &(i32, i64)| {
            let partition =
                ListOffsetsPartition::default().with_partition_index(*index).with_timestamp(*timestamp);
            if version >= 4 { partition.with_current_leader_epoch(epoch) } else { partition }
        };
        let partitions = partitions.iter().map(partition).collect();
        let wanted = ListOffsetsTopic::default().with_name(topic(name)).with_partitions(partitions);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![wanted]);
        if version >= 10 { request.with_timeout_ms(10_000) } else { request }
    };
    for timestamp in -7..=0 {
        for name in ["seed", "empty", "times"] {
            let situation = format!("{timestamp} of {name}");
            pair.call(&situation, version, |_| of(name, &[(0, timestamp)], -1)).await;
        }
    }
    for timestamp in [1, 1_000, 1_001, 1_003, 3_000, 3_050, 4_001, 4_002, i64::MAX, i64::MIN] {
        let situation = format!("time {timestamp}");
        pair.call(&situation, version, |_| of("seed", &[(0, timestamp), (1, timestamp)], -1)).await;
    }
    for timestamp in [50, 100, 1_000, 4_000, 4_500, 5_000, 6_000, 9_000, 9_001] {
        let situation = format!("time {timestamp} in a log out of order");
        pair.call(&situation, version, |_| of("times", &[(0, timestamp)], -1)).await;
    }
    pair.call("an unknown topic", version, |_| of("unknown", &[(0, -1)], -1)).await;
    pair.call("unknown partitions", version, |_| of("seed", &[(0, -1), (9, -1), (-1, -1)], -1)).await;
    pair.call("a partition twice", version, |_| of("seed", &[(0, -1), (0, -2)], -1)).await;
    pair.call("nothing", version, |_| of("seed", &[], -1)).await;
    for isolation in [1, 9] {
        let situation = format!("isolation level {isolation}");
        if version >= 2 {
            pair.call(&situation, version, |_| of("seed", &[(0, -1)], -1).with_isolation_level(isolation))
                .await;
        }
    }
    if version >= 4 {
        for epoch in [0, 1, 9] {
            let situation = format!("leader epoch {epoch}");
            pair.call(&situation, version, |_| of("seed", &[(0, -1), (0, 3_000)], epoch)).await;
        }
    }
}

async fn by_epoch(pair: &mut Pair, version: i16) {
    let of = |name: &str, partition: i32, current: i32, epoch: i32| {
        let partition = OffsetForLeaderPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(current)
            .with_leader_epoch(epoch);
        let wanted = OffsetForLeaderTopic::default().with_topic(topic(name)).with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![wanted]);
        if version >= 3 { request.with_replica_id(BrokerId(-1)) } else { request }
    };
    for (current, epoch) in [(-1, 0), (0, 0), (-1, 1), (-1, 9), (1, 0), (9, 0), (-1, -1), (0, -1), (-1, -5)] {
        let situation = format!("epoch {epoch}, current {current}");
        pair.call(&situation, version, |_| of("seed", 0, current, epoch)).await;
        pair.call(&format!("{situation}, empty"), version, |_| of("empty", 0, current, epoch)).await;
    }
    pair.call("an unknown topic", version, |_| of("unknown", 0, -1, 0)).await;
    pair.call("an unknown partition", version, |_| of("seed", 9, -1, 0)).await;
}
