//! The monitor against a real kernel, in network namespaces of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tandemgw::os::monitor::{Detached, Monitor, Notice};
use tandemgw::os::steering::Disturbance;
use tandemgw_core::event::{Route, RouteChange, RouteTarget};
use tandemgw_core::flow::PortId;

use testkit::system::kernel::{config, in_namespace, ip, write_sysctl};

#[test]
fn mirrors_the_main_table() {
    in_namespace("mirrors_the_main_table", || {
        lab();
        ip("route add 198.51.100.0/24 via 10.77.2.9 metric 5 mtu 1400");
        ip("route add blackhole 192.0.2.0/24");
        ip("route add 203.0.113.0/24 dev lan table 7700");
        ip("-6 route add 2001:db8::/32 via fd77:2::9");
        let mut mirror = Mirror::start();
        let lan = |gateway: Option<&str>| port(0, gateway);
        let wan = |gateway: Option<&str>| port(1, gateway);
        mirror.expect(&[
            ("10.77.1.0/24", 0, lan(None)),
            ("10.77.2.0/24", 0, wan(None)),
            ("10.77.3.0/24", 0, RouteTarget::Elsewhere),
            ("192.0.2.0/24", 0, RouteTarget::Unreachable),
            ("198.51.100.0/24", 5, wan(Some("10.77.2.9"))),
            ("2001:db8::/32", 1024, wan(Some("fd77:2::9"))),
            ("fd77:1::/64", 256, lan(None)),
            ("fd77:2::/64", 256, wan(None)),
        ]);
        let mtu = |route: &&Route| route.mtu == Some(1400);
        assert_eq!(mirror.routes.values().filter(mtu).count(), 1);

        // A route comes, is replaced, and goes.
        ip("route add default via 10.77.2.9");
        ip("-6 route add default via fd77:2::9 metric 7");
        ip("route replace 198.51.100.0/24 via 10.77.1.9 metric 5");
        ip("route del blackhole 192.0.2.0/24");
        mirror.expect(&[
            ("0.0.0.0/0", 0, wan(Some("10.77.2.9"))),
            ("10.77.1.0/24", 0, lan(None)),
            ("10.77.2.0/24", 0, wan(None)),
            ("10.77.3.0/24", 0, RouteTarget::Elsewhere),
            ("198.51.100.0/24", 5, lan(Some("10.77.1.9"))),
            ("2001:db8::/32", 1024, wan(Some("fd77:2::9"))),
            ("::/0", 7, wan(Some("fd77:2::9"))),
            ("fd77:1::/64", 256, lan(None)),
            ("fd77:2::/64", 256, wan(None)),
        ]);

        // The kernel does not say that the IPv4 routes of a link go when it is set down.
        ip("link set wan down");
        ip("link del other");
        mirror.expect(&[
            ("10.77.1.0/24", 0, lan(None)),
            ("198.51.100.0/24", 5, lan(Some("10.77.1.9"))),
            ("fd77:1::/64", 256, lan(None)),
        ]);
    });
}

#[test]
fn several_routes_of_one_destination() {
    in_namespace("several_routes_of_one_destination", || {
        lab();
        let mut mirror = Mirror::start();
        let of = |mirror: &Mirror, net: &str, metric| {
            let key = (net.parse::<IpNet>().unwrap(), metric);
            mirror.routes.get(&key).map(|route| route.target)
        };
        ip("addr add 10.77.1.3/24 dev wan noprefixroute");
        ip("route append 10.77.1.0/24 dev wan");
        mirror.settle();
        assert_eq!(
            of(&mirror, "10.77.1.0/24", 0),
            Some(port(0, None)),
            "the first one counts"
        );
        ip("route del 10.77.1.0/24 dev lan");
        mirror.settle();
        assert_eq!(
            of(&mirror, "10.77.1.0/24", 0),
            Some(port(1, None)),
            "the other one is left"
        );

        ip("-6 route add 2001:db8::/32 nexthop via fd77:1::9 nexthop via fd77:2::9");
        mirror.settle();
        assert_eq!(
            of(&mirror, "2001:db8::/32", 1024),
            Some(port(0, Some("fd77:1::9")))
        );
        ip("-6 route del 2001:db8::/32 via fd77:1::9");
        mirror.settle();
        assert_eq!(
            of(&mirror, "2001:db8::/32", 1024),
            Some(port(1, Some("fd77:2::9")))
        );
        ip("-6 route del 2001:db8::/32");
        mirror.settle();
        assert_eq!(of(&mirror, "2001:db8::/32", 1024), None);

        let gateways = ["10.77.2.8", "10.77.2.9"];
        for gone in 0..2 {
            ip("route add 203.0.113.0/24 via 10.77.2.8");
            ip("route append 203.0.113.0/24 via 10.77.2.9");
            mirror.settle();
            let first = Some(port(1, Some(gateways[0])));
            assert_eq!(of(&mirror, "203.0.113.0/24", 0), first);
            ip(&format!("route del 203.0.113.0/24 via {}", gateways[gone]));
            mirror.settle();
            let left = Some(port(1, Some(gateways[1 - gone])));
            assert_eq!(of(&mirror, "203.0.113.0/24", 0), left);
            ip("route del 203.0.113.0/24");
            mirror.settle();
            assert_eq!(of(&mirror, "203.0.113.0/24", 0), None);
        }

        ip("nexthop add id 5 via 10.77.2.9 dev wan");
        ip("route add 198.51.100.0/24 nhid 5");
        mirror.settle();
        assert_eq!(
            of(&mirror, "198.51.100.0/24", 0),
            Some(port(1, Some("10.77.2.9")))
        );
    });
}

#[test]
fn ipv6_siblings_come_and_go_one_by_one() {
    in_namespace("ipv6_siblings_come_and_go_one_by_one", || {
        lab();
        let mut mirror = Mirror::start();
        let mut follow = |arguments: &str| {
            ip(arguments);
            mirror.settle();
            let key = ("2001:db8::/32".parse::<IpNet>().unwrap(), 1024);
            mirror.routes.get(&key).map(|route| route.target)
        };
        let lan = Some(port(0, Some("fd77:1::9")));
        let wan = Some(port(1, Some("fd77:2::9")));
        let mut step = |arguments: &str, expected: &[Option<RouteTarget>]| {
            let is = follow(arguments);
            assert!(expected.contains(&is), "after {arguments}: {is:?}");
        };
        for add in ["append", "prepend"] {
            step("-6 route add 2001:db8::/32 via fd77:1::9", &[lan]);
            step(
                &format!("-6 route {add} 2001:db8::/32 via fd77:2::9"),
                &[lan, wan],
            );
            step("-6 route del 2001:db8::/32 via fd77:1::9", &[wan]);
            step("-6 route del 2001:db8::/32 via fd77:2::9", &[None]);

            step("-6 route add 2001:db8::/32 via fd77:1::9", &[lan]);
            step(
                &format!("-6 route {add} 2001:db8::/32 via fd77:2::9"),
                &[lan, wan],
            );
            step("-6 route del 2001:db8::/32 via fd77:2::9", &[lan]);
            step("-6 route del 2001:db8::/32 via fd77:1::9", &[None]);

            // On the link of two ports: two routes, of which no multipath route is made.
            step("-6 route add 2001:db8::/32 dev lan", &[Some(port(0, None))]);
            step(
                &format!("-6 route {add} 2001:db8::/32 dev wan"),
                &[Some(port(0, None)), Some(port(1, None))],
            );
            step("-6 route del 2001:db8::/32 dev lan", &[Some(port(1, None))]);
            step("-6 route del 2001:db8::/32 dev wan", &[None]);
        }
    });
}

#[test]
fn a_new_dump_leaves_no_gap() {
    in_namespace("a_new_dump_leaves_no_gap", || {
        lab();
        let mut mirror = Mirror::start();
        let key = ("10.77.1.0/24".parse::<IpNet>().unwrap(), 0);
        assert_eq!(mirror.dumps, 1);
        ip("link set other down");
        let deadline = Instant::now() + Duration::from_secs(20);
        while mirror.dumps < 2 {
            assert!(Instant::now() < deadline, "no new dump");
            let mut notices = Vec::new();
            mirror.monitor.read(&mut notices).unwrap();
            for notice in notices {
                mirror.take(vec![notice]);
                assert!(mirror.routes.contains_key(&key), "the route is missing");
            }
        }
        let other = ("10.77.3.0/24".parse::<IpNet>().unwrap(), 0);
        assert!(!mirror.routes.contains_key(&other), "it went silently");
    });
}

#[test]
fn tells_of_links_addresses_and_rules() {
    in_namespace("tells_of_links_addresses_and_rules", || {
        lab();
        let mut mirror = Mirror::start();
        assert_eq!(mirror.links["lan"], (Some(PortId(0)), true));
        assert_eq!(mirror.links["other"], (None, true));
        let address: IpAddr = "10.77.1.2".parse().unwrap();
        assert!(mirror.addresses.contains(&address));

        ip("addr del 10.77.1.2/24 dev lan");
        ip("link set lan-peer down");
        mirror.wait_for("no carrier", |mirror| {
            mirror.links["lan"] == (Some(PortId(0)), false)
        });
        mirror.settle();
        assert!(!mirror.addresses.contains(&address));

        ip("link del lan");
        mirror.settle();
        assert!(!mirror.links.contains_key("lan"));
        ip("link set other down");
        ip("link set other name lan");
        ip("link set lan up");
        mirror.wait_for("carrier", |mirror| {
            mirror.links.get("lan") == Some(&(Some(PortId(0)), true))
        });
    });
}

#[test]
fn recovers_from_an_overrun() {
    in_namespace("recovers_from_an_overrun", || {
        lab();
        let mut mirror = Mirror::start();
        let batch: String = (0..60_000)
            .map(|n| format!("route add 11.{}.{}.0/32 via 10.77.2.9\n", n / 256, n % 256))
            .collect();
        let file = std::env::temp_dir().join(format!("tandemgw-test-{}", std::process::id()));
        std::fs::write(&file, batch).unwrap();
        ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        ip("link set lan down");
        mirror.settle();
        assert!(mirror.overruns > 0, "the test must provoke one");
        assert!(!mirror.links["lan"].1);
        let many = mirror
            .routes
            .keys()
            .filter(|(net, _)| net.to_string().starts_with("11."));
        assert_eq!(many.count(), 60_000);
    });
}

fn lab() {
    ip("link set lo up");
    for (n, name) in ["lan", "wan", "other"].iter().enumerate() {
        let n = n + 1;
        ip(&format!("link add {name} type veth peer name {name}-peer"));
        ip(&format!("link set {name}-peer up"));
        ip(&format!("link set {name} up"));
        ip(&format!("addr add 10.77.{n}.2/24 dev {name}"));
        if n < 3 {
            ip(&format!("addr add fd77:{n}::2/64 dev {name} nodad"));
        }
    }
    // Late link-local addresses are none of the tests' business.
    std::thread::sleep(Duration::from_millis(100));
}

fn port(id: u16, gateway: Option<&str>) -> RouteTarget {
    let gateway = gateway.map(|text| text.parse::<IpAddr>().unwrap().into());
    RouteTarget::Port {
        port: PortId(id),
        gateway,
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of disturbances")]
fn what_disturbs_the_steering_is_told() {
    in_namespace("what_disturbs_the_steering_is_told", || {
        lab();
        ip("link set lan name eth7");
        ip("link set eth7 name lan");
        ip("tuntap add tgw-lan mode tun");
        ip("link set tgw-lan up");
        for ours in [
            "rule add priority 7700 iif lan lookup 7700 proto 77",
            "-6 rule add priority 7700 iif lan lookup 7700 proto 77",
            "route add blackhole default table 7700 metric 9999 proto 77",
            "route add default dev tgw-lan table 7700 proto 77",
            "-6 route add blackhole default table 7700 metric 9999 proto 77",
            "route add 10.77.1.1 dev tgw-lan proto 77",
            "-6 route add fd77:1::1 dev tgw-lan proto 77",
            "link add br0 type bridge",
        ] {
            ip(ours);
        }
        let mut mirror = Mirror::start();
        let port = Disturbance::Port(PortId(0));
        let addresses = Disturbance::Addresses(PortId(0));
        for (change, expected) in [
            (
                "route del blackhole default table 7700 metric 9999",
                &[port][..],
            ),
            ("route flush table 7700", &[port]),
            ("-6 route flush table 7700", &[port]),
            ("route del 10.77.1.1", &[addresses]),
            ("-6 route del fd77:1::1", &[addresses]),
            ("rule del priority 7700", &[port]),
            ("-6 rule del priority 7700", &[port]),
            ("rule del priority 32766", &[Disturbance::KernelRules]),
            ("rule add priority 32766 lookup main", &[]),
            ("link set tgw-lan mtu 1400", &[port]),
            ("link set tgw-lan name tun7", &[port]),
            ("link set tun7 name tgw-lan", &[port]),
            ("link set tgw-lan down", &[port]),
            ("link del tgw-lan", &[port]),
            // Of other ports and tables.
            ("route add 192.0.2.0/24 dev wan table 99", &[]),
            ("route flush table 99", &[]),
            ("rule add priority 99 from 192.0.2.1 lookup 99", &[]),
            ("rule del priority 99", &[]),
        ] {
            mirror.disturbed.clear();
            ip(change);
            mirror.settle();
            mirror.disturbed.dedup();
            assert_eq!(mirror.disturbed, expected, "{change}");
        }
        for (parameter, expected) in [
            ("ipv4/conf/lan/forwarding", &[port][..]),
            ("ipv6/conf/lan/force_forwarding", &[port]),
            ("ipv4/conf/other/rp_filter", &[]),
        ] {
            mirror.disturbed.clear();
            for value in ["1", "0"] {
                write_sysctl(parameter, value);
            }
            mirror.settle();
            mirror.disturbed.dedup();
            assert_eq!(mirror.disturbed, expected, "{parameter}");
        }
        write_sysctl("ipv4/ip_forward", "1");
        mirror.settle();
        assert!(mirror.disturbed.contains(&Disturbance::All));

        mirror.foreign.clear();
        ip("route add 192.0.2.0/24 dev wan table 7701");
        ip("rule add priority 50 iif lan lookup main");
        ip("rule add priority 51 iif other lookup main");
        ip("rule add priority 9000 iif lan lookup main");
        mirror.settle();
        let [route, rule] = &mirror.foreign[..] else {
            panic!("{:?}", mirror.foreign);
        };
        assert!(
            route.contains("192.0.2.0/24") && route.ends_with("table 7701 metric 0"),
            "{route}"
        );
        assert!(rule.starts_with("50: iif lan"), "{rule}");
    });
}

#[test]
fn a_port_that_is_renamed_or_enslaved_is_down() {
    in_namespace("a_port_that_is_renamed_or_enslaved_is_down", || {
        lab();
        ip("link add br0 type bridge");
        let mut mirror = Mirror::start();
        let up = Some(&(Some(PortId(0)), true));
        assert_eq!(mirror.links.get("lan"), up);
        ip("link set lan name lan0");
        mirror.settle();
        assert_eq!(mirror.links.get("lan"), None);
        assert_eq!(mirror.links.get("lan0"), Some(&(None, true)));
        ip("link set lan0 name lan");
        mirror.settle();
        assert_eq!(mirror.links.get("lan"), up);
        ip("link set lan master br0");
        mirror.settle();
        assert_eq!(mirror.links.get("lan"), Some(&(Some(PortId(0)), false)));
        assert_eq!(mirror.detached, [Detached::Master("br0".to_owned())]);
        ip("link set lan nomaster");
        mirror.settle();
        assert_eq!(mirror.links.get("lan"), up);
        // Two ports that exchange their names, and have them back.
        let exchange = ["lan name x", "wan name lan", "x name wan"];
        for is_up in [false, true] {
            for step in exchange {
                ip(&format!("link set {step}"));
            }
            mirror.settle();
            for (name, port) in [("lan", PortId(0)), ("wan", PortId(1))] {
                assert_eq!(mirror.links.get(name), Some(&(Some(port), is_up)), "{name}");
            }
            let last = Detached::OtherPort(PortId(0));
            assert_eq!(mirror.detached.last(), Some(&last));
        }
    });
}

/// Follows the notices as the gateway does.
struct Mirror {
    monitor: Monitor,
    routes: BTreeMap<(IpNet, u32), Route>,
    /// Routes that the current dump has not reported again yet.
    unconfirmed: BTreeMap<(IpNet, u32), Route>,
    dumps: u32,
    links: BTreeMap<String, (Option<PortId>, bool)>,
    addresses: Vec<IpAddr>,
    /// Parts of the steering that may be gone: rules that come first, routes in its tables.
    disturbed: Vec<Disturbance>,
    foreign: Vec<String>,
    detached: Vec<Detached>,
    overruns: u32,
}

impl Mirror {
    fn start() -> Mirror {
        let (monitor, notices) = Monitor::start(&config()).unwrap();
        let mut mirror = Mirror {
            monitor,
            routes: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            dumps: 0,
            links: BTreeMap::new(),
            addresses: Vec::new(),
            disturbed: Vec::new(),
            foreign: Vec::new(),
            detached: Vec::new(),
            overruns: 0,
        };
        mirror.take(notices);
        mirror
    }

    /// Reads until nothing has come for a while.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 20 {
            let mut notices = Vec::new();
            self.monitor.read(&mut notices).unwrap();
            quiet = if notices.is_empty() { quiet + 1 } else { 0 };
            self.take(notices);
            if quiet > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Reads until `condition` holds: the kernel tells of a link's carrier when it has time.
    #[track_caller]
    fn wait_for(&mut self, what: &str, condition: impl Fn(&Mirror) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            self.settle();
        }
    }

    fn take(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::Link {
                    name,
                    port,
                    state,
                    detached,
                    ..
                } => {
                    self.detached.extend(detached);
                    self.detached.dedup();
                    self.links.insert(name, (port, state.up));
                }
                Notice::LinkGone { name, .. } => {
                    self.links.remove(&name);
                }
                Notice::AddressesReset => self.addresses.clear(),
                Notice::Address(own) => self.addresses.push(own.addr),
                Notice::AddressGone(own) => self.addresses.retain(|other| *other != own.addr),
                Notice::Disturbed(disturbance) => self.disturbed.push(disturbance),
                Notice::ForeignRoute(route) => self.foreign.push(route.to_string()),
                Notice::RuleBefore(rule) => self.foreign.push(rule.to_string()),
                Notice::ReversePathFilter { .. } => {}
                Notice::Overrun => self.overruns += 1,
                Notice::Route(RouteChange::BeginDump) => self.unconfirmed = self.routes.clone(),
                Notice::Route(RouteChange::EndDump) => {
                    for key in std::mem::take(&mut self.unconfirmed).into_keys() {
                        self.routes.remove(&key);
                    }
                    self.dumps += 1;
                }
                Notice::Route(RouteChange::Add(route)) => {
                    let key = (route.destination, route.metric);
                    self.unconfirmed.remove(&key);
                    self.routes.insert(key, route);
                }
                Notice::Route(RouteChange::Remove(route)) => {
                    let key = (route.destination, route.metric);
                    if self
                        .routes
                        .get(&key)
                        .is_some_and(|r| r.target == route.target)
                    {
                        self.routes.remove(&key);
                    }
                }
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &[(&str, u32, RouteTarget)]) {
        self.settle();
        let routes = self.routes.values();
        let is: Vec<_> = routes
            .map(|r| (r.destination, r.metric, r.target))
            .collect();
        let parse = |(net, metric, target): &(&str, u32, RouteTarget)| {
            (net.parse::<IpNet>().unwrap(), *metric, *target)
        };
        let mut expected: Vec<_> = expected.iter().map(parse).collect();
        expected.sort_by_key(|(net, metric, _)| (*net, *metric));
        assert_eq!(is, expected);
    }
}
