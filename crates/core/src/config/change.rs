//! Compares a changed config file with the config in force: what can be applied at once, and what
//! waits for a restart.
//!
//! The row of an option says which applies (see [`super::options()`]). Policies, pools, forwards,
//! links and peers are compared as wholes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::field::Owner;
use super::network::group_of;
use super::options::{Live, Reload};
use super::places::Network;
use super::{
    Config, Forward, Group, Ha, HaPeer, LinkMonitor, LocalIn, MulticastJoin, MulticastPolicy,
    NatPool, Policy, Port, Witness, slots,
};
use crate::flow::{Addr, GroupId, PortId};

/// A changed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key, such as `ha.priority` or `policy.web`.
    pub key: String,
    /// How it changed: `added`, `removed`, `128 to 200`, …
    pub what: String,
}

/// The changes from the config in force to another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The config to put in force: the new one, except parts that wait for a restart.
    pub config: Config,
    /// Changes applied at once.
    pub applied: Vec<Difference>,
    /// The applied options.
    pub live: BTreeSet<Live>,
    /// Changes that need a restart.
    pub waiting: Vec<Difference>,
}

impl Change {
    /// Compares option by option, and whole tables by name: `running` is in force, `wanted` was
    /// read from the file.
    pub fn new(running: &Config, wanted: &Config) -> Change {
        let Config {
            node,
            ports,
            groups: _,
            policies: _,
            nat_pools: _,
            forwards: _,
            link_monitors: _,
            local_in,
            multicast_policies: _,
            multicast_joins: _,
            timeouts,
            limits,
            ha,
            metrics,
        } = wanted;
        let mut change = Change {
            config: running.clone(),
            applied: Vec::new(),
            live: BTreeSet::new(),
            waiting: Vec::new(),
        };
        change.config.node = change.part("node", &running.node, node);
        let why = change.network_and_rules(running, wanted);
        change.ports(&running.ports, ports);
        change.groups(running, wanted, why.as_deref());
        change.link_monitors(running, wanted);
        compare_lists(&mut change.waiting, "local-in", &running.local_in, local_in);
        change.config.timeouts = change.part("timeouts", &running.timeouts, timeouts);
        change.config.limits = change.part("limits", &running.limits, limits);
        change.multicast(running, wanted);
        match (&running.ha, ha) {
            (None, None) => {}
            (Some(old), Some(new)) => change.ha(old, new, ports, &running.ports),
            (None, Some(_)) => change.wait("ha", "added"),
            (Some(old), None) => {
                change.wait("ha", "removed");
                change.list(Live::Peers, "ha.peer", &old.peers, &[]);
                let peers = Vec::new();
                change.config.ha = Some(Ha {
                    peers,
                    ..old.clone()
                });
            }
        }
        match (&running.metrics, metrics) {
            (None, None) => {}
            (Some(old), Some(new)) => {
                change.config.metrics = Some(change.part("metrics", old, new))
            }
            (None, Some(_)) => change.wait("metrics", "added"),
            (Some(_), None) => change.wait("metrics", "removed"),
        }
        change.slots(running);
        change
    }

    /// Compares the options of a table; returns `old` with those values of `new` that need no
    /// restart.
    fn part<T: Owner + Clone>(&mut self, table: &str, old: &T, new: &T) -> T {
        let mut part = old.clone();
        for (option, field) in T::options() {
            let (before, after) = ((field.get)(old), (field.get)(new));
            if before == after {
                continue;
            }
            let (key, what) = (format!("{table}.{}", option.key), before.to(&after));
            match option.reload {
                Reload::Live(live) => {
                    push(&mut self.applied, key, &what);
                    self.live.insert(live);
                    (field.set)(&mut part, after);
                }
                Reload::Restart | Reload::AsUsed => self.wait(key, &what),
            }
        }
        part
    }

    fn ports(&mut self, old: &[Port], new: &[Port]) {
        let same = compare_names(&mut self.waiting, "port", names(old), names(new));
        for (old_at, new_at) in same {
            let (name, old) = (&old[old_at].name, self.config.ports[old_at].clone());
            // Their addresses are compared apart.
            let new = Port {
                virtual_addresses: old.virtual_addresses.clone(),
                link_local: old.link_local.clone(),
                ..new[new_at].clone()
            };
            self.config.ports[old_at] = self.part(&format!("port.{name}"), &old, &new);
        }
    }

    /// The options of groups that stay; `why` the groups as such wait for a restart, if they do.
    fn groups(&mut self, running: &Config, wanted: &Config, why: Option<&str>) {
        for (place, old) in running.declared_groups() {
            let mut new = wanted.declared_groups().map(|(_, group)| group);
            let Some(new) = new.find(|new| new.name == old.name) else {
                continue;
            };
            let (at, name) = (usize::from(place.0), format!("group.{}", old.name));
            let slots = self.config.groups[at].slots.clone();
            let mut new = new.clone();
            if new.slots.len() != slots.len() && new.distribute != old.distribute {
                let (from, to) = (old.slots.len(), new.slots.len());
                let what = format!("{from} to {to} slots: {}", why.unwrap_or("with `[ha]`"));
                self.wait(format!("{name}.distribute"), &what);
                new.distribute = old.distribute;
            }
            let part = self.part(&name, old, &new);
            self.config.groups[at] = Group { slots, ..part };
        }
    }

    /// The priorities for slots follow from which units there are, and from their weights: those
    /// that are in force.
    fn slots(&mut self, running: &Config) {
        let Config {
            node, groups, ha, ..
        } = &mut self.config;
        slots::rank(groups, (&node.name, ha.as_ref()));
        if groups
            .iter()
            .zip(&running.groups)
            .any(|(new, old)| new.priority != old.priority)
        {
            self.live.insert(Live::GroupPriority);
        }
    }

    /// Groups and virtual addresses, then policies, pools and forwards: all of them or none, since
    /// they refer to each other. Rules for the addresses that are there may come before others.
    /// Returns why they wait for a restart, if they do.
    fn network_and_rules(&mut self, running: &Config, wanted: &Config) -> Option<String> {
        let (network, mut why) = match Network::adopt(running, wanted) {
            Ok(network) => (network, None),
            Err(waits) => (Network::of(running), Some(waits.to_string())),
        };
        self.config.ports = network.ports;
        self.config.groups = network.groups;
        match translate_rules(&self.config, wanted) {
            Ok(rules) => self.rules(running, wanted, rules),
            Err(not_yet) => {
                let rules = "policy, nat-pool, forward";
                let what = format!("all as before until a restart: {not_yet}");
                self.wait(rules, &what);
                why.get_or_insert_with(|| format!("with the policies: {not_yet}"));
            }
        }
        let Some(why) = why else {
            let live = network_differences(&mut self.applied, running, wanted, None);
            self.live.extend(live);
            return None;
        };
        (self.config.ports, self.config.groups) = (running.ports.clone(), running.groups.clone());
        network_differences(&mut self.waiting, running, wanted, Some(&why));
        Some(why)
    }

    /// Policies, pools and forwards that can be in force.
    fn rules(&mut self, running: &Config, wanted: &Config, (policies, forwards): Rules) {
        let pools = &wanted.nat_pools;
        self.list(Live::NatPools, "nat-pool", &running.nat_pools, pools);
        self.list(Live::Policies, "policy", &running.policies, &policies);
        self.list(Live::Forwards, "forward", &running.forwards, &forwards);
        self.config.nat_pools = pools.clone();
        self.config.policies = policies;
        self.config.forwards = forwards;
    }

    /// The link monitors that run. They have no names: all of them are replaced.
    fn link_monitors(&mut self, running: &Config, wanted: &Config) {
        let translate = |monitor: &LinkMonitor| {
            let ports = translate_ports(&[monitor.port], &wanted.ports, &running.ports)?;
            Ok(LinkMonitor {
                port: ports.first().copied().unwrap_or(monitor.port),
                ..monitor.clone()
            })
        };
        let monitors: Result<Vec<_>, NoPort> = wanted.link_monitors.iter().map(translate).collect();
        match monitors {
            Ok(monitors) if monitors == running.link_monitors => {}
            Ok(monitors) => {
                push(&mut self.applied, "link-monitor", "changed");
                self.live.insert(Live::LinkMonitors);
                self.config.link_monitors = monitors;
            }
            Err(why) => self.wait("link-monitor", &why.to_string()),
        }
    }

    /// Policies and static members of multicast: all of them or none. The members have no names.
    fn multicast(&mut self, running: &Config, wanted: &Config) {
        let (policies, joins) = match translate_multicast(running, wanted) {
            Ok(multicast) => multicast,
            Err(why) => {
                let what = format!("all as before until a restart: {why}");
                return self.wait("multicast-policy, multicast-join", &what);
            }
        };
        let before = &running.multicast_policies;
        self.list(Live::Multicast, "multicast-policy", before, &policies);
        if running.multicast_joins != joins {
            push(&mut self.applied, "multicast-join", "changed");
            self.live.insert(Live::Multicast);
        }
        (self.config.multicast_policies, self.config.multicast_joins) = (policies, joins);
    }

    /// Compares tables that are replaced as a whole.
    fn list<T: Named + PartialEq>(&mut self, live: Live, table: &str, old: &[T], new: &[T]) {
        let before = self.applied.len();
        compare_lists(&mut self.applied, table, old, new);
        if self.applied.len() > before {
            self.live.insert(live);
        }
    }

    fn ha(&mut self, old: &Ha, new: &Ha, new_ports: &[Port], running: &[Port]) {
        let mut new = new.clone();
        // Ports are compared by name; their ids may differ.
        new.monitor = match translate_ports(&new.monitor, new_ports, running) {
            Ok(monitor) => monitor,
            Err(why) => {
                self.wait("ha.monitor", &why.to_string());
                old.monitor.clone()
            }
        };
        if old.links != new.links {
            self.wait("ha.link", "changed");
        }
        let peers = self.peers(old, &new);
        let witness = self.witness(old.witness.as_ref(), new.witness.as_ref());
        let ha = self.part("ha", old, &new);
        self.config.ha = Some(Ha {
            peers,
            witness,
            ..ha
        });
    }

    fn witness(&mut self, old: Option<&Witness>, new: Option<&Witness>) -> Option<Witness> {
        let what = match (old, new) {
            (Some(old), Some(new)) => return Some(self.part("ha.witness", old, new)),
            (None, None) => return None,
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
        };
        push(&mut self.applied, "ha.witness", what);
        self.live.insert(Live::Witness);
        new.cloned()
    }

    /// The peers to put in force. Their addresses are those on the links, and their names differ
    /// from that of this unit: if links or the name wait for a restart, peers that are new or moved
    /// wait too. One that has lost its place, or its key, loses it at once.
    fn peers(&mut self, old: &Ha, new: &Ha) -> Vec<HaPeer> {
        let name_waits = self.waiting.iter().any(|it| it.key == "node.name");
        if old.links == new.links && !name_waits {
            self.list(Live::Peers, "ha.peer", &old.peers, &new.peers);
            return new.peers.clone();
        }
        let is_valid = |peer: &&HaPeer| {
            let mut listed = new.peers.iter();
            listed.any(|it| it.name == peer.name && it.public_key == peer.public_key)
        };
        let kept: Vec<HaPeer> = old.peers.iter().filter(is_valid).cloned().collect();
        self.list(Live::Peers, "ha.peer", &old.peers, &kept);
        compare_lists(&mut self.waiting, "ha.peer", &kept, &new.peers);
        kept
    }

    fn wait(&mut self, key: impl Into<String>, what: &str) {
        push(&mut self.waiting, key, what);
    }
}

/// No port of this name runs.
struct NoPort(String);

impl fmt::Display for NoPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "names the port `{}`, which does not run yet", self.0)
    }
}

/// Why policies, pools and forwards cannot be in force before a restart.
enum NotYet {
    /// A policy, by name, and what is missing.
    PolicyPort(String, NoPort),
    /// A forward, by name, and what is missing.
    ForwardPort(String, NoPort),
    /// The external address of a forward is not the gateway's yet.
    External(String, Addr),
    /// The server of a forward is still a virtual address.
    Internal(String, Addr),
    /// A pool, by name, has addresses of several groups.
    PoolGroups(String),
    /// A multicast policy, by name, and what is missing.
    MulticastPort(String, NoPort),
    /// A multicast policy, by name, translates to an address of a port that has none yet.
    NoSource(String, String),
    /// Static members, and what is missing.
    Join(NoPort),
}

impl fmt::Display for NotYet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotYet::PolicyPort(policy, port) => write!(f, "policy `{policy}` {port}"),
            NotYet::ForwardPort(forward, port) => write!(f, "forward `{forward}` {port}"),
            NotYet::External(forward, addr) => write!(
                f,
                "forward `{forward}` has the external address {addr}, which is not there yet"
            ),
            NotYet::Internal(forward, addr) => write!(
                f,
                "forward `{forward}` leads to {addr}, which is a virtual address still"
            ),
            NotYet::MulticastPort(policy, port) => {
                write!(f, "multicast policy `{policy}` {port}")
            }
            NotYet::NoSource(policy, port) => write!(
                f,
                "multicast policy `{policy}` translates on the port `{port}`, which has no address \
                 of that family yet"
            ),
            NotYet::Join(port) => write!(f, "a multicast-join {port}"),
            NotYet::PoolGroups(pool) => write!(
                f,
                "nat-pool `{pool}` has addresses of several groups, as these are now"
            ),
        }
    }
}

/// Notes which groups came and went, and which ports have other addresses; with `why`, if they have
/// to wait. Returns what must follow.
fn network_differences(
    to: &mut Vec<Difference>,
    running: &Config,
    wanted: &Config,
    why: Option<&str>,
) -> Vec<Live> {
    let mut live = Vec::new();
    let names = |config: &Config| -> BTreeSet<String> {
        let groups = config.declared_groups();
        groups.map(|(_, group)| group.name.clone()).collect()
    };
    let (before, after) = (names(running), names(wanted));
    let because = why.map_or_else(String::new, |why| format!(": {why}"));
    let mut note = |key: String, what: &str, option: Live| {
        push(to, key, &format!("{what}{because}"));
        live.push(option);
    };
    for name in after.difference(&before) {
        note(format!("group.{name}"), "added", Live::Groups);
    }
    for name in before.difference(&after) {
        note(format!("group.{name}"), "removed", Live::Groups);
    }
    for port in &running.ports {
        let own = addresses_of(running, &port.name);
        let changes = addresses_of(wanted, &port.name).is_some_and(|new| Some(new) != own);
        if changes {
            let key = format!("port.{}.virtual-addresses", port.name);
            note(key, "changed", Live::VirtualAddresses);
        }
    }
    live
}

/// The addresses of a port, in order, each with its network and the name of its group; none if
/// there is no such port.
fn addresses_of(config: &Config, port: &str) -> Option<Vec<(Addr, IpNet, String)>> {
    let port = config.ports.iter().find(|it| it.name == port)?;
    let group = |id: GroupId| config.groups[usize::from(id.0)].name.clone();
    let all = port.virtual_addresses.iter().chain(&port.link_local);
    let all = all.map(|own| (own.addr, own.network, group(own.group)));
    Some(all.collect())
}

type Rules = (Vec<Policy>, Vec<Forward>);

/// Policies and forwards of `wanted` in terms of the ports that run, with the addresses that they
/// are to have, or the reason why they have to wait.
fn translate_rules(running: &Config, wanted: &Config) -> Result<Rules, NotYet> {
    let translate = |ports: &[PortId]| translate_ports(ports, &wanted.ports, &running.ports);
    let mut policies = wanted.policies.clone();
    for policy in &mut policies {
        let said = |port| NotYet::PolicyPort(policy.name.clone(), port);
        policy.from = translate(&policy.from).map_err(said)?;
        policy.to = translate(&policy.to).map_err(said)?;
    }
    let own = |addr: Addr, port: &Port| port.virtual_addresses.iter().any(|v| v.addr == addr);
    let mut forwards = wanted.forwards.clone();
    for forward in &mut forwards {
        let name = || forward.name.clone();
        let external = forward.external.0;
        let ports = translate(&[forward.port]);
        for port in ports.map_err(|port| NotYet::ForwardPort(name(), port))? {
            forward.port = port;
        }
        let mut pools = wanted.nat_pools.iter();
        if !own(external, &running.ports[forward.port.index()])
            && !pools.any(|pool| pool.addresses.contains(&external))
        {
            return Err(NotYet::External(name(), external));
        }
        let internal = forward.internal.0;
        if running.ports.iter().any(|port| own(internal, port)) {
            return Err(NotYet::Internal(name(), internal));
        }
    }
    for pool in &wanted.nat_pools {
        check_group(running, pool)?;
    }
    Ok((policies, forwards))
}

type Multicast = (Vec<MulticastPolicy>, Vec<MulticastJoin>);

/// Multicast of `wanted` in terms of the ports that run, or the reason why it has to wait.
fn translate_multicast(running: &Config, wanted: &Config) -> Result<Multicast, NotYet> {
    let translate = |ports: &[PortId]| translate_ports(ports, &wanted.ports, &running.ports);
    let mut policies = wanted.multicast_policies.clone();
    for policy in &mut policies {
        let said = |port| NotYet::MulticastPort(policy.name.clone(), port);
        let from = translate(&policy.from).map_err(said)?;
        let to = translate(&policy.to).map_err(said)?;
        (policy.from, policy.to) = (from, to);
        for port in policy.to.iter().filter(|_| policy.snat) {
            let port = &running.ports[port.index()];
            let has = |net: &IpNet| {
                let family = Addr::from(net.addr()).family();
                let mut own = port.virtual_addresses.iter();
                own.any(|own| own.addr.family() == family)
            };
            if !policy.group.iter().all(has) {
                return Err(NotYet::NoSource(policy.name.clone(), port.name.clone()));
            }
        }
    }
    let mut joins = wanted.multicast_joins.clone();
    for join in &mut joins {
        for port in translate(&[join.port]).map_err(NotYet::Join)? {
            join.port = port;
        }
    }
    Ok((policies, joins))
}

/// The addresses of a pool move with one group: one of those in force, which the file may not have.
fn check_group(running: &Config, pool: &NatPool) -> Result<(), NotYet> {
    let group = |addr: &Addr| group_of(&running.ports, *addr);
    let mut groups = pool.addresses.iter().map(group);
    let first = groups.next();
    match groups.all(|group| Some(group) == first) {
        true => Ok(()),
        false => Err(NotYet::PoolGroups(pool.name.clone())),
    }
}

/// The ports of the same names among those that run.
fn translate_ports(
    ports: &[PortId],
    wanted: &[Port],
    running: &[Port],
) -> Result<Vec<PortId>, NoPort> {
    let translate = |port: &PortId| {
        let name = &wanted[port.index()].name;
        let at = running.iter().position(|port| port.name == *name);
        at.map(PortId::from_index)
            .ok_or_else(|| NoPort(name.clone()))
    };
    ports.iter().map(translate).collect()
}

/// A table that can occur several times.
trait Named {
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($table:ty),*) => {
        $(impl Named for $table {
            fn name(&self) -> &str {
                &self.name
            }
        })*
    };
}

named!(
    Port,
    LocalIn,
    MulticastPolicy,
    Policy,
    NatPool,
    Forward,
    HaPeer
);

fn names<T: Named>(tables: &[T]) -> Vec<&str> {
    tables.iter().map(Named::name).collect()
}

/// Notes tables that were added, removed or moved; gives the places of the others, before and
/// after.
fn compare_names(
    to: &mut Vec<Difference>,
    table: &str,
    old: Vec<&str>,
    new: Vec<&str>,
) -> Vec<(usize, usize)> {
    let places: BTreeMap<&str, usize> = old.iter().copied().zip(0..).collect();
    let mut gone = places.clone();
    let mut same = Vec::new();
    for (at, name) in new.into_iter().enumerate() {
        gone.remove(name);
        match places.get(name) {
            Some(before) => same.push((*before, at)),
            None => push(to, format!("{table}.{name}"), "added"),
        }
    }
    for name in gone.keys() {
        push(to, format!("{table}.{name}"), "removed");
    }
    if !same.is_sorted() {
        push(to, table, "another order");
    }
    same
}

fn compare_lists<T: Named + PartialEq>(
    to: &mut Vec<Difference>,
    table: &str,
    old: &[T],
    new: &[T],
) {
    for (before, after) in compare_names(to, table, names(old), names(new)) {
        if old[before] != new[after] {
            push(to, format!("{table}.{}", new[after].name()), "changed");
        }
    }
}

fn push(to: &mut Vec<Difference>, key: impl Into<String>, what: &str) {
    to.push(Difference {
        key: key.into(),
        what: what.to_owned(),
    });
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::options::{options, tests::EVERYTHING};

    fn read(text: &str) -> Config {
        let read = crate::config::parse(Path::new("a.toml"), text);
        read.unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
            .0
    }

    /// Every option: the text in [`EVERYTHING`] to replace, its replacement, and the key that the
    /// change is reported under.
    pub(crate) const EDITS: &[(&str, &str, &str, &str)] = &[
        (
            "metrics.listen",
            "127.0.0.1:9",
            "127.0.0.1:10748",
            "metrics.listen",
        ),
        ("node.name", "name = \"a\"", "name = \"z\"", "node.name"),
        ("node.key", "a.key", "z.key", "node.key"),
        (
            "node.control-socket",
            "/tmp/a.sock",
            "/tmp/z.sock",
            "node.control-socket",
        ),
        (
            "node.state-directory",
            "/tmp/state",
            "/tmp/other",
            "node.state-directory",
        ),
        ("node.max-sessions", "5000", "6000", "node.max-sessions"),
        ("node.routing-table", "8000", "9000", "node.routing-table"),
        ("port.name", "\"lan\"", "\"net\"", "port.lan"),
        ("port.interface", "eth0", "eth9", "port.lan.interface"),
        (
            "port.virtual-addresses",
            "10.0.1.1/24",
            "10.0.1.1/25",
            "port.lan.virtual-addresses",
        ),
        (
            "port.source-check",
            "source-check = false",
            "",
            "port.lan.source-check",
        ),
        ("port.offload", "offload = false", "", "port.lan.offload"),
        (
            "port.unsolicited-syn",
            "syn = \"drop\"",
            "syn = \"reject\"",
            "port.lan.unsolicited-syn",
        ),
        (
            "port.mss-clamp",
            "mss-clamp = \"auto\"",
            "mss-clamp = 1400",
            "port.lan.mss-clamp",
        ),
        (
            "policy.mss-clamp",
            "mss-clamp = 1300",
            "mss-clamp = 1301",
            "policy.p",
        ),
        (
            "port.routing-headers",
            "headers = true",
            "headers = false",
            "port.lan.routing-headers",
        ),
        (
            "port.reserved-addresses",
            "addresses = false",
            "addresses = true",
            "port.lan.reserved-addresses",
        ),
        (
            "port.sessions-per-source",
            "sessions-per-source = 7",
            "sessions-per-source = 6",
            "port.lan.sessions-per-source",
        ),
        (
            "port.half-open-per-source",
            "half-open-per-source = 8",
            "half-open-per-source = 6",
            "port.lan.half-open-per-source",
        ),
        (
            "port.ports-per-source",
            "ports-per-source = 9",
            "ports-per-source = 6",
            "port.lan.ports-per-source",
        ),
        (
            "policy.forwarded",
            "forwarded = false",
            "forwarded = true",
            "policy.p",
        ),
        ("group.name", "\"h\"", "\"hh\"", "group.h"),
        (
            "group.ports",
            "ports = [\"lan\"]\n        p",
            "virtual-addresses=[]\np",
            "?",
        ),
        ("group.virtual-addresses", "virtual-addresses = []", "", "?"),
        (
            "group.priority",
            "priority = 3",
            "priority = 4",
            "group.g.priority",
        ),
        (
            "group.distribute",
            "distribute = 4",
            "distribute = 5",
            "group.g.distribute",
        ),
        (
            "group.weights",
            "weights = [\"a:2\"]",
            "weights = [\"b:0\"]",
            "group.g.weights",
        ),
        ("policy.name", "\"p\"", "\"q\"", "policy.p"),
        ("policy.from", "from = [\"lan\"]", "", "policy.p"),
        ("policy.to", "to = [\"lan\"]", "", "policy.p"),
        ("policy.source", "source = [\"10.0.0.0/8\"]", "", "policy.p"),
        (
            "policy.destination",
            "destination = [\"10.0.0.0/8\", \"servers\"]",
            "",
            "policy.p",
        ),
        ("policy.service", "tcp/80", "tcp/81", "policy.p"),
        // What they stand for is part of the config, and the names are of no account.
        (".include", "policies.d", "rules.d", "?"),
        ("address.name", "servers", "hosts", "?"),
        ("address.member", "10.7.1.0/28", "10.7.1.0/29", "policy.p"),
        ("service.name", "web", "http", "?"),
        ("service.member", "tcp/443", "tcp/444", "policy.p"),
        ("policy.action", "= \"accept\"", "= \"drop\"", "policy.p"),
        (
            "policy.nat",
            "nat = true\n        nat-pool = \"n\"",
            "",
            "policy.p",
        ),
        ("policy.nat-pool", "nat-pool = \"n\"", "", "policy.p"),
        ("policy.log", "log = true", "", "policy.p"),
        (
            "policy.pickup-guarantee",
            "guarantee = \"off\"",
            "guarantee = \"strict\"",
            "policy.p",
        ),
        ("nat-pool.name", "\"n\"", "\"m\"", "nat-pool.n"),
        ("nat-pool.addresses", "10.0.1.9", "10.0.1.8", "nat-pool.n"),
        ("nat-pool.ports", "2000-3000", "2000-3001", "nat-pool.n"),
        ("forward.name", "\"f\"", "\"ff\"", "forward.f"),
        (
            "forward.port",
            "port = \"lan\"\n        protocol = \"udp\"\n        external = \"10.0.1.1:53\"",
            "port = \"wan\"\n        protocol = \"udp\"\n        external = \"10.0.1.9:53\"",
            "forward.f",
        ),
        ("forward.protocol", "udp\"", "tcp\"", "forward.f"),
        (
            "forward.external",
            "10.0.1.1:53",
            "10.0.1.1:54",
            "forward.f",
        ),
        (
            "forward.internal",
            "10.0.1.5:53",
            "10.0.1.5:54",
            "forward.f",
        ),
        ("local-in.name", "\"ssh\"", "\"sshd\"", "local-in.ssh"),
        ("local-in.from", "from = [\"wan\"]", "", "local-in.ssh"),
        (
            "local-in.source",
            "source = [\"10.9.0.0/16\"]",
            "",
            "local-in.ssh",
        ),
        ("local-in.service", "tcp/22", "tcp/23", "local-in.ssh"),
        (
            "local-in.action",
            "action = \"drop\"\n        [[multicast",
            "action = \"accept\"\n        [[multicast",
            "local-in.ssh",
        ),
        (
            "multicast-policy.name",
            "\"tv\"",
            "\"radio\"",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.from",
            "from = [ \"wan\" ]",
            "from = [ \"lan\" ]",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.to",
            "to = [ \"lan\" ]\n        source = [\"10.8.0.0/16\"]\n        group = [\"239.1.0.0/16\"]\n        action = \"drop\"\n        log=true\n        snat = true",
            "to = [ \"wan\" ]\n        source = [\"10.8.0.0/16\"]\n        group = [\"239.1.0.0/16\"]\n        action = \"drop\"\n        log=true\n        snat = false",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.source",
            "10.8.0.0/16",
            "10.8.0.0/15",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.group",
            "239.1.0.0/16",
            "239.1.0.0/17",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.action",
            "action = \"drop\"\n        log=true\n        snat",
            "action = \"accept\"\n        log=true\n        snat",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.log",
            "log=true\n        snat",
            "log=false\n        snat",
            "multicast-policy.tv",
        ),
        (
            "multicast-policy.snat",
            "snat = true",
            "",
            "multicast-policy.tv",
        ),
        (
            "multicast-join.port",
            "port = \"lan\"\n        group",
            "port = \"wan\"\n        group",
            "multicast-join",
        ),
        (
            "multicast-join.group",
            "239.1.2.3",
            "239.1.2.4",
            "multicast-join",
        ),
        (
            "multicast-join.source",
            "10.8.1.1",
            "10.8.1.2",
            "multicast-join",
        ),
        (
            "ha.multicast-ttl",
            "ttl = \"7s",
            "ttl = \"8s",
            "ha.multicast-ttl",
        ),
        (
            "link-monitor.port",
            "port = \"lan\"\n        server",
            "port = \"wan\"\n        server",
            "link-monitor",
        ),
        (
            "link-monitor.server",
            "10.0.1.50",
            "10.0.1.51",
            "link-monitor",
        ),
        (
            "link-monitor.protocol",
            "protocol = \"arp\"",
            "",
            "link-monitor",
        ),
        (
            "link-monitor.interval",
            "interval = \"100ms",
            "interval = \"200ms",
            "link-monitor",
        ),
        (
            "link-monitor.failtime",
            "failtime = 3",
            "failtime = 9",
            "link-monitor",
        ),
        (
            "link-monitor.recoverytime",
            "recoverytime = 4",
            "recoverytime = 9",
            "link-monitor",
        ),
        (
            "link-monitor.ha-priority",
            "ha-priority = 2",
            "ha-priority = 9",
            "link-monitor",
        ),
        (
            "ha.pingserver-failover-threshold",
            "failover-threshold = 1",
            "failover-threshold = 2",
            "ha.pingserver-failover-threshold",
        ),
        (
            "timeouts.tcp-established",
            "1h",
            "2h",
            "timeouts.tcp-established",
        ),
        (
            "timeouts.tcp-transitory",
            "60s",
            "61s",
            "timeouts.tcp-transitory",
        ),
        (
            "timeouts.tcp-syn",
            "syn = \"5s",
            "syn = \"6s",
            "timeouts.tcp-syn",
        ),
        (
            "timeouts.tcp-time-wait",
            "wait = \"5s",
            "wait = \"6s",
            "timeouts.tcp-time-wait",
        ),
        (
            "timeouts.tcp-reset",
            "reset = \"5s",
            "reset = \"6s",
            "timeouts.tcp-reset",
        ),
        ("timeouts.udp", "udp = \"5s", "udp = \"6s", "timeouts.udp"),
        (
            "timeouts.udp-unreplied",
            "unreplied = \"5s",
            "unreplied = \"6s",
            "timeouts.udp-unreplied",
        ),
        (
            "timeouts.icmp",
            "icmp = \"5s",
            "icmp = \"6s",
            "timeouts.icmp",
        ),
        (
            "timeouts.other",
            "other = \"5s",
            "other = \"6s",
            "timeouts.other",
        ),
        (
            "limits.sessions-per-source",
            "sessions-per-source = 0",
            "sessions-per-source = 9",
            "limits.sessions-per-source",
        ),
        (
            "limits.ports-per-source",
            "ports-per-source = 0",
            "ports-per-source = 9",
            "limits.ports-per-source",
        ),
        (
            "ha.pickup-guarantee-copies",
            "pickup-guarantee-copies = 1",
            "pickup-guarantee-copies = 2",
            "ha.pickup-guarantee-copies",
        ),
        ("ha.copies", " copies = 1", " copies = 2", "ha.copies"),
        (
            "limits.half-open-per-source",
            "source = 0",
            "source = 1",
            "limits.half-open-per-source",
        ),
        (
            "limits.icmp-errors-per-second",
            "second = 0",
            "second = 1",
            "limits.icmp-errors-per-second",
        ),
        (
            "limits.tcp-pickup",
            "pickup = false",
            "pickup = true",
            "limits.tcp-pickup",
        ),
        ("ha.group-id", "group-id = 1", "group-id = 2", "ha.group-id"),
        ("ha.priority", "priority = 0", "priority = 1", "ha.priority"),
        ("ha.override", "override = true", "", "ha.override"),
        (
            "ha.override-wait-time",
            "override-wait-time = \"1s",
            "override-wait-time = \"2s",
            "ha.override-wait-time",
        ),
        (
            "ha.heartbeat-interval",
            "heartbeat-interval = \"1ms",
            "heartbeat-interval = \"2ms",
            "ha.heartbeat-interval",
        ),
        (
            "ha.heartbeat-lost-threshold",
            "threshold = 2",
            "threshold = 3",
            "ha.heartbeat-lost-threshold",
        ),
        ("ha.monitor", "monitor = [\"lan\"]", "", "ha.monitor"),
        (
            "ha.session-pickup",
            "session-pickup = true",
            "session-pickup = false",
            "ha.session-pickup",
        ),
        (
            "ha.session-pickup-connectionless",
            "connectionless = false",
            "connectionless = true",
            "ha.session-pickup-connectionless",
        ),
        (
            "ha.session-pickup-delay",
            "delay = \"1s",
            "delay = \"2s",
            "ha.session-pickup-delay",
        ),
        (
            "ha.pickup-guarantee",
            "\"off\"\n        pickup-guarantee-wait",
            "\"strict\"\npickup-guarantee-wait",
            "ha.pickup-guarantee",
        ),
        (
            "ha.accept-push",
            "accept-push = [\"b\"]",
            "accept-push = []",
            "ha.accept-push",
        ),
        (
            "ha.asymmetric-flows",
            "asymmetric-flows = true",
            "asymmetric-flows = false",
            "ha.asymmetric-flows",
        ),
        (
            "ha.pickup-guarantee-wait",
            "guarantee-wait = \"1ms",
            "guarantee-wait = \"2ms",
            "ha.pickup-guarantee-wait",
        ),
        (
            "ha.gratuitous-arps",
            "arps = 1",
            "arps = 2",
            "ha.gratuitous-arps",
        ),
        (
            "ha.gratuitous-arp-interval",
            "arp-interval = \"1s",
            "arp-interval = \"2s",
            "ha.gratuitous-arp-interval",
        ),
        ("ha.link.interface", "eth1", "eth2", "ha.link"),
        (
            "ha.link.listen",
            "10.0.9.1:7030",
            "10.0.9.1:7031",
            "ha.link",
        ),
        ("ha.peer.name", "\"b\"", "\"c\"", "ha.peer.b"),
        (
            "ha.peer.addresses",
            "10.0.9.2:7030",
            "10.0.9.2:7031",
            "ha.peer.b",
        ),
        ("ha.peer.public-key", "AAECAw", "BBECAw", "ha.peer.b"),
        (
            "ha.witness.endpoints",
            "10.0.0.1:2379",
            "10.0.0.2:2379",
            "ha.witness.endpoints",
        ),
        (
            "ha.witness.ca",
            "etcd-ca.pem",
            "other-ca.pem",
            "ha.witness.ca",
        ),
        (
            "ha.witness.cert",
            "/etcd.pem",
            "/other.pem",
            "ha.witness.cert",
        ),
        (
            "ha.witness.key",
            "/etcd.key",
            "/other.key",
            "ha.witness.key",
        ),
        (
            "ha.witness.user",
            "user = \"gw\"",
            "user = \"gx\"",
            "ha.witness.user",
        ),
        (
            "ha.witness.password-file",
            "etcd.password",
            "other.password",
            "ha.witness.password-file",
        ),
        (
            "ha.witness.prefix",
            "tandemgw/berlin",
            "tandemgw/bonn",
            "ha.witness.prefix",
        ),
        (
            "ha.witness.lease",
            "lease = \"3s\"",
            "lease = \"4s\"",
            "ha.witness.lease",
        ),
        (
            "ha.witness.timeout",
            "timeout = \"500ms\"",
            "timeout = \"600ms\"",
            "ha.witness.timeout",
        ),
    ];

    #[test]
    fn a_change_of_any_option_is_applied_or_named_as_waiting() {
        let running = read(EVERYTHING);
        let mut left: BTreeSet<String> = options()
            .iter()
            .map(|option| format!("{}.{}", option.table, option.key))
            .collect();
        for (option, from, to, expected) in EDITS {
            assert!(
                left.remove(*option),
                "{option} is not an option, or is here twice"
            );
            assert!(EVERYTHING.contains(from), "{option}: no `{from}`");
            if *expected == "?" {
                // Others tell it; see the test below.
                continue;
            }
            let wanted = read(&EVERYTHING.replace(from, to));
            let change = Change::new(&running, &wanted);
            let row = options().iter();
            let row = row.map(|row| (format!("{}.{}", row.table, row.key), row.reload));
            let mut class = row
                .filter(|(name, _)| name == option)
                .map(|(_, reload)| reload);
            let (list, others) = match class.next_back() {
                Some(Reload::Restart) => (&change.waiting, &change.applied),
                _ => (&change.applied, &change.waiting),
            };
            let named = list.iter().any(|d| d.key == *expected);
            assert!(named, "{option}: {change:#?}");
            assert!(others.is_empty(), "{option}: {others:?}");
            // Afterwards only the changes that need a restart are missing.
            let again = Change::new(&change.config, &wanted);
            assert_eq!(
                (again.applied, again.waiting),
                (Vec::new(), change.waiting),
                "{option}"
            );
            let back = Change::new(&change.config, &running);
            assert!(back.waiting.is_empty(), "{option}: {:?}", back.waiting);
            let mut config = back.config;
            config.groups.truncate(running.groups.len());
            assert_eq!(config, running, "{option}");
        }
        assert!(left.is_empty(), "say what a change of these does: {left:?}");
    }

    #[test]
    fn an_address_that_moves_to_another_group_waits() {
        let text = EVERYTHING.replacen("ports = [\"lan\"]", "", 1);
        let text = text.replace(
            "virtual-addresses = []",
            "virtual-addresses = [\"10.0.1.1\"]",
        );
        let change = Change::new(&read(EVERYTHING), &read(&text));
        let keys: Vec<_> = change.waiting.iter().map(|d| d.key.as_str()).collect();
        assert_eq!(
            (keys, change.applied),
            (vec!["port.lan.virtual-addresses"], Vec::new())
        );
    }

    #[test]
    fn a_pool_across_the_groups_in_force_waits_with_the_rules() {
        let of_group = |text: &str, two: &str| {
            let lan = "virtual-addresses = [\"10.0.1.1/24\"]";
            let wan = "interface = \"eth8\"\n        virtual-addresses = [\"10.0.2.1/24\"]";
            let text = text.replace("interface = \"eth8\"", wan);
            let text = text.replace("virtual-addresses = []", two);
            assert!(text.contains(lan));
            read(&text)
        };
        // In force, the wan belongs to group h; the file puts it into the group of the lan, and has
        // a pool across both.
        let running = of_group(EVERYTHING, "ports = [\"wan\"]");
        let text = EVERYTHING.replace("ports = [\"lan\"]", "ports = [\"lan\", \"wan\"]");
        let pool = "addresses = [\"10.0.1.9\", \"10.0.2.9\"]";
        let wanted = of_group(
            &text.replace("addresses = [\"10.0.1.9\"]", pool),
            "virtual-addresses = []",
        );
        let change = Change::new(&running, &wanted);
        let rules = change.waiting.iter().find(|d| d.key.starts_with("policy"));
        let why = "nat-pool `n` has addresses of several groups";
        assert!(rules.is_some_and(|d| d.what.contains(why)), "{change:?}");
        assert_eq!(change.config.nat_pools, running.nat_pools);
    }

    #[test]
    fn multicast_for_what_does_not_run_yet_waits_as_a_whole() {
        let running = read(EVERYTHING);
        let dmz = "[[port]]\nname = \"dmz\"\ninterface = \"eth5\"\n\
                   virtual-addresses = [\"10.0.5.1/24\"]\n";
        let text = EVERYTHING.replace("virtual-addresses = []", "ports = [\"dmz\"]");
        let text = text.replacen("[[group]]", &format!("{dmz}\n[[group]]"), 1);
        let cases = [
            (
                "from = [ \"wan\" ]",
                "from = [\"dmz\"]",
                "multicast policy `tv` names the port `dmz`, which does not run yet",
            ),
            (
                "port = \"lan\"\n        group",
                "port = \"dmz\"\n group",
                "a multicast-join names the port `dmz`, which does not run yet",
            ),
        ];
        for (from, to, why) in cases {
            assert!(text.contains(from));
            // Another port comes before it: the file has other numbers than those in force.
            let wanted = read(&text.replace(from, to).replace("10.8.0.0/16", "10.8.0.0/15"));
            let change = Change::new(&running, &wanted);
            let waits = change.waiting.iter();
            let mut waits = waits.filter(|it| it.key == "multicast-policy, multicast-join");
            let what = waits.next().map(|it| it.what.as_str()).unwrap_or_default();
            assert!(what.contains(why), "{:?}", change.waiting);
            assert_eq!(change.config.multicast_policies, running.multicast_policies);
            assert_eq!(change.config.multicast_joins, running.multicast_joins);
        }
        let v6 = "group = [\"239.1.0.0/16\", \"ff05::/16\"]";
        let wanted = EVERYTHING.replace("group = [\"239.1.0.0/16\"]", v6);
        let lan = "virtual-addresses = [\"10.0.1.1/24\", \"fd01::1/64\"]";
        let wanted = wanted.replace("virtual-addresses = [\"10.0.1.1/24\"]", lan);
        let change = Change::new(&running, &read(&wanted));
        let why = "translates on the port `lan`, which has no address of that family yet";
        assert!(
            change.waiting.iter().any(|it| it.what.contains(why)),
            "{change:?}"
        );
    }

    #[test]
    fn rules_for_what_does_not_run_yet_wait_as_a_whole() {
        let running = read(EVERYTHING);
        let dmz = "[[port]]\nname = \"dmz\"\ninterface = \"eth5\"\n\
                   virtual-addresses = [\"10.0.5.1/24\"]\n";
        let cases = [
            (
                "to = [\"lan\"]",
                "to = [\"dmz\"]",
                "policy `p` names the port `dmz`, which does not run yet",
            ),
            (
                "port = \"lan\"\n        protocol = \"udp\"\n        external = \"10.0.1.1:53\"",
                "port = \"dmz\"\nprotocol = \"udp\"\nexternal = \"10.0.5.1:53\"",
                "forward `f` names the port `dmz`",
            ),
        ];
        for (from, to, why) in cases {
            let text = EVERYTHING
                .replace(from, to)
                .replace("tcp-syn = \"5s\"", "tcp-syn = \"9s\"");
            let text = text.replace("virtual-addresses = []", "ports = [\"dmz\"]");
            let wanted = read(&text.replacen("[[group]]", &format!("{dmz}\n[[group]]"), 1));
            let change = Change::new(&running, &wanted);
            let rules = change.waiting.iter().find(|d| d.key.starts_with("policy"));
            assert!(
                rules.is_some_and(|d| d.what.contains(why)),
                "{:?}",
                change.waiting
            );
            assert!(change.waiting.iter().any(|d| d.key == "port.dmz"));
            assert_eq!(change.config.policies, running.policies);
            assert_eq!(change.config.forwards, running.forwards);
            assert_eq!(change.applied[0].what, "5s to 9s", "the rest is applied");
        }
    }

    /// What waits for a restart keeps no key alive that the file no longer has.
    #[test]
    fn a_peer_that_loses_its_key_loses_its_place_whatever_waits() {
        let running = read(EVERYTHING);
        let end = EVERYTHING.find("[ha]").expect("it has one");
        let other_key = ("AAECAw", "BBECAw");
        let cases = [
            (
                EVERYTHING.replace("10.0.9.1:7030", "10.0.9.1:7031"),
                "ha.link",
            ),
            (
                EVERYTHING.replace("name = \"a\"", "name = \"z\""),
                "node.name",
            ),
            (EVERYTHING[..end].to_owned(), "ha"),
        ];
        for (text, waits) in cases {
            let text = text.replace(other_key.0, other_key.1);
            let change = Change::new(&running, &read(&text));
            let keys = |list: &[Difference]| -> Vec<String> {
                list.iter().map(|d| d.key.clone()).collect()
            };
            assert!(
                keys(&change.waiting).contains(&waits.to_owned()),
                "{change:?}"
            );
            assert_eq!(keys(&change.applied), ["ha.peer.b"], "{waits}");
            let ha = change.config.ha.expect("there is one until the restart");
            assert_eq!(ha.peers, [], "{waits}");
        }
        // With its old key it stays, at its old addresses.
        let moved = EVERYTHING.replace("10.0.9.1:7030", "10.0.9.1:7031");
        let moved = moved.replace("10.0.9.2:7030", "10.0.9.2:7031");
        let change = Change::new(&running, &read(&moved));
        assert_eq!(change.config, running);
        assert!(
            change.waiting.iter().any(|d| d.key == "ha.peer.b"),
            "{change:?}"
        );
    }

    #[test]
    fn what_is_named_says_from_what_to_what() {
        let running = read(EVERYTHING);
        let policy = "[[policy]]\nname = \"first\"\naction = \"drop\"\n\n        [[policy]]";
        let text = EVERYTHING
            .replacen("[[policy]]", policy, 1)
            .replace("max-sessions = 5000", "")
            .replace("priority = 0", "priority = 200");
        let change = Change::new(&running, &read(&text));
        let said = |list: &[Difference]| -> Vec<String> {
            list.iter()
                .map(|d| format!("{}: {}", d.key, d.what))
                .collect()
        };
        assert_eq!(
            said(&change.applied),
            ["policy.first: added", "ha.priority: 0 to 200"]
        );
        assert_eq!(
            said(&change.waiting),
            ["node.max-sessions: 5000 to 1048576"]
        );
        let swapped = Config {
            policies: change.config.policies.iter().rev().cloned().collect(),
            ..change.config.clone()
        };
        let swap = Change::new(&change.config, &swapped);
        assert_eq!(said(&swap.applied), ["policy: another order"]);
        let alone = Config {
            ha: None,
            ..running.clone()
        };
        assert_eq!(
            said(&Change::new(&running, &alone).waiting),
            ["ha: removed"]
        );
        assert_eq!(said(&Change::new(&alone, &running).waiting), ["ha: added"]);
    }
}
