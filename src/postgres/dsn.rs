//! The two spellings of a connection string, `postgres://…` and `key=value …`, taken apart into settings.
//!
//! Pure text: what the settings mean is [`super::source`]'s business. Errors name the part that is wrong and never
//! quote a value that could be, or contain, a password.

use super::source::SourceError;

/// A setting as it was written, decoded.
pub(super) type Setting = (String, String);

/// Splits a connection string into its settings, in the order in which they are written.
pub(super) fn split(text: &str) -> Result<Vec<Setting>, SourceError> {
    let text = text.trim();
    match text.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => split_url(rest),
        Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Err(SourceError::Scheme(scheme.to_owned()))
        }
        _ if text.contains('=') => split_key_values(text),
        _ => Err(SourceError::NotAConnectionString),
    }
}

fn split_url(rest: &str) -> Result<Vec<Setting>, SourceError> {
    let mut settings = Vec::new();
    let mut add = |key: &'static str, encoded: &str| -> Result<(), SourceError> {
        if !encoded.is_empty() {
            settings.push((key.to_owned(), decode(encoded, key)?));
        }
        Ok(())
    };
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    // The last '@' before the path ends the user part, so that a password with a bare '@' works; a bare '/' cannot.
    let authority_end = match before_query.rfind('@') {
        Some(at) => before_query[at..].find('/').map(|slash| at + slash),
        None => before_query.find('/'),
    };
    let (authority, dbname) = match authority_end {
        Some(slash) => (&before_query[..slash], &before_query[slash + 1..]),
        None => (before_query, ""),
    };
    let (user_part, host_part) = match authority.rsplit_once('@') {
        Some((user, host)) => (user, host),
        None => ("", authority),
    };
    let (user, password) = user_part.split_once(':').unwrap_or((user_part, ""));
    add("user", user)?;
    add("password", password)?;
    if host_part.contains(',') {
        return Err(SourceError::SeveralHosts);
    }
    let (host, port) = match host_part.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']').ok_or(SourceError::Part { part: "host" })?;
            match after.strip_prefix(':') {
                Some(port) => (host, port),
                None if after.is_empty() => (host, ""),
                None => return Err(SourceError::Part { part: "host" }),
            }
        }
        None => host_part.split_once(':').unwrap_or((host_part, "")),
    };
    add("host", host)?;
    add("port", port)?;
    add("dbname", dbname)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(SourceError::Part { part: "query" })?;
        settings.push((decode(key, "query")?, decode(value, "query")?));
    }
    Ok(settings)
}

fn decode(encoded: &str, part: &'static str) -> Result<String, SourceError> {
    let wrong = || SourceError::Part { part };
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
        let (high, low) = (digit()?, digit()?);
        bytes.push((high << 4 | low) as u8);
    }
    if bytes.contains(&0) {
        return Err(wrong());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn split_key_values(text: &str) -> Result<Vec<Setting>, SourceError> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(SourceError::KeyValue)?;
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(SourceError::KeyValue);
        }
        let (value, after) = key_value_value(after.trim_start(), key)?;
        settings.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(settings)
}

/// One value: bare up to white space, or in single quotes; a backslash takes the next character as it is.
fn key_value_value<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), SourceError> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, escaped)) => value.push(escaped),
                None => return Err(SourceError::Unterminated(key.to_owned())),
            },
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            '\0' => return Err(SourceError::KeyValue),
            c => value.push(c),
        }
    }
    if quoted { Err(SourceError::Unterminated(key.to_owned())) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(text: &str) -> Vec<(String, String)> {
        split(text).unwrap()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_url_is_taken_apart_and_decoded() {
        let all =
            settings("postgres://al%40ice:p%3Aw%2Fd@db.example:5433/my%20db?sslmode=require&host=%2Ftmp");
        let expected = [
            ("user", "al@ice"),
            ("password", "p:w/d"),
            ("host", "db.example"),
            ("port", "5433"),
            ("dbname", "my db"),
            ("sslmode", "require"),
            ("host", "/tmp"),
        ];
        assert_eq!(all, pairs(&expected));
        assert_eq!(settings("postgresql://"), pairs(&[]));
        assert_eq!(settings("postgres:///db?host=/run/pg"), pairs(&[("dbname", "db"), ("host", "/run/pg")]));
        assert_eq!(
            settings("postgres://[::1]:5/d"),
            pairs(&[("host", "::1"), ("port", "5"), ("dbname", "d")])
        );
        assert_eq!(settings("postgres://%2Fvar%2Frun/d"), pairs(&[("host", "/var/run"), ("dbname", "d")]));
    }

    #[test]
    fn a_password_with_a_bare_at_sign_is_understood() {
        let expected = [("user", "u"), ("password", "p@q"), ("host", "h"), ("dbname", "d")];
        assert_eq!(settings("postgres://u:p@q@h/d"), pairs(&expected));
    }

    #[test]
    fn keys_and_values_are_taken_apart() {
        let all = settings(r"host=/tmp password='it\'s \\ me' dbname=a\ b");
        assert_eq!(all, pairs(&[("host", "/tmp"), ("password", r"it's \ me"), ("dbname", "a b")]));
    }

    #[test]
    fn errors_never_quote_a_password() {
        for text in [
            "postgres://u:hunter%2@h/d",
            "postgres://u:hunter2%zz@h/d",
            "host=h password='hunter2",
            "mysql://u:hunter2@h/d",
            "postgres://u:hunter2@h1,h2/d",
            "hunter2",
        ] {
            let error = split(text).unwrap_err().to_string();
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "\\PC*") {
            let _ = split(&text);
            let _ = split(&format!("postgres://{text}"));
            let _ = split(&format!("host={text}"));
        }
    }
}
