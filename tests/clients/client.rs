//! Starting clients, and hearing what they say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};

use crate::ledger::{Ledger, Offsets, Record};
use crate::librdkafka;
use crate::stage::{PARTITIONS, Stage, TOPIC};

/// Longer than any wait that a client or the broker has a reason for.
pub const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Librdkafka(Protocol),
    Kcat,
    Java(Protocol),
    /// The major release before the newest.
    PreviousJava(Protocol),
    ConfluentKafka(Protocol),
    KafkaPython,
    Aiokafka,
    FranzGo(Protocol),
    /// Classic with the versions of requests that it has by default, cooperative with the newest.
    Sarama(Protocol),
    /// Segment's.
    KafkaGo,
    KafkaJs,
    /// Never with its default, in which a member has no moment to commit before it gives up a partition.
    Platformatic(Protocol),
    /// The examples that subscribe over gRPC.
    PythonSubscriber,
    GoSubscriber,
}

/// Who shares out the partitions of a group, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A member, by the client's default, which is `range`.
    Classic,
    /// A member, so that the others keep what stays theirs.
    Cooperative,
    /// The broker, as KIP-848 has it.
    Consumer,
    /// The same, and it also finds the topics that match a pattern.
    ConsumerByPattern,
}

impl Protocol {
    pub fn is_consumer(self) -> bool {
        matches!(self, Protocol::Consumer | Protocol::ConsumerByPattern)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    Sync,
    Async,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Beginning,
    End,
    /// Milliseconds since 1970.
    Time(i64),
}

/// `java` with the classes of `tests/clients/java`, which `make java` compiles, and the libraries in folders there.
pub fn java_with(libraries: &[&str]) -> Command {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/java/target");
    let mut path = target.join("classes").into_os_string();
    for folder in libraries {
        path.push(":");
        path.push(target.join(folder).join("*"));
    }
    let mut command = Command::new("java");
    // Three of them run at a time, on small machines too.
    command.args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]).arg(path);
    command
}

/// The newest Java client.
pub fn java() -> Command {
    java_with(&["lib"])
}

fn previous_java() -> Command {
    java_with(&["previous"])
}

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python");

/// Python with the libraries that its programs in `tests/clients` and `examples` need, which `make python` installs.
pub fn python() -> Command {
    let mut command = Command::new(format!("{PYTHON}/.venv/bin/python"));
    // Unbuffered, and no compiled files beside the sources.
    command.args(["-u", "-B"]);
    command
}

const GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/go");
const NODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/node");

/// The clients for Go, which `make go` builds.
pub fn go() -> Command {
    Command::new(format!("{GO}/target/clients"))
}

/// Node with the libraries of `tests/clients/node`, all of which `make node` installs.
pub fn node() -> Command {
    let mut command = Command::new(format!("{NODE}/node_modules/.bin/node"));
    // Where a program without a file finds them.
    command.current_dir(NODE);
    command
}

impl Client {
    /// The program that plays a role: `list`, `read` or `group` with what belongs to it.
    fn in_role(self, role: &[&str]) -> Command {
        let (mut command, story) = match self {
            Client::Librdkafka(_) => return librdkafka::process(role),
            Client::Kcat | Client::PythonSubscriber | Client::GoSubscriber => {
                unreachable!("{self:?} has a command line of its own")
            }
            Client::Java(_) => (java(), "ClientStory".to_owned()),
            Client::PreviousJava(_) => (previous_java(), "ClientStory".to_owned()),
            Client::ConfluentKafka(_) => (python(), format!("{PYTHON}/confluent_story.py")),
            Client::KafkaPython => (python(), format!("{PYTHON}/kafka_python_story.py")),
            Client::Aiokafka => (python(), format!("{PYTHON}/aiokafka_story.py")),
            Client::FranzGo(Protocol::Consumer) => (go(), "franz-go-consumer".to_owned()),
            Client::FranzGo(_) => (go(), "franz-go".to_owned()),
            Client::Sarama(Protocol::Classic) => (go(), "sarama".to_owned()),
            Client::Sarama(_) => (go(), "sarama-cooperative".to_owned()),
            Client::KafkaGo => (go(), "kafka-go".to_owned()),
            Client::KafkaJs => (node(), format!("{NODE}/kafkajs_story.js")),
            Client::Platformatic(_) => (node(), format!("{NODE}/platformatic_story.js")),
        };
        command.arg(story).args(role);
        command
    }

    /// The protocol of its groups, of those that have a choice.
    pub fn protocol(self) -> Option<Protocol> {
        match self {
            Client::Librdkafka(protocol)
            | Client::Java(protocol)
            | Client::PreviousJava(protocol)
            | Client::ConfluentKafka(protocol)
            | Client::FranzGo(protocol)
            | Client::Sarama(protocol)
            | Client::Platformatic(protocol) => Some(protocol),
            _ => None,
        }
    }

    /// The release that runs here, as the client itself tells it.
    pub fn version(self) -> String {
        let mut command = match self {
            Client::Librdkafka(_) => return rdkafka::util::get_rdkafka_version().1,
            Client::PythonSubscriber | Client::GoSubscriber => return env!("CARGO_PKG_VERSION").to_owned(),
            Client::Kcat => {
                let mut command = kcat();
                command.arg("-V");
                command
            }
            _ => self.in_role(&["version"]),
        };
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        match self {
            // "Version 1.7.1 (JSON, …, librdkafka 2.0.2 builtin.features=…)"
            Client::Kcat => {
                let after = |word| said.split(word).nth(1)?.split_whitespace().next();
                let (kcat, librdkafka) = after("Version ").zip(after("librdkafka ")).unwrap();
                format!("{kcat} (librdkafka {librdkafka})")
            }
            _ => said.trim().to_owned(),
        }
    }

    /// Topics and their number of partitions.
    pub fn list(self, bootstrap: &str) -> BTreeMap<String, usize> {
        match self {
            Client::Librdkafka(_) => {
                let consumer: BaseConsumer =
                    ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
                let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
                metadata.topics().iter().map(|t| (t.name().to_owned(), t.partitions().len())).collect()
            }
            Client::Kcat => {
                let output = kcat().args(["-b", bootstrap, "-L", "-J"]).output().unwrap();
                let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
                let topics = listed["topics"].as_array().unwrap().iter();
                topics
                    .map(|t| (t["topic"].as_str().unwrap().into(), t["partitions"].as_array().unwrap().len()))
                    .collect()
            }
            _ => {
                let output = self.in_role(&["list", bootstrap]).output().unwrap();
                let lines = String::from_utf8(output.stdout).unwrap();
                let topics = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
                topics
                    .map(|t| {
                        (t["topic"].as_str().unwrap().into(), t["partitions"].as_u64().unwrap() as usize)
                    })
                    .collect()
            }
        }
    }

    /// A consumer of no group, reading all partitions.
    pub fn read(self, bootstrap: &str, topic: &str, start: Start) -> Member {
        let place = match (self, start) {
            (_, Start::Beginning) => "beginning".to_owned(),
            (_, Start::End) => "end".to_owned(),
            (Client::Kcat, Start::Time(t)) => format!("s@{t}"),
            (_, Start::Time(t)) => t.to_string(),
        };
        match self {
            Client::Kcat => Member::start(
                self,
                kcat_consumer(bootstrap).args([
                    "-C",
                    "-t",
                    topic,
                    "-o",
                    &place,
                    "-X",
                    "fetch.wait.max.ms=100",
                ]),
            ),
            _ => Member::start(self, &mut self.in_role(&["read", bootstrap, topic, &place])),
        }
    }

    /// Writes so many events of each of some counters, to a broker that lets it, and waits until they are there.
    pub fn write(self, bootstrap: &str, topic: &str, codec: &str, each: i64) {
        let output = self.in_role(&["write", bootstrap, topic, codec, &each.to_string()]).output().unwrap();
        assert!(output.status.success(), "{self:?} writes with {codec}: {output:?}");
    }

    /// A member of a group, a static one if it has an instance id.
    pub fn join_as(self, instance: Option<&str>, stage: &Stage, group: &str, commit: Commit) -> Member {
        let bootstrap = stage.bootstrap();
        let mode = match commit {
            Commit::Sync => "sync",
            Commit::Async => "async",
        };
        let settings = self.group_settings(instance);
        let mut command = match self {
            Client::Kcat => {
                let mut command = kcat_consumer(&bootstrap);
                command.args(settings.iter().flat_map(|setting| ["-X", setting]));
                command.args(["-X", "auto.commit.interval.ms=200", "-X", "auto.offset.reset=earliest"]);
                command.args(["-G", group, TOPIC]);
                command
            }
            Client::PythonSubscriber => {
                let mut command = python();
                command.arg(format!("{EXAMPLES}/python/subscribe.py")).args([&stage.http(), TOPIC, group]);
                command
            }
            Client::GoSubscriber => {
                let mut command = Command::new(format!("{EXAMPLES}/go/target/subscribe"));
                command.args([&stage.http(), TOPIC, group]);
                command
            }
            _ => {
                let topic = match self.protocol() {
                    Some(Protocol::ConsumerByPattern) => PATTERN,
                    _ => TOPIC,
                };
                let mut role = vec!["group", &bootstrap, topic, group, mode];
                role.extend(settings.iter().map(String::as_str));
                self.in_role(&role)
            }
        };
        Member::start(self, &mut command)
    }

    /// What a member is told beyond the defaults; Java and librdkafka have the same names for it.
    fn group_settings(self, instance: Option<&str>) -> Vec<String> {
        let protocol = match self {
            Client::Java(protocol)
            | Client::PreviousJava(protocol)
            | Client::Librdkafka(protocol)
            | Client::ConfluentKafka(protocol) => protocol,
            Client::Kcat => return [SESSION, HEARTBEAT].map(str::to_owned).into(),
            Client::Platformatic(Protocol::Consumer) => return vec!["group.protocol=consumer".to_owned()],
            // Their programs know what to do.
            _ => return Vec::new(),
        };
        let mut settings = match protocol {
            Protocol::Classic => Vec::new(),
            Protocol::Cooperative => {
                let java = matches!(self, Client::Java(_) | Client::PreviousJava(_));
                let assignor = if java {
                    "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"
                } else {
                    "cooperative-sticky"
                };
                vec![format!("partition.assignment.strategy={assignor}")]
            }
            Protocol::Consumer | Protocol::ConsumerByPattern => vec!["group.protocol=consumer".to_owned()],
        };
        if !protocol.is_consumer() {
            let session = if instance.is_some() { LONG_SESSION } else { SESSION };
            settings.extend([HEARTBEAT, session].map(str::to_owned));
        }
        settings.extend(instance.map(|instance| format!("group.instance.id={instance}")));
        settings
    }
}

/// Matches the topic.
const PATTERN: &str = "^sh.p$";
const HEARTBEAT: &str = "heartbeat.interval.ms=500";
/// The shortest that the broker allows, so that a crash is noticed soon.
const SESSION: &str = "session.timeout.ms=6000";
/// Static members are to be back before it is over, on a busy machine too.
const LONG_SESSION: &str = "session.timeout.ms=60000";

/// kcat with the librdkafka that Debian gives it: cargo's search path has the one that the crate has built.
pub fn kcat() -> Command {
    let mut command = Command::new("kcat");
    command.env_remove("LD_LIBRARY_PATH");
    command
}

fn kcat_consumer(bootstrap: &str) -> Command {
    let mut command = kcat();
    command.args(["-b", bootstrap, "-u", "-E", "-J", "-X", "reconnect.backoff.max.ms=500"]);
    command
}

/// What a client said.
#[derive(Debug)]
enum Said {
    /// Its assignment from now on.
    Assigned(BTreeSet<i32>),
    /// A partition more, and one less.
    Added(i32),
    Revoked(i32),
    /// The broker answered its commit.
    Committed(Offsets),
    /// It has read all that there is in a partition.
    ReachedEnd(i32),
    Record(Record),
    /// A record that is not about a counter.
    OtherRecord,
    Else(String),
}

/// The members write JSON objects; kcat and the examples tell what is not a record in words.
fn hear(line: String) -> Said {
    let partitions = |text: &str| {
        text.split('[')
            .skip(1)
            .filter_map(|p| p.split(']').next()?.parse::<i32>().ok())
            .collect::<BTreeSet<_>>()
    };
    if let Some(rest) = line.strip_prefix("% Reached end of topic ") {
        return match partitions(rest).pop_first() {
            Some(partition) => Said::ReachedEnd(partition),
            None => Said::Else(line),
        };
    }
    if line.starts_with("% Group ") {
        return match line.split_once("assigned: ") {
            Some((_, assigned)) => Said::Assigned(partitions(assigned)),
            None => Said::Assigned(BTreeSet::new()),
        };
    }
    let partition = |topic_and_partition: &str| topic_and_partition.split('/').nth(1)?.parse::<i32>().ok();
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next().and_then(partition)) {
        (Some("%"), Some("assigned"), Some(partition)) => return Said::Added(partition),
        (Some("%"), Some("revoked"), Some(partition)) => return Said::Revoked(partition),
        (Some("%"), Some("disconnected:"), _) => return Said::Assigned(BTreeSet::new()),
        _ => {}
    }
    if let Ok([_, partition, offset, timestamp, value]) =
        <[&str; 5]>::try_from(line.split('\t').collect::<Vec<_>>())
    {
        let number = |text: &str| Value::from(text.parse::<i64>().unwrap());
        let (partition, offset, timestamp) = (number(partition), number(offset), number(timestamp));
        let said = json!({"partition": partition, "offset": offset, "ts": timestamp, "payload": value});
        return said.as_object().and_then(counter_event).map_or(Said::OtherRecord, Said::Record);
    }
    let Ok(Value::Object(said)) = serde_json::from_str(&line) else { return Said::Else(line) };
    let offsets = |value: &Value| -> Offsets {
        value.as_object().unwrap().iter().map(|(p, o)| (p.parse().unwrap(), o.as_i64().unwrap())).collect()
    };
    if let Some(assigned) = said.get("assigned") {
        Said::Assigned(offsets(assigned).into_keys().collect())
    } else if let Some(committed) = said.get("committed") {
        Said::Committed(offsets(committed))
    } else if said.contains_key("offset") {
        counter_event(&said).map_or(Said::OtherRecord, Said::Record)
    } else {
        Said::Else(line)
    }
}

fn counter_event(said: &serde_json::Map<String, Value>) -> Option<Record> {
    let payload: Value = serde_json::from_str(said.get("payload")?.as_str()?).ok()?;
    let row = payload.get("after")?;
    Some(Record {
        partition: i32::try_from(said.get("partition")?.as_i64()?).ok()?,
        offset: said.get("offset")?.as_i64()?,
        timestamp: said.get("ts")?.as_i64()?,
        id: row.get("id")?.as_i64()?,
        n: row.get("n")?.as_i64()?,
    })
}

/// A client's process.
pub struct Member {
    client: Option<Client>,
    child: Child,
    said: mpsc::Receiver<Said>,
    assigned: BTreeSet<i32>,
    assignments: usize,
    ended: BTreeSet<i32>,
    committed: Offsets,
    last_words: VecDeque<String>,
}

impl Member {
    fn start(client: impl Into<Option<Client>>, command: &mut Command) -> Member {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {:?}: {e}", command.get_program()));
        let (sender, said) = mpsc::channel();
        listen(child.stdout.take().unwrap(), sender.clone());
        listen(child.stderr.take().unwrap(), sender);
        Member {
            client: client.into(),
            child,
            said,
            assigned: BTreeSet::new(),
            assignments: 0,
            ended: BTreeSet::new(),
            committed: Offsets::new(),
            last_words: VecDeque::new(),
        }
    }

    pub fn assigned(&self) -> &BTreeSet<i32> {
        &self.assigned
    }

    /// How many times it has told its assignment.
    pub fn assignments(&self) -> usize {
        self.assignments
    }

    /// The last lines it printed that are none of what a member says.
    pub fn last_words(&self) -> &VecDeque<String> {
        &self.last_words
    }

    /// The commits that were answered to it.
    pub fn committed(&self) -> &Offsets {
        &self.committed
    }

    /// It reads all partitions from a place that it knows: kcat says so only by reaching their ends.
    pub fn knows_its_place(&self) -> bool {
        self.assigned.len().max(self.ended.len()) == PARTITIONS
    }

    /// Dies at once.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn end(&mut self) {
        self.child.wait().unwrap();
    }

    /// Leaves as a well-behaved program does, and waits until it has.
    pub fn leave(&mut self) {
        if matches!(self.client, Some(Client::Kcat | Client::PythonSubscriber | Client::GoSubscriber)) {
            // SAFETY: sends a signal to a child that has not been waited for, so the pid is its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        }
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(stream: impl Read + Send + 'static, said: mpsc::Sender<Said>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if said.send(hear(line)).is_err() {
                return;
            }
        }
    });
}

/// Members, those that have gone too, and the ledger of all that they received.
#[derive(Default)]
pub struct Troupe {
    members: Vec<Member>,
    pub ledger: Ledger,
}

impl Troupe {
    pub fn add(&mut self, member: Member) -> usize {
        self.members.push(member);
        self.members.len() - 1
    }

    /// A program that is no member and prints lines of its own.
    pub fn add_program(&mut self, command: &mut Command) -> usize {
        self.add(Member::start(None, command))
    }

    pub fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    pub fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Hears all that was said up to now.
    pub fn hear(&mut self) {
        for (index, member) in self.members.iter_mut().enumerate() {
            while let Ok(said) = member.said.try_recv() {
                match said {
                    Said::Assigned(partitions) => {
                        member.assigned = partitions;
                        member.assignments += 1;
                        self.ledger.forget_places(index);
                    }
                    Said::Added(partition) => {
                        member.assigned.insert(partition);
                        self.ledger.forget_places(index);
                    }
                    Said::Revoked(partition) => {
                        member.assigned.remove(&partition);
                    }
                    Said::Committed(offsets) => member.committed.extend(offsets),
                    Said::ReachedEnd(partition) => {
                        member.ended.insert(partition);
                    }
                    Said::Record(record) => self.ledger.enter(index, record),
                    Said::OtherRecord => {}
                    Said::Else(line) => {
                        member.last_words.push_back(line);
                        if member.last_words.len() > 50 {
                            member.last_words.pop_front();
                        }
                    }
                }
            }
        }
    }

    /// Listens until the condition holds.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Troupe) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.hear();
            if condition(self) {
                return;
            }
            if Instant::now() > deadline {
                let words: Vec<_> = self.members.iter().map(|m| (&m.assigned, &m.last_words)).collect();
                panic!("waited in vain until {what}; assignments and last words: {words:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
