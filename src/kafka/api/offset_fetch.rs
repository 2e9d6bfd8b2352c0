//! OffsetFetch, key 9, versions 1–9: how far groups have come.
//!
//! * 2: all topics by null; error of the whole. 3: throttle time. 4: as 3. 5: leader epoch. 6: flexible.
//!   7: `require_stable`. 8: many groups. 9: member id and epoch (KIP-848), and the errors UNKNOWN_MEMBER_ID and
//!   STALE_MEMBER_EPOCH for those that are not those of the group.
//!
//! Where nothing is committed the offset is -1 and there is no error. `require_stable` makes no difference, as there
//! are no transactions that could commit offsets. Version 10, with topic ids, is not in the protocol crate's requests.

use std::collections::{BTreeMap, HashSet};

use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{ApiKey, OffsetFetchRequest, OffsetFetchResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::group::Coordinator;
use crate::kafka::shape::{BOOL, Field, I32, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};
use crate::state::Committed;

/// OffsetFetch.
pub static API: Api = Api {
    key: ApiKey::OffsetFetch,
    versions: (1, 9),
    flexible_from: 6,
    shape: &[
        Field::new(STRING, 1).until(7),
        Field::new(Kind::Structs(&[Field::new(STRING, 1), Field::new(Kind::Array(&I32), 1)]), 1).until(7),
        Field::new(
            Kind::Structs(&[
                Field::new(STRING, 8),
                Field::new(STRING, 9),
                Field::new(I32, 9),
                Field::new(Kind::Structs(&[Field::new(STRING, 8), Field::new(Kind::Array(&I32), 8)]), 8),
            ]),
            8,
        ),
        Field::new(BOOL, 7),
    ],
    handle: |request| Box::pin(async move { handle(request) }),
};

/// A topic and what is committed in some of its partitions.
type Found = (TopicName, Vec<(i32, Option<Committed>)>);

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: OffsetFetchRequest = request.decode()?;
    let groups = &request.broker.groups;
    let mut answer = OffsetFetchResponse::default();
    if request.version < 8 {
        let topics =
            asked.topics.map(|topics| topics.into_iter().map(|t| (t.name, t.partition_indexes)).collect());
        let found = find(groups, &asked.group_id.0, topics);
        answer.topics = found.into_iter().map(|topic| old_topic(topic, request.version)).collect();
    } else {
        // Each group once, and in it each partition: what a short request asks for is bounded by what there is.
        let mut seen = HashSet::new();
        for group in asked.groups.into_iter().filter(|group| seen.insert(group.group_id.clone())) {
            // A member reads what is committed in its own epoch, so that it does not start from what is outdated.
            let valid = group
                .member_id
                .as_deref()
                .map(|id| groups.validate_fetch(&group.group_id.0, id, group.member_epoch));
            if let Some(Err(error)) = valid {
                let refused = OffsetFetchResponseGroup::default().with_error_code(error.code());
                answer.groups.push(refused.with_group_id(group.group_id));
                continue;
            }
            let topics = group
                .topics
                .map(|topics| topics.into_iter().map(|t| (t.name, t.partition_indexes)).collect());
            let found = find(groups, &group.group_id.0, topics);
            answer.groups.push(
                OffsetFetchResponseGroup::default()
                    .with_group_id(group.group_id)
                    .with_topics(found.into_iter().map(topic).collect()),
            );
        }
    }
    Reply::encode(&answer, request.version)
}

/// What a group has committed in the partitions asked for, or everywhere.
fn find(groups: &Coordinator, group: &str, asked: Option<Vec<(TopicName, Vec<i32>)>>) -> Vec<Found> {
    if let Some(asked) = asked {
        let mut seen = HashSet::new();
        let each = |(name, mut partitions): (TopicName, Vec<i32>)| {
            partitions.retain(|number| seen.insert((name.clone(), *number)));
            let found =
                partitions.into_iter().map(|number| (number, groups.committed(group, &name.0, number)));
            let found = found.collect();
            (name, found)
        };
        return asked.into_iter().map(each).collect();
    }
    let mut topics: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in groups.all_committed(group) {
        topics.entry(entry.topic).or_default().push((entry.partition, Some(entry.committed)));
    }
    topics.into_iter().map(|(name, found)| (TopicName(text(&name)), found)).collect()
}

fn topic((name, found): Found) -> OffsetFetchResponseTopics {
    let partitions = found.into_iter().map(|(number, committed)| {
        let (offset, epoch, metadata) = parts(committed);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(number)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(metadata))
    });
    OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
}

fn old_topic((name, found): Found, version: i16) -> OffsetFetchResponseTopic {
    let partitions = found.into_iter().map(|(number, committed)| {
        let (offset, epoch, metadata) = parts(committed);
        OffsetFetchResponsePartition::default()
            .with_partition_index(number)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(if version >= 5 { epoch } else { -1 })
            .with_metadata(Some(metadata))
    });
    OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
}

fn parts(committed: Option<Committed>) -> (i64, i32, StrBytes) {
    match committed {
        Some(found) => (found.offset, found.leader_epoch, text(&found.metadata)),
        None => (-1, -1, StrBytes::default()),
    }
}
