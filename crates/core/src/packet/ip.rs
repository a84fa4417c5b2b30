//! IP headers of both families, down to where the transport begins.

use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
};

use crate::event::DropReason;
use crate::flow::{Addr, Family, Protocol};

/// The place of a fragment in its datagram.
///
/// Fragments are of one datagram if addresses and `id` are equal, and for IPv4 also the protocol
/// (RFC 791, section 3.2). The protocol of IPv6 is that of the first fragment alone: in later ones
/// it may be an extension header (RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification; 16 bits of it in IPv4.
    pub id: u32,
    /// Where its data belongs, in bytes from the start of the datagram's fragmented part.
    pub offset: u16,
    /// Whether it is not the last.
    pub more: bool,
    /// Bytes of the fragmented part that it carries; `offset + len` is at most 65535.
    pub len: u16,
}

/// How the length in the header relates to the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// The buffer holds the whole packet.
    Exact,
    /// As before, but a length of 0 means that of the buffer: it was too big for the field.
    Super,
    /// The packet is quoted in an ICMP error: the length says nothing about the buffer.
    Quoted,
}

/// A validated IP header with its extension headers.
///
/// `header_len <= total_len <=` the length of the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub family: Family,
    pub src: Addr,
    pub dst: Addr,
    /// The protocol number on the wire, past the extension headers.
    pub protocol: Protocol,
    pub header_len: usize,
    pub total_len: usize,
    pub hop_limit: u8,
    pub dont_fragment: bool,
    pub fragment: Option<Fragment>,
    /// Whether a routing header lists addresses that the packet must still visit.
    pub has_segments_left: bool,
}

impl Ip {
    /// Whether this is a fragment other than the first.
    pub(super) fn is_later_fragment(&self) -> bool {
        is_later(self.fragment)
    }
}

fn is_later(fragment: Option<Fragment>) -> bool {
    fragment.is_some_and(|fragment| fragment.offset > 0)
}

/// The progress of reading the headers of an IPv6 packet, and their content so far.
struct Chain {
    /// The next header.
    protocol: Protocol,
    header_len: usize,
    fragment: Option<Fragment>,
    has_segments_left: bool,
}

#[inline]
pub(super) fn parse(bytes: &[u8], length: Length) -> Result<Ip, DropReason> {
    match version(bytes)? {
        Family::V4 => parse_v4(bytes, length),
        Family::V6 => parse_v6(bytes, length),
    }
}

/// The family that the packet claims.
#[inline]
pub(super) fn version(bytes: &[u8]) -> Result<Family, DropReason> {
    match bytes.first().ok_or(DropReason::Truncated)? >> 4 {
        4 => Ok(Family::V4),
        6 => Ok(Family::V6),
        _ => Err(DropReason::Malformed),
    }
}

#[inline(always)]
pub(super) fn parse_v4(bytes: &[u8], length: Length) -> Result<Ip, DropReason> {
    use etherparse::err::ipv4::HeaderSliceError;
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|error| match error {
        HeaderSliceError::Len(_) => DropReason::Truncated,
        HeaderSliceError::Content(_) => DropReason::Malformed,
    })?;
    let header_len = header.slice().len();
    let total_len = total_len(
        usize::from(header.total_len()),
        header_len,
        bytes.len(),
        length,
    )?;
    if header.protocol() == IpNumber::IPV6_ICMP {
        return Err(DropReason::Malformed);
    }
    if header_len > 20 {
        check_v4_options(header.options())?;
    }
    let offset = header.fragments_offset().value() * 8;
    let mut fragment = None;
    if offset > 0 || header.more_fragments() {
        fragment = Some(Fragment {
            id: u32::from(header.identification()),
            offset,
            more: header.more_fragments(),
            len: fragment_len(total_len - header_len)?,
        });
    }
    if let Some(fragment) = fragment
        && length != Length::Quoted
    {
        check_fragment(fragment, header_len)?;
    }
    Ok(Ip {
        family: Family::V4,
        src: Addr::v4(header.source()),
        dst: Addr::v4(header.destination()),
        protocol: Protocol(header.protocol().0),
        header_len,
        total_len,
        hop_limit: header.ttl(),
        dont_fragment: header.dont_fragment(),
        fragment,
        has_segments_left: false,
    })
}

#[inline(always)]
pub(super) fn parse_v6(bytes: &[u8], length: Length) -> Result<Ip, DropReason> {
    const HEADER_LEN: usize = 40;
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| DropReason::Truncated)?;
    let payload_len = usize::from(header.payload_length());
    let declared = if payload_len == 0 && length == Length::Super {
        0
    } else {
        HEADER_LEN + payload_len
    };
    let total_len = total_len(declared, HEADER_LEN, bytes.len(), length)?;
    let (src, dst) = (Addr::v6(header.source()), Addr::v6(header.destination()));
    if src.is_v4() || dst.is_v4() {
        return Err(DropReason::Martian);
    }
    let mut chain = Chain {
        protocol: Protocol(header.next_header().0),
        header_len: HEADER_LEN,
        fragment: None,
        has_segments_left: false,
    };
    if is_extension(chain.protocol) {
        walk_extensions(&mut chain, &bytes[..total_len], length)?;
    }
    if chain.protocol == Protocol::ICMP {
        return Err(DropReason::Malformed);
    }
    Ok(Ip {
        family: Family::V6,
        src,
        dst,
        protocol: chain.protocol,
        header_len: chain.header_len,
        total_len,
        hop_limit: header.hop_limit(),
        dont_fragment: true,
        fragment: chain.fragment,
        has_segments_left: chain.has_segments_left,
    })
}

/// The real length of the packet; `header_len <=` it `<= buffer`.
#[inline]
fn total_len(
    declared: usize,
    header_len: usize,
    buffer: usize,
    length: Length,
) -> Result<usize, DropReason> {
    match length {
        Length::Quoted => Ok(buffer),
        Length::Super if declared == 0 => Ok(buffer),
        _ if declared < header_len => Err(DropReason::Malformed),
        _ if declared > buffer => Err(DropReason::Truncated),
        _ => Ok(declared),
    }
}

/// RFC 791, section 3.1. With a source route, the header does not show the real destination.
#[cold]
fn check_v4_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        options = match *options {
            [] | [END, ..] => return Ok(()),
            [NOP, ref rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(DropReason::Martian),
            [_, len, ..] if len >= 2 => options
                .get(usize::from(len)..)
                .ok_or(DropReason::Malformed)?,
            _ => return Err(DropReason::Malformed),
        };
    }
}

fn fragment_len(len: usize) -> Result<u16, DropReason> {
    u16::try_from(len).map_err(|_| DropReason::Malformed)
}

fn check_fragment(fragment: Fragment, overhead: usize) -> Result<(), DropReason> {
    let end = overhead + usize::from(fragment.offset) + usize::from(fragment.len);
    let whole_blocks = fragment.len.is_multiple_of(8);
    if fragment.len == 0 || end > 65535 || (fragment.more && !whole_blocks) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

fn is_extension(protocol: Protocol) -> bool {
    matches!(
        IpNumber(protocol.0),
        IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_FRAGMENTATION_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS
    )
}

/// Advances `chain` past the extension headers that `packet` has (RFC 8200, section 4).
#[cold]
fn walk_extensions(chain: &mut Chain, packet: &[u8], length: Length) -> Result<(), DropReason> {
    const MAX_HEADERS: usize = 8;
    let mut fragmented = false;
    for index in 0..=MAX_HEADERS {
        if !is_extension(chain.protocol) || is_later(chain.fragment) {
            return Ok(());
        }
        if index == MAX_HEADERS {
            break;
        }
        let rest = packet
            .get(chain.header_len..)
            .ok_or(DropReason::Truncated)?;
        if chain.protocol.0 == IpNumber::IPV6_FRAGMENTATION_HEADER.0 {
            if std::mem::replace(&mut fragmented, true) {
                return Err(DropReason::Malformed);
            }
            enter_fragment(chain, rest, packet.len(), length)?;
            continue;
        }
        // RFC 8200, section 4.1: it comes first.
        let hop_by_hop = chain.protocol.0 == IpNumber::IPV6_HEADER_HOP_BY_HOP.0;
        if hop_by_hop && index > 0 {
            return Err(DropReason::Malformed);
        }
        let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| DropReason::Truncated)?;
        if hop_by_hop {
            check_hop_by_hop(header.payload())?;
        } else if chain.protocol.0 == IpNumber::IPV6_ROUTE_HEADER.0 {
            chain.has_segments_left |= check_routing(header.payload())?;
        }
        chain.header_len += header.slice().len();
        chain.protocol = Protocol(header.next_header().0);
    }
    Err(DropReason::Malformed)
}

fn enter_fragment(
    chain: &mut Chain,
    rest: &[u8],
    total_len: usize,
    length: Length,
) -> Result<(), DropReason> {
    let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| DropReason::Truncated)?;
    let overhead = chain.header_len - 40;
    chain.header_len += header.slice().len();
    chain.protocol = Protocol(header.next_header().0);
    if !header.is_fragmenting_payload() {
        return Ok(());
    }
    let fragment = Fragment {
        id: header.identification(),
        offset: header.fragment_offset().value() * 8,
        more: header.more_fragments(),
        len: fragment_len(total_len - chain.header_len)?,
    };
    chain.fragment = Some(fragment);
    if length == Length::Quoted {
        Ok(())
    } else {
        check_fragment(fragment, overhead)
    }
}

/// Refuses jumbograms (RFC 2675) and options with inconsistent lengths.
fn check_hop_by_hop(mut options: &[u8]) -> Result<(), DropReason> {
    const PAD1: u8 = 0;
    const JUMBO_PAYLOAD: u8 = 0xc2;
    loop {
        options = match *options {
            [] => return Ok(()),
            [PAD1, ref rest @ ..] => rest,
            [JUMBO_PAYLOAD, ..] | [_] => return Err(DropReason::Malformed),
            [_, len, ref rest @ ..] => rest.get(usize::from(len)..).ok_or(DropReason::Malformed)?,
        };
    }
}

/// `payload` begins with the routing type. Returns whether segments are left: then the destination
/// isn't the final one.
fn check_routing(payload: &[u8]) -> Result<bool, DropReason> {
    match *payload {
        [0, ..] => Err(DropReason::RoutingHeader),
        [_, segments_left, ..] => Ok(segments_left > 0),
        _ => Err(DropReason::Malformed),
    }
}
