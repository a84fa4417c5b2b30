//! Explanations come true, also when tables and ports run out. The usual ways are compared with
//! random packets in `random.rs`.

use tandemgw_core::config::Nat;
use tandemgw_core::event::{DropReason, LinkState, Verdict};
use tandemgw_core::flow::{GroupId, PortId};
use tandemgw_core::gateway::{Explanation, Matched, PacketFate, Pickup, Role, Scope, Survives};

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, link};
use testkit::packets::{Pkt, SYN, echo_request, tcp, udp};

/// Explains a packet, then sends it: the same must come of it, and no counter may move before.
#[track_caller]
fn foretold(lab: &mut Lab, port: PortId, packet: &Pkt) -> Explanation {
    let explanation = lab
        .gateway
        .explain(lab.now, port, &packet.bytes(), Scope::Packet)
        .expect("a whole packet");
    assert_eq!(lab.moved().1, "", "an explanation counts nothing");
    let verdict = match explanation.fate_here {
        PacketFate::Forward => Verdict::Forward,
        PacketFate::Answer | PacketFate::Wait(_) => Verdict::Consumed,
        PacketFate::Drop { reason, .. } => Verdict::Drop(reason),
        PacketFate::Kernel => panic!("what the kernel takes does not come to a TUN"),
    };
    assert_eq!(lab.send(port, packet).verdict, verdict, "{explanation:#?}");
    explanation
}

#[track_caller]
fn assert_dropped(explanation: &Explanation, expected: DropReason) {
    match explanation.fate {
        PacketFate::Drop { reason, .. } => assert_eq!(reason, expected),
        fate => panic!("{fate:?}"),
    }
}

#[test]
fn what_is_for_an_address_of_the_machine_is_the_kernels() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let own = net.server;
        let syn = tcp((net.host, 40_000), (own, 22), SYN, 1, 0).bytes();
        let explain = |lab: &Lab| {
            let explained = lab.gateway.explain(lab.now, LAN, &syn, Scope::Flow);
            explained.expect("a whole packet")
        };
        assert_eq!(explain(&lab).fate, PacketFate::Forward);
        lab.gateway
            .handle_kernel_address(lab.now, own, Some(WAN), true);
        let explanation = explain(&lab);
        assert!(matches!(explanation.matched, Matched::Machine));
        assert_eq!(explanation.fate, PacketFate::Kernel);
        assert_eq!(explanation.passed_over.mismatches, [], "no policy is asked");
        lab.gateway
            .handle_kernel_address(lab.now, own, Some(WAN), false);
        assert_eq!(explain(&lab).fate, PacketFate::Forward);
    }
}

#[test]
fn a_full_table_makes_room_or_refuses() {
    for net in Net::both() {
        let mut lab = Lab::with("[limits]\nhalf-open-per-source = 0\n");
        let query = |port: u16| udp((net.host, port), (net.server, 53));
        lab.flood((0..1024).map(|n| (LAN, query(20_000 + n))));
        // The oldest has no answer: it goes.
        let explanation = foretold(&mut lab, LAN, &query(30_000));
        assert!(explanation.makes_room);
        assert_eq!(explanation.fate, PacketFate::Forward);
        // All have answers: none goes.
        lab.gateway.check_invariants();
        let answers = (1..1024).map(|n| query(20_000 + n)).chain([query(30_000)]);
        lab.flood(answers.map(|it| (WAN, it.src(net.wan_vip).answer())));
        let explanation = foretold(&mut lab, LAN, &query(30_001));
        assert_dropped(&explanation, DropReason::TableFull);
    }
}

#[test]
fn a_source_with_too_many_half_open_sessions_gives_its_oldest() {
    for net in Net::both() {
        let mut lab = Lab::with("[limits]\nhalf-open-per-source = 2\n");
        let syn = |port| tcp((net.host, port), (net.server, 443), SYN, 1, 0);
        for port in [4000, 4001] {
            assert_eq!(
                foretold(&mut lab, LAN, &syn(port)).fate,
                PacketFate::Forward
            );
        }
        let explanation = foretold(&mut lab, LAN, &syn(4002));
        assert_eq!(explanation.fate, PacketFate::Forward);
        assert!(explanation.makes_room);
    }
}

#[test]
fn the_port_that_will_be_taken_is_known() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let first = udp((net.host, 5000), (net.server, 53));
        let source = foretold(&mut lab, LAN, &first).source.unwrap();
        assert_eq!(source.to, Some((net.wan_vip, 5000)));
        assert_eq!(source.nat, Nat::Egress);
        // The same port of another host gets another one, which is the one that is foretold.
        let second = udp((net.neighbor, 5000), (net.server, 53));
        let explanation = foretold(&mut lab, LAN, &second);
        let (addr, port) = explanation.source.unwrap().to.unwrap();
        assert_eq!(addr, net.wan_vip);
        assert_ne!(port, 5000);
        let (mut views, _) = lab.gateway.page(0, u32::MAX, lab.now);
        let view = views.find(|view| view.original == explanation.key).unwrap();
        assert_eq!(Some(view.translated), explanation.leaves_as);
        assert_eq!(view.translated.src_port, port);
    }
}

#[test]
fn a_forward_is_named_and_leads_back_where_it_must() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let inwards = tcp((net.server, 4000), (net.wan_vip, 8080), SYN, 1, 0);
        let explanation = foretold(&mut lab, WAN, &inwards);
        assert!(explanation.forward.is_some());
        assert_eq!(explanation.source, None);
        assert_eq!(explanation.leaves_as.unwrap().dst, net.web);
        let hairpin = tcp((net.host, 4000), (net.wan_vip, 8080), SYN, 1, 0);
        let explanation = foretold(&mut lab, LAN, &hairpin);
        assert!(explanation.source.unwrap().hairpin);
        assert_eq!(explanation.leaves_as.unwrap().src, net.lan_vip);
    }
}

#[test]
fn the_port_ahead_is_down() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let down = LinkState {
            up: false,
            ..link(WAN)
        };
        lab.link(WAN, down);
        lab.moved();
        let syn = tcp((net.host, 4000), (net.server, 443), SYN, 1, 0);
        assert_dropped(&foretold(&mut lab, LAN, &syn), DropReason::PortDown);
    }
}

#[test]
fn a_standby_explains_what_the_primary_does() {
    for net in Net::both() {
        let mut lab = Lab::new();
        lab.gateway.set_role(lab.now, GroupId(0), Role::Standby);
        lab.moved();
        let not_primary = PacketFate::Drop {
            reason: DropReason::NotPrimary,
            told: false,
        };
        let syn = tcp((net.host, 4000), (net.server, 443), SYN, 1, 0);
        let explanation = foretold(&mut lab, LAN, &syn);
        assert_eq!(explanation.fate, PacketFate::Forward);
        assert_eq!(explanation.fate_here, not_primary);
        assert_eq!(explanation.leaves_as.unwrap().src, net.wan_vip);
        let ping = echo_request((net.host, 7), net.lan_vip);
        let explanation = foretold(&mut lab, LAN, &ping);
        assert!(matches!(explanation.matched, Matched::Gateway));
        assert_eq!(explanation.fate, PacketFate::Answer);
        assert_eq!(explanation.fate_here, not_primary);
    }
}

#[test]
fn without_peers_nothing_would_survive() {
    let net = Net::both()[0];
    let mut lab = Lab::new();
    let syn = tcp((net.host, 4000), (net.server, 443), SYN, 1, 0);
    let pickup = foretold(&mut lab, LAN, &syn).pickup.unwrap();
    assert_eq!(pickup, Pickup::Standalone);
    assert_eq!(pickup.survives(), Survives::No);
    // A packet that is dropped or answered has no session.
    let ping = echo_request((net.host, 7), net.lan_vip);
    assert_eq!(foretold(&mut lab, LAN, &ping).pickup, None);
    let unwanted = tcp((net.server, 4000), (net.host, 443), SYN, 1, 0);
    assert_eq!(foretold(&mut lab, WAN, &unwanted).pickup, None);
}

#[test]
fn a_port_that_the_largest_holder_gives_is_foretold() {
    const POOL: &str = "\n[[nat-pool]]\nname = \"p\"\naddresses = [\"10.77.2.9\", \"fd77:2::9\"]\nports = \"4000-4015\"\n";
    for net in Net::both() {
        for protocol in [
            tandemgw_core::flow::Protocol::UDP,
            tandemgw_core::flow::Protocol::TCP,
        ] {
            let config = CONFIG.replacen("nat = true", "nat-pool = \"p\"", 1) + POOL;
            let mut lab = Lab::of(&config);
            let packet = |source, port| match protocol {
                tandemgw_core::flow::Protocol::TCP => {
                    tcp((source, port), (net.server, 443), SYN, 1, 0)
                }
                _ => udp((source, port), (net.server, 53)),
            };
            lab.flood((0..16).map(|n| (LAN, packet(net.host, 20_000 + n))));
            let explanation = foretold(&mut lab, LAN, &packet(net.neighbor, 30_000));
            assert_eq!(explanation.fate, PacketFate::Forward);
            assert!(explanation.makes_room);
            assert_eq!(lab.sessions(), 16);
        }
    }
}

#[test]
fn a_port_has_quotas_of_its_own() {
    let quotas = "name = \"lan\"\nhalf-open-per-source = 2\nports-per-source = 3";
    let config =
        CONFIG.replacen("name = \"lan\"", quotas, 1) + "[limits]\nhalf-open-per-source = 0\n";
    for net in Net::both() {
        let mut lab = Lab::of(&config);
        let syn = |port| tcp((net.host, port), (net.server, 443), SYN, 1, 0);
        for port in 4000..4002 {
            assert!(!foretold(&mut lab, LAN, &syn(port)).makes_room);
        }
        assert!(foretold(&mut lab, LAN, &syn(4002)).makes_room);
        assert_eq!(lab.sessions(), 2);
        // From another port the limits hold that are for all.
        for port in 5000..5010 {
            let syn = tcp((net.router, port), (net.wan_vip, 8080), SYN, 1, 0);
            assert!(!foretold(&mut lab, WAN, &syn).makes_room);
        }
        let query = |port| udp((net.neighbor, port), (net.server, 53));
        for port in 6000..6003 {
            lab.send(LAN, &query(port));
            lab.send(WAN, &query(port).src(net.wan_vip).answer());
        }
        // Its fourth external port costs the idle one of another session.
        assert!(foretold(&mut lab, LAN, &query(6003)).makes_room);
    }
}
