//! From a Relation message to the shape of a table: the message says what rows carry, the catalog what it means.

use crate::change::{ReplicaIdentity, TableShape};
use crate::postgres::catalog;
use crate::postgres::connect::Control;
use crate::postgres::pgoutput::RelationColumn;
use crate::postgres::sql::SqlError;

/// A Relation message, kept while the catalog is asked.
#[derive(Debug, Clone)]
pub struct Relation {
    oid: u32,
    schema: String,
    name: String,
    identity: ReplicaIdentity,
    columns: Vec<(String, u32, i32, bool)>,
}

impl Relation {
    /// Keeps what a Relation message says.
    pub fn new(
        oid: u32,
        schema: &str,
        name: &str,
        identity: ReplicaIdentity,
        columns: &[RelationColumn<'_>],
    ) -> Self {
        let columns = columns
            .iter()
            .map(|column| (column.name.to_owned(), column.type_oid, column.type_modifier, column.identity))
            .collect();
        Relation { oid, schema: schema.to_owned(), name: name.to_owned(), identity, columns }
    }

    /// Asks the catalog for what the message does not say: the key's order, and what the types are. The catalog
    /// answers as of now, not as of the row; a table that is gone by now keeps what the message says.
    ///
    /// # Errors
    /// When the catalog cannot be asked.
    pub async fn resolve(self, control: &Control) -> Result<TableShape, SqlError> {
        let tables = catalog::table_shapes(control, &[self.oid]).await?;
        let types: Vec<u32> = self.columns.iter().map(|(_, type_oid, ..)| *type_oid).collect();
        let types = catalog::data_types(control, &types).await?;
        let Relation { oid, schema, name, identity, columns } = self;
        let columns: Vec<_> = columns
            .iter()
            .map(|(name, type_oid, modifier, identity)| (name.as_str(), *type_oid, *modifier, *identity))
            .collect();
        Ok(catalog::shape_from_relation(oid, &schema, &name, identity, &columns, &types, tables.get(&oid)))
    }
}
