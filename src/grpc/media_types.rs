//! What the values of a topic are, by the output that the topic belongs to: its name is the output's, or begins with it
//! and a dot.

use std::collections::HashMap;
use std::sync::Arc;

use crate::proto::CHANGE_MEDIA_TYPE;

/// The media types of all outputs' formats.
#[derive(Debug, Clone, Default)]
pub struct MediaTypes(Arc<HashMap<String, &'static str>>);

impl FromIterator<(String, &'static str)> for MediaTypes {
    /// From pairs of an output's name and its format's media type.
    fn from_iter<T: IntoIterator<Item = (String, &'static str)>>(outputs: T) -> Self {
        MediaTypes(Arc::new(outputs.into_iter().collect()))
    }
}

impl MediaTypes {
    /// Of a topic's values.
    pub fn of(&self, topic: &str) -> &'static str {
        // Names of outputs have no dots.
        let output = topic.split('.').next().unwrap_or(topic);
        self.0.get(output).copied().unwrap_or("application/octet-stream")
    }

    /// Whether a topic's values are changes of our vocabulary.
    pub fn is_decodable(&self, topic: &str) -> bool {
        self.of(topic) == CHANGE_MEDIA_TYPE
    }
}
