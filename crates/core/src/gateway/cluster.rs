//! The unit among its peers: joins election (`ha`) and replication (`sync`) to the gateway.
//!
//! Which link carries the replication stream: the unit with the smaller node name dials, and decides;
//! it takes the first link on which the peer answers, stays there as long as it works, and moves on at
//! the first heartbeat that fails to come by it. The other unit follows to the link on which the
//! stream comes in.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::event::Output;
use crate::flow::{GroupId, LinkId, PeerId};
use crate::ha::{self, GroupSet, Ha, HandoverError, Hint, Maintenance, SyncState};
use crate::in_quotes::InQuotes;
use crate::policy::Ruleset;
use crate::store::{Journal, SessionStore};
use crate::sync::{self, Context, Replicator};
use crate::time::Time;

use super::guarantee::Waiting;
use super::{Gateway, Role, Traffic};

/// Bytes of the stream that are encoded for a peer in one turn: some 300 µs.
const SYNC_BUDGET: usize = 256 * 1024;

/// Election, replication, and the way to each peer.
pub struct Cluster {
    pub(super) ha: Ha,
    pub(super) sync: Replicator,
    pub(super) peers: Vec<PeerPath>,
    pub(super) waiting: Waiting,
    /// Ends of planned handovers that somebody may be waiting for.
    pub(super) handovers: VecDeque<HandoverEnd>,
    pub(super) gone: bool,
}

/// What is to be done at the gateway.
pub(super) enum Step {
    /// Replication has something to tell.
    Told(sync::Event),
    /// The election has decided something; replication knows.
    Decided(ha::Output),
}

/// The end of a planned handover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverEnd {
    /// The group.
    pub group: GroupId,
    /// The peer that was to take over.
    pub to: PeerId,
    /// The time from the request to the end.
    pub took: Duration,
    /// Why it failed, if so.
    pub result: Result<(), HandoverError>,
}

/// The replication streams to one peer.
#[derive(Clone, Debug)]
pub(super) struct PeerPath {
    /// This unit decides which link is used.
    decides: bool,
    /// By link.
    streams: Vec<Stream>,
    /// The link in use.
    pub(super) link: Option<LinkId>,
    /// Why a stream was closed last, and when that was logged.
    complaint: Option<(Time, sync::ProtocolError)>,
}

/// A stream that is closed for the same reason again and again is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// The stream to a peer over one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// There is none, or one that is about to be closed: what still comes by it is void.
    Down,
    /// Open, and nothing has come by it.
    Fresh,
    /// Open, and in use.
    Used,
}

/// Ends of handovers that are remembered; older ones are forgotten.
pub(super) const MAX_HANDOVERS: usize = 64;

/// Whether this unit still handles stragglers of a group that it handed over.
pub(super) fn is_draining(cluster: Option<&Cluster>, now: Time, group: GroupId) -> bool {
    cluster.is_some_and(|cluster| cluster.ha.is_draining(now, group))
}

impl Cluster {
    /// The cluster of a config with `[ha]`; `None` without.
    pub fn new(
        config: &Config,
        random: &mut super::random::Random,
        now: Time,
        ruleset: &Ruleset,
    ) -> Option<Cluster> {
        let settings = config.ha.as_ref()?;
        let path = |peer: &crate::config::HaPeer| PeerPath {
            decides: config.node.name < peer.name,
            streams: vec![Stream::Down; settings.links.len()],
            link: None,
            complaint: None,
        };
        Some(Cluster {
            ha: Ha::new(config, random.next(), now)?,
            sync: Replicator::new(config, random.next(), ruleset)?,
            peers: settings.peers.iter().map(path).collect(),
            waiting: Waiting::default(),
            handovers: VecDeque::new(),
            gone: false,
        })
    }

    /// The next thing to do for the gateway. What election and replication have to tell each other is passed on
    /// before: a takeover is announced by one and carried out by the other in the same call.
    pub(super) fn poll_step(
        &mut self,
        now: Time,
        roles: &[Role],
        traffic: &[Traffic],
        store: &mut SessionStore,
    ) -> Option<Step> {
        if let Some(event) = self.sync.poll_event() {
            if let sync::Event::HandoverReceived { peer, group, term } = event {
                self.ha.handle_handover(now, group, peer, term);
            }
            return Some(Step::Told(event));
        }
        let output = self.ha.poll_output().or_else(|| {
            self.tell_election(now, roles, traffic);
            self.ha.poll_output()
        })?;
        self.tell_replication(&output, store.journal_mut());
        Some(Step::Decided(output))
    }

    /// Tells the election what replication has reached.
    fn tell_election(&mut self, now: Time, roles: &[Role], traffic: &[Traffic]) {
        let groups = || (0..roles.len()).map(|group| GroupId(group as u8));
        for (group, traffic) in groups().zip(traffic) {
            let held = self.sync.held(group);
            self.ha.handle_evidence(group, held, traffic.carried());
        }
        for peer in (0..self.peers.len()).map(|peer| PeerId(peer as u8)) {
            let mut ready = GroupSet::default();
            groups()
                .filter(|group| self.sync.is_ready(*group))
                .for_each(|group| ready.insert(group));
            let mut equal = GroupSet::default();
            groups()
                .filter(|group| roles[usize::from(group.0)] == Role::Primary)
                .filter(|group| self.sync.digest_equal(peer, *group))
                .for_each(|group| equal.insert(group));
            if !self.sync.agrees(peer) {
                (ready, equal) = (GroupSet::default(), GroupSet::default());
            }
            let applied = self.sync.applied(peer);
            let (linked, boot_id) = (self.ha.is_linked(peer), self.ha.boot_id(peer));
            self.sync.set_heard(peer, linked, boot_id);
            self.ha.handle_sync(
                now,
                peer,
                SyncState {
                    ready,
                    equal,
                    applied,
                },
            );
        }
    }

    /// Tells replication what the election has decided.
    fn tell_replication(&mut self, output: &ha::Output, journal: &mut Journal) {
        match output {
            ha::Output::SetRole {
                group, role, term, ..
            } => {
                let term = (*role == Role::Primary).then_some(*term);
                self.sync.set_sending(*group, term, journal);
            }
            ha::Output::Reassert { group, term } => {
                self.sync.set_sending(*group, Some(*term), journal);
            }
            ha::Output::Handover { group, to, term } => self.sync.send_handover(*to, *group, *term),
            ha::Output::HandoverDone {
                group,
                to,
                took,
                result,
            } => {
                if result.is_err() {
                    self.sync.cancel_handover(*to, *group);
                }
                if self.handovers.len() == MAX_HANDOVERS {
                    self.handovers.pop_front();
                }
                self.handovers.push_back(HandoverEnd {
                    group: *group,
                    to: *to,
                    took: *took,
                    result: result.clone(),
                });
            }
            ha::Output::Resync { group, .. } => self.sync.doubt(*group),
            ha::Output::Gone => self.gone = true,
            ha::Output::SendHeartbeat { .. }
            | ha::Output::SendOnPort { .. }
            | ha::Output::Stray { .. }
            | ha::Output::Probe { .. }
            | ha::Output::Announce { .. } => {}
        }
    }

    /// The election.
    pub fn ha(&self) -> &Ha {
        &self.ha
    }

    /// The replication.
    pub fn sync(&self) -> &Replicator {
        &self.sync
    }
}

impl Gateway {
    /// The cluster, if there is an `[ha]`.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// To be called first in each turn, before any packet: a unit that was stopped for longer than the
    /// hold time gives up its roles.
    pub fn handle_wake(&mut self, now: Time) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        if cluster.ha.handle_wake(now) {
            self.settle_cluster(now);
        }
    }

    /// Handles a datagram of the heartbeat connection to `peer` over `link`.
    pub fn handle_heartbeat(&mut self, now: Time, peer: PeerId, link: LinkId, bytes: &[u8]) {
        self.in_cluster(now, |cluster, _| {
            if let Err(error) = cluster.ha.handle_heartbeat(now, peer, link, bytes) {
                log::debug!("heartbeat ignored peer={} why={}", peer.0, error.name());
            }
        });
    }

    /// The heartbeat connection to `peer` over `link` came up or went down.
    pub fn handle_heartbeat_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        self.in_cluster(now, |cluster, _| {
            cluster.ha.handle_link(now, peer, link, up)
        });
    }

    /// Something hints that a peer has died.
    pub fn handle_hint(&mut self, now: Time, hint: Hint) {
        self.in_cluster(now, |cluster, _| cluster.ha.handle_hint(now, hint));
    }

    /// The stream to `peer` over `link` came up or went down.
    pub fn handle_sync_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let Some(path) = cluster.peers.get_mut(peer.index()) else {
            return;
        };
        let Some(stream) = path.streams.get_mut(link.index()) else {
            return;
        };
        *stream = if up { Stream::Fresh } else { Stream::Down };
        if path.link == Some(link) {
            // A stream that came up anew is another one.
            path.link = None;
            cluster
                .sync
                .peer_disconnected(peer, self.sessions.journal_mut(), now);
        }
        self.choose_sync_link(now, peer);
        self.settle_cluster(now);
    }

    /// Handles bytes of the stream of `peer` over `link`. Gives how many were taken, and whether to
    /// call again soon; what was not taken is to come again.
    pub fn handle_sync_data(
        &mut self,
        now: Time,
        peer: PeerId,
        link: LinkId,
        bytes: &[u8],
    ) -> Result<sync::Received, sync::ProtocolError> {
        let ignored = sync::Received {
            taken: bytes.len(),
            more: false,
        };
        let Some(cluster) = &mut self.cluster else {
            return Ok(ignored);
        };
        let Some(path) = cluster.peers.get_mut(peer.index()) else {
            return Ok(ignored);
        };
        let Some(stream) = path.streams.get_mut(link.index()) else {
            return Ok(ignored);
        };
        if path.link != Some(link) {
            // Only the beginning of a stream can be followed.
            if path.decides || bytes.is_empty() || *stream != Stream::Fresh {
                return Ok(ignored);
            }
            let left = path.link.replace(link);
            cluster
                .sync
                .peer_disconnected(peer, self.sessions.journal_mut(), now);
            cluster
                .sync
                .peer_connected(peer, self.sessions.journal_mut());
            self.leave_stream(peer, left);
        }
        let Some(cluster) = &mut self.cluster else {
            return Ok(ignored);
        };
        let mut context = Context {
            store: &mut self.sessions,
            now,
        };
        let path = &mut cluster.peers[peer.index()];
        path.streams[link.index()] = Stream::Used;
        let received = cluster.sync.receive(peer, bytes, &mut context);
        if let Err(error) = &received {
            let path = &mut cluster.peers[peer.index()];
            path.link = None;
            path.streams[link.index()] = Stream::Down;
            let news = path
                .complaint
                .as_ref()
                .is_none_or(|(at, known)| known != error || now.since(*at) >= COMPLAINT_INTERVAL);
            if news {
                path.complaint = Some((now, error.clone()));
                log::warn!(
                    "replication stream closed peer={} why={error}",
                    self.config
                        .ha
                        .as_ref()
                        .map_or("?", |ha| &ha.peers[peer.index()].name),
                    error = InQuotes(&error)
                );
            }
            cluster
                .sync
                .peer_disconnected(peer, self.sessions.journal_mut(), now);
        }
        self.settle_cluster(now);
        received
    }

    /// The link that the stream to `peer` goes over; `None` if there is none.
    pub fn sync_link(&self, peer: PeerId) -> Option<LinkId> {
        self.cluster.as_ref()?.peers.get(peer.index())?.link
    }

    /// Appends what `peer` should get now to `out`, to be sent over [`Gateway::sync_link`]. Gives
    /// whether to call again as soon as the stream takes more.
    pub fn poll_sync(&mut self, now: Time, peer: PeerId, out: &mut Vec<u8>) -> bool {
        let Some(cluster) = &mut self.cluster else {
            return false;
        };
        if cluster
            .peers
            .get(peer.index())
            .is_none_or(|path| path.link.is_none())
        {
            return false;
        }
        cluster
            .sync
            .poll_transmit(peer, out, SYNC_BUDGET, &mut self.sessions, now)
    }

    /// The stream to `peer` takes nothing now; [`Gateway::poll_sync`] is called again when it does.
    pub fn handle_sync_blocked(&mut self, peer: PeerId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.sync.peer_blocked(peer);
        }
    }

    /// Hands `group` over to a peer, to the best one if `to` is none; see [`Gateway::poll_handover`].
    ///
    /// # Errors
    /// Why it can't be.
    pub fn request_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.start_failover(now, |ha| ha.request_failover(now, group, to))
    }

    /// As [`Gateway::request_failover`], to a peer that only has to be alive; see [`Ha::force_failover`].
    ///
    /// # Errors
    /// Why it can't be done.
    pub fn force_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.start_failover(now, |ha| ha.force_failover(now, group, to))
    }

    fn start_failover(
        &mut self,
        now: Time,
        start: impl FnOnce(&mut Ha) -> Result<(), HandoverError>,
    ) -> Result<(), HandoverError> {
        self.in_cluster(now, |cluster, _| start(&mut cluster.ha))
            .unwrap_or(Err(HandoverError::Standalone))
    }

    /// The end of the next planned handover of `group`, if it has come.
    pub fn poll_handover(&mut self, group: GroupId) -> Option<HandoverEnd> {
        let handovers = &mut self.cluster.as_mut()?.handovers;
        let at = handovers.iter().position(|end| end.group == group)?;
        handovers.remove(at)
    }

    /// Begins or ends the maintenance of this unit: see [`Ha::set_maintenance`].
    ///
    /// # Errors
    /// A gateway without `[ha]` has nobody to hand over to.
    pub fn set_maintenance(
        &mut self,
        now: Time,
        wanted: Option<Maintenance>,
    ) -> Result<(), HandoverError> {
        self.in_cluster(now, |cluster, _| cluster.ha.set_maintenance(now, wanted))
            .ok_or(HandoverError::Standalone)?;
        self.check_health(now);
        Ok(())
    }

    /// Before the start: the unit was in maintenance when it ended.
    pub fn begin_in_maintenance(&mut self, now: Time, maintenance: Option<Maintenance>) {
        if maintenance.is_some() {
            self.in_cluster(now, |cluster, _| {
                cluster.ha.set_maintenance(now, maintenance)
            });
        }
    }

    /// The maintenance of this unit, if it is in one.
    pub fn maintenance(&self) -> Option<Maintenance> {
        self.cluster.as_ref()?.ha.maintenance()
    }

    /// Hands over all groups and says goodbye; [`Gateway::is_gone`] tells when that is done.
    pub fn shut_down(&mut self, now: Time) {
        self.in_cluster(now, |cluster, _| cluster.ha.shut_down(now));
    }

    /// Whether the process may end.
    pub fn is_gone(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.gone)
    }

    pub(super) fn cluster_timeout(&mut self, now: Time) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        cluster.ha.handle_timeout(now);
        cluster.sync.handle_timeout(now, &mut self.sessions);
        self.renew_leases(now);
        self.keep_warm(now);
        for peer in self.peers() {
            self.choose_sync_link(now, peer);
        }
        self.release_overdue(now);
        self.settle_cluster(now);
    }

    pub(super) fn poll_cluster_timeout(&self, now: Time) -> Option<Time> {
        let cluster = self.cluster.as_ref()?;
        let all = [
            cluster.ha.poll_timeout(now),
            cluster.sync.poll_timeout(self.sessions.journal()),
            cluster.waiting.deadline(),
        ];
        all.into_iter().flatten().min()
    }

    pub(super) fn tell_ports(&mut self, now: Time) {
        let up = self.ports_up();
        self.in_cluster(now, |cluster, _| cluster.ha.handle_ports(now, &up));
    }

    /// By port, whether packets can pass it and lead somewhere, as far as known here.
    pub(super) fn ports_up(&self) -> Vec<bool> {
        let ports = self.ports.iter().enumerate();
        ports
            .map(|(index, port)| port.works() && self.leads_on(index))
            .collect()
    }

    /// Whether this unit handles packets of `group`: as primary, or as stragglers after a handover.
    pub(super) fn carries(&self, now: Time, group: GroupId) -> bool {
        self.is_primary(group) || is_draining(self.cluster.as_deref(), now, group)
    }

    /// Takes the best link for the stream to `peer`, if that is this unit's to decide.
    fn choose_sync_link(&mut self, now: Time, peer: PeerId) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let view = cluster.ha.peer(now, peer);
        let path = &mut cluster.peers[peer.index()];
        if !path.decides {
            return;
        }
        let alive = |link: LinkId| {
            view.as_ref()
                .and_then(|v| v.links.get(link.index()))
                .is_some_and(|link| link.alive)
        };
        let usable = |link: LinkId| path.streams[link.index()] != Stream::Down;
        let links = || (0..path.streams.len()).map(|link| LinkId(link as u8));
        let best = links()
            .find(|link| usable(*link) && alive(*link))
            .or_else(|| path.link.filter(|link| usable(*link)))
            .or_else(|| links().find(|link| usable(*link)));
        let stays = path.link.is_some_and(|link| usable(link) && alive(link)) || path.link == best;
        if stays {
            return;
        }
        let left = std::mem::replace(&mut path.link, best);
        if left.is_some() {
            cluster
                .sync
                .peer_disconnected(peer, self.sessions.journal_mut(), now);
        }
        if let Some(link) = best {
            log::debug!("replication stream chosen peer={} link={}", peer.0, link.0);
            cluster
                .sync
                .peer_connected(peer, self.sessions.journal_mut());
        }
        self.leave_stream(peer, left);
    }

    /// Has the streams to all peers begin anew, where they were: their Hello says what is no longer so.
    pub(super) fn reopen_streams(&mut self, now: Time) {
        for peer in self.peers() {
            let Some(cluster) = &mut self.cluster else {
                return;
            };
            if let Some(link) = cluster.peers[peer.index()].link.take() {
                cluster
                    .sync
                    .peer_disconnected(peer, self.sessions.journal_mut(), now);
                self.leave_stream(peer, Some(link));
                self.choose_sync_link(now, peer);
            }
        }
    }

    /// Has a stream closed that is no longer used.
    fn leave_stream(&mut self, peer: PeerId, left: Option<LinkId>) {
        let (Some(link), Some(cluster)) = (left, &mut self.cluster) else {
            return;
        };
        let stream = &mut cluster.peers[peer.index()].streams[link.index()];
        // One that is down needs no closing, and another may soon be in its place.
        if std::mem::replace(stream, Stream::Down) != Stream::Down {
            self.push_urgent(Output::CloseStream { peer, link });
        }
    }
}
