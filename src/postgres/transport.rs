//! A socket to the server, encrypted as asked: the one place that dials, for SQL and replication connections alike.
//!
//! [`SslMode`] becomes a list of attempts (`prefer`: with TLS, then without); an attempt opens its own socket, because a
//! server that has refused one way closes the connection.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::ConnectError;
use super::source::{Host, SourceConfig, SslMode, SslNegotiation};
use super::tls::{self, TlsError};

/// When an idle connection is probed, and how often, so that a peer that is gone is noticed in about a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// SSLRequest: its length and the code that stands where a protocol version would.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// One way of reaching the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Without TLS.
    Plain,
    /// With TLS, or without where the server offers none.
    TlsIfOffered,
    /// With TLS.
    Tls,
}

/// The ways to try, in order, for `config`.
pub(super) fn attempts(config: &SourceConfig) -> &'static [Attempt] {
    match (&config.host, config.sslmode) {
        // PostgreSQL has no TLS on unix sockets.
        (Host::Unix(_), _) | (_, SslMode::Disable) => &[Attempt::Plain],
        (_, SslMode::Allow) => &[Attempt::Plain, Attempt::Tls],
        (_, SslMode::Prefer) => &[Attempt::TlsIfOffered, Attempt::Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Attempt::Tls],
    }
}

/// A connected socket.
#[derive(Debug)]
pub(super) enum Transport {
    /// TCP without TLS.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Opens a socket and encrypts it if `attempt` says so. The caller limits the time.
    pub(super) async fn open(
        config: &SourceConfig,
        attempt: Attempt,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, ConnectError> {
        let (host, tls) = match (&config.host, attempt, tls) {
            (Host::Unix(_), ..) => return open_unix(config).await,
            (Host::Tcp(host), Attempt::Plain, _) | (Host::Tcp(host), _, None) => (host, None),
            (Host::Tcp(host), _, Some(tls)) => (host, Some(tls)),
        };
        let mut socket = open_tcp(config, host).await?;
        let Some(tls) = tls else { return Ok(Transport::Tcp(socket)) };
        if config.sslnegotiation == SslNegotiation::Postgres && !tls_offered(&mut socket, config).await? {
            return match attempt {
                Attempt::Tls => {
                    Err(ConnectError::Tls { address: config.address(), source: TlsError::NotOffered })
                }
                Attempt::Plain | Attempt::TlsIfOffered => Ok(Transport::Tcp(socket)),
            };
        }
        let failed = |source| ConnectError::Tls { address: config.address(), source };
        let name = ServerName::try_from(host.clone()).map_err(|_| failed(TlsError::Name(host.clone())))?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, socket).await;
        stream
            .map(|stream| Transport::Tls(Box::new(stream)))
            .map_err(|e| failed(TlsError::from_handshake(&e)))
    }

    /// Whether what is sent can be read by nobody but the server and this machine.
    pub(super) fn is_private(&self) -> bool {
        match self {
            Transport::Tls(_) | Transport::Unix(_) => true,
            Transport::Tcp(socket) => socket.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()),
        }
    }

    /// What SCRAM can be bound to, where the transport is TLS and its certificate's signature allows it.
    pub(super) fn server_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Transport::Tls(stream) => {
                let (_, session) = stream.get_ref();
                tls::server_end_point(session.peer_certificates()?.first()?)
            }
            Transport::Tcp(_) | Transport::Unix(_) => None,
        }
    }

    /// The socket below.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Tcp(socket) => socket.as_fd(),
            Transport::Unix(socket) => socket.as_fd(),
            Transport::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

async fn open_unix(config: &SourceConfig) -> Result<Transport, ConnectError> {
    let path = config.socket_path().unwrap_or_default();
    match UnixStream::connect(&path).await {
        Ok(socket) => Ok(Transport::Unix(socket)),
        Err(source) => Err(ConnectError::Socket { path, source }),
    }
}

async fn open_tcp(config: &SourceConfig, host: &str) -> Result<TcpStream, ConnectError> {
    let addresses = match host.parse::<IpAddr>() {
        Ok(ip) => vec![(ip, config.port).into()],
        Err(_) => match tokio::net::lookup_host((host, config.port)).await {
            Ok(found) => found.collect::<Vec<_>>(),
            Err(source) => return Err(ConnectError::HostNotFound { host: host.to_owned(), source }),
        },
    };
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                let options = SockRef::from(&socket);
                options.set_tcp_nodelay(true).and_then(|()| options.set_tcp_keepalive(&keepalive))?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(match failure.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused { address: config.address() },
        _ => ConnectError::Unreachable { address: config.address(), source: failure },
    })
}

async fn tls_offered(socket: &mut TcpStream, config: &SourceConfig) -> Result<bool, ConnectError> {
    socket.write_all(&SSL_REQUEST).await?;
    let mut answer = [0];
    // One byte and no more: what follows it unencrypted would be somebody's forgery.
    socket.read_exact(&mut answer).await?;
    match answer[0] {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An error message begins: the server cannot start a process for us now.
        b'E' => Err(ConnectError::Io(io::ErrorKind::ConnectionAborted.into())),
        other => Err(ConnectError::Protocol(format!(
            "{} answered {other:#04x} to the request for TLS; is this PostgreSQL's port?",
            config.address()
        ))),
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Transport::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Transport::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
