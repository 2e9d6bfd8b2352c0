//! Tasks in the file: `[[tasks]]`, each with its `[[tasks.outputs]]`.
//!
//! They are what is wanted; whether a saved task can be made so is found when the data directory is open.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

use super::file::{Reader, Written};
use crate::capture::Start;
use crate::postgres::objects::{Objects, ObjectsChange, Pattern};
use crate::postgres::publication::{Origin, Partitions, SourceOptions, TableOptions};
use crate::postgres::source::SourceConfig;
use crate::task::TaskDefinition;
use crate::task::definition::{OutputSettings, check_output_names, name_from_database};

/// A task that the file asks for.
#[derive(Debug, Clone)]
pub struct WantedTask {
    /// What it is to do.
    pub definition: TaskDefinition,
    /// What the file says of its objects; what it does not say stays as it is in a saved task.
    pub objects: ObjectsChange,
    /// What the file says of its start.
    pub start: Option<Start>,
    /// How its database is reached.
    pub source: SourceConfig,
}

/// What the file says of a task beside its outputs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TaskSettings {
    name: Option<String>,
    source: Option<String>,
    password_file: Option<PathBuf>,
    tables: Option<Vec<Pattern>>,
    exclude: Option<Vec<Pattern>>,
    start: Option<Start>,
    partitions_as: Partitions,
    origin: Origin,
}

/// What the file says of the rows and columns of tables.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TableSettings {
    name: Option<Pattern>,
    #[serde(rename = "where")]
    filter: Option<String>,
    columns: Option<Vec<String>>,
}

impl Reader<'_> {
    /// Hands the loader all tasks.
    pub(super) fn tasks(&mut self, value: &Written) {
        for (at, table) in self.tables("tasks", value) {
            let Some(task) = self.task(at, table) else { continue };
            let known = self.loader.loaded.config.tasks.iter().map(|known| &known.definition);
            if known.clone().any(|known| known.name == task.definition.name) {
                let message =
                    format!("there is a task {} already; give each another name", task.definition.name);
                self.wrong(at, "tasks", message);
            } else if let Err(error) = check_output_names(known.chain([&task.definition])) {
                self.wrong(at, "tasks", error.to_string());
            } else {
                self.loader.loaded.config.tasks.push(task);
            }
        }
    }

    fn task(&mut self, at: usize, table: &DeTable) -> Option<WantedTask> {
        let own =
            table.iter().filter(|(key, _)| !["outputs", "table_options"].contains(&key.get_ref().as_ref()));
        let own: DeTable = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        let settings: Option<TaskSettings> = self.record("tasks", &own);
        let mut outputs = Vec::new();
        if let Some(value) = table.get("outputs") {
            for (at, table) in self.tables("tasks.outputs", value) {
                outputs.push(self.record("tasks.outputs", table).map(|output: OutputSettings| (at, output)));
            }
        }
        let table_options = table.get("table_options").map(|value| self.table_options(value));
        let TaskSettings { name, source, password_file, tables, exclude, start, partitions_as, origin } =
            settings?;
        let source = self.source(at, own.get("source"), source, password_file);
        let outputs: Option<Vec<(usize, OutputSettings)>> = outputs.into_iter().collect();
        let (source, outputs) = (source?, outputs?);
        let name = name.unwrap_or_else(|| name_from_database(&source.dbname));
        let mut is_right = true;
        for (at, output) in &outputs {
            if let Err(error) = output.clone().define(&name) {
                self.wrong(*at, "tasks.outputs", error.to_string());
                is_right = false;
            }
        }
        let objects = ObjectsChange { include: tables, exclude };
        let selected = objects.clone().apply(&Objects::default());
        if let Err(error) = &selected {
            self.wrong(at, "tasks.tables", error.to_string());
        }
        let publish = SourceOptions {
            partitions_as,
            origin,
            table_options: table_options.unwrap_or(Some(Vec::new()))?,
        };
        if let Err(error) = publish.check() {
            self.wrong(at, "tasks.table_options", error.to_string());
            return None;
        }
        let outputs = outputs.into_iter().map(|(_, output)| output).collect();
        match TaskDefinition::new(name, source.display(), outputs) {
            Ok(task) => {
                let task = TaskDefinition {
                    objects: selected.ok()?,
                    start: start.unwrap_or_default(),
                    publish,
                    ..task
                };
                Some(WantedTask { definition: task, objects, start, source })
            }
            // An output's error has been said, with its place.
            Err(_) if !is_right => None,
            Err(error) => {
                self.wrong(at, "tasks", error.to_string());
                None
            }
        }
    }

    /// Which rows and columns of tables are told.
    fn table_options(&mut self, value: &Written) -> Option<Vec<TableOptions>> {
        let mut all = Some(Vec::new());
        for (at, table) in self.tables("tasks.table_options", value) {
            let settings: Option<TableSettings> = self.record("tasks.table_options", table);
            let options = settings.and_then(|TableSettings { name, filter, columns }| match name {
                Some(name) => Some(TableOptions { name, filter, columns }),
                None => {
                    let message = "it says of no table; write a name, such as \"public.orders\"";
                    self.wrong(at, "tasks.table_options", message);
                    None
                }
            });
            match options {
                Some(options) => all.iter_mut().for_each(|all| all.push(options.clone())),
                None => all = None,
            }
        }
        all
    }

    /// The database, which needs no password in the file (I9).
    fn source(
        &mut self,
        at: usize,
        written: Option<&Written>,
        source: Option<String>,
        password_file: Option<PathBuf>,
    ) -> Option<SourceConfig> {
        let at = written.map_or(at, |written| written.span().start);
        let message = match source.as_deref().map(SourceConfig::parse) {
            None if self.is_complete() => {
                "it is missing; write the database, such as \"postgres://user@host/database\"".to_owned()
            }
            None => return None,
            Some(Err(error)) => error.to_string(),
            Some(Ok(source)) if source.password.is_some() => {
                "there is a password in it, which does not belong here; write it to a file that only millrace may \
                 read, and name that in password_file"
                    .to_owned()
            }
            Some(Ok(source)) if source.password_file.is_some() && password_file.is_some() => {
                "it names a password_file, and so does the task; leave one of them out".to_owned()
            }
            Some(Ok(mut source)) => {
                source.password_file = password_file.or(source.password_file);
                return Some(source);
            }
        };
        self.wrong(at, "tasks.source", message);
        None
    }

    /// The tables of an array of tables, each with its place.
    fn tables<'v, 'i>(&mut self, path: &str, value: &'v Written<'i>) -> Vec<(usize, &'v DeTable<'i>)> {
        let elements = value.get_ref().as_array().map(|array| array.iter());
        let tables = elements.and_then(|elements| {
            let table =
                |element: &'v Written<'i>| Some((element.span().start, element.get_ref().as_table()?));
            elements.map(table).collect()
        });
        if tables.is_none() && self.is_whole(value) {
            self.wrong(
                value.span().start,
                path,
                format!("this is a list of tables; write [[{path}]] for each"),
            );
        }
        tables.unwrap_or_default()
    }

    /// What a table says. Its keys are read one by one, so that each that is wrong is an error.
    fn record<T: DeserializeOwned>(&mut self, path: &str, table: &DeTable) -> Option<T> {
        let mut is_right = true;
        for (key, value) in table {
            if !self.is_whole(value) {
                is_right = false;
                continue;
            }
            let one: DeTable = [(key.clone(), value.clone())].into_iter().collect();
            if let Err(error) = read::<T>(one) {
                let at = error.span().unwrap_or(key.span()).start;
                self.wrong(at, &format!("{path}.{}", key.get_ref()), error.message());
                is_right = false;
            }
        }
        if is_right { read(table.clone()).ok() } else { None }
    }
}

fn read<T: DeserializeOwned>(table: DeTable) -> Result<T, toml::de::Error> {
    T::deserialize(Deserializer::from(Spanned::new(0..0, table)))
}
