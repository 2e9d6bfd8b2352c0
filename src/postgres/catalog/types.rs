//! What the columns' types are: what lies below domains, what arrays and composites are made of.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use crate::change::{Attribute, DataType, ExtensionType, TypeForm};
use crate::postgres::sql::SqlError;

/// Types that a type may be nested in: with three messages for each, readers of protobuf take no more than 100. What lies
/// deeper is text.
const MAX_DEPTH: usize = 24;
/// Types, elements and attributes that are followed for one table. What is beyond is text.
const MAX_NODES: usize = 20_000;

/// `reached` are the types $1, and all that they are made of.
const REACHED: &str = "
    WITH RECURSIVE reached(oid) AS (
        SELECT unnest($1::oid[])
      UNION
        SELECT part.oid
        FROM reached r JOIN pg_type t ON t.oid = r.oid,
             LATERAL (SELECT t.typbasetype WHERE t.typtype = 'd'
                    UNION ALL
                      SELECT t.typelem WHERE t.typelem <> 0
                    UNION ALL
                      SELECT a.atttypid FROM pg_attribute a
                      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                        AND NOT a.attisdropped) part(oid))";

/// Reads those of these types that still exist.
pub async fn data_types(client: &Client, types: &[u32]) -> Result<HashMap<u32, DataType>, SqlError> {
    // How few are reached the server cannot know: with `OFFSET 0` it looks each of them up, and reads not all that there are.
    const SQL: &str = "
        SELECT t.oid, t.typtype, t.typname::text, t.typbasetype, t.typtypmod, e.oid, e.typdelim,
               ARRAY(SELECT a.attname::text FROM pg_attribute a
                     WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
               ARRAY(SELECT a.atttypid FROM pg_attribute a
                     WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
               ARRAY(SELECT a.atttypmod FROM pg_attribute a
                     WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
        FROM reached r CROSS JOIN LATERAL (SELECT * FROM pg_type t WHERE t.oid = r.oid OFFSET 0) t
             LEFT JOIN LATERAL (SELECT * FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid OFFSET 0) e ON true";
    let failed = |error| SqlError::new("read the types of columns", error);
    let rows = client.query(&format!("{REACHED} {SQL}"), &[&types]).await.map_err(failed)?;
    let rows = rows.iter().map(read).collect::<Result<HashMap<_, _>, _>>().map_err(failed)?;
    let money_decimals = match rows.contains_key(&Type::MONEY.oid()) {
        true => money_decimals(client).await?,
        false => None,
    };
    let mut builder = Builder { rows, money_decimals, nodes: MAX_NODES };
    Ok(types.iter().filter_map(|&oid| Some((oid, builder.build(oid, 0)?))).collect())
}

/// A number that becomes another when the composite types among these, and among all that they are made of, do.
///
/// # Errors
/// When the catalog cannot be asked.
pub async fn composites_stamp(client: &Client, types: &[u32]) -> Result<i64, SqlError> {
    const SQL: &str = "
        SELECT coalesce(hashtextextended(string_agg(
                   concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod), ','
                   ORDER BY a.attrelid, a.attnum), 0), 0)
        FROM reached r JOIN pg_type t ON t.oid = r.oid AND t.typtype = 'c'
             JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped";
    let failed = |error| SqlError::new("see whether types are as they were", error);
    let row = client.query_one(&format!("{REACHED} {SQL}"), &[&types]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}

/// Decimals of `money` under the `lc_monetary` that sessions of our role begin with; `None` where the answer is not
/// understood. Our own sessions have `C`, of which the text tells all digits, but not where the point belongs.
async fn money_decimals(client: &Client) -> Result<Option<u8>, SqlError> {
    // Money is sent as a number of smallest units, of which one whole has a power of ten.
    const SQL: &str = "
        SET LOCAL lc_monetary TO DEFAULT;
        SELECT ltrim(encode(cash_send(1::money), 'hex'), '0');
        SET LOCAL lc_monetary TO 'C'";
    let failed = |error| SqlError::new("learn how many decimals money has", error);
    let answer = client.simple_query(SQL).await.map_err(failed)?;
    let whole = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => u64::from_str_radix(row.get(0)?, 16).ok(),
        _ => None,
    });
    Ok(whole.and_then(u64::checked_ilog10).and_then(|decimals| decimals.try_into().ok()))
}

/// A row of `pg_type`.
#[derive(Debug)]
enum TypeRow {
    Domain { base: u32, type_modifier: i32 },
    Array { element: u32, delimiter: u8 },
    Composite(Vec<(String, u32, i32)>),
    Base { name: String },
    Other,
}

fn read(row: &Row) -> Result<(u32, TypeRow), tokio_postgres::Error> {
    let kind = row.try_get::<_, i8>(1)? as u8;
    let element: Option<u32> = row.try_get(5)?;
    let described = match (kind, element) {
        (b'd', _) => TypeRow::Domain { base: row.try_get(3)?, type_modifier: row.try_get(4)? },
        (b'b', Some(element)) => TypeRow::Array {
            element,
            delimiter: row.try_get::<_, Option<i8>>(6)?.unwrap_or(b',' as i8) as u8,
        },
        (b'b', None) => TypeRow::Base { name: row.try_get(2)? },
        (b'c', _) => {
            let names: Vec<String> = row.try_get(7)?;
            let types: Vec<u32> = row.try_get(8)?;
            let modifiers: Vec<i32> = row.try_get(9)?;
            let attributes = names.into_iter().zip(types).zip(modifiers);
            TypeRow::Composite(attributes.map(|((name, oid), modifier)| (name, oid, modifier)).collect())
        }
        _ => TypeRow::Other,
    };
    Ok((row.try_get(0)?, described))
}

struct Builder {
    rows: HashMap<u32, TypeRow>,
    money_decimals: Option<u8>,
    /// How many may still be followed.
    nodes: usize,
}

impl Builder {
    /// The type of this OID; `None` where the catalog does not know it, or it lies too deep.
    fn build(&mut self, oid: u32, depth: usize) -> Option<DataType> {
        self.nodes = self.nodes.checked_sub(1).filter(|_| depth < MAX_DEPTH)?;
        let form = match self.rows.get(&oid)? {
            &TypeRow::Domain { base, type_modifier } => {
                let base = self.build_or_plain(base, depth + 1);
                let type_modifier = if type_modifier == -1 { base.type_modifier } else { type_modifier };
                return Some(DataType { type_modifier, ..base });
            }
            &TypeRow::Array { element, delimiter } => TypeForm::Array {
                element_oid: element,
                element: self.build_or_plain(element, depth + 1).into(),
                delimiter,
            },
            TypeRow::Composite(attributes) => {
                let attributes = attributes.clone().into_iter().map(|(name, type_oid, modifier)| {
                    let mut data_type = self.build_or_plain(type_oid, depth + 1);
                    if modifier != -1 {
                        data_type.type_modifier = modifier;
                    }
                    Attribute { name, type_oid, data_type }
                });
                TypeForm::Composite(attributes.collect())
            }
            TypeRow::Base { .. } if oid == Type::MONEY.oid() => {
                self.money_decimals.map_or(TypeForm::Plain, |decimals| TypeForm::Money { decimals })
            }
            TypeRow::Base { name } => ExtensionType::named(name).map_or(TypeForm::Plain, TypeForm::Extension),
            TypeRow::Other => TypeForm::Plain,
        };
        Some(DataType { oid, type_modifier: -1, form })
    }

    fn build_or_plain(&mut self, oid: u32, depth: usize) -> DataType {
        let plain = DataType { oid, type_modifier: -1, form: TypeForm::Plain };
        self.build(oid, depth).unwrap_or(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(oid: u32) -> (String, u32, i32) {
        (format!("a{oid}"), oid, -1)
    }

    /// Types that double with each step, as a user may declare them.
    #[test]
    fn what_is_too_large_or_too_deep_is_left_as_text() {
        let mut rows = HashMap::from([(1, TypeRow::Other)]);
        for oid in 2..100 {
            rows.insert(oid, TypeRow::Composite(vec![attribute(oid - 1), attribute(oid - 1)]));
        }
        let mut builder = Builder { rows, money_decimals: None, nodes: MAX_NODES };
        let built = builder.build(99, 0).unwrap();
        assert_eq!(builder.nodes, 0);
        let mut depth = 0;
        let mut next = &built;
        while let TypeForm::Composite(attributes) = &next.form {
            depth += 1;
            next = &attributes[0].data_type;
        }
        assert_eq!(depth, MAX_DEPTH);
        assert_eq!(next.form, TypeForm::Plain);
    }

    #[test]
    fn the_outermost_domain_with_a_modifier_decides() {
        let rows = HashMap::from([
            (1, TypeRow::Other),
            (2, TypeRow::Domain { base: 1, type_modifier: 7 }),
            (3, TypeRow::Domain { base: 2, type_modifier: -1 }),
            (4, TypeRow::Domain { base: 3, type_modifier: 8 }),
        ]);
        let mut builder = Builder { rows, money_decimals: None, nodes: MAX_NODES };
        let modifier = |oid, builder: &mut Builder| {
            let built = builder.build(oid, 0).unwrap();
            assert_eq!(built.oid, 1);
            built.type_modifier
        };
        assert_eq!((modifier(3, &mut builder), modifier(4, &mut builder)), (7, 8));
        assert_eq!(builder.build(5, 0), None);
    }
}
