//! How the value of each PostgreSQL type is written.

use super::composite::{self, PreparedAttribute};
use super::time::Unit;
use super::{array, extensions, geometry, json, numeric, time};
use crate::change::{Column, ExtensionType, TypeForm, Value};
use crate::format::oid;
use crate::format::text::bytea;

/// What stands for a value that the server did not send, as in Debezium.
pub(super) const UNAVAILABLE: &[u8] = b"__debezium_unavailable_value";

/// How the values of a type are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rendering {
    Boolean,
    Integer,
    Float,
    Decimal {
        scale: i32,
    },
    VariableScaleDecimal,
    Money {
        decimals: u8,
    },
    Bytes,
    Date,
    Time(Unit),
    TimeWithZone,
    Timestamp(Unit),
    TimestampWithZone {
        digits: u8,
    },
    Interval,
    Bit,
    Bits,
    Point,
    Array {
        element: Box<Rendering>,
        delimiter: u8,
    },
    Composite(Vec<PreparedAttribute>),
    Extension(ExtensionType),
    /// A string: the text form of a type that has no other rendering.
    Text,
}

impl Rendering {
    /// The rendering of a column's values.
    pub(super) fn of_column(column: &Column) -> Self {
        Rendering::of(column.base_oid, column.type_modifier, &column.form)
    }

    /// The rendering of a type that is no domain.
    pub(super) fn of(base_oid: u32, modifier: i32, form: &TypeForm) -> Self {
        match form {
            TypeForm::Plain => Rendering::of_plain(base_oid, modifier),
            TypeForm::Array { element, delimiter, .. } => {
                let modifier = if element.type_modifier == -1 { modifier } else { element.type_modifier };
                let element = Rendering::of(element.oid, modifier, &element.form);
                Rendering::Array { element: Box::new(element), delimiter: *delimiter }
            }
            TypeForm::Composite(attributes) => {
                Rendering::Composite(attributes.iter().map(PreparedAttribute::new).collect())
            }
            TypeForm::Money { decimals } => Rendering::Money { decimals: *decimals },
            TypeForm::Extension(extension) => Rendering::Extension(*extension),
        }
    }

    /// The rendering of a type whose OID says it all.
    fn of_plain(base_oid: u32, modifier: i32) -> Self {
        // Fractional digits of a date or time type; all six when not declared.
        let digits = u8::try_from(modifier).map_or(6, |digits| digits.min(6));
        let unit = if digits <= 3 { Unit::Millis } else { Unit::Micros };
        match base_oid {
            oid::BOOL => Rendering::Boolean,
            oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Rendering::Integer,
            oid::FLOAT4 | oid::FLOAT8 => Rendering::Float,
            oid::NUMERIC => match modifier.checked_sub(4).filter(|packed| *packed >= 0) {
                // The scale is a signed number of 11 bits.
                Some(packed) => Rendering::Decimal { scale: ((packed & 0x7FF) ^ 0x400) - 0x400 },
                None => Rendering::VariableScaleDecimal,
            },
            oid::MONEY => Rendering::Money { decimals: 2 },
            oid::BYTEA => Rendering::Bytes,
            oid::DATE => Rendering::Date,
            oid::TIME => Rendering::Time(unit),
            oid::TIMETZ => Rendering::TimeWithZone,
            oid::TIMESTAMP => Rendering::Timestamp(unit),
            oid::TIMESTAMPTZ => Rendering::TimestampWithZone { digits },
            oid::INTERVAL => Rendering::Interval,
            oid::POINT => Rendering::Point,
            oid::BIT | oid::VARBIT if modifier == 1 => Rendering::Bit,
            oid::BIT | oid::VARBIT => Rendering::Bits,
            _ => Rendering::Text,
        }
    }

    /// What the values are, for an error.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Rendering::Boolean => "boolean",
            Rendering::Integer => "integer",
            Rendering::Float => "floating-point number",
            Rendering::Decimal { .. } | Rendering::VariableScaleDecimal => "numeric",
            Rendering::Money { .. } => "amount of money",
            Rendering::Bytes => "bytea",
            Rendering::Date => "date in ISO style",
            Rendering::Time(_) => "time in ISO style",
            Rendering::TimeWithZone => "time with time zone in ISO style",
            Rendering::Timestamp(_) => "timestamp in ISO style",
            Rendering::TimestampWithZone { .. } => "timestamp with time zone in ISO style",
            Rendering::Interval => "interval in postgres style",
            Rendering::Bit | Rendering::Bits => "bit string",
            Rendering::Point => "point",
            Rendering::Array { .. } => "array",
            Rendering::Composite(_) | Rendering::Extension(_) | Rendering::Text => "text form",
        }
    }

    /// Appends a value; `None` when it is not of its type, or has come in a form that cannot be written.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>, value: Value<'_>) -> Option<()> {
        match value {
            Value::Text(text) => self.write_text(out, text),
            Value::Null => {
                out.extend_from_slice(b"null");
                Some(())
            }
            Value::Unsent => {
                self.write_unavailable(out);
                Some(())
            }
            // Whatever else has come so has been made text of.
            Value::Binary(bytes) if *self == Rendering::Bytes => {
                base64_string(out, bytes);
                Some(())
            }
            Value::Binary(_) => None,
        }
    }

    /// Appends PostgreSQL's text form.
    #[inline]
    pub(super) fn write_text(&self, out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
        match self {
            Rendering::Text => json::string(out, text),
            Rendering::Integer => numeric::integer(out, text)?,
            Rendering::Boolean => boolean(out, text, b"t", b"f")?,
            Rendering::Float => numeric::float(out, text)?,
            Rendering::Decimal { scale } => numeric::decimal(out, text, *scale)?,
            Rendering::VariableScaleDecimal => numeric::variable_scale_decimal(out, text)?,
            Rendering::Money { decimals } => numeric::money(out, text, *decimals)?,
            Rendering::Bytes => {
                out.push(b'"');
                bytea::bytea(text, |bytes| json::base64(out, bytes))?;
                out.push(b'"');
            }
            Rendering::Date => time::date(out, text)?,
            Rendering::Time(unit) => time::time(out, text, *unit)?,
            Rendering::TimeWithZone => time::time_with_zone(out, text)?,
            Rendering::Timestamp(unit) => time::timestamp(out, text, *unit)?,
            Rendering::TimestampWithZone { digits } => {
                time::timestamp_with_zone(out, text, usize::from(*digits))?
            }
            Rendering::Interval => time::interval(out, text)?,
            Rendering::Bit => boolean(out, text, b"1", b"0")?,
            Rendering::Bits => bits(out, text)?,
            Rendering::Point => geometry::point(out, text)?,
            Rendering::Array { element, delimiter } => array::write(out, text, element, *delimiter)?,
            Rendering::Composite(attributes) => {
                or_string(out, text, |out| composite::write(out, text, attributes));
            }
            Rendering::Extension(extension) => or_string(out, text, |out| match extension {
                ExtensionType::Hstore => extensions::hstore(out, text),
                ExtensionType::Geometry => geometry::postgis(out, text),
                ExtensionType::Vector => extensions::vector(out, text),
                ExtensionType::SparseVector => extensions::sparse_vector(out, text),
            }),
        }
        Some(())
    }

    /// Appends the placeholder for a value that the server did not send.
    fn write_unavailable(&self, out: &mut Vec<u8>) {
        match self {
            Rendering::Bytes => base64_string(out, UNAVAILABLE),
            Rendering::Array { element, .. } => {
                out.push(b'[');
                element.write_unavailable(out);
                out.push(b']');
            }
            _ => json::string(out, UNAVAILABLE),
        }
    }
}

/// Appends what `write` writes or, where it finds that the type is not what the catalog made of it, the text: an altered
/// composite must not stop a task.
fn or_string(out: &mut Vec<u8>, text: &[u8], write: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
    let start = out.len();
    if write(out).is_none() {
        out.truncate(start);
        json::string(out, text);
    }
}

fn boolean(out: &mut Vec<u8>, text: &[u8], yes: &[u8], no: &[u8]) -> Option<()> {
    if text == yes {
        out.extend_from_slice(b"true");
    } else if text == no {
        out.extend_from_slice(b"false");
    } else {
        return None;
    }
    Some(())
}

fn base64_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    json::base64(out, bytes);
    out.push(b'"');
}

/// A bit string as Debezium's `Bits`: little-endian, the last bit of the text first, without zero bytes at the end.
fn bits(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let significant = text.iter().position(|&bit| bit == b'1').map_or(0, |first| text.len() - first);
    if !text.iter().all(|bit| matches!(bit, b'0' | b'1')) {
        return None;
    }
    let bits = text.get(text.len() - significant..)?;
    let byte = |eight: &[u8]| eight.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
    out.push(b'"');
    let mut buffer = [0; 192];
    for piece in bits.rchunks(8 * buffer.len()) {
        let len = piece.len().div_ceil(8);
        for (place, eight) in buffer.iter_mut().zip(piece.rchunks(8)) {
            *place = byte(eight);
        }
        json::base64(out, buffer.get(..len)?);
    }
    out.push(b'"');
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Attribute, DataType};
    use crate::format::debezium_json::tests;
    use crate::format::test_rows::form_of;
    use proptest::prelude::*;

    fn written_as(rendering: &Rendering, value: Value<'_>) -> Option<String> {
        tests::written(|out| rendering.write(out, value))
    }

    fn written(base_oid: u32, type_modifier: i32, value: Value<'_>) -> Option<String> {
        written_as(&Rendering::of(base_oid, type_modifier, &form_of(base_oid)), value)
    }

    /// A composite of an integer, a text and an array of amounts of money with two decimals.
    fn composite() -> Rendering {
        let attribute = |name: &str, oid, type_modifier| Attribute {
            name: name.to_owned(),
            type_oid: oid,
            data_type: DataType { oid, type_modifier, form: form_of(oid) },
        };
        let numeric_12_2 = (12 << 16 | 2) + 4;
        let attributes =
            [attribute("i", 23, -1), attribute("t \"", 25, -1), attribute("n", 1231, numeric_12_2)];
        Rendering::of(99, -1, &TypeForm::Composite(attributes.into()))
    }

    #[test]
    fn a_composite_is_an_object_of_what_its_attributes_are() {
        for (text, json) in [
            (r#"(1,"a""b","{1.27,NULL}")"#, r#"{"i":1,"t \"":"a\"b","n":["fw==",null]}"#),
            ("(,,)", r#"{"i":null,"t \"":null,"n":null}"#),
        ] {
            assert_eq!(
                written_as(&composite(), Value::Text(text.as_bytes())).as_deref(),
                Some(json),
                "{text}"
            );
        }
        let empty = Rendering::of(99, -1, &TypeForm::Composite([].into()));
        assert_eq!(written_as(&empty, Value::Text(b"()")).as_deref(), Some("{}"));
    }

    #[test]
    fn a_composite_that_was_altered_meanwhile_is_its_text() {
        for text in ["(1,a)", "(1,a,{1.27},more)", "(x,a,{1.27})"] {
            let json = format!("\"{text}\"");
            assert_eq!(written_as(&composite(), Value::Text(text.as_bytes())), Some(json), "{text}");
        }
    }

    #[test]
    fn every_modelled_type_is_written_as_debezium_does() {
        let numeric_12_2 = 12 << 16 | (2 + 4);
        let numeric_5_minus_2 = (5 << 16 | (-2 & 0x7FF)) + 4;
        for (oid, modifier, text, json) in [
            (oid::BOOL, -1, "t", "true"),
            (oid::BOOL, -1, "f", "false"),
            (oid::INT2, -1, "-32768", "-32768"),
            (oid::INT8, -1, "9223372036854775807", "9223372036854775807"),
            (oid::OID, -1, "4294967295", "4294967295"),
            (oid::FLOAT4, -1, "3.3", "3.3"),
            (oid::NUMERIC, numeric_12_2, "123.45", "\"MDk=\""),
            (oid::NUMERIC, numeric_5_minus_2, "12300", "\"ew==\""),
            (oid::NUMERIC, -1, "1.10", "{\"scale\":1,\"value\":\"Cw==\"}"),
            (oid::MONEY, -1, "$1.00", "\"ZA==\""),
            (25, -1, "a\"b", "\"a\\\"b\""),
            (1042, 8, "ab  ", "\"ab  \""),
            (oid::BYTEA, -1, "\\x666f6f62", "\"Zm9vYg==\""),
            (oid::BYTEA, -1, "fo\\157\\\\", "\"Zm9vXA==\""),
            (oid::DATE, -1, "1970-01-02", "1"),
            (oid::TIME, -1, "00:00:01", "1000000"),
            (oid::TIME, 3, "00:00:01", "1000"),
            (oid::TIMETZ, -1, "01:00:00+01", "\"00:00:00Z\""),
            (oid::TIMESTAMP, -1, "1970-01-01 00:00:01", "1000000"),
            (oid::TIMESTAMP, 0, "1970-01-01 00:00:01", "1000"),
            (oid::TIMESTAMPTZ, -1, "1970-01-01 00:00:01+00", "\"1970-01-01T00:00:01.000000Z\""),
            (oid::TIMESTAMPTZ, 3, "1970-01-01 00:00:01+00", "\"1970-01-01T00:00:01.000Z\""),
            (oid::INTERVAL, -1, "00:00:01", "1000000"),
            (oid::BIT, 1, "1", "true"),
            (oid::BIT, 4, "0011", "\"Aw==\""),
            (oid::VARBIT, -1, "1000000000", "\"AAI=\""),
            (oid::VARBIT, -1, "0000", "\"\""),
            (3802, -1, "{\"a\": 1}", "\"{\\\"a\\\": 1}\""),
            (2950, -1, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
            (1007, -1, "{1,NULL,2}", "[1,null,2]"),
            (1231, numeric_12_2, "{1.27}", "[\"fw==\"]"),
            (1020, -1, "{(3,4),(1,2);(7,8),(5,6)}", "[\"(3,4),(1,2)\",\"(7,8),(5,6)\"]"),
            (600, -1, "(1,2)", r#"{"x":1.0,"y":2.0,"wkb":"AQEAAAAAAAAAAADwPwAAAAAAAABA","srid":null}"#),
            (601, -1, "[(1,2),(3,4)]", "\"[(1,2),(3,4)]\""),
        ] {
            assert_eq!(
                written(oid, modifier, Value::Text(text.as_bytes())).as_deref(),
                Some(json),
                "{oid} {text}"
            );
        }
    }

    #[test]
    fn null_and_unsent_are_different_things() {
        assert_eq!(written(25, -1, Value::Null).as_deref(), Some("null"));
        assert_eq!(written(25, -1, Value::Unsent).as_deref(), Some("\"__debezium_unavailable_value\""));
        assert_eq!(
            written(oid::BYTEA, -1, Value::Unsent).as_deref(),
            Some("\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"")
        );
        assert_eq!(written(1009, -1, Value::Unsent).as_deref(), Some("[\"__debezium_unavailable_value\"]"));
    }

    #[test]
    fn binary_values_of_bytea_alone_are_written() {
        assert_eq!(written(oid::BYTEA, -1, Value::Binary(b"foob")).as_deref(), Some("\"Zm9vYg==\""));
        for other in [25, oid::NUMERIC] {
            assert_eq!(written(other, -1, Value::Binary(b"foob")), None);
        }
    }

    proptest! {
        #[test]
        fn bytea_gives_the_same_base64_from_all_its_forms(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
            let expected = written(oid::BYTEA, -1, Value::Binary(&bytes));
            prop_assert_eq!(&written(oid::BYTEA, -1, Value::Text(format!("\\x{hex}").as_bytes())), &expected);
            prop_assert_eq!(&written(oid::BYTEA, -1, Value::Text(octal.as_bytes())), &expected);
        }

        #[test]
        fn no_value_makes_a_rendering_panic_or_leaves_invalid_json(
            text in any::<Vec<u8>>(),
            oid in proptest::sample::select(vec![
                16, 17, 20, 25, 701, 790, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1700, 99, 1009, 1231,
            ]),
            modifier in -1..70_000,
        ) {
            if let Some(json) = written(oid, modifier, Value::Text(&text)) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
            }
        }
    }
}
