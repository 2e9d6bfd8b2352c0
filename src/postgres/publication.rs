//! A task's two publications, and keeping them in step with the tables that exist.
//!
//! `millrace_<task>` publishes everything, `millrace_<task>_insert_only` inserts and truncates alone. PostgreSQL
//! refuses UPDATE and DELETE on a table without usable replica identity as soon as any publication publishes them, so
//! such tables live in the second (I7). Both list their tables one by one. A partitioned table has no rows and is
//! listed in the second whatever its identity: rows of a partition made later are then published from the first
//! insert on, and its updates and deletes from when it joins the first by itself. That holds under the name of the
//! partitioned table too ([`Partitions::Root`]): what is published of a partition is what the two publications say
//! together, and its name is the topmost that any of them lists.
//!
//! Nobody ever waits for us, and we for nobody (I7). `ALTER PUBLICATION` locks the publication, and each table as
//! VACUUM does, which holds up no reader or writer. Each change is one message of several statements, a transaction by
//! itself: no lock is held over a round trip, and what breaks off half-way is rolled back by the server. Locks are
//! taken with NOWAIT or a timeout of milliseconds; who does not get one leaves the table to the next poll.
//!
//! **When a table joins**: its changes are sent from the commit of ALTER PUBLICATION on. A transaction that was open
//! then may have written rows before, and may commit long after: they are never sent. So [`Joined`] says from where on
//! the table is complete, and whether such transactions were seen; [`settled`] tells when the last of them has ended.

pub mod creation;
mod membership;
mod options;
mod roots;

use tokio_postgres::{Client, Row};

pub use super::catalog::TableName;
use super::catalog::TrackedTable;
use super::sql::{SqlError, quoted};

pub use membership::{
    Joined, NotCaptured, Reconciled, advisory_lock, all_wrong_options, listed, open_now, reconcile, settled,
    weaknesses,
};
pub use options::{OptionsError, Origin, Partitions, Published, SourceOptions, TableOptions, Weakness};
pub use roots::{Roots, was_written};

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
    options: &SourceOptions,
    tables: &[TrackedTable],
) -> Result<PublicationState, PublicationError> {
    let absent = missing(client, task, options).await?;
    for name in &absent {
        create(client, task, options, name).await?;
    }
    let listed = listed(client, task).await?;
    let reconciled = reconcile(client, task, options, tables, &listed).await?;
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
pub async fn missing(
    client: &Client,
    task: &str,
    options: &SourceOptions,
) -> Result<Vec<String>, PublicationError> {
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
        if let Some((why, sql)) = found.objection(publishes_all, options.partitions_as) {
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
    fn objection(&self, publishes_all: bool, partitions: Partitions) -> Option<(String, String)> {
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
        let via_root = partitions == Partitions::Root;
        if self.via_root != via_root {
            let why = match via_root {
                true => "it publishes partitions under names of their own",
                false => "it publishes partitions under the name of their partitioned table",
            };
            let sql = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = {via_root});");
            return Some((why.to_owned(), sql));
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

async fn create(
    client: &Client,
    task: &str,
    options: &SourceOptions,
    name: &str,
) -> Result<(), PublicationError> {
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
    let via_root = options.partitions_as == Partitions::Root;
    let sql = format!(
        "CREATE PUBLICATION {} WITH (publish = '{publish}', publish_via_partition_root = {via_root}{generated})",
        quoted(name)
    );
    match client.batch_execute(&sql).await.map_err(|error| SqlError::new(doing, error)) {
        Err(error) if error.is_permission() => Err(PublicationError::MayNotCreate { database, user }),
        result => Ok(result?),
    }
}
