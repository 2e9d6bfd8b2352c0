//! Records for people: a line for what happened, and one for each column that has changed.

use std::fmt::Write;

use super::shown::{Action, Cell, Column, Shown};
use super::time;
use crate::proto::Record;

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 200;

/// How records are written for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pretty {
    pub(super) colour: bool,
}

/// SGR parameters of ECMA-48.
#[derive(Debug, Clone, Copy)]
enum Ink {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

impl Pretty {
    /// Appends a record's lines.
    pub(super) fn write(self, out: &mut String, partition: u32, record: &Record, shown: &Shown) {
        let (word, ink) = match shown.action {
            Action::Insert => ("insert", Ink::Green),
            Action::Update => ("update", Ink::Yellow),
            Action::Delete => ("delete", Ink::Red),
            Action::Read => ("read", Ink::Green),
            Action::Truncate => ("truncate", Ink::Red),
            Action::Tombstone => ("tombstone", Ink::Dim),
            Action::Notice(word) => (word, Ink::Cyan),
        };
        let time = time::moment(record.timestamp_ms);
        self.ink(out, Ink::Dim, &format!("{time}  {partition}:{}  ", record.offset));
        self.ink(out, ink, word);
        if !shown.subject.is_empty() {
            out.push(' ');
            self.ink(out, Ink::Bold, &shown.subject);
        }
        for (name, cell) in &shown.key {
            out.push(' ');
            write_safe(out, name);
            out.push('=');
            self.cell(out, cell);
        }
        out.push('\n');
        for column in &shown.columns {
            self.column(out, column);
        }
        for note in &shown.notes {
            out.push_str("    ");
            write_safe(out, note);
            out.push('\n');
        }
    }

    fn column(self, out: &mut String, column: &Column) {
        out.push_str("    ");
        self.ink(out, Ink::Dim, &column.name);
        out.push_str(": ");
        if let Some(old) = &column.old {
            self.cell(out, old);
        }
        if let (Some(_), Some(_)) = (&column.old, &column.new) {
            self.ink(out, Ink::Yellow, " -> ");
        }
        if let Some(new) = &column.new {
            self.cell(out, new);
        }
        out.push('\n');
    }

    fn cell(self, out: &mut String, cell: &Cell) {
        match cell {
            Cell::Null => self.ink(out, Ink::Dim, "null"),
            Cell::Unsent => self.ink(out, Ink::Dim, "(unsent)"),
            Cell::Value(value) => {
                let end = value.char_indices().nth(SHOWN_CHARS).map_or(value.len(), |(end, _)| end);
                let (shown, rest) = value.split_at(end);
                write_safe(out, shown);
                if !rest.is_empty() {
                    self.ink(out, Ink::Dim, &format!("… {} more", rest.chars().count()));
                }
            }
        }
    }

    fn ink(self, out: &mut String, ink: Ink, text: &str) {
        if self.colour {
            let _ = write!(out, "\x1b[{}m", ink as u8);
            write_safe(out, text);
            out.push_str("\x1b[0m");
        } else {
            write_safe(out, text);
        }
    }
}

/// Appends text without characters that would make a terminal do something, or a line two.
fn write_safe(out: &mut String, text: &str) {
    for char in text.chars() {
        if char.is_control() {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
}
