//! What a person must know of a database's tables before they are captured: what cannot be captured at all, columns that
//! are not sent, and rows that a policy hides from our role.

use std::fmt;

use tokio_postgres::{Client, Row};

use super::objects::{Objects, Pattern};
use super::sql::{SqlError, qualified};

/// The most that are named. A database may have any number of views.
const NAMED: i64 = 100;

/// Something that a task's objects mean and that logical decoding cannot publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Schema name.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RefusedKind,
}

/// What cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedKind {
    /// An unlogged table.
    Unlogged,
    /// A temporary table.
    Temporary,
    /// A foreign table.
    Foreign,
    /// A materialized view.
    MaterializedView,
    /// A view.
    View,
}

impl Refused {
    /// What to do instead.
    pub fn remedy(&self) -> String {
        match self.kind {
            RefusedKind::Unlogged => {
                format!("run: ALTER TABLE {} SET LOGGED;", qualified(&self.schema, &self.name))
            }
            RefusedKind::Temporary => "make it a permanent table".to_owned(),
            RefusedKind::Foreign => "capture it where its rows are".to_owned(),
            RefusedKind::MaterializedView | RefusedKind::View => {
                "capture the tables that it reads".to_owned()
            }
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.kind {
            RefusedKind::Unlogged => "an unlogged table, whose changes are not in the WAL",
            RefusedKind::Temporary => "a temporary table, whose changes are not in the WAL",
            RefusedKind::Foreign => "a foreign table, whose rows are in another database",
            RefusedKind::MaterializedView => "a materialized view, which PostgreSQL does not publish",
            RefusedKind::View => "a view, which has no rows of its own",
        };
        write!(f, "{}: {why}", qualified(&self.schema, &self.name))
    }
}

/// What `objects` mean and cannot be captured, by name. Views and temporary tables only where they are meant by more than
/// the whole database: nobody expects their rows there.
pub async fn refused(client: &Client, objects: &Objects) -> Result<Vec<Refused>, SqlError> {
    const SQL: &str = "
        SELECT n.nspname::text, c.relname::text, c.relkind, c.relpersistence
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE (c.relkind IN ('v', 'm', 'f') OR c.relkind IN ('r', 'p') AND c.relpersistence <> 'p')
          AND c.oid >= 16384 AND n.nspname NOT IN ('information_schema', 'pg_catalog', 'millrace', 'pg_toast')
          AND NOT EXISTS (SELECT FROM pg_depend d
                          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                            AND d.deptype = 'e')
        ORDER BY 1, 2";
    let failed = |error| SqlError::new("list what cannot be captured", error);
    let read = |row: &Row| -> Result<Refused, tokio_postgres::Error> {
        let (kind, persistence): (i8, i8) = (row.try_get(2)?, row.try_get(3)?);
        let kind = match (kind as u8, persistence as u8) {
            (b'v', _) => RefusedKind::View,
            (b'm', _) => RefusedKind::MaterializedView,
            (b'f', _) => RefusedKind::Foreign,
            (_, b't') => RefusedKind::Temporary,
            _ => RefusedKind::Unlogged,
        };
        Ok(Refused { schema: row.try_get(0)?, name: row.try_get(1)?, kind })
    };
    let rows = client.query(SQL, &[]).await.map_err(failed)?;
    let all = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let whole_database = objects.include() == [Pattern::all()];
    let is_expected = |refused: &Refused| {
        !whole_database || !matches!(refused.kind, RefusedKind::View | RefusedKind::Temporary)
    };
    let is_meant =
        |refused: &Refused| objects.select([(refused.schema.as_str(), refused.name.as_str())].into_iter());
    let meant = all.into_iter().filter(|refused| is_expected(refused) && is_meant(refused));
    Ok(meant.take(NAMED as usize).collect())
}

/// A table, quoted, and some of its columns.
pub type TableColumns = (String, Vec<String>);

/// Of these tables, the generated columns that the server does not send: all before version 18, virtual ones since.
pub async fn unsent_columns(client: &Client, tables: &[u32]) -> Result<Vec<TableColumns>, SqlError> {
    const SQL: &str = "
        SELECT format('%I.%I', n.nspname, c.relname), array_agg(a.attname::text ORDER BY a.attnum)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE a.attrelid = ANY($1) AND NOT a.attisdropped AND a.attgenerated <> ''
          AND (a.attgenerated = 'v' OR current_setting('server_version_num')::int4 < 180000)
        GROUP BY 1 ORDER BY 1 LIMIT $2";
    let failed = |error| SqlError::new("look for generated columns", error);
    let read = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let rows = client.query(SQL, &[&tables, &NAMED]).await.map_err(failed)?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// Of these tables, those of which a policy may hide rows from our role. Changes are not concerned: decoding knows no
/// policies.
pub async fn with_hidden_rows(client: &Client, tables: &[u32]) -> Result<Vec<String>, SqlError> {
    const SQL: &str = "
        SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY($1) AND c.relrowsecurity AND row_security_active(c.oid) ORDER BY 1 LIMIT $2";
    let failed = |error| SqlError::new("look for row-level security", error);
    let rows = client.query(SQL, &[&tables, &NAMED]).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
}
