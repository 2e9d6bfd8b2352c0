//! The one thing that the broker reads in a member's metadata: which topics a consumer has subscribed to.

/// The topics in a consumer's subscription (Kafka's ConsumerProtocolSubscription, any version); `None` when it is
/// something else.
pub(super) fn topics(metadata: &[u8]) -> Option<Vec<&str>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    let mut topics = Vec::new();
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        topics.push(std::str::from_utf8(name).ok()?);
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_a_subscription_are_found_whatever_follows_them() {
        let metadata = b"\0\x01\0\0\0\x02\0\x01a\0\x02bc\0\0\0\0anything";
        assert_eq!(topics(metadata), Some(vec!["a", "bc"]));
    }

    #[test]
    fn what_is_no_subscription_is_not_taken_for_one() {
        for metadata in
            [&b""[..], b"\0", b"\0\x01\0\0", b"\0\x01\xff\xff\xff\xff\0\x01a", b"\0\x01\0\0\0\x01\0\x01\xff"]
        {
            assert_eq!(topics(metadata), None, "{metadata:?}");
        }
    }
}
