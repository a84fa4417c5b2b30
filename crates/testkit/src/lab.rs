//! A gateway with its network: each step names the verdict, the bytes, the outputs and every
//! counter that moves. Any other counter that moves fails the step.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tandemgw_core::config;
use tandemgw_core::event::{
    DropReason, LinkState, Offload, Output, Route, RouteChange, RouteTarget, Verdict,
};
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::time::Time;

use crate::packets::Pkt;

pub const LAN: PortId = PortId(0);
pub const WAN: PortId = PortId(1);
pub const DMZ: PortId = PortId(2);
pub const PORTS: [PortId; 3] = [LAN, WAN, DMZ];

/// The config that most tests use. Additions of a test go to the end.
pub const CONFIG: &str = r#"
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

[[forward]]
name = "web4"
port = "wan"
protocol = "tcp"
external = "10.77.2.1:8080"
internal = "10.77.1.100:80"

[[forward]]
name = "web6"
port = "wan"
protocol = "tcp"
external = "[fd77:2::1]:8080"
internal = "[fd77:1::100]:80"

[[policy]]
name = "no-telnet"
service = ["tcp/23", "udp/23"]
action = "reject"

[[policy]]
name = "no-tftp"
service = ["udp/69"]
action = "drop"

[[policy]]
name = "lan-out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat = true

[[policy]]
name = "web"
from = ["lan", "wan"]
to = ["lan"]
destination = ["10.77.1.100", "fd77:1::100"]
service = ["tcp/80"]
action = "accept"

[[policy]]
name = "dmz"
from = ["lan"]
to = ["dmz"]
action = "accept"
"#;

/// The addresses of one family, so that a test is written once.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    pub family: Family,
    pub host: Addr,
    pub neighbor: Addr,
    pub web: Addr,
    pub server: Addr,
    pub router: Addr,
    pub dmz_host: Addr,
    pub lan_vip: Addr,
    pub wan_vip: Addr,
    pub unrouted: Addr,
    pub elsewhere: Addr,
}

impl Net {
    pub fn of(family: Family) -> Net {
        let addr = |v4: &str, v6: &str| match family {
            Family::V4 => ip(v4),
            Family::V6 => ip(v6),
        };
        Net {
            family,
            host: addr("10.77.1.10", "fd77:1::10"),
            neighbor: addr("10.77.1.11", "fd77:1::11"),
            web: addr("10.77.1.100", "fd77:1::100"),
            server: addr("198.51.100.7", "2001:db8:7::7"),
            router: addr("10.77.2.254", "fd77:2::254"),
            dmz_host: addr("10.77.3.10", "fd77:3::10"),
            lan_vip: addr("10.77.1.1", "fd77:1::1"),
            wan_vip: addr("10.77.2.1", "fd77:2::1"),
            unrouted: addr("203.0.113.1", "2001:db8:bad::1"),
            elsewhere: addr("192.0.2.1", "2001:db8:e15e::1"),
        }
    }

    pub fn both() -> [Net; 2] {
        Family::ALL.map(Net::of)
    }
}

pub fn ip(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

pub fn mac(port: PortId) -> [u8; 6] {
    [2, 0, 0, 0, 0, port.0 as u8 + 1]
}

pub fn link(port: PortId) -> LinkState {
    LinkState {
        up: true,
        mtu: 1500,
        mac: mac(port),
    }
}

pub fn route(destination: &str, target: RouteTarget) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        target,
        mtu: None,
        is_special: false,
        hops: Vec::new(),
    }
}

pub fn to_port(port: PortId) -> RouteTarget {
    RouteTarget::Port {
        port,
        gateway: None,
    }
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
    pub outputs: Vec<Output>,
    /// The counters that moved, as `name+1`, in alphabetical order.
    pub moved: String,
}

pub struct Lab {
    pub gateway: Gateway,
    pub now: Time,
    counters: BTreeMap<String, u64>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with("")
    }

    /// With additions to the usual config.
    pub fn with(more: &str) -> Lab {
        Lab::of(&format!("{CONFIG}{more}"))
    }

    /// A gateway that is primary, with all links up and all routes known.
    pub fn of(config: &str) -> Lab {
        let mut lab = Lab::standby(config);
        lab.gateway.start(lab.now);
        lab.outputs();
        lab.check();
        lab
    }

    /// The same before it is primary.
    pub fn standby(config: &str) -> Lab {
        let (config, _) = config::parse(Path::new("test.toml"), config).unwrap();
        let now = Time::from_nanos(1_000_000_000_000);
        let mut gateway = Gateway::new(config, Seed([7; 32]), now);
        for port in PORTS {
            gateway.handle_link(now, port, link(port));
        }
        for (destination, target) in [
            ("10.77.1.0/24", to_port(LAN)),
            ("10.77.2.0/24", to_port(WAN)),
            ("10.77.3.0/24", to_port(DMZ)),
            ("198.51.100.0/24", to_port(WAN)),
            ("192.0.2.0/24", RouteTarget::Elsewhere),
            ("fd77:1::/64", to_port(LAN)),
            ("fd77:2::/64", to_port(WAN)),
            ("fd77:3::/64", to_port(DMZ)),
            ("2001:db8:7::/48", to_port(WAN)),
            ("2001:db8:e15e::/48", RouteTarget::Elsewhere),
            ("2001:db8:bad::/48", RouteTarget::Unreachable),
        ] {
            gateway.handle_route(RouteChange::Add(route(destination, target)));
        }
        let mut lab = Lab {
            gateway,
            now,
            counters: BTreeMap::new(),
        };
        lab.settle();
        lab.counters = lab.count();
        lab
    }

    pub fn route(&mut self, destination: &str, target: RouteTarget) {
        let change = RouteChange::Add(route(destination, target));
        self.gateway.handle_route(change);
        self.settle();
    }

    pub fn link(&mut self, port: PortId, link: LinkState) {
        self.gateway.handle_link(self.now, port, link);
    }

    /// Lets the gateway finish work that it does in pieces.
    pub fn settle(&mut self) {
        while self.gateway.poll_timeout(self.now) == Some(self.now) {
            self.gateway.handle_timeout(self.now);
        }
    }

    /// Passes a packet to the gateway.
    pub fn send_bytes(&mut self, port: PortId, mut bytes: Vec<u8>, offload: Offload) -> Seen {
        let verdict = self
            .gateway
            .handle_packet(self.now, port, &mut bytes, offload);
        self.seen(verdict, bytes)
    }

    pub fn send(&mut self, port: PortId, packet: &Pkt) -> Seen {
        self.send_bytes(port, packet.bytes(), Offload::default())
    }

    /// Many packets that all are forwarded; the invariants are checked at the end only.
    pub fn flood(&mut self, packets: impl Iterator<Item = (PortId, Pkt)>) {
        for (port, packet) in packets {
            let mut bytes = packet.bytes();
            let verdict =
                self.gateway
                    .handle_packet(self.now, port, &mut bytes, Offload::default());
            assert_eq!(verdict, Verdict::Forward);
        }
        self.check();
    }

    /// `packet` is forwarded and becomes `expected`; beside `forwarded+1`, `moved` moves.
    #[track_caller]
    pub fn forwards(&mut self, port: PortId, packet: &Pkt, expected: &Pkt, moved: &str) {
        let seen = self.send(port, packet);
        let expected = Seen {
            verdict: Verdict::Forward,
            bytes: expected.clone().forwarded().bytes(),
            outputs: Vec::new(),
            moved: with_moved("forwarded+1", moved),
        };
        assert_same(&seen, &expected);
    }

    /// `packet` is dropped, silently.
    #[track_caller]
    pub fn drops(&mut self, port: PortId, packet: &Pkt, reason: DropReason) {
        self.drops_and_sends(port, packet, reason, &[]);
    }

    /// `packet` is dropped, and its sender is notified.
    #[track_caller]
    pub fn refuses(&mut self, port: PortId, packet: &Pkt, reason: DropReason, answer: &Pkt) {
        let output = plain_packet(port, answer.bytes());
        self.drops_and_sends(port, packet, reason, &[output]);
    }

    #[track_caller]
    fn drops_and_sends(
        &mut self,
        port: PortId,
        packet: &Pkt,
        reason: DropReason,
        sends: &[Output],
    ) {
        let seen = self.send(port, packet);
        let expected = Seen {
            verdict: Verdict::Drop(reason),
            bytes: packet.bytes(),
            outputs: sends.to_vec(),
            moved: format!("drop.{}+1", reason.name()),
        };
        assert_same(&seen, &expected);
    }

    /// The result of a call that is not about a packet.
    pub fn moved(&mut self) -> (Vec<Output>, String) {
        let seen = self.seen(Verdict::Consumed, Vec::new());
        (seen.outputs, seen.moved)
    }

    /// Lets time pass, and does what becomes due.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.gateway.poll_timeout(self.now).filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.gateway.handle_timeout(self.now);
        }
        self.now = end;
        self.check();
    }

    pub fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.gateway.poll_output()).collect()
    }

    pub fn sessions(&self) -> u32 {
        let counts = self.gateway.session_counts();
        counts.tcp + counts.udp + counts.icmp + counts.other
    }

    /// The state of the only session.
    #[track_caller]
    pub fn state(&self) -> &'static str {
        let (mut views, _) = self.gateway.page(0, u32::MAX, self.now);
        let state = views.next().expect("a session").state;
        assert!(views.next().is_none(), "several sessions");
        state
    }

    fn check(&mut self) {
        self.gateway.check_invariants();
        self.counters = self.count();
    }

    fn seen(&mut self, verdict: Verdict, bytes: Vec<u8>) -> Seen {
        let before = std::mem::take(&mut self.counters);
        self.check();
        let differences = self.counters.iter().filter_map(|(name, count)| {
            let difference = *count as i64 - before.get(name).copied().unwrap_or(0) as i64;
            (difference != 0).then(|| format!("{name}{difference:+}"))
        });
        let moved = differences.collect::<Vec<_>>().join(" ");
        Seen {
            verdict,
            bytes,
            outputs: self.outputs(),
            moved,
        }
    }

    /// All counters, and the sessions.
    fn count(&self) -> BTreeMap<String, u64> {
        let counters = self.gateway.counters();
        let sessions = self.gateway.session_counts();
        let mut all = BTreeMap::from([
            ("forwarded".to_owned(), counters.forwarded),
            ("early".to_owned(), counters.dropped_early),
            ("cleared".to_owned(), counters.cleared),
            ("forbidden".to_owned(), counters.forbidden),
            ("conflicts".to_owned(), counters.address_conflicts),
            ("tcp".to_owned(), u64::from(sessions.tcp)),
            ("udp".to_owned(), u64::from(sessions.udp)),
            ("icmp".to_owned(), u64::from(sessions.icmp)),
            ("other".to_owned(), u64::from(sessions.other)),
        ]);
        for reason in DropReason::ALL {
            all.insert(format!("drop.{}", reason.name()), counters.dropped(*reason));
        }
        all
    }
}

fn with_moved(first: &str, more: &str) -> String {
    let mut all: Vec<&str> = more.split_whitespace().chain([first]).collect();
    all.sort_unstable();
    all.join(" ")
}

/// A packet of the gateway itself.
pub fn plain_packet(port: PortId, bytes: Vec<u8>) -> Output {
    Output::Packet {
        port,
        bytes,
        offload: Offload::default(),
    }
}

#[track_caller]
pub fn assert_same(seen: &Seen, expected: &Seen) {
    assert_eq!(
        (seen.verdict, &seen.moved),
        (expected.verdict, &expected.moved)
    );
    assert_eq!(hex(&seen.bytes), hex(&expected.bytes), "the packet");
    let outputs = |outputs: &[Output]| outputs.iter().map(show).collect::<Vec<_>>();
    assert_eq!(outputs(&seen.outputs), outputs(&expected.outputs));
}

fn show(output: &Output) -> String {
    match output {
        Output::Packet { port, bytes, .. } => format!("packet to {} {}", port.0, hex(bytes)),
        Output::Frame { port, bytes } => format!("frame to {} {}", port.0, hex(bytes)),
        other => panic!("a standalone gateway has no peers: {other:?}"),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(4)
        .map(|word| word.iter().map(|b| format!("{b:02x}")).collect::<String>() + " ")
        .collect()
}
