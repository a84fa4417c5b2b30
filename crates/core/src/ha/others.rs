//! Compares this unit with the others, and uses their reports.

use super::Ha;
use super::election::State;
use super::heartbeat;
use super::order::{self, Candidate};
use super::peer::ElectionPeer;
use crate::flow::PeerId;
use crate::time::Time;

impl Ha {
    pub(super) fn own_candidate(&self, now: Time, group: usize) -> Candidate<'_> {
        let state = &self.groups[group];
        Candidate {
            ready: state.ready,
            maintenance: self.maintenance.is_some(),
            held: state.held,
            ports_up: self.ports_up,
            override_: self.override_,
            uptime: now.since(self.started),
            priority: state.priority,
            name: &self.name,
        }
    }

    pub(super) fn candidate(&self, now: Time, group: usize, peer: PeerId) -> Candidate<'_> {
        let peer = &self.peers[peer.index()];
        let state = &peer.groups[group];
        Candidate {
            ready: state.ready,
            maintenance: peer.maintenance,
            held: state.held,
            ports_up: peer.ports_up,
            override_: state.override_,
            uptime: peer.uptime(now),
            priority: state.priority,
            name: &peer.name,
        }
    }

    /// Whether this unit is the best of those that are alive and have `group`.
    pub(super) fn is_best(&self, now: Time, group: usize) -> bool {
        let mut candidates = vec![self.own_candidate(now, group)];
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.alive && peer.groups[group].known {
                candidates.push(self.candidate(now, group, PeerId(index as u8)));
            }
        }
        order::best(&candidates) == Some(0)
    }

    /// A peer that is alive and hears a primary of `group` which this unit does not hear.
    pub(super) fn witness(&self, group: usize) -> Option<PeerId> {
        let own = heartbeat::hash(&self.name);
        let sees_one = |peer: &ElectionPeer| {
            let seen = peer.groups[group].sees;
            let by_us = self.peers.iter().find(|other| other.hash == seen);
            peer.alive
                && ![0, own, peer.hash].contains(&seen)
                && by_us.is_some_and(|other| !other.alive && !other.goodbye)
        };
        let index = self.peers.iter().position(sees_one)?;
        Some(PeerId(index as u8))
    }

    /// A unit heard by another one is alive, and only the links to this unit are dead.
    pub(super) fn trust_witness(&mut self, now: Time, group: usize, witness: PeerId) {
        let name = &self.peers[witness.index()].name;
        let state = &mut self.groups[group];
        state.state = State::Standby;
        state.vacancy = None;
        if !std::mem::replace(&mut state.degraded, true) {
            let what = format!(
                "{}: {name} hears the primary, this unit does not",
                state.name
            );
            self.events.warn(now, what, "the links to it are dead");
        }
    }
}
