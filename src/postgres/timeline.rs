//! Whether a server continues the history that our log holds (design §6, "Timelines").
//!
//! A promotion starts a new timeline at a fork. What our log holds up to the fork is common to both; what lies beyond it
//! exists in our log and not in the source any more. Positions that only keepalives and heartbeats had reached leave no
//! record, so their being beyond the fork is no divergence: the position is lowered to the fork. Pure functions; the
//! replication connection fetches what they need.

use crate::change::Lsn;

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifySystem {
    /// Unique to the database cluster and its copies.
    pub system_identifier: u64,
    /// Current timeline.
    pub timeline: u32,
    /// How far its WAL is flushed (on a standby: replayed).
    pub xlogpos: Lsn,
    /// The connected database.
    pub dbname: Option<String>,
}

/// One ancestor of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Its number.
    pub timeline: u32,
    /// Where the next timeline leaves it.
    pub fork: Lsn,
    /// Why, as the server noted it.
    pub reason: String,
}

/// A timeline's ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimelineHistory {
    /// The ancestors.
    pub ancestors: Vec<Ancestor>,
}

/// A history file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} of the timeline history cannot be read: {reason}; see the .history files in the source's pg_wal"
)]
pub struct HistoryError {
    line: usize,
    reason: &'static str,
}

impl TimelineHistory {
    /// Reads a history file: `timeline <tab> fork <tab> reason` a line, rising.
    pub fn parse(content: &str) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, text) in content.lines().enumerate() {
            let wrong = |reason| HistoryError { line: index + 1, reason };
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let mut fields = text.splitn(3, char::is_whitespace).map(str::trim);
            let timeline =
                fields.next().and_then(|field| field.parse().ok()).ok_or(wrong("no timeline number"))?;
            let fork = fields.next().and_then(|field| field.parse().ok()).ok_or(wrong("no fork position"))?;
            if ancestors.last().is_some_and(|last| last.timeline >= timeline) {
                return Err(wrong("timelines do not rise"));
            }
            let reason = fields.next().unwrap_or_default().to_owned();
            ancestors.push(Ancestor { timeline, fork, reason });
        }
        Ok(TimelineHistory { ancestors })
    }

    /// Where the history first leaves `timeline`: the lowest fork of it and of what came after it. `None` if `timeline`
    /// is no ancestor.
    pub fn leaves(&self, timeline: u32) -> Option<Lsn> {
        let ours = self.ancestors.iter().position(|ancestor| ancestor.timeline == timeline)?;
        self.ancestors.iter().skip(ours).map(|ancestor| ancestor.fork).min()
    }
}

/// How far our log is, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurPosition {
    /// The cluster that it was read from.
    pub system_identifier: u64,
    /// The timeline of our last commit entry.
    pub timeline: u32,
    /// End LSN of the last transaction in our log; [`Lsn::ZERO`] if there is none.
    pub last_commit_end: Lsn,
    /// End LSN of the last transaction that left a record other than a heartbeat; [`Lsn::ZERO`] if there is none.
    pub last_record_end: Lsn,
}

/// What to do about the server's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimelineDecision {
    /// Go on.
    Same,
    /// Go on with the server's timeline, last commit and acknowledged position lowered to the fork.
    Switch {
        /// The server's timeline.
        timeline: u32,
        /// Where it leaves ours.
        fork: Lsn,
    },
    /// Do not go on: the log and the source differ.
    Diverged(Divergence),
}

/// How our log and the source differ, for the report to a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// Another cluster.
    #[error(
        "the source is another cluster (system identifier {theirs}, the log was read from {ours}); point the task at the old one, or make a new task"
    )]
    OtherSystem {
        /// The log's.
        ours: u64,
        /// The server's.
        theirs: u64,
    },
    /// The server has not reached our last commit: restored from a backup, or a standby that lags.
    #[error(
        "the source is at {server} on timeline {timeline}, before the end of the last transaction in the log, {ours}; was it restored from a backup? transactions after {server} are in the log and not in the source"
    )]
    ServerBehind {
        /// The common timeline.
        timeline: u32,
        /// The server's position.
        server: Lsn,
        /// Our last commit's end.
        ours: Lsn,
    },
    /// The log holds transactions that the source lost at a failover.
    #[error(
        "timeline {theirs} of the source leaves ours, {ours}, at {fork}, and the log holds transactions up to {last_record_end}; those from {fork} on were lost by the source"
    )]
    BeyondFork {
        /// The log's timeline.
        ours: u32,
        /// The server's timeline.
        theirs: u32,
        /// Where they part.
        fork: Lsn,
        /// How far the log is.
        last_record_end: Lsn,
    },
    /// The server's timeline does not descend from ours.
    #[error(
        "timeline {theirs} of the source does not descend from ours, {ours}; is it an old primary? point the task at the current one"
    )]
    NotADescendant {
        /// The log's timeline.
        ours: u32,
        /// The server's timeline.
        theirs: u32,
    },
}

impl Divergence {
    /// Whether a server that is a standby may still get there: wait for it first.
    pub fn standby_may_catch_up(&self) -> bool {
        matches!(self, Divergence::ServerBehind { .. } | Divergence::NotADescendant { .. })
    }
}

/// Decides whether to go on. `history` is that of the server's timeline; it is not looked at while the timeline is ours.
pub fn decide(ours: &OurPosition, server: &IdentifySystem, history: &TimelineHistory) -> TimelineDecision {
    if server.system_identifier != ours.system_identifier {
        return TimelineDecision::Diverged(Divergence::OtherSystem {
            ours: ours.system_identifier,
            theirs: server.system_identifier,
        });
    }
    if server.timeline == ours.timeline {
        // A walsender sends only what is flushed, so a server that is behind what it sent has lost it.
        return if server.xlogpos < ours.last_commit_end {
            TimelineDecision::Diverged(Divergence::ServerBehind {
                timeline: server.timeline,
                server: server.xlogpos,
                ours: ours.last_commit_end,
            })
        } else {
            TimelineDecision::Same
        };
    }
    match history.leaves(ours.timeline) {
        Some(fork) if server.timeline > ours.timeline => {
            if ours.last_record_end <= fork {
                TimelineDecision::Switch { timeline: server.timeline, fork }
            } else {
                TimelineDecision::Diverged(Divergence::BeyondFork {
                    ours: ours.timeline,
                    theirs: server.timeline,
                    fork,
                    last_record_end: ours.last_record_end,
                })
            }
        }
        _ => TimelineDecision::Diverged(Divergence::NotADescendant {
            ours: ours.timeline,
            theirs: server.timeline,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HISTORY: &str = "1\t0/3000060\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026-01-01\n3\t0/7000000\t";

    fn history() -> TimelineHistory {
        TimelineHistory::parse(HISTORY).unwrap()
    }

    fn ours(timeline: u32, last_commit_end: u64, last_record_end: u64) -> OurPosition {
        OurPosition {
            system_identifier: 7,
            timeline,
            last_commit_end: Lsn(last_commit_end),
            last_record_end: Lsn(last_record_end),
        }
    }

    fn server(timeline: u32, xlogpos: u64) -> IdentifySystem {
        IdentifySystem { system_identifier: 7, timeline, xlogpos: Lsn(xlogpos), dbname: None }
    }

    #[test]
    fn a_history_file_is_read() {
        let read = history();
        assert_eq!(read.ancestors.len(), 3);
        assert_eq!(read.ancestors[0].fork, Lsn(0x3000060));
        assert_eq!(read.ancestors[0].reason, "no recovery target specified");
        assert_eq!(read.ancestors[2], Ancestor { timeline: 3, fork: Lsn(0x7000000), reason: String::new() });
        for bad in ["x\t0/1\t", "1\tzero", "1", "2\t0/1\n1\t0/2", "1\t0/1\n1\t0/2", "-1\t0/1"] {
            assert!(TimelineHistory::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(TimelineHistory::parse("").unwrap(), TimelineHistory::default());
    }

    #[test]
    fn the_same_timeline_goes_on_unless_the_server_lost_what_it_sent() {
        let none = TimelineHistory::default();
        assert_eq!(decide(&ours(1, 100, 90), &server(1, 100), &none), TimelineDecision::Same);
        assert_eq!(decide(&ours(1, 0, 0), &server(1, 100), &none), TimelineDecision::Same);
        let TimelineDecision::Diverged(behind) = decide(&ours(1, 101, 90), &server(1, 100), &none) else {
            panic!("a server behind our last commit was accepted")
        };
        assert_eq!(behind, Divergence::ServerBehind { timeline: 1, server: Lsn(100), ours: Lsn(101) });
        assert!(behind.standby_may_catch_up());
    }

    #[test]
    fn a_promotion_beyond_our_last_record_goes_on_at_the_fork() {
        let expected = TimelineDecision::Switch { timeline: 2, fork: Lsn(0x3000060) };
        for last_record in [0, 0x3000000, 0x3000060] {
            // A heartbeat's commit beyond the fork is no divergence.
            assert_eq!(decide(&ours(1, 0x3000100, last_record), &server(2, 0x3000200), &history()), expected);
        }
    }

    #[test]
    fn transactions_beyond_the_fork_are_reported() {
        let decision = decide(&ours(1, 0x3000061, 0x3000061), &server(2, 0x4000000), &history());
        let expected = Divergence::BeyondFork {
            ours: 1,
            theirs: 2,
            fork: Lsn(0x3000060),
            last_record_end: Lsn(0x3000061),
        };
        assert_eq!(decision, TimelineDecision::Diverged(expected));
    }

    #[test]
    fn after_several_promotions_the_first_fork_after_our_timeline_counts() {
        for (timeline, fork) in [(1, 0x3000060), (2, 0x5000000), (3, 0x7000000)] {
            assert_eq!(
                decide(&ours(timeline, fork, fork), &server(4, 0x8000000), &history()),
                TimelineDecision::Switch { timeline: 4, fork: Lsn(fork) }
            );
            assert!(matches!(
                decide(&ours(timeline, fork + 1, fork + 1), &server(4, 0x8000000), &history()),
                TimelineDecision::Diverged(Divergence::BeyondFork { .. })
            ));
        }
    }

    #[test]
    fn a_server_that_does_not_descend_from_our_timeline_is_refused() {
        let expected = |ours, theirs| TimelineDecision::Diverged(Divergence::NotADescendant { ours, theirs });
        assert_eq!(decide(&ours(2, 1, 1), &server(1, 9), &TimelineHistory::default()), expected(2, 1));
        assert_eq!(decide(&ours(5, 1, 1), &server(6, 9), &history()), expected(5, 6));
    }

    #[test]
    fn another_cluster_is_refused_whatever_its_timeline() {
        let mut other = server(1, 100);
        other.system_identifier = 8;
        let decision = decide(&ours(1, 0, 0), &other, &TimelineHistory::default());
        assert_eq!(decision, TimelineDecision::Diverged(Divergence::OtherSystem { ours: 7, theirs: 8 }));
    }

    proptest! {
        #[test]
        fn any_text_as_a_history_is_survived(text in "[0-9A-F/\\t\\n# a-z]{0,80}") {
            let _ = TimelineHistory::parse(&text);
        }
    }
}
