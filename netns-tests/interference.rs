//! Somebody else changes the steering: not one packet bypasses the gateway, and whatever can be
//! repaired is repaired at once, with a log line.
//!
//! The machine forwards by itself wherever nothing stops it (`ip_forward`, IPv6 `forwarding`),
//! hosts of both sides send to each other all the time in both families, and both sides count what
//! reaches them untranslated.

use std::time::{Duration, Instant};

use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

use crate::capture::Capture;
use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER, bracketed, make_bridge};
use crate::pair::Pair;
use crate::services::Http;

/// A packet that reaches the WAN with the address of a LAN host has bypassed the gateway. The
/// units' own addresses are below 16: what those send, nobody has forwarded.
pub const LEAKED_OUT: &str = "(src net 10.77.1.0/24 and not src net 10.77.1.0/28) or \
    (ip6 src net fd77:1::/64 and not ip6 src net fd77:1::/124)";

/// No policy lets anything in from the WAN: each request of the server that is seen on the LAN has
/// leaked.
pub const LEAKED_IN: &str = "(icmp[icmptype] == icmp-echo and src net 10.77.2.0/24) or \
    (icmp6 and ip6[40] == 128 and ip6 src net fd77:2::/64)";

/// All that is broken is whole again so soon.
const REPAIRED_WITHIN: Duration = Duration::from_secs(2);

/// A gateway under traffic, with a count of what passes it.
pub struct Siege {
    pub lab: Lab,
    _pings: Vec<Process>,
    leaks: [Capture; 2],
}

impl Siege {
    pub fn begin() -> Siege {
        Siege::with(Lab::new())
    }

    fn with(mut lab: Lab) -> Siege {
        forward_everywhere(&lab.unit.ns);
        lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.2");
        lab.server.run("ip route add fd77:1::/64 via fd77:2::2");
        lab.unit.start();
        // Hosts go on sending to a gateway that is gone: their neighbour entries don't expire.
        let mac = lab.unit.ns.mac_text("eth0");
        for gateway in LAN_GATEWAY {
            let entry = format!("ip neigh replace {gateway} lladdr {mac} nud permanent dev eth0");
            lab.lan1.run(&entry);
        }
        let leaks = [
            Capture::start(&lab.server, "eth0", LEAKED_OUT),
            Capture::start(&lab.lan1, "eth0", LEAKED_IN),
        ];
        let outward = SERVER.iter().flat_map(|server| pings(&lab.lan1, server));
        let inward = LAN1.iter().flat_map(|host| pings(&lab.server, host));
        let pings = outward.chain(inward).collect();
        let siege = Siege {
            lab,
            _pings: pings,
            leaks,
        };
        siege.expect_service("at first");
        siege
    }

    pub fn serves(&self) -> bool {
        SERVER.iter().all(|server| {
            // A long wait for one that was lost before the repair would count as time of the
            // repair.
            let ping = format!("ping -c 1 -W 0.2 {server}");
            self.lab.lan1.try_run(&ping).status.success()
        })
    }

    /// Waits until both families pass the gateway.
    #[track_caller]
    pub fn expect_service(&self, when: &str) {
        self.expect_service_within(REPAIRED_WITHIN, when);
    }

    #[track_caller]
    pub fn expect_service_within(&self, limit: Duration, when: &str) {
        let begin = Instant::now();
        wait_until(&format!("{when} the gateway serves"), || self.serves());
        let took = begin.elapsed();
        assert!(took < limit, "{when}: it took {took:?}");
    }

    /// Does something to the machine that the gateway must put right, saying `word`.
    #[track_caller]
    fn suffer(&self, script: &str, word: &str) {
        let before = self.lab.unit.log().len();
        self.lab.unit.ns.sh(script);
        self.expect_service(script);
        let tells = || {
            let log = self.lab.unit.log();
            let mut lines = log[before..].lines();
            lines.any(|line| line.contains("WARN") && line.contains(word))
        };
        wait_until(&format!("after {script} a WARN tells of {word}"), tells);
    }

    /// Whether a port is up.
    pub fn port(&self, index: usize) -> bool {
        self.lab.unit.status()["ports"][index]["up"] == true
    }

    #[track_caller]
    pub fn end(self) -> Lab {
        for leaks in self.leaks {
            leaks.assert_empty();
        }
        self.lab
    }
}

/// A packet each 2 ms or so. A single ping(8) that sends faster than each 10 ms never sleeps, but
/// calls sched_yield(2) all the time: two of them on a CPU kept the kernel's own workers there from
/// running, and with them whoever waits for these, such as nft(8), for many seconds (Linux 6.18).
pub fn pings(host: &Namespace, to: &str) -> Vec<Process> {
    let ping = |_| host.spawn(&format!("ping -q -i 0.01 -W 1 {to}"));
    (0..5).map(ping).collect()
}

/// Makes a machine forward by itself wherever nothing stops it.
pub fn forward_everywhere(machine: &Namespace) {
    machine.sysctl("ipv4/ip_forward", "1");
    machine.sysctl("ipv6/conf/all/forwarding", "1");
    machine.sysctl("ipv6/conf/all/force_forwarding", "1");
}

#[test]
fn the_lab_notices_leaks() {
    let siege = Siege::begin();
    let unit = &siege.lab.unit.ns;
    // With all three taken away at once and the gateway stopped, everything passes.
    siege.lab.unit.signal(libc::SIGSTOP);
    unit.sh("nft flush ruleset; ip route flush table 7700; ip route flush table 7701");
    siege.leaks[0].expect(&["10.77.1.100 > 10.77.2.100"]);
    siege.leaks[1].expect(&["10.77.2.100 > 10.77.1.100"]);
    unit.sh("ip -6 route flush table 7700; ip -6 route flush table 7701");
    siege.leaks[0].expect(&["fd77:1::100 > fd77:2::100"]);
    siege.leaks[1].expect(&["fd77:2::100 > fd77:1::100"]);
    siege.lab.unit.signal(libc::SIGCONT);
    siege.expect_service("after all of it");
}

#[test]
fn routes_and_rules_that_are_removed_come_back_and_nothing_leaks() {
    let siege = Siege::begin();
    for (script, word) in [
        ("ip route flush table 7700", "table 7700"),
        ("ip -6 route flush table 7700", "table 7700"),
        (
            "ip route flush table 7701; ip -6 route flush table 7701",
            "table 7701",
        ),
        (
            "ip route flush proto 77; ip -6 route flush proto 77",
            "10.77.1.1/32",
        ),
        ("ip rule del priority 7700", "7700: iif eth0"),
        ("ip -6 rule del priority 7701", "7701: iif eth1"),
        ("ip rule flush", "lookup 254"),
        ("ip -6 rule flush", "lookup 254"),
        (
            "ip route replace default dev eth1 table 7700 metric 1024",
            "route removed",
        ),
        (
            "ip route add 10.77.2.0/24 dev eth1 table 7700",
            "route removed",
        ),
        (
            "ip -6 route add fd77:2::/64 dev eth1 table 7700",
            "route removed",
        ),
        // With the gateway's own protocol number, as after `ip route restore`.
        (
            "ip route add default dev eth1 table 7700 proto 77",
            "route removed",
        ),
        (
            "ip route add unreachable 10.77.2.0/24 table 7700 proto 77",
            "route removed",
        ),
        // Ours, but it swallows what is larger.
        (
            "ip route change default dev tgw-lan table 7700 proto 77 metric 1024 mtu 1000",
            "route removed",
        ),
        (
            "ip -6 route change default dev tgw-wan table 7701 proto 77 metric 1024 mtu 1280",
            "route removed",
        ),
    ] {
        siege.suffer(script, word);
    }
    // Again and again, as a network manager does that thinks that they are its own.
    for _ in 0..20 {
        siege
            .lab
            .unit
            .ns
            .sh("ip route flush table 7700; ip -6 route flush table 7701
            for family in -4 -6; do ip $family rule del priority 7701 2> /dev/null || true; done");
    }
    siege.expect_service("after twenty times");
    let log = siege.lab.unit.log();
    assert!(!log.contains("ERROR"), "{log}");
    siege.end();
}

#[test]
fn blackholes_alone_come_back_before_a_kill() {
    let siege = Siege::begin();
    siege.suffer(
        "ip route del blackhole default table 7700 metric 4294967295
        ip route del blackhole default table 7701 metric 4294967295
        ip -6 route del blackhole default table 7700 metric 4294967295
        ip -6 route del blackhole default table 7701 metric 4294967295",
        "blackhole 0.0.0.0/0 table 770",
    );
    siege.lab.unit.signal(libc::SIGKILL);
    std::thread::sleep(Duration::from_millis(300));
    siege.end();
}

#[test]
fn a_killed_gateway_stays_closed_whatever_is_removed_after_it() {
    for removed in [
        "ip rule flush; ip rule add lookup main priority 32766
        ip -6 rule flush; ip -6 rule add lookup main priority 32766",
        "ip rule flush; ip -6 rule flush",
        "ip route add 10.77.2.0/24 dev eth1 table 7700; ip -6 route add fd77:1::/64 dev eth0 table 7701",
        "ip route flush proto 77; ip -6 route flush proto 77",
        "ip link set eth0 name eth9; ip link set eth9 name eth0",
        "ip link set eth0 name lan0",
        "ip link set eth1 name wan0; ip link set eth0 name lan0",
        "nft flush ruleset",
        BRIDGES[0],
        MACVLANS[0],
    ] {
        let siege = Siege::begin();
        siege.lab.unit.signal(libc::SIGKILL);
        siege.lab.unit.ns.sh(removed);
        std::thread::sleep(Duration::from_millis(300));
        let mut lab = siege.end();
        if !removed.contains("lan0") && !removed.contains("link add") {
            lab.unit.kill_remains();
            lab.unit.start();
            wait_until("it serves again", || {
                lab.lan1
                    .try_run("ping -c 1 -W 1 10.77.2.100")
                    .status
                    .success()
            });
        }
    }
}

#[test]
fn the_barrier_comes_back() {
    let siege = Siege::begin();
    for script in [
        "nft flush ruleset",
        "nft delete table inet tandemgw-gw-a",
        "nft flush chain inet tandemgw-gw-a forward",
        "nft insert rule inet tandemgw-gw-a forward accept",
        "nft 'add table inet tandemgw-gw-a { flags dormant; }'",
        "for n in $(seq 20); do nft flush ruleset; done",
        "nft flush ruleset bridge",
        "nft add chain inet tandemgw-gw-a other '{ type filter hook forward priority -500; policy drop; }'",
    ] {
        siege.suffer(script, "barrier restored");
        // It may have been told of the first of several.
        wait_until("the barrier is whole", || {
            let table = siege
                .lab
                .unit
                .ns
                .try_run("nft list table inet tandemgw-gw-a");
            table.stdout.contains("oif @ports counter")
        });
    }
    // A thousand rules of somebody else do not concern us.
    siege.lab.unit.ns.sh(
        "{ echo 'add table inet other; add chain inet other c'
        for n in $(seq 1000); do echo \"add rule inet other c meta mark $n drop\"; done; } | nft -f -",
    );
    siege.expect_service("after a big rule set of others");
    let mut lab = siege.end();
    lab.unit.stop();
    let left = lab.unit.ns.run("nft list ruleset");
    assert!(!left.contains("tandemgw"), "{left}");
}

#[test]
fn tun_devices_come_back() {
    let siege = Siege::begin();
    let http = Http::start(&siege.lab, &siege.lab.server, 6);
    let download = http.start_slow_download(&siege.lab.lan1, &bracketed(SERVER[0]));
    for (script, word) in [
        ("ip link set tgw-lan down", "up: tgw-lan"),
        (
            "ip link set tgw-wan down; ip link set tgw-wan up",
            "dev tgw-wan",
        ),
        ("ip link set tgw-lan name elsewhere", "the name of tgw-lan"),
        ("ip link set tgw-wan mtu 1000", "the MTU of tgw-wan"),
        ("ip link set tgw-lan txqueuelen 0", "the queue of tgw-lan"),
        ("ip link del tgw-lan", "device=tgw-lan"),
        ("ip link del tgw-wan; ip link del tgw-lan", "device=tgw-wan"),
        // What is put right before something else fails is told too.
        (
            "ip rule del priority 7700; ip link del tgw-lan",
            "7700: iif eth0",
        ),
        (
            "ip netns add away; ip link set tgw-lan netns away; ip netns del away",
            "device=tgw-lan",
        ),
    ] {
        siege.suffer(script, word);
    }
    download.finish();
    siege.end();
}

#[test]
fn parameters_come_back() {
    let siege = Siege::begin();
    let set = |file: &str, value: u32| format!("echo {value} > /proc/sys/net/{file}");
    for (script, word) in [
        (set("ipv4/conf/eth0/forwarding", 0), "forwarding of eth0"),
        (set("ipv4/ip_forward", 0), "forwarding of tgw-wan"),
        (
            set("ipv6/conf/eth1/force_forwarding", 0),
            "forwarding of eth1",
        ),
        (
            set("ipv6/conf/tgw-lan/force_forwarding", 0),
            "forwarding of tgw-lan",
        ),
        (
            set("ipv6/conf/tgw-wan/disable_ipv6", 1),
            "disable_ipv6 of tgw-wan",
        ),
        (set("ipv6/conf/tgw-lan/mtu", 1280), "mtu of tgw-lan"),
        (
            set("ipv4/conf/tgw-lan/rp_filter", 1),
            "rp_filter of tgw-lan",
        ),
        (
            set("ipv4/conf/tgw-wan/accept_local", 0),
            "accept_local of tgw-wan",
        ),
        (
            set("ipv4/conf/tgw-lan/route_localnet", 1),
            "route_localnet of tgw-lan",
        ),
        (set("ipv4/conf/eth0/proxy_arp", 1), "proxy_arp of eth0"),
        (set("ipv4/conf/all/proxy_arp", 1), "proxy_arp of all"),
        (
            set("ipv4/neigh/eth1/mcast_solicit", 0) + "; ip neigh flush all",
            "mcast_solicit of eth1",
        ),
        (
            set("ipv6/neigh/eth0/mcast_solicit", 0) + "; ip -6 neigh flush all",
            "mcast_solicit of eth0",
        ),
    ] {
        siege.suffer(&script, word);
    }
    // Each time it comes back before the kernel, busy with other things, has made the routes of the
    // addresses.
    let hogs: Vec<Process> = (0..4)
        .map(|_| siege.lab.sw_lan.spawn("sha1sum /dev/zero"))
        .collect();
    for device in ["eth1", "all", "eth0", "eth1", "all"] {
        let script = set(&format!("ipv6/conf/{device}/disable_ipv6"), 1);
        siege.lab.unit.ns.sh(&script);
        siege.expect_service(&script);
        let log = siege.lab.unit.log();
        assert!(log.contains("disable_ipv6 of eth1"), "{log}");
    }
    drop(hogs);
    siege.end();
}

#[test]
fn a_renamed_port_is_down_and_comes_back_with_its_name() {
    for (interface, other, port) in [("eth0", "lan0", 0), ("eth1", "wan0", 1)] {
        let siege = Siege::begin();
        siege
            .lab
            .unit
            .ns
            .run(&format!("ip link set {interface} name {other}"));
        wait_until("the port is down", || !siege.port(port));
        let log = siege.lab.unit.log();
        assert!(log.contains(&format!("it is called {other} now")), "{log}");
        std::thread::sleep(Duration::from_millis(300));
        assert!(!siege.serves());
        siege
            .lab
            .unit
            .ns
            .run(&format!("ip link set {other} name {interface}"));
        siege.expect_service("with its name again");
        assert!(siege.port(port));
        siege.end();
    }
}

#[test]
fn both_ports_renamed_or_exchanged_are_down_and_nothing_passes() {
    let siege = Siege::begin();
    for (script, undo) in [
        (
            "ip link set eth0 name lan0; ip link set eth1 name wan0",
            "ip link set wan0 name eth1; ip link set lan0 name eth0",
        ),
        (
            "ip link set eth0 name x; ip link set eth1 name eth0; ip link set x name eth1",
            "ip link set eth0 name x; ip link set eth1 name eth0; ip link set x name eth1",
        ),
    ] {
        siege.lab.unit.ns.sh(script);
        wait_until("both ports are down", || !siege.port(0) && !siege.port(1));
        // Repairs, and looks at each port in turn, change nothing.
        std::thread::sleep(Duration::from_millis(700));
        assert!(!siege.port(0) && !siege.port(1), "{script}");
        siege.lab.unit.ns.sh(undo);
        siege.expect_service(undo);
        assert!(siege.port(0) && siege.port(1));
    }
    let log = siege.lab.unit.log();
    assert!(
        log.contains("that is the interface of port wan until now"),
        "{log}"
    );
    siege.end();
}

#[test]
fn an_end_while_a_port_has_another_name_leaves_no_forwarding() {
    let mut lab = Lab::started();
    lab.unit.ns.run("ip link set eth0 name lan0");
    wait_until("the port is down", || {
        lab.unit.status()["ports"][0]["up"] == false
    });
    lab.unit.stop();
    for file in [
        "ipv4/conf/lan0/forwarding",
        "ipv6/conf/lan0/force_forwarding",
    ] {
        let value = lab.unit.ns.run(&format!("cat /proc/sys/net/{file}"));
        assert_eq!(value.trim(), "0", "{file}");
    }
}

#[test]
fn a_port_in_a_bridge_is_down_and_comes_back() {
    let siege = Siege::begin();
    let unit = &siege.lab.unit.ns;
    make_bridge(unit);
    // Both ports in one bridge are joined, past all routes and rules.
    for ports in [&["eth0"][..], &["eth1"], &["eth0", "eth1"]] {
        for port in ports {
            unit.run(&format!("ip link set {port} master br0"));
        }
        wait_until("the port is down", || !siege.port(0) || !siege.port(1));
        let log = siege.lab.unit.log();
        assert!(log.contains("it belongs to br0 now"), "{log}");
        std::thread::sleep(Duration::from_millis(300));
        for port in ports {
            unit.run(&format!("ip link set {port} nomaster"));
        }
        siege.expect_service("out of the bridge again");
    }
    siege.end();
}

/// Each port is put below a device of its own, which gets its addresses: what comes in by the ports
/// comes in by devices that are no ports, and the machine forwards between those. And what undoes
/// it.
const BRIDGES: [&str; 2] = [
    "for n in 0 1; do
        ip link add br$n type bridge; ip link set br$n up; ip addr flush dev eth$n
        ip link set eth$n master br$n
        ip addr add 10.77.$((n + 1)).2/24 dev br$n; ip addr add fd77:$((n + 1))::2/64 dev br$n nodad
    done",
    "ip link del br0; ip link del br1
    for n in 1 2; do ip addr add 10.77.$n.2/24 dev eth$((n - 1)); ip addr add fd77:$n::2/64 dev eth$((n - 1)) nodad; done",
];

/// The same with macvlans that take all packets of the ports.
const MACVLANS: [&str; 2] = [
    "for n in 0 1; do
        ip link add link eth$n name mv$n type macvlan mode passthru; ip addr flush dev eth$n
        ip link set mv$n up
        ip addr add 10.77.$((n + 1)).2/24 dev mv$n; ip addr add fd77:$((n + 1))::2/64 dev mv$n nodad
    done",
    "ip link del mv0; ip link del mv1
    for n in 1 2; do ip addr add 10.77.$n.2/24 dev eth$((n - 1)); ip addr add fd77:$n::2/64 dev eth$((n - 1)) nodad; done",
];

#[test]
fn devices_above_the_ports_forward_nothing_between_them() {
    for ([script, undo], word) in [
        (BRIDGES, "it belongs to br1 now"),
        (MACVLANS, "mv1, above it, takes its packets"),
    ] {
        let siege = Siege::begin();
        siege.lab.unit.ns.sh(script);
        wait_until("both ports are down", || !siege.port(0) && !siege.port(1));
        let log = siege.lab.unit.log();
        assert!(log.contains(word), "{log}");
        wait_until("the barrier has stopped something", || {
            siege.lab.unit.status()["barrier"]["stopped"].as_u64() > Some(0)
        });
        assert!(!siege.serves());
        // The machine itself is still reached, through the new devices.
        siege.lab.lan1.run("ping -c 1 -W 1 10.77.1.2");
        siege.lab.unit.ns.sh(undo);
        siege.expect_service("without the devices");
        siege.end();
    }
}

#[test]
fn an_interface_made_again_is_never_open() {
    let siege = Siege::begin();
    for port in ["eth0", "eth1"] {
        siege.lab.unit.ns.run(&format!("ip link del {port}"));
        wait_until("the port is down", || !siege.port(0) || !siege.port(1));
        match port {
            "eth0" => siege.lab.attach_lan(),
            _ => siege.lab.attach_wan(),
        }
        let mac = siege.lab.unit.ns.mac_text("eth0");
        for gateway in LAN_GATEWAY {
            let entry = format!("ip neigh replace {gateway} lladdr {mac} nud permanent dev eth0");
            siege.lab.lan1.run(&entry);
        }
        siege.expect_service("made again");
    }
    siege.end();
}

/// They are somebody's decision, so they stay; what they route past the gateway is stopped.
#[test]
fn rules_that_come_first_are_told() {
    let siege = Siege::begin();
    for (rule, shown) in [
        ("iif eth0 lookup main pref 9", "9: iif eth0 lookup 254"),
        (
            "iif eth1 lookup main pref 7700",
            "7700: iif eth1 lookup 254",
        ),
        ("lookup main pref 7", "7: iif any lookup 254"),
        ("iif tgw-lan blackhole pref 1", "1: iif tgw-lan"),
    ] {
        let before = siege.lab.unit.log().len();
        siege.lab.unit.ns.run(&format!("ip rule add {rule}"));
        wait_until(&format!("a WARN tells of {rule}"), || {
            let log = siege.lab.unit.log();
            let mut lines = log[before..].lines();
            lines.any(|line| line.contains("rule before ours") && line.contains(shown))
        });
        siege.lab.unit.ns.run(&format!("ip rule del {rule}"));
        siege.expect_service("without the rule");
    }
    siege.end();
}

#[test]
fn a_lost_port_is_a_reason_to_hand_over() {
    for script in [
        "ip link set eth1 name wan0",
        "ip link add br0 type bridge; ip link set eth0 master br0",
    ] {
        let mut pair = Pair::started();
        let term = pair.a().term();
        pair.a().ns.sh(script);
        wait_until("b is primary", || {
            pair.b().is_primary() && !pair.a().is_primary()
        });
        assert!(pair.b().term() > term);
        pair.a_mut().assert_running();
    }
}

#[test]
fn doctor_and_status_tell_of_the_barrier() {
    let mut lab = Lab::new();
    let check = |lab: &Lab| {
        let doctor = format!(
            "doctor --json --config {}",
            lab.unit.config_path().display()
        );
        let said = lab.unit.tandemgw(&doctor).stdout;
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let mut checks = said["checks"].as_array().expect("a list").iter();
        let barrier = checks.find(|check| check["check"] == "barrier");
        barrier.expect("a check of the barrier").clone()
    };
    lab.unit.write_config();
    assert_eq!(check(&lab)["found"], "the gateway sets it when it starts");
    lab.unit.start();
    assert_eq!(check(&lab)["found"], "in place, and has stopped nothing");
    lab.unit.ns.run("nft flush ruleset");
    wait_until("it is set again", || {
        check(&lab)["found"] == "in place, and has stopped nothing"
    });
    // Packets that somebody else's rule routes past the gateway are stopped, counted and reported.
    lab.unit
        .ns
        .run("ip rule add iif eth0 lookup main priority 9");
    lab.lan1
        .try_run("ping -c 3 -i 0.05 -W 1 10.77.2.100")
        .code(1);
    wait_until("the status counts what was stopped", || {
        let status = lab.unit.status();
        status["barrier"]["set"] == true && status["barrier"]["stopped"].as_u64() >= Some(3)
    });
    let log = lab.unit.log();
    assert!(
        log.contains("rule before ours rule=\"9: iif eth0 lookup 254 (IPv4)\""),
        "{log}"
    );
    assert!(log.contains("packets stopped count="), "{log}");
    let shown = lab.unit.tandemgw("status").stdout;
    assert!(
        shown.contains("packets stopped that would have bypassed"),
        "{shown}"
    );
}
