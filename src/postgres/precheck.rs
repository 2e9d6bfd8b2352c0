//! What must hold before a task starts, all at once, each with what mends it.
//!
//! Facts are read first, in a few queries; the checks are pure functions of them.

mod failover;

use std::collections::HashSet;
use std::fmt;

use tokio_postgres::{Client, Row};

use super::catalog::{self, ServerInfo, TrackedTable};
use super::objects::Objects;
use super::publication::{self, PublicationError, SourceOptions};
use super::relations;
use super::slot::{self, SlotState};
use super::sql::{SqlError, quoted};

/// The oldest server version whose changes can be read, as in `server_version_num`.
const MIN_VERSION: u32 = 140_000;

/// How many tables a check names.
const NAMED_TABLES: usize = 20;

/// A transaction older than this is named, in seconds.
const OLD_TRANSACTION_SECONDS: i64 = 10;

/// What is to be checked for.
#[derive(Debug, Clone)]
pub struct PrecheckOptions {
    /// Name of the task.
    pub task: String,
    /// The tables that it is to track.
    pub objects: Objects,
    /// How they are to be published.
    pub publish: SourceOptions,
    /// Whether a slot with the task's name may exist: we have state for it, or were told to adopt it.
    pub slot_may_exist: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The task can start, and a person should know this.
    Warning,
    /// The task cannot start.
    Failed,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, stable enough to match on.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do about it: SQL to run, a setting to change, a flag to give.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Ok, detail: detail.into(), remedy: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { name, outcome: Outcome::Failed, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
        };
        write!(f, "{outcome:<8} {}: {}", self.name, self.detail)?;
        let remedy = self.remedy.iter().flat_map(|remedy| remedy.lines());
        remedy.enumerate().try_for_each(|(number, line)| {
            let lead = if number == 0 { "->" } else { "  " };
            write!(f, "\n         {lead} {line}")
        })
    }
}

/// All checks, in the order in which a person would mend them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrecheckReport {
    /// The checks.
    pub checks: Vec<Check>,
}

impl PrecheckReport {
    /// Whether the task can start.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks that keep the task from starting.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Failed)
    }
}

impl fmt::Display for PrecheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, check) in self.checks.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{check}")?;
        }
        Ok(())
    }
}

/// Runs all checks. Changes nothing in the source.
pub async fn run(client: &Client, options: &PrecheckOptions) -> Result<PrecheckReport, SqlError> {
    let server = catalog::server_info(client).await?;
    let version = server_version(&server);
    if version.outcome == Outcome::Failed {
        // The other questions are put in words that older servers do not know.
        return Ok(PrecheckReport { checks: vec![version] });
    }
    let slot_name = slot::slot_name(&options.task);
    let slot = slot::slot_state(client, &slot_name).await?;
    let tables = catalog::tracked_tables(client, &options.objects).await?;
    let unmatched = catalog::unmatched(client, &options.objects, &tables).await?;
    let listed = publication::listed(client, &options.task).await?;

    let mut checks = vec![version, wal_level(&server), replication_privilege(&server)];
    checks.extend(slot_check(&server, options, &slot_name, slot.as_ref()));
    checks.push(wal_senders(&server));
    checks.push(publications(client, &server, options).await?);
    checks.extend(tables_found(&tables, &options.objects, &unmatched));
    checks.extend(replica_identity(&tables));
    checks.extend(published(client, &server, options, &tables).await?);
    checks.extend(contents(client, &options.objects, &tables).await?);
    checks.extend(ownership(&server, &tables, &listed));
    checks.push(effects(&options.task));
    checks.push(retained_wal(&server));
    checks.extend(failover::check(&server, &slot_name, &failover::standbys(client).await?));
    checks.extend(wal_sender_timeout(&server));
    checks.extend(encoding(&server));
    if slot.is_none() {
        checks.extend(old_transactions(client).await?);
    }
    Ok(PrecheckReport { checks })
}

fn server_version(server: &ServerInfo) -> Check {
    let detail = format!("PostgreSQL {}", server.version);
    if server.version_num < MIN_VERSION {
        return Check::failed("server_version", detail, "upgrade the server to PostgreSQL 14 or later");
    }
    if server.in_recovery && server.version_num < 160_000 {
        let detail = format!("{detail} on a standby, where versions before 16 cannot decode");
        return Check::failed("server_version", detail, "connect to the primary");
    }
    Check::ok("server_version", detail)
}

fn wal_level(server: &ServerInfo) -> Check {
    let detail = format!("wal_level is {}", server.wal_level);
    // From 19 on the first logical slot raises the level by itself.
    let enough =
        server.wal_level == "logical" || (server.version_num >= 190_000 && server.wal_level == "replica");
    if enough {
        return Check::ok("wal_level", detail);
    }
    let remedy = match server.is_rds {
        true => "set rds.logical_replication = 1 in the parameter group and reboot the instance",
        false => {
            "run: ALTER SYSTEM SET wal_level = logical;\nthen restart the server (a reload is not enough)"
        }
    };
    Check::failed("wal_level", format!("{detail}, and must be logical"), remedy)
}

fn replication_privilege(server: &ServerInfo) -> Check {
    let name = "replication_privilege";
    if server.may_replicate {
        return Check::ok(name, format!("role '{}' may use replication", server.user));
    }
    let user = quoted(&server.user);
    let remedy = match server.is_rds {
        true => format!("run: GRANT rds_replication TO {user};"),
        false => format!("run as a superuser: ALTER ROLE {user} REPLICATION;"),
    };
    Check::failed(name, format!("role '{}' may not use replication", server.user), remedy)
}

fn slot_check(
    server: &ServerInfo,
    options: &PrecheckOptions,
    name: &str,
    slot: Option<&SlotState>,
) -> Vec<Check> {
    if let Some(slot) = slot {
        if let Some(trouble) = slot.trouble(&server.database) {
            let error = slot::SlotError::Trouble { name: name.to_owned(), trouble }.to_string();
            let (detail, remedy) =
                error.split_once("; ").unwrap_or((&error, "drop the slot if nobody needs it"));
            return vec![Check::failed("slot", detail, remedy)];
        }
        if !options.slot_may_exist {
            let detail =
                format!("replication slot '{name}' exists, and there is no state here that belongs to it");
            let remedy = format!(
                "give --adopt-slot to go on from where it stands, name the task otherwise, or drop the slot if nobody \
                 needs it:\nSELECT pg_drop_replication_slot({});",
                postgres_protocol::escape::escape_literal(name)
            );
            return vec![Check::failed("slot", detail, remedy)];
        }
        return vec![Check::ok("slot", format!("replication slot '{name}' exists"))];
    }
    let (used, all) = (server.replication_slots, server.max_replication_slots);
    if used < all {
        return vec![Check::ok("slot", format!("{used} of {all} replication slots exist"))];
    }
    let remedy = format!(
        "drop one that nobody needs (see: SELECT * FROM pg_replication_slots;), or run: \
         ALTER SYSTEM SET max_replication_slots = {};\nthen restart the server",
        all.saturating_add(10)
    );
    vec![Check::failed("slot", format!("all {all} replication slots of the server are taken"), remedy)]
}

fn wal_senders(server: &ServerInfo) -> Check {
    let (used, all) = (server.wal_senders, server.max_wal_senders);
    if used < all {
        return Check::ok("wal_senders", format!("{used} of {all} WAL senders are in use"));
    }
    let remedy = format!(
        "stop one (see: SELECT * FROM pg_stat_replication;), or run: ALTER SYSTEM SET max_wal_senders = {};\n\
         then restart the server",
        all.saturating_add(10)
    );
    Check::failed("wal_senders", format!("all {all} WAL senders of the server are in use"), remedy)
}

async fn publications(
    client: &Client,
    server: &ServerInfo,
    options: &PrecheckOptions,
) -> Result<Check, SqlError> {
    let name = "publications";
    let missing = match publication::missing(client, &options.task, &options.publish).await {
        Ok(missing) => missing,
        Err(PublicationError::Sql(error)) => return Err(error),
        Err(PublicationError::Unusable { name: publication, why, sql }) => {
            let detail = format!("publication '{publication}' cannot be used: {why}");
            return Ok(Check::failed(name, detail, format!("run: {sql}")));
        }
        Err(error) => return Ok(Check::failed(name, error.to_string(), "mend that, and check again")),
    };
    if missing.is_empty() {
        return Ok(Check::ok(name, "the task's publications exist"));
    }
    if server.in_recovery {
        let detail = format!("{} missing, and a standby cannot make them", missing.join(", "));
        return Ok(Check::failed(name, detail, "start the task on the primary once"));
    }
    if server.may_create {
        return Ok(Check::ok(name, format!("role '{}' may create publications", server.user)));
    }
    let detail =
        format!("role '{}' lacks the CREATE privilege on database '{}'", server.user, server.database);
    let remedy =
        format!("run: GRANT CREATE ON DATABASE {} TO {};", quoted(&server.database), quoted(&server.user));
    Ok(Check::failed(name, detail, remedy))
}

fn tables_found(tables: &[TrackedTable], objects: &Objects, unmatched: &[String]) -> Option<Check> {
    let name = "tables";
    if !unmatched.is_empty() {
        let remedy =
            "check the patterns: names are written as the catalog has them, upper and lower case apart";
        return Some(Check::warning(name, unmatched.join("; "), remedy));
    }
    if *objects != Objects::default() {
        return Some(Check::ok(name, format!("{} tables are {objects}", tables.len())));
    }
    let remedy = "check the name of the database; tables that are created later join by themselves";
    tables.is_empty().then(|| Check::warning(name, "the database has no tables to track", remedy))
}

/// Tables that a selection of which is named, with `statement` for each.
fn named(tables: &[&TrackedTable], statement: impl Fn(&TrackedTable) -> String) -> (String, String) {
    let some: Vec<&TrackedTable> = tables.iter().take(NAMED_TABLES).copied().collect();
    let mut names = some.iter().map(|table| table.to_string()).collect::<Vec<_>>().join(", ");
    if tables.len() > some.len() {
        names.push_str(&format!(" and {} more", tables.len() - some.len()));
    }
    let mut statements: Vec<String> = Vec::new();
    for sql in some.iter().map(|table| statement(table)) {
        if !statements.contains(&sql) {
            statements.push(sql);
        }
    }
    (names, statements.join("\n"))
}

/// Whether the server can publish tables as the task wants them.
async fn published(
    client: &Client,
    server: &ServerInfo,
    options: &PrecheckOptions,
    tables: &[TrackedTable],
) -> Result<Vec<Check>, SqlError> {
    let name = "table_options";
    if let Err(error) = options.publish.check_server(server.version_num) {
        let error = error.to_string();
        let (detail, remedy) = error.split_once("; ").unwrap_or((&error, "leave it out"));
        return Ok(vec![Check::failed(name, detail, remedy)]);
    }
    let mut checks = Vec::new();
    let wrong = publication::all_wrong_options(client, &options.publish, tables).await?;
    if !wrong.is_empty() {
        let named = wrong.iter().take(NAMED_TABLES).cloned().collect::<Vec<_>>().join("; ");
        let detail = format!("{} tables have a wrong filter or wrong columns: {named}", wrong.len());
        checks.push(Check::failed(name, detail, "correct where and columns of these tables"));
    }
    let idle = options.publish.unmatched(tables);
    if !idle.is_empty() {
        let detail = format!("options are given for what is no table: {}", idle.join(", "));
        checks.push(Check::warning(name, detail, "check the names; a table of that name joins with them"));
    }
    let weak = publication::weaknesses(client, &options.task, &options.publish, tables).await?;
    let (narrowed, remedies): (Vec<String>, Vec<String>) = weak
        .iter()
        .filter(|(table, _)| table.usable_identity)
        .take(NAMED_TABLES)
        .map(|(table, weakness)| (format!("{table}: {weakness}"), weakness.remedy(table)))
        .unzip();
    if !narrowed.is_empty() {
        let detail = format!("only inserts and truncates are captured of {}", narrowed.join("; "));
        checks.push(Check::warning(name, detail, remedies.join("\n")));
    }
    Ok(checks)
}

/// What of the tables' contents is not captured, and what cannot be captured at all.
async fn contents(
    client: &Client,
    objects: &Objects,
    tables: &[TrackedTable],
) -> Result<Vec<Check>, SqlError> {
    let mut checks = Vec::new();
    let refused = relations::refused(client, objects).await?;
    if !refused.is_empty() {
        let some = refused.iter().take(NAMED_TABLES);
        let (names, mut remedies): (Vec<String>, Vec<String>) =
            some.map(|refused| (refused.to_string(), refused.remedy())).unzip();
        remedies.dedup();
        let detail = format!("{} cannot be captured: {}", refused.len(), names.join("; "));
        checks.push(Check::warning("refused", detail, remedies.join("\n")));
    }
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let unsent = relations::unsent_columns(client, &oids).await?;
    if !unsent.is_empty() {
        let named = unsent.iter().take(NAMED_TABLES);
        let named = named.map(|(table, columns)| format!("{table} ({})", columns.join(", ")));
        let detail = format!("generated columns are not sent: {}", named.collect::<Vec<_>>().join("; "));
        let remedy = "compute them where they are needed; PostgreSQL 18 and later send stored ones";
        checks.push(Check::warning("generated_columns", detail, remedy));
    }
    let hidden = relations::with_hidden_rows(client, &oids).await?;
    if !hidden.is_empty() {
        let detail = format!(
            "row-level security hides existing rows from our role in {}; all their changes are captured",
            hidden.iter().take(NAMED_TABLES).cloned().collect::<Vec<_>>().join(", ")
        );
        let remedy = "run as a superuser: ALTER ROLE ... BYPASSRLS; or start without the rows that there are";
        checks.push(Check::warning("row_level_security", detail, remedy));
    }
    Ok(checks)
}

fn replica_identity(tables: &[TrackedTable]) -> Option<Check> {
    let name = "replica_identity";
    let with_rows: Vec<&TrackedTable> = tables.iter().filter(|table| !table.partitioned).collect();
    let without: Vec<&TrackedTable> =
        with_rows.iter().copied().filter(|table| !table.usable_identity).collect();
    if with_rows.is_empty() {
        return None;
    }
    if without.is_empty() {
        return Some(Check::ok(
            name,
            format!("all {} tables have a usable replica identity", with_rows.len()),
        ));
    }
    let (names, statements) = named(&without, |table| format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"));
    let deferrable = match without.iter().any(|table| table.deferrable_key) {
        true => " (a deferrable primary key is none)",
        false => "",
    };
    let detail = format!(
        "{} of {} tables have no usable replica identity{deferrable}; only their inserts and truncates are captured: \
         {names}",
        without.len(),
        with_rows.len()
    );
    let remedy = format!(
        "give each a primary key, or run, which makes its updates write the whole old row:\n{statements}"
    );
    Some(Check::warning(name, detail, remedy))
}

fn ownership(server: &ServerInfo, tables: &[TrackedTable], listed: &HashSet<u32>) -> Option<Check> {
    let name = "table_ownership";
    let foreign: Vec<&TrackedTable> =
        tables.iter().filter(|table| !table.owned_by_us && !listed.contains(&table.oid)).collect();
    if tables.is_empty() {
        return None;
    }
    if foreign.is_empty() {
        return Some(Check::ok(name, format!("role '{}' can publish all tables", server.user)));
    }
    let user = quoted(&server.user);
    let (names, statements) = named(&foreign, |table| format!("GRANT {} TO {user};", quoted(&table.owner)));
    let detail = format!(
        "{} of {} tables are not captured, because only their owner or a superuser may publish them: {names}",
        foreign.len(),
        tables.len()
    );
    let remedy =
        format!("make role '{}' a member of the owners, running as a superuser:\n{statements}", server.user);
    Some(match foreign.len() == tables.len() {
        true => Check::failed(name, detail, remedy),
        false => Check::warning(name, detail, remedy),
    })
}

/// What a running task changes for the users of the source, named before it starts (I7).
fn effects(task: &str) -> Check {
    Check::ok(
        "effects_on_users",
        format!(
            "a key dropped where no trigger is installed, or a column of one that a filter looks at, makes UPDATE and \
             DELETE on that table fail until the next poll (about a second); ALTER TABLE ... SET UNLOGGED is refused until the table leaves the publications \
             {} and {}; where rows that exist are read, as many connections as snapshot.connections says lock a \
             table against ALTER and DROP (ACCESS SHARE) for a piece at a time, and one holds back VACUUM for up to \
             snapshot.max_age_minutes; with source.join_at_creation an event trigger runs after each CREATE TABLE",
            publication::full_name(task),
            publication::insert_only_name(task)
        ),
    )
}

fn retained_wal(server: &ServerInfo) -> Check {
    let name = "retained_wal";
    match server.max_slot_wal_keep_size {
        None => Check::ok(
            name,
            "max_slot_wal_keep_size is -1: while the task is stopped, the server keeps WAL for it without bound; drop \
             the slot of a task that is not needed any more, or its disk fills",
        ),
        Some(bytes) if bytes < 1 << 30 => Check::warning(
            name,
            format!(
                "max_slot_wal_keep_size is {} MB: a short stop of the task may lose its slot",
                bytes >> 20
            ),
            "run: ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();",
        ),
        Some(bytes) => Check::ok(
            name,
            format!(
                "max_slot_wal_keep_size is {} MB: a task that falls behind further loses its slot",
                bytes >> 20
            ),
        ),
    }
}

fn wal_sender_timeout(server: &ServerInfo) -> Option<Check> {
    // Where it is switched off, our session sets a limit of its own.
    (1..10_000).contains(&server.wal_sender_timeout_ms).then(|| {
        Check::warning(
            "wal_sender_timeout",
            format!(
                "wal_sender_timeout is {} ms: a short stall of the network ends the connection",
                server.wal_sender_timeout_ms
            ),
            "run: ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        )
    })
}

fn encoding(server: &ServerInfo) -> Option<Check> {
    (server.encoding == "SQL_ASCII").then(|| {
        Check::warning(
            "encoding",
            "the database's encoding is SQL_ASCII: the server passes text on as it is, and what is not valid UTF-8 \
             cannot be told faithfully",
            "move the data to a database with ENCODING 'UTF8'",
        )
    })
}

/// Making a slot waits until every transaction of the whole server that runs at that moment has ended.
async fn old_transactions(client: &Client) -> Result<Option<Check>, SqlError> {
    // Sessions of other roles show their age only to members of pg_read_all_stats; prepared transactions to all.
    const SQL: &str = "
        SELECT format('process %s (%s, database %s)', pid, coalesce(nullif(application_name, ''), 'unnamed'), datname),
               format('SELECT pg_terminate_backend(%s);', pid),
               extract(epoch FROM now() - xact_start)::int8 AS age
        FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
          AND now() - xact_start > make_interval(secs => $1::int8)
        UNION ALL
        SELECT format('prepared transaction %L (database %s)', gid, database),
               format('ROLLBACK PREPARED %L;  -- or COMMIT PREPARED, in its database', gid),
               extract(epoch FROM now() - prepared)::int8
        FROM pg_prepared_xacts
        ORDER BY age DESC LIMIT 5";
    let failed = |error| SqlError::new("look for old transactions", error);
    let rows = client.query(SQL, &[&OLD_TRANSACTION_SECONDS]).await.map_err(failed)?;
    let read = |row: &Row| -> Result<(String, String, i64), tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let found = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if found.is_empty() {
        return Ok(None);
    }
    let list =
        found.iter().map(|(who, _, age)| format!("{who} since {age} s")).collect::<Vec<_>>().join(", ");
    let sql = found.iter().map(|(_, sql, _)| sql.as_str()).collect::<Vec<_>>().join("\n");
    let detail = format!("the slot can be made only when these transactions have ended: {list}");
    Ok(Some(Check::warning("old_transactions", detail, format!("wait, or end them:\n{sql}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn server() -> ServerInfo {
        ServerInfo {
            version_num: 150_018,
            version: "15.18".to_owned(),
            system_identifier: None,
            in_recovery: false,
            database: "shop".to_owned(),
            encoding: "UTF8".to_owned(),
            user: "capture".to_owned(),
            is_superuser: false,
            may_replicate: true,
            may_create: true,
            is_rds: false,
            wal_level: "logical".to_owned(),
            max_replication_slots: 10,
            replication_slots: 9,
            max_wal_senders: 10,
            wal_senders: 9,
            max_slot_wal_keep_size: None,
            wal_sender_timeout_ms: 60_000,
        }
    }

    fn table(name: &str, usable_identity: bool, owned_by_us: bool) -> TrackedTable {
        TrackedTable {
            oid: name.len() as u32,
            schema: "public".to_owned(),
            name: name.to_owned(),
            partitioned: false,
            usable_identity,
            owned_by_us,
            owner: "app".to_owned(),
            ..TrackedTable::default()
        }
    }

    #[test]
    fn servers_older_than_14_and_standbys_older_than_16_are_refused() {
        let outcome = |version_num, in_recovery| {
            server_version(&ServerInfo { version_num, in_recovery, ..server() }).outcome
        };
        assert_eq!(outcome(130_022, false), Outcome::Failed);
        assert_eq!(outcome(140_000, false), Outcome::Ok);
        assert_eq!(outcome(150_018, true), Outcome::Failed);
        assert_eq!(outcome(160_000, true), Outcome::Ok);
    }

    #[test]
    fn on_rds_the_remedies_are_those_of_rds() {
        let rds =
            ServerInfo { is_rds: true, may_replicate: false, wal_level: "replica".to_owned(), ..server() };
        assert!(wal_level(&rds).remedy.is_some_and(|text| text.contains("rds.logical_replication")));
        assert!(
            replication_privilege(&rds)
                .remedy
                .is_some_and(|text| text.contains("GRANT rds_replication TO \"capture\""))
        );
    }

    #[test]
    fn at_most_twenty_tables_are_named_and_the_rest_counted() {
        let names: Vec<String> = (0..25).map(|number| format!("t{number:02}")).collect();
        let tables: Vec<TrackedTable> = names.iter().map(|name| table(name, false, true)).collect();
        let check = replica_identity(&tables).expect("a check");
        assert_eq!(check.outcome, Outcome::Warning);
        assert!(check.detail.contains("\"t19\"") && !check.detail.contains("\"t20\""), "{}", check.detail);
        assert!(check.detail.ends_with("and 5 more"), "{}", check.detail);
    }

    #[test]
    fn only_a_database_of_which_nothing_could_be_captured_fails_for_ownership() {
        let tables = [table("a", true, false), table("bb", true, true)];
        let none = HashSet::new();
        assert_eq!(ownership(&server(), &tables, &none).map(|c| c.outcome), Some(Outcome::Warning));
        assert_eq!(ownership(&server(), &tables[..1], &none).map(|c| c.outcome), Some(Outcome::Failed));
        let listed = HashSet::from([1]);
        assert_eq!(ownership(&server(), &tables[..1], &listed).map(|c| c.outcome), Some(Outcome::Ok));
    }

    #[test]
    fn a_report_reads_as_lines_with_the_remedy_below() {
        let check = Check::failed("wal_level", "wal_level is replica", "run: this\nthen that");
        assert_eq!(
            check.to_string(),
            "failed   wal_level: wal_level is replica\n         -> run: this\n            then that"
        );
    }
}
