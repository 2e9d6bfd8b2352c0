//! The tasks that a data directory holds, and what a file asks of them.

use std::collections::HashSet;

use tracing::info;

use super::{Exit, Failure, precheck, say};
use crate::change::Timestamp;
use crate::config::WantedTask;
use crate::postgres::source::SourceConfig;
use crate::state::{Store, TaskRow};
use crate::task::definition::check_output_names;
use crate::task::{State, TaskDefinition};

/// The tasks of a data directory.
pub fn saved_tasks(store: &Store) -> Result<Vec<TaskDefinition>, Failure> {
    let rows = store.tasks().map_err(Failure::failed)?;
    let read = |row: TaskRow| {
        serde_json::from_str(&row.definition).map_err(|error| {
            Failure::failed(format!(
                "task {} cannot be read as it is saved: {error}; was it made by a newer millrace?",
                row.name
            ))
        })
    };
    rows.into_iter().map(read).collect()
}

/// Makes sure that the database can be captured by a task that there is not yet, and says what it saw.
pub async fn check_new(
    task: &TaskDefinition,
    source: &SourceConfig,
    adopt_slot: bool,
) -> Result<(), Failure> {
    let report = precheck::check(source, &task.name, &task.objects, &task.publish, adopt_slot).await?;
    say(&report);
    if report.passed() {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "the database cannot be captured yet; see above"))
    }
}

/// The names of tasks whose source has never passed the checks.
pub fn unchecked(store: &Store) -> Result<HashSet<String>, Failure> {
    let before = [State::Created, State::Prechecking, State::PrecheckFailed].map(State::name);
    let rows = store.tasks().map_err(Failure::failed)?.into_iter();
    Ok(rows.filter(|row| before.contains(&row.state.as_str())).map(|row| row.name).collect())
}

/// Saves a new task.
pub fn add(store: &Store, task: &TaskDefinition) -> Result<(), Failure> {
    let json = serde_json::to_string(task).map_err(Failure::failed)?;
    store
        .add_task(&task.name, &json, State::Created.name(), "", Timestamp::now().millis())
        .map_err(Failure::failed)
}

/// Makes sure that a saved task is about the database that is meant; `None` when it is reached as it was.
///
/// # Errors
/// [`Exit::Refused`] for another database.
pub fn check_database(saved: &TaskDefinition, source: &SourceConfig) -> Result<Option<String>, Failure> {
    let (name, display) = (&saved.name, source.display());
    if saved.source == display {
        return Ok(None);
    }
    let database = SourceConfig::parse(&saved.source).map_err(Failure::failed)?.dbname;
    if database != source.dbname {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "task {name} captures database '{database}' ({}), not '{}'; nothing was changed: give this database a \
                 task of its own (--task, or another name in the file)",
                saved.source, source.dbname
            ),
        ));
    }
    Ok(Some(format!(
        "task {name} was made for {}; this run reaches it as {display}, and goes on if it is the same server",
        saved.source
    )))
}

/// Makes the data directory's tasks into what a file asks for: tasks that are not there are made, outputs that a task has
/// not are added to it, what may be changed of the others is, and it tracks the objects that the file names. Tasks that the
/// file does not name stay. Gives all tasks, and how their databases are reached.
///
/// # Errors
/// [`Exit::Refused`] with every other difference; nothing has been changed then.
pub fn apply(store: &Store, wanted: &[WantedTask]) -> Result<Vec<(TaskDefinition, SourceConfig)>, Failure> {
    let mut tasks = Vec::new();
    let mut changed = Vec::new();
    let mut refused = Vec::new();
    for mut saved in saved_tasks(store)? {
        let Some(WantedTask { definition, objects, start, source }) =
            wanted.iter().find(|task| task.definition.name == saved.name)
        else {
            let source = SourceConfig::parse(&saved.source).map_err(Failure::failed)?;
            tasks.push((saved, source));
            continue;
        };
        match check_database(&saved, source) {
            Ok(notice) => notice.into_iter().for_each(say),
            Err(failure) => refused.push(failure.message),
        }
        let definition = TaskDefinition { source: saved.source.clone(), ..definition.clone() };
        let comparison = saved.compare(&definition);
        refused.extend(
            comparison.differences.iter().map(|difference| format!("task {}: {difference}", saved.name)),
        );
        if let Some(start) = start.filter(|start| *start != saved.start) {
            let (name, is, wanted) = (&saved.name, saved.start.name(), start.name());
            refused.push(format!("task {name}: start is {is}, not {wanted}, and counts when a task is made"));
        }
        let before = saved.clone();
        saved.take_changes(&definition);
        saved.outputs.extend(comparison.added);
        match objects.clone().apply(&saved.objects) {
            Ok(objects) => saved.objects = objects,
            Err(error) => refused.push(format!("task {}: {error}", saved.name)),
        }
        if saved != before {
            changed.push(saved.clone());
        }
        tasks.push((saved, source.clone()));
    }
    let new: Vec<&WantedTask> = wanted
        .iter()
        .filter(|wanted| !tasks.iter().any(|(task, _)| task.name == wanted.definition.name))
        .collect();
    tasks.extend(new.iter().map(|task| (task.definition.clone(), task.source.clone())));
    if let Err(error) = check_output_names(tasks.iter().map(|(task, _)| task)) {
        refused.push(error.to_string());
    }
    if !refused.is_empty() {
        let message = format!(
            "the file asks for what saved tasks cannot become; nothing was changed. Write what is saved, or make another \
             task:\n{}",
            refused.join("\n")
        );
        return Err(Failure::new(Exit::Refused, message));
    }
    for task in &new {
        add(store, &task.definition)?;
        info!(task = task.definition.name, "made the task");
    }
    for task in changed {
        let json = serde_json::to_string(&task).map_err(Failure::failed)?;
        store.define_task(&task.name, &json).map_err(Failure::failed)?;
        let outputs: Vec<&str> = task.outputs.iter().map(|output| output.name.as_str()).collect();
        info!(task = task.name, ?outputs, objects = %task.objects, "changed the task as the file says");
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, File};
    use crate::state::DataDir;

    fn wanted(more: &str) -> Vec<WantedTask> {
        let text = format!("[[tasks]]\nsource = \"postgres://u@h/shop\"\n{more}");
        let file = File { name: "millrace.toml".to_owned(), text };
        config::load(Some(&file), &[], &[]).unwrap().config.tasks
    }

    #[test]
    fn a_task_tracks_what_the_file_says_and_what_it_does_not_say_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&DataDir::open(directory.path()).unwrap()).unwrap();
        let objects = |more: &str| {
            let applied = apply(&store, &wanted(more)).map(|tasks| tasks[0].0.objects.to_string());
            let saved = saved_tasks(&store).unwrap().pop().unwrap().objects.to_string();
            (applied.map_err(|failure| failure.message), saved)
        };
        let same = |objects: &str| (Ok(objects.to_owned()), objects.to_owned());
        assert_eq!(objects("tables = [\"a.*\"]\nstart = \"snapshot\""), same("a.*"));
        assert_eq!(unchecked(&store).unwrap(), HashSet::from(["shop".to_owned()]));
        assert_eq!(objects(""), same("a.*"));
        assert_eq!(objects("exclude = [\"a.x\"]"), same("a.* without a.x"));
        assert_eq!(objects("tables = [\"b.t\"]"), same("b.t without a.x"));
        let (refused, saved) = objects("start = \"now\"\ntables = [\"c.*\"]");
        let message = refused.unwrap_err();
        assert!(message.contains("task shop: start is snapshot, not now"), "{message}");
        assert_eq!(saved, "b.t without a.x", "nothing was changed");
    }
}
