//! A broker with a topic of many records, and a subscriber that says one thing after the other.

use std::time::{Duration, Instant};

use millrace::proto::subscribe_request::Request;
use millrace::proto::subscribe_response::Response;
use millrace::proto::subscriber_client::SubscriberClient;
use millrace::proto::{
    Acknowledged, Acknowledgement, Assigned, Credit, PartitionOffset, Record, Records, SubscribeRequest,
    Subscription, TopicSelection, record::Content,
};
use millrace_test_support::{Millrace, MillraceOptions, Postgres, PostgresOptions};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Longer than anything here takes; a test that gets there has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what must not come to have come.
pub const QUIET: Duration = Duration::from_millis(300);
pub const TOPIC: &str = "shop";

/// A source with a table `t`, and a broker that captures it into the topic `shop`.
pub struct Stage {
    pub millrace: Millrace,
    pub client: tokio_postgres::Client,
    pub postgres: Postgres,
    _data: TempDir,
}

impl Stage {
    pub async fn start(args: &[&str]) -> Stage {
        let postgres = Postgres::start(PostgresOptions::default()).await;
        let client = postgres.client().await;
        client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, body text)").await.unwrap();
        let data = tempfile::tempdir().unwrap();
        let options = MillraceOptions::new(data.path(), &postgres.url()).args(&["--task", TOPIC]).args(args);
        let millrace = Millrace::start(options).await;
        Stage { millrace, client, postgres, _data: data }
    }

    /// Inserts rows of this many bytes in one transaction, and waits until they can be read.
    pub async fn insert(&self, ids: std::ops::RangeInclusive<i64>, bytes: i32) {
        let (first, last) = (*ids.start(), *ids.end());
        // Text that does not compress.
        let body = format!("substr(repeat(md5(g::text) || md5((-g)::text), {bytes} / 64 + 1), 1, {bytes})");
        let sql = format!("INSERT INTO t SELECT g, {body} FROM generate_series({first}, {last}) g");
        self.client.batch_execute(&sql).await.unwrap();
        self.caught_up().await;
    }

    pub async fn caught_up(&self) {
        let row = self.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        self.millrace.wait_durable(row.get(0)).await;
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.millrace.http_port())
    }

    /// A client with a connection of its own.
    pub async fn grpc(&self) -> SubscriberClient<Channel> {
        let channel = Channel::from_shared(self.url()).unwrap().connect().await.unwrap();
        SubscriberClient::new(channel).max_decoding_message_size(64 << 20)
    }

    /// A stream that has sent its subscription.
    pub async fn subscribe(&self, subscription: Subscription) -> Subscriber {
        Subscriber::open(self.grpc().await, subscription).await
    }

    /// A number of the metrics page.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.millrace.get("/metrics").expect("the metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{page}")).parse().unwrap()
    }

    /// Waits until a number of the metrics page is this.
    pub async fn wait_metric(&self, name: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name) != value {
            assert!(Instant::now() < deadline, "{name} is {}, not {value}", self.metric(name));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// All of the topic, with credit for all of it.
pub fn everything() -> Subscription {
    Subscription {
        topics: vec![whole(TOPIC)],
        credit: Some(credit(u64::MAX, u64::MAX)),
        ..Default::default()
    }
}

/// A topic with all of its partitions.
pub fn whole(topic: &str) -> TopicSelection {
    TopicSelection { topic: topic.to_owned(), partitions: Vec::new() }
}

pub fn credit(records: u64, bytes: u64) -> Credit {
    Credit { records, bytes }
}

pub fn offset(partition: u32, offset: i64) -> PartitionOffset {
    PartitionOffset { topic: TOPIC.to_owned(), partition, offset, metadata: String::new() }
}

/// A stream.
pub struct Subscriber {
    requests: Option<mpsc::UnboundedSender<SubscribeRequest>>,
    responses: Streaming<millrace::proto::SubscribeResponse>,
}

impl Subscriber {
    pub async fn open(client: SubscriberClient<Channel>, subscription: Subscription) -> Subscriber {
        let mut subscriber = Self::silent(client).await;
        subscriber.send(Request::Subscription(subscription));
        subscriber
    }

    /// One that has sent nothing yet.
    pub async fn silent(mut client: SubscriberClient<Channel>) -> Subscriber {
        let (requests, mut sent) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| sent.poll_recv(cx));
        let responses = client.subscribe(stream).await.unwrap().into_inner();
        Subscriber { requests: Some(requests), responses }
    }

    pub fn send(&mut self, request: Request) {
        let request = SubscribeRequest { request: Some(request) };
        // A stream that the broker has ended takes nothing more.
        let _ = self.requests.as_ref().expect("the stream is open").send(request);
    }

    pub fn grant(&mut self, records: u64, bytes: u64) {
        self.send(Request::Credit(credit(records, bytes)));
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    pub async fn next(&mut self) -> Result<Option<Response>, Status> {
        let next =
            timeout(PATIENCE, self.responses.message()).await.expect("neither a message nor an end")?;
        Ok(next.map(|message| message.response.expect("a message that is not empty")))
    }

    pub async fn assigned(&mut self) -> Assigned {
        match self.next().await.unwrap() {
            Some(Response::Assigned(assigned)) => assigned,
            other => panic!("not an assignment: {other:?}"),
        }
    }

    pub async fn records(&mut self) -> Records {
        match self.next().await.unwrap() {
            Some(Response::Records(records)) => records,
            other => panic!("not records: {other:?}"),
        }
    }

    /// So many records, and not one more.
    pub async fn take(&mut self, count: usize) -> Vec<Record> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.records().await.records);
        }
        assert_eq!(all.len(), count);
        all
    }

    /// Acknowledges, and waits for the answer; records that come meanwhile are dropped.
    pub async fn acknowledge(&mut self, id: u64, offsets: Vec<PartitionOffset>) -> Acknowledged {
        self.send(Request::Acknowledgement(Acknowledgement { id, offsets }));
        loop {
            if let Some(Response::Acknowledged(answer)) = self.next().await.unwrap() {
                assert_eq!(answer.id, id);
                return answer;
            }
        }
    }

    /// Nothing comes.
    pub async fn quiet(&mut self) {
        if let Ok(next) = timeout(QUIET, self.responses.message()).await {
            panic!("nothing should have come, but {next:?}");
        }
    }

    /// What the stream ends with, whatever comes before.
    pub async fn ended(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

/// The id of the row that a record is about.
pub fn id(record: &Record) -> i64 {
    let Some(Content::Value(value)) = &record.content else { panic!("no value: {record:?}") };
    let event: serde_json::Value = serde_json::from_slice(value).unwrap();
    event["after"]["id"].as_i64().unwrap()
}

/// What a record costs of the byte credit.
pub fn size(record: &Record) -> u64 {
    let Some(Content::Value(value)) = &record.content else { panic!("no value: {record:?}") };
    let headers = record.headers.iter();
    let headers =
        headers.map(|header| header.name.len() + header.value.as_ref().map_or(0, |value| value.len()));
    (record.key.as_ref().map_or(0, |key| key.len()) + value.len() + headers.sum::<usize>()) as u64
}
