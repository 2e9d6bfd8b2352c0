//! Puts the parts together, starts them, and stops them in order.
//!
//! Start: data directory, state, logs, groups, listeners, then the tasks: a client never finds a topic missing that the
//! broker has. Stop: the tasks first, so that the group in flight is written and acknowledged; then groups, so that
//! members are told to rejoin; then the listeners.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::capture::output::Output;
use crate::capture::pipeline::Pipeline;
use crate::capture::session::{Capture, CaptureOptions};
use crate::capture::spool::Spools;
use crate::group::{self, Coordinator};
use crate::grpc;
use crate::http::tls::TlsError;
use crate::http::{self, Site};
use crate::kafka;
use crate::kafka::topic_settings::{Defaults, TopicSettings};
use crate::log::local::{self, LocalLog, LocalReader, LocalWriter};
use crate::log::record_batch::Codec;
use crate::log::topics::{Announcer, Topics};
use crate::log::{LogError, LogReader, LogWriter, Retention};
use crate::produce::{self, ClientTopics};
use crate::state::{DataDir, OffsetStore, StateError, Store};
use crate::task::definition::{DefinitionError, TaskDefinition, check_output_names};
use crate::task::precheck::Checks;
use crate::task::supervisor::{RetryTimes, Supervisor, Task};

/// Upper bounds of the buckets of times, in seconds.
const SECONDS_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How often what histograms have gathered is swept into their buckets.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long a listener may take to end its connections.
const LISTENER_GRACE: Duration = Duration::from_secs(3);

/// How the broker serves and keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where Kafka clients connect.
    pub kafka_listen: SocketAddr,
    /// What Kafka clients are told to connect to; the listener's own address when absent.
    pub kafka_advertise: Option<(String, u16)>,
    /// Let Kafka clients make and write topics, for tests.
    pub unsafe_produce: bool,
    /// Where HTTP listens.
    pub http_listen: SocketAddr,
    /// Certificate chain of the HTTP port, a PEM file; with its key it makes the port speak TLS.
    pub http_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, a PEM file.
    pub http_tls_key: Option<PathBuf>,
    /// Compression of record batches.
    pub codec: Codec,
    /// Size of a log's segment files, in bytes.
    pub segment_bytes: u64,
    /// A larger record makes its task fail, in bytes.
    pub max_record_bytes: usize,
    /// A task's log is cut to this size, in bytes; `None` for never.
    pub retention_bytes: Option<u64>,
    /// Segments older than this are removed; `None` for never.
    pub retention_age: Option<Duration>,
    /// How long a new consumer group waits for more members before its first assignment.
    pub group_initial_delay: Duration,
    /// How long offsets are kept after their group has lost its last member; `None` for ever.
    pub group_offset_retention: Option<Duration>,
    /// A member of a consumer group by KIP-848 is gone after this long without a heartbeat.
    pub group_consumer_session_timeout: Duration,
    /// How long trouble is borne.
    pub retry: RetryTimes,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            data_dir: PathBuf::from("./millrace-data"),
            kafka_listen: SocketAddr::from(([127, 0, 0, 1], 9092)),
            kafka_advertise: None,
            unsafe_produce: false,
            http_listen: SocketAddr::from(([127, 0, 0, 1], 9080)),
            http_tls_cert: None,
            http_tls_key: None,
            codec: Codec::default(),
            segment_bytes: 256 << 20,
            max_record_bytes: 32 << 20,
            retention_bytes: None,
            retention_age: Some(Duration::from_secs(168 * 3600)),
            group_initial_delay: Duration::from_secs(3),
            group_offset_retention: Some(Duration::from_secs(168 * 3600)),
            group_consumer_session_timeout: Duration::from_secs(45),
            retry: RetryTimes::default(),
        }
    }
}

/// A task to start.
#[derive(Debug, Clone)]
pub struct TaskStart {
    /// What it is to do.
    pub definition: TaskDefinition,
    /// How it captures.
    pub capture: CaptureOptions,
    /// Whether its source has still to pass the checks.
    pub is_unchecked: bool,
}

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The data directory or what lies in it.
    #[error(transparent)]
    State(#[from] StateError),
    /// Tasks that cannot be served together.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// A task's log.
    #[error("cannot open the log of task {task}: {source}")]
    Log {
        /// The task.
        task: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// The log of topics that clients write.
    #[error("cannot open the log of topics that clients write: {0}")]
    ProducedLog(#[source] LogError),
    /// A port.
    #[error(
        "cannot listen on {address} for {what}: {source}; stop what uses it, or choose another with {flag}"
    )]
    Listen {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The flag that changes it.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate of the HTTP port.
    #[error("cannot serve HTTP with TLS: {0}")]
    Tls(#[from] TlsError),
    /// The gRPC services.
    #[error("cannot serve gRPC: {0}")]
    Grpc(#[from] tonic_reflection::server::Error),
    /// The spool directory.
    #[error("cannot prepare {path}: {source}")]
    Spool {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The metrics recorder.
    #[error("cannot start metrics: {0}")]
    Metrics(String),
}

/// A running broker.
pub struct Broker {
    /// The tasks.
    pub tasks: Arc<Vec<Arc<Task>>>,
    /// Where Kafka clients are told to connect, as `host:port`.
    pub kafka_address: String,
    /// Where HTTP listens.
    pub http_address: SocketAddr,
    supervisors: Vec<Supervisor>,
    groups: Arc<Coordinator>,
    listeners_stop: CancellationToken,
    listeners: Vec<JoinHandle<()>>,
    _data_dir: DataDir,
}

/// Listeners that are bound before anything else is touched, so that a taken port leaves no trace.
pub struct Listeners {
    kafka: TcpListener,
    http: TcpListener,
    http_tls: Option<TlsAcceptor>,
}

impl Listeners {
    /// Binds both, and reads the certificate.
    ///
    /// # Errors
    /// [`BrokerError::Listen`], [`BrokerError::Tls`].
    pub async fn bind(settings: &Settings) -> Result<Self, BrokerError> {
        let bind = async |address, what, flag| {
            TcpListener::bind(address).await.map_err(|source| BrokerError::Listen {
                what,
                address,
                flag,
                source,
            })
        };
        let (cert, key) = (settings.http_tls_cert.as_deref(), settings.http_tls_key.as_deref());
        let http_tls = http::tls::acceptor(cert, key).await?;
        Ok(Listeners {
            http_tls,
            kafka: bind(settings.kafka_listen, "Kafka", "--kafka-listen").await?,
            http: bind(settings.http_listen, "HTTP", "--http-listen").await?,
        })
    }
}

impl Broker {
    /// Starts a broker with these tasks.
    ///
    /// # Errors
    /// Whatever keeps a part from starting.
    pub async fn start(
        settings: &Settings,
        listeners: Listeners,
        data_dir: DataDir,
        store: Arc<Store>,
        starts: Vec<TaskStart>,
    ) -> Result<Broker, BrokerError> {
        raise_open_files();
        check_output_names(starts.iter().map(|start| &start.definition))?;
        let recorder = install_recorder()?;
        let topics = Topics::default();
        let address = |listener: &TcpListener, configured| listener.local_addr().unwrap_or(configured);
        let kafka_address = address(&listeners.kafka, settings.kafka_listen);
        let http_address = address(&listeners.http, settings.http_listen);

        let topic_settings = TopicSettings::open(store.clone(), Defaults::from(settings))?;

        // Before those of tasks, which are shown where both have a topic of one name.
        let client_topics = match settings.unsafe_produce {
            true => Some(open_client_topics(settings, &topic_settings, &data_dir, &topics).await?),
            false => None,
        };
        let (client_topics, client_topics_writer) = client_topics.unzip();

        let mut tasks = Vec::new();
        let mut captures = Vec::new();
        let mut announcers = Vec::new();
        for start in starts {
            let task = Arc::new(Task::new(start.definition.clone(), &start.capture, store.clone()));
            let directory = data_dir.join("tasks").join(&start.definition.name);
            let options =
                log_options(settings, &topic_settings, &start.definition.name, directory.join("log"));
            let (writer, reader) = open_log(options).await?;
            let pipeline =
                build_pipeline(settings, writer, &reader, &start, &task, directory.join("spool")).await?;
            let checks = start.is_unchecked.then(|| Checks {
                source: start.capture.source.clone(),
                adopt_slot: start.capture.adopt_slot,
            });
            announcers.push(Announcer::new(topics.clone(), reader));
            let capture = Capture::new(start.capture, pipeline, store.clone(), task.progress.clone());
            captures.push((capture, checks));
            tasks.push(task);
        }

        let offsets = OffsetStore::open(&data_dir)?;
        let options = group::Options {
            initial_rebalance_delay: settings.group_initial_delay,
            offset_retention: settings.group_offset_retention.unwrap_or(Duration::MAX),
            consumer_session_timeout: settings.group_consumer_session_timeout,
            // By Kafka's defaults too, a session is nine heartbeats.
            consumer_heartbeat_interval: settings.group_consumer_session_timeout / 9,
            ..group::Options::default()
        };
        let groups = Coordinator::open(options, offsets, topics.clone());
        let (advertised, advertised_host, advertised_port) = match &settings.kafka_advertise {
            Some((host, port)) => (format!("{host}:{port}"), host.clone(), *port),
            None => (kafka_address.to_string(), kafka_address.ip().to_string(), kafka_address.port()),
        };
        let defaults = kafka::connection::Limits::default();
        let limits = match settings.unsafe_produce {
            true => kafka::connection::Limits { request_bytes: produce::MAX_REQUEST_BYTES, ..defaults },
            false => defaults,
        };
        let kafka_broker = Arc::new(kafka::Broker {
            cluster_id: store.cluster_id().to_owned(),
            local_only: kafka_address.ip().is_loopback(),
            data_dir: data_dir.path().into(),
            limits,
            advertised_host,
            advertised_port,
            topics: topics.clone(),
            groups: groups.clone(),
            topic_settings,
            fetch_memory: Default::default(),
            client_topics,
            fetch_sessions: Default::default(),
        });
        let tasks = Arc::new(tasks);
        let site = Site {
            tasks: tasks.clone(),
            groups: groups.clone(),
            data_dir: data_dir.path().into(),
            admin_token: data_dir.admin_token().clone(),
            metrics: recorder.clone(),
        };
        let listeners_stop = CancellationToken::new();
        let outputs = tasks.iter().flat_map(|task| &task.definition.outputs);
        let media_types = outputs.map(|output| (output.name.clone(), output.format.media_type()));
        let (grpc_router, health) = grpc::router(grpc::Broker {
            topics,
            media_types: media_types.collect(),
            groups: groups.clone(),
            stop: listeners_stop.clone(),
        })?;
        let kafka_stop = listeners_stop.clone();
        let http_stop = listeners_stop.clone();
        let mut serving = vec![
            tokio::spawn(async move {
                kafka::connection::serve(listeners.kafka, kafka_broker, kafka_stop).await;
            }),
            tokio::spawn(keep_histograms_small(recorder, listeners_stop.clone())),
            tokio::spawn(http::serve(listeners.http, listeners.http_tls, site, grpc_router, http_stop)),
            tokio::spawn(grpc::follow_readiness(tasks.clone(), health, listeners_stop.clone())),
        ];
        for announcer in announcers {
            let stop = listeners_stop.clone();
            serving.push(tokio::spawn(async move {
                stop.run_until_cancelled(announcer.run()).await;
            }));
        }
        // Last, because it ends when the Kafka listener is gone.
        serving.extend(client_topics_writer.map(tokio::spawn));
        let supervisors = tasks
            .iter()
            .zip(captures)
            .map(|(task, ((capture, flow), checks))| {
                Supervisor::start(task.clone(), capture, flow, settings.retry, checks)
            })
            .collect();
        info!(kafka = %kafka_address, http = %http_address, "serving");
        Ok(Broker {
            tasks,
            kafka_address: advertised,
            http_address,
            supervisors,
            groups,
            listeners_stop,
            listeners: serving,
            _data_dir: data_dir,
        })
    }

    /// Stops everything in order.
    pub async fn stop(self) {
        join_all(self.supervisors.into_iter().map(Supervisor::stop)).await;
        self.groups.shutdown().await;
        self.listeners_stop.cancel();
        for mut listener in self.listeners {
            match timeout(LISTENER_GRACE, &mut listener).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(%error, "a listener ended badly"),
                // A client that does not take its answer.
                Err(_) => listener.abort(),
            }
        }
        info!("stopped");
    }
}

/// Each connection is an open file, and shells start programs with a limit of about a thousand, far below what they are
/// allowed to raise it to.
pub(crate) fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on a structure of our own.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        warn!(error = %io::Error::last_os_error(), "cannot raise the limit of open files");
    }
}

/// The recorder behind `metrics!`; a process has one. Histograms with fixed buckets can be added up over brokers.
fn install_recorder() -> Result<PrometheusHandle, BrokerError> {
    let failed = |error: metrics_exporter_prometheus::BuildError| BrokerError::Metrics(error.to_string());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
        .map_err(failed)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| BrokerError::Metrics(error.to_string()))?;
    Ok(handle)
}

/// Histograms keep every sample until they are rendered or swept: with nobody who scrapes, for ever.
async fn keep_histograms_small(recorder: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(SWEEP_INTERVAL)).await.is_some() {
        recorder.run_upkeep();
    }
}

impl From<&Settings> for Defaults {
    fn from(settings: &Settings) -> Defaults {
        Defaults {
            retention: Retention { bytes: settings.retention_bytes, age: settings.retention_age },
            segment_bytes: settings.segment_bytes,
            max_record_bytes: settings.max_record_bytes,
        }
    }
}

/// How a log is kept.
fn log_options(
    settings: &Settings,
    topic_settings: &TopicSettings,
    name: &str,
    directory: PathBuf,
) -> local::Options {
    local::Options {
        segment_bytes: settings.segment_bytes,
        max_record_bytes: settings.max_record_bytes,
        retention: topic_settings.retention(name),
        ..local::Options::new(directory, name)
    }
}

async fn open_log(options: local::Options) -> Result<(LocalWriter, Arc<LocalReader>), BrokerError> {
    let task = options.name.clone();
    let failed = |source| BrokerError::Log { task: task.clone(), source };
    tokio::task::spawn_blocking(move || LocalLog::open(options))
        .await
        .map_err(|_| failed(LogError::Stopped))?
        .map(|(writer, reader, _)| (writer, reader))
        .map_err(failed)
}

/// Opens the topics that clients may write, and says that it is no broker for anything that matters.
async fn open_client_topics(
    settings: &Settings,
    topic_settings: &TopicSettings,
    data_dir: &DataDir,
    topics: &Topics,
) -> Result<(ClientTopics, impl Future<Output = ()> + Send + 'static), BrokerError> {
    warn!(
        "kafka.unsafe_produce is on: every Kafka client may make, write and delete topics; this is for tests of clients \
         and tools alone"
    );
    let directory = data_dir.join("produced").join("log");
    let options = log_options(settings, topic_settings, produce::LOG_NAME, directory);
    ClientTopics::open(options, settings.codec, topics.clone()).await.map_err(BrokerError::ProducedLog)
}

/// Makes the task's topics and builds its pipeline.
async fn build_pipeline(
    settings: &Settings,
    mut writer: LocalWriter,
    reader: &Arc<LocalReader>,
    start: &TaskStart,
    task: &Task,
    spool: PathBuf,
) -> Result<Pipeline<LocalWriter>, BrokerError> {
    let definition = &start.definition;
    let failed = |source| BrokerError::Log { task: definition.name.clone(), source };
    let topics = reader.topics().borrow().clone();
    let mut outputs = Vec::new();
    for output in &definition.outputs {
        let routing = output.routing(settings.codec);
        let format = output.format.make(&output.name, &start.capture.source.dbname);
        outputs.push(Output::open(format, routing, &topics, &mut writer).map_err(failed)?);
    }
    // So that clients find the topics of a task that has not captured anything yet.
    if let Err(error) = writer.flush().await {
        if !error.is_retryable() {
            return Err(failed(error));
        }
        warn!(task = definition.name, %error, "new topics cannot be made durable yet; the next commit tries again");
    }
    let path = spool.clone();
    let spools = tokio::task::spawn_blocking(move || Spools::open(&path))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|source| BrokerError::Spool { path: spool, source })?;
    Ok(Pipeline::new(writer, reader.clone(), outputs, spools, task.progress.clone()))
}
