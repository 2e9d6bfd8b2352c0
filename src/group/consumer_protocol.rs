//! What consumers write into JoinGroup and SyncGroup: Kafka's ConsumerProtocolSubscription and
//! ConsumerProtocolAssignment, versions 0–3 (`clients/src/main/resources/common/message/` of Apache Kafka).
//!
//! * Subscription: version, topics, user data; 1: partitions that the member owns; 2: the generation in which it got
//!   them; 3: its rack. Assignment: version, partitions, user data, the same in all versions.
//! * A later version has further fields behind those of an earlier one, so that every reader takes what it knows and
//!   leaves the rest.
//!
//! Both come from clients. Nothing is set aside by a count that they name: memory follows the bytes that are there.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

/// The protocol type of groups whose members write this.
pub(super) const PROTOCOL_TYPE: &str = "consumer";

/// The version that Java's consumer and librdkafka write.
const VERSION: i16 = 3;
/// The generation of a member that has none.
pub(super) const NO_GENERATION: i32 = -1;

/// Partitions by topic.
pub(super) type Parts<'a> = BTreeMap<&'a str, Vec<i32>>;

/// What a member wants, and has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subscription<'a> {
    /// The topics that it has subscribed to.
    pub topics: Vec<&'a str>,
    /// The partitions that it has not given up.
    pub owned: Parts<'a>,
    /// The generation in which it got them, or [`NO_GENERATION`].
    pub generation: i32,
}

impl<'a> Subscription<'a> {
    /// Reads a member's metadata; `None` when it is something else.
    pub fn decode(metadata: &'a [u8]) -> Option<Subscription<'a>> {
        let mut from = Reader(metadata);
        let version = from.i16()?;
        let topics = from.topics()?;
        let user_data = from.bytes()?;
        let mut subscription = Subscription { topics, owned: Parts::new(), generation: NO_GENERATION };
        if version >= 1 {
            subscription.owned = from.parts()?;
        }
        if version >= 2 {
            subscription.generation = from.i32()?;
        } else if let Some(generation) = user_data.first_chunk() {
            // Cooperative-sticky's own note, in clients that do not know the field.
            subscription.generation = i32::from_be_bytes(*generation);
        }
        Some(subscription)
    }

    /// The metadata of a member. Its generation also goes to where leaders of before version 2 look for it: they would
    /// not count what it owns as owned, and give it to others before it is given up.
    ///
    /// `None` when a name is too long for it.
    pub fn encode(&self) -> Option<Bytes> {
        let mut to = Vec::new();
        to.put_i16(VERSION);
        to.put_i32(i32::try_from(self.topics.len()).ok()?);
        for topic in &self.topics {
            put_string(&mut to, topic)?;
        }
        to.put_i32(size_of::<i32>() as i32);
        to.put_i32(self.generation);
        put_parts(&mut to, &self.owned)?;
        to.put_i32(self.generation);
        // No rack.
        to.put_i16(-1);
        Some(to.into())
    }
}

/// The topics in a member's metadata; `None` when it is something else.
pub(super) fn topics(metadata: &[u8]) -> Option<Vec<&str>> {
    let mut from = Reader(metadata);
    from.i16()?;
    from.topics()
}

/// Writes what a leader gives a member. `None` when a name is too long for it.
pub(super) fn encode_assignment(parts: &Parts<'_>) -> Option<Bytes> {
    let mut to = Vec::new();
    to.put_i16(VERSION);
    put_parts(&mut to, parts)?;
    // No user data.
    to.put_i32(0);
    Some(to.into())
}

/// Reads what a leader has given. Nothing at all is what a member gets that the leader has forgotten.
pub(super) fn decode_assignment(assignment: &[u8]) -> Option<Parts<'_>> {
    if assignment.is_empty() {
        return Some(Parts::new());
    }
    let mut from = Reader(assignment);
    from.i16()?;
    from.parts()
}

fn put_string(to: &mut Vec<u8>, text: &str) -> Option<()> {
    to.put_i16(i16::try_from(text.len()).ok()?);
    to.put_slice(text.as_bytes());
    Some(())
}

fn put_parts(to: &mut Vec<u8>, parts: &Parts<'_>) -> Option<()> {
    to.put_i32(i32::try_from(parts.len()).ok()?);
    for (topic, partitions) in parts {
        put_string(to, topic)?;
        to.put_i32(i32::try_from(partitions.len()).ok()?);
        for partition in partitions {
            to.put_i32(*partition);
        }
    }
    Some(())
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn i16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.i16()?).ok()?;
        std::str::from_utf8(self.slice(length)?).ok()
    }

    /// Bytes; none are as good as null.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        match self.i32()? {
            -1 => Some(&[]),
            length => self.slice(usize::try_from(length).ok()?),
        }
    }

    fn topics(&mut self) -> Option<Vec<&'a str>> {
        let count = u32::try_from(self.i32()?).ok()?;
        (0..count).map(|_| self.string()).collect()
    }

    fn parts(&mut self) -> Option<Parts<'a>> {
        let mut parts = Parts::new();
        for _ in 0..u32::try_from(self.i32()?).ok()? {
            let topic = self.string()?;
            let partitions = parts.entry(topic).or_default();
            for _ in 0..u32::try_from(self.i32()?).ok()? {
                partitions.push(self.i32()?);
            }
        }
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as Assigned;
    use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as Owned;
    use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName(StrBytes::from_string(text.to_owned()))
    }

    fn versioned(version: i16, message: &impl Encodable) -> Vec<u8> {
        let mut bytes = version.to_be_bytes().to_vec();
        message.encode(&mut bytes, version).unwrap();
        bytes
    }

    #[test]
    fn what_kafka_writes_in_any_version_is_read() {
        for version in 0..=3 {
            let mut theirs = ConsumerProtocolSubscription::default()
                .with_topics(vec![StrBytes::from_static_str("a"), StrBytes::from_static_str("bc")])
                .with_user_data((version < 2).then(|| Bytes::from_static(b"\0\0\0\x07")));
            if version >= 1 {
                let owned = Owned::default().with_topic(name("a")).with_partitions(vec![0, 2]);
                theirs = theirs.with_owned_partitions(vec![owned]);
            }
            if version >= 2 {
                theirs = theirs.with_generation_id(7);
            }
            let bytes = versioned(version, &theirs);
            let ours = Subscription::decode(&bytes).unwrap();
            let owned = if version >= 1 { Parts::from([("a", vec![0, 2])]) } else { Parts::new() };
            assert_eq!(ours, Subscription { topics: vec!["a", "bc"], owned, generation: 7 });
            assert_eq!(topics(&bytes), Some(vec!["a", "bc"]));
        }
    }

    #[test]
    fn kafka_reads_what_is_written() {
        let parts = Parts::from([("a", vec![0, 2]), ("b", vec![])]);
        let ours = Subscription { topics: vec!["a", "c"], owned: parts.clone(), generation: 9 };
        let mut bytes = ours.encode().unwrap();
        assert_eq!(Subscription::decode(&bytes.clone()).unwrap(), ours);
        let version = i16::from_be_bytes(bytes.split_to(2)[..].try_into().unwrap());
        let theirs = ConsumerProtocolSubscription::decode(&mut bytes, version).unwrap();
        assert!(bytes.is_empty());
        assert_eq!((theirs.generation_id, theirs.rack_id), (9, None));
        assert_eq!(theirs.user_data.as_deref(), Some(&b"\0\0\0\x09"[..]));
        assert_eq!(theirs.owned_partitions[0].partitions, [0, 2]);

        let mut bytes = encode_assignment(&parts).unwrap();
        assert_eq!(decode_assignment(&bytes.clone()).unwrap(), parts);
        let version = i16::from_be_bytes(bytes.split_to(2)[..].try_into().unwrap());
        let theirs = ConsumerProtocolAssignment::decode(&mut bytes, version).unwrap();
        assert!(bytes.is_empty());
        let each = |(topic, partitions): (&&str, &Vec<i32>)| {
            Assigned::default().with_topic(name(topic)).with_partitions(partitions.clone())
        };
        assert_eq!(theirs.assigned_partitions, parts.iter().map(each).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_subscription_is_not_taken_for_one() {
        for metadata in
            [&b""[..], b"\0", b"\0\x01\0\0", b"\0\x01\xff\xff\xff\xff\0\x01a", b"\0\x01\0\0\0\x01\0\x01\xff"]
        {
            assert_eq!(topics(metadata), None, "{metadata:?}");
        }
        // It says that it owns two thousand million partitions.
        assert_eq!(decode_assignment(b"\0\x01\0\0\0\x01\0\x01a\x7f\xff\xff\xff\0\0\0\x01"), None);
        assert_eq!(decode_assignment(b"\0\x01\x7f\xff\xff\xff"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(prop_oneof![Just(0u8), 0..4u8, any::<u8>()], 0..60)) {
            Subscription::decode(&bytes);
            decode_assignment(&bytes);
        }
    }
}
