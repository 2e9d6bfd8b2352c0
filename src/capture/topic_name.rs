//! Names of topics in layout `table`: `<output>.<schema>.<table>`.
//!
//! Different tables have different topics, whatever their names:
//!
//! * A byte that Kafka does not allow in a name, and a dot, becomes `_x` and two hexadecimal digits. An underscore that
//!   would read as the beginning of that becomes `_x5F`, so that every name can be read back.
//! * A name that would be too long is cut and ends with two dots and a hash. No other name has two dots in a row.
//! * An output's other topics, such as `<output>.events`, have one dot, these have two and more.
//!
//! Two tables share a topic only if their names are too long and have the same 128 bits of SHA-256; both would then be
//! captured, into that one topic.

use sha2::{Digest, Sha256};

use crate::log::topics::MAX_NAME;

/// Bytes of the hash that ends a long name.
const HASH: usize = 16;

/// The topic of a table.
pub fn of_table(output: &str, schema: &str, table: &str) -> String {
    let mut name = format!("{output}.");
    escape(&mut name, schema);
    name.push('.');
    escape(&mut name, table);
    if name.len() > MAX_NAME {
        // No name in PostgreSQL has a zero byte.
        let hash = Sha256::new().chain_update(schema).chain_update([0]).chain_update(table).finalize();
        name.truncate(MAX_NAME - 2 - 2 * HASH);
        name.push_str("..");
        name.extend(hash.iter().take(HASH).map(|byte| format!("{byte:02x}")));
    }
    name
}

/// Whether it is the topic of a table in this output.
pub fn is_of_table(output: &str, topic: &str) -> bool {
    let rest = topic.strip_prefix(output).and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|rest| rest.contains('.'))
}

fn escape(name: &mut String, part: &str) {
    let mut rest = part.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        match byte {
            b'_' if !reads_as_escape(behind) => name.push('_'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("_x{byte:02X}")),
        }
        rest = behind;
    }
}

/// Whether what stands behind an underscore would make it an escape.
fn reads_as_escape(behind: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    matches!(behind, [b'x', first, second, ..] if is_digit(first) && is_digit(second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::topics::is_topic_name;
    use proptest::prelude::*;

    #[test]
    fn an_ordinary_table_has_an_ordinary_topic_and_odd_names_can_be_told() {
        for (schema, table, name) in [
            ("public", "orders", "shop.public.orders"),
            ("public", "Order Items", "shop.public.Order_x20Items"),
            ("a.b", "c", "shop.a_x2Eb.c"),
            ("a", "b.c", "shop.a.b_x2Ec"),
            ("public", "größe", "shop.public.gr_xC3_xB6_xC3_x9Fe"),
            ("public", "a_x2Eb", "shop.public.a_x5Fx2Eb"),
            ("public", "a_x2eb_x", "shop.public.a_x2eb_x"),
            ("events", "x", "shop.events.x"),
        ] {
            assert_eq!(of_table("shop", schema, table), name);
            assert!(is_of_table("shop", name) && !is_of_table("sho", name));
        }
        assert!(!is_of_table("shop", "shop") && !is_of_table("shop", "shop.events"));
    }

    /// Schema and table of a name that has no hash.
    fn read_back(name: &str) -> (String, String) {
        let part = |text: &str| {
            let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
            while let Some((&byte, behind)) = rest.split_first() {
                rest = behind;
                if byte == b'_' && reads_as_escape(behind) {
                    let digits = std::str::from_utf8(&behind[1..3]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &behind[3..];
                } else {
                    bytes.push(byte);
                }
            }
            String::from_utf8(bytes).unwrap()
        };
        let (_, table) = name.split_once('.').unwrap();
        let (schema, table) = table.split_once('.').unwrap();
        (part(schema), part(table))
    }

    /// Names that PostgreSQL takes: 1 to 63 bytes without a zero.
    fn identifier() -> impl Strategy<Value = String> {
        let made_to_confuse = "[_x0-9A-F.a]{1,63}";
        let any = "[^\0]{1,63}".prop_map(|mut name| {
            while name.len() > 63 {
                name.pop();
            }
            name
        });
        prop_oneof![made_to_confuse, any]
    }

    proptest! {
        #[test]
        fn every_table_has_a_name_that_kafka_allows_and_no_other_table_has(
            output in "[a-z0-9_]{1,40}", first in (identifier(), identifier()), second in (identifier(), identifier()),
        ) {
            let name = of_table(&output, &first.0, &first.1);
            prop_assert!(is_topic_name(&name) && name.starts_with(&format!("{output}.")), "{}", name);
            prop_assert!(is_of_table(&output, &name), "{} could be a topic of another kind", name);
            if name.contains("..") {
                prop_assert_eq!(name.len(), MAX_NAME);
            } else {
                prop_assert_eq!(read_back(&name), first.clone());
            }
            prop_assert_eq!(name == of_table(&output, &second.0, &second.1), first == second);
        }
    }

    #[test]
    fn long_names_that_differ_only_at_their_end_have_different_topics() {
        let (schema, table) = ("ä".repeat(31), "ö".repeat(30));
        let name = |table: &str| of_table("shop", &schema, table);
        assert_ne!(name(&format!("{table}a")), name(&format!("{table}b")));
        assert!(name(&table).contains(".."), "this test is about names that are cut");
    }
}
