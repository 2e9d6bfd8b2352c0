//! What a user's tables and transactions look like in the topic: real PostgreSQL, `millrace up`, librdkafka.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod catalogue;
mod creation;
mod existing;
mod generated;
mod hindrances;
mod keys;
mod large;
mod limits;
mod objects;
mod odd_keys;
mod outputs;
mod oversized;
mod partitions;
mod protobuf;
mod publishing;
mod reading;
mod roots;
mod rows;
mod settings;
mod shapes;
mod stage;
mod tables;
mod transactions;
mod types;
