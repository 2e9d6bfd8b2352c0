//! Fetch: records of a partition, once.

use tonic::Status;

use super::records::{Limits, Reader, Source};
use super::{Broker, MAX_MESSAGE_BYTES, request};
use crate::log::Offset;
use crate::log::view::View;
use crate::proto::{FetchRequest, FetchResponse, Records};

const DEFAULT_RECORDS: u64 = 1_000;
const MAX_RECORDS: u64 = 10_000;

/// Reads from one snapshot.
pub async fn fetch(broker: &Broker, reader: &Reader, asked: FetchRequest) -> Result<FetchResponse, Status> {
    let topic = request::topic(&broker.topics, &asked.topic)?;
    let index = request::partition(&topic, asked.partition)?;
    request::decodable(broker, asked.decode, &topic.name)?;
    let mut view = View::default();
    let place = view.find(&topic, index).ok_or_else(|| Status::not_found("there is no such partition"))?;
    let (log, snapshot) = view.at(place);
    let source = Source {
        topic: topic.clone(),
        index: asked.partition,
        log: log.clone(),
        snapshot: snapshot.clone(),
        partition: place.partition,
    };
    let or = |asked: u32, default| if asked == 0 { default } else { u64::from(asked) };
    let limits = Limits {
        records: or(asked.max_records, DEFAULT_RECORDS).min(MAX_RECORDS) as usize,
        bytes: or(asked.max_bytes, MAX_MESSAGE_BYTES).min(MAX_MESSAGE_BYTES),
        decode: asked.decode,
    };
    let read = reader.read(&source, Offset(asked.offset), None, limits).await?;
    if read.bytes > MAX_MESSAGE_BYTES {
        return Err(Status::resource_exhausted(format!(
            "the record at offset {} of {} [{index}] has {} bytes, Fetch gives up to {MAX_MESSAGE_BYTES}; Subscribe \
             gives it, from this offset on",
            asked.offset, topic.name, read.bytes
        )));
    }
    let records = Records {
        topic: topic.name.clone(),
        partition: asked.partition,
        content_type: broker.media_types.of(&topic.name).to_owned(),
        records: read.records,
        high_watermark: view.range(place).end.0,
        bytes: read.bytes,
    };
    Ok(FetchResponse { records: Some(records) })
}
