//! Classic groups: joining, syncing, heartbeats and leaving, and what is told of a group in each state.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, DeleteGroupsRequest, DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest,
};

use crate::pair::{Both, Court, Names, Pair};
use crate::seed::text;

pub async fn judge(court: &Arc<Court>) {
    for version in court.versions(ApiKey::JoinGroup) {
        alone(&mut Story::new(court, version, "alone")).await;
        together(&mut Story::new(court, version, "together")).await;
        mistaken(&mut Story::new(court, version, "mistaken")).await;
        if version >= 5 {
            unchanging(&mut Story::new(court, version, "static")).await;
        }
    }
    let mut pair = court.pair();
    for version in court.versions(ApiKey::ListGroups) {
        lists(&mut pair, version).await;
    }
}

/// Subscribed to topic `seed`, as consumers write it.
const SUBSCRIPTION: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 4, b's', b'e', b'e', b'd', 0xff, 0xff, 0xff, 0xff];

pub fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

/// Who joins: by which name, and as which instance.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    pub name: &'static str,
    pub instance: Option<&'static str>,
}

pub const A: Who = Who { name: "member A", instance: None };
pub const B: Who = Who { name: "member B", instance: None };
const STATIC: Who = Who { name: "member S", instance: Some("instance") };
const NOBODY: Who = Who { name: "nobody", instance: None };

/// Requests of one group, each in the version that is nearest to one of JoinGroup.
pub struct Story {
    pub pair: Pair,
    pub version: i16,
    pub group: String,
}

impl Story {
    pub fn new(court: &Arc<Court>, version: i16, story: &str) -> Story {
        Story { pair: court.pair(), version, group: format!("{story}-{version}") }
    }

    /// Another connection of the same story: a member that waits for an answer has no other use for its own.
    pub fn other(&self) -> Story {
        Story { pair: self.pair.court.pair(), version: self.version, group: self.group.clone() }
    }

    pub fn version(&self, api: ApiKey) -> i16 {
        let versions = self.pair.court.versions(api);
        self.version.clamp(*versions.start(), *versions.end())
    }

    /// What a member of this group is called among all members.
    pub fn name(&self, who: Who) -> String {
        format!("{} of {}", who.name, self.group)
    }

    /// A request to join by one's name, or without an id.
    pub fn join(
        &self,
        who: Who,
        known: bool,
        protocols: &[&str],
    ) -> impl Fn(&Names) -> JoinGroupRequest + use<> {
        let (version, group) = (self.version, group(&self.group));
        let member = self.name(who);
        let protocols: Vec<String> = protocols.iter().map(|name| (*name).to_owned()).collect();
        move |names| {
            let protocol = |name: &String| {
                let metadata = Bytes::from_static(SUBSCRIPTION);
                JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(metadata)
            };
            let mut request = JoinGroupRequest::default()
                .with_group_id(group.clone())
                .with_session_timeout_ms(30_000)
                .with_rebalance_timeout_ms(if version >= 1 { 60_000 } else { -1 })
                .with_member_id(if known { names.get(&member) } else { text("") })
                .with_protocol_type(text("consumer"))
                .with_protocols(protocols.iter().map(protocol).collect());
            if version >= 5 {
                request.group_instance_id = who.instance.map(text);
            }
            request
        }
    }

    pub async fn joins(&mut self, situation: &str, who: Who, protocols: &[&str]) {
        let request = self.join(who, true, protocols);
        self.pair.call(situation, self.version, request).await;
    }

    /// Joins without an id and learns the new one.
    pub async fn knocks(
        &mut self,
        situation: &str,
        who: Who,
        protocols: &[&str],
    ) -> Option<Both<JoinGroupResponse>> {
        let request = self.join(who, false, protocols);
        let pending = self.pair.send(situation, self.version, request).await;
        self.pair.receive_named(pending, |_| {}, &self.name(who), |answer| answer.member_id.to_string()).await
    }

    /// Joins a group in which nobody else has to do anything for that.
    pub async fn enters(&mut self, who: Who, protocols: &[&str]) {
        let knocked = self.knocks("joins without an id", who, protocols).await;
        if knocked.is_some_and(|knocked| knocked.kafka.error_code != 0) {
            self.joins("joins with its new id", who, protocols).await;
        }
    }

    pub fn sync(
        &self,
        who: Who,
        generation: i32,
        assigned: &[(Who, &'static [u8])],
    ) -> impl Fn(&Names) -> SyncGroupRequest + use<> {
        let (version, group) = (self.version(ApiKey::SyncGroup), group(&self.group));
        let member = self.name(who);
        let assigned: Vec<_> = assigned.iter().map(|(who, bytes)| (self.name(*who), *bytes)).collect();
        move |names| {
            let assignment = |(member, bytes): &(String, &'static [u8])| {
                SyncGroupRequestAssignment::default()
                    .with_member_id(names.get(member))
                    .with_assignment(Bytes::from_static(bytes))
            };
            let mut request = SyncGroupRequest::default()
                .with_group_id(group.clone())
                .with_generation_id(generation)
                .with_member_id(names.get(&member))
                .with_assignments(assigned.iter().map(assignment).collect());
            if version >= 3 {
                request.group_instance_id = who.instance.map(text);
            }
            if version >= 5 {
                request = request
                    .with_protocol_type(Some(text("consumer")))
                    .with_protocol_name(Some(text("range")));
            }
            request
        }
    }

    pub async fn syncs(
        &mut self,
        situation: &str,
        who: Who,
        generation: i32,
        assigned: &[(Who, &'static [u8])],
    ) {
        let request = self.sync(who, generation, assigned);
        let version = self.version(ApiKey::SyncGroup);
        self.pair.call(situation, version, request).await;
    }

    pub async fn beats(&mut self, situation: &str, who: Who, generation: i32) {
        let (version, group) = (self.version(ApiKey::Heartbeat), group(&self.group));
        let member = self.name(who);
        let request = |names: &Names| {
            let mut request = HeartbeatRequest::default()
                .with_group_id(group.clone())
                .with_generation_id(generation)
                .with_member_id(names.get(&member));
            if version >= 3 {
                request.group_instance_id = who.instance.map(text);
            }
            request
        };
        self.pair.call(situation, version, request).await;
    }

    pub async fn leaves(&mut self, situation: &str, all: &[Who]) {
        let (version, group) = (self.version(ApiKey::LeaveGroup), group(&self.group));
        let all: Vec<_> = all.iter().map(|who| (self.name(*who), who.instance)).collect();
        let request = |names: &Names| {
            let identity = |(member, instance): &(String, Option<&str>)| {
                MemberIdentity::default()
                    .with_member_id(names.get(member))
                    .with_group_instance_id(instance.map(text))
            };
            let request = LeaveGroupRequest::default().with_group_id(group.clone());
            match version {
                3.. => request.with_members(all.iter().map(identity).collect()),
                _ => request.with_member_id(names.get(&all[0].0)),
            }
        };
        self.pair.call(situation, version, request).await;
    }

    pub async fn described(&mut self, state: &str) {
        let version = self.version(ApiKey::DescribeGroups);
        let request = |_: &Names| {
            let request = DescribeGroupsRequest::default().with_groups(vec![group(&self.group)]);
            if version >= 3 { request.with_include_authorized_operations(true) } else { request }
        };
        self.pair.call(&format!("described {state}"), version, request).await;
    }

    pub async fn deleted(&mut self, situation: &str) {
        let version = self.version(ApiKey::DeleteGroups);
        let request = |_: &Names| DeleteGroupsRequest::default().with_groups_names(vec![group(&self.group)]);
        self.pair.call(situation, version, request).await;
    }
}

async fn alone(story: &mut Story) {
    story.described("before it is there").await;
    story.deleted("an unknown group is deleted").await;
    story.beats("a heartbeat in an unknown group", A, 1).await;
    story.syncs("a sync in an unknown group", A, 1, &[]).await;
    story.leaves("leaving an unknown group", &[NOBODY]).await;
    story.enters(A, &["range", "roundrobin"]).await;
    story.described("before its leader has synced").await;
    story.beats("a heartbeat before the sync", A, 1).await;
    story.syncs("a sync of a former generation", A, 0, &[(A, b"all")]).await;
    story.syncs("a sync of a later generation", A, 2, &[(A, b"all")]).await;
    story.syncs("a sync of nobody", NOBODY, 1, &[(A, b"all")]).await;
    story.syncs("the leader's sync", A, 1, &[(A, b"all"), (NOBODY, b"none")]).await;
    story.described("stable").await;
    story.deleted("a group with a member is deleted").await;
    story.syncs("a sync of the stable", A, 1, &[]).await;
    story.beats("a heartbeat", A, 1).await;
    story.beats("a heartbeat of a former generation", A, 0).await;
    story.beats("a heartbeat of a later generation", A, 2).await;
    story.beats("a heartbeat of no generation", A, -1).await;
    story.beats("a heartbeat of nobody", NOBODY, 1).await;
    story.joins("the leader joins again", A, &["range", "roundrobin"]).await;
    story.syncs("a sync without an assignment", A, 2, &[]).await;
    story.leaves("nobody leaves", &[NOBODY]).await;
    story.leaves("leaving", &[A, NOBODY]).await;
    story.leaves("leaving twice", &[A]).await;
    story.beats("a heartbeat after leaving", A, 2).await;
    story.joins("joining after leaving", A, &["range"]).await;
    story.described("empty").await;
    story.deleted("an empty group is deleted").await;
    story.described("deleted").await;
}

async fn together(story: &mut Story) {
    const BOTH: &[&str] = &["range", "roundrobin"];
    const TURNED: &[&str] = &["roundrobin", "range"];
    story.enters(A, BOTH).await;
    story.syncs("the leader's sync", A, 1, &[(A, b"all")]).await;

    // A member that waits for an answer has no other use for its connection.
    let mut second = story.other();
    if story.version >= 4 {
        second.knocks("a second joins without an id", B, TURNED).await;
        story.described("with a pending member").await;
        story.beats("a heartbeat beside a pending member", A, 1).await;
    }
    let entering = second.join(B, story.version >= 4, TURNED);
    let entering = second.pair.send("a second joins", story.version, entering).await;
    second.pair.waits(&entering).await;
    story.beats("a heartbeat while it is prepared", A, 1).await;
    story.syncs("a sync while it is prepared", A, 1, &[]).await;
    let again = story.pair.send("the first joins again", story.version, story.join(A, true, BOTH)).await;
    second.pair.receive_named(entering, |_| {}, &second.name(B), |answer| answer.member_id.to_string()).await;
    story.pair.receive(again, |_| {}).await;

    let syncing = second.sync(B, 2, &[]);
    let syncing = second.pair.send("the second syncs", second.version(ApiKey::SyncGroup), syncing).await;
    second.pair.waits(&syncing).await;
    story.described("completing").await;
    story.beats("a heartbeat while it completes", A, 2).await;
    story.syncs("the leader syncs for both", A, 2, &[(A, b"one"), (B, b"two")]).await;
    second.pair.receive(syncing, |_| {}).await;
    story.described("stable with two").await;

    second.joins("a follower joins again as it was", B, TURNED).await;
    second.beats("a heartbeat after that", B, 2).await;
    let changing = second.join(B, true, &["range"]);
    let changing = second.pair.send("a follower changes its protocols", story.version, changing).await;
    second.pair.waits(&changing).await;
    story.described("preparing").await;
    story.beats("a heartbeat of the leader while it is prepared", A, 2).await;
    story.joins("the leader joins again too", A, BOTH).await;
    second.pair.receive(changing, |_| {}).await;

    let syncing = second.sync(B, 3, &[]);
    let syncing =
        second.pair.send("the second syncs again", second.version(ApiKey::SyncGroup), syncing).await;
    second.pair.waits(&syncing).await;
    let again = story
        .pair
        .send("the leader joins instead of syncing", story.version, story.join(A, true, BOTH))
        .await;
    second.pair.receive(syncing, |_| {}).await;
    story.pair.waits(&again).await;
    second.beats("a heartbeat when the leader has joined again", B, 3).await;
    second.joins("the second joins too", B, TURNED).await;
    story.pair.receive(again, |_| {}).await;

    story.syncs("the leader syncs for one", A, 4, &[(A, b"one")]).await;
    second.syncs("a sync of who was given nothing", B, 4, &[]).await;
    story.leaves("the leader leaves", &[A]).await;
    story.described("when the leader has left").await;
    second.beats("a heartbeat when the leader has left", B, 4).await;
    second.joins("who is left joins", B, TURNED).await;
    second.described("with one left").await;
    second.leaves("the last leaves", &[B]).await;
    second.described("empty again").await;
}

async fn mistaken(story: &mut Story) {
    let version = story.version;
    for (situation, timeout) in
        [("a short session", 5_999), ("a long session", 1_800_001), ("a negative session", -1)]
    {
        let request = story.join(A, false, &["range"]);
        let request = |names: &Names| request(names).with_session_timeout_ms(timeout);
        story.pair.call(situation, version, request).await;
    }
    let request = story.join(A, false, &["range"]);
    story.pair.call("no group", version, |names| request(names).with_group_id(group(""))).await;
    story
        .pair
        .call("no kind of protocol", version, |names| request(names).with_protocol_type(text("")))
        .await;
    let request = story.join(A, false, &[]);
    story.pair.call("no protocols", version, request).await;
    story.joins("an id that nobody gave", NOBODY, &["range"]).await;
    story.described("after mistakes").await;

    story.enters(A, &["range"]).await;
    story.syncs("the leader's sync", A, 1, &[(A, b"all")]).await;
    let request = story.join(B, false, &["range"]);
    let other_kind = |names: &Names| request(names).with_protocol_type(text("connect"));
    story.pair.call("another kind of protocol", version, other_kind).await;
    let request = story.join(B, false, &["sticky"]);
    story.pair.call("no protocol in common", version, request).await;
    story.joins("an id that nobody gave joins a group", NOBODY, &["range"]).await;
    story.described("after more mistakes").await;
    if story.version(ApiKey::SyncGroup) >= 5 {
        let version = story.version(ApiKey::SyncGroup);
        let request = story.sync(A, 1, &[]);
        let kind = |names: &Names| request(names).with_protocol_type(Some(text("connect")));
        story.pair.call("a sync of another kind", version, kind).await;
        let name = |names: &Names| request(names).with_protocol_name(Some(text("sticky")));
        story.pair.call("a sync of another protocol", version, name).await;
        let neither = |names: &Names| request(names).with_protocol_name(None).with_protocol_type(None);
        story.pair.call("a sync that names no protocol", version, neither).await;
    }
    let beat = HeartbeatRequest::default().with_generation_id(1);
    story.pair.call("a heartbeat in no group", story.version(ApiKey::Heartbeat), |_| beat.clone()).await;
    let sync = SyncGroupRequest::default().with_generation_id(1);
    story.pair.call("a sync in no group", story.version(ApiKey::SyncGroup), |_| sync.clone()).await;
    story
        .pair
        .call("leaving no group", story.version(ApiKey::LeaveGroup), |_| LeaveGroupRequest::default())
        .await;
    let nothing = DescribeGroupsRequest::default().with_groups(vec![group("")]);
    story.pair.call("no group described", story.version(ApiKey::DescribeGroups), |_| nothing.clone()).await;
    let nothing = DeleteGroupsRequest::default().with_groups_names(vec![group("")]);
    story.pair.call("no group deleted", story.version(ApiKey::DeleteGroups), |_| nothing.clone()).await;
    story.leaves("leaving after mistakes", &[A]).await;
}

/// Static members.
async fn unchanging(story: &mut Story) {
    let court = story.pair.court.clone();
    story.enters(STATIC, &["range"]).await;
    story.syncs("the static leader's sync", STATIC, 1, &[(STATIC, b"all")]).await;
    story.beats("a static heartbeat", STATIC, 1).await;
    story.described("with a static member").await;
    let mut stranger = story.other();
    stranger.joins("a wrong id for an instance", Who { name: "nobody", ..STATIC }, &["range"]).await;
    // A new process of the same instance: its predecessor is fenced.
    let former = Who { name: "former S", ..STATIC };
    let names = court.names();
    court.learn(&story.name(former), &names.map(|names| names.get(&story.name(STATIC)).to_string()));
    stranger.knocks("the instance comes back", STATIC, &["range"]).await;
    story.beats("a heartbeat of the fenced", former, 1).await;
    story.syncs("a sync of the fenced", former, 1, &[]).await;
    story.joins("the fenced joins", former, &["range"]).await;
    story.beats("a heartbeat of the fenced without its instance", Who { instance: None, ..former }, 1).await;
    stranger.syncs("who came back syncs", STATIC, 1, &[]).await;
    stranger.beats("a heartbeat of who came back", STATIC, 1).await;
    stranger.described("after a static member came back").await;
    let mut changed = story.other();
    changed.knocks("the instance comes back with other protocols", STATIC, &["roundrobin", "range"]).await;
    changed.described("after it came back with other protocols").await;
    let other = Who { instance: Some("another"), name: "nobody" };
    story.leaves("an unknown instance leaves", &[other]).await;
    story.leaves("an instance with a wrong id leaves", &[Who { name: "nobody", ..STATIC }]).await;
    let by_instance = Who { name: "nameless", ..STATIC };
    court.learn(&story.name(by_instance), &Both { kafka: String::new(), ours: String::new() });
    story.leaves("an instance leaves by its name", &[by_instance, other]).await;
    story.described("after an instance was sent away").await;
}

async fn lists(pair: &mut Pair, version: i16) {
    let only_ours = |answer: &mut ListGroupsResponse| {
        answer.groups.retain(|group| group.group_id.starts_with("mistaken-"));
    };
    let plain = ListGroupsRequest::default;
    pair.call_tidied("all", version, |_| plain(), only_ours).await;
    if version >= 4 {
        for state in ["Empty", "empty", "Stable", "PreparingRebalance", "Dead", "nonsense", ""] {
            let request = |_: &Names| plain().with_states_filter(vec![text(state)]);
            pair.call_tidied(&format!("in state '{state}'"), version, request, only_ours).await;
        }
    }
    if version >= 5 {
        for kind in ["classic", "Classic", "consumer", "share", "nonsense", ""] {
            let request = |_: &Names| plain().with_types_filter(vec![text(kind)]);
            pair.call_tidied(&format!("of type '{kind}'"), version, request, only_ours).await;
        }
    }
}
