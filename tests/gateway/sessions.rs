//! Sessions of all protocols: opened, translated, answered, closed, expired.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Offload, PartialChecksum, Verdict};

use testkit::lab::{CONFIG, DMZ, LAN, Lab, Net, WAN, hex};
use testkit::packets::ErrorCode::{HostUnreachable, PortUnreachable};
use testkit::packets::{
    ACK, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_reply, echo_request, icmp_error, other, tcp, udp,
};

/// The first packets of sessions from `host` to `server` of each protocol, and what they count as.
fn openers(net: &Net) -> [(Pkt, &'static str); 4] {
    let (host, server) = (net.host, net.server);
    [
        (tcp((host, 40000), (server, 443), SYN, 100, 0), "tcp+1"),
        (udp((host, 40000), (server, 53)), "udp+1"),
        (echo_request((host, 4000), server), "icmp+1"),
        (other(47, host, server), "other+1"),
    ]
}

#[test]
fn opened_translated_and_answered() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for (first, counted) in openers(&net) {
            let outside = first.clone().src(net.wan_vip);
            lab.forwards(LAN, &first, &outside, counted);
            let answer = match first.key().protocol.0 {
                6 => outside.answer().segment(SYN_ACK, 500, 101),
                _ => outside.answer(),
            };
            lab.forwards(WAN, &answer, &answer.clone().dst(net.host), "");
        }
    }
}

#[test]
fn ports_count_what_goes_out() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let mut bytes = 0;
        for (first, counted) in openers(&net) {
            lab.forwards(LAN, &first, &first.clone().src(net.wan_vip), counted);
            bytes += first.bytes().len() as u64;
        }
        let refused = tcp((net.host, 1), (net.server, 23), SYN, 1, 0);
        lab.send(LAN, &refused);
        let [lan, wan] = [LAN, WAN].map(|port| lab.gateway.port_counters(port));
        assert_eq!((lan.out_packets, lan.out_bytes), (0, 0));
        assert_eq!((wan.out_packets, wan.out_bytes), (4, bytes));
        assert_eq!(lab.gateway.forwarded_bytes(), bytes);
        assert_eq!(lab.gateway.counters().opened, 4);
    }
}

#[test]
fn without_nat_nothing_but_the_hop_limit_changes() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for (first, counted) in openers(&net) {
            let first = first.dst(net.dmz_host);
            lab.forwards(LAN, &first, &first, counted);
            let answer = match first.key().protocol.0 {
                6 => first.answer().segment(SYN_ACK, 500, 101),
                _ => first.answer(),
            };
            lab.forwards(DMZ, &answer, &answer, "");
        }
    }
}

#[test]
fn a_tcp_connection_from_syn_to_time_wait() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        let steps = [
            (LAN, out.clone(), "tcp+1", "syn-sent"),
            (
                WAN,
                back.clone().segment(SYN_ACK, 500, 101),
                "",
                "syn-received",
            ),
            (LAN, out.clone().segment(ACK, 101, 501), "", "established"),
            (
                LAN,
                out.clone().segment(ACK, 101, 501).payload(b"GET"),
                "",
                "established",
            ),
            (
                WAN,
                back.clone().segment(ACK, 501, 104).payload(b"OK"),
                "",
                "established",
            ),
            (
                LAN,
                out.clone().segment(FIN_ACK, 104, 503),
                "",
                "established",
            ),
            (WAN, back.clone().segment(ACK, 503, 105), "", "fin-wait"),
            (WAN, back.clone().segment(FIN_ACK, 503, 105), "", "last-ack"),
            (LAN, out.clone().segment(ACK, 105, 504), "", "time-wait"),
        ];
        for (port, packet, moved, state) in steps {
            let translated = match port {
                LAN => packet.clone().src(net.wan_vip),
                _ => packet.clone().dst(net.host),
            };
            lab.forwards(port, &packet, &translated, moved);
            assert_eq!(lab.state(), state);
        }
        // A new connection from the same port.
        lab.forwards(
            LAN,
            &out.clone().segment(SYN, 9000, 0),
            &out.segment(SYN, 9000, 0).src(net.wan_vip),
            "",
        );
        assert_eq!(lab.state(), "syn-sent");
    }
}

#[test]
fn a_reset_closes_and_a_forged_one_does_not() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        lab.send(LAN, &out);
        lab.send(WAN, &back.clone().segment(SYN_ACK, 500, 101));
        lab.send(LAN, &out.clone().segment(ACK, 101, 501));
        lab.drops(
            WAN,
            &back.clone().segment(RST, 900_000_000, 0),
            DropReason::TcpWindow,
        );
        assert_eq!(lab.state(), "established");
        let reset = back.segment(RST, 501, 0);
        lab.forwards(WAN, &reset, &reset.clone().dst(net.host), "");
        assert_eq!(lab.state(), "closed");
    }
}

#[test]
fn what_opens_no_session() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let syn = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        for flags in [ACK, SYN_ACK, FIN_ACK, RST] {
            lab.drops(
                LAN,
                &syn.clone().segment(flags, 100, 1),
                DropReason::TcpNoSession,
            );
        }
        let reply = echo_reply(net.host, (net.server, 4000));
        lab.drops(LAN, &reply, DropReason::IcmpUnrelated);
        for (first, _) in openers(&net) {
            lab.drops(WAN, &first.answer(), DropReason::NoPolicy);
        }
    }
}

#[test]
fn an_echo_with_identifier_0_lets_nothing_else_in() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let request = echo_request((net.host, 0), net.dmz_host);
        lab.forwards(LAN, &request, &request, "icmp+1");
        lab.forwards(DMZ, &request.answer(), &request.answer(), "");
        let back = echo_request((net.dmz_host, 0), net.host);
        lab.drops(DMZ, &back, DropReason::NoPolicy);
        let message = if net.host.is_v4() { (13, 0) } else { (139, 0) };
        let body = testkit::packets::Body::Icmp {
            code: message,
            word: 0,
            payload: vec![0; 12],
        };
        let message = Pkt::new(net.dmz_host, net.host, body);
        lab.drops(DMZ, &message, DropReason::NoPolicy);
        lab.drops(
            DMZ,
            &request.answer().src(net.host).dst(net.dmz_host),
            DropReason::SpoofedSource,
        );
        lab.drops(
            LAN,
            &echo_reply(net.host, (net.dmz_host, 0)),
            DropReason::IcmpUnrelated,
        );
    }
}

#[test]
fn a_packet_of_a_session_must_come_in_by_its_port() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 40000), (net.dmz_host, 53));
        lab.forwards(LAN, &first, &first, "udp+1");
        lab.drops(WAN, &first, DropReason::SpoofedSource);
        lab.drops(WAN, &first.answer(), DropReason::SpoofedSource);
        lab.drops(LAN, &first.answer(), DropReason::SpoofedSource);
    }
}

#[test]
fn a_forward_leads_to_the_internal_server() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let outside = tcp((net.server, 50000), (net.wan_vip, 8080), SYN, 100, 0);
        let inside = outside.clone().dst(net.web).ports((50000, 80));
        lab.forwards(WAN, &outside, &inside, "tcp+1");
        let answer = inside.answer().segment(SYN_ACK, 7, 101);
        let translated = outside.answer().segment(SYN_ACK, 7, 101);
        lab.forwards(LAN, &answer, &translated, "");
        let data = outside.segment(ACK, 101, 8);
        lab.forwards(
            WAN,
            &data,
            &data.clone().dst(net.web).ports((50000, 80)),
            "",
        );
    }
}

#[test]
fn hairpin_a_host_inside_uses_the_external_address() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let request = tcp((net.host, 50000), (net.wan_vip, 8080), SYN, 100, 0);
        let at_server = tcp((net.lan_vip, 50000), (net.web, 80), SYN, 100, 0);
        lab.forwards(LAN, &request, &at_server, "tcp+1");
        let answer = at_server.answer().segment(SYN_ACK, 7, 101);
        lab.forwards(LAN, &answer, &request.answer().segment(SYN_ACK, 7, 101), "");
        let data = request.segment(ACK, 101, 8);
        lab.forwards(LAN, &data, &at_server.segment(ACK, 101, 8), "");
    }
}

#[test]
fn a_wrong_checksum_changes_no_state() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for (first, counted) in openers(&net).into_iter().take(3) {
            let mut bytes = first.bytes();
            *bytes.last_mut().unwrap() ^= 1;
            let seen = lab.send_bytes(LAN, bytes.clone(), Offload::default());
            assert_eq!(
                seen.verdict,
                Verdict::Drop(DropReason::BadChecksum),
                "{counted}"
            );
            assert_eq!(seen.moved, "drop.bad-checksum+1");
            assert_eq!(seen.bytes, bytes);
        }
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        lab.send(LAN, &out);
        lab.send(WAN, &back.clone().segment(SYN_ACK, 500, 101));
        lab.send(LAN, &out.clone().segment(ACK, 101, 501));
        for flags in [RST, FIN_ACK] {
            let mut bytes = back.clone().segment(flags, 501, 101).bytes();
            *bytes.last_mut().unwrap() ^= 1;
            let seen = lab.send_bytes(WAN, bytes, Offload::default());
            assert_eq!(seen.verdict, Verdict::Drop(DropReason::BadChecksum));
            assert_eq!(lab.state(), "established");
        }
        // Data is for the receiver to check: it stays wrong.
        let mut bytes = back.segment(ACK, 501, 101).payload(b"data").bytes();
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(
            lab.send_bytes(WAN, bytes, Offload::default()).verdict,
            Verdict::Forward
        );
    }
}

#[test]
fn a_partial_checksum_stays_one() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for (first, counted) in openers(&net).into_iter().take(2) {
            let seen = lab.send_bytes(LAN, partial(&first), partial_offload(&first, 0));
            assert_eq!(seen.verdict, Verdict::Forward, "{counted}");
            let expected = partial(&first.src(net.wan_vip).forwarded());
            assert_eq!(hex(&seen.bytes), hex(&expected));
        }
    }
}

/// VXLAN of a virtual machine: the outer UDP has no checksum, and that of the TCP inside is
/// unfinished. The outer one stays none (RFC 6935), and the inner one is not ours.
#[test]
fn the_unfinished_checksum_of_a_packet_in_a_tunnel_is_left_alone() {
    for (net, carried) in Net::both()
        .into_iter()
        .flat_map(|a| Net::both().map(|b| (a, b)))
    {
        for inner in [
            tcp((carried.dmz_host, 5001), (carried.web, 80), SYN, 1, 0),
            udp((carried.dmz_host, 5001), (carried.web, 53)),
        ] {
            for outer_checksum in [false, true] {
                let mut lab = Lab::new();
                let ethernet_and_vxlan = [8; 8 + 14];
                let finished = [&ethernet_and_vxlan[..], &inner.bytes()].concat();
                let outer = udp((net.host, 40000), (net.server, 4789)).payload(&finished);
                let with_unfinished = |outer: &Pkt| {
                    let mut bytes = outer.bytes();
                    let udp_header = if net.host.is_v4() { 20 } else { 40 };
                    if !outer_checksum {
                        bytes[udp_header + 6..][..2].fill(0);
                    }
                    let start = bytes.len() - inner.bytes().len();
                    bytes[start..].copy_from_slice(&partial(&inner));
                    (bytes, start)
                };
                let (bytes, start) = with_unfinished(&outer);
                let seen = lab.send_bytes(LAN, bytes, partial_offload(&inner, start));
                assert_eq!(seen.verdict, Verdict::Forward);
                let (expected, _) = with_unfinished(&outer.src(net.wan_vip).forwarded());
                assert_eq!(hex(&seen.bytes), hex(&expected));
            }
        }
    }
}

/// The kernel's description of the packet that [`partial`] makes, if it begins at `at`.
fn partial_offload(packet: &Pkt, at: usize) -> Offload {
    let start = at + if packet.src.is_v4() { 20 } else { 40 };
    let field = start + if packet.key().protocol.0 == 6 { 16 } else { 6 };
    Offload {
        partial_checksum: Some(PartialChecksum {
            start: start as u16,
            field: field as u16,
        }),
        ..Offload::default()
    }
}

/// The packet with the uncomplemented sum of its pseudo-header in its checksum field.
fn partial(packet: &Pkt) -> Vec<u8> {
    use tandemgw_core::packet::checksum::Sum;
    let mut bytes = packet.bytes();
    let header = if packet.src.is_v4() { 20 } else { 40 };
    let protocol = packet.key().protocol;
    let field = header + if protocol.0 == 6 { 16 } else { 6 };
    let mut sum = Sum::default();
    sum.add_pseudo_header(packet.src, packet.dst, protocol, bytes.len() - header);
    bytes[field..field + 2].copy_from_slice(&(!sum.checksum()).to_be_bytes());
    bytes
}

#[test]
fn each_protocol_expires_in_its_time() {
    let timeouts = r#"
[timeouts]
tcp-syn = "30s"
udp-unreplied = "120s"
icmp = "60s"
other = "600s"
"#;
    for net in Net::both() {
        for ((first, counted), seconds) in openers(&net).into_iter().zip([30, 120, 60, 600]) {
            let mut lab = Lab::with(timeouts);
            lab.send(LAN, &first);
            lab.pass(Duration::from_secs(seconds - 1));
            assert_eq!(lab.sessions(), 1, "{counted}");
            lab.send(LAN, &first);
            lab.pass(Duration::from_secs(seconds - 1));
            assert_eq!(lab.sessions(), 1, "{counted} used in between");
            lab.pass(Duration::from_secs(3));
            assert_eq!(lab.sessions(), 0, "{counted}");
            assert_eq!(lab.gateway.poll_timeout(lab.now), None);
        }
    }
}

#[test]
fn an_answer_lengthens_the_life_of_udp_and_a_handshake_that_of_tcp() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &query);
        lab.send(WAN, &query.clone().src(net.wan_vip).answer());
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        lab.send(LAN, &out);
        lab.send(WAN, &back.segment(SYN_ACK, 500, 101));
        lab.send(LAN, &out.segment(ACK, 101, 501));
        lab.pass(Duration::from_secs(299));
        assert_eq!(lab.sessions(), 2);
        lab.pass(Duration::from_secs(3));
        assert_eq!(lab.gateway.session_counts().udp, 0);
        lab.pass(Duration::from_secs(7440 - 303));
        assert_eq!(lab.sessions(), 1);
        lab.pass(Duration::from_secs(5));
        assert_eq!(lab.sessions(), 0);
    }
}

#[test]
fn a_full_table_makes_room_by_dropping_what_has_no_answer() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = |port| udp((net.host, port), (net.server, 53));
        lab.flood((20000..21024).map(|port| (LAN, query(port))));
        assert_eq!(lab.sessions(), 1024);
        let next = query(30000);
        lab.forwards(LAN, &next, &next.clone().src(net.wan_vip), "early+1");
        // The oldest went.
        let late = query(20000).src(net.wan_vip).answer();
        let refusal = icmp_error(PortUnreachable, net.wan_vip, net.server, &late.bytes());
        lab.refuses(WAN, &late, DropReason::NoListener, &refusal.own_error());
    }
}

#[test]
fn a_table_full_of_live_sessions_takes_no_more() {
    for net in Net::both() {
        let mut lab = Lab::new();
        lab.flood((20000..21024).flat_map(|port| {
            let query = udp((net.host, port), (net.server, 53));
            let answer = query.clone().src(net.wan_vip).answer();
            [(LAN, query), (WAN, answer)]
        }));
        // A call looks at 64 candidates, and each is looked at once.
        for port in 30000..30017 {
            let query = udp((net.host, port), (net.server, 53));
            let told = icmp_error(HostUnreachable, net.lan_vip, net.host, &query.bytes());
            lab.refuses(LAN, &query, DropReason::TableFull, &told.own_error());
        }
        assert_eq!(lab.sessions(), 1024);
    }
}

#[test]
fn half_open_sessions_are_limited_by_source() {
    for net in Net::both() {
        let mut lab = Lab::with("\n[limits]\nhalf-open-per-source = 2\n");
        let query = |port| udp((net.host, port), (net.server, 53));
        for port in [20000, 20001] {
            lab.forwards(LAN, &query(port), &query(port).src(net.wan_vip), "udp+1");
        }
        // The oldest goes, and not the newcomer.
        lab.forwards(
            LAN,
            &query(20002),
            &query(20002).src(net.wan_vip),
            "early+1",
        );
        let answer = |port| query(port).src(net.wan_vip).answer();
        let inside = |port: u16| answer(port).dst(net.host);
        lab.forwards(WAN, &answer(20001), &inside(20001), "");
        lab.forwards(LAN, &query(20003), &query(20003).src(net.wan_vip), "udp+1");
        // Nor that of another host.
        let other = query(20004).src(net.neighbor);
        lab.forwards(LAN, &other, &other.clone().src(net.wan_vip), "udp+1");
        lab.forwards(
            LAN,
            &query(20005),
            &query(20005).src(net.wan_vip),
            "early+1",
        );
        lab.forwards(WAN, &answer(20003), &inside(20003), "");
        lab.forwards(WAN, &answer(20004), &other.answer(), "");
    }
}

#[test]
fn a_full_table_of_answered_sessions_takes_from_the_largest_holder() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = |port| udp((net.host, port), (net.server, 53));
        lab.flood((20000..21024).flat_map(|port| {
            let answer = query(port).src(net.wan_vip).answer();
            [(LAN, query(port)), (WAN, answer)]
        }));
        // 16 looks at 64 sessions each pass all that were opened lately: none is dispensable.
        let theirs = |port| udp((net.neighbor, port), (net.server, 53));
        for port in 30000..30100 {
            let outside = theirs(port).src(net.wan_vip);
            lab.forwards(LAN, &theirs(port), &outside, "early+1");
            lab.forwards(WAN, &outside.answer(), &theirs(port).answer(), "");
        }
        assert_eq!(lab.sessions(), 1024);
        let holders: Vec<_> = lab.gateway.holders().collect();
        let held = |at: usize| (holders[at].0, holders[at].1.sessions, holders[at].1.ports);
        assert_eq!(held(0), (net.host, 924, 924));
        assert_eq!(held(1), (net.neighbor, 100, 100));
    }
}

#[test]
fn external_ports_are_shared() {
    for net in Net::both() {
        let mut lab = Lab::of(&CONFIG.replace("max-sessions = 1024", "max-sessions = 8192"));
        let query = |port| udp((net.host, port), (net.server, 53));
        let limits = "\n[limits]\nports-per-source = 3\n";
        let mut limited = Lab::with(limits);
        for lab in [&mut lab, &mut limited] {
            lab.flood((20000..20003).flat_map(|port| {
                let answer = query(port).src(net.wan_vip).answer();
                [(LAN, query(port)), (WAN, answer)]
            }));
        }
        lab.forwards(LAN, &query(20003), &query(20003).src(net.wan_vip), "udp+1");
        // The own oldest port goes; more sessions of a port that there is need none.
        limited.forwards(
            LAN,
            &query(20003),
            &query(20003).src(net.wan_vip),
            "early+1",
        );
        let second = udp((net.host, 20003), (net.server, 54));
        limited.forwards(LAN, &second, &second.clone().src(net.wan_vip), "udp+1");
        let other = query(20009).src(net.neighbor);
        limited.forwards(LAN, &other, &other.clone().src(net.wan_vip), "udp+1");
    }
}

#[test]
fn a_host_that_holds_all_ports_of_a_pool_gives_some() {
    let mut lab = Lab::of(
        &CONFIG
            .replace("max-sessions = 1024", "max-sessions = 4096")
            .replace(
                "action = \"accept\"\nnat = true",
                "action = \"accept\"\nnat-pool = \"few\"",
            )
            .replace(
                "[[forward]]\nname = \"web4\"",
                "[[nat-pool]]\nname = \"few\"\naddresses = [\"10.77.2.9\", \"fd77:2::9\"]\nports = \"20000-20099\"\n\n[[forward]]\nname = \"web4\"",
            ),
    );
    for net in Net::both() {
        let query = |port| udp((net.host, port), (net.server, 53));
        let syn = |port| tcp((net.host, port), (net.server, 443), SYN, 1, 0);
        lab.flood((20000..20100).flat_map(|port| [(LAN, query(port)), (LAN, syn(port))]));
        // Without more hosts it is exhausted.
        for _ in 0..3 {
            let seen = lab.send(LAN, &query(30000));
            assert_eq!(seen.verdict, Verdict::Drop(DropReason::NatExhausted));
        }
        let mut refused = 0;
        while lab.send(LAN, &syn(30000)).verdict != Verdict::Drop(DropReason::NatExhausted) {
            refused += 1;
            assert!(refused < 10);
        }
        for port in 30000..30010 {
            for theirs in [
                udp((net.neighbor, port), (net.server, 53)),
                tcp((net.neighbor, port), (net.server, 443), SYN, 1, 0),
            ] {
                // The search ends before somebody has to give up a port.
                let passed = (0..10).any(|_| lab.send(LAN, &theirs).verdict == Verdict::Forward);
                assert!(passed, "{port}");
            }
        }
    }
}

#[test]
fn two_hosts_with_one_port_get_two() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let one = udp((net.host, 40000), (net.server, 53));
        lab.forwards(LAN, &one, &one.clone().src(net.wan_vip), "udp+1");
        let two = one.clone().src(net.neighbor);
        let seen = lab.send(LAN, &two);
        assert_eq!(
            (seen.verdict, seen.moved.as_str()),
            (Verdict::Forward, "forwarded+1 udp+1")
        );
        let header = if net.host.is_v4() { 20 } else { 40 };
        let port = u16::from_be_bytes([seen.bytes[header], seen.bytes[header + 1]]);
        assert!(port != 40000 && port >= 1024);
        let answer = one.src(net.wan_vip).ports((port, 53)).answer();
        lab.forwards(WAN, &answer, &two.answer(), "");
    }
}

#[test]
fn a_connection_can_be_picked_up_in_its_middle_if_that_is_on() {
    for net in Net::both() {
        let mut lab = Lab::of(&format!("{CONFIG}\n[limits]\ntcp-pickup = true\n"));
        let data = tcp((net.host, 40000), (net.server, 443), ACK, 100, 900);
        lab.forwards(LAN, &data, &data.clone().src(net.wan_vip), "tcp+1");
        lab.drops(
            LAN,
            &data.ports((40001, 443)).segment(RST, 1, 1),
            DropReason::TcpNoSession,
        );
    }
}
