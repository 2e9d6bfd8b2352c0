//! `millrace serve`: the tasks that a data directory holds. And what it shares with `up`.

use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;

use super::config::ConfigArguments;
use super::{Failure, tasks};
use crate::broker::{Broker, BrokerError, Listeners, Settings, TaskStart};
use crate::capture::session::CaptureOptions;
use crate::capture::snapshot_requests::SnapshotRequests;
use crate::config::Config;
use crate::postgres::source::SourceConfig;
use crate::state::{DataDir, StateError, Store};
use crate::task::TaskDefinition;

/// What a start may do that is out of the ordinary.
#[derive(Debug, Clone, Copy, Args)]
pub struct StartArguments {
    /// Take over a replication slot that exists already
    #[arg(long)]
    pub adopt_slot: bool,
    /// Go on although changes are missing: makes a new slot, and a gap event says what is lost
    #[arg(long)]
    pub accept_gap: bool,
}

impl StartArguments {
    /// How a task captures.
    pub fn capture(
        self,
        config: &Config,
        task: &TaskDefinition,
        source: SourceConfig,
        store: &Arc<Store>,
    ) -> Result<CaptureOptions, StateError> {
        Ok(CaptureOptions {
            task: task.name.clone(),
            source,
            publish: task.publish.clone(),
            read: config.read.clone(),
            objects: Arc::new(watch::Sender::new(task.objects.clone())),
            snapshots: Arc::new(SnapshotRequests::open(store.clone(), &task.name)?),
            start: task.start,
            adopt_slot: self.adopt_slot,
            accept_gap: self.accept_gap,
            heartbeat: config.heartbeat,
            wal_limit: config.wal_limit,
            join_at_creation: config.join_at_creation,
            catch_up: config.catch_up,
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

/// `millrace serve`
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArguments,
    #[command(flatten)]
    start: StartArguments,
}

impl Serve {
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.config.load().await?.config;
        let settings = &config.broker;
        let listeners = Listeners::bind(settings).await?;
        let (data_dir, store) = open_state(settings).await?;
        let tasks = tasks::apply(&store, &config.tasks)?;
        let unchecked = tasks::unchecked(&store)?;
        let start = |(definition, source): (TaskDefinition, SourceConfig)| {
            let capture = self.start.capture(&config, &definition, source, &store)?;
            let is_unchecked = unchecked.contains(&definition.name);
            Ok(TaskStart { capture, definition, is_unchecked })
        };
        let starts = tasks.into_iter().map(start).collect::<Result<Vec<_>, StateError>>();
        let starts = starts.map_err(Failure::failed)?;
        if starts.is_empty() && !settings.unsafe_produce {
            tracing::warn!(
                "there is no task in {}; make one with `millrace up`, or name one in a file for --config",
                settings.data_dir.display()
            );
        }
        // Who finds the broker ready may stop it at once.
        let stop = wait_for_signal();
        let broker = Broker::start(settings, listeners, data_dir, store, starts).await?;
        stop.await;
        broker.stop().await;
        Ok(())
    }
}

/// Takes SIGTERM and SIGINT from now on; the future ends at the first of them.
pub fn wait_for_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        match signals {
            (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            },
            _ => std::future::pending().await,
        }
    }
}
