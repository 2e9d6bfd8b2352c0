//! Transactions that the server streams before they have committed wait here: in memory while they are small, then in
//! a file of their own.
//!
//! A spool is disposable. It is never fsynced, and it is discarded at every reconnect, because the server sends an
//! unacknowledged transaction again as a whole. It holds the messages as they came, each behind its length and the LSN
//! of its WAL record, so that a row costs one copy until it is known to have committed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::shapes::Arrival;
use crate::change::Lsn;

/// What a transaction may hold in memory before it goes to its file, in bytes.
const SPILL_AT: usize = 256 << 10;
/// What all open transactions together may hold in memory, in bytes.
const MEMORY_BUDGET: usize = 16 << 20;
/// How much is read back at once, in bytes. A message larger than this is read on its own.
const READ_CHUNK: usize = 256 << 10;
/// Length and LSN before each message.
const MESSAGE_HEADER: usize = 4 + 8;

/// All transactions being streamed, by their top-level transaction id.
pub struct Spools {
    directory: PathBuf,
    open: HashMap<u32, Spool>,
    in_memory: usize,
    /// Numbers the files: one may still be on its way out when its transaction comes again.
    last_file: u64,
}

/// One transaction being streamed.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    /// Whether it has a file. It is opened for each use: hundreds of transactions may be open at a time.
    on_disk: bool,
    /// Bytes in the file.
    spilled: u64,
    buffer: Vec<u8>,
    aborted: HashSet<u32>,
    has_messages: bool,
    /// Whether a message may be of a subtransaction that was rolled back.
    in_doubt: bool,
    /// When each of its shapes arrived, in order.
    arrivals: VecDeque<Arrival>,
}

impl Spools {
    /// An empty set of spools in `directory`, which is emptied first: what lies there is of no use after a restart.
    ///
    /// # Errors
    /// When the directory cannot be emptied or made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(directory)?,
        }
        Ok(Spools { directory: directory.to_owned(), open: HashMap::new(), in_memory: 0, last_file: 0 })
    }

    /// Drops all open transactions.
    pub fn clear(&mut self) {
        self.open.clear();
        self.in_memory = 0;
    }

    /// Adds a message to a transaction. True when it is time to [`spill`](Self::spill).
    pub fn push(&mut self, xid: u32, lsn: Lsn, message: &[u8]) -> bool {
        let spool = self.open.entry(xid).or_insert_with(|| {
            self.last_file += 1;
            Spool {
                path: self.directory.join(format!("{}.spool", self.last_file)),
                on_disk: false,
                spilled: 0,
                buffer: Vec::new(),
                aborted: HashSet::new(),
                has_messages: false,
                in_doubt: false,
                arrivals: VecDeque::new(),
            }
        });
        spool.buffer.extend_from_slice(&(message.len() as u32).to_le_bytes());
        spool.buffer.extend_from_slice(&lsn.0.to_le_bytes());
        spool.buffer.extend_from_slice(message);
        self.in_memory += MESSAGE_HEADER + message.len();
        spool.buffer.len() >= SPILL_AT || self.in_memory >= MEMORY_BUDGET
    }

    /// The message just added is a table's shape.
    pub fn shape_arrived(&mut self, xid: u32, arrival: Arrival) {
        if let Some(spool) = self.open.get_mut(&xid) {
            spool.arrivals.push_back(arrival);
        }
    }

    /// The message just added is a logical one.
    pub fn has_message(&mut self, xid: u32) {
        if let Some(spool) = self.open.get_mut(&xid) {
            spool.has_messages = true;
        }
    }

    /// Marks a subtransaction as rolled back, or drops the whole transaction when it is the top-level one.
    pub fn abort(&mut self, xid: u32, sub_xid: u32) {
        if xid == sub_xid {
            drop(self.take(xid));
        } else if let Some(spool) = self.open.get_mut(&xid) {
            spool.aborted.insert(sub_xid);
            spool.in_doubt |= spool.has_messages;
        }
    }

    /// Takes a transaction out, to read it back.
    pub fn take(&mut self, xid: u32) -> Option<Spool> {
        let spool = self.open.remove(&xid)?;
        self.in_memory = self.in_memory.saturating_sub(spool.buffer.len());
        Some(spool)
    }

    /// Writes what is in memory to the files: of one transaction, or of all when together they are over the budget.
    ///
    /// # Errors
    /// I/O errors; a full disk among them.
    pub async fn spill(&mut self, xid: u32) -> io::Result<()> {
        let all = self.in_memory >= MEMORY_BUDGET;
        let xids: Vec<u32> = if all { self.open.keys().copied().collect() } else { vec![xid] };
        for xid in xids {
            if let Some(spool) = self.take(xid) {
                let written =
                    tokio::task::spawn_blocking(|| spool.write_out()).await.map_err(io::Error::other)?;
                self.open.insert(xid, written?);
            }
        }
        Ok(())
    }
}

impl Spool {
    /// Whether it is small enough to have stayed in memory.
    pub fn is_in_memory(&self) -> bool {
        !self.on_disk
    }

    /// When its shapes arrived, in order.
    pub fn take_arrivals(&mut self) -> VecDeque<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// Whether it cannot be told which logical messages were rolled back: the server streams those of subtransactions as the
    /// whole transaction's (PostgreSQL's `pgoutput_message`).
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Whether a subtransaction was rolled back.
    pub fn is_aborted(&self, sub_xid: u32) -> bool {
        !self.aborted.is_empty() && self.aborted.contains(&sub_xid)
    }

    /// Blocking.
    fn write_out(mut self) -> io::Result<Self> {
        self.on_disk = true;
        OpenOptions::new().append(true).create(true).open(&self.path)?.write_all(&self.buffer)?;
        self.spilled += self.buffer.len() as u64;
        // With its memory: a transaction that waits for its end should hold none.
        self.buffer = Vec::new();
        Ok(self)
    }

    /// To be read from the start with [`SpoolReader::chunk`].
    pub fn into_reader(self) -> SpoolReader {
        SpoolReader { spool: self, file: None, left_over: Vec::new(), memory_read: false }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.on_disk {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // Best effort: the directory is emptied at the next start.
        let remove = move || drop(fs::remove_file(path));
        // A large file takes its time to go.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Reads a transaction back in order.
pub struct SpoolReader {
    spool: Spool,
    /// Its file, once it is being read.
    file: Option<File>,
    /// The start of a message whose end has not been read yet.
    left_over: Vec<u8>,
    memory_read: bool,
}

impl SpoolReader {
    /// The transaction that is read.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The next whole messages; `None` at the end. Give back `recycled` from the last call.
    ///
    /// # Errors
    /// I/O errors; a file that ends inside a message.
    pub async fn chunk(mut self, mut recycled: Vec<u8>) -> io::Result<(Self, Option<Vec<u8>>)> {
        recycled.clear();
        recycled.append(&mut self.left_over);
        if self.spool.spilled > 0 {
            let (reader, chunk) = tokio::task::spawn_blocking(move || -> io::Result<_> {
                self.read_some(&mut recycled)?;
                Ok((self, recycled))
            })
            .await
            .map_err(io::Error::other)??;
            (self, recycled) = (reader, chunk);
        } else if !self.memory_read {
            self.memory_read = true;
            recycled.append(&mut self.spool.buffer);
        }
        let whole = whole_messages(&recycled);
        self.left_over.extend_from_slice(recycled.get(whole..).unwrap_or_default());
        recycled.truncate(whole);
        match (whole, self.left_over.is_empty()) {
            (0, true) => Ok((self, None)),
            (0, false) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a spool file ends inside a message"))
            }
            _ => Ok((self, Some(recycled))),
        }
    }

    /// Reads until `chunk` holds at least one whole message, or everything has been read. Blocking.
    fn read_some(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        let mut want = READ_CHUNK;
        loop {
            if self.spool.spilled > 0 {
                let file = match &mut self.file {
                    Some(file) => file,
                    none => none.insert(File::open(&self.spool.path)?),
                };
                let limit = (want as u64).min(self.spool.spilled);
                let read = Read::take(&mut *file, limit).read_to_end(chunk)?;
                if read == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a spool file is shorter than written",
                    ));
                }
                self.spool.spilled -= read as u64;
            } else if !self.memory_read {
                self.memory_read = true;
                chunk.append(&mut self.spool.buffer);
            } else {
                return Ok(());
            }
            match message_length(chunk) {
                Some(first) if chunk.len() < first => want = first - chunk.len(),
                Some(_) => return Ok(()),
                None => {}
            }
        }
    }
}

/// The messages of a chunk with the LSNs of their WAL records.
pub fn messages(chunk: &[u8]) -> impl Iterator<Item = (Lsn, &[u8])> {
    let mut rest = chunk;
    std::iter::from_fn(move || {
        let length = message_length(rest)?;
        let message = rest.get(MESSAGE_HEADER..length)?;
        let lsn = rest.get(4..MESSAGE_HEADER)?.try_into().ok().map(u64::from_le_bytes)?;
        rest = rest.get(length..)?;
        Some((Lsn(lsn), message))
    })
}

/// Length of the first message with its header; `None` when not even the header is there.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let header: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    bytes.get(..MESSAGE_HEADER)?;
    Some(MESSAGE_HEADER + u32::from_le_bytes(header) as usize)
}

/// How many bytes at the start of `chunk` are whole messages.
fn whole_messages(chunk: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = message_length(&chunk[end..]) {
        if chunk.len() - end < length {
            break;
        }
        end += length;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn read_all(spool: Spool) -> Vec<(Lsn, Vec<u8>)> {
        let mut reader = spool.into_reader();
        let (mut all, mut recycled) = (Vec::new(), Vec::new());
        loop {
            let (next, chunk) = reader.chunk(recycled).await.unwrap();
            let Some(chunk) = chunk else { return all };
            all.extend(messages(&chunk).map(|(lsn, message)| (lsn, message.to_vec())));
            (reader, recycled) = (next, chunk);
        }
    }

    #[tokio::test]
    async fn a_transaction_reads_back_as_it_came_from_memory_file_or_both() {
        let directory = tempfile::tempdir().unwrap();
        let mut spools = Spools::open(&directory.path().join("spool")).unwrap();
        for (count, size, in_memory) in [(10, 100, true), (5_000, 1_000, false), (3, 1 << 20, false)] {
            let mut expected = Vec::new();
            for n in 0..count {
                let message = vec![n as u8; size + n % 7];
                if spools.push(7, Lsn(n as u64), &message) {
                    spools.spill(7).await.unwrap();
                }
                expected.push((Lsn(n as u64), message));
            }
            // A part that has not been spilled follows the part that has.
            spools.push(7, Lsn(99), b"last");
            expected.push((Lsn(99), b"last".to_vec()));
            let spool = spools.take(7).unwrap();
            assert_eq!(spool.is_in_memory(), in_memory);
            let path = spool.path.clone();
            assert!(read_all(spool).await == expected);
            // A spool removes its file, in its own time.
            while path.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(spools.in_memory, 0);
    }

    #[tokio::test]
    async fn many_small_transactions_stay_within_the_memory_budget() {
        let directory = tempfile::tempdir().unwrap();
        let mut spools = Spools::open(directory.path()).unwrap();
        for xid in 0..400 {
            if spools.push(xid, Lsn(1), &[0; 128 << 10]) {
                spools.spill(xid).await.unwrap();
            }
            let held: usize = spools.open.values().map(|spool| spool.buffer.capacity()).sum();
            assert!(held <= 2 * MEMORY_BUDGET, "{held} bytes in {xid} transactions");
        }
        assert_eq!(read_all(spools.take(3).unwrap()).await.len(), 1);
    }

    #[test]
    fn a_rolled_back_subtransaction_is_known_and_a_rolled_back_transaction_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut spools = Spools::open(directory.path()).unwrap();
        spools.push(7, Lsn(1), b"x");
        spools.abort(7, 9);
        spools.push(8, Lsn(1), b"x");
        spools.abort(8, 8);
        let spool = spools.take(7).unwrap();
        assert!(spool.is_aborted(9) && !spool.is_aborted(7));
        assert!(spools.take(8).is_none());
    }

    #[test]
    fn a_message_is_in_doubt_when_a_subtransaction_is_rolled_back_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut spools = Spools::open(directory.path()).unwrap();
        for (xid, is_before) in [(7, false), (8, true)] {
            spools.push(xid, Lsn(1), b"R");
            if is_before {
                spools.has_message(xid);
            }
            spools.abort(xid, 9);
            spools.has_message(xid);
            assert_eq!(spools.take(xid).unwrap().is_in_doubt(), is_before);
        }
    }
}
