//! `millrace.toml`: sections of settings.

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

type Key<'i> = Spanned<DeString<'i>>;
type Written<'i> = Spanned<DeValue<'i>>;

impl File {
    /// Hands all settings to the loader.
    pub(super) fn read(&self, loader: &mut Loader) {
        let (document, errors) = DeTable::parse_recoverable(&self.text);
        let mut broken_lines = BTreeSet::new();
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            broken_lines.insert(self.line(at));
            loader.errors.add(&self.origin(at), "", error.message());
        }
        // What a syntax error leaves of a value says nothing.
        let is_whole = |value: &Written| !broken_lines.contains(&self.line(value.span().start));
        for (name, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) if is_section(name.get_ref()) => {
                    for (key, value) in section.iter().filter(|(_, value)| is_whole(value)) {
                        self.setting(loader, &format!("{}.{}", name.get_ref(), key.get_ref()), key, value);
                    }
                }
                _ if is_whole(value) => self.setting(loader, name.get_ref(), name, value),
                _ => {}
            }
        }
    }

    fn setting(&self, loader: &mut Loader, path: &str, key: &Key, value: &Written) {
        let Some(setting) = Setting::named(path) else {
            loader.errors.add(&self.origin(key.span().start), path, unknown(path));
            return;
        };
        let origin = self.origin(value.span().start);
        match text_of(setting, value.get_ref()) {
            Some(text) => loader.take(setting, &text, origin),
            None => {
                let written =
                    self.text.get(value.span()).and_then(|text| text.lines().next()).unwrap_or_default();
                let quotes = if value.get_ref().is_str() { ", without quotes" } else { "" };
                let message = format!("{written} does not fit; write {}{quotes}", setting.expected());
                loader.errors.add(&origin, path, message);
            }
        }
    }

    /// The line of a byte, from 1.
    fn line(&self, byte: usize) -> usize {
        self.before(byte).matches('\n').count() + 1
    }

    /// The place of a byte.
    fn origin(&self, byte: usize) -> Origin {
        let before = self.before(byte);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.chars().count() - before[..line_start].chars().count() + 1;
        Origin::File { name: self.name.clone(), line: self.line(byte), column }
    }

    fn before(&self, byte: usize) -> &str {
        self.text.get(..byte).unwrap_or(&self.text)
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
                u64::from_str_radix(number.as_str(), radix).ok().map(|number| Cow::Owned(number.to_string()))
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
        return format!("this is a section; write [{path}], and its settings on the lines below");
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
    }
    format!("there is no such setting; there are {}", names.join(", "))
}
