//! Several uplinks: a default route, or one with a prefix, whose next hops are on two ports.

use crate::capture::Capture;
use crate::lab::{Lab, assign, make_bridge, plug};
use crate::pair::set_port;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Hosts beyond both providers, by family.
const HOSTS: u32 = 16;

struct Uplinks {
    lab: Lab,
    /// Beside the server, which is the first provider.
    isp2: Namespace,
    sw_wan2: Namespace,
}

impl Uplinks {
    fn new() -> Uplinks {
        let mut lab = Lab::new();
        let sw_wan2 = lab.sw_wan.sibling("sw-wan2");
        make_bridge(&sw_wan2);
        let isp2 = lab.sw_wan.sibling("isp2");
        plug(&sw_wan2, &isp2, "eth0");
        plug(&sw_wan2, &lab.unit.ns, "eth2");
        assign(&isp2, "eth0", ["10.77.8.100", "fd77:8::100"]);
        assign(&lab.unit.ns, "eth2", ["10.77.8.2", "fd77:8::2"]);
        for isp in [&lab.server, &isp2] {
            let addresses = (1..=HOSTS).map(|n| {
                format!(
                    "ip addr add 198.51.100.{n}/32 dev lo; ip addr add 2001:db8::{n}/128 dev lo;"
                )
            });
            isp.sh(&addresses.collect::<String>());
        }
        lab.unit.edit("[[policy]]", WAN2);
        lab.unit.edit("to = [\"wan\"]", "to = [\"wan\", \"wan2\"]");
        Uplinks { lab, isp2, sw_wan2 }
    }

    fn add_default_routes(&self) {
        self.add_routes("default", "default");
    }

    /// Routes with a next hop by each of both.
    fn add_routes(&self, v4: &str, v6: &str) {
        let ns = &self.lab.unit.ns;
        ns.run(&format!(
            "ip route add {v4} nexthop via 10.77.2.100 dev eth1 nexthop via 10.77.8.100 dev eth2"
        ));
        ns.run(&format!(
            "ip -6 route add {v6} nexthop via fd77:2::100 dev eth1 nexthop via fd77:8::100 dev eth2"
        ));
    }

    /// How many of the hosts answer.
    fn reached(&self) -> usize {
        let all = (1..=HOSTS).flat_map(|n| [format!("198.51.100.{n}"), format!("2001:db8::{n}")]);
        let answers = |host: &String| {
            let ping = self.lab.lan1.try_run(&format!("ping -c 1 -W 1 {host}"));
            ping.status.success()
        };
        all.filter(answers).count()
    }
}

const WAN2: &str = r#"[[port]]
name = "wan2"
interface = "eth2"
virtual-addresses = ["10.77.8.1/24", "fd77:8::1/64"]

[[policy]]"#;

// `and` and `or` bind alike (pcap-filter(7)).
const BEYOND: &str = "(icmp[icmptype] == icmp-echo and dst net 198.51.100.0/24) \
                      or (icmp6[icmp6type] == icmp6-echo and dst net 2001:db8::/64)";

/// Fails unless there are requests, and all of them are from one of these addresses.
#[track_caller]
fn all_are_from(seen: &str, own: [&str; 2], where_: &str) {
    let requests: Vec<&str> = seen
        .lines()
        .filter(|line| line.contains("echo request"))
        .collect();
    for own in own {
        let is_own = |line: &&str| line.contains(&format!("{own} > "));
        assert!(
            requests.iter().any(is_own),
            "nothing left by {where_} from {own}"
        );
    }
    for line in requests {
        let is_own = own.iter().any(|own| line.contains(&format!("{own} > ")));
        assert!(is_own, "by {where_}, of another port: {line}");
    }
}

#[test]
fn each_flow_leaves_by_the_port_that_it_was_translated_for() {
    let mut net = Uplinks::new();
    net.lab.unit.start();
    net.add_default_routes();
    wait_until("all hosts are reached", || {
        net.reached() == 2 * HOSTS as usize
    });
    let first = Capture::start(&net.lab.server, "eth0", BEYOND);
    let second = Capture::start(&net.isp2, "eth0", BEYOND);
    assert_eq!(net.reached(), 2 * HOSTS as usize);
    all_are_from(&first.stop(), ["10.77.2.1", "fd77:2::1"], "wan");
    all_are_from(&second.stop(), ["10.77.8.1", "fd77:8::1"], "wan2");

    // A next hop that is gone has its flows move; one that comes back gets some again.
    set_port(&net.sw_wan2, &net.lab.unit.ns, "eth2", "down");
    wait_until("all hosts are reached by wan alone", || {
        net.reached() == 2 * HOSTS as usize
    });
    set_port(&net.sw_wan2, &net.lab.unit.ns, "eth2", "up");
    wait_until("all hosts are reached by both", || {
        net.reached() == 2 * HOSTS as usize
    });
    net.lab.unit.ns.run("ip route flush table 1952914966");
    wait_until("what was removed is put back", || {
        net.reached() == 2 * HOSTS as usize
    });

    // One way is left: the kernel has nothing to choose, and nothing of it stays.
    net.lab
        .unit
        .ns
        .run("ip route replace default via 10.77.2.100 dev eth1");
    net.lab
        .unit
        .ns
        .run("ip -6 route del default via fd77:8::100 dev eth2");
    wait_until("the rules are gone", || {
        let rules = net.lab.unit.ns.run("ip rule") + &net.lab.unit.ns.run("ip -6 rule");
        !rules.contains("iif tgw-")
    });
    wait_until("all hosts are reached by one", || {
        net.reached() == 2 * HOSTS as usize
    });
}

#[test]
fn policy_of_an_uplink_is_not_passed_by() {
    let mut net = Uplinks::new();
    net.lab
        .unit
        .edit("to = [\"wan\", \"wan2\"]", "to = [\"wan\"]");
    net.add_default_routes();
    net.lab.unit.start();
    let second = Capture::start(&net.isp2, "eth0", BEYOND);
    let reached = net.reached();
    assert!(
        (1..2 * HOSTS as usize).contains(&reached),
        "{reached} are reached"
    );
    second.assert_empty();
    net.lab.unit.stop();
    let left = net.lab.unit.ns.run("ip rule") + &net.lab.unit.ns.run("ip route show table all");
    assert!(!left.contains("tgw-") && !left.contains("1952"), "{left}");
}

#[test]
fn next_hops_of_a_prefix_are_followed_and_longer_ones_stay() {
    let mut net = Uplinks::new();
    let ns = |net: &Uplinks, command: &str| net.lab.unit.ns.sh(command);
    net.add_routes("198.51.100.0/24", "2001:db8::/64");
    // The first four hosts are beyond the second provider alone.
    ns(&net, "ip route add 198.51.100.0/30 via 10.77.8.100");
    ns(&net, "ip -6 route add 2001:db8::/126 via fd77:8::100");
    net.lab.unit.start();
    let first = Capture::start(&net.lab.server, "eth0", BEYOND);
    let second = Capture::start(&net.isp2, "eth0", BEYOND);
    wait_until("all hosts are reached", || {
        net.reached() == 2 * HOSTS as usize
    });
    let (first, second) = (first.stop(), second.stop());
    all_are_from(&first, ["10.77.2.1", "fd77:2::1"], "wan");
    all_are_from(&second, ["10.77.8.1", "fd77:8::1"], "wan2");
    for host in ["198.51.100.1:", "198.51.100.3:", "2001:db8::2:"] {
        assert!(!first.contains(host), "{host} {first}");
        assert!(second.contains(host), "{host} {second}");
    }

    // Removed routes are put back, and the routes of a link that was down.
    ns(
        &net,
        "ip route flush table 1952980501; ip -6 route flush table 1952980501",
    );
    ns(
        &net,
        "ip route flush table 1952980502; ip rule del pref 7702 iif tgw-wan2",
    );
    wait_until("what was removed is put back", || {
        net.reached() == 2 * HOSTS as usize
    });
    set_port(&net.sw_wan2, &net.lab.unit.ns, "eth2", "down");
    set_port(&net.sw_wan2, &net.lab.unit.ns, "eth2", "up");
    for route in [
        "198.51.100.0/30 via 10.77.8.100",
        "2001:db8::/126 via fd77:8::100",
    ] {
        ns(&net, &format!("ip route replace {route}"));
    }
    wait_until("all hosts are reached after the link was down", || {
        net.reached() == 2 * HOSTS as usize
    });

    ns(
        &net,
        "ip route del 198.51.100.0/24; ip -6 route del 2001:db8::/64",
    );
    wait_until("the rules are gone", || {
        let rules = ns(&net, "ip rule") + &ns(&net, "ip -6 rule");
        !rules.contains("iif tgw-")
    });
    net.lab.unit.stop();
    let left = ns(&net, "ip rule") + &ns(&net, "ip route show table all");
    assert!(!left.contains("tgw-") && !left.contains("19529"), "{left}");
}

/// A rule of somebody else makes the kernel send packets by another port than the gateway knows of.
#[test]
fn no_packet_leaves_by_another_port_than_it_was_judged_for() {
    let mut net = Uplinks::new();
    let ns = |net: &Uplinks, command: &str| net.lab.unit.ns.sh(command);
    ns(&net, "ip route add default via 10.77.2.100");
    ns(&net, "ip -6 route add default via fd77:2::100");
    net.lab.unit.start();
    assert_eq!(net.reached(), 2 * HOSTS as usize);
    let second = Capture::start(&net.isp2, "eth0", BEYOND);
    ns(&net, "ip route add default via 10.77.8.100 table 99");
    ns(&net, "ip -6 route add default via fd77:8::100 table 99");
    ns(&net, "ip rule add to 198.51.100.0/24 lookup 99 pref 9000");
    ns(&net, "ip -6 rule add to 2001:db8::/64 lookup 99 pref 9000");
    assert_eq!(
        net.reached(),
        0,
        "they are for wan, and can't leave by wan2"
    );
    second.assert_empty();
    wait_until("it is said", || {
        net.lab.unit.log().contains("packets stopped")
    });
    ns(&net, "ip rule del pref 9000; ip -6 rule del pref 9000");
    assert_eq!(net.reached(), 2 * HOSTS as usize);
}
