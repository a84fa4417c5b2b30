//! Several uplinks: when the default route changes, gateway and kernel are told what they are.

use tandemgw_core::event::RouteChange;
use tandemgw_core::flow::Family;
use tandemgw_core::gateway::Uplink;
use tandemgw_core::in_quotes::InQuotes;

use super::super::netlink::NetlinkError;
use super::super::steering::Way;
use super::super::upkeep::Order;
use super::{Shell, Steering};

impl Shell {
    /// Records a change of the routes, before the core does.
    pub(super) fn note_default_route(&mut self, change: &RouteChange) {
        let is_default = match change {
            RouteChange::Add(route) | RouteChange::Remove(route) => {
                route.destination.prefix_len() == 0
            }
            RouteChange::EndDump => true,
            RouteChange::BeginDump => false,
        };
        if is_default && !self.monitor.is_dumping() {
            self.follow_uplinks();
        }
    }

    /// Makes the kernel follow the gateway's choice of uplinks; the gateway chooses among them once
    /// it does.
    fn follow_uplinks(&mut self) {
        for family in [Family::V4, Family::V6] {
            let ways = self.monitor.uplinks(family);
            if ways.is_empty() {
                self.gateway.set_uplinks(family, Vec::new());
            }
            self.order(Order::Follow(family, ways));
        }
    }

    /// The same at the start, before the first packet arrives.
    pub(super) fn follow_first(&mut self, steering: &mut Steering) {
        for family in [Family::V4, Family::V6] {
            let ways = self.monitor.uplinks(family);
            let error = steering.follow(family, &ways).err();
            self.set_uplinks(family, ways, error.as_ref());
        }
    }

    /// The kernel now follows the choice among these next hops, or does not.
    pub(super) fn set_uplinks(
        &mut self,
        family: Family,
        ways: Vec<Way>,
        error: Option<&NetlinkError>,
    ) {
        if let Some(error) = error {
            log::error!(
                "uplinks not followed error={} effect=\"the kernel chooses among them, regardless of policies and translation\"",
                InQuotes(error)
            );
            return self.gateway.set_uplinks(family, Vec::new());
        }
        let mut uplinks: Vec<Uplink> = Vec::new();
        for (port, hop) in ways {
            match uplinks.iter_mut().find(|uplink| uplink.port == port) {
                // A second next hop on the same port adds to its share.
                Some(known) => known.weight += hop.weight,
                None => uplinks.push(Uplink {
                    port,
                    gateway: hop.gateway.map(Into::into),
                    weight: hop.weight,
                }),
            }
        }
        self.gateway.set_uplinks(family, uplinks);
    }
}
