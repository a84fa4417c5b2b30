//! Packets that the gateway originates. They need no offload.

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};

use super::checksum::Sum;
use super::icmp_error::ICMP_HEADER_LEN;
use super::{PacketKind, Parsed, broadcast, checksum_ok, martian, multicast, wire_protocol};
use crate::event::{DropReason, Offload};
use crate::flow::{Addr, Family, FlowKey, Protocol};

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER_LEN: u16 = 8;

/// The reason for an ICMP error that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpProblem {
    /// Fragmentation needed (RFC 1191) or packet too big (RFC 4443, section 3.2).
    TooBig {
        /// MTU of the next hop in bytes of IP. IPv4 can express at most 65535, IPv6 no less than
        /// 1280.
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
        PacketKind::Tcp(_)
        | PacketKind::Udp
        | PacketKind::IcmpRequest
        | PacketKind::IcmpReply
        | PacketKind::Other => true,
        // Redirect and other messages that may be errors.
        PacketKind::IcmpError | PacketKind::IcmpOther | PacketKind::LaterFragment => false,
    };
    answerable && !martian(&parsed.key) && !multicast(parsed.key.dst) && !broadcast(parsed.key.dst)
}

/// The reply to an echo request, with all of its data (RFC 792; RFC 4443, section 4.2).
///
/// # Errors
/// - [`DropReason::BadChecksum`];
/// - [`DropReason::IcmpUnsupported`]: another query;
/// - [`DropReason::Malformed`]: not a whole echo request, or one that must not be answered.
pub fn echo_reply(
    request: &[u8],
    parsed: &Parsed,
    offload: Offload,
) -> Result<Vec<u8>, DropReason> {
    if !checksum_ok(request, parsed, offload) {
        return Err(DropReason::BadChecksum);
    }
    let (echo, reply) = match parsed.family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    };
    let transport = parsed.transport(request);
    let is_whole = parsed.kind == PacketKind::IcmpRequest && parsed.fragment.is_none();
    if is_whole && transport.first() != Some(&echo) {
        return Err(DropReason::IcmpUnsupported);
    }
    let rest = transport.get(4..);
    let Some(rest) = rest.filter(|_| is_whole && may_answer(parsed)) else {
        return Err(DropReason::Malformed);
    };
    Header::new(parsed.key.dst, parsed.key.src, Protocol::ICMP)
        .packet(&[reply, 0, 0, 0], rest)
        .ok_or(DropReason::Malformed)
}

/// The reset that answers a TCP segment for which there is no connection, from its destination
/// (RFC 9293, section 3.10.7.1).
///
/// None if the segment is itself a reset, a fragment, not TCP, or must not be answered.
pub fn tcp_reset(parsed: &Parsed) -> Option<Vec<u8>> {
    let PacketKind::Tcp(segment) = parsed.kind else {
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
    Header::new(key.src, key.dst, Protocol::TCP).packet(&reset.to_bytes(), &[])
}

/// The smallest packet that starts a flow with this key: a SYN, an empty UDP datagram, an echo
/// request or reply, or a bare IP header.
///
/// None if the addresses are not of one family.
pub fn opening_packet(key: &FlowKey) -> Option<Vec<u8>> {
    if key.src.family() != key.dst.family() {
        return None;
    }
    let transport = match key.protocol {
        Protocol::TCP => {
            let mut syn = TcpHeader::new(key.src_port, key.dst_port, 0, u16::MAX);
            syn.syn = true;
            syn.to_bytes().to_vec()
        }
        Protocol::UDP => {
            let words = [key.src_port, key.dst_port, UDP_HEADER_LEN, 0];
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        }
        Protocol::ICMP => {
            let (icmp_type, id) = match (key.src.family(), key.is_echo_reply()) {
                (Family::V4, false) => (8, key.src_port),
                (Family::V6, false) => (128, key.src_port),
                (Family::V4, true) => (0, key.dst_port),
                (Family::V6, true) => (129, key.dst_port),
            };
            let [high, low] = id.to_be_bytes();
            vec![icmp_type, 0, 0, 0, high, low, 0, 0]
        }
        _ => Vec::new(),
    };
    Header::new(key.src, key.dst, key.protocol).packet(&transport, &[])
}

/// An ICMP error from `from` to the source of `original`, which is unchanged since it was received.
///
/// It quotes as much as RFC 1812, section 4.3.2.3 (576 bytes in all) and RFC 4443, section 2.4(c)
/// (1280 in all) allow. If the original had a partial checksum, so has the quotation; nobody checks
/// it.
///
/// None if no error may be sent about the packet, or `from` is of the other family. The caller must
/// limit the rate (RFC 4443, section 2.4(f)).
pub fn icmp_error(
    problem: IcmpProblem,
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
    let [a, b, c, d] = rest.to_be_bytes();
    let message = [icmp_type, code, 0, 0, a, b, c, d];
    Header {
        traffic_class,
        ..Header::new(from, parsed.key.src, Protocol::ICMP)
    }
    .packet(&message, &original[..quote_len])
}

impl IcmpProblem {
    /// Type, code, and the second word of the ICMP header.
    fn on_the_wire(self, family: Family) -> (u8, u8, u32) {
        match (self, family) {
            (IcmpProblem::TooBig { mtu }, Family::V4) => (3, 4, mtu.min(0xffff)),
            (IcmpProblem::TooBig { mtu }, Family::V6) => (2, 0, mtu.max(1280)),
            (IcmpProblem::AdminProhibited, Family::V4) => (3, 13, 0),
            (IcmpProblem::AdminProhibited, Family::V6) => (1, 1, 0),
            (IcmpProblem::PortUnreachable, Family::V4) => (3, 3, 0),
            (IcmpProblem::PortUnreachable, Family::V6) => (1, 4, 0),
            (IcmpProblem::HostUnreachable, Family::V4) => (3, 1, 0),
            (IcmpProblem::HostUnreachable, Family::V6) => (1, 3, 0),
            (IcmpProblem::NoRoute, Family::V4) => (3, 0, 0),
            (IcmpProblem::NoRoute, Family::V6) => (1, 0, 0),
            (IcmpProblem::TimeExceeded, Family::V4) => (11, 0, 0),
            (IcmpProblem::TimeExceeded, Family::V6) => (3, 0, 0),
        }
    }
}

/// The IP header of a packet of ours; both addresses are of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub src: Addr,
    pub dst: Addr,
    /// As in a key: ICMP stands for that of either family.
    pub protocol: Protocol,
    pub traffic_class: u8,
    pub hop_limit: u8,
}

impl Header {
    pub(super) fn new(src: Addr, dst: Addr, protocol: Protocol) -> Header {
        // IANA "IP Parameters": the recommended default hop limit.
        Header {
            src,
            dst,
            protocol,
            traffic_class: 0,
            hop_limit: 64,
        }
    }

    /// The packet with a transport header and its payload. The checksum field in `transport` is 0
    /// and gets filled in, if it is one of TCP, UDP or ICMP. None if the packet is too big for IP.
    pub(super) fn packet(self, transport: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
        let family = self.src.family();
        let protocol = wire_protocol(self.protocol, family);
        let field = match self.protocol {
            Protocol::TCP => Some(16),
            Protocol::UDP => Some(6),
            Protocol::ICMP => Some(2),
            _ => None,
        };
        let header_len = family.header_len() as usize;
        let len = transport.len() + rest.len();
        let mut packet = Vec::with_capacity(header_len + len);
        match family {
            Family::V4 => packet.extend_from_slice(&self.v4(protocol, u16::try_from(len).ok()?)?),
            Family::V6 => packet.extend_from_slice(&self.v6(protocol, u16::try_from(len).ok()?)),
        }
        packet.extend_from_slice(transport);
        packet.extend_from_slice(rest);
        if let Some(field) = field {
            let transport = packet.get_mut(header_len..)?;
            let mut sum = Sum::default();
            if protocol != Protocol::ICMP {
                sum.add_pseudo_header(self.src, self.dst, protocol, len);
            }
            sum.add(transport);
            transport
                .get_mut(field..field + 2)?
                .copy_from_slice(&sum.checksum().to_be_bytes());
        }
        Some(packet)
    }

    fn v4(self, protocol: Protocol, len: u16) -> Option<[u8; 20]> {
        let (src, dst) = (self.src.last4(), self.dst.last4());
        let mut header =
            Ipv4Header::new(len, self.hop_limit, IpNumber(protocol.0), src, dst).ok()?;
        header.dscp = etherparse::IpDscp::try_new(self.traffic_class >> 2).ok()?;
        // Never fragmented, so it needs no identification (RFC 6864, section 4.1).
        header.dont_fragment = true;
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().as_slice().try_into().ok()
    }

    fn v6(self, protocol: Protocol, len: u16) -> [u8; 40] {
        let header = Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: len,
            next_header: IpNumber(protocol.0),
            hop_limit: self.hop_limit,
            source: *self.src.octets(),
            destination: *self.dst.octets(),
        };
        header.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::icmp_error::{ErrorKind, quoted};
    use crate::packet::{TcpFlags, TcpSegment, parse};
    use etherparse::PacketBuilder;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [192, 0, 2, 9];
    const A6: [u8; 16] = [0xfd; 16];
    const B6: [u8; 16] = [0x20; 16];

    fn parsed(bytes: &[u8]) -> Parsed {
        parse(bytes, Offload::default()).unwrap()
    }

    fn reset_of(bytes: &[u8]) -> Option<(FlowKey, TcpSegment)> {
        let reset = parsed(&tcp_reset(&parsed(bytes))?);
        match reset.kind {
            PacketKind::Tcp(segment) => Some((reset.key, segment)),
            kind => panic!("{kind:?}"),
        }
    }

    #[test]
    fn opening_packets_are_what_they_are_for() {
        let families = [(Addr::v4(A), Addr::v4(B)), (Addr::v6(A6), Addr::v6(B6))];
        let protocols = [
            (Protocol::TCP, 4000, 80),
            (Protocol::UDP, 4000, 53),
            (Protocol::ICMP, 7, 0),
            (Protocol::ICMP, 0, 7),
            (Protocol::ICMP, 0, 1),
            (Protocol::ICMP, 1, 0),
            (Protocol::ICMP, 1, 2),
            (Protocol::ICMP, 2, 1),
            (Protocol(47), 0, 0),
        ];
        for (src, dst) in families {
            for (protocol, src_port, dst_port) in protocols {
                let key = FlowKey {
                    src,
                    dst,
                    src_port,
                    dst_port,
                    protocol,
                };
                let bytes = opening_packet(&key).unwrap();
                let packet = parsed(&bytes);
                assert_eq!(packet.key, key);
                assert!(checksum_ok(&bytes, &packet, Offload::default()), "{key}");
                if let PacketKind::Tcp(segment) = packet.kind {
                    assert_eq!(segment.flags, TcpFlags::SYN);
                }
            }
        }
        let mixed = FlowKey {
            src: Addr::v4(A),
            dst: Addr::v6(B6),
            src_port: 0,
            dst_port: 0,
            protocol: Protocol(47),
        };
        assert_eq!(opening_packet(&mixed), None);
    }

    #[test]
    fn reset_of_a_segment_without_ack() {
        let mut syn = Vec::new();
        let step = PacketBuilder::ipv4(A, B, 60)
            .tcp(4000, 80, u32::MAX, 1000)
            .syn();
        step.write(&mut syn, b"fast open").unwrap();
        let (key, reset) = reset_of(&syn).unwrap();
        assert_eq!(key, parsed(&syn).key.reply());
        assert_eq!((reset.seq, reset.ack), (0, 9));
        assert_eq!(reset.flags, TcpFlags::RST | TcpFlags::ACK);
    }

    #[test]
    fn reset_of_a_segment_with_ack() {
        let mut data = Vec::new();
        let step = PacketBuilder::ipv6(A6, B6, 60)
            .tcp(4000, 80, 5, 1000)
            .ack(77);
        step.write(&mut data, b"data").unwrap();
        let (key, reset) = reset_of(&data).unwrap();
        assert_eq!(key, parsed(&data).key.reply());
        assert_eq!((reset.seq, reset.flags), (77, TcpFlags::RST));
    }

    #[test]
    fn no_reset_of_a_reset() {
        let mut rst = Vec::new();
        let step = PacketBuilder::ipv4(A, B, 60).tcp(4000, 80, 5, 1000).rst();
        step.write(&mut rst, b"").unwrap();
        assert_eq!(reset_of(&rst), None);
    }

    #[test]
    fn echo_reply_has_the_data_of_the_request() {
        let mut request = Vec::new();
        let step = PacketBuilder::ipv6(A6, B6, 60).icmpv6_echo_request(7, 9);
        step.write(&mut request, b"ping").unwrap();
        let plain = Offload::default();
        let reply = echo_reply(&request, &parsed(&request), plain).unwrap();
        let mut expected = Vec::new();
        let step = PacketBuilder::ipv6(B6, A6, 64).icmpv6_echo_reply(7, 9);
        step.write(&mut expected, b"ping").unwrap();
        assert_eq!(reply, expected);

        request[50] ^= 1;
        assert_eq!(
            echo_reply(&request, &parsed(&request), plain),
            Err(DropReason::BadChecksum)
        );
    }

    #[test]
    fn errors_quote_as_much_as_allowed() {
        let mut big = Vec::new();
        PacketBuilder::ipv4(A, B, 60)
            .udp(1, 2)
            .write(&mut big, &[0; 2000])
            .unwrap();
        let error = icmp_error(
            IcmpProblem::TooBig { mtu: 1400 },
            Addr::v4([10, 0, 0, 254]),
            &big,
            &parsed(&big),
        );
        let error = error.unwrap();
        assert_eq!(
            (error.len(), &error[28..], error[1]),
            (576, &big[..548], 0xc0)
        );
        let about = quoted(&error, &parsed(&error)).unwrap();
        assert_eq!(about.key, parsed(&big).key);
        assert_eq!(about.error, ErrorKind::TooBig { mtu: 1400 });

        let mut big = Vec::new();
        PacketBuilder::ipv6(A6, B6, 60)
            .udp(1, 2)
            .write(&mut big, &[0; 2000])
            .unwrap();
        let from = Addr::v6([0x33; 16]);
        let error = icmp_error(IcmpProblem::AdminProhibited, from, &big, &parsed(&big)).unwrap();
        assert_eq!((error.len(), &error[40..42]), (1280, &[1u8, 1][..]));
        assert_eq!(
            quoted(&error, &parsed(&error)).unwrap().error,
            ErrorKind::Unreachable
        );
        let other_family = icmp_error(IcmpProblem::NoRoute, Addr::v4(A), &big, &parsed(&big));
        assert_eq!(other_family, None);
    }

    #[test]
    fn what_is_not_answered() {
        let answers = |src, dst| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4(src, dst, 60)
                .udp(1, 2)
                .write(&mut bytes, b"")
                .unwrap();
            may_answer(&parsed(&bytes))
        };
        assert!(answers(A, B));
        assert!(!answers([127, 0, 0, 1], B));
        assert!(!answers([224, 0, 0, 1], B));
        assert!(!answers(A, [224, 0, 0, 1]));
        assert!(!answers(A, [255; 4]));
        let icmp = |icmp_type| {
            let mut bytes = Vec::new();
            let step = PacketBuilder::ipv4(A, B, 60).icmpv4_raw(icmp_type, 0, [0; 4]);
            step.write(&mut bytes, &[0x45; 28]).unwrap();
            may_answer(&parsed(&bytes))
        };
        assert!(icmp(8));
        assert!(!icmp(3));
        assert!(!icmp(5), "a redirect");
    }
}
