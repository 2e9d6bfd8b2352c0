//! A broker on a stage, and clients that ask it anything.
//!
//! An input is a script: which APIs are called in which versions, with what in their requests. Most requests are built
//! along the API's own shape, so that they get past the decoder, with names, numbers and member ids from a small stock,
//! so that they meet each other's topics, groups and members; the others are bytes as they come. None waits for the one
//! before. Beyond not panicking, every answer has to be one that its schema allows.
//!
//! Time is tokio's paused one: it jumps to the next deadline when there is nothing to do.

mod request;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use kafka_protocol::messages::ResponseKind;
use millrace::group::{Coordinator, Options};
use millrace::kafka::{Api, Broker, Reply, Request, RequestError, api};
use millrace::log::local::{self, LocalLog, LocalWriter};
use millrace::log::record_batch::Codec;
use millrace::log::topics::{Announcer, Topics};
use millrace::change::Lsn;
use millrace::log::{LogWriter, Record, SourcePosition};
use millrace::kafka::connection::Limits;
use millrace::kafka::topic_settings::{Defaults, TopicSettings};
use millrace::log::Retention;
use millrace::produce::{ClientTopics, LOG_NAME};
use millrace::state::{DataDir, OffsetStore, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use self::request::{Stock, body};

/// Requests in one script.
const REQUESTS: usize = 32;
/// Longer than any group waits for a member that does not come.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A broker with a topic of three partitions that a task writes. Clients may make others, and write them.
pub struct Stage {
    runtime: Runtime,
    broker: Arc<Broker>,
    _writer: LocalWriter,
    _directory: TempDir,
}

impl Stage {
    /// Sets it: new files, no groups.
    pub fn set() -> Stage {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // Its files are of no use to anybody, and fsync would be most of the time.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        let (mut writer, reader, _) = LocalLog::open(local::Options::new(data.join("log"), "fuzz")).unwrap();
        let topics = Topics::default();
        let broker = runtime.block_on(async {
            let partitions = writer.create_topic(request::TOPIC, 3, Codec::Lz4).unwrap();
            for number in 0..100 {
                let value = [b'v'; 100];
                let record =
                    Record { timestamp: 1000 + number, key: Some(b"key"), value: Some(&value), headers: &[] };
                writer.append(partitions[number as usize % 2], &record).unwrap();
            }
            writer.boundary();
            let lsn = Lsn(1);
            let position = SourcePosition {
                last_commit: Some(lsn),
                end_lsn: lsn,
                last_record_end: lsn,
                acked_through: lsn,
                timeline: 1,
                system_identifier: 1,
                slot_generation: 1,
            };
            writer.commit(position).await.unwrap();
            Announcer::new(topics.clone(), reader);
            let options = local::Options::new(data.join("produced"), LOG_NAME);
            let (client_topics, writing) =
                ClientTopics::open(options, Codec::Lz4, topics.clone()).await.unwrap();
            tokio::spawn(writing);
            let store = Arc::new(Store::open(&data).unwrap());
            let defaults = Defaults {
                retention: Retention::default(),
                segment_bytes: 256 << 20,
                max_record_bytes: 32 << 20,
            };
            let topic_settings = TopicSettings::open(store, defaults).unwrap();
            let offsets = OffsetStore::open(&data).unwrap();
            Broker {
                cluster_id: "fuzz".into(),
                advertised_host: "127.0.0.1".into(),
                advertised_port: 9092,
                topics: topics.clone(),
                groups: Coordinator::open(Options::default(), offsets, topics),
                fetch_memory: Default::default(),
                fetch_sessions: Default::default(),
                topic_settings,
                client_topics: Some(client_topics),
                data_dir: directory.path().into(),
                limits: Limits::default(),
                local_only: true,
            }
        });
        Stage { runtime, broker: Arc::new(broker), _writer: writer, _directory: directory }
    }

    /// Plays a script.
    pub fn play(&self, mut script: &[u8]) {
        let mut stock = Stock::default();
        let mut running: FuturesUnordered<BoxFuture<'static, Answered>> = FuturesUnordered::new();
        self.runtime.block_on(async {
            for _ in 0..REQUESTS {
                let Some(request) = self.next_request(&mut script, &stock) else { break };
                running.push(
                    async move {
                        let reply = (request.api.handle)(&request).await;
                        (request.api, request.version, reply)
                    }
                    .boxed(),
                );
                // Whoever can answer does so before the next one asks; the others go on waiting.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                    while let Some(Some(answered)) = running.next().now_or_never() {
                        check(answered, &mut stock);
                    }
                }
            }
            while let Ok(Some(answered)) = timeout(PATIENCE, running.next()).await {
                check(answered, &mut stock);
            }
        });
    }

    fn next_request(&self, script: &mut &[u8], stock: &Stock) -> Option<Request> {
        let api = api::ALL[usize::from(*script.split_off_first()?) % api::ALL.len()];
        let (first, last) = api.versions;
        let version = first + i16::from(*script.split_off_first()?) % (last - first + 1);
        Some(Request {
            api,
            version,
            correlation_id: 1,
            client_id: Some("fuzz".into()),
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            body: body(api, version, script, stock),
            broker: self.broker.clone(),
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.runtime.block_on(self.broker.groups.shutdown());
    }
}

type Answered = (&'static Api, i16, Result<Reply, RequestError>);

/// An answer is what its schema says, and nothing follows. Who was admitted to a group is remembered.
fn check((api, version, reply): Answered, stock: &mut Stock) {
    let reply = match reply {
        Ok(reply) => reply,
        Err(RequestError::Encode(error)) => panic!("{:?} {version}: {error}", api.key),
        Err(_) => return,
    };
    // Produce with acks=0.
    if reply.0.is_empty() {
        return;
    }
    let mut body = Bytes::from(reply.0.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<u8>>());
    let answer = ResponseKind::decode(api.key, &mut body, version)
        .unwrap_or_else(|error| panic!("{:?} {version}: the answer cannot be read: {error}", api.key));
    assert!(!body.has_remaining(), "{:?} {version}: {} bytes after the answer", api.key, body.len());
    let member = match answer {
        ResponseKind::JoinGroup(answer) => answer.member_id,
        ResponseKind::ConsumerGroupHeartbeat(answer) => answer.member_id.unwrap_or_default(),
        _ => return,
    };
    if !member.is_empty() {
        stock.remember_member(&member);
    }
}

/// The newest of what comes up in answers.
#[derive(Default)]
struct Newest(VecDeque<String>);

impl Newest {
    fn push(&mut self, name: &str) {
        self.0.push_front(name.to_owned());
        self.0.truncate(4);
    }
}
