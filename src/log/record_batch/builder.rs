//! Builds a batch record by record, with the way back to a transaction's boundary.

use super::codec::{Codec, Compressor};
use super::{CRC_FROM, HEADER_LEN, LENGTH_FROM, MAGIC, RecordView, varint};
use crate::log::{Offset, Record};

/// A place between two records of a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    len: usize,
    count: i32,
    max_timestamp: i64,
}

impl Default for Mark {
    fn default() -> Self {
        Mark { len: 0, count: 0, max_timestamp: i64::MIN }
    }
}

impl Mark {
    /// Whether nothing lies before it.
    pub fn is_start(&self) -> bool {
        self.count == 0
    }

    /// Bytes of records before it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// As [`is_start`](Self::is_start).
    pub fn is_empty(&self) -> bool {
        self.is_start()
    }
}

/// Records on their way to become a batch. Compressed only when it closes, so that it can be rewound until then.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    records: Vec<u8>,
    base_timestamp: i64,
    end: Mark,
}

impl BatchBuilder {
    /// An empty builder that uses `buffer`'s memory.
    pub fn with_buffer(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        BatchBuilder { records: buffer, ..BatchBuilder::default() }
    }

    /// Gives the memory back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.records
    }

    /// Bytes that a record takes without its own length and deltas: a lower bound of what `append` adds.
    pub fn size_of(record: &Record<'_>) -> usize {
        let headers: usize =
            record.headers.iter().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum();
        record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers
    }

    /// Adds a record.
    #[inline]
    pub fn append(&mut self, record: &Record<'_>) {
        if self.end.count == 0 {
            self.base_timestamp = record.timestamp;
        }
        let timestamp_delta = record.timestamp.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.end.count);

        let part = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => varint::len(bytes.len() as i64) + bytes.len(),
            None => 1,
        };
        let headers: usize =
            record.headers.iter().map(|header| part(Some(header.name.as_bytes())) + part(header.value)).sum();
        let body = 1
            + varint::len(timestamp_delta)
            + varint::len(offset_delta)
            + part(record.key)
            + part(record.value)
            + varint::len(record.headers.len() as i64)
            + headers;

        let out = &mut self.records;
        out.reserve(body + 5);
        varint::put(out, body as i64);
        out.push(0);
        varint::put(out, timestamp_delta);
        varint::put(out, offset_delta);
        put_bytes(out, record.key);
        put_bytes(out, record.value);
        varint::put(out, record.headers.len() as i64);
        for header in record.headers {
            put_bytes(out, Some(header.name.as_bytes()));
            put_bytes(out, header.value);
        }
        self.end = Mark {
            len: out.len(),
            count: self.end.count + 1,
            max_timestamp: self.end.max_timestamp.max(record.timestamp),
        };
    }

    /// The place after the last record.
    pub fn mark(&self) -> Mark {
        self.end
    }

    /// Drops the records after `mark`, which is a mark of this builder.
    pub fn rewind(&mut self, mark: Mark) {
        debug_assert!(mark.len <= self.records.len());
        self.records.truncate(mark.len);
        self.end = mark;
    }

    /// Moves the records after `mark` into `tail`, which is empty.
    pub fn split_off(&mut self, mark: Mark, tail: &mut BatchBuilder) {
        debug_assert!(tail.is_empty() && mark.len <= self.records.len());
        let mut rest = self.records.get(mark.len..).unwrap_or(&[]);
        // Our own bytes: each step below succeeds, and a run that did not would end the loop.
        while let Some(Some(mut body)) = varint::take_bytes(&mut rest) {
            let (Some(0), Some(delta), Some(_)) =
                (body.split_off_first().copied(), varint::take(&mut body), varint::take(&mut body))
            else {
                break;
            };
            tail.append_body(self.base_timestamp.wrapping_add(delta), body);
        }
        self.rewind(mark);
    }

    /// Adds a record of another batch. Its key, value and headers keep their bytes.
    pub fn append_again(&mut self, record: &RecordView<'_>) {
        self.append_body(record.timestamp, record.encoded);
    }

    /// Adds a record whose key, value and headers are encoded already.
    fn append_body(&mut self, timestamp: i64, rest: &[u8]) {
        if self.end.count == 0 {
            self.base_timestamp = timestamp;
        }
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.end.count);
        let body = 1 + varint::len(timestamp_delta) + varint::len(offset_delta) + rest.len();
        let out = &mut self.records;
        varint::put(out, body as i64);
        out.push(0);
        varint::put(out, timestamp_delta);
        varint::put(out, offset_delta);
        out.extend_from_slice(rest);
        self.end = Mark {
            len: out.len(),
            count: self.end.count + 1,
            max_timestamp: self.end.max_timestamp.max(timestamp),
        };
    }

    /// Bytes of records, uncompressed.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.end.count == 0
    }

    /// Number of records.
    pub fn count(&self) -> i32 {
        self.end.count
    }

    /// The largest timestamp among the records.
    pub fn max_timestamp(&self) -> i64 {
        self.end.max_timestamp
    }

    /// Appends the batch to `out`. The builder must not be empty.
    pub fn close(
        &self,
        base_offset: Offset,
        leader_epoch: i32,
        codec: Codec,
        compressor: &mut Compressor,
        out: &mut Vec<u8>,
    ) {
        debug_assert!(!self.is_empty());
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        let used = codec.compress(&self.records, compressor, out);
        let batch = &mut out[start..];
        let length = (batch.len() - LENGTH_FROM) as i32;
        let mut put = |at: usize, bytes: &[u8]| batch[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &base_offset.0.to_be_bytes());
        put(8, &length.to_be_bytes());
        put(12, &leader_epoch.to_be_bytes());
        put(16, &[MAGIC]);
        put(21, &used.attributes().to_be_bytes());
        put(23, &(self.end.count - 1).to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(35, &self.end.max_timestamp.to_be_bytes());
        put(43, &(-1i64).to_be_bytes());
        put(51, &(-1i16).to_be_bytes());
        put(53, &(-1i32).to_be_bytes());
        put(57, &self.end.count.to_be_bytes());
        let crc = crc32c::crc32c(&batch[CRC_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
}

#[inline]
fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
        None => out.push(1),
    }
}
