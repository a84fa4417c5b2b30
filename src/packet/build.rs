//! Packets that the gateway makes itself. They need no offload.

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};

use super::checksum::Sum;
use super::icmp_error::ICMP_HEADER_LEN;
use super::{Kind, Parsed, broadcast, checksum_ok, martian, multicast, wire_protocol};
use crate::event::Offload;
use crate::flow::{Addr, Family, Protocol};

/// What an ICMP error of ours reports about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Fragmentation needed (RFC 1191) or packet too big (RFC 4443, section 3.2).
    TooBig {
        /// MTU of the next hop in bytes of IP. IPv4 can say at most 65535, IPv6 no less than 1280.
        mtu: u32,
    },
    /// A policy rejects it (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1).
    AdminProhibited,
    /// Nothing listens there.
    PortUnreachable,
    /// The destination can't be reached on its link.
    HostUnreachable,
    /// There is no route to the destination.
    NoRoute,
    /// The hop limit ran out.
    TimeExceeded,
}

/// Whether RFC 1122, section 3.2.2 and RFC 4443, section 2.4(e) allow an ICMP error, or another
/// answer, to this packet: not to an ICMP error, a later fragment, multicast or broadcast, nor to a
/// source that isn't one host.
pub fn may_answer(parsed: &Parsed) -> bool {
    let answerable = match parsed.kind {
        Kind::Tcp(_) | Kind::Udp | Kind::IcmpRequest | Kind::IcmpReply | Kind::Other => true,
        // Redirect and other messages of which not all can be known to be no errors.
        Kind::IcmpError | Kind::IcmpOther | Kind::LaterFragment => false,
    };
    answerable && !martian(&parsed.key) && !multicast(parsed.key.dst) && !broadcast(parsed.key.dst)
}

/// The reply to an echo request, with all of its data (RFC 792; RFC 4443, section 4.2).
///
/// None if it is no whole echo request with a right checksum, or must not be answered.
pub fn echo_reply(request: &[u8], parsed: &Parsed) -> Option<Vec<u8>> {
    let intact = checksum_ok(request, parsed, Offload::default());
    if parsed.kind != Kind::IcmpRequest
        || parsed.fragment.is_some()
        || !intact
        || !may_answer(parsed)
    {
        return None;
    }
    let mut message = parsed.transport(request).to_vec();
    message.get_mut(..4)?.copy_from_slice(&[
        match parsed.family {
            Family::V4 => 0,
            Family::V6 => 129,
        },
        0,
        0,
        0,
    ]);
    Header::new(parsed.key.dst, parsed.key.src, Protocol::ICMP).packet(message)
}

/// The reset that answers a TCP segment for which there is no connection, from its destination
/// (RFC 9293, section 3.10.7.1).
///
/// None if the segment is itself a reset, a fragment, not TCP, or must not be answered.
pub fn tcp_reset(parsed: &Parsed) -> Option<Vec<u8>> {
    let Kind::Tcp(segment) = parsed.kind else {
        return None;
    };
    if segment.flags.rst() || parsed.fragment.is_some() || !may_answer(parsed) {
        return None;
    }
    let key = parsed.key.reply();
    let mut reset = TcpHeader::new(key.src_port, key.dst_port, 0, 0);
    reset.rst = true;
    if segment.flags.ack() {
        reset.sequence_number = segment.ack;
    } else {
        reset.ack = true;
        reset.acknowledgment_number = segment.seq.wrapping_add(segment.sequence_len());
    }
    Header::new(key.src, key.dst, Protocol::TCP).packet(reset.to_bytes().to_vec())
}

/// An ICMP error from `from` to the source of `original`, which was received as it stands.
///
/// It quotes as much as RFC 1812, section 4.3.2.3 (576 bytes in all) and RFC 4443, section 2.4(c)
/// (1280 in all) allow. If the original had a partial checksum, so has the quotation; nobody checks it.
///
/// None if no error may be sent about the packet, or `from` is of the other family. Limiting their
/// rate is the caller's duty (RFC 4443, section 2.4(f)).
pub fn icmp_error(
    problem: Problem,
    from: Addr,
    original: &[u8],
    parsed: &Parsed,
) -> Option<Vec<u8>> {
    if !may_answer(parsed) || from.family() != parsed.family {
        return None;
    }
    let (room, traffic_class) = match parsed.family {
        // RFC 1812, section 4.3.2.5: precedence 6, internetwork control.
        Family::V4 => (576 - 20 - ICMP_HEADER_LEN, 0xc0),
        Family::V6 => (1280 - 40 - ICMP_HEADER_LEN, 0),
    };
    let (icmp_type, code, rest) = problem.on_the_wire(parsed.family);
    let quote_len = room.min(parsed.total_len as usize).min(original.len());
    let mut message = Vec::with_capacity(ICMP_HEADER_LEN + quote_len);
    message.extend_from_slice(&[icmp_type, code, 0, 0]);
    message.extend_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(&original[..quote_len]);
    Header {
        traffic_class,
        ..Header::new(from, parsed.key.src, Protocol::ICMP)
    }
    .packet(message)
}

impl Problem {
    /// Type, code, and the second word of the ICMP header.
    fn on_the_wire(self, family: Family) -> (u8, u8, u32) {
        match (self, family) {
            (Problem::TooBig { mtu }, Family::V4) => (3, 4, mtu.min(0xffff)),
            (Problem::TooBig { mtu }, Family::V6) => (2, 0, mtu.max(1280)),
            (Problem::AdminProhibited, Family::V4) => (3, 13, 0),
            (Problem::AdminProhibited, Family::V6) => (1, 1, 0),
            (Problem::PortUnreachable, Family::V4) => (3, 3, 0),
            (Problem::PortUnreachable, Family::V6) => (1, 4, 0),
            (Problem::HostUnreachable, Family::V4) => (3, 1, 0),
            (Problem::HostUnreachable, Family::V6) => (1, 3, 0),
            (Problem::NoRoute, Family::V4) => (3, 0, 0),
            (Problem::NoRoute, Family::V6) => (1, 0, 0),
            (Problem::TimeExceeded, Family::V4) => (11, 0, 0),
            (Problem::TimeExceeded, Family::V6) => (3, 0, 0),
        }
    }
}

/// The IP header of a packet of ours; both addresses are of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub src: Addr,
    pub dst: Addr,
    /// ICMP (of either family) or TCP.
    pub protocol: Protocol,
    pub traffic_class: u8,
    pub hop_limit: u8,
}

impl Header {
    pub fn new(src: Addr, dst: Addr, protocol: Protocol) -> Header {
        // IANA "IP Parameters": the recommended default hop limit.
        Header {
            src,
            dst,
            protocol,
            traffic_class: 0,
            hop_limit: 64,
        }
    }

    /// The packet with `transport`, whose checksum field is 0 and gets filled in. None if it is too
    /// big for IP.
    pub fn packet(self, mut transport: Vec<u8>) -> Option<Vec<u8>> {
        let family = self.src.family();
        let protocol = wire_protocol(self.protocol, family);
        let mut sum = Sum::default();
        if protocol != Protocol::ICMP {
            sum.add_pseudo_header(self.src, self.dst, protocol, transport.len());
        }
        sum.add(&transport);
        let field = if self.protocol == Protocol::TCP {
            16
        } else {
            2
        };
        transport
            .get_mut(field..field + 2)?
            .copy_from_slice(&sum.checksum().to_be_bytes());

        let len = u16::try_from(transport.len()).ok()?;
        let mut packet = match family {
            Family::V4 => self.v4(protocol, len)?,
            Family::V6 => self.v6(protocol, len),
        };
        packet.append(&mut transport);
        Some(packet)
    }

    fn v4(self, protocol: Protocol, len: u16) -> Option<Vec<u8>> {
        let (src, dst) = (self.src.last4(), self.dst.last4());
        let mut header =
            Ipv4Header::new(len, self.hop_limit, IpNumber(protocol.0), src, dst).ok()?;
        header.dscp = etherparse::IpDscp::try_new(self.traffic_class >> 2).ok()?;
        // Never fragmented, so it needs no identification (RFC 6864, section 4.1).
        header.dont_fragment = true;
        header.header_checksum = header.calc_header_checksum();
        Some(header.to_bytes().to_vec())
    }

    fn v6(self, protocol: Protocol, len: u16) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: len,
            next_header: IpNumber(protocol.0),
            hop_limit: self.hop_limit,
            source: *self.src.octets(),
            destination: *self.dst.octets(),
        };
        header.to_bytes().to_vec()
    }
}
