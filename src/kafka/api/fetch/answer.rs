//! A Fetch answer, written around stored batches: fields into one buffer, and between its pieces the batches' own
//! bytes, so that no record is copied on its way to the socket.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::kafka::Reply;
use crate::log::Offset;

/// First version with compact lengths and tagged fields.
const FLEXIBLE: i16 = 12;

/// An answer in the making.
pub struct Answer {
    version: i16,
    head: BytesMut,
    pieces: Vec<Bytes>,
}

/// What an answer says of a partition besides its records.
pub struct Partition {
    /// Its number in the topic.
    pub index: i32,
    /// Why there are no records.
    pub error: Option<ResponseError>,
    /// The high watermark; also the last stable offset.
    pub high_watermark: Offset,
    /// First offset there is.
    pub log_start: Offset,
}

impl Partition {
    /// A partition that cannot be read.
    pub fn failed(index: i32, error: ResponseError) -> Partition {
        Partition { index, error: Some(error), high_watermark: Offset(-1), log_start: Offset(-1) }
    }
}

impl Answer {
    /// An answer over so many topics.
    pub fn new(version: i16, error: Option<ResponseError>, topics: usize) -> Answer {
        let mut answer = Answer { version, head: BytesMut::with_capacity(256), pieces: Vec::new() };
        answer.head.put_i32(0); // throttle time
        if version >= 7 {
            answer.head.put_i16(code(error));
            answer.head.put_i32(0); // session id
        }
        answer.count(topics);
        answer
    }

    /// Begins a topic of so many partitions.
    pub fn topic(&mut self, name: &str, id: Uuid, partitions: usize) {
        match self.version {
            13.. => self.head.put_slice(id.as_bytes()),
            FLEXIBLE.. => {
                self.varint(name.len() + 1);
                self.head.put_slice(name.as_bytes());
            }
            _ => {
                self.head.put_i16(name.len() as i16);
                self.head.put_slice(name.as_bytes());
            }
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
        // Aborted transactions: none, or null for those who do not ask.
        match read_committed {
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
        self.end_struct();
    }

    /// Ends a topic.
    pub fn end_topic(&mut self) {
        self.end_struct();
    }

    /// Ends the answer. The permit is held until its bytes have been sent.
    pub fn finish(mut self, permit: Option<OwnedSemaphorePermit>) -> Reply {
        self.end_struct();
        let last = self.head.freeze();
        self.pieces.push(match permit {
            Some(permit) => Bytes::from_owner(Held { bytes: last, _permit: permit }),
            None => last,
        });
        Reply(self.pieces)
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
    use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
    use kafka_protocol::messages::{FetchResponse, TopicName};
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;

    #[test]
    fn every_version_is_byte_for_byte_what_the_protocol_crate_writes() {
        let id = Uuid::from_u128(7 << 90 | 1);
        let batches =
            [vec![], vec![Bytes::from(vec![1; 100])], vec![Bytes::from(vec![2; 70_000]), "x".into()]];
        for version in 4..=18 {
            for read_committed in [false, true] {
                let mut answer = Answer::new(version, None, 2);
                let mut expected = FetchResponse::default();
                for name in ["first", "a name that is longer"] {
                    let mut topic = FetchableTopicResponse::default();
                    match version {
                        13.. => topic.topic_id = id,
                        _ => topic.topic = TopicName(StrBytes::from_static_str(name)),
                    }
                    answer.topic(name, id, batches.len() + 1);
                    for (index, batches) in batches.iter().enumerate() {
                        let partition = Partition {
                            index: index as i32,
                            error: None,
                            high_watermark: Offset(9),
                            log_start: Offset(3),
                        };
                        answer.partition(&partition, read_committed, batches.clone());
                        topic.partitions.push(
                            PartitionData::default()
                                .with_partition_index(index as i32)
                                .with_high_watermark(9)
                                .with_last_stable_offset(9)
                                .with_log_start_offset(3)
                                .with_aborted_transactions(read_committed.then(Vec::new))
                                .with_preferred_read_replica((-1).into())
                                .with_records(Some(batches.concat().into())),
                        );
                    }
                    let failed = Partition::failed(77, ResponseError::OffsetOutOfRange);
                    answer.partition(&failed, read_committed, Vec::new());
                    topic.partitions.push(
                        PartitionData::default()
                            .with_partition_index(77)
                            .with_error_code(ResponseError::OffsetOutOfRange.code())
                            .with_high_watermark(-1)
                            .with_last_stable_offset(-1)
                            .with_log_start_offset(-1)
                            .with_aborted_transactions(read_committed.then(Vec::new))
                            .with_preferred_read_replica((-1).into())
                            .with_records(Some(Bytes::new())),
                    );
                    answer.end_topic();
                    expected.responses.push(topic);
                }
                let mut bytes = BytesMut::new();
                expected.encode(&mut bytes, version).unwrap();
                let Reply(pieces) = answer.finish(None);
                assert!(pieces.concat() == bytes, "version {version}, read_committed {read_committed}");
            }
        }
    }

    #[test]
    fn batches_are_handed_on_without_a_copy() {
        let batch = Bytes::from(vec![1; 100]);
        let mut answer = Answer::new(11, None, 1);
        answer.topic("t", Uuid::nil(), 1);
        let partition = Partition { index: 0, error: None, high_watermark: Offset(1), log_start: Offset(0) };
        answer.partition(&partition, false, vec![batch.clone()]);
        answer.end_topic();
        let Reply(pieces) = answer.finish(None);
        assert!(pieces.iter().any(|piece| piece.as_ptr() == batch.as_ptr()));
    }
}
