//! What both hold before they are asked.
//!
//! Topics of four partitions each:
//!
//! - `seed`: 0 has batches of 3, 1, 5 and 2 records with offsets 0–10, 1 has one record;
//! - `sizes`: a small batch, one of 200 kB, one of 2 kB, in 0 and in 1;
//! - `times`: timestamps that go up and down, in 0;
//! - `empty`: no records.

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest, MetadataRequest, ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use crate::pair::{Both, Court, Pair};
use crate::records::batch;

pub fn topic(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub fn produce(name: &str, partition: i32, records: bytes::Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(records));
    let data = TopicProduceData::default().with_name(topic(name)).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(vec![data])
}

/// A request for the metadata of one topic.
pub fn metadata(name: &str) -> MetadataRequest {
    let wanted = MetadataRequestTopic::default().with_name(Some(topic(name)));
    MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(false)
}

/// Makes a topic on both by asking for it, and gives its id the name `id of <topic>`.
pub async fn make(pair: &mut Pair, name: &str) {
    let ask = |_: &_| metadata(name).with_allow_auto_topic_creation(true);
    // Kafka has it a little later, and leads its partitions later still.
    let leads = |_: &_| {
        let end = |index: i32| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(-1);
        let of =
            ListOffsetsTopic::default().with_name(topic(name)).with_partitions((0..4).map(end).collect());
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![of])
    };
    for _ in 0..200 {
        let found = pair.call_tidied("a new topic", 12, ask, |answer| answer.topics.clear()).await;
        let found = found.expect("metadata");
        let led = pair.call_tidied("a new topic", 1, leads, |answer| answer.topics.clear()).await;
        let is_led = led.expect("offsets").kafka.topics[0].partitions.iter().all(|end| end.error_code == 0);
        if is_led && found.kafka.topics.iter().all(|topic| topic.error_code == 0) {
            pair.learn(&format!("id of {name}"), &found, |answer| answer.topics[0].topic_id.to_string());
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("Kafka does not know topic {name}");
}

pub async fn cluster_id(court: &std::sync::Arc<Court>) -> String {
    let mut pair = court.pair();
    let nothing = |_: &crate::pair::Names| MetadataRequest::default().with_topics(Some(Vec::new()));
    let found = pair.call_tidied("the cluster's id", 9, nothing, |answer| answer.cluster_id = None).await;
    let Both { ours, .. } = found.expect("metadata");
    ours.cluster_id.expect("a cluster's id").to_string()
}

pub async fn fill(court: &std::sync::Arc<Court>) {
    let mut pair = court.pair();
    for name in ["seed", "sizes", "times", "empty"] {
        make(&mut pair, name).await;
    }
    let seeds = [
        ("seed", 0, batch(&[1_000, 1_001, 1_002], 20)),
        ("seed", 0, batch(&[2_000], 20)),
        ("seed", 0, batch(&[3_000, 3_000, 3_100, 3_000, 3_001], 20)),
        ("seed", 0, batch(&[4_000, 4_001], 20)),
        ("seed", 1, batch(&[1_500], 20)),
        ("sizes", 0, batch(&[1_000], 100)),
        ("sizes", 0, batch(&[1_001], 200_000)),
        ("sizes", 0, batch(&[1_002], 2_000)),
        ("sizes", 1, batch(&[1_000], 100)),
        ("sizes", 1, batch(&[1_001], 200_000)),
        ("sizes", 1, batch(&[1_002], 2_000)),
        ("times", 0, batch(&[5_000, 4_000], 20)),
        ("times", 0, batch(&[1_000, 9_000, 2_000], 20)),
        ("times", 0, batch(&[9_000, 100], 20)),
    ];
    for (name, partition, records) in seeds {
        let produced = pair.call("seeds", 9, |_| produce(name, partition, records.clone())).await;
        let produced =
            produced.expect("an answer").map(|answer| answer.responses[0].partition_responses[0].error_code);
        assert_eq!((produced.kafka, produced.ours), (0, 0));
    }
}
