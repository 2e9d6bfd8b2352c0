//! AlterClientQuotas, key 49, versions 0–1: refused with POLICY_VIOLATION. There are no quotas.
//!
//! * 1 is flexible.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_client_quotas_request::EntryData as Asked;
use kafka_protocol::messages::alter_client_quotas_response::{EntityData, EntryData};
use kafka_protocol::messages::{AlterClientQuotasRequest, AlterClientQuotasResponse, ApiKey};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{BOOL, Field, I64, Kind, STRING};
use crate::kafka::{Api, Request};

/// AlterClientQuotas.
pub static API: Api = Api {
    key: ApiKey::AlterClientQuotas,
    versions: (0, 1),
    flexible_from: 1,
    shape: &[Field::new(Kind::Structs(ENTRY), 0), Field::new(BOOL, 0)],
    handle: |request| at_once(request, answer),
};

const ENTITY: &[Field] = &[Field::new(STRING, 0), Field::new(STRING, 0)];
const CHANGE: &[Field] = &[Field::new(STRING, 0), Field::new(I64, 0), Field::new(BOOL, 0)];
const ENTRY: &[Field] = &[Field::new(Kind::Structs(ENTITY), 0), Field::new(Kind::Structs(CHANGE), 0)];

fn answer(_: &Request, asked: AlterClientQuotasRequest) -> AlterClientQuotasResponse {
    let refused = |entry: Asked| {
        let entity = entry.entity.into_iter().map(|entity| {
            EntityData::default().with_entity_type(entity.entity_type).with_entity_name(entity.entity_name)
        });
        EntryData::default()
            .with_error_code(ResponseError::PolicyViolation.code())
            .with_error_message(Some(StrBytes::from_static_str("this broker has no quotas")))
            .with_entity(entity.collect())
    };
    AlterClientQuotasResponse::default().with_entries(asked.entries.into_iter().map(refused).collect())
}
