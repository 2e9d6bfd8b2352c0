//! A job: tables that are held together until the existing rows of all of them have been read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Place;
use super::held::{self, HeldChange};
use crate::change::{Lsn, TableShape, Transaction};
use crate::log::{LogError, LogWriter, Record};
use crate::postgres::snapshot::{Part, ReadFrom, Visibility, Wanted};

/// Something that has become true of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// From here on a table's changes are held. Of a table that the job holds already: its rows are to be read again.
    Hold {
        /// The table.
        oid: u32,
        /// Its schema.
        schema: String,
        /// Its name.
        table: String,
        /// The epoch to begin with.
        epoch: u32,
        /// Behind the commit of every change before, and before every commit that is held.
        lsn: u64,
        /// How many rows have that commit LSN already: the next one's ordinal.
        rows: u64,
        /// Whether the task starts with it.
        start: bool,
    },
    /// Rows of a table follow; those that were read under a lower epoch are void.
    Begin {
        /// The table.
        oid: u32,
        /// The epoch.
        epoch: u32,
        /// Names of the columns of its key.
        key: Vec<String>,
        /// What the snapshot of all of the rows sees; `None` where each part has one of its own.
        visibility: Option<Visibility>,
        /// What a reader that goes on must find unchanged.
        stamp: String,
    },
    /// A part of the rows stands before this.
    Rows {
        /// The table.
        oid: u32,
        /// The epoch.
        epoch: u32,
        /// Which part.
        part: Part,
        /// How many rows.
        rows: u64,
        /// How large they were as they were read.
        bytes: u64,
    },
    /// All rows stand before this.
    End {
        /// The table.
        oid: u32,
        /// The epoch.
        epoch: u32,
    },
    /// The rows will not be read.
    Unread {
        /// The table.
        oid: u32,
        /// Why not; `None` where there is no such table any more.
        reason: Option<String>,
    },
    /// The table has left the publications before all of its rows were read: nothing more is told of it.
    Left {
        /// The table.
        oid: u32,
    },
    /// Another job holds the table from here on; what this one has of it is void.
    Moved {
        /// The table.
        oid: u32,
    },
    /// What was held has followed the rows: the job is done.
    Released,
}

/// Rows that have been read under one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Names of the columns of the key.
    pub key: Vec<String>,
    /// What a reader that goes on must find unchanged.
    pub stamp: String,
    /// What the snapshot of all of the rows sees, where they share one.
    pub visibility: Option<Visibility>,
    /// Otherwise the parts in key order: their last keys, and what they see. Each sees more than the one before, but
    /// for what lies behind all keys: that, without a key, is as old as the search for the last one.
    pub chunks: Vec<(Option<Vec<String>>, Visibility)>,
    /// How many.
    pub rows: u64,
}

/// How far the reading of a table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been read under this epoch.
    Waiting,
    /// Some of the rows have been read.
    Reading(Contents),
    /// All have been.
    Read(Contents),
    /// They will not be read.
    Unread {
        /// Why not; `None` where there is no such table any more.
        reason: Option<String>,
    },
    /// It has left the publications; what was held of it is void.
    Left,
    /// Another job has the table.
    Moved,
}

/// A table that is held.
#[derive(Debug)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Which attempt to read it is wanted, or was the last to begin.
    pub epoch: u32,
    /// How far that is.
    pub stage: Stage,
    /// What its rows look like, while they are being told.
    pub shape: Option<Arc<TableShape>>,
}

impl Table {
    /// Whether nothing more is to be read of it.
    pub fn is_read(&self) -> bool {
        matches!(self.stage, Stage::Read(_) | Stage::Unread { .. } | Stage::Left | Stage::Moved)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Job {
    /// Where it stands in the log.
    pub place: Place,
    /// Commit LSN of the rows that are read: behind every change before the hold, before every change in it.
    pub lsn: Lsn,
    /// Whether the task starts with it.
    pub is_start: bool,
    /// By OID.
    pub tables: BTreeMap<u32, Table>,
    /// Rows that have been told, under whatever epoch: the next one's ordinal.
    pub rows: u64,
    /// The shapes that the hold has had since the connection was made.
    shapes: HashMap<u32, Arc<TableShape>>,
    /// Whether the hold has the beginning of the open transaction.
    has_begin: bool,
}

impl Job {
    /// A job of no tables.
    pub fn new(place: Place) -> Self {
        Job {
            place,
            lsn: Lsn::ZERO,
            is_start: false,
            tables: BTreeMap::new(),
            rows: 0,
            shapes: HashMap::new(),
            has_begin: false,
        }
    }

    /// Writes a mark, and is from here on what it says.
    pub fn note<W: LogWriter>(
        &mut self,
        mark: &Mark,
        timestamp: i64,
        writer: &mut W,
    ) -> Result<(), LogError> {
        // A mark is numbers and texts.
        let value = serde_json::to_vec(mark).unwrap_or_default();
        let record = Record { timestamp, key: None, value: Some(&value), headers: &[] };
        writer.append(self.place.marks, &record)?;
        self.apply(mark);
        Ok(())
    }

    /// Is what a mark says.
    pub fn apply(&mut self, mark: &Mark) {
        match mark {
            Mark::Hold { oid, schema, table, epoch, lsn, rows, start } => {
                if self.tables.is_empty() {
                    self.lsn = Lsn(*lsn);
                }
                self.rows = self.rows.max(*rows);
                self.is_start |= start;
                let (schema, name, epoch) = (schema.clone(), table.clone(), *epoch);
                self.tables.insert(*oid, Table { schema, name, epoch, stage: Stage::Waiting, shape: None });
            }
            Mark::Begin { oid, epoch, key, visibility, stamp } => {
                let Some(table) = self.tables.get_mut(oid) else { return };
                if table.goes_on(*epoch, visibility.as_ref()) {
                    return;
                }
                table.epoch = *epoch;
                let (key, stamp, visibility) = (key.clone(), stamp.clone(), visibility.clone());
                table.stage =
                    Stage::Reading(Contents { key, stamp, visibility, chunks: Vec::new(), rows: 0 });
            }
            Mark::Rows { oid, epoch, part, rows, .. } => {
                self.rows += rows;
                let Some(table) = self.tables.get_mut(oid).filter(|table| table.epoch == *epoch) else {
                    return;
                };
                let Stage::Reading(contents) = &mut table.stage else { return };
                contents.rows += rows;
                if let Part::Keys { through, visibility } = part {
                    match contents.chunks.last_mut() {
                        // One part: a large table has many, which see the same while nobody writes.
                        Some((last, same)) if through.is_some() && same == visibility => {
                            last.clone_from(through);
                        }
                        _ => contents.chunks.push((through.clone(), visibility.clone())),
                    }
                    if through.is_none() {
                        table.stage = Stage::Read(contents.clone());
                    }
                }
            }
            Mark::End { oid, epoch } => {
                let Some(table) = self.tables.get_mut(oid).filter(|table| table.epoch == *epoch) else {
                    return;
                };
                if let Stage::Reading(contents) = &table.stage {
                    table.stage = Stage::Read(contents.clone());
                }
            }
            Mark::Unread { oid, reason } => {
                if let Some(table) = self.tables.get_mut(oid) {
                    table.stage = Stage::Unread { reason: reason.clone() };
                }
            }
            Mark::Left { oid } => {
                if let Some(table) = self.tables.get_mut(oid) {
                    table.stage = Stage::Left;
                }
            }
            Mark::Moved { oid } => {
                if let Some(table) = self.tables.get_mut(oid) {
                    table.stage = Stage::Moved;
                }
            }
            Mark::Released => self.tables.clear(),
        }
    }

    /// Whether all rows of all tables have been read.
    pub fn is_read(&self) -> bool {
        self.tables.values().all(Table::is_read)
    }

    /// What is still to be read, by a reader that begins now.
    pub fn wanted(&self) -> Vec<Wanted> {
        let unread = self.tables.iter().filter(|(_, table)| !table.is_read());
        unread.map(|(oid, table)| Wanted { oid: *oid, ..table.wanted() }).collect()
    }

    /// Another transaction begins.
    pub fn begin_transaction(&mut self) {
        self.has_begin = false;
    }

    /// What was written since the last boundary may be gone.
    pub fn restart(&mut self) {
        self.has_begin = false;
        self.shapes.clear();
    }

    /// Holds a change of the open transaction, and gives the number of records that it made.
    pub fn hold<W: LogWriter>(
        &mut self,
        transaction: &Transaction,
        shape: &Arc<TableShape>,
        change: &HeldChange<'_>,
        writer: &mut W,
    ) -> Result<u64, LogError> {
        let mut held = held::Writer::new(writer, self.place.changes, transaction.commit_time.millis());
        if !self.has_begin {
            held.transaction(transaction)?;
            self.has_begin = true;
        }
        if !self.shapes.get(&shape.oid).is_some_and(|known| Arc::ptr_eq(known, shape)) {
            held.shape(shape)?;
            self.shapes.insert(shape.oid, shape.clone());
        }
        held.change(change)?;
        Ok(held.records())
    }
}

impl Table {
    /// Whether rows that begin like this go on behind those that have been read.
    pub fn goes_on(&self, epoch: u32, visibility: Option<&Visibility>) -> bool {
        let by_key = matches!(&self.stage, Stage::Reading(contents) if contents.visibility.is_none());
        by_key && epoch == self.epoch && visibility.is_none()
    }

    /// Whether rows that begin like this are a new attempt.
    pub fn begins_anew(&self, epoch: u32) -> bool {
        epoch > self.epoch || epoch == self.epoch && self.stage == Stage::Waiting
    }

    fn wanted(&self) -> Wanted {
        let (epoch, from) = match &self.stage {
            Stage::Reading(Contents { visibility: Some(_), .. }) => (self.epoch + 1, ReadFrom::FirstKey),
            Stage::Reading(contents) => match contents.chunks.last() {
                Some((Some(key), _)) => {
                    (self.epoch, ReadFrom::After { key: key.clone(), stamp: contents.stamp.clone() })
                }
                _ => (self.epoch + 1, ReadFrom::FirstKey),
            },
            _ => (self.epoch, ReadFrom::Start),
        };
        Wanted { oid: 0, epoch, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::PartitionId;

    fn job(marks: &[Mark]) -> Job {
        let mut job = Job::new(Place { number: 1, marks: PartitionId(0), changes: PartitionId(1) });
        for mark in marks {
            // As a session that comes after a crash sees it.
            let written = serde_json::to_vec(mark).unwrap();
            job.apply(&serde_json::from_slice(&written).unwrap());
        }
        job
    }

    fn hold(oid: u32) -> Mark {
        Mark::Hold {
            oid,
            schema: "s".into(),
            table: format!("t{oid}"),
            epoch: 1,
            lsn: 7,
            rows: 0,
            start: false,
        }
    }

    fn begin(oid: u32, epoch: u32, visibility: Option<Visibility>) -> Mark {
        Mark::Begin { oid, epoch, key: vec!["id".into()], visibility, stamp: "x".into() }
    }

    fn keys(oid: u32, epoch: u32, through: Option<&str>) -> Mark {
        let part = Part::Keys { through: through.map(|key| vec![key.to_owned()]), visibility: seen() };
        Mark::Rows { oid, epoch, part, rows: 10, bytes: 100 }
    }

    fn seen() -> Visibility {
        "10:20:15".parse().unwrap()
    }

    fn wanted(job: &Job) -> Vec<(u32, u32, ReadFrom)> {
        job.wanted().into_iter().map(|wanted| (wanted.oid, wanted.epoch, wanted.from)).collect()
    }

    #[test]
    fn tables_that_are_read_stay_read_and_the_others_go_on_where_that_is_exact() {
        let part = Mark::Rows { oid: 1, epoch: 1, part: Part::Shared, rows: 10, bytes: 100 };
        let mut marks = vec![hold(1), hold(2), hold(3), begin(1, 1, Some(seen())), begin(2, 1, Some(seen()))];
        marks.extend([part.clone(), part, Mark::End { oid: 2, epoch: 1 }]);
        let told = job(&marks);
        // The snapshot that the first was read under is lost.
        let first = (1, 2, ReadFrom::FirstKey);
        assert_eq!(wanted(&told), [first, (3, 1, ReadFrom::Start)]);
        assert_eq!((told.rows, told.lsn, told.is_read()), (20, Lsn(7), false));

        marks.extend([begin(1, 2, None), keys(1, 2, Some("5")), begin(1, 2, None), keys(1, 2, Some("9"))]);
        let after = ReadFrom::After { key: vec!["9".into()], stamp: "x".into() };
        assert_eq!(wanted(&job(&marks)), [(1, 2, after), (3, 1, ReadFrom::Start)]);
        // The last part says that it is the last, also where the end was not told any more.
        marks.extend([keys(1, 2, None), Mark::Unread { oid: 3, reason: None }]);
        let told = job(&marks);
        assert!(told.is_read() && told.wanted().is_empty() && told.rows == 50);
        let Stage::Read(contents) = &told.tables[&1].stage else { panic!("{:?}", told.tables[&1]) };
        // Those that see the same are one, and what lies behind all keys stays apart.
        assert_eq!((contents.rows, contents.chunks.len()), (30, 2));

        // Held again, all that was read of it is void; and what another job has is read there.
        let Mark::Hold { schema, table, .. } = hold(2) else { unreachable!() };
        marks.push(Mark::Hold { oid: 2, schema, table, epoch: 2, lsn: 7, rows: 0, start: false });
        marks.push(Mark::End { oid: 2, epoch: 1 });
        assert_eq!(wanted(&job(&marks)), [(2, 2, ReadFrom::Start)]);
        marks.push(Mark::Moved { oid: 2 });
        assert!(job(&marks).is_read());
        marks.push(Mark::Released);
        assert!(job(&marks).tables.is_empty());
    }
}
