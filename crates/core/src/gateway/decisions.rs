//! Carries out on the gateway what election and replication decide.
//!
//! The [`Cluster`] passes on what concerns the other of the two; the rest comes here, one [`Step`]
//! at a time.

use std::time::Duration;

use crate::event::Output;
use crate::flow::{Addr, GroupId, PeerId, PortId};
use crate::ha;
use crate::in_quotes::InQuotes;
use crate::store::SessionStore;
use crate::sync;
use crate::time::Time;

use super::Gateway;
use super::cluster::{Cluster, Step};
use super::revalidate::Scope;

impl Gateway {
    /// Calls `work` on the cluster, and carries out the consequences; none without an `[ha]`.
    ///
    /// All changes in the cluster come this way, so no other code has to check whether there is
    /// one.
    pub(super) fn in_cluster<R>(
        &mut self,
        now: Time,
        act: impl FnOnce(&mut Cluster, &mut SessionStore) -> R,
    ) -> Option<R> {
        let cluster = self.cluster.as_deref_mut()?;
        cluster.tell_traffic(&self.groups);
        let result = act(cluster, &mut self.sessions);
        self.settle_cluster(now);
        Some(result)
    }

    /// Passes news to the cluster that has no immediate consequences.
    pub(super) fn with_cluster(&mut self, act: impl FnOnce(&mut Cluster)) {
        self.cluster.as_deref_mut().map(act);
    }

    /// Carries out the decisions of election and replication, until neither has more.
    pub(super) fn settle_cluster(&mut self, now: Time) {
        while let Some(cluster) = self.cluster.as_deref_mut()
            && let Some(step) = cluster.poll_step(now, &mut self.sessions)
        {
            match step {
                Step::CloseStream(peer, link) => {
                    self.push_urgent(Output::CloseStream { peer, link });
                }
                Step::Told(sync::SyncEvent::Multicast {
                    group,
                    port,
                    record,
                }) => self.handle_multicast_record(now, group, port, &record),
                Step::Told(sync::SyncEvent::Push(peer, message)) => {
                    self.push.handle_message(now, peer, message);
                }
                Step::Told(event) => {
                    self.greet_push(now, &event);
                    self.handle_sync_event(now, event);
                }
                Step::Decided(output) => self.handle_decision(now, output),
            }
        }
        self.release_acknowledged(now);
    }

    fn handle_decision(&mut self, now: Time, output: ha::Output) {
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
                self.log_role(now, group, (role, term), &why);
                self.change_role(now, group, role);
                self.check_health(now);
            }
            ha::Output::SendHeartbeat { peer, link, bytes } => {
                self.push_urgent(Output::Heartbeat { peer, link, bytes });
            }
            ha::Output::SendOnPort { port, to, bytes } => self.send_on_port(port, to, &bytes),
            ha::Output::Stray { port, host } => self.tell_stray(now, port, host),
            ha::Output::Probe { group } => self.probe_group(group),
            ha::Output::Announce { group } => self.announce_group(now, group),
            ha::Output::Reassert { group, term } => log::info!(
                "role group={} role=primary term={term}",
                self.group_name(group)
            ),
            ha::Output::HandoverDone {
                group,
                to,
                took,
                result,
            } => {
                self.log_handover(group, to, took, &result);
                let (what, why) = match &result {
                    Ok(()) => ("handed over", String::new()),
                    Err(why) => ("not handed over", why.to_string()),
                };
                let (name, to) = (self.group_name(group), self.peer_name(to));
                let what = format!("{name} {what} to {to}");
                self.log_event(now, "handover", what, &why, Some(group));
            }
            // The cluster itself has carried them out.
            ha::Output::Handover { .. }
            | ha::Output::Holders { .. }
            | ha::Output::Resync { .. }
            | ha::Output::Heard { .. }
            | ha::Output::Gone => {}
        }
    }

    /// Logs an event of replication.
    fn handle_sync_event(&mut self, now: Time, event: sync::SyncEvent) {
        let name = |peer: PeerId| self.peer_name(peer).to_owned();
        match event {
            sync::SyncEvent::PeerKnown { peer, resumed } => {
                let (link, name) = (self.sync_link(peer).map_or(0, |link| link.0), name(peer));
                log::info!("replication started peer={name} link={link} resumed={resumed}");
                self.tell_multicast_again(peer);
                self.compare_cuts(now);
            }
            sync::SyncEvent::PeerConfigDiffers(peer) => self.handle_other_config(peer),
            sync::SyncEvent::PeerRefuses {
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
            sync::SyncEvent::PeerTableSmaller { peer, max_sessions } => log::warn!(
                "peer has a smaller table peer={} max_sessions={max_sessions} ours={} effect=\"what it can't hold is \
                 not guaranteed\" remedy=\"give all units the same max-sessions\"",
                name(peer),
                self.rules.config().node.max_sessions
            ),
            sync::SyncEvent::PeerReady(peer, group) => log::info!(
                "peer ready peer={} group={}",
                name(peer),
                self.group_name(group)
            ),
            sync::SyncEvent::Merged(peer, group) => {
                log::info!(
                    "sessions merged peer={} group={}",
                    name(peer),
                    self.group_name(group)
                );
                let rules = Scope {
                    rules: true,
                    ..Scope::default()
                };
                self.revalidation.restart(rules);
            }
            sync::SyncEvent::Ready(peer, group) => {
                log::info!(
                    "group ready group={} primary={}",
                    self.group_name(group),
                    name(peer)
                );
            }
            sync::SyncEvent::Relieved(peer, group) => self.log_relief(peer, group),
            sync::SyncEvent::DigestDiffers {
                peer,
                group,
                buckets,
            } => log::warn!(
                "digest differs peer={} group={} buckets={buckets} effect=\"they are sent again\"",
                name(peer),
                self.group_name(group)
            ),
            sync::SyncEvent::DrainAsked(peer) => log::warn!(
                "maintenance peer={} why=\"an operator asked for it on that unit\"",
                name(peer)
            ),
            // The election knows it already.
            sync::SyncEvent::HandoverReceived { .. }
            | sync::SyncEvent::Multicast { .. }
            | sync::SyncEvent::Push(..)
            | sync::SyncEvent::Reached(..)
            | sync::SyncEvent::Holds(..) => {}
        }
    }

    fn log_relief(&self, primary: PeerId, group: GroupId) {
        log::info!(
            "copy dropped group={} primary={} why=\"enough other units hold it\"",
            self.group_name(group),
            self.peer_name(primary)
        );
    }

    /// The settings of a peer differ from those of this unit.
    fn handle_other_config(&mut self, peer: PeerId) {
        log::warn!(
            "peer config differs peer={} what=\"{}\" effect=\"{}\" remedy=\"make them the same on both units\"",
            self.peer_name(peer),
            self.differing_settings(peer),
            self.effect_of_other_config(peer)
        );
        self.revalidation.schedule_rules();
    }

    /// What it means that the settings of a peer differ from those of this unit.
    pub(super) fn effect_of_other_config(&self, peer: PeerId) -> String {
        let sync = self.cluster().map(Cluster::sync);
        let agrees = |group: &GroupId| sync.is_none_or(|sync| sync.agrees(peer, *group));
        // A slot follows its group.
        let whole = |group: &GroupId| !self.group_name(*group).contains('/');
        let (agreed, others): (Vec<GroupId>, Vec<GroupId>) =
            self.groups().filter(whole).partition(agrees);
        if !others.is_empty() {
            let names: Vec<&str> = others.iter().map(|it| self.group_name(*it)).collect();
            return match agreed.is_empty() {
                true => "neither counts as ready to take over from the other".to_owned(),
                false => format!(
                    "neither counts as ready to take over {} from the other; the other groups stay in \
                     sync",
                    names.join(", ")
                ),
            };
        }
        let about = sync.and_then(|sync| sync.about(peer));
        let is_of =
            |kind| about.is_some_and(|it| it.differing.iter().any(|it| it.starts_with(kind)));
        let effect = match about.is_some_and(|about| about.rules_equal) {
            false => "groups that only one unit has stay there",
            true if is_of("unit ") => {
                "a unit that only one of them knows may become primary beside the other"
            }
            true => "slots that both units or none of them should have stay where they are",
        };
        effect.to_owned()
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

    /// Another machine claimed an address of a group: the election may be waiting for that.
    pub(super) fn note_answer(&mut self, now: Time, port: PortId, addr: Addr) {
        let group = self
            .addresses_on(port)
            .find(|(own, _)| *own == addr)
            .map(|(_, group)| group);
        self.in_cluster(now, |cluster, _| {
            cluster.ha.handle_host(port);
            if let Some(group) = group {
                cluster.ha.handle_probe_answer(now, group);
            }
        });
    }
}
