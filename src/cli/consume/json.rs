//! Records for programs: a line of JSON each.

use std::fmt::Write;

use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::de::IgnoredAny;

use crate::proto::{CHANGE_MEDIA_TYPE, DESCRIPTORS, Record, record::Content};

/// Writes records as JSON. Keys and values that are JSON stay as they are; those in format `protobuf` get protobuf's own
/// JSON form; all else becomes a string.
pub(super) struct JsonLines {
    change: Option<MessageDescriptor>,
    key: Option<MessageDescriptor>,
}

impl JsonLines {
    pub(super) fn new() -> Result<Self, DescriptorError> {
        let pool = DescriptorPool::decode(DESCRIPTORS)?;
        let message = |name| pool.get_message_by_name(name);
        Ok(JsonLines { change: message("millrace.v1.Change"), key: message("millrace.v1.Key") })
    }

    /// Appends a record's line.
    pub(super) fn write(&self, out: &mut String, partition: u32, media_type: &str, record: &Record) {
        let is_protobuf = media_type == CHANGE_MEDIA_TYPE;
        let value: Option<&[u8]> = match &record.content {
            Some(Content::Value(value)) => Some(value),
            Some(Content::Change(_)) | None => None,
        };
        let json = |bytes: &[u8], descriptor: &Option<MessageDescriptor>| match descriptor {
            Some(descriptor) if is_protobuf => message(descriptor, bytes),
            _ => text(bytes),
        };
        let null = || "null".to_owned();
        let key = record.key.as_deref().map_or_else(null, |key| json(key, &self.key));
        let value = value.map_or_else(null, |value| json(value, &self.change));
        let (offset, timestamp) = (record.offset, record.timestamp_ms);
        let _ = writeln!(
            out,
            r#"{{"partition":{partition},"offset":{offset},"timestamp":{timestamp},"key":{key},"value":{value}}}"#
        );
    }
}

/// A message in protobuf's JSON form, or what it is where it cannot be read.
fn message(descriptor: &MessageDescriptor, bytes: &[u8]) -> String {
    let message = DynamicMessage::decode(descriptor.clone(), bytes).ok();
    message.and_then(|message| serde_json::to_string(&message).ok()).unwrap_or_else(|| string(bytes))
}

/// JSON as it is, if it is that, and on one line.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\n') && serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            text.to_owned()
        }
        _ => string(bytes),
    }
}

fn string(bytes: &[u8]) -> String {
    serde_json::Value::from(String::from_utf8_lossy(bytes)).to_string()
}
