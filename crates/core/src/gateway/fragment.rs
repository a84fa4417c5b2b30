//! Fragments: the first one is handled like a whole packet, and the others follow it.

use crate::event::{DropReason, Offload, Output, Verdict};
use crate::flow::{Family, FlowKey, GroupId, PortId, Protocol};
use crate::fragment::{FragmentKey, Lookup, Piece};
use crate::packet::{self, Fragment, PacketKind, Parsed, icmp_error};
use crate::session::Tracker;
use crate::time::Time;

use super::forward::account;
use super::{Gateway, Packet};

/// The flow of the first fragment, for the later ones: they have no ports to look their session up
/// by. It is looked up again each time, so that they end with their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Onward {
    pub(super) flow: FlowKey,
    /// For TCP, the sequence number that offset 0 of the datagram would have.
    base: Option<u32>,
    /// The identification that the datagram has on its way out.
    identification: Option<u32>,
    /// The group to whose owner the first fragment went: its session may not be known here.
    passed_to: Option<GroupId>,
}

impl Onward {
    fn of(parsed: &Parsed) -> Onward {
        let base = match parsed.kind {
            PacketKind::Tcp(segment) => {
                let len = parsed.total_len - u32::from(parsed.header_len);
                let header_len = len - segment.payload_len;
                let data = segment.seq.wrapping_add(u32::from(segment.flags.syn()));
                Some(data.wrapping_sub(header_len))
            }
            _ => None,
        };
        Onward {
            flow: parsed.key,
            base,
            identification: None,
            passed_to: None,
        }
    }
}

/// A first fragment, and how the others of its datagram follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstFragment {
    key: FragmentKey,
    piece: Piece,
    onward: Onward,
}

/// The key that all fragments of a datagram share.
pub(super) fn key(parsed: &Parsed, fragment: &Fragment, in_port: PortId) -> FragmentKey {
    FragmentKey {
        src: parsed.key.src,
        dst: parsed.key.dst,
        id: fragment.id,
        // In IPv6 a later fragment may show an extension header instead (RFC 8200, section 4.5).
        protocol: match parsed.family {
            Family::V4 => parsed.key.protocol,
            Family::V6 => Protocol(0),
        },
        in_port,
    }
}

impl Gateway {
    pub(super) fn handle_fragment(
        &mut self,
        packet: &mut Packet<'_>,
        fragment: Fragment,
    ) -> Verdict {
        if self.is_fragment_for_another(packet) {
            return Verdict::Drop(DropReason::NotPrimary);
        }
        let key = key(&packet.parsed, &fragment, packet.port);
        let piece = Piece {
            offset: fragment.offset,
            len: fragment.len,
            more: fragment.more,
        };
        if packet.parsed.kind != PacketKind::LaterFragment {
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
        packet: &mut Packet<'_>,
        key: FragmentKey,
        piece: Piece,
    ) -> Verdict {
        let (now, held) = (packet.now, self.counters.guarantee_held);
        let mut first = FirstFragment {
            key,
            piece,
            onward: Onward::of(&packet.parsed),
        };
        // First, so that a dropped packet has neither opened nor counted anything.
        if let Err(reason) = self.fragments.check_first(&key, piece, now) {
            return Verdict::Drop(reason);
        }
        let verdict = self.handle_whole(packet);
        first.onward.identification = packet::identification(packet.bytes, &packet.parsed);
        let is_passed_on =
            verdict == Verdict::Drop(DropReason::NotPrimary) && self.rules.passes_on();
        if self.counters.guarantee_held > held {
            self.wait_with_fragments(&packet.parsed.key, first);
        } else if verdict == Verdict::Forward || is_passed_on {
            first.onward.passed_to = is_passed_on.then(|| self.group_of_any(packet));
            self.release_fragments(now, first);
        }
        verdict
    }

    /// The first fragment of a datagram is on its way: sends those that have waited for it.
    pub(super) fn release_fragments(&mut self, now: Time, first: FirstFragment) {
        let FirstFragment { key, piece, onward } = first;
        for bytes in self.fragments.first(key, piece, now, onward) {
            self.release_fragment(now, key.in_port, bytes, onward);
        }
    }

    /// The flow that a packet belongs to, or that an ICMP error is about; none for a later fragment
    /// whose first one was not seen.
    pub(super) fn flow_of(&self, bytes: &[u8], parsed: &Parsed, port: PortId) -> Option<FlowKey> {
        match parsed.kind {
            PacketKind::IcmpError => Some(icmp_error::quoted(bytes, parsed).ok()?.key.reply()),
            PacketKind::LaterFragment => {
                let key = key(parsed, &parsed.fragment?, port);
                Some(self.fragments.decision(&key)?.flow)
            }
            _ => Some(parsed.key),
        }
    }

    /// Sends a fragment that had waited for the first one.
    fn release_fragment(&mut self, now: Time, port: PortId, mut bytes: Vec<u8>, onward: Onward) {
        let offload = Offload::default();
        let parsed = match packet::parse(&bytes, offload) {
            Ok(parsed) => parsed,
            Err(reason) => return self.count_drop(reason),
        };
        let mut packet = Packet {
            now,
            port,
            bytes: &mut bytes,
            offload,
            parsed,
            identification: None,
            group: None,
        };
        match self.send_onward(&mut packet, onward) {
            Verdict::Forward => {
                self.counters.forwarded += 1;
                self.capture_released(now, &onward.flow, &bytes);
                let port = self.exit();
                self.push_output(Output::Packet {
                    port,
                    bytes,
                    offload,
                });
            }
            Verdict::Drop(DropReason::NotPrimary) => {
                self.handle_for_another(&packet);
            }
            Verdict::Drop(reason) => self.count_drop(reason),
            Verdict::Consumed => {}
        }
    }

    fn send_onward(&mut self, packet: &mut Packet<'_>, onward: Onward) -> Verdict {
        let known = self.sessions.lookup(&onward.flow);
        let known = known.and_then(|it| Some((it, self.sessions.get(it.0)?.group)));
        let Some(((id, direction), group)) = known else {
            packet.group = onward.passed_to;
            return Verdict::Drop(match onward.passed_to {
                Some(_) => DropReason::NotPrimary,
                None => DropReason::FragmentOrphan,
            });
        };
        packet.group = Some(group);
        if !self.carries(packet.now, group) {
            return Verdict::Drop(DropReason::NotPrimary);
        }
        packet.identification = onward.identification;
        let is_first_reply = self.sessions.follow(id, |session, _| {
            if let (Tracker::Tcp(tracker), Some(base), Some(fragment)) =
                (&mut session.tracker, onward.base, packet.parsed.fragment)
            {
                let end = u32::from(fragment.offset) + u32::from(fragment.len);
                tracker.note_sent(direction, base.wrapping_add(end));
            }
            account(session, packet, direction)
        });
        if is_first_reply == Some(true) {
            self.note_neighbors_of(id);
        }
        self.send_in_session(packet, id, direction)
    }
}
