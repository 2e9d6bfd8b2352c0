//! `/api/v1`: the tasks of this broker, and changing them while they run.
//!
//! Whoever reaches the port may look; who changes something shows the admin token. What is answered with success is durable,
//! and done by the task's next poll of its source.

use std::hint::black_box;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use crate::capture::progress::CapturedTable;
use crate::change::Timestamp;
use crate::postgres::objects::{MAX_PATTERNS, ObjectsChange, ObjectsEdit, Pattern};
use crate::postgres::snapshot::{ReadProgress, ReadState, TableProgress};
use crate::state::AdminToken;
use crate::task::supervisor::{ChangeError, Task};

/// Two full lists of patterns fit.
const MAX_BODY: usize = 1 << 20;

/// The API over the tasks of `site`.
pub fn router(site: Site) -> Router {
    let token = site.admin_token.clone();
    Router::new()
        .route("/api/v1/tasks", get(list))
        .route("/api/v1/tasks/{name}", get(show).patch(change))
        .route("/api/v1/tasks/{name}/snapshots", post(snapshot))
        .with_state(site)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(token, admit))
}

/// Why something was not done, and what to do.
struct Refusal {
    status: StatusCode,
    message: String,
    next: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>, next: impl Into<String>) -> Self {
        Refusal { status, message: message.into(), next: next.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "message": self.message, "next": self.next }))).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Refusal::new(
            rejection.status(),
            rejection.body_text(),
            "send a JSON object with content-type application/json, as docs/operations.md shows",
        )
    }
}

/// Lets changes pass that carry the token.
async fn admit(State(token): State<AdminToken>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) || is_admitted(&token, &request) {
        return next.run(request).await;
    }
    let refusal = Refusal::new(
        StatusCode::UNAUTHORIZED,
        "changes need the broker's admin token",
        "send it as 'Authorization: Bearer TOKEN'; it is in the file admin-token of the data directory",
    );
    ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}

fn is_admitted(token: &AdminToken, request: &Request) -> bool {
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    shown.is_some_and(|shown| is_same(shown, token.reveal().as_bytes()))
}

/// Compares in a time that tells nothing of where they differ.
fn is_same(shown: &[u8], expected: &[u8]) -> bool {
    let differences = shown.iter().zip(expected).fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
    shown.len() == expected.len() && differences == 0
}

async fn list(State(site): State<Site>) -> Response {
    Json(site.tasks.iter().map(|task| summary(task)).collect::<Vec<_>>()).into_response()
}

async fn show(State(site): State<Site>, Path(name): Path<String>) -> Result<Response, Refusal> {
    Ok(Json(whole(find(&site, &name)?)).into_response())
}

/// What may be changed of a task.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskChange {
    /// All patterns of tables.
    Objects(ObjectsChange),
    /// Single ones.
    Tables(ObjectsEdit),
}

async fn change(
    State(site): State<Site>,
    Path(name): Path<String>,
    body: Result<Json<TaskChange>, JsonRejection>,
) -> Result<Response, Refusal> {
    let (task, Json(change)) = (find(&site, &name)?, body?);
    let changed = task.clone().change_objects(|objects| match change {
        TaskChange::Objects(change) => change.apply(objects),
        TaskChange::Tables(edit) => edit.apply(objects),
    });
    match changed.await {
        Ok(()) => Ok(Json(whole(task)).into_response()),
        Err(ChangeError::Objects(error)) => Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            error.to_string(),
            "nothing was changed; name other patterns",
        )),
        Err(error) => Err(not_saved(&error)),
    }
}

/// Tables to read again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRequest {
    tables: Vec<Pattern>,
}

async fn snapshot(
    State(site): State<Site>,
    Path(name): Path<String>,
    body: Result<Json<SnapshotRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let (task, Json(request)) = (find(&site, &name)?, body?);
    let captured = task.progress.captured();
    // What means a partitioned table means its partitions.
    let meant_by = |pattern: &Pattern, table: &CapturedTable| {
        let above = table.above.iter().any(|(schema, name)| pattern.matches(schema, name));
        above || pattern.matches(&table.schema, &table.name)
    };
    let is_idle = |pattern: &&Pattern| !captured.iter().any(|table| meant_by(pattern, table));
    if let Some(idle) = request.tables.iter().find(is_idle) {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("{idle} means no table that task {name} captures"),
            format!("nothing was started; GET /api/v1/tasks/{name} has the tables"),
        ));
    }
    let is_meant = |table: &&CapturedTable| request.tables.iter().any(|pattern| meant_by(pattern, table));
    let asks_for_part = |table: &CapturedTable| {
        let (schema, name) = table.told_as.clone()?;
        let is_asked_for = request.tables.iter().any(|pattern| pattern.matches(&schema, &name));
        (!is_asked_for).then(|| (format!("{}.{}", table.schema, table.name), format!("{schema}.{name}")))
    };
    if let Some((part, root)) = captured.iter().filter(is_meant).find_map(asks_for_part) {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("{part} is a partition, whose rows are told as those of {root}"),
            format!("nothing was started; ask for {root}"),
        ));
    }
    if let Some((table, sql)) =
        captured.iter().filter(is_meant).find_map(|table| Some((table, table.unreadable.as_ref()?)))
    {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("the rows of {}.{} cannot be read", table.schema, table.name),
            format!("nothing was started; run: {sql}"),
        ));
    }
    if request.tables.len() + task.snapshots.wanted().len() > MAX_PATTERNS {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("more than {MAX_PATTERNS} patterns of tables wait for their snapshot"),
            "nothing was started; use * to say it with fewer",
        ));
    }
    match task.snapshots.clone().add(request.tables).await {
        Ok(()) => Ok((StatusCode::ACCEPTED, Json(whole(task))).into_response()),
        Err(error) => Err(not_saved(&error)),
    }
}

fn not_saved(error: &dyn std::error::Error) -> Refusal {
    let next = "nothing was changed; mend that, and ask again";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), next)
}

fn find<'s>(site: &'s Site, name: &str) -> Result<&'s Arc<Task>, Refusal> {
    site.tasks.iter().find(|task| task.definition.name == name).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("there is no task {name} here"),
            "GET /api/v1/tasks lists those that there are",
        )
    })
}

fn summary(task: &Task) -> Value {
    let (status, progress) = (task.lifecycle.status(), task.progress.view());
    json!({
        "name": task.definition.name,
        "source": task.definition.source,
        "objects": *task.objects.borrow(),
        "start": task.definition.start,
        "state": status.state.name(),
        "reason": status.reason,
        "since_ms": status.since.millis(),
        "received_lsn": progress.received_lsn.to_string(),
        "durable_lsn": progress.durable_lsn.to_string(),
        "source_lsn": progress.source_lsn.to_string(),
        "lag_bytes": progress.lag_bytes(),
        "lag_seconds": progress.lag_seconds(Timestamp::now()),
        "transactions": progress.transactions,
        "changes": progress.changes,
        "retained_wal_bytes": progress.retained_wal,
        "not_captured": progress.tables.not_captured,
        "insert_only": progress.tables.insert_only,
        "refused": progress.tables.refused,
        "unmatched": progress.tables.unmatched,
    })
}

/// How far the reading of existing rows is.
fn snapshot_of(progress: &ReadProgress) -> Value {
    let totals = progress.totals();
    let table = |table: TableProgress| {
        json!({
            "table": table.table,
            "state": match table.state {
                ReadState::Waiting => "waiting",
                ReadState::Reading => "reading",
                ReadState::Done => "done",
                ReadState::Refused => "refused",
            },
            "rows": table.rows,
            "bytes": table.bytes,
            "estimated_rows": table.estimated_rows,
            "fraction": table.fraction,
        })
    };
    json!({
        "tables": progress.tables().into_values().map(table).collect::<Vec<_>>(),
        "rows": totals.rows,
        "bytes": totals.bytes,
        "estimated_rows": totals.estimated_rows,
        "fraction": totals.fraction,
        "seconds_left": totals.time_left.map(|left| left.as_secs()),
    })
}

/// The summary, and each table.
fn whole(task: &Task) -> Value {
    let mut shown = summary(task);
    let table = |table: &CapturedTable| {
        let told_as = table.told_as.as_ref().map(|(schema, name)| json!({ "schema": schema, "name": name }));
        json!({
            "schema": table.schema, "name": table.name, "insert_only": table.insert_only, "told_as": told_as
        })
    };
    if let Value::Object(shown) = &mut shown {
        shown.insert("tables".to_owned(), task.progress.captured().iter().map(table).collect());
        shown.insert("snapshots_wanted".to_owned(), json!(task.snapshots.wanted()));
        let reading = task.progress.reading();
        shown.insert("snapshots".to_owned(), reading.iter().map(|progress| snapshot_of(progress)).collect());
    }
    shown
}
