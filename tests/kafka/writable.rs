//! A broker whose topics clients make and write.

use std::sync::Arc;

use millrace::kafka::connection::Limits;
use millrace::log::local::{Files, Options, RealFiles};
use millrace::log::record_batch::Codec;
use millrace::log::topics::Topics;
use millrace::produce::{ClientTopics, LOG_NAME};
use rdkafka::config::ClientConfig;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::Server;

/// A broker whose topics clients write.
pub struct Writable {
    pub server: Server,
    pub topics: Topics,
    writer: JoinHandle<()>,
    directory: Arc<TempDir>,
}

impl Writable {
    pub async fn start() -> Writable {
        Writable::start_on(Arc::new(RealFiles)).await
    }

    pub async fn start_on(files: Arc<dyn Files>) -> Writable {
        Writable::open(Arc::new(TempDir::new().unwrap()), files).await
    }

    async fn open(directory: Arc<TempDir>, files: Arc<dyn Files>) -> Writable {
        let topics = Topics::default();
        let options = Options { files, ..Options::new(directory.path(), LOG_NAME) };
        let (ours, writer) = ClientTopics::open(options, Codec::Lz4, topics.clone()).await.unwrap();
        let writer = tokio::spawn(writer);
        let limits = Limits { request_bytes: millrace::produce::MAX_REQUEST_BYTES, ..Limits::default() };
        let server = Server::start_writable(topics.clone(), limits, ours).await;
        Writable { server, topics, writer, directory }
    }

    /// Stops and starts again on the same files.
    pub async fn restart(self) -> Writable {
        let Writable { mut server, writer, directory, .. } = self;
        server.shutdown.cancel();
        (&mut server.served).await.unwrap();
        writer.await.unwrap();
        Writable::open(directory, Arc::new(RealFiles)).await
    }

    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.server.address.to_string());
        config
    }
}
