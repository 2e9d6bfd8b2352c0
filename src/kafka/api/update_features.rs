//! UpdateFeatures, key 57, versions 0–2: a cluster's features go up or down a level.
//!
//! * 1 adds how, and only to look whether it could be done; 2 leaves out the results of single features.
//!
//! Unlike Apache Kafka's, the features of this broker are what its release has: any change of them is refused with
//! INVALID_UPDATE_VERSION.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, UpdateFeaturesRequest, UpdateFeaturesResponse};
use kafka_protocol::protocol::StrBytes;

use super::at_once;
use crate::kafka::shape::{BOOL, Field, I8, I16, I32, Kind, STRING};
use crate::kafka::{Api, Request};

/// UpdateFeatures.
pub static API: Api = Api {
    key: ApiKey::UpdateFeatures,
    versions: (0, 2),
    flexible_from: 0,
    shape: &[Field::new(I32, 0), Field::new(Kind::Structs(FEATURE), 0), Field::new(BOOL, 1)],
    handle: |request| at_once(request, answer),
};

const FEATURE: &[Field] =
    &[Field::new(STRING, 0), Field::new(I16, 0), Field::new(BOOL, 0).until(0), Field::new(I8, 1)];

fn answer(_: &Request, asked: UpdateFeaturesRequest) -> UpdateFeaturesResponse {
    if asked.feature_updates.is_empty() {
        return UpdateFeaturesResponse::default().with_error_message(None);
    }
    let message = "the features of this broker are those of its release; install another to change them";
    UpdateFeaturesResponse::default()
        .with_error_code(ResponseError::InvalidUpdateVersion.code())
        .with_error_message(Some(StrBytes::from_static_str(message)))
}
