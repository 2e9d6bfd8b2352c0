//! The newest bytes of the log, in memory: what tailing consumers ask for needs no I/O.
//!
//! Kept as the chunks in which it was written, whatever the partition. Bounded in bytes; the oldest goes first.

use std::collections::VecDeque;

use bytes::Bytes;

#[derive(Debug)]
struct Chunk {
    sequence: u64,
    position: u64,
    bytes: Bytes,
}

/// What a chunk costs beside its bytes.
const OVERHEAD: usize = 128;

#[derive(Debug)]
pub struct TailCache {
    chunks: VecDeque<Chunk>,
    size: usize,
    limit: usize,
}

impl TailCache {
    pub fn new(limit: usize) -> Self {
        TailCache { chunks: VecDeque::new(), size: 0, limit }
    }

    /// Adds what has been written behind everything else.
    pub fn push(&mut self, sequence: u64, position: u64, bytes: &[u8]) {
        if bytes.len() + OVERHEAD > self.limit {
            self.chunks.clear();
            self.size = 0;
            return;
        }
        self.size += bytes.len() + OVERHEAD;
        self.chunks.push_back(Chunk { sequence, position, bytes: Bytes::copy_from_slice(bytes) });
        while self.size > self.limit
            && let Some(oldest) = self.chunks.pop_front()
        {
            self.size -= oldest.bytes.len() + OVERHEAD;
        }
    }

    /// The bytes at a place, if they are all here.
    pub fn get(&self, sequence: u64, position: u64, len: usize) -> Option<Bytes> {
        let after =
            self.chunks.partition_point(|chunk| (chunk.sequence, chunk.position) <= (sequence, position));
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        if chunk.sequence != sequence {
            return None;
        }
        let from = (position - chunk.position) as usize;
        (from + len <= chunk.bytes.len()).then(|| chunk.bytes.slice(from..from + len))
    }

    /// Forgets what lies at or behind a place.
    pub fn cut(&mut self, sequence: u64, position: u64) {
        while let Some(newest) = self.chunks.back()
            && (newest.sequence, newest.position + newest.bytes.len() as u64) > (sequence, position)
        {
            self.size -= newest.bytes.len() + OVERHEAD;
            self.chunks.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_found_and_the_oldest_forgotten() {
        let mut tail = TailCache::new(3 * (10 + OVERHEAD));
        for n in 0..4u8 {
            tail.push(1, 10 * u64::from(n), &[n; 10]);
        }
        assert_eq!(tail.get(1, 0, 10), None);
        assert_eq!(tail.get(1, 12, 8).as_deref(), Some(&[1; 8][..]));
        assert_eq!(tail.get(1, 12, 9), None);
        assert_eq!(tail.get(2, 12, 8), None);
        tail.cut(1, 20);
        assert_eq!(tail.get(1, 20, 1), None);
        assert_eq!(tail.get(1, 10, 10).as_deref(), Some(&[1; 10][..]));
    }
}
