//! Consumer groups: who is in, who leads, who reads what, and how far they have come.
//!
//! ```text
//!  kafka::api ──► Coordinator ──► protocol::Group     pure state machines, one a group, behind one lock:
//!  subscriber ──►   │    ▲        classic::Group        members share out partitions among themselves
//!                   │    │        consumer::Group       the broker shares them out (KIP-848)
//!                   │    └── one timer task           ticks the groups whose time has come
//!                   └──────► state::OffsetStore       committed offsets, durable before they are answered (I6)
//! ```
//!
//! Members live in memory: after a restart their next heartbeat is refused with `UNKNOWN_MEMBER_ID`, or their next
//! commit with that or, where none was before, `ILLEGAL_GENERATION`, and they join again, which takes them a moment
//! (Apache Kafka keeps its members over a restart). Committed offsets survive, so nobody reads anything twice that it had
//! committed, or skips anything.
//!
//! Offsets are kept for as long as their group has members, and for a while after (Apache Kafka forgets before that those
//! of topics that the members have not subscribed to).

mod assignor;
pub mod catalog;
pub mod classic;
pub mod consumer;
mod consumer_protocol;
mod coordinator;
pub mod member;
pub mod protocol;
pub mod subscriber;

use std::time::Duration;

pub(crate) use coordinator::new_member_id;
pub use coordinator::{Commit, CommitEntry, Coordinator, GroupLag, Listed};

/// Bounds and times of the coordinator. The defaults are Kafka's, where Kafka has one.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a new group waits for more members before its first generation.
    pub initial_rebalance_delay: Duration,
    /// Shortest session timeout that a member may ask for.
    pub min_session_timeout: Duration,
    /// Longest session timeout that a member may ask for.
    pub max_session_timeout: Duration,
    /// Without a heartbeat for so long a member of the consumer protocol is taken for dead.
    pub consumer_session_timeout: Duration,
    /// How often members of the consumer protocol are told to send heartbeats.
    pub consumer_heartbeat_interval: Duration,
    /// How long the coordinator waits after the first news of topics, so that many that are made together are one
    /// rebalance.
    pub topics_settle: Duration,
    /// Members of one group.
    pub max_group_size: usize,
    /// Groups, with or without members.
    pub max_groups: usize,
    /// Bytes of subscriptions or of one assignment that a member may have.
    pub max_member_bytes: usize,
    /// Memory for all members of all groups, above all their subscriptions and assignments.
    pub max_bytes: usize,
    /// Bytes of the string that a consumer may commit with an offset.
    pub max_offset_metadata: usize,
    /// How long offsets are kept after their group has lost its last member.
    pub offset_retention: Duration,
    /// How often offsets are looked through for those whose time is over.
    pub retention_check: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            initial_rebalance_delay: Duration::from_secs(3),
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_secs(30 * 60),
            consumer_session_timeout: Duration::from_secs(45),
            consumer_heartbeat_interval: Duration::from_secs(5),
            topics_settle: Duration::from_millis(200),
            max_group_size: 1_000,
            max_groups: 10_000,
            max_member_bytes: 1 << 20,
            max_bytes: 256 << 20,
            max_offset_metadata: 4096,
            offset_retention: Duration::from_secs(7 * 24 * 3600),
            retention_check: Duration::from_secs(600),
        }
    }
}
