//! What is wrong with the settings, and where.

use std::fmt;

/// Where a setting comes from, by rising weight.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file.
    File {
        /// Its name, as given.
        name: String,
        /// The line, from 1.
        line: usize,
        /// The character in the line, from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag, without the dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    origin: Origin,
    /// Empty where no setting is known.
    key: String,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { origin, key, message } = self;
        match origin {
            Origin::Default | Origin::File { .. } if !key.is_empty() => {
                write!(f, "{origin}: {key}: {message}")
            }
            _ => write!(f, "{origin}: {message}"),
        }
    }
}

/// All that is wrong, a line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn add(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        self.0.push(ConfigError { origin: origin.clone(), key: key.to_owned(), message: message.into() });
    }

    /// Whether something is wrong with a setting.
    pub(super) fn concern(&self, key: &str) -> bool {
        self.0.iter().any(|error| error.key == key)
    }

    /// What was made, if nothing is wrong.
    pub(super) fn into_result<T>(mut self, made: T) -> Result<T, ConfigErrors> {
        self.0.sort();
        if self.0.is_empty() { Ok(made) } else { Err(self) }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used; nothing was started")?;
        self.0.iter().try_for_each(|error| write!(f, "\n{error}"))
    }
}

impl std::error::Error for ConfigErrors {}
