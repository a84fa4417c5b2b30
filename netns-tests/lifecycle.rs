//! Start, end, death, restart: nothing leaks and nothing is left behind.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::capture::Capture;
use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER, bracketed};
use crate::services::{Http, udp_echo, udp_echoes, whoami};

/// Must never be seen on the WAN: an address of the LAN.
const LEAKS: &str = "net 10.77.1.0/24 or ip6 net fd77:1::/64";

/// Hosts that go on sending to a dead gateway: their neighbour entries do not expire.
fn pin_neighbours(lab: &Lab) {
    let mac = lab
        .unit
        .ns
        .mac("eth0")
        .map(|b| format!("{b:02x}"))
        .join(":");
    for address in LAN_GATEWAY {
        lab.lan1.run(&format!(
            "ip neigh replace {address} lladdr {mac} nud permanent dev eth0"
        ));
    }
}

/// Traffic of all kinds that is to reach nobody.
fn send_in_vain(lab: &Lab) {
    for server in SERVER {
        let address = bracketed(server);
        lab.lan1
            .try_run(&format!("ping -c 5 -i 0.02 -W 1 {server}"))
            .code(1);
        let http = lab
            .lan1
            .try_run(&format!("curl -s -m 1 http://{address}/whoami"));
        assert!(
            !http.status.success(),
            "passed a dead gateway: {}",
            http.stdout
        );
        assert!(
            !udp_echoes(lab, &lab.lan1, server, 100),
            "passed a dead gateway"
        );
    }
}

#[test]
fn killed_gateway_lets_nothing_through() {
    let mut lab = Lab::started();
    let _http = Http::start(&lab, &lab.server, 1);
    let _echo = udp_echo(&lab.server, SERVER[0]);
    pin_neighbours(&lab);
    whoami(&lab.lan1, SERVER[0]);
    let unit_mac = lab
        .unit
        .ns
        .mac("eth1")
        .map(|b| format!("{b:02x}"))
        .join(":");
    lab.unit.kill();
    // From now on not even a translated packet; what the unit's kernel
    // sends for itself (ARP, ND, MLD) is not a leak.
    let after = Capture::start(
        &lab.server,
        "eth0",
        &format!("ether src {unit_mac} and not arp and not icmp6 and not ip6 proto 0"),
    );
    send_in_vain(&lab);
    // Nor may anything come in, if somebody knows the unit's own address.
    let inbound = Capture::start(
        &lab.lan1,
        "eth0",
        "src net 10.77.2.0/24 or ip6 src net fd77:2::/64",
    );
    lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.2");
    lab.server.run("ip route add fd77:1::/64 via fd77:2::2");
    for host in LAN1 {
        let ping = lab
            .server
            .try_run(&format!("ping -c 3 -i 0.05 -W 1 {host}"));
        assert!(!ping.status.success(), "passed a dead gateway");
    }
    inbound.assert_empty();
    after.assert_empty();
}

#[test]
fn no_lan_address_leaks_while_it_is_killed_and_restarted() {
    let mut lab = Lab::started();
    pin_neighbours(&lab);
    let leaks = Capture::start(&lab.server, "eth0", LEAKS);
    let flood = lab.lan1.spawn("ping -f -i 0.002 -w 20 10.77.2.100");
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(200));
        lab.unit.kill();
        thread::sleep(Duration::from_millis(200));
        lab.unit.start();
    }
    lab.unit.stop();
    drop(flood);
    leaks.assert_empty();
}

#[test]
fn restart_after_a_crash_repairs() {
    let mut lab = Lab::started();
    let _http = Http::start(&lab, &lab.server, 1);
    lab.unit.kill();
    lab.unit.start();
    for server in SERVER {
        whoami(&lab.lan1, &bracketed(server));
    }
}

#[test]
fn clean_exit_restores_everything() {
    let mut lab = Lab::new();
    let before = lab.unit.kernel_state();
    lab.unit.start();
    assert_ne!(
        lab.unit.kernel_state(),
        before,
        "the gateway changed nothing?"
    );
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    lab.unit.stop();
    assert_same(&lab.unit.kernel_state(), &before);
}

#[test]
fn clean_exit_after_a_crash_restores_everything() {
    let mut lab = Lab::new();
    let before = lab.unit.kernel_state();
    lab.unit.start();
    lab.unit.kill();
    lab.unit.start();
    lab.unit.stop();
    assert_same(&lab.unit.kernel_state(), &before);
}

/// The commands of the book for a machine that is to go on without its gateway.
#[test]
fn what_a_killed_gateway_leaves_is_removed_as_the_book_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/running.md");
    let page = fs::read_to_string(page).expect("the page");
    let (_, rest) = page
        .split_once("run the machine without the gateway instead:\n\n```sh\n")
        .expect("the commands");
    let commands = rest.split("```").next().expect("the commands");
    let mut lab = Lab::new();
    let before = lab.unit.kernel_state();
    lab.unit.start();
    lab.unit.kill();
    assert_ne!(lab.unit.kernel_state(), before, "nothing is left?");
    // Of the kernel's parameters, those of interfaces are back too.
    lab.unit.ns.sh(&commands.replace("NODE", "gw-a"));
    assert_same(&lab.unit.kernel_state(), &before);
}

#[test]
fn interrupt_ends_it_in_order_too() {
    let mut lab = Lab::new();
    let before = lab.unit.kernel_state();
    lab.unit.start();
    lab.unit.interrupt();
    assert_same(&lab.unit.kernel_state(), &before);
}

#[test]
fn second_gateway_on_the_same_machine_is_refused() {
    let mut lab = Lab::started();
    let refused = lab.unit.start_in_vain();
    assert!(
        !refused.status.success(),
        "two gateways on the same interfaces"
    );
    lab.unit.assert_running();
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
}

#[test]
fn status_tells_of_ports_sessions_and_counters() {
    let lab = Lab::started();
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    let status = lab.unit.status();
    assert_eq!(status["node"], "gw-a");
    assert_eq!(status["groups"][0]["role"], "primary");
    assert_eq!(status["ports"][0]["name"], "lan");
    assert_eq!(status["ports"][1]["up"], true);
    assert_eq!(status["sessions"]["icmp"], 1);
    assert!(
        status["counters"]["forwarded"].as_u64() >= Some(2),
        "{status}"
    );
}

#[test]
fn status_without_a_gateway_says_so() {
    let lab = Lab::new();
    lab.unit.tandemgw("status").code(3);
}

fn assert_same(after: &str, before: &str) {
    let new: Vec<&str> = after
        .lines()
        .filter(|l| !before.lines().any(|b| b == *l))
        .collect();
    let gone: Vec<&str> = before
        .lines()
        .filter(|l| !after.lines().any(|a| a == *l))
        .collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "left behind: {new:#?}\nmissing: {gone:#?}"
    );
}
