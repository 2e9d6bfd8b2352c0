//! ConsumerGroupHeartbeat: how members come, stay and go.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::member::{self, AWAY, Beat, Heartbeat, JOIN, LEAVE, Member, Refused};
use super::{Group, Held, Parts, Progress};
use crate::group::catalog::Catalog;

impl Group {
    /// A member says that it is there, what it wants and what it has, or that it goes.
    ///
    /// # Errors
    /// What Kafka answers. Nothing has changed then.
    pub fn heartbeat(&mut self, now: Duration, catalog: &Catalog, beat: &Heartbeat) -> Result<Beat, Refused> {
        if matches!(beat.epoch, LEAVE | AWAY) {
            return self.go(now, catalog, beat);
        }
        let id = &beat.member_id;
        if self.members.len() >= self.settings.max_size && !self.members.contains_key(id) {
            return Err(Refused::new(
                ResponseError::GroupMaxSizeReached,
                "the group has as many members as it may have",
            ));
        }
        let comes = self.admit(beat)?;
        let Some(member) = self.members.get_mut(id) else { return Err(unknown_member()) };
        let was_classic = member.classic.is_some();
        let changes = member.update(beat);
        member.session_deadline = now.saturating_add(self.settings.session_timeout);
        if was_classic {
            member.deadline = None;
        }
        if comes || changes {
            self.share_out(catalog);
        }
        let gets_others = self.reconcile(now, id, beat.owned.as_ref());
        let Some(member) = self.members.get(id) else { return Err(unknown_member()) };
        let news = beat.is_full() || gets_others;
        Ok(Beat { epoch: member.epoch, assignment: news.then(|| member::parts(&member.assigned)) })
    }

    /// Finds the member that a heartbeat comes from, or makes it. Whether it is new.
    fn admit(&mut self, beat: &Heartbeat) -> Result<bool, Refused> {
        let id = &beat.member_id;
        let joins = beat.epoch == JOIN;
        if let Some(instance) = &beat.instance_id {
            match self.static_members.get(instance).cloned() {
                None if !joins => return Err(unknown_member()),
                None => self.name(instance, id),
                Some(known) if joins && known != *id => {
                    self.replace(&known, id)?;
                    return Ok(false);
                }
                Some(known) if known != *id => return Err(fenced_instance()),
                Some(_) => {}
            }
        }
        match self.members.get(id) {
            Some(member) => check_epoch(member, beat.epoch, beat.owned.as_ref()).map(|()| false),
            None if joins => {
                self.members.insert(id.clone(), Member::new());
                Ok(true)
            }
            None => Err(unknown_member()),
        }
    }

    /// Notes which member an instance id stands for. A member has one.
    pub(super) fn name(&mut self, instance: &Arc<str>, id: &Arc<str>) {
        if let Some(former) = self.members.get(id).and_then(|member| member.instance_id.as_ref()) {
            self.static_members.remove(former);
        }
        self.static_members.insert(instance.clone(), id.clone());
    }

    /// A static member comes back, perhaps as another process: it takes over what its former self has.
    fn replace(&mut self, known: &Arc<str>, id: &Arc<str>) -> Result<(), Refused> {
        if self.members.get(known).is_some_and(|member| member.classic.is_none() && member.epoch != AWAY) {
            return Err(Refused::new(
                ResponseError::UnreleasedInstanceId,
                "another member has this group.instance.id, and has neither left nor run out of time",
            ));
        }
        if self.members.contains_key(id) {
            return Err(Refused::new(
                ResponseError::InvalidRequest,
                "MemberId is that of another member: a process that takes a static member's place draws a new one",
            ));
        }
        self.rename(known, id);
        Ok(())
    }

    /// Gives a static member another id, under which it has yet to join.
    pub(super) fn rename(&mut self, known: &Arc<str>, id: &Arc<str>) {
        let Some(member) = self.members.remove(known) else { return };
        if let Some(instance) = &member.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        for partition in member.held() {
            self.owners.insert(partition, id.clone());
        }
        self.members.insert(id.clone(), member.replaced());
    }

    /// A member goes: for good, or a static one perhaps only for a while, in which it keeps its part.
    fn go(&mut self, now: Duration, catalog: &Catalog, beat: &Heartbeat) -> Result<Beat, Refused> {
        let id = &beat.member_id;
        if let Some(instance) = &beat.instance_id {
            match self.static_members.get(instance) {
                None => return Err(unknown_member()),
                Some(known) if known != id => return Err(fenced_instance()),
                Some(_) => {}
            }
        }
        let member = self.members.get_mut(id).ok_or_else(unknown_member)?;
        if beat.epoch == AWAY {
            member.epoch = AWAY;
            member.deadline = None;
            member.progress = Progress::Stable;
            let assigned = member.assigned.clone();
            self.hold(id, assigned, Held::new());
        } else {
            self.remove(now, catalog, vec![id.clone()]);
        }
        Ok(Beat { epoch: beat.epoch, assignment: None })
    }
}

/// A member is in its epoch; or in the one before, where the answer that told it of the next has got lost, so that it has
/// nothing that it is not to have.
fn check_epoch(member: &Member, epoch: i32, owned: Option<&Parts>) -> Result<(), Refused> {
    let owns_no_more = || {
        let assigned =
            |topic, partition| member.assigned.get(topic).is_some_and(|held| held.contains_key(partition));
        owned.is_some_and(|owned| {
            owned.iter().all(|(topic, own)| own.iter().all(|partition| assigned(topic, partition)))
        })
    };
    if epoch == JOIN
        || epoch == member.epoch
        || epoch < member.epoch && epoch == member.previous_epoch && owns_no_more()
    {
        return Ok(());
    }
    Err(Refused::new(
        ResponseError::FencedMemberEpoch,
        "the member is in another epoch than the broker knows of: it must give up its partitions and join again",
    ))
}

fn unknown_member() -> Refused {
    Refused::new(ResponseError::UnknownMemberId, "the group has no such member: it must join again")
}

fn fenced_instance() -> Refused {
    Refused::new(
        ResponseError::FencedInstanceId,
        "another member has joined under the same group.instance.id",
    )
}
