//! `millrace precheck`: whether a database can be captured. Needs no broker.

use clap::Args;

use super::objects::{ObjectArguments, PublishArguments};
use super::{Exit, Failure, say};
use crate::postgres::connect;
use crate::postgres::objects::Objects;
use crate::postgres::precheck::{self, PrecheckOptions, PrecheckReport};
use crate::postgres::publication::SourceOptions;
use crate::postgres::source::SourceConfig;
use crate::task::definition::name_from_database;

/// `millrace precheck`
#[derive(Debug, Args)]
pub struct Precheck {
    /// The database, as postgres://user@host:port/database
    #[arg(value_name = "POSTGRES-URL")]
    source: String,
    /// The task's name; from the database's when absent
    #[arg(long)]
    task: Option<String>,
    #[command(flatten)]
    objects: ObjectArguments,
    #[command(flatten)]
    publish: PublishArguments,
}

impl Precheck {
    pub async fn run(self) -> Result<(), Failure> {
        let source = SourceConfig::parse(&self.source)
            .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let task = self.task.unwrap_or_else(|| name_from_database(&source.dbname));
        let objects = self.objects.change().apply(&Objects::default()).map_err(Failure::failed)?;
        let report = check(&source, &task, &objects, &self.publish.options(), false).await?;
        say(&report);
        match report.passed() {
            true => Ok(()),
            false => Err(Failure::new(Exit::Failed, "the database cannot be captured yet; see above")),
        }
    }
}

/// Runs the checks for a task that is about to be made.
pub async fn check(
    source: &SourceConfig,
    task: &str,
    objects: &Objects,
    publish: &SourceOptions,
    slot_may_exist: bool,
) -> Result<PrecheckReport, Failure> {
    let control = connect::connect(source).await.map_err(Failure::failed)?;
    let options = PrecheckOptions {
        task: task.to_owned(),
        objects: objects.clone(),
        publish: publish.clone(),
        slot_may_exist,
    };
    precheck::run(&control, &options).await.map_err(Failure::failed)
}
