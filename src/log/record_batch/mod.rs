//! Kafka record batches, magic 2: built record by record, and read again.
//!
//! A batch is a header of 61 bytes and a run of records, perhaps compressed. Offsets and timestamps in records are
//! relative to the header's, so a batch can be built before its offsets are known. Pure functions over bytes: no I/O.
//!
//! ```text
//!  0 base offset i64 │ 8 length i32 │ 12 leader epoch i32 │ 16 magic i8 │ 17 crc u32 │ 21 attributes i16
//! 23 last offset delta i32 │ 27 base timestamp i64 │ 35 max timestamp i64 │ 43 producer id i64
//! 51 producer epoch i16 │ 53 base sequence i32 │ 57 records i32 │ 61 records ...
//! ```
//! `length` counts what follows it; `crc` is CRC-32C over what follows it.

mod builder;
mod codec;
mod produced;
mod records;
mod varint;

pub use builder::{BatchBuilder, Mark};
pub use codec::{Codec, Compressor, ParseCodecError};
pub use produced::{ProducedBatch, ProducedError, Producer, ProducerLimits};
pub use records::{RecordHeaders, RecordView, Records};

use super::Offset;

/// Length of a batch's header.
pub const HEADER_LEN: usize = 61;
/// What the header's `length` does not count: base offset and itself.
const LENGTH_FROM: usize = 12;
/// What the checksum does not cover: everything before the attributes.
const CRC_FROM: usize = 21;
const MAGIC: u8 = 2;
const CODEC_MASK: i16 = 0b111;

/// Bytes that are not a record batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the batch says it has.
    #[error("a record batch is cut short: {have} of {need} bytes")]
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A field has a value that no batch of ours has.
    #[error("a record batch has {field} {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The checksum does not match.
    #[error("a record batch has checksum {found:08x}, its bytes have {computed:08x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The records cannot be decompressed.
    #[error("a record batch cannot be decompressed: {0}")]
    Compression(String),
    /// The records are larger than the reader allows.
    #[error("a record batch has more than {limit} bytes when decompressed")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A record inside does not hold together.
    #[error("record {index} of a batch is malformed")]
    Record {
        /// Its number in the batch.
        index: i32,
    },
}

/// A stored batch's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Size of the whole batch in bytes, this header included.
    pub len: usize,
    /// Leader epoch it was written in.
    pub leader_epoch: i32,
    /// CRC-32C as stored.
    pub crc: u32,
    /// How the records are compressed.
    pub codec: Codec,
    /// Offset of the last record, from the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to.
    pub base_timestamp: i64,
    /// The largest timestamp among the records.
    pub max_timestamp: i64,
    /// Number of records.
    pub records: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes` and checks it for itself; the checksum is [`check`](Self::check)'s.
    ///
    /// # Errors
    /// [`BatchError::Short`] when the header is not whole; [`BatchError::Field`].
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Short { have: bytes.len(), need: HEADER_LEN });
        };
        let field = |field, value| Err(BatchError::Field { field, value });
        let length = i32_at(header, 8);
        if length < (HEADER_LEN - LENGTH_FROM) as i32 {
            return field("length", length.into());
        }
        if header[16] != MAGIC {
            return field("magic", header[16].into());
        }
        let attributes = i16_at(header, 21);
        let Some(codec) = Codec::from_attributes(attributes & CODEC_MASK) else {
            return field("attributes", attributes.into());
        };
        let parsed = BatchHeader {
            base_offset: Offset(i64_at(header, 0)),
            len: length as usize + LENGTH_FROM,
            leader_epoch: i32_at(header, 12),
            crc: i32_at(header, 17) as u32,
            codec,
            last_offset_delta: i32_at(header, 23),
            base_timestamp: i64_at(header, 27),
            max_timestamp: i64_at(header, 35),
            records: i32_at(header, 57),
        };
        if parsed.base_offset.0 < 0 || parsed.base_offset.0.checked_add(i64::from(i32::MAX)).is_none() {
            return field("base offset", parsed.base_offset.0);
        }
        if parsed.records < 1 {
            return field("record count", parsed.records.into());
        }
        if parsed.last_offset_delta != parsed.records - 1 {
            return field("last offset delta", parsed.last_offset_delta.into());
        }
        Ok(parsed)
    }

    /// Reads the header of the one batch that `bytes` must be, and checks length and checksum.
    ///
    /// # Errors
    /// As `parse`; [`BatchError::Short`], [`BatchError::Checksum`].
    pub fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = Self::parse(bytes)?;
        let batch =
            bytes.get(..header.len).ok_or(BatchError::Short { have: bytes.len(), need: header.len })?;
        let computed = crc32c::crc32c(&batch[CRC_FROM..]);
        if computed != header.crc {
            return Err(BatchError::Checksum { found: header.crc, computed });
        }
        Ok(header)
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0 + i64::from(self.last_offset_delta) + 1)
    }

    /// The records of `batch`, whose header this is; at most `limit` bytes are decompressed.
    ///
    /// # Errors
    /// [`BatchError::Short`], [`BatchError::Compression`], [`BatchError::TooLarge`].
    pub fn records(&self, batch: &[u8], limit: usize) -> Result<Records, BatchError> {
        let payload =
            batch.get(HEADER_LEN..self.len).ok_or(BatchError::Short { have: batch.len(), need: self.len })?;
        let mut plain = self.codec.decompress(payload, limit)?;
        // It may be kept for a while, and has grown by doubling.
        plain.shrink_to_fit();
        Ok(Records::new(self.base_offset, self.base_timestamp, self.records, plain.into()))
    }
}

fn i16_at(header: &[u8; HEADER_LEN], at: usize) -> i16 {
    i16::from_be_bytes([header[at], header[at + 1]])
}

fn i32_at(header: &[u8; HEADER_LEN], at: usize) -> i32 {
    i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn i64_at(header: &[u8; HEADER_LEN], at: usize) -> i64 {
    (i64::from(i32_at(header, at)) << 32) | i64::from(i32_at(header, at + 4) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Header, Record};
    use bytes::Bytes;
    use kafka_protocol::records::{Compression, RecordBatchDecoder};
    use proptest::prelude::*;

    type Owned = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn append(builder: &mut BatchBuilder, record: &Owned) {
        let headers: Vec<Header<'_>> =
            record.3.iter().map(|(name, value)| Header { name, value: value.as_deref() }).collect();
        builder.append(&Record {
            timestamp: record.0,
            key: record.1.as_deref(),
            value: record.2.as_deref(),
            headers: &headers,
        });
    }

    fn close(builder: &BatchBuilder, base: i64, codec: Codec) -> Vec<u8> {
        let mut out = Vec::new();
        builder.close(Offset(base), 7, codec, &mut Compressor::default(), &mut out);
        out
    }

    fn read(batch: &[u8]) -> Vec<(i64, Owned)> {
        let header = BatchHeader::check(batch).unwrap();
        let mut records = header.records(batch, 1 << 26).unwrap();
        let mut all = Vec::new();
        while let Some(record) = records.next_record().unwrap() {
            let headers = record
                .headers()
                .map(|header| header.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))))
                .collect::<Result<_, _>>()
                .unwrap();
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            all.push((record.offset.0, (record.timestamp, owned(record.key), owned(record.value), headers)));
        }
        all
    }

    fn records() -> impl Strategy<Value = Vec<Owned>> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        let headers = proptest::collection::vec(("[a-z.]{0,12}", proptest::option::of(bytes.clone())), 0..3);
        let timestamp = prop_oneof![
            any::<i32>().prop_map(|t| 1_700_000_000_000 + i64::from(t)),
            0..4_000_000_000_000i64,
            Just(i64::MAX / 2)
        ];
        let record = (timestamp, proptest::option::of(bytes.clone()), proptest::option::of(bytes), headers);
        proptest::collection::vec(record, 1..40)
    }

    fn codec() -> impl Strategy<Value = Codec> {
        prop_oneof![Just(Codec::None), Just(Codec::Lz4), Just(Codec::Zstd)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_appended_is_read_again(all in records(), base in 0..i64::from(u32::MAX), codec in codec()) {
            let mut builder = BatchBuilder::default();
            all.iter().for_each(|record| append(&mut builder, record));
            let batch = close(&builder, base, codec);
            let expected: Vec<_> = (base..).zip(all.iter().cloned()).collect();
            prop_assert_eq!(read(&batch), expected);
            prop_assert_eq!(BatchHeader::parse(&batch).unwrap().max_timestamp, all.iter().map(|r| r.0).max().unwrap());
        }

        #[test]
        fn a_rewound_builder_is_as_if_nothing_had_been_appended(before in records(), after in records()) {
            let mut builder = BatchBuilder::default();
            before.iter().for_each(|record| append(&mut builder, record));
            let (mark, expected) = (builder.mark(), close(&builder, 5, Codec::None));
            after.iter().for_each(|record| append(&mut builder, record));
            builder.rewind(mark);
            prop_assert_eq!(close(&builder, 5, Codec::None), expected);
        }

        #[test]
        fn splitting_at_a_mark_gives_both_halves(before in records(), after in records()) {
            let mut builder = BatchBuilder::default();
            before.iter().for_each(|record| append(&mut builder, record));
            let mark = builder.mark();
            after.iter().for_each(|record| append(&mut builder, record));
            let mut tail = BatchBuilder::default();
            builder.split_off(mark, &mut tail);
            let (mut first, mut second) = (BatchBuilder::default(), BatchBuilder::default());
            before.iter().for_each(|record| append(&mut first, record));
            after.iter().for_each(|record| append(&mut second, record));
            prop_assert_eq!(close(&builder, 5, Codec::None), close(&first, 5, Codec::None));
            prop_assert_eq!(close(&tail, 9, Codec::None), close(&second, 9, Codec::None));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(magic) = bytes.get_mut(16) { *magic = 2 }
            if let Some(attributes) = bytes.get_mut(22) { *attributes %= 5 }
            if let Ok(header) = BatchHeader::parse(&bytes)
                && let Ok(mut records) = header.records(&bytes, 1 << 20) {
                while let Ok(Some(record)) = records.next_record() {
                    record.headers().for_each(drop);
                }
            }
        }
    }

    fn rows(count: usize) -> Vec<Owned> {
        (0..count)
            .map(|n| {
                let key = format!("{{\"id\":{n}}}").into_bytes();
                let value = format!("{{\"op\":\"c\",\"after\":{{\"id\":{n},\"name\":\"customer {n}\"}}}}")
                    .into_bytes();
                (
                    1_700_000_000_000 + n as i64,
                    Some(key),
                    Some(value),
                    vec![("h".to_owned(), Some(b"v".to_vec()))],
                )
            })
            .collect()
    }

    #[test]
    fn another_implementation_reads_our_batches() {
        for (count, codec) in
            [(1, Codec::Lz4), (5_000, Codec::Lz4), (300, Codec::None), (1, Codec::Zstd), (5_000, Codec::Zstd)]
        {
            let mut builder = BatchBuilder::default();
            let all = rows(count);
            all.iter().for_each(|record| append(&mut builder, record));
            let mut batch = Bytes::from(close(&builder, 1000, codec));
            let decompress = |payload: &mut Bytes, compression| {
                let mut plain = Vec::new();
                match compression {
                    Compression::Lz4 => {
                        std::io::Read::read_to_end(
                            &mut lz4_flex::frame::FrameDecoder::new(&payload[..]),
                            &mut plain,
                        )?;
                    }
                    Compression::Zstd => plain = zstd::decode_all(&payload[..])?,
                    _ => plain.extend_from_slice(payload),
                }
                Ok(Bytes::from(plain))
            };
            let decoded =
                RecordBatchDecoder::decode_with_custom_compression(&mut batch, Some(decompress)).unwrap();
            assert_eq!(decoded.records.len(), count);
            for (n, (theirs, ours)) in decoded.records.iter().zip(&all).enumerate() {
                assert_eq!(theirs.offset, 1000 + n as i64);
                assert_eq!(theirs.timestamp, ours.0);
                assert_eq!(theirs.key.as_deref(), ours.1.as_deref());
                assert_eq!(theirs.value.as_deref(), ours.2.as_deref());
                assert_eq!(theirs.partition_leader_epoch, 7);
                assert_eq!(theirs.producer_id, -1);
                assert_eq!(theirs.headers.len(), 1);
            }
        }
    }

    #[test]
    fn small_and_incompressible_batches_stay_uncompressed() {
        let mut random = vec![0; 600_000];
        getrandom::fill(&mut random).unwrap();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let built = |value: &[u8]| {
                let mut builder = BatchBuilder::default();
                append(&mut builder, &(0, None, Some(value.to_vec()), vec![]));
                BatchHeader::parse(&close(&builder, 0, codec)).unwrap().codec
            };
            assert_eq!(built(&[0; 900]), Codec::None);
            assert_eq!(built(&[0; 1100]), codec);
            assert_eq!(built(&random), Codec::None);
        }
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let mut builder = BatchBuilder::default();
        append(&mut builder, &(0, None, Some(vec![0; 3 << 20]), vec![]));
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let batch = close(&builder, 0, codec);
            let header = BatchHeader::check(&batch).unwrap();
            assert_eq!(header.codec, codec);
            assert_eq!(header.records(&batch, 1 << 20).err(), Some(BatchError::TooLarge { limit: 1 << 20 }));
            assert!(header.records(&batch, 4 << 20).is_ok());
        }
    }

    // I8. Before the first byte of content a frame may ask for a window of gigabytes.
    #[test]
    fn a_zstd_frame_that_asks_for_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        std::io::Write::write_all(&mut encoder, &[0; 2000]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(matches!(Codec::Zstd.decompress(&frame, 1 << 20), Err(BatchError::Compression(_))));
    }

    #[test]
    fn a_flipped_byte_fails_the_checksum() {
        let mut builder = BatchBuilder::default();
        rows(10).iter().for_each(|record| append(&mut builder, record));
        let batch = close(&builder, 0, Codec::Lz4);
        for at in CRC_FROM..batch.len() {
            let mut bad = batch.clone();
            bad[at] ^= 1;
            assert!(BatchHeader::check(&bad).is_err(), "byte {at}");
        }
    }
}
