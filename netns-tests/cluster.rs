//! Two to four gateways on the switches of a [`Lab`], and the sessions that they must not lose.
//!
//! ```text
//!                eth0 [ gw-a .2 gw-b .3 gw-c .4 gw-d .5, virtual .1 ] eth1
//! sw-lan ──────┤                    sync0 .1 .2 .3 .4                      ├────── sw-wan
//!                                        sw-sync0
//! ```
//!
//! Hosts share their source ports, and no session is picked up in the middle: what is lost stays
//! lost.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::conversation::{Conversation, line_server};
use crate::frame::{Ends, FrameSocket};
use crate::lab::{Lab, SERVER, assign, plug, switch_port, wait_for_local_routes};
use crate::pair::{HA, join, member, sync_link};
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

const NAMES: [&str; 4] = ["gw-a", "gw-b", "gw-c", "gw-d"];

/// The config of all units: datagrams that nobody answers are sessions for as long as a test lasts.
const COMMON: &str = "
[limits]
tcp-pickup = false

[timeouts]
udp = \"600s\"
udp-unreplied = \"600s\"
";

/// Gateways that are one another's peers, and the hosts around them.
pub struct Cluster {
    /// Its unit is gw-a.
    pub lab: Lab,
    others: Vec<Unit>,
    link: Namespace,
}

impl Cluster {
    /// The network without running gateways: a unit for each priority, and `strict`.
    pub fn new(priorities: &[u8]) -> Cluster {
        let mut lab = Lab::new();
        let mut others: Vec<Unit> = (1..priorities.len()).map(|n| add_unit(&lab, n)).collect();
        let mut hosts = vec![&lab.unit.ns];
        hosts.extend(others.iter().map(|unit| &unit.ns));
        let link = sync_link(&lab, &hosts, 0);
        let mut members = vec![member(&lab, &lab.unit, 1)];
        members.extend((2..).zip(&others).map(|(n, unit)| member(&lab, unit, n)));
        let ha = HA.to_owned() + "pickup-guarantee = \"strict\"\npickup-guarantee-wait = \"1s\"\n";
        let units = std::iter::once(&mut lab.unit).chain(&mut others);
        for (unit, priority) in units.zip(priorities) {
            join(unit, &ha, *priority, &members, 1);
            unit.config.push_str(COMMON);
        }
        Cluster { lab, others, link }
    }

    /// Units with gw-a as primary and the others ready, whatever the priorities.
    #[track_caller]
    pub fn started(priorities: &[u8]) -> Cluster {
        let mut cluster = Cluster::new(priorities);
        cluster.start();
        cluster
    }

    /// Starts gw-a, and the others when it is primary.
    #[track_caller]
    pub fn start(&mut self) {
        self.lab.unit.start();
        wait_until("gw-a is primary", || self.lab.unit.is_primary());
        self.others.iter_mut().for_each(Unit::start);
        self.wait_until_equal(0, &[]);
    }

    /// The number of units.
    pub fn len(&self) -> usize {
        1 + self.others.len()
    }

    pub fn unit(&self, number: usize) -> &Unit {
        match number {
            0 => &self.lab.unit,
            _ => &self.others[number - 1],
        }
    }

    pub fn unit_mut(&mut self, number: usize) -> &mut Unit {
        match number {
            0 => &mut self.lab.unit,
            _ => &mut self.others[number - 1],
        }
    }

    /// Changes the configs of all.
    #[track_caller]
    pub fn edit(&mut self, from: &str, to: &str) {
        (0..self.len()).for_each(|n| self.unit_mut(n).edit(from, to));
    }

    /// Waits until the primary knows that all others hold what it holds, but for those that are
    /// `away`.
    #[track_caller]
    pub fn wait_until_equal(&self, primary: usize, away: &[usize]) {
        let away: Vec<&str> = away.iter().map(|n| NAMES[*n]).collect();
        wait_until("the peers hold the same sessions", || {
            let status = self.unit(primary).status();
            let peers = status["peers"].as_array().expect("a list").iter();
            let mut present =
                peers.filter(|peer| !away.contains(&peer["name"].as_str().unwrap_or("")));
            present.all(|peer| {
                ["connected", "in_sync", "digest_equal"]
                    .iter()
                    .all(|key| peer[key] == true)
                    && peer["lag"]["sequence_gap"] == 0
            })
        });
    }

    /// Waits until these and no others of the units that run are primary.
    #[track_caller]
    pub fn wait_for_primaries(&self, wanted: &[usize], dead: &[usize]) {
        let running = || (0..self.len()).filter(|n| !dead.contains(n));
        wait_until(&format!("{wanted:?} are primary"), || {
            let primaries = running().filter(|n| self.unit(*n).is_primary());
            primaries.collect::<Vec<_>>() == wanted
        });
    }

    /// Waits until one unit is primary and all follow it; returns that unit.
    #[track_caller]
    pub fn wait_for_one_primary(&self) -> usize {
        let primaries = || (0..self.len()).filter(|n| self.unit(*n).is_primary());
        wait_until("one unit is primary", || {
            let ready = |n| self.unit(n).group()["ready"] == true;
            primaries().count() == 1 && (0..self.len()).all(ready)
        });
        primaries().next().expect("one is")
    }

    /// The report of `unit` about `peer`.
    #[track_caller]
    pub fn peer_of(&self, unit: usize, peer: usize) -> Value {
        let status = self.unit(unit).status();
        let mut peers = status["peers"].as_array().expect("a list").iter();
        let found = peers.find(|it| it["name"] == NAMES[peer]);
        found.expect("it is a peer").clone()
    }

    /// Nothing gets from one unit to the other over the links any more; no carrier is lost.
    pub fn cut(&self, one: usize, other: usize) {
        let [one, other] = [one, other].map(|n| switch_port(&self.unit(n).ns, "sync0"));
        self.link.run("nft add table bridge cuts");
        self.link
            .sh("nft 'add chain bridge cuts forward { type filter hook forward priority 0; }'");
        for (from, to) in [(&one, &other), (&other, &one)] {
            self.link.run(&format!(
                "nft add rule bridge cuts forward iifname {from} oifname {to} drop"
            ));
        }
    }

    /// A unit is alone on all of its networks, and sees no loss of carrier.
    pub fn isolate(&self, unit: usize) {
        self.plug_again(unit, "nomaster");
    }

    /// Ends what [`Cluster::isolate`] did.
    pub fn rejoin(&self, unit: usize) {
        self.plug_again(unit, "master br0");
    }

    fn plug_again(&self, unit: usize, state: &str) {
        let ports = [
            (&self.link, "sync0"),
            (&self.lab.sw_lan, "eth0"),
            (&self.lab.sw_wan, "eth1"),
        ];
        for (switch, interface) in ports {
            let port = switch_port(&self.unit(unit).ns, interface);
            switch.run(&format!("ip link set {port} {state}"));
        }
    }

    /// Opens `count` sessions through `unit` with datagrams that nobody answers, from hosts that
    /// share their source ports, from the number `first` on.
    pub fn open_datagrams(&self, unit: usize, count: u16, first: u16) {
        let socket = FrameSocket::open(&self.lab.lan2, "eth0");
        let mut ends = Ends {
            mac: (self.lab.lan2.mac("eth0"), self.unit(unit).ns.mac("eth0")),
            ip: ([10, 77, 1, 0], [10, 77, 2, 100]),
            port: (0, 9999),
        };
        for n in first..first + count {
            ends.ip.0[3] = 110 + (n % HOSTS) as u8;
            ends.port.0 = 10_000 + n / HOSTS;
            socket.send(&ends.udp(b"x"));
            if n % 32 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        socket.finish();
    }

    /// The sessions that a unit holds and that live on for a while: what they are and what they are
    /// translated to.
    #[track_caller]
    pub fn held_by(&self, unit: usize) -> BTreeSet<String> {
        let lives = |session: &&Value| session["expires_s"].as_u64() > Some(60);
        let sessions = self.unit(unit).sessions("");
        sessions.iter().filter(lives).map(identity).collect()
    }

    /// Fails if `unit` lacks one of these sessions.
    #[track_caller]
    pub fn assert_holds(&self, unit: usize, sessions: &BTreeSet<String>) {
        let held = self.held_by(unit);
        let lost: Vec<_> = sessions.difference(&held).collect();
        let (count, all) = (lost.len(), sessions.len());
        let some = &lost[..count.min(5)];
        assert!(
            lost.is_empty(),
            "{count} of {all} sessions are lost: {some:#?}"
        );
    }
}

/// Hosts that datagrams come from; source ports repeat after this many sessions.
const HOSTS: u16 = 20;

fn identity(session: &Value) -> String {
    const KEYS: [&str; 6] = ["proto", "src", "dst", "nat_src", "nat_dst", "group"];
    let values = KEYS.map(|key| session[key].as_str().expect("a string").to_owned());
    values.join(" ")
}

fn add_unit(lab: &Lab, number: usize) -> Unit {
    let ns = lab.sw_lan.sibling(NAMES[number]);
    let own = number + 2;
    plug(&lab.sw_lan, &ns, "eth0");
    assign(
        &ns,
        "eth0",
        [&format!("10.77.1.{own}"), &format!("fd77:1::{own}")],
    );
    plug(&lab.sw_wan, &ns, "eth1");
    assign(
        &ns,
        "eth1",
        [&format!("10.77.2.{own}"), &format!("fd77:2::{own}")],
    );
    wait_for_local_routes(&ns);
    Unit::new(ns, lab.dir())
}

/// TCP connections of two hosts that use the same source ports.
pub struct Clients {
    all: Vec<Conversation>,
    next_port: u16,
    _servers: Vec<Process>,
}

impl Clients {
    /// With `count` source ports.
    #[track_caller]
    pub fn start(lab: &Lab, count: u16) -> Clients {
        let mut clients = Clients {
            all: Vec::new(),
            next_port: 20_000,
            _servers: SERVER
                .map(|address| line_server(&lab.server, address))
                .into(),
        };
        clients.start_more(lab, count);
        clients
    }

    #[track_caller]
    pub fn start_more(&mut self, lab: &Lab, count: u16) {
        for port in self.next_port..self.next_port + count {
            for host in [&lab.lan1, &lab.lan2] {
                let server = SERVER[usize::from(port % 2)];
                self.all.push(Conversation::start_from(host, server, port));
            }
        }
        self.next_port += count;
    }

    /// Every one of them goes on.
    #[track_caller]
    pub fn go_on(&mut self) {
        self.all.iter_mut().for_each(Conversation::go_on);
    }

    /// Ends them in good order.
    #[track_caller]
    pub fn finish(self) {
        self.all.into_iter().for_each(Conversation::finish);
    }
}
