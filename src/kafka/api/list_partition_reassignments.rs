//! ListPartitionReassignments, key 46, version 0: replicas that are being moved. There are none.

use kafka_protocol::messages::{
    ApiKey, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::at_once;
use crate::kafka::shape::{Field, I32, Kind, STRING};
use crate::kafka::{Api, Request};

/// ListPartitionReassignments.
pub static API: Api = Api {
    key: ApiKey::ListPartitionReassignments,
    versions: (0, 0),
    flexible_from: 0,
    shape: &[Field::new(I32, 0), Field::new(Kind::Structs(TOPIC), 0)],
    handle: |request| at_once(request, answer),
};

const TOPIC: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Array(&I32), 0)];

fn answer(_: &Request, _: ListPartitionReassignmentsRequest) -> ListPartitionReassignmentsResponse {
    ListPartitionReassignmentsResponse::default()
}
