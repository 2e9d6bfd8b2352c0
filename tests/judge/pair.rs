//! A connection to each broker, on which both are asked the same.

use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::fields::fields;
use crate::verdict::{Asked, Outcome, Verdict};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// A broker that has not answered by then waits for something.
const AT_ONCE: Duration = Duration::from_millis(300);
/// How long the slower of two that answer at once may take longer than the other.
const BEHIND: Duration = Duration::from_secs(3);

/// The first version of Produce that there still is.
const FIRST_PRODUCE: i16 = 3;

/// Before the names of numbers that stand for nothing in answers.
const NUMBER: &str = "number ";

/// One of each side.
#[derive(Debug, Clone, Copy)]
pub struct Both<T> {
    pub kafka: T,
    pub ours: T,
}

impl<T> Both<T> {
    pub fn map<U>(&self, mut map: impl FnMut(&T) -> U) -> Both<U> {
        Both { kafka: map(&self.kafka), ours: map(&self.ours) }
    }
}

/// What the sides call by different names, by a name for both: members, ids of topics, ports.
#[derive(Debug, Default, Clone)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// What this side calls it; the name itself until it is known.
    pub fn get(&self, name: &str) -> StrBytes {
        StrBytes::from_string(self.0.get(name).map_or(name, |called| called).to_owned())
    }

    /// Likewise, a number.
    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        let called = self.0.get(&format!("{NUMBER}{name}")).or_else(|| self.0.get(name));
        called.and_then(|called| called.parse().ok()).unwrap_or_default()
    }

    /// Likewise, the id of a topic.
    pub fn topic_id(&self, topic: &str) -> Uuid {
        self.0.get(&format!("id of {topic}")).map_or(Uuid::nil(), |called| called.parse().expect("an id"))
    }

    /// A value of an answer as both sides have it.
    fn common(&self, value: &str) -> String {
        let plain = value.trim_matches('"');
        let named = |(name, called): &(&String, &String)| {
            !name.starts_with(NUMBER) && !matches!(called.as_str(), "" | "0" | "-1")
        };
        for (name, called) in self.0.iter().filter(named) {
            if called == plain {
                return format!("<{name}>");
            }
            // In the middle of a message.
            if called.len() > 8 && value.contains(called.as_str()) {
                return value.replace(called.as_str(), &format!("<{name}>"));
            }
        }
        value.to_owned()
    }
}

/// What all pairs share.
#[derive(Debug)]
pub struct Court {
    pub ports: Both<u16>,
    pub verdict: Verdict,
    names: Mutex<Both<Names>>,
    versions: HashMap<i16, (i16, i16)>,
}

impl Court {
    /// Asks both what they serve.
    pub async fn open(ports: Both<u16>) -> Arc<Court> {
        let mut court = Court {
            ports,
            verdict: Verdict::default(),
            names: Mutex::new(Both { kafka: Names::default(), ours: Names::default() }),
            versions: HashMap::new(),
        };
        let mut served = Vec::new();
        for port in [ports.kafka, ports.ours] {
            let mut side = Side { port, stream: None, next: 0, early: None };
            side.send(0, &ApiVersionsRequest::default()).await;
            let mut frame = side.frame(PATIENCE).await.expect("an answer").expect("an answer");
            ResponseHeader::decode(&mut frame, 0).expect("a header");
            let answer =
                kafka_protocol::messages::ApiVersionsResponse::decode(&mut frame, 0).expect("an answer");
            let ranges = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version)));
            served.push(ranges.collect::<HashMap<_, _>>());
        }
        for (key, (min, max)) in &served[0] {
            if let Some((our_min, our_max)) = served[1].get(key) {
                let first = match *key == ApiKey::Produce as i16 {
                    // Both name older ones for the sake of librdkafka, and serve none of them.
                    true => FIRST_PRODUCE,
                    false => *min.max(our_min),
                };
                court.versions.insert(*key, (first, *max.min(our_max)));
            }
        }
        court.learn("port", &ports.map(u16::to_string));
        Arc::new(court)
    }

    /// Gives something a name for both.
    pub fn learn(&self, name: &str, called: &Both<String>) {
        let mut names = self.names.lock().unwrap();
        names.kafka.0.insert(name.to_owned(), called.kafka.clone());
        names.ours.0.insert(name.to_owned(), called.ours.clone());
    }

    /// Gives a number a name, for requests: in answers a number says nothing of what it counts.
    pub fn learn_number(&self, name: &str, called: &Both<i64>) {
        self.learn(&format!("{NUMBER}{name}"), &called.map(i64::to_string));
    }

    /// What each calls what.
    pub fn names(&self) -> Both<Names> {
        self.names.lock().unwrap().clone()
    }

    /// Forgets all names that begin so.
    pub fn forget(&self, prefix: &str) {
        let mut names = self.names.lock().unwrap();
        names.kafka.0.retain(|name, _| !name.starts_with(prefix));
        names.ours.0.retain(|name, _| !name.starts_with(prefix));
    }

    /// Versions of an API that both serve.
    pub fn versions(&self, key: ApiKey) -> std::ops::RangeInclusive<i16> {
        // Empty if one of them does not have it.
        let (min, max) = self.versions.get(&(key as i16)).copied().unwrap_or((1, 0));
        min..=max
    }

    /// Key and version of all that both serve.
    pub fn served(&self) -> impl Iterator<Item = (i16, i16)> {
        self.versions.iter().flat_map(|(key, (min, max))| (*min..=*max).map(|version| (*key, version)))
    }

    pub fn pair(self: &Arc<Self>) -> Pair {
        let side = |port: &u16| Side { port: *port, stream: None, next: 0, early: None };
        let Both { kafka, ours } = self.ports.map(side);
        Pair { court: self.clone(), kafka, ours }
    }
}

/// A connection to each.
#[derive(Debug)]
pub struct Pair {
    pub court: Arc<Court>,
    kafka: Side,
    ours: Side,
}

/// What an answer calls something.
type Called<A> = fn(&A) -> String;

/// A request that both have.
#[derive(Debug)]
pub struct Pending<R> {
    asked: Asked,
    request: PhantomData<R>,
}

impl Pair {
    /// Asks both and compares. `None` unless both have answered.
    pub async fn call<R>(
        &mut self,
        situation: &str,
        version: i16,
        request: impl Fn(&Names) -> R,
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        self.call_tidied(situation, version, request, |_| {}).await
    }

    /// The same; `tidy` takes out of the answers what is not to be compared.
    pub async fn call_tidied<R>(
        &mut self,
        situation: &str,
        version: i16,
        request: impl Fn(&Names) -> R,
        tidy: impl Fn(&mut R::Response),
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        let pending = self.send(situation, version, request).await;
        self.receive(pending, tidy).await
    }

    /// The same; what is to be compared depends on the side.
    pub async fn call_adjusted<R>(
        &mut self,
        situation: &str,
        version: i16,
        request: impl Fn(&Names) -> R,
        adjust: impl Fn(&mut R::Response, &Names),
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        let pending = self.send(situation, version, request).await;
        self.judge(pending, adjust, None).await
    }

    /// Sends a request to both.
    pub async fn send<R: Request + Debug>(
        &mut self,
        situation: &str,
        version: i16,
        request: impl Fn(&Names) -> R,
    ) -> Pending<R> {
        let names = self.court.names();
        let (theirs, ours) = (request(&names.kafka), request(&names.ours));
        self.kafka.send(version, &theirs).await;
        self.ours.send(version, &ours).await;
        let api = ApiKey::try_from(R::KEY).expect("a known key");
        let request = format!("{theirs:?}").replace(", unknown_tagged_fields: {}", "");
        let asked = Asked { api, version, situation: situation.to_owned(), request };
        Pending { asked, request: PhantomData }
    }

    /// Compares whether each lets the request wait, before anything else happens.
    pub async fn waits<R>(&mut self, pending: &Pending<R>) {
        let early = (self.kafka.early(AT_ONCE).await, self.ours.early(Duration::from_millis(10)).await);
        let (kafka, ours) = match early {
            (true, false) => (true, self.ours.early(BEHIND).await),
            (false, true) => (self.kafka.early(BEHIND).await, true),
            same => same,
        };
        let text = |answered| if answered { "answered" } else { "waits" }.to_owned();
        self.court.verdict.field(&pending.asked, "moment", text(kafka), text(ours));
    }

    /// Reads the answers to a request that was sent, and compares.
    pub async fn receive<R>(
        &mut self,
        pending: Pending<R>,
        tidy: impl Fn(&mut R::Response),
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        self.judge(pending, |answer, _| tidy(answer), None).await
    }

    /// The same; what the answers call `name` is learned before they are compared.
    pub async fn receive_named<R>(
        &mut self,
        pending: Pending<R>,
        tidy: impl Fn(&mut R::Response),
        name: &str,
        what: Called<R::Response>,
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        self.judge(pending, |answer, _| tidy(answer), Some((name, what))).await
    }

    async fn judge<R>(
        &mut self,
        pending: Pending<R>,
        tidy: impl Fn(&mut R::Response, &Names),
        learn: Option<(&str, Called<R::Response>)>,
    ) -> Option<Both<R::Response>>
    where
        R: Request + Debug,
        R::Response: Clone + Debug,
    {
        let version = pending.asked.version;
        let kafka = self.kafka.answer::<R>(version).await;
        let ours = self.ours.answer::<R>(version).await;
        if let (Ok(kafka), Ok(ours), Some((name, what))) = (&kafka, &ours, learn) {
            self.court.learn(name, &Both { kafka: what(kafka), ours: what(ours) });
        }
        let names = self.court.names();
        let seen = |answer: &Result<R::Response, Outcome>, names: &Names| match answer {
            Ok(answer) => {
                let mut answer = answer.clone();
                tidy(&mut answer, names);
                Outcome::Answer(fields(&format!("{answer:#?}"), &|value| names.common(value)))
            }
            Err(outcome) => outcome.clone(),
        };
        self.court.verdict.compare(&pending.asked, &seen(&kafka, &names.kafka), &seen(&ours, &names.ours));
        Some(Both { kafka: kafka.ok()?, ours: ours.ok()? })
    }

    /// Gives something that both have just said a name.
    pub fn learn<T>(&self, name: &str, said: &Both<T>, what: impl Fn(&T) -> String) {
        self.court.learn(name, &said.map(what));
    }
}

/// A connection to one broker.
#[derive(Debug)]
struct Side {
    port: u16,
    stream: Option<TcpStream>,
    next: i32,
    /// An answer that was read before it was asked for; `None` in it when the broker hung up.
    early: Option<Option<Bytes>>,
}

impl Side {
    async fn send<R: Request + Debug>(&mut self, version: i16, request: &R) {
        self.next += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.next)
            .with_client_id(Some(StrBytes::from_static_str("judge")));
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&[0; 4]);
        header.encode(&mut frame, R::header_version(version)).expect("encode a header");
        let encoded = request.encode(&mut frame, version);
        encoded.unwrap_or_else(|error| panic!("cannot encode {request:?} in version {version}: {error}"));
        let size = frame.len() as i32 - 4;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(TcpStream::connect(("127.0.0.1", self.port)).await.expect("connect")),
        };
        // It may have hung up, which is noticed when the answer is read.
        let _ = stream.write_all(&frame).await;
    }

    /// Whether an answer comes in that time.
    async fn early(&mut self, within: Duration) -> bool {
        if self.early.is_none() {
            let Some(stream) = &self.stream else { return true };
            let mut first = [0; 1];
            if timeout(within, stream.peek(&mut first)).await.is_err() {
                return false;
            }
            self.early = Some(self.frame(PATIENCE).await.ok().flatten());
        }
        true
    }

    /// The next frame; `None` when the broker hangs up, an error when nothing comes.
    async fn frame(&mut self, patience: Duration) -> Result<Option<Bytes>, ()> {
        let deadline = Instant::now() + patience;
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let read = async {
            let size = stream.read_i32().await.ok()?;
            let mut frame = BytesMut::zeroed(size as usize);
            stream.read_exact(&mut frame).await.ok()?;
            Some(frame.freeze())
        };
        let read = tokio::time::timeout_at(deadline, read).await;
        if !matches!(read, Ok(Some(_))) {
            self.stream = None;
        }
        read.map_err(drop)
    }

    async fn answer<R: Request>(&mut self, version: i16) -> Result<R::Response, Outcome> {
        let frame = match self.early.take() {
            Some(frame) => Ok(frame),
            None => self.frame(PATIENCE).await,
        };
        let mut frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(Outcome::Nothing("hung up")),
            Err(()) => return Err(Outcome::Nothing("no answer")),
        };
        let unreadable = |error: String| Outcome::Unreadable(error);
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version))
            .map_err(|error| unreadable(error.to_string()))?;
        if header.correlation_id != self.next {
            return Err(unreadable(format!("correlation id {}", header.correlation_id)));
        }
        let answer =
            R::Response::decode(&mut frame, version).map_err(|error| unreadable(error.to_string()))?;
        match frame.len() {
            0 => Ok(answer),
            left => Err(unreadable(format!("{left} bytes too many"))),
        }
    }
}
