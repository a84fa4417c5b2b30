//! ICMP errors and the packet that they quote (RFC 792, RFC 4443; NAT: RFC 5508, section 4).

use super::ip::{self, Length};
use super::translate::{Edited, Place};
use super::transport::{self, QuotedTransport};
use super::{PacketKind, Parsed, u16_at, u32_at};
use crate::event::{DropReason, Offload};
use crate::flow::{Addr, Family, FlowKey};

/// An ICMP error and the packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The flow of the quoted packet, in the direction in which it was sent: the error goes to its
    /// source.
    pub key: FlowKey,
    /// The error that the quoted packet caused.
    pub error: ErrorKind,
    /// Sequence number of the quoted segment, if it is TCP. One outside the range sent and not yet
    /// acknowledged is a forgery (RFC 5927, section 4.1).
    pub tcp_seq: Option<u32>,
}

/// The kinds of ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Fragmentation needed, or packet too big.
    TooBig {
        /// MTU of the next hop in bytes; 0 from a router older than RFC 1191.
        mtu: u32,
    },
    /// Destination unreachable, for any other reason.
    Unreachable,
    /// Time exceeded: hop limit or reassembly.
    TimeExceeded,
    /// Parameter problem.
    Other,
}

/// Reads the packet that an ICMP error quotes, which may be cut off after 8 bytes of transport.
///
/// # Errors
/// - [`DropReason::Truncated`]: less is quoted than RFC 792 and RFC 4443 require;
/// - [`DropReason::IcmpUnrelated`]: not an ICMP error, or it quotes a later fragment or another
///   ICMP error, which belong to no session;
/// - [`DropReason::Malformed`], [`DropReason::Martian`]: as [`super::parse`], for the quoted
///   header.
pub fn quoted(bytes: &[u8], parsed: &Parsed) -> Result<Quoted, DropReason> {
    let located = locate(bytes, parsed)?;
    Ok(Quoted {
        key: located.key,
        error: error_kind(parsed.family, parsed.transport(bytes)),
        tcp_seq: located.transport.tcp_seq,
    })
}

/// Translates an ICMP error: its own addresses become `src` and `dst`, and the packet that it
/// quotes gets the addresses and ports (or ICMP identifier) of `quoted`, all of the same family.
///
/// All checksums that are within the message are updated incrementally. Nothing is changed if the
/// quoted packet can't be read ([`quoted`] says why).
pub fn translate_error(
    bytes: &mut [u8],
    parsed: &Parsed,
    offload: Offload,
    src: Addr,
    dst: Addr,
    quoted: &FlowKey,
) {
    let Ok(inner) = locate(bytes, parsed) else {
        return;
    };
    let end = bytes.len().min(parsed.total_len as usize);
    let Some(packet) = bytes.get_mut(..end) else {
        return;
    };
    let inner = inner
        .place
        .translate(packet, Offload::default(), quoted, Edited::default());
    let edited = Edited {
        payload: inner,
        ..Edited::default()
    };
    let outer = FlowKey {
        src,
        dst,
        ..parsed.key
    };
    Place::of(parsed).translate(packet, offload, &outer, edited);
}

pub(super) const ICMP_HEADER_LEN: usize = 8;

/// The quoted packet: its flow, and its place in the buffer.
struct Located {
    key: FlowKey,
    place: Place,
    transport: QuotedTransport,
}

fn locate(bytes: &[u8], parsed: &Parsed) -> Result<Located, DropReason> {
    if parsed.kind != PacketKind::IcmpError {
        return Err(DropReason::IcmpUnrelated);
    }
    let start = usize::from(parsed.header_len) + ICMP_HEADER_LEN;
    let packet = parsed
        .transport(bytes)
        .get(ICMP_HEADER_LEN..)
        .ok_or(DropReason::Truncated)?;
    let ip = ip::parse(packet, Length::Quoted)?;
    if ip.family != parsed.family {
        return Err(DropReason::Malformed);
    }
    if ip.is_later_fragment() {
        return Err(DropReason::IcmpUnrelated);
    }
    let rest = packet.get(ip.header_len..).ok_or(DropReason::Truncated)?;
    let transport = transport::parse_quoted(&ip, rest)?;
    Ok(Located {
        key: FlowKey {
            src: ip.src,
            dst: ip.dst,
            src_port: transport.src_port,
            dst_port: transport.dst_port,
            protocol: transport::key_protocol(ip.protocol),
        },
        place: Place {
            ip: start,
            transport: start + ip.header_len,
            family: ip.family,
            fields: transport.fields,
        },
        transport,
    })
}

fn error_kind(family: Family, message: &[u8]) -> ErrorKind {
    let (icmp_type, code) = match *message {
        [icmp_type, code, ..] => (icmp_type, code),
        _ => return ErrorKind::Other,
    };
    match (family, icmp_type, code) {
        (Family::V4, 3, 4) => ErrorKind::TooBig {
            mtu: u16_at(message, 6).map_or(0, u32::from),
        },
        (Family::V6, 2, _) => ErrorKind::TooBig {
            mtu: u32_at(message, 4).unwrap_or(0),
        },
        (Family::V4, 3, _) | (Family::V6, 1, _) => ErrorKind::Unreachable,
        (Family::V4, 11, _) | (Family::V6, 3, _) => ErrorKind::TimeExceeded,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use etherparse::PacketBuilder;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [192, 0, 2, 9];

    fn quote() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(A, B, 60)
            .udp(4000, 53)
            .write(&mut bytes, b"query")
            .unwrap();
        bytes
    }

    fn read(icmp_type: u8, code: u8, rest: [u8; 4], quote: &[u8]) -> Result<Quoted, DropReason> {
        let mut bytes = Vec::new();
        let step = PacketBuilder::ipv4(B, A, 60).icmpv4_raw(icmp_type, code, rest);
        step.write(&mut bytes, quote).unwrap();
        quoted(&bytes, &parse(&bytes, Offload::default()).unwrap())
    }

    #[test]
    fn kinds_of_errors() {
        let kind = |icmp_type, code| read(icmp_type, code, [0, 0, 2, 0], &quote()).unwrap().error;
        assert_eq!(kind(3, 4), ErrorKind::TooBig { mtu: 512 });
        assert_eq!(kind(3, 1), ErrorKind::Unreachable);
        assert_eq!(kind(11, 0), ErrorKind::TimeExceeded);
        assert_eq!(kind(12, 0), ErrorKind::Other);
    }

    #[test]
    fn the_length_of_a_quoted_packet_may_exceed_the_quotation() {
        let mut quote = quote();
        quote.truncate(28);
        let key = read(3, 3, [0; 4], &quote).unwrap().key;
        assert_eq!((key.src, key.dst), (Addr::v4(A), Addr::v4(B)));
        assert_eq!((key.src_port, key.dst_port), (4000, 53));
    }

    #[test]
    fn what_is_refused() {
        let refuse = |quote: &[u8]| read(3, 3, [0; 4], quote).unwrap_err();
        assert_eq!(refuse(b""), DropReason::Truncated);
        assert_eq!(refuse(&quote()[..19]), DropReason::Truncated);
        assert_eq!(refuse(&quote()[..27]), DropReason::Truncated);

        let mut later_fragment = quote();
        later_fragment[7] = 2;
        assert_eq!(refuse(&later_fragment), DropReason::IcmpUnrelated);

        let mut error_about_error = Vec::new();
        let step = PacketBuilder::ipv4(A, B, 60).icmpv4_raw(3, 3, [0; 4]);
        step.write(&mut error_about_error, &quote()).unwrap();
        assert_eq!(refuse(&error_about_error), DropReason::IcmpUnrelated);

        let mut v6 = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 60)
            .udp(1, 2)
            .write(&mut v6, b"")
            .unwrap();
        assert_eq!(refuse(&v6), DropReason::Malformed);

        assert_eq!(read(8, 0, [0; 4], &quote()), Err(DropReason::IcmpUnrelated));
    }
}
