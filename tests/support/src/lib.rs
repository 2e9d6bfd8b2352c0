//! Real servers and processes for the tests: PostgreSQL of any installed major version, with a standby and a proxy before
//! it, Apache Kafka's broker, and Millrace itself.
//!
//! Whatever a test starts ends with it: each process is owned by a value whose `Drop` ends it and removes its files,
//! also while a panic unwinds, and the kernel ends it when the test process dies without unwinding (see [`child`]).
//! Everything panics with a message on failure: a test has no use for the error.

mod apache_kafka;
mod child;
mod millrace;
mod postgres;
mod proxy;
mod random;
mod topic;

pub use apache_kafka::{ApacheKafka, CLUSTER_ID, libraries as apache_kafka_libraries};
pub use millrace::{Millrace, MillraceOptions};
pub use postgres::{PASSWORD, Postgres, PostgresOptions};
pub use proxy::Proxy;
pub use random::{Random, seed};
pub use topic::{RawRecord, Record, parse_lsn, read_raw_topic, read_topic};

/// A TCP port of 127.0.0.1 that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("read the bound address").port()
}
