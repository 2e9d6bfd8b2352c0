//! Arrays: `{1,NULL,"a b"}`. Some types have another delimiter than a comma between elements.

/// Most dimensions that PostgreSQL's arrays have.
pub(in crate::format) const MAX_DIMENSIONS: usize = 6;

/// A piece of an array's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format) enum Piece<'a> {
    /// A dimension begins.
    Open,
    /// Another element of the same dimension follows.
    Next,
    /// A null.
    Null,
    /// An element's text.
    Element(&'a [u8]),
    /// A dimension ends.
    Close,
}

/// Gives an array's pieces to `visit`, in order. `None` also when `visit` gives that.
pub(in crate::format) fn walk(
    text: &[u8],
    delimiter: u8,
    visit: &mut impl FnMut(Piece<'_>) -> Option<()>,
) -> Option<()> {
    let (_, text) = split_bounds(text)?;
    let rest = elements(text.strip_prefix(b"{")?, delimiter, visit, &mut Vec::new(), 1)?;
    rest.is_empty().then_some(())
}

/// The indexes at which an array's dimensions begin, as far as its text names them: it does when one of them is not 1.
pub(in crate::format) fn lower_bounds(text: &[u8]) -> Option<impl Iterator<Item = Option<i32>>> {
    let (bounds, _) = split_bounds(text)?;
    let lower = |dimension: &[u8]| {
        let (lower, _) = std::str::from_utf8(dimension).ok()?.split_once(':')?;
        lower.parse().ok()
    };
    Some(bounds.split(|&byte| byte == b'[').skip(1).map(lower))
}

/// The bounds, which are written first, as in `[0:2]={1,2,3}`, when one of them is not 1; and the elements.
fn split_bounds(text: &[u8]) -> Option<(&[u8], &[u8])> {
    match text.first()? {
        b'[' => {
            let end = text.iter().position(|&byte| byte == b'=')?;
            Some((text.get(..end)?, text.get(end + 1..)?))
        }
        _ => Some((&[], text)),
    }
}

/// Visits the elements up to the closing brace, and gives what comes after it. `unescaped` is working memory.
fn elements<'a>(
    text: &'a [u8],
    delimiter: u8,
    visit: &mut impl FnMut(Piece<'_>) -> Option<()>,
    unescaped: &mut Vec<u8>,
    depth: usize,
) -> Option<&'a [u8]> {
    if depth > MAX_DIMENSIONS {
        return None;
    }
    visit(Piece::Open)?;
    if let Some(rest) = text.strip_prefix(b"}") {
        visit(Piece::Close)?;
        return Some(rest);
    }
    let mut text = text;
    loop {
        let rest = match text {
            [b'{', inner @ ..] => elements(inner, delimiter, visit, unescaped, depth + 1)?,
            [b'"', quoted @ ..] => quoted_element(quoted, visit, unescaped)?,
            _ => plain_element(text, delimiter, visit)?,
        };
        match rest {
            [next, after @ ..] if *next == delimiter => {
                visit(Piece::Next)?;
                text = after;
            }
            [b'}', after @ ..] => {
                visit(Piece::Close)?;
                return Some(after);
            }
            _ => return None,
        }
    }
}

fn plain_element<'a>(
    text: &'a [u8],
    delimiter: u8,
    visit: &mut impl FnMut(Piece<'_>) -> Option<()>,
) -> Option<&'a [u8]> {
    let len = text.iter().position(|&byte| byte == delimiter || byte == b'}')?;
    match text.get(..len)? {
        b"" => return None,
        b"NULL" => visit(Piece::Null)?,
        element => visit(Piece::Element(element))?,
    }
    text.get(len..)
}

/// An element after its opening quote, in which a backslash keeps the byte that follows it as it is.
fn quoted_element<'a>(
    text: &'a [u8],
    visit: &mut impl FnMut(Piece<'_>) -> Option<()>,
    unescaped: &mut Vec<u8>,
) -> Option<&'a [u8]> {
    let special = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if text.get(special) == Some(&b'"') {
        visit(Piece::Element(text.get(..special)?))?;
        return text.get(special + 1..);
    }
    unescaped.clear();
    let mut rest = text;
    loop {
        match rest {
            [b'"', after @ ..] => {
                visit(Piece::Element(unescaped))?;
                return Some(after);
            }
            [b'\\', byte, after @ ..] => {
                unescaped.push(*byte);
                rest = after;
            }
            [byte, after @ ..] => {
                unescaped.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}
