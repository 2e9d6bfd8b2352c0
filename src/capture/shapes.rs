//! The shapes of tables: what the server last said of each.
//!
//! The server sends a shape again only when it may have changed, and counts what it sent, whether we have used it yet
//! or not. A streamed transaction is read when it commits, and may hold a shape that is older than what has come since
//! outside of it: a savepoint that altered the table was rolled back, or its schema was renamed. So a transaction that
//! is replayed has shapes of its own, and at its end leaves behind only those that are still the last to have arrived.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::change::TableShape;

/// When a shape arrived, counted over all that arrived on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Arrival(u64);

#[derive(Debug)]
struct Known {
    arrival: Arrival,
    shape: Arc<TableShape>,
}

/// All shapes that one connection has sent.
#[derive(Debug, Default)]
pub struct Shapes {
    arrived: u64,
    known: HashMap<u32, Known>,
    replay: Option<Replay>,
}

/// A streamed transaction that is replayed.
#[derive(Debug)]
struct Replay {
    /// Of its shapes that have not been read yet.
    arrivals: VecDeque<Arrival>,
    known: HashMap<u32, Known>,
}

impl Shapes {
    /// A shape has arrived.
    pub fn arrived(&mut self) -> Arrival {
        self.arrived += 1;
        Arrival(self.arrived)
    }

    /// A shape is read: now, or as the next of the transaction that is replayed.
    pub fn read(&mut self) -> Arrival {
        match &mut self.replay {
            Some(replay) => replay.arrivals.pop_front().unwrap_or_default(),
            None => self.arrived(),
        }
    }

    /// What the shape that arrived then says, for what follows.
    pub fn set(&mut self, arrival: Arrival, shape: Arc<TableShape>) {
        let known = self.replay.as_mut().map_or(&mut self.known, |replay| &mut replay.known);
        known.insert(shape.oid, Known { arrival, shape });
    }

    /// A table's shape is another by now than when it arrived.
    pub fn renew(&mut self, shape: Arc<TableShape>) {
        if let Some(known) = self.known.get_mut(&shape.oid) {
            known.shape = shape;
        }
    }

    /// All shapes, but for those of a transaction that is replayed.
    pub fn all(&self) -> impl Iterator<Item = &Arc<TableShape>> {
        self.known.values().map(|known| &known.shape)
    }

    /// A table's shape.
    pub fn get(&self, oid: u32) -> Option<&Arc<TableShape>> {
        let known = self.replay.as_ref().map_or(&self.known, |replay| &replay.known);
        known.get(&oid).map(|known| &known.shape)
    }

    /// The shape that was read last, if it is still the last that has arrived.
    pub fn newest(&self) -> Option<&Arc<TableShape>> {
        let known = self.replay.as_ref().map_or(&self.known, |replay| &replay.known);
        known.values().max_by_key(|known| known.arrival).map(|known| &known.shape)
    }

    /// A streamed transaction is read from here on, whose shapes arrived then.
    pub fn begin_replay(&mut self, arrivals: VecDeque<Arrival>) {
        self.replay = Some(Replay { arrivals, known: HashMap::new() });
    }

    /// What is replayed has been read, if anything is.
    pub fn end_replay(&mut self) -> bool {
        let Some(replay) = self.replay.take() else { return false };
        for (oid, replayed) in replay.known {
            if self.known.get(&oid).is_none_or(|known| known.arrival < replayed.arrival) {
                self.known.insert(oid, replayed);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ReplicaIdentity;

    fn shape(name: &str) -> Arc<TableShape> {
        Arc::new(TableShape {
            oid: 1,
            schema: "public".to_owned(),
            name: name.to_owned(),
            identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            key: Vec::new(),
        })
    }

    fn name(shapes: &Shapes) -> Option<&str> {
        shapes.get(1).map(|shape| shape.name.as_str())
    }

    #[test]
    fn a_replayed_shape_holds_for_its_transaction_and_afterwards_only_if_none_has_come_since() {
        for comes_since in [false, true] {
            let mut shapes = Shapes::default();
            let streamed = shapes.arrived();
            if comes_since {
                let arrival = shapes.read();
                shapes.set(arrival, shape("newer"));
            }
            shapes.begin_replay(VecDeque::from([streamed]));
            assert_eq!(name(&shapes), None, "the server sends each streamed transaction its own shapes");
            let arrival = shapes.read();
            shapes.set(arrival, shape("streamed"));
            assert_eq!(name(&shapes), Some("streamed"));
            shapes.end_replay();
            assert_eq!(name(&shapes), Some(if comes_since { "newer" } else { "streamed" }));
        }
    }
}
