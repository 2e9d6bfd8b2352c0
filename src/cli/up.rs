//! `millrace up`: from a database URL to changes in a Kafka client.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::config::ConfigArguments;
use super::objects::{ObjectArguments, PublishArguments};
use super::serve::{StartArguments, open_state, wait_for_signal};
use super::tasks::{add, check_database, check_new, saved_tasks};
use super::{Exit, Failure, say};
use crate::broker::{Broker, Listeners, TaskStart};
use crate::capture::Start;
use crate::capture::oversized::Oversized;
use crate::capture::progress::Progress;
use crate::capture::routing::Layout;
use crate::change::Timestamp;
use crate::format::FormatName;
use crate::format::partitioner::PartitionBy;
use crate::postgres::objects::{self, Objects, Pattern};
use crate::postgres::source::SourceConfig;
use crate::state::Store;
use crate::task::TaskDefinition;
use crate::task::definition::{
    self, Difference, MAX_PARTITIONS, OutputDefinition, OutputSettings, check_output_names, difference,
    is_valid_name, name_from_database,
};
use crate::task::supervisor::Task;

const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// `millrace up`
#[derive(Debug, Args)]
pub struct Up {
    /// The database, as postgres://user@host:port/database
    #[arg(value_name = "POSTGRES-URL")]
    source: String,
    /// The task's name, which topic, slot and publications are named after; from the database's when absent
    #[arg(long)]
    task: Option<String>,
    /// Output format; debezium-json when absent
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// Topics of changes; task when absent
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Partitions of each topic; 1 when absent
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_PARTITIONS as i64))]
    partitions: Option<u32>,
    /// How records are spread over them; `key` when there is more than one
    #[arg(long, value_enum)]
    partition_by: Option<PartitionBy>,
    /// What becomes of records larger than --max-record-mb; fail when absent
    #[arg(long, value_enum)]
    oversized: Option<Oversized>,
    /// What to begin with; now when absent
    #[arg(long, value_enum)]
    start: Option<Start>,
    #[command(flatten)]
    objects: ObjectArguments,
    #[command(flatten)]
    publish: PublishArguments,
    #[command(flatten)]
    config: ConfigArguments,
    #[command(flatten)]
    leave: StartArguments,
}

impl Up {
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.config.load().await?.config;
        for task in &config.tasks {
            warn!("task {} of the settings file is for `millrace serve`", task.definition.name);
        }
        let settings = &config.broker;
        let source = SourceConfig::parse(&self.source).map_err(usage)?;
        if source.password.is_some() {
            warn!(
                "the password in the command line can be seen by other users of this machine; prefer PGPASSWORD or ~/.pgpass"
            );
        }
        let asked = self.definition(&source)?;
        let listeners = Listeners::bind(settings).await?;
        let (data_dir, store) = open_state(settings).await?;
        let definition = self.saved_or_new(&store, asked, &source).await?;
        for task in saved_tasks(&store)? {
            if task.name != definition.name {
                warn!(
                    "task {} of this data directory is neither captured nor served meanwhile, and its slot keeps WAL; \
                     `millrace serve` runs all tasks",
                    task.name
                );
            }
        }
        let capture = self.leave.capture(&config, &definition, source, &store).map_err(Failure::failed)?;
        let start = TaskStart { definition, capture, is_unchecked: false };
        let stop = wait_for_signal();
        let broker = Broker::start(settings, listeners, data_dir, store, vec![start]).await?;
        say(how_to_consume(&broker));
        tokio::select! {
            () = stop => {}
            () = summaries(&broker.tasks) => {}
        }
        say("stopping");
        broker.stop().await;
        Ok(())
    }

    fn definition(&self, source: &SourceConfig) -> Result<TaskDefinition, Failure> {
        let name = self.task.clone().unwrap_or_else(|| name_from_database(&source.dbname));
        if !is_valid_name(&name) {
            return Err(Failure::new(
                Exit::Usage,
                format!("--task {name} is not a name: use 1 to 40 of a-z, 0-9 and _"),
            ));
        }
        if self.partition_by == Some(PartitionBy::None) && self.partitions.is_some_and(|count| count > 1) {
            return Err(Failure::new(
                Exit::Usage,
                "--partition-by none means one partition; leave out --partitions",
            ));
        }
        let objects = self.objects.change().apply(&Objects::default()).map_err(usage)?;
        let start = self.start.unwrap_or_default();
        let task = TaskDefinition::new(name, source.display(), vec![self.output()]).map_err(usage)?;
        Ok(TaskDefinition { objects, start, publish: self.publish.options(), ..task })
    }

    /// The one output that the flags speak of.
    fn output(&self) -> OutputSettings {
        OutputSettings {
            format: self.format,
            layout: self.layout,
            partitions: self.partitions,
            partition_by: self.partition_by,
            oversized: self.oversized,
            ..OutputSettings::default()
        }
    }

    /// The saved task of that name, unchanged; or the asked one, when the database passes the checks.
    async fn saved_or_new(
        &self,
        store: &Arc<Store>,
        asked: TaskDefinition,
        source: &SourceConfig,
    ) -> Result<TaskDefinition, Failure> {
        let saved = saved_tasks(store)?;
        if let Some(saved) = saved.iter().find(|saved| saved.name == asked.name) {
            self.compare(saved, source)?;
            return Ok(saved.clone());
        }
        check_output_names(saved.iter().chain([&asked]))
            .map_err(|error| Failure::new(Exit::Refused, error.to_string()))?;
        check_new(&asked, source, self.leave.adopt_slot).await?;
        add(store, &asked)?;
        Ok(asked)
    }
}

impl Up {
    /// Says what differs from the saved task, which stays as it is. What is not on the command line does not differ.
    fn compare(&self, saved: &TaskDefinition, source: &SourceConfig) -> Result<(), Failure> {
        let name = &saved.name;
        let output = saved.outputs.iter().find(|output| output.name == *name).or(saved.outputs.first());
        let asked_output = self.output();
        let of_output = |output: &OutputDefinition| {
            let oversized =
                difference("oversized", output.oversized, asked_output.oversized, definition::name);
            output.differences(&asked_output).into_iter().chain(oversized)
        };
        let differences = output.into_iter().flat_map(of_output);
        for Difference { setting, saved, wanted } in differences.chain(self.other_differences(saved)) {
            let flag = setting.replace('_', "-");
            let next = match setting {
                "tables" | "exclude" => format!("change it with millrace task tables {name}"),
                "oversized" => "change it in the file of `millrace serve`".to_owned(),
                _ => "for other settings make another task with --task".to_owned(),
            };
            say(format_args!("task {name} is kept as it is: --{flag} is {saved}, not {wanted}; {next}"));
        }
        check_database(saved, source)?.into_iter().for_each(say);
        Ok(())
    }

    /// What differs beside the output.
    fn other_differences(&self, saved: &TaskDefinition) -> impl Iterator<Item = Difference> {
        let asked = self.objects.change();
        let tables = |setting, saved: &[Pattern], asked: Option<Vec<Pattern>>| {
            let asked = asked.filter(|asked| asked != saved)?;
            Some(Difference { setting, saved: objects::list(saved), wanted: objects::list(&asked) })
        };
        let start = self.start.filter(|start| *start != saved.start).map(|start| Difference {
            setting: "start",
            saved: saved.start.name().to_owned(),
            wanted: start.name().to_owned(),
        });
        let include = tables("tables", saved.objects.include(), asked.include);
        let exclude = tables("exclude", saved.objects.exclude(), asked.exclude);
        let (saved, asked) = (&saved.publish, &self.publish);
        let partitions =
            difference("partitions_as", saved.partitions_as, asked.partitions_as, |partitions| {
                partitions.to_string()
            });
        let origin = difference("origin", saved.origin, asked.origin, |origin| origin.to_string());
        [include, exclude, start, partitions, origin].into_iter().flatten()
    }
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

fn how_to_consume(broker: &Broker) -> String {
    let (kafka, http) = (&broker.kafka_address, broker.http_address);
    let mut text = format!("millrace serves Kafka clients on {kafka}, health and metrics on http://{http}\n");
    for output in broker.tasks.iter().flat_map(|task| &task.definition.outputs) {
        let name = &output.name;
        let (kcat, console) = match output.layout {
            Layout::Task => (format!("-C -t {name} -o beginning"), format!("--topic {name}")),
            Layout::Table => (
                format!("-G my-group -X auto.offset.reset=earliest '^{name}\\.'"),
                format!("--include '{name}\\..*'"),
            ),
        };
        text.push_str(&format!(
            "\n  kcat -b {kafka} {kcat}\
             \n  kafka-console-consumer.sh --bootstrap-server {kafka} {console} --from-beginning --group my-group\n"
        ));
    }
    text
}

/// Prints a line for each task every ten seconds.
async fn summaries(tasks: &[Arc<Task>]) {
    let mut ticks = interval(SUMMARY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before: Vec<u64> = tasks.iter().map(|task| task.progress.view().changes).collect();
    loop {
        ticks.tick().await;
        for (task, before) in tasks.iter().zip(&mut before) {
            let (status, view) = (task.lifecycle.status(), task.progress.view());
            let rate = (view.changes - *before) as f64 / SUMMARY_INTERVAL.as_secs_f64();
            *before = view.changes;
            say(format_args!(
                "{} {}  {} changes, {rate:.0}/s  durable {}  behind {} bytes, {:.1} s  wal kept {} MiB{}{}{}",
                task.definition.name,
                status.state,
                view.changes,
                view.durable_lsn,
                view.lag_bytes(),
                view.lag_seconds(Timestamp::now()),
                view.retained_wal >> 20,
                existing_rows(&task.progress),
                if status.reason.is_empty() { "" } else { "  " },
                status.reason,
            ));
        }
    }
}

/// How far the reading of existing rows is, if there is any.
fn existing_rows(progress: &Progress) -> String {
    let each = progress.reading().into_iter().map(|reading| {
        let totals = reading.totals();
        let left = totals.time_left.map(|left| format!(", {} min left", left.as_secs().div_ceil(60)));
        format!(
            "  existing rows {} of about {} ({:.0} %{})",
            totals.rows,
            totals.estimated_rows,
            totals.fraction * 100.0,
            left.unwrap_or_default()
        )
    });
    each.collect()
}
