//! Arrays: from PostgreSQL's text, `{1,NULL,"a b"}`, to JSON arrays.

use super::values::Rendering;

/// Most dimensions that PostgreSQL's arrays have.
const MAX_DIMENSIONS: usize = 6;

/// Appends an array whose elements are written by `element`; several dimensions are nested arrays. `None` when the text
/// is not an array, or an element not of its type.
pub(super) fn write(out: &mut Vec<u8>, text: &[u8], element: Rendering) -> Option<()> {
    // Bounds that do not begin at 1 are written first, as in `[0:2]={1,2,3}`. JSON has no place for them.
    let text = match text.first()? {
        b'[' => text.get(text.iter().position(|&byte| byte == b'=')? + 1..)?,
        _ => text,
    };
    let rest = elements(out, text.strip_prefix(b"{")?, element, 1)?;
    rest.is_empty().then_some(())
}

/// Writes the elements up to the closing brace, and gives what comes after it.
fn elements<'a>(out: &mut Vec<u8>, text: &'a [u8], element: Rendering, depth: usize) -> Option<&'a [u8]> {
    if depth > MAX_DIMENSIONS {
        return None;
    }
    out.push(b'[');
    if let Some(rest) = text.strip_prefix(b"}") {
        out.push(b']');
        return Some(rest);
    }
    let mut text = text;
    loop {
        let rest = match text {
            [b'{', inner @ ..] => elements(out, inner, element, depth + 1)?,
            [b'"', quoted @ ..] => quoted_element(out, quoted, element)?,
            _ => plain_element(out, text, element)?,
        };
        match rest {
            [b',', after @ ..] => {
                out.push(b',');
                text = after;
            }
            [b'}', after @ ..] => {
                out.push(b']');
                return Some(after);
            }
            _ => return None,
        }
    }
}

fn plain_element<'a>(out: &mut Vec<u8>, text: &'a [u8], element: Rendering) -> Option<&'a [u8]> {
    let len = text.iter().position(|byte| matches!(byte, b',' | b'}'))?;
    match text.get(..len)? {
        b"" => return None,
        b"NULL" => out.extend_from_slice(b"null"),
        value => element.write_text(out, value)?,
    }
    text.get(len..)
}

/// An element after its opening quote, in which a backslash keeps the byte that follows it as it is.
fn quoted_element<'a>(out: &mut Vec<u8>, text: &'a [u8], element: Rendering) -> Option<&'a [u8]> {
    let special = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if text.get(special) == Some(&b'"') {
        element.write_text(out, text.get(..special)?)?;
        return text.get(special + 1..);
    }
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        match rest {
            [b'"', after @ ..] => {
                element.write_text(out, &value)?;
                return Some(after);
            }
            [b'\\', byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &str, element: Rendering) -> Option<String> {
        let mut out = Vec::new();
        write(&mut out, text.as_bytes(), element)?;
        Some(String::from_utf8(out).unwrap())
    }

    /// As PostgreSQL prints an array of text, with every element quoted.
    fn printed(elements: &[Option<String>]) -> String {
        let element = |element: &Option<String>| match element {
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            None => "NULL".to_owned(),
        };
        format!("{{{}}}", elements.iter().map(element).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn arrays_are_json_arrays_of_what_their_elements_are() {
        for (text, element, json) in [
            ("{}", Rendering::Integer, "[]"),
            ("{1,NULL,-3}", Rendering::Integer, "[1,null,-3]"),
            ("{{1,2},{3,4}}", Rendering::Integer, "[[1,2],[3,4]]"),
            ("[0:1]={5,6}", Rendering::Integer, "[5,6]"),
            (
                "{a,\"b c\",\"NULL\",\"\",\"x\\\"\\\\y\"}",
                Rendering::Text,
                r#"["a","b c","NULL","","x\"\\y"]"#,
            ),
            ("{t,f}", Rendering::Boolean, "[true,false]"),
            ("{1.00,NaN}", Rendering::Decimal { scale: 2 }, r#"["ZA==","NaN"]"#),
            ("{\"\\\\x666f\"}", Rendering::Bytes, r#"["Zm8="]"#),
            (
                "{\"2026-01-01 00:00:00+00\"}",
                Rendering::TimestampWithZone { digits: 6 },
                r#"["2026-01-01T00:00:00.000000Z"]"#,
            ),
        ] {
            assert_eq!(written(text, element).as_deref(), Some(json), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_array_is_refused() {
        let deep = "{".repeat(7) + &"}".repeat(7);
        for text in ["", "{", "}", "{1", "{1,}", "{,1}", "{1}}", "{\"a}", "{\"\\", "[0:1]", "1", &deep] {
            assert_eq!(written(text, Rendering::Integer), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_array_of_text_reads_back(elements in proptest::collection::vec(any::<Option<String>>(), 0..5)) {
            let json = written(&printed(&elements), Rendering::Text).unwrap();
            prop_assert_eq!(serde_json::from_str::<Vec<Option<String>>>(&json).unwrap(), elements);
        }

        #[test]
        fn what_is_written_is_json(text in "[\\[{}\",\\\\1aNUL=]{0,20}") {
            if let Some(json) = written(&text, Rendering::Text) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
            }
        }
    }
}
