//! One port for REST, gRPC, health and reflection, with TLS or without.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Version};
use futures_util::StreamExt;
use futures_util::future::poll_fn;
use http_body::Body as _;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use millrace_test_support::{Millrace, MillraceOptions, free_port};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::stage::{PATIENCE, Stage};

/// A connection that speaks HTTP/2 from its first byte.
pub struct Http2 {
    requests: SendRequest<Body>,
}

/// An answer to a gRPC call.
#[derive(Debug)]
pub struct Answer {
    pub http_status: u16,
    /// `grpc-status`, from the headers or the trailers.
    pub status: Option<String>,
}

impl Http2 {
    pub async fn connect(stage: &Stage) -> Http2 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, stage.millrace.http_port()));
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Http2 {
        let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Http2 { requests }
    }

    pub async fn call(&mut self, path: &str, body: &'static [u8]) -> Answer {
        self.call_at("localhost", path, body).await
    }

    async fn call_at(&mut self, authority: &str, path: &str, body: &'static [u8]) -> Answer {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        self.post(authority, path, &headers, body).await
    }

    async fn post(
        &mut self,
        authority: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static [u8],
    ) -> Answer {
        let request = Request::post(format!("http://{authority}{path}")).version(Version::HTTP_2);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Body::from(body)).unwrap();
        let (head, mut body) = self.requests.send_request(request).await.unwrap().into_parts();
        let mut status = head.headers.get("grpc-status").cloned();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(frame) = frame else { break };
            if let Some(trailers) = frame.trailers_ref() {
                status = trailers.get("grpc-status").cloned();
            }
        }
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        Answer { http_status: head.status.as_u16(), status }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_http_2_share_the_port_and_refuse_other_names() {
    let stage = Stage::start(&[]).await;
    assert_eq!(stage.millrace.get("/health/ready").unwrap().0, 200);
    assert_eq!(stage.millrace.get("/nowhere").unwrap().0, 404);
    let mut http2 = Http2::connect(&stage).await;
    let list = "/millrace.v1.Subscriber/ListTopics";
    assert_eq!(http2.call(list, b"\0\0\0\0\0").await.status.as_deref(), Some("0"));
    let elsewhere = http2.call_at("evil.example:9080", list, b"\0\0\0\0\0").await;
    assert_eq!((elsewhere.http_status, elsewhere.status), (403, None));
    assert_eq!(stage.metric("millrace_http_connections"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_web_page_can_send_unasked_is_no_call() {
    let stage = Stage::start(&[]).await;
    let list = "/millrace.v1.Subscriber/ListTopics";
    let mut http2 = Http2::connect(&stage).await;
    for (headers, status) in [
        (&[][..], 415),
        (&[("content-type", "text/plain")][..], 415),
        (&[("content-type", "application/grpc"), ("origin", "http://localhost")][..], 403),
        (&[("content-type", "application/grpc+proto")][..], 200),
    ] {
        let answer = http2.post("localhost", list, headers, b"\0\0\0\0\0").await;
        assert_eq!(answer.http_status, status, "{headers:?}");
    }
    let mut http1 = TcpStream::connect(("127.0.0.1", stage.millrace.http_port())).await.unwrap();
    let head = format!("POST {list} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\n");
    http1.write_all(format!("{head}Content-Length: 5\r\n\r\n\0\0\0\0\0").as_bytes()).await.unwrap();
    let mut status = [0; 12];
    http1.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 505");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_tasks() {
    let mut stage = Stage::start(&[]).await;
    let channel = tonic::transport::Channel::from_shared(stage.url()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "millrace.v1.Subscriber"] {
        let answer = health.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    assert_eq!(health.check(ask("millrace.v1.Nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watched = health.watch(ask("millrace.v1.Subscriber")).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, watched.message()).await.expect("a change");
        next.unwrap().map(|answer| answer.status())
    };
    assert_eq!(next().await, Some(ServingStatus::Serving));
    stage.postgres.stop_immediate().await;
    while next().await != Some(ServingStatus::NotServing) {}
    stage.postgres.start_again().await;
    while next().await != Some(ServingStatus::Serving) {}
    stage.millrace.sigterm();
    while next().await.is_some() {}
    assert_eq!(stage.millrace.wait().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_shows_the_services_and_their_messages() {
    let stage = Stage::start(&[]).await;
    let channel = tonic::transport::Channel::from_shared(stage.url()).unwrap().connect().await.unwrap();
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("millrace.v1.Subscriber".to_owned()),
        MessageRequest::FileContainingSymbol("millrace.v1.Change".to_owned()),
    ];
    let asked =
        asked.map(|request| ServerReflectionRequest { host: String::new(), message_request: Some(request) });
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(futures_util::stream::iter(asked)).await.unwrap();
    let answers: Vec<ServerReflectionResponse> =
        answers.into_inner().map(|answer| answer.unwrap()).collect().await;
    let Some(MessageResponse::ListServicesResponse(services)) = &answers[0].message_response else {
        panic!("{answers:?}")
    };
    let names: Vec<_> = services.service.iter().map(|service| &*service.name).collect();
    assert!(
        names.contains(&"millrace.v1.Subscriber") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    for answer in &answers[1..] {
        let file = &answer.message_response;
        assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_the_port_speaks_tls_only() {
    let data = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (data.path().join("cert.pem"), data.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let port = free_port();
    let arguments = ["--http-tls-cert", cert.to_str().unwrap(), "--http-tls-key", key.to_str().unwrap()];
    let options = MillraceOptions::serve(&data.path().join("data")).http_port(port);
    let mut millrace = Millrace::spawn(options.args(&arguments));

    let mut http2 = Http2::over(connect(&millrace, certified.cert.der(), &[b"h2"]).await).await;
    let answer = http2.call("/millrace.v1.Subscriber/ListTopics", b"\0\0\0\0\0").await;
    assert_eq!(answer.status.as_deref(), Some("0"));
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let mut stream = connect(&millrace, certified.cert.der(), protocols).await;
        stream.write_all(b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        assert!(page.starts_with("HTTP/1.0 200") && page.ends_with("live\n"), "{page}");
    }
    assert!(millrace.get("/health/live").is_none(), "nobody is answered in the clear");
    millrace.sigterm();
    assert_eq!(millrace.wait().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_is_named() {
    let data = tempfile::tempdir().unwrap();
    let no_pem = data.path().join("no.pem");
    std::fs::write(&no_pem, "nothing").unwrap();
    let no_pem = no_pem.to_str().unwrap();
    let absent = data.path().join("absent.pem");
    for (cert, key, code, says) in [
        (no_pem, no_pem, 1, "given as --http-tls-cert, cannot be used: there is no certificate in it"),
        (absent.to_str().unwrap(), no_pem, 1, "absent.pem, given as --http-tls-cert, cannot be used"),
    ] {
        let options = MillraceOptions::serve(&data.path().join("data"));
        let mut millrace = Millrace::spawn(options.args(&["--http-tls-cert", cert, "--http-tls-key", key]));
        assert_eq!(millrace.wait().await.code(), Some(code));
        assert!(millrace.output().contains(says), "{}", millrace.output());
    }
    let options = MillraceOptions::serve(&data.path().join("data"));
    let mut millrace = Millrace::spawn(options.args(&["--http-tls-cert", no_pem]));
    assert_eq!(millrace.wait().await.code(), Some(1));
    assert!(millrace.output().contains("--http-tls-cert is given without --http-tls-key"));
}

/// Connects with TLS, offering protocols, as soon as the broker listens.
async fn connect(
    millrace: &Millrace,
    authority: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, millrace.http_port())).await {
            Ok(stream) => break stream,
            Err(error) => {
                assert!(tokio::time::Instant::now() < deadline, "{error}: {}", millrace.output());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    let agreed = stream.get_ref().1.alpn_protocol();
    assert_eq!(agreed, protocols.first().copied());
    stream
}
