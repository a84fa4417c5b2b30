//! The operator's view of the cluster.

use std::time::Duration;

use super::Role;
use super::election::State;
use super::heartbeat::GroupState;
use super::order;
use super::{ElectionEvent, Ha, HeartbeatError, Leaving, Takeovers};
use crate::evidence::{Heard, Holders, Holding, SyncState};
use crate::flow::{GroupId, PeerId};
use crate::time::Time;

/// A group as this unit sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView<'a> {
    /// This unit's role.
    pub role: Role,
    /// It holds all sessions of the group, or is its primary.
    pub ready: bool,
    /// It is primary of the group, or one of the units that hold it.
    pub holder: bool,
    /// The highest term that is known; its own, if it is the primary.
    pub term: u64,
    /// Since when it has the role.
    pub since: Time,
    /// The name of the primary's node, if one is known to be alive.
    pub primary: Option<&'a str>,
    /// This unit still forwards stragglers of a group that it handed over.
    pub degraded: bool,
    /// This unit still forwards stragglers of the group that it handed over.
    pub draining: bool,
    /// This unit's priority.
    pub priority: u8,
    /// How often this unit became primary.
    pub takeovers: Takeovers,
}

/// A peer as this unit sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView<'a> {
    /// The name of its node.
    pub name: &'a str,
    /// It was heard over a link within the hold time.
    pub alive: bool,
    /// By data port: it was heard there in the last seconds.
    pub heard_on: Vec<bool>,
    /// Why it is not alive, if that is known.
    pub gone_why: Option<&'static str>,
    /// How many of its monitored ports are up, by its last heartbeat.
    pub ports_up: u8,
    /// Whether it is in maintenance, by its last heartbeat.
    pub maintenance: bool,
    /// The groups by its last heartbeat, in the order of the config of this unit.
    pub groups: Vec<PeerGroup>,
    /// How long it has been running, if it was ever heard.
    pub uptime: Option<Duration>,
    /// The last report from replication.
    pub sync: SyncState,
    /// Each link to it, in the order of the config.
    pub links: Vec<LinkView>,
}

/// A peer's last report on a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerGroup {
    /// Whether its config has the group.
    pub known: bool,
    /// Its role by its own account; a unit that was cut off may still say primary.
    pub role: Role,
    /// Whether it holds all sessions of the group.
    pub ready: bool,
    /// It holds this unit's sessions of the group, except for the last changes. Meaningless if this
    /// unit is primary: then replication knows it.
    pub keeps_up: bool,
    /// 0 to 255; the highest wins.
    pub priority: u8,
    /// The highest term that it knows.
    pub term: u64,
}

/// Heartbeats over one link, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Given to the shell for sending; whether they left is not known.
    pub sent: u64,
    /// Received, whether or not another link brought the same one before.
    pub received: u64,
    /// Missing in the sequence of those received while the link was up.
    pub lost: u64,
}

/// One link to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkView {
    /// The heartbeat connection is up.
    pub connected: bool,
    /// A heartbeat came by it within the hold time.
    pub alive: bool,
    /// Round trip of the last heartbeat, of both units' loops as well.
    pub rtt: Option<Duration>,
    /// Heartbeats sent, received and missed by this link.
    pub heartbeats: LinkCounters,
}

impl Ha {
    /// The group as this unit sees it; `None` if there is no such group.
    pub fn group(&self, now: Time, id: GroupId) -> Option<GroupView<'_>> {
        let group = self.groups.get(usize::from(id.0));
        let group = group.filter(|group| group.exists())?;
        Some(GroupView {
            role: group.role(),
            ready: group.ready,
            holder: self.is_holder(now, id, None),
            term: group.term,
            since: group.since,
            primary: self.primary_name(now, usize::from(id.0)),
            degraded: group.degraded,
            draining: self.is_draining(now, id),
            priority: group.priority,
            takeovers: group.takeovers,
        })
    }

    /// The peer as this unit sees it; `None` if there is no such peer.
    pub fn peer(&self, now: Time, id: PeerId) -> Option<PeerView<'_>> {
        let peer = self.peers.get(id.index());
        let peer = peer.filter(|peer| peer.is_somebody())?;
        let hold = self.hold_of(peer);
        Some(PeerView {
            name: &peer.name,
            alive: peer.linked,
            heard_on: peer.ports.iter().map(|path| path.is_heard(now)).collect(),
            gone_why: peer.gone_why.filter(|_| !peer.linked),
            ports_up: peer.ports_up,
            maintenance: peer.maintenance,
            groups: (0..peer.groups.len())
                .map(|group| peer_group(&peer.groups[group], peer.keeps_up(now, group)))
                .collect(),
            uptime: peer.boot_id().map(|_| peer.uptime(now)),
            sync: peer.sync,
            links: (0..peer.links.len())
                .map(|link| peer.link(now, link, hold))
                .collect(),
        })
    }

    /// How many of the monitored ports of this unit are up, as its heartbeats say; and how many
    /// there are.
    pub fn monitored(&self) -> (u8, usize) {
        (self.ports_up, self.monitor.len())
    }

    /// How many ports this unit monitors.
    pub(crate) fn monitored_ports(&self) -> usize {
        self.monitor.len()
    }

    /// Whether `peer` last reported fewer ports up than this unit monitors.
    pub(crate) fn has_ports_down(&self, peer: &PeerView<'_>) -> bool {
        peer.ports_up < order::rank(self.monitor.len(), self.monitor.len())
    }

    /// The peer that is primary of `group`, if it is heard over a link, and was heard since this
    /// unit was last stopped for a while: not by a heartbeat that had waited for it.
    pub(crate) fn owner(&self, group: GroupId) -> Option<PeerId> {
        let id = self.alive_primary(usize::from(group.0))?;
        let peer = self.peers.get(id.index())?;
        // By then all that had waited is read.
        let fresh = self.resumed + self.interval;
        (peer.linked && peer.link_heard > Some(fresh)).then_some(id)
    }

    /// Whether `peer` was heard over a link within the hold time.
    pub(crate) fn is_linked(&self, peer: PeerId) -> bool {
        self.peers.get(peer.index()).is_some_and(|peer| peer.linked)
    }

    /// Whether `peer` was heard within the hold time, over a link or on a data port.
    pub fn is_alive(&self, peer: PeerId) -> bool {
        self.peers.get(peer.index()).is_some_and(|peer| peer.alive)
    }

    /// The last report of replication about `peer`.
    pub(crate) fn reached(&self, peer: PeerId) -> Option<SyncState> {
        self.peers.get(peer.index()).map(|peer| peer.sync)
    }

    /// Whether `held` is what replication last reported for `group`.
    pub(crate) fn knows_held(&self, group: GroupId, held: Holding) -> bool {
        let group = self.groups.get(usize::from(group.0));
        group.is_some_and(|group| group.held == super::as_sent(held))
    }

    /// The term in which this unit is primary of `group`; none if it is standby.
    pub(crate) fn term_as_primary(&self, group: GroupId) -> Option<u64> {
        let group = self.groups.get(usize::from(group.0))?;
        (group.state == State::Primary).then_some(group.term)
    }

    /// The process of `peer` that is heard.
    pub(crate) fn hearing(&self, peer: PeerId) -> Option<Heard> {
        self.peers.get(peer.index()).map(|peer| peer.hearing())
    }

    /// Who is to hold `group`, as replication was told; all, if this unit is not primary.
    pub(crate) fn holders(&self, group: GroupId) -> Holders {
        let group = self.groups.get(usize::from(group.0));
        group
            .filter(|group| group.state == State::Primary)
            .map_or(Holders::All, |group| group.holders)
    }

    /// Whether all effects were fetched.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.is_empty()
    }

    /// This unit's role in `group`; standby if the group does not exist.
    pub fn role(&self, group: GroupId) -> Role {
        self.groups
            .get(usize::from(group.0))
            .map_or(Role::Standby, super::Group::role)
    }

    /// Whether this unit, now standby, should still forward packets of the group's sessions that
    /// hosts send to it.
    pub fn is_draining(&self, now: Time, group: GroupId) -> bool {
        let group = self.groups.get(usize::from(group.0));
        group.is_some_and(|group| {
            group.role() == Role::Standby && group.draining_until.is_some_and(|until| now < until)
        })
    }

    /// Whether this unit, still primary of `group`, is handing it over.
    pub(crate) fn is_handing_over(&self, group: GroupId) -> bool {
        let group = self.groups.get(usize::from(group.0));
        group.is_some_and(|group| group.handover.is_some())
    }

    /// Whether this unit's role in `group` is so recent that others may not know it yet.
    pub(crate) fn is_new(&self, now: Time, group: GroupId) -> bool {
        let group = self.groups.get(usize::from(group.0));
        group.is_some_and(|group| now.since(group.since) < super::handover::SETTLE)
    }

    /// Whether [`super::Output::Gone`] was given.
    pub fn is_gone(&self) -> bool {
        self.leaving == Some(Leaving::Gone)
    }

    /// The last events, oldest first; at most 64.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &ElectionEvent> {
        self.events.iter()
    }

    /// How many heartbeats were ignored because of `error`.
    pub(crate) fn rejected(&self, error: HeartbeatError) -> u64 {
        self.rejected[error as usize]
    }

    fn primary_name(&self, now: Time, group: usize) -> Option<&str> {
        let state = &self.groups[group];
        if state.state == State::Primary {
            return Some(&self.name);
        }
        if let Some(peer) = self.alive_primary(group) {
            return Some(&self.peers[peer.index()].name);
        }
        // Not heard by this unit, but perhaps by another one. Who is heard speaks for itself: what
        // others say of it may be older.
        let alive = self.peers.iter().filter(|peer| peer.alive);
        let seen: Vec<u32> = alive
            .map(|peer| peer.groups[group].sees)
            .filter(|sees| *sees != 0)
            .collect();
        let mut unheard = self.known_peers().filter(|peer| !peer.alive);
        let named = unheard.find(|peer| seen.contains(&peer.hash));
        // Or the witness says so.
        let holder = self.groups[group].lease.other(now);
        named.map(|peer| peer.name.as_str()).or(holder)
    }
}

fn peer_group(state: &GroupState, keeps_up: bool) -> PeerGroup {
    PeerGroup {
        known: state.known,
        role: match state.primary {
            true => Role::Primary,
            false => Role::Standby,
        },
        ready: state.ready,
        keeps_up,
        priority: state.priority,
        term: state.term,
    }
}
