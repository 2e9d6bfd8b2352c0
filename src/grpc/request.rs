//! What requests name, checked and found (I8).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::Status;

use super::{Broker, MAX_PARTITIONS};
use crate::group::subscriber::TopicPartition;
use crate::log::topics::{Topic, Topics};
use crate::proto;

/// Bytes of a group's name.
const MAX_GROUP: usize = 255;
/// Topics that are named to a client whose own is not there.
const NEAR: usize = 3;

/// The topic of that name.
pub fn topic(topics: &Topics, name: &str) -> Result<Arc<Topic>, Status> {
    if let Some(topic) = topics.by_name(name) {
        return Ok(topic);
    }
    let mut near = topics.all();
    near.sort_by_key(|topic| Reverse(common_prefix(&topic.name, name)));
    let near: Vec<_> = near.iter().take(NEAR).map(|topic| &*topic.name).collect();
    let shown: String = name.chars().take(64).collect();
    Err(Status::not_found(match near.is_empty() {
        true => format!("there is no topic {shown:?}, nor any other yet"),
        false => format!("there is no topic {shown:?}; near: {}; ListTopics has them all", near.join(", ")),
    }))
}

fn common_prefix(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
}

/// That partition of the topic, by its number there.
pub fn partition(topic: &Topic, partition: u32) -> Result<usize, Status> {
    let index = partition as usize;
    if index < topic.partitions.len() {
        return Ok(index);
    }
    let last = topic.partitions.len().saturating_sub(1);
    Err(Status::not_found(format!("topic {} has partitions 0 to {last}, not {partition}", topic.name)))
}

/// The partitions that a selection stands for, each once.
pub fn partitions(
    topics: &Topics,
    selection: &[proto::TopicSelection],
) -> Result<BTreeSet<TopicPartition>, Status> {
    let (mut all, mut named) = (BTreeSet::new(), 0);
    for selected in selection {
        let topic = self::topic(topics, &selected.topic)?;
        let name: Arc<str> = topic.name.as_str().into();
        // Counted each time, as naming the same again and again is work too.
        let mut add = |index: usize| {
            named += 1;
            all.insert(TopicPartition { topic: name.clone(), partition: index as i32 });
            few(named)
        };
        match selected.partitions.is_empty() {
            true => (0..topic.partitions.len()).try_for_each(&mut add)?,
            false => selected.partitions.iter().try_for_each(|number| add(partition(&topic, *number)?))?,
        }
    }
    Ok(all)
}

/// Refuses to decode what is no [`Change`](proto::Change), where that is asked for.
pub fn decodable(broker: &Broker, asked: bool, topic: &str) -> Result<(), Status> {
    if !asked || broker.media_types.is_decodable(topic) {
        return Ok(());
    }
    let is = broker.media_types.of(topic);
    Err(Status::failed_precondition(format!(
        "the values of {topic} are {is}, and only those of outputs in format protobuf are decoded; ask without decode"
    )))
}

/// Refuses more entries than a call may have.
pub fn few(entries: usize) -> Result<(), Status> {
    if entries <= MAX_PARTITIONS {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "a call is for at most {MAX_PARTITIONS} topics, partitions or offsets; make several"
    )))
}

/// Refuses what is no group's name.
pub fn group(name: &str) -> Result<(), Status> {
    if (1..=MAX_GROUP).contains(&name.len()) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("a group's name has 1 to {MAX_GROUP} bytes, not {}", name.len())))
}
