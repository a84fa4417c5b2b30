//! Routes to the addresses of the gateway and to the networks of its ports, when these change while
//! it runs.

use std::collections::{BTreeMap, VecDeque};

use ipnet::IpNet;

use super::{
    KernelRoute, METRIC, NetlinkError, PROTOCOL, Plan, PortPlan, Steering, TABLE_MAIN, link_local,
    net_family,
};
use tandemgw_core::config::Config;
use tandemgw_core::in_quotes::InQuotes;

/// A change of the routes to addresses of the gateway, or to networks of its ports.
#[derive(Debug)]
pub enum RouteEdit {
    /// The address or network is new.
    Add(KernelRoute),
    /// It was removed.
    Remove(KernelRoute),
}

impl Steering {
    /// The changes needed for new addresses, in a config with the same ports. Carry them out one
    /// after the other with [`carry_out`](Self::carry_out).
    pub fn readdress(&mut self, config: &Config) -> VecDeque<RouteEdit> {
        let plan = &mut self.plan;
        let tuns: Vec<u32> = plan.ports.iter().map(|port| port.tun).collect();
        let wanted = Plan::new(config, &tuns);
        let routes = |plan: &Plan| -> BTreeMap<(IpNet, u32), KernelRoute> {
            let addresses = plan.ports.iter().flat_map(|port| {
                let route = |addr: &IpNet| ((*addr, port.tun), port.address_route(*addr));
                port.addresses.iter().map(route)
            });
            addresses
                .filter(|((addr, _), _)| plan.families.contains(&net_family(addr)))
                .collect()
        };
        let (before, after) = (routes(plan), routes(&wanted));
        let gone = before.iter().filter(|(key, _)| !after.contains_key(key));
        let new = after.iter().filter(|(key, _)| !before.contains_key(key));
        let changes: VecDeque<RouteEdit> = gone
            .map(|(_, route)| RouteEdit::Remove(route.clone()))
            .chain(new.map(|(_, route)| RouteEdit::Add(route.clone())))
            .collect();
        let networks: Vec<Vec<IpNet>> = (plan.ports.iter_mut().zip(wanted.ports))
            .map(|(port, wanted)| {
                port.addresses = wanted.addresses;
                std::mem::replace(&mut port.networks, wanted.networks)
            })
            .collect();
        let routes = self.follow_networks(networks).unwrap_or_else(|error| {
            let error = InQuotes(&error);
            log::warn!("routes to networks not changed error={error} effect=\"an audit does it\"");
            Vec::new()
        });
        let indexes: BTreeMap<String, u32> = self
            .barrier
            .posts()
            .iter()
            .filter_map(|post| Some((post.interface.clone(), post.index?)))
            .collect();
        self.raise_barrier(|name| indexes.get(name).copied());
        routes.into_iter().chain(changes).collect()
    }

    /// The changes of routes to the networks of ports, which were these `before`. An interface with
    /// its first IPv6 network gets an address there.
    fn follow_networks(&mut self, before: Vec<Vec<IpNet>>) -> Result<Vec<RouteEdit>, NetlinkError> {
        let (netlink, plan) = (&mut self.netlink, &mut self.plan);
        let changed = plan.ports.iter_mut().zip(before);
        let mut changed = changed
            .filter(|(port, before)| port.networks != *before)
            .peekable();
        let mut edits = Vec::new();
        if changed.peek().is_none() {
            return Ok(edits);
        }
        let links = netlink.links()?;
        for (port, before) in changed {
            let Some(link) = links.iter().find(|link| link.name == port.interface) else {
                continue;
            };
            let addresses = netlink.addresses_of(link.index)?;
            link_local::ensure(netlink, port, link, &addresses);
            let routes = |port: &PortPlan| -> Vec<KernelRoute> {
                port.network_routes(&plan.families, link, &addresses, |_| true)
            };
            let new = routes(port);
            let networks = std::mem::replace(&mut port.networks, before);
            let old = routes(port);
            port.networks = networks;
            let gone = old.iter().filter(|route| !new.contains(route)).cloned();
            edits.extend(gone.map(RouteEdit::Remove));
            let new = new.into_iter().filter(|route| !old.contains(route));
            edits.extend(new.map(RouteEdit::Add));
        }
        Ok(edits)
    }

    /// Carries out a change: one system call.
    pub fn carry_out(&mut self, change: &RouteEdit) -> Result<(), NetlinkError> {
        match change {
            RouteEdit::Add(route) => self.netlink.add_route(route),
            RouteEdit::Remove(route) => self.netlink.remove_route(route),
        }
    }
}

impl PortPlan {
    /// ICMP errors of this kernel about translated packets take this path.
    pub(super) fn address_route(&self, address: IpNet) -> KernelRoute {
        KernelRoute::on_link(address, TABLE_MAIN, METRIC, PROTOCOL, self.tun)
    }
}
