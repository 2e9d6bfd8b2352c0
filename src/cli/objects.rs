//! The flags that say which tables a task tracks.

use clap::Args;

use crate::postgres::objects::{ObjectsChange, Pattern};

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
