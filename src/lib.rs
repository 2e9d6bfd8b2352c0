//! Millrace: a change broker for PostgreSQL that speaks Kafka. The map of the house, from the source to the consumer.

#[cfg(feature = "bench")]
pub mod bench;
pub mod broker;
pub mod capture;
pub mod change;
pub mod cli;
pub mod config;
pub mod format;
pub mod group;
pub mod grpc;
pub mod http;
pub mod kafka;
pub mod log;
pub mod postgres;
pub mod produce;
pub mod proto;
pub mod state;
pub mod task;
