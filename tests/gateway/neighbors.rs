//! ARP and Neighbor Discovery: answers, claims of others, and announcements.

use std::time::Duration;

use tandemgw_core::event::{DropReason, KernelLookup, LinkState, Output, Verdict};
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::gateway::Role;
use tandemgw_core::packet::neighbor::{self, Neighbor, Solicit};

use testkit::lab::{CONFIG, DMZ, LAN, Lab, Net, WAN, ip, link, mac};
use testkit::packets::{echo_reply, echo_request, udp};

const THEIRS: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn ask(lab: &mut Lab, port: PortId, frame: &[u8]) -> (Vec<Output>, String) {
    lab.gateway.handle_frame(lab.now, port, frame);
    lab.moved()
}

#[test]
fn answers_for_its_own_addresses_on_their_port_only() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let question = |target| neighbor::solicit(target, net.host, THEIRS);
        let solicit = Solicit {
            target: net.lan_vip,
            sender: net.host,
            sender_mac: THEIRS,
        };
        let answer = Output::Frame {
            port: LAN,
            bytes: neighbor::reply(&solicit, mac(LAN)),
        };
        assert_eq!(
            ask(&mut lab, LAN, &question(net.lan_vip)),
            (vec![answer], String::new())
        );
        for (port, target) in [(WAN, net.lan_vip), (LAN, net.wan_vip), (LAN, net.neighbor)] {
            assert_eq!(
                ask(&mut lab, port, &question(target)),
                (vec![], String::new())
            );
        }
        let probe = neighbor::probe(net.lan_vip, THEIRS);
        assert_eq!(ask(&mut lab, LAN, &probe).0.len(), 1);
        let mut lab = Lab::standby(CONFIG);
        assert_eq!(
            ask(&mut lab, LAN, &question(net.lan_vip)),
            (vec![], String::new())
        );
    }
}

#[test]
fn a_pool_in_the_network_of_a_port_is_answered_for() {
    let pool = "\n[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10-10.77.2.12\"]\n";
    let mut lab = Lab::with(pool);
    let question = |target| neighbor::solicit(ip(target), ip("10.77.2.254"), THEIRS);
    assert_eq!(ask(&mut lab, WAN, &question("10.77.2.11")).0.len(), 1);
    assert_eq!(ask(&mut lab, WAN, &question("10.77.2.13")).0.len(), 0);
    assert_eq!(ask(&mut lab, LAN, &question("10.77.2.11")).0.len(), 0);
}

#[test]
fn a_claim_to_our_address_is_counted_and_defended_once_in_a_while() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let claim = |addr| neighbor::announce(addr, THEIRS).remove(0);
        let defence: Vec<Output> = neighbor::announce(net.lan_vip, mac(LAN))
            .into_iter()
            .map(|bytes| Output::Frame { port: LAN, bytes })
            .collect();
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (defence.clone(), "conflicts+1".into())
        );
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (vec![], "conflicts+1".into())
        );
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.host)),
            (vec![], String::new())
        );
        assert_eq!(
            ask(&mut lab, WAN, &claim(net.lan_vip)),
            (vec![], String::new())
        );
        // Our own frames that come back.
        let ours = neighbor::announce(net.lan_vip, mac(LAN)).remove(0);
        assert_eq!(ask(&mut lab, LAN, &ours), (vec![], String::new()));
        lab.pass(Duration::from_secs(10));
        lab.outputs();
        assert_eq!(
            ask(&mut lab, LAN, &claim(net.lan_vip)),
            (defence, "conflicts+1".into())
        );
    }
}

/// Which addresses a list of outputs announces, by port.
fn announced(outputs: &[Output]) -> Vec<(PortId, Addr)> {
    let mut all: Vec<(PortId, Addr)> = outputs
        .iter()
        .map(|output| match output {
            Output::Frame { port, bytes } => match neighbor::parse_frame(bytes).unwrap() {
                Neighbor::Advertise(claim) => {
                    assert_eq!(claim.mac, mac(*port));
                    (*port, claim.addr)
                }
                other => panic!("{other:?}"),
            },
            other => panic!("no frame: {other:?}"),
        })
        .collect();
    all.dedup();
    all
}

fn all_addresses() -> Vec<(PortId, Addr)> {
    let of_port = |port: u8| {
        [
            ip(&format!("10.77.{port}.1")),
            ip(&format!("fd77:{port}::1")),
        ]
        .map(|addr| (PortId(u16::from(port) - 1), addr))
    };
    (1..=3).flat_map(of_port).collect()
}

#[test]
fn a_new_primary_announces_at_once_and_repeats() {
    let mut lab = Lab::standby(CONFIG);
    assert_eq!(lab.gateway.poll_timeout(lab.now), None);
    lab.gateway.start(lab.now);
    assert_eq!(announced(&lab.outputs()), all_addresses());
    for _ in 0..4 {
        lab.pass(Duration::from_millis(900));
        assert_eq!(lab.outputs(), []);
        lab.pass(Duration::from_millis(100));
        assert_eq!(announced(&lab.outputs()), all_addresses());
    }
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.outputs(), []);
    assert_eq!(lab.gateway.poll_timeout(lab.now), None);
}

#[test]
fn a_port_that_comes_up_is_announced_and_one_that_is_down_is_not() {
    let mut lab = Lab::new();
    lab.pass(Duration::from_secs(60));
    lab.outputs();
    lab.link(
        LAN,
        LinkState {
            up: false,
            ..link(LAN)
        },
    );
    assert_eq!(lab.outputs(), []);
    lab.gateway.start(lab.now);
    assert_eq!(lab.outputs(), []);
    lab.link(LAN, link(LAN));
    let outputs = lab.outputs();
    assert!(announced(&outputs).contains(&(LAN, ip("10.77.1.1"))));
    // A new hardware address is news as well; the same state again is not.
    lab.link(
        WAN,
        LinkState {
            mtu: 1400,
            ..link(WAN)
        },
    );
    assert_eq!(lab.outputs(), []);
    lab.link(
        WAN,
        LinkState {
            mac: THEIRS,
            ..link(WAN)
        },
    );
    assert!(!lab.outputs().is_empty());
}

#[test]
fn a_unit_that_steps_down_announces_no_more() {
    let mut lab = Lab::new();
    let group = tandemgw_core::flow::GroupId(0);
    lab.gateway.set_role(lab.now, group, Role::Standby);
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.outputs(), []);
    assert_eq!(lab.gateway.role_of(group), Role::Standby);
    for net in Net::both() {
        let claim = neighbor::announce(net.lan_vip, THEIRS).remove(0);
        assert_eq!(
            ask(&mut lab, LAN, &claim),
            (vec![], String::new()),
            "the primary may"
        );
    }
}

#[test]
fn each_link_has_its_link_local_router() {
    let both = ["10.77.1.1/24", "10.77.2.1/24"];
    let config = both.iter().fold(CONFIG.to_owned(), |config, own| {
        config.replacen(
            &format!("\"{own}\","),
            &format!("\"{own}\", \"fe80::1/64\","),
            1,
        )
    });
    let (router, host) = (ip("fe80::1"), ip("fe80::77"));
    let mut lab = Lab::standby(&config);
    let question = neighbor::solicit(router, host, THEIRS);
    assert_eq!(
        ask(&mut lab, LAN, &question).0,
        [],
        "not before it is primary"
    );
    lab.gateway.start(lab.now);
    lab.pass(Duration::from_millis(10));
    let announced = lab.outputs();
    for port in [LAN, WAN] {
        let solicit = Solicit {
            target: router,
            sender: host,
            sender_mac: THEIRS,
        };
        let answer = Output::Frame {
            port,
            bytes: neighbor::reply(&solicit, mac(port)),
        };
        assert_eq!(ask(&mut lab, port, &question).0, [answer]);
        for bytes in neighbor::announce(router, mac(port)) {
            assert!(
                announced.contains(&Output::Frame { port, bytes }),
                "{announced:?}"
            );
        }
    }
    assert_eq!(ask(&mut lab, DMZ, &question).0, []);
    // The kernel routes no ping to it, so that comes as a frame, from an address of either kind.
    for sender in [host, Net::of(Family::V6).host] {
        let ping =
            |to| neighbor::ipv6_frame(mac(LAN), THEIRS, &echo_request((sender, 7), to).bytes());
        let pong = echo_reply(router, (sender, 7)).own().bytes();
        let answer = Output::Frame {
            port: LAN,
            bytes: neighbor::ipv6_frame(THEIRS, mac(LAN), &pong),
        };
        assert_eq!(ask(&mut lab, LAN, &ping(router)).0, [answer]);
        assert_eq!(ask(&mut lab, DMZ, &ping(router)).0, []);
        assert_eq!(ask(&mut lab, LAN, &ping(ip("fe80::2"))).0, []);
        let mut broken = ping(router);
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(ask(&mut lab, LAN, &broken).0, []);
    }
    // It sends nothing else from it: hosts far away could not reach it.
    let net = Net::of(Family::V6);
    let lost = udp((net.host, 4000), (net.unrouted, 53));
    let told = lab.send(LAN, &lost).outputs;
    let error = testkit::packets::icmp_error(
        testkit::packets::ErrorCode::NoRoute,
        net.lan_vip,
        net.host,
        &lost.bytes(),
    );
    let error = error.own_error().bytes();
    assert_eq!(told, [testkit::lab::plain_packet(LAN, error)]);
}

/// A host of the DMZ's network that does not exist.
fn nobody(net: &Net, number: u16) -> Addr {
    let mut octets = *net.dmz_host.octets();
    octets[15] = number as u8;
    if net.family == Family::V6 {
        octets[14] = 1 + (number >> 8) as u8;
    }
    match net.family {
        Family::V4 => Addr::v4([octets[12], octets[13], octets[14], octets[15]]),
        Family::V6 => Addr::v6(octets),
    }
}

/// Sends a datagram to each of this many hosts that don't exist; returns how many were forwarded.
fn scan(lab: &mut Lab, net: &Net, source: Addr, hosts: std::ops::Range<u16>) -> usize {
    let hosts = hosts.map(|number| udp((source, 4000), (nobody(net, number), 9)));
    let forwarded = hosts.filter(|packet| match lab.send(LAN, packet).verdict {
        Verdict::Forward => true,
        Verdict::Drop(DropReason::NeighborLimit) => false,
        verdict => panic!("{verdict:?}"),
    });
    forwarded.count()
}

#[test]
fn a_scan_of_a_link_waits_for_few_hosts_and_keeps_nobody_from_others() {
    for net in Net::both() {
        let mut lab = Lab::new();
        // As each host does first.
        for host in [net.host, net.neighbor] {
            ask(&mut lab, LAN, &neighbor::solicit(net.lan_vip, host, THEIRS));
        }
        let query = udp((net.neighbor, 4000), (net.dmz_host, 53));
        assert_eq!(lab.send(LAN, &query).verdict, Verdict::Forward);
        assert_eq!(lab.send(DMZ, &query.answer()).verdict, Verdict::Forward);
        assert_eq!(scan(&mut lab, &net, net.host, 20..120), 32);
        // Packets to a host that is being looked for don't make the kernel look for another one.
        assert_eq!(scan(&mut lab, &net, net.host, 20..120), 32);
        // Another source has places of its own, and reaches who has answered in any case.
        assert_eq!(scan(&mut lab, &net, net.neighbor, 130..200), 32);
        let more = udp((net.neighbor, 4001), (net.dmz_host, 53));
        assert_eq!(lab.send(LAN, &more).verdict, Verdict::Forward);
        assert_eq!(lab.send(LAN, &more.src(net.host)).verdict, Verdict::Forward);
        // The sessions that are there wait like new ones.
        lab.pass(Duration::from_millis(3100));
        assert_eq!(scan(&mut lab, &net, net.host, 60..120), 32);
        assert_eq!(scan(&mut lab, &net, net.host, 20..52), 0);
    }
}

/// More are heard than are remembered: somebody makes them up.
#[test]
fn hosts_that_answer_arp_are_waited_for_no_longer() {
    for net in Net::both() {
        let mut lab = Lab::new();
        for number in 0..3000_u16 {
            let mut octets = *net.host.octets();
            [octets[14], octets[15]] = (number + 300).to_be_bytes();
            let made_up = match net.family {
                Family::V4 => Addr::v4([octets[12], octets[13], octets[14], octets[15]]),
                Family::V6 => Addr::v6(octets),
            };
            ask(
                &mut lab,
                LAN,
                &neighbor::solicit(net.lan_vip, made_up, THEIRS),
            );
        }
        assert_eq!(scan(&mut lab, &net, net.host, 20..120), 32);
        // Of those that are waited for ten answer the kernel, and so leave their places.
        for number in 20..30 {
            let answer = neighbor::announce(nobody(&net, number), THEIRS).remove(0);
            ask(&mut lab, DMZ, &answer);
        }
        assert_eq!(scan(&mut lab, &net, net.host, 120..220), 10);
        assert_eq!(
            scan(&mut lab, &net, net.neighbor, 20..30),
            10,
            "they are known"
        );
    }
}

#[test]
fn all_the_addresses_of_a_host_share_the_places_of_their_network() {
    let net = Net::of(Family::V6);
    let mut lab = Lab::new();
    let source = |number: u8| {
        let mut octets = *net.host.octets();
        octets[12] = number;
        Addr::v6(octets)
    };
    let scans = (0..20).map(|number| {
        let first = u16::from(number) * 100;
        scan(&mut lab, &net, source(number), first..first + 20)
    });
    assert_eq!(scans.sum::<usize>(), 128);
}

#[test]
fn all_sources_together_leave_room_in_the_kernels_table() {
    let mut lab = Lab::of(&CONFIG.replace("10.77.3.1/24", "10.88.0.1/20"));
    lab.route("10.88.0.0/20", testkit::lab::to_port(DMZ));
    let mut forwarded = 0;
    for number in 0..20u8 {
        for target in 0..32u8 {
            let source = Addr::v4([10, 77, 1, 20 + number]);
            let packet = udp(
                (source, 4000),
                (
                    Addr::v4([10, 88, 4 + number / 4, 32 * (number % 4) + target + 1]),
                    9,
                ),
            );
            forwarded += usize::from(lab.send(LAN, &packet).verdict == Verdict::Forward);
        }
    }
    assert_eq!(forwarded, 384);
}

#[test]
fn answers_to_forged_senders_make_the_kernel_look_for_few_of_them() {
    let net = Net::of(Family::V6);
    let mut lab = Lab::new();
    let forged = |number: u16| {
        let mut octets = *net.host.octets();
        octets[12] = 9;
        octets[14..].copy_from_slice(&number.to_be_bytes());
        Addr::v6(octets)
    };
    let pings = (0..300).map(|number| echo_request((forged(number), 7), net.lan_vip));
    let answered = pings.filter(|ping| match lab.send(LAN, ping).verdict {
        Verdict::Consumed => true,
        Verdict::Drop(DropReason::NeighborLimit) => false,
        verdict => panic!("{verdict:?}"),
    });
    assert_eq!(answered.count(), 128);
    // A host that has looked for the gateway is one that is there.
    let question = neighbor::solicit(net.lan_vip, net.host, THEIRS);
    ask(&mut lab, LAN, &question);
    let ping = echo_request((net.host, 7), net.lan_vip);
    assert_eq!(lab.send(LAN, &ping).verdict, Verdict::Consumed);
    // The replies of a server to forged senders are no other matter.
    lab.pass(Duration::from_millis(3100));
    let replies = (0..300).map(|number| {
        let query = udp((forged(number), 4000), (net.dmz_host, 53));
        assert_eq!(lab.send(LAN, &query).verdict, Verdict::Forward);
        query.answer()
    });
    let replies: Vec<_> = replies.collect();
    let passed = replies
        .iter()
        .filter(|it| lab.send(DMZ, it).verdict == Verdict::Forward);
    // One place is that of the server, until it had answered.
    assert!((127..=128).contains(&passed.count()));
}

/// A lab whose gateway has announced its addresses.
fn quiet() -> Lab {
    let mut lab = Lab::new();
    lab.pass(Duration::from_secs(10));
    lab.outputs();
    lab
}

/// A host on the link of the WAN.
fn on_wan(net: &Net) -> Addr {
    match net.family {
        Family::V4 => ip("10.77.2.99"),
        Family::V6 => ip("fd77:2::99"),
    }
}

const LOOKUPS: [KernelLookup; 3] = [
    KernelLookup::Wanted,
    KernelLookup::Doubted,
    KernelLookup::Missed,
];

/// What the gateway does after a host on the WAN has told where it is.
fn told(lab: &mut Lab, net: &Net, host: Addr) -> Vec<Output> {
    let frame = neighbor::announce_to(host, THEIRS, net.wan_vip, mac(WAN));
    ask(lab, WAN, &frame).0
}

#[test]
fn a_host_that_the_kernel_does_not_hear_is_found_for_it() {
    for net in Net::both() {
        let host = on_wan(&net);
        let asks = neighbor::solicit(host, net.wan_vip, mac(WAN));
        let asks = Output::Frame {
            port: WAN,
            bytes: asks,
        };
        let tells = Output::Neighbor {
            port: WAN,
            addr: host,
            mac: THEIRS,
        };
        for lookup in LOOKUPS {
            let mut lab = quiet();
            let begin = |lab: &mut Lab| {
                lab.gateway.handle_kernel_lookup(lab.now, WAN, host, lookup);
            };
            // The kernel asks a host itself that it knows, so that has time to answer first.
            begin(&mut lab);
            let at_once = lookup != KernelLookup::Doubted;
            assert_eq!(lab.outputs().contains(&asks), at_once, "{lookup:?}");
            lab.pass(Duration::from_millis(299));
            assert_eq!(lab.outputs(), []);
            lab.pass(Duration::from_millis(1));
            assert_eq!(lab.outputs().contains(&asks), !at_once, "{lookup:?}");
            // It is told of the answer unless it has heard it as well.
            assert_eq!(told(&mut lab, &net, host), []);
            lab.gateway
                .handle_kernel_lookup(lab.now, WAN, host, KernelLookup::Found);
            lab.pass(Duration::from_secs(5));
            assert_eq!(lab.outputs(), [], "{lookup:?}");
            let asks_us = |lab: &Lab| lab.gateway.asks_for_neighbors(lab.now, WAN, net.family);
            let before = asks_us(&lab);
            for _ in 0..2 {
                begin(&mut lab);
                lab.outputs();
                assert_eq!(told(&mut lab, &net, host), []);
                lab.pass(Duration::from_millis(50));
                assert_eq!(lab.outputs(), std::slice::from_ref(&tells), "{lookup:?}");
            }
            // After the second time it is told at once, and leaves the question to the gateway.
            assert!(asks_us(&lab));
            begin(&mut lab);
            lab.outputs();
            assert_eq!(told(&mut lab, &net, host), std::slice::from_ref(&tells));
            lab.pass(Duration::from_secs(301));
            assert_eq!(asks_us(&lab), before);
        }
    }
}

#[test]
fn a_host_that_nobody_looks_for_is_not_told_of_and_one_that_is_silent_is_forgotten() {
    for net in Net::both() {
        let mut lab = quiet();
        let host = on_wan(&net);
        assert_eq!(told(&mut lab, &net, host), []);
        lab.pass(Duration::from_secs(5));
        assert_eq!(lab.outputs(), []);
        // Of a host that was known it asks twice; the kernel gives up after three seconds.
        lab.gateway
            .handle_kernel_lookup(lab.now, WAN, host, KernelLookup::Doubted);
        lab.pass(Duration::from_secs(10));
        assert_eq!(lab.outputs().len(), 2);
        assert_eq!(told(&mut lab, &net, host), []);
        // Any number of hosts; each is asked for once, as often as the kernel says so.
        for number in 0..3000u16 {
            let [high, low] = number.to_be_bytes();
            let mut octets = *host.octets();
            octets[14..].copy_from_slice(&[high, low]);
            let host = match net.family {
                Family::V4 => ip(&format!("10.77.{}.{low}", 128 + high)),
                Family::V6 => Addr::v6(octets),
            };
            lab.gateway
                .handle_kernel_lookup(lab.now, WAN, host, KernelLookup::Missed);
        }
        assert_eq!(lab.outputs().len(), 3000);
        lab.pass(Duration::from_secs(4));
        assert_eq!(told(&mut lab, &net, host), []);
    }
}
