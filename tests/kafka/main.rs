//! The Kafka front end at a real port: hostile clients, and real ones.

mod hostile;
mod support;
