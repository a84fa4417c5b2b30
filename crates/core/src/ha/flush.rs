//! When heartbeats are due, and what stands in them.

use super::heartbeat::{self, GroupState};
use super::{Ha, Leaving, Output, peer};
use crate::flow::{LinkId, PeerId};
use crate::time::Time;

impl Ha {
    /// Sends heartbeats to all peers over all links that are up, if they are due.
    pub(super) fn flush(&mut self, now: Time) {
        if !std::mem::take(&mut self.urgent) || self.is_gone() {
            return;
        }
        self.next_heartbeat = now + self.interval;
        let states: Vec<_> = (0..self.groups.len())
            .map(|group| (self.groups[group].hash, self.group_state(now, group)))
            .collect();
        let parts = states.chunks(heartbeat::MOST_GROUPS);
        let count = u8::try_from(parts.len()).unwrap_or(u8::MAX);
        for part in parts {
            self.sequence += 1;
            for peer in (0..self.peers.len()).map(|peer| PeerId(peer as u8)) {
                for link in (0..self.links).map(LinkId) {
                    if self.peers[peer.index()].links[link.index()].up {
                        let bytes = self.write_heartbeat(now, (peer, link), part, count);
                        self.push_output(Output::SendHeartbeat { peer, link, bytes });
                    }
                }
            }
        }
    }

    /// A heartbeat to `peer` over `link` with the groups of `part`, one of `parts`.
    fn write_heartbeat(
        &mut self,
        now: Time,
        (peer, link): (PeerId, LinkId),
        part: &[(u32, GroupState)],
        parts: u8,
    ) -> Vec<u8> {
        let to = &mut self.peers[peer.index()];
        let (echo, echo_age) = to.echo(now, link);
        to.links[link.index()].counters.sent += 1;
        let header = heartbeat::Header {
            group_id: self.group_id,
            goodbye: matches!(self.leaving, Some(Leaving::Goodbye(_))),
            ports_up: self.ports_up,
            boot_id: self.boot_id,
            sequence: self.sequence,
            uptime: now.since(self.started),
            interval: self.interval,
            clock: peer::clock(now),
            echo,
            echo_age,
            applied: to.sync.applied,
            name: &self.name,
            parts,
        };
        heartbeat::encode(&header, part.iter().map(|(name, group)| (*name, group)))
    }
}
