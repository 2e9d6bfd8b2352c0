//! Apache Kafka's own broker, to compare with: one node that is its own controller, from the jars that
//! `make apache-kafka` fetches.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::child;
use crate::free_port;

/// The cluster's id: 16 bytes in base64.
pub const CLUSTER_ID: &str = "bWlsbHJhY2UtanVkZ2UxMg";

/// One broker's settings; where a cluster would keep three copies, this keeps one.
const SETTINGS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "0"),
    ("controller.listener.names", "CONTROLLER"),
    ("offsets.topic.num.partitions", "1"),
    ("offsets.topic.replication.factor", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
];

/// A running broker. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct ApacheKafka {
    child: Child,
    port: u16,
    // Dropped last, when nobody writes there any more.
    home: tempfile::TempDir,
}

impl ApacheKafka {
    /// Starts a broker with `settings` beside its own, and waits until it answers.
    pub async fn start(settings: &[(&str, &str)]) -> ApacheKafka {
        let home = tempfile::Builder::new().prefix("millrace-kafka-").tempdir();
        let home = home.expect("make a temporary directory");
        let (port, controller) = (free_port(), free_port());
        let mut lines = vec![
            format!("controller.quorum.voters=0@127.0.0.1:{controller}"),
            format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
            format!("log.dirs={}", home.path().join("data").display()),
        ];
        lines.extend(SETTINGS.iter().chain(settings).map(|(name, value)| format!("{name}={value}")));
        let properties = home.path().join("server.properties");
        fs::write(&properties, lines.join("\n")).expect("write the broker's settings");

        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "--cluster-id", CLUSTER_ID, "--config"]).arg(&properties);
        let formatted = format.output().expect("run java");
        assert!(
            formatted.status.success(),
            "cannot format the broker's directory: {}{}",
            String::from_utf8_lossy(&formatted.stdout),
            String::from_utf8_lossy(&formatted.stderr)
        );

        let output = fs::File::create(home.path().join("output")).expect("make an output file");
        let mut command = java("kafka.Kafka");
        command.arg(&properties).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("share the output file")).stderr(output);
        let child = child::spawn(command, libc::SIGKILL).expect("start java");
        let mut broker = ApacheKafka { child, port, home };
        broker.wait_ready().await;
        broker
    }

    /// Port of its Kafka listener, which it opens when it is ready to answer.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `bootstrap.servers` for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait().expect("look at the broker");
            if ended.is_some() || Instant::now() > deadline {
                let output = fs::read(self.home.path().join("output")).unwrap_or_default();
                panic!("Apache Kafka did not start ({ended:?}): {}", String::from_utf8_lossy(&output));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for ApacheKafka {
    fn drop(&mut self) {
        // Its files are gone with it, so nothing is worth an orderly end.
        child::end(&mut self.child, libc::SIGKILL);
    }
}

/// A program of Apache Kafka's jars, in a small virtual machine that starts soon.
fn java(class: &str) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    command.arg(libraries().join("*")).arg(class);
    command
}

/// The jars of Apache Kafka's broker and tools.
pub fn libraries() -> PathBuf {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../apache-kafka/target/lib");
    assert!(libraries.is_dir(), "Apache Kafka's jars are not in {}: make apache-kafka", libraries.display());
    libraries
}
