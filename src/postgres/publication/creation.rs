//! An event trigger by which a new table joins in the transaction that creates it, so that none of its rows is missed.
//!
//! It runs inside users' DDL, with our rights, and must neither fail nor wait there (I7): whatever goes wrong in it is
//! swallowed, locks are waited for for milliseconds, and a table that could not be had is left to the poll. So are the
//! tables of CREATE TABLE AS and SELECT INTO, whose rows are written before they could join.
//!
//! What joined is written down in `millrace.joined` by the same transaction: who sees the table sees that, and knows that
//! nothing of it is missing.
//!
//! Everything is named after the task, but for the schema and that table, so that several tasks share a database.

use postgres_protocol::escape::escape_literal;
use tokio_postgres::{Client, Row};

use super::membership::{LOCK_TIMEOUT_MS, advisory_lock};
use super::{Partitions, SourceOptions, full_name, insert_only_name};
use crate::postgres::catalog::{ATTACHMENT, UNSENT_KEY, USABLE_IDENTITY, USER_TABLES};
use crate::postgres::objects::{Objects, Pattern};
use crate::postgres::sql::{SqlError, quoted};

/// A table that has joined in its creating transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinedAtCreation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Whether updates and deletes are published too, and not only inserts and truncates.
    pub full: bool,
    /// The attachment by which it was told as another table; `None` where it was told under its own name.
    pub attachment: Option<i64>,
}

fn trigger_name(task: &str) -> String {
    format!("millrace_{task}_join")
}

fn function_name(task: &str) -> String {
    format!("millrace.{}", quoted(&format!("join_{task}")))
}

/// Makes the event trigger select `objects`, or removes it where it is not `wanted`. Whether it is there then: only a
/// superuser adds everybody's tables to a publication.
pub async fn keep(
    client: &Client,
    task: &str,
    wanted: bool,
    objects: &Objects,
    publish: &SourceOptions,
) -> Result<bool, SqlError> {
    const SQL: &str =
        "SELECT rolsuper AND NOT pg_is_in_recovery() FROM pg_roles WHERE rolname = current_user";
    let failed = |error| SqlError::new("read what our role may", error);
    let may = client.query_one(SQL, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    match (wanted, may) {
        (true, true) => install(client, task, objects, publish).await?,
        (true, false) => tracing::info!(
            task,
            "new tables join when a poll sees them: only a superuser has them join in their creating transaction"
        ),
        (false, true) => remove(client, task).await?,
        (false, false) => {}
    }
    Ok(wanted && may)
}

/// Mends a table of an earlier version. Only then: the lock that it takes is in the way of whoever creates a table.
const ADD_ATTACHMENT: &str = "
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_attribute
                       WHERE attrelid = 'millrace.joined'::regclass AND attname = 'attachment') THEN
            ALTER TABLE millrace.joined ADD COLUMN attachment int8;
        END IF;
    END $$";

async fn install(
    client: &Client,
    task: &str,
    objects: &Objects,
    publish: &SourceOptions,
) -> Result<(), SqlError> {
    let failed = |error| SqlError::new("make the event trigger for new tables", error);
    let trigger = trigger_name(task);
    let known = "SELECT FROM pg_event_trigger WHERE evtname = $1::text";
    let is_there = client.query_opt(known, &[&trigger]).await.map_err(failed)?.is_some();
    // Before it, so that nothing of another's runs; and after it, because somebody may have been quicker. It is one
    // transaction.
    let is_ours = nobody_elses(task);
    let mut sql = format!(
        "{is_ours};
         CREATE SCHEMA IF NOT EXISTS millrace;
         CREATE TABLE IF NOT EXISTS millrace.joined
             (task text, oid oid, is_full boolean NOT NULL, attachment int8, PRIMARY KEY (task, oid));
         {ADD_ATTACHMENT};
         {};
         {is_ours};",
        function(task, objects, publish)
    );
    if !is_there {
        sql.push_str(&format!(
            "CREATE EVENT TRIGGER {} ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'CREATE SCHEMA') \
             EXECUTE FUNCTION {}();",
            quoted(&trigger),
            function_name(task)
        ));
    }
    client.batch_execute(&sql).await.map_err(failed)
}

async fn remove(client: &Client, task: &str) -> Result<(), SqlError> {
    let failed = |error| SqlError::new("drop the event trigger for new tables", error);
    let trigger = trigger_name(task);
    let known = "SELECT FROM pg_event_trigger WHERE evtname = $1::text";
    if client.query_opt(known, &[&trigger]).await.map_err(failed)?.is_none() {
        return Ok(());
    }
    let sql = format!("DROP EVENT TRIGGER {}; DROP FUNCTION {}();", quoted(&trigger), function_name(task));
    client.batch_execute(&sql).await.map_err(failed)?;
    let forget = format!("DELETE FROM millrace.joined WHERE task = {};", escape_literal(task));
    client.batch_execute(&format!("{}; {forget}", nobody_elses(task))).await.map_err(failed)
}

/// A statement that fails where somebody else has made what the event trigger needs, or has prepared it.
///
/// We are a superuser here, and everybody who may create schemas in the database can make one of our name first: with a
/// trigger on the table, or as the owner of the function, they would have their code run with our rights.
fn nobody_elses(task: &str) -> String {
    let body = format!(
        "DECLARE wrong text;
         BEGIN
           SELECT string_agg(what, ', ') INTO wrong FROM (
             SELECT format('%s belongs to %I', made.what, r.rolname) FROM (
               SELECT 'schema millrace', nspowner FROM pg_namespace WHERE nspname = 'millrace'
               UNION ALL
               SELECT 'table millrace.joined', c.relowner
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'millrace' AND c.relname = 'joined'
               UNION ALL
               SELECT format('function millrace.%I', p.proname), p.proowner
               FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
               WHERE n.nspname = 'millrace' AND p.proname = {}) made(what, owner)
             JOIN pg_roles r ON r.oid = made.owner WHERE NOT r.rolsuper
             UNION ALL
             SELECT 'millrace.joined is no plain table, or has triggers or rules'
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'millrace' AND c.relname = 'joined'
               AND (c.relkind <> 'r' OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid)
                    OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid))) all_wrong(what);
           IF wrong IS NOT NULL THEN
             RAISE insufficient_privilege USING
               MESSAGE = wrong || ': it could run code with our rights',
               HINT = 'find out who made it, and run: DROP SCHEMA millrace CASCADE';
           END IF;
         END",
        escape_literal(&format!("join_{task}"))
    );
    format!("DO {}", escape_literal(&body))
}

/// The tables that have joined in their creating transaction, as far as they have not been [forgotten](forget).
pub async fn joined(client: &Client, task: &str) -> Result<Vec<JoinedAtCreation>, SqlError> {
    let failed = |error| SqlError::new("read which tables joined when they were created", error);
    let rows =
        client.query("SELECT oid, is_full, attachment FROM millrace.joined WHERE task = $1", &[&task]).await;
    let read = |row: &Row| {
        Ok(JoinedAtCreation { oid: row.try_get(0)?, full: row.try_get(1)?, attachment: row.try_get(2)? })
    };
    rows.map_err(failed)?.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// Forgets that these tables have joined so, and those that are gone.
pub async fn forget(client: &Client, task: &str, tables: &[u32]) -> Result<(), SqlError> {
    const SQL: &str = "
        DELETE FROM millrace.joined j
        WHERE task = $1 AND (oid = ANY($2) OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = j.oid))";
    let failed = |error| SqlError::new("forget which tables joined when they were created", error);
    client.execute(SQL, &[&task, &tables]).await.map(drop).map_err(failed)
}

/// The statement that makes the trigger's function.
///
/// It leaves to the poll the tables that are published in part, and partitions that may not fit the name that they are told
/// under.
fn function(task: &str, objects: &Objects, publish: &SourceOptions) -> String {
    let (full, insert_only) = (escape_literal(&full_name(task)), escape_literal(&insert_only_name(task)));
    let (lock, task_literal) = (advisory_lock(task), escape_literal(task));
    let left_out = objects.exclude().iter().chain(publish.table_options.iter().map(|table| &table.name));
    let (included, excluded) = (is_one_of(objects.include()), is_one_of(left_out));
    let by_root = publish.partitions_as == Partitions::Root;
    let fits = match publish.partitions_as {
        Partitions::Leaf => "true",
        Partitions::Root => {
            "(NOT c.relispartition OR EXISTS (
                 SELECT FROM pg_class r JOIN pg_index i ON i.indrelid = r.oid AND i.indisprimary
                 WHERE r.oid = pg_partition_root(c.oid) AND r.relreplident = 'd'))"
        }
    };
    let body = format!(
        "DECLARE made record;
         BEGIN
           FOR made IN
             SELECT c.oid, n.nspname, c.relname, c.relkind = 'r' AND {USABLE_IDENTITY} AND NOT {UNSENT_KEY} AS is_full
             {USER_TABLES}
               AND c.oid IN (SELECT objid FROM pg_event_trigger_ddl_commands()
                             WHERE classid = 'pg_class'::regclass AND command_tag = 'CREATE TABLE')
               AND {included} AND NOT {excluded} AND {fits}
           LOOP
             IF NOT pg_try_advisory_xact_lock({lock}) THEN
               RETURN;
             END IF;
             EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I',
                            CASE WHEN made.is_full THEN {full} ELSE {insert_only} END, made.nspname, made.relname);
             INSERT INTO millrace.joined (task, oid, is_full, attachment)
                 SELECT {task_literal}, c.oid, made.is_full, CASE WHEN {by_root} AND EXISTS (
                     SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                     WHERE p.pubname IN ({full}, {insert_only}) AND r.prrelid <> c.oid
                       AND r.prrelid IN (SELECT pg_partition_ancestors(c.oid))) THEN {ATTACHMENT} END
                 FROM pg_class c WHERE c.oid = made.oid;
           END LOOP;
         EXCEPTION WHEN OTHERS THEN
           NULL;
         END"
    );
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp
             SET lock_timeout = {LOCK_TIMEOUT_MS}
             SET client_min_messages = error
             AS {}",
        function_name(task),
        escape_literal(&body)
    )
}

/// Whether a table `c`, or a partitioned table above it, is meant by one of the patterns.
fn is_one_of<'a>(patterns: impl IntoIterator<Item = &'a Pattern>) -> String {
    let likes: Vec<String> = patterns
        .into_iter()
        .map(|pattern| {
            let (schema, table) = pattern.like();
            format!(
                "(s.nspname LIKE {} AND t.relname LIKE {})",
                escape_literal(&schema),
                escape_literal(&table)
            )
        })
        .collect();
    let meant = if likes.is_empty() { "false".to_owned() } else { likes.join(" OR ") };
    format!(
        "EXISTS (SELECT FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace
                 WHERE (t.oid = c.oid OR c.relispartition AND t.oid IN (SELECT pg_partition_ancestors(c.oid)))
                   AND ({meant}))"
    )
}
