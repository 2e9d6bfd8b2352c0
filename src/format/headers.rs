//! Headers that the records of every format have.

use super::digits::Digits;
use crate::change::{Lsn, Phase};

/// Header of every record that stands for something in the source: its place there, `<commit LSN>:<ordinal>`.
pub const POSITION_HEADER: &str = "millrace.position";
/// Header of records that are not changes of a table: what they are (`gap`, `message`, `heartbeat`, `watermark`,
/// `begin`, `end`, `snapshot`).
pub const EVENT_HEADER: &str = "millrace.event";

/// Header of changes that came into the log on another way than as the source committed them: `snapshot`, `catchup`.
pub const PHASE_HEADER: &str = "millrace.phase";

/// The value of [`PHASE_HEADER`], where there is one.
pub(super) fn phase(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Stream => None,
        Phase::Snapshot => Some("snapshot"),
        Phase::Catchup => Some("catchup"),
    }
}

/// The text of [`POSITION_HEADER`], for the changes of one transaction.
#[derive(Debug, Default)]
pub(super) struct PositionText {
    /// `<commit LSN>:`
    commit: Vec<u8>,
}

impl PositionText {
    /// Turns to another transaction.
    pub(super) fn prepare(&mut self, commit_lsn: Lsn) {
        self.commit.clear();
        hex(&mut self.commit, commit_lsn.0 >> 32);
        self.commit.push(b'/');
        hex(&mut self.commit, commit_lsn.0 & 0xFFFF_FFFF);
        self.commit.push(b':');
    }

    /// Appends the position of the transaction's change with this number.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>, ordinal: u64) {
        out.extend_from_slice(&self.commit);
        out.extend_from_slice(Digits::new(ordinal).as_bytes());
    }
}

/// Appends a number in hexadecimal, as an LSN's halves are written.
fn hex(out: &mut Vec<u8>, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let nibble = (number >> (4 * place) & 15) as u8;
        out.push(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 });
    }
}
