//! The shape of a request, and the check of its counts and lengths before the protocol crate allocates for them.
//!
//! The crate reserves memory for as many elements as a count says; twenty bytes can ask for gigabytes and abort the
//! process. Walking the body first, by the message's schema, bounds every count and length by the bytes that are there.
//! The walk allocates nothing, and its depth is the schema's. Where it and the crate could read the same bytes
//! differently (over-long varints, a known tagged field whose size lies) it refuses them.

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
    /// Its tag, for a tagged field that the protocol crate knows.
    pub tag: Option<u32>,
}

impl Field {
    /// A field that is there from version `from` on.
    pub const fn new(kind: Kind, from: i16) -> Field {
        Field { kind, from, until: i16::MAX, tag: None }
    }

    /// The same, with `version` as the last that has it.
    pub const fn until(self, version: i16) -> Field {
        Field { until: version, ..self }
    }

    /// The same, as a tagged field. Only those that the protocol crate knows need to be listed.
    pub const fn tagged(self, tag: u32) -> Field {
        Field { tag: Some(tag), ..self }
    }

    const fn present(&self, version: i16) -> bool {
        version >= self.from && version <= self.until
    }
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
    /// One structure.
    Struct(&'static [Field]),
    /// One structure, or none.
    NullableStruct(&'static [Field]),
}

/// A boolean.
pub const BOOL: Kind = Kind::Fixed(1);
/// An 8-bit number.
pub const I8: Kind = Kind::Fixed(1);
/// A 16-bit number.
pub const I16: Kind = Kind::Fixed(2);
/// A 32-bit number.
pub const I32: Kind = Kind::Fixed(4);
/// A 64-bit number.
pub const I64: Kind = Kind::Fixed(8);
/// A uuid.
pub const UUID: Kind = Kind::Fixed(16);
/// A string, nullable or not.
pub const STRING: Kind = Kind::String;
/// Bytes or records, nullable or not.
pub const BYTES: Kind = Kind::Bytes;

/// Array elements and tagged fields in one request. Decoded ones are larger than their bytes, by up to a hundred times.
const MAX_ELEMENTS: usize = 100_000;

/// Checks `body` against the fields of `version`. Bytes left over are no error: librdkafka 2.12 leaves three in a Metadata
/// request for all topics, and Kafka reads over them.
///
/// # Errors
/// [`RequestError::Malformed`] when a count or length is larger than the bytes left, or bytes are missing.
pub fn check(body: &[u8], fields: &[Field], version: i16, flexible: bool) -> Result<(), RequestError> {
    skip(body, fields, version, flexible).map(drop)
}

/// What of `bytes` comes after the fields of `version`.
///
/// # Errors
/// As [`check`].
pub fn skip<'a>(
    bytes: &'a [u8],
    fields: &[Field],
    version: i16,
    flexible: bool,
) -> Result<&'a [u8], RequestError> {
    let mut walk = Walk { rest: bytes, version, flexible, elements: 0 };
    walk.fields(fields)?;
    Ok(walk.rest)
}

fn malformed(what: impl Into<String>) -> RequestError {
    RequestError::Malformed(what.into())
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl<'a> Walk<'a> {
    fn fields(&mut self, fields: &[Field]) -> Result<(), RequestError> {
        for field in fields {
            if field.tag.is_none() && field.present(self.version) {
                self.value(&field.kind)?;
            }
        }
        if self.flexible { self.tagged(fields) } else { Ok(()) }
    }

    fn value(&mut self, kind: &Kind) -> Result<(), RequestError> {
        match kind {
            Kind::Fixed(size) => self.take(*size).map(drop),
            Kind::String if self.flexible => self.compact(),
            Kind::String => {
                let length = i16::from_be_bytes(self.array()?);
                self.nullable(length.into())
            }
            Kind::Bytes if self.flexible => self.compact(),
            Kind::Bytes => {
                let length = i32::from_be_bytes(self.array()?);
                self.nullable(length)
            }
            Kind::Array(element) => self.each(|walk| walk.value(element)),
            Kind::Structs(fields) => self.each(|walk| walk.fields(fields)),
            Kind::Struct(fields) => self.fields(fields),
            Kind::NullableStruct(fields) => match self.array::<1>()? {
                [1] => self.fields(fields),
                _ => Ok(()),
            },
        }
    }

    /// An array's elements; the count is bounded by the bytes left, as every element has at least one.
    fn each(&mut self, element: impl Fn(&mut Self) -> Result<(), RequestError>) -> Result<(), RequestError> {
        let count = if self.flexible {
            // 0 is null, which reads as no elements.
            self.varint()?.saturating_sub(1) as usize
        } else {
            match i32::from_be_bytes(self.array()?) {
                -1 => 0,
                count => usize::try_from(count).map_err(|_| malformed(format!("negative count {count}")))?,
            }
        };
        self.count(count)?;
        for _ in 0..count {
            element(self)?;
        }
        Ok(())
    }

    fn tagged(&mut self, fields: &[Field]) -> Result<(), RequestError> {
        let count = self.varint()? as usize;
        self.count(count)?;
        for _ in 0..count {
            let tag = self.varint()?;
            let size = self.varint()? as usize;
            let content = self.take(size)?;
            let known = fields.iter().find(|field| field.tag == Some(tag) && field.present(self.version));
            let Some(field) = known else { continue };
            let mut inner = Walk { rest: content, ..*self };
            inner.value(&field.kind)?;
            if !inner.rest.is_empty() {
                return Err(malformed(format!("tagged field {tag} is shorter than its size")));
            }
            self.elements = inner.elements;
        }
        Ok(())
    }

    fn count(&mut self, count: usize) -> Result<(), RequestError> {
        if count > self.rest.len() {
            return Err(malformed(format!("a count of {count} with {} bytes left", self.rest.len())));
        }
        self.elements += count;
        if self.elements > MAX_ELEMENTS {
            return Err(malformed(format!("more than {MAX_ELEMENTS} elements in one request")));
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), RequestError> {
        match self.varint()? {
            0 => Ok(()),
            length => self.take(length as usize - 1).map(drop),
        }
    }

    fn nullable(&mut self, length: i32) -> Result<(), RequestError> {
        if length == -1 {
            return Ok(());
        }
        let length = usize::try_from(length).map_err(|_| malformed(format!("negative length {length}")))?;
        self.take(length).map(drop)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], RequestError> {
        let Some((taken, rest)) = self.rest.split_at_checked(size) else {
            return Err(malformed(format!("{size} bytes wanted, {} left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RequestError> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(malformed(format!("{N} bytes wanted, {} left", self.rest.len())));
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// An unsigned varint of at most 32 bits.
    fn varint(&mut self) -> Result<u32, RequestError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            if shift == 28 && byte > 0x0F {
                break;
            }
            value |= u32::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed("a varint of more than 32 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static INNER: &[Field] = &[Field::new(STRING, 0), Field::new(Kind::Array(&I32), 1).until(2)];
    static OUTER: &[Field] = &[
        Field::new(I16, 0),
        Field::new(Kind::Structs(INNER), 0),
        Field::new(BYTES, 2),
        Field::new(STRING, 2).tagged(0),
        Field::new(Kind::NullableStruct(INNER), 3),
    ];

    #[test]
    fn a_metadata_request_with_a_giant_count_is_refused() {
        const TOPIC: &[Field] = &[Field::new(STRING, 0)];
        let metadata = &[Field::new(Kind::Structs(TOPIC), 0)];
        assert!(check(&i32::MAX.to_be_bytes(), metadata, 1, false).is_err());
        assert!(check(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0], metadata, 9, true).is_err());
    }

    #[test]
    fn null_and_empty_arrays_and_strings_pass() {
        assert!(check(&[0, 7, 0xFF, 0xFF, 0xFF, 0xFF], OUTER, 0, false).is_ok());
        assert!(check(&[0, 7, 0, 0, 0, 1, 0xFF, 0xFF], OUTER, 0, false).is_ok());
        assert!(check(&[0, 7, 0, 0, 0], OUTER, 2, true).is_ok());
    }

    #[test]
    fn negative_lengths_other_than_null_are_refused() {
        assert!(check(&[0, 7, 0xFF, 0xFF, 0xFF, 0xFE], OUTER, 0, false).is_err());
        assert!(check(&[0, 7, 0, 0, 0, 1, 0xFF, 0xFE], OUTER, 0, false).is_err());
    }

    #[test]
    fn bytes_left_over_are_left_alone() {
        assert_eq!(skip(&[0, 7, 0, 0, 0, 0, 9, 9], OUTER, 0, false).unwrap(), [9, 9]);
    }

    #[test]
    fn an_unknown_tagged_field_is_skipped_and_a_known_one_must_fill_its_size() {
        let body = |tagged: &[u8]| [&[0, 7, 0, 0], tagged].concat();
        assert!(check(&body(&[1, 9, 2, 0xAA, 0xBB]), OUTER, 2, true).is_ok());
        assert!(check(&body(&[1, 9, 3, 0xAA, 0xBB]), OUTER, 2, true).is_err());
        assert!(check(&body(&[1, 0, 3, 3, b'a', b'b']), OUTER, 2, true).is_ok());
        assert!(check(&body(&[1, 0, 3, 2, b'a', b'b']), OUTER, 2, true).is_err());
        assert!(check(&body(&[1, 0, 2, 3, b'a', b'b']), OUTER, 2, true).is_err());
    }

    #[test]
    fn a_varint_of_more_than_32_bits_is_refused() {
        let strings = &[Field::new(STRING, 0)];
        assert!(check(&[0x81, 0x80, 0x80, 0x80, 0x00, 0], strings, 0, true).is_ok());
        assert!(check(&[0x81, 0x80, 0x80, 0x80, 0x10, 0], strings, 0, true).is_err());
        assert!(check(&[0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 0], strings, 0, true).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body: Vec<u8>, version in 0i16..5, flexible: bool) {
            let _ = check(&body, OUTER, version, flexible);
        }
    }
}
