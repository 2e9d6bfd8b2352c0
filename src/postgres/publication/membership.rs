//! Which tables stand in which of a task's publications, and how they get there. The publications themselves, and
//! the rules that hold for both, are above in [`publication`](super).

use std::collections::{HashMap, HashSet};

use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::options::{FilterColumns, SourceOptions, Weakness, arrange};
use super::{PublicationError, full_name, insert_only_name, missing};
use crate::change::Lsn;
use crate::postgres::catalog::{TableName, TrackedTable};
use crate::postgres::sql::{SqlError, qualified, quoted};

/// How long a statement of ours waits for a lock, in milliseconds.
pub(super) const LOCK_TIMEOUT_MS: u32 = 20;

/// Tables of one statement. Bounds the locks that one transaction takes.
const BATCH: usize = 200;

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

/// What [`reconcile`] did.
#[derive(Debug, Clone, Default)]
pub struct Reconciled {
    /// The tables that are wanted, with how they are published.
    pub tables: Vec<TrackedTable>,
    /// Tables that were in neither publication and joined one.
    pub added: Vec<Joined>,
    /// Tables that are no longer wanted. (A dropped table leaves by itself and is not listed.)
    pub removed: Vec<TableName>,
    /// Tables that lost their replica identity. No insert is missed; updates and deletes are no longer sent.
    pub moved_to_insert_only: Vec<TrackedTable>,
    /// Tables that gained a replica identity: updates and deletes are sent from here on, inserts always were.
    pub moved_to_full: Vec<Joined>,
    /// Tables that need something done by hand.
    pub not_captured: Vec<NotCaptured>,
    /// Tables that someone else had locked: the next poll tries again.
    pub busy: Vec<TableName>,
}

impl Reconciled {
    /// What two runs did, of which this is the later one.
    pub fn after(mut self, earlier: Reconciled) -> Self {
        self.added.extend(earlier.added);
        self.removed.extend(earlier.removed);
        self.moved_to_insert_only.extend(earlier.moved_to_insert_only);
        self.moved_to_full.extend(earlier.moved_to_full);
        self
    }

    /// Whether all is as wanted, so that nothing needs to be looked at before the fingerprint changes. Otherwise look
    /// again at the next poll while tables are `busy`; now and then while some are `not_captured`, because what is
    /// granted to our role does not show in the fingerprint.
    pub fn is_settled(&self) -> bool {
        self.not_captured.is_empty() && self.busy.is_empty()
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
        if table.published.updates { Place::Full } else { Place::InsertOnly }
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

/// A table that the publications list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    table: TableName,
    full: Option<Narrowed>,
    insert_only: Option<Narrowed>,
}

/// What a publication publishes of a table that it lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Narrowed {
    /// Only these columns, sorted.
    columns: Option<Vec<String>>,
    /// Only rows for which a condition on these columns holds.
    filter: Option<Vec<String>>,
}

impl Narrowed {
    /// Of a condition only its columns can be compared: the server keeps it in a form of its own.
    fn is_of(&self, table: &TrackedTable) -> bool {
        let published = &table.published;
        self.columns == published.columns && self.filter.is_some() == published.filter.is_some()
    }
}

impl Member {
    fn at(&self, place: Place) -> Option<&Narrowed> {
        match place {
            Place::Full => self.full.as_ref(),
            Place::InsertOnly => self.insert_only.as_ref(),
        }
    }

    fn is_in(&self, place: Place) -> bool {
        self.at(place).is_some()
    }
}

/// Which columns the filters look at, of tables that are listed with one.
fn filter_columns(members: &[Member]) -> FilterColumns {
    let of = |member: &Member| {
        let narrowed = member.insert_only.as_ref().or(member.full.as_ref())?;
        Some((member.table.oid, narrowed.filter.clone()?))
    };
    members.iter().filter_map(of).collect()
}

/// What must be done about one table: leave one publication, join another, or both at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step<'a> {
    /// The table's present names.
    name: TableName,
    /// The table as it is wanted; `None` when it is not.
    table: Option<&'a TrackedTable>,
    join: Option<Place>,
    leave: Vec<Place>,
}

impl Step<'_> {
    fn is_owned(&self) -> bool {
        self.table.is_some_and(|table| table.owned_by_us)
    }

    /// Whether it may fail for what a person wrote.
    fn is_narrowed(&self) -> bool {
        self.table.is_some_and(|table| table.published.filter.is_some() || table.published.columns.is_some())
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
        let at = |place| listed.get(&table.oid).and_then(|member| member.at(place));
        let is_right = at(place).is_some_and(|narrowed| narrowed.is_of(table));
        let join = (!is_right).then_some(place);
        let wrong = at(place).filter(|_| !is_right).map(|_| place);
        let other = at(place.other()).map(|_| place.other());
        let leave: Vec<Place> = wrong.into_iter().chain(other).collect();
        if join.is_some() || !leave.is_empty() {
            let name = TableName { oid: table.oid, schema: table.schema.clone(), name: table.name.clone() };
            steps.push(Step { name, table: Some(table), join, leave });
        }
    }
    let wanted: HashSet<u32> = wanted.iter().map(|table| table.oid).collect();
    for member in members.iter().filter(|member| !wanted.contains(&member.table.oid)) {
        let leave =
            [Place::Full, Place::InsertOnly].into_iter().filter(|&place| member.is_in(place)).collect();
        steps.push(Step { name: member.table.clone(), table: None, join: None, leave });
    }
    steps.sort_by_key(|step| {
        let urgency = match (step.leave.contains(&Place::Full), step.join) {
            (true, _) => 0,
            (false, Some(Place::InsertOnly)) => 1,
            (false, None) => 2,
            (false, Some(Place::Full)) => 3 + u8::from(!step.leave.is_empty()),
        };
        // What can be done together stands together.
        (urgency, !step.is_owned())
    });
    steps
}

/// Puts exactly the tables `wanted` into the task's publications, each into the one it belongs in. Those that are not wanted
/// leave as far as they were [`listed`] before `wanted` was read: others have been made, and have joined, since.
///
/// Goes on past tables that cannot be had, and reports them. On a standby nothing can be changed; differences are
/// reported with the SQL to run on its primary.
///
/// After an error, or a crash of ours, some tables may have joined without being reported: so the caller keeps which
/// tables it knows to be captured, and compares with [`listed`] when it starts again.
pub async fn reconcile(
    client: &Client,
    task: &str,
    options: &SourceOptions,
    wanted: &[TrackedTable],
    listed: &HashSet<u32>,
) -> Result<Reconciled, PublicationError> {
    if let Some(name) = missing(client, task, options).await?.into_iter().next() {
        return Err(PublicationError::Missing(name));
    }
    let user = current_user(client).await?;
    let mut work = Work { client, task, user, outcome: Reconciled::default(), joined: Vec::new() };
    let alike = |a: &Step<'_>, b: &Step<'_>| {
        let is_plain = |step: &Step<'_>| step.is_owned() && !step.is_narrowed();
        a.kind() == b.kind() && is_plain(a) && is_plain(b)
    };
    // Once more where a filter had to be listed before the server tells which columns it looks at.
    for _ in 0..2 {
        let mut members = members(client, task).await?;
        let is_wanted = |oid| wanted.iter().any(|table| table.oid == oid);
        members.retain(|member| listed.contains(&member.table.oid) || is_wanted(member.table.oid));
        let tables = arrange(options, wanted, &filter_columns(&members));
        work.outcome.busy.clear();
        work.outcome.not_captured.clear();
        let steps = plan(&tables, &members);
        for batch in steps.chunk_by(alike).flat_map(|steps| steps.chunks(BATCH)) {
            work.take(batch).await?;
        }
        let is_undecided = tables.iter().any(|table| table.published.is_undecided());
        work.outcome.tables = tables;
        if !is_undecided {
            break;
        }
    }
    Ok(work.finish().await?)
}

/// A reconciliation under way.
struct Work<'a> {
    client: &'a Client,
    task: &'a str,
    user: String,
    outcome: Reconciled,
    /// Tables that joined a publication, about which more is to be asked at the end.
    joined: Vec<Joining>,
}

/// A table that has joined a publication.
struct Joining {
    table: TrackedTable,
    place: Place,
    /// The other publication listed it before.
    was_listed: bool,
}

impl Work<'_> {
    /// Does steps of one kind. All or nothing, and most often all; what stands in the way of one must not hold up the
    /// others.
    async fn take(&mut self, batch: &[Step<'_>]) -> Result<(), SqlError> {
        if batch.len() > 1 {
            match self.client.batch_execute(&statements(self.task, batch, true)).await {
                Ok(()) => {
                    batch.iter().for_each(|step| self.done(step));
                    return Ok(());
                }
                Err(error) if error.as_db_error().is_some() => {}
                Err(error) => return Err(SqlError::new("change the task's publications", error)),
            }
        }
        for step in batch {
            self.take_one(step).await?;
        }
        Ok(())
    }

    async fn take_one(&mut self, step: &Step<'_>) -> Result<(), SqlError> {
        match (step.table, step.join) {
            (Some(table), Some(place)) if !table.owned_by_us => {
                self.outcome.not_captured.push(self.not_owned(table, place, step));
                self.leave_full(step).await
            }
            (Some(table), Some(_)) => match wrong_options(self.client, table).await {
                Ok(None) => self.run(step).await,
                // Somebody has locked it: the other steps do not wait for that.
                Err(error) if may_pass(&error) => {
                    self.outcome.busy.push(step.name.clone());
                    self.leave_full(step).await
                }
                Err(error) => Err(error),
                Ok(Some(reason)) => {
                    let sql = "correct its where and its columns".to_owned();
                    self.outcome.not_captured.push(NotCaptured { table: table.clone(), reason, sql });
                    self.leave_full(step).await
                }
            },
            _ => self.run(step).await,
        }
    }

    /// Has a table that cannot join the publication where it belongs leave the one for updates all the same, where users'
    /// updates would fail (I7).
    async fn leave_full(&mut self, step: &Step<'_>) -> Result<(), SqlError> {
        // Ours that is only to be listed anew belongs there.
        let may_stay = step.join != Some(Place::InsertOnly) && step.is_owned();
        if step.join.is_none() || may_stay || !step.leave.contains(&Place::Full) {
            return Ok(());
        }
        let leave = Step { join: None, leave: vec![Place::Full], ..step.clone() };
        match self.execute(&leave).await? {
            None => self.done(&leave),
            Some(error) if may_pass(&error) => self.outcome.busy.push(step.name.clone()),
            // It is filed as not captured, and looked at again.
            Some(_) => {}
        }
        Ok(())
    }

    fn not_owned(&self, table: &TrackedTable, place: Place, step: &Step<'_>) -> NotCaptured {
        let captured = match step.leave.contains(&Place::InsertOnly) {
            true => "; until then only its inserts are captured",
            false => "",
        };
        let (owner, publication) = (&table.owner, place.name(self.task));
        let reason = format!(
            "only its owner '{owner}' or a superuser may add it to publication {publication}{captured}"
        );
        let sql = format!("GRANT {} TO {};", quoted(owner), quoted(&self.user));
        NotCaptured { table: table.clone(), reason, sql }
    }

    async fn run(&mut self, step: &Step<'_>) -> Result<(), SqlError> {
        let Some(error) = self.execute(step).await? else {
            self.done(step);
            return Ok(());
        };
        match step.table {
            Some(table) if !may_pass(&error) => {
                let sql = statements_by_hand(self.task, step);
                self.outcome.not_captured.push(NotCaptured {
                    table: table.clone(),
                    reason: error.reason,
                    sql,
                });
                self.leave_full(step).await?;
            }
            _ => self.outcome.busy.push(step.name.clone()),
        }
        Ok(())
    }

    /// Runs a step's statements, and gives the error for which the server refused them. One that ends the session is ours.
    async fn execute(&self, step: &Step<'_>) -> Result<Option<SqlError>, SqlError> {
        let sql = statements(self.task, std::slice::from_ref(step), false);
        let Err(error) = self.client.batch_execute(&sql).await else { return Ok(None) };
        let error = SqlError::new(format!("change the publications for table {}", only(&step.name)), error);
        match error.sqlstate.as_ref().map(|state| state.code()) {
            None | Some("57P01" | "57P02" | "57P03") => Err(error),
            Some(_) => Ok(Some(error)),
        }
    }

    /// Files a step that the server has committed.
    fn done(&mut self, step: &Step<'_>) {
        let left = |place| step.leave.contains(&place);
        match (step.table, step.join) {
            (None, _) => self.outcome.removed.push(step.name.clone()),
            // Listed anew as it should be.
            (Some(_), Some(place)) if left(place) => {}
            // With or without joining the other one.
            (Some(table), _) if left(Place::Full) => {
                self.outcome.moved_to_insert_only.push(table.clone());
            }
            (Some(table), Some(place)) => {
                // One that joined in the same call has not been there before it.
                let earlier = self.joined.iter().position(|joining| joining.table.oid == table.oid);
                let earlier = earlier.map(|at| self.joined.swap_remove(at));
                let was_listed = earlier.map_or(!step.leave.is_empty(), |earlier| earlier.was_listed);
                self.joined.push(Joining { table: table.clone(), place, was_listed });
            }
            (Some(_), None) => {}
        }
    }

    /// Finds out from where on the tables that joined are complete.
    ///
    /// In this order: first who writes to them, then the LSN. A transaction that was open across the join is either
    /// still seen by the first question, or has committed before the answer to the second.
    async fn finish(mut self) -> Result<Reconciled, SqlError> {
        const WRITERS: &str = "
            SELECT ARRAY(SELECT l.relation FROM pg_locks l
                         WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY($1)
                           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                           AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                          'AccessExclusiveLock')),
                   pg_snapshot_xmax(pg_current_snapshot())::text";
        if self.joined.is_empty() {
            return Ok(self.outcome);
        }
        let failed = |error| SqlError::new("read from where on new tables are complete", error);
        let oids: Vec<u32> = self.joined.iter().map(|joining| joining.table.oid).collect();
        let row = self.client.query_one(WRITERS, &[&oids]).await.map_err(failed)?;
        let written: HashSet<u32> = row.try_get::<_, Vec<u32>>(0).map_err(failed)?.into_iter().collect();
        let next_transaction: String = row.try_get(1).map_err(failed)?;
        let row = self.client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await.map_err(failed)?;
        let complete_from = Lsn(row.try_get::<_, PgLsn>(0).map_err(failed)?.into());
        for Joining { table, place, was_listed } in self.joined {
            let open_until = written.contains(&table.oid).then(|| next_transaction.parse().ok()).flatten();
            let join = Joined { table, insert_only: place == Place::InsertOnly, complete_from, open_until };
            match was_listed {
                false => self.outcome.added.push(join),
                true => self.outcome.moved_to_full.push(join),
            }
        }
        Ok(self.outcome)
    }
}

/// Whether a step may do better at the next poll: its table was locked by somebody; or was dropped, renamed or altered by
/// another session since the catalog was read.
fn may_pass(error: &SqlError) -> bool {
    let code = error.sqlstate.as_ref().map(|state| state.code());
    matches!(code, Some("55P03" | "40P01" | "40001" | "57014" | "42P01" | "3F000" | "42710" | "42704"))
}

/// Why the table's filter is no condition on its rows, or its columns are none of it. What the server takes here as part of
/// one statement cannot be more than part of one in ours either.
async fn wrong_options(client: &Client, table: &TrackedTable) -> Result<Option<String>, SqlError> {
    let (filter, columns) = (&table.published.filter, &table.published.columns);
    if filter.is_none() && columns.is_none() {
        return Ok(None);
    }
    let columns = columns.iter().flatten().map(|column| format!("{table}.{}", quoted(column)));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let filter = filter.as_deref().unwrap_or("true");
    let sql = format!("SELECT {columns} FROM ONLY {table} WHERE ({filter}\n) AND true");
    match client.prepare(&sql).await.map_err(|error| SqlError::new("use its filter and columns", error)) {
        Ok(_) => Ok(None),
        Err(error) if error.sqlstate.is_none() || error.is_transient() || may_pass(&error) => Err(error),
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// The tables of which filter or columns cannot be meant, a sentence each.
pub async fn all_wrong_options(
    client: &Client,
    options: &SourceOptions,
    tables: &[TrackedTable],
) -> Result<Vec<String>, SqlError> {
    let mut wrong = Vec::new();
    for table in arrange(options, tables, &FilterColumns::new()) {
        match wrong_options(client, &table).await {
            Ok(reason) => wrong.extend(reason.map(|reason| format!("{table}: {reason}"))),
            // It is looked at again when it joins.
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wrong)
}

/// The tables that are published insert-only, as far as can be told before their filters are listed.
pub async fn weaknesses(
    client: &Client,
    task: &str,
    options: &SourceOptions,
    tables: &[TrackedTable],
) -> Result<Vec<(TrackedTable, Weakness)>, SqlError> {
    let known = filter_columns(&members(client, task).await?);
    let weak = |mut table: TrackedTable| Some((table.published.weakness.take()?, table));
    let tables = arrange(options, tables, &known).into_iter();
    Ok(tables.filter_map(weak).map(|(weakness, table)| (table, weakness)).collect())
}

/// OIDs of the tables that the publications list now.
pub async fn listed(client: &Client, task: &str) -> Result<HashSet<u32>, SqlError> {
    Ok(members(client, task).await?.into_iter().map(|member| member.table.oid).collect())
}

async fn members(client: &Client, task: &str) -> Result<Vec<Member>, SqlError> {
    // By way of JSON a column that this version lacks reads as null: filters and columns are from 15 on. A condition is
    // kept as a tree, in which each column stands with its number.
    const SQL: &str = r#"
        SELECT c.oid, n.nspname::text, c.relname::text, p.pubname = $1,
               CASE WHEN j.r->>'prattrs' IS NOT NULL THEN ARRAY(
                   SELECT a.attname::text FROM jsonb_array_elements_text(j.r->'prattrs') listed(attnum)
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = listed.attnum::int2
                   ORDER BY a.attname COLLATE "C") END,
               CASE WHEN j.r->>'prqual' IS NOT NULL THEN ARRAY(
                   SELECT DISTINCT a.attname::text
                   FROM regexp_matches(j.r->>'prqual', ':varattno (\d+)', 'g') used(attnum)
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = used.attnum[1]::int2) END
        FROM pg_publication p
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (SELECT to_jsonb(r) AS r) j
        WHERE p.pubname IN ($1, $2)
        ORDER BY 1"#;
    let failed = |error| SqlError::new("read the tables of the task's publications", error);
    let read = |row: &Row| -> Result<(TableName, bool, Narrowed), tokio_postgres::Error> {
        let table = TableName { oid: row.try_get(0)?, schema: row.try_get(1)?, name: row.try_get(2)? };
        Ok((table, row.try_get(3)?, Narrowed { columns: row.try_get(4)?, filter: row.try_get(5)? }))
    };
    let rows = client.query(SQL, &[&full_name(task), &insert_only_name(task)]).await.map_err(failed)?;
    let mut members: Vec<Member> = Vec::new();
    for row in &rows {
        let (table, is_full, narrowed) = read(row).map_err(failed)?;
        if members.last().is_none_or(|last| last.table.oid != table.oid) {
            members.push(Member { table, full: None, insert_only: None });
        }
        if let Some(member) = members.last_mut() {
            *(if is_full { &mut member.full } else { &mut member.insert_only }) = Some(narrowed);
        }
    }
    Ok(members)
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
        for place in &step.leave {
            sql.push_str(&format!(" ALTER PUBLICATION {} DROP TABLE {tables};", quoted(&place.name(task))));
        }
        if let Some(place) = step.join {
            let tables = steps.iter().map(narrowed).collect::<Vec<_>>().join(", ");
            sql.push_str(&format!(" ALTER PUBLICATION {} ADD TABLE {tables};", quoted(&place.name(task))));
        }
    }
    sql
}

/// The table with its columns and its filter, as it is to be listed. The line ends so that no comment in the filter goes
/// further.
fn narrowed(step: &Step<'_>) -> String {
    let mut sql = only(&step.name);
    let published = step.table.map(|table| &table.published);
    if let Some(columns) = published.and_then(|published| published.columns.as_ref()) {
        let columns = columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
        sql.push_str(&format!(" ({columns})"));
    }
    if let Some(filter) = published.and_then(|published| published.filter.as_ref()) {
        sql.push_str(&format!(" WHERE ({filter}\n)"));
    }
    sql
}

/// Without ONLY the children of an inheritance parent would come along.
fn only(table: &TableName) -> String {
    format!("ONLY {}", qualified(&table.schema, &table.name))
}

/// The arguments of the advisory lock that everyone takes who alters this task's publications.
pub fn advisory_lock(task: &str) -> String {
    // The first number is "mill": it keeps us apart from an application's own advisory locks.
    format!("{}, hashtext({})", 0x6D69_6C6C, escape_literal(&full_name(task)))
}

/// The step as a person would run it.
fn statements_by_hand(task: &str, step: &Step<'_>) -> String {
    let (table, listed) = (only(&step.name), narrowed(step));
    let leave = step.leave.iter();
    let leave =
        leave.map(|place| format!("ALTER PUBLICATION {} DROP TABLE {table};", quoted(&place.name(task))));
    let join =
        step.join.map(|place| format!("ALTER PUBLICATION {} ADD TABLE {listed};", quoted(&place.name(task))));
    leave.chain(join).collect::<Vec<_>>().join(" ")
}

async fn current_user(client: &Client) -> Result<String, SqlError> {
    let failed = |error| SqlError::new("read the name of our role", error);
    client.query_one("SELECT current_user::text", &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
}

/// What [`Joined::open_until`] would be if every transaction that is open now wrote to the table.
pub async fn open_now(client: &Client) -> Result<u64, SqlError> {
    const SQL: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let failed = |error| SqlError::new("see which transactions are open", error);
    let row = client.query_one(SQL, &[]).await.map_err(failed)?;
    let next_transaction: String = row.try_get(0).map_err(failed)?;
    // What cannot be read as a number is no number that a server sends: never settled, rather than too early.
    Ok(next_transaction.parse().unwrap_or(u64::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::publication::Published;
    use proptest::prelude::*;

    fn wanted() -> impl Strategy<Value = Vec<TrackedTable>> {
        let table = |(oid, usable_identity, partitioned, owned_by_us)| TrackedTable {
            oid,
            schema: "s".to_owned(),
            name: format!("t{oid}"),
            partitioned,
            usable_identity,
            published: Published { updates: usable_identity && !partitioned, ..Published::default() },
            owned_by_us,
            owner: "o".to_owned(),
            ..TrackedTable::default()
        };
        let tables = prop::collection::vec((0u32..12, any::<bool>(), any::<bool>(), any::<bool>()), 0..12);
        tables.prop_map(move |tables| {
            let mut tables: Vec<TrackedTable> = tables.into_iter().map(table).collect();
            tables.sort_by_key(|table| table.oid);
            tables.dedup_by_key(|table| table.oid);
            tables
        })
    }

    fn members() -> impl Strategy<Value = Vec<Member>> {
        let member = |(oid, (full, insert_only))| Member {
            table: TableName { oid, schema: "s".to_owned(), name: format!("t{oid}") },
            full,
            insert_only,
        };
        let (none, plain) = (None, Some(Narrowed::default()));
        let columns = Some(Narrowed { columns: Some(vec!["c".to_owned()]), filter: None });
        let places = prop_oneof![
            Just((plain.clone(), none.clone())),
            Just((none.clone(), plain.clone())),
            Just((plain.clone(), plain)),
            Just((columns.clone(), none.clone())),
            Just((none, columns)),
        ];
        prop::collection::btree_map(0u32..12, places, 0..12)
            .prop_map(move |all| all.into_iter().map(member).collect())
    }

    proptest! {
        #[test]
        fn the_steps_lead_to_what_is_wanted_and_those_that_users_need_come_first(
            wanted in wanted(), members in members()
        ) {
            let mut listed: HashSet<(u32, bool)> = HashSet::new();
            listed.extend(members.iter().filter(|m| m.full.is_some()).map(|m| (m.table.oid, true)));
            listed.extend(members.iter().filter(|m| m.insert_only.is_some()).map(|m| (m.table.oid, false)));
            let steps = plan(&wanted, &members);
            for step in &steps {
                for place in &step.leave {
                    prop_assert!(listed.remove(&(step.name.oid, *place == Place::Full)), "leaves where it is not");
                }
                if let Some(place) = step.join {
                    prop_assert!(listed.insert((step.name.oid, place == Place::Full)), "joins where it is");
                }
            }
            let goal: HashSet<(u32, bool)> =
                wanted.iter().map(|table| (table.oid, table.usable_identity && !table.partitioned)).collect();
            prop_assert_eq!(listed, goal);
            prop_assert!(steps.is_sorted_by_key(|step| !step.leave.contains(&Place::Full)));
        }
    }
}
