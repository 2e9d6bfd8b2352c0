//! Fetch sessions (KIP-227): the broker remembers what a client fetches, and is told only what changes.
//!
//! ```text
//!  epoch 0   a full request        session made, answered with its id
//!  epoch 1…  incremental requests  partitions added, changed, forgotten; each epoch once, 1 comes after the largest
//!  epoch -1  a full request        session closed, none made
//! ```
//!
//! A session belongs to the broker, whichever connection speaks of it. Requests with the epoch that is due find it and
//! move the epoch on, so a request that was sent twice, or an old one that comes late, changes nothing. At most one
//! request of a session waits: the next one, and the session's end, end it.
//!
//! The cache is bounded. When it is full, a session that nobody has used for a while goes first; otherwise the smallest
//! of those that are no longer young, if the new one is larger, as it saves more. A client for which there is no room is
//! answered without a session, and goes on with full requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::table::{TOPIC_IDS, Table, Told, Wanted, wanted};

/// Sessions at a time, Kafka's `max.incremental.fetch.session.cache.slots`.
const SLOTS: usize = 1_000;
/// Partitions of one session.
const MAX_PARTITIONS: usize = 20_000;
/// Memory for the partitions of all sessions, about.
const MAX_BYTES: usize = 64 << 20;
/// So long a session is young after it was made, and not abandoned after it was used.
const MIN_EVICTION: Duration = Duration::from_secs(120);

/// The epoch of a session that is no longer in the cache; no incremental request has it.
const ENDED: i32 = 0;

/// The fetch sessions of all clients.
#[derive(Debug)]
pub struct FetchSessions {
    slots: usize,
    cache: Mutex<Cache>,
}

impl Default for FetchSessions {
    fn default() -> Self {
        FetchSessions::with_slots(SLOTS)
    }
}

#[derive(Debug, Default)]
struct Cache {
    sessions: HashMap<i32, Cached>,
    bytes: usize,
}

/// A session, and what decides on its eviction.
#[derive(Debug)]
struct Cached {
    session: Arc<Session>,
    made: Instant,
    used: Instant,
    partitions: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Session {
    id: i32,
    /// Whether its topics are named by id.
    by_id: bool,
    state: Mutex<State>,
    /// Told when the epoch moves.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    /// The epoch of the next request, [`ENDED`] when there will be none.
    epoch: i32,
    table: Table,
}

/// What a request has to do with a session.
#[derive(Debug)]
pub enum Part {
    /// Nothing: its answer says all.
    None,
    /// Its answer says all, and makes a session if there is room.
    First {
        /// Whether its topics are named by id.
        by_id: bool,
        /// What it asks for.
        table: Table,
    },
    /// Its answer says what is new.
    Next(Turn),
}

/// An incremental request of a session.
#[derive(Debug)]
pub struct Turn {
    session: Arc<Session>,
    /// The epoch after this request's.
    next: i32,
}

impl FetchSessions {
    fn with_slots(slots: usize) -> FetchSessions {
        let sessions = FetchSessions { slots, cache: Mutex::default() };
        sessions.lock().count();
        sessions
    }

    /// Begins a request: what it fetches, and its part in a session.
    ///
    /// # Errors
    /// `FETCH_SESSION_ID_NOT_FOUND`, `INVALID_FETCH_SESSION_EPOCH`, `FETCH_SESSION_TOPIC_ID_ERROR`.
    pub fn begin(
        &self,
        now: Instant,
        version: i16,
        asked: &FetchRequest,
    ) -> Result<(Part, Vec<Wanted>), ResponseError> {
        let by_id = version >= TOPIC_IDS;
        if matches!(asked.session_epoch, 0 | -1) {
            // Whatever session a full request speaks of ends.
            self.lock().remove(asked.session_id);
            let wanted = wanted(version, &asked.topics);
            if asked.session_epoch == -1 {
                return Ok((Part::None, wanted));
            }
            let table = Table::new(wanted);
            let wanted = table.wanted();
            return Ok((Part::First { by_id, table }, wanted));
        }
        let session = self.lock().sessions.get(&asked.session_id).map(|cached| cached.session.clone());
        let session = session.ok_or(ResponseError::FetchSessionIdNotFound)?;
        let mut state = session.lock();
        if state.epoch != asked.session_epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        if session.by_id != by_id {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        state.table.update(version, &asked.topics, &asked.forgotten_topics_data);
        if state.table.len() == 0 {
            drop(state);
            self.lock().remove(session.id);
            return Ok((Part::None, wanted(version, &asked.topics)));
        }
        let next = following(state.epoch);
        session.move_to(&mut state, next);
        let wanted = state.table.wanted();
        let bytes = state.table.bytes();
        drop(state);
        // Without room the client begins anew, and is then not given a session.
        match self.lock().touch(session.id, now, wanted.len(), bytes) {
            true => Ok((Part::Next(Turn { session, next }), wanted)),
            false => Err(ResponseError::FetchSessionIdNotFound),
        }
    }

    /// Ends a full request that may have a session, with what its client is told of each partition: the session's id, or
    /// 0 without one.
    pub fn make(&self, now: Instant, by_id: bool, mut table: Table, told: &[Told]) -> i32 {
        table.tell(told);
        self.lock().insert(self.slots, now, by_id, table).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Turn {
    /// The session's id.
    pub fn session_id(&self) -> i32 {
        self.session.id
    }

    /// Waits until another request of the session begins, or the session ends. Each request has its own copy of what its
    /// session fetches, so a client could otherwise fill the memory with waiting ones, at a few bytes each.
    pub async fn overtaken(&self) {
        loop {
            let moved = self.session.moved.notified();
            if self.session.lock().epoch != self.next {
                return;
            }
            moved.await;
        }
    }

    /// Ends the request with what its client is told.
    ///
    /// # Errors
    /// `INVALID_FETCH_SESSION_EPOCH` when it was [overtaken](Self::overtaken).
    pub fn end(&self, told: &[Told]) -> Result<(), ResponseError> {
        let mut state = self.session.lock();
        if state.epoch != self.next {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        state.table.tell(told);
        Ok(())
    }
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn move_to(&self, state: &mut State, epoch: i32) {
        state.epoch = epoch;
        self.moved.notify_waiters();
    }
}

impl Cache {
    fn insert(&mut self, slots: usize, now: Instant, by_id: bool, table: Table) -> Option<i32> {
        let (partitions, bytes) = (table.len(), table.bytes());
        if partitions > MAX_PARTITIONS {
            return None;
        }
        while self.sessions.len() >= slots || self.bytes + bytes > MAX_BYTES {
            if !self.evict(now, partitions) {
                return None;
            }
        }
        let id = loop {
            let mut drawn = [0; 4];
            getrandom::fill(&mut drawn).ok()?;
            let id = i32::from_be_bytes(drawn) & i32::MAX;
            if id > 0 && !self.sessions.contains_key(&id) {
                break id;
            }
        };
        let session = Arc::new(Session {
            id,
            by_id,
            state: Mutex::new(State { epoch: 1, table }),
            moved: Notify::new(),
        });
        self.bytes += bytes;
        self.sessions.insert(id, Cached { session, made: now, used: now, partitions, bytes });
        self.count();
        Some(id)
    }

    /// Makes room for a session of so many partitions.
    fn evict(&mut self, now: Instant, partitions: usize) -> bool {
        let oldest = self.sessions.iter().min_by_key(|(id, cached)| (cached.used, **id));
        let Some((id, oldest)) = oldest.map(|(id, oldest)| (*id, oldest)) else { return false };
        if now.duration_since(oldest.used) > MIN_EVICTION {
            self.remove(id);
            return true;
        }
        let grown = self.sessions.iter().filter(|(_, cached)| cached.used - cached.made > MIN_EVICTION);
        let smallest = grown.map(|(id, cached)| (cached.partitions, *id)).min();
        match smallest {
            Some((size, id)) if partitions > size => {
                self.remove(id);
                true
            }
            _ => false,
        }
    }

    /// Notes that a session was used, and its size; `false` when it is gone, or has outgrown the room that there is.
    fn touch(&mut self, id: i32, now: Instant, partitions: usize, bytes: usize) -> bool {
        let Some(cached) = self.sessions.get_mut(&id) else { return false };
        let others = self.bytes - cached.bytes;
        if partitions > MAX_PARTITIONS || others + bytes > MAX_BYTES {
            self.remove(id);
            return false;
        }
        self.bytes = others + bytes;
        (cached.used, cached.partitions, cached.bytes) = (now, partitions, bytes);
        true
    }

    fn remove(&mut self, id: i32) {
        if let Some(cached) = self.sessions.remove(&id) {
            self.bytes -= cached.bytes;
            cached.session.move_to(&mut cached.session.lock(), ENDED);
            self.count();
        }
    }

    fn count(&self) {
        metrics::gauge!("millrace_kafka_fetch_sessions").set(self.sessions.len() as f64);
    }
}

/// Epochs of incremental requests run from 1 to the largest, and then from 1 again.
fn following(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests;
