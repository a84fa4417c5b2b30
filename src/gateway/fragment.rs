//! Fragments: the first one is handled like a whole packet, and the others follow it.

use crate::event::{DropReason, Output, Verdict};
use crate::flow::Direction;
use crate::fragment::{FragmentKey, Seen};
use crate::packet::{self, Kind};
use crate::session::SessionId;

use super::{Gateway, Packet};

impl Gateway {
    pub(super) fn handle_fragment(&mut self, packet: Packet<'_>) -> Verdict {
        let Some(fragment) = packet.parsed.fragment else { return self.handle_whole(packet) };
        let key = FragmentKey {
            src: packet.parsed.key.src,
            dst: packet.parsed.key.dst,
            protocol: packet.parsed.key.protocol,
            id: fragment.id,
            port: packet.port,
        };
        match self.fragments.see(key, packet.now, &fragment, packet.bytes) {
            Seen::First => self.handle_first_fragment(key, packet),
            Seen::Known((id, direction)) => self.forward_later_fragment(packet, id, direction),
            Seen::Held => Verdict::Consumed,
            Seen::Drop(reason) => Verdict::Drop(reason),
        }
    }

    fn handle_first_fragment(&mut self, key: FragmentKey, packet: Packet<'_>) -> Verdict {
        let (now, port, flow) = (packet.now, packet.port, packet.parsed.key);
        if matches!(packet.parsed.kind, Kind::LaterFragment) {
            return Verdict::Drop(DropReason::FragmentOrphan);
        }
        let verdict = self.handle_whole(packet);
        let decision = match verdict {
            Verdict::Forward => self.table.lookup(&flow, &self.book),
            Verdict::Drop(_) | Verdict::Consumed => None,
        };
        let held = self.fragments.decide(key, now, decision);
        let Some((id, direction)) = decision else {
            self.counters.dropped[DropReason::FragmentOrphan as usize] += held.len() as u64;
            return verdict;
        };
        for mut bytes in held {
            self.release_fragment(now, port, &mut bytes, id, direction);
        }
        verdict
    }

    /// Sends a fragment that had waited for the first one.
    fn release_fragment(
        &mut self,
        now: crate::time::Time,
        port: crate::flow::PortId,
        bytes: &mut Vec<u8>,
        id: SessionId,
        direction: Direction,
    ) {
        let offload = crate::event::Offload::default();
        let verdict = match packet::parse(bytes, offload) {
            Ok(parsed) => {
                let packet = Packet { now, port, bytes: bytes.as_mut_slice(), offload, parsed };
                self.forward_later_fragment(packet, id, direction)
            }
            Err(reason) => Verdict::Drop(reason),
        };
        match verdict {
            Verdict::Forward => {
                self.counters.forwarded += 1;
                self.push_output(Output::Packet { port, bytes: std::mem::take(bytes) });
            }
            Verdict::Drop(reason) => self.count_drop(reason),
            Verdict::Consumed => {}
        }
    }

    fn forward_later_fragment(
        &mut self,
        mut packet: Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let Some(session) = self.table.get_mut(id) else {
            return Verdict::Drop(DropReason::FragmentOrphan);
        };
        let side = direction as usize;
        session.packets[side] += 1;
        session.bytes[side] += u64::from(packet.parsed.total_len);
        let (_, egress) = session.ports(direction);
        self.send_in_session(&mut packet, id, direction, egress)
    }
}
