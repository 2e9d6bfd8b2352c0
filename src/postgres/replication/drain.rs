//! Reading in large pieces while a backlog is drained, on plain TCP.
//!
//! A walsender writes each message with a system call of its own, so a reader that is woken by the first byte does one
//! wake-up and one read for a few hundred bytes. `SO_RCVLOWAT` lets the kernel wake it only once much has come.
//!
//! Liveness: fewer bytes than the mark at rest would never wake anybody. So while the mark is raised a wait lasts
//! [`PATIENCE`] at most, after which whatever is there is read without asking for readiness; if that was little several
//! times in a row, the flow is thin and the mark goes down to one byte, where it stays until much comes again within a
//! short time.
//!
//! Unix sockets have nothing of the kind to gain: there each message is a buffer of its own, and taking it up costs the
//! kernel the same however many a read brings (measured).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Bytes that wake the reader while draining: half of what a socket's buffer holds at first, so that the server goes on
/// writing while we come.
const MARK: usize = 64 * 1024;
/// Longest wait with the mark raised.
const PATIENCE: Duration = Duration::from_millis(5);
/// A wait of [`PATIENCE`] that brought less was in vain.
const LITTLE: usize = 16 * 1024;
/// As many waits in vain, one after the other, lower the mark. One alone is only a walsender that lost its processor.
const IN_VAIN: u32 = 4;
/// As many bytes as this within [`PATIENCE`] raise it again.
const MUCH: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct LowWater {
    draining: bool,
    raised: bool,
    /// Ends the present wait; lives through cancelled calls, so that being cancelled often prolongs nothing.
    patience: Pin<Box<Sleep>>,
    waiting: bool,
    in_vain: u32,
    /// With the mark down: bytes since when.
    window: (Instant, usize),
}

impl LowWater {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        LowWater {
            draining: false,
            raised: false,
            patience: Box::pin(tokio::time::sleep(PATIENCE)),
            waiting: false,
            in_vain: 0,
            window: (now, 0),
        }
    }

    /// Notes whether a backlog is being drained. True if the mark went down, so that the caller looks for bytes that
    /// came below it.
    pub(super) fn set_draining(&mut self, draining: bool, socket: BorrowedFd<'_>) -> bool {
        if self.draining == draining {
            return false;
        }
        self.draining = draining;
        self.window = (Instant::now(), 0);
        let was_raised = self.raised;
        self.set_mark(draining, socket);
        was_raised && !self.raised
    }

    pub(super) fn is_raised(&self) -> bool {
        self.raised
    }

    /// Notes a read that readiness had announced.
    pub(super) fn received(&mut self, count: usize, socket: BorrowedFd<'_>) {
        self.waiting = false;
        self.in_vain = 0;
        if !self.draining || self.raised {
            return;
        }
        let now = Instant::now();
        self.window.1 += count;
        if now.duration_since(self.window.0) > PATIENCE {
            self.window = (now, count);
        } else if self.window.1 >= MUCH {
            self.set_mark(true, socket);
        }
    }

    /// Ready when a wait with the mark raised has lasted long enough.
    pub(super) fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting {
            self.waiting = true;
            self.patience.as_mut().reset(Instant::now() + PATIENCE);
        }
        self.patience.as_mut().poll(cx)
    }

    /// Notes what a read without readiness found. True if the mark went down, as in [`Self::set_draining`].
    pub(super) fn looked(&mut self, count: usize, socket: BorrowedFd<'_>) -> bool {
        self.waiting = false;
        self.in_vain = if count < LITTLE { self.in_vain + 1 } else { 0 };
        if self.in_vain < IN_VAIN {
            return false;
        }
        self.window = (Instant::now(), 0);
        self.set_mark(false, socket);
        true
    }

    fn set_mark(&mut self, raised: bool, socket: BorrowedFd<'_>) {
        let mark = if raised { MARK as libc::c_int } else { 1 };
        // Where the mark cannot be raised everything works as with the mark down.
        if set_receive_low_water(socket, mark).is_ok() {
            self.raised = raised;
        }
        (self.waiting, self.in_vain) = (false, 0);
    }
}

fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the value is a c_int that outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
