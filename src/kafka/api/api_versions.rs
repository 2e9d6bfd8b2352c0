//! ApiVersions, key 18, versions 0–4: which APIs the broker serves, in which versions.
//!
//! * 1 adds the throttle time.
//! * 3 is flexible, adds the name and version of the client's library, and features. The answer's header stays the old
//!   one in every version, so that a client can read it before it knows ours.
//! * 4 allows features with a minimum version of 0, which clients of version 3 fail at (KAFKA-17011): it is sent no such.
//!
//! The features are those that clients ask for: `group.version` 1, by which they know that there are consumer groups
//! (KIP-848), and the `metadata.version` of the release of Apache Kafka whose APIs these are.
//!
//! A version that is not served is answered with UNSUPPORTED_VERSION in version 0's form, listing this API's range.
//! Served before anything else, by every state of a connection. As Apache Kafka.

use futures_util::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;

use super::ALL;
use crate::kafka::shape::{Field, STRING};
use crate::kafka::{Api, Reply, Request, RequestError};

/// ApiVersions.
pub static API: Api =
    Api { key: ApiKey::ApiVersions, versions: (0, 4), flexible_from: 3, shape: SHAPE, handle };

const SHAPE: &[Field] = &[Field::new(STRING, 3), Field::new(STRING, 3)];

fn handle(request: &Request) -> BoxFuture<'_, Result<Reply, RequestError>> {
    Box::pin(std::future::ready(answer(request)))
}

fn answer(request: &Request) -> Result<Reply, RequestError> {
    let asked: ApiVersionsRequest = request.decode()?;
    let mut response = ApiVersionsResponse::default();
    if request.version >= 3
        && !(is_software(&asked.client_software_name) && is_software(&asked.client_software_version))
    {
        response.error_code = ResponseError::InvalidRequest.code();
    } else {
        response.api_keys = ALL.iter().copied().map(range).collect();
        if request.version >= 3 {
            add_features(&mut response, request.version);
        }
    }
    Reply::encode(&response, request.version)
}

/// Older versions of librdkafka conclude from Produce 0 to 2 what a broker can do, so Apache Kafka names them too, and
/// serves none of them.
const PRODUCE_SAID_FROM: i16 = 0;

/// A feature: its name, the levels that the broker can do, the last of which is in force.
const FEATURES: [(&str, i16, i16); 2] = [("group.version", 0, 1), ("metadata.version", 7, METADATA_VERSION)];
/// Apache Kafka 4.3.
const METADATA_VERSION: i16 = 30;
/// The features never change.
const FEATURES_EPOCH: i64 = 0;

fn add_features(response: &mut ApiVersionsResponse, version: i16) {
    for (name, first, last) in FEATURES {
        let name = StrBytes::from_static_str(name);
        if first > 0 || version >= 4 {
            let feature = SupportedFeatureKey::default().with_name(name.clone());
            response.supported_features.push(feature.with_min_version(first).with_max_version(last));
        }
        let feature = FinalizedFeatureKey::default().with_name(name);
        response.finalized_features.push(feature.with_min_version_level(last).with_max_version_level(last));
    }
    response.finalized_features_epoch = FEATURES_EPOCH;
}

/// The answer to a version that is not served.
pub fn unsupported_version() -> Result<Reply, RequestError> {
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(vec![range(&API)]);
    Reply::encode(&response, 0)
}

/// Name and version of the client's library, if it says so.
pub fn client_software(request: &Request) -> Option<String> {
    let asked: ApiVersionsRequest = request.decode().ok()?;
    let (name, version) = (asked.client_software_name, asked.client_software_version);
    (is_software(&name) && is_software(&version)).then(|| format!("{name} {version}"))
}

fn range(api: &Api) -> ApiVersion {
    let first = match api.key {
        ApiKey::Produce => PRODUCE_SAID_FROM,
        _ => api.versions.0,
    };
    ApiVersion::default()
        .with_api_key(api.key as i16)
        .with_min_version(first)
        .with_max_version(api.versions.1)
}

/// Letters, digits, dots and dashes, neither first nor last a dot or dash.
fn is_software(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.bytes().all(inner) && ends(text.bytes().next()) && ends(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_from_the_future_is_answered_in_exactly_version_0() {
        let Reply(pieces) = unsupported_version().unwrap();
        assert_eq!(pieces.concat(), [0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
    }

    #[test]
    fn names_of_client_software_are_checked() {
        for good in ["librdkafka", "2.12.1", "apache-kafka-java", "a"] {
            assert!(is_software(good), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "a b", "a\n", "ä"] {
            assert!(!is_software(bad), "{bad}");
        }
    }
}
