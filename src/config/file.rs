//! `millrace.toml`: sections of settings, and tasks.

use std::borrow::Cow;
use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::nearest::nearest;
use super::{Loader, Origin, SETTINGS, Setting, Value};

/// A configuration file that has been read.
#[derive(Debug, Clone)]
pub struct File {
    /// Its name, as given.
    pub name: String,
    /// What it holds.
    pub text: String,
}

pub(super) type Key<'i> = Spanned<DeString<'i>>;
pub(super) type Written<'i> = Spanned<DeValue<'i>>;

impl File {
    /// The line of a byte, from 1.
    fn line(&self, byte: usize) -> usize {
        self.before(byte).matches('\n').count() + 1
    }

    /// The place of a byte.
    pub(super) fn origin(&self, byte: usize) -> Origin {
        let before = self.before(byte);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.chars().count() - before[..line_start].chars().count() + 1;
        Origin::File { name: self.name.clone(), line: self.line(byte), column }
    }

    fn before(&self, byte: usize) -> &str {
        self.text.get(..byte).unwrap_or(&self.text)
    }
}

/// Hands what a file says to the loader.
pub(super) struct Reader<'a> {
    pub(super) file: &'a File,
    pub(super) loader: &'a mut Loader,
    /// Lines that are not TOML. What that leaves of their values says nothing.
    broken_lines: BTreeSet<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a File, loader: &'a mut Loader) -> Self {
        Reader { file, loader, broken_lines: BTreeSet::new() }
    }

    pub(super) fn read(mut self) {
        let (document, errors) = DeTable::parse_recoverable(&self.file.text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            self.broken_lines.insert(self.file.line(at));
            self.wrong(at, "", error.message());
        }
        for (name, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) if is_section(name.get_ref()) => {
                    for (key, value) in section {
                        self.setting(&format!("{}.{}", name.get_ref(), key.get_ref()), key, value);
                    }
                }
                _ if name.get_ref() == "tasks" => self.tasks(value),
                _ => self.setting(name.get_ref(), name, value),
            }
        }
    }

    fn setting(&mut self, path: &str, key: &Key, value: &Written) {
        if !self.is_whole(value) {
            return;
        }
        let Some(setting) = Setting::named(path) else {
            return self.wrong(key.span().start, path, unknown(path));
        };
        match text_of(setting, value.get_ref()) {
            Some(text) => self.loader.take(setting, &text, self.file.origin(value.span().start)),
            None => {
                let written = self.file.text.get(value.span()).and_then(|text| text.lines().next());
                let quotes = if value.get_ref().is_str() { ", without quotes" } else { "" };
                let expected = setting.expected();
                let message =
                    format!("{} does not fit; write {expected}{quotes}", written.unwrap_or_default());
                self.wrong(value.span().start, path, message);
            }
        }
    }

    pub(super) fn wrong(&mut self, at: usize, key: &str, message: impl Into<String>) {
        self.loader.errors.add(&self.file.origin(at), key, message);
    }

    pub(super) fn is_whole(&self, value: &Written) -> bool {
        !self.broken_lines.contains(&self.file.line(value.span().start))
    }

    /// Whether the whole file is TOML, so that what is not there has been left out.
    pub(super) fn is_complete(&self) -> bool {
        self.broken_lines.is_empty()
    }
}

/// A value of the setting's type as text, which [`Setting::set`] then reads as it reads a variable or a flag.
fn text_of<'a>(setting: &Setting, value: &'a DeValue) -> Option<Cow<'a, str>> {
    match (&setting.value, value) {
        (Value::Switch { .. }, DeValue::Boolean(on)) => {
            Some(Cow::Borrowed(if *on { "true" } else { "false" }))
        }
        (Value::Number { .. }, DeValue::Integer(number)) => match number.radix() {
            10 => Some(Cow::Borrowed(number.as_str())),
            radix => {
                let number = u64::from_str_radix(number.as_str(), radix).ok()?;
                Some(Cow::Owned(number.to_string()))
            }
        },
        (Value::Text { .. }, DeValue::String(text)) => Some(Cow::Borrowed(text)),
        _ => None,
    }
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.section() == name)
}

/// What to say of a name that no setting has.
fn unknown(path: &str) -> String {
    if is_section(path) {
        let tasks = if path == "task" { "; a task to capture is written below [[tasks]]" } else { "" };
        return format!("this is a section of settings, which are written below [{path}]{tasks}");
    }
    let (section, name) = path.split_once('.').unwrap_or(("", path));
    let elsewhere = SETTINGS.iter().find(|setting| setting.key.rsplit('.').next() == Some(name));
    let near = || nearest(path, SETTINGS.iter().map(|setting| setting.key));
    if let Some(meant) = elsewhere.map(|setting| setting.key).or_else(near) {
        return format!("there is no such setting; did you mean {meant}?");
    }
    let in_section = SETTINGS.iter().filter(|setting| setting.section() == section);
    let mut names: Vec<String> = in_section.map(|setting| setting.key.to_owned()).collect();
    if section.is_empty() {
        let sections = SETTINGS.iter().map(Setting::section).filter(|section| !section.is_empty());
        names.extend(sections.map(|section| format!("[{section}]")));
        names.dedup();
        names.push("[[tasks]]".to_owned());
    }
    format!("there is no such setting; there are {}", names.join(", "))
}
