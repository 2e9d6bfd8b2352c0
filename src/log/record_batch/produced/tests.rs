//! Batches as producers send them, in every codec, and as nobody should.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::log::record_batch::{BatchBuilder, Codec, Compressor};
use crate::log::{Header as RecordHeader, Record};

const LIMITS: ProducerLimits =
    ProducerLimits { batch_bytes: 1 << 20, records_bytes: 4 << 20, latest: 4_000_000_000_000 };
/// Where the records' bytes come from: each of Kafka's codecs, both forms of snappy.
const CODECS: [(i16, Compress); 6] =
    [(0, plain), (1, gzip), (2, xerial), (2, bare_snappy), (3, lz4), (4, zstd)];

type Compress = fn(&[u8]) -> Vec<u8>;

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bare_snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

fn xerial(bytes: &[u8]) -> Vec<u8> {
    let mut out = XERIAL_MAGIC.to_vec();
    out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    for block in bytes.chunks(1000) {
        let block = bare_snappy(block);
        out.extend_from_slice(&(block.len() as u32).to_be_bytes());
        out.extend_from_slice(&block);
    }
    out
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// An uncompressed batch of records with these values.
fn batch(values: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for (value, timestamp) in values.iter().zip(1_000..) {
        let headers = [RecordHeader { name: "h", value: None }];
        builder.append(&Record { timestamp, key: None, value: Some(value), headers: &headers });
    }
    let mut out = Vec::new();
    builder.close(Offset(0), -1, Codec::None, &mut Compressor::default(), &mut out);
    out
}

/// The same batch with its records in another form.
fn recoded(batch: &[u8], codec: i16, payload: &[u8]) -> Vec<u8> {
    let mut out = batch[..HEADER_LEN].to_vec();
    out.extend_from_slice(payload);
    out[21..23].copy_from_slice(&codec.to_be_bytes());
    seal(out)
}

/// Makes length and checksum right.
fn seal(mut batch: Vec<u8>) -> Vec<u8> {
    let length = (batch.len() - LENGTH_FROM) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[CRC_FROM..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

fn values(batch: &ProducedBatch) -> Vec<Vec<u8>> {
    let mut records = batch.records();
    let mut values = Vec::new();
    while let Some(record) = records.next_record().unwrap() {
        assert_eq!(record.headers().collect::<Result<Vec<_>, _>>().unwrap(), [("h", None)]);
        values.push(record.value.unwrap().to_vec());
    }
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_are_read_from_every_codec(
        sent in prop::collection::vec(prop::collection::vec(0..4u8, 0..400), 1..30),
    ) {
        let plain = batch(&sent);
        for (codec, compress) in CODECS {
            let batch = recoded(&plain, codec, &compress(&plain[HEADER_LEN..]));
            prop_assert_eq!(values(&ProducedBatch::check(&batch, &LIMITS).unwrap()), sent.clone());
            prop_assert_eq!(ProducedBatch::is_zstd(&batch), codec == 4);
        }
    }

    #[test]
    fn damaged_records_are_an_error_and_never_a_panic(
        which in 0..CODECS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let plain = batch(&vec![vec![7; 100]; 20]);
        let (codec, compress) = CODECS[which];
        let mut payload = compress(&plain[HEADER_LEN..]);
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        let _ = ProducedBatch::check(&recoded(&plain, codec, &payload), &LIMITS);
        payload.truncate(cut.index(payload.len()));
        prop_assert!(ProducedBatch::check(&recoded(&plain, codec, &payload), &LIMITS).is_err());
    }

    #[test]
    fn bytes_of_any_kind_are_an_error_and_never_a_panic(mut bytes: Vec<u8>, sealed: bool) {
        if sealed && bytes.len() >= HEADER_LEN {
            bytes[..8].fill(0);
            bytes[16] = MAGIC;
            bytes = seal(bytes);
        }
        prop_assert!(ProducedBatch::check(&bytes, &LIMITS).is_err());
    }
}

#[test]
fn what_is_too_large_is_refused_however_small_it_was_made() {
    let small = batch(&[vec![0; 100]]);
    let bomb = vec![0; LIMITS.records_bytes + 1];
    for (codec, compress) in CODECS {
        let error = ProducedBatch::check(&recoded(&small, codec, &compress(&bomb)), &LIMITS).unwrap_err();
        assert!(matches!(error, ProducedError::TooLarge { .. }), "{codec}: {error:?}");
    }
    // A block of snappy that says it has gigabytes, alone and between others.
    let liar = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0];
    let mut in_stream = xerial(&[0; 10]);
    in_stream.extend_from_slice(&[0, 0, 0, 6]);
    in_stream.extend_from_slice(&liar);
    for payload in [&liar[..], &in_stream] {
        assert!(ProducedBatch::check(&recoded(&small, 2, payload), &LIMITS).is_err());
    }
}

#[test]
fn a_sequence_goes_round() {
    let mut sent = batch(&vec![vec![1]; 5]);
    sent[43..51].copy_from_slice(&9i64.to_be_bytes());
    sent[51..53].copy_from_slice(&2i16.to_be_bytes());
    sent[53..57].copy_from_slice(&(i32::MAX - 2).to_be_bytes());
    let producer = ProducedBatch::check(&seal(sent), &LIMITS).unwrap().producer;
    assert_eq!(producer, Some(Producer { id: 9, epoch: 2, first: i32::MAX - 2, last: 1 }));
}

#[test]
fn records_must_be_what_the_header_says() {
    let right = batch(&[vec![1], vec![2]]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut batch = right.clone();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        seal(batch)
    };
    let mut longer = right.clone();
    longer.push(0);
    // The second record's offset in the batch: its length, attributes and time come before.
    let record = (right.len() - HEADER_LEN) / 2;
    let offset = changed(HEADER_LEN + record + 3, &[10]);
    assert!(
        matches!(ProducedBatch::check(&offset, &LIMITS), Err(ProducedError::Records(wrong)) if wrong[0].0 == 1)
    );
    let late = changed(27, &LIMITS.latest.to_be_bytes());
    assert!(
        matches!(ProducedBatch::check(&late, &LIMITS), Err(ProducedError::Timestamps(wrong)) if wrong.len() == 1 && wrong[0].0 == 1)
    );
    let fewer = [&0i32.to_be_bytes()[..], &right[27..57], &1i32.to_be_bytes()].concat();
    for wrong in [changed(57, &3i32.to_be_bytes()), changed(23, &fewer), seal(longer)] {
        assert!(matches!(ProducedBatch::check(&wrong, &LIMITS), Err(ProducedError::Invalid(_))));
    }
}
