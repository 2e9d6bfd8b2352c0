//! Apache Kafka's own command-line tools against Millrace, with a PostgreSQL behind it: what they print is what their
//! users see. `make test-tools`.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod cluster;
mod configs;
mod consoles;
mod groups;
mod offsets;
mod reading;
mod stage;
mod tool;
mod topics;
