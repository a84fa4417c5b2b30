//! Address resolution on a link: ARP (RFC 826, RFC 5227) and Neighbor Discovery (RFC 4861), as
//! Ethernet frames.

use std::net::Ipv6Addr;

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType};

use super::build::Header;
use super::{Parsed, array_at, broadcast, checksum_ok, multicast, never_on_the_wire, parse};
use crate::event::{DropReason, Offload};
use crate::flow::{Addr, Family, Protocol};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A frame's information about neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// A machine asks for the owner of an address.
    Solicit(Solicit),
    /// A machine claims an address, asked or not.
    Advertise(Advertise),
    /// It is not about address resolution.
    Other,
}

/// A machine asks for the owner of an address: an ARP request or a neighbor solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicit {
    /// The address to resolve.
    pub target: Addr,
    /// The sender's address; unspecified for an ARP probe or duplicate address detection.
    pub sender: Addr,
    /// The sender's hardware address.
    pub sender_mac: Mac,
}

impl Solicit {
    /// Whether it asks only to see if the address is free: an ARP probe (RFC 5227, section 2.1.1)
    /// or duplicate address detection (RFC 4862, section 5.4.2).
    pub fn is_probe(&self) -> bool {
        self.sender == Addr::unspecified(self.target.family())
    }
}

/// A machine claims an address: an ARP reply or announcement, or a neighbor advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address that the sender claims as its own.
    pub addr: Addr,
    /// The hardware address for it.
    pub mac: Mac,
}

/// Reads an Ethernet frame, untagged and without FCS.
///
/// # Errors
/// - [`DropReason::Truncated`]: shorter than its headers say;
/// - [`DropReason::Malformed`]: against the rules of RFC 826, or of RFC 4861, sections 7.1.1 and
///   7.1.2 (among them: the hop limit must be 255, so that it can't come from beyond the link);
/// - [`DropReason::BadChecksum`]: of ICMPv6;
/// - [`DropReason::Martian`]: about an address that no host has.
pub fn parse_frame(frame: &[u8]) -> Result<Neighbor, DropReason> {
    let (header, payload) = frame
        .split_first_chunk::<ETHERNET_LEN>()
        .ok_or(DropReason::Truncated)?;
    let &[_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, t0, t1] = header;
    match EtherType(u16::from_be_bytes([t0, t1])) {
        EtherType::ARP => parse_arp(payload),
        EtherType::IPV6 => parse_nd(payload, [s0, s1, s2, s3, s4, s5]),
        _ => Ok(Neighbor::Other),
    }
}

/// The IP packet in a frame, if its hop limit has run out. That of ND never has (RFC 4861, section
/// 7.1).
pub fn expired_packet(frame: &[u8]) -> Option<&[u8]> {
    const TTL: usize = 8;
    const HOP_LIMIT: usize = 7;
    let (header, payload) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let &[.., t0, t1] = header;
    let left = match EtherType(u16::from_be_bytes([t0, t1])) {
        EtherType::IPV4 => payload.get(TTL),
        EtherType::IPV6 => payload.get(HOP_LIMIT),
        _ => None,
    };
    left.is_some_and(|left| *left <= 1).then_some(payload)
}

/// The echo request to a link-local address in a frame, and the hardware address of its sender.
/// None for other packets.
pub fn link_local_ping(frame: &[u8]) -> Option<(&[u8], Mac)> {
    const NEXT_HEADER: usize = 6;
    const DESTINATION: usize = 24;
    /// After the header; a packet with extensions is not for us.
    const MESSAGE: usize = 40;
    const ECHO_REQUEST: u8 = 128;
    let (header, payload) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let &[_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, t0, t1] = header;
    let is_ipv6 = EtherType(u16::from_be_bytes([t0, t1])) == EtherType::IPV6;
    let to = Addr::v6(array_at(payload, DESTINATION)?);
    let is_icmp = payload.get(NEXT_HEADER) == Some(&Protocol::ICMPV6.0);
    let is_ping = payload.get(MESSAGE) == Some(&ECHO_REQUEST);
    let sender = [s0, s1, s2, s3, s4, s5];
    (is_ipv6 && is_icmp && is_ping && to.is_link_local()).then_some((payload, sender))
}

/// A frame from `mac` to another host with an IPv6 packet.
pub fn ipv6_frame(to: Mac, mac: Mac, packet: &[u8]) -> Vec<u8> {
    let ethertype = EtherType::IPV6.0.to_be_bytes();
    [&to[..], &mac, &ethertype, packet].concat()
}

/// The answer to `solicit`: `mac` has its target. A probe for an IPv6 address is answered to all
/// nodes (RFC 4861, section 7.2.4).
pub fn reply(solicit: &Solicit, mac: Mac) -> Vec<u8> {
    let target = solicit.target;
    match target.family() {
        Family::V4 => {
            let operation = ArpOperation::REPLY;
            arp(
                operation,
                (target, mac),
                (solicit.sender, solicit.sender_mac),
                solicit.sender_mac,
            )
        }
        Family::V6 if solicit.is_probe() => advertisement(
            target,
            mac,
            ALL_NODES,
            multicast_mac(ALL_NODES),
            ROUTER | OVERRIDE,
        ),
        Family::V6 => {
            let flags = ROUTER | SOLICITED | OVERRIDE;
            advertisement(target, mac, solicit.sender, solicit.sender_mac, flags)
        }
    }
}

/// The frames that announce on the link that `mac` now has `addr`.
///
/// For IPv4 both forms of gratuitous ARP: the request of RFC 5227, section 3, which most hosts
/// accept, and the reply of RFC 5944, section 4.6, because some equipment updates its cache only
/// from replies. For IPv6 an unsolicited advertisement (RFC 4861, section 7.2.6).
pub fn announce(addr: Addr, mac: Mac) -> Vec<Vec<u8>> {
    match addr.family() {
        Family::V4 => vec![
            arp(
                ArpOperation::REQUEST,
                (addr, mac),
                (addr, NO_MAC),
                BROADCAST,
            ),
            arp(ArpOperation::REPLY, (addr, mac), (addr, mac), BROADCAST),
        ],
        Family::V6 => {
            let group = multicast_mac(ALL_NODES);
            vec![advertisement(
                addr,
                mac,
                ALL_NODES,
                group,
                ROUTER | OVERRIDE,
            )]
        }
    }
}

/// Tells one neighbour, unsolicited, that `mac` now has `addr`.
pub fn announce_to(addr: Addr, mac: Mac, neighbor: Addr, neighbor_mac: Mac) -> Vec<u8> {
    match addr.family() {
        Family::V4 => arp(
            ArpOperation::REPLY,
            (addr, mac),
            (neighbor, neighbor_mac),
            neighbor_mac,
        ),
        Family::V6 => advertisement(addr, mac, neighbor, neighbor_mac, ROUTER | OVERRIDE),
    }
}

/// Tells one neighbour, right after everybody was told something else, that `mac` now has `addr`.
/// An ordinary reply would be ignored for a second (Linux: `locktime`), an announcement is not.
pub fn correct(addr: Addr, mac: Mac, neighbor: Addr, neighbor_mac: Mac) -> Vec<u8> {
    if addr.family() == Family::V6 {
        return announce_to(addr, mac, neighbor, neighbor_mac);
    }
    let ends = (addr, mac);
    arp(ArpOperation::REPLY, ends, ends, neighbor_mac)
}

/// The hardware address that a frame is for.
pub fn recipient(frame: &[u8]) -> Option<Mac> {
    array_at(frame, 0)
}

/// A frame that speaks for another unit, as sent by `mac`: switches learn where that is from the
/// frame, and must not look for the other unit here.
pub fn sent_by(mac: Mac, mut frame: Vec<u8>) -> Vec<u8> {
    if let Some(sender) = frame.get_mut(6..12) {
        sender.copy_from_slice(&mac);
    }
    frame
}

/// Asks whether anybody has `addr`, without claiming it: an ARP probe (RFC 5227, section 2.1.1) or
/// the solicitation of duplicate address detection (RFC 4862, section 5.4.2).
pub fn probe(addr: Addr, mac: Mac) -> Vec<u8> {
    solicit(addr, Addr::unspecified(addr.family()), mac)
}

/// Asks everybody on the link for `target`, on behalf of `sender` of the same family.
pub fn solicit(target: Addr, sender: Addr, mac: Mac) -> Vec<u8> {
    match target.family() {
        Family::V4 => arp(
            ArpOperation::REQUEST,
            (sender, mac),
            (target, NO_MAC),
            BROADCAST,
        ),
        Family::V6 => {
            let group = Addr::v6(solicited_node(target).octets());
            // RFC 4861, section 4.3: no option if the source is unspecified.
            let option = (sender != Addr::unspecified(Family::V6)).then_some((SOURCE_LINK, mac));
            let message = nd_message(SOLICITATION, 0, target, option);
            nd_frame(message, (sender, mac), (group, multicast_mac(group)))
        }
    }
}

/// The solicited-node multicast address of `addr` (RFC 4291, section 2.7.1).
pub fn solicited_node(addr: Addr) -> Ipv6Addr {
    let [_, low @ ..] = addr.last4();
    let mut octets = SOLICITED_NODE_PREFIX;
    octets[13..].copy_from_slice(&low);
    Ipv6Addr::from(octets)
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464, section 7).
pub fn multicast_mac(group: Addr) -> Mac {
    let [a, b, c, d] = group.last4();
    [0x33, 0x33, a, b, c, d]
}

const ETHERNET_LEN: usize = 14;
const BROADCAST: Mac = [0xff; 6];
const NO_MAC: Mac = [0; 6];
const ALL_NODES: Addr = Addr::v6([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const SOLICITED_NODE_PREFIX: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];

// RFC 4861, sections 4.3, 4.4 and 4.6.1.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const ND_HEADER_LEN: usize = 24;

fn parse_arp(payload: &[u8]) -> Result<Neighbor, DropReason> {
    let packet = ArpPacketSlice::from_slice(payload).map_err(|_| DropReason::Truncated)?;
    let packet =
        ArpEthIpv4Packet::try_from(packet.to_packet()).map_err(|_| DropReason::Malformed)?;
    let sender = Addr::v4(packet.sender_ipv4);
    let target = Addr::v4(packet.target_ipv4);
    let advertise = Advertise {
        addr: sender,
        mac: packet.sender_mac,
    };
    check_mac(packet.sender_mac)?;
    match packet.operation {
        ArpOperation::REQUEST if sender != target => {
            if sender != Addr::unspecified(Family::V4) {
                check_host(sender)?;
            }
            let sender_mac = packet.sender_mac;
            check_host(target).map(|()| {
                Neighbor::Solicit(Solicit {
                    target,
                    sender,
                    sender_mac,
                })
            })
        }
        // A request for one's own address is an announcement (RFC 5227, section 2.3).
        ArpOperation::REQUEST | ArpOperation::REPLY => {
            check_host(sender).map(|()| Neighbor::Advertise(advertise))
        }
        _ => Ok(Neighbor::Other),
    }
}

fn parse_nd(packet: &[u8], frame_src: Mac) -> Result<Neighbor, DropReason> {
    let parsed = parse(packet, Offload::default())?;
    let message = parsed.transport(packet);
    let nd_type = match (parsed.key.protocol, message) {
        (Protocol::ICMP, [nd_type @ (SOLICITATION | ADVERTISEMENT), ..])
            if parsed.fragment.is_none_or(|fragment| fragment.offset == 0) =>
        {
            *nd_type
        }
        _ => return Ok(Neighbor::Other),
    };
    check_nd(packet, &parsed, message)?;
    let target = Addr::v6(array_at(message, 8).ok_or(DropReason::Truncated)?);
    if target.is_v4() {
        return Err(DropReason::Martian);
    }
    check_host(target)?;
    let wanted = if nd_type == SOLICITATION {
        SOURCE_LINK
    } else {
        TARGET_LINK
    };
    let option = link_option(message.get(ND_HEADER_LEN..).unwrap_or(&[]), wanted)?;
    let mac = option.unwrap_or(frame_src);
    check_mac(mac)?;
    let (src, dst) = (parsed.key.src, parsed.key.dst);
    if nd_type == ADVERTISEMENT {
        let solicited = message.get(4).is_some_and(|flags| flags & SOLICITED != 0);
        if solicited && multicast(dst) {
            return Err(DropReason::Malformed);
        }
        return Ok(Neighbor::Advertise(Advertise { addr: target, mac }));
    }
    if src != Addr::unspecified(Family::V6) {
        check_host(src)?;
    } else if option.is_some() || dst.octets()[..13] != SOLICITED_NODE_PREFIX[..13] {
        return Err(DropReason::Malformed);
    }
    Ok(Neighbor::Solicit(Solicit {
        target,
        sender: src,
        sender_mac: mac,
    }))
}

/// The requirements of RFC 4861, sections 7.1.1 and 7.1.2 for both messages; no fragments, by RFC
/// 6980.
fn check_nd(packet: &[u8], parsed: &Parsed, message: &[u8]) -> Result<(), DropReason> {
    if message.len() < ND_HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    if parsed.hop_limit != 255 || message[1] != 0 || parsed.fragment.is_some() {
        return Err(DropReason::Malformed);
    }
    if !checksum_ok(packet, parsed, Offload::default()) {
        return Err(DropReason::BadChecksum);
    }
    Ok(())
}

/// The link-layer address option of type `wanted`, if there is one.
fn link_option(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while !options.is_empty() {
        let &[option_type, blocks, ..] = options else {
            return Err(DropReason::Malformed);
        };
        let len = usize::from(blocks) * 8;
        if len == 0 || len > options.len() {
            return Err(DropReason::Malformed);
        }
        if option_type == wanted && len == 8 {
            found = array_at(options, 2);
        }
        options = &options[len..];
    }
    Ok(found)
}

fn check_mac(mac: Mac) -> Result<(), DropReason> {
    let group = mac[0] & 1 == 1;
    if group || mac == NO_MAC {
        Err(DropReason::Malformed)
    } else {
        Ok(())
    }
}

/// A host may have `addr`.
fn check_host(addr: Addr) -> Result<(), DropReason> {
    if never_on_the_wire(addr) || multicast(addr) || broadcast(addr) {
        return Err(DropReason::Martian);
    }
    Ok(())
}

fn arp(operation: ArpOperation, sender: (Addr, Mac), target: (Addr, Mac), to: Mac) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender.1,
        sender_ipv4: sender.0.last4(),
        target_mac: target.1,
        target_ipv4: target.0.last4(),
    };
    frame(to, sender.1, EtherType::ARP, &packet.to_bytes())
}

fn advertisement(addr: Addr, mac: Mac, to: Addr, to_mac: Mac, flags: u8) -> Vec<u8> {
    let message = nd_message(ADVERTISEMENT, flags, addr, Some((TARGET_LINK, mac)));
    nd_frame(message, (addr, mac), (to, to_mac))
}

fn nd_message(nd_type: u8, flags: u8, target: Addr, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut message = vec![nd_type, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(target.octets());
    if let Some((option_type, mac)) = option {
        message.extend_from_slice(&[option_type, 1]);
        message.extend_from_slice(&mac);
    }
    message
}

fn nd_frame(message: Vec<u8>, from: (Addr, Mac), to: (Addr, Mac)) -> Vec<u8> {
    let header = Header {
        hop_limit: 255,
        ..Header::new(from.0, to.0, Protocol::ICMP)
    };
    // An ND message has 32 bytes at most: it always fits.
    let packet = header.packet(&message, &[]).unwrap_or_default();
    frame(to.1, from.1, EtherType::IPV6, &packet)
}

fn frame(to: Mac, from: Mac, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET_LEN + payload.len());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ether_type.0.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 9];
    const V4: Addr = Addr::v4([10, 77, 1, 1]);
    const HOST4: Addr = Addr::v4([10, 77, 1, 9]);
    const V6: Addr = Addr::v6([
        0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
    ]);
    const HOST6: Addr = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    const PAIRS: [(Addr, Addr); 2] = [(V4, HOST4), (V6, HOST6)];

    fn destination(frame: &[u8]) -> Mac {
        array_at(frame, 0).unwrap()
    }

    /// The flag byte of the advertisement in `frame`.
    fn flags(frame: &[u8]) -> u8 {
        frame[14 + 40 + 4]
    }

    /// After an edit: a right checksum, so that the check under test is what refuses.
    fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
        frame[56..58].fill(0);
        let mut sum = crate::packet::checksum::Sum::default();
        let (src, dst) = (array_at(&frame, 22).unwrap(), array_at(&frame, 38).unwrap());
        let message = &frame[54..];
        sum.add_pseudo_header(
            Addr::v6(src),
            Addr::v6(dst),
            Protocol::ICMPV6,
            message.len(),
        );
        sum.add(message);
        frame[56..58].copy_from_slice(&sum.checksum().to_be_bytes());
        frame
    }

    #[test]
    fn question_and_answer() {
        for (target, sender) in PAIRS {
            let question = solicit(target, sender, THEIRS);
            let asked = Solicit {
                target,
                sender,
                sender_mac: THEIRS,
            };
            assert_eq!(parse_frame(&question), Ok(Neighbor::Solicit(asked)));
            assert!(!asked.is_probe());
            let answer = reply(&asked, OURS);
            assert_eq!(destination(&answer), THEIRS);
            let said = Advertise {
                addr: target,
                mac: OURS,
            };
            assert_eq!(parse_frame(&answer), Ok(Neighbor::Advertise(said)));
        }
        let asked = Solicit {
            target: V6,
            sender: HOST6,
            sender_mac: THEIRS,
        };
        assert_eq!(flags(&reply(&asked, OURS)), 0xe0);
    }

    #[test]
    fn probes_are_answered_without_a_sender() {
        for (target, _) in PAIRS {
            let asked = match parse_frame(&probe(target, THEIRS)) {
                Ok(Neighbor::Solicit(asked)) => asked,
                other => panic!("{other:?}"),
            };
            assert!(asked.is_probe());
            assert_eq!((asked.target, asked.sender_mac), (target, THEIRS));
            let said = Advertise {
                addr: target,
                mac: OURS,
            };
            assert_eq!(
                parse_frame(&reply(&asked, OURS)),
                Ok(Neighbor::Advertise(said))
            );
        }
        let asked = Solicit {
            target: V6,
            sender: Addr::unspecified(Family::V6),
            sender_mac: THEIRS,
        };
        let answer = reply(&asked, OURS);
        assert_eq!(destination(&answer), [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(flags(&answer), 0xa0);
    }

    #[test]
    fn announcements() {
        for (addr, host) in PAIRS {
            let said = Ok(Neighbor::Advertise(Advertise { addr, mac: OURS }));
            for frame in announce(addr, OURS) {
                assert_eq!(parse_frame(&frame), said);
                assert_eq!(destination(&frame)[0] & 1, 1, "to a group");
                assert_eq!(array_at(&frame, 6), Some(OURS));
            }
            let frame = announce_to(addr, OURS, host, THEIRS);
            assert_eq!(parse_frame(&frame), said);
            assert_eq!(destination(&frame), THEIRS);
        }
        let operations: Vec<u8> = announce(V4, OURS).iter().map(|frame| frame[21]).collect();
        assert_eq!(operations, [1, 2]);
        assert_eq!(flags(&announce(V6, OURS)[0]), 0xa0);
    }

    #[test]
    fn bytes_of_an_arp_reply() {
        let asked = Solicit {
            target: V4,
            sender: HOST4,
            sender_mac: THEIRS,
        };
        let expected = [
            &THEIRS[..],
            &OURS,
            &[8, 6],
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &OURS,
            &[10, 77, 1, 1],
            &THEIRS,
            &[10, 77, 1, 9],
        ];
        assert_eq!(reply(&asked, OURS), expected.concat());
    }

    #[test]
    fn group_addresses() {
        assert_eq!(solicited_node(V6).to_string(), "ff02::1:ff12:3456");
        let group = Addr::v6(solicited_node(V6).octets());
        assert_eq!(multicast_mac(group), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(destination(&solicit(V6, HOST6, OURS)), multicast_mac(group));
    }

    #[test]
    fn an_advertisement_without_option_counts_with_the_source_of_the_frame() {
        let mut frame = announce(V6, OURS).remove(0);
        frame.truncate(14 + 40 + 24);
        frame[19] = 24;
        let said = Advertise {
            addr: V6,
            mac: OURS,
        };
        assert_eq!(
            parse_frame(&with_checksum(frame)),
            Ok(Neighbor::Advertise(said))
        );
    }

    #[test]
    fn arp_that_is_refused() {
        let edit = |at: usize, byte: u8| {
            let mut frame = solicit(V4, HOST4, THEIRS);
            frame[at] = byte;
            parse_frame(&frame)
        };
        assert_eq!(parse_frame(&[0; 13]), Err(DropReason::Truncated));
        let request = solicit(V4, HOST4, THEIRS);
        assert_eq!(parse_frame(&request[..41]), Err(DropReason::Truncated));
        assert_eq!(edit(15, 6), Err(DropReason::Malformed), "hardware type");
        assert_eq!(edit(16, 0x86), Err(DropReason::Malformed), "protocol type");
        assert_eq!(edit(18, 5), Err(DropReason::Malformed), "hardware length");
        assert_eq!(edit(22, 3), Err(DropReason::Malformed), "group as sender");
        assert_eq!(edit(28, 224), Err(DropReason::Martian), "multicast sender");
        assert_eq!(edit(21, 9), Ok(Neighbor::Other), "operation");
        assert_eq!(edit(12, 0x81), Ok(Neighbor::Other), "EtherType");
    }

    #[test]
    fn nd_that_is_refused() {
        let edit = |frame: Vec<u8>, at: usize, byte: u8| {
            let mut frame = frame;
            frame[at] = byte;
            parse_frame(&with_checksum(frame))
        };
        let question = || solicit(V6, HOST6, THEIRS);
        assert_eq!(
            edit(question(), 21, 254),
            Err(DropReason::Malformed),
            "hop limit"
        );
        assert_eq!(edit(question(), 55, 1), Err(DropReason::Malformed), "code");
        assert_eq!(
            edit(question(), 62, 0xff),
            Err(DropReason::Martian),
            "multicast target"
        );
        assert_eq!(
            edit(question(), 79, 0),
            Err(DropReason::Malformed),
            "option of length 0"
        );
        assert_eq!(
            edit(question(), 79, 2),
            Err(DropReason::Malformed),
            "option beyond the end"
        );
        assert_eq!(
            edit(question(), 54, 133),
            Ok(Neighbor::Other),
            "router solicitation"
        );

        let mut wrong_sum = question();
        wrong_sum[56] ^= 1;
        assert_eq!(parse_frame(&wrong_sum), Err(DropReason::BadChecksum));

        let announcement = announce(V6, OURS).remove(0);
        assert_eq!(
            edit(announcement, 58, 0xe0),
            Err(DropReason::Malformed),
            "solicited to all"
        );

        let mut short = question();
        short.truncate(14 + 40 + 20);
        short[19] = 20;
        assert_eq!(parse_frame(&short), Err(DropReason::Truncated));

        let mut probe_with_option = question();
        probe_with_option[22..38].fill(0);
        let refused = parse_frame(&with_checksum(probe_with_option));
        assert_eq!(refused, Err(DropReason::Malformed));
        assert_eq!(edit(probe(V6, OURS), 53, 9), edit(probe(V6, OURS), 53, 8));
        assert_eq!(
            edit(probe(V6, OURS), 40, 9),
            Err(DropReason::Malformed),
            "not to the group"
        );
    }
}
