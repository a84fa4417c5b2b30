//! What the kernel of a unit would say by itself to the hosts of its ports: that it has no route,
//! no hop left, a better way, no such connection. Only the gateway speaks to them.

use std::thread;
use std::time::Duration;

use crate::capture::Capture;
use crate::conversation::{Conversation, line_server};
use crate::interference::forward_everywhere;
use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER};
use crate::pair::Pair;
use testkit::system::process::{Process, wait_until};

/// ICMP errors and redirects from an address of a unit that is not a virtual one.
pub const SAID: &str = "((src net 10.77.1.0/28 or src net 10.77.2.0/28) and not src host 10.77.1.1 and \
    not src host 10.77.2.1 and (icmp[0] == 3 or icmp[0] == 5 or icmp[0] == 11 or icmp[0] == 12)) or \
    ((ip6 src net fd77:1::/124 or ip6 src net fd77:2::/124 or ip6 src net fe80::/10) and not \
    ip6 src host fd77:1::1 and not ip6 src host fd77:2::1 and icmp6 and \
    (ip6[40] < 5 or ip6[40] == 137))";

/// Takes all rules of the gateway away, again and again.
const RULES_GO: &str = "for n in $(seq 200); do for table in 7700 7701; do for family in -4 -6; do
    ip $family rule del priority $table 2> /dev/null || true; done; done; done;";

/// Addresses in the LAN that its hosts send to through the gateway, so that a router would tell
/// them a better way.
const AROUND: [&str; 2] = ["10.77.1.200", "fd77:1::200"];

/// A unit that says as much as a kernel can, under packets of all kinds.
fn talkative() -> (Lab, Vec<Process>) {
    let mut lab = Lab::new();
    let unit = &lab.unit.ns;
    forward_everywhere(unit);
    for place in ["all", "default", "eth0", "eth1"] {
        unit.sysctl(&format!("ipv4/conf/{place}/send_redirects"), "1");
    }
    unit.sysctl("ipv4/icmp_ratemask", "0");
    unit.sysctl("ipv6/icmp/ratelimit", "0");
    lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.2");
    lab.server.run("ip route add fd77:1::/64 via fd77:2::2");
    lab.unit.start();
    let mac = lab.unit.ns.mac_text("eth0");
    for (gateway, around) in LAN_GATEWAY.iter().zip(AROUND) {
        // Hosts go on sending to a gateway that is gone.
        lab.lan1.run(&format!(
            "ip neigh replace {gateway} lladdr {mac} nud permanent dev eth0"
        ));
        lab.lan1
            .run(&format!("ip route add {around} via {gateway}"));
    }
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
    (lab, traffic)
}

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

/// The kernel knows nothing of translation: it would tell the client the address of the host inside
/// that is gone, and of the unit.
#[test]
fn a_client_outside_learns_no_address_inside_from_a_host_that_is_gone() {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\naction = \"accept\"");
    lab.unit.config += r#"
[[forward]]
name = "gone"
port = "wan"
protocol = "udp"
external = "10.77.2.1:8080"
internal = "10.77.1.77:80"

[[forward]]
name = "gone6"
port = "wan"
protocol = "udp"
external = "[fd77:2::1]:8080"
internal = "[fd77:1::77]:80"
"#;
    lab.unit.start();
    let said = Capture::start(
        &lab.server,
        "eth0",
        "icmp[0] == 3 or (icmp6 and ip6[40] == 1)",
    );
    let asked = Capture::start(
        &lab.lan1,
        "eth0",
        "arp host 10.77.1.77 or (icmp6 and ip6[40] == 135)",
    );
    for _ in 0..5 {
        for to in ["10.77.2.1:8080", "[fd77:2::1]:8080"] {
            lab.server.sh(&format!("echo hello | socat -u - UDP:{to}"));
        }
        thread::sleep(Duration::from_secs(1));
    }
    asked.expect(&["10.77.1.77"]);
    asked.expect(&["fd77:1::77"]);
    // The kernel gives up after three requests, a second apart.
    thread::sleep(Duration::from_millis(1500));
    said.assert_empty();
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
