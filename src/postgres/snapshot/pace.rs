//! How much to read at a time: chunks that are large enough to be quick and small enough to be kept in memory, and that
//! hold a table's lock for less than a second.

use std::ops::Range;
use std::time::Duration;

/// What a chunk should have …
const CHUNK_BYTES: u64 = 8 << 20;
/// … and how long it should take: DDL of users waits for one.
const CHUNK_TIME: Duration = Duration::from_millis(500);
/// What a chunk may have: it is given up beyond, and begun anew with less.
pub(super) const CHUNK_LIMIT: usize = 64 << 20;
/// By how much a chunk may be larger than the one before.
const GROWTH: f64 = 4.0;

/// The size of the next chunk, in whatever units a chunk is asked for.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    units: u64,
    chunk_bytes: u64,
}

impl Pace {
    /// Begins with a unit of so many bytes.
    pub(super) fn new(bytes_per_unit: f64, bytes_per_second: Option<u64>) -> Self {
        let chunk_bytes =
            bytes_per_second.map_or(CHUNK_BYTES, |rate| (rate / 4).clamp(64 << 10, CHUNK_BYTES));
        Pace { units: (chunk_bytes as f64 / bytes_per_unit.max(1.0)).max(1.0) as u64, chunk_bytes }
    }

    /// How many units to ask for.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// A chunk of so many units had so many bytes and took so long.
    pub(super) fn took(&mut self, units: u64, bytes: usize, time: Duration) {
        let of_bytes = self.chunk_bytes as f64 / bytes.max(1) as f64;
        let of_time = CHUNK_TIME.as_secs_f64() / time.as_secs_f64().max(1e-6);
        let next = units as f64 * of_bytes.min(of_time);
        // The last chunk of a table is small for another reason.
        let most = self.units.max(units) as f64 * GROWTH;
        let least = if units < self.units && next > units as f64 { self.units as f64 } else { 1.0 };
        self.units = next.clamp(least.min(most), most).max(1.0) as u64;
    }

    /// A chunk of so many units had too many bytes.
    pub(super) fn too_much(&mut self, units: u64) {
        self.units = self.units.min((units / 8).max(1));
    }
}

/// More rows than a block of any size can hold.
const PLACES_PER_BLOCK: u64 = 2048;

/// The places of a table's files that are still to be read; each is where a row may be.
#[derive(Debug)]
pub(super) struct Places {
    /// None of them empty, in no order; what is taken next is in the last.
    rest: Vec<Range<u64>>,
}

impl Places {
    /// Those of files with so many blocks, one behind the other. What is [taken](Self::take) never has places of two files.
    pub(super) fn of_files(blocks: &[u32]) -> Self {
        let mut end = 0;
        let file = |blocks: &u32| {
            let start = end;
            end += places(*blocks);
            start..end
        };
        let mut rest: Vec<_> = blocks.iter().map(file).filter(|file| !file.is_empty()).collect();
        rest.reverse();
        Places { rest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.rest.iter().map(|range| range.end.saturating_sub(range.start)).sum()
    }

    /// Takes about `count` of them. Ranges of blocks end with a block, and parts of a block do not go beyond it.
    pub(super) fn take(&mut self, count: u64) -> Option<Range<u64>> {
        let from = self.rest.pop()?;
        let (count, block_end) = (count.max(1), (from.start / PLACES_PER_BLOCK + 1) * PLACES_PER_BLOCK);
        let end = match from.start.saturating_add(count) {
            end if end < block_end => end,
            end => (end / PLACES_PER_BLOCK * PLACES_PER_BLOCK).max(block_end),
        };
        let taken = from.start..end.min(from.end);
        if taken.end < from.end {
            self.rest.push(taken.end..from.end);
        }
        Some(taken)
    }

    /// Takes back what has not been read.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        self.rest.push(range);
    }
}

/// How many places so many blocks have.
pub(super) fn places(blocks: u32) -> u64 {
    u64::from(blocks) * PLACES_PER_BLOCK
}

/// A place as PostgreSQL writes it.
pub(super) fn ctid(place: u64) -> String {
    format!("({},{})", place / PLACES_PER_BLOCK, place % PLACES_PER_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_place_is_read_once_however_chunks_are_cut_and_given_back(
            blocks in prop::collection::vec(0u32..8, 0..5),
            steps in prop::collection::vec((1u64..6 * PLACES_PER_BLOCK, any::<bool>()), 1..100),
        ) {
            let mut places = Places::of_files(&blocks);
            let ends = blocks.iter().scan(0, |end, blocks| {
                *end += u64::from(*blocks) * PLACES_PER_BLOCK;
                Some(*end)
            });
            let ends: Vec<u64> = ends.collect();
            let mut read = Vec::new();
            for (count, gives_back) in steps.into_iter().chain(std::iter::repeat((PLACES_PER_BLOCK, false))) {
                let before = places.len();
                let Some(range) = places.take(count) else { break };
                prop_assert!(!range.is_empty());
                prop_assert!(!ends.iter().any(|end| range.start < *end && *end < range.end), "two files");
                prop_assert_eq!(places.len(), before - (range.end - range.start));
                match gives_back {
                    true => places.give_back(range),
                    false => read.push(range),
                }
            }
            prop_assert!(places.is_empty());
            read.sort_by_key(|range| range.start);
            let mut next = 0;
            for range in read {
                prop_assert_eq!(range.start, next);
                next = range.end;
            }
            prop_assert_eq!(next, ends.last().copied().unwrap_or(0));
        }
    }

    #[test]
    fn chunks_grow_and_shrink_to_the_size_and_the_time_that_they_should_have() {
        let second = Duration::from_secs(1);
        let quick = Duration::from_millis(10);
        let mut pace = Pace::new(8192.0, None);
        assert_eq!(pace.units(), 1024);
        pace.took(1024, 4 << 20, quick);
        assert_eq!(pace.units(), 2048);
        pace.took(2048, 0, quick);
        assert_eq!(pace.units(), 8192, "four times as much at most");
        pace.took(8192, 1 << 20, second);
        assert_eq!(pace.units(), 4096, "half the time");
        pace.took(10, 1 << 10, quick);
        assert_eq!(pace.units(), 4096, "the rest of a table says nothing against larger chunks");
        pace.too_much(4096);
        assert_eq!(pace.units(), 512);
        pace.too_much(1);
        pace.took(1, 1 << 30, second);
        assert_eq!(pace.units(), 1);
        assert_eq!(
            Pace::new(1.0, Some(400_000)).units(),
            100_000,
            "no more than a quarter of a second's worth"
        );
    }

    #[test]
    fn a_place_is_a_block_and_a_row_in_it() {
        assert_eq!(ctid(0), "(0,0)");
        assert_eq!(ctid(3 * PLACES_PER_BLOCK + 7), "(3,7)");
    }
}
