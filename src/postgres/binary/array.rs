//! Arrays.

use super::{display, take, write_text};

/// Most dimensions that PostgreSQL's arrays have.
const MAX_DIMENSIONS: usize = 6;

/// Number of dimensions, flags and element type; length and lower bound of each dimension; then the elements, each behind
/// its length, which is negative for a null.
pub(super) fn write(out: &mut Vec<u8>, mut value: &[u8]) -> Option<()> {
    let mut next = || take(&mut value).map(i32::from_be_bytes);
    let (dimensions, _flags, element_oid) = (next()?, next()?, next()?.cast_unsigned());
    let dimensions = usize::try_from(dimensions).ok().filter(|count| *count <= MAX_DIMENSIONS)?;
    let mut lengths = Vec::with_capacity(dimensions);
    let mut bounds = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        lengths.push(usize::try_from(next()?).ok()?);
        bounds.push(next()?);
    }
    let count = lengths.iter().try_fold(1usize, |count, length| count.checked_mul(*length))?;
    if dimensions == 0 || count == 0 {
        out.extend_from_slice(b"{}");
        return Some(());
    }
    if bounds.iter().any(|bound| *bound != 1) {
        for (bound, length) in bounds.iter().zip(&lengths) {
            let upper = i64::from(*bound) + *length as i64 - 1;
            out.push(b'[');
            display(out, bound);
            out.push(b':');
            display(out, upper);
            out.push(b']');
        }
        out.push(b'=');
    }
    // How many elements a brace of each dimension holds.
    let mut held = 1;
    let mut braces: Vec<usize> = lengths
        .iter()
        .rev()
        .map(|length| {
            held *= length;
            held
        })
        .collect();
    braces.reverse();
    let mut element = Vec::new();
    for place in 0..count {
        if place > 0 {
            out.push(b',');
        }
        let opened = braces.iter().filter(|held| place % **held == 0).count();
        out.extend(std::iter::repeat_n(b'{', opened));
        match usize::try_from(i32::from_be_bytes(take(&mut value)?)) {
            Err(_) => out.extend_from_slice(b"NULL"),
            Ok(length) => {
                element.clear();
                write_text(&mut element, element_oid, value.split_off(..length)?)?;
                quote(out, &element);
            }
        }
        let closed = braces.iter().filter(|held| (place + 1) % **held == 0).count();
        out.extend(std::iter::repeat_n(b'}', closed));
    }
    value.is_empty().then_some(())
}

/// Appends an element, in quotes where it would otherwise read as something else.
fn quote(out: &mut Vec<u8>, element: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t'..=b'\r');
    if !element.is_empty() && !element.eq_ignore_ascii_case(b"NULL") && !element.iter().any(special) {
        return out.extend_from_slice(element);
    }
    out.push(b'"');
    let mut rest = element;
    while let Some(place) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        let (plain, escaped) = rest.split_at(place);
        out.extend_from_slice(plain);
        out.push(b'\\');
        out.extend(escaped.first());
        rest = escaped.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
