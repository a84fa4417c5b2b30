//! Routes to the addresses of pools and forwards, when these change while the gateway runs.

use std::collections::{BTreeMap, VecDeque};

use ipnet::IpNet;

use super::{
    KernelRoute, METRIC, NetlinkError, PROTOCOL, Plan, PortPlan, Steering, TABLE_MAIN, net_family,
};
use tandemgw_core::config::Config;

/// A change of the routes to addresses of pools and forwards.
#[derive(Debug)]
pub enum RouteEdit {
    /// The address is new.
    Add(KernelRoute),
    /// The address was removed.
    Remove(KernelRoute),
}

impl Steering {
    /// The changes needed for new addresses of pools and forwards, in a config with the same ports.
    /// Carry them out one after the other with [`carry_out`](Self::carry_out).
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
        let changes = gone
            .map(|(_, route)| RouteEdit::Remove(route.clone()))
            .chain(new.map(|(_, route)| RouteEdit::Add(route.clone())))
            .collect();
        for (port, wanted) in plan.ports.iter_mut().zip(wanted.ports) {
            port.addresses = wanted.addresses;
        }
        let indexes: BTreeMap<String, u32> = self
            .barrier
            .posts()
            .iter()
            .filter_map(|post| Some((post.interface.clone(), post.index?)))
            .collect();
        self.raise_barrier(|name| indexes.get(name).copied());
        changes
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
