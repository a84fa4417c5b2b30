//! Packets and frames for the gateway's own addresses: ping, refusals, ARP and ND.

use crate::event::{DropReason, Offload, Output, Verdict};
use crate::flow::{Addr, GroupId, PortId};
use crate::packet::build::{self, IcmpProblem};
use crate::packet::neighbor::{self, Neighbor};
use crate::packet::{self, PacketKind};
use crate::time::Time;

use super::limiter::Budget;
use super::{Gateway, Packet, port_frames};

impl Gateway {
    /// Answers a ping to a virtual address; refuses everything else, since nothing listens there.
    pub(super) fn handle_local(&mut self, packet: &mut Packet<'_>) -> Verdict {
        if self.takes_probe_answer(packet) {
            return Verdict::Consumed;
        }
        let source = packet.parsed.key.src;
        match self.judge_local(packet, |group| self.serves(group)) {
            Ok(_) if !self.budgets.allow(Budget::Echo, packet.now) => {
                Verdict::Drop(DropReason::EchoLimit)
            }
            // The sender may be forged, with no host there.
            Ok(_) if !self.looks_for(packet.now, &source, packet.port, source) => {
                Verdict::Drop(DropReason::NeighborLimit)
            }
            Ok(reply) => {
                self.send_packet(packet.now, packet.port, reply);
                Verdict::Consumed
            }
            Err(reason) => {
                if reason == DropReason::NoListener && self.tells_of_no_listener(packet) {
                    self.answer_refusal(packet, IcmpProblem::PortUnreachable);
                }
                Verdict::Drop(reason)
            }
        }
    }

    /// Whether the sender learns that nothing listens at this address. Not for a SYN: the host
    /// behind it may be about to open the connection from its side, and a reset would end both
    /// attempts (RFC 5382, REQ-4). Nor for what may answer a session that another unit has opened
    /// in a slot: it may have overtaken the session.
    pub(super) fn tells_of_no_listener(&self, packet: &Packet<'_>) -> bool {
        let is_syn = matches!(packet.parsed.kind, PacketKind::Tcp(segment)
            if segment.flags.syn() && !segment.flags.ack());
        if is_syn {
            return self.rules.port(packet.port).rejects_syns;
        }
        let key = &packet.parsed.key;
        let book = self.sessions.book();
        let slot = self.sessions.nat().slot_of(book, key.dst, key.dst_port);
        slot.is_none() && !self.rules.is_cut_otherwise()
    }

    /// The reply to a packet for an address of the gateway.
    pub(super) fn judge_local(
        &self,
        packet: &Packet<'_>,
        is_primary: impl Fn(GroupId) -> bool,
    ) -> Result<Vec<u8>, DropReason> {
        let key = packet.parsed.key;
        if packet::martian(&key) || packet::reserved(key.src) || !packet::forwardable(key.src) {
            return Err(DropReason::Martian);
        }
        // Forwarding it would be the job of a router of that kind (RFC 8200, section 4.4).
        if packet.parsed.has_segments_left {
            return Err(DropReason::RoutingHeader);
        }
        if !self.sessions.nat().group(&key.dst).is_some_and(is_primary) {
            return Err(DropReason::NotPrimary);
        }
        // The answer would go to the owner of that address, regardless of policies.
        self.check_source(packet)?;
        if packet.parsed.kind == PacketKind::IcmpRequest {
            return build::echo_reply(packet.bytes, &packet.parsed, packet.offload);
        }
        if !packet::checksum_ok(packet.bytes, &packet.parsed, packet.offload) {
            return Err(DropReason::BadChecksum);
        }
        match packet.parsed.kind {
            PacketKind::IcmpReply => Err(DropReason::IcmpUnrelated),
            PacketKind::IcmpOther => Err(DropReason::IcmpUnsupported),
            _ => Err(DropReason::NoListener),
        }
    }

    /// Handles a frame that the interface of `port` received: ARP or ND, a frame of a peer, or an
    /// IP packet that has no hop left. Others have no effect.
    pub fn handle_frame(&mut self, now: Time, port: PortId, frame: &[u8]) {
        if let Some(ours) = port_frames::parse(frame) {
            return self.handle_port_frame(now, port, ours);
        }
        if let Some(bytes) = neighbor::expired_packet(frame) {
            return self.handle_expired(now, port, bytes);
        }
        if let Some((bytes, sender)) = neighbor::link_local_ping(frame) {
            return self.answer_link_local(now, port, bytes, sender);
        }
        match neighbor::parse_frame(frame) {
            Ok(Neighbor::Solicit(solicit)) => {
                let mac = self.links.link(port).mac;
                let is_unicast = neighbor::recipient(frame) == Some(mac);
                let at = self.answer_to(now, port, &solicit, is_unicast);
                if let Some(at) = at.filter(|_| solicit.sender_mac != mac) {
                    let bytes = neighbor::sent_by(mac, neighbor::reply(&solicit, at));
                    self.push_output(Output::Frame { port, bytes });
                }
                self.notice_claim(now, port, solicit.sender, solicit.sender_mac);
            }
            Ok(Neighbor::Advertise(claim)) => self.notice_claim(now, port, claim.addr, claim.mac),
            Ok(Neighbor::Other) => {}
            Err(reason) => self.count_drop(reason),
        }
    }

    /// Answers a ping to a link-local address of the port. The kernel routes no packet to such an
    /// address, so it comes as a frame, and the answer goes back to its sender.
    fn answer_link_local(&mut self, now: Time, port: PortId, bytes: &[u8], sender: neighbor::Mac) {
        let parsed = match packet::parse(bytes, Offload::default()) {
            Ok(parsed) => parsed,
            Err(reason) => return self.count_drop(reason),
        };
        if !self.defends(port, &parsed.key.dst) {
            return;
        }
        let reply = match build::echo_reply(bytes, &parsed, Offload::default()) {
            Ok(reply) => reply,
            Err(reason) => return self.count_drop(reason),
        };
        if !self.budgets.allow(Budget::Echo, now) {
            return self.count_drop(DropReason::EchoLimit);
        }
        let mac = self.links.link(port).mac;
        let bytes = neighbor::ipv6_frame(sender, mac, &reply);
        self.push_output(Output::Frame { port, bytes });
    }

    /// A frame claims that `addr` is at `mac`: if it is ours, tells the operator and announces it
    /// again.
    fn notice_claim(&mut self, now: Time, port: PortId, addr: Addr, mac: [u8; 6]) {
        if mac == self.links.link(port).mac {
            return;
        }
        if packet::forwardable(addr) {
            self.hosts.neighbors.hear(port, addr, mac);
            // Also if too many hosts are remembered for this one.
            self.hosts.unresolved.answered((port, addr));
        }
        self.note_for_kernel(now, port, addr, mac);
        self.note_answer(now, port, addr);
        self.note_target(now, port, addr);
        let is_ours = self.addresses_on(port).any(|(own, _)| own == addr);
        let is_peer = self.is_peer(port, mac);
        if is_ours && !is_peer {
            self.note_conflict(now, port, addr, mac);
        }
        if !self.defends(port, &addr) || self.is_handing_over(&addr) {
            return;
        }
        // The former primary may still claim the addresses, and is informed; that is not a
        // conflict. Of two primaries one steps down as soon as they hear each other.
        let is_conflict = !is_peer && !self.was_taken_over_lately(now, &addr);
        self.counters.address_conflicts += u64::from(is_conflict);
        if self.hosts.announcer.may_defend(now, addr) {
            if is_conflict {
                self.warn_of_conflict(port, addr, mac);
            }
            self.announce_address(port, addr);
        }
    }

    /// Whether a peer may announce `addr` already, because it is about to take it over.
    fn is_handing_over(&self, addr: &Addr) -> bool {
        let group = self.sessions.nat().group(addr);
        let cluster = self.cluster().zip(group);
        cluster.is_some_and(|(cluster, group)| cluster.ha.is_handing_over(group))
    }

    fn was_taken_over_lately(&self, now: Time, addr: &Addr) -> bool {
        let group = self.sessions.nat().group(addr);
        let cluster = self.cluster().zip(group);
        cluster.is_some_and(|(cluster, group)| cluster.ha.is_new(now, group))
    }

    /// Whether this unit answers for `addr` on `port`.
    pub(super) fn defends(&self, port: PortId, addr: &Addr) -> bool {
        self.addresses_on(port)
            .any(|(own, group)| own == *addr && self.is_primary(group))
    }

    /// The addresses that hosts on `port` find at this gateway, with their groups.
    pub(super) fn addresses_on(&self, port: PortId) -> impl Iterator<Item = (Addr, GroupId)> {
        self.rules.addresses(port).iter().copied()
    }
}
