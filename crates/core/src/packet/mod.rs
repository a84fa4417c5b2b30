//! Packets: validated once ([`parse`]), then edited in place.
//!
//! - [`parse`] and [`checksum_ok`]: a packet that was received;
//! - [`translate()`], [`add_hop_limit`]: edits in place, with incremental checksums;
//! - [`icmp_error`]: ICMP errors and the packet that they quote;
//! - [`build`]: packets that the gateway makes itself;
//! - [`neighbor`]: ARP and Neighbor Discovery frames.

pub mod build;
pub mod checksum;
mod header;
pub mod icmp_error;
mod ip;
pub mod neighbor;
mod translate;
mod transport;

#[cfg(test)]
mod tests;

pub use header::{clamp_mss, identification, set_identification};
pub use ip::Fragment;
pub use translate::{
    add_hop_limit, give_back_options, take_hop_limit, translate, translate_with_hop,
};

use checksum::Sum;

use crate::event::{DropReason, Offload, PartialChecksum};
use crate::flow::{Addr, Family, FlowKey, Protocol};

/// All facts about a packet that the core needs, validated against its bytes.
///
/// It describes only the bytes that it was parsed from: edit them only with the functions of this
/// module. After a translation the key is the old one; everything else still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The flow, as this packet shows it. Both ports are 0 in later fragments, ICMP errors and
    /// protocols without ports.
    pub key: FlowKey,
    /// The IP version.
    pub family: Family,
    /// The kind of packet above IP.
    pub kind: PacketKind,
    /// Offset of the transport header (of the fragment's data, if a later fragment), in bytes.
    pub header_len: u16,
    /// Length of the packet by its IP header, in bytes; never more than the buffer.
    pub total_len: u32,
    /// TTL or hop limit as received.
    pub hop_limit: u8,
    /// IPv4 DF; always true for IPv6, which only its source may fragment.
    pub dont_fragment: bool,
    /// Set if the packet is a part of a bigger one; not for an atomic fragment (RFC 6946).
    pub fragment: Option<Fragment>,
    /// Whether an IPv6 routing header has segments left: the destination is not the final one.
    pub has_segments_left: bool,
}

impl Parsed {
    /// The transport header and its payload, to the end of the packet.
    pub fn transport<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.len().min(self.total_len as usize);
        bytes.get(usize::from(self.header_len)..end).unwrap_or(&[])
    }
}

/// The kind of a packet above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// TCP, with the fields that a tracker needs.
    Tcp(TcpSegment),
    /// UDP.
    Udp,
    /// An ICMP query: an echo request, or another that has an identifier.
    IcmpRequest,
    /// The reply to one.
    IcmpReply,
    /// An ICMP error about another packet; see [`icmp_error`].
    IcmpError,
    /// Any other ICMP message.
    IcmpOther,
    /// A protocol without ports.
    Other,
    /// A fragment other than the first: without transport header.
    LaterFragment,
}

/// The fields of a TCP segment that a tracker needs (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Sequence number of the first byte, or of the SYN.
    pub seq: u32,
    /// Acknowledgment number; meaningless unless the ACK flag is set.
    pub ack: u32,
    /// Payload bytes in this packet.
    pub payload_len: u32,
    /// Window from the header, unscaled.
    pub window: u16,
    /// The flags: one of the combinations that a sender may use.
    pub flags: TcpFlags,
    /// Shift of the window scale option, at most 14, on a SYN that has it (RFC 7323, section 2).
    pub window_scale: Option<u8>,
}

impl TcpSegment {
    /// The sequence space that the segment takes: payload, SYN and FIN (RFC 9293, section 3.4).
    pub fn sequence_len(&self) -> u32 {
        self.payload_len + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }
}

/// The flag byte of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgment field counts.
    pub const ACK: TcpFlags = TcpFlags(0x10);

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }
}

impl std::ops::BitOr for TcpFlags {
    type Output = TcpFlags;

    fn bitor(self, other: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | other.0)
    }
}

/// Validates the IP packet at the start of `bytes`; bytes beyond its length are allowed.
///
/// The IPv4 header checksum is not verified (the kernel has done it), nor is the transport
/// checksum: see [`checksum_ok`]. [`martian`] checks the addresses.
///
/// # Errors
/// - [`DropReason::Truncated`]: shorter than its headers say; a first fragment without its whole
///   transport header (RFC 1858, RFC 7112);
/// - [`DropReason::Malformed`]: a field that no sender may use; a jumbogram; an extension header
///   chain of more than 8;
/// - [`DropReason::RoutingHeader`]: an IPv6 routing header of type 0 (RFC 5095);
/// - [`DropReason::Martian`]: IPv4 source route; an IPv4-mapped address in IPv6;
/// - [`DropReason::TcpFlags`]: a combination of TCP flags that nothing sends;
/// - [`DropReason::FragmentOverlap`]: a fragment that could overwrite a TCP header (RFC 1858,
///   section 3.2.2).
#[inline]
pub fn parse(bytes: &[u8], offload: Offload) -> Result<Parsed, DropReason> {
    let length = if offload.segment_size == 0 {
        ip::Length::Exact
    } else {
        ip::Length::Super
    };
    // Each family has its own path: a header that may be of either would be copied byte by byte.
    match ip::version(bytes)? {
        Family::V4 => parse_transport(bytes, offload, ip::parse_v4(bytes, length)?),
        Family::V6 => parse_transport(bytes, offload, ip::parse_v6(bytes, length)?),
    }
}

#[inline(always)]
fn parse_transport(bytes: &[u8], offload: Offload, ip: ip::Ip) -> Result<Parsed, DropReason> {
    let transport = transport::parse(&ip, &bytes[ip.header_len..ip.total_len], offload)?;
    Ok(Parsed {
        key: transport.key(&ip),
        family: ip.family,
        kind: transport.kind,
        // A chain of 8 extension headers has at most 40 + 8 * 2048 bytes.
        header_len: ip.header_len as u16,
        total_len: ip.total_len as u32,
        hop_limit: ip.hop_limit,
        dont_fragment: ip.dont_fragment,
        fragment: ip.fragment,
        has_segments_left: ip.has_segments_left,
    })
}

/// Whether the transport checksum is right, as far as this packet alone can tell.
///
/// True for fragments, for packets with segments left, and for protocols whose checksum the gateway
/// doesn't know; for a packet whose checksum the kernel has verified or is still to complete; and
/// for UDP without checksum, which RFC 6936, section 5 has middleboxes forward over IPv6 too.
pub fn checksum_ok(bytes: &[u8], parsed: &Parsed, offload: Offload) -> bool {
    // With segments left, the checksum is that for the final destination (RFC 8200, section 8.1).
    if offload.checksum_verified || parsed.fragment.is_some() || parsed.has_segments_left {
        return true;
    }
    let Some(field) = transport::Fields::of(parsed.kind, parsed.family) else {
        return true;
    };
    let header_len = usize::from(parsed.header_len);
    if offload.is_partial_at(header_len + field.checksum) {
        return true;
    }
    let mut transport = parsed.transport(bytes);
    if parsed.kind == PacketKind::Udp {
        if u16_at(transport, field.checksum) == Some(0) {
            return true;
        }
        // Bytes beyond the UDP length are not part of the datagram (RFC 768).
        if let Some(length @ 8..) = u16_at(transport, 4) {
            transport = transport.get(..usize::from(length)).unwrap_or(transport);
        }
    }
    let mut sum = Sum::default();
    if field.pseudo_header {
        let protocol = wire_protocol(parsed.key.protocol, parsed.family);
        sum.add_pseudo_header(parsed.key.src, parsed.key.dst, protocol, transport.len());
    }
    match offload.partial_checksum {
        Some(inner) => add_with_unfinished(&mut sum, transport, inner, header_len),
        None => sum.add(transport),
    }
    sum.fold() == 0xffff
}

/// Adds a transport packet that carries another one with an unfinished checksum. Once finished, the
/// bytes that it covers sum up to the complement of the current value of the field (Linux,
/// `Documentation/networking/checksum-offloads.rst`, "LCO").
#[cold]
fn add_with_unfinished(
    sum: &mut Sum,
    transport: &[u8],
    inner: PartialChecksum,
    transport_start: usize,
) {
    let start = usize::from(inner.start).saturating_sub(transport_start);
    let field = usize::from(inner.field).saturating_sub(transport_start);
    match (transport.get(..start), u16_at(transport, field)) {
        // At an odd place the words of both sums would not match.
        (Some(before), Some(pseudo)) if start.is_multiple_of(2) => {
            sum.add(before);
            sum.add(&(!pseudo).to_be_bytes());
        }
        _ => sum.add(transport),
    }
}

/// Completes the checksum of a packet that had a partial one, its own or that of a packet inside,
/// so that it can be sent without offload. Nothing to do for other packets.
pub fn complete_checksum(bytes: &mut [u8], parsed: &Parsed, offload: Offload) {
    let Some(partial) = offload.partial_checksum else {
        return;
    };
    let end = bytes.len().min(parsed.total_len as usize);
    let (start, field) = (usize::from(partial.start), usize::from(partial.field));
    let Some(covered) = bytes.get(start..end) else {
        return;
    };
    // The field holds the sum of the pseudo-header, so it is included in the sum.
    let mut sum = Sum::default();
    sum.add(covered);
    let checksum = match sum.checksum() {
        // The same value except in UDP, where 0 means that there is no checksum.
        0 => 0xffff,
        checksum => checksum,
    };
    if let Some(place) = bytes.get_mut(field..field + 2) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Whether no packet may come from, or go to, the addresses of `key` (RFC 6890; RFC 1122, section
/// 3.2.1.3; RFC 4291, section 2.5), or it claims to come from its own destination.
///
/// Multicast and broadcast *destinations* are not martian; see [`forwardable`].
#[inline]
pub fn martian(key: &FlowKey) -> bool {
    martian_source(key.src) || never_on_the_wire(key.dst) || key.src == key.dst
}

/// Whether no packet at all may come from this address. Not so for [`reserved`] ones.
#[inline]
pub fn martian_source(addr: Addr) -> bool {
    never_on_the_wire(addr) || multicast(addr) || broadcast(addr)
}

/// Whether the address is of 240.0.0.0/4, which RFC 6890 reserves (section 2.2.2, table 15: neither
/// source nor destination), and which some networks use internally nevertheless.
#[inline]
pub fn reserved(addr: Addr) -> bool {
    addr.is_v4() && addr.last4()[0] >= 240 && !broadcast(addr)
}

/// Whether a router may forward to and from this address: it is not multicast, not the limited
/// broadcast address, and not link-local (RFC 3927, section 7; RFC 4291, section 2.5.6).
#[inline]
pub fn forwardable(addr: Addr) -> bool {
    !(addr.is_link_local() || multicast(addr) || broadcast(addr))
}

fn never_on_the_wire(addr: Addr) -> bool {
    match addr.family() {
        Family::V4 => {
            let first = addr.last4()[0];
            first == 0 || first == 127
        }
        Family::V6 => {
            let octets = addr.octets();
            octets[..15] == [0; 15] && octets[15] <= 1
        }
    }
}

fn multicast(addr: Addr) -> bool {
    match addr.family() {
        Family::V4 => addr.last4()[0] & 0xf0 == 0xe0,
        Family::V6 => addr.octets()[0] == 0xff,
    }
}

fn broadcast(addr: Addr) -> bool {
    addr == Addr::v4([255; 4])
}

/// The number for `protocol` in an IP header of `family`.
fn wire_protocol(protocol: Protocol, family: Family) -> Protocol {
    match (protocol, family) {
        (Protocol::ICMP, Family::V6) => Protocol::ICMPV6,
        _ => protocol,
    }
}

#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_be_bytes)
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_be_bytes)
}
