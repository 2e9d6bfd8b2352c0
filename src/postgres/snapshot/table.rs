//! What the catalog says of a table that is to be read: how its rows look in the stream, and how to ask for them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::change::{CellKind, Column, TableShape};
use crate::postgres::binary;
use crate::postgres::catalog;
use crate::postgres::connect::Control;
use crate::postgres::publication;
use crate::postgres::sql::{SqlError, qualified, quoted};

/// What is copied of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Their values as text.
    Text,
    /// Their values in binary form.
    Binary,
    /// Their places, and which of their columns are the largest.
    LargestColumn,
}

/// A table as it is read: as the stream names it, so of a tree of partitions that is published by its root the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) oid: u32,
    pub(super) shape: Arc<TableShape>,
    tree: Tree,
    /// See [`stamps`].
    pub(super) stamp: String,
    /// Which of its rows are published; all without one.
    filter: Option<String>,
    /// `None` where there is no key to go on by.
    key_order: Option<KeyOrder>,
    /// Rows that the server expects to be there.
    pub(super) estimated_rows: u64,
    /// What it took on disk when its statistics were taken, with what is stored out of line.
    pub(super) bytes: u64,
}

/// How a table's index compares keys.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyOrder {
    /// The operators' schema, quoted. An operator of the same name in a schema that is searched may be another type's:
    /// citext would be compared as text.
    schema: String,
    /// Of each column, the type that its values are compared as.
    types: Vec<String>,
}

impl Table {
    /// Schema and name, quoted.
    pub(super) fn name(&self) -> String {
        qualified(&self.shape.schema, &self.shape.name)
    }

    pub(super) fn has_key(&self) -> bool {
        self.key_order.is_some()
    }

    /// What the values are when they are sent in binary form: bytes are as they are, and the server makes text of
    /// everything else, so that it does not matter which types have a binary form. So it does of a key, which is kept as
    /// text.
    pub(super) fn binary_kinds(&self) -> Vec<CellKind> {
        let is_bytes = |index: usize, column: &Column| {
            column.base_oid == Type::BYTEA.oid() && !self.shape.key.contains(&index)
        };
        let columns = self.shape.columns.iter().enumerate();
        columns
            .map(|(index, column)| if is_bytes(index, column) { CellKind::Binary } else { CellKind::Text })
            .collect()
    }

    /// OIDs of the tables whose files have the rows: first its own, then those of its partitions.
    pub(super) fn files(&self) -> impl Iterator<Item = u32> {
        self.tree.files.iter().map(|(oid, _)| *oid)
    }

    /// OIDs of all tables that it consists of.
    pub(super) fn members(&self) -> &[u32] {
        &self.tree.members
    }

    fn columns(&self, what: What) -> String {
        let name = |column: &Column| quoted(&column.name);
        let columns = self.shape.columns.iter();
        let columns: Vec<String> = match what {
            What::Text => columns.map(name).collect(),
            What::Binary => columns
                .zip(self.binary_kinds())
                .map(|(column, kind)| match kind {
                    CellKind::Text if !binary::is_text(column.base_oid) => format!(
                        // A composite of nulls is no null, whatever IS NULL says.
                        "CASE WHEN pg_catalog.num_nulls({0}) = 0 THEN pg_catalog.format('%s', {0}) END",
                        name(column)
                    ),
                    _ => name(column),
                })
                .collect(),
            What::LargestColumn => {
                let size = |column: &Column| {
                    let of_value = [Type::TEXT, Type::VARCHAR, Type::BYTEA].map(|of_type| of_type.oid());
                    let size =
                        if of_value.contains(&column.base_oid) { "octet_length" } else { "pg_column_size" };
                    format!("({}, pg_catalog.{size}({}))", escape_literal(&column.name), name(column))
                };
                let sizes = columns.map(size).collect::<Vec<_>>().join(", ");
                let largest = format!(
                    "(SELECT name FROM (VALUES {sizes}) s (name, size) ORDER BY size DESC NULLS LAST LIMIT 1)"
                );
                vec!["ctid".to_owned(), largest]
            }
        };
        columns.join(", ")
    }

    fn copy(&self, columns: &str, from: &str, condition: &str, order: &str, what: What) -> String {
        let filter = self.filter.as_ref().map(|filter| format!(" AND ({filter})")).unwrap_or_default();
        let options = if what == What::Binary { " (FORMAT binary)" } else { "" };
        format!("COPY (SELECT {columns} FROM {from} WHERE {condition}{filter}{order}) TO STDOUT{options}")
    }

    /// Copies the rows between two places of one of the [files](Self::files).
    pub(super) fn copy_between(&self, file: usize, from: &str, to: &str, what: What) -> String {
        let own = self.name();
        let table = self.tree.files.get(file).map_or(&own, |(_, name)| name);
        let condition = format!("ctid >= '{from}' AND ctid < '{to}'");
        self.copy(&self.columns(what), &format!("ONLY {table}"), &condition, "", what)
    }

    /// Copies rows of all files.
    fn copy_all(&self, columns: &str, condition: &str, order: &str, what: What) -> String {
        let only = if self.tree.is_partitioned { "" } else { "ONLY " };
        self.copy(columns, &format!("{only}{}", self.name()), condition, order, what)
    }

    fn key_columns(&self) -> Vec<String> {
        let columns = self.shape.key.iter().filter_map(|&index| self.shape.columns.get(index));
        columns.map(|column| quoted(&column.name)).collect()
    }

    /// Copies the columns of the highest key, if it is behind `after`.
    pub(super) fn copy_last_key(&self, after: Option<&[String]>) -> String {
        let order = format!(" ORDER BY {} LIMIT 1", self.order(" DESC"));
        self.copy_all(&self.key_columns().join(", "), &self.behind(after), &order, What::Text)
    }

    /// Of the columns, and not of what is made of them, which may have their names.
    fn order(&self, direction: &str) -> String {
        let table = self.name();
        let columns = self.key_columns();
        columns.iter().map(|column| format!("{table}.{column}{direction}")).collect::<Vec<_>>().join(", ")
    }

    fn behind(&self, after: Option<&[String]>) -> String {
        match after {
            None => "true".to_owned(),
            Some(after) => self.compared(">", after),
        }
    }

    /// Copies at most `limit` rows in key order, those behind `after` and through `last`.
    pub(super) fn copy_keys(
        &self,
        after: Option<&[String]>,
        last: &[String],
        limit: u64,
        what: What,
    ) -> String {
        let condition = format!("{} AND {}", self.behind(after), self.compared("<=", last));
        let order = format!(" ORDER BY {} LIMIT {limit}", self.order(""));
        self.copy_all(&self.columns(what), &condition, &order, what)
    }

    fn compared(&self, operator: &str, key: &[String]) -> String {
        // It is read by key only where there is an order.
        let Some(KeyOrder { schema, types }) = &self.key_order else { return "false".to_owned() };
        let literal =
            |(value, key_type): (&String, &String)| format!("{}::{key_type}", escape_literal(value));
        let literals = key.iter().zip(types).map(literal).collect::<Vec<_>>().join(", ");
        format!("({}) OPERATOR({schema}.{operator}) ({literals})", self.key_columns().join(", "))
    }
}

/// The tables `oid` that a table `root` of `$1` consists of: itself and the partitions below it.
const TREE: &str = "
    WITH RECURSIVE tree(root, oid) AS (
        SELECT oid, oid FROM unnest($1::oid[]) oid
        UNION ALL
        SELECT t.root, i.inhrelid FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending)";

/// Of each table that exists and has rows in the stream, a text that becomes another when its file, its name, its columns,
/// its key, what is published of it or its partitions become others; of the partitions only those `among` these, if given, and those
/// that are not sent.
///
/// Asked by a snapshot of its own while a reader's lock is held, it tells whether the reader saw all there is: rows that
/// TRUNCATE or a rewriting ALTER TABLE moved to another file are not seen by an older snapshot.
pub(super) async fn stamps(
    control: &Control,
    task: &str,
    oids: &[u32],
    among: Option<&[u32]>,
) -> Result<HashMap<u32, String>, SqlError> {
    let published = match control.server_version() {
        180_000.. => "r.prattrs, r.prqual, p.pubgencols",
        150_000.. => "r.prattrs, r.prqual",
        _ => "true",
    };
    let sql = format!(
        "{TREE}
         SELECT c.oid, concat_ws('/', pg_relation_filenode(c.oid), n.nspname, c.relname, c.relreplident,
             (SELECT hashtextextended(string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod,
                         a.attgenerated, a.attnotnull), ',' ORDER BY a.attnum), 0)
              FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
             (SELECT hashtextextended(string_agg(concat_ws(' ', i.indexrelid, i.indkey, i.indisprimary,
                         i.indisreplident, i.indisvalid, i.indimmediate), ',' ORDER BY i.indexrelid), 0)
              FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)),
             (SELECT hashtextextended(string_agg(DISTINCT concat_ws(' ', {published}), ','), 0)
              FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
              WHERE r.prrelid = c.oid AND p.pubname IN ($2, $3)),
             (SELECT hashtextextended(string_agg(concat_ws(' ', l.oid, l.relnamespace, l.relname, l.relkind,
                         l.relpersistence, pg_relation_filenode(l.oid)), ',' ORDER BY l.oid), 0)
              FROM tree t JOIN pg_class l ON l.oid = t.oid
              WHERE t.root = c.oid AND l.oid <> c.oid
                AND ($4::oid[] IS NULL OR l.oid = ANY($4) OR l.relkind = 'f' OR l.relpersistence <> 'p')))
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = ANY($1)
           AND (c.relkind = 'r' OR c.relkind = 'p' AND EXISTS (
                    SELECT FROM pg_publication p WHERE p.pubname IN ($2, $3) AND p.pubviaroot))"
    );
    let failed = |error| SqlError::new("see whether tables are as they were", error);
    let names = (publication::full_name(task), publication::insert_only_name(task));
    let rows = control.query(&sql, &[&oids, &names.0, &names.1, &among]).await.map_err(failed)?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
}

/// Reads what there is to know about these tables; those that are gone, or have no rows of their own, are left out.
pub(super) async fn tables(
    control: &Control,
    task: &str,
    oids: &[u32],
) -> Result<BTreeMap<u32, Table>, SqlError> {
    // First, so that what changes meanwhile is noticed at the first chunk.
    let stamps = stamps(control, task, oids, None).await?;
    let mut trees = trees(control, oids).await?;
    let catalog = catalog::table_shapes(control, oids).await?;
    let mut columns = columns(control, task, oids).await?;
    let types: Vec<u32> = columns.values().flatten().map(|column| column.type_oid).collect();
    let types = catalog::data_types(control, &types).await?;
    let mut facts = facts(control, task, oids).await?;
    let mut tables = BTreeMap::new();
    for (oid, stamp) in stamps {
        let (Some(known), Some(facts), Some(tree)) =
            (catalog.get(&oid), facts.remove(&oid), trees.remove(&oid))
        else {
            continue;
        };
        let columns = columns.remove(&oid).unwrap_or_default();
        let relation: Vec<_> = columns
            .iter()
            .map(|column| (column.name.as_str(), column.type_oid, column.type_modifier, column.identity))
            .collect();
        let (schema, name, identity) = (&known.schema, &known.name, known.identity);
        let shape = catalog::shape_from_relation(oid, schema, name, identity, &relation, &types, Some(known));
        // All that there is in the order of the key includes what is not in the stream.
        let key_order = match tree.has_unsent {
            true => None,
            false => key_order(control, &shape, &columns).await?,
        };
        let Facts { filter, estimated_rows, bytes } = facts;
        let shape = Arc::new(shape);
        tables.insert(oid, Table { oid, shape, tree, stamp, filter, key_order, estimated_rows, bytes });
    }
    Ok(tables)
}

/// What a table consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tree {
    is_partitioned: bool,
    /// Its own OID and those of all partitions.
    members: Vec<u32>,
    /// OIDs and quoted names of those that have rows, first its own.
    files: Vec<(u32, String)>,
    /// Whether partitions are foreign or unlogged: their rows are not in the stream, and not read.
    has_unsent: bool,
}

async fn trees(control: &Control, oids: &[u32]) -> Result<HashMap<u32, Tree>, SqlError> {
    let sql = format!(
        "{TREE}
         SELECT t.root, l.oid, n.nspname::text, l.relname::text, l.relkind = 'p', l.relpersistence = 'p' AND l.relkind <> 'f'
         FROM tree t JOIN pg_class l ON l.oid = t.oid JOIN pg_namespace n ON n.oid = l.relnamespace
         ORDER BY t.root, l.oid <> t.root, l.oid"
    );
    let failed = |error| SqlError::new("list the partitions of tables", error);
    let mut trees: HashMap<u32, Tree> = HashMap::new();
    let mut read = |row: &Row| {
        let (root, oid): (u32, u32) = (row.try_get(0)?, row.try_get(1)?);
        let (is_partitioned, is_sent): (bool, bool) = (row.try_get(4)?, row.try_get(5)?);
        let tree = trees.entry(root).or_default();
        tree.members.push(oid);
        tree.has_unsent |= !is_sent;
        tree.is_partitioned |= is_partitioned;
        if is_sent && (!is_partitioned || oid == root) {
            tree.files.push((oid, qualified(row.try_get(2)?, row.try_get(3)?)));
        }
        Ok(())
    };
    let rows = control.query(&sql, &[&oids]).await.map_err(failed)?;
    rows.iter().try_for_each(&mut read).map_err(failed)?;
    Ok(trees)
}

struct StreamColumn {
    name: String,
    type_oid: u32,
    type_modifier: i32,
    identity: bool,
    not_null: bool,
}

/// The columns that the stream sends of each table, in its order.
async fn columns(
    control: &Control,
    task: &str,
    oids: &[u32],
) -> Result<HashMap<u32, Vec<StreamColumn>>, SqlError> {
    let version = control.server_version();
    // A list may name generated columns; without one they come where the publication says so.
    let published = match version {
        180_000.. => {
            "CASE WHEN r.prattrs IS NULL THEN a.attgenerated = '' OR (a.attgenerated = 's' AND p.pubgencols = 's')
                  ELSE a.attnum = ANY (r.prattrs::int2[]) END"
        }
        150_000.. => {
            "a.attgenerated = '' AND (r.prattrs IS NULL OR a.attnum = ANY (r.prattrs::int2[]))"
        }
        _ => "a.attgenerated = ''",
    };
    let sql = format!(
        "SELECT c.oid, a.attname::text, a.atttypid, a.atttypmod, a.attnotnull,
                c.relreplident = 'f' OR EXISTS (
                    SELECT FROM pg_index i
                    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
                      AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.oid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
           AND EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                       WHERE r.prrelid = c.oid AND p.pubname IN ($2, $3) AND {published})
         ORDER BY c.oid, a.attnum"
    );
    let failed = |error| SqlError::new("read the columns of tables", error);
    let names = (publication::full_name(task), publication::insert_only_name(task));
    let mut columns: HashMap<u32, Vec<StreamColumn>> = HashMap::new();
    let read = |row: &Row| {
        let column = StreamColumn {
            name: row.try_get(1)?,
            type_oid: row.try_get(2)?,
            type_modifier: row.try_get(3)?,
            not_null: row.try_get(4)?,
            identity: row.try_get(5)?,
        };
        Ok((row.try_get(0)?, column))
    };
    for row in control.query(&sql, &[&oids, &names.0, &names.1]).await.map_err(failed)? {
        let (oid, column) = read(&row).map_err(failed)?;
        columns.entry(oid).or_default().push(column);
    }
    Ok(columns)
}

struct Facts {
    filter: Option<String>,
    estimated_rows: u64,
    bytes: u64,
}

/// What statistics say, and not the functions that measure: those wait for whoever has locked a table.
async fn facts(control: &Control, task: &str, oids: &[u32]) -> Result<HashMap<u32, Facts>, SqlError> {
    // Where both publications list a table, what one of them publishes is published.
    let filter = match control.server_version() {
        150_000.. => {
            "(SELECT CASE WHEN bool_and(r.prqual IS NOT NULL)
                          THEN string_agg('(' || pg_get_expr(r.prqual, r.prrelid) || ')', ' OR ') END
              FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
              WHERE r.prrelid = c.oid AND p.pubname IN ($2, $3))"
        }
        _ => "CASE WHEN $2::text = $3::text THEN '' END",
    };
    let sql = format!(
        "{TREE}
         SELECT c.oid, {filter}, size.rows, size.blocks * current_setting('block_size')::int8
         FROM pg_class c CROSS JOIN LATERAL (
             SELECT sum(greatest(l.reltuples, 0))::int8 AS rows,
                    sum(l.relpages + coalesce(toast.relpages, 0))::int8 AS blocks
             FROM tree t JOIN pg_class l ON l.oid = t.oid AND l.relkind = 'r'
             LEFT JOIN pg_class toast ON toast.oid = l.reltoastrelid
             WHERE t.root = c.oid) size
         WHERE c.oid = ANY($1)"
    );
    let failed = |error| SqlError::new("read the sizes of tables", error);
    let names = (publication::full_name(task), publication::insert_only_name(task));
    let size = |row: &Row, column| {
        row.try_get::<_, Option<i64>>(column).map(|size| size.unwrap_or(0).max(0).cast_unsigned())
    };
    let read = |row: &Row| {
        let facts = Facts { filter: row.try_get(1)?, estimated_rows: size(row, 2)?, bytes: size(row, 3)? };
        Ok((row.try_get(0)?, facts))
    };
    let rows = control.query(&sql, &[&oids, &names.0, &names.1]).await.map_err(failed)?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// How the key's values are compared. `None` where the key may be null, for null compares with nothing; where rows cannot be
/// compared by operators of one name; and where the index orders otherwise than the columns' types do, because rows that
/// are equal to `ORDER BY` could then lie in different chunks.
async fn key_order(
    control: &Control,
    shape: &TableShape,
    columns: &[StreamColumn],
) -> Result<Option<KeyOrder>, SqlError> {
    // Below domains, and without a modifier that would cut values. An index that is compared otherwise has another
    // collation, or another operator class than the type's default.
    const SQL: &str = "
        SELECT format_type(k.type, -1),
               (SELECT quote_ident(n.nspname)
                FROM pg_index i,
                     ROWS FROM (unnest(i.indkey::int2[]), unnest(i.indclass::oid[]), unnest(i.indcollation::oid[]))
                         AS c(attnum, class, collated),
                     pg_opclass o, pg_amop s, pg_operator p, pg_namespace n
                WHERE i.indrelid = a.attrelid AND i.indisvalid AND (i.indisprimary OR i.indisreplident)
                  AND i.indnkeyatts = cardinality($2) AND c.attnum = a.attnum AND c.collated = a.attcollation
                  AND o.oid = c.class AND o.opcdefault
                  AND (o.opcintype = k.type OR NOT EXISTS (
                          SELECT FROM pg_opclass d
                          WHERE d.opcmethod = o.opcmethod AND d.opcdefault AND d.opcintype = k.type))
                  AND s.amopfamily = o.opcfamily AND s.amopstrategy = 5
                  AND s.amoplefttype = o.opcintype AND s.amoprighttype = o.opcintype
                  AND p.oid = s.amopopr AND p.oprname = '>' AND n.oid = p.oprnamespace
                LIMIT 1)
        FROM unnest($2::text[], $3::oid[]) WITH ORDINALITY AS k(name, type, place)
        JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = k.name AND NOT a.attisdropped
        ORDER BY k.place";
    let key = || shape.key.iter().filter_map(|&index| shape.columns.get(index).zip(columns.get(index)));
    if key().any(|(_, column)| !column.not_null) {
        return Ok(None);
    }
    let names: Vec<&str> = key().map(|(column, _)| column.name.as_str()).collect();
    let oids: Vec<u32> = key().map(|(column, _)| column.base_oid).collect();
    let failed = |error| SqlError::new("see how a key is ordered", error);
    let rows = control.query(SQL, &[&shape.oid, &names, &oids]).await.map_err(failed)?;
    let types: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
    let schemas: Vec<Option<String>> =
        rows.iter().map(|row| row.try_get(1)).collect::<Result<_, _>>().map_err(failed)?;
    let is_whole =
        rows.len() == names.len() && schemas.windows(2).all(|pair| matches!(pair, [a, b] if a == b));
    let schema = schemas.into_iter().next().flatten().filter(|_| is_whole);
    Ok(schema.map(|schema| KeyOrder { schema, types }))
}

/// By table, the transactions that write to it now or have done so and not ended.
pub(super) async fn writers(
    control: &Control,
    oids: &[u32],
) -> Result<HashMap<u32, HashSet<String>>, SqlError> {
    let sql = format!(
        "{TREE}
        SELECT t.root, l.virtualtransaction FROM tree t JOIN pg_locks l ON l.relation = t.oid
        WHERE l.locktype = 'relation' AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    );
    let failed = |error| SqlError::new("see who writes to tables", error);
    let mut writers: HashMap<u32, HashSet<String>> = HashMap::new();
    for row in control.query(&sql, &[&oids]).await.map_err(failed)? {
        let table = row.try_get(0).map_err(failed)?;
        writers.entry(table).or_default().insert(row.try_get(1).map_err(failed)?);
    }
    Ok(writers)
}

/// What gives our role the right to read a table, and each of its partitions.
pub(super) async fn right_to_read(control: &Control, table: &Table) -> Result<String, SqlError> {
    const SQL: &str = "
        SELECT n.nspname::text, c.relname::text, row_security_active(c.oid), current_user::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY($1) AND (row_security_active(c.oid) OR NOT has_schema_privilege(n.oid, 'USAGE')
                                   OR NOT has_table_privilege(c.oid, 'SELECT'))
        ORDER BY 1, 2";
    let failed = |error| SqlError::new("see what our role may read", error);
    let files: Vec<u32> = table.files().collect();
    let mut grants = Vec::new();
    for row in control.query(SQL, &[&files]).await.map_err(failed)? {
        let schema: String = row.try_get(0).map_err(failed)?;
        let name: String = row.try_get(1).map_err(failed)?;
        let user = quoted(row.try_get(3).map_err(failed)?);
        if row.try_get(2).map_err(failed)? {
            return Ok(format!(
                "row-level security would hide rows from us; run as a superuser: ALTER ROLE {user} BYPASSRLS;"
            ));
        }
        grants.push(format!("GRANT USAGE ON SCHEMA {} TO {user};", quoted(&schema)));
        grants.push(format!("GRANT SELECT ON {} TO {user};", qualified(&schema, &name)));
    }
    Ok(format!("run: {}", grants.join(" ")))
}
