//! Transport headers: TCP, UDP and ICMP of both families.

use etherparse::TcpHeaderSlice;

use super::ip::Ip;
use super::{PacketKind, Parsed, TcpFlags, TcpSegment, u16_at};
use crate::event::{DropReason, Offload};
use crate::flow::{Family, FlowKey, Protocol, echo_port};

/// The parsed header above IP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transport {
    pub kind: PacketKind,
    pub src_port: u16,
    pub dst_port: u16,
}

impl Transport {
    fn without_ports(kind: PacketKind) -> Transport {
        Transport {
            kind,
            src_port: 0,
            dst_port: 0,
        }
    }

    /// The flow key of the packet whose IP header is `ip`.
    #[inline]
    pub(super) fn key(&self, ip: &Ip) -> FlowKey {
        FlowKey {
            src: ip.src,
            dst: ip.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: key_protocol(ip.protocol),
        }
    }
}

/// The fields of a transport header that a translation edits, as offsets into it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    /// The source port, or the identifier of an echo request.
    pub src_port: Option<usize>,
    /// The destination port, or the identifier of an echo reply.
    pub dst_port: Option<usize>,
    /// The offset of the checksum from the transport header.
    pub checksum: usize,
    /// Whether the checksum covers the pseudo-header.
    pub pseudo_header: bool,
    /// Whether a checksum of 0 means that there is none.
    pub zero_is_none: bool,
}

impl Fields {
    const TCP: Fields = Fields {
        src_port: Some(0),
        dst_port: Some(2),
        checksum: 16,
        pseudo_header: true,
        zero_is_none: false,
    };
    const UDP: Fields = Fields {
        checksum: 6,
        zero_is_none: true,
        ..Self::TCP
    };
    const ICMP: Fields = Fields {
        src_port: None,
        dst_port: None,
        checksum: 2,
        ..Self::TCP
    };
    const ICMP_IDENTIFIER: usize = 4;
    /// UDP-Lite (RFC 3828) and DCCP (RFC 4340), whose ports stay: their checksums cover the
    /// addresses.
    const CHECKSUM_ONLY: Fields = Fields {
        src_port: None,
        dst_port: None,
        checksum: 6,
        ..Self::TCP
    };

    /// The fields that a translation of the packet edits; none if there is nothing to edit above
    /// IP.
    #[inline]
    pub(super) fn to_translate(parsed: &Parsed) -> Option<Fields> {
        match parsed.kind {
            PacketKind::Other => Self::of_other(parsed.key.protocol),
            kind => Self::of(kind, parsed.family),
        }
    }

    fn of_other(protocol: Protocol) -> Option<Fields> {
        const DCCP: Protocol = Protocol(33);
        const UDP_LITE: Protocol = Protocol(136);
        [DCCP, UDP_LITE]
            .contains(&protocol)
            .then_some(Self::CHECKSUM_ONLY)
    }

    /// The same for those protocols whose whole header the gateway knows. None if there is nothing
    /// to edit above IP.
    #[inline]
    pub(super) fn of(kind: PacketKind, family: Family) -> Option<Fields> {
        // RFC 4443, section 2.3; ICMP for IPv4 has no pseudo-header (RFC 792).
        let icmp = Fields {
            pseudo_header: family == Family::V6,
            ..Self::ICMP
        };
        match kind {
            PacketKind::Tcp(_) => Some(Self::TCP),
            PacketKind::Udp => Some(Self::UDP),
            PacketKind::IcmpRequest => Some(Fields {
                src_port: Some(Self::ICMP_IDENTIFIER),
                ..icmp
            }),
            PacketKind::IcmpReply => Some(Fields {
                dst_port: Some(Self::ICMP_IDENTIFIER),
                ..icmp
            }),
            PacketKind::IcmpError | PacketKind::IcmpOther => Some(icmp),
            PacketKind::Other | PacketKind::LaterFragment => None,
        }
    }
}

/// A transport header that is quoted in an ICMP error; only 8 bytes of it need exist.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuotedTransport {
    pub fields: Option<Fields>,
    pub src_port: u16,
    pub dst_port: u16,
    pub tcp_seq: Option<u32>,
}

/// Reads a quoted transport header; `bytes` begin with it and may be cut off.
pub(super) fn parse_quoted(ip: &Ip, bytes: &[u8]) -> Result<QuotedTransport, DropReason> {
    let protocol = key_protocol(ip.protocol);
    let none = QuotedTransport {
        fields: None,
        src_port: 0,
        dst_port: 0,
        tcp_seq: None,
    };
    if !protocol.has_ports() {
        let fields = Fields::of_other(protocol);
        return Ok(QuotedTransport { fields, ..none });
    }
    let &[a, b, c, d, e, f, g, h] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let ports = QuotedTransport {
        src_port: u16::from_be_bytes([a, b]),
        dst_port: u16::from_be_bytes([c, d]),
        ..none
    };
    if protocol == Protocol::TCP {
        let tcp_seq = Some(u32::from_be_bytes([e, f, g, h]));
        return Ok(QuotedTransport {
            fields: Some(Fields::TCP),
            tcp_seq,
            ..ports
        });
    }
    if protocol == Protocol::UDP {
        return Ok(QuotedTransport {
            fields: Some(Fields::UDP),
            ..ports
        });
    }
    let (kind, identifier) = (icmp_kind(ip.family, a), u16::from_be_bytes([e, f]));
    let fields = Fields::of(kind, ip.family);
    match kind {
        PacketKind::IcmpRequest => Ok(QuotedTransport {
            fields,
            src_port: identifier,
            dst_port: echo_port(identifier),
            ..none
        }),
        PacketKind::IcmpReply => Ok(QuotedTransport {
            fields,
            src_port: echo_port(identifier),
            dst_port: identifier,
            ..none
        }),
        _ => Err(DropReason::IcmpUnrelated),
    }
}

/// The protocol as stored in a [`FlowKey`].
#[inline]
pub(super) fn key_protocol(wire: Protocol) -> Protocol {
    if wire == Protocol::ICMPV6 {
        Protocol::ICMP
    } else {
        wire
    }
}

/// Validates the transport header; `bytes` begin with it and end with the packet.
#[inline(always)]
pub(super) fn parse(ip: &Ip, bytes: &[u8], offload: Offload) -> Result<Transport, DropReason> {
    let protocol = key_protocol(ip.protocol);
    if ip.is_later_fragment() {
        return parse_later_fragment(ip);
    }
    match protocol {
        Protocol::TCP => parse_tcp(bytes),
        Protocol::UDP => parse_udp(ip, bytes, offload),
        Protocol::ICMP => parse_icmp(ip.family, bytes),
        _ => Ok(Transport::without_ports(PacketKind::Other)),
    }
}

/// The kind of an ICMP message, by its type.
pub(super) fn icmp_kind(family: Family, icmp_type: u8) -> PacketKind {
    match (family, icmp_type) {
        // Echo, and of IPv4 the requests for a timestamp, for information and for an address mask,
        // which have an identifier in the same place (RFC 792, RFC 950; RFC 5508, REQ-1).
        (Family::V4, 8 | 13 | 15 | 17) | (Family::V6, 128) => PacketKind::IcmpRequest,
        (Family::V4, 0 | 14 | 16 | 18) | (Family::V6, 129) => PacketKind::IcmpReply,
        // RFC 792 and RFC 4443. Redirect and source quench are errors too (RFC 1122, section
        // 3.2.2), but not to be forwarded (RFC 1812, section 5.2.7.2; RFC 6633, section 4).
        (Family::V4, 3 | 11 | 12) | (Family::V6, 1..=4) => PacketKind::IcmpError,
        _ => PacketKind::IcmpOther,
    }
}

fn parse_later_fragment(ip: &Ip) -> Result<Transport, DropReason> {
    // RFC 1858, section 3.2.2: the only purpose of such a fragment is to overwrite the flags of the
    // first.
    if ip.protocol == Protocol::TCP && ip.fragment.is_some_and(|fragment| fragment.offset < 20) {
        return Err(DropReason::FragmentOverlap);
    }
    Ok(Transport::without_ports(PacketKind::LaterFragment))
}

#[inline(always)]
fn parse_tcp(bytes: &[u8]) -> Result<Transport, DropReason> {
    use etherparse::err::tcp::HeaderSliceError;
    let header = TcpHeaderSlice::from_slice(bytes).map_err(|error| match error {
        HeaderSliceError::Len(_) => DropReason::Truncated,
        HeaderSliceError::Content(_) => DropReason::Malformed,
    })?;
    let flags = TcpFlags(header.slice()[13]);
    check_flags(flags)?;
    let segment = TcpSegment {
        seq: header.sequence_number(),
        ack: header.acknowledgment_number(),
        payload_len: (bytes.len() - header.slice().len()) as u32,
        window: header.window_size(),
        flags,
        window_scale: if flags.syn() {
            window_scale(header.options())
        } else {
            None
        },
    };
    Ok(Transport {
        kind: PacketKind::Tcp(segment),
        src_port: header.source_port(),
        dst_port: header.destination_port(),
    })
}

/// A segment opens, goes on or ends, and all but the first and a reset acknowledge something
/// (RFC 9293, section 3.10.7).
#[inline(always)]
fn check_flags(flags: TcpFlags) -> Result<(), DropReason> {
    const ACK: u8 = TcpFlags::ACK.0;
    const SYN: u8 = TcpFlags::SYN.0;
    const RST: u8 = TcpFlags::RST.0;
    const FIN: u8 = TcpFlags::FIN.0;
    const SYN_ACK: u8 = SYN | ACK;
    const RST_ACK: u8 = RST | ACK;
    const FIN_ACK: u8 = FIN | ACK;
    match flags.0 & (ACK | SYN | RST | FIN) {
        ACK | SYN | SYN_ACK | RST | RST_ACK | FIN_ACK => Ok(()),
        _ => Err(DropReason::TcpFlags),
    }
}

/// Inconsistent options end the walk: the receiver judges the packet.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    const MAX_SHIFT: u8 = 14;
    loop {
        options = match *options {
            [] | [END, ..] => return None,
            [NOP, ref rest @ ..] => rest,
            [WINDOW_SCALE, 3, shift, ..] => return Some(shift.min(MAX_SHIFT)),
            [_, len, ..] if len >= 2 => options.get(usize::from(len)..)?,
            _ => return None,
        };
    }
}

#[inline(always)]
fn parse_udp(ip: &Ip, bytes: &[u8], offload: Offload) -> Result<Transport, DropReason> {
    const HEADER_LEN: usize = 8;
    let &[s0, s1, d0, d1, l0, l1, _, _, ..] = bytes else {
        return Err(DropReason::Truncated);
    };
    match usize::from(u16::from_be_bytes([l0, l1])) {
        0 if offload.segment_size != 0 => {}
        0..HEADER_LEN => return Err(DropReason::Malformed),
        length if length > bytes.len() && ip.fragment.is_none() => {
            return Err(DropReason::Truncated);
        }
        _ => {}
    }
    Ok(Transport {
        kind: PacketKind::Udp,
        src_port: u16::from_be_bytes([s0, s1]),
        dst_port: u16::from_be_bytes([d0, d1]),
    })
}

fn parse_icmp(family: Family, bytes: &[u8]) -> Result<Transport, DropReason> {
    const IDENTIFIER: usize = 4;
    // Every message that is forwarded has 8 bytes of header (RFC 792; RFC 4443).
    let (Some(&icmp_type), Some(_)) = (bytes.first(), bytes.get(7)) else {
        return Err(DropReason::Truncated);
    };
    let identifier = u16_at(bytes, IDENTIFIER).unwrap_or(0);
    let kind = icmp_kind(family, icmp_type);
    Ok(match kind {
        PacketKind::IcmpRequest => Transport {
            kind,
            src_port: identifier,
            dst_port: echo_port(identifier),
        },
        PacketKind::IcmpReply => Transport {
            kind,
            src_port: echo_port(identifier),
            dst_port: identifier,
        },
        _ => Transport::without_ports(kind),
    })
}
