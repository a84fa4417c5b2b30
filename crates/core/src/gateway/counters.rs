//! The counters of the gateway.

use crate::event::DropReason;

/// Counters since the start of the process.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Packets forwarded; a super-packet counts as one.
    pub forwarded: u64,
    /// Sessions that packets opened here; not those that peers opened.
    pub opened: u64,
    /// Packets dropped, by [`DropReason`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Unreplied sessions that made room for new ones in a full table.
    pub dropped_early: u64,
    /// Sessions ended by a change of routes or of the configuration, or by the administrator.
    pub cleared: u64,
    /// Of these, the ones that a change of the configuration forbids.
    pub forbidden: u64,
    /// First packets of sessions that waited for the peers.
    pub guarantee_held: u64,
    /// Those whose wait was over before the peers had the session, or that found no room.
    pub guarantee_expired: u64,
    /// Sessions opened without the requested guarantee, because no peer was in sync.
    pub guarantee_degraded: u64,
    /// First packets of sessions that the peers in sync have refused.
    pub guarantee_refused: u64,
    /// Answers, announcements and heartbeats that could not be sent.
    pub outputs_lost: u64,
    /// Frames in which another machine claimed a virtual address of ours.
    pub address_conflicts: u64,
    /// Packets passed on to the primary of their group.
    pub passed_on: u64,
    /// Packets that peers have passed on to this unit.
    pub received_from_peers: u64,
    /// Packets of another unit's sessions that were forwarded in its place.
    pub stood_in: u64,
}

/// Traffic of a port. Bytes are those of IP; a super-packet counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets that came in by it, whatever their fate; see
    /// [`Gateway::handle_batch`](super::Gateway::handle_batch).
    pub in_packets: u64,
    /// Bytes of `in_packets`.
    pub in_bytes: u64,
    /// Packets forwarded out of it, as soon as they were translated; not packets of the gateway
    /// itself.
    pub out_packets: u64,
    /// Bytes of `out_packets`.
    pub out_bytes: u64,
}

impl PortCounters {
    #[inline]
    pub(super) fn count_out(&mut self, bytes: usize) {
        self.out_packets += 1;
        self.out_bytes += bytes as u64;
    }
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            forwarded: 0,
            opened: 0,
            dropped: [0; DropReason::ALL.len()],
            dropped_early: 0,
            cleared: 0,
            forbidden: 0,
            guarantee_held: 0,
            guarantee_expired: 0,
            guarantee_degraded: 0,
            guarantee_refused: 0,
            outputs_lost: 0,
            address_conflicts: 0,
            passed_on: 0,
            received_from_peers: 0,
            stood_in: 0,
        }
    }
}

impl Counters {
    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }
}
