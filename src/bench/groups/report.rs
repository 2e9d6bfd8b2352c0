//! What was measured, as a table or as one JSON object, and what it should have been.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::bench::report::rounded;

/// The fewest partition commits a second.
const COMMITS: f64 = 50_000.0;
/// The longest that 99 of 100 commits may take during ingest, in milliseconds.
const COMMIT_MS: f64 = 20.0;
/// The longest that 99 of 100 heartbeats may take under fetch load, in milliseconds.
const HEARTBEAT_MS: f64 = 50.0;

/// How long requests took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Times {
    requests: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Times {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        // The least that so many percent do not exceed.
        let percentile = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            rounded(times.get(rank.saturating_sub(1)).copied().unwrap_or_default().as_secs_f64() * 1e3)
        };
        Times {
            requests: times.len(),
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            max_ms: percentile(100),
        }
    }
}

/// A measurement.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) connections: u32,
    pub(super) groups: u32,
    pub(super) partitions: u32,
    pub(super) rows: u64,
    pub(super) bytes_per_connection: f64,
    pub(super) bytes_per_group: f64,
    /// Partitions, not requests.
    pub(super) commits_per_s: f64,
    pub(super) commit: Times,
    pub(super) commit_during_ingest: Times,
    pub(super) heartbeat_under_load: Times,
    pub(super) fetched_mb_per_s: f64,
    /// Resident memory of the broker at the end, in 10^6 bytes.
    pub(super) memory_mb: f64,
}

impl Report {
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |reached: bool| if reached { "reaches the aim" } else { "misses the aim" };
        let times = |f: &mut fmt::Formatter<'_>, what, times: &Times, end: &str| {
            let Times { requests, p50_ms, p99_ms, max_ms } = times;
            writeln!(f, "{what:<32} p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms of {requests}{end}")
        };
        let kib = |bytes: f64| rounded(bytes / 1024.0);
        writeln!(
            f,
            "{:<32} {} KiB each of {}",
            "idle connections",
            kib(self.bytes_per_connection),
            self.connections
        )?;
        writeln!(
            f,
            "{:<32} {} KiB each of {}",
            "groups of one member",
            kib(self.bytes_per_group),
            self.groups
        )?;
        let commits = rounded(self.commits_per_s);
        let reached = verdict(commits >= COMMITS);
        writeln!(f, "{:<32} {commits} partitions/s (aim {COMMITS}): {reached}", "commits")?;
        times(f, "  a request of them", &self.commit, "")?;
        let end =
            |limit: f64, times: &Times| format!(" (aim p99 {limit} ms): {}", verdict(times.p99_ms <= limit));
        let commit = &self.commit_during_ingest;
        times(f, "a commit during ingest", commit, &end(COMMIT_MS, commit))?;
        let heartbeat = &self.heartbeat_under_load;
        times(f, "a heartbeat under fetch load", heartbeat, &end(HEARTBEAT_MS, heartbeat))?;
        let fetched = rounded(self.fetched_mb_per_s);
        writeln!(f, "{:<32} {fetched} MB/s", "  that load")?;
        write!(f, "{:<32} {} MB", "the broker's memory at the end", rounded(self.memory_mb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times = Times::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(times, Times { requests: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Times::of(Vec::new()).p99_ms, 0.0);
    }
}
