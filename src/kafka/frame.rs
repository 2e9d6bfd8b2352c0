//! Frames off a socket: a length, then that many bytes. Memory grows with the bytes that have come, never with the
//! length that was announced.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::RequestError;

const LENGTH: usize = 4;
/// Bytes that are read at once at most.
pub const CHUNK: usize = 8 * 1024;
/// Frames over it are large ones, whose memory is accounted for. Also what is read ahead.
pub const LARGE: usize = 64 * 1024;
/// Room for most requests other than Fetch. A connection with nothing to read holds no other buffer.
const SMALL: usize = 256;

/// Bytes that have been read, and the frames in them.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// [`RequestError::Malformed`] when it announces more than `limit` bytes.
    pub fn next(&mut self, limit: usize) -> Result<Option<Bytes>, RequestError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH>() else { return Ok(None) };
        let announced = i32::from_be_bytes(*prefix);
        let Some(length) = usize::try_from(announced).ok().filter(|length| *length <= limit) else {
            let hint = match announced >> 24 {
                0x16 => "; is the client set to TLS? This port takes plaintext",
                0x41..=0x5A => "; this port speaks Kafka, not HTTP",
                _ => "",
            };
            return Err(RequestError::Malformed(format!(
                "a frame of {announced} bytes where {limit} are allowed{hint}"
            )));
        };
        if self.buffer.len() - LENGTH < length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH);
        let frame = self.buffer.split_to(length).freeze();
        if length > LARGE {
            // What comes behind it would keep its memory.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Ok(Some(frame))
    }

    /// The size that the next frame announces, once that is there; nothing to go by before [`next`](Self::next) has
    /// looked at it.
    pub fn announced(&self) -> Option<usize> {
        let prefix = self.buffer.first_chunk::<LENGTH>()?;
        usize::try_from(i32::from_be_bytes(*prefix)).ok()
    }

    /// Bytes that wait to be taken.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Reads once, at most [`CHUNK`] bytes; 0 is the end of the stream. Nothing is lost when dropped.
    pub async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            let mut small = [0; SMALL];
            let read = stream.read(&mut small).await?;
            self.buffer.extend_from_slice(small.get(..read).unwrap_or_default());
            return Ok(read);
        }
        self.buffer.reserve(CHUNK);
        stream.read_buf(&mut (&mut self.buffer).limit(CHUNK)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_whole_however_the_bytes_arrive() {
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for byte in b"\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x01d" {
            frames.fill(&mut &[*byte][..]).await.unwrap();
            while let Some(frame) = frames.next(3).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, ["abc", "", "d"]);
        assert_eq!(frames.len(), 0);
    }

    #[tokio::test]
    async fn a_large_frame_comes_in_chunks_and_takes_its_memory_along() {
        const LENGTH: usize = 1024 * 1024;
        let large = [&(LENGTH as i32).to_be_bytes()[..], &vec![7; LENGTH]].concat();
        let mut stream = &[&large[..], &large, &large].concat()[..];
        let mut frames = Frames::default();
        for _ in 0..2 {
            let frame = loop {
                match frames.next(LENGTH).unwrap() {
                    Some(frame) => break frame,
                    None => assert!(frames.fill(&mut stream).await.unwrap() <= CHUNK),
                }
            };
            assert!(frames.len() > 0 && frames.len() <= CHUNK);
            assert!(frame.is_unique());
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_at_its_length() {
        for prefix in [[0, 0, 0, 4], [0x7F, 0xFF, 0xFF, 0xFF], [0xFF; 4]] {
            let mut frames = Frames::default();
            frames.fill(&mut &prefix[..]).await.unwrap();
            assert!(frames.next(3).is_err(), "{prefix:?}");
        }
    }
}
