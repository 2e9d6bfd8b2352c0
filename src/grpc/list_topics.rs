//! ListTopics: what there is to read.

use tonic::Status;

use super::{Broker, request};
use crate::log::topics::Topic;
use crate::log::view::View;
use crate::proto::{self, ListTopicsRequest, ListTopicsResponse};

/// Partitions in one answer, so that it stays well below the 4 MiB that clients take by default; more only where a single
/// topic has them.
const PAGE: usize = 50_000;

/// Answers from one snapshot of each log (I1).
pub fn list_topics(broker: &Broker, asked: ListTopicsRequest) -> Result<ListTopicsResponse, Status> {
    request::few(asked.topics.len())?;
    let mut topics = match asked.topics.is_empty() {
        true => broker.topics.all(),
        false => {
            let named = asked.topics.iter().map(|name| request::topic(&broker.topics, name));
            named.collect::<Result<Vec<_>, _>>()?
        }
    };
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    topics.dedup_by(|a, b| a.name == b.name);
    let mut view = View::default();
    let (mut answer, mut partitions) = (ListTopicsResponse::default(), 0);
    for topic in topics.iter().filter(|topic| topic.name > asked.after) {
        partitions += topic.partitions.len();
        if partitions > PAGE && !answer.topics.is_empty() {
            answer.more = true;
            break;
        }
        answer.topics.push(describe(broker, topic, &mut view));
    }
    Ok(answer)
}

fn describe(broker: &Broker, topic: &Topic, view: &mut View) -> proto::Topic {
    let places = (0..topic.partitions.len()).filter_map(|index| view.find(topic, index));
    let places: Vec<_> = places.collect();
    let ranges = places.into_iter().map(|place| view.range(place));
    proto::Topic {
        name: topic.name.clone(),
        id: topic.id.to_string(),
        content_type: broker.media_types.of(&topic.name).to_owned(),
        decodable: broker.media_types.is_decodable(&topic.name),
        partitions: ranges
            .map(|range| proto::PartitionRange { start: range.start.0, high_watermark: range.end.0 })
            .collect(),
    }
}
