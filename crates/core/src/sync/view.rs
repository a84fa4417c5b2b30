//! A view of replication: how far each peer is, and recent events.

use std::time::Duration;

use super::Replicator;
use crate::evidence::Holders;
use crate::flow::{GroupId, PeerId, PortId};
use crate::store::{Journal, Seq, SessionStore};
use crate::time::Time;

/// Changes that [`Replicator::lag`] looks at, at most.
const LOST_LOOKED_AT: usize = 10_000;

/// How far a peer is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Changes that are not acknowledged.
    pub sequence_gap: u64,
    /// The age of the oldest of them; a lower bound, which is off by one round trip at most.
    pub oldest_unacked: Duration,
    /// Sessions that the peer would not have, or not as they are, if this unit died now.
    pub would_be_lost: u32,
}

/// Counters of past events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions of peers that were new here.
    pub installed: u64,
    /// Sessions of peers that were known here.
    pub updated: u64,
    /// Sessions that a peer has ended.
    pub removed: u64,
    /// Sessions offered to a primary that might lack them.
    pub offered: u64,
    /// Sessions that a standby has offered to this unit, the primary.
    pub taken: u64,
    /// Sessions removed since the primary does not have them.
    pub swept: u64,
    /// Sessions sent to peers, each time.
    pub sent: u64,
    /// Records older than what is known here.
    pub stale: u64,
    /// Sessions removed since a peer's session has the same packets.
    pub conflicts_lost: u64,
    /// Records refused since a session here has the same packets.
    pub conflicts_won: u64,
    /// Records refused since their port or group is not known here.
    pub refused_unknown: u64,
    /// Records refused since the table or the address book is full.
    pub refused_full: u64,
    /// Frames and operations refused since the peer is not, or no longer, primary of the group.
    pub refused_not_primary: u64,
    /// Sessions of this unit that peers have refused, each time.
    pub refused_by_peers: u64,
    /// Sessions of this unit's own groups that were removed to make room for a peer's.
    pub made_room: u64,
    /// Sessions removed since this unit is no longer to hold their group.
    pub dropped: u64,
}

impl Replicator {
    /// How far a peer is behind, in all groups that this unit is primary of.
    pub fn lag(&self, peer: PeerId, store: &SessionStore, now: Time) -> Lag {
        let (sequence_gap, oldest_unacked) = self.backlog(peer, store.journal(), now);
        let groups = (0..self.ready.len()).map(|group| GroupId(group as u8));
        let lost = groups.filter_map(|group| self.would_be_lost(peer, group, store));
        Lag {
            sequence_gap,
            oldest_unacked,
            would_be_lost: lost.sum(),
        }
    }

    /// Sessions of a group that the peer would not have, or not as they are, if this unit died now.
    /// None if this unit is not primary of the group, or the peer is not to hold it.
    ///
    /// All of them if it is not known what the peer holds, or that its process still lives. Those
    /// that are never replicated, or not yet, are lost as well.
    pub fn would_be_lost(&self, peer: PeerId, group: GroupId, store: &SessionStore) -> Option<u32> {
        let (index, journal) = (usize::from(group.0), store.journal());
        journal
            .term(group)
            .filter(|_| self.is_holder(peer, group))?;
        let refused = journal.refused(peer.index())?;
        let peer = self.peers.get(peer.index())?;
        let all = store.count(group);
        let alone = all.saturating_sub(journal.digest().count(group));
        let holds = match peer.sender.marks[index].joined {
            true => Some(peer.sender.acked),
            false => peer.kept[index],
        };
        let holds = holds.filter(|_| peer.lives() && !refused.has_unnamed(group));
        let Some(holds) = holds else {
            return Some(all);
        };
        let newest = journal.log().newest_first();
        let newer = newest.take_while(|(_, seq)| *seq > holds);
        let (mut looked_at, mut lost) = (0, 0);
        for (id, _) in newer.take(LOST_LOOKED_AT) {
            looked_at += 1;
            let session = store.get(id);
            // Those that were refused are counted below.
            let counts =
                session.is_some_and(|it| it.group == group) && !refused.contains(id, group);
            lost += u32::from(counts);
        }
        // An estimate: an exact count is not worth it.
        if looked_at == LOST_LOOKED_AT {
            let gap = journal.log().last().saturating_sub(holds);
            lost = u32::try_from(gap).unwrap_or(u32::MAX);
        }
        let lost = lost
            .saturating_add(refused.count(group))
            .saturating_add(alone);
        Some(lost.min(all))
    }

    /// Whether any peer has all of a group that this unit sends.
    pub(crate) fn has_copy(&self, group: GroupId) -> bool {
        self.peers.iter().any(|peer| peer.is_in_sync_for(group))
    }

    /// Whether a peer has all of a group that this unit sends, and its changes since.
    pub fn in_sync_for(&self, peer: PeerId, group: GroupId) -> bool {
        let peer = self.peers.get(peer.index());
        peer.is_some_and(|peer| peer.is_in_sync_for(group))
    }

    /// Whether a peer has a group; none before its Hello.
    pub(crate) fn has_group(&self, peer: PeerId, group: GroupId) -> Option<bool> {
        let remote = self.peers.get(peer.index())?.remote.as_ref()?;
        remote.has.get(usize::from(group.0)).copied()
    }

    /// Whether a peer has said that it cuts groups into other numbers of slots than this unit.
    pub(crate) fn has_other_cuts(&self, peer: PeerId) -> bool {
        let remote = self
            .peers
            .get(peer.index())
            .and_then(|peer| peer.remote.as_ref());
        remote.is_some_and(|remote| remote.other_cuts)
    }

    /// The last change of this unit that a peer has acknowledged; none if it is not connected.
    pub fn acknowledged(&self, peer: PeerId) -> Option<Seq> {
        let peer = self.peers.get(peer.index());
        let peer = peer.filter(|peer| peer.connected && peer.remote.is_some())?;
        Some(peer.sender.acked)
    }

    /// Whether a peer had exactly the sessions of a group that this unit sends, when last compared.
    pub fn digest_equal(&self, peer: PeerId, group: GroupId) -> bool {
        let group = usize::from(group.0);
        let peer = self.peers.get(peer.index()).filter(|peer| peer.connected);
        peer.and_then(|peer| peer.sender.marks.get(group))
            .is_some_and(|mark| mark.equal)
    }

    /// Whether this unit had exactly the sessions of a group that its primary sends, when last
    /// compared. Stays so when the connection is lost: the primary may have died.
    pub fn is_ready(&self, group: GroupId) -> bool {
        self.ready
            .get(usize::from(group.0))
            .is_some_and(|ready| *ready)
    }

    /// The port of this unit that a peer lists in a place of its Hello.
    pub(crate) fn port(&self, peer: PeerId, place: u16) -> Option<PortId> {
        let peer = self.peers.get(peer.index()).filter(|peer| peer.connected)?;
        let ports = &peer.remote.as_ref()?.ports;
        ports.get(usize::from(place)).copied().flatten()
    }

    /// Changes of a peer that are applied here: for heartbeats.
    pub fn applied(&self, peer: PeerId) -> Seq {
        self.peers
            .get(peer.index())
            .map_or(0, |peer| peer.receiver.applied)
    }

    /// Totals so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Panics if what is known of peers contradicts the journal: for tests and simulations.
    pub fn check_invariants(&self, journal: &Journal) {
        for (group, holders) in self.holders.iter().enumerate() {
            let is_sent = journal.sending()[group].is_some();
            assert!(is_sent || *holders == Holders::All, "holders by a standby");
        }
        for peer in &self.peers {
            assert!(peer.sender.acked <= journal.log().last());
            assert!(peer.sender.confirmed <= peer.sender.sent);
        }
    }
}
