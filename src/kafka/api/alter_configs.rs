//! AlterConfigs, key 33, versions 0–2: gives resources the settings named, and the broker's own for all others.
//!
//! * 1: as 0. 2: flexible.
//!
//! A topic's `retention.ms` and `retention.bytes` can be changed, which changes them for all topics of its task: they share
//! one log. Any other setting of Kafka's is refused with POLICY_VIOLATION and what decides it here, unless it is set to the
//! value that it has; so tools that send all they have read may do so. There are no accounts yet: unless the broker listens
//! on loopback, a topic's settings are for nobody to change, TOPIC_AUTHORIZATION_FAILED. The broker, its loggers, groups and client metrics
//! have no settings that can be changed while it runs: each is refused by name. Otherwise errors are Apache Kafka's, also
//! for a name that it does not have (INVALID_CONFIG); but where it leaves AlterConfigs with a resource named twice without
//! an answer, that is refused as in IncrementalAlterConfigs.

use std::collections::{HashMap, HashSet};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse, ApiKey};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::kafka::shape::{BOOL, Field, I8, Kind, STRING};
use crate::kafka::topic_settings::{self, Change, Operation};
use crate::kafka::{Api, Broker, NODE_ID, Reply, Request, RequestError};
use crate::log::topics::is_topic_name;

/// AlterConfigs.
pub static API: Api = Api {
    key: ApiKey::AlterConfigs,
    versions: (0, 2),
    flexible_from: 2,
    shape: SHAPE,
    handle: |request| Box::pin(handle(request)),
};

const CONFIG: &[Field] = &[Field::new(STRING, 0), Field::new(STRING, 0)];
const RESOURCE: &[Field] = &[Field::new(I8, 0), Field::new(STRING, 0), Field::new(Kind::Structs(CONFIG), 0)];
const SHAPE: &[Field] = &[Field::new(Kind::Structs(RESOURCE), 0), Field::new(BOOL, 0)];

/// An answer's message is cut at this length, in bytes.
const MAX_MESSAGE: usize = 1_000;
/// Kinds of resources.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: AlterConfigsRequest = request.decode()?;
    let resources = asked.resources.iter().map(|resource| {
        let named = resource.configs.iter().map(|config| Change {
            name: config.name.to_string(),
            operation: Operation::Set,
            value: config.value.as_ref().map(|value| value.to_string()),
        });
        let mut changes: Vec<_> = named.collect();
        let is_named = |name: &str| resource.configs.iter().any(|config| *config.name == *name);
        let alterable = topic_settings::ALL.iter().filter(|definition| definition.is_alterable());
        let left = alterable.filter(|definition| !is_named(definition.name));
        let reset = |name: &str| Change { name: name.into(), operation: Operation::Delete, value: None };
        changes.extend(left.map(|definition| reset(definition.name)));
        Resource {
            kind: resource.resource_type,
            name: &resource.resource_name,
            changes: changes.into_iter().map(Ok).collect(),
        }
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
    Reply::encode(&AlterConfigsResponse::default().with_responses(responses.collect()), request.version)
}

type Refused = (ResponseError, String);

/// A resource whose settings are to be changed.
pub(super) struct Resource<'a> {
    pub kind: i8,
    pub name: &'a str,
    pub changes: Vec<Result<Change, Refused>>,
}

/// What a request is to change.
pub(super) struct Resources<'a> {
    pub all: Vec<Resource<'a>>,
    pub validate_only: bool,
}

impl Resources<'_> {
    /// Changes each resource as a whole or not at all. Gives their error codes and messages.
    pub async fn alter(self, broker: &Broker) -> Vec<(i16, Option<StrBytes>)> {
        let mut times: HashMap<(i8, &str), usize> = HashMap::new();
        for resource in &self.all {
            *times.entry((resource.kind, resource.name)).or_default() += 1;
        }
        let mut results = Vec::with_capacity(self.all.len());
        for resource in self.all {
            let altered = match times.get(&(resource.kind, resource.name)) {
                Some(1) => resource.alter(broker, self.validate_only).await,
                _ => Err(invalid("Each resource must appear at most once.")),
            };
            results.push(match altered {
                Ok(()) => (0, None),
                // What a client has sent is told again only so far.
                Err((error, message)) => {
                    let within = |(start, char): &(usize, char)| start + char.len_utf8() <= MAX_MESSAGE;
                    let start: String = message.char_indices().take_while(within).map(|(_, c)| c).collect();
                    (error.code(), Some(text(&start)))
                }
            });
        }
        results
    }
}

fn invalid(message: impl Into<String>) -> Refused {
    (ResponseError::InvalidRequest, message.into())
}

impl Resource<'_> {
    async fn alter(self, broker: &Broker, validate_only: bool) -> Result<(), Refused> {
        let Resource { kind, name, changes } = self;
        let changes = changes.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut names = HashSet::new();
        if !changes.iter().all(|change| names.insert(&change.name)) {
            return Err(invalid("Error due to duplicate config keys"));
        }
        let has_no_value = |change: &&Change| change.operation != Operation::Delete && change.value.is_none();
        let without: Vec<_> = changes.iter().filter(has_no_value).map(|change| &*change.name).collect();
        if !without.is_empty() {
            return Err(invalid(format!("Null value not supported for : {}", without.join(","))));
        }
        let fixed = |error, whose: &str| match changes.iter().find(|c| c.operation != Operation::Delete) {
            Some(change) => Err((error, format!("{}: {whose}", change.name))),
            None => Ok(()),
        };
        match kind {
            TOPIC => alter_topic(broker, name, changes, validate_only).await,
            BROKER if name.is_empty() || *name == NODE_ID.to_string() => fixed(
                ResponseError::InvalidRequest,
                "the broker's settings cannot be changed while it runs; `millrace config show` tells where each comes \
                 from, change it there and start the broker again",
            ),
            BROKER => Err(invalid(format!("Unexpected broker id, expected {NODE_ID}, but received {name}"))),
            BROKER_LOGGER => fixed(
                ResponseError::InvalidConfig,
                "what is logged cannot be changed while the broker runs; set RUST_LOG and start it again",
            ),
            GROUP if name.is_empty() => Err(invalid("Default group resources are not allowed.")),
            GROUP => fixed(
                ResponseError::InvalidConfig,
                "groups have no settings of their own here; those of the broker hold for all",
            ),
            CLIENT_METRICS => fixed(ResponseError::InvalidRequest, "no metrics are taken from clients here"),
            other => Err(invalid(format!("Unknown resource type {other}"))),
        }
    }
}

async fn alter_topic(
    broker: &Broker,
    name: &str,
    changes: Vec<Change>,
    validate_only: bool,
) -> Result<(), Refused> {
    let Some(topic) = broker.topics.by_name(name) else {
        return Err(match name {
            "" => invalid("Default topic resources are not allowed."),
            name if !is_topic_name(name) => (
                ResponseError::InvalidTopicException,
                format!("Topic name is invalid: '{name}' is not 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"),
            ),
            name => (ResponseError::UnknownTopicOrPartition, format!("The topic '{name}' does not exist.")),
        });
    };
    if !broker.local_only {
        let message = "the broker listens for more than its own machine and knows no accounts yet, so settings of topics \
                       cannot be changed; use log.retention_hours and log.retention_mb, or let it listen on loopback";
        return Err((ResponseError::TopicAuthorizationFailed, message.to_owned()));
    }
    let settings = broker.topic_settings.clone();
    let wanted =
        settings.check(&topic, &changes).map_err(|refusal| (refusal.error(), refusal.to_string()))?;
    if validate_only || wanted.is_empty() {
        return Ok(());
    }
    let changed = tokio::task::spawn_blocking(move || {
        let changed = settings.change(&topic, &wanted);
        let log = topic.log.name();
        match &changed {
            Ok(()) => tracing::info!(log, topic = topic.name, ?wanted, "the retention of a log was changed"),
            Err(error) => tracing::error!(log, %error, "the retention of a log cannot be changed"),
        }
        changed.is_ok()
    });
    match changed.await {
        Ok(true) => Ok(()),
        _ => Err((
            ResponseError::KafkaStorageError,
            "it could not be made durable; the broker's log says why".to_owned(),
        )),
    }
}
