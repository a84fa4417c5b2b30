//! Fragments: the first one is handled like a whole packet, and the others follow it.

use crate::event::{DropReason, Offload, Output, Verdict};
use crate::flow::{Family, FlowKey, PortId, Protocol};
use crate::fragment::{FragmentKey, Lookup, Piece};
use crate::packet::{self, Fragment, Kind};
use crate::time::Time;

use super::{Gateway, Packet};

/// What later fragments need to follow the first: the flow that it showed, for they have no ports to
/// look their session up by. It is looked up anew each time, so that they end with their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward(FlowKey);

impl Gateway {
    pub(super) fn handle_fragment(&mut self, packet: Packet<'_>, fragment: Fragment) -> Verdict {
        let flow = packet.parsed.key;
        let key = FragmentKey {
            src: flow.src,
            dst: flow.dst,
            id: fragment.id,
            // In IPv6 a later fragment may show an extension header instead (RFC 8200, section 4.5).
            protocol: match packet.parsed.family {
                Family::V4 => flow.protocol,
                Family::V6 => Protocol(0),
            },
            in_port: packet.port,
        };
        let piece = Piece {
            offset: fragment.offset,
            len: fragment.len,
            more: fragment.more,
        };
        if packet.parsed.kind != Kind::LaterFragment {
            return self.handle_first_fragment(packet, key, piece);
        }
        match self.fragments.later(key, piece, packet.bytes, packet.now) {
            Lookup::Known(onward) => self.send_onward(packet, onward),
            Lookup::Held => Verdict::Consumed,
            Lookup::Drop(reason) => Verdict::Drop(reason),
        }
    }

    fn handle_first_fragment(
        &mut self,
        packet: Packet<'_>,
        key: FragmentKey,
        piece: Piece,
    ) -> Verdict {
        let (now, port, flow) = (packet.now, packet.port, packet.parsed.key);
        let verdict = self.handle_whole(packet);
        if verdict != Verdict::Forward {
            return verdict;
        }
        let onward = Onward(flow);
        match self.fragments.first(key, piece, now, onward) {
            Ok(held) => {
                for bytes in held {
                    self.release_fragment(now, port, bytes, onward);
                }
                verdict
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Sends a fragment that had waited for the first one.
    fn release_fragment(&mut self, now: Time, port: PortId, mut bytes: Vec<u8>, onward: Onward) {
        let offload = Offload::default();
        let verdict = match packet::parse(&bytes, offload) {
            Ok(parsed) => self.send_onward(
                Packet {
                    now,
                    port,
                    bytes: &mut bytes,
                    offload,
                    parsed,
                },
                onward,
            ),
            Err(reason) => Verdict::Drop(reason),
        };
        match verdict {
            Verdict::Forward => {
                self.counters.forwarded += 1;
                self.push_output(Output::Packet { port, bytes });
            }
            Verdict::Drop(reason) => self.count_drop(reason),
            Verdict::Consumed => {}
        }
    }

    fn send_onward(&mut self, mut packet: Packet<'_>, Onward(flow): Onward) -> Verdict {
        let Some((id, direction)) = self.table.lookup(&flow, &self.book) else {
            return Verdict::Drop(DropReason::FragmentOrphan);
        };
        let Some(session) = self.table.get(id) else {
            return Verdict::Drop(DropReason::FragmentOrphan);
        };
        if !self.is_primary(session.group) {
            return Verdict::Drop(DropReason::NotPrimary);
        }
        self.record(&packet, id, direction);
        self.send_in_session(&mut packet, id, direction)
    }
}
