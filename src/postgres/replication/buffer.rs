//! The one read buffer of a replication connection: bytes go in at the end in large pieces, whole protocol messages come
//! out at the front as slices.
//!
//! It grows only as bytes arrive, to twice what it holds and at most to the message that is coming in, so that a length
//! that lies costs nothing. Unread bytes are moved to the front only when room is short, and then they are less than
//! one message.

use std::ops::Range;

/// Size at rest.
const AT_REST: usize = 256 * 1024;
/// With less room than this behind the unread bytes, they are moved to the front.
const LEAST_ROOM: usize = 64 * 1024;
/// Type and length in front of each message.
const HEADER: usize = 5;

/// A message that cannot be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadLength {
    /// Larger than the limit.
    TooLarge(usize),
    /// Smaller than its own length field.
    TooSmall,
}

#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    largest_message: usize,
}

impl ReadBuffer {
    pub(super) fn new(largest_message: usize) -> Self {
        ReadBuffer { bytes: vec![0; AT_REST], start: 0, end: 0, largest_message }
    }

    pub(super) fn set_largest_message(&mut self, limit: usize) {
        self.largest_message = limit;
    }

    /// Type of the message at the front and its length without header, once all of the header is here.
    #[inline]
    fn header(&self) -> Result<Option<(u8, usize)>, BadLength> {
        let Some(&[tag, a, b, c, d]) = self.bytes[self.start..self.end].first_chunk::<HEADER>() else {
            return Ok(None);
        };
        match (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(4) {
            None => Err(BadLength::TooSmall),
            Some(length) if length > self.largest_message => Err(BadLength::TooLarge(length)),
            Some(length) => Ok(Some((tag, length))),
        }
    }

    /// Whether a whole message is here.
    pub(super) fn has_message(&self) -> Result<bool, BadLength> {
        Ok(self.header()?.is_some_and(|(_, length)| self.end - self.start >= HEADER + length))
    }

    /// Takes the next whole message: its type, and where its content lies until the next call of [`Self::room`].
    #[inline]
    pub(super) fn next_message(&mut self) -> Result<Option<(u8, Range<usize>)>, BadLength> {
        let Some((tag, length)) = self.header()? else { return Ok(None) };
        let content = self.start + HEADER..self.start + HEADER + length;
        if content.end > self.end {
            return Ok(None);
        }
        self.start = content.end;
        Ok(Some((tag, content)))
    }

    /// The bytes of a message's content.
    #[inline]
    pub(super) fn content(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }

    /// Room to read into; never empty. Ends the life of what [`Self::next_message`] gave.
    pub(super) fn room(&mut self) -> Result<&mut [u8], BadLength> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // What one huge message needed is given back.
            if self.bytes.len() > AT_REST {
                self.bytes = vec![0; AT_REST];
            }
        }
        let message = self.header()?.map_or(HEADER, |(_, length)| HEADER + length);
        if self.start > 0
            && (self.bytes.len() - self.end < LEAST_ROOM || self.start + message > self.bytes.len())
        {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            let size = message.min(self.bytes.len() * 2).max(AT_REST);
            self.bytes.resize(size, 0);
        }
        Ok(&mut self.bytes[self.end..])
    }

    /// Notes that `count` bytes were read into [`Self::room`].
    pub(super) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((content.len() as u32 + 4).to_be_bytes());
        bytes.extend(content);
        bytes
    }

    /// Feeds `stream` in pieces and gives back every message.
    fn feed(
        buffer: &mut ReadBuffer,
        mut stream: &[u8],
        pieces: &mut impl Iterator<Item = usize>,
    ) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        while !stream.is_empty() {
            let room = buffer.room().unwrap();
            let count = pieces.next().unwrap_or(usize::MAX).clamp(1, room.len()).min(stream.len());
            room[..count].copy_from_slice(&stream[..count]);
            buffer.filled(count);
            stream = &stream[count..];
            while let Some((tag, place)) = buffer.next_message().unwrap() {
                out.push((tag, buffer.content(place).to_vec()));
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn messages_come_out_whole_however_the_bytes_arrive(
            lengths in proptest::collection::vec(prop_oneof![0usize..300, 100_000usize..400_000], 1..12),
            pieces in proptest::collection::vec(1usize..200_000, 1..20),
        ) {
            let sent: Vec<(u8, Vec<u8>)> =
                lengths.iter().enumerate().map(|(n, length)| (b'd', vec![n as u8; *length])).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|(tag, content)| message(*tag, content)).collect();
            let mut buffer = ReadBuffer::new(1 << 20);
            let got = feed(&mut buffer, &stream, &mut pieces.iter().copied().cycle());
            prop_assert!(got == sent);
        }
    }

    #[test]
    fn the_room_of_a_huge_message_is_given_back() {
        let mut buffer = ReadBuffer::new(1 << 30);
        let stream = message(b'd', &vec![7; 20 << 20]);
        assert_eq!(feed(&mut buffer, &stream, &mut std::iter::empty()).len(), 1);
        assert!(buffer.bytes.len() >= 20 << 20);
        buffer.room().unwrap();
        assert_eq!(buffer.bytes.len(), AT_REST);
    }

    #[test]
    fn a_length_that_lies_costs_nothing() {
        let mut buffer = ReadBuffer::new(1 << 20);
        for (length, error) in
            [(3u32, BadLength::TooSmall), (u32::MAX, BadLength::TooLarge(u32::MAX as usize - 4))]
        {
            let room = buffer.room().unwrap();
            room[0] = b'd';
            room[1..5].copy_from_slice(&length.to_be_bytes());
            buffer.filled(5);
            assert_eq!(buffer.next_message(), Err(error));
            assert_eq!(buffer.room().unwrap_err(), error);
            buffer = ReadBuffer::new(1 << 20);
        }
        // One that is within the limit reserves nothing before its bytes come.
        let room = buffer.room().unwrap();
        room[0] = b'd';
        room[1..5].copy_from_slice(&(1u32 << 20).to_be_bytes());
        buffer.filled(5);
        assert_eq!(buffer.room().unwrap().len(), AT_REST - 5);
    }
}
