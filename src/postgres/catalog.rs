//! What the source's catalog says: the server and our role on it, which tables there are, and what rows look like.
//!
//! The catalog tells how things are *now*, the stream how they were when a row was written. So a shape takes its
//! columns from the stream's Relation message, and from here only what that message lacks: the key, and what the
//! columns' types are ([`data_types`]).

mod types;

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::{Client, Row};

pub use self::types::{composites_stamp, data_types};
use super::objects::{Objects, Pattern};
use super::publication::Published;
use super::sql::{SqlError, qualified, quoted};
use crate::change::{Column, DataType, Lsn, ReplicaIdentity, TableShape};

/// The server, the database, and what our role may do there.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// `server_version_num`, such as 150018.
    pub version_num: u32,
    /// `server_version` in the server's words.
    pub version: String,
    /// Identifies the cluster for all its life; `None` where the role may not read it.
    pub system_identifier: Option<u64>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The database that we are connected to.
    pub database: String,
    /// Its encoding.
    pub encoding: String,
    /// Our role.
    pub user: String,
    /// Whether our role is a superuser.
    pub is_superuser: bool,
    /// Whether our role may use replication: by attribute, as a superuser, or as a member of `rds_replication`.
    pub may_replicate: bool,
    /// Whether our role may create publications in this database.
    pub may_create: bool,
    /// Whether this is Amazon RDS or Aurora, where other statements grant and set things.
    pub is_rds: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_replication_slots: u32,
    /// Replication slots that exist.
    pub replication_slots: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// Connections of WAL senders (physical and logical, base backups too).
    pub wal_senders: u32,
    /// `max_slot_wal_keep_size` in bytes; `None` when slots may keep WAL without bound.
    pub max_slot_wal_keep_size: Option<u64>,
    /// `wal_sender_timeout` in milliseconds; 0 when it is off.
    pub wal_sender_timeout_ms: u64,
}

/// Reads what the server says of itself and of our role.
pub async fn server_info(client: &Client) -> Result<ServerInfo, SqlError> {
    const SQL: &str = "
        SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
               pg_is_in_recovery(), current_database()::text, current_setting('server_encoding'),
               current_user::text, r.rolsuper,
               r.rolsuper OR r.rolreplication OR EXISTS (
                   SELECT FROM pg_roles g
                   WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER')),
               has_database_privilege(current_database(), 'CREATE'),
               EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_superuser'),
               current_setting('wal_level'), current_setting('max_replication_slots')::int4,
               (SELECT count(*)::int4 FROM pg_replication_slots),
               current_setting('max_wal_senders')::int4,
               (SELECT count(*)::int4 FROM pg_stat_replication),
               (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
               (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_sender_timeout')
        FROM pg_roles r WHERE r.rolname = current_user";
    let doing = "read the server's settings";
    let row = client.query_one(SQL, &[]).await.map_err(|error| SqlError::new(doing, error))?;
    let read = || -> Result<ServerInfo, tokio_postgres::Error> {
        let count = |column: usize| row.try_get::<_, i32>(column).map(|n| n.max(0) as u32);
        Ok(ServerInfo {
            version_num: count(0)?,
            version: row.try_get(1)?,
            system_identifier: None,
            in_recovery: row.try_get(2)?,
            database: row.try_get(3)?,
            encoding: row.try_get(4)?,
            user: row.try_get(5)?,
            is_superuser: row.try_get(6)?,
            may_replicate: row.try_get(7)?,
            may_create: row.try_get(8)?,
            is_rds: row.try_get(9)?,
            wal_level: row.try_get(10)?,
            max_replication_slots: count(11)?,
            replication_slots: count(12)?,
            max_wal_senders: count(13)?,
            wal_senders: count(14)?,
            // In megabytes; -1 is without bound.
            max_slot_wal_keep_size: u64::try_from(row.try_get::<_, Option<i64>>(15)?.unwrap_or(-1))
                .ok()
                .map(|megabytes| megabytes.saturating_mul(1 << 20)),
            wal_sender_timeout_ms: row.try_get::<_, Option<i64>>(16)?.unwrap_or(0).max(0) as u64,
        })
    };
    let mut info = read().map_err(|error| SqlError::new(doing, error))?;
    // Some providers revoke this function; IDENTIFY_SYSTEM on a replication connection tells the same.
    info.system_identifier =
        match client.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await {
            Ok(row) => row.try_get::<_, i64>(0).ok().map(|identifier| identifier as u64),
            Err(error) if error.as_db_error().is_some() => None,
            Err(error) => return Err(SqlError::new("read the system identifier", error)),
        };
    Ok(info)
}

/// One table as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogTable {
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// What is sent of old rows.
    pub identity: ReplicaIdentity,
    /// Columns of the primary key in key order; empty when there is none.
    pub primary_key: Vec<String>,
    /// Whether the primary key is deferrable, which makes it useless as a replica identity.
    pub deferrable_key: bool,
    /// Columns of the index that was declared as replica identity, in index order; empty when there is none.
    pub identity_index: Vec<String>,
}

/// Reads the tables with these OIDs; those that no longer exist are left out.
pub async fn table_shapes(client: &Client, oids: &[u32]) -> Result<HashMap<u32, CatalogTable>, SqlError> {
    // An index's columns come with their place; included columns lie past the key ones.
    const TABLES: &str = "
        SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident,
               ARRAY(SELECT a.attname::text
                     FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place), pg_attribute a
                     WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
                       AND a.attrelid = c.oid AND a.attnum = k.attnum ORDER BY k.place),
               ARRAY(SELECT a.attname::text
                     FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place), pg_attribute a
                     WHERE i.indrelid = c.oid AND i.indisreplident AND k.place <= i.indnkeyatts
                       AND a.attrelid = c.oid AND a.attnum = k.attnum ORDER BY k.place),
               EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY($1)";
    let failed = |error| SqlError::new("read the shapes of tables", error);
    let mut tables = HashMap::new();
    for row in client.query(TABLES, &[&oids]).await.map_err(failed)? {
        let (oid, table) = read_table(&row).map_err(failed)?;
        tables.insert(oid, table);
    }
    Ok(tables)
}

fn read_table(row: &Row) -> Result<(u32, CatalogTable), tokio_postgres::Error> {
    let table = CatalogTable {
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        identity: replica_identity(row.try_get(3)?),
        primary_key: row.try_get(4)?,
        identity_index: row.try_get(5)?,
        deferrable_key: row.try_get(6)?,
    };
    Ok((row.try_get(0)?, table))
}

/// From `pg_class.relreplident`. A letter that no known server uses promises nothing of old rows.
pub fn replica_identity(letter: i8) -> ReplicaIdentity {
    match letter as u8 {
        b'd' => ReplicaIdentity::Default,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Nothing,
    }
}

/// A column as a Relation message has it: name, type OID, type modifier, and whether it is flagged as part of the
/// replica identity.
pub type RelationColumn<'a> = (&'a str, u32, i32, bool);

/// The shape of a table's rows: columns from the stream, `types` and the key from the catalog where it still knows
/// them.
///
/// The key is the primary key if all its columns are sent; else the replica identity's columns; else empty. (With
/// `REPLICA IDENTITY FULL` the server flags every column, which makes no key.) Where the server flags the columns of
/// the primary key, the catalog gives no more than their order: it may have become another one since.
pub fn shape_from_relation(
    oid: u32,
    schema: &str,
    name: &str,
    identity: ReplicaIdentity,
    columns: &[RelationColumn<'_>],
    types: &HashMap<u32, DataType>,
    catalog: Option<&CatalogTable>,
) -> TableShape {
    let place = |wanted: &str| columns.iter().position(|(name, ..)| *name == wanted);
    let places = |names: &[String]| -> Option<Vec<usize>> {
        names.iter().map(|name| place(name)).collect::<Option<Vec<_>>>().filter(|places| !places.is_empty())
    };
    let flagged = || -> Vec<usize> {
        match identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => (0..columns.len())
                .filter(|&index| columns.get(index).is_some_and(|column| column.3))
                .collect(),
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
        }
    };
    let flagged = flagged();
    // The flags have no order, the catalog's index has: take that as long as both name the same columns.
    let in_order_of = |index: Option<Vec<usize>>| {
        let ordered = index.filter(|ordered| {
            let mut sorted = ordered.clone();
            sorted.sort_unstable();
            sorted == flagged
        });
        ordered.unwrap_or_else(|| flagged.clone())
    };
    let primary_key = catalog.and_then(|table| places(&table.primary_key));
    let deferrable_key = catalog.is_some_and(|table| table.deferrable_key);
    let key = match (identity, primary_key) {
        (ReplicaIdentity::Default, primary_key) if !deferrable_key => in_order_of(primary_key),
        (_, Some(primary_key)) => primary_key,
        (_, None) => in_order_of(catalog.and_then(|table| places(&table.identity_index))),
    };

    let columns = columns
        .iter()
        .map(|&(name, type_oid, modifier, flag)| {
            let base = types.get(&type_oid);
            Column {
                name: name.to_owned(),
                type_oid,
                base_oid: base.map_or(type_oid, |base| base.oid),
                type_modifier: base.filter(|_| modifier == -1).map_or(modifier, |base| base.type_modifier),
                form: base.map(|base| base.form.clone()).unwrap_or_default(),
                identity: flag,
            }
        })
        .collect();
    TableShape { oid, schema: schema.to_owned(), name: name.to_owned(), identity, columns, key }
}

/// A table by what names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
}

/// A table that logical decoding can publish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TrackedTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// Whether the table has partitions and no rows of its own.
    pub partitioned: bool,
    /// Whether old rows can be told: updates and deletes of other tables may not be published, because the server then
    /// refuses them (I7).
    pub usable_identity: bool,
    /// Whether its primary key is deferrable, which makes it useless as a replica identity.
    pub deferrable_key: bool,
    /// Whether its replica identity is the primary key: also that of a partition that is made later.
    pub default_identity: bool,
    /// Whether its replica identity is useless for a generated column, which servers before 18 do not send.
    pub generated_identity: bool,
    /// The columns that its old rows tell, by name.
    pub identity: Vec<String>,
    /// The partitioned tables above it, from its parent up.
    pub ancestors: Vec<TableName>,
    /// See [`ATTACHMENT`]; `None` for what is no partition.
    pub attachment: Option<i64>,
    /// How it is published.
    pub published: Published,
    /// Whether our role owns it, itself or through membership; only owners may add a table to a publication.
    pub owned_by_us: bool,
    /// Its owner.
    pub owner: String,
    /// What to run so that our role can read all rows that there are; `None` where it can.
    pub unreadable: Option<String>,
}

impl TrackedTable {
    /// Schema and name of the table and of the partitioned tables above it: what means one of them means it, too.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let above = self.ancestors.iter().map(|above| (above.schema.as_str(), above.name.as_str()));
        [(self.schema.as_str(), self.name.as_str())].into_iter().chain(above)
    }

    /// What to run so that the role `user` can read all rows.
    fn needed_to_read(&self, select: bool, usage: bool, row_security: bool, user: &str) -> Option<String> {
        let user = quoted(user);
        let grant_usage = || format!("GRANT USAGE ON SCHEMA {} TO {user};", quoted(&self.schema));
        let grant_select = || format!("GRANT SELECT ON {self} TO {user};");
        let bypass = || format!("ALTER ROLE {user} BYPASSRLS;");
        // Whether its policies hold for us is not known before we may select.
        let needed =
            [(!usage).then(grant_usage), (!select).then(grant_select), (select && row_security).then(bypass)];
        let needed: Vec<String> = needed.into_iter().flatten().collect();
        (!needed.is_empty()).then(|| needed.join(" "))
    }
}

impl fmt::Display for TrackedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&qualified(&self.schema, &self.name))
    }
}

/// User tables: what the server itself finds publishable (permanent, no system catalog), without what extensions made
/// and without our own schema. Views, foreign and unlogged tables are not publishable.
pub(super) const USER_TABLES: &str = "
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND pg_relation_is_publishable(c.oid)
      AND n.nspname <> 'millrace'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                        AND d.deptype = 'e')";

/// Whether a table `c` has a replica identity by which its updates and deletes can be published.
///
/// From version 18 on a virtual generated column makes REPLICA IDENTITY FULL useless: it is never published, and the
/// server refuses updates whose old row it could not send whole.
pub(super) const USABLE_IDENTITY: &str = "
    CASE c.relreplident
        WHEN 'f' THEN NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid
                                  AND a.attgenerated = 'v' AND NOT a.attisdropped)
        WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
                              AND i.indisvalid AND i.indimmediate)
        WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident
                              AND i.indisvalid AND i.indimmediate)
        ELSE false
    END";

/// Whether the replica identity of a table `c` has a key column that is not sent: a generated one, before version 18.
pub(super) const UNSENT_KEY: &str = "
    EXISTS (SELECT FROM pg_index i
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])
            WHERE i.indrelid = c.oid
              AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)
              AND (a.attgenerated = 'v' OR a.attgenerated <> ''
                   AND current_setting('server_version_num')::int4 < 180000))";

/// Tells each attachment of a partition `c` from every other, also one at the same place, and those of the tables above it.
///
/// The transactions that wrote them are told by their rows also after these were frozen.
pub(super) const ATTACHMENT: &str = "
    (SELECT hashtextextended(string_agg(i.xmin::text, ' ' ORDER BY a.place), 0)
     FROM pg_partition_ancestors(c.oid) WITH ORDINALITY a(oid, place) JOIN pg_inherits i ON i.inhrelid = a.oid)";

/// The tables of the database that a task can track and that are selected, by name.
///
/// Partitions are listed each for itself, and so are the partitioned tables above them: see
/// [`publication`](super::publication) for what those are good for.
pub async fn tracked_tables(client: &Client, objects: &Objects) -> Result<Vec<TrackedTable>, SqlError> {
    // Of the identity's columns: whether there is any, by a valid index or all, and whether all of them can be sent.
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p',
                {USABLE_IDENTITY}, columns.names, columns.unsent, c.relreplident,
                EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
                ARRAY(SELECT a.oid FROM pg_partition_ancestors(c.oid) WITH ORDINALITY p(oid, place)
                      JOIN pg_class a ON a.oid = p.oid WHERE a.oid <> c.oid ORDER BY p.place),
                pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text,
                has_table_privilege(c.oid, 'SELECT'), has_schema_privilege(n.oid, 'USAGE'),
                row_security_active(c.oid), current_user::text, {ATTACHMENT}
         FROM (SELECT c.oid AS table_oid {USER_TABLES}) tracked
         JOIN pg_class c ON c.oid = tracked.table_oid
         JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_index identity
             ON identity.indrelid = c.oid AND identity.indisvalid AND identity.indimmediate
                AND (c.relreplident = 'd' AND identity.indisprimary
                     OR c.relreplident = 'i' AND identity.indisreplident)
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\"), '{{}}') AS names,
                    coalesce(bool_or(a.attgenerated = 'v' OR a.attgenerated <> '' AND c.relreplident <> 'f'
                                     AND current_setting('server_version_num')::int4 < 180000), false) AS unsent
             FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND (c.relreplident = 'f'
                    OR a.attnum = ANY((identity.indkey::int2[])[0:identity.indnkeyatts - 1]))) columns
         ORDER BY 2, 3"
    );
    let failed = |error| SqlError::new("list the tables of the database", error);
    let rows = client.query(&sql, &[]).await.map_err(failed)?;
    let read = |row: &Row| -> Result<(TrackedTable, Vec<u32>), tokio_postgres::Error> {
        let (identity, unsent): (bool, bool) = (row.try_get(4)?, row.try_get(6)?);
        let partitioned = row.try_get(3)?;
        let mut table = TrackedTable {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            partitioned,
            usable_identity: identity && !unsent,
            deferrable_key: row.try_get(8)?,
            default_identity: row.try_get::<_, i8>(7)? as u8 == b'd',
            generated_identity: unsent,
            identity: row.try_get(5)?,
            ancestors: Vec::new(),
            attachment: row.try_get(16)?,
            published: Published::default(),
            owned_by_us: row.try_get(10)?,
            owner: row.try_get(11)?,
            unreadable: None,
        };
        table.unreadable =
            table.needed_to_read(row.try_get(12)?, row.try_get(13)?, row.try_get(14)?, row.try_get(15)?);
        Ok((table, row.try_get(9)?))
    };
    let tables = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let name = |(table, _): &(TrackedTable, Vec<u32>)| {
        (table.oid, TableName { oid: table.oid, schema: table.schema.clone(), name: table.name.clone() })
    };
    let names: HashMap<u32, TableName> = tables.iter().map(name).collect();
    let selected = |(mut table, above): (TrackedTable, Vec<u32>)| {
        table.ancestors = above.iter().filter_map(|oid| names.get(oid).cloned()).collect();
        objects.select(table.names()).then_some(table)
    };
    Ok(tables.into_iter().filter_map(selected).collect())
}

/// A sentence for each pattern that selects none of `tables`, which are those that are tracked: what it means instead.
pub async fn unmatched(
    client: &Client,
    objects: &Objects,
    tables: &[TrackedTable],
) -> Result<Vec<String>, SqlError> {
    const NAMED: usize = 5;
    let is_idle = |pattern: &&Pattern| {
        **pattern != Pattern::all() && !tables.iter().any(|table| pattern.matches(&table.schema, &table.name))
    };
    let idle: Vec<&Pattern> = objects.include().iter().filter(is_idle).collect();
    if idle.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text,
                CASE c.relkind
                    WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table'
                    WHEN 'S' THEN 'a sequence'
                    ELSE CASE c.relpersistence
                        WHEN 'u' THEN 'an unlogged table' WHEN 't' THEN 'a temporary table'
                        ELSE 'a table of the system, of an extension or of millrace' END
                END,
                c.oid IN (SELECT c.oid {USER_TABLES})
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') ORDER BY 1, 2"
    );
    let failed = |error| SqlError::new("see what patterns of tables mean", error);
    let rows = client.query(&sql, &[]).await.map_err(failed)?;
    let read = |row: &Row| -> Result<(String, String, String, bool), tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
    };
    let relations = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let sentence = |pattern: &&Pattern| {
        let mut meant =
            relations.iter().filter(|(schema, name, ..)| pattern.matches(schema, name)).peekable();
        if meant.peek().is_none() {
            return format!("{pattern} means no table; a table of that name joins when it is made");
        }
        if meant.clone().any(|(.., can_be_tracked)| *can_be_tracked) {
            return format!("{pattern} means only tables that are excluded");
        }
        let named = meant.clone().take(NAMED);
        let named = named.map(|(schema, name, kind, _)| format!("{} ({kind})", qualified(schema, name)));
        let named = named.collect::<Vec<_>>().join(", ");
        let more = if meant.count() > NAMED { " and others" } else { "" };
        format!("{pattern} means only what cannot be captured: {named}{more}")
    };
    Ok(idle.iter().map(sentence).collect())
}

/// A hash of all that decides which tables are tracked and how; see [`fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

/// One quick query whose answer changes when a table or its replica identity comes, goes or changes, a column of a table
/// that is published in part gets another name, one is not generated any more, or somebody alters a publication: what the poll asks each second, to look closer only when it must.
///
/// What it does not see are memberships of roles: so look closer now and then all the same, and always while a table
/// waits for something.
pub async fn fingerprint(client: &Client, server_version: u32) -> Result<Fingerprint, SqlError> {
    // Sums of hashes do not depend on the order of the rows, so nothing needs to be sorted. What generates a
    // column is kept like a default, and dropped with it.
    let in_part = match server_version {
        150_000.. => "r.prattrs IS NOT NULL OR r.prqual IS NOT NULL",
        _ => "false",
    };
    let sql = format!("
        WITH tables AS (
            SELECT oid, relname, relnamespace, relowner, relreplident, relpersistence, relkind, relnatts, relacl,
                   relrowsecurity, relforcerowsecurity
            FROM pg_class WHERE relkind IN ('r', 'p', 'm', 'f', 'v') AND oid >= 16384 AND relpersistence <> 't')
        SELECT concat_ws(':',
            (SELECT concat(count(*), '/', sum(hashtextextended(concat_ws(' ', c.oid, c.relname, c.relnamespace,
                    c.relowner, c.relreplident, c.relpersistence, c.relkind, c.relnatts, c.relacl::text,
                    c.relrowsecurity, c.relforcerowsecurity), 0)))
             FROM tables c),
            (SELECT concat(count(*), '/', sum(hashtextextended(concat_ws(' ', i.indexrelid, i.indrelid,
                    i.indisprimary, i.indisreplident, i.indisvalid, i.indimmediate), 0)))
             FROM pg_index i JOIN tables c ON c.oid = i.indrelid WHERE i.indisprimary OR i.indisreplident),
            (SELECT concat(count(*), '/', sum(hashtextextended(concat_ws(' ', inhrelid, inhparent, xmin), 0)))
             FROM pg_inherits),
            (SELECT sum(hashtextextended(concat_ws(' ', n.oid, n.nspname, n.nspacl::text), 0))
             FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast_)?temp_'),
            (SELECT sum(hashtextextended(p::text, 0)) FROM pg_publication p),
            (SELECT concat(count(*), '/', sum(hashtextextended(r::text, 0))) FROM pg_publication_rel r),
            (SELECT sum(hashtextextended(concat_ws(' ', a.attrelid, a.attnum, a.attname), 0))
             FROM pg_publication_rel r JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum > 0
             WHERE {in_part}),
            (SELECT sum(d.oid::int8) FROM pg_attrdef d JOIN tables c ON c.oid = d.adrelid))");
    let failed = |error| SqlError::new("look for new and changed tables", error);
    let row = client.query_one(&sql, &[]).await.map_err(failed)?;
    row.try_get(0).map(Fingerprint).map_err(failed)
}

/// Those of these tables that exist, by OID.
pub async fn existing(client: &Client, tables: &[u32]) -> Result<Vec<u32>, SqlError> {
    let failed = |error| SqlError::new("see which tables there are", error);
    let rows = client.query("SELECT oid FROM pg_class WHERE oid = ANY($1)", &[&tables]).await;
    rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect()).map_err(failed)
}

/// Where the source's WAL ends now: what a task's lag is measured against. On a standby, the end of what it has
/// replayed, because nothing past that can be decoded there.
pub async fn source_position(client: &Client) -> Result<Lsn, SqlError> {
    const SQL: &str = "
        SELECT CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
                    ELSE pg_current_wal_lsn() END";
    let failed = |error| SqlError::new("read the end of the source's WAL", error);
    let row = client.query_one(SQL, &[]).await.map_err(failed)?;
    row.try_get(0).map(|lsn: tokio_postgres::types::PgLsn| Lsn(lsn.into())).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::TypeForm;

    fn catalog() -> CatalogTable {
        CatalogTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            identity: ReplicaIdentity::Default,
            primary_key: vec!["b".to_owned(), "a".to_owned()],
            deferrable_key: false,
            identity_index: Vec::new(),
        }
    }

    const COLUMNS: [RelationColumn<'static>; 3] =
        [("a", 23, -1, true), ("b", 90001, -1, true), ("c", 25, -1, false)];

    fn key(
        identity: ReplicaIdentity,
        columns: &[RelationColumn<'_>],
        catalog: Option<&CatalogTable>,
    ) -> Vec<usize> {
        shape_from_relation(1, "public", "t", identity, columns, &HashMap::new(), catalog).key
    }

    #[test]
    fn the_key_is_the_primary_key_in_its_own_order() {
        assert_eq!(key(ReplicaIdentity::Default, &COLUMNS, Some(&catalog())), [1, 0]);
        let full = COLUMNS.map(|(name, oid, modifier, _)| (name, oid, modifier, true));
        assert_eq!(key(ReplicaIdentity::Full, &full, Some(&catalog())), [1, 0]);
        assert_eq!(key(ReplicaIdentity::Nothing, &COLUMNS, Some(&catalog())), [1, 0]);
    }

    #[test]
    fn a_primary_key_that_is_not_sent_whole_gives_way_to_the_replica_identity() {
        let columns = [("a", 23, -1, true), ("c", 25, -1, false)];
        assert_eq!(key(ReplicaIdentity::Index, &columns, Some(&catalog())), [0]);
    }

    #[test]
    fn a_primary_key_that_became_another_since_gives_way_to_the_flags() {
        let columns = [("a", 23, -1, true), ("b", 90001, -1, false), ("c", 25, -1, false)];
        assert_eq!(key(ReplicaIdentity::Default, &columns, Some(&catalog())), [0]);
        let none = COLUMNS.map(|(name, oid, modifier, _)| (name, oid, modifier, false));
        assert_eq!(key(ReplicaIdentity::Default, &none, Some(&catalog())), [] as [usize; 0]);
        let deferrable = CatalogTable { deferrable_key: true, ..catalog() };
        assert_eq!(key(ReplicaIdentity::Default, &none, Some(&deferrable)), [1, 0]);
    }

    #[test]
    fn the_identity_index_gives_the_order_while_it_names_the_flagged_columns() {
        let mut table = catalog();
        table.primary_key = Vec::new();
        table.identity_index = vec!["b".to_owned(), "a".to_owned()];
        assert_eq!(key(ReplicaIdentity::Index, &COLUMNS, Some(&table)), [1, 0]);
        table.identity_index = vec!["c".to_owned()];
        assert_eq!(key(ReplicaIdentity::Index, &COLUMNS, Some(&table)), [0, 1]);
    }

    #[test]
    fn without_a_catalog_the_flags_make_the_key_and_every_column_with_full_makes_none() {
        assert_eq!(key(ReplicaIdentity::Default, &COLUMNS, None), [0, 1]);
        assert_eq!(key(ReplicaIdentity::Full, &COLUMNS, None), [] as [usize; 0]);
        assert_eq!(key(ReplicaIdentity::Nothing, &COLUMNS, None), [] as [usize; 0]);
    }

    #[test]
    fn a_domain_is_resolved_and_lends_its_modifier() {
        let price = DataType { oid: 1700, type_modifier: 786438, form: TypeForm::Plain };
        let domains = HashMap::from([(90001, price)]);
        let shape = shape_from_relation(1, "public", "t", ReplicaIdentity::Default, &COLUMNS, &domains, None);
        let types: Vec<_> = shape.columns.iter().map(|c| (c.type_oid, c.base_oid, c.type_modifier)).collect();
        assert_eq!(types, [(23, 23, -1), (90001, 1700, 786438), (25, 25, -1)]);
    }
}
