//! ICMP errors that others send about packets of our sessions (RFC 5508, section 4).

use crate::event::{DropReason, Verdict};
use crate::flow::{Addr, Direction, GroupId, PortId};
use crate::packet::{
    self, Parsed,
    icmp_error::{self, ErrorKind, Quoted},
};
use crate::session::{Session, SessionFlags, Tracker};

use super::forward::is_taken_up;
use super::hairpin::turns_back;
use super::{Gateway, Packet};

/// By whose TUN device errors of this kernel come that are not for a virtual address.
pub const PORT_OF_ERRORS: PortId = PortId(0);

/// Their hop limit, if a rule led them there from the start. Nobody else's packets have it, for the
/// kernel takes a hop of each (RFC 5082). A kernel without an address to speak from takes one that
/// others may have as well, 192.0.0.8 (RFC 7600).
pub const HOP_LIMIT_OF_ERRORS: u8 = 255;

impl Gateway {
    /// Finds the session of the packet that the error quotes, and passes the error to the sender of
    /// that packet, with all addresses as the sender knows them.
    pub(super) fn handle_icmp_error(&mut self, packet: &mut Packet<'_>) -> Verdict {
        match self.translate_icmp_error(packet) {
            Ok(()) => Verdict::Forward,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn translate_icmp_error(&mut self, packet: &mut Packet<'_>) -> Result<(), DropReason> {
        let Packet {
            now,
            port,
            parsed,
            offload,
            ..
        } = *packet;
        let bytes = &mut *packet.bytes;
        // The quoted packet proves it. The routers on the path may have special addresses (RFC
        // 6890), but not of every kind: a link-local one is not forwarded.
        let from = parsed.key.src;
        let is_martian = packet::martian_source(from) || from.is_link_local();
        if is_martian && !self.is_by_kernel(&parsed) || from == parsed.key.dst {
            return Err(DropReason::Martian);
        }
        if !packet::checksum_ok(bytes, &parsed, offload) {
            return Err(DropReason::BadChecksum);
        }
        self.pass_icmp_error(Packet {
            now,
            port,
            bytes: &mut *bytes,
            offload,
            parsed,
            identification: None,
            group: None,
        })?;
        packet::give_back_options(bytes, &parsed);
        packet::add_hop_limit(bytes, parsed.family);
        Ok(())
    }

    /// Translates the error by the session of the quoted packet. An error about a hairpin comes
    /// back, and is translated by the session of the other side too.
    fn pass_icmp_error(&mut self, packet: Packet<'_>) -> Result<(), DropReason> {
        let Packet {
            now,
            port,
            bytes,
            parsed,
            offload,
            ..
        } = packet;
        let quoted = icmp_error::quoted(bytes, &parsed)?;
        // The quoted packet is one that we sent; the answer to it has the key that we look up.
        let (id, direction) = self
            .sessions
            .lookup(&quoted.key.reply())
            .ok_or(DropReason::IcmpUnrelated)?;
        self.absorb_session(id);
        let session = self.sessions.get(id).ok_or(DropReason::IcmpUnrelated)?;
        // Only the port tells who speaks: this kernel sends errors from any of its own addresses.
        let (ingress, egress) = session.ports(direction);
        let is_by_kernel = self.is_by_kernel(&parsed);
        let is_led = is_by_kernel && port == PORT_OF_ERRORS;
        if port != ingress && !is_led && self.rules.port(port).source_check {
            return Err(DropReason::SpoofedSource);
        }
        if !self.carries(now, session.group) {
            return Err(DropReason::NotPrimary);
        }
        // Packets may have come to another unit, too.
        let is_taken_up = is_taken_up(session, self.sessions.table().is_stale(session))
            || session.flags.contains(SessionFlags::SPREAD);
        if !is_by_kernel {
            check_quote(session, direction.flip(), &quoted, is_taken_up)?;
        }
        let to = session.translated(direction, self.sessions.book());
        let egress = self.way_out(egress, direction, &to);
        if !self.links.is_up(egress) {
            return Err(DropReason::PortDown);
        }
        let turns_back = turns_back(session, direction);
        let as_received = session.key(direction, self.sessions.book());
        let as_sent = session.key(direction.flip(), self.sessions.book());
        // A router on the inside must not show its address (RFC 5508, section 4.2).
        let hidden = as_received.src != as_sent.dst;
        let outer_src = match hidden {
            true => as_sent.dst,
            false => self.author(&parsed, as_received.src, egress, session.group),
        };
        icmp_error::translate_error(bytes, &parsed, offload, outer_src, as_sent.src, &as_sent);
        if turns_back {
            let mut parsed = parsed;
            (parsed.key.src, parsed.key.dst) = (outer_src, as_sent.src);
            return self.pass_icmp_error(Packet {
                now,
                port: egress,
                bytes,
                offload,
                parsed,
                identification: None,
                group: None,
            });
        }
        self.links.port_mut(egress).count_out(bytes.len());
        self.routes.note_exit(egress);
        Ok(())
    }
}

impl Gateway {
    /// Who a host that `egress` leads to sees as the author of an error from `from` about packets
    /// to `to`. The kernel of this unit speaks for the gateway, unless they were for itself: then
    /// it is a virtual address, which is the same after a takeover.
    fn author(&self, error: &Parsed, to: Addr, egress: PortId, group: GroupId) -> Addr {
        let from = error.key.src;
        if from == to || !self.is_by_kernel(error) {
            return from;
        }
        let family = from.family();
        self.own_address(egress, family, |it| it == group)
            .or_else(|| self.own_address(egress, family, |it| self.serves(it)))
            .unwrap_or(from)
    }

    /// Whether this machine itself has sent the packet: nobody else's come in from addresses of the
    /// kernel (the barrier's chain `hops`), or with that hop limit.
    fn is_by_kernel(&self, packet: &Parsed) -> bool {
        packet.hop_limit == HOP_LIMIT_OF_ERRORS || self.is_kernel_address(packet.key.src)
    }
}

/// The least MTU that "packet too big" may claim if nothing in the quote proves that its author has
/// seen a packet of the session. Every link of IPv6 carries as much (RFC 8200, section 5), so do
/// the tunnels of IPv4, and QUIC stops below it (RFC 9000, section 14). A host keeps the value for
/// all its packets to that destination.
const LEAST_MTU: u32 = 1280;

/// Whether `sender` of the session can have sent the packet that an error quotes (RFC 5927, section
/// 4). The host that the error goes to might check as much.
fn check_quote(
    session: &Session,
    sender: Direction,
    quoted: &Quoted,
    is_taken_up: bool,
) -> Result<(), DropReason> {
    let is_plausible = match (&session.tracker, quoted.tcp_seq, quoted.error) {
        (Tracker::Tcp(tcp), Some(seq), _) => tcp.is_in_flight(sender, seq, is_taken_up),
        (_, _, ErrorKind::TooBig { mtu }) => mtu >= LEAST_MTU,
        _ => true,
    };
    match is_plausible {
        true => Ok(()),
        false => Err(DropReason::IcmpUnrelated),
    }
}
