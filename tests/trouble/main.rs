//! Bad input and bad luck, with the real binary and a real PostgreSQL: what a person is told, and that nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backup;
mod consumer;
mod data_dir;
mod disk;
mod slot;
mod source;
mod stage;
mod stopping;
mod usage;
