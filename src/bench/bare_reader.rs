//! The least that a reader of a slot can do: take the frames in, look at the first byte of each message, acknowledge.
//!
//! It uses the same replication connection as Millrace, so what it leaves out is exactly what Millrace adds: decoding,
//! encoding, compressing, writing, syncing, serving.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::BenchError;
use crate::change::{Lsn, Timestamp};
use crate::postgres::pgoutput;
use crate::postgres::publication::Origin;
use crate::postgres::replication::{
    Frame, ReplicationConnection, ReplicationStream, StartOptions, Status, StreamLimits,
};
use crate::postgres::source::SourceConfig;

const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);

/// `millrace bench bare-reader`
#[derive(Debug, Args)]
pub(super) struct BareReader {
    /// The database
    source: String,
    /// The slot to read
    #[arg(long)]
    slot: String,
    /// A publication whose changes are wanted
    #[arg(long = "publication")]
    publications: Vec<String>,
    /// How many rows to read
    #[arg(long)]
    rows: u64,
    /// Note when each transaction comes, and take each at once
    #[arg(long)]
    times: bool,
}

/// What a bare reader has read; printed as a line of JSON at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BareRead {
    /// Inserts, updates and deletes.
    pub(super) rows: u64,
    /// Transactions.
    pub(super) transactions: u64,
    /// Bytes of pgoutput messages.
    pub(super) bytes: u64,
    /// When the first row came, in microseconds since 1970.
    pub(super) first_row_at: i64,
    /// When the end of each transaction with rows came, in microseconds since 1970, where that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commits_at: Option<Vec<i64>>,
}

impl BareReader {
    /// Reads until the rows are there and committed, says so, and stays connected until it is ended.
    pub(super) async fn run(self) -> Result<(), BenchError> {
        let source = SourceConfig::parse(&self.source)?;
        let connection = ReplicationConnection::connect(&source).await?;
        let options = StartOptions {
            protocol: pgoutput::protocol_for(connection.server_version()),
            publications: self.publications.clone(),
            streaming: true,
            messages: true,
            origin: Origin::Any,
            binary: false,
            limits: StreamLimits::default(),
        };
        let mut stream = connection.start(&self.slot, Lsn::ZERO, &options).await?;
        stream.set_draining(!self.times);
        let mut read = BareRead { commits_at: self.times.then(Vec::new), ..BareRead::default() };
        let mut committed = Committed::default();
        let mut acknowledged = Instant::now();
        let mut told = false;
        loop {
            let mut asked = false;
            while let Some(frame) = stream.next_frame()? {
                match frame {
                    Frame::Data { body, .. } => read.take(body, &mut committed),
                    Frame::Keepalive { reply_requested, .. } => asked |= reply_requested,
                }
            }
            let complete = !told && committed.rows >= self.rows;
            if complete || asked || acknowledged.elapsed() >= ACKNOWLEDGE_EVERY {
                acknowledged = Instant::now();
                acknowledge(&mut stream, committed.end).await?;
            }
            if complete {
                told = true;
                stream.set_draining(false);
                tell(&read)?;
            }
            stream.fill().await?;
        }
    }
}

/// The last transaction that came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Committed {
    /// Where it ends.
    end: Lsn,
    /// Rows of this and all before it.
    rows: u64,
}

impl BareRead {
    /// Counts a message, and notes where its transaction ends if it is a commit.
    fn take(&mut self, body: &[u8], committed: &mut Committed) {
        self.bytes += body.len() as u64;
        // Commit: flags, commit LSN, end LSN. Stream Commit has the transaction's number in front.
        let end_at = match body.first() {
            Some(b'I' | b'U' | b'D') => {
                self.rows += 1;
                if self.rows == 1 {
                    self.first_row_at = Timestamp::now().0;
                }
                return;
            }
            Some(b'C') => 1 + 1 + 8,
            Some(b'c') => 1 + 4 + 1 + 8,
            _ => return,
        };
        self.transactions += 1;
        if let Some(commits_at) = &mut self.commits_at
            && self.rows > committed.rows
        {
            commits_at.push(Timestamp::now().0);
        }
        committed.rows = self.rows;
        if let Some(end) = body.get(end_at..).and_then(<[u8]>::first_chunk) {
            committed.end = Lsn(u64::from_be_bytes(*end));
        }
    }
}

async fn acknowledge(stream: &mut ReplicationStream, committed: Lsn) -> Result<(), BenchError> {
    stream.queue_status(Status { written: committed, flushed: committed, applied: committed, reply: false });
    Ok(stream.flush().await?)
}

fn tell(read: &BareRead) -> Result<(), BenchError> {
    let line = serde_json::to_string(read).map_err(std::io::Error::from);
    line.and_then(|line| writeln!(std::io::stdout(), "{line}")).map_err(BenchError::io("say what was read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_commits_are_told_by_their_first_byte() {
        let mut commit = b"C\0".to_vec();
        commit.extend([7u64, 8, 9].map(u64::to_be_bytes).concat());
        let mut stream_commit = b"c\0\0\0\x05\0".to_vec();
        stream_commit.extend([17u64, 18, 19].map(u64::to_be_bytes).concat());
        let (mut read, mut committed) =
            (BareRead { commits_at: Some(vec![]), ..BareRead::default() }, Committed::default());
        for (message, end, rows) in [
            (&b"B"[..], 0, 0),
            (b"R...", 0, 0),
            (b"I...", 0, 0),
            (b"U...", 0, 0),
            (b"D...", 0, 0),
            (&commit, 8, 3),
            (b"", 8, 3),
            (b"C", 8, 3),
            (&stream_commit, 18, 3),
            (b"I...", 18, 3),
            (&stream_commit, 18, 4),
        ] {
            read.take(message, &mut committed);
            assert_eq!(committed, Committed { end: Lsn(end), rows });
        }
        // Two of the transactions had rows.
        assert_eq!((read.rows, read.transactions, read.commits_at.map(|at| at.len())), (4, 4, Some(2)));
    }
}
