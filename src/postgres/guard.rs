//! What stands between tokio-postgres and our transport: it shows the library that a stream is encrypted, and keeps it
//! from sending a password in clear where others may read it, which the library does for any server that asks.
//!
//! The server's first message decides: asking for a cleartext password is nine fixed bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::transport::Transport;

/// AuthenticationCleartextPassword.
const ASKS_FOR_CLEARTEXT: [u8; 9] = *b"R\0\0\0\x08\0\0\0\x03";

/// What to tell a person whose server asks for a password in clear.
pub(super) const REFUSED: &str = "the server asks for the password in clear over an unencrypted connection; use \
                                  sslmode=require or stronger, or scram-sha-256 in pg_hba.conf";

/// A transport that refuses to be asked for a cleartext password, unless it is private.
#[derive(Debug)]
pub(super) struct Guarded {
    transport: Transport,
    /// How many bytes of the question have been seen; `None` when the matter is settled.
    seen: Option<usize>,
}

impl Guarded {
    pub(super) fn new(transport: Transport) -> Self {
        let seen = if transport.is_private() { None } else { Some(0) };
        Guarded { transport, seen }
    }

    fn inspect(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(seen) = self.seen else { return Ok(()) };
        let expected = ASKS_FOR_CLEARTEXT.get(seen..).unwrap_or_default();
        let common = bytes.len().min(expected.len());
        if bytes[..common] != expected[..common] {
            self.seen = None;
            return Ok(());
        }
        if common == expected.len() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, REFUSED));
        }
        self.seen = Some(seen + common);
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.transport).poll_read(cx, buf))?;
        Poll::Ready(this.inspect(&buf.filled()[before..]))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

impl TlsStream for Guarded {
    fn channel_binding(&self) -> ChannelBinding {
        match self.transport.server_end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    fn refused(pieces: &[&[u8]], private: bool) -> bool {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut guarded = Guarded::new(Transport::Unix(ours));
        assert_eq!(guarded.seen, None, "a unix socket is private");
        if !private {
            guarded.seen = Some(0);
        }
        pieces.iter().any(|piece| guarded.inspect(piece).is_err())
    }

    #[tokio::test]
    async fn a_cleartext_password_is_not_asked_for_where_others_read() {
        let (question, scram) = (&ASKS_FOR_CLEARTEXT[..], &b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"[..]);
        assert!(refused(&[question], false));
        assert!(refused(&[&question[..1], &question[1..8], &question[8..], b"more"], false));
        assert!(!refused(&[question], true));
        assert!(!refused(&[scram, question], false));
        assert!(!refused(&[&scram[..6], &scram[6..]], false));
    }
}
