//! What a virtual member does where it leads: it shares out the partitions, and sees when that is outdated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Refused, partition_count};
use crate::group::assignor::{self, Member, Strategy};
use crate::group::consumer_protocol::{self, Subscription};
use crate::group::coordinator::Coordinator;
use crate::group::member::{Joined, Subscribed};
use crate::log::topics::Topics;

/// How long a leader waits after the first news of topics, so that many that are made together are one rebalance.
const TOPICS_SETTLE: Duration = Duration::from_millis(200);

/// What a leader watches over: whether what it has shared out is still all that there is.
pub(super) struct Lead {
    /// The topics that members have subscribed to, with the number of partitions that was shared out.
    counts: BTreeMap<Arc<str>, Option<i32>>,
    /// Rung when topics come and go.
    news: watch::Receiver<()>,
    /// When to look at the topics again.
    look: Option<Instant>,
    /// When to share out anew what was withheld, should its owners not have rejoined by then.
    again: Option<Instant>,
}

/// What a leader gives to whom.
pub(super) struct SharedOut {
    pub assignments: Vec<(Arc<str>, Bytes)>,
    counts: BTreeMap<Arc<str>, Option<i32>>,
    withheld: bool,
}

/// Shares out the topics that the members of a group have subscribed to.
pub(super) fn share_out(protocol: &str, members: &[Subscribed], topics: &Topics) -> SharedOut {
    // A member whose metadata makes no sense wants nothing.
    let subscriptions: Vec<_> =
        members.iter().map(|member| Subscription::decode(&member.metadata).unwrap_or_default()).collect();
    let mut counts: BTreeMap<&str, Option<i32>> = BTreeMap::new();
    for topic in subscriptions.iter().flat_map(|subscription| &subscription.topics) {
        counts.entry(topic).or_insert_with(|| partition_count(topics, topic));
    }
    let existing = counts.iter().filter_map(|(topic, count)| Some((*topic, (*count)?))).collect();
    let sharers: Vec<Member<'_>> = members
        .iter()
        .zip(subscriptions)
        .map(|(member, subscription)| Member {
            id: &member.member_id,
            instance_id: member.instance_id.as_deref(),
            topics: subscription.topics.into_iter().collect(),
            owned: subscription.owned,
            generation: subscription.generation,
        })
        .collect();
    // It leads under what it has offered.
    let strategy = Strategy::by_name(protocol).unwrap_or(Strategy::Range);
    let shares = assignor::assign(strategy, &sharers, &existing);
    let encode = |parts| consumer_protocol::encode_assignment(parts).unwrap_or_default();
    let ids = members.iter().map(|member| member.member_id.clone());
    SharedOut {
        assignments: ids.zip(shares.parts.iter().map(encode)).collect(),
        withheld: shares.withheld,
        counts: counts.into_iter().map(|(topic, count)| (topic.into(), count)).collect(),
    }
}

impl Lead {
    /// Shares out what the members of a generation have subscribed to: what each gets, and what to watch over.
    pub(super) async fn share_out(
        joined: &Joined,
        coordinator: &Coordinator,
        rebalance_timeout: Duration,
    ) -> Result<(Lead, Vec<(Arc<str>, Bytes)>), Refused> {
        let topics = coordinator.topics().clone();
        let news = topics.watch();
        let (protocol, members) = (joined.protocol.clone(), joined.members.clone());
        // Thousands of members and partitions take a while.
        let sharing = tokio::task::spawn_blocking(move || share_out(&protocol, &members, &topics));
        let stopping = |_| Refused::Sync(joined.generation, ResponseError::CoordinatorNotAvailable);
        let SharedOut { assignments, counts, withheld } = sharing.await.map_err(stopping)?;
        let again = withheld.then(|| Instant::now() + rebalance_timeout);
        Ok((Lead { counts, news, look: None, again }, assignments))
    }

    /// Waits until it is time to see whether it is outdated.
    pub(super) async fn wait(&mut self) {
        if self.look.is_none() {
            let news = async {
                if self.news.changed().await.is_err() {
                    // The broker has no topics any more.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = news => self.look = Some(Instant::now() + TOPICS_SETTLE),
                () = until(self.again) => return,
            }
        }
        until(self.look.into_iter().chain(self.again).min()).await;
    }

    /// Whether it has to share out anew.
    pub(super) fn is_outdated(&mut self, topics: &Topics) -> bool {
        let now = Instant::now();
        let looks = self.look.take_if(|look| *look <= now).is_some();
        let differs = |(topic, count): (&Arc<str>, &Option<i32>)| partition_count(topics, topic) != *count;
        looks && self.counts.iter().any(differs) || self.again.take_if(|again| *again <= now).is_some()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
