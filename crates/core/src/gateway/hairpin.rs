//! Hairpins without a forward: two hosts inside that each send to the external endpoint of the
//! other, which a third party has told them (RFC 4787, REQ-9; RFC 5382, REQ-8).
//!
//! Each has a session of its own, as if the other were outside, under a policy that lets it out and
//! translates it. A packet from one of them leaves by its session, and comes back at once as a
//! packet of the other's, if that one has sent there too: the filter is the same as for packets
//! from outside.

use crate::config::Action;
use crate::event::{DropReason, Verdict};
use crate::flow::{Direction, FlowKey, PortId};
use crate::packet::{self, PacketKind};
use crate::session::{Session, SessionFlags};

use super::{Gateway, Packet};

/// Whether packets of this direction come back, to another session.
#[inline]
pub(super) fn turns_back(session: &Session, direction: Direction) -> bool {
    direction == Direction::Original && session.flags.contains(SessionFlags::TURNS_BACK)
}

impl Gateway {
    /// The port by which a packet for an external address would leave and come back; none if it
    /// does not open such a session, and is for the gateway itself.
    pub(super) fn turning_port(&self, packet: &Packet<'_>) -> Option<PortId> {
        let key = &packet.parsed.key;
        let may_open = match packet.parsed.kind {
            PacketKind::Tcp(segment) => segment.flags.syn() && !segment.flags.ack(),
            PacketKind::Udp => true,
            _ => false,
        };
        // Otherwise nobody can be behind the port.
        let (nat, book) = (self.sessions.nat(), self.sessions.book());
        if !may_open || !nat.is_used_port(book, key.dst, key.protocol, key.dst_port) {
            return None;
        }
        let port = self.rules.port_with(&key.dst)?;
        let decision = self.rules.ruleset().decide(packet.port, port, key, false)?;
        if decision.action != Action::Accept {
            return None;
        }
        let pool = self.sessions.nat().pool(decision.nat, port)?;
        let addr = self.sessions.book().find(key.dst)?;
        let is_of_pool = self.sessions.nat().is_in_pool(pool, addr);
        is_of_pool.then_some(port)
    }

    /// Sends a packet out of `port` as `to`, whose destination is ours, and takes it in again.
    #[cold]
    pub(super) fn turn_back(
        &mut self,
        packet: &mut Packet<'_>,
        to: FlowKey,
        port: PortId,
    ) -> Verdict {
        // It may come back only to another session, and for the side that opened it: so it ends
        // there.
        let Some((id, Direction::Reply)) = self.sessions.lookup(&to) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        if packet.parsed.fragment.is_some() {
            self.identify(packet, &to);
        }
        packet::translate(packet.bytes, &packet.parsed, packet.offload, &to);
        let mut parsed = packet.parsed;
        parsed.key = to;
        let mut again = Packet {
            now: packet.now,
            port,
            bytes: &mut *packet.bytes,
            offload: packet.offload,
            parsed,
            identification: packet.identification,
            group: None,
        };
        self.forward_in_session(&mut again, id, Direction::Reply)
    }
}
