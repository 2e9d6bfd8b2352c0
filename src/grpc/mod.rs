//! The gRPC front end: `millrace.v1.Subscriber`, reflection and health, on the HTTP port.
//!
//! ```text
//!  http ──> admission ──> service ──┬──> list_topics, fetch, offsets      one file for each kind of call
//!           (limits, deadlines)     └──> subscribe ──> a task per stream
//!                                          ├── session    requests in, records and answers out
//!                                          ├── credit     what the client allows
//!                                          ├── cursors    where it is in each partition, and whose turn it is
//!                                          ├── outbox     what waits to be sent
//!                                          └── start      where it begins
//!                                        records          stored batches into the records of a message
//! ```
//!
//! What is sent to a client is bounded by its credit and by [`MAX_MESSAGE_BYTES`] or one record; larger ones share a
//! budget among all clients. What clients send is bounded by [`MAX_REQUEST_BYTES`], and counts are checked
//! before anything is kept (I8).

mod admission;
mod fetch;
mod health;
mod list_topics;
mod media_types;
mod offsets;
mod records;
mod request;
mod service;
mod status;
mod subscribe;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server as reflection;

use crate::group::Coordinator;
use crate::log::topics::Topics;
use crate::proto::DESCRIPTORS;
use crate::proto::subscriber_server::SubscriberServer;

use self::admission::Admission;
pub use self::health::follow_readiness;
pub use self::media_types::MediaTypes;
use self::service::Service;

/// Size of what a client may send in one message.
const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Sizes of the records in one message to a client, unless a single one is larger.
const MAX_MESSAGE_BYTES: u64 = 512 * 1024;
/// Records in one message of a stream.
const MAX_MESSAGE_RECORDS: usize = 1_000;
/// Partitions that a call may name, or that a topic without partitions named may stand for.
const MAX_PARTITIONS: usize = 10_000;
/// Calls at a time, streams included, besides one on each connection.
const MAX_CALLS: usize = 1_000;

/// What the calls work with.
#[derive(Debug, Clone)]
pub struct Broker {
    /// The topics.
    pub topics: Topics,
    /// What is in them.
    pub media_types: MediaTypes,
    /// Consumer groups.
    pub groups: Arc<Coordinator>,
    /// Ends the streams.
    pub stop: CancellationToken,
}

/// The services, to be served with others, and what tells the health service how things are.
///
/// # Errors
/// When the descriptors are none; they are our own.
pub fn router(broker: Broker) -> Result<(Router, HealthReporter), reflection::Error> {
    let subscriber = SubscriberServer::new(Service::new(broker));
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let reflected = || {
        reflection::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(subscriber.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(health.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(reflected().build_v1()?.max_decoding_message_size(MAX_REQUEST_BYTES))
        // What most tools still ask.
        .add_service(reflected().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST_BYTES));
    let admission = Admission(Arc::new(Semaphore::new(MAX_CALLS)));
    let router = routes
        .into_axum_router()
        .reset_fallback()
        .route_layer(from_fn_with_state(admission, admission::admit))
        .route_layer(from_fn(admission::only_grpc));
    Ok((router, reporter))
}
