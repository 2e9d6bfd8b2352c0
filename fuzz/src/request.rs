//! Bodies of requests, built along the shape that the broker checks them by.

use bytes::{BufMut, Bytes, BytesMut};
use millrace::kafka::Api;
use millrace::kafka::shape::{Field, Kind};

use super::Newest;

/// The topic that there is.
pub const TOPIC: &str = "topic";

/// Names that requests have in common, so that they meet.
const NAMES: &[&str] = &[
    "", TOPIC, "group", "other", "member", "instance", "consumer", "range", "uniform", "cooperative-sticky",
    "read", "write", "read.*", "0", "retention.ms", "60000", "classic", "Stable", "no such thing",
];
/// Numbers at which something changes.
const NUMBERS: &[i64] =
    &[0, 1, 2, 3, -1, -2, -3, -4, -5, 50, 100, 1000, 6000, 10_000, 300_000, 1 << 20, i32::MAX as i64, i64::MAX, i64::MIN];
/// A consumer's subscription to the topic, version 3, without owned partitions.
const SUBSCRIPTION: &[u8] =
    b"\x00\x03\x00\x00\x00\x01\x00\x05topic\xFF\xFF\xFF\xFF\x00\x00\x00\x00\xFF\xFF\xFF\xFF\xFF\xFF";
/// A batch of one record, uncompressed.
const BATCH: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\x38\xFF\xFF\xFF\xFF\x02\x3B\x8C\xEF\x5F\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0\0\0\x01\x0C\0\0\0\x01\0\0";

/// What a script has to choose from.
#[derive(Default)]
pub struct Stock {
    members: Newest,
}

impl Stock {
    /// A member that a group has admitted.
    pub fn remember_member(&mut self, member: &str) {
        self.members.push(member);
    }
}

/// The body of a request; takes what it needs off the script.
pub fn body(api: &Api, version: i16, script: &mut &[u8], stock: &Stock) -> Bytes {
    let mut writer =
        Writer { out: BytesMut::new(), script, stock, version, flexible: version >= api.flexible_from };
    if writer.choose() % 16 == 15 {
        let length = usize::from(writer.choose()).min(writer.script.len());
        let (raw, rest) = writer.script.split_at(length);
        writer.out.put_slice(raw);
        *writer.script = rest;
    } else {
        writer.fields(api.shape);
    }
    writer.out.freeze()
}

struct Writer<'a, 'b> {
    out: BytesMut,
    script: &'a mut &'b [u8],
    stock: &'a Stock,
    version: i16,
    flexible: bool,
}

impl Writer<'_, '_> {
    /// The next byte of the script; 0 when it has ended.
    fn choose(&mut self) -> u8 {
        self.script.split_off_first().copied().unwrap_or(0)
    }

    fn fields(&mut self, fields: &[Field]) {
        let present = |field: &&Field| self.version >= field.from && self.version <= field.until;
        let present: Vec<&Field> = fields.iter().filter(present).collect();
        for field in present.iter().filter(|field| field.tag.is_none()) {
            self.kind(field.kind);
        }
        if !self.flexible {
            return;
        }
        let mut tagged: Vec<_> = present.iter().filter_map(|field| Some((field.tag?, field.kind))).collect();
        tagged.sort_by_key(|(tag, _)| *tag);
        tagged.retain(|_| self.choose() % 2 == 1);
        self.varint(tagged.len() as u32);
        for (tag, kind) in tagged {
            self.varint(tag);
            let before = std::mem::take(&mut self.out);
            self.kind(kind);
            let value = std::mem::replace(&mut self.out, before);
            self.varint(value.len() as u32);
            self.out.put_slice(&value);
        }
    }

    fn kind(&mut self, kind: Kind) {
        match kind {
            Kind::Fixed(1) => {
                let choice = self.choose();
                self.out.put_u8(choice);
            }
            Kind::Fixed(16) => {
                // An id that there is comes from Metadata alone: the topic's name stands for it nowhere.
                let choice = self.choose();
                self.out.put_u128(choice.into());
            }
            Kind::Fixed(size) => {
                let choice = usize::from(self.choose());
                let number = NUMBERS.get(choice).copied().unwrap_or(choice as i64 - 128);
                self.out.put_slice(&number.to_be_bytes()[8 - size..]);
            }
            Kind::String => {
                let choice = usize::from(self.choose());
                let members = &self.stock.members.0;
                match choice {
                    255 => self.length(None, false),
                    _ => {
                        let member = choice.checked_sub(NAMES.len()).and_then(|at| members.get(at % 8));
                        let name = member.map_or(NAMES[choice % NAMES.len()], String::as_str).to_owned();
                        self.length(Some(name.len()), false);
                        self.out.put_slice(name.as_bytes());
                    }
                }
            }
            Kind::Bytes => {
                let raw;
                let bytes = match self.choose() {
                    255 => return self.length(None, true),
                    0..100 => SUBSCRIPTION,
                    100..200 => BATCH,
                    choice => {
                        let length = usize::from(choice - 200).min(self.script.len());
                        (raw, *self.script) = self.script.split_at(length);
                        raw
                    }
                };
                self.length(Some(bytes.len()), true);
                self.out.put_slice(bytes);
            }
            Kind::Array(element) => {
                let count = self.count();
                (0..count).for_each(|_| self.kind(*element));
            }
            Kind::Structs(fields) => {
                let count = self.count();
                (0..count).for_each(|_| self.fields(fields));
            }
            Kind::Struct(fields) => self.fields(fields),
            Kind::NullableStruct(fields) => match self.choose() {
                255 => self.out.put_i8(-1),
                _ => {
                    self.out.put_i8(1);
                    self.fields(fields);
                }
            },
        }
    }

    /// How many elements an array has: few, or it is null.
    fn count(&mut self) -> usize {
        match self.choose() {
            255 => {
                self.length(None, true);
                0
            }
            choice => {
                let count = [1, 0, 2, 3][usize::from(choice % 4)];
                self.length(Some(count), true);
                count
            }
        }
    }

    /// A length or count: of a string in two bytes, of anything else in four, or as a varint.
    fn length(&mut self, length: Option<usize>, wide: bool) {
        match (self.flexible, wide) {
            (true, _) => self.varint(length.map_or(0, |length| length as u32 + 1)),
            (false, true) => self.out.put_i32(length.map_or(-1, |length| length as i32)),
            (false, false) => self.out.put_i16(length.map_or(-1, |length| length as i16)),
        }
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.put_u8(value as u8);
    }
}
