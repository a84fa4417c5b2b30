//! Obstacles that others put in the way of packets that the kernel routes well: packet filters,
//! queues, filters of tc. An obstacle that stops all packets of a port is reported with its remedy,
//! and another unit takes over; one that stops none is not reported. What stops all packets of a
//! port is told with its remedy, and another unit takes over; what stops none is no concern.

use std::time::{Duration, Instant};

use testkit::system::process::{Process, wait_until};
use testkit::system::xdp;

use crate::detour::{expect_fault, expect_no_fault};
use crate::lab::{Lab, SERVER};
use crate::pair::Pair;

/// A chain as Docker's and ufw's, for both families.
const FIREWALL: &str = "nft add table inet fw; \
    nft 'add chain inet fw FORWARD { type filter hook forward priority 0; policy drop; }'";

/// The obstacle, its removal, and a word of the report.
const OBSTACLES: &[(&str, &str, &str)] = &[
    (
        FIREWALL,
        "nft delete table inet fw",
        "chain FORWARD of table inet fw",
    ),
    (
        "nft add table inet fw; nft 'add chain inet fw last { type filter hook forward priority 10; }'; \
         nft add rule inet fw last counter reject",
        "nft delete table inet fw",
        "chain last of table inet fw",
    ),
    (
        "nft add table inet p; nft 'add chain inet p out { type filter hook postrouting priority 0; }'; \
         nft 'add rule inet p out oifname tgw-* drop'",
        "nft delete table inet p",
        "chain out of table inet p",
    ),
    // Of one family, as Docker's.
    (
        "nft add table ip filter; nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        "nft delete table ip filter",
        "chain FORWARD of table ip filter",
    ),
    // By a chain that another one leads to, as firewalld's.
    (
        "nft add table inet f; nft add chain inet f zone; nft add rule inet f zone reject; \
         nft 'add chain inet f FWD { type filter hook forward priority 10; }'; nft add rule inet f FWD jump zone",
        "nft delete table inet f",
        "chain FWD of table inet f",
    ),
    // firewalld trusts ports and TUN devices, but its filter of the reverse path does not.
    (
        "nft add table inet fd; nft add chain inet fd nothing; nft add rule inet fd nothing counter; \
         nft 'add chain inet fd mangle { type filter hook prerouting priority -140; }'; nft add rule inet fd mangle jump nothing; \
         nft add chain inet fd zones; nft add rule inet fd zones iifname tgw-* accept; nft add rule inet fd zones iifname eth* accept; \
         nft 'add chain inet fd FWD { type filter hook forward priority 10; }'; nft add rule inet fd FWD goto zones; \
         nft 'add chain inet fd PRE { type filter hook prerouting priority 10; }'; \
         nft add rule inet fd PRE meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
        "nft delete table inet fd",
        "chain PRE of table inet fd",
    ),
    // It trusts the TUN devices, and not the ports.
    (
        "nft add table inet fd; nft add chain inet fd zones; nft add rule inet fd zones iifname tgw-* accept; \
         nft 'add chain inet fd FWD { type filter hook forward priority 10; }'; nft add rule inet fd FWD jump zones; \
         nft add rule inet fd FWD reject",
        "nft delete table inet fd",
        "chain FWD of table inet fd",
    ),
    (
        "nft add table ip6 r; nft 'add chain ip6 r pre { type filter hook prerouting priority -300; }'; \
         nft add rule ip6 r pre iifname eth0 drop",
        "nft delete table ip6 r",
        "chain pre of table ip6 r",
    ),
    (
        "nft add table inet r; nft 'add chain inet r pre { type filter hook prerouting priority -150; }'; \
         nft add rule inet r pre iifname { eth0, eth1 } drop",
        "nft delete table inet r",
        "chain pre of table inet r",
    ),
    (
        "nft add table inet p; nft 'add chain inet p post { type filter hook postrouting priority 100; }'; \
         nft add rule inet p post oifname eth1 ip version 4 drop",
        "nft delete table inet p",
        "chain post of table inet p",
    ),
    (
        "nft add table netdev n; nft 'add chain netdev n in { type filter hook ingress device eth0 priority 0; policy drop; }'",
        "nft delete table netdev n",
        "chain in of table netdev n",
    ),
    (
        "nft add table netdev n; nft 'add chain netdev n out { type filter hook egress device eth1 priority 0; policy drop; }'",
        "nft delete table netdev n",
        "chain out of table netdev n",
    ),
    (
        "nft add table netdev n; nft 'add chain netdev n out { type filter hook egress device eth0 priority 0; }'; \
         nft add rule netdev n out meta protocol ip6 drop",
        "nft delete table netdev n",
        "chain out of table netdev n",
    ),
    (
        "ip xfrm policy add dir fwd src 10.77.0.0/16 dst 10.77.0.0/16 action block",
        "ip xfrm policy flush",
        "ip xfrm policy",
    ),
    (
        "tc qdisc replace dev tgw-lan root pfifo limit 0",
        "tc qdisc del dev tgw-lan root",
        "the queue of tgw-lan (pfifo)",
    ),
    (
        "tc qdisc add dev eth1 root pfifo limit 0",
        "tc qdisc del dev eth1 root",
        "the queue of eth1 (pfifo)",
    ),
    (
        "tc qdisc add dev eth1 clsact; tc filter add dev eth1 egress bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev eth1 clsact",
        "tc qdisc del dev eth1 clsact",
    ),
    (
        "tc qdisc add dev eth0 ingress; tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev eth0 ingress",
        "tc qdisc del dev eth0 ingress",
    ),
    (
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress protocol ipv6 bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev eth0 clsact",
        "tc qdisc del dev eth0 clsact",
    ),
    (
        "tc qdisc add dev eth1 clsact; tc filter add dev eth1 ingress bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev eth1 clsact",
        "tc qdisc del dev eth1 clsact",
    ),
    (
        "tc qdisc add dev eth0 clsact; \
         tc filter add dev eth0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev lo",
        "tc qdisc del dev eth0 clsact",
        "tc qdisc del dev eth0 clsact",
    ),
];

/// Harmless: some of the packets are lost, or all are just looked at.
const HARMLESS: &[(&str, &str)] = &[
    (
        "tc qdisc add dev eth1 root tbf rate 100kbit burst 2000 limit 3000",
        "tc qdisc del dev eth1 root",
    ),
    (
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 0'",
        "tc qdisc del dev eth0 clsact",
    ),
    (
        "nft add table inet fw; nft 'add chain inet fw f { type filter hook forward priority 0; policy drop; }'; \
         nft 'add rule inet fw f iifname tgw-* accept'; nft 'add rule inet fw f oifname tgw-* accept'",
        "nft delete table inet fw",
    ),
];

/// All is told, and another unit serves, within this time; the machine may be busy.
const WITHIN: Duration = Duration::from_secs(4);

fn traffic(lab: &Lab) -> Vec<Process> {
    let ping = |server: &&str| lab.lan1.spawn(&format!("ping -q -i 0.01 -W 1 {server}"));
    SERVER.iter().map(ping).collect()
}

fn serves(lab: &Lab) -> bool {
    SERVER.iter().all(|server| {
        let ping = lab.lan1.try_run(&format!("ping -c 1 -W 1 {server}"));
        ping.status.success()
    })
}

#[test]
fn another_unit_takes_over_from_one_whose_packets_are_stopped() {
    let pair = Pair::started();
    let _pings = traffic(&pair.lab);
    for (script, undo, word) in OBSTACLES {
        let on_a = pair.a().is_primary();
        let unit = if on_a { pair.a() } else { pair.b() };
        // So that it has forwarded for a moment.
        std::thread::sleep(Duration::from_millis(1200));
        let before = unit.log().len();
        unit.ns.sh(script);
        let took = pair.wait_until_other_is_primary(on_a, script);
        assert!(took < WITHIN, "{script}: it took {took:?}");
        wait_until("hosts are served", || serves(&pair.lab));
        expect_fault(unit, word);
        let log = unit.log();
        assert!(log[before..].contains("port does not work"), "{log}");
        // Without traffic it is still there.
        std::thread::sleep(Duration::from_millis(1500));
        expect_fault(unit, word);
        unit.ns.sh(undo);
        expect_no_fault(unit);
        wait_until("both units are ready again", || {
            let units = [pair.a(), pair.b()];
            units.iter().all(|unit| unit.group()["ready"] == true)
        });
    }
}

/// It counts nothing that anybody else could read, and no other command undoes what it does.
#[test]
fn another_unit_takes_over_from_one_behind_a_program_that_drops_all() {
    let pair = Pair::started();
    let _pings = traffic(&pair.lab);
    std::thread::sleep(Duration::from_millis(1200));
    let program = xdp::drop_all(&pair.a().ns, "eth1");
    let begin = Instant::now();
    wait_until("gw-b is primary", || pair.b().is_primary());
    let took = begin.elapsed();
    assert!(took < WITHIN, "it took {took:?}");
    wait_until("hosts are served", || serves(&pair.lab));
    expect_fault(pair.a(), "XDP program");
    let log = pair.a().log();
    assert!(log.contains("xdp program on a port"), "{log}");
    drop(program);
    expect_no_fault(pair.a());
}

#[test]
fn what_others_look_at_or_drop_a_part_of_is_no_fault() {
    let lab = Lab::started();
    let _pings = traffic(&lab);
    for (script, undo) in HARMLESS {
        lab.unit.ns.sh(script);
        std::thread::sleep(Duration::from_millis(2500));
        for port in lab.unit.status()["ports"].as_array().expect("a list") {
            assert!(port["fault"].is_null(), "{script}: {port}");
        }
        lab.unit.ns.sh(undo);
    }
    // Hosts that do not exist are no obstacle, whatever filter there is.
    lab.unit.ns.sh(FIREWALL);
    lab.unit
        .ns
        .sh("nft 'add rule inet fw FORWARD ip saddr 10.77.0.0/16 accept'");
    lab.unit
        .ns
        .sh("nft 'add rule inet fw FORWARD ip6 saddr fd77::/16 accept'");
    lab.unit
        .ns
        .sh("nft 'add rule inet fw FORWARD ct state established accept'");
    std::thread::sleep(Duration::from_millis(2500));
    for port in lab.unit.status()["ports"].as_array().expect("a list") {
        assert!(port["fault"].is_null(), "{port}");
    }
}

/// What waits for hosts that do not answer has passed every chain, also those that drop something
/// else.
#[test]
fn hosts_that_do_not_answer_are_no_obstacle() {
    let lab = Lab::started();
    lab.unit.ns.sh("nft add table inet fw; \
        nft 'add chain inet fw f { type filter hook forward priority 0; }'; \
        nft add rule inet fw f tcp dport 9999 drop; \
        nft 'add chain inet fw p { type filter hook prerouting priority -300; }'; \
        nft add rule inet fw p tcp dport 9999 drop");
    let absent = ["10.77.2.77", "fd77:2::77"];
    let ping = |host: &&str| lab.lan1.spawn(&format!("ping -q -i 0.01 -W 1 {host}"));
    let _pings: Vec<Process> = absent.iter().map(ping).collect();
    std::thread::sleep(Duration::from_secs(5));
    for port in lab.unit.status()["ports"].as_array().expect("a list") {
        assert!(port["fault"].is_null(), "{port}");
    }
}

/// No change of the packet filter tells of it, and the port is not silent.
#[test]
fn a_family_that_was_dropped_before_the_start_is_told() {
    let mut lab = Lab::new();
    lab.unit.ns.sh("nft add table ip6 r; \
        nft 'add chain ip6 r pre { type filter hook prerouting priority -300; }'; \
        nft add rule ip6 r pre iifname eth0 drop");
    lab.unit.start();
    let _pings = traffic(&lab);
    expect_fault(&lab.unit, "chain pre of table ip6 r");
    lab.unit.ns.sh("nft delete table ip6 r");
    expect_no_fault(&lab.unit);
    wait_until("hosts are served", || serves(&lab));
}

/// As Docker does, whose chain is for IPv4 alone.
#[test]
fn a_chain_that_drops_one_family_is_told() {
    let lab = Lab::started();
    let _pings = traffic(&lab);
    wait_until("hosts are served", || serves(&lab));
    lab.unit.ns.sh("nft add table ip filter; \
        nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'");
    wait_until("it is told", || {
        let log = lab.unit.log();
        log.contains("packets dropped by others")
            && log.contains("chain FORWARD of table ip filter")
    });
    // The remedy works.
    let log = lab.unit.log();
    let line = log.lines().find(|line| line.contains("dropped by others"));
    let remedies = line.expect("a line").split("nft '").skip(1);
    for remedy in remedies {
        let (rule, _) = remedy.split_once('\'').expect("it ends");
        lab.unit.ns.sh(&format!("nft '{}'", rule.replace('\\', "")));
    }
    wait_until("hosts are served again", || serves(&lab));
}
