//! `millrace.v1.Value`: the value of each PostgreSQL type.

use std::io::Write as _;

use prost::Message;

use super::wire;
use crate::change::{Attribute, TypeForm, Value};
use crate::format::oid;
use crate::format::text::array::{self, MAX_DIMENSIONS, Piece};
use crate::format::text::bytea;
use crate::format::text::money;
use crate::format::text::record;
use crate::format::text::time::{self, DAY, Extended, Moment};
use crate::proto;

/// Fields of `millrace.v1.Value`.
mod field {
    pub(super) const NULL: u32 = 1;
    pub(super) const UNSENT: u32 = 2;
    pub(super) const BOOL: u32 = 3;
    pub(super) const INT: u32 = 4;
    pub(super) const FLOAT: u32 = 5;
    pub(super) const DOUBLE: u32 = 6;
    pub(super) const NUMERIC: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const BYTES: u32 = 9;
    pub(super) const UUID: u32 = 10;
    pub(super) const JSON: u32 = 11;
    pub(super) const DATE: u32 = 12;
    pub(super) const TIME: u32 = 13;
    pub(super) const TIMESTAMP: u32 = 14;
    pub(super) const TIMESTAMPTZ: u32 = 15;
    pub(super) const INTERVAL: u32 = 16;
    pub(super) const ARRAY: u32 = 17;
    pub(super) const INFINITY: u32 = 18;
    pub(super) const RAW_TEXT: u32 = 19;
    pub(super) const COMPOSITE: u32 = 20;
}

/// How the values of a type are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Float,
    Double,
    Numeric,
    Money {
        decimals: u8,
    },
    /// A string: the text form of a type that has no kind of its own.
    Text,
    Bytes,
    Uuid,
    Json,
    Date,
    Time,
    Timestamp,
    TimestampWithZone,
    Interval,
    Array {
        element_oid: u32,
        element: Box<Kind>,
        delimiter: u8,
    },
    Composite(Vec<PreparedAttribute>),
}

/// An attribute of a composite type, prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PreparedAttribute {
    /// The fields of a `millrace.v1.Column` before its value.
    label: Vec<u8>,
    kind: Kind,
}

impl PreparedAttribute {
    fn new(attribute: &Attribute) -> Self {
        let column = proto::Column { name: attribute.name.clone(), ..proto::Column::default() };
        let data_type = &attribute.data_type;
        PreparedAttribute { label: column.encode_to_vec(), kind: Kind::of(data_type.oid, &data_type.form) }
    }
}

impl Kind {
    /// The kind of a type, which is no domain.
    pub(super) fn of(base_oid: u32, form: &TypeForm) -> Self {
        match form {
            TypeForm::Plain => Kind::of_plain(base_oid),
            TypeForm::Array { element_oid, element, delimiter } => Kind::Array {
                element_oid: *element_oid,
                element: Box::new(Kind::of(element.oid, &element.form)),
                delimiter: *delimiter,
            },
            TypeForm::Composite(attributes) => {
                Kind::Composite(attributes.iter().map(PreparedAttribute::new).collect())
            }
            TypeForm::Money { decimals } => Kind::Money { decimals: *decimals },
            TypeForm::Extension(_) => Kind::Text,
        }
    }

    /// The kind of a type whose OID says it all.
    fn of_plain(base_oid: u32) -> Self {
        match base_oid {
            oid::BOOL => Kind::Bool,
            oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Kind::Int,
            oid::FLOAT4 => Kind::Float,
            oid::FLOAT8 => Kind::Double,
            oid::NUMERIC => Kind::Numeric,
            oid::MONEY => Kind::Money { decimals: 2 },
            oid::BYTEA => Kind::Bytes,
            oid::UUID => Kind::Uuid,
            oid::JSON | oid::JSONB => Kind::Json,
            oid::DATE => Kind::Date,
            oid::TIME => Kind::Time,
            oid::TIMESTAMP => Kind::Timestamp,
            oid::TIMESTAMPTZ => Kind::TimestampWithZone,
            oid::INTERVAL => Kind::Interval,
            _ => Kind::Text,
        }
    }

    /// What the values are, for an error.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Kind::Bool => "boolean",
            Kind::Int => "integer",
            Kind::Float | Kind::Double => "floating-point number",
            Kind::Numeric => "numeric",
            Kind::Money { .. } => "amount of money",
            Kind::Text | Kind::Composite(_) => "text form",
            Kind::Bytes => "bytea",
            Kind::Uuid => "uuid",
            Kind::Json => "json text",
            Kind::Date => "date in ISO style",
            Kind::Time => "time in ISO style",
            Kind::Timestamp => "timestamp in ISO style",
            Kind::TimestampWithZone => "timestamp with time zone in ISO style",
            Kind::Interval => "interval in postgres style",
            Kind::Array { .. } => "array",
        }
    }

    /// About how long the `Value` of this text gets; exact for those that can be long.
    #[inline]
    pub(super) fn expected_len(&self, value: Value<'_>) -> usize {
        match value {
            Value::Null | Value::Unsent => 2,
            Value::Text(text) if *self == Kind::Bytes => wire::bytes_len(text.len().saturating_sub(2) / 2),
            Value::Text(text) | Value::Binary(text) => wire::bytes_len(text.len()),
        }
    }

    /// Appends a field that is a `millrace.v1.Column`, which begins with `label`; `None` as with [`Kind::write`].
    #[inline]
    pub(super) fn write_column(
        &self,
        out: &mut Vec<u8>,
        field: u32,
        label: &[u8],
        value: Value<'_>,
    ) -> Option<()> {
        const VALUE: u32 = 5;
        let expected_len = self.expected_len(value);
        wire::nested(out, field, label.len() + wire::bytes_len(expected_len), |out| {
            out.extend_from_slice(label);
            wire::nested(out, VALUE, expected_len, |out| self.write(out, value))
        })
    }

    /// Appends the fields of the `Value`; `None` when it is not of its type, or has come in a form that cannot be
    /// written.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>, value: Value<'_>) -> Option<()> {
        match value {
            Value::Text(text) => self.write_text(out, text),
            Value::Null => {
                wire::bytes(out, field::NULL, b"");
                Some(())
            }
            Value::Unsent => {
                wire::bytes(out, field::UNSENT, b"");
                Some(())
            }
            // Whatever else has come so has been made text of.
            Value::Binary(bytes) if matches!(self, Kind::Bytes) => {
                wire::bytes(out, field::BYTES, bytes);
                Some(())
            }
            Value::Binary(_) => None,
        }
    }

    /// From PostgreSQL's text form.
    fn write_text(&self, out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
        match self {
            Kind::Text => string(out, field::TEXT, text),
            Kind::Json => string(out, field::JSON, text),
            Kind::Int => wire::signed(out, field::INT, integer(text)?),
            Kind::Bool => wire::unsigned(out, field::BOOL, boolean(text)?),
            Kind::Float => wire::fixed32(out, field::FLOAT, parse::<f32>(text)?.to_le_bytes()),
            Kind::Double => wire::fixed64(out, field::DOUBLE, parse::<f64>(text)?.to_le_bytes()),
            Kind::Numeric if is_numeric(text) => wire::bytes(out, field::NUMERIC, text),
            Kind::Numeric => return None,
            Kind::Money { decimals } => write_money(out, money::units(text)?, *decimals),
            Kind::Bytes => wire::nested(out, field::BYTES, text.len().saturating_sub(2) / 2, |out| {
                bytea::bytea(text, |bytes| out.extend_from_slice(bytes))
            })?,
            Kind::Uuid => wire::bytes(out, field::UUID, &bytea::uuid(text)?),
            Kind::Date => match time::date(text)? {
                Extended::Finite(days) => wire::signed(out, field::DATE, i32::try_from(days).ok()?.into()),
                infinite => infinity(out, infinite),
            },
            Kind::Time => wire::unsigned(out, field::TIME, time::time(text)? as u64),
            Kind::Timestamp => timestamp(out, field::TIMESTAMP, time::timestamp(text)?, text),
            Kind::TimestampWithZone => {
                timestamp(out, field::TIMESTAMPTZ, time::timestamp_with_zone(text)?, text);
            }
            Kind::Interval => match time::interval(text)? {
                Extended::Finite(interval) => write_interval(out, interval)?,
                infinite => infinity(out, infinite),
            },
            Kind::Array { element_oid, element, delimiter } => {
                let write = |out: &mut Vec<u8>| write_array(out, text, *element_oid, element, *delimiter);
                wire::nested(out, field::ARRAY, text.len(), write)?;
            }
            Kind::Composite(attributes) => {
                let start = out.len();
                let write = |out: &mut Vec<u8>| write_composite(out, text, attributes);
                // The type may have been altered since the catalog was asked: that must not stop a task.
                if wire::nested(out, field::COMPOSITE, text.len(), write).is_none() {
                    out.truncate(start);
                    string(out, field::TEXT, text);
                }
            }
        }
        Some(())
    }
}

/// A string, which protobuf wants in UTF-8; or as it is, where that has its own field.
#[inline]
fn string(out: &mut Vec<u8>, field: u32, text: &[u8]) {
    let field = if std::str::from_utf8(text).is_ok() { field } else { field::RAW_TEXT };
    wire::bytes(out, field, text);
}

fn boolean(text: &[u8]) -> Option<u64> {
    match text {
        b"t" => Some(1),
        b"f" => Some(0),
        _ => None,
    }
}

#[inline]
fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    // As many as fit into 64 bits without a sign, whatever they are.
    if !(1..=19).contains(&digits.len()) {
        return None;
    }
    let mut magnitude = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if digits.len() < text.len() {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn is_numeric(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let mut parts = unsigned.split(|&byte| byte == b'.');
    let is_digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let is_decimal =
        parts.next().is_some_and(is_digits) && parts.next().is_none_or(is_digits) && parts.next().is_none();
    is_decimal || unsigned == b"Infinity" || text == b"NaN"
}

/// As a `numeric` of so many decimals, which a cast makes `money` of under every locale.
fn write_money(out: &mut Vec<u8>, units: i64, decimals: u8) {
    let decimals = usize::from(decimals);
    let whole = 10_u64.saturating_pow(decimals as u32);
    let (sign, units) = (if units < 0 { "-" } else { "" }, units.unsigned_abs());
    let mut buffer = [0; 48];
    let mut rest = &mut buffer[..];
    // Both fit.
    let _ = write!(rest, "{sign}{}", units / whole);
    if decimals > 0 {
        let _ = write!(rest, ".{:0decimals$}", units % whole);
    }
    let rest = rest.len();
    wire::bytes(out, field::NUMERIC, buffer.get(..buffer.len() - rest).unwrap_or_default());
}

fn infinity<T>(out: &mut Vec<u8>, value: Extended<T>) {
    let sign = if matches!(value, Extended::Infinity) { 1 } else { 2 };
    wire::unsigned(out, field::INFINITY, sign);
}

/// Microseconds since 1970, or `text` where they do not fit.
#[inline]
fn timestamp(out: &mut Vec<u8>, field: u32, moment: Extended<Moment>, text: &[u8]) {
    let Extended::Finite(Moment { days, micros }) = moment else { return infinity(out, moment) };
    match days.checked_mul(DAY).and_then(|of_days| of_days.checked_add(micros)) {
        Some(since) => wire::fixed64(out, field, since.to_le_bytes()),
        None => wire::bytes(out, field::TEXT, text),
    }
}

fn write_interval(out: &mut Vec<u8>, interval: time::Interval) -> Option<()> {
    let parts = [
        i32::try_from(interval.months).ok()?.into(),
        i32::try_from(interval.days).ok()?.into(),
        interval.micros,
    ];
    wire::nested(out, field::INTERVAL, 0, |out| {
        for (field, part) in (1..).zip(parts).filter(|(_, part)| *part != 0) {
            wire::signed(out, field, part);
        }
    });
    Some(())
}

/// The fields of an `Array`.
fn write_array(
    out: &mut Vec<u8>,
    text: &[u8],
    element_oid: u32,
    element: &Kind,
    delimiter: u8,
) -> Option<()> {
    let mut shape = ArrayShape::default();
    array::walk(text, delimiter, &mut |piece| {
        shape.visit(piece)?;
        let value = match piece {
            Piece::Element(text) => Value::Text(text),
            Piece::Null => Value::Null,
            Piece::Open | Piece::Next | Piece::Close => return Some(()),
        };
        wire::nested(out, 1, element.expected_len(value), |out| element.write(out, value))
    })?;
    wire::unsigned(out, 2, element_oid.into());
    if shape.innermost > 0 {
        wire::nested(out, 3, shape.innermost, |out| {
            shape.lengths().for_each(|length| wire::varint(out, length));
        });
    }
    let mut bounds = array::lower_bounds(text)?.peekable();
    if bounds.peek().is_some() {
        let mut count = 0;
        wire::nested(out, 4, shape.innermost, |out| {
            for bound in bounds {
                wire::varint(out, wire::zigzag(bound?.into()));
                count += 1;
            }
            (count == shape.innermost).then_some(())
        })?;
    }
    Some(())
}

/// The fields of a composite's `Row`. `None` when the text is not a composite of these attributes.
fn write_composite(out: &mut Vec<u8>, text: &[u8], attributes: &[PreparedAttribute]) -> Option<()> {
    if attributes.is_empty() {
        return (text == b"()").then_some(());
    }
    let mut expected = attributes.iter();
    record::walk(text, |text| {
        let attribute = expected.next()?;
        let value = text.map_or(Value::Null, Value::Text);
        attribute.kind.write_column(out, 1, &attribute.label, value)
    })?;
    expected.next().is_none().then_some(())
}

/// What an array's pieces tell of its dimensions.
#[derive(Debug, Default)]
struct ArrayShape {
    /// Open dimensions.
    depth: usize,
    /// The dimension that elements are in.
    innermost: usize,
    /// What the open dimensions have so far, or had before they were closed.
    counts: [u64; MAX_DIMENSIONS],
    /// What each has when it is closed; the same wherever the outer ones are.
    lengths: [Option<u64>; MAX_DIMENSIONS],
}

impl ArrayShape {
    /// `None` when this is no array, or none that has the same number of elements everywhere.
    fn visit(&mut self, piece: Piece<'_>) -> Option<()> {
        match piece {
            Piece::Open => {
                self.count();
                *self.counts.get_mut(self.depth)? = 0;
                self.depth += 1;
            }
            Piece::Element(_) | Piece::Null => {
                if self.innermost == 0 {
                    self.innermost = self.depth;
                }
                if self.innermost != self.depth {
                    return None;
                }
                self.count();
            }
            Piece::Close => {
                self.depth = self.depth.checked_sub(1)?;
                let count = *self.counts.get(self.depth)?;
                let length = self.lengths.get_mut(self.depth)?.get_or_insert(count);
                if *length != count {
                    return None;
                }
            }
            Piece::Next => {}
        }
        Some(())
    }

    /// Counts an element of the dimension that was opened last.
    fn count(&mut self) {
        if let Some(count) = self.depth.checked_sub(1).and_then(|last| self.counts.get_mut(last)) {
            *count += 1;
        }
    }

    /// The length of each dimension; none when the array is empty.
    fn lengths(&self) -> impl Iterator<Item = u64> {
        self.lengths.iter().take(self.innermost).map(|length| length.unwrap_or_default())
    }
}
