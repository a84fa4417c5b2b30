//! Packets that other gateways were seen to drop or to spoil, and that must pass; and what must not
//! pass for all that.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Offload, Verdict};

use testkit::lab::{CONFIG, DMZ, LAN, Lab, Net, WAN, hex, ip};
use testkit::packets::ErrorCode::{TimeExceeded, TooBig};
use testkit::packets::{
    ACK, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_request, icmp_error, other, tcp, udp,
};

const RST_ACK: tandemgw_core::packet::TcpFlags = tandemgw_core::packet::TcpFlags(RST.0 | ACK.0);

/// The config with a line more in the table of a port.
fn with_port_key(port: &str, line: &str) -> String {
    let name = format!("name = \"{port}\"");
    CONFIG.replacen(&name, &format!("{name}\n{line}"), 1)
}

/// The server's first number: far from 0.
const SERVER: u32 = 1 << 30;

/// A connection from the LAN to the server: what the client and the server send, the latter as it
/// comes.
fn connected(lab: &mut Lab, net: &Net) -> (Pkt, Pkt) {
    let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
    let back = out.clone().src(net.wan_vip).answer();
    lab.send(LAN, &out);
    lab.send(WAN, &back.clone().segment(SYN_ACK, SERVER, 101));
    lab.send(LAN, &out.clone().segment(ACK, 101, SERVER + 1));
    assert_eq!(lab.state(), "established");
    (out, back)
}

#[test]
fn a_server_without_the_connection_refuses_the_new_one_at_once() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (out, back) = connected(&mut lab, &net);
        let syn = out.segment(SYN, 9_000_000, 0);
        lab.forwards(LAN, &syn, &syn.clone().src(net.wan_vip), "");
        let refusal = back.segment(RST_ACK, 0, 9_000_001);
        lab.forwards(WAN, &refusal, &refusal.clone().dst(net.host), "");
        lab.drops(
            WAN,
            &refusal.segment(RST_ACK, 0, 9_000_002),
            DropReason::TcpWindow,
        );
    }
}

#[test]
fn fast_open_sent_again_without_its_data() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let syn = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let with_data = syn.clone().payload(&[7; 1000]);
        lab.forwards(
            LAN,
            &with_data,
            &with_data.clone().src(net.wan_vip),
            "tcp+1",
        );
        lab.forwards(LAN, &syn, &syn.clone().src(net.wan_vip), "");
        let answer = syn.clone().src(net.wan_vip).answer();
        let answer = answer.segment(SYN_ACK, 500, 1101);
        lab.forwards(WAN, &answer, &answer.clone().dst(net.host), "");
        lab.send(LAN, &syn.segment(ACK, 1101, 501));
        assert_eq!(lab.state(), "established");
    }
}

#[test]
fn an_answer_to_a_syn_may_take_minutes() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let syn = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        lab.send(LAN, &syn);
        lab.pass(Duration::from_secs(239));
        lab.outputs();
        let answer = syn.src(net.wan_vip).answer().segment(SYN_ACK, 500, 101);
        lab.forwards(WAN, &answer, &answer.clone().dst(net.host), "");
    }
}

/// Both sides have closed: either may open the next connection between the same ports.
#[test]
fn after_time_wait_either_side_may_open() {
    let rules =
        "\n[[policy]]\nname = \"back\"\nfrom = [\"dmz\"]\nto = [\"lan\"]\naction = \"accept\"\n";
    for net in Net::both() {
        for (more, accepted) in [(rules, true), ("", false)] {
            let mut lab = Lab::with(more);
            let out = tcp((net.host, 1023), (net.dmz_host, 514), SYN, 100, 0);
            let back = out.answer();
            let syn = back.clone().segment(SYN, 7_000_000, 0);
            lab.send(LAN, &out);
            lab.send(DMZ, &back.clone().segment(SYN_ACK, 500, 101));
            lab.send(LAN, &out.clone().segment(ACK, 101, 501));
            lab.drops(DMZ, &syn, DropReason::TcpUnexpectedSyn);
            lab.send(LAN, &out.clone().segment(FIN_ACK, 101, 501));
            lab.drops(DMZ, &syn, DropReason::TcpUnexpectedSyn);
            lab.send(DMZ, &back.clone().segment(FIN_ACK, 501, 102));
            lab.send(LAN, &out.clone().segment(ACK, 102, 502));
            assert_eq!(lab.state(), "time-wait");
            if !accepted {
                lab.drops(DMZ, &syn, DropReason::TcpUnexpectedSyn);
                assert_eq!(lab.state(), "time-wait");
                continue;
            }
            lab.forwards(DMZ, &syn, &syn, "");
            let answer = out.clone().segment(SYN_ACK, 8_000_000, 7_000_001);
            lab.forwards(LAN, &answer, &answer, "");
            let ack = back.segment(ACK, 7_000_001, 8_000_001);
            lab.forwards(DMZ, &ack, &ack, "");
            assert_eq!(lab.state(), "established");
            let mut views = lab.gateway.page(0, u32::MAX, lab.now).0;
            assert_eq!(views.next().unwrap().original.src, net.dmz_host);
        }
    }
}

/// RFC 5382, REQ-4: a reset would end the attempt of a host inside that is about to open from its
/// side.
#[test]
fn an_unsolicited_syn_is_not_answered() {
    for net in Net::both() {
        for port in [LAN, WAN] {
            let from = if port == LAN { net.host } else { net.server };
            let vip = if port == LAN {
                net.lan_vip
            } else {
                net.wan_vip
            };
            let syn = tcp((from, 443), (vip, 40000), SYN, 500, 0);
            let mut lab = Lab::new();
            lab.drops(port, &syn, DropReason::NoListener);
            let name = if port == LAN { "lan" } else { "wan" };
            let mut lab = Lab::of(&with_port_key(name, "unsolicited-syn = \"reject\""));
            let reset = syn.answer().segment(RST_ACK, 0, 501).own();
            lab.refuses(port, &syn, DropReason::NoListener, &reset);
        }
        // Both open at once, and theirs comes first.
        let mut lab = Lab::new();
        let theirs = tcp((net.server, 443), (net.wan_vip, 40000), SYN, 500, 0);
        lab.drops(WAN, &theirs, DropReason::NoListener);
        let ours = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        lab.forwards(LAN, &ours, &ours.clone().src(net.wan_vip), "tcp+1");
        lab.forwards(WAN, &theirs, &theirs.clone().dst(net.host), "");
    }
}

#[test]
fn two_hosts_ping_each_other_with_one_identifier() {
    let rules =
        "\n[[policy]]\nname = \"back\"\nfrom = [\"dmz\"]\nto = [\"lan\"]\naction = \"accept\"\n";
    for net in Net::both() {
        for id in [0, 1, 2, 8, 128, 0xffff] {
            let mut lab = Lab::with(rules);
            let there = echo_request((net.host, id), net.dmz_host);
            let back = echo_request((net.dmz_host, id), net.host);
            for (counted, _) in [("icmp+1", 1), ("", 2)] {
                lab.forwards(LAN, &there, &there, counted);
                lab.forwards(DMZ, &back, &back, counted);
                lab.forwards(DMZ, &there.answer(), &there.answer(), "");
                lab.forwards(LAN, &back.answer(), &back.answer(), "");
            }
            // And errors about them find the right one.
            let quoted = back.clone().forwarded().bytes();
            let error = icmp_error(TimeExceeded, net.neighbor, net.dmz_host, &quoted);
            lab.forwards(LAN, &error, &error, "");
        }
    }
}

#[test]
fn identifiers_are_translated_whatever_they_are() {
    for net in Net::both() {
        let mut lab = Lab::new();
        // The second host's are taken, and become others.
        for host in [net.host, net.neighbor] {
            for id in [0, 1, 2, 3] {
                let request = echo_request((host, id), net.server);
                let seen = lab.send(LAN, &request);
                assert_eq!(seen.verdict, Verdict::Forward);
                let parsed = tandemgw_core::packet::parse(&seen.bytes, Offload::default()).unwrap();
                let outside = request
                    .clone()
                    .src(net.wan_vip)
                    .ports((parsed.key.src_port, 0));
                assert_eq!(hex(&seen.bytes), hex(&outside.clone().forwarded().bytes()));
                let reply = outside.answer();
                lab.forwards(WAN, &reply, &request.answer(), "");
            }
        }
    }
}

#[test]
fn an_error_is_judged_by_what_it_quotes() {
    let net = Net::both()[0];
    for kind in [TimeExceeded, TooBig(1400)] {
        let mut lab = Lab::new();
        let inside = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &inside);
        let inside = inside.forwarded().bytes();
        let outside = udp((net.wan_vip, 40000), (net.server, 53))
            .forwarded()
            .bytes();
        for router in [
            "240.0.224.65",
            "10.0.0.1",
            "100.64.0.1",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
        ] {
            let error = icmp_error(kind, ip(router), net.wan_vip, &outside);
            let expected = icmp_error(kind, ip(router), net.host, &inside);
            lab.forwards(WAN, &error, &expected, "");
            let about_nothing = icmp_error(kind, ip(router), net.wan_vip, &inside);
            lab.drops(WAN, &about_nothing, DropReason::IcmpUnrelated);
        }
        for nobody in [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
        ] {
            let error = icmp_error(kind, ip(nobody), net.wan_vip, &outside);
            lab.drops(WAN, &error, DropReason::Martian);
        }
    }
}

#[test]
fn reserved_addresses_are_a_matter_of_the_port() {
    let net = Net::both()[0];
    let from = udp((ip("240.1.2.3"), 40000), (net.server, 53));
    let mut lab = Lab::new();
    lab.route("240.0.0.0/4", testkit::lab::to_port(LAN));
    lab.drops(LAN, &from, DropReason::Martian);
    let mut lab = Lab::of(&with_port_key("lan", "reserved-addresses = true"));
    lab.drops(LAN, &from, DropReason::SpoofedSource);
    lab.route("240.0.0.0/4", testkit::lab::to_port(LAN));
    lab.forwards(LAN, &from, &from.clone().src(net.wan_vip), "udp+1");
}

/// `packet`, which is of IPv6, with a routing header.
fn with_routing_header(packet: &Pkt, kind: u8, segments_left: u8) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let next = std::mem::replace(&mut bytes[6], 43);
    let header = [
        [next, 2, kind, segments_left, 0, 0, 0, 0].as_slice(),
        ip("2001:db8::9").octets(),
    ]
    .concat();
    let len = u16::from_be_bytes([bytes[4], bytes[5]]) + header.len() as u16;
    bytes[4..6].copy_from_slice(&len.to_be_bytes());
    bytes.splice(40..40, header);
    bytes
}

#[test]
fn routing_headers_but_those_of_type_0() {
    let net = Net::both()[1];
    for kind in [2, 3, 4, 253] {
        for segments_left in [0, 1] {
            let packet = udp((net.host, 40000), (net.server, 53));
            let bytes = with_routing_header(&packet, kind, segments_left);
            let expected = packet.clone().src(net.wan_vip).forwarded();
            let expected = with_routing_header(&expected, kind, segments_left);
            let mut lab = Lab::new();
            let seen = lab.send_bytes(LAN, bytes.clone(), Offload::default());
            assert_eq!(seen.verdict, Verdict::Forward);
            assert_eq!(hex(&seen.bytes), hex(&expected));
            let mut lab = Lab::of(&with_port_key("lan", "routing-headers = false"));
            let seen = lab.send_bytes(LAN, bytes, Offload::default());
            let refused = Verdict::Drop(DropReason::RoutingHeader);
            assert_eq!(
                seen.verdict,
                if segments_left == 0 {
                    Verdict::Forward
                } else {
                    refused
                }
            );

            // We are none of those that it names.
            let ping = echo_request((net.host, 7), net.lan_vip);
            let seen = lab.send_bytes(
                LAN,
                with_routing_header(&ping, kind, segments_left),
                Offload::default(),
            );
            let answered = seen.verdict == Verdict::Consumed;
            assert_eq!(answered, segments_left == 0);
        }
    }
    let packet = udp((net.host, 40000), (net.server, 53));
    for segments_left in [0, 1] {
        let seen = Lab::new().send_bytes(
            LAN,
            with_routing_header(&packet, 0, segments_left),
            Offload::default(),
        );
        assert_eq!(seen.verdict, Verdict::Drop(DropReason::RoutingHeader));
    }
}

/// `packet`, which is of IPv4, with options.
fn with_options(packet: &Pkt, options: &[u8]) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes.splice(20..20, options.iter().copied());
    bytes[0] += options.len() as u8 / 4;
    let len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    let header = 20 + options.len();
    bytes[10..12].fill(0);
    let mut sum = tandemgw_core::packet::checksum::Sum::default();
    sum.add(&bytes[..header]);
    bytes[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    bytes
}

/// The kernel takes a slot on the way to the gateway and one on the way out: the first is given
/// back.
#[test]
fn one_slot_of_record_route_and_timestamp() {
    let net = Net::both()[0];
    let a = [10, 77, 1, 1];
    let b = [10, 77, 2, 1];
    let cases: [(&str, Vec<u8>, Vec<u8>); 11] = [
        (
            "route, ours is the first",
            [&[7, 11, 8][..], &a, &[0; 4], &[0]].concat(),
            [&[7, 11, 4][..], &[0; 8], &[0]].concat(),
        ),
        (
            "route, ours is the second",
            [&[7, 15, 12][..], &a, &b, &[0; 4], &[0]].concat(),
            [&[7, 15, 8][..], &a, &[0; 8], &[0]].concat(),
        ),
        (
            "route, ours is the last",
            [&[7, 11, 12][..], &a, &b, &[0]].concat(),
            [&[7, 11, 12][..], &a, &b, &[0]].concat(),
        ),
        (
            "after others",
            [&[1, 148, 4, 0, 0, 7, 11, 8][..], &a, &[0; 4]].concat(),
            [&[1, 148, 4, 0, 0, 7, 11, 4][..], &[0; 8]].concat(),
        ),
        (
            "time",
            [&[68, 12, 9, 0][..], &[1; 4], &[0; 4]].concat(),
            [&[68, 12, 5, 0][..], &[0; 8]].concat(),
        ),
        (
            "time, the last",
            [&[68, 12, 13, 0][..], &[1; 4], &[2; 4]].concat(),
            [&[68, 12, 9, 0][..], &[1; 4], &[0; 4]].concat(),
        ),
        (
            "time, one too many",
            [&[68, 12, 13, 0x10][..], &[1; 4], &[2; 4]].concat(),
            [&[68, 12, 13, 0][..], &[1; 4], &[2; 4]].concat(),
        ),
        (
            "time, several too many",
            [&[68, 12, 13, 0x50][..], &[1; 4], &[2; 4]].concat(),
            [&[68, 12, 13, 0x40][..], &[1; 4], &[2; 4]].concat(),
        ),
        (
            "time and address",
            [&[68, 20, 13, 1][..], &a, &[1; 4], &[0; 8]].concat(),
            [&[68, 20, 5, 1][..], &[0; 16]].concat(),
        ),
        (
            "prespecified",
            [&[68, 12, 13, 3][..], &a, &[1; 4]].concat(),
            [&[68, 12, 13, 3][..], &a, &[1; 4]].concat(),
        ),
        ("none", vec![1, 1, 1, 0], vec![1, 1, 1, 0]),
    ];
    for (what, came, left) in cases {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        let seen = lab.send_bytes(LAN, with_options(&query, &came), Offload::default());
        assert_eq!(seen.verdict, Verdict::Forward, "{what}");
        let expected = with_options(&query.clone().src(net.wan_vip).forwarded(), &left);
        assert_eq!(hex(&seen.bytes), hex(&expected), "{what}");
    }
}

/// SIT, IPIP and GRE are flows without ports; errors about them quote no more than 8 bytes of what
/// is inside, or all of it.
#[test]
fn errors_about_tunnels() {
    for net in Net::both() {
        for protocol in [4, 41, 47, 50, 51, 115] {
            let mut lab = Lab::new();
            let inner = udp((net.dmz_host, 1), (net.web, 2)).bytes();
            let first = other(protocol, net.host, net.server).payload(&inner);
            lab.send(LAN, &first);
            let header = if net.host.is_v4() { 20 } else { 40 };
            let inside = first.clone().forwarded().bytes();
            let outside = first.clone().src(net.wan_vip).forwarded().bytes();
            for quoted in [header, header + 8, inside.len()] {
                for kind in [TimeExceeded, TooBig(1400)] {
                    let error = icmp_error(kind, net.router, net.wan_vip, &outside[..quoted]);
                    let expected = icmp_error(kind, net.router, net.host, &inside[..quoted]);
                    lab.forwards(WAN, &error, &expected, "");
                }
            }
        }
    }
}

/// Forwards of one port and of a range, UDP and TCP, in the config of the lab.
fn forwards(net: &Net) -> String {
    let (vip, host) = match net.host.is_v4() {
        true => ("10.77.2.1", "10.77.1.10"),
        false => ("[fd77:2::1]", "[fd77:1::10]"),
    };
    let mut text = String::new();
    for protocol in ["udp", "tcp"] {
        text += &format!(
            "\n[[forward]]\nname = \"one-{protocol}\"\nport = \"wan\"\nprotocol = \"{protocol}\"\n\
             external = \"{vip}:41641\"\ninternal = \"{host}:41641\"\n\
             [[forward]]\nname = \"range-{protocol}\"\nport = \"wan\"\nprotocol = \"{protocol}\"\n\
             external = \"{vip}:5000-5100\"\ninternal = \"{host}:6000\"\n"
        );
    }
    text + "\n[[policy]]\nname = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\naction = \"accept\"\n"
}

#[test]
fn a_forwarded_endpoint_has_one_external_port_in_both_directions() {
    for net in Net::both() {
        for (inside, outside) in [(41641, 41641), (6000, 5000), (6077, 5077), (6100, 5100)] {
            for tcp_too in [false, true] {
                let mut lab = Lab::with(&forwards(&net));
                let first = |from, to| match tcp_too {
                    true => tcp(from, to, SYN, 100, 0),
                    false => udp(from, to),
                };
                let counted = if tcp_too { "tcp+1" } else { "udp+1" };
                // The host speaks first; another peer comes by the forward; and again much later.
                for (round, peer_port) in [3478, 3479, 3480].into_iter().enumerate() {
                    let out = first((net.host, inside), (net.server, peer_port));
                    let external = out.clone().src(net.wan_vip).ports((outside, peer_port));
                    lab.forwards(LAN, &out, &external, counted);
                    let other = 50_000 + peer_port;
                    let inward = first((net.server, other), (net.wan_vip, outside));
                    let arrives = inward.clone().dst(net.host).ports((other, inside));
                    lab.forwards(WAN, &inward, &arrives, counted);
                    if round == 1 {
                        lab.pass(Duration::from_secs(8_000));
                        lab.outputs();
                        assert_eq!(lab.sessions(), 0);
                    }
                }
                // A port beside it is not forwarded, and its sender is translated like any other.
                let beside = first((net.host, 6101), (net.server, 9));
                lab.forwards(LAN, &beside, &beside.clone().src(net.wan_vip), counted);
                let inward = first((net.server, 9999), (net.wan_vip, 5101));
                assert_ne!(lab.send(WAN, &inward).verdict, Verdict::Forward);
                let taken = first((net.neighbor, outside), (net.server, 3478));
                let seen = lab.send(LAN, &taken);
                let key = tandemgw_core::packet::parse(&seen.bytes, Offload::default())
                    .unwrap()
                    .key;
                assert_ne!(key.src_port, outside, "the port of a forward is its host's");
            }
        }
    }
}

/// RFC 4787, REQ-3a: NFS and others take a port below 1024 for proof of a privileged sender.
#[test]
fn low_source_ports_stay_low() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let mut used = std::collections::BTreeSet::new();
        for port in [512, 700, 1023, 1, 123, 511] {
            for host in [net.host, net.neighbor] {
                for out in [
                    udp((host, port), (net.server, 2049)),
                    tcp((host, port), (net.server, 2049), SYN, 1, 0),
                ] {
                    let seen = lab.send(LAN, &out);
                    assert_eq!(seen.verdict, Verdict::Forward);
                    let key = tandemgw_core::packet::parse(&seen.bytes, Offload::default())
                        .unwrap()
                        .key;
                    let same = if port < 512 { 1..512 } else { 512..1024 };
                    assert!(
                        same.contains(&key.src_port),
                        "{port} became {}",
                        key.src_port
                    );
                    assert!(host == net.neighbor || key.src_port == port);
                    assert!(used.insert((key.protocol.0, key.src_port)));
                }
            }
        }
        // Others never take one of those.
        lab.send(LAN, &udp((net.host, 40000), (net.server, 53)));
        for port in 0..200 {
            let seen = lab.send(LAN, &udp((net.neighbor, 40000), (net.server, 1000 + port)));
            let key = tandemgw_core::packet::parse(&seen.bytes, Offload::default())
                .unwrap()
                .key;
            assert!(key.src_port >= 1024);
        }
    }
}

/// Both have learnt the external endpoint of the other from a third party, and send there.
#[test]
fn two_hosts_inside_reach_each_other_by_their_external_endpoints() {
    for net in Net::both() {
        for is_tcp in [false, true] {
            let mut lab = Lab::new();
            let packet = |from, to, flags, seq, ack| match is_tcp {
                true => tcp(from, to, flags, seq, ack),
                false => udp(from, to),
            };
            let (a, b) = ((net.host, 4000), (net.neighbor, 5000));
            let (a_outside, b_outside) = ((net.wan_vip, 4000), (net.wan_vip, 5000));
            for host in [a, b] {
                lab.send(LAN, &packet(host, (net.server, 3478), SYN, 1, 0));
            }
            let there = packet(a, b_outside, SYN, 100, 0);
            let back = packet(b, a_outside, SYN, 900, 0);
            // Nobody comes in uninvited, from inside either.
            let seen = lab.send(LAN, &there);
            assert_eq!(seen.verdict, Verdict::Drop(DropReason::NoListener));
            assert_eq!(seen.outputs, []);
            let counted = if is_tcp { "tcp+1" } else { "udp+1" };
            let arrives = packet(a_outside, b, SYN, 100, 0);
            let arrives_back = packet(b_outside, a, SYN, 900, 0);
            lab.forwards(LAN, &back, &arrives_back, counted);
            lab.forwards(LAN, &there, &arrives, "");
            if is_tcp {
                for (from, from_outside, to, to_outside, seq, ack) in [
                    (a, a_outside, b, b_outside, 100, 901),
                    (b, b_outside, a, a_outside, 900, 101),
                ] {
                    let sent = packet(from, to_outside, SYN_ACK, seq, ack);
                    let arrives = packet(from_outside, to, SYN_ACK, seq, ack);
                    lab.forwards(LAN, &sent, &arrives, "");
                }
                let sent = packet(a, b_outside, ACK, 101, 901);
                lab.forwards(LAN, &sent, &packet(a_outside, b, ACK, 101, 901), "");
            } else {
                // An error comes back the same way.
                let quoted = arrives.clone().forwarded().bytes();
                let error = icmp_error(TooBig(1300), net.neighbor, net.wan_vip, &quoted);
                let original = there.clone().forwarded().bytes();
                let expected = icmp_error(TooBig(1300), net.wan_vip, net.host, &original);
                lab.forwards(LAN, &error, &expected, "");
            }
            // From outside nothing gets in that way.
            let forged = packet(a_outside, b_outside, SYN, 100, 0);
            assert_ne!(
                lab.send(WAN, &forged.src(net.server)).verdict,
                Verdict::Forward
            );
        }
    }
}

#[test]
fn a_hairpin_needs_a_policy_that_lets_the_host_out() {
    for net in Net::both() {
        let mut lab = Lab::new();
        lab.send(LAN, &udp((net.neighbor, 5000), (net.server, 3478)));
        lab.send(DMZ, &udp((net.dmz_host, 4000), (net.wan_vip, 5000)));
        assert_eq!(lab.sessions(), 1);
        // To an address that nobody is translated to, or a port that is nobody's.
        lab.send(LAN, &udp((net.host, 4000), (net.wan_vip, 5001)));
        lab.send(LAN, &udp((net.host, 4000), (net.lan_vip, 5000)));
        lab.send(LAN, &tcp((net.host, 4000), (net.lan_vip, 5000), SYN, 1, 0));
        assert_eq!(lab.sessions(), 1);
    }
}

/// RFC 6864, section 5.3: two hosts have chosen one identification towards one receiver.
#[test]
fn fragments_woven_together_of_hosts_behind_one_address() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let datagram = |host, fill| {
            let packet = udp((host, 40000), (net.server, 53)).payload(&[fill; 100]);
            testkit::packets::fragments(&packet.bytes(), 7, &[48])
        };
        let (ours, theirs) = (datagram(net.host, 1), datagram(net.neighbor, 2));
        let mut id = |bytes: &Vec<u8>| {
            let seen = lab.send_bytes(LAN, bytes.clone(), Offload::default());
            assert_eq!(seen.verdict, Verdict::Forward);
            let parsed = tandemgw_core::packet::parse(&seen.bytes, Offload::default()).unwrap();
            assert_eq!(parsed.key.src, net.wan_vip);
            let header = tandemgw_core::packet::checksum::Sum::default();
            let mut sum = header;
            sum.add(&seen.bytes[..20]);
            assert!(!net.host.is_v4() || sum.fold() == 0xffff, "header checksum");
            parsed.fragment.unwrap().id
        };
        let [a, b, c, d] = [&ours[0], &theirs[0], &ours[1], &theirs[1]].map(&mut id);
        assert_eq!((a, b), (c, d), "fragments of one datagram have one");
        assert_eq!(a, 7);
        assert_ne!(a, b);
        // Backwards, and again: what waits for the first fragment gets the same.
        let seen = lab.send_bytes(LAN, theirs[1].clone(), Offload::default());
        assert_eq!(seen.verdict, Verdict::Consumed);
        let seen = lab.send_bytes(LAN, theirs[0].clone(), Offload::default());
        let id_of = |bytes: &[u8]| {
            let parsed = tandemgw_core::packet::parse(bytes, Offload::default()).unwrap();
            parsed.fragment.unwrap().id
        };
        let [tandemgw_core::event::Output::Packet { bytes, .. }] = &seen.outputs[..] else {
            panic!("the held fragment");
        };
        assert_eq!(id_of(bytes), id_of(&seen.bytes));
        assert_ne!(id_of(bytes), 7);
    }
}

fn syn_with_mss(
    from: (tandemgw_core::flow::Addr, u16),
    to: (tandemgw_core::flow::Addr, u16),
    odd: bool,
    mss: u16,
) -> Vec<u8> {
    let mut bytes = tcp(from, to, SYN, 100, 0).bytes();
    let header = if from.0.is_v4() { 20 } else { 40 };
    // The options of the lab are NOP and window scale: 4 bytes.
    let [high, low] = mss.to_be_bytes();
    let option: [u8; 8] = match odd {
        true => [1, 2, 4, high, low, 1, 1, 0],
        false => [2, 4, high, low, 1, 1, 1, 0],
    };
    bytes.splice(header + 20..header + 24, option);
    bytes[header + 12] = 7 << 4;
    let len = bytes.len() - if from.0.is_v4() { 0 } else { 40 };
    let at = if from.0.is_v4() { 2 } else { 4 };
    bytes[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
    if from.0.is_v4() {
        bytes[10..12].fill(0);
        let mut sum = tandemgw_core::packet::checksum::Sum::default();
        sum.add(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    bytes[header + 16..header + 18].fill(0);
    let mut sum = tandemgw_core::packet::checksum::Sum::default();
    let len = bytes.len() - header;
    sum.add_pseudo_header(from.0, to.0, tandemgw_core::flow::Protocol::TCP, len);
    sum.add(&bytes[header..]);
    bytes[header + 16..header + 18].copy_from_slice(&sum.checksum().to_be_bytes());
    bytes
}

#[test]
fn the_segment_size_of_a_syn_is_lowered_where_that_is_wanted() {
    let clamp = |line: &str, port| with_port_key(port, &format!("mss-clamp = {line}"));
    let policy = |line: &str| {
        let name = "name = \"lan-out\"";
        CONFIG.replacen(name, &format!("{name}\nmss-clamp = {line}"), 1)
    };
    for net in Net::both() {
        let headers = if net.host.is_v4() { 40 } else { 60 };
        for (config, mtu, expected) in [
            (CONFIG.to_owned(), 1492, 1460),
            (clamp("\"auto\"", "wan"), 1492, 1492 - headers),
            (clamp("\"auto\"", "lan"), 1400, 1400 - headers),
            (clamp("1300", "wan"), 1492, 1300),
            (clamp("1460", "lan"), 1400, 1460),
            (policy("1200"), 1492, 1200),
            (policy("\"auto\""), 1280, 1280 - headers),
        ] {
            for odd in [false, true] {
                let mut lab = Lab::of(&config);
                let mut link = testkit::lab::link(WAN);
                link.mtu = mtu;
                lab.link(WAN, link);
                lab.outputs();
                let (from, to) = ((net.host, 40000), (net.server, 443));
                let seen =
                    lab.send_bytes(LAN, syn_with_mss(from, to, odd, 1460), Offload::default());
                let outside = (net.wan_vip, 40000);
                let mut expected_bytes = syn_with_mss(outside, to, odd, expected);
                tandemgw_core::packet::add_hop_limit(&mut expected_bytes, net.family);
                assert_eq!(hex(&seen.bytes), hex(&expected_bytes), "{mtu}");
                // The answer of the server too, and never more than was offered.
                for offered in [1460, 500] {
                    let mut bytes = syn_with_mss(to, outside, odd, offered);
                    let header = if net.host.is_v4() { 20 } else { 40 };
                    let answer = |bytes: &mut Vec<u8>, dst| {
                        bytes[header + 8..header + 12].copy_from_slice(&101u32.to_be_bytes());
                        bytes[header + 13] = SYN_ACK.0;
                        bytes[header + 16..header + 18].fill(0);
                        let mut sum = tandemgw_core::packet::checksum::Sum::default();
                        let len = bytes.len() - header;
                        sum.add_pseudo_header(to.0, dst, tandemgw_core::flow::Protocol::TCP, len);
                        sum.add(&bytes[header..]);
                        bytes[header + 16..header + 18]
                            .copy_from_slice(&sum.checksum().to_be_bytes());
                    };
                    answer(&mut bytes, net.wan_vip);
                    let seen = lab.send_bytes(WAN, bytes, Offload::default());
                    let mut wanted = syn_with_mss(to, from, odd, expected.min(offered));
                    answer(&mut wanted, net.host);
                    tandemgw_core::packet::add_hop_limit(&mut wanted, net.family);
                    assert_eq!(hex(&seen.bytes), hex(&wanted));
                }
            }
        }
    }
}

/// A frame from a host on a port, with a packet in it.
fn frame(packet: &Pkt) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet.src.is_v4() {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [
        &[2, 0, 0, 0, 0, 1, 2, 9, 9, 9, 9, 9][..],
        &ethertype,
        &packet.bytes(),
    ]
    .concat()
}

/// The kernel does not see to these: the virtual address answers, whichever unit has it.
#[test]
fn the_hop_limit_ends_at_the_virtual_address() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let mut hands = |port, packet: &Pkt| {
            lab.gateway.handle_frame(lab.now, port, &frame(packet));
            lab.moved()
        };
        for hops in [0, 1] {
            for packet in [
                udp((net.host, 40000), (net.server, 33434)),
                tcp((net.host, 40000), (net.server, 80), SYN, 1, 0),
                echo_request((net.host, 7), net.server),
                udp((net.host, 40000), (net.web, 33434)),
            ] {
                let packet = packet.hops(hops);
                let told = icmp_error(TimeExceeded, net.lan_vip, net.host, &packet.bytes());
                let told = testkit::lab::plain_packet(LAN, told.own_error().bytes());
                assert_eq!(
                    hands(LAN, &packet),
                    (vec![told], "drop.hop-limit+1".to_owned())
                );
            }
            // A ping to the virtual address has arrived.
            let ping = echo_request((net.host, 7), net.wan_vip).hops(hops);
            let reply = ping.answer().hops(64).dont_fragment();
            let reply = testkit::lab::plain_packet(LAN, reply.bytes());
            assert_eq!(hands(LAN, &ping), (vec![reply], String::new()));
            let spoofed = udp((net.dmz_host, 40000), (net.server, 33434)).hops(hops);
            let nothing = |reason: DropReason| (Vec::new(), format!("drop.{}+1", reason.name()));
            assert_eq!(hands(LAN, &spoofed), nothing(DropReason::SpoofedSource));
            // No error about an error.
            let quoted = udp((net.host, 40000), (net.server, 53)).bytes();
            let error = icmp_error(TimeExceeded, net.router, net.wan_vip, &quoted).hops(hops);
            assert_eq!(hands(WAN, &error), nothing(DropReason::HopLimit));
        }
        // With a hop left the frame is the kernel's.
        let packet = udp((net.host, 40000), (net.server, 33434)).hops(2);
        assert_eq!(hands(LAN, &packet), (Vec::new(), String::new()));
        assert_eq!(lab.sessions(), 0);
    }
}
