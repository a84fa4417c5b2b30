//! Where a route leads, as the gateway sees it.

use super::Monitor;
use crate::os::netlink::{KernelRoute, NextHop};
use tandemgw_core::event::{PortHop, RouteTarget};

impl Monitor {
    /// Where a route leads, and its next hops if they are not all on one port.
    pub(super) fn ways(&self, route: &KernelRoute) -> (RouteTarget, Vec<PortHop>) {
        let on_port = |hop: &NextHop| {
            let port = self.port_of_interface(self.links.get(&hop.link)?)?;
            Some(PortHop {
                port,
                gateway: hop.gateway.map(Into::into),
                weight: hop.weight,
            })
        };
        let all: Vec<Option<PortHop>> = route.hops.iter().map(on_port).collect();
        let first = all.iter().flatten().next();
        let target = first.map_or(RouteTarget::Elsewhere, PortHop::target);
        let port = |hop: &Option<PortHop>| hop.map(|hop| hop.port);
        let is_spread = all.windows(2).any(|pair| port(&pair[0]) != port(&pair[1]));
        let hops = match is_spread {
            true => all.into_iter().flatten().collect(),
            false => Vec::new(),
        };
        (target, hops)
    }
}
