//! The flags that say which tables a task tracks, and how.

use clap::Args;

use crate::postgres::objects::{ObjectsChange, Pattern};
use crate::postgres::publication::{Origin, Partitions, SourceOptions};

/// Which tables a task tracks.
#[derive(Debug, Args)]
pub struct ObjectArguments {
    /// Tables to capture, such as public.orders or 'sales.*', where * is any characters and ? is one; may be given several
    /// times; the whole database when absent
    #[arg(long, value_name = "PATTERN")]
    tables: Vec<Pattern>,
    /// Tables to leave out of them, likewise
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<Pattern>,
}

impl ObjectArguments {
    /// What has been said.
    pub fn change(&self) -> ObjectsChange {
        let said = |patterns: &Vec<Pattern>| (!patterns.is_empty()).then(|| patterns.clone());
        ObjectsChange { include: said(&self.tables), exclude: said(&self.exclude) }
    }
}

/// How a task's tables are published.
#[derive(Debug, Args)]
pub struct PublishArguments {
    /// Under which name changes of partitions are told: their own, or that of the partitioned table at the top; leaf when
    /// absent
    #[arg(long, value_enum)]
    pub partitions_as: Option<Partitions>,
    /// Whether changes that were replicated into the source count, or only those made there (PostgreSQL 16 or later); any
    /// when absent
    #[arg(long, value_enum)]
    pub origin: Option<Origin>,
}

impl PublishArguments {
    /// What has been said, with the defaults for the rest.
    pub fn options(&self) -> SourceOptions {
        SourceOptions {
            partitions_as: self.partitions_as.unwrap_or_default(),
            origin: self.origin.unwrap_or_default(),
            table_options: Vec::new(),
        }
    }
}
