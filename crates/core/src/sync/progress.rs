//! News for the election: how far this unit and each peer are with the sessions of the groups.
//!
//! Whatever changes an answer here says so, and [`Replicator::poll_event`] tells the election once
//! for all changes since the last time. `Gateway::check_invariants` compares what it was told with
//! what holds.

use super::{Replicator, SyncEvent};
use crate::evidence::{Heard, SyncState};
use crate::flow::{GroupId, GroupSet, PeerId};

/// Changes since the last news to the election.
#[derive(Debug)]
pub(super) struct Untold {
    peers: Vec<bool>,
    groups: Vec<bool>,
}

impl Untold {
    /// Nothing is untold: both sides begin with nothing reached and nothing held.
    pub(super) fn new(peers: usize, groups: usize) -> Untold {
        Untold {
            peers: vec![false; peers],
            groups: vec![false; groups],
        }
    }

    /// Makes room for so many groups.
    pub(super) fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, false);
    }

    /// The sync state between this unit and a peer has changed.
    pub(super) fn note_peer(&mut self, at: usize) {
        if at >= self.peers.len() {
            self.peers.resize(at + 1, false);
        }
        self.peers[at] = true;
    }

    /// The same with all peers.
    pub(super) fn note_all_peers(&mut self) {
        self.peers.fill(true);
    }

    /// This unit's evidence for a group has changed.
    pub(super) fn note_group(&mut self, group: usize) {
        self.groups[group] = true;
    }
}

/// The first that is marked, which it is no longer.
fn take(marked: &mut [bool]) -> Option<u8> {
    let at = marked.iter().position(|marked| *marked)?;
    marked[at] = false;
    Some(at as u8)
}

impl Replicator {
    /// The next news for the election.
    pub(super) fn poll_untold(&mut self) -> Option<SyncEvent> {
        if let Some(group) = take(&mut self.untold.groups).map(GroupId) {
            return Some(SyncEvent::Holds(group, self.held(group)));
        }
        let peer = take(&mut self.untold.peers).map(PeerId)?;
        Some(SyncEvent::Reached(peer, self.reached(peer)))
    }

    /// Whether the election was told all that has changed.
    pub(crate) fn is_told(&self) -> bool {
        !self.untold.peers.contains(&true) && !self.untold.groups.contains(&true)
    }

    /// The groups of this unit.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.ready.len()).map(|group| GroupId(group as u8))
    }

    /// The election's last news of a peer.
    pub(crate) fn heard(&self, peer: PeerId) -> Option<Heard> {
        self.peers.get(peer.index()).map(|peer| peer.heard)
    }

    /// The sync state between this unit and a peer. A group about which their settings contradict
    /// each other does not count.
    pub(crate) fn reached(&self, peer: PeerId) -> SyncState {
        let set = |is_in: &dyn Fn(GroupId) -> bool| -> GroupSet {
            self.groups().filter(|group| is_in(*group)).collect()
        };
        let agrees = |group| self.agrees(peer, group);
        SyncState {
            ready: set(&|group| agrees(group) && self.is_ready(group)),
            equal: set(&|group| agrees(group) && self.digest_equal(peer, group)),
            applied: self.applied(peer),
        }
    }

    /// Takes note of whether this unit has all sessions of a group.
    pub(super) fn set_ready(&mut self, group: usize, ready: bool) {
        if std::mem::replace(&mut self.ready[group], ready) != ready {
            self.untold.note_all_peers();
        }
    }
}
