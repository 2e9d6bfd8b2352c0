//! The librdkafka consumer of `millrace bench fetch`, which starts it. It has an allocator of its own, which replaces the
//! `malloc` of librdkafka as well; `millrace::bench` says why.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Reads the topic of a measurement from its start, and prints its bytes and the seconds as JSON
#[derive(Debug, Parser)]
struct Arguments {
    /// The broker's port
    port: u16,
    /// How many records to read
    records: u64,
}

fn main() -> ExitCode {
    let Arguments { port, records } = Arguments::parse();
    let read = match millrace::bench::consume(port, records) {
        Ok(read) => read,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", serde_json::json!(read));
    ExitCode::SUCCESS
}
