//! Generates the messages and services of `proto/`, without a `protoc` to install.

use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/millrace/v1/change.proto", "proto/millrace/v1/subscribe.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let directory = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(directory.join("millrace.descriptors"), descriptors.encode_to_vec())?;
    // Records are slices of the batch that they come from.
    let slices = [".millrace.v1.Record", ".millrace.v1.Header"];
    slices
        .iter()
        .fold(tonic_prost_build::configure(), |to, path| to.bytes(*path))
        .compile_fds(descriptors)?;
    Ok(())
}
