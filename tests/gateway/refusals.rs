//! Packets that are not forwarded, and the answers to their senders.

use std::time::Duration;

use tandemgw_core::event::{DropReason, LinkState, Offload, Verdict};
use tandemgw_core::flow::{Addr, Family};

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, ip, link};
use testkit::packets::ErrorCode::{AdminProhibited, NoRoute, PortUnreachable, TooBig};
use testkit::packets::{
    ACK, Pkt, RST, SYN, SYN_ACK, echo_reply, echo_request, icmp_error, tcp, udp,
};

#[test]
fn policies_drop_reject_or_do_not_match() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = |port| udp((net.host, 40000), (net.server, port));
        lab.drops(LAN, &query(69), DropReason::PolicyDrop);
        let telnet = query(23);
        let told = icmp_error(AdminProhibited, net.lan_vip, net.host, &telnet.bytes());
        lab.refuses(LAN, &telnet, DropReason::PolicyReject, &told.own_error());
        let syn = tcp((net.host, 40000), (net.server, 23), SYN, 100, 0);
        let reset = tcp((net.server, 23), (net.host, 40000), RST_ACK, 0, 101).own();
        lab.refuses(LAN, &syn, DropReason::PolicyReject, &reset);
        let inwards = udp((net.server, 53), (net.host, 40000));
        lab.drops(WAN, &inwards, DropReason::NoPolicy);
        lab.drops(LAN, &query(53).dst(net.neighbor), DropReason::NoPolicy);
    }
}

const RST_ACK: tandemgw_core::packet::TcpFlags = tandemgw_core::packet::TcpFlags(RST.0 | ACK.0);

#[test]
fn destinations_without_a_way() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = |dst| udp((net.host, 40000), (dst, 53));
        let lost = query(net.unrouted);
        let told = icmp_error(NoRoute, net.lan_vip, net.host, &lost.bytes()).own_error();
        lab.refuses(LAN, &lost, DropReason::NoRoute, &told);
        lab.drops(LAN, &query(net.elsewhere), DropReason::NotAPort);
    }
}

#[test]
fn addresses_that_are_not_forwarded() {
    use DropReason::{Martian, NotForwardable, SpoofedSource};
    let v4 = [
        ("127.0.0.1", "198.51.100.7", Martian),
        ("0.0.0.0", "198.51.100.7", Martian),
        ("224.0.0.1", "198.51.100.7", Martian),
        ("255.255.255.255", "198.51.100.7", Martian),
        ("10.77.1.10", "127.0.0.1", Martian),
        ("10.77.1.10", "240.0.0.1", Martian),
        ("10.77.1.10", "10.77.1.10", Martian),
        ("0.0.0.0", "255.255.255.255", NotForwardable),
        ("10.77.1.10", "224.0.0.251", NotForwardable),
        ("10.77.1.10", "255.255.255.255", NotForwardable),
        ("10.77.1.10", "169.254.1.1", NotForwardable),
        ("169.254.1.1", "198.51.100.7", NotForwardable),
        ("10.77.1.10", "10.77.2.255", NotForwardable),
        ("10.77.1.10", "10.77.3.255", NotForwardable),
        ("10.77.3.10", "198.51.100.7", SpoofedSource),
        ("198.51.100.8", "198.51.100.7", SpoofedSource),
        ("203.0.113.1", "198.51.100.7", SpoofedSource),
        ("10.77.1.1", "198.51.100.7", SpoofedSource),
        ("10.77.2.1", "198.51.100.7", SpoofedSource),
    ];
    let v6 = [
        ("::1", "2001:db8:7::7", Martian),
        ("::", "2001:db8:7::7", Martian),
        ("ff02::1", "2001:db8:7::7", Martian),
        ("fd77:1::10", "::1", Martian),
        ("fd77:1::10", "fd77:1::10", Martian),
        ("::", "ff02::1:ff00:10", NotForwardable),
        ("fd77:1::10", "ff05::2", NotForwardable),
        ("fd77:1::10", "fe80::1", NotForwardable),
        ("fe80::1", "2001:db8:7::7", NotForwardable),
        ("fd77:3::10", "2001:db8:7::7", SpoofedSource),
        ("2001:db8:7::8", "2001:db8:7::7", SpoofedSource),
        ("2001:db8:bad::1", "2001:db8:7::7", SpoofedSource),
        ("fd77:1::1", "2001:db8:7::7", SpoofedSource),
    ];
    let mut lab = Lab::new();
    for (src, dst, reason) in v4.into_iter().chain(v6) {
        lab.drops(LAN, &udp((ip(src), 40000), (ip(dst), 53)), reason);
    }
}

#[test]
fn without_a_source_check_any_source_may_come() {
    let config = CONFIG.replacen(
        "interface = \"eth0\"",
        "interface = \"eth0\"\nsource-check = false",
        1,
    );
    for net in Net::both() {
        let mut lab = Lab::of(&config);
        let query = udp((net.unrouted, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "udp+1");
    }
}

#[test]
fn a_port_that_is_down() {
    for net in Net::both() {
        let mut lab = Lab::new();
        lab.link(
            WAN,
            LinkState {
                up: false,
                ..link(WAN)
            },
        );
        let query = udp((net.host, 40000), (net.server, 53));
        let seen = lab.send(LAN, &query);
        assert_eq!(seen.verdict, Verdict::Drop(DropReason::PortDown));
        assert_eq!(seen.moved, "drop.port-down+1 udp+1");
        lab.link(WAN, link(WAN));
        lab.moved();
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "");
    }
}

#[test]
fn what_comes_for_the_gateway_itself() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for vip in [net.lan_vip, net.wan_vip] {
            let ping = echo_request((net.host, 7), vip).payload(&[0xa5; 1000]);
            let seen = lab.send(LAN, &ping);
            assert_eq!((seen.verdict, seen.moved.as_str()), (Verdict::Consumed, ""));
            let reply =
                testkit::lab::plain_packet(LAN, ping.answer().hops(64).dont_fragment().bytes());
            assert_eq!(seen.outputs, [reply]);

            let syn = tcp((net.host, 40000), (vip, 22), SYN, 100, 0);
            let reset = tcp((vip, 22), (net.host, 40000), RST_ACK, 0, 101).own();
            lab.drops(LAN, &syn, DropReason::NoListener);
            let ack = syn.clone().segment(ACK, 100, 77);
            lab.refuses(
                LAN,
                &ack,
                DropReason::NoListener,
                &reset.segment(RST, 77, 0),
            );
            lab.drops(LAN, &syn.segment(RST, 5, 5), DropReason::NoListener);

            let query = udp((net.host, 40000), (vip, 53));
            let told = icmp_error(PortUnreachable, net.lan_vip, net.host, &query.bytes());
            lab.refuses(LAN, &query, DropReason::NoListener, &told.own_error());
            lab.drops(
                LAN,
                &echo_reply(net.host, (vip, 5)),
                DropReason::IcmpUnrelated,
            );
        }
    }
}

/// The answer would go to a host that did not ask, past all policies.
#[test]
fn the_gateway_does_not_answer_to_spoofed_sources() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let ping = echo_request((net.host, 7), net.wan_vip);
        lab.drops(WAN, &ping, DropReason::SpoofedSource);
        lab.drops(WAN, &ping.src(net.lan_vip), DropReason::SpoofedSource);
        let query = udp((net.dmz_host, 7), (net.wan_vip, 9));
        lab.drops(WAN, &query, DropReason::SpoofedSource);
        lab.drops(WAN, &query.src(net.wan_vip), DropReason::Martian);
    }
}

#[test]
fn a_ping_with_a_wrong_checksum_is_not_answered() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let mut bytes = echo_request((net.host, 7), net.lan_vip).bytes();
        *bytes.last_mut().unwrap() ^= 1;
        let seen = lab.send_bytes(LAN, bytes, Offload::default());
        assert_eq!(seen.verdict, Verdict::Drop(DropReason::BadChecksum));
        assert_eq!(
            (seen.outputs.len(), seen.moved.as_str()),
            (0, "drop.bad-checksum+1")
        );
    }
}

#[test]
fn a_standby_forwards_nothing_and_says_nothing() {
    for net in Net::both() {
        let mut lab = Lab::standby(CONFIG);
        lab.drops(
            LAN,
            &udp((net.host, 40000), (net.server, 53)),
            DropReason::NotPrimary,
        );
        let forwarded = tcp((net.server, 50000), (net.wan_vip, 8080), SYN, 100, 0);
        lab.drops(WAN, &forwarded, DropReason::NotPrimary);
        lab.drops(
            LAN,
            &echo_request((net.host, 7), net.lan_vip),
            DropReason::NotPrimary,
        );
        lab.drops(
            LAN,
            &udp((net.host, 40000), (net.server, 23)),
            DropReason::PolicyReject,
        );
        lab.drops(
            LAN,
            &udp((net.host, 40000), (net.unrouted, 53)),
            DropReason::NoRoute,
        );
        assert_eq!(lab.sessions(), 0);
        lab.pass(Duration::from_secs(100));
        assert_eq!(lab.outputs(), []);
    }
}

#[test]
fn a_unit_that_was_primary_stops() {
    use tandemgw_core::flow::GroupId;
    use tandemgw_core::gateway::Role;
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "udp+1");
        lab.gateway.set_role(lab.now, GroupId(0), Role::Standby);
        lab.drops(LAN, &query, DropReason::NotPrimary);
        lab.drops(
            WAN,
            &query.clone().src(net.wan_vip).answer(),
            DropReason::NotPrimary,
        );
        lab.pass(Duration::from_secs(60));
        assert_eq!(lab.outputs(), []);
    }
}

/// Bytes of the headers of UDP over IP.
fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

#[test]
fn too_big_for_the_link_ahead() {
    for net in Net::both() {
        let mut lab = Lab::new();
        lab.link(
            WAN,
            LinkState {
                mtu: 1400,
                ..link(WAN)
            },
        );
        let fits = vec![1; 1400 - headers(net.family)];
        let query = udp((net.host, 40000), (net.server, 53))
            .dont_fragment()
            .payload(&fits);
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "udp+1");
        let big = query.payload(&vec![1; fits.len() + 1]);
        let room = if net.host.is_v4() { 548 } else { 1232 };
        let told = icmp_error(TooBig(1400), net.lan_vip, net.host, &big.bytes()[..room]);
        lab.refuses(LAN, &big, DropReason::TooBig, &told.own_error());
        if net.host.is_v4() {
            // The kernel fragments it.
            let big = Pkt {
                dont_fragment: false,
                ..big
            };
            lab.forwards(LAN, &big, &big.clone().src(net.wan_vip), "");
        }
    }
}

#[test]
fn a_super_packet_is_as_big_as_its_segments() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let ip_header = headers(net.family) - 8;
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0).dont_fragment();
        let back = out.clone().src(net.wan_vip).answer();
        lab.send(LAN, &out);
        lab.send(WAN, &back.segment(SYN_ACK, 500, 101));
        let data = out.segment(ACK, 101, 501).payload(&[1; 30_000]);
        let segment = 1500 - ip_header - 20;
        for (segment_size, verdict) in [
            (segment, Verdict::Forward),
            (segment + 1, Verdict::Drop(DropReason::TooBig)),
        ] {
            let offload = Offload {
                segment_size: segment_size as u16,
                ..Offload::default()
            };
            assert_eq!(lab.send_bytes(LAN, data.bytes(), offload).verdict, verdict);
        }
        let datagrams = udp((net.host, 40000), (net.server, 443))
            .dont_fragment()
            .payload(&[1; 30_000]);
        for (segment_size, verdict) in [
            (1500 - headers(net.family), Verdict::Forward),
            (
                1501 - headers(net.family),
                Verdict::Drop(DropReason::TooBig),
            ),
        ] {
            let offload = Offload {
                segment_size: segment_size as u16,
                ..Offload::default()
            };
            assert_eq!(
                lab.send_bytes(LAN, datagrams.bytes(), offload).verdict,
                verdict
            );
        }
    }
}

#[test]
fn errors_of_our_own_are_limited() {
    let mut lab = Lab::with("\n[limits]\nicmp-errors-per-second = 10\n");
    let net = Net::of(Family::V4);
    let refused = |lab: &mut Lab, port| {
        let seen = lab.send(LAN, &udp((net.host, port), (net.server, 23)));
        assert_eq!(seen.moved, "drop.policy-reject+1");
        seen.outputs.len()
    };
    let told: usize = (0..50).map(|port| refused(&mut lab, 40000 + port)).sum();
    assert_eq!(told, 1);
    lab.pass(Duration::from_millis(100));
    assert_eq!(refused(&mut lab, 50000), 1);
}

#[test]
fn outputs_are_bounded() {
    let mut lab = Lab::with("\n[limits]\nicmp-errors-per-second = 100000\n");
    let net = Net::of(Family::V4);
    let refused = udp((net.host, 40000), (net.server, 23)).bytes();
    for _ in 0..5000 {
        lab.gateway
            .handle_packet(lab.now, LAN, &mut refused.clone(), Offload::default());
    }
    lab.gateway.check_invariants();
    assert_eq!(lab.outputs().len(), 4096);
}

#[test]
fn what_is_no_packet_at_all() {
    let mut lab = Lab::new();
    let whole = udp(
        (Net::of(Family::V4).host, 1),
        (Addr::v4([198, 51, 100, 7]), 2),
    )
    .bytes();
    for (bytes, reason) in [
        (vec![], DropReason::Truncated),
        (vec![0x45], DropReason::Truncated),
        (vec![0x10; 40], DropReason::Malformed),
        (whole[..whole.len() - 1].to_vec(), DropReason::Truncated),
    ] {
        let seen = lab.send_bytes(LAN, bytes, Offload::default());
        assert_eq!(seen.verdict, Verdict::Drop(reason));
        assert_eq!(seen.moved, format!("drop.{}+1", reason.name()));
    }
}
