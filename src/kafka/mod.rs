//! The Kafka front end: a connection loop, one file per API in [`api`], and the one table that dispatch and
//! ApiVersions come from.
//!
//! An API file declares an [`Api`]: its key, the versions served, the shape of its request, and its handler. The shape
//! is walked before the protocol crate decodes the body, because the crate trusts array counts (I8).

pub mod api;
pub mod broker_settings;
pub mod connection;
mod frame;
pub mod reply;
pub mod request;
pub mod shape;
pub mod topic_settings;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kafka_protocol::messages::ApiKey;

use crate::group::Coordinator;
use crate::log::topics::Topics;
use crate::produce::ClientTopics;

use self::api::fetch::{FetchMemory, FetchSessions};
use self::connection::Limits;
use self::topic_settings::TopicSettings;

pub use reply::Reply;
pub use request::{Request, RequestError};

/// What every handler may use: the broker as its Kafka clients see it.
#[derive(Debug)]
pub struct Broker {
    /// Stable over restarts; changes only when offsets become invalid.
    pub cluster_id: String,
    /// Host that clients are told to connect to.
    pub advertised_host: String,
    /// Port that clients are told to connect to.
    pub advertised_port: u16,
    /// Whether only users of this machine reach the listener. There are no accounts yet, so who comes from elsewhere may
    /// only read.
    pub local_only: bool,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// What a client may take of us.
    pub limits: Limits,
    /// The topics there are.
    pub topics: Topics,
    /// Consumer groups and their committed offsets.
    pub groups: Arc<Coordinator>,
    /// The settings of topics, and what operators have changed of them.
    pub topic_settings: TopicSettings,
    /// What answers to Fetch may occupy.
    pub fetch_memory: FetchMemory,
    /// Topics that clients make and write; `None` but for tests.
    pub client_topics: Option<ClientTopics>,
    /// What clients fetch, as far as the broker remembers it for them.
    pub fetch_sessions: FetchSessions,
}

/// This broker's node id: there is one node.
pub const NODE_ID: i32 = 0;

/// One Kafka API as this broker serves it.
#[derive(Debug)]
pub struct Api {
    /// Its key.
    pub key: ApiKey,
    /// First and last version served.
    pub versions: (i16, i16),
    /// First version with compact strings, compact arrays and tagged fields.
    pub flexible_from: i16,
    /// What the request's body looks like, to check counts and lengths before decoding.
    pub shape: &'static [shape::Field],
    /// Answers a request. Cancelled by being dropped, when the client closes.
    pub handle: for<'a> fn(&'a Request) -> BoxFuture<'a, Result<Reply, RequestError>>,
}
