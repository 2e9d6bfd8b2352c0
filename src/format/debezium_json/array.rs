//! Arrays as JSON arrays.

use super::values::Rendering;
use crate::format::text::array::{self, Piece};

/// Appends an array whose elements are written by `element`; several dimensions are nested arrays, and lower bounds are
/// left out, as JSON has no place for them. `None` when the text is not an array, or an element not of its type.
pub(super) fn write(out: &mut Vec<u8>, text: &[u8], element: &Rendering, delimiter: u8) -> Option<()> {
    array::walk(text, delimiter, &mut |piece| {
        match piece {
            Piece::Open => out.push(b'['),
            Piece::Next => out.push(b','),
            Piece::Close => out.push(b']'),
            Piece::Null => out.extend_from_slice(b"null"),
            Piece::Element(text) => element.write_text(out, text)?,
        }
        Some(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::debezium_json::tests;
    use proptest::prelude::*;

    fn written(text: &str, element: Rendering) -> Option<String> {
        tests::written(|out| write(out, text.as_bytes(), &element, b','))
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
