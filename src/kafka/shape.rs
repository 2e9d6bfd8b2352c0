//! The shape of a request, and the check of its counts and lengths before the protocol crate allocates for them.
//!
//! The crate reserves memory for as many elements as a count says; twenty bytes can ask for gigabytes and abort the
//! process. Walking the body first, by the message's schema, bounds every count and length by the bytes that are there.

use super::RequestError;

/// One field of a request: its type, and the versions in which it is present.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its type.
    pub kind: Kind,
    /// First version that has it.
    pub from: i16,
    /// Last version that has it.
    pub until: i16,
}

/// The types of Kafka's message schemas, as far as their size on the wire goes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A number, boolean or uuid: this many bytes.
    Fixed(usize),
    /// A string, nullable or not.
    String,
    /// Bytes or records, nullable or not.
    Bytes,
    /// An array, nullable or not, of a plain type.
    Array(&'static Kind),
    /// An array, nullable or not, of structures.
    Structs(&'static [Field]),
}

/// Checks `body` against the fields of `version`.
///
/// # Errors
/// [`RequestError::Malformed`] when a count or length is larger than the bytes left, or bytes are missing.
pub fn check(body: &[u8], fields: &[Field], version: i16, flexible: bool) -> Result<(), RequestError> {
    let _ = (body, fields, version, flexible);
    Err(RequestError::Malformed("not yet checked".into()))
}
