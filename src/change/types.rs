//! What the values of a type are made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A type, below all domains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataType {
    /// Its OID.
    pub oid: u32,
    /// Type modifier, of the outermost domain that has one; -1 when none has.
    pub type_modifier: i32,
    /// What its values are made of.
    pub form: TypeForm,
}

/// What the values of a type are made of, which the OID alone does not tell: those of users' and extensions' types are
/// others in each database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeForm {
    /// Of one piece. The OID tells which type it is; an unknown one has a text.
    #[default]
    Plain,
    /// Elements of one type.
    Array {
        /// OID of the elements' declared type.
        element_oid: u32,
        /// What that is below all domains. Where it has no type modifier, the array's is for the elements.
        element: Arc<DataType>,
        /// What stands between two elements.
        delimiter: u8,
    },
    /// Attributes, each of its own type.
    Composite(Arc<[Attribute]>),
    /// `money`, of which the source's locale counts so many decimals: the values themselves are whole numbers.
    Money {
        /// How many.
        decimals: u8,
    },
    /// Those of a type that a well-known extension brings.
    Extension(ExtensionType),
}

impl TypeForm {
    /// Whether values have attributes, or elements that have.
    pub fn has_composite(&self) -> bool {
        match self {
            TypeForm::Plain | TypeForm::Money { .. } | TypeForm::Extension(_) => false,
            TypeForm::Array { element, .. } => element.form.has_composite(),
            TypeForm::Composite(_) => true,
        }
    }
}

/// An attribute of a composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// OID of its declared type.
    pub type_oid: u32,
    /// That type below all domains, with the attribute's own type modifier if it has one.
    pub data_type: DataType,
}

/// A type of an extension whose values have an inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtensionType {
    /// `hstore`
    Hstore,
    /// `geometry` and `geography` of PostGIS
    Geometry,
    /// `vector` and `halfvec` of pgvector
    Vector,
    /// `sparsevec` of pgvector
    SparseVector,
}

impl ExtensionType {
    /// The base type of this name. Only superusers make base types, so a name is enough.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "hstore" => Some(ExtensionType::Hstore),
            "geometry" | "geography" => Some(ExtensionType::Geometry),
            "vector" | "halfvec" => Some(ExtensionType::Vector),
            "sparsevec" => Some(ExtensionType::SparseVector),
            _ => None,
        }
    }
}
