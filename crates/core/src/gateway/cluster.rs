//! The unit among its peers: joins election (`ha`) and replication (`sync`) to the gateway.
//!
//! All changes in the cluster go through [`Gateway::in_cluster`]; readers use [`Gateway::cluster`].
//! Neither does anything on a standalone gateway.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::flow::{GroupId, LinkId, PeerId, PortId};
use crate::ha::{self, Ha, HandoverError, Hint, Maintenance};
use crate::policy::Ruleset;
use crate::store::{Journal, SessionStore};
use crate::sync::{self, Replicator};
use crate::time::Time;

use super::effects::Effects;
use super::guarantee::Waiting;
use super::paths::{self, Channel, Paths};
use super::roles::Groups;
use super::{Gateway, Role};

/// Election, replication, and the stream to each peer.
pub struct Cluster {
    pub(super) ha: Ha,
    pub(super) sync: Replicator,
    pub(super) paths: Paths,
    pub(super) waiting: Waiting,
    /// Ends of planned handovers that a caller may be waiting for.
    handovers: VecDeque<HandoverEnd>,
    gone: bool,
}

/// A change that the gateway must carry out.
pub(super) enum Step {
    /// Bytes of this stream no longer count.
    CloseStream(PeerId, LinkId),
    /// Replication reports an event.
    Told(sync::SyncEvent),
    /// The election has decided something; replication knows it already.
    Decided(ha::Output),
}

/// The end of a planned handover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverEnd {
    /// The group that was handed over, or stays.
    pub group: GroupId,
    /// The peer that was to take over.
    pub to: PeerId,
    /// The time from the request to the end.
    pub took: Duration,
    /// Why it failed, if so.
    pub result: Result<(), HandoverError>,
}

/// Ends of handovers that are remembered; older ones are forgotten.
const MAX_HANDOVERS: usize = 64;

impl Cluster {
    /// The cluster of a config with `[ha]`; `None` without.
    pub fn new(
        config: &Config,
        random: &mut super::random::Random,
        now: Time,
        ruleset: &Ruleset,
    ) -> Option<Cluster> {
        // Heartbeats and streams identify the process by the same number.
        let process = random.next();
        Some(Cluster {
            ha: Ha::new(config, process, now)?,
            sync: Replicator::new(config, process, ruleset)?,
            paths: Paths::new(config, config.ha.as_ref()?),
            waiting: Waiting::default(),
            handovers: VecDeque::new(),
            gone: false,
        })
    }

    /// The next thing to do for the gateway. News between election and replication are exchanged
    /// first: one announces a takeover and the other carries it out in the same call.
    pub(super) fn poll_step(&mut self, now: Time, store: &mut SessionStore) -> Option<Step> {
        if let Some((peer, link)) = self.paths.poll_closed() {
            return Some(Step::CloseStream(peer, link));
        }
        if let Some(event) = self.sync.poll_event() {
            self.tell_election(now, &event);
            if let sync::SyncEvent::PeerKnown { peer, .. } = event {
                self.paths.note_refused(peer, Channel::Stream, None);
            }
            return Some(Step::Told(event));
        }
        let output = self.ha.poll_output()?;
        self.tell_replication(now, &output, store.journal_mut());
        Some(Step::Decided(output))
    }

    /// Tells the election how far replication is.
    fn tell_election(&mut self, now: Time, event: &sync::SyncEvent) {
        match *event {
            sync::SyncEvent::Reached(peer, state) => self.ha.handle_sync(now, peer, state),
            sync::SyncEvent::Holds(group, held) => self.ha.handle_holding(group, held),
            sync::SyncEvent::HandoverReceived { peer, group, term } => {
                self.ha.handle_handover(now, group, peer, term);
            }
            sync::SyncEvent::DrainAsked(_) => self.ha.begin_maintenance(now),
            sync::SyncEvent::PeerKnown { .. }
            | sync::SyncEvent::Push(..)
            | sync::SyncEvent::PeerConfigDiffers(_)
            | sync::SyncEvent::PeerRefuses { .. }
            | sync::SyncEvent::PeerTableSmaller { .. }
            | sync::SyncEvent::PeerReady(..)
            | sync::SyncEvent::Relieved(..)
            | sync::SyncEvent::Ready(..)
            | sync::SyncEvent::Merged(..)
            | sync::SyncEvent::DigestDiffers { .. }
            | sync::SyncEvent::Multicast { .. } => {}
        }
    }

    /// Tells the election which packets went through this unit.
    pub(super) fn tell_traffic(&mut self, groups: &Groups) {
        for (group, traffic) in (0..).map(GroupId).zip(&groups.traffic) {
            self.ha.handle_traffic(group, traffic.carried());
        }
    }

    /// Panics if election and replication have a wrong picture of each other: for tests and
    /// simulations.
    pub(super) fn check_invariants(&self, journal: &Journal) {
        self.sync.check_invariants(journal);
        if !self.sync.is_told() || !self.ha.is_drained() {
            return;
        }
        for peer in self.paths.peers() {
            let reached = Some(self.sync.reached(peer));
            assert_eq!(self.ha.reached(peer), reached, "of peer {}", peer.0);
            let heard = self.ha.hearing(peer);
            assert_eq!(self.sync.heard(peer), heard, "of peer {}", peer.0);
        }
        for group in self.sync.groups() {
            let held = self.sync.held(group);
            assert!(self.ha.knows_held(group, held), "of group {}", group.0);
            let term = journal.term(group);
            assert_eq!(term, self.ha.term_as_primary(group), "of group {}", group.0);
            let holders = self.sync.holders(group);
            assert_eq!(holders, self.ha.holders(group), "of group {}", group.0);
        }
    }

    /// Tells replication what the election has decided.
    fn tell_replication(&mut self, now: Time, output: &ha::Output, journal: &mut Journal) {
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
            ha::Output::Holders { group, holders } => {
                self.sync.set_holders(*group, *holders, now);
            }
            ha::Output::Handover { group, to, term } => self.sync.send_handover(*to, *group, *term),
            ha::Output::HandoverDone {
                group,
                to,
                took,
                result,
            } => self.end_handover(HandoverEnd {
                group: *group,
                to: *to,
                took: *took,
                result: result.clone(),
            }),
            ha::Output::Resync { group, .. } => self.sync.doubt(*group),
            ha::Output::Heard { peer, heard } => self.sync.set_heard(*peer, *heard),
            ha::Output::Gone => self.gone = true,
            ha::Output::SendHeartbeat { .. }
            | ha::Output::SendOnPort { .. }
            | ha::Output::Stray { .. }
            | ha::Output::Probe { .. }
            | ha::Output::Announce { .. } => {}
        }
    }

    fn end_handover(&mut self, end: HandoverEnd) {
        if end.result.is_err() {
            self.sync.cancel_handover(end.to, end.group);
        }
        if self.handovers.len() == MAX_HANDOVERS {
            self.handovers.pop_front();
        }
        self.handovers.push_back(end);
    }

    /// Does the work due at `now`.
    fn handle_timeout(&mut self, now: Time, store: &mut SessionStore) {
        self.ha.handle_timeout(now);
        self.sync.handle_timeout(now, store);
        for peer in self.paths.peers() {
            self.choose_link(now, peer, store.journal_mut());
        }
    }

    fn poll_timeout(&self, now: Time, journal: &Journal) -> Option<Time> {
        let all = [
            self.ha.poll_timeout(now),
            self.sync.poll_timeout(journal),
            self.waiting.deadline(),
        ];
        all.into_iter().flatten().min()
    }

    /// The end of the next planned handover of `group`, if it has come.
    fn poll_handover(&mut self, group: GroupId) -> Option<HandoverEnd> {
        let at = self.handovers.iter().position(|end| end.group == group)?;
        self.handovers.remove(at)
    }

    /// Follows changed options of `[ha]`. `up` are the states of the ports, parallel to
    /// `config.ports`.
    pub(super) fn adopt(&mut self, now: Time, config: &Config, changed: &Effects, up: &[bool]) {
        let Some(ha) = &config.ha else { return };
        if changed.priorities {
            for (group, settings) in (0..).map(GroupId).zip(&config.groups) {
                let priority = settings.priority.unwrap_or(ha.priority);
                self.ha.set_priority(now, Some(group), priority);
            }
        }
        self.ha.set_copies(now, config.copies());
        if changed.override_ {
            self.ha.set_override(now, ha.override_, ha.override_wait);
        }
        if changed.witness {
            self.ha.set_witness(now, ha.witness.as_ref());
        }
        if changed.monitor || changed.targets {
            self.ha.set_monitor(now, &ha.monitor, up);
        }
    }

    /// Whether this unit still handles stragglers of a group that it handed over. Not where they
    /// can be passed on: the new primary must see what changes a session, and knows newer ones.
    pub(super) fn carries_stragglers(&self, now: Time, group: GroupId, passes_on: bool) -> bool {
        self.ha.is_draining(now, group) && !(passes_on && self.ha.owner(group).is_some())
    }

    /// Who is primary of which group, and which peers are alive.
    pub fn ha(&self) -> &Ha {
        &self.ha
    }

    /// Replication: the sessions that each peer holds of this unit's, and this unit of theirs.
    pub fn sync(&self) -> &Replicator {
        &self.sync
    }
}

impl Gateway {
    /// The cluster, if there is an `[ha]`.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// Must be called first in each turn, before any packet: a unit that was stopped for longer
    /// than the hold time gives up its roles.
    pub fn handle_wake(&mut self, now: Time) {
        let cluster = self.cluster.as_deref_mut();
        if cluster.is_some_and(|cluster| cluster.ha.handle_wake(now)) {
            self.settle_cluster(now);
        }
    }

    /// Handles a datagram of the heartbeat connection to `peer` over `link`.
    pub fn handle_heartbeat(&mut self, now: Time, peer: PeerId, link: LinkId, bytes: &[u8]) {
        self.in_cluster(now, |cluster, _| {
            let result = cluster.ha.handle_heartbeat(now, peer, link, bytes);
            let why = result.err().map(|error| {
                log::debug!("heartbeat ignored peer={} why={}", peer.0, error.name());
                error.to_string()
            });
            cluster.paths.note_refused(peer, Channel::Heartbeats, why);
        });
    }

    /// A connection of `peer` was refused before any data came; `why` is for people.
    pub fn handle_incompatible(&mut self, now: Time, peer: PeerId, channel: Channel, why: &str) {
        self.in_cluster(now, |cluster, _| {
            cluster
                .paths
                .note_refused(peer, channel, Some(why.to_owned()));
        });
    }

    /// Why heartbeats or the stream of `peer` were refused last; none once they are accepted.
    pub fn refused(&self, peer: PeerId) -> Option<&str> {
        self.cluster()?.paths.refused(peer)
    }

    /// The heartbeat connection to `peer` over `link` came up or went down.
    pub fn handle_heartbeat_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        self.in_cluster(now, |cluster, _| {
            cluster.ha.handle_link(now, peer, link, up)
        });
    }

    /// A hint that a peer has died.
    pub fn handle_hint(&mut self, now: Time, hint: Hint) {
        self.in_cluster(now, |cluster, _| cluster.ha.handle_hint(now, hint));
    }

    /// The stream to `peer` over `link` came up or went down.
    pub fn handle_sync_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        self.in_cluster(now, |cluster, store| {
            cluster.handle_stream(now, (peer, link), up, store.journal_mut());
        });
    }

    /// Handles bytes of the stream of `peer` over `link`. Returns how many were taken, and whether
    /// to call again soon; the rest must come again.
    ///
    /// # Errors
    /// The peer violated the protocol. Its stream must be closed.
    pub fn handle_sync_data(
        &mut self,
        now: Time,
        peer: PeerId,
        link: LinkId,
        bytes: &[u8],
    ) -> Result<sync::Received, sync::ProtocolError> {
        self.in_cluster(now, |cluster, store| {
            cluster.receive(now, (peer, link), bytes, store)
        })
        .unwrap_or_else(|| Ok(paths::ignored(bytes)))
    }

    /// The link that carries the stream to `peer`; `None` if there is no stream.
    pub fn sync_link(&self, peer: PeerId) -> Option<LinkId> {
        self.cluster()?.paths.link(peer)
    }

    /// Appends the bytes due to `peer` to `out`, to be sent over [`Gateway::sync_link`]. Returns
    /// whether to call again as soon as the stream takes more.
    pub fn poll_sync(&mut self, now: Time, peer: PeerId, out: &mut Vec<u8>) -> bool {
        let cluster = self.cluster.as_deref_mut();
        let Some(cluster) = cluster else {
            return false;
        };
        let more = cluster.poll_stream(now, peer, out, &mut self.sessions);
        let more = self.poll_multicast(now, peer, out) || more;
        // After all else.
        more | self.write_push(peer, !more, out)
    }

    /// The stream to `peer` takes no bytes now; [`Gateway::poll_sync`] is called again when it
    /// does.
    pub fn handle_sync_blocked(&mut self, peer: PeerId) {
        self.with_cluster(|cluster| cluster.sync.peer_blocked(peer));
    }

    /// Hands `group` over to a peer, to the best one if `to` is none; see
    /// [`Gateway::poll_handover`].
    ///
    /// # Errors
    /// Why it can't be handed over.
    pub fn request_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.in_cluster(now, |cluster, _| {
            cluster.ha.request_failover(now, group, to)
        })
        .unwrap_or(Err(HandoverError::Standalone))
    }

    /// As [`Gateway::request_failover`], to a peer that only has to be alive; see
    /// [`Ha::force_failover`].
    ///
    /// # Errors
    /// Why it can't be done.
    pub fn force_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.in_cluster(now, |cluster, _| cluster.ha.force_failover(now, group, to))
            .unwrap_or(Err(HandoverError::Standalone))
    }

    /// Whether a handover of `group` begins when a peer has got its sessions.
    pub(crate) fn is_inviting(&self, group: GroupId) -> bool {
        self.cluster().is_some_and(|it| it.ha.is_inviting(group))
    }

    /// The end of the next planned handover of `group`, if it has come.
    pub fn poll_handover(&mut self, group: GroupId) -> Option<HandoverEnd> {
        self.cluster.as_deref_mut()?.poll_handover(group)
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

    /// Makes a peer begin maintenance, as an operator there would.
    ///
    /// # Errors
    /// No stream leads to it.
    pub fn ask_to_drain(&mut self, now: Time, peer: PeerId) -> Result<(), HandoverError> {
        let asked = self.in_cluster(now, |cluster, _| cluster.sync.send_drain(peer));
        match asked.ok_or(HandoverError::Standalone)? {
            true => Ok(()),
            false => Err(HandoverError::NoLink(self.peer_name(peer).to_owned())),
        }
    }

    /// Before the start: the unit was in maintenance when it last stopped.
    pub fn begin_in_maintenance(&mut self, now: Time, maintenance: Option<Maintenance>) {
        if maintenance.is_some() {
            self.in_cluster(now, |cluster, _| {
                cluster.ha.set_maintenance(now, maintenance)
            });
        }
    }

    /// The maintenance of this unit, if it is in progress.
    pub fn maintenance(&self) -> Option<Maintenance> {
        self.cluster()?.ha.maintenance()
    }

    /// Hands over all groups and says goodbye; [`Gateway::is_gone`] tells when that is done.
    pub fn shut_down(&mut self, now: Time) {
        self.in_cluster(now, |cluster, _| cluster.ha.shut_down(now));
    }

    /// Whether the process may end.
    pub fn is_gone(&self) -> bool {
        self.cluster().is_none_or(|cluster| cluster.gone)
    }

    pub(super) fn cluster_timeout(&mut self, now: Time) {
        if self.cluster().is_none() {
            return;
        }
        self.renew_leases(now);
        self.keep_warm(now);
        self.release_overdue(now);
        self.in_cluster(now, |cluster, store| cluster.handle_timeout(now, store));
    }

    pub(super) fn poll_cluster_timeout(&self, now: Time) -> Option<Time> {
        let journal = self.sessions.journal();
        self.cluster()?.poll_timeout(now, journal)
    }

    pub(super) fn tell_ports(&mut self, now: Time) {
        let up = self.ports_up(now);
        self.in_cluster(now, |cluster, _| cluster.ha.handle_ports(now, &up));
    }

    /// By port, whether packets can pass it and reach something, as far as known here.
    pub(super) fn ports_up(&self, now: Time) -> Vec<bool> {
        let works = |port: PortId| self.links.works(port) && self.leads_on(now, port);
        self.links.ports().map(works).collect()
    }

    /// Whether this unit handles packets of `group`: as primary, or because it handed over and
    /// stragglers still come.
    pub(super) fn carries(&self, now: Time, group: GroupId) -> bool {
        let passes_on = self.rules.passes_on();
        let drains = |cluster: &Cluster| cluster.carries_stragglers(now, group, passes_on);
        self.is_primary(group) || self.cluster().is_some_and(drains)
    }
}
