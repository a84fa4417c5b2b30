//! Legal packets that are rare, in flows of all sorts.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Offload, PartialChecksum, Verdict};
use tandemgw_core::flow::{Addr, Protocol};
use tandemgw_core::packet::TcpFlags;
use tandemgw_core::packet::checksum::Sum;

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, hex, link};
use testkit::packets::ErrorCode::{HostUnreachable, TimeExceeded, TooBig};
use testkit::packets::{
    ACK, Body, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_request, fragments, icmp_error, other, tcp,
    udp,
};

const RST_ACK: TcpFlags = TcpFlags(RST.0 | ACK.0);

/// An ICMP query of this type, with an identifier and a sequence number.
fn query(kind: u8, id: u16, src: Addr, dst: Addr) -> Pkt {
    let body = Body::Icmp {
        code: (kind, 0),
        word: u32::from(id) << 16 | 1,
        payload: vec![0; 12],
    };
    Pkt::new(src, dst, body)
}

/// RFC 5508, REQ-1: a NAT permits the queries of ICMP, not echo alone.
#[test]
fn icmp_queries_other_than_echo() {
    let net = Net::both()[0];
    for (request, reply) in [(13, 14), (15, 16), (17, 18)] {
        let mut lab = Lab::new();
        let out = query(request, 700, net.host, net.server);
        lab.forwards(LAN, &out, &out.clone().src(net.wan_vip), "icmp+1");
        let back = |id, to| query(reply, id, net.server, to);
        lab.forwards(WAN, &back(700, net.wan_vip), &back(700, net.host), "");
        // An error about it.
        let outside = out.clone().src(net.wan_vip).forwarded().bytes();
        let error = icmp_error(TimeExceeded, net.router, net.wan_vip, &outside);
        let inside = out.forwarded().bytes();
        let expected = icmp_error(TimeExceeded, net.router, net.host, &inside);
        lab.forwards(WAN, &error, &expected, "");
        // Another host has chosen the same identifier.
        let theirs = lab.send(LAN, &query(request, 700, net.neighbor, net.server));
        assert_eq!(theirs.verdict, Verdict::Forward);
        let id = u16::from_be_bytes([theirs.bytes[24], theirs.bytes[25]]);
        assert_ne!(id, 700);
        lab.forwards(WAN, &back(id, net.wan_vip), &back(700, net.neighbor), "");
        // Nobody is let in, and the gateway answers pings only.
        lab.drops(WAN, &back(701, net.wan_vip), DropReason::IcmpUnrelated);
        let to_us = query(request, 5, net.host, net.lan_vip);
        lab.drops(LAN, &to_us, DropReason::IcmpUnsupported);
    }
}

/// A datagram of UDP-Lite or DCCP, whose checksum covers the addresses and its header.
fn summed(protocol: u8, src: Addr, dst: Addr, ports: (u16, u16)) -> Pkt {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&ports.0.to_be_bytes());
    bytes[2..4].copy_from_slice(&ports.1.to_be_bytes());
    bytes[5] = 8;
    bytes[8..].fill(7);
    let mut sum = Sum::default();
    sum.add_pseudo_header(src, dst, Protocol(protocol), bytes.len());
    sum.add(&bytes[..8]);
    bytes[6..8].copy_from_slice(&sum.checksum().to_be_bytes());
    other(protocol, src, dst).payload(&bytes)
}

#[test]
fn checksums_of_udp_lite_and_dccp_follow_the_addresses() {
    for net in Net::both() {
        for protocol in [33, 136] {
            let mut lab = Lab::new();
            let out = summed(protocol, net.host, net.server, (4000, 5000));
            let outside = summed(protocol, net.wan_vip, net.server, (4000, 5000));
            lab.forwards(LAN, &out, &outside, "other+1");
            let back = |to| summed(protocol, net.server, to, (5000, 4000));
            lab.forwards(WAN, &back(net.wan_vip), &back(net.host), "");
            let quote = |packet: &Pkt| packet.clone().forwarded().bytes();
            let error = icmp_error(TooBig(1400), net.router, net.wan_vip, &quote(&outside));
            let expected = icmp_error(TooBig(1400), net.router, net.host, &quote(&out));
            lab.forwards(WAN, &error, &expected, "");
        }
        // ESP, AH, SCTP, GRE and others have no checksum over the addresses.
        for protocol in [47, 50, 51, 132, 115, 253] {
            let mut lab = Lab::new();
            let out = other(protocol, net.host, net.server);
            lab.forwards(LAN, &out, &out.clone().src(net.wan_vip), "other+1");
            let back = out.clone().src(net.wan_vip).answer();
            lab.forwards(WAN, &back, &back.clone().dst(net.host), "");
        }
    }
}

/// The carrier of a packet: the ports of UDP, or the protocol of IP; and the length of the tunnel's
/// header.
const TUNNELS: [(u8, u16, usize); 10] = [
    (17, 4789, 8 + 14),  // VXLAN
    (17, 4790, 8),       // VXLAN-GPE with IP inside
    (17, 6081, 8 + 14),  // Geneve
    (17, 6081, 16 + 14), // Geneve with options
    (17, 1701, 6 + 4),   // L2TP
    (17, 4754, 4),       // GRE in UDP
    (17, 5555, 0),       // IP in UDP (FOU)
    (47, 0, 4),          // GRE
    (47, 0, 8 + 14),     // GRE with a key, and Ethernet in it
    (4, 0, 0),           // IPIP and SIT
];

/// The sender leaves the checksum of the innermost packet to the hardware; the gateway's
/// translation is not about that one.
#[test]
fn unfinished_checksums_inside_of_tunnels() {
    for (net, carried) in Net::both()
        .into_iter()
        .flat_map(|a| Net::both().map(|b| (a, b)))
    {
        for (protocol, port, header) in TUNNELS {
            let inner = tcp((carried.dmz_host, 5001), (carried.web, 80), SYN, 1, 0);
            let inner_ip = if carried.host.is_v4() { 20 } else { 40 };
            let mut unfinished = inner.bytes();
            let field = inner_ip + 16;
            let mut pseudo = Sum::default();
            let len = unfinished.len() - inner_ip;
            pseudo.add_pseudo_header(carried.dmz_host, carried.web, Protocol::TCP, len);
            unfinished[field..field + 2].copy_from_slice(&(!pseudo.checksum()).to_be_bytes());
            let payload = [&vec![8; header][..], &unfinished].concat();
            let protocol = match (protocol, carried.host.is_v4()) {
                (4, false) => 41,
                (protocol, _) => protocol,
            };
            let outer = match protocol {
                17 => udp((net.host, 40000), (net.server, port)),
                protocol => other(protocol, net.host, net.server),
            };
            let without_checksum = |packet: &Pkt| {
                let mut bytes = packet.clone().payload(&payload).bytes();
                if protocol == 17 {
                    let udp_header = if net.host.is_v4() { 20 } else { 40 };
                    bytes[udp_header + 6..][..2].fill(0);
                }
                bytes
            };
            let bytes = without_checksum(&outer);
            let start = bytes.len() - unfinished.len();
            let offload = Offload {
                partial_checksum: Some(PartialChecksum {
                    start: (start + inner_ip) as u16,
                    field: (start + field) as u16,
                }),
                ..Offload::default()
            };
            let mut lab = Lab::new();
            let seen = lab.send_bytes(LAN, bytes, offload);
            assert_eq!(seen.verdict, Verdict::Forward, "{protocol} {port}");
            let expected = without_checksum(&outer.src(net.wan_vip).forwarded());
            assert_eq!(hex(&seen.bytes), hex(&expected), "{protocol} {port}");
        }
    }
}

/// A SYN with the option, and data for Fast Open.
fn syn_with_mss(src: Addr, dst: Addr, mss: u16, data: usize) -> Vec<u8> {
    let packet = tcp((src, 40000), (dst, 443), SYN, 100, 0).payload(&vec![5; data]);
    let mut bytes = packet.bytes();
    let header = if src.is_v4() { 20 } else { 40 };
    let [high, low] = mss.to_be_bytes();
    bytes[header + 20..header + 24].copy_from_slice(&[2, 4, high, low]);
    bytes
}

/// Puts the complete or the unfinished checksum in.
fn sum_up(bytes: &mut [u8], src: Addr, dst: Addr, is_partial: bool) {
    let header = if src.is_v4() { 20 } else { 40 };
    let field = header + 16;
    bytes[field..field + 2].fill(0);
    let mut sum = Sum::default();
    sum.add_pseudo_header(src, dst, Protocol::TCP, bytes.len() - header);
    if is_partial {
        bytes[field..field + 2].copy_from_slice(&(!sum.checksum()).to_be_bytes());
    } else {
        sum.add(&bytes[header..]);
        bytes[field..field + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    }
}

/// With Fast Open a SYN may be a super-packet, and its checksum unfinished.
#[test]
fn the_segment_size_of_a_super_packet_is_lowered() {
    let name = "name = \"wan\"";
    let config = CONFIG.replacen(name, &format!("{name}\nmss-clamp = 1300"), 1);
    for net in Net::both() {
        let header = if net.host.is_v4() { 20 } else { 40 };
        for (is_partial, segment_size) in [(false, 0), (true, 0), (true, 1200)] {
            let data = if segment_size > 0 { 5000 } else { 500 };
            let mut bytes = syn_with_mss(net.host, net.server, 1460, data);
            sum_up(&mut bytes, net.host, net.server, is_partial);
            let mut expected = syn_with_mss(net.wan_vip, net.server, 1300, data);
            sum_up(&mut expected, net.wan_vip, net.server, is_partial);
            tandemgw_core::packet::add_hop_limit(&mut expected, net.family);
            let offload = Offload {
                partial_checksum: is_partial.then_some(PartialChecksum {
                    start: header,
                    field: header + 16,
                }),
                segment_size,
                ..Offload::default()
            };
            let seen = Lab::of(&config).send_bytes(LAN, bytes, offload);
            assert_eq!(seen.verdict, Verdict::Forward);
            assert_eq!(seen.bytes.len(), expected.len());
            let headers = usize::from(header) + 24;
            assert_eq!(
                hex(&seen.bytes[12..headers]),
                hex(&expected[12..headers]),
                "{is_partial} {segment_size}"
            );
        }
    }
}

/// Junk for the virtual address costs the hosts none of the errors that keep their connections
/// alive.
#[test]
fn errors_that_keep_connections_alive_are_told_whatever_else_is_refused() {
    for net in Net::both() {
        let mut lab = Lab::with("\n[limits]\nicmp-errors-per-second = 100\n");
        let mut small = link(WAN);
        small.mtu = 1300;
        lab.link(WAN, small);
        lab.outputs();
        let big = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &big);
        let mut told = 0;
        for round in 0..40 {
            for port in 0..100 {
                lab.send(LAN, &udp((net.neighbor, 1000 + port), (net.server, 23)));
                lab.send(LAN, &udp((net.neighbor, 1000 + port), (net.lan_vip, 9)));
                lab.send(WAN, &udp((net.server, 1000 + port), (net.wan_vip, 9)));
            }
            let big = big.clone().payload(&[7; 1400]).dont_fragment();
            let seen = lab.send(LAN, &big);
            assert_eq!(seen.verdict, Verdict::Drop(DropReason::TooBig));
            told += seen.outputs.len();
            lab.pass(Duration::from_millis(25));
            lab.outputs();
            assert!(told > round, "{told} of {round}");
        }
    }
}

#[test]
fn echo_replies_are_limited() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let ping = echo_request((net.host, 7), net.lan_vip).bytes();
        let mut answered = 0;
        for _ in 0..6000 {
            let mut bytes = ping.clone();
            let port = LAN;
            lab.gateway
                .handle_packet(lab.now, port, &mut bytes, Offload::default());
            answered += lab.outputs().len();
        }
        assert_eq!(answered, 5000, "a tenth of what is answered in a second");
        lab.pass(Duration::from_millis(10));
        lab.outputs();
        let mut bytes = ping.clone();
        lab.gateway
            .handle_packet(lab.now, LAN, &mut bytes, Offload::default());
        assert_eq!(lab.outputs().len(), 1);
    }
}

/// An end that aborts with data under way sends no more, nor does the other.
#[test]
fn a_connection_that_was_reset_after_its_last_data_does_not_stay() {
    for net in Net::both() {
        for from_client in [true, false] {
            let mut lab = Lab::new();
            let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
            let back = out.clone().src(net.wan_vip).answer();
            lab.send(LAN, &out);
            lab.send(WAN, &back.clone().segment(SYN_ACK, 500, 101));
            lab.send(LAN, &out.clone().segment(ACK, 101, 501));
            let (port, data, reset) = match from_client {
                true => (
                    LAN,
                    out.clone().segment(ACK, 101, 501),
                    out.clone().segment(RST_ACK, 401, 501),
                ),
                false => (
                    WAN,
                    back.clone().segment(ACK, 501, 101),
                    back.clone().segment(RST_ACK, 801, 101),
                ),
            };
            let expires = |lab: &Lab| {
                let view = lab.gateway.page(0, u32::MAX, lab.now).0.next();
                view.expect("a session").expires_s
            };
            lab.send(port, &data.payload(&[7; 300]));
            assert!(expires(&lab) > 7000);
            assert_eq!(lab.send(port, &reset).verdict, Verdict::Forward);
            assert_eq!(lab.state(), "established", "the data may be forged");
            assert!(expires(&lab) <= 240);
            // The receiver says that it has not taken it for its own.
            let (other_port, challenge) = match from_client {
                true => (WAN, back.segment(ACK, 501, 101)),
                false => (LAN, out.segment(ACK, 101, 501)),
            };
            lab.send(other_port, &challenge);
            assert!(expires(&lab) > 7000);
            // Or nothing comes.
            lab.send(port, &reset);
            assert!(expires(&lab) <= 240);
            lab.pass(Duration::from_secs(242));
            assert_eq!(lab.sessions(), 0);
        }
    }
}

/// Through a forward: both sides have closed, and the server inside opens from the port that it
/// served.
#[test]
fn a_server_opens_a_connection_to_its_client_of_before() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let inward = tcp((net.server, 514), (net.wan_vip, 8080), SYN, 100, 0);
        let arrives = inward.clone().dst(net.web).ports((514, 80));
        let answer = arrives.answer();
        lab.forwards(WAN, &inward, &arrives, "tcp+1");
        lab.send(LAN, &answer.clone().segment(SYN_ACK, 500, 101));
        lab.send(WAN, &inward.clone().segment(ACK, 101, 501));
        lab.send(WAN, &inward.clone().segment(FIN_ACK, 101, 501));
        lab.send(LAN, &answer.clone().segment(FIN_ACK, 501, 102));
        lab.send(WAN, &inward.clone().segment(ACK, 102, 502));
        assert_eq!(lab.state(), "time-wait");
        let syn = answer.segment(SYN, 7_000_000, 0);
        let outside = inward.answer().segment(SYN, 7_000_000, 0);
        lab.forwards(LAN, &syn, &outside, "");
        let syn_ack = inward.segment(SYN_ACK, 9_000_000, 7_000_001);
        let expected = syn_ack.clone().dst(net.web).ports((514, 80));
        lab.forwards(WAN, &syn_ack, &expected, "");
    }
}

/// `packet`, which is of IPv6, with extension headers: their types and bodies, which are whole.
fn with_extensions(packet: &Pkt, headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let transport = bytes[6];
    let mut chain = Vec::new();
    for (at, (_, body)) in headers.iter().enumerate() {
        let next = headers.get(at + 1).map_or(transport, |(kind, _)| *kind);
        chain.push(next);
        chain.extend(body);
    }
    bytes[6] = headers[0].0;
    let len = u16::from_be_bytes([bytes[4], bytes[5]]) + chain.len() as u16;
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes.splice(40..40, chain);
    bytes
}

#[test]
fn extension_headers_in_each_order_that_is_legal() {
    let net = Net::both()[1];
    let alert = (0, vec![0, 5, 2, 0, 0, 1, 0]); // Router Alert and padding
    let unknown = (0, vec![0, 0x3e, 4, 1, 2, 3, 4]);
    let destination = (60, vec![0, 1, 4, 0, 0, 0, 0]);
    let routing = (43, [&[2, 4, 0, 0, 0, 0, 0][..], &[9; 16]].concat());
    let atomic = (44, vec![0, 0, 0, 1, 2, 3, 4]);
    for headers in [
        vec![alert.clone()],
        vec![unknown.clone()],
        vec![destination.clone()],
        vec![atomic.clone()],
        vec![alert.clone(), destination.clone()],
        vec![destination.clone(), destination.clone()],
        vec![destination.clone(), routing.clone(), destination.clone()],
        vec![
            alert,
            destination.clone(),
            routing,
            atomic.clone(),
            destination,
        ],
        vec![atomic.clone(), unknown_destination()],
    ] {
        let out = udp((net.host, 40000), (net.server, 53));
        let mut lab = Lab::new();
        let bytes = with_extensions(&out, &headers);
        let seen = lab.send_bytes(LAN, bytes, Offload::default());
        assert_eq!(seen.verdict, Verdict::Forward, "{headers:?}");
        let expected = with_extensions(&out.clone().src(net.wan_vip).forwarded(), &headers);
        assert_eq!(hex(&seen.bytes), hex(&expected), "{headers:?}");
        // An error quotes all of it.
        let outside = &seen.bytes;
        let error = icmp_error(TooBig(1300), net.router, net.wan_vip, outside);
        let inside = with_extensions(&out.forwarded(), &headers);
        let expected = icmp_error(TooBig(1300), net.router, net.host, &inside);
        lab.forwards(WAN, &error, &expected, "");
    }
}

fn unknown_destination() -> (u8, Vec<u8>) {
    (60, vec![0, 0x1e, 4, 1, 2, 3, 4])
}

#[test]
fn too_big_about_a_fragment() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let datagram = udp((net.host, 40000), (net.server, 53)).payload(&[7; 1200]);
        let pieces = fragments(&datagram.bytes(), 7, &[800]);
        let sent: Vec<_> = pieces
            .iter()
            .map(|piece| lab.send_bytes(LAN, piece.clone(), Offload::default()))
            .collect();
        assert!(sent.iter().all(|seen| seen.verdict == Verdict::Forward));
        let error = icmp_error(TooBig(1280), net.router, net.wan_vip, &sent[0].bytes);
        let mut inside = pieces[0].clone();
        tandemgw_core::packet::add_hop_limit(&mut inside, net.family);
        let expected = icmp_error(TooBig(1280), net.router, net.host, &inside);
        lab.forwards(WAN, &error, &expected, "");
    }
}

/// A source above its limit costs no search, also where there is nothing left to find.
#[test]
fn limits_are_checked_before_a_port_is_looked_for() {
    for net in Net::both() {
        let few = "[[nat-pool]]\nname = \"few\"\naddresses = [\"10.77.2.9\", \"fd77:2::9\"]\n\
                   ports = \"20000-20001\"\n\
                   [limits]\nsessions-per-source = 2\n\
                   [[policy]]\nname = \"few\"\nto = [\"wan\"]\nservice = [\"tcp/9\"]\n\
                   action = \"accept\"\nnat-pool = \"few\"\n\
                   [[policy]]";
        let mut lab = Lab::of(&CONFIG.replacen("[[policy]]", few, 1));
        let syn = |port| tcp((net.host, port), (net.server, 9), SYN, 100, 0);
        for port in [30_000, 30_001] {
            let seen = lab.send(LAN, &syn(port));
            let parsed = tandemgw_core::packet::parse(&seen.bytes, Offload::default()).unwrap();
            let outside = tcp(
                (parsed.key.src, parsed.key.src_port),
                (net.server, 9),
                SYN,
                100,
                0,
            );
            lab.send(WAN, &outside.answer().segment(SYN_ACK, 500, 101));
            lab.send(LAN, &syn(port).segment(ACK, 101, 501));
        }
        // Its own two are connections, and stay.
        let third = syn(30_002);
        let told = icmp_error(HostUnreachable, net.lan_vip, net.host, &third.bytes());
        lab.refuses(LAN, &third, DropReason::SourceLimit, &told.own_error());
        assert_eq!(lab.sessions(), 2);
    }
}
