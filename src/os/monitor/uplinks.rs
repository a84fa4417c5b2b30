//! The default routes, for when one has next hops on several ports.

use std::collections::BTreeMap;

use super::Monitor;
use crate::os::netlink::{KernelRoute, NextHop, net_family};
use tandemgw_core::flow::{Family, PortId};

/// The next hops of the default routes, by family and metric.
#[derive(Default)]
pub(super) struct Defaults([BTreeMap<u32, Vec<NextHop>>; 2]);

impl Defaults {
    pub(super) fn add(&mut self, route: &KernelRoute) {
        if route.destination.prefix_len() == 0 {
            let family = net_family(&route.destination);
            self.0[family as usize].insert(route.metric, route.hops.clone());
        }
    }

    pub(super) fn remove(&mut self, route: &KernelRoute) {
        if route.destination.prefix_len() == 0 {
            let family = net_family(&route.destination);
            self.0[family as usize].remove(&route.metric);
        }
    }

    pub(super) fn forget(&mut self, family: Family) {
        self.0[family as usize].clear();
    }
}

impl Monitor {
    /// The next hops of the best default route of `family`, if they are on several ports and on nothing
    /// else.
    pub fn uplinks(&self, family: Family) -> Vec<(PortId, NextHop)> {
        let best = self.defaults.0[family as usize].values().next();
        let hops = best.map_or(&[][..], Vec::as_slice);
        let ways: Option<Vec<(PortId, NextHop)>> = hops
            .iter()
            .map(|hop| Some((self.port_at(hop.link)?, *hop)))
            .collect();
        let ways = ways.unwrap_or_default();
        let several = ways.iter().any(|(port, _)| *port != ways[0].0);
        if several { ways } else { Vec::new() }
    }

    /// Whether a dump is needed to know everything.
    pub fn is_dumping(&self) -> bool {
        self.dump.stage.is_some()
    }
}
