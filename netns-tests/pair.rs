//! Two gateways on the switches of a [`Lab`].
//!
//! ```text
//!                eth0 [ gw-a .2, virtual .1 ] eth1
//! sw-lan ──────┤         sync0 │ sync1             ├────── sw-wan
//!                        sw-sync0, sw-sync1
//!              │         sync0 │ sync1             │
//!                eth0 [ gw-b .3, virtual .1 ] eth1
//! ```
//!
//! gw-a has the higher priority and is started first. The synchronisation links go through switches
//! of their own, so that a link can be cut with or without a loss of carrier.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, assign, make_bridge, plug, switch_port, wait_for_local_routes};
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// The part that a test may change before the start: `[ha]` without its links and peers. The hold
/// time is long enough for a busy machine; no test depends on how long a takeover takes.
pub const HA: &str = r#"
[ha]
group-id = 7
priority = PRIORITY
heartbeat-interval = "50ms"
heartbeat-lost-threshold = 20
monitor = ["lan", "wan"]
"#;

/// Two gateways, and the hosts around them.
pub struct Pair {
    /// The hosts; its unit is gw-a.
    pub lab: Lab,
    pub b: Unit,
    links: Vec<Namespace>,
}

impl Pair {
    /// The network without running gateways, with so many synchronisation links.
    pub fn with_links(count: usize) -> Pair {
        let mut lab = Lab::new();
        let b = lab.sw_lan.sibling("gw-b");
        plug(&lab.sw_lan, &b, "eth0");
        assign(&b, "eth0", ["10.77.1.3", "fd77:1::3"]);
        plug(&lab.sw_wan, &b, "eth1");
        assign(&b, "eth1", ["10.77.2.3", "fd77:2::3"]);
        wait_for_local_routes(&b);
        let mut b = Unit::new(b, lab.dir());
        let hosts = [&lab.unit.ns, &b.ns];
        let links = (0..count).map(|n| sync_link(&lab, &hosts, n)).collect();
        let members = [member(&lab, &lab.unit, 1), member(&lab, &b, 2)];
        join(&mut lab.unit, HA, 200, &members, count);
        join(&mut b, HA, 100, &members, count);
        Pair { lab, b, links }
    }

    /// The network without running gateways.
    pub fn new() -> Pair {
        Pair::with_links(1)
    }

    /// A pair with gw-a as primary and gw-b ready.
    #[track_caller]
    pub fn started() -> Pair {
        let mut pair = Pair::new();
        pair.start();
        pair
    }

    /// Starts both; gw-a becomes primary.
    #[track_caller]
    pub fn start(&mut self) {
        self.lab.unit.start();
        self.b.start();
        wait_until("gw-a is primary", || self.a().is_primary());
        self.a().wait_for_ready_peer();
        self.b().wait_until_ready();
    }

    pub fn a(&self) -> &Unit {
        &self.lab.unit
    }

    pub fn a_mut(&mut self) -> &mut Unit {
        &mut self.lab.unit
    }

    pub fn b(&self) -> &Unit {
        &self.b
    }

    /// Changes `[ha]` of both, or whatever else is the same in both configs.
    #[track_caller]
    pub fn edit(&mut self, from: &str, to: &str) {
        self.lab.unit.edit(from, to);
        self.b.edit(from, to);
    }

    /// Waits until the unit takes over that is not primary now, and gives how long that took.
    #[track_caller]
    pub fn wait_until_other_is_primary(&self, on_a: bool, after: &str) -> Duration {
        let begin = Instant::now();
        wait_until(&format!("after {after} the other unit is primary"), || {
            let roles = [self.a(), self.b()].map(|unit| unit.is_primary());
            roles == [!on_a, on_a]
        });
        begin.elapsed()
    }

    /// Another key for gw-b, unknown to gw-a; returns its public part.
    pub fn change_key_of_b(&mut self) -> String {
        let key = make_key(&self.lab, &self.b, "-other");
        self.b.edit("gw-b.key", "gw-b-other.key");
        key
    }

    /// Cuts a synchronisation link so that no unit sees a loss of carrier.
    pub fn cut(&self, link: usize) {
        let port = switch_port(&self.b.ns, &format!("sync{link}"));
        self.links[link].run(&format!("ip link set {port} nomaster"));
    }

    /// Repairs what [`Pair::cut`] did.
    pub fn mend(&self, link: usize) {
        let port = switch_port(&self.b.ns, &format!("sync{link}"));
        self.links[link].run(&format!("ip link set {port} master br0"));
    }

    /// The switch of a synchronisation link.
    pub fn link(&self, link: usize) -> &Namespace {
        &self.links[link]
    }

    /// Sets all links of a unit up or down, from the outside.
    pub fn set_links(&self, unit: &Unit, state: &str) {
        let sync = self.links.iter().enumerate();
        let sync = sync.map(|(n, switch)| (switch, format!("sync{n}")));
        let data = [(&self.lab.sw_lan, "eth0"), (&self.lab.sw_wan, "eth1")];
        let data = data.map(|(switch, name)| (switch, name.to_owned()));
        for (switch, interface) in sync.chain(data) {
            set_port(switch, &unit.ns, &interface, state);
        }
    }

    /// Waits until gw-b has taken over, with a higher term than `term`.
    #[track_caller]
    pub fn wait_for_takeover_by_b(&self, term: u64) {
        wait_until("gw-b is primary", || self.b.is_primary());
        assert!(self.b.term() > term, "the term did not rise above {term}");
    }

    /// Waits until both hold the same sessions.
    #[track_caller]
    pub fn wait_for_same_sessions(&self) -> Vec<String> {
        let mut seen = [Vec::new(), Vec::new()];
        for _ in 0..100 {
            seen = [self.a(), self.b()].map(identities);
            if seen[0] == seen[1] {
                let [same, _] = seen;
                return same;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let [a, b] = &seen;
        let missing: Vec<_> = a.iter().filter(|s| !b.contains(s)).take(20).collect();
        let extra: Vec<_> = b.iter().filter(|s| !a.contains(s)).take(20).collect();
        panic!(
            "gw-a has {} sessions, gw-b {}\nmissing: {missing:#?}\nextra: {extra:#?}",
            a.len(),
            b.len()
        );
    }
}

/// A test's questions to a unit of a pair.
impl Unit {
    /// `groups[0]` of the status.
    #[track_caller]
    pub fn group(&self) -> Value {
        self.status()["groups"][0].clone()
    }

    #[track_caller]
    pub fn is_primary(&self) -> bool {
        self.group()["role"] == "primary"
    }

    #[track_caller]
    pub fn term(&self) -> u64 {
        self.group()["term"].as_u64().expect("a term is a number")
    }

    /// `peers[0]` of the status.
    #[track_caller]
    pub fn peer(&self) -> Value {
        self.status()["peers"][0].clone()
    }

    /// The events, the newest first, as `what: why`.
    #[track_caller]
    pub fn events(&self) -> Vec<String> {
        let status = self.status();
        let events = status["events"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        events
            .map(|e| format!("{}: {}", text(&e["what"]), text(&e["why"])))
            .collect()
    }

    /// Waits for an event whose text contains `part`.
    #[track_caller]
    pub fn wait_for_event(&self, part: &str) {
        let happened = || self.events().iter().any(|event| event.contains(part));
        wait_until(&format!("event `{part}`"), happened);
    }

    /// Waits until the peer could take over from this unit without a loss.
    #[track_caller]
    pub fn wait_for_ready_peer(&self) {
        wait_until("the peer is in sync", || {
            let peer = self.peer();
            ["connected", "in_sync", "digest_equal"]
                .iter()
                .all(|key| peer[key] == true)
                && peer["lag"]["sequence_gap"] == 0
        });
    }

    /// Waits until this unit is standby and could take over without a loss.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_until("it is a ready standby", || {
            let (group, peer) = (self.group(), self.peer());
            group["role"] == "standby" && group["ready"] == true && peer["digest_equal"] == true
        });
    }
}

/// Sets a switch's port up or down.
pub fn set_port(switch: &Namespace, host: &Namespace, interface: &str, state: &str) {
    let port = switch_port(host, interface);
    switch.run(&format!("ip link set {port} {state}"));
}

fn identities(unit: &Unit) -> Vec<String> {
    const KEYS: [&str; 11] = [
        "proto", "in", "out", "src", "dst", "nat_src", "nat_dst", "state", "policy", "group",
        "owner",
    ];
    let identity = |session: &Value| {
        let values = KEYS.map(|key| session[key].as_str().expect("a string").to_owned());
        values.join(" ")
    };
    let mut all: Vec<String> = unit.sessions("").iter().map(identity).collect();
    all.sort();
    all
}

/// A switch for synchronisation, with the interface `syncNUMBER` of each host.
pub fn sync_link(lab: &Lab, hosts: &[&Namespace], number: usize) -> Namespace {
    let switch = lab.sw_lan.sibling(&format!("sw-sync{number}"));
    make_bridge(&switch);
    let interface = format!("sync{number}");
    for (host, own) in hosts.iter().zip(1..) {
        plug(&switch, host, &interface);
        let address = sync_address(number, own);
        host.run(&format!("ip addr add {address}/24 dev {interface}"));
    }
    switch
}

/// The address of the unit with this number on a synchronisation link.
fn sync_address(link: usize, unit: u8) -> String {
    format!("10.77.{}.{unit}", 9 + link)
}

/// Makes a key and returns its public part.
fn make_key(lab: &Lab, unit: &Unit, suffix: &str) -> String {
    let file = lab.dir().join(format!("{}{suffix}.key", unit.ns.name()));
    let made = unit.tandemgw(&format!("keygen --out {}", file.display()));
    made.ok().stdout.trim().to_owned()
}

/// The facts about a unit that the others must know.
pub struct Member {
    name: String,
    number: u8,
    key: String,
}

/// Makes a key for the unit with this number, counted from 1.
pub fn member(lab: &Lab, unit: &Unit, number: u8) -> Member {
    let name = unit.ns.name().to_owned();
    let key = make_key(lab, unit, "");
    Member { name, number, key }
}

/// Makes a unit one of the members of a cluster, with `ha` for what they have in common.
pub fn join(unit: &mut Unit, ha: &str, priority: u8, members: &[Member], links: usize) {
    let name = unit.ns.name().to_owned();
    unit.edit("[node]", &format!("[node]\nkey = \"{name}.key\""));
    let mut config = ha.replace("PRIORITY", &priority.to_string());
    let (own, peers): (Vec<&Member>, Vec<&Member>) =
        members.iter().partition(|member| member.name == name);
    for link in 0..links {
        config.push_str(&format!(
            "\n[[ha.link]]\ninterface = \"sync{link}\"\nlisten = \"{}:7030\"\n",
            sync_address(link, own[0].number)
        ));
    }
    for Member { name, number, key } in peers {
        let addresses: Vec<String> = (0..links)
            .map(|link| format!("\"{}:7030\"", sync_address(link, *number)))
            .collect();
        config.push_str(&format!(
            "\n[[ha.peer]]\nname = \"{name}\"\naddresses = [{}]\npublic-key = \"{key}\"\n",
            addresses.join(", ")
        ));
    }
    unit.config.push_str(&config);
}
