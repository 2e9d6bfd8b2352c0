//! Rows a second from decoded values to each output format, on one core: the step between the parser and the log.
//!
//! It begins by making sure that a row costs no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace::change::{
    Before, Cell, CellKind, Change, Column, Event, Lsn, Operation, Phase, ReplicaIdentity, Row, TableShape,
    Timestamp, Transaction, TypeForm,
};
use millrace::format::partitioner::{PartitionBy, table_hash};
use millrace::format::{Format, FormatName, Sink};
use millrace::log::{LogError, Record};

/// Rows a transaction.
const ROWS: u64 = 1000;

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicU64::new(0));

/// The system's allocator, and how often it was asked.
struct Counting(AtomicU64);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Routes a record and forgets it.
struct Routed {
    by: PartitionBy,
    table_hash: u32,
    bytes: usize,
}

impl Sink for Routed {
    fn record(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        black_box(self.by.partition(self.table_hash, record.key, 8));
        self.bytes += black_box(record).value.map_or(0, <[u8]>::len);
        Ok(())
    }
}

/// A row as the server sends it, in text.
struct TextRow {
    data: Vec<u8>,
    cells: Vec<Cell>,
}

impl TextRow {
    fn new(values: &[String]) -> Self {
        let mut row = TextRow { data: Vec::new(), cells: Vec::new() };
        for value in values {
            let (start, len) = (row.data.len() as u32, value.len() as u32);
            row.cells.push(Cell { kind: CellKind::Text, start, len });
            row.data.extend_from_slice(value.as_bytes());
        }
        row
    }

    fn as_row(&self) -> Row<'_> {
        Row::new(&self.data, &self.cells)
    }
}

/// The ten-column table that all of the project's figures are taken with.
fn orders() -> TableShape {
    let columns = [
        ("id", 20),
        ("customer_id", 20),
        ("created_at", 1184),
        ("updated_at", 1184),
        ("status", 25),
        ("amount", 1700),
        ("quantity", 23),
        ("note", 25),
        ("attrs", 3802),
        ("paid", 16),
    ];
    let numeric_12_2 = (12 << 16 | 2) + 4;
    let column = |(name, base_oid): (&str, u32)| Column {
        name: name.to_owned(),
        type_oid: base_oid,
        base_oid,
        type_modifier: if base_oid == 1700 { numeric_12_2 } else { -1 },
        form: TypeForm::Plain,
        identity: name == "id",
    };
    TableShape {
        oid: 16_384,
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: columns.into_iter().map(column).collect(),
        key: vec![0],
    }
}

fn rows() -> Vec<TextRow> {
    let row = |number: u64| {
        TextRow::new(&[
            (1_000_000 + number).to_string(),
            (number % 50_000).to_string(),
            format!(
                "2026-03-{:02} 12:{:02}:07.{:06}+00",
                number % 28 + 1,
                number % 60,
                number * 997 % 1_000_000
            ),
            format!(
                "2026-03-{:02} 13:{:02}:07.{:06}+00",
                number % 28 + 1,
                number % 60,
                number * 991 % 1_000_000
            ),
            "shipped".to_owned(),
            format!("{}.{:02}", number * 37 % 100_000, number % 100),
            (number % 20).to_string(),
            "0123456789abcdef".repeat(6) + "abcd",
            format!("{{\"src\": \"web\", \"tags\": [\"a\", \"b\"], \"visit\": {number}}}"),
            if number.is_multiple_of(2) { "t" } else { "f" }.to_owned(),
        ])
    };
    (0..ROWS).map(row).collect()
}

fn transaction(number: u64) -> Transaction {
    Transaction {
        xid: 1000 + number as u32,
        commit_lsn: Lsn(0x16_B374_D848 + number * 4096),
        end_lsn: Lsn(0x16_B374_D878 + number * 4096),
        commit_time: Timestamp(1_767_225_600_123_456 + number as i64),
        previous_commit_lsn: Lsn(0x16_B374_C848 + number * 4096),
        phase: Phase::Stream,
    }
}

fn encode(
    format: &mut dyn Format,
    sink: &mut Routed,
    transaction: &Transaction,
    ordinal: u64,
    change: Change<'_>,
) {
    let event = Event { transaction, ordinal, lsn: Lsn(transaction.commit_lsn.0 - 4000 + ordinal), change };
    assert!(format.encode(&event, sink).is_ok());
}

/// An update of each row with its old one, in one transaction.
fn encode_updates(
    format: &mut dyn Format,
    sink: &mut Routed,
    number: u64,
    table: &TableShape,
    rows: &[TextRow],
) {
    let transaction = transaction(number);
    for (ordinal, row) in (0..).zip(rows) {
        let (before, after) = (Some(Before::Full(row.as_row())), Some(row.as_row()));
        let change = Change::Row { operation: Operation::Update, table, before, after };
        encode(format, sink, &transaction, ordinal, change);
    }
}

fn bench(criterion: &mut Criterion, name: &str, format: FormatName) {
    let (table, rows) = (orders(), rows());
    let mut format = format.make("shop", "shop");
    let format = format.as_mut();
    let table_hash = table_hash(&table.schema, &table.name);
    let mut sink = Routed { by: PartitionBy::Key, table_hash, bytes: 0 };

    // The first transaction makes the buffers as large as they need to be.
    encode_updates(format, &mut sink, 1, &table, &rows);
    let allocations = ALLOCATOR.0.load(Ordering::Relaxed);
    encode_updates(format, &mut sink, 1, &table, &rows);
    assert_eq!(ALLOCATOR.0.load(Ordering::Relaxed), allocations, "a row costs no allocation");

    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(ROWS));
    let insert =
        |row| Change::Row { operation: Operation::Insert, table: &table, before: None, after: Some(row) };
    group.bench_function("insert, 1000 rows a transaction", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            let transaction = transaction(number);
            for (ordinal, row) in (0..).zip(&rows) {
                encode(format, &mut sink, &transaction, ordinal, insert(row.as_row()));
            }
        });
    });
    group.bench_function("update, one row a transaction", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            for row in &rows {
                number += 1;
                let after = Some(row.as_row());
                let change = Change::Row { operation: Operation::Update, table: &table, before: None, after };
                encode(format, &mut sink, &transaction(number), 0, change);
            }
        });
    });
    group.bench_function("update with the full old row", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            encode_updates(format, &mut sink, number, &table, &rows);
        });
    });
    group.finish();
    black_box(sink.bytes);
}

fn benches(criterion: &mut Criterion) {
    bench(criterion, "debezium_json", FormatName::DebeziumJson);
    bench(criterion, "protobuf", FormatName::Protobuf);
}

criterion_group!(all, benches);
criterion_main!(all);
