//! Which side of a key another one lies on. Only the server knows the order of its keys: types, collations, locales.

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use crate::postgres::sql::{SqlError, quoted};

/// How many questions are asked at once.
const AT_ONCE: usize = 1000;

/// Whether `key` lies behind `bound`, both in PostgreSQL's text form, column by column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The key.
    pub key: Vec<String>,
    /// What it is compared with.
    pub bound: Vec<String>,
}

/// Asks about keys of a table, which are these columns. `None` when the table has no such columns any more, or columns of
/// types that do not take the keys.
///
/// # Errors
/// The server cannot be asked.
pub async fn are_behind(
    client: &Client,
    oid: u32,
    columns: &[String],
    questions: &[Question],
) -> Result<Option<Vec<bool>>, SqlError> {
    let failed = |error| SqlError::new("compare keys", error);
    // Without its length, so that a cast cuts nothing off; and below domains, which may refuse what they once took.
    const SQL: &str = "
        WITH RECURSIVE below(domain, type) AS (
            SELECT atttypid, atttypid FROM pg_attribute WHERE attrelid = $1 AND attname = ANY($2)
          UNION
            SELECT b.domain, t.typbasetype FROM below b JOIN pg_type t ON t.oid = b.type AND t.typtype = 'd')
        SELECT format_type(b.type, -1), n.nspname, c.collname
        FROM unnest($2::text[]) WITH ORDINALITY AS k(name, number)
        JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = k.name AND NOT a.attisdropped
        JOIN below b ON b.domain = a.atttypid
             AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = b.type AND t.typtype = 'd')
        LEFT JOIN pg_collation c ON c.oid = a.attcollation
        LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
        ORDER BY k.number";
    let mut types = Vec::new();
    for row in client.query(SQL, &[&oid, &columns]).await.map_err(failed)? {
        let (name, schema, collation) = (
            row.try_get::<_, String>(0).map_err(failed)?,
            row.try_get::<_, Option<String>>(1).map_err(failed)?,
            row.try_get::<_, Option<String>>(2).map_err(failed)?,
        );
        let collate = schema.zip(collation);
        let collate = collate.map(|(schema, name)| format!(" COLLATE {}.{}", quoted(&schema), quoted(&name)));
        types.push(format!("::{name}{}", collate.unwrap_or_default()));
    }
    if types.len() != columns.len() || types.is_empty() {
        return Ok(None);
    }
    let mut answers = Vec::with_capacity(questions.len());
    for questions in questions.chunks(AT_ONCE) {
        let mut behind = vec![false; questions.len()];
        let answered = match client.query(&statement(&types, questions), &[]).await {
            Err(error) if error.code().is_some_and(|state| is_of_the_types(state.code())) => return Ok(None),
            answered => answered.map_err(failed)?,
        };
        for row in answered {
            let number: i32 = row.try_get(0).map_err(failed)?;
            if let Some(behind) = usize::try_from(number).ok().and_then(|number| behind.get_mut(number)) {
                *behind = true;
            }
        }
        answers.append(&mut behind);
    }
    Ok(Some(answers))
}

/// Whether the server could not cast a key: classes "data exception" and "syntax error or access rule violation".
fn is_of_the_types(state: &str) -> bool {
    state.starts_with("22") || state.starts_with("42")
}

/// The statement that gives the numbers of the questions whose answer is yes. Records are compared as the types' indexes do
/// by default, without a search for operators.
fn statement(types: &[String], questions: &[Question]) -> String {
    let names =
        |prefix: &str| -> String { (0..types.len()).map(|column| format!(", {prefix}{column}")).collect() };
    let row = |prefix: &str| -> String {
        let casts = types.iter().enumerate().map(|(column, cast)| format!("q.{prefix}{column}{cast}"));
        casts.collect::<Vec<_>>().join(", ")
    };
    let values = questions.iter().enumerate().map(|(number, question)| {
        let texts = question.key.iter().chain(&question.bound);
        let texts: String = texts.map(|text| format!(", {}::text", escape_literal(text))).collect();
        format!("({number}{texts})")
    });
    format!(
        "SELECT q.number FROM (VALUES {}) AS q(number{}{}) WHERE ROW({})::record > ROW({})::record",
        values.collect::<Vec<_>>().join(", "),
        names("k"),
        names("b"),
        row("k"),
        row("b"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_a_literal_of_its_columns_type() {
        let question = Question { key: vec!["1".into(), "o'k".into()], bound: vec!["2".into(), "\\".into()] };
        let types = ["::integer".to_owned(), "::text COLLATE \"pg_catalog\".\"C\"".to_owned()];
        assert_eq!(
            statement(&types, &[question]),
            "SELECT q.number FROM (VALUES (0, '1'::text, 'o''k'::text, '2'::text,  E'\\\\'::text)) \
             AS q(number, k0, k1, b0, b1) WHERE ROW(q.k0::integer, q.k1::text COLLATE \"pg_catalog\".\"C\")::record \
             > ROW(q.b0::integer, q.b1::text COLLATE \"pg_catalog\".\"C\")::record"
        );
    }
}
