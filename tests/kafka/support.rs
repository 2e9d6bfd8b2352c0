//! A broker at a free port, and a bare client that sends what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use millrace::broker::Settings;
use millrace::group::{Coordinator, Options};
use millrace::kafka::Broker;
use millrace::kafka::connection::{Limits, serve};
use millrace::kafka::topic_settings::{Defaults, TopicSettings};
use millrace::log::topics::Topics;
use millrace::produce::ClientTopics;
use millrace::state::{DataDir, OffsetStore, Store};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a test that gets there has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A Kafka listener that is stopped when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<()>,
    pub groups: Arc<Coordinator>,
    /// Where its committed offsets are, if nobody else keeps them.
    _data: Option<TempDir>,
}

impl Server {
    /// Serves `topics` at a free port, with groups of its own.
    pub async fn start(topics: Topics, limits: Limits) -> Server {
        let data = TempDir::new().unwrap();
        let groups = coordinator(&DataDir::open(data.path()).unwrap(), &topics);
        Server::start_at("127.0.0.1:0", topics, limits, groups).await.keeping(data)
    }

    /// Serves `topics` at a free port of all addresses, as a broker that is not for its own machine alone.
    pub async fn start_everywhere(topics: Topics) -> Server {
        let data = TempDir::new().unwrap();
        let groups = coordinator(&DataDir::open(data.path()).unwrap(), &topics);
        Server::start_at("0.0.0.0:0", topics, Limits::default(), groups).await.keeping(data)
    }

    /// Serves `topics` at a free port, of which clients may write those of `client_topics`.
    pub async fn start_writable(topics: Topics, limits: Limits, client_topics: ClientTopics) -> Server {
        let data = TempDir::new().unwrap();
        let groups = coordinator(&DataDir::open(data.path()).unwrap(), &topics);
        Server::serve("127.0.0.1:0", topics, limits, groups, Some(client_topics)).await.keeping(data)
    }

    /// Serves `topics` and `groups` at `address`.
    pub async fn start_at(address: &str, topics: Topics, limits: Limits, groups: Arc<Coordinator>) -> Server {
        Server::serve(address, topics, limits, groups, None).await
    }

    async fn serve(
        address: &str,
        topics: Topics,
        limits: Limits,
        groups: Arc<Coordinator>,
        client_topics: Option<ClientTopics>,
    ) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let broker = Broker {
            cluster_id: "test-cluster".into(),
            local_only: address.ip().is_loopback(),
            data_dir: std::env::temp_dir(),
            limits,
            advertised_host: address.ip().to_string(),
            advertised_port: address.port(),
            topics,
            groups: groups.clone(),
            topic_settings: topic_settings(),
            fetch_memory: Default::default(),
            client_topics,
            fetch_sessions: Default::default(),
        };
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, Arc::new(broker), shutdown.clone()));
        Server { address, shutdown, served, groups, _data: None }
    }

    fn keeping(mut self, data: TempDir) -> Server {
        self._data = Some(data);
        self
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Settings of topics as a broker without configuration has them, in a store that nobody finds again.
fn topic_settings() -> TopicSettings {
    let data = TempDir::new().unwrap();
    let store = Store::open(&DataDir::open(data.path()).unwrap()).unwrap();
    TopicSettings::open(Arc::new(store), Defaults::from(&Settings::default())).unwrap()
}

/// Groups that do not wait for members that might come, and notice soon that one has died.
pub fn coordinator(data: &DataDir, topics: &Topics) -> Arc<Coordinator> {
    let options = Options {
        initial_rebalance_delay: Duration::ZERO,
        min_session_timeout: Duration::from_millis(100),
        consumer_heartbeat_interval: Duration::from_millis(200),
        topics_settle: Duration::from_millis(10),
        ..Options::default()
    };
    Coordinator::open(options, OffsetStore::open(data).unwrap(), topics.clone())
}

/// A client that speaks Kafka's frames and nothing more.
pub struct Client {
    pub stream: TcpStream,
    next: i32,
}

impl Client {
    pub async fn connect(address: impl ToSocketAddrs) -> Client {
        Client { stream: TcpStream::connect(address).await.unwrap(), next: 0 }
    }

    /// Sends bytes as they are. The broker may have hung up already.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends a request and gives its correlation id.
    pub async fn request<R: Request>(&mut self, version: i16, request: &R) -> i32 {
        self.next += 1;
        let frame = frame(self.next, version, request);
        self.stream.write_all(&frame).await.unwrap();
        self.next
    }

    /// Reads an answer to a request of type `R`.
    pub async fn answer<R: Request>(&mut self, version: i16, correlation_id: i32) -> R::Response {
        let mut body = self.frame().await.expect("the broker hung up");
        let header = ResponseHeader::decode(&mut body, R::Response::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, correlation_id);
        let response = R::Response::decode(&mut body, version).unwrap();
        assert!(body.is_empty());
        response
    }

    pub async fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let correlation_id = self.request(version, request).await;
        self.answer::<R>(version, correlation_id).await
    }

    /// The next frame, or `None` when the broker has closed.
    pub async fn frame(&mut self) -> Option<Bytes> {
        let read = async {
            let size = self.stream.read_i32().await.ok()?;
            let mut frame = BytesMut::zeroed(size as usize);
            self.stream.read_exact(&mut frame).await.ok()?;
            Some(frame.freeze())
        };
        timeout(PATIENCE, read).await.expect("neither an answer nor a close")
    }

    /// Waits until the broker closes, without an answer.
    pub async fn closed(mut self) {
        assert_eq!(self.frame().await, None);
    }
}

/// A request with its length and header.
pub fn frame<R: Request>(correlation_id: i32, version: i16, request: &R) -> Bytes {
    let key = ApiKey::try_from(R::KEY).unwrap();
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str("test")));
    let mut frame = BytesMut::new();
    frame.extend_from_slice(&[0; 4]);
    header.encode(&mut frame, key.request_header_version(version)).unwrap();
    request.encode(&mut frame, version).unwrap();
    let size = frame.len() as i32 - 4;
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame.freeze()
}
