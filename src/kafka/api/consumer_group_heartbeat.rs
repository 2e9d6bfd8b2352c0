//! ConsumerGroupHeartbeat, key 68, versions 0–1: a member of a consumer group (KIP-848) comes, stays or goes, and is led to
//! the partitions that the broker gives it.
//!
//! * 1: subscription by a regular expression; the client makes the member's id itself. In version 0 the broker makes it
//!   for a member that joins without one.
//!
//! A member of a group or of a broker that does not know it, as after a restart, is answered with UNKNOWN_MEMBER_ID, upon
//! which it joins again; Apache Kafka, which keeps members over a restart, answers GROUP_ID_NOT_FOUND where there is no
//! group, which ends the member. The pattern's syntax is that of the crate `regex`: RE2's without `\C` and `\Q…\E`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ApiKey, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::{from_uuid, text, to_uuid};
use crate::group::consumer::{AWAY, Assignor, Heartbeat, JOIN, LEAVE, Parts, Refused};
use crate::group::new_member_id;
use crate::kafka::shape::{Field, I32, Kind, STRING, UUID};
use crate::kafka::{Api, Reply, Request, RequestError};

/// ConsumerGroupHeartbeat.
pub static API: Api = Api {
    key: ApiKey::ConsumerGroupHeartbeat,
    versions: (0, 1),
    flexible_from: 0,
    shape: &[
        Field::new(STRING, 0),
        Field::new(STRING, 0),
        Field::new(I32, 0),
        Field::new(STRING, 0),
        Field::new(STRING, 0),
        Field::new(I32, 0),
        Field::new(Kind::Array(&STRING), 0),
        Field::new(STRING, 1),
        Field::new(STRING, 0),
        Field::new(Kind::Structs(&[Field::new(UUID, 0), Field::new(Kind::Array(&I32), 0)]), 0),
    ],
    handle,
};

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(answer(request))
}

async fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: ConsumerGroupHeartbeatRequest = request.decode()?;
    let groups = &request.broker.groups;
    let beat = check(&asked, request.version).and_then(|()| heartbeat(&asked, request));
    let answer = match beat {
        Ok(beat) => {
            groups.consumer_heartbeat(&asked.group_id.0, &beat).await.map(|answer| (answer, beat.member_id))
        }
        Err(refused) => Err(refused),
    };
    let answer = match answer {
        Ok((beat, member_id)) => {
            let interval = match beat.epoch {
                LEAVE | AWAY => 0,
                _ => i32::try_from(groups.heartbeat_interval().as_millis()).unwrap_or(i32::MAX),
            };
            ConsumerGroupHeartbeatResponse::default()
                .with_member_id(Some(text(&member_id)))
                .with_member_epoch(beat.epoch)
                // Who has left owes no heartbeat.
                .with_heartbeat_interval_ms(if beat.epoch < 0 { 0 } else { interval })
                .with_assignment(beat.assignment.map(assignment))
        }
        Err(Refused { error, message }) => ConsumerGroupHeartbeatResponse::default()
            .with_error_code(error.code())
            .with_error_message(Some(text(message))),
    };
    Reply::encode(&answer, request.version)
}

/// Whether the request says what it has to say.
fn check(asked: &ConsumerGroupHeartbeatRequest, version: i16) -> Result<(), Refused> {
    let ensure = |holds: bool, message| match holds {
        true => Ok(()),
        false => Err(Refused::new(ResponseError::InvalidRequest, message)),
    };
    let joins = asked.member_epoch == JOIN;
    let not_empty = |text: Option<&str>| text != Some("");
    let names_itself = !asked.member_id.is_empty() || joins && version == 0;
    ensure(names_itself, "MemberId must not be empty")?;
    ensure(!asked.group_id.0.is_empty(), "GroupId must not be empty")?;
    ensure(not_empty(asked.instance_id.as_deref()), "InstanceId must not be empty")?;
    ensure(not_empty(asked.rack_id.as_deref()), "RackId must not be empty")?;
    match asked.member_epoch {
        JOIN => {
            ensure(asked.rebalance_timeout_ms != -1, "RebalanceTimeoutMs must be given when joining")?;
            let owns_nothing = asked.topic_partitions.as_ref().is_some_and(|owned| owned.is_empty());
            ensure(owns_nothing, "TopicPartitions must be empty when joining")?;
            let subscribes = asked.subscribed_topic_names.is_some() || asked.subscribed_topic_regex.is_some();
            ensure(subscribes, "SubscribedTopicNames or SubscribedTopicRegex must be given when joining")?;
        }
        AWAY => {
            ensure(asked.instance_id.is_some(), "InstanceId must be given by a static member that leaves")?
        }
        epoch => ensure(epoch >= LEAVE, "MemberEpoch must not be less than -2")?,
    }
    match asked.server_assignor.as_deref() {
        Some(name) if Assignor::by_name(name).is_none() => Err(Refused::new(
            ResponseError::UnsupportedAssignor,
            "ServerAssignor must be one of uniform and range",
        )),
        _ => Ok(()),
    }
}

fn heartbeat(asked: &ConsumerGroupHeartbeatRequest, request: &Request) -> Result<Heartbeat, Refused> {
    let shared = |text: &str| Arc::<str>::from(text);
    let client_id = request.client_id.as_deref().unwrap_or_default();
    let member_id = match asked.member_id.is_empty() {
        false => Some(shared(&asked.member_id)),
        true => new_member_id(client_id),
    };
    let no_numbers = "the broker's system has no random numbers for a member's id";
    let member_id = member_id.ok_or(Refused::new(ResponseError::CoordinatorNotAvailable, no_numbers))?;
    let names = asked.subscribed_topic_names.as_ref();
    let names = names.map(|names| names.iter().map(|name| shared(&name.0)).collect::<BTreeSet<_>>());
    let owned = asked.topic_partitions.as_ref().map(|owned| {
        let mut parts = Parts::new();
        for topic in owned {
            parts.entry(from_uuid(topic.topic_id)).or_default().extend(&topic.partitions);
        }
        parts
    });
    let milliseconds = u64::try_from(asked.rebalance_timeout_ms).ok();
    Ok(Heartbeat {
        member_id,
        epoch: asked.member_epoch,
        instance_id: asked.instance_id.as_deref().map(shared),
        rack_id: asked.rack_id.as_deref().map(shared),
        rebalance_timeout: milliseconds.map(Duration::from_millis),
        names,
        pattern: asked.subscribed_topic_regex.as_deref().map(shared),
        assignor: asked.server_assignor.as_deref().and_then(Assignor::by_name),
        owned,
        client_id: shared(client_id),
        client_host: format!("/{}", request.peer.ip()).into(),
    })
}

fn assignment(parts: Parts) -> Assignment {
    let each = parts.into_iter().map(|(topic, partitions)| {
        TopicPartitions::default()
            .with_topic_id(to_uuid(topic))
            .with_partitions(partitions.into_iter().collect())
    });
    Assignment::default().with_topic_partitions(each.collect())
}
