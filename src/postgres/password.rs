//! Where the password comes from: the connection string, `password_file`, `PGPASSWORD`, libpq's password file; the
//! first that has one wins.
//!
//! Looked up at every connect, so that a rotated password is found without a restart.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::source::{Host, Secret, SourceConfig};

/// Far more than any password file needs.
const LARGEST_FILE: u64 = 1 << 20;

/// A password file that was named and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("password file {path} cannot be read: {source}; check password_file and the file's permissions")]
pub struct PasswordError {
    path: PathBuf,
    source: io::Error,
}

/// Finds the password for `config`, if there is one anywhere.
pub async fn find(config: &SourceConfig) -> Result<Option<Secret>, PasswordError> {
    if let Some(password) = &config.password {
        return Ok(Some(password.clone()));
    }
    if let Some(path) = &config.password_file {
        let text = read(path).await.map_err(|source| PasswordError { path: path.clone(), source })?;
        return Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']))));
    }
    if let Some(password) = std::env::var("PGPASSWORD").ok().filter(|p| !p.is_empty()) {
        return Ok(Some(Secret::new(password)));
    }
    let Some(path) = &config.passfile else { return Ok(None) };
    match tokio::fs::metadata(path).await {
        Ok(metadata) if metadata.is_file() => {
            if metadata.permissions().mode() & 0o077 != 0 {
                tracing::warn!(path = %path.display(), "password file ignored: others may read it; run chmod 600 on it");
                return Ok(None);
            }
        }
        _ => return Ok(None),
    }
    let Ok(text) = read(path).await else { return Ok(None) };
    let host = match &config.host {
        Host::Tcp(host) => host.as_str(),
        Host::Unix(directory) if directory == Path::new("/var/run/postgresql") => "localhost",
        Host::Unix(directory) => directory.to_str().unwrap_or_default(),
    };
    Ok(search(&text, [host, &config.port.to_string(), &config.dbname, &config.user]))
}

async fn read(path: &Path) -> io::Result<String> {
    let metadata = tokio::fs::metadata(path).await?;
    if metadata.len() > LARGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    tokio::fs::read_to_string(path).await
}

/// The password of the first line whose host, port, database and user match; `*` matches anything, a backslash takes
/// the next character as it is.
fn search(text: &str, wanted: [&str; 4]) -> Option<Secret> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for want in wanted {
            let (field, after) = field(rest)?;
            let wild = rest.starts_with("*:");
            if !wild && field != want {
                return None;
            }
            rest = after;
        }
        let (password, _) = field(rest).unwrap_or_else(|| (unescape(rest), ""));
        (!password.is_empty()).then(|| Secret::new(password))
    })
}

/// Splits off the text before the next bare colon.
fn field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b':' if !escaped => return Some((unescape(&text[..at]), &text[at + 1..])),
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => out.extend(characters.next()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "# comment\nother:5432:d:u:no\nh:5432:d:u:se\\:cr\\\\et\n*:*:*:u2:wild\nbad line\n\\:\\:1:*:*:u:v6";

    #[test]
    fn the_first_line_that_matches_gives_the_password() {
        let found = |wanted| search(FILE, wanted).map(|s| s.expose().to_owned());
        assert_eq!(found(["h", "5432", "d", "u"]).as_deref(), Some(r"se:cr\et"));
        assert_eq!(found(["x", "1", "y", "u2"]).as_deref(), Some("wild"));
        assert_eq!(found(["::1", "1", "y", "u"]).as_deref(), Some("v6"));
        assert_eq!(found(["h", "5432", "d", "nobody"]), None);
    }

    #[tokio::test]
    async fn a_password_file_that_others_may_read_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:pw").unwrap();
        let mut config = SourceConfig::parse("postgres://u@h/d").unwrap();
        config.passfile = Some(path.clone());
        for (mode, expected) in [(0o644, None), (0o600, Some("pw"))] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = find(&config).await.unwrap();
            assert_eq!(found.as_ref().map(Secret::expose), expected, "{mode:o}");
        }
        config.password_file = Some(dir.path().join("absent"));
        assert!(find(&config).await.unwrap_err().to_string().contains("absent"));
        std::fs::write(dir.path().join("absent"), "line\n").unwrap();
        assert_eq!(find(&config).await.unwrap().unwrap().expose(), "line");
    }
}
