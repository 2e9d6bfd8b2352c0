//! The HTTP listener: health, metrics and the state of tasks.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::change::Timestamp;
use crate::group::Coordinator;
use crate::task::supervisor::Task;
use crate::task::{self};

/// What the pages show.
#[derive(Clone)]
pub struct Site {
    /// The tasks of this broker.
    pub tasks: Arc<Vec<Arc<Task>>>,
    /// Consumer groups, for their lag.
    pub groups: Arc<Coordinator>,
    /// The metrics recorder.
    pub metrics: PrometheusHandle,
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, site: Site, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/tasks", get(tasks))
        .with_state(site);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// 200 when every task runs, else 503 with the reason of each that does not.
async fn ready(State(site): State<Site>) -> Response {
    let mut waiting = String::new();
    for task in site.tasks.iter() {
        let status = task.lifecycle.status();
        if status.state != task::State::Running {
            waiting.push_str(&format!("{} {} {}\n", task.definition.name, status.state, status.reason));
        }
    }
    match waiting.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, waiting).into_response(),
    }
}

async fn tasks(State(site): State<Site>) -> Response {
    let now = Timestamp::now();
    let tasks: Vec<_> = site
        .tasks
        .iter()
        .map(|task| {
            let (status, progress) = (task.lifecycle.status(), task.progress.view());
            json!({
                "name": task.definition.name,
                "source": task.definition.source,
                "state": status.state.name(),
                "reason": status.reason,
                "since_ms": status.since.millis(),
                "received_lsn": progress.received_lsn.to_string(),
                "durable_lsn": progress.durable_lsn.to_string(),
                "source_lsn": progress.source_lsn.to_string(),
                "lag_bytes": progress.lag_bytes(),
                "lag_seconds": progress.lag_seconds(now),
                "transactions": progress.transactions,
                "changes": progress.changes,
                "retained_wal_bytes": progress.retained_wal,
                "not_captured": progress.tables.not_captured,
                "insert_only": progress.tables.insert_only,
            })
        })
        .collect();
    axum::Json(tasks).into_response()
}

async fn metrics(State(site): State<Site>) -> Response {
    for task in site.tasks.iter() {
        publish(task);
    }
    for lag in site.groups.lags() {
        let labels = [
            ("group", lag.group.to_string()),
            ("topic", lag.topic.to_string()),
            ("partition", lag.partition.to_string()),
        ];
        metrics::gauge!("millrace_group_lag", &labels).set(lag.lag as f64);
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, site.metrics.render()).into_response()
}

/// Copies a task's numbers into the recorder. Counters are set, not added: the task counts.
fn publish(task: &Task) {
    let view = task.progress.view();
    let state = task.lifecycle.status().state;
    let name = &task.definition.name;
    let gauge = |metric: &'static str, value: f64| metrics::gauge!(metric, "task" => name.clone()).set(value);
    gauge("millrace_task_received_lsn", view.received_lsn.0 as f64);
    gauge("millrace_task_decoded_lsn", view.decoded_lsn.0 as f64);
    gauge("millrace_task_durable_lsn", view.durable_lsn.0 as f64);
    gauge("millrace_task_source_lsn", view.source_lsn.0 as f64);
    gauge("millrace_task_lag_bytes", view.lag_bytes() as f64);
    gauge("millrace_task_lag_seconds", view.lag_seconds(Timestamp::now()));
    gauge("millrace_task_retained_wal_bytes", view.retained_wal as f64);
    gauge("millrace_task_not_captured_tables", view.tables.not_captured.len() as f64);
    gauge("millrace_task_insert_only_tables", view.tables.insert_only.len() as f64);
    let counter =
        |metric: &'static str, value: u64| metrics::counter!(metric, "task" => name.clone()).absolute(value);
    counter("millrace_task_transactions_total", view.transactions);
    counter("millrace_task_changes_total", view.changes);
    counter("millrace_task_records_total", view.records);
    counter("millrace_task_received_bytes_total", view.bytes_received);
    counter("millrace_task_reconnects_total", view.reconnects);
    for each in task::State::ALL {
        let labels = [("task", name.clone()), ("state", each.name().to_owned())];
        metrics::gauge!("millrace_task_state", &labels).set(f64::from(u8::from(each == state)));
    }
}
