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
            override_: self.overrides(group),
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

    /// The units that are in the config.
    pub(super) fn known_peers(&self) -> impl Iterator<Item = &ElectionPeer> {
        self.peers.iter().filter(|peer| peer.is_somebody())
    }

    /// Their places.
    pub(super) fn known_places(&self) -> impl Iterator<Item = PeerId> {
        let places = (0..).map(PeerId).zip(&self.peers);
        places
            .filter(|(_, peer)| peer.is_somebody())
            .map(|(place, _)| place)
    }

    /// A peer that is alive and hears a primary of `group` which this unit does not hear: one that
    /// the links to this unit no longer reach, or one that is not in its config (yet).
    pub(super) fn hearsay(&self, group: usize) -> Option<(PeerId, Unheard)> {
        let own = heartbeat::hash(&self.name);
        let unheard = |peer: &ElectionPeer| {
            let seen = peer.groups[group].sees;
            if !peer.alive || [0, own, peer.hash].contains(&seen) {
                return None;
            }
            match self.known_peers().find(|other| other.hash == seen) {
                None => Some(Unheard::NotAPeer),
                Some(other) if other.alive || other.goodbye => None,
                Some(_) => self.groups[group].degraded.then_some(Unheard::NoLink),
            }
        };
        let mut peers = (0..).map(PeerId).zip(&self.peers);
        peers.find_map(|(id, peer)| Some((id, unheard(peer)?)))
    }

    /// Who is heard by somebody lives, and only this unit does not hear it.
    pub(super) fn trust_hearsay(
        &mut self,
        now: Time,
        group: usize,
        (teller, unheard): (PeerId, Unheard),
    ) {
        self.drop_lease(group, false);
        let name = &self.peers[teller.index()].name;
        let state = &mut self.groups[group];
        state.state = State::Standby;
        state.vacancy = None;
        if !std::mem::replace(&mut state.degraded, true) {
            let what = format!(
                "{}: {name} hears the primary, this unit does not",
                state.name
            );
            let why = match unheard {
                Unheard::NoLink => "the links to it are dead",
                Unheard::NotAPeer => "this unit has no [[ha.peer]] for it",
            };
            self.events.warn(now, what, why);
        }
    }

    /// Gives the place `id` to a peer called `name` that nothing is known of, or empties it. Places
    /// are given in order.
    pub(crate) fn reset_peer(&mut self, now: Time, id: PeerId, name: Option<&str>) {
        let counts = (usize::from(self.links), self.ports.len(), self.groups.len());
        let fresh = ElectionPeer::new(name.unwrap_or_default(), counts);
        let former = match self.peers.get_mut(id.index()) {
            Some(place) => std::mem::replace(place, fresh).name,
            None => {
                self.peers.push(fresh);
                String::new()
            }
        };
        if !former.is_empty() {
            let what = format!("{former} is no longer a peer");
            self.events.info(now, what, "it is not in the config");
        }
        if let Some(name) = name {
            let what = format!("{name} is a peer from now on");
            self.events.info(now, what, "it is in the config");
        }
        for group in 0..self.groups.len() {
            self.forget_in_group(now, group, id);
        }
        self.evaluate_all(now);
        self.flush(now);
    }

    /// Forgets what a group has to do with a peer that has lost its place.
    fn forget_in_group(&mut self, now: Time, group: usize, id: PeerId) {
        let state = &mut self.groups[group];
        state.primary = state.primary.filter(|peer| *peer != id);
        state.expected = state.expected.filter(|(peer, _)| *peer != id);
        state.given = state.given.filter(|(peer, _)| *peer != id);
        if state.handover.as_ref().is_some_and(|it| it.to == id) {
            self.fail_handover(now, group, "the peer is no longer in the config");
        }
    }
}

/// Why this unit does not hear a unit that another one hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unheard {
    NoLink,
    /// It is not in the config of this unit.
    NotAPeer,
}
