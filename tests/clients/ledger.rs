//! What was delivered, and whether that is right.

use std::collections::BTreeMap;

/// One event of one counter, as a client received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    /// The counter's key …
    pub id: i64,
    /// … and its value, which is also the event's number among the events of that key.
    pub n: i64,
}

/// Counter to value: the events 0 to value must be in the log.
pub type Truth = BTreeMap<i64, i64>;

/// Partition to offset.
pub type Offsets = BTreeMap<i32, i64>;

/// All that the members of one group, or one reader, have received.
#[derive(Debug, Default)]
pub struct Ledger {
    records: BTreeMap<(i32, i64), Record>,
    newest: Truth,
    repeats: Vec<Record>,
    /// Where each member stands in each partition since it was assigned.
    places: BTreeMap<(usize, i32), i64>,
}

impl Ledger {
    /// Writes down a delivery; two deliveries of one offset must be the same.
    pub fn enter(&mut self, member: usize, record: Record) {
        let place = self.places.insert((member, record.partition), record.offset);
        assert!(
            place < Some(record.offset),
            "member {member} stood at offset {place:?} and was then given {record:?}"
        );
        let newest = self.newest.entry(record.id).or_insert(record.n);
        *newest = record.n.max(*newest);
        match self.records.get(&(record.partition, record.offset)) {
            Some(known) => {
                assert_eq!(known, &record, "an offset means one thing for ever");
                self.repeats.push(record);
            }
            None => {
                self.records.insert((record.partition, record.offset), record);
            }
        }
    }

    /// A member was given partitions and starts anew in them.
    pub fn forget_places(&mut self, member: usize) {
        self.places.retain(|(m, _), _| *m != member);
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub fn get(&self, record: &Record) -> Option<&Record> {
        self.records.get(&(record.partition, record.offset))
    }

    pub fn repeats(&self) -> &[Record] {
        &self.repeats
    }

    /// The newest event of every counter has arrived.
    pub fn has_newest(&self, truth: &Truth) -> bool {
        self.newest == *truth
    }

    /// Every event of every counter has arrived.
    pub fn has_all(&self, truth: &Truth) -> bool {
        self.records.len() as i64 >= truth.values().map(|n| n + 1).sum::<i64>()
    }

    /// Every event of every counter is there, once, in one partition and in order.
    pub fn assert_whole(&self, truth: &Truth) {
        let mut seen = BTreeMap::<i64, Vec<&Record>>::new();
        for record in self.records.values() {
            seen.entry(record.id).or_default().push(record);
        }
        for (id, n) in truth {
            let events = seen.remove(id).unwrap_or_default();
            let numbers: Vec<i64> = events.iter().map(|r| r.n).collect();
            assert_eq!(numbers, (0..=*n).collect::<Vec<_>>(), "the events of counter {id}");
            assert!(
                events.iter().all(|r| r.partition == events[0].partition),
                "counter {id} is in one partition"
            );
        }
        assert!(seen.is_empty(), "events of counters that do not exist: {seen:?}");
    }

    /// Exactly these were received.
    pub fn assert_same<'a>(&self, expected: impl Iterator<Item = &'a Record>) {
        let expected: Vec<_> = expected.collect();
        assert!(!expected.is_empty(), "the comparison says something");
        assert_eq!(self.records().collect::<Vec<_>>(), expected);
        assert!(self.repeats.is_empty());
    }
}
