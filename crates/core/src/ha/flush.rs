//! When heartbeats are due, and their content.

use std::time::Duration;

use super::heartbeat::{self, GroupState, Header};
use super::{Ha, Leaving, Output, peer};
use crate::flow::{LinkId, PeerId};
use crate::time::Time;

impl Ha {
    /// Sends heartbeats to all peers over all links that are up, if they are due.
    pub(super) fn flush(&mut self, now: Time) {
        self.tell_heard();
        if !std::mem::take(&mut self.urgent) || self.is_gone() {
            return;
        }
        self.next_heartbeat = now + self.interval;
        self.ask_when_due(now);
        let states = self.group_states(now);
        let parts = states.chunks(heartbeat::MOST_GROUPS);
        let count = u8::try_from(parts.len()).unwrap_or(u8::MAX);
        for part in parts {
            self.sequence += 1;
            for peer in (0..self.peers.len()).map(|peer| PeerId(peer as u8)) {
                for link in (0..self.links).map(LinkId) {
                    if self.peers[peer.index()].links[link.index()].up {
                        let bytes = self.write_for_link(now, (peer, link), part, count);
                        self.push_output(Output::SendHeartbeat { peer, link, bytes });
                    }
                }
            }
        }
    }

    /// Tells replication which peers this unit hears, where that has changed.
    fn tell_heard(&mut self) {
        for (peer, known) in (0..).map(PeerId).zip(&mut self.peers) {
            let heard = known.hearing();
            if std::mem::replace(&mut known.told_heard, heard) != heard {
                self.outputs.push_back(Output::Heard { peer, heard });
            }
        }
    }

    /// Heartbeats for `peer` by a data port: the datagrams that name all groups, with the numbers
    /// of those that were sent over the links last.
    pub(super) fn heartbeats_for_port(&self, now: Time, peer: PeerId) -> Vec<Vec<u8>> {
        let states = self.group_states(now);
        let parts = states.chunks(heartbeat::MOST_GROUPS);
        let count = u8::try_from(parts.len()).unwrap_or(u8::MAX);
        let first = (self.sequence + 1).saturating_sub(u64::from(count));
        let numbered = parts.zip(first..);
        numbered
            .map(|(part, sequence)| {
                let header = Header {
                    sequence,
                    ..self.header(now, peer, count)
                };
                encode(&header, part)
            })
            .collect()
    }

    /// The groups that there are, each with the hash of its name.
    fn group_states(&self, now: Time) -> Vec<(u32, GroupState)> {
        (0..self.groups.len())
            .filter(|group| self.groups[*group].exists())
            .map(|group| (self.groups[group].hash, self.group_state(now, group)))
            .collect()
    }

    /// A heartbeat to `peer` over `link` with the groups of `part`, one of `parts`.
    fn write_for_link(
        &mut self,
        now: Time,
        (peer, link): (PeerId, LinkId),
        part: &[(u32, GroupState)],
        parts: u8,
    ) -> Vec<u8> {
        let to = &mut self.peers[peer.index()];
        to.links[link.index()].counters.sent += 1;
        let (echo, echo_age) = to.echo(now, link);
        let header = Header {
            echo,
            echo_age,
            ..self.header(now, peer, parts)
        };
        encode(&header, part)
    }

    /// A heartbeat to `peer` that echoes nothing.
    fn header(&self, now: Time, peer: PeerId, parts: u8) -> Header<'_> {
        Header {
            group_id: self.group_id,
            goodbye: matches!(self.leaving, Some(Leaving::Goodbye(_))),
            maintenance: self.maintenance.is_some(),
            ports_up: self.ports_up,
            boot_id: self.boot_id,
            sequence: self.sequence,
            uptime: now.since(self.started),
            interval: self.interval,
            clock: peer::clock(now),
            echo: 0,
            echo_age: Duration::ZERO,
            applied: self.peers[peer.index()].sync.applied,
            name: &self.name,
            parts,
        }
    }
}

fn encode(header: &Header<'_>, part: &[(u32, GroupState)]) -> Vec<u8> {
    heartbeat::encode(header, part.iter().map(|(name, group)| (*name, group)))
}
