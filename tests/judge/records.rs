//! Record batches, written by the protocol crate, and read by us: it cannot decompress.

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, Record,
    RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use millrace::log::record_batch::{BatchHeader, RecordView};

/// Bytes of a decompressed batch.
const LIMIT: usize = 16 << 20;

/// A batch of records with these timestamps, each with a value of so many bytes.
pub fn batch(timestamps: &[i64], size: usize) -> Bytes {
    let records: Vec<Record> =
        timestamps.iter().enumerate().map(|(n, time)| record(n, *time, size)).collect();
    encode(&records)
}

/// The same from an idempotent producer.
pub fn numbered_batch(timestamps: &[i64], producer_id: i64, producer_epoch: i16, sequence: i32) -> Bytes {
    let numbered = |(n, time): (usize, &i64)| Record {
        producer_id,
        producer_epoch,
        sequence: sequence + n as i32,
        ..record(n, *time, 10)
    };
    let records: Vec<Record> = timestamps.iter().enumerate().map(numbered).collect();
    encode(&records)
}

fn record(n: usize, timestamp: i64, size: usize) -> Record {
    let mut headers = IndexMap::new();
    headers.insert(StrBytes::from_static_str("h"), Some(Bytes::from_static(b"v")));
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: NO_PRODUCER_ID,
        producer_epoch: NO_PRODUCER_EPOCH,
        timestamp_type: TimestampType::Creation,
        offset: n as i64,
        // The encoder makes one batch of what is numbered in order, if only from no number.
        sequence: NO_SEQUENCE + n as i32,
        timestamp,
        key: n.is_multiple_of(2).then(|| Bytes::from(format!("key-{n}"))),
        value: Some(incompressible(size)),
        headers,
    }
}

/// Bytes that stay as many when they are compressed.
fn incompressible(size: usize) -> Bytes {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn encode(records: &[Record]) -> Bytes {
    let mut batch = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut batch, records, &options).expect("encode a batch");
    batch.freeze()
}

/// The records of an answer as text, for comparison: one after the other, whatever batches they came in.
pub fn shown(records: &Bytes) -> String {
    let mut shown = Vec::new();
    let mut rest = &records[..];
    // What is not whole at the end is no record: the broker cut it off.
    while let Ok(header) = BatchHeader::check(rest) {
        let mut records = header.records(rest, LIMIT).expect("read a batch");
        while let Some(record) = records.next_record().expect("read a record") {
            shown.push(show(&header, &record));
        }
        rest = &rest[header.len..];
    }
    shown.join("; ")
}

fn show(batch: &BatchHeader, record: &RecordView<'_>) -> String {
    let bytes = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => format!("{} of {:?}", bytes.len(), bytes.first()),
        None => "none".to_owned(),
    };
    format!(
        "{} at {} epoch {} key {} value {} headers {}",
        record.offset.0,
        record.timestamp,
        batch.leader_epoch,
        bytes(record.key),
        bytes(record.value),
        record.headers().count(),
    )
}
