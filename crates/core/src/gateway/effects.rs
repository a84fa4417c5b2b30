//! Carries out decisions of election and replication on the gateway, and reports back to them.

use std::time::Duration;

use crate::event::Output;
use crate::flow::{Addr, GroupId, PeerId, PortId};
use crate::ha::{self, GroupSet, SyncState};
use crate::in_quotes::InQuotes;
use crate::packet::neighbor;
use crate::sync;
use crate::time::Time;

use super::cluster::{HandoverEnd, MAX_HANDOVERS};
use super::revalidate::Scope;
use super::{Gateway, Role};

impl Gateway {
    /// Carries out what election and replication have decided, until neither has more to say.
    pub(super) fn settle_cluster(&mut self, now: Time) {
        while let Some(cluster) = &mut self.cluster {
            if let Some(event) = cluster.sync.poll_event() {
                self.heed_sync(now, event);
            } else if let Some(output) = cluster.ha.poll_output() {
                self.obey_ha(now, output);
            } else if !self.tell_ha_of_sync(now) {
                break;
            }
        }
        self.release_acknowledged(now);
    }

    fn heed_sync(&mut self, now: Time, event: sync::Event) {
        let name = |peer: PeerId| self.peer_name(peer).to_owned();
        match event {
            sync::Event::PeerKnown { peer, resumed } => {
                let link = self.sync_link(peer).map_or(0, |link| link.0);
                log::info!(
                    "replication started peer={} link={link} resumed={resumed}",
                    name(peer)
                );
            }
            sync::Event::PeerConfigDiffers(peer) => {
                let agrees = self.cluster().is_none_or(|it| it.sync().agrees(peer));
                let effect = match agrees {
                    true => "groups that only one unit has stay there",
                    false => "neither counts as ready to take over from the other",
                };
                log::warn!(
                    "peer config differs peer={} what=\"{}\" effect=\"{effect}\" remedy=\"make them the same on both units\"",
                    name(peer),
                    self.differing_settings(peer)
                );
                self.revalidation.owe_rules();
            }
            sync::Event::PeerRefuses {
                peer,
                group,
                reason,
            } => log::warn!(
                "peer refuses sessions peer={} group={} why=\"{}\" effect=\"they are not guaranteed, and lost if \
                 this unit dies\"",
                name(peer),
                self.group_name(group),
                reason.text()
            ),
            sync::Event::PeerTableSmaller { peer, max_sessions } => log::warn!(
                "peer has a smaller table peer={} max_sessions={max_sessions} ours={} effect=\"what it can't hold is \
                 not guaranteed\" remedy=\"give all units the same max-sessions\"",
                name(peer),
                self.config.node.max_sessions
            ),
            sync::Event::PeerReady(peer, group) => {
                log::info!(
                    "peer ready peer={} group={}",
                    name(peer),
                    self.group_name(group)
                );
            }
            sync::Event::Ready(peer, group) => {
                log::info!(
                    "group ready group={} primary={}",
                    self.group_name(group),
                    name(peer)
                );
            }
            sync::Event::DigestDiffers {
                peer,
                group,
                buckets,
            } => log::warn!(
                "digest differs peer={} group={} buckets={buckets} effect=\"they are sent again\"",
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
                group,
                role,
                term,
                why,
            } => {
                log::info!(
                    "role group={} role={} term={term} why={why}",
                    self.group_name(group),
                    role.name(),
                    why = InQuotes(&why)
                );
                self.change_role(now, group, role, term);
            }
            ha::Output::SendHeartbeat { peer, link, bytes } => {
                self.push_urgent(Output::Heartbeat { peer, link, bytes });
            }
            ha::Output::SendOnPort { port, to, bytes } => self.send_on_port(port, to, &bytes),
            ha::Output::Stray { port, host } => self.tell_stray(now, port, host),
            ha::Output::Probe { group } => self.probe_group(group),
            ha::Output::Announce { group } => self.announce_group(now, group),
            ha::Output::Reassert { group, term } => {
                log::info!(
                    "role group={} role=primary term={term}",
                    self.group_name(group)
                );
                if let Some(cluster) = &mut self.cluster {
                    cluster
                        .sync
                        .set_sending(group, Some(term), self.sessions.journal_mut());
                }
            }
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
                self.log_handover(group, to, took, &result);
                self.note_handover(HandoverEnd {
                    group,
                    to,
                    took,
                    result,
                });
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

    fn note_handover(&mut self, end: HandoverEnd) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        if end.result.is_err() {
            cluster.sync.cancel_handover(end.to, end.group);
        }
        if cluster.handovers.len() == MAX_HANDOVERS {
            cluster.handovers.pop_front();
        }
        cluster.handovers.push_back(end);
    }

    fn log_handover(
        &self,
        group: GroupId,
        to: PeerId,
        took: Duration,
        result: &Result<(), ha::HandoverError>,
    ) {
        let (group, to, took) = (
            self.group_name(group),
            self.peer_name(to),
            took.as_secs_f64() * 1e3,
        );
        match result {
            Ok(()) => log::info!("handover done group={group} to={to} took_ms={took:.3}"),
            Err(why) => {
                log::warn!(
                    "handover failed group={group} to={to} took_ms={took:.3} why={}",
                    InQuotes(&why)
                )
            }
        }
    }

    fn change_role(&mut self, now: Time, group: GroupId, role: Role, term: u64) {
        if let Some(cluster) = &mut self.cluster {
            cluster.sync.set_sending(
                group,
                (role == Role::Primary).then_some(term),
                self.sessions.journal_mut(),
            );
        }
        if role == Role::Primary {
            self.sessions.renew(group, now.tick());
        } else {
            self.drop_waiting(group);
            self.revalidation.restart(Scope {
                stepped_down: true,
                ..Scope::default()
            });
        }
        self.set_role(now, group, role);
        if role == Role::Primary {
            self.announce_to_neighbors(now, group);
            if self
                .cluster
                .as_ref()
                .is_some_and(|it| it.sync.rules_differ())
            {
                self.revalidation.owe_rules();
            }
            self.revalidation.catch_up();
        }
    }

    /// Sessions of other units' groups do not expire here, since their packets are not seen here.
    pub(super) fn renew_leases(&mut self, now: Time) {
        for group in self.groups() {
            if !self.is_primary(group) {
                self.sessions.renew(group, now.tick());
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
            let port = PortId::from_index(index);
            let link = self.ports[index].link;
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
        let groups = self.groups();
        let Some(cluster) = &mut self.cluster else {
            return false;
        };
        for group in groups.clone() {
            let carried = self.traffic[usize::from(group.0)].carried();
            let held = cluster.sync.held(group);
            cluster.ha.handle_evidence(group, held, carried);
        }
        for peer in (0..cluster.peers.len()).map(|peer| PeerId(peer as u8)) {
            let mut ready = GroupSet::default();
            groups
                .clone()
                .filter(|g| cluster.sync.is_ready(*g))
                .for_each(|g| ready.insert(g));
            let mut equal = GroupSet::default();
            groups
                .clone()
                .filter(|group| self.roles[usize::from(group.0)] == Role::Primary)
                .filter(|group| cluster.sync.digest_equal(peer, *group))
                .for_each(|group| equal.insert(group));
            if !cluster.sync.agrees(peer) {
                (ready, equal) = (GroupSet::default(), GroupSet::default());
            }
            let applied = cluster.sync.applied(peer);
            cluster.sync.set_heard(peer, cluster.ha.is_linked(peer));
            cluster.ha.handle_sync(
                now,
                peer,
                SyncState {
                    ready,
                    equal,
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

    /// What of the settings of `peer` differs from this unit's, in words.
    pub fn differing_settings(&self, peer: PeerId) -> String {
        let about = self.cluster().and_then(|it| it.sync().about(peer));
        match about.map(|about| about.differing) {
            None => "unknown".to_owned(),
            Some([]) => "the order of the policies, or one of many settings".to_owned(),
            Some(names) => names.join(", "),
        }
    }

    /// The name of a peer's node.
    pub fn peer_name(&self, peer: PeerId) -> &str {
        let peers = self.config.ha.as_ref().map_or(&[][..], |ha| &ha.peers);
        peers.get(peer.index()).map_or("?", |peer| &peer.name)
    }

    /// An address of a group was claimed by another machine: the election may be asking for that.
    pub(super) fn note_answer(&mut self, now: Time, port: PortId, addr: Addr) {
        let group = self
            .addresses_on(port)
            .find(|(own, _)| *own == addr)
            .map(|(_, group)| group);
        if let Some(cluster) = &mut self.cluster {
            cluster.ha.handle_host(port);
        }
        if let (Some(cluster), Some(group)) = (&mut self.cluster, group) {
            cluster.ha.handle_probe_answer(now, group);
            self.settle_cluster(now);
        }
    }
}
