//! DescribeLogDirs, key 35, versions 1–4: what partitions take of the disk.
//!
//! * 2 is flexible; 3 adds an error for the whole answer, 4 the size of the volume and the room on it.
//!
//! There is one directory, the broker's data directory, with one replica of everything. A partition's size is what its
//! batches take; those of one task share their files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{ApiKey, DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName};

use super::text;
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Broker, Reply, Request, RequestError};
use crate::log::topics::Topic;
use crate::state::space;

/// DescribeLogDirs.
pub static API: Api = Api {
    key: ApiKey::DescribeLogDirs,
    versions: (1, 4),
    flexible_from: 2,
    shape: &[Field::new(Kind::Structs(TOPIC), 1)],
    handle: |request| Box::pin(handle(request)),
};

const TOPIC: &[Field] = &[Field::new(STRING, 1), Field::new(Kind::Array(&I32), 1)];

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: DescribeLogDirsRequest = request.decode()?;
    let broker = &request.broker;
    let topics = match &asked.topics {
        None => broker.topics.all().iter().map(|topic| describe(topic, |_| true)).collect(),
        Some(_) => named(broker, &asked),
    };
    let mut directory = DescribeLogDirsResult::default()
        .with_log_dir(text(&broker.data_dir.to_string_lossy()))
        .with_topics(topics);
    if request.version >= 4 {
        let path = broker.data_dir.clone();
        // A file system may be slow to answer.
        let space = tokio::task::spawn_blocking(move || space::of(&path)).await.ok().flatten();
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        directory.total_bytes = space.as_ref().map_or(-1, |space| bytes(space.size));
        directory.usable_bytes = space.as_ref().map_or(-1, |space| bytes(space.available));
    }
    Reply::encode(&DescribeLogDirsResponse::default().with_results(vec![directory]), request.version)
}

/// The partitions asked for, those that there are, each once.
fn named(broker: &Broker, asked: &DescribeLogDirsRequest) -> Vec<DescribeLogDirsTopic> {
    let mut topics: BTreeMap<String, (Arc<Topic>, BTreeSet<i32>)> = BTreeMap::new();
    for asked in asked.topics.iter().flatten() {
        if let Some(topic) = broker.topics.by_name(&asked.topic) {
            let (_, indexes) = topics.entry(topic.name.clone()).or_insert((topic, BTreeSet::new()));
            indexes.extend(&asked.partitions);
        }
    }
    topics.values().map(|(topic, indexes)| describe(topic, |index| indexes.contains(&index))).collect()
}

fn describe(topic: &Topic, wanted: impl Fn(i32) -> bool) -> DescribeLogDirsTopic {
    let partitions = (0..).zip(&topic.partitions).filter(|(index, _)| wanted(*index));
    let partitions = partitions.map(|(index, partition)| {
        let size = topic.log.partition_bytes(*partition);
        DescribeLogDirsPartition::default()
            .with_partition_index(index)
            .with_partition_size(i64::try_from(size).unwrap_or(i64::MAX))
    });
    DescribeLogDirsTopic::default()
        .with_name(TopicName(text(&topic.name)))
        .with_partitions(partitions.collect())
}
