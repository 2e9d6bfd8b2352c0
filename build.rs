//! Generates the messages and services of `proto/`, without a `protoc` to install.

use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/millrace/v1/change.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let directory = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(directory.join("millrace.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
