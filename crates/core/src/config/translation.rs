//! `[[nat-pool]]` and `[[forward]]`: source and destination translation.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::aliases::Aliases;
use super::diagnostic::Report;
use super::names::{Names, check_name};
use super::network::{Network, port_id};
use super::reader::{At, Span, Table};
use super::value::{AddressRange, Endpoints, PortRange, unusable, unusable_in};
use super::{Forward, NatPool};
use crate::flow::{Addr, Family, PortId, Protocol};

/// The pools, and facts that other tables are checked against.
pub(super) struct Pools {
    pub pools: Vec<NatPool>,
    pub names: Names,
    /// Whether all pools could be read.
    pub complete: bool,
    /// The last pool with each address, and its ports.
    users: BTreeMap<Addr, (usize, (u16, u16))>,
}

impl Pools {
    const MOST_ADDRESSES: u128 = 4096;

    /// Whether a pool has an address of `family`.
    pub(super) fn has_family(&self, pool: usize, family: Family) -> bool {
        let pool = self.pools.get(pool);
        pool.is_some_and(|pool| pool.addresses.iter().any(|addr| addr.family() == family))
    }

    fn read_pool(
        &mut self,
        mut table: Table<'_>,
        network: &Network,
        aliases: &Aliases,
        left: &mut u128,
    ) {
        let report = table.report;
        let index = self.pools.len();
        let name = table.require::<String>("name");
        check_name(report, name.as_ref());
        self.names.declare(report, name.as_ref(), index);
        let ports = table.take::<PortRange>("ports");
        let ports = ports.map_or((1, 1), |at| (at.value.0, at.value.1));
        let before = report.errors();
        let ranges = aliases.list::<AddressRange>(&mut table, "addresses");
        if ranges.is_empty() && report.errors() == before {
            report.error(&table.header, "the pool has no addresses", "");
        }
        let mut addresses = Vec::new();
        for At { value, span } in ranges {
            let Some(rest) = left.checked_sub(value.len()) else {
                let message = format!(
                    "the pools have more than {} addresses",
                    Self::MOST_ADDRESSES
                );
                report.error(&span, message, "");
                continue;
            };
            *left = rest;
            check_range(report, value, &span, network);
            let before = addresses.len();
            for addr in value.iter().map(Addr::from) {
                self.claim(report, addr, index, ports, &span);
                addresses.push(addr);
            }
            check_group(report, &addresses, before, &span, network);
        }
        self.pools.push(NatPool {
            name: name.map_or_else(String::new, |name| name.value),
            addresses,
            ports,
        });
        table.finish();
    }

    /// Checks that two pools with the same address share no port of it.
    fn claim(&mut self, report: &Report, addr: Addr, pool: usize, ports: (u16, u16), span: &Span) {
        let Some((other, taken)) = self.users.insert(addr, (pool, ports)) else {
            return;
        };
        if other == pool {
            report.error(span, format!("`{addr}` is in the pool already"), "");
        } else if ports.0 <= taken.1 && taken.0 <= ports.1 {
            let message = format!("`{addr}` is in pool `{}` already", self.pools[other].name);
            let hint = "give the pools addresses of their own, or `ports` that do not overlap";
            report.error(span, message, hint);
        }
    }
}

/// Reads the pools.
pub(super) fn read_pools(root: &mut Table<'_>, network: &Network, aliases: &Aliases) -> Pools {
    let before = root.report.errors();
    let mut pools = Pools {
        pools: Vec::new(),
        names: Names::new("NAT pool"),
        complete: true,
        users: BTreeMap::new(),
    };
    let mut left = Pools::MOST_ADDRESSES;
    for table in root.tables("nat-pool") {
        pools.read_pool(table, network, aliases, &mut left);
    }
    pools.complete = root.report.errors() == before;
    pools
}

/// Reads the forwards.
pub(super) fn read_forwards(
    root: &mut Table<'_>,
    network: &Network,
    pools: &Pools,
    aliases: &Aliases,
) -> Vec<Forward> {
    let mut names = Names::new("forward");
    let mut taken = Taken::default();
    let mut forwards: Vec<Forward> = Vec::new();
    for mut table in root.tables("forward") {
        let report = table.report;
        let name = table.require::<String>("name");
        check_name(report, name.as_ref());
        names.declare(report, name.as_ref(), forwards.len());
        let port = table.require::<String>("port");
        let port = port.and_then(|port| network.port_names.resolve(report, &port));
        let protocol = table.choice("protocol").map(|word| match word.value {
            "udp" => Protocol::UDP,
            _ => Protocol::TCP,
        });
        let external = aliases.endpoints(&mut table, "external");
        let internal = aliases.endpoints(&mut table, "internal");
        table.finish();
        if let (Some(external), Some(port)) = (&external, port) {
            check_external(report, external, port_id(port), network, pools);
        }
        if let Some(internal) = &internal {
            check_internal(report, internal, external.as_ref(), network);
        }
        if let (Some(external), Some(protocol)) = (&external, protocol) {
            if let Some(other) = taken.insert(protocol, external.value, forwards.len()) {
                let other = &forwards[other].name;
                let message = format!("forward `{other}` has the same external address and port");
                report.error(&external.span, message, "");
            }
            if taken.ports > Taken::MOST_PORTS {
                let message = format!("more than {} external ports in all", Taken::MOST_PORTS);
                report.error(&external.span, message, "");
            }
        }
        let none = (Addr::unspecified(Family::V4), 0);
        let last_external_port = external.as_ref().map_or(0, |at| at.value.last);
        forwards.push(Forward {
            name: name.map_or_else(String::new, |name| name.value),
            port: port.map_or(PortId(0), port_id),
            protocol: protocol.unwrap_or(Protocol::TCP),
            external: external.map_or(none, |at| endpoint(at.value)),
            last_external_port,
            internal: internal.map_or(none, |at| endpoint(at.value)),
        });
    }
    forwards
}

fn check_range(report: &Report, range: AddressRange, span: &Span, network: &Network) {
    let AddressRange { first, last } = range;
    for addr in [first, last] {
        let on_link = network.networks().find(|net| net.contains(&addr));
        let why = unusable(addr).or_else(|| on_link.and_then(|net| unusable_in(net, addr)));
        if let Some(why) = why {
            report.error(span, format!("`{addr}` is {why}"), "");
            return;
        }
    }
    let on_link = network
        .networks()
        .any(|net| net.contains(&first) && net.contains(&last));
    if !on_link && network.complete {
        let hint = "hosts on the link ask only for addresses of their network: \
                    the others need a route to the gateway";
        let message = "the addresses are outside the networks of all ports";
        report.warn(span, message, hint);
    }
}

/// A session moves with its translated address, whichever of the pool that is.
fn check_group(report: &Report, addresses: &[Addr], new: usize, span: &Span, network: &Network) {
    let Some(first) = addresses.first() else {
        return;
    };
    let group = network.group_of(*first);
    let mut new = addresses.iter().skip(new);
    if let Some(other) = new.find(|addr| network.group_of(**addr) != group) {
        let message = format!("`{other}` is in another group than `{first}`");
        let hint = "give each group a pool of its own virtual addresses";
        report.error(span, message, hint);
    }
}

fn check_external(
    report: &Report,
    external: &At<Endpoints>,
    port: PortId,
    network: &Network,
    pools: &Pools,
) {
    let addr = Addr::from(external.value.addr);
    let own = network.port_of(addr) == Some(port);
    if own || pools.users.contains_key(&addr) || !(network.complete && pools.complete) {
        return;
    }
    let name = &network.ports[port.index()].name;
    let hint = match network.port_of(addr) {
        Some(other) => format!("it is one of port `{}`", network.ports[other.index()].name),
        None => "add it to the port, or to a `[[nat-pool]]`".to_owned(),
    };
    let message = format!("`{addr}` is not a virtual address of port `{name}`");
    report.error(&external.span, message, hint);
}

fn check_internal(
    report: &Report,
    internal: &At<Endpoints>,
    external: Option<&At<Endpoints>>,
    network: &Network,
) {
    let At { value, span } = internal;
    let more = |ends: &Endpoints| ends.last - ends.first;
    let fits = |external: &At<Endpoints>| {
        let more_outside = more(&external.value);
        let is_first = more(value) == 0 && value.first.checked_add(more_outside).is_some();
        is_first || more(value) == more_outside
    };
    if let Some(why) = unusable(value.addr) {
        report.error(
            span,
            format!("`{}` is {why}", value.addr),
            "give the server's address",
        );
    } else if external.is_some_and(|external| external.value.addr.is_ipv4() != value.addr.is_ipv4())
    {
        let hint = "give both in the same address family";
        report.error(span, "a forward can't change between IPv4 and IPv6", hint);
    } else if network.port_of(Addr::from(value.addr)).is_some() {
        let message = format!("`{}` is a virtual address of the gateway", value.addr);
        report.error(span, message, "give the server's address");
    } else if !external.is_none_or(fits) {
        let hint = "give its first port, or a range of the same length";
        report.error(
            span,
            "the internal ports are not as many as the external ones",
            hint,
        );
    }
}

fn endpoint(ends: Endpoints) -> (Addr, u16) {
    (Addr::from(ends.addr), ends.first)
}

/// The external ends of the forwards so far, each with the place of its forward.
#[derive(Default)]
struct Taken {
    /// By protocol, address and first port: the last port, and the forward.
    ranges: BTreeMap<(Protocol, IpAddr, u16), (u16, usize)>,
    ports: usize,
}

impl Taken {
    /// As many ports as an address has: a limit on the memory of all forwards together, and on the
    /// time of a reload.
    const MOST_PORTS: usize = 65_535;

    /// Adds a range, unless it shares a port with another; then returns the place of that one.
    fn insert(&mut self, protocol: Protocol, ends: Endpoints, place: usize) -> Option<usize> {
        let key = |port| (protocol, ends.addr, port);
        let mut before = self.ranges.range(key(0)..=key(ends.last));
        if let Some((_, (last, other))) = before.next_back()
            && *last >= ends.first
        {
            return Some(*other);
        }
        self.ranges.insert(key(ends.first), (ends.last, place));
        self.ports += usize::from(ends.last - ends.first) + 1;
        None
    }
}
