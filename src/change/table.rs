//! The shape of a table when a row of it was written.

use serde::{Deserialize, Serialize};

use super::types::TypeForm;

/// What the source sends of an old row (`ALTER TABLE … REPLICA IDENTITY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a unique index.
    Index,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// OID of its declared type.
    pub type_oid: u32,
    /// OID of the type that decides how its value is written: a domain's base type, otherwise `type_oid`.
    pub base_oid: u32,
    /// Type modifier (`atttypmod`; of the domain where the column has none), -1 when absent.
    pub type_modifier: i32,
    /// What its values are made of.
    pub form: TypeForm,
    /// Whether it is part of the replica identity.
    pub identity: bool,
}

/// A table: its names and columns, and which of them identify a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableShape {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// What is sent of old rows.
    pub identity: ReplicaIdentity,
    /// Columns in the order in which rows carry them.
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the key that records carry, in key order: the primary key, else the columns of the
    /// identity index, else empty.
    pub key: Vec<usize>,
}
