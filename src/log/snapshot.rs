//! The high watermarks of all partitions at one commit: immutable, and swapped as a whole (I1).

use std::sync::Arc;

use super::{Offset, PartitionId};

/// How many partitions share one copy-on-write page: a commit copies the pages it touches and a pointer for each other.
const PAGE: usize = 64;

/// What of a partition is readable: from `start` (inclusive) to `end` (the high watermark, exclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionRange {
    /// First offset that retention has left.
    pub start: Offset,
    /// The high watermark.
    pub end: Offset,
}

/// What stands for a partition that there is not, or not any more.
const NONE: PartitionRange = PartitionRange { start: Offset(i64::MAX), end: Offset(i64::MIN) };

/// The readable range of every partition as of one commit.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    commit: u64,
    pages: Vec<Arc<[PartitionRange; PAGE]>>,
}

impl Snapshot {
    /// The commit that made it; 0 before the first.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// The readable range of a partition; `None` where the log has no such partition.
    pub fn range(&self, partition: PartitionId) -> Option<PartitionRange> {
        let index = partition.0 as usize;
        self.pages.get(index / PAGE).map(|page| page[index % PAGE]).filter(|range| *range != NONE)
    }

    /// The same with other ranges for some partitions, as of `commit`. Partitions beyond the end are added.
    pub fn with(
        &self,
        commit: u64,
        changes: impl IntoIterator<Item = (PartitionId, PartitionRange)>,
    ) -> Snapshot {
        let mut next = self.clone();
        next.commit = commit;
        for (partition, range) in changes {
            let index = partition.0 as usize;
            while next.pages.len() <= index / PAGE {
                next.pages.push(Arc::new([NONE; PAGE]));
            }
            Arc::make_mut(&mut next.pages[index / PAGE])[index % PAGE] = range;
        }
        next
    }

    /// The same without some partitions.
    pub fn without(&self, partitions: impl IntoIterator<Item = PartitionId>) -> Snapshot {
        let known = partitions.into_iter().filter(|partition| self.range(*partition).is_some());
        self.with(self.commit, known.map(|partition| (partition, NONE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_snapshot_does_not_see_a_newer_commit() {
        let range = |end| PartitionRange { start: Offset(0), end: Offset(end) };
        let old = Snapshot::default().with(1, [(PartitionId(0), range(5)), (PartitionId(100), range(7))]);
        let new = old.with(2, [(PartitionId(100), range(9))]);
        assert_eq!(old.range(PartitionId(100)), Some(range(7)));
        assert_eq!(new.range(PartitionId(100)), Some(range(9)));
        assert_eq!(new.range(PartitionId(0)), Some(range(5)));
        assert_eq!(new.range(PartitionId(101)), None);
        assert_eq!(new.range(PartitionId(1)), None);
        let less = new.without([PartitionId(100), PartitionId(9_999)]);
        assert_eq!((less.commit(), less.range(PartitionId(100))), (2, None));
        assert_eq!(
            (less.range(PartitionId(0)), new.range(PartitionId(100))),
            (Some(range(5)), Some(range(9)))
        );
    }
}
