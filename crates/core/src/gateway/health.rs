//! The health of this unit, and of the others as far as it knows: the problems, and since when.
//!
//! The conditions are checked each [`INTERVAL`] and when a port changes, so the recorded beginning
//! of a problem is exact to that. Nothing here is on the path of a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::flow::{GroupId, LinkId, PeerId, PortId};
use crate::ha::WitnessState;
use crate::link_monitor::TargetState;
use crate::time::Time;

use super::Gateway;

/// How often the conditions are checked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a start may take before what is wrong is told.
const SETTLING: Duration = Duration::from_secs(3);

/// The share of the table from which on it counts as nearly full, in percent.
const NEARLY_FULL: u64 = 90;

/// How urgent a trouble is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Sessions or redundancy are at risk.
    Warning,
    /// Packets are not forwarded.
    Critical,
}

/// A problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// No unit is known to be primary of the group.
    NoPrimary(GroupId),
    /// The primary answers on the ports, but not on any link.
    Degraded(GroupId),
    /// The interface of the port is down.
    PortDown(PortId),
    /// A target behind the port does not answer; its place among the monitors.
    TargetDead(usize),
    /// The kernel has a virtual address of the port, so that packets to it do not reach the
    /// gateway.
    PortFault(PortId),
    /// Another machine claims a virtual address of the port.
    AddressConflict(PortId),
    /// No slot is free: a new session takes the place of an unanswered one, or is refused.
    TableFull,
    /// Nine in ten slots are taken.
    TableNearlyFull,
    /// The peer is not connected.
    PeerGone(PeerId),
    /// This unit is in maintenance.
    Maintenance,
    /// The peer is in maintenance, so it does not take over.
    PeerMaintenance(PeerId),
    /// The peer and this unit do not hold the same sessions.
    NotInSync(PeerId),
    /// The peer has fewer monitored ports up than this unit monitors.
    PeerPortsDown(PeerId),
    /// The peer has other virtual addresses, groups, policies, pools or forwards.
    ConfigDiffers(PeerId),
    /// The witness does not answer.
    WitnessSilent,
    /// No heartbeat comes over the link.
    LinkDown(PeerId, LinkId),
}

/// A trouble and the time at which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The problem, and the object that has it.
    pub trouble: Trouble,
    /// How urgent it is.
    pub severity: Severity,
    /// Since when.
    pub since: Time,
}

/// The current problems. Empty means that all is well.
#[derive(Clone, Debug)]
pub struct Health {
    /// The most urgent ones first, and among these the oldest ones.
    standing: Vec<Standing>,
    /// Since when there is no problem.
    well_since: Time,
    next: Time,
    /// How each was described when it began.
    described: BTreeMap<Trouble, String>,
    /// All was well once, or the start is over: troubles are told.
    is_settled: bool,
}

impl Health {
    /// All is well until something else is known.
    pub(super) fn new(now: Time) -> Health {
        Health {
            standing: Vec::new(),
            well_since: now,
            next: now,
            described: BTreeMap::new(),
            is_settled: false,
        }
    }

    /// The problems, most urgent first.
    pub fn standing(&self) -> &[Standing] {
        &self.standing
    }

    /// Since when there is no problem; meaningless while there is one.
    pub fn well_since(&self) -> Time {
        self.well_since
    }

    /// Records the current problems. Those that already existed keep their time.
    fn update(&mut self, now: Time, found: Vec<(Trouble, Severity)>) {
        let before = std::mem::take(&mut self.standing);
        let known = before.iter().map(|it| (it.trouble, it.since));
        let known: BTreeMap<Trouble, Time> = known.collect();
        let since = |trouble| known.get(&trouble).copied().unwrap_or(now);
        let standing = found.into_iter().map(|(trouble, severity)| Standing {
            trouble,
            severity,
            since: since(trouble),
        });
        self.standing = standing.collect();
        self.standing
            .sort_by_key(|standing| (std::cmp::Reverse(standing.severity), standing.since));
        if !before.is_empty() && self.standing.is_empty() {
            self.well_since = now;
        }
    }
}

impl Gateway {
    /// The current problems, and since when.
    pub fn health(&mut self, now: Time) -> &Health {
        self.check_health(now);
        &self.health
    }

    /// The problems found by the last check, half a second ago at most while the gateway has
    /// timers.
    pub fn last_health(&self) -> &Health {
        &self.health
    }

    /// Checks the conditions if it is time to.
    pub(super) fn check_health_if_due(&mut self, now: Time) {
        if now >= self.health.next {
            self.check_health(now);
        }
    }

    pub(super) fn check_health(&mut self, now: Time) {
        self.review_conflicts(now);
        let mut found = Vec::new();
        self.check_ports(&mut found);
        self.check_table(&mut found);
        self.check_cluster(now, &mut found);
        self.health.update(now, found);
        self.health.next = now + INTERVAL;
        self.log_troubles(now);
        self.check_drops(now);
    }

    /// Logs the problems that have begun or ended since the last time.
    fn log_troubles(&mut self, now: Time) {
        let standing = self.health.standing.clone();
        // Until the ports are known and the others were heard, much seems wrong. It is told if it
        // lasts.
        self.health.is_settled |= standing.is_empty() || self.uptime(now) >= SETTLING;
        if !self.health.is_settled {
            return;
        }
        let is_standing: BTreeSet<Trouble> = standing.iter().map(|it| it.trouble).collect();
        let known = std::mem::take(&mut self.health.described);
        let (mut known, ended): (BTreeMap<_, _>, BTreeMap<_, _>) = known
            .into_iter()
            .partition(|(trouble, _)| is_standing.contains(trouble));
        for (trouble, what) in ended {
            self.log_trouble(now, trouble, None, what);
        }
        for Standing {
            trouble, severity, ..
        } in standing
        {
            if known.contains_key(&trouble) {
                continue;
            }
            let what = self.describe_trouble(trouble, now);
            known.insert(trouble, what.clone());
            self.log_trouble(now, trouble, Some(severity), what);
        }
        self.health.described = known;
    }

    fn check_ports(&self, found: &mut Vec<(Trouble, Severity)>) {
        let severity = match self.forwards() {
            true => Severity::Critical,
            false => Severity::Warning,
        };
        for port in self.links.ports() {
            if !self.links.is_up(port) {
                found.push((Trouble::PortDown(port), severity));
            } else if self.links.fault(port).is_some() {
                found.push((Trouble::PortFault(port), severity));
            }
        }
        for (index, target) in self.targets().enumerate() {
            if target.state == TargetState::Dead {
                found.push((Trouble::TargetDead(index), Severity::Warning));
            }
        }
        let mut last = None;
        for port in self.conflicts().map(|it| it.port) {
            if last.replace(port) != Some(port) {
                found.push((Trouble::AddressConflict(port), Severity::Warning));
            }
        }
    }

    fn check_table(&self, found: &mut Vec<(Trouble, Severity)>) {
        let (used, room) = (
            u64::from(self.sessions.table().len()),
            u64::from(self.sessions.table().capacity()),
        );
        if self.sessions.table().is_full() {
            found.push((Trouble::TableFull, Severity::Critical));
        } else if used * 100 >= room * NEARLY_FULL {
            found.push((Trouble::TableNearlyFull, Severity::Warning));
        }
    }

    fn check_cluster(&self, now: Time, found: &mut Vec<(Trouble, Severity)>) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        if cluster.ha.maintenance().is_some() {
            found.push((Trouble::Maintenance, Severity::Warning));
        }
        let witness = cluster.ha.witness_view();
        if witness.is_some_and(|view| view.state == WitnessState::Silent) {
            found.push((Trouble::WitnessSilent, Severity::Warning));
        }
        for group in self.groups() {
            let Some(view) = cluster.ha.group(now, group) else {
                continue;
            };
            if view.degraded {
                found.push((Trouble::Degraded(group), Severity::Warning));
            } else if view.primary.is_none() {
                found.push((Trouble::NoPrimary(group), Severity::Critical));
            }
        }
        for id in self.peers() {
            let Some(peer) = cluster.ha.peer(now, id) else {
                continue;
            };
            if !peer.alive {
                // All other problems of the peer follow from it.
                found.push((Trouble::PeerGone(id), Severity::Warning));
                continue;
            }
            if peer.maintenance {
                found.push((Trouble::PeerMaintenance(id), Severity::Warning));
            }
            let state = self.peer_state(now, id);
            if !state.in_sync || state.digest_equal == Some(false) {
                found.push((Trouble::NotInSync(id), Severity::Warning));
            }
            if cluster.ha.has_ports_down(&peer) {
                found.push((Trouble::PeerPortsDown(id), Severity::Warning));
            }
            let about = cluster.sync.about(id);
            if about.is_some_and(|it| !it.is_equal()) {
                found.push((Trouble::ConfigDiffers(id), Severity::Warning));
            }
            for (link, state) in peer.links.iter().enumerate() {
                if !state.connected || !state.alive {
                    let trouble = Trouble::LinkDown(id, LinkId(link as u8));
                    found.push((trouble, Severity::Warning));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_trouble_keeps_the_time_at_which_it_began() {
        let mut health = Health::new(at(0));
        let gone = (Trouble::PeerGone(PeerId(0)), Severity::Warning);
        let down = (Trouble::PortDown(PortId(1)), Severity::Critical);
        health.update(at(1), vec![gone]);
        health.update(at(2), vec![gone, down]);
        let standing: Vec<(Trouble, Time)> = health
            .standing()
            .iter()
            .map(|standing| (standing.trouble, standing.since))
            .collect();
        assert_eq!(standing, [(down.0, at(2)), (gone.0, at(1))]);
        health.update(at(3), vec![]);
        assert_eq!((health.standing(), health.well_since()), (&[][..], at(3)));
        health.update(at(4), vec![]);
        assert_eq!(health.well_since(), at(3));
        health.update(at(5), vec![gone]);
        assert_eq!(health.standing()[0].since, at(5), "another one");
    }
}
