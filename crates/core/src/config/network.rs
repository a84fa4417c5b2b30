//! `[[port]]` and `[[group]]`: the interfaces and the virtual addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::diagnostic::Report;
use super::names::{Names, check_interface, check_name, check_port_name};
use super::reader::{At, Span, Table};
use super::value::{BareAddress, LinkAddress, unusable, unusable_in};
use super::{Group, Ha, NatPool, Port, VirtualAddress, Weight, slots};
use crate::flow::{Addr, Family, GroupId, PortId};

/// The ports, and facts that other tables are checked against.
pub(super) struct Network {
    pub ports: Vec<Port>,
    pub port_names: Names,
    /// Whether all ports could be read: otherwise a missing address may be one of a wrong port.
    pub complete: bool,
    /// Where each virtual address stands in the file.
    places: Vec<Place>,
    group_headers: Vec<Span>,
    /// Those of each group, where they stand.
    weights: Vec<Vec<At<Weight>>>,
}

struct Place {
    port: usize,
    /// Its index in the port's list.
    index: usize,
    span: Span,
    /// Whether a unit can have this address.
    usable: bool,
    group: Option<usize>,
}

impl Network {
    /// The most of all ports together.
    const MOST_ADDRESSES: usize = 4096;

    /// Reads the ports.
    pub(super) fn read(root: &mut Table<'_>) -> Network {
        let report = root.report;
        let before = report.errors();
        let mut network = Network {
            ports: Vec::new(),
            port_names: Names::new("port"),
            complete: true,
            places: Vec::new(),
            group_headers: Vec::new(),
            weights: Vec::new(),
        };
        let mut interfaces = BTreeMap::new();
        for table in root.tables("port") {
            network.read_port(table, &mut interfaces);
        }
        if network.ports.is_empty() && report.errors() == before {
            let hint = "add a `[[port]]` with `name` and `interface`";
            report.error(&root.header, "there is no port", hint);
        }
        network.check_networks(report);
        network.complete = report.errors() == before;
        network
    }

    /// Reads the groups and puts each virtual address into its group.
    pub(super) fn read_groups(&mut self, root: &mut Table<'_>) -> Vec<Group> {
        let report = root.report;
        let before = report.errors();
        let mut names = Names::new("group");
        let mut groups = Vec::new();
        for mut table in root.tables("group") {
            let name = table.require::<String>("name");
            check_name(report, name.as_ref());
            names.declare(report, name.as_ref(), groups.len());
            self.assign(&mut table, groups.len());
            let mut group = Group {
                name: name.map_or_else(String::new, |name| name.value),
                ..Group::default()
            };
            table.fill(&mut group);
            let weights = table.list::<Weight>("weights");
            group.weights = weights.iter().map(|weight| weight.value.clone()).collect();
            self.weights.push(weights);
            groups.push(group);
            self.group_headers.push(table.header.clone());
            table.finish();
        }
        if groups.is_empty() {
            return vec![Group {
                name: "default".to_owned(),
                ..Group::default()
            }];
        }
        if report.errors() == before && self.complete {
            for place in self.places.iter().filter(|place| place.group.is_none()) {
                let addr = self.ports[place.port].virtual_addresses[place.index].addr;
                let hint = "name it, or its port, in a `[[group]]`";
                report.error(&place.span, format!("`{addr}` is in no group"), hint);
            }
        }
        groups
    }

    /// Adds the slots of the groups that are cut.
    pub(super) fn cut(
        &self,
        report: &Report,
        groups: &mut Vec<Group>,
        pools: &[NatPool],
        unit: (&str, Option<&Ha>),
    ) {
        slots::check_weights(report, groups, &self.weights, unit);
        slots::expand(report, groups, &self.group_headers, unit);
        slots::check_pools(report, groups, &self.group_headers, pools, &self.ports);
    }

    /// Warns of groups in a config without `[ha]`.
    pub(super) fn warn_of_groups(&self, report: &Report) {
        if let Some(header) = self.group_headers.first() {
            let hint = "remove the groups, or add `[ha]`";
            report.warn(header, "groups have no effect without `[ha]`", hint);
        }
    }

    /// Whether `port` has a virtual address of `family`.
    pub(super) fn has_family(&self, port: PortId, family: Family) -> bool {
        let port = self.ports.get(port.index());
        port.is_some_and(|port| {
            let addresses = &port.virtual_addresses;
            let mut routed = addresses.iter().filter(|v| !v.addr.is_link_local());
            routed.any(|v| v.addr.family() == family)
        })
    }

    /// The ports, whose link-local addresses are apart from the others.
    pub(super) fn into_ports(mut self) -> Vec<Port> {
        for port in &mut self.ports {
            let link_local = |own: &mut VirtualAddress| own.addr.is_link_local();
            port.link_local = port.virtual_addresses.extract_if(.., link_local).collect();
        }
        self.ports
    }

    /// The port that has this virtual address.
    pub(super) fn port_of(&self, addr: Addr) -> Option<PortId> {
        let has = |port: &Port| port.virtual_addresses.iter().any(|v| v.addr == addr);
        self.ports.iter().position(has).map(port_id)
    }

    /// As [`group_of`].
    pub(super) fn group_of(&self, addr: Addr) -> GroupId {
        group_of(&self.ports, addr)
    }

    /// The networks of all ports.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.ports.iter().flat_map(|port| &port.virtual_addresses);
        addresses.map(|address| address.network)
    }

    /// The ids of all ports.
    pub(super) fn all(&self) -> Vec<PortId> {
        (0..self.ports.len()).map(port_id).collect()
    }

    /// The ids of the named ports.
    pub(super) fn resolve(&self, report: &Report, names: &[At<String>]) -> Vec<PortId> {
        let indices = self.port_names.resolve_all(report, names);
        indices.into_iter().map(port_id).collect()
    }

    fn read_port(&mut self, mut table: Table<'_>, interfaces: &mut BTreeMap<String, usize>) {
        let report = table.report;
        let index = self.ports.len();
        let name = table.require::<String>("name");
        check_port_name(report, name.as_ref());
        self.port_names.declare(report, name.as_ref(), index);
        let interface = table.require::<String>("interface");
        check_interface(report, interface.as_ref());
        if let Some(At { value, span }) = &interface
            && let Some(other) = interfaces.insert(value.clone(), index)
        {
            let message = format!("port `{}` has the same interface", self.ports[other].name);
            report.error(span, message, "each port needs an interface of its own");
        }
        let listed = table.list::<LinkAddress>("virtual-addresses");
        let room = Self::MOST_ADDRESSES.saturating_sub(self.places.len());
        if let Some(surplus) = listed.get(room) {
            let message = format!(
                "more than {} virtual addresses in all",
                Self::MOST_ADDRESSES
            );
            report.error(&surplus.span, message, "");
        }
        let mut virtual_addresses = Vec::new();
        for At { value, span } in listed.into_iter().take(room) {
            let before = report.errors();
            check_virtual_address(report, value.0, &span);
            self.places.push(Place {
                port: index,
                index: virtual_addresses.len(),
                span,
                usable: report.errors() == before,
                group: None,
            });
            virtual_addresses.push(VirtualAddress {
                addr: Addr::from(value.0.addr()),
                network: value.0.trunc(),
                group: GroupId(0),
            });
        }
        let mut port = Port {
            name: name.map_or_else(String::new, |name| name.value),
            interface: interface.map_or_else(String::new, |name| name.value),
            virtual_addresses,
            ..Port::default()
        };
        table.fill(&mut port);
        self.ports.push(port);
        table.finish();
    }

    /// Each virtual address exists once, and no network is on two ports.
    fn check_networks(&self, report: &Report) {
        let mut known: BTreeMap<Addr, usize> = BTreeMap::new();
        let mut link_local: BTreeSet<(usize, Addr)> = BTreeSet::new();
        let mut networks: BTreeMap<(usize, IpNet), ()> = BTreeMap::new();
        for place in self.places.iter().filter(|place| place.usable) {
            let VirtualAddress { addr, network, .. } =
                self.ports[place.port].virtual_addresses[place.index];
            // Each link has link-local addresses of its own.
            if addr.is_link_local() {
                if !link_local.insert((place.port, addr)) {
                    let message = format!("`{addr}` is a virtual address of this port already");
                    report.error(&place.span, message, "");
                }
                continue;
            }
            if let Some(port) = known.insert(addr, place.port) {
                let message = format!(
                    "`{addr}` is a virtual address of port `{}` already",
                    self.ports[port].name
                );
                report.error(&place.span, message, "");
                continue;
            }
            if networks.insert((place.port, network), ()).is_some() {
                continue;
            }
            let overlaps = |(port, other): &&(usize, IpNet)| {
                *port != place.port && (other.contains(&network) || network.contains(other))
            };
            if let Some((port, other)) = networks.keys().find(overlaps) {
                let message = format!(
                    "the network {network} overlaps {other} of port `{}`",
                    self.ports[*port].name
                );
                let hint = "the kernel could not tell which port a host is on";
                report.error(&place.span, message, hint);
            }
        }
    }

    /// Puts the ports and virtual addresses that `table`, a group, names into it.
    fn assign(&mut self, table: &mut Table<'_>, group: usize) {
        let report = table.report;
        let ports = table.list::<String>("ports");
        let addresses = table.list::<BareAddress>("virtual-addresses");
        if ports.is_empty() && addresses.is_empty() {
            let hint = "name its `virtual-addresses`, or `ports`";
            report.warn(&table.header, "the group has no virtual addresses", hint);
        }
        for name in &ports {
            let Some(port) = self.port_names.resolve(report, name) else {
                continue;
            };
            for place in 0..self.places.len() {
                if self.places[place].port == port {
                    self.join(report, place, group, &name.span);
                }
            }
        }
        for At { value, span } in &addresses {
            let addr = Addr::from(value.0);
            let is_it =
                |place: &Place| self.ports[place.port].virtual_addresses[place.index].addr == addr;
            match self.places.iter().position(is_it) {
                Some(place) => self.join(report, place, group, span),
                None if self.complete => {
                    let message = format!("`{addr}` is not a virtual address of a port");
                    report.error(span, message, "add it to a `[[port]]`");
                }
                None => {}
            }
        }
    }

    fn join(&mut self, report: &Report, place: usize, group: usize, span: &Span) {
        let place = &mut self.places[place];
        let address = &mut self.ports[place.port].virtual_addresses[place.index];
        if place.group.replace(group).is_some() {
            let message = format!("`{}` is in a group already", address.addr);
            report.error(span, message, "each virtual address belongs to one group");
            return;
        }
        address.group = GroupId(u8::try_from(group).unwrap_or(u8::MAX));
    }
}

/// The group that an address of the gateway moves with: a virtual address with its own, one of a
/// pool with the first one on whose network it is. So each group can have pools on a port that
/// several groups share.
pub(crate) fn group_of(ports: &[Port], addr: Addr) -> GroupId {
    let ip = std::net::IpAddr::from(addr);
    let addresses = || ports.iter().flat_map(|port| &port.virtual_addresses);
    let on_network = || {
        let near = addresses().filter(|own| own.network.contains(&ip));
        near.min_by_key(|own| Reverse(own.network.prefix_len()))
    };
    let address = addresses().find(|own| own.addr == addr).or_else(on_network);
    address.map_or(GroupId(0), |address| address.group)
}

/// The id of the port at `index`, of which there are at most 512.
pub(super) fn port_id(index: usize) -> PortId {
    PortId::from_index(index)
}

fn check_virtual_address(report: &Report, address: IpNet, span: &Span) {
    const HINT: &str = "give an address of the link that no machine has as its own";
    let addr = address.addr();
    let is_router = matches!(addr, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    if let Some(why) = unusable(addr).filter(|_| !is_router) {
        let hint = match why {
            "a link-local address" => "give a global address, or a private one",
            _ => HINT,
        };
        report.error(span, format!("`{addr}` is {why}"), hint);
    } else if let Some(why) = unusable_in(address, addr) {
        report.error(
            span,
            format!("`{addr}` is {why} of {}", address.trunc()),
            HINT,
        );
    } else if address.prefix_len() == 0 {
        let hint = "write the prefix length of the link";
        report.error(
            span,
            format!("`{address}` is on a link with all addresses"),
            hint,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    #[test]
    fn a_pool_moves_with_the_group_whose_network_it_is_in() {
        let text = r#"
            [node]
            name = "a"
            [[port]]
            name = "wan"
            interface = "eth1"
            virtual-addresses = ["10.0.1.1/24", "10.0.2.1/24", "10.0.2.129/25", "10.0.2.4/24"]
            [[group]]
            name = "one"
            virtual-addresses = ["10.0.1.1"]
            [[group]]
            name = "two"
            virtual-addresses = ["10.0.2.1", "10.0.2.4"]
            [[group]]
            name = "three"
            virtual-addresses = ["10.0.2.129"]
        "#;
        let (config, _) = parse(Path::new("a.toml"), text).expect("a config");
        let group = |last: [u8; 4]| group_of(&config.ports, Addr::v4(last)).0;
        assert_eq!(group([10, 0, 1, 9]), 0);
        assert_eq!(
            group([10, 0, 2, 9]),
            1,
            "not that of the first address of the port"
        );
        assert_eq!(group([10, 0, 2, 200]), 2, "the narrowest network counts");
        assert_eq!(group([10, 9, 9, 9]), 0, "on no network");
    }
}
