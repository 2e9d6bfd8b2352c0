//! Compression of a batch's records. LZ4 is written as an LZ4 *frame*, which is what Kafka clients expect.
//!
//! The frame is put together here around `lz4_flex`'s block compressor: its own frame encoder copies every byte twice
//! more, through buffers that it allocates anew for each frame.

use std::fmt;
use std::io::Read;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::BatchError;

/// How records are compressed. A payload under 1 KiB, or one that would not shrink, stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// Not at all.
    None,
    /// LZ4.
    #[default]
    Lz4,
}

/// Payloads shorter than this are not worth compressing.
const MIN_COMPRESSED: usize = 1024;

/// Frame header: magic, version 1 with independent blocks and no checksums (the batch has its own), blocks of at most
/// 256 KiB, and the header's check byte.
const FRAME_HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x60, 0x50, 0xFB];
/// Clients allocate a buffer of the frame's block size, so not more than this; the window is 64 KiB anyway.
const BLOCK: usize = 256 * 1024;
const UNCOMPRESSED_BLOCK: u32 = 1 << 31;
const END_OF_FRAME: [u8; 4] = [0; 4];

/// Working memory for compression, to be kept from batch to batch.
pub struct Compressor {
    table: CompressTable,
    block: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor { table: CompressTable::large(), block: Vec::new() }
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

impl Codec {
    /// The codec's number in a batch's attributes.
    pub(super) fn attributes(self) -> i16 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => 3,
        }
    }

    pub(super) fn from_attributes(bits: i16) -> Option<Codec> {
        match bits {
            0 => Some(Codec::None),
            3 => Some(Codec::Lz4),
            _ => None,
        }
    }

    /// Appends `payload` to `out`, compressed where that helps, and says with what.
    pub(super) fn compress(self, payload: &[u8], with: &mut Compressor, out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        if self == Codec::Lz4 && payload.len() >= MIN_COMPRESSED {
            put_frame(payload, with, out);
            if out.len() - start < payload.len() {
                return Codec::Lz4;
            }
            out.truncate(start);
        }
        out.extend_from_slice(payload);
        Codec::None
    }

    /// The payload as it was, if that is not more than `limit` bytes.
    pub(super) fn decompress(self, payload: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        let plain = match self {
            Codec::None if payload.len() > limit => return Err(BatchError::TooLarge { limit }),
            Codec::None => payload.to_vec(),
            Codec::Lz4 => {
                let mut plain = Vec::new();
                lz4_flex::frame::FrameDecoder::new(payload)
                    .take(limit as u64 + 1)
                    .read_to_end(&mut plain)
                    .map_err(|error| BatchError::Compression(error.to_string()))?;
                plain
            }
        };
        if plain.len() > limit { Err(BatchError::TooLarge { limit }) } else { Ok(plain) }
    }
}

fn put_frame(payload: &[u8], with: &mut Compressor, out: &mut Vec<u8>) {
    with.block.resize(get_maximum_output_size(BLOCK), 0);
    out.extend_from_slice(&FRAME_HEADER);
    for block in payload.chunks(BLOCK) {
        match compress_into_with_table(block, &mut with.block, &mut with.table) {
            Ok(len) if len < block.len() => {
                out.extend_from_slice(&(len as u32).to_le_bytes());
                out.extend_from_slice(&with.block[..len]);
            }
            _ => {
                out.extend_from_slice(&(block.len() as u32 | UNCOMPRESSED_BLOCK).to_le_bytes());
                out.extend_from_slice(block);
            }
        }
    }
    out.extend_from_slice(&END_OF_FRAME);
}
