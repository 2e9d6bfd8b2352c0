//! Points, and what PostGIS has.

use super::{json, numeric};
use crate::format::text::bytea;

/// A `point` as Debezium's `Point`: `{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}`.
pub(super) fn point(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let inside = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let mut coordinates = inside.splitn(2, |&byte| byte == b',');
    let (x, y) = (coordinates.next()?, coordinates.next()?);
    // Well-known binary: little-endian, a point in the plane.
    let mut wkb = [0; 21];
    wkb.get_mut(..5)?.copy_from_slice(&[1, 1, 0, 0, 0]);
    for (place, coordinate) in [(5, x), (13, y)] {
        let number: f64 = std::str::from_utf8(coordinate).ok()?.parse().ok()?;
        wkb.get_mut(place..place + 8)?.copy_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(b"{\"x\":");
    numeric::float(out, x)?;
    out.extend_from_slice(b",\"y\":");
    numeric::float(out, y)?;
    out.extend_from_slice(b",\"wkb\":\"");
    json::base64(out, &wkb);
    out.extend_from_slice(b"\",\"srid\":null}");
    Some(())
}

/// A `geometry` or `geography`, whose text is extended well-known binary in hexadecimal, as Debezium's `Geometry`.
pub(super) fn postgis(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    out.extend_from_slice(b"{\"wkb\":\"");
    let mut srid = None;
    let mut is_first = true;
    bytea::hex(text, |bytes| {
        if std::mem::take(&mut is_first) {
            srid = srid_of(bytes);
        }
        json::base64(out, bytes);
    })?;
    out.extend_from_slice(b"\",\"srid\":");
    match srid? {
        Some(srid) => json::integer(out, srid.into()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Some(())
}

/// The identifier of the coordinate system, if the geometry names one; no answer when this is no geometry.
fn srid_of(ewkb: &[u8]) -> Option<Option<i32>> {
    const HAS_SRID: u32 = 0x2000_0000;
    let (order, rest) = ewkb.split_first()?;
    let (kind, rest) = rest.split_first_chunk::<4>()?;
    let is_little_endian = *order != 0;
    let kind = if is_little_endian { u32::from_le_bytes(*kind) } else { u32::from_be_bytes(*kind) };
    if kind & HAS_SRID == 0 {
        return Some(None);
    }
    let (srid, _) = rest.split_first_chunk::<4>()?;
    Some(Some(if is_little_endian { i32::from_le_bytes(*srid) } else { i32::from_be_bytes(*srid) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::debezium_json::tests::written_of as written;

    #[test]
    fn a_point_has_coordinates_and_well_known_binary() {
        assert_eq!(
            written(point, "(1.5,-2)").as_deref(),
            Some(r#"{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}"#)
        );
        let infinite = written(point, "(Infinity,NaN)").unwrap();
        assert!(infinite.starts_with(r#"{"x":"Infinity","y":"NaN","#), "{infinite}");
        for text in ["", "()", "(1)", "(1,)", "1,2", "(1,2,3)", "(a,b)"] {
            assert_eq!(written(point, text), None, "{text}");
        }
    }

    #[test]
    fn a_geometry_names_its_coordinate_system_if_it_has_one() {
        for (hex, srid) in [
            ("0101000000000000000000F03F0000000000000040", "null"),
            ("0101000020E6100000000000000000F03F0000000000000040", "4326"),
            ("0020000001000010E63FF00000000000004000000000000000", "4326"),
        ] {
            let json: serde_json::Value = serde_json::from_str(&written(postgis, hex).unwrap()).unwrap();
            assert_eq!(json["srid"].to_string(), srid);
            assert_eq!(json["wkb"].as_str().unwrap().len(), hex.len().div_ceil(6) * 4);
        }
        for text in ["", "01", "POINT(1 2)", "0101000020E610", "0101000000000000000000F03F000000000000004"] {
            assert_eq!(written(postgis, text), None, "{text}");
        }
    }
}
