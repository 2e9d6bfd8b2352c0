//! From a replication message to records in the log: transaction assembly, ordinals, deduplication, and
//! the hand-over to each output.
//!
//! The fast path is [`Pipeline::message`]: it parses into borrowed slices, encodes the change once and appends it, with
//! no allocation, lock or system call. What needs to wait (the catalog, a spool file, a large transaction) is handed
//! back to the session as a [`Step`].

use std::sync::Arc;
use std::time::Instant;

pub(super) mod existing;

use super::CaptureError;
use super::existing::Existing;
use super::existing::held::HeldChange;
use super::output::Output;
use super::own_events::OwnEvents;
use super::progress::Progress;
use super::relations::Relation;
use super::shapes::{Arrival, Shapes};
use super::spool::{Spool, Spools};
use super::text_rows::{Question, TextRows};
use crate::change::{
    Before, Change, Event, Gap, Heartbeat, Lsn, Operation, Phase, Row, TableShape, Timestamp, Transaction,
    Watermark,
};
use crate::log::{LogReader, LogWriter, SourcePosition};
use crate::postgres::pgoutput::{self, Cells, Message};

/// Logical messages with this prefix are Millrace's own (heartbeats) and no events.
pub const OWN_PREFIX: &str = "millrace.";

/// What a message asks the session to do before the next one.
#[derive(Debug)]
pub enum Step {
    /// Nothing: go on.
    Done,
    /// Look up a table and give its shape to [`Pipeline::set_shape`].
    Shape(Relation, Arrival),
    /// Ask the server for these values' text, give it to [`Pipeline::answer`], and give the same message again.
    Ask(Vec<Question>),
    /// Write this transaction's spool out.
    Spill(u32),
    /// A streamed transaction has committed: replay its spool, then end it.
    Replay {
        /// Its messages.
        spool: Spool,
        /// Where it ends.
        end_lsn: Lsn,
    },
}

/// A transaction whose messages are arriving.
#[derive(Debug)]
struct Open {
    transaction: Transaction,
    ordinal: u64,
    /// Already in the log: the server sends it again because it was not acknowledged.
    duplicate: bool,
}

/// One task's pipeline.
pub struct Pipeline<W> {
    /// Reads what the writer has written.
    log: Arc<dyn LogReader>,
    cells: Cells,
    rows: Rows<W>,
    /// The transaction being streamed, between Stream Start and Stream Stop.
    streaming: Option<u32>,
    /// Streamed transactions that have not ended.
    pub spools: Spools,
    /// What the next commit will carry: everything up to the last boundary.
    position: SourcePosition,
    last_commit_time: Option<Timestamp>,
    own_events: OwnEvents,
    /// Everything below has been processed; may lie beyond `position.acked_through` while nothing is worth a commit.
    idle_through: Lsn,
    progress: Arc<Progress>,
}

/// A message as the server sent it.
#[derive(Clone, Copy)]
struct Raw<'a> {
    lsn: Lsn,
    body: &'a [u8],
    in_stream: bool,
}

/// What happened to a table.
#[derive(Clone, Copy)]
enum TableChange<'a> {
    Row { operation: Operation, before: Option<Before<'a>>, after: Option<Row<'a>> },
    Truncate,
}

/// What a row change meets: its table's shape, its transaction, the outputs and the log.
struct Rows<W> {
    shapes: Shapes,
    /// The shape that the last row had, which the outputs have entered: rows of a table come in runs.
    last_shape: Option<Arc<TableShape>>,
    /// The job that holds the changes of that table; then no output has entered it.
    held_by: Option<usize>,
    existing: Existing,
    open: Option<Open>,
    outputs: Vec<Output>,
    writer: W,
    /// Set while values come in binary form.
    text_rows: Option<TextRows>,
    /// Records that the open transaction has left, over all outputs.
    records: u64,
}

impl<W: LogWriter> Pipeline<W> {
    /// A pipeline that has taken nothing yet; [`restart`](Self::restart) tells it where it begins.
    pub fn new(
        writer: W,
        log: Arc<dyn LogReader>,
        outputs: Vec<Output>,
        spools: Spools,
        progress: Arc<Progress>,
    ) -> Self {
        let position = SourcePosition {
            last_commit: None,
            end_lsn: Lsn::ZERO,
            last_record_end: Lsn::ZERO,
            acked_through: Lsn::ZERO,
            timeline: 0,
            system_identifier: 0,
            slot_generation: 0,
        };
        let own_events = OwnEvents::of(&outputs);
        Pipeline {
            log,
            cells: Cells::default(),
            rows: Rows {
                shapes: Shapes::default(),
                last_shape: None,
                held_by: None,
                existing: Existing::default(),
                open: None,
                outputs,
                writer,
                text_rows: None,
                records: 0,
            },
            streaming: None,
            spools,
            position,
            last_commit_time: None,
            own_events,
            idle_through: position.acked_through,
            progress,
        }
    }

    /// Forgets everything that is not in the log, for a new connection that starts at `position`. Shapes are forgotten
    /// too: a new walsender sends them again.
    pub fn restart(&mut self, position: SourcePosition) {
        self.drop_open();
        self.own_events.abort(position.last_commit);
        self.rows.existing.restart();
        self.rows.shapes = Shapes::default();
        self.streaming = None;
        self.spools.clear();
        self.position = position;
        self.idle_through = position.acked_through;
    }

    /// Forgets what has been appended since the last boundary.
    pub fn drop_open(&mut self) {
        self.rows.writer.abort();
        self.rows.records = 0;
        self.rows.outputs.iter_mut().for_each(Output::abort);
        self.rows.open = None;
        self.rows.last_shape = None;
    }

    /// The log's writer.
    pub fn writer(&mut self) -> &mut W {
        &mut self.rows.writer
    }

    /// What the next commit carries.
    pub fn position(&self) -> SourcePosition {
        self.position
    }

    /// Commit time of the last transaction before the last boundary.
    pub fn last_commit_time(&self) -> Option<Timestamp> {
        self.last_commit_time
    }

    /// Whether messages of an unfinished transaction are being taken.
    pub fn in_transaction(&self) -> bool {
        self.rows.open.is_some()
    }

    /// What a position-only commit would carry, when there is anything to gain by one.
    pub fn idle_position(&self) -> Option<SourcePosition> {
        let ahead = self.rows.open.is_none() && self.idle_through > self.position.acked_through;
        ahead.then_some(SourcePosition { acked_through: self.idle_through, ..self.position })
    }

    /// The next commit carries this, without a change of its own.
    pub fn set_position(&mut self, position: SourcePosition) {
        self.position = position;
        self.idle_through = self.idle_through.max(position.acked_through);
    }

    /// The server says that it has sent everything below `end`.
    pub fn keepalive(&mut self, end: Lsn) {
        if self.rows.open.is_none() && self.streaming.is_none() {
            self.idle_through = self.idle_through.max(end);
        }
    }

    /// Whether values come in binary form from here on.
    pub fn set_binary(&mut self, binary: bool) {
        self.rows.text_rows = binary.then(TextRows::default);
    }

    /// The server's answer to a question of [`Step::Ask`].
    pub fn answer(&mut self, question: Question, text: Vec<u8>) {
        if let Some(text_rows) = &mut self.rows.text_rows {
            text_rows.answer(question, text);
        }
    }

    /// The commit LSN of the transaction whose messages are arriving, and the table of the last, as far as known.
    pub fn place(&self) -> (Option<Lsn>, Option<String>) {
        let open = self.rows.open.as_ref().map(|open| open.transaction.commit_lsn);
        let shape = self.rows.last_shape.as_ref().or(self.rows.shapes.newest());
        (open, shape.map(|shape| format!("{}.{}", shape.schema, shape.name)))
    }

    /// The table's shape from here on.
    pub fn set_shape(&mut self, arrival: Arrival, shape: Arc<TableShape>) {
        self.rows.last_shape = None;
        self.rows.shapes.set(arrival, shape);
    }

    /// The shapes of tables with values of composite types.
    pub fn composite_shapes(&self) -> Vec<Arc<TableShape>> {
        let has_composite = |shape: &&Arc<TableShape>| shape.columns.iter().any(|c| c.form.has_composite());
        self.rows.shapes.all().filter(has_composite).cloned().collect()
    }

    /// The table's shape from here on, although the stream has sent none.
    pub fn renew_shape(&mut self, shape: Arc<TableShape>) {
        self.rows.last_shape = None;
        self.rows.shapes.renew(shape);
    }

    /// Takes one message of the stream.
    ///
    /// # Errors
    /// A message that breaks the protocol; a record that the log or the format refuses.
    pub fn message(&mut self, lsn: Lsn, body: &[u8]) -> Result<Step, CaptureError> {
        if let Some(xid) = self.streaming {
            // Stream Stop is the only message here that is not kept for the transaction's end.
            if body.first() == Some(&b'E') {
                self.streaming = None;
                return Ok(Step::Done);
            }
            let full = self.spools.push(xid, lsn, body);
            match body.first() {
                Some(b'R') => self.spools.shape_arrived(xid, self.rows.shapes.arrived()),
                Some(b'M') => self.spools.has_message(xid),
                _ => {}
            }
            return Ok(if full { Step::Spill(xid) } else { Step::Done });
        }
        match pgoutput::parse(body, false, &mut self.cells)? {
            // The end is not known before Commit; no change needs it.
            Message::Begin { final_lsn, commit_time, xid } => {
                self.rows.begin(self.position.last_commit, xid, final_lsn, final_lsn, commit_time);
            }
            Message::Commit { end_lsn, .. } => self.commit(end_lsn)?,
            Message::StreamStart { xid, .. } => self.streaming = Some(xid),
            Message::StreamAbort { xid, sub_xid, .. } => self.spools.abort(xid, sub_xid),
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                self.rows.begin(self.position.last_commit, xid, commit_lsn, end_lsn, commit_time);
                match self.spools.take(xid) {
                    Some(spool)
                        if spool.is_in_doubt()
                            && self.rows.open.as_ref().is_some_and(|open| !open.duplicate) =>
                    {
                        return Err(CaptureError::ReadWhole);
                    }
                    Some(mut spool) => {
                        self.rows.last_shape = None;
                        self.rows.shapes.begin_replay(spool.take_arrivals());
                        return Ok(Step::Replay { spool, end_lsn });
                    }
                    None => self.commit(end_lsn)?,
                }
            }
            message @ Message::LogicalMessage { transactional: false, .. } => {
                // A transaction of its own. Its LSN is where its WAL record ends, and there a commit record may begin: its
                // place is the byte before, behind every commit before it and before every commit behind it.
                let commit_lsn = Lsn(lsn.0.saturating_sub(1));
                self.rows.begin(self.position.last_commit, 0, commit_lsn, lsn, Timestamp::now());
                self.rows.take(Raw { lsn, body, in_stream: false }, message)?;
                self.commit(lsn)?;
            }
            message => return self.rows.take(Raw { lsn, body, in_stream: false }, message),
        }
        Ok(Step::Done)
    }

    /// Takes one message of a streamed transaction that has committed.
    ///
    /// # Errors
    /// As [`message`](Self::message).
    pub fn replayed(&mut self, lsn: Lsn, body: &[u8], spool: &Spool) -> Result<Step, CaptureError> {
        let message = pgoutput::parse(body, true, &mut self.cells)?;
        // A shape that was sent inside a subtransaction holds for what follows, also when that was rolled back: the
        // server sends it again only after an invalidation.
        let shape = matches!(message, Message::Relation { .. });
        if !shape && message.xid().is_some_and(|xid| spool.is_aborted(xid)) {
            return Ok(Step::Done);
        }
        self.rows.take(Raw { lsn, body, in_stream: true }, message)
    }

    /// Ends the open transaction: it is whole, and belongs to the next group.
    ///
    /// # Errors
    /// A commit without a begin.
    pub fn commit(&mut self, end_lsn: Lsn) -> Result<(), CaptureError> {
        let Some(open) = self.rows.open.take() else {
            return Err(CaptureError::Protocol("a commit without a begin".into()));
        };
        if self.rows.shapes.end_replay() {
            self.rows.last_shape = None;
        }
        self.idle_through = self.idle_through.max(end_lsn);
        if open.duplicate {
            return Ok(());
        }
        let records = self.rows.end(&open)?;
        self.progress.decoded(end_lsn, open.ordinal, records);
        if records == 0 {
            return Ok(());
        }
        self.rows.writer.boundary();
        self.position = SourcePosition {
            last_commit: Some(open.transaction.commit_lsn),
            end_lsn,
            last_record_end: end_lsn,
            acked_through: self.position.acked_through.max(end_lsn),
            ..self.position
        };
        let Transaction { commit_lsn, commit_time, .. } = open.transaction;
        self.last_commit_time = Some(commit_time);
        self.own_events.moved(Watermark { commit_lsn, commit_time });
        self.write_own_events()
    }

    /// Writes that changes may be missing. Between transactions only; part of the next group.
    ///
    /// # Errors
    /// A record that the log or the format refuses.
    pub fn gap(&mut self, gap: &Gap) -> Result<(), CaptureError> {
        let transaction = Transaction {
            xid: 0,
            commit_lsn: gap.to,
            end_lsn: gap.to,
            commit_time: Timestamp::now(),
            previous_commit_lsn: self.position.last_commit.unwrap_or_default(),
            phase: Phase::Stream,
        };
        let event = Event { transaction: &transaction, ordinal: 0, lsn: gap.to, change: Change::Gap(gap) };
        self.rows.own_event(&event)
    }

    /// Writes the heartbeats and watermarks that are due, unless a transaction is open. Part of the next group.
    ///
    /// # Errors
    /// A record that the log or the format refuses.
    pub fn write_own_events(&mut self) -> Result<(), CaptureError> {
        if self.own_events.are_off() || self.rows.open.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if self.own_events.take_heartbeat(now) {
            let idle = self.idle_position().unwrap_or(self.position);
            let heartbeat = Heartbeat { time: Timestamp::now(), processed: idle.acked_through };
            self.write_own_event(heartbeat.time, Change::Heartbeat(heartbeat))?;
            // With no partition to stand in it makes no group, and the position waits for an idle commit.
            if self.rows.writer.has_group() {
                self.set_position(idle);
            }
        }
        if let Some(watermark) = self.own_events.take_watermark(now) {
            self.write_own_event(watermark.commit_time, Change::Watermark(watermark))?;
        }
        Ok(())
    }

    /// Writes the watermark that no later group may carry, unless a transaction is open: before a stop.
    ///
    /// # Errors
    /// A record that the log or the format refuses.
    pub fn write_last_watermark(&mut self) -> Result<(), CaptureError> {
        if self.rows.open.is_some() {
            return Ok(());
        }
        match self.own_events.take_last_watermark() {
            Some(watermark) => self.write_own_event(watermark.commit_time, Change::Watermark(watermark)),
            None => Ok(()),
        }
    }

    /// Writes an event that has no place in the source: the position stays as it is.
    fn write_own_event(&mut self, time: Timestamp, change: Change<'_>) -> Result<(), CaptureError> {
        let SourcePosition { last_commit, end_lsn, .. } = self.position;
        let commit_lsn = last_commit.unwrap_or_default();
        let transaction = Transaction {
            xid: 0,
            commit_lsn,
            end_lsn,
            commit_time: time,
            previous_commit_lsn: Lsn::ZERO,
            phase: Phase::Stream,
        };
        self.rows.own_event(&Event { transaction: &transaction, ordinal: 0, lsn: commit_lsn, change })
    }
}

impl<'a> TableChange<'a> {
    #[inline]
    fn of(self, table: &'a TableShape) -> Change<'a> {
        match self {
            TableChange::Row { operation, before, after } => Change::Row { operation, table, before, after },
            TableChange::Truncate => Change::Truncate { table },
        }
    }
}

/// Changes of this table follow.
fn enter<W: LogWriter>(
    outputs: &mut [Output],
    writer: &mut W,
    shape: &Arc<TableShape>,
) -> Result<(), CaptureError> {
    outputs.iter_mut().try_for_each(|output| output.enter(shape, writer)).map_err(CaptureError::Log)
}

/// Gives a change of the table that was entered to the outputs, and gives the number of records that it made.
#[inline]
fn deliver<W: LogWriter>(
    outputs: &mut [Output],
    writer: &mut W,
    event: &Event<'_>,
) -> Result<u64, CaptureError> {
    let mut records = 0;
    for output in outputs {
        records += output.change(writer, event)?;
    }
    Ok(records)
}

impl<W: LogWriter> Rows<W> {
    /// Begins a transaction, which is a duplicate when it lies at or below the last that the log has.
    fn begin(&mut self, last: Option<Lsn>, xid: u32, commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp) {
        let previous_commit_lsn = last.unwrap_or_default();
        self.existing.begin_transaction();
        self.open = Some(Open {
            transaction: Transaction {
                xid,
                commit_lsn,
                end_lsn,
                commit_time,
                previous_commit_lsn,
                phase: Phase::Stream,
            },
            ordinal: 0,
            duplicate: last.is_some_and(|last| commit_lsn <= last),
        });
    }

    fn take(&mut self, raw: Raw<'_>, message: Message<'_>) -> Result<Step, CaptureError> {
        if self.open.is_none() {
            return match message {
                Message::Relation { oid, schema, name, identity, columns, .. } => {
                    Ok(Step::Shape(Relation::new(oid, schema, name, identity, &columns), self.shapes.read()))
                }
                Message::Type { .. } | Message::Origin { .. } => Ok(Step::Done),
                _ => Err(CaptureError::Protocol("a change outside a transaction".into())),
            };
        }
        let (oid, operation, before, after) = match message {
            Message::Insert { relation, new, .. } => (relation, Operation::Insert, None, Some(new)),
            Message::Update { relation, old, new, .. } => (relation, Operation::Update, old, Some(new)),
            Message::Delete { relation, old, .. } => (relation, Operation::Delete, Some(old), None),
            Message::Relation { oid, schema, name, identity, columns, .. } => {
                return Ok(Step::Shape(
                    Relation::new(oid, schema, name, identity, &columns),
                    self.shapes.read(),
                ));
            }
            Message::Type { .. } | Message::Origin { .. } => return Ok(Step::Done),
            Message::LogicalMessage { prefix, .. } if prefix.starts_with(OWN_PREFIX) => {
                return Ok(Step::Done);
            }
            Message::LogicalMessage { transactional, prefix, content, .. } => {
                self.message(raw.lsn, Change::Message { transactional, prefix, content })?;
                return Ok(Step::Done);
            }
            Message::Truncate { relations, .. } => {
                for oid in relations {
                    self.change(oid, raw, TableChange::Truncate)?;
                }
                return Ok(Step::Done);
            }
            other => return Err(CaptureError::Protocol(format!("{other:?} inside a transaction"))),
        };
        self.change(oid, raw, TableChange::Row { operation, before, after })
    }

    /// Takes the open transaction's next change, which is one of a table.
    #[inline]
    fn change(&mut self, oid: u32, raw: Raw<'_>, change: TableChange<'_>) -> Result<Step, CaptureError> {
        let Some(open) = self.open.as_mut().filter(|open| !open.duplicate) else { return Ok(Step::Done) };
        let table = match &self.last_shape {
            Some(shape) if shape.oid == oid => shape,
            _ => {
                let shape = self.shapes.get(oid).ok_or(CaptureError::UnknownTable { oid, lsn: raw.lsn })?;
                self.held_by = self.existing.holding(oid);
                if self.held_by.is_none() {
                    enter(&mut self.outputs, &mut self.writer, shape)?;
                }
                self.last_shape.insert(shape.clone())
            }
        };
        let was_binary = self.text_rows.is_some();
        let change = match (change, &mut self.text_rows) {
            (TableChange::Row { operation, before, after }, Some(text_rows)) => {
                match text_rows.render(table, before, after) {
                    Ok((before, after)) => TableChange::Row { operation, before, after },
                    Err(questions) => return Ok(Step::Ask(questions)),
                }
            }
            (change, _) => change,
        };
        let ordinal = open.ordinal;
        open.ordinal += 1;
        if let Some(job) = self.held_by.and_then(|job| self.existing.jobs.get_mut(job)) {
            let Raw { lsn, body, in_stream } = raw;
            let mut held = HeldChange { oid, lsn, ordinal, in_stream, body };
            let mut as_text = Vec::new();
            if let (TableChange::Row { operation, before, after }, true) = (change, was_binary) {
                pgoutput::write_row(&mut as_text, operation, oid, before, after);
                held = HeldChange { in_stream: false, body: &as_text, ..held };
            }
            self.records += job.hold(&open.transaction, table, &held, &mut self.writer)?;
            return Ok(Step::Done);
        }
        let change = change.of(table);
        let event = Event { transaction: &open.transaction, ordinal, lsn: raw.lsn, change };
        self.records += deliver(&mut self.outputs, &mut self.writer, &event)?;
        Ok(Step::Done)
    }

    /// Takes the open transaction's next change, which is an application's message.
    fn message(&mut self, lsn: Lsn, change: Change<'_>) -> Result<(), CaptureError> {
        let Some(open) = self.open.as_mut().filter(|open| !open.duplicate) else { return Ok(()) };
        let (transaction, ordinal) = (open.transaction, open.ordinal);
        open.ordinal += 1;
        self.event(&Event { transaction: &transaction, ordinal, lsn, change })
    }

    /// Ends the open transaction, and gives the number of records that it has left.
    fn end(&mut self, open: &Open) -> Result<u64, CaptureError> {
        for output in &mut self.outputs {
            self.records += output.end(&mut self.writer, &open.transaction, open.ordinal)?;
        }
        Ok(std::mem::take(&mut self.records))
    }

    /// Writes an event that Millrace makes between two transactions. No transaction counts its records.
    fn own_event(&mut self, event: &Event<'_>) -> Result<(), CaptureError> {
        self.event(event)?;
        self.records = 0;
        self.writer.boundary();
        Ok(())
    }

    /// Writes an event that is not a change of a table.
    fn event(&mut self, event: &Event<'_>) -> Result<(), CaptureError> {
        for output in &mut self.outputs {
            self.records += output.event(&mut self.writer, event)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
