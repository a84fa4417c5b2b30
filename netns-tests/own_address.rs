//! The unit's own addresses on its ports: none at all, gone while it runs, and a virtual one among
//! them.

use crate::capture::Capture;
use crate::lab::{LAN1, Lab, SERVER};
use crate::pair::Pair;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

fn reaches(host: &Namespace, address: &str) -> bool {
    host.try_run(&format!("ping -c 1 -W 1 {address}"))
        .status
        .success()
}

/// Hosts that answer ARP only to senders in their own network.
fn make_strict(lab: &Lab) {
    for host in [&lab.lan1, &lab.lan2, &lab.server] {
        host.sysctl("ipv4/conf/all/arp_ignore", "2");
    }
}

#[test]
fn unit_without_own_addresses_works_as_well() {
    let mut lab = Lab::new();
    make_strict(&lab);
    for interface in ["eth0", "eth1"] {
        lab.unit.ns.run(&format!("ip addr flush dev {interface}"));
    }
    lab.unit.write_config();
    let config = lab.unit.config_path().display().to_string();
    let said = lab
        .unit
        .tandemgw(&format!("check --system --config {config}"));
    assert!(
        !said.stderr.contains("address of its own"),
        "{}",
        said.stderr
    );
    lab.unit.start();
    let requests = Capture::start(
        &lab.server,
        "eth0",
        "arp[6:2] == 1 and arp[24:4] == 0x0a4d0264",
    );
    lab.server.run("ip neigh flush all");
    // The first packet waits for the neighbour no longer than with an address.
    for server in SERVER {
        assert!(reaches(&lab.lan1, server), "the first packet to {server}");
    }
    assert!(reaches(&lab.lan2, SERVER[0]), "from another host");
    requests.expect(&["10.77.2.1"]);
    lab.unit.stop();
    for port in ["eth0", "eth1"] {
        let left = lab.unit.ns.sh(&format!(
            "cat /proc/sys/net/ipv4/neigh/{port}/app_solicit; ip route show dev {port}; ip addr show dev {port} | grep inet || true"
        ));
        assert_eq!(left.trim(), "0", "left behind on {port}");
    }
}

#[test]
fn own_address_may_go_and_come_back() {
    let lab = Lab::started();
    make_strict(&lab);
    for (interface, address) in [("eth1", "10.77.2.2/24"), ("eth0", "10.77.1.2/24")] {
        for change in ["del", "add", "del"] {
            lab.unit
                .ns
                .run(&format!("ip addr {change} {address} dev {interface}"));
            for host in [&lab.lan1, &lab.lan2, &lab.server] {
                host.run("ip neigh flush all");
            }
            lab.unit.ns.run("ip neigh flush all");
            wait_until(&format!("traffic passes after {change} {address}"), || {
                reaches(&lab.lan1, SERVER[0])
            });
        }
    }
    let log = lab.unit.log();
    assert!(
        log.contains("address removed") && log.contains("10.77.2.2"),
        "{log}"
    );
}

/// The kernel asks for IPv6 neighbours from the link-local address only, and makes no other.
#[test]
fn an_interface_that_loses_all_addresses_finds_its_neighbors() {
    let mut lab = Lab::started();
    lab.unit
        .ns
        .sh("for port in eth0 eth1; do ip addr flush dev $port; done; ip neigh flush all");
    for server in SERVER {
        wait_until(&format!("traffic to {server} passes"), || {
            reaches(&lab.lan1, server)
        });
    }
    let log = lab.unit.log();
    assert!(log.contains("address fe80::"), "{log}");
    lab.unit.stop();
    let left = lab.unit.ns.run("ip -6 route show table all proto 77");
    assert_eq!(left, "", "left behind");
}

#[test]
fn virtual_address_in_the_kernel_is_said_and_ends() {
    let lab = Lab::started();
    for (address, interface) in [("10.77.2.1/24", "eth1"), ("fd77:2::1/64", "eth1")] {
        lab.unit
            .ns
            .run(&format!("ip addr add {address} dev {interface}"));
        wait_until("it is said", || {
            lab.unit.status()["ports"][1]["fault"]
                .as_str()
                .is_some_and(|fault| fault.contains("10.77.2.1") || fault.contains("fd77:2::1"))
        });
        lab.unit
            .ns
            .run(&format!("ip addr del {address} dev {interface}"));
        wait_until("it is over", || {
            lab.unit.status()["ports"][1]["fault"].is_null()
        });
        for server in SERVER {
            wait_until("traffic passes", || reaches(&lab.lan1, server));
        }
    }
    assert!(lab.unit.log().contains("ip addr del"), "{}", lab.unit.log());
}

#[test]
fn unit_hands_over_when_its_kernel_gets_a_virtual_address() {
    let pair = Pair::started();
    pair.a().ns.run("ip addr add 10.77.2.1/24 dev eth1");
    wait_until("gw-b is primary", || pair.b().is_primary());
    wait_until("traffic passes", || reaches(&pair.lab.lan1, SERVER[0]));
    assert!(!pair.a().is_primary());
    // It does not take over with it either.
    pair.a().ns.run("ip addr del 10.77.2.1/24 dev eth1");
    pair.a().wait_until_ready();
    assert!(reaches(&pair.lab.lan1, SERVER[0]), "{LAN1:?}");
}
