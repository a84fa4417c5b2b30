//! The ordered policies: which new sessions may pass, and how they are translated.
//!
//! Policies are checked once, for the packet that opens a session. They see the original source
//! and, if a forward applies, the internal destination.

mod index;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;

use ipnet::IpNet;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::config::{self, Action, Config, MulticastPolicy, Nat, Policy, Service};
use crate::flow::{Addr, FlowKey, GroupId, PolicyId, PortId, Protocol};

use index::Index;

/// Of [`Ruleset::items`], the name of the one that stands for all that is about no group.
pub const POLICIES: &str = "policies";

/// The decision of the first matching policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The first policy that matches.
    pub policy: PolicyId,
    /// The action on the packet.
    pub action: Action,
    /// Its source translation.
    pub nat: Nat,
}

/// The first condition of a policy that a packet does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// `from`: it came in by another port.
    From,
    /// `to`: it leaves by another port.
    To,
    /// `source`
    Source,
    /// `destination`
    Destination,
    /// `service`
    Service,
    /// `forwarded`
    Forwarded,
}

/// How a packet reached its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By its own address.
    Direct,
    /// A forward has translated the destination.
    Forwarded,
    /// By its own address, although it came in by the port of a forward to that server and port: an
    /// administrator who publishes a server through a forward may not want its own address to be
    /// reachable too.
    PastForward,
}

/// The servers of the forwards, by the port that their clients come in by: first and last port.
type Servers = BTreeMap<(PortId, Protocol, Addr), Vec<(u16, u16)>>;

fn servers(config: &Config) -> Servers {
    let mut servers = Servers::new();
    for forward in &config.forwards {
        let (addr, first) = forward.internal;
        let more = forward
            .last_external_port
            .saturating_sub(forward.external.1);
        let ports = (first, first.saturating_add(more));
        let key = (forward.port, forward.protocol, addr);
        servers.entry(key).or_default().push(ports);
    }
    servers
}

/// The policies in order, compiled for matching.
///
/// Sessions hold the [`PolicyId`] of the policy that accepted them. An id must not change its
/// meaning when the policies change, so it belongs to a name. At the start it is the place in the
/// config.
pub struct Ruleset {
    rules: Vec<Rule>,
    /// None if a scan is as fast.
    index: Option<Index>,
    servers: Servers,
    digest: [u8; 16],
    /// Everything that must be the same on all units, by name, with a hash.
    items: Vec<(String, u32)>,
    /// By [`PolicyId`]: the name, and the place in the config; empty and none for a removed policy.
    /// Its id is reused at the next change.
    names: Vec<(String, Option<usize>)>,
}

/// The previous and the new policies need more ids than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyPolicies;

impl fmt::Display for TooManyPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "those that go and those that come are more than {} policies together: change \
             them in two steps, or restart",
            PolicyId::NONE.0
        )
    }
}

impl std::error::Error for TooManyPolicies {}

impl Ruleset {
    /// Compiles the policies of `config`.
    pub fn new(config: &Config) -> Ruleset {
        let nothing = Ruleset {
            rules: Vec::new(),
            index: None,
            servers: Servers::new(),
            digest: [0; 16],
            items: Vec::new(),
            names: Vec::new(),
        };
        // A config has fewer policies than there are ids.
        nothing.succeeded_by(config).unwrap_or(nothing)
    }

    /// Compiles the policies of a changed config. No session may have an id by then that this
    /// ruleset lacks: see [`Ruleset::place`].
    ///
    /// # Errors
    /// If there are not enough ids for the previous and the new policies.
    pub fn succeeded_by(&self, config: &Config) -> Result<Ruleset, TooManyPolicies> {
        let items = canonical(config);
        let mut all = SipHasher24::new();
        for item in &items {
            all.write(item.text.as_bytes());
            all.write(b"\n");
        }
        let known: BTreeMap<&str, usize> = (0..)
            .zip(&self.names)
            .filter(|(_, (_, place))| place.is_some())
            .map(|(id, (name, _))| (name.as_str(), id))
            .collect();
        let mut free = (0..self.names.len()).filter(|id| self.names[*id].1.is_none());
        let mut names = vec![(String::new(), None); self.names.len()];
        let mut rules = Vec::with_capacity(config.policies.len());
        for (place, policy) in config.policies.iter().enumerate() {
            let known = known.get(policy.name.as_str()).copied();
            let id = known.or_else(|| free.next()).unwrap_or(names.len());
            names.resize(names.len().max(id + 1), (String::new(), None));
            names[id] = (policy.name.clone(), Some(place));
            let id = u16::try_from(id).map(PolicyId);
            let id = id.ok().filter(|id| *id != PolicyId::NONE);
            let Some(id) = id else {
                return Err(TooManyPolicies);
            };
            rules.push(Rule::new(policy, id));
        }
        Ok(Ruleset {
            rules,
            index: Index::new(&config.policies),
            servers: servers(config),
            digest: all.finish128().as_bytes(),
            items: told(config, &items),
            names,
        })
    }

    /// The place of a policy in [`Config::policies`]; none if it was removed or never existed.
    pub fn place(&self, policy: PolicyId) -> Option<usize> {
        self.names.get(usize::from(policy.0))?.1
    }

    /// The policy at a place in [`Config::policies`].
    pub fn at(&self, place: usize) -> Option<PolicyId> {
        self.rules.get(place).map(|rule| rule.id)
    }

    /// How many ids there are, including those of removed policies.
    pub fn ids(&self) -> usize {
        self.names.len()
    }

    /// The ids that belonged to other policies in `before`.
    pub fn newcomers(&self, before: &Ruleset) -> Vec<PolicyId> {
        let known = before.names().map(Some).chain(std::iter::repeat(None));
        let ids = (0..).map(PolicyId).zip(self.names().zip(known));
        let new = ids.filter(|(_, (name, before))| Some(*name) != *before);
        new.map(|(id, _)| id).collect()
    }

    /// The names of the policies, by [`PolicyId`]; empty for removed ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| name.as_str())
    }

    /// The decision of the first policy that matches a session that comes in by `from` and leaves
    /// by `to`; none if no policy does.
    ///
    /// `key` is that of the opening packet after destination translation, before source
    /// translation; `forwarded` is whether a forward has translated the destination.
    pub fn decide(
        &self,
        from: PortId,
        to: PortId,
        key: &FlowKey,
        forwarded: bool,
    ) -> Option<Decision> {
        let way = self.way(from, key, forwarded);
        let matches = |rule: &Rule| rule.mismatch(from, to, key, way).is_none();
        let rule = match &self.index {
            None => self.rules.iter().find(|rule| matches(rule))?,
            Some(index) => {
                let found = index.find(from, to, key, |place| matches(&self.rules[place]));
                &self.rules[found?]
            }
        };
        Some(Decision {
            policy: rule.id,
            action: rule.action,
            nat: rule.nat,
        })
    }

    /// Why the policies before the deciding one did not match, in order, the last `most` of them.
    /// The deciding policy is the next one; there is none if the last one comes before it.
    pub fn trace(
        &self,
        from: PortId,
        to: PortId,
        key: &FlowKey,
        forwarded: bool,
        most: usize,
    ) -> Trace {
        let way = self.way(from, key, forwarded);
        let decision = self.decide(from, to, key, forwarded);
        let place = decision.and_then(|decision| self.place(decision.policy));
        let end = place.unwrap_or(self.rules.len());
        let first = end.saturating_sub(most);
        let before = self.rules[first..end].iter();
        Trace {
            first,
            mismatches: before
                .filter_map(|rule| rule.mismatch(from, to, key, way))
                .collect(),
        }
    }

    fn way(&self, from: PortId, key: &FlowKey, forwarded: bool) -> Way {
        if forwarded {
            return Way::Forwarded;
        }
        let servers = self.servers.get(&(from, key.protocol, key.dst));
        let has = |ports: &(u16, u16)| (ports.0..=ports.1).contains(&key.dst_port);
        match servers.is_some_and(|servers| servers.iter().any(has)) {
            true => Way::PastForward,
            false => Way::Direct,
        }
    }

    /// Everything that must be the same on all units, by name, each with a hash: all that is about
    /// no group ([`POLICIES`]), each group with its addresses, pools and forwards, and then these
    /// and the policies one by one.
    pub fn items(&self) -> &[(String, u32)] {
        &self.items
    }

    /// A digest of the same.
    ///
    /// It is equal on units that would decide the same way: it covers the names of ports and pools,
    /// not their numbers or interfaces. It detects differences; it does not authenticate.
    pub fn digest(&self) -> [u8; 16] {
        self.digest
    }
}

/// Why policies did not match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The place in [`Config::policies`] of the first one that is listed.
    pub first: usize,
    /// One for each policy from there on, up to the deciding one.
    pub mismatches: Vec<Mismatch>,
}

struct Rule {
    id: PolicyId,
    from: PortSet,
    to: PortSet,
    source: Vec<Network>,
    destination: Vec<Network>,
    service: Vec<Service>,
    forwarded: Option<bool>,
    action: Action,
    nat: Nat,
}

impl Rule {
    fn new(policy: &Policy, id: PolicyId) -> Rule {
        Rule {
            id,
            from: PortSet::new(&policy.from),
            to: PortSet::new(&policy.to),
            source: policy.source.iter().map(Network::new).collect(),
            destination: policy.destination.iter().map(Network::new).collect(),
            service: policy.service.clone(),
            forwarded: policy.forwarded,
            action: policy.action,
            nat: policy.nat,
        }
    }

    fn mismatch(&self, from: PortId, to: PortId, key: &FlowKey, way: Way) -> Option<Mismatch> {
        if !self.from.contains(from) {
            Some(Mismatch::From)
        } else if !self.to.contains(to) {
            Some(Mismatch::To)
        } else if !any_or_empty(&self.source, |network| network.contains(&key.src)) {
            Some(Mismatch::Source)
        } else if !any_or_empty(&self.destination, |network| network.contains(&key.dst)) {
            Some(Mismatch::Destination)
        } else if !any_or_empty(&self.service, |service| service_matches(service, key)) {
            Some(Mismatch::Service)
        } else if !self.allows(way) {
            Some(Mismatch::Forwarded)
        } else {
            None
        }
    }

    fn allows(&self, way: Way) -> bool {
        match self.forwarded {
            None => way != Way::PastForward,
            Some(forwarded) => forwarded == (way == Way::Forwarded),
        }
    }
}

/// A set of ports in order; all of them if it is empty.
struct PortSet(Box<[PortId]>);

impl PortSet {
    fn new(ports: &[PortId]) -> PortSet {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        PortSet(ports.into())
    }

    fn contains(&self, port: PortId) -> bool {
        self.0.is_empty() || self.0.binary_search(&port).is_ok()
    }
}

/// A network as a mask over the sixteen bytes of [`Addr`].
struct Network {
    base: u128,
    mask: u128,
    v4: bool,
}

impl Network {
    fn new(net: &IpNet) -> Network {
        let v4 = matches!(net, IpNet::V4(_));
        let length = u32::from(net.prefix_len()) + if v4 { 96 } else { 0 };
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        Network {
            base: bits(&Addr::from(net.network())) & mask,
            mask,
            v4,
        }
    }

    /// IPv4 addresses are stored mapped into IPv6, but `::/0` must not match them.
    fn contains(&self, addr: &Addr) -> bool {
        bits(addr) & self.mask == self.base && addr.is_v4() == self.v4
    }
}

fn bits(addr: &Addr) -> u128 {
    u128::from_be_bytes(*addr.octets())
}

/// An empty list in a policy means any.
fn any_or_empty<T>(list: &[T], matches: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(matches)
}

fn service_matches(service: &Service, key: &FlowKey) -> bool {
    service.protocol == key.protocol
        && service
            .ports
            .is_none_or(|(first, last)| (first..=last).contains(&key.dst_port))
}

/// Something that must be the same on all units.
struct Item {
    name: String,
    /// No ids, no interfaces; lists whose order has no meaning are sorted. Names are quoted, so no
    /// name can imitate another field.
    text: String,
    /// The group that it is about; the others are about all.
    of: Option<GroupId>,
}

/// Everything that must be the same on all units.
fn canonical(config: &Config) -> Vec<Item> {
    // The name says which group the item is about.
    let item = |kind: &str, name: &str, of: GroupId, text: String| {
        let group = config.known_groups().find(|(id, _)| *id == of);
        let name = match group {
            Some((_, group)) if config.known_groups().count() > 1 => {
                format!("{kind} {name} (group {})", group.name)
            }
            _ => format!("{kind} {name}"),
        };
        let of = group.map(|(id, _)| id);
        Item { name, text, of }
    };
    let ports = config.ports.iter();
    let ports = ports.filter(|port| !port.virtual_addresses.is_empty());
    // An item for each group, so that a unit that lacks one agrees about the others.
    let ports = ports.flat_map(|port| {
        config.known_groups().filter_map(move |(id, group)| {
            let addresses = port.virtual_addresses.iter();
            let addresses = addresses.filter(|own| own.group == id);
            let addresses = sorted(addresses.map(|own| format!("{} {}", own.addr, own.network)));
            let text = format!("port {:?} {:?} {addresses:?}", port.name, group.name);
            (!addresses.is_empty()).then(|| item("port", &port.name, id, text))
        })
    });
    let groups = config.known_groups().map(|(id, group)| Item {
        name: format!("group {}", group.name),
        text: format!("group {:?}", group.name),
        of: Some(id),
    });
    let group_of = |addr: Addr| config::group_of(&config.ports, addr);
    let pools = config.nat_pools.iter().map(|pool| {
        let text = format!("pool {:?} {:?} {:?}", pool.name, pool.addresses, pool.ports);
        let group = pool
            .addresses
            .first()
            .map_or(GroupId(0), |it| group_of(*it));
        item("nat-pool", &pool.name, group, text)
    });
    let forwards = config.forwards.iter().map(|forward| {
        let port = port_names(config, &[forward.port]);
        let text = format!(
            "forward {port:?} {} {:?} {} {:?}",
            forward.protocol.0, forward.external, forward.last_external_port, forward.internal
        );
        item("forward", &forward.name, group_of(forward.external.0), text)
    });
    let joins = config.multicast_joins.iter().map(|join| {
        let port = port_names(config, &[join.port]).concat();
        let source = join.source.map_or("any".to_owned(), |it| it.to_string());
        let name = format!("multicast-join {port} {} {source}", join.group);
        general(name.clone(), name)
    });
    let items = ports.chain(groups).chain(pools).chain(forwards);
    let mut items: Vec<_> = items.chain(joins).collect();
    items.sort_by(|one, other| (&one.name, &one.text).cmp(&(&other.name, &other.text)));
    // Only for policies does the order matter.
    items.extend(config.policies.iter().map(|policy| {
        let name = format!("policy {}", policy.name);
        general(name, canonical_policy(config, policy))
    }));
    items.extend(config.multicast_policies.iter().map(|policy| {
        let name = format!("multicast-policy {}", policy.name);
        general(name, canonical_multicast(config, policy))
    }));
    items
}

/// What is about all groups.
fn general(name: String, text: String) -> Item {
    let of = None;
    Item { name, text, of }
}

/// The items as peers are told of them, each with a hash: first [`POLICIES`] and the groups, which
/// stand for all that is about them, so that these have room.
fn told(config: &Config, items: &[Item]) -> Vec<(String, u32)> {
    let hash = |text: &str| SipHasher24::new().hash(text.as_bytes()).h1 as u32;
    let all_of = |of: Option<GroupId>| -> u32 {
        let texts = items.iter().filter(|item| item.of == of);
        let texts: Vec<&str> = texts.map(|item| item.text.as_str()).collect();
        hash(&texts.join("\n"))
    };
    let groups = config.known_groups().map(|(id, group)| {
        let name = format!("group {}", group.name);
        (name, all_of(Some(id)))
    });
    let parts = items.iter().filter(|item| !item.name.starts_with("group "));
    let parts = parts.map(|item| (item.name.clone(), hash(&item.text)));
    [(POLICIES.to_owned(), all_of(None))]
        .into_iter()
        .chain(groups)
        .chain(parts)
        .collect()
}

fn networks(networks: &[IpNet]) -> Vec<String> {
    sorted(networks.iter().map(|net| net.trunc().to_string()))
}

fn canonical_multicast(config: &Config, policy: &MulticastPolicy) -> String {
    format!(
        "multicast-policy {:?} from {:?} to {:?} source {:?} group {:?} accepts {} snat {}",
        policy.name,
        port_names(config, &policy.from),
        port_names(config, &policy.to),
        networks(&policy.source),
        networks(&policy.group),
        policy.accepts,
        policy.snat,
    )
}

fn canonical_policy(config: &Config, policy: &Policy) -> String {
    let forwarded = policy.forwarded.map(|it| format!(" forwarded {it}"));
    let services = policy.service.iter();
    let services = services.map(|s| format!("{} {:?}", s.protocol.0, s.ports));
    format!(
        "policy {:?} from {:?} to {:?} source {:?} destination {:?} service {:?} {:?} nat {}{}",
        policy.name,
        port_names(config, &policy.from),
        port_names(config, &policy.to),
        networks(&policy.source),
        networks(&policy.destination),
        sorted(services),
        policy.action,
        nat_name(config, policy.nat),
        forwarded.unwrap_or_default(),
    )
}

fn port_names(config: &Config, ports: &[PortId]) -> Vec<String> {
    let name = |port: &PortId| config.ports.get(port.index()).map(|port| port.name.clone());
    sorted(ports.iter().filter_map(name))
}

fn nat_name(config: &Config, nat: Nat) -> String {
    match nat {
        Nat::Off => "off".to_owned(),
        Nat::Egress => "egress".to_owned(),
        Nat::Pool(index) => format!("pool {:?}", config.nat_pools.get(index).map(|p| &p.name)),
    }
}

fn sorted(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut items: Vec<String> = items.collect();
    items.sort_unstable();
    items
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Forward, Limits, MulticastJoin, NatPool, Node, Port, Timeouts};

    use proptest::prelude::*;
    use std::net::IpAddr;
    use std::time::Duration;

    fn port(name: &str, interface: &str) -> Port {
        Port {
            name: name.into(),
            interface: interface.into(),
            virtual_addresses: Vec::new(),
            link_local: Vec::new(),
            source_check: true,
            offload: crate::config::PortOffload::Tun,
            rejects_syns: false,
            mss_clamp: None,
            routing_headers: true,
            reserved_addresses: false,
            quotas: Default::default(),
        }
    }

    fn policy(name: &str) -> Policy {
        Policy {
            name: name.into(),
            from: Vec::new(),
            to: Vec::new(),
            source: Vec::new(),
            destination: Vec::new(),
            service: Vec::new(),
            forwarded: None,
            action: Action::Accept,
            nat: Nat::Off,
            log: false,
            pickup_guarantee: None,
            mss_clamp: None,
        }
    }

    /// A config with these policies and the ports `lan`, `wan` and `dmz`.
    pub(crate) fn config(policies: Vec<Policy>) -> Config {
        let second = Duration::from_secs(1);
        Config {
            node: Node {
                name: "gw".into(),
                key: None,
                state_directory: "/nowhere".into(),
                control_socket: "/run/gw.sock".into(),
                max_sessions: 1024,
                routing_table: 7700,
            },
            ports: vec![
                port("lan", "eth0"),
                port("wan", "eth1"),
                port("dmz", "eth2"),
            ],
            groups: Vec::new(),
            policies,
            nat_pools: Vec::new(),
            forwards: Vec::new(),
            link_monitors: Vec::new(),
            local_in: Vec::new(),
            multicast_policies: Vec::new(),
            multicast_joins: Vec::new(),
            timeouts: Timeouts {
                tcp_established: second,
                tcp_transitory: second,
                tcp_syn: second,
                tcp_time_wait: second,
                tcp_reset: second,
                udp: second,
                udp_unreplied: second,
                icmp: second,
                other: second,
            },
            metrics: None,
            limits: Limits {
                sessions_per_source: Some(0),
                half_open_per_source: Some(0),
                ports_per_source: None,
                icmp_errors_per_second: 0,
                tcp_pickup: Some(false),
            },
            ha: None,
        }
    }

    fn key(protocol: Protocol, src: &str, dst: &str, dst_port: u16) -> FlowKey {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        FlowKey {
            src: addr(src),
            dst: addr(dst),
            src_port: 5000,
            dst_port,
            protocol,
        }
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    const LAN: PortId = PortId(0);
    const WAN: PortId = PortId(1);
    const DMZ: PortId = PortId(2);

    #[test]
    fn an_id_goes_with_the_name_and_is_given_away_one_change_later() {
        let of = |names: &[&str]| config(names.iter().map(|name| policy(name)).collect());
        let ids = |ruleset: &Ruleset, names: &[&str]| -> Vec<u16> {
            let id = |name| ruleset.names().position(|known| known == name).unwrap() as u16;
            names.iter().map(|name| id(*name)).collect()
        };
        let first = Ruleset::new(&of(&["a", "b", "c"]));
        assert_eq!(ids(&first, &["a", "b", "c"]), [0, 1, 2]);
        let second = first.succeeded_by(&of(&["c", "d", "a"])).unwrap();
        assert_eq!(ids(&second, &["c", "d", "a"]), [2, 3, 0]);
        assert_eq!(second.place(PolicyId(1)), None, "b is no more");
        assert_eq!(second.place(PolicyId(3)), Some(1));
        let third = second.succeeded_by(&of(&["e", "f", "a"])).unwrap();
        assert_eq!(ids(&third, &["e", "f", "a"]), [1, 4, 0]);
        assert_eq!(third.place(PolicyId::NONE), None);
        let decided = third.decide(
            PortId(0),
            PortId(1),
            &key(Protocol::UDP, "10.0.0.1", "10.0.0.2", 1),
            false,
        );
        assert_eq!(decided.map(|d| d.policy), Some(PolicyId(1)));
    }

    #[test]
    fn the_first_match_decides_and_the_trace_says_why_not_the_others() {
        let https = Service {
            protocol: Protocol::TCP,
            ports: Some((443, 443)),
        };
        let ruleset = Ruleset::new(&config(vec![
            Policy {
                from: vec![WAN],
                ..policy("in")
            },
            Policy {
                to: vec![DMZ],
                ..policy("dmz")
            },
            Policy {
                source: nets(&["10.9.0.0/16"]),
                ..policy("source")
            },
            Policy {
                destination: nets(&["10.8.0.0/16"]),
                ..policy("destination")
            },
            Policy {
                service: vec![https],
                ..policy("service")
            },
            Policy {
                action: Action::Reject,
                nat: Nat::Egress,
                ..policy("rest")
            },
            policy("never"),
        ]));
        let key = key(Protocol::TCP, "10.0.0.1", "192.0.2.1", 80);
        let expected = Decision {
            policy: PolicyId(5),
            action: Action::Reject,
            nat: Nat::Egress,
        };
        assert_eq!(ruleset.decide(LAN, WAN, &key, false), Some(expected));
        let all = [
            Mismatch::From,
            Mismatch::To,
            Mismatch::Source,
            Mismatch::Destination,
            Mismatch::Service,
        ];
        for (most, first) in [(9, 0), (5, 0), (2, 3), (0, 5)] {
            let trace = ruleset.trace(LAN, WAN, &key, false, most);
            assert_eq!((trace.first, &trace.mismatches[..]), (first, &all[first..]));
        }
    }

    #[test]
    fn without_a_match_there_is_no_decision() {
        let ruleset = Ruleset::new(&config(vec![Policy {
            from: vec![WAN],
            ..policy("in")
        }]));
        let key = key(Protocol::UDP, "10.0.0.1", "192.0.2.1", 53);
        assert_eq!(ruleset.decide(LAN, WAN, &key, false), None);
        let trace = ruleset.trace(LAN, WAN, &key, false, 9);
        assert_eq!(trace.mismatches, [Mismatch::From]);
        assert!(ruleset.decide(WAN, LAN, &key, false).is_some());
    }

    #[test]
    fn services_match_protocol_and_destination_port() {
        let range = Service {
            protocol: Protocol::TCP,
            ports: Some((8000, 8099)),
        };
        let icmp = Service {
            protocol: Protocol::ICMP,
            ports: None,
        };
        let rule = Policy {
            service: vec![range, icmp],
            ..policy("p")
        };
        let ruleset = Ruleset::new(&config(vec![rule]));
        let allowed = |protocol, port| {
            ruleset
                .decide(
                    LAN,
                    WAN,
                    &key(protocol, "10.0.0.1", "10.0.0.2", port),
                    false,
                )
                .is_some()
        };
        assert!(allowed(Protocol::TCP, 8000) && allowed(Protocol::TCP, 8099));
        assert!(!allowed(Protocol::TCP, 7999) && !allowed(Protocol::TCP, 8100));
        assert!(!allowed(Protocol::UDP, 8000));
        assert!(allowed(Protocol::ICMP, 0));
    }

    #[test]
    fn any_of_one_family_does_not_match_the_other() {
        let only = |net: &str| {
            Ruleset::new(&config(vec![Policy {
                source: nets(&[net]),
                ..policy("p")
            }]))
        };
        let v4 = key(Protocol::TCP, "10.0.0.1", "10.0.0.2", 80);
        let v6 = key(Protocol::TCP, "fd00::1", "fd00::2", 80);
        assert!(only("0.0.0.0/0").decide(LAN, WAN, &v4, false).is_some());
        assert!(only("0.0.0.0/0").decide(LAN, WAN, &v6, false).is_none());
        assert!(only("::/0").decide(LAN, WAN, &v4, false).is_none());
        assert!(only("::/0").decide(LAN, WAN, &v6, false).is_some());
    }

    #[test]
    fn a_server_is_not_reached_past_its_forward_unless_a_policy_says_so() {
        let rules = |forwarded| {
            let mut config = config(vec![Policy {
                forwarded,
                ..policy("web")
            }]);
            config.forwards = vec![Forward {
                name: "f".into(),
                port: WAN,
                protocol: Protocol::TCP,
                external: (Addr::v4([192, 0, 2, 1]), 8000),
                last_external_port: 8002,
                internal: (Addr::v4([10, 0, 0, 1]), 80),
            }];
            Ruleset::new(&config)
        };
        let web = |port| key(Protocol::TCP, "192.0.2.9", "10.0.0.1", port);
        // Through the forward, past it, past it from another port than that of the forward, to
        // another service.
        for (forwarded, expected) in [
            (None, [true, false, true, true]),
            (Some(true), [true, false, false, false]),
            (Some(false), [false, true, true, true]),
        ] {
            let ruleset = rules(forwarded);
            let found = [
                ruleset.decide(WAN, LAN, &web(82), true),
                ruleset.decide(WAN, LAN, &web(82), false),
                ruleset.decide(DMZ, LAN, &web(82), false),
                ruleset.decide(WAN, LAN, &web(83), false),
            ];
            assert_eq!(found.map(|it| it.is_some()), expected, "{forwarded:?}");
        }
        let traced = rules(None).trace(WAN, LAN, &web(80), false, 9);
        assert_eq!(traced.mismatches, [Mismatch::Forwarded]);
        assert_ne!(rules(None).digest(), rules(Some(true)).digest());
    }

    #[test]
    fn the_digest_ignores_numbers_and_interfaces_only() {
        let rules = |from| {
            config(vec![
                Policy {
                    from,
                    ..policy("a")
                },
                policy("b"),
            ])
        };
        let digest = |config: &Config| Ruleset::new(config).digest();
        let one = rules(vec![LAN, WAN]);

        let mut renumbered = rules(vec![PortId(0), PortId(1)]);
        renumbered.ports = vec![port("wan", "ens3"), port("lan", "ens4"), port("x", "ens5")];
        assert_eq!(digest(&one), digest(&renumbered));

        let mut swapped = one.clone();
        swapped.policies.swap(0, 1);
        assert_ne!(digest(&one), digest(&swapped));
        assert_ne!(digest(&one), digest(&rules(vec![LAN])));
        let mut pool = one.clone();
        pool.nat_pools = vec![NatPool {
            name: "p".into(),
            addresses: vec![Addr::v4([192, 0, 2, 1])],
            ports: (1024, 65535),
        }];
        assert_ne!(digest(&one), digest(&pool));
    }

    #[test]
    fn the_digest_covers_multicast() {
        let tv = || MulticastPolicy {
            name: "tv".into(),
            from: vec![WAN],
            to: vec![LAN, DMZ],
            source: nets(&["198.51.100.0/24"]),
            group: nets(&["239.1.0.0/16", "ff05::/32"]),
            accepts: true,
            log: false,
            snat: false,
        };
        let join = |source| MulticastJoin {
            port: LAN,
            group: "239.1.1.1".parse::<IpAddr>().unwrap().into(),
            source,
        };
        let with = |policies, joins| {
            let mut config = config(vec![policy("a")]);
            (config.multicast_policies, config.multicast_joins) = (policies, joins);
            Ruleset::new(&config)
        };
        let one = with(vec![tv()], vec![join(None)]);
        let mut same = tv();
        (same.to, same.log) = (vec![DMZ, LAN], true);
        same.group.reverse();
        assert_eq!(one.digest(), with(vec![same], vec![join(None)]).digest());
        let source = Some(Addr::v4([198, 51, 100, 7]));
        let others: [fn(&mut MulticastPolicy); 6] = [
            |tv| tv.from = vec![DMZ],
            |tv| tv.to = vec![LAN],
            |tv| tv.source = Vec::new(),
            |tv| tv.group.truncate(1),
            |tv| tv.accepts = false,
            |tv| tv.snat = true,
        ];
        let others = others.map(|change| {
            let mut other = tv();
            change(&mut other);
            with(vec![other], vec![join(None)])
        });
        let joins = [vec![], vec![join(source)], vec![join(None), join(source)]];
        let joins = joins.map(|joins| with(vec![tv()], joins));
        for other in others.iter().chain(&joins) {
            assert_ne!(one.digest(), other.digest(), "{:?}", other.items());
            assert_ne!(one.items(), other.items());
        }
        let names: Vec<&str> = one.items().iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "multicast-join lan 239.1.1.1 any",
            "policy a",
            "multicast-policy tv",
        ];
        assert!(
            expected.iter().all(|name| names.contains(name)),
            "{names:?}"
        );
    }

    #[test]
    fn the_digest_is_the_same_in_every_build() {
        // Units of neighbouring versions compare it: changing this value changes the protocol.
        let mut config = config(vec![Policy {
            from: vec![WAN, LAN],
            source: nets(&["fd00::/8", "10.0.0.0/8"]),
            service: vec![Service {
                protocol: Protocol::TCP,
                ports: Some((80, 81)),
            }],
            nat: Nat::Pool(0),
            ..policy("a")
        }]);
        config.nat_pools = vec![NatPool {
            name: "p".into(),
            addresses: vec![Addr::v4([192, 0, 2, 1])],
            ports: (1024, 65535),
        }];
        config.forwards = vec![Forward {
            name: "f".into(),
            port: WAN,
            protocol: Protocol::TCP,
            external: (Addr::v4([192, 0, 2, 1]), 80),
            last_external_port: 80,
            internal: (Addr::v4([10, 0, 0, 1]), 8080),
        }];
        let ruleset = Ruleset::new(&config);
        let hex: String = ruleset
            .digest()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, "d4481a58d9a2fc679cb892ce6e66f707");
    }

    fn some_networks() -> impl Strategy<Value = Vec<IpNet>> {
        let network = (
            0u8..4,
            0u8..4,
            prop::sample::select(vec![0u8, 8, 16, 24, 32]),
        );
        let v4 = network
            .prop_map(|(b, c, length)| IpNet::new([10, b, c, 1].into(), length).unwrap().trunc());
        let v6 = (0u16..4, prop::sample::select(vec![0u8, 32, 64, 128])).prop_map(|(d, length)| {
            let ip = std::net::Ipv6Addr::new(0xfd00, d, 0, 0, 0, 0, 0, 1);
            IpNet::new(ip.into(), length).unwrap().trunc()
        });
        prop::collection::vec(prop_oneof![3 => v4, 1 => v6], 0..3)
    }

    fn some_services() -> impl Strategy<Value = Vec<Service>> {
        let ports = prop_oneof![
            Just(None),
            (0u16..4).prop_map(|port| Some((port, port))),
            (0u16..4).prop_map(|port| Some((port, port + 2))),
        ];
        let protocol = prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::ICMP]);
        let service = (protocol, ports).prop_map(|(protocol, ports)| Service { protocol, ports });
        prop::collection::vec(service, 0..3)
    }

    prop_compose! {
        fn some_policy()(
            source in some_networks(),
            destination in some_networks(),
            service in some_services(),
            from in prop::collection::vec((0u16..3).prop_map(PortId), 0..3),
            to in prop::collection::vec((0u16..3).prop_map(PortId), 0..3),
        ) -> Policy {
            Policy { source, destination, service, from, to, ..policy("") }
        }
    }

    fn some_addr() -> impl Strategy<Value = Addr> {
        prop_oneof![
            3 => (0u8..4, 0u8..4, 0u8..2).prop_map(|(b, c, d)| Addr::v4([10, b, c, d])),
            1 => (0u16..4).prop_map(|d| {
                Addr::from(IpAddr::from(std::net::Ipv6Addr::new(0xfd00, d, 0, 0, 0, 0, 0, 1)))
            }),
        ]
    }

    proptest! {
        #[test]
        fn index_finds_what_a_scan_finds(
            mut policies in prop::collection::vec(some_policy(), 32..400),
            flows in prop::collection::vec((some_addr(), some_addr(), 0u16..6, 0u16..3), 20),
        ) {
            for (number, policy) in policies.iter_mut().enumerate() {
                policy.name = number.to_string();
            }
            let ruleset = Ruleset::new(&config(policies));
            prop_assert!(ruleset.index.is_some());
            for (src, dst, dst_port, from) in flows {
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP] {
                    let key = FlowKey { src, dst, src_port: 1, dst_port, protocol };
                    let decided = ruleset.decide(PortId(from), WAN, &key, false);
                    let mut scan = ruleset.rules.iter();
                    let first = scan.find(|rule| rule.mismatch(PortId(from), WAN, &key, Way::Direct).is_none());
                    prop_assert_eq!(decided.map(|it| it.policy), first.map(|rule| rule.id));
                }
            }
        }
    }

    /// Wide policies that overlap in all conditions would need thousands of entries each.
    #[test]
    fn the_index_of_wide_policies_has_a_bounded_size() {
        let wide = |n: u16| {
            let ports = |step: u16| (0..40).map(|i| PortId((n + i * step) % 120)).collect();
            let services = (1..20).map(|i| {
                let first = n.wrapping_mul(i) % 60_000;
                Service {
                    protocol: Protocol::TCP,
                    ports: Some((first, first + 3000)),
                }
            });
            Policy {
                from: ports(3),
                to: ports(1),
                service: services.collect(),
                ..policy("")
            }
        };
        let policies: Vec<Policy> = (0..2000).map(wide).collect();
        let entries = Index::new(&policies).unwrap().size();
        assert!(entries < 2000 * 500, "{entries}");
    }

    /// Policies of which each tells flows apart by other conditions, and how many of them a
    /// decision about a flow that none accepts looks at.
    #[test]
    fn a_decision_looks_at_few_of_many_policies() {
        let net = |text: String| vec![text.parse().unwrap()];
        let tcp = |first, last| Service {
            protocol: Protocol::TCP,
            ports: Some((first, last)),
        };
        let [high, low] = [|n: u16| n / 71, |n: u16| n % 71];
        type Condition<'a> = &'a dyn Fn(u16) -> Policy;
        let kinds: [(&str, Condition<'_>); 8] = [
            ("sources", &|n| Policy {
                source: net(format!("10.1.{}.{}/32", n / 256, n % 256)),
                ..policy("")
            }),
            ("sources of IPv6", &|n| Policy {
                source: net(format!("fd00:{n:x}::/32")),
                ..policy("")
            }),
            ("services", &|n| Policy {
                service: vec![tcp(n + 1, n + 1)],
                ..policy("")
            }),
            ("ranges of ports", &|n| Policy {
                service: vec![tcp(8 * n + 1, 8 * n + 8)],
                ..policy("")
            }),
            ("ranges within each other", &|n| Policy {
                destination: net("198.51.100.0/24".into()),
                service: vec![tcp(1 + n, 20_000 - n)],
                ..policy("")
            }),
            ("pairs of networks", &|n| Policy {
                source: net(format!("10.1.{}.0/24", high(n))),
                destination: net(format!("198.51.{}.0/24", low(n))),
                ..policy("")
            }),
            ("pairs of gateway ports", &|n| Policy {
                from: vec![PortId(high(n))],
                to: vec![PortId(low(n))],
                ..policy("")
            }),
            ("networks within each other, by pairs", &|n| Policy {
                source: net(format!("10.1.2.3/{}", 8 + high(n) % 25)),
                destination: net(format!("198.51.{}.0/24", low(n))),
                service: vec![tcp(n + 1, n + 1)],
                ..policy("")
            }),
        ];
        for (what, condition) in kinds {
            let policies: Vec<Policy> = (0..5000).map(condition).collect();
            let index = Index::new(&policies).unwrap();
            let key = FlowKey {
                src: "10.1.2.3".parse::<IpAddr>().unwrap().into(),
                dst: "198.51.7.7".parse::<IpAddr>().unwrap().into(),
                src_port: 40_000,
                dst_port: 10_000,
                protocol: Protocol::TCP,
            };
            let mut looked_at = 0;
            let found = index.find(PortId(2), PortId(7), &key, |_| {
                looked_at += 1;
                false
            });
            assert_eq!(found, None);
            assert!(looked_at <= 64, "{looked_at} of 5000: {what}");
        }
    }

    proptest! {
        #[test]
        fn networks_agree_with_ipnet(ip in any::<IpAddr>(), net in any::<IpAddr>(), length in 0u8..=128, near in any::<bool>()) {
            let base = if near { ip } else { net };
            let length = if base.is_ipv4() { length % 33 } else { length };
            let net = IpNet::new(base, length).unwrap();
            let addr = Addr::from(ip);
            prop_assume!(ip.is_ipv4() || !addr.is_v4());
            prop_assert_eq!(Network::new(&net).contains(&addr), net.contains(&ip));
        }
    }
}
