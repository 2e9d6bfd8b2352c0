//! ListGroups, key 16, versions 0–5: all groups, with members or with committed offsets only.
//!
//! * 1: throttle time. 2: as 1. 3: flexible. 4: filter by state. 5: filter by type.
//!
//! Filters take no notice of case, nor of space around a name. A group of which only offsets are left is a classic one.

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{ApiKey, GroupId, ListGroupsRequest, ListGroupsResponse};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::kafka::shape::{Field, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// ListGroups.
pub static API: Api = Api {
    key: ApiKey::ListGroups,
    versions: (0, 5),
    flexible_from: 3,
    shape: &[Field::new(Kind::Array(&STRING), 4), Field::new(Kind::Array(&STRING), 5)],
    handle: |request| Box::pin(async move { handle(request) }),
};

fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: ListGroupsRequest = request.decode()?;
    let passes = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.trim().eq_ignore_ascii_case(value))
    };
    let mut groups = Vec::new();
    for listed in request.broker.groups.list() {
        let versioned = |name, since| if request.version >= since { name } else { "" };
        if passes(&asked.states_filter, listed.state) && passes(&asked.types_filter, listed.kind) {
            groups.push(
                ListedGroup::default()
                    .with_group_id(GroupId(text(&listed.group)))
                    .with_protocol_type(text(&listed.protocol_type))
                    .with_group_state(StrBytes::from_static_str(versioned(listed.state, 4)))
                    .with_group_type(StrBytes::from_static_str(versioned(listed.kind, 5))),
            );
        }
    }
    Reply::encode(&ListGroupsResponse::default().with_groups(groups), request.version)
}
