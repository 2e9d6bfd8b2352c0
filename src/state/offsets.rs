//! `offsets.db`: the offsets that consumer groups have committed.
//!
//! ```text
//!  requests ──permit──► bounded queue ──► one writer thread ──► SQLite, one transaction for all that waits
//!                                              │ after COMMIT (fsynced)
//!                                              ├──► copy in memory, which all reads use
//!                                              └──► answers
//! ```
//!
//! A commit that was answered is in the file, fsynced (I6): a kill or a loss of power later does not take it back, as
//! far as the disk keeps what it confirmed. Writes take effect in the order in which they were queued; a caller that
//! first takes a [permit](OffsetStore::permit), then checks that a commit is allowed, then queues it without waiting,
//! has its commits in the order of its checks. What is not yet durable is not yet readable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{DataDir, StateError, data_dir, sqlite};
use crate::log::topics::TopicId;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE committed_offsets (
        group_id TEXT NOT NULL,
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        topic_id BLOB,
        committed_offset INTEGER NOT NULL,
        leader_epoch INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        commit_time INTEGER NOT NULL,
        PRIMARY KEY (group_id, topic, partition)
    ) WITHOUT ROWID;
    CREATE TABLE groups (
        group_id TEXT PRIMARY KEY,
        empty_since INTEGER
    ) WITHOUT ROWID;
"];

/// Requests that may wait for the writer; further ones wait for a permit.
const QUEUE: usize = 1024;
/// Partition commits that one transaction gathers at most, so that the first is not kept waiting for long.
const GATHERED: usize = 20_000;

/// Committed offsets of all groups together.
const MAX_ENTRIES: usize = 1_000_000;
/// Bytes of what consumers want to remember with all of them.
const MAX_METADATA_BYTES: usize = 64 << 20;

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next record that the group wants.
    pub offset: i64,
    /// Leader epoch of the last record consumed, or -1.
    pub leader_epoch: i32,
    /// Whatever the consumer wants to remember with it.
    pub metadata: Arc<str>,
    /// When it was committed, in milliseconds since 1970.
    pub commit_time: i64,
    /// The topic that it was committed for: one made anew under the same name is another.
    pub topic_id: Option<TopicId>,
}

/// A committed offset and the partition that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetEntry {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number in the topic.
    pub partition: i32,
    /// Its committed offset.
    pub committed: Committed,
}

/// Why offsets were not written. None of it was; a later try may succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OffsetError {
    /// The disk is full.
    #[error("no space left for {}; free some, commits resume by themselves", path.display())]
    NoSpace {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be written.
    #[error("cannot write {}: {detail}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The store has been closed.
    #[error("the offset store has been closed")]
    Stopped,
}

/// The committed offsets of all groups.
pub struct OffsetStore {
    path: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    memory: Arc<RwLock<Memory>>,
    max_entries: usize,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for OffsetStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OffsetStore({})", self.path.display())
    }
}

#[derive(Debug, Default)]
struct Memory {
    groups: HashMap<Arc<str>, GroupOffsets>,
    entries: usize,
    metadata_bytes: usize,
}

#[derive(Debug, Default)]
struct GroupOffsets {
    /// When its last member went, in milliseconds since 1970; `None` while it has members.
    empty_since: Option<i64>,
    topics: BTreeMap<Arc<str>, BTreeMap<i32, Committed>>,
}

struct Job {
    change: Change,
    answer: oneshot::Sender<Result<(), OffsetError>>,
}

enum Change {
    Commit { group: Arc<str>, has_members: bool, entries: Vec<OffsetEntry> },
    DeleteGroup { group: Arc<str> },
    DeletePartitions { group: Arc<str>, partitions: Vec<(Arc<str>, i32)> },
    Emptied { groups: Vec<(Arc<str>, Option<i64>)> },
    Expire { now: i64, retention: i64 },
    Close,
}

impl Change {
    fn weight(&self) -> usize {
        match self {
            Change::Commit { entries, .. } => entries.len(),
            _ => 1,
        }
    }

    /// Whether it looks at the copy in memory, which must therefore be up to date.
    fn stands_alone(&self) -> bool {
        matches!(self, Change::Expire { .. } | Change::Close)
    }
}

/// A place in the writer's queue.
pub struct OffsetPermit<'a>(mpsc::Permit<'a, Job>);

/// A write on its way: becomes `Ok` when it is durable. Dropping it does not take the write back.
pub struct OffsetWrite(oneshot::Receiver<Result<(), OffsetError>>);

impl Future for OffsetWrite {
    type Output = Result<(), OffsetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(OffsetError::Stopped)))
    }
}

impl OffsetPermit<'_> {
    /// Commits offsets of a group: all of them or none. `has_members` says whether a member does, or somebody for a
    /// group that has none.
    pub fn commit(self, group: &str, has_members: bool, entries: Vec<OffsetEntry>) -> OffsetWrite {
        self.send(Change::Commit { group: group.into(), has_members, entries })
    }

    /// Forgets a group with all its offsets.
    pub fn delete_group(self, group: &str) -> OffsetWrite {
        self.send(Change::DeleteGroup { group: group.into() })
    }

    /// Forgets a group's offsets in some partitions.
    pub fn delete_partitions(self, group: &str, partitions: Vec<(Arc<str>, i32)>) -> OffsetWrite {
        self.send(Change::DeletePartitions { group: group.into(), partitions })
    }

    /// Records when groups lost their last member, in milliseconds since 1970, or (`None`) that they have some again.
    pub fn set_empty_since(self, groups: Vec<(Arc<str>, Option<i64>)>) -> OffsetWrite {
        self.send(Change::Emptied { groups })
    }

    /// Forgets offsets of groups without members that are older than `retention`.
    pub fn expire(self, now: i64, retention: Duration) -> OffsetWrite {
        let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        self.send(Change::Expire { now, retention })
    }

    fn send(self, change: Change) -> OffsetWrite {
        let (answer, write) = oneshot::channel();
        self.0.send(Job { change, answer });
        OffsetWrite(write)
    }
}

impl OffsetStore {
    /// Opens the offsets of a data directory, or makes them.
    ///
    /// # Errors
    /// [`StateError::NewerVersion`], [`StateError::NotWritable`], [`StateError::Damaged`]; database errors.
    pub fn open(directory: &DataDir) -> Result<OffsetStore, StateError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        OffsetStore::open_at(directory, MAX_ENTRIES, i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
    }

    /// No group has members when a broker starts: the retention of those that had begins at `now`.
    fn open_at(directory: &DataDir, max_entries: usize, now: i64) -> Result<OffsetStore, StateError> {
        let path = directory.join("offsets.db");
        let db = sqlite::open(&path, MIGRATIONS)?;
        data_dir::sync_directory(directory.path())?;
        let failed = |source| StateError::Database { path: path.clone(), source };
        db.execute("UPDATE groups SET empty_since = ?1 WHERE empty_since IS NULL", [now]).map_err(failed)?;
        let memory = Arc::new(RwLock::new(load(&db).map_err(failed)?));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer { path: path.clone(), db, memory: memory.clone() };
        let writer = std::thread::Builder::new()
            .name("offsets".into())
            .spawn(move || writer.run(queue))
            .map_err(|error| StateError::io("start the writer of", &path, error))?;
        Ok(OffsetStore { path, jobs: Some(jobs), memory, max_entries, writer: Mutex::new(Some(writer)) })
    }

    /// Waits for a place in the writer's queue.
    ///
    /// # Errors
    /// [`OffsetError::Stopped`] after [`close`](Self::close).
    pub async fn permit(&self) -> Result<OffsetPermit<'_>, OffsetError> {
        let jobs = self.jobs.as_ref().ok_or(OffsetError::Stopped)?;
        jobs.reserve().await.map(OffsetPermit).map_err(|_| OffsetError::Stopped)
    }

    /// A place in the writer's queue, if there is one now.
    pub fn try_permit(&self) -> Option<OffsetPermit<'_>> {
        self.jobs.as_ref()?.try_reserve().ok().map(OffsetPermit)
    }

    /// Whether a commit for this partition, with so many bytes of metadata, is within what all groups may have.
    pub fn has_room_for(&self, group: &str, topic: &str, partition: i32, metadata: usize) -> bool {
        self.read(|memory| {
            let known = || memory.groups.get(group).and_then(|group| group.get(topic, partition)).is_some();
            (metadata == 0 || memory.metadata_bytes + metadata <= MAX_METADATA_BYTES)
                && (memory.entries < self.max_entries || known())
        })
    }

    /// The committed offset of a group in a partition.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        self.read(|memory| memory.groups.get(group).and_then(|group| group.get(topic, partition)).cloned())
    }

    /// All committed offsets of a group, by topic and partition.
    pub fn all_committed(&self, group: &str) -> Vec<OffsetEntry> {
        self.read(|memory| memory.groups.get(group).map(GroupOffsets::entries).unwrap_or_default())
    }

    /// Whether the group has committed anything that is still kept.
    pub fn has_group(&self, group: &str) -> bool {
        self.read(|memory| memory.groups.contains_key(group))
    }

    /// How many groups have committed offsets.
    pub fn group_count(&self) -> usize {
        self.read(|memory| memory.groups.len())
    }

    /// All groups that have committed offsets.
    pub fn groups(&self) -> Vec<Arc<str>> {
        self.read(|memory| memory.groups.keys().cloned().collect())
    }

    /// Writes what is queued, and closes the file. Later writes are refused.
    pub async fn close(&self) {
        if let Ok(permit) = self.permit().await {
            // Refused only by a writer that is gone already.
            let _ = permit.send(Change::Close).await;
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Memory) -> T) -> T {
        read(&self.memory.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Drop for OffsetStore {
    fn drop(&mut self) {
        // The writer ends when it has written all that is queued.
        self.jobs = None;
        let writer = self.writer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of committed offsets has panicked");
        }
    }
}

impl GroupOffsets {
    fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.topics.get(topic)?.get(&partition)
    }

    fn entries(&self) -> Vec<OffsetEntry> {
        let mut entries = Vec::new();
        for (topic, partitions) in &self.topics {
            for (partition, committed) in partitions {
                entries.push(OffsetEntry {
                    topic: topic.clone(),
                    partition: *partition,
                    committed: committed.clone(),
                });
            }
        }
        entries
    }
}

impl Memory {
    fn commit(&mut self, group: &Arc<str>, has_members: bool, entry: &OffsetEntry) {
        let empty_since = (!has_members).then_some(entry.committed.commit_time);
        let group = self
            .groups
            .entry(group.clone())
            .or_insert_with(|| GroupOffsets { empty_since, topics: BTreeMap::new() });
        let partitions = match group.topics.get_mut(&entry.topic) {
            Some(partitions) => partitions,
            None => group.topics.entry(entry.topic.clone()).or_default(),
        };
        self.metadata_bytes += entry.committed.metadata.len();
        match partitions.insert(entry.partition, entry.committed.clone()) {
            Some(old) => self.metadata_bytes -= old.metadata.len(),
            None => self.entries += 1,
        }
    }

    fn delete_group(&mut self, group: &str) {
        let removed = self.groups.remove(group);
        for old in removed.iter().flat_map(|group| group.topics.values()).flat_map(BTreeMap::values) {
            self.entries -= 1;
            self.metadata_bytes -= old.metadata.len();
        }
    }

    fn delete(&mut self, name: &str, topic: &str, partition: i32) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(partitions) = group.topics.get_mut(topic) else { return };
        if let Some(old) = partitions.remove(&partition) {
            self.entries -= 1;
            self.metadata_bytes -= old.metadata.len();
        }
        if partitions.is_empty() {
            group.topics.remove(topic);
        }
        if group.topics.is_empty() {
            self.groups.remove(name);
        }
    }

    fn expired(&self, now: i64, retention: i64) -> Vec<(Arc<str>, Arc<str>, i32)> {
        let mut expired = Vec::new();
        for (name, group) in &self.groups {
            let Some(empty_since) = group.empty_since else { continue };
            for (topic, partitions) in &group.topics {
                for (partition, committed) in partitions {
                    if now.saturating_sub(empty_since.max(committed.commit_time)) >= retention {
                        expired.push((name.clone(), topic.clone(), *partition));
                    }
                }
            }
        }
        expired
    }
}

fn load(db: &Connection) -> rusqlite::Result<Memory> {
    let mut memory = Memory::default();
    let mut empty_since: HashMap<String, Option<i64>> = HashMap::new();
    let mut groups = db.prepare("SELECT group_id, empty_since FROM groups")?;
    let mut rows = groups.query([])?;
    while let Some(row) = rows.next()? {
        empty_since.insert(row.get(0)?, row.get(1)?);
    }
    let mut offsets = db.prepare(
        "SELECT group_id, topic, partition, topic_id, committed_offset, leader_epoch, metadata, commit_time
         FROM committed_offsets ORDER BY group_id, topic, partition",
    )?;
    let mut rows = offsets.query([])?;
    while let Some(row) = rows.next()? {
        let group: Arc<str> = row.get(0)?;
        let topic_id: Option<[u8; 16]> = row.get(3)?;
        let entry = OffsetEntry {
            topic: row.get(1)?,
            partition: row.get(2)?,
            committed: Committed {
                topic_id: topic_id.map(|bytes| TopicId(u128::from_be_bytes(bytes))),
                offset: row.get(4)?,
                leader_epoch: row.get(5)?,
                metadata: row.get(6)?,
                commit_time: row.get(7)?,
            },
        };
        memory.commit(&group, false, &entry);
    }
    for (group, offsets) in &mut memory.groups {
        if let Some(since) = empty_since.get(&**group) {
            offsets.empty_since = *since;
        }
    }
    Ok(memory)
}

/// Owns the database, and is the only one to change the copy in memory.
struct Writer {
    path: PathBuf,
    db: Connection,
    memory: Arc<RwLock<Memory>>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut next = queue.blocking_recv();
        while let Some(first) = next.take() {
            let mut weight = first.change.weight();
            let alone = first.change.stands_alone();
            let mut batch = vec![first];
            while !alone && weight < GATHERED {
                match queue.try_recv() {
                    Ok(job) if job.change.stands_alone() => {
                        next = Some(job);
                        break;
                    }
                    Ok(job) => {
                        weight += job.change.weight();
                        batch.push(job);
                    }
                    Err(_) => break,
                }
            }
            let closing = matches!(batch.as_slice(), [Job { change: Change::Close, .. }]);
            let result = self.write(&batch);
            if closing {
                drop(self);
                answer(batch, &result);
                return;
            }
            if let Err(error) = &result {
                tracing::error!(%error, requests = batch.len(), "offset commits were refused");
            }
            answer(batch, &result);
            if next.is_none() {
                next = queue.blocking_recv();
            }
        }
    }

    /// Makes a batch durable, and then readable.
    fn write(&mut self, batch: &[Job]) -> Result<(), OffsetError> {
        let expired = match batch {
            [Job { change: Change::Expire { now, retention }, .. }] => {
                self.memory.read().unwrap_or_else(|poisoned| poisoned.into_inner()).expired(*now, *retention)
            }
            _ => Vec::new(),
        };
        write_batch(&mut self.db, batch, &expired).map_err(|error| refused(&self.path, &error))?;
        let mut memory = self.memory.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for job in batch {
            match &job.change {
                Change::Commit { group, has_members, entries } => {
                    entries.iter().for_each(|entry| memory.commit(group, *has_members, entry));
                }
                Change::DeleteGroup { group } => memory.delete_group(group),
                Change::DeletePartitions { group, partitions } => {
                    partitions.iter().for_each(|(topic, partition)| memory.delete(group, topic, *partition));
                }
                Change::Emptied { groups } => {
                    for (group, since) in groups {
                        if let Some(group) = memory.groups.get_mut(group) {
                            group.empty_since = *since;
                        }
                    }
                }
                Change::Expire { .. } | Change::Close => {}
            }
        }
        expired.iter().for_each(|(group, topic, partition)| memory.delete(group, topic, *partition));
        Ok(())
    }
}

fn answer(batch: Vec<Job>, result: &Result<(), OffsetError>) {
    for job in batch {
        // Who has stopped waiting does not need the answer.
        let _ = job.answer.send(result.clone());
    }
}

fn refused(path: &Path, error: &rusqlite::Error) -> OffsetError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => OffsetError::NoSpace { path: path.into() },
        _ => OffsetError::Database { path: path.into(), detail: error.to_string() },
    }
}

/// Commits of the batch that are not written yet, the last for each partition.
type Gathered<'a> = HashMap<(&'a str, &'a str, i32), (bool, &'a Committed)>;

fn write_batch(
    db: &mut Connection,
    batch: &[Job],
    expired: &[(Arc<str>, Arc<str>, i32)],
) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut gathered = Gathered::new();
    for job in batch {
        if let Change::Commit { group, has_members, entries } = &job.change {
            for entry in entries {
                gathered.insert((group, &entry.topic, entry.partition), (*has_members, &entry.committed));
            }
            continue;
        }
        write_gathered(&transaction, &mut gathered)?;
        match &job.change {
            Change::DeleteGroup { group } => {
                transaction.execute("DELETE FROM committed_offsets WHERE group_id = ?1", [group])?;
                transaction.execute("DELETE FROM groups WHERE group_id = ?1", [group])?;
            }
            Change::DeletePartitions { group, partitions } => {
                for (topic, partition) in partitions {
                    delete(&transaction, group, topic, *partition)?;
                }
            }
            Change::Emptied { groups } => {
                let mut set =
                    transaction.prepare_cached("UPDATE groups SET empty_since = ?2 WHERE group_id = ?1")?;
                for (group, since) in groups {
                    set.execute(params![group, since])?;
                }
            }
            Change::Commit { .. } | Change::Expire { .. } | Change::Close => {}
        }
    }
    write_gathered(&transaction, &mut gathered)?;
    for (group, topic, partition) in expired {
        delete(&transaction, group, topic, *partition)?;
    }
    transaction.commit()
}

fn write_gathered(db: &Connection, gathered: &mut Gathered<'_>) -> rusqlite::Result<()> {
    let mut add_group = db.prepare_cached("INSERT OR IGNORE INTO groups VALUES (?1, ?2)")?;
    let mut commit = db
        .prepare_cached("INSERT OR REPLACE INTO committed_offsets VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    let mut known: HashSet<&str> = HashSet::new();
    let mut in_order: Vec<_> = gathered.drain().collect();
    // In the order of the table, so that a page is found once for all its rows.
    in_order.sort_unstable_by_key(|(key, _)| *key);
    for ((group, topic, partition), (has_members, committed)) in in_order {
        if known.insert(group) {
            let empty_since = (!has_members).then_some(committed.commit_time);
            add_group.execute(params![group, empty_since])?;
        }
        let topic_id = committed.topic_id.map(|id| id.0.to_be_bytes());
        commit.execute(params![
            group,
            topic,
            partition,
            topic_id,
            committed.offset,
            committed.leader_epoch,
            committed.metadata,
            committed.commit_time
        ])?;
    }
    Ok(())
}

fn delete(db: &Connection, group: &str, topic: &str, partition: i32) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM committed_offsets WHERE group_id = ?1 AND topic = ?2 AND partition = ?3")?
        .execute(params![group, topic, partition])?;
    db.prepare_cached(
        "DELETE FROM groups WHERE group_id = ?1
         AND NOT EXISTS (SELECT 1 FROM committed_offsets WHERE group_id = ?1)",
    )?
    .execute([group])?;
    Ok(())
}

#[cfg(test)]
mod tests;
