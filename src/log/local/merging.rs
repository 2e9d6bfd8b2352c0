//! When sealed segments are merged, and how a merged one takes the place of the written one.
//!
//! One merge at a time runs on a thread of its own, at low priority; each segment is looked at once after a start, so that
//! what an earlier merge gave up, or an older Millrace left, is tried again then. The log's thread starts it, waits for its
//! end beside its other work, and installs the result: the checkpoint first, which decides; then the views; then the
//! written file is removed. A crash in between leaves a file that is not in force, and recovery removes that.
//!
//! A merged batch may hold records of several commits. So that a request that took its snapshot before the last of them
//! sees nothing after its high watermark (I1), a merge is installed only when no such snapshot is held any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::merge::{self, Merge, Merged};
use super::segment::Form;
use super::thread::LogThread;
use crate::log::{LogError, Snapshot};

/// The bounds of how often the log's thread looks whether a merge has ended, or may be installed.
const POLL: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(20));

/// The merge in hand.
#[derive(Debug, Default)]
pub struct Merging {
    /// Sealed segments up to this number have been looked at.
    seen_through: u64,
    /// Whether the writer has been told how the topics' batches are compressed, as merged ones are to be.
    codecs_are_known: bool,
    running: Option<Running>,
    /// To be installed.
    finished: Option<Finished>,
    /// The last commit that moved a high watermark.
    moved: u64,
    /// Snapshots that were held when another superseded them, each with what `moved` was then.
    older: Vec<(u64, Weak<Snapshot>)>,
}

#[derive(Debug)]
struct Running {
    sequence: u64,
    /// What `moved` was at the start: high watermarks from then on have all of the segment below them.
    moved: u64,
    started: Instant,
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<Merged>, LogError>>,
}

#[derive(Debug)]
struct Finished {
    moved: u64,
    since: Instant,
    merged: Merged,
}

impl Merging {
    /// When the log's thread is to look at the merge in hand again.
    pub fn wait(&self) -> Option<Duration> {
        match (&self.running, &self.finished) {
            (Some(running), _) => Some(running.started.elapsed().clamp(POLL.0, POLL.1)),
            // A request may take long: the longer it does, the more seldom is it looked for.
            (None, Some(finished)) => Some(finished.since.elapsed().max(POLL.1)),
            (None, None) => None,
        }
    }

    /// A message has come, and before its first one the writer learns what topics it writes to.
    pub fn allow(&mut self) {
        self.codecs_are_known = true;
    }

    /// Takes note of a snapshot that is not the newest any more; `moved` is the commit that has moved a high watermark.
    pub fn superseded(&mut self, snapshot: &Arc<Snapshot>, moved: Option<u64>) {
        // One is ours.
        if Arc::strong_count(snapshot) > 1 {
            self.older.retain(|(_, older)| older.strong_count() > 0);
            self.older.push((self.moved, Arc::downgrade(snapshot)));
        }
        self.moved = moved.unwrap_or(self.moved);
    }

    /// Whether a request may still look at high watermarks from before commit `moved`.
    fn is_seen_before(&self, moved: u64) -> bool {
        self.older.iter().any(|(older, snapshot)| *older < moved && snapshot.strong_count() > 0)
    }

    /// Gives up the running merge.
    pub fn cancel(&self) {
        if let Some(running) = &self.running {
            running.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Retention has removed the segments up to `sequence`.
    pub fn forget_through(&self, sequence: u64) {
        if self.running.as_ref().is_some_and(|running| running.sequence <= sequence) {
            self.cancel();
        }
    }
}

impl LogThread {
    /// Goes on with merging: takes up what has ended, and starts what is next.
    pub(super) fn merge_if_due(&mut self) {
        if let Some(running) = self.merging.running.take_if(|running| running.thread.is_finished()) {
            let moved = running.moved;
            let finished = |merged| Finished { moved, since: Instant::now(), merged };
            self.merging.finished = self.joined(running).map(finished);
        }
        if let Some(finished) = self.merging.finished.take() {
            if self.merging.is_seen_before(finished.moved) {
                self.merging.finished = Some(finished);
            } else {
                self.install(&finished.merged);
            }
        }
        let is_free = self.merging.running.is_none() && self.merging.finished.is_none();
        if is_free && self.merging.codecs_are_known && !self.is_poisoned() {
            self.start_next_merge();
        }
        self.count_unmerged();
    }

    /// Says how many sealed segments may still be merged.
    fn count_unmerged(&self) {
        let sealed = &self.checkpoint.sealed;
        let seen = sealed.partition_point(|sealed| sealed.sequence <= self.merging.seen_through);
        let in_hand = self.merging.running.is_some() || self.merging.finished.is_some();
        let unmerged = if self.is_poisoned() { 0 } else { sealed.len() - seen + usize::from(in_hand) };
        self.shared.unmerged.store(unmerged, Ordering::Release);
        self.metrics.unmerged.set(unmerged as f64);
    }

    /// Gives up the merge in hand and waits until it has ended.
    pub(super) fn stop_merging(&mut self) {
        self.give_up_merge();
        if let Some(running) = self.merging.running.take() {
            self.joined(running);
        }
        self.count_unmerged();
    }

    /// Gives back the space of a merge that is not in force: at once if it has been taken up, else when it has ended.
    pub(super) fn give_up_merge(&mut self) {
        self.merging.cancel();
        if let Some(finished) = self.merging.finished.take() {
            self.remove_segment(&finished.merged.segment);
        }
    }

    fn start_next_merge(&mut self) {
        loop {
            let seen_through = self.merging.seen_through;
            let next = self.checkpoint.sealed.partition_point(|sealed| sealed.sequence <= seen_through);
            let Some(sealed) = self.checkpoint.sealed.get(next).copied() else { return };
            self.merging.seen_through = sealed.sequence;
            if sealed.form == Form::Merged {
                continue;
            }
            let views = self.shared.views.read().unwrap_or_else(PoisonError::into_inner);
            let (partitions, batches) = views.counts(sealed.sequence);
            let Some(from) = views.segment(sealed.sequence) else { continue };
            drop(views);
            let max_batch_bytes = self.options.merge_batch_bytes;
            if !merge::is_worthwhile(sealed.len, partitions, batches, max_batch_bytes) {
                continue;
            }
            let cancelled = Arc::new(AtomicBool::new(false));
            let merge = Merge {
                files: self.shared.files.clone(),
                directory: self.options.directory.clone(),
                log_id: self.checkpoint.log_id,
                from,
                from_len: sealed.len,
                codecs: self.shared.codecs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                max_batch_bytes,
                cancelled: cancelled.clone(),
            };
            let spawned =
                std::thread::Builder::new().name(format!("merge-{}", self.options.name)).spawn(move || {
                    lower_priority();
                    merge.run()
                });
            match spawned {
                Ok(thread) => {
                    let (sequence, moved) = (sealed.sequence, self.merging.moved);
                    let started = Instant::now();
                    self.merging.running = Some(Running { sequence, moved, started, cancelled, thread });
                    return;
                }
                Err(error) => {
                    tracing::warn!(log = %self.options.name, %error, "cannot start a thread to merge a segment")
                }
            }
        }
    }

    /// What a merge has made, unless it was given up.
    fn joined(&self, running: Running) -> Option<Merged> {
        let is_cancelled = running.cancelled.load(Ordering::Relaxed);
        // A panic has been reported by the panic hook.
        match running.thread.join().ok()? {
            Ok(Some(merged)) if is_cancelled => {
                self.remove_segment(&merged.segment);
                None
            }
            Ok(merged) => merged,
            // Retention may have taken the files away under it.
            Err(_) if is_cancelled => None,
            Err(error) => {
                let segment = running.sequence;
                tracing::warn!(log = %self.options.name, segment, %error, "a segment stays as it was written; merging its small batches is tried again at the next start");
                None
            }
        }
    }

    /// Puts a merged segment in force.
    fn install(&mut self, merged: &Merged) {
        let sequence = merged.segment.sequence;
        let mut next = self.checkpoint.clone();
        let sealed = next.sealed.iter_mut().find(|sealed| sealed.sequence == sequence);
        let written = self.shared.views.read().unwrap_or_else(PoisonError::into_inner).segment(sequence);
        let (Some(sealed), Some(written)) = (sealed, written) else {
            // Retention was faster.
            self.remove_segment(&merged.segment);
            return;
        };
        let before = std::mem::replace(&mut sealed.len, merged.len);
        sealed.form = Form::Merged;
        if let Err(error) = self.save(next) {
            tracing::warn!(log = %self.options.name, segment = sequence, %error, "a merged segment cannot be put in force");
            if error.is_retryable() {
                self.remove_segment(&merged.segment);
            }
            return;
        }
        // Who has looked up a batch in the written file may not have opened it yet.
        let opened = written.file();
        self.shared
            .views
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(&merged.segment, &merged.rows);
        match opened {
            Ok(_) => self.remove_segment(&written),
            Err(error) => {
                tracing::warn!(log = %self.options.name, segment = sequence, %error, "an old segment stays until the next start");
            }
        }
        self.metrics.merged.increment(1);
        tracing::debug!(log = %self.options.name, segment = sequence, before, after = merged.len, "merged the small batches of a segment");
    }
}

/// Lets commits and everything else go first. Elsewhere than on Linux this would concern the whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICE: libc::c_int = 10;
        // SAFETY: a plain system call, about the calling thread. If it is refused the merge is no less right.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    }
}
