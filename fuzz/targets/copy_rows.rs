//! What PostgreSQL's COPY sends, in text and in binary form, whatever its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace::change::CellKind;
use millrace::postgres::snapshot::{BinaryRows, CopyRows};

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (columns, bytes) = input;
    let mut rows = BinaryRows::new(&bytes, vec![CellKind::Binary; columns.into()]);
    while !matches!(rows.next_row(), Ok(None)) {}
    // No bytes drawn by chance begin with the header.
    let with_header = [&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..], &bytes].concat();
    let mut rows = BinaryRows::new(with_header, vec![CellKind::Binary; columns.into()]);
    while !matches!(rows.next_row(), Ok(None)) {}
    let mut rows = CopyRows::new(bytes, columns.into());
    while !matches!(rows.next_row(), Ok(None)) {}
});
