//! A record batch as a Kafka producer sends it: compressed with any codec, its offsets counted from 0, perhaps with the
//! producer's id and sequence.
//!
//! Nothing of it is trusted (I8): length, checksum, counts and every record are checked before anything is appended,
//! and decompression has a limit. What is wrong is told apart as Apache Kafka does, because producers try again after
//! some errors and not after others.

use std::io::{self, Read};

use bytes::Bytes;

use super::codec::{read_at_most, undecodable};
use super::{
    BatchError, CODEC_MASK, CRC_FROM, HEADER_LEN, LENGTH_FROM, MAGIC, Records, i16_at, i32_at, i64_at,
};
use crate::log::Offset;

/// Attribute bits beside the codec.
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// The least length that a batch of any magic can have.
const MIN_LENGTH: i32 = 14;
/// Records that are named one by one in an error; a batch may have a million.
const MAX_NAMED: usize = 100;
/// Zstandard's own limit: more than [`super::codec`] allows for batches of ours, as producers choose their level.
const ZSTD_MAX_WINDOW_LOG: u32 = 27;
/// What snappy-java puts before its blocks: magic, version, and the oldest version that can read it.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_LEN: usize = 16;

/// What a producer may send.
#[derive(Debug, Clone, Copy)]
pub struct ProducerLimits {
    /// Size of a batch as it is sent, in bytes.
    pub batch_bytes: usize,
    /// Size of its records when decompressed, in bytes.
    pub records_bytes: usize,
    /// The latest timestamp, in milliseconds since 1970.
    pub latest: i64,
}

/// Who sent a batch, and which it is in his sequence. Sequence numbers count records, from 0 to `i32::MAX` and round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// The id that the broker gave him.
    pub id: i64,
    /// Rises when he begins a new sequence.
    pub epoch: i16,
    /// Sequence number of the batch's first record.
    pub first: i32,
    /// Sequence number of its last record.
    pub last: i32,
}

/// A batch that has been found right.
#[derive(Debug, Clone)]
pub struct ProducedBatch {
    /// Its producer, if he numbers his batches.
    pub producer: Option<Producer>,
    /// Number of records.
    pub count: i32,
    base_timestamp: i64,
    plain: Bytes,
}

/// Why a batch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProducedError {
    /// The bytes have been damaged on the way; sending them again may help.
    #[error("the batch is corrupt: {0}")]
    Corrupt(String),
    /// The batch is not one that a producer may send.
    #[error("the batch is not valid: {0}")]
    Invalid(String),
    /// The codec is none that Kafka has.
    #[error("the batch is compressed with codec {0}, which Kafka has not")]
    UnknownCodec(i16),
    /// The batch or its records are too large.
    #[error("the batch has {what} of more than {limit} bytes, which is the most that is taken")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The batch belongs to a transaction.
    #[error("there are no transactions here; leave transactional.id away")]
    Transactional,
    /// Records that are not what they have to be, with their number in the batch.
    #[error("one or more records are not valid")]
    Records(Vec<(i32, String)>),
    /// Records whose timestamp cannot be, with their number in the batch.
    #[error("one or more records have a timestamp that is out of range")]
    Timestamps(Vec<(i32, String)>),
}

impl ProducedBatch {
    /// Reads and checks the one batch that `bytes` must be.
    ///
    /// # Errors
    /// [`ProducedError`].
    pub fn check(bytes: &[u8], limits: &ProducerLimits) -> Result<ProducedBatch, ProducedError> {
        let header = Header::parse(bytes)?;
        if bytes.len() > limits.batch_bytes {
            return Err(ProducedError::TooLarge { what: "a size", limit: limits.batch_bytes });
        }
        let computed = crc32c::crc32c(bytes.get(CRC_FROM..).unwrap_or(&[]));
        if computed != header.crc {
            return Err(ProducedError::Corrupt(format!(
                "its checksum is {:08x}, its bytes have {computed:08x}",
                header.crc
            )));
        }
        let producer = header.producer()?;
        let payload = bytes.get(HEADER_LEN..).unwrap_or(&[]);
        let batch = ProducedBatch {
            producer,
            count: header.count,
            base_timestamp: header.base_timestamp,
            plain: decompress(header.attributes & CODEC_MASK, payload, limits.records_bytes)?.into(),
        };
        batch.check_records(limits.latest)?;
        Ok(batch)
    }

    /// Whether the header says that the records are compressed with zstd, which old versions of Produce do not know.
    pub fn is_zstd(bytes: &[u8]) -> bool {
        bytes.first_chunk::<HEADER_LEN>().is_some_and(|header| i16_at(header, 21) & CODEC_MASK == 4)
    }

    /// Size of its records when decompressed, in bytes.
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    /// Whether there are none. There always are.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// Its records, with offsets from 0.
    pub fn records(&self) -> Records {
        Records::new(Offset(0), self.base_timestamp, self.count, self.plain.clone())
    }

    fn check_records(&self, latest: i64) -> Result<(), ProducedError> {
        let invalid = |error: BatchError| ProducedError::Invalid(error.to_string());
        let (mut wrong, mut untimely) = (Vec::new(), Vec::new());
        let mut records = self.records();
        let mut index = 0;
        while let Some(record) = records.next_record().map_err(invalid)? {
            let mut headers = record.headers();
            for header in headers.by_ref() {
                header.map_err(invalid)?;
            }
            if !headers.is_at_end() {
                return Err(ProducedError::Invalid(format!("record {index} has bytes behind its headers")));
            }
            if record.offset != Offset(index.into()) && wrong.len() < MAX_NAMED {
                wrong.push((index, format!("its offset is {} in the batch, not {index}", record.offset)));
            }
            if record.timestamp > latest && untimely.len() < MAX_NAMED {
                untimely
                    .push((index, format!("its timestamp {} is more than an hour ahead", record.timestamp)));
            }
            index += 1;
        }
        match () {
            () if !records.is_at_end() => {
                Err(ProducedError::Invalid(format!("there are bytes behind its {index} records")))
            }
            () if !wrong.is_empty() => Err(ProducedError::Records(wrong)),
            () if !untimely.is_empty() => Err(ProducedError::Timestamps(untimely)),
            () => Ok(()),
        }
    }
}

/// What of a header matters, checked for itself.
struct Header {
    crc: u32,
    attributes: i16,
    count: i32,
    base_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, ProducedError> {
        let invalid = |why: String| Err(ProducedError::Invalid(why));
        let corrupt = |why: String| Err(ProducedError::Corrupt(why));
        // As far as all magics are the same.
        let Some(start) = bytes.first_chunk::<{ CRC_FROM - 4 }>() else {
            return invalid("there is none".into());
        };
        let [_, _, _, _, _, _, _, _, l0, l1, l2, l3, .., magic] = *start;
        let length = i32::from_be_bytes([l0, l1, l2, l3]);
        if length < MIN_LENGTH {
            return corrupt(format!("its length is {length}"));
        }
        match magic {
            MAGIC => {}
            0 | 1 => return invalid(format!("it has magic {magic}; only 2 is taken")),
            _ => return corrupt(format!("it has magic {magic}")),
        }
        match (bytes.len() - LENGTH_FROM).cmp(&(length as usize)) {
            std::cmp::Ordering::Less => return invalid("it is cut short".into()),
            std::cmp::Ordering::Greater => return invalid("there must be one for each partition".into()),
            std::cmp::Ordering::Equal => {}
        }
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return corrupt(format!("it has {} bytes, and the header alone has {HEADER_LEN}", bytes.len()));
        };
        let base_offset = i64_at(header, 0);
        if base_offset != 0 {
            return invalid(format!("its base offset is {base_offset}, not 0"));
        }
        Ok(Header {
            crc: i32_at(header, 17) as u32,
            attributes: i16_at(header, 21),
            count: match (i32_at(header, 57), i32_at(header, 23)) {
                (count, last) if count >= 1 && last == count - 1 => count,
                (count, last) => {
                    return invalid(format!("it has {count} records, and the last has offset {last}"));
                }
            },
            base_timestamp: i64_at(header, 27),
            producer_id: i64_at(header, 43),
            producer_epoch: i16_at(header, 51),
            base_sequence: i32_at(header, 53),
        })
    }

    fn producer(&self) -> Result<Option<Producer>, ProducedError> {
        if self.attributes & CONTROL != 0 {
            return Err(ProducedError::Invalid("it is a control batch, which only brokers write".into()));
        }
        if self.attributes & TRANSACTIONAL != 0 {
            return Err(ProducedError::Transactional);
        }
        let (id, epoch, first) = (self.producer_id, self.producer_epoch, self.base_sequence);
        if id < 0 {
            return Ok(None);
        }
        if epoch < 0 || first < 0 {
            return Err(ProducedError::Invalid(format!(
                "its producer {id} has epoch {epoch} and sequence {first}"
            )));
        }
        // Beyond the largest sequence number comes 0.
        let last = (i64::from(first) + i64::from(self.count - 1)).rem_euclid(1 << 31) as i32;
        Ok(Some(Producer { id, epoch, first, last }))
    }
}

fn decompress(codec: i16, payload: &[u8], limit: usize) -> Result<Vec<u8>, ProducedError> {
    let plain = match codec {
        0 => read_at_most(limit, payload),
        1 => read_at_most(limit, flate2::bufread::MultiGzDecoder::new(payload)),
        2 => unsnap(payload, limit),
        3 => read_at_most(limit, lz4_flex::frame::FrameDecoder::new(payload)),
        4 => zstd_reader(payload).map_err(undecodable).and_then(|reader| read_at_most(limit, reader)),
        other => return Err(ProducedError::UnknownCodec(other)),
    };
    let too_large = ProducedError::TooLarge { what: "records", limit };
    match plain {
        Ok(plain) if plain.len() > limit => Err(too_large),
        Ok(plain) => Ok(plain),
        Err(BatchError::TooLarge { .. }) => Err(too_large),
        Err(error) => Err(ProducedError::Invalid(error.to_string())),
    }
}

fn zstd_reader(payload: &[u8]) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(payload)?;
    decoder.window_log_max(ZSTD_MAX_WINDOW_LOG)?;
    Ok(decoder)
}

/// Snappy in either form: in snappy-java's blocks, as the Java client and most others write it, or bare.
fn unsnap(payload: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut plain = Vec::new();
    if !payload.starts_with(XERIAL_MAGIC) {
        unsnap_block(payload, limit, &mut plain)?;
        return Ok(plain);
    }
    let cut = || BatchError::Compression("a snappy stream is cut short".into());
    let mut rest = payload.get(XERIAL_HEADER_LEN..).ok_or_else(cut)?;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| cut())?;
        let (block, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
        unsnap_block(block, limit, &mut plain)?;
        rest = behind;
    }
    Ok(plain)
}

/// Appends a block's bytes, if there are not more than `limit` then.
fn unsnap_block(block: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<(), BatchError> {
    let bad = |error: snap::Error| BatchError::Compression(error.to_string());
    let announced = snap::raw::decompress_len(block).map_err(bad)?;
    let start = plain.len();
    // Snappy makes at most 64 bytes out of three: what is announced beyond that never comes.
    if announced > limit.saturating_sub(start) || announced > block.len().saturating_mul(32) {
        return Err(BatchError::TooLarge { limit });
    }
    plain.resize(start + announced, 0);
    let target = plain.get_mut(start..).unwrap_or_default();
    snap::raw::Decoder::new().decompress(block, target).map_err(bad)?;
    Ok(())
}

#[cfg(test)]
mod tests;
