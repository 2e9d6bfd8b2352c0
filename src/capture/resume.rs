//! Where to go on: what the log, the saved state and the source say, and what follows from it. Pure.
//!
//! This is where I5 is kept. A slot is made only when nothing of the task exists yet, when the last attempt to make it
//! was cut short before it delivered anything, when it cannot be read and every table is still to be read anyway, or when
//! a person has said that a gap is accepted.

use crate::change::{Gap, Lsn};
use crate::log::SourcePosition;

/// Cause of a gap that ends where the slot stands, which can be read from there.
const SLOT_AHEAD: &str = "slot_ahead";

/// What our slot looks like at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// What was acknowledged, as the server remembers it.
    pub confirmed_flush: Option<Lsn>,
    /// Process that uses it.
    pub active_pid: Option<i32>,
    /// Why it can no longer deliver (`wal_status = lost`, an invalidation), if it cannot.
    pub lost: Option<String>,
}

/// Everything that the decision needs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The last commit of our log.
    pub position: Option<SourcePosition>,
    /// System identifier in the durable note that we were about to make the slot.
    pub intent: Option<u64>,
    /// The slot at the source.
    pub slot: Option<SlotFacts>,
    /// The source's system identifier.
    pub system_identifier: u64,
    /// How the source's history differs from the log's, if it does.
    pub diverged: Option<String>,
    /// Why the server cannot decode what the slot has next, however often it is asked.
    pub undecodable: Option<String>,
    /// The rows that the task starts with are still being read, so they can be read again behind another slot.
    pub is_starting: bool,
    /// A publication of the task that is gone, and since when it may have been.
    pub unpublished: Option<(String, Lsn)>,
    /// A person said: take the existing slot (`--adopt-slot`).
    pub adopt_slot: bool,
    /// A person said: go on behind a gap (`--accept-gap`).
    pub accept_gap: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Make the slot, and drop the leftover of an earlier attempt first where there is one.
    Create {
        /// A slot of ours that has delivered nothing.
        drop_leftover: bool,
        /// A gap that is to be written before anything else.
        after: Option<Gap>,
        /// What the task starts with is read, or read again.
        starts: bool,
        /// The generation of the slot to be made.
        generation: u32,
    },
    /// Start from a slot that somebody else made, at its confirmed position.
    Adopt {
        /// Its confirmed position.
        from: Lsn,
    },
    /// Go on from the log's last commit.
    Resume(SourcePosition),
    /// Go on from where the slot stands, behind a gap that a person has accepted.
    Skip {
        /// The gap.
        gap: Gap,
        /// The log's last commit.
        position: SourcePosition,
    },
    /// Someone else is connected to our slot: try again later.
    Busy {
        /// The server process that serves it.
        pid: i32,
    },
    /// A slot of our name exists and nothing says that it is ours.
    Unowned,
    /// Changes are missing, or may be. Only a person may decide to go on.
    Gap(Gap),
}

/// Decides.
pub fn plan(facts: &Facts) -> Plan {
    let Some(position) = facts.position else { return first_start(facts) };
    // The intent is that of an earlier attempt to do the same.
    let starts_over = facts.is_starting
        && (facts.undecodable.is_some() || facts.intent == Some(facts.system_identifier))
        && facts.diverged.is_none();
    match (gap(&position, facts), &facts.slot) {
        (Some(gap), _) if !facts.accept_gap && !starts_over => Plan::Gap(gap),
        (_, Some(SlotFacts { active_pid: Some(pid), .. })) => Plan::Busy { pid: *pid },
        (Some(gap), Some(_)) if gap.cause == SLOT_AHEAD && !starts_over => Plan::Skip { gap, position },
        (Some(gap), slot) => Plan::Create {
            drop_leftover: slot.is_some(),
            // The tables are told whole again. Of other events nothing has been told yet where there was no commit.
            after: Some(gap).filter(|_| !starts_over || position.last_commit.is_some()),
            generation: position.slot_generation.saturating_add(1),
            starts: starts_over,
        },
        (None, _) => Plan::Resume(position),
    }
}

fn first_start(facts: &Facts) -> Plan {
    let create = |drop_leftover| Plan::Create { drop_leftover, after: None, generation: 1, starts: true };
    match &facts.slot {
        None => create(false),
        Some(slot) => match (slot.active_pid, facts.intent, slot.confirmed_flush) {
            (Some(pid), ..) => Plan::Busy { pid },
            (None, Some(system), _) if system == facts.system_identifier => create(true),
            (None, _, Some(from)) if facts.adopt_slot && slot.lost.is_none() => Plan::Adopt { from },
            (None, ..) => Plan::Unowned,
        },
    }
}

fn gap(position: &SourcePosition, facts: &Facts) -> Option<Gap> {
    let found = |cause, to: Option<Lsn>, detail| {
        Some(Gap {
            cause,
            table: None,
            from: Some(position.acked_through),
            to: to.unwrap_or(position.acked_through),
            detail,
        })
    };
    if position.system_identifier != facts.system_identifier {
        return found(
            "other_system",
            None,
            format!(
                "the source has system identifier {}, the log was written from {}: this is another database cluster",
                facts.system_identifier, position.system_identifier
            ),
        );
    }
    if let Some(detail) = &facts.diverged {
        return found("timeline_diverged", None, detail.clone());
    }
    let Some(slot) = &facts.slot else {
        return found(
            "slot_missing",
            None,
            format!(
                "the replication slot was dropped; changes committed after {} are lost to this task",
                position.acked_through
            ),
        );
    };
    if let Some(reason) = &slot.lost {
        return found(
            "slot_lost",
            None,
            format!(
                "the source has given up the replication slot ({reason}); changes committed after {} are lost to this task",
                position.acked_through
            ),
        );
    }
    if let Some(reason) = &facts.undecodable {
        return found(
            "slot_undecodable",
            None,
            format!(
                "the server cannot decode what the replication slot has next ({reason}), as happens where tables are made while \
                 a slot is made; changes committed after {} are lost to this task",
                position.acked_through
            ),
        );
    }
    if let Some((publication, since)) = &facts.unpublished {
        return Some(Gap {
            cause: "publication_missing",
            table: None,
            from: Some(*since),
            to: position.acked_through,
            detail: format!(
                "publication {publication} was dropped, and changes committed after that cannot be read"
            ),
        });
    }
    match slot.confirmed_flush {
        Some(confirmed) if confirmed > position.acked_through => found(
            SLOT_AHEAD,
            Some(confirmed),
            format!(
                "the replication slot stands at {confirmed}, the log ends at {}: somebody else read from the slot or made it anew",
                position.acked_through
            ),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> SourcePosition {
        SourcePosition {
            last_commit: Some(Lsn(90)),
            end_lsn: Lsn(95),
            last_record_end: Lsn(95),
            acked_through: Lsn(100),
            timeline: 1,
            system_identifier: 7,
            slot_generation: 1,
        }
    }

    fn facts(position: Option<SourcePosition>, slot: Option<SlotFacts>) -> Facts {
        Facts {
            position,
            intent: None,
            slot,
            system_identifier: 7,
            diverged: None,
            undecodable: None,
            is_starting: false,
            unpublished: None,
            adopt_slot: false,
            accept_gap: false,
        }
    }

    fn slot(confirmed: u64) -> Option<SlotFacts> {
        Some(SlotFacts { confirmed_flush: Some(Lsn(confirmed)), active_pid: None, lost: None })
    }

    fn cause(plan: Plan) -> &'static str {
        match plan {
            Plan::Gap(gap) => gap.cause,
            other => panic!("no gap: {other:?}"),
        }
    }

    #[test]
    fn a_gap_is_exactly_a_slot_ahead_of_what_was_acknowledged() {
        assert_eq!(plan(&facts(Some(position()), slot(100))), Plan::Resume(position()));
        assert_eq!(plan(&facts(Some(position()), slot(50))), Plan::Resume(position()));
        assert_eq!(cause(plan(&facts(Some(position()), slot(101)))), "slot_ahead");
    }

    #[test]
    fn a_slot_is_never_made_anew_quietly() {
        assert_eq!(cause(plan(&facts(Some(position()), None))), "slot_missing");
        let mut lost = facts(Some(position()), slot(100));
        lost.slot.as_mut().unwrap().lost = Some("wal_removed".into());
        assert_eq!(cause(plan(&lost)), "slot_lost");
        let mut other = facts(Some(position()), slot(100));
        other.system_identifier = 8;
        assert_eq!(cause(plan(&other)), "other_system");
    }

    #[test]
    fn a_source_that_lost_what_the_log_holds_is_left_alone_until_a_person_accepts_it() {
        let diverged =
            Facts { diverged: Some("another history".into()), ..facts(Some(position()), slot(100)) };
        assert_eq!(cause(plan(&diverged)), "timeline_diverged");
        let accepted = Facts { accept_gap: true, ..diverged };
        assert!(matches!(plan(&accepted), Plan::Create { drop_leftover: true, generation: 2, .. }));
    }

    #[test]
    fn an_undecodable_slot_is_made_anew_only_where_all_rows_are_read_again() {
        let stuck = Facts { undecodable: Some("why".into()), ..facts(Some(position()), slot(100)) };
        assert_eq!(cause(plan(&stuck)), "slot_undecodable");
        let starting = Facts { is_starting: true, ..stuck };
        assert!(matches!(
            plan(&starting),
            Plan::Create { drop_leftover: true, after: Some(_), generation: 2, starts: true }
        ));
        let unread = SourcePosition { last_commit: None, ..position() };
        let unread = Facts { position: Some(unread), ..starting };
        assert!(matches!(plan(&unread), Plan::Create { drop_leftover: true, after: None, starts: true, .. }));
        // Interrupted in the middle of that.
        for slot in [None, slot(120)] {
            let again = Facts { undecodable: None, intent: Some(7), slot, ..unread.clone() };
            assert!(matches!(plan(&again), Plan::Create { after: None, starts: true, .. }), "{again:?}");
        }
        let elsewhere = Facts { diverged: Some("another history".into()), ..unread };
        assert_eq!(cause(plan(&elsewhere)), "timeline_diverged");
    }

    #[test]
    fn a_dropped_publication_is_a_gap_from_where_it_was_last_seen() {
        let mut unpublished = facts(Some(position()), slot(100));
        unpublished.unpublished = Some(("millrace_shop".into(), Lsn(80)));
        match plan(&unpublished) {
            Plan::Gap(gap) => assert_eq!((gap.cause, gap.from), ("publication_missing", Some(Lsn(80)))),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_accepted_gap_is_gone_over_as_far_as_the_slot_allows() {
        let ahead = Facts { accept_gap: true, ..facts(Some(position()), slot(101)) };
        match plan(&ahead) {
            Plan::Skip { gap, .. } => assert_eq!(gap.to, Lsn(101)),
            other => panic!("{other:?}"),
        }
        // Without a slot that can be read from, it ends where a new one begins.
        let missing = Facts { accept_gap: true, ..facts(Some(position()), None) };
        assert!(matches!(
            plan(&missing),
            Plan::Create { drop_leftover: false, after: Some(_), generation: 2, starts: false }
        ));
        // Nothing is accepted where nothing is missing.
        let whole = Facts { accept_gap: true, ..facts(Some(position()), slot(100)) };
        assert_eq!(plan(&whole), Plan::Resume(position()));
    }

    #[test]
    fn a_slot_from_before_our_state_is_refused_unless_adopted() {
        assert_eq!(plan(&facts(None, slot(40))), Plan::Unowned);
        assert_eq!(plan(&Facts { adopt_slot: true, ..facts(None, slot(40)) }), Plan::Adopt { from: Lsn(40) });
    }

    #[test]
    fn a_creation_cut_short_is_made_again() {
        let create = |drop_leftover| Plan::Create { drop_leftover, after: None, generation: 1, starts: true };
        assert_eq!(plan(&Facts { intent: Some(7), ..facts(None, slot(40)) }), create(true));
        assert_eq!(plan(&Facts { intent: Some(7), ..facts(None, None) }), create(false));
        // The intent was for another server: this slot is not the one that we meant to make.
        assert_eq!(plan(&Facts { intent: Some(8), ..facts(None, slot(40)) }), Plan::Unowned);
    }

    #[test]
    fn a_slot_in_use_is_waited_for() {
        let mut busy = facts(Some(position()), slot(100));
        busy.slot.as_mut().unwrap().active_pid = Some(42);
        assert_eq!(plan(&busy), Plan::Busy { pid: 42 });
    }
}
