//! Path MTU discovery through translation, and fragments.

use crate::lab::{FAR, LAN1, Lab, SERVER, bracketed};
use crate::services::{self, Http};

#[test]
fn smaller_mtu_beyond_the_gateway_is_learned() {
    let lab = Lab::started();
    let net = lab.add_far_network(1320);
    let http = Http::start(&lab, &net.far, 8);
    for address in FAR {
        // The router's error names the translated packet; only its translation teaches the host.
        services::assert_upload(&lab, &lab.lan1, &net.far, address);
        let route = lab.lan1.run(&format!("ip route get {address}"));
        assert!(route.contains("mtu 1320"), "not learned: {route}");
        http.assert_download(&lab.lan1, &bracketed(address));
    }
}

#[test]
fn smaller_mtu_of_the_egress_is_told() {
    let lab = Lab::new();
    lab.unit.ns.run("ip link set eth1 mtu 1400");
    let mut lab = lab;
    lab.unit.start();
    for address in SERVER {
        services::assert_upload(&lab, &lab.lan1, &lab.server, address);
        let route = lab.lan1.run(&format!("ip route get {address}"));
        assert!(route.contains("mtu 1400"), "not learned: {route}");
    }
}

#[test]
fn change_of_the_egress_mtu_is_noticed() {
    let lab = Lab::started();
    lab.lan1.run("ping -c 1 -W 2 -M do -s 1472 10.77.2.100");
    lab.unit.ns.run("ip link set eth1 mtu 1400");
    let refused = lab
        .lan1
        .try_run("ping -c 2 -i 0.2 -W 1 -M do -s 1472 10.77.2.100")
        .code(1);
    let said = refused.stdout + &refused.stderr;
    assert!(
        said.contains("mtu = 1400") || said.contains("mtu=1400"),
        "{said}"
    );
}

#[test]
fn big_datagrams_pass_in_fragments() {
    let lab = Lab::started();
    for address in SERVER {
        let _echo = services::udp_echo(&lab.server, address);
        for size in [1472, 1473, 8192, 60000] {
            assert!(
                services::udp_echoes(&lab, &lab.lan1, address, size),
                "{size} bytes to {address} did not come back"
            );
        }
    }
}

#[test]
fn big_pings_pass_in_fragments() {
    let lab = Lab::started();
    for address in SERVER {
        lab.lan1
            .run(&format!("ping -c 3 -i 0.05 -W 2 -M dont -s 5000 {address}"));
    }
}

#[test]
fn fragments_pass_a_smaller_egress() {
    let mut lab = Lab::new();
    lab.unit.ns.run("ip link set eth1 mtu 1400");
    lab.server.run("ip link set eth0 mtu 1400");
    lab.unit.start();
    let _echo = services::udp_echo(&lab.server, SERVER[0]);
    assert!(services::udp_echoes(&lab, &lab.lan1, SERVER[0], 8192));
    // Without DF, the router splits what is too long (RFC 791, section 2.3).
    lab.lan1
        .run("ping -c 2 -i 0.05 -W 2 -M dont -s 1472 10.77.2.100");
    let route = lab
        .lan1
        .run(&format!("ip route get {} from {}", SERVER[0], LAN1[0]));
    assert!(!route.contains("mtu"), "nothing was to be learned: {route}");
}
