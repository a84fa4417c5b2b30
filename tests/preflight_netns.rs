//! The check of the machine against a real kernel, in network namespaces of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use tandemgw::os::netlink::Netlink;
use tandemgw::os::preflight::{MachineProblem, check};
use tandemgw::os::steering::Steering;
use tun_tap::{Iface, Mode};

use testkit::system::kernel::{config, in_namespace, ip, write_sysctl};

#[test]
fn finds_nothing_wrong_with_a_good_machine() {
    in_namespace("finds_nothing_wrong_with_a_good_machine", || {
        lab();
        assert_eq!(check(&config(), false), []);
        let tuns =
            ["tgw-lan", "tgw-wan"].map(|name| Iface::without_packet_info(name, Mode::Tun).unwrap());
        let mut netlink = Netlink::open().unwrap();
        let indices = ["tgw-lan", "tgw-wan"].map(|name| netlink.link(name).unwrap().unwrap().index);
        let steering = Steering::set_up(netlink, &config(), &indices).unwrap();
        drop((steering, tuns));
        assert_eq!(check(&config(), false), [], "after a crash");
    });
}

#[test]
fn names_each_problem() {
    in_namespace("names_each_problem", || {
        lab();
        for (breakage, fatal, what, repair) in [
            (
                "addr add 10.77.1.1/24 dev lan",
                true,
                "10.77.1.1 is an address",
                "addr del 10.77.1.1/24 dev lan",
            ),
            (
                "addr add fd77:1::1/64 dev wan",
                true,
                "interface wan",
                "addr del fd77:1::1/64 dev wan",
            ),
            (
                "link set lan down",
                false,
                "interface lan is down",
                "link set lan up",
            ),
            (
                "link set wan-peer down",
                false,
                "interface wan has no carrier",
                "link set wan-peer up",
            ),
            (
                "rule add priority 50 lookup 99",
                false,
                "50: iif any lookup 99",
                "rule del priority 50",
            ),
            (
                "rule add priority 50 iif lo lookup 99",
                false,
                "",
                "rule del priority 50",
            ),
            (
                "-6 rule add priority 7701 lookup 99",
                true,
                "7701",
                "-6 rule del priority 7701",
            ),
            (
                "-4 addr flush dev lan",
                false,
                "",
                "addr add 10.77.1.2/24 dev lan",
            ),
            (
                "link set lan mtu 1279",
                false,
                "MTU of 1279",
                "link set lan mtu 1500",
            ),
        ] {
            ip(breakage);
            expect(breakage, fatal, what);
            ip(repair);
        }
        write_sysctl("ipv4/conf/all/rp_filter", "1");
        expect("strict rp_filter", true, "all.rp_filter is 1");
        write_sysctl("ipv4/conf/all/rp_filter", "2");
        write_sysctl("ipv6/conf/lan/disable_ipv6", "1");
        expect("no IPv6", true, "IPv6 is disabled there");
        write_sysctl("ipv6/conf/lan/disable_ipv6", "0");
        assert_eq!(check(&config(), false), [], "after all that");
    });
}

#[test]
fn sees_who_has_the_tun_and_which_interface_was_meant() {
    in_namespace("sees_who_has_the_tun_and_which_interface_was_meant", || {
        lab();
        let mut misspelt = config();
        misspelt.ports[0].interface = "lam".into();
        let problems = check(&misspelt, false);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].remedy, "did you mean lan?");

        let tun = Iface::without_packet_info("tgw-lan", Mode::Tun).unwrap();
        ip("link set tgw-lan up");
        expect("in use", true, "tgw-lan of port \"lan\" is in use by");
        drop(tun);
        assert_eq!(check(&config(), false), []);
    });
}

/// Exactly this problem; none if `what` is empty.
#[track_caller]
fn expect(breakage: &str, fatal: bool, what: &str) {
    let problems = check(&config(), false);
    let is_it = |problem: &MachineProblem| problem.what.contains(what) && problem.fatal == fatal;
    match problems.as_slice() {
        [] if what.is_empty() => {}
        [problem] if !what.is_empty() && is_it(problem) => {}
        _ => panic!("{breakage}: {problems:#?}"),
    }
}

fn lab() {
    for (name, n) in [("lan", 1), ("wan", 2)] {
        ip(&format!("link add {name} type veth peer name {name}-peer"));
        ip(&format!("link set {name}-peer up"));
        ip(&format!("link set {name} up"));
        ip(&format!("addr add 10.77.{n}.2/24 dev {name}"));
    }
}
