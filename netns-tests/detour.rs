//! Changes by others to the kernel's routing, or to a port, that keep packets from the gateway
//! although everything that it has added is in place: the gateway reports them, and another unit
//! takes over.

use std::time::Duration;

use testkit::system::process::wait_until;

use crate::interference::Siege;
use crate::lab::{Lab, SERVER};
use crate::pair::Pair;
use crate::unit::Unit;

/// The change, its reversal, and a word of the report.
const DETOURS: &[(&str, &str, &str)] = &[
    (
        "ip route add local 10.77.2.1 dev lo table local",
        "ip route del local 10.77.2.1 dev lo table local",
        "keeps packets to 10.77.2.1 ",
    ),
    (
        "ip -6 route add local fd77:1::1 dev lo table local",
        "ip -6 route del local fd77:1::1 dev lo table local",
        "keeps packets to fd77:1::1 ",
    ),
    (
        "ip route add blackhole 10.77.1.1 table local",
        "ip route del blackhole 10.77.1.1 table local",
        "packets to 10.77.1.1 ",
    ),
    (
        "ip rule add priority 100 iif eth0 lookup main",
        "ip rule del priority 100",
        "packets to ",
    ),
    (
        "ip -6 rule add priority 100 iif eth1 prohibit",
        "ip -6 rule del priority 100",
        "packets to ",
    ),
    (
        "ip route add 10.77.1.0/24 dev tgw-wan metric 0 src 127.77.0.1 || ip route prepend 10.77.1.0/24 dev tgw-wan",
        "ip route del 10.77.1.0/24 dev tgw-wan",
        "hosts of 10.77.1.0/24 by tgw-wan",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "rp_filter",
    ),
];

const ARP_OFF: (&str, &str) = ("ip link set eth1 arp off", "ip link set eth1 arp on");

/// All is told, and another unit serves, within this time: three answers of the kernel, 400 ms
/// apart, and as much again for a busy machine.
const WITHIN: Duration = Duration::from_secs(4);

/// Waits until a port has a fault that is described with `word`.
#[track_caller]
pub fn expect_fault(unit: &Unit, word: &str) {
    wait_until(&format!("a port has a fault: {word}"), || {
        let ports = unit.status()["ports"].as_array().expect("a list").clone();
        let mut faults = ports.iter().filter_map(|port| port["fault"].as_str());
        faults.any(|fault| fault.contains(word))
    });
}

#[track_caller]
pub fn expect_no_fault(unit: &Unit) {
    wait_until("no port has a fault", || {
        let ports = unit.status()["ports"].as_array().expect("a list").clone();
        ports
            .iter()
            .all(|port| port["up"] == true && port["fault"].is_null())
    });
}

#[test]
fn a_kernel_that_leads_packets_elsewhere_is_told_and_nothing_leaks() {
    let siege = Siege::begin();
    for (script, undo, word) in DETOURS {
        siege.lab.unit.ns.sh(script);
        expect_fault(&siege.lab.unit, word);
        siege.lab.unit.ns.sh(undo);
        expect_no_fault(&siege.lab.unit);
        siege.expect_service(undo);
    }
    siege.end();
}

/// The kernel takes all of IPv6 off such a link, and says nothing.
#[test]
fn an_mtu_that_is_too_small_for_ipv6_is_told() {
    let lab = Lab::started();
    lab.unit.ns.sh("ip link set eth1 mtu 1000");
    expect_fault(&lab.unit, "the MTU of eth1 is 1000");
    let log = lab.unit.log();
    assert!(!log.contains("steering not repaired"), "{log}");
    lab.unit.ns.sh("ip link set eth1 mtu 1500");
    expect_no_fault(&lab.unit);
    wait_until("IPv6 hosts are reached", || {
        let ping = lab.lan1.try_run(&format!("ping -c 1 -W 1 {}", SERVER[1]));
        ping.status.success()
    });
}

#[test]
fn a_port_without_arp_is_down_until_it_has_it_again() {
    let siege = Siege::begin();
    let (script, undo) = ARP_OFF;
    siege.lab.unit.ns.sh(script);
    wait_until("the port is down", || !siege.port(1));
    let log = siege.lab.unit.log();
    assert!(log.contains("its ARP is off"), "{log}");
    siege.lab.unit.ns.sh(undo);
    siege.expect_service(undo);
    siege.end();
}

#[test]
fn another_unit_takes_over_from_one_whose_kernel_leads_packets_elsewhere() {
    let told = DETOURS.iter().map(|(script, undo, _)| (*script, *undo));
    let mut pair = Pair::started();
    for (script, undo) in told.chain([ARP_OFF]) {
        let on_a = pair.a().is_primary();
        let unit = if on_a { pair.a() } else { pair.b() };
        unit.ns.sh(script);
        let took = pair.wait_until_other_is_primary(on_a, script);
        assert!(took < WITHIN, "{script}: it took {took:?}");
        unit.ns.sh(undo);
        expect_no_fault(unit);
        wait_until("both units are ready again", || {
            let units = [pair.a(), pair.b()];
            units.iter().all(|unit| unit.group()["ready"] == true)
        });
    }
    pair.a_mut().assert_running();
}

/// The interface has the number that it had before, so nothing but its absence tells that sockets
/// are no longer on it.
#[test]
fn a_port_that_was_in_another_namespace_serves_again() {
    let siege = Siege::begin();
    let unit = &siege.lab.unit.ns;
    unit.sh(
        "unshare --net sleep 600 & holder=$!; sleep 0.2; ip link set eth1 netns $holder; sleep 0.3
        nsenter -t $holder -n ip link set eth1 netns $$; kill $holder
        ip addr add 10.77.2.2/24 dev eth1; ip addr add fd77:2::2/64 dev eth1 nodad; ip link set eth1 up",
    );
    // The server forgets the gateway's address meanwhile: it asks again.
    siege.lab.server.run("ip neigh flush all");
    siege.expect_service("back from another namespace");
    siege.end();
}
