//! Changes of routes while sessions live.

use tandemgw_core::event::{
    DropReason, LinkState, PortHop, Route, RouteChange, RouteTarget, Verdict,
};
use tandemgw_core::flow::PortId;
use testkit::lab::{CONFIG, DMZ, LAN, Lab, Net, WAN, ip, link, route, to_port};
use testkit::packets::udp;

/// The network of the servers.
fn servers(net: &Net) -> &'static str {
    if net.host.is_v4() {
        "198.51.100.0/24"
    } else {
        "2001:db8:7::/48"
    }
}

/// Untranslated everywhere.
const PLAIN: &str = r#"
[node]
name = "gw"
max-sessions = 1024
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.77.1.1/24", "fd77:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.77.2.1/24", "fd77:2::1/64"]
[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.77.3.1/24", "fd77:3::1/64"]
[[policy]]
name = "lan-to-wan"
from = ["lan"]
to = ["wan"]
action = "accept"
[[policy]]
name = "lan-to-dmz"
from = ["lan"]
to = ["dmz"]
action = "accept"
[[policy]]
name = "in"
from = ["wan", "dmz"]
to = ["lan"]
service = ["udp/7"]
action = "accept"
"#;

#[test]
fn an_untranslated_session_moves_to_the_port_of_its_new_route() {
    for net in Net::both() {
        let mut lab = Lab::of(PLAIN);
        let query = udp((net.host, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &query, "udp+1");
        lab.route(servers(&net), to_port(DMZ));
        assert_eq!(lab.moved().1, "");
        lab.drops(WAN, &query.answer(), DropReason::SpoofedSource);
        lab.forwards(DMZ, &query.answer(), &query.answer(), "");
        let (mut views, _) = lab.gateway.page(0, 1, lab.now);
        let view = views.next().unwrap();
        assert_eq!(
            (view.out_port, lab.gateway.policy_name(view.policy)),
            (DMZ, "lan-to-dmz")
        );
    }
}

#[test]
fn a_session_from_outside_moves_with_the_route_to_its_client() {
    for net in Net::both() {
        let mut lab = Lab::of(PLAIN);
        let query = udp((net.server, 40000), (net.host, 7));
        lab.forwards(WAN, &query, &query, "udp+1");
        lab.route(servers(&net), to_port(DMZ));
        assert_eq!(lab.moved().1, "");
        lab.forwards(DMZ, &query, &query, "");
        lab.forwards(LAN, &query.answer(), &query.answer(), "");
    }
}

#[test]
fn a_session_that_a_new_one_could_not_replace_ends() {
    for net in Net::both() {
        // Translated to the address of the old port.
        let mut lab = Lab::of(CONFIG);
        let query = udp((net.host, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "udp+1");
        lab.route(servers(&net), to_port(DMZ));
        assert_eq!(lab.moved().1, "cleared+1 udp-1");

        // To a port for which there is no policy, and away from all ports.
        for target in [to_port(LAN), RouteTarget::Elsewhere] {
            let mut lab = Lab::of(PLAIN);
            lab.forwards(LAN, &query, &query, "udp+1");
            lab.route(servers(&net), target);
            assert_eq!(lab.moved().1, "cleared+1 udp-1");
        }
    }
}

#[test]
fn a_route_that_is_gone_for_a_moment_ends_nothing() {
    for net in Net::both() {
        let mut lab = Lab::of(CONFIG);
        let query = udp((net.host, 40000), (net.server, 53));
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "udp+1");
        let lost = RouteChange::Remove(route(servers(&net), to_port(WAN)));
        lab.gateway.handle_route(lost);
        lab.settle();
        assert_eq!(lab.moved().1, "");
        lab.gateway.handle_route(RouteChange::BeginDump);
        lab.gateway.handle_route(RouteChange::EndDump);
        lab.settle();
        assert_eq!(lab.moved().1, "");
        lab.forwards(LAN, &query, &query.clone().src(net.wan_vip), "");
    }
}

/// The egress port of a flow to the `n`th host beyond two uplinks; the second has three times the
/// weight.
fn exit_to(lab: &mut Lab, net: &Net, n: u16) -> PortId {
    let server = match net.host.is_v4() {
        true => ip(&format!("203.0.113.{n}")),
        false => ip(&format!("2001:db8:9::{n:x}")),
    };
    let seen = lab.send(LAN, &udp((net.host, 40_000), (server, 7)));
    assert_eq!(seen.verdict, Verdict::Forward);
    lab.gateway.exit()
}

fn uplinks(net: &Net, hops: &[(PortId, u32)]) -> Route {
    let all = if net.host.is_v4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    let hop = |(port, weight): &(PortId, u32)| PortHop {
        port: *port,
        gateway: None,
        weight: *weight,
    };
    Route {
        hops: hops.iter().map(hop).collect(),
        ..route(all, to_port(WAN))
    }
}

fn with_uplinks(net: &Net) -> Lab {
    let mut lab = Lab::of(PLAIN);
    let both = uplinks(net, &[(WAN, 1), (DMZ, 3)]);
    lab.gateway.handle_route(RouteChange::Add(both));
    lab.settle();
    lab
}

#[test]
fn flows_are_spread_over_uplinks_by_weight_and_stay() {
    for net in Net::both() {
        let mut lab = with_uplinks(&net);
        let first: Vec<_> = (1..=80).map(|n| exit_to(&mut lab, &net, n)).collect();
        let count = |port| first.iter().filter(|exit| **exit == port).count();
        assert_eq!(count(WAN) + count(DMZ), 80, "none is left to the kernel");
        assert!((5..35).contains(&count(WAN)), "{} of 80", count(WAN));

        let down = LinkState {
            up: false,
            ..link(DMZ)
        };
        lab.link(DMZ, down);
        lab.settle();
        for n in 1..=80 {
            assert_eq!(exit_to(&mut lab, &net, n), WAN, "the one that is up");
        }
        // Sessions stay where they are when it is back; new ones are spread again.
        lab.link(DMZ, link(DMZ));
        lab.settle();
        assert!((1..=80).all(|n| exit_to(&mut lab, &net, n) == WAN));
        assert!((81..=120).any(|n| exit_to(&mut lab, &net, n) == DMZ));

        lab.gateway
            .handle_route(RouteChange::Add(uplinks(&net, &[])));
        lab.settle();
        assert!((1..=120).all(|n| exit_to(&mut lab, &net, n) == WAN));
    }
}

#[test]
fn sources_beyond_any_uplink_are_expected_there() {
    for net in Net::both() {
        let mut lab = with_uplinks(&net);
        let stranger = match net.host.is_v4() {
            true => ip("203.0.113.7"),
            false => ip("2001:db8:9::7"),
        };
        for (port, source) in [(WAN, 5), (DMZ, 6)] {
            let seen = lab.send(port, &udp((stranger, source), (net.host, 7)));
            assert_eq!(seen.verdict, Verdict::Forward, "by {port:?}");
            assert_eq!(lab.gateway.exit(), LAN);
        }
        lab.drops(
            LAN,
            &udp((stranger, 8), (net.server, 7)),
            DropReason::SpoofedSource,
        );
    }
}

/// A route with a prefix has next hops on two ports, and within it there is one with a longer
/// prefix.
#[test]
fn flows_are_spread_over_the_next_hops_of_any_route() {
    for net in Net::both() {
        let mut lab = Lab::of(PLAIN);
        let (outer, inner) = match net.host.is_v4() {
            true => ("203.0.113.0/24", "203.0.113.64/26"),
            false => ("2001:db8:9::/64", "2001:db8:9::40/122"),
        };
        let mut both = uplinks(&net, &[(WAN, 1), (DMZ, 1)]);
        // Else all hosts would be on the links, and there are limits to how many are looked for.
        for hop in &mut both.hops {
            hop.gateway = Some(net.server);
        }
        both.target = both.hops[0].target();
        lab.gateway.handle_route(RouteChange::Add(Route {
            destination: outer.parse().unwrap(),
            ..both
        }));
        let beyond = RouteTarget::Port {
            port: DMZ,
            gateway: Some(net.server),
        };
        lab.route(inner, beyond);
        lab.settle();
        let exits: Vec<_> = (1..=60).map(|n| exit_to(&mut lab, &net, n)).collect();
        for port in [WAN, DMZ] {
            let count = exits.iter().filter(|exit| **exit == port).count();
            assert!((10..50).contains(&count), "{count} of 60 by {port:?}");
        }
        assert!((65..=120).all(|n| exit_to(&mut lab, &net, n) == DMZ));
        let spread = lab.gateway.spread(net.family);
        let told: Vec<String> = spread.routes.iter().map(|it| it.0.to_string()).collect();
        assert_eq!(told, [outer], "what the kernel must follow");
        assert_eq!(spread.exceptions, [inner.parse().unwrap()]);
    }
}

/// Where no source is checked, a host may send by one port and be reached by another.
#[test]
fn replies_leave_by_the_way_that_the_kernel_has() {
    for net in Net::both() {
        let config = PLAIN.replacen("[[policy]]", "source-check = false\n\n[[policy]]", 1);
        let mut lab = Lab::of(&config);
        let host = match net.host.is_v4() {
            true => ip("203.0.113.9"),
            false => ip("2001:db8:9::9"),
        };
        lab.route(
            &format!("{host}/{}", if host.is_v4() { 32 } else { 128 }),
            to_port(WAN),
        );
        lab.settle();
        let query = udp((host, 5000), (net.host, 7));
        assert_eq!(lab.send(DMZ, &query).verdict, Verdict::Forward);
        assert_eq!(lab.send(LAN, &query.answer()).verdict, Verdict::Forward);
        assert_eq!(lab.gateway.exit(), WAN, "not the port that it sends by");
    }
}
