//! The extension `hstore`: `"a"=>"1", "b c"=>NULL`.

/// Gives each pair to `visit`, in order. `None` also when `visit` gives that.
pub(in crate::format) fn walk(
    text: &[u8],
    mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Option<()>,
) -> Option<()> {
    if text.is_empty() {
        return Some(());
    }
    let (mut unescaped_key, mut unescaped_value) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let (key, after) = quoted(rest, &mut unescaped_key)?;
        let after = after.strip_prefix(b"=>")?;
        rest = if let Some(after) = after.strip_prefix(b"NULL") {
            visit(key, None)?;
            after
        } else {
            let (value, after) = quoted(after, &mut unescaped_value)?;
            visit(key, Some(value))?;
            after
        };
        if rest.is_empty() {
            return Some(());
        }
        rest = rest.strip_prefix(b", ")?;
    }
}

/// What stands in quotes, in which a backslash keeps the byte that follows it as it is; and what follows. `unescaped` is
/// working memory.
fn quoted<'t: 'u, 'u>(text: &'t [u8], unescaped: &'u mut Vec<u8>) -> Option<(&'u [u8], &'t [u8])> {
    let text = text.strip_prefix(b"\"")?;
    let special = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if text.get(special) == Some(&b'"') {
        return Some((text.get(..special)?, text.get(special + 1..)?));
    }
    unescaped.clear();
    let mut rest = text;
    loop {
        match rest {
            [b'"', after @ ..] => return Some((unescaped, after)),
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                unescaped.push(*byte);
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

    type Pairs = Vec<(String, Option<String>)>;

    fn walked(text: &str) -> Option<Pairs> {
        let mut pairs = Vec::new();
        let string = |text: &[u8]| String::from_utf8(text.to_vec()).unwrap();
        walk(text.as_bytes(), |key, value| {
            pairs.push((string(key), value.map(string)));
            Some(())
        })?;
        Some(pairs)
    }

    #[test]
    fn what_is_not_an_hstore_is_refused() {
        for text in
            ["a", "\"a\"", "\"a\"=>", "\"a\"=>\"b\",", "\"a\"=>b", "\"a\"=>\"b\" \"c\"=>\"d\"", "\"a\\"]
        {
            assert_eq!(walked(text), None, "{text}");
        }
        assert_eq!(walked(""), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_pairs_read_back(pairs in proptest::collection::vec(any::<(String, Option<String>)>(), 0..5)) {
            let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let pair = |(key, value): &(String, Option<String>)| {
                format!("{}=>{}", quoted(key), value.as_deref().map_or("NULL".to_owned(), quoted))
            };
            prop_assert_eq!(walked(&pairs.iter().map(pair).collect::<Vec<_>>().join(", ")), Some(pairs));
        }

        #[test]
        fn no_text_makes_the_walk_panic(text in "[=>, \"\\\\aNUL]{0,20}") {
            walked(&text);
        }
    }
}
