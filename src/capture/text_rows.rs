//! Rows that have come in binary form, given to the outputs as rows in text form.
//!
//! What is the same in both forms stays where it is, however large. The text of everything else is made beside the row;
//! only a large `bytea` is left to the formats as it is: its text would be twice as large, and they want its bytes.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use crate::change::{Before, Cell, CellKind, Row, TableShape, Value};
use crate::postgres::binary;

/// A `bytea` from this size on is left as it is. None of a key is as large.
const LARGE: usize = 8 << 10;
/// What is kept from row to row has at most about this size, in bytes.
const MAX_KEPT: usize = 1 << 20;

/// A value whose text form only the server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its type, which is no domain.
    pub type_oid: u32,
    /// Its binary form.
    pub value: Vec<u8>,
}

/// Makes text rows of binary ones.
#[derive(Debug, Default)]
pub struct TextRows {
    answers: Answers,
    /// The text that has been made for a change.
    text: Vec<u8>,
    old: Vec<Cell>,
    new: Vec<Cell>,
}

/// What the server has answered, by type and value: a row is read again once its questions have been answered, and the
/// values of an enum, say, come again and again.
#[derive(Debug, Default)]
struct Answers {
    texts: HashMap<u32, HashMap<Vec<u8>, Vec<u8>>>,
    size: usize,
}

impl Answers {
    fn get(&self, type_oid: u32, value: &[u8]) -> Option<&Vec<u8>> {
        self.texts.get(&type_oid)?.get(value)
    }
}

impl TextRows {
    /// Keeps the server's answer.
    pub fn answer(&mut self, question: Question, text: Vec<u8>) {
        self.answers.size += question.value.len() + text.len();
        self.answers.texts.entry(question.type_oid).or_default().insert(question.value, text);
    }

    /// The rows of a change in text form, or what has to be answered first.
    ///
    /// # Errors
    /// The questions.
    pub fn render<'a>(
        &'a mut self,
        table: &TableShape,
        before: Option<Before<'a>>,
        after: Option<Row<'a>>,
    ) -> Result<(Option<Before<'a>>, Option<Row<'a>>), Vec<Question>> {
        let TextRows { answers, text, old, new } = self;
        text.clear();
        text.shrink_to(MAX_KEPT);
        let mut questions = Vec::new();
        let mut render = |row: Option<Row<'_>>, cells: &mut Vec<Cell>| {
            cells.clear();
            let Some(row) = row else { return };
            for (index, cell) in row.cells().iter().enumerate() {
                let (Value::Binary(value), Some(column)) = (row.get(index), table.columns.get(index)) else {
                    cells.push(*cell);
                    continue;
                };
                match text_cell(text, answers, *cell, column.base_oid, value) {
                    Some(cell) => cells.push(cell),
                    None => questions.push(Question { type_oid: column.base_oid, value: value.to_vec() }),
                }
            }
        };
        render(before.map(|(Before::Key(row) | Before::Full(row))| row), old);
        render(after, new);
        if !questions.is_empty() {
            return Err(questions);
        }
        if answers.size > MAX_KEPT {
            *answers = Answers::default();
        }
        let before = before.map(|before| match before {
            Before::Key(row) => Before::Key(row.with_made_text(text, old)),
            Before::Full(row) => Before::Full(row.with_made_text(text, old)),
        });
        Ok((before, after.map(|row| row.with_made_text(text, new))))
    }
}

/// The cell of a value's text form, which is made in `text` if it is not in the row; `None` when the server has to be
/// asked.
fn text_cell(text: &mut Vec<u8>, answers: &Answers, cell: Cell, type_oid: u32, value: &[u8]) -> Option<Cell> {
    if binary::is_text(type_oid) {
        return Some(Cell { kind: CellKind::Text, ..cell });
    }
    if type_oid == Type::BYTEA.oid() && value.len() >= LARGE {
        return Some(cell);
    }
    if type_oid == Type::JSONB.oid() && value.first() == Some(&1) {
        // The text follows the version.
        return Some(Cell { kind: CellKind::Text, start: cell.start + 1, len: cell.len - 1 });
    }
    let start = text.len();
    if binary::write_text(text, type_oid, value).is_none() {
        text.truncate(start);
        text.extend_from_slice(answers.get(type_oid, value)?);
    }
    let len = u32::try_from(text.len() - start).ok()?;
    Some(Cell { kind: CellKind::MadeText, start: u32::try_from(start).ok()?, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, ReplicaIdentity};

    #[test]
    fn a_row_becomes_text_once_its_questions_are_answered() {
        let enum_oid = 16_500;
        let column = |type_oid: u32| Column {
            name: "c".to_owned(),
            type_oid,
            base_oid: type_oid,
            type_modifier: -1,
            form: crate::change::TypeForm::Plain,
            identity: true,
        };
        let (bytea, jsonb) = (Type::BYTEA.oid(), Type::JSONB.oid());
        let types = [Type::INT2.oid(), Type::TEXT.oid(), enum_oid, bytea, jsonb, bytea];
        let table = TableShape {
            oid: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            identity: ReplicaIdentity::Full,
            columns: types.map(column).to_vec(),
            key: Vec::new(),
        };
        let mut data = b"\0\x07texthappy\xFF\x01{}".to_vec();
        data.extend_from_slice(&[7; LARGE]);
        let cells = [(0, 2), (2, 4), (6, 5), (11, 1), (12, 3), (15, LARGE as u32)];
        let cells = cells.map(|(start, len)| Cell { kind: CellKind::Binary, start, len });
        let row = Row::new(&data, &cells);
        let mut rows = TextRows::default();
        let render = |rows: &mut TextRows| {
            let values = |row: Row<'_>| row.values().map(|value| format!("{value:?}")).collect::<Vec<_>>();
            rows.render(&table, Some(Before::Full(row)), Some(row)).map(|(before, after)| {
                let Some(Before::Full(before)) = before else { panic!("no old row") };
                (values(before), values(after.unwrap()))
            })
        };
        let questions = render(&mut rows).unwrap_err();
        assert_eq!(questions[0], Question { type_oid: enum_oid, value: b"happy".to_vec() });
        for question in questions {
            rows.answer(question, b"joyful".to_vec());
        }
        let (before, after) = render(&mut rows).unwrap();
        assert_eq!(before, after);
        let text = |bytes: &[u8]| format!("{:?}", Value::Text(bytes));
        let large = format!("{:?}", Value::Binary(&[7; LARGE]));
        let expected = [text(b"7"), text(b"text"), text(b"joyful"), text(b"\\xff"), text(b"{}"), large];
        assert_eq!(after, expected);
    }
}
