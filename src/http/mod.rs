//! The HTTP listener: health, metrics and the state of tasks; gRPC on the same port.

mod api;
mod connections;
mod resources;
pub mod tls;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::connections::Limits;
pub use self::connections::{CloseConnection, OwnPlace};
use crate::change::Timestamp;
use crate::group::{Coordinator, GroupLag};
use crate::postgres::snapshot::ReadTotals;
use crate::state::AdminToken;
use crate::task;
use crate::task::supervisor::Task;

/// What the pages show.
#[derive(Clone)]
pub struct Site {
    /// The tasks of this broker.
    pub tasks: Arc<Vec<Arc<Task>>>,
    /// Consumer groups, for their lag.
    pub groups: Arc<Coordinator>,
    /// Where everything is kept, for the room that is left there.
    pub data_dir: Arc<Path>,
    /// What who changes something has to show.
    pub admin_token: AdminToken,
    /// The metrics recorder.
    pub metrics: PrometheusHandle,
}

/// Serves the pages and `grpc` until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    site: Site,
    grpc: Router,
    stop: CancellationToken,
) {
    let local_only = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let router = Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(site.clone())
        .merge(api::router(site))
        .merge(grpc)
        .layer(from_fn_with_state(local_only, check_host));
    connections::serve(listener, tls, router, Limits::default(), stop).await;
}

/// Refuses what a page of another site sends, and what was sent to another name than this machine's, where only this machine may ask: a web page elsewhere can
/// make its own name resolve to 127.0.0.1, and its visitors' browsers would let it read the answer.
async fn check_host(State(local_only): State<bool>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    // HTTP/2 says it in `:authority`.
    let authority = request.uri().authority().map(|authority| authority.as_str());
    if local_only && !host.into_iter().chain(authority).all(is_this_machine) {
        return (StatusCode::FORBIDDEN, "this name is not the broker's; use localhost or an address\n")
            .into_response();
    }
    let origin = request.headers().get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    if origin.is_some_and(|origin| !is_own_page(origin, host.or(authority))) {
        return (StatusCode::FORBIDDEN, "pages of other sites may not ask the broker\n").into_response();
    }
    next.run(request).await
}

/// Whether a page that asks, by its `Origin`, has come from where it asks.
fn is_own_page(origin: &str, host: Option<&str>) -> bool {
    origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host)
}

/// Whether a host, with its port or without, is an address or localhost, which no name server can be made to redirect.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// 200 when every task runs, else 503 with the reason of each that does not.
async fn ready(State(site): State<Site>) -> Response {
    let mut waiting = String::new();
    for task in site.tasks.iter() {
        let status = task.lifecycle.status();
        if !status.state.is_capturing() {
            waiting.push_str(&format!("{} {} {}\n", task.definition.name, status.state, status.reason));
        }
    }
    match waiting.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, waiting).into_response(),
    }
}

async fn metrics(State(site): State<Site>) -> Response {
    for task in site.tasks.iter() {
        publish(task);
    }
    let data_dir = site.data_dir.clone();
    // A page without these is better than none.
    let _ = tokio::task::spawn_blocking(move || resources::publish(&data_dir)).await;
    let mut text = site.metrics.render();
    append_lags(&mut text, &site.groups.lags());
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, text).into_response()
}

/// Groups come and go with every console consumer, and the recorder would keep each for ever: these lines bypass it.
fn append_lags(text: &mut String, lags: &[GroupLag]) {
    if lags.is_empty() {
        return;
    }
    text.push_str("# TYPE millrace_group_lag gauge\n");
    for GroupLag { group, topic, partition, lag, .. } in lags {
        let (group, topic) = (label_value(group), label_value(topic));
        text.push_str(&format!(
            "millrace_group_lag{{group=\"{group}\",topic=\"{topic}\",partition=\"{partition}\"}} {lag}\n"
        ));
    }
}

/// A group's name is the client's choice.
fn label_value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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
    let reading: Vec<_> = task.progress.reading().iter().map(|progress| progress.totals()).collect();
    let sum = |of: fn(&ReadTotals) -> u64| reading.iter().map(of).sum::<u64>() as f64;
    gauge("millrace_snapshot_tables_left", sum(|totals| totals.tables - totals.tables_done));
    gauge("millrace_snapshot_rows", sum(|totals| totals.rows));
    gauge("millrace_snapshot_bytes", sum(|totals| totals.bytes));
    let fraction = reading.iter().map(|totals| totals.fraction).fold(1.0, f64::min);
    gauge("millrace_snapshot_fraction", fraction);
    let left = reading.iter().filter_map(|totals| totals.time_left).max().unwrap_or_default();
    gauge("millrace_snapshot_seconds_left", left.as_secs_f64());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_redirect_are_this_machine() {
        for host in ["localhost", "LocalHost:9080", "127.0.0.1:9080", "127.0.0.1", "[::1]:9080", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["evil.example", "evil.example:9080", "127.0.0.1.evil.example:9080", "", ":9080", "[::1"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn only_pages_of_the_broker_itself_may_ask() {
        assert!(is_own_page("http://localhost:9080", Some("localhost:9080")));
        for origin in ["http://localhost:8000", "https://evil.example", "null", "", "localhost:9080"] {
            assert!(!is_own_page(origin, Some("localhost:9080")), "{origin}");
        }
        assert!(!is_own_page("http://localhost:9080", None));
    }

    #[test]
    fn a_groups_name_cannot_break_the_metrics_page() {
        let mut page = "a 1\n".to_owned();
        append_lags(&mut page, &[]);
        assert_eq!(page, "a 1\n");
        let lag = GroupLag {
            group: "odd\"} 7\n\\".into(),
            topic: "shop".into(),
            partition: 3,
            committed: 5,
            high_watermark: 9,
            lag: 4,
        };
        append_lags(&mut page, &[lag]);
        assert_eq!(
            page,
            "a 1\n# TYPE millrace_group_lag gauge\n\
             millrace_group_lag{group=\"odd\\\"} 7\\n\\\\\",topic=\"shop\",partition=\"3\"} 4\n"
        );
    }
}
