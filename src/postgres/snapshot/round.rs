//! One round: workers that read chunk after chunk, each in a transaction of its own.

mod chunk;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use self::chunk::{Chunk, Failed, NO_TEXT, Under};
use super::pace::{Pace, Places, ctid, places};
use super::progress::ReadState;
use super::reader::{PAUSE, Pending, Reading, RoundError, SharedSnapshot};
use super::table::{self, Table};
use super::{Part, Read, ReadFrom, Visibility};
use crate::postgres::connect::Control;
use crate::postgres::heartbeat;
use crate::postgres::replication::{CopyConnection, CopyError};

/// How long to leave a table alone that somebody has locked.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait before connecting again.
const CONNECT_PAUSE: Duration = Duration::from_secs(2);
/// How many rows the first chunk in key order asks for when nothing is known of the table.
const FIRST_ROWS: f64 = 1000.0;

pub(super) struct Round<'a> {
    reading: &'a Reading,
    control: Control,
    snapshot: Option<SharedSnapshot>,
    work: Mutex<Work>,
}

/// What is left to do.
#[derive(Default)]
struct Work {
    /// Tables under the shared snapshot.
    shared: Vec<Shared>,
    /// Tables that are read in key order, and that no worker has in hand.
    keyed: VecDeque<Keyed>,
    /// Tables of which all rows have been told under this epoch. Their end may not have been: a worker that waits to tell it
    /// is dropped when another one fails.
    told: Vec<(u32, u32)>,
    /// The shared snapshot is of no use any more.
    snapshot_lost: bool,
    /// When the rate limit allows the next chunk.
    next: Option<Instant>,
}

struct Shared {
    table: Table,
    epoch: u32,
    places: Places,
    /// `None` until its files have been measured.
    files: Option<Files>,
    pace: Pace,
    /// Chunks that are being read.
    in_flight: usize,
    /// Somebody has it locked.
    busy_until: Option<Instant>,
    /// It is not to be read on.
    stopped: Option<Stopped>,
    told_rows: bool,
    /// Everything has been told.
    ended: bool,
}

/// How large a table's files are.
#[derive(Default)]
struct Files {
    /// The place behind the last of each file, counted over all of them.
    ends: Vec<u64>,
}

impl Files {
    fn places(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The file that has this place, and its first place.
    fn of(&self, place: u64) -> (usize, u64) {
        let file = self.ends.partition_point(|end| *end <= place);
        (file, file.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0))
    }
}

/// Why a table is not read on in this round.
enum Stopped {
    /// It is another than it was, and is to be read anew from here.
    Changed(ReadFrom),
    Refused(String),
}

struct Keyed {
    table: Table,
    epoch: u32,
    after: Option<Vec<String>>,
    /// What there was when this round began with it.
    end: Option<KeyedEnd>,
    pace: Pace,
    busy_until: Option<Instant>,
}

/// The highest key of a table behind those that have been told, and what the snapshot sees that has found it: so that reading ends, however many rows
/// are added behind it meanwhile.
struct KeyedEnd {
    /// `None` where there is none.
    last: Option<Vec<String>>,
    visibility: Visibility,
}

enum Next {
    /// The files of the shared table with this index.
    Measure(usize),
    /// A chunk of the shared table with this index.
    Places(usize, Range<u64>),
    Keys(Box<Keyed>),
    Later(Instant),
    Nothing,
}

impl<'a> Round<'a> {
    /// Reads these tables as far as it goes.
    pub(super) async fn read(
        reading: &'a Reading,
        control: Control,
        shared: Vec<(Table, Pending)>,
        keyed: Vec<(Table, Pending)>,
    ) -> Result<(), RoundError> {
        let snapshot = match shared.is_empty() {
            true => None,
            false => {
                let max_age = reading.options.max_age;
                let snapshot = SharedSnapshot::take(&reading.server, &reading.source, max_age).await?;
                heartbeat::flush(&control, &reading.task).await?;
                Some(snapshot)
            }
        };
        // Rows of a partition that was made before the snapshot may be in it: one that is not known here has none.
        let oids: Vec<u32> = shared.iter().map(|(table, _)| table.oid).collect();
        let stamps = table::stamps(&control, &reading.task, &oids, None).await?;
        let round = Round { reading, control, snapshot, work: Mutex::default() };
        for (table, pending) in shared {
            if stamps.get(&table.oid) == Some(&table.stamp) {
                round.add_shared(table, pending).await?;
            }
        }
        for (table, pending) in keyed {
            round.add_keyed(table, pending).await?;
        }
        let workers = (0..reading.options.connections.max(1)).map(|_| round.worker());
        let outcome = try_join_all(workers).await;
        round.end().await?;
        outcome.map(drop)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn begin(
        &self,
        table: &Table,
        pending: &Pending,
        visibility: Option<Visibility>,
    ) -> Result<(), RoundError> {
        if pending.begun.is_none() {
            let (oid, epoch, shape, stamp) =
                (table.oid, pending.epoch, table.shape.clone(), table.stamp.clone());
            info!(task = self.reading.task, table = %table.name(), epoch, "reading existing rows");
            self.reading.tell(Read::Begin { oid, epoch, shape, visibility, stamp }).await?;
            if let Some(pending) = self.reading.pending().get_mut(&oid) {
                pending.begun = Some(table.stamp.clone());
            }
            self.reading.progress.table(oid, |table| {
                (table.state, table.rows, table.bytes, table.fraction) = (ReadState::Reading, 0, 0, 0.0);
            });
        }
        Ok(())
    }

    async fn add_shared(&self, table: Table, pending: Pending) -> Result<(), RoundError> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        self.begin(&table, &pending, Some(snapshot.visibility.clone())).await?;
        self.work().shared.push(Shared {
            table,
            epoch: pending.epoch,
            places: Places::of_files(&[]),
            files: None,
            pace: Pace::new(1.0, None),
            in_flight: 0,
            busy_until: None,
            stopped: None,
            told_rows: false,
            ended: false,
        });
        Ok(())
    }

    async fn add_keyed(&self, table: Table, pending: Pending) -> Result<(), RoundError> {
        self.begin(&table, &pending, None).await?;
        let per_row = match table.estimated_rows {
            0 => (8 << 20) as f64 / FIRST_ROWS,
            rows => table.bytes as f64 / rows as f64,
        };
        let after = match pending.from {
            ReadFrom::After { key, .. } => Some(key),
            ReadFrom::FirstKey | ReadFrom::Start => None,
        };
        let pace = Pace::new(per_row, self.reading.options.bytes_per_second);
        let keyed = Keyed { table, epoch: pending.epoch, after, end: None, pace, busy_until: None };
        self.work().keyed.push_back(keyed);
        Ok(())
    }

    /// Reads chunks until there is nothing left that this round could read.
    async fn worker(&self) -> Result<(), RoundError> {
        let mut connection = None;
        loop {
            let outcome = match self.next() {
                Next::Nothing => return Ok(()),
                Next::Later(at) => {
                    sleep_until(at).await;
                    continue;
                }
                Next::Measure(index) => self.measure(&mut connection, index).await,
                Next::Places(index, places) => self.read_places(&mut connection, index, places).await,
                Next::Keys(keyed) => self.read_keys(&mut connection, *keyed).await,
            };
            if let Err(error) = outcome {
                match error {
                    Failed::Round(error) => return Err(error),
                    Failed::Connection(error) => {
                        connection = None;
                        warn!(task = self.reading.task, %error, "a connection that reads existing rows is lost; making it anew");
                        sleep(CONNECT_PAUSE).await;
                    }
                    // The rest still comes on a connection that had too much to say.
                    Failed::TooMuch | Failed::TooLarge(_) => connection = None,
                    Failed::Busy | Failed::SnapshotLost | Failed::Stopped(_) => {}
                }
            }
        }
    }

    /// What a worker does next.
    fn next(&self) -> Next {
        let now = Instant::now();
        let mut work = self.work();
        if let Some(at) = work.next.filter(|at| *at > now) {
            return Next::Later(at);
        }
        if let Some(snapshot) = &self.snapshot {
            work.snapshot_lost |= snapshot.is_lost() || snapshot.is_too_old();
        }
        let snapshot_lost = work.snapshot_lost;
        let mut waits = Vec::new();
        // These first: their snapshot ages.
        for (index, shared) in work.shared.iter_mut().enumerate() {
            // A chunk that another worker has in hand may come back.
            if shared.in_flight > 0 {
                waits.push(now + BUSY_PAUSE);
            }
            let is_measured = shared.files.is_some();
            let has_more = if is_measured { !shared.places.is_empty() } else { shared.in_flight == 0 };
            if snapshot_lost || shared.stopped.is_some() || !has_more {
                continue;
            }
            match shared.busy_until.filter(|until| *until > now) {
                Some(until) => waits.push(until),
                None if !is_measured => {
                    shared.in_flight += 1;
                    return Next::Measure(index);
                }
                None => {
                    if let Some(places) = shared.places.take(shared.pace.units()) {
                        shared.in_flight += 1;
                        return Next::Places(index, places);
                    }
                }
            }
        }
        for _ in 0..work.keyed.len() {
            let Some(keyed) = work.keyed.pop_front() else { break };
            match keyed.busy_until.filter(|until| *until > now) {
                Some(until) => {
                    waits.push(until);
                    work.keyed.push_back(keyed);
                }
                None => return Next::Keys(Box::new(keyed)),
            }
        }
        waits.into_iter().min().map_or(Next::Nothing, Next::Later)
    }

    /// Measures a table's files. After the snapshot was taken: what it sees lies within that.
    async fn measure(&self, connection: &mut Option<CopyConnection>, index: usize) -> Result<(), Failed> {
        let known = self.work().shared.get(index).map(|shared| shared.table.clone());
        let Some(table) = known else { return Ok(()) };
        let outcome = self.file_sizes(connection, &table).await;
        let mut work = self.work();
        let Some(shared) = work.shared.get_mut(index) else { return Ok(()) };
        shared.in_flight = shared.in_flight.saturating_sub(1);
        match outcome {
            Ok((mut blocks, block_size)) => {
                // The first block also where there is none, so that a table that was truncated meanwhile is noticed.
                if let Some(first) = blocks.first_mut() {
                    *first = (*first).max(1);
                }
                let on_disk = blocks.iter().map(|blocks| u64::from(*blocks).saturating_mul(block_size));
                let bytes = table.bytes.max(on_disk.sum());
                shared.places = Places::of_files(&blocks);
                let mut all = 0;
                let end = |blocks: &u32| {
                    all += places(*blocks);
                    all
                };
                let files = Files { ends: blocks.iter().map(end).collect() };
                shared.pace =
                    Pace::new(bytes as f64 / all.max(1) as f64, self.reading.options.bytes_per_second);
                shared.files = Some(files);
                self.reading.progress.table(table.oid, |table| table.size = bytes);
                Ok(())
            }
            Err(Failed::Stopped(stopped)) => {
                shared.stopped.get_or_insert(stopped);
                Ok(())
            }
            Err(failed) => {
                shared.busy_until = Some(Instant::now() + BUSY_PAUSE);
                Err(failed)
            }
        }
    }

    /// The sizes of a table's files in blocks, and of a block in bytes.
    async fn file_sizes(
        &self,
        connection: &mut Option<CopyConnection>,
        table: &Table,
    ) -> Result<(Vec<u32>, u64), Failed> {
        let session = self.session(connection).await?;
        let files = table.files().map(|oid| oid.to_string()).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT concat(current_setting('block_size'), ' ',
                    string_agg(coalesce(pg_relation_size(oid), 0)::text, ' ' ORDER BY place))
             FROM unnest(ARRAY[{files}]::oid[]) WITH ORDINALITY file(oid, place)"
        );
        let answer = match session.run(&sql, &mut Vec::new(), 0).await {
            Ok(answer) => answer.unwrap_or_default(),
            Err(CopyError::Server(error)) => return Err(self.sort(error, table, Under::Own).await),
            Err(error) => return Err(error.into()),
        };
        let mut sizes = answer.split(' ').map(str::parse::<u64>);
        let mut read = || {
            let block = sizes.next()?.ok()?.max(1);
            let blocks = |bytes: u64| u32::try_from(bytes.div_ceil(block)).unwrap_or(u32::MAX);
            Some((sizes.by_ref().map(|bytes| bytes.map(blocks)).collect::<Result<Vec<_>, _>>().ok()?, block))
        };
        read().ok_or_else(|| {
            Stopped::Refused(format!("the server says that {} has size {answer}", table.name())).into()
        })
    }

    async fn read_places(
        &self,
        connection: &mut Option<CopyConnection>,
        index: usize,
        places: Range<u64>,
    ) -> Result<(), Failed> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        let known = self.work().shared.get(index).and_then(|shared| {
            let file = shared.files.as_ref()?.of(places.start);
            Some((shared.table.clone(), shared.epoch, file))
        });
        let Some((table, epoch, (file, start))) = known else { return Ok(()) };
        let count = places.end - places.start;
        let under = Under::Shared(&snapshot.name);
        let copy =
            |what| table.copy_between(file, &ctid(places.start - start), &ctid(places.end - start), what);
        let outcome = match self.chunk(connection, &table, under, copy, count == 1).await {
            Ok(chunk) => self.tell_places(&table, epoch, chunk).await,
            Err(failed) => Err(failed),
        };
        let (outcome, is_read) = self.work().settle(index, places, outcome);
        let place = |progress: &mut super::progress::TableProgress| progress.fraction = is_read.fraction;
        self.reading.progress.table(table.oid, place);
        if is_read.ended {
            self.reading
                .finish(table.oid, Read::End { oid: table.oid, epoch })
                .await
                .map_err(Failed::Round)?;
        }
        outcome
    }

    async fn tell_places(&self, table: &Table, epoch: u32, chunk: Chunk) -> Result<Told, Failed> {
        let told = Told { rows: chunk.count, bytes: chunk.size(), time: chunk.time };
        if told.rows > 0 {
            self.tell_rows(table, epoch, Part::Shared, chunk).await?;
        }
        Ok(told)
    }

    async fn tell_rows(&self, table: &Table, epoch: u32, part: Part, mut chunk: Chunk) -> Result<(), Failed> {
        let (count, size, turn) = (chunk.count, chunk.size(), chunk.turn.take());
        self.reading.progress.table(table.oid, |table| {
            table.rows += count;
            table.bytes += size as u64;
        });
        if let Some(rate) = self.reading.options.bytes_per_second {
            let takes = Duration::from_secs_f64(size as f64 / rate.max(1) as f64);
            let now = Instant::now();
            let mut work = self.work();
            work.next = Some(work.next.map_or(now, |next| next.max(now)) + takes);
        }
        let rows = chunk.into_rows(table.shape.columns.len());
        let read = Read::Rows { oid: table.oid, epoch, part, rows, count, turn };
        self.reading.tell(read).await.map_err(Failed::Round)
    }

    /// Does the next step with a table that is read in key order, and puts it back behind the others.
    async fn read_keys(
        &self,
        connection: &mut Option<CopyConnection>,
        mut keyed: Keyed,
    ) -> Result<(), Failed> {
        let oid = keyed.table.oid;
        let last = match self.read_next_keys(connection, &mut keyed).await {
            Ok(false) => None,
            Ok(true) => Some(Read::End { oid, epoch: keyed.epoch }),
            Err(Failed::Stopped(Stopped::Refused(reason))) => Some(Read::Refused { oid, reason }),
            Err(Failed::Stopped(Stopped::Changed(from))) => {
                if let Some(pending) = self.reading.pending().get_mut(&oid) {
                    pending.again(from);
                }
                return Ok(());
            }
            Err(failed) => {
                match &failed {
                    Failed::TooMuch => keyed.pace.too_much(keyed.pace.units()),
                    Failed::Busy => keyed.busy_until = Some(Instant::now() + BUSY_PAUSE),
                    _ => {}
                }
                self.work().keyed.push_back(keyed);
                return Err(failed);
            }
        };
        match last {
            Some(last) => self.reading.finish(oid, last).await.map_err(Failed::Round),
            None => {
                self.work().keyed.push_back(keyed);
                Ok(())
            }
        }
    }

    /// Reads and tells the next chunk, and says whether it was the table's last.
    async fn read_next_keys(
        &self,
        connection: &mut Option<CopyConnection>,
        keyed: &mut Keyed,
    ) -> Result<bool, Failed> {
        let Some(end) = &keyed.end else {
            let copy = |_| keyed.table.copy_last_key(keyed.after.as_deref());
            let chunk = self.chunk(connection, &keyed.table, Under::Own, copy, true).await?;
            let key = 0..keyed.table.shape.key.len();
            let last = (chunk.count > 0).then(|| chunk.last_key(key.len(), key));
            keyed.end = Some(KeyedEnd {
                last: last.map(|last| last.ok_or(NO_TEXT)).transpose()?,
                visibility: chunk.visibility.ok_or(Failed::Busy)?,
            });
            return Ok(false);
        };
        let Some(last) = end.last.clone().filter(|last| keyed.after.as_ref() != Some(last)) else {
            // What is behind the highest key was not there yet.
            let part = Part::Keys { through: None, visibility: end.visibility.clone() };
            self.tell_rows(&keyed.table, keyed.epoch, part, Chunk::empty()).await?;
            self.work().told.push((keyed.table.oid, keyed.epoch));
            return Ok(true);
        };
        let limit = keyed.pace.units();
        let copy = |what| keyed.table.copy_keys(keyed.after.as_deref(), &last, limit, what);
        let mut chunk = self.chunk(connection, &keyed.table, Under::Own, copy, limit == 1).await?;
        keyed.pace.took(chunk.count, chunk.size(), chunk.time);
        let through = match chunk.count < limit {
            true => last,
            false => {
                let (columns, key) = (keyed.table.shape.columns.len(), keyed.table.shape.key.iter().copied());
                chunk.last_key(columns, key).ok_or(NO_TEXT)?
            }
        };
        let visibility = chunk.visibility.take().ok_or(Failed::Busy)?;
        let part = Part::Keys { through: Some(through.clone()), visibility };
        self.tell_rows(&keyed.table, keyed.epoch, part, chunk).await?;
        let stamp = keyed.table.stamp.clone();
        if let Some(pending) = self.reading.pending().get_mut(&keyed.table.oid) {
            pending.from = ReadFrom::After { key: through.clone(), stamp };
        }
        keyed.after = Some(through);
        self.reading.progress.table(keyed.table.oid, |table| {
            table.fraction = table.rows as f64 / table.estimated_rows.max(table.rows).max(1) as f64;
        });
        Ok(false)
    }

    /// Leaves word for the next round of the tables that this one has not finished.
    async fn end(self) -> Result<(), RoundError> {
        let too_old = self.snapshot.as_ref().filter(|snapshot| snapshot.is_too_old());
        let too_old = too_old.map(|snapshot| snapshot.max_age.as_secs());
        let work = std::mem::take(&mut *self.work());
        if work.snapshot_lost && too_old.is_none() && !work.shared.iter().all(|shared| shared.ended) {
            warn!(
                task = self.reading.task,
                "the snapshot that existing rows are read under is lost; tables with a key go on in its order, the others \
                 begin anew; see the server's log"
            );
            sleep(PAUSE).await;
        }
        for (oid, epoch) in work.told {
            // Left as it is, it would be read a second time under an epoch that has all of its rows.
            if self.reading.pending().contains_key(&oid) {
                self.reading.finish(oid, Read::End { oid, epoch }).await?;
            }
        }
        for shared in work.shared.into_iter().filter(|shared| !shared.ended) {
            let (oid, has_key) = (shared.table.oid, shared.table.has_key());
            let from = match (shared.stopped, too_old) {
                (Some(Stopped::Refused(reason)), _) => Err(reason),
                (Some(Stopped::Changed(from)), _) => Ok(from),
                // It would be read from the start, and no further, for ever.
                (None, Some(seconds)) if shared.told_rows && !has_key => Err(format!(
                    "{}: it has no key to go on by, and was not read within the longest time that a snapshot may be \
                     held ({seconds} s); raise snapshot.max_age_minutes, and the server's old_snapshot_threshold where \
                     it has one, or give the table a primary key",
                    shared.table.name(),
                )),
                (None, _) if shared.told_rows && has_key => Ok(ReadFrom::FirstKey),
                (None, _) => Ok(ReadFrom::Start),
            };
            match from {
                Err(reason) => self.reading.finish(oid, Read::Refused { oid, reason }).await?,
                Ok(from) => {
                    if let Some(pending) = self.reading.pending().get_mut(&oid) {
                        pending.again(from);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Work {
    /// Files what became of a chunk, and says how far its table is.
    fn settle(
        &mut self,
        index: usize,
        places: Range<u64>,
        outcome: Result<Told, Failed>,
    ) -> (Result<(), Failed>, HowFar) {
        let mut how_far = HowFar { fraction: 0.0, ended: false };
        self.snapshot_lost |= matches!(outcome, Err(Failed::SnapshotLost));
        let Some(shared) = self.shared.get_mut(index) else { return (Ok(()), how_far) };
        let count = places.end - places.start;
        shared.in_flight = shared.in_flight.saturating_sub(1);
        let outcome = match outcome {
            Ok(told) => {
                shared.pace.took(count, told.bytes, told.time);
                shared.told_rows |= told.rows > 0;
                Ok(())
            }
            Err(failed) => {
                shared.places.give_back(places);
                match failed {
                    Failed::TooMuch => shared.pace.too_much(count),
                    Failed::Busy => shared.busy_until = Some(Instant::now() + BUSY_PAUSE),
                    _ => {}
                }
                match failed {
                    Failed::Stopped(stopped) => {
                        shared.stopped.get_or_insert(stopped);
                        Ok(())
                    }
                    other => Err(other),
                }
            }
        };
        how_far.fraction =
            1.0 - shared.places.len() as f64 / shared.files.as_ref().map_or(1, Files::places).max(1) as f64;
        if shared.places.is_empty() && shared.in_flight == 0 && shared.stopped.is_none() && !shared.ended {
            (shared.ended, how_far.ended) = (true, true);
            self.told.push((shared.table.oid, shared.epoch));
        }
        (outcome, how_far)
    }
}

struct HowFar {
    fraction: f64,
    ended: bool,
}

struct Told {
    rows: u64,
    bytes: usize,
    time: Duration,
}
