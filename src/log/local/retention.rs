//! Seals full segments, removes old ones, and takes records away that readers delete.
//!
//! A segment is sealed when everything in it is committed: its index is made durable, then a new segment, then the
//! checkpoint that says so. Removal goes the other way round: the checkpoint with the new starts first, then the files.
//! A crash between any two steps leaves files that recovery either reads again or removes.
//!
//! Deleted records are those below a partition's start. They stay in their segments, out of reach, until nothing can be
//! read of the oldest segments any more: then those go too, whatever the retention.
//!
//! What a hidden topic holds is still needed by who writes the log. So nothing is removed from the oldest segment on that
//! has a record of one, whatever the retention, until the topic is deleted.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::checkpoint::SealedSegment;
use super::files::failed;
use super::index;
use super::segment::{Form, Segment};
use super::thread::{LogThread, now_ms};
use crate::log::topics::is_hidden;
use crate::log::{LogError, Offset, PartitionId, PartitionRange, Retention, Snapshot};

/// A segment is not sealed for its age before it has this one, however short the retention: each costs some fsyncs.
const MIN_SEAL_AGE: Duration = Duration::from_secs(1);

impl LogThread {
    /// Seals the open segments where the active one is full or old, or a group has spanned several.
    pub(super) fn seal_if_due(&mut self) -> Result<(), LogError> {
        let appender = &self.appender;
        let Some(active) = appender.open.last() else { return Ok(()) };
        let age = self.retention().age.map_or(i64::MAX, |age| age.max(MIN_SEAL_AGE).as_millis() as i64);
        let old = active.first_append > 0 && now_ms().saturating_sub(active.first_append) > age;
        let due = appender.open.len() > 1 || active.len >= appender.segment_bytes || old;
        let whole = appender.pending.is_empty() && !appender.last.loose && !appender.owes_discard;
        if !due || !whole || active.last_append == 0 && appender.open.len() == 1 {
            return Ok(());
        }

        // A segment in the middle of a group has no commit of its own.
        let newest = appender.open.iter().map(|open| open.last_append).max().unwrap_or(0);
        let mut sealed = Vec::new();
        let mut tables = Vec::new();
        for open in &self.appender.open {
            let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
            let entries = views.entries_of(open.segment.sequence);
            tables.push(index::write(&*self.options.files, &open.segment, open.len, &entries)?);
            sealed.push(SealedSegment {
                sequence: open.segment.sequence,
                len: open.len,
                last_append: if open.last_append == 0 { newest } else { open.last_append },
                form: Form::Written,
            });
        }
        // Makes the names of the indexes durable too.
        self.appender.roll(&self.shared)?;
        let mut next = self.checkpoint.clone();
        next.sealed.extend(sealed.iter().copied());
        next.base = self.base_here();
        for (state, end) in next.partitions.iter_mut().zip(&self.appender.ends) {
            state.base_end = *end;
        }
        if let Err(error) = self.save(next) {
            // Tried again later, which would otherwise make one more segment each time.
            if error.is_retryable() {
                self.appender.unroll(&self.shared)?;
            }
            return Err(error);
        }

        let mut views = self.shared.views.write().unwrap_or_else(PoisonError::into_inner);
        for (sealed, rows) in sealed.iter().zip(&tables) {
            views.seal(sealed.sequence, rows);
        }
        drop(views);
        self.appender.open.drain(..sealed.len());
        let active = self.base_here().sequence;
        self.appender.last.place =
            super::appender::Place { sequence: active, position: super::segment::HEADER_LEN as u64 };
        // Its records may have been deleted before.
        self.is_freed = true;
        Ok(())
    }

    fn retention(&self) -> Retention {
        *self.shared.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the records below some offsets away: durable first, then visible.
    pub(super) fn delete_records(
        &mut self,
        below: &[(PartitionId, Offset)],
    ) -> Result<Vec<Offset>, LogError> {
        if self.is_poisoned() {
            return Err(self.lost_to());
        }
        let snapshot = self.shared.snapshot();
        let mut next = self.checkpoint.clone();
        let mut ranges = Vec::with_capacity(below.len());
        for (partition, offset) in below {
            let unknown = LogError::UnknownPartition(*partition);
            let Some(range) = snapshot.range(*partition) else { return Err(unknown) };
            let state = next.partitions.get_mut(partition.0 as usize).ok_or(unknown)?;
            state.start = state.start.max(offset.0.min(range.end.0));
            ranges.push((*partition, PartitionRange { start: Offset(state.start), ..range }));
        }
        if next.partitions != self.checkpoint.partitions {
            self.save(next)?;
            let next = snapshot.with(snapshot.commit(), ranges.iter().copied());
            drop(snapshot);
            self.swap_snapshot(next, None, false);
            self.is_freed = true;
        }
        Ok(ranges.into_iter().map(|(_, range)| range.start).collect())
    }

    /// Removes the sealed segments that nobody wants to keep, or can read.
    pub(super) fn apply_retention(&mut self) -> Result<(), LogError> {
        let retention = self.retention();
        let snapshot = self.shared.snapshot();
        let readable_from = self.is_freed.then(|| {
            let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
            views.oldest_readable(&snapshot).unwrap_or(u64::MAX)
        });
        let spared_from = self.spared_from(&snapshot);
        let oldest_kept = retention.age.map(|age| now_ms().saturating_sub(age.as_millis() as i64));
        let mut size = self.size();
        let mut gone = 0;
        let mut is_held_up = false;
        for sealed in &self.checkpoint.sealed {
            let too_much = retention.bytes.is_some_and(|bytes| size - sealed.len >= bytes);
            let too_old = oldest_kept.is_some_and(|oldest| sealed.last_append < oldest);
            let unreadable = readable_from.is_some_and(|from| sealed.sequence < from);
            if !too_much && !too_old && !unreadable {
                break;
            }
            if sealed.sequence >= spared_from {
                is_held_up = true;
                break;
            }
            size -= sealed.len;
            gone += 1;
        }
        if is_held_up && !self.retention_is_held_up {
            tracing::warn!(
                log = %self.options.name, size,
                "existing rows are being read, and the changes that are held meanwhile keep the log larger, or older, than its \
                 retention allows; the space comes back when the reading ends, see that the disk has room until then"
            );
        }
        self.retention_is_held_up = is_held_up;
        let Some(last) = self.checkpoint.sealed[..gone].last().map(|sealed| sealed.sequence) else {
            self.is_freed = false;
            return Ok(());
        };

        let starts = self.shared.views.read().unwrap_or_else(PoisonError::into_inner).starts_without(last);
        let mut ranges = Vec::with_capacity(starts.len());
        let mut next = self.checkpoint.clone();
        let removed: Vec<_> = next.sealed.drain(..gone).collect();
        for (partition, start) in starts {
            let Some(range) = snapshot.range(partition) else { continue };
            let start = start.map_or(range.end, |start| start.max(range.start));
            let range = PartitionRange { start, ..range };
            if let Some(state) = next.partitions.get_mut(partition.0 as usize) {
                state.start = range.start.0;
            }
            ranges.push((partition, range));
        }
        self.save(next)?;

        // The next ones may have been kept only by these.
        self.is_freed = true;
        self.shared.removed.store(last, Ordering::Release);
        let next = snapshot.with(snapshot.commit(), ranges);
        drop(snapshot);
        self.swap_snapshot(next, None, false);
        self.shared.views.write().unwrap_or_else(PoisonError::into_inner).remove_through(last);
        self.merging.forget_through(last);
        for sealed in removed {
            let (log_id, files) = (self.checkpoint.log_id, &self.shared.files);
            let directory = &self.options.directory;
            self.remove_segment(&Segment::new(files, directory, log_id, sealed.sequence, sealed.form));
        }
        Ok(())
    }

    /// The oldest segment in which a hidden topic has a record.
    fn spared_from(&self, snapshot: &Snapshot) -> u64 {
        let hidden = self.checkpoint.topics.iter().filter(|topic| is_hidden(&topic.name));
        let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
        let oldest =
            hidden.flat_map(|topic| &topic.partitions).filter_map(|id| views.oldest_of(*id, snapshot));
        oldest.min().unwrap_or(u64::MAX)
    }

    /// Removes the files of a segment that is not in force any more. What is left of them the next start removes.
    pub(super) fn remove_segment(&self, segment: &Segment) {
        for path in [&segment.index_path, &segment.path] {
            if let Err(error) = self.shared.files.unlink(path) {
                let error = failed("remove", path, error);
                tracing::warn!(log = %self.options.name, %error, "an old segment stays until the next start");
            }
        }
    }
}
