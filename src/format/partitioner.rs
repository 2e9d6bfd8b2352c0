//! Which partition a record goes to.
//!
//! The hash is that of Kafka's Java client, so that records meet those that other producers wrote under the same keys.

use serde::{Deserialize, Serialize};

/// How a topic's records are spread over its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionBy {
    /// One partition: all changes in commit order
    None,
    /// A table's changes stay together
    Table,
    /// A row's changes stay together, by the key as the Java client hashes it; without a key by table
    Key,
}

impl PartitionBy {
    /// The partition of a record, below `partitions`. `table_hash` comes from [`table_hash`].
    #[inline]
    pub fn partition(self, table_hash: u32, key: Option<&[u8]>, partitions: u32) -> u32 {
        let hash = match (self, key) {
            (PartitionBy::None, _) => 0,
            (PartitionBy::Key, Some(key)) if partitions > 1 => to_positive(murmur2(key)),
            (PartitionBy::Key | PartitionBy::Table, _) => table_hash,
        };
        hash % partitions.max(1)
    }
}

/// The hash by which a table's records are spread: that of `schema.table`, so that a table made anew keeps its place.
pub fn table_hash(schema: &str, table: &str) -> u32 {
    to_positive(murmur2(format!("{schema}.{table}").as_bytes()))
}

/// Kafka's `Utils.toPositive`.
pub fn to_positive(hash: i32) -> u32 {
    (hash & 0x7FFF_FFFF) as u32
}

/// Kafka's `Utils.murmur2`.
#[inline]
pub fn murmur2(bytes: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut hash = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let Ok(word) = word.try_into() else { break };
        let mut mixed = u32::from_le_bytes(word).wrapping_mul(M);
        mixed ^= mixed >> R;
        hash = hash.wrapping_mul(M) ^ mixed.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    hash as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn murmur2_gives_the_hashes_of_the_java_client() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn a_record_without_key_goes_by_its_table() {
        let table = table_hash("public", "orders");
        let by_table = PartitionBy::Table.partition(table, Some(b"{\"id\":1}"), 7);
        assert_eq!(PartitionBy::Key.partition(table, None, 7), by_table);
        assert_eq!(PartitionBy::None.partition(table, Some(b"{\"id\":1}"), 7), 0);
    }

    proptest! {
        #[test]
        fn the_partition_exists(
            table in 0..=i32::MAX as u32, key in any::<Option<Vec<u8>>>(), partitions in 1_u32..2000,
        ) {
            for by in [PartitionBy::None, PartitionBy::Table, PartitionBy::Key] {
                prop_assert!(by.partition(table, key.as_deref(), partitions) < partitions);
            }
        }
    }
}
