//! The connections of the HTTP listener: HTTP/1.1 and HTTP/2, with TLS or without, as the client's first bytes say.
//!
//! There are so many at a time, and each has to show in time that somebody is there (I8): by a first request soon after
//! connecting, then in HTTP/1.1 by one request after the other, in HTTP/2 by answers to our pings. A stream of HTTP/2
//! may last for ever.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What a client may take of us.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait.
    pub connections: usize,
    /// Time from connecting to the head of the first request, the TLS handshake included.
    pub first_request: Duration,
    /// HTTP/1.1: time from one answer to the head of the next request.
    pub next_request: Duration,
    /// HTTP/2: how often the client is asked whether it is there, and how long it may take to answer.
    pub ping: Duration,
    /// Time that requests in hand are given when the broker stops.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1_000,
            first_request: Duration::from_secs(30),
            next_request: Duration::from_secs(60),
            ping: Duration::from_secs(20),
            shutdown_grace: Duration::from_secs(2),
        }
    }
}

/// Closes the connection that a request came on, as an extension of the request: the one way to be rid of what a client
/// does not read.
#[derive(Debug, Clone, Default)]
pub struct CloseConnection(pub CancellationToken);

/// A place for one call that a connection has to itself, as an extension of its requests.
#[derive(Debug, Clone)]
pub struct OwnPlace(pub Arc<Semaphore>);

impl Default for OwnPlace {
    fn default() -> Self {
        OwnPlace(Arc::new(Semaphore::new(1)))
    }
}

/// HTTP/2: streams of one connection.
const STREAMS: u32 = 100;
/// HTTP/2: bytes that a client may send ahead of what is read, on one stream and on all of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// HTTP/2: bytes that are kept for a stream whose client does not read.
const SEND_BUFFER: usize = 256 * 1024;

/// Serves `router` until `stop`, and returns when the last connection has ended. Requests carry the client's address as
/// `ConnectInfo<SocketAddr>`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let server = Arc::new(Server { tls, router, limits, protocols: protocols(&limits), stop: stop.clone() });
    let open = gauge!("millrace_http_connections");
    // Dropping the set aborts what is in it, so no connection outlives this future.
    let mut connections = JoinSet::new();
    loop {
        open.set(connections.len() as f64);
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < limits.connections => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(server.clone().connection(stream, peer));
            }
            Err(error) => {
                // Out of file descriptors, most likely; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept an http connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.shutdown_grace, ended).await.is_err() {
        // Clients that do not take their answer.
        connections.shutdown().await;
    }
    open.set(0.0);
}

fn protocols(limits: &Limits) -> Builder<TokioExecutor> {
    let mut protocols = Builder::new(TokioExecutor::new());
    protocols.http1().timer(TokioTimer::new()).header_read_timeout(limits.next_request);
    protocols
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.ping)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    protocols
}

struct Server {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    protocols: Builder<TokioExecutor>,
    stop: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let deadline = Instant::now() + self.limits.first_request;
        // Whether it succeeds or not, the connection works.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.serve(stream, peer, deadline).await };
        let handshake = timeout_at(deadline, tls.accept(stream));
        match self.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.serve(stream, peer, deadline).await,
            Some(Ok(Err(error))) => tracing::debug!(%peer, %error, "an http client's tls handshake failed"),
            Some(Err(_)) | None => {}
        }
    }

    async fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        deadline: Instant,
    ) {
        let seen = Arc::new(AtomicBool::new(false));
        let close = CloseConnection::default();
        let (router, arrived) = (TowerToHyperService::new(self.router.clone()), seen.clone());
        let (extension, own_place) = (close.clone(), OwnPlace::default());
        let service = service_fn(move |mut request: Request<Incoming>| {
            arrived.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(extension.clone());
            request.extensions_mut().insert(own_place.clone());
            router.call(request)
        });
        let mut connection = pin!(self.protocols.serve_connection(TokioIo::new(io), service));
        let mut first_request = pin!(sleep_until(deadline));
        let (mut waiting, mut serving) = (true, true);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "http connection lost");
                    }
                    return;
                }
                () = close.0.cancelled() => return,
                () = first_request.as_mut(), if waiting => {
                    waiting = false;
                    if !seen.load(Ordering::Relaxed) {
                        return;
                    }
                }
                () = self.stop.cancelled(), if serving => {
                    serving = false;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::future::poll_fn;
    use futures_util::stream;
    use http_body::Body as _;
    use hyper::client::conn::http2::handshake;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::interval;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    /// A listener with short limits, whose `/ticks` goes on for ever.
    async fn listen(connections: usize) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ticks = || async {
            let ticks = stream::unfold(interval(SHORT), |mut clock| async {
                clock.tick().await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"tick")), clock))
            });
            Body::from_stream(ticks)
        };
        let router = Router::new().route("/ticks", get(ticks)).route("/", get(|| async { "here" }));
        let limits = Limits {
            connections,
            first_request: SHORT,
            next_request: SHORT,
            ping: SHORT,
            shutdown_grace: SHORT,
        };
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, None, router, limits, stop.clone()));
        (address, stop)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asks_nothing_in_time_makes_room_for_who_does() {
        let (address, _stop) = listen(2).await;
        for bytes in [&b""[..], b"GET / HT", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut silent = Vec::new();
            for _ in 0..3 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                silent.push(stream);
            }
            let mut page = String::new();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let read = timeout(50 * SHORT, stream.read_to_string(&mut page)).await;
            read.expect("the connection ends when nothing more is asked").unwrap();
            assert!(page.ends_with("here"), "{page}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_outlives_every_limit_and_ends_with_the_broker() {
        let (address, stop) = listen(1).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut requests, connection) = handshake(TokioExecutor::new(), stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://localhost/ticks").body(Body::empty()).unwrap();
        let mut body = requests.send_request(request).await.unwrap().into_body();
        for _ in 0..10 {
            let tick = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            assert!(tick.is_data());
        }
        stop.cancel();
        let ended = timeout(50 * SHORT, connection).await;
        ended.expect("the connection ends within the grace").unwrap().ok();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_answers_no_pings_is_let_go() {
        let (address, _stop) = listen(1).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Preface, empty SETTINGS, and a HEADERS frame that gets `/` over HPACK's static table.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream.write_all(b"\0\0\x03\x01\x05\0\0\0\x01\x82\x84\x86").await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(50 * SHORT, stream.read_to_end(&mut answer)).await;
        read.expect("the connection ends").ok();
    }
}
