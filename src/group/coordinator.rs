//! The coordinator: all groups, the clock that drives them, and the requests that wait for them.
//!
//! ```text
//!   JoinGroup/SyncGroup ──► lock: group.join(now, token) ──► oneshot per token ──► answer, or
//!                                                                                 dropped: group.cancel(token)
//!   timer task ──► lock: group.tick(now) for groups that are due ──► answers
//! ```
//!
//! One lock guards all groups, and is never held over an await or any I/O. What happens under it is a few map operations,
//! but for two things that go over a whole group: sharing out its partitions where the broker does that, and making a
//! consumer group of a classic one. The timer task sleeps until the nearest deadline, is woken when a nearer one comes up, and ends with
//! [`Coordinator::shutdown`] or when the coordinator is dropped.

pub(super) mod consumers;
mod offsets;
#[cfg(test)]
pub(super) mod tests;
mod timer;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::Options;
use super::catalog::Catalog;
use super::classic::{self, Description};
use super::consumer;
use super::member::{
    Answer, Identity, Join, JoinRefused, Joined, MEMBER_SIZE, Protocol, Sync, Synced, Token,
};
use super::protocol::{Group, Settings};
use crate::log::topics::Topics;
use crate::state::OffsetStore;

pub use offsets::{Commit, CommitEntry, GroupLag};

/// Bytes of a group id, or of a member id or instance id.
const MAX_ID: usize = 255;
/// Bytes of a client id that go into its member ids.
const MAX_CLIENT_ID_IN_MEMBER_ID: usize = 128;
/// Ways of sharing out partitions that a member may offer.
const MAX_PROTOCOLS: usize = 64;
/// Patterns that are held against the topics at once.
const MAX_FINDING: usize = 2;
/// A group that has been empty for so long is dropped from memory; its offsets stay.
const FORGET_EMPTY_AFTER: Duration = Duration::from_secs(600);

/// Keeps all groups.
pub struct Coordinator {
    options: Options,
    settings: Settings,
    offsets: OffsetStore,
    topics: Topics,
    opened: Instant,
    groups: Mutex<Groups>,
    /// Rung when the timer task has to look again.
    wake: Arc<Notify>,
    timer: Mutex<Option<JoinHandle<()>>>,
    /// The task that looks at the topics. Aborted when it is dropped: it may take long.
    watcher: Mutex<JoinSet<()>>,
    /// How many patterns may be held against the topics at once.
    finding: Arc<Semaphore>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coordinator({:?})", self.offsets)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // The timer task finds nobody to keep time for, and ends.
        self.wake.notify_one();
    }
}

struct Groups {
    by_id: HashMap<Arc<str>, Entry>,
    /// When which group is to be ticked.
    schedule: BTreeSet<(Duration, Arc<str>)>,
    /// The topics that the broker shares out.
    catalog: Catalog,
    /// Whether there are others meanwhile.
    news: watch::Receiver<()>,
    waiting: HashMap<Token, oneshot::Sender<Answer>>,
    last_token: u64,
    /// Bytes that members have made us keep.
    bytes: usize,
    /// Groups that lost their last member, or got one again, and whose offsets are not yet told so.
    emptied: HashMap<Arc<str>, Option<i64>>,
    closed: bool,
}

struct Entry {
    group: Group,
    scheduled: Option<Duration>,
    bytes: usize,
    /// Rung when there may be news for its members, and closed when it is forgotten.
    moved: watch::Sender<()>,
}

/// A group as ListGroups shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id.
    pub group: Arc<str>,
    /// `consumer` for consumers; empty where no member ever joined.
    pub protocol_type: Arc<str>,
    /// Its state, as Kafka names it.
    pub state: &'static str,
    /// `classic` or `consumer`.
    pub kind: &'static str,
}

impl Coordinator {
    /// Starts the coordinator, with its timer task. To be called in a tokio runtime.
    pub fn open(options: Options, offsets: OffsetStore, topics: Topics) -> Arc<Coordinator> {
        let settings = Settings {
            classic: Arc::new(classic::Settings {
                initial_rebalance_delay: options.initial_rebalance_delay,
                max_size: options.max_group_size,
            }),
            consumer: Arc::new(consumer::Settings {
                session_timeout: options.consumer_session_timeout,
                max_size: options.max_group_size,
            }),
        };
        let news = topics.watch();
        let groups = Groups::new(&topics);
        let coordinator = Arc::new(Coordinator {
            options,
            settings,
            offsets,
            topics,
            opened: Instant::now(),
            groups: Mutex::new(groups),
            wake: Arc::new(Notify::new()),
            timer: Mutex::default(),
            watcher: Mutex::default(),
            finding: Arc::new(Semaphore::new(MAX_FINDING)),
        });
        // A number that has not changed yet is 0, not absent.
        metrics::gauge!("millrace_groups").set(0.0);
        metrics::gauge!("millrace_group_members").set(0.0);
        metrics::counter!("millrace_group_commits_total").increment(0);
        let timer = tokio::spawn(timer::keep_time(Arc::downgrade(&coordinator), coordinator.wake.clone()));
        *coordinator.timer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(timer);
        let watcher = consumers::watch_topics(Arc::downgrade(&coordinator), news);
        coordinator.watcher.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).spawn(watcher);
        coordinator
    }

    /// Its bounds and times.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Stops: whoever waits is told to look for the coordinator again, and commits in flight are finished.
    pub async fn shutdown(&self) {
        {
            let mut groups = self.lock();
            groups.closed = true;
            let ids: Vec<Arc<str>> = groups.by_id.keys().cloned().collect();
            for id in ids {
                self.drive(&mut groups, &id, |group, _| group.kill(ResponseError::CoordinatorNotAvailable));
                groups.forget(&id);
            }
        }
        self.wake.notify_one();
        let timer = self.timer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(timer) = timer
            && let Err(error) = timer.await
        {
            tracing::error!(%error, "the timer of consumer groups has failed");
        }
        let mut watcher =
            std::mem::take(&mut *self.watcher.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        watcher.shutdown().await;
        self.offsets.close().await;
    }

    // -- Members -----------------------------------------------------------------------------------------------------

    /// JoinGroup. Waits until the group's next generation is made. Dropped, it takes the request back.
    ///
    /// # Errors
    /// What Kafka answers.
    pub async fn join(&self, group: &str, mut join: Join) -> Result<Joined, JoinRefused> {
        if join.new_member_id.is_empty() {
            let Some(fresh) = new_member_id(join.instance_id.as_deref().unwrap_or(&join.client_id)) else {
                let error = ResponseError::CoordinatorNotAvailable;
                return Err(JoinRefused { error, member_id: join.member_id });
            };
            join.new_member_id = fresh;
        }
        let waiting = match self.enter(group, &join) {
            Ok(waiting) => waiting,
            Err(error) => return Err(JoinRefused { error, member_id: join.member_id }),
        };
        match waiting.answer().await {
            Some(Answer::Join(answer)) => answer,
            _ => {
                let error = ResponseError::CoordinatorNotAvailable;
                Err(JoinRefused { error, member_id: join.member_id })
            }
        }
    }

    fn enter(&self, group: &str, join: &Join) -> Result<Waiting<'_>, ResponseError> {
        let bytes = self.check_join(group, join)?;
        let mut groups = self.lock();
        if groups.closed {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        if groups.bytes.saturating_add(bytes) > self.options.max_bytes {
            tracing::warn!(group, "the members of all groups together have reached their limit on memory");
            return Err(ResponseError::GroupMaxSizeReached);
        }
        let now = self.now();
        if !groups.by_id.contains_key(group) {
            if !join.member_id.is_empty() {
                return Err(ResponseError::UnknownMemberId);
            }
            self.make_room_for(&mut groups, group)?;
            groups.add(group, Group::Classic(classic::Group::new(self.settings.classic.clone(), now)));
        }
        let (token, answer) = groups.wait();
        self.drive(&mut groups, group, |group, catalog| {
            group.join(now, &self.settings, catalog, join, token)
        });
        Ok(Waiting { coordinator: self, group: group.into(), token, answer })
    }

    /// Sees to it that there may be one more group.
    fn make_room_for(&self, groups: &mut Groups, group: &str) -> Result<(), ResponseError> {
        if groups.by_id.len() >= self.options.max_groups {
            groups.forget_unused();
        }
        if groups.by_id.len() >= self.options.max_groups {
            tracing::warn!(group, "a group was refused: there are as many as there may be");
            return Err(ResponseError::PolicyViolation);
        }
        Ok(())
    }

    /// Whether the request is within bounds, and the memory that the member will take, about.
    fn check_join(&self, group: &str, join: &Join) -> Result<usize, ResponseError> {
        check_group_id(group)?;
        check_member(identity(&join.member_id, join.instance_id.as_deref()))?;
        let bounds = self.options.min_session_timeout..=self.options.max_session_timeout;
        if !bounds.contains(&join.session_timeout) {
            return Err(ResponseError::InvalidSessionTimeout);
        }
        let bytes: usize = join.protocols.iter().map(Protocol::size).sum();
        let named_well =
            join.protocol_type.len() <= MAX_ID && join.protocols.iter().all(|own| own.name.len() <= MAX_ID);
        if bytes > self.options.max_member_bytes || join.protocols.len() > MAX_PROTOCOLS || !named_well {
            return Err(ResponseError::InvalidRequest);
        }
        Ok(MEMBER_SIZE + join.client_id.len() + bytes)
    }

    /// SyncGroup. Waits until the leader has shared out the partitions. Dropped, it takes the request back.
    ///
    /// # Errors
    /// What Kafka answers.
    pub async fn sync(&self, group: &str, sync: Sync) -> Result<Synced, ResponseError> {
        check_group_id(group)?;
        if sync.assignments.iter().any(|(_, part)| part.len() > self.options.max_member_bytes) {
            return Err(ResponseError::InvalidRequest);
        }
        let waiting = {
            let mut groups = self.lock();
            let bytes: usize = sync.assignments.iter().map(|(_, part)| part.len()).sum();
            if groups.bytes.saturating_add(bytes) > self.options.max_bytes {
                tracing::warn!(
                    group,
                    "the members of all groups together have reached their limit on memory"
                );
                return Err(ResponseError::InvalidRequest);
            }
            let now = self.now();
            let (token, answer) = groups.wait();
            if self
                .drive(&mut groups, group, |group, catalog| group.sync(now, catalog, sync, token))
                .is_none()
            {
                groups.waiting.remove(&token);
                return Err(groups.unknown_group());
            }
            Waiting { coordinator: self, group: group.into(), token, answer }
        };
        match waiting.answer().await {
            Some(Answer::Sync(answer)) => answer,
            _ => Err(ResponseError::CoordinatorNotAvailable),
        }
    }

    /// Heartbeat.
    ///
    /// # Errors
    /// What Kafka answers.
    pub fn heartbeat(&self, group: &str, who: Identity<'_>, generation: i32) -> Result<(), ResponseError> {
        check_group_id(group)?;
        let mut groups = self.lock();
        let now = self.now();
        let unknown = groups.unknown_group();
        match groups.by_id.get_mut(group).map(|entry| &mut entry.group) {
            // It only puts deadlines off, so there is nothing to reschedule.
            Some(Group::Classic(group)) => group.heartbeat(now, who, generation),
            Some(Group::Consumer(_)) => {
                let input = |group: &mut Group, _: &Catalog| group.classic_heartbeat(now, who, generation);
                self.drive(&mut groups, group, input).unwrap_or(Err(unknown))
            }
            None => Err(unknown),
        }
    }

    /// LeaveGroup: one answer for each member, in order.
    ///
    /// # Errors
    /// What Kafka answers for the whole request.
    pub fn leave(
        &self,
        group: &str,
        members: &[Identity<'_>],
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        check_group_id(group)?;
        let mut groups = self.lock();
        let now = self.now();
        match self
            .drive(&mut groups, group, |group, catalog| group.leave(now, &self.settings, catalog, members))
        {
            Some(answers) => answers,
            None if groups.closed => Err(ResponseError::CoordinatorNotAvailable),
            None => Ok(members.iter().map(|_| Err(ResponseError::UnknownMemberId)).collect()),
        }
    }

    /// Wakes who waits on it when the group's state changes: earlier than a heartbeat could tell. Closed when there is no
    /// such group.
    pub(super) fn watch(&self, group: &str) -> watch::Receiver<()> {
        match self.lock().by_id.get(group) {
            Some(entry) => entry.moved.subscribe(),
            None => watch::Sender::new(()).subscribe(),
        }
    }

    /// The topics whose partitions groups share.
    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    // -- Views -------------------------------------------------------------------------------------------------------

    /// A classic group as DescribeGroups shows it; `None` where there is none.
    pub fn describe(&self, group: &str) -> Option<Description> {
        match self.lock().by_id.get(group).map(|entry| &entry.group) {
            Some(Group::Classic(group)) => return Some(group.describe()),
            Some(Group::Consumer(_)) => return None,
            None => {}
        }
        self.offsets.has_group(group).then(|| Description {
            state: classic::State::Empty,
            protocol_type: "".into(),
            protocol: "".into(),
            members: Vec::new(),
        })
    }

    /// All groups, with members or with offsets only, by id.
    pub fn list(&self) -> Vec<Listed> {
        let mut listed: Vec<Listed> = {
            let groups = self.lock();
            let each = |(id, entry): (&Arc<str>, &Entry)| Listed {
                group: id.clone(),
                protocol_type: entry.group.protocol_type(),
                state: entry.group.state(),
                kind: entry.group.kind(),
            };
            groups.by_id.iter().map(each).collect()
        };
        listed.sort_by(|a, b| a.group.cmp(&b.group));
        let alive = listed.len();
        for group in self.offsets.groups() {
            if listed[..alive].binary_search_by(|known| known.group.cmp(&group)).is_err() {
                let (protocol_type, state) = ("".into(), classic::State::Empty.name());
                listed.push(Listed { group, protocol_type, state, kind: "classic" });
            }
        }
        listed.sort_by(|a, b| a.group.cmp(&b.group));
        listed
    }

    // -- Inside ------------------------------------------------------------------------------------------------------

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Gives a group an input, and sees to what follows from it: answers, its next deadline, its books.
    fn drive<T>(
        &self,
        groups: &mut Groups,
        id: &str,
        input: impl FnOnce(&mut Group, &Catalog) -> T,
    ) -> Option<T> {
        let (id, _) = groups.by_id.get_key_value(id)?;
        let id = id.clone();
        let entry = groups.by_id.get_mut(&id)?;
        let members = entry.group.member_count();
        let news = entry.group.news();
        let output = input(&mut entry.group, &groups.catalog);
        if entry.group.news() != news {
            entry.moved.send_replace(());
        }
        for (token, answer) in entry.group.take_answers() {
            if let Some(waiting) = groups.waiting.remove(&token) {
                // Who has just stopped waiting takes its token back itself.
                let _ = waiting.send(answer);
            }
        }
        if entry.group.is_unused() && entry.group.is_new() {
            // A request that was refused leaves no group behind.
            groups.forget(&id);
            return Some(output);
        }
        let bytes = entry.group.size();
        groups.bytes = groups.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        metrics::gauge!("millrace_group_members")
            .increment(entry.group.member_count() as f64 - members as f64);
        if (members == 0) != (entry.group.member_count() == 0) {
            groups.emptied.insert(id.clone(), (entry.group.member_count() == 0).then(unix_ms));
            self.wake.notify_one();
        }
        let due = entry.group.next_deadline();
        let due = due.or_else(|| Some(entry.group.empty_since() + FORGET_EMPTY_AFTER));
        if due < entry.scheduled || entry.scheduled.is_none() {
            if let Some(old) = entry.scheduled.take() {
                groups.schedule.remove(&(old, id.clone()));
            }
            if let Some(due) = due {
                entry.scheduled = Some(due);
                groups.schedule.insert((due, id.clone()));
                if groups.schedule.first().is_some_and(|(first, group)| *first == due && *group == id) {
                    self.wake.notify_one();
                }
            }
        }
        Some(output)
    }
}

impl Groups {
    fn new(topics: &Topics) -> Groups {
        let news = topics.watch();
        Groups {
            by_id: HashMap::new(),
            schedule: BTreeSet::new(),
            catalog: Catalog::new(topics),
            news,
            waiting: HashMap::new(),
            last_token: 0,
            bytes: 0,
            emptied: HashMap::new(),
            closed: false,
        }
    }

    fn wait(&mut self) -> (Token, oneshot::Receiver<Answer>) {
        self.last_token += 1;
        let token = Token(self.last_token);
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(token, sender);
        (token, answer)
    }

    fn add(&mut self, id: &str, group: Group) {
        metrics::gauge!("millrace_groups").increment(1.0);
        self.by_id
            .insert(id.into(), Entry { group, scheduled: None, bytes: 0, moved: watch::Sender::new(()) });
    }

    fn forget(&mut self, id: &str) {
        let Some((id, entry)) = self.by_id.remove_entry(id) else { return };
        self.bytes -= entry.bytes;
        metrics::gauge!("millrace_groups").decrement(1.0);
        metrics::gauge!("millrace_group_members").decrement(entry.group.member_count() as f64);
        if let Some(due) = entry.scheduled {
            self.schedule.remove(&(due, id));
        }
    }

    fn forget_unused(&mut self) {
        let unused: Vec<Arc<str>> = self
            .by_id
            .iter()
            .filter(|(_, entry)| entry.group.is_unused())
            .map(|(id, _)| id.clone())
            .collect();
        for id in unused {
            self.forget(&id);
        }
    }

    /// What a member of a group that is not there is told.
    fn unknown_group(&self) -> ResponseError {
        if self.closed { ResponseError::CoordinatorNotAvailable } else { ResponseError::UnknownMemberId }
    }
}

/// A request that waits for a group. Dropped before it was answered, it takes itself back.
struct Waiting<'a> {
    coordinator: &'a Coordinator,
    group: Arc<str>,
    token: Token,
    answer: oneshot::Receiver<Answer>,
}

impl Waiting<'_> {
    async fn answer(mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let coordinator = self.coordinator;
        let mut groups = coordinator.lock();
        if groups.waiting.remove(&self.token).is_some() {
            let now = coordinator.now();
            coordinator.drive(&mut groups, &self.group, |group, _| group.cancel(now, self.token));
        }
    }
}

/// Names who a request comes from.
fn identity<'a>(member_id: &'a str, instance_id: Option<&'a str>) -> Identity<'a> {
    Identity { member_id, instance_id }
}

fn check_group_id(group: &str) -> Result<(), ResponseError> {
    if group.is_empty() || group.len() > MAX_ID { Err(ResponseError::InvalidGroupId) } else { Ok(()) }
}

fn check_member(who: Identity<'_>) -> Result<(), ResponseError> {
    if who.member_id.len() > MAX_ID || who.instance_id.is_some_and(|id| id.len() > MAX_ID) {
        return Err(ResponseError::InvalidRequest);
    }
    Ok(())
}

/// `<prefix>-<random uuid>`; `None` when the system has no random numbers.
pub(crate) fn new_member_id(prefix: &str) -> Option<Arc<str>> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).ok()?;
    let number = u128::from_be_bytes(bytes) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    let ends = |(start, char): (usize, char)| start + char.len_utf8();
    let end = prefix.char_indices().map(ends).take_while(|end| *end <= MAX_CLIENT_ID_IN_MEMBER_ID).last();
    let prefix = prefix.get(..end.unwrap_or(0)).unwrap_or_default();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    Some(format!("{prefix}-{a}-{b}-{c}-{d}-{e}").into())
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
