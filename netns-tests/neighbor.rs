//! ARP and neighbour discovery for the virtual addresses.

use crate::capture::Capture;
use crate::lab::{LAN_GATEWAY, Lab, WAN_GATEWAY};
use testkit::system::process::wait_until;

fn text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[test]
fn virtual_addresses_resolve_to_the_interface() {
    let lab = Lab::started();
    let sides = [
        (&lab.lan1, LAN_GATEWAY, "eth0"),
        (&lab.server, WAN_GATEWAY, "eth1"),
    ];
    for (host, addresses, interface) in sides {
        let mac = text(lab.unit.ns.mac(interface));
        for address in addresses {
            host.run(&format!("ping -c 1 -W 2 {address}"));
            let neighbor = host.run(&format!("ip neigh show {address}"));
            assert!(neighbor.contains(&mac), "{address}: {neighbor}, not {mac}");
        }
    }
}

#[test]
fn virtual_addresses_are_announced_at_the_start() {
    let mut lab = Lab::new();
    let lan = Capture::start(&lab.lan1, "eth0", "arp or icmp6");
    let wan = Capture::start(&lab.server, "eth0", "arp or icmp6");
    let macs = [text(lab.unit.ns.mac("eth0")), text(lab.unit.ns.mac("eth1"))];
    lab.unit.start();
    for ((capture, mac), addresses) in [&lan, &wan]
        .iter()
        .zip(&macs)
        .zip([LAN_GATEWAY, WAN_GATEWAY])
    {
        // Probes (RFC 5227, section 2.1.1) may come before it; they are told to 0.0.0.0.
        let broadcast = format!("{mac} > ff:ff:ff:ff:ff:ff");
        capture.expect(&["ARP", &broadcast, &format!("tell {},", addresses[0])]);
        capture.expect(&["neighbor advertisement", mac, addresses[1]]);
    }
}

#[test]
fn virtual_addresses_are_not_the_kernels() {
    let lab = Lab::started();
    let addresses = lab.unit.ns.run("ip -o addr");
    for address in ["10.77.1.1/", "10.77.2.1/", "fd77:1::1/", "fd77:2::1/"] {
        assert!(!addresses.contains(&format!(" {address}")), "{addresses}");
    }
}

#[test]
fn stale_neighbours_are_put_right() {
    let lab = Lab::new();
    for (address, host) in [(LAN_GATEWAY[0], &lab.lan1), (LAN_GATEWAY[1], &lab.lan1)] {
        host.run(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:99 nud stale dev eth0"
        ));
    }
    let mut lab = lab;
    lab.unit.start();
    let mac = text(lab.unit.ns.mac("eth0"));
    for address in LAN_GATEWAY {
        wait_until("the announcement replaces the old entry", || {
            lab.lan1
                .run(&format!("ip neigh show {address}"))
                .contains(&mac)
        });
    }
}

#[test]
fn requests_for_other_addresses_get_no_answer() {
    let lab = Lab::started();
    for address in ["10.77.1.77", "fd77:1::77"] {
        lab.lan1
            .try_run(&format!("ping -c 1 -W 1 {address}"))
            .code(1);
        let neighbor = lab.lan1.run(&format!("ip neigh show {address}"));
        assert!(!neighbor.contains("lladdr"), "{neighbor}");
    }
}

#[test]
fn the_unit_itself_stays_reachable() {
    let lab = Lab::started();
    for address in ["10.77.1.2", "fd77:1::2"] {
        lab.lan1.run(&format!("ping -c 1 -W 2 {address}"));
    }
}
