//! `millrace task`: the tasks of a running broker, and changing them.

use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::api::{ApiArguments, Output};
use super::{Exit, Failure, say};
use crate::postgres::objects::{Objects, ObjectsEdit, Pattern};

/// `millrace task`
#[derive(Debug, Args)]
pub struct TaskArguments {
    #[command(flatten)]
    api: ApiArguments,
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List the tasks and how far they are
    List,
    /// Show a task: its state, its tables, and what is not captured
    Show {
        /// The task
        name: String,
    },
    /// Show which tables a task tracks, or change that while it runs
    Tables {
        /// The task
        name: String,
        /// Track these tables too, such as public.orders or 'sales.*'; their rows are read first
        #[arg(long, value_name = "PATTERN")]
        add: Vec<Pattern>,
        /// Take a pattern away from those that are tracked
        #[arg(long, value_name = "PATTERN")]
        remove: Vec<Pattern>,
        /// Leave these tables out, whatever includes them, until they are added again
        #[arg(long, value_name = "PATTERN")]
        exclude: Vec<Pattern>,
    },
    /// Read the rows of tables that a task captures, beside their changes
    Snapshot {
        /// The task
        name: String,
        /// The tables, such as public.orders or 'sales.*'
        #[arg(value_name = "PATTERN", required = true)]
        tables: Vec<Pattern>,
    },
}

impl TaskArguments {
    pub async fn run(self) -> Result<(), Failure> {
        let api = &self.api;
        let answer = match self.command {
            TaskCommand::List => api.get("/api/v1/tasks").await?,
            TaskCommand::Show { name } => api.get(&path(&name)?).await?,
            TaskCommand::Tables { name, add, remove, exclude } => {
                let edit = ObjectsEdit { add, remove, exclude };
                if edit == ObjectsEdit::default() {
                    api.get(&path(&name)?).await?
                } else {
                    api.change(Method::PATCH, &path(&name)?, &json!({ "tables": edit })).await?
                }
            }
            TaskCommand::Snapshot { name, tables } => {
                let path = format!("{}/snapshots", path(&name)?);
                api.change(Method::POST, &path, &json!({ "tables": tables })).await?
            }
        };
        match (api.output, &answer) {
            (Output::Json, answer) => say(answer),
            (Output::Table, Value::Array(tasks)) => say(table(tasks)),
            (Output::Table, task) => say(sheet(task)),
        }
        Ok(())
    }
}

/// A name of another form would be another path.
fn path(name: &str) -> Result<String, Failure> {
    match crate::task::definition::is_valid_name(name) {
        true => Ok(format!("/api/v1/tasks/{name}")),
        false => {
            Err(Failure::new(Exit::Usage, format!("'{name}' is no task's name; see millrace task list")))
        }
    }
}

fn objects(task: &Value) -> Result<Objects, Failure> {
    let objects = task.get("objects").cloned().unwrap_or_default();
    serde_json::from_value(objects).map_err(|error| {
        Failure::failed(format!("cannot read the task's objects: {error}; is the broker older?"))
    })
}

/// The tasks, a line each.
fn table(tasks: &[Value]) -> String {
    let head = ["NAME", "STATE", "LAG", "TABLES"].map(str::to_owned);
    let row = |task: &Value| {
        let seconds = task.get("lag_seconds").and_then(Value::as_f64).unwrap_or_default();
        [text(task, "name"), text(task, "state"), format!("{seconds:.1} s"), patterns(task)]
    };
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(tasks.iter().map(row)).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (name, state, lag) = (width(0), width(1), width(2));
    let line = |[a, b, c, d]: &[String; 4]| format!("{a:name$}  {b:state$}  {c:lag$}  {d}");
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A task, a line a fact.
fn sheet(task: &Value) -> String {
    let mut lines = vec![
        format!("task      {}", text(task, "name")),
        format!("source    {}", text(task, "source")),
        format!("state     {} {}", text(task, "state"), text(task, "reason")).trim_end().to_owned(),
        format!("tracks    {}", patterns(task)),
    ];
    let mut list = |title: &str, key: &str, show: &dyn Fn(&Value) -> String| {
        let entries = task.get(key).and_then(Value::as_array);
        for (number, entry) in entries.into_iter().flatten().enumerate() {
            let title = if number == 0 { title } else { "" };
            lines.push(format!("{title:9} {}", show(entry)));
        }
    };
    let sentence = |entry: &Value| entry.as_str().unwrap_or_default().to_owned();
    list("captures", "tables", &|table| format!("{}.{}", text(table, "schema"), text(table, "name")));
    list("reads", "snapshots", &snapshot);
    list("will read", "snapshots_wanted", &sentence);
    list("not", "not_captured", &sentence);
    list("partly", "insert_only", &sentence);
    list("no table", "unmatched", &sentence);
    lines.join("\n")
}

/// How far one reading of existing rows is.
fn snapshot(snapshot: &Value) -> String {
    let number = |key: &str| snapshot.get(key).and_then(Value::as_f64).unwrap_or_default();
    let tables = snapshot.get("tables").and_then(Value::as_array);
    let tables =
        tables.into_iter().flatten().map(|table| text(table, "table")).collect::<Vec<_>>().join(", ");
    let left = snapshot.get("seconds_left").and_then(Value::as_u64);
    let left = left.map(|seconds| format!(", {seconds} s left")).unwrap_or_default();
    let (rows, expected, percent) = (number("rows"), number("estimated_rows"), 100.0 * number("fraction"));
    format!("{rows} of about {expected} rows, {percent:.0} %{left}: {tables}")
}

fn patterns(task: &Value) -> String {
    objects(task).map_or_else(|_| "?".to_owned(), |objects| objects.to_string())
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_shown_in_lines() {
        let task = json!({
            "name": "shop", "state": "running", "reason": "", "source": "postgres://h/shop", "lag_seconds": 1.25,
            "objects": {"include": ["*.*"], "exclude": []},
            "tables": [{"schema": "public", "name": "a"}, {"schema": "public", "name": "b"}],
            "snapshots": [{"tables": [{"table": "public.a"}], "rows": 5, "estimated_rows": 20, "fraction": 0.25,
                           "seconds_left": 3}],
            "not_captured": [], "insert_only": ["public.b: only inserts"],
        });
        assert_eq!(
            sheet(&task),
            "task      shop\nsource    postgres://h/shop\nstate     running\ntracks    *.*\n\
             captures  public.a\n          public.b\n\
             reads     5 of about 20 rows, 25 %, 3 s left: public.a\npartly    public.b: only inserts"
        );
        assert_eq!(table(&[task]), "NAME  STATE    LAG    TABLES\nshop  running  1.2 s  *.*");
    }
}
