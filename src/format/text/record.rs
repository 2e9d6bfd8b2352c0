//! Composites: `(1,"a ""b""",)`.

/// Gives the text of each attribute to `visit`, in order, `None` for a null. `None` also when `visit` gives that.
///
/// A composite of no attributes and one of a single null have the same text: here it is a single null.
pub(in crate::format) fn walk(text: &[u8], mut visit: impl FnMut(Option<&[u8]>) -> Option<()>) -> Option<()> {
    let mut rest = text.strip_prefix(b"(")?;
    let mut unescaped = Vec::new();
    loop {
        rest = match rest {
            [b',' | b')', ..] => {
                visit(None)?;
                rest
            }
            [b'"', quoted @ ..] => {
                let (end, after) = unquote(quoted, &mut unescaped)?;
                visit(Some(if unescaped.is_empty() { quoted.get(..end)? } else { &unescaped }))?;
                after
            }
            _ => {
                let len = rest.iter().position(|byte| matches!(byte, b',' | b')'))?;
                visit(Some(rest.get(..len)?))?;
                rest.get(len..)?
            }
        };
        match rest {
            [b',', after @ ..] => rest = after,
            b")" => return Some(()),
            _ => return None,
        }
    }
}

/// The length of what stands up to the closing quote, and what follows that. Where something in it is doubled or behind
/// a backslash, `unescaped` gets what is meant.
fn unquote<'a>(text: &'a [u8], unescaped: &mut Vec<u8>) -> Option<(usize, &'a [u8])> {
    unescaped.clear();
    let mut rest = text;
    loop {
        let special = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        let (plain, after) = rest.split_at(special);
        match after {
            [b'"', b'"', after @ ..] | [b'\\', b'"', after @ ..] => {
                unescaped.extend_from_slice(plain);
                unescaped.push(b'"');
                rest = after;
            }
            [b'\\', byte, after @ ..] => {
                unescaped.extend_from_slice(plain);
                unescaped.push(*byte);
                rest = after;
            }
            [b'"', after @ ..] => {
                if !unescaped.is_empty() {
                    unescaped.extend_from_slice(plain);
                }
                return Some((text.len() - after.len() - 1, after));
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walked(text: &str) -> Option<Vec<Option<String>>> {
        let mut attributes = Vec::new();
        walk(text.as_bytes(), |attribute| {
            attributes.push(attribute.map(|text| String::from_utf8(text.to_vec()).unwrap()));
            Some(())
        })?;
        Some(attributes)
    }

    #[test]
    fn attributes_are_what_the_server_put_in() {
        let text = |text: &str| Some(text.to_owned());
        for (record, attributes) in [
            ("()", vec![None]),
            ("(,)", vec![None, None]),
            ("(1,\"\",)", vec![text("1"), text(""), None]),
            (
                r#"("d""e","f\\g","(1,""x"")","""")"#,
                vec![text("d\"e"), text("f\\g"), text("(1,\"x\")"), text("\"")],
            ),
        ] {
            assert_eq!(walked(record), Some(attributes), "{record}");
        }
    }

    #[test]
    fn what_is_not_a_composite_is_refused() {
        for text in ["", "(", "1", "(1", "(1)x", "(\"1)", "(\"1\"2)", "(\"\\", "1)"] {
            assert_eq!(walked(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_composite_reads_back(attributes in proptest::collection::vec(any::<Option<String>>(), 1..5)) {
            let attribute = |attribute: &Option<String>| match attribute {
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\"")),
                None => String::new(),
            };
            let text = attributes.iter().map(attribute).collect::<Vec<_>>().join(",");
            prop_assert_eq!(walked(&format!("({text})")), Some(attributes));
        }

        #[test]
        fn no_text_makes_the_walk_panic(text in "[(),\"\\\\a]{0,20}") {
            walked(&text);
        }
    }
}
