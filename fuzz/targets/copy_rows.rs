//! Lines of PostgreSQL's COPY, whatever their bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace::postgres::snapshot::CopyRows;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (columns, lines) = input;
    let mut rows = CopyRows::new(lines, columns.into());
    while !matches!(rows.next_row(), Ok(None)) {}
});
