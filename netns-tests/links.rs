//! Links, interfaces, addresses and routes that change while the gateway runs.

use std::thread;
use std::time::Duration;

use crate::lab::{FAR, LAN_GATEWAY, Lab, SERVER, bracketed, switch_port};
use crate::services::{Http, whoami};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

const OUTAGE: Duration = Duration::from_millis(700);

fn reaches(host: &Namespace, address: &str) -> bool {
    host.try_run(&format!("ping -c 1 -W 1 {address}"))
        .status
        .success()
}

/// Downloads slowly, breaks something for a moment, and expects the session to live on.
fn survives(lab: &mut Lab, server: &str, fail: impl Fn(&Lab), repair: impl Fn(&Lab)) {
    let http = Http::start(lab, &lab.server, 6);
    let download = http.start_slow_download(&lab.lan1, &bracketed(server));
    fail(lab);
    thread::sleep(OUTAGE);
    repair(lab);
    download.finish();
    lab.unit.assert_running();
}

fn set_port(switch: &Namespace, host: &Namespace, interface: &str, state: &str) {
    switch.run(&format!(
        "ip link set {} {state}",
        switch_port(host, interface)
    ));
}

#[test]
fn session_survives_loss_of_carrier() {
    for server in SERVER {
        let mut lab = Lab::started();
        survives(
            &mut lab,
            server,
            |lab| set_port(&lab.sw_lan, &lab.unit.ns, "eth0", "down"),
            |lab| set_port(&lab.sw_lan, &lab.unit.ns, "eth0", "up"),
        );
        let mut lab = Lab::started();
        survives(
            &mut lab,
            server,
            |lab| set_port(&lab.sw_wan, &lab.unit.ns, "eth1", "down"),
            |lab| set_port(&lab.sw_wan, &lab.unit.ns, "eth1", "up"),
        );
    }
}

#[test]
fn session_survives_interfaces_set_down_and_up() {
    for interface in ["eth0", "eth1"] {
        let mut lab = Lab::started();
        survives(
            &mut lab,
            SERVER[0],
            |lab| drop(lab.unit.ns.run(&format!("ip link set {interface} down"))),
            |lab| drop(lab.unit.ns.run(&format!("ip link set {interface} up"))),
        );
    }
}

#[test]
fn port_that_is_down_is_shown() {
    let lab = Lab::started();
    set_port(&lab.sw_wan, &lab.unit.ns, "eth1", "down");
    wait_until("the port is shown as down", || {
        lab.unit.status()["ports"][1]["up"] == false
    });
    set_port(&lab.sw_wan, &lab.unit.ns, "eth1", "up");
    wait_until("the port is shown as up", || {
        lab.unit.status()["ports"][1]["up"] == true
    });
}

#[test]
fn interface_may_vanish_and_come_back() {
    let mut lab = Lab::started();
    for interface in ["eth1", "eth0"] {
        lab.unit.ns.run(&format!("ip link del {interface}"));
        wait_until("the port is shown as down", || {
            lab.unit.status()["ports"]
                .as_array()
                .is_some_and(|ports| ports.iter().any(|p| p["up"] == false))
        });
        assert!(!reaches(&lab.lan1, SERVER[0]));
        if interface == "eth1" {
            lab.attach_wan()
        } else {
            lab.attach_lan()
        }
        // The interface has a new hardware address: hosts learn it from the announcement.
        for server in SERVER {
            wait_until("traffic passes again", || reaches(&lab.lan1, server));
        }
        lab.unit.assert_running();
    }
}

#[test]
fn new_hardware_address_is_announced() {
    let lab = Lab::started();
    for address in LAN_GATEWAY {
        assert!(reaches(&lab.lan1, address));
    }
    lab.unit.ns.sh("ip link set eth0 address 02:00:00:00:aa:01");
    for address in LAN_GATEWAY {
        wait_until("the neighbour entry follows", || {
            lab.lan1
                .run(&format!("ip neigh show {address}"))
                .contains("02:00:00:00:aa:01")
        });
        wait_until("traffic passes", || reaches(&lab.lan1, address));
    }
}

#[test]
fn routes_take_effect_at_run_time() {
    let lab = Lab::started();
    let _net = lab.add_far_network(1500);
    for (address, network) in FAR.iter().zip(["10.77.3.0/24", "fd77:3::/64"]) {
        wait_until("the new route is used", || reaches(&lab.lan1, address));
        lab.unit.ns.run(&format!("ip route del {network}"));
        wait_until("no route, no way", || !reaches(&lab.lan1, address));
    }
    assert!(lab.unit.dropped("no-route") > 0);
    lab.unit.ns.run("ip route add default via 10.77.2.254");
    wait_until("the default route is used", || reaches(&lab.lan1, FAR[0]));
    lab.unit.ns.run("ip route add blackhole 10.77.3.0/24");
    wait_until("the blackhole is used", || !reaches(&lab.lan1, FAR[0]));
}

#[test]
fn routes_back_to_the_port_of_entry_need_a_policy() {
    let mut lab = Lab::new();
    lab.lan2.run("ip addr add 10.77.5.1/32 dev lo");
    lab.unit.ns.run("ip route add 10.77.5.1 via 10.77.1.101");
    lab.unit.start();
    assert!(
        !reaches(&lab.lan1, "10.77.5.1"),
        "lan to lan is not allowed"
    );
    assert!(lab.unit.dropped("no-policy") > 0);
}

#[test]
fn packets_do_not_leave_by_an_interface_that_is_no_port() {
    let lab = Lab::started();
    lab.unit
        .ns
        .run("ip link add mgmt0 type veth peer name mgmt1");
    lab.unit
        .ns
        .sh("ip link set mgmt0 up; ip link set mgmt1 up; ip addr add 10.77.6.1/24 dev mgmt0");
    let leaks = crate::capture::Capture::start(&lab.unit.ns, "mgmt1", "ip host 10.77.6.9");
    lab.lan1.try_run("ping -c 3 -i 0.1 -W 1 10.77.6.9").code(1);
    leaks.assert_empty();
}

#[test]
fn address_of_the_unit_may_change() {
    let lab = Lab::started();
    lab.unit
        .ns
        .sh("ip addr add 10.77.2.3/24 dev eth1; ip addr del 10.77.2.2/24 dev eth1 || true");
    lab.unit.ns.sh("ip addr replace 10.77.2.3/24 dev eth1");
    let _http = Http::start(&lab, &lab.server, 1);
    wait_until("traffic passes", || reaches(&lab.lan1, SERVER[0]));
    assert_eq!(whoami(&lab.lan1, SERVER[0]), "10.77.2.1");
}

/// Calls that wait for the kernel lock of links and routes (`rtnl`), which all namespaces of a
/// machine share.
const LOCKED: [&str; 9] = [
    "_MEMBERSHIP",
    "MULTICAST_IF",
    "TUNSETIFF",
    "TUNSETPERSIST",
    "SIOCSIF",
    "SIOCETHTOOL",
    "close(",
    "RTM_NEW",
    "RTM_DEL",
];

/// Closing one of these waits too. strace knows the protocols of sockets, but not that of a packet
/// socket.
const LOCKED_TO_CLOSE: [&str; 2] = ["/dev/net/tun", "<socket:["];

#[test]
fn the_loop_waits_for_no_lock_of_the_kernel() {
    let mut lab = Lab::new();
    lab.unit.edit(
        "nat = true",
        "nat-pool = \"pool\"\n[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10\", \"fd77:2::10\"]",
    );
    let trace = lab.dir().join("trace");
    let calls = "trace=setsockopt,ioctl,close,sendto,sendmsg,write";
    lab.unit.launch_by(&format!(
        "exec strace -D -f -yy -qq -s 200 -e {calls} -o {} \"$@\"",
        trace.display()
    ));
    lab.unit.start();
    // An interface and a TUN device made again, addresses that come and go, a route that is put
    // back.
    lab.unit.ns.run("ip link del eth0");
    wait_until("the port is down", || {
        lab.unit.status()["ports"][0]["up"] == false
    });
    lab.attach_lan();
    lab.unit.ns.run("ip link del tgw-wan");
    wait_until("the TUN device is back", || {
        lab.unit.log().contains("the MTU of tgw-wan")
    });
    lab.unit.ns.run("ip route flush table 7700");
    lab.unit.ns.run("ip addr flush dev eth1 scope global");
    lab.unit.edit("fd77:2::10\"", "fd77:2::10-fd77:2::20\"");
    lab.unit.write_config();
    lab.unit.tandemgw("reload").ok();
    let joined = || lab.unit.ns.run("ip maddr show dev eth1");
    wait_until("groups of the new addresses are joined", || {
        joined().contains("ff02::1:ff00:20")
    });
    let joined = || lab.unit.ns.run("ip maddr show dev eth0");
    wait_until("groups are joined on the new interface", || {
        joined().contains("ff02::1:ff00:1")
    });
    wait_until("it forwards", || {
        let ping = lab.lan1.try_run("ping -c 1 -W 1 10.77.2.100");
        ping.status.success()
    });
    let main = format!("{} ", lab.unit.pid());
    let text = std::fs::read_to_string(&trace).expect("strace has written");
    let is_locked = |call: &str| {
        let closes = call.contains("close(");
        let found = LOCKED.iter().any(|name| call.contains(name));
        found && (!closes || LOCKED_TO_CLOSE.iter().any(|name| call.contains(name)))
    };
    let ours = text.lines().filter_map(|line| line.strip_prefix(&main));
    let running: Vec<&str> = ours.skip_while(|call| !call.contains("ready")).collect();
    assert!(running.len() > 10, "{text}");
    let locked: Vec<&&str> = running.iter().filter(|call| is_locked(call)).collect();
    assert!(locked.is_empty(), "in the loop: {locked:#?}");
    // The test sees them where they are.
    let others = text.lines().filter(|line| !line.starts_with(&main));
    let elsewhere: Vec<&str> = others.filter(|call| is_locked(call)).collect();
    for name in ["_MEMBERSHIP", "RTM_NEW", "/dev/net/tun", "<socket:["] {
        let some: Vec<&&str> = elsewhere.iter().take(40).collect();
        assert!(
            elsewhere.iter().any(|call| call.contains(name)),
            "{name}: {some:#?}"
        );
    }
    lab.unit.stop();
}
