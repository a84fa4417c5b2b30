//! The kernel's reverse path filter, on all interfaces and on single ones, at the start and later.

use crate::lab::{Lab, SERVER};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

fn reaches(host: &Namespace, address: &str) -> bool {
    host.try_run(&format!("ping -c 1 -W 1 {address}"))
        .status
        .success()
}

#[track_caller]
fn reaches_the_server(lab: &Lab, after: &str) {
    for server in SERVER {
        wait_until(&format!("{server} is reached after `{after}`"), || {
            reaches(&lab.lan1, server)
        });
    }
}

const LOOSE: [&str; 4] = [
    "echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter",
    "echo 2 > /proc/sys/net/ipv4/conf/default/rp_filter",
    "for p in eth0 eth1; do echo 1 > /proc/sys/net/ipv4/conf/$p/rp_filter; done",
    "for p in eth0 eth1; do echo 2 > /proc/sys/net/ipv4/conf/$p/rp_filter; done",
];

#[test]
fn gateway_works_with_a_loose_filter_and_with_strict_ports() {
    for setting in LOOSE {
        let mut lab = Lab::new();
        lab.unit.ns.sh(setting);
        lab.unit.start();
        reaches_the_server(&lab, setting);
        lab.unit.stop();
    }
}

#[test]
fn filter_may_be_set_while_the_gateway_runs() {
    let mut lab = Lab::started();
    let of_tuns =
        "for p in tgw-lan tgw-wan; do echo 2 > /proc/sys/net/ipv4/conf/$p/rp_filter; done";
    for setting in LOOSE.into_iter().chain([of_tuns]) {
        lab.unit.ns.sh(setting);
        reaches_the_server(&lab, setting);
    }
    // Strict on a TUN alone: its sources are routed elsewhere, so the gateway takes that back.
    let strict = "for p in tgw-lan tgw-wan; do echo 1 > /proc/sys/net/ipv4/conf/$p/rp_filter; done";
    lab.unit.ns.sh(strict);
    reaches_the_server(&lab, strict);
    // Packets may leave past the stack meanwhile.
    wait_until("the gateway takes it back", || {
        lab.unit.log().contains("rp_filter")
    });
    lab.unit.assert_running();
}

#[test]
fn what_the_filter_and_forwarding_need_is_put_back() {
    let lab = Lab::started();
    lab.unit
        .ns
        .sh("echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter");
    for taken in [
        "for p in tgw-lan tgw-wan; do ip addr del 127.77.0.1/32 dev $p; done",
        "for p in eth0 tgw-lan; do echo 0 > /proc/sys/net/ipv4/conf/$p/forwarding; done",
        "for p in eth1 tgw-wan; do echo 0 > /proc/sys/net/ipv6/conf/$p/force_forwarding; done",
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        lab.unit.ns.sh(taken);
        reaches_the_server(&lab, taken);
    }
}

#[test]
fn doctor_says_what_the_kernel_would_do() {
    let mut lab = Lab::new();
    let check = |lab: &Lab| -> (String, String) {
        lab.unit.write_config();
        let config = lab.unit.config_path().display().to_string();
        let said = lab
            .unit
            .tandemgw(&format!("doctor --json --config {config}"))
            .stdout;
        let all: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let checks = all["checks"].as_array().expect("a list");
        let one = checks.iter().find(|c| c["check"] == "rp-filter");
        let one = one.expect("a check of that name");
        (one["result"].to_string(), one.to_string())
    };
    lab.unit.ns.sh(LOOSE[0]);
    assert!(check(&lab).0.contains("ok"), "{}", check(&lab).1);
    lab.unit.start();
    assert!(check(&lab).0.contains("ok"), "{}", check(&lab).1);
    reaches_the_server(&lab, LOOSE[0]);
}
