//! What is worked out once for a table, by its shape.

use std::collections::HashMap;

use crate::change::TableShape;

/// A table, prepared by a format.
pub(super) trait Prepared {
    /// Prepares a table of this shape.
    fn new(shape: &TableShape) -> Self;

    /// The shape that this was made from.
    fn shape(&self) -> &TableShape;
}

/// Prepared tables by OID. Rows come in runs of one table, so the last one is looked at first.
#[derive(Debug)]
pub(super) struct Tables<T> {
    by_oid: HashMap<u32, usize>,
    tables: Vec<T>,
    last: usize,
}

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Tables { by_oid: HashMap::new(), tables: Vec::new(), last: 0 }
    }
}

impl<T: Prepared> Tables<T> {
    /// The prepared table, made anew when its shape is another than before.
    pub(super) fn get(&mut self, shape: &TableShape) -> &T {
        if !self.tables.get(self.last).is_some_and(|table| table.shape() == shape) {
            self.last = self.find(shape);
        }
        &self.tables[self.last]
    }

    fn find(&mut self, shape: &TableShape) -> usize {
        let index = *self.by_oid.entry(shape.oid).or_insert(self.tables.len());
        match self.tables.get_mut(index) {
            Some(table) if table.shape() == shape => {}
            Some(table) => *table = T::new(shape),
            None => self.tables.push(T::new(shape)),
        }
        index
    }
}
