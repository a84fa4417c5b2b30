//! A view of the gateway: names, peers and sessions, for status and logs.

use std::fmt;
use std::time::Duration;

use crate::config::{Config, HaPeer, Nat, Policy};
use crate::event::LinkState;
use crate::flow::{Direction, FlowKey, GroupId, GroupSet, PeerId, PolicyId, PortId, Protocol};
use crate::session::{Session, SessionCounts, SessionFlags, SessionId, SessionState, StateCounts};
use crate::store::Seq;
use crate::sync;
use crate::time::Time;

use super::{Cluster, Counters, Gateway, PortCounters, Role};

/// The state of a peer, as this unit sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// It was heard within the hold time.
    pub connected: bool,
    /// Each has the sessions that the other sends.
    pub in_sync: bool,
    /// Both had exactly the same sessions at the last comparison, in all groups of which one of
    /// them is primary; none if there is no such group, or the peer is not connected.
    pub digest_equal: Option<bool>,
}

/// The state of a peer in one group. Unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerGroupState {
    /// It is primary of the group, or one of the units that hold it. With `copies`, not all do.
    pub holder: Option<bool>,
    /// The primary of the two has sent all sessions, and the other holds them.
    pub in_sync: Option<bool>,
    /// Both had exactly the same sessions at the last comparison.
    pub digest_equal: Option<bool>,
    /// The last change of the primary that the other has applied.
    pub applied: Option<u64>,
    /// Sessions that the peer would lack if this unit, the primary, died now.
    pub would_be_lost: Option<u32>,
}

/// A session as shown to people and programs.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Its slot in the table.
    pub id: u32,
    /// As its first packet came in.
    pub original: FlowKey,
    /// As it left.
    pub translated: FlowKey,
    /// Port of the first packet.
    pub in_port: PortId,
    /// The port that it left by.
    pub out_port: PortId,
    /// The policy that accepted it.
    pub policy: PolicyId,
    /// The group that it moves with.
    pub group: GroupId,
    /// On the primary, whether the peers have acknowledged its current state; on a standby, whether
    /// it holds all of the group's sessions.
    pub synced: bool,
    /// State in the words of the protocol.
    pub state: &'static str,
    /// Packets and bytes, original direction first.
    pub packets: [u64; 2],
    /// Bytes of IP, original direction first.
    pub bytes: [u64; 2],
    /// Whether the fast path forwards its packets.
    pub offloaded: bool,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Seconds until it expires if no more packets come.
    pub expires_s: u64,
}

#[cfg(test)]
impl SessionView {
    /// One for the tests of what shows it.
    pub(crate) fn example(key: FlowKey) -> SessionView {
        SessionView {
            id: 7,
            original: key,
            translated: key,
            in_port: PortId(0),
            out_port: PortId(0),
            policy: PolicyId::NONE,
            group: GroupId(0),
            synced: false,
            offloaded: true,
            state: "replied",
            packets: [1, 2],
            bytes: [100, 200],
            age_s: 3,
            expires_s: 297,
        }
    }
}

impl Gateway {
    /// Totals since the start of the process.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The digest of the policies, pools and forwards in force: equal on units that decide the same
    /// way.
    pub fn rules_digest(&self) -> [u8; 16] {
        self.rules.ruleset().digest()
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        self.rules.config()
    }

    /// The same, for callers that keep it.
    pub fn shared_config(&self) -> std::sync::Arc<Config> {
        self.rules.basis().config
    }

    /// The time since the gateway was started.
    pub fn uptime(&self, now: Time) -> Duration {
        now.since(self.started)
    }

    /// The role of this unit in `group`.
    pub fn role_of(&self, group: GroupId) -> Role {
        self.role(group)
    }

    /// The state of the interface of `port`.
    pub fn link(&self, port: PortId) -> LinkState {
        *self.links.link(port)
    }

    /// Traffic counters of `port`.
    pub fn port_counters(&self, port: PortId) -> PortCounters {
        *self.links.counters(port)
    }

    /// Bytes forwarded, out of all ports.
    pub fn forwarded_bytes(&self) -> u64 {
        self.links.out_bytes()
    }

    /// The configured name of `port`.
    pub fn port_name(&self, port: PortId) -> &str {
        &self.rules.port(port).name
    }

    /// The configured name of `policy`.
    pub fn policy_name(&self, policy: PolicyId) -> &str {
        self.policy(policy).map_or("-", |policy| &policy.name)
    }

    /// The configuration of `policy`; none if it was removed, or belongs to a peer.
    pub fn policy(&self, policy: PolicyId) -> Option<&Policy> {
        self.rules.policy(policy)
    }

    /// All groups, by their places, which are in the order of the config at the start.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + Clone + use<> {
        let known = self.rules.config().known_groups();
        known.map(|(group, _)| group).collect::<GroupSet>().iter()
    }

    /// The configured name of `group`.
    pub fn group_name(&self, group: GroupId) -> &str {
        &self.rules.config().groups[usize::from(group.0)].name
    }

    /// The number of sessions, by protocol.
    pub fn session_counts(&self) -> SessionCounts {
        self.sessions.table().counts()
    }

    /// The number of sessions, by state.
    pub fn session_states(&self) -> &StateCounts {
        self.sessions.table().states()
    }

    /// How many external ports of the pool of `nat` are taken for `protocol`, by mappings and
    /// forwards, and how many there are.
    pub fn pool_usage(&self, nat: Nat, egress: PortId, protocol: Protocol) -> (u64, u64) {
        let pool = self.sessions.nat().pool(nat, egress);
        pool.map_or((0, 0), |pool| {
            self.sessions.nat().pool_usage(pool, protocol)
        })
    }

    /// The peers, by their places, which are in the order of the config at the start; none without
    /// `[ha]`.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + use<> {
        let peers = self.cluster().map(|cluster| cluster.paths.peers());
        peers.into_iter().flatten()
    }

    /// The name of a peer's node.
    pub fn peer_name(&self, peer: PeerId) -> &str {
        let name = self.cluster().and_then(|it| it.paths.name(peer));
        name.unwrap_or("?")
    }

    /// What the config in force says of a peer; none of a place that nobody has.
    pub fn peer_settings(&self, peer: PeerId) -> Option<&HaPeer> {
        let name = self.cluster()?.paths.name(peer)?;
        self.rules.ha()?.peers.iter().find(|it| it.name == name)
    }

    /// The settings that differ between `peer` and this unit, in words.
    pub fn differing_settings(&self, peer: PeerId) -> String {
        let about = self.cluster().and_then(|it| it.sync().about(peer));
        match about.map(|about| about.differing) {
            None => "unknown".to_owned(),
            Some([]) => "the order of the policies, or one of many settings".to_owned(),
            Some(names) => names.join(", "),
        }
    }

    /// The state of `peer`, as this unit sees it.
    pub fn peer_state(&self, now: Time, peer: PeerId) -> PeerState {
        let Some(cluster) = self.cluster().filter(|it| it.ha().is_linked(peer)) else {
            return PeerState::default();
        };
        let groups = self.groups();
        // Of groups that one of them does not hold, there is nothing to compare.
        let shared = groups.filter(|group| {
            cluster.sync().has_group(peer, *group) != Some(false)
                && self.is_holder(cluster, now, *group, Some(peer))
                && self.is_holder(cluster, now, *group, None)
        });
        let (mut in_sync, mut digest_equal) = (true, None);
        for group in shared {
            let state = self.peer_group_state_in(cluster, now, peer, group);
            in_sync &= state.in_sync == Some(true);
            if let Some(equal) = state.digest_equal {
                digest_equal = Some(equal && digest_equal != Some(false));
            }
        }
        PeerState {
            connected: true,
            in_sync,
            digest_equal,
        }
    }

    /// The state of `peer` in `group`, as this unit sees it.
    pub fn peer_group_state(&self, now: Time, peer: PeerId, group: GroupId) -> PeerGroupState {
        self.cluster()
            .map(|it| self.peer_group_state_in(it, now, peer, group))
            .unwrap_or_default()
    }

    /// Whether a peer, or this unit, is primary of a group, or one of the units that hold it.
    fn is_holder(
        &self,
        cluster: &Cluster,
        now: Time,
        group: GroupId,
        unit: Option<PeerId>,
    ) -> bool {
        match (self.role(group), unit) {
            (Role::Primary, None) => true,
            (Role::Primary, Some(peer)) => cluster.sync().is_holder(peer, group),
            (Role::Standby, unit) => cluster.ha().is_holder(now, group, unit),
        }
    }

    fn peer_group_state_in(
        &self,
        cluster: &Cluster,
        now: Time,
        peer: PeerId,
        group: GroupId,
    ) -> PeerGroupState {
        let (sync, ha) = (cluster.sync(), cluster.ha());
        let has = sync.has_group(peer, group);
        let is_holder = |unit| self.is_holder(cluster, now, group, unit);
        if !is_holder(Some(peer)) {
            return PeerGroupState {
                holder: Some(false),
                ..PeerGroupState::default()
            };
        }
        let holder = (has != Some(false)).then_some(true);
        let heard = ha.is_linked(peer) && has == Some(true);
        if self.role(group) == Role::Primary {
            return PeerGroupState {
                holder,
                in_sync: heard.then(|| sync.in_sync_for(peer, group)),
                digest_equal: heard.then(|| sync.digest_equal(peer, group)),
                applied: sync.acknowledged(peer).filter(|_| heard),
                would_be_lost: sync.would_be_lost(peer, group, &self.sessions),
            };
        }
        let view = ha.group(now, group);
        let primary = view.as_ref().and_then(|view| view.primary);
        let holds = is_holder(None);
        let follows = heard && holds && primary == Some(self.peer_name(peer));
        // This unit knows which sessions the primary has.
        let is_fresh = sync.is_ready(group) && view.as_ref().is_some_and(|view| !view.degraded);
        // Of two standbys, one knows the other's own report.
        let said = || {
            let view = ha.peer(now, peer).filter(|view| view.alive)?;
            let said = view
                .groups
                .get(usize::from(group.0))
                .filter(|it| it.known)?;
            match said.ready {
                true => (is_fresh && primary.is_some()).then_some(said.keeps_up),
                false => Some(false),
            }
        };
        PeerGroupState {
            holder,
            in_sync: match follows {
                true => Some(sync.is_ready(group)),
                false => said().filter(|_| holds),
            },
            digest_equal: follows.then(|| sync.is_ready(group)),
            applied: follows.then(|| sync.applied(peer)),
            would_be_lost: None,
        }
    }

    /// How far `peer` is behind this unit.
    pub fn lag(&self, peer: PeerId, now: Time) -> sync::Lag {
        let cluster = self.cluster();
        cluster.map_or_else(Default::default, |cluster| {
            cluster.sync().lag(peer, &self.sessions, now)
        })
    }

    /// The cheap part of [`Gateway::lag`]: the changes that `peer` has not acknowledged, and the
    /// age of the oldest of them.
    pub fn backlog(&self, peer: PeerId, now: Time) -> (u64, Duration) {
        let cluster = self.cluster();
        cluster.map_or_else(Default::default, |cluster| {
            let journal = self.sessions.journal();
            cluster.sync().backlog(peer, journal, now)
        })
    }

    /// The number of the last change of the session in slot `id`, by which peers count the applied
    /// changes; none if it is not replicated.
    pub fn last_change(&self, id: u32) -> Option<Seq> {
        self.sessions.journal().seq_of(SessionId(id))
    }

    /// The sessions in the `slots` slots of the table from `cursor` on, and the next cursor if
    /// there are more slots.
    pub fn page(
        &self,
        cursor: u32,
        slots: u32,
        now: Time,
    ) -> (impl Iterator<Item = SessionView>, Option<u32>) {
        let (sessions, next) = self.sessions.table().page(cursor, slots);
        (
            sessions.map(move |(id, session)| self.view(id, session, now)),
            next,
        )
    }

    /// A session as shown to people and programs.
    pub(super) fn view(&self, id: SessionId, session: &Session, now: Time) -> SessionView {
        let tick = now.tick();
        let deadline = self.sessions.table().deadline(id).unwrap_or(tick);
        let mut copy = session.clone();
        let session = match session.flags.contains(SessionFlags::OFFLOADED) {
            true => {
                self.fast_path.peek(id, &mut copy);
                &copy
            }
            false => session,
        };
        SessionView {
            id: id.0,
            policy: session.policy,
            group: session.group,
            synced: self
                .cluster()
                .is_some_and(|cluster| match self.role(session.group) {
                    Role::Primary => {
                        cluster
                            .sync
                            .is_synced(self.sessions.journal(), id, session.group)
                    }
                    Role::Standby => cluster.sync.is_ready(session.group),
                }),
            original: session.key(Direction::Original, self.sessions.book()),
            translated: session.translated(Direction::Original, self.sessions.book()),
            in_port: session.in_port,
            out_port: session.out_port,
            state: SessionState::of(session).name(),
            packets: session.packets,
            bytes: session.bytes,
            offloaded: session.flags.contains(SessionFlags::OFFLOADED),
            age_s: tick.since(session.created).as_secs(),
            expires_s: deadline.since(tick).as_secs(),
        }
    }

    /// A session in one line of `key=value`, for the log.
    ///
    /// It is formatted only when it is written: a suppressed line costs nothing.
    pub(super) fn describe<'a>(
        &'a self,
        id: SessionId,
        session: &'a Session,
        now: Time,
    ) -> SessionLine<'a> {
        SessionLine {
            gateway: self,
            id,
            session,
            now,
        }
    }
}

/// See [`Gateway::describe`].
pub(super) struct SessionLine<'a> {
    gateway: &'a Gateway,
    id: SessionId,
    session: &'a Session,
    now: Time,
}

impl fmt::Display for SessionLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.gateway.view(self.id, self.session, self.now);
        write!(
            f,
            "policy={} in={} out={} flow=\"{}\" translated=\"{}\" state={} age_s={} packets={}/{} bytes={}/{}",
            self.gateway.policy_name(view.policy),
            self.gateway.port_name(view.in_port),
            self.gateway.port_name(view.out_port),
            view.original,
            view.translated,
            view.state,
            view.age_s,
            view.packets[0],
            view.packets[1],
            view.bytes[0],
            view.bytes[1],
        )
    }
}
