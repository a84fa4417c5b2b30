//! Fragments: the first one is handled like a whole packet, and the others follow it.

use crate::event::{DropReason, Offload, Output, Verdict};
use crate::flow::{Addr, Family, FlowKey, PortId, Protocol};
use crate::fragment::{FragmentKey, Lookup, Piece};
use crate::packet::{self, Fragment, Kind};
use crate::time::Time;

use super::{Gateway, Packet};

/// What later fragments need to follow the first: they have no ports to look a session up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    src: Addr,
    dst: Addr,
    egress: PortId,
}

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
        let Some(onward) = self.onward(&flow) else {
            return Verdict::Drop(DropReason::FragmentOrphan);
        };
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

    fn onward(&self, flow: &FlowKey) -> Option<Onward> {
        let (id, direction) = self.table.lookup(flow, &self.book)?;
        let session = self.table.get(id)?;
        let to = session.translated(direction, &self.book);
        let (_, egress) = session.ports(direction);
        Some(Onward {
            src: to.src,
            dst: to.dst,
            egress,
        })
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

    fn send_onward(&mut self, mut packet: Packet<'_>, onward: Onward) -> Verdict {
        let to = FlowKey {
            src: onward.src,
            dst: onward.dst,
            ..packet.parsed.key
        };
        self.send(&mut packet, &to, onward.egress)
    }
}
