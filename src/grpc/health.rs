//! gRPC health (`grpc.health.v1`): serving while `/health/ready` says so.

use std::sync::Arc;

use futures_util::future::{pending, select_all};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::service::Service;
use crate::proto::subscriber_server::SubscriberServer;
use crate::task::supervisor::Task;

/// The services that health is told of; the empty name stands for all.
const SERVICES: [&str; 2] = ["", SubscriberServer::<Service>::NAME];

/// Tells the health service how things are, until `stop`; then ends what watches it.
pub async fn follow_readiness(
    tasks: Arc<Vec<Arc<Task>>>,
    mut reporter: HealthReporter,
    stop: CancellationToken,
) {
    let mut states: Vec<_> = tasks.iter().map(|task| task.lifecycle.watch()).collect();
    loop {
        let mut ready = true;
        for state in &mut states {
            ready &= state.borrow_and_update().state.is_capturing();
        }
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        report(&reporter, status).await;
        let changed = async {
            match states.is_empty() {
                true => pending().await,
                false => drop(select_all(states.iter_mut().map(|state| Box::pin(state.changed()))).await),
            }
        };
        if stop.run_until_cancelled(changed).await.is_none() {
            break;
        }
    }
    report(&reporter, ServingStatus::NotServing).await;
    for service in SERVICES {
        reporter.clear_service_status(service).await;
    }
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}
