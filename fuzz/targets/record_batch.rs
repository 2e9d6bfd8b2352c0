//! Record batches from disks and producers. The checksum is made right, or nothing would get past it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace::log::record_batch::{BatchHeader, ProducedBatch, ProducerLimits};

/// No batch may be decompressed to more than this.
const LIMIT: usize = 1 << 20;
const CHECKSUM: std::ops::Range<usize> = 17..21;

fuzz_target!(|input: &[u8]| {
    let mut batch = input.to_vec();
    if batch.len() > CHECKSUM.end {
        let checksum = crc32c::crc32c(&batch[CHECKSUM.end..]);
        batch[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
    let limits = ProducerLimits { batch_bytes: LIMIT, records_bytes: LIMIT, latest: i64::MAX };
    let _ = ProducedBatch::check(&batch, &limits);
    let Ok(header) = BatchHeader::check(&batch) else { return };
    let Ok(mut records) = header.records(&batch, LIMIT) else { return };
    assert!(records.payload().len() <= LIMIT);
    while let Ok(Some(record)) = records.next_record() {
        record.headers().for_each(drop);
    }
});
