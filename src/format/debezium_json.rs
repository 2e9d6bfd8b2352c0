//! Debezium JSON.
