//! Units recognise each other on the data ports, whatever has become of the links.
//!
//! A unit asks each peer on each port (`frame.rs`); an answer is a heartbeat, signed, that proves
//! that the peer lives and that the port carries both ways. On a port where a peer is heard it is
//! asked once a second; as often as heartbeats are sent while no link to it works; and where it is
//! not heard, by broadcast. An answer on a port counts for that port, and for the peer's life.

use std::time::Duration;

use super::frame::{self, Asked, Envelope, FrameError, FrameKind, PortKeys};
use super::heartbeat;
use super::peer::{self, ElectionPeer};
use super::{Ha, Output};
use crate::flow::{Addr, GroupId, PeerId, PortId};
use crate::time::Time;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// Between two questions on a port where the peer is heard, while a link to it works.
const CALM: Duration = Duration::from_secs(1);
/// Between two questions on a port where the peer is not heard.
const SEARCH: Duration = Duration::from_millis(500);
/// A port on which a peer has answered within this time leads to it.
pub(super) const HEARD: Duration = Duration::from_secs(3);
/// Questions to a peer in one go on ports where it is heard, and as many on others; they take
/// turns.
const MOST_ASKED: usize = 16;

/// The path to a peer by a data port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortPath {
    /// When the peer last answered.
    heard: Option<Time>,
    /// The address that it answered from.
    mac: Option<Mac>,
    /// When the next question is due.
    due: Time,
    /// Its last question that was answered.
    answered: Option<Asked>,
}

impl PortPath {
    /// Whether the peer is heard by it.
    pub(super) fn is_heard(&self, now: Time) -> bool {
        self.heard.is_some_and(|at| now.since(at) < HEARD)
    }
}

/// A port of this unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnPort {
    /// The hash by which heartbeats name the port, so that units may list theirs in any order.
    pub hash: u32,
    pub up: bool,
    pub up_since: Time,
    /// Something has come in by it since.
    pub carried: bool,
}

impl Ha {
    /// The keys that this unit shares with each peer; without them no data port is used.
    pub fn set_port_keys(&mut self, keys: Vec<Option<PortKeys>>) {
        for (peer, keys) in self.peers.iter_mut().zip(keys) {
            peer.keys = keys;
        }
    }

    /// Handles a frame of type [`frame::ETHERTYPE`], without its Ethernet header, that came in by
    /// `port` from the hardware address `source`.
    ///
    /// # Errors
    /// If it was ignored.
    pub(crate) fn handle_port_frame(
        &mut self,
        now: Time,
        port: PortId,
        source: [u8; 6],
        bytes: &[u8],
    ) -> Result<(), FrameError> {
        let envelope = frame::peek(bytes)?;
        let index = self
            .peers
            .iter()
            .position(|it| self.label(it.hash) == envelope.from);
        let index = index.ok_or(FrameError::NotForUs)?;
        if envelope.to != self.label(heartbeat::hash(&self.name)) {
            return Err(FrameError::NotForUs);
        }
        let keys = self.peers[index]
            .keys
            .as_ref()
            .ok_or(FrameError::NotSigned)?;
        let body = frame::open(bytes, &keys.receive)?;
        let own = self.ports.get(port.index());
        if own.is_none_or(|own| own.hash != envelope.port) {
            return Err(FrameError::OtherPort);
        }
        let peer = PeerId(index as u8);
        match envelope.kind {
            FrameKind::Question => self.answer(now, (peer, port), source, envelope.asked)?,
            FrameKind::Stray => self.hear_stray(port, body)?,
            FrameKind::Answer => {
                self.hear_answer(now, (peer, port), source, (envelope.asked, body))?
            }
        }
        self.flush(now);
        Ok(())
    }

    /// Whether a peer has recently answered from the hardware address `mac` on `port`.
    pub(crate) fn is_peer(&self, port: PortId, mac: [u8; 6]) -> bool {
        let mut paths = self
            .peers
            .iter()
            .filter_map(|it| it.ports.get(port.index()));
        paths.any(|path| path.mac == Some(mac))
    }

    /// The hardware address of a peer on `port`, if it is heard there.
    pub(crate) fn mac_of(&self, now: Time, peer: PeerId, port: PortId) -> Option<Mac> {
        let path = self.peers.get(peer.index())?.ports.get(port.index())?;
        path.mac.filter(|_| path.is_heard(now))
    }

    /// Identifies a unit in a frame: clusters on one link may have units of the same names.
    fn label(&self, hash: u32) -> u32 {
        hash ^ u32::from(self.group_id) << 24
    }

    /// Notes which ports are up.
    pub(super) fn note_ports(&mut self, now: Time, up: &[bool]) {
        for (index, own) in self.ports.iter_mut().enumerate() {
            let is_up = up.get(index).copied().unwrap_or(false);
            if std::mem::replace(&mut own.up, is_up) == is_up {
                continue;
            }
            (own.up_since, own.carried) = (now, false);
            // Earlier answers by this port prove nothing any more.
            for peer in &mut self.peers {
                peer.ports[index] = PortPath::default();
            }
            self.urgent |= is_up;
        }
    }

    /// Asks the peers on the ports where that is due.
    pub(super) fn ask_when_due(&mut self, now: Time) {
        for peer in 0..self.peers.len() {
            self.ask(now, peer, |path| now >= path.due);
        }
    }

    /// Asks the peers that may be dead, on all ports: one of them may be primary.
    pub(super) fn ask_the_silent(&mut self, now: Time) {
        for peer in 0..self.peers.len() {
            if !self.peers[peer].alive {
                self.ask(now, peer, |_| true);
            }
        }
    }

    fn ask(&mut self, now: Time, index: usize, wanted: impl Fn(&PortPath) -> bool) {
        let (interval, count) = (self.interval, self.ports.len());
        let peer = &mut self.peers[index];
        let Some(keys) = peer.keys.clone() else {
            return;
        };
        let linked = peer.is_linked_lately(now, interval);
        let mut asked = Vec::new();
        for heard in [true, false] {
            let first = peer.next_port;
            let ports = (0..count).map(|step| (first + step) % count);
            let ports = ports.filter(|port| {
                let path = &peer.ports[*port];
                self.ports[*port].up && path.is_heard(now) == heard && wanted(path)
            });
            asked.extend(ports.take(MOST_ASKED));
        }
        if let Some(last) = asked.iter().max() {
            peer.next_port = (last + 1) % count;
        }
        let asked_at = Asked {
            boot_id: self.boot_id,
            clock: peer::clock(now),
        };
        let from = self.label(heartbeat::hash(&self.name));
        let to = self.label(self.peers[index].hash);
        for port in asked {
            let path = &mut self.peers[index].ports[port];
            let pause = match (path.is_heard(now), linked) {
                (true, true) => CALM,
                // Heartbeats are sent that often, but not to the microsecond.
                (true, false) => interval * 3 / 4,
                (false, _) => SEARCH,
            };
            path.due = now + pause;
            let to_mac = path.mac.filter(|_| path.is_heard(now));
            let envelope = Envelope {
                kind: FrameKind::Question,
                from,
                to,
                port: self.ports[port].hash,
                asked: asked_at,
            };
            self.push_output(Output::SendOnPort {
                port: PortId::from_index(port),
                to: to_mac,
                bytes: frame::seal(&envelope, &[], &keys.send),
            });
        }
    }

    /// Answers a question of a peer, once.
    fn answer(
        &mut self,
        now: Time,
        (peer, port): (PeerId, PortId),
        source: Mac,
        asked: Asked,
    ) -> Result<(), FrameError> {
        let path = &mut self.peers[peer.index()].ports[port.index()];
        let before = path.answered.replace(asked);
        if before.is_some_and(|it| it.boot_id == asked.boot_id && it.clock >= asked.clock) {
            path.answered = before;
            return Err(FrameError::Old);
        }
        let known = &self.peers[peer.index()];
        let Some(keys) = known.keys.clone() else {
            return Err(FrameError::NotSigned);
        };
        let envelope = Envelope {
            kind: FrameKind::Answer,
            from: self.label(heartbeat::hash(&self.name)),
            to: self.label(known.hash),
            port: self.ports[port.index()].hash,
            asked,
        };
        for body in self.heartbeats_for_port(now, peer) {
            self.push_output(Output::SendOnPort {
                port,
                to: Some(source),
                bytes: frame::seal(&envelope, &body, &keys.send),
            });
        }
        Ok(())
    }

    /// A peer names a host. A recorded frame does no harm: the host is told the truth.
    fn hear_stray(&mut self, port: PortId, body: &[u8]) -> Result<(), FrameError> {
        let octets: [u8; 16] = body.try_into().map_err(|_| FrameError::Malformed)?;
        let host = Addr::v6(octets);
        self.push_output(Output::Stray { port, host });
        Ok(())
    }

    /// Names a host that sends to this unit, on the link of `port`, to the primary of `group`, if
    /// that is heard there.
    pub(crate) fn name_stray(&mut self, now: Time, group: GroupId, port: PortId, host: Addr) {
        let Some(id) = self.alive_primary(usize::from(group.0)) else {
            return;
        };
        let peer = &self.peers[id.index()];
        let (Some(path), Some(own)) = (peer.ports.get(port.index()), self.ports.get(port.index()))
        else {
            return;
        };
        let (Some(keys), true) = (&peer.keys, path.is_heard(now)) else {
            return;
        };
        let envelope = Envelope {
            kind: FrameKind::Stray,
            from: self.label(heartbeat::hash(&self.name)),
            to: self.label(peer.hash),
            port: own.hash,
            asked: Asked {
                boot_id: self.boot_id,
                clock: peer::clock(now),
            },
        };
        let bytes = frame::seal(&envelope, host.octets(), &keys.send);
        let to = path.mac;
        self.push_output(Output::SendOnPort { port, to, bytes });
    }

    fn hear_answer(
        &mut self,
        now: Time,
        (id, port): (PeerId, PortId),
        source: Mac,
        (asked, body): (Asked, &[u8]),
    ) -> Result<(), FrameError> {
        let span = self.hold_of(&self.peers[id.index()]);
        let since = self.peers[id.index()].deaf_since;
        if !asked.is_fresh(self.boot_id, now, span, since) {
            return Err(FrameError::Old);
        }
        let (header, records) = heartbeat::decode(body).map_err(FrameError::Heartbeat)?;
        self.admit(&header, id).map_err(FrameError::Heartbeat)?;
        let peer = &mut self.peers[id.index()];
        let path = &mut peer.ports[port.index()];
        if !path.is_heard(now) {
            let (name, port) = (&peer.name, port.0);
            log::debug!("peer heard on a data port peer={name} port={port}");
        }
        (path.heard, path.mac) = (Some(now), Some(source));
        peer.spoke = true;
        self.handle_host(port);
        self.take_heartbeat(now, id, &header, records, false);
        Ok(())
    }
}

impl ElectionPeer {
    /// Whether heartbeats come by a link as often as they should.
    fn is_linked_lately(&self, now: Time, interval: Duration) -> bool {
        let interval = interval.max(self.interval);
        let lately = |at: Time| now.since(at) < interval * 3 / 2;
        self.linked && self.link_heard.is_some_and(lately)
    }
}
