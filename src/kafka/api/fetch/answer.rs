//! A Fetch answer, written around stored batches: fields into one buffer, and between its pieces the batches' own
//! bytes, so that no record is copied on its way to the socket.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use tokio::sync::OwnedSemaphorePermit;

use super::table::TopicKey;
use crate::kafka::{NODE_ID, Reply};
use crate::log::Offset;

/// First version with compact lengths and tagged fields.
const FLEXIBLE: i16 = 12;
/// First version that tells clients with an old leader epoch of the leader that there is (KIP-951).
const LEADERS: i16 = 16;

/// An answer in the making.
pub struct Answer {
    version: i16,
    head: BytesMut,
    pieces: Vec<Bytes>,
}

/// What an answer says of a partition besides its records.
#[derive(Debug)]
pub struct Partition {
    /// Its number in the topic.
    pub index: i32,
    /// Why there are no records.
    pub error: Option<ResponseError>,
    /// The high watermark; also the last stable offset.
    pub high_watermark: Offset,
    /// First offset there is.
    pub log_start: Offset,
    /// An epoch and where it ends: before the records that the client has.
    pub diverging: Option<(i32, Offset)>,
    /// The leader epoch, for a client that has an older one.
    pub leader_epoch: Option<i32>,
}

impl Partition {
    /// A partition that cannot be read.
    pub fn failed(index: i32, error: ResponseError) -> Partition {
        Partition { error: Some(error), ..Partition::read(index, Offset(-1), Offset(-1)) }
    }

    /// A partition that can be read.
    pub fn read(index: i32, log_start: Offset, high_watermark: Offset) -> Partition {
        Partition { index, error: None, high_watermark, log_start, diverging: None, leader_epoch: None }
    }
}

/// Where clients are told to find this broker.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// Host.
    pub host: &'a str,
    /// Port.
    pub port: u16,
}

impl Answer {
    /// An answer of a session (0: none) over so many topics.
    pub fn new(version: i16, error: Option<ResponseError>, session: i32, topics: usize) -> Answer {
        let mut answer = Answer { version, head: BytesMut::with_capacity(256), pieces: Vec::new() };
        answer.head.put_i32(0); // throttle time
        if version >= 7 {
            answer.head.put_i16(code(error));
            answer.head.put_i32(session);
        }
        answer.count(topics);
        answer
    }

    /// Begins a topic of so many partitions.
    pub fn topic(&mut self, topic: &TopicKey, partitions: usize) {
        match topic {
            TopicKey::Id(id) => self.head.put_slice(id.as_bytes()),
            TopicKey::Name(name) => self.string(name),
        }
        self.count(partitions);
    }

    /// Adds a partition with its batches.
    pub fn partition(&mut self, partition: &Partition, read_committed: bool, batches: Vec<Bytes>) {
        self.head.put_i32(partition.index);
        self.head.put_i16(code(partition.error));
        self.head.put_i64(partition.high_watermark.0);
        self.head.put_i64(partition.high_watermark.0); // last stable offset
        if self.version >= 5 {
            self.head.put_i64(partition.log_start.0);
        }
        // Aborted transactions: none, or null for those who do not ask and where nothing could be read.
        let none = match partition.error {
            None => read_committed,
            Some(error) => is_unknown(error),
        };
        match none {
            true => self.count(0),
            false if self.version >= FLEXIBLE => self.varint(0),
            false => self.head.put_i32(-1),
        }
        if self.version >= 11 {
            self.head.put_i32(-1); // preferred read replica
        }
        // Records: empty, never null.
        self.count(batches.iter().map(Bytes::len).sum());
        if !batches.is_empty() {
            self.pieces.push(self.head.split().freeze());
            self.pieces.extend(batches);
        }
        let diverging = partition.diverging.filter(|_| self.version >= FLEXIBLE);
        let leader_epoch = partition.leader_epoch.filter(|_| self.version >= LEADERS);
        if diverging.is_none() && leader_epoch.is_none() {
            return self.end_struct();
        }
        self.head.put_u8(u8::from(diverging.is_some()) + u8::from(leader_epoch.is_some()));
        if let Some((epoch, end)) = diverging {
            self.head.put_slice(&[0, 13]); // tag, size
            self.head.put_i32(epoch);
            self.head.put_i64(end.0);
            self.head.put_u8(0);
        }
        if let Some(epoch) = leader_epoch {
            self.head.put_slice(&[1, 9]);
            self.head.put_i32(NODE_ID);
            self.head.put_i32(epoch);
            self.head.put_u8(0);
        }
    }

    /// Ends a topic.
    pub fn end_topic(&mut self) {
        self.end_struct();
    }

    /// Ends the answer, with the leader of partitions whose leader epoch it tells. The permit is held until its bytes
    /// have been sent.
    pub fn finish(mut self, leader: Option<Endpoint<'_>>, permit: Option<OwnedSemaphorePermit>) -> Reply {
        match leader.filter(|_| self.version >= LEADERS) {
            Some(leader) => self.node_endpoints(leader),
            None => self.end_struct(),
        }
        let last = self.head.freeze();
        self.pieces.push(match permit {
            Some(permit) => Bytes::from_owner(Held { bytes: last, _permit: permit }),
            None => last,
        });
        Reply(self.pieces)
    }

    /// One tagged field, which is this node.
    fn node_endpoints(&mut self, leader: Endpoint<'_>) {
        let before = std::mem::take(&mut self.head);
        self.count(1);
        self.head.put_i32(NODE_ID);
        self.string(leader.host);
        self.head.put_i32(leader.port.into());
        self.varint(0); // no rack
        self.end_struct();
        let nodes = std::mem::replace(&mut self.head, before);
        self.head.put_slice(&[1, 0]); // one field, tag
        self.varint(nodes.len());
        self.head.put_slice(&nodes);
    }

    fn string(&mut self, text: &str) {
        match self.version {
            FLEXIBLE.. => self.varint(text.len() + 1),
            _ => self.head.put_i16(text.len() as i16),
        }
        self.head.put_slice(text.as_bytes());
    }

    /// The count or length in front of an array or of bytes.
    fn count(&mut self, count: usize) {
        match self.version {
            FLEXIBLE.. => self.varint(count + 1),
            _ => self.head.put_i32(count as i32),
        }
    }

    /// No tagged fields.
    fn end_struct(&mut self) {
        if self.version >= FLEXIBLE {
            self.head.put_u8(0);
        }
    }

    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.head.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.head.put_u8(value as u8);
    }
}

/// Whether there is no such partition, as opposed to one that cannot be read.
pub fn is_unknown(error: ResponseError) -> bool {
    matches!(error, ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId)
}

fn code(error: Option<ResponseError>) -> i16 {
    error.map_or(0, |error| error.code())
}

/// Bytes that give memory back when they are dropped.
struct Held {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::fetch_response::{
        EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
    };
    use kafka_protocol::messages::{FetchResponse, TopicName};
    use kafka_protocol::protocol::{Encodable, StrBytes};
    use uuid::Uuid;

    use super::*;
    use crate::kafka::api::fetch::table::TOPIC_IDS;

    const HERE: Endpoint<'static> = Endpoint { host: "localhost", port: 9092 };

    /// What may stand in an answer, and what the protocol crate makes of it.
    fn partitions(version: i16, read_committed: bool) -> Vec<(Partition, Vec<Bytes>, PartitionData)> {
        let data = |index| {
            PartitionData::default()
                .with_partition_index(index)
                .with_high_watermark(9)
                .with_last_stable_offset(9)
                .with_log_start_offset(3)
                .with_aborted_transactions(read_committed.then(Vec::new))
                .with_preferred_read_replica((-1).into())
                .with_records(Some(Bytes::new()))
        };
        let failure = |index, error: ResponseError| {
            data(index)
                .with_error_code(error.code())
                .with_high_watermark(-1)
                .with_last_stable_offset(-1)
                .with_log_start_offset(-1)
                .with_aborted_transactions(None)
        };
        let read = |index| Partition::read(index, Offset(3), Offset(9));
        let mut all = Vec::new();
        let many = vec![Bytes::from(vec![2; 70_000]), "x".into()];
        for (index, batches) in [vec![], vec![Bytes::from(vec![1; 100])], many].into_iter().enumerate() {
            let expected = data(index as i32).with_records(Some(batches.concat().into()));
            all.push((read(index as i32), batches, expected));
        }
        let mut diverging = data(5);
        if version >= FLEXIBLE {
            diverging.diverging_epoch = EpochEndOffset::default().with_epoch(4).with_end_offset(8);
        }
        all.push((Partition { diverging: Some((4, Offset(8))), ..read(5) }, vec![], diverging));
        let gone = ResponseError::OffsetOutOfRange;
        all.push((Partition::failed(77, gone), vec![], failure(77, gone)));
        let unknown = ResponseError::UnknownTopicOrPartition;
        let nothing_aborted = failure(78, unknown).with_aborted_transactions(Some(vec![]));
        all.push((Partition::failed(78, unknown), vec![], nothing_aborted));
        let old = ResponseError::FencedLeaderEpoch;
        let mut fenced = failure(8, old);
        if version >= LEADERS {
            fenced.current_leader =
                LeaderIdAndEpoch::default().with_leader_id(NODE_ID.into()).with_leader_epoch(6);
        }
        all.push((Partition { leader_epoch: Some(6), ..Partition::failed(8, old) }, vec![], fenced));
        all
    }

    #[test]
    fn every_version_is_byte_for_byte_what_the_protocol_crate_writes() {
        let id = Uuid::from_u128(7 << 90 | 1);
        for version in 4..=18 {
            for read_committed in [false, true] {
                let mut answer = Answer::new(version, None, 77, 2);
                let mut expected = FetchResponse::default();
                if version >= 7 {
                    expected.session_id = 77;
                }
                for name in ["first", "a name that is longer"] {
                    let mut topic = FetchableTopicResponse::default();
                    let key = match version {
                        TOPIC_IDS.. => TopicKey::Id(id),
                        _ => TopicKey::Name(name.into()),
                    };
                    match version {
                        TOPIC_IDS.. => topic.topic_id = id,
                        _ => topic.topic = TopicName(StrBytes::from_static_str(name)),
                    }
                    let partitions = partitions(version, read_committed);
                    answer.topic(&key, partitions.len());
                    for (partition, batches, data) in partitions {
                        answer.partition(&partition, read_committed, batches);
                        topic.partitions.push(data);
                    }
                    answer.end_topic();
                    expected.responses.push(topic);
                }
                if version >= LEADERS {
                    let node = NodeEndpoint::default().with_node_id(NODE_ID.into()).with_port(9092);
                    expected.node_endpoints = vec![node.with_host(StrBytes::from_static_str("localhost"))];
                }
                let mut bytes = BytesMut::new();
                expected.encode(&mut bytes, version).unwrap();
                let Reply(pieces) = answer.finish(Some(HERE), None);
                assert!(pieces.concat() == bytes, "version {version}, read_committed {read_committed}");
            }
        }
    }

    #[test]
    fn batches_are_handed_on_without_a_copy() {
        let batch = Bytes::from(vec![1; 100]);
        let mut answer = Answer::new(11, None, 0, 1);
        answer.topic(&TopicKey::Name("t".into()), 1);
        answer.partition(&Partition::read(0, Offset(0), Offset(1)), false, vec![batch.clone()]);
        answer.end_topic();
        let Reply(pieces) = answer.finish(None, None);
        assert!(pieces.iter().any(|piece| piece.as_ptr() == batch.as_ptr()));
    }
}
