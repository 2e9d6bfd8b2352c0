//! The checkpoint: where recovery starts, and what cannot be read from the segments.
//!
//! It is written before the first commit that new topics are for, when a topic or records are deleted, when segments are
//! sealed or merged, before retention removes any, and at a clean end; for no other commit. Always whole: written aside,
//! fsynced, renamed over the old one, directory fsynced. The base is a clean place, at the start of a segment with every
//! batch before it committed, so that recovery needs nothing but it and the segments from there on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::files::{Files, Open, failed};
use super::segment::{Form, corrupt};
use super::wire::{Fields, Put};
use crate::log::topics::{MAX_NAME, TopicId, TopicInfo, TopicList};
use crate::log::{LogError, PartitionId, SourcePosition};

/// The format that we write.
pub const VERSION: u32 = 3;
/// The format in which no segment could be merged; still read. So is 2, which is as 3, but for an older Millrace that
/// knows neither partitions without a topic nor starts in the middle of a batch.
const WITHOUT_FORM: u32 = 1;
pub const NAME: &str = "checkpoint";
pub const ASIDE: &str = "checkpoint.tmp";
const MAGIC: &[u8; 8] = b"MRCHECKP";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Drawn when the log is made; keys all checksums.
    pub log_id: u128,
    pub leader_epoch: i32,
    /// A commit that was durable when this was written: a recovery that finds less has lost something.
    pub durable_commit: u64,
    pub base: Base,
    /// Also those of topics that have been deleted: they have no topic any more.
    pub partitions: Vec<PartitionState>,
    pub topics: TopicList,
    /// Sealed segments that retention has left, oldest first.
    pub sealed: Vec<SealedSegment>,
}

/// The log's state at the start of the first segment that is not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub sequence: u64,
    pub commit: u64,
    pub chain: u32,
    pub position: Option<SourcePosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// First offset that retention and who deletes records have left.
    pub start: i64,
    /// End at the base.
    pub base_end: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedSegment {
    pub sequence: u64,
    pub len: u64,
    /// When its last commit was written, in milliseconds since 1970.
    pub last_append: i64,
    /// Which of its files is in force.
    pub form: Form,
}

impl Checkpoint {
    /// Makes it durable in `directory`. After lack of space the one before is still in force.
    pub fn write(&self, files: &dyn Files, directory: &Path) -> Result<(), LogError> {
        let (aside, path) = (directory.join(ASIDE), directory.join(NAME));
        let bytes = self.encode();
        let write = || {
            let file = files.open(&aside, Open::Create)?;
            file.write_all_at(&bytes, 0)?;
            file.sync()
        };
        write().map_err(|error: io::Error| failed("write", &aside, error))?;
        // From here on it may be in force whatever comes back, so that lack of space is an error like any other.
        let put_in_force = files.rename(&aside, &path).and_then(|()| files.sync_dir(directory));
        put_in_force.map_err(|error| LogError::Io {
            operation: "put in force",
            path: path.display().to_string(),
            source: Arc::new(error),
        })
    }

    /// Reads the one in `directory`, if there is one.
    pub fn read(files: &dyn Files, directory: &Path) -> Result<Option<Checkpoint>, LogError> {
        let path = directory.join(NAME);
        let read = || -> io::Result<Vec<u8>> {
            let file = files.open(&path, Open::Read)?;
            let mut bytes = vec![0; file.size()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, error)),
        };
        let bad = |detail| corrupt(&path, 0, detail);
        let (content, crc) =
            bytes.split_last_chunk::<4>().ok_or_else(|| bad("the checkpoint is cut short"))?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
            return Err(bad("the checkpoint fails its checksum"));
        }
        let mut fields = Fields(content);
        if fields.bytes(MAGIC.len()) != Some(MAGIC) {
            return Err(bad("this is not a checkpoint"));
        }
        let version = match fields.u32() {
            Some(version @ WITHOUT_FORM..=VERSION) => version,
            Some(found) if found > VERSION => {
                return Err(LogError::Version {
                    path: path.display().to_string(),
                    found,
                    supported: VERSION,
                });
            }
            _ => return Err(bad("the checkpoint has no version that was ever written")),
        };
        Self::decode(fields, version).map(Some).ok_or_else(|| bad("the checkpoint does not hold together"))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.u32(VERSION);
        out.u128(self.log_id);
        out.i32(self.leader_epoch);
        out.u64(self.durable_commit);
        out.u64(self.base.sequence);
        out.u64(self.base.commit);
        out.u32(self.base.chain);
        out.u8(self.base.position.is_some().into());
        if let Some(position) = &self.base.position {
            Put::position(&mut out, position);
        }
        out.u32(self.partitions.len() as u32);
        for partition in &self.partitions {
            out.i64(partition.start);
            out.i64(partition.base_end);
        }
        out.u32(self.topics.len() as u32);
        for topic in &self.topics {
            out.u128(topic.id.0);
            out.u32(topic.name.len() as u32);
            out.put(topic.name.as_bytes());
            out.u32(topic.partitions.len() as u32);
            topic.partitions.iter().for_each(|partition| out.u32(partition.0));
        }
        out.u32(self.sealed.len() as u32);
        for segment in &self.sealed {
            out.u64(segment.sequence);
            out.u64(segment.len);
            out.i64(segment.last_append);
            out.u8((segment.form == Form::Merged).into());
        }
        out.u32(crc32c::crc32c(&out));
        out
    }

    fn decode(mut fields: Fields<'_>, version: u32) -> Option<Checkpoint> {
        let mut checkpoint = Checkpoint {
            log_id: fields.u128()?,
            leader_epoch: fields.i32()?,
            durable_commit: fields.u64()?,
            base: Base {
                sequence: fields.u64()?,
                commit: fields.u64()?,
                chain: fields.u32()?,
                position: match fields.u8()? {
                    0 => None,
                    _ => Some(fields.position()?),
                },
            },
            partitions: Vec::new(),
            topics: Vec::new(),
            sealed: Vec::new(),
        };
        for _ in 0..fields.count(16)? {
            let (start, base_end) = (fields.i64()?, fields.i64()?);
            checkpoint.partitions.push(PartitionState { start, base_end });
        }
        for _ in 0..fields.count(24)? {
            let id = TopicId(fields.u128()?);
            let len = fields.count(1).filter(|len| *len <= MAX_NAME)?;
            let name = std::str::from_utf8(fields.bytes(len)?).ok()?.to_owned();
            let count = fields.count(4)?;
            let partitions = (0..count).map(|_| fields.u32().map(PartitionId)).collect::<Option<_>>()?;
            checkpoint.topics.push(Arc::new(TopicInfo { name, id, partitions }));
        }
        for _ in 0..fields.count(24)? {
            let (sequence, len, last_append) = (fields.u64()?, fields.u64()?, fields.i64()?);
            let form = match version {
                WITHOUT_FORM => Form::Written,
                _ if fields.u8()? == 0 => Form::Written,
                _ => Form::Merged,
            };
            checkpoint.sealed.push(SealedSegment { sequence, len, last_append, form });
        }
        let known = checkpoint.partitions.len();
        let sound =
            checkpoint.topics.iter().flat_map(|topic| &topic.partitions).all(|p| (p.0 as usize) < known)
                && checkpoint.partitions.iter().all(|p| 0 <= p.start && 0 <= p.base_end)
                && checkpoint.sealed.is_sorted_by(|a, b| a.sequence < b.sequence)
                && checkpoint.sealed.last().is_none_or(|last| last.sequence < checkpoint.base.sequence);
        sound.then_some(checkpoint)
    }
}
