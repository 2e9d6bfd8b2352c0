//! What `proto/millrace/v1` defines, generated when the crate is built.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("millrace.v1");
}

pub use generated::*;

/// All of it in its binary form (`google.protobuf.FileDescriptorSet`), as reflection serves it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/millrace.descriptors"));

/// Media type of a record's value in format `protobuf`.
pub const CHANGE_MEDIA_TYPE: &str = "application/x-protobuf; messageType=millrace.v1.Change";
