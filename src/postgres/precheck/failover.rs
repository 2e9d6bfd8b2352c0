//! What becomes of a task when a standby takes over.

use tokio_postgres::{Client, Row};

use super::Check;
use crate::postgres::catalog::ServerInfo;
use crate::postgres::sql::SqlError;

/// A standby that streams from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standby {
    name: String,
    /// Its physical slot, if it uses one.
    slot: Option<String>,
    /// Whether `synchronized_standby_slots` names that (17 and later).
    waited_for: bool,
}

/// Reads which there are.
pub(super) async fn standbys(client: &Client) -> Result<Vec<Standby>, SqlError> {
    // Names are shown only to members of pg_read_all_stats. A base backup in progress is no standby.
    const SQL: &str = "
        SELECT coalesce(nullif(r.application_name, ''), 'unnamed'), s.slot_name::text,
               coalesce(s.slot_name::text = ANY (
                   string_to_array(replace(current_setting('synchronized_standby_slots', true), ' ', ''), ',')), false)
        FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup'
        ORDER BY 1";
    let failed = |error| SqlError::new("look for standbys", error);
    let rows = client.query(SQL, &[]).await.map_err(failed)?;
    let read = |row: &Row| -> Result<Standby, tokio_postgres::Error> {
        Ok(Standby { name: row.try_get(0)?, slot: row.try_get(1)?, waited_for: row.try_get(2)? })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// What becomes of the task when one of the standbys takes over.
pub(super) fn check(server: &ServerInfo, slot: &str, standbys: &[Standby]) -> Option<Check> {
    let name = "failover";
    let names = |standbys: &[&Standby]| {
        standbys.iter().map(|standby| standby.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    if standbys.is_empty() || server.in_recovery {
        return None;
    }
    let all: Vec<&Standby> = standbys.iter().collect();
    if server.version_num < 170_000 {
        let detail = format!(
            "replication slots are not copied to standbys ({}) before PostgreSQL 17: after a failover the task stops and \
             reports a gap",
            names(&all)
        );
        let remedy =
            format!("upgrade to 17 or later, or have your failover tool keep slot '{slot}' on the standbys");
        return Some(Check::warning(name, detail, remedy));
    }
    let ahead: Vec<&Standby> = standbys.iter().filter(|standby| !standby.waited_for).collect();
    let on_each = "on each standby that may take over, set sync_replication_slots = on, hot_standby_feedback = on, \
                   primary_slot_name, and a dbname in primary_conninfo";
    if ahead.is_empty() {
        let detail = format!("changes are sent when the standbys have them ({}); {on_each}", names(&all));
        return Some(Check::ok(name, detail));
    }
    let mut slots: Vec<&str> = standbys.iter().filter_map(|standby| standby.slot.as_deref()).collect();
    slots.sort_unstable();
    let slots = postgres_protocol::escape::escape_literal(&slots.join(", "));
    let detail = format!(
        "changes may be sent before the standbys have them ({}): a task that has more than the standby that takes over \
         stops and reports what was lost",
        names(&ahead)
    );
    let remedy = format!(
        "give each standby a physical slot (primary_slot_name), and run: \
         ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf();\n{on_each}",
        slots.trim()
    );
    Some(Check::warning(name, detail, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::precheck::Outcome;
    use crate::postgres::precheck::tests::server;

    #[test]
    fn what_a_failover_would_cost_is_said_where_there_are_standbys() {
        let said = |version_num, standbys: &[(&str, bool)]| {
            let standby = |(slot, waited_for): &(&str, bool)| Standby {
                name: format!("host {slot}"),
                slot: (!slot.is_empty()).then(|| (*slot).to_owned()),
                waited_for: *waited_for,
            };
            let standbys: Vec<_> = standbys.iter().map(standby).collect();
            check(&ServerInfo { version_num, ..server() }, "millrace_shop", &standbys)
        };
        let warns = |check: Option<Check>, words: &[&str]| {
            let check = check.expect("a check");
            assert_eq!(check.outcome, Outcome::Warning);
            assert!(words.iter().all(|word| check.to_string().contains(word)), "{check}");
        };
        assert_eq!(said(180_004, &[]), None);
        warns(said(160_000, &[("a", false)]), &["host a", "17 or later", "'millrace_shop'"]);
        warns(
            said(170_000, &[("a", true), ("b", false)]),
            &["host b", "synchronized_standby_slots = 'a, b';", "sync_replication_slots = on"],
        );
        assert_eq!(said(170_000, &[("a", true)]).map(|check| check.outcome), Some(Outcome::Ok));
    }
}
