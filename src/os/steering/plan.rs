//! The routes and rules that must be in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::detour::IPV6_MTU;
use super::forwarding::is_forwarding;
use super::survey::Survey;
use super::{
    IcmpKinds, KernelLink, KernelRoute, METRIC, METRIC_BLACKHOLE, PROTOCOL,
    PROTOCOL_FORWARDING_WAS_OFF, Rule, SysctlError, TABLE_MAIN, TABLES, default_network, is_ours,
    net_family, sysctl,
};
use crate::os::barrier::error_mark;
use crate::os::netlink::Address;
use tandemgw_core::config::{Config, Nat};
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::gateway::HOP_LIMIT_OF_ERRORS;

/// The routes and rules that must be in place.
pub(super) struct Plan {
    pub(super) first_table: u32,
    pub(super) families: Vec<Family>,
    pub(super) ports: Vec<PortPlan>,
}

pub(super) struct PortPlan {
    pub(super) id: PortId,
    pub(super) interface: String,
    /// The number of its TUN device.
    pub(super) tun: u32,
    /// The name of its TUN device.
    pub(super) tun_name: String,
    pub(super) table: u32,
    /// The group of its TUN device, and of its interface, unless somebody has set another one.
    pub(super) group: u32,
    /// Protocol number of the rule of each family.
    pub(super) marks: [u8; 2],
    /// Addresses that are translated to, or answered for, at this port.
    pub(super) addresses: Vec<IpNet>,
    /// Networks that the hosts of this port are in.
    pub(super) networks: Vec<IpNet>,
}

impl Plan {
    pub(super) fn new(config: &Config, tuns: &[u32]) -> Plan {
        let mut homes: BTreeMap<usize, Vec<IpNet>> = BTreeMap::new();
        for (addr, home) in address_homes(config) {
            homes
                .entry(home)
                .or_default()
                .push(IpAddr::from(addr).into());
        }
        let mut port = |(index, port): (usize, &tandemgw_core::config::Port)| {
            let id = PortId::from_index(index);
            let networks: BTreeSet<IpNet> = port
                .virtual_addresses
                .iter()
                .map(|address| address.network.trunc())
                .filter(|network| network.prefix_len() < network.max_prefix_len())
                .collect();
            Some(PortPlan {
                id,
                interface: port.interface.clone(),
                tun_name: format!("tgw-{}", port.name),
                tun: *tuns.get(index)?,
                table: config.node.routing_table.saturating_add(id.0.into()),
                group: error_mark(config.node.routing_table),
                marks: [PROTOCOL; 2],
                addresses: homes.remove(&index).unwrap_or_default(),
                networks: networks.into_iter().collect(),
            })
        };
        Plan {
            first_table: config.node.routing_table,
            families: Family::ALL
                .into_iter()
                .filter(|f| sysctl::has_family(*f))
                .collect(),
            ports: config
                .ports
                .iter()
                .enumerate()
                .filter_map(&mut port)
                .collect(),
        }
    }

    /// Marks the rules with what is to be restored: as a process before this one has marked them,
    /// or as it is now.
    pub(super) fn remember_forwarding(&mut self, survey: &Survey) -> Result<(), SysctlError> {
        for port in &mut self.ports {
            for family in &self.families {
                let is_left = |rule: &&Rule| {
                    is_ours(rule)
                        && rule.family == *family
                        && rule.interface.as_ref() == Some(&port.interface)
                };
                port.marks[*family as usize] = match survey.rules.iter().find(is_left) {
                    Some(rule) => rule.protocol,
                    None if is_forwarding(*family, &port.interface)? => PROTOCOL,
                    None => PROTOCOL_FORWARDING_WAS_OFF,
                };
            }
        }
        Ok(())
    }

    /// These lead what the kernel says about packets of the gateway to the gateway, by the TUN
    /// device of the first port: errors that the barrier has marked, and without its help those
    /// that can't be about packets to this machine itself, unless they go to another interface than
    /// a port: what this machine forwards elsewhere is its own matter.
    pub(super) fn rules_for_errors(&self, family: Family) -> impl Iterator<Item = Rule> {
        // In the order in which they apply.
        let [of_mark, elsewhere, to_ports] =
            [3, 2, 1].map(|before| self.first_table.saturating_sub(before).max(1));
        // Packets of this machine itself.
        let own = Some("lo".to_owned());
        let rule = Rule::leading(family, to_ports, own, self.first_table, PROTOCOL);
        let marked = Rule {
            priority: of_mark,
            mark: Some(error_mark(self.first_table)),
            ..rule.clone()
        };
        let group = error_mark(self.first_table);
        let of_kinds = never_about_itself(family).iter().flat_map(move |kinds| {
            let to_ports = Rule {
                icmp: Some(*kinds),
                ..rule.clone()
            };
            let elsewhere = Rule {
                priority: elsewhere,
                table: TABLE_MAIN,
                but_for_group: Some(group),
                ..to_ports.clone()
            };
            [elsewhere, to_ports]
        });
        [marked].into_iter().chain(of_kinds)
    }

    pub(super) fn is_rule(&self, rule: &Rule) -> bool {
        self.ports.iter().any(|port| port.is_my_rule(rule))
            || self.rules_for_errors(rule.family).any(|it| it == *rule)
    }

    pub(super) fn is_table(&self, number: u32) -> bool {
        number
            .checked_sub(self.first_table)
            .is_some_and(|offset| offset < TABLES.max(self.ports.len() as u32))
    }

    /// Destination and table of each route that may be in place.
    pub(super) fn destinations(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.ports.iter().flat_map(|port| {
            let main = port.addresses.iter().chain(&port.networks);
            let table = Family::ALL.map(|family| (default_network(family), port.table));
            main.map(|network| (*network, TABLE_MAIN)).chain(table)
        })
    }
}

impl PortPlan {
    pub(super) fn blackhole(&self, family: Family) -> KernelRoute {
        let all = default_network(family);
        KernelRoute::blackhole(all, self.table, METRIC_BLACKHOLE, PROTOCOL)
    }

    pub(super) fn rule(&self, family: Family) -> Rule {
        let interface = Some(self.interface.clone());
        let mark = self.marks[family as usize];
        Rule::leading(family, self.table, interface, self.table, mark)
    }

    /// Routes to the networks of this port to which the kernel has none but can have one: it has no
    /// address in them, or they are not `is_routed`, since somebody has removed what came with the
    /// address.
    pub(super) fn network_routes(
        &self,
        families: &[Family],
        link: &KernelLink,
        addresses: &[Address],
        mut is_routed: impl FnMut(&IpNet) -> bool,
    ) -> Vec<KernelRoute> {
        let has_address_in = |network: &IpNet| {
            addresses.iter().any(|address| {
                let own = IpNet::new(address.addr, address.prefix_len);
                address.link == link.index && own.is_ok_and(|own| own.trunc().contains(network))
            })
        };
        let can_have = |network: &&IpNet| link.admin_up && can_carry(link, net_family(network));
        let networks = self.networks.iter().filter(can_have);
        networks
            .filter(|network| families.contains(&net_family(network)))
            .filter(|network| !has_address_in(network) || !is_routed(network))
            .map(|network| KernelRoute::on_link(*network, TABLE_MAIN, METRIC, PROTOCOL, link.index))
            .collect()
    }

    /// To the TUN device: better than the blackhole. By the hop limit the gateway knows what this
    /// machine itself has sent.
    pub(super) fn default_route(&self, family: Family) -> KernelRoute {
        let all = default_network(family);
        KernelRoute {
            hop_limit: Some(HOP_LIMIT_OF_ERRORS.into()),
            ..KernelRoute::on_link(all, self.table, METRIC, PROTOCOL, self.tun)
        }
    }

    pub(super) fn is_my_rule(&self, rule: &Rule) -> bool {
        rule.interface.as_ref() == Some(&self.interface)
            && rule.table == self.table
            && rule.priority == self.table
            && !rule.is_choosy()
            && !rule.special
    }

    pub(super) fn tun_routes(&self, families: &[Family]) -> Vec<KernelRoute> {
        let defaults = families.iter().map(|f| self.default_route(*f));
        let addresses = self.addresses.iter().map(|a| self.address_route(*a));
        defaults
            .chain(addresses)
            .filter(|route| families.contains(&net_family(&route.destination)))
            .collect()
    }
}

/// What the kernel says only of packets that it forwards: that a host does not answer, that the
/// packet is too big, that no hop is left.
fn never_about_itself(family: Family) -> &'static [IcmpKinds] {
    const fn kind(number: u8, code: u8) -> u16 {
        (number as u16) << 8 | code as u16
    }
    const fn only(number: u8, code: u8) -> IcmpKinds {
        IcmpKinds(kind(number, code), kind(number, code))
    }
    match family {
        Family::V4 => const { &[only(3, 1), only(3, 4), only(11, 0)] },
        Family::V6 => const { &[only(1, 3), IcmpKinds(kind(2, 0), kind(3, 0))] },
    }
}

/// Whether the kernel has the family on a link at all.
pub(super) fn can_carry(link: &KernelLink, family: Family) -> bool {
    family == Family::V4 || link.mtu >= IPV6_MTU
}

/// The port at which each address that the gateway translates to or answers for is at home.
fn address_homes(config: &Config) -> BTreeMap<Addr, usize> {
    let mut homes = BTreeMap::new();
    let holds = |addr: Addr| {
        let ip = IpAddr::from(addr);
        config.ports.iter().position(|port| {
            let mut networks = port.virtual_addresses.iter().map(|v| v.network);
            networks.any(|network| network.contains(&ip))
        })
    };
    for (index, pool) in config.nat_pools.iter().enumerate() {
        let mut users = config.policies.iter().filter(|p| p.nat == Nat::Pool(index));
        let first = users
            .find_map(|policy| policy.to.first())
            .map_or(0, |port| port.index());
        for addr in &pool.addresses {
            homes.insert(*addr, holds(*addr).unwrap_or(first));
        }
    }
    for forward in &config.forwards {
        let addr = forward.external.0;
        homes.insert(addr, holds(addr).unwrap_or(forward.port.index()));
    }
    for (index, port) in config.ports.iter().enumerate() {
        homes.extend(port.virtual_addresses.iter().map(|v| (v.addr, index)));
    }
    homes
}
