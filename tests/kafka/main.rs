//! The Kafka front end at a real port: hostile clients, and real ones.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod administration;
mod alter_configs;
mod apis;
mod client_topics;
mod consumer_groups;
mod delete_records;
mod fetch;
mod fetch_sessions;
mod full_disk;
mod groups;
mod groups_mixed;
mod hostile;
mod librdkafka;
mod memory_log;
mod operators;
mod produce;
mod support;
mod traps;
mod versions;
mod writable;
