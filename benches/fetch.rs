//! What a Fetch request costs before its records are read: `cargo bench --bench fetch`.
//!
//! Three of 1,000 partitions have grown since the client asked before. A client without a session names all of them and
//! is told of all; one with a session names three and is told of three. Topics with 100 partitions each, and with one.

#![expect(clippy::unwrap_used, reason = "a step that fails is a measurement that fails")]

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use kafka_protocol::protocol::{Decodable, Encodable};
use millrace::broker::Settings;
use millrace::group::{Coordinator, Options};
use millrace::kafka::api::fetch::API;
use millrace::kafka::connection::Limits;
use millrace::kafka::topic_settings::{Defaults, TopicSettings};
use millrace::kafka::{Broker, Reply, Request};
use millrace::log::topics::{Topic, TopicId, TopicList, Topics};
use millrace::log::{Fetched, LogError, LogReader, Offset, PartitionId, PartitionRange, Retention, Snapshot};
use millrace::state::{DataDir, OffsetStore, Store};
use tokio::sync::watch;
use uuid::Uuid;

const PARTITIONS: u32 = 1_000;
const GROWN: usize = 3;
const VERSION: i16 = 17;

/// A log whose partitions all hold one batch.
struct Log {
    snapshot: watch::Sender<Arc<Snapshot>>,
    topics: watch::Sender<TopicList>,
    batch: Bytes,
}

type FoundByTime = Result<Option<(Offset, i64)>, LogError>;

impl LogReader for Log {
    fn name(&self) -> &str {
        "bench"
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    fn topics(&self) -> watch::Receiver<TopicList> {
        self.topics.subscribe()
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    fn watchers(&self) -> usize {
        self.snapshot.receiver_count()
    }

    fn leader_epoch(&self) -> i32 {
        0
    }

    fn fetch<'a>(
        &'a self,
        _: &'a Snapshot,
        _: PartitionId,
        _: Offset,
        _: usize,
    ) -> BoxFuture<'a, Result<Fetched, LogError>> {
        Box::pin(async { Ok(Fetched { batches: vec![self.batch.clone()] }) })
    }

    fn find_by_time<'a>(&'a self, _: &'a Snapshot, _: PartitionId, _: i64) -> BoxFuture<'a, FoundByTime> {
        Box::pin(async { Ok(None) })
    }

    fn max_timestamp<'a>(&'a self, _: &'a Snapshot, _: PartitionId) -> BoxFuture<'a, FoundByTime> {
        Box::pin(async { Ok(None) })
    }

    fn delete_records(&self, _: Vec<(PartitionId, Offset)>) -> BoxFuture<'_, Result<Vec<Offset>, LogError>> {
        Box::pin(async { Err(LogError::Stopped) })
    }

    fn retention(&self) -> Retention {
        Retention::default()
    }

    fn set_retention(&self, _: Retention) {}

    fn partition_bytes(&self, _: PartitionId) -> u64 {
        self.batch.len() as u64
    }

    fn total_bytes(&self) -> u64 {
        self.batch.len() as u64
    }
}

/// A broker with `topics` topics, which have `PARTITIONS` partitions together.
fn broker(topics: u32, data: &DataDir) -> Arc<Broker> {
    let range = PartitionRange { start: Offset(0), end: Offset(1) };
    let snapshot = Snapshot::default().with(1, (0..PARTITIONS).map(|number| (PartitionId(number), range)));
    let log = Arc::new(Log {
        snapshot: watch::Sender::new(Arc::new(snapshot)),
        topics: watch::Sender::default(),
        batch: Bytes::from(vec![0; 1024]),
    });
    let directory = Topics::default();
    let each = PARTITIONS / topics;
    for topic in 0..topics {
        directory.insert(Topic {
            name: format!("shop.public.table_{topic}"),
            id: TopicId(topic.into()),
            partitions: (topic * each..(topic + 1) * each).map(PartitionId).collect(),
            log: log.clone(),
        });
    }
    let groups = Coordinator::open(Options::default(), OffsetStore::open(data).unwrap(), directory.clone());
    Arc::new(Broker {
        cluster_id: "bench".into(),
        advertised_host: "localhost".into(),
        advertised_port: 9092,
        topics: directory,
        groups,
        fetch_memory: Default::default(),
        fetch_sessions: Default::default(),
        client_topics: None,
        limits: Limits::default(),
        local_only: true,
        topic_settings: TopicSettings::open(
            Arc::new(Store::open(data).unwrap()),
            Defaults::from(&Settings::default()),
        )
        .unwrap(),
        data_dir: std::env::temp_dir(),
    })
}

/// A request for the first `count` of all partitions: three at their start, the others at their end.
fn asks(topics: u32, count: usize, session: i32, epoch: i32) -> Bytes {
    let each = PARTITIONS as usize / topics as usize;
    let mut request = FetchRequest::default()
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_session_id(session)
        .with_session_epoch(epoch);
    for number in 0..count {
        if number % each == 0 {
            let id = Uuid::from_u128((number / each) as u128);
            request.topics.push(FetchTopic::default().with_topic_id(id));
        }
        let partition = FetchPartition::default()
            .with_partition((number % each) as i32)
            .with_fetch_offset(i64::from(number >= GROWN))
            .with_partition_max_bytes(1 << 20);
        request.topics.last_mut().unwrap().partitions.push(partition);
    }
    let mut body = BytesMut::new();
    request.encode(&mut body, VERSION).unwrap();
    body.freeze()
}

fn handle(broker: &Arc<Broker>, body: Bytes) -> Reply {
    let request = Request {
        api: &API,
        version: VERSION,
        correlation_id: 1,
        client_id: None,
        peer: ([127, 0, 0, 1], 1).into(),
        body,
        broker: broker.clone(),
    };
    (API.handle)(&request).now_or_never().unwrap().unwrap()
}

fn session_of(reply: Reply) -> i32 {
    FetchResponse::decode(&mut Bytes::from(reply.0.concat()), VERSION).unwrap().session_id
}

fn fetch(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    for topics in [10, PARTITIONS] {
        let directory = tempfile::TempDir::new().unwrap();
        let broker = broker(topics, &DataDir::open(directory.path()).unwrap());
        let mut group = criterion.benchmark_group(format!("fetch, 1000 partitions of {topics} topics"));
        let full = asks(topics, PARTITIONS as usize, 0, -1);
        group.bench_function("without a session", |bencher| {
            bencher.iter(|| black_box(handle(&broker, full.clone())));
        });
        let session = session_of(handle(&broker, asks(topics, PARTITIONS as usize, 0, 0)));
        // Encoding is the client's work: the request's bytes are made once, and the epoch put in its place.
        let asked = asks(topics, GROWN, session, 0x0102_0304);
        let at = asked.windows(4).position(|four| four == [1, 2, 3, 4]).unwrap();
        let mut epoch = 0;
        group.bench_function("in a session", |bencher| {
            bencher.iter(|| {
                epoch += 1;
                let mut body = asked.to_vec();
                body[at..at + 4].copy_from_slice(&i32::to_be_bytes(epoch));
                black_box(handle(&broker, body.into()))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, fetch);
criterion_main!(benches);
