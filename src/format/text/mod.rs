//! PostgreSQL's text forms of values, read: what the formats have in common.
//!
//! The forms are those of a session with `DateStyle = ISO` and `IntervalStyle = postgres`, which the replication
//! connection sets. A function gives `None` when the text is not of its type.

pub(super) mod array;
pub(super) mod bytea;
pub(super) mod hstore;
pub(super) mod money;
pub(super) mod record;
pub(crate) mod time;
