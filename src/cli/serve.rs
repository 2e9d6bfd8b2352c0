//! `millrace serve`: the tasks that a data directory holds. And the settings that it shares with `up`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::{Exit, Failure};
use crate::broker::{Broker, BrokerError, Listeners, Settings, TaskStart};
use crate::capture::session::CaptureOptions;
use crate::log::record_batch::Codec;
use crate::postgres::source::SourceConfig;
use crate::state::{DataDir, Store, TaskRow};
use crate::task::TaskDefinition;
use crate::task::supervisor::RetryTimes;

/// How the broker keeps and serves.
#[derive(Debug, Clone, Args)]
pub struct BrokerArguments {
    /// Where everything is kept
    #[arg(long, env = "MILLRACE_DATA_DIR", default_value = "./millrace-data")]
    pub data_dir: PathBuf,
    /// Where Kafka clients connect
    #[arg(
        long,
        env = "MILLRACE_KAFKA_LISTEN",
        default_value = "127.0.0.1:9092",
        value_name = "ADDRESS:PORT"
    )]
    pub kafka_listen: SocketAddr,
    /// What Kafka clients are told to connect to, where that differs
    #[arg(long, env = "MILLRACE_KAFKA_ADVERTISE", value_name = "HOST:PORT", value_parser = host_and_port)]
    pub kafka_advertise: Option<(String, u16)>,
    /// Where health, metrics and the state of tasks are served
    #[arg(long, env = "MILLRACE_HTTP_LISTEN", default_value = "127.0.0.1:9080", value_name = "ADDRESS:PORT")]
    pub http_listen: SocketAddr,
    /// Listen beyond this machine without TLS and accounts
    #[arg(long, env = "MILLRACE_ALLOW_PLAINTEXT", value_parser = FalseyValueParser::new())]
    pub allow_plaintext: bool,
    /// Compression of record batches
    #[arg(long, env = "MILLRACE_LOG_CODEC", default_value = "lz4", value_name = "none|lz4|zstd")]
    pub codec: Codec,
    /// Size of a segment file, in MiB
    #[arg(long, env = "MILLRACE_LOG_SEGMENT_MB", default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub segment_mb: u64,
    /// The largest record, in MiB; a larger one makes its task fail
    #[arg(long, env = "MILLRACE_LOG_MAX_RECORD_MB", default_value_t = 32, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub max_record_mb: u32,
    /// Keep at most this much of a task's log, in MiB; 0 keeps everything
    #[arg(long, env = "MILLRACE_LOG_RETENTION_MB", default_value_t = 0, value_name = "MIB")]
    pub retention_mb: u64,
    /// Keep a task's log for this long, in hours; 0 keeps everything
    #[arg(long, env = "MILLRACE_LOG_RETENTION_HOURS", default_value_t = 168, value_name = "HOURS")]
    pub retention_hours: u64,
    /// How long a new consumer group waits for more members, in milliseconds
    #[arg(long, env = "MILLRACE_GROUP_INITIAL_DELAY_MS", default_value_t = 3000, value_name = "MS")]
    pub group_initial_delay_ms: u64,
    /// How long to try again when the source is away, in minutes
    #[arg(long, env = "MILLRACE_SOURCE_RETRY_MINUTES", default_value_t = 720, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(10..=1440))]
    pub connection_retry_minutes: u64,
    /// How long to try again at other trouble that may pass, in minutes
    #[arg(long, env = "MILLRACE_TASK_RETRY_MINUTES", default_value_t = 10, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub retry_minutes: u64,
}

/// How a task captures, whichever command starts it.
#[derive(Debug, Clone, Args)]
pub struct CaptureArguments {
    /// Write a heartbeat at the source this often, in seconds, so that an idle database keeps no WAL; 0 for never
    #[arg(long, env = "MILLRACE_SOURCE_HEARTBEAT_SECONDS", default_value_t = 10, value_name = "SECONDS")]
    pub heartbeat_seconds: u64,
    /// Warn when the source keeps more WAL than this for a task, in MiB
    #[arg(long, env = "MILLRACE_SOURCE_WAL_LIMIT_MB", default_value_t = 10_240, value_name = "MIB")]
    pub wal_limit_mb: u64,
    /// Take over a replication slot that exists already
    #[arg(long)]
    pub adopt_slot: bool,
    /// Go on although changes are missing: makes a new slot, and a gap event says what is lost
    #[arg(long)]
    pub accept_gap: bool,
}

impl CaptureArguments {
    /// The options for one task.
    pub fn options(&self, task: &str, source: SourceConfig) -> CaptureOptions {
        CaptureOptions {
            task: task.to_owned(),
            source,
            adopt_slot: self.adopt_slot,
            accept_gap: self.accept_gap,
            heartbeat: (self.heartbeat_seconds > 0).then(|| Duration::from_secs(self.heartbeat_seconds)),
            wal_limit: self.wal_limit_mb << 20,
        }
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("write it as HOST:PORT")?;
    let port = port.parse().map_err(|_| format!("{port} is not a port"))?;
    if host.is_empty() { Err("the host is missing".to_owned()) } else { Ok((host.to_owned(), port)) }
}

impl BrokerArguments {
    /// The broker's settings.
    ///
    /// # Errors
    /// An address beyond loopback without `--allow-plaintext`.
    pub fn settings(&self) -> Result<Settings, Failure> {
        for (flag, address) in [("--kafka-listen", self.kafka_listen), ("--http-listen", self.http_listen)] {
            if !address.ip().is_loopback() && !self.allow_plaintext {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "{flag} {address} is open to other machines, and anyone there could read everything; \
                         listen on 127.0.0.1, or give --allow-plaintext if the network is yours"
                    ),
                ));
            }
        }
        Ok(Settings {
            data_dir: self.data_dir.clone(),
            kafka_listen: self.kafka_listen,
            kafka_advertise: self.kafka_advertise.clone(),
            http_listen: self.http_listen,
            codec: self.codec,
            segment_bytes: self.segment_mb << 20,
            max_record_bytes: (self.max_record_mb as usize) << 20,
            retention_bytes: (self.retention_mb > 0).then_some(self.retention_mb << 20),
            retention_age: (self.retention_hours > 0)
                .then(|| Duration::from_secs(self.retention_hours * 3600)),
            group_initial_delay: Duration::from_millis(self.group_initial_delay_ms),
            retry: RetryTimes {
                connection: Duration::from_secs(self.connection_retry_minutes * 60),
                other: Duration::from_secs(self.retry_minutes * 60),
            },
        })
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Failure::failed(error)
    }
}

/// Opens the data directory and its state.
pub async fn open_state(settings: &Settings) -> Result<(DataDir, Arc<Store>), Failure> {
    let path = settings.data_dir.clone();
    tokio::task::spawn_blocking(move || {
        let data_dir = DataDir::open(&path)?;
        let store = Store::open(&data_dir)?;
        Ok((data_dir, Arc::new(store)))
    })
    .await
    .map_err(Failure::failed)?
    .map_err(|error: crate::state::StateError| Failure::failed(error))
}

/// The tasks of a data directory.
pub fn saved_tasks(store: &Store) -> Result<Vec<TaskDefinition>, Failure> {
    let rows = store.tasks().map_err(Failure::failed)?;
    let read = |row: TaskRow| {
        serde_json::from_str(&row.definition).map_err(|error| {
            Failure::failed(format!(
                "task {} cannot be read as it is saved: {error}; was it made by a newer millrace?",
                row.name
            ))
        })
    };
    rows.into_iter().map(read).collect()
}

/// `millrace serve`
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    broker: BrokerArguments,
    #[command(flatten)]
    capture: CaptureArguments,
}

impl Serve {
    pub async fn run(self) -> Result<(), Failure> {
        let settings = self.broker.settings()?;
        let listeners = Listeners::bind(&settings).await?;
        let (data_dir, store) = open_state(&settings).await?;
        let mut starts = Vec::new();
        for definition in saved_tasks(&store)? {
            let source = SourceConfig::parse(&definition.source).map_err(Failure::failed)?;
            let capture = self.capture.options(&definition.name, source);
            starts.push(TaskStart { definition, capture });
        }
        if starts.is_empty() {
            tracing::warn!(
                "there is no task in {}; make one with `millrace up`",
                settings.data_dir.display()
            );
        }
        let broker = Broker::start(&settings, listeners, data_dir, store, starts).await?;
        wait_for_signal().await;
        broker.stop().await;
        Ok(())
    }
}

/// Returns at SIGTERM or SIGINT.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        },
        _ => std::future::pending().await,
    }
}
