//! A transport with its read buffer: whole messages out, bytes in. Serves the login and the commands before streaming,
//! where convenience counts; the stream itself reads the same buffer without copies.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::buffer::{BadLength, ReadBuffer};
use crate::postgres::transport::Transport;

/// Largest message before streaming begins; a login or a command has nothing near it.
const LARGEST_BEFORE_STREAMING: usize = 8 << 20;

#[derive(Debug)]
pub(super) struct Wire {
    transport: Transport,
    buffer: ReadBuffer,
}

impl Wire {
    pub(super) fn new(transport: Transport) -> Self {
        Wire { transport, buffer: ReadBuffer::new(LARGEST_BEFORE_STREAMING) }
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(super) fn set_largest_message(&mut self, limit: usize) {
        self.buffer.set_largest_message(limit);
    }

    /// Whether a whole message is here.
    pub(super) fn has_message(&self) -> Result<bool, BadLength> {
        self.buffer.has_message()
    }

    /// Type of the next message, and where its [`content`](Self::content) lies until the next [`fill`](Self::fill).
    pub(super) fn next_message(&mut self) -> Result<Option<(u8, Range<usize>)>, BadLength> {
        self.buffer.next_message()
    }

    /// Reads once; 0 means that the peer has closed. May be cancelled.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        let Wire { transport, buffer } = self;
        std::future::poll_fn(|cx| poll_fill(transport, buffer, cx)).await
    }

    pub(super) fn into_parts(self) -> (Transport, ReadBuffer) {
        (self.transport, self.buffer)
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.transport.write_all(message).await?;
        self.transport.flush().await
    }

    /// Type of the next message, and where its content lies until the one after it is asked for.
    pub(super) async fn next(&mut self) -> io::Result<(u8, Range<usize>)> {
        loop {
            if let Some(message) = self.buffer.next_message().map_err(invalid)? {
                return Ok(message);
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The content of the message that [`Self::next`] or [`Self::next_message`] gave.
    pub(super) fn content(&self, place: Range<usize>) -> &[u8] {
        self.buffer.content(place)
    }

    /// Type of the next message, and its bytes with header.
    pub(super) async fn receive_raw(&mut self) -> io::Result<(u8, BytesMut)> {
        let (tag, place) = self.next().await?;
        Ok((tag, self.with_header(tag, place)))
    }

    /// A message as it was sent.
    pub(super) fn with_header(&self, tag: u8, place: Range<usize>) -> BytesMut {
        let mut message = BytesMut::with_capacity(place.len() + 5);
        message.extend_from_slice(&[tag]);
        message.extend_from_slice(&(place.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(self.content(place));
        message
    }

    /// The next message that is neither notice nor parameter nor notification.
    pub(super) async fn receive(&mut self) -> io::Result<Message> {
        loop {
            let (_, mut bytes) = self.receive_raw().await?;
            match Message::parse(&mut bytes)? {
                Some(Message::NoticeResponse(_) | Message::NotificationResponse(_)) => {}
                Some(message) => return Ok(message),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// Reads once, as much as there is room for. 0 means that the peer has closed.
pub(super) fn poll_fill(
    transport: &mut Transport,
    buffer: &mut ReadBuffer,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut room = ReadBuf::new(buffer.room().map_err(invalid)?);
    ready!(Pin::new(transport).poll_read(cx, &mut room))?;
    let count = room.filled().len();
    buffer.filled(count);
    Poll::Ready(Ok(count))
}

pub(super) fn invalid(error: BadLength) -> io::Error {
    let text = match error {
        BadLength::TooLarge(length) => format!("a message of {length} bytes; is this PostgreSQL's port?"),
        BadLength::TooSmall => "a message whose length is impossible; is this PostgreSQL's port?".to_owned(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}
