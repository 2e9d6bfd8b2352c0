//! IncrementalAlterConfigs, key 44, versions 0–1: changes some settings and leaves the others as they are.
//!
//! * 1: flexible.
//!
//! What can be changed, and what the rest is answered, is told in [`alter_configs`](super::alter_configs). As in Apache
//! Kafka to delete a setting that is not set, or that there is not, changes nothing; and only lists are appended to.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{ApiKey, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::alter_configs::{Resource, Resources};
use crate::kafka::shape::{BOOL, Field, I8, Kind, STRING};
use crate::kafka::topic_settings::{Change, Operation};
use crate::kafka::{Api, Reply, Request, RequestError};

/// IncrementalAlterConfigs.
pub static API: Api = Api {
    key: ApiKey::IncrementalAlterConfigs,
    versions: (0, 1),
    flexible_from: 1,
    shape: SHAPE,
    handle: |request| Box::pin(handle(request)),
};

const CONFIG: &[Field] = &[Field::new(STRING, 0), Field::new(I8, 0), Field::new(STRING, 0)];
const RESOURCE: &[Field] = &[Field::new(I8, 0), Field::new(STRING, 0), Field::new(Kind::Structs(CONFIG), 0)];
const SHAPE: &[Field] = &[Field::new(Kind::Structs(RESOURCE), 0), Field::new(BOOL, 0)];

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: IncrementalAlterConfigsRequest = request.decode()?;
    let resources = asked.resources.iter().map(|resource| {
        let changes = resource.configs.iter().map(|config| {
            let operation = match config.config_operation {
                0 => Operation::Set,
                1 => Operation::Delete,
                2 => Operation::Append,
                3 => Operation::Subtract,
                other => {
                    let message = format!("there is no operation {other} on a setting");
                    return Err((ResponseError::InvalidRequest, message));
                }
            };
            Ok(Change {
                name: config.name.to_string(),
                operation,
                value: config.value.as_ref().map(|v| v.to_string()),
            })
        });
        Resource { kind: resource.resource_type, name: &resource.resource_name, changes: changes.collect() }
    });
    let resources = Resources { all: resources.collect(), validate_only: asked.validate_only };
    let responses = resources.alter(&request.broker).await.into_iter().zip(&asked.resources);
    let responses = responses.map(|((error_code, message), resource)| {
        AlterConfigsResourceResponse::default()
            .with_error_code(error_code)
            .with_error_message(message)
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
    });
    let response = IncrementalAlterConfigsResponse::default().with_responses(responses.collect());
    Reply::encode(&response, request.version)
}
