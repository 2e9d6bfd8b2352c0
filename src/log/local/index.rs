//! Where a partition's batches lie in a segment; and the index file that keeps this for a sealed segment.
//!
//! The file begins with a table of the partitions in the segment, which is read at start, and goes on with each one's
//! entries, which are read when somebody asks for them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::entry::BATCH_AT;
use super::files::{Files, Open, failed};
use super::segment::{Form, Segment, corrupt};
use super::wire::{Fields, Put};
use crate::log::{LogError, PartitionId};

/// The format that we write.
pub const VERSION: u32 = 2;
/// The format whose rows do not have the size of the batches; still read.
const WITHOUT_BYTES: u32 = 1;
const MAGIC: &[u8; 8] = b"MRINDEX\0";
const HEAD_LEN: usize = 8 + 4 + 8 + 8 + 4;
const ROW_LEN: usize = 4 + 4 + 8 + 8 + 4 + 8;
const ROW_LEN_WITHOUT_BYTES: usize = ROW_LEN - 8;
const ENTRY_LEN: usize = 24;

/// One batch and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub base: i64,
    pub max_timestamp: i64,
    /// Where its entry begins in the segment.
    pub position: u32,
    /// Length of the entry.
    pub len: u32,
}

impl IndexEntry {
    /// Length of the record batch.
    pub fn batch_len(&self) -> u64 {
        u64::from(self.len).saturating_sub(BATCH_AT as u64)
    }
}

/// Where a partition's entries lie in an index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub at: u64,
    pub count: u32,
    pub crc: u32,
}

/// A row of an index file's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub partition: PartitionId,
    /// Offset of the partition's first record in the segment.
    pub first: i64,
    pub max_timestamp: i64,
    pub slot: Slot,
    /// Size of its record batches.
    pub bytes: u64,
}

/// Makes the index file of a segment of `segment_len` bytes durable, but for its name. Gives the table.
pub fn write(
    files: &dyn Files,
    segment: &Segment,
    segment_len: u64,
    partitions: &[(PartitionId, &[IndexEntry])],
) -> Result<Vec<Row>, LogError> {
    let mut head = MAGIC.to_vec();
    head.u32(VERSION);
    head.u64(segment.sequence);
    head.u64(segment_len);
    head.u32(partitions.len() as u32);
    let mut at = (HEAD_LEN + partitions.len() * ROW_LEN + 4) as u64;
    let mut entries = Vec::new();
    let mut rows = Vec::with_capacity(partitions.len());
    for (partition, run) in partitions {
        let from = entries.len();
        for entry in *run {
            entries.i64(entry.base);
            entries.i64(entry.max_timestamp);
            entries.u32(entry.position);
            entries.u32(entry.len);
        }
        let slot = Slot { at, count: run.len() as u32, crc: crc32c::crc32c(&entries[from..]) };
        at += (entries.len() - from) as u64;
        let first = run.first().map_or(0, |entry| entry.base);
        let max_timestamp = run.iter().map(|entry| entry.max_timestamp).max().unwrap_or(i64::MIN);
        head.u32(partition.0);
        head.u32(slot.count);
        head.i64(first);
        head.i64(max_timestamp);
        head.u32(slot.crc);
        let bytes = run.iter().map(IndexEntry::batch_len).sum();
        head.u64(bytes);
        rows.push(Row { partition: *partition, first, max_timestamp, slot, bytes });
    }
    head.u32(crc32c::crc32c(&head));
    head.append(&mut entries);
    let write = || {
        let file = files.open(&segment.index_path, Open::Create)?;
        file.write_all_at(&head, 0)?;
        file.sync()
    };
    write().map_err(|error: io::Error| failed("write", &segment.index_path, error))?;
    Ok(rows)
}

/// Reads an index file's table and checks that it belongs to a segment of `segment_len` bytes.
pub fn read(files: &dyn Files, segment: &Segment, segment_len: u64) -> Result<Vec<Row>, LogError> {
    let path = &segment.index_path;
    let table = read_table(files, path)?;
    let bad = |detail: &str| corrupt(path, 0, detail);
    let (content, crc) = table.split_last_chunk::<4>().ok_or_else(|| bad("the index is cut short"))?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
        return Err(bad("the index fails its checksum"));
    }
    let mut fields = Fields(content);
    if fields.bytes(MAGIC.len()) != Some(MAGIC) {
        return Err(bad("this is not an index"));
    }
    let version = match fields.u32() {
        Some(version @ WITHOUT_BYTES..=VERSION) => version,
        Some(found) if found > VERSION => {
            return Err(LogError::Version { path: path.display().to_string(), found, supported: VERSION });
        }
        _ => return Err(bad("the index has no version that was ever written")),
    };
    if (fields.u64(), fields.u64()) != (Some(segment.sequence), Some(segment_len)) {
        return Err(bad("the index belongs to another segment"));
    }
    let rows = rows(fields, version, table.len() as u64);
    let mut rows = rows.ok_or_else(|| bad("the index does not hold together"))?;
    if version == WITHOUT_BYTES {
        for row in &mut rows {
            row.bytes = load(files, segment, row.slot)?.iter().map(IndexEntry::batch_len).sum();
        }
    }
    Ok(rows)
}

fn read_table(files: &dyn Files, path: &Path) -> Result<Vec<u8>, LogError> {
    let read = || {
        let file = files.open(path, Open::Read)?;
        let mut table = vec![0; HEAD_LEN];
        file.read_exact_at(&mut table, 0)?;
        let count = Fields(&table[HEAD_LEN - 4..]).u32().unwrap_or(0) as u64;
        let version = Fields(&table[MAGIC.len()..]).u32().unwrap_or(0);
        let len = HEAD_LEN as u64 + count * row_len(version) as u64 + 4;
        if len > file.size()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        table.resize(len as usize, 0);
        file.read_exact_at(&mut table, 0)?;
        Ok(table)
    };
    read().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => corrupt(path, 0, "the index of a sealed segment is missing"),
        io::ErrorKind::UnexpectedEof => corrupt(path, 0, "the index is cut short"),
        _ => failed("read", path, error),
    })
}

fn row_len(version: u32) -> usize {
    if version == WITHOUT_BYTES { ROW_LEN_WITHOUT_BYTES } else { ROW_LEN }
}

fn rows(mut fields: Fields<'_>, version: u32, mut at: u64) -> Option<Vec<Row>> {
    let count = fields.count(row_len(version))?;
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        let (partition, count) = (PartitionId(fields.u32()?), fields.u32()?);
        let (first, max_timestamp) = (fields.i64()?, fields.i64()?);
        let slot = Slot { at, count, crc: fields.u32()? };
        at += u64::from(count) * ENTRY_LEN as u64;
        let bytes = if version == WITHOUT_BYTES { 0 } else { fields.u64()? };
        rows.push(Row { partition, first, max_timestamp, slot, bytes });
    }
    Some(rows)
}

/// Reads the entries of one partition. Blocks.
pub fn load(files: &dyn Files, segment: &Segment, slot: Slot) -> Result<Arc<[IndexEntry]>, LogError> {
    let path = &segment.index_path;
    let read = || {
        let file = files.open(path, Open::Read)?;
        let len = u64::from(slot.count) * ENTRY_LEN as u64;
        if slot.at + len > file.size()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, slot.at)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt(path, slot.at, "the index is cut short"),
        _ => failed("read", path, error),
    })?;
    if crc32c::crc32c(&bytes) != slot.crc {
        return Err(corrupt(path, slot.at, "the index fails its checksum"));
    }
    let entry = |bytes: &[u8]| {
        let mut fields = Fields(bytes);
        Some(IndexEntry {
            base: fields.i64()?,
            max_timestamp: fields.i64()?,
            position: fields.u32()?,
            len: fields.u32()?,
        })
    };
    Ok(bytes.chunks_exact(ENTRY_LEN).filter_map(entry).collect())
}

type CacheKey = (u64, Form, PartitionId);

/// The entries of sealed segments that were asked for last, bounded in bytes.
#[derive(Debug)]
pub struct IndexCache {
    /// The most recently used last.
    loaded: VecDeque<(CacheKey, Arc<[IndexEntry]>)>,
    size: usize,
    limit: usize,
}

impl IndexCache {
    pub fn new(limit: usize) -> Self {
        IndexCache { loaded: VecDeque::new(), size: 0, limit }
    }

    pub fn get(&mut self, segment: &Segment, partition: PartitionId) -> Option<Arc<[IndexEntry]>> {
        let key = (segment.sequence, segment.form, partition);
        let found = self.loaded.iter().rposition(|(loaded, _)| *loaded == key)?;
        let used = self.loaded.remove(found)?;
        let entries = used.1.clone();
        self.loaded.push_back(used);
        Some(entries)
    }

    pub fn insert(&mut self, segment: &Segment, partition: PartitionId, entries: Arc<[IndexEntry]>) {
        if self.get(segment, partition).is_some() {
            return;
        }
        self.size += Self::cost(&entries);
        self.loaded.push_back(((segment.sequence, segment.form, partition), entries));
        while self.size > self.limit
            && let Some((_, oldest)) = self.loaded.pop_front()
        {
            self.size -= Self::cost(&oldest);
        }
    }

    /// Counted with what an entry of the cache itself costs, which also bounds their number.
    fn cost(entries: &[IndexEntry]) -> usize {
        size_of_val(entries) + 4096
    }
}
