//! A stream's session: what it reads next, what it sends, what it acknowledges, and its place in the group.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::credit::Credit;
use super::cursors::{Cursors, Wanted};
use super::outbox::Outbox;
use super::start::Start;
use super::{Counted, Outgoing, at};
use crate::group::subscriber::{Change, GroupError, Membership, Subscription, TopicPartition};
use crate::grpc::records::{Read, Reader, Turn};
use crate::grpc::{Broker, offsets, request, status};
use crate::http::CloseConnection;
use crate::log::Offset;
use crate::log::view::View;
use crate::proto::subscribe_request::Request;
use crate::proto::subscribe_response::Response;
use crate::proto::{
    self, Acknowledged, Acknowledgement, Assigned, AssignedPartition, Error, PartitionOffset, Records,
    Revoked, SubscribeRequest,
};

/// How long a client may take to read a message that takes of the memory for large records, which others wait for: this,
/// and a second for each MiB.
const LARGE_STALL: Duration = Duration::from_secs(30);
/// Without a sign of life from its task a member is taken for dead after this time.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// What a rebalance may take besides the time for revoked partitions.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_REVOKE_TIMEOUT: u32 = 5_000;
const MAX_REVOKE_TIMEOUT: u32 = 300_000;
/// Bytes of what a client calls itself.
const MAX_CLIENT_ID: usize = 255;

/// Whom a subscriber commits for.
enum Role {
    /// For nobody.
    Reader,
    /// For a group that it is no member of.
    Outsider(String),
    /// For the group that it is a member of.
    Member(Box<Membership>),
}

type Reading = BoxFuture<'static, (TopicPartition, Offset, Result<Read, Status>)>;

/// All that a stream has.
pub struct Session {
    broker: Broker,
    reader: Reader,
    role: Role,
    start: Start,
    decode: bool,
    revoke_timeout: Duration,
    credit: Credit,
    cursors: Cursors,
    reading: Option<Reading>,
    /// What is left of the last read, and of which partition.
    turn: Option<(TopicPartition, Turn)>,
    outbox: Outbox,
    /// Until when revoked partitions wait for acknowledgements.
    release_at: Option<Instant>,
    /// What the last message took of the memory for large records, and until when it has to be given back.
    large: Option<(Instant, Weak<OwnedSemaphorePermit>)>,
    /// Whether the first assignment has been sent.
    assigned: bool,
    counted: Counted,
}

impl Session {
    /// Checks a subscription, and begins it.
    pub async fn open(
        broker: Broker,
        reader: Reader,
        asked: proto::Subscription,
        peer: Option<SocketAddr>,
    ) -> Result<Session, Status> {
        if asked.topics.is_empty() {
            return Err(Status::invalid_argument("the subscription names no topic; ListTopics has them"));
        }
        let partitions = request::partitions(&broker.topics, &asked.topics)?;
        let topics: BTreeSet<Arc<str>> = partitions.iter().map(|one| one.topic.clone()).collect();
        for topic in &topics {
            request::decodable(&broker, asked.decode, topic)?;
        }
        let revoke_timeout = asked.revoke_timeout_ms.unwrap_or(DEFAULT_REVOKE_TIMEOUT);
        if revoke_timeout > MAX_REVOKE_TIMEOUT {
            return Err(Status::invalid_argument(format!(
                "revoke_timeout_ms is {revoke_timeout}; give at most {MAX_REVOKE_TIMEOUT}"
            )));
        }
        if asked.client_id.len() > MAX_CLIENT_ID {
            return Err(Status::invalid_argument(format!("a client id has at most {MAX_CLIENT_ID} bytes")));
        }
        let revoke_timeout = Duration::from_millis(revoke_timeout.into());
        let chooses_itself = asked.topics.iter().any(|topic| !topic.partitions.is_empty());
        let role = match asked.group {
            group if group.is_empty() => Role::Reader,
            group => {
                request::group(&group)?;
                match chooses_itself {
                    true => Role::Outsider(group),
                    false => Role::Member(Box::new(Membership::new(
                        broker.groups.clone(),
                        Subscription {
                            group: group.into(),
                            client_id: if asked.client_id.is_empty() {
                                "grpc".into()
                            } else {
                                asked.client_id.into()
                            },
                            client_host: peer
                                .map_or_else(String::new, |peer| format!("/{}", peer.ip()))
                                .into(),
                            topics,
                            session_timeout: SESSION_TIMEOUT,
                            rebalance_timeout: revoke_timeout + REBALANCE_TIMEOUT,
                        },
                    ))),
                }
            }
        };
        let mut credit = Credit::default();
        credit.grant(asked.credit.unwrap_or_default());
        let mut session = Session {
            broker,
            reader,
            role,
            start: Start::check(asked.start)?,
            decode: asked.decode,
            revoke_timeout,
            credit,
            cursors: Cursors::default(),
            reading: None,
            turn: None,
            outbox: Outbox::default(),
            release_at: None,
            large: None,
            assigned: false,
            counted: Counted::new(),
        };
        if !matches!(session.role, Role::Member(_)) {
            session.assign(partitions).await?;
        }
        Ok(session)
    }

    /// Serves until the client has enough, or something ends it.
    pub async fn run(
        &mut self,
        requests: &mut Streaming<SubscribeRequest>,
        close: &CloseConnection,
        responses: &mpsc::Sender<Outgoing>,
    ) -> Result<(), Status> {
        let mut open = true;
        loop {
            // One message is made ahead of the one that the client is taking.
            let blocked = responses.capacity() == 0;
            if !blocked {
                self.read_on();
            }
            let idle = self.reading.is_none() && self.outbox.is_empty();
            if idle && !open && !self.credit.is_open() {
                return Ok(());
            }
            let awaits_news = idle && !blocked && self.credit.is_open();
            if self.reading.is_none() && !awaits_news {
                self.cursors.rest();
            }
            tokio::select! {
                request = requests.message(), if open && self.outbox.takes_answers() => {
                    match request?.map(|request| request.request) {
                        Some(request) => self.request(request).await?,
                        None => {
                            open = false;
                            self.half_closed();
                        }
                    }
                }
                free = responses.reserve(), if blocked || !self.outbox.is_empty() => {
                    let Ok(free) = free else { return Ok(()) };
                    if let Some(next) = self.outbox.pop() {
                        free.send(next);
                    }
                }
                (partition, from, read) = read(&mut self.reading) => {
                    self.reading = None;
                    self.send(partition, from, read?);
                }
                change = next_change(&mut self.role) => self.change(change?).await?,
                () = self.cursors.changed(), if awaits_news => {}
                () = at(self.release_at) => self.release(),
                () = at(self.large.as_ref().map(|(until, _)| *until)) => {
                    if self.large.take().is_some_and(|(_, room)| room.upgrade().is_some()) {
                        tracing::warn!("closing the connection of a subscriber that does not read a large record");
                        close.0.cancel();
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads what may be sent next, when everything before it is on its way.
    fn read_on(&mut self) {
        if self.reading.is_some() || !self.outbox.is_empty() || !self.credit.is_open() {
            return;
        }
        let left = self
            .turn
            .take()
            .and_then(|(partition, turn)| Some((self.cursors.wanted(partition)?, Some(turn))));
        let next = left.or_else(|| Some((self.cursors.turn()?, None)));
        let Some((Wanted { partition, source, from }, turn)) = next else { return };
        let (reader, limits) = (self.reader.clone(), self.credit.limits(self.decode));
        self.reading = Some(Box::pin(async move {
            let read = reader.read(&source, from, turn, limits).await;
            (partition, from, read)
        }));
    }

    /// Sends what was read, unless the partition was taken away meanwhile.
    fn send(&mut self, partition: TopicPartition, from: Offset, read: Read) {
        let Some(wanted) = self.cursors.wanted(partition.clone()) else { return };
        let Some(last) = read.records.last().filter(|_| wanted.from == from) else { return };
        if let Some(cursor) = self.cursors.get_mut(&partition) {
            cursor.next = Offset(last.offset + 1);
        }
        self.credit.take(read.records.len(), read.bytes);
        self.counted.0.records.increment(read.records.len() as u64);
        self.counted.0.bytes.increment(read.bytes);
        let left = if self.credit.is_open() { read.turn } else { read.turn.and_then(Turn::stalled) };
        self.turn = left.map(|turn| (partition.clone(), turn));
        let range = wanted.source.snapshot.range(wanted.source.partition).unwrap_or_default();
        let records = Records {
            content_type: self.broker.media_types.of(&partition.topic).to_owned(),
            topic: partition.topic.to_string(),
            partition: partition.partition as u32,
            records: read.records,
            high_watermark: range.end.0,
            bytes: read.bytes,
        };
        if let Some(room) = &read.room {
            let time = LARGE_STALL + Duration::from_secs(read.bytes >> 20);
            self.large = Some((Instant::now() + time, Arc::downgrade(room)));
        }
        self.outbox.push(Outgoing { room: read.room, ..Response::Records(records).into() });
    }

    /// A member that cannot acknowledge any more is sent the answers that it waits for, but no more records.
    fn half_closed(&mut self) {
        if matches!(self.role, Role::Member(_)) {
            self.credit = Credit::default();
        }
    }

    async fn request(&mut self, request: Option<Request>) -> Result<(), Status> {
        match request {
            Some(Request::Credit(credit)) => self.credit.grant(credit),
            Some(Request::Acknowledgement(acknowledgement)) => self.acknowledge(acknowledgement).await?,
            Some(Request::Subscription(_)) => {
                return Err(Status::invalid_argument(
                    "a stream has one subscription; open another stream for another",
                ));
            }
            None => return Err(Status::invalid_argument("a message is empty, or newer than this broker")),
        }
        Ok(())
    }

    // -- Acknowledgements --------------------------------------------------------------------------------------------

    async fn acknowledge(&mut self, asked: Acknowledgement) -> Result<(), Status> {
        request::few(asked.offsets.len())?;
        let mut errors: Vec<Option<Error>> =
            asked.offsets.iter().map(|offset| self.refusal(offset)).collect();
        let accepted = asked.offsets.iter().zip(&errors).filter(|(_, error)| error.is_none());
        let accepted: Vec<_> = accepted.map(|(offset, _)| offset.clone()).collect();
        let mut answers = self.commit(&accepted).await?.into_iter();
        for error in errors.iter_mut().filter(|error| error.is_none()) {
            *error = answers.next().flatten();
        }
        for (offset, _) in asked.offsets.iter().zip(&errors).filter(|(_, error)| error.is_none()) {
            if let Some(cursor) = partition_of(offset).and_then(|partition| self.cursors.get_mut(&partition))
            {
                cursor.acknowledged = Offset(offset.offset);
            }
        }
        let results = offsets::results(asked.offsets, errors);
        self.outbox.push(Response::Acknowledged(Acknowledged { id: asked.id, results }).into());
        self.release_if_done();
        Ok(())
    }

    /// Why an offset cannot be acknowledged, whatever the group says.
    fn refusal(&mut self, offset: &PartitionOffset) -> Option<Error> {
        let cursor = partition_of(offset).and_then(|partition| self.cursors.get_mut(&partition));
        let Some(cursor) = cursor else {
            return Some(status::error(
                Code::FailedPrecondition,
                "the partition is not this subscriber's (any more)",
            ));
        };
        let sent = cursor.next.0;
        (!(0..=sent).contains(&offset.offset)).then(|| {
            let message = format!("offset {} was not sent: the next to be sent is {sent}", offset.offset);
            status::error(Code::InvalidArgument, message)
        })
    }

    /// Commits, and gives an error for each that is refused. Durable when it returns (I6).
    async fn commit(&mut self, offsets: &[PartitionOffset]) -> Result<Vec<Option<Error>>, Status> {
        let refused = match &mut self.role {
            Role::Reader => {
                return Err(Status::failed_precondition(
                    "there is no group to acknowledge for; name one in the subscription",
                ));
            }
            Role::Outsider(group) => match offsets::commit_alone(&self.broker, group, offsets.to_vec()).await
            {
                Ok(results) => return Ok(results.into_iter().map(|result| result.error).collect()),
                Err(status) if status.code() == Code::Unavailable => return Err(status),
                Err(status) => status,
            },
            Role::Member(member) => {
                let entries = offsets.iter().map(|offset| offsets::entry(&self.broker, offset)).collect();
                match member.commit(entries).await {
                    Ok(answers) => {
                        let errors = answers.into_iter().map(|answer| answer.err().map(status::commit_error));
                        return Ok(errors.collect());
                    }
                    Err(error @ GroupError::Rebalancing { .. }) => error.into(),
                    // It is no member any more, and has lost all that it held.
                    Err(error) => return Err(error.into()),
                }
            }
        };
        Ok(vec![Some(status::error(refused.code(), refused.message())); offsets.len()])
    }

    // -- The group ---------------------------------------------------------------------------------------------------

    async fn change(&mut self, change: Change) -> Result<(), Status> {
        match change {
            Change::Assigned { added } if added.is_empty() && self.assigned => {}
            Change::Assigned { added } => self.assign(added).await?,
            Change::Revoked { partitions } => {
                for partition in &partitions {
                    if let Some(cursor) = self.cursors.get_mut(partition) {
                        cursor.revoked = true;
                    }
                }
                self.forget_turn_of(&partitions);
                self.release_at = Some(Instant::now() + self.revoke_timeout);
                self.outbox.push(revoked(&partitions, false));
                self.release_if_done();
            }
            Change::Lost { partitions } => {
                self.forget_turn_of(&partitions);
                self.cursors.remove(&partitions);
                self.release_at = None;
                self.outbox.push(revoked(&partitions, true));
            }
        }
        self.outbox.check()
    }

    /// Begins to read partitions, from one snapshot of each log (I1).
    async fn assign(&mut self, partitions: BTreeSet<TopicPartition>) -> Result<(), Status> {
        let mut view = View::default();
        let mut assigned = Assigned::default();
        for partition in partitions {
            let topic = request::topic(&self.broker.topics, &partition.topic)?;
            let place = offsets::locate(&self.broker, &mut view, &partition)?;
            let committed = match &self.role {
                Role::Reader => None,
                Role::Outsider(group) => {
                    self.broker.groups.committed(group, &partition.topic, partition.partition)
                }
                Role::Member(member) => member.committed(&partition),
            };
            let committed = committed.map(|committed| committed.offset);
            let from = self.start.find(&view, &partition, place, committed).await?;
            assigned.partitions.push(AssignedPartition {
                topic: partition.topic.to_string(),
                partition: partition.partition as u32,
                offset: from.0,
                high_watermark: view.range(place).end.0,
            });
            self.cursors.add(partition, topic, from);
        }
        self.assigned = true;
        self.outbox.push(Response::Assigned(assigned).into());
        Ok(())
    }

    fn forget_turn_of(&mut self, partitions: &BTreeSet<TopicPartition>) {
        self.turn.take_if(|(partition, _)| partitions.contains(partition));
    }

    /// Gives revoked partitions up once all that was sent of them is acknowledged.
    fn release_if_done(&mut self) {
        let done = self.cursors.revoked().all(|(_, cursor)| cursor.acknowledged >= cursor.next);
        if self.release_at.is_some() && done {
            self.release();
        }
    }

    fn release(&mut self) {
        self.release_at = None;
        let partitions = self.cursors.revoked().map(|(partition, _)| partition.clone()).collect();
        self.cursors.remove(&partitions);
        if let Role::Member(member) = &mut self.role {
            member.release();
        }
    }
}

fn partition_of(offset: &PartitionOffset) -> Option<TopicPartition> {
    let partition = i32::try_from(offset.partition).ok()?;
    Some(TopicPartition { topic: offset.topic.as_str().into(), partition })
}

fn revoked(partitions: &BTreeSet<TopicPartition>, lost: bool) -> Outgoing {
    let partitions = partitions
        .iter()
        .map(|one| proto::TopicPartition { topic: one.topic.to_string(), partition: one.partition as u32 });
    Response::Revoked(Revoked { partitions: partitions.collect(), lost }).into()
}

async fn read(reading: &mut Option<Reading>) -> (TopicPartition, Offset, Result<Read, Status>) {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}

async fn next_change(role: &mut Role) -> Result<Change, GroupError> {
    match role {
        Role::Member(member) => member.next().await,
        _ => pending().await,
    }
}
