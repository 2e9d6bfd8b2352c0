//! Binary forms of values, turned into the text that the server's output functions give.
//!
//! A replication session takes values in binary form only where the server cannot send one as text, so this is about
//! being right and not about speed: [`write_text`] knows the built-in types that rows are mostly made of, and whatever
//! it does not know or cannot read is asked of the server ([`ask_text`]).

mod array;
mod float;
mod time;

use std::io::Write as _;

use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::connect::Control;
use super::sql::SqlError;

/// Whether the binary form of a type is its text form.
pub fn is_text(type_oid: u32) -> bool {
    const SAME: [Type; 5] = [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::JSON];
    SAME.iter().any(|same| same.oid() == type_oid)
}

/// Appends a value's text form; `None`, with an unfinished rest in `out`, when the server has to be asked.
pub fn write_text(out: &mut Vec<u8>, type_oid: u32, value: &[u8]) -> Option<()> {
    let of_type = Type::from_oid(type_oid)?;
    match of_type {
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON => out.extend_from_slice(value),
        // With a declaration, the two forms name the encoding differently.
        Type::XML if !value.starts_with(b"<?xml") => out.extend_from_slice(value),
        Type::JSONB => out.extend_from_slice(value.strip_prefix(&[1])?),
        Type::CHAR => match *value {
            [0] => {}
            [byte] if byte.is_ascii() => out.push(byte),
            _ => return None,
        },
        Type::BOOL => out.push(match value {
            [0] => b'f',
            [1] => b't',
            _ => return None,
        }),
        Type::INT2 => display(out, i16::from_be_bytes(value.try_into().ok()?)),
        Type::INT4 => display(out, i32::from_be_bytes(value.try_into().ok()?)),
        Type::INT8 => display(out, i64::from_be_bytes(value.try_into().ok()?)),
        Type::OID => display(out, u32::from_be_bytes(value.try_into().ok()?)),
        Type::FLOAT4 => float::single(out, f32::from_be_bytes(value.try_into().ok()?))?,
        Type::FLOAT8 => float::double(out, f64::from_be_bytes(value.try_into().ok()?))?,
        Type::NUMERIC => numeric(out, value)?,
        Type::BYTEA => {
            out.extend_from_slice(b"\\x");
            hex(out, value);
        }
        Type::UUID => {
            let uuid: &[u8; 16] = value.try_into().ok()?;
            let mut rest = &uuid[..];
            for (place, length) in [4, 2, 2, 2, 6].into_iter().enumerate() {
                if place > 0 {
                    out.push(b'-');
                }
                hex(out, rest.split_off(..length)?);
            }
        }
        Type::BIT | Type::VARBIT => bits(out, value)?,
        Type::DATE => time::date(out, value)?,
        Type::TIME => time::time(out, value)?,
        Type::TIMETZ => time::time_with_zone(out, value)?,
        Type::TIMESTAMP => time::timestamp(out, value, "")?,
        Type::TIMESTAMPTZ => time::timestamp(out, value, "+00")?,
        Type::INTERVAL => time::interval(out, value)?,
        // They are arrays that print otherwise.
        Type::INT2_VECTOR | Type::OID_VECTOR => return None,
        _ => match of_type.kind() {
            Kind::Array(_) => array::write(out, value)?,
            _ => return None,
        },
    }
    Some(())
}

fn display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 * bytes.len());
    let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)];
    out.extend(bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]));
}

/// Number of digits, weight of the first, sign and scale; then digits of base 10,000.
fn numeric(out: &mut Vec<u8>, mut value: &[u8]) -> Option<()> {
    const DIGIT: usize = 4;
    let mut next = || take(&mut value).map(u16::from_be_bytes);
    let (count, weight, sign, scale) = (next()?, next()?.cast_signed(), next()?, next()?);
    match sign {
        0xC000 => out.extend_from_slice(b"NaN"),
        0xD000 => out.extend_from_slice(b"Infinity"),
        0xF000 => out.extend_from_slice(b"-Infinity"),
        0x0000 | 0x4000 => {
            let digits = value.get(..2 * usize::from(count))?;
            let digit = |place: i32| {
                let at = usize::try_from(place).ok().and_then(|place| digits.get(2 * place..)?.first_chunk());
                at.map_or(0, |digit| u16::from_be_bytes(*digit))
            };
            if sign != 0 {
                out.push(b'-');
            }
            display(out, if weight < 0 { 0 } else { digit(0) });
            for place in 1..=i32::from(weight) {
                let _ = write!(out, "{:04}", digit(place));
            }
            if scale > 0 {
                out.push(b'.');
                let end = out.len() + usize::from(scale);
                for place in (i32::from(weight) + 1..).take(usize::from(scale).div_ceil(DIGIT)) {
                    let _ = write!(out, "{:04}", digit(place));
                }
                out.truncate(end);
            }
        }
        _ => return None,
    }
    Some(())
}

/// Number of bits, then the bits, the first in the highest place.
fn bits(out: &mut Vec<u8>, mut value: &[u8]) -> Option<()> {
    let count = usize::try_from(i32::from_be_bytes(take(&mut value)?)).ok()?;
    if value.len() != count.div_ceil(8) {
        return None;
    }
    let all = value.iter().flat_map(|byte| (0..8).rev().map(move |place| b'0' + (byte >> place & 1)));
    out.extend(all.take(count));
    Some(())
}

/// Takes so many bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// Asks the server for the text form of a value of any type that has one.
///
/// # Errors
/// What the server says of a value that it does not take back.
pub async fn ask_text(control: &Control, type_oid: u32, value: &[u8]) -> Result<Vec<u8>, SqlError> {
    let doing = || format!("turn a value of type {type_oid} from binary into text form");
    let of_type = Type::new(type_oid.to_string(), type_oid, Kind::Simple, String::new());
    // A cast to text may have a function of its own; this takes the type's output function.
    let asked = control.query_typed("SELECT pg_catalog.format('%s', $1)", &[(&Raw(value), of_type)]).await;
    let refused = match asked.and_then(|rows| rows.first().map(|row| row.try_get::<_, String>(0)).transpose())
    {
        Ok(text) => return Ok(text.unwrap_or_default().into_bytes()),
        Err(error) => error,
    };
    // A label that has another name by now is none for the server any more. Its two forms are the same.
    if refused.as_db_error().is_some() {
        let is_enum =
            control.query("SELECT FROM pg_type WHERE oid = $1 AND typtype = 'e'", &[&type_oid]).await;
        if !is_enum.map_err(|error| SqlError::new(doing(), error))?.is_empty() {
            return Ok(value.to_vec());
        }
    }
    Err(SqlError::new(doing(), refused))
}

/// A value that is in its type's binary form already.
#[derive(Debug)]
struct Raw<'a>(&'a [u8]);

impl ToSql for Raw<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(of_type: &Type, value: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        write_text(&mut out, of_type.oid(), value)?;
        Some(String::from_utf8(out).unwrap())
    }

    // Whether it is the text that the server has is told in tests/capture/oversized.rs, by the server.
    #[test]
    fn what_is_read_here_is_read() {
        for (of_type, value, expected) in [
            (Type::BOOL, &[1][..], "t"),
            (Type::INT2, &[255, 254], "-2"),
            (Type::FLOAT4, &[0x3F, 0x80, 0, 0], "1"),
            (Type::NUMERIC, &[0, 2, 0, 0, 0x40, 0, 0, 3, 0, 1, 0x13, 0x88], "-1.500"),
            (Type::JSONB, b"\x01[]", "[]"),
            (Type::BYTEA, b"\x0a\xff", "\\x0aff"),
            (Type::VARBIT, &[0, 0, 0, 3, 0b1010_0000], "101"),
            (Type::DATE, &[0, 0, 0, 59], "2000-02-29"),
            (
                Type::INT2_ARRAY,
                &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 21, 0, 0, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255],
                "[0:0]={NULL}",
            ),
        ] {
            assert_eq!(text(&of_type, value).as_deref(), Some(expected), "{of_type}");
        }
        for unknown in [Type::INET, Type::INT2_VECTOR, Type::MONEY] {
            assert_eq!(text(&unknown, &[0; 32]), None, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            of_type in 16_u32..4000, head in proptest::collection::vec(any::<u8>(), 0..20),
            rest in proptest::collection::vec(0_u8..3, 0..100),
        ) {
            let mut out = Vec::new();
            let _ = write_text(&mut out, of_type, &[&head[..], &rest].concat());
            let _ = write_text(&mut out, of_type, &rest);
        }
    }
}
