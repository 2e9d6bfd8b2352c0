//! The sequences of idempotent producers: which batch a producer may send next to a partition, and which of them it
//! sends again because it has missed the answer.
//!
//! A producer has an id and an epoch, and numbers the records that it sends to a partition. The last five batches of
//! each are remembered, which is as many as a producer may have under way: one of those is answered with the offset that
//! it got the first time. Any other batch must begin where the last one ended, or at 0 in a new epoch. A producer that is
//! not known (new here, forgotten, or from before a restart) may begin anywhere. All as in Apache Kafka.

use std::collections::{HashMap, VecDeque};

use crate::log::PartitionId;
use crate::log::record_batch::Producer;

/// Batches of a producer that are remembered for each partition.
const REMEMBERED: usize = 5;

/// What to do with a batch that is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    Append,
    /// It is there, from this offset on.
    Duplicate(i64),
}

/// Why a batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A batch is missing before it, or it is older than what is remembered.
    #[error("producer {producer} sends from sequence number {found} on where {expected} is next")]
    OutOfOrder {
        /// Its id.
        producer: i64,
        /// What it must begin with.
        expected: i32,
        /// What it begins with.
        found: i32,
    },
    /// The producer has begun a newer epoch.
    #[error("producer {producer} sends in epoch {found} after it has sent in epoch {current}")]
    OldEpoch {
        /// Its id.
        producer: i64,
        /// The epoch that it has.
        current: i16,
        /// The epoch of the batch.
        found: i16,
    },
}

/// What is remembered of all producers; of no more than a number of them, those that have been idle for longest are
/// forgotten.
#[derive(Debug)]
pub struct Sequences {
    known: HashMap<(PartitionId, i64), Known>,
    /// What was known, before this group, of those that it has appended for.
    before: HashMap<(PartitionId, i64), Option<Known>>,
    limit: usize,
    /// Counts what is appended.
    clock: u64,
}

#[derive(Debug, Clone)]
struct Known {
    epoch: i16,
    /// The newest last. Never empty.
    batches: VecDeque<Batch>,
    used: u64,
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    first: i32,
    last: i32,
    offset: i64,
}

impl Sequences {
    /// Remembers `limit` pairs of a producer and a partition.
    pub fn new(limit: usize) -> Self {
        Sequences { known: HashMap::new(), before: HashMap::new(), limit, clock: 0 }
    }

    /// Whether a batch may be appended to a partition.
    ///
    /// # Errors
    /// [`SequenceError`].
    pub fn check(&self, partition: PartitionId, batch: &Producer) -> Result<Verdict, SequenceError> {
        let Some(known) = self.known.get(&(partition, batch.id)) else { return Ok(Verdict::Append) };
        let (producer, found) = (batch.id, batch.first);
        if batch.epoch < known.epoch {
            return Err(SequenceError::OldEpoch { producer, current: known.epoch, found: batch.epoch });
        }
        let expected = if batch.epoch > known.epoch {
            0
        } else {
            let same = |sent: &&Batch| (sent.first, sent.last) == (batch.first, batch.last);
            if let Some(sent) = known.batches.iter().find(same) {
                return Ok(Verdict::Duplicate(sent.offset));
            }
            known.batches.back().map_or(0, |newest| newest.last.checked_add(1).unwrap_or(0))
        };
        match found == expected {
            true => Ok(Verdict::Append),
            false => Err(SequenceError::OutOfOrder { producer, expected, found }),
        }
    }

    /// Remembers a batch that has passed [`check`](Self::check), appended from `offset` on.
    pub fn appended(&mut self, partition: PartitionId, batch: &Producer, offset: i64) {
        self.clock += 1;
        let key = (partition, batch.id);
        self.before.entry(key).or_insert_with(|| self.known.get(&key).cloned());
        if self.known.len() >= self.limit && !self.known.contains_key(&key) {
            self.forget_idle();
        }
        let fresh = || Known { epoch: batch.epoch, batches: VecDeque::with_capacity(REMEMBERED), used: 0 };
        let known = self.known.entry(key).or_insert_with(fresh);
        if known.epoch != batch.epoch {
            known.epoch = batch.epoch;
            known.batches.clear();
        }
        if known.batches.len() == REMEMBERED {
            known.batches.pop_front();
        }
        known.batches.push_back(Batch { first: batch.first, last: batch.last, offset });
        known.used = self.clock;
    }

    /// Says that what was appended since the last time is durable.
    pub fn commit(&mut self) {
        self.before.clear();
    }

    /// Says that what was appended since the last [`commit`](Self::commit) is gone: all is as it was then.
    pub fn abort(&mut self) {
        for (key, before) in self.before.drain() {
            match before {
                Some(known) => drop(self.known.insert(key, known)),
                None => drop(self.known.remove(&key)),
            }
        }
    }

    /// Forgets what has been said of some partitions, because they are gone.
    pub fn forget(&mut self, partitions: &[PartitionId]) {
        self.known.retain(|(partition, _), _| !partitions.contains(partition));
        self.before.retain(|(partition, _), _| !partitions.contains(partition));
    }

    /// Forgets a quarter, so that the search for it is paid for by many appends.
    fn forget_idle(&mut self) {
        let mut uses: Vec<u64> = self.known.values().map(|known| known.used).collect();
        let quarter = uses.len() / 4;
        let (_, newest_to_go, _) = uses.select_nth_unstable(quarter);
        let newest_to_go = *newest_to_go;
        self.known.retain(|_, known| known.used > newest_to_go);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: PartitionId = PartitionId(3);

    fn batch(id: i64, epoch: i16, first: i32, count: i32) -> Producer {
        let last = ((i64::from(first) + i64::from(count) - 1) % (1 << 31)) as i32;
        Producer { id, epoch, first, last }
    }

    /// Sends a batch; what is appended gets `offset`.
    fn send(sequences: &mut Sequences, batch: Producer, offset: i64) -> Result<Verdict, SequenceError> {
        let verdict = sequences.check(P, &batch)?;
        if verdict == Verdict::Append {
            sequences.appended(P, &batch, offset);
        }
        Ok(verdict)
    }

    #[test]
    fn a_batch_that_is_sent_again_has_its_first_offset_and_one_that_is_missing_is_noticed() {
        let mut sequences = Sequences::new(10);
        for n in 0..7 {
            assert_eq!(
                send(&mut sequences, batch(1, 0, n * 10, 10), 100 + i64::from(n)),
                Ok(Verdict::Append)
            );
        }
        for n in 2..7 {
            let again = send(&mut sequences, batch(1, 0, n * 10, 10), 0);
            assert_eq!(again, Ok(Verdict::Duplicate(100 + i64::from(n))));
        }
        let out_of_order = |found| Err(SequenceError::OutOfOrder { producer: 1, expected: 70, found });
        // Too old to be known, missing one, and overlapping.
        for (first, count) in [(10, 10), (80, 10), (60, 11), (65, 5)] {
            assert_eq!(send(&mut sequences, batch(1, 0, first, count), 0), out_of_order(first));
        }
        assert_eq!(sequences.check(PartitionId(4), &batch(1, 0, 5, 1)), Ok(Verdict::Append));
    }

    #[test]
    fn a_new_epoch_begins_at_0_and_ends_the_old_one() {
        let mut sequences = Sequences::new(10);
        send(&mut sequences, batch(1, 4, 0, 3), 0).unwrap();
        let wrong = send(&mut sequences, batch(1, 5, 3, 1), 3);
        assert_eq!(wrong, Err(SequenceError::OutOfOrder { producer: 1, expected: 0, found: 3 }));
        assert_eq!(send(&mut sequences, batch(1, 5, 0, 3), 3), Ok(Verdict::Append));
        let old = send(&mut sequences, batch(1, 4, 3, 1), 6);
        assert_eq!(old, Err(SequenceError::OldEpoch { producer: 1, current: 5, found: 4 }));
    }

    #[test]
    fn after_the_largest_sequence_number_comes_0() {
        let mut sequences = Sequences::new(10);
        send(&mut sequences, batch(1, 0, i32::MAX - 1, 2), 0).unwrap();
        assert_eq!(send(&mut sequences, batch(1, 0, 0, 1), 2), Ok(Verdict::Append));
        send(&mut sequences, batch(2, 0, i32::MAX - 1, 4), 0).unwrap();
        assert_eq!(send(&mut sequences, batch(2, 0, 2, 1), 4), Ok(Verdict::Append));
    }

    #[test]
    fn only_so_many_are_remembered_and_the_idle_go_first() {
        let mut sequences = Sequences::new(8);
        for id in 0..100 {
            send(&mut sequences, batch(id, 0, 0, 1), id).unwrap();
            send(&mut sequences, batch(0, 0, id as i32 + 1, 1), 1000 + id).unwrap();
            assert!(sequences.known.len() <= 8);
        }
        assert!(send(&mut sequences, batch(0, 0, 500, 1), 0).is_err());
        assert!(send(&mut sequences, batch(99, 0, 500, 1), 0).is_err());
        assert!(send(&mut sequences, batch(50, 0, 500, 1), 0).is_ok());
    }

    proptest! {
        /// The log that comes of any sending and sending again holds each producer's records once, in order.
        #[test]
        fn what_is_appended_is_each_producers_sequence(
            sends in prop::collection::vec((0..3i64, 0..3i16, 0..8i32, 1..4i32), 0..200),
        ) {
            let mut sequences = Sequences::new(100);
            let mut log: Vec<(i64, i16, i32)> = Vec::new();
            for (id, epoch, first, count) in sends {
                let sent = batch(id, epoch, first, count);
                let records = (first..first + count).map(|number| (id, epoch, number));
                let of_producer: Vec<_> = log.iter().filter(|record| record.0 == id).copied().collect();
                match sequences.check(P, &sent) {
                    Ok(Verdict::Duplicate(offset)) => {
                        let there: Vec<_> = log[offset as usize..][..count as usize].to_vec();
                        prop_assert_eq!(there, records.collect::<Vec<_>>());
                    }
                    Ok(Verdict::Append) => {
                        if let Some((_, last_epoch, last)) = of_producer.last() {
                            let next = if epoch == *last_epoch { last + 1 } else { 0 };
                            prop_assert!(epoch >= *last_epoch);
                            prop_assert_eq!(first, next);
                        }
                        sequences.appended(P, &sent, log.len() as i64);
                        log.extend(records);
                    }
                    Err(SequenceError::OldEpoch { .. }) => {
                        prop_assert!(epoch < of_producer.last().unwrap().1);
                    }
                    Err(SequenceError::OutOfOrder { expected, .. }) => {
                        let (_, last_epoch, last) = *of_producer.last().unwrap();
                        prop_assert_eq!(expected, if epoch == last_epoch { last + 1 } else { 0 });
                    }
                }
            }
        }
    }
}
