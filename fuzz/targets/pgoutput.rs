//! Messages of PostgreSQL's logical replication, whatever their bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace::postgres::pgoutput::{Cells, parse};

fuzz_target!(|input: (bool, &[u8])| {
    let (in_stream, body) = input;
    let _ = parse(body, in_stream, &mut Cells::default());
});
