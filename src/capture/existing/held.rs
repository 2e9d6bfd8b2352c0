//! Changes that are held, as records of a hidden topic: a transaction's beginning, a table's shape where it is another
//! than before, and each change as the server sent it. A record's key says what it is, its value is the content.

use std::collections::HashMap;
use std::sync::Arc;

use crate::capture::CaptureError;
use crate::change::{Lsn, Phase, TableShape, Timestamp, Transaction};
use crate::log::{LogError, LogWriter, PartitionId, Record};

/// A message that is larger than this is held in pieces, in bytes: the log's records have a limit.
const PIECE: usize = 512 << 10;

const TRANSACTION: u8 = b'T';
const SHAPE: u8 = b'S';
const CHANGE: u8 = b'C';
const BEGINNING: u8 = b'B';

/// A change of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldChange<'a> {
    /// The table: a message that truncates may name several.
    pub oid: u32,
    /// LSN of the change.
    pub lsn: Lsn,
    /// Its number among the changes of its transaction.
    pub ordinal: u64,
    /// Whether the message came inside a streamed block.
    pub in_stream: bool,
    /// The message.
    pub body: &'a [u8],
}

/// Writes records of the hold.
pub struct Writer<'a, W> {
    writer: &'a mut W,
    partition: PartitionId,
    timestamp: i64,
    records: u64,
}

impl<'a, W: LogWriter> Writer<'a, W> {
    /// Writes to this partition, with the commit time of the changes' transaction.
    pub fn new(writer: &'a mut W, partition: PartitionId, timestamp: i64) -> Self {
        Writer { writer, partition, timestamp, records: 0 }
    }

    /// How many records have been written.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Changes of this transaction follow.
    pub fn transaction(&mut self, transaction: &Transaction) -> Result<(), LogError> {
        let Transaction { xid, commit_lsn, end_lsn, commit_time, previous_commit_lsn, phase: _ } =
            transaction;
        let mut value = xid.to_le_bytes().to_vec();
        for number in [commit_lsn.0, end_lsn.0, commit_time.0 as u64, previous_commit_lsn.0] {
            value.extend_from_slice(&number.to_le_bytes());
        }
        self.append(&[TRANSACTION], &value)
    }

    /// The table's changes have this shape from here on.
    pub fn shape(&mut self, shape: &TableShape) -> Result<(), LogError> {
        // A shape is numbers and texts.
        self.append(&[SHAPE], &serde_json::to_vec(shape).unwrap_or_default())
    }

    /// A change.
    pub fn change(&mut self, change: &HeldChange<'_>) -> Result<(), LogError> {
        let mut rest = change.body;
        while let Some((piece, behind)) =
            rest.split_at_checked(PIECE).filter(|(_, behind)| !behind.is_empty())
        {
            self.append(&[BEGINNING], piece)?;
            rest = behind;
        }
        let mut key = [0; 22];
        let (kind, fields) = key.split_at_mut(1);
        kind.copy_from_slice(&[CHANGE]);
        fields[..4].copy_from_slice(&change.oid.to_le_bytes());
        fields[4..12].copy_from_slice(&change.lsn.0.to_le_bytes());
        fields[12..20].copy_from_slice(&change.ordinal.to_le_bytes());
        fields[20] = change.in_stream.into();
        self.append(&key, rest)
    }

    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        self.records += 1;
        let record = Record { timestamp: self.timestamp, key: Some(key), value: Some(value), headers: &[] };
        self.writer.append(self.partition, &record)
    }
}

/// Puts what was held together again, record by record.
#[derive(Debug, Default)]
pub struct Assembler {
    transaction: Option<Transaction>,
    shapes: HashMap<u32, Arc<TableShape>>,
    body: Vec<u8>,
}

/// A change that was held, and what it belongs to.
#[derive(Debug)]
pub struct Assembled {
    /// Its transaction.
    pub transaction: Transaction,
    /// What its table looked like.
    pub shape: Arc<TableShape>,
    /// LSN of the change.
    pub lsn: Lsn,
    /// Its number among the changes of its transaction.
    pub ordinal: u64,
    /// Whether the message came inside a streamed block.
    pub in_stream: bool,
    /// The message.
    pub body: Vec<u8>,
}

impl Assembler {
    /// Takes a record, and gives the change that it completes.
    ///
    /// # Errors
    /// [`CaptureError::Held`] for what was never written.
    pub fn take(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Assembled>, CaptureError> {
        let bad = |detail: &str| CaptureError::Held { detail: detail.to_owned() };
        let Some((&kind, mut fields)) = key.split_first() else { return Err(bad("a record has no kind")) };
        match kind {
            TRANSACTION => {
                let mut value = value;
                let read = || {
                    let xid = u32::from_le_bytes(*value.split_off(..4)?.first_chunk()?);
                    let mut number =
                        || value.split_off(..8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
                    Some(Transaction {
                        xid,
                        commit_lsn: Lsn(number()?),
                        end_lsn: Lsn(number()?),
                        commit_time: Timestamp(number()? as i64),
                        previous_commit_lsn: Lsn(number()?),
                        phase: Phase::Catchup,
                    })
                };
                self.transaction = Some({ read }().ok_or_else(|| bad("a transaction is cut short"))?);
                Ok(None)
            }
            SHAPE => {
                let shape: TableShape =
                    serde_json::from_slice(value).map_err(|error| bad(&error.to_string()))?;
                self.shapes.insert(shape.oid, Arc::new(shape));
                Ok(None)
            }
            BEGINNING => {
                self.body.extend_from_slice(value);
                Ok(None)
            }
            CHANGE => {
                let mut read = || {
                    let oid = u32::from_le_bytes(*fields.split_off(..4)?.first_chunk()?);
                    let lsn = u64::from_le_bytes(*fields.split_off(..8)?.first_chunk()?);
                    let ordinal = u64::from_le_bytes(*fields.split_off(..8)?.first_chunk()?);
                    Some((oid, Lsn(lsn), ordinal, *fields.first()? != 0))
                };
                let (oid, lsn, ordinal, in_stream) = read().ok_or_else(|| bad("a change is cut short"))?;
                let transaction = self.transaction.ok_or_else(|| bad("a change has no transaction"))?;
                let shape = self.shapes.get(&oid).ok_or_else(|| bad("a change has no shape"))?.clone();
                let mut body = std::mem::take(&mut self.body);
                body.extend_from_slice(value);
                Ok(Some(Assembled { transaction, shape, lsn, ordinal, in_stream, body }))
            }
            _ => Err(bad("a record is of an unknown kind")),
        }
    }
}
