//! What the runs say about each client, for docs/compatibility.md, which `make test-clients-all` writes.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::client::{Client, Commit, Protocol};

/// Written down when it is dropped, and good unless that is in a panic.
pub struct Verdict {
    client: String,
    language: String,
    version: String,
    /// What was run, as "kind" or "kind: which one".
    feature: String,
}

impl Verdict {
    pub fn of(client: Client, feature: &str) -> Verdict {
        let (name, language) = described(client);
        Self::of_program(name, language, &client.version(), feature)
    }

    pub fn of_program(name: &str, language: &str, version: &str, feature: &str) -> Verdict {
        assert!(!version.is_empty(), "{name} does not tell its version");
        let [client, language, version, feature] = [name, language, version, feature].map(str::to_owned);
        Verdict { client, language, version, feature }
    }

    /// One for each kind of client in a group.
    pub fn of_group(clients: &[Client], commit: Commit) -> Vec<Verdict> {
        let verdict = |client: &Client| {
            let protocol = match client.protocol() {
                Some(Protocol::Cooperative) => "classic group, cooperative-sticky",
                Some(Protocol::Consumer) => "consumer protocol",
                Some(Protocol::ConsumerByPattern) => "consumer protocol, pattern",
                Some(Protocol::Classic) | None => "classic group",
            };
            let others: Vec<_> = clients.iter().filter(|other| *other != client).collect();
            let how = match (&others[..], client, commit) {
                ([other, ..], ..) => format!("with {} {}", described(**other).0, other.version()),
                (_, Client::Kcat, _) => "automatic commits".to_owned(),
                (_, Client::PythonSubscriber | Client::GoSubscriber, _) => "acknowledgements".to_owned(),
                (.., Commit::Sync) => "synchronous commits".to_owned(),
                (.., Commit::Async) => "asynchronous commits".to_owned(),
            };
            Self::of(*client, &format!("{protocol}: {how}"))
        };
        clients.iter().map(verdict).collect()
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let Verdict { client, language, version, feature } = self;
        let passed = !std::thread::panicking();
        let line = json!({"client": client, "language": language, "version": version, "feature": feature, "passed": passed});
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/compatibility");
        // Also after the test, so that what failed in one is not hidden by another that did the same and passed.
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let name = format!("{client} {language} {version} {feature} {test}");
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{name}.json")), line.to_string()).unwrap();
    }
}

/// Its name and its language.
fn described(client: Client) -> (&'static str, &'static str) {
    match client {
        Client::Librdkafka(_) => ("librdkafka (crate rdkafka)", "C, Rust"),
        Client::Kcat => ("kcat", "C"),
        Client::Java(_) | Client::PreviousJava(_) => ("kafka-clients", "Java"),
        Client::ConfluentKafka(_) => ("confluent-kafka", "Python"),
        Client::KafkaPython => ("kafka-python", "Python"),
        Client::Aiokafka => ("aiokafka", "Python"),
        Client::FranzGo(_) => ("franz-go", "Go"),
        Client::Sarama(_) => ("sarama", "Go"),
        Client::KafkaGo => ("kafka-go", "Go"),
        Client::KafkaJs => ("kafkajs", "Node"),
        Client::Platformatic(_) => ("@platformatic/kafka", "Node"),
        Client::PythonSubscriber => ("the example of a subscriber", "Python"),
        Client::GoSubscriber => ("the example of a subscriber", "Go"),
    }
}
