//! A task's two publications, and keeping them in step with the tables that exist.
//!
//! `millrace_<task>` publishes everything, `millrace_<task>_insert_only` inserts and truncates alone. PostgreSQL
//! refuses UPDATE and DELETE on a table without usable replica identity as soon as any publication publishes them, so
//! such tables live in the second (I7). Both list their tables one by one. A partitioned table has no rows and is
//! listed in the second whatever its identity: rows of a partition made later are then published from the first
//! insert on, and its updates and deletes from when it joins the first by itself.
//!
//! Nobody ever waits for us, and we for nobody (I7). `ALTER PUBLICATION` locks the publication, and each table as
//! VACUUM does, which holds up no reader or writer. Each change is one message of several statements, a transaction by
//! itself: no lock is held over a round trip, and what breaks off half-way is rolled back by the server. Locks are
//! taken with NOWAIT or a timeout of milliseconds; who does not get one leaves the table to the next poll.
//!
//! **When a table joins**: its changes are sent from the commit of ALTER PUBLICATION on. A transaction that was open
//! then may have written rows before, and may commit long after: they are never sent. So [`Joined`] says from where on
//! the table is complete, and whether such transactions were seen; [`settled`] tells when the last of them has ended.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::catalog::TrackedTable;
use super::sql::{SqlError, qualified, quoted};
use crate::change::Lsn;

/// How long a statement of ours waits for a lock, in milliseconds.
const LOCK_TIMEOUT_MS: u32 = 20;

/// Tables of one statement. Bounds the locks that one transaction takes.
const BATCH: usize = 200;

/// Name of the publication of a task that publishes everything.
pub fn full_name(task: &str) -> String {
    format!("millrace_{task}")
}

/// Name of the publication of a task that publishes inserts and truncates alone.
pub fn insert_only_name(task: &str) -> String {
    format!("millrace_{task}_insert_only")
}

/// The publications cannot be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The role may not create publications.
    #[error(
        "cannot create publications in database '{database}': role '{user}' lacks the CREATE privilege on it; \
         run: GRANT CREATE ON DATABASE {} TO {};", quoted(.database), quoted(.user)
    )]
    MayNotCreate {
        /// The database.
        database: String,
        /// Our role.
        user: String,
    },
    /// A publication that was made has gone.
    #[error(
        "publication '{0}' is missing: somebody dropped it, and changes since then cannot be read; \
         release the task and start it anew"
    )]
    Missing(String),
    /// A publication with our name is not what we make.
    #[error("publication '{name}' cannot be used: {why}; run: {sql}")]
    Unusable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
        /// What mends it.
        sql: String,
    },
}

impl PublicationError {
    /// Whether trying again later may help with nothing changed by hand.
    pub fn is_transient(&self) -> bool {
        matches!(self, PublicationError::Sql(error) if error.is_transient())
    }
}

/// A table's changes are captured from now on.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The table.
    pub table: TrackedTable,
    /// The table is captured insert-only, for want of a usable replica identity.
    pub insert_only: bool,
    /// Transactions that began after the join have their commit at or past this LSN, and are complete. So are all
    /// others that commit past it, if `open_until` is absent.
    pub complete_from: Lsn,
    /// Transactions that write to the table were open across the join: what they wrote before it is missed, whenever
    /// they commit. [`settled`] with this number tells when all of them have ended.
    pub open_until: Option<u64>,
}

/// A table is not captured, or less than it could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotCaptured {
    /// The table.
    pub table: TrackedTable,
    /// Why.
    pub reason: String,
    /// What to run so that the next poll can capture it.
    pub sql: String,
}

/// A table has left the publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
}

/// What [`reconcile`] did.
#[derive(Debug, Clone, Default)]
pub struct Reconciled {
    /// Tables that were in neither publication and joined one.
    pub added: Vec<Joined>,
    /// Tables that are no longer wanted. (A dropped table leaves by itself and is not listed.)
    pub removed: Vec<Removed>,
    /// Tables that lost their replica identity. No insert is missed; updates and deletes are no longer sent.
    pub moved_to_insert_only: Vec<TrackedTable>,
    /// Tables that gained a replica identity: updates and deletes are sent from here on, inserts always were.
    pub moved_to_full: Vec<Joined>,
    /// Tables that need something done by hand.
    pub not_captured: Vec<NotCaptured>,
    /// Tables that someone else had locked: the next poll tries again.
    pub busy: Vec<Removed>,
}

impl Reconciled {
    /// Whether all is as wanted, so that nothing needs to be looked at before the fingerprint changes.
    pub fn is_settled(&self) -> bool {
        self.not_captured.is_empty() && self.busy.is_empty()
    }
}

/// What [`ensure`] found and did.
#[derive(Debug, Clone)]
pub struct PublicationState {
    /// Whether a publication had to be created: then no earlier slot may be resumed with it.
    pub created: bool,
    /// What was done to the tables.
    pub reconciled: Reconciled,
}

/// Makes the task's publications if they are missing, and puts `tables` into them. Before the slot is made.
pub async fn ensure(
    client: &Client,
    task: &str,
    tables: &[TrackedTable],
) -> Result<PublicationState, PublicationError> {
    let absent = missing(client, task).await?;
    for name in &absent {
        create(client, task, name).await?;
    }
    let reconciled = reconcile(client, task, tables).await?;
    Ok(PublicationState { created: !absent.is_empty(), reconciled })
}

/// Drops the task's publications, if they exist.
pub async fn drop(client: &Client, task: &str) -> Result<(), PublicationError> {
    let sql = format!(
        "SET LOCAL lock_timeout = '5s'; DROP PUBLICATION IF EXISTS {}, {};",
        quoted(&full_name(task)),
        quoted(&insert_only_name(task))
    );
    let failed = |error| SqlError::new("drop the task's publications", error);
    Ok(client.batch_execute(&sql).await.map_err(failed)?)
}

/// Names of those of the two publications that do not exist. One that does must be ours and as we make it.
pub async fn missing(client: &Client, task: &str) -> Result<Vec<String>, PublicationError> {
    // By way of JSON a column that this version lacks reads as null.
    const SQL: &str = "
        SELECT p.pubname::text, p.puballtables, p.pubviaroot, p.pubinsert AND p.pubtruncate,
               p.pubupdate, p.pubdelete, pg_has_role(p.pubowner, 'USAGE'), pg_get_userbyid(p.pubowner)::text,
               to_jsonb(p)->>'pubgencols' = 'n', current_user::text
        FROM pg_publication p WHERE p.pubname = ANY($1)";
    let failed = |error| SqlError::new("read the task's publications", error);
    let names = vec![full_name(task), insert_only_name(task)];
    let mut missing = names.clone();
    for row in client.query(SQL, &[&names]).await.map_err(failed)? {
        let found = Found::read(&row).map_err(failed)?;
        missing.retain(|name| *name != found.name);
        let publishes_all = found.name == full_name(task);
        if let Some((why, sql)) = found.objection(publishes_all) {
            return Err(PublicationError::Unusable { name: found.name, why, sql });
        }
    }
    Ok(missing)
}

/// A publication that exists.
struct Found {
    name: String,
    all_tables: bool,
    via_root: bool,
    inserts_and_truncates: bool,
    updates: bool,
    deletes: bool,
    ours: bool,
    owner: String,
    lacks_generated: bool,
    user: String,
}

impl Found {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Found {
            name: row.try_get(0)?,
            all_tables: row.try_get(1)?,
            via_root: row.try_get(2)?,
            inserts_and_truncates: row.try_get(3)?,
            updates: row.try_get(4)?,
            deletes: row.try_get(5)?,
            ours: row.try_get(6)?,
            owner: row.try_get(7)?,
            lacks_generated: row.try_get::<_, Option<bool>>(8)?.unwrap_or(false),
            user: row.try_get(9)?,
        })
    }

    /// What is wrong with it, and the SQL that mends it.
    fn objection(&self, publishes_all: bool) -> Option<(String, String)> {
        let name = quoted(&self.name);
        let publish = if publishes_all { "insert, update, delete, truncate" } else { "insert, truncate" };
        if !self.ours {
            let why = format!("it belongs to role '{}', and ours is '{}'", self.owner, self.user);
            return Some((why, format!("ALTER PUBLICATION {name} OWNER TO {};", quoted(&self.user))));
        }
        if self.all_tables {
            let why = "it is for all tables, which makes updates fail on those without a key".to_owned();
            return Some((why, format!("DROP PUBLICATION {name};")));
        }
        if self.via_root {
            let why = "it publishes partitions under the name of their partitioned table".to_owned();
            return Some((
                why,
                format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = false);"),
            ));
        }
        if !self.inserts_and_truncates || self.updates != publishes_all || self.deletes != publishes_all {
            let why = format!("it should publish '{publish}'");
            return Some((why, format!("ALTER PUBLICATION {name} SET (publish = '{publish}');")));
        }
        if self.lacks_generated {
            let why = "it leaves out stored generated columns, which makes updates fail where the replica identity \
                       holds one"
                .to_owned();
            return Some((
                why,
                format!("ALTER PUBLICATION {name} SET (publish_generated_columns = stored);"),
            ));
        }
        None
    }
}

async fn create(client: &Client, task: &str, name: &str) -> Result<(), PublicationError> {
    let doing = "create the task's publications";
    let facts =
        "SELECT current_setting('server_version_num')::int4, current_database()::text, current_user::text";
    let row = client.query_one(facts, &[]).await.map_err(|error| SqlError::new(doing, error))?;
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    let (version, database, user): (i32, String, String) =
        read().map_err(|error| SqlError::new(doing, error))?;

    let publish =
        if name == full_name(task) { "insert, update, delete, truncate" } else { "insert, truncate" };
    // From 18 on a server refuses UPDATE where the replica identity holds a generated column that is not published.
    let generated = if version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
    let sql = format!("CREATE PUBLICATION {} WITH (publish = '{publish}'{generated})", quoted(name));
    match client.batch_execute(&sql).await.map_err(|error| SqlError::new(doing, error)) {
        Err(error) if error.is_permission() => Err(PublicationError::MayNotCreate { database, user }),
        result => Ok(result?),
    }
}

/// One of the two publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Full,
    InsertOnly,
}

impl Place {
    fn of(table: &TrackedTable) -> Place {
        if table.usable_identity && !table.partitioned { Place::Full } else { Place::InsertOnly }
    }

    fn other(self) -> Place {
        match self {
            Place::Full => Place::InsertOnly,
            Place::InsertOnly => Place::Full,
        }
    }

    fn name(self, task: &str) -> String {
        match self {
            Place::Full => full_name(task),
            Place::InsertOnly => insert_only_name(task),
        }
    }
}

/// A table that a publication lists.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    table: Removed,
    full: bool,
    insert_only: bool,
}

impl Member {
    fn is_in(&self, place: Place) -> bool {
        match place {
            Place::Full => self.full,
            Place::InsertOnly => self.insert_only,
        }
    }
}

/// What must be done about one table: leave one publication, join another, or both at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step<'a> {
    /// The table's present names.
    name: Removed,
    /// The table as it is wanted; `None` when it is not.
    table: Option<&'a TrackedTable>,
    join: Option<Place>,
    leave: Vec<Place>,
}

impl Step<'_> {
    fn is_owned(&self) -> bool {
        self.table.is_some_and(|table| table.owned_by_us)
    }

    /// Steps of one kind are done together.
    fn kind(&self) -> (Option<Place>, &[Place]) {
        (self.join, &self.leave)
    }
}

/// The steps from what is listed to what is wanted. First those that keep users' statements from failing.
fn plan<'a>(wanted: &'a [TrackedTable], members: &[Member]) -> Vec<Step<'a>> {
    let listed: HashMap<u32, &Member> = members.iter().map(|m| (m.table.oid, m)).collect();
    let mut steps = Vec::new();
    for table in wanted {
        let place = Place::of(table);
        let is_in = |place| listed.get(&table.oid).is_some_and(|member| member.is_in(place));
        let join = (!is_in(place)).then_some(place);
        let leave: Vec<Place> = is_in(place.other()).then_some(place.other()).into_iter().collect();
        if join.is_some() || !leave.is_empty() {
            let name = Removed { oid: table.oid, schema: table.schema.clone(), name: table.name.clone() };
            steps.push(Step { name, table: Some(table), join, leave });
        }
    }
    let wanted: HashSet<u32> = wanted.iter().map(|table| table.oid).collect();
    for member in members.iter().filter(|member| !wanted.contains(&member.table.oid)) {
        let leave =
            [Place::Full, Place::InsertOnly].into_iter().filter(|&place| member.is_in(place)).collect();
        steps.push(Step { name: member.table.clone(), table: None, join: None, leave });
    }
    steps.sort_by_key(|step| match (step.leave.contains(&Place::Full), step.join) {
        (true, _) => 0,
        (false, Some(Place::InsertOnly)) => 1,
        (false, None) => 2,
        (false, Some(Place::Full)) => 3 + u8::from(!step.leave.is_empty()),
    });
    steps
}

/// Puts exactly the tables `wanted` into the task's publications, each into the one it belongs in.
///
/// Goes on past tables that cannot be had, and reports them. On a standby nothing can be changed; differences are
/// reported with the SQL to run on its primary.
pub async fn reconcile(
    client: &Client,
    task: &str,
    wanted: &[TrackedTable],
) -> Result<Reconciled, PublicationError> {
    if let Some(name) = missing(client, task).await?.into_iter().next() {
        return Err(PublicationError::Missing(name));
    }
    let members = members(client, task).await?;
    let steps = plan(wanted, &members);
    let mut outcome = Reconciled::default();
    let mut joined = Vec::new();
    for batch in steps
        .chunk_by(|a, b| a.kind() == b.kind() && a.is_owned() && b.is_owned())
        .flat_map(|c| c.chunks(BATCH))
    {
        if let [step] = batch {
            take_one(client, task, step, &mut outcome, &mut joined).await?;
            continue;
        }
        // All or nothing, and most often all. What stands in the way of one must not hold up the others.
        match client.batch_execute(&statements(task, batch, true)).await {
            Ok(()) => batch.iter().for_each(|step| done(step, &mut outcome, &mut joined)),
            Err(error) if error.as_db_error().is_some() => {
                for step in batch {
                    take_one(client, task, step, &mut outcome, &mut joined).await?;
                }
            }
            Err(error) => return Err(SqlError::new("change the task's publications", error).into()),
        }
    }
    record_joins(client, &mut outcome, joined).await?;
    Ok(outcome)
}

/// OIDs of the tables that the publications list now.
pub async fn listed(client: &Client, task: &str) -> Result<HashSet<u32>, SqlError> {
    Ok(members(client, task).await?.into_iter().map(|member| member.table.oid).collect())
}

async fn members(client: &Client, task: &str) -> Result<Vec<Member>, SqlError> {
    const SQL: &str = "
        SELECT c.oid, n.nspname::text, c.relname::text, bool_or(p.pubname = $1), bool_or(p.pubname = $2)
        FROM pg_publication p
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname IN ($1, $2)
        GROUP BY 1, 2, 3";
    let failed = |error| SqlError::new("read the tables of the task's publications", error);
    let read = |row: &Row| {
        Ok(Member {
            table: Removed { oid: row.try_get(0)?, schema: row.try_get(1)?, name: row.try_get(2)? },
            full: row.try_get(3)?,
            insert_only: row.try_get(4)?,
        })
    };
    let rows = client.query(SQL, &[&full_name(task), &insert_only_name(task)]).await.map_err(failed)?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// Steps of one kind as one message, which the server runs as one transaction.
///
/// Several tables are locked first with NOWAIT, so that no table's lock is held while waiting for another's.
fn statements(task: &str, steps: &[Step<'_>], lock: bool) -> String {
    let tables = steps.iter().map(|step| only(&step.name)).collect::<Vec<_>>().join(", ");
    let mut sql = format!(
        "SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; \
         DO $$ BEGIN \
           IF NOT pg_try_advisory_xact_lock({}) THEN \
             RAISE lock_not_available USING MESSAGE = 'another session alters the publications of this task'; \
           END IF; \
         END $$;",
        advisory_lock(task)
    );
    if lock {
        sql.push_str(&format!(" LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;"));
    }
    if let Some(step) = steps.first() {
        if let Some(place) = step.join {
            sql.push_str(&format!(" ALTER PUBLICATION {} ADD TABLE {tables};", quoted(&place.name(task))));
        }
        for place in &step.leave {
            sql.push_str(&format!(" ALTER PUBLICATION {} DROP TABLE {tables};", quoted(&place.name(task))));
        }
    }
    sql
}

/// The arguments of the advisory lock that everyone takes who alters this task's publications.
pub fn advisory_lock(task: &str) -> String {
    // The first number is "mill": it keeps us apart from an application's own advisory locks.
    format!("{}, hashtext({})", 0x6D69_6C6C, postgres_protocol::escape::escape_literal(&full_name(task)))
}

/// Without ONLY the children of an inheritance parent would come along.
fn only(table: &Removed) -> String {
    format!("ONLY {}", qualified(&table.schema, &table.name))
}

/// Does one step by itself and files its outcome.
async fn take_one<'a>(
    client: &Client,
    task: &str,
    step: &Step<'a>,
    outcome: &mut Reconciled,
    joined: &mut Vec<Step<'a>>,
) -> Result<(), SqlError> {
    if let (Some(table), Some(place)) = (step.table, step.join)
        && !table.owned_by_us
    {
        outcome
            .not_captured
            .push(not_owned(client, task, table, place, step.leave.contains(&Place::InsertOnly)).await?);
        // Without the right to add it to the other publication, it leaves this one all the same where users' updates
        // would fail (I7).
        if !step.leave.contains(&Place::Full) {
            return Ok(());
        }
        let leave = Step { join: None, ..step.clone() };
        return run_one(client, task, &leave, outcome, joined).await;
    }
    run_one(client, task, step, outcome, joined).await
}

async fn run_one<'a>(
    client: &Client,
    task: &str,
    step: &Step<'a>,
    outcome: &mut Reconciled,
    joined: &mut Vec<Step<'a>>,
) -> Result<(), SqlError> {
    let sql = statements(task, std::slice::from_ref(step), false);
    let Err(error) = client.batch_execute(&sql).await else {
        done(step, outcome, joined);
        return Ok(());
    };
    let error = SqlError::new(format!("change the publications for table {}", only(&step.name)), error);
    match error.sqlstate.as_ref().map(|state| state.code().to_owned()).as_deref() {
        None => return Err(error),
        // Dropped or renamed, or altered by another session, since the catalog was read: the next poll sees it.
        Some("42P01" | "3F000" | "42710" | "42704") => outcome.busy.push(step.name.clone()),
        Some("55P03" | "40P01" | "40001" | "57014") => outcome.busy.push(step.name.clone()),
        Some(code) if code.starts_with("57") || code.starts_with("08") => return Err(error),
        Some(_) => {
            if let Some(table) = step.table {
                let sql = statements_by_hand(task, step);
                outcome.not_captured.push(NotCaptured {
                    table: table.clone(),
                    reason: error.reason.clone(),
                    sql,
                });
            } else {
                outcome.busy.push(step.name.clone());
            }
        }
    }
    Ok(())
}

/// The step as a person would run it.
fn statements_by_hand(task: &str, step: &Step<'_>) -> String {
    let table = only(&step.name);
    let join =
        step.join.map(|place| format!("ALTER PUBLICATION {} ADD TABLE {table};", quoted(&place.name(task))));
    let leave = step.leave.iter();
    let leave =
        leave.map(|place| format!("ALTER PUBLICATION {} DROP TABLE {table};", quoted(&place.name(task))));
    join.into_iter().chain(leave).collect::<Vec<_>>().join(" ")
}

async fn not_owned(
    client: &Client,
    task: &str,
    table: &TrackedTable,
    place: Place,
    captured_insert_only: bool,
) -> Result<NotCaptured, SqlError> {
    let failed = |error| SqlError::new("read the name of our role", error);
    let row = client.query_one("SELECT current_user::text", &[]).await.map_err(failed)?;
    let user: String = row.try_get(0).map_err(failed)?;
    let captured = if captured_insert_only { "; until then only its inserts are captured" } else { "" };
    let reason = format!(
        "only its owner '{}' or a superuser may add it to publication {}{captured}",
        table.owner,
        place.name(task)
    );
    let sql = format!("GRANT {} TO {};", quoted(&table.owner), quoted(&user));
    Ok(NotCaptured { table: table.clone(), reason, sql })
}

/// Files a step that the server has committed. Where a table joined a publication, more must be asked about it.
fn done<'a>(step: &Step<'a>, outcome: &mut Reconciled, joined: &mut Vec<Step<'a>>) {
    match (step.table, step.join) {
        (None, _) => outcome.removed.push(step.name.clone()),
        (Some(table), Some(Place::InsertOnly)) if step.leave.contains(&Place::Full) => {
            outcome.moved_to_insert_only.push(table.clone());
        }
        (Some(table), None) if step.leave.contains(&Place::Full) && table.owned_by_us => {
            outcome.moved_to_insert_only.push(table.clone());
        }
        (Some(_), Some(_)) => joined.push(step.clone()),
        (Some(_), None) => {}
    }
}

/// Finds out from where on the tables that joined are complete.
///
/// In this order: first who writes to them, then the LSN. A transaction that was open across the join is either still
/// seen by the first question, or has committed before the answer to the second.
async fn record_joins(
    client: &Client,
    outcome: &mut Reconciled,
    joined: Vec<Step<'_>>,
) -> Result<(), SqlError> {
    const WRITERS: &str = "
        SELECT ARRAY(SELECT l.relation FROM pg_locks l
                     WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY($1)
                       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                       AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                      'AccessExclusiveLock')),
               pg_snapshot_xmax(pg_current_snapshot())::text";
    if joined.is_empty() {
        return Ok(());
    }
    let failed = |error| SqlError::new("read from where on new tables are complete", error);
    let oids: Vec<u32> = joined.iter().map(|step| step.name.oid).collect();
    let row = client.query_one(WRITERS, &[&oids]).await.map_err(failed)?;
    let written: Vec<u32> = row.try_get(0).map_err(failed)?;
    let next_transaction: String = row.try_get(1).map_err(failed)?;
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await.map_err(failed)?;
    let complete_from = Lsn(row.try_get::<_, PgLsn>(0).map_err(failed)?.into());
    for step in joined {
        let Some(table) = step.table else { continue };
        let open_until = written.contains(&table.oid).then(|| next_transaction.parse().ok()).flatten();
        let insert_only = step.join == Some(Place::InsertOnly);
        let join = Joined { table: table.clone(), insert_only, complete_from, open_until };
        if step.leave.is_empty() { outcome.added.push(join) } else { outcome.moved_to_full.push(join) }
    }
    Ok(())
}

/// Whether all transactions that [`Joined::open_until`] warned of have ended; then, an LSN past their commits: what
/// commits beyond it is complete.
pub async fn settled(client: &Client, open_until: u64) -> Result<Option<Lsn>, SqlError> {
    // The snapshot is taken before the LSN is read: what it sees as ended has committed below that LSN.
    const SQL: &str = "
        SELECT CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8
                    THEN pg_current_wal_insert_lsn() END";
    let failed = |error| SqlError::new("see whether older transactions have ended", error);
    let row = client.query_one(SQL, &[&open_until.to_string()]).await.map_err(failed)?;
    Ok(row.try_get::<_, Option<PgLsn>>(0).map_err(failed)?.map(|lsn| Lsn(lsn.into())))
}
