//! Begin and end marks around an output's transactions.
//!
//! Where a transaction will write is known only as it writes. So the begin mark is encoded with the transaction's first
//! change and kept; it is appended to a partition when the first record is about to go there, or to the marks' own topic
//! before the first record anywhere. The end mark goes where begin marks went. A transaction without a record in the
//! output has neither.

use std::sync::Arc;

use crate::change::{Change, Event, TableShape, Transaction, TransactionTotals};
use crate::format::{Format, FormatError, Sink};
use crate::log::{Header, LogError, LogWriter, PartitionId, Record};

/// The marks of one output.
pub(super) struct Marks {
    /// The partition for marks; without one they stand among the changes.
    topic: Option<PartitionId>,
    /// Number of the open transaction, from 1.
    number: u64,
    /// Whether `begin` is of the open transaction.
    is_begun: bool,
    begin: Kept,
    /// By partition, the last transaction that wrote a begin mark to it.
    marked_by: Vec<u64>,
    /// The partitions in which the open transaction has a begin mark.
    marked: Vec<PartitionId>,
    totals: TransactionTotals,
}

/// A table's place among the totals of the transaction that last changed it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    transaction: u64,
    place: usize,
}

impl Marks {
    /// Marks that go to this partition, or among the changes.
    pub(super) fn new(topic: Option<PartitionId>) -> Self {
        Marks {
            topic,
            number: 1,
            is_begun: false,
            begin: Kept::default(),
            marked_by: Vec::new(),
            marked: Vec::new(),
            totals: TransactionTotals::default(),
        }
    }

    /// A change of this transaction follows.
    #[inline]
    pub(super) fn begin(
        &mut self,
        format: &mut dyn Format,
        transaction: &Transaction,
    ) -> Result<(), FormatError> {
        if self.is_begun {
            return Ok(());
        }
        self.is_begun = true;
        self.begin.0.clear();
        let lsn = transaction.commit_lsn;
        format.encode(&Event { transaction, ordinal: 0, lsn, change: Change::Begin }, &mut self.begin)
    }

    /// Writes the begin mark if none stands before this partition's next record, and gives the number of its records.
    #[inline]
    pub(super) fn before<W: LogWriter>(
        &mut self,
        partition: PartitionId,
        writer: &mut W,
    ) -> Result<u64, LogError> {
        let partition = self.topic.unwrap_or(partition);
        let place = partition.0 as usize;
        if self.marked_by.get(place) == Some(&self.number) {
            return Ok(0);
        }
        if self.marked_by.len() <= place {
            self.marked_by.resize(place + 1, 0);
        }
        self.marked_by[place] = self.number;
        self.marked.push(partition);
        self.begin.append(partition, writer)
    }

    /// Counts changes of a table.
    pub(super) fn count(&mut self, counted: &mut Counted, table: &Arc<TableShape>, changes: u64) {
        if changes == 0 {
            return;
        }
        let tables = &mut self.totals.tables;
        if counted.transaction != self.number {
            let is_same = |total: &(String, String, u64)| total.0 == table.schema && total.1 == table.name;
            // There already after the table was renamed and renamed back.
            let place = tables.iter().position(is_same).unwrap_or(tables.len());
            if place == tables.len() {
                tables.push((table.schema.clone(), table.name.clone(), 0));
            }
            *counted = Counted { transaction: self.number, place };
        }
        if let Some((.., total)) = tables.get_mut(counted.place) {
            *total += changes;
        }
        self.totals.changes += changes;
    }

    /// Ends the open transaction: its totals, and the partitions for its end mark, if it has any.
    pub(super) fn end(&mut self) -> Option<(TransactionTotals, Vec<PartitionId>)> {
        let totals = std::mem::take(&mut self.totals);
        let marked = std::mem::take(&mut self.marked);
        self.abort();
        (!marked.is_empty()).then_some((totals, marked))
    }

    /// Forgets the open transaction.
    pub(super) fn abort(&mut self) {
        self.number += 1;
        self.is_begun = false;
        self.marked.clear();
        self.totals = TransactionTotals::default();
    }
}

/// Records that are kept.
#[derive(Debug, Default)]
struct Kept(Vec<KeptRecord>);

#[derive(Debug)]
struct KeptRecord {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Sink for Kept {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let headers = record.headers.iter();
        self.0.push(KeptRecord {
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers
                .map(|header| (header.name.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect(),
        });
        Ok(())
    }
}

impl Kept {
    fn append<W: LogWriter>(&self, partition: PartitionId, writer: &mut W) -> Result<u64, LogError> {
        for KeptRecord { timestamp, key, value, headers } in &self.0 {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| Header { name, value: value.as_deref() }).collect();
            let (key, value) = (key.as_deref(), value.as_deref());
            writer.append(partition, &Record { timestamp: *timestamp, key, value, headers: &headers })?;
        }
        Ok(self.0.len() as u64)
    }
}
