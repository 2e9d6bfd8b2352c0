//! DescribeCluster, key 60, versions 0–2: the cluster's id and brokers, for administration tools.
//!
//! * 1 adds the kind of endpoint (1 brokers, 2 controllers), 2 fenced brokers.
//!
//! There is one broker. Controllers have no endpoint of their own: asking it for them is MISMATCHED_ENDPOINT_TYPE, as a
//! broker's endpoint of Apache Kafka answers.

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{ApiKey, DescribeClusterRequest, DescribeClusterResponse};
use kafka_protocol::protocol::StrBytes;

use super::metadata::CLUSTER_OPERATIONS;
use super::text;
use crate::kafka::shape::{BOOL, Field, I8};
use crate::kafka::{Api, NODE_ID, Reply, Request, RequestError};

/// DescribeCluster.
pub static API: Api =
    Api { key: ApiKey::DescribeCluster, versions: (0, 2), flexible_from: 0, shape: SHAPE, handle };

const SHAPE: &[Field] = &[Field::new(BOOL, 0), Field::new(I8, 1), Field::new(BOOL, 2)];

const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: DescribeClusterRequest = request.decode()?;
    if request.version >= 1 && asked.endpoint_type != BROKERS {
        let (error, message) = match asked.endpoint_type {
            CONTROLLERS => (
                ResponseError::MismatchedEndpointType,
                "this is an endpoint of brokers, and the only one there is",
            ),
            _ => (
                ResponseError::UnsupportedEndpointType,
                "there are endpoints of brokers (1) and controllers (2)",
            ),
        };
        let refused = DescribeClusterResponse::default()
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)));
        return Reply::encode(&refused, request.version);
    }
    let broker = &request.broker;
    let mut response = DescribeClusterResponse::default()
        .with_cluster_id(text(&broker.cluster_id))
        .with_controller_id(NODE_ID.into())
        .with_brokers(vec![
            DescribeClusterBroker::default()
                .with_broker_id(NODE_ID.into())
                .with_host(text(&broker.advertised_host))
                .with_port(broker.advertised_port.into()),
        ]);
    if asked.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    Reply::encode(&response, request.version)
}
