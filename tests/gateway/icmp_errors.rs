//! ICMP errors of others, through the translation and in both directions.

use tandemgw_core::event::{DropReason, Offload, Verdict};

use testkit::lab::{DMZ, LAN, Lab, Net, WAN, ip};
use testkit::packets::ErrorCode::{PortUnreachable, TimeExceeded, TooBig};
use testkit::packets::{
    ACK, ErrorCode, Pkt, SYN, SYN_ACK, echo_request, icmp_error, other, tcp, udp,
};

const KINDS: [ErrorCode; 3] = [PortUnreachable, TimeExceeded, TooBig(1400)];

/// First packets from `host` to `server`, as they come in and as they leave.
fn sent(net: &Net) -> [(Pkt, Pkt); 4] {
    let (host, server) = (net.host, net.server);
    [
        tcp((host, 40000), (server, 443), SYN, 100, 0),
        udp((host, 40000), (server, 53)),
        echo_request((host, 4000), server),
        other(47, host, server),
    ]
    .map(|first| {
        let outside = first.clone().src(net.wan_vip).forwarded();
        (first.forwarded(), outside)
    })
}

#[test]
fn from_a_router_or_the_destination_outside_to_the_host_inside() {
    for net in Net::both() {
        for kind in KINDS {
            let mut lab = Lab::new();
            for (inside, outside) in sent(&net) {
                let mut first = inside.clone();
                first.hop_limit -= 1;
                lab.send(LAN, &first);
                for from in [net.router, net.server] {
                    let error = icmp_error(kind, from, net.wan_vip, &outside.bytes());
                    let seen_inside = icmp_error(kind, from, net.host, &inside.bytes());
                    lab.forwards(WAN, &error, &seen_inside, "");
                }
            }
        }
    }
}

/// Hosts would get to know an address of this unit, which changes with a takeover.
#[test]
fn this_kernel_speaks_for_the_gateway_except_about_itself() {
    for net in Net::both() {
        for kind in KINDS {
            let mut lab = Lab::new();
            let gateway = net.lan_vip;
            for (inside, outside) in sent(&net) {
                let mut first = inside.clone();
                first.hop_limit -= 1;
                lab.send(LAN, &first);
                for (kernel, author) in [(net.router, gateway), (net.server, net.server)] {
                    lab.gateway
                        .handle_kernel_address(lab.now, kernel, Some(WAN), true);
                    let error = icmp_error(kind, kernel, net.wan_vip, &outside.bytes());
                    let seen_inside = icmp_error(kind, author, net.host, &inside.bytes());
                    lab.forwards(WAN, &error, &seen_inside, "");
                    lab.gateway
                        .handle_kernel_address(lab.now, kernel, Some(WAN), false);
                }
            }
        }
    }
}

/// The kernel's errors about untranslated senders come by the first port, from any address that the
/// kernel has. It needs no proof, and from others they would be drops.
#[test]
fn this_kernel_speaks_by_the_first_port_about_any_other() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.dmz_host, 53));
        lab.send(LAN, &first);
        let as_sent = first.forwarded();
        let link_local = ip("fe80::7");
        let loopback = ip("127.77.0.1");
        let odd = [loopback, link_local][net.family as usize];
        for kernel in [net.router, odd] {
            // Less than any host outside may claim.
            let error = icmp_error(TooBig(700), kernel, net.host, &as_sent.bytes());
            let refused = match kernel == net.router {
                true => DropReason::SpoofedSource,
                false => DropReason::Martian,
            };
            lab.drops(LAN, &error, refused);
            lab.gateway
                .handle_kernel_address(lab.now, kernel, Some(WAN), true);
            let expected = icmp_error(TooBig(700), net.lan_vip, net.host, &as_sent.bytes());
            lab.forwards(LAN, &error, &expected, "");
            lab.drops(WAN, &error, DropReason::SpoofedSource);
            lab.gateway
                .handle_kernel_address(lab.now, kernel, Some(WAN), false);
        }
    }
}

/// A kernel without an address speaks from one that others may have as well (RFC 7600). What it
/// has been led to send by the first port has a hop limit that no packet of others can have.
#[test]
fn this_kernel_is_known_by_its_hop_limit_whatever_its_address() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.dmz_host, 53));
        lab.send(LAN, &first);
        let as_sent = first.forwarded();
        let dummy = [ip("192.0.0.8"), ip("100::8")][net.family as usize];
        let error = icmp_error(TooBig(700), dummy, net.host, &as_sent.bytes());
        lab.drops(LAN, &error, DropReason::SpoofedSource);
        let from_outside = error.clone().hops(254);
        lab.drops(LAN, &from_outside, DropReason::SpoofedSource);
        lab.drops(DMZ, &from_outside, DropReason::IcmpUnrelated);
        let by_kernel = error.hops(255);
        lab.drops(WAN, &by_kernel, DropReason::SpoofedSource);
        let expected = icmp_error(TooBig(700), net.lan_vip, net.host, &as_sent.bytes());
        lab.forwards(LAN, &by_kernel, &expected.hops(254), "");
    }
}

#[test]
fn from_inside_about_an_answer() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &query);
        let answer = query.src(net.wan_vip).answer();
        let inside = answer.clone().dst(net.host).forwarded();
        lab.send(WAN, &answer);
        // From the host itself, and from a router on the way to it: neither shows its address.
        for from in [net.host, net.neighbor] {
            let error = icmp_error(PortUnreachable, from, net.server, &inside.bytes());
            let outside = answer.clone().forwarded().bytes();
            let expected = icmp_error(PortUnreachable, net.wan_vip, net.server, &outside);
            lab.forwards(LAN, &error, &expected, "");
        }
    }
}

#[test]
fn from_the_server_of_a_forward_or_a_router_before_it() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let outside = tcp((net.server, 50000), (net.wan_vip, 8080), SYN, 100, 0);
        let inside = outside.clone().dst(net.web).ports((50000, 80));
        lab.send(WAN, &outside);
        for from in [net.web, net.neighbor] {
            let quoted = inside.clone().forwarded().bytes();
            let error = icmp_error(TooBig(1300), from, net.server, &quoted);
            let quoted = outside.clone().forwarded().bytes();
            let expected = icmp_error(TooBig(1300), net.wan_vip, net.server, &quoted);
            lab.forwards(LAN, &error, &expected, "");
        }
        // And one from the other side, about an answer.
        let answer = inside.answer().segment(SYN_ACK, 7, 101);
        lab.send(LAN, &answer);
        let as_sent = outside.answer().segment(SYN_ACK, 7, 101).forwarded();
        let error = icmp_error(TimeExceeded, net.router, net.wan_vip, &as_sent.bytes());
        let expected = icmp_error(
            TimeExceeded,
            net.router,
            net.web,
            &answer.forwarded().bytes(),
        );
        lab.forwards(WAN, &error, &expected, "");
    }
}

#[test]
fn a_quotation_of_the_least_length_is_enough() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.server, 53)).payload(&[1; 600]);
        lab.send(LAN, &first);
        let header = if net.host.is_v4() { 20 } else { 40 };
        let outside = first.clone().src(net.wan_vip).forwarded().bytes();
        let error = icmp_error(
            TimeExceeded,
            net.router,
            net.wan_vip,
            &outside[..header + 8],
        );
        let inside = first.forwarded().bytes();
        let expected = icmp_error(TimeExceeded, net.router, net.host, &inside[..header + 8]);
        lab.forwards(WAN, &error, &expected, "");
    }
}

#[test]
fn what_is_not_passed_on() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (first, outside) = (udp((net.host, 40000), (net.server, 53)), net.wan_vip);
        lab.send(LAN, &first);
        let quoted = first.clone().src(outside).forwarded();
        let about = |quoted: &Pkt| icmp_error(TimeExceeded, net.router, outside, &quoted.bytes());

        lab.drops(
            WAN,
            &about(&quoted.clone().ports((40001, 53))),
            DropReason::IcmpUnrelated,
        );
        lab.drops(
            WAN,
            &about(&quoted.clone().src(net.host)),
            DropReason::IcmpUnrelated,
        );
        let error = about(&quoted);
        // Only from where the packet went, and not in the name of an address that nobody has.
        lab.drops(DMZ, &error, DropReason::SpoofedSource);
        lab.drops(LAN, &error, DropReason::SpoofedSource);
        let loopback = if net.host.is_v4() { "127.0.0.1" } else { "::1" };
        lab.drops(
            WAN,
            &error.clone().src(testkit::lab::ip(loopback)),
            DropReason::Martian,
        );

        let mut bytes = error.bytes();
        *bytes.last_mut().unwrap() ^= 1;
        let seen = lab.send_bytes(WAN, bytes, Offload::default());
        assert_eq!(seen.verdict, Verdict::Drop(DropReason::BadChecksum));
        assert_eq!(seen.moved, "drop.bad-checksum+1");
    }
}

/// RFC 5927, section 4.1: an error about TCP must quote a segment in flight.
#[test]
fn about_tcp_only_if_the_quoted_segment_is_under_way() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        lab.send(LAN, &out);
        let back = out.clone().src(net.wan_vip).answer();
        lab.send(WAN, &back.clone().segment(SYN_ACK, 500, 101));
        let data = out.clone().segment(ACK, 101, 501).payload(&[7; 1000]);
        lab.send(LAN, &data);
        lab.send(WAN, &back.segment(ACK, 501, 601));
        for (seq, is_sent) in [
            (100, false),
            (599, false),
            (600, true), // a keep-alive
            (601, true),
            (1101, true), // without data
            (1102, false),
            (0x9000_0000, false),
        ] {
            for kind in KINDS {
                let quoted = out.clone().segment(ACK, seq, 501).forwarded();
                let outside = quoted.clone().src(net.wan_vip);
                let error = icmp_error(kind, net.router, net.wan_vip, &outside.bytes());
                if is_sent {
                    let inside = icmp_error(kind, net.router, net.host, &quoted.bytes());
                    lab.forwards(WAN, &error, &inside, "");
                } else {
                    lab.drops(WAN, &error, DropReason::IcmpUnrelated);
                }
            }
        }
        assert_eq!(lab.state(), "established");
    }
}

/// Anybody who knows addresses and ports can quote a datagram, so such an error can't lower the
/// path MTU by much.
#[test]
fn too_big_without_sequence_numbers_has_a_least_mtu() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.server, 53)).payload(&[1; 1400]);
        lab.send(LAN, &first);
        let outside = first.clone().src(net.wan_vip).forwarded();
        let inside = first.forwarded();
        for mtu in [0, 68, 552, 1279] {
            let error = icmp_error(TooBig(mtu), net.router, net.wan_vip, &outside.bytes());
            lab.drops(WAN, &error, DropReason::IcmpUnrelated);
        }
        for mtu in [1280, 1400] {
            let error = icmp_error(TooBig(mtu), net.router, net.wan_vip, &outside.bytes());
            let expected = icmp_error(TooBig(mtu), net.router, net.host, &inside.bytes());
            lab.forwards(WAN, &error, &expected, "");
        }
    }
}

/// An error about a session is not a packet of it: it neither prolongs the session nor counts as an
/// answer.
#[test]
fn an_error_leaves_its_session_as_it_is() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &first);
        lab.pass(std::time::Duration::from_secs(5));
        lab.outputs();
        let of_session = |lab: &Lab| {
            let mut sessions = lab.gateway.page(0, u32::MAX, lab.now).0;
            let it = sessions.next().expect("a session");
            (it.state, it.packets, it.bytes, it.expires_s)
        };
        let before = of_session(&lab);
        let outside = first.clone().src(net.wan_vip).forwarded();
        let error = icmp_error(PortUnreachable, net.server, net.wan_vip, &outside.bytes());
        let inside = icmp_error(
            PortUnreachable,
            net.server,
            net.host,
            &first.forwarded().bytes(),
        );
        lab.forwards(WAN, &error, &inside, "");
        assert_eq!(of_session(&lab), before);
    }
}
