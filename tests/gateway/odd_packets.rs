//! Packets that are legal and rare: they pass, and nothing in them changes but what translation
//! must change.

use tandemgw_core::event::{DropReason, Offload, Verdict};
use tandemgw_core::packet::checksum::Sum;
use tandemgw_core::packet::{TcpFlags, add_hop_limit};

use testkit::lab::{LAN, Lab, Net, WAN, hex};
use testkit::packets::ErrorCode::{PortUnreachable, TimeExceeded, TooBig};
use testkit::packets::{Body, Pkt, SYN, icmp_error, tcp, udp};

/// Makes the lengths and the header checksum of an IP packet right after something was added to its
/// end.
fn fit(bytes: &mut [u8]) {
    let len = bytes.len();
    if bytes[0] >> 4 == 4 {
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[10..12].fill(0);
        let mut sum = Sum::default();
        sum.add(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    } else {
        bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    }
}

fn header_len(net: &Net) -> usize {
    if net.host.is_v4() { 20 } else { 40 }
}

/// The packet is forwarded and becomes the other one, byte for byte, with one hop more.
#[track_caller]
fn becomes(
    lab: &mut Lab,
    net: &Net,
    port: tandemgw_core::flow::PortId,
    came: Vec<u8>,
    mut left: Vec<u8>,
) {
    let seen = lab.send_bytes(port, came, Offload::default());
    assert_eq!(seen.verdict, Verdict::Forward);
    add_hop_limit(&mut left, net.family);
    assert_eq!(hex(&seen.bytes), hex(&left));
}

/// Bytes behind the datagram and within the packet are its options (RFC 9868).
#[test]
fn options_of_udp_stay() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let with_options = |packet: &Pkt| {
            let mut bytes = packet.bytes();
            bytes.extend_from_slice(&[0x12, 0x34, 1, 1, 2, 4, 0, 9]);
            fit(&mut bytes);
            bytes
        };
        let query = udp((net.host, 40000), (net.server, 53));
        let outside = query.clone().src(net.wan_vip);
        becomes(
            &mut lab,
            &net,
            LAN,
            with_options(&query),
            with_options(&outside),
        );
        let answer = outside.answer();
        let inside = answer.clone().dst(net.host);
        becomes(
            &mut lab,
            &net,
            WAN,
            with_options(&answer),
            with_options(&inside),
        );
    }
}

/// Bytes behind the packet: Ethernet frames have at least 60.
#[test]
fn padding_of_the_frame_is_no_part_of_the_packet() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let padded = |packet: &Pkt| [packet.bytes(), vec![0xaa; 7]].concat();
        let query = udp((net.host, 40000), (net.server, 53)).payload(b"?");
        let seen = lab.send_bytes(LAN, padded(&query), Offload::default());
        assert_eq!(seen.verdict, Verdict::Forward);
        let expected = query.src(net.wan_vip).forwarded().bytes();
        assert_eq!(hex(&seen.bytes[..expected.len()]), hex(&expected));
    }
}

/// A SYN that offers ECN (RFC 3168, section 6.1.1), and one with AccECN's flag; the urgent pointer.
#[test]
fn flags_of_ecn_and_urgent_data_pass() {
    const ECE: u8 = 0x40;
    const CWR: u8 = 0x80;
    const URG: u8 = 0x20;
    for net in Net::both() {
        for flags in [ECE | CWR, ECE, CWR, URG] {
            let mut lab = Lab::new();
            let syn = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
            let with = |packet: &Pkt| {
                let mut bytes = packet.bytes();
                let at = header_len(&net);
                let sum = u16::from_be_bytes([bytes[at + 16], bytes[at + 17]]);
                bytes[at + 13] |= flags;
                // RFC 1624, equation 3, for the flags and the bit that AccECN uses.
                let (before, after) = (u16::from(SYN.0), u16::from(SYN.0 | flags));
                let total = u32::from(!sum) + u32::from(!before) + u32::from(after);
                let folded = (total & 0xffff) + (total >> 16);
                let folded = (folded & 0xffff) + (folded >> 16);
                bytes[at + 16..at + 18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
                bytes
            };
            let outside = syn.clone().src(net.wan_vip);
            becomes(&mut lab, &net, LAN, with(&syn), with(&outside));
        }
        // No TCP sends these.
        let null = tcp((net.host, 40001), (net.server, 443), TcpFlags(0), 100, 0);
        Lab::new().drops(LAN, &null, DropReason::TcpFlags);
    }
}

/// Objects behind the quoted packet (RFC 4884), as of MPLS routers: they are about the sender of
/// the error.
#[test]
fn errors_with_objects_keep_them() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.server, 53)).payload(&[7; 300]);
        lab.send(LAN, &first);
        let objects = [0x20, 0, 0xdf, 0x3f, 0, 8, 1, 1, 0, 0x51, 0x61, 0x40];
        let quote = |packet: &Pkt| {
            let quoted = &packet.clone().forwarded().bytes()[..128];
            [quoted, &objects].concat()
        };
        // The length of the quote, in words of 4 bytes or, in ICMPv6, of 8.
        let length = if net.host.is_v4() { 32 << 16 } else { 16 << 24 };
        let with_length = |mut error: Pkt| {
            if let Body::Icmp { word, .. } = &mut error.body {
                *word |= length;
            }
            error
        };
        for kind in [TimeExceeded, PortUnreachable] {
            let outside = first.clone().src(net.wan_vip);
            let error = with_length(icmp_error(kind, net.router, net.wan_vip, &quote(&outside)));
            let inside = with_length(icmp_error(kind, net.router, net.host, &quote(&first)));
            lab.forwards(WAN, &error, &inside, "");
        }
    }
}

/// A problem with a header (RFC 792, RFC 4443 section 3.4) is an error like others. Advice that
/// nobody should follow is none that passes: source quench (RFC 6633) and redirects.
#[test]
fn parameter_problems_pass_and_redirects_do_not() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &first);
        let quote = |packet: &Pkt| packet.clone().forwarded().bytes();
        let error = |code: (u8, u8), word: u32, to, quoted: Vec<u8>| {
            let body = Body::Icmp {
                code,
                word,
                payload: quoted,
            };
            Pkt::new(net.router, to, body)
        };
        let problems = match net.host.is_v4() {
            true => [((12, 0), 20 << 24), ((12, 2), 0)],
            false => [((4, 0), 6), ((4, 1), 6)],
        };
        let outside = first.clone().src(net.wan_vip);
        for (code, word) in problems {
            let came = error(code, word, net.wan_vip, quote(&outside));
            let left = error(code, word, net.host, quote(&first));
            lab.forwards(WAN, &came, &left, "");
        }
        let advice: &[(u8, u8)] = match net.host.is_v4() {
            true => &[(4, 0), (5, 1)],
            false => &[(137, 0)],
        };
        for code in advice {
            let came = error(*code, 0, net.wan_vip, quote(&outside));
            let seen = lab.send(WAN, &came);
            assert!(
                matches!(seen.verdict, Verdict::Drop(_)),
                "{code:?}: {seen:?}"
            );
        }
        // The path's MTU may be told with objects behind it, too.
        let told = icmp_error(TooBig(1400), net.router, net.wan_vip, &quote(&outside));
        let inside = icmp_error(TooBig(1400), net.router, net.host, &quote(&first));
        lab.forwards(WAN, &told, &inside, "");
    }
}
