//! A walsender's stream: frames come in, standby status updates go out, on one socket and in one owner's hands.
//!
//! Three rules:
//! - **Reading and writing do not wait for each other.** [`ReplicationStream::fill`] also drives what is queued for
//!   sending; a newer status replaces one that has not begun to leave, so nothing piles up.
//! - **Cancelling loses nothing.** `fill` and `flush` keep their state in the stream, so they may be raced in `select!`.
//! - **Silence ends.** When nothing has come for half of [`StreamLimits::silence`] the server is asked for a reply, and
//!   when nothing has come in the other half the connection counts as dead.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use socket2::SockRef;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::buffer::{BadLength, ReadBuffer};
use super::drain::LowWater;
use super::wire::poll_fill;
use super::{ERROR_RESPONSE, ReplicationError};
use crate::change::{Lsn, Timestamp};
use crate::postgres::server_error::ServerError;
use crate::postgres::transport::Transport;

const COPY_DATA: u8 = b'd';
const COPY_DONE: u8 = b'c';
const READY_FOR_QUERY: u8 = b'Z';
const COPY_DONE_MESSAGE: &[u8] = b"c\0\0\0\x04";
const TERMINATE_MESSAGE: &[u8] = b"X\0\0\0\x04";

/// How long an orderly end may take.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// PostgreSQL's own messages end at 1 GiB; a little above it, so that the server's error is seen and not ours.
pub(super) const LARGEST_MESSAGE: usize = (1 << 30) + (1 << 20);

/// Limits of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Largest message that is taken in.
    pub largest_message: usize,
    /// Longest time in which nothing comes.
    pub silence: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        StreamLimits { largest_message: LARGEST_MESSAGE, silence: Duration::from_secs(60) }
    }
}

/// One frame, borrowed from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of the output plugin.
    Data {
        /// Place of what it tells in the WAL; zero where it has none.
        start: Lsn,
        /// End of WAL on the server when it was sent.
        server_end: Lsn,
        /// When it was sent.
        sent: Timestamp,
        /// The plugin's message.
        body: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// Everything up to here has been sent.
        end: Lsn,
        /// When it was sent.
        sent: Timestamp,
        /// Whether a status update is wanted at once.
        reply_requested: bool,
    },
}

/// What we tell the server about our progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Received up to here.
    pub written: Lsn,
    /// Durable with us up to here: the server may forget what lies before. Zero says nothing.
    pub flushed: Lsn,
    /// Applied up to here.
    pub applied: Lsn,
    /// Ask for a keepalive in return.
    pub reply: bool,
}

/// Type, length, 'r', three LSNs, the time, and whether a reply is wanted.
const STATUS_LENGTH: usize = 1 + 4 + 1 + 3 * 8 + 8 + 1;

impl Status {
    fn encode(&self) -> [u8; STATUS_LENGTH] {
        let mut message = [0; STATUS_LENGTH];
        message[0] = COPY_DATA;
        message[1..5].copy_from_slice(&(STATUS_LENGTH as u32 - 1).to_be_bytes());
        message[5] = b'r';
        message[6..14].copy_from_slice(&self.written.0.to_be_bytes());
        message[14..22].copy_from_slice(&self.flushed.0.to_be_bytes());
        message[22..30].copy_from_slice(&self.applied.0.to_be_bytes());
        message[30..38].copy_from_slice(&Timestamp::now().to_postgres().to_be_bytes());
        message[38] = u8::from(self.reply);
        message
    }
}

/// What is on its way to the server.
#[derive(Debug)]
struct Outbox {
    /// Not begun; replaced by a newer one.
    queued: Option<Status>,
    leaving: [u8; STATUS_LENGTH],
    /// Bytes of `leaving` that are gone.
    gone: usize,
    /// Whether the transport may still hold bytes of it.
    unflushed: bool,
}

/// A stream of frames.
#[derive(Debug)]
pub struct ReplicationStream {
    transport: Transport,
    buffer: ReadBuffer,
    limits: StreamLimits,
    outbox: Outbox,
    last_status: Status,
    low_water: LowWater,
    /// Bytes may lie in the socket without readiness announcing them.
    look: bool,
    silence: Pin<Box<Sleep>>,
    silent: Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Something came after the last wait began.
    No,
    /// Waiting.
    Waiting,
    /// Waiting, and the server was asked for a reply.
    Asked,
}

impl ReplicationStream {
    pub(super) fn new(transport: Transport, mut buffer: ReadBuffer, limits: StreamLimits) -> Self {
        buffer.set_largest_message(limits.largest_message);
        ReplicationStream {
            transport,
            buffer,
            limits,
            outbox: Outbox {
                queued: None,
                leaving: [0; STATUS_LENGTH],
                gone: STATUS_LENGTH,
                unflushed: false,
            },
            last_status: Status::default(),
            low_water: LowWater::new(),
            look: false,
            silence: Box::pin(tokio::time::sleep(limits.silence)),
            silent: Silence::No,
        }
    }

    /// Returns once a whole frame is buffered, or the stream has ended. Sends what is queued meanwhile.
    pub async fn fill(&mut self) -> Result<(), ReplicationError> {
        while !self.buffer.has_message().map_err(|e| bad_length(e, self.limits))? {
            if std::future::poll_fn(|cx| self.poll_more(cx)).await? == 0 {
                return Err(ReplicationError::Closed);
            }
        }
        Ok(())
    }

    /// The next buffered frame; `None` when [`Self::fill`] must bring more. An error of the server, or its end of the
    /// stream, is an error here.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        loop {
            let Some((tag, place)) = self.buffer.next_message().map_err(|e| bad_length(e, self.limits))?
            else {
                return Ok(None);
            };
            match tag {
                COPY_DATA => return frame(self.buffer.content(place)).map(Some),
                // Notices, changed parameters and notifications may come at any time and say nothing here.
                b'N' | b'S' | b'A' => {}
                ERROR_RESPONSE => return Err(server_error(self.buffer.content(place))),
                COPY_DONE | b'C' | READY_FOR_QUERY => return Err(ReplicationError::Ended),
                other => {
                    return Err(ReplicationError::Protocol(format!(
                        "message type {other:#04x} in the stream"
                    )));
                }
            }
        }
    }

    /// Queues a status update, in place of one that has not begun to leave.
    pub fn queue_status(&mut self, status: Status) {
        let asked_before = self.outbox.queued.is_some_and(|queued| queued.reply);
        self.last_status = Status { reply: false, ..status };
        self.outbox.queued = Some(Status { reply: status.reply || asked_before, ..status });
    }

    /// Sends what is queued.
    pub async fn flush(&mut self) -> Result<(), ReplicationError> {
        Ok(std::future::poll_fn(|cx| self.poll_send(cx)).await?)
    }

    /// Sends what is queued as far as the socket takes it at once. [`Self::fill`] sends the rest, and reports what went
    /// wrong, after what the server said about it.
    pub fn try_flush(&mut self) {
        let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
    }

    /// Says whether a backlog is being drained: then bytes are gathered for a few milliseconds, to be read in large
    /// pieces. Off, every byte is seen at once.
    pub fn set_draining(&mut self, draining: bool) {
        if matches!(self.transport, Transport::Tcp(_)) {
            self.look |= self.low_water.set_draining(draining, self.transport.socket());
        }
    }

    /// Ends the stream in order, so that the slot is free when this returns; gives up after two seconds.
    pub async fn stop(mut self) {
        // Whether it worked makes no difference to us: the connection ends in any case.
        let _ = tokio::time::timeout(STOP_WITHIN, self.end_in_order()).await;
    }

    async fn end_in_order(&mut self) -> Result<(), ReplicationError> {
        self.set_draining(false);
        self.flush().await?;
        self.transport.write_all(COPY_DONE_MESSAGE).await?;
        self.transport.flush().await?;
        loop {
            while let Some((tag, _)) = self.buffer.next_message().map_err(|e| bad_length(e, self.limits))? {
                if tag == READY_FOR_QUERY || tag == ERROR_RESPONSE {
                    self.transport.write_all(TERMINATE_MESSAGE).await?;
                    return Ok(self.transport.shutdown().await?);
                }
            }
            self.fill().await?;
        }
    }

    /// Reads once, sending and watching the clock meanwhile. 0 means that the server has closed.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ReplicationError>> {
        // A send that fails is not reported before what the server said last has been read.
        let sent = self.poll_send(cx);
        if let Poll::Ready(count) = self.poll_read(cx)? {
            self.silent = Silence::No;
            return Poll::Ready(Ok(count));
        }
        if let Poll::Ready(Err(error)) = sent {
            return Poll::Ready(Err(error.into()));
        }
        self.poll_silence(cx).map(Err)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ReplicationError>> {
        let limits = self.limits;
        loop {
            if std::mem::take(&mut self.look)
                && let Some(count) = self.read_what_is_there()?
            {
                return Poll::Ready(Ok(count));
            }
            // Asks for room first, so that a length beyond the limit is told as such.
            self.buffer.room().map_err(|e| bad_length(e, limits))?;
            if let Poll::Ready(count) = poll_fill(&mut self.transport, &mut self.buffer, cx)? {
                self.low_water.received(count, self.transport.socket());
                return Poll::Ready(Ok(count));
            }
            if !self.low_water.is_raised() {
                return Poll::Pending;
            }
            ready!(self.low_water.poll_patience(cx));
            let found = self.read_what_is_there()?;
            // What comes between that read and the lowering of the mark is announced by nobody.
            self.look = self.low_water.looked(found.unwrap_or(0), self.transport.socket());
            if let Some(count) = found {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// Reads from a plain TCP socket without asking for readiness; `None` if nothing is there.
    fn read_what_is_there(&mut self) -> Result<Option<usize>, ReplicationError> {
        let Transport::Tcp(socket) = &self.transport else { return Ok(None) };
        let room = self.buffer.room().map_err(|e| bad_length(e, self.limits))?;
        match (&*SockRef::from(socket)).read(room) {
            Ok(count) => {
                self.buffer.filled(count);
                Ok(Some(count))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ReplicationStream { transport, outbox, .. } = self;
        loop {
            while let Some(rest @ [_, ..]) = outbox.leaving.get(outbox.gone..) {
                let count = ready!(Pin::new(&mut *transport).poll_write(cx, rest))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                outbox.gone += count;
                outbox.unflushed = true;
            }
            match outbox.queued.take() {
                Some(status) => (outbox.leaving, outbox.gone) = (status.encode(), 0),
                None => break,
            }
        }
        if outbox.unflushed {
            ready!(Pin::new(transport).poll_flush(cx))?;
            outbox.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the server has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<ReplicationError> {
        let half = self.limits.silence / 2;
        loop {
            if self.silent == Silence::No {
                self.silent = Silence::Waiting;
                self.silence.as_mut().reset(Instant::now() + half);
            }
            ready!(self.silence.as_mut().poll(cx));
            if self.silent == Silence::Asked {
                return Poll::Ready(ReplicationError::TimedOut(self.limits.silence));
            }
            self.silent = Silence::Asked;
            self.silence.as_mut().reset(Instant::now() + half);
            self.queue_status(Status { reply: true, ..self.outbox.queued.unwrap_or(self.last_status) });
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(error.into());
            }
        }
    }
}

fn frame(content: &[u8]) -> Result<Frame<'_>, ReplicationError> {
    let short = || ReplicationError::Protocol("a frame that is too short".to_owned());
    let (&kind, rest) = content.split_first().ok_or_else(short)?;
    let (first, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (second, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let first = Lsn(u64::from_be_bytes(*first));
    match kind {
        b'w' => {
            let (sent, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let sent = Timestamp::from_postgres(i64::from_be_bytes(*sent));
            Ok(Frame::Data { start: first, server_end: Lsn(u64::from_be_bytes(*second)), sent, body })
        }
        b'k' => {
            let &[reply] = rest else { return Err(short()) };
            let sent = Timestamp::from_postgres(i64::from_be_bytes(*second));
            Ok(Frame::Keepalive { end: first, sent, reply_requested: reply != 0 })
        }
        other => Err(ReplicationError::Protocol(format!("frame type {other:#04x}"))),
    }
}

pub(super) fn server_error(content: &[u8]) -> ReplicationError {
    let mut message = BytesMut::with_capacity(content.len() + 5);
    message.extend_from_slice(&[ERROR_RESPONSE]);
    message.extend_from_slice(&(content.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(content);
    match Message::parse(&mut message) {
        Ok(Some(Message::ErrorResponse(body))) => ServerError::from_fields(body.fields()).into(),
        _ => ReplicationError::Protocol("an error that cannot be read".to_owned()),
    }
}

pub(super) fn bad_length(error: BadLength, limits: StreamLimits) -> ReplicationError {
    match error {
        BadLength::TooLarge(length) => ReplicationError::TooLarge { length, limit: limits.largest_message },
        BadLength::TooSmall => ReplicationError::Protocol("a message whose length is impossible".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    const LIMITS: StreamLimits = StreamLimits { largest_message: 1 << 20, silence: Duration::from_secs(60) };

    fn over_unix(limits: StreamLimits) -> (ReplicationStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ReplicationStream::new(Transport::Unix(ours), ReadBuffer::new(1 << 20), limits), theirs)
    }

    fn data(lsn: u64, body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend((4 + 25 + body.len() as u32).to_be_bytes());
        message.push(b'w');
        message.extend([lsn, lsn + 1, 0].map(u64::to_be_bytes).concat());
        message.extend(body);
        message
    }

    async fn next_data(stream: &mut ReplicationStream) -> (Lsn, Vec<u8>) {
        loop {
            match stream.next_frame().unwrap() {
                Some(Frame::Data { start, body, .. }) => return (start, body.to_vec()),
                Some(Frame::Keepalive { .. }) => {}
                None => stream.fill().await.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn a_fill_that_is_cancelled_in_the_middle_of_a_frame_loses_nothing() {
        let (mut stream, mut server) = over_unix(LIMITS);
        let message = data(7, &[1; 1000]);
        for piece in message.chunks(100) {
            server.write_all(piece).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(2), stream.fill()).await;
        }
        assert_eq!(next_data(&mut stream).await, (Lsn(7), vec![1; 1000]));
    }

    #[tokio::test]
    async fn a_newer_status_replaces_one_that_has_not_left_and_keeps_its_question() {
        let (mut stream, mut server) = over_unix(LIMITS);
        stream.queue_status(Status { written: Lsn(1), reply: true, ..Status::default() });
        stream.queue_status(Status { written: Lsn(2), flushed: Lsn(2), applied: Lsn(2), reply: false });
        stream.flush().await.unwrap();
        drop(stream);
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), STATUS_LENGTH);
        assert_eq!(received[..6], *b"d\0\0\0\x26r");
        assert_eq!(received[6..14], 2u64.to_be_bytes());
        assert_eq!(received[38], 1);
    }

    #[tokio::test]
    async fn reading_goes_on_while_the_peer_takes_nothing() {
        let (mut stream, mut server) = over_unix(LIMITS);
        // Until the socket is full.
        while let Poll::Ready(()) =
            stream.poll_send(&mut Context::from_waker(Waker::noop())).map(|r| r.unwrap())
        {
            stream.queue_status(Status::default());
        }
        server.write_all(&data(9, b"x")).await.unwrap();
        assert_eq!(next_data(&mut stream).await, (Lsn(9), b"x".to_vec()));
    }

    #[tokio::test]
    async fn a_silent_server_is_asked_and_then_given_up() {
        let (mut stream, mut server) =
            over_unix(StreamLimits { silence: Duration::from_millis(60), ..LIMITS });
        assert!(matches!(stream.fill().await, Err(ReplicationError::TimedOut(_))));
        let mut question = [0; STATUS_LENGTH];
        server.read_exact(&mut question).await.unwrap();
        assert_eq!(question[38], 1, "a reply was asked for");
    }

    #[tokio::test]
    async fn a_close_an_end_and_an_error_are_told_apart() {
        let (mut stream, server) = over_unix(LIMITS);
        drop(server);
        assert!(matches!(stream.fill().await, Err(ReplicationError::Closed)));

        let (mut stream, mut server) = over_unix(LIMITS);
        server.write_all(COPY_DONE_MESSAGE).await.unwrap();
        stream.fill().await.unwrap();
        assert!(matches!(stream.next_frame(), Err(ReplicationError::Ended)));

        let (mut stream, mut server) = over_unix(LIMITS);
        let fields = b"SERROR\0VERROR\0C55006\0Mslot in use\0DPID 1\0Hwait\0\0";
        let mut message = vec![b'E'];
        message.extend((fields.len() as u32 + 4).to_be_bytes());
        message.extend(fields);
        server.write_all(&message).await.unwrap();
        stream.fill().await.unwrap();
        let error = stream.next_frame().unwrap_err();
        let server = error.server().unwrap();
        assert_eq!((server.code.as_str(), server.message.as_str()), ("55006", "slot in use"));
        assert_eq!((server.detail.as_deref(), server.hint.as_deref()), (Some("PID 1"), Some("wait")));
        assert!(error.is_retryable());
    }

    #[tokio::test]
    async fn a_message_beyond_the_limit_is_refused_by_its_length() {
        let (mut stream, mut server) = over_unix(LIMITS);
        server.write_all(b"d\x7f\xff\xff\xff").await.unwrap();
        assert!(matches!(stream.fill().await, Err(ReplicationError::TooLarge { limit: 1_048_576, .. })));
    }

    #[tokio::test]
    async fn draining_never_leaves_a_byte_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut stream = ReplicationStream::new(Transport::Tcp(ours), ReadBuffer::new(1 << 20), LIMITS);
        // Little and much, with the mark raised and lowered in between; each frame must come without a further byte.
        for (number, (length, draining)) in
            [(10, true), (300_000, true), (10, true), (10, false), (200_000, true), (1, false)]
                .into_iter()
                .enumerate()
        {
            let number = number as u64;
            stream.set_draining(draining);
            server.write_all(&data(number, &vec![5; length])).await.unwrap();
            let next = tokio::time::timeout(Duration::from_secs(10), next_data(&mut stream)).await.unwrap();
            assert_eq!(next, (Lsn(number), vec![5; length]));
        }
        // Bytes that came while nobody waited, and then the mark goes down.
        stream.set_draining(true);
        server.write_all(&data(99, b"late")).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(1), stream.fill()).await;
        stream.set_draining(false);
        let next = tokio::time::timeout(Duration::from_secs(10), next_data(&mut stream)).await.unwrap();
        assert_eq!(next, (Lsn(99), b"late".to_vec()));
    }

    proptest! {
        #[test]
        fn any_bytes_as_a_frame_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = frame(&bytes);
            let _ = server_error(&bytes);
        }
    }
}
