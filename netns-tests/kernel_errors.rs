//! What the kernel of a unit would say by itself to the hosts of its ports: that it has no route,
//! no hop left, a better way, no such connection. Only the gateway speaks to them.

use std::fmt::Debug;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::capture::Capture;
use crate::conversation::{Conversation, Conversations, line_server};
use crate::frame::{Ends, FrameSocket};
use crate::interference::forward_everywhere;
use crate::lab::{LAN_GATEWAY, LAN1, LAN2, Lab, SERVER, WAN_GATEWAY, bracketed};
use crate::pair::Pair;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

/// ICMP errors and redirects from an address of a unit that is not a virtual one, or from the one
/// that a kernel speaks from which has none.
pub const SAID: &str = "(icmp and src host 192.0.0.8) or ((src net 10.77.1.0/28 or src net 10.77.2.0/28) and not src host 10.77.1.1 and \
    not src host 10.77.2.1 and (icmp[0] == 3 or icmp[0] == 5 or icmp[0] == 11 or icmp[0] == 12)) or \
    ((ip6 src net fd77:1::/124 or ip6 src net fd77:2::/124 or ip6 src net fe80::/10) and not \
    ip6 src host fd77:1::1 and not ip6 src host fd77:2::1 and icmp6 and \
    (ip6[40] < 5 or ip6[40] == 137))";

/// Takes all rules of the gateway away, again and again.
const RULES_GO: &str =
    "for n in $(seq 120); do for table in 7697 7698 7699 7700 7701; do for family in -4 -6; do
    ip $family rule del priority $table 2> /dev/null || true; done; done; done;";

/// Addresses in the LAN that its hosts send to through the gateway, so that a router would tell
/// them a better way.
const AROUND: [&str; 2] = ["10.77.1.200", "fd77:1::200"];

/// Lets a unit say as much as a kernel can.
fn let_it_talk(unit: &Namespace) {
    forward_everywhere(unit);
    for place in ["all", "default", "eth0", "eth1"] {
        unit.sysctl(&format!("ipv4/conf/{place}/send_redirects"), "1");
    }
    unit.sysctl("ipv4/icmp_ratemask", "0");
    unit.sysctl("ipv6/icmp/ratelimit", "0");
}

/// A unit that does, under packets of all kinds.
fn talkative() -> (Lab, Vec<Process>) {
    let mut lab = Lab::new();
    let_it_talk(&lab.unit.ns);
    lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.2");
    lab.server.run("ip route add fd77:1::/64 via fd77:2::2");
    lab.unit.prepend_policy(ACCEPTED_IN);
    lab.unit.config += INWARD;
    lab.unit.start();
    narrow_ways(&lab.unit.ns);
    let mac = lab.unit.ns.mac_text("eth0");
    for (gateway, around) in LAN_GATEWAY.iter().zip(AROUND) {
        // Hosts go on sending to a gateway that is gone.
        lab.lan1.run(&format!(
            "ip neigh replace {gateway} lladdr {mac} nud permanent dev eth0"
        ));
        lab.lan1
            .run(&format!("ip route add {around} via {gateway}"));
    }
    let traffic = traffic(&lab);
    (lab, traffic)
}

/// Packets of which a kernel has something to say.
fn traffic(lab: &Lab) -> Vec<Process> {
    let nowhere = ["198.51.100.1", "2001:db8::1"];
    let silent = ["10.77.2.77", "fd77:2::77"];
    let outward = [SERVER, nowhere, silent, AROUND, LAN_GATEWAY];
    let outward = outward.iter().flatten().map(|to| (&lab.lan1, *to));
    let inward = LAN1.iter().map(|to| (&lab.server, *to));
    let mut traffic = Vec::new();
    for (host, to) in outward.chain(inward) {
        for hops in [1, 2, 64] {
            traffic.push(host.spawn(&format!("ping -q -i 0.02 -W 1 -t {hops} {to}")));
        }
    }
    for (host, to) in [(&lab.lan1, SERVER), (&lab.server, WAN_GATEWAY)] {
        // IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: each is sent whole, whatever the host has learned.
        for (to, option) in to.iter().zip(["0:10:3", "41:23:3"]) {
            let to = bracketed(to);
            let mut datagrams = host.command("sh");
            datagrams.arg("-c").arg(format!(
                "while sleep 0.03 && kill -0 $$; do head -c 1400 /dev/zero; done | \
                 while kill -0 $$ && ! socat -b 1400 -u - UDP:{to}:8080,setsockopt-int={option}; do :; done"
            ));
            traffic.push(Process::spawn(datagrams, "long datagrams"));
        }
    }
    traffic
}

/// A policy for what comes by a forward.
const ACCEPTED_IN: &str = r#"name = "in"
from = ["wan"]
to = ["lan"]
action = "accept""#;

#[test]
fn the_kernel_leaves_it_to_the_gateway_to_speak() {
    let (mut lab, _traffic) = talkative();
    let said = [
        Capture::start(&lab.lan1, "eth0", SAID),
        Capture::start(&lab.server, "eth0", SAID),
    ];
    let address_goes = "ip addr flush dev eth1 scope global;";
    // Until the kernel has given up all hosts that do not answer.
    thread::sleep(Duration::from_secs(4));
    lab.unit.ns.sh(RULES_GO);
    lab.unit.ns.sh(&format!("{address_goes} {RULES_GO}"));
    lab.unit
        .ns
        .sh(&format!("ip link set eth1 mtu 1280; {RULES_GO}"));
    lab.unit.kill();
    lab.unit
        .ns
        .sh(&format!("{address_goes} {RULES_GO} sleep 1"));
    lab.unit.start();
    wait_until("the gateway serves again", || {
        let ping = lab.lan1.try_run("ping -c 1 -W 0.3 10.77.2.100");
        ping.status.success()
    });
    let said = said.map(Capture::stop).concat();
    let some: Vec<&str> = said.lines().take(20).collect();
    assert!(some.is_empty(), "said by the kernel itself: {some:#?}");
}

/// Datagrams that are too long for a narrow way, hundreds in a second, from a host that learns
/// nothing: over both families in turn, to the other side.
struct Flood {
    socket: FrameSocket,
    frames: [Vec<u8>; 2],
}

impl Flood {
    fn new(lab: &Lab, host: &Namespace, port: &str, from: [&str; 2], to: [&str; 2]) -> Flood {
        let ends = Ends {
            mac: (host.mac("eth0"), lab.unit.ns.mac(port)),
            ip: (
                parsed::<Ipv4Addr>(from[0]).octets(),
                parsed::<Ipv4Addr>(to[0]).octets(),
            ),
            port: (5000, 8080),
        };
        let [from, to] = [from, to].map(|it| parsed::<Ipv6Addr>(it[1]).octets());
        let payload = [0; 1400];
        Flood {
            socket: FrameSocket::open(host, "eth0"),
            frames: [ends.udp(&payload), ends.udp6(from, to, &payload)],
        }
    }
}

fn parsed<T: FromStr<Err: Debug>>(addr: &str) -> T {
    addr.parse().expect("an address")
}

/// How many errors the kernel has made, of both families.
fn errors_made(unit: &Namespace) -> u64 {
    let made = unit.sh("nstat -asz IcmpOutDestUnreachs Icmp6OutPktTooBigs");
    let counts = made
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    counts.filter_map(|count| count.parse::<u64>().ok()).sum()
}

/// `nft flush ruleset` takes the barrier away, for as long as the kernel takes to set it again:
/// meanwhile routing alone leads what it says to the gateway.
#[test]
fn a_packet_filter_that_is_flushed_lets_no_error_out() {
    for has_own in [true, false] {
        let (lab, _traffic) = talkative();
        if !has_own {
            for port in ["eth0", "eth1"] {
                let ns = &lab.unit.ns;
                ns.run(&format!("ip addr flush dev {port} scope global"));
            }
        }
        let floods = [
            Flood::new(&lab, &lab.lan1, "eth0", LAN1, SERVER),
            Flood::new(&lab, &lab.server, "eth1", SERVER, WAN_GATEWAY),
        ];
        let said = [&lab.lan1, &lab.server].map(|host| Capture::start(host, "eth0", SAID));
        let is_over = AtomicBool::new(false);
        let made = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for flood in &floods {
                        flood
                            .frames
                            .iter()
                            .for_each(|frame| flood.socket.send(frame));
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            });
            wait_until("the kernel speaks", || errors_made(&lab.unit.ns) > 1000);
            let before = errors_made(&lab.unit.ns);
            lab.unit
                .ns
                .sh("for n in $(seq 100); do nft flush ruleset; sleep 0.02; done");
            let made = errors_made(&lab.unit.ns) - before;
            is_over.store(true, Ordering::Relaxed);
            made
        });
        assert!(made > 2000, "too few errors to show anything: {made}");
        for said in said {
            let seen = said.stop();
            let some: Vec<&str> = seen.lines().take(5).collect();
            let count = seen.lines().count();
            assert!(
                some.is_empty(),
                "{count} of {made} errors got out: {some:#?}"
            );
        }
    }
}

/// What the machine forwards between interfaces that are no ports does not concern the gateway, nor
/// does what the kernel says of it.
#[test]
fn errors_about_other_packets_go_where_they_always_went() {
    let mut lab = Lab::new();
    let other = lab.unit.ns.sibling("other");
    lab.unit.ns.sh(&format!(
        "ip link add eth2 type veth peer name eth0 netns {}; ip link set eth2 up
        ip addr add 10.77.9.1/24 dev eth2; ip addr add fd77:9::1/64 dev eth2 nodad",
        other.id()
    ));
    other.sh(
        "ip link set eth0 up; ip addr add 10.77.9.9/24 dev eth0; ip addr add fd77:9::9/64 dev eth0 nodad
        ip route add default via 10.77.9.1; ip -6 route add default via fd77:9::1",
    );
    let_it_talk(&lab.unit.ns);
    lab.unit.start();
    for (to, unit) in [("10.77.9.77", "10.77.9.1"), ("fd77:9::77", "fd77:9::1")] {
        for hops in [1, 9] {
            wait_until(&format!("told of {to} with {hops} hops"), || {
                let ping = format!("ping -c 1 -W 4 -t {hops} {to}");
                // It would find the host on its own link.
                let way = format!("ip route replace {to} via {unit}");
                let said = other.sh(&format!("{way}; {ping} || true"));
                said.contains(&format!("From {unit} "))
            });
        }
    }
    lab.unit.stop();
    let left = lab.unit.ns.run("ip -o link show");
    assert!(!left.contains("group 19"), "in a group: {left}");
}

/// The kernel knows nothing of translation: it would tell the client the address of the host inside
/// that is gone, and of the unit. The gateway tells it that its own address does not answer.
#[test]
fn a_client_outside_learns_no_address_inside_from_a_host_that_is_gone() {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\naction = \"accept\"");
    lab.unit.config += &INWARD
        .replace("10.77.1.100", "10.77.1.77")
        .replace("fd77:1::100", "fd77:1::77");
    lab.unit.start();
    let said = Capture::start(
        &lab.server,
        "eth0",
        "icmp[0] == 3 or (icmp6 and ip6[40] == 1)",
    );
    for gateway in WAN_GATEWAY {
        wait_until("the client is told", || {
            let to = bracketed(gateway);
            lab.server
                .sh(&format!("echo hello | socat -u - UDP:{to}:8080"));
            said.seen()
                .contains(&format!("unreachable address {gateway}"))
                || said.seen().contains(&format!("host {gateway} unreachable"))
        });
    }
    for line in said.stop().lines() {
        let by_gateway = WAN_GATEWAY.map(|by| line.contains(&format!(" {by} > ")));
        assert!(by_gateway.contains(&true), "{line}");
        assert!(
            !line.contains("77:1::") && !line.contains("10.77.1."),
            "{line}"
        );
    }
}

/// It is the gateway's address that hosts get to know, before and after a takeover.
#[test]
fn the_gateway_tells_of_a_host_that_does_not_answer() {
    let lab = Lab::started();
    for (gateway, silent) in LAN_GATEWAY.iter().zip(["10.77.2.77", "fd77:2::77"]) {
        wait_until(&format!("{silent} is unreachable"), || {
            let ping = lab.lan1.try_run(&format!("ping -c 1 -W 5 {silent}"));
            let told = ping.stdout.lines().find(|line| line.contains("nreachable"));
            let from = format!("From {gateway} ");
            assert!(told.is_none_or(|line| line.starts_with(&from)), "{told:?}");
            told.is_some()
        });
    }
}

/// Somebody gives the primary's kernel the address that connections are translated to: it knows
/// none of them, and would end them.
#[test]
fn connections_outlive_a_kernel_that_gets_the_virtual_address() {
    for (server, address) in SERVER.iter().zip(["10.77.2.1/24", "fd77:2::1/64"]) {
        let pair = Pair::started();
        let _server = line_server(&pair.lab.server, server);
        let mut talk = Conversation::start(&pair.lab.lan1, server);
        pair.b().wait_until_ready();
        pair.a().ns.run(&format!("ip addr add {address} dev eth1"));
        talk.go_on();
        wait_until("gw-b is primary", || pair.b().is_primary());
        talk.go_on();
    }
}

/// Forwards to a host inside, for clients outside.
const INWARD: &str = r#"
[[forward]]
name = "in"
port = "wan"
protocol = "udp"
external = "10.77.2.1:8080"
internal = "10.77.1.100:8080"

[[forward]]
name = "in6"
port = "wan"
protocol = "udp"
external = "[fd77:2::1]:8080"
internal = "[fd77:1::100]:8080"

[[forward]]
name = "tcp"
port = "wan"
protocol = "tcp"
external = "10.77.2.1:8080"
internal = "10.77.1.100:8080"

[[forward]]
name = "tcp6"
port = "wan"
protocol = "tcp"
external = "[fd77:2::1]:8080"
internal = "[fd77:1::100]:8080"
"#;

/// The kernel of the unit knows a smaller MTU on the way to a host than the port has. It would tell
/// the sender from its own address, with a quote of what the gateway has made of the packet.
fn narrow_ways(unit: &Namespace) {
    for (to, port) in [(SERVER, "eth1"), (LAN1, "eth0"), (LAN2, "eth0")] {
        unit.run(&format!("ip route add {}/32 dev {port} mtu 1300", to[0]));
        unit.run(&format!(
            "ip route add {}/128 dev {port} mtu lock 1300",
            to[1]
        ));
    }
}

/// Sends a datagram that is too long for a narrow way, until the sender has learned the MTU.
#[track_caller]
fn learns_the_mtu(host: &Namespace, from: &str, to: &str) {
    let (target, own) = (bracketed(to), bracketed(from));
    wait_until(&format!("{} learns the MTU to {to}", host.name()), || {
        host.sh(&format!(
            "head -c 1400 /dev/zero | socat -b 1400 -t 0.3 - UDP:{target}:8080,bind={own} || true"
        ));
        let route = host.run(&format!("ip route get {to} from {from}"));
        route.contains("mtu 1300")
    });
}

/// What tells of the first host inside: packets from and to it, and quotes of packets to it.
const TELLS_OF_INSIDE: &str = "net 10.77.1.0/24 or net fd77:1::/64 or \
    (icmp[0] != 0 and icmp[0] != 8 and icmp[24:4] == 0x0a4d0164) or \
    (icmp6 and ip6[40] < 128 and ip6[72:4] == 0xfd770001 and ip6[84:4] == 0x100)";

/// Somebody's packet filter rejects what the gateway has translated, as firewalld does.
#[test]
fn rejections_of_others_tell_no_address() {
    let mut lab = Lab::new();
    lab.unit.prepend_policy(ACCEPTED_IN);
    lab.unit.config += INWARD;
    lab.unit.start();
    let outside = Capture::start(&lab.server, "eth0", TELLS_OF_INSIDE);
    let said = [&lab.lan1, &lab.server].map(|host| Capture::start(host, "eth0", SAID));
    for direction in ["iifname", "oifname"] {
        for how in [
            "icmpx type admin-prohibited",
            "icmpx type port-unreachable",
            "tcp reset",
        ] {
            let protocol = match how {
                "tcp reset" => "meta l4proto tcp",
                _ => "meta l4proto { tcp, udp }",
            };
            lab.unit.ns.sh(&format!(
                "nft 'table inet other {{ chain forward {{ type filter hook forward priority 0; \
                 {direction} \"tgw-*\" {protocol} counter reject with {how}; }}; }}'"
            ));
            for family in 0..2 {
                let [to, from] = [WAN_GATEWAY, SERVER].map(|all| bracketed(all[family]));
                for (host, to) in [(&lab.server, &to), (&lab.lan1, &from)] {
                    for kind in ["TCP", "UDP"] {
                        host.sh(&format!(
                            "echo hello | timeout 0.3 socat -t 0.2 - {kind}:{to}:8080 || true"
                        ));
                    }
                }
            }
            let counted = lab.unit.ns.sh("nft list table inet other");
            assert!(
                !counted.contains("packets 0 "),
                "rejected nothing: {counted}"
            );
            lab.unit.ns.sh("nft delete table inet other");
        }
    }
    outside.assert_empty();
    said.into_iter().for_each(Capture::assert_empty);
}

/// Marks of others lead what the kernel says elsewhere, before our own mark or after it.
#[test]
fn marks_of_others_tell_no_address() {
    let mut lab = Lab::new();
    let_it_talk(&lab.unit.ns);
    lab.unit.prepend_policy(ACCEPTED_IN);
    lab.unit.config += INWARD;
    lab.unit.start();
    narrow_ways(&lab.unit.ns);
    let outside = Capture::start(&lab.server, "eth0", TELLS_OF_INSIDE);
    let mark = |priority: i32| {
        lab.unit.ns.sh(&format!(
            "nft 'table inet other {{ chain out {{ type route hook output priority {priority}; \
             icmp type destination-unreachable counter mark set 5; \
             icmpv6 type packet-too-big counter mark set 5; }}; }}'; \
             for family in -4 -6; do ip $family rule add pref 100 fwmark 5 lookup main; done"
        ));
    };
    mark(2000);
    for gateway in WAN_GATEWAY.map(bracketed) {
        for _ in 0..5 {
            lab.server.sh(&format!(
                "head -c 1400 /dev/zero | socat -b 1400 -t 0.1 - UDP:{gateway}:8080 || true"
            ));
        }
    }
    let counted = lab.unit.ns.sh("nft list table inet other");
    assert!(
        !counted.contains("packets 0 "),
        "nothing to mark: {counted}"
    );
    lab.unit.ns.sh(
        "nft delete table inet other; for family in -4 -6; do ip $family rule del pref 100; done",
    );
    mark(-150);
    for (from, to) in SERVER.iter().zip(WAN_GATEWAY) {
        learns_the_mtu(&lab.server, from, to);
    }
    outside.assert_empty();
}

const TOO_BIG: &str = "(icmp[0] == 3 and icmp[1] == 4) or (icmp6 and ip6[40] == 2)";

/// Too-big of packets to the first host inside.
const TOO_BIG_INSIDE: &str = "(icmp[0] == 3 and icmp[1] == 4 and icmp[24:4] == 0x0a4d0164) or \
    (icmp6 and ip6[40] == 2 and ip6[72:4] == 0xfd770001 and ip6[84:4] == 0x100)";

#[test]
fn hosts_on_both_sides_learn_the_mtu_of_a_route_and_no_address() {
    for (translated, has_own) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut lab = Lab::new();
        lab.unit.prepend_policy(ACCEPTED_IN);
        lab.unit.config += INWARD;
        if !translated {
            lab.unit.edit("nat = true", "nat = false");
            for (net, gateway) in ["10.77.1.0/24", "fd77:1::/64"].iter().zip(WAN_GATEWAY) {
                lab.server.run(&format!("ip route add {net} via {gateway}"));
            }
        }
        if !has_own {
            for port in ["eth0", "eth1"] {
                let ns = &lab.unit.ns;
                ns.run(&format!("ip addr flush dev {port} scope global"));
            }
        }
        lab.unit.start();
        narrow_ways(&lab.unit.ns);
        let seen = [&lab.lan1, &lab.server].map(|host| Capture::start(host, "eth0", TOO_BIG));
        let inside = Capture::start(&lab.server, "eth0", TOO_BIG_INSIDE);
        for family in 0..2 {
            learns_the_mtu(&lab.lan1, LAN1[family], SERVER[family]);
            learns_the_mtu(&lab.server, SERVER[family], WAN_GATEWAY[family]);
            if !translated {
                learns_the_mtu(&lab.server, SERVER[family], LAN2[family]);
            }
        }
        for (seen, gateway) in seen.into_iter().zip([LAN_GATEWAY, WAN_GATEWAY]) {
            let authors = gateway.map(|gateway| format!(" {gateway} > "));
            for line in seen.stop().lines() {
                assert!(authors.iter().any(|by| line.contains(by)), "{line}");
            }
        }
        let inside = inside.stop();
        assert!(!translated || inside.is_empty(), "told outside: {inside}");
    }
}

/// Each standby gets packets that are not for it: of a host that knows an old address for good, and
/// of a server that sends to the unit itself.
fn talkative_pair() -> (Pair, Vec<Process>) {
    let mut pair = Pair::new();
    let policy = format!("[[policy]]\n{ACCEPTED_IN}\n\n[[policy]]");
    pair.edit("[[policy]]", &policy);
    for unit in [&mut pair.lab.unit, &mut pair.b] {
        unit.config += INWARD;
        let_it_talk(&unit.ns);
    }
    for (net, by) in [("10.77.1.0/24", "10.77.2.3"), ("fd77:1::/64", "fd77:2::2")] {
        pair.lab.server.run(&format!("ip route add {net} via {by}"));
    }
    pair.start();
    let of_b = pair.b().ns.mac_text("eth0");
    for (gateway, around) in LAN_GATEWAY.iter().zip(AROUND) {
        pair.lab.lan2.run(&format!(
            "ip neigh replace {gateway} lladdr {of_b} nud permanent dev eth0"
        ));
        for host in [&pair.lab.lan1, &pair.lab.lan2] {
            host.run(&format!("ip route add {around} via {gateway}"));
        }
    }
    for unit in [pair.a(), pair.b()] {
        narrow_ways(&unit.ns);
    }
    let mut traffic = traffic(&pair.lab);
    let nowhere = ["198.51.100.1", "2001:db8::1"];
    for to in [SERVER, nowhere, AROUND].as_flattened() {
        for hops in [1, 64] {
            let ping = format!("ping -q -i 0.02 -s 1400 -M do -W 1 -t {hops} {to}");
            traffic.push(pair.lab.lan2.spawn(&ping));
        }
    }
    (pair, traffic)
}

#[test]
fn kernels_say_nothing_at_a_standby_and_while_roles_move() {
    let (mut pair, _traffic) = talkative_pair();
    let resets = format!("({SAID}) or tcp[13] & 4 != 0");
    let hosts = [&pair.lab.lan1, &pair.lab.lan2, &pair.lab.server];
    let said = hosts.map(|host| Capture::start(host, "eth0", &resets));
    // The server pings the host inside by its address too, which the policy accepts.
    let inside = "((src net 10.77.1.0/24 or src net fd77:1::/64) and not icmp and not icmp6) or \
        (icmp[0] != 0 and icmp[0] != 8 and icmp[17] == 17 and icmp[24:4] == 0x0a4d0164) or \
        (icmp6 and ip6[40] < 128 and ip6[54] == 17 and ip6[72:4] == 0xfd770001 and ip6[84:4] == 0x100)";
    let inside = Capture::start(&pair.lab.server, "eth0", inside);
    let mut talks = Conversations::start(&pair.lab);
    thread::sleep(Duration::from_secs(4));
    // The standby's rules go, and come back.
    pair.b().ns.sh(&RULES_GO.replace("120", "12"));
    talks.go_on();
    for (from, to) in [("gw-a", "gw-b"), ("gw-b", "gw-a")] {
        let unit = if from == "gw-a" { pair.a() } else { pair.b() };
        unit.wait_for_ready_peer();
        unit.tandemgw(&format!("failover --to {to}")).ok();
        talks.go_on();
    }
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    talks.go_on();
    pair.a_mut().start();
    pair.b().wait_for_ready_peer();
    talks.go_on();
    talks.finish();
    for said in said {
        let seen = said.stop();
        let some: Vec<&str> = seen.lines().take(20).collect();
        assert!(some.is_empty(), "said by a kernel itself: {some:#?}");
    }
    inside.assert_empty();
}
