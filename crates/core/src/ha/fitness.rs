//! Whether this unit is fit to take a group over from one that runs well (`override`).
//!
//! A port that is up may not carry traffic yet: a switch blocks one that has just come up for up to
//! 50 s (spanning tree, IEEE 802.1D). So a port counts only once something came in by it: an answer
//! of a peer, or ARP or Neighbor Discovery of any host.

use std::time::Duration;

use super::Ha;
use super::election::{Group, State};
use crate::flow::{GroupId, PeerId, PortId};
use crate::time::Time;

/// No switch blocks a port for longer; silence after that means a network without hosts.
const BLOCKED_AT_MOST: Duration = Duration::from_secs(60);

/// A loss this long after the previous one counts as the first again.
const LATELY: Duration = Duration::from_secs(600);
/// How long a unit that has recently lost a group twice must be fit; doubles with each further
/// loss.
const CALM: Duration = Duration::from_secs(10);
/// The longest such time.
const MOST_CALM: Duration = Duration::from_secs(300);

impl Group {
    /// This unit has handed the group over because another one has more ports up.
    pub(super) fn note_loss(&mut self, now: Time) {
        let (count, last) = self.losses;
        let is_late = last.is_none_or(|at| now.since(at) > LATELY);
        let count = if is_late { 1 } else { count.saturating_add(1) };
        self.losses = (count, Some(now));
    }

    /// How long this unit must be fit before it asks for the group, so that a flapping unit does
    /// not move the group to and fro.
    fn calm_wait(&self) -> Duration {
        match self.losses.0 {
            0 | 1 => Duration::ZERO,
            count => (CALM * (1 << (count - 2).min(8))).min(MOST_CALM),
        }
    }
}

impl Ha {
    /// A host or a peer was heard on `port`.
    pub(crate) fn handle_host(&mut self, port: PortId) {
        if let Some(own) = self.ports.get_mut(port.index()) {
            own.carried = true;
        }
    }

    /// Notes replication's report that this unit is ready, or not, for the groups of `peer`.
    pub(super) fn learn_ready(&mut self, now: Time, peer: PeerId) {
        let known = &self.peers[peer.index()];
        for (index, group) in self.groups.iter_mut().enumerate() {
            let ready = known.sync.ready.contains(GroupId(index as u8));
            if group.state == State::Primary || group.primary != Some(peer) || group.ready == ready
            {
                continue;
            }
            group.ready = ready;
            self.urgent = true;
            let what = if ready { "ready" } else { "not ready" };
            self.events
                .info(now, format!("{what} to take over {}", group.name), "");
        }
    }

    /// Whether this unit asks for a group that a unit of lower priority has.
    pub(super) fn asks_for(&self, now: Time, group: usize) -> bool {
        let state = &self.groups[group];
        let wait = self.override_wait.max(state.calm_wait());
        let waited = |since| now.since(since) >= wait;
        state.fit_since.is_some_and(waited) && !state.given_away
    }

    /// Whether this unit takes a group from a healthy unit of lower priority.
    pub(super) fn overrides(&self, group: usize) -> bool {
        self.override_ || self.groups[group].part_of.is_some()
    }

    /// Notes since when this unit has been fit for a group.
    pub(super) fn note_fitness(&mut self, now: Time, group: usize) {
        let state = &self.groups[group];
        let is_standby = state.state != State::Primary;
        let is_fit = self.overrides(group) && is_standby && state.ready && self.may_promote();
        // These come together by themselves, and need not be asked for.
        let is_former = self.former_slots.contains(GroupId(group as u8));
        let is_fit =
            is_fit && !is_former && self.maintenance.is_none() && self.monitored_ports_carry(now);
        let since = state.fit_since.unwrap_or(now);
        self.groups[group].fit_since = is_fit.then_some(since);
    }

    fn monitored_ports_carry(&self, now: Time) -> bool {
        let own = self
            .monitor
            .iter()
            .filter_map(|port| self.ports.get(port.index()));
        let mut up = own.filter(|own| own.up);
        up.all(|own| own.carried || now.since(own.up_since) >= BLOCKED_AT_MOST)
    }
}
