//! The pipeline's share in reading existing rows: it holds tables, takes rows, and releases what was held.
//!
//! All of it happens between transactions of the source. What is taken of a part ends with its mark and a boundary, and
//! so does a release: whatever interrupts them before that is followed by [`Pipeline::drop_open`] or a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::SemaphorePermit;

use super::{Pipeline, TableChange, deliver, enter};
use crate::capture::CaptureError;
use crate::capture::existing::held::{Assembled, Assembler};
use crate::capture::existing::{Contents, Cursor, Existing, Job, Mark, Place, Stage, Table, unreadable};
use crate::change::{
    Before, Cell, CellKind, Change, Event, Gap, Lsn, Operation, Phase, Row, SnapshotMark, SnapshotStage,
    TableShape, Timestamp, Transaction, Value,
};
use crate::log::record_batch::Codec;
use crate::log::{LogError, LogWriter, SourcePosition};
use crate::postgres::catalog::TrackedTable;
use crate::postgres::pgoutput::{self, Cells, Message};
use crate::postgres::snapshot::keys::Question;
use crate::postgres::snapshot::{CopiedRows, CopyRowsError, Part, Read, Wanted};

/// How much is made of a part at once, in bytes of records, and of how many rows.
const SLICE: (usize, u64) = (256 << 10, 4096);

/// Rows that are being taken.
#[derive(Debug)]
pub struct PartRows {
    job: u64,
    oid: u32,
    epoch: u32,
    part: Part,
    shape: Arc<TableShape>,
    transaction: Transaction,
    copied: CopiedRows,
    bytes: u64,
    rows: u64,
    /// See [`Read::Rows`].
    _turn: Option<SemaphorePermit<'static>>,
}

impl<W: LogWriter> Pipeline<W> {
    /// Learns from the log what is held. Nothing may lie between the last commit and now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn recall(&mut self) -> Result<(), CaptureError> {
        self.rows.existing = Existing::recall(&self.log).await?;
        self.rows.last_shape = None;
        self.clear_released().await
    }

    /// From here on changes of these tables are held. What was read of one that is held already is void: it may have been
    /// out of the publication meanwhile.
    ///
    /// # Errors
    /// The log refuses it.
    pub fn hold(&mut self, tables: &[TrackedTable], start: bool) -> Result<(), CaptureError> {
        let tables = tables.iter().map(|table| (table.oid, table.schema.clone(), table.name.clone()));
        self.hold_named(tables.collect(), start)
    }

    /// Nothing that is held counts any more, as it is of another history: its tables are held from here on, and read again.
    ///
    /// # Errors
    /// The log refuses it.
    pub fn hold_anew(&mut self) -> Result<(), CaptureError> {
        let tables = self.rows.existing.jobs.iter().flat_map(|job| &job.tables);
        let held = tables.filter(|(_, table)| table.stage != Stage::Moved);
        let held: Vec<_> =
            held.map(|(oid, table)| (*oid, table.schema.clone(), table.name.clone())).collect();
        match held.is_empty() {
            true => Ok(()),
            false => self.hold_named(held, false),
        }
    }

    fn hold_named(&mut self, tables: Vec<(u32, String, String)>, start: bool) -> Result<(), CaptureError> {
        // Where the last transaction ends the next may have its commit record. No commit record has only one byte. A
        // table that is read again has later positions each time: its last release waited for a message behind its rows.
        let lsn = self.position.end_lsn.max(self.idle_through).0.saturating_sub(1);
        let at_the_place = self.rows.existing.jobs.iter().filter(|job| job.lsn.0 == lsn);
        let rows = at_the_place.map(|job| job.rows).max().unwrap_or(0);
        let index = self.new_job()?;
        for (oid, schema, table) in tables {
            let before = self.rows.existing.holding(oid);
            let known = before.and_then(|before| self.rows.existing.jobs.get(before));
            let known = known.and_then(|job| Some((job.is_start, job.tables.get(&oid)?.epoch)));
            let (is_start, epoch) = known.map_or((start, 1), |(known, epoch)| (start || known, epoch + 1));
            if let Some(before) = before {
                self.note(before, &Mark::Moved { oid })?;
            }
            self.note(index, &Mark::Hold { oid, schema, table, epoch, lsn, rows, start: is_start })?;
        }
        self.rows.last_shape = None;
        self.rows.writer.boundary();
        Ok(())
    }

    /// The tables of which not all rows have been read.
    pub fn unread(&self) -> impl Iterator<Item = u32> {
        let tables = self.rows.existing.jobs.iter().flat_map(|job| &job.tables);
        tables.filter(|(_, table)| !table.is_read()).map(|(oid, _)| *oid)
    }

    /// These have left the publications: there is nothing to read, and nothing to hold.
    ///
    /// # Errors
    /// The log refuses it.
    pub fn leave(&mut self, tables: &[u32]) -> Result<(), CaptureError> {
        for oid in tables {
            if let Some(job) = self.rows.existing.holding(*oid) {
                self.note(job, &Mark::Left { oid: *oid })?;
            }
        }
        self.rows.writer.boundary();
        Ok(())
    }

    /// The rows of tables that are held are to be read again: of one, or of all.
    ///
    /// # Errors
    /// The log refuses it.
    pub fn hold_again(&mut self, only: Option<u32>) -> Result<(), CaptureError> {
        for index in 0..self.rows.existing.jobs.len() {
            let Some(job) = self.rows.existing.jobs.get(index) else { break };
            let is_meant = |(oid, table): &(&u32, &Table)| {
                table.stage != Stage::Moved && only.is_none_or(|only| only == **oid)
            };
            let tables = job.tables.iter().filter(is_meant);
            let mark = |(oid, Table { schema, name, epoch, .. }): (&u32, &Table)| Mark::Hold {
                oid: *oid,
                schema: schema.clone(),
                table: name.clone(),
                epoch: epoch + 1,
                lsn: job.lsn.0,
                rows: 0,
                start: job.is_start,
            };
            let marks: Vec<_> = tables.map(mark).collect();
            marks.iter().try_for_each(|mark| self.note(index, mark))?;
        }
        self.rows.writer.boundary();
        Ok(())
    }

    /// The jobs that there are.
    pub fn jobs(&self) -> &[Job] {
        &self.rows.existing.jobs
    }

    /// Everything that the source had below this has been taken.
    pub fn processed(&self) -> Lsn {
        self.idle_through
    }

    /// What is still to be read for a job.
    pub fn wanted(&self, job: u64) -> Vec<Wanted> {
        self.rows.existing.job(job).map(Job::wanted).unwrap_or_default()
    }

    fn new_job(&mut self) -> Result<usize, CaptureError> {
        let existing = &mut self.rows.existing;
        let place = match existing.free.pop() {
            Some(place) => place,
            None => {
                existing.last_number += 1;
                let number = existing.last_number;
                let name = Place::topic(number);
                let made = self.rows.writer.create_topic(&name, Place::PARTITIONS, Codec::Lz4)?;
                Place::with(number, &made).ok_or(LogError::Stopped)?
            }
        };
        existing.jobs.push(Job::new(place));
        Ok(existing.jobs.len() - 1)
    }

    fn note(&mut self, job: usize, mark: &Mark) -> Result<(), CaptureError> {
        let Some(job) = self.rows.existing.jobs.get_mut(job) else { return Ok(()) };
        Ok(job.note(mark, Timestamp::now().millis(), &mut self.rows.writer)?)
    }

    /// Takes what a job's reader tells. Rows are given back, to be taken slice by slice. What belongs to an attempt that is void
    /// by now is left out.
    ///
    /// # Errors
    /// A record that the log or the format refuses; a reader that breaks the order.
    pub fn take(&mut self, job: u64, read: Read) -> Result<Option<PartRows>, CaptureError> {
        let oid = match read {
            Read::Begin { oid, .. }
            | Read::Rows { oid, .. }
            | Read::End { oid, .. }
            | Read::Refused { oid, .. }
            | Read::Gone { oid } => oid,
            // Where the address leads now, the next session finds out.
            Read::Elsewhere(error) => return Err(error.into()),
        };
        let number = job;
        let is_meant = |job: &&mut Job| job.place.number == number;
        let index = self.rows.existing.holding(oid);
        let job = index.and_then(|index| self.rows.existing.jobs.get_mut(index)).filter(is_meant);
        let (Some(index), Some(job)) = (index, job) else { return Ok(None) };
        let lsn = job.lsn;
        // One that has left meanwhile may have parts that were read before.
        let is_left = |table: &&mut Table| !matches!(table.stage, Stage::Unread { .. } | Stage::Left);
        let Some(table) = job.tables.get_mut(&oid).filter(is_left) else { return Ok(None) };
        let out_of_order = |what: &str| CaptureError::Held {
            detail: format!(
                "{what} of table {oid} cannot follow {:?} under epoch {}",
                table.stage, table.epoch
            ),
        };
        match read {
            Read::Begin { epoch, shape, visibility, stamp, .. } => {
                if table.goes_on(epoch, visibility.as_ref()) {
                    table.shape = Some(shape);
                    return Ok(None);
                }
                if !table.begins_anew(epoch) {
                    return match epoch < table.epoch {
                        true => Ok(None),
                        false => Err(out_of_order("the beginning")),
                    };
                }
                table.shape = Some(shape.clone());
                let key = shape.key.iter().filter_map(|column| shape.columns.get(*column));
                let key = key.map(|column| column.name.clone()).collect();
                self.mark_event(&shape.schema, &shape.name, epoch, SnapshotStage::Begin, lsn)?;
                self.note(index, &Mark::Begin { oid, epoch, key, visibility, stamp })?;
                self.rows.writer.boundary();
            }
            Read::Rows { epoch, part, rows, turn, .. } => {
                if epoch < table.epoch {
                    return Ok(None);
                }
                let shape = match (&table.stage, &table.shape) {
                    (Stage::Reading(_), Some(shape)) if epoch == table.epoch => shape.clone(),
                    _ => return Err(out_of_order("a part")),
                };
                enter(&mut self.rows.outputs, &mut self.rows.writer, &shape)?;
                self.rows.last_shape = None;
                return Ok(Some(PartRows {
                    job: number,
                    oid,
                    epoch,
                    part,
                    transaction: read_under(lsn),
                    bytes: rows.size() as u64,
                    copied: rows,
                    shape,
                    rows: 0,
                    _turn: turn,
                }));
            }
            Read::End { epoch, .. } => match &table.stage {
                _ if epoch < table.epoch => {}
                // The last part has said so.
                Stage::Read(_) => {}
                Stage::Reading(contents) if epoch == table.epoch && contents.visibility.is_some() => {
                    self.note(index, &Mark::End { oid, epoch })?;
                    self.rows.writer.boundary();
                }
                _ => return Err(out_of_order("the end")),
            },
            Read::Refused { reason, .. } => {
                self.note(index, &Mark::Unread { oid, reason: Some(reason) })?;
                self.rows.writer.boundary();
            }
            Read::Gone { .. } => {
                self.note(index, &Mark::Unread { oid, reason: None })?;
                self.rows.writer.boundary();
            }
            Read::Elsewhere(_) => {}
        }
        Ok(None)
    }

    /// Takes more of a part. False when all of it has been taken.
    ///
    /// # Errors
    /// A record that the log or the format refuses; what is no row of the table.
    pub fn take_rows(&mut self, part: &mut PartRows) -> Result<bool, CaptureError> {
        let Some(index) = self.rows.existing.jobs.iter().position(|job| job.place.number == part.job) else {
            return Ok(false);
        };
        let before = self.rows.existing.jobs.get(index).map_or(0, |job| job.rows);
        let (until, last) = (self.rows.writer.buffered() + SLICE.0, part.rows + SLICE.1);
        let bad = |error: CopyRowsError| CaptureError::Held { detail: error.to_string() };
        while let Some(row) = part.copied.next_row().map_err(bad)? {
            let table = &*part.shape;
            let change = Change::Row { operation: Operation::Read, table, before: None, after: Some(row) };
            let ordinal = before + part.rows;
            let event =
                Event { transaction: &part.transaction, ordinal, lsn: part.transaction.commit_lsn, change };
            deliver(&mut self.rows.outputs, &mut self.rows.writer, &event)?;
            part.rows += 1;
            if part.rows >= last || self.rows.writer.buffered() >= until {
                return Ok(true);
            }
        }
        let (rows, bytes) = (part.rows, part.bytes);
        let mark = Mark::Rows { oid: part.oid, epoch: part.epoch, part: part.part.clone(), rows, bytes };
        self.note(index, &mark)?;
        self.rows.writer.boundary();
        Ok(false)
    }

    /// Writes where a table's rows begin or end.
    fn mark_event(
        &mut self,
        schema: &str,
        table: &str,
        epoch: u32,
        stage: SnapshotStage,
        lsn: Lsn,
    ) -> Result<(), CaptureError> {
        let mark = SnapshotMark { schema: schema.to_owned(), table: table.to_owned(), epoch, stage };
        let transaction = read_under(lsn);
        self.rows.event(&Event {
            transaction: &transaction,
            ordinal: 0,
            lsn,
            change: Change::Snapshot(&mark),
        })?;
        self.rows.records = 0;
        Ok(())
    }

    /// Begins to release a job, all of whose tables have been read and everything of which is durable.
    pub fn begin_release(&self, job: u64) -> Option<Release> {
        let job = self.rows.existing.job(job).filter(|job| job.is_read())?;
        let tables = job.tables.iter().map(|(oid, table)| {
            let told = match &table.stage {
                Stage::Read(contents) => Told::Rows(contents.clone()),
                Stage::Left | Stage::Moved => Told::NoMore,
                _ => Told::Nothing,
            };
            (*oid, told)
        });
        Some(Release {
            job: job.place.number,
            tables: tables.collect(),
            cursor: Cursor::new(self.log.clone(), job.place.changes),
            assembler: Assembler::default(),
            open: None,
            cells: Cells::default(),
            whole: Vec::new(),
        })
    }

    /// Appends those changes of a window that the rows do not have.
    ///
    /// # Errors
    /// A record that the log or the format refuses.
    pub fn catch_up(&mut self, release: &mut Release, window: &Window) -> Result<(), CaptureError> {
        for held in &window.changes {
            let Some(wanted) = window.wanted(held) else { continue };
            let Assembled { transaction, shape, lsn, ordinal, in_stream, body } = &held.change;
            if release.open.is_some_and(|(open, _)| open != *transaction) {
                self.end_transaction(release)?;
            }
            release.open = Some((*transaction, ordinal + 1));
            let is_same = |last: &Arc<TableShape>| Arc::ptr_eq(last, shape);
            if !self.rows.last_shape.as_ref().is_some_and(is_same) {
                enter(&mut self.rows.outputs, &mut self.rows.writer, shape)?;
                self.rows.last_shape = Some(shape.clone());
            }
            let message = pgoutput::parse(body, *in_stream, &mut release.cells)?;
            let change = change_of(message, wanted, shape, &mut release.whole)?.of(shape);
            let event = Event { transaction, ordinal: *ordinal, lsn: *lsn, change };
            deliver(&mut self.rows.outputs, &mut self.rows.writer, &event)?;
        }
        Ok(())
    }

    /// Ends the transaction whose held changes have been appended.
    fn end_transaction(&mut self, release: &mut Release) -> Result<(), CaptureError> {
        if let Some((transaction, changes)) = release.open.take() {
            for output in &mut self.rows.outputs {
                output.end(&mut self.rows.writer, &transaction, changes)?;
            }
        }
        Ok(())
    }

    /// Ends a release: the tables are complete, and their changes go to the outputs from here on. Everything since it
    /// began is part of one group.
    ///
    /// # Errors
    /// A record that the log or the format refuses.
    pub fn end_release(&mut self, mut release: Release) -> Result<(), CaptureError> {
        self.end_transaction(&mut release)?;
        self.rows.last_shape = None;
        let jobs = &mut self.rows.existing.jobs;
        let Some(index) = jobs.iter().position(|job| job.place.number == release.job) else { return Ok(()) };
        let mut job = jobs.swap_remove(index);
        let mut lsn = self.position.last_commit.unwrap_or(job.lsn);
        if job.tables.values().any(|table| matches!(table.stage, Stage::Read(_))) {
            // The rows tell of all transactions until now, also of such as have left no record: a source that lacks one of
            // them is not the one that was read.
            let end = self.idle_through;
            lsn = Lsn(end.0.saturating_sub(1));
            self.position = SourcePosition {
                last_commit: Some(lsn),
                end_lsn: end,
                last_record_end: end,
                acked_through: end,
                ..self.position
            };
        }
        for table in job.tables.values() {
            match &table.stage {
                Stage::Read(Contents { rows, .. }) => {
                    let stage = SnapshotStage::End { rows: *rows };
                    self.mark_event(&table.schema, &table.name, table.epoch, stage, lsn)?;
                }
                Stage::Unread { reason: Some(reason) } => self.gap(&unread(table, lsn, reason))?,
                _ => {}
            }
        }
        job.note(&Mark::Released, Timestamp::now().millis(), &mut self.rows.writer)?;
        self.rows.existing.done.push(job.place);
        self.rows.writer.boundary();
        Ok(())
    }

    /// Deletes the records of jobs that are done, and of which that is durable.
    ///
    /// # Errors
    /// The log cannot delete them.
    pub async fn clear_released(&mut self) -> Result<(), CaptureError> {
        let done = std::mem::take(&mut self.rows.existing.done);
        if done.is_empty() {
            return Ok(());
        }
        let snapshot = self.log.snapshot();
        let partitions = done.iter().flat_map(|place| [place.marks, place.changes]);
        let ends = partitions.filter_map(|id| Some((id, snapshot.range(id)?.end))).collect();
        drop(snapshot);
        self.log.delete_records(ends).await?;
        self.rows.existing.free.extend(done);
        Ok(())
    }
}

/// What rows that are read are part of.
fn read_under(lsn: Lsn) -> Transaction {
    Transaction {
        xid: 0,
        commit_lsn: lsn,
        end_lsn: lsn,
        commit_time: Timestamp::now(),
        previous_commit_lsn: Lsn::ZERO,
        phase: Phase::Snapshot,
    }
}

/// The event for a table whose rows could not be read.
fn unread(Table { schema, name, .. }: &Table, to: Lsn, reason: &str) -> Gap {
    Gap {
        cause: "existing_rows_not_read",
        table: Some((schema.clone(), name.clone())),
        from: None,
        to,
        detail: format!(
            "the rows that table {schema}.{name} had when it joined cannot be read: {reason}; its changes since then are complete"
        ),
    }
}

/// A release under way: what was held, from the first change on.
pub struct Release {
    job: u64,
    tables: BTreeMap<u32, Told>,
    cursor: Cursor,
    assembler: Assembler,
    /// The transaction whose changes are being appended, and the ordinal behind the last.
    open: Option<(Transaction, u64)>,
    cells: Cells,
    /// Scratch for a new row that is told without the old one.
    whole: Vec<Cell>,
}

/// What has been told of a table.
#[derive(Debug)]
enum Told {
    /// Its rows.
    Rows(Contents),
    /// None of its rows: then its changes are all told.
    Nothing,
    /// It has left, or another job reads its rows, later than what this one has held: then nothing of that is told.
    NoMore,
}

/// Some of what was held, in order.
#[derive(Debug, Default)]
pub struct Window {
    changes: Vec<Held>,
    /// What the server is to be asked, by table.
    pub questions: BTreeMap<u32, Vec<Question>>,
    answers: BTreeMap<u32, Vec<bool>>,
}

/// What comes next in a release.
#[derive(Debug)]
pub enum Next {
    /// These changes.
    Window(Window),
    /// Nothing more.
    End,
    /// The rows of this table do not fit the changes: they are to be read again.
    Again(u32),
}

#[derive(Debug)]
struct Held {
    change: Assembled,
    /// Whether the rows lack what became of the old row, and of the new one.
    old: Lack,
    new: Lack,
}

/// Whether the rows lack something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    Known(bool),
    /// That depends on what the table's questions with these numbers are answered.
    Asked {
        /// It does if the key does not lie behind this one's bound.
        through: Option<usize>,
        /// It does if the key lies behind this one's bound.
        behind: Option<usize>,
    },
}

/// Which halves of a change are to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Both,
    Old,
    New,
}

impl Window {
    /// What the server says to a table's questions.
    pub fn answer(&mut self, oid: u32, answers: Vec<bool>) {
        self.answers.insert(oid, answers);
    }

    fn lacks(&self, oid: u32, lack: Lack) -> bool {
        match lack {
            Lack::Known(lacks) => lacks,
            Lack::Asked { through, behind } => {
                let answers = self.answers.get(&oid).map_or(&[][..], Vec::as_slice);
                let is = |number: Option<usize>, answer| {
                    number.is_some_and(|number| answers.get(number).is_none_or(|is| *is == answer))
                };
                is(through, false) || is(behind, true)
            }
        }
    }

    /// What is to be told of a change.
    fn wanted(&self, held: &Held) -> Option<Half> {
        let oid = held.change.shape.oid;
        match (self.lacks(oid, held.old), self.lacks(oid, held.new)) {
            (true, true) => Some(Half::Both),
            (true, false) => Some(Half::Old),
            (false, true) => Some(Half::New),
            (false, false) => None,
        }
    }
}

impl Release {
    /// The names of the columns of a table's key.
    pub fn key_of(&self, oid: u32) -> &[String] {
        match self.tables.get(&oid) {
            Some(Told::Rows(contents)) => &contents.key,
            _ => &[],
        }
    }

    /// Reads on.
    ///
    /// # Errors
    /// What is held cannot be read.
    pub async fn next(&mut self) -> Result<Next, CaptureError> {
        let Some(mut records) = self.cursor.next().await? else { return Ok(Next::End) };
        let mut window = Window::default();
        while let Some(record) = records.next_record().map_err(unreadable)? {
            if record.offset < self.cursor.from {
                continue;
            }
            let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
            let Some(change) = self.assembler.take(key, value)? else { continue };
            let told = self.tables.get(&change.shape.oid);
            let message = pgoutput::parse(&change.body, change.in_stream, &mut self.cells)?;
            let questions = window.questions.entry(change.shape.oid).or_default();
            let Some((old, new)) = judge(told, &change, &message, questions) else {
                return Ok(Next::Again(change.shape.oid));
            };
            if (old, new) != (Lack::Known(false), Lack::Known(false)) {
                window.changes.push(Held { change, old, new });
            }
        }
        window.questions.retain(|_, questions| !questions.is_empty());
        Ok(Next::Window(window))
    }
}

/// Whether a table's rows lack a change, as far as that is known without the server. `None` where it cannot be told.
fn judge(
    told: Option<&Told>,
    change: &Assembled,
    message: &Message<'_>,
    questions: &mut Vec<Question>,
) -> Option<(Lack, Lack)> {
    let xid = change.transaction.xid;
    let all = |lack| Some((Lack::Known(lack), Lack::Known(lack)));
    let contents = match told {
        Some(Told::Rows(contents)) => contents,
        Some(Told::NoMore) => return all(false),
        Some(Told::Nothing) | None => return all(true),
    };
    if let Some(visibility) = &contents.visibility {
        return all(!visibility.sees(xid));
    }
    // The last part is what lies behind all keys that were read. What it sees is what was seen when the last of them was
    // looked for, so it may be older than the parts before it.
    let ((None, end), parts) = contents.chunks.split_last()? else { return None };
    // Of the others each was read later than the one before, and sees no less.
    let unseeing = parts.partition_point(|(_, visibility)| !visibility.sees(xid));
    let bound = |count: usize| parts.get(count.checked_sub(1)?)?.0.as_ref();
    let through = bound(unseeing);
    let behind = if end.sees(xid) { None } else { Some(bound(parts.len())) };
    let (through, behind) = match (through, behind) {
        (None, None) => return all(false),
        // None of them sees it, so that it does not matter where it lies.
        (_, Some(_)) if unseeing == parts.len() => return all(true),
        (through, behind) => (through, behind.flatten()),
    };
    // An old row tells no more than the table's identity. What does not come with it may have been another.
    let is_told = |name: &String| {
        let mut columns = change.shape.columns.iter();
        columns.any(|column| column.name == *name && column.identity)
    };
    if !matches!(message, Message::Insert { .. }) && !contents.key.iter().all(is_told) {
        return None;
    }
    let mut ask = |row, otherwise| {
        let key = key_of(&change.shape, &contents.key, row, otherwise)?;
        let mut question = |bound: &Vec<String>| {
            questions.push(Question { key: key.clone(), bound: bound.clone() });
            questions.len() - 1
        };
        Some(Lack::Asked { through: through.map(&mut question), behind: behind.map(&mut question) })
    };
    let (old, new) = match message {
        Message::Insert { new, .. } => (None, Some(ask(*new, None)?)),
        Message::Delete { old: Before::Key(old) | Before::Full(old), .. } => (Some(ask(*old, None)?), None),
        Message::Update { old: None, new, .. } => (None, Some(ask(*new, None)?)),
        Message::Update { old: Some(before @ (Before::Key(old) | Before::Full(old))), new, .. } => {
            // The new row may be all that is told, and of a value that is not sent nothing was told before.
            if cells_of_new(&change.shape, Some(*before), *new).any(|cell| cell.kind == CellKind::Unsent) {
                return None;
            }
            (Some(ask(*old, None)?), Some(ask(*new, Some(*old))?))
        }
        // It has emptied what some of the parts have, and the others were read behind it.
        _ => return None,
    };
    // Without a half of its own, the other decides for both.
    old.or(new).zip(new.or(old))
}

/// The values of a row's key.
fn key_of(
    shape: &TableShape,
    key: &[String],
    row: Row<'_>,
    otherwise: Option<Row<'_>>,
) -> Option<Vec<String>> {
    let value = |name: &String| {
        let column = shape.columns.iter().position(|column| column.name == *name)?;
        let value = match (row.get(column), otherwise) {
            (Value::Unsent, Some(other)) => other.get(column),
            (value, _) => value,
        };
        match value {
            Value::Text(text) => String::from_utf8(text.to_vec()).ok(),
            // The server has another way to write it, or there is no key.
            Value::Binary(_) | Value::Null | Value::Unsent => None,
        }
    };
    key.iter().map(value).collect()
}

/// Where the values of an update's new row lie. Those that are not sent are as they were, and lie in the old row as far as
/// that has them.
fn cells_of_new<'a>(
    shape: &'a TableShape,
    old: Option<Before<'a>>,
    new: Row<'a>,
) -> impl Iterator<Item = Cell> + 'a {
    let was = move |index: usize| match old? {
        Before::Full(old) => old.cells().get(index),
        // The other columns look like nulls.
        Before::Key(old) => {
            shape.columns.get(index).filter(|column| column.identity).and(old.cells().get(index))
        }
    };
    new.cells().iter().enumerate().map(move |(index, cell)| match cell.kind {
        CellKind::Unsent => *was(index).unwrap_or(cell),
        _ => *cell,
    })
}

/// What is to be told of a change, as a change. What it makes of the new row lies in `whole`.
fn change_of<'a>(
    message: Message<'a>,
    half: Half,
    shape: &TableShape,
    whole: &'a mut Vec<Cell>,
) -> Result<TableChange<'a>, CaptureError> {
    let row = |operation, before, after| TableChange::Row { operation, before, after };
    Ok(match (message, half) {
        (Message::Insert { new, .. }, _) => row(Operation::Insert, None, Some(new)),
        (Message::Delete { old, .. }, _) => row(Operation::Delete, Some(old), None),
        (Message::Update { old: Some(old), .. }, Half::Old) => row(Operation::Delete, Some(old), None),
        (Message::Update { old, new, .. }, Half::New) => {
            whole.clear();
            whole.extend(cells_of_new(shape, old, new));
            // Both rows lie in the bytes of the message.
            row(Operation::Insert, None, Some(new.with_cells(whole)))
        }
        (Message::Update { old, new, .. }, _) => row(Operation::Update, old, Some(new)),
        (Message::Truncate { .. }, _) => TableChange::Truncate,
        (other, _) => {
            return Err(CaptureError::Held { detail: format!("{other:?} is no change of a table") });
        }
    })
}

#[cfg(test)]
mod tests;
