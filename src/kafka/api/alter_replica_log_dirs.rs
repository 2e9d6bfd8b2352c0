//! AlterReplicaLogDirs, key 34, versions 1–2: in which directory a replica is to lie.
//!
//! * 2 is flexible.
//!
//! There is one directory, where everything lies already; any other is LOG_DIR_NOT_FOUND, as in Apache Kafka.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_replica_log_dirs_response::{
    AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult,
};
use kafka_protocol::messages::{AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse, ApiKey};

use super::{at_once, has_partition};
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Request};

/// AlterReplicaLogDirs.
pub static API: Api = Api {
    key: ApiKey::AlterReplicaLogDirs,
    versions: (1, 2),
    flexible_from: 2,
    shape: &[Field::new(Kind::Structs(DIRECTORY), 1)],
    handle: |request| at_once(request, answer),
};

const TOPIC: &[Field] = &[Field::new(STRING, 1), Field::new(Kind::Array(&I32), 1)];
const DIRECTORY: &[Field] = &[Field::new(STRING, 1), Field::new(Kind::Structs(TOPIC), 1)];

fn answer(request: &Request, asked: AlterReplicaLogDirsRequest) -> AlterReplicaLogDirsResponse {
    let broker = &request.broker;
    let mut results = Vec::new();
    for directory in asked.dirs {
        let is_ours = *directory.path == *broker.data_dir.to_string_lossy();
        for topic in directory.topics {
            let partition = |index: &i32| {
                let error = match (is_ours, has_partition(broker, &topic.name, *index)) {
                    (false, _) => ResponseError::LogDirNotFound.code(),
                    (true, false) => ResponseError::UnknownTopicOrPartition.code(),
                    (true, true) => 0,
                };
                AlterReplicaLogDirPartitionResult::default()
                    .with_partition_index(*index)
                    .with_error_code(error)
            };
            results.push(
                AlterReplicaLogDirTopicResult::default()
                    .with_partitions(topic.partitions.iter().map(partition).collect())
                    .with_topic_name(topic.name),
            );
        }
    }
    AlterReplicaLogDirsResponse::default().with_results(results)
}
