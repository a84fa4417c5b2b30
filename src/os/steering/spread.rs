//! Routes with next hops on several ports: the kernel follows the gateway's choice among them.
//!
//! Packets that leave by port `wan` are written to `tgw-wan`. If a next hop of such a route is on
//! that port:
//!
//! ```text
//! T:      iif tgw-wan lookup V                                routes with a prefix
//! 32764:  iif tgw-wan lookup main suppress_prefixlength 0     all but default routes
//! 32765:  iif tgw-wan lookup U                                the default route
//!
//! throw 10.5.6.0/24 metric 1024                               in table V: longer prefix in main
//! 10.5.0.0/16 via GATEWAY dev eth1 metric 1024                in table V
//! default via GATEWAY dev eth1 metric 1024                    in table U
//! blackhole default metric 4294967295                         in table U
//! ```
//!
//! *T* is the port's number, *U* = 1 952 907 264 + *T* and *V* = *U* + 65 536, numbers that nobody
//! uses. Each part exists only while there is a route that needs it, because the kernel evaluates
//! all rules for each packet. Default routes have a table of their own so that no exceptions from
//! them are needed, which may be all routes of the Internet.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::PortPlan;
use super::{
    Family, KernelRoute, METRIC, METRIC_BLACKHOLE, Netlink, NetlinkError, PROTOCOL, Rule, Steering,
    TABLE_MAIN, default_network,
};
use crate::os::netlink::NextHop;
use ipnet::IpNet;
use netlink_packet_route::route::RouteType;
use tandemgw_core::event::PortHop;
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::route::Spread;

/// `tg` in the upper half: the table of a port for the default route has this number and that of
/// its first one.
const FIRST_DEFAULT_TABLE: u32 = 0x7467_0000;

/// The same of the table for all other routes.
const FIRST_PREFIX_TABLE: u32 = 0x7468_0000;

/// Before the kernel's own rule for the main table.
const PRIORITY_MAIN: u32 = 32_764;
const PRIORITY_DEFAULT: u32 = 32_765;

/// The number that tells the port whose packets are looked up in that table, if it is one of these.
pub(in crate::os) fn number_in(table: u32) -> Option<u32> {
    let numbers = 0..=u32::from(u16::MAX);
    [FIRST_PREFIX_TABLE, FIRST_DEFAULT_TABLE]
        .into_iter()
        .filter_map(|first| table.checked_sub(first))
        .find(|number| numbers.contains(number))
}

impl Steering {
    /// Makes the kernel follow the gateway's choice among the next hops of these routes of
    /// `family`.
    ///
    /// # Errors
    /// If the kernel refuses; then it does not follow, and what it would send out of another port
    /// is dropped.
    pub fn follow(&mut self, family: Family, spread: &Spread) -> Result<(), NetlinkError> {
        let before = self.spread[family as usize].replace(spread.clone());
        let mut result = Ok(());
        for port in &self.plan.ports {
            let uses = |spread: &Spread| !hops_at(spread, port.id).is_empty();
            // At the start, what a killed process has left must go.
            if before.as_ref().is_none_or(uses) || uses(spread) {
                let done = follow_at(&mut self.netlink, port, family, spread);
                result = result.and(done);
            }
        }
        result
    }

    /// Restores the parts at `port` that somebody, or the kernel with a link, has removed.
    pub(super) fn restore_spread(&mut self, port: PortId) {
        let Some(port) = self.plan.ports.iter().find(|known| known.id == port) else {
            return;
        };
        for family in self.plan.families.clone() {
            let spread = self.spread[family as usize].as_ref();
            let Some(spread) = spread.filter(|spread| !hops_at(spread, port.id).is_empty()) else {
                continue;
            };
            if let Err(error) = follow_at(&mut self.netlink, port, family, spread) {
                log::error!("next hops not restored error={}", InQuotes(&error));
            }
        }
    }

    /// Whether there is something to follow.
    pub(super) fn is_spread(&self) -> bool {
        let mut spread = self.spread.iter().flatten();
        spread.any(|spread| !spread.routes.is_empty())
    }

    /// Removes all of it.
    pub(super) fn follow_nothing(&mut self) -> Result<(), NetlinkError> {
        for family in self.plan.families.clone() {
            self.follow(family, &Spread::default())?;
        }
        Ok(())
    }
}

/// Which routes have next hops on a port, and those.
fn hops_at(spread: &Spread, port: PortId) -> Vec<(IpNet, Vec<PortHop>)> {
    let of_port = |(network, hops): &(IpNet, Vec<PortHop>)| {
        let hops: Vec<PortHop> = hops
            .iter()
            .filter(|hop| hop.port == port)
            .copied()
            .collect();
        (!hops.is_empty()).then_some((*network, hops))
    };
    spread.routes.iter().filter_map(of_port).collect()
}

fn follow_at(
    netlink: &mut Netlink,
    port: &PortPlan,
    family: Family,
    spread: &Spread,
) -> Result<(), NetlinkError> {
    let link = netlink.link(&port.interface)?.map(|link| link.index);
    let wanted = link.map_or_else(Vec::new, |link| wanted_routes(port, family, spread, link));
    let tables = [FIRST_PREFIX_TABLE, FIRST_DEFAULT_TABLE].map(|first| first + port.table);
    let [prefix, main, default] = rules(port, family);
    let has = |table: u32| wanted.iter().any(|route| route.table == table);
    let [has_prefix, has_default] = tables.map(has);
    // By their keys: there may be thousands of exceptions.
    let mut installed = BTreeMap::new();
    for table in tables {
        let routes = netlink.routes(family, table, PROTOCOL)?;
        installed.extend(routes.into_iter().map(|route| (key(&route), route)));
    }
    for (rule, is_wanted) in [
        (&prefix, has_prefix),
        (&main, has_default),
        (&default, has_default),
    ] {
        if !is_wanted {
            netlink.remove_rule(rule)?;
        }
    }
    let keys: BTreeSet<_> = wanted.iter().map(key).collect();
    for (_, route) in installed.iter().filter(|(key, _)| !keys.contains(key)) {
        netlink.remove_route(route)?;
    }
    for route in &wanted {
        let found = installed.get(&key(route));
        if found.is_some_and(|found| is_same(route, found)) {
            continue;
        }
        match netlink.replace_route(route) {
            // The link is down: until it is up nothing leaves by it.
            Err(error) if error.is(libc::ENETDOWN) || error.is(libc::ENETUNREACH) => {}
            result => result?,
        }
    }
    if has_prefix {
        ignore(libc::EEXIST, netlink.add_rule(&prefix))?;
    }
    if has_default {
        ignore(libc::EEXIST, netlink.add_rule_but_for_defaults(&main))?;
        ignore(libc::EEXIST, netlink.add_rule(&default))?;
    }
    Ok(())
}

/// Exceptions come first: until they are there, what they are for would follow the shorter prefix.
fn wanted_routes(port: &PortPlan, family: Family, spread: &Spread, link: u32) -> Vec<KernelRoute> {
    let mut wanted = Vec::new();
    let of_port = hops_at(spread, port.id);
    let longer = |network: &IpNet| network.prefix_len() > 0;
    if of_port.iter().any(|(network, _)| longer(network)) {
        let table = FIRST_PREFIX_TABLE + port.table;
        wanted.extend(spread.exceptions.iter().map(|network| KernelRoute {
            kind: RouteType::Throw,
            ..KernelRoute::blackhole(*network, table, METRIC, PROTOCOL)
        }));
    }
    for (network, hops) in of_port {
        let first = match longer(&network) {
            true => FIRST_PREFIX_TABLE,
            false => FIRST_DEFAULT_TABLE,
        };
        let table = first + port.table;
        if !longer(&network) {
            let all = default_network(family);
            wanted.push(KernelRoute::blackhole(
                all,
                table,
                METRIC_BLACKHOLE,
                PROTOCOL,
            ));
        }
        let is_single = hops.len() == 1;
        let hops = hops.iter().map(|hop| NextHop {
            link,
            gateway: hop.gateway.map(Into::into),
            weight: if is_single { 1 } else { hop.weight },
        });
        wanted.push(KernelRoute {
            hops: hops.collect(),
            ..KernelRoute::on_link(network, table, METRIC, PROTOCOL, link)
        });
    }
    wanted
}

/// The key by which the kernel tells routes apart.
fn key(route: &KernelRoute) -> (u32, IpNet, u32) {
    (route.table, route.destination, route.metric)
}

/// Whether two routes of one key lead the same way. One of IPv6 that leads nowhere is reported with
/// the loopback device as its hop.
fn is_same(wanted: &KernelRoute, found: &KernelRoute) -> bool {
    wanted.kind == found.kind && (wanted.hops.is_empty() || wanted.hops == found.hops)
}

fn rules(port: &PortPlan, family: Family) -> [Rule; 3] {
    [
        (port.table, FIRST_PREFIX_TABLE + port.table),
        (PRIORITY_MAIN, TABLE_MAIN),
        (PRIORITY_DEFAULT, FIRST_DEFAULT_TABLE + port.table),
    ]
    .map(|(priority, table)| {
        let interface = Some(port.tun_name.clone());
        Rule::leading(family, priority, interface, table, PROTOCOL)
    })
}

fn ignore(errno: i32, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is(errno) => Ok(()),
        result => result,
    }
}
