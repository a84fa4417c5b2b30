//! Whether this unit is fit to take a group over from one that runs well (`override`).
//!
//! A port that is up need not carry: a switch keeps one that has just come up blocked for up to 50 s (spanning
//! tree, IEEE 802.1D). So a port counts only when something came in by it: an answer of a peer, or ARP or
//! Neighbor Discovery of any host.

use std::time::Duration;

use super::Ha;
use super::election::State;
use crate::flow::PortId;
use crate::time::Time;

/// No switch blocks a port for longer; what is silent then is a network without hosts.
const BLOCKED_AT_MOST: Duration = Duration::from_secs(60);

impl Ha {
    /// A host or a peer was heard on `port`.
    pub fn handle_host(&mut self, port: PortId) {
        if let Some(own) = self.ports.get_mut(port.index()) {
            own.carried = true;
        }
    }

    /// Whether this unit asks for a group that one of lower priority has.
    pub(super) fn asks_for(&self, now: Time, group: usize) -> bool {
        let state = &self.groups[group];
        let waited = |since| now.since(since) >= self.override_wait;
        state.fit_since.is_some_and(waited) && !state.given_away
    }

    /// Takes note of since when this unit has been fit for a group.
    pub(super) fn note_fitness(&mut self, now: Time, group: usize) {
        let state = &self.groups[group];
        let is_standby = state.state != State::Primary;
        let is_fit = self.override_ && is_standby && state.ready && self.may_promote();
        let is_fit = is_fit && self.maintenance.is_none() && self.monitored_ports_carry(now);
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
