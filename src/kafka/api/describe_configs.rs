//! DescribeConfigs, key 32, versions 1–4: settings of topics and of the broker, for administration tools.
//!
//! * 1 adds synonyms and where a setting comes from, 3 types and documentation; 4 is flexible.
//!
//! A topic's settings are those of [`topic_settings`](crate::kafka::topic_settings); of the broker's only the few that say
//! something true here are listed. Resources other than topics and this broker are INVALID_REQUEST.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::{ApiKey, DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;

use crate::kafka::shape::{BOOL, Field, I8, Kind, STRING};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};

/// DescribeConfigs.
pub static API: Api =
    Api { key: ApiKey::DescribeConfigs, versions: (1, 4), flexible_from: 4, shape: SHAPE, handle };

const RESOURCE: &[Field] = &[Field::new(I8, 1), Field::new(STRING, 1), Field::new(Kind::Array(&STRING), 1)];
const SHAPE: &[Field] = &[Field::new(Kind::Structs(RESOURCE), 1), Field::new(BOOL, 1), Field::new(BOOL, 3)];

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Where a setting comes from.
const STATIC_BROKER_CONFIG: i8 = 4;
const DEFAULT_CONFIG: i8 = 5;

/// Types of settings.
const BOOLEAN: i8 = 1;
const TEXT: i8 = 2;
const INT: i8 = 3;

struct Setting {
    name: &'static str,
    value: String,
    source: i8,
    kind: i8,
    is_alterable: bool,
}

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: DescribeConfigsRequest = request.decode()?;
    let mut seen = HashSet::new();
    let mut results = Vec::new();
    for resource in &asked.resources {
        if !seen.insert((resource.resource_type, &resource.resource_name)) {
            continue;
        }
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        results.push(match settings(&request.broker, resource) {
            Ok(settings) => result.with_configs(encode(settings, resource, request.version)),
            Err((error, message)) => result
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_static_str(message))),
        });
    }
    Reply::encode(&DescribeConfigsResponse::default().with_results(results), request.version)
}

fn settings(
    broker: &Broker,
    resource: &DescribeConfigsResource,
) -> Result<Vec<Setting>, (ResponseError, &'static str)> {
    let default = |name, value: &str, kind| Setting {
        name,
        value: value.to_owned(),
        source: DEFAULT_CONFIG,
        kind,
        is_alterable: false,
    };
    let topic = broker.topics.by_name(&resource.resource_name);
    match resource.resource_type {
        TOPIC if let Some(topic) = topic => {
            let of_topic = broker.topic_settings.of(&topic).into_iter();
            Ok(of_topic
                .map(|setting| Setting {
                    name: setting.definition.name,
                    value: setting.value,
                    source: setting.origin as i8,
                    kind: setting.definition.kind as i8,
                    is_alterable: setting.definition.is_alterable(),
                })
                .collect())
        }
        TOPIC => Err((ResponseError::UnknownTopicOrPartition, "there is no such topic")),
        BROKER if *resource.resource_name == *NODE_ID.to_string() => {
            let host = &broker.advertised_host;
            let listener = match host.contains(':') {
                true => format!("PLAINTEXT://[{host}]:{}", broker.advertised_port),
                false => format!("PLAINTEXT://{host}:{}", broker.advertised_port),
            };
            Ok(vec![
                Setting {
                    name: "advertised.listeners",
                    value: listener,
                    source: STATIC_BROKER_CONFIG,
                    kind: TEXT,
                    is_alterable: false,
                },
                default("auto.create.topics.enable", "false", BOOLEAN),
                default("broker.id", &NODE_ID.to_string(), INT),
            ])
        }
        BROKER => Err((ResponseError::InvalidRequest, "there is one broker, number 0")),
        _ => Err((ResponseError::InvalidRequest, "only topics and the broker have settings here")),
    }
}

/// The settings asked for, or all where none is named.
fn encode(
    settings: Vec<Setting>,
    asked: &DescribeConfigsResource,
    version: i16,
) -> Vec<DescribeConfigsResourceResult> {
    let wanted = |setting: &Setting| match &asked.configuration_keys {
        Some(names) if !names.is_empty() => names.iter().any(|name| **name == *setting.name),
        _ => true,
    };
    let settings = settings.into_iter().filter(wanted).map(|setting| {
        let result = DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(setting.name))
            .with_value(Some(StrBytes::from_string(setting.value)))
            .with_read_only(!setting.is_alterable)
            .with_config_source(setting.source);
        if version >= 3 { result.with_config_type(setting.kind) } else { result }
    });
    settings.collect()
}
