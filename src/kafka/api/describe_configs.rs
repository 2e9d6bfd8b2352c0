//! DescribeConfigs, key 32, versions 1–4: settings of topics, of the broker and of groups, for administration tools.
//!
//! * 1 adds synonyms and where a setting comes from, 3 types and documentation; 4 is flexible.
//!
//! What is listed: of topics all that Apache Kafka has ([`topic_settings`](crate::kafka::topic_settings)), of the broker and
//! of groups what means something here ([`broker_settings`](crate::kafka::broker_settings)), `log.…` for topics without
//! settings of their own among it. The broker that is named by no number stands for what has been set for all brokers
//! while they run: nothing. Levels of logging and subscriptions of metrics cannot be set, so there are none.
//!
//! Unlike Apache Kafka's, an answer has a bounded number of settings: what is asked for beyond it is INVALID_REQUEST.

use std::collections::HashSet;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{ApiKey, DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::broker_settings::{self, OF_GROUPS};
use crate::kafka::shape::{BOOL, Field, I8, Kind as Shape, STRING};
use crate::kafka::topic_settings::{self, Kind, Origin};
use crate::kafka::{Api, Broker, NODE_ID, Request};
use crate::log::topics::is_topic_name;

/// DescribeConfigs.
pub static API: Api = Api {
    key: ApiKey::DescribeConfigs,
    versions: (1, 4),
    flexible_from: 4,
    shape: &[Field::new(Shape::Structs(RESOURCE), 1), Field::new(BOOL, 1), Field::new(BOOL, 3)],
    handle: |request| at_once(request, answer),
};

const RESOURCE: &[Field] = &[Field::new(I8, 1), Field::new(STRING, 1), Field::new(Shape::Array(&STRING), 1)];

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;

/// Settings in one answer, about; otherwise a small request could have an answer without bound, as any name is that of a
/// group.
const MAX_SETTINGS: usize = 50_000;

/// A setting of whatever it is.
struct Setting {
    name: &'static str,
    kind: Kind,
    value: String,
    origin: Origin,
    is_alterable: bool,
    about: &'static str,
    /// All values that there are for it, the one that holds first.
    synonyms: Vec<Synonym>,
}

struct Synonym {
    name: &'static str,
    value: String,
    origin: Origin,
}

fn answer(request: &Request, asked: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let mut seen = HashSet::new();
    let mut results = Vec::new();
    let mut answered = 0;
    for resource in &asked.resources {
        if !seen.insert((resource.resource_type, &resource.resource_name)) {
            continue;
        }
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        let is_wanted = |setting: &Setting| match &resource.configuration_keys {
            Some(names) if !names.is_empty() => names.iter().any(|name| **name == *setting.name),
            _ => true,
        };
        let settings = match answered {
            MAX_SETTINGS.. => {
                Err((ResponseError::InvalidRequest, "too much for one answer; ask for less at a time"))
            }
            _ => settings(&request.broker, resource),
        };
        results.push(match settings {
            Ok(settings) => {
                let settings = settings.into_iter().filter(is_wanted);
                let settings: Vec<_> =
                    settings.map(|setting| encode(setting, &asked, request.version)).collect();
                answered += settings.len();
                result.with_error_message(Some(StrBytes::default())).with_configs(settings)
            }
            Err((error, message)) => result
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_static_str(message))),
        });
    }
    DescribeConfigsResponse::default().with_results(results)
}

fn settings(
    broker: &Broker,
    asked: &DescribeConfigsResource,
) -> Result<Vec<Setting>, (ResponseError, &'static str)> {
    let name = asked.resource_name.as_str();
    match asked.resource_type {
        TOPIC => match broker.topics.by_name(name) {
            Some(topic) => Ok(broker.topic_settings.of(&topic).into_iter().map(of_topic).collect()),
            None if !is_topic_name(name) => {
                Err((ResponseError::InvalidTopicException, "this is no name for a topic"))
            }
            None => Err((ResponseError::UnknownTopicOrPartition, "there is no such topic")),
        },
        BROKER if name.is_empty() => Ok(Vec::new()),
        BROKER if name == NODE_ID.to_string() => Ok(of_broker(broker)),
        BROKER_LOGGER if name == NODE_ID.to_string() => Ok(Vec::new()),
        BROKER | BROKER_LOGGER => Err((ResponseError::InvalidRequest, "there is one broker, number 0")),
        CLIENT_METRICS | GROUP if name.is_empty() => {
            Err((ResponseError::InvalidRequest, "groups and subscriptions have names"))
        }
        CLIENT_METRICS => Ok(Vec::new()),
        GROUP => Ok(of_group(broker)),
        _ => Err((ResponseError::InvalidRequest, "nothing of this type has settings")),
    }
}

fn of_topic(setting: topic_settings::Setting) -> Setting {
    let definition = setting.definition;
    let mut synonyms = Vec::new();
    if setting.origin == Origin::DynamicTopic {
        let value = setting.value.clone();
        synonyms.push(Synonym { name: definition.name, value, origin: setting.origin });
    }
    if let Some(name) = definition.broker_name {
        let (value, origin) = (&setting.broker_value, setting.broker_origin);
        synonyms.extend(of_broker_with_default(name, value, origin, Some(definition.default)));
    }
    Setting {
        name: definition.name,
        kind: definition.kind,
        value: setting.value,
        origin: setting.origin,
        is_alterable: definition.is_alterable(),
        about: definition.about,
        synonyms,
    }
}

/// What the broker has, and what holds for topics that have nothing of their own.
fn of_broker(broker: &Broker) -> Vec<Setting> {
    let own = broker_settings::ALL.iter().map(|definition| of_definition(broker, definition));
    let of_topics = broker.topic_settings.of_broker().into_iter().filter_map(|setting| {
        let name = setting.definition.broker_name?;
        let (value, origin) = (setting.broker_value, setting.broker_origin);
        Some(Setting {
            name,
            kind: setting.definition.kind,
            synonyms: of_broker_with_default(name, &value, origin, Some(setting.definition.default)),
            value,
            origin,
            is_alterable: false,
            about: setting.definition.about,
        })
    });
    let mut settings: Vec<_> = own.chain(of_topics).collect();
    settings.sort_unstable_by_key(|setting| setting.name);
    settings
}

fn of_definition(broker: &Broker, definition: &broker_settings::Definition) -> Setting {
    let value = (definition.value)(broker);
    let origin = match definition.default {
        Some(default) if default == value => Origin::Default,
        _ => Origin::StaticBroker,
    };
    Setting {
        name: definition.name,
        kind: definition.kind,
        synonyms: of_broker_with_default(definition.name, &value, origin, definition.default),
        value,
        origin,
        is_alterable: false,
        about: definition.about,
    }
}

/// Groups have what the broker gives them, known or not: they are made by who joins them.
fn of_group(broker: &Broker) -> Vec<Setting> {
    let of_groups = OF_GROUPS.iter().filter_map(|of_group| {
        let definition = broker_settings::find(of_group.broker_name)?;
        Some(Setting { name: of_group.name, ..of_definition(broker, definition) })
    });
    of_groups.collect()
}

/// A value of the broker, and the one that it would have without configuration.
fn of_broker_with_default(
    name: &'static str,
    value: &str,
    origin: Origin,
    default: Option<&str>,
) -> Vec<Synonym> {
    let synonym = |value: &str, origin| Synonym { name, value: value.to_owned(), origin };
    let configured = (origin != Origin::Default).then(|| synonym(value, origin));
    let default = default.map(|default| synonym(default, Origin::Default));
    configured.into_iter().chain(default).collect()
}

fn encode(setting: Setting, asked: &DescribeConfigsRequest, version: i16) -> DescribeConfigsResourceResult {
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(setting.name))
        .with_value(Some(StrBytes::from_string(setting.value)))
        .with_read_only(!setting.is_alterable)
        .with_config_source(setting.origin as i8);
    if asked.include_synonyms {
        let synonyms = setting.synonyms.into_iter().map(|synonym| {
            DescribeConfigsSynonym::default()
                .with_name(StrBytes::from_static_str(synonym.name))
                .with_value(Some(StrBytes::from_string(synonym.value)))
                .with_source(synonym.origin as i8)
        });
        result.synonyms = synonyms.collect();
    }
    if version >= 3 {
        result.config_type = setting.kind as i8;
        result.documentation = asked.include_documentation.then(|| StrBytes::from_static_str(setting.about));
    }
    result
}
