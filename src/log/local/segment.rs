//! A segment file: its name, its header, and the way through its entries.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::{self, Entry, Seal};
use super::files::{File, Files, Open, failed};
use super::index::IndexEntry;
use super::wire::{Fields, Put};
use crate::log::record_batch::BatchHeader;
use crate::log::{LogError, PartitionId};

/// Length of a segment's header; the first entry follows.
pub const HEADER_LEN: usize = 40;
/// The format that we write.
pub const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"MRSEGMNT";
const SUFFIX: &str = ".segment";
const INDEX_SUFFIX: &str = ".index";
const MERGED: &str = ".merged";
/// How much a scan reads at once.
const READ: usize = 1 << 20;

/// Which of its files a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As its groups were written.
    Written,
    /// Its small batches merged; takes the written one's place.
    Merged,
}

/// A segment as readers hold it. It stays readable for them after retention or a merge has unlinked it.
#[derive(Debug)]
pub struct Segment {
    pub sequence: u64,
    pub form: Form,
    pub seal: Seal,
    pub path: PathBuf,
    pub index_path: PathBuf,
    files: Arc<dyn Files>,
    file: Mutex<Option<Arc<dyn File>>>,
}

impl Segment {
    pub fn new(files: &Arc<dyn Files>, directory: &Path, log_id: u128, sequence: u64, form: Form) -> Self {
        let (seal, infix) = match form {
            Form::Written => (Seal::new(log_id, sequence), ""),
            Form::Merged => (Seal::new_merged(log_id, sequence), MERGED),
        };
        Segment {
            sequence,
            form,
            seal,
            path: directory.join(format!("{sequence:020}{infix}{SUFFIX}")),
            index_path: directory.join(format!("{sequence:020}{infix}{INDEX_SUFFIX}")),
            files: files.clone(),
            file: Mutex::new(None),
        }
    }

    /// The open file; opened by the first who reads it. Blocks.
    pub fn file(&self) -> io::Result<Arc<dyn File>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match &*file {
            Some(file) => Ok(file.clone()),
            None => Ok(file.insert(self.files.open(&self.path, Open::Read)?).clone()),
        }
    }

    /// Reads some bytes of it. Blocks.
    pub fn read(&self, position: u64, len: usize) -> Result<Vec<u8>, LogError> {
        let mut bytes = vec![0; len];
        let read = self.file().and_then(|file| file.read_exact_at(&mut bytes, position));
        match read {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(corrupt(&self.path, position, "the file is shorter than its index says"))
            }
            Err(error) => Err(failed("read", &self.path, error)),
        }
    }

    /// The batch of the entry that `bytes` are, which must be the one that the index means.
    pub fn check_batch<'a>(
        &self,
        partition: PartitionId,
        entry: &IndexEntry,
        bytes: &'a [u8],
    ) -> Result<(BatchHeader, &'a [u8]), LogError> {
        let position = u64::from(entry.position);
        let bad = |detail: &str| corrupt(&self.path, position, detail);
        match entry::read(bytes, self.seal, position) {
            Some((_, Entry::Batch { partition: found, batch })) => {
                let header = BatchHeader::parse(batch).map_err(|error| bad(&error.to_string()))?;
                if found != partition || header.base_offset.0 != entry.base {
                    return Err(bad("another batch stands where the index says"));
                }
                Ok((header, batch))
            }
            Some(_) => Err(bad("no batch stands where the index says")),
            None => Err(bad("an entry fails its checksum")),
        }
    }
}

/// Kind, number and form of the file that `name` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    Segment(u64, Form),
    Index(u64, Form),
}

/// Reads a file's name.
pub fn named(name: &str) -> Option<Named> {
    let number = |stem: &str| {
        let (digits, form) = match stem.strip_suffix(MERGED) {
            Some(digits) => (digits, Form::Merged),
            None => (stem, Form::Written),
        };
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| Some((digits.parse().ok()?, form)))?
    };
    match name.strip_suffix(SUFFIX) {
        Some(stem) => number(stem).map(|(sequence, form)| Named::Segment(sequence, form)),
        None => number(name.strip_suffix(INDEX_SUFFIX)?).map(|(sequence, form)| Named::Index(sequence, form)),
    }
}

/// An error about bytes that are not what was written.
pub fn corrupt(path: &Path, offset: u64, detail: impl Into<String>) -> LogError {
    LogError::Corrupt { path: path.display().to_string(), offset, detail: detail.into() }
}

/// A segment's header.
pub fn header(log_id: u128, sequence: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.u32(VERSION);
    out.u128(log_id);
    out.u64(sequence);
    out.u32(crc32c::crc32c(&out));
    out
}

/// Checks a segment's header. `Ok(false)` when it is not one of this log and number.
pub fn check_header(file: &dyn File, segment: &Segment, log_id: u128) -> Result<bool, LogError> {
    let mut bytes = [0; HEADER_LEN];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(failed("read", &segment.path, error)),
    }
    let (content, crc) = bytes.split_at(HEADER_LEN - 4);
    if !content.starts_with(MAGIC) || Fields(crc).u32() != Some(crc32c::crc32c(content)) {
        return Ok(false);
    }
    let mut fields = Fields(&content[MAGIC.len()..]);
    match fields.u32() {
        Some(VERSION) => Ok(fields.u128() == Some(log_id) && fields.u64() == Some(segment.sequence)),
        Some(found) if found > VERSION => {
            let path = segment.path.display().to_string();
            Err(LogError::Version { path, found, supported: VERSION })
        }
        _ => Ok(false),
    }
}

/// What a scan finds next.
#[derive(Debug)]
pub enum Scanned<'a> {
    Entry {
        position: u64,
        len: usize,
        crc: u32,
        entry: Entry<'a>,
    },
    /// The file ends with the entry before.
    End,
    /// What stands here is not an entry.
    Bad {
        position: u64,
        detail: &'static str,
    },
}

/// Goes through a segment's entries from the first, reading ahead.
pub struct Scan<'a> {
    segment: &'a Segment,
    file: &'a dyn File,
    len: u64,
    position: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer starts.
    buffer_at: u64,
}

impl<'a> Scan<'a> {
    pub fn new(segment: &'a Segment, file: &'a dyn File, position: u64) -> Result<Self, LogError> {
        let len = file.size().map_err(|error| failed("read the length of", &segment.path, error))?;
        Ok(Scan { segment, file, len, position, buffer: Vec::new(), buffer_at: position })
    }

    /// The next entry, and beyond it.
    pub fn next(&mut self) -> Result<Scanned<'_>, LogError> {
        let position = self.position;
        if position >= self.len {
            return Ok(Scanned::End);
        }
        let Some(prefix) = self.peek(entry::PREFIX)? else {
            return Ok(Scanned::Bad { position, detail: "an entry is cut short" });
        };
        let Some(len) = entry::whole_len(prefix) else {
            return Ok(Scanned::Bad { position, detail: "an entry's length is impossible" });
        };
        let seal = self.segment.seal;
        if self.peek(len)?.is_none() {
            return Ok(Scanned::Bad { position, detail: "an entry is cut short" });
        }
        self.position += len as u64;
        let from = (position - self.buffer_at) as usize;
        match entry::read(&self.buffer[from..from + len], seal, position) {
            Some((crc, entry)) => Ok(Scanned::Entry { position, len, crc, entry }),
            None => Ok(Scanned::Bad { position, detail: "an entry fails its checksum" }),
        }
    }

    /// Looks at every byte from here on for a whole commit after `number`.
    pub fn find_commit_after(&mut self, number: u64) -> Result<Option<u64>, LogError> {
        const HEAD: usize = entry::PREFIX + 1 + 8;
        while let Some(head) = self.peek(HEAD)? {
            if entry::may_be_commit_after(head, number)
                && let Some(len) = entry::whole_len(head)
                && let (seal, position) = (self.segment.seal, self.position)
                && let Some(whole) = self.peek(len)?
                && let Some((_, Entry::Commit(commit))) = entry::read(whole, seal, position)
            {
                return Ok(Some(commit.number));
            }
            self.position += 1;
        }
        Ok(None)
    }

    /// The `len` bytes from here on, if the file has them.
    fn peek(&mut self, len: usize) -> Result<Option<&[u8]>, LogError> {
        if len as u64 > self.len - self.position.min(self.len) {
            return Ok(None);
        }
        let end = self.position + len as u64;
        if end > self.buffer_at + self.buffer.len() as u64 {
            let ahead = (self.len - self.position).min(len.max(READ) as u64) as usize;
            self.buffer.resize(ahead, 0);
            self.buffer_at = self.position;
            let read = self.file.read_exact_at(&mut self.buffer, self.position);
            read.map_err(|error| failed("read", &self.segment.path, error))?;
        }
        let from = (self.position - self.buffer_at) as usize;
        Ok(self.buffer.get(from..from + len))
    }
}
