//! Compression of a batch's records. LZ4 is written as an LZ4 *frame*, which is what Kafka clients expect; zstd too.
//!
//! The LZ4 frame is put together here around `lz4_flex`'s block compressor: its own frame encoder copies every byte twice
//! more, through buffers that it allocates anew for each frame.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use serde::{Deserialize, Serialize};

use super::BatchError;

/// How records are compressed. A payload under 1 KiB, or one that would not shrink, stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// Not at all
    None,
    /// LZ4
    #[default]
    Lz4,
    /// Zstandard
    Zstd,
}

/// The text names no codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a codec; use none, lz4 or zstd")]
pub struct ParseCodecError(String);

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Codec::None),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            _ => Err(ParseCodecError(text.to_owned())),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        })
    }
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

/// Zstandard's own default: higher levels cost several times the CPU for a few percent of size.
const ZSTD_LEVEL: i32 = 3;
/// At that level a frame's window has at most 2 MiB, so a frame that asks for more than this is none of ours.
const ZSTD_MAX_WINDOW_LOG: u32 = 23;

/// Working memory for compression, to be kept from batch to batch.
pub struct Compressor {
    table: CompressTable,
    block: Vec<u8>,
    /// Made for the first batch that needs it: its tables take more than a megabyte.
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor { table: CompressTable::large(), block: Vec::new(), zstd: None }
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
            Codec::Zstd => 4,
        }
    }

    pub(super) fn from_attributes(bits: i16) -> Option<Codec> {
        match bits {
            0 => Some(Codec::None),
            3 => Some(Codec::Lz4),
            4 => Some(Codec::Zstd),
            _ => None,
        }
    }

    /// Appends `payload` to `out`, compressed where that helps, and says with what.
    pub(super) fn compress(self, payload: &[u8], with: &mut Compressor, out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        if payload.len() >= MIN_COMPRESSED {
            let shrunk = match self {
                Codec::None => false,
                Codec::Lz4 => {
                    put_lz4_frame(payload, with, out);
                    out.len() - start < payload.len()
                }
                Codec::Zstd => put_zstd_frame(payload, with, out),
            };
            if shrunk {
                return self;
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
            Codec::Lz4 => read_at_most(limit, lz4_flex::frame::FrameDecoder::new(payload))?,
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(undecodable)?;
                decoder.window_log_max(ZSTD_MAX_WINDOW_LOG).map_err(undecodable)?;
                read_at_most(limit, decoder)?
            }
        };
        if plain.len() > limit { Err(BatchError::TooLarge { limit }) } else { Ok(plain) }
    }
}

/// Reads to the end, or to one byte beyond the limit.
pub(super) fn read_at_most(limit: usize, decoder: impl Read) -> Result<Vec<u8>, BatchError> {
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(undecodable)?;
    Ok(plain)
}

pub(super) fn undecodable(error: io::Error) -> BatchError {
    BatchError::Compression(error.to_string())
}

fn put_lz4_frame(payload: &[u8], with: &mut Compressor, out: &mut Vec<u8>) {
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

/// `false` where it would not shrink.
fn put_zstd_frame(payload: &[u8], with: &mut Compressor, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let compressor = match &mut with.zstd {
        Some(compressor) => compressor,
        none => match zstd::bulk::Compressor::new(ZSTD_LEVEL) {
            Ok(compressor) => none.insert(compressor),
            // Out of memory.
            Err(_) => return false,
        },
    };
    out.resize(start + payload.len(), 0);
    // It fails where what is to be written does not fit.
    match compressor.compress_to_buffer(payload, &mut out[start..]) {
        Ok(len) => {
            out.truncate(start + len);
            len < payload.len()
        }
        Err(_) => false,
    }
}
