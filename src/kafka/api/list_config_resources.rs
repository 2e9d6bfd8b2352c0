//! ListConfigResources, key 74, versions 0–1: what DescribeConfigs can be asked about.
//!
//! * 0 lists subscriptions of client metrics only, of which there are none; 1 adds the other types, and a filter by type.
//!
//! Unlike Apache Kafka it has no levels of logging to be set (type 8), so they are not listed. Groups (type 32) are listed
//! where they have settings of their own, which they never have.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{ApiKey, ListConfigResourcesRequest, ListConfigResourcesResponse};

use super::{at_once, text};
use crate::kafka::shape::{Field, I8, Kind};
use crate::kafka::{Api, NODE_ID, Request};

/// ListConfigResources.
pub static API: Api = Api {
    key: ApiKey::ListConfigResources,
    versions: (0, 1),
    flexible_from: 0,
    shape: &[Field::new(Kind::Array(&I8), 1)],
    handle: |request| at_once(request, answer),
};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;

fn answer(request: &Request, asked: ListConfigResourcesRequest) -> ListConfigResourcesResponse {
    let is_known = |kind: &i8| matches!(*kind, TOPIC | BROKER | BROKER_LOGGER | CLIENT_METRICS | GROUP);
    if !asked.resource_types.iter().all(is_known) {
        return ListConfigResourcesResponse::default()
            .with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let wanted = |kind: i8| {
        request.version >= 1 && (asked.resource_types.is_empty() || asked.resource_types.contains(&kind))
    };
    let resource =
        |kind, name: &str| ConfigResource::default().with_resource_type(kind).with_resource_name(text(name));
    let mut resources = Vec::new();
    if wanted(BROKER) {
        resources.push(resource(BROKER, &NODE_ID.to_string()));
    }
    if wanted(TOPIC) {
        resources.extend(request.broker.topics.all().iter().map(|topic| resource(TOPIC, &topic.name)));
    }
    ListConfigResourcesResponse::default().with_config_resources(resources)
}
