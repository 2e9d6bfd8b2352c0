//! Where a session's frames come from: a walsender's stream, or before it a backlog that is read by SQL.

use super::{Backlog, Frame, ReplicationConnection, ReplicationError, ReplicationStream, Status};

/// Frames come in, and what is durable is told.
pub enum Feed {
    /// A walsender's stream.
    Stream(ReplicationStream),
    /// A backlog.
    Backlog(Backlog),
}

impl Feed {
    /// As [`ReplicationStream::fill`]; returns also when a backlog has been read.
    ///
    /// # Errors
    /// The connection broke, or the server failed.
    pub async fn fill(&mut self) -> Result<(), ReplicationError> {
        match self {
            Feed::Stream(stream) => stream.fill().await,
            Feed::Backlog(backlog) => backlog.fill().await,
        }
    }

    /// As [`ReplicationStream::next_frame`].
    ///
    /// # Errors
    /// What came is an error of the server, or not its protocol.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        match self {
            Feed::Stream(stream) => stream.next_frame(),
            Feed::Backlog(backlog) => backlog.next_frame(),
        }
    }

    /// As [`ReplicationStream::queue_status`]; of a backlog the server hears after the piece that is being read.
    pub fn queue_status(&mut self, status: Status) {
        match self {
            Feed::Stream(stream) => stream.queue_status(status),
            Feed::Backlog(backlog) => backlog.acknowledge(status.flushed),
        }
    }

    /// As [`ReplicationStream::try_flush`].
    pub fn try_flush(&mut self) {
        if let Feed::Stream(stream) = self {
            stream.try_flush();
        }
    }

    /// As [`ReplicationStream::set_draining`].
    pub fn set_draining(&mut self, draining: bool) {
        if let Feed::Stream(stream) = self {
            stream.set_draining(draining);
        }
    }

    /// The connection of a backlog, once all of it has been read and told.
    pub fn take_connection(&mut self) -> Option<ReplicationConnection> {
        match self {
            Feed::Stream(_) => None,
            Feed::Backlog(backlog) => backlog.take_connection(),
        }
    }

    /// Ends it in order, as far as there is one.
    pub async fn stop(self) {
        match self {
            Feed::Stream(stream) => stream.stop().await,
            // The copy of the slot ends with the connection.
            Feed::Backlog(_) => {}
        }
    }
}
