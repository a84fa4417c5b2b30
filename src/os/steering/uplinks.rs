//! Several uplinks: the kernel follows the gateway's choice among the next hops of a default route.
//!
//! Packets that leave by port `wan`, one of several uplinks, are written to `tgw-wan`, which has:
//!
//! ```text
//! T:      iif tgw-wan lookup main suppress_prefixlength 0     all but default routes
//! 32765:  iif tgw-wan lookup U                                the uplink
//! default via GATEWAY dev eth1 metric 1024                    in table U
//! blackhole default metric 4294967295                         in table U
//! ```
//!
//! *T* is the port's number and *U* = 1 952 907 264 + *T*, a number that nobody uses. The rules
//! exist only while a default route has next hops on several ports, because the kernel evaluates
//! all rules for each packet.

use super::plan::{Plan, PortPlan};
use super::{
    Family, KernelRoute, METRIC, METRIC_BLACKHOLE, Netlink, NetlinkError, PROTOCOL, Rule, Steering,
    TABLE_MAIN, default_network,
};
use crate::os::netlink::NextHop;
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

/// `tg` in the upper half: the table of a port, as an uplink, has this number and that of its other table.
pub(in crate::os) const FIRST_TABLE: u32 = 0x7467_0000;

/// The last one before the kernel's own rule for the main table.
const LAST_PRIORITY: u32 = 32_765;

/// A next hop of a default route.
pub type Way = (PortId, NextHop);

impl Steering {
    /// Makes the kernel follow the gateway's choice among these next hops of `family`; none if
    /// there is only one.
    ///
    /// # Errors
    /// If the kernel refuses; then it does not follow, and may choose by itself.
    pub fn follow(&mut self, family: Family, ways: &[Way]) -> Result<(), NetlinkError> {
        let Steering {
            netlink,
            plan,
            uplinks,
            ..
        } = self;
        let installed = std::mem::replace(&mut uplinks[family as usize], ways.to_vec());
        for (port, _) in ways {
            set_up(netlink, plan, family, *port, ways)?;
        }
        let gone = installed.iter().map(|(port, _)| *port);
        let gone = gone.filter(|port| !ways.iter().any(|(other, _)| other == port));
        for port in gone {
            take_down(netlink, plan, family, port)?;
        }
        Ok(())
    }

    /// Restores the parts at `port` that somebody, or the kernel with a link, has removed.
    pub(super) fn restore_uplink(&mut self, port: PortId) {
        let Steering {
            netlink,
            plan,
            uplinks,
            ..
        } = self;
        for family in plan.families.clone() {
            let ways = &uplinks[family as usize];
            if ways.iter().any(|(other, _)| *other == port)
                && let Err(error) = set_up(netlink, plan, family, port, ways)
            {
                log::error!("uplink not restored error={}", InQuotes(&error));
            }
        }
    }

    /// Removes all of it.
    pub(super) fn follow_nothing(&mut self) -> Result<(), NetlinkError> {
        for family in self.plan.families.clone() {
            self.follow(family, &[])?;
        }
        Ok(())
    }
}

/// The table comes before the rules that lead to it.
fn set_up(
    netlink: &mut Netlink,
    plan: &Plan,
    family: Family,
    port: PortId,
    ways: &[Way],
) -> Result<(), NetlinkError> {
    let Some(port) = plan.ports.iter().find(|known| known.id == port) else {
        return Ok(());
    };
    let all = default_network(family);
    let table = FIRST_TABLE + port.table;
    netlink.replace_route(&KernelRoute::blackhole(
        all,
        table,
        METRIC_BLACKHOLE,
        PROTOCOL,
    ))?;
    let mut hops = ways.iter().filter(|(other, _)| *other == port.id);
    if let Some((_, hop)) = hops.next() {
        let route = KernelRoute {
            hops: vec![*hop],
            ..KernelRoute::on_link(all, table, METRIC, PROTOCOL, hop.link)
        };
        match netlink.replace_route(&route) {
            // The link is down: until it is up nothing leaves by it.
            Err(error) if error.is(libc::ENETDOWN) || error.is(libc::ENETUNREACH) => {}
            result => result?,
        }
    }
    let [main, uplink] = rules(port, family);
    ignore(libc::EEXIST, netlink.add_rule_but_for_defaults(&main))?;
    ignore(libc::EEXIST, netlink.add_rule(&uplink))
}

fn take_down(
    netlink: &mut Netlink,
    plan: &Plan,
    family: Family,
    port: PortId,
) -> Result<(), NetlinkError> {
    let Some(port) = plan.ports.iter().find(|known| known.id == port) else {
        return Ok(());
    };
    for rule in rules(port, family) {
        netlink.remove_rule(&rule)?;
    }
    for route in netlink.routes(family, FIRST_TABLE + port.table, PROTOCOL)? {
        netlink.remove_route(&route)?;
    }
    Ok(())
}

fn rules(port: &PortPlan, family: Family) -> [Rule; 2] {
    [
        (port.table, TABLE_MAIN),
        (LAST_PRIORITY, FIRST_TABLE + port.table),
    ]
    .map(|(priority, table)| Rule {
        family,
        priority,
        interface: Some(port.tun_name.clone()),
        table,
        protocol: PROTOCOL,
        special: false,
    })
}

fn ignore(errno: i32, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is(errno) => Ok(()),
        result => result,
    }
}
