//! What `hstore` and pgvector have.

use super::{json, numeric};
use crate::format::text::hstore as hstore_text;

/// An `hstore` as a string that holds a JSON object.
pub(super) fn hstore(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let mut object = vec![b'{'];
    hstore_text::walk(text, |key, value| {
        if object.len() > 1 {
            object.push(b',');
        }
        json::string(&mut object, key);
        object.push(b':');
        match value {
            Some(value) => json::string(&mut object, value),
            None => object.extend_from_slice(b"null"),
        }
        Some(())
    })?;
    object.push(b'}');
    json::string(out, &object);
    Some(())
}

/// A `vector` or `halfvec`, `[1,2.5]`, as an array of numbers.
pub(super) fn vector(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let inside = text.strip_prefix(b"[")?.strip_suffix(b"]")?;
    out.push(b'[');
    for (place, number) in inside.split(|&byte| byte == b',').enumerate() {
        if place > 0 {
            out.push(b',');
        }
        numeric::float(out, number)?;
    }
    out.push(b']');
    Some(())
}

/// A `sparsevec`, `{1:1.5,3:2}/5`, as Debezium's `SparseDoubleVector`; its map is an array of pairs, because its keys are
/// no strings: `{"dimensions":5,"vector":[[1,1.5],[3,2.0]]}`.
pub(super) fn sparse_vector(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let end = text.iter().rposition(|&byte| byte == b'}')?;
    let elements = text.get(..end)?.strip_prefix(b"{")?;
    let dimensions = text.get(end + 1..)?.strip_prefix(b"/")?;
    out.extend_from_slice(b"{\"dimensions\":");
    numeric::integer(out, dimensions)?;
    out.extend_from_slice(b",\"vector\":[");
    for (place, element) in elements.split(|&byte| byte == b',').filter(|_| !elements.is_empty()).enumerate()
    {
        let colon = element.iter().position(|&byte| byte == b':')?;
        out.extend_from_slice(if place > 0 { b",[" } else { b"[" });
        numeric::integer(out, element.get(..colon)?)?;
        out.push(b',');
        numeric::float(out, element.get(colon + 1..)?)?;
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::debezium_json::tests::written_of as written;

    #[test]
    fn an_hstore_is_an_object_in_a_string() {
        for (text, json) in [
            ("", r#""{}""#),
            (r#""a"=>"1", "b c"=>NULL"#, r#""{\"a\":\"1\",\"b c\":null}""#),
            (r#""\"q\\"=>"\n""#, r#""{\"\\\"q\\\\\":\"n\"}""#),
        ] {
            assert_eq!(written(hstore, text).as_deref(), Some(json), "{text}");
        }
    }

    #[test]
    fn vectors_are_numbers() {
        assert_eq!(written(vector, "[1,2.5,-3e-10]").as_deref(), Some("[1.0,2.5,-3.0E-10]"));
        for text in ["", "[", "1", "[]", "[1,]", "[a]"] {
            assert_eq!(written(vector, text), None, "{text}");
        }
        let json = r#"{"dimensions":5,"vector":[[1,1.5],[3,2.0]]}"#;
        assert_eq!(written(sparse_vector, "{1:1.5,3:2}/5").as_deref(), Some(json));
        let empty = r#"{"dimensions":5,"vector":[]}"#;
        assert_eq!(written(sparse_vector, "{}/5").as_deref(), Some(empty));
        for text in ["", "{}", "{1:}/5", "{1}/5", "{1:2}/", "{1:2}5"] {
            assert_eq!(written(sparse_vector, text), None, "{text}");
        }
    }
}
