//! DeleteGroups, key 42, versions 0–2: forgets groups without members, with their offsets.
//!
//! * 1: as 0. 2: flexible.
//!
//! A group that is named more than once is answered once.

use std::collections::HashSet;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{ApiKey, DeleteGroupsRequest, DeleteGroupsResponse};

use crate::kafka::shape::{Field, Kind, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// DeleteGroups.
pub static API: Api = Api {
    key: ApiKey::DeleteGroups,
    versions: (0, 2),
    flexible_from: 2,
    shape: &[Field::new(Kind::Array(&STRING), 0)],
    handle: |request| Box::pin(handle(request)),
};

async fn handle(request: &Request) -> Result<Reply, RequestError> {
    let asked: DeleteGroupsRequest = request.decode()?;
    let groups = &request.broker.groups;
    let mut seen = HashSet::new();
    let mut names = asked.groups_names;
    names.retain(|group| seen.insert(group.clone()));
    // At once, so that all of them are in few transactions.
    let deleted = futures_util::future::join_all(names.iter().map(|group| groups.delete(&group.0))).await;
    let results = names.into_iter().zip(deleted).map(|(group, deleted)| {
        DeletableGroupResult::default()
            .with_group_id(group)
            .with_error_code(deleted.err().map_or(0, |error| error.code()))
    });
    Reply::encode(&DeleteGroupsResponse::default().with_results(results.collect()), request.version)
}
