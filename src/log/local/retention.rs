//! Seals full segments, and removes old ones.
//!
//! A segment is sealed when everything in it is committed: its index is made durable, then a new segment, then the
//! checkpoint that says so. Removal goes the other way round: the checkpoint with the new starts first, then the files.
//! A crash between any two steps leaves files that recovery either reads again or removes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::checkpoint::SealedSegment;
use super::files::failed;
use super::index;
use super::segment::{Form, Segment};
use super::thread::{LogThread, now_ms};
use crate::log::{LogError, PartitionRange};

impl LogThread {
    /// Seals the open segments where the active one is full or old, or a group has spanned several.
    pub(super) fn seal_if_due(&mut self) -> Result<(), LogError> {
        let appender = &self.appender;
        let Some(active) = appender.open.last() else { return Ok(()) };
        let age = self.options.retention.age.map_or(i64::MAX, |age| age.as_millis() as i64);
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
        Ok(())
    }

    /// Removes the sealed segments that nobody wants to keep.
    pub(super) fn apply_retention(&mut self) -> Result<(), LogError> {
        let retention = self.options.retention;
        let oldest_kept = retention.age.map(|age| now_ms().saturating_sub(age.as_millis() as i64));
        let mut size = self.size();
        let mut gone = 0;
        for sealed in &self.checkpoint.sealed {
            let too_much = retention.bytes.is_some_and(|bytes| size - sealed.len >= bytes);
            let too_old = oldest_kept.is_some_and(|oldest| sealed.last_append < oldest);
            if !too_much && !too_old {
                break;
            }
            size -= sealed.len;
            gone += 1;
        }
        let Some(last) = self.checkpoint.sealed[..gone].last().map(|sealed| sealed.sequence) else {
            return Ok(());
        };

        let starts = self.shared.views.read().unwrap_or_else(PoisonError::into_inner).starts_without(last);
        let snapshot = self.shared.snapshot();
        let mut ranges = Vec::with_capacity(starts.len());
        let mut next = self.checkpoint.clone();
        let removed: Vec<_> = next.sealed.drain(..gone).collect();
        for (partition, start) in starts {
            let end = snapshot.range(partition).unwrap_or_default().end;
            let range = PartitionRange { start: start.unwrap_or(end), end };
            if let Some(state) = next.partitions.get_mut(partition.0 as usize) {
                state.start = range.start.0;
            }
            ranges.push((partition, range));
        }
        self.save(next)?;

        let mut other = std::sync::Arc::new(snapshot.with(snapshot.commit(), ranges));
        drop(snapshot);
        self.shared.removed.store(last, Ordering::Release);
        self.shared.snapshot.send_if_modified(|snapshot| {
            std::mem::swap(snapshot, &mut other);
            false
        });
        self.merging.superseded(&other, None);
        self.shared.views.write().unwrap_or_else(PoisonError::into_inner).remove_through(last);
        self.merging.forget_through(last);
        for sealed in removed {
            let (log_id, files) = (self.checkpoint.log_id, &self.shared.files);
            let directory = &self.options.directory;
            self.remove_segment(&Segment::new(files, directory, log_id, sealed.sequence, sealed.form));
        }
        Ok(())
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
