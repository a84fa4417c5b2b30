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
use crate::ha::{Ha, Hint};
use crate::session::SessionId;
use crate::sync::{self, Context, Phase, Replicator};
use crate::time::Time;

use super::Gateway;
use super::guarantee::Waiting;

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
    pub result: Result<(), String>,
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

<<<<<<< HEAD
/// A stream that is closed for the same reason again and again is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
=======
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
>>>>>>> w/p-nat

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
        ruleset: [u8; 16],
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
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        if let Err(error) = cluster.ha.handle_heartbeat(now, peer, link, bytes) {
            log::debug!("heartbeat ignored peer={} why={}", peer.0, error.name());
        }
        self.settle_cluster(now);
    }

    /// The heartbeat connection to `peer` over `link` came up or went down.
    pub fn handle_heartbeat_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        cluster.ha.handle_link(now, peer, link, up);
        self.settle_cluster(now);
    }

    /// Something hints that a peer has died.
    pub fn handle_hint(&mut self, now: Time, hint: Hint) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        cluster.ha.handle_hint(now, hint);
        self.settle_cluster(now);
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
            cluster.sync.peer_disconnected(peer, now);
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
            cluster.sync.peer_disconnected(peer, now);
            cluster.sync.peer_connected(peer);
            self.leave_stream(peer, left);
        }
        let Some(cluster) = &mut self.cluster else {
            return Ok(ignored);
        };
        let mut context = Context {
            table: &mut self.table,
            book: &mut self.book,
            nat: &mut self.nat,
            now,
        };
        let path = &mut cluster.peers[peer.index()];
        path.streams[link.index()] = Stream::Used;
        let received = cluster.sync.receive(peer, bytes, &mut context);
        if let Err(error) = &received {
<<<<<<< HEAD
            let path = &mut cluster.peers[peer.index()];
            path.link = None;
            let news = path
                .complaint
                .as_ref()
                .is_none_or(|(at, known)| known != error || now.since(*at) >= COMPLAINT_INTERVAL);
            if news {
                path.complaint = Some((now, error.clone()));
                log::warn!(
                    "replication stream of peer={} closed why=\"{error}\"",
                    self.config
                        .ha
                        .as_ref()
                        .map_or("?", |ha| &ha.peers[peer.index()].name)
                );
            }
=======
            log::warn!(
                "replication stream of peer={} closed why=\"{error}\"",
                peer.0
            );
            path.link = None;
            path.streams[link.index()] = Stream::Down;
>>>>>>> w/p-nat
            cluster.sync.peer_disconnected(peer, now);
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
            .poll_transmit(peer, out, SYNC_BUDGET, &self.table, &self.book, now)
    }

    /// Hands `group` over to a peer, to the best one if `to` is none; see [`Gateway::poll_handover`].
    ///
    /// # Errors
    /// Why it can't be, as a sentence for the operator.
    pub fn request_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), String> {
        let cluster = self
            .cluster
            .as_mut()
            .ok_or("this gateway is standalone: it has no [ha]")?;
        cluster.ha.request_failover(now, group, to)?;
        self.settle_cluster(now);
        Ok(())
    }

    /// The end of the next planned handover of `group`, if it has come.
    pub fn poll_handover(&mut self, group: GroupId) -> Option<HandoverEnd> {
        let handovers = &mut self.cluster.as_mut()?.handovers;
        let at = handovers.iter().position(|end| end.group == group)?;
        handovers.remove(at)
    }

    /// Hands over all groups and says goodbye; [`Gateway::is_gone`] tells when that is done.
    pub fn shut_down(&mut self, now: Time) {
        match &mut self.cluster {
            Some(cluster) => cluster.ha.shut_down(now),
            None => return,
        }
        self.settle_cluster(now);
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
        cluster.sync.handle_timeout(now, &self.table, &self.book);
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
            cluster.sync.poll_timeout(),
            cluster.waiting.deadline(),
        ];
        all.into_iter().flatten().min()
    }

    pub(super) fn tell_ports(&mut self, now: Time) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let up: Vec<bool> = self.links.iter().map(|link| link.up).collect();
        cluster.ha.handle_ports(now, &up);
        self.settle_cluster(now);
    }

    /// A session was opened by a packet here.
    #[inline]
    pub(super) fn note_opened(&mut self, now: Time, id: SessionId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.sync.opened(&self.table, &self.book, id, now);
        }
    }

    /// A session has changed; `before` is what it was.
    #[inline]
    pub(super) fn note_changed(&mut self, id: SessionId, before: Phase) {
        if let Some(cluster) = &mut self.cluster {
            cluster.sync.changed(&self.table, &self.book, id, before);
        }
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
            cluster.sync.peer_disconnected(peer, now);
        }
        if let Some(link) = best {
            log::debug!("replication peer={} link={}", peer.0, link.0);
            cluster.sync.peer_connected(peer);
        }
        self.leave_stream(peer, left);
    }

    /// Has a stream closed that is no longer used.
    fn leave_stream(&mut self, peer: PeerId, left: Option<LinkId>) {
        let (Some(link), Some(cluster)) = (left, &mut self.cluster) else {
            return;
        };
        let stream = &mut cluster.peers[peer.index()].streams[link.index()];
        // One that is down needs no closing, and another may soon be in its place.
        if std::mem::replace(stream, Stream::Down) != Stream::Down {
            self.push_output(Output::CloseStream { peer, link });
        }
    }
<<<<<<< HEAD
=======

    /// Carries out what election and replication have decided, until neither has more to say.
    fn settle_cluster(&mut self, now: Time) {
        while let Some(cluster) = &mut self.cluster {
            if let Some(event) = cluster.sync.poll_event() {
                self.heed_sync(now, event);
            } else if let Some(output) = cluster.ha.poll_output() {
                self.obey_ha(now, output);
            } else if !self.tell_ha_of_sync(now) {
                break;
            }
        }
        self.release_acknowledged();
    }

    fn heed_sync(&mut self, now: Time, event: sync::Event) {
        let name = |peer: PeerId| self.peer_name(peer).to_owned();
        match event {
            sync::Event::PeerKnown { peer, resumed } => {
                log::info!("replication with peer={} resumed={resumed}", name(peer));
            }
            sync::Event::PeerConfigDiffers(peer) => log::warn!(
                "peer={} has other policies, pools or forwards; new sessions fare differently after a takeover",
                name(peer)
            ),
            sync::Event::PeerReady(peer, group) => {
                log::info!(
                    "peer={} is ready group={}",
                    name(peer),
                    self.group_name(group)
                );
            }
            sync::Event::Ready(peer, group) => {
                log::info!(
                    "ready group={} primary={}",
                    self.group_name(group),
                    name(peer)
                );
            }
            sync::Event::DigestDiffers {
                peer,
                group,
                buckets,
            } => log::warn!(
                "digest differs peer={} group={} buckets={buckets}; sending them again",
                name(peer),
                self.group_name(group)
            ),
            sync::Event::HandoverReceived { peer, group, term } => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.ha.handle_handover(now, group, peer, term);
                }
            }
        }
    }

    fn obey_ha(&mut self, now: Time, output: ha::Output) {
        match output {
            ha::Output::SetRole {
                group, role, term, ..
            } => self.change_role(now, group, role, term),
            ha::Output::SendHeartbeat { peer, link, bytes } => {
                self.push_output(Output::Heartbeat { peer, link, bytes });
            }
            ha::Output::Probe { group } => self.probe_group(group),
            ha::Output::Announce { group } => self.announce_group(now, group),
            ha::Output::Handover { group, to, term } => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.sync.send_handover(to, group, term);
                }
            }
            ha::Output::HandoverDone {
                group,
                to,
                took,
                result,
            } => {
                log::info!(
                    "handover group={} to={} took_ms={:.3} result={result:?}",
                    self.group_name(group),
                    self.peer_name(to),
                    took.as_secs_f64() * 1e3
                );
                if let Some(cluster) = &mut self.cluster {
                    if cluster.handovers.len() == MAX_HANDOVERS {
                        cluster.handovers.pop_front();
                    }
                    cluster.handovers.push_back(HandoverEnd {
                        group,
                        to,
                        took,
                        result,
                    });
                }
            }
            ha::Output::Resync { group, .. } => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.sync.doubt(group);
                }
            }
            ha::Output::Gone => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.gone = true;
                }
            }
        }
    }

    fn change_role(&mut self, now: Time, group: GroupId, role: Role, term: u64) {
        if let Some(cluster) = &mut self.cluster {
            cluster
                .sync
                .set_sending(group, (role == Role::Primary).then_some(term));
        }
        if role == Role::Primary {
            self.table.renew(group, now.tick());
        } else {
            self.drop_waiting(group);
        }
        self.set_role(now, group, role);
    }

    /// Sessions of other units' groups do not expire here, since their packets are not seen here.
    fn renew_leases(&mut self, now: Time) {
        for group in self.groups() {
            if !self.is_primary(group) {
                self.table.renew(group, now.tick());
            }
        }
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + use<> {
        let count = self
            .cluster
            .as_ref()
            .map_or(0, |cluster| cluster.peers.len());
        (0..count).map(|peer| PeerId(peer as u8))
    }

    /// Asks on all ports who has the addresses of `group`.
    fn probe_group(&mut self, group: GroupId) {
        for index in 0..self.config.ports.len() {
            let port = PortId(index as u8);
            let link = self.links[index];
            let addresses: Vec<_> = self
                .addresses_on(port)
                .filter(|(_, g)| *g == group)
                .map(|(a, _)| a)
                .collect();
            for addr in addresses.into_iter().filter(|_| link.up) {
                self.push_output(Output::Frame {
                    port,
                    bytes: neighbor::probe(addr, link.mac),
                });
            }
        }
    }

    /// Tells the election what replication has reached; gives whether anything came of it.
    fn tell_ha_of_sync(&mut self, now: Time) -> bool {
        let Some(cluster) = &mut self.cluster else {
            return false;
        };
        let groups = || (0..self.config.groups.len()).map(|group| GroupId(group as u8));
        for peer in (0..cluster.peers.len()).map(|peer| PeerId(peer as u8)) {
            let mut ready = GroupSet::default();
            groups()
                .filter(|g| cluster.sync.is_ready(*g))
                .for_each(|g| ready.insert(g));
            let digest_equal = groups()
                .filter(|group| self.roles[usize::from(group.0)] == Role::Primary)
                .all(|group| cluster.sync.digest_equal(peer, group));
            let applied = cluster.sync.applied(peer);
            cluster.ha.handle_sync(
                now,
                peer,
                SyncState {
                    ready,
                    digest_equal,
                    applied,
                },
            );
        }
        match cluster.ha.poll_output() {
            Some(output) => {
                self.obey_ha(now, output);
                true
            }
            None => false,
        }
    }

    /// The name of a peer's node.
    pub fn peer_name(&self, peer: PeerId) -> &str {
        let peers = self.config.ha.as_ref().map_or(&[][..], |ha| &ha.peers);
        peers.get(peer.index()).map_or("?", |peer| &peer.name)
    }

    /// An address of a group was claimed by another machine: the election may be asking for that.
    pub(super) fn note_answer(&mut self, now: Time, port: PortId, addr: crate::flow::Addr) {
        let group = self
            .addresses_on(port)
            .find(|(own, _)| *own == addr)
            .map(|(_, group)| group);
        if let (Some(cluster), Some(group)) = (&mut self.cluster, group) {
            cluster.ha.handle_probe_answer(now, group);
            self.settle_cluster(now);
        }
    }

    /// Why packets of `group` are not handled here.
    pub(super) fn check_carries(&self, now: Time, group: GroupId) -> Result<(), DropReason> {
        if self.carries(now, group) {
            Ok(())
        } else {
            Err(DropReason::NotPrimary)
        }
    }
>>>>>>> w/p-nat
}
