//! Reads the records of a batch one after the other.

use bytes::Bytes;

use super::{BatchError, varint};
use crate::log::Offset;

/// The records of one batch, decompressed.
#[derive(Debug)]
pub struct Records {
    payload: Bytes,
    at: usize,
    index: i32,
    count: i32,
    base_offset: i64,
    base_timestamp: i64,
}

/// One record, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    index: i32,
    headers: i32,
    rest: &'a [u8],
    /// Key, value and headers as they are encoded.
    pub(super) encoded: &'a [u8],
}

impl Records {
    pub(super) fn new(base_offset: Offset, base_timestamp: i64, count: i32, payload: Bytes) -> Self {
        Records { payload, at: 0, index: 0, count, base_offset: base_offset.0, base_timestamp }
    }

    /// Whether nothing is left behind what has been read.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.payload.len()
    }

    /// The bytes that all its records lie in.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The next record; `None` after the last.
    ///
    /// # Errors
    /// [`BatchError::Record`] when the bytes are not a record.
    pub fn next_record(&mut self) -> Result<Option<RecordView<'_>>, BatchError> {
        if self.index >= self.count {
            return Ok(None);
        }
        let malformed = BatchError::Record { index: self.index };
        let mut rest = self.payload.get(self.at..).unwrap_or(&[]);
        let whole = rest.len();
        let body = varint::take_bytes(&mut rest).flatten().ok_or(malformed.clone())?;
        self.at += whole - rest.len();
        self.index += 1;
        self.view(body, self.index - 1).map(Some).ok_or(malformed)
    }

    fn view<'a>(&self, mut body: &'a [u8], index: i32) -> Option<RecordView<'a>> {
        let _attributes = body.split_off_first()?;
        let timestamp = self.base_timestamp.wrapping_add(varint::take(&mut body)?);
        let offset = self.base_offset.checked_add(varint::take_i32(&mut body)?.into())?;
        let encoded = body;
        let key = varint::take_bytes(&mut body)?;
        let value = varint::take_bytes(&mut body)?;
        let headers = varint::take_i32(&mut body)?;
        (headers >= 0).then_some(RecordView {
            offset: Offset(offset),
            timestamp,
            key,
            value,
            index,
            headers,
            rest: body,
            encoded,
        })
    }
}

impl<'a> RecordView<'a> {
    /// Its headers in order: name and value.
    pub fn headers(&self) -> RecordHeaders<'a> {
        RecordHeaders { left: self.headers, rest: self.rest, index: self.index }
    }
}

impl RecordHeaders<'_> {
    /// Whether nothing is left behind what has been read.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

/// A record's headers.
#[derive(Debug)]
pub struct RecordHeaders<'a> {
    left: i32,
    rest: &'a [u8],
    index: i32,
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = Result<(&'a str, Option<&'a [u8]>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut header = || {
            let name = varint::take_bytes(&mut self.rest)??;
            Some((std::str::from_utf8(name).ok()?, varint::take_bytes(&mut self.rest)?))
        };
        let header = header();
        if header.is_none() {
            self.left = 0;
        }
        Some(header.ok_or(BatchError::Record { index: self.index }))
    }
}
